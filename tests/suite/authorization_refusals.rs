//! Authorizations that come to nothing: whatever is wrong, the answer is the same, and guesses are counted.

use serde_json::{Value, json};

use crate::bank::{act, credential, delete, done, failed, locked, refused, without_request_id};
use crate::certified_signers::{enrolment, exchange, lists};
use crate::client::{Connection, Response};
use crate::daemon::{Daemon, enrol, enrol_hotp, rfc_code, verify};
use crate::device_pki::{NOW_S, anchor, device, intermediate, leaf};
use crate::presenting::{
    ADDRESS, PRESENTATIONS, Payer, Presented, Sms, another, at, claimed, enrol_terminal, garbage, jws,
    to_authorize,
};
use crate::scrape::Scrape;
use crate::security_devices::{es256, es256_jws, signed};
use crate::transactions::NOW;
use crate::transactions_client::respond;

fn with(body: &Value, name: &str, value: impl Into<Value>) -> Value {
    let mut body = body.clone();
    body[name] = value.into();
    body
}

fn signature(payer: &Payer, bytes: &[u8]) -> Value {
    signed("der", &payer.key.sign(bytes))["signature"].clone()
}

/// One and the same answer, but for how many attempts are left.
fn same(answers: &[Response]) {
    let plain = |answer: &Response| with(&without_request_id(answer), "attempts_remaining", 0);
    for answer in answers {
        assert_eq!(plain(answer), plain(&answers[0]));
    }
}

async fn unlock(bank: &Connection, sms: &Sms) {
    done(&act(bank, &sms.payer.id, "unlock").await);
}

#[tokio::test]
async fn each_wrong_thing_about_the_message_is_the_same_refusal() {
    let daemon = Daemon::start_at(NOW);
    let gateway = daemon.connect("bank-a-gateway").await;
    let other = Sms::new(&gateway, "acct-2").await;
    let mut answers = Vec::new();
    let first = Sms::new(&gateway, "acct-1").await;
    for number in 0..9 {
        let sms = Sms::begin(&gateway, &first.payer, &first.terminal).await;
        let right = sms.uplink_body();
        let wrong = match number {
            0 => with(&right, "code", another(&sms.code("uplink"))),
            1 => with(&right, "code", sms.code("downlink")),
            2 => with(&right, "code", other.code("uplink")),
            3 => with(&right, "code", first.code("uplink")),
            4 => with(&right, "from", "+4915112345679"),
            5 => with(&right, "from", "004915112345678"),
            6 => with(&right, "from", format!("{ADDRESS} ")),
            7 => with(&right, "from", &ADDRESS[..13]),
            _ => with(&with(&right, "from", "x".repeat(256)), "code", "000000"),
        };
        let answer = sms.uplink(&gateway, &wrong).await;
        assert_eq!(failed(&answer), 2, "{number}");
        answers.push(answer);
        let now = done(&sms.view(&gateway).await);
        assert_eq!((&now["attempts_remaining"], &now["uplink_seen"]), (&json!(2), &json!(false)), "{number}");
        assert_eq!(credential(&gateway, &sms.payer.id).await["failures"], 1);
        done(&sms.uplink(&gateway, &right).await);
        unlock(&gateway, &sms).await;
    }
    same(&answers);
}

#[tokio::test]
async fn each_wrong_thing_about_the_completion_is_the_same_refusal() {
    let daemon = Daemon::start_at(NOW);
    let gateway = daemon.connect("bank-a-gateway").await;
    let other = Sms::new(&gateway, "acct-2").await;
    let required = json!({ "authorization": "required" });
    let twin = Payer::with(&gateway, "bank-a", "acct-1", es256("twin"), required).await;
    let first = Sms::new(&gateway, "acct-1").await;
    let mut answers = Vec::new();
    for number in 0..16 {
        let sms = Sms::begin(&gateway, &first.payer, &first.terminal).await;
        done(&sms.uplink(&gateway, &sms.uplink_body()).await);
        let right = sms.completion();
        let said = |name: &str, value: Value| {
            let begun = with(&sms.begun, name, value);
            signature(&sms.payer, &to_authorize(&sms.payer, &sms.terminal, &begun))
        };
        let by = |payer: &Payer| signature(payer, &sms.to_sign());
        let of = |payer: Payer| signature(&sms.payer, &to_authorize(&payer, &sms.terminal, &sms.begun));
        let wrong = match number {
            0 => with(&right, "downlink_code", another(&sms.code("downlink"))),
            1 => with(&right, "downlink_code", sms.code("uplink")),
            2 => with(&right, "downlink_code", other.code("downlink")),
            3 => with(&right, "downlink_code", first.code("downlink")),
            4 => with(&right, "signature", by(&other.payer)),
            5 => with(&right, "signature", by(&twin)),
            6 => with(&right, "signature", said("nonce", first.begun["nonce"].clone())),
            7 => with(&right, "signature", said("expires_at", json!("2027-01-15T08:05:01Z"))),
            8 => with(&right, "signature", of(Payer { id: twin.id.clone(), ..sms.payer.clone() })),
            9 => with(&right, "signature", of(Payer { account: "acct-2".into(), ..sms.payer.clone() })),
            10 => with(&right, "signature", of(Payer { tenant: "bank-b", ..sms.payer.clone() })),
            11 => with(
                &right,
                "signature",
                signature(&sms.payer, &to_authorize(&sms.payer, &other.terminal, &sms.begun)),
            ),
            12 => with(&right, "signature", signature(&sms.payer, &to_authorize(&sms.payer, "", &sms.begun))),
            13 => with(&right, "signature", garbage()["signature"].clone()),
            14 => {
                let token = es256_jws(&other.payer.key, r#"{"alg":"ES256"}"#, &sms.to_sign());
                with(&jws(&token), "downlink_code", sms.code("downlink"))
            }
            _ => with(
                &with(&right, "downlink_code", another(&sms.code("downlink"))),
                "signature",
                by(&other.payer),
            ),
        };
        let answer = sms.complete(&gateway, &wrong).await;
        assert_eq!(failed(&answer), 2, "{number}");
        answers.push(answer);
        assert_eq!(credential(&gateway, &sms.payer.id).await["state"], "unauthorized", "{number}");
        assert_eq!(credential(&gateway, &sms.payer.id).await["failures"], 1, "{number}");
        unlock(&gateway, &sms).await;
    }
    same(&answers);
    // One authorization never was another's.
    let sms = Sms::begin(&gateway, &first.payer, &first.terminal).await;
    done(&sms.uplink(&gateway, &sms.uplink_body()).await);
    done(&other.uplink(&gateway, &other.uplink_body()).await);
    assert_eq!(failed(&other.complete(&gateway, &sms.completion()).await), 2);
    done(&sms.complete(&gateway, &sms.completion()).await);
    done(&other.complete(&gateway, &other.completion()).await);
    let waiting = credential(&gateway, &twin.id).await;
    assert_eq!(waiting["state"], "unauthorized");
}

#[tokio::test]
async fn three_wrong_attempts_or_five_minutes_end_it() {
    let daemon = Daemon::start_at(NOW);
    let gateway = daemon.connect("bank-a-gateway").await;
    let over = async |sms: &Sms, what: &str| {
        println!("{what}");
        refused(&sms.view(&gateway).await, 410, "expired");
        refused(&sms.uplink(&gateway, &sms.uplink_body()).await, 410, "expired");
        refused(&sms.complete(&gateway, &sms.completion()).await, 410, "expired");
        assert_eq!(credential(&gateway, &sms.payer.id).await["state"], "unauthorized");
    };
    // Wrong messages, wrong codes and wrong signatures count together.
    let sms = Sms::new(&gateway, "acct-1").await;
    assert_eq!(failed(&sms.uplink(&gateway, &with(&sms.uplink_body(), "from", "x")).await), 2);
    done(&sms.uplink(&gateway, &sms.uplink_body()).await);
    let wrong = with(&sms.completion(), "downlink_code", another(&sms.code("downlink")));
    assert_eq!(failed(&sms.complete(&gateway, &wrong).await), 1);
    let wrong = with(&sms.completion(), "signature", garbage()["signature"].clone());
    assert_eq!(failed(&sms.complete(&gateway, &wrong).await), 0);
    over(&sms, "three attempts").await;
    assert_eq!(credential(&gateway, &sms.payer.id).await["failures"], 3);
    // Completing another one is a success, and gives the failures back.
    let sms = Sms::begin(&gateway, &sms.payer, &sms.terminal).await;
    done(&sms.uplink(&gateway, &sms.uplink_body()).await);
    assert_eq!(credential(&gateway, &sms.payer.id).await["failures"], 3, "the message alone is none");
    assert_eq!(done(&sms.complete(&gateway, &sms.completion()).await)["failures"], 0);

    for late in [false, true] {
        daemon.set_clock(NOW);
        let sms = Sms::new(&gateway, if late { "acct-3" } else { "acct-2" }).await;
        done(&sms.uplink(&gateway, &sms.uplink_body()).await);
        daemon.set_clock(NOW + 299 + u64::from(late));
        if late {
            over(&sms, "five minutes").await;
            daemon.set_clock(NOW + 1);
        }
        let again = sms.complete(&gateway, &sms.completion()).await;
        assert_eq!(done(&again)["state"], "active", "nothing was written down");
    }
}

/// Without codes there is nothing to guess: attempts are counted, and nobody is charged or locked.
#[tokio::test]
async fn by_password_only_the_attempts_are_counted() {
    let daemon = Daemon::start_at(NOW);
    let gateway = daemon.connect("bank-a-gateway").await;
    let payer = Payer::unauthorized(&gateway, "bank-a", "acct-1").await;
    let token = enrol_hotp(&gateway, "acct-1").await;
    for _ in 0..5 {
        failed(&verify(&gateway, &token, &rfc_code(5_000)).await);
    }
    locked(&verify(&gateway, &token, &rfc_code(0)).await);
    let begin = async || {
        let body = json!({ "method": "password", "evidence": "login 42" });
        let answer = gateway.post(&at(&payer.id, ""), &body).await.unwrap();
        assert_eq!(answer.status, 201);
        answer.json().unwrap()
    };
    let complete = async |body: &Value| gateway.post(&at(&payer.id, "/complete"), body).await.unwrap();
    let begun: Value = begin().await;
    let right = signed("der", &payer.key.sign(&to_authorize(&payer, "", &begun)));
    for (body, field) in [
        (with(&right, "downlink_code", "123456"), "downlink_code"),
        (with(&right, "downlink_code", "12345"), "downlink_code"),
    ] {
        assert_eq!(refused(&complete(&body).await, 422, "invalid")["field"], field);
    }
    let uplink = json!({ "code": "123456", "from": ADDRESS });
    refused(&gateway.post(&at(&payer.id, "/uplink"), &uplink).await.unwrap(), 409, "state-conflict");
    for left in [2, 1, 0] {
        assert_eq!(failed(&complete(&garbage()).await), left);
    }
    refused(&complete(&right).await, 410, "expired");
    assert_eq!(credential(&gateway, &payer.id).await["failures"], 0);
    let again: Value = begin().await;
    assert_eq!(failed(&complete(&right).await), 2, "a signature is for one authorization");
    let right = signed("der", &payer.key.sign(&to_authorize(&payer, "", &again)));
    assert_eq!(done(&complete(&right).await)["state"], "active");
    // The account is as locked as before.
    locked(&verify(&gateway, &token, &rfc_code(0)).await);
}

#[tokio::test]
async fn guesses_lock_the_device_and_its_account() {
    let daemon = Daemon::start_at(NOW);
    let gateway = daemon.connect("bank-a-gateway").await;
    let mut sms = Sms::new(&gateway, "acct-1").await;
    let token = enrol_hotp(&gateway, "acct-1").await;
    let twin = Payer::unauthorized(&gateway, "bank-a", "acct-1").await;
    for (guess, left) in [2, 1, 0, 1, 0].into_iter().enumerate() {
        if guess == 3 {
            sms = Sms::begin(&gateway, &sms.payer, &sms.terminal).await;
            done(&sms.uplink(&gateway, &sms.uplink_body()).await);
        }
        let answer = if guess < 3 {
            sms.uplink(&gateway, &with(&sms.uplink_body(), "code", another(&sms.code("uplink")))).await
        } else {
            let code = another(&sms.code("downlink"));
            sms.complete(&gateway, &with(&sms.completion(), "downlink_code", code)).await
        };
        assert_eq!(failed(&answer), left, "{guess}");
    }
    // Everything that takes a code is locked; nothing more is charged by trying, and the HSM is not asked.
    let seals = || {
        let labels = [("operation", "seal"), ("outcome", "answered")];
        Scrape::of(&daemon).value("hsm_authd_hsm_operations_total", &labels)
    };
    let before = seals();
    assert_eq!(locked(&sms.complete(&gateway, &sms.completion()).await), 900);
    assert_eq!(locked(&sms.uplink(&gateway, &sms.uplink_body()).await), 900);
    assert_eq!(seals(), before);
    let body = json!({ "method": "sms", "terminal": sms.terminal });
    for id in [&sms.payer.id, &twin.id] {
        assert_eq!(locked(&gateway.post(&at(id, ""), &body).await.unwrap()), 900);
    }
    assert_eq!(locked(&verify(&gateway, &token, &rfc_code(0)).await), 900);
    assert_eq!(credential(&gateway, &sms.payer.id).await["failures"], 5);
    daemon.set_clock(NOW + 899);
    let answer = gateway.post(&at(&sms.payer.id, ""), &body).await.unwrap();
    assert_eq!(locked(&answer), 1);
    daemon.set_clock(NOW + 900);
    let sms = Sms::begin(&gateway, &sms.payer, &sms.terminal).await;
    done(&sms.uplink(&gateway, &sms.uplink_body()).await);
    done(&sms.complete(&gateway, &sms.completion()).await);
    done(&verify(&gateway, &token, &rfc_code(0)).await);
}

#[tokio::test]
async fn a_code_is_sent_to_an_active_terminal_of_the_same_account() {
    let daemon = Daemon::start_at(NOW);
    let (gateway, other) = (daemon.connect("bank-a-gateway").await, daemon.connect("bank-b").await);
    let payer = Payer::unauthorized(&gateway, "bank-a", "acct-1").await;
    let right = enrol_terminal(&gateway, "acct-1", ADDRESS).await;
    let suspended = enrol_terminal(&gateway, "acct-1", ADDRESS).await;
    done(&act(&gateway, &suspended, "suspend").await);
    let gone = enrol_terminal(&gateway, "acct-1", ADDRESS).await;
    done(&delete(&gateway, &gone).await);
    let mut answers = Vec::new();
    for terminal in [
        &*enrol_terminal(&gateway, "acct-2", ADDRESS).await,
        &enrol_terminal(&other, "acct-1", ADDRESS).await,
        &suspended,
        &gone,
        &payer.id,
        &enrol_hotp(&gateway, "acct-1").await,
        "cred_00000000000000000000000000",
        "no-id",
    ] {
        let body = json!({ "method": "sms", "terminal": terminal });
        let answer = gateway.post(&at(&payer.id, ""), &body).await.unwrap();
        assert_eq!(refused(&answer, 422, "invalid")["field"], "terminal", "{terminal}");
        answers.push(answer);
    }
    for answer in &answers {
        assert_eq!(without_request_id(answer), without_request_id(&answers[0]));
    }
    refused(&gateway.get(&at(&payer.id, "")).await.unwrap(), 404, "not-found");

    // A terminal that goes in between takes its codes along.
    let sms = Sms::begin(&gateway, &payer, &right).await;
    done(&sms.uplink(&gateway, &sms.uplink_body()).await);
    done(&act(&gateway, &right, "suspend").await);
    refused(&sms.complete(&gateway, &sms.completion()).await, 409, "state-conflict");
    refused(&sms.uplink(&gateway, &sms.uplink_body()).await, 409, "state-conflict");
    refused(&sms.view(&gateway).await, 409, "state-conflict");
    done(&act(&gateway, &right, "resume").await);
    done(&sms.view(&gateway).await);
    done(&delete(&gateway, &right).await);
    refused(&sms.complete(&gateway, &sms.completion()).await, 409, "state-conflict");
    assert_eq!(credential(&gateway, &payer.id).await["failures"], 0);
}

#[tokio::test]
async fn what_has_another_form_is_invalid_and_costs_nothing() {
    let daemon = Daemon::start_at(NOW);
    let (gateway, other) = (daemon.connect("bank-a-gateway").await, daemon.connect("bank-b").await);
    let sms = Sms::new(&gateway, "acct-1").await;
    let id = sms.payer.id.clone();
    let (uplink, completion) = (sms.uplink_body(), sms.completion());
    let without = |name: &str| {
        let mut body = completion.clone();
        body.as_object_mut().unwrap().remove(name);
        body
    };
    done(&sms.uplink(&gateway, &uplink).await);
    for (step, body, field) in [
        ("", json!({ "method": "sms" }), "terminal"),
        ("", json!({ "method": "sms", "terminal": sms.terminal, "evidence": "x" }), "evidence"),
        ("", json!({ "method": "password" }), "evidence"),
        ("", json!({ "method": "password", "evidence": "" }), "evidence"),
        ("", json!({ "method": "password", "evidence": "x".repeat(129) }), "evidence"),
        ("", json!({ "method": "password", "evidence": "a\u{202e}b" }), "evidence"),
        ("", json!({ "method": "password", "evidence": "x", "terminal": sms.terminal }), "terminal"),
        ("", json!({ "method": "fax" }), "method"),
        ("", json!({}), "method"),
        ("/uplink", with(&uplink, "code", "12345"), "code"),
        ("/uplink", with(&uplink, "code", "1234567"), "code"),
        ("/uplink", with(&uplink, "code", "12345a"), "code"),
        ("/uplink", with(&uplink, "from", ""), "address"),
        ("/uplink", with(&uplink, "from", "x".repeat(257)), "address"),
        ("/uplink", with(&uplink, "from", "a\nb"), "address"),
        ("/uplink", json!({ "code": "123456" }), "from"),
        ("/complete", without("downlink_code"), "downlink_code"),
        ("/complete", with(&completion, "downlink_code", "12345"), "downlink_code"),
        ("/complete", without("signature"), "signature"),
        ("/complete", without("format"), "format"),
        ("/complete", with(&completion, "format", "raw"), "format"),
        ("/complete", with(&completion, "format", "webauthn"), "authenticator_data"),
        ("/complete", with(&completion, "unknown", 1), ""),
    ] {
        let answer = gateway.post(&at(&id, step), &body).await.unwrap();
        let problem = refused(&answer, 422, "invalid");
        assert_eq!(problem.get("field").and_then(Value::as_str).unwrap_or(""), field, "{step} {body}");
    }
    for (step, body) in
        [("", json!({ "method": "password", "evidence": "x" })), ("/complete", completion.clone())]
    {
        refused(&other.post(&at(&id, step), &body).await.unwrap(), 404, "not-found");
        refused(&gateway.post(&at("no-id", step), &body).await.unwrap(), 404, "not-found");
    }
    refused(&other.get(&at(&id, "")).await.unwrap(), 404, "not-found");
    let now = done(&sms.view(&gateway).await);
    assert_eq!((&now["attempts_remaining"], &now["nonce"]), (&json!(3), &sms.begun["nonce"]));
    done(&sms.complete(&gateway, &completion).await);

    // Nor is anything else made to wait than a device that signs.
    for body in [
        json!({ "type": "hotp", "account": "a", "authorization": "required" }),
        json!({ "type": "terminal", "account": "a", "address": "+1", "authorization": "required" }),
        json!({ "type": "signer", "account": "a", "public_key_pem": "x", "authorization": "maybe" }),
    ] {
        refused(&gateway.post("/v1/credentials", &body).await.unwrap(), 422, "invalid");
    }
}

#[tokio::test]
async fn with_a_clock_that_stepped_nobody_is_authorized() {
    let daemon = Daemon::start_at(NOW);
    let gateway = daemon.connect("bank-a-gateway").await;
    let sms = Sms::new(&gateway, "acct-1").await;
    done(&sms.uplink(&gateway, &sms.uplink_body()).await);
    daemon.step_clock(NOW + 60);
    let body = json!({ "method": "sms", "terminal": sms.terminal });
    refused(&gateway.post(&at(&sms.payer.id, ""), &body).await.unwrap(), 503, "unavailable");
    refused(&sms.view(&gateway).await, 503, "unavailable");
    refused(&sms.uplink(&gateway, &sms.uplink_body()).await, 503, "unavailable");
    refused(&sms.complete(&gateway, &sms.completion()).await, 503, "unavailable");
    let wrong = with(&sms.completion(), "downlink_code", another(&sms.code("downlink")));
    refused(&sms.complete(&gateway, &wrong).await, 503, "unavailable");
    assert_eq!(credential(&gateway, &sms.payer.id).await["failures"], 0);
}

/// Right ones at once: one of them counts, and wrong ones at once are all counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn attempts_at_once_are_all_counted_and_one_completes() {
    let daemon = Daemon::start_at(NOW);
    let gateway = daemon.connect("bank-a-gateway").await;
    let sms = Sms::new(&gateway, "acct-1").await;
    let at_once = async |body: Value, step: &'static str| {
        let mut all = Vec::new();
        for _ in 0..12 {
            let (gateway, body, path) = (gateway.clone(), body.clone(), at(&sms.payer.id, step));
            all.push(tokio::spawn(async move { gateway.post(&path, &body).await.unwrap().status.as_u16() }));
        }
        let mut statuses = Vec::new();
        for one in all {
            statuses.push(one.await.unwrap());
        }
        statuses.sort_unstable();
        statuses
    };
    let wrong = with(&sms.uplink_body(), "from", "x");
    assert_eq!(at_once(wrong, "/uplink").await, [vec![403; 3], vec![410; 9]].concat());
    assert_eq!(credential(&gateway, &sms.payer.id).await["failures"], 3);
    let sms = Sms::begin(&gateway, &sms.payer, &sms.terminal).await;
    assert_eq!(at_once(sms.uplink_body(), "/uplink").await, [200; 12]);
    assert_eq!(at_once(sms.completion(), "/complete").await, [vec![200], vec![409; 11]].concat());
    assert_eq!(credential(&gateway, &sms.payer.id).await["failures"], 0);
}

/// A certificate is held against anchors and lists at each use, here too.
#[tokio::test]
async fn while_nothing_vouches_for_a_device_it_is_not_authorized_and_presents_and_decides_nothing() {
    let daemon = Daemon::start_at(NOW_S);
    exchange(&daemon, &[&anchor()], &lists(&[]));
    let bank = daemon.connect("bank-a-gateway").await;
    let mut body = enrolment(&[&leaf(), &intermediate()]);
    body["authorization"] = json!("required");
    let id = enrol(&bank, &body).await;
    let payer = Payer { tenant: "bank-a", account: "acct-1".into(), id, key: device().key };
    let begin = json!({ "method": "password", "evidence": "login 42" });
    let begun: Value = bank.post(&at(&payer.id, ""), &begin).await.unwrap().json().unwrap();
    let completion = signed("der", &payer.key.sign(&to_authorize(&payer, "", &begun)));
    let complete = async || bank.post(&at(&payer.id, "/complete"), &completion).await.unwrap();
    let revoke = || exchange(&daemon, &[&anchor()], &lists(&[3]));
    let trust = || exchange(&daemon, &[&anchor()], &lists(&[]));
    revoke();
    assert_eq!(failed(&complete().await), 2);
    trust();
    done(&complete().await);
    let request = payer.body(NOW_S);
    revoke();
    assert_eq!(failed(&bank.post(PRESENTATIONS, &request).await.unwrap()), 5);
    trust();
    let presented = Presented::of(&bank.post(PRESENTATIONS, &request).await.unwrap().json().unwrap());
    let transaction = claimed(&bank, &presented.code).await;
    revoke();
    for (decision, left) in [("approve", 2), ("decline", 1)] {
        assert_eq!(failed(&respond(&bank, &transaction, &payer.decides(decision, &transaction)).await), left);
    }
    trust();
    done(&respond(&bank, &transaction, &payer.decides("approve", &transaction)).await);
}
