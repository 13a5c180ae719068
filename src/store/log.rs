//! The log besides its entries: checkpoints, and what a start or a recovery sets right.

use rusqlite::{Connection, params};

use super::columns::Fault;
use super::reads::all;
use super::rows::change;
use super::{CommitError, ReadError, Store, ledger};
use crate::domain::checkpoint::Origin;
use crate::domain::ledger::Aftermath;
use crate::domain::log::TreeHash;

/// The checkpoint over the most entries.
const NEWEST: &str = "SELECT note FROM checkpoint ORDER BY size DESC LIMIT 1";

/// One hour, in milliseconds.
const HOUR_MS: i64 = 3_600_000;

/// What became of a page of checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thinned {
    /// So many were removed.
    pub removed: u64,
    /// Those over fewer entries than this are as they will stay.
    pub settled_to: u64,
    /// Where the next page begins; `None`: this was the last one.
    pub next: Option<u64>,
}

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

    /// Looks at up to `limit` checkpoints from that over `from_size` entries on, and removes each that was made before
    /// `before_unix_ms` and has another one of the same hour behind it. The last one always stays.
    ///
    /// # Errors
    /// As for [`Store::commit`].
    pub async fn thin_checkpoints(
        &self,
        from_size: u64,
        before_unix_ms: u64,
        limit: u16,
    ) -> Result<Thinned, CommitError> {
        let read = self.read(move |tx| {
            let sql = "SELECT size, unix_ms FROM checkpoint WHERE size >= ?1 ORDER BY size LIMIT ?2";
            all(tx, sql, params![from_size.cast_signed(), i64::from(limit) + 1], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
        });
        let notes: Vec<(i64, i64)> = read.await.map_err(|ReadError| CommitError::Unavailable)?;
        let is_old = |unix_ms: i64| unix_ms < before_unix_ms.cast_signed();
        let hour = |unix_ms: i64| unix_ms.div_euclid(HOUR_MS);
        let pairs = notes.iter().zip(notes.iter().skip(1));
        let spare = pairs.filter(|((_, time), (_, next))| is_old(*time) && hour(*time) == hour(*next));
        let spare: Vec<i64> = spare.map(|((size, _), _)| *size).collect();
        let settled_to = notes.iter().find(|(_, time)| !is_old(*time)).or(notes.last());
        let thinned = Thinned {
            removed: spare.len() as u64,
            settled_to: settled_to.map_or(from_size, |(size, _)| size.cast_unsigned()),
            next: notes.get(usize::from(limit)).map(|(size, _)| size.cast_unsigned()),
        };
        if !spare.is_empty() {
            self.keep_up(Box::new(move |connection, _| {
                let mut remove = connection.prepare_cached("DELETE FROM checkpoint WHERE size = ?1")?;
                spare.iter().try_for_each(|size| remove.execute([size]).map(drop))
            }))
            .await?;
        }
        Ok(thinned)
    }

    /// The root over the first `from` entries of the log, and that over `size`, of which they are the first; `None`: there
    /// are not so many, or they are not what was written there.
    pub async fn roots(&self, from: u64, size: u64) -> Result<Option<[TreeHash; 2]>, ReadError> {
        self.read(move |tx| match ledger::roots(tx, from, size) {
            Ok(roots) => Ok(Some(roots)),
            Err(Fault::Entry(_)) => Ok(None),
            Err(fault) => Err(fault),
        })
        .await
    }

    /// What the events of the whole log left by what it says, and the root over it: as long as that takes.
    pub async fn told(&self) -> Result<(Aftermath, TreeHash), ReadError> {
        self.read(|tx| ledger::told(tx)).await
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
