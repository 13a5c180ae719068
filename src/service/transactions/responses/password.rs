//! Rolling passwords: whose it is, and whether it is right.

use crate::domain::audit::Event;
use crate::domain::id::CredentialId;
use crate::domain::row::Row;
use crate::domain::verification::usable;
use crate::hsm::messages::SealRows;

use super::super::super::rolling::TemporaryCode;
use super::super::super::verification::Ending;
use super::super::super::verification::rolling::Claim;
use super::super::Answer;
use super::{Attempt, Judged, Presented, Refused, Response, Service, misfit};

/// What became of a password.
pub(super) struct JudgedPassword {
    pub judged: Judged,
    /// Whose it is; `None`: nobody's.
    pub credential: Option<CredentialId>,
    /// The next temporary code, if it is right.
    pub next: Option<TemporaryCode>,
}

impl Service {
    pub(super) async fn judge_password(&self, response: Response<'_>) -> Result<JudgedPassword, Refused> {
        let Response { memory, transaction: sealed, presented, now, .. } = response;
        let Presented::Password(password) = presented else {
            return Err(misfit(
                "password",
                "must be there: the transaction asks for a password, and for nothing else",
            ));
        };
        let Some(bound) = self.store.bound(&sealed.row.tenant, password.lookup).await? else {
            return self.judge_unknown(response).await;
        };
        let attempt = Attempt { memory, rows: &bound.credential, transaction: Some(sealed), now };
        usable(attempt.subject()).map_err(|_| Refused::Conflict)?;
        let (judged, next) = self.judge_rolling(attempt, &bound.binding, Claim::Payment(password)).await?;
        Ok(JudgedPassword { judged, credential: Some(bound.credential.credential.row.id), next })
    }

    /// A password that leads to nobody: a guess, or one of an epoch that is used up. Nobody is charged, and the
    /// transaction keeps its attempts; a client has so many of them a minute.
    async fn judge_unknown(&self, response: Response<'_>) -> Result<JudgedPassword, Refused> {
        let Response { ask, memory, transaction: sealed, now, .. } = response;
        self.unknown_passwords.take(&ask.caller.client, now)?;
        let answer = Answer::VerificationFailed { attempts_remaining: sealed.row.attempts_left.into() };
        let rows = memory.record(&answer, now)?.map(Row::Idempotency).into_iter().collect();
        let ending =
            Ending { event: Event::PasswordUnknown, replaces: Vec::new(), rows, removed: Vec::new(), answer };
        let standing = vec![sealed.to_bytes()];
        let seals = self.hsm.seal(SealRows { standing, outcome: ending.outcome() }).await?;
        // It stands on no row: nothing is decided by it that another response could change.
        let judged = Judged { ending, sealed: seals, before: Vec::new() };
        Ok(JudgedPassword { judged, credential: None, next: None })
    }
}
