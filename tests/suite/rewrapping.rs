//! Everything stored comes under the newest keys while requests run, and a crash in the middle costs nothing.

use std::env;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::bank::{done as ok, failed, path};
use crate::client::Connection;
use crate::daemon::{Daemon, enrol, enrol_hotp, rfc_code, verify};
use crate::integrity::sql;
use crate::load::Load;
use crate::multi_terminal::{Payer, in_order, rule};
use crate::ocra_token::{OcraToken, question};
use crate::operator::{begin_rewrap, done, entries, keys, listed, refused, rotate, rows};
use crate::rolling_terminal::{IDENTITY_CODE, Terminal, activation, enrol_pending, quick_key};
use crate::scrape::Scrape;
use crate::signers::Device;
use crate::submissions::{Crowd, Outcome, Token};

const STORED: [&str; 3] = ["kek", "row", "data"];

/// Credentials of every type, with their other halves.
struct Everything {
    hotp: Vec<Token>,
    totp: Vec<Token>,
    ocra: Vec<String>,
    signers: Vec<String>,
    rolling: Vec<Terminal>,
    payer: Payer,
    /// How often everything was used.
    used: u64,
}

fn ocra() -> OcraToken {
    OcraToken::new("OCRA-1:HOTP-SHA1-6:QN08-PSHA1")
}

impl Everything {
    /// About so many.
    async fn enrol(crowd: &Crowd, bank: &Connection, count: usize) -> Self {
        let (mut hotp, mut totp) = (Vec::new(), Vec::new());
        // No more at once than are worked on.
        while hotp.len() < count / 2 {
            hotp.extend(crowd.enrol("hotp", None, 100).await);
            totp.extend(crowd.enrol("totp", None, 50).await);
        }
        let (mut ocras, mut signers, mut rolling) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..(count / 16).clamp(2, 100) {
            ocras.push(enrol(bank, &ocra().enrolment(&format!("ocra-{number}"))).await);
            signers.push(Device::new(1).enrol(bank, &format!("signer-{number}")).await);
            rolling.push(Terminal::enrol(bank, "bank-a", &format!("rolling-{number}")).await);
        }
        let payer = Payer::enrol(bank, "terminals", 3).await;
        Self { hotp, totp, ocra: ocras, signers, rolling, payer, used: 0 }
    }

    /// Uses each once: all of it still does what it did.
    async fn use_each(&mut self, daemon: &Daemon) {
        // Connections that were idle for long are closed.
        let (bank, gateway) = (&daemon.connect("bank-a").await, &daemon.connect("bank-a-gateway").await);
        let crowd = Crowd::of(daemon, "bank-a").await;
        let submissions: Vec<_> = self.hotp.iter().map(|token| token.submission(self.used)).collect();
        for some in submissions.chunks(64) {
            for tally in crowd.tally(some, 1).await {
                assert_eq!((tally.yes, tally.total()), (1, 1), "{tally:?}");
            }
        }
        // Their time is not the test's: what is wrong is said to be wrong, by who can compute what is right.
        for token in self.totp.iter().take(40) {
            let answer = token.submission(0).send(crowd.connection(0)).await;
            assert_eq!(answer, Outcome::No);
        }
        for id in &self.ocra {
            let asked = format!("{:08}", self.used);
            let code = ocra().code(question(&asked));
            let answer =
                bank.post(&path(id, "verify"), &json!({ "otp": code, "challenge": asked })).await.unwrap();
            ok(&answer);
            failed(
                &bank
                    .post(&path(id, "verify"), &json!({ "otp": code, "challenge": "99999999" }))
                    .await
                    .unwrap(),
            );
        }
        for id in &self.signers {
            let submission = Device::new(1).submission(id, b"pay");
            assert_eq!(submission.send(bank).await, Outcome::Yes);
        }
        for terminal in &mut self.rolling {
            terminal.pay(bank).await;
        }
        let asked = self.payer.asked(gateway, &rule("preset_order")).await;
        let answer = asked.at_once(bank, &in_order("preset_order", &asked.codes)).await;
        asked.approved(bank, &answer).await;
        self.used += 1;
    }
}

fn under(daemon: &Daemon, version: u16) -> u64 {
    STORED.iter().map(|kind| rows(daemon, kind, version)).sum()
}

/// Waits until this many rows were renewed since the daemon's start.
fn wait_for_renewed(daemon: &Daemon, count: f64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Scrape::of(daemon).value("hsm_authd_rewrap_rows_done", &[]) < count {
        assert!(Instant::now() < deadline, "the rewrap does not get on: {}", daemon.log());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// `HSM_AUTHD_TEST_CREDENTIALS=20000` for the campaign.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_stored_comes_under_the_newest_keys_whatever_interrupts_it() {
    let count = env::var("HSM_AUTHD_TEST_CREDENTIALS").map_or(200, |text| text.parse().unwrap());
    let mut daemon = Daemon::start();
    let (crowd, bank) = (Crowd::of(&daemon, "bank-a").await, daemon.connect("bank-a").await);
    let begun = Instant::now();
    let mut everything = Everything::enrol(&crowd, &bank, count).await;
    println!("enrolled in {:.1?}", begun.elapsed());
    everything.use_each(&daemon).await;
    let kept = json!({ "type": "hotp", "account": "remembered" });
    let key = [("content-type", "application/json"), ("idempotency-key", "before-the-rotation")];
    let first = daemon
        .connect("bank-a")
        .await
        .request("POST", "/v1/credentials", &key, kept.to_string())
        .await
        .unwrap();
    assert_eq!(first.status, 201);

    let (pending, salt) = enrol_pending(&daemon.connect("bank-a").await, "lost on the way").await;
    let activate = [("content-type", "application/json"), ("idempotency-key", "activated-before")];
    let activated = activation(&quick_key(IDENTITY_CODE, &salt)).to_string();
    let target = path(&pending, "activate");
    let bank = daemon.connect("bank-a").await;
    let told = ok(&bank.request("POST", &target, &activate, activated.clone()).await.unwrap());

    STORED.iter().for_each(|kind| drop(rotate(&daemon, kind)));
    let stored = under(&daemon, 1);
    assert!(stored as usize > 3 * count, "{stored}");

    // Interrupted by a crash.
    let mut interrupted = begin_rewrap(&daemon);
    wait_for_renewed(&daemon, stored as f64 / 20.0);
    daemon.kill();
    assert!(!interrupted.wait().unwrap().success(), "it does not say that all is done");
    daemon.resume();
    let left = under(&daemon, 1);
    assert!(left > 0 && left < stored, "{left} of {stored}");
    everything.use_each(&daemon).await;

    // Begun again, it goes on; nobody notices.
    let mut load = Load::begin(&Crowd::of(&daemon, "bank-a").await).await;
    let begun = Instant::now();
    let rewrap = begin_rewrap(&daemon);
    let rewrapped = tokio::task::spawn_blocking(move || rewrap.wait_with_output().unwrap());
    let said = done(&rewrapped.await.unwrap());
    println!("{left} of {stored} uses renewed in {:.1?} under load: {said}", begun.elapsed());
    load.progress().await;
    let report = load.end().await;
    println!("{report:?}");
    assert_eq!(report.tally.unavailable, 0, "{report:?}");
    assert!(said.contains("everything stored is under the newest keys"), "{said}");
    assert_eq!(under(&daemon, 1), 0);
    let logged = entries(&daemon, "keys.rewrapped");
    assert!(logged.iter().filter(|detail| *detail == "begun").count() == 2, "{logged:?}");
    assert!(logged.last().unwrap().starts_with("finished, "), "{logged:?}");
    everything.use_each(&daemon).await;
    let again = daemon
        .connect("bank-a")
        .await
        .request("POST", "/v1/credentials", &key, kept.to_string())
        .await
        .unwrap();
    assert_eq!(again.body, first.body, "a retry is still answered as it was");
    let bank = daemon.connect("bank-a").await;
    let told_again = ok(&bank.request("POST", &target, &activate, activated).await.unwrap());
    assert_eq!(told_again["temporary_code"], told["temporary_code"], "the terminal is still told");

    // Nothing needs the old ones any more.
    assert_eq!(daemon.stop().code(), Some(0));
    STORED.iter().for_each(|kind| drop(done(&keys(&daemon, &["retire", kind, "1"]))));
    STORED.iter().for_each(|kind| assert!(listed(&daemon, &format!("hsm-authd/{kind}/v1")).is_none()));
    daemon.resume();
    everything.use_each(&daemon).await;
}

/// Somebody who edits the database keeps no other row from its newer key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_not_what_was_sealed_stops_no_rewrap() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let mut ids = Vec::new();
    for number in 0..40 {
        ids.push(enrol(&bank, &ocra().enrolment(&format!("acct-{number}"))).await);
    }
    let database = rusqlite::Connection::open(daemon.database()).unwrap();
    database.busy_timeout(Duration::from_secs(10)).unwrap();
    for (set, account) in [
        ("failures = failures + 1", "acct-3"),
        ("failures = failures + 1", "acct-17"),
        ("version = -1", "acct-20"),
    ] {
        let sql = format!("UPDATE account SET {set} WHERE account = ?1");
        assert_eq!(database.execute(&sql, [account]).unwrap(), 1);
    }
    STORED.iter().for_each(|kind| drop(rotate(&daemon, kind)));
    let said = refused(&begin_rewrap(&daemon).wait_with_output().unwrap());
    assert!(said.contains("(3 rows are not what was written last)"), "{said}");
    assert_eq!(STORED.map(|kind| rows(&daemon, kind, 1)), [0, 3, 0], "all others are renewed");
    let logged = entries(&daemon, "keys.rewrapped");
    assert!(logged.last().unwrap().ends_with(" rows; 3 rows are not what was written last"), "{logged:?}");
    ok(&bank
        .post(
            &path(&ids[0], "verify"),
            &json!({ "otp": ocra().code(question("00000001")), "challenge": "00000001" }),
        )
        .await
        .unwrap());
}

/// Nor one that is ours and not the last one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_row_that_was_put_back_stops_no_rewrap() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let mut ids = Vec::new();
    for number in 0..40 {
        ids.push(enrol_hotp(&bank, &format!("acct-{number}")).await);
    }
    let database = sql(&daemon);
    database.execute_batch("CREATE TEMP TABLE old AS SELECT * FROM credential_state").unwrap();
    for id in [&ids[3], &ids[17]] {
        ok(&verify(&bank, id, &rfc_code(0)).await);
    }
    let back = "INSERT OR REPLACE INTO main.credential_state SELECT o.* FROM old o
        JOIN main.credential_state m USING (id) WHERE m.version > o.version";
    assert_eq!(database.execute(back, []).unwrap(), 2);
    rotate(&daemon, "row");
    let said = refused(&begin_rewrap(&daemon).wait_with_output().unwrap());
    assert!(said.contains("(2 rows are not what was written last)"), "{said}");
    assert_eq!(rows(&daemon, "row", 1), 2, "all others are renewed");
    // Each alarms once, however often it is met.
    refused(&begin_rewrap(&daemon).wait_with_output().unwrap());
    let named = entries(&daemon, "store.row_tampered");
    assert_eq!(named.iter().filter(|name| name.starts_with("credential_state:")).count(), 2, "{named:?}");
    assert_eq!(named.len(), 2);
}

/// What could not be written down is written down the next time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_is_in_the_log_however_often_that_is_tried() {
    let daemon = Daemon::start();
    enrol_hotp(&daemon.connect("bank-a").await, "acct-1").await;
    let database = sql(&daemon);
    for kind in ["kek", "row"] {
        // Nobody else can write.
        database.execute_batch("BEGIN IMMEDIATE").unwrap();
        let rotated = keys(&daemon, &["rotate", kind]);
        database.execute_batch("COMMIT").unwrap();
        assert!(!rotated.status.success(), "{kind}: the service says that it could not");
        assert!(!entries(&daemon, "keys.rotated").iter().any(|entry| entry.starts_with(kind)), "{kind}");
        done(&begin_rewrap(&daemon).wait_with_output().unwrap());
        done(&begin_rewrap(&daemon).wait_with_output().unwrap());
    }
    assert_eq!(entries(&daemon, "keys.rotated"), ["kek v2", "row v2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rows_need_is_not_retired_and_a_rewrap_needs_the_service() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    enrol(&bank, &ocra().enrolment("acct-1")).await;
    STORED.iter().for_each(|kind| drop(rotate(&daemon, kind)));
    daemon.stop();
    for (kind, count) in [("kek", 1), ("row", 3), ("data", 1)] {
        let said = refused(&keys(&daemon, &["retire", kind, "1"]));
        let expected = format!("{count} rows still need hsm-authd/{kind}/v1: start the service, and run");
        assert!(said.contains(&expected), "{said}");
    }
    let said = refused(&keys(&daemon, &["rewrap"]));
    assert!(said.contains("no service listens"), "{said}");
}
