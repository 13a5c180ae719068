//! One code of an OCRA token against a question.
//!
//! With C, a code is used up as HOTP's are: the counter moves on. Without C, the input itself (question,
//! session, time step) is remembered, and its code is a repeat from then on.

use super::{
    Candidate, Factor, Plan, Refusal, Subject, Verdict, accepted, admit, around, beyond_floor, counters,
    plan, succeeded,
};
use crate::domain::credential::{OcraToken, UsedInput};
use crate::domain::ocra::Challenge;
use crate::domain::otp::time_step;
use crate::domain::time::Now;

/// The time steps that could be right now, the present one first; one `None` for a suite without T.
pub fn steps(token: &OcraToken, now: &Now) -> Vec<Option<u64>> {
    match token.suite.time_step_s() {
        None => vec![None],
        Some(period_s) => {
            around(time_step(now.unix_ms, period_s), token.skew_steps.into()).map(Some).collect()
        }
    }
}

/// The first time step whose code cannot have been accepted and forgotten; 0 for a suite without T.
pub fn first_step(token: &OcraToken, now: &Now) -> u64 {
    token.suite.time_step_s().map_or(0, |period_s| beyond_floor(now, period_s, token.skew_steps, [0; 2]))
}

/// The inputs that [`begin`] has to know of whether they were accepted before; none for a suite with C.
pub fn inputs(token: &OcraToken, challenge: &Challenge, now: &Now) -> Vec<[u8; 32]> {
    if token.suite.has_counter() {
        return Vec::new();
    }
    steps(token, now).into_iter().map(|step| challenge.fingerprint(step)).collect()
}

/// Plans the check of one code. `used` are those of [`inputs`] that were accepted before.
///
/// What was accepted before is tried first, as a repeat.
///
/// # Errors
/// A [`Refusal`] if the credential may not be tried.
pub fn begin(
    subject: Subject<'_>,
    token: &OcraToken,
    challenge: &Challenge,
    used: &[[u8; 32]],
    now: &Now,
) -> Result<Plan, Refusal> {
    admit(subject, now)?;
    let steps = steps(token, now);
    let (repeated, fresh) = if token.suite.has_counter() {
        by_counter(subject, token, &steps)
    } else {
        by_input(subject, token, challenge, used, &steps)
    };
    let first = first_step(token, now);
    let is_lost = |candidate: &Candidate| candidate.factor.time_step.is_some_and(|step| step < first);
    let (mut maybe_used, fresh): (Vec<_>, Vec<_>) = fresh.into_iter().partition(is_lost);
    maybe_used.iter_mut().for_each(|candidate| candidate.verdict = Verdict::Repeated);
    Ok(plan(subject, now, repeated.into_iter().chain(maybe_used).chain(fresh).collect()))
}

fn by_counter(
    subject: Subject<'_>,
    token: &OcraToken,
    steps: &[Option<u64>],
) -> (Vec<Candidate>, Vec<Candidate>) {
    let candidates = |counter: u64, verdict: Verdict| {
        let factor = move |step: &Option<u64>| Factor { counter: Some(counter), time_step: *step };
        steps.iter().map(move |step| Candidate { factor: factor(step), verdict: verdict.clone() })
    };
    let repeated =
        subject.state.last_accepted.into_iter().flat_map(|last| candidates(last, Verdict::Repeated));
    let fresh = counters(subject.state.next_factor, token.look_ahead).flat_map(|counter| {
        candidates(counter, Verdict::Accepted { state: accepted(subject, counter), used: None })
    });
    (repeated.collect(), fresh.collect())
}

fn by_input(
    subject: Subject<'_>,
    token: &OcraToken,
    challenge: &Challenge,
    used: &[[u8; 32]],
    steps: &[Option<u64>],
) -> (Vec<Candidate>, Vec<Candidate>) {
    // What was forgotten, because its time was over, lies before the mark.
    let beyond_the_mark = |step: &&Option<u64>| step.is_none_or(|step| step >= subject.state.next_factor);
    let candidates = steps.iter().filter(beyond_the_mark).map(|step| {
        let fingerprint = challenge.fingerprint(*step);
        let verdict = if used.contains(&fingerprint) {
            Verdict::Repeated
        } else {
            let used = Some(Box::new(used_input(subject, token, fingerprint, *step)));
            Verdict::Accepted { state: succeeded(subject), used }
        };
        Candidate { factor: Factor { counter: None, time_step: *step }, verdict }
    });
    candidates.partition(|candidate| candidate.verdict == Verdict::Repeated)
}

fn used_input(
    subject: Subject<'_>,
    token: &OcraToken,
    fingerprint: [u8; 32],
    time_step: Option<u64>,
) -> UsedInput {
    // The last present step from which this one is within reach ends here.
    let expires_unix_ms = token.suite.time_step_s().zip(time_step).map(|(period_s, step)| {
        let steps = step.saturating_add(u64::from(token.skew_steps)).saturating_add(1);
        steps.saturating_mul(u64::from(period_s)).saturating_mul(1_000)
    });
    UsedInput {
        id: subject.credential.id,
        fingerprint,
        tenant: subject.credential.tenant.clone(),
        version: 1,
        time_step,
        expires_unix_ms,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::super::tests::{Rows, at};
    use super::*;
    use crate::domain::credential::{Kind, OcraUse};
    use crate::domain::ocra::Suite;
    use crate::domain::resync;
    use crate::domain::time::Floor;
    use proptest::prelude::*;

    fn token(suite: &str, skew_steps: u8) -> OcraToken {
        let suite = Suite::parse(suite).unwrap();
        OcraToken { suite, look_ahead: 1, skew_steps, usage: OcraUse::Verify, secret: None, pin_hash: None }
    }

    fn challenge(token: &OcraToken, question: &str) -> Challenge {
        Challenge::new(&token.suite, question, None).unwrap()
    }

    fn factors(plan: &Plan) -> Vec<(Option<u64>, Option<u64>, bool)> {
        let repeated = |candidate: &Candidate| candidate.verdict == Verdict::Repeated;
        let of = |c: &Candidate| (c.factor.counter, c.factor.time_step, repeated(c));
        plan.candidates.iter().map(of).collect()
    }

    #[test]
    fn every_counter_is_tried_in_every_step_and_the_last_one_first_as_a_repeat() {
        let token = token("OCRA-1:HOTP-SHA1-6:C-QN08-T1M", 1);
        let mut rows = Rows::of(Kind::Ocra(token.clone()), 7);
        let (asked, now) = (challenge(&token, "1"), at(6_000));
        let fresh = |counter, steps: [u64; 3]| steps.map(|step| (Some(counter), Some(step), false));
        let steps = [100, 99, 101];
        assert_eq!(inputs(&token, &asked, &now), [[0; 32]; 0]);
        let plan = begin(rows.subject(), &token, &asked, &[], &now).unwrap();
        assert_eq!(factors(&plan), [fresh(7, steps), fresh(8, steps)].concat());
        let Verdict::Accepted { state, used: None } = plan.candidates[4].verdict.clone() else { panic!() };
        assert_eq!((state.next_factor, state.last_accepted), (9, Some(8)));
        rows.1 = state;
        let plan = begin(rows.subject(), &token, &asked, &[], &now).unwrap();
        let repeats = steps.map(|step| (Some(8), Some(step), true));
        assert_eq!(factors(&plan), [repeats, fresh(9, steps), fresh(10, steps)].concat());
    }

    #[test]
    fn what_was_used_is_tried_first_and_nothing_before_the_mark() {
        let token = token("OCRA-1:HOTP-SHA1-6:QN08-T1M", 1);
        let mut rows = Rows::of(Kind::Ocra(token.clone()), 0);
        let (asked, now) = (challenge(&token, "1"), at(6_000));
        let used = [asked.fingerprint(Some(101)), challenge(&token, "2").fingerprint(Some(99))];
        let plan = begin(rows.subject(), &token, &asked, &used, &now).unwrap();
        let steps = [(None, Some(101), true), (None, Some(100), false), (None, Some(99), false)];
        assert_eq!(factors(&plan), steps);
        rows.1 = rows.1.beyond(99).unwrap();
        assert_eq!(rows.1.beyond(99), None);
        let plan = begin(rows.subject(), &token, &asked, &used, &now).unwrap();
        assert_eq!(factors(&plan), steps[..2]);
        let Verdict::Accepted { state, used: Some(used) } = plan.candidates[1].verdict.clone() else {
            panic!()
        };
        assert_eq!((state.next_factor, state.last_accepted), (100, None));
        // Step 101 is the last present one from which step 100 is within reach.
        assert_eq!((used.time_step, used.expires_unix_ms), (Some(100), Some(102 * 60_000)));
        let Err(Refusal::ClockUntrusted) =
            begin(rows.subject(), &token, &asked, &[], &Now { trusted: false, ..now })
        else {
            panic!("by a clock that stepped")
        };
    }

    #[test]
    fn a_step_whose_acceptance_may_be_forgotten_counts_as_used() {
        let lost = Now { floor: Floor { lost_unix_ms: 6_000_000, ..Floor::default() }, ..at(6_060) };
        for (suite, counter) in
            [("OCRA-1:HOTP-SHA1-6:QN08-T1M", None), ("OCRA-1:HOTP-SHA1-6:C-QN08-T1M", Some(0))]
        {
            let token = OcraToken { look_ahead: 0, ..token(suite, 1) };
            let rows = Rows::of(Kind::Ocra(token.clone()), 0);
            let asked = challenge(&token, "1");
            let plan = begin(rows.subject(), &token, &asked, &[], &lost).unwrap();
            let expected =
                [(101, true), (100, true), (102, false)].map(|(step, used)| (counter, Some(step), used));
            assert_eq!(factors(&plan), expected, "{suite}");
        }
        let token = token("OCRA-1:HOTP-SHA1-6:QN08", 0);
        let rows = Rows::of(Kind::Ocra(token.clone()), 0);
        let plan = begin(rows.subject(), &token, &challenge(&token, "1"), &[], &lost).unwrap();
        assert_eq!(factors(&plan), [(None, None, false)], "no clock tells");
    }

    #[test]
    fn without_counter_and_time_there_is_one_candidate_for_ever() {
        let token = token("OCRA-1:HOTP-SHA1-6:QN08", 0);
        let rows = Rows::of(Kind::Ocra(token.clone()), 0);
        let asked = challenge(&token, "1");
        let plan = begin(rows.subject(), &token, &asked, &[], &Now { trusted: false, ..at(0) }).unwrap();
        let Verdict::Accepted { used: Some(used), .. } = plan.candidates[0].verdict.clone() else { panic!() };
        assert_eq!((used.time_step, used.expires_unix_ms), (None, None));
        let known = inputs(&token, &asked, &at(u64::MAX / 1_000));
        assert_eq!(known, [used.fingerprint]);
        let plan = begin(rows.subject(), &token, &asked, &known, &at(u64::MAX / 1_000)).unwrap();
        assert_eq!(factors(&plan), [(None, None, true)]);
    }

    #[test]
    fn a_resync_is_for_counters() {
        let counting = token("OCRA-1:HOTP-SHA1-6:C-QN08-T1M", 1);
        let mut rows = Rows::of(Kind::Ocra(counting), 0);
        rows.1.last_accepted = Some(5);
        let plan = resync::begin(rows.subject(), &at(600)).unwrap().unwrap();
        assert_eq!(plan.candidates.len(), 3 + 3_000);
        assert_eq!(factors(&plan)[2..4], [(Some(4), Some(11), true), (Some(0), Some(10), false)]);
        let successors: Vec<_> = plan.candidates[3].factor.successors().collect();
        let next = |time_step| Factor { counter: Some(1), time_step: Some(time_step) };
        assert_eq!(successors, [next(10), next(11)]);
        for suite in ["OCRA-1:HOTP-SHA1-6:QN08", "OCRA-1:HOTP-SHA1-6:QN08-T1M"] {
            let rows = Rows::of(Kind::Ocra(token(suite, 1)), 0);
            assert!(resync::begin(rows.subject(), &at(600)).unwrap().is_none());
        }
    }

    proptest! {
        /// However answers, waits, clock changes and prunings follow each other: no input twice.
        #[test]
        fn no_input_is_ever_accepted_twice(
            skew in 0u8..=2,
            acts in prop::collection::vec((0usize..6, 0usize..5, -400i64..400), 1..200),
        ) {
            let token = token("OCRA-1:HOTP-SHA1-6:QN08-T1M", skew);
            let mut rows = Rows::of(Kind::Ocra(token.clone()), 0);
            let mut remembered: BTreeMap<[u8; 32], UsedInput> = BTreeMap::new();
            let mut ever = HashSet::new();
            let mut unix_s = 60_000u64;
            for (which, pick, wait_s) in acts {
                unix_s = unix_s.saturating_add_signed(wait_s);
                let now = at(unix_s);
                if which == 5 {
                    let over = remembered.extract_if(.., |_, input| input.expires_unix_ms.unwrap() <= now.unix_ms);
                    let highest = over.filter_map(|(_, input)| input.time_step).max();
                    rows.1 = highest.and_then(|step| rows.1.beyond(step)).unwrap_or(rows.1);
                    continue;
                }
                let asked = challenge(&token, ["1", "16", "2", "3", "5"][which]);
                let known = inputs(&token, &asked, &now);
                let used: Vec<_> = known.into_iter().filter(|known| remembered.contains_key(known)).collect();
                let plan = begin(rows.subject(), &token, &asked, &used, &now).unwrap();
                let Some(Candidate { verdict: Verdict::Accepted { state, used }, .. }) =
                    plan.candidates.into_iter().nth(pick)
                else {
                    continue;
                };
                let used = used.unwrap();
                prop_assert!(ever.insert(used.fingerprint));
                remembered.insert(used.fingerprint, *used);
                rows.1 = state;
            }
        }
    }
}
