//! What callers notice of custodians that die, hang, or lose their HSM: nothing, or a 503.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::daemon::Daemon;
use crate::load::Load;
use crate::processes::{await_gone, eventually};
use crate::served::ops_get;
use crate::submissions::{Crowd, Outcome, Token};

/// How long a request may take while custodians are being replaced.
const CALL_MAX: Duration = Duration::from_secs(5);

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// The lines of the log with this message, oldest first.
fn logged(daemon: &Daemon, message: &str) -> Vec<Value> {
    let log = daemon.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["message"] == message).collect()
}

/// Waits until so many custodians have come up since the log began.
pub async fn await_up(daemon: &Daemon, count: usize) -> Vec<Value> {
    eventually("a custodian comes up", async || {
        Some(logged(daemon, "custodian is up")).filter(|lines| lines.len() >= count)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custodians_killed_one_after_the_other_cost_nobody_an_error() {
    let daemon = Daemon::start();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    await_up(&daemon, 2).await;
    let mut load = Load::begin(&crowd).await;
    for round in 0..4 {
        let oldest = daemon.pids("custodian")[0];
        signal(oldest, Signal::SIGKILL);
        let up = await_up(&daemon, 3 + round).await;
        assert_eq!(up.len(), 3 + round, "one was replaced");
        assert!(!daemon.pids("custodian").contains(&oldest));
        load.progress().await;
    }
    for slot in 0..2 {
        let up = logged(&daemon, "custodian is up");
        let generations: Vec<&Value> =
            up.iter().filter(|line| line["slot"] == slot).map(|line| &line["generation"]).collect();
        assert_eq!(generations, [1, 2, 3], "each was killed twice");
    }
    let report = load.end().await;
    assert_eq!(report.tally.unavailable, 0, "{report:?}");
    assert!(report.slowest < CALL_MAX, "{report:?}");
}

/// Field 3 of `/proc/PID/stat`, behind the name in brackets.
fn is_stopped(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.starts_with('T')
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_custodians_but_one_or_all_killed_at_once_cost_nobody_an_error() {
    let daemon = Daemon::start_with(&["--custodians", "3"], &[]);
    let crowd = Crowd::of(&daemon, "bank-a").await;
    await_up(&daemon, 3).await;
    let mut load = Load::begin(&crowd).await;
    let mut up = 3;
    for killed in [2, 3, 2, 3] {
        let pids = daemon.pids("custodian");
        assert_eq!(pids.len(), 3);
        // At once: one that reads, before its turn comes, what another one was killed over, is a second that is lost over it.
        let pids = &pids[..killed];
        pids.iter().for_each(|pid| signal(*pid, Signal::SIGSTOP));
        for pid in pids {
            eventually("it stands still", async || is_stopped(*pid).then_some(())).await;
        }
        pids.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
        up += killed;
        await_up(&daemon, up).await;
        load.progress().await;
    }
    let report = load.end().await;
    assert_eq!(report.tally.unavailable, 0, "{report:?}");
    assert!(report.slowest < CALL_MAX, "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_custodian_that_hangs_is_given_up_and_killed() {
    let daemon = Daemon::start();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    await_up(&daemon, 2).await;
    let mut load = Load::begin(&crowd).await;
    let stuck = daemon.pids("custodian")[0];
    let begun = Instant::now();
    signal(stuck, Signal::SIGSTOP);
    await_up(&daemon, 3).await;
    assert!(begun.elapsed() >= Duration::from_secs(2), "it had its time");
    let lost = logged(&daemon, "custodian is lost");
    assert_eq!(lost.len(), 1);
    assert_eq!(lost[0]["reason"], "it missed its deadline");
    await_gone(stuck).await;
    load.progress().await;
    let report = load.end().await;
    assert_eq!(report.tally.unavailable, 0, "{report:?}");
    assert!(report.slowest >= Duration::from_secs(2), "somebody was waiting for it: {report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custodians_killed_again_and_again_cost_no_wrong_verdict() {
    let daemon = Daemon::start();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    await_up(&daemon, 2).await;
    let mut load = Load::begin(&crowd).await;
    let mut pause = tokio::time::interval(Duration::from_millis(50));
    let mut killed = 0;
    for _ in 0..40 {
        pause.tick().await;
        // The oldest has logged in if more came up than were killed. SoftHSM rewrites its token at a login: one
        // that is killed there can leave a token that nobody finds again.
        if logged(&daemon, "custodian is up").len() <= killed {
            continue;
        }
        if let Some(pid) = daemon.pids("custodian").first() {
            killed += usize::from(kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok());
        }
    }
    assert!(killed >= 3, "only {killed} were there to be killed");
    load.progress().await;
    load.end().await;
}

/// What `/readyz` says.
pub fn ready(daemon: &Daemon) -> u16 {
    ops_get(daemon.info["ops_url"].as_str().unwrap(), "/readyz").0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_token_it_is_unavailable_and_with_it_again_it_recovers() {
    let daemon = Daemon::start();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let connection = crowd.connection(1);
    let token = Token::enrol(connection, "hotp", None).await;
    assert_eq!(ready(&daemon), 200);
    let (place, away) = (daemon.dir().join("token"), daemon.dir().join("token.away"));
    fs::rename(&place, &away).unwrap();

    // Those that run may go on with what they hold in memory; none can take their place.
    let first = token.submission(0).send(connection).await;
    assert!(matches!(first, Outcome::Yes | Outcome::Unavailable), "{first:?}");
    for pid in daemon.pids("custodian") {
        // It may have left by itself.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    eventually("it is not ready", async || (ready(&daemon) == 503).then_some(())).await;
    let begun = Instant::now();
    assert_eq!(token.submission(1).send(connection).await, Outcome::Unavailable);
    assert!(begun.elapsed() < CALL_MAX + Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(ops_get(daemon.info["ops_url"].as_str().unwrap(), "/livez").0, 200);

    fs::rename(&away, &place).unwrap();
    eventually("it recovers", async || (ready(&daemon) == 200).then_some(())).await;
    assert_eq!(token.submission(1).send(connection).await, Outcome::Yes, "nothing was used up meanwhile");
    assert_eq!(token.submission(1).send(connection).await, Outcome::No);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_that_turned_wrong_is_tried_once_and_ends_the_service_with_its_last_custodian() {
    let mut daemon = Daemon::start();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let token = Token::enrol(crowd.connection(1), "hotp", None).await;
    let pin_file = daemon.dir().join("pin");
    let pin = fs::read(&pin_file).unwrap();
    fs::write(&pin_file, "0000").unwrap();
    assert_eq!(token.submission(0).send(crowd.connection(1)).await, Outcome::Yes, "nobody logs in anew");

    let pids = [daemon.pids("front"), daemon.pids("custodian")].concat();
    let (first, others) = pids[1..].split_first().unwrap();
    signal(*first, Signal::SIGKILL);
    let refused = "the token refuses the PIN";
    eventually(refused, async || daemon.log().contains(refused).then_some(())).await;
    assert_eq!(token.submission(0).send(crowd.connection(1)).await, Outcome::No, "the others go on");
    for pid in others {
        signal(*pid, Signal::SIGKILL);
    }
    assert!(!daemon.ended().success());
    let log = daemon.log();
    let is_refusal = |line: &&str| line.starts_with("hsm-authd: ") && line.contains("refuses the user PIN");
    let refusals: Vec<&str> = log.lines().filter(is_refusal).collect();
    assert_eq!(refusals.len(), 1, "tried once: {refusals:?}");
    assert!(refusals[0].contains(pin_file.to_str().unwrap()), "{}", refusals[0]);
    for pid in pids {
        await_gone(pid).await;
    }

    fs::write(&pin_file, pin).unwrap();
    daemon.resume();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    assert_eq!(token.submission(0).send(crowd.connection(1)).await, Outcome::No);
    assert_eq!(token.submission(1).send(crowd.connection(1)).await, Outcome::Yes);
}

/// Allows a process so many descriptors from here on; those it has stay open.
fn allow_descriptors(pid: i32, count: &str) {
    let done = Command::new("prlimit")
        .arg(format!("--pid={pid}"))
        .arg(format!("--nofile={count}"))
        .status()
        .unwrap();
    assert!(done.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replacement_that_cannot_be_made_is_made_later_and_the_others_go_on() {
    // The front is closed to its own user: only root takes descriptors away from it.
    let is_root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    for (role, told) in
        [("supervisor", "a custodian cannot be started"), ("front", "a custodian's socket did not arrive")]
    {
        if role == "front" && !is_root {
            continue;
        }
        let daemon = Daemon::start();
        let crowd = Crowd::of(&daemon, "bank-a").await;
        let token = Token::enrol(crowd.connection(1), "hotp", None).await;
        await_up(&daemon, 2).await;
        let pid = match role {
            "front" => daemon.pids("front")[0],
            _ => daemon.info["pid"].as_i64().unwrap() as i32,
        };
        allow_descriptors(pid, "4:");
        signal(daemon.pids("custodian")[0], Signal::SIGKILL);
        let seen = || logged(&daemon, told);
        eventually(told, async || Some(seen()).filter(|lines| !lines.is_empty())).await;
        let answer = token.submission(0).send(crowd.connection(1)).await;
        assert_eq!(answer, Outcome::Yes, "{role}: the other one goes on");

        allow_descriptors(pid, "1024:");
        let up = await_up(&daemon, 3).await;
        assert_eq!(up.len(), 3, "{role}");
        assert_eq!(token.submission(1).send(crowd.connection(1)).await, Outcome::Yes, "{role}");
    }
}
