//! The one thread that writes: it takes what waits, commits it as a group, then answers.
//!
//! Nothing in a group is answered before the group's COMMIT returned, and SQLite shows a commit to
//! readers only after its fsync: neither an answer nor a read tells of what a crash could take back.

use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, oneshot, watch};

use super::checkpoint::{self, Wal};
use super::inventory::{Inventory, Tag};
use super::ledger::{Ledger, RunKey};
use super::sqlite::PATIENCE;
use super::standing::Fit;
use super::{Commit, CommitError, Committed, Unreadable, error_kind, rows};
use crate::domain::checkpoint::Head;
use crate::domain::row::{RowKey, TableSums};
use crate::lifeline::Lifeline;
use crate::metrics::{self, StoreError, StoreMetrics};

/// At most so many commits share one fsync.
pub(super) const GROUP_MAX: usize = 512;
/// So many rows written ask for a checkpoint; about a page each, so the WAL is some MiB long.
const ROWS_PER_CHECKPOINT: usize = 4_000;

/// A commit that waits, and who waits for it.
pub(super) struct Request {
    pub(super) commit: Commit,
    /// What it hangs on while it waits; `None`: it is the appliance's own.
    pub(super) line: Option<Arc<Lifeline>>,
    pub(super) answer: oneshot::Sender<Result<Committed, CommitError>>,
}

/// What waits for the writer.
pub(super) enum Work {
    Commit(Request),
    /// A change of what is kept besides rows, in a transaction of its own.
    Upkeep(Upkeep, oneshot::Sender<Result<(), CommitError>>),
    /// What the writer holds in memory from here on.
    Hold(Holding, oneshot::Sender<Result<(), CommitError>>),
    /// Nothing: an answer says that the writer has come so far. It is no commit that waits, and says when it was taken.
    Beat(Arc<AtomicBool>, oneshot::Sender<()>),
}

/// What the writer holds in memory during a run.
pub(super) struct Holding {
    /// What it seals the ledger with.
    pub(super) key: RunKey,
    /// What the rows add up to, and which there are; `None`: as before.
    pub(super) found: Option<(TableSums, Inventory)>,
}

/// Changes what the store keeps besides rows.
pub(super) type Upkeep = Box<dyn FnOnce(&Connection, &mut Ledger) -> rusqlite::Result<()> + Send>;

/// The writing connection and what it tells the rest of the store.
pub(super) struct Writer {
    connection: Connection,
    ledger: Ledger,
    /// `None`: nobody has looked yet which rows there are.
    inventory: Option<Inventory>,
    altered: mpsc::Sender<Unreadable>,
    head: watch::Sender<Head>,
    failed: watch::Sender<bool>,
    checkpoint: SyncSender<()>,
    rows_since_checkpoint: usize,
    wal: Arc<Wal>,
    metrics: StoreMetrics,
}

/// What became of one commit inside a transaction.
enum Verdict {
    /// The log has so many entries then.
    Written {
        log_size: u64,
    },
    Conflict,
    /// What stands there is not what was written last, or was not when it was read.
    Altered(RowKey),
    /// It replaces or removes what it does not say it has read.
    Unread,
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
        ledger: Ledger,
        (head, failed): (watch::Sender<Head>, watch::Sender<bool>),
        altered: mpsc::Sender<Unreadable>,
        checkpoint: SyncSender<()>,
        wal: Arc<Wal>,
        metrics: StoreMetrics,
    ) -> Self {
        Self {
            connection,
            ledger,
            inventory: None,
            altered,
            head,
            failed,
            checkpoint,
            rows_since_checkpoint: 0,
            wal,
            metrics,
        }
    }

    /// Works until the last [`super::Store`] is gone and the queue is empty.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Work>) {
        let mut taken = Vec::with_capacity(GROUP_MAX);
        while queue.blocking_recv_many(&mut taken, GROUP_MAX) > 0 {
            let mut group = Vec::with_capacity(taken.len());
            let (mut upkeep, mut held, mut beats) = (Vec::new(), Vec::new(), Vec::new());
            for work in taken.drain(..) {
                match work {
                    Work::Commit(request) => match &request.line {
                        Some(line) if !line.hand_over() => self.abandon(request),
                        _ => group.push(request),
                    },
                    Work::Upkeep(change, answer) => upkeep.push((change, answer)),
                    Work::Hold(holding, answer) => held.push((holding, answer)),
                    Work::Beat(waits, answer) => {
                        waits.store(false, Ordering::Release);
                        beats.push(answer);
                    }
                }
            }
            if !group.is_empty() {
                self.commit_group(group);
            }
            for (change, answer) in upkeep {
                let result = self.keep_up(change);
                let _ = answer.send(result);
            }
            for (holding, answer) in held {
                let _ = answer.send(self.hold(holding));
            }
            checkpoint::cut_if_past_cap(&self.connection, PATIENCE, &self.wal, &self.metrics);
            // Who waits for them waits for all of this.
            for answer in beats {
                let _: Result<(), ()> = answer.send(());
            }
        }
    }

    fn abandon(&self, Request { commit, answer, .. }: Request) {
        let result = Err(CommitError::Abandoned);
        self.count(&commit, &result);
        let _ = answer.send(result);
    }

    fn commit_group(&mut self, group: Vec<Request>) {
        let (commits, answers): (Vec<_>, Vec<_>) =
            group.into_iter().map(|request| (request.commit, request.answer)).unzip();
        let begun = Instant::now();
        let results = self.write_group(&commits);
        self.metrics.group_size.observe(commits.len() as f64);
        self.metrics.group_seconds.observe(begun.elapsed().as_secs_f64());
        self.head.send_replace(self.ledger.head());
        for ((answer, result), commit) in answers.into_iter().zip(results).zip(&commits) {
            self.count(commit, &result);
            // Who stopped waiting finds the commit when it reads again.
            let _ = answer.send(result);
        }
        self.ask_for_checkpoint(&commits);
    }

    fn keep_up(&mut self, change: Upkeep) -> Result<(), CommitError> {
        if *self.failed.borrow() {
            return Err(CommitError::Unavailable);
        }
        let done = self.transaction(|connection, ledger| change(connection, ledger).map(|()| ((), true)));
        self.head.send_replace(self.ledger.head());
        done.map_err(|failure| {
            self.latch(&failure);
            CommitError::Unavailable
        })
    }

    /// From here on the ledger is sealed, beginning with what it is now.
    fn hold(&mut self, Holding { key, found }: Holding) -> Result<(), CommitError> {
        let (key, (sums, inventory)) = (Arc::new(key), found.unzip());
        self.keep_up(Box::new(move |connection, ledger| {
            ledger.set_key(key);
            sums.map_or(Ok(()), |sums| ledger.set_sums(connection, sums))
        }))?;
        self.inventory = inventory.or(self.inventory.take());
        Ok(())
    }

    /// Before it is answered, so that nobody sees an answer that is not counted yet.
    fn count(&self, commit: &Commit, result: &Result<Committed, CommitError>) {
        let outcome = match result {
            Ok(_) => metrics::Commit::Written,
            Err(CommitError::Conflict) => metrics::Commit::Conflict,
            Err(CommitError::Altered(_)) => metrics::Commit::Altered,
            Err(CommitError::Busy) => metrics::Commit::Busy,
            Err(CommitError::Abandoned) => metrics::Commit::Abandoned,
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
        let metrics = self.metrics.clone();
        let mut inventory = self.inventory.take();
        let written = self.transaction(|connection, ledger| {
            write(connection, ledger, inventory.as_mut(), commits, &metrics)
        });
        if let Some(inventory) = &mut inventory {
            match &written {
                Ok(_) => inventory.settle(),
                Err(_) => inventory.forget(),
            }
        }
        self.inventory = inventory;
        match written {
            // The only place where a `Committed` is made: after COMMIT returned.
            Ok(verdicts) => verdicts
                .into_iter()
                .map(|verdict| match verdict {
                    Verdict::Written { log_size } => Ok(Committed { log_size }),
                    Verdict::Conflict => Err(CommitError::Conflict),
                    Verdict::Altered(key) => {
                        // Full: there are more of them than anybody reads of.
                        let (table, fault) =
                            (key.table(), "it is not the one that was written last".to_owned());
                        let _ = self.altered.try_send(Unreadable { table, key: Some(key.clone()), fault });
                        Err(CommitError::Altered(key))
                    }
                    Verdict::Unread => {
                        tracing::error!("a commit changes a row that it does not stand on: this is a bug");
                        Err(CommitError::Unavailable)
                    }
                })
                .collect(),
            // Each again in a transaction of its own, so that only the culprit is refused.
            Err(Failure::Statement) if commits.len() > 1 => {
                commits.iter().flat_map(|commit| self.write_group(slice::from_ref(commit))).collect()
            }
            Err(failure) => {
                self.latch(&failure);
                unavailable()
            }
        }
    }

    /// After a commit that may or may not be there.
    fn latch(&self, failure: &Failure) {
        if let Failure::Unknown = failure {
            // SQLite would go on as if nothing had happened and say yes to the next commit. We do
            // not: from here on every commit is refused, and whoever waits for `failed` ends the
            // process. Reads go on: they show what was durable before, and no yes is built from
            // them alone. Set before anybody is answered.
            self.failed.send_replace(true);
        }
    }

    /// Runs `work` in a transaction; it says whether it wrote anything. What it made of the ledger counts from COMMIT on.
    fn transaction<T>(
        &mut self,
        work: impl FnOnce(&Connection, &mut Ledger) -> rusqlite::Result<(T, bool)>,
    ) -> Result<T, Failure> {
        if let Err(error) = self.connection.execute_batch("BEGIN IMMEDIATE") {
            // Nothing was written yet, whatever the error is.
            self.metrics.errors.get_or_create(&error_kind(&error, StoreError::Begin)).inc();
            tracing::error!(cause = %error, "the store cannot begin a transaction");
            return Err(Failure::NotWritten);
        }
        let mut ledger = self.ledger.clone();
        let worked = work(&self.connection, &mut ledger).and_then(|(done, is_written)| {
            if is_written {
                ledger.settle(&self.connection)?;
            }
            Ok((done, is_written))
        });
        match worked {
            Err(error) => {
                self.metrics.errors.get_or_create(&error_kind(&error, StoreError::Statement)).inc();
                tracing::error!(cause = %error, "a statement failed; rolling back");
                self.roll_back()?;
                Err(Failure::Statement)
            }
            Ok((done, true)) => {
                self.commit()?;
                self.ledger = ledger;
                Ok(done)
            }
            Ok((done, false)) => {
                self.roll_back()?;
                Ok(done)
            }
        }
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

fn write(
    connection: &Connection,
    ledger: &mut Ledger,
    mut inventory: Option<&mut Inventory>,
    commits: &[Commit],
    metrics: &StoreMetrics,
) -> rusqlite::Result<(Vec<Verdict>, bool)> {
    let mut change = TableSums::default();
    let mut verdicts = Vec::with_capacity(commits.len());
    let mut logging = Duration::ZERO;
    for commit in commits {
        // A commit sees those before it in the group: of two that race, the second conflicts.
        let verdict = write_one(connection, ledger, inventory.as_deref_mut(), commit, &mut logging)?;
        if let Verdict::Written { .. } = verdict {
            change.add_all(&commit.sum_change);
        }
        verdicts.push(verdict);
    }
    ledger.add(connection, &change)?;
    metrics.group_log_seconds.observe(logging.as_secs_f64());
    let is_written = verdicts.iter().any(|verdict| matches!(verdict, Verdict::Written { .. }));
    Ok((verdicts, is_written))
}

/// Adds to `logging` the time that the log took.
fn write_one(
    connection: &Connection,
    ledger: &mut Ledger,
    inventory: Option<&mut Inventory>,
    commit: &Commit,
    logging: &mut Duration,
) -> rusqlite::Result<Verdict> {
    if !commit.has_read_all() {
        return Ok(Verdict::Unread);
    }
    for standing in &commit.before {
        match standing.fit(rows::standing(connection, standing.key())?, inventory.as_deref()) {
            Fit::Same => {}
            Fit::Changed => return Ok(Verdict::Conflict),
            Fit::Altered => return Ok(Verdict::Altered(standing.key().clone())),
        }
    }
    for key in commit.new_keys() {
        let found = rows::standing(connection, &key)?;
        if let Some(inventory) = inventory.as_deref()
            && inventory.at(&key) != found.map(|(_, tag)| tag)
        {
            return Ok(Verdict::Altered(key));
        }
        if found.is_some() {
            return Ok(Verdict::Conflict);
        }
    }
    for row in &commit.rows {
        if !rows::write(connection, row)? {
            // It was there a moment ago: this commit names it twice.
            return Err(rusqlite::Error::StatementChangedRows(0));
        }
    }
    for key in &commit.removed {
        rows::remove(connection, key)?;
    }
    if let Some(inventory) = inventory {
        commit.rows.iter().for_each(|row| inventory.put(&row.row.key(), Some(Tag::of(&row.seal))));
        commit.removed.iter().for_each(|key| inventory.put(key, None));
    }
    let begun = Instant::now();
    ledger.append(connection, commit)?;
    *logging += begun.elapsed();
    Ok(Verdict::Written { log_size: ledger.size() })
}
