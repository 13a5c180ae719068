//! The thread that brings the WAL into the database file, so that the writer never waits for it.

use std::sync::mpsc::Receiver;

use rusqlite::Connection;

/// The WAL's cap in bytes. Past it the writer has to wait for one checkpoint that shortens it.
pub(super) const WAL_BYTES_MAX: i64 = 64 << 20;

/// Works until the writer is gone. A checkpoint that fails loses nothing: the WAL keeps every
/// commit until it was copied and synced, and the next checkpoint copies it again.
pub(super) fn run(connection: Connection, asked: Receiver<()>) {
    while asked.recv().is_ok() {
        if let Err(error) = checkpoint(&connection) {
            tracing::error!(cause = %error, "a checkpoint failed; the WAL grows until one succeeds");
        }
    }
}

fn checkpoint(connection: &Connection) -> rusqlite::Result<()> {
    // PASSIVE waits for nobody; under load there are always frames it cannot get at, and the WAL
    // grows behind them. TRUNCATE holds the writer off: rarely, and only for what PASSIVE left.
    let pages: i64 = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(1))?;
    let page_bytes: i64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    if pages.saturating_mul(page_bytes) > WAL_BYTES_MAX {
        let busy: bool = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if busy {
            tracing::warn!("the WAL is past its cap, and a reader or writer keeps it from being shortened");
        }
    }
    Ok(())
}
