//! Attestations through the whole appliance: what they say, who can verify them, and with what.

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use p256::ecdsa::VerifyingKey;
use p256::ecdsa::signature::Verifier;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::bank::{done, refused};
use crate::client::{Connection, Response};
use crate::daemon::{Daemon, text};
use crate::refusals::{Case, MARK, all_refused};
use crate::served::{Served, configuration};
use crate::transactions::{
    Holder, NOW, PLAIN, attestation, created, id, order, order_with, path, respond, signing_input,
    transaction,
};

const HOUR: u64 = 3_600;

/// Presents it.
pub async fn verify(connection: &Connection, jws: &str) -> Response {
    connection.post("/v1/attestations/verify", &json!({ "attestation": jws })).await.unwrap()
}

/// The one answer to everything that is none, or holds no longer: nothing is counted.
pub fn not_verified(answer: &Response) {
    assert_eq!(answer.status, 403, "{}", text(answer));
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    let document = answer.json().unwrap();
    assert_eq!(document["type"], "urn:hsm-authd:problem:verification-failed");
    let mut names: Vec<_> = document.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["detail", "request_id", "status", "title", "type"], "{document}");
}

pub async fn jwks(connection: &Connection) -> Vec<Value> {
    done(&connection.get("/v1/jwks").await.unwrap())["keys"].as_array().unwrap().clone()
}

/// Header, claims and signature, decoded.
pub fn parts(jws: &str) -> [Vec<u8>; 3] {
    let parts: Vec<_> = jws.split('.').map(|part| BASE64URL_NOPAD.decode(part.as_bytes()).unwrap()).collect();
    parts.try_into().unwrap()
}

/// The claims, unverified.
pub fn claims(jws: &str) -> Value {
    serde_json::from_slice(&parts(jws)[1]).unwrap()
}

/// The members of a transaction that its attestation repeats.
fn terms(view: &Value) -> Value {
    let names =
        ["payer", "payee", "amount", "currency", "order", "platform", "remark", "expires_at", "nonce"];
    let present = names.iter().filter_map(|name| Some((name.to_string(), view.get(name)?.clone())));
    Value::Object(present.collect::<Map<_, _>>())
}

#[tokio::test]
async fn it_says_what_was_approved_and_anybody_can_verify_it() {
    let daemon = Daemon::start_at(NOW);
    for (client, tenant) in [("bank-a", "bank-a"), ("bank-b", "bank-b")] {
        let bank = daemon.connect(client).await;
        let auditor = daemon.connect("auditor").await;
        let keys = jwks(&auditor).await;
        let [key] = keys.as_slice() else { panic!("{keys:?}") };
        let coordinate = |name: &str| key[name].as_str().unwrap().to_owned();
        let required =
            format!(r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{}"}}"#, coordinate("x"), coordinate("y"));
        let kid = BASE64URL_NOPAD.encode(&Sha256::digest(&required));
        assert_eq!(
            *key,
            json!({ "kty": "EC", "crv": "P-256", "x": key["x"], "y": key["y"], "kid": kid, "alg": "ES256", "use": "sig" })
        );
        let decoded = |name| BASE64URL_NOPAD.decode(coordinate(name).as_bytes()).unwrap();
        let point = [vec![4], decoded("x"), decoded("y")].concat();
        let by_p256 = VerifyingKey::from_sec1_bytes(&point).unwrap();
        let by_jose = DecodingKey::from_ec_components(&coordinate("x"), &coordinate("y")).unwrap();

        let holder = Holder::enrol(&bank, PLAIN, &format!("acct-1 {client} \u{e9}")).await;
        for (number, fields) in [
            json!({}),
            json!({ "platform": "p" }),
            json!({ "remark": "\u{1f3e6} \"\\/ \u{20ac}", "platform": "\u{6771}", "amount": "0", "currency": "JPY" }),
        ]
        .into_iter()
        .enumerate()
        {
            let later = 7 * number as u64;
            let view = created(&bank, &order_with(&holder.credential, fields)).await;
            daemon.set_clock(NOW + later);
            let answer = done(&respond(&bank, &id(&view), &holder.code(&view)).await);
            daemon.set_clock(NOW);
            let jws = answer["attestation"].as_str().unwrap().to_owned();
            assert_eq!(attestation(&bank, &id(&view)).await, jws);
            let expected = json!({ "iss": "hsm-authd", "jti": view["id"], "iat": NOW + later,
                "exp": NOW + later + 24 * HOUR, "tenant": tenant, "method": "challenge_response",
                "account": holder.account, "digest": view["digest"], "transaction": terms(&view) });
            let [header, payload, signature] = parts(&jws);
            let header = String::from_utf8(header).unwrap();
            assert_eq!(header, format!(r#"{{"alg":"ES256","kid":"{kid}","typ":"attestation+jwt"}}"#));
            assert_eq!(serde_json::from_slice::<Value>(&payload).unwrap(), expected);
            // Who has it can tell what was approved without asking anybody.
            let mut said = expected["transaction"].clone();
            (said["id"], said["method"]) = (expected["jti"].clone(), expected["method"].clone());
            let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(signing_input(tenant, &said)));
            assert_eq!(expected["digest"], digest);

            let signature = p256::ecdsa::Signature::from_slice(&signature).unwrap();
            by_p256.verify(jws.rsplit_once('.').unwrap().0.as_bytes(), &signature).unwrap();
            let mut validation = Validation::new(Algorithm::ES256);
            validation.set_issuer(&["hsm-authd"]);
            validation.set_required_spec_claims(&["exp", "iss"]);
            // The library reads the wall clock, which is not the daemon's.
            validation.validate_exp = false;
            assert_eq!(decode::<Value>(&jws, &by_jose, &validation).unwrap().claims, expected);

            for client in ["bank-a", "bank-a-gateway", "bank-b", "auditor"] {
                let connection = daemon.connect(client).await;
                assert_eq!(done(&verify(&connection, &jws).await), expected, "{client}");
            }
        }
    }
}

#[tokio::test]
async fn it_holds_for_its_time_and_no_longer() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    let view = holder.approved(&bank, &order(&holder.credential)).await;
    let jws = view["attestation"].as_str().unwrap();
    for (after_s, holds) in [(24 * HOUR - 1, true), (24 * HOUR, false), (48 * HOUR, false)] {
        daemon.set_clock(NOW + after_s);
        let answer = verify(&bank, jws).await;
        match holds {
            true => assert_eq!(done(&answer), claims(jws)),
            false => not_verified(&answer),
        }
        // It is still shown: what was approved was approved.
        assert_eq!(attestation(&bank, &id(&view)).await, jws);
    }
    daemon.kill();
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    not_verified(&verify(&bank, jws).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn issuer_and_time_are_as_configured() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    let by_dev = attestation(&bank, &id(&holder.approved(&bank, &order(&holder.credential)).await)).await;
    assert!(daemon.stop().success());
    let config = configuration(&daemon, "other.toml", |config| {
        let attestations = "issuer = \"https://appliance.example/1\"\nlifetime_hours = 1";
        config.insert("attestations".into(), attestations.parse::<toml::Table>().unwrap().into());
    });
    let served = Served::start(&config);
    let bank =
        Connection::open(&served.url, &daemon.identity("bank-a"), crate::client::Http::Two).await.unwrap();
    let jws = attestation(&bank, &id(&holder.approved(&bank, &order(&holder.credential)).await)).await;
    let said = done(&verify(&bank, &jws).await);
    assert_eq!(said["iss"], "https://appliance.example/1");
    assert_eq!(said["exp"].as_u64().unwrap() - said["iat"].as_u64().unwrap(), HOUR);
    // What another issuer says is not ours, though our key signed it.
    not_verified(&verify(&bank, &by_dev).await);
    drop(bank);
    assert!(served.stop().success());
}

#[tokio::test]
async fn only_an_approved_one_is_attested() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    let view = holder.asked(&bank).await;
    for of in ["attestation", "qr"] {
        refused(&bank.get(&path(&id(&view), of)).await.unwrap(), 409, "state-conflict");
    }
    assert!(transaction(&bank, &id(&view)).await.get("attestation").is_none());
    let answer = done(&respond(&bank, &id(&view), &holder.code(&view)).await);
    assert_eq!(attestation(&bank, &id(&view)).await, answer["attestation"].as_str().unwrap());
}

#[tokio::test]
async fn what_is_no_question_is_no_verdict() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let verify = "/v1/attestations/verify";
    let mut cases = Vec::new();
    for body in [
        "{}",
        "[]",
        "null",
        "7",
        "\"x\"",
        r#"["x"]"#,
        r#"{"attestation": 7}"#,
        r#"{"attestation": null}"#,
        r#"{"attestation": ["x"]}"#,
        r#"{"attestation": {}}"#,
        r#"{"attestation": true}"#,
        r#"{"jws": "x"}"#,
        r#"{"attestation": "x", "unmistakable": 1}"#,
        r#"{"attestation": "x", "attestation": "x"}"#,
        r#"{"Attestation": "x"}"#,
        r#"{"attestation": "\ud800"}"#,
    ] {
        cases.push(Case::post(body, verify, body, 422));
    }
    for body in ["", "{", MARK, r#"{"attestation": "x"} y"#, "a.b.c"] {
        cases.push(Case::post(body, verify, body, 400));
    }
    cases.push(Case::bare("GET", verify, 405, "method-not-allowed"));
    let mut untyped = Case::post("no content type", verify, r#"{"attestation": "x"}"#, 415);
    untyped.headers.clear();
    untyped.name = "unsupported-media-type";
    cases.push(untyped);
    all_refused(&daemon, &bank, cases).await;
}
