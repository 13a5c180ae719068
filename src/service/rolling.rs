//! Rolling credentials (seed B): bound to a terminal, told its temporary code again, bound to another one.
//!
//! A temporary code is in an answer after the commit that opens its epoch, and in answers to what asks for it again,
//! until its terminal has acknowledged or used it. It is derived each time, and kept nowhere.

use serde::{Deserialize, Serialize};

use crate::domain::caller::Tenant;
use crate::domain::credential::{Credential, Kind, Status};
use crate::domain::id::CredentialId;
use crate::domain::rolling::{Binding, Rolling};
use crate::domain::row::Sealed;
use crate::hsm::messages::OpenedEpoch;
use crate::secret::SecretBytes;
use crate::store::CredentialRows;

use super::{Answer, Refused, Service};

mod activation;
mod rebinding;
mod rotation;

pub use activation::Activation;
pub use rotation::RotationProof;

/// A temporary code that an answer hands out. What is remembered is which one, and of which binding: another answer has
/// it while it is still that one's to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOut {
    /// The credential's id.
    pub credential: String,
    /// Its epoch.
    pub epoch: u64,
    /// What the credential's salt begins with: it has another with each binding.
    bound: u64,
}

impl HandedOut {
    /// That of `epoch`, of the credential as it is bound.
    pub(super) fn new(credential: &Credential, epoch: u64) -> Self {
        Self { credential: credential.id.to_string(), epoch, bound: binding_number(&credential.kind) }
    }
}

fn binding_number(kind: &Kind) -> u64 {
    match kind {
        Kind::Rolling(rolling) => rolling.salt.first_chunk().map_or(0, |first| u64::from_be_bytes(*first)),
        _ => 0,
    }
}

/// T(n), for the one answer that shows it.
pub struct TemporaryCode {
    /// n.
    pub epoch: u64,
    /// 16 bytes.
    pub code: SecretBytes,
}

impl From<OpenedEpoch> for TemporaryCode {
    fn from(opened: OpenedEpoch) -> Self {
        Self { epoch: opened.epoch, code: opened.temporary_code }
    }
}

/// An answer, with the temporary code that it hands out: that is not kept with the answer.
pub struct RollingAnswer {
    /// What is remembered, and answered again.
    pub answer: Answer,
    /// `None`: it hands none out, or may no longer.
    pub code: Option<TemporaryCode>,
}

/// A rolling credential, with its binding if it has one.
struct RollingRows {
    rows: CredentialRows,
    rolling: Rolling,
    binding: Option<Sealed<Binding>>,
}

impl Service {
    /// The temporary code that an answer handed out, if it still may; `None`: it is acknowledged, used or another
    /// binding's.
    pub(super) async fn handed_out(
        &self,
        tenant: &Tenant,
        handed_out: &HandedOut,
    ) -> Result<Option<TemporaryCode>, Refused> {
        let Some(id) = CredentialId::parse(&handed_out.credential) else { return Ok(None) };
        let Some(first) = self.store.credential(tenant, id).await? else { return Ok(None) };
        // What is read one after the other belongs together: whatever changes it holds this lock.
        let _guard = self.locks.lock(tenant, &first.credential.row.account).await?;
        let Some(rows) = self.store.credential(tenant, id).await? else { return Ok(None) };
        let is_bound = binding_number(&rows.credential.row.kind) == handed_out.bound;
        if !is_bound || rows.state.row.status != Status::Active {
            return Ok(None);
        }
        let open =
            |binding: &Sealed<Binding>| binding.row.epoch == handed_out.epoch && binding.row.is_handed_out();
        let Some(binding) = self.store.binding(id).await?.filter(open) else { return Ok(None) };
        let standing = rows.to_bytes().into_iter().chain([binding.to_bytes()]).collect();
        Ok(Some(self.hsm.open_epoch(id, standing).await?.into()))
    }

    /// An answer that is remembered, with the temporary code that it handed out, while that may be told.
    async fn tell_rolling(&self, tenant: &Tenant, answer: Answer) -> Result<RollingAnswer, Refused> {
        let code = match &answer {
            Answer::Activated { handed_out, .. } | Answer::Rotated { handed_out, .. } => {
                self.handed_out(tenant, handed_out).await?
            }
            _ => None,
        };
        Ok(RollingAnswer { answer, code })
    }

    /// What its binding does not allow. Nothing is written, so nothing else would look at the seals.
    async fn of_no_use<T>(&self, all: &RollingRows) -> Result<T, Refused> {
        let mut standing = Vec::from(all.rows.to_bytes());
        standing.extend(all.binding.as_ref().map(Sealed::to_bytes));
        self.hsm.check(standing).await?;
        Err(Refused::Conflict)
    }

    /// A credential that is asked for something that only rolling ones have.
    ///
    /// # Errors
    /// [`Refused::Absent`], also for a tombstone; [`Refused::Conflict`] for another type.
    async fn load_rolling(&self, tenant: &Tenant, id: CredentialId) -> Result<RollingRows, Refused> {
        let rows = self.store.credential(tenant, id).await?.ok_or(Refused::Absent)?;
        if rows.state.row.status == Status::Deleted {
            return Err(Refused::Absent);
        }
        let Kind::Rolling(rolling) = rows.credential.row.kind.clone() else { return Err(Refused::Conflict) };
        let binding = self.store.binding(id).await?;
        Ok(RollingRows { rows, rolling, binding })
    }
}

/// Its state says that it is bound, and there is no binding.
fn unbound() -> Refused {
    Refused::Unavailable {
        cause: "an active rolling credential has no binding".to_owned(),
        retry_after_s: 60,
    }
}
