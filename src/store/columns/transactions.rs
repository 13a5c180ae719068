//! Transactions and their attestations.

use rusqlite::Row;

use super::{Columns, Fault, Table};
use crate::domain::attestation::Attestation;
use crate::domain::id::TransactionId;
use crate::domain::money::Money;
use crate::domain::row::Sealed;
use crate::domain::time::Deadline;
use crate::domain::transaction::{Method, Parent, Progress, State, Terms, Transaction};

pub(super) const ATTESTATION: Table = Table {
    name: "attestation",
    columns: &["transaction_id", "tenant", "version", "jws", "seal_key_version", "seal"],
};

pub(super) const PAYMENT: Table = Table {
    name: "payment",
    columns: &[
        "id",
        "tenant",
        "version",
        "created_unix_ms",
        "method",
        "method_name",
        "payer",
        "payee",
        "amount",
        "currency",
        "order_text",
        "platform",
        "remark",
        "parent_id",
        "parent_hash",
        "nonce",
        "expires",
        "expires_unix_ms",
        "state",
        "attempts_left",
        "ended_unix_ms",
        "authenticator",
        "seal_key_version",
        "seal",
        "progress",
    ],
};

/// A row of `SELECT * FROM attestation`.
pub fn attestation(row: &Row<'_>) -> Result<Sealed<Attestation>, Fault> {
    let columns = Columns { row, table: &ATTESTATION };
    columns.sealed(Attestation {
        transaction: columns.get("transaction_id").map(TransactionId::from_random)?,
        tenant: columns.tenant()?,
        version: columns.u64("version")?,
        jws: columns.get("jws")?,
    })
}

/// A row of `SELECT * FROM payment`.
pub fn transaction(row: &Row<'_>) -> Result<Sealed<Transaction>, Fault> {
    let columns = Columns { row, table: &PAYMENT };
    let method: Method = columns.decoded("method")?;
    columns.parsed("method_name", |name: String| (name == method.name()).then_some(()))?;
    let expires: Deadline = columns.decoded("expires")?;
    columns.parsed("expires_unix_ms", |unix_ms: i64| {
        (unix_ms.cast_unsigned() == expires.unix_ms()).then_some(())
    })?;
    columns.sealed(Transaction {
        id: columns.get("id").map(TransactionId::from_random)?,
        tenant: columns.tenant()?,
        version: columns.u64("version")?,
        created_unix_ms: columns.u64("created_unix_ms")?,
        method,
        terms: terms(&columns)?,
        expires,
        state: columns
            .parsed("state", |name: String| State::ALL.into_iter().find(|state| state.name() == name))?,
        attempts_left: columns.get("attempts_left")?,
        ended_unix_ms: columns.optional_u64("ended_unix_ms")?,
        authenticator: columns.optional("authenticator")?,
        progress: match columns.optional("progress")? {
            None => Progress::None,
            // Nothing is spelt by NULL alone: what is not in a seal would have two spellings.
            Some(Progress::None) => return Err(columns.invalid("progress")),
            Some(progress) => progress,
        },
    })
}

fn terms(columns: &Columns<'_>) -> Result<Terms, Fault> {
    let parent = match (columns.get("parent_id")?, columns.get("parent_hash")?) {
        (Some(id), Some(hash)) => Some(Parent { id: TransactionId::from_random(id), hash }),
        (None, None) => None,
        _ => return Err(columns.invalid("parent_hash")),
    };
    Ok(Terms {
        payer: columns.text("payer")?,
        payee: columns.parsed("payee", |text: String| text.try_into().ok())?,
        money: Money::stored(columns.get("amount")?, columns.get("currency")?),
        order: columns.parsed("order_text", |text: String| text.try_into().ok())?,
        platform: columns.text("platform")?,
        remark: columns.text("remark")?,
        parent,
        nonce: columns.get("nonce")?,
    })
}
