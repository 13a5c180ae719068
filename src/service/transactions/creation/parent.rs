//! The transaction that a new one follows: its second leg commits to the attestation of the first (seed A, S7).

use sha2::{Digest, Sha256};

use crate::domain::attestation::{Attestation, Unverified};
use crate::domain::caller::Tenant;
use crate::domain::id::TransactionId;
use crate::domain::row::{Sealed, SealedBytes};
use crate::domain::transaction::{Parent, Transaction};
use crate::store::Standing;

use super::{Refused, Service};

/// An approved transaction, as another one commits to it.
pub struct ParentRows {
    pub link: Parent,
    pub transaction: Sealed<Transaction>,
    attestation: Sealed<Attestation>,
}

impl ParentRows {
    pub fn before(&self) -> [Standing; 2] {
        [(&self.transaction).into(), (&self.attestation).into()]
    }

    pub fn bytes(&self) -> [SealedBytes; 2] {
        [self.transaction.to_bytes(), self.attestation.to_bytes()]
    }
}

impl Service {
    /// The approved transaction of this attestation: it has to be the tenant's, byte for byte as it was given
    /// out, and to hold still.
    pub(super) async fn find_parent(&self, tenant: &Tenant, jws: &str) -> Result<ParentRows, Refused> {
        let invalid = || Refused::Invalid {
            field: "parent",
            reason: "must be an attestation of yours, just as it was given out, and not expired",
        };
        let unverified = Unverified::parse(jws).ok_or_else(invalid)?;
        let id = TransactionId::parse(&unverified.claims.jti).ok_or_else(invalid)?;
        let rows = self.store.transaction(tenant, id).await?.ok_or_else(invalid)?;
        let attestation = rows.attestation.filter(|stored| stored.row.jws == jws).ok_or_else(invalid)?;
        let now = self.now();
        if !now.trusted {
            return Err(Refused::clock_untrusted());
        }
        if unverified.claims.exp <= now.unix_ms / 1_000 {
            return Err(invalid());
        }
        let link = Parent { id, hash: Sha256::digest(jws).into() };
        Ok(ParentRows { link, transaction: rows.transaction, attestation })
    }
}
