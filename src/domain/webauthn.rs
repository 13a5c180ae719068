//! Assertions of WebAuthn authenticators (W3C WebAuthn Level 3, section 7.2): all that needs no key.

mod relying_party;

use data_encoding::BASE64URL_NOPAD;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::json;

pub use relying_party::RelyingParty;

/// Flags of authenticator data (section 6.1). Bits 1 and 5 are reserved: an authenticator sets them to zero, and
/// none of the steps of section 7.2 looks at them, so that they may come to mean something.
mod flag {
    pub const USER_PRESENT: u8 = 1 << 0;
    pub const USER_VERIFIED: u8 = 1 << 2;
    pub const BACKUP_ELIGIBLE: u8 = 1 << 3;
    pub const BACKED_UP: u8 = 1 << 4;
    pub const ATTESTED_CREDENTIAL_DATA: u8 = 1 << 6;
    pub const EXTENSIONS: u8 = 1 << 7;
}

/// An assertion as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assertion {
    /// What the authenticator says (section 6.1).
    pub authenticator_data: Vec<u8>,
    /// What the client says (section 5.8.1), as JSON, byte for byte as it was hashed.
    pub client_data_json: Vec<u8>,
}

/// What an assertion says, if it fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fitting {
    /// SHA-256 of `authenticator_data || SHA-256(client_data_json)`: what ES256 and RS256 sign.
    pub digest: [u8; 32],
    /// The authenticator's counter of signatures; 0: it counts none.
    pub sign_count: u32,
    /// The key may be copied to other devices. It is so from the beginning of a key to its end (section 6.1.3).
    pub backup_eligible: bool,
    /// The key is copied now.
    pub backed_up: bool,
}

impl Assertion {
    /// What it says, if it is for this challenge, made for one of the enrolled origins, by a present and verified
    /// user. Whether the key has signed it is not known yet.
    ///
    /// `None` unless the client data is a JSON object, nothing in it twice, of which
    /// * `type` is `webauthn.get`;
    /// * `challenge` is the challenge in base64url without padding;
    /// * `origin` is an enrolled one, byte for byte;
    /// * `crossOrigin` is `false` or not there, and `topOrigin` is not there: nobody's frame asks.
    ///
    /// Its other members are ignored: clients add some (section 5.8.1), and `tokenBinding` means nothing any
    /// more. `None` also unless the authenticator data begins with SHA-256 of the `rp_id`, and its flags say UP
    /// and UV, BS only with BE, and not AT, which only enrolments have (section 6.1). Nothing follows its 37
    /// bytes without the flag ED, and with it a CBOR map does, whose content is not looked at: no extension was
    /// asked for, and those that were not may be ignored (section 7.2).
    pub fn fitting(&self, party: &RelyingParty, challenge: &[u8; 32]) -> Option<Fitting> {
        is_client_data(&self.client_data_json, party, challenge).then_some(())?;

        let (rp_id_hash, rest) = self.authenticator_data.split_first_chunk::<32>()?;
        let (&[flags], rest) = rest.split_first_chunk::<1>()?;
        let (sign_count, extensions) = rest.split_first_chunk::<4>()?;
        let is_set = |flag: u8| flags & flag != 0;
        let has_what_it_says = match extensions.first() {
            None => !is_set(flag::EXTENSIONS),
            // Major type 5 (RFC 8949, section 3.1).
            Some(first) => is_set(flag::EXTENSIONS) && first >> 5 == 5,
        };
        let fits = *rp_id_hash == sha256(party.rp_id.as_bytes())
            && is_set(flag::USER_PRESENT)
            && is_set(flag::USER_VERIFIED)
            && (is_set(flag::BACKUP_ELIGIBLE) || !is_set(flag::BACKED_UP))
            && !is_set(flag::ATTESTED_CREDENTIAL_DATA)
            && has_what_it_says;
        fits.then(|| Fitting {
            digest: Sha256::new()
                .chain_update(&self.authenticator_data)
                .chain_update(sha256(&self.client_data_json))
                .finalize()
                .into(),
            sign_count: u32::from_be_bytes(*sign_count),
            backup_eligible: is_set(flag::BACKUP_ELIGIBLE),
            backed_up: is_set(flag::BACKED_UP),
        })
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn is_client_data(text: &[u8], party: &RelyingParty, challenge: &[u8; 32]) -> bool {
    let Some(members) = json::object(text) else { return false };
    let text = |name| members.get(name).and_then(Value::as_str);
    text("type") == Some("webauthn.get")
        && text("challenge") == Some(&BASE64URL_NOPAD.encode(challenge))
        && text("origin").is_some_and(|origin| party.origins.iter().any(|enrolled| enrolled == origin))
        && members.get("crossOrigin").is_none_or(|value| *value == Value::Bool(false))
        && !members.contains_key("topOrigin")
}

/// Whether an authenticator's counter allows a signature (section 7.2, step 22; section 6.1.1): none was ever
/// counted and none is now, or the count is above the last one.
///
/// `next` is the least count that may come, and 0 while none has. Returns the new `next`, or `None`: perhaps the
/// key has been copied.
pub fn next_sign_count(next: u64, sign_count: u32) -> Option<u64> {
    match (next, u64::from(sign_count)) {
        (0, 0) => Some(0),
        (_, 0) => None,
        (next, count) => (count >= next).then_some(count + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::HEXLOWER;
    use p256::ecdsa::signature::{Signer, Verifier, hazmat::PrehashVerifier};
    use p256::ecdsa::{Signature, SigningKey, VerifyingKey};
    use proptest::prelude::*;
    use serde_json::json;

    const CHALLENGE: [u8; 32] = [0xfb; 32];
    const CHALLENGE_TEXT: &str = "-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s";
    const APK: &str = "android:apk-key-hash:_2HBUymcqGN1_5dimo7nVj8erNyC32NupRjdtBPMYYU";
    const UP_UV: u8 = 0x05;

    fn new(rp_id: &str, origins: &[&str]) -> Result<RelyingParty, (&'static str, &'static str)> {
        RelyingParty::new(vec![7; 16], rp_id.to_owned(), origins.iter().map(ToString::to_string).collect())
    }

    fn party() -> RelyingParty {
        new("bank.example", &["https://pay.bank.example", "https://bank.example:8443", APK]).unwrap()
    }

    fn authenticator_data(flags: u8, sign_count: u32, extensions: &[u8]) -> Vec<u8> {
        // SHA-256 of bank.example, from elsewhere.
        let hash = HEXLOWER.decode(RP_ID_HASH.as_bytes()).unwrap();
        [&hash, &[flags][..], &sign_count.to_be_bytes(), extensions].concat()
    }

    const RP_ID_HASH: &str = "05be55af508c5555d806d5bd5490f5e21dab9a101b88367f8d1d063f8c3bfc3f";

    fn client_data() -> Value {
        json!({ "type": "webauthn.get", "challenge": CHALLENGE_TEXT, "origin": "https://pay.bank.example" })
    }

    fn fitting(authenticator_data: Vec<u8>, client_data_json: &str) -> Option<Fitting> {
        Assertion { authenticator_data, client_data_json: client_data_json.into() }
            .fitting(&party(), &CHALLENGE)
    }

    fn client_data_fits(text: &str) -> bool {
        fitting(authenticator_data(UP_UV, 0, &[]), text).is_some()
    }

    fn data_fits(authenticator_data: Vec<u8>) -> bool {
        fitting(authenticator_data, &client_data().to_string()).is_some()
    }

    #[test]
    fn an_assertion_that_fits_verifies() {
        let key = SigningKey::from_slice(&[3; 32]).unwrap();
        let data = authenticator_data(0x1d, 0x0102_0304, &[]);
        let text = client_data().to_string();
        let signed = [&data[..], &Sha256::digest(&text)].concat();
        let signature: Signature = key.sign(&signed);

        let fitting = fitting(data, &text).unwrap();
        assert_eq!(fitting.sign_count, 0x0102_0304);
        assert!(fitting.backup_eligible && fitting.backed_up);
        let key = VerifyingKey::from(&key);
        key.verify(&signed, &signature).unwrap();
        key.verify_prehash(&fitting.digest, &signature).unwrap();
    }

    #[test]
    fn whatever_is_changed_and_still_fits_is_signed_otherwise() {
        let text = client_data().to_string();
        let digest = |data, text: &str| fitting(data, text).unwrap().digest;
        let digests = [
            digest(authenticator_data(UP_UV, 1, &[]), &text),
            digest(authenticator_data(UP_UV, 2, &[]), &text),
            digest(authenticator_data(UP_UV | 0x08, 1, &[]), &text),
            digest(authenticator_data(UP_UV | 0x80, 1, &[0xa0]), &text),
            digest(authenticator_data(UP_UV, 1, &[]), &format!("{text} ")),
            digest(authenticator_data(UP_UV, 1, &[]), &text.replace("pay.bank.example", "bank.example:8443")),
        ];
        let distinct: std::collections::HashSet<_> = digests.iter().collect();
        assert_eq!(distinct.len(), digests.len());
    }

    #[test]
    fn clients_spell_client_data_in_many_ways() {
        let c = CHALLENGE_TEXT;
        for text in [
            // As section 5.8.1.1 has it, and as browsers and platforms do.
            format!(
                r#"{{"type":"webauthn.get","challenge":"{c}","origin":"https://pay.bank.example","crossOrigin":false}}"#
            ),
            format!(r#"{{"type":"webauthn.get","challenge":"{c}","origin":"https://bank.example:8443"}}"#),
            format!(
                r#"{{"type":"webauthn.get","challenge":"{c}","origin":"https://pay.bank.example","crossOrigin":false,"other_keys_can_be_added_here":"do not compare clientDataJSON against a template"}}"#
            ),
            format!(
                r#"{{"challenge":"{c}","clientExtensions":{{}},"hashAlgorithm":"SHA-256","origin":"https://pay.bank.example","type":"webauthn.get"}}"#
            ),
            format!(
                r#"{{"type":"webauthn.get","challenge":"{c}","origin":"{APK}","androidPackageName":"com.example.bank"}}"#
            ),
            format!(
                r#"{{"type":"webauthn.get","challenge":"{c}","origin":"https:\/\/pay.bank.example","crossOrigin":false}}"#
            ),
            format!(
                r#"{{"origin":"https://pay.bank.example","tokenBinding":{{"status":"supported"}},"type":"webauthn.get","challenge":"{c}"}}"#
            ),
            format!(
                "{{\n  \"type\" : \"webauthn\\u002eget\",\n  \"challenge\" : \"{c}\",\n  \"origin\" : \"https://pay.bank.example\"\n}}\n"
            ),
        ] {
            assert!(client_data_fits(&text), "{text}");
        }
    }

    #[test]
    fn client_data_that_says_something_else_does_not_fit() {
        assert!(client_data_fits(&client_data().to_string()));
        for (name, value) in [
            ("type", json!(null)),
            ("type", json!("webauthn.create")),
            ("type", json!("payment.get")),
            ("type", json!("webauthn.Get")),
            ("type", json!("webauthn.get ")),
            ("type", json!(["webauthn.get"])),
            ("challenge", json!(null)),
            ("challenge", json!("")),
            ("challenge", json!(format!("{CHALLENGE_TEXT}="))),
            ("challenge", json!(CHALLENGE_TEXT.replace('-', "+").replace('_', "/"))),
            // Stray bits: decoded it would be the same.
            ("challenge", json!(CHALLENGE_TEXT.replace("_s", "_t"))),
            ("challenge", json!(&CHALLENGE_TEXT[..42])),
            ("challenge", json!([CHALLENGE_TEXT])),
            ("origin", json!(null)),
            ("origin", json!("")),
            ("origin", json!("https://bank.example")),
            ("origin", json!("https://pay.bank.example/")),
            ("origin", json!("https://pay.bank.example:443")),
            ("origin", json!("https://PAY.bank.example")),
            ("origin", json!("https://pay.bank.example.")),
            ("origin", json!("http://pay.bank.example")),
            ("origin", json!("https://pay.bank.example.evil.example")),
            ("origin", json!("https://x.pay.bank.example")),
            ("origin", json!("https://pay.bank.example\u{0}")),
            ("origin", json!(["https://pay.bank.example"])),
            ("origin", json!(APK.to_ascii_lowercase())),
            ("origin", json!("http://localhost")),
            ("crossOrigin", json!(true)),
            ("crossOrigin", json!(null)),
            ("crossOrigin", json!("false")),
            ("crossOrigin", json!(0)),
            ("topOrigin", json!("https://pay.bank.example")),
            ("topOrigin", json!(null)),
        ] {
            let mut other = client_data();
            other[name] = value.clone();
            assert!(!client_data_fits(&other.to_string()), "{name} {value}");
            other.as_object_mut().unwrap().remove(name);
            let may_be_missing = name.ends_with("Origin");
            assert_eq!(client_data_fits(&other.to_string()), may_be_missing, "no {name}");
        }
    }

    #[test]
    fn client_data_is_one_object_with_nothing_twice() {
        let text = client_data().to_string();
        for twice in [
            r#""type":"webauthn.get""#,
            r#""typ\u0065":"webauthn.create""#,
            r#""origin":"https://evil.example""#,
            r#""crossOrigin":false,"crossOrigin":false"#,
            r#""unheard":1,"unheard":1"#,
            r#""unheard":{"of":1,"\u006ff":1}"#,
        ] {
            assert!(!client_data_fits(&text.replacen('{', &format!("{{{twice},"), 1)), "{twice}");
        }
        for other in [
            String::new(),
            format!("[{text}]"),
            format!("{text}{text}"),
            format!("\u{feff}{text}"),
            format!("{text}\0"),
            text[..text.len() - 1].to_owned(),
            Value::from(text.clone()).to_string(),
            text.replace("}", &format!(",\"x\":{}1{}}}", "[".repeat(200), "]".repeat(200))),
        ] {
            assert!(!client_data_fits(&other), "{other}");
        }
        let not_utf8 = [&text.as_bytes()[..text.len() - 1], b",\"x\":\"\xff\"}"].concat();
        let assertion =
            Assertion { authenticator_data: authenticator_data(UP_UV, 0, &[]), client_data_json: not_utf8 };
        assert_eq!(assertion.fitting(&party(), &CHALLENGE), None);
    }

    #[test]
    fn every_bit_of_the_challenge_counts() {
        let assertion = Assertion {
            authenticator_data: authenticator_data(UP_UV, 0, &[]),
            client_data_json: client_data().to_string().into(),
        };
        assert!(assertion.fitting(&party(), &CHALLENGE).is_some());
        for bit in 0..256 {
            let mut challenge = CHALLENGE;
            challenge[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(assertion.fitting(&party(), &challenge), None, "bit {bit}");
        }
    }

    #[test]
    fn every_bit_of_the_rp_id_hash_counts() {
        for bit in 0..256 {
            let mut data = authenticator_data(UP_UV, 0, &[]);
            data[bit / 8] ^= 1 << (bit % 8);
            assert!(!data_fits(data), "bit {bit}");
        }
        let other = new("pay.bank.example", &["https://pay.bank.example"]).unwrap();
        let assertion = Assertion {
            authenticator_data: authenticator_data(UP_UV, 0, &[]),
            client_data_json: client_data().to_string().into(),
        };
        assert_eq!(assertion.fitting(&other, &CHALLENGE), None);
    }

    #[test]
    fn of_all_flags_these_fit() {
        let of = |flags| fitting(authenticator_data(flags, 9, &[]), &client_data().to_string());
        let with_extensions =
            |flags| fitting(authenticator_data(flags, 9, &[0xa0]), &client_data().to_string());
        // UP and UV; with BE; with BE and BS; and each with the reserved bits.
        let right: Vec<u8> = [0x05, 0x0d, 0x1d]
            .into_iter()
            .flat_map(|flags| [0, 0x02, 0x20, 0x22].map(|reserved| flags | reserved))
            .collect();
        for flags in 0..=255u8 {
            let expected = |says_extensions: bool| {
                (right.contains(&(flags & 0x7f)) && (flags & 0x80 != 0) == says_extensions).then_some((
                    9,
                    flags & 0x08 != 0,
                    flags & 0x10 != 0,
                ))
            };
            let said = |it: Fitting| (it.sign_count, it.backup_eligible, it.backed_up);
            assert_eq!(of(flags).map(said), expected(false), "{flags:#04x}");
            assert_eq!(with_extensions(flags).map(said), expected(true), "{flags:#04x} with extensions");
        }
    }

    #[test]
    fn only_extensions_follow_the_first_37_bytes() {
        let data = authenticator_data(UP_UV, 0, &[]);
        assert!(data.len() == 37 && data_fits(data.clone()));
        for length in 0..37 {
            assert!(!data_fits(data[..length].to_vec()), "{length} bytes");
        }
        assert!(!data_fits(authenticator_data(UP_UV, 0, &[0])));
        // {"credProtect": 2}
        assert!(data_fits(authenticator_data(UP_UV | 0x80, 0, b"\xa1\x6bcredProtect\x02")));
        for extensions in [&b""[..], b"\0", b"\x80", b"\x60", b"\xf6", b"\xff"] {
            assert!(!data_fits(authenticator_data(UP_UV | 0x80, 0, extensions)), "{extensions:?}");
        }
    }

    #[test]
    fn a_counter_rises_or_stays_zero() {
        let max = u64::from(u32::MAX);
        for (next, count, expected) in [
            (0, 0, Some(0)),
            (0, 1, Some(2)),
            (0, 1_000, Some(1_001)),
            (0, u32::MAX, Some(max + 1)),
            (2, 0, None),
            (2, 1, None),
            (2, 2, Some(3)),
            (2, 7, Some(8)),
            (8, 7, None),
            (8, 8, Some(9)),
            (max, u32::MAX, Some(max + 1)),
            (max + 1, u32::MAX, None),
            (max + 1, 0, None),
            (u64::MAX, u32::MAX, None),
        ] {
            assert_eq!(next_sign_count(next, count), expected, "{next}, {count}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(authenticator_data: Vec<u8>, client_data_json: Vec<u8>, next: u64, count: u32) {
            let _ = Assertion { authenticator_data, client_data_json }.fitting(&party(), &CHALLENGE);
            let _ = next_sign_count(next, count);
        }

        #[test]
        fn a_count_comes_once(counts in prop::collection::vec(0..20u32, 1..30)) {
            let (mut next, mut seen) = (0, Vec::new());
            for count in counts {
                if let Some(later) = next_sign_count(next, count) {
                    prop_assert!(count == 0 && later == 0 || seen.iter().all(|before| *before < count));
                    seen.push(count);
                    next = later;
                } else {
                    prop_assert!(seen.iter().any(|before| *before >= count));
                }
            }
        }

        #[test]
        fn a_digest_is_of_these_bytes_alone(flags in 0..4usize, sign_count: u32, extra in "[a-z]{1,8}") {
            let flags = [0x05, 0x07, 0x0d, 0x1d][flags];
            let mut client_data = client_data();
            client_data[format!("{extra}X")] = json!(extra);
            let (data, text) = (authenticator_data(flags, sign_count, &[]), client_data.to_string());
            let signed = [&data[..], &Sha256::digest(&text)].concat();
            let fitting = fitting(data, &text).unwrap();
            prop_assert_eq!(fitting.digest, sha256(&signed));
            prop_assert_eq!(fitting.sign_count, sign_count);
        }
    }
}
