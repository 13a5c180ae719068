//! What comes to a transaction in its final state changes nothing, and is told so.

use serde_json::{Value, json};

use crate::bank::{credential, credentials, done, failed, refused, without_request_id};
use crate::client::{Connection, Response};
use crate::daemon::{Daemon, text};
use crate::ocra::wrong;
use crate::transactions::{Holder, NOW, PLAIN, attestation, cancel, id, order, path, respond, transaction};

/// One in each final state that a code can bring about, with the status of what comes too late.
async fn ended(daemon: &Daemon, bank: &Connection, holder: &Holder) -> Vec<(Value, u16)> {
    let approved = holder.approved(bank, &order(&holder.credential)).await;
    let failing = holder.asked(bank).await;
    for left in [2, 1, 0] {
        assert_eq!(failed(&respond(bank, &id(&failing), &wrong(&holder.code(&failing))).await), left);
    }
    let cancelled = done(&cancel(bank, &id(&holder.asked(bank).await)).await);
    let expired = holder.asked(bank).await;
    daemon.set_clock(NOW + 300);
    let mut all = Vec::new();
    for (view, state, status) in [
        (&approved, "approved", 409),
        (&failing, "failed", 409),
        (&cancelled, "cancelled", 409),
        (&expired, "expired", 410),
    ] {
        let view = transaction(bank, &id(view)).await;
        assert_eq!(view["state"], state);
        all.push((view, status));
    }
    all
}

fn too_late(answer: &Response, status: u16) {
    let name = if status == 410 { "expired" } else { "state-conflict" };
    refused(answer, status, name);
}

async fn keyed(bank: &Connection, key: &str, path: &str, body: &str) -> Response {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    bank.request("POST", path, &headers, body.to_owned()).await.unwrap()
}

// Stopping waits for the client's end of its connection, which needs a thread of its own.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_final_stays() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    let all = ended(&daemon, &bank, &holder).await;
    let before = credentials(&bank).await;
    for round in 0..3 {
        let bank = daemon.connect("bank-a").await;
        for (view, status) in &all {
            let id = id(view);
            for otp in [holder.code(view), wrong(&holder.code(view)), "123456".to_owned()] {
                too_late(&respond(&bank, &id, &otp).await, *status);
            }
            too_late(&cancel(&bank, &id).await, *status);
            assert_eq!(transaction(&bank, &id).await, *view);
            for of in ["attestation", "qr"] {
                let answer = bank.get(&path(&id, of)).await.unwrap();
                match view["state"].as_str() {
                    Some("approved") => assert_eq!(answer.status, 200, "{}", text(&answer)),
                    _ => too_late(&answer, *status),
                }
            }
        }
        assert_eq!(credentials(&bank).await, before, "nothing is charged");
        match round {
            0 => {
                daemon.kill();
                daemon.resume();
            }
            1 => {
                assert!(daemon.stop().success());
                daemon.set_clock(NOW + 10 * 86_400);
                daemon.resume();
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn what_came_too_late_is_remembered_by_its_key() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    let all = ended(&daemon, &bank, &holder).await;
    let mut first = Vec::new();
    for round in 0..3 {
        let bank = daemon.connect("bank-a").await;
        for (number, (view, status)) in all.iter().enumerate() {
            let otp = json!({ "otp": holder.code(view) }).to_string();
            for (action, body) in [("responses", &*otp), ("cancel", "")] {
                let (key, path) = (format!("{action}-{number}"), path(&id(view), action));
                let answer = keyed(&bank, &key, &path, body).await;
                too_late(&answer, *status);
                match round {
                    0 => first.push(without_request_id(&answer)),
                    _ => assert_eq!(
                        without_request_id(&answer),
                        first[number * 2 + usize::from(action == "cancel")]
                    ),
                }
                // Another request under the key is another one.
                let other = json!({ "otp": "00000000" }).to_string();
                let other = if action == "cancel" { "{}" } else { &other };
                refused(&keyed(&bank, &key, &path, other).await, 422, "idempotency-mismatch");
                assert_eq!(transaction(&bank, &id(view)).await, *view);
            }
        }
        if round == 0 {
            daemon.kill();
            daemon.resume();
        }
    }
    assert_eq!(credential(&bank_of(&daemon).await, &holder.credential).await["failures"], 3);
}

async fn bank_of(daemon: &Daemon) -> Connection {
    daemon.connect("bank-a").await
}

#[tokio::test]
async fn what_waits_is_taken_back_once() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    for (body, misses) in [("", 0), ("{}", 1), (" { } ", 2)] {
        let mut view = holder.asked(&bank).await;
        let id = id(&view);
        for left in (3 - misses..3).rev() {
            assert_eq!(failed(&respond(&bank, &id, &wrong(&holder.code(&view))).await), left);
        }
        let headers = [("content-type", "application/json")];
        let headers = if body.is_empty() { &[][..] } else { &headers[..] };
        let answer = bank.request("POST", &path(&id, "cancel"), headers, body).await.unwrap();
        view["state"] = json!("cancelled");
        view["ended_at"] = json!("2027-01-15T08:00:00Z");
        view["attempts_remaining"] = json!(3 - misses);
        assert_eq!(done(&answer), view);
        assert_eq!(transaction(&bank, &id).await, view);
        refused(&cancel(&bank, &id).await, 409, "state-conflict");
        refused(&respond(&bank, &id, &holder.code(&view)).await, 409, "state-conflict");
        // What was charged before stays charged.
        let failures = credential(&bank, &holder.credential).await["failures"].as_u64().unwrap();
        assert_eq!(failures, misses);
        // And it is given back by the next right code.
        let next = holder.approved(&bank, &order(&holder.credential)).await;
        attestation(&bank, &crate::transactions::id(&next)).await;
    }
}
