//! What only the right one knows, of a rolling credential: the proof in a password, that of a rotation, an identity key.

use super::{Plan, Refusal, Subject, admit, plan, succeeded};
use crate::domain::credential::CredentialState;
use crate::domain::rolling::Binding;
use crate::domain::time::Now;

/// Plans the check of a guess that can be right in one way only.
///
/// # Errors
/// A [`Refusal`] if the credential may not be tried.
pub fn begin(subject: Subject<'_>, now: &Now) -> Result<Plan, Refusal> {
    admit(subject, now)?;
    Ok(plan(subject, now, Vec::new()))
}

/// The credential after its password was accepted, by which `binding` is replaced: that needs the identity code, so its
/// failures are forgotten. Nothing else here is a success of that kind: who has the terminal alone could go on guessing
/// for ever by it.
pub fn accepted(subject: Subject<'_>, binding: &Binding) -> CredentialState {
    succeeded(subject).bound(binding.version.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Rows, at};
    use super::*;
    use crate::domain::credential::{Kind, Status, StoredSecret};
    use crate::domain::lockout::Locked;
    use crate::domain::rolling::{LOOKUP_BYTES, Rolling, SALT_BYTES};

    fn rows() -> Rows {
        let secret = StoredSecret::Wrapped { kek_version: 1, blob: vec![7; 40] };
        Rows::of(Kind::Rolling(Rolling::new(secret, [5; SALT_BYTES])), 1)
    }

    #[test]
    fn a_miss_is_charged_to_credential_and_account_and_the_fifth_locks() {
        let mut rows = rows();
        for left in (0..5).rev() {
            let plan = begin(rows.subject(), &at(0)).unwrap();
            assert_eq!((plan.remaining_if_missed, plan.candidates.len()), (left, 0));
            (rows.1, rows.2) = (plan.missed_state, plan.missed_account);
        }
        assert_eq!((rows.1.attempts.failures, rows.2.attempts.failures), (5, 5));
        let locked = Refusal::Locked(Locked { retry_after_s: Some(900) });
        assert_eq!(begin(rows.subject(), &at(0)).err(), Some(locked));
    }

    #[test]
    fn a_success_forgets_failures_and_knows_its_binding() {
        let mut rows = rows();
        let plan = begin(rows.subject(), &at(0)).unwrap();
        (rows.1, rows.2) = (plan.missed_state, plan.missed_account);
        let first = Binding::first(rows.1.id, rows.1.tenant.clone(), [1; LOOKUP_BYTES]);
        let next = first.used([2; LOOKUP_BYTES]);
        let plan = begin(rows.subject(), &at(0)).unwrap();
        let state = accepted(rows.subject(), &first);
        assert_eq!((state.next_factor, state.attempts.failures, state.account_share), (next.version, 0, 0));
        assert_eq!(state.version, rows.1.version + 1);
        assert_eq!(plan.accepted_account.unwrap().attempts.failures, 0);
    }

    #[test]
    fn what_waits_for_its_activation_is_not_tried() {
        for status in [Status::Pending, Status::Suspended] {
            let mut rows = rows();
            rows.1 = rows.1.with_status(status);
            assert_eq!(begin(rows.subject(), &at(0)).err(), Some(Refusal::Inactive));
        }
    }
}
