//! Rows into the database: comparing, writing and removing them, each one statement.
//!
//! Every function runs inside the writer's transaction. But for [`write`], a statement that changes another
//! number of rows than one is an error: comparing came first, so only a commit that names a row twice gets
//! there.

mod bindings;
mod credentials;
mod presentations;
mod transactions;

use rusqlite::types::ToSql;
use rusqlite::{Connection, Error, OptionalExtension, Params, Result, params};
use serde::Serialize;

use super::inventory::Tag;
use crate::domain::account::Account;
use crate::domain::idempotency::IdempotencyRecord;
use crate::domain::lockout::Lock;
use crate::domain::row::{Row, RowKey, Seal, Sealed};

use bindings::write_binding;
pub(super) use credentials::{status_name, usage_name};
use credentials::{write_credential, write_imported_seed, write_state, write_used_input};
use presentations::{write_authorization, write_presentation};
use transactions::{write_attestation, write_transaction};

/// The version of the row at `key`, and how its seal begins; `None` where there is none.
pub(super) fn standing(connection: &Connection, key: &RowKey) -> Result<Option<(u64, Tag)>> {
    fn find(connection: &Connection, sql: &str, key: impl Params) -> Result<Option<(u64, Tag)>> {
        let found = connection.prepare_cached(sql)?.query_row(key, |row| {
            let seal = row.get_ref(1)?.as_blob().unwrap_or_default();
            Ok((row.get::<_, i64>(0)?.cast_unsigned(), Tag::of_bytes(seal)))
        });
        found.optional()
    }
    match key {
        RowKey::Credential(id) => {
            find(connection, "SELECT version, seal FROM credential WHERE id = ?1", [id.to_bytes()])
        }
        RowKey::State(id) => {
            find(connection, "SELECT version, seal FROM credential_state WHERE id = ?1", [id.to_bytes()])
        }
        RowKey::Account(tenant, account) => find(
            connection,
            "SELECT version, seal FROM account WHERE tenant = ?1 AND account = ?2",
            [tenant.as_str(), account.as_str()],
        ),
        RowKey::Idempotency(client, key) => find(
            connection,
            "SELECT version, seal FROM idempotency WHERE client = ?1 AND key = ?2",
            [client.as_str(), key.as_str()],
        ),
        RowKey::UsedInput(id, fingerprint) => find(
            connection,
            "SELECT version, seal FROM used_input WHERE id = ?1 AND fingerprint = ?2",
            params![id.to_bytes(), fingerprint],
        ),
        RowKey::Attestation(transaction) => find(
            connection,
            "SELECT version, seal FROM attestation WHERE transaction_id = ?1",
            [transaction.to_bytes()],
        ),
        RowKey::Transaction(id) => {
            find(connection, "SELECT version, seal FROM payment WHERE id = ?1", [id.to_bytes()])
        }
        RowKey::Binding(id) => {
            find(connection, "SELECT version, seal FROM binding WHERE credential = ?1", [id.to_bytes()])
        }
        RowKey::Presentation(id) => {
            find(connection, "SELECT version, seal FROM presentation WHERE id = ?1", [id.to_bytes()])
        }
        RowKey::Authorization(id) => find(
            connection,
            "SELECT version, seal FROM device_authorization WHERE credential = ?1",
            [id.to_bytes()],
        ),
        RowKey::ImportedSeed(tenant, fingerprint) => find(
            connection,
            "SELECT version, seal FROM imported_seed WHERE tenant = ?1 AND fingerprint = ?2",
            params![tenant.as_str(), fingerprint],
        ),
    }
}

/// Removes the row at `key`.
pub(super) fn remove(connection: &Connection, key: &RowKey) -> Result<()> {
    match key {
        RowKey::Credential(id) => {
            change(connection, "DELETE FROM credential WHERE id = ?1", params![id.to_bytes()])
        }
        RowKey::State(id) => {
            change(connection, "DELETE FROM credential_state WHERE id = ?1", params![id.to_bytes()])
        }
        RowKey::Account(tenant, account) => change(
            connection,
            "DELETE FROM account WHERE tenant = ?1 AND account = ?2",
            params![tenant.as_str(), account.as_str()],
        ),
        RowKey::Idempotency(client, key) => change(
            connection,
            "DELETE FROM idempotency WHERE client = ?1 AND key = ?2",
            params![client.as_str(), key.as_str()],
        ),
        RowKey::UsedInput(id, fingerprint) => change(
            connection,
            "DELETE FROM used_input WHERE id = ?1 AND fingerprint = ?2",
            params![id.to_bytes(), fingerprint],
        ),
        RowKey::Attestation(transaction) => change(
            connection,
            "DELETE FROM attestation WHERE transaction_id = ?1",
            params![transaction.to_bytes()],
        ),
        RowKey::Transaction(id) => {
            change(connection, "DELETE FROM payment WHERE id = ?1", params![id.to_bytes()])
        }
        RowKey::Binding(id) => {
            change(connection, "DELETE FROM binding WHERE credential = ?1", params![id.to_bytes()])
        }
        RowKey::Presentation(id) => {
            change(connection, "DELETE FROM presentation WHERE id = ?1", params![id.to_bytes()])
        }
        RowKey::Authorization(id) => change(
            connection,
            "DELETE FROM device_authorization WHERE credential = ?1",
            params![id.to_bytes()],
        ),
        RowKey::ImportedSeed(tenant, fingerprint) => change(
            connection,
            "DELETE FROM imported_seed WHERE tenant = ?1 AND fingerprint = ?2",
            params![tenant.as_str(), fingerprint],
        ),
    }
}

/// Writes a row: version 1 as a new one, any other over the version before it. `false`: that version is
/// not there, and nothing was written.
pub(super) fn write(connection: &Connection, sealed: &Sealed<Row>) -> Result<bool> {
    match &sealed.row {
        Row::Credential(row) => write_credential(connection, row, &sealed.seal),
        Row::State(row) => write_state(connection, row, &sealed.seal),
        Row::Account(row) => write_account(connection, row, &sealed.seal),
        Row::Idempotency(row) => write_idempotency(connection, row, &sealed.seal),
        Row::UsedInput(row) => write_used_input(connection, row, &sealed.seal),
        Row::Attestation(row) => write_attestation(connection, row, &sealed.seal),
        Row::Transaction(row) => write_transaction(connection, row, &sealed.seal),
        Row::Binding(row) => write_binding(connection, row, &sealed.seal),
        Row::Presentation(row) => write_presentation(connection, row, &sealed.seal),
        Row::Authorization(row) => write_authorization(connection, row, &sealed.seal),
        Row::ImportedSeed(row) => write_imported_seed(connection, row, &sealed.seal),
    }
}

fn write_account(connection: &Connection, row: &Account, seal: &Seal) -> Result<bool> {
    put(
        connection,
        row.version,
        "INSERT INTO account (tenant, account, version, failures, lock, epoch, seal_key_version, seal)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        "UPDATE account SET (version, failures, lock, epoch, seal_key_version, seal)
         = (?3, ?4, ?5, ?6, ?7, ?8)
         WHERE tenant = ?1 AND account = ?2 AND version = ?9",
        params![
            row.tenant.as_str(),
            row.account.as_str(),
            row.version.cast_signed(),
            row.attempts.failures,
            lock_bytes(row.attempts.lock)?,
            row.epoch,
            seal.key_version,
            seal.mac,
        ],
    )
}

fn write_idempotency(connection: &Connection, row: &IdempotencyRecord, seal: &Seal) -> Result<bool> {
    put(
        connection,
        row.version,
        "INSERT INTO idempotency
             (client, key, version, fingerprint, answer, expires_unix_ms, seal_key_version, seal)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        "UPDATE idempotency SET (version, fingerprint, answer, expires_unix_ms, seal_key_version, seal)
         = (?3, ?4, ?5, ?6, ?7, ?8)
         WHERE client = ?1 AND key = ?2 AND version = ?9",
        params![
            row.client.as_str(),
            row.key.as_str(),
            row.version.cast_signed(),
            row.fingerprint.0,
            row.answer,
            row.expires_unix_ms.cast_signed(),
            seal.key_version,
            seal.mac,
        ],
    )
}

fn put(
    connection: &Connection,
    version: u64,
    insert: &str,
    update: &str,
    values: &[&dyn ToSql],
) -> Result<bool> {
    if version == 1 {
        return change(connection, insert, values).map(|()| true);
    }
    let before = version.wrapping_sub(1).cast_signed();
    let values: Vec<&dyn ToSql> = values.iter().copied().chain([&before as &dyn ToSql]).collect();
    // Keys are unique: it is one row or none.
    Ok(connection.prepare_cached(update)?.execute(values.as_slice())? == 1)
}

pub(super) fn change(connection: &Connection, sql: &str, values: &[&dyn ToSql]) -> Result<()> {
    match connection.prepare_cached(sql)?.execute(values)? {
        1 => Ok(()),
        count => Err(Error::StatementChangedRows(count)),
    }
}

fn lock_bytes(lock: Option<Lock>) -> Result<Option<Vec<u8>>> {
    lock.as_ref().map(bytes).transpose()
}

fn bytes(value: &impl Serialize) -> Result<Vec<u8>> {
    postcard::to_allocvec(value).map_err(|error| Error::ToSqlConversionFailure(Box::new(error)))
}
