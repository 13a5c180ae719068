//! Guesses at terminals' codes are worth what the limits say, and of what comes at once one thing happens.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::bank::{act, done, failed, locked, refused};
use crate::client::{Connection, Failure};
use crate::daemon::{Daemon, text};
use crate::multi_terminal::{Payer, in_order, other, rule, target_of};
use crate::submissions::{Crowd, Dice};
use crate::transactions::{path, transaction};

/// Verdicts before a lock.
const LIMIT: usize = 5;
const GUESSES: usize = 1_000;
const COPIES: usize = 20;

/// Sends all at once, to their transactions; how many answers of each status there were.
async fn statuses(crowd: &Crowd, all: Vec<(String, Value)>) -> BTreeMap<u16, usize> {
    let mut sent = JoinSet::new();
    for (number, (id, body)) in all.into_iter().enumerate() {
        let connection = crowd.connection(number).clone();
        sent.spawn(async move {
            let answer = connection.post(&path(&id, "responses"), &body).await.unwrap();
            answer.status.as_u16()
        });
    }
    let mut counts = BTreeMap::new();
    for status in sent.join_all().await {
        *counts.entry(status).or_default() += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_wrong_entries_over_many_transactions_are_worth_five() {
    let daemon = Daemon::start();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let bank = crowd.connection(1);
    let gateway = daemon.connect("bank-a-gateway").await;
    let payer = Payer::enrol(bank, "guessed", 3).await;
    let mut all = Vec::new();
    for number in 0..40 {
        let rule = rule(["preset_order", "ascending", "target", "descending"][number % 4]);
        all.push((number, payer.asked(&gateway, &rule).await));
    }
    let guess = |number: usize| {
        let (kind, asked) = &all[number % all.len()];
        let code = format!("{number:06}");
        let body = match kind % 4 {
            2 => json!({ "target": format!("{number:08}") }),
            _ if number.is_multiple_of(3) => json!({ "code": code }),
            _ => json!({ "codes": [code, code, code] }),
        };
        (asked.id.clone(), body)
    };
    let counts = statuses(&crowd, (0..GUESSES).map(guess).collect()).await;
    println!("{counts:?}");
    assert_eq!(counts.values().sum::<usize>(), GUESSES);
    assert_eq!(counts[&403], LIMIT, "{counts:?}");
    assert!(counts[&423] > 0, "{counts:?}");
    assert!(counts.keys().all(|status| [202, 403, 409, 423, 503].contains(status)), "{counts:?}");
    assert_eq!(payer.failures(bank).await, [LIMIT as u64; 3], "each of them once a round");

    // Not even the right codes, alone or among others, until somebody unlocks.
    let asked = payer.asked(&gateway, &rule("preset_order")).await;
    let right = json!({ "codes": asked.codes });
    let mut second: Vec<_> = (0..30).map(|number| guess(number * 7)).collect();
    second.extend((0..10).map(|_| (asked.id.clone(), right.clone())));
    let counts = statuses(&crowd, second).await;
    assert!(counts.keys().all(|status| [409, 423].contains(status)), "{counts:?}");
    for terminal in &payer.terminals {
        done(&act(bank, terminal, "unlock").await);
    }
    asked.approved(bank, &asked.send(bank, &right).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_twenty_right_responses_at_once_one_approves() {
    let daemon = Daemon::start();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let bank = crowd.connection(1);
    let gateway = daemon.connect("bank-a-gateway").await;
    for (name, one_by_one) in
        [("preset_order", true), ("descending", true), ("ascending", false), ("target", false)]
    {
        let payer = Payer::enrol(bank, name, 4).await;
        let asked = payer.asked(&gateway, &rule(name)).await;
        let right = in_order(name, &asked.codes);
        let body = match one_by_one {
            true => {
                for code in &right[..3] {
                    assert_eq!(asked.enter(bank, code).await.status, 202);
                }
                json!({ "code": right[3] })
            }
            false if name == "target" => json!({ "target": target_of(&asked.codes) }),
            false => json!({ "codes": right }),
        };
        let copies = (0..COPIES).map(|_| (asked.id.clone(), body.clone())).collect();
        let counts = statuses(&crowd, copies).await;
        assert_eq!(counts, BTreeMap::from([(200, 1), (409, COPIES - 1)]), "{name}");
        assert_eq!(transaction(bank, &asked.id).await["state"], "approved");
        assert_eq!(payer.failures(bank).await, [0; 4]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_at_once_are_entered_one_after_the_other() {
    let daemon = Daemon::start();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let bank = crowd.connection(1);
    let gateway = daemon.connect("bank-a-gateway").await;
    let payer = Payer::enrol(bank, "acct-1", 8).await;
    let asked = payer.asked(&gateway, &rule("preset_order")).await;
    // Seven of the same one: one at most was right, so that the round is lost.
    let copies = (0..7).map(|_| (asked.id.clone(), json!({ "code": asked.codes[0] }))).collect();
    assert_eq!(statuses(&crowd, copies).await, BTreeMap::from([(202, 7)]));
    assert_eq!(transaction(bank, &asked.id).await["entered"], 7);
    assert_eq!(failed(&asked.enter(bank, &asked.codes[7]).await), 2);
    assert_eq!(payer.failures(bank).await, [1; 8]);
    asked.approved(bank, &asked.one_by_one(bank, &asked.codes).await).await;
}

#[tokio::test]
async fn a_crash_between_entries_forgets_none_and_makes_none_right() {
    let mut daemon = Daemon::start();
    let (mut bank, mut gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::enrol(&bank, "acct-1", 3).await;
    for (wrong_at, is_approved) in [(None, true), (Some(0), false), (Some(1), false)] {
        let asked = payer.asked(&gateway, &rule("ascending")).await;
        let mut codes = in_order("ascending", &asked.codes);
        if let Some(place) = wrong_at {
            codes[place] = other(&codes[place]);
        }
        for (place, code) in codes.iter().enumerate() {
            assert_eq!(transaction(&bank, &asked.id).await["entered"], place);
            let answer = asked.enter(&bank, code).await;
            match (place, is_approved) {
                (2, true) => asked.approved(&bank, &answer).await,
                (2, false) => assert_eq!(failed(&answer), 2),
                _ => assert_eq!(answer.status, 202),
            }
            daemon.kill();
            daemon.resume();
            (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
        }
        let expected = if is_approved { [0; 3] } else { [1; 3] };
        assert_eq!(payer.failures(&bank).await, expected, "a crash refunds nothing");
        if !is_approved {
            let right = in_order("ascending", &asked.codes);
            asked.approved(&bank, &asked.at_once(&bank, &right).await).await;
        }
    }
}

/// Whenever the daemon dies, what was told is there, and what was not told is there whole or not at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_in_an_entry_leaves_it_entered_or_not() {
    let (mut dice, seed) = Dice::new();
    println!("seed {seed}");
    let mut daemon = Daemon::start();
    let mut lost = 0;
    for round in 0..8 {
        let bank = daemon.connect("bank-a").await;
        let gateway = daemon.connect("bank-a-gateway").await;
        let payer = Payer::enrol(&bank, &format!("acct-{round}"), 4).await;
        let asked = payer.asked(&gateway, &rule("descending")).await;
        let right = in_order("descending", &asked.codes);
        let last = dice.below(4);
        for code in &right[..last] {
            assert_eq!(asked.enter(&bank, code).await.status, 202);
        }
        let (responses, body) = (path(&asked.id, "responses"), json!({ "code": right[last] }));
        let entry = tokio::spawn({
            let bank = bank.clone();
            async move { bank.post(&responses, &body).await }
        });
        tokio::time::sleep(std::time::Duration::from_micros(250 * dice.below(40) as u64)).await;
        daemon.kill();
        let told = match entry.await.unwrap() {
            Ok(answer) => Some(answer.status.as_u16()),
            Err(Failure::Request(_)) => None,
            Err(failure) => panic!("{failure}"),
        };
        daemon.resume();
        let bank: Connection = daemon.connect("bank-a").await;
        let view = transaction(&bank, &asked.id).await;
        println!(
            "round {round}: entry {last} was told {told:?}, and is {} {}",
            view["state"], view["entered"]
        );
        let is_pending = view["state"] == "pending";
        assert_eq!(view.get("entered").is_some(), is_pending, "an ended one has no round");
        let entered = view["entered"].as_u64().unwrap_or_default() as usize;
        match (told, view["state"].as_str().unwrap()) {
            (Some(200) | None, "approved") => assert_eq!(last, 3),
            (Some(202), "pending") => assert_eq!(entered, last + 1),
            (None, "pending") => {
                lost += 1;
                assert!((last..=last + 1).contains(&entered), "{entered} instead of {last}");
            }
            other => panic!("{other:?}"),
        }
        if is_pending {
            for code in &right[entered..3] {
                let answer = asked.enter(&bank, code).await;
                assert_eq!(answer.status, 202, "{}", text(&answer));
            }
            asked.approved(&bank, &asked.enter(&bank, &right[3]).await).await;
        }
        refused(&asked.at_once(&bank, &right).await, 409, "state-conflict");
        assert_eq!(payer.failures(&bank).await, [0; 4]);
    }
    println!("{lost} entries undone or untold");
}

#[tokio::test]
async fn a_lock_of_the_account_counts_rounds_and_not_terminals() {
    let daemon = Daemon::start();
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::enrol(&bank, "acct-1", 8).await;
    let wrong = vec!["000000".to_owned(); 8];
    let mut asked = payer.asked(&gateway, &rule("preset_order")).await;
    for left in [2, 1, 0] {
        assert_eq!(failed(&asked.one_by_one(&bank, &wrong).await), left);
    }
    asked = payer.asked(&gateway, &rule("preset_order")).await;
    for left in [1, 0] {
        assert_eq!(failed(&asked.at_once(&bank, &wrong).await), left);
    }
    assert_eq!(payer.failures(&bank).await, [5; 8]);
    assert!(locked(&asked.at_once(&bank, &asked.codes).await) <= 900);
}
