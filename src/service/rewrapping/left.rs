//! What a rewrap passes over.

use std::collections::HashSet;

use crate::domain::row::{RowKey, SealedBytes};
use crate::service::tampering;

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

    /// The row at this place is not what was written last; the custodian or the writer has raised the alarm. What is not divided is
    /// named by its first row, and none of it is tried again as a whole.
    pub fn changed(&mut self, batch: &[SealedBytes], place: usize) {
        let key = |place: usize| batch.get(place)?.bytes.decode().map(|row| row.key());
        let Some(changed) = key(place) else {
            return self.failed(batch, "another row of it is said to be changed");
        };
        if super::is_one(batch) {
            self.passed_over.extend(key(0));
        }
        self.passed_over.insert(changed.clone());
        self.changed.insert(changed);
    }

    /// No custodian renews it: the operator is told which it is, once.
    pub fn failed(&mut self, batch: &[SealedBytes], cause: &str) {
        let Some(row) = batch.first().and_then(|row| row.bytes.decode()) else { return };
        let key = row.key();
        self.passed_over.insert(key.clone());
        if self.failed.insert(key.clone()) {
            let credential = tampering::ids(&key).0.map(|id| id.to_string());
            tracing::error!(row = tampering::name(&key), credential, cause, "a row cannot be renewed");
        }
    }

    /// In words for the operator; `None`: nothing is left.
    pub fn reason(&self) -> Option<String> {
        let (changed, failed) = (self.changed.len().saturating_add(self.unreadable), self.failed.len());
        let changed = (changed > 0).then(|| format!("{changed} rows are not what was written last"));
        let failed = (failed > 0).then(|| format!("{failed} rows cannot be renewed"));
        let reasons: Vec<_> = changed.into_iter().chain(failed).collect();
        (!reasons.is_empty()).then(|| reasons.join(", "))
    }
}
