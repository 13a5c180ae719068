//! What the log says of every row: it names each one that a commit wrote or removed, with its version from then on.

use std::collections::HashMap;

use crate::domain::audit::{Event, Logged, RowMark};
use crate::domain::checkpoint::Head;
use crate::domain::id::{CredentialId, TransactionId};
use crate::domain::log::Frontier;
use crate::domain::row::{RowKey, Table};
use crate::service::Service;
use crate::service::tampering::ids as own_ids;

/// So many entries, or rows, are read at once.
const PAGE: u16 = 4_000;
/// After so many rows that do not fit nobody looks for more.
const MISFITS_MAX: usize = 100;
/// Rows whose keys may come again after they were removed: they begin anew then. No other ones do.
const RECURRING: [Table; 4] = [Table::Idempotency, Table::Binding, Table::Authorization, Table::ImportedSeed];

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
    /// Whether some entries are of a release that did not name rows: what the log does not know may be older.
    is_partly_silent: bool,
    /// Before this entry an operator accepted what had become of the database: nothing is said of rows that were not
    /// written since.
    accepted_to_seq: u64,
    /// Where a recovery that has not ended begins.
    recovery_from_seq: Option<u64>,
    /// Whether the entry that the anchor ends with says that the service ended.
    is_ended: bool,
    /// The first entry that cannot be the next one, and why.
    fault: Option<String>,
}

impl History {
    /// Of the whole log, each entry held against the tree: `known` is a head that it has grown from.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn read(service: &Service, known: &Head) -> Result<Self, String> {
        let (mut history, mut frontier) = (Self::default(), Frontier::default());
        let page = |after_seq| {
            let store = service.store.clone();
            tokio::spawn(async move { store.audit_entries(after_seq, PAGE).await })
        };
        let mut reading = page(0);
        loop {
            let entries = reading.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
            let Some(last) = entries.last() else { return Ok(history) };
            // The next ones are read meanwhile.
            reading = page(last.seq);
            for logged in entries {
                frontier.push(logged.leaf());
                if frontier.size() != logged.seq {
                    history.fail(format!("entry {} of the log is missing", frontier.size()));
                }
                history.add(&logged, known);
                if frontier.size() == known.size && frontier.root() != known.root {
                    history.fail(format!(
                        "the first {} entries of the log are not what was written",
                        known.size
                    ));
                }
            }
        }
    }

    fn fail(&mut self, fault: String) {
        self.fault.get_or_insert(fault);
    }

    fn add(&mut self, logged: &Logged, known: &Head) {
        let Logged { seq, entry, rows } = logged;
        // Behind the anchor anybody may have written that. Only of what an earlier release left, all is behind it.
        let is_known = *seq <= known.size || known.size == 0;
        match entry.event {
            // It writes rows.
            Event::Enrolled if rows.0.is_empty() && is_known => self.is_partly_silent = true,
            Event::CredentialRecovered => drop(self.recovery_from_seq.get_or_insert(*seq)),
            Event::Recovered if is_known => {
                self.accepted_to_seq = self.recovery_from_seq.take().unwrap_or(*seq);
                self.fault = None;
            }
            _ => {}
        }
        if *seq == known.size {
            self.is_ended = entry.event == Event::Stopped;
        }
        for RowMark { table, key, version } in &rows.0 {
            let before = self.said(*table, *key).map(|said| said.version);
            let follows = match before {
                None => *version == 1 || self.knows_not_all(),
                Some(0) => *version == 1 && RECURRING.contains(table),
                Some(before) => *version == 0 || before.checked_add(1) == Some(*version),
            };
            if !follows {
                let row = describe(*table, *key, ids(entry.credential, entry.transaction));
                self.fail(format!(
                    "entry {seq} of the log has version {version} of {row}, which cannot be next"
                ));
            }
            let (credential, transaction) = (entry.credential, entry.transaction);
            let said = Said { version: *version, seq: *seq, credential, transaction };
            self.rows.insert((*table, *key), said);
        }
        // What a start or a command writes before the next anchor changes no row, and nobody asked for it.
        if *seq > known.size && self.is_ended && (!rows.0.is_empty() || entry.actor.is_some()) {
            self.fail(format!("entry {seq} of the log was written when no service ran"));
        }
    }

    fn said(&self, table: Table, key: [u8; 16]) -> Option<&Said> {
        self.rows.get(&(table, key)).filter(|said| said.seq >= self.accepted_to_seq)
    }

    fn knows_not_all(&self) -> bool {
        self.is_partly_silent || self.accepted_to_seq > 0
    }

    /// What is wrong with the log itself.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
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
