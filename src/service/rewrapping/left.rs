//! What a rewrap passes over.

use std::collections::HashSet;

use crate::domain::row::{RowKey, SealedBytes};

/// Rows that are left as they are, until a rewrap is begun again.
#[derive(Default)]
pub(super) struct Left {
    passed_over: HashSet<RowKey>,
    changed: HashSet<RowKey>,
    failed: HashSet<RowKey>,
    /// Of this pass: they have no key that could be remembered.
    unreadable: usize,
}

impl Left {
    /// All rows are met again.
    pub fn begin_pass(&mut self) {
        self.unreadable = 0;
    }

    /// Whether a row is not to be tried again.
    pub fn is_passed_over(&self, key: &RowKey) -> bool {
        self.passed_over.contains(key)
    }

    /// A row with a value that nobody here writes.
    pub fn unreadable(&mut self) {
        self.unreadable = self.unreadable.saturating_add(1);
    }

    /// The row at this place is not what was sealed; the custodian's answer has raised the alarm. What is not divided is
    /// named by its first row, and none of it is tried again as a whole.
    pub fn changed(&mut self, batch: &[SealedBytes], place: usize) {
        let key = |place: usize| batch.get(place)?.bytes.decode().map(|row| row.key());
        let Some(changed) = key(place) else { return self.failed(batch) };
        if super::is_one(batch) {
            self.passed_over.extend(key(0));
        }
        self.passed_over.insert(changed.clone());
        self.changed.insert(changed);
    }

    /// No custodian renews it.
    pub fn failed(&mut self, batch: &[SealedBytes]) {
        let Some(row) = batch.first().and_then(|row| row.bytes.decode()) else { return };
        self.passed_over.insert(row.key());
        self.failed.insert(row.key());
    }

    /// In words for the operator; `None`: nothing is left.
    pub fn reason(&self) -> Option<String> {
        let (changed, failed) = (self.changed.len().saturating_add(self.unreadable), self.failed.len());
        let changed = (changed > 0).then(|| format!("{changed} rows are not what was sealed"));
        let failed = (failed > 0).then(|| format!("{failed} rows cannot be renewed"));
        let reasons: Vec<_> = changed.into_iter().chain(failed).collect();
        (!reasons.is_empty()).then(|| reasons.join(", "))
    }
}
