//! A request has its time, and a caller who has gone has nothing done for him: up to the moment in which the store takes the
//! commit, and not beyond it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use fault_module::{Fault, Function, Kind, Latency};
use rusqlite::Connection as Database;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;
use toml::Table;

use crate::bank::resync;
use crate::client::{Connection, Http, Identity, tls_stream};
use crate::daemon::{Daemon, enrol_hotp, problem, rfc_code, text};
use crate::fault_module::FaultModule;
use crate::processes::eventually;
use crate::scrape::Scrape;
use crate::served::{Served, configuration, section};
use crate::submissions::{Crowd, Outcome, Submission, Token};
use crate::transactions::{Holder, PLAIN, created, order_with, transaction};

/// As long as no test lasts.
const HOUR: Duration = Duration::from_secs(3_600);
/// How much later than its deadline an answer may come, on a machine that has other things to do.
const A_LITTLE: Duration = Duration::from_millis(700);

/// `hsm-authd serve` with the fault module and these limits.
struct World {
    faults: FaultModule,
    served: Served,
    identity: Identity,
    bank: Connection,
    database: PathBuf,
    _daemon: Daemon,
}

impl World {
    async fn start(custodians: &str, limits: &[(&str, i64)]) -> Self {
        let mut daemon = Daemon::start_with(&["--custodians", custodians, "--custody", "wrapped"], &[]);
        daemon.stop();
        let mut faults = None;
        let config = configuration(&daemon, "faulty.toml", |config| {
            let hsm = section(config, "hsm");
            let target = hsm["module"].as_str().unwrap().to_owned();
            let module = FaultModule::new(&daemon.dir(), target.as_ref());
            hsm.insert("module".into(), FaultModule::library().to_str().unwrap().into());
            module.configure(hsm);
            faults = Some(module);
            let limits: Table =
                limits.iter().map(|(name, value)| (name.to_string(), (*value).into())).collect();
            section(config, "server").insert("limits".into(), limits.into());
        });
        let served = Served::start(&config);
        let identity = daemon.identity("bank-a");
        let bank = Connection::open(&served.url, &identity, Http::Two).await.unwrap();
        let database = daemon.database();
        Self { faults: faults.unwrap(), served, identity, bank, database, _daemon: daemon }
    }

    fn scrape(&self) -> Scrape {
        Scrape::at(&self.served.ops_url)
    }

    fn turned_away(&self, reason: &str) -> f64 {
        self.scrape().value("hsm_authd_requests_turned_away_total", &[("reason", reason)])
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Scrape) -> bool) {
        eventually(what, async || is_so(&self.scrape()).then_some(())).await;
    }

    async fn until_inside(&self, count: f64) {
        self.until("requests inside", |scrape| scrape.value("hsm_authd_requests_in_flight", &[]) == count)
            .await;
    }

    /// A request that is sent whole, by a caller who can go.
    async fn caller(&self, submission: &Submission) -> TlsStream<TcpStream> {
        let mut stream = tls_stream(&self.served.url, &self.identity, &["http/1.1"]).await.unwrap();
        let body = submission.body.to_string();
        let key = submission
            .idempotency_key
            .as_deref()
            .map_or(String::new(), |key| format!("Idempotency-Key: {key}\r\n"));
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n{key}Content-Length: {}\r\n\r\n{body}",
            submission.path,
            self.served.url.strip_prefix("https://").unwrap(),
            body.len(),
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        stream
    }

    /// Somebody who reads, and can go.
    async fn reader(&self, path: &str) -> TlsStream<TcpStream> {
        let mut stream = tls_stream(&self.served.url, &self.identity, &["http/1.1"]).await.unwrap();
        let host = self.served.url.strip_prefix("https://").unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        stream
    }

    /// Nobody else writes until it is dropped. For less than 5 s: a commit waits no longer for somebody else.
    fn lock_out_the_writer(&self) -> Database {
        let database = Database::open(&self.database).unwrap();
        database.busy_timeout(Duration::from_secs(5)).unwrap();
        database.execute_batch("BEGIN IMMEDIATE").unwrap();
        database
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_hsm_does_each_request_is_answered_in_its_time_and_who_was_refused_is_not_charged() {
    const TIME: Duration = Duration::from_millis(1_500);
    let world = World::start("2", &[("request_timeout_ms", TIME.as_millis() as i64)]).await;
    let crowd = Crowd::open(&world.served.url, &world.identity).await;
    let tokens = crowd.enrol("hotp", None, 60).await;
    for (counter, kind) in [
        (0, Kind::Hang(HOUR)),
        (1, Kind::Latency(Latency::Uniform(Duration::from_millis(400), Duration::from_millis(900)))),
    ] {
        let set = world.faults.set(Fault::of(Function::C_UnwrapKey, kind));
        let sign = world.faults.set(Fault::of(Function::C_SignInit, kind));
        let mut requests = JoinSet::new();
        for (place, token) in tokens.iter().enumerate() {
            let (bank, submission) = (world.bank.clone(), token.submission(counter));
            requests.spawn(async move {
                let begun = Instant::now();
                (place, submission.send(&bank).await, begun.elapsed())
            });
        }
        let (mut slowest, mut accepted) = (Duration::ZERO, vec![false; tokens.len()]);
        while let Some(ended) = requests.join_next().await {
            let (place, outcome, time) = ended.unwrap();
            slowest = slowest.max(time);
            assert!(matches!(outcome, Outcome::Yes | Outcome::Unavailable), "{kind:?}: {outcome:?}");
            accepted[place] = outcome == Outcome::Yes;
        }
        let yes = accepted.iter().filter(|accepted| **accepted).count();
        println!("{kind:?}: {yes} of {} accepted, the slowest after {slowest:?}", tokens.len());
        assert!(slowest < TIME + A_LITTLE, "{kind:?}: {slowest:?}");
        assert!(yes < tokens.len(), "{kind:?} did nothing");
        set.lift();
        sign.lift();
        world.until("custodians", |scrape| scrape.value("hsm_authd_custodians_up", &[]) == 2.0).await;
        world.until_inside(0.0).await;
        for (token, accepted) in tokens.iter().zip(accepted) {
            // Those that were refused have their code still.
            let again = eventually("an answer", async || {
                let outcome = token.submission(counter).send(&world.bank).await;
                (outcome != Outcome::Unavailable).then_some(outcome)
            })
            .await;
            assert_eq!(again, if accepted { Outcome::No } else { Outcome::Yes }, "{kind:?}");
            let view = token.view(&world.bank).await;
            let failures = if accepted { view["failures"].clone() } else { json!(0) };
            assert_eq!((&view["counter"], &view["failures"]), (&json!(counter + 1), &failures), "{kind:?}");
        }
    }
    assert!(world.scrape().value("hsm_authd_requests_turned_away_total", &[("reason", "too-late")]) > 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn for_callers_who_have_gone_the_hsm_does_nothing_and_nothing_changes() {
    let world = World::start("1", &[]).await;
    let token = Token::enrol(&world.bank, "hotp", None).await;
    assert_eq!(token.submission(0).send(&world.bank).await, Outcome::Yes);
    // What one costs.
    let signs = || world.faults.counts().calls(Function::C_Sign);
    let before = signs();
    assert_eq!(token.submission(1).send(&world.bank).await, Outcome::Yes);
    let one = signs() - before;

    // One is being worked on, and others wait for its account; then they go.
    let set = world.faults.set(Fault::of(Function::C_SignInit, Kind::Hang(HOUR)).once());
    let before = signs();
    let bank = world.bank.clone();
    let first = token.submission(2);
    let first = tokio::spawn(async move { first.send(&bank).await });
    set.fired().await;
    let mut callers = Vec::new();
    for number in 0..40u64 {
        callers.push(world.caller(&token.submission(2 + number % 3)).await);
    }
    world.until_inside(41.0).await;
    drop(callers);
    world.until_inside(1.0).await;
    assert_eq!(world.turned_away("gone"), 40.0);
    set.lift();
    assert_eq!(first.await.unwrap(), Outcome::Yes);
    // The probe asks at most every 5 s, and signs nothing.
    assert_eq!(signs() - before, one, "what one costs, and no more");
    let view = token.view(&world.bank).await;
    assert_eq!((&view["counter"], &view["failures"]), (&json!(3), &json!(0)), "{view}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_hsm_finds_a_token_that_ran_far_ahead() {
    const SLOW: Latency = Latency::Uniform(Duration::from_millis(1), Duration::from_millis(1));
    let world = World::start("1", &[]).await;
    let id = enrol_hotp(&world.bank, "acct-1").await;
    let starts = || world.scrape().sum("hsm_authd_custodian_starts_total");
    let before = starts();
    let slow = [Function::C_SignInit, Function::C_Sign]
        .map(|function| world.faults.set(Fault::of(function, Kind::Latency(SLOW))));
    let begun = Instant::now();
    let found = resync(&world.bank, &id, [rfc_code(300), rfc_code(301)]).await;
    println!("found after {:?}", begun.elapsed());
    assert_eq!(found.status, 200, "{}", text(&found));
    assert_eq!(starts(), before, "it cost a custodian");
    assert!(slow.iter().all(|slow| slow.count() >= 300), "it was not slow");
}

/// Of what is only read, a transaction whose time is over is written down; that is nothing that anybody asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_only_reads_may_go_also_after_something_was_written_for_it() {
    let world = World::start("1", &[]).await;
    let holder = Holder::enrol(&world.bank, PLAIN, "acct-1").await;
    let order = order_with(&holder.credential, json!({ "expires_in": 1 }));
    let over = created(&world.bank, &order).await;
    let path = format!("/v1/transactions/{}", over["id"].as_str().unwrap());
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let seals = |scrape: &Scrape| {
        scrape.value("hsm_authd_hsm_operations_total", &[("operation", "seal"), ("outcome", "answered")])
    };
    let sealed = seals(&world.scrape());
    let locked = world.lock_out_the_writer();
    let caller = world.reader(&path).await;
    world
        .until("a commit that the writer has", |scrape| {
            seals(scrape) == sealed + 1.0 && scrape.value("hsm_authd_store_queue_depth", &[]) == 0.0
        })
        .await;
    drop(caller);
    // He is seen to have gone before there is an outcome.
    world.until("nobody", |scrape| scrape.value("hsm_authd_connections_open", &[]) == 1.0).await;
    drop(locked);
    world.until_inside(0.0).await;
    assert_eq!(seals(&world.scrape()), sealed + 1.0, "a custodian has nothing more to do for him");
    assert_eq!(transaction(&world.bank, over["id"].as_str().unwrap()).await["state"], "expired");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_store_has_taken_is_carried_out_and_what_waits_for_it_is_not() {
    let world = World::start("1", &[("request_timeout_ms", 1_500)]).await;
    let token = async || Token::enrol(&world.bank, "hotp", None).await;
    let (taken, gone, late, patient) = (token().await, token().await, token().await, token().await);
    let keyed = |token: &Token| Submission { idempotency_key: Some("k".into()), ..token.submission(0) };
    let locked = world.lock_out_the_writer();
    // The writer has this one's commit.
    let caller = world.caller(&keyed(&taken)).await;
    let is_taken = |scrape: &Scrape| {
        scrape.value("hsm_authd_requests_in_flight", &[]) == 1.0
            && scrape.value("hsm_authd_store_queue_depth", &[]) == 0.0
            && scrape.value(
                "hsm_authd_hsm_operations_total",
                &[("operation", "check-otp"), ("outcome", "answered")],
            ) == 1.0
    };
    world.until("a commit", is_taken).await;
    // Those wait behind it.
    let queued =
        |depth: f64| move |scrape: &Scrape| scrape.value("hsm_authd_store_queue_depth", &[]) == depth;
    let going = world.caller(&gone.submission(0)).await;
    world.until("one that waits", queued(1.0)).await;
    drop(going);
    drop(caller);
    world.until_inside(1.0).await;
    let answer = world.bank.post(&late.submission(0).path, &late.submission(0).body).await.unwrap();
    assert_eq!((answer.status.as_u16(), problem(&answer).as_str()), (503, "unavailable"));
    assert_eq!(answer.header("retry-after"), Some("1"));
    let again = keyed(&taken);
    let headers = [("content-type", "application/json"), ("idempotency-key", "k")];
    let again = world.bank.request("POST", &again.path, &headers, again.body.to_string()).await;
    assert_eq!(again.unwrap().status, 409, "it is being worked on still");
    world.until("both wait", queued(2.0)).await;
    drop(locked);
    world.until_inside(0.0).await;
    let abandoned =
        |scrape: &Scrape| scrape.value("hsm_authd_commits_total", &[("outcome", "abandoned")]) == 2.0;
    world.until("two commits that nobody waits for", abandoned).await;
    // Of each the log has a line, and what was carried out is counted like any other.
    let route = "/v1/credentials/{id}/verify";
    let verified = [("route", route), ("method", "POST"), ("status", "200")];
    assert_eq!(world.scrape().value("hsm_authd_requests_total", &verified), 1.0);
    assert_eq!((world.turned_away("gone"), world.turned_away("too-late")), (1.0, 1.0));
    let lines: Vec<serde_json::Value> =
        world.served.said().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |message: &str| {
        let message = json!(message);
        lines.iter().filter(move |line| line["message"] == message && line["route"] == json!(route))
    };
    let carried_out: Vec<_> = of("request").filter(|line| line["caller_gone"] == json!(true)).collect();
    assert_eq!(carried_out.len(), 1, "{lines:?}");
    assert_eq!(carried_out[0]["verdict"], "verified");
    assert_eq!(of("request dropped: its caller has gone").count(), 1, "{lines:?}");

    assert_eq!(keyed(&taken).send(&world.bank).await, Outcome::Yes, "as it was committed");
    assert_eq!(taken.submission(0).send(&world.bank).await, Outcome::No, "it is used up");
    for token in [gone, late] {
        let view = token.view(&world.bank).await;
        assert_eq!((&view["counter"], &view["failures"]), (&json!(0), &json!(0)), "{view}");
        assert_eq!(token.submission(0).send(&world.bank).await, Outcome::Yes);
    }

    // Who waits for what the store has is told, also after his time.
    let locked = world.lock_out_the_writer();
    let (bank, submission) = (world.bank.clone(), patient.submission(0));
    let begun = Instant::now();
    let waiting = tokio::spawn(async move { submission.send(&bank).await });
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert!(!waiting.is_finished());
    drop(locked);
    assert_eq!(waiting.await.unwrap(), Outcome::Yes);
    assert!(begun.elapsed() > Duration::from_millis(2_500));
}
