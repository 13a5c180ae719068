//! What an authenticator was enrolled with.

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

const CREDENTIAL_ID: (&str, &str) = ("credential_id", "must be 16 to 1023 bytes");
const RP_ID: (&str, &str) =
    ("rp_id", "must be a domain name in lower case, of two labels at least, or localhost");
const ORIGINS: (&str, &str) = (
    "origins",
    "must be 1 to 8 origins as clients spell them: https://, rp_id or a subdomain of it in lower case, and :port \
     unless it is the default (http:// for localhost alone); android:apk-key-hash: and a SHA-256 in base64url \
     without padding; or ios:bundle-id: and a bundle's name",
);

/// What an authenticator was enrolled with. Stored in sealed rows: its fields never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelyingParty {
    /// By which the client finds the key: 16 to 1023 bytes.
    pub credential_id: Vec<u8>,
    /// The domain that the key is for: a domain name in lower case, or `localhost`.
    pub rp_id: String,
    /// Whose pages and apps may ask for assertions, as clients spell them: 1 to 8.
    pub origins: Vec<String>,
}

impl RelyingParty {
    /// Checks that a client could ever send this (sections 4 and 5.1.4.1; WHATWG HTML, "origin").
    ///
    /// `rp_id` is a domain name of at least two labels, the last of which is no number as an IPv4 address has,
    /// or `localhost`. An origin is `https://`, then `rp_id` or a subdomain of it, then `:port` unless it is 443;
    /// with the `rp_id` `localhost` also `http://localhost`, with `:port` unless it is 80. Of apps it is
    /// `android:apk-key-hash:` with SHA-256 of the signing certificate in base64url without padding, or
    /// `ios:bundle-id:` with 1 to 155 of `A-Z a-z 0-9 - .`.
    ///
    /// # Errors
    /// The field, and what to mend in it. Repeats nothing of what was sent.
    pub fn new(
        credential_id: Vec<u8>,
        rp_id: String,
        origins: Vec<String>,
    ) -> Result<Self, (&'static str, &'static str)> {
        if !(16..=1_023).contains(&credential_id.len()) {
            return Err(CREDENTIAL_ID);
        }
        if rp_id != "localhost" && !(rp_id.contains('.') && is_domain(&rp_id)) {
            return Err(RP_ID);
        }
        if !(1..=8).contains(&origins.len()) || !origins.iter().all(|origin| is_origin(origin, &rp_id)) {
            return Err(ORIGINS);
        }
        Ok(Self { credential_id, rp_id, origins })
    }
}

/// Whether it is a host name in lower case (RFC 1123, section 2.1), the last label of which begins with a letter.
fn is_domain(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253 && name.split('.').all(is_label) && last.starts_with(|c: char| c.is_ascii_lowercase())
}

fn is_origin(origin: &str, rp_id: &str) -> bool {
    if let Some(hash) = origin.strip_prefix("android:apk-key-hash:") {
        return BASE64URL_NOPAD.decode(hash.as_bytes()).is_ok_and(|hash| hash.len() == 32);
    }
    if let Some(name) = origin.strip_prefix("ios:bundle-id:") {
        let is_of_a_name = |b: u8| b.is_ascii_alphanumeric() || b"-.".contains(&b);
        return (1..=155).contains(&name.len()) && name.bytes().all(is_of_a_name);
    }
    let (rest, default_port, is_https) =
        match (origin.strip_prefix("https://"), origin.strip_prefix("http://")) {
            (Some(rest), _) => (rest, 443, true),
            (None, Some(rest)) => (rest, 80, false),
            (None, None) => return false,
        };
    let (host, port) = rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port)));
    let is_port = |text: &str| {
        text.parse().is_ok_and(|port: u16| port != 0 && port != default_port && port.to_string() == text)
    };
    let is_under = host.strip_suffix(rp_id).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    let is_host =
        if is_https { is_under && is_domain(host) } else { (host, rp_id) == ("localhost", "localhost") };
    is_host && port.is_none_or(is_port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    const APK: &str = "android:apk-key-hash:_2HBUymcqGN1_5dimo7nVj8erNyC32NupRjdtBPMYYU";

    fn new(rp_id: &str, origins: &[&str]) -> Result<RelyingParty, (&'static str, &'static str)> {
        RelyingParty::new(vec![7; 16], rp_id.to_owned(), origins.iter().map(ToString::to_string).collect())
    }

    fn refused(rp_id: &str, origin: &str) -> Option<&'static str> {
        new(rp_id, &[origin]).err().map(|(field, _)| field)
    }

    #[test]
    fn a_credential_id_has_a_size() {
        for (length, is_right) in [(0, false), (15, false), (16, true), (1_023, true), (1_024, false)] {
            let party = RelyingParty::new(vec![0; length], "a.b".into(), vec!["https://a.b".into()]);
            assert_eq!(party.map_err(|(field, _)| field).err(), (!is_right).then_some("credential_id"));
        }
    }

    #[test]
    fn an_rp_id_is_a_domain() {
        let right = "bank.example a.b 1.a a--1.b2 xn--bcher-kva.example localhost a.localhost";
        let wrong = ". example com Bank.example bank.example. .bank.example bank..example -bank.example bank-.example \
                     bank_.example bank.example:443 https://bank.example bank.example/ 127.0.0.1 1.2 a.0x7f [::1] \
                     *.example bücher.example Localhost localhost. localhost:80 a@b.example";
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", &label[..61]);
        for rp_id in right.split_whitespace().chain([&*longest]) {
            assert_eq!(refused(rp_id, APK), None, "{rp_id}");
        }
        let too_long = [format!("{label}a.example"), format!("{longest}a")];
        let spaces = ["", " ", "a. b", "a.b ", "a.b\n", "a.b\0"];
        for rp_id in wrong.split_whitespace().chain(too_long.iter().map(String::as_str)).chain(spaces) {
            assert_eq!(refused(rp_id, APK), Some("rp_id"), "{rp_id:?}");
        }
    }

    #[test]
    fn origins_are_spelt_as_clients_do() {
        let hash = "_2HBUymcqGN1_5dimo7nVj8erNyC32NupRjdtBPMYY";
        let right = format!(
            "https://bank.example https://bank.example:8443 https://bank.example:80 https://bank.example:65535 \
             https://a.b-c.bank.example:1 android:apk-key-hash:{hash}U ios:bundle-id:com.Example.bank-1 \
             ios:bundle-id:{}",
            "a".repeat(155)
        );
        for origin in right.split_whitespace() {
            assert_eq!(refused("bank.example", origin), None, "{origin}");
        }
        let wrong = format!(
            "bank.example null https:// https://example https://evilbank.example https://.bank.example \
             https://-.bank.example https://bank.example.evil.example https://bank.example@evil.example \
             https://evil.example#.bank.example https://evil.example/.bank.example https://me@bank.example \
             https://bank.example/ https://bank.example/pay https://bank.example? https://bank.example. \
             https://Bank.example HTTPS://bank.example https://bank.example:443 https://bank.example: \
             https://bank.example:0 https://bank.example:080 https://bank.example:+80 \
             https://bank.example:65536 https://bank.example:8443:1 https://bank.example:٣ http://bank.example \
             http://localhost https://localhost https://https://bank.example wss://bank.example \
             android:apk-key-hash: android:apk-key-hash:2jmj7l5rSw0yVb-vlWAYkK-YBwk \
             android:apk-key-hash:{hash}U= android:apk-key-hash:{hash}V android:apk-key-hash:+{} \
             Android:apk-key-hash:{hash}U ios:bundle-id: ios:bundle-id:com.example/bank ios:bundle-id:com.bänk \
             ios:bundle-id:{}",
            &hash[1..],
            "a".repeat(156)
        );
        let spaces = ["", " https://bank.example", "https://bank.example\n", "https://bank.example\0"];
        for origin in wrong.split_whitespace().chain(spaces) {
            assert_eq!(refused("bank.example", origin), Some("origins"), "{origin:?}");
        }
    }

    #[test]
    fn localhost_needs_no_tls() {
        let right = "https://localhost https://localhost:8443 https://a.localhost http://localhost \
                     http://localhost:3000 http://localhost:443";
        let wrong = "http://localhost:80 http://a.localhost http://127.0.0.1 http://localhost/ https://localhost:443 \
                     http://bank.example https://bank.example";
        right.split(' ').for_each(|origin| assert_eq!(refused("localhost", origin), None, "{origin}"));
        wrong
            .split(' ')
            .for_each(|origin| assert_eq!(refused("localhost", origin), Some("origins"), "{origin}"));
    }

    #[test]
    fn each_of_a_few_origins_is_checked() {
        for (number, is_right) in [(0, false), (1, true), (8, true), (9, false)] {
            let party = new("bank.example", &vec![APK; number]).map_err(|(field, _)| field);
            assert_eq!(party.err(), (!is_right).then_some("origins"), "{number}");
        }
        assert_eq!(new("bank.example", &[APK, "https://evil.example"]), Err(ORIGINS));
    }

    /// Rows that hold one are sealed over these bytes: should they change, no seal made before fits any more.
    #[test]
    fn it_is_stored_as_ever() {
        let party = new("a.example", &["https://a.example", "https://b.a.example:1"]).unwrap();
        let stored = "100707070707070707070707070707070709612e6578616d706c65021168747470733a2f2f612e6578616d706c6515\
                      68747470733a2f2f622e612e6578616d706c653a31";
        let bytes = HEXLOWER.decode(stored.as_bytes()).unwrap();
        assert_eq!(postcard::to_allocvec(&party).unwrap(), bytes);
        assert_eq!(postcard::from_bytes::<RelyingParty>(&bytes).unwrap(), party);
    }

    proptest! {
        #[test]
        fn never_panics(rest in ".{0,40}", rp_id in "[a-z.]{0,20}") {
            for scheme in ["", "https://", "http://", "android:apk-key-hash:", "ios:bundle-id:"] {
                let _ = new(&rp_id, &[&format!("{scheme}{rest}")]);
                let _ = new("bank.example", &[&format!("{scheme}{rest}bank.example{rest}")]);
            }
        }
    }
}
