//! `hsm-authd backup`: while codes are verified, interrupted, without room, and onto what is there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use data_encoding::{BASE64, HEXLOWER};
use hsm_authd::store::Store;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::daemon::{Daemon, enrol_hotp};
use crate::load::Load;
use crate::submissions::Crowd;
use crate::token::BINARY;

fn command(daemon: &Daemon, to: &Path) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["backup", "--config"]).arg(daemon.dir().join("hsm-authd.toml")).arg("--to").arg(to);
    command.stdin(Stdio::null());
    command
}

fn backup(daemon: &Daemon, to: &Path) -> Output {
    command(daemon, to).output().unwrap()
}

fn manifest_path(copy: &Path) -> PathBuf {
    copy.with_added_extension("manifest.json")
}

fn manifest(copy: &Path) -> Value {
    serde_json::from_slice(&fs::read(manifest_path(copy)).unwrap()).unwrap()
}

fn error(output: &Output) -> String {
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

/// What there is in a folder, but for files that are of the database itself.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_whole_and_says_what_is_in_it_while_codes_are_verified() {
    let daemon = Daemon::start();
    // Enough pages that a copy takes a moment.
    let padding = 6_000;
    let crowd = Crowd::of(&daemon, "bank-a").await;
    {
        let connection = Connection::open(daemon.database()).unwrap();
        connection.busy_timeout(Duration::from_secs(30)).unwrap();
        connection.execute_batch("CREATE TABLE padding (number INTEGER PRIMARY KEY, bytes BLOB)").unwrap();
        let sql = format!(
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < {padding})
             INSERT INTO padding SELECT x, zeroblob(3000) FROM n"
        );
        connection.execute_batch(&sql).unwrap();
    }
    let mut load = Load::begin(&crowd).await;
    let folder = daemon.dir().join("copies");
    fs::create_dir(&folder).unwrap();
    let begun = Instant::now();
    for number in 0..3 {
        let to = folder.join(format!("copy-{number}"));
        let mut child = command(&daemon, &to).stdout(Stdio::null()).spawn().unwrap();
        load.progress().await;
        let status = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
        assert!(status.success());
    }
    let took = begun.elapsed();
    let report = load.end().await;
    assert_eq!(report.tally.unavailable, 0, "{report:?}");
    println!("3 copies in {took:?}; slowest of {} codes {:?}", report.tally.yes, report.slowest);
    assert!(report.slowest < Duration::from_secs(2), "{report:?}");

    assert_eq!(names(&folder).len(), 6, "{:?}", names(&folder));
    let mut sizes = Vec::new();
    for number in 0..3 {
        let copy = folder.join(format!("copy-{number}"));
        assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
        let said = manifest(&copy);
        let bytes = fs::read(&copy).unwrap();
        assert_eq!(said["bytes"], bytes.len());
        assert_eq!(said["sha256"], HEXLOWER.encode(&Sha256::digest(&bytes)));
        assert_eq!(
            (&said["format"], &said["schema"]),
            (&"hsm-authd/backup/v1".into(), &hsm_authd::store::SCHEMA.into())
        );
        for kind in ["row", "kek"] {
            let key = &said["keys"][kind][0];
            assert_eq!((&key["version"], key["kcv"].as_str().unwrap().len()), (&1.into(), 6), "{key}");
        }
        assert_eq!(said["keys"]["data"], serde_json::json!([]));
        let connection = Connection::open_with_flags(&copy, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let sound: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(sound, "ok");
        let count: i64 =
            connection.query_row("SELECT count(*) FROM credential", [], |row| row.get(0)).unwrap();
        assert_eq!(said["secrets"], serde_json::json!({ "wrapped": count, "resident": 0 }));
        drop(connection);
        let connection = Connection::open(&copy).unwrap();
        connection.execute_batch("DROP TABLE padding").unwrap();
        drop(connection);
        // Its log, read again from the first entry on, is the one that the manifest names.
        let store = Store::open(&copy).unwrap();
        let (head, _) = store.whole_log(Vec::new()).await.unwrap();
        assert_eq!(said["log"]["size"], head.size);
        assert_eq!(said["log"]["root"], BASE64.encode(&head.root.0));
        assert_eq!(said["log"]["sum"], BASE64.encode(head.sum.bytes()));
        assert_eq!(said["log"]["origin"], head.origin.as_str());
        sizes.push(head.size);
    }
    assert!(sizes.is_sorted_by(|a, b| a < b), "each has more of the log: {sizes:?}");
}

#[tokio::test]
async fn what_a_stopped_or_killed_service_left_is_copied_too() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    enrol_hotp(&bank, "acct-1").await;
    for killed in [false, true] {
        match killed {
            true => {
                daemon.resume();
                enrol_hotp(&daemon.connect("bank-a").await, "acct-2").await;
                daemon.kill();
            }
            false => assert!(daemon.stop().success()),
        }
        let to = daemon.dir().join(format!("copy-{killed}"));
        let output = backup(&daemon, &to);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(manifest(&to)["secrets"]["wrapped"], 1 + u64::from(killed));
        daemon.resume();
        daemon.stop();
    }
}

#[tokio::test]
async fn what_is_there_is_never_written_over() {
    let daemon = Daemon::start();
    let to = daemon.dir().join("copy");
    fs::write(&to, "precious").unwrap();
    let said = error(&backup(&daemon, &to));
    assert!(said.contains("exists; nothing was written"), "{said}");
    assert_eq!(fs::read_to_string(&to).unwrap(), "precious");
    assert!(!manifest_path(&to).exists());

    // Nor is anything made of what is no database of ours.
    let config = daemon.dir().join("hsm-authd.toml");
    let text = fs::read_to_string(&config).unwrap();
    let other = daemon.database().with_file_name("other.db");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    fs::write(&config, text.replace("hsm-authd.db", "other.db")).unwrap();
    let to = daemon.dir().join("copy-of-other");
    let said = error(&backup(&daemon, &to));
    assert!(said.contains("no hsm-authd database"), "{said}");
    fs::write(&config, text.replace("hsm-authd.db", "nowhere.db")).unwrap();
    let said = error(&backup(&daemon, &to));
    assert!(said.contains("nowhere.db"), "{said}");
    let left: Vec<_> = names(&daemon.dir()).into_iter().filter(|name| name.contains("copy-of")).collect();
    assert_eq!(left, [""; 0]);
    assert!(!daemon.database().with_file_name("nowhere.db").exists());
}

#[tokio::test]
async fn an_interrupted_copy_is_none_and_the_next_one_succeeds() {
    let daemon = Daemon::start();
    Connection::open(daemon.database())
        .unwrap()
        .execute_batch(
            "CREATE TABLE padding (bytes BLOB);
             WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 8000)
             INSERT INTO padding SELECT zeroblob(3000) FROM n",
        )
        .unwrap();
    let to = daemon.dir().join("copy");
    let part = to.with_added_extension("part");
    let mut interrupted = 0;
    for delay_ms in 0..12 {
        let mut child = command(&daemon, &to).stdout(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        while !part.exists() && child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(30));
        }
        tokio::time::sleep(Duration::from_millis(delay_ms * 5)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        if !to.exists() {
            interrupted += 1;
        } else {
            // It was done before: then it is whole.
            let bytes = fs::read(&to).unwrap();
            assert_eq!(manifest(&to)["sha256"], HEXLOWER.encode(&Sha256::digest(&bytes)));
            fs::remove_file(&to).unwrap();
        }
    }
    assert!(interrupted > 0);
    assert!(backup(&daemon, &to).status.success());
    let left: Vec<_> = names(&daemon.dir()).into_iter().filter(|name| name.starts_with("copy")).collect();
    assert_eq!(left, ["copy", "copy.manifest.json"]);
}

#[tokio::test]
async fn without_room_there_is_one_clear_line_and_nothing_is_left() {
    let daemon = Daemon::start();
    let to = daemon.dir().join("copy");
    // A limit on the length of files stands in for a disk that is full.
    let output = Command::new("sh")
        .args(["-c", "ulimit -f 64; trap '' XFSZ; exec \"$@\"", "sh", BINARY, "backup", "--config"])
        .arg(daemon.dir().join("hsm-authd.toml"))
        .arg("--to")
        .arg(&to)
        .output()
        .unwrap();
    let said = error(&output);
    assert!(said.contains("cannot write") && said.contains("copy.part"), "{said}");
    let left: Vec<_> = names(&daemon.dir()).into_iter().filter(|name| name.starts_with("copy")).collect();
    assert_eq!(left, [""; 0]);
}
