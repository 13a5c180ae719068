//! Attestations: what the appliance signs of an approval, as a compact JWS (RFC 7515, section 3.1).

pub mod claims;
mod unverified;

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

use super::caller::Tenant;
use super::id::TransactionId;

pub use claims::Claims;
pub use unverified::Unverified;

/// How it is signed: the header's `alg`.
const ALG: &str = "ES256";
/// What it is: the header's `typ`.
const TYP: &str = "attestation+jwt";
/// An RFC 7638 thumbprint by SHA-256 in base64url, in characters.
const KID_CHARS: usize = 43;
/// A signature in base64url, in characters.
const SIGNATURE_CHARS: usize = 86;

/// An attestation as it is stored. It is in sealed rows: its fields never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attestation {
    /// What was approved.
    pub transaction: TransactionId,
    /// Whose it is.
    pub tenant: Tenant,
    /// 1: it never changes.
    pub version: u64,
    /// The compact JWS.
    pub jws: String,
}

impl Attestation {
    /// That of this transaction.
    pub fn new(transaction: TransactionId, tenant: Tenant, jws: String) -> Self {
        Self { transaction, tenant, version: 1, jws }
    }
}

/// What is signed (RFC 7515, section 5.1): header and claims, each in base64url, with a dot between. `kid` is an RFC 7638
/// thumbprint: it has no character that JSON escapes.
pub fn signing_input(kid: &str, claims: &[u8]) -> String {
    let header = format!(r#"{{"alg":"{ALG}","kid":"{kid}","typ":"{TYP}"}}"#);
    format!("{}.{}", BASE64URL_NOPAD.encode(header.as_bytes()), BASE64URL_NOPAD.encode(claims))
}

/// How long the JWS over these claims will be, in bytes.
pub fn jws_bytes(claims: &[u8]) -> usize {
    signing_input(&"k".repeat(KID_CHARS), claims).len() + 1 + SIGNATURE_CHARS
}

/// The whole JWS: the signature is r and s, 32 bytes each (RFC 7518, section 3.4).
pub fn compose(signing_input: &str, signature: &[u8; 64]) -> String {
    format!("{signing_input}.{}", BASE64URL_NOPAD.encode(signature))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jws_is_header_claims_and_signature() {
        let input = signing_input("NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs", br#"{"iss":"hsm-authd"}"#);
        let jws = compose(&input, &[0xff; 64]);
        let parts: Vec<_> =
            jws.split('.').map(|part| BASE64URL_NOPAD.decode(part.as_bytes()).unwrap()).collect();
        let [header, claims, signature] = parts.as_slice() else { panic!("{jws}") };
        let expected =
            r#"{"alg":"ES256","kid":"NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs","typ":"attestation+jwt"}"#;
        assert_eq!(header, expected.as_bytes());
        assert_eq!(claims, br#"{"iss":"hsm-authd"}"#);
        assert_eq!(signature, &[0xff; 64]);
        assert_eq!(jws.len(), jws_bytes(br#"{"iss":"hsm-authd"}"#));
        assert_eq!(jws.strip_prefix(&input).unwrap().len(), 1 + 86);
    }
}
