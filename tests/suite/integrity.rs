//! A start on a database that is not what the service left.

use std::fs;
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::time::Duration;

use hsm_authd::domain::audit::Event;
use hsm_authd::domain::checkpoint::{Checkpoint, Head};
use hsm_authd::domain::row::{Row, RowSum, Sealed, SumDigest};
use hsm_authd::store::Store;
use rusqlite::Connection as Sql;
use rusqlite::params;
use serde_json::json;

use crate::bank::{done, failed, refused};
use crate::daemon::{Daemon, SEED_HEX, enrol_hotp, rfc_code, verify};
use crate::intruder::intrude;
use crate::processes::eventually;
use crate::token::TestToken;

const NOW: u64 = 1_800_000_000;
const RECOVER: &str = "hsm-authd recover --config FILE --accept-rollback";

/// The database as it is on the disk now, with what its log holds.
pub fn snapshot(daemon: &Daemon) -> Vec<(PathBuf, Vec<u8>)> {
    let files = ["", "-wal"].map(|suffix| PathBuf::from(format!("{}{suffix}", daemon.database().display())));
    files.into_iter().filter_map(|path| fs::read(&path).ok().map(|content| (path, content))).collect()
}

/// Puts a snapshot in the place of the database.
pub fn put_back(daemon: &Daemon, snapshot: &[(PathBuf, Vec<u8>)]) {
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{suffix}", daemon.database().display()));
    }
    snapshot.iter().for_each(|(path, content)| fs::write(path, content).unwrap());
}

pub fn sql(daemon: &Daemon) -> Sql {
    let database = Sql::open(daemon.database()).unwrap();
    database.busy_timeout(Duration::from_secs(10)).unwrap();
    database
}

/// The entries of the log by their names.
pub fn events(daemon: &Daemon) -> Vec<String> {
    let database = sql(daemon);
    let mut statement = database.prepare("SELECT event FROM audit ORDER BY seq").unwrap();
    let events = statement.query_map([], |row| row.get(0)).unwrap();
    events.map(Result::unwrap).collect()
}

/// Has something done to the token of a daemon that has stopped, which keeps its folder.
pub fn on_token(daemon: &Daemon, act: &str) {
    intrude(&ManuallyDrop::new(TestToken::of(daemon)), act);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_turned_back_starts_no_service() {
    let mut daemon = Daemon::start();
    let id = enrol_hotp(&daemon.connect("bank-a").await, "acct-1").await;
    assert!(daemon.stop().success());
    let old = snapshot(&daemon);
    daemon.resume();
    done(&verify(&daemon.connect("bank-a").await, &id, &rfc_code(0)).await);
    daemon.kill();
    let crashed = snapshot(&daemon);
    daemon.resume();
    assert!(daemon.stop().success());
    let newest = snapshot(&daemon);

    for (place, turned_back) in [&old, &crashed].into_iter().enumerate() {
        put_back(&daemon, turned_back);
        for _ in 0..2 {
            let said = daemon.refused();
            assert!(said.contains("turned back") && said.contains(RECOVER), "{place}: {said}");
            assert!(said.contains("entries, and the token knows of") && said.contains(" since 20"), "{said}");
        }
    }
    put_back(&daemon, &newest);
    daemon.resume();
    assert_eq!(failed(&verify(&daemon.connect("bank-a").await, &id, &rfc_code(0)).await), 5);
    assert!(daemon.stop().success());
    on_token(&daemon, "anchors 1");
    // No database at all, as if it were the first start.
    put_back(&daemon, &[]);
    let said = daemon.refused();
    assert!(said.contains("another one than the token's") && said.contains(RECOVER), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_log_or_no_anchor_starts_no_service() {
    let mut daemon = Daemon::start();
    enrol_hotp(&daemon.connect("bank-a").await, "acct-1").await;
    assert!(daemon.stop().success());
    let origin = format!("hsm-authd.log/{}", "ab".repeat(16));
    let own: String = sql(&daemon).query_row("SELECT origin FROM log_head", [], |row| row.get(0)).unwrap();
    for (origin, words) in [(&*origin, "another one than the token's"), ("hsm-authd.log/new", "another one")]
    {
        sql(&daemon).execute("UPDATE log_head SET origin = ?1", [origin]).unwrap();
        let said = daemon.refused();
        assert!(said.contains(words) && said.contains(&own) && said.contains(RECOVER), "{said}");
    }
    sql(&daemon).execute("UPDATE log_head SET origin = ?1", [own]).unwrap();
    daemon.resume();
    assert!(daemon.stop().success());

    on_token(&daemon, "remove hsm-authd/anchor");
    for _ in 0..2 {
        let said = daemon.refused();
        assert!(said.contains("the token has no anchor") && said.contains(RECOVER), "{said}");
    }
    on_token(&daemon, "anchors 0");
}

/// Appends an entry to the log, or changes the last one, as who knows how it is made.
async fn forge(daemon: &Daemon, is_new: bool, event: Event) {
    let entries = {
        let store = Store::open(&daemon.database()).unwrap();
        store.audit_entries(0, 10_000).await.unwrap()
    };
    let mut last = entries.last().unwrap().clone();
    last.seq += u64::from(is_new);
    last.entry.event = event;
    last.rows.0.clear();
    let database = sql(daemon);
    if is_new {
        let copy = "INSERT INTO audit (seq, unix_ms, event, rows, leaf)
            SELECT ?1, unix_ms, event, '', leaf FROM audit WHERE seq = ?1 - 1";
        database.execute(copy, [last.seq as i64]).unwrap();
        last.entry = hsm_authd::domain::audit::AuditEntry::of_appliance(last.entry.unix_ms, event);
    }
    let sql = "UPDATE audit SET event = ?2, rows = '', leaf = ?3 WHERE seq = ?1";
    database.execute(sql, params![last.seq as i64, event.name(), last.leaf().0]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_changed_starts_no_service() {
    let mut daemon = Daemon::start();
    enrol_hotp(&daemon.connect("bank-a").await, "acct-1").await;
    assert!(daemon.stop().success());
    let newest = snapshot(&daemon);
    forge(&daemon, false, Event::ClockAccepted).await;
    let said = daemon.refused();
    assert!(said.contains("entries are not those that the token knows"), "{said}");

    // Its leaf says otherwise.
    put_back(&daemon, &newest);
    sql(&daemon)
        .execute("UPDATE audit SET event = 'clock.accepted' WHERE event = 'service.stopped'", [])
        .unwrap();
    let said = daemon.refused();
    assert!(said.contains("entry 3 of the log is not what was written"), "{said}");
    put_back(&daemon, &newest);
    daemon.resume();
}

/// All rows of the state of a credential, as they come out of the database.
async fn state(daemon: &Daemon) -> Sealed<Row> {
    let store = Store::open(&daemon.database()).unwrap();
    let rows = store.rows_after(None, 1_000).await.unwrap();
    rows.into_iter().find(|row| matches!(row.row, Row::State(_))).unwrap()
}

struct Victim {
    daemon: Daemon,
    /// The credential whose state is put back.
    id: String,
    /// The files of the database before and after a code of it was accepted.
    before: Vec<(PathBuf, Vec<u8>)>,
    after: Vec<(PathBuf, Vec<u8>)>,
    key: String,
}

/// A daemon that has stopped after it accepted a code, and did more.
async fn victim() -> Victim {
    let mut daemon = Daemon::start();
    let id = enrol_hotp(&daemon.connect("bank-a").await, "unmistakable").await;
    assert!(daemon.stop().success());
    let before = snapshot(&daemon);
    let digest = state(&daemon).await.row.key().digest();
    let key = format!("{:032x}", u128::from_be_bytes(digest));
    daemon.resume();
    done(&verify(&daemon.connect("bank-a").await, &id, &rfc_code(0)).await);
    assert!(daemon.stop().success());
    let after = snapshot(&daemon);
    Victim { daemon, id, before, after, key }
}

/// Copies rows of `from` over those that are there.
fn transplant(daemon: &Daemon, from: &[(PathBuf, Vec<u8>)], tables: &[&str]) {
    let place = daemon.dir().join("old.db");
    fs::write(&place, &from[0].1).unwrap();
    let database = sql(daemon);
    database.execute("ATTACH ?1 AS old", [place.to_str().unwrap()]).unwrap();
    for table in tables {
        database.execute_batch(&format!("INSERT OR REPLACE INTO {table} SELECT * FROM old.{table}")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_removed_put_back_or_edited_is_named_and_nobody_is_answered() {
    let Victim { mut daemon, id, before, after, key } = victim().await;
    let of_state = format!("row credential_state {key} ({id}): ");
    let seal = "UPDATE credential_state SET seal = zeroblob(32)";
    type Act<'a> = Box<dyn Fn(&Daemon) + 'a>;
    let act = |text: &'static str| -> Act<'_> {
        Box::new(move |daemon| assert_eq!(sql(daemon).execute(text, []).unwrap(), 1, "{text}"))
    };
    let put = |tables: &'static [&'static str]| -> Act<'_> {
        let before = &before;
        Box::new(move |daemon| transplant(daemon, before, tables))
    };
    let sums = "rows of credential_state do not add up";
    let older = "version 1 is there, and the log says 2";
    let cases: [(&str, Act<'_>, Vec<String>); 8] = [
        (
            "a row is gone",
            act("DELETE FROM account"),
            vec![
                "rows of account do not add up".into(),
                format!("({id}): it is missing, and the log says version 1"),
            ],
        ),
        ("an old row is back", put(&["credential_state"]), vec![sums.into(), format!("{of_state}{older}")]),
        // With the sum of then. It is the anchor that knows better.
        (
            "an old row and its sum are back",
            put(&["credential_state", "table_sum"]),
            vec![format!("{of_state}{older}")],
        ),
        ("a seal was edited", act(seal), vec![sums.into(), format!("{of_state}version 2 has a wrong seal")]),
        (
            "a value was edited",
            act("UPDATE credential_state SET next_factor = 0"),
            vec![sums.into(), format!("{of_state}version 2 has a wrong seal")],
        ),
        (
            "another row's seal",
            act("UPDATE account SET seal = (SELECT seal FROM credential_state)"),
            vec!["rows of account do not add up".into(), format!("({id}): version 1 has a wrong seal")],
        ),
        (
            "a sum was edited",
            act("UPDATE table_sum SET sum = zeroblob(256) WHERE name = 'account'"),
            vec!["rows of account do not add up".into()],
        ),
        (
            "a sum is gone",
            act("DELETE FROM table_sum WHERE name = 'account'"),
            vec!["rows of account do not add up".into()],
        ),
    ];
    for (what, act, words) in &cases {
        put_back(&daemon, &after);
        act(&daemon);
        let said = daemon.refused();
        assert!(said.contains("the database is not what the service left: "), "{what}: {said}");
        assert!(said.contains(RECOVER) && !said.contains("unmistakable"), "{what}: {said}");
        for word in words {
            assert!(said.contains(word.as_str()), "{what}: {said} lacks {word}");
        }
        assert!(!daemon.log().contains("unmistakable"));
    }
    put_back(&daemon, &after);
    daemon.resume();
    assert_eq!(failed(&verify(&daemon.connect("bank-a").await, &id, &rfc_code(0)).await), 5);
}

/// Who has seen the sums change can make one that fits, and who knows the log can make an entry. Neither has the key that
/// seals both.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_row_with_a_fitting_sum_behind_a_forged_entry_is_found() {
    let Victim { mut daemon, id, before, after, key } = victim().await;
    let changed = "its sums or the end of its log were changed";
    for event in [Event::ClockAccepted, Event::Recovered, Event::Enrolled, Event::Stopped] {
        put_back(&daemon, &after);
        forge(&daemon, true, event).await;
        let said = daemon.refused();
        assert!(said.contains(changed), "{event:?}: {said}");
    }
    put_back(&daemon, &after);
    transplant(&daemon, &before, &["credential_state", "table_sum"]);
    forge(&daemon, true, Event::ClockAccepted).await;
    let row = format!("row credential_state {key} ({id}): version 1 is there, and the log says 2");
    let said = daemon.refused();
    assert!(said.contains(changed) && said.contains(&row), "{said}");
    // Nor with the seal of then, nor without one.
    transplant(&daemon, &before, &["log_head"]);
    let said = daemon.refused();
    assert!(said.contains(changed), "{said}");
    sql(&daemon).execute("UPDATE log_head SET run = NULL, seal_key_version = NULL, seal = NULL", []).unwrap();
    let said = daemon.refused();
    assert!(said.contains("nothing seals what its log has behind the anchor"), "{said}");
    sql(&daemon)
        .execute("UPDATE log_head SET run = zeroblob(16), seal_key_version = 9, seal = zeroblob(32)", [])
        .unwrap();
    let said = daemon.refused();
    assert!(said.contains("sealed with row v9, which the token has not"), "{said}");
    put_back(&daemon, &after);
    daemon.resume();
}

/// What a kill leaves is behind the anchor, and is believed as it is, and not otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_kill_leaves_is_believed_as_it_is() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let enrolled = snapshot(&daemon);
    done(&verify(&bank, &id, &rfc_code(0)).await);
    drop(bank);
    daemon.kill();
    let killed = snapshot(&daemon);

    // The row and the sum of before, and an entry that tells of nothing.
    let stale = daemon.dir().join("stale.db");
    let merged = |files: &[(PathBuf, Vec<u8>)]| {
        put_back(&daemon, files);
        sql(&daemon).execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        fs::read(daemon.database()).unwrap()
    };
    let before = vec![(stale, merged(&enrolled))];
    put_back(&daemon, &killed);
    transplant(&daemon, &before, &["credential_state", "table_sum"]);
    forge(&daemon, false, Event::TransactionFailed).await;
    let said = daemon.refused();
    assert!(said.contains("its sums or the end of its log were changed"), "{said}");
    // What is lost within a window that nobody anchored is in the threat model: all of it, or nothing.
    put_back(&daemon, &killed);
    transplant(&daemon, &before, &["credential_state", "table_sum", "log_head"]);
    let said = daemon.refused();
    assert!(said.contains("its sums or the end of its log were changed"), "{said}");

    put_back(&daemon, &killed);
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    assert_eq!(failed(&verify(&bank, &id, &rfc_code(0)).await), 5);
    done(&verify(&bank, &id, &rfc_code(1)).await);
}

/// Rows that are ours, each with its own seal, and not the last ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_put_back_or_removed_under_the_service_is_not_built_upon() {
    let Victim { mut daemon, id, before, .. } = victim().await;
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    let other = enrol_hotp(&bank, "acct-2").await;
    assert_eq!(failed(&verify(&bank, &id, &rfc_code(0)).await), 5);
    let state_key = |database: &rusqlite::Connection| -> Vec<u8> {
        let sql = "SELECT id FROM credential_state ORDER BY version DESC LIMIT 1";
        database.query_row(sql, [], |row| row.get(0)).unwrap()
    };
    let place = daemon.dir().join("old.db");
    fs::write(&place, &before[0].1).unwrap();
    let database = sql(&daemon);
    let key = state_key(&database);
    database.execute("ATTACH ?1 AS old", [place.to_str().unwrap()]).unwrap();
    let back =
        "INSERT OR REPLACE INTO main.credential_state SELECT * FROM old.credential_state WHERE id = ?1";
    assert_eq!(database.execute(back, [&key]).unwrap(), 1);
    // The code was used, and by the old row it was not.
    for _ in 0..3 {
        refused(&verify(&bank, &id, &rfc_code(0)).await, 503, "unavailable");
    }
    let detail = "SELECT detail FROM audit WHERE event = 'store.row_tampered'";
    let told = eventually("it is in the log", async || {
        sql(&daemon).query_row(detail, [], |row| row.get::<_, String>(0)).ok()
    })
    .await;
    assert!(told.starts_with("credential_state:"), "{told}");
    assert!(daemon.log().contains("a row is not what was written last"));
    done(&verify(&bank, &other, &rfc_code(0)).await);

    // Without its account's row nobody would be locked.
    assert_eq!(database.execute("DELETE FROM account WHERE account = 'acct-2'", []).unwrap(), 1);
    refused(&verify(&bank, &other, "000000").await, 503, "unavailable");
    let body = json!({ "type": "hotp", "account": "acct-2", "seed_hex": SEED_HEX });
    let again = bank.post("/v1/credentials", &body).await.unwrap();
    refused(&again, 503, "unavailable");
    drop(bank);
    assert!(daemon.stop().success());
    let said = daemon.refused();
    assert!(said.contains("rows of credential_state, account do not add up"), "{said}");
}

/// A row that went in the course of things.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_pruned_does_not_come_again() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let keyed = [("content-type", "application/json"), ("idempotency-key", "once")];
    let body = json!({ "type": "hotp", "account": "acct-1", "seed_hex": SEED_HEX }).to_string();
    assert_eq!(bank.request("POST", "/v1/credentials", &keyed, body).await.unwrap().status, 201);
    drop(bank);
    assert!(daemon.stop().success());
    let before = snapshot(&daemon);
    daemon.resume();
    daemon.set_clock(NOW + 2 * 86_400);
    eventually("it is pruned", async || {
        let count =
            sql(&daemon).query_row("SELECT count(*) FROM idempotency", [], |row| row.get::<_, i64>(0));
        (count.unwrap() == 0).then_some(())
    })
    .await;
    assert!(daemon.stop().success());
    transplant(&daemon, &before, &["idempotency"]);
    let said = daemon.refused();
    assert!(said.contains("rows of idempotency do not add up; row idempotency "), "{said}");
    assert!(said.contains("version 1 is there, and the log says that it was removed"), "{said}");
}

/// The alarm is raised once a row; who asks is told what every broken row tells.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_changed_under_the_service_alarms_once() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let (id, other) = (enrol_hotp(&bank, "acct-1").await, enrol_hotp(&bank, "acct-2").await);
    let raised =
        sql(&daemon).execute("UPDATE account SET failures = 1 WHERE account = 'acct-1'", []).unwrap();
    assert_eq!(raised, 1);
    for _ in 0..3 {
        refused(&verify(&bank, &id, &rfc_code(0)).await, 503, "unavailable");
    }
    eventually("it is in the log", async || {
        events(&daemon).contains(&"store.row_tampered".to_owned()).then_some(())
    })
    .await;
    done(&verify(&bank, &other, &rfc_code(0)).await);
    refused(&verify(&bank, &id, &rfc_code(0)).await, 503, "unavailable");
    done(&verify(&bank, &other, &rfc_code(1)).await);
    assert_eq!(events(&daemon).iter().filter(|event| *event == "store.row_tampered").count(), 1);
    let detail: String = sql(&daemon)
        .query_row("SELECT detail FROM audit WHERE event = 'store.row_tampered'", [], |row| row.get(0))
        .unwrap();
    assert!(detail.starts_with("account:") && detail.len() == "account:".len() + 32, "{detail}");
    let scrape = crate::scrape::Scrape::of(&daemon);
    assert_eq!(scrape.sum("hsm_authd_tampered_rows_total"), 1.0);
    assert!(daemon.log().contains("a row is not what was written last") && !daemon.log().contains("acct-1"));
}

/// What an earlier release left: one sum, entries that name no rows; and a token that `init` has just completed.
pub async fn as_of_an_earlier_release(daemon: &Daemon) {
    let (entries, total) = {
        let store = Store::open(&daemon.database()).unwrap();
        (store.audit_entries(0, 10_000).await.unwrap(), store.row_sum().await.unwrap())
    };
    let database = sql(daemon);
    database
        .execute_batch("DELETE FROM table_sum; DELETE FROM checkpoint; DELETE FROM audit_subtree")
        .unwrap();
    database
        .execute(
            "INSERT INTO table_sum (name, sum) VALUES ('', ?1)",
            [RowSum::of_first(total.first()).as_bytes()],
        )
        .unwrap();
    database.execute("UPDATE log_head SET run = NULL, seal_key_version = NULL, seal = NULL", []).unwrap();
    for mut logged in entries {
        logged.rows.0.clear();
        let sql = "UPDATE audit SET rows = '', leaf = ?2 WHERE seq = ?1";
        database.execute(sql, params![logged.seq as i64, logged.leaf().0]).unwrap();
    }
    // The keys are those of every token that was prepared; the anchor is the first.
    fs::remove_dir_all(daemon.dir().join("token")).unwrap();
    crate::prepared::write_dev(&daemon.dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_an_earlier_release_is_taken_over_if_it_adds_up() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    done(&verify(&bank, &id, &rfc_code(0)).await);
    drop(bank);
    assert!(daemon.stop().success());
    as_of_an_earlier_release(&daemon).await;
    let earlier = snapshot(&daemon);
    sql(&daemon).execute("DELETE FROM account", []).unwrap();
    let said = daemon.refused();
    assert!(said.contains("its rows do not add up"), "{said}");

    put_back(&daemon, &earlier);
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    assert_eq!(failed(&verify(&bank, &id, &rfc_code(0)).await), 5);
    done(&verify(&bank, &id, &rfc_code(1)).await);
    let names: String = sql(&daemon)
        .query_row("SELECT group_concat(name ORDER BY name) FROM table_sum", [], |row| row.get(0))
        .unwrap();
    assert_eq!(names, "account,credential,credential_state");
    drop(bank);
    // Entries that name no rows and entries that do.
    daemon.kill();
    daemon.resume();
    assert!(daemon.stop().success());
    daemon.resume();
    assert!(daemon.stop().success());
    let expected = [
        "service.stopped",
        "service.started_unclean",
        "otp.repeated",
        "otp.verified",
        "service.started_unclean",
        "service.stopped",
        "service.started",
        "service.stopped",
    ];
    assert_eq!(events(&daemon)[3..], expected);
}

/// The anchor of a log as the release before wrote it.
pub fn anchor_as_then(daemon: &Daemon, head: Head) {
    assert!(matches!(head.sum, SumDigest::First(_)));
    // The folder stays the daemon's.
    let token = ManuallyDrop::new(TestToken::of(daemon));
    let mut custodian = token.custodian();
    let note = custodian.checkpoint(&Checkpoint { head, unix_s: 1_800_000_000 });
    custodian.write(&note, true).unwrap();
}

/// Without its seal a ledger is compared by the first number of each sum: that is for what the release before anchored,
/// and nobody has a command anchor it.
#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_without_its_seal_is_anchored_by_nobody() {
    let Victim { mut daemon, before, .. } = victim().await;
    transplant(&daemon, &before, &["credential_state", "account", "table_sum"]);
    sql(&daemon)
        .execute_batch(
            "UPDATE log_head SET run = NULL, seal_key_version = NULL, seal = NULL;
             UPDATE table_sum SET sum = CAST(substr(sum, 1, 32) || zeroblob(224) AS BLOB)",
        )
        .unwrap();
    let said = daemon.refused();
    assert!(said.contains("nothing seals what its log has behind the anchor"), "{said}");
    crate::operator::keys(&daemon, &["rotate", "import"]);
    crate::operator::keys(&daemon, &["retire", "import", "1"]);
    let said = daemon.refused();
    assert!(said.contains("the database is not what the service left"), "{said}");
}

/// The release before sealed nothing: what it left is held against its whole log, if it ended as it should have.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_the_release_before_is_taken_over_if_its_log_is_right() {
    let Victim { mut daemon, id, after, .. } = victim().await;
    // As who wants a loss forgotten would.
    sql(&daemon)
        .execute("UPDATE log_head SET run = NULL, seal_key_version = NULL, seal = NULL, lost_unix_ms = 1", [])
        .unwrap();
    let said = daemon.refused();
    assert!(said.contains("nothing seals what its log has behind the anchor"), "{said}");
    put_back(&daemon, &after);
    sql(&daemon).execute_batch(crate::migration::WITHOUT_STEP_6).unwrap();
    let copied = hsm_authd::store::contents(&daemon.database()).unwrap().head;
    let store = Store::open(&daemon.database()).unwrap();
    assert_eq!(copied, *store.head().borrow(), "a copy of then is told alike");
    drop(store);
    anchor_as_then(&daemon, copied);
    let earlier = snapshot(&daemon);
    // Or behind the migration, where nothing seals it yet.
    sql(&daemon).execute("UPDATE log_head SET lost_unix_ms = 1", []).unwrap();
    let said = daemon.refused();
    assert!(said.contains("entries of its log were changed"), "{said}");
    put_back(&daemon, &earlier);
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    assert_eq!(failed(&verify(&bank, &id, &rfc_code(0)).await), 5);
    drop(bank);
    daemon.kill();
    sql(&daemon).execute_batch(crate::migration::WITHOUT_STEP_6).unwrap();
    let said = daemon.refused();
    assert!(said.contains("the release before did not end as it should have"), "{said}");
}

/// What else is written into the file does nothing: no trigger runs, and a start does not begin on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_does_not_run_and_stops_a_start() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let trigger = "CREATE TRIGGER back AFTER UPDATE ON credential_state BEGIN
        UPDATE credential_state SET next_factor = 0 WHERE id = NEW.id; END";
    sql(&daemon).execute_batch(trigger).unwrap();
    done(&verify(&bank, &id, &rfc_code(0)).await);
    assert_eq!(failed(&verify(&bank, &id, &rfc_code(0)).await), 5);
    done(&verify(&bank, &id, &rfc_code(1)).await);
    drop(bank);
    assert!(daemon.stop().success());
    for (change, undo, name) in [
        ("", "DROP TRIGGER back", "trigger back"),
        ("CREATE VIEW seen AS SELECT 1", "DROP VIEW seen", "view seen"),
        ("CREATE TABLE more (x)", "DROP TABLE more", "table more"),
        ("DROP INDEX audit_of_tenant", "", "index audit_of_tenant"),
    ] {
        sql(&daemon).execute_batch(change).unwrap();
        let said = daemon.refused();
        assert!(said.contains(&format!("{name} is not as this release makes it")), "{said}");
        sql(&daemon).execute_batch(undo).unwrap();
    }
}
