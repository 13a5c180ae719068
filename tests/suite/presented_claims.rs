//! Presentations: who gets one, how long it can be claimed, and that it is claimed once.

use hsm_authd::domain::time::rfc3339;
use serde_json::{Value, json};

use crate::approvals::transactions;
use crate::attestation_pictures::{drawn, scanned};
use crate::bank::{act, credential, done, failed, refused, without_request_id};
use crate::client::{Connection, Response};
use crate::daemon::{Daemon, enrol, enrol_hotp, text};
use crate::device_pki::Kind;
use crate::presenting::{
    PRESENTATIONS, Payer, Presented, claim, claimed, enrol_terminal, garbage, order, to_decide,
};
use crate::security_devices::{es256, rs256, signed};
use crate::submissions::Crowd;
use crate::transactions::NOW;
use crate::transactions_client::{at, respond, view};
use crate::webauthn::Authenticator;

async fn present(bank: &Connection, body: &Value) -> Response {
    bank.post(PRESENTATIONS, body).await.unwrap()
}

fn with(body: &Value, name: &str, value: Value) -> Value {
    let mut body = body.clone();
    body[name] = value;
    body
}

#[tokio::test]
async fn a_code_is_claimed_once_and_within_a_minute() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let payer = Payer::enrol(&bank, "bank-a", "acct-1").await;
    let first = payer.present(&bank, NOW).await;
    let second = payer.present(&bank, NOW + 1).await;
    let third = payer.present(&bank, NOW + 2).await;
    assert!(first.code != second.code && first.id != second.id);
    claimed(&bank, &first.code).await;
    refused(&claim(&bank, &first.code).await, 409, "state-conflict");
    daemon.set_clock(NOW + 59);
    claimed(&bank, &second.code).await;
    assert_eq!(third.now(&bank).await["state"], "open");
    daemon.set_clock(NOW + 60);
    refused(&claim(&bank, &third.code).await, 410, "expired");
    assert_eq!(third.now(&bank).await["state"], "expired");
    refused(&bank.get(&third.path("/qr")).await.unwrap(), 410, "expired");
    // Claimed comes before expired, and a time that went back opens nothing that another clock says is over.
    for claimed in [&first, &second] {
        refused(&claim(&bank, &claimed.code).await, 409, "state-conflict");
        assert_eq!(claimed.now(&bank).await["state"], "claimed");
        refused(&bank.get(&claimed.path("/qr")).await.unwrap(), 409, "state-conflict");
    }
    daemon.step_clock(NOW + 57);
    refused(&claim(&bank, &third.code).await, 410, "expired");
}

#[tokio::test]
async fn what_is_no_code_of_the_tenants_is_absent() {
    let daemon = Daemon::start_at(NOW);
    let (bank, other) = (daemon.connect("bank-a").await, daemon.connect("bank-b").await);
    let payer = Payer::enrol(&bank, "bank-a", "acct-1").await;
    let presented = payer.present(&bank, NOW).await;
    let code = &presented.code;
    let unknown = "A".repeat(26);
    let absent = claim(&other, &unknown).await;
    refused(&absent, 404, "not-found");
    let spoilt = |place: usize| {
        let mut bytes = code.clone().into_bytes();
        bytes[place] = if bytes[place] == b'A' { b'B' } else { b'A' };
        String::from_utf8(bytes).unwrap()
    };
    for (merchant, texts) in [
        (&other, vec![code.clone(), code.to_lowercase(), presented.id.clone()]),
        (
            &bank,
            vec![
                unknown.clone(),
                code.to_lowercase(),
                code[..25].to_owned(),
                format!("{code}A"),
                format!("{code}======"),
                format!(" {code}"),
                format!("{code}\n"),
                spoilt(0),
                spoilt(12),
                spoilt(24),
                presented.id.clone(),
                payer.id.clone(),
                "1".repeat(26),
                "x".repeat(128),
                "\u{e9}".to_owned(),
            ],
        ),
    ] {
        for text in texts {
            let answer = claim(merchant, &text).await;
            refused(&answer, 404, "not-found");
            assert_eq!(without_request_id(&answer), without_request_id(&absent), "{text:?}");
        }
    }
    // Another tenant sees nothing of it by its id, either.
    for of in ["", "/qr"] {
        refused(&other.get(&presented.path(of)).await.unwrap(), 404, "not-found");
        refused(
            &bank.get(&format!("{PRESENTATIONS}/pres_{}{of}", "0".repeat(26))).await.unwrap(),
            404,
            "not-found",
        );
        refused(&bank.get(&format!("{PRESENTATIONS}/{}{of}", payer.id)).await.unwrap(), 404, "not-found");
    }
    for (name, value) in [("credential", json!(payer.id)), ("payer", json!("acct-1")), ("digits", json!(6))] {
        let answer = bank.post("/v1/transactions", &with(&order(code), name, value)).await.unwrap();
        assert_eq!(refused(&answer, 422, "invalid")["field"], name);
    }
    claimed(&bank, code).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_twenty_claims_at_once_one_is_a_transaction() {
    let daemon = Daemon::start();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let bank = crowd.connection(0);
    let payer = Payer::enrol(bank, "bank-a", "acct-1").await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for round in 0..5 {
        let presented = payer.present(bank, now + round).await;
        let mut claims = Vec::new();
        for number in 0..20 {
            let (connection, code) = (crowd.connection(number).clone(), presented.code.clone());
            let body = with(&order(&code), "order", json!(format!("till {number}")));
            claims
                .push(tokio::spawn(async move { connection.post("/v1/transactions", &body).await.unwrap() }));
        }
        let mut made = Vec::new();
        for claim in claims {
            let answer = claim.await.unwrap();
            match answer.status.as_u16() {
                201 => made.push(answer.json().unwrap()),
                _ => drop(refused(&answer, 409, "state-conflict")),
            }
        }
        assert_eq!(made.len(), 1, "{made:?}");
        assert_eq!(presented.now(bank).await["transaction"], made[0]["id"]);
        assert_eq!(transactions(bank).await.as_array().unwrap().len() as u64, round + 1);
        done(&respond(bank, &made[0], &payer.decides("approve", &made[0])).await);
    }
}

/// A merchant who asks for more behind the claim gets nothing, and a screenshot is worth nothing.
#[tokio::test]
async fn after_the_claim_nobody_changes_what_is_asked() {
    let daemon = Daemon::start_at(NOW);
    let (bank, merchant) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::enrol(&bank, "bank-a", "acct-1").await;
    let presented = payer.present(&bank, NOW).await;
    let transaction = claimed(&merchant, &presented.code).await;
    let dearer = with(&order(&presented.code), "amount", json!("99.00"));
    for connection in [&merchant, &bank] {
        refused(&connection.post("/v1/transactions", &dearer).await.unwrap(), 409, "state-conflict");
    }
    assert_eq!(presented.now(&bank).await["display"]["amount"], "9.90");
    // Whoever signed for other terms, or for a transaction that the merchant made otherwise.
    let mut forged = transaction.clone();
    forged["amount"] = json!("99.00");
    let proof = signed("der", &payer.key.sign(&to_decide("bank-a", "approve", &forged)));
    let wrong = crate::presenting::decided("approve", proof);
    assert_eq!(failed(&respond(&bank, &transaction, &wrong).await), 2);
    let approved = done(&respond(&bank, &transaction, &payer.decides("approve", &transaction)).await);
    assert_eq!((&approved["amount"], &approved["digest"]), (&json!("9.90"), &transaction["digest"]));
    for body in [&dearer, &order(&presented.code)] {
        refused(&merchant.post("/v1/transactions", body).await.unwrap(), 409, "state-conflict");
    }
    // Cancelled or expired: it stays claimed by that.
    let presented = payer.present(&bank, NOW + 1).await;
    let transaction = claimed(&merchant, &presented.code).await;
    done(&merchant.request("POST", &at(&transaction, "cancel"), &[], "").await.unwrap());
    refused(&claim(&bank, &presented.code).await, 409, "state-conflict");
    assert_eq!(presented.now(&bank).await["transaction_state"], "cancelled");
    let presented = payer.present(&bank, NOW + 2).await;
    let body = with(&order(&presented.code), "expires_in", json!(5));
    let transaction = merchant.post("/v1/transactions", &body).await.unwrap().json().unwrap();
    daemon.set_clock(NOW + 5);
    assert_eq!(presented.now(&bank).await["transaction_state"], "expired");
    let late = respond(&bank, &transaction, &payer.decides("approve", &transaction)).await;
    refused(&late, 410, "expired");
    assert_eq!(view(&bank, &transaction).await["state"], "expired");
    refused(&claim(&bank, &presented.code).await, 409, "state-conflict");
}

#[tokio::test]
async fn a_request_for_a_code_is_recent_and_later_than_the_last() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let payer = Payer::enrol(&bank, "bank-a", "acct-1").await;
    for away in [31, 60, 3_600] {
        for unix_s in [NOW - away, NOW + away] {
            let answer = present(&bank, &payer.body(unix_s)).await;
            assert_eq!(refused(&answer, 422, "invalid")["field"], "issued_at");
        }
    }
    payer.present(&bank, NOW - 30).await;
    refused(&present(&bank, &payer.body(NOW - 30)).await, 409, "state-conflict");
    payer.present(&bank, NOW - 29).await;
    payer.present(&bank, NOW + 30).await;
    for earlier in [NOW - 30, NOW - 29, NOW, NOW + 29, NOW + 30] {
        refused(&present(&bank, &payer.body(earlier)).await, 409, "state-conflict");
    }
    daemon.set_clock(NOW + 1);
    payer.present(&bank, NOW + 31).await;
    // Another device's mark is its own, and what is refused moves none.
    let other = Payer::enrol(&bank, "bank-a", "acct-2").await;
    let mut wrong = other.body(NOW + 20);
    wrong["signature"] = garbage()["signature"].clone();
    assert_eq!(failed(&present(&bank, &wrong).await), 5);
    other.present(&bank, NOW + 1).await;

    let right = payer.body(NOW + 31);
    for text in [
        "",
        "2027-01-15",
        "2027-01-15T08:00:00",
        "2027-01-15T08:00:00.0Z",
        "2027-01-15T08:00:00+00:00",
        "2027-01-15t08:00:00z",
        "2027-01-15 08:00:00Z",
        "2027-02-30T08:00:00Z",
        "1800000000",
        "now",
    ] {
        let answer = present(&bank, &with(&right, "issued_at", json!(text))).await;
        assert_eq!(refused(&answer, 422, "invalid")["field"], "issued_at", "{text:?}");
    }
    refused(&present(&bank, &with(&right, "issued_at", json!(1_800_000_000))).await, 422, "invalid");
}

#[tokio::test]
async fn only_an_active_device_that_signed_this_gets_a_code() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let payer = Payer::enrol(&bank, "bank-a", "acct-1").await;
    let twin = Payer::with(&bank, "bank-a", "acct-1", es256("twin"), json!({})).await;
    let other = Payer::enrol(&bank, "bank-a", "acct-2").await;
    let right = payer.body(NOW);
    let said = rfc3339(NOW * 1_000);
    let sign = |by: &Payer, bytes: &[u8]| {
        with(&right, "signature", signed("der", &by.key.sign(bytes))["signature"].clone())
    };
    let foreign = Payer { tenant: "bank-b", ..payer.clone() };
    for (what, body) in [
        ("a device of the same account", sign(&twin, &payer.request(&said))),
        ("another's device", sign(&other, &payer.request(&said))),
        ("for another device", sign(&payer, &twin.request(&said))),
        (
            "for another account",
            sign(&payer, &Payer { account: "acct-2".into(), ..payer.clone() }.request(&said)),
        ),
        ("for another tenant", sign(&payer, &foreign.request(&said))),
        ("for another second", sign(&payer, &payer.request(&rfc3339((NOW + 1) * 1_000)))),
        ("nothing signed", with(&right, "signature", garbage()["signature"].clone())),
        // The signature of the first, for another device.
        ("as another device", with(&right, "credential", json!(twin.id))),
    ] {
        assert_eq!(failed(&present(&bank, &body).await), 5, "{what}");
    }
    let answer = present(&bank, &with(&right, "account", json!("acct-2"))).await;
    assert_eq!(refused(&answer, 422, "invalid")["field"], "account");
    let answer =
        present(&bank, &with(&with(&right, "credential", json!(other.id)), "account", json!("acct-1"))).await;
    assert_eq!(refused(&answer, 422, "invalid")["field"], "account");

    let mut authenticator = Authenticator::new("authenticator");
    let token = json!({ "type": "ocra", "account": "acct-1", "suite": "OCRA-1:HOTP-SHA256-8:QH64" });
    for id in [
        authenticator.enrol(&bank, "acct-1").await,
        enrol_hotp(&bank, "acct-1").await,
        enrol(&bank, &token).await,
        enrol_terminal(&bank, "acct-1", "+1").await,
    ] {
        let answer = present(&bank, &with(&right, "credential", json!(id))).await;
        assert_eq!(refused(&answer, 422, "invalid")["field"], "credential");
    }
    for unknown in ["cred_00000000000000000000000000", "no-id", ""] {
        refused(&present(&bank, &with(&right, "credential", json!(unknown))).await, 404, "not-found");
    }
    let waiting = Payer::unauthorized(&bank, "bank-a", "acct-3").await;
    assert_eq!(credential(&bank, &waiting.id).await["state"], "unauthorized");
    refused(&present(&bank, &waiting.body(NOW)).await, 409, "state-conflict");
    done(&act(&bank, &other.id, "suspend").await);
    refused(&present(&bank, &other.body(NOW)).await, 409, "state-conflict");

    for (name, value, field) in [
        ("format", json!("raw"), "format"),
        ("format", json!("webauthn"), "format"),
        ("format", json!("none"), "format"),
        ("signature", json!("AA=="), "signature"),
        ("authenticator_data", json!("AA"), ""),
        ("unknown", json!(1), ""),
        ("account", json!(""), "account"),
    ] {
        let answer = refused(&present(&bank, &with(&right, name, value)).await, 422, "invalid");
        assert_eq!(answer.get("field").and_then(Value::as_str).unwrap_or(""), field, "{name}");
    }
    // All that cost nothing, and the signature is as good as it was; once.
    assert_eq!(credential(&bank, &payer.id).await["failures"], 0);
    let answer = present(&bank, &right).await;
    assert_eq!(answer.status, 201, "{}", text(&answer));
    assert_eq!(answer.header("location"), Some(&*Presented::of(&answer.json().unwrap()).path("")));
    refused(&present(&bank, &right).await, 409, "state-conflict");
}

#[tokio::test]
async fn a_camera_reads_the_code_while_it_can_be_claimed() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let payer = Payer::enrol(&bank, "bank-a", "acct-1").await;
    let presented = payer.present(&bank, NOW).await;
    let qr =
        async |accept| bank.request("GET", &presented.path("/qr"), &[("accept", accept)], "").await.unwrap();
    let (png, svg) = (qr("image/png").await, qr("image/svg+xml").await);
    for (picture, media_type) in [(&png, "image/png"), (&svg, "image/svg+xml")] {
        assert_eq!((picture.status.as_u16(), picture.header("content-type")), (200, Some(media_type)));
        assert_eq!(
            (picture.header("vary"), picture.header("cache-control")),
            (Some("accept"), Some("no-store"))
        );
    }
    assert_eq!(scanned(&png.body), presented.code);
    assert_eq!(scanned(&drawn(&svg.body)), presented.code);
    refused(&qr("image/jpeg").await, 406, "not-acceptable");
    claimed(&bank, &scanned(&png.body)).await;
    refused(&qr("image/png").await, 409, "state-conflict");
}

#[tokio::test]
async fn the_same_request_gets_the_same_code_again() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let payer = Payer::with(&bank, "bank-a", "acct-1", rs256(Kind::Rsa2048, "payer"), json!({})).await;
    let body = payer.body(NOW);
    let keyed = |key| [("content-type", "application/json"), ("idempotency-key", key)];
    let ask = async |bank: &Connection, path: &str, key, body: &Value| {
        bank.request("POST", path, &keyed(key), body.to_string()).await.unwrap()
    };
    let first = ask(&bank, PRESENTATIONS, "k-1", &body).await;
    assert_eq!(first.status, 201, "{}", text(&first));
    let presented = Presented::of(&first.json().unwrap());
    let wrong = with(&body, "signature", garbage()["signature"].clone());
    let refusal =
        ask(&bank, PRESENTATIONS, "k-2", &with(&wrong, "issued_at", json!(rfc3339((NOW + 1) * 1_000)))).await;
    assert_eq!(failed(&refusal), 5);
    let made = ask(&bank, "/v1/transactions", "k-3", &order(&presented.code)).await;
    assert_eq!(made.status, 201, "{}", text(&made));
    let transaction: Value = made.json().unwrap();
    let no = crate::presenting::decided(
        "decline",
        signed("raw", &payer.key.sign(&to_decide("bank-a", "decline", &transaction))),
    );
    let declined = ask(&bank, &at(&transaction, "responses"), "k-4", &no).await;
    assert_eq!(done(&declined)["state"], "rejected");
    for restart in [false, true] {
        if restart {
            daemon.kill();
            daemon.resume();
        }
        let bank = daemon.connect("bank-a").await;
        for (path, key, body, answer) in [
            (PRESENTATIONS, "k-1", &body, &first),
            ("/v1/transactions", "k-3", &order(&presented.code), &made),
            (&*at(&transaction, "responses"), "k-4", &no, &declined),
        ] {
            let again = ask(&bank, path, key, body).await;
            assert_eq!((again.status, text(&again)), (answer.status, text(answer)), "{path}");
            let other = with(body, "unknown", json!(1));
            let mismatch = ask(&bank, path, key, &other).await;
            assert!([422].contains(&mismatch.status.as_u16()), "{}", text(&mismatch));
        }
    }
}

#[tokio::test]
async fn with_a_clock_that_stepped_nothing_is_presented_or_claimed() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let payer = Payer::enrol(&bank, "bank-a", "acct-1").await;
    let (open, taken) = (payer.present(&bank, NOW).await, payer.present(&bank, NOW + 1).await);
    let transaction = claimed(&bank, &taken.code).await;
    daemon.step_clock(NOW + 20);
    refused(&claim(&bank, &open.code).await, 503, "unavailable");
    refused(&bank.get(&open.path("")).await.unwrap(), 503, "unavailable");
    refused(&bank.get(&open.path("/qr")).await.unwrap(), 503, "unavailable");
    refused(&present(&bank, &payer.body(NOW + 20)).await, 503, "unavailable");
    for decision in ["approve", "decline"] {
        let answer = respond(&bank, &transaction, &payer.decides(decision, &transaction)).await;
        refused(&answer, 503, "unavailable");
    }
    // A claim is one whatever the time is.
    refused(&claim(&bank, &taken.code).await, 409, "state-conflict");
    assert_eq!(taken.now(&bank).await["transaction_state"], "pending");
}
