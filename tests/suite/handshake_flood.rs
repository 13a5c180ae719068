//! Handshakes, begun or whole, as many as come: those who are connected are served meanwhile, and who comes is let in.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::client::{Connection, Http, tls_stream};
use crate::overload::start;
use crate::scrape::Scrape;
use crate::submissions::{Outcome, Token};

/// Connections that say nothing, and handshakes that are carried through.
const SILENT: usize = 500;
const WHOLE: usize = 2_000;
/// So many at once.
const SILENT_AT_ONCE: usize = 200;
const WHOLE_AT_ONCE: usize = 50;
const HANDSHAKES_MAX: i64 = 128;
/// How long a request of who is connected may take, at worst, on processors that the flood has as well.
const REQUEST_MAX: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_handshakes_stops_nobody() {
    let (daemon, served) = start(&[("handshakes_max", HANDSHAKES_MAX)]);
    let identity = daemon.identity("bank-a");
    let bank = Connection::open(&served.url, &identity, Http::One).await.unwrap();
    let token = Token::enrol(&bank, "hotp", None).await;
    let mut counter = 0;
    let mut verify = async || {
        let begun = Instant::now();
        assert_eq!(token.submission(counter).send(&bank).await, Outcome::Yes);
        counter += 1;
        begun.elapsed()
    };
    let mut alone = Vec::new();
    for _ in 0..50 {
        alone.push(verify().await);
    }

    let (silent, whole) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut flood = JoinSet::new();
    let authority = served.url.strip_prefix("https://").unwrap().to_owned();
    for _ in 0..SILENT_AT_ONCE {
        let (authority, silent) = (authority.clone(), silent.clone());
        flood.spawn(async move {
            while silent.fetch_add(1, Ordering::Relaxed) < SILENT {
                let stream = TcpStream::connect(&authority).await.unwrap();
                // Until the appliance hangs up.
                let _ = stream.readable().await;
            }
        });
    }
    for _ in 0..WHOLE_AT_ONCE {
        let (url, identity, whole) = (served.url.clone(), daemon.identity("bank-b"), whole.clone());
        flood.spawn(async move {
            while whole.fetch_add(1, Ordering::Relaxed) < WHOLE {
                // One that waited too long is one of the flood.
                let _ = tls_stream(&url, &identity, &["h2"]).await;
            }
        });
    }
    let mut beside = Vec::new();
    let mut in_progress_max = 0f64;
    while !flood.is_empty() {
        beside.push(verify().await);
        let scrape = Scrape::at(&served.ops_url);
        in_progress_max = in_progress_max.max(scrape.value("hsm_authd_handshakes_in_progress", &[]));
        while let Some(ended) = flood.try_join_next() {
            ended.unwrap();
        }
    }
    let scrape = Scrape::at(&served.ops_url);
    let handshakes = scrape.counted("hsm_authd_handshakes_total");
    let full = scrape.value("hsm_authd_handshakes_full_total", &[]);
    alone.sort();
    beside.sort();
    let at = |times: &[Duration], part: usize| times[times.len() * part / 100];
    println!(
        "alone: p50 {:?}, p99 {:?}; beside the flood ({} requests): p50 {:?}, p99 {:?}; at most {in_progress_max} handshakes \
         in progress, {full} times full, ended: {handshakes:?}",
        at(&alone, 50),
        at(&alone, 99),
        beside.len(),
        at(&beside, 50),
        at(&beside, 99),
    );
    assert!(in_progress_max <= HANDSHAKES_MAX as f64 && full > 0.0);
    assert!(beside.len() > 10, "{}", beside.len());
    assert!(beside.iter().all(|time| *time < REQUEST_MAX), "{:?}", beside.last());
    let next = Connection::open(&served.url, &identity, Http::Two).await.unwrap();
    assert_eq!(next.get("/v1/credentials").await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_peers_hold_up_who_comes_for_a_second_at_most() {
    let (daemon, served) = start(&[("handshakes_max", 3), ("handshake_timeout_ms", 60_000)]);
    let authority = served.url.strip_prefix("https://").unwrap().to_owned();
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(&authority).await.unwrap());
    }
    crate::processes::eventually("three handshakes", async || {
        let scrape = Scrape::at(&served.ops_url);
        (scrape.value("hsm_authd_handshakes_in_progress", &[]) == 3.0).then_some(())
    })
    .await;
    let begun = Instant::now();
    let bank = Connection::open(&served.url, &daemon.identity("bank-a"), Http::Two).await.unwrap();
    assert_eq!(bank.get("/v1/credentials").await.unwrap().status, 200);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let scrape = Scrape::at(&served.ops_url);
    assert_eq!(scrape.value("hsm_authd_handshakes_total", &[("outcome", "timed-out")]), 3.0);
}
