//! Custodians that are replaced while they work: none of it fails a request, and nothing is left behind.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use fault_module::sys::CKR_DEVICE_ERROR;
use fault_module::{Fault, Function, Kind};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::bank::delete;
use crate::custodians::await_up;
use crate::daemon::Daemon;
use crate::fault_module::FaultModule;
use crate::load::Load;
use crate::modules::TestModule;
use crate::processes::{children, eventually};
use crate::scrape::Scrape;
use crate::served::{Served, configuration, section};
use crate::submissions::{Crowd, Outcome, Token};

/// How long a request may take while custodians are being replaced.
const CALL_MAX: Duration = Duration::from_secs(5);
/// As long as no test lasts.
const HOUR: Duration = Duration::from_secs(3_600);
const REPLACEMENTS: &str = "hsm_authd_custodian_replacements_total";

/// `hsm-authd serve` with custodians that have loaded the fault module before SoftHSM, keep one unwrapped secret at a time
/// and make new ones objects in the HSM; and users whose secrets are wrapped.
struct World {
    _daemon: Daemon,
    faults: FaultModule,
    served: Served,
    crowd: Crowd,
    wrapped: Vec<Token>,
    custodians: usize,
}

impl World {
    async fn start(custodians: usize, recycle_after_unwraps: i64) -> Self {
        let mut daemon = Daemon::start_with(&["--custodians", "2", "--custody", "wrapped"], &[]);
        let wrapped = Crowd::of(&daemon, "bank-a").await.enrol("hotp", None, 16).await;
        daemon.stop();
        let mut faults = None;
        let config = configuration(&daemon, "recycled.toml", |config| {
            let hsm = section(config, "hsm");
            let target = hsm["module"].as_str().unwrap().to_owned();
            let module = FaultModule::new(&daemon.dir(), target.as_ref());
            hsm.insert("module".into(), FaultModule::library().to_str().unwrap().into());
            hsm.insert("custodians".into(), (custodians as i64).into());
            hsm.insert("custody".into(), "resident".into());
            hsm.insert("secrets_cached_max".into(), 1.into());
            hsm.insert("recycle_after_unwraps".into(), recycle_after_unwraps.into());
            module.configure(hsm);
            faults = Some(module);
        });
        let served = Served::start(&config);
        let crowd = Crowd::open(&served.url, &daemon.identity("bank-a")).await;
        let world = Self { _daemon: daemon, faults: faults.unwrap(), served, crowd, wrapped, custodians };
        world.await_custodians().await;
        world
    }

    /// Those that are there, also while one takes over from another.
    fn custodians(&self) -> HashSet<i32> {
        children(self.served.pid(), "custodian").into_iter().collect()
    }

    fn scrape(&self) -> Scrape {
        Scrape::at(&self.served.ops_url)
    }

    fn replaced(&self, reason: &str) -> f64 {
        self.scrape().value(REPLACEMENTS, &[("reason", reason)])
    }

    /// Waits until all are up, and nobody besides is left.
    async fn await_custodians(&self) -> HashSet<i32> {
        eventually("as many custodians as there are to be", async || {
            let pids = self.custodians();
            let up = self.scrape().value("hsm_authd_custodians_up", &[]);
            (up == self.custodians as f64 && pids.len() == self.custodians).then_some(pids)
        })
        .await
    }

    /// Waits until none of those is left, and as many others are there.
    async fn await_others_than(&self, before: &HashSet<i32>) -> HashSet<i32> {
        eventually("all custodians are others", async || {
            let pids = self.custodians();
            (pids.is_disjoint(before) && pids.len() == self.custodians).then_some(pids)
        })
        .await
    }

    async fn replaced_so_often(&self, reason: &str, count: f64) {
        eventually("so many are replaced", async || (self.replaced(reason) >= count).then_some(())).await;
    }

    /// Users whose secrets are wrapped, users whose secrets are in the HSM, and an enrolment after the other.
    async fn begin(&mut self) -> Business {
        let wrapped = std::mem::take(&mut self.wrapped);
        let (stop, stopped) = watch::channel(false);
        let enrolling = tokio::spawn(enrol_until(stopped, self.crowd.clone()));
        let users = [Load::begin_with(wrapped, &self.crowd).await, Load::begin(&self.crowd).await];
        Business { users, stop, enrolling }
    }

    /// Nothing was lost on the way, and no process that ended has left a session open.
    async fn check_nothing_is_left(&self) {
        let said = self.served.said().join("\n");
        if !TestModule::chosen().fails_over_a_token_that_changes() {
            assert_eq!(self.scrape().counted("hsm_authd_custodian_losses_total"), [].into(), "{said}");
        }
        let there = self.await_custodians().await;
        let counts = self.faults.counts();
        for process in &counts.0 {
            let open = process.sessions_opened - process.sessions_closed;
            let expected = u64::from(there.contains(&process.pid.cast_signed()));
            assert_eq!(open, expected, "{process:?}");
        }
        assert_eq!(counts.sessions_open(), self.custodians as u64);
    }
}

/// What goes on all the time.
struct Business {
    users: [Load; 2],
    stop: watch::Sender<bool>,
    enrolling: JoinHandle<usize>,
}

impl Business {
    async fn progress(&mut self) {
        for load in &mut self.users {
            load.progress().await;
        }
    }

    /// Ends it: not one request failed. How long the slowest took.
    async fn end(self) -> Duration {
        self.stop.send(true).unwrap();
        assert!(self.enrolling.await.unwrap() > 0, "nobody enrolled");
        let mut slowest = Duration::ZERO;
        for load in self.users {
            let report = load.end().await;
            println!("{report:?}");
            assert_eq!(report.tally.unavailable, 0, "{report:?}");
            assert!(report.slowest < CALL_MAX, "{report:?}");
            slowest = slowest.max(report.slowest);
        }
        slowest
    }
}

/// Each that is enrolled verifies once at once, whoever is asked, and its code is then used up. How many there were.
async fn enrol_until(mut stopped: watch::Receiver<bool>, crowd: Crowd) -> usize {
    let mut count = 0;
    loop {
        let token = Token::enrol(crowd.connection(count), "hotp", None).await;
        for expected in [Outcome::Yes, Outcome::No] {
            assert_eq!(token.submission(0).send(crowd.connection(count)).await, expected, "{count}");
        }
        let removed = delete(crowd.connection(count), &token.id).await;
        assert_eq!(removed.status, 200, "{count}");
        count += 1;
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => return count,
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dozens_that_have_unwrapped_enough_are_replaced_and_no_request_fails() {
    let mut world = World::start(4, 100).await;
    let before = world.custodians();
    let mut business = world.begin().await;
    // Each time as many as come about in the time that is waited for anything.
    for count in [3.0, 6.0, 9.0] {
        let mut at_most = 0;
        eventually("so many are replaced", async || {
            at_most = at_most.max(world.custodians().len());
            (world.replaced("unwraps") >= count).then_some(())
        })
        .await;
        business.progress().await;
        assert!(at_most <= 5, "one at a time: {at_most}");
    }
    business.end().await;
    let starts = world.scrape();
    let started = |custodian: &&&str| {
        starts.value("hsm_authd_custodian_starts_total", &[("custodian", custodian)]) > 1.0
    };
    let of_several = ["0", "1", "2", "3"].iter().filter(started).count();
    assert!(of_several > 1, "it is the turn of {of_several}");
    assert!(!world.custodians().is_superset(&before));
    world.check_nothing_is_left().await;
    let World { served, faults, .. } = world;
    assert_eq!(served.stop().code(), Some(0));
    assert_eq!(faults.counts().sessions_open(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_custodian_is_replaced_again_and_again_and_no_request_fails() {
    let mut world = World::start(1, 100).await;
    let mut business = world.begin().await;
    world.replaced_so_often("unwraps", 6.0).await;
    business.progress().await;
    business.end().await;
    world.check_nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_replaces_every_custodian_and_no_request_fails() {
    let mut world = World::start(4, 1_000_000).await;
    let mut business = world.begin().await;
    let mut before = world.await_custodians().await;
    for round in 1..=2 {
        world.served.reload();
        before = world.await_others_than(&before).await;
        business.progress().await;
        assert_eq!(world.replaced("reload"), 4.0 * f64::from(round), "each once");
    }
    business.end().await;
    assert_eq!(world.custodians(), before);
    assert_eq!(world.replaced("unwraps"), 0.0);
    world.check_nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_misses_a_deadline_is_replaced_and_no_request_fails() {
    for custodians in [1, 4] {
        let mut world = World::start(custodians, 1_000_000).await;
        let mut business = world.begin().await;
        for function in [Function::C_UnwrapKey, Function::C_Sign] {
            let before = world.await_custodians().await;
            let set = world.faults.set(Fault::of(function, Kind::Hang(HOUR)).once());
            set.fired().await;
            eventually("it is replaced", async || {
                let pids = world.custodians();
                (pids.len() == custodians && pids != before).then_some(())
            })
            .await;
            business.progress().await;
        }
        let slowest = business.end().await;
        assert!(slowest >= Duration::from_secs(2), "somebody waited for it: {slowest:?}");
        assert_eq!(
            world.scrape().counted("hsm_authd_custodian_losses_total"),
            [("deadline", 2.0)].into(),
            "{custodians}"
        );
        world.await_custodians().await;
        assert_eq!(world.faults.counts().sessions_open(), custodians as u64);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_that_does_not_start_costs_nothing_and_another_one_does_later() {
    let mut world = World::start(2, 1_000_000).await;
    let mut business = world.begin().await;
    let before = world.await_custodians().await;
    for (kind, times) in [(Kind::Fail(CKR_DEVICE_ERROR), 2), (Kind::Segfault, 1)] {
        let set = world.faults.set(Fault::of(Function::C_Login, kind));
        world.served.reload();
        let awaited = world.faults.counts().fired() + times;
        world.faults.until("it is tried again", move |counts| counts.fired() >= awaited).await;
        business.progress().await;
        eventually("the others go on", async || (world.custodians() == before).then_some(())).await;
        assert!(set.count() <= times + 1, "no storm: {} starts", set.count());
        assert_eq!(world.replaced("reload"), 0.0);
        set.lift();
    }
    world.await_others_than(&before).await;
    business.progress().await;
    business.end().await;
    assert_eq!(world.replaced("reload"), 2.0);
    assert_eq!(world.faults.counts().sessions_open(), 2);
}

/// How often a custodian has said so.
fn refusals(daemon: &Daemon) -> usize {
    let log = daemon.log();
    log.lines()
        .filter(|line| line.starts_with("hsm-authd: ") && line.contains("refuses the user PIN"))
        .count()
}

/// Each attempt could be the one that locks the token: an operator who asks for others does not ask for that one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_whose_pin_is_refused_is_the_last_until_somebody_writes_another_one() {
    let daemon = Daemon::start();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    await_up(&daemon, 2).await;
    let before = daemon.pids("custodian");
    let supervisor = Pid::from_raw(daemon.info["pid"].as_i64().unwrap() as i32);
    let pin_file = daemon.dir().join("pin");
    let pin = fs::read(&pin_file).unwrap();
    fs::write(&pin_file, "0000").unwrap();
    let mut load = Load::begin(&crowd).await;
    kill(supervisor, Signal::SIGHUP).unwrap();
    let said = "no custodian of it is started before its PIN file is another one";
    eventually("it is refused", async || daemon.log().contains(said).then_some(())).await;
    // Longer than the first pause after a spare that did not start for another reason.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(refusals(&daemon), 1, "tried once");
    // What dies now is not replaced, and the other one goes on.
    kill(Pid::from_raw(before[0]), Signal::SIGKILL).unwrap();
    eventually("one is left", async || (daemon.pids("custodian") == before[1..]).then_some(())).await;
    load.progress().await;
    kill(supervisor, Signal::SIGHUP).unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(refusals(&daemon), 1, "tried once");

    fs::write(&pin_file, pin).unwrap();
    eventually("all are others", async || {
        let pids = daemon.pids("custodian");
        (pids.len() == 2 && pids.iter().all(|pid| !before.contains(pid))).then_some(())
    })
    .await;
    load.progress().await;
    assert_eq!(load.end().await.tally.unavailable, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_last_one_dies_whose_pin_is_refused_the_service_ends() {
    let mut daemon = Daemon::start();
    let pids = daemon.pids("custodian");
    let supervisor = Pid::from_raw(daemon.info["pid"].as_i64().unwrap() as i32);
    fs::write(daemon.dir().join("pin"), "0000").unwrap();
    kill(supervisor, Signal::SIGHUP).unwrap();
    let said = "no custodian of it is started before its PIN file is another one";
    eventually("it is refused", async || daemon.log().contains(said).then_some(())).await;
    for pid in pids {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    assert_eq!(daemon.ended().code(), Some(1));
    assert_eq!(refusals(&daemon), 1, "tried once");
}
