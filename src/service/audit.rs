//! What auditors ask of the log. A tenant's auditor sees the entries of its tenant alone.

use crate::config::TenantScope;
use crate::domain::checkpoint::VerifierKey;
use crate::store::Inclusion;

use super::audit_view::{ConsistencyView, EntryView, InclusionView};
use super::{Refused, Service};

/// A page of the log.
pub struct ListedEntries {
    /// In the order of the commits.
    pub items: Vec<EntryView>,
    /// Where the next page begins; `None` on the last one.
    pub next: Option<u64>,
}

impl Service {
    /// Entries after number `after`.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn audit_entries(
        &self,
        scope: &TenantScope,
        after: u64,
        limit: u16,
    ) -> Result<ListedEntries, Refused> {
        let mut entries = self.store.log_page(scope.only(), after, limit.saturating_add(1)).await?;
        let has_more = entries.len() > usize::from(limit);
        entries.truncate(limit.into());
        let next = entries.last().filter(|_| has_more).map(|entry| entry.logged.seq);
        Ok(ListedEntries { items: entries.iter().map(EntryView::of).collect(), next })
    }

    /// The note of the newest checkpoint.
    ///
    /// # Errors
    /// [`Refused::Absent`]: there is none yet. [`Refused::Unavailable`].
    pub async fn audit_checkpoint(&self) -> Result<String, Refused> {
        self.store.newest_checkpoint().await?.ok_or(Refused::Absent)
    }

    /// That an entry is in the log as it was with `size` entries.
    ///
    /// # Errors
    /// [`Refused::Absent`]: there is no such entry for this auditor. [`Refused::Invalid`]: the log was never so long, or
    /// had not the entry then. [`Refused::Unavailable`].
    pub async fn audit_inclusion(
        &self,
        scope: &TenantScope,
        entry: u64,
        size: u64,
    ) -> Result<InclusionView, Refused> {
        match self.store.inclusion(scope.only(), entry, size).await? {
            Inclusion::Proved(proof) => Ok(InclusionView::of(entry, size, &proof)),
            Inclusion::Absent => Err(Refused::Absent),
            Inclusion::NotOfThatSize => Err(Refused::Invalid {
                field: "size",
                reason: "must be from the entry's number to the number of all entries",
            }),
        }
    }

    /// That the log of `to` entries goes on from that of `from`. It tells nothing of any entry.
    ///
    /// # Errors
    /// [`Refused::Invalid`]: the log was never so long. [`Refused::Unavailable`].
    pub async fn audit_consistency(&self, from: u64, to: u64) -> Result<ConsistencyView, Refused> {
        let proof = self.store.consistency(from, to).await?;
        let reason = "must be from 1 to the number of all entries, and the smaller one first";
        let proof = proof.ok_or(Refused::Invalid { field: "to", reason })?;
        Ok(ConsistencyView::of(from, to, &proof))
    }

    /// The public keys that checkpoints of this log are verified with, the newest first.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn audit_keys(&self) -> Result<Vec<VerifierKey>, Refused> {
        let origin = self.store.head().borrow().origin.clone();
        let keys = self.hsm.audit_keys().await?;
        Ok(keys.iter().filter_map(|key| VerifierKey::of(&origin, key)).collect())
    }
}
