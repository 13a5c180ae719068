//! All rows as they are found, the unreadable ones too: for a database that nobody trusts yet.

use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Row as SqlRow, Transaction, params};

use super::columns::{self, Fault};
use super::ledger;
use super::reads::{TABLES, account_row, one};
use super::rows::{change, version};
use super::{CommitError, ReadError, Store};
use crate::domain::account::Account;
use crate::domain::checkpoint::Head;
use crate::domain::credential::{Credential, CredentialState};
use crate::domain::log::TreeHash;
use crate::domain::row::{Row, RowKey, Sealed, Table};

/// A row as it is found.
#[derive(Clone, Debug)]
pub enum Found {
    /// One that can be read; whether its seal is right, a custodian says.
    Readable(Box<Sealed<Row>>),
    /// One with a value that nobody here writes.
    Unreadable(Place),
}

/// A credential's state, and its account's row.
pub type Limits = (Option<Sealed<CredentialState>>, Option<Sealed<Account>>);

/// Where a row stands, by the values of its key, whatever they are.
#[derive(Clone, Debug)]
pub struct Place {
    table: usize,
    key: [Key; 2],
}

/// A value of a key. A text need not be one.
#[derive(Clone, Debug)]
enum Key {
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

impl Key {
    fn nothing() -> Self {
        Self::Text(Vec::new())
    }
}

impl ToSql for Key {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Text(bytes) => ValueRef::Text(bytes),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

impl Place {
    /// The row's table.
    pub fn table(&self) -> Option<Table> {
        Table::ALL.get(self.table).copied()
    }
}

/// The columns of a table's key.
fn key_columns(table: Table) -> &'static [&'static str] {
    match table {
        Table::Credential | Table::State | Table::Transaction | Table::Presentation => &["id"],
        Table::Account => &["tenant", "account"],
        Table::Idempotency => &["client", "key"],
        Table::UsedInput => &["id", "fingerprint"],
        Table::Attestation => &["transaction_id"],
        Table::Binding | Table::Authorization => &["credential"],
        Table::ImportedSeed => &["tenant", "fingerprint"],
    }
}

impl Store {
    /// A page over every row of every table, in the order of [`Store::rows_after`]: those after `place`, and the place of
    /// the last one. Without rows it is the end.
    ///
    /// # Errors
    /// SQLite failed. A row that cannot be read is none.
    pub async fn rows_found(
        &self,
        after: Option<Place>,
        limit: u16,
    ) -> Result<(Vec<Found>, Option<Place>), ReadError> {
        self.read(move |tx| found(tx, after, limit.into())).await
    }

    /// The rows that limit what a credential may do, each if it is there.
    ///
    /// # Errors
    /// They cannot be read.
    pub async fn limits_found(&self, credential: &Credential) -> Result<Limits, ReadError> {
        let (id, tenant, account) = (credential.id, credential.tenant.clone(), credential.account.clone());
        self.read(move |tx| {
            let sql = "SELECT * FROM credential_state WHERE id = ?1";
            let state = one(tx, sql, params![id.to_bytes()], columns::state)?;
            Ok((state, account_row(tx, &tenant, &account)?))
        })
        .await
    }

    /// Whether there is such a row.
    ///
    /// # Errors
    /// SQLite failed.
    pub async fn has(&self, key: RowKey) -> Result<bool, ReadError> {
        self.read(move |tx| Ok(version(tx, &key)?.is_some())).await
    }

    /// Removes a row that cannot be read. It is in no log: that is for a commit before it to tell.
    ///
    /// # Errors
    /// As for [`Store::commit`].
    pub async fn discard(&self, place: Place) -> Result<(), CommitError> {
        let Some(table) = place.table() else { return Ok(()) };
        self.keep_up(Box::new(move |connection, _| {
            let [first, second] = &place.key;
            match key_columns(table) {
                [one] => change(
                    connection,
                    &format!("DELETE FROM {} WHERE {one} = ?1", table.name()),
                    params![first],
                ),
                columns => {
                    let both = columns.join(" = ?1 AND ");
                    let sql = format!("DELETE FROM {} WHERE {both} = ?2", table.name());
                    change(connection, &sql, params![first, second])
                }
            }
        }))
        .await
    }

    /// Reads the whole log again, each leaf computed from its entry, and gives its head and the roots that it had at
    /// `sizes`; `None` for a size that it has not come to.
    ///
    /// # Errors
    /// An entry is not what was written there, or cannot be read.
    pub async fn whole_log(&self, sizes: Vec<u64>) -> Result<(Head, Vec<Option<TreeHash>>), ReadError> {
        self.read(move |tx| {
            let mut roots = vec![None; sizes.len()];
            let root = ledger::whole_tree(tx, |frontier| {
                for (root, size) in roots.iter_mut().zip(&sizes) {
                    if *size == frontier.size() {
                        *root = Some(frontier.root());
                    }
                }
            })?;
            let (sums, unsplit) = ledger::sums(tx)?;
            let sum = sums.total().plus(unsplit);
            let head = Head { origin: ledger::origin(tx)?, size: root.size(), root: root.root(), sum };
            Ok((head, roots))
        })
        .await
    }
}

fn found(
    tx: &Transaction<'_>,
    after: Option<Place>,
    limit: usize,
) -> Result<(Vec<Found>, Option<Place>), Fault> {
    let start = after.unwrap_or(Place { table: 0, key: [Key::nothing(), Key::nothing()] });
    let (mut rows, mut last, mut from) = (Vec::new(), None, start.key);
    for (number, ((sql, parse), table)) in TABLES.into_iter().zip(Table::ALL).enumerate().skip(start.table) {
        let left = limit.saturating_sub(rows.len()) as i64;
        let [first, second] = &from;
        let mut statement = tx.prepare_cached(sql)?;
        let mut query = statement.query(params![left, first, second])?;
        while let Some(row) = query.next()? {
            let place = Place { table: number, key: key(row, *table)? };
            rows.push(match parse(row) {
                Ok(sealed) => Found::Readable(Box::new(sealed)),
                Err(_) => Found::Unreadable(place.clone()),
            });
            last = Some(place);
        }
        from = [Key::nothing(), Key::nothing()];
    }
    Ok((rows, last))
}

fn key(row: &SqlRow<'_>, table: Table) -> Result<[Key; 2], Fault> {
    let mut key = [Key::nothing(), Key::nothing()];
    for (place, column) in key.iter_mut().zip(key_columns(table)) {
        *place = match row.get_ref(*column)? {
            ValueRef::Text(bytes) => Key::Text(bytes.to_vec()),
            ValueRef::Blob(bytes) => Key::Blob(bytes.to_vec()),
            // The tables are strict: nothing else can be there.
            ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => {
                return Err(Fault::Invalid { table: table.name(), column });
            }
        };
    }
    Ok(key)
}
