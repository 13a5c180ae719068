//! Terminals: several credentials in one question, from one snapshot.

use rusqlite::params;

use super::super::columns;
use super::super::{CredentialRows, ReadError, Store};
use super::{all, one, with_limits};
use crate::domain::account::AccountRef;
use crate::domain::caller::Tenant;
use crate::domain::id::CredentialId;

/// Live terminals of one account.
pub(super) const OF_ACCOUNT: &str = "SELECT * FROM credential
    WHERE tenant = ?1 AND account = ?2 AND deleted_unix_ms IS NULL AND type = 'terminal'
    ORDER BY created_unix_ms, id LIMIT ?3";

impl Store {
    /// An account's terminals in the order they were enrolled, without deleted ones.
    pub async fn terminals(
        &self,
        tenant: &Tenant,
        account: &AccountRef,
        limit: u16,
    ) -> Result<Vec<CredentialRows>, ReadError> {
        let (tenant, account) = (tenant.clone(), account.clone());
        self.read(move |tx| {
            let found = params![tenant.as_str(), account.as_str(), limit];
            let credentials = all(tx, OF_ACCOUNT, found, columns::credential)?;
            credentials.into_iter().map(|row| with_limits(tx, row)).collect()
        })
        .await
    }

    /// All these credentials of a tenant, deleted ones included, in this order. `None` if it has not all of them.
    pub async fn all_credentials(
        &self,
        tenant: &Tenant,
        ids: Vec<CredentialId>,
    ) -> Result<Option<Vec<CredentialRows>>, ReadError> {
        let tenant = tenant.clone();
        self.read(move |tx| {
            let sql = "SELECT * FROM credential WHERE id = ?1 AND tenant = ?2";
            let mut found = Vec::with_capacity(ids.len());
            for id in ids {
                let credential = one(tx, sql, params![id.to_bytes(), tenant.as_str()], columns::credential)?;
                let Some(credential) = credential else { return Ok(None) };
                found.push(with_limits(tx, credential)?);
            }
            Ok(Some(found))
        })
        .await
    }
}
