//! Hashes and HMACs of what this process has in its memory in any case, computed here: what the HSM says of the same is
//! compared with them.

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use zeroize::Zeroizing;

use crate::domain::otp::Algorithm;
use crate::secret::MacKey;

/// The hash of `message`, zeroized on drop.
pub fn digest(algorithm: Algorithm, message: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(match algorithm {
        Algorithm::Sha1 => Sha1::digest(message).to_vec(),
        Algorithm::Sha256 => Sha256::digest(message).to_vec(),
        Algorithm::Sha512 => Sha512::digest(message).to_vec(),
    })
}

/// The HMAC of `message` under a key of at most 64 bytes, zeroized on drop.
pub fn hmac(algorithm: Algorithm, key: &[u8], message: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(match algorithm {
        Algorithm::Sha1 => {
            let mut mac = Hmac::<Sha1>::new((&*padded::<64>(key)).into());
            mac.update(message);
            mac.finalize().into_bytes().to_vec()
        }
        Algorithm::Sha256 => MacKey::new(key).mac(message).to_vec(),
        Algorithm::Sha512 => {
            let mut mac = Hmac::<Sha512>::new((&*padded::<128>(key)).into());
            mac.update(message);
            mac.finalize().into_bytes().to_vec()
        }
    })
}

/// To the hash's block: that changes no HMAC.
fn padded<const BYTES: usize>(key: &[u8]) -> Zeroizing<[u8; BYTES]> {
    let mut padded = Zeroizing::new([0; BYTES]);
    for (place, byte) in padded.iter_mut().zip(key) {
        *place = *byte;
    }
    padded
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::HEXLOWER;

    #[test]
    fn rfc_2202_and_rfc_4231() {
        // Test case 2 of both: a key shorter than a block.
        let (key, message) = (b"Jefe", b"what do ya want for nothing?");
        for (algorithm, expected) in [
            (Algorithm::Sha1, "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
            (Algorithm::Sha256, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
            (
                Algorithm::Sha512,
                "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
            ),
        ] {
            assert_eq!(HEXLOWER.encode(&hmac(algorithm, key, message)), expected);
        }
    }

    #[test]
    fn fips_180_4() {
        for (algorithm, expected) in [
            (Algorithm::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (Algorithm::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                Algorithm::Sha512,
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            ),
        ] {
            assert_eq!(HEXLOWER.encode(&digest(algorithm, b"abc")), expected);
        }
    }
}
