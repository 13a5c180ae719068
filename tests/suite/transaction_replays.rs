//! The same request again, by its key: the first answer, whatever became of the transaction since.

use serde_json::{Value, json};

use crate::bank::{credential, done, failed, refused, without_request_id};
use crate::client::{Connection, Http, Response};
use crate::daemon::{Daemon, text};
use crate::ocra::wrong;
use crate::transactions::{Holder, NOW, PLAIN, attestation, id, order, order_with, path, transaction};

const CREATE: &str = "/v1/transactions";

async fn keyed(bank: &Connection, key: &str, path: &str, body: &Value) -> Response {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    bank.request("POST", path, &headers, body.to_string()).await.unwrap()
}

/// Byte for byte, and with the same headers.
fn same(first: &Response, again: &Response) {
    assert_eq!((first.status, text(first)), (again.status, text(again)));
    for header in ["content-type", "location", "cache-control"] {
        assert_eq!(first.header(header), again.header(header));
    }
}

async fn count(bank: &Connection) -> usize {
    done(&bank.get("/v1/transactions?limit=100").await.unwrap())["items"].as_array().unwrap().len()
}

#[tokio::test]
async fn the_first_answer_is_given_again_whatever_became_of_it() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, "OCRA-1:HOTP-SHA256-8:C-QH64", "acct-1").await;
    let body = order_with(&holder.credential, json!({ "remark": "\u{e9}\u{1f3e6}", "expires_in": 3_600 }));
    let created = keyed(&bank, "create", CREATE, &body).await;
    assert_eq!(created.status, 201, "{}", text(&created));
    let view = created.json().unwrap();
    same(&created, &keyed(&bank, "create", CREATE, &body).await);
    let responses = path(&id(&view), "responses");
    let guess = json!({ "otp": wrong(&holder.code(&view)) });
    let missed = keyed(&bank, "guess", &responses, &guess).await;
    assert_eq!(failed(&missed), 2);
    let right = json!({ "otp": holder.code(&view) });
    let approved = keyed(&bank, "right", &responses, &right).await;
    assert_eq!(done(&approved)["attestation"], attestation(&bank, &id(&view)).await);
    let now = transaction(&bank, &id(&view)).await;

    for round in 0..3 {
        let bank = daemon.connect_over("bank-a", if round == 1 { Http::One } else { Http::Two }).await;
        // Pending, with three attempts: what was true then.
        same(&created, &keyed(&bank, "create", CREATE, &body).await);
        same(&approved, &keyed(&bank, "right", &responses, &right).await);
        let again = keyed(&bank, "guess", &responses, &guess).await;
        assert_eq!(without_request_id(&again), without_request_id(&missed));
        for (key, path, other) in [
            ("create", CREATE, order(&holder.credential)),
            ("create", &*responses, right.clone()),
            ("right", &*responses, guess.clone()),
            ("right", &*path(&id(&view), "cancel"), json!({})),
            ("guess", &*responses, right.clone()),
        ] {
            refused(&keyed(&bank, key, path, &other).await, 422, "idempotency-mismatch");
        }
        assert_eq!(transaction(&bank, &id(&view)).await, now);
        assert_eq!(credential(&bank, &holder.credential).await["counter"], 1);
        assert_eq!(count(&bank).await, 1);
        match round {
            0 => {
                daemon.kill();
                daemon.resume();
            }
            // Its time is over by then, which changes no answer.
            1 => daemon.set_clock(NOW + 80_000),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_cancellation_is_worth_its_first_answer() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    let view = holder.asked(&bank).await;
    let cancel = path(&id(&view), "cancel");
    let first = keyed(&bank, "k", &cancel, &json!({})).await;
    assert_eq!(done(&first)["state"], "cancelled");
    daemon.set_clock(NOW + 1_000);
    same(&first, &keyed(&bank, "k", &cancel, &json!({})).await);
    refused(&keyed(&bank, "other", &cancel, &json!({})).await, 409, "state-conflict");
}

#[tokio::test]
async fn a_key_belongs_to_its_client_and_to_what_was_taken() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let gateway = daemon.connect("bank-a-gateway").await;
    let stranger = daemon.connect("bank-b").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    // What is refused for its form is not remembered: the key is good for the request that is meant.
    let bad = order_with(&holder.credential, json!({ "amount": "1" }));
    refused(&keyed(&bank, "k", CREATE, &bad).await, 422, "invalid");
    refused(&keyed(&bank, "k", CREATE, &order("cred_x")).await, 404, "not-found");
    let body = order(&holder.credential);
    let first = keyed(&bank, "k", CREATE, &body).await;
    assert_eq!(first.status, 201);
    let by_gateway = keyed(&gateway, "k", CREATE, &body).await;
    assert_eq!(by_gateway.status, 201);
    assert_ne!(id(&first.json().unwrap()), id(&by_gateway.json().unwrap()));
    refused(&keyed(&stranger, "k", CREATE, &body).await, 404, "not-found");
    assert_eq!(count(&bank).await, 2);
    let view = first.json().unwrap();
    let responses = path(&id(&view), "responses");
    for otp in ["1234567", "123456789"] {
        refused(&keyed(&bank, "r", &responses, &json!({ "otp": otp })).await, 422, "invalid");
    }
    // Another client of the tenant may respond; its key is its own.
    let right = json!({ "otp": holder.code(&view) });
    let approved = keyed(&gateway, "r", &responses, &right).await;
    assert_eq!(done(&approved)["state"], "approved");
    refused(&keyed(&bank, "r", &responses, &right).await, 409, "state-conflict");
    refused(&keyed(&bank, "r", &responses, &right).await, 409, "state-conflict");
    same(&approved, &keyed(&gateway, "r", &responses, &right).await);
}

#[tokio::test]
async fn two_at_once_are_one() {
    let daemon = Daemon::start();
    let (one, two) = (daemon.connect("bank-a").await, daemon.connect("bank-a").await);
    let mut in_flight = 0;
    for round in 0..20 {
        let holder = Holder::enrol(&one, PLAIN, &format!("acct-{round}")).await;
        let body = order(&holder.credential);
        let key = format!("create-{round}");
        let (a, b) = tokio::join!(keyed(&one, &key, CREATE, &body), keyed(&two, &key, CREATE, &body));
        let view = settled(&a, &b, 201, &mut in_flight).json().unwrap();
        let listed = done(&one.get(&format!("{CREATE}?payer=acct-{round}")).await.unwrap());
        assert_eq!(listed["items"], json!([view]));
        let responses = path(&id(&view), "responses");
        let (key, guess) = (format!("guess-{round}"), json!({ "otp": wrong(&holder.code(&view)) }));
        let (a, b) =
            tokio::join!(keyed(&one, &key, &responses, &guess), keyed(&two, &key, &responses, &guess));
        assert_eq!(failed(settled(&a, &b, 403, &mut in_flight)), 2, "charged once");
        let (key, right) = (format!("right-{round}"), json!({ "otp": holder.code(&view) }));
        let (a, b) =
            tokio::join!(keyed(&one, &key, &responses, &right), keyed(&two, &key, &responses, &right));
        assert_eq!(done(settled(&a, &b, 200, &mut in_flight))["state"], "approved");
    }
    assert!(in_flight > 0, "no two were in flight at once");
}

/// One of the two is the answer; the other is the same, or was told that the first is in flight.
fn settled<'a>(a: &'a Response, b: &'a Response, status: u16, in_flight: &mut usize) -> &'a Response {
    let answers: Vec<_> = [a, b].into_iter().filter(|answer| answer.status == status).collect();
    for other in [a, b].into_iter().filter(|answer| answer.status != status) {
        refused(other, 409, "state-conflict");
        *in_flight += 1;
    }
    let first = answers.first().expect("both were refused");
    let last = answers.last().unwrap();
    if status == 403 {
        assert_eq!(without_request_id(first), without_request_id(last));
    } else {
        same(first, last);
    }
    first
}
