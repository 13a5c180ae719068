//! Rows that somebody changes under a service that runs: each alarms, once, and nobody else notices.

use std::collections::BTreeSet;
use std::sync::Arc;

use hsm_authd::clock::{SystemClock, WatchedClock};
use hsm_authd::domain::audit::{AuditEntry, Event};
use hsm_authd::domain::row::{Row, Sealed, Table, TableSums};
use hsm_authd::files::Files;
use hsm_authd::hsm::Hsm;
use hsm_authd::service::{Policies, Service};
use hsm_authd::store::{Commit, Store};
use hsm_authd::trust;
use rusqlite::Connection as Sql;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::bank::{done, refused};
use crate::daemon::{Daemon, enrol_hotp, rfc_code, verify};
use crate::integrity::{events, sql};
use crate::processes::eventually;
use crate::scrape::Scrape;
use crate::scratch::Scratch;
use crate::store_samples::{self, one_of_each};
use crate::token::{Custodian, TestToken};

/// A database with a row in each table, and a service over it that watches them.
struct Watched {
    store: Store,
    hsm: Hsm,
    service: Arc<Service>,
    sql: Sql,
    _custodian: Custodian,
    _token: TestToken,
    _scratch: Scratch,
}

impl Watched {
    async fn new() -> Self {
        let token = TestToken::new();
        let mut custodian = token.spawn();
        custodian.send(&token.boot);
        let stream = custodian.take_stream();
        stream.set_nonblocking(true).unwrap();
        let (sender, mut told) = mpsc::unbounded_channel();
        let hsm = Hsm::new(&[1], (Default::default(), 100), sender);
        tokio::spawn(hsm.clone().adopt(0, 1, UnixStream::from_std(stream).unwrap()));
        told.recv().await.unwrap();

        let scratch = Scratch::new();
        let store = Store::open(&scratch.join("store.db")).unwrap();
        let rows: Vec<Row> = one_of_each().into_iter().map(|row| row.row).collect();
        let seals = token.custodian().seal(&rows);
        let sealed = rows.into_iter().zip(seals).map(|(row, sealed)| Sealed { row, seal: sealed.seal });
        let commit = Commit {
            before: Vec::new(),
            rows: sealed.collect(),
            removed: Vec::new(),
            sum_change: TableSums::default(),
            audit: AuditEntry::of_appliance(1, Event::Pruned),
        };
        let _durable = store.commit(commit).await.unwrap();
        let policies = Policies {
            credentials: Default::default(),
            transactions: Default::default(),
            attestations: Default::default(),
            audit: Default::default(),
        };
        let clock = Arc::new(WatchedClock::new(Box::new(SystemClock), false).unwrap());
        let trust = trust::load(&Default::default(), &Files::Disk).unwrap();
        let service = Arc::new(Service::new(store.clone(), hsm.clone(), clock, policies, trust));
        let watching = service.clone();
        tokio::spawn(async move { watching.watch_rows().await });
        let sql = Sql::open(scratch.join("store.db")).unwrap();
        sql.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
        sql.pragma_update(None, "ignore_check_constraints", true).unwrap();
        Self { store, hsm, service, sql, _custodian: custodian, _token: token, _scratch: scratch }
    }

    /// Whether all rows can be read, and are what was sealed.
    async fn are_right(&self) -> bool {
        let Ok(rows) = self.store.rows_after(None, 1_000).await else { return false };
        self.hsm.check(rows.iter().map(Sealed::to_bytes).collect()).await.is_ok()
    }

    /// What the log calls the rows that alarmed, in order, once there are so many.
    async fn alarmed(&self, count: usize) -> Vec<String> {
        eventually("they are in the log", async || {
            let entries = self.store.audit_entries(0, 1_000).await.unwrap();
            let entries = entries.into_iter().filter(|logged| logged.entry.event == Event::RowTampered);
            let names: Vec<_> = entries.filter_map(|logged| logged.entry.detail).collect();
            assert!(names.len() <= count, "{names:?}");
            (names.len() == count).then_some(names)
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_row_of_each_table_alarms_once_whether_it_can_be_read_or_not() {
    for seal in ["zeroblob(32)", "x'00'"] {
        let watched = Watched::new().await;
        assert!(watched.are_right().await);
        let mut expected = BTreeSet::new();
        for table in Table::ALL {
            let (name, query) = (table.name(), format!("SELECT seal FROM {}", table.name()));
            let was: Vec<u8> = watched.sql.query_row(&query, [], |row| row.get(0)).unwrap();
            let changed = watched.sql.execute(&format!("UPDATE {name} SET seal = {seal}"), []).unwrap();
            assert_eq!(changed, 1, "{name}");
            for _ in 0..3 {
                assert!(!watched.are_right().await, "{name}");
            }
            expected.insert(name);
            let names = watched.alarmed(expected.len()).await;
            let tables: BTreeSet<_> = names.iter().map(|name| name.split_once(':').unwrap().0).collect();
            assert_eq!(tables, expected, "{seal}");
            assert!(names.iter().all(|name| name.split_once(':').unwrap().1.len() == 32), "{names:?}");
            watched.sql.execute(&format!("UPDATE {name} SET seal = ?1"), [was]).unwrap();
        }
        assert!(watched.are_right().await, "nothing else is disturbed");
        let counted = watched.service.log_metrics().tampered_rows.get();
        assert_eq!(counted, Table::ALL.len() as u64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_without_its_state_or_its_account_alarms_once() {
    for table in ["credential_state", "account"] {
        let watched = Watched::new().await;
        let (tenant, id) = (store_samples::tenant("bank-a"), store_samples::id(1));
        assert!(watched.store.credential(&tenant, id).await.unwrap().is_some());
        watched.sql.execute(&format!("DELETE FROM {table}"), []).unwrap();
        for _ in 0..3 {
            assert!(watched.store.credential(&tenant, id).await.is_err());
        }
        let names = watched.alarmed(1).await;
        assert!(names[0].starts_with(&format!("{table}:")), "{names:?}");
    }
}

/// Whoever has a broken row used by the bank fills no log.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_uses_of_a_changed_row_are_one_entry_and_one_line() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let other = enrol_hotp(&bank, "acct-other").await;
    let mut victims = Vec::new();
    for account in ["acct-sealed", "acct-unreadable", "acct-missing"] {
        victims.push(enrol_hotp(&bank, account).await);
    }
    let database = sql(&daemon);
    database.pragma_update(None, "ignore_check_constraints", true).unwrap();
    for change in [
        "UPDATE account SET failures = 1 WHERE account = 'acct-sealed'",
        "UPDATE account SET lock = x'ff' WHERE account = 'acct-unreadable'",
        "DELETE FROM account WHERE account = 'acct-missing'",
    ] {
        assert_eq!(database.execute(change, []).unwrap(), 1);
    }
    for _ in 0..1_000 {
        for victim in &victims {
            refused(&verify(&bank, victim, &rfc_code(0)).await, 503, "unavailable");
        }
    }
    let alarms = async || events(&daemon).iter().filter(|event| *event == "store.row_tampered").count();
    eventually("they are in the log", async || (alarms().await >= 3).then_some(())).await;
    done(&verify(&bank, &other, &rfc_code(0)).await);
    assert_eq!(alarms().await, 3);
    assert_eq!(Scrape::of(&daemon).sum("hsm_authd_tampered_rows_total"), 3.0);
    let log = daemon.log();
    let told: Vec<_> = log.lines().filter(|line| !line.contains("\"message\":\"request\"")).collect();
    let is_alarm = |line: &&&str| line.contains("a row is not what was written last");
    assert_eq!(told.iter().filter(is_alarm).count(), 3, "{told:#?}");
    assert!(told.len() < 60, "{told:#?}");
    assert!(!log.contains("acct-"), "no account is named");
}
