//! Signatures verified in this process: what the HSM says of one counts only if this says the same.

use aws_lc_rs::digest::{Digest, SHA256};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use p256::elliptic_curve::bigint::modular::{FixedMontyForm, FixedMontyParams};
use p256::elliptic_curve::bigint::{Encoding, Odd, U64, Uint};

use crate::domain::signer::signature::Signature;
use crate::domain::signer::{PublicKey, RsaKey};

/// What stands before a SHA-256 digest in a DigestInfo (RFC 8017, section 9.2, note 1).
pub const SHA256_DIGEST_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00,
    0x04, 0x20,
];

/// A key that signatures are verified with.
pub enum Verifier {
    /// ES256.
    P256(Box<ParsedPublicKey>),
    /// RS256. aws-lc takes no exponent of more than 33 bits, and keys here may have 64.
    Rsa(RsaKey),
}

impl Verifier {
    /// `None`: the key is no point on the curve.
    pub fn new(key: &PublicKey) -> Option<Self> {
        match key {
            PublicKey::P256(key) => {
                let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.point()).ok()?;
                Some(Self::P256(Box::new(key)))
            }
            PublicKey::Rsa(key) => Some(Self::Rsa(key.clone())),
        }
    }

    /// Whether this can be a signature by this key, whatever it is of: its length, and whether its numbers are below what
    /// they must be (FIPS 186-5, section 6.4.2; RFC 8017, section 8.2.2). What cannot is no question to an HSM.
    pub fn is_formed(&self, signature: &Signature) -> bool {
        let bytes = signature.as_bytes();
        match self {
            Self::P256(_) => p256::ecdsa::Signature::from_slice(bytes).is_ok(),
            Self::Rsa(key) => bytes.len() == key.modulus().len() && bytes < key.modulus(),
        }
    }

    /// Whether `signature` is one of the SHA-256 digest, by this key. An s above half of the order is as good as one
    /// below (FIPS 186-5, section 6.4.2).
    pub fn verify(&self, digest: &[u8; 32], signature: &Signature) -> bool {
        match self {
            Self::P256(key) => Digest::import_less_safe(digest, &SHA256)
                .and_then(|digest| key.verify_digest_sig(&digest, signature.as_bytes()))
                .is_ok(),
            Self::Rsa(key) => rs256(key, digest, signature.as_bytes()),
        }
    }
}

/// RFC 8017, section 8.2.2: what was signed is computed, encoded, and compared with what the signature is a power of.
fn rs256(key: &RsaKey, digest: &[u8; 32], signature: &[u8]) -> bool {
    let modulus = key.modulus();
    // Of one length, bytes compare as their numbers do.
    if signature.len() != modulus.len() || signature >= modulus {
        return false;
    }
    let content = [&[0][..], &SHA256_DIGEST_INFO, digest].concat();
    let mut encoded = vec![0xff; modulus.len()];
    encoded.iter_mut().zip([0, 1]).for_each(|(place, byte)| *place = byte);
    encoded.iter_mut().rev().zip(content.iter().rev()).for_each(|(place, byte)| *place = *byte);
    let power = match modulus.len() {
        ..=256 => power::<32>(signature, key),
        257..=384 => power::<48>(signature, key),
        _ => power::<64>(signature, key),
    };
    power == Some(encoded)
}

/// The signature to the power of the key's exponent, below its modulus, as long as that; `None`: the modulus is even, or
/// longer than so many limbs of 64 bits.
fn power<const LIMBS: usize>(signature: &[u8], key: &RsaKey) -> Option<Vec<u8>>
where
    Uint<LIMBS>: Encoding,
{
    let parameters = FixedMontyParams::new_vartime(Odd::new(number(key.modulus())?).into_option()?);
    let signature: Uint<LIMBS> = number(signature)?;
    let exponent: U64 = number(key.exponent())?;
    let power = FixedMontyForm::new(&signature, &parameters).pow(&exponent).retrieve();
    let bytes = power.to_be_bytes();
    let bytes = bytes.as_ref();
    bytes.get(bytes.len().checked_sub(key.modulus().len())?..).map(<[u8]>::to_vec)
}

/// A number in big-endian bytes; `None`: it is longer.
fn number<const LIMBS: usize>(bytes: &[u8]) -> Option<Uint<LIMBS>> {
    let padding = (LIMBS * 8).checked_sub(bytes.len())?;
    Some(Uint::from_be_slice(&[vec![0; padding].as_slice(), bytes].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::signer::tests::{hex, key_named, vectors};
    use p256::ecdsa::signature::hazmat::PrehashSigner;
    use p256::ecdsa::{Signature as Ecdsa, SigningKey};
    use sha2::{Digest as _, Sha256};

    /// Bytes that [`Signature::parse`] may not have let through.
    fn unparsed(bytes: &[u8]) -> Signature {
        postcard::from_bytes(&postcard::to_stdvec(bytes).unwrap()).unwrap()
    }

    #[test]
    fn rs256_of_every_size_and_exponent_that_a_key_may_have() {
        let numbers = include_str!("../../tests/vectors/rs256_numbers.json");
        let numbers: serde_json::Value = serde_json::from_str(numbers).unwrap();
        let digest: [u8; 32] = Sha256::digest(numbers["payload"].as_str().unwrap()).into();
        let keys = numbers["keys"].as_array().unwrap();
        assert_eq!(keys.len(), 6);
        for key in keys {
            let verifier =
                Verifier::new(&PublicKey::from_pem(key["pem"].as_str().unwrap()).unwrap()).unwrap();
            let right = hex(key["signature_hex"].as_str().unwrap());
            assert!(verifier.verify(&digest, &unparsed(&right)), "{}", key["bits"]);
            for place in [0, 1, right.len() / 2, right.len() - 1] {
                let mut wrong = right.clone();
                wrong[place] ^= 1;
                assert!(!verifier.verify(&digest, &unparsed(&wrong)), "{}: octet {place}", key["bits"]);
            }
            for wrong in [&right[1..], &[&[0], right.as_slice()].concat(), &[]] {
                assert!(!verifier.verify(&digest, &unparsed(wrong)));
            }
            assert!(!verifier.verify(&Sha256::digest("another").into(), &unparsed(&right)));
        }
    }

    /// Among them what others pad: without NULL, with what is behind the digest, with another hash.
    #[test]
    fn rs256_of_what_else_keys_sign() {
        let vectors = vectors();
        let digest: [u8; 32] = Sha256::digest(vectors["payload"].as_str().unwrap()).into();
        let of_rsa = |vector: &&serde_json::Value| vector["key"].as_str().unwrap().starts_with("rsa");
        let signatures = vectors["signatures"].as_array().unwrap();
        for vector in signatures.iter().filter(of_rsa) {
            let verifier = Verifier::new(&key_named(vector["key"].as_str().unwrap())).unwrap();
            let signature = unparsed(&hex(vector["hex"].as_str().unwrap()));
            assert_eq!(verifier.verify(&digest, &signature), vector["right"], "{}", vector["made_by"]);
        }
        assert!(signatures.iter().filter(of_rsa).count() >= 4);
    }

    #[test]
    fn es256_with_either_s_and_nothing_else() {
        let signer = SigningKey::from_slice(&[1; 32]).unwrap();
        let point = signer.verifying_key().to_sec1_point(false);
        let verifier = Verifier::new(&PublicKey::from_p256_point(point.as_bytes()).unwrap()).unwrap();
        for digest in [[0; 32], [0xff; 32], Sha256::digest("a payment").into()] {
            let made: Ecdsa = signer.sign_prehash(&digest).unwrap();
            let mirrored = Ecdsa::from_scalars(made.r().to_bytes(), (-*made.s()).to_bytes()).unwrap();
            let right = made.to_bytes();
            assert!(verifier.verify(&digest, &unparsed(&right)));
            assert!(verifier.verify(&digest, &unparsed(&mirrored.to_bytes())));
            for wrong in [
                made.to_der().as_bytes(),
                &right[..63],
                &[&right[..], &[0]].concat(),
                &[0; 64],
                &[0xff; 64],
                &[],
            ] {
                assert!(!verifier.verify(&digest, &unparsed(wrong)));
            }
            assert!(!verifier.verify(&[1; 32], &unparsed(&right)));
        }
    }
}
