//! `hsm-authd keys` and `init` beside others that change the same keys, and beside rows that cannot be renewed.

use std::fs::{self, File, TryLockError};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use hsm_authd::domain::otp::Algorithm;
use hsm_authd::domain::signer::PublicKey;
use hsm_authd::domain::wrapped_seed::WrappedSeed;
use hsm_authd::hsm::messages::{Custody, Request, Response};

use crate::bank::{delete, done as ok};
use crate::daemon::{Daemon, enrol_hotp, rfc_code, verify};
use crate::intruder::intrude;
use crate::operator::{begin_rewrap, done, entries, list, refused, rotate, rows};
use crate::processes::eventually;
use crate::scratch::Scratch;
use crate::token::{BINARY, Custodian, TestToken};
use crate::wrapped_seeds::{OAEP_SHA1, encrypt, padded};

/// A lock of another command's.
fn held(daemon: &Daemon, name: &str) -> File {
    let path = daemon.database().with_added_extension(name);
    let file = File::options().create(true).append(true).open(path).unwrap();
    file.lock().unwrap();
    file
}

fn begin(daemon: &Daemon, arguments: &[&str]) -> Child {
    let mut command = Command::new(BINARY);
    command.args(arguments).arg("--config").arg(daemon.dir().join("hsm-authd.toml"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until a command has opened the file of a lock: it has it, or waits for it.
async fn await_at(child: &Child, daemon: &Daemon, name: &str) {
    let path = daemon.database().with_added_extension(name);
    let open = || -> Vec<PathBuf> {
        let files = fs::read_dir(format!("/proc/{}/fd", child.id()));
        files.into_iter().flatten().flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
    };
    eventually("it is at the lock", async || open().contains(&path).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_changes_the_keys_waits_for_another_and_gives_up_after_a_while() {
    let mut daemon = Daemon::start();
    rotate(&daemon, "attest");
    daemon.stop();
    let before = list(&daemon);
    let all: [&[&str]; 3] = [&["keys", "rotate", "kek"], &["keys", "retire", "attest", "1"], &["init"]];

    let lock = held(&daemon, "keys");
    let begun = all.map(|arguments| begin(&daemon, arguments));
    for child in &begun {
        await_at(child, &daemon, "keys").await;
    }
    assert_eq!(list(&daemon), before, "looking is allowed");
    for child in begun {
        let said = refused(&child.wait_with_output().unwrap());
        assert!(said.contains("another command changes the system keys just now"), "{said}");
    }
    assert_eq!(list(&daemon), before, "nothing was changed");
    assert_eq!(entries(&daemon, "keys.retired"), [""; 0]);

    let waiting = begin(&daemon, all[0]);
    await_at(&waiting, &daemon, "keys").await;
    drop(lock);
    assert!(done(&waiting.wait_with_output().unwrap()).contains("key hsm-authd/kek/v2: made"));
    for arguments in &all[1..] {
        done(&begin(&daemon, arguments).wait_with_output().unwrap());
    }
}

/// A service that comes up amidst it could seal rows with the key that goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_service_starts_during_a_retirement() {
    let mut daemon = Daemon::start();
    rotate(&daemon, "attest");
    daemon.stop();
    let lock = held(&daemon, "keys");
    let retiring = begin(&daemon, &["keys", "retire", "attest", "1"]);
    await_at(&retiring, &daemon, "keys").await;
    let instance = File::open(daemon.database().with_added_extension("instance")).unwrap();
    assert!(matches!(instance.try_lock(), Err(TryLockError::WouldBlock)), "it holds what a start needs");
    drop(lock);
    done(&retiring.wait_with_output().unwrap());
    instance.try_lock().unwrap();
}

/// A row whose secret no custodian can unwrap keeps no other from its newer key, and the operator is told which it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_cannot_be_renewed_stops_no_rewrap_and_is_named() {
    let mut daemon = Daemon::start_with(&["--custodians", "2", "--custody", "wrapped"], &[]);
    let lost = enrol_hotp(&daemon.connect("bank-a").await, "lost").await;
    daemon.stop();
    rotate(&daemon, "kek");
    let token = std::mem::ManuallyDrop::new(TestToken::of(&daemon));
    intrude(&token, "remove hsm-authd/kek/v1");
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    let mut ids = Vec::new();
    for number in 0..40 {
        ids.push(enrol_hotp(&bank, &format!("acct-{number}")).await);
    }
    rotate(&daemon, "kek");
    let custodians = daemon.pids("custodian");
    let said = refused(&begin_rewrap(&daemon).wait_with_output().unwrap());
    assert!(said.contains("(1 rows cannot be renewed)"), "{said}");
    assert_eq!(rows(&daemon, "kek", 2), 0, "all others are renewed");
    assert_eq!(rows(&daemon, "kek", 3), 40);
    assert!(
        entries(&daemon, "keys.rewrapped").last().unwrap().ends_with("40 rows; 1 rows cannot be renewed")
    );
    let log = daemon.log();
    let named: Vec<_> = log.lines().filter(|line| line.contains("a row cannot be renewed")).collect();
    assert!(named.len() == 1 && named[0].contains(&lost), "{named:?}");
    assert!(named[0].contains("the token has no key hsm-authd/kek/v1"), "{named:?}");
    assert_eq!(daemon.pids("custodian"), custodians, "none was given up");
    for id in &ids {
        ok(&verify(&bank, id, &rfc_code(0)).await);
    }
    // Once it is gone, everything is done.
    ok(&delete(&bank, &lost).await);
    done(&begin_rewrap(&daemon).wait_with_output().unwrap());
}

fn import_key(custodian: &mut Custodian) -> PublicKey {
    match custodian.call(Request::ImportKey) {
        Ok(Response::ImportKey(key)) => key,
        other => panic!("{:?}", other.err()),
    }
}

fn imported(custodian: &mut Custodian, seed: Vec<u8>) -> bool {
    let seed = WrappedSeed::try_from(seed).unwrap();
    let request = Request::ImportWrapped { algorithm: Algorithm::Sha1, seed, custody: Custody::Wrapped };
    match custodian.call(request) {
        Ok(Response::Imported(stored)) => stored.is_some(),
        other => panic!("{:?}", other.err()),
    }
}

/// Whoever was given the newer key by another custodian is not told that the seed is wrong.
#[test]
fn a_custodian_that_has_not_loaded_a_newer_import_key_looks_for_it() {
    let token = TestToken::new();
    let mut late = token.custodian();
    let first = import_key(&mut late);
    intrude(&token, "right hsm-authd/import/v2");
    let newer = import_key(&mut token.custodian());
    assert_ne!(first, newer);
    assert_eq!(import_key(&mut late), first, "it has not seen it");

    let scratch = Scratch::new();
    let file = scratch.write("key.pem", &newer.to_pem().unwrap());
    let seed = encrypt(&file, &padded(b"12345678901234567890"), &OAEP_SHA1);
    assert!(imported(&mut late, seed), "it looks for the key");
    assert_eq!(import_key(&mut late), newer);
}
