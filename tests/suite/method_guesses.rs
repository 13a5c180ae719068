//! One account, every way to guess at it: all of them together are worth no more than one.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::bank::{act, done};
use crate::daemon::{Daemon, enrol};
use crate::multi_terminal::{Payer, rule};
use crate::rolling_terminal::Terminal;
use crate::submissions::Crowd;
use crate::transactions::{created, id, order, path};
use crate::transactions_client::{at, respond};
use crate::{bank, rolling_terminal};

/// Verdicts before the account is locked.
const LIMIT: usize = 5;
const ROUNDS: usize = 60;
const ACCOUNT: &str = "guessed";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guesses_by_every_method_together_are_worth_five() {
    let daemon = Daemon::start();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let bank = crowd.connection(1);
    let hotp = enrol(bank, &json!({ "type": "hotp", "account": ACCOUNT })).await;
    let ocra =
        enrol(bank, &json!({ "type": "ocra", "account": ACCOUNT, "suite": "OCRA-1:HOTP-SHA1-6:QN08" })).await;
    let payer = Payer::enrol(bank, ACCOUNT, 0).await;
    assert_eq!(payer.terminals.len(), 2);
    for number in 0..3 {
        enrol(bank, &crate::multi_terminal::terminal(ACCOUNT, number)).await;
    }
    let terminal = Terminal::enrol(bank, "bank-a", ACCOUNT).await;

    let mut all: Vec<(String, Value)> = Vec::new();
    for number in 0..ROUNDS {
        let code = format!("{number:06}");
        all.push((bank::path(&hotp, "verify"), json!({ "otp": code })));
        all.push((bank::path(&hotp, "resync"), json!({ "otps": [code, code] })));
        let asked = created(bank, &order(&ocra)).await;
        all.push((path(&id(&asked), "responses"), json!({ "otp": code })));
        let asked = created(bank, &payer.order(&rule("ascending"))).await;
        all.push((path(&id(&asked), "responses"), json!({ "codes": [code, code, code] })));
        let asked = rolling_terminal::order(bank).await;
        all.push((at(&asked, "responses"), terminal.guess(&asked)));
        let proof = format!("{number:064x}");
        all.push((bank::path(&terminal.id, "rotation"), json!({ "epoch": 1, "proof_hex": proof })));
    }
    let count = all.len();
    let mut sent = JoinSet::new();
    for (number, (path, body)) in all.into_iter().enumerate() {
        let connection = crowd.connection(number).clone();
        sent.spawn(async move { connection.post(&path, &body).await.unwrap().status.as_u16() });
    }
    let mut counts = BTreeMap::<u16, usize>::new();
    for status in sent.join_all().await {
        *counts.entry(status).or_default() += 1;
    }
    println!("{counts:?}");
    assert_eq!(counts.values().sum::<usize>(), count);
    assert_eq!(counts[&403], LIMIT, "{counts:?}");
    assert!(counts.keys().all(|status| [403, 423, 503].contains(status)), "{counts:?}");

    // Whoever is right has to wait, too, until somebody unlocks; and no epoch was lost by it.
    let asked = rolling_terminal::order(bank).await;
    let right = terminal.password(&asked);
    assert_eq!(respond(bank, &asked, &right).await.status, 423);
    for of_it in [&hotp, &ocra, &terminal.id] {
        done(&act(bank, of_it, "unlock").await);
    }
    assert_eq!(done(&respond(bank, &asked, &right).await)["account"], ACCOUNT);
}
