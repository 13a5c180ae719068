//! A code is accepted once: however many copies of it arrive at once, and wherever a crash falls.

use crate::daemon::Daemon;
use crate::submissions::{Crowd, Dice, Outcome, Submission, Tally, Token};

/// How often each code is sent at once.
const COPIES: usize = 20;
/// A time for the injected clock, at the beginning of a step of 30 s.
const NOON_UNIX_S: u64 = 1_800_000_000;
const PERIOD_S: u64 = 30;

fn submissions(tokens: &[Token], factor: u64) -> Vec<Submission> {
    tokens.iter().map(|token| token.submission(factor)).collect()
}

/// Sends each submission in copies, those of some submissions at once: less than would make a busy
/// machine turn some away.
async fn in_copies(crowd: &Crowd, submissions: &[Submission]) -> Vec<Tally> {
    let mut tallies = Vec::new();
    for some in submissions.chunks(25) {
        tallies.extend(crowd.tally(some, COPIES).await);
    }
    tallies
}

/// Sends each token's code in copies: one of them is accepted, and the others cost nothing.
async fn each_once(crowd: &Crowd, tokens: &[Token], factor: u64) {
    let once = Tally { yes: 1, no: COPIES - 1, ..Tally::default() };
    let tallies = in_copies(crowd, &submissions(tokens, factor)).await;
    let other = tallies.iter().find(|tally| **tally != once);
    assert_eq!(other, None, "factor {factor}");
    for token in tokens {
        assert_eq!(token.view(crowd.connection(1)).await["failures"], 0, "a double click costs nothing");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_the_copies_of_a_hotp_code_one_is_accepted() {
    let daemon = Daemon::start();
    let crowd = Crowd::of(&daemon, "bank-a").await;

    let few = crowd.enrol("hotp", None, 10).await;
    for counter in 0..10 {
        each_once(&crowd, &few, counter).await;
    }
    let many = crowd.enrol("hotp", None, 100).await;
    each_once(&crowd, &many, 0).await;

    for (tokens, counter) in [(few, 10), (many, 1)] {
        for token in tokens {
            assert_eq!(token.view(crowd.connection(1)).await["counter"], counter);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_the_copies_of_a_totp_code_one_is_accepted() {
    let daemon = Daemon::start_at(NOON_UNIX_S);
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let tokens = crowd.enrol("totp", None, 100).await;
    for step in 0..2 {
        daemon.set_clock(NOON_UNIX_S + step * PERIOD_S);
        each_once(&crowd, &tokens, NOON_UNIX_S / PERIOD_S + step).await;
    }
}

/// Sends each token's code in copies, kills the daemon after so many were accepted, starts it again.
/// What came back before the kill.
async fn send_and_kill(
    daemon: &mut Daemon,
    crowd: Crowd,
    submissions: &[Submission],
    accepted: usize,
) -> Vec<Tally> {
    let mut tallies = vec![Tally::default(); submissions.len()];
    let (mut seen, mut killed) = (0, false);
    let mut outcomes = crowd.send(submissions, COPIES);
    loop {
        if seen == accepted && !killed {
            daemon.kill();
            killed = true;
        }
        let Some((place, outcome)) = outcomes.recv().await else { break };
        seen += usize::from(outcome == Outcome::Yes);
        tallies[place].add(outcome);
    }
    assert!(killed, "{accepted} were to be accepted, and {seen} were");
    daemon.resume();
    tallies
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_daemon_accepts_no_hotp_code_twice() {
    let (mut dice, seed) = Dice::new();
    println!("seed {seed}");
    let mut daemon = Daemon::start();
    let mut crowd = Crowd::of(&daemon, "bank-a").await;
    let tokens = crowd.enrol("hotp", None, 40).await;
    let mut cut_off = 0;
    for counter in 0..5 {
        let submissions = submissions(&tokens, counter);
        let before = send_and_kill(&mut daemon, crowd, &submissions, dice.below(40)).await;

        crowd = Crowd::of(&daemon, "bank-a").await;
        let mut used = Vec::new();
        for token in &tokens {
            let view = token.view(crowd.connection(1)).await;
            assert!(view["counter"] == counter || view["counter"] == counter + 1, "seed {seed}: {view}");
            assert_eq!(view["failures"], 0, "seed {seed}: nothing but the right code was sent");
            used.push(usize::from(view["counter"] == counter + 1));
        }
        let after = in_copies(&crowd, &submissions).await;
        for place in 0..tokens.len() {
            let (before, used, after) = (before[place], used[place], after[place]);
            let told = format!("seed {seed}, code {counter} of {place}: {before:?}, used {used}, {after:?}");
            assert!(before.yes <= used, "a yes was forgotten; {told}");
            assert_eq!(after.yes, 1 - used, "{told}");
            assert_eq!(after.no, COPIES - after.yes, "{told}");
            cut_off += before.lost;
        }
        for token in &tokens {
            let view = token.view(crowd.connection(1)).await;
            assert_eq!(
                (&view["counter"], &view["failures"]),
                (&(counter + 1).into(), &0.into()),
                "seed {seed}"
            );
        }
    }
    assert!(cut_off > 0, "the daemon was never killed in the middle");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_daemon_accepts_no_totp_code_twice() {
    let (mut dice, seed) = Dice::new();
    println!("seed {seed}");
    let mut daemon = Daemon::start_at(NOON_UNIX_S);
    let mut crowd = Crowd::of(&daemon, "bank-a").await;
    let tokens = crowd.enrol("totp", None, 70).await;
    // The steps that were within reach at the kill before are over.
    for step in [0, 3, 6] {
        daemon.set_clock(NOON_UNIX_S + step * PERIOD_S);
        let submissions = submissions(&tokens, NOON_UNIX_S / PERIOD_S + step);
        let before = send_and_kill(&mut daemon, crowd, &submissions, dice.below(70)).await;
        crowd = Crowd::of(&daemon, "bank-a").await;
        let after = in_copies(&crowd, &submissions).await;
        for (place, (before, after)) in before.iter().zip(&after).enumerate() {
            assert!(before.yes <= 1, "seed {seed}, {place}: {before:?}, {after:?}");
            // Whether it was accepted or not: nobody knows what was lost.
            assert_eq!(after.no, COPIES, "seed {seed}, {place}: {before:?}, {after:?}");
        }
        for token in &tokens {
            assert_eq!(token.view(crowd.connection(1)).await["failures"], 0, "seed {seed}");
        }
    }
}
