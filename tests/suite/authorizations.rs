//! Devices that are authorized for their account (seed C, S100 and S200): by SMS both ways, or by what the bank has
//! checked, and always by a signature.

use hsm_authd::domain::time::rfc3339;
use serde_json::{Value, json};

use crate::bank::{act, credential, delete, done, refused};
use crate::daemon::{Daemon, enrol, text};
use crate::device_pki::Kind;
use crate::presenting::{ADDRESS, Payer, Sms, at, enrol_terminal, jws, order, to_authorize};
use crate::pruning::{pruned, rows, sum};
use crate::security_devices::{
    es256, es256_jws, order as order_of_device, p1363_of, rs256, rs256_jws, sha256, signed,
};
use crate::token::TestToken;
use crate::transactions::NOW;
use crate::webauthn::{Assertion, Authenticator};

const DAY: u64 = 86_400;

#[tokio::test]
async fn by_sms_both_ways_and_a_signature() {
    let daemon = Daemon::start_at(NOW);
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::unauthorized(&bank, "bank-a", "acct-1").await;
    let terminal = enrol_terminal(&bank, "acct-1", ADDRESS).await;
    let view = credential(&bank, &payer.id).await;
    assert_eq!((&view["state"], &view["type"]), (&json!("unauthorized"), &json!("signer")));
    // Until then it is good for nothing that needs an active one.
    for (path, body) in [
        ("/v1/presentations".to_owned(), payer.body(NOW)),
        ("/v1/transactions".to_owned(), order_of_device(&payer.id)),
        (
            format!("/v1/credentials/{}/verify", payer.id),
            json!({ "payload_base64": "AAAA", "signature_base64": "AAAA", "format": "der" }),
        ),
    ] {
        refused(&bank.post(&path, &body).await.unwrap(), 409, "state-conflict");
    }
    for action in ["suspend", "resume"] {
        refused(&act(&bank, &payer.id, action).await, 409, "state-conflict");
    }
    refused(&bank.get(&at(&payer.id, "")).await.unwrap(), 404, "not-found");
    for step in ["/uplink", "/complete"] {
        let body = json!({ "code": "123456", "from": ADDRESS });
        let body = if step == "/uplink" { body } else { json!({ "format": "der", "signature": "AAAA" }) };
        refused(&gateway.post(&at(&payer.id, step), &body).await.unwrap(), 404, "not-found");
    }

    let sms = Sms::begin(&gateway, &payer, &terminal).await;
    let mut expected = json!({ "credential": payer.id, "method": "sms", "terminal": terminal,
        "nonce": sms.begun["nonce"], "expires_at": rfc3339((NOW + 300) * 1_000), "uplink_seen": false,
        "attempts_remaining": 3, "downlink_code": sms.code("downlink"), "uplink_code": sms.code("uplink") });
    assert_eq!(sms.begun, expected);
    assert_ne!(sms.code("downlink"), sms.code("uplink"));
    assert_eq!(done(&sms.view(&gateway).await), expected);
    // Completing needs the message from the terminal first, and costs nothing before.
    refused(&sms.complete(&bank, &sms.completion()).await, 409, "state-conflict");
    for _ in 0..2 {
        let seen = done(&sms.uplink(&gateway, &sms.uplink_body()).await);
        expected["uplink_seen"] = json!(true);
        assert_eq!(done(&sms.view(&gateway).await), expected);
        let mut without = expected.clone();
        for code in ["downlink_code", "uplink_code"] {
            without.as_object_mut().unwrap().remove(code);
        }
        assert_eq!(seen, without);
    }
    let active = done(&sms.complete(&bank, &sms.completion()).await);
    let mut expected = view;
    expected["state"] = json!("active");
    assert_eq!(active, expected);
    assert_eq!(credential(&bank, &payer.id).await, expected);
    // It is over, and the device works.
    refused(&sms.view(&gateway).await, 409, "state-conflict");
    refused(&sms.complete(&bank, &sms.completion()).await, 409, "state-conflict");
    refused(&sms.uplink(&gateway, &sms.uplink_body()).await, 409, "state-conflict");
    let again = json!({ "method": "sms", "terminal": terminal });
    refused(&bank.post(&at(&payer.id, ""), &again).await.unwrap(), 409, "state-conflict");
    let presented = payer.present(&bank, NOW).await;
    assert_eq!(bank.post("/v1/transactions", &order(&presented.code)).await.unwrap().status, 201);
    for action in ["suspend", "resume"] {
        done(&act(&bank, &payer.id, action).await);
    }
}

#[tokio::test]
async fn the_codes_are_for_who_delivers_and_for_nobody_else() {
    let daemon = Daemon::start_at(NOW);
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::unauthorized(&bank, "bank-a", "acct-1").await;
    let terminal = enrol_terminal(&bank, "acct-1", ADDRESS).await;
    let body = json!({ "method": "sms", "terminal": terminal });
    let answer = bank.post(&at(&payer.id, ""), &body).await.unwrap();
    assert_eq!(answer.status, 201, "{}", text(&answer));
    assert_eq!(answer.header("location"), Some(&*at(&payer.id, "")));
    let begun: Value = answer.json().unwrap();
    let has_codes = |view: &Value| ["downlink_code", "uplink_code"].map(|code| view.get(code).is_some());
    assert_eq!(has_codes(&begun), [false, false]);
    assert_eq!(has_codes(&done(&bank.get(&at(&payer.id, "")).await.unwrap())), [false, false]);
    let for_gateway = done(&gateway.get(&at(&payer.id, "")).await.unwrap());
    assert_eq!(has_codes(&for_gateway), [true, true]);
    // Begun by the one, delivered by the other.
    let sms = Sms { payer: payer.clone(), terminal: terminal.clone(), begun: for_gateway };
    let forbidden = bank.post(&at(&payer.id, "/uplink"), &sms.uplink_body()).await.unwrap();
    refused(&forbidden, 403, "forbidden");
    done(&sms.uplink(&gateway, &sms.uplink_body()).await);
    let completed = done(&sms.complete(&bank, &sms.completion()).await);
    assert_eq!(completed["state"], "active");
}

/// The first answer again: with the codes while they are good for something, and for who may see them.
#[tokio::test]
async fn a_replay_derives_the_codes_again_while_they_count() {
    let mut daemon = Daemon::start_at(NOW);
    let gateway = daemon.connect("bank-a-gateway").await;
    let payer = Payer::unauthorized(&gateway, "bank-a", "acct-1").await;
    let terminal = enrol_terminal(&gateway, "acct-1", ADDRESS).await;
    let keyed = |key| [("content-type", "application/json"), ("idempotency-key", key)];
    let body = json!({ "method": "sms", "terminal": terminal }).to_string();
    let first = gateway.request("POST", &at(&payer.id, ""), &keyed("k-1"), body.clone()).await.unwrap();
    let begun: Value = first.json().unwrap();
    daemon.kill();
    daemon.resume();
    let gateway = daemon.connect("bank-a-gateway").await;
    let again = gateway.request("POST", &at(&payer.id, ""), &keyed("k-1"), body.clone()).await.unwrap();
    assert_eq!((again.status, text(&again)), (first.status, text(&first)));
    let sms = Sms { payer: payer.clone(), terminal: terminal.clone(), begun: begun.clone() };
    let uplink = sms.uplink_body().to_string();
    let seen =
        gateway.request("POST", &at(&payer.id, "/uplink"), &keyed("k-2"), uplink.clone()).await.unwrap();
    done(&seen);

    // Another one takes its place.
    let second = gateway.request("POST", &at(&payer.id, ""), &keyed("k-3"), body.clone()).await.unwrap();
    let second: Value = second.json().unwrap();
    let again = gateway.request("POST", &at(&payer.id, ""), &keyed("k-1"), body.clone()).await.unwrap();
    let again: Value = again.json().unwrap();
    assert_eq!((&again["nonce"], again.get("downlink_code")), (&begun["nonce"], None));
    // What was answered is answered again; it does not hold of the second one.
    let again = gateway.request("POST", &at(&payer.id, "/uplink"), &keyed("k-2"), uplink).await.unwrap();
    assert_eq!(text(&again), text(&seen));
    let now = done(&gateway.get(&at(&payer.id, "")).await.unwrap());
    assert_eq!((&now["uplink_seen"], &now["nonce"]), (&json!(false), &second["nonce"]));
    let sms = Sms { begun: second, ..sms };
    done(&sms.uplink(&gateway, &sms.uplink_body()).await);
    let completion = sms.completion().to_string();
    let complete = async || {
        gateway.request("POST", &at(&payer.id, "/complete"), &keyed("k-4"), completion.clone()).await.unwrap()
    };
    let completed = complete().await;
    assert_eq!(done(&completed)["state"], "active");
    assert_eq!(text(&complete().await), text(&completed));
    let again = gateway.request("POST", &at(&payer.id, ""), &keyed("k-3"), body).await.unwrap();
    assert_eq!((again.status.as_u16(), again.json().unwrap().get("uplink_code")), (201, None));
}

/// Each of the four forms that a signer's key comes in, by password.
#[tokio::test]
async fn every_kind_of_signer_can_be_made_to_wait() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let begin = async |id: &str| {
        let body = json!({ "method": "password", "evidence": "login 42" });
        let answer = bank.post(&at(id, ""), &body).await.unwrap();
        assert_eq!(answer.status, 201, "{}", text(&answer));
        let begun: Value = answer.json().unwrap();
        let expected = json!({ "credential": id, "method": "password", "evidence": "login 42", "nonce": begun["nonce"],
            "expires_at": rfc3339((NOW + 300) * 1_000), "uplink_seen": false, "attempts_remaining": 3 });
        assert_eq!(begun, expected);
        begun
    };
    let required = || json!({ "authorization": "required" });
    let ec = Payer::with(&bank, "bank-a", "acct-1", es256("ec"), required()).await;
    let rsa = Payer::with(&bank, "bank-a", "acct-2", rs256(Kind::Rsa2048, "rsa"), required()).await;
    type Sign = fn(&Payer, &[u8]) -> Value;
    let forms: [(&Payer, Sign); 5] = [
        (&ec, |payer, bytes| signed("der", &payer.key.sign(bytes))),
        (&ec, |payer, bytes| signed("p1363", &p1363_of(&payer.key.sign(bytes)))),
        (&ec, |payer, bytes| jws(&es256_jws(&payer.key, r#"{"alg":"ES256"}"#, bytes))),
        (&rsa, |payer, bytes| signed("raw", &payer.key.sign(bytes))),
        (&rsa, |payer, bytes| jws(&rs256_jws(&payer.key, r#"{"alg":"RS256"}"#, bytes))),
    ];
    for (number, (payer, sign)) in forms.into_iter().enumerate() {
        let payer =
            Payer::with(&bank, "bank-a", &format!("acct-{number}"), payer.key.clone(), required()).await;
        let begun = begin(&payer.id).await;
        let body = sign(&payer, &to_authorize(&payer, "", &begun));
        assert_eq!(done(&bank.post(&at(&payer.id, "/complete"), &body).await.unwrap())["state"], "active");
        payer.present(&bank, NOW).await;
    }

    let mut device = Authenticator::new("authenticator");
    let mut body = device.enrolment("acct-w");
    body["authorization"] = json!("required");
    device.id = enrol(&bank, &body).await;
    let begun = begin(&device.id).await;
    let payer =
        Payer { tenant: "bank-a", account: "acct-w".into(), id: device.id.clone(), key: device.key.clone() };
    let challenge = sha256(&to_authorize(&payer, "", &begun));
    let assertion = |sign_count| Assertion {
        client_data: json!({ "type": "webauthn.get", "challenge": crate::security_devices::base64url(&challenge),
            "origin": "https://pay.bank.example" }),
        rp_id: "bank.example".into(),
        flags: 5,
        sign_count,
        behind: Vec::new(),
    };
    let complete = async |body: &Value| bank.post(&at(&device.id, "/complete"), body).await.unwrap();
    let other = Assertion { rp_id: "other.example".into(), ..assertion(7) };
    assert_eq!(crate::bank::failed(&complete(&other.by(&device.key)).await), 2);
    let answer = complete(&signed("der", &device.key.sign(&to_authorize(&payer, "", &begun)))).await;
    assert_eq!(refused(&answer, 422, "invalid")["field"], "format");
    assert_eq!(done(&complete(&assertion(7).by(&device.key)).await)["state"], "active");
    // Its signature counter has moved with it.
    let pending = crate::security_devices::Pending::of(&bank, &device.id).await;
    device.sign_count = 6;
    let answer = pending.respond(&bank, &device.response(&pending)).await;
    assert_eq!(crate::bank::failed(&answer), 0);
    let pending = crate::security_devices::Pending::of(&bank, &device.id).await;
    pending.approved_by(&bank, &device.response(&pending)).await;
}

/// Stopping waits for the client's end of its connection, which needs a thread of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_between_the_steps_changes_nothing() {
    let mut daemon = Daemon::start_at(NOW);
    let gateway = daemon.connect("bank-a-gateway").await;
    let sms = Sms::new(&gateway, "acct-1").await;
    let id = sms.payer.id.clone();
    let wrong = json!({ "code": crate::presenting::another(&sms.code("uplink")), "from": ADDRESS });
    assert_eq!(crate::bank::failed(&sms.uplink(&gateway, &wrong).await), 2);
    daemon.kill();
    daemon.resume();
    let gateway = daemon.connect("bank-a-gateway").await;
    let now = done(&sms.view(&gateway).await);
    assert_eq!((&now["attempts_remaining"], &now["uplink_code"]), (&json!(2), &sms.begun["uplink_code"]));
    done(&sms.uplink(&gateway, &sms.uplink_body()).await);
    daemon.kill();
    daemon.resume();
    let gateway = daemon.connect("bank-a-gateway").await;
    assert_eq!(done(&sms.view(&gateway).await)["uplink_seen"], true);
    done(&sms.complete(&gateway, &sms.completion()).await);
    daemon.kill();
    daemon.resume();
    let gateway = daemon.connect("bank-a-gateway").await;
    let active = credential(&gateway, &id).await;
    assert_eq!((&active["state"], &active["failures"]), (&json!("active"), &json!(0)));
    let presented = sms.payer.present(&gateway, NOW).await;
    daemon.kill();
    daemon.resume();
    let gateway = daemon.connect("bank-a-gateway").await;
    let transaction = crate::presenting::claimed(&gateway, &presented.code).await;
    daemon.kill();
    daemon.resume();
    let gateway = daemon.connect("bank-a-gateway").await;
    let answer = crate::presenting::claim(&gateway, &presented.code).await;
    refused(&answer, 409, "state-conflict");
    let yes = sms.payer.decides("approve", &transaction);
    done(&crate::transactions_client::respond(&gateway, &transaction, &yes).await);
    drop(gateway);
    assert!(daemon.stop().success());
    // What went from the tables went from the sum.
    let (kept, kept_sum) = rows(&daemon).await;
    let token = TestToken::of(&daemon);
    assert_eq!(sum(&mut token.custodian(), &kept), kept_sum);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_past_its_time_goes_and_a_deleted_device_takes_its_authorization_along() {
    let mut daemon = Daemon::start_at(NOW);
    let gateway = daemon.connect("bank-a-gateway").await;
    let count = |daemon: &Daemon, table: &str| -> i64 {
        let database = rusqlite::Connection::open(daemon.database()).unwrap();
        database.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
        database.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    };
    let (deleted, left) = (Sms::new(&gateway, "acct-1").await, Sms::new(&gateway, "acct-2").await);
    let payer = Payer::enrol(&gateway, "bank-a", "acct-3").await;
    let (open, taken) = (payer.present(&gateway, NOW).await, payer.present(&gateway, NOW + 1).await);
    crate::presenting::claimed(&gateway, &taken.code).await;
    assert_eq!(count(&daemon, "device_authorization"), 2);
    done(&delete(&gateway, &deleted.payer.id).await);
    assert_eq!(count(&daemon, "device_authorization"), 1);
    refused(&deleted.view(&gateway).await, 404, "not-found");
    refused(&deleted.complete(&gateway, &deleted.completion()).await, 404, "not-found");
    assert_eq!(count(&daemon, "presentation"), 2);
    drop(gateway);

    assert!(daemon.stop().success());
    // The claimed transaction is written down as expired by the round at the start; nothing else goes yet.
    daemon.set_clock(NOW + 300 + DAY - 1);
    daemon.resume();
    pruned(&daemon, 1).await;
    assert_eq!((count(&daemon, "device_authorization"), count(&daemon, "presentation")), (1, 2));
    assert!(daemon.stop().success());
    daemon.set_clock(NOW + 300 + DAY);
    daemon.resume();
    pruned(&daemon, 2).await;
    assert_eq!((count(&daemon, "device_authorization"), count(&daemon, "presentation")), (0, 2));
    let gateway = daemon.connect("bank-a-gateway").await;
    refused(&left.view(&gateway).await, 404, "not-found");
    assert_eq!(taken.now(&gateway).await["transaction_state"], "expired");
    assert_eq!(open.now(&gateway).await["state"], "expired");
    // Another can be begun, and completed.
    let sms = Sms::begin(&gateway, &left.payer, &left.terminal).await;
    done(&sms.uplink(&gateway, &sms.uplink_body()).await);
    assert_eq!(done(&sms.complete(&gateway, &sms.completion()).await)["state"], "active");
    drop(gateway);
    assert!(daemon.stop().success());
    daemon.set_clock(NOW + 90 * DAY + 1);
    daemon.resume();
    pruned(&daemon, 3).await;
    assert_eq!(count(&daemon, "presentation"), 0);
    assert_eq!(count(&daemon, "payment"), 1, "it ended later");
    assert!(daemon.stop().success());
    let (kept, kept_sum) = rows(&daemon).await;
    let token = TestToken::of(&daemon);
    assert_eq!(sum(&mut token.custodian(), &kept), kept_sum);
}
