//! What a start, and a service that is there, find of a database: by the product's own code in this process.

use std::mem::ManuallyDrop;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hsm_authd::clock::{SystemClock, WatchedClock};
use hsm_authd::files::Files;
use hsm_authd::hsm::Hsm;
use hsm_authd::service::{Policies, Service};
use hsm_authd::store::Store;
use hsm_authd::trust;
use rusqlite::Connection as Sql;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::audit_files::Copy;
use crate::daemon::Daemon;
use crate::tampered_tables::{Content, Edit};
use crate::token::{Custodian, TestToken};

/// What a start finds of a database, by the product's own code in this process.
pub struct Starts {
    pub hsm: Hsm,
    pub anchor: String,
    _custodians: Vec<Custodian>,
}

impl Starts {
    pub async fn new(daemon: &Daemon) -> Self {
        let (events, mut told) = mpsc::unbounded_channel();
        let hsm = Hsm::new(&[2], (Default::default(), 100), events);
        // The folder stays the daemon's.
        let token = ManuallyDrop::new(TestToken::of(daemon));
        let mut custodians = Vec::new();
        for slot in 0..2 {
            let mut custodian = token.spawn();
            custodian.send(&token.boot);
            let stream = custodian.take_stream();
            stream.set_nonblocking(true).unwrap();
            tokio::spawn(hsm.clone().adopt(slot, 1, UnixStream::from_std(stream).unwrap()));
            told.recv().await.unwrap();
            custodians.push(custodian);
        }
        let anchor = hsm.read_anchor(0).await.unwrap().unwrap();
        Self { hsm, anchor, _custodians: custodians }
    }

    pub fn service(&self, database: &Path) -> Result<Service, String> {
        Store::open(database).map(|store| self.over(store)).map_err(|error| error.to_string())
    }

    pub fn over(&self, store: Store) -> Service {
        let clock = Arc::new(WatchedClock::new(Box::new(SystemClock), false).unwrap());
        let policies = Policies {
            credentials: Default::default(),
            transactions: Default::default(),
            attestations: Default::default(),
            audit: Default::default(),
        };
        let trust = trust::load(&Default::default(), &Files::Disk).unwrap();
        Service::new(store, self.hsm.clone(), clock, policies, trust)
    }

    /// The line that it ends with; `None`: it starts, and the anchor is set back. Others start beside it with another
    /// first entry: the token takes one of these anchors only, and that is no refusal.
    pub async fn refusal(&self, service: &Service) -> Option<String> {
        let line = service.begin(false).await.err();
        let line = line.filter(|line| !line.contains("the token takes no anchor of the log"));
        if line.is_none() {
            self.hsm.write_anchor(0, self.anchor.clone(), true).await.unwrap();
        }
        line
    }
}

/// A copy of the database that a service has open, and somebody else too.
pub struct Bench {
    pub copy: Copy,
    pub sql: Sql,
    pub store: Store,
    pub service: Service,
}

impl Bench {
    pub fn new(newest: &Copy, starts: &Starts) -> Self {
        let copy = Copy::of(&newest.path);
        let store = Store::open(&copy.path).unwrap();
        let service = starts.over(store.clone());
        let sql = Sql::open(&copy.path).unwrap();
        sql.busy_timeout(Duration::from_secs(10)).unwrap();
        sql.pragma_update(None, "ignore_check_constraints", true).unwrap();
        sql.pragma_update(None, "synchronous", "OFF").unwrap();
        Self { copy, sql, store, service }
    }

    /// Whether a row of the table cannot be read, or a custodian refuses it.
    pub fn is_seen(&self, tables: &[Content], edit: &Edit, starts: &Starts, handle: &Handle) -> bool {
        let Ok(rows) = handle.block_on(self.store.rows_after(None, 10_000)) else { return true };
        let of_table = rows.iter().filter(|row| row.row.key().table().name() == tables[edit.table].name);
        let wrong = handle.block_on(starts.hsm.tampered(of_table.map(|row| row.to_bytes()).collect()));
        wrong.unwrap().len() == 1
    }

    pub fn apply(&self, sql: &str) -> bool {
        let before = self.sql.total_changes();
        let done = self.sql.execute_batch(&format!("BEGIN; {sql}; COMMIT")).is_ok();
        if !done {
            let _ = self.sql.execute_batch("ROLLBACK");
        }
        done && self.sql.total_changes() > before
    }
}
