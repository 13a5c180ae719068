//! What a secret key must be.

use cryptoki::object::{Attribute, KeyType, ObjectClass};

use super::Pkcs11Error;

/// What a secret key is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Material {
    /// `CKK_AES`.
    Aes,
    /// `CKK_GENERIC_SECRET`, for HMAC.
    Generic,
}

/// What a key may be used for. None of ours verifies or derives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// `CKA_ENCRYPT` and `CKA_DECRYPT`.
    Cipher,
    /// `CKA_SIGN`.
    Sign,
    /// `CKA_WRAP` and `CKA_UNWRAP`.
    Wrap,
}

/// Everything that is asked of a secret key, and read back. All are private and sensitive.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Its type.
    pub material: Material,
    /// Its length in bytes; `None`: that of the blob it is unwrapped from, which PKCS#11 does not
    /// take in a template, and some modules do not tell afterwards.
    pub length_bytes: Option<usize>,
    /// Whether it stays in the token, or ends with the session.
    pub token: bool,
    /// Whether it may leave under another key.
    pub extractable: bool,
    /// What it is for; `None`: for nothing but to be wrapped.
    pub purpose: Option<Use>,
}

impl Shape {
    /// The attributes that a template gives and that are read back, without the length.
    pub(super) fn attributes(&self) -> Vec<Attribute> {
        let key_type = match self.material {
            Material::Aes => KeyType::AES,
            Material::Generic => KeyType::GENERIC_SECRET,
        };
        let is_for = |purpose| self.purpose == Some(purpose);
        vec![
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(key_type),
            Attribute::Token(self.token),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(self.extractable),
            Attribute::Encrypt(is_for(Use::Cipher)),
            Attribute::Decrypt(is_for(Use::Cipher)),
            Attribute::Sign(is_for(Use::Sign)),
            Attribute::Verify(false),
            Attribute::Wrap(is_for(Use::Wrap)),
            Attribute::Unwrap(is_for(Use::Wrap)),
            Attribute::Derive(false),
        ]
    }

    /// The same with the length.
    pub(super) fn all_attributes(&self) -> Result<Vec<Attribute>, Pkcs11Error> {
        let mut attributes = self.attributes();
        if let Some(length_bytes) = self.length_bytes {
            attributes.push(Attribute::ValueLen(length_bytes.try_into()?));
        }
        Ok(attributes)
    }
}
