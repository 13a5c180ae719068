//! Responses: what somebody presents for a transaction, judged as any other, and the attestation of an approval.

use crate::domain::account::AccountRef;
use crate::domain::caller::Tenant;
use crate::domain::id::TransactionId;
use crate::domain::ocra::Challenge;
use crate::domain::otp::Otp;
use crate::domain::rolling::RollingPassword;
use crate::domain::row::Sealed;
use crate::domain::time::Now;
use crate::domain::transaction::{Method, Transaction};
use crate::domain::verification::usable;

use super::super::memory::{Memory, Recall};
use super::super::verification::proofs::{DeviceProof, proof};
use super::super::verification::{Attempt, Judged};
use super::{Answer, Ask, RACES_MAX, Refused, Service, ShownTransaction, TransactionAnswer, race_lost};

mod decision;
mod entry;
mod password;

pub use decision::Decision;

/// What is presented for a transaction.
pub enum Presented {
    /// The code of an OCRA token.
    Code(Otp),
    /// What a device signed.
    Proof(DeviceProof),
    /// The codes of all terminals, in the order of entry.
    Codes(Vec<Otp>),
    /// The next code of a terminal.
    Entry(Otp),
    /// What the codes of all terminals come to.
    Target(Otp),
    /// A rolling password.
    Password(RollingPassword),
    /// What the user of a presented code decides.
    Decision(Decision, DeviceProof),
}

/// A response, and all that its verdict stands on.
#[derive(Clone, Copy)]
struct Response<'a> {
    ask: &'a Ask,
    memory: &'a Memory<'a>,
    transaction: &'a Sealed<Transaction>,
    /// The transaction that it follows, while that is kept.
    parent: Option<&'a Sealed<Transaction>>,
    presented: &'a Presented,
    now: &'a Now,
}

impl Service {
    /// Whether what is presented approves the transaction. A yes is final, and comes with the attestation.
    ///
    /// # Errors
    /// [`Refused`]; then nothing is charged.
    pub async fn respond(
        &self,
        mut ask: Ask,
        id: Option<TransactionId>,
        presented: Presented,
    ) -> Result<TransactionAnswer, Refused> {
        let memory = match self.recall(&mut ask).await? {
            Recall::Answered(answer) => return self.tell(&ask.caller, answer).await,
            Recall::New(memory) => memory,
        };
        let id = id.ok_or(Refused::Absent)?;
        let tenant = ask.caller.tenant.clone();
        let first = self.load_transaction(&tenant, id).await?;
        // Signatures too: each attempt at a transaction changes it.
        let _guard = match self.account_of(&tenant, &first.transaction.row, &presented).await? {
            Some(account) => Some(self.locks.lock(&tenant, &account).await?),
            None => None,
        };
        for _ in 0..RACES_MAX {
            let rows = self.load_transaction(&tenant, id).await?;
            let now = self.now();
            if let Err(error) = rows.transaction.row.open(&now) {
                match self.not_open(&ask, &memory, &rows, error, &now).await? {
                    Some(told) => return Ok(told),
                    None => continue,
                }
            }
            // All that is told is read before the commit: nothing can fail behind it.
            let parent = self.parent_of(&rows.transaction.row).await?;
            if let Some(parent) = &parent {
                self.hsm.check(vec![parent.to_bytes()]).await?;
            }
            let response = Response {
                ask: &ask,
                memory: &memory,
                transaction: &rows.transaction,
                parent: parent.as_ref(),
                presented: &presented,
                now: &now,
            };
            let mut credential = rows.transaction.row.credential();
            let mut next = None;
            let judged = match &rows.transaction.row.method {
                Method::ChallengeResponse { .. } | Method::DeviceSignature { .. } => {
                    self.judge_presented(response).await?
                }
                Method::MultiTerminal(method) => self.judge_entry(response, method).await?,
                Method::RollingPassword => {
                    let password = self.judge_password(response).await?;
                    (credential, next) = (password.credential, password.next);
                    password.judged
                }
                Method::PresentedCode { .. } => self.judge_decision(response).await?,
            };
            let mut shown = ShownTransaction::of(&judged.ending.rows, parent.as_ref());
            if let (Answer::Entered(_), Some(shown)) = (&judged.ending.answer, &mut shown) {
                let Sealed { row, .. } = &rows.transaction;
                shown.codes = self.codes_to_send(&ask.caller, row, rows.transaction.to_bytes()).await?;
            }
            if let Some(answer) = self.commit_verdict(&ask, &now, credential, Some(id), judged).await? {
                return Ok(TransactionAnswer { answer, transaction: shown, next });
            }
        }
        Err(race_lost())
    }

    /// Whose the response is: a rolling password's account is the one that it leads to, if it leads to any.
    async fn account_of(
        &self,
        tenant: &Tenant,
        transaction: &Transaction,
        presented: &Presented,
    ) -> Result<Option<AccountRef>, Refused> {
        match presented {
            Presented::Password(password) if transaction.method == Method::RollingPassword => {
                let bound = self.store.bound(tenant, password.lookup).await?;
                Ok(bound.map(|bound| bound.credential.account.row.account))
            }
            _ => Ok(transaction.account().cloned()),
        }
    }

    /// What one credential presents.
    async fn judge_presented(&self, response: Response<'_>) -> Result<Judged, Refused> {
        let Response { memory, transaction: sealed, presented, now, .. } = response;
        let transaction = &sealed.row;
        let id = transaction.credential().ok_or(Refused::Conflict)?;
        // Pruned: its device cannot respond any more.
        let rows = self.store.credential(&transaction.tenant, id).await?.ok_or(Refused::Conflict)?;
        let attempt = Attempt { memory, rows: &rows, transaction: Some(sealed), now };
        // Deleted: the transaction is there, and nothing can approve it.
        usable(attempt.subject()).map_err(|_| Refused::Conflict)?;
        match (transaction.method.suite(), presented) {
            (Some(suite), Presented::Code(otp)) => {
                let digest = transaction.digest();
                let challenge = Challenge::of_transaction(suite, &digest).map_err(Refused::unavailable)?;
                self.judge_response(attempt, challenge, otp).await
            }
            (Some(_), _) => {
                Err(misfit("otp", "must be there: the transaction asks for a code, and for nothing else"))
            }
            (None, Presented::Proof(presented)) => {
                self.check_proof(attempt, proof(attempt, &transaction.signing_input(), presented)?).await
            }
            (None, Presented::Code(_)) => {
                Err(misfit("otp", "must not be there: the transaction asks for a signature"))
            }
            (None, Presented::Decision(..)) => {
                Err(misfit("decision", "must not be there: the transaction asks for a signature alone"))
            }
            (None, _) => Err(misfit("signature", "must be there: the transaction asks for a signature")),
        }
    }
}

fn misfit(field: &'static str, reason: &'static str) -> Refused {
    Refused::Invalid { field, reason }
}
