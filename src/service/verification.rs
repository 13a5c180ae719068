//! Verification and resync: a code, or two, against a credential. One verdict, one commit.

use crate::domain::audit::Event;
use crate::domain::id::CredentialId;
use crate::domain::otp::Otp;
use crate::domain::row::Row;
use crate::domain::time::Now;
use crate::domain::verification::{self, Plan, Subject, Verdict};
use crate::domain::{credential::CredentialState, resync};
use crate::hsm::messages::{Candidate, CheckOtp, Outcome, SealedRows};
use crate::store::{Commit, CredentialRows};

use super::memory::{Memory, Recall};
use super::{Answer, Ask, RACES_MAX, Refused, Service, audit, race_lost, seal};

/// How many candidates go into one message: their rows have to fit its 64 KiB.
const CANDIDATES_PER_MESSAGE: usize = 200;
/// Where the rows stand in the message to the custodian.
const STATE: u8 = 1;
const ACCOUNT: u8 = 2;

/// Which of the two it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Verify,
    Resync,
}

/// One way a check can end: the rows it writes, and what it says.
struct Ending {
    event: Event,
    /// The standing rows it replaces, by their place in the message.
    replaces: Vec<u8>,
    rows: Vec<Row>,
    answer: Answer,
}

impl Ending {
    /// With the state of the candidate that was accepted ahead of its other rows.
    fn behind(mut self, state: &CredentialState) -> Self {
        self.rows.insert(0, Row::State(state.clone()));
        self
    }
}

impl Service {
    /// Whether `otp` is the credential's next code. It is used up by a yes, charged by a no. An `id` of `None` is
    /// one that nobody has.
    ///
    /// # Errors
    /// [`Refused`]; then nothing is charged, and whether the code is right stays unknown.
    pub async fn verify(&self, ask: Ask, id: Option<CredentialId>, otp: Otp) -> Result<Answer, Refused> {
        self.check(ask, id, Kind::Verify, vec![otp]).await
    }

    /// Finds a token by two consecutive codes over a wide window; both are used up.
    ///
    /// # Errors
    /// As for [`Service::verify`].
    pub async fn resync(
        &self,
        ask: Ask,
        id: Option<CredentialId>,
        otps: [Otp; 2],
    ) -> Result<Answer, Refused> {
        self.check(ask, id, Kind::Resync, otps.into()).await
    }

    async fn check(
        &self,
        mut ask: Ask,
        id: Option<CredentialId>,
        kind: Kind,
        otps: Vec<Otp>,
    ) -> Result<Answer, Refused> {
        let memory = match self.recall(&mut ask).await? {
            Recall::Answered(answer) => return Ok(answer),
            Recall::New(memory) => memory,
        };
        let id = id.ok_or(Refused::Absent)?;
        let tenant = ask.caller.tenant.clone();
        let load = || async { self.store.credential(&tenant, id).await?.ok_or(Refused::Absent) };
        let mut rows = load().await?;
        let guard = self.locks.lock(&tenant, &rows.credential.row.account).await?;
        if guard.waited {
            rows = load().await?;
        }
        for _ in 0..RACES_MAX {
            let now = self.now();
            if let Some(answer) = self.attempt(&ask, &memory, kind, &otps, &rows, &now).await? {
                return Ok(answer);
            }
            // The custodian's answer is forgotten here: only what was charged may be told.
            rows = load().await?;
        }
        Err(race_lost())
    }

    /// One attempt: `None` if the rows changed under it.
    async fn attempt(
        &self,
        ask: &Ask,
        memory: &Memory<'_>,
        kind: Kind,
        otps: &[Otp],
        rows: &CredentialRows,
        now: &Now,
    ) -> Result<Option<Answer>, Refused> {
        let subject =
            Subject { credential: &rows.credential.row, state: &rows.state.row, account: &rows.account.row };
        let plan = match kind {
            Kind::Verify => verification::begin(subject, now)?,
            Kind::Resync => resync::begin(subject, now)?,
        };
        if !otps.iter().all(|otp| otp.has(subject.credential.digits)) {
            let field = if kind == Kind::Verify { "otp" } else { "otps" };
            return Err(Refused::Invalid {
                field,
                reason: "a code has as many digits as the credential says",
            });
        }
        let endings = Endings { kind, rows, plan: &plan, memory, now };
        let (ending, sealed) = self.ask_custodian(otps, rows, &plan, &endings).await?;
        let standing = [
            rows.credential.row.clone().into(),
            rows.state.row.clone().into(),
            rows.account.row.clone().into(),
        ];
        let standing = (0u8..).zip(standing).filter(|(place, _)| !ending.replaces.contains(place));
        let commit = Commit {
            standing: standing.map(|(_, row): (u8, Row)| (row.key(), row.version())).collect(),
            rows: seal(ending.rows, &sealed)?,
            removed: Vec::new(),
            sum_change: sealed.sum_change,
            audit: audit(ask, now, ending.event, subject.credential.id),
        };
        Ok(self.commit(commit).await?.map(|durable| ending.answer.release(durable)))
    }

    /// Which ending it is, with the seals of its rows.
    async fn ask_custodian(
        &self,
        otps: &[Otp],
        rows: &CredentialRows,
        plan: &Plan,
        endings: &Endings<'_>,
    ) -> Result<(Ending, SealedRows), Refused> {
        // Even without a candidate (a counter at its end) there is a miss to charge.
        let mut rest = plan.candidates.as_slice();
        loop {
            let (chunk, after) = rest.split_at(rest.len().min(CANDIDATES_PER_MESSAGE));
            rest = after;
            let message = endings.message(otps, chunk)?;
            let (matched, sealed) = self.hsm.check_otp(rows.credential.row.id, message).await?;
            let ending = match matched {
                None if !rest.is_empty() => continue,
                None => endings.missed()?,
                Some(index) => match chunk.get(usize::from(index)).map(|candidate| &candidate.verdict) {
                    Some(Verdict::Accepted(state)) => endings.accepted()?.behind(state),
                    Some(Verdict::Repeated) => endings.repeated()?,
                    None => return Err(Refused::unavailable("the custodian matched what nobody asked")),
                },
            };
            return Ok((ending, sealed));
        }
    }
}

/// All the ways one check can end.
struct Endings<'a> {
    kind: Kind,
    rows: &'a CredentialRows,
    plan: &'a Plan,
    memory: &'a Memory<'a>,
    now: &'a Now,
}

impl Endings<'_> {
    fn message(&self, otps: &[Otp], candidates: &[verification::Candidate]) -> Result<CheckOtp, Refused> {
        let CredentialRows { credential, state, account } = self.rows;
        let outcome = |ending: Ending| Outcome {
            replaces: ending.replaces,
            rows: ending.rows.iter().map(Row::encode).collect(),
        };
        Ok(CheckOtp {
            standing: vec![credential.to_bytes(), state.to_bytes(), account.to_bytes()],
            codes: otps.iter().map(Otp::duplicate).collect(),
            candidates: candidates
                .iter()
                .map(|candidate| Candidate {
                    factor: candidate.factor,
                    row: match &candidate.verdict {
                        Verdict::Accepted(state) => Some(Row::State(state.clone()).encode()),
                        Verdict::Repeated => None,
                    },
                })
                .collect(),
            // Behind the candidate's own row.
            accepted: outcome(self.accepted()?),
            repeated: outcome(self.repeated()?),
            missed: outcome(self.missed()?),
        })
    }

    /// What an accepted candidate writes besides its own state.
    fn accepted(&self) -> Result<Ending, Refused> {
        let credential = &self.rows.credential.row;
        // The same for every candidate: its record is sealed before one of them matches.
        let (id, account) = (credential.id.to_string(), credential.account.to_string());
        let (event, answer) = match self.kind {
            Kind::Verify => (Event::Verified, Answer::Verified { id, account }),
            Kind::Resync => (Event::Resynced, Answer::Resynced { id, account }),
        };
        let (mut replaces, mut rows) = (vec![STATE], Vec::new());
        if let Some(account) = &self.plan.accepted_account {
            rows.push(Row::Account(account.clone()));
            replaces.push(ACCOUNT);
        }
        self.ending(event, replaces, rows, answer)
    }

    fn repeated(&self) -> Result<Ending, Refused> {
        let answer = Answer::VerificationFailed { attempts_remaining: self.plan.remaining };
        self.ending(Event::Repeated, Vec::new(), Vec::new(), answer)
    }

    fn missed(&self) -> Result<Ending, Refused> {
        let event = if self.kind == Kind::Verify { Event::Refused } else { Event::ResyncRefused };
        let answer = Answer::VerificationFailed { attempts_remaining: self.plan.remaining_if_missed };
        let rows =
            vec![Row::State(self.plan.missed_state.clone()), Row::Account(self.plan.missed_account.clone())];
        self.ending(event, vec![STATE, ACCOUNT], rows, answer)
    }

    fn ending(
        &self,
        event: Event,
        replaces: Vec<u8>,
        mut rows: Vec<Row>,
        answer: Answer,
    ) -> Result<Ending, Refused> {
        rows.extend(self.memory.record(&answer, self.now)?.map(Row::Idempotency));
        Ok(Ending { event, replaces, rows, answer })
    }
}
