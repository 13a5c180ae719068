//! More than the bounds allow: a 503 with a time to wait, or a wait, and the appliance stays well.

use std::time::{Duration, SystemTime};

use hsm_authd::dev::pki::{AlternativeName, Authority, Identity as Issued, Purpose, Validity, client_uri};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use toml::Table;

use crate::client::{Connection, Http, Identity, tls_stream};
use crate::daemon::{Daemon, enrol_hotp, problem, rfc_code, verify};
use crate::processes::{PATIENCE, eventually};
use crate::scrape::Scrape;
use crate::scratch::Scratch;
use crate::served::{Served, configuration, ops_get, section};
use crate::slow_request::SlowRequest;
use crate::submissions::{Crowd, Submission, Tally};

/// What an HTTP/2 client begins with (RFC 9113, section 3.4), with empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const HOUR: Duration = Duration::from_secs(3_600);
const REFUSED: &str = "hsm_authd_connections_refused_total";

fn open(served: &Served) -> f64 {
    Scrape::at(&served.ops_url).value("hsm_authd_connections_open", &[])
}

/// A certificate that is believed, and is no client's.
fn stranger(daemon: &Daemon, scratch: &Scratch) -> Identity {
    let read = |name: &str| std::fs::read_to_string(daemon.dir().join("pki").join(name)).unwrap();
    let own = Authority::from_identity(Issued::from_pem(&read("ca.pem"), &read("ca.key")).unwrap()).unwrap();
    let now = SystemTime::now();
    let validity = Validity { not_before: now - HOUR, not_after: now + HOUR };
    let name = AlternativeName::Uri(client_uri("bank-c"));
    let issued = own.issue(Purpose::Client, "bank-a", &[name], validity).unwrap();
    let certificate = scratch.write("stranger.pem", &issued.certificate_pem().unwrap());
    let key = scratch.write("stranger.key", &issued.key_pem().unwrap());
    Identity::new(daemon.info["ca"].as_str().unwrap(), certificate, key)
}

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
    let (daemon, served) = start(&[("connections_max", 2), ("connections_per_tenant_max", 2)]);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_tenant_and_nobody_has_every_connection() {
    let (daemon, served) = start(&[("connections_max", 40)]);
    let identity = daemon.identity("bank-a");
    let mut held = Vec::new();
    // Half of them are one tenant's, and idle: the others of its clients are closed, and are told so by TLS.
    for _ in 0..20 {
        held.push(tls_stream(&served.url, &identity, &["h2"]).await.unwrap());
        held.last_mut().unwrap().write_all(PREFACE).await.unwrap();
    }
    let refused = |whose| Scrape::at(&served.ops_url).value(REFUSED, &[("whose", whose)]);
    eventually("they are open", async || (open(&served) == 20.0).then_some(())).await;
    for _ in 0..3 {
        let mut further = tls_stream(&served.url, &identity, &["h2"]).await.unwrap();
        assert_eq!(
            timeout(PATIENCE, further.read(&mut [0])).await.unwrap().unwrap(),
            0,
            "not closed in order"
        );
    }
    assert_eq!((refused("tenant"), refused("nobody")), (3.0, 0.0));
    // A certificate that is believed and is no client's.
    let scratch = Scratch::new();
    let stranger = stranger(&daemon, &scratch);
    for _ in 0..16 {
        held.push(tls_stream(&served.url, &stranger, &["h2"]).await.unwrap());
        held.last_mut().unwrap().write_all(PREFACE).await.unwrap();
    }
    eventually("they are open", async || (open(&served) == 36.0).then_some(())).await;
    let mut further = tls_stream(&served.url, &stranger, &["h2"]).await.unwrap();
    assert_eq!(timeout(PATIENCE, further.read(&mut [0])).await.unwrap().unwrap(), 0);
    assert_eq!((refused("tenant"), refused("nobody")), (3.0, 1.0));
    // There is room for another tenant, and again for this one when it gives some back.
    let other = Connection::open(&served.url, &daemon.identity("bank-b"), Http::Two).await.unwrap();
    assert_eq!(other.get("/v1/credentials").await.unwrap().status, 200);
    drop(held);
    eventually("they are closed", async || (open(&served) == 1.0).then_some(())).await;
    let bank = Connection::open(&served.url, &identity, Http::Two).await.unwrap();
    assert_eq!(bank.get("/v1/credentials").await.unwrap().status, 200);
    let told = served.said().iter().filter(|line| line.contains("as many of theirs as may be")).count();
    assert_eq!(told, 4, "one line each");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_not_used_ends_in_order() {
    let (daemon, served) = start(&[("idle_timeout_ms", 700), ("body_timeout_ms", 10_000)]);
    let identity = daemon.identity("bank-a");
    let bank = Connection::open(&served.url, &identity, Http::Two).await.unwrap();
    let id = enrol_hotp(&bank, "acct-1").await;
    // One that is answered for longer than that is used.
    let slow = SlowRequest::verify(&served.url, &identity, &id, &rfc_code(0)).await;
    eventually("the idle one is closed", async || (open(&served) == 1.0).then_some(())).await;
    assert!(bank.get("/v1/credentials").await.is_err());
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    assert_eq!(slow.finish().await.0, 200);
    eventually("no connection", async || (open(&served) == 0.0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_ends_is_not_ready_and_answers_what_is_there() {
    let (daemon, served) = start(&[]);
    let identity = daemon.identity("bank-a");
    let bank = Connection::open(&served.url, &identity, Http::Two).await.unwrap();
    let id = enrol_hotp(&bank, "acct-1").await;
    let slow = SlowRequest::verify(&served.url, &identity, &id, &rfc_code(0)).await;
    assert_eq!(ops_get(&served.ops_url, "/readyz").0, 200);
    kill(Pid::from_raw(served.pid()), Signal::SIGTERM).unwrap();
    let said = eventually("it is not ready", async || {
        let (status, body) = ops_get(&served.ops_url, "/readyz");
        (status != 200).then_some((status, body))
    })
    .await;
    assert_eq!(said, (503, "the service ends: what is there is answered, and no more is taken\n".to_owned()));
    assert_eq!(slow.finish().await.0, 200);
}
