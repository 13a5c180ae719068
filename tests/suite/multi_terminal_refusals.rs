//! What several terminals are not asked for: forms that are none, terminals that do not count, locks.

use serde_json::{Value, json};

use crate::bank::{act, credential, delete, done, failed, locked, refused};
use crate::client::{Connection, Http};
use crate::daemon::{Daemon, enrol, enrol_hotp, rfc_code, text, verify};
use crate::multi_terminal::{Asked, Payer, in_order, other, rule, target_of, terminal};
use crate::served::{Served, configuration, section};
use crate::transactions::{NOW, create, id, transaction};

/// The field that a 422 names.
async fn misfit(bank: &Connection, body: &Value) -> String {
    refused(&create(bank, body).await, 422, "invalid")["field"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_payer_has_two_to_eight_terminals() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let mut payer = Payer { account: "acct-1".to_owned(), terminals: Vec::new() };
    // Other credentials of the account, and others' terminals, are none of them.
    enrol_hotp(&bank, "acct-1").await;
    Payer::enrol(&bank, "acct-2", 3).await;
    Payer::enrol(&daemon.connect("bank-b").await, "acct-1", 3).await;
    for count in 0..=9 {
        let answer = create(&bank, &payer.order(&rule("ascending"))).await;
        match count {
            2..=8 => {
                assert_eq!(answer.status, 201, "{count}: {}", text(&answer));
                let view = answer.json().unwrap();
                assert_eq!(view["challenge"]["terminals"].as_array().unwrap().len(), count);
            }
            _ => assert_eq!(refused(&answer, 422, "invalid")["field"], "payer", "{count}"),
        }
        payer.terminals.push(enrol(&bank, &terminal("acct-1", count)).await);
    }
    let nobody = Payer { account: "nobody".to_owned(), terminals: Vec::new() };
    assert_eq!(misfit(&bank, &nobody.order(&rule("ascending"))).await, "payer");
}

#[tokio::test]
async fn what_no_rule_is_has_its_field_named() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let payer = Payer::enrol(&bank, "acct-1", 3).await;
    let other_payer = Payer::enrol(&bank, "acct-2", 2).await;
    let [a, b, c] = [0, 1, 2].map(|number| payer.terminals[number].as_str());
    let foreign = other_payer.terminals[0].as_str();
    for (field, rule) in [
        ("rule.order", json!({ "type": "preset_order", "order": [a, b] })),
        ("rule.order", json!({ "type": "preset_order", "order": [a, b, b] })),
        ("rule.order", json!({ "type": "preset_order", "order": [a, b, c, foreign] })),
        ("rule.order", json!({ "type": "preset_order", "order": [a, b, foreign] })),
        ("rule.order", json!({ "type": "preset_order", "order": [a, b, c, "no-id"] })),
        ("rule.order", json!({ "type": "ascending", "order": [] })),
        ("window_seconds", json!({ "type": "ascending", "window_seconds": 0 })),
        ("window_seconds", json!({ "type": "ascending", "window_seconds": 3_601 })),
        ("interval_seconds", json!({ "type": "ascending", "interval_seconds": 0 })),
        ("interval_seconds", json!({ "type": "ascending", "interval_seconds": 601 })),
        ("interval_seconds", json!({ "type": "target", "interval_seconds": 10 })),
        ("tolerance_seconds", json!({ "type": "ascending", "tolerance_seconds": 1 })),
        ("tolerance_seconds", json!({ "type": "ascending", "interval_seconds": 10, "tolerance_seconds": 0 })),
        (
            "tolerance_seconds",
            json!({ "type": "ascending", "interval_seconds": 10, "tolerance_seconds": 11 }),
        ),
        // Three codes 10 ± 2 seconds apart take 16 seconds at least.
        ("interval_seconds", json!({ "type": "ascending", "interval_seconds": 10, "window_seconds": 16 })),
        ("interval_seconds", json!({ "type": "ascending", "interval_seconds": 152 })),
        ("rule", json!({ "type": "sideways" })),
        ("", json!({ "type": "ascending", "sideways": 1 })),
        ("type", json!({})),
    ] {
        assert_eq!(misfit(&bank, &payer.order(&rule)).await, field, "{rule}");
    }
    for allowed in [
        json!({ "type": "ascending", "interval_seconds": 10, "window_seconds": 17 }),
        json!({ "type": "ascending", "interval_seconds": 151 }),
        json!({ "type": "ascending", "interval_seconds": 600, "tolerance_seconds": 600 }),
        json!({ "type": "target", "window_seconds": 3_600, "order": [c, a, b] }),
    ] {
        let answer = create(&bank, &payer.order(&allowed)).await;
        assert_eq!(answer.status, 201, "{}", text(&answer));
    }
    for (field, name, value) in [
        ("credential", "ascending", json!({ "credential": a })),
        ("digits", "ascending", json!({ "digits": 5 })),
        ("digits", "ascending", json!({ "digits": 11 })),
        ("digits", "target", json!({ "digits": 7 })),
        ("presentation", "ascending", json!({ "presentation": "x" })),
        ("payer", "ascending", json!({ "payer": "" })),
    ] {
        let mut body = payer.order(&rule(name));
        for (key, value) in value.as_object().unwrap() {
            body[key] = value.clone();
        }
        assert_eq!(misfit(&bank, &body).await, field, "{body}");
    }
    for field in ["payer", "rule"] {
        let mut body = payer.order(&rule("ascending"));
        body.as_object_mut().unwrap().remove(field);
        assert_eq!(misfit(&bank, &body).await, field);
    }
}

#[tokio::test]
async fn what_is_no_entry_is_invalid_and_costs_nothing() {
    let daemon = Daemon::start_at(NOW);
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::enrol(&bank, "acct-1", 2).await;
    let interval = json!({ "type": "preset_order", "interval_seconds": 10 });
    for (rule, bodies) in [
        (
            rule("preset_order"),
            vec![
                ("codes", json!({ "codes": [] })),
                ("codes", json!({ "codes": ["12345", "123456"] })),
                ("codes", json!({ "codes": ["123456", "12345a"] })),
                ("codes", json!({ "codes": ["123456", "1234567"] })),
                ("codes", json!({ "codes": vec!["123456"; 9] })),
                ("code", json!({ "code": "1234567" })),
                ("code", json!({ "code": "" })),
                ("target", json!({ "target": "123456" })),
                ("codes", json!({ "otp": "123456" })),
                ("codes", json!({ "format": "der", "signature": "AAAA" })),
                ("", json!({ "code": "123456", "codes": ["123456"] })),
                ("", json!({ "code": "123456", "otp": "123456" })),
                ("", json!({ "target": "123456", "format": "der", "signature": "AAAA" })),
                ("otp", json!({})),
            ],
        ),
        (
            interval,
            vec![
                ("codes", json!({ "codes": ["123456", "123457"] })),
                ("target", json!({ "target": "123456" })),
            ],
        ),
        (
            rule("target"),
            vec![
                ("target", json!({ "codes": ["12345678", "12345679"] })),
                ("target", json!({ "code": "12345678" })),
                ("target", json!({ "target": "1234567" })),
                ("target", json!({ "target": "123456789" })),
            ],
        ),
    ] {
        let asked = payer.asked(&gateway, &rule).await;
        let before = transaction(&bank, &asked.id).await;
        for (field, body) in bodies {
            let document = refused(&asked.send(&bank, &body).await, 422, "invalid");
            assert_eq!(document["field"].as_str().unwrap_or_default(), field, "{rule}: {body}");
        }
        assert_eq!(transaction(&bank, &asked.id).await, before);
    }
    assert_eq!(payer.failures(&bank).await, [0, 0]);
    // Nor is a code of a terminal's any other credential's.
    for (path, body) in
        [("verify", json!({ "otp": "123456" })), ("resync", json!({ "otps": ["123456", "123457"] }))]
    {
        let path = crate::bank::path(&payer.terminals[0], path);
        refused(&bank.post(&path, &body).await.unwrap(), 409, "state-conflict");
    }
}

#[tokio::test]
async fn addresses_are_checked_and_shown_as_they_came() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let body = |address: &str| json!({ "type": "terminal", "account": "acct-1", "address": address });
    let long = "\u{e9}".repeat(128);
    for good in ["+49 30 1234", "push:AbC/=~", "x", &*long] {
        let answer = bank.post("/v1/credentials", &body(good)).await.unwrap();
        assert_eq!(answer.status, 201, "{}", text(&answer));
        let view = answer.json().unwrap();
        assert_eq!(
            (&view["type"], &view["address"], &view["state"]),
            (&json!("terminal"), &json!(good), &json!("active"))
        );
        assert_eq!(view["failures"], 0);
        assert_eq!(view.as_object().unwrap().len(), 8, "{view}");
        assert_eq!(credential(&bank, &id(&view)).await, view);
    }
    for bad in ["", "a\nb", "\u{202e}1", &"x".repeat(257), &"\u{e9}".repeat(129)] {
        let answer = bank.post("/v1/credentials", &body(bad)).await.unwrap();
        assert_eq!(refused(&answer, 422, "invalid")["field"], "address", "{bad:?}");
    }
    for (field, value) in [("seed_hex", "00"), ("algorithm", "SHA1"), ("counter", "1")] {
        let mut body = body("x");
        body[field] = json!(value);
        refused(&bank.post("/v1/credentials", &body).await.unwrap(), 422, "invalid");
    }
}

#[tokio::test]
async fn terminals_are_those_of_the_beginning() {
    let daemon = Daemon::start_at(NOW);
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::enrol(&bank, "acct-1", 2).await;
    let asked = payer.asked(&gateway, &rule("preset_order")).await;
    let late = enrol(&bank, &terminal("acct-1", 9)).await;
    assert_eq!(transaction(&gateway, &asked.id).await, asked.view, "who is enrolled later is not asked");
    asked.approved(&bank, &asked.one_by_one(&bank, &asked.codes).await).await;

    // One that cannot be asked any more: nothing approves what asked it, and nothing is charged.
    let asked = Asked::of(&gateway, &payer.order(&rule("preset_order"))).await;
    assert_eq!(asked.codes.len(), 3);
    assert_eq!(asked.enter(&bank, &asked.codes[0]).await.status, 202);
    done(&act(&bank, &late, "suspend").await);
    for body in
        [json!({ "codes": asked.codes }), json!({ "code": asked.codes[1] }), json!({ "code": "000000" })]
    {
        refused(&asked.send(&bank, &body).await, 409, "state-conflict");
    }
    assert_eq!(transaction(&bank, &asked.id).await["entered"], 1);
    let without = payer.asked(&gateway, &rule("preset_order")).await;
    assert_eq!(without.codes.len(), 2, "a suspended one is not asked");
    done(&act(&bank, &late, "resume").await);
    assert_eq!(asked.enter(&bank, &asked.codes[1]).await.status, 202);
    asked.approved(&bank, &asked.enter(&bank, &asked.codes[2]).await).await;

    let asked = payer.asked(&gateway, &rule("ascending")).await;
    delete(&bank, &late).await;
    refused(&asked.at_once(&bank, &in_order("ascending", &asked.codes)).await, 409, "state-conflict");
    let shown = transaction(&gateway, &asked.id).await;
    assert_eq!(shown, crate::multi_terminal::without_codes(&asked.view), "there are no codes any more");
    assert_eq!(payer.failures(&bank).await, [0, 0]);
    let answer = without.at_once(&bank, &without.codes).await;
    without.approved(&bank, &answer).await;
}

#[tokio::test]
async fn any_lock_stops_all_and_a_success_clears_all() {
    let daemon = Daemon::start_at(NOW);
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::enrol(&bank, "acct-1", 3).await;
    let hotp = enrol_hotp(&bank, "acct-1").await;
    let rule = rule("descending");
    // Four failed rounds over two transactions: each terminal four times, the account four times.
    let (first, second) = (payer.asked(&gateway, &rule).await, payer.asked(&gateway, &rule).await);
    let wrong = ["000000".to_owned(), "000000".to_owned(), "000000".to_owned()];
    for (asked, left) in [(&first, 2), (&first, 1), (&second, 2), (&second, 1)] {
        assert_eq!(failed(&asked.at_once(&bank, &wrong).await), left);
    }
    assert_eq!(payer.failures(&bank).await, [4, 4, 4]);
    assert_eq!(failed(&verify(&bank, &hotp, &rfc_code(9_000)).await), 0, "the account's fifth");
    let before = transaction(&bank, &second.id).await;
    for body in
        [json!({ "codes": second.codes }), json!({ "code": second.codes[0] }), json!({ "codes": wrong })]
    {
        assert_eq!(locked(&second.send(&bank, &body).await), 900);
    }
    assert_eq!(transaction(&bank, &second.id).await, before);
    // It ends by itself. Then a success takes back what is the terminals', and not what is the other one's.
    daemon.set_clock(NOW + 900);
    let asked = payer.asked(&gateway, &rule).await;
    let right = in_order("descending", &asked.codes);
    asked.approved(&bank, &asked.one_by_one(&bank, &right).await).await;
    assert_eq!(payer.failures(&bank).await, [0, 0, 0]);
    for left in [3, 2, 1, 0] {
        assert_eq!(failed(&verify(&bank, &hotp, &rfc_code(9_000)).await), left);
    }
    locked(&verify(&bank, &hotp, &rfc_code(0)).await);
    let asked = payer.asked(&gateway, &rule).await;
    assert_eq!(locked(&asked.at_once(&bank, &asked.codes).await), 900, "the account's lock is everybody's");
    done(&act(&bank, &payer.terminals[1], "unlock").await);
    let answer = asked.at_once(&bank, &in_order("descending", &asked.codes)).await;
    asked.approved(&bank, &answer).await;

    // One terminal's own lock: it was asked with others before.
    let pair = Payer::enrol(&bank, "acct-2", 2).await;
    for left in [2, 1, 0] {
        if left == 2 {
            daemon.set_clock(NOW + 901);
        }
        let asked = pair.asked(&gateway, &rule).await;
        for _ in 0..2 {
            if pair.failures(&bank).await[0] < 5 {
                failed(&asked.at_once(&bank, &wrong).await);
            }
        }
    }
    assert_eq!(pair.failures(&bank).await, [5, 5]);
    done(&act(&bank, &pair.terminals[0], "unlock").await);
    assert_eq!(pair.failures(&bank).await, [0, 5]);
    let asked = pair.asked(&gateway, &rule).await;
    assert_eq!(locked(&asked.at_once(&bank, &asked.codes).await), 900, "the other one's own");
    done(&act(&bank, &pair.terminals[1], "unlock").await);
    asked.approved(&bank, &asked.at_once(&bank, &in_order("descending", &asked.codes)).await).await;
}

#[tokio::test]
async fn a_target_is_charged_like_a_round() {
    let daemon = Daemon::start_at(NOW);
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::enrol(&bank, "acct-1", 2).await;
    let asked = payer.asked(&gateway, &rule("target")).await;
    let target = target_of(&asked.codes);
    assert_eq!(failed(&asked.target(&bank, &other(&target)).await), 2);
    assert_eq!(payer.failures(&bank).await, [1, 1]);
    asked.approved(&bank, &asked.target(&bank, &target).await).await;
    assert_eq!(payer.failures(&bank).await, [0, 0]);
}

/// A terminal that a thief enrols is not asked until it has been there for a while.
#[tokio::test]
async fn a_new_terminal_does_not_count_until_it_has_cooled() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    // An hour ago, or a little more, and some seconds less.
    let mut daemon = Daemon::start_at(now - 3_700);
    let bank = daemon.connect("bank-a").await;
    let old = Payer::enrol(&bank, "acct-1", 2).await;
    daemon.set_clock(now - 3_000);
    enrol(&bank, &terminal("acct-1", 7)).await;
    Payer::enrol(&bank, "acct-2", 2).await;
    daemon.kill();
    let config = configuration(&daemon, "cooling.toml", |config| {
        section(config, "credentials").insert("terminal_cooling_seconds".into(), 3_600.into());
    });
    let served = Served::start(&config);
    let bank = Connection::open(&served.url, &daemon.identity("bank-a"), Http::Two).await.unwrap();
    enrol(&bank, &terminal("acct-1", 8)).await;
    let answer = create(&bank, &old.order(&rule("ascending"))).await;
    assert_eq!(answer.status, 201, "{}", text(&answer));
    let asked: Vec<Value> = answer.json().unwrap()["challenge"]["terminals"]
        .as_array()
        .unwrap()
        .iter()
        .map(|terminal| terminal["credential"].clone())
        .collect();
    assert_eq!(json!(asked), json!(old.terminals));
    let new = Payer { account: "acct-2".to_owned(), terminals: Vec::new() };
    assert_eq!(misfit(&bank, &new.order(&rule("ascending"))).await, "payer");
    // Nor can the bank ask it all the same.
    let all = Payer::enrol(&bank, "acct-1", 0).await.terminals;
    assert_eq!(all.len(), 4);
    assert_eq!(
        misfit(&bank, &old.order(&json!({ "type": "preset_order", "order": all }))).await,
        "rule.order"
    );
}
