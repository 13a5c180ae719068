//! The threads that read: each takes what waits, and answers all of it from one snapshot.
//!
//! A snapshot begins after its questions were asked, so it shows every commit that was answered before them. It
//! is shared because the first page that a connection reads after a commit empties its cache: alone, each
//! question would fetch the tops of the same trees again, and be a wake-up of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, Transaction};
use tokio::sync::mpsc::Receiver;

use super::schema;
use super::sqlite::PATIENCE;

/// At most so many questions share a snapshot: a checkpoint cannot pass one that is in use.
const BATCH_MAX: usize = 64;

/// Reads, tells whoever waits, and says what went wrong with the database, if something did.
pub(super) type Read = Box<dyn FnOnce(&Transaction<'_>) -> Option<String> + Send>;

/// How often it is told that reads fail.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What is told of reads that fail: whoever asks can make them fail as often as they ask.
#[derive(Default)]
struct Told {
    last: Option<Instant>,
    /// How many failed since.
    untold: u64,
}

impl Told {
    /// How many failures are told of now, this one included; `None`: it is told with a later one.
    fn failed(&mut self, now: Instant) -> Option<u64> {
        self.untold = self.untold.saturating_add(1);
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < TELL_EVERY) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.untold))
    }

    fn tell(&mut self, cause: &str) {
        if let Some(reads) = self.failed(Instant::now()) {
            tracing::error!(cause, reads, "the store cannot be read");
        }
    }
}

/// Works on a connection from [`open`] until the last [`super::Store`] is gone and nothing waits.
pub(super) fn run(path: &Path, connection: Connection, asked: &Mutex<Receiver<Read>>) {
    let (mut idle, mut told) = (Some(connection), Told::default());
    // What panics is one question; those of its batch get no answer, and the thread goes on.
    while catch_unwind(AssertUnwindSafe(|| answer_all(path, &mut idle, &mut told, asked))).is_err() {}
}

fn answer_all(path: &Path, idle: &mut Option<Connection>, told: &mut Told, asked: &Mutex<Receiver<Read>>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    loop {
        // Held while it waits: the other readers queue up behind it, and each wakes for a batch.
        let taken =
            asked.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv_many(&mut batch, BATCH_MAX);
        if taken == 0 {
            return;
        }
        let mut questions = batch.drain(..);
        while questions.len() > 0 {
            if let Err(error) = answer(path, idle, told, &mut questions) {
                told.tell(&error.to_string());
                break;
            }
        }
    }
}

/// Answers until a question meets an error: a connection that met one is not used again.
fn answer(
    path: &Path,
    idle: &mut Option<Connection>,
    told: &mut Told,
    questions: &mut impl Iterator<Item = Read>,
) -> rusqlite::Result<()> {
    let mut connection = match idle.take() {
        Some(connection) => connection,
        None => open(path)?,
    };
    let transaction = connection.transaction()?;
    for question in questions {
        if let Some(fault) = question(&transaction) {
            told.tell(&fault);
            return Ok(());
        }
    }
    drop(transaction);
    *idle = Some(connection);
    Ok(())
}

/// A connection with all the descriptors it will need: later the process may be short of them.
pub(super) fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(PATIENCE)?;
    connection.pragma_update(None, "query_only", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    schema::distrust(&connection)?;
    connection.set_prepared_statement_cache_capacity(64);
    // The WAL is opened by the first read.
    connection.query_row("SELECT EXISTS (SELECT 1 FROM log_head)", [], |_| Ok(()))?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::super::columns::Fault;
    use super::super::sqlite::{READERS, READS_MAX};
    use super::super::{ReadError, Store};
    use super::*;

    /// A store in a folder of its own, which goes with it.
    struct Scratch(std::path::PathBuf, Store);

    impl Scratch {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("hsm-authd-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            let store = Store::open(&folder.join("db")).unwrap();
            Self(folder, store)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn reads_that_fail_are_told_of_every_ten_seconds() {
        let (mut told, begun) = (Told::default(), Instant::now());
        assert_eq!(told.failed(begun), Some(1));
        let soon = begun + TELL_EVERY - Duration::from_millis(1);
        assert!((0..10_000).all(|_| told.failed(soon).is_none()));
        assert_eq!(told.failed(begun + TELL_EVERY), Some(10_001));
        assert_eq!(told.failed(begun + TELL_EVERY), None);
    }

    #[tokio::test]
    async fn a_question_that_panics_is_its_own_loss_alone() {
        let scratch = Scratch::new("panics");
        for _ in 0..10 {
            let panicked = scratch.1.read(|_| -> Result<(), Fault> { panic!("on purpose") }).await;
            assert_eq!(panicked, Err(ReadError));
        }
        assert_eq!(scratch.1.rows_count().await, Ok(0));
    }

    #[tokio::test]
    async fn a_slow_question_holds_nobody_up_and_readers_have_what_they_need() {
        let scratch = Scratch::new("slow");
        // Nobody could open it now.
        std::fs::rename(scratch.0.join("db"), scratch.0.join("moved")).unwrap();
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (end, ends) = std::sync::mpsc::channel::<()>();
        let store = scratch.1.clone();
        let slow = tokio::spawn(async move {
            let read = store.read(move |_| {
                let _ = begun.send(());
                Ok(ends.recv().is_ok())
            });
            read.await
        });
        has_begun.await.unwrap();
        assert_eq!(scratch.1.rows_count().await, Ok(0));
        end.send(()).unwrap();
        assert_eq!(slow.await.unwrap(), Ok(true));
    }

    #[tokio::test]
    async fn what_finds_no_room_is_refused_at_once() {
        let scratch = Scratch::new("full");
        let store = &scratch.1;
        let mut once = std::task::Context::from_waker(std::task::Waker::noop());
        let mut ends = Vec::new();
        let mut slow = Vec::new();
        for _ in 0..READERS {
            let (begun, has_begun) = tokio::sync::oneshot::channel();
            let (end, until) = std::sync::mpsc::channel::<()>();
            let mut read = Box::pin(store.read(move |_| {
                let _ = begun.send(());
                Ok(until.recv().is_ok())
            }));
            assert!(read.as_mut().poll(&mut once).is_pending());
            has_begun.await.unwrap();
            ends.push(end);
            slow.push(read);
        }
        let mut waiting: Vec<_> = (0..READS_MAX).map(|_| Box::pin(store.rows_count())).collect();
        assert!(waiting.iter_mut().all(|read| read.as_mut().poll(&mut once).is_pending()));
        let mut beyond = Box::pin(store.rows_count());
        assert_eq!(beyond.as_mut().poll(&mut once), std::task::Poll::Ready(Err(ReadError)));
        drop(ends);
        for read in slow {
            assert_eq!(read.await, Ok(false));
        }
        for read in waiting {
            assert_eq!(read.await, Ok(0));
        }
        assert_eq!(store.rows_count().await, Ok(0));
    }

    #[tokio::test]
    async fn a_question_that_fails_spoils_no_other() {
        let scratch = Scratch::new("fails");
        let store = &scratch.1;
        let questions: Vec<_> = (0..200)
            .map(|number| {
                let store = store.clone();
                let sql = if number % 7 == 0 { "SELECT 1 FROM nowhere" } else { "SELECT 1" };
                tokio::spawn(async move {
                    let read = store.read(move |tx| Ok(tx.query_row(sql, [], |row| row.get::<_, u8>(0))?));
                    (number % 7 == 0, read.await)
                })
            })
            .collect();
        for question in questions {
            let (fails, answer) = question.await.unwrap();
            assert_eq!(answer, if fails { Err(ReadError) } else { Ok(1) });
        }
    }
}
