//! The alarm for rows that are not what was sealed. Whoever met one is told that there is no answer now.

use std::collections::HashSet;

use super::Service;
use crate::domain::audit::{AuditEntry, Event, RowMark};
use crate::domain::id::{CredentialId, TransactionId};
use crate::domain::row::RowKey;

/// So many rows are remembered, so that each alarms once; further ones are only counted by the HSM's operations.
const REMEMBERED_MAX: usize = 1_000;

impl Service {
    /// Writes each row that a custodian finds changed to the log, once; for ever.
    pub async fn watch_rows(&self) {
        let Some(mut found) = self.hsm.tampered_rows() else { return };
        let mut known = HashSet::new();
        while let Some(key) = found.recv().await {
            if known.len() < REMEMBERED_MAX && known.insert(key.clone()) {
                self.alarm(&key).await;
            }
        }
    }

    async fn alarm(&self, key: &RowKey) {
        self.log.metrics.tampered_rows.inc();
        let (credential, transaction) = ids(key);
        // By its name in the log, which tells of no account.
        let mark = RowMark::removed(key);
        let row = format!("{}:{:032x}", mark.table.name(), u128::from_be_bytes(mark.key));
        let credential_text = credential.map(|id| id.to_string());
        let transaction_text = transaction.map(|id| id.to_string());
        tracing::error!(
            row,
            credential = credential_text,
            transaction = transaction_text,
            "a row is not what was sealed: somebody changed the database"
        );
        let entry = AuditEntry {
            credential,
            transaction,
            detail: Some(row),
            ..AuditEntry::of_appliance(self.now().unix_ms, Event::RowTampered)
        };
        if let Err(error) = self.log.note(entry).await {
            tracing::error!(%error, "the changed row is not in the audit log");
        }
    }
}

/// Whose row it is, where the row itself says so.
pub(super) fn ids(key: &RowKey) -> (Option<CredentialId>, Option<TransactionId>) {
    match key {
        RowKey::Credential(id)
        | RowKey::State(id)
        | RowKey::UsedInput(id, _)
        | RowKey::Binding(id)
        | RowKey::Authorization(id) => (Some(*id), None),
        RowKey::Attestation(id) | RowKey::Transaction(id) => (None, Some(*id)),
        RowKey::Account(..)
        | RowKey::Idempotency(..)
        | RowKey::Presentation(_)
        | RowKey::ImportedSeed(..) => (None, None),
    }
}
