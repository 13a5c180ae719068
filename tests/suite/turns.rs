//! The flood of one tenant is a line of its own: another one is served as if it were alone, or nearly.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::client::{Connection, Http};
use crate::daemon::Daemon;
use crate::overload::start;
use crate::scrape::Scrape;
use crate::submissions::{Outcome, Tally, Token};

/// Requests that one tenant has under way all the time: more than are worked on at once, and less than it may have.
const FLOOD: usize = 500;
/// How many the other one sends, one after the other.
const REQUESTS: u64 = 200;
/// How many times as long as a quiet tenant's requests those of the flood take at least. Without turns it is once: each
/// waits behind 500.
const FLOOD_LONGER_MIN: f64 = 4.0;
/// How much longer the quiet tenant's may take than without a flood, on processors that the flood's clients share with the
/// appliance: who is let through is still behind the 16 that are worked on.
const LONGER_MAX: f64 = 40.0;

struct Measured {
    p50: Duration,
    p99: Duration,
}

impl Measured {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let at = |part: usize| times[times.len() * part / 100];
        Self { p50: at(50), p99: at(99) }
    }
}

/// Right codes, one after the other.
async fn one_by_one(connection: &Connection, token: &Token, from: u64) -> Measured {
    let mut times = Vec::new();
    for counter in from..from + REQUESTS {
        let begun = Instant::now();
        let outcome = token.submission(counter).send(connection).await;
        assert_eq!(outcome, Outcome::Yes, "counter {counter}: a request of a tenant that keeps still");
        times.push(begun.elapsed());
    }
    Measured::of(times)
}

/// Right codes of so many tokens, all at once, again and again.
async fn flood(daemon: &Daemon, url: &str, stop: Arc<AtomicBool>) -> JoinSet<(Tally, Vec<Duration>)> {
    let identity = daemon.identity("bank-a");
    let mut connections = Vec::new();
    for _ in 0..10 {
        connections.push(Connection::open(url, &identity, Http::Two).await.unwrap());
    }
    let mut senders = JoinSet::new();
    for number in 0..FLOOD {
        let (connection, stop) = (connections[number % connections.len()].clone(), stop.clone());
        senders.spawn(async move {
            let token = Token::enrol(&connection, "hotp", None).await;
            let (mut tally, mut times) = (Tally::default(), Vec::new());
            for counter in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let begun = Instant::now();
                tally.add(token.submission(counter).send(&connection).await);
                times.push(begun.elapsed());
            }
            (tally, times)
        });
    }
    senders
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_flood_of_one_tenant_does_not_starve_another() {
    let (daemon, served) = start(&[]);
    let quiet = Connection::open(&served.url, &daemon.identity("bank-b"), Http::One).await.unwrap();
    let token = Token::enrol(&quiet, "hotp", None).await;
    let alone = one_by_one(&quiet, &token, 0).await;

    let stop = Arc::new(AtomicBool::new(false));
    let mut senders = flood(&daemon, &served.url, stop.clone()).await;
    // All are enrolled and at it.
    crate::processes::eventually("a line", async || {
        let waiting = Scrape::at(&served.ops_url).value("hsm_authd_requests_waiting", &[]);
        (waiting > FLOOD as f64 / 2.0).then_some(())
    })
    .await;
    let flooded = one_by_one(&quiet, &token, REQUESTS).await;
    stop.store(true, Ordering::Relaxed);
    let (mut flood, mut times) = (Tally::default(), Vec::new());
    while let Some(sent) = senders.join_next().await {
        let (tally, more) = sent.unwrap();
        flood = flood.plus(tally);
        times.extend(more);
    }
    let theirs = Measured::of(times);
    let flood_longer = theirs.p50.as_secs_f64() / flooded.p50.as_secs_f64();
    let longer = flooded.p99.as_secs_f64() / alone.p99.as_secs_f64();
    println!(
        "alone: p50 {:?}, p99 {:?}; beside {FLOOD} at once: p50 {:?}, p99 {:?}: {longer:.1} times; the flood: \
         p50 {:?}, p99 {:?}, {flood_longer:.1} times as long, {flood:?}",
        alone.p50, alone.p99, flooded.p50, flooded.p99, theirs.p50, theirs.p99
    );
    assert_eq!((flood.no, flood.locked, flood.lost, flood.unavailable), (0, 0, 0, 0), "{flood:?}");
    assert!(flood_longer > FLOOD_LONGER_MIN, "{flood_longer:.1} times as long");
    assert!(longer < LONGER_MAX, "{longer:.1} times as long");
}

/// Senders of one tenant that all want one account, and tokens of another tenant, each an account of its own.
const HOT: usize = 100;
const TOKENS: usize = 16;
/// How many right codes each of these sends.
const CODES: u64 = 25;
/// How many times as much is done for who shares nothing with itself. By places given out in turn it is as much.
const MORE_MIN: f64 = 2.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wait_for_one_account_hold_no_more_than_their_share() {
    let (daemon, served) = start(&[]);
    let hot = Connection::open(&served.url, &daemon.identity("bank-a"), Http::Two).await.unwrap();
    let other = Connection::open(&served.url, &daemon.identity("bank-b"), Http::Two).await.unwrap();
    let account = Arc::new(Token::enrol(&hot, "hotp", None).await);
    assert_eq!(account.submission(0).send(&hot).await, Outcome::Yes);
    let mut tokens = Vec::new();
    for _ in 0..TOKENS {
        tokens.push(Token::enrol(&other, "hotp", None).await);
    }
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut flood = JoinSet::new();
    for _ in 0..HOT {
        let (hot, account, stop, done) = (hot.clone(), account.clone(), stop.clone(), done.clone());
        flood.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                // The code that was accepted last, which costs its owner nothing.
                assert_eq!(account.submission(0).send(&hot).await, Outcome::No);
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    crate::processes::eventually("a line", async || {
        let waiting = Scrape::at(&served.ops_url).value("hsm_authd_requests_waiting", &[]);
        (waiting > HOT as f64 / 2.0).then_some(())
    })
    .await;
    let before = done.load(Ordering::Relaxed);
    let mut quick = JoinSet::new();
    for token in tokens {
        let other = other.clone();
        quick.spawn(async move {
            for counter in 0..CODES {
                assert_eq!(token.submission(counter).send(&other).await, Outcome::Yes);
            }
        });
    }
    while let Some(ended) = quick.join_next().await {
        ended.unwrap();
    }
    let meanwhile = done.load(Ordering::Relaxed) - before;
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = flood.join_next().await {
        ended.unwrap();
    }
    let more = (TOKENS as u64 * CODES) as f64 / meanwhile as f64;
    println!(
        "{} answers for {TOKENS} accounts, {meanwhile} for one: {more:.1} times as many",
        TOKENS as u64 * CODES
    );
    assert!(more > MORE_MIN, "{more:.1} times as many");
}
