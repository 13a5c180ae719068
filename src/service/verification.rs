//! Verification and resync: what somebody presents, against a credential. One verdict, one commit.

use crate::domain::attestation::Attestation;
use crate::domain::audit::{AuditEntry, Event};
use crate::domain::id::{CredentialId, TransactionId};
use crate::domain::otp::Otp;
use crate::domain::row::{Row, RowKey, Sealed, SealedBytes};
use crate::domain::time::Now;
use crate::domain::transaction::{AuthenticatorReport, State, Step, Transaction};
use crate::domain::verification::Subject;
use crate::hsm::messages::{Outcome, SealedRows};
use crate::store::{Commit, CredentialRows, Standing};

use super::memory::{Memory, Recall};
use super::{Answer, Ask, RACES_MAX, Refused, Service, actor, race_lost, seal};

pub(super) mod codes;
pub(super) mod proofs;
pub(super) mod rolling;
pub(super) mod signatures;

pub use codes::Question;
pub use proofs::DeviceProof;
pub use signatures::PresentedSignature;

/// What is presented, and what for.
enum Check {
    Code { otp: Otp, question: Option<Question> },
    Resync { otps: [Otp; 2], question: Option<Question> },
    Signature(PresentedSignature),
}

/// One attempt at a check: who asks, what for, and the rows and the moment that the verdict stands on.
#[derive(Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub memory: &'a Memory<'a>,
    pub rows: &'a CredentialRows,
    /// The transaction that is responded to, if it is about one.
    pub transaction: Option<&'a Sealed<Transaction>>,
    pub now: &'a Now,
}

/// One way a check can end: the rows it writes, and what it says.
pub(super) struct Ending {
    pub event: Event,
    /// The standing rows it replaces, by their place in the message.
    pub replaces: Vec<u8>,
    pub rows: Vec<Row>,
    /// The standing rows it removes: they are among those that it replaces.
    pub removed: Vec<RowKey>,
    pub answer: Answer,
}

/// An ending that came about, with the seals of its rows, and all the rows it stands on.
pub(super) struct Judged {
    pub ending: Ending,
    pub sealed: SealedRows,
    /// The rows that it stands on, as they were read.
    pub before: Vec<Standing>,
}

/// What a response can make of its transaction, but for what makes it right or wrong.
pub(super) struct Possibilities {
    pub approved: Transaction,
    pub missed: Transaction,
    pub missed_event: Event,
    /// To an approval.
    pub answer: Answer,
}

impl Ending {
    /// With the attestation that the custodian made, if it is about a transaction.
    fn attested(mut self, attempt: Attempt<'_>, jws: Option<String>) -> Result<Self, Refused> {
        match (attempt.transaction, jws) {
            (None, None) => Ok(self),
            (Some(Sealed { row, .. }), Some(jws)) => {
                self.rows.push(Attestation::new(row.id, row.tenant.clone(), jws).into());
                Ok(self)
            }
            _ => Err(Refused::unavailable("the custodian attested what nobody asked, or not what was asked")),
        }
    }

    /// As the custodian is told of it.
    pub fn outcome(&self) -> Outcome {
        Outcome { replaces: self.replaces.clone(), rows: self.rows.iter().map(Row::encode).collect() }
    }
}

impl Service {
    /// Whether `otp` is the credential's next code. It is used up by a yes, charged by a no. An `id` of `None` is
    /// one that nobody has.
    ///
    /// # Errors
    /// [`Refused`]; then nothing is charged, and whether the code is right stays unknown.
    pub async fn verify(
        &self,
        ask: Ask,
        id: Option<CredentialId>,
        otp: Otp,
        question: Option<Question>,
    ) -> Result<Answer, Refused> {
        self.check(ask, id, Check::Code { otp, question }).await
    }

    /// Finds a token by two consecutive codes over a wide window; both are used up. Those of an OCRA token
    /// answer the same question.
    ///
    /// # Errors
    /// As for [`Service::verify`].
    pub async fn resync(
        &self,
        ask: Ask,
        id: Option<CredentialId>,
        otps: [Otp; 2],
        question: Option<Question>,
    ) -> Result<Answer, Refused> {
        self.check(ask, id, Check::Resync { otps, question }).await
    }

    /// Whether the credential's device signed this. Nothing is used up, and nothing charged: signatures
    /// cannot be guessed, so no lock stops them.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn verify_signature(
        &self,
        ask: Ask,
        id: Option<CredentialId>,
        presented: PresentedSignature,
    ) -> Result<Answer, Refused> {
        self.check(ask, id, Check::Signature(presented)).await
    }

    async fn check(&self, mut ask: Ask, id: Option<CredentialId>, check: Check) -> Result<Answer, Refused> {
        let memory = match self.recall(&mut ask).await? {
            Recall::Answered(answer) => return Ok(answer),
            Recall::New(memory) => memory,
        };
        let id = id.ok_or(Refused::Absent)?;
        let tenant = ask.caller.tenant.clone();
        let load = || async { self.store.credential(&tenant, id).await?.ok_or(Refused::Absent) };
        let mut rows = load().await?;
        // A signature charges nothing, so nobody has to wait for it.
        let guard = match &check {
            Check::Signature(_) => None,
            _ => Some(self.locks.lock(&tenant, &rows.credential.row.account).await?),
        };
        if guard.as_ref().is_some_and(|guard| guard.waited) {
            rows = load().await?;
        }
        for _ in 0..RACES_MAX {
            let now = self.now();
            let attempt = Attempt { memory: &memory, rows: &rows, transaction: None, now: &now };
            let judged = match &check {
                Check::Code { otp, question } => self.judge_code(attempt, otp, question.as_ref()).await?,
                Check::Resync { otps, question } => {
                    self.judge_resync(attempt, otps, question.as_ref()).await?
                }
                Check::Signature(presented) => self.judge_signature(attempt, presented).await?,
            };
            if let Some(answer) = self.commit_verdict(&ask, &now, Some(id), None, judged).await? {
                return Ok(answer);
            }
            // The custodian's answer is forgotten here: only what was charged may be told.
            rows = load().await?;
        }
        Err(race_lost())
    }

    /// `None` if the rows changed under it.
    pub(super) async fn commit_verdict(
        &self,
        ask: &Ask,
        now: &Now,
        credential: Option<CredentialId>,
        transaction: Option<TransactionId>,
        judged: Judged,
    ) -> Result<Option<Answer>, Refused> {
        let Judged { ending, sealed, before } = judged;
        let commit = Commit {
            before,
            removed: ending.removed,
            rows: seal(ending.rows, &sealed)?,
            sum_change: sealed.sum_change,
            audit: AuditEntry {
                unix_ms: now.unix_ms,
                event: ending.event,
                actor: Some(actor(ask)),
                credential,
                transaction,
                detail: None,
            },
        };
        Ok(self.commit(commit).await?.map(|durable| ending.answer.release(durable)))
    }
}

/// Where the rows stand in the message to the custodian, behind the credential.
pub(super) const STATE: u8 = 1;
pub(super) const ACCOUNT: u8 = 2;
pub(super) const TRANSACTION: u8 = 3;

impl<'a> Attempt<'a> {
    pub fn subject(self) -> Subject<'a> {
        self.rows.subject()
    }

    /// What a response makes of the attempt's transaction.
    pub fn possibilities(self, report: Option<AuthenticatorReport>) -> Result<Possibilities, Refused> {
        let Some(Sealed { row: transaction, .. }) = self.transaction else {
            return Err(Refused::unavailable("a response to no transaction"));
        };
        let missed = transaction.after(Step::Miss, self.now)?;
        Ok(Possibilities {
            approved: transaction.after(Step::Approve(report), self.now)?,
            missed_event: match missed.state {
                State::Failed => Event::TransactionFailed,
                _ => Event::TransactionRefused,
            },
            missed,
            answer: Answer::Approved { transaction: transaction.id.to_string() },
        })
    }

    /// The rows that every verdict stands on.
    pub fn before(self) -> Vec<Standing> {
        let mut before = self.before_but_account();
        before.push((&self.rows.account).into());
        before
    }

    /// The same of a verdict that charges nothing. Codes change the account's row, and a commit that stood on it would
    /// lose races that are none.
    pub fn before_but_account(self) -> Vec<Standing> {
        let CredentialRows { credential, state, .. } = self.rows;
        let transaction = self.transaction.map(Standing::from);
        [credential.into(), state.into()].into_iter().chain(transaction).collect()
    }

    /// With their seals, in the order of the message.
    pub fn standing_bytes(self) -> Vec<SealedBytes> {
        let mut bytes = Vec::from(self.rows.to_bytes());
        bytes.extend(self.transaction.map(Sealed::to_bytes));
        bytes
    }

    /// An ending, with the record of its answer where one is wanted.
    pub fn ending(
        self,
        event: Event,
        replaces: Vec<u8>,
        mut rows: Vec<Row>,
        answer: Answer,
    ) -> Result<Ending, Refused> {
        rows.extend(self.memory.record(&answer, self.now)?.map(Row::Idempotency));
        Ok(Ending { event, replaces, rows, removed: Vec::new(), answer })
    }
}
