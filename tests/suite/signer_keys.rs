//! Signers as they are enrolled, shown and done away with, and the keys that are refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::bank::{act, credential, credentials, delete, done, path, refused, resync};
use crate::daemon::{Daemon, enrol, text};
use crate::refusals::MARK;
use crate::signers::{Device, PAYLOAD, der_of, openssls_pem, pem_of, present, rsa_keys};

#[tokio::test]
async fn a_key_is_enrolled_by_pem_or_by_jwk_and_shown_by_its_thumbprint() {
    const NOW: u64 = 1_893_456_000;
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let device = Device::new(1);
    let es256 = json!({ "pem": device.pem(), "jwk": device.jwk(), "thumbprint": device.thumbprint() });
    let mut keys = vec![("ES256", es256)];
    keys.extend(rsa_keys().into_iter().map(|key| ("RS256", key)));
    let mut all = Vec::new();
    for (algorithm, key) in &keys {
        let other = if *algorithm == "ES256" { "RS256" } else { "ES256" };
        for (field, public_key) in [("public_key_pem", &key["pem"]), ("jwk", &key["jwk"])] {
            let mut body = json!({ "type": "signer", "account": "acct-1", field: public_key });
            for named in [None, Some(algorithm)] {
                named.inspect(|name| body["algorithm"] = json!(name));
                let answer = bank.post("/v1/credentials", &body).await.unwrap();
                assert_eq!(answer.status, 201, "{}", text(&answer));
                let document = answer.json().unwrap();
                let id = document["id"].as_str().unwrap();
                assert_eq!(answer.header("location"), Some(&*path(id, "")));
                let expected = json!({ "id": id, "account": "acct-1", "type": "signer", "tenant": "bank-a",
                    "state": "active", "algorithm": algorithm, "thumbprint": key["thumbprint"],
                    "failures": 0, "created_at": "2030-01-01T00:00:00Z" });
                assert_eq!(document, expected);
                assert_eq!(credential(&bank, id).await, expected);
                all.push(expected);
            }
            for wrong in [other, "ES384", "SHA1", "none", "es256", ""] {
                body["algorithm"] = json!(wrong);
                let answer = bank.post("/v1/credentials", &body).await.unwrap();
                let document = refused(&answer, 422, "invalid");
                assert_eq!(document["field"], "algorithm", "{wrong}: {document}");
            }
        }
    }
    // Of one millisecond they come in the order of their ids.
    all.sort_unstable_by_key(|view| view["id"].to_string());
    assert_eq!(credentials(&bank).await, json!(all));
    // Who has only a compressed point has the same key.
    let body = json!({ "type": "signer", "account": "acct-1",
        "public_key_pem": openssls_pem("p256-compressed") });
    let compressed = credential(&bank, &enrol(&bank, &body).await).await;
    let body = json!({ "type": "signer", "account": "acct-1", "public_key_pem": openssls_pem("p256") });
    let whole = credential(&bank, &enrol(&bank, &body).await).await;
    assert_eq!(compressed["thumbprint"], whole["thumbprint"]);
}

/// A JWK with these members changed; `null` takes one away.
fn changed(jwk: &Value, changes: Value) -> Value {
    let mut jwk = jwk.as_object().unwrap().clone();
    for (member, value) in changes.as_object().unwrap().clone() {
        match value {
            Value::Null => jwk.remove(&member),
            value => jwk.insert(member, value),
        };
    }
    Value::Object(jwk)
}

/// A SubjectPublicKeyInfo for P-256 with this point.
fn p256_info(point: &[u8]) -> String {
    let prefix = &der_of(&openssls_pem("p256"))[4..23];
    let bits = [&[0x03, point.len() as u8 + 1, 0], point].concat();
    let content = [&[0x30, 0x13], prefix, &bits].concat();
    pem_of(&[&[0x30, content.len() as u8], &content[..]].concat())
}

/// What is refused, in JSON text, with the field and some words of the reason.
fn refused_pems() -> Vec<(&'static str, String, &'static str)> {
    let pem = Device::new(1).pem();
    let rsa = rsa_keys()[0]["pem"].as_str().unwrap().to_owned();
    let relabelled = |label: &str| pem.replace("PUBLIC KEY", label);
    let mut off_curve = der_of(&pem);
    *off_curve.last_mut().unwrap() ^= 1;
    let mut even = der_of(&rsa);
    *even.last_mut().unwrap() = 0;
    let point = der_of(&pem)[26..].to_vec();
    assert_eq!(p256_info(&point), pem_of(&der_of(&pem)), "the test's own key is right");
    let behind = [&der_of(&pem)[..], &[0]].concat();
    let pems = [
        ("P-384", openssls_pem("secp384r1"), "P-256"),
        ("secp256k1", openssls_pem("secp256k1"), "P-256"),
        ("Ed25519", openssls_pem("ed25519"), "P-256 or RSA"),
        ("parameters in the clear", openssls_pem("p256-explicit"), "name its curve"),
        ("a hybrid point", openssls_pem("p256-hybrid"), "uncompressed"),
        ("not on the curve", pem_of(&off_curve), "not on P-256"),
        ("at infinity", p256_info(&[0]), "infinity"),
        ("zeros", p256_info(&[&[4][..], &[0; 64]].concat()), "not on P-256"),
        ("no point", p256_info(&[]), "uncompressed"),
        ("RSA 1024", openssls_pem("rsa1024"), "2048 to 4096"),
        ("RSA 2047", openssls_pem("rsa2047"), "2048 to 4096"),
        ("RSA 4104", openssls_pem("rsa4104"), "2048 to 4096"),
        ("e = 3", openssls_pem("rsa2048-exponent-3"), "65537"),
        ("even e", pem_of(&even), "65537"),
        ("for PSS alone", openssls_pem("rsa2048-pss"), "PSS"),
        ("a private key", relabelled("PRIVATE KEY"), "private key"),
        ("an EC private key", relabelled("EC PRIVATE KEY"), "private key"),
        ("both keys", format!("{pem}{}", relabelled("PRIVATE KEY")), "private key"),
        ("a certificate", relabelled("CERTIFICATE"), "certificate"),
        ("PKCS#1", rsa.replace("PUBLIC KEY", "RSA PUBLIC KEY"), "PKCS#1"),
        ("two blocks", format!("{pem}{pem}"), "one PUBLIC KEY block"),
        ("something before it", format!("{MARK}\n{pem}"), "one PUBLIC KEY block"),
        ("something after it", format!("{pem}{MARK}"), "one PUBLIC KEY block"),
        ("a zero byte after it", format!("{pem}\0"), "one PUBLIC KEY block"),
        ("no PEM", MARK.to_owned(), "one PUBLIC KEY block"),
        ("nothing", String::new(), "one PUBLIC KEY block"),
        ("half of it", pem[..80].to_owned(), "one PUBLIC KEY block"),
        ("bytes behind the key", pem_of(&behind), "one SubjectPublicKeyInfo"),
        ("no DER", pem_of(MARK.as_bytes()), "one SubjectPublicKeyInfo"),
    ];
    pems.into_iter().map(|(what, pem, reason)| (what, json!(pem).to_string(), reason)).collect()
}

fn refused_jwks() -> Vec<(&'static str, String, &'static str)> {
    let ec = Device::new(1).jwk();
    let rsa = rsa_keys()[0]["jwk"].clone();
    let number = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
    let of_size = |bytes: usize| changed(&rsa, json!({ "n": number(&vec![0xff; bytes]) }));
    let exponent = |bytes: &[u8]| changed(&rsa, json!({ "e": number(bytes) }));
    let coordinates = |name: &str, crv: &str, bytes: usize| {
        let der = der_of(&openssls_pem(name));
        let (x, y) = der[der.len() - 2 * bytes..].split_at(bytes);
        json!({ "kty": "EC", "crv": crv, "x": number(x), "y": number(y) })
    };
    let text = ec.to_string();
    let twice = |members: &str| text.replacen('{', &format!("{{{members},"), 1);
    let of_ec = |changes: Value| changed(&ec, changes).to_string();
    let zeros = number(&[0; 32]);
    let mut jwks = vec![
        ("P-384", coordinates("secp384r1", "P-384", 48).to_string(), "P-256"),
        ("P-384 that says P-256", coordinates("secp384r1", "P-256", 48).to_string(), "32 bytes"),
        ("secp256k1", coordinates("secp256k1", "secp256k1", 32).to_string(), "P-256"),
        ("secp256k1 that says P-256", coordinates("secp256k1", "P-256", 32).to_string(), "not on P-256"),
        ("zeros", of_ec(json!({ "x": zeros, "y": zeros })), "not on P-256"),
        ("x and y swapped", of_ec(json!({ "x": ec["y"], "y": ec["x"] })), "not on P-256"),
        ("padded", of_ec(json!({ "x": format!("{}=", ec["x"].as_str().unwrap()) })), "base64url"),
        ("base64", of_ec(json!({ "x": "+".repeat(43) })), "base64url"),
        ("no y", of_ec(json!({ "y": null })), "x and y"),
        ("no crv", of_ec(json!({ "crv": null })), "crv"),
        ("no kty", of_ec(json!({ "kty": null })), "kty"),
        ("another kty", of_ec(json!({ "kty": MARK })), "kty"),
        ("kty of another case", of_ec(json!({ "kty": "ec" })), "kty"),
        ("alg of another key", of_ec(json!({ "alg": "RS256" })), "alg"),
        ("alg none", of_ec(json!({ "alg": "none" })), "alg"),
        ("alg 7", of_ec(json!({ "alg": 7 })), "alg"),
        ("to encrypt", of_ec(json!({ "use": "enc" })), "use"),
        ("to sign alone", of_ec(json!({ "key_ops": ["sign"] })), "key_ops"),
        ("for nothing", of_ec(json!({ "key_ops": [] })), "key_ops"),
        ("kty twice", twice(r#""kty":"EC""#), "twice"),
        ("crv twice", twice(r#""crv":"P-384""#), "twice"),
        ("alg twice", twice(r#""alg":"ES256","alg":"ES256""#), "twice"),
        ("RSA, alg of another key", changed(&rsa, json!({ "alg": "PS256" })).to_string(), "alg"),
        ("1024 bits", of_size(128).to_string(), "2048 to 4096"),
        ("2040 bits", of_size(255).to_string(), "2048 to 4096"),
        ("4104 bits", of_size(513).to_string(), "2048 to 4096"),
        ("48,000 bits", of_size(6_000).to_string(), "2048 to 4096"),
        ("n with a leading zero", changed(&rsa, json!({ "n": number(&[0, 0xff]) })).to_string(), "leading"),
        ("n = nothing", changed(&rsa, json!({ "n": "" })).to_string(), "leading"),
        ("even n", changed(&rsa, json!({ "n": number(&[0xfe; 256]) })).to_string(), "even"),
        ("no n", changed(&rsa, json!({ "n": null })).to_string(), "n and e"),
        ("e = 0", exponent(&[0]).to_string(), "leading"),
        ("e = 1", exponent(&[1]).to_string(), "65537"),
        ("e = 3", exponent(&[3]).to_string(), "65537"),
        ("even e", exponent(&[1, 0, 2]).to_string(), "65537"),
        ("e of 72 bits", exponent(&[0xff; 9]).to_string(), "65537"),
        ("a symmetric key", json!({ "kty": "oct", "k": MARK }).to_string(), "private key"),
    ];
    for member in ["d", "p", "q", "dp", "dq", "qi", "oth", "k"] {
        jwks.push((member, of_ec(json!({ member: MARK })), "private key"));
        jwks.push((member, changed(&rsa, json!({ member: MARK })).to_string(), "private key"));
    }
    jwks
}

#[tokio::test]
async fn keys_that_are_none_or_not_safe_are_refused_and_repeated_nowhere() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let custodians = daemon.pids("custodian");
    let pems = refused_pems().into_iter().map(|case| ("public_key_pem", case));
    let jwks = refused_jwks().into_iter().map(|case| ("jwk", case));
    for (field, (what, key, words)) in pems.chain(jwks) {
        let body = format!(r#"{{"type":"signer","account":"{MARK}","{field}":{key}}}"#);
        let headers = [("content-type", "application/json")];
        let answer = bank.request("POST", "/v1/credentials", &headers, body).await.unwrap();
        let document = refused(&answer, 422, "invalid");
        assert_eq!(document["field"], field, "{what}: {document}");
        let reason = document["reason"].as_str().unwrap();
        assert!(reason.contains(words), "{what}: {reason}");
        let repeats = |text: &str| {
            key.as_bytes().windows(20).any(|part| text.as_bytes().windows(20).any(|w| w == part))
        };
        assert!(!text(&answer).contains(MARK) && !repeats(&text(&answer)), "{what}: {document}");
    }
    let pem = Device::new(1).pem();
    let good = json!({ "type": "signer", "account": "acct-1", "public_key_pem": pem });
    for (changes, field) in [
        (json!({ "public_key_pem": null }), Some("public_key_pem")),
        (json!({ "jwk": Device::new(1).jwk() }), Some("public_key_pem")),
        (json!({ "public_key_pem": 7 }), None),
        (json!({ "public_key_pem": null, "jwk": "EC" }), None),
        (json!({ "public_key_pem": null, "jwk": [] }), None),
        (json!({ "seed_hex": "31".repeat(20) }), None),
        (json!({ "digits": 6 }), None),
        (json!({ "certificate_chain_pem": pem }), None),
    ] {
        let answer = bank.post("/v1/credentials", &changed(&good, changes.clone())).await.unwrap();
        let document = refused(&answer, 422, "invalid");
        assert!(field.is_none() || document["field"] == field.unwrap(), "{changes}: {document}");
    }
    for field in ["jwk", "public_key_pem", "algorithm"] {
        let mut body = good.clone();
        body[field] = Value::Null;
        refused(&bank.post("/v1/credentials", &body).await.unwrap(), 422, "invalid");
    }
    assert_eq!(credentials(&bank).await, json!([]));
    let log = daemon.log();
    assert!(!log.contains(MARK) && !log.contains("BEGIN"), "{log}");
    enrol(&bank, &good).await;
    assert_eq!(daemon.pids("custodian"), custodians);
}

#[tokio::test]
async fn a_signer_is_suspended_resumed_and_deleted_and_is_nobody_elses() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let device = Device::new(1);
    let id = device.enrol(&bank, "acct-1").await;
    let right = device.p1363(PAYLOAD);
    let verify = async |bank| present(bank, &id, PAYLOAD, &right, "p1363").await;

    let stranger = daemon.connect("bank-b").await;
    refused(&verify(&stranger).await, 404, "not-found");
    refused(&stranger.get(&path(&id, "")).await.unwrap(), 404, "not-found");
    refused(&delete(&stranger, &id).await, 404, "not-found");

    assert_eq!(done(&act(&bank, &id, "suspend").await)["state"], "suspended");
    refused(&verify(&bank).await, 409, "state-conflict");
    refused(&present(&bank, &id, PAYLOAD, &device.p1363(b"other"), "p1363").await, 409, "state-conflict");
    assert_eq!(done(&act(&bank, &id, "resume").await)["state"], "active");
    done(&verify(&bank).await);
    done(&act(&bank, &id, "unlock").await);
    let otps = || ["123456".to_owned(), "234567".to_owned()];
    refused(&resync(&bank, &id, otps()).await, 409, "state-conflict");

    assert_eq!(done(&delete(&bank, &id).await), json!({ "id": id, "state": "deleted" }));
    refused(&verify(&bank).await, 404, "not-found");
    refused(&resync(&bank, &id, otps()).await, 404, "not-found");
    refused(&bank.get(&path(&id, "")).await.unwrap(), 404, "not-found");
    assert_eq!(credentials(&bank).await, json!([]));
    // The same device may be enrolled again: it is another credential.
    let again = device.enrol(&bank, "acct-1").await;
    done(&present(&bank, &again, PAYLOAD, &right, "p1363").await);
    refused(&verify(&bank).await, 404, "not-found");
}

/// In the order of the commits, which is the log's: a signature that was being verified meanwhile is no exception.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_signature_is_accepted_while_its_signer_is_suspended() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let device = Device::new(1);
    let id = device.enrol(&bank, "acct-1").await;
    let body = device.submission(&id, PAYLOAD).body.to_string();
    let over = Arc::new(AtomicBool::new(false));
    let mut verifying = JoinSet::new();
    for _ in 0..8 {
        let (bank, path, body) = (daemon.connect("bank-a").await, path(&id, "verify"), body.clone());
        let over = over.clone();
        verifying.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let json = [("content-type", "application/json")];
                bank.request("POST", &path, &json, body.clone()).await.unwrap();
            }
        });
    }
    for _ in 0..60 {
        done(&act(&bank, &id, "suspend").await);
        done(&act(&bank, &id, "resume").await);
    }
    over.store(true, Ordering::Relaxed);
    verifying.join_all().await;

    let database = rusqlite::Connection::open(daemon.database()).unwrap();
    let mut statement = database.prepare("SELECT event FROM audit ORDER BY seq").unwrap();
    let events = statement.query_map([], |row| row.get::<_, String>(0)).unwrap().map(Result::unwrap);
    let (mut is_suspended, mut accepted) = (false, 0);
    for event in events {
        match event.as_str() {
            "credential.suspended" => is_suspended = true,
            "credential.resumed" => is_suspended = false,
            "signature.verified" => {
                assert!(!is_suspended, "after {accepted} others");
                accepted += 1;
            }
            _ => {}
        }
    }
    assert!(accepted > 0, "none came between");
}
