//! Rows out of the database: columns parsed into types that cannot be wrong.

use rusqlite::Row;
use rusqlite::types::{FromSql, ValueRef};
use serde::Serialize;
use serde::de::DeserializeOwned;

mod bindings;
mod credentials;
mod presentations;
mod transactions;

pub(super) use bindings::binding;
pub(super) use credentials::{credential, imported_seed, state, used_input};
pub(super) use presentations::{authorization, presentation};
pub(super) use transactions::{attestation, transaction};

use crate::domain::account::{Account, AccountRef};
use crate::domain::audit::{Actor, AuditEntry, Event, Logged, RowMarks};
use crate::domain::caller::{ClientName, Tenant};
use crate::domain::id::{CredentialId, TransactionId};
use crate::domain::idempotency::{Fingerprint, IdempotencyKey, IdempotencyRecord};
use crate::domain::lockout::Attempts;
use crate::domain::row::{RowKey, Seal, Sealed};
use crate::store::Unreadable;

/// Why a read failed; for the log, and without any value.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// SQLite said no.
    #[error("{0}")]
    Sql(#[from] rusqlite::Error),
    /// A value that we do not write: the file is damaged, or somebody else wrote it.
    #[error("column {table}.{column} holds no valid value")]
    Invalid {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
    },
    /// The same, of a row that is sealed.
    #[error("{}", .0.fault)]
    Row(Box<Unreadable>),
    /// A credential without the row that limits guessing.
    #[error("credential {id} has no row in table {}: it was removed", .key.table().name())]
    Missing {
        /// What is missing.
        key: Box<RowKey>,
        /// Whose it is.
        id: CredentialId,
    },
    /// An approved transaction without its attestation.
    #[error("transaction {0} is approved and has no row in table attestation: it was removed")]
    Unattested(TransactionId),
    /// The attestation of a transaction that is not approved.
    #[error("transaction {0} has a row in table attestation and is not approved: an old row was put back")]
    Unapproved(TransactionId),
    /// An entry of the log that is not there, or not what its leaf is of.
    #[error("entry {0} of the log is not what was written there")]
    Entry(u64),
    /// A log that does not fit.
    #[error("{0}")]
    Log(String),
}

impl Fault {
    /// The row that is at fault, if somebody changed one: all else is right.
    pub fn row(&self) -> Option<Unreadable> {
        let of_key = |key: RowKey| Unreadable { table: key.table(), key: Some(key), fault: self.to_string() };
        match self {
            Self::Row(row) => Some((**row).clone()),
            Self::Missing { key, .. } => Some(of_key((**key).clone())),
            Self::Unattested(id) | Self::Unapproved(id) => Some(of_key(RowKey::Attestation(*id))),
            Self::Sql(_) | Self::Invalid { .. } | Self::Entry(_) | Self::Log(_) => None,
        }
    }
}

/// A table, with its columns in the order of `SELECT *`.
struct Table {
    name: &'static str,
    columns: &'static [&'static str],
}

const ACCOUNT: Table = Table {
    name: "account",
    columns: &["tenant", "account", "version", "failures", "lock", "epoch", "seal_key_version", "seal"],
};
const IDEMPOTENCY: Table = Table {
    name: "idempotency",
    columns: &[
        "client",
        "key",
        "version",
        "fingerprint",
        "answer",
        "expires_unix_ms",
        "seal_key_version",
        "seal",
    ],
};
const AUDIT: Table = Table {
    name: "audit",
    columns: &[
        "seq",
        "unix_ms",
        "event",
        "tenant",
        "client",
        "request_id",
        "credential",
        "transaction_id",
        "detail",
        "rows",
        "leaf",
    ],
};

/// One row of `SELECT *` from `table`. SQLite finds a column by its name far more slowly than this does.
struct Columns<'a> {
    row: &'a Row<'a>,
    table: &'static Table,
}

impl Columns<'_> {
    fn get<T: FromSql>(&self, column: &'static str) -> Result<T, Fault> {
        let place = self.place(column)?;
        self.row.get(place).map_err(|_| self.invalid(column))
    }

    fn is_null(&self, column: &'static str) -> Result<bool, Fault> {
        Ok(self.row.get_ref(self.place(column)?)? == ValueRef::Null)
    }

    fn place(&self, column: &'static str) -> Result<usize, Fault> {
        self.table.columns.iter().position(|name| *name == column).ok_or_else(|| self.invalid(column))
    }

    fn u64(&self, column: &'static str) -> Result<u64, Fault> {
        self.get::<i64>(column).map(i64::cast_unsigned)
    }

    fn optional_u64(&self, column: &'static str) -> Result<Option<u64>, Fault> {
        Ok(self.get::<Option<i64>>(column)?.map(i64::cast_unsigned))
    }

    /// 0 or 1: any other number would be a second spelling of one of them.
    fn flag(&self, column: &'static str) -> Result<bool, Fault> {
        self.parsed(column, |number: i64| match number {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        })
    }

    fn parsed<T: FromSql, U>(
        &self,
        column: &'static str,
        parse: impl FnOnce(T) -> Option<U>,
    ) -> Result<U, Fault> {
        parse(self.get(column)?).ok_or_else(|| self.invalid(column))
    }

    /// A value as postcard spells it, in its one spelling.
    fn decoded<T: Serialize + DeserializeOwned>(&self, column: &'static str) -> Result<T, Fault> {
        self.parsed(column, |bytes: Vec<u8>| canonical(&bytes))
    }

    /// The same, or NULL.
    fn optional<T: Serialize + DeserializeOwned>(&self, column: &'static str) -> Result<Option<T>, Fault> {
        self.parsed(column, |bytes: Option<Vec<u8>>| match bytes {
            None => Some(None),
            Some(bytes) => canonical(&bytes).map(Some),
        })
    }

    /// A text of its type, or NULL.
    fn text<T: TryFrom<String>>(&self, column: &'static str) -> Result<Option<T>, Fault> {
        self.parsed(column, |text: Option<String>| text.map(T::try_from).transpose().ok())
    }

    fn invalid(&self, column: &'static str) -> Fault {
        Fault::Invalid { table: self.table.name, column }
    }

    fn id(&self) -> Result<CredentialId, Fault> {
        self.get("id").map(CredentialId::from_random)
    }

    fn tenant(&self) -> Result<Tenant, Fault> {
        self.parsed("tenant", |text: String| Tenant::try_from(text).ok())
    }

    fn account(&self) -> Result<AccountRef, Fault> {
        self.parsed("account", |text: String| AccountRef::try_from(text).ok())
    }

    fn attempts(&self) -> Result<Attempts, Fault> {
        Ok(Attempts { failures: self.get("failures")?, lock: self.optional("lock")? })
    }

    fn seal(&self) -> Result<Seal, Fault> {
        Ok(Seal { key_version: self.get("seal_key_version")?, mac: self.get("seal")? })
    }

    fn sealed<T>(&self, row: T) -> Result<Sealed<T>, Fault> {
        Ok(Sealed { row, seal: self.seal()? })
    }
}

/// A value has one spelling: bytes that another encoding of it would have are none.
fn canonical<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let value = postcard::from_bytes(bytes).ok()?;
    (postcard::to_allocvec(&value).ok()? == bytes).then_some(value)
}

/// A row of `SELECT * FROM account`.
pub(super) fn account(row: &Row<'_>) -> Result<Sealed<Account>, Fault> {
    let columns = Columns { row, table: &ACCOUNT };
    columns.sealed(Account {
        tenant: columns.tenant()?,
        account: columns.account()?,
        version: columns.u64("version")?,
        attempts: columns.attempts()?,
        epoch: columns.get("epoch")?,
    })
}

/// A row of `SELECT * FROM idempotency`.
pub(super) fn idempotency(row: &Row<'_>) -> Result<Sealed<IdempotencyRecord>, Fault> {
    let columns = Columns { row, table: &IDEMPOTENCY };
    columns.sealed(IdempotencyRecord {
        client: columns.parsed("client", |text: String| ClientName::try_from(text).ok())?,
        key: columns.parsed("key", |text: String| IdempotencyKey::parse(&text))?,
        version: columns.u64("version")?,
        fingerprint: Fingerprint(columns.get("fingerprint")?),
        answer: columns.get("answer")?,
        expires_unix_ms: columns.u64("expires_unix_ms")?,
    })
}

/// A row of `SELECT * FROM audit`; its leaf is [`super::ledger::leaf`].
pub(super) fn audit(row: &Row<'_>) -> Result<Logged, Fault> {
    let columns = Columns { row, table: &AUDIT };
    let actor = match (columns.get("tenant")?, columns.get("client")?, columns.get("request_id")?) {
        (None::<String>, None::<String>, None) => None,
        (Some(tenant), Some(client), Some(request_id)) => Some(Actor {
            tenant: Tenant::try_from(tenant).map_err(|_| columns.invalid("tenant"))?,
            client: ClientName::try_from(client).map_err(|_| columns.invalid("client"))?,
            request_id,
        }),
        _ => return Err(columns.invalid("tenant")),
    };
    let entry = AuditEntry {
        unix_ms: columns.u64("unix_ms")?,
        event: columns.parsed("event", |name: String| Event::parse(&name))?,
        actor,
        credential: columns.get::<Option<[u8; 16]>>("credential")?.map(CredentialId::from_random),
        transaction: columns.get::<Option<[u8; 16]>>("transaction_id")?.map(TransactionId::from_random),
        detail: columns.get("detail")?,
    };
    let rows = columns.parsed("rows", |text: String| RowMarks::parse(&text))?;
    Ok(Logged { seq: columns.u64("seq")?, entry, rows })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rusqlite::Connection;

    use super::bindings::BINDING;
    use super::credentials::{CREDENTIAL, IMPORTED_SEED, STATE, USED_INPUT};
    use super::presentations::{AUTHORIZATION, PRESENTATION};
    use super::transactions::{ATTESTATION, PAYMENT};
    use super::*;
    use crate::store::schema;

    #[test]
    fn columns_stand_where_the_schema_has_them() {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::migrate(&mut connection, Path::new("memory")).unwrap();
        let sealed = [CREDENTIAL, STATE, ACCOUNT, IDEMPOTENCY, USED_INPUT, ATTESTATION, PAYMENT];
        let tables: Vec<_> =
            sealed.into_iter().chain([BINDING, PRESENTATION, AUTHORIZATION, IMPORTED_SEED, AUDIT]).collect();
        let count = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'";
        let count: i64 = connection.query_row(count, [], |row| row.get(0)).unwrap();
        assert_eq!(tables.len() as i64 + 4, count, "each but for those of the ledger");
        for table in tables {
            let statement = connection.prepare(&format!("SELECT * FROM {}", table.name)).unwrap();
            assert_eq!(statement.column_names().collect::<Vec<_>>(), table.columns, "{}", table.name);
        }
    }
}
