//! Key pairs of our own: P-256, two token objects of one label. The private half signs, the public half is read.

use std::fmt;

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass};

use super::public_key::{P256_PARAMETERS, POINT_HEADER};
use super::session::{Object, Session};
use super::{Cause, Pkcs11Error};
use crate::domain::signer::PublicKey;

/// Which object of a pair. Displays as an operator's tool calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// It signs, and never leaves.
    Private,
    /// It says what verifies.
    Public,
}

impl fmt::Display for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Private => "private key",
            Self::Public => "public key",
        })
    }
}

impl Half {
    /// What a template gives, and what is read back.
    fn attributes(self) -> Vec<Attribute> {
        let mut attributes = vec![
            Attribute::KeyType(KeyType::EC),
            Attribute::Token(true),
            Attribute::Private(self == Self::Private),
            Attribute::Derive(false),
        ];
        attributes.extend(match self {
            Self::Private => vec![
                Attribute::Class(ObjectClass::PRIVATE_KEY),
                Attribute::Sensitive(true),
                Attribute::Extractable(false),
                Attribute::Sign(true),
                Attribute::SignRecover(false),
                Attribute::Decrypt(false),
                Attribute::Unwrap(false),
            ],
            Self::Public => vec![
                Attribute::Class(ObjectClass::PUBLIC_KEY),
                Attribute::EcParams(P256_PARAMETERS.to_vec()),
                Attribute::Verify(true),
                Attribute::VerifyRecover(false),
                Attribute::Encrypt(false),
                Attribute::Wrap(false),
            ],
        });
        attributes
    }

    /// What no template takes, and is read back besides.
    fn attributes_given(self) -> Vec<Attribute> {
        match self {
            // Made in the HSM: what came from outside is known to whoever brought it (PKCS #11 3.1, section 4.9).
            Self::Private => vec![
                Attribute::EcParams(P256_PARAMETERS.to_vec()),
                Attribute::AlwaysSensitive(true),
                Attribute::NeverExtractable(true),
            ],
            Self::Public => vec![],
        }
    }
}

impl Session {
    /// Generates a pair with this label, which nobody can modify.
    ///
    /// # Errors
    /// `C_GenerateKeyPair` failed.
    pub fn generate_pair(&self, label: &str) -> Result<[(Half, Object); 2], Pkcs11Error> {
        let template = |half: Half| {
            let mut template = half.attributes();
            template.extend([Attribute::Label(label.as_bytes().to_vec()), Attribute::Modifiable(false)]);
            template
        };
        let (public, private) = self.0.generate_key_pair(
            &Mechanism::EccKeyPairGen,
            &template(Half::Public),
            &template(Half::Private),
        )?;
        Ok([(Half::Private, Object(private)), (Half::Public, Object(public))])
    }

    /// Which half an object is by its class; `None`: it is neither.
    ///
    /// # Errors
    /// The class cannot be read.
    pub fn half(&self, object: Object) -> Result<Option<Half>, Pkcs11Error> {
        Ok(match self.0.get_attributes(object.0, &[AttributeType::Class])?.as_slice() {
            [Attribute::Class(ObjectClass::PRIVATE_KEY)] => Some(Half::Private),
            [Attribute::Class(ObjectClass::PUBLIC_KEY)] => Some(Half::Public),
            _ => None,
        })
    }

    /// Reads a half's attributes back.
    ///
    /// # Errors
    /// Names the first attribute that is missing or not as it must be.
    pub fn check_half(&self, object: Object, half: Half) -> Result<(), Pkcs11Error> {
        let mut wanted = half.attributes();
        wanted.extend(half.attributes_given());
        self.check_attributes(object, &wanted)
    }

    /// What the public half verifies with.
    ///
    /// # Errors
    /// It has no point, or none on P-256.
    pub fn public_half(&self, object: Object) -> Result<PublicKey, Pkcs11Error> {
        let key = match self.0.get_attributes(object.0, &[AttributeType::EcPoint])?.as_slice() {
            [Attribute::EcPoint(der)] => {
                der.strip_prefix(&POINT_HEADER).and_then(|point| PublicKey::from_p256_point(point).ok())
            }
            _ => None,
        };
        key.ok_or_else(|| Pkcs11Error(Cause::Attribute("CKA_EC_POINT".to_owned())))
    }

    /// ECDSA of a SHA-256 digest: r and s, 32 bytes each.
    ///
    /// # Errors
    /// `C_SignInit` or `C_Sign` failed, or the result has another length.
    pub fn sign_digest(&self, private: Object, digest: &[u8; 32]) -> Result<[u8; 64], Pkcs11Error> {
        let signature = self.0.sign(&Mechanism::Ecdsa, private.0, digest)?;
        signature.try_into().map_err(|_| Pkcs11Error(Cause::Length("C_Sign")))
    }
}
