//! Finding a token again that ran away: two consecutive codes over a wide window.

use super::credential::CredentialState;
use super::otp::{COUNTER_END, MovingFactor, time_step};
use super::time::Now;
use super::verification::{Candidate, Plan, Refusal, Subject, Verdict, accepted, admit, around, plan};

/// How far ahead of the expected counter a HOTP token is searched for.
pub const HOTP_WINDOW: u64 = 1_000;
/// How many steps on either side of the present a TOTP token is searched for.
pub const TOTP_WINDOW: u64 = 120;

/// Plans a resync: each candidate is the factor of the FIRST of two consecutive codes.
///
/// Both codes are used up by a success, and a failure is charged like any wrong guess; the
/// two codes used last are refused and not charged.
///
/// # Errors
/// A [`Refusal`] if the credential may not be tried.
pub fn begin(subject: Subject<'_>, now: &Now) -> Result<Plan, Refusal> {
    admit(subject, now)?;
    let next = subject.state.next_factor;
    // The same two codes again: a double click.
    let pair = subject.state.last_accepted.and_then(|last| last.checked_sub(1));
    let repeated = pair.map(|factor| Candidate { factor, verdict: Verdict::Repeated });
    let fresh: Vec<Candidate> = match subject.credential.moving_factor {
        MovingFactor::Hotp { .. } => {
            let end = next.saturating_add(HOTP_WINDOW).min(COUNTER_END - 1);
            (next..end).map(|factor| candidate(subject, factor, 0)).collect()
        }
        MovingFactor::Totp { period_s, .. } => {
            let present = time_step(now.unix_ms, period_s);
            around(present, TOTP_WINDOW)
                .filter(|step| *step >= next)
                .map(|step| {
                    // The second code is the one on the token's display now.
                    let drift = i128::from(step) + 1 - i128::from(present);
                    candidate(subject, step, drift as i16)
                })
                .collect()
        }
    };
    Ok(plan(subject, now, repeated.into_iter().chain(fresh).collect()))
}

fn candidate(subject: Subject<'_>, first: u64, drift_steps: i16) -> Candidate {
    let state = CredentialState { drift_steps, ..accepted(subject, first.saturating_add(1)) };
    Candidate { factor: first, verdict: Verdict::Accepted(state) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::verification::tests::{Rows, at};

    #[test]
    fn hotp_is_searched_far_ahead_and_both_codes_are_used_up() {
        let rows = Rows::new(MovingFactor::Hotp { look_ahead: 3 }, 7);
        let plan = begin(rows.subject(), &at(0)).unwrap();
        assert_eq!(plan.candidates.len(), 1_000);
        let last = plan.candidates.last().unwrap();
        assert_eq!(last.factor, 1_006);
        let Verdict::Accepted(state) = &last.verdict else { panic!("not accepted") };
        assert_eq!((state.next_factor, state.last_accepted, state.drift_steps), (1_008, Some(1_007), 0));
    }

    #[test]
    fn the_same_two_codes_again_cost_nothing() {
        let mut rows = Rows::new(MovingFactor::Hotp { look_ahead: 3 }, 7);
        let Verdict::Accepted(state) = begin(rows.subject(), &at(0)).unwrap().candidates[5].verdict.clone()
        else {
            panic!("not accepted")
        };
        rows.1 = state;
        let again = begin(rows.subject(), &at(0)).unwrap().candidates[0].clone();
        assert_eq!(again, Candidate { factor: 12, verdict: Verdict::Repeated });
    }

    #[test]
    fn hotp_stops_before_its_last_counter() {
        let rows = Rows::new(MovingFactor::Hotp { look_ahead: 3 }, COUNTER_END - 3);
        let factors: Vec<u64> =
            begin(rows.subject(), &at(0)).unwrap().candidates.iter().map(|c| c.factor).collect();
        assert_eq!(factors, [COUNTER_END - 3, COUNTER_END - 2]);
        assert!(
            begin(Rows::new(MovingFactor::Hotp { look_ahead: 3 }, COUNTER_END).subject(), &at(0))
                .unwrap()
                .candidates
                .is_empty()
        );
    }

    #[test]
    fn totp_is_searched_on_both_sides_and_the_drift_kept() {
        let rows = Rows::new(MovingFactor::Totp { period_s: 30, skew_steps: 1 }, 60);
        let plan = begin(rows.subject(), &at(3_000)).unwrap();
        assert!(plan.candidates.iter().all(|c| (60..=220).contains(&c.factor)));
        assert_eq!(plan.candidates.iter().map(|c| c.factor).take(3).collect::<Vec<_>>(), [100, 99, 101]);
        let ahead = plan.candidates.iter().find(|c| c.factor == 150).unwrap();
        let Verdict::Accepted(state) = &ahead.verdict else { panic!("not accepted") };
        assert_eq!((state.next_factor, state.drift_steps), (152, 51));
    }
}
