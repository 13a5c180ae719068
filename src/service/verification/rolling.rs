//! What only the right one knows, of a rolling credential: each claim's two endings, and which of them it is.

use crate::domain::audit::Event;
use crate::domain::rolling::{Binding, RollingPassword, Rotation};
use crate::domain::row::{Row, Sealed};
use crate::domain::transaction::Approver;
use crate::domain::verification::Plan;
use crate::domain::verification::rolling::{accepted, begin};
use crate::hsm::messages::{Attest, CheckRolling, RollingClaim};
use crate::secret::SecretBytes;

use super::super::credential_view::CredentialView;
use super::super::rolling::{HandedOut, TemporaryCode};
use super::{ACCOUNT, Answer, Attempt, Ending, Judged, Possibilities, Refused, STATE, Service, TRANSACTION};

/// Where the binding stands, behind the others: of a payment there is a transaction before it.
const BINDING: u8 = 3;
const BINDING_OF_PAYMENT: u8 = 4;

/// What somebody claims to know.
pub(in super::super) enum Claim<'a> {
    /// Temporary code and identity code, for the attempt's transaction.
    Payment(&'a RollingPassword),
    /// The temporary code of this epoch, and what that means.
    Rotation(u64, Rotation, &'a SecretBytes),
    /// The identity key.
    IdentityKey(&'a SecretBytes),
}

/// Both ways in which it can end.
struct Endings {
    accepted: Ending,
    missed: Ending,
    attest: Option<Attest>,
}

impl Service {
    /// Has a claim checked by the custodian; with a right one may come a temporary code.
    pub(in super::super) async fn judge_rolling(
        &self,
        attempt: Attempt<'_>,
        binding: &Sealed<Binding>,
        claim: Claim<'_>,
    ) -> Result<(Judged, Option<TemporaryCode>), Refused> {
        let plan = begin(attempt.subject(), attempt.now)?;
        let Endings { mut accepted, missed, attest } = match &claim {
            Claim::Payment(_) => self.of_payment(attempt, &plan, &binding.row)?,
            Claim::Rotation(_, rotation, _) => of_rotation(attempt, &plan, &binding.row, *rotation)?,
            Claim::IdentityKey(_) => of_identity_key(attempt, &plan)?,
        };
        let mut standing_bytes = attempt.standing_bytes();
        standing_bytes.push(binding.to_bytes());
        let check = CheckRolling {
            standing: standing_bytes,
            claim: as_asked(&claim),
            accepted: accepted.outcome(),
            missed: missed.outcome(),
            attest,
        };
        let checked = self.hsm.check_rolling(attempt.rows.credential.row.id, check).await?;
        let ending = match (checked.valid, &claim, &checked.opened) {
            (false, _, None) => missed,
            (true, Claim::Payment(_), Some(opened)) => {
                accepted.rows.push(binding.row.used(opened.lookup).into());
                accepted.attested(attempt, checked.attestation)?
            }
            (true, Claim::Rotation(_, Rotation::Acknowledge, _), None)
            | (true, Claim::Rotation(_, Rotation::HandOut, _) | Claim::IdentityKey(_), Some(_)) => accepted,
            _ => return Err(Refused::unavailable("the custodian handed out what nobody asked, or nothing")),
        };
        let mut before = attempt.before();
        before.push(binding.into());
        Ok((Judged { ending, sealed: checked.sealed, before }, checked.opened.map(TemporaryCode::from)))
    }

    fn of_payment(&self, attempt: Attempt<'_>, plan: &Plan, binding: &Binding) -> Result<Endings, Refused> {
        let Possibilities { approved, missed, missed_event, .. } = attempt.possibilities(None)?;
        let credential = &attempt.rows.credential.row;
        let approved = approved.approved_by(Approver {
            credential: credential.id,
            account: credential.account.clone(),
            epoch: binding.epoch,
        });
        let handed_out = HandedOut::new(credential, binding.epoch.saturating_add(1));
        let answer = Answer::ApprovedByPassword { transaction: approved.id.to_string(), handed_out };
        let attest = self.attest(&approved, attempt.now);
        let mut replaces = vec![STATE, TRANSACTION, BINDING_OF_PAYMENT];
        let mut rows = vec![accepted(attempt.subject(), binding).into(), Row::Transaction(approved)];
        if let Some(account) = &plan.accepted_account {
            replaces.push(ACCOUNT);
            rows.push(account.clone().into());
        }
        let remaining = plan.remaining_if_missed.min(missed.attempts_left.into());
        let mut missed_rows = missed_rows(plan);
        missed_rows.push(Row::Transaction(missed));
        let missed_replaces = vec![STATE, ACCOUNT, TRANSACTION];
        Ok(Endings {
            accepted: attempt.ending(Event::TransactionApproved, replaces, rows, answer)?,
            missed: attempt.ending(missed_event, missed_replaces, missed_rows, failed(remaining))?,
            attest: Some(attest),
        })
    }
}

fn of_rotation(
    attempt: Attempt<'_>,
    plan: &Plan,
    binding: &Binding,
    rotation: Rotation,
) -> Result<Endings, Refused> {
    let credential = &attempt.rows.credential.row;
    let account = credential.account.to_string();
    let accepted = match rotation {
        Rotation::HandOut => {
            let answer = Answer::Rotated { account, handed_out: HandedOut::new(credential, binding.epoch) };
            attempt.ending(Event::CodeRepeated, Vec::new(), Vec::new(), answer)?
        }
        Rotation::Acknowledge => {
            let (mut replaces, mut rows) = (Vec::new(), Vec::new());
            if !binding.acknowledged {
                let next = binding.acknowledged();
                replaces.extend([STATE, BINDING]);
                rows.push(attempt.rows.state.row.next().bound(next.version).into());
                rows.push(next.into());
            }
            let answer =
                Answer::Acknowledged { id: credential.id.to_string(), account, epoch: binding.epoch };
            attempt.ending(Event::CodeAcknowledged, replaces, rows, answer)?
        }
    };
    Ok(Endings { accepted, missed: missed(attempt, plan, Event::RotationRefused)?, attest: None })
}

fn of_identity_key(attempt: Attempt<'_>, plan: &Plan) -> Result<Endings, Refused> {
    let subject = attempt.subject();
    let view = CredentialView::new(subject.credential, subject.state);
    let answer = Answer::Activated { view, handed_out: HandedOut::new(subject.credential, 1) };
    Ok(Endings {
        accepted: attempt.ending(Event::ActivationRepeated, Vec::new(), Vec::new(), answer)?,
        missed: missed(attempt, plan, Event::ActivationRefused)?,
        attest: None,
    })
}

/// Charged to the credential and its account.
fn missed(attempt: Attempt<'_>, plan: &Plan, event: Event) -> Result<Ending, Refused> {
    let answer = failed(plan.remaining_if_missed);
    attempt.ending(event, vec![STATE, ACCOUNT], missed_rows(plan), answer)
}

fn failed(attempts_remaining: u32) -> Answer {
    Answer::VerificationFailed { attempts_remaining }
}

fn missed_rows(plan: &Plan) -> Vec<Row> {
    vec![Row::State(plan.missed_state.clone()), Row::Account(plan.missed_account.clone())]
}

/// As the custodian is asked; exposed to be sent to it.
fn as_asked(claim: &Claim<'_>) -> RollingClaim {
    let copy = |secret: &SecretBytes| SecretBytes::new(secret.expose().to_vec());
    match claim {
        Claim::Payment(password) => {
            RollingClaim::Payment { proof: SecretBytes::new(password.proof.to_vec()) }
        }
        Claim::Rotation(epoch, _, proof) => RollingClaim::Rotation { epoch: *epoch, proof: copy(proof) },
        Claim::IdentityKey(key) => RollingClaim::IdentityKey(copy(key)),
    }
}
