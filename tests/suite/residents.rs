//! Secrets that are objects in the HSM: none is left behind, none is used that is not whole, and what rows name is there.

use std::fs;
use std::mem::ManuallyDrop;
use std::time::Duration;

use hsm_authd::domain::credential::ObjectId;
use hsm_authd::hsm::messages::{Request, Response};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::task::JoinSet;

use crate::bank::{credential, delete, done, refused};
use crate::client::Connection;
use crate::commit_errors::start_on;
use crate::custodians::ready;
use crate::daemon::{Daemon, SEED_HEX, enrol, enrol_hotp, rfc_code, verify};
use crate::failing_disk::FailingDisk;
use crate::processes::eventually;
use crate::rolling_terminal::{Terminal, activate, enrol_pending, quick_key, rebind};
use crate::scrape::Scrape;
use crate::submissions::Dice;
use crate::token::{Custodian, TestToken};

const RESIDENT: [&str; 4] = ["--custodians", "2", "--custody", "resident"];
const GAUGE: &str = "hsm_authd_resident_secrets";

/// A custodian beside the daemon's, with whose token it does what a test asks for.
fn beside(daemon: &Daemon) -> Custodian {
    // The folder stays the daemon's.
    ManuallyDrop::new(TestToken::of(daemon)).custodian()
}

/// The ids of the objects there are, and how many have none.
fn objects(daemon: &Daemon) -> (Vec<ObjectId>, u32) {
    match beside(daemon).call(Request::Residents { after: None }) {
        Ok(Response::Residents { ids, nameless }) => (ids, nameless),
        _ => panic!("no list"),
    }
}

/// Tests of what a secret is used for, and of what becomes of it when something dies; they hold in either custody.
const IN_BOTH: [&str; 14] = [
    "vectors::rfc_4226_appendix_d",
    "vectors::rfc_6238_appendix_b",
    "vectors::an_exported_seed_is_the_one_that_verifies",
    "once_only::a_killed_daemon_accepts_no_hotp_code_twice",
    "credentials::what_is_enrolled_is_what_is_read",
    "custodians::all_custodians_but_one_or_all_killed_at_once_cost_nobody_an_error",
    "custodians::without_its_token_it_is_unavailable_and_with_it_again_it_recovers",
    "idempotency::two_at_once_are_one",
    "logs::one_line_a_request_and_no_secret",
    "ocra::known_codes_verify_once",
    "rolling::rotations_hand_out_until_they_are_acknowledged",
    "multi_terminal::right_codes_approve_by_every_rule_at_once_and_one_by_one",
    "authorizations::by_sms_both_ways_and_a_signature",
    "presented::a_payer_decides_on_what_a_merchant_asks_for_and_both_read_the_result",
];

/// All of them do with `make test-resident`; these do always.
#[test]
fn what_holds_for_wrapped_secrets_holds_for_those_in_the_hsm() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .arg("--exact")
        .args(IN_BOTH)
        .args(["--test-threads", "2"])
        .env("HSM_AUTHD_TEST_CUSTODY", "resident")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains(&format!(" {} passed", IN_BOTH.len())), "{said}");
}

fn gauge(daemon: &Daemon) -> f64 {
    Scrape::of(daemon).value(GAUGE, &[])
}

/// Waits until there are so many: what failed is removed beside the answer.
async fn await_objects(daemon: &Daemon, count: usize) {
    eventually("so many objects", async || {
        (gauge(daemon) == count as f64 && objects(daemon).0.len() == count).then_some(())
    })
    .await;
}

async fn enrolment(bank: &Connection, account: &str) -> Option<String> {
    let body = json!({ "type": "hotp", "account": account, "seed_hex": SEED_HEX });
    let answer = bank.post("/v1/credentials", &body).await.ok()?;
    (answer.status == 201).then(|| answer.json().unwrap()["id"].as_str().unwrap().to_owned())
}

async fn right(bank: &Connection, id: &str, counter: u64) {
    done(&verify(bank, id, &rfc_code(counter)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_during_enrolments_leaves_no_orphan_and_every_enrolled_one_verifies() {
    const ROUNDS: u64 = 4;
    const ENROLMENTS: usize = 24;
    let mut daemon = Daemon::start_with(&RESIDENT, &[]);
    let (mut dice, seed) = Dice::new();
    println!("HSM_AUTHD_TEST_SEED={seed}");
    let mut enrolled: Vec<String> = Vec::new();
    for round in 0..ROUNDS {
        let mut tasks = JoinSet::new();
        for number in 0..ENROLMENTS {
            let bank = daemon.connect("bank-a").await;
            let account = format!("acct-{round}-{number}");
            // One after the other, so that whatever dies finds some of them under way.
            let wait = Duration::from_millis(8 * number as u64);
            tasks.spawn(async move {
                tokio::time::sleep(wait).await;
                enrolment(&bank, &account).await
            });
        }
        // A custodian dies amidst them twice, then all of them at once, with the front.
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(20 + dice.below(40) as u64)).await;
            if let Some(pid) = daemon.pids("custodian").first() {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
        }
        tokio::time::sleep(Duration::from_millis(dice.below(80) as u64)).await;
        daemon.kill();
        while let Some(told) = tasks.join_next().await {
            enrolled.extend(told.unwrap());
        }
        daemon.resume();
        let bank = daemon.connect("bank-a").await;
        let (ids, nameless) = objects(&daemon);
        let mut credentials = Vec::new();
        let mut after = String::new();
        loop {
            let page = done(&bank.get(&format!("/v1/credentials?limit=100{after}")).await.unwrap());
            credentials.extend(page["items"].as_array().unwrap().clone());
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
        assert_eq!((ids.len(), nameless), (credentials.len(), 0), "an object each, and none besides");
        assert_eq!(gauge(&daemon), ids.len() as f64);
        for id in &enrolled {
            assert!(credentials.iter().any(|credential| credential["id"] == json!(id)), "{id} was told");
        }
        // Also those of which nobody was told.
        for credential in &credentials {
            let counter = credential["counter"].as_u64().unwrap();
            right(&bank, credential["id"].as_str().unwrap(), counter).await;
        }
        assert!(!daemon.log().contains("is not in the HSM"), "{}", daemon.log());
    }
    assert!(enrolled.len() > ENROLMENTS, "{} enrolments came about", enrolled.len());
}

#[tokio::test]
async fn at_the_capacity_an_enrolment_is_503_and_a_deletion_makes_room() {
    let mut daemon = Daemon::start_with(&[&RESIDENT[..], &["--resident-capacity", "3"]].concat(), &[]);
    let bank = daemon.connect("bank-a").await;
    let mut ids = Vec::new();
    for account in ["acct-1", "acct-2", "acct-3"] {
        ids.push(enrol_hotp(&bank, account).await);
    }
    let body = json!({ "type": "totp", "account": "acct-4" });
    let no_room = async |bank: &Connection| {
        refused(&bank.post("/v1/credentials", &body).await.unwrap(), 503, "unavailable");
    };
    no_room(&bank).await;
    assert!(daemon.log().contains("3 secrets are in the HSM: raise hsm.resident_capacity"));
    assert_eq!((gauge(&daemon), objects(&daemon).0.len()), (3.0, 3));
    assert_eq!(delete(&bank, &ids[0]).await.status, 200);
    assert_eq!((gauge(&daemon), objects(&daemon).0.len()), (2.0, 2));
    enrol_hotp(&bank, "acct-4").await;
    no_room(&bank).await;

    // A start counts what is there; wrapped ones need no room.
    assert!(daemon.stop().success());
    daemon.resume();
    no_room(&daemon.connect("bank-a").await).await;
    assert!(daemon.stop().success());
    daemon.resume_with(&["--custody", "wrapped"]);
    let bank = daemon.connect("bank-a").await;
    enrol_hotp(&bank, "acct-5").await;
    assert_eq!((gauge(&daemon), objects(&daemon).0.len()), (3.0, 3));
}

#[tokio::test]
async fn at_the_capacity_an_activation_is_503_and_takes_no_room() {
    let daemon = Daemon::start_with(&[&RESIDENT[..], &["--resident-capacity", "2"]].concat(), &[]);
    let bank = daemon.connect("bank-a").await;
    let hotp = enrol_hotp(&bank, "acct-1").await;
    let (rolling, salt) = enrol_pending(&bank, "acct-2").await;
    let key = quick_key("1234", &salt);
    for _ in 0..2 {
        refused(&activate(&bank, &rolling, &key).await, 503, "unavailable");
        assert_eq!((gauge(&daemon), objects(&daemon).0.len()), (2.0, 2));
    }
    assert_eq!(credential(&bank, &rolling).await["state"], "pending");
    assert_eq!(delete(&bank, &hotp).await.status, 200);
    done(&activate(&bank, &rolling, &key).await);
    assert_eq!((gauge(&daemon), objects(&daemon).0.len()), (2.0, 2));
}

#[tokio::test]
async fn enrolments_that_fail_without_the_hsm_take_no_room() {
    let daemon = Daemon::start_with(&[&RESIDENT[..], &["--resident-capacity", "3"]].concat(), &[]);
    let bank = daemon.connect("bank-a").await;
    let (place, away) = (daemon.dir().join("token"), daemon.dir().join("token.away"));
    fs::rename(&place, &away).unwrap();
    for pid in daemon.pids("custodian") {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    eventually("it is not ready", async || (ready(&daemon) == 503).then_some(())).await;
    for account in ["acct-1", "acct-2", "acct-3"] {
        assert_eq!(enrolment(&bank, account).await, None);
    }
    fs::rename(&away, &place).unwrap();
    eventually("it recovers", async || (ready(&daemon) == 200).then_some(())).await;
    await_objects(&daemon, 0).await;
    for account in ["acct-1", "acct-2", "acct-3"] {
        enrol_hotp(&bank, account).await;
    }
    assert_eq!(enrolment(&bank, "acct-4").await, None, "more is no room for");
    assert_eq!((gauge(&daemon), objects(&daemon).0.len()), (3.0, 3));
}

#[tokio::test]
async fn both_kinds_work_side_by_side_whatever_is_configured() {
    let mut daemon = Daemon::start_with(&["--custodians", "2", "--custody", "wrapped"], &[]);
    let bank = daemon.connect("bank-a").await;
    let wrapped = enrol_hotp(&bank, "acct-1").await;
    assert_eq!(objects(&daemon), (Vec::new(), 0));
    for (round, custody) in [(0, "resident"), (1, "wrapped"), (2, "resident")] {
        assert!(daemon.stop().success());
        daemon.resume_with(&["--custody", custody]);
        let bank = daemon.connect("bank-a").await;
        let id = enrol_hotp(&bank, &format!("acct-of-{custody}")).await;
        right(&bank, &id, 0).await;
        right(&bank, &wrapped, round).await;
        assert_eq!(objects(&daemon).0.len(), if round == 2 { 2 } else { 1 });
    }
    // Nothing else tells them apart.
    let bank = daemon.connect("bank-a").await;
    assert!(credential(&bank, &wrapped).await.get("custody").is_none());
}

#[tokio::test]
async fn a_secret_that_is_not_there_is_a_503_of_its_own_credential_and_disturbs_nothing() {
    let mut daemon = Daemon::start_with(&RESIDENT, &[]);
    let bank = daemon.connect("bank-a").await;
    let lost = enrol_hotp(&bank, "acct-1").await;
    right(&bank, &lost, 0).await;
    let (ids, _) = objects(&daemon);
    let other = enrol_hotp(&bank, "acct-2").await;
    let custodians = daemon.pids("custodian");
    let destroyed = beside(&daemon).call(Request::DestroyResidents { ids, nameless: false });
    assert!(matches!(destroyed, Ok(Response::Destroyed { objects: 1 })));
    for round in 0..3 {
        refused(&verify(&bank, &lost, &rfc_code(1)).await, 503, "unavailable");
        right(&bank, &other, round).await;
    }
    assert_eq!(daemon.pids("custodian"), custodians, "none was given up");
    let missing = &[("operation", "check-otp"), ("outcome", "missing")];
    assert_eq!(Scrape::of(&daemon).value("hsm_authd_hsm_operations_total", missing), 3.0);
    assert!(daemon.log().contains("a secret is not in the HSM"));

    assert!(daemon.stop().success());
    daemon.resume();
    assert!(daemon.log().contains("a credential's row names a secret that is not in the HSM"));
    let bank = daemon.connect("bank-a").await;
    refused(&verify(&bank, &lost, &rfc_code(1)).await, 503, "unavailable");
    right(&bank, &other, 3).await;
    assert_eq!(delete(&bank, &lost).await.status, 200);
    assert_eq!((gauge(&daemon), objects(&daemon).0.len()), (1.0, 1));
}

#[tokio::test]
async fn what_is_bound_anew_or_deleted_leaves_no_object() {
    let daemon = Daemon::start_with(&RESIDENT, &[]);
    let bank = daemon.connect("bank-a").await;
    let (id, _) = enrol_pending(&bank, "acct-1").await;
    assert_eq!(objects(&daemon).0.len(), 1);
    Terminal::bind(&bank, "bank-a", "acct-1", &id, quick_key("1234", &id)).await;
    let (bound, _) = objects(&daemon);
    assert_eq!(bound.len(), 2, "the secret and the identity key");
    done(&rebind(&bank, &id).await);
    let (anew, _) = objects(&daemon);
    assert!(anew.len() == 1 && !bound.contains(&anew[0]));
    Terminal::bind(&bank, "bank-a", "acct-1", &id, quick_key("1234", &id)).await;
    let terminal =
        enrol(&bank, &json!({ "type": "terminal", "account": "acct-1", "address": "+49 1" })).await;
    assert_eq!(objects(&daemon).0.len(), 3);
    assert_eq!(delete(&bank, &id).await.status, 200);
    assert_eq!(delete(&bank, &terminal).await.status, 200);
    assert_eq!((gauge(&daemon), objects(&daemon)), (0.0, (Vec::new(), 0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enrolment_that_cannot_be_written_leaves_no_object() {
    let disk = FailingDisk::new();
    let mut daemon = start_on(&disk);
    assert!(daemon.stop().success());
    daemon.resume_with(&["--custody", "resident"]);
    let bank = daemon.connect("bank-a").await;
    let kept = enrol_hotp(&bank, "acct-1").await;
    // Nobody knows whether it was written: what is durable is looked at by the next start.
    disk.set("write-eio");
    assert_eq!(enrolment(&bank, "acct-2").await, None);
    disk.set("none");
    assert!(!daemon.ended().success());
    assert_eq!(objects(&daemon).0.len(), 2);
    daemon.resume();
    await_objects(&daemon, 1).await;
    right(&daemon.connect("bank-a").await, &kept, 0).await;
}
