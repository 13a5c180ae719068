//! The steps of an authorization: the message from the terminal, and what completes it.

use crate::domain::audit::Event;
use crate::domain::authorization::Means;
use crate::domain::credential::{CredentialState, Status};
use crate::domain::id::CredentialId;
use crate::domain::multi_terminal::Address;
use crate::domain::otp::Otp;
use crate::domain::row::{Row, RowKey};
use crate::domain::time::Now;
use crate::domain::verification::{charged, refunded, succeeded};
use crate::hsm::messages::{AuthorizationStep, CheckAuthorization};

use super::super::credential_view::CredentialView;
use super::super::memory::{Memory, Recall};
use super::super::verification::proofs::{DeviceProof, proof};
use super::super::verification::{ACCOUNT, Attempt, Ending, Judged, STATE};
use super::{Answer, Ask, AuthorizationView, RACES_MAX, Refused, Service, UnderWay, race_lost};

/// Where the authorization stands in the message, behind the device's rows.
const AUTHORIZATION: u8 = 3;

/// What is presented.
enum Presented {
    Uplink { code: Otp, from: Address },
    Completion { code: Option<Otp>, proof: DeviceProof },
}

impl Service {
    /// The message from the user's terminal: its code, and where it came from.
    ///
    /// # Errors
    /// [`Refused`]; then nothing is charged.
    pub async fn report_uplink(
        &self,
        ask: Ask,
        id: Option<CredentialId>,
        code: Otp,
        from: Address,
    ) -> Result<Answer, Refused> {
        self.authorize(ask, id, Presented::Uplink { code, from }).await
    }

    /// What completes it: the code that was sent to the terminal, if it is by SMS, and always the device's signature.
    ///
    /// # Errors
    /// [`Refused`]; then nothing is charged.
    pub async fn complete_authorization(
        &self,
        ask: Ask,
        id: Option<CredentialId>,
        code: Option<Otp>,
        proof: DeviceProof,
    ) -> Result<Answer, Refused> {
        self.authorize(ask, id, Presented::Completion { code, proof }).await
    }

    async fn authorize(
        &self,
        mut ask: Ask,
        id: Option<CredentialId>,
        presented: Presented,
    ) -> Result<Answer, Refused> {
        let memory = match self.recall(&mut ask).await? {
            Recall::Answered(answer) => return Ok(answer),
            Recall::New(memory) => memory,
        };
        let id = id.ok_or(Refused::Absent)?;
        let tenant = ask.caller.tenant.clone();
        let account = self.device(&tenant, id).await?.credential.row.account;
        let _guard = self.locks.lock(&tenant, &account).await?;
        for _ in 0..RACES_MAX {
            let now = self.now();
            let under_way = self.under_way(&tenant, id, Some(&now)).await?;
            let judged = self.judge_step(&memory, &under_way, &presented, &now).await?;
            if let Some(answer) = self.commit_verdict(&ask, &now, Some(id), None, judged).await? {
                return Ok(answer);
            }
        }
        Err(race_lost())
    }

    async fn judge_step(
        &self,
        memory: &Memory<'_>,
        under_way: &UnderWay,
        presented: &Presented,
        now: &Now,
    ) -> Result<Judged, Refused> {
        let UnderWay { device, authorization, .. } = under_way;
        let is_by_sms = matches!(authorization.row.means, Means::Sms { .. });
        authorization.row.open(now)?;
        let attempt = Attempt { memory, rows: device, transaction: None, now };
        let (step, accepted) = match presented {
            Presented::Uplink { code, from } if is_by_sms => {
                let step = AuthorizationStep::Uplink { code: code.duplicate(), from: from.clone() };
                (step, uplink_seen(attempt, under_way)?)
            }
            // There is no message to wait for.
            Presented::Uplink { .. } => return Err(Refused::Conflict),
            Presented::Completion { code, proof: presented } => {
                match (is_by_sms, code) {
                    (true, None) => return Err(misfit("must be there: the authorization is by SMS")),
                    (false, Some(_)) => return Err(misfit("must not be there: there is no SMS")),
                    (true, Some(_)) if !authorization.row.uplink_seen => return Err(Refused::Conflict),
                    _ => {}
                }
                let proof = proof(attempt, &authorization.row.signing_input(), presented)?;
                let proof = self.vouched(attempt, proof).await?;
                let accepted = completed(attempt, under_way, is_by_sms, proof.state.as_ref())?;
                let step = AuthorizationStep::Completion {
                    code: code.as_ref().map(Otp::duplicate),
                    digest: proof.digest,
                    jws_header: proof.jws_header,
                    signature: proof.signature,
                };
                (step, accepted)
            }
        };
        let missed = missed(attempt, under_way, is_by_sms)?;
        let mut bytes = attempt.standing_bytes();
        bytes.extend(under_way.bytes());
        let check = CheckAuthorization {
            standing: bytes,
            step,
            accepted: accepted.outcome(),
            missed: missed.outcome(),
        };
        let (is_right, sealed) = self.hsm.check_authorization(device.credential.row.id, check).await?;
        let mut before = if is_by_sms { attempt.before() } else { attempt.before_but_account() };
        before.extend(under_way.before());
        Ok(Judged { ending: if is_right { accepted } else { missed }, sealed, before })
    }
}

fn misfit(reason: &'static str) -> Refused {
    Refused::Invalid { field: "downlink_code", reason }
}

/// It says nothing of who the user is by itself: failures stay.
fn uplink_seen(attempt: Attempt<'_>, under_way: &UnderWay) -> Result<Ending, Refused> {
    let seen = under_way.authorization.row.seen();
    let answer = Answer::UplinkSeen(AuthorizationView::new(&seen));
    attempt.ending(Event::UplinkSeen, vec![AUTHORIZATION], vec![Row::Authorization(seen)], answer)
}

/// The device is active, and the authorization gone. With the codes it is a success of the credential's.
fn completed(
    attempt: Attempt<'_>,
    under_way: &UnderWay,
    is_by_sms: bool,
    counted: Option<&CredentialState>,
) -> Result<Ending, Refused> {
    let subject = attempt.subject();
    let next = if is_by_sms { succeeded(subject) } else { subject.state.next() };
    let mut state = CredentialState { status: Status::Active, ..next };
    if let Some(counted) = counted {
        (state.next_factor, state.last_accepted) = (counted.next_factor, counted.last_accepted);
    }
    let answer = Answer::Changed(CredentialView::new(subject.credential, &state));
    let (mut replaces, mut rows) = (vec![STATE, AUTHORIZATION], vec![Row::State(state)]);
    if let Some(account) = refunded(subject).filter(|_| is_by_sms) {
        replaces.push(ACCOUNT);
        rows.push(Row::Account(account));
    }
    let mut ending = attempt.ending(Event::Authorized, replaces, rows, answer)?;
    ending.removed.push(RowKey::Authorization(under_way.authorization.row.credential));
    Ok(ending)
}

/// An attempt less; where a code may have been guessed, a failure of the credential and of its account.
fn missed(attempt: Attempt<'_>, under_way: &UnderWay, is_by_sms: bool) -> Result<Ending, Refused> {
    let missed = under_way.authorization.row.missed();
    let mut attempts_remaining = u32::from(missed.attempts_left);
    let (mut replaces, mut rows) = (vec![AUTHORIZATION], vec![Row::Authorization(missed)]);
    if is_by_sms {
        let (state, account) = charged(attempt.subject(), attempt.now);
        for attempts in [&state.attempts, &account.attempts] {
            attempts_remaining = attempts_remaining.min(attempts.remaining(attempt.now));
        }
        replaces.extend([STATE, ACCOUNT]);
        rows.extend([Row::State(state), Row::Account(account)]);
    }
    let failed = Answer::VerificationFailed { attempts_remaining };
    attempt.ending(Event::AuthorizationRefused, replaces, rows, failed)
}
