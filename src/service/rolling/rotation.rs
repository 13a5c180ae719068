//! The second phase of a rotation: a terminal asks for the next temporary code again, or says that it has it.

use crate::domain::id::CredentialId;
use crate::domain::verification::usable;
use crate::secret::SecretBytes;

use super::super::memory::Recall;
use super::super::verification::Attempt;
use super::super::verification::rolling::Claim;
use super::super::{Ask, RACES_MAX, race_lost};
use super::{Refused, RollingAnswer, Service, unbound};

/// That a terminal has the temporary code of an epoch.
pub struct RotationProof {
    /// Which.
    pub epoch: u64,
    /// 32 bytes.
    pub proof: SecretBytes,
}

impl Service {
    /// With the consumed epoch the next one's temporary code is told again; the open one is acknowledged. A wrong proof
    /// is charged.
    ///
    /// # Errors
    /// [`Refused`]; then nothing is charged. [`Refused::Conflict`] also for any other epoch, and for the consumed one
    /// after the acknowledgement of the next.
    pub async fn rotate(
        &self,
        mut ask: Ask,
        id: Option<CredentialId>,
        shown: RotationProof,
    ) -> Result<RollingAnswer, Refused> {
        let memory = match self.recall(&mut ask).await? {
            Recall::Answered(answer) => return self.tell_rolling(&ask.caller.tenant, answer).await,
            Recall::New(memory) => memory,
        };
        let id = id.ok_or(Refused::Absent)?;
        let tenant = ask.caller.tenant.clone();
        let first = self.load_rolling(&tenant, id).await?;
        let _guard = self.locks.lock(&tenant, &first.rows.credential.row.account).await?;
        for _ in 0..RACES_MAX {
            let all = self.load_rolling(&tenant, id).await?;
            let now = self.now();
            let attempt = Attempt { memory: &memory, rows: &all.rows, transaction: None, now: &now };
            usable(attempt.subject())?;
            let binding = all.binding.as_ref().ok_or_else(unbound)?;
            let Some(rotation) = binding.row.rotation(shown.epoch) else { return self.of_no_use(&all).await };
            let claim = Claim::Rotation(shown.epoch, rotation, &shown.proof);
            let (judged, code) = self.judge_rolling(attempt, binding, claim).await?;
            if let Some(answer) = self.commit_verdict(&ask, &now, Some(id), None, judged).await? {
                return Ok(RollingAnswer { answer, code });
            }
        }
        Err(race_lost())
    }
}
