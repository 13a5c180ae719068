//! What was made for other terms approves nothing, whichever of them it is that differs.

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use crate::client::Connection;
use crate::daemon::{Daemon, problem};
use crate::ocra::{NOW, PLAIN};
use crate::transactions_client::{
    Approver, FULL_QUESTION, FULL_SESSION, Hand, approve, bound, create, respond, rs256, standing, token,
};

/// One field of a transaction, changed in what the device is shown.
fn forgeries(transaction: &Value) -> Vec<(&'static str, &'static str, Value)> {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut other = transaction.clone();
        change(&mut other);
        other
    };
    let text = |field: &str| transaction[field].as_str().unwrap().to_owned();
    let last = |text: &str| {
        let (rest, last) = text.split_at(text.len() - 1);
        format!("{rest}{}", if last == "0" { "1" } else { "0" })
    };
    let mut all = Vec::new();
    for field in ["id", "payer", "payee", "amount", "order", "platform", "remark", "nonce"] {
        all.push((field, "bank-a", with(&|other| other[field] = json!(last(&text(field))))));
    }
    for field in ["payer", "platform", "remark"] {
        all.push((field, "bank-a", with(&|other| other[field] = json!(""))));
    }
    all.push(("tenant", "bank-b", transaction.clone()));
    all.push(("tenant", "bank-", with(&|other| other["id"] = json!(format!("a{}", text("id"))))));
    let other_method = match transaction["method"].as_str() {
        Some("device_signature") => "challenge_response",
        _ => "device_signature",
    };
    all.push(("method", "bank-a", with(&|other| other["method"] = json!(other_method))));
    all.push(("currency", "bank-a", with(&|other| other["currency"] = json!("USD"))));
    all.push(("parent", "bank-a", with(&|other| other["parent"] = json!({ "hash": "00".repeat(32) }))));
    let later = text("expires_at").replace("00Z", "01Z");
    assert_ne!(later, text("expires_at"));
    all.push(("expires_at", "bank-a", with(&|other| other["expires_at"] = json!(later))));
    for (from, to) in [
        ("payer", "payee"),
        ("payee", "amount"),
        ("amount", "currency"),
        ("currency", "order"),
        ("order", "platform"),
        ("platform", "remark"),
        ("payee", "order"),
    ] {
        let moved = |other: &mut Value| {
            let (one, two) = (text(from), text(to));
            let (head, tail) = one.split_at(one.len() - 1);
            (other[from], other[to]) = (json!(head), json!(format!("{tail}{two}")));
        };
        all.push(("moved", "bank-a", with(&moved)));
    }
    all
}

async fn approvers(bank: &Connection) -> Vec<Approver> {
    let mut all = Vec::new();
    for (number, (method, hand)) in [
        ("challenge_response", token(PLAIN)),
        ("challenge_response", token(FULL_QUESTION)),
        ("device_signature", token(FULL_SESSION)),
        ("device_signature", Hand::Es256(1)),
        ("device_signature", rs256()),
        ("device_signature", Hand::Authenticator(2)),
    ]
    .into_iter()
    .enumerate()
    {
        all.push(Approver::enrol(bank, "bank-a", &format!("acct-{number}"), method, hand).await);
    }
    all
}

fn whole(approver: &Approver) -> Value {
    let mut request = approver.request();
    request["platform"] = json!("shop.example");
    request["remark"] = json!("for the roof");
    request
}

/// A wrong response was charged as the transaction's method has it; then its own approves it, or a new one.
async fn charged(bank: &Connection, approver: &Approver, transaction: Value, told: &str) {
    let attempts = transaction["attempts_remaining"].as_u64().unwrap();
    let state = if attempts == 1 { "failed" } else { "pending" };
    assert_eq!(standing(bank, &transaction).await, (state.to_owned(), attempts - 1), "{told}");
    let right = approver.response(&transaction, 0);
    if attempts == 1 {
        let late = respond(bank, &transaction, &right).await;
        assert_eq!((late.status.as_u16(), &*problem(&late)), (409, "state-conflict"), "{told}");
        let next = approver.transaction(bank).await;
        approve(bank, &next, &approver.response(&next, 0)).await;
    } else {
        approve(bank, &transaction, &right).await;
    }
}

#[tokio::test]
async fn what_was_made_for_other_terms_approves_nothing() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    for approver in approvers(&bank).await {
        for form in approver.forms() {
            let count = forgeries(&create(&bank, &whole(&approver)).await).len();
            for place in 0..count {
                let transaction = create(&bank, &whole(&approver)).await;
                let (field, tenant, shown) = forgeries(&transaction).swap_remove(place);
                let told = format!("{} {form} {place} {field}", approver.name());
                let made_for = bound(tenant, &shown);
                assert!(made_for != bound("bank-a", &transaction), "{told}");
                let answer = respond(&bank, &transaction, &approver.made_for(&made_for, form, 0)).await;
                assert_eq!(
                    (answer.status.as_u16(), &*problem(&answer)),
                    (403, "verification-failed"),
                    "{told}"
                );
                charged(&bank, &approver, transaction, &told).await;
            }
            // And what the appliance shows is what it means.
            let transaction = create(&bank, &whole(&approver)).await;
            let own = bound("bank-a", &transaction);
            assert_eq!(transaction["signing_input"], BASE64URL_NOPAD.encode(&own.input));
            assert_eq!(transaction["digest"], data_encoding::HEXLOWER.encode(&own.digest));
            approve(&bank, &transaction, &approver.made_for(&own, form, 0)).await;
        }
    }
}

#[tokio::test]
async fn of_two_transactions_that_differ_in_a_field_neither_approves_the_other() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let approvers = approvers(&bank).await;
    let parent = approvers[3].transaction(&bank).await;
    let parent = approve(&bank, &parent, &approvers[3].response(&parent, 0)).await;
    for approver in &approvers {
        let base = whole(approver);
        let mut all = vec![("nothing", base.clone())];
        for (field, value) in [
            ("payee", json!("Alicf")),
            ("payee", json!("Alice\u{e9}")),
            ("amount", json!("12.51")),
            ("currency", json!("USD")),
            ("order", json!("order 8")),
            ("platform", json!("shop.examplf")),
            ("remark", json!("for the roo")),
            ("parent", json!(parent)),
            ("expires_in", json!(301)),
        ] {
            let mut other = base.clone();
            other[field] = value;
            all.push((field, other));
        }
        for absent in ["platform", "remark"] {
            let mut other = base.clone();
            other.as_object_mut().unwrap().remove(absent);
            all.push((absent, other));
        }
        // Text that moved from one field to another.
        for (one, two, texts) in [
            ("payee", "order", ("Alic", "eorder 7")),
            ("order", "platform", ("order", "7shop.example")),
            ("platform", "remark", ("shop.exampl", "efor the roof")),
            ("payee", "amount", ("Alice1", "2.50")),
        ] {
            let mut other = base.clone();
            (other[one], other[two]) = (json!(texts.0), json!(texts.1));
            all.push(("moved", other));
        }
        for (field, other) in all {
            let forms = approver.forms();
            for form in forms {
                for (from, to) in [(&base, &other), (&other, &base)] {
                    let (from, to) = (create(&bank, from).await, create(&bank, to).await);
                    let told = format!("{} {form} {field}", approver.name());
                    let response = approver.made_for(&bound("bank-a", &from), form, 0);
                    let answer = respond(&bank, &to, &response).await;
                    assert_eq!(answer.status, 403, "{told}");
                    charged(&bank, approver, to, &told).await;
                    approve(&bank, &from, &response).await;
                }
            }
        }
    }
}
