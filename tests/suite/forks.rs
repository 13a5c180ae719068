//! Histories that were ours once, put together by somebody who has copies of all of them: none is believed beyond what the
//! anchor and the seals say.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::params;
use serde_json::json;

use crate::bank::{done, failed};
use crate::daemon::{Daemon, SEED_HEX, code, enrol, enrol_hotp, rfc_code, verify};
use crate::integrity::{anchor_as_then, as_of_an_earlier_release, events, put_back, snapshot, sql};
use crate::migration::WITHOUT_STEP_6;
use crate::operator::keys;
use crate::processes::eventually;
use crate::recovering;

const NOW: u64 = 1_900_000_000;
/// What a start logs after its look at the database, before it writes anything.
const LOOKED: &str = "the database is what was left";

fn size(daemon: &Daemon) -> i64 {
    sql(daemon).query_row("SELECT max(seq) FROM audit", [], |row| row.get(0)).unwrap()
}

/// Uses codes of another token until the log has so many entries.
async fn fill(daemon: &Daemon, entries: i64) {
    let bank = daemon.connect("bank-a").await;
    let filler = enrol_hotp(&bank, "filler").await;
    let mut counter = 0;
    while size(daemon) < entries {
        done(&verify(&bank, &filler, &rfc_code(counter)).await);
        counter += 1;
    }
}

/// The database as one file.
fn whole(daemon: &Daemon) -> Vec<u8> {
    sql(daemon).execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    fs::read(daemon.database()).unwrap()
}

async fn anchored_to_the_end(daemon: &Daemon) {
    eventually("it is anchored", async || {
        let newest = "SELECT max(size) FROM checkpoint";
        let anchored: i64 = sql(daemon).query_row(newest, [], |row| row.get(0)).unwrap();
        (anchored == size(daemon)
            && crate::scrape::Scrape::of(daemon).sum("hsm_authd_log_anchored") == anchored as f64)
            .then_some(())
    })
    .await;
}

/// A branch that was killed before its anchor and has passed 256 entries, so that their hash is kept; under it the
/// entries of the line that went on instead.
#[tokio::test(flavor = "multi_thread")]
async fn a_branch_with_the_entries_of_another_is_refused() {
    let mut daemon = Daemon::start();
    let id = enrol_hotp(&daemon.connect("bank-a").await, "victim").await;
    fill(&daemon, 235).await;
    assert!(daemon.stop().success());
    daemon.resume();
    let base = snapshot(&daemon);
    let bank = daemon.connect("bank-a").await;
    let other = enrol_hotp(&bank, "other").await;
    let mut counter = 0;
    while size(&daemon) < 265 {
        done(&verify(&bank, &other, &rfc_code(counter)).await);
        counter += 1;
    }
    drop(bank);
    daemon.kill();
    let branch = whole(&daemon);
    put_back(&daemon, &base);
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    for counter in 0..5 {
        done(&verify(&bank, &id, &rfc_code(counter)).await);
    }
    drop(bank);
    assert!(daemon.stop().success());
    let line = snapshot(&daemon);
    let current = whole(&daemon);
    assert!(size(&daemon) < 256, "the anchor is before the kept hash");

    put_back(&daemon, &[(daemon.database(), branch)]);
    let place = daemon.dir().join("current.db");
    fs::write(&place, current).unwrap();
    let database = sql(&daemon);
    database.execute("ATTACH ?1 AS line", [place.to_str().unwrap()]).unwrap();
    database.execute_batch("INSERT OR REPLACE INTO main.audit SELECT * FROM line.audit").unwrap();
    drop(database);
    let said = daemon.refused();
    assert!(said.contains("entries are not those that the token knows"), "{said}");
    put_back(&daemon, &line);
    daemon.resume();
    assert_eq!(failed(&verify(&daemon.connect("bank-a").await, &id, &rfc_code(4)).await), 5);
}

/// What was lost is forgotten by nobody who says in the log that there was an end.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_was_none_takes_no_code_back() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let id = enrol(&bank, &json!({ "type": "totp", "account": "victim", "seed_hex": SEED_HEX })).await;
    drop(bank);
    // Its text is under a kept hash, and no start reads it.
    fill(&daemon, 256).await;
    assert_eq!(size(&daemon), 256);
    anchored_to_the_end(&daemon).await;
    let at_anchor = snapshot(&daemon);
    let otp = code(b"12345678901234567890", NOW / 30, 6);
    done(&verify(&daemon.connect("bank-a").await, &id, &otp).await);
    daemon.kill();
    put_back(&daemon, &at_anchor);
    sql(&daemon).execute("UPDATE audit SET event = 'service.stopped' WHERE seq = 256", []).unwrap();
    daemon.resume();
    assert_eq!(events(&daemon).last().unwrap(), "service.started_unclean");
    assert_eq!(failed(&verify(&daemon.connect("bank-a").await, &id, &otp).await), 5);
}

/// Nor by who changes the file between the look and the first entry.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_is_written_during_the_start_takes_no_code_back() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let id = enrol(&bank, &json!({ "type": "totp", "account": "victim", "seed_hex": SEED_HEX })).await;
    anchored_to_the_end(&daemon).await;
    let at_anchor = snapshot(&daemon);
    let otp = code(b"12345678901234567890", NOW / 30, 6);
    done(&verify(&bank, &id, &otp).await);
    drop(bank);
    daemon.kill();
    put_back(&daemon, &at_anchor);
    let last = size(&daemon);
    drop(whole(&daemon));
    let looks = daemon.log().matches(LOOKED).count();
    let path = daemon.database();
    let index = path.with_file_name(format!("{}-shm", path.file_name().unwrap().to_str().unwrap()));
    let log = daemon.log_path();
    let editor = thread::spawn(move || {
        // It is there once the service reads; writing waits for this one from here on.
        while !index.exists() {
            thread::yield_now();
        }
        let database = rusqlite::Connection::open(&path).unwrap();
        database.busy_timeout(Duration::from_secs(10)).unwrap();
        database.execute_batch("BEGIN IMMEDIATE").unwrap();
        let deadline = Instant::now() + Duration::from_secs(3);
        while fs::read_to_string(&log).unwrap().matches(LOOKED).count() == looks && Instant::now() < deadline
        {
            thread::yield_now();
        }
        database.execute("UPDATE audit SET event = 'service.stopped' WHERE seq = ?1", params![last]).unwrap();
        database.execute_batch("COMMIT").unwrap();
    });
    daemon.resume();
    editor.join().unwrap();
    assert!(events(&daemon).ends_with(&["service.stopped".to_owned(), "service.started_unclean".to_owned()]));
    assert_eq!(failed(&verify(&daemon.connect("bank-a").await, &id, &otp).await), 5);
}

/// What the file says of a step that was none yet is not believed.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_the_clock_is_written_down_whatever_the_file_says_of_it() {
    let mut daemon = Daemon::start_at(NOW);
    enrol_hotp(&daemon.connect("bank-a").await, "victim").await;
    sql(&daemon).execute("UPDATE log_head SET clock_stepped = 1", []).unwrap();
    daemon.step_clock(NOW + 86_400);
    eventually("it is in the log", async || {
        events(&daemon).contains(&"clock.stepped".to_owned()).then_some(())
    })
    .await;
    assert!(daemon.stop().success());
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    let id = enrol(&bank, &json!({ "type": "totp", "account": "victim", "seed_hex": SEED_HEX })).await;
    let otp = code(b"12345678901234567890", (NOW + 86_400) / 30, 6);
    crate::bank::refused(&verify(&bank, &id, &otp).await, 503, "unavailable");
}

/// Commands that write to the log before the first start of this release leave what they found.
#[tokio::test(flavor = "multi_thread")]
async fn commands_before_the_first_start_spoil_nothing() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    done(&verify(&bank, &id, &rfc_code(0)).await);
    drop(bank);
    assert!(daemon.stop().success());
    let newest = snapshot(&daemon);
    let is_told = async |daemon: &mut Daemon| {
        keys(daemon, &["rotate", "import"]);
        keys(daemon, &["retire", "import", "1"]);
        recovering::run(daemon, &["recover"]);
        daemon.resume();
        assert_eq!(failed(&verify(&daemon.connect("bank-a").await, &id, &rfc_code(0)).await), 5);
        assert!(daemon.stop().success());
    };
    sql(&daemon).execute_batch(WITHOUT_STEP_6).unwrap();
    anchor_as_then(&daemon, hsm_authd::store::contents(&daemon.database()).unwrap().head);
    is_told(&mut daemon).await;
    put_back(&daemon, &newest);
    as_of_an_earlier_release(&daemon).await;
    is_told(&mut daemon).await;
}

/// A release that sealed nothing has to end as it should; what it left is not touched until then.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_release_before_left_without_an_end_is_still_its_own() {
    let mut daemon = Daemon::start();
    enrol_hotp(&daemon.connect("bank-a").await, "acct-1").await;
    daemon.kill();
    sql(&daemon).execute_batch(WITHOUT_STEP_6).unwrap();
    let before = whole(&daemon);
    let said = daemon.refused();
    assert!(said.contains("the release before did not end as it should have: start it once more"), "{said}");
    assert!(!keys(&daemon, &["rotate", "kek"]).status.success());
    // Nor by who only looks.
    let looked = recovering::run(&daemon, &["recover"]);
    assert!(
        String::from_utf8_lossy(&looked.stderr).contains("the release before did not end as it should have")
    );
    assert!(whole(&daemon) == before, "nothing was changed");
    assert!(recovering::run(&daemon, &["recover", "--accept-rollback"]).status.success());
    daemon.resume();
}
