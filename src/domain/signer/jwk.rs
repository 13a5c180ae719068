//! A public key as a JWK (RFC 7517; RFC 7518, sections 6.2 and 6.3).

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use serde::Serialize;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::{HOLDS_PRIVATE_KEY, KeyError, P256_BYTES, P256Key, PublicKey, RsaKey, SignatureAlgorithm};

/// The members that are looked at.
const KNOWN: [&str; 9] = ["kty", "crv", "x", "y", "n", "e", "alg", "use", "key_ops"];

/// The members of private and symmetric keys (RFC 7518, sections 6.2.2, 6.3.2 and 6.4).
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

const TWICE: KeyError = KeyError("has a member twice");
const KTY: KeyError = KeyError("must have kty EC or RSA");
const CRV: KeyError = KeyError("must have crv P-256");
const COORDINATE: KeyError = KeyError("must have x and y, each of 32 bytes in base64url without padding");
const NUMBER: KeyError = KeyError("must have n and e in base64url without padding");
const ALG: KeyError = KeyError("must have alg ES256 if it is EC, RS256 if it is RSA, or none");
const USE: KeyError = KeyError("must have use sig, or none");
const KEY_OPS: KeyError = KeyError("must have key_ops with verify among them, or none");

/// A JSON object that may be a JWK; [`PublicKey::from_jwk`] says whether it is.
///
/// Keeps the members that are there twice, which a map would lose, and the values of no private ones.
pub struct Jwk {
    members: Vec<(&'static str, Value)>,
    is_private: bool,
}

impl<'de> Deserialize<'de> for Jwk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members)
    }
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Jwk;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Jwk, A::Error> {
        let mut jwk = Jwk { members: Vec::new(), is_private: false };
        while let Some(name) = map.next_key::<String>()? {
            match KNOWN.into_iter().find(|known| *known == name) {
                Some(known) => jwk.members.push((known, map.next_value()?)),
                None => {
                    jwk.is_private |= PRIVATE.contains(&name.as_str());
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(jwk)
    }
}

impl Jwk {
    fn member(&self, name: &str) -> Option<&Value> {
        self.members.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.member(name).and_then(Value::as_str)
    }

    fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        BASE64URL_NOPAD.decode(self.text(name)?.as_bytes()).ok()
    }

    fn coordinate(&self, name: &str) -> Result<Vec<u8>, KeyError> {
        self.bytes(name).filter(|bytes| bytes.len() == P256_BYTES).ok_or(COORDINATE)
    }

    /// What it says of itself must not contradict its use here. A member that is there is looked at, whatever
    /// its type.
    fn check_uses(&self, algorithm: SignatureAlgorithm) -> Result<(), KeyError> {
        let is = |value: &Value, text: &str| value.as_str() == Some(text);
        if self.member("alg").is_some_and(|value| !is(value, algorithm.name())) {
            return Err(ALG);
        }
        if self.member("use").is_some_and(|value| !is(value, "sig")) {
            return Err(USE);
        }
        let verifies =
            |value: &Value| value.as_array().is_some_and(|ops| ops.iter().any(|op| is(op, "verify")));
        if self.member("key_ops").is_some_and(|value| !verifies(value)) {
            return Err(KEY_OPS);
        }
        Ok(())
    }
}

impl PublicKey {
    /// From a JWK. Members that RFC 7518 does not give to such keys are ignored (RFC 7517, section 4).
    ///
    /// # Errors
    /// It is no JWK, or holds a private key, or is for something else than to verify, or the key is not one of
    /// [`PublicKey`]'s.
    pub fn from_jwk(jwk: &Jwk) -> Result<Self, KeyError> {
        if jwk.is_private {
            return Err(HOLDS_PRIVATE_KEY);
        }
        if KNOWN.iter().any(|name| jwk.members.iter().filter(|(known, _)| known == name).count() > 1) {
            return Err(TWICE);
        }
        let key = match jwk.text("kty") {
            Some("EC") if jwk.text("crv") != Some("P-256") => return Err(CRV),
            Some("EC") => {
                let point = [vec![4], jwk.coordinate("x")?, jwk.coordinate("y")?].concat();
                Self::P256(P256Key::from_point(&point)?)
            }
            Some("RSA") => {
                let number = |name| jwk.bytes(name).ok_or(NUMBER);
                Self::Rsa(RsaKey::new(&number("n")?, &number("e")?)?)
            }
            _ => return Err(KTY),
        };
        jwk.check_uses(key.algorithm())?;
        Ok(key)
    }
}

/// A public key as others read it (RFC 7517): of P-256, with what it is for and its thumbprint as its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kty")]
pub enum PublicJwk {
    /// RFC 7518, section 6.2.
    #[serde(rename = "EC")]
    Ec {
        /// `P-256`.
        crv: &'static str,
        /// 32 bytes, base64url.
        x: String,
        /// Likewise.
        y: String,
        /// `ES256`.
        alg: &'static str,
        /// `sig`.
        r#use: &'static str,
        /// The RFC 7638 thumbprint.
        kid: String,
    },
    /// RFC 7518, section 6.3.
    #[serde(rename = "RSA")]
    Rsa {
        /// The modulus, base64url.
        n: String,
        /// The exponent, base64url.
        e: String,
        /// `RS256`.
        alg: &'static str,
        /// `sig`.
        r#use: &'static str,
        /// The RFC 7638 thumbprint.
        kid: String,
    },
}

impl PublicKey {
    /// As a JWK that says what it is for.
    pub fn to_jwk(&self) -> PublicJwk {
        let encode = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
        let (alg, kid) = (self.algorithm().name(), self.thumbprint());
        match self {
            Self::P256(P256Key { x, y }) => {
                PublicJwk::Ec { crv: "P-256", x: encode(x), y: encode(y), alg, r#use: "sig", kid }
            }
            Self::Rsa(RsaKey { modulus, exponent }) => {
                PublicJwk::Rsa { n: encode(modulus), e: encode(exponent), alg, r#use: "sig", kid }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{from_jwk, key_named, vectors};
    use super::super::{POINT_OFF_CURVE, RSA_EVEN, RSA_EXPONENT, RSA_LEADING_ZERO, RSA_SIZE};
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn jwk_named(name: &str) -> Value {
        let vectors = vectors();
        vectors["keys"].as_array().unwrap().iter().find(|key| key["name"] == name).unwrap()["jwk"].clone()
    }

    /// The key with members added or replaced; `null` removes one.
    fn with(name: &str, changes: &Value) -> Result<PublicKey, KeyError> {
        let mut jwk = jwk_named(name);
        for (member, value) in changes.as_object().unwrap() {
            jwk.as_object_mut().unwrap().insert(member.clone(), value.clone());
        }
        from_jwk(&jwk)
    }

    fn without(name: &str, member: &str) -> Result<PublicKey, KeyError> {
        let mut jwk = jwk_named(name);
        jwk.as_object_mut().unwrap().remove(member).unwrap();
        from_jwk(&jwk)
    }

    fn encode(bytes: &[u8]) -> String {
        BASE64URL_NOPAD.encode(bytes)
    }

    fn decoded(name: &str, member: &str) -> Vec<u8> {
        BASE64URL_NOPAD.decode(jwk_named(name)[member].as_str().unwrap().as_bytes()).unwrap()
    }

    #[test]
    fn a_private_key_is_refused_whatever_else_is_wrong() {
        for member in PRIVATE {
            for value in [json!("AQAB"), json!(null), json!([]), json!({})] {
                for name in ["p256", "rsa2048"] {
                    assert_eq!(with(name, &json!({member: value})), Err(HOLDS_PRIVATE_KEY), "{member}");
                }
            }
        }
        assert_eq!(from_jwk(&json!({"kty": "oct", "k": "AQAB"})), Err(HOLDS_PRIVATE_KEY));
        assert_eq!(from_jwk(&json!({"kty": "OKP", "crv": "Ed25519", "d": "x"})), Err(HOLDS_PRIVATE_KEY));
        let escaped: Jwk = serde_json::from_str(r#"{"kty":"EC","kty":"EC","\u0064":1}"#).unwrap();
        assert_eq!(PublicKey::from_jwk(&escaped), Err(HOLDS_PRIVATE_KEY));
    }

    #[test]
    fn a_known_member_is_there_once() {
        for name in ["p256", "rsa2048"] {
            let whole = jwk_named(name).to_string();
            let parse = |text: &str| PublicKey::from_jwk(&serde_json::from_str(text).unwrap());
            let again = |member: &str, value: &str| {
                parse(&format!("{},\"{member}\":{value}}}", whole.strip_suffix('}').unwrap()))
            };
            assert_eq!(parse(&whole), Ok(key_named(name)));
            for (member, value) in jwk_named(name).as_object().unwrap() {
                assert_eq!(again(member, &value.to_string()), Err(TWICE), "{member}");
            }
            assert_eq!(again("alg", r#""none","alg":"none""#), Err(TWICE));
            assert_eq!(again("kid", r#"1,"kid":2"#), Ok(key_named(name)));
        }
    }

    #[test]
    fn it_is_an_object() {
        for text in ["[]", r#"["EC"]"#, "null", "\"EC\"", "1", "true", "{", "", "{} {}"] {
            assert!(serde_json::from_str::<Jwk>(text).is_err(), "{text}");
        }
        assert_eq!(from_jwk(&json!({})), Err(KTY));
        // In a body that serde buffers, as it does for a choice by tag.
        #[derive(serde::Deserialize)]
        #[serde(tag = "type")]
        enum Body {
            A { jwk: Jwk },
        }
        let twice: Body = serde_json::from_str(r#"{"jwk":{"kty":"EC","kty":"EC"},"type":"A"}"#).unwrap();
        let Body::A { jwk } = twice;
        assert_eq!(PublicKey::from_jwk(&jwk), Err(TWICE));
        assert!(serde_json::from_str::<Body>(r#"{"jwk":["EC"],"type":"A"}"#).is_err());
    }

    #[test]
    fn type_and_curve_are_given() {
        for kty in [json!("ec"), json!("OKP"), json!("oct"), json!(""), json!(null), json!(["EC"])] {
            assert_eq!(with("p256", &json!({"kty": kty})), Err(KTY), "{kty}");
        }
        for crv in [json!("P-384"), json!("secp256k1"), json!("p-256"), json!(null)] {
            assert_eq!(with("p256", &json!({"crv": crv})), Err(CRV), "{crv}");
        }
        assert_eq!(without("p256", "kty"), Err(KTY));
        assert_eq!(without("p256", "crv"), Err(CRV));
        assert_eq!(with("p256", &json!({"kty": "RSA"})), Err(NUMBER));
    }

    #[test]
    fn coordinates_have_32_bytes_in_strict_base64url() {
        let x = decoded("p256", "x");
        let y = decoded("p256", "y");
        assert!(with("p256", &json!({"x": encode(&x)})).is_ok());
        for member in ["x", "y"] {
            for bad in [
                json!(encode(&x[1..])),
                json!(encode(&[&[0], &*x].concat())),
                json!(format!("{}=", encode(&x))),
                json!(format!(" {}", encode(&x))),
                json!("*".repeat(43)),
                json!("+/".repeat(21) + "A"),
                // The last digit carries bits that belong to no byte.
                json!("A".repeat(42) + "B"),
                json!(""),
                json!(null),
                json!(7),
            ] {
                assert_eq!(with("p256", &json!({member: bad})), Err(COORDINATE), "{member} {bad}");
            }
            assert_eq!(without("p256", member), Err(COORDINATE));
        }
        assert_eq!(with("p256", &json!({"x": encode(&y), "y": encode(&x)})), Err(POINT_OFF_CURVE));
        assert_eq!(
            with("p256", &json!({"x": encode(&[0; 32]), "y": encode(&[0; 32])})),
            Err(POINT_OFF_CURVE)
        );
    }

    #[test]
    fn rsa_numbers_are_minimal_and_safe() {
        let n = decoded("rsa2048", "n");
        for (changes, reason) in [
            (json!({"n": encode(&[&[0], &*n].concat())}), RSA_LEADING_ZERO),
            (json!({"n": ""}), RSA_LEADING_ZERO),
            (json!({"n": encode(&n[1..])}), RSA_SIZE),
            (json!({"n": encode(&[&n[..255], &[0]].concat())}), RSA_EVEN),
            (json!({"n": format!("{}=", encode(&n))}), NUMBER),
            (json!({"n": 7}), NUMBER),
            (json!({"e": "AAEAAQ"}), RSA_LEADING_ZERO),
            (json!({"e": "AA"}), RSA_LEADING_ZERO),
            (json!({"e": "AQ"}), RSA_EXPONENT),
            (json!({"e": "Aw"}), RSA_EXPONENT),
            (json!({"e": "AQAA"}), RSA_EXPONENT),
            (json!({"e": "AQAB="}), NUMBER),
            (json!({"e": 65_537}), NUMBER),
        ] {
            assert_eq!(with("rsa2048", &changes), Err(reason), "{changes}");
        }
        assert_eq!(without("rsa2048", "n"), Err(NUMBER));
        assert_eq!(without("rsa2048", "e"), Err(NUMBER));
    }

    #[test]
    fn what_it_says_of_itself_must_allow_to_verify() {
        for (name, alg, other) in [("p256", "ES256", "RS256"), ("rsa2048", "RS256", "PS256")] {
            for good in [
                json!({"alg": alg}),
                json!({"use": "sig"}),
                json!({"key_ops": ["verify"]}),
                json!({"key_ops": ["encrypt", "verify"], "use": "sig", "alg": alg}),
                json!({"kid": 7, "x5c": [], "ext": true, "exp": {"a": [1]}, "": null, "D": "x", "KTY": "oct"}),
            ] {
                assert_eq!(with(name, &good), Ok(key_named(name)), "{good}");
            }
            for (changes, reason) in [
                (json!({"alg": other}), ALG),
                (json!({"alg": alg.to_lowercase()}), ALG),
                (json!({"alg": null}), ALG),
                (json!({"alg": [alg]}), ALG),
                (json!({"use": "enc"}), USE),
                (json!({"use": ""}), USE),
                (json!({"use": null}), USE),
                (json!({"key_ops": []}), KEY_OPS),
                (json!({"key_ops": ["sign"]}), KEY_OPS),
                (json!({"key_ops": "verify"}), KEY_OPS),
                (json!({"key_ops": null}), KEY_OPS),
            ] {
                assert_eq!(with(name, &changes), Err(reason), "{changes}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_bring_the_parser_down(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let parsed = serde_json::from_slice::<Jwk>(&bytes);
            prop_assert!(parsed.is_err() || PublicKey::from_jwk(&parsed.unwrap()).is_err());
        }

        #[test]
        fn no_object_brings_the_parser_down(
            members in proptest::collection::vec(
                (prop::sample::select(KNOWN.to_vec()), prop_oneof![
                    prop::sample::select(vec!["EC", "RSA", "P-256", "ES256", "sig", "AQAB", ""]).prop_map(String::from),
                    proptest::collection::vec(any::<u8>(), 0..600).prop_map(|bytes| BASE64URL_NOPAD.encode(&bytes)),
                    any::<String>(),
                ]),
                0..10,
            ),
        ) {
            let members: Vec<_> = members.iter().map(|(name, value)| format!("{}:{}", json!(name), json!(value))).collect();
            let jwk: Jwk = serde_json::from_str(&format!("{{{}}}", members.join(","))).unwrap();
            if let Ok(key) = PublicKey::from_jwk(&jwk) {
                prop_assert_eq!(key.thumbprint().len(), 43);
            }
        }
    }
}
