//! More than the bounds allow: a 503 with a time to wait, or a wait, and the appliance stays well.

use std::time::Duration;

use tokio::time::timeout;
use toml::Table;

use crate::client::{Connection, Http};
use crate::daemon::{Daemon, enrol_hotp, problem, rfc_code, verify};
use crate::served::{Served, configuration, ops_get, section};
use crate::slow_request::SlowRequest;
use crate::submissions::{Crowd, Submission, Tally};

/// A folder to serve from, and what is served with these limits.
pub fn start(limits: &[(&str, i64)]) -> (Daemon, Served) {
    let mut daemon = Daemon::start_with(&["--custodians", "1"], &[]);
    daemon.stop();
    let limits: Table = limits.iter().map(|(name, value)| (name.to_string(), (*value).into())).collect();
    let config = configuration(&daemon, "limited.toml", |config| {
        section(config, "server").insert("limits".into(), limits.into());
    });
    (daemon, Served::start(&config))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_room_for_requests_callers_are_told_to_come_back() {
    // A tenant may have as many as are still free: of five three, and another one more.
    let (daemon, served) = start(&[("requests_max", 5)]);
    let identity = daemon.identity("bank-a");
    let bank = Connection::open(&served.url, &identity, Http::Two).await.unwrap();
    let mut slow = Vec::new();
    for number in 0..3 {
        let id = enrol_hotp(&bank, &format!("acct-{number}")).await;
        slow.push(SlowRequest::verify(&served.url, &identity, &id, &rfc_code(0)).await);
    }
    let answer = verify(&bank, "cred_none", "123456").await;
    assert_eq!((answer.status.as_u16(), problem(&answer).as_str()), (503, "unavailable"));
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(bank.get("/v1/credentials").await.unwrap().status, 503, "whatever the route");
    let other = daemon.identity("bank-b");
    let other_bank = Connection::open(&served.url, &other, Http::Two).await.unwrap();
    let id = enrol_hotp(&other_bank, "acct-1").await;
    let others = SlowRequest::verify(&served.url, &other, &id, &rfc_code(0)).await;
    assert_eq!(other_bank.get("/v1/credentials").await.unwrap().status, 503, "one is left, and it has one");
    let auditor = Connection::open(&served.url, &daemon.identity("auditor"), Http::Two).await.unwrap();
    assert_eq!(auditor.get("/v1/audit").await.unwrap().status, 200, "the last one is for the next");
    assert_eq!(ops_get(&served.ops_url, "/readyz").0, 200, "the operator has an entrance of his own");

    for slow in slow {
        assert_eq!(slow.finish().await.0, 200, "those that were let in are answered");
    }
    assert_eq!(others.finish().await.0, 200);
    assert_eq!(bank.get("/v1/credentials").await.unwrap().status, 200);

    // A crowd: some are served, the others are told, nobody is left without an answer.
    let id = enrol_hotp(&bank, "acct-of-the-crowd").await;
    let crowd = Crowd::open(&served.url, &identity).await;
    let tally = crowd.tally(&[Submission::new(&id, &rfc_code(0))], 500).await[0];
    assert_eq!((tally.locked, tally.lost), (0, 0), "{tally:?}");
    assert!(tally.yes <= 1 && tally.unavailable > 0, "{tally:?}");
    let mut left = crowd.tally(&[Submission::new(&id, &rfc_code(0))], 1).await[0];
    left.yes += tally.yes;
    assert_eq!(left.yes, 1, "{tally:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_room_for_connections_callers_wait() {
    let (daemon, served) = start(&[("connections_max", 2)]);
    let identity = daemon.identity("bank-a");
    let open = || Connection::open(&served.url, &identity, Http::One);
    let (first, second) = (open().await.unwrap(), open().await.unwrap());
    assert_eq!(first.get("/v1/credentials").await.unwrap().status, 200);
    let mut third = Box::pin(open());
    let too_early = timeout(Duration::from_millis(300), &mut third).await;
    assert!(too_early.is_err(), "a third was let in");
    drop(first);
    let third = third.await.unwrap();
    assert_eq!(third.get("/v1/credentials").await.unwrap().status, 200);
    assert_eq!(second.get("/v1/credentials").await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_does_not_arrive_gives_its_room_back() {
    let (daemon, served) = start(&[("requests_max", 1), ("body_timeout_ms", 300)]);
    let identity = daemon.identity("bank-a");
    let bank = Connection::open(&served.url, &identity, Http::Two).await.unwrap();
    let id = enrol_hotp(&bank, "acct-1").await;
    let slow = SlowRequest::verify(&served.url, &identity, &id, &rfc_code(0)).await;
    let (status, body) = slow.wait().await;
    assert_eq!(status, 400, "{body}");
    let tally =
        Crowd::open(&served.url, &identity).await.tally(&[Submission::new(&id, &rfc_code(0))], 1).await[0];
    assert_eq!(tally, Tally { yes: 1, ..Tally::default() });
}
