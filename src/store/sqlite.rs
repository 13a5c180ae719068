//! The embedded backend: SQLite in WAL mode, one writer thread, one that makes checkpoints, and
//! readers that wait for neither.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

use super::checkpoint::{self, Wal};
use super::columns::Fault;
use super::inventory::Inventory;
use super::ledger::{Ledger, RunKey};
use super::reader::{self, Read};
use super::writer::{Holding, Request, Upkeep, Work, Writer};
use super::{Commit, CommitError, Committed, OpenError, QUEUE_MAX, ReadError, Unreadable};
use super::{damage, files, schema};
use crate::domain::checkpoint::Head;
use crate::domain::ledger::{LedgerSeal, LedgerState};
use crate::domain::row::TableSums;
use crate::lifeline::Lifeline;
use crate::metrics::{self, StoreError, StoreMetrics};

/// So many threads read: one can wait for the disk while another goes on.
pub(super) const READERS: usize = 2;
/// So many reads wait for one; beyond that they are refused at once.
pub(super) const READS_MAX: usize = 1_024;
/// How many rows that were found changed wait to be written down.
const REPORTS_MAX: usize = 64;
/// How long a commit waits for somebody else's write lock: an operator's shell, say.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// What an operator does about a log that does not fit.
const REMEDY: &str = "put the newest whole database back, or run `hsm-authd recover --config FILE`, which says what \
    it would set aside (docs/recovery.md)";

/// A database of this appliance, opened by this process alone. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// Dropped in this order: the readers end, the queue closes, the threads finish what waits in it
/// and end, the last connection empties the WAL, and only then another process may come.
struct Inner {
    questions: mpsc::Sender<Read>,
    _readers: Vec<Joined>,
    failed: watch::Receiver<bool>,
    changed: (mpsc::Sender<Unreadable>, Mutex<Option<mpsc::Receiver<Unreadable>>>),
    head: watch::Receiver<Head>,
    left: (LedgerState, Option<LedgerSeal>),
    queue: mpsc::Sender<Work>,
    /// A [`Work::Beat`] is in the queue.
    beat_waits: Arc<AtomicBool>,
    metrics: StoreMetrics,
    path: PathBuf,
    _threads: [Joined; 2],
    _lock: files::Lock,
}

/// A thread that is waited for when its handle is dropped.
struct Joined(Option<JoinHandle<()>>);

impl Drop for Joined {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // Its panic is told by itself; the queue it left behind answers `Unavailable`.
            let _ = thread.join();
        }
    }
}

impl Joined {
    fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<Self, OpenError> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
        thread
            .map(|thread| Self(Some(thread)))
            .map_err(|error| OpenError(format!("cannot start the thread {name}: {error}")))
    }
}

impl Store {
    /// Opens the database at `path`, or makes it (mode 0600) where there is none; its folder must
    /// exist. Brings an older schema up to date. Waits for the disk: not for an async thread that
    /// has anything else to do.
    ///
    /// # Errors
    /// One line for the operator. A log whose last entries are not what was written is not opened.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_by(path, ended, |connection| {
            Ledger::load(connection).map_err(|fault| match fault {
                Fault::Entry(_) => format!("{fault}; {REMEDY}"),
                other => other.to_string(),
            })
        })
    }

    /// Opens it for a recovery: also one whose log does not fit. Nothing may be committed to such a one before
    /// [`Store::cut_log`].
    ///
    /// # Errors
    /// One line for the operator.
    pub fn open_to_recover(path: &Path) -> Result<Self, OpenError> {
        Self::open_by(path, schema::migrate, whatever_is_left)
    }

    /// The same, for who may change nothing: what the release before left without an end is refused.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn open_to_look(path: &Path) -> Result<Self, OpenError> {
        Self::open_by(path, ended, whatever_is_left)
    }

    fn open_by(
        path: &Path,
        bring_up_to_date: impl FnOnce(&mut Connection, &Path) -> Result<(), OpenError>,
        load: impl FnOnce(&Connection) -> Result<Ledger, String>,
    ) -> Result<Self, OpenError> {
        let lock = files::prepare(path)?;
        let mut connection = connect(path)?;
        bring_up_to_date(&mut connection, path)?;
        schema::compare(&connection, path)?;
        configure(&connection).map_err(|error| unusable(path, &error))?;
        let ledger = load(&connection).map_err(|fault| OpenError(format!("{}: {fault}", path.display())))?;
        let checkpoints = connect(path)?;
        let idle = (0..READERS).map(|_| reader::open(path).map_err(|error| unusable(path, &error)));
        let idle: Vec<Connection> = idle.collect::<Result<_, _>>()?;

        let (queue, requests) = mpsc::channel(QUEUE_MAX);
        let (latch, failed) = watch::channel(false);
        let left = (ledger.state(), ledger.seal());
        let (publish, head) = watch::channel(left.0.head());
        let (report, reported) = mpsc::channel(REPORTS_MAX);
        let (ask, asked) = std_mpsc::sync_channel(1);
        let wal = Arc::new(Wal::default());
        let metrics = StoreMetrics::default();
        let (told, cut) = ((publish, latch), Arc::clone(&wal));
        let writer = Writer::new(connection, ledger, told, report.clone(), ask, cut, metrics.clone());
        let counted = metrics.clone();
        let threads = [
            Joined::spawn("store-writer", move || writer.run(requests))?,
            Joined::spawn("store-checkpoint", move || checkpoint::run(&checkpoints, &asked, &wal, &counted))?,
        ];
        let (questions, asked) = mpsc::channel(READS_MAX);
        let asked = Arc::new(Mutex::new(asked));
        let readers = idle.into_iter().map(|connection| {
            let (path, asked) = (path.to_owned(), Arc::clone(&asked));
            Joined::spawn("store-reader", move || reader::run(&path, connection, &asked))
        });
        let readers = readers.collect::<Result<_, _>>()?;
        Ok(Self {
            inner: Arc::new(Inner {
                questions,
                _readers: readers,
                failed,
                changed: (report, Mutex::new(Some(reported))),
                head,
                left,
                queue,
                beat_waits: Arc::default(),
                metrics,
                path: path.to_owned(),
                _threads: threads,
                _lock: lock,
            }),
        })
    }

    /// Commits; see the contract above [`crate::store`]. A commit that the writer has taken goes on when the caller
    /// stops waiting for it.
    pub async fn commit(&self, commit: Commit) -> Result<Committed, CommitError> {
        let line = Lifeline::current();
        let request = |answer| Work::Commit(Request { commit, line: line.clone(), answer });
        let result = self.ask(request).await;
        // By the task that works on the request, not by the writer: nothing can end that task before it knows that nothing
        // was written, and has seen to what hangs on that.
        match (result, line) {
            (Err(error), Some(line)) => match line.hand_back() {
                // It would be decided anew, for nobody.
                false if matches!(error, CommitError::Conflict | CommitError::Altered(_)) => {
                    Err(CommitError::Abandoned)
                }
                _ => Err(error),
            },
            (result, _) => result,
        }
    }

    /// Changes what is kept besides rows, in a transaction of its own.
    pub(super) async fn keep_up(&self, change: Upkeep) -> Result<(), CommitError> {
        self.ask(|answer| Work::Upkeep(change, answer)).await
    }

    async fn ask<T>(
        &self,
        work: impl FnOnce(oneshot::Sender<Result<T, CommitError>>) -> Work,
    ) -> Result<T, CommitError> {
        let (answer, outcome) = oneshot::channel();
        self.inner.queue.try_send(work(answer)).map_err(|error| match error {
            TrySendError::Full(_) => {
                self.inner.metrics.commits.get_or_create(&metrics::Commit::Busy).inc();
                CommitError::Busy
            }
            TrySendError::Closed(_) => self.writer_is_gone(),
        })?;
        // No answer: the writer panicked, and nobody knows how far it came.
        outcome.await.unwrap_or_else(|_| Err(self.writer_is_gone()))
    }

    /// The head of the log as of the last commit that is durable, and every later one.
    pub fn head(&self) -> watch::Receiver<Head> {
        self.inner.head.clone()
    }

    /// What the database said of itself when it was opened, and the seal of that.
    pub fn left(&self) -> &(LedgerState, Option<LedgerSeal>) {
        &self.inner.left
    }

    /// From here on what the database says of itself is sealed with this key, and rows are held against those that there
    /// are: `None` leaves these as they are known.
    ///
    /// # Errors
    /// As for [`Store::commit`]: nothing of it is in force then.
    pub async fn hold(&self, key: RunKey, found: Option<(TableSums, Inventory)>) -> Result<(), CommitError> {
        self.ask(|answer| Work::Hold(Holding { key, found }, answer)).await
    }

    /// Comes back once the writer has come through what was before it, however long that takes; `false`: there is no
    /// writer any more. For one caller at a time.
    pub async fn beats(&self) -> bool {
        let (answer, outcome) = oneshot::channel();
        let Ok(place) = self.inner.queue.reserve().await else { return false };
        self.inner.beat_waits.store(true, Ordering::Release);
        place.send(Work::Beat(self.inner.beat_waits.clone(), answer));
        outcome.await.is_ok()
    }

    /// Where its database is.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    fn writer_is_gone(&self) -> CommitError {
        self.inner.metrics.commits.get_or_create(&metrics::Commit::Unavailable).inc();
        CommitError::Unavailable
    }

    /// What it counts.
    pub fn metrics(&self) -> &StoreMetrics {
        &self.inner.metrics
    }

    /// How many commits wait for the writer.
    pub fn waiting(&self) -> usize {
        let waiting = self.inner.queue.max_capacity().saturating_sub(self.inner.queue.capacity());
        waiting.saturating_sub(usize::from(self.inner.beat_waits.load(Ordering::Acquire)))
    }

    /// Resolves when the outcome of a commit is unknown (or the writer is gone): the process has to
    /// end. Never resolves otherwise.
    pub async fn failed(&self) {
        let mut failed = self.inner.failed.clone();
        let _ = failed.wait_for(|failed| *failed).await;
    }

    /// Whether the outcome of a commit is unknown.
    pub fn has_failed(&self) -> bool {
        *self.inner.failed.borrow()
    }

    /// Rows that cannot be read, or that are missing, as they are found: for whoever asks first.
    pub fn changed_rows(&self) -> Option<mpsc::Receiver<Unreadable>> {
        self.inner.changed.1.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Tells of one that was found by somebody who reads the unreadable ones too.
    pub fn report(&self, row: Unreadable) {
        // What finds no room is found again.
        let _ = self.inner.changed.0.try_send(row);
    }

    /// Has `read` done by a reader, within one snapshot of the database, off the async threads.
    pub(super) async fn read<T, F>(&self, read: F) -> Result<T, ReadError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, Fault> + Send + 'static,
    {
        let (answer, outcome) = oneshot::channel();
        let report = self.inner.changed.0.clone();
        let question: Read = Box::new(move |transaction| {
            if answer.is_closed() {
                return None;
            }
            let result = read(transaction);
            let fault = match result.as_ref().err().map(|fault| (fault, fault.row())) {
                None => None,
                // Somebody changed it: that is told by its name, and once. The database itself can be read.
                Some((_, Some(row))) => {
                    let _ = report.try_send(row);
                    None
                }
                Some((fault, None)) => Some(fault.to_string()),
            };
            // Who stopped waiting needs no answer.
            let _ = answer.send(result.map_err(|_| ReadError));
            fault
        });
        let result = match self.inner.questions.try_send(question) {
            // No answer: it was dropped with a connection that cannot be used, or its reader panicked.
            Ok(()) => outcome.await.unwrap_or(Err(ReadError)),
            Err(_) => Err(ReadError),
        };
        if result.is_err() {
            self.inner.metrics.errors.get_or_create(&StoreError::Read).inc();
        }
        result
    }
}

/// Brings a database up to date, but for one that the release before can still end as it should be.
fn ended(connection: &mut Connection, path: &Path) -> Result<(), OpenError> {
    schema::check_ended(connection, path)?;
    schema::migrate(connection, path)
}

fn whatever_is_left(connection: &Connection) -> Result<Ledger, String> {
    damage::ledger(connection).map_err(|fault| fault.to_string())
}

fn unusable(path: &Path, error: &rusqlite::Error) -> OpenError {
    OpenError(format!("cannot open the database {}: {error}", path.display()))
}

fn connect(path: &Path) -> Result<Connection, OpenError> {
    // No CREATE: the file is there, made with the right mode.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(PATIENCE)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "trusted_schema", false)?;
        schema::distrust(&connection)?;
        // A deleted secret leaves the file, not only the tree; so does one in a table that a migration
        // drops.
        connection.pragma_update(None, "secure_delete", true)?;
        Ok(connection)
    };
    open().map_err(|error| unusable(path, &error))
}

/// What the writing connection needs beyond [`connect`].
fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| {
        match row.get::<_, String>(0)?.as_str() {
            "wal" => Ok(()),
            _ => Err(rusqlite::Error::InvalidQuery),
        }
    })?;
    // A checkpoint inside a COMMIT would make everybody wait, and its error look like the commit's.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    // In KiB when negative. A group that outgrows the cache writes its pages twice.
    connection.pragma_update(None, "cache_size", -64 * 1_024)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}
