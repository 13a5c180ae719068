//! Of what comes to a transaction at once, one thing happens, and nothing that is read later contradicts it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::bank::{act, credential, done, failed, locked, path, refused};
use crate::client::{Connection, Response};
use crate::daemon::{Daemon, SEED_HEX, enrol, problem, rfc_code, text, verify};
use crate::ocra::{BY_BOTH, BY_COUNTER, BY_TIME, NOW, PLAIN, wrong};
use crate::submissions::{Crowd, Dice};
use crate::transactions_client::{
    Approver, Hand, approve, at, bound, kept_attestations, respond, rs256, standing, token, view,
};

const COPIES: usize = 20;
const BY_CODE: &str = "challenge_response";
const BY_DEVICE: &str = "device_signature";

async fn approvers(bank: &Connection, label: &str) -> Vec<Approver> {
    let mut all = Vec::new();
    for (number, (method, hand)) in [
        (BY_CODE, token(PLAIN)),
        (BY_CODE, token(BY_TIME)),
        (BY_CODE, token(BY_COUNTER)),
        (BY_DEVICE, token(BY_BOTH)),
        (BY_DEVICE, Hand::Es256(1)),
        (BY_DEVICE, rs256()),
        (BY_DEVICE, Hand::Authenticator(1)),
    ]
    .into_iter()
    .enumerate()
    {
        all.push(Approver::enrol(bank, "bank-a", &format!("{label}-{number}"), method, hand).await);
    }
    all
}

/// A request of a bank, on its way.
#[derive(Clone)]
struct Asked {
    path: String,
    body: String,
    key: Option<String>,
}

fn response(transaction: &Value, response: &Value) -> Asked {
    Asked { path: at(transaction, "responses"), body: response.to_string(), key: None }
}

fn cancel(transaction: &Value) -> Asked {
    Asked { path: at(transaction, "cancel"), body: String::new(), key: None }
}

/// Sends all at once; the answers, in the order of the requests.
async fn at_once(crowd: &Crowd, all: Vec<Asked>) -> Vec<Response> {
    let mut sent = JoinSet::new();
    for (number, asked) in all.into_iter().enumerate() {
        let connection = crowd.connection(number).clone();
        sent.spawn(async move {
            let mut headers = Vec::new();
            if !asked.body.is_empty() {
                headers.push(("content-type", "application/json"));
            }
            headers.extend(asked.key.as_deref().map(|key| ("idempotency-key", key)));
            (number, connection.request("POST", &asked.path, &headers, asked.body).await.unwrap())
        });
    }
    let mut answers = sent.join_all().await;
    answers.sort_unstable_by_key(|(number, _)| *number);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

fn attestation(answer: &Response) -> String {
    assert_eq!(answer.status, 200, "{}", text(answer));
    answer.json().unwrap()["attestation"].as_str().unwrap().to_owned()
}

/// Whoever reads it gets this attestation, and it is the only one that is kept.
async fn attested_once(daemon: &Daemon, crowd: &Crowd, transaction: &Value, jws: &str) {
    for number in 0..5 {
        let read = crowd.connection(number).get(&at(transaction, "attestation")).await.unwrap();
        assert_eq!(attestation(&read), jws);
    }
    assert_eq!(kept_attestations(daemon, &[transaction]), [[jws.to_owned()]]);
    assert_eq!(view(crowd.connection(1), transaction).await["state"], "approved");
}

/// How many answers are this problem.
fn count(answers: &[Response], status: u16) -> usize {
    answers.iter().filter(|answer| answer.status == status).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_right_responses_at_once_one_approves() {
    let daemon = Daemon::start_at(NOW);
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let bank = crowd.connection(1);
    for approver in approvers(bank, "acct").await {
        for round in 0..3_u64 {
            let transaction = approver.transaction(bank).await;
            let own = bound("bank-a", &transaction);
            let mut all = Vec::new();
            for copy in 0..COPIES {
                let form = approver.forms()[copy % approver.forms().len()];
                // An authenticator that counts: each copy is another signature. A token's counter goes on.
                let factor = match approver.hand {
                    Hand::Authenticator(_) => 1 + 100 * round + copy as u64,
                    _ => round,
                };
                all.push(response(&transaction, &approver.made_for(&own, form, factor)));
            }
            let answers = at_once(&crowd, all.clone()).await;
            let told: Vec<_> = answers.iter().map(|answer| (answer.status.as_u16(), text(answer))).collect();
            assert_eq!(count(&answers, 200), 1, "{} {told:?}", approver.name());
            for answer in answers.iter().filter(|answer| answer.status != 200) {
                refused(answer, 409, "state-conflict");
            }
            let yes = answers.iter().find(|answer| answer.status == 200).unwrap();
            attested_once(&daemon, &crowd, &transaction, &attestation(yes)).await;
            let again = at_once(&crowd, all).await;
            assert_eq!(count(&again, 409), COPIES);
            assert_eq!(credential(bank, &approver.id).await["failures"], 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_one_request_sent_at_once_all_get_the_same_answer_or_none() {
    let daemon = Daemon::start_at(NOW);
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let bank = crowd.connection(1);
    for approver in approvers(bank, "acct").await {
        let transaction = approver.transaction(bank).await;
        let key = Some(approver.id.clone());
        let asked = Asked { key, ..response(&transaction, &approver.response(&transaction, 0)) };
        let answers = at_once(&crowd, vec![asked.clone(); COPIES]).await;
        // A request that is being worked on is a 409, which nobody remembers.
        assert!(count(&answers, 200) >= 1);
        assert_eq!(count(&answers, 200) + count(&answers, 409), COPIES);
        let yes = answers.iter().find(|answer| answer.status == 200).unwrap();
        for answer in at_once(&crowd, vec![asked; 3]).await.iter().chain(&answers) {
            assert!(answer.status == 409 || answer.body == yes.body);
        }
        attested_once(&daemon, &crowd, &transaction, &attestation(yes)).await;
    }
}

/// A count is used up by whichever transaction comes first, as another's key may have been copied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_transactions_at_once_one_takes_a_count() {
    let daemon = Daemon::start_at(NOW);
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let bank = crowd.connection(1);
    for (number, hand) in
        [token(BY_COUNTER), token(BY_BOTH), Hand::Authenticator(1), token(PLAIN), Hand::Es256(1)]
            .into_iter()
            .enumerate()
    {
        let counts = number < 3;
        let approver = Approver::enrol(bank, "bank-a", &format!("acct-{number}"), BY_DEVICE, hand).await;
        for round in 1..4 {
            let (mut transactions, mut all) = (Vec::new(), Vec::new());
            for _ in 0..4 {
                let transaction = approver.transaction(bank).await;
                all.push(response(&transaction, &approver.response(&transaction, round)));
                transactions.push(transaction);
            }
            let answers = at_once(&crowd, all).await;
            let approved = if counts { 1 } else { 4 };
            assert_eq!(
                (count(&answers, 200), count(&answers, 403)),
                (approved, 4 - approved),
                "{}",
                approver.name()
            );
            for (transaction, answer) in transactions.iter().zip(&answers) {
                let (end, attestations) = match (answer.status.as_u16(), &approver.hand) {
                    (200, _) => ("approved", 1),
                    // A token's last counter is known as a repeat, whatever the question: it costs nothing.
                    (_, Hand::Token(_)) => ("pending", 0),
                    _ => ("failed", 0),
                };
                assert_eq!(standing(bank, transaction).await.0, end);
                assert_eq!(kept_attestations(&daemon, &[transaction])[0].len(), attestations);
            }
            // Later is too late as well.
            if counts {
                let transaction = approver.transaction(bank).await;
                failed(&respond(bank, &transaction, &approver.response(&transaction, round)).await);
                done(&act(bank, &approver.id, "unlock").await);
            }
        }
    }
}

/// Reads a transaction until it is told to stop: what it saw, in order, without repetitions.
async fn watch(
    bank: Connection,
    transaction: Value,
    mut stop: tokio::sync::oneshot::Receiver<()>,
) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    loop {
        let last = stop.try_recv().is_ok();
        let (state, _) = standing(&bank, &transaction).await;
        if seen.last() != Some(&state) {
            seen.push(state);
        }
        if last {
            return seen;
        }
    }
}

/// A moment within three times what an approval takes. The approval begins after the first of them, so that either comes
/// first however late a busy machine wakes up.
fn some_time(dice: &mut Dice, approval: Duration) -> Duration {
    approval * dice.below(300) as u32 / 100
}

/// How long this approver's approval takes.
async fn approval_time(bank: &Connection, approver: &Approver) -> Duration {
    let transaction = approver.transaction(bank).await;
    let right = approver.response(&transaction, 0);
    let begun = Instant::now();
    approve(bank, &transaction, &right).await;
    begun.elapsed()
}

/// What it was seen as may be two things: pending, and how it ended.
fn saw_one_end(seen: &[String], end: &str, told: &str) {
    let rest = seen.strip_prefix(&["pending".to_owned()]).unwrap_or(seen);
    assert_eq!(rest, [end.to_owned()], "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn approved_or_cancelled_is_one_end() {
    let (mut dice, seed) = Dice::new();
    println!("seed {seed}");
    let daemon = Daemon::start_at(NOW);
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let bank = crowd.connection(1);
    let mut ends = BTreeMap::new();
    for approver in approvers(bank, "acct").await {
        let approval = approval_time(bank, &approver).await;
        for round in 0..8_u64 {
            let transaction = approver.transaction(bank).await;
            let counter = credential(bank, &approver.id).await["counter"].as_u64();
            let right = approver.response(&transaction, counter.unwrap_or(round + 1));
            let (stop, stopped) = tokio::sync::oneshot::channel();
            let watching = tokio::spawn(watch(crowd.connection(2).clone(), transaction.clone(), stopped));
            let approving = {
                let (crowd, asked) = (crowd.clone(), response(&transaction, &right));
                tokio::spawn(async move {
                    tokio::time::sleep(approval).await;
                    at_once(&crowd, vec![asked; 3]).await
                })
            };
            tokio::time::sleep(some_time(&mut dice, approval)).await;
            let mut answers = at_once(&crowd, vec![cancel(&transaction); 2]).await;
            answers.extend(approving.await.unwrap());
            stop.send(()).unwrap();
            let seen = watching.await.unwrap();
            let told = format!("seed {seed}, {} {round}: {seen:?}", approver.name());
            let yes: Vec<_> = answers.iter().filter(|answer| answer.status == 200).collect();
            assert_eq!(yes.len(), 1, "{told}");
            assert_eq!(count(&answers, 409), 4, "{told}");
            let end = yes[0].json().unwrap()["state"].as_str().unwrap().to_owned();
            saw_one_end(&seen, &end, &told);
            assert_eq!(standing(bank, &transaction).await.0, end, "{told}");
            if end == "approved" {
                attested_once(&daemon, &crowd, &transaction, &attestation(yes[0])).await;
            } else {
                assert_eq!(end, "cancelled");
                refused(&bank.get(&at(&transaction, "attestation")).await.unwrap(), 409, "state-conflict");
                assert_eq!(kept_attestations(&daemon, &[&transaction]), [[""; 0]]);
            }
            *ends.entry(end).or_insert(0) += 1;
        }
    }
    assert_eq!(ends.len(), 2, "it never came to a race: {ends:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn approved_or_expired_is_one_end() {
    let (mut dice, seed) = Dice::new();
    println!("seed {seed}");
    let daemon = Daemon::start_at(NOW);
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let bank = crowd.connection(1);
    let (mut now, mut ends) = (NOW, BTreeMap::new());
    let all = approvers(bank, "acct").await;
    // Those whose codes do not depend on the time that jumps.
    for approver in all.iter().filter(|approver| !approver.name().contains("-T1M")) {
        let (mut counter, approval) = (1, approval_time(bank, approver).await);
        for round in 0..8_u64 {
            let mut request = approver.request();
            request["expires_in"] = json!(10);
            let transaction = crate::transactions_client::create(bank, &request).await;
            let right = match approver.hand {
                Hand::Authenticator(_) => approver.response(&transaction, round + 1),
                _ => approver.response(&transaction, counter),
            };
            let (stop, stopped) = tokio::sync::oneshot::channel();
            let watching = tokio::spawn(watch(crowd.connection(2).clone(), transaction.clone(), stopped));
            let sending = {
                let (crowd, asked) = (crowd.clone(), response(&transaction, &right));
                tokio::spawn(async move {
                    tokio::time::sleep(approval).await;
                    at_once(&crowd, vec![asked; 6]).await
                })
            };
            tokio::time::sleep(some_time(&mut dice, approval)).await;
            now += 10;
            daemon.set_clock(now);
            let answers = sending.await.unwrap();
            stop.send(()).unwrap();
            let seen = watching.await.unwrap();
            let told = format!("seed {seed}, {} {round}: {seen:?}", approver.name());
            let (end, attempts) = standing(bank, &transaction).await;
            saw_one_end(&seen, &end, &told);
            assert_eq!(attempts, transaction["attempts_remaining"].as_u64().unwrap(), "{told}");
            if end == "approved" {
                assert_eq!((count(&answers, 200), count(&answers, 409)), (1, 5), "{told}");
                let yes = answers.iter().find(|answer| answer.status == 200).unwrap();
                attested_once(&daemon, &crowd, &transaction, &attestation(yes)).await;
                counter += 1;
            } else {
                assert_eq!((end.as_str(), count(&answers, 410)), ("expired", 6), "{told}");
                assert!(answers.iter().all(|answer| problem(answer) == "expired"));
                assert_eq!(kept_attestations(&daemon, &[&transaction]), [[""; 0]]);
            }
            *ends.entry(end).or_insert(0) += 1;
        }
    }
    assert_eq!(ends.len(), 2, "it never came to a race: {ends:?}");
}

/// So many codes that are none of the right one's.
fn wrong_codes(right: &Value) -> Vec<Value> {
    let mut code = right["otp"].as_str().unwrap().to_owned();
    let mut codes = Vec::new();
    for number in 0..COPIES {
        let (head, tail) = code.split_at(number % 7);
        let changed = format!("{head}{}", wrong(tail));
        code = format!("{}{}", &changed[1..], &changed[..1]);
        if json!(code) != right["otp"] {
            codes.push(json!({ "otp": code }));
        }
    }
    codes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_responses_at_once_get_as_many_verdicts_as_there_are_attempts() {
    let daemon = Daemon::start_at(NOW);
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let bank = crowd.connection(1);
    for approver in approvers(bank, "acct").await {
        // Of the same account: it is charged with it.
        let hotp = json!({ "type": "hotp", "account": approver.account, "seed_hex": SEED_HEX });
        let other = enrol(bank, &hotp).await;
        let transaction = approver.transaction(bank).await;
        let attempts = transaction["attempts_remaining"].as_u64().unwrap() as usize;
        let right = approver.response(&transaction, 0);
        let mut stranger = approver.clone();
        stranger.tenant = "bank-b";
        let by_code = matches!(approver.hand, Hand::Token(_));
        let bodies =
            if by_code { wrong_codes(&right) } else { vec![stranger.response(&transaction, 1); COPIES] };
        let sent = bodies.len();
        let answers = at_once(&crowd, bodies.iter().map(|body| response(&transaction, body)).collect()).await;
        assert_eq!((count(&answers, 403), count(&answers, 409)), (attempts, sent - attempts));
        let mut left: Vec<u64> = answers.iter().filter(|answer| answer.status == 403).map(failed).collect();
        left.sort_unstable();
        assert_eq!(left, (0..attempts as u64).collect::<Vec<_>>(), "{}", approver.name());
        assert_eq!(standing(bank, &transaction).await, ("failed".to_owned(), 0));
        refused(&respond(bank, &transaction, &right).await, 409, "state-conflict");

        let charged = if by_code { attempts as u64 } else { 0 };
        if by_code {
            assert_eq!(credential(bank, &approver.id).await["failures"], charged);
        }
        assert_eq!(failed(&verify(bank, &other, &rfc_code(9_000)).await), 4 - charged, "{}", approver.name());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_codes_for_many_transactions_at_once_lock_the_account() {
    let daemon = Daemon::start_at(NOW);
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let bank = crowd.connection(1);
    let approver = Approver::enrol(bank, "bank-a", "acct", BY_CODE, token(PLAIN)).await;
    let (mut transactions, mut all) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let transaction = approver.transaction(bank).await;
        let codes = wrong_codes(&approver.response(&transaction, 0));
        all.extend(codes.iter().map(|body| response(&transaction, body)));
        transactions.push(transaction);
    }
    let answers = at_once(&crowd, all).await;
    assert_eq!((count(&answers, 200), count(&answers, 403)), (0, 5));
    assert!(count(&answers, 423) > 0);
    assert_eq!(count(&answers, 403) + count(&answers, 423) + count(&answers, 409), answers.len());
    let mut spent = 0;
    for transaction in &transactions {
        spent += 3 - standing(bank, transaction).await.1;
    }
    assert_eq!(spent, 5, "each verdict was charged to its transaction, and nothing else was");
    done(&act(bank, &approver.id, "unlock").await);
    for transaction in &transactions {
        if standing(bank, transaction).await.0 == "pending" {
            approve(bank, transaction, &approver.response(transaction, 0)).await;
        }
    }
}

#[tokio::test]
async fn a_lock_stops_codes_and_changes_no_transaction() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    for (number, approver) in approvers(&bank, "acct").await.into_iter().enumerate() {
        let hotp = json!({ "type": "hotp", "account": approver.account, "seed_hex": SEED_HEX });
        let other = enrol(&bank, &hotp).await;
        let transaction = approver.transaction(&bank).await;
        for _ in 0..5 {
            failed(&verify(&bank, &other, &rfc_code(9_000)).await);
        }
        let right = approver.response(&transaction, 1);
        if matches!(approver.hand, Hand::Token(_)) {
            for response in [&right, &json!({ "otp": "00000000" })] {
                locked(&respond(&bank, &transaction, response).await);
            }
            assert_eq!(view(&bank, &transaction).await, transaction, "{number}");
            done(&bank.request("POST", &path(&other, "unlock"), &[], "").await.unwrap());
        }
        // Nobody guesses signatures: no lock stops them.
        approve(&bank, &transaction, &right).await;
    }
}
