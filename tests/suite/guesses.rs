//! A thousand parallel guesses are worth no more than the limit.

use serde_json::json;

use crate::daemon::Daemon;
use crate::submissions::{Crowd, Dice, Outcome, Submission, Tally, Token};

/// Verdicts before a lock.
const LIMIT: usize = 5;
const GUESSES: usize = 1_000;

/// So many wrong guesses at a token: most at `/verify`, some at `/resync`, with no idempotency key or
/// one of their own.
fn guesses(token: &Token, count: usize, label: &str) -> Vec<Submission> {
    let codes = token.wrong_codes(count + 1);
    let guess = |number: usize| {
        let mut guess = Submission::new(&token.id, &codes[number]);
        if number.is_multiple_of(7) {
            guess.path = format!("/v1/credentials/{}/resync", token.id);
            guess.body = json!({ "otps": [codes[number], codes[number + 1]] });
        }
        guess.idempotency_key = number.is_multiple_of(2).then(|| format!("{label}-{}-{number}", token.id));
        guess
    };
    (0..count).map(guess).collect()
}

fn sum(tallies: &[Tally]) -> Tally {
    tallies.iter().fold(Tally::default(), |sum, tally| sum.plus(*tally))
}

/// Sends guesses at tokens of one account: as many verdicts as the limit, and then not even the right
/// code is accepted, alone or among others, until somebody unlocks.
async fn guess_at(crowd: &Crowd, tokens: &[Token]) {
    let all: Vec<Submission> =
        tokens.iter().flat_map(|token| guesses(token, GUESSES / tokens.len(), "first")).collect();
    let tally = sum(&crowd.tally(&all, 1).await);
    assert_eq!((tally.yes, tally.no, tally.lost), (0, LIMIT, 0), "{tally:?}");
    assert!(tally.locked > 0, "{tally:?}");

    for token in tokens {
        let mut second = guesses(token, 20, "second");
        second.extend((0..10).map(|counter| token.submission(counter)));
        let tally = sum(&crowd.tally(&second, 1).await);
        assert_eq!(tally, Tally { locked: 30, ..Tally::default() });
    }
    let connection = crowd.connection(1);
    let unlock = format!("/v1/credentials/{}/unlock", tokens[0].id);
    assert_eq!(connection.post(&unlock, &json!({})).await.unwrap().status, 200);
    assert_eq!(tokens[0].submission(0).send(connection).await, Outcome::Yes, "it was the right code");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_guesses_at_one_credential_are_worth_five() {
    let daemon = Daemon::start();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let tokens = crowd.enrol("hotp", None, 1).await;
    guess_at(&crowd, &tokens).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_guesses_at_twenty_credentials_of_an_account_are_worth_five() {
    let daemon = Daemon::start();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let tokens = crowd.enrol("hotp", Some("guessed"), 20).await;
    guess_at(&crowd, &tokens).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_refunds_no_guess() {
    let (mut dice, seed) = Dice::new();
    println!("seed {seed}");
    let mut daemon = Daemon::start();
    for round in 0..4 {
        let crowd = Crowd::of(&daemon, "bank-a").await;
        let account = format!("round-{round}");
        let tokens = crowd.enrol("hotp", Some(&account), if round % 2 == 0 { 1 } else { 4 }).await;
        let all = |label| -> Vec<Submission> {
            tokens.iter().flat_map(|token| guesses(token, 200 / tokens.len(), label)).collect()
        };
        let (mut before, verdicts, mut killed) = (Tally::default(), dice.below(LIMIT), false);
        let mut outcomes = crowd.send(&all("before"), 1);
        loop {
            if before.no == verdicts && !killed {
                daemon.kill();
                killed = true;
            }
            let Some((_, outcome)) = outcomes.recv().await else { break };
            before.add(outcome);
        }
        daemon.resume();

        let crowd = Crowd::of(&daemon, "bank-a").await;
        let after = sum(&crowd.tally(&all("after"), 1).await);
        let told = format!("seed {seed}, round {round}: {before:?}, {after:?}");
        assert_eq!(before.yes + after.yes, 0, "{told}");
        assert!(before.lost > 0, "it was not killed in the middle; {told}");
        assert!(before.no + after.no <= LIMIT, "a crash refunded a guess; {told}");
        assert!(after.locked > 0, "{told}");
        for token in &tokens {
            assert_eq!(token.submission(0).send(crowd.connection(1)).await, Outcome::Locked, "{told}");
        }
    }
}
