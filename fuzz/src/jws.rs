//! `Jws::parse`, of a text, or of a text made around the input as header.

use data_encoding::BASE64URL_NOPAD;
use hsm_authd::domain::jws::{JWS_BYTES_MAX, Jws};
use serde_json::{Map, Value};

/// The input is a header if it begins as JSON does; any other is a whole JWS. So a mutation reaches the header
/// without having to be base64.
pub fn run(input: &[u8]) {
    if input.trim_ascii_start().starts_with(b"{") {
        of_header(input);
    } else if let Ok(text) = std::str::from_utf8(input) {
        of_text(text);
    }
}

fn with(header: &[u8]) -> String {
    format!("{}.e30.AAAA", BASE64URL_NOPAD.encode(header))
}

fn of_header(header: &[u8]) {
    let taken = of_text(&with(header));
    let Ok(members) = serde_json::from_slice::<Map<String, Value>>(header) else {
        return assert!(!taken, "what is no JSON object is no header");
    };
    // Read once more without what it had twice, it is taken exactly if it says nothing that is refused.
    let again = Value::Object(members.clone()).to_string();
    if again.len() < JWS_BYTES_MAX / 2 {
        assert_eq!(of_text(&with(again.as_bytes())), is_understood(&members));
    }
    assert!(!taken || is_understood(&members));
}

fn is_understood(members: &Map<String, Value>) -> bool {
    members.get("alg").is_some_and(Value::is_string)
        && ["kid", "typ"].iter().all(|name| members.get(*name).is_none_or(Value::is_string))
        && members.get("b64").is_none_or(|b64| b64.as_bool() == Some(true))
        && !members.contains_key("crit")
}

/// Whether it is taken.
fn of_text(text: &str) -> bool {
    let Some(jws) = Jws::parse(text) else { return false };
    assert!(text.len() <= JWS_BYTES_MAX);
    let parts: Vec<_> = text.split('.').collect();
    let [header, payload, signature] = parts[..] else { panic!("three parts") };
    assert_eq!(BASE64URL_NOPAD.encode(jws.payload()), payload, "a payload has one spelling");
    assert_eq!(BASE64URL_NOPAD.encode(jws.signature()), signature, "a signature has one spelling");
    let header = BASE64URL_NOPAD.decode(header.as_bytes()).expect("base64url");
    let members: Map<String, Value> = serde_json::from_slice(&header).expect("a JSON object");
    assert!(is_understood(&members));
    let said = |name| members.get(name).and_then(Value::as_str);
    assert_eq!((Some(jws.alg()), jws.kid(), jws.typ()), (said("alg"), said("kid"), said("typ")));

    for changed in [format!("{text}."), format!("{text}="), format!("{text}\n"), format!(" {text}")] {
        assert!(Jws::parse(&changed).is_none(), "nothing around it");
    }
    for (name, value) in &members {
        let rest = Value::Object(members.clone()).to_string();
        let twice = with(format!(r#"{{{}:{value},{}"#, Value::from(name.as_str()), &rest[1..]).as_bytes());
        assert!(Jws::parse(&twice).is_none(), "{name} twice");
    }
    let other = format!("{}.{payload}.{signature}", BASE64URL_NOPAD.encode(&[&header[..], b" "].concat()));
    if let Some(other) = Jws::parse(&other) {
        assert_ne!(other.digest(), jws.digest(), "what is signed is the text, not what it means");
    }
    true
}
