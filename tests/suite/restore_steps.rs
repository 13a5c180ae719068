//! `hsm-authd restore`, killed before each of its steps: at every moment there is a whole database, and the old one.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use rusqlite::Connection as Database;

use crate::bank::done;
use crate::daemon::{Daemon, enrol_hotp, rfc_code, verify};
use crate::last_step::LastStep;
use crate::recovering::{run, said};
use crate::scratch::Scratch;
use crate::submissions::Crowd;
use crate::token::BINARY;

const NAME: &str = "hsm-authd.db";
/// More than enough.
const STEPS_MAX: usize = 100;

type Files = BTreeMap<String, Vec<u8>>;

/// The database, and all that is named after it.
fn files(daemon: &Daemon) -> Files {
    let entries = fs::read_dir(daemon.store()).unwrap().map(Result::unwrap);
    let named = entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.path()));
    named
        .filter(|(name, path)| name.starts_with(NAME) && path.is_file())
        .map(|(name, path)| (name, fs::read(path).unwrap()))
        .collect()
}

fn put_back(daemon: &Daemon, known: &Files) {
    files(daemon).keys().for_each(|name| fs::remove_file(daemon.store().join(name)).unwrap());
    known.iter().for_each(|(name, bytes)| fs::write(daemon.store().join(name), bytes).unwrap());
}

/// How many codes were used by what is there under a name, read in a folder of its own as a start would; `None`: it knows
/// of no credential.
fn used(there: &Files, name: &str) -> Option<i64> {
    let scratch = Scratch::new();
    for suffix in ["", "-wal"] {
        if let Some(bytes) = there.get(&format!("{name}{suffix}")) {
            fs::write(scratch.join(&format!("{NAME}{suffix}")), bytes).unwrap();
        }
    }
    let database = Database::open(scratch.join(NAME)).unwrap();
    let sound: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok", "{name}");
    let most = "SELECT max(next_factor) FROM credential_state JOIN credential USING (id) WHERE type = 'hotp'";
    database.query_row(most, [], |row| row.get(0)).unwrap()
}

fn restore(daemon: &Daemon, from: &Path, steps: &LastStep, step: usize) -> ExitStatus {
    let mut command = Command::new(BINARY);
    command.args(["restore", "--from"]).arg(from);
    command.arg("--config").arg(daemon.dir().join("hsm-authd.toml"));
    command.envs(steps.environment(step)).stdin(Stdio::null()).output().unwrap().status
}

#[tokio::test]
async fn a_restore_that_is_killed_at_any_step_leaves_a_whole_database_and_the_old_one() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let older = daemon.dir().join("older");
    said(&run(&daemon, &["backup", "--to", older.to_str().unwrap()]));
    // With pages that the copy does not have, and that the WAL does not have either.
    let crowd = Crowd::of(&daemon, "bank-a").await;
    crowd.enrol("totp", None, 100).await;
    done(&verify(&bank, &id, &rfc_code(0)).await);
    daemon.stop();
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    for counter in 1..5 {
        done(&verify(&bank, &id, &rfc_code(counter)).await);
    }
    daemon.kill();
    let before = files(&daemon);
    assert_eq!(used(&before, NAME), Some(5));
    let without = |suffix: &str| {
        let mut files = before.clone();
        files.insert(format!("{NAME}{suffix}"), Vec::new());
        files
    };
    assert_eq!(used(&without("-wal"), NAME), Some(1), "it needs its WAL");

    let steps = LastStep::of(NAME);
    let (mut killed, mut installed) = (0, 0);
    for step in 1..STEPS_MAX {
        put_back(&daemon, &before);
        let status = restore(&daemon, &older, &steps, step);
        let there = files(&daemon);
        let of_asides = |there: &Files| -> Vec<Option<i64>> {
            let is_aside = |name: &&String| name.contains(".before-restore-") && !name.ends_with("-wal");
            there.keys().filter(is_aside).map(|name| used(there, name)).collect()
        };
        let (at_its_place, asides) = (used(&there, NAME), of_asides(&there));
        if status.success() {
            assert_eq!((at_its_place, asides), (Some(0), vec![Some(5)]));
            break;
        }
        assert_eq!(status.signal(), Some(9), "step {step}: {status}");
        killed += 1;
        match at_its_place {
            // The whole old one: a start goes on with it.
            Some(5) => {}
            // The copy.
            Some(0) => {
                installed += 1;
                assert!(asides.contains(&Some(5)), "step {step}: {asides:?} in {:?}", there.keys());
            }
            other => panic!("step {step}: a database of {other:?} codes in {:?}", there.keys()),
        }
        // Done again, it is done.
        said(&run(&daemon, &["restore", "--from", older.to_str().unwrap()]));
        let there = files(&daemon);
        assert_eq!(used(&there, NAME), Some(0), "step {step}");
        assert!(of_asides(&there).contains(&Some(5)), "step {step}: {:?}", there.keys());
    }
    assert!((4..STEPS_MAX - 1).contains(&killed), "{killed} steps");
    println!("killed before {killed} steps, {installed} of them with the copy in its place");
}

#[tokio::test]
async fn a_database_that_cannot_be_opened_is_kept_with_its_wal() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let older = daemon.dir().join("older");
    said(&run(&daemon, &["backup", "--to", older.to_str().unwrap()]));
    done(&verify(&bank, &id, &rfc_code(0)).await);
    daemon.kill();
    fs::write(daemon.database(), "lost").unwrap();
    let before = files(&daemon);
    let wal = &before[&format!("{NAME}-wal")];
    assert!(!wal.is_empty());
    said(&run(&daemon, &["restore", "--from", older.to_str().unwrap()]));
    let there = files(&daemon);
    let aside = there.iter().find(|(name, _)| name.contains(".before-restore-") && !name.ends_with("-wal"));
    let (aside, bytes) = aside.unwrap();
    assert_eq!((&bytes[..], &there[&format!("{aside}-wal")]), (&b"lost"[..], wal));
    assert_eq!(used(&there, NAME), Some(0));
    assert!(!there.contains_key(&format!("{NAME}-wal")));
}
