//! A disk that fails at a commit, and a process that is killed in the middle of many.
//!
//! The store runs in a child process: this test binary again, asked for the one test [`child`],
//! with `tests/faults/failing_disk.c` preloaded.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::task::Poll;

use hsm_authd::domain::row::{Row, Sealed};
use hsm_authd::store::{Commit, Store};
use tokio::task::JoinSet;

use crate::failing_disk;
use crate::scratch::Scratch;
use crate::store_samples::*;

/// Which of [`child`]'s parts to play.
const PART: &str = "HSM_AUTHD_TEST_PART";
/// The folder it plays in.
const FOLDER: &str = "HSM_AUTHD_TEST_FOLDER";
/// What a line that is meant for the parent contains.
const TOLD: &str = "told: ";

/// A folder with a database in it and the disk's control file beside it.
struct Stage {
    scratch: Scratch,
    disk: PathBuf,
}

impl Stage {
    fn new() -> Self {
        let scratch = Scratch::new();
        let disk = scratch.join("failing_disk.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/failing_disk.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(&disk).arg(source);
        assert!(compiler.status().unwrap().success());
        let stage = Self { scratch, disk };
        stage.set("none");
        stage
    }

    fn set(&self, mode: &str) {
        failing_disk::set(&self.scratch.join("disk"), mode);
    }

    fn start(&self, part: &str) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store_faults::child", "--nocapture", "--test-threads=1"])
            .env(PART, part)
            .env(FOLDER, self.scratch.join(""))
            .env("LD_PRELOAD", &self.disk)
            .env("FAILING_DISK_CONTROL", self.scratch.join("disk"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Plays the part to its end; what it told.
    fn play(&self, part: &str) -> Vec<String> {
        let output = self.start(part).wait_with_output().unwrap();
        assert!(output.status.success(), "{part} ended with {}", output.status);
        told(&String::from_utf8(output.stdout).unwrap())
    }

    fn open(&self) -> Store {
        Store::open(&self.scratch.join("store.db")).unwrap()
    }
}

fn told(output: &str) -> Vec<String> {
    output.lines().filter_map(|line| line.split_once(TOLD)).map(|(_, told)| told.to_owned()).collect()
}

fn tell(text: impl std::fmt::Display) {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{TOLD}{text}").unwrap();
}

/// The first commit's row, and what the disk fails on: its next version.
fn before_and_after() -> (Sealed<Row>, Sealed<Row>) {
    let before = row(state(1, "bank-a"));
    let after = next(&before, 1);
    (before, after)
}

/// No test: what the child process of the others does. Alone it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let (Ok(part), Some(folder)) = (std::env::var(PART), std::env::var_os(FOLDER)) else { return };
    let folder = PathBuf::from(folder);
    let store = match Store::open(&folder.join("store.db")) {
        Ok(store) => store,
        Err(error) => return tell(error),
    };
    let Some((mode, end)) = part.split_once(' ') else { return commit_for_ever(store).await };

    let commit = async |commit: Commit| tell(format!("{:?}", store.commit(commit).await.map(|_| ())));
    let (before, after) = before_and_after();
    commit(insert(std::slice::from_ref(&before))).await;
    failing_disk::set(&folder.join("disk"), mode);
    commit(change(std::slice::from_ref(&before), std::slice::from_ref(&after))).await;
    tell(if has_failed(&store).await { "failed" } else { "in service" });
    failing_disk::set(&folder.join("disk"), "none");
    commit(change(&[before], &[after])).await;
    commit(insert(&[row(state(2, "bank-a"))])).await;
    tell(if has_failed(&store).await { "failed" } else { "in service" });
    tell(format!("{} rows", every_row(&store, 10).await.len()));
    if end == "killed" {
        // Nothing is dropped, so nothing is tidied up.
        std::process::exit(0);
    }
}

/// Whether `failed()` resolves now.
async fn has_failed(store: &Store) -> bool {
    let mut failed = pin!(store.failed());
    std::future::poll_fn(|context| Poll::Ready(failed.as_mut().poll(context).is_ready())).await
}

async fn commit_for_ever(store: Store) {
    let mut tasks = JoinSet::new();
    for task in 0..32u128 {
        let store = store.clone();
        tasks.spawn(async move {
            for number in 0.. {
                let number = number * 32 + task;
                let _ = store.commit(insert(&[row(state(number, "bank-a"))])).await.unwrap();
                tell(number);
            }
        });
    }
    tasks.join_all().await;
}

#[test]
fn after_an_unknown_outcome_nothing_is_committed_any_more() {
    for mode in ["write-eio", "fsync-eio", "write-then-eio"] {
        for end in ["killed", "closed"] {
            let stage = Stage::new();
            let expected = [
                "Ok(())",
                "Err(Unavailable)",
                "failed",
                "Err(Unavailable)",
                "Err(Unavailable)",
                "failed",
                "1 rows",
            ];
            assert_eq!(stage.play(&format!("{mode} {end}")), expected, "{mode} {end}");

            let (before, after) = before_and_after();
            let is_there = block_on(async {
                let store = stage.open();
                assert_sum_adds_up(&store).await;
                let rows = every_row(&store, 10).await;
                let log = store.audit_entries(0, 10).await.unwrap();
                assert!(rows == [before] || rows == [after.clone()], "{mode} {end}: {rows:?}");
                let is_there = rows == [after];
                assert_eq!(log.len(), if is_there { 2 } else { 1 }, "{mode} {end}");
                is_there
            });
            if (mode, end) == ("fsync-eio", "killed") {
                assert!(is_there, "else the test has no case where a commit failed and persisted");
            }
        }
    }
}

#[test]
fn a_full_disk_refuses_one_commit_and_serves_the_next() {
    for end in ["killed", "closed"] {
        let stage = Stage::new();
        let expected =
            ["Ok(())", "Err(Unavailable)", "in service", "Ok(())", "Ok(())", "in service", "2 rows"];
        assert_eq!(stage.play(&format!("write-enospc {end}")), expected, "{end}");
        block_on(async {
            let store = stage.open();
            let (_, after) = before_and_after();
            assert_eq!(every_row(&store, 10).await, [after, row(state(2, "bank-a"))]);
            assert_eq!(store.audit_entries(0, 10).await.unwrap().len(), 3);
            assert_sum_adds_up(&store).await;
        });
    }
}

/// What is in the WAL at a start may be in memory only, after an fsync that failed.
#[test]
fn a_start_serves_nothing_that_it_did_not_make_durable() {
    let stage = Stage::new();
    stage.play("fsync-eio killed");
    for mode in ["write-eio", "fsync-eio", "write-enospc"] {
        stage.set(mode);
        let told = stage.play("none killed");
        assert!(matches!(told.as_slice(), [refusal] if refusal.contains("settle")), "{mode}: {told:?}");
    }
    stage.set("none");
    block_on(async {
        let store = stage.open();
        assert_eq!(every_row(&store, 10).await, [before_and_after().1]);
    });
}

#[test]
fn a_killed_process_loses_nothing_it_answered() {
    for round in 1..=3 {
        let stage = Stage::new();
        let mut child = stage.start("for-ever");
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut text = String::new();
        while told(&text).len() < 300 * round {
            assert!(output.read_line(&mut text).unwrap() > 0, "it ended by itself: {text}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        output.read_to_string(&mut text).unwrap();
        // The last line may be cut in the middle.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let answered = told(whole);
        block_on(async {
            let store = stage.open();
            assert_sum_adds_up(&store).await;
            let rows = every_row(&store, 10_000).await;
            let log = store.audit_entries(0, u16::MAX).await.unwrap();
            assert_eq!(log.len(), rows.len(), "an entry for each row");
            for number in answered {
                let answered = row(state(number.parse().unwrap(), "bank-a"));
                assert!(rows.contains(&answered), "{number} was answered and is gone");
            }
        });
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}
