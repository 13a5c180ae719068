//! What the user of a presented code decides (seed C, step 4): the device signs a yes, or a no.

use crate::domain::audit::Event;
use crate::domain::presentation::decline_input;
use crate::domain::row::Row;
use crate::domain::transaction::Step;
use crate::domain::verification::usable;

use super::super::super::Answer;
use super::super::super::verification::proofs::proof;
use super::super::super::verification::signatures::Endings;
use super::super::super::verification::{Attempt, Possibilities, TRANSACTION};
use super::{Judged, Presented, Refused, Response, Service, misfit};

/// What the user decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes.
    Approve,
    /// No.
    Decline,
}

impl Service {
    pub(super) async fn judge_decision(&self, response: Response<'_>) -> Result<Judged, Refused> {
        let Response { memory, transaction: sealed, presented, now, .. } = response;
        let transaction = &sealed.row;
        let Presented::Decision(decision, presented) = presented else {
            return Err(misfit("decision", "must be there: the transaction asks for a decision, signed"));
        };
        let id = transaction.credential().ok_or(Refused::Conflict)?;
        // Pruned: its device cannot respond any more.
        let rows = self.store.credential(&transaction.tenant, id).await?.ok_or(Refused::Conflict)?;
        let attempt = Attempt { memory, rows: &rows, transaction: Some(sealed), now };
        usable(attempt.subject()).map_err(|_| Refused::Conflict)?;
        match decision {
            Decision::Approve => {
                self.check_proof(attempt, proof(attempt, &transaction.signing_input(), presented)?).await
            }
            Decision::Decline => {
                let proof = proof(attempt, &decline_input(&transaction.digest()), presented)?;
                self.check_signed(attempt, proof, declined(attempt)?, None).await
            }
        }
    }
}

/// Both ways in which a decline can end; a wrong one costs what a wrong approval does. Neither is attested.
fn declined(attempt: Attempt<'_>) -> Result<Endings, Refused> {
    let Possibilities { missed, missed_event, .. } = attempt.possibilities(None)?;
    let Some(sealed) = attempt.transaction else {
        return Err(Refused::unavailable("a decline of no transaction"));
    };
    let rejected = sealed.row.after(Step::Decline, attempt.now)?;
    let answer = Answer::Rejected { transaction: rejected.id.to_string() };
    let failed = Answer::VerificationFailed { attempts_remaining: missed.attempts_left.into() };
    let ending =
        |event, row, answer| attempt.ending(event, vec![TRANSACTION], vec![Row::Transaction(row)], answer);
    Ok(Endings {
        accepted: ending(Event::TransactionRejected, rejected, answer)?,
        refused: ending(missed_event, missed, failed)?,
    })
}
