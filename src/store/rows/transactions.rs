//! Transactions and their attestations.

use rusqlite::{Connection, Result, params};

use super::{bytes, put};
use crate::domain::account::AccountRef;
use crate::domain::attestation::Attestation;
use crate::domain::row::Seal;
use crate::domain::text::DisplayText;
use crate::domain::transaction::{Progress, Transaction};

pub fn write_attestation(connection: &Connection, row: &Attestation, seal: &Seal) -> Result<bool> {
    put(
        connection,
        row.version,
        "INSERT INTO attestation (transaction_id, version, tenant, jws, seal_key_version, seal)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        "UPDATE attestation SET (version, tenant, jws, seal_key_version, seal) = (?2, ?3, ?4, ?5, ?6)
         WHERE transaction_id = ?1 AND version = ?7",
        params![
            row.transaction.to_bytes(),
            row.version.cast_signed(),
            row.tenant.as_str(),
            row.jws,
            seal.key_version,
            seal.mac,
        ],
    )
}

pub fn write_transaction(connection: &Connection, row: &Transaction, seal: &Seal) -> Result<bool> {
    let terms = &row.terms;
    put(
        connection,
        row.version,
        "INSERT INTO payment (id, version, tenant, created_unix_ms, method, method_name, payer, payee, amount,
             currency, order_text, platform, remark, parent_id, parent_hash, nonce, expires, expires_unix_ms,
             state, attempts_left, ended_unix_ms, authenticator, progress, seal_key_version, seal)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21,
             ?22, ?23, ?24, ?25)",
        "UPDATE payment SET (version, tenant, created_unix_ms, method, method_name, payer, payee, amount,
             currency, order_text, platform, remark, parent_id, parent_hash, nonce, expires, expires_unix_ms,
             state, attempts_left, ended_unix_ms, authenticator, progress, seal_key_version, seal)
         = (?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23,
             ?24, ?25)
         WHERE id = ?1 AND version = ?26",
        params![
            row.id.to_bytes(),
            row.version.cast_signed(),
            row.tenant.as_str(),
            row.created_unix_ms.cast_signed(),
            bytes(&row.method)?,
            row.method.name(),
            terms.payer.as_ref().map(AccountRef::as_str),
            terms.payee.as_str(),
            terms.money.amount(),
            terms.money.currency(),
            terms.order.as_str(),
            terms.platform.as_ref().map(DisplayText::as_str),
            terms.remark.as_ref().map(DisplayText::as_str),
            terms.parent.map(|parent| parent.id.to_bytes()),
            terms.parent.map(|parent| parent.hash),
            terms.nonce,
            bytes(&row.expires)?,
            row.expires.unix_ms().cast_signed(),
            row.state.name(),
            row.attempts_left,
            row.ended_unix_ms.map(u64::cast_signed),
            row.authenticator.as_ref().map(bytes).transpose()?,
            match &row.progress {
                Progress::None => None,
                progress => Some(bytes(progress)?),
            },
            seal.key_version,
            seal.mac,
        ],
    )
}
