//! Windows and intervals: by the appliance's time, and cut off by a restart.

use serde_json::{Value, json};

use crate::bank::{done, failed, refused};
use crate::client::Connection;
use crate::daemon::Daemon;
use crate::multi_terminal::{Asked, Payer, rule};
use crate::transactions::{NOW, transaction};

async fn entered(bank: &Connection, asked: &Asked, place: usize) {
    assert_eq!(asked.enter(bank, &asked.codes[place]).await.status, 202);
}

#[tokio::test]
async fn a_window_is_open_up_to_its_last_second() {
    let mut daemon = Daemon::start_at(NOW);
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::enrol(&bank, "acct-1", 3).await;
    let window = json!({ "type": "preset_order", "window_seconds": 30 });
    for at_once in [true, false] {
        daemon.set_clock(NOW);
        let asked = payer.asked(&gateway, &window).await;
        if !at_once {
            entered(&bank, &asked, 0).await;
            entered(&bank, &asked, 1).await;
        }
        daemon.set_clock(NOW + 29);
        let answer = match at_once {
            true => asked.at_once(&bank, &asked.codes).await,
            false => asked.enter(&bank, &asked.codes[2]).await,
        };
        asked.approved(&bank, &answer).await;
    }
    // A round that begins anew has what is left of the window.
    daemon.set_clock(NOW + 100);
    let asked = payer.asked(&gateway, &window).await;
    daemon.set_clock(NOW + 120);
    assert_eq!(failed(&asked.at_once(&bank, &asked.codes[..2]).await), 2);
    entered(&bank, &asked, 0).await;
    entered(&bank, &asked, 1).await;
    daemon.set_clock(NOW + 130);
    assert_eq!(failed(&asked.enter(&bank, &asked.codes[2]).await), 1);
    // Either clock ends it. The transaction itself is open still.
    daemon.set_clock(NOW + 200);
    let payer = Payer::enrol(&bank, "acct-2", 3).await;
    let short = json!({ "type": "preset_order", "window_seconds": 4 });
    let asked = payer.asked(&gateway, &short).await;
    daemon.step_clock(NOW + 204);
    assert_eq!(failed(&asked.at_once(&bank, &asked.codes).await), 2, "the wall clock says so");
    daemon.kill();
    daemon.set_clock(NOW + 1_000);
    daemon.resume();
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let asked = payer.asked(&gateway, &short).await;
    daemon.set_clock(NOW + 1_004);
    daemon.step_clock(NOW + 1_001);
    assert_eq!(failed(&asked.at_once(&bank, &asked.codes).await), 2, "the time since boot says so");
}

#[tokio::test]
async fn intervals_are_right_to_the_second_and_by_the_time_since_boot() {
    let daemon = Daemon::start_at(NOW);
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::enrol(&bank, "acct-1", 3).await;
    let mut now = NOW;
    for (rule, seconds, is_right) in [
        (json!({ "type": "preset_order", "interval_seconds": 10 }), [0, 8, 12], true),
        (json!({ "type": "preset_order", "interval_seconds": 10 }), [100, 12, 8], true),
        (json!({ "type": "preset_order", "interval_seconds": 10 }), [0, 7, 10], false),
        (json!({ "type": "preset_order", "interval_seconds": 10 }), [0, 10, 13], false),
        (json!({ "type": "preset_order", "interval_seconds": 1 }), [0, 0, 2], true),
        (json!({ "type": "preset_order", "interval_seconds": 1 }), [0, 0, 3], false),
        (
            json!({ "type": "preset_order", "interval_seconds": 10, "tolerance_seconds": 10 }),
            [0, 0, 20],
            true,
        ),
        (json!({ "type": "preset_order", "interval_seconds": 10, "window_seconds": 30 }), [9, 10, 10], true),
        (
            json!({ "type": "preset_order", "interval_seconds": 10, "window_seconds": 30 }),
            [10, 10, 10],
            false,
        ),
    ] {
        now += 200;
        daemon.set_clock(now);
        let asked = payer.asked(&gateway, &rule).await;
        let mut answer = None;
        for (place, seconds) in seconds.into_iter().enumerate() {
            now += seconds;
            daemon.set_clock(now);
            answer = Some(asked.enter(&bank, &asked.codes[place]).await);
        }
        let answer = answer.unwrap();
        match is_right {
            true => asked.approved(&bank, &answer).await,
            false => assert_eq!(failed(&answer), 2, "{rule} {seconds:?}"),
        }
    }
    // A wall clock that is set by less than counts as a step changes no interval.
    now += 200;
    daemon.set_clock(now);
    let asked = payer.asked(&gateway, &json!({ "type": "preset_order", "interval_seconds": 10 })).await;
    entered(&bank, &asked, 0).await;
    daemon.set_clock(now + 10);
    daemon.step_clock(now + 6);
    entered(&bank, &asked, 1).await;
    daemon.set_clock(now + 16);
    asked.approved(&bank, &asked.enter(&bank, &asked.codes[2]).await).await;
}

/// As anybody sees it that a restart ended it.
async fn cut_off(bank: &Connection, asked: &Asked, by_response: bool) {
    if by_response {
        refused(&asked.at_once(bank, &asked.codes).await, 409, "state-conflict");
    }
    let view = transaction(bank, &asked.id).await;
    assert_eq!((&view["state"], &view["attempts_remaining"]), (&json!("failed"), &json!(3)));
    assert!(view["ended_at"].is_string());
    refused(&asked.at_once(bank, &asked.codes).await, 409, "state-conflict");
    refused(&asked.enter(bank, &asked.codes[0]).await, 409, "state-conflict");
}

#[tokio::test]
async fn a_restart_fails_what_it_cuts_off_and_nothing_else() {
    let mut daemon = Daemon::start_at(NOW);
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::enrol(&bank, "acct-1", 3).await;
    let window = json!({ "type": "preset_order", "window_seconds": 60 });
    let interval = json!({ "type": "preset_order", "interval_seconds": 10 });
    let begun = async |rule: &Value, entries: usize| {
        let asked = payer.asked(&gateway, rule).await;
        for place in 0..entries {
            assert_eq!(asked.enter(&bank, &asked.codes[place]).await.status, 202);
            if place + 1 < entries {
                assert!(rule["interval_seconds"].is_null(), "one entry is enough");
            }
        }
        asked
    };
    let cut = [
        begun(&window, 0).await,
        begun(&window, 0).await,
        begun(&window, 2).await,
        begun(&interval, 1).await,
        begun(&interval, 1).await,
        begun(&json!({ "type": "target", "window_seconds": 60 }), 0).await,
    ];
    let (plain, half) = (begun(&rule("preset_order"), 0).await, begun(&rule("preset_order"), 2).await);
    let (not_begun, ended) = (begun(&interval, 0).await, begun(&window, 0).await);
    let with_key = [("content-type", "application/json"), ("idempotency-key", "k")];
    ended.approved(&bank, &ended.at_once(&bank, &ended.codes).await).await;
    daemon.kill();
    daemon.resume();
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    for (number, asked) in cut.iter().enumerate() {
        match number {
            // In a list, too.
            2 => {
                let listed = done(&bank.get("/v1/transactions").await.unwrap());
                let found =
                    listed["items"].as_array().unwrap().iter().find(|item| item["id"] == asked.view["id"]);
                assert_eq!(found.unwrap()["state"], "failed");
                cut_off(&bank, asked, false).await;
            }
            // The answer is remembered.
            3 => {
                let path = crate::transactions::path(&asked.id, "responses");
                let body = json!({ "code": asked.codes[1] }).to_string();
                for _ in 0..2 {
                    let answer = bank.request("POST", &path, &with_key, body.clone()).await.unwrap();
                    refused(&answer, 409, "state-conflict");
                }
                cut_off(&bank, asked, false).await;
            }
            5 => {
                refused(&asked.target(&bank, "12345678").await, 409, "state-conflict");
                assert_eq!(transaction(&gateway, &asked.id).await["state"], "failed");
            }
            _ => cut_off(&bank, asked, number % 2 == 0).await,
        }
    }
    assert_eq!(payer.failures(&bank).await, [0, 0, 0], "nobody is charged");
    assert_eq!(transaction(&bank, &ended.id).await["state"], "approved");
    // What is not timed goes on where it was, with the same codes.
    plain.approved(&bank, &plain.one_by_one(&bank, &plain.codes).await).await;
    assert_eq!(transaction(&gateway, &half.id).await["entered"], 2);
    half.approved(&bank, &half.enter(&bank, &half.codes[2]).await).await;
    // An interval begins with the first entry.
    for (place, seconds) in [5, 10, 10].into_iter().enumerate() {
        daemon.set_clock(NOW + 5 + 10 * place as u64);
        let answer = not_begun.enter(&bank, &not_begun.codes[place]).await;
        assert_eq!(answer.status, if place == 2 { 200 } else { 202 }, "{seconds}");
    }
    assert_eq!(transaction(&bank, &not_begun.id).await["state"], "approved");
}

#[tokio::test]
async fn a_stepped_clock_decides_nothing() {
    let daemon = Daemon::start_at(NOW);
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::enrol(&bank, "acct-1", 2).await;
    let asked = payer.asked(&gateway, &rule("preset_order")).await;
    daemon.step_clock(NOW + 6);
    for body in
        [json!({ "codes": asked.codes }), json!({ "code": asked.codes[0] }), json!({ "code": "000000" })]
    {
        refused(&asked.send(&bank, &body).await, 503, "unavailable");
    }
    assert_eq!(transaction(&gateway, &asked.id).await, asked.view);
    let made = bank.post("/v1/transactions", &payer.order(&rule("target"))).await.unwrap();
    refused(&made, 503, "unavailable");
}
