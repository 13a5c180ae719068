//! All rows as they are found, the unreadable ones too: for a database that nobody trusts yet.

use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row as SqlRow, Transaction, params};

use super::columns::{self, Fault};
use super::damage::{self, JudgedLog};
use super::reads::{TABLES, account_row, one};
use super::rows::{change, standing};
use super::{CommitError, ReadError, Store};
use crate::domain::account::Account;
use crate::domain::checkpoint::Head;
use crate::domain::credential::{Credential, CredentialState};
use crate::domain::id::{CredentialId, PresentationId, TransactionId};
use crate::domain::idempotency::IdempotencyKey;
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

/// A row that cannot be read, or is not there though another one says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its table.
    pub table: Table,
    /// Its key, if that can be read.
    pub key: Option<RowKey>,
    /// What is wrong: such as which column holds what nobody here writes.
    pub fault: String,
}

/// What is kept of the log besides its entries.
const BESIDES_ENTRIES: [&str; 4] = ["audit_subtree", "checkpoint", "log_head", "table_sum"];

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

    /// The row that stands there, as one that cannot be read.
    pub fn unreadable(&self) -> Option<Unreadable> {
        let table = self.table()?;
        let fault = format!("a row of {} holds no valid value", table.name());
        Some(Unreadable { table, key: row_key(table, self.key.clone()), fault })
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

    /// The first row that cannot be read, by its key if that can be, and why; `None`: every row can be.
    ///
    /// # Errors
    /// SQLite failed.
    pub async fn unreadable_row(&self) -> Result<Option<Unreadable>, ReadError> {
        self.read(unreadable).await
    }

    /// What SQLite finds wrong first with a table of rows or one of its indexes, or with what is kept of the log besides
    /// entries; `None`: nothing. The log itself may be of any length, and is left to who reads all of it.
    ///
    /// # Errors
    /// SQLite failed.
    pub async fn damage(&self) -> Result<Option<String>, ReadError> {
        self.read(|tx| {
            for table in Table::ALL.iter().map(|table| table.name()).chain(BESIDES_ENTRIES) {
                if let Some(damage) = damage(tx, Some(table))? {
                    return Ok(Some(damage));
                }
            }
            Ok(None)
        })
        .await
    }

    /// Whether there is such a row.
    ///
    /// # Errors
    /// SQLite failed.
    pub async fn has(&self, key: RowKey) -> Result<bool, ReadError> {
        self.read(move |tx| Ok(standing(tx, &key)?.is_some())).await
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
            let JudgedLog { head, roots, damage, .. } = damage::judge(tx, &sizes)?;
            match damage {
                None => Ok((head, roots)),
                Some(damage) => Err(Fault::Log(damage.reason)),
            }
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

/// See [`Store::damage`]; of one table, or of the whole file.
pub(super) fn damage(connection: &Connection, table: Option<&str>) -> Result<Option<String>, Fault> {
    // It says how many it is to tell of, or of which table.
    let mut statement = match table {
        Some(table) => connection.prepare(&format!("PRAGMA integrity_check({table})"))?,
        None => connection.prepare("PRAGMA integrity_check(1)")?,
    };
    let mut lines = statement.query([])?;
    let line: Option<String> = lines.next()?.map(|row| row.get(0)).transpose()?;
    Ok(line.filter(|line| line != "ok"))
}

fn unreadable(tx: &Transaction<'_>) -> Result<Option<Unreadable>, Fault> {
    for ((sql, parse), table) in TABLES.into_iter().zip(Table::ALL) {
        let mut statement = tx.prepare_cached(sql)?;
        let mut query = statement.query(params![i64::MAX, Key::nothing(), Key::nothing()])?;
        while let Some(row) = query.next()? {
            if let Err(fault) = parse(row) {
                let key = key_of(row, *table);
                return Ok(Some(Unreadable { table: *table, key, fault: fault.to_string() }));
            }
        }
    }
    Ok(None)
}

/// The key of a row, if it can be read.
pub(super) fn key_of(row: &SqlRow<'_>, table: Table) -> Option<RowKey> {
    row_key(table, key(row, table).ok()?)
}

/// The values of a row's key as what they are; `None` if they are nothing that we write.
fn row_key(table: Table, [first, second]: [Key; 2]) -> Option<RowKey> {
    let text = |key: Key| match key {
        Key::Text(bytes) => String::from_utf8(bytes).ok(),
        Key::Blob(_) => None,
    };
    fn blob<const N: usize>(key: Key) -> Option<[u8; N]> {
        match key {
            Key::Blob(bytes) => bytes.try_into().ok(),
            Key::Text(_) => None,
        }
    }
    let credential = |key| blob(key).map(CredentialId::from_random);
    let transaction = |key| blob(key).map(TransactionId::from_random);
    Some(match table {
        Table::Credential => RowKey::Credential(credential(first)?),
        Table::State => RowKey::State(credential(first)?),
        Table::Account => RowKey::Account(text(first)?.try_into().ok()?, text(second)?.try_into().ok()?),
        Table::Idempotency => {
            RowKey::Idempotency(text(first)?.try_into().ok()?, IdempotencyKey::parse(&text(second)?)?)
        }
        Table::UsedInput => RowKey::UsedInput(credential(first)?, blob(second)?),
        Table::Attestation => RowKey::Attestation(transaction(first)?),
        Table::Transaction => RowKey::Transaction(transaction(first)?),
        Table::Binding => RowKey::Binding(credential(first)?),
        Table::Presentation => RowKey::Presentation(blob(first).map(PresentationId::from_random)?),
        Table::Authorization => RowKey::Authorization(credential(first)?),
        Table::ImportedSeed => RowKey::ImportedSeed(text(first)?.try_into().ok()?, blob(second)?),
    })
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
