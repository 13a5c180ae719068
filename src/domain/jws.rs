//! Signatures with what they sign, as one text: JWS in the compact serialisation (RFC 7515, section 7.1).

use data_encoding::BASE64URL_NOPAD;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::json;

/// The longest text that is looked at, in bytes.
pub const JWS_BYTES_MAX: usize = 16 * 1024;

/// A compact JWS, its parts decoded. Nothing is verified yet: who does, compares [`alg`](Self::alg) with the
/// algorithm of the key that he has chosen himself, and never chooses by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jws<'a> {
    signing_input: &'a str,
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

impl<'a> Jws<'a> {
    /// Of at most [`JWS_BYTES_MAX`] bytes.
    ///
    /// `None` for anything but three parts in base64url without padding, each in its one spelling: no stray
    /// bits, no white space. Payload and signature may be empty (RFC 7515, section 7.1, asks for no length).
    ///
    /// The header is a JSON object with no member twice at any depth, known or not (section 4). `alg` is a text
    /// (section 4.1.1), as are `kid` and `typ` if they are there. `crit` must not be there: it names what must
    /// be understood (section 4.1.11), and nothing is. `b64`, if it is there, is `true`, which changes nothing
    /// (RFC 7797, section 3). All other members are ignored, whoever's key they bring or point to.
    pub fn parse(text: &'a str) -> Option<Self> {
        if text.len() > JWS_BYTES_MAX {
            return None;
        }
        let (signing_input, signature) = text.rsplit_once('.')?;
        let (header, payload) = signing_input.split_once('.')?;
        let decode = |part: &str| BASE64URL_NOPAD.decode(part.as_bytes()).ok();
        let header = json::object(&decode(header)?)?;
        let is_text = |name| header.get(name).is_none_or(Value::is_string);
        let is_understood =
            !header.contains_key("crit") && header.get("b64").is_none_or(|value| value == &Value::Bool(true));
        if !is_understood || !is_text("kid") || !is_text("typ") {
            return None;
        }
        let member = |name| header.get(name).and_then(Value::as_str).map(str::to_owned);
        Some(Self {
            signing_input,
            alg: member("alg")?,
            kid: member("kid"),
            typ: member("typ"),
            payload: decode(payload)?,
            signature: decode(signature)?,
        })
    }

    /// The header in base64url, as it came.
    pub fn header(&self) -> &'a str {
        self.signing_input.split_once('.').map_or("", |(header, _)| header)
    }

    /// The algorithm that the header names: any text, `none` too.
    pub fn alg(&self) -> &str {
        &self.alg
    }

    /// The key that the header names.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// What the header says that this is.
    pub fn typ(&self) -> Option<&str> {
        self.typ.as_deref()
    }

    /// What is signed, but for the header.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The signature. Its length is not checked: that is the algorithm's.
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// SHA-256 of `header.payload` in ASCII, as they came: what ES256 and RS256 sign (RFC 7515, section 5.1).
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.signing_input).into()
    }
}

/// SHA-256 of what a JWS with this header (in base64url) and this payload signs: [`Jws::digest`] of one that came so.
pub fn digest_of(header: &str, payload: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(header);
    hash.update(".");
    hash.update(BASE64URL_NOPAD.encode(payload));
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::HEXLOWER;
    use p256::ecdsa::signature::hazmat::PrehashVerifier;
    use p256::ecdsa::{Signature, VerifyingKey};
    use proptest::prelude::*;

    /// The claims of RFC 7515, appendices A.1 to A.3.
    const CLAIMS: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb29\
                          0Ijp0cnVlfQ";

    /// Header, signature and digest of each of these.
    const RFC_7515: [(&str, &str, &str); 3] = [
        (
            "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9",
            "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
            "8574410fe367e57f9e271bdd3e2548803dc13b6cde0c589eb9a6d9f60071f4a7",
        ),
        (
            "eyJhbGciOiJSUzI1NiJ9",
            "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5juj\
             Gbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Q\
             e7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUT\
             I8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
            "c88a34847b4ffb12a9326e540f144b3dcc4d5515f18701e7d6e0ee7866c9c705",
        ),
        (
            "eyJhbGciOiJFUzI1NiJ9",
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
            "21c67368f436577f447f805162ca13b80d046a3fe467247e65ea477aa750fa2e",
        ),
    ];

    fn encode(bytes: &[u8]) -> String {
        BASE64URL_NOPAD.encode(bytes)
    }

    fn decode(text: &str) -> Vec<u8> {
        BASE64URL_NOPAD.decode(text.as_bytes()).unwrap()
    }

    /// A JWS with this header, payload `{}` and four zero bytes for a signature.
    fn with(header: &str) -> String {
        format!("{}.e30.AAAAAA", encode(header.as_bytes()))
    }

    fn is_taken(text: &str) -> bool {
        Jws::parse(text).is_some()
    }

    #[test]
    fn the_examples_of_rfc_7515_are_read() {
        for ((header, signature, digest), alg) in RFC_7515.into_iter().zip(["HS256", "RS256", "ES256"]) {
            let text = format!("{header}.{CLAIMS}.{signature}");
            let jws = Jws::parse(&text).unwrap();
            assert_eq!((jws.alg(), jws.kid()), (alg, None));
            assert_eq!(jws.typ(), (alg == "HS256").then_some("JWT"));
            assert_eq!((jws.header(), digest_of(jws.header(), jws.payload())), (header, jws.digest()));
            let claims: Value = serde_json::from_slice(jws.payload()).unwrap();
            assert_eq!((claims["iss"].as_str(), claims["exp"].as_u64()), (Some("joe"), Some(1_300_819_380)));
            assert_eq!(jws.signature(), decode(signature));
            assert_eq!(HEXLOWER.encode(&jws.digest()), digest);
        }
    }

    #[test]
    fn the_digest_is_what_es256_signs() {
        let (header, signature, _) = RFC_7515[2];
        let text = format!("{header}.{CLAIMS}.{signature}");
        let jws = Jws::parse(&text).unwrap();
        let [x, y] =
            ["f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"]
                .map(decode);
        let key = VerifyingKey::from_sec1_bytes(&[vec![4], x, y].concat()).unwrap();
        let signature = Signature::from_slice(jws.signature()).unwrap();
        key.verify_prehash(&jws.digest(), &signature).unwrap();
        let other = text.replacen(".eyJp", ".eyJq", 1);
        assert!(key.verify_prehash(&Jws::parse(&other).unwrap().digest(), &signature).is_err());
    }

    #[test]
    fn a_header_is_read() {
        let text = with(r#"{"typ":"attestation+jwt","kid":"\u006b1","alg":"ES256"}"#);
        let jws = Jws::parse(&text).unwrap();
        assert_eq!((jws.alg(), jws.kid(), jws.typ()), ("ES256", Some("k1"), Some("attestation+jwt")));
        assert_eq!((jws.payload(), jws.signature()), (&b"{}"[..], &[0; 4][..]));
    }

    #[test]
    fn an_unsecured_jws_says_so() {
        // RFC 7515, appendix A.5.
        let text = format!("eyJhbGciOiJub25lIn0.{CLAIMS}.");
        let jws = Jws::parse(&text).unwrap();
        assert_eq!((jws.alg(), jws.signature()), ("none", &[][..]));
    }

    #[test]
    fn a_key_that_comes_along_is_ignored() {
        for member in [
            r#""jku":"https://evil.example/keys""#,
            r#""jwk":{"kty":"oct","k":"AA"}"#,
            r#""x5u":"https://evil.example/chain""#,
            r#""x5c":["MII"],"x5t":"AA","x5t#S256":"AA""#,
            r#""cty":7,"unheard":[{"of":null}],"b64":true"#,
        ] {
            let text = with(&format!(r#"{{"alg":"ES256",{member}}}"#));
            let jws = Jws::parse(&text).unwrap();
            assert_eq!((jws.alg(), jws.kid(), jws.typ()), ("ES256", None, None), "{member}");
        }
    }

    #[test]
    fn other_headers_are_refused() {
        for header in [
            "",
            "null",
            r#""ES256""#,
            r#"["ES256"]"#,
            r#"[{"alg":"ES256"}]"#,
            "{}",
            r#"{"alg":null}"#,
            r#"{"alg":256}"#,
            r#"{"alg":["ES256"]}"#,
            r#"{"Alg":"ES256"}"#,
            r#"{"kid":"k","typ":"JWT"}"#,
            r#"{"alg":"ES256","kid":null}"#,
            r#"{"alg":"ES256","kid":1}"#,
            r#"{"alg":"ES256","typ":null}"#,
            r#"{"alg":"ES256","typ":{}}"#,
            r#"{"alg":"ES256","crit":[]}"#,
            r#"{"alg":"ES256","crit":null}"#,
            r#"{"alg":"ES256","crit":["exp"],"exp":1}"#,
            r#"{"alg":"ES256","crit":["b64"],"b64":true}"#,
            r#"{"alg":"ES256","\u0063rit":["x"]}"#,
            r#"{"alg":"ES256","b64":false}"#,
            r#"{"alg":"ES256","b64":null}"#,
            r#"{"alg":"ES256","b64":0}"#,
            r#"{"alg":"ES256"}{}"#,
            r#"{"alg":"ES256",}"#,
            "{\"alg\":\"ES256\"}\0",
            "\u{feff}{\"alg\":\"ES256\"}",
            "{\"alg\":\"ES256\n\"}",
            r#"{"alg":"\ud800"}"#,
        ] {
            assert!(!is_taken(&with(header)), "{header:?}");
        }
        assert!(
            is_taken(&with("\t{ \"alg\" : \"ES256\" }\r\n")),
            "white space in the header is the signer's"
        );
        assert!(!is_taken(&format!("{}.e30.AAAA", encode(b"{\"alg\":\"ES\xff\"}"))), "no UTF-8");
    }

    #[test]
    fn no_member_is_there_twice() {
        for members in [
            r#""alg":"none""#,
            r#""alg":"ES256""#,
            r#""\u0061lg":"none""#,
            r#""kid":"a","kid":"b""#,
            r#""typ":"a","t\u0079p":"a""#,
            r#""jwk":{},"jwk":{}"#,
            r#""unheard":1,"of":2,"unheard":1"#,
            r#""jwk":{"kty":"EC","kty":"RSA"}"#,
            r#""x5c":[{"a":{"b":1,"\u0062":1}}]"#,
        ] {
            for header in
                [format!(r#"{{"alg":"ES256",{members}}}"#), format!(r#"{{{members},"alg":"ES256"}}"#)]
            {
                assert!(serde_json::from_str::<Value>(&header).is_ok(), "it is no other fault: {header}");
                assert!(!is_taken(&with(&header)), "{header}");
            }
        }
    }

    #[test]
    fn there_are_three_parts_in_their_one_spelling() {
        let header = encode(br#"{"alg":"ES256"}"#);
        for text in [format!("{header}.e30.AA"), format!("{header}..AA"), format!("{header}..")] {
            assert!(is_taken(&text), "{text}");
        }
        for text in [
            String::new(),
            ".".to_owned(),
            "..".to_owned(),
            "...".to_owned(),
            ".e30.AA".to_owned(),
            header.clone(),
            format!("{header}.e30"),
            format!("{header}.e30.AA."),
            format!("{header}.e30.AA.AA"),
            format!("{header}.e30..AA"),
            format!("{header}..e30.AA.AA.AA"),
            // The JSON serialisations (RFC 7515, section 7.2).
            format!(r#"{{"protected":"{header}","payload":"e30","signature":"AA"}}"#),
            // Padding.
            format!("{header}=.e30.AA"),
            format!("{header}.e30=.AA"),
            format!("{header}.e30.AA=="),
            // Stray bits, in each part.
            format!("{header}.e30.AB"),
            format!("{header}.e31.AA"),
            "eyJhbGciOiJFUzI1In1.e30.AA".to_owned(),
            // A length that none is encoded to.
            format!("{header}.e30.A"),
            format!("{header}.e30.AAAAA"),
            // Another alphabet.
            format!("{header}.e30.+/+/"),
            format!("{header}.e30.A A"),
            format!("{header}.e30.AA\n"),
            format!(" {header}.e30.AA"),
            format!("{header}\n.e30.AA"),
            format!("{header}.e\r\n30.AA"),
            format!("{header}.e30.AA\0"),
            format!("\0{header}.e30.AA"),
            format!("{header}.e30.ÄÄ"),
            "{\"alg\":\"ES256\"}.e30.AA".to_owned(),
        ] {
            assert!(!is_taken(&text), "{text:?}");
        }
        assert!(is_taken("eyJhbGciOiJFUzI1In0.e30.AA"), "the one with stray bits, without");
    }

    #[test]
    fn its_size_is_bounded() {
        let text = |payload: usize| format!("{}.{}.", encode(br#"{"alg":"ES256"}"#), "A".repeat(payload));
        let most = JWS_BYTES_MAX - text(0).len();
        assert!(is_taken(&text(most - most % 4)) && text(most).len() == JWS_BYTES_MAX);
        assert!(!is_taken(&text((most / 4 + 1) * 4)), "one step longer");
        let header = |name: usize| with(&format!(r#"{{"alg":"ES256","{}":0}}"#, "x".repeat(name)));
        assert!(is_taken(&header(12_000)));
        assert!(!is_taken(&header(12_300)) && !is_taken(&header(1_000_000)));
        assert!(!is_taken(&with(&format!(r#"{{"alg":"ES256","x":{}"#, "[".repeat(12_000)))));
    }

    proptest! {
        #[test]
        fn never_panics(text: String, parts in r"[A-Za-z0-9_.=-]{0,80}", header in r#"\{"[a-z0-9":,{}\\\[\]]{0,40}\}"#) {
            let _ = (Jws::parse(&text), Jws::parse(&parts), Jws::parse(&with(&header)));
        }

        #[test]
        fn a_text_has_one_spelling(
            kid in ".{0,20}", payload: Vec<u8>, signature: Vec<u8>, at: prop::sample::Index, to in "[A-Za-z0-9_.=-]",
        ) {
            let header = serde_json::json!({ "alg": "ES256", "kid": kid }).to_string();
            let text = format!("{}.{}.{}", encode(header.as_bytes()), encode(&payload), encode(&signature));
            let jws = Jws::parse(&text).unwrap();
            prop_assert_eq!(jws.kid(), Some(&*kid));
            prop_assert_eq!((jws.payload(), jws.signature()), (&*payload, &*signature));

            let at = at.index(text.len());
            let changed = format!("{}{to}{}", &text[..at], &text[at + 1..]);
            if let Some(other) = Jws::parse(&changed) {
                let header = decode(changed.split('.').next().unwrap());
                prop_assert_eq!(
                    format!("{}.{}.{}", encode(&header), encode(other.payload()), encode(other.signature())),
                    changed.clone()
                );
                // Whatever was changed shows in what is signed, or in the signature.
                let is_same = (other.digest(), other.signature()) == (jws.digest(), jws.signature());
                prop_assert_eq!(is_same, changed == text);
            }
        }
    }
}
