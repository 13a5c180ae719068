//! Strings that payers show, and the devices that are authorized to ask for one.

use rusqlite::{Connection, Result, params};

use super::{bytes, put};
use crate::domain::authorization::{Authorization, Means};
use crate::domain::presentation::Presentation;
use crate::domain::row::Seal;

pub fn write_presentation(connection: &Connection, row: &Presentation, seal: &Seal) -> Result<bool> {
    put(
        connection,
        row.version,
        "INSERT INTO presentation (id, version, tenant, credential, account, created_unix_ms, nonce, code_hash,
             expires, transaction_id, seal_key_version, seal)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        "UPDATE presentation SET (version, tenant, credential, account, created_unix_ms, nonce, code_hash, expires,
             transaction_id, seal_key_version, seal)
         = (?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
         WHERE id = ?1 AND version = ?13",
        params![
            row.id.to_bytes(),
            row.version.cast_signed(),
            row.tenant.as_str(),
            row.credential.to_bytes(),
            row.account.as_str(),
            row.created_unix_ms.cast_signed(),
            row.nonce,
            row.code_hash,
            bytes(&row.expires)?,
            row.transaction.map(|id| id.to_bytes()),
            seal.key_version,
            seal.mac,
        ],
    )
}

pub fn write_authorization(connection: &Connection, row: &Authorization, seal: &Seal) -> Result<bool> {
    let (terminal, evidence) = match &row.means {
        Means::Sms { terminal } => (Some(terminal.to_bytes()), None),
        Means::Password { evidence } => (None, Some(evidence.as_str())),
    };
    put(
        connection,
        row.version,
        "INSERT INTO device_authorization (credential, version, tenant, account, terminal, evidence, nonce, expires,
             expires_unix_ms, uplink_seen, attempts_left, seal_key_version, seal)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        "UPDATE device_authorization SET (version, tenant, account, terminal, evidence, nonce, expires,
             expires_unix_ms, uplink_seen, attempts_left, seal_key_version, seal)
         = (?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
         WHERE credential = ?1 AND version = ?14",
        params![
            row.credential.to_bytes(),
            row.version.cast_signed(),
            row.tenant.as_str(),
            row.account.as_str(),
            terminal,
            evidence,
            row.nonce,
            bytes(&row.expires)?,
            row.expires.unix_ms().cast_signed(),
            row.uplink_seen,
            row.attempts_left,
            seal.key_version,
            seal.mac,
        ],
    )
}
