//! A log with entries that are not what was written: no service starts on it, and a recovery sets aside what does not fit,
//! and loses nothing of it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hsm_authd::domain::audit::{AuditEntry, Event};
use hsm_authd::domain::row::TableSums;
use hsm_authd::store::{Commit, Store};
use rusqlite::Connection as Database;
use serde_json::{Value, json};

use crate::audit_files::Copy;
use crate::audit_tampering::live;
use crate::bank::{act, credentials, done};
use crate::daemon::{Daemon, enrol_hotp, verify};
use crate::recovering::{complaint, refusal, run, said, snapshot};
use crate::signers::Device;
use crate::submissions::Dice;
use crate::token::BINARY;

/// More than one kept subtree.
const VERIFICATIONS: u64 = 260;

/// A daemon that has ended, with its token, as often as it is asked for.
struct Made {
    daemon: Daemon,
    files: BTreeMap<PathBuf, Vec<u8>>,
    size: u64,
}

impl Made {
    async fn new() -> Self {
        let mut daemon = Daemon::start();
        live(&daemon.connect("bank-a").await, VERIFICATIONS).await;
        assert!(daemon.stop().success());
        snapshot(&daemon);
        let mut files = BTreeMap::new();
        read(&daemon.dir(), &mut files);
        let size = Copy::of(&daemon.database()).size();
        assert!(size > 280, "{size}");
        Self { daemon, files, size }
    }

    /// As it was left, but for the database, which somebody has changed.
    fn again(&self, change: impl FnOnce(&Database)) {
        for path in self.aside() {
            fs::remove_file(path).unwrap();
        }
        for suffix in ["-wal", "-shm"] {
            let _ = fs::remove_file(self.daemon.database().with_file_name(format!("hsm-authd.db{suffix}")));
        }
        // SoftHSM has an anchor that was not there.
        fs::remove_dir_all(self.daemon.dir().join("token")).unwrap();
        for (path, content) in &self.files {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let database = Database::open(self.daemon.database()).unwrap();
        database.pragma_update(None, "ignore_check_constraints", true).unwrap();
        change(&database);
    }

    /// The files of what was set aside, whole or not.
    fn aside(&self) -> Vec<PathBuf> {
        let names = fs::read_dir(self.daemon.store()).unwrap().map(|entry| entry.unwrap().path());
        names.filter(|path| path.to_str().unwrap().contains(".log-set-aside-")).collect()
    }

    /// Of a recovered one: nothing is wrong with any of it, by the HSM either.
    fn is_clean(&self) -> Copy {
        let output = run(&self.daemon, &["recover"]);
        assert!(said(&output).contains("nothing to recover"), "{output:?}");
        let copy = Copy::of(&self.daemon.database());
        let config = self.daemon.dir().join("hsm-authd.toml");
        let said = copy.verified(&["--config", config.to_str().unwrap()]);
        assert!(said.ends_with("\nok           every entry fits\n"), "{said}");
        copy
    }
}

fn read(folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => read(&path, files),
            false if path.extension().is_some_and(|extension| extension == "control") => {}
            false => drop(files.insert(path.clone(), fs::read(&path).unwrap())),
        }
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn details(copy: &Copy, event: &str) -> Vec<String> {
    let database = Database::open(&copy.path).unwrap();
    let mut statement = database.prepare("SELECT detail FROM audit WHERE event = ?1 ORDER BY seq").unwrap();
    statement.query_map([event], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[tokio::test]
async fn what_does_not_fit_is_set_aside_and_the_rest_goes_on() {
    let mut made = Made::new().await;
    let size = made.size;
    let last = size - 3;
    // Where, what is done there, whether it can be read, and whether a start on a clean end finds it.
    for (seq, sql, is_readable, is_refused) in [
        (last, "UPDATE audit SET unix_ms = unix_ms + 1 WHERE seq = ?1", true, true),
        (last, "UPDATE audit SET leaf = randomblob(32) WHERE seq = ?1", true, true),
        (last, "UPDATE audit SET leaf = NULL WHERE seq = ?1", false, true),
        (last, "UPDATE audit SET leaf = x'00' WHERE seq = ?1", false, true),
        (last, "UPDATE audit SET event = 'no.event' WHERE seq = ?1", false, true),
        (last, "UPDATE audit SET detail = CAST(x'ff' AS TEXT) WHERE seq = ?1", false, true),
        (last, "DELETE FROM audit WHERE seq = ?1", true, true),
        (last, "UPDATE audit SET seq = 1000000 WHERE seq = ?1", true, true),
        (last, "UPDATE audit SET seq = -5 WHERE seq = ?1", false, true),
        (1, "UPDATE audit SET rows = rows || 'x' WHERE seq = ?1", false, false),
        (100, "UPDATE audit SET unix_ms = unix_ms + 1 WHERE seq = ?1", true, false),
        (257, "DELETE FROM audit WHERE seq = ?1", true, true),
    ] {
        made.again(|database| assert_eq!(database.execute(sql, [seq as i64]).unwrap(), 1, "{sql}"));
        let is_there = !sql.starts_with("DELETE");
        let aside = size - seq + u64::from(is_there);
        if is_refused {
            let line = refusal(&made.daemon);
            assert!(
                line.contains(&format!("entry {seq} of the log is not what was written")),
                "{sql}: {line}"
            );
            assert!(
                line.contains("; put the newest whole database back, or run `hsm-authd recover"),
                "{line}"
            );
        }
        let before = snapshot(&made.daemon);
        let looked = run(&made.daemon, &["recover"]);
        let says = complaint(&looked);
        assert!(says.contains("--accept-rollback"), "{sql}: {says}");
        let plan = String::from_utf8_lossy(&looked.stdout).into_owned();
        let says = format!("log: the first {} entries fit; {aside} would be set aside", seq - 1);
        assert!(plan.contains(&format!("database: entry {seq} of the log is ")), "{sql}: {plan}");
        assert!(plan.contains(&says), "{sql}: {plan}");
        assert_eq!((snapshot(&made.daemon), made.aside()), (before, vec![]), "nothing was changed");

        let told = said(&run(&made.daemon, &["recover", "--accept-rollback"]));
        let [path] = &made.aside()[..] else { panic!("{:?}", made.aside()) };
        assert!(
            told.contains(&format!("set aside: what did not fit of the log, in {}", path.display())),
            "{told}"
        );
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut lines = lines(path);
        let note = lines.pop().unwrap();
        assert!(note["checkpoint"].as_str().unwrap().contains(&format!("\n{size}\n")), "{note}");
        assert_eq!(lines.len() as u64, aside, "{sql}");
        let unreadable: Vec<_> = lines.iter().filter(|line| line.get("columns").is_some()).collect();
        assert_eq!(unreadable.len(), usize::from(!is_readable), "{sql}: {unreadable:?}");
        if let [entry] = &unreadable[..] {
            let number = if sql.contains("-5") { json!(-5) } else { json!(seq) };
            assert_eq!((&entry["seq"], &entry["columns"]["seq"]), (&number, &number));
        }
        // Those behind it are as an export had them.
        let end = lines.iter().filter(|line| line["seq"] == json!(size)).collect::<Vec<_>>();
        assert_eq!(end[0]["event"], "service.stopped", "{sql}");

        let copy = made.is_clean();
        let recovered = details(&copy, "store.recovered");
        let [cut, end] = &recovered[..] else { panic!("{recovered:?}") };
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(*cut, format!("cut before entry {seq} of the log, {aside} entries set aside in {name}"));
        assert!(end.starts_with("anchor was hsm-authd.log/"), "{end}");
        let at =
            |seq: u64| copy.number(&format!("SELECT event = 'store.recovered' FROM audit WHERE seq = {seq}"));
        assert_eq!(at(seq), 1, "it is the next one after what fits");
    }

    // It goes on from there: with what the bank resumes, over the next kept subtrees, and after a crash.
    made.daemon.resume();
    let bank = made.daemon.connect("bank-a").await;
    let all = credentials(&bank).await;
    let signer = all.as_array().unwrap().iter().find(|view| view["type"] == "signer").unwrap();
    let signer = signer["id"].as_str().unwrap();
    done(&act(&bank, signer, "resume").await);
    let payload = Device::new(1).submission(signer, b"a payload");
    done(&bank.post(&payload.path, &payload.body).await.unwrap());
    let fresh = enrol_hotp(&bank, "acct-new").await;
    done(&verify(&bank, &fresh, &crate::daemon::rfc_code(0)).await);
    made.daemon.kill();
    made.daemon.resume();
    made.daemon.stop();
    let store = Store::open(&made.daemon.database()).unwrap();
    for unix_ms in 0..300 {
        let audit = AuditEntry::of_appliance(unix_ms, Event::Stopped);
        let (before, rows, removed) = Default::default();
        let commit = Commit { before, rows, removed, sum_change: TableSums::default(), audit };
        let _durable = store.commit(commit).await.unwrap();
    }
    store.whole_log(Vec::new()).await.unwrap();
    drop(store);
    Copy::of(&made.daemon.database()).verified(&[]);
}

#[tokio::test]
async fn kept_hashes_that_are_wrong_are_made_anew_and_every_entry_stays() {
    let made = Made::new().await;
    for sql in [
        "UPDATE audit_subtree SET hash = randomblob(32)",
        "UPDATE audit_subtree SET hash = x'00'",
        "DELETE FROM audit_subtree",
        "INSERT INTO audit_subtree VALUES (8, 7, randomblob(32))",
    ] {
        made.again(|database| assert_eq!(database.execute(sql, []).unwrap(), 1, "{sql}"));
        let looked = run(&made.daemon, &["recover"]);
        complaint(&looked);
        let plan = String::from_utf8_lossy(&looked.stdout).into_owned();
        assert!(
            plan.contains("database: the hash that is kept") || plan.contains("database: hashes are kept")
        );
        assert!(!plan.contains("set aside, in a file"), "{plan}");
        said(&run(&made.daemon, &["recover", "--accept-rollback"]));
        assert_eq!(made.aside(), Vec::<PathBuf>::new());
        let copy = made.is_clean();
        assert!(
            details(&copy, "store.recovered")[0].starts_with("the hashes kept of the log are made anew: ")
        );
        let at = format!("SELECT event = 'service.stopped' FROM audit WHERE seq = {}", made.size);
        assert_eq!(copy.number(&at), 1, "{sql}");
    }
}

#[tokio::test]
async fn a_recovery_of_a_damaged_log_that_is_killed_anywhere_is_done_again_and_loses_nothing() {
    let made = Made::new().await;
    let damage = |database: &Database| {
        assert_eq!(database.execute("UPDATE audit SET event = 'x' WHERE seq = 20", []).unwrap(), 1);
    };
    let exported = |copy: &Copy, after: u64| -> Vec<Value> {
        let output = copy.audit(&["export", "--after", &after.to_string()]);
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    made.again(|_| ());
    let behind = exported(&Copy::of(&made.daemon.database()), 20);
    made.again(damage);
    let begun = Instant::now();
    said(&run(&made.daemon, &["recover", "--accept-rollback"]));
    let whole = begun.elapsed();
    let (mut dice, seed) = Dice::new();
    let (mut cut, mut uncut) = (0, 0);
    for round in 0..15 {
        made.again(damage);
        let mut command = Command::new(BINARY);
        command
            .args(["recover", "--accept-rollback", "--config"])
            .arg(made.daemon.dir().join("hsm-authd.toml"));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        if round % 3 < 2 {
            // As soon as something is set aside, and a little later.
            while made.aside().is_empty() {
                assert!(child.try_wait().unwrap().is_none(), "seed {seed}");
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(Duration::from_millis(round % 3 * dice.below(60) as u64)).await;
        } else {
            tokio::time::sleep(whole.mul_f64(dice.below(100) as f64 / 100.0)).await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let looked = run(&made.daemon, &["recover"]);
        let plan = String::from_utf8_lossy(&looked.stdout).into_owned();
        match plan.contains("would be set aside") {
            true => uncut += 1,
            false => cut += 1,
        }
        if !looked.status.success() {
            said(&run(&made.daemon, &["recover", "--accept-rollback"]));
        }
        made.is_clean();
        let whole =
            made.aside().into_iter().filter(|path| path.extension().is_some_and(|name| name == "jsonl"));
        let aside: Vec<_> = whole.map(|path| lines(&path)).collect();
        assert!(!aside.is_empty(), "seed {seed}");
        for lines in aside {
            let [damaged, rest @ .., _note] = &lines[..] else { panic!("seed {seed}: {lines:?}") };
            assert_eq!((&damaged["seq"], &damaged["columns"]["event"]), (&json!(20), &json!("78")));
            assert_eq!(rest, behind, "seed {seed}");
        }
    }
    println!(
        "seed {seed}: killed before the cut {uncut} times, behind it {cut}; a whole one takes {whole:?}"
    );
    assert!(uncut > 0 && cut > 0, "seed {seed}");
}
