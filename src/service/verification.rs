//! Verification and resync: what somebody presents, against a credential. One verdict, one commit.

use crate::domain::audit::Event;
use crate::domain::id::CredentialId;
use crate::domain::otp::Otp;
use crate::domain::row::{Row, SealedBytes};
use crate::domain::time::Now;
use crate::domain::verification::Subject;
use crate::hsm::messages::{Outcome, SealedRows};
use crate::store::{Commit, CredentialRows};

use super::memory::{Memory, Recall};
use super::{Answer, Ask, RACES_MAX, Refused, Service, audit, race_lost, seal};

mod codes;
mod signatures;

pub use codes::Question;
pub use signatures::PresentedSignature;

/// What is presented, and what for.
enum Check {
    Code { otp: Otp, question: Option<Question> },
    Resync { otps: [Otp; 2], question: Option<Question> },
    Signature(PresentedSignature),
}

/// One attempt at a check: who asks, what for, and the rows and the moment that the verdict stands on.
#[derive(Clone, Copy)]
struct Attempt<'a> {
    memory: &'a Memory<'a>,
    rows: &'a CredentialRows,
    now: &'a Now,
}

/// One way a check can end: the rows it writes, and what it says.
struct Ending {
    event: Event,
    /// The standing rows it replaces, by their place in the message.
    replaces: Vec<u8>,
    rows: Vec<Row>,
    answer: Answer,
}

/// An ending that came about, with the seals of its rows, and all the rows it stands on.
struct Judged {
    ending: Ending,
    sealed: SealedRows,
    standing: Vec<Row>,
}

impl Ending {
    /// As the custodian is told of it.
    fn outcome(&self) -> Outcome {
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
            let attempt = Attempt { memory: &memory, rows: &rows, now: &now };
            let judged = match &check {
                Check::Code { otp, question } => self.judge_code(attempt, otp, question.as_ref()).await?,
                Check::Resync { otps, question } => {
                    self.judge_resync(attempt, otps, question.as_ref()).await?
                }
                Check::Signature(presented) => self.judge_signature(attempt, presented).await?,
            };
            if let Some(answer) = self.commit_verdict(&ask, id, &now, judged).await? {
                return Ok(answer);
            }
            // The custodian's answer is forgotten here: only what was charged may be told.
            rows = load().await?;
        }
        Err(race_lost())
    }

    /// `None` if the rows changed under it.
    async fn commit_verdict(
        &self,
        ask: &Ask,
        id: CredentialId,
        now: &Now,
        judged: Judged,
    ) -> Result<Option<Answer>, Refused> {
        let Judged { ending, sealed, standing } = judged;
        let standing = (0u8..).zip(standing).filter(|(place, _)| !ending.replaces.contains(place));
        let commit = Commit {
            standing: standing.map(|(_, row)| (row.key(), row.version())).collect(),
            rows: seal(ending.rows, &sealed)?,
            removed: Vec::new(),
            sum_change: sealed.sum_change,
            audit: audit(ask, now, ending.event, id),
        };
        Ok(self.commit(commit).await?.map(|durable| ending.answer.release(durable)))
    }
}

/// Where the rows stand in the message to the custodian, behind the credential.
const STATE: u8 = 1;
const ACCOUNT: u8 = 2;

impl<'a> Attempt<'a> {
    fn subject(self) -> Subject<'a> {
        let CredentialRows { credential, state, account } = self.rows;
        Subject { credential: &credential.row, state: &state.row, account: &account.row }
    }

    /// The rows that every verdict stands on, in the order of the message.
    fn standing(self) -> Vec<Row> {
        let subject = self.subject();
        vec![
            Row::Credential(subject.credential.clone()),
            Row::State(subject.state.clone()),
            Row::Account(subject.account.clone()),
        ]
    }

    /// The same with their seals.
    fn standing_bytes(self) -> Vec<SealedBytes> {
        let CredentialRows { credential, state, account } = self.rows;
        vec![credential.to_bytes(), state.to_bytes(), account.to_bytes()]
    }

    /// An ending, with the record of its answer where one is wanted.
    fn ending(
        self,
        event: Event,
        replaces: Vec<u8>,
        mut rows: Vec<Row>,
        answer: Answer,
    ) -> Result<Ending, Refused> {
        rows.extend(self.memory.record(&answer, self.now)?.map(Row::Idempotency));
        Ok(Ending { event, replaces, rows, answer })
    }
}
