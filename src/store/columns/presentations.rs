//! Strings that payers show, and the devices that are authorized to ask for one.

use rusqlite::Row;

use super::{Columns, Fault, Table};
use crate::domain::authorization::{Authorization, Means};
use crate::domain::id::{CredentialId, PresentationId, TransactionId};
use crate::domain::presentation::Presentation;
use crate::domain::row::Sealed;
use crate::domain::time::Deadline;

pub(super) const PRESENTATION: Table = Table {
    name: "presentation",
    columns: &[
        "id",
        "tenant",
        "version",
        "credential",
        "account",
        "created_unix_ms",
        "nonce",
        "code_hash",
        "expires",
        "transaction_id",
        "seal_key_version",
        "seal",
    ],
};

pub(super) const AUTHORIZATION: Table = Table {
    name: "device_authorization",
    columns: &[
        "credential",
        "tenant",
        "account",
        "version",
        "terminal",
        "evidence",
        "nonce",
        "expires",
        "expires_unix_ms",
        "uplink_seen",
        "attempts_left",
        "seal_key_version",
        "seal",
    ],
};

/// A row of `SELECT * FROM presentation`.
pub fn presentation(row: &Row<'_>) -> Result<Sealed<Presentation>, Fault> {
    let columns = Columns { row, table: &PRESENTATION };
    columns.sealed(Presentation {
        id: columns.get("id").map(PresentationId::from_random)?,
        tenant: columns.tenant()?,
        version: columns.u64("version")?,
        credential: columns.get("credential").map(CredentialId::from_random)?,
        account: columns.account()?,
        created_unix_ms: columns.u64("created_unix_ms")?,
        nonce: columns.get("nonce")?,
        code_hash: columns.get("code_hash")?,
        expires: columns.decoded("expires")?,
        transaction: columns.get::<Option<[u8; 16]>>("transaction_id")?.map(TransactionId::from_random),
    })
}

/// A row of `SELECT * FROM device_authorization`.
pub fn authorization(row: &Row<'_>) -> Result<Sealed<Authorization>, Fault> {
    let columns = Columns { row, table: &AUTHORIZATION };
    let expires: Deadline = columns.decoded("expires")?;
    columns.parsed("expires_unix_ms", |unix_ms: i64| {
        (unix_ms.cast_unsigned() == expires.unix_ms()).then_some(())
    })?;
    let means = match (columns.get("terminal")?, columns.text("evidence")?) {
        (Some(terminal), None) => Means::Sms { terminal: CredentialId::from_random(terminal) },
        (None, Some(evidence)) => Means::Password { evidence },
        _ => return Err(columns.invalid("terminal")),
    };
    columns.sealed(Authorization {
        credential: columns.get("credential").map(CredentialId::from_random)?,
        tenant: columns.tenant()?,
        account: columns.account()?,
        version: columns.u64("version")?,
        means,
        nonce: columns.get("nonce")?,
        expires,
        uplink_seen: columns.flag("uplink_seen")?,
        attempts_left: columns.get("attempts_left")?,
    })
}
