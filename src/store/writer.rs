//! The one thread that writes: it takes what waits, commits it as a group, then answers.
//!
//! Nothing in a group is answered before the group's COMMIT returned, and SQLite shows a commit to
//! readers only after its fsync: neither an answer nor a read tells of what a crash could take back.

use std::slice;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, oneshot, watch};

use super::checkpoint::{self, Wal};
use super::sqlite::PATIENCE;
use super::{Commit, CommitError, Committed, error_kind, rows};
use crate::domain::row::{RowKey, RowSum};
use crate::metrics::{self, StoreError, StoreMetrics};

/// At most so many commits share one fsync.
pub(super) const GROUP_MAX: usize = 512;
/// So many rows written ask for a checkpoint; about a page each, so the WAL is some MiB long.
const ROWS_PER_CHECKPOINT: usize = 4_000;

/// A commit that waits, and who waits for it.
pub(super) struct Request {
    pub(super) commit: Commit,
    pub(super) answer: oneshot::Sender<Result<Committed, CommitError>>,
}

/// The writing connection and what it tells the rest of the store.
pub(super) struct Writer {
    connection: Connection,
    failed: watch::Sender<bool>,
    checkpoint: SyncSender<()>,
    rows_since_checkpoint: usize,
    wal: Arc<Wal>,
    metrics: StoreMetrics,
}

/// What became of one commit inside a transaction.
#[derive(Clone, Copy)]
enum Verdict {
    Written,
    Conflict,
}

/// Why a whole transaction is not there, or may not be.
enum Failure {
    /// It surely rolled back, and not because of any one commit in it.
    NotWritten,
    /// A statement failed and all of it rolled back: one commit in it may be the reason.
    Statement,
    /// COMMIT failed, or the connection is in a state we do not know.
    Unknown,
}

impl Writer {
    pub(super) fn new(
        connection: Connection,
        failed: watch::Sender<bool>,
        checkpoint: SyncSender<()>,
        wal: Arc<Wal>,
        metrics: StoreMetrics,
    ) -> Self {
        Self { connection, failed, checkpoint, rows_since_checkpoint: 0, wal, metrics }
    }

    /// Works until the last [`super::Store`] is gone and the queue is empty.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut group = Vec::with_capacity(GROUP_MAX);
        while queue.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
            let (commits, answers): (Vec<_>, Vec<_>) =
                group.drain(..).map(|request| (request.commit, request.answer)).unzip();
            let begun = Instant::now();
            let results = self.write_group(&commits);
            self.metrics.group_size.observe(commits.len() as f64);
            self.metrics.group_seconds.observe(begun.elapsed().as_secs_f64());
            for ((answer, result), commit) in answers.into_iter().zip(results).zip(&commits) {
                self.count(commit, &result);
                // Who stopped waiting finds the commit when it reads again.
                let _ = answer.send(result);
            }
            self.ask_for_checkpoint(&commits);
            checkpoint::cut_if_past_cap(&self.connection, PATIENCE, &self.wal, &self.metrics);
        }
    }

    /// Before it is answered, so that nobody sees an answer that is not counted yet.
    fn count(&self, commit: &Commit, result: &Result<Committed, CommitError>) {
        let outcome = match result {
            Ok(_) => metrics::Commit::Written,
            Err(CommitError::Conflict) => metrics::Commit::Conflict,
            Err(CommitError::Busy) => metrics::Commit::Busy,
            Err(CommitError::Unavailable) => metrics::Commit::Unavailable,
        };
        self.metrics.commits.get_or_create(&outcome).inc();
        if result.is_ok() {
            self.metrics.events.get_or_create(&commit.audit.event).inc();
        }
    }

    fn ask_for_checkpoint(&mut self, commits: &[Commit]) {
        let rows = |commit: &Commit| commit.rows.len() + commit.removed.len() + 1;
        self.rows_since_checkpoint += commits.iter().map(rows).sum::<usize>();
        if self.rows_since_checkpoint >= ROWS_PER_CHECKPOINT {
            self.rows_since_checkpoint = 0;
            // Full: it has been asked already. Closed: the WAL grows, and a start shortens it.
            let _ = self.checkpoint.try_send(());
        }
    }

    fn write_group(&mut self, commits: &[Commit]) -> Vec<Result<Committed, CommitError>> {
        let unavailable = || commits.iter().map(|_| Err(CommitError::Unavailable)).collect();
        if *self.failed.borrow() {
            return unavailable();
        }
        match self.transaction(commits) {
            // The only place where a `Committed` is made: after COMMIT returned.
            Ok(verdicts) => verdicts
                .into_iter()
                .map(|verdict| match verdict {
                    Verdict::Written => Ok(Committed(())),
                    Verdict::Conflict => Err(CommitError::Conflict),
                })
                .collect(),
            // Each again in a transaction of its own, so that only the culprit is refused.
            Err(Failure::Statement) if commits.len() > 1 => {
                commits.iter().flat_map(|commit| self.write_group(slice::from_ref(commit))).collect()
            }
            Err(Failure::Statement | Failure::NotWritten) => unavailable(),
            Err(Failure::Unknown) => {
                // SQLite would go on as if nothing had happened and say yes to the next commit. We do
                // not: from here on every commit is refused, and whoever waits for `failed` ends the
                // process. Reads go on: they show what was durable before, and no yes is built from
                // them alone. Set before anybody is answered.
                self.failed.send_replace(true);
                unavailable()
            }
        }
    }

    fn transaction(&self, commits: &[Commit]) -> Result<Vec<Verdict>, Failure> {
        if let Err(error) = self.connection.execute_batch("BEGIN IMMEDIATE") {
            // Nothing was written yet, whatever the error is.
            self.metrics.errors.get_or_create(&error_kind(&error, StoreError::Begin)).inc();
            tracing::error!(cause = %error, "the store cannot begin a transaction");
            return Err(Failure::NotWritten);
        }
        match self.write(commits) {
            Err(error) => {
                self.metrics.errors.get_or_create(&error_kind(&error, StoreError::Statement)).inc();
                tracing::error!(cause = %error, commits = commits.len(), "a statement failed; rolling back");
                self.roll_back()?;
                Err(Failure::Statement)
            }
            Ok(verdicts) if verdicts.iter().any(|verdict| matches!(verdict, Verdict::Written)) => {
                self.commit()?;
                Ok(verdicts)
            }
            Ok(verdicts) => {
                self.roll_back()?;
                Ok(verdicts)
            }
        }
    }

    fn write(&self, commits: &[Commit]) -> rusqlite::Result<Vec<Verdict>> {
        let mut change = RowSum::default();
        let mut verdicts = Vec::with_capacity(commits.len());
        for commit in commits {
            // A commit sees those before it in the group: of two that race, the second conflicts.
            let verdict = self.write_one(commit)?;
            if let Verdict::Written = verdict {
                change = change.plus(commit.sum_change);
            }
            verdicts.push(verdict);
        }
        rows::add_to_sum(&self.connection, change)?;
        Ok(verdicts)
    }

    fn write_one(&self, commit: &Commit) -> rusqlite::Result<Verdict> {
        let is = |key: &RowKey, version: Option<u64>| -> rusqlite::Result<bool> {
            Ok(rows::version(&self.connection, key)? == version)
        };
        for (key, version) in commit.standing.iter().chain(&commit.removed) {
            if !is(key, Some(*version))? {
                return Ok(Verdict::Conflict);
            }
        }
        for (place, sealed) in commit.rows.iter().enumerate() {
            let holds = match sealed.row.version() {
                0 => false,
                1 => is(&sealed.row.key(), None)?,
                // Compared below, by what writes it: it comes before everything else.
                _ if place == 0 => true,
                version => is(&sealed.row.key(), Some(version - 1))?,
            };
            if !holds {
                return Ok(Verdict::Conflict);
            }
        }
        for (place, row) in commit.rows.iter().enumerate() {
            match rows::write(&self.connection, row)? {
                true => {}
                false if place == 0 => return Ok(Verdict::Conflict),
                // It was there a moment ago: this commit names it twice.
                false => return Err(rusqlite::Error::StatementChangedRows(0)),
            }
        }
        for (key, _) in &commit.removed {
            rows::remove(&self.connection, key)?;
        }
        rows::append(&self.connection, &commit.audit)?;
        Ok(Verdict::Written)
    }

    fn commit(&self) -> Result<(), Failure> {
        let Err(error) = self.connection.execute_batch("COMMIT") else { return Ok(()) };
        self.metrics.errors.get_or_create(&error_kind(&error, StoreError::Commit)).inc();
        tracing::error!(cause = %error, "COMMIT failed");
        match error.sqlite_error_code() {
            // Surely rolled back. Of a full disk that is true because a WAL is only appended to: the
            // write that found no room was the commit's last frame or one before it (the unix VFS
            // promises powersafe overwrites, so no padding follows a commit frame, and the fsync
            // comes after all writes), and a frame that is not whole fails its checksum.
            Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::ConstraintViolation) => {
                self.roll_back()?;
                Err(Failure::NotWritten)
            }
            // The commit frame may be on the disk, on its way there, or lost.
            _ => Err(Failure::Unknown),
        }
    }

    fn roll_back(&self) -> Result<(), Failure> {
        // Some errors make SQLite roll back by itself.
        if self.connection.is_autocommit() {
            return Ok(());
        }
        self.connection.execute_batch("ROLLBACK").map_err(|error| {
            self.metrics.errors.get_or_create(&error_kind(&error, StoreError::Rollback)).inc();
            tracing::error!(cause = %error, "ROLLBACK failed");
            Failure::Unknown
        })
    }
}
