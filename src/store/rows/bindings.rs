//! Whose a rolling password is.

use rusqlite::{Connection, Result, params};

use super::put;
use crate::domain::rolling::Binding;
use crate::domain::row::Seal;

pub fn write_binding(connection: &Connection, row: &Binding, seal: &Seal) -> Result<bool> {
    put(
        connection,
        row.version,
        "INSERT INTO binding (credential, version, tenant, epoch, acknowledged, lookup, seal_key_version, seal)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        "UPDATE binding SET (version, tenant, epoch, acknowledged, lookup, seal_key_version, seal)
         = (?2, ?3, ?4, ?5, ?6, ?7, ?8)
         WHERE credential = ?1 AND version = ?9",
        params![
            row.credential.to_bytes(),
            row.version.cast_signed(),
            row.tenant.as_str(),
            row.epoch.cast_signed(),
            row.acknowledged,
            row.lookup,
            seal.key_version,
            seal.mac,
        ],
    )
}
