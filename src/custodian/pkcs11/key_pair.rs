//! Key pairs of our own: two token objects of one label. Of a P-256 pair the private half signs, of an RSA pair it
//! unwraps; the public half is read.

use std::fmt;

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass};

use super::mechanisms::Purpose;
use super::public_key::{P256_PARAMETERS, POINT_HEADER};
use super::session::{Object, Session};
use super::{Cause, Pkcs11Error};
use crate::custodian::verifier::Verifier;
use crate::domain::signer::signature::Signature;
use crate::domain::signer::{P256Key, PublicKey};

/// 65537, as every module takes it.
const RSA_EXPONENT: [u8; 3] = [1, 0, 1];
const RSA_BITS: usize = 3_072;
/// Length of such a key's modulus, and of what it wraps, in bytes.
pub const RSA_BYTES: usize = RSA_BITS / 8;

/// What a key pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairForm {
    /// It signs, and does nothing else.
    P256,
    /// Others wrap for it, and it unwraps; it does nothing else.
    Rsa3072,
}

impl PairForm {
    fn purpose(self) -> Purpose {
        match self {
            Self::P256 => Purpose::Ecdsa,
            Self::Rsa3072 => Purpose::RsaOaep,
        }
    }
}

/// Which object of a pair. Displays as an operator's tool calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// It signs or unwraps, and never leaves.
    Private,
    /// It says what verifies, or wraps.
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
    fn attributes(self, form: PairForm) -> Vec<Attribute> {
        let (key_type, signs) = match form {
            PairForm::P256 => (KeyType::EC, true),
            PairForm::Rsa3072 => (KeyType::RSA, false),
        };
        let mut attributes = vec![
            Attribute::KeyType(key_type),
            Attribute::Token(true),
            Attribute::Private(self == Self::Private),
            Attribute::Derive(false),
        ];
        attributes.extend(match self {
            Self::Private => vec![
                Attribute::Class(ObjectClass::PRIVATE_KEY),
                Attribute::Sensitive(true),
                Attribute::Extractable(false),
                Attribute::Sign(signs),
                Attribute::SignRecover(false),
                Attribute::Decrypt(false),
                Attribute::Unwrap(!signs),
            ],
            Self::Public => vec![
                Attribute::Class(ObjectClass::PUBLIC_KEY),
                Attribute::Verify(signs),
                Attribute::VerifyRecover(false),
                Attribute::Encrypt(false),
                Attribute::Wrap(!signs),
            ],
        });
        attributes.extend(match (self, form) {
            (Self::Private, _) => vec![],
            (Self::Public, PairForm::P256) => vec![Attribute::EcParams(P256_PARAMETERS.to_vec())],
            (Self::Public, PairForm::Rsa3072) => vec![Attribute::PublicExponent(RSA_EXPONENT.to_vec())],
        });
        attributes
    }

    /// What no template takes, and is read back besides.
    fn attributes_given(self, form: PairForm) -> Vec<Attribute> {
        // Made in the HSM: what came from outside is known to whoever brought it (PKCS #11 3.1, section 4.9).
        let made_inside = [Attribute::AlwaysSensitive(true), Attribute::NeverExtractable(true)];
        match (self, form) {
            (Self::Private, PairForm::P256) => {
                [vec![Attribute::EcParams(P256_PARAMETERS.to_vec())], made_inside.to_vec()].concat()
            }
            (Self::Private, PairForm::Rsa3072) => made_inside.to_vec(),
            (Self::Public, _) => vec![],
        }
    }
}

/// What a public half is whose private one is gone.
fn retired() -> Vec<Attribute> {
    let mut attributes = Half::Public.attributes(PairForm::P256);
    attributes.retain(|attribute| !matches!(attribute, Attribute::Private(_)));
    attributes.push(Attribute::Private(true));
    attributes
}

impl Session {
    /// Generates a pair with this label, which nobody can modify.
    ///
    /// # Errors
    /// `C_GenerateKeyPair` failed.
    pub fn generate_pair(&self, label: &str, form: PairForm) -> Result<[(Half, Object); 2], Pkcs11Error> {
        let template = |half: Half| {
            let mut template = half.attributes(form);
            template.extend([Attribute::Label(label.as_bytes().to_vec()), Attribute::Modifiable(false)]);
            template
        };
        let (mut of_public, of_private) = (template(Half::Public), template(Half::Private));
        let mechanism = match form {
            PairForm::P256 => Mechanism::EccKeyPairGen,
            PairForm::Rsa3072 => {
                of_public.push(Attribute::ModulusBits(RSA_BITS.try_into()?));
                Mechanism::RsaPkcsKeyPairGen
            }
        };
        let mine = [Attribute::Token(true), Attribute::Label(label.as_bytes().to_vec())];
        let (public, private) = self.made_with(form.purpose().attribute(), &mine, |allowed| {
            let (public, private) = ([&of_public[..], allowed].concat(), [&of_private[..], allowed].concat());
            Ok(self.raw.generate_key_pair(&mechanism, &public, &private)?)
        })?;
        let made = |handle| self.made("C_GenerateKeyPair", handle);
        Ok([(Half::Private, made(private)?), (Half::Public, made(public)?)])
    }

    /// Which half an object is by its class; `None`: it is neither.
    ///
    /// # Errors
    /// The class cannot be read.
    pub fn half(&self, object: Object) -> Result<Option<Half>, Pkcs11Error> {
        Ok(match self.attributes(object, &[AttributeType::Class])?.as_slice() {
            [Attribute::Class(ObjectClass::PRIVATE_KEY)] => Some(Half::Private),
            [Attribute::Class(ObjectClass::PUBLIC_KEY)] => Some(Half::Public),
            _ => None,
        })
    }

    /// Reads a half's attributes back.
    ///
    /// # Errors
    /// Names the first attribute that is missing or not as it must be.
    pub fn check_half(&self, object: Object, half: Half, form: PairForm) -> Result<(), Pkcs11Error> {
        let mut wanted = half.attributes(form);
        wanted.extend(half.attributes_given(form));
        self.check_attributes(object, &wanted)?;
        self.check_purpose(object, form.purpose())
    }

    /// Makes a token object of the public half of a pair that signs: it verifies what the pair has signed, after the
    /// pair is gone. It is private, so that whoever has no PIN cannot make one.
    ///
    /// # Errors
    /// `C_CreateObject` failed.
    pub fn keep_public_half(&self, public: &P256Key, label: &str) -> Result<Object, Pkcs11Error> {
        let mut template = retired();
        template.extend([
            Attribute::EcPoint([&POINT_HEADER[..], &public.point()].concat()),
            Attribute::Label(label.as_bytes().to_vec()),
            Attribute::Modifiable(false),
        ]);
        self.made("C_CreateObject", self.raw.create_object(&template)?)
    }

    /// Reads the attributes of what [`Session::keep_public_half`] made.
    ///
    /// # Errors
    /// Names the first attribute that is missing or not as it must be.
    pub fn check_retired(&self, object: Object) -> Result<(), Pkcs11Error> {
        self.check_attributes(object, &retired())
    }

    /// What the public half verifies or wraps with.
    ///
    /// # Errors
    /// It has no point, or none on P-256; no modulus, or none of 3072 bits.
    pub fn public_half(&self, object: Object, form: PairForm) -> Result<PublicKey, Pkcs11Error> {
        let (types, name) = match form {
            PairForm::P256 => (&[AttributeType::EcPoint][..], "CKA_EC_POINT"),
            PairForm::Rsa3072 => (&[AttributeType::Modulus][..], "CKA_MODULUS"),
        };
        let key = match self.attributes(object, types)?.as_slice() {
            [Attribute::EcPoint(der)] => {
                der.strip_prefix(&POINT_HEADER).and_then(|point| PublicKey::from_p256_point(point).ok())
            }
            // The first bit tells that none is missing.
            [Attribute::Modulus(modulus)]
                if modulus.len() == RSA_BYTES && modulus.first().is_some_and(|octet| octet & 0x80 != 0) =>
            {
                PublicKey::from_rsa_numbers(modulus, &RSA_EXPONENT).ok()
            }
            _ => None,
        };
        key.ok_or_else(|| Pkcs11Error(Cause::Attribute(name.to_owned())))
    }

    /// ECDSA of a SHA-256 digest: r and s, 32 bytes each, as `public` verifies them.
    ///
    /// # Errors
    /// `C_SignInit` or `C_Sign` failed, or what came out is no such signature.
    pub fn sign_digest(
        &self,
        private: Object,
        public: &PublicKey,
        digest: &[u8; 32],
    ) -> Result<[u8; 64], Pkcs11Error> {
        let signature = self.sign_unverified(private, digest)?;
        let is_right = Verifier::new(public).zip(Signature::es256(&signature));
        match is_right.is_some_and(|(verifier, signature)| verifier.verify(digest, &signature)) {
            true => Ok(signature),
            false => Err(Pkcs11Error::lie("C_Sign: a signature that its public key does not verify")),
        }
    }

    /// The same, whatever comes out: for halves of which nobody knows whether they are of one pair.
    ///
    /// # Errors
    /// `C_SignInit` or `C_Sign` failed, or the result has another length.
    pub fn sign_unverified(&self, private: Object, digest: &[u8; 32]) -> Result<[u8; 64], Pkcs11Error> {
        let signature = self.raw.sign(&Mechanism::Ecdsa, self.handle(private)?, digest)?;
        signature.try_into().map_err(|_| Pkcs11Error(Cause::Length("C_Sign")))
    }
}
