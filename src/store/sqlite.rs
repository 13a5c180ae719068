//! The embedded backend: SQLite in WAL mode, one writer thread, one that makes checkpoints, and
//! readers that wait for neither.

use std::path::Path;
use std::sync::{Arc, Mutex, mpsc as std_mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

use super::checkpoint::{self, Wal};
use super::columns::Fault;
use super::ledger::Ledger;
use super::reader::{self, Read};
use super::writer::{Request, Upkeep, Work, Writer};
use super::{Commit, CommitError, Committed, OpenError, QUEUE_MAX, ReadError};
use super::{files, schema};
use crate::domain::checkpoint::Head;
use crate::metrics::{self, StoreError, StoreMetrics};

/// So many threads read: one can wait for the disk while another goes on.
pub(super) const READERS: usize = 2;
/// So many reads wait for one; beyond that they are refused at once.
pub(super) const READS_MAX: usize = 1_024;
/// How long a commit waits for somebody else's write lock: an operator's shell, say.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

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
    head: watch::Receiver<Head>,
    queue: mpsc::Sender<Work>,
    metrics: StoreMetrics,
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
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let lock = files::prepare(path)?;
        let mut connection = connect(path)?;
        schema::migrate(&mut connection, path)?;
        schema::compare(&connection, path)?;
        configure(&connection).map_err(|error| unusable(path, &error))?;
        let ledger =
            Ledger::load(&connection).map_err(|fault| OpenError(format!("{}: {fault}", path.display())))?;
        let checkpoints = connect(path)?;
        let idle = (0..READERS).map(|_| reader::open(path).map_err(|error| unusable(path, &error)));
        let idle: Vec<Connection> = idle.collect::<Result<_, _>>()?;

        let (queue, requests) = mpsc::channel(QUEUE_MAX);
        let (latch, failed) = watch::channel(false);
        let (publish, head) = watch::channel(ledger.head());
        let (ask, asked) = std_mpsc::sync_channel(1);
        let wal = Arc::new(Wal::default());
        let metrics = StoreMetrics::default();
        let writer = Writer::new(connection, ledger, publish, latch, ask, Arc::clone(&wal), metrics.clone());
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
                head,
                queue,
                metrics,
                _threads: threads,
                _lock: lock,
            }),
        })
    }

    /// Commits; see the contract above [`crate::store`]. The commit goes on when the caller stops
    /// waiting for it.
    pub async fn commit(&self, commit: Commit) -> Result<Committed, CommitError> {
        self.ask(|answer| Work::Commit(Request { commit, answer })).await
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
        self.inner.queue.max_capacity().saturating_sub(self.inner.queue.capacity())
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

    /// Has `read` done by a reader, within one snapshot of the database, off the async threads.
    pub(super) async fn read<T, F>(&self, read: F) -> Result<T, ReadError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, Fault> + Send + 'static,
    {
        let (answer, outcome) = oneshot::channel();
        let question: Read = Box::new(move |transaction| {
            let result = read(transaction);
            let fault = result.as_ref().err().map(ToString::to_string);
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
