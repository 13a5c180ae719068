//! Transactions that the device of a presented code has to approve.

use crate::domain::caller::Tenant;
use crate::domain::id::TransactionId;
use crate::domain::presentation::PresentationState;
use crate::domain::time::Now;
use crate::domain::transaction::{CODES_MAX, Method, Progress};
use crate::domain::verification::usable;
use crate::store::Standing;

use super::super::super::presentations::state_of;
use super::{Basis, Refused, Service};

impl Service {
    /// The claim is written with the transaction, over the presentation's row: of all that claim it, one commits.
    pub(super) async fn by_presentation(
        &self,
        tenant: &Tenant,
        code_hash: Option<[u8; 32]>,
        id: TransactionId,
        now: &Now,
    ) -> Result<Basis, Refused> {
        let code_hash = code_hash.ok_or(Refused::Absent)?;
        let sealed = self.store.presented(tenant, code_hash).await?.ok_or(Refused::Absent)?;
        let presentation = &sealed.row;
        let device = self.store.credential(tenant, presentation.credential).await?;
        let refused = match (state_of(presentation, now)?, &device) {
            (PresentationState::Claimed, _) => Some(Refused::Conflict),
            (PresentationState::Expired, _) => Some(Refused::Expired),
            // Pruned: nobody can decide on it any more.
            (PresentationState::Open, None) => Some(Refused::Conflict),
            (PresentationState::Open, Some(rows)) => {
                usable(rows.subject()).is_err().then_some(Refused::Conflict)
            }
        };
        let mut bytes = vec![sealed.to_bytes()];
        let mut before = vec![Standing::from(&sealed)];
        if let Some(rows) = &device {
            bytes.extend(rows.to_bytes());
            before.extend([Standing::from(&rows.credential), (&rows.state).into()]);
        }
        if let Some(refused) = refused {
            // Nothing is written, so nothing else would look at the seals.
            self.hsm.check(bytes).await?;
            return Err(refused);
        }
        Ok(Basis {
            method: Method::PresentedCode {
                presentation: presentation.id,
                credential: presentation.credential,
                account: presentation.account.clone(),
            },
            payer: None,
            attempts_left: CODES_MAX,
            progress: Progress::None,
            before,
            bytes,
            replaced: vec![(0, presentation.claimed(id).into())],
        })
    }
}
