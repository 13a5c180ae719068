//! The log besides its entries: checkpoints, and what a start or a recovery sets right.

use rusqlite::{Connection, params};

use super::columns::{self, Fault};
use super::reads::{all, one};
use super::rows::change;
use super::{CommitError, ReadError, Store, ledger};
use crate::domain::audit::Logged;
use crate::domain::checkpoint::Origin;
use crate::domain::log::TreeHash;
use crate::domain::row::TableSums;

/// The losses. Its condition reads as the index's does, or the index is not used; so does the next one's.
pub(super) const LOSSES: &str =
    "SELECT * FROM audit WHERE event IN ('service.started_unclean', 'store.recovered') ORDER BY seq";
pub(super) const CLOCKS: &str =
    "SELECT * FROM audit WHERE event IN ('clock.stepped', 'clock.accepted') ORDER BY seq";
/// The checkpoint over the most entries.
const NEWEST: &str = "SELECT note FROM checkpoint ORDER BY size DESC LIMIT 1";

impl Store {
    /// Keeps the note of a checkpoint over `size` entries, in place of one over as many.
    ///
    /// # Errors
    /// As for [`Store::commit`].
    pub async fn keep_checkpoint(&self, size: u64, unix_ms: u64, note: String) -> Result<(), CommitError> {
        let sql = "INSERT OR REPLACE INTO checkpoint (size, unix_ms, note) VALUES (?1, ?2, ?3)";
        self.keep_up(Box::new(move |connection, _| {
            change(connection, sql, params![size.cast_signed(), unix_ms.cast_signed(), note])
        }))
        .await
    }

    /// The note of the checkpoint over the most entries.
    pub async fn newest_checkpoint(&self) -> Result<Option<String>, ReadError> {
        self.read(|tx| newest_note(tx)).await
    }

    /// The root over the first `size` entries of the log, those behind the last kept subtree held against their leaves;
    /// `None`: there are not so many.
    pub async fn root_at(&self, size: u64) -> Result<Option<TreeHash>, ReadError> {
        self.read(move |tx| match ledger::size(tx)? >= size {
            true => Ok(Some(ledger::frontier(tx, size)?.root())),
            false => Ok(None),
        })
        .await
    }

    /// The last entry of the log.
    pub async fn last_entry(&self) -> Result<Option<Logged>, ReadError> {
        self.read(|tx| one(tx, "SELECT * FROM audit ORDER BY seq DESC LIMIT 1", [], columns::audit)).await
    }

    /// The entries that say up to when what was accepted may be forgotten, and those of the clock, in their order.
    pub async fn losses(&self) -> Result<Vec<Logged>, ReadError> {
        self.read(|tx| {
            let mut entries = all(tx, LOSSES, [], columns::audit)?;
            entries.extend(all(tx, CLOCKS, [], columns::audit)?);
            entries.sort_by_key(|logged| logged.seq);
            Ok(entries)
        })
        .await
    }

    /// Sets the sums to what all rows were found to add up to.
    ///
    /// # Errors
    /// As for [`Store::commit`].
    pub async fn set_sums(&self, sums: TableSums) -> Result<(), CommitError> {
        self.keep_up(Box::new(move |connection, ledger| ledger.set_sums(connection, sums))).await
    }

    /// Gives the log another origin: no checkpoint of the old one has to be extended from here on.
    ///
    /// # Errors
    /// As for [`Store::commit`].
    pub async fn begin_log(&self, origin: Origin) -> Result<(), CommitError> {
        self.keep_up(Box::new(move |connection, ledger| {
            connection.execute("DELETE FROM checkpoint", [])?;
            ledger.set_origin(connection, origin)
        }))
        .await
    }
}

/// See [`Store::newest_checkpoint`].
pub(super) fn newest_note(connection: &Connection) -> Result<Option<String>, Fault> {
    let mut statement = connection.prepare_cached(NEWEST)?;
    let mut rows = statement.query([])?;
    let note = rows.next()?.map(|row| row.get(0)).transpose();
    note.map_err(|_| Fault::Invalid { table: "checkpoint", column: "note" })
}
