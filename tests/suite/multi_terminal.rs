//! Transactions that codes of several terminals approve (seed E): every rule, entered at once and one by one, and one
//! answer to whatever is wrong.

use serde_json::{Value, json};

use crate::bank::{credential, done, failed, refused, without_request_id};
use crate::client::{Connection, Response};
use crate::daemon::{Daemon, enrol, text};
use crate::transactions::{NOW, id, path, transaction};

/// An account with terminals.
pub struct Payer {
    pub account: String,
    /// In the order of their enrolment, as lists have it.
    pub terminals: Vec<String>,
}

impl Payer {
    pub async fn enrol(bank: &Connection, account: &str, count: usize) -> Self {
        for number in 0..count {
            enrol(bank, &terminal(account, number)).await;
        }
        let listed = done(&bank.get(&format!("/v1/credentials?account={account}")).await.unwrap());
        let ids =
            listed["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned());
        Self { account: account.to_owned(), terminals: ids.collect() }
    }

    /// What a bank sends.
    pub fn order(&self, rule: &Value) -> Value {
        json!({ "method": "multi_terminal", "payer": self.account, "rule": rule, "payee": "DE89370400440532013000",
            "amount": "1250.00", "currency": "EUR", "order": "order-77" })
    }

    /// A transaction of its, with the codes that were sent.
    pub async fn asked(&self, gateway: &Connection, rule: &Value) -> Asked {
        Asked::of(gateway, &self.order(rule)).await
    }

    /// How many failures each terminal has.
    pub async fn failures(&self, bank: &Connection) -> Vec<u64> {
        let mut failures = Vec::new();
        for terminal in &self.terminals {
            failures.push(credential(bank, terminal).await["failures"].as_u64().unwrap());
        }
        failures
    }
}

/// An enrolment.
pub fn terminal(account: &str, number: usize) -> Value {
    json!({ "type": "terminal", "account": account, "address": format!("+49 30 {number:04}") })
}

/// A rule of this type, and nothing else.
pub fn rule(name: &str) -> Value {
    json!({ "type": name })
}

/// A transaction, and what its user has read on the terminals.
pub struct Asked {
    pub view: Value,
    pub id: String,
    pub codes: Vec<String>,
}

impl Asked {
    pub async fn of(gateway: &Connection, body: &Value) -> Self {
        let answer = gateway.post("/v1/transactions", body).await.unwrap();
        assert_eq!(answer.status, 201, "{}", text(&answer));
        let view = answer.json().unwrap();
        assert_eq!((&view["state"], &view["attempts_remaining"]), (&json!("pending"), &json!(3)));
        Self { id: id(&view), codes: codes(&view), view }
    }

    pub async fn at_once(&self, bank: &Connection, codes: &[String]) -> Response {
        self.send(bank, &json!({ "codes": codes })).await
    }

    pub async fn enter(&self, bank: &Connection, code: &str) -> Response {
        self.send(bank, &json!({ "code": code })).await
    }

    pub async fn target(&self, bank: &Connection, target: &str) -> Response {
        self.send(bank, &json!({ "target": target })).await
    }

    pub async fn send(&self, bank: &Connection, body: &Value) -> Response {
        bank.post(&path(&self.id, "responses"), body).await.unwrap()
    }

    /// Enters one code after the other; the last one's answer. All before it are answered alike.
    pub async fn one_by_one(&self, bank: &Connection, codes: &[String]) -> Response {
        let (last, first) = codes.split_last().unwrap();
        for (number, code) in (1..).zip(first) {
            let answer = self.enter(bank, code).await;
            assert_eq!(answer.status, 202, "{}", text(&answer));
            let mut expected = without_codes(&self.view);
            expected["entered"] = json!(number);
            let told = without_codes(&answer.json().unwrap());
            assert_eq!(told["entered"], expected["entered"]);
            expected["attempts_remaining"] = told["attempts_remaining"].clone();
            assert_eq!(told, expected, "what an entry is worth is not told");
        }
        self.enter(bank, last).await
    }

    /// It is approved by this.
    pub async fn approved(&self, bank: &Connection, answer: &Response) {
        let view = done(answer);
        assert_eq!((&view["state"], &view["id"]), (&json!("approved"), &json!(self.id)));
        assert!(view["attestation"].as_str().unwrap().split('.').count() == 3);
        assert_eq!(transaction(bank, &self.id).await["state"], "approved");
    }
}

/// The codes that an answer shows, in the rule's order.
pub fn codes(view: &Value) -> Vec<String> {
    let terminals = view["challenge"]["terminals"].as_array().unwrap();
    terminals.iter().map(|terminal| terminal["code"].as_str().unwrap().to_owned()).collect()
}

/// What everybody is shown.
pub fn without_codes(view: &Value) -> Value {
    let mut view = view.clone();
    for terminal in view["challenge"]["terminals"].as_array_mut().unwrap() {
        terminal.as_object_mut().unwrap().remove("code");
    }
    view
}

/// The same with another last digit.
pub fn other(code: &str) -> String {
    let (head, last) = code.split_at(code.len() - 1);
    format!("{head}{}", if last == "7" { "8" } else { "7" })
}

/// The weighted sum, by the tests' own hand.
pub fn target_of(codes: &[String]) -> String {
    let digits = codes[0].len();
    let sum = codes.iter().zip([1, 3, 7, 9].into_iter().cycle());
    let sum: u128 = sum.map(|(code, weight)| code.parse::<u128>().unwrap() * weight).sum();
    format!("{:0digits$}", sum % 10u128.pow(digits as u32))
}

/// In this order, of numbers in size or of terminals.
pub fn in_order(name: &str, codes: &[String]) -> Vec<String> {
    let mut codes = codes.to_vec();
    match name {
        "ascending" => codes.sort(),
        "descending" => codes.sort_by(|a, b| b.cmp(a)),
        _ => {}
    }
    codes
}

const ORDERS: [&str; 3] = ["preset_order", "ascending", "descending"];

/// What can be wrong with codes: each with its name.
fn mistakes(right: &[String]) -> Vec<(&'static str, Vec<String>)> {
    let swapped = |a: usize, b: usize| {
        let mut codes = right.to_vec();
        codes.swap(a, b);
        codes
    };
    let with = |at: usize, code: String| {
        let mut codes = right.to_vec();
        codes[at] = code;
        codes
    };
    let last = right.len() - 1;
    vec![
        ("first two in the wrong order", swapped(0, 1)),
        ("last two in the wrong order", swapped(last - 1, last)),
        ("first and last in the wrong order", swapped(0, last)),
        ("the first wrong", with(0, other(&right[0]))),
        ("the last wrong", with(last, other(&right[last]))),
        ("the first repeated", with(1, right[0].clone())),
        ("the last repeated", with(0, right[last].clone())),
        ("all wrong", right.iter().map(|code| other(code)).collect()),
    ]
}

/// Every failure of a fresh transaction of a fresh account is this one answer.
fn same(failures: &[(String, Response)]) {
    let (_, first) = &failures[0];
    for (what, answer) in failures {
        assert_eq!(failed(answer), 2, "{what}");
        assert_eq!(without_request_id(answer), without_request_id(first), "{what}");
        let headers = |answer: &Response| {
            let mut headers = answer.headers.clone();
            headers.remove("x-request-id");
            headers.remove("date");
            headers
        };
        assert_eq!(headers(answer), headers(first), "{what}");
    }
}

#[tokio::test]
async fn right_codes_approve_by_every_rule_at_once_and_one_by_one() {
    let daemon = Daemon::start_at(NOW);
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    for count in [2, 3, 8] {
        let payer = Payer::enrol(&bank, &format!("acct-{count}"), count).await;
        for name in ORDERS {
            let asked = payer.asked(&gateway, &rule(name)).await;
            assert_eq!(asked.codes.len(), count);
            assert!(asked.codes.iter().all(|code| code.len() == 6));
            let right = in_order(name, &asked.codes);
            asked.approved(&bank, &asked.at_once(&bank, &right).await).await;
            refused(&asked.at_once(&bank, &right).await, 409, "state-conflict");

            let asked = payer.asked(&gateway, &rule(name)).await;
            let right = in_order(name, &asked.codes);
            asked.approved(&bank, &asked.one_by_one(&bank, &right).await).await;
        }
        let asked = payer.asked(&gateway, &rule("target")).await;
        assert!(asked.codes.iter().all(|code| code.len() == 8));
        let weights: Vec<_> = [1, 3, 7, 9].into_iter().cycle().take(count).collect();
        assert_eq!(asked.view["challenge"]["weights"], json!(weights));
        let answer = asked.target(&bank, &target_of(&asked.codes)).await;
        asked.approved(&bank, &answer).await;
    }
}

#[tokio::test]
async fn whatever_is_wrong_has_one_and_the_same_answer() {
    let daemon = Daemon::start_at(NOW);
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let mut failures = Vec::new();
    let mut accounts = 0;
    let mut fresh = async || {
        accounts += 1;
        Payer::enrol(&bank, &format!("acct-{accounts}"), 3).await
    };
    for name in ORDERS {
        let names: Vec<&str> =
            mistakes(&["1".into(), "2".into(), "3".into()]).into_iter().map(|(what, _)| what).collect();
        for (number, what) in names.into_iter().enumerate() {
            for at_once in [true, false] {
                let payer = fresh().await;
                let asked = payer.asked(&gateway, &rule(name)).await;
                let (_, entered) = mistakes(&in_order(name, &asked.codes)).remove(number);
                let answer = match at_once {
                    true => asked.at_once(&bank, &entered).await,
                    false => asked.one_by_one(&bank, &entered).await,
                };
                failures.push((format!("{name}, {what}, at once: {at_once}"), answer));
                assert_eq!(payer.failures(&bank).await, [1, 1, 1]);
                // The right ones are right still.
                let right = in_order(name, &asked.codes);
                asked.approved(&bank, &asked.at_once(&bank, &right).await).await;
                assert_eq!(payer.failures(&bank).await, [0, 0, 0]);
            }
        }
        for (what, count) in
            [("one missing", 2), ("two missing", 1), ("one too many", 4), ("five too many", 8)]
        {
            let payer = fresh().await;
            let asked = payer.asked(&gateway, &rule(name)).await;
            let right = in_order(name, &asked.codes);
            let entered: Vec<_> = right.into_iter().cycle().take(count).collect();
            failures.push((format!("{name}, {what}"), asked.at_once(&bank, &entered).await));
        }
    }
    for (what, entered) in [
        ("a wrong target", (|codes| other(&target_of(codes))) as fn(&[String]) -> String),
        ("a target in the wrong order", |codes| {
            target_of(&[codes[1].clone(), codes[0].clone(), codes[2].clone()])
        }),
        ("a target of two", |codes| target_of(&codes[..2])),
        ("a target of one twice", |codes| target_of(&[codes[0].clone(), codes[0].clone(), codes[2].clone()])),
        ("a code for a target", |codes| codes[0].clone()),
    ] {
        let asked = fresh().await.asked(&gateway, &rule("target")).await;
        failures.push((what.to_owned(), asked.target(&bank, &entered(&asked.codes)).await));
    }
    // Times: the clock goes on, and whatever else is right does not help.
    for (what, rule, seconds) in [
        ("a window that is over", json!({ "type": "ascending", "window_seconds": 20 }), [10, 10, 0]),
        (
            "a window that is over before the first",
            json!({ "type": "ascending", "window_seconds": 20 }),
            [20, 0, 0],
        ),
        ("too early", json!({ "type": "preset_order", "interval_seconds": 10 }), [0, 7, 10]),
        ("too early at last", json!({ "type": "preset_order", "interval_seconds": 10 }), [0, 10, 7]),
        (
            "too late",
            json!({ "type": "descending", "interval_seconds": 10, "tolerance_seconds": 1 }),
            [0, 12, 10],
        ),
        ("too late at last", json!({ "type": "descending", "interval_seconds": 10 }), [99, 10, 13]),
        ("in the wrong intervals", json!({ "type": "preset_order", "interval_seconds": 10 }), [0, 20, 0]),
    ] {
        let payer = fresh().await;
        let asked = payer.asked(&gateway, &rule).await;
        let mut now = NOW;
        let mut last = None;
        for (code, seconds) in in_order(rule["type"].as_str().unwrap(), &asked.codes).iter().zip(seconds) {
            now += seconds;
            daemon.set_clock(now);
            if let Some(before) = last.replace(asked.enter(&bank, code).await) {
                assert_eq!(before.status, 202);
            }
        }
        failures.push((what.to_owned(), last.unwrap()));
        assert_eq!(payer.failures(&bank).await, [1, 1, 1], "{what}");
        daemon.set_clock(NOW);
    }
    let asked = fresh().await.asked(&gateway, &json!({ "type": "target", "window_seconds": 20 })).await;
    daemon.set_clock(NOW + 20);
    failures.push(("a target too late".to_owned(), asked.target(&bank, &target_of(&asked.codes)).await));
    same(&failures);
}

#[tokio::test]
async fn three_failed_rounds_end_it_and_a_partial_one_costs_nothing() {
    let daemon = Daemon::start_at(NOW);
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::enrol(&bank, "acct-1", 3).await;
    let asked = payer.asked(&gateway, &rule("preset_order")).await;
    // A round that is left is dropped by a whole one, also if everything in it was right or wrong.
    for code in [&asked.codes[0], &other(&asked.codes[1])] {
        assert_eq!(asked.enter(&bank, code).await.status, 202);
    }
    assert_eq!(payer.failures(&bank).await, [0, 0, 0]);
    assert_eq!(transaction(&bank, &asked.id).await["entered"], 2);
    let wrong: Vec<_> = asked.codes.iter().map(|code| other(code)).collect();
    assert_eq!(failed(&asked.at_once(&bank, &wrong).await), 2);
    assert_eq!(transaction(&bank, &asked.id).await["entered"], 0, "a failed round begins anew");
    assert_eq!(failed(&asked.one_by_one(&bank, &wrong).await), 1);
    assert_eq!(failed(&asked.at_once(&bank, &wrong[..1]).await), 0);
    assert_eq!(payer.failures(&bank).await, [3, 3, 3]);
    assert_eq!(transaction(&bank, &asked.id).await["state"], "failed");
    refused(&asked.at_once(&bank, &asked.codes).await, 409, "state-conflict");

    // What was wrong in a partial round does not spoil the whole one after it.
    let asked = payer.asked(&gateway, &rule("preset_order")).await;
    assert_eq!(asked.enter(&bank, &wrong[0]).await.status, 202);
    asked.approved(&bank, &asked.at_once(&bank, &asked.codes).await).await;
    assert_eq!(payer.failures(&bank).await, [0, 0, 0]);
}

#[tokio::test]
async fn the_order_is_the_banks_or_that_of_enrolment() {
    let daemon = Daemon::start_at(NOW);
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let mut ids = Vec::new();
    for number in 0..4 {
        daemon.set_clock(NOW + number);
        ids.push(enrol(&bank, &terminal("acct-1", number as usize)).await);
    }
    let payer = Payer::enrol(&bank, "acct-1", 0).await;
    assert_eq!(payer.terminals, ids);
    let listed = |view: &Value| -> Vec<Value> {
        let terminals = view["challenge"]["terminals"].as_array().unwrap();
        terminals.iter().map(|terminal| json!([terminal["credential"], terminal["address"]])).collect()
    };
    let named = |order: &[usize]| -> Vec<Value> {
        order.iter().map(|n| json!([ids[*n], format!("+49 30 {n:04}")])).collect()
    };
    let asked = payer.asked(&gateway, &rule("preset_order")).await;
    assert_eq!(listed(&asked.view), named(&[0, 1, 2, 3]));
    for name in ["preset_order", "ascending", "target"] {
        let order = [2, 0, 3, 1];
        let rule = json!({ "type": name, "order": order.map(|n| &ids[n]) });
        let asked = payer.asked(&gateway, &rule).await;
        assert_eq!(listed(&asked.view), named(&order), "{name}");
        let answer = match name {
            "target" => asked.target(&bank, &target_of(&asked.codes)).await,
            _ => asked.one_by_one(&bank, &in_order(name, &asked.codes)).await,
        };
        asked.approved(&bank, &answer).await;
    }
}

#[tokio::test]
async fn an_attestation_says_whose_terminals_approved() {
    let daemon = Daemon::start_at(NOW);
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::enrol(&bank, "acct-1", 2).await;
    let asked = payer.asked(&gateway, &rule("ascending")).await;
    let view = done(&asked.at_once(&bank, &in_order("ascending", &asked.codes)).await);
    let attestation = json!({ "attestation": view["attestation"] });
    let claims = done(&bank.post("/v1/attestations/verify", &attestation).await.unwrap());
    assert_eq!((&claims["method"], &claims["account"]), (&json!("multi_terminal"), &json!("acct-1")));
    assert_eq!((&claims["digest"], &claims["jti"]), (&asked.view["digest"], &json!(asked.id)));
    // A second leg follows it.
    let mut body = payer.order(&rule("target"));
    body["parent"] = view["attestation"].clone();
    let second = Asked::of(&gateway, &body).await;
    assert_eq!(second.view["parent"]["jti"], asked.view["id"]);
    let answer = second.target(&bank, &target_of(&second.codes)).await;
    second.approved(&bank, &answer).await;
}

#[tokio::test]
async fn codes_are_as_long_as_asked_for() {
    let daemon = Daemon::start_at(NOW);
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::enrol(&bank, "acct-1", 3).await;
    for (name, lengths) in [("descending", 6..=10), ("target", 8..=10)] {
        for digits in lengths {
            let mut body = payer.order(&rule(name));
            body["digits"] = json!(digits);
            let asked = Asked::of(&gateway, &body).await;
            assert!(asked.codes.iter().all(|code| code.len() == digits), "{:?}", asked.codes);
            let answer = match name {
                "target" => asked.target(&bank, &target_of(&asked.codes)).await,
                _ => asked.at_once(&bank, &in_order(name, &asked.codes)).await,
            };
            asked.approved(&bank, &answer).await;
        }
    }
}
