//! `PublicKey::from_jwk`, of any JSON.

use hsm_authd::domain::signer::PublicKey;
use hsm_authd::domain::signer::jwk::Jwk;
use serde_json::Value;

use super::key_text;

/// The input is a JSON text.
pub fn run(input: &[u8]) {
    let Ok(jwk) = serde_json::from_slice::<Jwk>(input) else { return };
    let key = match PublicKey::from_jwk(&jwk) {
        Ok(key) => key,
        Err(error) => return assert!(!error.reason().is_empty(), "a refusal says why"),
    };
    is_the_same_in_every_form(&key);

    let Ok(Value::Object(members)) = serde_json::from_slice(input) else { return };
    let with = |name: &str, value: Value| {
        let mut members = members.clone();
        members.insert(name.to_owned(), value);
        parsed(&Value::Object(members).to_string())
    };
    for private in ["d", "p", "q", "dp", "dq", "qi", "oth", "k"] {
        assert!(!members.contains_key(private), "a private key is never taken");
        assert_eq!(with(private, Value::Null), None, "whatever {private} is");
    }
    assert_eq!(with("unmistakable", Value::Bool(true)), Some(key.clone()), "unknown members are ignored");
    assert_eq!(with("alg", "none".into()), None, "it says what it is for");
    for (name, value) in &members {
        let twice = format!(r#"{{"{name}":{value},{}"#, &Value::Object(members.clone()).to_string()[1..]);
        let known = ["kty", "crv", "x", "y", "n", "e", "alg", "use", "key_ops"].contains(&&**name);
        assert!(!known || parsed(&twice).is_none(), "{name} twice");
    }
}

fn parsed(text: &str) -> Option<PublicKey> {
    PublicKey::from_jwk(&serde_json::from_str(text).ok()?).ok()
}

/// A checked key, written down again as JWK and as PEM, is the same key, and has the same thumbprint.
pub fn is_the_same_in_every_form(key: &PublicKey) {
    if let PublicKey::Rsa(key) = key {
        let bits = key.modulus().len() * 8 - key.modulus()[0].leading_zeros() as usize;
        assert!((2_048..=4_096).contains(&bits), "{bits} bits");
        assert!(
            [key.modulus(), key.exponent()].iter().all(|number| number.last().is_some_and(|b| b % 2 == 1))
        );
        assert!(
            (3..=8).contains(&key.exponent().len())
                && (key.exponent().len() > 3 || *key.exponent() >= [1, 0, 1][..]),
            "65537 or more"
        );
    }
    let again = parsed(&key_text::jwk(key)).expect("a checked key is taken as JWK");
    assert_eq!((&again, again.thumbprint()), (key, key.thumbprint()));
    assert_eq!(key.thumbprint().len(), 43, "SHA-256 in base64url");
    for key_info in key_text::key_infos(key) {
        let again = PublicKey::from_pem(&key_text::pem(&key_info)).expect("a checked key is taken as PEM");
        assert_eq!((&again, again.thumbprint()), (key, key.thumbprint()));
    }
}
