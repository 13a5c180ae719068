//! Presented codes (seed C): a payer shows a code, a merchant claims it, and the payer's device decides.

use hsm_authd::domain::time::rfc3339;
use serde_json::{Value, json};

use crate::bank::{act, credential, delete, done, failed, refused};
use crate::client::Connection;
use crate::daemon::{Daemon, enrol_hotp, rfc_code, text, verify};
use crate::device_pki::Kind;
use crate::presenting::{Payer, Presented, claimed, decided, garbage, jws, order, to_decide};
use crate::security_devices::{es256, es256_jws, p1363_of, rs256, rs256_jws, signed};
use crate::transactions::NOW;
use crate::transactions_client::{at, respond, view};

const HEADER: &str = r#"{"alg":"ES256"}"#;

/// No merchant learns these before the payer approves.
fn says_nothing_of(payer: &Payer, presented: &Presented, answer: &str) {
    for secret in [&payer.account, &payer.id, &presented.id, &presented.code] {
        assert!(!answer.contains(secret.as_str()), "{secret} in {answer}");
    }
}

#[tokio::test]
async fn a_payer_decides_on_what_a_merchant_asks_for_and_both_read_the_result() {
    let daemon = Daemon::start_at(NOW);
    let (bank, merchant) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::enrol(&bank, "bank-a", "acct-payer-1").await;
    let presented = payer.present(&bank, NOW).await;
    assert_eq!(presented.expires_at, rfc3339((NOW + 60) * 1_000));
    let mut expected = json!({ "id": presented.id, "account": payer.account, "credential": payer.id, "state": "open",
        "expires_at": presented.expires_at });
    assert_eq!(presented.now(&bank).await, expected);

    let transaction = claimed(&merchant, &presented.code).await;
    assert_eq!((&transaction["state"], &transaction["attempts_remaining"]), (&json!("pending"), &json!(3)));
    assert_eq!(transaction["method"], "presented_code");
    says_nothing_of(&payer, &presented, &transaction.to_string());
    let listed = text(&merchant.get("/v1/transactions").await.unwrap());
    says_nothing_of(&payer, &presented, &listed);
    let display = json!({ "payee": "Corner Shop", "amount": "9.90", "currency": "EUR", "order": "till 3" });
    assert_eq!(
        transaction["challenge"],
        json!({ "signing_input": transaction["signing_input"], "display": display })
    );

    expected["state"] = json!("claimed");
    expected["transaction"] = transaction["id"].clone();
    expected["transaction_state"] = json!("pending");
    expected["signing_input"] = transaction["signing_input"].clone();
    expected["display"] = display;
    assert_eq!(presented.now(&bank).await, expected);

    let mut approved = done(&respond(&bank, &transaction, &payer.decides("approve", &transaction)).await);
    let attestation = approved.as_object_mut().unwrap().remove("attestation").unwrap();
    assert_eq!((&approved["state"], &approved["account"]), (&json!("approved"), &json!(payer.account)));
    assert_eq!(approved["credential"], json!(payer.id));
    assert_eq!(approved["digest"], transaction["digest"]);
    assert_eq!(view(&merchant, &transaction).await, approved);
    expected["transaction_state"] = json!("approved");
    assert_eq!(presented.now(&bank).await, expected);
    let claims = done(
        &merchant.post("/v1/attestations/verify", &json!({ "attestation": attestation })).await.unwrap(),
    );
    assert_eq!(
        (&claims["jti"], &claims["account"], &claims["method"], &claims["digest"]),
        (&transaction["id"], &json!(payer.account), &json!("presented_code"), &transaction["digest"])
    );
    assert_eq!(claims["transaction"].get("payer"), None);
}

/// ES256 and RS256, each in its forms.
async fn payers(bank: &Connection) -> Vec<(Payer, fn(&Payer, &[u8]) -> Value)> {
    let rsa = Payer::with(bank, "bank-a", "acct-rsa", rs256(Kind::Rsa2048, "payer"), json!({})).await;
    let ec = Payer::with(bank, "bank-a", "acct-ec", es256("payer"), json!({})).await;
    vec![
        (ec.clone(), |payer, bytes| signed("der", &payer.key.sign(bytes))),
        (ec.clone(), |payer, bytes| signed("p1363", &p1363_of(&payer.key.sign(bytes)))),
        (ec, |payer, bytes| jws(&es256_jws(&payer.key, HEADER, bytes))),
        (rsa.clone(), |payer, bytes| signed("raw", &payer.key.sign(bytes))),
        (rsa, |payer, bytes| jws(&rs256_jws(&payer.key, r#"{"alg":"RS256"}"#, bytes))),
    ]
}

#[tokio::test]
async fn requests_and_decisions_come_in_every_form_that_a_signer_has() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    for (second, (payer, sign)) in (NOW..).step_by(20).zip(payers(&bank).await) {
        daemon.set_clock(second);
        for (late, decision) in [(0, "approve"), (10, "decline")] {
            let issued_at = rfc3339((second + late) * 1_000);
            let mut body = sign(&payer, &payer.request(&issued_at));
            (body["account"], body["credential"]) = (json!(payer.account), json!(payer.id));
            body["issued_at"] = json!(issued_at);
            let answer = bank.post("/v1/presentations", &body).await.unwrap();
            assert_eq!(answer.status, 201, "{}", text(&answer));
            let presented = Presented::of(&answer.json().unwrap());
            let transaction = claimed(&bank, &presented.code).await;
            let proof = sign(&payer, &to_decide("bank-a", decision, &transaction));
            let answer = done(&respond(&bank, &transaction, &decided(decision, proof)).await);
            let state = if decision == "approve" { "approved" } else { "rejected" };
            assert_eq!(answer["state"], state, "{}", body["format"]);
            assert_eq!(answer.get("attestation").is_some(), decision == "approve");
        }
    }
}

#[tokio::test]
async fn a_decline_is_final_and_both_read_it() {
    let daemon = Daemon::start_at(NOW);
    let (bank, merchant) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::enrol(&bank, "bank-a", "acct-payer-1").await;
    let presented = payer.present(&bank, NOW).await;
    let transaction = claimed(&merchant, &presented.code).await;
    let (yes, no) = (payer.decides("approve", &transaction), payer.decides("decline", &transaction));
    let rejected = done(&respond(&bank, &transaction, &no).await);
    let mut expected = transaction.clone();
    (expected["state"], expected["ended_at"]) = (json!("rejected"), json!(rfc3339(NOW * 1_000)));
    assert_eq!(rejected, expected);
    says_nothing_of(&payer, &presented, &rejected.to_string());
    for response in [&yes, &no, &decided("approve", garbage())] {
        refused(&respond(&bank, &transaction, response).await, 409, "state-conflict");
    }
    let cancelled = merchant.request("POST", &at(&transaction, "cancel"), &[], "").await.unwrap();
    refused(&cancelled, 409, "state-conflict");
    for of in ["attestation", "qr"] {
        refused(&merchant.get(&at(&transaction, of)).await.unwrap(), 409, "state-conflict");
    }
    assert_eq!(view(&merchant, &transaction).await, expected);
    assert_eq!(presented.now(&bank).await["transaction_state"], "rejected");
    let kept = crate::transactions_client::kept_attestations(&daemon, &[&transaction]);
    assert!(kept[0].is_empty(), "it was attested");
    assert_eq!(credential(&bank, &payer.id).await["failures"], 0);
}

#[tokio::test]
async fn nothing_but_the_devices_signature_of_this_decision_decides() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let payer = Payer::enrol(&bank, "bank-a", "acct-1").await;
    let other = Payer::enrol(&bank, "bank-a", "acct-2").await;
    let token = enrol_hotp(&bank, "acct-1").await;
    let of_another = claimed(&bank, &payer.present(&bank, NOW).await.code).await;
    let mut second = NOW;
    for decision in ["approve", "decline"] {
        let opposite = if decision == "approve" { "decline" } else { "approve" };
        let wrong = |transaction: &Value| -> Vec<(&str, Value)> {
            let sign = |payer: &Payer, bytes: &[u8]| signed("der", &payer.key.sign(bytes));
            let right = to_decide("bank-a", decision, transaction);
            let more = |field: &str, value: &str| {
                let mut changed = transaction.clone();
                changed[field] = json!(value);
                sign(&payer, &to_decide("bank-a", decision, &changed))
            };
            vec![
                ("another device", sign(&other, &right)),
                ("the opposite", sign(&payer, &to_decide("bank-a", opposite, transaction))),
                ("the opposite as a JWS", {
                    jws(&es256_jws(&payer.key, HEADER, &to_decide("bank-a", opposite, transaction)))
                }),
                ("another transaction", sign(&payer, &to_decide("bank-a", decision, &of_another))),
                ("another tenant", sign(&payer, &to_decide("bank-b", decision, transaction))),
                ("another amount", more("amount", "99.00")),
                ("another payee", more("payee", "Corner Shor")),
                ("a request for a code", sign(&payer, &payer.request(&rfc3339(NOW * 1_000)))),
                ("its digest", sign(&payer, transaction["digest"].as_str().unwrap().as_bytes())),
                ("nothing signed", garbage()),
                ("a JWS of another algorithm", jws(&es256_jws(&payer.key, r#"{"alg":"RS256"}"#, &right))),
                ("no JWS", jws("a.b.c")),
            ]
        };
        let count = wrong(&of_another).len();
        for number in 0..count {
            second += 1;
            daemon.set_clock(second);
            let transaction = claimed(&bank, &payer.present(&bank, second).await.code).await;
            let (what, proof) = wrong(&transaction).swap_remove(number);
            let response = decided(decision, proof);
            for left in [2, 1] {
                let answer = respond(&bank, &transaction, &response).await;
                assert_eq!(failed(&answer), left, "{decision}: {what}");
            }
            if number % 2 == 0 {
                let right = payer.decides(decision, &transaction);
                done(&respond(&bank, &transaction, &right).await);
                continue;
            }
            assert_eq!(failed(&respond(&bank, &transaction, &response).await), 0, "{what}");
            let right = payer.decides(decision, &transaction);
            refused(&respond(&bank, &transaction, &right).await, 409, "state-conflict");
            assert_eq!(view(&bank, &transaction).await["state"], "failed", "{what}");
        }
    }
    // Nothing of all that was charged to anybody.
    assert_eq!(credential(&bank, &payer.id).await["failures"], 0);
    done(&verify(&bank, &token, &rfc_code(0)).await);
    assert_eq!(failed(&verify(&bank, &token, &rfc_code(5_000)).await), 4);
    done(&respond(&bank, &of_another, &payer.decides("approve", &of_another)).await);
}

#[tokio::test]
async fn another_form_is_invalid_and_costs_nothing() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let payer = Payer::enrol(&bank, "bank-a", "acct-1").await;
    let transaction = claimed(&bank, &payer.present(&bank, NOW).await.code).await;
    let right = payer.decides("approve", &transaction);
    let with = |name: &str, value: Value| {
        let mut body = right.clone();
        body[name] = value;
        body
    };
    let without = |name: &str| {
        let mut body = right.clone();
        body.as_object_mut().unwrap().remove(name);
        body
    };
    for (body, field) in [
        (without("decision"), json!("decision")),
        (json!({ "otp": "123456" }), json!("decision")),
        (with("decision", json!("maybe")), json!("decision")),
        (with("decision", json!("Approve")), json!("decision")),
        (with("decision", Value::Null), Value::Null),
        (with("otp", json!("123456")), Value::Null),
        (without("format"), json!("format")),
        (without("signature"), json!("signature")),
        (json!({ "decision": "approve" }), json!("format")),
        (with("format", json!("raw")), json!("format")),
        (with("format", json!("webauthn")), json!("authenticator_data")),
        (with("signature", json!("AA==")), json!("signature")),
    ] {
        let answer = refused(&respond(&bank, &transaction, &body).await, 422, "invalid");
        assert_eq!(answer.get("field").unwrap_or(&Value::Null), &field, "{body}");
    }
    assert_eq!(view(&bank, &transaction).await, transaction);
    done(&respond(&bank, &transaction, &right).await);

    // Nor does a decision belong to another method.
    let device = crate::security_devices::Pending::of(&bank, &payer.id).await;
    let right = signed("der", &payer.key.sign(&device.signing_input()));
    let answer = device.respond(&bank, &decided("approve", right.clone())).await;
    assert_eq!(refused(&answer, 422, "invalid")["field"], "decision");
    device.approved_by(&bank, &right).await;
}

#[tokio::test]
async fn a_device_that_is_suspended_or_gone_decides_nothing() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    for (number, action) in ["suspend", "delete"].into_iter().enumerate() {
        let second = NOW + number as u64;
        daemon.set_clock(second);
        let payer = Payer::enrol(&bank, "bank-a", action).await;
        let transaction = claimed(&bank, &payer.present(&bank, second).await.code).await;
        daemon.set_clock(second + 1);
        let open = payer.present(&bank, second + 1).await;
        match action {
            "suspend" => done(&act(&bank, &payer.id, "suspend").await),
            _ => done(&delete(&bank, &payer.id).await),
        };
        for decision in ["approve", "decline"] {
            let response = payer.decides(decision, &transaction);
            refused(&respond(&bank, &transaction, &response).await, 409, "state-conflict");
        }
        assert_eq!(view(&bank, &transaction).await["state"], "pending");
        // Nor is a code of its claimed.
        let answer = bank.post("/v1/transactions", &order(&open.code)).await.unwrap();
        refused(&answer, 409, "state-conflict");
        assert_eq!(open.now(&bank).await["state"], "open");
        if action == "suspend" {
            done(&act(&bank, &payer.id, "resume").await);
            done(&respond(&bank, &transaction, &payer.decides("approve", &transaction)).await);
            claimed(&bank, &open.code).await;
        } else {
            let answer = bank.post("/v1/presentations", &payer.body(second + 2)).await.unwrap();
            refused(&answer, 404, "not-found");
        }
    }
}
