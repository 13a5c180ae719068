//! A service whose HSM fails: what its callers notice, and how it comes back, without a restart.

use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fault_module::sys::{CKR_DEVICE_ERROR, CKR_GENERAL_ERROR};
use fault_module::{Fault, Function, Kind, Latency, Length, Vanishing};
use hsm_authd::hsm::messages::{Request, Response};
use toml::Table;

use crate::client::{Connection, Http};
use crate::daemon::Daemon;
use crate::fault_module::FaultModule;
use crate::load::Load;
use crate::modules::{Feature, passed_over};
use crate::processes::{await_gone, children, eventually};
use crate::scrape::Scrape;
use crate::served::{Served, configuration, ops_get, section};
use crate::submissions::{Crowd, Outcome, Token};
use crate::token::TestToken;

/// How long a request may take while custodians are being replaced.
const CALL_MAX: Duration = Duration::from_secs(5);
/// As long as no test lasts.
const HOUR: Duration = Duration::from_secs(3_600);

/// `hsm-authd serve` with two custodians that have loaded the fault module before SoftHSM.
pub struct World {
    pub daemon: Daemon,
    pub faults: FaultModule,
    pub served: Served,
    pub crowd: Crowd,
    /// What it is served with.
    pub config: PathBuf,
}

impl World {
    async fn start() -> Self {
        Self::start_with(&["--custodians", "2", "--custody", "wrapped"]).await
    }

    async fn start_with(arguments: &[&str]) -> Self {
        Self::start_as(arguments, |_| {}).await
    }

    /// With arguments to `dev`, and other changes of the configuration.
    pub async fn start_as(arguments: &[&str], change: impl FnOnce(&mut Table)) -> Self {
        let mut daemon = Daemon::start_with(arguments, &[]);
        daemon.stop();
        let mut faults = None;
        let config = configuration(&daemon, "faulty.toml", |config| {
            let hsm = section(config, "hsm");
            let target = hsm["module"].as_str().unwrap().to_owned();
            let module = FaultModule::new(&daemon.dir(), target.as_ref());
            hsm.insert("module".into(), FaultModule::library().to_str().unwrap().into());
            module.configure(hsm);
            faults = Some(module);
            change(config);
        });
        let served = Served::start(&config);
        let crowd = Crowd::open(&served.url, &daemon.identity("bank-a")).await;
        let world = Self { daemon, faults: faults.unwrap(), served, crowd, config };
        world.await_custodians().await;
        world
    }

    /// Those that are there.
    pub fn custodians(&self) -> Vec<u32> {
        children(self.served.pid(), "custodian").into_iter().map(i32::cast_unsigned).collect()
    }

    /// Waits until two are up, logged in and all.
    pub async fn await_custodians(&self) {
        eventually("two custodians", async || (self.custodians_up() == 2.0).then_some(())).await;
    }

    /// A connection as a client.
    pub async fn connect(&self, client: &str) -> Connection {
        Connection::open(&self.served.url, &self.daemon.identity(client), Http::Two).await.unwrap()
    }

    /// How many are up.
    pub fn custodians_up(&self) -> f64 {
        Scrape::at(&self.served.ops_url).sum("hsm_authd_custodians_up")
    }

    pub fn ready(&self) -> u16 {
        ops_get(&self.served.ops_url, "/readyz").0
    }

    async fn token(&self) -> Token {
        Token::enrol(self.crowd.connection(1), "hotp", None).await
    }

    async fn verify(&self, token: &Token, counter: u64) -> Outcome {
        token.submission(counter).send(self.crowd.connection(1)).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_fault_a_service_notices_nothing() {
    let world = World::start().await;
    let token = world.token().await;
    assert_eq!([world.verify(&token, 0).await, world.verify(&token, 0).await], [Outcome::Yes, Outcome::No]);
    let pids = world.custodians();
    let counts = world.faults.counts();
    assert_eq!((pids.len(), counts.0.len()), (2, 2), "{counts:?}");
    for pid in pids {
        let one = counts.of(pid).unwrap();
        assert_eq!((one.sessions_opened, one.sessions_closed, one.fired), (1, 0, 0));
    }
    let World { served, faults, .. } = world;
    assert_eq!(served.stop().code(), Some(0));
    assert_eq!(faults.counts().sessions_open(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_wrong_once_costs_a_custodian_at_most_and_nobody_an_error() {
    let world = World::start().await;
    let token = world.token().await;
    let (mut logins, mut rounds) = (2, 0);
    // How many custodians stay, how many logins it takes, and what is counted.
    for (counter, (kind, stay, more_logins, remedy)) in [
        (Kind::Fail(CKR_GENERAL_ERROR), 2, 0, "repeat"),
        (Kind::FailDone(CKR_DEVICE_ERROR), 2, 0, "new-session"),
        (Kind::ForgetLogin, 1, 1, "log-in"),
        (Kind::CloseSessions, 1, 1, "log-in"),
        (Kind::Vanish(Vanishing::NotPresent), 1, 1, "new-process"),
        (Kind::Vanish(Vanishing::Removed), 1, 1, "new-process"),
        (Kind::Vanish(Vanishing::Quietly), 1, 1, "new-process"),
        // It told of nothing.
        (Kind::Segfault, 1, 1, ""),
        (Kind::Exit(0), 1, 1, ""),
    ]
    .into_iter()
    .enumerate()
    {
        if kind == Kind::ForgetLogin && passed_over(Feature::Logout) {
            // The counter is used all the same.
            assert_eq!(world.verify(&token, counter as u64).await, Outcome::Yes);
            continue;
        }
        rounds += 1;
        let before = world.custodians();
        let failures = || -> BTreeMap<String, f64> {
            let scrape = Scrape::at(&world.served.ops_url);
            let counted = scrape.counted("hsm_authd_hsm_failures_total");
            counted.into_iter().map(|(remedy, count)| (remedy.to_owned(), count)).collect()
        };
        let mut expected = failures();
        if !remedy.is_empty() {
            *expected.entry(remedy.to_owned()).or_default() += 1.0;
        }
        let set = world.faults.set(Fault::of(Function::C_SignInit, kind).once());
        let begun = Instant::now();
        assert_eq!(world.verify(&token, counter as u64).await, Outcome::Yes, "{kind:?}");
        assert!(begun.elapsed() < CALL_MAX, "{kind:?}: {:?}", begun.elapsed());
        set.fired().await;
        logins += more_logins;
        world.faults.until("its logins", move |counts| counts.calls(Function::C_Login) == logins).await;
        world.await_custodians().await;
        let after = world.custodians();
        assert_eq!(before.iter().filter(|pid| after.contains(pid)).count(), stay, "{kind:?}");
        assert_eq!(world.faults.counts().sessions_open(), 2, "{kind:?}");
        assert_eq!(failures(), expected, "{kind:?}");
        assert_eq!(world.verify(&token, counter as u64).await, Outcome::No, "{kind:?}");
    }
    assert_eq!(world.faults.counts().fired(), rounds);
    let view = token.view(world.crowd.connection(1)).await;
    assert_eq!((&view["counter"], &view["state"]), (&9.into(), &"active".into()), "{view}");
}

/// As when the connection to the HSM breaks, which all have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_all_lose_costs_each_its_process_and_nobody_an_answer() {
    let world = World::start().await;
    let token = world.token().await;
    let lose = |pids: &[u32], kind| {
        let lose =
            |pid: &u32| world.faults.set(Fault::of(Function::C_SignInit, kind).once().in_process(*pid));
        pids.iter().map(lose).collect::<Vec<_>>()
    };
    let mut logins = 2;
    let mut kinds = vec![Kind::CloseSessions];
    if !passed_over(Feature::Logout) {
        kinds.push(Kind::ForgetLogin);
    }
    // One request, which meets all of them.
    for (counter, kind) in kinds.iter().copied().enumerate() {
        let before = world.custodians();
        let set = lose(&before, kind);
        assert_eq!(world.verify(&token, counter as u64).await, Outcome::Yes, "{kind:?}");
        assert_eq!(set.iter().map(|set| set.count()).collect::<Vec<_>>(), [1, 1], "{kind:?}");
        logins += 2;
        world.faults.until("its logins", move |counts| counts.calls(Function::C_Login) == logins).await;
        world.await_custodians().await;
        assert!(before.iter().all(|pid| !world.custodians().contains(pid)), "{kind:?}");
        assert_eq!(world.verify(&token, counter as u64).await, Outcome::No, "{kind:?}");
    }
    // And many.
    let mut load = Load::begin(&world.crowd).await;
    for kind in kinds {
        let before = world.custodians();
        for set in lose(&before, kind) {
            set.fired().await;
        }
        logins += 2;
        world.faults.until("its logins", move |counts| counts.calls(Function::C_Login) == logins).await;
        load.progress().await;
        world.await_custodians().await;
        assert!(before.iter().all(|pid| !world.custodians().contains(pid)), "{kind:?}");
    }
    let report = load.end().await;
    assert_eq!(report.tally.unavailable, 0, "{report:?}");
    assert!(report.slowest < CALL_MAX, "{report:?}");
    assert_eq!(world.faults.counts().sessions_open(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_hangs_costs_its_custodian_and_two_seconds() {
    let world = World::start().await;
    let token = world.token().await;
    // Not met by the probe, which unwraps nothing.
    let set = world.faults.set(Fault::of(Function::C_UnwrapKey, Kind::Hang(HOUR)).once());
    let begun = Instant::now();
    assert_eq!(world.verify(&token, 0).await, Outcome::Yes);
    assert!((Duration::from_secs(2)..CALL_MAX).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(set.count(), 1);
    let counts = world.faults.counts();
    let hung = counts.0.iter().find(|one| one.fired == 1).unwrap();
    await_gone(hung.pid.cast_signed()).await;
    world.await_custodians().await;
    assert_eq!(world.verify(&token, 0).await, Outcome::No);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_token_is_away_callers_are_told_to_come_back_and_then_all_is_well() {
    let world = World::start().await;
    let token = world.token().await;
    for (counter, kind) in [
        Kind::Vanish(Vanishing::Removed),
        Kind::Vanish(Vanishing::Quietly),
        Kind::Fail(CKR_DEVICE_ERROR),
        Kind::Hang(HOUR),
    ]
    .into_iter()
    .enumerate()
    {
        let set = world.faults.set(Fault::everywhere(kind));
        let begun = Instant::now();
        assert_eq!(world.verify(&token, counter as u64).await, Outcome::Unavailable, "{kind:?}");
        assert!(begun.elapsed() < CALL_MAX + Duration::from_secs(2), "{kind:?}: {:?}", begun.elapsed());
        eventually("it is not ready", async || (world.ready() == 503).then_some(())).await;
        assert_eq!(ops_get(&world.served.ops_url, "/livez").0, 200);

        set.lift();
        eventually("it is ready", async || (world.ready() == 200).then_some(())).await;
        assert_eq!(world.verify(&token, counter as u64).await, Outcome::Yes, "{kind:?}: nothing was used up");
        assert_eq!(world.verify(&token, counter as u64).await, Outcome::No, "{kind:?}");
        world.await_custodians().await;
        assert_eq!(world.faults.counts().sessions_open(), 2, "{kind:?}");
    }
    let view = token.view(world.crowd.connection(1)).await;
    assert_eq!((&view["counter"], &view["state"]), (&4.into(), &"active".into()), "{view}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_hsm_that_loses_calls_now_and_then_gives_every_right_answer() {
    let world = World::start().await;
    let slow = Kind::Latency(Latency::Exponential(Duration::from_millis(1)));
    let slow = world.faults.set(Fault::everywhere(slow));
    let mut load = Load::begin(&world.crowd).await;
    for kind in [Kind::Fail(CKR_GENERAL_ERROR), Kind::Short(Length::To(0)), Kind::CloseSessions] {
        let set = world.faults.set(Fault::of(Function::C_Sign, kind).from_call(20).once());
        set.fired().await;
        load.progress().await;
        world.await_custodians().await;
    }
    let report = load.end().await;
    assert_eq!(report.tally.unavailable, 0, "{report:?}");
    assert!(report.slowest < CALL_MAX && slow.count() > 100, "{report:?}");
    assert_eq!(world.faults.counts().sessions_open(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_was_made_by_a_call_that_failed_is_there_once() {
    let world = World::start_with(&["--custodians", "2", "--custody", "resident"]).await;
    for kind in [Kind::Fail(CKR_DEVICE_ERROR), Kind::FailDone(CKR_DEVICE_ERROR), Kind::Segfault] {
        let set = world.faults.set(Fault::of(Function::C_CreateObject, kind).once());
        let token = world.token().await;
        assert_eq!(set.count(), 1, "{kind:?}");
        assert_eq!(world.verify(&token, 0).await, Outcome::Yes, "{kind:?}");
        world.await_custodians().await;
    }
    assert_eq!(world.faults.counts().sessions_open(), 2);
    let World { daemon, served, .. } = world;
    assert_eq!(served.stop().code(), Some(0));
    // The folder stays the daemon's.
    let token = ManuallyDrop::new(TestToken::of(&daemon));
    match token.custodian().call(Request::Residents { after: None }) {
        Ok(Response::Residents { ids, nameless }) => assert_eq!((ids.len(), nameless), (3, 0)),
        _ => panic!("another response"),
    }
}
