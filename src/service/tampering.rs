//! The alarm for rows that are not what was sealed, cannot be read, or are gone. Whoever met one is told that there is no
//! answer now.

use std::collections::HashSet;

use super::Service;
use crate::domain::audit::{AuditEntry, Event, RowMark};
use crate::domain::id::{CredentialId, TransactionId};
use crate::domain::row::RowKey;
use crate::store::Unreadable;

/// So many rows are remembered, so that each alarms once; further ones are only counted by the HSM's operations and the
/// store's errors.
const REMEMBERED_MAX: usize = 1_000;

/// Rows that alarmed, by name.
#[derive(Default)]
struct Alarms {
    names: HashSet<String>,
    is_full: bool,
}

/// What is done about a row.
#[derive(Debug, PartialEq, Eq)]
enum Alarm {
    /// It is told of.
    New,
    /// It is told that no more are told of.
    Full,
    /// Nothing.
    Told,
}

impl Alarms {
    fn meet(&mut self, name: &str) -> Alarm {
        if self.names.contains(name) {
            return Alarm::Told;
        }
        if self.names.len() < REMEMBERED_MAX {
            self.names.insert(name.to_owned());
            return Alarm::New;
        }
        match std::mem::replace(&mut self.is_full, true) {
            false => Alarm::Full,
            true => Alarm::Told,
        }
    }
}

impl Service {
    /// Writes each row that a custodian or the store finds changed to the log, once; for ever.
    pub async fn watch_rows(&self) {
        let (Some(mut unsealed), Some(mut unreadable)) =
            (self.hsm.tampered_rows(), self.store.changed_rows())
        else {
            return;
        };
        let mut alarms = Alarms::default();
        loop {
            let row = tokio::select! {
                Some(key) = unsealed.recv() => {
                    let fault = "its seal is wrong".to_owned();
                    Unreadable { table: key.table(), key: Some(key), fault }
                }
                Some(row) = unreadable.recv() => row,
                else => return,
            };
            self.meet(&row, &mut alarms).await;
        }
    }

    async fn meet(&self, row: &Unreadable, alarms: &mut Alarms) {
        // Of a row whose key cannot be read, its table.
        let name = row.key.as_ref().map_or_else(|| row.table.name().to_owned(), name);
        match alarms.meet(&name) {
            Alarm::New => self.alarm(row, name).await,
            Alarm::Full => tracing::error!("more rows are not what was sealed; they are named no more"),
            Alarm::Told => {}
        }
    }

    async fn alarm(&self, found: &Unreadable, row: String) {
        self.log.metrics.tampered_rows.inc();
        let (credential, transaction) = found.key.as_ref().map_or((None, None), ids);
        let credential_text = credential.map(|id| id.to_string());
        let transaction_text = transaction.map(|id| id.to_string());
        tracing::error!(
            row,
            credential = credential_text,
            transaction = transaction_text,
            cause = found.fault,
            "a row is not what was written last: somebody changed the database"
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

/// A row's name in the log, which tells of no account.
pub(super) fn name(key: &RowKey) -> String {
    let mark = RowMark::removed(key);
    format!("{}:{:032x}", mark.table.name(), u128::from_be_bytes(mark.key))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_alarms_once_and_ten_thousand_fill_neither_memory_nor_log() {
        let mut alarms = Alarms::default();
        for round in 0..3 {
            let mut told = [0_usize; 2];
            for number in 0..10_000 {
                let name = format!("account:{number:032x}");
                match alarms.meet(&name) {
                    Alarm::New => told[0] += 1,
                    Alarm::Full => told[1] += 1,
                    Alarm::Told => {}
                }
                assert_eq!(alarms.meet(&name), Alarm::Told, "at once again");
                assert!(alarms.names.len() <= REMEMBERED_MAX);
            }
            assert_eq!(told, if round == 0 { [REMEMBERED_MAX, 1] } else { [0, 0] });
        }
    }
}
