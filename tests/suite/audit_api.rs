//! `/v1/audit`: what auditors see, and that it proves what it says.

use ct_merkle::{ConsistencyProof, InclusionProof, RootHash};
use data_encoding::{BASE64, BASE64URL_NOPAD};
use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{Signature, VerifyingKey};
use p256::pkcs8::DecodePublicKey;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::audit_files::{Copy, utf8};
use crate::audit_tampering::live;
use crate::bank::{done, refused, without_request_id};
use crate::by_hand::enc;
use crate::client::Connection;
use crate::daemon::{Daemon, enrol_hotp, rfc_code, text, verify};
use crate::permissions::permit;

const LOG: &str = "/v1/audit";

/// All entries that a client sees, by pages of this length.
pub async fn entries(auditor: &Connection, limit: usize) -> Vec<Value> {
    let (mut all, mut after) = (Vec::new(), json!(0));
    loop {
        let page = done(&auditor.get(&format!("{LOG}?limit={limit}&after={after}")).await.unwrap());
        let items = page["items"].as_array().unwrap();
        all.extend(items.iter().cloned());
        if page["next"].is_null() {
            assert!(items.len() <= limit);
            return all;
        }
        assert_eq!(items.len(), limit);
        assert_eq!(page["next"], items[limit - 1]["seq"]);
        after = page["next"].clone();
    }
}

/// What an entry's leaf is made of, by the tests' own hand.
fn leaf_bytes(entry: &Value) -> Vec<u8> {
    let said = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    let rows: Vec<_> = entry["rows"].as_array().unwrap().iter().map(|row| row.as_str().unwrap()).collect();
    let mut parts =
        vec!["hsm-authd/audit/v1".to_owned(), entry["seq"].to_string(), entry["unix_ms"].to_string()];
    parts
        .extend(["event", "tenant", "client", "request_id", "credential", "transaction", "detail"].map(said));
    parts.push(rows.join(","));
    enc(&parts.iter().map(String::as_str).collect::<Vec<_>>())
}

pub fn hash_of_leaf(entry: &Value) -> [u8; 32] {
    Sha256::digest([&[0], &*leaf_bytes(entry)].concat()).into()
}

fn hash(value: &Value) -> [u8; 32] {
    BASE64URL_NOPAD.decode(value.as_str().unwrap().as_bytes()).unwrap().try_into().unwrap()
}

fn hashes(proof: &Value) -> Vec<u8> {
    proof["hashes"].as_array().unwrap().iter().flat_map(hash).collect()
}

fn root(value: &Value, size: u64) -> RootHash<Sha256> {
    RootHash::new(hash(value).into(), size)
}

#[tokio::test]
async fn an_auditor_reads_what_happened() {
    let daemon = Daemon::start();
    let (bank, other) = (daemon.connect("bank-a").await, daemon.connect("bank-b").await);
    let auditor = daemon.connect("auditor").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let foreign = enrol_hotp(&other, "acct-1").await;
    let right = verify(&bank, &id, &rfc_code(0)).await;
    let wrong = verify(&bank, &id, "000000").await;
    verify(&other, &foreign, &rfc_code(0)).await;
    let all = entries(&auditor, 100).await;
    for (place, entry) in all.iter().enumerate() {
        assert_eq!(entry["seq"], place as u64 + 1);
        assert_eq!(hash(&entry["leaf_hash"]), hash_of_leaf(entry), "{entry}");
        let seconds = entry["unix_ms"].as_u64().unwrap() / 1_000;
        assert_eq!(entry["time"], hsm_authd::domain::time::rfc3339(seconds * 1_000));
    }
    let of = |event: &str| {
        let own = |entry: &&Value| entry["event"] == event && entry["tenant"] == "bank-a";
        all.iter().filter(own).cloned().collect::<Vec<_>>()
    };
    let [yes] = &of("otp.verified")[..] else { panic!("{all:?}") };
    let expected = json!({ "seq": yes["seq"], "time": yes["time"], "unix_ms": yes["unix_ms"],
        "event": "otp.verified", "verdict": "accepted", "tenant": "bank-a", "client": "bank-a",
        "request_id": right.header("x-request-id").unwrap(), "credential": id, "rows": yes["rows"],
        "leaf_hash": yes["leaf_hash"] });
    assert_eq!(*yes, expected);
    let rows: Vec<_> = yes["rows"].as_array().unwrap().iter().map(|row| row.as_str().unwrap()).collect();
    assert!(rows.iter().any(|row| row.starts_with("credential_state:") && row.ends_with(":2")), "{rows:?}");
    let [no] = &of("otp.refused")[..] else { panic!("{all:?}") };
    assert_eq!(no["verdict"], "refused");
    assert_eq!(no["request_id"], wrong.header("x-request-id").unwrap());
    assert_eq!(of("credential.enrolled")[0].get("verdict"), None);

    for limit in [1, 2, 3, all.len()] {
        assert_eq!(entries(&auditor, limit).await, all, "{limit}");
    }
    let last = all.len();
    for after in [last, last + 1, u64::MAX as usize] {
        let page = done(&auditor.get(&format!("{LOG}?after={after}")).await.unwrap());
        assert_eq!(page, json!({ "items": [], "next": null }));
    }
    for route in [LOG, "/v1/audit/keys", "/v1/audit/proof?from=1&to=2"] {
        let head = auditor.request("HEAD", route, &[], "").await.unwrap();
        assert_eq!((head.status.as_u16(), head.body.len()), (200, 0), "{route}");
        for method in ["POST", "PUT", "DELETE"] {
            let answer = auditor.request(method, route, &[], "").await.unwrap();
            refused(&answer, 405, "method-not-allowed");
        }
    }
}

#[tokio::test]
async fn a_tenants_auditor_sees_its_own_entries_alone() {
    let daemon = Daemon::start();
    let (bank, other) = (daemon.connect("bank-a").await, daemon.connect("bank-b").await);
    permit(&daemon, "bank-a-gateway", &["audit"]);
    let (own, auditor) = (daemon.connect("bank-a-gateway").await, daemon.connect("auditor").await);
    for number in 0..7 {
        enrol_hotp(if number % 3 == 0 { &other } else { &bank }, &format!("acct-{number}")).await;
    }
    let all = entries(&auditor, 100).await;
    let (mine, others): (Vec<Value>, Vec<Value>) =
        all.iter().cloned().partition(|entry| entry["tenant"] == "bank-a");
    assert!(mine.len() > 3 && others.iter().any(|entry| entry["tenant"] == "bank-b"));
    for limit in [1, 2, 100] {
        assert_eq!(entries(&own, limit).await, mine, "{limit}");
    }
    let size = all.len();
    let proof = async |client: &Connection, entry: &Value| {
        client.get(&format!("/v1/audit/proof?entry={entry}&size={size}")).await.unwrap()
    };
    let absent = without_request_id(&proof(&own, &json!(1_000_000)).await);
    for entry in &all {
        done(&proof(&auditor, &entry["seq"]).await);
        let answer = proof(&own, &entry["seq"]).await;
        if mine.contains(entry) {
            assert_eq!(done(&answer)["leaf_hash"], entry["leaf_hash"]);
        } else {
            refused(&answer, 404, "not-found");
            assert_eq!(without_request_id(&answer), absent);
        }
    }
    // What tells of no entry is for every auditor.
    for path in [format!("/v1/audit/proof?from=1&to={size}"), "/v1/audit/keys".to_owned()] {
        assert_eq!(done(&own.get(&path).await.unwrap()), done(&auditor.get(&path).await.unwrap()));
    }
}

#[tokio::test]
async fn proofs_hold_by_somebody_elses_code() {
    let mut daemon = Daemon::start();
    live(&daemon.connect("bank-a").await, 280).await;
    let auditor = daemon.connect("auditor").await;
    let all = entries(&auditor, 100).await;
    let size = all.len() as u64;
    assert!(size > 256);
    for (entry, size) in [(1, 1), (1, size), (256, 256), (256, size), (257, 257), (size, size), (100, 255)] {
        let proof = done(&auditor.get(&format!("/v1/audit/proof?entry={entry}&size={size}")).await.unwrap());
        let said = &all[entry as usize - 1];
        assert_eq!(proof["leaf_hash"], said["leaf_hash"]);
        let theirs = InclusionProof::<Sha256>::try_from_bytes(hashes(&proof)).unwrap();
        root(&proof["root"], size).verify_inclusion(&leaf_bytes(said), entry - 1, &theirs).unwrap();
    }
    for (from, to) in [(1, size), (255, 257), (256, size), (257, size), (size - 1, size)] {
        let proof = done(&auditor.get(&format!("/v1/audit/proof?from={from}&to={to}")).await.unwrap());
        let theirs = ConsistencyProof::<Sha256>::try_from_bytes(hashes(&proof)).unwrap();
        let old = root(&proof["from_root"], from);
        root(&proof["to_root"], to).verify_consistency(&old, &theirs).unwrap();
    }
    let same = done(&auditor.get(&format!("/v1/audit/proof?from={size}&to={size}")).await.unwrap());
    assert_eq!((&same["hashes"], &same["from_root"]), (&json!([]), &same["to_root"]));

    // What is exported is what was shown.
    let keys = done(&auditor.get("/v1/audit/keys").await.unwrap());
    let note = text(&auditor.get("/v1/audit/checkpoint").await.unwrap());
    assert!(daemon.stop().success());
    let copy = Copy::of(&daemon.database());
    let key = copy.scratch.write("key.pem", keys["keys"][0]["public_key_pem"].as_str().unwrap());
    let note = copy.scratch.write("note", &note);
    let said = copy.verified(&["--key", key.to_str().unwrap(), "--checkpoint", note.to_str().unwrap()]);
    assert!(said.contains(&format!("entries up to {} are covered", copy.size())), "{said}");
    assert!(said.contains("of every checkpoint right"), "{said}");
    let exported = |arguments: &[&str]| -> Vec<Value> {
        let output = copy.audit(&[&["export"], arguments].concat());
        assert!(output.status.success(), "{}", utf8(&output.stderr));
        utf8(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    assert_eq!(exported(&[])[..all.len()], all);
    assert_eq!(exported(&["--after", "200"])[..all.len() - 200], all[200..]);
    assert_eq!(exported(&["--after", "4000000000"]), [Value::Null; 0]);
    let broken = copy.tampered(|connection| {
        connection.execute("UPDATE audit SET event = 'x' WHERE seq = 5", []).unwrap();
    });
    let output = broken.audit(&["export"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(utf8(&output.stdout).lines().count(), 4);
    assert!(utf8(&output.stderr).contains("entry 5 cannot be read"));
}

#[tokio::test]
async fn keys_are_those_of_the_checkpoints() {
    let daemon = Daemon::start();
    let auditor = daemon.connect("auditor").await;
    let keys = done(&auditor.get("/v1/audit/keys").await.unwrap());
    let [key] = &keys["keys"].as_array().unwrap()[..] else { panic!("{keys}") };
    let pem = key["public_key_pem"].as_str().unwrap();
    let public = p256::PublicKey::from_public_key_pem(pem).unwrap();
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let info = BASE64.decode(body.as_bytes()).unwrap();
    let id = Sha256::digest(&info);
    assert_eq!(key["key_id"], data_encoding::HEXLOWER.encode(&id[..4]));

    let answer = auditor.get("/v1/audit/checkpoint").await.unwrap();
    assert_eq!(answer.status, 200, "a start makes one");
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    let note = text(&answer);
    let (said, signature) = note.split_once("\n\n").unwrap();
    let signature = BASE64.decode(signature.trim_end().rsplit(' ').next().unwrap().as_bytes()).unwrap();
    assert_eq!(signature[..4], id[..4]);
    let der = Signature::from_der(&signature[4..]).unwrap();
    VerifyingKey::from(public).verify(format!("{said}\n").as_bytes(), &der).unwrap();
    let [origin, size, root] = said.lines().take(3).collect::<Vec<_>>()[..] else { panic!("{note}") };
    assert!(key["note_verifier"].as_str().unwrap().starts_with(&format!("{origin}+")));
    let proof = format!("/v1/audit/proof?from={size}&to={size}");
    let own = done(&auditor.get(&proof).await.unwrap());
    assert_eq!(BASE64.encode(&hash(&own["to_root"])), root);
}
