//! The public half of an `audit` key, as those take it who verify checkpoints.

use data_encoding::{BASE64, HEXLOWER};
use p256::pkcs8::{EncodePublicKey, LineEnding};

use super::super::signer::PublicKey;
use super::{Origin, key_id, p256_key};

/// The type of signature: ECDSA on P-256 with SHA-256.
const TYPE: u8 = 2;

/// A key that checkpoints of a log are verified with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierKey {
    /// The key id of its signature lines: the first four bytes of the SHA-256 of its SubjectPublicKeyInfo.
    pub key_id: [u8; 4],
    /// Its SubjectPublicKeyInfo as PEM.
    pub pem: String,
    /// As C2SP signed notes write a verifier: the log's origin, the key id in hex, and base64 of the type and the
    /// SubjectPublicKeyInfo, with `+` between them.
    pub note_verifier: String,
}

impl VerifierKey {
    /// Of a key of P-256; `None` of any other.
    pub fn of(origin: &Origin, key: &PublicKey) -> Option<Self> {
        let point = p256_key(key)?;
        let info = point.to_public_key_der().ok()?;
        let key_id = key_id(key)?;
        let typed = [&[TYPE], info.as_bytes()].concat();
        Some(Self {
            key_id,
            pem: point.to_public_key_pem(LineEnding::LF).ok()?,
            note_verifier: format!("{origin}+{}+{}", HEXLOWER.encode(&key_id), BASE64.encode(&typed)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    #[test]
    fn a_verifier_is_spelt_as_the_specification_says() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/vectors/signer.json")).unwrap();
        let pem = |name: &str| {
            let mut keys = vectors["keys"].as_array().unwrap().iter();
            keys.find(|key| key["name"] == name).unwrap()["pem"].as_str().unwrap().to_owned()
        };
        let origin = Origin::from_random([0xab; 16]);
        let key = PublicKey::from_pem(&pem("p256")).unwrap();
        let verifier = VerifierKey::of(&origin, &key).unwrap();
        assert_eq!(PublicKey::from_pem(&verifier.pem), Ok(key));
        let body: String = verifier.pem.lines().filter(|line| !line.starts_with('-')).collect();
        let info = BASE64.decode(body.as_bytes()).unwrap();
        let id = HEXLOWER.encode(&Sha256::digest(&info)[..4]);
        assert_eq!(HEXLOWER.encode(&verifier.key_id), id);
        let [name, hash, typed] = verifier.note_verifier.split('+').collect::<Vec<_>>()[..3] else {
            panic!()
        };
        assert_eq!((name, hash), (origin.as_str(), &*id));
        // Base64 has plus signs of its own.
        let typed = &verifier.note_verifier[verifier.note_verifier.find(typed).unwrap()..];
        assert_eq!(BASE64.decode(typed.as_bytes()).unwrap(), [&[2], &info[..]].concat());
        let rsa = PublicKey::from_pem(&pem("rsa2048")).unwrap();
        assert_eq!(VerifierKey::of(&origin, &rsa), None);
    }
}
