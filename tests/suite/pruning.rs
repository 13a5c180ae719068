//! What is past its time goes, and the sum over all rows goes with it.

use std::time::{Duration, Instant};

use hsm_authd::domain::row::{Row, RowSum, Sealed};
use hsm_authd::hsm::messages::{Request, Response};
use hsm_authd::store::Store;
use serde_json::{Value, json};

use crate::bank::{act, delete};
use crate::client::Connection;
use crate::daemon::{Daemon, enrol, enrol_hotp, rfc_code, verify};
use crate::integrity::sql;
use crate::operator::entries;
use crate::processes::eventually;
use crate::security_devices::{Pending, base64url, es256, order};
use crate::token::{Custodian, TestToken};
use crate::webauthn::Authenticator;

const NOW: u64 = 2_000_000_000;
const DAY: u64 = 86_400;

/// Every row of a daemon that has ended, and the sum that it kept.
pub async fn rows(daemon: &Daemon) -> (Vec<Sealed<Row>>, RowSum) {
    let store = Store::open(&daemon.database()).unwrap();
    (store.rows_after(None, 1_000).await.unwrap(), store.row_sum().await.unwrap())
}

/// The sum over these rows, as a custodian computes it.
pub fn sum(custodian: &mut Custodian, rows: &[Sealed<Row>]) -> RowSum {
    match custodian.call(Request::Sum(rows.iter().map(Sealed::to_bytes).collect())) {
        Ok(Response::Sum(sums)) => sums.total(),
        Ok(_) => panic!("another answer"),
        Err(fault) => panic!("{fault}"),
    }
}

/// Waits until it has pruned so many times since its log began. It does at each start, if there is anything.
pub async fn pruned(daemon: &Daemon, times: usize) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while daemon.log().matches(r#""message":"pruned""#).count() < times {
        assert!(Instant::now() < deadline, "not pruned: {}", daemon.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A bit of everything that writes rows.
async fn bustle(bank: &Connection, account: &str) -> String {
    let id = enrol_hotp(bank, account).await;
    for counter in [0, 0, 9_000, 1, 9_001] {
        verify(bank, &id, &rfc_code(counter)).await;
    }
    let path = format!("/v1/credentials/{id}/verify");
    let headers = [("content-type", "application/json"), ("idempotency-key", account)];
    bank.request("POST", &path, &headers, json!({ "otp": rfc_code(2) }).to_string()).await.unwrap();
    for action in ["suspend", "resume", "unlock"] {
        act(bank, &id, action).await;
    }
    id
}

// The clients have to answer while a stop is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn tombstones_go_after_their_days_and_the_sum_is_that_of_the_rows_that_stay() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let (first, second) = (bustle(&bank, "acct-1").await, bustle(&bank, "acct-2").await);
    for id in [&first, &second] {
        let deleted = bank.request("DELETE", &format!("/v1/credentials/{id}"), &[], "").await.unwrap();
        assert_eq!(deleted.status, 200);
        daemon.set_clock(NOW + DAY / 2);
    }
    let kept = bustle(&bank, "acct-3").await;
    assert!(daemon.stop().success());
    let (before, kept_sum) = rows(&daemon).await;
    // Three credentials with their states and accounts, and three answers.
    assert_eq!(before.len(), 12);

    // 90 days after the first deletion, not yet after the second: one tombstone and all answers go.
    daemon.set_clock(NOW + 90 * DAY + 1);
    daemon.resume();
    pruned(&daemon, 1).await;
    assert!(daemon.stop().success());
    let (after, pruned_sum) = rows(&daemon).await;
    let is_of = |row: &Row, id: &str| match row {
        Row::Credential(row) => row.id.to_string() == id,
        Row::State(row) => row.id.to_string() == id,
        Row::UsedInput(row) => row.id.to_string() == id,
        _ => false,
    };
    let count = |id: &str| after.iter().filter(|sealed| is_of(&sealed.row, id)).count();
    assert_eq!((count(&first), count(&second), count(&kept)), (0, 2, 2));
    let accounts = after.iter().filter(|sealed| matches!(sealed.row, Row::Account(_))).count();
    assert_eq!((accounts, after.len()), (3, 7), "an account outlives its credentials");

    let token = TestToken::of(&daemon);
    let mut custodian = token.custodian();
    assert_eq!(sum(&mut custodian, &before), kept_sum);
    assert_eq!(sum(&mut custodian, &after), pruned_sum);
    assert_ne!(kept_sum, pruned_sum);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_of_everything_goes_as_well() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let key = es256("device");
    let mut ids = Vec::new();
    let remembered = async |path: &str, number: u8, body: &Value| {
        let key = format!("{number:k>255}");
        let headers = [("content-type", "application/json"), ("idempotency-key", key.as_str())];
        bank.request("POST", path, &headers, body.to_string()).await.unwrap()
    };
    for number in 0..20 {
        let account = format!("{number:\u{20ac}>20}");
        let mut enrolment = Authenticator::with(key.clone()).enrolment(&account);
        enrolment["webauthn"]["credential_id"] = json!(base64url(&[number; 1_023]));
        let label = "a".repeat(60);
        let mut origins = vec![format!("https://{label}.{label}.{label}.bank.example"); 7];
        origins.push("https://pay.bank.example".to_owned());
        enrolment["webauthn"]["origins"] = json!(origins);
        let answer = remembered("/v1/credentials", number, &enrolment).await;
        let id = answer.json().unwrap()["id"].as_str().unwrap().to_owned();
        let mut body = order(&id);
        body["payee"] = json!("\u{20ac}".repeat(128));
        body["order"] = json!("\u{20ac}".repeat(128));
        body["platform"] = json!("a".repeat(128));
        let answer = remembered("/v1/transactions", 100 + number, &body).await;
        let pending = Pending { view: answer.json().unwrap() };
        assert_eq!(answer.status, 201, "{}", pending.view);
        let response = Authenticator::with(key.clone()).response(&pending);
        pending.approved_by(&bank, &response).await;
        ids.push(id);
    }
    for id in &ids {
        assert_eq!(delete(&bank, id).await.status, 200);
    }
    daemon.kill();
    daemon.set_clock(NOW + 400 * DAY);
    daemon.resume();
    let database = rusqlite::Connection::open(daemon.database()).unwrap();
    database.busy_timeout(Duration::from_secs(10)).unwrap();
    let tables = ["idempotency", "credential", "credential_state", "payment", "attestation"];
    eventually("all of it is gone", async || {
        let count = |table| -> i64 {
            database.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
        };
        (tables.into_iter().map(count).sum::<i64>() == 0).then_some(())
    })
    .await;
    drop(database);
    assert!(daemon.stop().success());
    let (rows, kept) = rows(&daemon).await;
    let token = TestToken::of(&daemon);
    let mut custodian = token.custodian();
    assert_eq!(sum(&mut custodian, &rows), kept);
}

/// One row that was edited keeps no other.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_expire_keeps_nothing_else_from_going() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let device = Authenticator::with(es256("device"));
    let id = enrol(&bank, &device.enrolment("acct-1")).await;
    assert_eq!(bank.post("/v1/transactions", &order(&id)).await.unwrap().status, 201);
    bustle(&bank, "acct-2").await;
    let database = sql(&daemon);
    assert_eq!(database.execute("UPDATE payment SET payee = 'Mallory'", []).unwrap(), 1);
    // One that is overdue after it.
    let mut later = order(&id);
    later["expires_in"] = json!(3_600);
    assert_eq!(bank.post("/v1/transactions", &later).await.unwrap().status, 201);
    daemon.set_clock(NOW + 2 * DAY);
    eventually("what was remembered is gone", async || {
        let count = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
        (database.query_row("SELECT count(*) FROM idempotency", [], count).unwrap() == 0).then_some(())
    })
    .await;
    let states = "SELECT group_concat(state ORDER BY payee = 'Mallory') FROM payment";
    eventually("the other one is expired", async || {
        let states = database.query_row(states, [], |row| row.get::<_, String>(0)).unwrap();
        (states == "expired,pending").then_some(())
    })
    .await;
}

/// Rows that are ours, and that went before: more of them than go at once.
#[tokio::test(flavor = "multi_thread")]
async fn old_rows_that_were_put_back_keep_nothing_else_from_going() {
    const OLD: usize = 20;
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let remembered = async |bank: &Connection, key: &str| {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        let body = json!({ "type": "hotp", "account": key });
        let answer = bank.request("POST", "/v1/credentials", &headers, body.to_string()).await.unwrap();
        assert_eq!(answer.status, 201);
        answer.json().unwrap()["id"].as_str().unwrap().to_owned()
    };
    for number in 0..OLD {
        remembered(&bank, &format!("old-{number}")).await;
    }
    let database = sql(&daemon);
    let count = |sql: &str| database.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    let copy = "CREATE TEMP TABLE old AS SELECT * FROM idempotency";
    database.execute_batch(copy).unwrap();
    daemon.set_clock(NOW + 2 * DAY);
    let all = "SELECT count(*) FROM idempotency";
    eventually("they are gone", async || (count(all) == 0).then_some(())).await;

    let tombstone = remembered(&daemon.connect("bank-a").await, "new").await;
    assert_eq!(delete(&daemon.connect("bank-a").await, &tombstone).await.status, 200);
    assert_eq!(database.execute("INSERT INTO main.idempotency SELECT * FROM old", []).unwrap(), OLD);
    daemon.set_clock(NOW + 200 * DAY);
    let new = "SELECT (SELECT count(*) FROM idempotency WHERE key = 'new')
        + (SELECT count(*) FROM credential WHERE deleted_unix_ms IS NOT NULL)";
    eventually("what is past its time is gone", async || (count(new) == 0).then_some(())).await;
    assert_eq!(count(all), OLD as i64);
    eventually("each is named", async || (entries(&daemon, "store.row_tampered").len() == OLD).then_some(()))
        .await;
    // And once.
    daemon.set_clock(NOW + 300 * DAY);
    let waits = || daemon.log().matches("rows that are not what was written last stay").count();
    let before = waits();
    eventually("it was tried again", async || (waits() > before).then_some(())).await;
    assert_eq!(entries(&daemon, "store.row_tampered").len(), OLD);
}
