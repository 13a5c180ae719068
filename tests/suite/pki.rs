//! The development PKI: what other implementations say of it, and what a folder keeps.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use hsm_authd::dev::pki::{self, AlternativeName, Authority, Identity, Pki, PkiError, Purpose, Validity};

use crate::scratch::Scratch;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const LISTEN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));
const CLIENTS: [&str; 2] = ["bank-a", "auditor"];

fn ensure(folder: &Path) -> Pki {
    pki::ensure(folder, &CLIENTS, LISTEN, SystemTime::now()).unwrap()
}

/// Every file's text, by name.
fn files(folder: &Path) -> BTreeMap<String, String> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let text = std::fs::read_to_string(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), text)
        })
        .collect()
}

/// The names of the files that differ.
fn changed(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    after
        .iter()
        .filter(|(name, text)| before.get(*name) != Some(text))
        .map(|(name, _)| name.clone())
        .collect()
}

fn openssl(arguments: &[&str]) -> (bool, String) {
    let output = Command::new("openssl")
        .args(arguments)
        .output()
        .expect("this test needs the openssl command (Debian: openssl)");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn openssl_verify(ca: &Path, leaf: &Path, options: &[&str]) -> (bool, String) {
    let (ca, leaf) = (ca.to_str().unwrap(), leaf.to_str().unwrap());
    openssl(&[&["verify", "-x509_strict", "-CAfile", ca], options, &[leaf]].concat())
}

#[test]
fn openssl_accepts_every_certificate_by_its_strict_rules() {
    let scratch = Scratch::new();
    let pki = ensure(scratch.path());
    for name in [["-verify_hostname", "localhost"], ["-verify_ip", "127.0.0.1"], ["-verify_ip", "::1"]]
        .into_iter()
        .chain([["-verify_ip", "192.0.2.7"]])
    {
        let options = [&["-purpose", "sslserver"][..], &name].concat();
        let (good, text) = openssl_verify(&pki.ca, &pki.server.certificate, &options);
        assert!(good, "{name:?}: {text}");
    }
    for client in pki.clients.values() {
        let (good, text) = openssl_verify(&pki.ca, &client.certificate, &["-purpose", "sslclient"]);
        assert!(good, "{text}");
    }
}

#[test]
fn openssl_refuses_what_is_not_meant() {
    let (scratch, other) = (Scratch::new(), Scratch::new());
    let (pki, foreign) = (ensure(scratch.path()), ensure(other.path()));
    let server = &pki.server.certificate;
    let client = &pki.clients["bank-a"].certificate;
    for (ca, leaf, options) in [
        (&foreign.ca, client, &["-purpose", "sslclient"][..]),
        (&pki.ca, client, &["-purpose", "sslserver"]),
        (&pki.ca, server, &["-purpose", "sslclient"]),
        (&pki.ca, server, &["-verify_ip", "192.0.2.8"]),
        // A leaf is no authority.
        (server, client, &["-partial_chain"]),
    ] {
        let (good, text) = openssl_verify(ca, leaf, options);
        assert!(!good, "{options:?}: {text}");
    }
}

#[test]
fn certificates_say_what_strict_verifiers_ask_for() {
    let scratch = Scratch::new();
    let pki = ensure(scratch.path());
    let text = |path: &Path| {
        let (good, text) = openssl(&["x509", "-noout", "-text", "-in", path.to_str().unwrap()]);
        assert!(good, "{text}");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let ca = text(&pki.ca);
    for wanted in [
        "X509v3 Basic Constraints: critical CA:TRUE, pathlen:0",
        "X509v3 Key Usage: critical Certificate Sign, CRL Sign",
        "X509v3 Subject Key Identifier:",
    ] {
        assert!(ca.contains(wanted), "{wanted} is not in {ca}");
    }
    let server = text(&pki.server.certificate);
    let client = text(&pki.clients["bank-a"].certificate);
    for leaf in [&server, &client] {
        for wanted in [
            "X509v3 Basic Constraints: critical CA:FALSE",
            "X509v3 Key Usage: critical Digital Signature",
            "X509v3 Subject Key Identifier:",
            "X509v3 Authority Key Identifier:",
        ] {
            assert!(leaf.contains(wanted), "{wanted} is not in {leaf}");
        }
    }
    assert!(server.contains("Extended Key Usage: TLS Web Server Authentication X509v3"), "{server}");
    assert!(client.contains("Extended Key Usage: TLS Web Client Authentication X509v3"), "{client}");
    assert!(client.contains("Alternative Name: URI:urn:hsm-authd:client:bank-a"), "{client}");
}

#[test]
fn without_names_there_is_no_alternative_name() {
    let scratch = Scratch::new();
    let now = SystemTime::now();
    let validity = Validity { not_before: now, not_after: now + DAY };
    let authority = Authority::generate("test CA", validity).unwrap();
    let leaf = authority.issue(Purpose::Client, "bank-a", &[], validity).unwrap();
    let path = scratch.write("leaf.pem", &leaf.certificate_pem().unwrap());
    let (good, text) = openssl(&["x509", "-noout", "-text", "-in", path.to_str().unwrap()]);
    assert!(good && !text.contains("Alternative Name"), "{text}");
}

#[test]
fn serial_numbers_are_random() {
    let scratch = Scratch::new();
    let pki = ensure(scratch.path());
    let serials: std::collections::BTreeSet<String> = [&pki.ca, &pki.server.certificate]
        .into_iter()
        .chain(pki.clients.values().map(|client| &client.certificate))
        .map(|path| openssl(&["x509", "-noout", "-serial", "-in", path.to_str().unwrap()]).1)
        .collect();
    assert_eq!(serials.len(), 4, "{serials:?}");
    for serial in &serials {
        assert_eq!(serial.trim_end().len(), "serial=".len() + 32, "{serial}");
    }
}

#[test]
fn a_second_call_changes_nothing() {
    let scratch = Scratch::new();
    let first = ensure(scratch.path());
    let before = files(scratch.path());
    assert_eq!(
        before.keys().map(String::as_str).collect::<Vec<_>>(),
        [
            "auditor.key",
            "auditor.pem",
            "bank-a.key",
            "bank-a.pem",
            "ca.key",
            "ca.pem",
            "server.key",
            "server.pem"
        ],
        "and nothing temporary"
    );
    assert_eq!(ensure(scratch.path()), first);
    assert_eq!(changed(&before, &files(scratch.path())), [""; 0]);
}

#[test]
fn keys_are_their_owners_alone() {
    let scratch = Scratch::new();
    let folder = scratch.path().join("pki");
    let pki = ensure(&folder);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(mode(&folder.join("ca.key")), 0o600);
    for files in pki.clients.values().chain([&pki.server]) {
        assert_eq!(mode(&files.key), 0o600);
    }
}

#[test]
fn what_is_missing_is_made_and_the_rest_is_kept() {
    let scratch = Scratch::new();
    for (missing, made) in [
        ("server.key", &["server.key", "server.pem"][..]),
        ("server.pem", &["server.key", "server.pem"]),
        ("bank-a.key", &["bank-a.key", "bank-a.pem"]),
        ("bank-a.pem", &["bank-a.key", "bank-a.pem"]),
    ] {
        ensure(scratch.path());
        let before = files(scratch.path());
        std::fs::remove_file(scratch.path().join(missing)).unwrap();
        ensure(scratch.path());
        assert_eq!(changed(&before, &files(scratch.path())), made, "without {missing}");
    }
    let before = files(scratch.path());
    pki::ensure(scratch.path(), &["bank-a", "bank-b"], LISTEN, SystemTime::now()).unwrap();
    assert_eq!(changed(&before, &files(scratch.path())), ["bank-b.key", "bank-b.pem"], "a client is added");
}

#[test]
fn a_new_authority_makes_all_leaves_anew() {
    let scratch = Scratch::new();
    ensure(scratch.path());
    let before = files(scratch.path());
    std::fs::remove_file(scratch.path().join("ca.pem")).unwrap();
    let pki = ensure(scratch.path());
    assert_eq!(changed(&before, &files(scratch.path())).len(), before.len());
    let (good, text) = openssl_verify(&pki.ca, &pki.server.certificate, &[]);
    assert!(good, "{text}");
}

#[test]
fn a_pair_of_two_halves_is_made_anew() {
    let scratch = Scratch::new();
    ensure(scratch.path());
    let before = files(scratch.path());
    // As a crash between the two renames of a reissue leaves it.
    std::fs::copy(scratch.path().join("auditor.key"), scratch.path().join("server.key")).unwrap();
    ensure(scratch.path());
    assert_eq!(changed(&before, &files(scratch.path())), ["server.key", "server.pem"]);

    std::fs::copy(scratch.path().join("server.key"), scratch.path().join("ca.key")).unwrap();
    ensure(scratch.path());
    assert_eq!(changed(&before, &files(scratch.path())).len(), before.len());
}

#[test]
fn another_authoritys_leaf_is_made_anew() {
    let (scratch, other) = (Scratch::new(), Scratch::new());
    ensure(scratch.path());
    ensure(other.path());
    let before = files(scratch.path());
    for name in ["bank-a.pem", "bank-a.key"] {
        std::fs::copy(other.path().join(name), scratch.path().join(name)).unwrap();
    }
    ensure(scratch.path());
    assert_eq!(changed(&before, &files(scratch.path())), ["bank-a.key", "bank-a.pem"]);
    assert_ne!(files(other.path())["bank-a.pem"], files(scratch.path())["bank-a.pem"]);
}

#[test]
fn a_server_certificate_without_the_address_is_made_anew() {
    let scratch = Scratch::new();
    ensure(scratch.path());
    let before = files(scratch.path());
    for loopback in ["127.0.0.1", "::1"] {
        pki::ensure(scratch.path(), &CLIENTS, loopback.parse().unwrap(), SystemTime::now()).unwrap();
        assert_eq!(changed(&before, &files(scratch.path())), [""; 0], "{loopback} is always in it");
    }
    let elsewhere = "192.0.2.8";
    let pki = pki::ensure(scratch.path(), &CLIENTS, elsewhere.parse().unwrap(), SystemTime::now()).unwrap();
    assert_eq!(changed(&before, &files(scratch.path())), ["server.key", "server.pem"]);
    let (good, text) = openssl_verify(&pki.ca, &pki.server.certificate, &["-verify_ip", elsewhere]);
    assert!(good, "{text}");
}

#[test]
fn what_ends_within_a_day_is_made_anew() {
    let scratch = Scratch::new();
    let now = SystemTime::now();
    let at = |now: SystemTime| {
        let before = files(scratch.path());
        pki::ensure(scratch.path(), &CLIENTS, LISTEN, now).unwrap();
        changed(&before, &files(scratch.path()))
    };
    assert_eq!(at(now).len(), 8);
    assert_eq!(at(now + 363 * DAY), [""; 0]);
    assert_eq!(at(now - DAY / 2), [""; 0], "a clock that was set back a little");
    let leaves = ["auditor.key", "auditor.pem", "bank-a.key", "bank-a.pem", "server.key", "server.pem"];
    assert_eq!(at(now + 364 * DAY + DAY / 2), leaves, "half a day is left of them");
    assert_eq!(at(now + 3_651 * DAY + DAY / 2).len(), 8, "the authority ends, and all with it");
    assert_eq!(at(now).len(), 8, "nothing holds yet by a clock that was set right");
}

#[test]
fn a_file_of_someone_elses_is_left_alone() {
    let scratch = Scratch::new();
    ensure(scratch.path());
    for (name, text) in [("ca.pem", "my own"), ("server.key", "my own"), ("bank-a.pem", "")] {
        let kept = files(scratch.path())[name].clone();
        scratch.write(name, text);
        let before = files(scratch.path());
        let error = pki::ensure(scratch.path(), &CLIENTS, LISTEN, SystemTime::now()).unwrap_err();
        assert!(matches!(error, PkiError::Foreign { .. }), "{error}");
        assert!(error.to_string().contains(name) && !error.to_string().contains('\n'), "{error}");
        assert_eq!(files(scratch.path()), before);
        scratch.write(name, &kept);
    }
    std::fs::remove_file(scratch.path().join("ca.key")).unwrap();
    let before = files(scratch.path());
    let error = pki::ensure(scratch.path(), &CLIENTS, LISTEN, SystemTime::now()).unwrap_err();
    assert!(matches!(error, PkiError::KeyMissing { .. }), "{error}");
    assert_eq!(files(scratch.path()), before);
}

#[test]
fn a_clients_name_is_no_path_and_no_other_pair() {
    let scratch = Scratch::new();
    for name in ["ca", "server", "", "../bank-a", "a/b", "Bank"] {
        let error = pki::ensure(scratch.path(), &[name], LISTEN, SystemTime::now()).unwrap_err();
        assert!(matches!(error, PkiError::ClientName(_)), "{error}");
    }
    assert!(files(scratch.path()).is_empty());
}

#[test]
fn an_authority_is_one_only_with_its_own_key() {
    let now = SystemTime::now();
    let validity = Validity { not_before: now, not_after: now + DAY };
    let one = Authority::generate("one", validity).unwrap();
    let two = Authority::generate("one", validity).unwrap();
    let pem = |identity: &Identity| (identity.certificate_pem().unwrap(), identity.key_pem().unwrap());
    let read = |certificate: &str, key: &str| {
        Authority::from_identity(Identity::from_pem(certificate, key).unwrap()).is_some()
    };
    let ((certificate, key), (_, other_key)) = (pem(one.identity()), pem(two.identity()));
    assert!(read(&certificate, &key));
    assert!(!read(&certificate, &other_key), "another's key");
    let names = [AlternativeName::Dns("leaf.example".into())];
    let leaf = one.issue(Purpose::Server, "leaf", &names, validity).unwrap();
    assert!(one.has_issued(&leaf) && !two.has_issued(&leaf));
    let (certificate, key) = pem(&leaf);
    assert!(!read(&certificate, &key), "issued by another");
    assert!(!read(&certificate, &pem(one.identity()).1), "issued with this key, but for another");
    assert!(one.issue(Purpose::Server, "leaf,O=Bank", &names, validity).is_err(), "syntax in a name");
}
