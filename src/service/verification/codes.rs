//! Codes: which candidates there are, what each outcome writes, and which of them it is.

use crate::domain::audit::Event;
use crate::domain::credential::{Kind, OcraToken, OcraUse, UsedInput};
use crate::domain::ocra::{Challenge, ChallengeError};
use crate::domain::otp::Otp;
use crate::domain::row::{Row, Sealed};
use crate::domain::verification::{self, Plan, Verdict, ocra, usable};
use crate::domain::{credential::CredentialState, resync};
use crate::hsm::messages::{Candidate, CheckOtp};

use super::{ACCOUNT, Answer, Attempt, Ending, Judged, Refused, STATE, Service};

/// How many candidates go into one message: their rows have to fit its 64 KiB.
const CANDIDATES_PER_MESSAGE: usize = 200;

/// What an OCRA token is asked.
pub struct Question {
    /// The question's text (RFC 6287: Q).
    pub challenge: String,
    /// The session's text (S), where the suite has one.
    pub session: Option<String>,
}

/// Which of the two it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Verify,
    Resync,
}

/// A check that was found possible.
struct Possible {
    plan: Plan,
    challenge: Option<Challenge>,
    /// Inputs of this check that were accepted before.
    used: Vec<Sealed<UsedInput>>,
}

impl Service {
    pub(super) async fn judge_code(
        &self,
        attempt: Attempt<'_>,
        otp: &Otp,
        question: Option<&Question>,
    ) -> Result<Judged, Refused> {
        let subject = attempt.subject();
        usable(subject)?;
        let (digits, possible) = match (&subject.credential.kind, question) {
            (Kind::Otp(token), None) => {
                let plan = verification::begin(subject, token, attempt.now)?;
                (token.digits, Possible { plan, challenge: None, used: Vec::new() })
            }
            // Its codes answer questions that the appliance asks, and no others.
            (Kind::Ocra(OcraToken { usage: OcraUse::Transaction, .. }), _) => return Err(Refused::Conflict),
            (Kind::Ocra(token), Some(question)) => {
                let challenge = challenge(token, question)?;
                let inputs = ocra::inputs(token, &challenge, attempt.now);
                let used = match inputs.is_empty() {
                    true => Vec::new(),
                    false => self.store.used_inputs(subject.credential.id, inputs).await?,
                };
                let known: Vec<_> = used.iter().map(|input| input.row.fingerprint).collect();
                let plan = ocra::begin(subject, token, &challenge, &known, attempt.now)?;
                (token.suite.digits(), Possible { plan, challenge: Some(challenge), used })
            }
            (kind, question) => return Err(misfit(kind, question)),
        };
        if !otp.has(digits) {
            return Err(Refused::Invalid { field: "otp", reason: LENGTH_RULE });
        }
        self.ask_custodian(attempt, Purpose::Verify, &[otp], possible).await
    }

    pub(super) async fn judge_resync(
        &self,
        attempt: Attempt<'_>,
        otps: &[Otp; 2],
        question: Option<&Question>,
    ) -> Result<Judged, Refused> {
        let subject = attempt.subject();
        usable(subject)?;
        let (digits, challenge) = match (&subject.credential.kind, question) {
            (Kind::Otp(token), None) => (token.digits, None),
            (Kind::Ocra(token), _) if !token.suite.has_counter() => return Err(Refused::Conflict),
            // Nothing of it can run away.
            (Kind::Signer(_), _) => return Err(Refused::Conflict),
            (Kind::Ocra(token), Some(question)) => (token.suite.digits(), Some(challenge(token, question)?)),
            (kind, question) => return Err(misfit(kind, question)),
        };
        let plan = resync::begin(subject, attempt.now)?.ok_or(Refused::Conflict)?;
        if !otps.iter().all(|otp| otp.has(digits)) {
            return Err(Refused::Invalid { field: "otps", reason: LENGTH_RULE });
        }
        let possible = Possible { plan, challenge, used: Vec::new() };
        self.ask_custodian(attempt, Purpose::Resync, &otps.each_ref(), possible).await
    }

    /// Which ending it is, with the seals of its rows.
    async fn ask_custodian(
        &self,
        attempt: Attempt<'_>,
        purpose: Purpose,
        otps: &[&Otp],
        possible: Possible,
    ) -> Result<Judged, Refused> {
        let Possible { plan, challenge, used } = possible;
        let Endings { accepted, repeated, missed } = Endings::new(attempt, purpose, &plan)?;
        let mut standing = attempt.standing();
        standing.extend(used.iter().map(|input| Row::UsedInput(input.row.clone())));
        // Even without a candidate (a counter at its end) there is a miss to charge.
        let mut rest = plan.candidates.as_slice();
        loop {
            let (chunk, after) = rest.split_at(rest.len().min(CANDIDATES_PER_MESSAGE));
            rest = after;
            let mut standing_bytes = attempt.standing_bytes();
            standing_bytes.extend(used.iter().map(Sealed::to_bytes));
            let message = CheckOtp {
                standing: standing_bytes,
                codes: otps.iter().map(|otp| otp.duplicate()).collect(),
                challenge: challenge.clone(),
                candidates: chunk.iter().map(as_asked).collect(),
                // Behind the candidate's own rows.
                accepted: accepted.outcome(),
                repeated: repeated.outcome(),
                missed: missed.outcome(),
            };
            let id = attempt.rows.credential.row.id;
            let (matched, sealed) = self.hsm.check_otp(id, message).await?;
            let ending = match matched {
                None if !rest.is_empty() => continue,
                None => missed,
                Some(index) => match chunk.get(usize::from(index)).map(|candidate| &candidate.verdict) {
                    Some(Verdict::Accepted { state, used }) => {
                        let mut ending = accepted;
                        ending.rows.splice(..0, own_rows(state, used.as_deref()));
                        ending
                    }
                    Some(Verdict::Repeated) => repeated,
                    None => return Err(Refused::unavailable("the custodian matched what nobody asked")),
                },
            };
            return Ok(Judged { ending, sealed, standing });
        }
    }
}

const LENGTH_RULE: &str = "a code has as many digits as the credential says";

fn challenge(token: &OcraToken, question: &Question) -> Result<Challenge, Refused> {
    let session = question.session.as_ref().map(String::as_bytes);
    Challenge::new(&token.suite, &question.challenge, session).map_err(|error| match error {
        ChallengeError::Question(reason) => Refused::Invalid { field: "challenge", reason },
        ChallengeError::Session(reason) => Refused::Invalid { field: "session", reason },
    })
}

/// What was presented is not what such a credential makes.
fn misfit(kind: &Kind, question: Option<&Question>) -> Refused {
    let (field, reason) = match (kind, question) {
        (Kind::Signer(_), _) => ("otp", "a signer has no codes: send payload and signature"),
        (_, Some(_)) => ("challenge", "only an ocra credential is asked a question"),
        (_, None) => ("challenge", "must be there: the credential answers questions"),
    };
    Refused::Invalid { field, reason }
}

/// The rows that an accepted candidate writes ahead of those that all of them write.
fn own_rows(state: &CredentialState, used: Option<&UsedInput>) -> Vec<Row> {
    let used = used.map(|input| Row::UsedInput(input.clone()));
    std::iter::once(Row::State(state.clone())).chain(used).collect()
}

fn as_asked(candidate: &verification::Candidate) -> Candidate {
    let rows = match &candidate.verdict {
        Verdict::Accepted { state, used } => {
            Some(own_rows(state, used.as_deref()).iter().map(Row::encode).collect())
        }
        Verdict::Repeated => None,
    };
    Candidate { factor: candidate.factor, rows }
}

/// All the ways one check can end.
struct Endings {
    /// What an accepted candidate writes besides its own rows. The same for every candidate: it is sealed
    /// before one of them matches.
    accepted: Ending,
    repeated: Ending,
    missed: Ending,
}

impl Endings {
    fn new(attempt: Attempt<'_>, purpose: Purpose, plan: &Plan) -> Result<Self, Refused> {
        let credential = &attempt.rows.credential.row;
        let (id, account) = (credential.id.to_string(), credential.account.to_string());
        let (event, missed_event, answer) = match purpose {
            Purpose::Verify => (Event::Verified, Event::Refused, Answer::Verified { id, account }),
            Purpose::Resync => (Event::Resynced, Event::ResyncRefused, Answer::Resynced { id, account }),
        };
        let failed = |attempts_remaining| Answer::VerificationFailed { attempts_remaining };
        let (mut replaces, mut rows) = (vec![STATE], Vec::new());
        if let Some(account) = &plan.accepted_account {
            rows.push(Row::Account(account.clone()));
            replaces.push(ACCOUNT);
        }
        let missed = vec![Row::State(plan.missed_state.clone()), Row::Account(plan.missed_account.clone())];
        Ok(Self {
            accepted: attempt.ending(event, replaces, rows, answer)?,
            repeated: attempt.ending(Event::Repeated, Vec::new(), Vec::new(), failed(plan.remaining))?,
            missed: attempt.ending(
                missed_event,
                vec![STATE, ACCOUNT],
                missed,
                failed(plan.remaining_if_missed),
            )?,
        })
    }
}
