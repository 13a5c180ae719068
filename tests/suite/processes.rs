//! Which process's end ends which others, and what signals do.

use std::ops::{Deref, DerefMut};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::daemon::{Daemon, enrol_hotp, rfc_code, verify};
use crate::load::Load;
use crate::modules::TestModule;
use crate::slow_request::SlowRequest;
use crate::submissions::{Crowd, Outcome, Token};
use crate::token::BINARY;

/// Nothing that is waited for may take longer.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The kernel tells nobody but a parent of a process's end, and nobody of a log's next line.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Looks until there is something to see.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < deadline, "{what}: not within {} s", PATIENCE.as_secs());
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Waits until a process of others is gone, or a zombie that nobody has buried yet.
pub async fn await_gone(pid: i32) {
    eventually(&format!("the end of {pid}"), async || is_gone(pid).then_some(())).await;
}

/// The same, outside a runtime.
pub fn wait_until_gone(pid: i32) {
    let deadline = Instant::now() + PATIENCE;
    while !is_gone(pid) {
        assert!(Instant::now() < deadline, "{pid} does not end");
        std::thread::sleep(LOOK_EVERY);
    }
}

fn is_gone(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    // The state follows the name, which is in parentheses and may hold anything.
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// A child that does not outlive its test.
pub struct Started(Child);

impl Started {
    pub fn by(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }
}

impl Deref for Started {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Started {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a child's end.
pub fn ended(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// SIGTERM, and how it ended.
pub fn terminate(child: &mut Child) -> ExitStatus {
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    ended(child)
}

fn supervisor(daemon: &Daemon) -> i32 {
    daemon.info["pid"].as_i64().unwrap() as i32
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_the_front_ends_the_service() {
    let mut daemon = Daemon::start();
    let custodians = daemon.pids("custodian");
    kill(Pid::from_raw(daemon.pids("front")[0]), Signal::SIGKILL).unwrap();
    assert_eq!(daemon.ended().code(), Some(1));
    for pid in custodians {
        await_gone(pid).await;
    }
    assert!(daemon.log().contains("hsm-authd: the front ended unexpectedly"), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_the_supervisor_ends_the_others() {
    let mut daemon = Daemon::start();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let token = Token::enrol(crowd.connection(1), "hotp", None).await;
    let others = [daemon.pids("front"), daemon.pids("custodian")].concat();
    assert!(others.len() >= 2, "{others:?}");
    daemon.kill();
    for pid in others {
        await_gone(pid).await;
    }
    assert_eq!(token.submission(0).send(crowd.connection(1)).await, Outcome::Lost);
    daemon.resume();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    assert_eq!(token.submission(0).send(crowd.connection(1)).await, Outcome::Yes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_flight_is_answered_before_the_end() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let slow = SlowRequest::verify(&daemon.url(), &daemon.identity("bank-a"), &id, &rfc_code(0)).await;
    let supervisor = supervisor(&daemon);
    kill(Pid::from_raw(supervisor), Signal::SIGTERM).unwrap();
    // The listener closes first; then only what is in flight is waited for.
    eventually("it accepts nothing more", async || {
        let address = daemon.url().strip_prefix("https://").unwrap().to_owned();
        tokio::net::TcpStream::connect(address).await.is_err().then_some(())
    })
    .await;
    assert!(!is_gone(supervisor), "it left before it had answered");
    assert_eq!(slow.finish().await.0, 200);
    assert_eq!(daemon.ended().code(), Some(0));

    daemon.resume();
    let again = verify(&daemon.connect("bank-a").await, &id, &rfc_code(0)).await;
    assert_eq!(again.status, 403, "the last answer was a durable one");
}

/// A second `dev` on the folder of a stopped one, in a process group of its own.
fn start_in_group(daemon: &Daemon) -> Started {
    let mut command = Command::new(BINARY);
    command.args(["dev", "--listen", "127.0.0.1:0", "--custodians", "2", "--dir"]).arg(daemon.dir());
    command.args(TestModule::dev_arguments(&daemon.dir()));
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    Started::by(&mut command)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_to_the_whole_group_are_the_supervisors_business() {
    let mut daemon = Daemon::start();
    assert_eq!(daemon.stop().code(), Some(0));
    let mut child = start_in_group(&daemon);
    crate::starts::await_ready(&mut child);
    let info: serde_json::Value =
        serde_json::from_slice(&std::fs::read(daemon.dir().join("dev.json")).unwrap()).unwrap();
    daemon.info = info;
    let group = Pid::from_raw(child.id() as i32);
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let id = enrol_hotp(crowd.connection(1), "acct-1").await;

    // A terminal that hangs up reloads: custodians are replaced, and none is killed by it.
    let custodians = children(group.as_raw(), "custodian");
    let mut load = Load::begin(&crowd).await;
    killpg(group, Signal::SIGHUP).unwrap();
    load.progress().await;
    eventually("others have taken over", async || {
        let there = children(group.as_raw(), "custodian");
        (there.len() == 2 && there.iter().all(|pid| !custodians.contains(pid))).then_some(())
    })
    .await;
    assert_eq!(load.end().await.tally.unavailable, 0);

    let slow = SlowRequest::verify(&daemon.url(), &daemon.identity("bank-a"), &id, &rfc_code(0)).await;
    killpg(group, Signal::SIGINT).unwrap();
    assert_eq!(slow.finish().await.0, 200, "a custodian was still there to ask");
    assert_eq!(ended(&mut child).code(), Some(0));
}

/// The children of a process that have this role.
pub fn children(pid: i32, role: &str) -> Vec<i32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let is_role = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(role.as_bytes())
    };
    list.split_whitespace().map(|pid| pid.parse().unwrap()).filter(is_role).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_sigterm_cuts_off() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let slow = SlowRequest::verify(&daemon.url(), &daemon.identity("bank-a"), &id, &rfc_code(0)).await;
    let supervisor = Pid::from_raw(supervisor(&daemon));
    kill(supervisor, Signal::SIGTERM).unwrap();
    eventually("it accepts nothing more", async || {
        let address = daemon.url().strip_prefix("https://").unwrap().to_owned();
        tokio::net::TcpStream::connect(address).await.is_err().then_some(())
    })
    .await;
    kill(supervisor, Signal::SIGTERM).unwrap();
    assert_eq!(daemon.ended().code(), Some(1));
    drop(slow);
    assert!(daemon.log().contains("hsm-authd: ended before everything was answered"));
}
