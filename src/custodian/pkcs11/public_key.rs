//! Keys from outside that signatures are verified with: by the HSM, and in this process.

use std::rc::Rc;

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, KeyType, ObjectClass};

use super::session::{Object, Session};
use super::{Cause, Pkcs11Error};
use crate::custodian::verifier::{SHA256_DIGEST_INFO, Verifier};
use crate::domain::signer::PublicKey;
use crate::domain::signer::signature::Signature;

/// `prime256v1` (RFC 5480, section 2.1.1.1), in DER.
pub(super) const P256_PARAMETERS: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// Tag and length of a DER OCTET STRING of 65 bytes: PKCS#11 has the point wrapped in one, and a module may take
/// a bare one without a word and call every signature wrong.
pub(super) const POINT_HEADER: [u8; 2] = [0x04, 65];

/// All that is asked of a public key, and read back.
fn attributes(key: &PublicKey) -> Vec<Attribute> {
    let mut attributes = vec![
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::Token(false),
        Attribute::Private(false),
        Attribute::Verify(true),
        Attribute::VerifyRecover(false),
        Attribute::Encrypt(false),
        Attribute::Wrap(false),
        Attribute::Derive(false),
    ];
    attributes.extend(match key {
        PublicKey::P256(key) => [
            Attribute::KeyType(KeyType::EC),
            Attribute::EcParams(P256_PARAMETERS.to_vec()),
            Attribute::EcPoint([&POINT_HEADER[..], &key.point()].concat()),
        ],
        PublicKey::Rsa(key) => [
            Attribute::KeyType(KeyType::RSA),
            Attribute::Modulus(key.modulus().to_vec()),
            Attribute::PublicExponent(key.exponent().to_vec()),
        ],
    });
    attributes
}

/// A public key in the HSM, with the same here, which says what algorithm it is for: SoftHSM does not compare the
/// mechanism with the type of the key, and takes the one for the other.
#[derive(Clone)]
pub struct VerifyingKey {
    object: Object,
    verifier: Rc<Verifier>,
}

impl VerifyingKey {
    /// The object, to be destroyed.
    pub fn object(&self) -> Object {
        self.object
    }

    /// Whether `signature` is one of the SHA-256 digest, by this key, as this process says.
    pub fn is_right(&self, digest: &[u8; 32], signature: &Signature) -> bool {
        self.verifier.verify(digest, signature)
    }
}

impl Session {
    /// A session object that verifies with this key and does nothing else. It was read back; one that is not
    /// as asked for is destroyed.
    ///
    /// # Errors
    /// `C_CreateObject` failed, or names the attribute that is not as asked for.
    pub fn create_public_key(&self, key: &PublicKey) -> Result<VerifyingKey, Pkcs11Error> {
        let wanted = attributes(key);
        let verifier =
            Verifier::new(key).ok_or_else(|| Pkcs11Error(Cause::Attribute("CKA_EC_POINT".into())))?;
        let object = self.made("C_CreateObject", self.raw.create_object(&wanted)?)?;
        self.checked(object, &wanted).map(|()| VerifyingKey { object, verifier: Rc::new(verifier) })
    }

    /// Destroys an object that is not as asked for.
    fn checked(&self, object: Object, wanted: &[Attribute]) -> Result<(), Pkcs11Error> {
        self.check_attributes(object, wanted).inspect_err(|_| {
            // It is no secret, and what is wrong was said already.
            let _ = self.destroy(object);
        })
    }

    /// Whether `signature` is one of the SHA-256 digest, by this key, as the HSM and this process say; the HSM is not asked of
    /// what can be none.
    ///
    /// # Errors
    /// `C_VerifyInit` failed, or `C_Verify` for another reason than the signature; or the two do not agree.
    pub fn verify_digest(
        &self,
        key: &VerifyingKey,
        digest: &[u8; 32],
        signature: &Signature,
    ) -> Result<bool, Pkcs11Error> {
        let object = self.handle(key.object)?;
        if !key.verifier.is_formed(signature) {
            return Ok(false);
        }
        let verified = match *key.verifier {
            Verifier::P256(_) => self.raw.verify(&Mechanism::Ecdsa, object, digest, signature.as_bytes()),
            Verifier::Rsa(_) => {
                let digest_info = [&SHA256_DIGEST_INFO[..], digest].concat();
                self.raw.verify(&Mechanism::RsaPkcs, object, &digest_info, signature.as_bytes())
            }
        };
        let is_right = match verified {
            Ok(()) => true,
            Err(Error::Pkcs11(
                RvError::SignatureInvalid
                | RvError::SignatureLenRange
                // NSS says it of the signature: what is signed has its one length here.
                | RvError::DataLenRange,
                _,
            )) => false,
            Err(error) => return Err(error.into()),
        };
        match is_right == key.is_right(digest, signature) {
            true => Ok(is_right),
            false => Err(Pkcs11Error::lie(format!(
                "C_Verify: a signature is said to be {}, and is not",
                if is_right { "right" } else { "wrong" }
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::test_token::with_session;
    use super::*;
    use crate::domain::signer::signature::SignatureFormat::{Der, P1363, Raw};
    use crate::domain::signer::tests::{hex, key_named, vectors};
    use p256::ecdsa::signature::hazmat::PrehashSigner;
    use p256::ecdsa::{Signature as Ecdsa, SigningKey};
    use p256::pkcs8::{EncodePublicKey, LineEnding};
    use sha2::{Digest, Sha256};

    /// Bytes that [`Signature::parse`] may not have let through.
    fn unparsed(bytes: &[u8]) -> Signature {
        postcard::from_bytes(&postcard::to_stdvec(bytes).unwrap()).unwrap()
    }

    #[test]
    fn the_hsm_verifies_es256() {
        with_session("custodian::pkcs11::public_key::tests::the_hsm_verifies_es256", |session| {
            es256(&session);
        });
    }

    fn es256(session: &Session) {
        let [ours, theirs] = [1, 2].map(|byte| SigningKey::from_slice(&[byte; 32]).unwrap());
        let key_of = |signer: &SigningKey| {
            let public = p256::PublicKey::from(*signer.verifying_key());
            PublicKey::from_pem(&public.to_public_key_pem(LineEnding::LF).unwrap()).unwrap()
        };
        let (key, other_key) = (key_of(&ours), key_of(&theirs));
        let resting = session.session_objects();
        let this = session.create_public_key(&key).unwrap();
        let other = session.create_public_key(&other_key).unwrap();

        let digest: [u8; 32] = Sha256::digest("pay 12.50 EUR to Alice").into();
        let other_digest: [u8; 32] = Sha256::digest("pay 12.51 EUR to Alice").into();
        let made: Ecdsa = ours.sign_prehash(&digest).unwrap();
        let right = Signature::parse(P1363, &made.to_bytes(), &key).unwrap();
        assert_eq!(Signature::parse(Der, made.to_der().as_bytes(), &key), Some(right.clone()));

        // n - s is as good as s: one of the two is high.
        let mirrored = Ecdsa::from_scalars(made.r().to_bytes(), (-*made.s()).to_bytes()).unwrap();
        assert_ne!(mirrored.normalize_s() == mirrored, made.normalize_s() == made);
        let mirrored = Signature::parse(P1363, &mirrored.to_bytes(), &key).unwrap();
        let swapped = Ecdsa::from_scalars(made.s().to_bytes(), made.r().to_bytes()).unwrap();
        let bytes = right.as_bytes();

        for (why, expected, by, of, signature) in [
            ("right", true, &this, &digest, right.clone()),
            ("the other s", true, &this, &digest, mirrored),
            ("another digest", false, &this, &other_digest, right.clone()),
            ("another key", false, &other, &digest, right.clone()),
            ("r and s swapped", false, &this, &digest, unparsed(&swapped.to_bytes())),
            ("in DER", false, &this, &digest, unparsed(made.to_der().as_bytes())),
            ("63 bytes", false, &this, &digest, unparsed(&bytes[..63])),
            ("65 bytes", false, &this, &digest, unparsed(&[bytes, &[0]].concat())),
            ("62 bytes", false, &this, &digest, unparsed(&bytes[..62])),
            ("no bytes", false, &this, &digest, unparsed(&[])),
            ("r = s = 0", false, &this, &digest, unparsed(&[0; 64])),
            ("r and s above the order", false, &this, &digest, unparsed(&[0xff; 64])),
        ] {
            assert_eq!(session.verify_digest(by, of, &signature).unwrap(), expected, "{why}");
            assert!(session.verify_digest(&this, &digest, &right).unwrap(), "after {why}");
        }

        // A key is what it was made of; one that is not does not stay.
        session.checked(this.object(), &attributes(&key)).unwrap();
        assert_eq!(session.session_objects(), resting + 2);
        let error = session.checked(other.object(), &attributes(&key)).unwrap_err();
        assert_eq!(error.to_string(), "CKA_EC_POINT is not as asked for");
        assert_eq!(session.session_objects(), resting + 1);

        session.destroy(this.object()).unwrap();
        assert_eq!(session.session_objects(), resting);
        assert!(session.verify_digest(&this, &digest, &right).is_err());
    }

    #[test]
    fn the_hsm_verifies_rs256() {
        with_session("custodian::pkcs11::public_key::tests::the_hsm_verifies_rs256", |session| {
            rs256(&session);
        });
    }

    fn rs256(session: &Session) {
        let vectors = vectors();
        let payload = vectors["payload"].as_str().unwrap();
        let digest: [u8; 32] = Sha256::digest(payload).into();
        let other_digest: [u8; 32] = Sha256::digest(format!("{payload}.")).into();
        for name in ["rsa2048", "rsa4096"] {
            let key = key_named(name);
            let PublicKey::Rsa(numbers) = &key else { panic!() };
            let modulus = numbers.modulus();
            let this = session.create_public_key(&key).unwrap();
            let other_name = if name == "rsa2048" { "rsa4096" } else { "rsa2048" };
            let other = session.create_public_key(&key_named(other_name)).unwrap();
            let verify = |by: &VerifyingKey, digest: &[u8; 32], signature: &Signature| {
                session.verify_digest(by, digest, signature).unwrap()
            };

            let mut right = None;
            for vector in vectors["signatures"].as_array().unwrap().iter().filter(|v| v["key"] == name) {
                let bytes = hex(vector["hex"].as_str().unwrap());
                let signature = Signature::parse(Raw, &bytes, &key).unwrap();
                let expected = vector["right"].as_bool().unwrap();
                assert_eq!(verify(&this, &digest, &signature), expected, "{name}: {}", vector["made_by"]);
                right = right.or(expected.then_some(signature));
            }
            let right = right.unwrap();
            let bytes = right.as_bytes();
            let mut below = modulus.to_vec();
            *below.last_mut().unwrap() -= 1;

            for (why, by, of, signature) in [
                ("another digest", &this, &other_digest, bytes.to_vec()),
                ("another key", &other, &digest, bytes.to_vec()),
                ("an octet less", &this, &digest, bytes[1..].to_vec()),
                ("an octet more", &this, &digest, [&[0], bytes].concat()),
                ("no octets", &this, &digest, vec![]),
                ("zero", &this, &digest, vec![0; modulus.len()]),
                ("one", &this, &digest, [vec![0; modulus.len() - 1], vec![1]].concat()),
                ("the modulus less one", &this, &digest, below),
                ("the modulus", &this, &digest, modulus.to_vec()),
                ("above the modulus", &this, &digest, vec![0xff; modulus.len()]),
            ] {
                assert!(!verify(by, of, &unparsed(&signature)), "{name}: {why}");
                assert!(verify(&this, &digest, &right), "{name}: after {why}");
            }
            session.check_attributes(this.object(), &attributes(&key)).unwrap();
            let error =
                session.check_attributes(this.object(), &attributes(&key_named(other_name))).unwrap_err();
            assert_eq!(error.to_string(), "CKA_MODULUS is not as asked for");
            session.destroy(this.object()).unwrap();
            session.destroy(other.object()).unwrap();
        }
    }
}
