//! Finding a token again that ran away: two consecutive codes over a wide window.

use super::credential::{CredentialState, Kind, OcraToken, OtpToken};
use super::otp::{COUNTER_END, MovingFactor, time_step};
use super::time::Now;
use super::verification::ocra;
use super::verification::{
    Candidate, Factor, Plan, Refusal, Subject, Verdict, accepted, admit, around, beyond_floor, plan,
};

/// How far ahead of the expected counter a token is searched for.
pub const COUNTER_WINDOW: u64 = 1_000;
/// How many steps on either side of the present a TOTP token is searched for.
pub const TOTP_WINDOW: u64 = 120;
/// How far ahead of ours a resync can find a token's clock to be, in steps.
pub const DRIFT_FOUND_MAX: i16 = TOTP_WINDOW as i16 + 1;

/// Plans a resync: each candidate is the factor of the FIRST of two consecutive codes. `None`: the
/// credential has nothing that could run away.
///
/// Both codes are used up by a success, and a failure is charged like any wrong guess; the
/// two codes used last are refused and not charged.
///
/// # Errors
/// A [`Refusal`] if the credential may not be tried.
pub fn begin(subject: Subject<'_>, now: &Now) -> Result<Option<Plan>, Refusal> {
    admit(subject, now)?;
    // The same two codes again: a double click.
    let pair = subject.state.last_accepted.and_then(|last| last.checked_sub(1));
    let candidates = match &subject.credential.kind {
        Kind::Otp(token) => otp(subject, token, now, pair),
        Kind::Ocra(token) if token.suite.has_counter() => ocra_counters(subject, token, now, pair),
        _ => return Ok(None),
    };
    Ok(Some(plan(subject, now, candidates)))
}

fn otp(subject: Subject<'_>, token: &OtpToken, now: &Now, pair: Option<u64>) -> Vec<Candidate> {
    let factor = |number| token.moving_factor.factor(number);
    let repeated = pair.map(|number| Candidate { factor: factor(number), verdict: Verdict::Repeated });
    let fresh: Vec<Candidate> = match token.moving_factor {
        MovingFactor::Hotp { .. } => {
            counters(subject).map(|number| candidate(subject, factor(number), number, 0)).collect()
        }
        MovingFactor::Totp { period_s, skew_steps } => {
            let present = time_step(now.unix_ms, period_s.into());
            // A resync may be among what was lost, and with it how far the token is ahead.
            let drift = subject.state.drift_steps.max(DRIFT_FOUND_MAX);
            let first = beyond_floor(now, period_s.into(), skew_steps, [drift; 2]);
            around(present, TOTP_WINDOW)
                .filter(|step| *step >= subject.state.next_factor.max(first))
                .map(|step| {
                    // The second code is the one on the token's display now.
                    let drift = i128::from(step) + 1 - i128::from(present);
                    candidate(subject, factor(step), step, drift as i16)
                })
                .collect()
        }
    };
    repeated.into_iter().chain(fresh).collect()
}

/// Both codes answer the same question.
fn ocra_counters(subject: Subject<'_>, token: &OcraToken, now: &Now, pair: Option<u64>) -> Vec<Candidate> {
    let steps = ocra::steps(token, now);
    let first = ocra::first_step(token, now);
    let is_fresh = move |factor: &Factor| factor.time_step.is_none_or(|step| step >= first);
    let factors =
        |number| steps.iter().map(move |step| (number, Factor { counter: Some(number), time_step: *step }));
    let repeated = pair.into_iter().flat_map(factors);
    let fresh = counters(subject).flat_map(factors);
    repeated
        .map(|(_, factor)| Candidate { factor, verdict: Verdict::Repeated })
        .chain(
            fresh
                .filter(move |(_, factor)| is_fresh(factor))
                .map(|(number, factor)| candidate(subject, factor, number, 0)),
        )
        .collect()
}

fn counters(subject: Subject<'_>) -> impl Iterator<Item = u64> {
    let next = subject.state.next_factor;
    next..next.saturating_add(COUNTER_WINDOW).min(COUNTER_END - 1)
}

fn candidate(subject: Subject<'_>, factor: Factor, first: u64, drift_steps: i16) -> Candidate {
    let state = CredentialState { drift_steps, ..accepted(subject, first.saturating_add(1)) };
    Candidate { factor, verdict: Verdict::Accepted { state, used: None } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::Floor;
    use crate::domain::verification::tests::{Rows, at};

    #[test]
    fn hotp_is_searched_far_ahead_and_both_codes_are_used_up() {
        let rows = Rows::new(MovingFactor::Hotp { look_ahead: 3 }, 7);
        let plan = begin(rows.subject(), &at(0)).unwrap().unwrap();
        assert_eq!(plan.candidates.len(), 1_000);
        let last = plan.candidates.last().unwrap();
        assert_eq!(last.factor.single(), Some(1_006));
        let Verdict::Accepted { state, .. } = &last.verdict else { panic!("not accepted") };
        assert_eq!((state.next_factor, state.last_accepted, state.drift_steps), (1_008, Some(1_007), 0));
    }

    #[test]
    fn steps_whose_acceptance_may_be_forgotten_are_no_first_code() {
        let lost = Now { floor: Floor { lost_unix_ms: 6_000_000, ..Floor::default() }, ..at(6_060) };
        let rows = Rows::new(MovingFactor::Totp { period_s: 60, skew_steps: 1 }, 0);
        let plan = begin(rows.subject(), &lost).unwrap().unwrap();
        assert!(plan.candidates.is_empty(), "the token may have been found as far ahead as a resync can");
        let later = Now { floor: lost.floor, ..at(13_500) };
        let plan = begin(rows.subject(), &later).unwrap().unwrap();
        assert_eq!(plan.candidates.iter().filter_map(|c| c.factor.single()).min(), Some(223));
        let suite = crate::domain::ocra::Suite::parse("OCRA-1:HOTP-SHA1-6:C-QN08-T1M").unwrap();
        let usage = crate::domain::credential::OcraUse::Verify;
        let token = OcraToken { suite, look_ahead: 1, skew_steps: 1, usage, secret: None, pin_hash: None };
        let rows = Rows::of(Kind::Ocra(token), 0);
        let plan = begin(rows.subject(), &lost).unwrap().unwrap();
        assert_eq!(plan.candidates.len(), 1_000);
        assert!(plan.candidates.iter().all(|candidate| candidate.factor.time_step == Some(102)));
    }

    #[test]
    fn the_same_two_codes_again_cost_nothing() {
        let mut rows = Rows::new(MovingFactor::Hotp { look_ahead: 3 }, 7);
        let Verdict::Accepted { state, .. } =
            begin(rows.subject(), &at(0)).unwrap().unwrap().candidates[5].verdict.clone()
        else {
            panic!("not accepted")
        };
        rows.1 = state;
        let again = begin(rows.subject(), &at(0)).unwrap().unwrap().candidates[0].clone();
        assert_eq!(
            again,
            Candidate { factor: Factor { counter: Some(12), time_step: None }, verdict: Verdict::Repeated }
        );
    }

    #[test]
    fn hotp_stops_before_its_last_counter() {
        let rows = Rows::new(MovingFactor::Hotp { look_ahead: 3 }, COUNTER_END - 3);
        let factors: Vec<u64> = begin(rows.subject(), &at(0))
            .unwrap()
            .unwrap()
            .candidates
            .iter()
            .map(|c| c.factor.single().unwrap())
            .collect();
        assert_eq!(factors, [COUNTER_END - 3, COUNTER_END - 2]);
        assert!(
            begin(Rows::new(MovingFactor::Hotp { look_ahead: 3 }, COUNTER_END).subject(), &at(0))
                .unwrap()
                .unwrap()
                .candidates
                .is_empty()
        );
    }

    #[test]
    fn totp_is_searched_on_both_sides_and_the_drift_kept() {
        let rows = Rows::new(MovingFactor::Totp { period_s: 30, skew_steps: 1 }, 60);
        let plan = begin(rows.subject(), &at(3_000)).unwrap().unwrap();
        assert!(plan.candidates.iter().all(|c| (60..=220).contains(&c.factor.single().unwrap())));
        assert_eq!(
            plan.candidates.iter().map(|c| c.factor.single().unwrap()).take(3).collect::<Vec<_>>(),
            [100, 99, 101]
        );
        let ahead = plan.candidates.iter().find(|c| c.factor.single() == Some(150)).unwrap();
        let Verdict::Accepted { state, .. } = &ahead.verdict else { panic!("not accepted") };
        assert_eq!((state.next_factor, state.drift_steps), (152, 51));
    }
}
