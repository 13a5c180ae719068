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

/// A mechanism that we use, by its name in the standard, with what it is for.
struct Needed(&'static str, MechanismType, &'static str);

/// All of them.
const NEEDED: [Needed; 12] = [
    Needed("CKM_AES_KEY_WRAP", MechanismType::AES_KEY_WRAP, "secrets are wrapped with it"),
    Needed("CKM_AES_KEY_GEN", MechanismType::AES_KEY_GEN, "it makes the keys kek and data"),
    Needed("CKM_GENERIC_SECRET_KEY_GEN", MechanismType::GENERIC_SECRET_KEY_GEN, "it makes secrets"),
    Needed("CKM_SHA_1_HMAC", MechanismType::SHA1_HMAC, "codes are computed with it"),
    Needed("CKM_SHA256_HMAC", MechanismType::SHA256_HMAC, "codes and seals are computed with it"),
    Needed("CKM_SHA512_HMAC", MechanismType::SHA512_HMAC, "codes are computed with it"),
    Needed("CKM_AES_GCM", MechanismType::AES_GCM, "PIN hashes are encrypted with it"),
    Needed("CKM_EC_KEY_PAIR_GEN", MechanismType::ECC_KEY_PAIR_GEN, "it makes the keys attest and audit"),
    Needed("CKM_ECDSA", MechanismType::ECDSA, "attestations are signed with it"),
    Needed("CKM_RSA_PKCS_KEY_PAIR_GEN", MechanismType::RSA_PKCS_KEY_PAIR_GEN, "it makes the key import"),
    Needed("CKM_RSA_PKCS", MechanismType::RSA_PKCS, "signers' RSA signatures are verified with it"),
    Needed(
        "CKM_RSA_PKCS_OAEP",
        MechanismType::RSA_PKCS_OAEP,
        "seeds that are imported are unwrapped with it",
    ),
];

impl Module {
    /// The mechanisms that we use and that the module does not have for this token (`C_GetMechanismList`), each with what
    /// it is for.
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn missing_mechanisms(&self, token: &Token) -> Result<Vec<String>, Pkcs11Error> {
        let there = self.0.get_mechanism_list(token.slot)?;
        Ok(missing(&there))
    }
}

fn missing(there: &[MechanismType]) -> Vec<String> {
    let absent = NEEDED.iter().filter(|Needed(_, mechanism, _)| !there.contains(mechanism));
    absent.map(|Needed(name, _, purpose)| format!("{name} ({purpose})")).collect()
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

    /// Makes a token object with this attribute, and without it where the module does not take it. `mine`: by what the
    /// object would be found.
    pub(super) fn made_with<T>(
        &self,
        attribute: Attribute,
        mine: &[Attribute],
        make: impl Fn(&[Attribute]) -> Result<T, Pkcs11Error>,
    ) -> Result<T, Pkcs11Error> {
        // Twice: of a failure that passes no key is to be weaker than it could be.
        for _ in 0..2 {
            match make(std::slice::from_ref(&attribute)) {
                Err(error) if error.is_key_refusal() => break,
                // NSS says it of what its database has no column for. But then there is nothing: of another failure there
                // may be, and a second object beside it would be one too many.
                Err(error) if error.is_general() && self.search(mine)?.is_empty() => {}
                made => return made,
            }
        }
        make(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let all: Vec<_> = NEEDED.iter().map(|Needed(_, mechanism, _)| *mechanism).collect();
        assert!(missing(&all).is_empty());
        let without: Vec<_> =
            all.into_iter().filter(|mechanism| *mechanism != MechanismType::AES_GCM).collect();
        assert_eq!(missing(&without), ["CKM_AES_GCM (PIN hashes are encrypted with it)"]);
    }
}
