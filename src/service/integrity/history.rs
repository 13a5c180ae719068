//! What the log says of every row: it names each one that a commit wrote or removed, with its version from then on. For
//! the operator's line alone: that something is wrong is known by then.

use std::collections::HashMap;

use crate::domain::audit::{Event, Logged, RowMark};
use crate::domain::id::{CredentialId, TransactionId};
use crate::domain::row::{RowKey, Table};
use crate::service::Service;
use crate::service::tampering::ids as own_ids;

/// So many entries, or rows, are read at once.
const PAGE: u16 = 4_000;
/// After so many rows that do not fit nobody looks for more.
const MISFITS_MAX: usize = 100;
/// What the log says of a row last.
struct Said {
    /// 0: it was removed.
    version: u64,
    /// By which entry.
    seq: u64,
    credential: Option<CredentialId>,
    transaction: Option<TransactionId>,
}

/// The rows by the log.
#[derive(Default)]
pub struct History {
    rows: HashMap<(Table, [u8; 16]), Said>,
    /// Whether there may be rows that the log does not know: an earlier release named none in its entries.
    is_partly_silent: bool,
    /// Before this entry an operator accepted what had become of the database: nothing is said of rows that were not
    /// written since.
    accepted_to_seq: u64,
    /// Where a recovery that has not ended begins.
    recovery_from_seq: Option<u64>,
}

impl History {
    /// Of the whole log.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn read(service: &Service) -> Result<Self, String> {
        let (mut history, mut after_seq) = (Self::default(), 0);
        loop {
            let entries = service.store.audit_entries(after_seq, PAGE).await.map_err(|e| e.to_string())?;
            let Some(last) = entries.last() else { return Ok(history) };
            after_seq = last.seq;
            entries.iter().for_each(|logged| history.add(logged));
        }
    }

    fn add(&mut self, logged: &Logged) {
        let Logged { seq, entry, rows } = logged;
        match entry.event {
            // It writes rows.
            Event::Enrolled if rows.0.is_empty() => self.is_partly_silent = true,
            Event::CredentialRecovered => drop(self.recovery_from_seq.get_or_insert(*seq)),
            Event::Recovered => self.accepted_to_seq = self.recovery_from_seq.take().unwrap_or(*seq),
            _ => {}
        }
        for RowMark { table, key, version } in &rows.0 {
            let (credential, transaction) = (entry.credential, entry.transaction);
            let said = Said { version: *version, seq: *seq, credential, transaction };
            self.rows.insert((*table, *key), said);
        }
    }

    fn said(&self, table: Table, key: [u8; 16]) -> Option<&Said> {
        self.rows.get(&(table, key)).filter(|said| said.seq >= self.accepted_to_seq)
    }

    fn knows_not_all(&self) -> bool {
        self.is_partly_silent || self.accepted_to_seq > 0
    }

    /// The rows that are missing, or have another version than the log says, each with a text that says so. What is
    /// missing has no key any more.
    ///
    /// # Errors
    /// The rows cannot be read.
    pub async fn misfits(mut self, service: &Service) -> Result<Vec<(Option<RowKey>, String)>, String> {
        let (mut misfits, mut cursor) = (Vec::new(), None);
        loop {
            let page = service.store.rows_after(cursor, PAGE).await.map_err(|error| error.to_string())?;
            for row in &page {
                let (key, version) = (row.row.key(), row.row.version());
                let text = match self.said(key.table(), key.digest()) {
                    Some(said) if said.version == version => None,
                    Some(Said { version: 0, .. }) => {
                        Some(format!("version {version} is there, and the log says that it was removed"))
                    }
                    Some(said) => {
                        Some(format!("version {version} is there, and the log says {}", said.version))
                    }
                    None if self.knows_not_all() => None,
                    None => Some(format!("version {version} is there, and the log knows no such row")),
                };
                if let Some(text) = text {
                    misfits.push((Some(key.clone()), format!("{}: {text}", self.describe(&key))));
                }
                // What is left in the end is not in the database.
                self.rows.remove(&(key.table(), key.digest()));
            }
            cursor = page.last().map(|row| row.row.key());
            if page.len() < usize::from(PAGE) {
                break;
            }
            if misfits.len() >= MISFITS_MAX {
                return Ok(misfits);
            }
        }
        let is_to_be = |said: &Said| said.version > 0 && said.seq >= self.accepted_to_seq;
        let missing = self.rows.iter().filter(|(_, said)| is_to_be(said)).take(MISFITS_MAX);
        misfits.extend(missing.map(|((table, key), said)| {
            let row = describe(*table, *key, ids(said.credential, said.transaction));
            (None, format!("{row}: it is missing, and the log says version {}", said.version))
        }));
        Ok(misfits)
    }

    /// A row by its name in the log, which tells of no account, and by the ids that the row itself or the log has.
    pub fn describe(&self, key: &RowKey) -> String {
        let said = self.rows.get(&(key.table(), key.digest()));
        let (credential, transaction) = own_ids(key);
        let credential = credential.or(said.and_then(|said| said.credential));
        let transaction = transaction.or(said.and_then(|said| said.transaction));
        describe(key.table(), key.digest(), ids(credential, transaction))
    }
}

fn ids(credential: Option<CredentialId>, transaction: Option<TransactionId>) -> String {
    let ids = [credential.map(|id| id.to_string()), transaction.map(|id| id.to_string())];
    ids.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn describe(table: Table, key: [u8; 16], ids: String) -> String {
    let ids = if ids.is_empty() { ids } else { format!(" ({ids})") };
    format!("row {} {:032x}{ids}", table.name(), u128::from_be_bytes(key))
}
