//! An attestation as somebody presents it: nothing of it is true before its signature is verified.

use super::claims::Claims;
use crate::domain::jws::Jws;

/// What has the form of an attestation: `alg` and `typ` as ours have them, a `kid`, and claims. What else its header
/// says (`jku`, `jwk`, `x5u`) is ignored: the key is one of ours, or none.
pub struct Unverified {
    /// The RFC 7638 thumbprint of the key that is said to have signed it.
    pub kid: String,
    /// SHA-256 of what is signed.
    pub digest: [u8; 32],
    /// The signature, as it came.
    pub signature: Vec<u8>,
    /// What it says.
    pub claims: Claims,
}

impl Unverified {
    /// `None` for everything that no attestation of ours looks like.
    pub fn parse(text: &str) -> Option<Self> {
        let jws = Jws::parse(text)?;
        if jws.alg() != super::ALG || jws.typ() != Some(super::TYP) {
            return None;
        }
        Some(Self {
            kid: jws.kid()?.to_owned(),
            digest: jws.digest(),
            signature: jws.signature().to_vec(),
            claims: Claims::from_json(jws.payload())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64URL_NOPAD;
    use serde_json::{Value, json};

    use super::super::{compose, signing_input};
    use super::*;

    fn claims() -> Value {
        json!({ "iss": "hsm-authd", "jti": "txn_1", "iat": 1, "exp": 2, "tenant": "bank-a", "method": "m",
            "account": "acct-1", "digest": "00", "transaction": { "payee": "p", "amount": "1.00", "currency": "EUR",
            "order": "o", "expires_at": "2030-01-01T00:00:00Z", "nonce": "00" } })
    }

    fn with(header: &Value) -> String {
        let [header, claims] =
            [header, &claims()].map(|part| BASE64URL_NOPAD.encode(part.to_string().as_bytes()));
        format!("{header}.{claims}.{}", BASE64URL_NOPAD.encode(&[7; 64]))
    }

    #[test]
    fn what_is_composed_is_read() {
        let jws = compose(&signing_input("kid", claims().to_string().as_bytes()), &[7; 64]);
        let unverified = Unverified::parse(&jws).unwrap();
        assert_eq!((unverified.kid.as_str(), unverified.signature), ("kid", vec![7; 64]));
        assert_eq!(serde_json::to_value(unverified.claims).unwrap(), claims());
    }

    /// Each would be signed by a right key only if that signed something else than attestations.
    #[test]
    fn another_header_is_of_no_attestation() {
        let good = json!({ "alg": "ES256", "kid": "kid", "typ": "attestation+jwt" });
        assert!(Unverified::parse(&with(&good)).is_some());
        for (name, values) in [
            (
                "alg",
                vec![json!("none"), json!("HS256"), json!("ES384"), json!("es256"), json!(""), json!(null)],
            ),
            (
                "typ",
                vec![json!("JWT"), json!("attestation"), json!("Attestation+jwt"), json!(""), json!(null)],
            ),
            ("kid", vec![json!(null), json!(7)]),
        ] {
            let mut without = good.clone();
            without.as_object_mut().unwrap().remove(name);
            assert!(Unverified::parse(&with(&without)).is_none(), "no {name}");
            for value in values {
                let mut other = good.clone();
                other[name] = value;
                assert!(Unverified::parse(&with(&other)).is_none(), "{other}");
            }
        }
        for (name, value) in [("crit", json!(["exp"])), ("b64", json!(false))] {
            let mut other = good.clone();
            other[name] = value;
            assert!(Unverified::parse(&with(&other)).is_none(), "{other}");
        }
        // Whoever's key it brings or points to: the `kid` is looked up among ours.
        let mut other = good;
        (other["jku"], other["jwk"]) = (json!("https://attacker.example"), json!({ "kty": "EC" }));
        assert_eq!(Unverified::parse(&with(&other)).map(|unverified| unverified.kid), Some("kid".to_owned()));
    }
}
