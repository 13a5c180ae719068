//! Whose a rolling password is.

use rusqlite::params;

use super::super::columns::{self, Fault};
use super::super::{BoundRows, ReadError, Store};
use super::{one, with_limits};
use crate::domain::caller::Tenant;
use crate::domain::id::CredentialId;
use crate::domain::rolling::{Binding, LOOKUP_BYTES};
use crate::domain::row::{RowKey, Sealed};

/// The binding of a password, by what it begins with.
pub(super) const OF_LOOKUP: &str = "SELECT * FROM binding WHERE tenant = ?1 AND lookup = ?2";

impl Store {
    /// Whose password begins so, within the tenant. `None`: nobody's.
    ///
    /// A binding whose credential is gone is an error: somebody removed it.
    pub async fn bound(
        &self,
        tenant: &Tenant,
        lookup: [u8; LOOKUP_BYTES],
    ) -> Result<Option<BoundRows>, ReadError> {
        let tenant = tenant.clone();
        self.read(move |tx| {
            let Some(binding) = one(tx, OF_LOOKUP, params![tenant.as_str(), lookup], columns::binding)?
            else {
                return Ok(None);
            };
            let id = binding.row.credential;
            let sql = "SELECT * FROM credential WHERE id = ?1 AND tenant = ?2";
            let credential = one(tx, sql, params![id.to_bytes(), tenant.as_str()], columns::credential)?
                .ok_or_else(|| Fault::Missing { key: Box::new(RowKey::Credential(id)), id })?;
            Ok(Some(BoundRows { credential: with_limits(tx, credential)?, binding }))
        })
        .await
    }

    /// A credential's binding; `None` while it has none.
    pub async fn binding(&self, id: CredentialId) -> Result<Option<Sealed<Binding>>, ReadError> {
        self.read(move |tx| {
            one(tx, "SELECT * FROM binding WHERE credential = ?1", params![id.to_bytes()], columns::binding)
        })
        .await
    }
}
