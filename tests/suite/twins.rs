//! Two rows of ours with one version: whoever can write the database shows the one to who decides, and the other to the
//! writer.

use std::fs;

use crate::bank::{done, failed, refused};
use crate::daemon::{Daemon, enrol_hotp, rfc_code, verify};
use crate::integrity::{events, put_back, snapshot, sql};
use crate::processes::eventually;
use crate::scrape::Scrape;

/// How many codes custodians have judged.
fn judged(daemon: &Daemon) -> f64 {
    let labels = [("operation", "check-otp"), ("outcome", "answered")];
    Scrape::of(daemon).value("hsm_authd_hsm_operations_total", &labels)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_decided_on_a_row_that_was_only_shown_is_not_committed() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "victim").await;
    drop(bank);
    assert!(daemon.stop().success());
    daemon.resume();
    let base = snapshot(&daemon);
    // A wrong code makes version 2, in which no code is used up; and that never happened.
    let bank = daemon.connect("bank-a").await;
    assert_eq!(failed(&verify(&bank, &id, "000000").await), 4);
    drop(bank);
    daemon.kill();
    sql(&daemon).execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let twin = daemon.dir().join("twin.db");
    fs::copy(daemon.database(), &twin).unwrap();
    put_back(&daemon, &base);
    daemon.resume();
    // A right one makes another version 2.
    let bank = daemon.connect("bank-a").await;
    done(&verify(&bank, &id, &rfc_code(0)).await);

    let database = sql(&daemon);
    database.execute("ATTACH ?1 AS twin", [twin.to_str().unwrap()]).unwrap();
    let versions = "SELECT m.version, t.version FROM main.credential_state m JOIN twin.credential_state t
        USING (id)";
    let versions = database.query_row(versions, [], |row| Ok((row.get(0)?, row.get(1)?)));
    assert_eq!(versions.unwrap(), (2, 2));
    let show = "CREATE TEMP TABLE own AS SELECT * FROM main.credential_state;
        INSERT OR REPLACE INTO main.credential_state SELECT * FROM twin.credential_state;
        BEGIN IMMEDIATE";
    database.execute_batch(show).unwrap();
    // The writer waits for the database; the request is judged by what it reads.
    let before = judged(&daemon);
    let used = tokio::spawn({
        let (bank, id) = (daemon.connect("bank-a").await, id.clone());
        async move { verify(&bank, &id, &rfc_code(0)).await }
    });
    eventually("it is judged", async || (judged(&daemon) > before).then_some(())).await;
    let restore = "INSERT OR REPLACE INTO main.credential_state SELECT * FROM temp.own; COMMIT";
    database.execute_batch(restore).unwrap();
    drop(database);
    refused(&used.await.unwrap(), 503, "unavailable");

    // Nobody is fooled by it, neither then nor later; and somebody is told.
    assert_eq!(failed(&verify(&bank, &id, &rfc_code(0)).await), 5);
    eventually("it is in the log", async || {
        events(&daemon).contains(&"store.row_tampered".to_owned()).then_some(())
    })
    .await;
    done(&verify(&bank, &id, &rfc_code(1)).await);
    drop(bank);
    assert!(daemon.stop().success());
    daemon.resume();
    assert!(daemon.stop().success());
}
