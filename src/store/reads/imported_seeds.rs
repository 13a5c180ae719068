//! What wrapped seeds came as.

use rusqlite::params;

use super::super::columns;
use super::super::{ReadError, Store};
use super::{all, one};
use crate::domain::caller::Tenant;
use crate::domain::credential::ImportedSeed;
use crate::domain::id::CredentialId;
use crate::domain::row::Sealed;

/// That a blob was taken.
pub(super) const OF_FINGERPRINT: &str = "SELECT * FROM imported_seed WHERE tenant = ?1 AND fingerprint = ?2";
/// What a credential's seed came as.
pub(super) const OF_CREDENTIAL: &str = "SELECT * FROM imported_seed WHERE credential = ?1";

impl Store {
    /// What says that a tenant has brought the blob of this fingerprint before.
    pub async fn imported_seed(
        &self,
        tenant: &Tenant,
        fingerprint: [u8; 32],
    ) -> Result<Option<Sealed<ImportedSeed>>, ReadError> {
        let tenant = tenant.clone();
        self.read(move |tx| {
            one(tx, OF_FINGERPRINT, params![tenant.as_str(), fingerprint], columns::imported_seed)
        })
        .await
    }

    /// What a credential's seed came as: one row at most. That of a deleted one may be pruned with it.
    pub async fn imported_seeds_of(&self, id: CredentialId) -> Result<Vec<Sealed<ImportedSeed>>, ReadError> {
        self.read(move |tx| all(tx, OF_CREDENTIAL, params![id.to_bytes()], columns::imported_seed)).await
    }
}
