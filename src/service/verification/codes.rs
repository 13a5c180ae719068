//! Codes: which candidates there are, what each outcome writes, and which of them it is.

use crate::domain::audit::Event;
use crate::domain::credential::{Kind, OcraToken, OcraUse, UsedInput};
use crate::domain::ocra::{Challenge, ChallengeError};
use crate::domain::otp::Otp;
use crate::domain::row::{Row, Sealed};
use crate::domain::verification::{self, Plan, Verdict, ocra, usable};
use crate::domain::{credential::CredentialState, resync};
use crate::hsm::messages::{Candidate, CheckOtp};
use crate::store::Standing;

use super::{ACCOUNT, Answer, Attempt, Ending, Judged, Possibilities, Refused, STATE, Service, TRANSACTION};

/// How many candidates go into one message. Their rows have to fit its 64 KiB; and an HSM has to be through with
/// them in the 2 s that a custodian has for a request. Each costs six calls, so that one of these may take some 4 ms: at half of
/// that the widest search takes all of a request's time. Of two consecutive codes a candidate is the first: the second one's
/// may be in the next message.
const CANDIDATES_PER_MESSAGE: usize = 64;

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
    /// To approve the attempt's transaction.
    Approve,
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
                let possible = self.possible(attempt, token, challenge(token, question)?).await?;
                (token.suite.digits(), possible)
            }
            // Its codes approve transactions.
            (Kind::Terminal(_) | Kind::Rolling(_), _) => return Err(Refused::Conflict),
            (kind, question) => return Err(misfit(kind, question)),
        };
        if !otp.has(digits) {
            return Err(Refused::Invalid { field: "otp", reason: LENGTH_RULE });
        }
        self.ask_custodian(attempt, Purpose::Verify, &[otp], possible).await
    }

    /// Whether `otp` answers the question of the attempt's transaction.
    pub(in super::super) async fn judge_response(
        &self,
        attempt: Attempt<'_>,
        challenge: Challenge,
        otp: &Otp,
    ) -> Result<Judged, Refused> {
        let subject = attempt.subject();
        let Kind::Ocra(token) = &subject.credential.kind else {
            return Err(Refused::unavailable("a transaction's token is none"));
        };
        let possible = self.possible(attempt, token, challenge).await?;
        if !otp.has(token.suite.digits()) {
            return Err(Refused::Invalid { field: "otp", reason: LENGTH_RULE });
        }
        self.ask_custodian(attempt, Purpose::Approve, &[otp], possible).await
    }

    /// The plan of a check of one OCRA code.
    async fn possible(
        &self,
        attempt: Attempt<'_>,
        token: &OcraToken,
        challenge: Challenge,
    ) -> Result<Possible, Refused> {
        let subject = attempt.subject();
        let inputs = ocra::inputs(token, &challenge, attempt.now);
        let used = match inputs.is_empty() {
            true => Vec::new(),
            false => self.store.used_inputs(subject.credential.id, inputs).await?,
        };
        let known: Vec<_> = used.iter().map(|input| input.row.fingerprint).collect();
        let plan = ocra::begin(subject, token, &challenge, &known, attempt.now)?;
        Ok(Possible { plan, challenge: Some(challenge), used })
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
            (Kind::Terminal(_) | Kind::Rolling(_), _) => return Err(Refused::Conflict),
            (kind, _) if kind.signer().is_some() => return Err(Refused::Conflict),
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
        let mut before = attempt.before();
        before.extend(used.iter().map(Standing::from));
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
                attest: attempt.transaction.map(|transaction| self.attest(&transaction.row, attempt.now)),
            };
            let id = attempt.rows.credential.row.id;
            let (matched, sealed, attestation) = self.hsm.check_otp(id, message).await?;
            let ending = match matched {
                None if !rest.is_empty() => continue,
                None => missed,
                Some(index) => match chunk.get(usize::from(index)).map(|candidate| &candidate.verdict) {
                    Some(Verdict::Accepted { state, used }) => {
                        let mut ending = accepted;
                        ending.rows.splice(..0, own_rows(state, used.as_deref()));
                        ending.attested(attempt, attestation)?
                    }
                    Some(Verdict::Repeated) => repeated,
                    None => return Err(Refused::unavailable("the custodian matched what nobody asked")),
                },
            };
            return Ok(Judged { ending, sealed, before });
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
        (kind, _) if kind.signer().is_some() => ("otp", "a signer has no codes: send payload and signature"),
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
            Purpose::Approve => return Self::of_response(attempt, plan),
        };
        let (replaces, rows) = accepted_rows(plan);
        Ok(Self {
            accepted: attempt.ending(event, replaces, rows, answer)?,
            repeated: attempt.ending(Event::Repeated, Vec::new(), Vec::new(), failed(plan.remaining))?,
            missed: attempt.ending(
                missed_event,
                vec![STATE, ACCOUNT],
                missed_rows(plan),
                failed(plan.remaining_if_missed),
            )?,
        })
    }

    /// The transaction goes with the credential and its account: approved, or missed.
    fn of_response(attempt: Attempt<'_>, plan: &Plan) -> Result<Self, Refused> {
        let Possibilities { approved, missed, missed_event, answer } = attempt.possibilities(None)?;
        let remaining = plan.remaining.min(approved.attempts_left.into());
        let remaining_if_missed = plan.remaining_if_missed.min(missed.attempts_left.into());
        let (mut replaces, mut rows) = accepted_rows(plan);
        replaces.push(TRANSACTION);
        rows.push(Row::Transaction(approved));
        let mut missed_rows = missed_rows(plan);
        missed_rows.push(Row::Transaction(missed));
        let missed_replaces = vec![STATE, ACCOUNT, TRANSACTION];
        let repeated = Event::TransactionRepeated;
        Ok(Self {
            accepted: attempt.ending(Event::TransactionApproved, replaces, rows, answer)?,
            repeated: attempt.ending(repeated, Vec::new(), Vec::new(), failed(remaining))?,
            missed: attempt.ending(
                missed_event,
                missed_replaces,
                missed_rows,
                failed(remaining_if_missed),
            )?,
        })
    }
}

fn failed(attempts_remaining: u32) -> Answer {
    Answer::VerificationFailed { attempts_remaining }
}

/// What every acceptance replaces and writes, besides the candidate's own rows.
fn accepted_rows(plan: &Plan) -> (Vec<u8>, Vec<Row>) {
    match &plan.accepted_account {
        Some(account) => (vec![STATE, ACCOUNT], vec![Row::Account(account.clone())]),
        None => (vec![STATE], Vec::new()),
    }
}

fn missed_rows(plan: &Plan) -> Vec<Row> {
    vec![Row::State(plan.missed_state.clone()), Row::Account(plan.missed_account.clone())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::account::Account;
    use crate::domain::attestation::Claims;
    use crate::domain::ocra::Suite;
    use crate::domain::verification::Factor;
    use crate::hsm::messages::{Attest, Call, FRAME_BYTES_MAX, Outcome, Request, encode};
    use crate::service::pruning::tests::{longest, longest_transaction, sealed};

    #[test]
    fn a_check_of_the_longest_rows_fits_a_message() {
        let (credential, state, input, record) = longest(1);
        let account = Account::new(credential.tenant.clone(), credential.account.clone());
        let account = Account { version: u64::MAX, attempts: state.attempts, epoch: u32::MAX, ..account };
        let (transaction, _) = longest_transaction();
        let suite = Suite::parse("OCRA-1:HOTP-SHA512-10:C-QA64-PSHA512-S512-T59M").unwrap();
        let claims = Claims::new(&transaction, &"i".repeat(128), u64::MAX / 2, u64::MAX / 2).to_json();
        let outcome =
            |rows: &[Row]| Outcome { replaces: vec![1, 2, 3], rows: rows.iter().map(Row::encode).collect() };
        let record = Row::Idempotency(record);
        let rows = [account.clone().into(), transaction.clone().into(), record.clone()];
        let check = CheckOtp {
            standing: vec![
                sealed(credential).to_bytes(),
                sealed(state.clone()).to_bytes(),
                sealed(account.clone()).to_bytes(),
                sealed(transaction.clone()).to_bytes(),
            ],
            codes: vec![
                Otp::parse("0123456789".to_owned()).unwrap(),
                Otp::parse("0123456789".to_owned()).unwrap(),
            ],
            challenge: Some(Challenge::of_transaction(&suite, &[0xff; 32]).unwrap()),
            candidates: (0..CANDIDATES_PER_MESSAGE)
                .map(|_| Candidate {
                    factor: Factor { counter: Some(u64::MAX), time_step: Some(u64::MAX) },
                    rows: Some(vec![Row::State(state.clone()).encode()]),
                })
                .collect(),
            accepted: outcome(&rows),
            repeated: outcome(std::slice::from_ref(&record)),
            missed: outcome(&[
                state.clone().into(),
                account.into(),
                transaction.clone().into(),
                record.clone(),
            ]),
            attest: Some(Attest { transaction: transaction.id, tenant: transaction.tenant, claims }),
        };
        let bytes = encode(&Call {
            repeated: false,
            id: u64::MAX,
            newest: crate::hsm::messages::tests::newest(),
            request: Request::CheckOtp(check),
        })
        .map(|frame| frame.len());
        assert!(bytes.as_ref().is_ok_and(|bytes| *bytes < FRAME_BYTES_MAX * 15 / 16), "{bytes:?}");
        // Without a counter there are five candidates, each with the input that it would use up.
        assert!(Row::UsedInput(input).encode().as_bytes().len() < 256);
    }
}
