//! The same request twice: one answer, one charge.

use rusqlite::OpenFlags;
use serde_json::{Value, json};

use crate::approvals;
use crate::bank::{act, credential, credentials, done, failed, locked, path, refused, refused_uncounted};
use crate::client::{Connection, Http, Response};
use crate::daemon::{Daemon, enrol_hotp, problem, rfc_code, text, verify};
use crate::signers::Device;

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 24 * 60 * 60;

async fn keyed(bank: &Connection, key: &str, path: &str, body: &str) -> Response {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    bank.request("POST", path, &headers, body.to_owned()).await.unwrap()
}

async fn keyed_verify(bank: &Connection, key: &str, id: &str, otp: &str) -> Response {
    keyed(bank, key, &path(id, "verify"), &json!({ "otp": otp }).to_string()).await
}

/// The same answer, but for the request's own id.
fn same(first: &Response, again: &Response) {
    let document = |answer: &Response| {
        let mut document = answer.json().unwrap();
        document.as_object_mut().unwrap().remove("request_id");
        document
    };
    assert_eq!((first.status, document(first)), (again.status, document(again)));
    for header in ["content-type", "location", "retry-after", "cache-control"] {
        assert_eq!(first.header(header), again.header(header));
    }
}

fn records(daemon: &Daemon) -> i64 {
    let database =
        rusqlite::Connection::open_with_flags(daemon.database(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    database.query_row("SELECT count(*) FROM idempotency", [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn an_answer_is_given_again_and_charged_once() {
    let mut daemon = Daemon::start();
    let mut bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let other = enrol_hotp(&bank, "acct-2").await;
    let wrong = keyed_verify(&bank, "wrong", &id, &rfc_code(5_000)).await;
    assert_eq!(failed(&wrong), 4);
    let right = keyed_verify(&bank, "right", &id, &rfc_code(0)).await;
    done(&right);
    let repeated = keyed_verify(&bank, "repeated", &id, &rfc_code(0)).await;
    assert_eq!(failed(&repeated), 5);
    let resync_body = json!({ "otps": [rfc_code(300), rfc_code(301)] }).to_string();
    let resynced = keyed(&bank, "resync", &path(&id, "resync"), &resync_body).await;
    done(&resynced);
    verify(&bank, &other, &rfc_code(5_000)).await;
    let unlocked = keyed(&bank, "unlock", &path(&other, "unlock"), "").await;
    assert_eq!(done(&unlocked)["failures"], 0);
    verify(&bank, &other, &rfc_code(5_000)).await;
    let suspended = keyed(&bank, "suspend", &path(&other, "suspend"), "").await;
    done(&suspended);
    let body = json!({ "type": "hotp", "account": "acct-3" }).to_string();
    let enrolled = keyed(&bank, "enrol", "/v1/credentials", &body).await;
    assert_eq!(enrolled.status, 201, "{}", text(&enrolled));
    let all = credentials(&bank).await;
    assert_eq!(all.as_array().unwrap().len(), 3);

    for round in 0..3 {
        same(&wrong, &keyed_verify(&bank, "wrong", &id, &rfc_code(5_000)).await);
        same(&right, &keyed_verify(&bank, "right", &id, &rfc_code(0)).await);
        same(&repeated, &keyed_verify(&bank, "repeated", &id, &rfc_code(0)).await);
        same(&resynced, &keyed(&bank, "resync", &path(&id, "resync"), &resync_body).await);
        same(&unlocked, &keyed(&bank, "unlock", &path(&other, "unlock"), "").await);
        same(&suspended, &keyed(&bank, "suspend", &path(&other, "suspend"), "").await);
        same(&enrolled, &keyed(&bank, "enrol", "/v1/credentials", &body).await);
        assert_eq!(credentials(&bank).await, all, "nothing was charged, unlocked or made again");
        if round == 1 {
            daemon.kill();
            daemon.resume();
            bank = daemon.connect_over("bank-a", Http::One).await;
        }
    }
    assert_eq!(credential(&bank, &other).await["failures"], 1, "a replayed unlock unlocks nothing");
    // A replay says what was true then, even of what is gone.
    bank.request("DELETE", &path(&id, ""), &[], "").await.unwrap();
    same(&right, &keyed_verify(&bank, "right", &id, &rfc_code(0)).await);
    assert_eq!(records(&daemon), 7);
}

#[tokio::test]
async fn a_key_belongs_to_one_request_of_one_client() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let (id, other) = (enrol_hotp(&bank, "acct-1").await, enrol_hotp(&bank, "acct-2").await);
    let key = "8e03978e-40d5-43dd-bc93-6894a57f9324";
    let body = json!({ "otp": rfc_code(0) }).to_string();
    let first = keyed(&bank, key, &path(&id, "verify"), &body).await;
    done(&first);
    let before = credentials(&bank).await;
    for (path, body) in [
        (path(&other, "verify"), body.clone()),
        (path(&id, "verify"), json!({ "otp": rfc_code(1) }).to_string()),
        (path(&id, "verify"), json!({ "otp": rfc_code(5_000) }).to_string()),
        (path(&id, "verify"), format!("{body} ")),
        (path(&id, "verify") + "?a=b", body.clone()),
        (path(&id, "suspend"), String::new()),
        (path(&id, "resync"), json!({ "otps": [rfc_code(0), rfc_code(1)] }).to_string()),
        ("/v1/credentials".to_owned(), json!({ "type": "hotp", "account": "acct-3" }).to_string()),
    ] {
        let answer = keyed(&bank, key, &path, &body).await;
        refused(&answer, 422, "idempotency-mismatch");
    }
    assert_eq!(credentials(&bank).await, before);
    same(&first, &keyed(&bank, key, &path(&id, "verify"), &body).await);

    // The same key of other clients, of the same tenant and of another one, is another key.
    let gateway = daemon.connect("bank-a-gateway").await;
    assert_eq!(failed(&keyed(&gateway, key, &path(&id, "verify"), &body).await), 5, "a repeat, judged anew");
    done(&keyed(&gateway, "k2", &path(&other, "verify"), &body).await);
    assert_eq!(failed(&keyed(&bank, "k2", &path(&other, "verify"), &body).await), 5);
    let stranger = daemon.connect("bank-b").await;
    refused(&keyed(&stranger, key, &path(&id, "verify"), &body).await, 404, "not-found");
    let own = enrol_hotp(&stranger, "acct-1").await;
    done(&keyed_verify(&stranger, key, &own, &rfc_code(0)).await);
    // Keys are compared byte for byte.
    assert_eq!(failed(&keyed(&bank, &key.to_uppercase(), &path(&id, "verify"), &body).await), 5);
}

#[tokio::test]
async fn a_replay_shows_no_seed() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    for seed in [json!(null), json!(crate::daemon::SEED_HEX)] {
        let mut body = json!({ "type": "totp", "account": "acct-1", "export": "otpauth" });
        if !seed.is_null() {
            body["seed_hex"] = seed.clone();
        }
        let key = format!("enrol-{seed}").replace('"', "");
        let first = keyed(&bank, &key, "/v1/credentials", &body.to_string()).await;
        assert_eq!(first.status, 201, "{}", text(&first));
        let mut shown = first.json().unwrap();
        let uri = shown.as_object_mut().unwrap().remove("otpauth").unwrap();
        let secret =
            uri.as_str().unwrap().split("secret=").nth(1).unwrap().split('&').next().unwrap().to_owned();
        for _ in 0..2 {
            let again = keyed(&bank, &key, "/v1/credentials", &body.to_string()).await;
            assert_eq!((again.status.as_u16(), again.json().unwrap()), (201, shown.clone()));
            assert_eq!(again.header("location"), first.header("location"));
        }
        let kept = std::fs::read(daemon.database()).unwrap();
        let log = std::fs::read(daemon.database().with_extension("db-wal")).unwrap_or_default();
        for bytes in [kept, log] {
            let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
            assert!(!holds(secret.as_bytes()) && !holds(b"otpauth"), "the seed is in the store");
        }
    }
    assert_eq!(credentials(&bank).await.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_refusal_is_not_remembered() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let verify_path = path(&id, "verify");
    // Each refused first for a reason that then goes away: the same key is good for the request.
    refused(&keyed(&bank, "form", &verify_path, r#"{"otp": "12345"}"#).await, 422, "invalid");
    refused(&keyed(&bank, "form", &verify_path, r#"{"otp": "1234567"}"#).await, 422, "invalid");
    refused(&keyed(&bank, "form", &verify_path, "{").await, 400, "invalid");
    let absent = path("cred_00000000000000000000000000", "verify");
    refused(&keyed(&bank, "form", &absent, &json!({ "otp": "123456" }).to_string()).await, 404, "not-found");
    act(&bank, &id, "suspend").await;
    refused(&keyed_verify(&bank, "state", &id, &rfc_code(0)).await, 409, "state-conflict");
    refused(&keyed(&bank, "state-2", &path(&id, "suspend"), "").await, 409, "state-conflict");
    act(&bank, &id, "resume").await;
    done(&keyed_verify(&bank, "state", &id, &rfc_code(0)).await);
    done(&keyed(&bank, "state-2", &path(&id, "suspend"), "").await);
    act(&bank, &id, "resume").await;
    for _ in 0..5 {
        failed(&verify(&bank, &id, &rfc_code(5_000)).await);
    }
    locked(&keyed_verify(&bank, "lock", &id, &rfc_code(1)).await);
    locked(&keyed_verify(&bank, "lock", &id, &rfc_code(1)).await);
    act(&bank, &id, "unlock").await;
    done(&keyed_verify(&bank, "lock", &id, &rfc_code(1)).await);
    done(&keyed_verify(&bank, "form", &id, &rfc_code(2)).await);
    assert_eq!(records(&daemon), 4);
}

#[tokio::test]
async fn two_at_once_are_one() {
    let daemon = Daemon::start();
    let (one, two) = (daemon.connect("bank-a").await, daemon.connect("bank-a").await);
    let id = enrol_hotp(&one, "acct-1").await;
    for round in 0..20 {
        let (key, otp) = (format!("k{round}"), rfc_code(5_000 + round));
        let body = json!({ "type": "hotp", "account": format!("twice-{round}") }).to_string();
        let enrol_key = format!("e{round}");
        let answers = tokio::join!(
            keyed_verify(&one, &key, &id, &otp),
            keyed_verify(&two, &key, &id, &otp),
            keyed(&one, &enrol_key, "/v1/credentials", &body),
            keyed(&two, &enrol_key, "/v1/credentials", &body),
        );
        let settled = |answers: [&Response; 2], status: u16| {
            for answer in answers {
                let in_flight = answer.status == 409 && problem(answer) == "state-conflict";
                assert!(in_flight || answer.status == status, "{} {}", answer.status, text(answer));
            }
            let first: Vec<_> = answers.into_iter().filter(|answer| answer.status == status).collect();
            assert!(!first.is_empty(), "both were refused");
            same(first[0], first[first.len() - 1]);
        };
        settled([&answers.0, &answers.1], 403);
        settled([&answers.2, &answers.3], 201);
        assert_eq!(credential(&one, &id).await["failures"], 1, "charged once");
        let made = done(&one.get(&format!("/v1/credentials?account=twice-{round}")).await.unwrap());
        assert_eq!(made["items"].as_array().map(Vec::len), Some(1));
        act(&one, &id, "unlock").await;
    }
}

#[tokio::test]
async fn a_day_later_the_key_is_free_again() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let (id, late) = (enrol_hotp(&bank, "acct-1").await, enrol_hotp(&bank, "acct-2").await);
    let first = keyed_verify(&bank, "k", &id, &rfc_code(0)).await;
    done(&first);
    daemon.set_clock(NOW + 60);
    done(&keyed_verify(&bank, "late", &late, &rfc_code(0)).await);
    daemon.set_clock(NOW + DAY - 1);
    daemon.kill();
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    same(&first, &keyed_verify(&bank, "k", &id, &rfc_code(0)).await);
    assert_eq!(records(&daemon), 2);

    daemon.set_clock(NOW + DAY);
    daemon.kill();
    daemon.resume();
    let pruned = |daemon: &Daemon| daemon.log().contains(r#""message":"pruned""#);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !pruned(&daemon) {
        assert!(std::time::Instant::now() < deadline, "not pruned: {}", daemon.log());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(records(&daemon), 1, "the later one is kept");
    let bank = daemon.connect("bank-a").await;
    assert_eq!(failed(&keyed_verify(&bank, "k", &id, &rfc_code(0)).await), 5, "judged anew: a used code");
    let other: Value = done(&keyed_verify(&bank, "k2", &id, &rfc_code(1)).await);
    assert_eq!(other["verified"], true);
    refused(&keyed_verify(&bank, "late", &id, &rfc_code(2)).await, 422, "idempotency-mismatch");
}

#[tokio::test]
async fn a_key_does_not_tell_a_malformed_id_from_an_absent_one_and_goes_with_a_body_of_any_size() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let body = json!({ "otp": rfc_code(0) }).to_string();
    let padded = format!("{body}{}", " ".repeat(64 * 1024 - body.len()));
    let first = keyed(&bank, "k", &path(&id, "verify"), &padded).await;
    done(&first);
    same(&first, &keyed(&bank, "k", &path(&id, "verify"), &padded).await);
    for other in ["cred_00000000000000000000000000", "xyz"] {
        refused(&keyed(&bank, "k", &path(other, "verify"), &body).await, 422, "idempotency-mismatch");
        refused(&keyed(&bank, "k", &path(other, "unlock"), "").await, 422, "idempotency-mismatch");
        refused(&keyed(&bank, "new", &path(other, "verify"), &body).await, 404, "not-found");
    }
}

#[tokio::test]
async fn an_edited_record_answers_nothing() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let wrong = keyed_verify(&bank, "wrong", &id, &rfc_code(5_000)).await;
    assert_eq!(failed(&wrong), 4);
    done(&keyed_verify(&bank, "right", &id, &rfc_code(0)).await);
    let database = rusqlite::Connection::open(daemon.database()).unwrap();
    database.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    for edit in [
        // A yes that nobody earned.
        "answer = (SELECT answer FROM idempotency WHERE key = 'right')",
        "fingerprint = (SELECT fingerprint FROM idempotency WHERE key = 'right')",
        "expires_unix_ms = expires_unix_ms + 1",
        "seal = (SELECT seal FROM idempotency WHERE key = 'right')",
    ] {
        database
            .execute_batch(&format!(
                "BEGIN; CREATE TABLE kept AS SELECT * FROM idempotency;
                 UPDATE idempotency SET {edit} WHERE key = 'wrong'; COMMIT"
            ))
            .unwrap();
        refused(&keyed_verify(&bank, "wrong", &id, &rfc_code(5_000)).await, 503, "unavailable");
        database
            .execute_batch(
                "BEGIN; DELETE FROM idempotency; INSERT INTO idempotency SELECT * FROM kept; DROP TABLE kept; COMMIT",
            )
            .unwrap();
    }
    same(&wrong, &keyed_verify(&bank, "wrong", &id, &rfc_code(5_000)).await);
}

#[tokio::test]
async fn that_a_transaction_had_ended_is_remembered() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let credential = Device::new(1).enrol(&bank, "acct-1").await;
    let keyed = async |path: &str, key: &str, body: &Value| keyed(&bank, key, path, &body.to_string()).await;
    let mut order = approvals::order("device_signature", &credential);
    let created = keyed(approvals::TRANSACTIONS, "order", &order).await;
    same(&created, &keyed(approvals::TRANSACTIONS, "order", &order).await);
    let approved = created.json().unwrap();
    let path = approvals::path(approvals::id(&approved), "responses");
    let response = approvals::signed(1, &approved);
    let first = keyed(&path, "yes", &response).await;
    assert!(done(&first)["attestation"].is_string());
    same(&first, &keyed(&path, "yes", &response).await);

    // 409: it is approved. 410: its time is over.
    order["expires_in"] = json!(1);
    let overdue = approvals::create(&bank, &order).await;
    daemon.set_clock(NOW + 2);
    for (view, status, name) in [(&approved, 409, "state-conflict"), (&overdue, 410, "expired")] {
        for what in ["responses", "cancel"] {
            let path = approvals::path(approvals::id(view), what);
            let body = if what == "cancel" { json!({}) } else { response.clone() };
            let key = format!("{what}-{status}");
            for _ in 0..2 {
                refused(&keyed(&path, &key, &body).await, status, name);
            }
            let other = format!("{path}?another=request");
            refused(&keyed(&other, &key, &body).await, 422, "idempotency-mismatch");
        }
    }

    // Another 409 is not: what stood in the way may go away.
    order["expires_in"] = json!(300);
    let pending = approvals::create(&bank, &order).await;
    let (path, response) =
        (approvals::path(approvals::id(&pending), "responses"), approvals::signed(1, &pending));
    done(&act(&bank, &credential, "suspend").await);
    refused(&keyed(&path, "later", &response).await, 409, "state-conflict");
    done(&act(&bank, &credential, "resume").await);
    done(&keyed(&path, "later", &response).await);

    // Where nothing changes there is no key.
    for attestation in ["a.b.c", "d.e.f"] {
        let answer = keyed("/v1/attestations/verify", "none", &json!({ "attestation": attestation })).await;
        refused_uncounted(&answer);
    }
}
