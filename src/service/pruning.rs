//! Removing what is past its time: answers after a day, tombstones after the configured days.

use crate::domain::audit::{AuditEntry, Event};
use crate::domain::row::{Row, Sealed, SealedBytes};
use crate::hsm::messages::{Outcome, SealRows};
use crate::store::Commit;

use super::{Refused, Service};

/// How many rows go at once: they have to fit one message, and hold up no verdict.
const BATCH: u16 = 16;
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

impl Service {
    /// Removes rows past their time, batch by batch, until none is left. Nothing while the clock is
    /// not trusted.
    ///
    /// # Errors
    /// [`Refused::Unavailable`]; the next round goes on where this one stopped.
    pub async fn prune(&self) -> Result<u64, Refused> {
        let mut pruned = 0;
        loop {
            let now = self.now();
            if !now.trusted {
                return Ok(pruned);
            }
            let deleted_before = now.unix_ms.saturating_sub(u64::from(self.policy.tombstone_days) * DAY_MS);
            let mut rows: Vec<(Row, SealedBytes)> = Vec::new();
            for record in self.store.expired(now.unix_ms, BATCH).await? {
                rows.push(with_bytes(record));
            }
            for tombstone in self.store.tombstones(deleted_before, BATCH).await? {
                rows.push(with_bytes(tombstone.credential));
                rows.push(with_bytes(tombstone.state));
            }
            if rows.is_empty() {
                return Ok(pruned);
            }
            let (rows, standing): (Vec<Row>, Vec<SealedBytes>) = rows.into_iter().unzip();
            let replaces = (0u8..).take(rows.len()).collect();
            let sealed =
                self.hsm.seal(SealRows { standing, outcome: Outcome { replaces, rows: Vec::new() } }).await?;
            let commit = Commit {
                standing: Vec::new(),
                removed: rows.iter().map(|row| (row.key(), row.version())).collect(),
                rows: Vec::new(),
                sum_change: sealed.sum_change,
                audit: AuditEntry {
                    unix_ms: now.unix_ms,
                    event: Event::Pruned,
                    actor: None,
                    credential: None,
                },
            };
            if self.commit(commit).await?.is_some() {
                pruned += rows.len() as u64;
            }
        }
    }
}

fn with_bytes<T: Clone + Into<Row>>(sealed: Sealed<T>) -> (Row, SealedBytes) {
    let bytes = sealed.to_bytes();
    (sealed.row.into(), bytes)
}
