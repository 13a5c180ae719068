//! `Assertion::fitting`, of client data and of authenticator data after its first 32 bytes.

use std::sync::LazyLock;

use data_encoding::HEXLOWER;
use hsm_authd::domain::webauthn::{Assertion, Fitting, RelyingParty, next_sign_count};
use serde_json::{Map, Value};

const ORIGINS: [&str; 3] = [
    "https://pay.bank.example",
    "https://bank.example:8443",
    "android:apk-key-hash:_2HBUymcqGN1_5dimo7nVj8erNyC32NupRjdtBPMYYU",
];
const CHALLENGE: [u8; 32] = [0xfb; 32];
const CHALLENGE_TEXT: &str = "-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s";
/// SHA-256 of `bank.example`.
const RP_ID_HASH: &[u8] = b"05be55af508c5555d806d5bd5490f5e21dab9a101b88367f8d1d063f8c3bfc3f";
/// The user is present and verified; the first signature.
const GOOD: &[u8] = b"\x05\0\0\0\x01";

static PARTY: LazyLock<RelyingParty> = LazyLock::new(|| {
    let origins = ORIGINS.map(str::to_owned).into();
    RelyingParty::new(vec![7; 16], "bank.example".to_owned(), origins).expect("right")
});

/// The input is client data; what follows a NUL, which no JSON has, is flags, counter and extensions of the
/// authenticator data. Without a NUL these are good ones.
pub fn run(input: &[u8]) {
    let mut parts = input.splitn(2, |byte| *byte == 0);
    let client_data = parts.next().unwrap_or_default();
    let said = parts.next().unwrap_or(GOOD);

    let fitting = fitting(client_data, said, &CHALLENGE);
    let members = serde_json::from_slice::<Map<String, Value>>(client_data).ok();
    let fits = members.as_ref().is_some_and(client_data_fits) && flags_fit(said);
    assert!(fits || fitting.is_none(), "nothing else fits");
    if let Some(members) = &members {
        // Once more without what it had twice.
        let text = Value::Object(members.clone()).to_string();
        assert_eq!(self::fitting(text.as_bytes(), said, &CHALLENGE).is_some(), fits);
    }
    let (Some(fitting), Some(members)) = (fitting, members) else { return };

    assert_eq!(fitting.sign_count.to_be_bytes(), said[1..5]);
    assert_eq!((fitting.backup_eligible, fitting.backed_up), (said[0] & 8 != 0, said[0] & 16 != 0));
    let mut challenge = CHALLENGE;
    challenge[usize::from(said[4]) % 32] ^= 1;
    assert_eq!(self::fitting(client_data, said, &challenge), None, "it is for one challenge");
    let longer = self::fitting(&[client_data, b" "].concat(), said, &CHALLENGE).expect("white space");
    assert_ne!(longer.digest, fitting.digest, "what is signed is the text, not what it means");
    for (name, value) in &members {
        let rest = Value::Object(members.clone()).to_string();
        let twice = format!(r#"{{{}:{value},{}"#, Value::from(name.as_str()), &rest[1..]);
        assert_eq!(self::fitting(twice.as_bytes(), said, &CHALLENGE), None, "{name} twice");
    }
    let next = next_sign_count(0, fitting.sign_count).expect("the first");
    let again = next_sign_count(next, fitting.sign_count);
    assert_eq!(again, (fitting.sign_count == 0).then_some(0), "a count comes once");
}

fn fitting(client_data: &[u8], said: &[u8], challenge: &[u8; 32]) -> Option<Fitting> {
    let hash = HEXLOWER.decode(RP_ID_HASH).expect("hexadecimal");
    let assertion =
        Assertion { authenticator_data: [&hash, said].concat(), client_data_json: client_data.to_vec() };
    assertion.fitting(&PARTY, challenge)
}

fn client_data_fits(members: &Map<String, Value>) -> bool {
    let is = |name: &str, text: &str| members.get(name).is_some_and(|value| value == text);
    is("type", "webauthn.get")
        && is("challenge", CHALLENGE_TEXT)
        && ORIGINS.iter().any(|origin| is("origin", origin))
        && members.get("crossOrigin").is_none_or(|value| value.as_bool() == Some(false))
        && members.get("topOrigin").is_none()
}

/// By the bits: UP and UV, not AT, BS only with BE, and ED exactly if a CBOR map follows.
fn flags_fit(said: &[u8]) -> bool {
    let [flags, _, _, _, _, extensions @ ..] = said else { return false };
    let has_map = extensions.first().is_some_and(|first| (0xa0..0xc0).contains(first));
    flags & 0b0100_0101 == 0b0000_0101
        && flags & 0b0001_1000 != 0b0001_0000
        && if flags & 0x80 == 0 { extensions.is_empty() } else { has_map }
}
