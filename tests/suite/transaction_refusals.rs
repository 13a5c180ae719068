//! Transactions that are not made, and responses that are not looked at: why, and that nothing comes of them.

use serde_json::{Value, json};

use crate::bank::{act, credential, delete, done, failed, path as of_credential, refused};
use crate::client::Connection;
use crate::daemon::{Daemon, enrol, enrol_hotp, text};
use crate::ocra_token::OcraToken;
use crate::refusals::{Case, MARK, all_refused};
use crate::transactions::{
    Holder, PLAIN, create, created, id, order, order_with, path, respond, transaction,
};

const CREATE: &str = "/v1/transactions";

async fn list(bank: &Connection) -> Value {
    done(&bank.get("/v1/transactions?limit=100").await.unwrap())["items"].clone()
}

fn case(what: impl Into<String>, body: &Value) -> Case {
    Case::post(what, CREATE, body.to_string(), 422)
}

#[tokio::test]
async fn texts_that_people_cannot_read_the_same_way_are_refused_by_their_field() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    let mut cases = Vec::new();
    for (field, length) in [("payee", 128), ("order", 128), ("platform", 128), ("remark", 256)] {
        let mut add = |text: String| {
            let body = order_with(&holder.credential, json!({ field: text }));
            cases.push(case(format!("{field} {text:?}"), &body).about(field));
        };
        add(String::new());
        add("x".repeat(length + 1));
        add("\u{20ac}".repeat(length + 1));
        add("\u{1f3e6}".repeat(length + 1));
        for bad in [
            " ",
            " x",
            "x ",
            "\u{a0}x",
            "x\u{3000}",
            "a\nb",
            "a\tb",
            "a\rb",
            "a\0b",
            "\u{1b}[2J",
            "a\u{7f}",
            "e\u{301}",
            "\u{212b}",
            "\u{1100}\u{1161}",
            "\u{f900}",
            "a\u{202e}b",
            "a\u{2066}b",
            "a\u{200f}b",
            "a\u{61c}b",
            "a\u{200b}b",
            "a\u{200d}b",
            "a\u{feff}b",
            "a\u{ad}b",
            "a\u{2060}b",
            "a\u{34f}b",
            "a\u{3164}b",
            "a\u{fe0f}",
            "a\u{e0041}",
            "a\u{fffd}",
            "a\u{e000}",
            "a\u{ffff}",
            "a\u{2028}b",
        ] {
            add(bad.to_owned());
        }
        for value in [json!(7), json!(true), json!([]), json!({}), Value::Null] {
            let body = order_with(&holder.credential, json!({ field: value }));
            cases.push(case(format!("{field} {value}"), &body));
        }
    }
    all_refused(&daemon, &bank, cases).await;
    assert_eq!(list(&bank).await, json!([]));
    // The longest of each, in characters of one byte and of four.
    for (short, long) in [("a", "r"), ("\u{1f3e6}", "r")] {
        for (field, length) in [("payee", 128), ("order", 128), ("platform", 128), ("remark", 256)] {
            let text = if field == "remark" { long.repeat(length) } else { short.repeat(length) };
            let view = created(&bank, &order_with(&holder.credential, json!({ field: text }))).await;
            assert_eq!(view[field], text);
        }
    }
}

#[tokio::test]
async fn money_that_is_none_is_refused() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    let mut cases = Vec::new();
    let mut add = |amount: Value, currency: Value, field: Option<&'static str>| {
        let body = order_with(&holder.credential, json!({ "amount": amount, "currency": currency }));
        let case = case(format!("{amount} {currency}"), &body);
        cases.push(match field {
            Some(field) => case.about(field),
            None => case,
        });
    };
    for amount in [
        "",
        "1",
        "1.0",
        "1.000",
        "1,00",
        "1.00 ",
        " 1.00",
        "+1.00",
        "-1.00",
        "-0.00",
        "01.00",
        "00.00",
        ".00",
        "1.",
        "1e2",
        "1E2",
        "1.0e1",
        "0x1.00",
        "1_000.00",
        "1,000.00",
        "1'000.00",
        "1 000.00",
        "NaN",
        "inf",
        "\u{661}.00",
        "\u{ff11}.00",
        "1.0\u{660}",
        "1\u{2024}00",
        "1.00\0",
        "12345678901234567.00",
    ] {
        add(json!(amount), json!("EUR"), Some("amount"));
    }
    for (amount, currency) in
        [("1.00", "JPY"), ("1", "BHD"), ("1.00", "BHD"), ("1.000", "CLF"), ("1.", "JPY")]
    {
        add(json!(amount), json!(currency), Some("amount"));
    }
    for currency in ["", "eur", "EU", "EURO", "EUR ", "AAA", "XAU", "XTS", "XXX", "978", "\u{ff25}UR"] {
        add(json!("1.00"), json!(currency), Some("currency"));
    }
    for other in [json!(1), json!(1.5), json!(null), json!([]), json!({}), json!(true)] {
        add(other.clone(), json!("EUR"), Some("amount"));
        add(json!("1.00"), other, None);
    }
    all_refused(&daemon, &bank, cases).await;
    assert_eq!(list(&bank).await, json!([]));
}

#[tokio::test]
async fn a_body_that_is_not_the_contracts_is_refused() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    let good = order(&holder.credential);
    let mut cases = Vec::new();
    for expires_in in [json!(0), json!(3_601), json!(4_294_967_297_u64), json!(u64::MAX)] {
        let body = order_with(&holder.credential, json!({ "expires_in": expires_in }));
        cases.push(case(format!("expires_in {expires_in}"), &body).about("expires_in"));
    }
    for expires_in in [json!(-1), json!(1.5), json!(1e300), json!("300"), json!(null), json!([300])] {
        let body = order_with(&holder.credential, json!({ "expires_in": expires_in }));
        cases.push(case(format!("expires_in {expires_in}"), &body));
    }
    for field in ["method", "credential", "payee", "amount", "currency", "order"] {
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(field);
        cases.push(case(format!("no {field}"), &body).about(field));
    }
    for field in
        ["payer", "payee", "order", "credential", "method", "platform", "remark", "parent", "expires_in"]
    {
        let mut body = good.clone();
        body[field] = Value::Null;
        cases.push(case(format!("{field} null"), &body));
    }
    for (field, value) in good.as_object().unwrap() {
        let once = good.to_string();
        let twice = format!(r#"{{"{field}": {value}, {}"#, &once[1..]);
        cases.push(Case::post(format!("{field} twice"), CREATE, twice, 422));
    }
    for field in [
        "id",
        "tenant",
        "digest",
        "signing_input",
        "nonce",
        "state",
        "account",
        "rule",
        "presentation",
        "Payee",
        "attempts_remaining",
        "parent_hash",
        "expires_at",
        MARK,
    ] {
        cases.push(case(field, &order_with(&holder.credential, json!({ field: MARK }))));
    }
    for method in ["", "multi_terminal", "rolling_password", "presented_code", "Challenge_Response", MARK] {
        cases.push(case(method, &order_with(&holder.credential, json!({ "method": method }))));
    }
    for payer in ["", "a\nb", "acct-2", "ACCT-1", "acct-1 ", "acct", "cct-1"] {
        let body = order_with(&holder.credential, json!({ "payer": payer }));
        cases.push(case(format!("payer {payer:?}"), &body).about("payer"));
    }
    cases.push(case("payer 7", &order_with(&holder.credential, json!({ "payer": 7 }))));
    for (body, status) in [("", 400), ("{", 400), ("[]", 422), ("null", 422), ("{}", 422), ("{} {}", 400)] {
        cases.push(Case::post(body, CREATE, body, status));
    }
    let late = format!("{} x", good);
    cases.push(Case::post("words behind it", CREATE, late, 400));
    let mut untyped = Case::post("no content type", CREATE, good.to_string(), 415);
    untyped.headers.clear();
    untyped.name = "unsupported-media-type";
    cases.push(untyped);
    for (method, path) in [("PUT", CREATE), ("DELETE", CREATE), ("PATCH", CREATE)] {
        cases.push(Case::bare(method, path, 405, "method-not-allowed"));
    }
    all_refused(&daemon, &bank, cases).await;
    // Not over HTTP/1.1, where the connection may end before the answer is read: see wire.rs.
    let large = format!("{good}{}", " ".repeat(64 * 1024));
    let json = [("content-type", "application/json")];
    refused(&bank.request("POST", CREATE, &json, large).await.unwrap(), 413, "too-large");
    assert_eq!(list(&bank).await, json!([]));
}

#[tokio::test]
async fn only_a_credential_that_can_approve_is_asked() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let stranger = daemon.connect("bank-b").await;
    let foreign = Holder::enrol(&stranger, PLAIN, "acct-1").await.credential;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    // Absent, malformed and another tenant's: one answer.
    let absent = "cred_00000000000000000000000000";
    let upper = holder.credential.to_uppercase();
    let as_transaction = holder.credential.replace("cred_", "txn_");
    for unknown in [absent, &foreign, &upper, &as_transaction, "", "cred_", "x", "\u{0}"] {
        let document = refused(&create(&bank, &order(unknown)).await, 404, "not-found");
        assert!(document.get("field").is_none(), "{unknown}: {document}");
    }
    let hotp = enrol_hotp(&bank, "acct-1").await;
    let token = OcraToken::new("OCRA-1:HOTP-SHA256-8:QH64");
    let verifier = enrol(&bank, &token.enrolment("acct-1")).await;
    let device = crate::signers::Device::new(1).enrol(&bank, "acct-1").await;
    for id in [&hotp, &verifier, &device] {
        assert_eq!(refused(&create(&bank, &order(id)).await, 422, "invalid")["field"], "credential");
    }
    // The account's name is what is signed: it has to be in one form.
    for account in ["e\u{301}", "a\u{212b}b"] {
        let decomposed = Holder::enrol(&bank, PLAIN, account).await.credential;
        let named = order_with(&decomposed, json!({ "payer": account }));
        for body in [order(&decomposed), named] {
            assert_eq!(refused(&create(&bank, &body).await, 422, "invalid")["field"], "payer");
        }
    }

    done(&act(&bank, &holder.credential, "suspend").await);
    refused(&create(&bank, &order(&holder.credential)).await, 409, "state-conflict");
    done(&act(&bank, &holder.credential, "resume").await);
    let view = holder.asked(&bank).await;
    // Suspended or deleted meanwhile, it approves nothing, and what waits for it stays as it is.
    done(&act(&bank, &holder.credential, "suspend").await);
    for otp in [&*holder.code(&view), "00000000"] {
        refused(&respond(&bank, &id(&view), otp).await, 409, "state-conflict");
    }
    assert_eq!(transaction(&bank, &id(&view)).await, view);
    done(&act(&bank, &holder.credential, "resume").await);
    let kept = holder.asked(&bank).await;
    done(&respond(&bank, &id(&view), &holder.code(&view)).await);
    assert_eq!(delete(&bank, &holder.credential).await.status, 200);
    refused(&create(&bank, &order(&holder.credential)).await, 404, "not-found");
    for otp in [&*holder.code(&kept), "00000000"] {
        refused(&respond(&bank, &id(&kept), otp).await, 409, "state-conflict");
    }
    assert_eq!(transaction(&bank, &id(&kept)).await, kept);
    done(&crate::transactions::cancel(&bank, &id(&kept)).await);
    assert_eq!(list(&stranger).await, json!([]));
}

#[tokio::test]
async fn a_suite_for_transactions_has_room_for_the_digest() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    for (session, taken) in [(1, false), (8, false), (31, false), (32, true), (33, true), (512, true)] {
        let suite = format!("OCRA-1:HOTP-SHA256-8:QN08-S{session:03}");
        let mut body = OcraToken::new(&suite).enrolment(&format!("acct-{session}"));
        done_or_refused(&bank, &body, true).await;
        for usage in [json!("transaction"), Value::Null] {
            body["use"] = usage;
            if body["use"].is_null() {
                body.as_object_mut().unwrap().remove("use");
            }
            done_or_refused(&bank, &body, taken).await;
        }
    }
}

async fn done_or_refused(bank: &Connection, body: &Value, taken: bool) {
    let answer = bank.post("/v1/credentials", body).await.unwrap();
    if taken {
        assert_eq!(answer.status, 201, "{body}: {}", text(&answer));
    } else {
        assert_eq!(refused(&answer, 422, "invalid")["field"], "suite", "{body}");
    }
}

#[tokio::test]
async fn a_response_that_is_none_costs_nothing() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    let view = holder.asked(&bank).await;
    let (id, code) = (id(&view), holder.code(&view));
    let responses = path(&id, "responses");
    let mut cases = Vec::new();
    for otp in [
        "",
        "1",
        &code[..7],
        &code[..6],
        &format!("{code}0"),
        &format!("{code}00"),
        &format!(" {code}"),
        &format!("{code} "),
        &format!("+{}", &code[1..]),
        "1234567a",
        &"1".repeat(5),
        &"1".repeat(11),
    ] {
        let body = json!({ "otp": otp }).to_string();
        cases.push(Case::post(format!("otp {otp:?}"), &responses, body, 422).about("otp"));
    }
    for (what, body) in [
        ("nothing", json!({})),
        ("null", json!({ "otp": null })),
        ("a number", json!({ "otp": 12_345_678 })),
        ("a challenge", json!({ "otp": code, "challenge": "1" })),
        ("a session", json!({ "otp": code, "session": "1" })),
        ("codes", json!({ "codes": [code] })),
        ("a code and a format", json!({ "otp": code, "format": "der" })),
        ("a code and a signature", json!({ "otp": code, "signature": "AAAA" })),
        ("a signature", json!({ "format": "p1363", "signature": "AAAA" })),
        ("a JWS", json!({ "format": "jws", "signature": "a.b.c" })),
        ("a decision", json!({ "decision": "approve" })),
        ("two codes", json!({ "otp": [code] })),
    ] {
        cases.push(Case::post(what, &responses, body.to_string(), 422));
    }
    for (body, status) in [("", 400), ("{", 400), ("[]", 422), ("\"12345678\"", 422)] {
        cases.push(Case::post(body, &responses, body, status));
    }
    let twice = format!(r#"{{"otp": "{code}", "otp": "{code}"}}"#);
    cases.push(Case::post("a code twice", &responses, twice, 422).about("otp"));
    for body in ["{", "[]", "null", r#"{"unmistakable": 1}"#, &json!({ "otp": code }).to_string()] {
        let status = if body == "{" { 400 } else { 422 };
        cases.push(Case::post(format!("cancel {body}"), &path(&id, "cancel"), body, status));
    }
    cases.push(Case::bare("GET", &responses, 405, "method-not-allowed"));
    cases.push(Case::bare("DELETE", &path(&id, ""), 405, "method-not-allowed"));
    cases.push(Case::bare("POST", &path(&id, "attestation"), 405, "method-not-allowed"));
    cases.push(Case::bare("GET", &path(&id, "attestation"), 409, "state-conflict"));
    cases.push(Case::bare("GET", &path(&id, "qr"), 409, "state-conflict"));
    all_refused(&daemon, &bank, cases).await;
    assert_eq!(transaction(&bank, &id).await, view);
    assert_eq!(credential(&bank, &holder.credential).await["failures"], 0);
    // Nor is the token good for anything but transactions.
    let verify = json!({ "otp": code, "challenge": view["challenge"]["question"] });
    let answer = bank.post(&of_credential(&holder.credential, "verify"), &verify).await.unwrap();
    refused(&answer, 409, "state-conflict");
    assert_eq!(failed(&respond(&bank, &id, &crate::ocra::wrong(&code)).await), 2);
    done(&respond(&bank, &id, &code).await);
}
