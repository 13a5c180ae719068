//! What a store can be asked. Each question is one read transaction.

mod bindings;
mod imported_seeds;
pub(super) mod log;
mod presentations;
mod terminals;
mod transactions;

use std::collections::HashSet;

use rusqlite::types::Value;
use rusqlite::{OptionalExtension, Params, Row as SqlRow, Transaction, params};

use super::columns::{self, Fault};
use super::ledger;
use super::{CredentialRows, Page, ReadError, Store, Unreadable, scan};
use crate::domain::account::{Account, AccountRef};
use crate::domain::audit::Logged;
use crate::domain::caller::{ClientName, Tenant};
use crate::domain::credential::{Credential, ObjectId, UsedInput};
use crate::domain::id::CredentialId;
use crate::domain::idempotency::{IdempotencyKey, IdempotencyRecord};
use crate::domain::row::{self, Row, RowKey, RowSum, Sealed};

/// Live credentials of one account, after a place.
const LIST_OF_ACCOUNT: &str = "SELECT * FROM credential
    WHERE tenant = ?1 AND account = ?2 AND deleted_unix_ms IS NULL AND (created_unix_ms, id) > (?3, ?4)
    ORDER BY created_unix_ms, id LIMIT ?5";
/// Live credentials of a tenant, after a place.
const LIST_OF_TENANT: &str = "SELECT * FROM credential
    WHERE tenant = ?1 AND deleted_unix_ms IS NULL AND (created_unix_ms, id) > (?2, ?3)
    ORDER BY created_unix_ms, id LIMIT ?4";
/// Kept answers past their time. Times of 2^63 ms and beyond are negative here; they never come.
const EXPIRED: &str = "SELECT * FROM idempotency WHERE expires_unix_ms BETWEEN 0 AND ?1
    ORDER BY expires_unix_ms LIMIT ?2";
/// Tombstones older than a moment.
const TOMBSTONES: &str = "SELECT * FROM credential WHERE deleted_unix_ms >= 0 AND deleted_unix_ms < ?1
    ORDER BY deleted_unix_ms LIMIT ?2";
/// Used inputs whose time step is out of reach.
const OUT_OF_REACH: &str = "SELECT * FROM used_input WHERE expires_unix_ms BETWEEN 0 AND ?1
    ORDER BY expires_unix_ms LIMIT ?2";
/// What is left of the inputs of one credential.
const INPUTS_OF: &str = "SELECT * FROM used_input WHERE id = ?1 LIMIT ?2";

/// Secrets that are objects in the HSM. Read once, at the start.
const RESIDENTS: &str = "SELECT secret FROM credential WHERE kek_version = 0 AND secret IS NOT NULL
    UNION ALL SELECT identity_key FROM credential WHERE identity_key_version = 0 AND identity_key IS NOT NULL";

impl Store {
    /// A tenant's credential, deleted ones included, with what its verdicts stand on. `None` if
    /// there is none or it is another tenant's.
    ///
    /// A credential whose state or account row is gone is an error: somebody removed what limits
    /// guessing.
    pub async fn credential(
        &self,
        tenant: &Tenant,
        id: CredentialId,
    ) -> Result<Option<CredentialRows>, ReadError> {
        let tenant = tenant.clone();
        self.read(move |tx| {
            let sql = "SELECT * FROM credential WHERE id = ?1 AND tenant = ?2";
            let credential = one(tx, sql, params![id.to_bytes(), tenant.as_str()], columns::credential)?;
            credential.map(|credential| with_limits(tx, credential)).transpose()
        })
        .await
    }

    /// Which objects in the HSM rows name, of all tenants.
    pub async fn residents(&self) -> Result<HashSet<ObjectId>, ReadError> {
        self.read(move |tx| {
            // Whatever else is wrong with a row, its object is its own: what is no id is skipped, not an error.
            let id = |row: &SqlRow<'_>| Ok(ObjectId::try_from(row.get::<_, Vec<u8>>(0)?.as_slice()).ok());
            Ok(all(tx, RESIDENTS, [], id)?.into_iter().flatten().collect())
        })
        .await
    }

    /// An account's row.
    pub async fn account(
        &self,
        tenant: &Tenant,
        account: &AccountRef,
    ) -> Result<Option<Sealed<Account>>, ReadError> {
        let (tenant, account) = (tenant.clone(), account.clone());
        self.read(move |tx| account_row(tx, &tenant, &account)).await
    }

    /// A page of a tenant's credentials, or of one account's, without deleted ones, in the order
    /// they were made. `None` if the page is to begin after a credential that the tenant does not
    /// have (one that was deleted since still marks its place, until it is pruned).
    pub async fn credentials(
        &self,
        tenant: &Tenant,
        account: Option<&AccountRef>,
        page: Page<CredentialId>,
    ) -> Result<Option<Vec<CredentialRows>>, ReadError> {
        let (tenant, account) = (tenant.clone(), account.cloned());
        self.read(move |tx| {
            let sql = "SELECT created_unix_ms FROM credential WHERE id = ?1 AND tenant = ?2";
            let after = page.after.map(CredentialId::to_bytes);
            let Some((created, id)) = place(tx, sql, &tenant, after)? else { return Ok(None) };
            let credentials = match account {
                Some(account) => all(
                    tx,
                    LIST_OF_ACCOUNT,
                    params![tenant.as_str(), account.as_str(), created, id, page.limit],
                    columns::credential,
                )?,
                None => all(
                    tx,
                    LIST_OF_TENANT,
                    params![tenant.as_str(), created, id, page.limit],
                    columns::credential,
                )?,
            };
            credentials.into_iter().map(|row| with_limits(tx, row)).collect::<Result<_, _>>().map(Some)
        })
        .await
    }

    /// The answer kept under a client's key.
    pub async fn idempotency(
        &self,
        client: &ClientName,
        key: &IdempotencyKey,
    ) -> Result<Option<Sealed<IdempotencyRecord>>, ReadError> {
        let (client, key) = (client.clone(), key.clone());
        self.read(move |tx| {
            let sql = "SELECT * FROM idempotency WHERE client = ?1 AND key = ?2";
            one(tx, sql, params![client.as_str(), key.as_str()], columns::idempotency)
        })
        .await
    }

    /// Those of an OCRA credential's inputs that were accepted before.
    pub async fn used_inputs(
        &self,
        id: CredentialId,
        fingerprints: Vec<[u8; 32]>,
    ) -> Result<Vec<Sealed<UsedInput>>, ReadError> {
        self.read(move |tx| {
            let sql = "SELECT * FROM used_input WHERE id = ?1 AND fingerprint = ?2";
            let found = |fingerprint| one(tx, sql, params![id.to_bytes(), fingerprint], columns::used_input);
            fingerprints.iter().filter_map(|fingerprint| found(fingerprint).transpose()).collect()
        })
        .await
    }

    /// Used inputs whose time step is out of reach at `unix_ms`, oldest first. They may be pruned, once
    /// their credential's mark is beyond them.
    pub async fn inputs_out_of_reach(
        &self,
        unix_ms: u64,
        limit: u16,
    ) -> Result<Vec<Sealed<UsedInput>>, ReadError> {
        self.read(move |tx| all(tx, OUT_OF_REACH, params![signed(unix_ms), limit], columns::used_input)).await
    }

    /// Used inputs of one credential. Those of a deleted one may be pruned, before it is.
    pub async fn inputs_of(&self, id: CredentialId, limit: u16) -> Result<Vec<Sealed<UsedInput>>, ReadError> {
        self.read(move |tx| all(tx, INPUTS_OF, params![id.to_bytes(), limit], columns::used_input)).await
    }

    /// Rows whose time is over at `unix_ms`, oldest first: kept answers. They may be pruned.
    pub async fn expired(&self, unix_ms: u64, limit: u16) -> Result<Vec<Sealed<Row>>, ReadError> {
        self.read(move |tx| {
            all(tx, EXPIRED, params![signed(unix_ms), limit], |row| columns::idempotency(row).map(any))
        })
        .await
    }

    /// Credentials deleted before `before_unix_ms`, oldest first. They may be pruned.
    pub async fn tombstones(
        &self,
        before_unix_ms: u64,
        limit: u16,
    ) -> Result<Vec<CredentialRows>, ReadError> {
        self.read(move |tx| {
            let credentials =
                all(tx, TOMBSTONES, params![signed(before_unix_ms), limit], columns::credential)?;
            credentials.into_iter().map(|row| with_limits(tx, row)).collect()
        })
        .await
    }

    /// A page over every row of every table: those after `cursor`, the key of the last row of the
    /// page before. A page shorter than `limit` is the last one.
    pub async fn rows_after(
        &self,
        cursor: Option<RowKey>,
        limit: u16,
    ) -> Result<Vec<Sealed<Row>>, ReadError> {
        self.read(move |tx| rows_after(tx, cursor.as_ref(), usize::from(limit))).await
    }

    /// How many rows there are in all tables.
    pub async fn rows_count(&self) -> Result<u64, ReadError> {
        self.read(|tx| {
            let mut count = 0u64;
            for table in row::Table::ALL {
                // The name is one of ours.
                let sql = format!("SELECT count(*) FROM {}", table.name());
                let rows: i64 = tx.query_row(&sql, [], |row| row.get(0))?;
                count = count.saturating_add(rows.cast_unsigned());
            }
            Ok(count)
        })
        .await
    }

    /// The sum over all rows, as kept.
    pub async fn row_sum(&self) -> Result<RowSum, ReadError> {
        self.read(|tx| ledger::sums(tx).map(|(sums, unsplit)| sums.total().plus(unsplit))).await
    }

    /// A page of the log in the order of the commits: entries after number `after_seq`.
    pub async fn audit_entries(&self, after_seq: u64, limit: u16) -> Result<Vec<Logged>, ReadError> {
        self.read(move |tx| {
            let sql = "SELECT * FROM audit WHERE seq > ?1 ORDER BY seq LIMIT ?2";
            all(tx, sql, params![signed(after_seq), limit], columns::audit)
        })
        .await
    }
}

/// What comes after a page's end, in the order of a list; `None` if that item, which `sql` looks for, is not the
/// tenant's.
fn place(
    tx: &Transaction<'_>,
    sql: &str,
    tenant: &Tenant,
    after: Option<[u8; 16]>,
) -> Result<Option<(i64, Vec<u8>)>, Fault> {
    let Some(id) = after else { return Ok(Some((i64::MIN, Vec::new()))) };
    let created: Option<i64> =
        tx.prepare_cached(sql)?.query_row(params![id, tenant.as_str()], |row| row.get(0)).optional()?;
    Ok(created.map(|created| (created, id.to_vec())))
}

fn with_limits(tx: &Transaction<'_>, credential: Sealed<Credential>) -> Result<CredentialRows, Fault> {
    let id = credential.row.id;
    let sql = "SELECT * FROM credential_state WHERE id = ?1";
    let state = one(tx, sql, params![id.to_bytes()], columns::state)?
        .ok_or_else(|| Fault::Missing { key: Box::new(RowKey::State(id)), id })?;
    let (tenant, account) = (&credential.row.tenant, &credential.row.account);
    let key = || RowKey::Account(tenant.clone(), account.clone());
    let account =
        account_row(tx, tenant, account)?.ok_or_else(|| Fault::Missing { key: Box::new(key()), id })?;
    Ok(CredentialRows { credential, state, account })
}

pub(super) fn account_row(
    tx: &Transaction<'_>,
    tenant: &Tenant,
    account: &AccountRef,
) -> Result<Option<Sealed<Account>>, Fault> {
    let sql = "SELECT * FROM account WHERE tenant = ?1 AND account = ?2";
    one(tx, sql, params![tenant.as_str(), account.as_str()], columns::account)
}

/// How to read one table in the order of its primary key: from ?2 (and ?3) on, ?1 rows at most.
pub(super) type Table = (&'static str, fn(&SqlRow<'_>) -> Result<Sealed<Row>, Fault>);

/// The tables in the order of [`RowKey`]'s variants.
pub(super) const TABLES: [Table; 11] = [
    ("SELECT * FROM credential WHERE id > ?2 AND ?3 = '' ORDER BY id LIMIT ?1", |row| {
        columns::credential(row).map(any)
    }),
    ("SELECT * FROM credential_state WHERE id > ?2 AND ?3 = '' ORDER BY id LIMIT ?1", |row| {
        columns::state(row).map(any)
    }),
    ("SELECT * FROM account WHERE (tenant, account) > (?2, ?3) ORDER BY tenant, account LIMIT ?1", |row| {
        columns::account(row).map(any)
    }),
    ("SELECT * FROM idempotency WHERE (client, key) > (?2, ?3) ORDER BY client, key LIMIT ?1", |row| {
        columns::idempotency(row).map(any)
    }),
    (
        "SELECT * FROM used_input WHERE (id, fingerprint) > (?2, ?3) ORDER BY id, fingerprint LIMIT ?1",
        |row| columns::used_input(row).map(any),
    ),
    (
        "SELECT * FROM attestation WHERE transaction_id > ?2 AND ?3 = '' ORDER BY transaction_id LIMIT ?1",
        |row| columns::attestation(row).map(any),
    ),
    ("SELECT * FROM payment WHERE id > ?2 AND ?3 = '' ORDER BY id LIMIT ?1", |row| {
        columns::transaction(row).map(any)
    }),
    ("SELECT * FROM binding WHERE credential > ?2 AND ?3 = '' ORDER BY credential LIMIT ?1", |row| {
        columns::binding(row).map(any)
    }),
    ("SELECT * FROM presentation WHERE id > ?2 AND ?3 = '' ORDER BY id LIMIT ?1", |row| {
        columns::presentation(row).map(any)
    }),
    (
        "SELECT * FROM device_authorization WHERE credential > ?2 AND ?3 = '' ORDER BY credential LIMIT ?1",
        |row| columns::authorization(row).map(any),
    ),
    (
        "SELECT * FROM imported_seed WHERE (tenant, fingerprint) > (?2, ?3) ORDER BY tenant, fingerprint LIMIT ?1",
        |row| columns::imported_seed(row).map(any),
    ),
];

/// The rest of the cursor's table, then the tables behind it from their beginning.
fn rows_after(
    tx: &Transaction<'_>,
    cursor: Option<&RowKey>,
    limit: usize,
) -> Result<Vec<Sealed<Row>>, Fault> {
    let text = |text: &str| Value::Text(text.to_owned());
    // To SQLite an empty text is less than any other text and any blob.
    let (first_table, mut from) = match cursor {
        None => (0, [text(""), text("")]),
        Some(RowKey::Credential(id)) => (0, [Value::Blob(id.to_bytes().to_vec()), text("")]),
        Some(RowKey::State(id)) => (1, [Value::Blob(id.to_bytes().to_vec()), text("")]),
        Some(RowKey::Account(tenant, account)) => (2, [text(tenant.as_str()), text(account.as_str())]),
        Some(RowKey::Idempotency(client, key)) => (3, [text(client.as_str()), text(key.as_str())]),
        Some(RowKey::UsedInput(id, fingerprint)) => {
            (4, [Value::Blob(id.to_bytes().to_vec()), Value::Blob(fingerprint.to_vec())])
        }
        Some(RowKey::Attestation(id)) => (5, [Value::Blob(id.to_bytes().to_vec()), text("")]),
        Some(RowKey::Transaction(id)) => (6, [Value::Blob(id.to_bytes().to_vec()), text("")]),
        Some(RowKey::Binding(id)) => (7, [Value::Blob(id.to_bytes().to_vec()), text("")]),
        Some(RowKey::Presentation(id)) => (8, [Value::Blob(id.to_bytes().to_vec()), text("")]),
        Some(RowKey::Authorization(id)) => (9, [Value::Blob(id.to_bytes().to_vec()), text("")]),
        Some(RowKey::ImportedSeed(tenant, fingerprint)) => {
            (10, [text(tenant.as_str()), Value::Blob(fingerprint.to_vec())])
        }
    };
    let mut rows = Vec::new();
    for (sql, parse) in TABLES.into_iter().skip(first_table) {
        let left = limit.saturating_sub(rows.len()) as i64;
        let [first, second] = &from;
        rows.extend(all(tx, sql, params![left, first, second], parse)?);
        from = [text(""), text("")];
    }
    Ok(rows)
}

pub(super) fn any<T: Into<Row>>(sealed: Sealed<T>) -> Sealed<Row> {
    Sealed { row: sealed.row.into(), seal: sealed.seal }
}

/// A moment to compare stored ones with.
fn signed(unix_ms: u64) -> i64 {
    i64::try_from(unix_ms).unwrap_or(i64::MAX)
}

pub(super) fn one<T>(
    tx: &Transaction<'_>,
    sql: &str,
    values: impl Params,
    parse: impl Fn(&SqlRow<'_>) -> Result<T, Fault>,
) -> Result<Option<T>, Fault> {
    let mut statement = tx.prepare_cached(sql)?;
    let mut rows = statement.query(values)?;
    rows.next()?.map(|row| parsed(row, &parse)).transpose()
}

pub(super) fn all<T>(
    tx: &Transaction<'_>,
    sql: &str,
    values: impl Params,
    parse: impl Fn(&SqlRow<'_>) -> Result<T, Fault>,
) -> Result<Vec<T>, Fault> {
    let mut statement = tx.prepare_cached(sql)?;
    let mut rows = statement.query(values)?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.push(parsed(row, &parse)?);
    }
    Ok(all)
}

/// With its name, if it is one of those that are sealed and cannot be read.
fn parsed<T>(row: &SqlRow<'_>, parse: impl Fn(&SqlRow<'_>) -> Result<T, Fault>) -> Result<T, Fault> {
    parse(row).map_err(|fault| match &fault {
        Fault::Invalid { table, .. } => match row::Table::parse(table) {
            Some(table) => {
                let key = scan::key_of(row, table);
                Fault::Row(Box::new(Unreadable { table, key, fault: fault.to_string() }))
            }
            None => fault,
        },
        _ => fault,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rusqlite::Connection;

    use super::*;
    use crate::store::schema;

    #[test]
    fn what_is_asked_often_is_answered_by_an_index_without_sorting() {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::migrate(&mut connection, Path::new("memory")).unwrap();
        for (sql, index) in [
            (LIST_OF_ACCOUNT, "credential_of_account"),
            (LIST_OF_TENANT, "credential_of_tenant"),
            (EXPIRED, "idempotency_expires"),
            (terminals::OF_ACCOUNT, "credential_of_account"),
            (TOMBSTONES, "credential_deleted"),
            (OUT_OF_REACH, "used_input_expires"),
            (INPUTS_OF, "PRIMARY KEY"),
            (imported_seeds::OF_FINGERPRINT, "PRIMARY KEY"),
            (imported_seeds::OF_CREDENTIAL, "imported_seed_of_credential"),
            (super::log::OF_TENANT, "audit_of_tenant"),
            (transactions::PAYMENTS_OF_PAYER, "payment_of_payer"),
            (transactions::PAYMENTS_OF_TENANT, "payment_of_tenant"),
            (transactions::OVERDUE, "payment_pending"),
            (transactions::ENDED, "payment_ended"),
            (bindings::OF_LOOKUP, "binding_of_lookup"),
            (presentations::OF_CODE, "presentation_of_code"),
            (presentations::MADE_BEFORE, "presentation_created"),
            (presentations::AUTHORIZATIONS_PAST, "device_authorization_expires"),
        ] {
            let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let mut rows = statement.raw_query();
            let mut plan = String::new();
            while let Some(row) = rows.next().unwrap() {
                plan += &row.get::<_, String>("detail").unwrap();
            }
            assert!(plan.contains(index) && !plan.contains("TEMP B-TREE"), "{sql}: {plan}");
        }
    }
}
