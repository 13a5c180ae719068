//! Removing what is past its time: answers after a day, tombstones after the configured days, used inputs
//! of OCRA tokens when their time step is out of reach.

use std::collections::BTreeMap;

use crate::domain::audit::{AuditEntry, Event};
use crate::domain::credential::UsedInput;
use crate::domain::id::CredentialId;
use crate::domain::row::{Row, Sealed, SealedBytes};
use crate::domain::time::Now;
use crate::hsm::messages::{Outcome, SealRows};
use crate::store::Commit;

use super::{Refused, Service, seal};

/// How many rows of a kind go at once: all together have to fit one message, and hold up no verdict.
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
            let mut batch = Batch::default();
            for record in self.store.expired(now.unix_ms, BATCH).await? {
                batch.remove(record);
            }
            self.tombstones(&now, &mut batch).await?;
            self.inputs_out_of_reach(&now, &mut batch).await?;
            if batch.removed.is_empty() {
                return Ok(pruned);
            }
            let count = batch.removed.len() as u64;
            if self.commit(self.sealed(batch, &now).await?).await?.is_some() {
                pruned += count;
            }
        }
    }

    async fn tombstones(&self, now: &Now, batch: &mut Batch) -> Result<(), Refused> {
        let before = now.unix_ms.saturating_sub(u64::from(self.policy.tombstone_days) * DAY_MS);
        for tombstone in self.store.tombstones(before, BATCH).await? {
            // What it used up goes first: nothing would lead to it any more.
            let inputs = self.store.inputs_of(tombstone.credential.row.id, BATCH).await?;
            if !inputs.is_empty() {
                inputs.into_iter().for_each(|input| batch.remove(input));
                break;
            }
            batch.remove(tombstone.credential);
            batch.remove(tombstone.state);
        }
        Ok(())
    }

    /// Each goes together with a move of its credential's mark beyond it: should the clock have been
    /// ahead, and be set right, nothing that was forgotten comes within reach again.
    async fn inputs_out_of_reach(&self, now: &Now, batch: &mut Batch) -> Result<(), Refused> {
        let mut of: BTreeMap<CredentialId, Vec<Sealed<UsedInput>>> = BTreeMap::new();
        for input in self.store.inputs_out_of_reach(now.unix_ms, BATCH).await? {
            of.entry(input.row.id).or_default().push(input);
        }
        for (id, inputs) in of {
            let Some(first) = inputs.first() else { continue };
            let rows = self.store.credential(&first.row.tenant, id).await?;
            let rows = rows.ok_or_else(|| Refused::unavailable("a used input has no credential"))?;
            let highest = inputs.iter().filter_map(|input| input.row.time_step).max();
            if let Some(next) = highest.and_then(|step| rows.state.row.beyond(step)) {
                batch.replace(rows.state, next.into());
            }
            inputs.into_iter().for_each(|input| batch.remove(input));
        }
        Ok(())
    }

    async fn sealed(&self, batch: Batch, now: &Now) -> Result<Commit, Refused> {
        let Batch { standing, removed, written } = batch;
        let replaces = (0u8..).take(standing.len()).collect();
        let rows = written.iter().map(Row::encode).collect();
        let sealed = self.hsm.seal(SealRows { standing, outcome: Outcome { replaces, rows } }).await?;
        Ok(Commit {
            standing: Vec::new(),
            removed: removed.iter().map(|row| (row.key(), row.version())).collect(),
            rows: seal(written, &sealed)?,
            sum_change: sealed.sum_change,
            audit: AuditEntry { unix_ms: now.unix_ms, event: Event::Pruned, actor: None, credential: None },
        })
    }
}

/// Rows that go, and rows that change with them.
#[derive(Default)]
struct Batch {
    standing: Vec<SealedBytes>,
    removed: Vec<Row>,
    written: Vec<Row>,
}

impl Batch {
    fn remove<T: Clone + Into<Row>>(&mut self, row: Sealed<T>) {
        // A tombstone and the time can both lead to an input.
        let (bytes, row) = (row.to_bytes(), row.row.into());
        if !self.removed.contains(&row) {
            self.standing.push(bytes);
            self.removed.push(row);
        }
    }

    fn replace<T: Clone + Into<Row>>(&mut self, row: Sealed<T>, next: Row) {
        self.standing.push(row.to_bytes());
        self.written.push(next);
    }
}
