//! What no bank should send about an OCRA token, and when even a right code is not looked at.

use serde_json::{Value, json};

use crate::bank::{act, credential, credentials, done, failed, locked, path, refused};
use crate::daemon::{Daemon, SEED_HEX, enrol, enrol_hotp, text};
use crate::ocra::{NOW, STEP, answer, resync, wrong};
use crate::ocra_token::{Input, OcraToken, question};
use crate::refusals::{Case, MARK, all_refused};

const PLAIN: &str = "OCRA-1:HOTP-SHA256-8:QN08";
const FULL: &str = "OCRA-1:HOTP-SHA256-8:C-QA08-PSHA1-S008-T1M";

/// An enrolment of a suite, with one field set.
fn with(suite: &str, field: &str, value: Value) -> Vec<u8> {
    let mut body = json!({ "type": "ocra", "account": MARK, "suite": suite, "use": "verify" });
    if suite.contains("-P") {
        body["pin"] = json!("1234");
    }
    body[field] = value;
    body.to_string().into()
}

#[tokio::test]
async fn fields_of_an_enrolment() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let post = |what: &str, body: Vec<u8>| Case::post(what, "/v1/credentials", body, 422);
    let mut cases = Vec::new();
    for suite in [
        "",
        MARK,
        "OCRA-1",
        "OCRA-2:HOTP-SHA1-6:QN08",
        "ocra-1:hotp-sha1-6:qn08",
        "OCRA-1:HOTP-SHA1-6:QN08 ",
        "OCRA-1:HOTP-MD5-6:QN08",
        "OCRA-1:HOTP-SHA1-0:QN08",
        "OCRA-1:HOTP-SHA1-4:QN08",
        "OCRA-1:HOTP-SHA1-5:QN08",
        "OCRA-1:HOTP-SHA1-11:QN08",
        "OCRA-1:HOTP-SHA1-06:QN08",
        "OCRA-1:HOTP-SHA1-6:",
        "OCRA-1:HOTP-SHA1-6:C",
        "OCRA-1:HOTP-SHA1-6:QN07",
        "OCRA-1:HOTP-SHA1-6:QN8",
        "OCRA-1:HOTP-SHA1-6:QN65",
        "OCRA-1:HOTP-SHA1-6:QB08",
        "OCRA-1:HOTP-SHA1-6:QN08-C",
        "OCRA-1:HOTP-SHA1-6:QN08-T1M-S064",
        "OCRA-1:HOTP-SHA1-6:QN08-S000",
        "OCRA-1:HOTP-SHA1-6:QN08-S64",
        "OCRA-1:HOTP-SHA1-6:QN08-S513",
        "OCRA-1:HOTP-SHA1-6:QN08-T0S",
        "OCRA-1:HOTP-SHA1-6:QN08-T60S",
        "OCRA-1:HOTP-SHA1-6:QN08-T49H",
        "OCRA-1:HOTP-SHA1-6:QN08-PMD5",
        "OCRA-1:HOTP-SHA1-6:QN08-PSHA1-PSHA1",
        "OCRA-1:HOTP-SHA1-6:QN08-unmistakable",
    ] {
        cases.push(post(suite, with(PLAIN, "suite", json!(suite))).about("suite"));
    }
    for suite in [json!(null), json!(7), json!([PLAIN]), json!({ "text": PLAIN })] {
        cases.push(post(&format!("suite {suite}"), with(PLAIN, "suite", suite)));
    }
    cases
        .push(post("no suite", json!({ "type": "ocra", "account": MARK }).to_string().into()).about("suite"));
    // What the suite does not have, whatever it says; what it has, and cannot be.
    for (field, values) in [
        ("counter", vec![json!(0), json!(1)]),
        ("look_ahead", vec![json!(0), json!(10)]),
        ("skew_steps", vec![json!(0), json!(1)]),
        ("pin", vec![json!("1234"), json!("unmistakable"), json!("")]),
    ] {
        for value in values {
            cases.push(post(&format!("{field} without"), with(PLAIN, field, value)).about(field));
        }
    }
    for (field, values) in [
        ("counter", vec![json!(1_u64 << 63), json!(u64::MAX)]),
        ("look_ahead", vec![json!(101), json!(255), json!(256)]),
        ("skew_steps", vec![json!(3), json!(255), json!(256)]),
        ("pin", ["", "1", "123", &"1".repeat(65), "12\n34", "1234\0", "\u{7f}1234"].map(Value::from).into()),
    ] {
        for value in values {
            let what = format!("{field} {value}");
            cases.push(post(&what, with(FULL, field, value)).about(field));
        }
        for value in [json!(-1), json!(0.5), json!(null), json!([1]), json!(true), json!({})] {
            cases.push(post(&format!("{field} {value}"), with(FULL, field, value.clone())));
            cases.push(post(&format!("{field} {value}"), with(PLAIN, field, value)));
        }
    }
    cases.push(post("a number as PIN", with(FULL, "pin", json!(1234))));
    let no_pin = json!({ "type": "ocra", "account": MARK, "suite": FULL, "use": "verify" });
    cases.push(post("no PIN", no_pin.to_string().into()).about("pin"));
    // A transaction's session is a digest, which has to fit.
    for bytes in ["001", "008", "031"] {
        let suite = format!("OCRA-1:HOTP-SHA256-8:QN08-S{bytes}");
        let body = json!({ "type": "ocra", "account": MARK, "suite": suite });
        cases.push(post(&format!("a session of {bytes}"), body.to_string().into()).about("suite"));
        cases.push(post(&suite, with(&suite, "use", json!("transaction"))).about("suite"));
    }
    for usage in
        [json!(""), json!("both"), json!("Verify"), json!(MARK), json!(null), json!(["verify"]), json!(0)]
    {
        cases.push(post(&format!("use {usage}"), with(PLAIN, "use", usage)));
    }
    for (field, value) in [
        ("algorithm", json!("SHA1")),
        ("digits", json!(6)),
        ("period", json!(60)),
        ("export", json!("otpauth")),
        ("challenge", json!("12345678")),
        ("session", json!("s")),
        ("jwk", json!({})),
        ("public_key_pem", json!("")),
        ("Pin", json!("1234")),
        ("unmistakable", json!(1)),
        ("seed_hex", json!(null)),
        ("seed_hex", json!("")),
        ("seed_hex", json!("a5".repeat(15))),
        ("seed_base32", json!("A".repeat(200))),
    ] {
        cases.push(post(field, with(PLAIN, field, value)));
    }
    for kind in ["hotp", "totp"] {
        for (field, value) in [("suite", json!(PLAIN)), ("use", json!("verify")), ("pin", json!("1234"))] {
            let mut body = json!({ "type": kind, "account": MARK });
            body[field] = value;
            cases.push(post(&format!("{field} of {kind}"), body.to_string().into()));
        }
    }
    let twice = format!(r#"{{"type": "ocra", "account": "a", "suite": "{PLAIN}", "suite": "{PLAIN}"}}"#);
    cases.push(post("two suites", twice.into()));
    all_refused(&daemon, &bank, cases).await;
    assert!(!daemon.log().contains(MARK), "the log repeats no input");

    for (suite, field, value) in [
        (PLAIN, "use", json!("verify")),
        (PLAIN, "use", json!("transaction")),
        ("OCRA-1:HOTP-SHA256-8:QN08-S032", "use", json!("transaction")),
        ("OCRA-1:HOTP-SHA256-8:QN08-S031", "use", json!("verify")),
        (PLAIN, "seed_hex", json!("a5".repeat(64))),
        (FULL, "counter", json!((1_u64 << 63) - 1)),
        (FULL, "look_ahead", json!(0)),
        (FULL, "look_ahead", json!(100)),
        (FULL, "skew_steps", json!(0)),
        (FULL, "skew_steps", json!(2)),
        (FULL, "pin", json!("1234")),
        (FULL, "pin", json!("\u{1f511}".repeat(16))),
    ] {
        let json = [("content-type", "application/json")];
        let answer =
            bank.request("POST", "/v1/credentials", &json, with(suite, field, value.clone())).await.unwrap();
        assert_eq!(answer.status, 201, "{field} {value}: {}", text(&answer));
        let shown = answer.json().unwrap();
        let has = |field: &str| shown.get(field).is_some();
        assert_eq!(
            (has("counter"), has("look_ahead"), has("skew_steps")),
            (suite == FULL, suite == FULL, suite == FULL)
        );
        assert!(!has("pin") && !has("seed_hex") && !has("algorithm") && !has("digits"), "{shown}");
        assert_eq!(shown["suite"], suite);
        if has(field) {
            assert_eq!(shown[field], value);
        }
    }
}

#[tokio::test]
async fn fields_of_a_submission() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let (plain, full) = (OcraToken::new(PLAIN), OcraToken::new(FULL));
    let plain_id = enrol(&bank, &plain.enrolment("acct-1")).await;
    let full_id = enrol(&bank, &full.enrolment("acct-2")).await;
    let hotp = enrol_hotp(&bank, "acct-3").await;
    let input =
        Input { counter: Some(0), session: Some(b"session"), step: Some(STEP), ..question("12345678") };
    let (plain_code, full_code) = (plain.code(question("12345678")), full.code(input));
    let mut cases = Vec::new();
    for (action, field) in [("verify", "otp"), ("resync", "otps")] {
        let codes = |code: &str| if action == "verify" { json!(code) } else { json!([code, code]) };
        let (plain_path, full_path, hotp_path) =
            (path(&plain_id, action), path(&full_id, action), path(&hotp, action));
        let mut add = |what: String, path: &str, body: Value, about: Option<&'static str>| {
            let case = Case::post(what, path, body.to_string(), 422);
            cases.push(Case { field: about, ..case });
        };
        // The second has no counter: resync is 409 whatever is asked.
        let of_plain: &[Value] = if action == "verify" {
            &[
                "",
                "1234567a",
                "12345678901234567",
                "0x123456",
                " 1234567",
                "12345678 ",
                "-1234567",
                "\u{661}2345678",
                MARK,
            ]
            .map(Value::from)
        } else {
            &[]
        };
        for challenge in of_plain {
            let body = json!({ field: codes(&plain_code), "challenge": challenge });
            add(format!("challenge {challenge}"), &plain_path, body, Some("challenge"));
        }
        for challenge in ["", "12345-78", "a b", "\u{e4}", "12345678901234567", &"1".repeat(60_000)] {
            let body = json!({ field: codes(&full_code), "challenge": challenge, "session": "session" });
            add(format!("{action} {challenge:.20}"), &full_path, body, Some("challenge"));
        }
        for session in ["", "ninebytes", "\u{1f3e6}\u{1f3e6}\u{1f3e6}", &"s".repeat(60_000)] {
            let body = json!({ field: codes(&full_code), "challenge": "12345678", "session": session });
            add(format!("{action} session {session:.20}"), &full_path, body, Some("session"));
        }
        let body = json!({ field: codes(&full_code), "challenge": "12345678" });
        add(format!("{action} without its session"), &full_path, body, Some("session"));
        let body = json!({ field: codes(&full_code), "session": "session" });
        add(format!("{action} of a session alone"), &full_path, body, Some("challenge"));
        for wrong in [json!(null), json!(7), json!(["12345678"]), json!({}), json!(true)] {
            for name in ["challenge", "session"] {
                let mut body =
                    json!({ field: codes(&full_code), "challenge": "12345678", "session": "session" });
                body[name] = wrong.clone();
                add(format!("{action} {name} {wrong}"), &full_path, body, None);
            }
        }
        for digits in [6, 7, 9, 10] {
            let code = "1".repeat(digits);
            let body = json!({ field: codes(&code), "challenge": "12345678", "session": "session" });
            add(format!("{action} {digits} digits"), &full_path, body, Some(field));
        }
        for extra in ["pin", "counter", "question", "time_step", "unmistakable"] {
            let mut body = json!({ field: codes(&full_code), "challenge": "12345678", "session": "session" });
            body[extra] = json!("1234");
            add(format!("{action} {extra}"), &full_path, body, None);
        }
        let body = json!({ field: codes("755224"), "challenge": "12345678" });
        add(format!("{action} of a question to hotp"), &hotp_path, body, Some("challenge"));
        let body = json!({ field: codes("755224"), "challenge": "" });
        add(format!("{action} of an empty question to hotp"), &hotp_path, body, Some("challenge"));
        let body = json!({ field: codes(&full_code) });
        add(format!("{action} without a question"), &full_path, body, Some("challenge"));
    }
    let add = |body: Value| Case::post(body.to_string(), &path(&plain_id, "verify"), body.to_string(), 422);
    cases.push(add(json!({ "otp": plain_code })).about("challenge"));
    cases.push(add(json!({ "challenge": "12345678" })).about("otp"));
    cases.push(add(json!({ "otp": plain_code, "challenge": "12345678", "session": "s" })).about("session"));
    cases.push(add(json!({ "otp": plain_code, "challenge": "12345678", "session": "" })).about("session"));
    cases.push(add(json!({ "otp": plain_code, "challenge": "1", "payload_base64": "aGk=" })));
    all_refused(&daemon, &bank, cases).await;
    assert!(!daemon.log().contains(MARK), "the log repeats no input");

    // Nothing was charged, and the codes are still good.
    done(&answer(&bank, &plain_id, &plain_code, question("12345678")).await);
    done(&answer(&bank, &full_id, &full_code, input).await);
}

#[tokio::test]
async fn five_wrong_answers_lock_and_no_question_buys_more() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    for (number, suite) in
        [PLAIN, "OCRA-1:HOTP-SHA256-8:QN08-T1M", "OCRA-1:HOTP-SHA256-8:C-QN08"].into_iter().enumerate()
    {
        let token = OcraToken::new(suite);
        let id = enrol(&bank, &token.enrolment(&format!("acct-{number}"))).await;
        let asked = |text| Input { counter: Some(0), step: Some(STEP), ..question(text) };
        let questions = ["10000001", "10000002", "10000003", "10000004", "10000005"];
        for (text, left) in questions.into_iter().zip((0..5).rev()) {
            let otp = wrong(&token.code(asked(text)));
            assert_eq!(failed(&answer(&bank, &id, &otp, asked(text)).await), left);
        }
        assert_eq!(locked(&answer(&bank, &id, &token.code(asked("1")), asked("1")).await), 900);
        if suite.contains(":C-") {
            let otps = [0, 1].map(|counter| token.code(Input { counter: Some(counter), ..asked("1") }));
            locked(&resync(&bank, &id, otps, asked("1")).await);
        }
        done(&act(&bank, &id, "unlock").await);
        done(&answer(&bank, &id, &token.code(asked("1")), asked("1")).await);
    }
}

#[tokio::test]
async fn suspended_locked_or_anothers_it_is_not_looked_at() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let stranger = daemon.connect("bank-b").await;
    let token = OcraToken::new(PLAIN);
    let id = enrol(&bank, &token.enrolment("acct-1")).await;
    let code = token.code(question("12345678"));
    let absent = answer(&bank, "cred_00000000000000000000000000", &code, question("12345678")).await;
    refused(&absent, 404, "not-found");
    let before = credentials(&bank).await;
    for otp in [&*code, &wrong(&code), "123456"] {
        for text in ["12345678", "no question of its suite"] {
            let foreign = answer(&stranger, &id, otp, question(text)).await;
            refused(&foreign, 404, "not-found");
        }
    }
    let otps = [code.clone(), code.clone()];
    refused(&resync(&stranger, &id, otps.clone(), question("1")).await, 404, "not-found");
    assert_eq!(credentials(&bank).await, before);

    done(&act(&bank, &id, "suspend").await);
    for otp in [&*code, &wrong(&code)] {
        refused(&answer(&bank, &id, otp, question("12345678")).await, 409, "state-conflict");
    }
    done(&act(&bank, &id, "resume").await);
    // A HOTP token of the same account locks it, too.
    let body = json!({ "type": "hotp", "account": "acct-1", "seed_hex": SEED_HEX });
    let hotp = enrol(&bank, &body).await;
    for _ in 0..5 {
        failed(&crate::daemon::verify(&bank, &hotp, "000000").await);
    }
    locked(&answer(&bank, &id, &code, question("12345678")).await);
    done(&act(&bank, &id, "unlock").await);
    done(&answer(&bank, &id, &code, question("12345678")).await);
    assert_eq!(credential(&bank, &id).await["failures"], 0);
}

/// The same request again, by its key, is the same answer: nothing is used up or charged twice.
#[tokio::test]
async fn a_key_is_worth_the_first_answer() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let token = OcraToken::new("OCRA-1:HOTP-SHA256-8:QN08-PSHA1");
    let json = |key| [("content-type", "application/json"), ("idempotency-key", key)];
    let enrolment = token.enrolment("acct-1").to_string();
    let enrolled = bank.request("POST", "/v1/credentials", &json("e"), enrolment.clone()).await.unwrap();
    let again = bank.request("POST", "/v1/credentials", &json("e"), enrolment).await.unwrap();
    assert_eq!((enrolled.status, text(&enrolled)), (again.status, text(&again)));
    let id = enrolled.json().unwrap()["id"].as_str().unwrap().to_owned();
    let right = crate::ocra::submission(&token.code(question("1")), question("1")).to_string();
    let guess = crate::ocra::submission("00000000", question("2")).to_string();
    for _ in 0..3 {
        let answer = bank.request("POST", &path(&id, "verify"), &json("right"), right.clone()).await.unwrap();
        assert_eq!(done(&answer)["verified"], true);
        let answer = bank.request("POST", &path(&id, "verify"), &json("guess"), guess.clone()).await.unwrap();
        assert_eq!(failed(&answer), 4);
    }
    let other = crate::ocra::submission(&token.code(question("1")), question("16")).to_string();
    let answer = bank.request("POST", &path(&id, "verify"), &json("right"), other).await.unwrap();
    refused(&answer, 422, "idempotency-mismatch");
}
