//! `hsm-authd restore`: copies that are whole and have the token's keys, and those that are or have not.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::Connection as Database;
use serde_json::{Value, json};

use crate::bank::{act, credential, done};
use crate::daemon::{Daemon, enrol, enrol_hotp, rfc_code, verify};
use crate::recovering::{anchor, complaint, refusal, run, said, snapshot};

fn copy(daemon: &Daemon, name: &str) -> PathBuf {
    let to = daemon.dir().join(name);
    said(&run(daemon, &["backup", "--to", to.to_str().unwrap()]));
    to
}

fn restore(daemon: &Daemon, from: &Path) -> std::process::Output {
    run(daemon, &["restore", "--from", from.to_str().unwrap()])
}

/// What there is of the database, and of what was there before.
fn files(daemon: &Daemon) -> Vec<String> {
    let names = fs::read_dir(daemon.store()).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.starts_with("hsm-authd.db"));
    names.sort();
    names
}

fn aside(daemon: &Daemon) -> Vec<String> {
    files(daemon).into_iter().filter(|name| name.contains(".before-restore-")).collect()
}

#[tokio::test]
async fn the_newest_copy_needs_nothing_and_an_older_one_a_recovery() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let totp = enrol(&bank, &json!({ "type": "totp", "account": "acct-2" })).await;
    let older = copy(&daemon, "older");
    done(&verify(&bank, &id, &rfc_code(0)).await);
    daemon.stop();
    anchor(&daemon);
    let newest = copy(&daemon, "newest");
    let before = snapshot(&daemon);

    // The disk is lost: there is nothing.
    fs::remove_file(daemon.database()).unwrap();
    let told = said(&restore(&daemon, &newest));
    assert!(told.contains("it has all that the token knows of"), "{told}");
    assert!(told.contains("next: hsm-authd serve --config "), "{told}");
    assert_eq!(aside(&daemon), [""; 0]);
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    assert_eq!(verify(&bank, &id, &rfc_code(0)).await.status, 403);
    done(&verify(&bank, &id, &rfc_code(1)).await);
    daemon.stop();
    anchor(&daemon);

    let there = snapshot(&daemon);
    assert_ne!(there, before);
    let told = said(&restore(&daemon, &older));
    assert!(told.contains("the database was turned back: its log has"), "{told}");
    assert!(told.contains("next: hsm-authd recover --accept-rollback --config "), "{told}");
    let kept = aside(&daemon);
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(fs::read(daemon.store().join(&kept[0])).unwrap(), there, "what was there is kept");
    assert!(!files(&daemon).iter().any(|name| name.contains("restoring")), "{:?}", files(&daemon));
    assert!(refusal(&daemon).contains("the database was turned back"));
    said(&run(&daemon, &["recover", "--accept-rollback"]));
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    assert_eq!(credential(&bank, &id).await["resumable"], json!(false));
    done(&act(&bank, &totp, "resume").await);
}

#[tokio::test]
async fn what_a_killed_service_left_beside_the_database_stays_with_it() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let older = copy(&daemon, "older");
    for counter in 0..5 {
        done(&verify(&bank, &id, &rfc_code(counter)).await);
    }
    daemon.kill();
    let wal = fs::read(daemon.store().join("hsm-authd.db-wal")).unwrap();
    assert!(!wal.is_empty());
    said(&restore(&daemon, &older));
    assert!(files(&daemon).contains(&"hsm-authd.db".to_owned()));
    assert!(!files(&daemon).contains(&"hsm-authd.db-wal".to_owned()), "{:?}", files(&daemon));
    let kept = aside(&daemon);
    let counter = |name: &str| -> i64 {
        let database = Database::open(daemon.store().join(name)).unwrap();
        database.query_row("SELECT next_factor FROM credential_state", [], |row| row.get(0)).unwrap()
    };
    assert_eq!(counter("hsm-authd.db"), 0);
    assert_eq!(counter(&kept[0]), 5, "with its WAL: {kept:?}");
}

#[tokio::test]
async fn what_is_not_whole_or_not_this_tokens_is_refused_and_changes_nothing() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let good = copy(&daemon, "good");
    let daemon = tokio::task::spawn_blocking(move || {
        let line = complaint(&restore(&daemon, &good));
        assert!(line.contains("another instance is running"), "{line}");
        daemon
    });
    let mut daemon = daemon.await.unwrap();
    let good = daemon.dir().join("good");
    daemon.stop();
    let there = snapshot(&daemon);
    let names = files(&daemon);
    let manifest_path = good.with_added_extension("manifest.json");
    let manifest = fs::read(&manifest_path).unwrap();
    let bytes = fs::read(&good).unwrap();
    let refuse = |what: &str, expected: &str| {
        let line = complaint(&restore(&daemon, &good));
        assert!(line.contains(expected), "{what}: {line}");
        assert_eq!(snapshot(&daemon), there, "{what}");
        assert_eq!(files(&daemon), names, "{what}");
        fs::write(&manifest_path, &manifest).unwrap();
        fs::write(&good, &bytes).unwrap();
    };
    let said_with = |change: &dyn Fn(&mut Value)| {
        let mut said: Value = serde_json::from_slice(&manifest).unwrap();
        change(&mut said);
        fs::write(&manifest_path, said.to_string()).unwrap();
    };
    let digest = || {
        use sha2::Digest;
        data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(fs::read(&good).unwrap()))
    };
    // With a manifest that fits: whoever can change the one can change the other.
    let changed = |sql: &str| {
        Database::open(&good).unwrap().execute_batch(sql).unwrap();
        let (bytes, sha256) = (fs::metadata(&good).unwrap().len(), digest());
        said_with(&|said| (said["bytes"], said["sha256"]) = (json!(bytes), json!(sha256)));
    };

    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(&good, flipped).unwrap();
    refuse("a flipped bit", "is not the file of its manifest");
    fs::write(&good, &bytes[..bytes.len() - 1]).unwrap();
    refuse("cut", "is not the file of its manifest");
    fs::remove_file(&manifest_path).unwrap();
    refuse("no manifest", "manifest.json");
    fs::write(&manifest_path, "{}").unwrap();
    refuse("no manifest of ours", "is no manifest");
    said_with(&|said| said["format"] = json!("hsm-authd/backup/v9"));
    refuse("another format", "another format");
    said_with(&|said| said["log"]["size"] = json!(99));
    refuse("another log", "the log is not as its manifest says");
    said_with(&|said| said["keys"]["row"] = json!([{ "version": 2 }]));
    refuse("other keys", "row keys is not as");
    changed("PRAGMA user_version = 99");
    refuse("a newer schema", "schema version 99");
    changed("UPDATE credential_state SET next_factor = 0, version = 9");
    refuse("an edited row", "rows are not what was sealed");
    changed("DELETE FROM credential_state");
    refuse("a row less", "their sum is wrong");
    changed("UPDATE audit SET unix_ms = unix_ms + 1 WHERE seq = 1");
    refuse("an edited entry", "entry 1 of the log is not what was written there");
    let note = "INSERT INTO checkpoint (size, unix_ms, note) VALUES (1, 1, 'no note')";
    let words = |said: &mut Value| said["checkpoint"] = json!("no note");
    Database::open(&good).unwrap().execute_batch(&format!("DELETE FROM checkpoint; {note}")).unwrap();
    let (length, sha256) = (fs::metadata(&good).unwrap().len(), digest());
    said_with(&|said| {
        (said["bytes"], said["sha256"]) = (json!(length), json!(sha256));
        words(said);
    });
    refuse("no checkpoint", "checkpoint is none");

    let mut other = Daemon::start_with_own_keys();
    enrol_hotp(&other.connect("bank-a").await, "acct-1").await;
    other.stop();
    let its = snapshot(&other);
    let line = complaint(&restore(&other, &good));
    assert!(line.contains("the token's key hsm-authd/row/v1 is another one than that of the copy"), "{line}");
    assert_eq!(snapshot(&other), its);

    // Nothing stood in the way of it; but it was made while the service ran, which has ended since.
    assert!(said(&restore(&daemon, &good)).contains("the database was turned back: its log has"));
    let ended = daemon.store().join(&aside(&daemon)[0]);
    fs::rename(ended, daemon.database()).unwrap();
    let newest = copy(&daemon, "newest");
    assert!(said(&restore(&daemon, &newest)).contains("it has all that the token knows of"));
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    done(&verify(&bank, &id, &rfc_code(0)).await);
}
