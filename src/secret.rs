//! Bytes that must not be shown, compared carelessly, or left behind.

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Secret bytes with one owner: no `Debug`, no `Clone`, constant-time equality, zeroized on drop.
///
/// `Serialize` exists for one purpose, the socketpair between front and custodian
/// (`hsm::messages`); nothing else may serialise a secret.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// Takes the bytes over; the caller's vector is the only copy.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Declassifies: the caller sees the bytes. Every use says why it may.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Length in bytes, which is no secret.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no byte at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PartialEq for SecretBytes {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SecretBytes {}

/// A key of HMAC-SHA-256 in this process: no `Debug`, zeroized on drop. It is kept as what the hash makes of it, so that
/// an HMAC costs two blocks less.
pub struct MacKey(Hmac<Sha256>);

impl MacKey {
    /// Of at most 64 bytes.
    pub fn new(bytes: &[u8]) -> Self {
        // Padded to the hash's block, which changes no HMAC and makes using it infallible.
        let mut key = Zeroizing::new([0; 64]);
        for (place, byte) in key.iter_mut().zip(bytes) {
            *place = *byte;
        }
        Self(Hmac::new((&*key).into()))
    }

    /// HMAC-SHA-256 of `message`.
    pub fn mac(&self, message: &[u8]) -> [u8; 32] {
        let mut mac = self.0.clone();
        mac.update(message);
        mac.finalize().into_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_are_hmac_sha_256() {
        // RFC 4231, test case 2: a key shorter than a block.
        assert_eq!(
            data_encoding::HEXLOWER.encode(&MacKey::new(b"Jefe").mac(b"what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn what_a_key_is_kept_as_is_zeroized() {
        // Two states of the hash are all that it is: what there is to drop is theirs.
        fn assert_zeroized<T: ZeroizeOnDrop>() {}
        assert_zeroized::<Sha256>();
        assert!(std::mem::needs_drop::<Hmac<Sha256>>());
    }

    #[test]
    fn equality_is_by_content_and_length() {
        let secret = || SecretBytes::new(vec![1, 2, 3]);
        assert!(secret() == secret());
        assert!(secret() != SecretBytes::new(vec![1, 2, 4]));
        assert!(secret() != SecretBytes::new(vec![1, 2]));
    }
}
