//! Time: when a transaction is over, by which clock, and how long it is kept.

use rusqlite::{Connection as Database, OpenFlags};
use serde_json::{Value, json};

use crate::bank::{credential, done, failed, refused};
use crate::client::{Connection, Response};
use crate::clock::recorded;
use crate::daemon::{Daemon, text};
use crate::ocra::wrong;
use crate::pruning::{pruned, rows, sum};
use crate::token::TestToken;
use crate::transactions::{
    Holder, NOW, PLAIN, attestation, cancel, create, created, id, order, order_with, path, respond,
    transaction,
};

const DAY: u64 = 86_400;
const ACCEPT: &str = "--accept-clock";

fn unknown(answer: &Response) {
    assert_eq!(refused(answer, 503, "unavailable")["retry_after"], 60);
}

/// How many rows a table has, and how many of its transactions are in this state.
fn stored(daemon: &Daemon, sql: &str) -> i64 {
    let database = Database::open_with_flags(daemon.database(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    database.query_row(sql, [], |row| row.get(0)).unwrap()
}

async fn verified(bank: &Connection, jws: &str) -> Response {
    bank.post("/v1/attestations/verify", &json!({ "attestation": jws })).await.unwrap()
}

#[tokio::test]
async fn its_last_second_is_the_one_before_expires_at() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    for lifetime_s in [1, 2, 300, 3_600] {
        for late in [false, true] {
            daemon.set_clock(NOW);
            let body = order_with(&holder.credential, json!({ "expires_in": lifetime_s }));
            let first = created(&bank, &body).await;
            let second = created(&bank, &body).await;
            daemon.set_clock(NOW + lifetime_s - u64::from(!late));
            let code = holder.code(&first);
            let answer = respond(&bank, &id(&first), &code).await;
            if !late {
                assert_eq!(done(&answer)["state"], "approved", "{lifetime_s}");
                assert_eq!(done(&cancel(&bank, &id(&second)).await)["state"], "cancelled");
                continue;
            }
            refused(&answer, 410, "expired");
            refused(&cancel(&bank, &id(&second)).await, 410, "expired");
            for view in [&first, &second] {
                let mut expired = view.clone();
                expired["state"] = json!("expired");
                expired["ended_at"] = expired["expires_at"].clone();
                assert_eq!(transaction(&bank, &id(view)).await, expired);
                for of in ["attestation", "qr"] {
                    refused(&bank.get(&path(&id(view), of)).await.unwrap(), 410, "expired");
                }
                // Once seen expired, it is that for ever, whatever the clock shows then.
                daemon.set_clock(NOW + 1);
                refused(&respond(&bank, &id(view), &holder.code(view)).await, 410, "expired");
                daemon.set_clock(NOW + lifetime_s);
            }
        }
    }
    assert_eq!(credential(&bank, &holder.credential).await["failures"], 0);
}

#[tokio::test]
async fn either_clock_ends_it() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    // The wall clock goes back by less than counts as a step, the time since boot goes on.
    let view = created(&bank, &order_with(&holder.credential, json!({ "expires_in": 10 }))).await;
    daemon.set_clock(NOW + 10);
    daemon.step_clock(NOW + 6);
    refused(&respond(&bank, &id(&view), &holder.code(&view)).await, 410, "expired");
    // It goes forward by as little, and the time since boot has not come so far.
    daemon.set_clock(NOW);
    let view = created(&bank, &order_with(&holder.credential, json!({ "expires_in": 4 }))).await;
    daemon.step_clock(NOW + 4);
    refused(&respond(&bank, &id(&view), &holder.code(&view)).await, 410, "expired");

    // Set back by an hour while nothing ran, and accepted: the time since boot still counts.
    daemon.set_clock(NOW + 1_000);
    let view = holder.asked(&bank).await;
    daemon.kill();
    daemon.set_clock(NOW + 1_300);
    daemon.step_clock(NOW - 3_600);
    daemon.resume_with(&[ACCEPT]);
    let bank = daemon.connect("bank-a").await;
    refused(&respond(&bank, &id(&view), &holder.code(&view)).await, 410, "expired");
    assert_eq!(transaction(&bank, &id(&view)).await["state"], "expired");
}

#[tokio::test]
async fn with_a_clock_that_stepped_nothing_is_decided_but_to_take_it_back() {
    for stepped_to in [NOW + 6, NOW - 6, NOW + 400, NOW + 365 * DAY] {
        let mut daemon = Daemon::start_at(NOW);
        let bank = daemon.connect("bank-a").await;
        let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
        let approved = holder.approved(&bank, &order(&holder.credential)).await;
        let jws = attestation(&bank, &id(&approved)).await;
        let pending = holder.asked(&bank).await;
        let other = holder.asked(&bank).await;
        let keyed = [("content-type", "application/json"), ("idempotency-key", "k")];
        let body = order(&holder.credential).to_string();
        let first = bank.request("POST", "/v1/transactions", &keyed, body.clone()).await.unwrap();
        daemon.step_clock(stepped_to);
        for round in 0..2 {
            let bank = daemon.connect("bank-a").await;
            unknown(&create(&bank, &order(&holder.credential)).await);
            let child = order_with(&holder.credential, json!({ "parent": jws }));
            unknown(&create(&bank, &child).await);
            for otp in [holder.code(&pending), wrong(&holder.code(&pending))] {
                unknown(&respond(&bank, &id(&pending), &otp).await);
            }
            unknown(&verified(&bank, &jws).await);
            unknown(&verified(&bank, "x").await);
            // What is known is shown.
            assert_eq!(transaction(&bank, &id(&pending)).await, pending);
            let mut shown = approved.clone();
            shown.as_object_mut().unwrap().remove("attestation");
            assert_eq!(transaction(&bank, &id(&approved)).await, shown);
            assert_eq!(attestation(&bank, &id(&approved)).await, jws);
            done(&bank.get("/v1/transactions").await.unwrap());
            refused(&respond(&bank, &id(&approved), "00000000").await, 409, "state-conflict");
            let again = bank.request("POST", "/v1/transactions", &keyed, body.clone()).await.unwrap();
            assert_eq!((again.status.as_u16(), text(&again)), (201, text(&first)));
            if round == 0 {
                recorded(&daemon);
                daemon.kill();
                daemon.resume();
            }
        }
        let bank = daemon.connect("bank-a").await;
        assert_eq!(done(&cancel(&bank, &id(&other)).await)["state"], "cancelled");
        assert_eq!(credential(&bank, &holder.credential).await["failures"], 0);
        assert_eq!(stored(&daemon, "SELECT count(*) FROM payment WHERE state = 'pending'"), 2);

        daemon.kill();
        daemon.resume_with(&[ACCEPT]);
        let bank = daemon.connect("bank-a").await;
        let answer = respond(&bank, &id(&pending), &holder.code(&pending)).await;
        match stepped_to.checked_sub(NOW + 300) {
            Some(_) => {
                refused(&answer, 410, "expired");
            }
            None => assert_eq!(done(&answer)["state"], "approved"),
        }
    }
}

// Stopping waits for the client's end of its connection, which needs a thread of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_everything() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, "OCRA-1:HOTP-SHA256-8:C-QH64", "acct-1").await;
    let approved = holder.approved(&bank, &order(&holder.credential)).await;
    let jws = attestation(&bank, &id(&approved)).await;
    let pending = holder.asked(&bank).await;
    let code = holder.code_of(pending["digest"].as_str().unwrap(), 1, NOW);
    assert_eq!(failed(&respond(&bank, &id(&pending), &wrong(&code)).await), 2);
    let list = text(&bank.get("/v1/transactions").await.unwrap());
    for round in 0..2 {
        if round == 0 {
            daemon.kill();
        } else {
            assert!(daemon.stop().success());
        }
        daemon.resume();
        let bank = daemon.connect("bank-a").await;
        assert_eq!(text(&bank.get("/v1/transactions").await.unwrap()), list);
        assert_eq!(attestation(&bank, &id(&approved)).await, jws);
        assert_eq!(done(&verified(&bank, &jws).await)["jti"], approved["id"]);
    }
    let bank = daemon.connect("bank-a").await;
    assert_eq!(failed(&respond(&bank, &id(&pending), &wrong(&code)).await), 1);
    let answer = done(&respond(&bank, &id(&pending), &code).await);
    assert_eq!((&answer["state"], &answer["attempts_remaining"]), (&json!("approved"), &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_goes_after_its_days_and_what_is_overdue_is_written_down() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    let mut ended: Vec<Value> = Vec::new();
    ended.push(holder.approved(&bank, &order(&holder.credential)).await);
    ended.push(done(&cancel(&bank, &id(&holder.asked(&bank).await)).await));
    let overdue = holder.asked(&bank).await;
    daemon.set_clock(NOW + 1_000);
    let later = holder.approved(&bank, &order(&holder.credential)).await;
    assert_eq!(stored(&daemon, "SELECT count(*) FROM payment WHERE state = 'pending'"), 1);

    // The round at a start writes down what nobody asked for.
    assert!(daemon.stop().success());
    daemon.resume();
    pruned(&daemon, 1).await;
    assert_eq!(stored(&daemon, "SELECT count(*) FROM payment WHERE state = 'expired'"), 1);
    assert_eq!(stored(&daemon, "SELECT count(*) FROM payment WHERE state = 'pending'"), 0);
    let bank = daemon.connect("bank-a").await;
    let mut expected = overdue.clone();
    expected["state"] = json!("expired");
    expected["ended_at"] = json!("2027-01-15T08:16:40Z");
    assert_eq!(transaction(&bank, &id(&overdue)).await, expected);

    // A millisecond's worth before 90 days nothing goes.
    assert!(daemon.stop().success());
    let (before, before_sum) = rows(&daemon).await;
    daemon.set_clock(NOW + 90 * DAY - 1);
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    for view in ended.iter().chain([&overdue, &later]) {
        transaction(&bank, &id(view)).await;
    }
    assert_eq!(stored(&daemon, "SELECT count(*) FROM attestation"), 2);
    assert!(daemon.stop().success());

    daemon.set_clock(NOW + 90 * DAY + 1);
    daemon.resume();
    pruned(&daemon, 2).await;
    let bank = daemon.connect("bank-a").await;
    for view in &ended {
        for of in ["", "attestation", "qr"] {
            refused(&bank.get(&path(&id(view), of)).await.unwrap(), 404, "not-found");
        }
        refused(&cancel(&bank, &id(view)).await, 404, "not-found");
        refused(&respond(&bank, &id(view), "12345678").await, 404, "not-found");
    }
    let listed = done(&bank.get("/v1/transactions").await.unwrap());
    let kept: Vec<String> = listed["items"].as_array().unwrap().iter().map(id).collect();
    assert_eq!(kept, [id(&overdue), id(&later)]);
    attestation(&bank, &id(&later)).await;
    assert!(daemon.stop().success());
    let (after, after_sum) = rows(&daemon).await;
    // Two transactions and an attestation; the sum is that of what is left.
    assert_eq!(before.len() - after.len(), 3);
    let token = TestToken::of(&daemon);
    let mut custodian = token.custodian();
    assert_eq!(sum(&mut custodian, &before), before_sum);
    assert_eq!(sum(&mut custodian, &after), after_sum);
    assert_ne!(before_sum, after_sum);
}
