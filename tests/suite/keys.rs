//! `hsm-authd keys`: each key can be looked at, rotated while requests run, and retired.

use hsm_authd::hsm::messages::{Request, Response};
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::intruder::intrude;
use crate::load::Load;
use crate::modules::{Feature, passed_over};
use crate::operator::{KINDS, done, entries, keys, list, listed, refused, rotate};
use crate::submissions::Crowd;
use crate::token::TestToken;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_each_kind_is_rotated_while_requests_run() {
    let daemon = Daemon::start();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let mut load = Load::begin(&crowd).await;
    for kind in KINDS {
        let said = rotate(&daemon, kind);
        assert!(said.contains(&format!("key hsm-authd/{kind}/v2: made\nthe service uses it\n")), "{said}");
        load.progress().await;
        let new = listed(&daemon, &format!("hsm-authd/{kind}/v2")).unwrap();
        assert_eq!((&new["newest"], &new["version"]), (&json!(true), &json!(2)));
        assert!(new["since"].as_str().unwrap().ends_with('Z'), "the log tells since when");
        let old = listed(&daemon, &format!("hsm-authd/{kind}/v1")).unwrap();
        assert_eq!(old["newest"], false);
        assert_ne!(old["check_value"], new["check_value"]);
    }
    let report = load.end().await;
    assert_eq!(report.tally.unavailable, 0, "{report:?}");
    assert_eq!(entries(&daemon, "keys.rotated"), KINDS.map(|kind| format!("{kind} v2")));
    assert!(listed(&daemon, "hsm-authd/row/v2").unwrap()["rows"].as_u64().unwrap() > 0, "it is used");
    let database = rusqlite::Connection::open(daemon.database()).unwrap();
    let sealed: u16 =
        database.query_row("SELECT seal_key_version FROM log_head", [], |row| row.get(0)).unwrap();
    assert_eq!(sealed, 2, "the log's head too");
}

#[test]
fn rotations_at_once_wait_for_each_other() {
    let daemon = Daemon::start();
    let said: Vec<_> = std::thread::scope(|scope| {
        let begun: Vec<_> = (0..4).map(|_| scope.spawn(|| rotate(&daemon, "kek"))).collect();
        begun.into_iter().map(|rotation| rotation.join().unwrap()).collect()
    });
    for version in 2..=5 {
        let line = format!("key hsm-authd/kek/v{version}: made\nthe service uses it\n");
        assert_eq!(said.iter().filter(|said| said.contains(&line)).count(), 1, "{said:?}");
        assert!(listed(&daemon, &format!("hsm-authd/kek/v{version}")).is_some());
    }
}

#[test]
fn a_list_says_what_the_hsm_says_and_the_same_each_time() {
    let daemon = Daemon::start();
    let first = list(&daemon);
    assert_eq!(first, list(&daemon));
    let labels: Vec<_> = first.iter().map(|key| key["label"].as_str().unwrap().to_owned()).collect();
    assert_eq!(labels, KINDS.map(|kind| format!("hsm-authd/{kind}/v1")));
    for key in &first {
        assert_eq!(key["check_value"].as_str().unwrap().len(), 6, "{key}");
        let encryptions_max = (key["kind"] == "data").then_some(1_u64 << 32);
        assert_eq!(
            key["encryptions_max"].as_u64(),
            encryptions_max,
            "only what takes random nonces has a limit"
        );
        let secret = &key["objects"][0];
        for (name, value) in [
            ("CKA_TOKEN", "true"),
            ("CKA_PRIVATE", "true"),
            ("CKA_SENSITIVE", "true"),
            ("CKA_ALWAYS_SENSITIVE", "true"),
            ("CKA_EXTRACTABLE", "false"),
            ("CKA_NEVER_EXTRACTABLE", "true"),
            ("CKA_DERIVE", "false"),
        ] {
            assert_eq!(secret[name], value, "{key}");
        }
        if !passed_over(Feature::KeysMechanisms) {
            let only = secret["CKA_ALLOWED_MECHANISMS"].as_str().unwrap();
            assert!(only.starts_with("CKM_") && !only.contains(' '), "{key}");
        }
    }
    let text = done(&keys(&daemon, &["list"]));
    assert!(text.starts_with("KEY ") && text.contains("CKO_PRIVATE_KEY CKK_RSA: "), "{text}");
    // Other keys have other check values, and the same key keeps its own.
    let other = Daemon::start_with_own_keys();
    for (ours, theirs) in first.iter().zip(list(&other)) {
        assert_ne!(ours["check_value"], theirs["check_value"]);
    }
}

#[test]
fn what_is_in_use_is_not_retired() {
    let mut daemon = Daemon::start();
    let retire = |daemon: &Daemon, kind: &str, version: &str| keys(daemon, &["retire", kind, version]);
    rotate(&daemon, "attest");
    assert_eq!(daemon.stop().code(), Some(0));
    for kind in ["kek", "row", "data", "audit", "import"] {
        let said = refused(&retire(&daemon, kind, "1"));
        assert!(
            said.contains(&format!("is the newest of its kind: run `hsm-authd keys rotate {kind}`")),
            "{said}"
        );
    }
    assert!(refused(&retire(&daemon, "kek", "7")).contains("there is no key hsm-authd/kek/v7"));
    assert_eq!(entries(&daemon, "keys.retired"), [""; 0]);

    // Made while nobody runs, it is used by the next start.
    let said = rotate(&daemon, "row");
    assert!(said.contains("no service is running; the next start uses it"), "{said}");
    daemon.resume();
    let running = refused(&retire(&daemon, "attest", "1"));
    assert!(running.contains("another instance is running"), "{running}");
}

#[test]
fn what_a_retired_key_signed_still_verifies() {
    if passed_over(Feature::PrivatePublicKeys) {
        return;
    }
    let mut daemon = Daemon::start();
    let keys_of = |daemon: &Daemon| {
        let token = TestToken::of(daemon);
        let answered = token.custodian().call(Request::AttestationKeys);
        // The folder is the daemon's.
        std::mem::forget(token);
        match answered {
            Ok(Response::AttestationKeys(keys)) => keys,
            other => panic!("{:?}", other.err()),
        }
    };
    let before = keys_of(&daemon);
    for kind in ["attest", "audit", "import"] {
        rotate(&daemon, kind);
    }
    let check_value = |label: &str, daemon: &Daemon| listed(daemon, label).unwrap()["check_value"].clone();
    let known = check_value("hsm-authd/attest/v1", &daemon);
    assert_eq!(daemon.stop().code(), Some(0));
    for kind in ["attest", "audit", "import"] {
        done(&keys(&daemon, &["retire", kind, "1"]));
        assert!(listed(&daemon, &format!("hsm-authd/{kind}/v1")).is_none());
    }
    assert_eq!(entries(&daemon, "keys.retired"), ["attest v1", "audit v1", "import v1"]);
    assert_eq!(entries(&daemon, "service.stopped").len(), 4, "each leaves a clean end");
    let kept = listed(&daemon, "hsm-authd/attest/retired/v1").unwrap();
    assert_eq!((&kept["retired"], kept["objects"].as_array().unwrap().len()), (&json!(true), 1));
    assert_eq!(kept["objects"][0]["CKA_CLASS"], "CKO_PUBLIC_KEY");
    assert_eq!(check_value("hsm-authd/attest/retired/v1", &daemon), known);
    assert!(listed(&daemon, "hsm-authd/import/retired/v1").is_none(), "it verifies nothing");

    let after = keys_of(&daemon);
    assert_eq!((after.len(), &after[1]), (2, &before[0]), "the newest first");
    daemon.resume();
    assert_eq!(entries(&daemon, "service.started_unclean"), [""; 0]);
    // No version comes twice.
    assert!(rotate(&daemon, "attest").contains("hsm-authd/attest/v3"));
}

#[test]
fn what_was_left_of_a_retirement_is_removed_by_the_next_one() {
    if passed_over(Feature::PrivatePublicKeys) {
        return;
    }
    let mut daemon = Daemon::start();
    rotate(&daemon, "attest");
    daemon.stop();
    done(&keys(&daemon, &["retire", "attest", "1"]));
    // As if it had been interrupted between its last steps.
    let token = TestToken::of(&daemon);
    intrude(&token, "right hsm-authd/attest/v1");
    intrude(&token, "no-private hsm-authd/attest/v1");
    token.custodian();
    done(&keys(&daemon, &["retire", "attest", "1"]));
    intrude(&token, "count 11");
    token.custodian();
    std::mem::forget(token);
}

/// Interrupted earlier, it leaves the private half: that is seen, and goes.
#[test]
fn a_retirement_of_a_pair_is_completed_from_wherever_it_stopped() {
    if passed_over(Feature::PrivatePublicKeys) {
        return;
    }
    let mut daemon = Daemon::start();
    rotate(&daemon, "import");
    rotate(&daemon, "attest");
    daemon.stop();
    let token = TestToken::of(&daemon);
    intrude(&token, "mark hsm-authd/unfinished/import/v1");
    let left = listed(&daemon, "hsm-authd/import/v1").unwrap();
    assert_eq!((&left["unfinished"], left["objects"].as_array().unwrap().len()), (&json!(true), 2));
    assert!(keys(&daemon, &["retire", "import", "1"]).status.success());
    assert!(listed(&daemon, "hsm-authd/import/v1").is_none());
    intrude(&token, "count 12");

    assert!(keys(&daemon, &["retire", "attest", "1"]).status.success());
    intrude(&token, "right hsm-authd/attest/v1");
    let left = listed(&daemon, "hsm-authd/attest/v1").unwrap();
    assert_eq!((&left["unfinished"], left["objects"].as_array().unwrap().len()), (&json!(true), 2));
    assert!(keys(&daemon, &["retire", "attest", "1"]).status.success());
    assert!(listed(&daemon, "hsm-authd/attest/v1").is_none());
    std::mem::forget(token);
}

/// A public object needs no PIN: it must not become a key that attestations verify with.
#[test]
fn a_retired_key_that_needed_no_pin_is_none() {
    let token = TestToken::new();
    intrude(&token, "without the PIN: hsm-authd/attest/retired/v1");
    intrude(&token, "right hsm-authd/attest/v2");
    let Ok(Response::AttestationKeys(keys)) = token.custodian().call(Request::AttestationKeys) else {
        panic!()
    };
    assert_eq!(keys.len(), 2, "both versions of the pair, and nothing else");
}

/// A rotation that is interrupted leaves nothing that a custodian would start on, or refuse to start for.
#[test]
fn an_interrupted_rotation_stops_nobody() {
    for kind in KINDS {
        let token = TestToken::new();
        intrude(&token, &format!("half hsm-authd/unfinished/{kind}/v2"));
        intrude(&token, &format!("half hsm-authd/{kind}/v2"));
        let mut custodian = token.custodian();
        assert!(custodian.call(Request::LoadKeys).is_ok());
        assert!(token.set_up(false).status.success());
        intrude(&token, "count 10");
    }
}

#[test]
fn a_kind_that_there_is_not_is_named() {
    let daemon = Daemon::start();
    let output = keys(&daemon, &["rotate", "seal"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("must be one of kek, row, data, attest, audit, import"), "{said}");
}

/// The socket is for whoever may read the database.
#[test]
fn nobody_else_reaches_the_control_socket() {
    use std::os::unix::fs::PermissionsExt;
    let daemon = Daemon::start();
    let socket = daemon.database().with_added_extension("control");
    assert_eq!(std::fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o600);
    let _: Vec<Value> = list(&daemon);
}
