//! Bringing the WAL into the database file: by a thread of its own, so that the writer never waits
//! for it, until the WAL is past its cap.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;

use super::error_kind;
use crate::metrics::{StoreError, StoreMetrics};

/// The WAL's cap in bytes. Past it the writer stops for one checkpoint that cuts it.
const WAL_BYTES_MAX: i64 = 64 << 20;
/// How long the writer waits for readers (a backup, a shell) that keep the WAL from being cut.
const CUT_PATIENCE: Duration = Duration::from_millis(100);

/// What the writer and the checkpoint thread know together of the WAL.
#[derive(Default)]
pub(super) struct Wal {
    past_cap: AtomicBool,
    /// Held during a checkpoint: SQLite would refuse a second one, not let it wait.
    checkpoint: Mutex<()>,
}

/// Makes a checkpoint whenever it is asked to, until the writer is gone. PASSIVE: it waits for
/// nobody and nobody for it.
///
/// A checkpoint that fails loses nothing: the WAL keeps every commit until it was copied and the
/// copy synced, and the next checkpoint copies it again.
pub(super) fn run(connection: &Connection, asked: &Receiver<()>, wal: &Wal, metrics: &StoreMetrics) {
    while asked.recv().is_ok() {
        let _held = wal.checkpoint.lock().unwrap_or_else(PoisonError::into_inner);
        match passive(connection) {
            Ok(bytes) if bytes > WAL_BYTES_MAX => wal.past_cap.store(true, Ordering::Relaxed),
            Ok(_) => {}
            Err(error) => {
                metrics.errors.get_or_create(&error_kind(&error, StoreError::Checkpoint)).inc();
                tracing::error!(cause = %error, "a checkpoint failed; the WAL grows until one succeeds");
            }
        }
    }
}

/// The length of the WAL afterwards.
fn passive(connection: &Connection) -> rusqlite::Result<i64> {
    let pages: i64 = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(1))?;
    let page_bytes: i64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    Ok(pages.saturating_mul(page_bytes))
}

/// Called by the writer between two groups. Cuts the WAL if it is past its cap.
///
/// Under load PASSIVE always leaves frames that came while it worked, so the WAL is never empty and
/// never begins anew. Only the writer can help: from another thread a checkpoint that needs the
/// write lock would find it taken again each time it looks. If a reader is in the way, the next
/// PASSIVE tells whether to try again.
pub(super) fn cut_if_past_cap(
    connection: &Connection,
    patience: Duration,
    wal: &Wal,
    metrics: &StoreMetrics,
) {
    if !wal.past_cap.swap(false, Ordering::Relaxed) {
        return;
    }
    let _held = wal.checkpoint.lock().unwrap_or_else(PoisonError::into_inner);
    let cut = || -> rusqlite::Result<bool> {
        connection.busy_timeout(CUT_PATIENCE)?;
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
    };
    match cut() {
        Ok(false) => {}
        Ok(true) => tracing::warn!("the WAL is past its cap, and a reader keeps it from being cut"),
        Err(error) => {
            metrics.errors.get_or_create(&error_kind(&error, StoreError::Checkpoint)).inc();
            tracing::error!(cause = %error, "the WAL is past its cap and cannot be cut");
        }
    }
    if let Err(error) = connection.busy_timeout(patience) {
        tracing::error!(cause = %error, "the writer's patience cannot be set");
    }
}
