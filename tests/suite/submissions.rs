//! Codes sent from many connections at once, and what came back for each.

use std::sync::atomic::{AtomicU64, Ordering};

use data_encoding::HEXLOWER;
use hyper::header::CONTENT_TYPE;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinSet;

use crate::client::{Connection, Failure, Http, Identity, Response};
use crate::daemon::{Daemon, code, enrol, problem, text};

/// How many connections of each kind a crowd has, and how many of five requests take HTTP/2.
const ONES: usize = 8;
/// With 256 streams each they stay below the 1024 requests that a daemon takes of one tenant at once.
const TWOS: usize = 3;
const OVER_HTTP_2: usize = 4;

/// What an answer, or none, means to the bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Accepted.
    Yes,
    /// A verdict: 403 `verification-failed`.
    No,
    /// 423, with the time to wait.
    Locked,
    /// 503, with the time to wait.
    Unavailable,
    /// The connection broke before an answer.
    Lost,
}

impl Outcome {
    /// Reads an answer. Every other answer fails the test.
    pub fn of(answer: Result<Response, Failure>) -> Self {
        let answer = match answer {
            Ok(answer) => answer,
            Err(Failure::Request(_)) => return Self::Lost,
            Err(other) => panic!("{other}"),
        };
        if answer.status == 200 {
            assert_eq!(answer.json().unwrap()["verified"], true, "{}", text(&answer));
            return Self::Yes;
        }
        let waits = || answer.header("retry-after").is_some_and(|seconds| seconds.parse::<u64>().is_ok());
        match (answer.status.as_u16(), problem(&answer).as_str()) {
            (403, "verification-failed") => Self::No,
            (423, "locked") if waits() => Self::Locked,
            (503, "unavailable") if waits() => Self::Unavailable,
            _ => panic!("{}: {}", answer.status, text(&answer)),
        }
    }
}

/// How many came back of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub yes: usize,
    pub no: usize,
    pub locked: usize,
    pub unavailable: usize,
    pub lost: usize,
}

impl Tally {
    pub fn add(&mut self, outcome: Outcome) {
        *match outcome {
            Outcome::Yes => &mut self.yes,
            Outcome::No => &mut self.no,
            Outcome::Locked => &mut self.locked,
            Outcome::Unavailable => &mut self.unavailable,
            Outcome::Lost => &mut self.lost,
        } += 1;
    }

    pub fn plus(self, other: Self) -> Self {
        Self {
            yes: self.yes + other.yes,
            no: self.no + other.no,
            locked: self.locked + other.locked,
            unavailable: self.unavailable + other.unavailable,
            lost: self.lost + other.lost,
        }
    }

    pub fn total(&self) -> usize {
        self.yes + self.no + self.locked + self.unavailable + self.lost
    }
}

/// One request to come back with an [`Outcome`].
#[derive(Clone, Debug)]
pub struct Submission {
    pub path: String,
    pub body: Value,
    pub idempotency_key: Option<String>,
}

impl Submission {
    pub fn new(id: &str, otp: &str) -> Self {
        let path = format!("/v1/credentials/{id}/verify");
        Self { path, body: json!({ "otp": otp }), idempotency_key: None }
    }

    pub async fn send(&self, connection: &Connection) -> Outcome {
        let mut headers = vec![(CONTENT_TYPE.as_str(), "application/json")];
        headers.extend(self.idempotency_key.as_deref().map(|key| ("idempotency-key", key)));
        Outcome::of(connection.request("POST", &self.path, &headers, self.body.to_string()).await)
    }
}

/// Several connections of one client, HTTP/1.1 and HTTP/2.
#[derive(Clone)]
pub struct Crowd {
    ones: Vec<Connection>,
    twos: Vec<Connection>,
}

impl Crowd {
    pub async fn of(daemon: &Daemon, client: &str) -> Self {
        Self::open(&daemon.url(), &daemon.identity(client)).await
    }

    pub async fn open(url: &str, identity: &Identity) -> Self {
        let mut crowd = Self { ones: Vec::new(), twos: Vec::new() };
        for (http, count, connections) in
            [(Http::One, ONES, &mut crowd.ones), (Http::Two, TWOS, &mut crowd.twos)]
        {
            for _ in 0..count {
                connections.push(Connection::open(url, identity, http).await.unwrap());
            }
        }
        crowd
    }

    /// The connection for the request of this number.
    pub fn connection(&self, number: usize) -> &Connection {
        if number.is_multiple_of(OVER_HTTP_2 + 1) {
            &self.ones[number / (OVER_HTTP_2 + 1) % ONES]
        } else {
            &self.twos[number % TWOS]
        }
    }

    /// Sends each submission so many times, all at once; what comes back, with the submission's place,
    /// as it comes. The receiver ends after the last.
    pub fn send(&self, submissions: &[Submission], times: usize) -> UnboundedReceiver<(usize, Outcome)> {
        let (sender, receiver) = unbounded_channel();
        for time in 0..times {
            for (place, submission) in submissions.iter().enumerate() {
                let connection = self.connection(time * submissions.len() + place + time).clone();
                let (sender, submission) = (sender.clone(), submission.clone());
                tokio::spawn(async move {
                    // A test that has seen enough does not listen any more.
                    let _ = sender.send((place, submission.send(&connection).await));
                });
            }
        }
        receiver
    }

    /// The same, with all that came back for each submission.
    pub async fn tally(&self, submissions: &[Submission], times: usize) -> Vec<Tally> {
        let mut tallies = vec![Tally::default(); submissions.len()];
        let mut outcomes = self.send(submissions, times);
        while let Some((place, outcome)) = outcomes.recv().await {
            tallies[place].add(outcome);
        }
        for tally in &tallies {
            assert_eq!(tally.total(), times, "a submission ended without an outcome");
        }
        tallies
    }

    /// Enrols so many credentials at once, each with a seed of its own and, unless one is named, an
    /// account of its own.
    pub async fn enrol(&self, kind: &'static str, account: Option<&str>, count: usize) -> Vec<Token> {
        let mut enrolments = JoinSet::new();
        for number in 0..count {
            let connection = self.connection(number).clone();
            let account = account.map(str::to_owned);
            enrolments.spawn(async move { Token::enrol(&connection, kind, account).await });
        }
        enrolments.join_all().await
    }
}

/// What a user has in the hand: a credential's seed.
pub struct Token {
    pub id: String,
    seed: Vec<u8>,
}

impl Token {
    pub async fn enrol(connection: &Connection, kind: &str, account: Option<String>) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let seed = format!("a seed for tests {number:08}").into_bytes();
        let account = account.unwrap_or_else(|| format!("acct-{number}"));
        let body = json!({ "type": kind, "account": account, "seed_hex": HEXLOWER.encode(&seed) });
        Self { id: enrol(connection, &body).await, seed }
    }

    /// The code for a counter or a time step.
    pub fn code(&self, factor: u64) -> String {
        code(&self.seed, factor, 6)
    }

    /// That code on its way.
    pub fn submission(&self, factor: u64) -> Submission {
        Submission::new(&self.id, &self.code(factor))
    }

    /// So many codes that are none of the first hundred.
    pub fn wrong_codes(&self, count: usize) -> Vec<String> {
        let right: Vec<String> = (0..100).map(|counter| self.code(counter)).collect();
        (0..1_000_000).map(|n| format!("{n:06}")).filter(|code| !right.contains(code)).take(count).collect()
    }

    /// The credential as its bank sees it.
    pub async fn view(&self, connection: &Connection) -> Value {
        let answer = connection.get(&format!("/v1/credentials/{}", self.id)).await.unwrap();
        assert_eq!(answer.status, 200, "{}", text(&answer));
        answer.json().unwrap()
    }
}

/// Numbers that look random, the same for the same seed.
pub struct Dice(u64);

impl Dice {
    /// From `HSM_AUTHD_TEST_SEED` if it is set, so that a failure can be had again; the seed is told in
    /// the test's output.
    pub fn new() -> (Self, u64) {
        let seed = match std::env::var("HSM_AUTHD_TEST_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => getrandom::u64().unwrap(),
        };
        (Self(seed), seed)
    }

    /// A number below `end`: splitmix64.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }
}
