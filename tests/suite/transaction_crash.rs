//! A crash while responses are answered: what was told is what is kept, and nothing is approved or attested twice.

use std::time::{Duration, Instant};

use hsm_authd::domain::row::{Row, RowSum};
use hsm_authd::domain::transaction::State;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::bank::{credential, refused};
use crate::client::{Connection, Failure, Response};
use crate::commit_errors::start_on;
use crate::daemon::{Daemon, text};
use crate::failing_disk::FailingDisk;
use crate::ocra::{BY_BOTH, BY_COUNTER, BY_TIME, NOW, PLAIN, STEP};
use crate::pruning::{rows, sum};
use crate::submissions::{Crowd, Dice};
use crate::token::TestToken;
use crate::transactions_client::{
    Approver, Hand, approve, at, bound, kept_attestations, respond, rs256, standing, token,
};

const COPIES: usize = 3;
const ROUNDS: u64 = 12;
/// How long there are new rounds.
const LASTING: Duration = Duration::from_secs(20);

async fn approvers(bank: &Connection, suites: &[&str]) -> Vec<Approver> {
    let mut hands: Vec<Hand> = suites.iter().map(|suite| token(suite)).collect();
    hands.extend([Hand::Es256(1), rs256(), Hand::Authenticator(1)]);
    let mut all = Vec::new();
    for (number, hand) in hands.into_iter().enumerate() {
        let method = if number == 0 { "challenge_response" } else { "device_signature" };
        all.push(Approver::enrol(bank, "bank-a", &format!("acct-{number}"), method, hand).await);
    }
    all
}

/// Right responses, those for one transaction at once and the transactions one after the other, so that they are not
/// all of one commit; what comes back for each.
fn send(
    crowd: &Crowd,
    all: &[(Value, Vec<Value>)],
    between: Duration,
) -> UnboundedReceiver<(usize, Result<Response, Failure>)> {
    let (sender, receiver) = unbounded_channel();
    for (place, (transaction, responses)) in all.iter().enumerate() {
        for (copy, response) in responses.iter().enumerate() {
            let (sender, connection) = (sender.clone(), crowd.connection(place * COPIES + copy).clone());
            let (path, response) = (at(transaction, "responses"), response.clone());
            tokio::spawn(async move {
                tokio::time::sleep(between * place as u32).await;
                let _ = sender.send((place, connection.post(&path, &response).await));
            });
        }
    }
    receiver
}

/// As many responses as copies; those of an authenticator with a count each.
async fn responses(
    bank: &Connection,
    approver: &Approver,
    transaction: &Value,
    count: &mut u64,
    step: u64,
) -> Vec<Value> {
    let own = bound("bank-a", transaction);
    let counter = credential(bank, &approver.id).await["counter"].as_u64();
    let mut all = Vec::new();
    for copy in 0..COPIES {
        *count += 1;
        let form = approver.forms()[copy % approver.forms().len()];
        all.push(approver.made_at(step, &own, form, counter.unwrap_or(*count)));
    }
    all
}

/// The attestation of a 200; none of a refusal, which is of a right response too late.
fn told(answer: &Response) -> Option<String> {
    if answer.status == 200 {
        return Some(answer.json().unwrap()["attestation"].as_str().unwrap().to_owned());
    }
    match answer.status.as_u16() {
        409 => drop(refused(answer, 409, "state-conflict")),
        503 => drop(refused(answer, 503, "unavailable")),
        other => panic!("{other}: {}", text(answer)),
    }
    None
}

/// After a crash: it is pending, and can be approved; or it is approved as was told, and cannot be again. Its
/// attestation.
async fn settled(
    bank: &Connection,
    daemon: &Daemon,
    transaction: &Value,
    right: &Value,
    before: &[String],
) -> String {
    let kept = || kept_attestations(daemon, &[transaction]).remove(0);
    let state = standing(bank, transaction).await.0;
    let jws = match &*state {
        "pending" => {
            assert_eq!(before, [""; 0], "an approval was forgotten");
            assert_eq!(kept(), [""; 0]);
            approve(bank, transaction, right).await
        }
        "approved" => kept().remove(0),
        other => panic!("{other}"),
    };
    refused(&respond(bank, transaction, right).await, 409, "state-conflict");
    assert!(before.iter().all(|told| *told == jws), "it was attested twice");
    let read = bank.get(&at(transaction, "attestation")).await.unwrap();
    assert_eq!(told(&read).as_ref(), Some(&jws));
    assert_eq!(kept(), std::slice::from_ref(&jws));
    jws
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_daemon_approves_and_attests_once() {
    let (mut dice, seed) = Dice::new();
    println!("seed {seed}");
    let mut daemon = Daemon::start_at(NOW);
    let mut crowd = Crowd::of(&daemon, "bank-a").await;
    let approvers = approvers(crowd.connection(1), &[PLAIN, BY_TIME, BY_COUNTER, BY_BOTH]).await;
    let (mut count, mut lost, mut attested) = (0, 0, Vec::new());
    let (mut pending, mut untold) = (0, 0);
    let begun = Instant::now();
    for round in 0..ROUNDS {
        if begun.elapsed() > LASTING {
            break;
        }
        let mut all = Vec::new();
        // Whoever starts after a kill believes no code of a step that was within reach.
        let [step, later] = [round * 3, round * 3 + 3].map(|minutes| STEP + minutes);
        for approver in &approvers {
            let transaction = approver.transaction(crowd.connection(1)).await;
            let responses = responses(crowd.connection(1), approver, &transaction, &mut count, step).await;
            all.push((transaction, responses));
        }
        let (mut before, mut seen) = (vec![Vec::new(); all.len()], 0);
        let last = dice.below(all.len() * COPIES * 2 / 3);
        let mut answers = send(&crowd, &all, Duration::from_micros(250 * dice.below(24) as u64));
        loop {
            if seen == last {
                // Between two answers too.
                tokio::time::sleep(Duration::from_micros(250 * dice.below(12) as u64)).await;
                daemon.kill();
            }
            let Some((place, answer)) = answers.recv().await else { break };
            seen += 1;
            match answer {
                Ok(answer) => before[place].extend(told(&answer)),
                Err(Failure::Request(_)) => lost += 1,
                Err(other) => panic!("{other}"),
            }
        }
        daemon.resume();
        daemon.set_clock(later * 60);
        crowd = Crowd::of(&daemon, "bank-a").await;
        let bank = crowd.connection(1);
        for (((transaction, responses), approver), before) in all.iter().zip(&approvers).zip(&before) {
            println!("seed {seed}, round {round}, {}: {} told", approver.name(), before.len());
            match &*standing(bank, transaction).await.0 {
                "pending" => pending += 1,
                _ => untold += 1 - before.len(),
            }
            assert!(before.len() <= 1, "it was approved twice");
            let right = match approver.hand {
                // Perhaps a later count was accepted.
                Hand::Authenticator(_) => approver.response(transaction, count + 1),
                Hand::Token(_) => {
                    let counter = credential(bank, &approver.id).await["counter"].as_u64().unwrap_or(0);
                    approver.made_at(later, &bound("bank-a", transaction), approver.forms()[0], counter)
                }
                _ => responses[0].clone(),
            };
            let jws = settled(bank, &daemon, transaction, &right, before).await;
            attested.push((transaction.clone(), jws));
            assert_eq!(credential(bank, &approver.id).await["failures"], 0);
        }
        count += 1;
    }
    println!("{lost} answers lost; {pending} approvals undone, {untold} done that nobody was told of");
    assert!(lost > 0, "the daemon was never killed in the middle");
    for (transaction, jws) in &attested {
        let read = crowd.connection(1).get(&at(transaction, "attestation")).await.unwrap();
        assert_eq!(told(&read).as_ref(), Some(jws), "it changed later");
    }

    drop(crowd);
    assert!(daemon.stop().success());
    let (kept, kept_sum) = rows(&daemon).await;
    let is_approved = |row: &Row| matches!(row, Row::Transaction(row) if row.state == State::Approved);
    let approved = kept.iter().filter(|sealed| is_approved(&sealed.row)).count();
    let attestations = kept.iter().filter(|sealed| matches!(sealed.row, Row::Attestation(_))).count();
    assert_eq!((approved, attestations), (attested.len(), attested.len()));
    let token = TestToken::of(&daemon);
    let mut custodian = token.custodian();
    // A message has 64 KiB.
    let sums = kept.chunks(50).map(|some| sum(&mut custodian, some));
    assert_eq!(sums.fold(RowSum::default(), RowSum::plus), kept_sum);
}

/// The HSM has signed, and then the disk fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attestation_that_was_not_written_was_never_made() {
    let disk = FailingDisk::new();
    let mut daemon = start_on(&disk);
    let mut crowd = Crowd::of(&daemon, "bank-a").await;
    let approvers = approvers(crowd.connection(1), &[PLAIN, BY_COUNTER]).await;
    let mut count = 0;
    for mode in ["write-eio", "fsync-eio", "write-then-eio"] {
        for approver in &approvers {
            let transaction = approver.transaction(crowd.connection(1)).await;
            let responses = responses(crowd.connection(1), approver, &transaction, &mut count, STEP).await;
            disk.set(mode);
            let answer = respond(crowd.connection(1), &transaction, &responses[0]).await;
            refused(&answer, 503, "unavailable");
            assert_eq!(daemon.ended().code(), Some(1), "{mode}");
            disk.set("none");
            daemon.resume();
            crowd = Crowd::of(&daemon, "bank-a").await;
            let bank = crowd.connection(1);
            // An authenticator that was not told of a success counts on.
            let right = match approver.hand {
                Hand::Authenticator(_) => &responses[1],
                _ => &responses[0],
            };
            println!("{mode}, {}", approver.name());
            settled(bank, &daemon, &transaction, right, &[]).await;
            assert_eq!(credential(bank, &approver.id).await["failures"], json!(0));
        }
    }
}
