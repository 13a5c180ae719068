//! Transactions that a security device approves (seed D): every form of a right signature, what is shown and
//! signed, and what costs nothing.

use std::fs;

use serde_json::{Value, json};

use crate::bank::{act, credential, delete, done, failed, locked, refused};
use crate::client::{Connection, Http};
use crate::daemon::{Daemon, enrol, enrol_hotp, rfc_code, verify};
use crate::device_pki::Kind;
use crate::ocra_token::{OcraToken, question};
use crate::refusals::{Case, all_refused};
use crate::security_devices::{
    Pending, base64url, enrol_device, es256, es256_forms, es256_jws, order, p1363_of, rs256, rs256_jws,
    sha256, signed,
};
use crate::served::{Served, configuration};
use crate::transactions::signing_input;
use crate::webauthn::Authenticator;

const QUESTIONED: &str = "OCRA-1:HOTP-SHA256-8:QA10";

/// Enrols an OCRA token that answers transactions.
async fn enrol_ocra(bank: &Connection, account: &str) -> (String, OcraToken) {
    let token = OcraToken::new(QUESTIONED);
    let mut body = token.enrolment(account);
    body["use"] = json!("transaction");
    (enrol(bank, &body).await, token)
}

#[tokio::test]
async fn every_form_of_a_right_signature_approves() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let device = es256("device");
    let id = enrol_device(&bank, &device, "acct-1").await;
    for form in 0..3 {
        let pending = Pending::of(&bank, &id).await;
        let response = es256_forms(&device, &pending.signing_input())[form].clone();
        let approved = pending.approved_by(&bank, &response).await;
        assert_eq!(approved["attempts_remaining"], 1);
        assert!(approved.get("authenticator").is_none());
        refused(&pending.respond(&bank, &response).await, 409, "state-conflict");
    }
    // What a JOSE library puts into a header besides, and an s in the other half of the order.
    let pending = Pending::of(&bank, &id).await;
    let header = format!(r#"{{"typ":"JOSE","kid":"k","alg":"ES256","x5u":"{}"}}"#, daemon.url());
    let jws = es256_jws(&device, &header, &pending.signing_input());
    pending.approved_by(&bank, &json!({ "format": "jws", "signature": jws })).await;
    let pending = Pending::of(&bank, &id).await;
    let right = p256::ecdsa::Signature::from_der(&device.sign(&pending.signing_input())).unwrap();
    let mirrored =
        p256::ecdsa::Signature::from_scalars(right.r().to_bytes(), (-*right.s()).to_bytes()).unwrap();
    pending.approved_by(&bank, &signed("der", mirrored.to_der().as_bytes())).await;

    for (kind, bytes) in [(Kind::Rsa2048, 256), (Kind::Rsa3072, 384), (Kind::Rsa4096, 512)] {
        let device = rs256(kind, "device");
        let id = enrol_device(&bank, &device, "acct-1").await;
        let pending = Pending::of(&bank, &id).await;
        let signature = device.sign(&pending.signing_input());
        assert_eq!(signature.len(), bytes);
        pending.approved_by(&bank, &signed("raw", &signature)).await;
        let pending = Pending::of(&bank, &id).await;
        let jws = rs256_jws(&device, r#"{"alg":"RS256"}"#, &pending.signing_input());
        pending.approved_by(&bank, &json!({ "format": "jws", "signature": jws })).await;
    }
}

#[tokio::test]
async fn a_dynamic_password_signature_approves() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let (id, token) = enrol_ocra(&bank, "acct-1").await;
    for round in 0..2 {
        let pending = Pending::of(&bank, &id).await;
        let digest = pending.digest();
        let mut asked = data_encoding::BASE32_NOPAD.encode(&[digest, sha256(&digest)].concat());
        asked.truncate(10);
        assert_eq!(pending.view["challenge"], json!({ "suite": QUESTIONED, "question": asked }));
        assert_eq!(pending.view["method"], "device_signature");
        let right = json!({ "otp": token.code(question(&asked)) });
        if round == 0 {
            pending.approved_by(&bank, &right).await;
        } else {
            let wrong = json!({ "otp": token.code(question("ANOTHER")) });
            pending.failed_by(&bank, "another question's code", &wrong, &right).await;
        }
    }
    assert_eq!(credential(&bank, &id).await["failures"], 1, "a code can be guessed");
}

#[tokio::test]
async fn the_device_shows_and_signs_what_the_server_keeps() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_device(&bank, &es256("device"), "acct-1").await;
    let mut full = order(&id);
    full["platform"] = json!("Mercado \u{20ac}");
    full["remark"] = json!("two copies");
    full["payer"] = json!("acct-1");
    for body in [order(&id), full] {
        let pending = Pending::ordered(&bank, &body).await;
        assert_eq!(pending.signing_input(), signing_input("bank-a", &pending.view));
        assert_eq!(sha256(&pending.signing_input()), pending.digest());
        let display = json!({ "payer": "acct-1", "payee": body["payee"], "order": body["order"],
            "amount": "1250.00", "currency": "EUR" });
        let expected = json!({ "signing_input": pending.view["signing_input"], "display": display });
        assert_eq!(pending.view["challenge"], expected);
        assert_eq!(pending.now(&bank).await, pending.view);
        for name in ["platform", "remark"] {
            assert_eq!(pending.view.get(name), body.get(name));
        }
    }
}

#[tokio::test]
async fn neither_locks_stop_a_signature_nor_is_one_charged() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let device = es256("device");
    let id = enrol_device(&bank, &device, "acct-1").await;
    let token = enrol_hotp(&bank, "acct-1").await;
    let wrong = |pending: &Pending| signed("der", &es256("another").sign(&pending.signing_input()));
    let right = |pending: &Pending| signed("der", &device.sign(&pending.signing_input()));
    let before = credential(&bank, &id).await;
    for _ in 0..6 {
        let pending = Pending::of(&bank, &id).await;
        pending.failed_by(&bank, "another key", &wrong(&pending), &right(&pending)).await;
    }
    assert_eq!(credential(&bank, &id).await, before);
    for left in (0..5).rev() {
        assert_eq!(
            failed(&verify(&bank, &token, &rfc_code(5_000)).await),
            left,
            "the account was not charged"
        );
    }
    locked(&verify(&bank, &token, &rfc_code(0)).await);
    let pending = Pending::of(&bank, &id).await;
    pending.failed_by(&bank, "another key", &wrong(&pending), &right(&pending)).await;
    let pending = Pending::of(&bank, &id).await;
    pending.approved_by(&bank, &right(&pending)).await;
    locked(&verify(&bank, &token, &rfc_code(0)).await);
}

#[tokio::test]
async fn a_configuration_can_allow_more_attempts() {
    let mut daemon = Daemon::start();
    daemon.kill();
    let config = configuration(&daemon, "three.toml", |table| {
        table.insert("transactions".into(), toml::toml! { signature_attempts = 3 }.into());
    });
    let served = Served::start(&config);
    let bank = Connection::open(&served.url, &daemon.identity("bank-a"), Http::Two).await.unwrap();
    let device = es256("device");
    let id = enrol_device(&bank, &device, "acct-1").await;
    let missed = async |pending: &Pending, left: u64| {
        let answer = pending.respond(&bank, &signed("der", &device.sign(b"another"))).await;
        assert_eq!(failed(&answer), left);
        let now = pending.now(&bank).await;
        assert_eq!((&now["state"], &now["attempts_remaining"]), (&json!("pending"), &json!(left)));
    };
    let right = |pending: &Pending| signed("der", &device.sign(&pending.signing_input()));
    let pending = Pending::of(&bank, &id).await;
    assert_eq!(pending.view["attempts_remaining"], 3);
    missed(&pending, 2).await;
    missed(&pending, 1).await;
    assert_eq!(pending.approved_by(&bank, &right(&pending)).await["attempts_remaining"], 1);

    let pending = Pending::of(&bank, &id).await;
    missed(&pending, 2).await;
    missed(&pending, 1).await;
    let wrong = signed("der", &device.sign(b"another"));
    pending.failed_by(&bank, "the third", &wrong, &right(&pending)).await;
}

#[tokio::test]
async fn another_form_is_invalid_and_costs_nothing() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let device = es256("device");
    let rsa_device = rs256(Kind::Rsa2048, "device");
    let mut authenticator = Authenticator::new("authenticator");
    let (ocra, token) = enrol_ocra(&bank, "acct-1").await;
    let ids = [
        enrol_device(&bank, &device, "acct-1").await,
        enrol_device(&bank, &rsa_device, "acct-1").await,
        authenticator.enrol(&bank, "acct-1").await,
        ocra,
    ];
    let [es, rsa, asserted, asked] = [
        Pending::of(&bank, &ids[0]).await,
        Pending::of(&bank, &ids[1]).await,
        Pending::of(&bank, &ids[2]).await,
        Pending::of(&bank, &ids[3]).await,
    ];
    let der = signed("der", &device.sign(&es.signing_input()));
    let p1363 = signed("p1363", &p1363_of(&device.sign(&es.signing_input())));
    let raw = signed("raw", &rsa_device.sign(&rsa.signing_input()));
    let assertion = authenticator.response(&asserted);
    let asked_text = asked.view["challenge"]["question"].as_str().unwrap();
    let otp = json!({ "otp": token.code(question(asked_text)) });

    let mut cases = Vec::new();
    let mut add = |what: &str, pending: &Pending, body: Value, field: &'static str| {
        let path = pending.path("/responses");
        let case = Case::post(what, &path, body.to_string(), 422);
        cases.push(if field.is_empty() { case } else { case.about(field) });
    };
    let with = |body: &Value, name: &str, value: Value| {
        let mut body = body.clone();
        body[name] = value;
        body
    };
    let without = |body: &Value, name: &str| {
        let mut body = body.clone();
        body.as_object_mut().unwrap().remove(name);
        body
    };
    add("raw for ES256", &es, with(&der, "format", json!("raw")), "format");
    for format in ["der", "p1363"] {
        add("ECDSA for RS256", &rsa, with(&raw, "format", json!(format)), "format");
    }
    for format in ["der", "p1363", "raw", "jws"] {
        add("no assertion by an authenticator", &asserted, signed(format, &[1; 70]), "format");
    }
    for pending in [&es, &rsa] {
        add("an assertion by a signer", pending, assertion.clone(), "format");
    }
    for pending in [&es, &rsa, &asserted] {
        add("a code for a signature", pending, json!({ "otp": "123456" }), "otp");
    }
    for body in [&der, &p1363, &raw, &assertion, &json!({ "format": "jws", "signature": "a.b.c" })] {
        add("a signature for a code", &asked, body.clone(), "otp");
    }
    add("too short a code", &asked, json!({ "otp": "1234567" }), "otp");
    add("no code", &asked, json!({ "otp": "12345678x" }), "otp");
    for (pending, body) in [(&es, &der), (&es, &p1363), (&rsa, &raw), (&asserted, &assertion)] {
        add("nothing", pending, json!({}), "otp");
        add("no format", pending, without(body, "format"), "format");
        add("no signature", pending, without(body, "signature"), "signature");
        add("both", pending, with(body, "otp", json!("12345678")), "");
        for format in ["", "DER", "es256", "webauthn ", "none"] {
            add("no such format", pending, with(body, "format", json!(format)), "");
        }
    }
    for text in ["", "=", "AA==", "AAA=", "A", "AB", "+/+/", "-_+_", " AAAA", "AAAA\n", "AA AA", "\u{e9}AAA"]
    {
        for (pending, body) in [(&es, &der), (&es, &p1363), (&rsa, &raw)] {
            add(&format!("{text:?}"), pending, with(body, "signature", json!(text)), "signature");
        }
        for field in ["signature", "authenticator_data", "client_data_json"] {
            add(&format!("{field} {text:?}"), &asserted, with(&assertion, field, json!(text)), field);
        }
    }
    for text in [
        "",
        "e30.e30.AA==",
        "e30.e30.A+",
        "e30.e30. ",
        "e30.e30.AA\n",
        r#"{"payload":"e30"}"#,
        "\u{e9}.e30.e30",
    ] {
        for pending in [&es, &rsa] {
            let body = json!({ "format": "jws", "signature": text });
            add(&format!("jws {text:?}"), pending, body, "signature");
        }
    }
    for field in ["authenticator_data", "client_data_json"] {
        add("half an assertion", &asserted, without(&assertion, field), field);
        for (pending, body) in [(&es, &der), (&rsa, &raw)] {
            add("of an assertion", pending, with(body, field, json!("AAAA")), "");
        }
        add("of an assertion", &asked, with(&otp, field, json!("AAAA")), "");
    }
    for (pending, body) in [(&es, &der), (&rsa, &raw), (&asserted, &assertion), (&asked, &otp)] {
        for (name, value) in [("unknown", json!(1)), ("format", Value::Null), ("signature", json!([1]))] {
            add("another member", pending, with(body, name, value), "");
        }
        add("an array", pending, json!([body]), "");
    }
    for (pending, body) in [(&es, &der), (&rsa, &raw), (&asserted, &assertion), (&asked, &otp)] {
        let (name, value) = body.as_object().unwrap().iter().next().unwrap();
        let twice = format!("{{{}:{value},{}", json!(name), &body.to_string()[1..]);
        cases.push(Case::post("a member twice", &pending.path("/responses"), twice, 422));
    }
    all_refused(&daemon, &bank, cases).await;

    for (pending, body) in [(&es, der), (&rsa, raw), (&asserted, assertion), (&asked, otp)] {
        assert_eq!(pending.now(&bank).await, pending.view);
        pending.approved_by(&bank, &body).await;
    }
}

#[tokio::test]
async fn a_device_that_is_suspended_or_gone_approves_nothing() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let device = es256("device");
    let mut authenticator = Authenticator::new("authenticator");
    let (ocra, token) = enrol_ocra(&bank, "acct-1").await;
    for id in [enrol_device(&bank, &device, "acct-1").await, authenticator.enrol(&bank, "acct-1").await, ocra]
    {
        let pending = Pending::of(&bank, &id).await;
        let response = match pending.view["challenge"].get("question") {
            Some(asked) => json!({ "otp": token.code(question(asked.as_str().unwrap())) }),
            None if id == authenticator.id => authenticator.response(&pending),
            None => signed("der", &device.sign(&pending.signing_input())),
        };
        done(&act(&bank, &id, "suspend").await);
        refused(&pending.respond(&bank, &response).await, 409, "state-conflict");
        refused(&bank.post("/v1/transactions", &order(&id)).await.unwrap(), 409, "state-conflict");
        assert_eq!(pending.now(&bank).await["state"], "pending");
        done(&act(&bank, &id, "resume").await);
        pending.approved_by(&bank, &response).await;

        let pending = Pending::of(&bank, &id).await;
        done(&delete(&bank, &id).await);
        refused(&pending.respond(&bank, &response).await, 409, "state-conflict");
        refused(&bank.post("/v1/transactions", &order(&id)).await.unwrap(), 404, "not-found");
        assert_eq!(pending.now(&bank).await["state"], "pending", "its initiator may still take it back");
        let cancelled = bank.request("POST", &pending.path("/cancel"), &[], "").await.unwrap();
        assert_eq!(done(&cancelled)["state"], "cancelled");
    }
}

#[tokio::test]
async fn signatures_are_nowhere_in_the_log() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let device = es256("device");
    let id = enrol_device(&bank, &device, "acct-1").await;
    let pending = Pending::of(&bank, &id).await;
    let signature = device.sign(&pending.signing_input());
    pending.approved_by(&bank, &signed("der", &signature)).await;
    let log = fs::read_to_string(daemon.dir().with_file_name("log")).unwrap();
    for secret in [base64url(&signature), pending.view["signing_input"].as_str().unwrap().to_owned()] {
        assert!(!log.contains(&secret));
    }
}
