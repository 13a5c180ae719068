//! Which mechanisms a module must have, and which of them a key of ours is for.

use std::collections::BTreeSet;

use cryptoki::mechanism::MechanismType;
use cryptoki::object::{Attribute, AttributeType};

use super::session::{Object, Session};
use super::{Cause, Module, Pkcs11Error, Token};

/// What one of our own keys is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// AES key wrap (RFC 3394).
    AesKeyWrap,
    /// HMAC-SHA-256.
    HmacSha256,
    /// AES-GCM.
    AesGcm,
    /// ECDSA of a hash.
    Ecdsa,
    /// RSAES-OAEP.
    RsaOaep,
}

impl Purpose {
    fn mechanism(self) -> MechanismType {
        match self {
            Self::AesKeyWrap => MechanismType::AES_KEY_WRAP,
            Self::HmacSha256 => MechanismType::SHA256_HMAC,
            Self::AesGcm => MechanismType::AES_GCM,
            Self::Ecdsa => MechanismType::ECDSA,
            Self::RsaOaep => MechanismType::RSA_PKCS_OAEP,
        }
    }

    pub(super) fn attribute(self) -> Attribute {
        Attribute::AllowedMechanisms(vec![self.mechanism()])
    }
}

/// All that is asked of a module, by the names of the standard.
const NEEDED: [(&str, MechanismType); 12] = [
    ("CKM_SHA_1_HMAC", MechanismType::SHA1_HMAC),
    ("CKM_SHA256_HMAC", MechanismType::SHA256_HMAC),
    ("CKM_SHA512_HMAC", MechanismType::SHA512_HMAC),
    ("CKM_AES_KEY_GEN", MechanismType::AES_KEY_GEN),
    ("CKM_AES_KEY_WRAP", MechanismType::AES_KEY_WRAP),
    ("CKM_AES_GCM", MechanismType::AES_GCM),
    ("CKM_GENERIC_SECRET_KEY_GEN", MechanismType::GENERIC_SECRET_KEY_GEN),
    ("CKM_EC_KEY_PAIR_GEN", MechanismType::ECC_KEY_PAIR_GEN),
    ("CKM_ECDSA", MechanismType::ECDSA),
    ("CKM_RSA_PKCS_KEY_PAIR_GEN", MechanismType::RSA_PKCS_KEY_PAIR_GEN),
    ("CKM_RSA_PKCS", MechanismType::RSA_PKCS),
    ("CKM_RSA_PKCS_OAEP", MechanismType::RSA_PKCS_OAEP),
];

impl Module {
    /// Which of the mechanisms that we use the module does not have for this token (`C_GetMechanismList`).
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn missing_mechanisms(&self, token: &Token) -> Result<Vec<&'static str>, Pkcs11Error> {
        let there = self.0.get_mechanism_list(token.slot)?;
        Ok(missing(&there))
    }
}

fn missing(there: &[MechanismType]) -> Vec<&'static str> {
    let absent = NEEDED.iter().filter(|(_, mechanism)| !there.contains(mechanism));
    absent.map(|(name, _)| *name).collect()
}

impl Session {
    /// Whether the key may be used for anything else, as far as the module tells: one that was made without such a
    /// list, or by a module that has none, says nothing.
    ///
    /// # Errors
    /// It may.
    pub fn check_purpose(&self, object: Object, purpose: Purpose) -> Result<(), Pkcs11Error> {
        let found = match self.attributes(object, &[AttributeType::AllowedMechanisms]) {
            // What the module does not know at all.
            Err(error) if error.is_unknown_attribute() => return Ok(()),
            found => found?,
        };
        let Some(Attribute::AllowedMechanisms(allowed)) = found.first() else { return Ok(()) };
        let allowed: BTreeSet<_> = allowed.iter().map(|mechanism| mechanism.to_string()).collect();
        match allowed.iter().all(|name| *name == purpose.mechanism().to_string()) {
            true => Ok(()),
            false => Err(Pkcs11Error(Cause::Attribute("CKA_ALLOWED_MECHANISMS".to_owned()))),
        }
    }

    /// Makes something with this attribute, and without it where the module does not take it.
    pub(super) fn made_for<T>(
        &self,
        purpose: Purpose,
        make: impl Fn(&[Attribute]) -> Result<T, Pkcs11Error>,
    ) -> Result<T, Pkcs11Error> {
        match make(&[purpose.attribute()]) {
            Err(error) if error.is_key_refusal() => make(&[]),
            made => made,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let all: Vec<_> = NEEDED.iter().map(|(_, mechanism)| *mechanism).collect();
        assert!(missing(&all).is_empty());
        let without: Vec<_> =
            all.into_iter().filter(|mechanism| *mechanism != MechanismType::AES_GCM).collect();
        assert_eq!(missing(&without), ["CKM_AES_GCM"]);
    }
}
