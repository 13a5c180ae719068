//! Right signatures, what has not the form of one, and that none of them costs anybody anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use p256::ecdsa::Signature;
use rusqlite::OpenFlags;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::bank::{act, credential, done, failed, locked, path, refused};
use crate::custodians::await_up;
use crate::daemon::{Daemon, SEED_HEX, enrol, enrol_hotp, rfc_code, verify};
use crate::processes::eventually;
use crate::refusals::{Case, all_refused};
use crate::signers::{
    Device, PAYLOAD, enrol_rsa, hex, openssls_der, openssls_pem, present, presented, rsa_keys,
};
use crate::submissions::{Crowd, Outcome};

/// The same signature with n - s in place of s.
fn mirrored(signature: &Signature) -> Signature {
    Signature::from_scalars(signature.r().to_bytes(), (-*signature.s()).to_bytes()).unwrap()
}

#[tokio::test]
async fn a_right_signature_verifies_in_every_format_as_often_as_it_is_shown() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let device = Device::new(1);
    let id = device.enrol(&bank, "acct-1").await;
    let said = |id: &str| json!({ "verified": true, "id": id, "account": "acct-1" });
    let large = vec![0x5a; 45 * 1024];
    for payload in [PAYLOAD, &[0], &[0; 64], "\u{20ac} 12,50".as_bytes(), &large] {
        let signature = device.sign(payload);
        for signature in [signature, mirrored(&signature)] {
            for _ in 0..2 {
                let p1363 = present(&bank, &id, payload, &signature.to_bytes(), "p1363").await;
                assert_eq!(done(&p1363), said(&id));
                let der = present(&bank, &id, payload, signature.to_der().as_bytes(), "der").await;
                assert_eq!(done(&der), said(&id));
            }
        }
    }
    let body =
        json!({ "type": "signer", "account": "acct-1", "public_key_pem": openssls_pem("p256-compressed") });
    let id = enrol(&bank, &body).await;
    assert_eq!(done(&present(&bank, &id, PAYLOAD, &openssls_der(), "der").await), said(&id));
    for key in rsa_keys() {
        let id = enrol_rsa(&bank, &key).await;
        let (zero, plus) = (&key["leading_zero"], &key["modulus_added"]);
        assert_eq!(hex(&zero["hex"])[0], 0);
        for (payload, right) in [
            (PAYLOAD, &key["right_hex"]),
            (zero["payload"].as_str().unwrap().as_bytes(), &zero["hex"]),
            (plus["payload"].as_str().unwrap().as_bytes(), &plus["hex"]),
        ] {
            for _ in 0..2 {
                assert_eq!(done(&present(&bank, &id, payload, &hex(right), "raw").await), said(&id));
            }
        }
    }
}

#[tokio::test]
async fn what_has_not_the_form_of_a_signature_is_invalid() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let device = Device::new(1);
    let id = device.enrol(&bank, "acct-1").await;
    let rsa_key = &rsa_keys()[0];
    let rsa = enrol_rsa(&bank, rsa_key).await;
    let right = device.p1363(PAYLOAD);
    let good = presented(PAYLOAD, &right, "p1363");
    let mut cases = Vec::new();
    let mut add = |what: &str, id: &str, body: &Value, field: Option<&'static str>| {
        let case = Case::post(what, &path(id, "verify"), body.to_string(), 422);
        cases.push(match field {
            Some(field) => case.about(field),
            None => case,
        });
    };
    // Not of the alphabet; padding is left out, too much, or not at the end; stray bits; white space.
    let texts = [
        "",
        "=",
        "AA",
        "AAA",
        "A===",
        "AA=A",
        "AB==",
        "AAAA=",
        "AAAA====",
        "AA==AA==",
        " AAAA",
        "AAAA\n",
        "-_-_",
        "\u{e9}AAA",
        "AAA\0",
    ];
    for field in ["payload_base64", "signature_base64"] {
        for text in texts {
            let mut body = good.clone();
            body[field] = json!(text);
            add(&format!("{field} {text:?}"), &id, &body, Some(field));
        }
        for value in [json!(7), json!([]), Value::Null] {
            let mut body = good.clone();
            body[field] = value;
            add("another type", &id, &body, None);
        }
    }
    let mut url = good.clone();
    url["signature_base64"] = json!(BASE64URL.encode(&[0xff; 64]));
    add("base64url", &id, &url, Some("signature_base64"));
    url["signature_base64"] = json!(BASE64_NOPAD.encode(&right));
    add("no padding", &id, &url, Some("signature_base64"));
    for field in ["payload_base64", "signature_base64", "format"] {
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(field);
        add("without it", &id, &body, Some(field));
        add("alone", &id, &json!({ field: good[field] }), None);
    }
    for format in ["", "DER", "P1363", "jws", "webauthn", "raw "] {
        add("no format", &id, &presented(PAYLOAD, &right, format), None);
    }
    add("raw for ES256", &id, &presented(PAYLOAD, &right, "raw"), Some("format"));
    for format in ["der", "p1363"] {
        let body = presented(PAYLOAD, &hex(&rsa_key["right_hex"]), format);
        add("not raw for RS256", &rsa, &body, Some("format"));
    }
    for (field, value) in [("otp", "123456"), ("challenge", "12345678"), ("session", "s")] {
        let mut body = good.clone();
        body[field] = json!(value);
        add("a code, too", &id, &body, None);
        add(
            "another type of evidence",
            &id,
            &json!({ "otp": "123456", "challenge": "12345678" }),
            Some("otp"),
        );
    }
    add("a code", &id, &json!({ "otp": "123456" }), Some("otp"));
    let mut digest = good.clone();
    digest["digest_hex"] = json!("00");
    add("an unknown field", &id, &digest, None);

    let seeded = |kind: &str| json!({ "type": kind, "account": "acct-1", "seed_hex": SEED_HEX });
    let ocra = json!({ "type": "ocra", "account": "acct-1", "seed_hex": SEED_HEX, "use": "verify",
        "suite": "OCRA-1:HOTP-SHA1-6:QN08" });
    let transaction = json!({ "type": "ocra", "account": "acct-1", "suite": "OCRA-1:HOTP-SHA1-6:QN08" });
    for body in [seeded("hotp"), seeded("totp"), ocra, transaction] {
        let token = enrol(&bank, &body).await;
        add("to a token", &token, &good, Some("signature_base64"));
    }
    all_refused(&daemon, &bank, cases).await;
    done(&bank.post(&path(&id, "verify"), &good).await.unwrap());
}

/// How many entries of this event the audit log has, and the request ids of them.
fn audited(daemon: &Daemon, event: &str) -> Vec<String> {
    let database =
        rusqlite::Connection::open_with_flags(daemon.database(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut query = database
        .prepare(
            "SELECT request_id FROM audit WHERE event = ? AND tenant = 'bank-a' AND client = 'bank-a'
                  AND credential IS NOT NULL ORDER BY seq",
        )
        .unwrap();
    let ids = query.query_map([event], |row| row.get(0)).unwrap();
    ids.map(Result::unwrap).collect()
}

#[tokio::test]
async fn signatures_are_not_charged_and_no_lock_stops_them() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let device = Device::new(1);
    let id = device.enrol(&bank, "acct-1").await;
    let token = enrol_hotp(&bank, "acct-1").await;
    assert_eq!(failed(&verify(&bank, &token, &rfc_code(5_000)).await), 4);
    let before = credential(&bank, &id).await;
    let mut refusals = Vec::new();
    for number in 0..50 {
        let wrong = device.p1363(format!("pay {number} EUR to Mallory").as_bytes());
        let answer = present(&bank, &id, PAYLOAD, &wrong, "p1363").await;
        assert_eq!(failed(&answer), 4, "what the account's codes have left");
        refusals.push(answer.header("x-request-id").unwrap().to_owned());
    }
    assert_eq!(credential(&bank, &id).await, before);
    assert_eq!(before["failures"], 0);
    for left in [3, 2, 1, 0] {
        assert_eq!(failed(&verify(&bank, &token, &rfc_code(5_000)).await), left);
    }
    locked(&verify(&bank, &token, &rfc_code(0)).await);
    let other_token = enrol_hotp(&bank, "acct-1").await;
    locked(&verify(&bank, &other_token, &rfc_code(0)).await);

    let right = present(&bank, &id, PAYLOAD, &device.p1363(PAYLOAD), "p1363").await;
    done(&right);
    let wrong = present(&bank, &id, PAYLOAD, &device.p1363(b"x"), "p1363").await;
    assert_eq!(failed(&wrong), 0);
    refusals.push(wrong.header("x-request-id").unwrap().to_owned());
    locked(&verify(&bank, &token, &rfc_code(0)).await);
    assert_eq!(audited(&daemon, "signature.refused"), refusals);
    assert_eq!(audited(&daemon, "signature.verified"), [right.header("x-request-id").unwrap()]);
}

#[tokio::test]
async fn a_clock_that_stepped_stops_no_signature() {
    const NOW: u64 = 1_893_456_000;
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let device = Device::new(1);
    let id = device.enrol(&bank, "acct-1").await;
    let totp = enrol(&bank, &json!({ "type": "totp", "account": "acct-2" })).await;
    daemon.step_clock(NOW + 3_600);
    refused(&verify(&bank, &totp, "123456").await, 503, "unavailable");
    done(&present(&bank, &id, PAYLOAD, &device.p1363(PAYLOAD), "p1363").await);
    failed(&present(&bank, &id, PAYLOAD, &device.p1363(b"x"), "p1363").await);
}

#[tokio::test]
async fn an_idempotency_key_is_worth_the_first_answer() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let device = Device::new(1);
    let id = device.enrol(&bank, "acct-1").await;
    let keyed = async |key: &str, body: &Value| {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        bank.request("POST", &path(&id, "verify"), &headers, body.to_string()).await.unwrap()
    };
    let right = presented(PAYLOAD, &device.p1363(PAYLOAD), "p1363");
    let wrong = presented(PAYLOAD, &device.p1363(b"x"), "p1363");
    for _ in 0..3 {
        assert_eq!(done(&keyed("right", &right).await)["verified"], true);
        assert_eq!(failed(&keyed("wrong", &wrong).await), 5);
    }
    assert_eq!(audited(&daemon, "signature.verified").len(), 1);
    assert_eq!(audited(&daemon, "signature.refused").len(), 1);
    let der = presented(PAYLOAD, device.sign(PAYLOAD).to_der().as_bytes(), "der");
    for (key, body) in [("right", &wrong), ("right", &der), ("wrong", &right)] {
        refused(&keyed(key, body).await, 422, "idempotency-mismatch");
    }
    done(&keyed("der", &der).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_are_all_verified() {
    let daemon = Daemon::start_with(&["--custodians", "4"], &[]);
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let device = Device::new(1);
    let bank = crowd.connection(1);
    let one = device.submission(&device.enrol(bank, "acct-1").await, PAYLOAD);
    let tally = crowd.tally(&[one], 200).await[0];
    assert_eq!(tally.yes, 200, "{tally:?}");

    // More than may wait for one account: a signature waits for nobody.
    let mut many = Vec::new();
    for _ in 0..32 {
        many.push(device.submission(&device.enrol(bank, "acct-1").await, PAYLOAD));
    }
    for tally in crowd.tally(&many, 24).await {
        assert_eq!(tally.yes, 24, "{tally:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn codes_of_the_same_account_stand_in_no_signatures_way() {
    let daemon = Daemon::start();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let device = Device::new(1);
    let bank = crowd.connection(1);
    let right = device.submission(&device.enrol(bank, "acct-1").await, PAYLOAD);
    let codes = AtomicBool::new(true);
    let mut tokens = Vec::new();
    for _ in 0..4 {
        tokens.push(enrol_hotp(bank, "acct-1").await);
    }
    // Each changes the account's row.
    let change = async |place: usize| {
        for _ in 0..10 {
            let connection = crowd.connection(5 * place);
            let answer = verify(connection, &tokens[place], &rfc_code(5_000)).await;
            assert!([403, 423].contains(&answer.status.as_u16()), "{}", answer.status);
            done(&act(connection, &tokens[place], "unlock").await);
        }
    };
    let changes = async {
        tokio::join!(change(0), change(1), change(2), change(3));
        codes.store(false, Ordering::Relaxed);
    };
    let signatures = async {
        while codes.load(Ordering::Relaxed) {
            let tally = crowd.tally(std::slice::from_ref(&right), 200).await[0];
            assert_eq!(tally.yes, 200, "{tally:?}");
        }
    };
    tokio::join!(changes, signatures);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custodians_killed_under_load_cost_nobody_a_signature() {
    let daemon = Daemon::start();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    await_up(&daemon, 2).await;
    let (stop, verified) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut users = JoinSet::new();
    for number in 0..16u8 {
        let (crowd, stop, verified) = (crowd.clone(), stop.clone(), verified.clone());
        let device = Device::new(number + 1);
        let id = device.enrol(crowd.connection(1), &format!("acct-{number}")).await;
        users.spawn(async move {
            let right = device.submission(&id, PAYLOAD);
            let mut wrong = right.clone();
            wrong.body["payload_base64"] = json!(BASE64.encode(b"pay 9 EUR to Mallory"));
            let mut requests = usize::from(number)..;
            while !stop.load(Ordering::Relaxed) {
                for (submission, expected) in [(&right, Outcome::Yes), (&wrong, Outcome::No)] {
                    let connection = crowd.connection(requests.next().unwrap());
                    assert_eq!(submission.send(connection).await, expected);
                }
                verified.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for round in 0..4 {
        let goal = verified.load(Ordering::Relaxed) + 32;
        eventually("signatures go on", async || (verified.load(Ordering::Relaxed) >= goal).then_some(()))
            .await;
        kill(Pid::from_raw(daemon.pids("custodian")[0]), Signal::SIGKILL).unwrap();
        await_up(&daemon, 3 + round).await;
    }
    stop.store(true, Ordering::Relaxed);
    users.join_all().await;
}
