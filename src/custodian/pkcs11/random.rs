//! Random bytes, of two generators: the HSM's and the kernel's. They are as good as the better one.

use std::cell::Cell;

use zeroize::{Zeroize, Zeroizing};

use super::session::Session;
use super::{Cause, Pkcs11Error};

/// How many bytes the HSM is asked for at least: so many never come twice, and are never all zero.
const DRAWN_BYTES_MIN: usize = 32;

/// What the HSM's generator said last, to know it again.
#[derive(Default)]
pub(super) struct LastDrawn(Cell<[u8; DRAWN_BYTES_MIN]>);

impl LastDrawn {
    /// Whether these are as random as bytes can be seen to be: not zeros, and not those of the last time.
    fn differs(&self, drawn: &[u8]) -> bool {
        let Some(first) = drawn.first_chunk::<DRAWN_BYTES_MIN>() else { return false };
        // Before there is a last one, it is zeros.
        let last = Zeroizing::new(self.0.replace(*first));
        *first != [0; DRAWN_BYTES_MIN] && *first != *last
    }
}

impl Drop for LastDrawn {
    fn drop(&mut self) {
        self.0.get_mut().zeroize();
    }
}

impl Session {
    /// Fills `bytes` from the HSM's random generator and the kernel's.
    ///
    /// # Errors
    /// `C_GenerateRandom` failed, or says nothing, or the same as the last time; or the kernel has none.
    pub fn random(&self, bytes: &mut [u8]) -> Result<(), Pkcs11Error> {
        let mut drawn = Zeroizing::new(vec![0; bytes.len().max(DRAWN_BYTES_MIN)]);
        self.raw.generate_random_slice(&mut drawn)?;
        if !self.last_drawn.differs(&drawn) {
            return Err(Pkcs11Error::lie("C_GenerateRandom: zeros, or the same as before"));
        }
        getrandom::fill(bytes).map_err(|error| Pkcs11Error(Cause::Kernel(error)))?;
        for (byte, drawn) in bytes.iter_mut().zip(drawn.iter()) {
            *byte ^= drawn;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_nothing_or_repeats_itself_is_not_random() {
        let last = LastDrawn::default();
        let (one, other) = ([1; DRAWN_BYTES_MIN], [[2; DRAWN_BYTES_MIN], [3; DRAWN_BYTES_MIN]].concat());
        assert!(!last.differs(&[0; DRAWN_BYTES_MIN]));
        assert!(last.differs(&one));
        assert!(!last.differs(&one) && !last.differs(&[&one[..], &one].concat()));
        assert!(last.differs(&other));
        assert!(last.differs(&one), "the last one, and none before it");
        assert!(!last.differs(&[9; DRAWN_BYTES_MIN - 1]), "too few to tell");
    }
}
