//! Whose a rolling password is.

use rusqlite::Row;

use super::{Columns, Fault, Table};
use crate::domain::id::CredentialId;
use crate::domain::rolling::Binding;
use crate::domain::row::Sealed;

pub(super) const BINDING: Table = Table {
    name: "binding",
    columns: &[
        "credential",
        "tenant",
        "version",
        "epoch",
        "acknowledged",
        "lookup",
        "seal_key_version",
        "seal",
    ],
};

/// A row of `SELECT * FROM binding`.
pub fn binding(row: &Row<'_>) -> Result<Sealed<Binding>, Fault> {
    let columns = Columns { row, table: &BINDING };
    columns.sealed(Binding {
        credential: columns.get("credential").map(CredentialId::from_random)?,
        tenant: columns.tenant()?,
        version: columns.u64("version")?,
        epoch: columns.u64("epoch")?,
        acknowledged: columns.flag("acknowledged")?,
        lookup: columns.get("lookup")?,
    })
}
