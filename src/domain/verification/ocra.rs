//! One code of an OCRA token against a question.
//!
//! With C, a code is used up as HOTP's are: the counter moves on. Without C, the input itself (question,
//! session, time step) is remembered, and its code is a repeat from then on.

use super::{
    Candidate, Factor, Plan, Refusal, Subject, Verdict, accepted, admit, around, counters, plan, succeeded,
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
    Ok(plan(subject, now, repeated.into_iter().chain(fresh).collect()))
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
    use std::collections::HashSet;

    use super::*;
    use crate::domain::credential::{Kind, OcraUse};
    use crate::domain::lockout::Locked;
    use crate::domain::ocra::Suite;
    use crate::domain::resync;
    use crate::domain::verification::tests::{Rows, at};
    use proptest::prelude::*;

    const PLAIN: &str = "OCRA-1:HOTP-SHA1-6:QN08";
    const TIMED: &str = "OCRA-1:HOTP-SHA1-6:QN08-T1M";
    const COUNTED: &str = "OCRA-1:HOTP-SHA1-6:C-QN08";
    const BOTH: &str = "OCRA-1:HOTP-SHA1-6:C-QN08-T1M";

    fn token(suite: &str) -> OcraToken {
        OcraToken {
            suite: Suite::parse(suite).unwrap(),
            look_ahead: 2,
            skew_steps: 1,
            usage: OcraUse::Verify,
            secret: None,
            pin_hash: None,
        }
    }

    fn rows(suite: &str) -> Rows {
        Rows::of(Kind::Ocra(token(suite)), 0)
    }

    fn ask(suite: &str, question: &str) -> Challenge {
        Challenge::new(&Suite::parse(suite).unwrap(), question, None).unwrap()
    }

    fn plan_of(rows: &Rows, suite: &str, question: &str, used: &[[u8; 32]], now: &Now) -> Vec<Candidate> {
        begin(rows.subject(), &token(suite), &ask(suite, question), used, now).unwrap().candidates
    }

    fn factors(candidates: &[Candidate]) -> Vec<(Option<u64>, Option<u64>, bool)> {
        let repeated = |candidate: &Candidate| candidate.verdict == Verdict::Repeated;
        candidates.iter().map(|c| (c.factor.counter, c.factor.time_step, repeated(c))).collect()
    }

    #[test]
    fn a_counter_is_looked_ahead_for_at_each_time_step_and_the_last_one_is_a_repeat() {
        let mut rows = rows(BOTH);
        (rows.1.next_factor, rows.1.last_accepted) = (7, Some(6));
        let now = at(600);
        let of = |counter, repeated| [10, 9, 11].map(|step| (Some(counter), Some(step), repeated)).to_vec();
        let expected = [of(6, true), of(7, false), of(8, false), of(9, false)].concat();
        assert_eq!(factors(&plan_of(&rows, BOTH, "1", &[], &now)), expected);
        assert!(inputs(&token(BOTH), &ask(BOTH, "1"), &now).is_empty(), "the counter is enough");
    }

    #[test]
    fn without_a_counter_the_input_is_remembered() {
        let rows = rows(TIMED);
        let now = at(600);
        let known = inputs(&token(TIMED), &ask(TIMED, "1"), &now);
        let fresh = plan_of(&rows, TIMED, "1", &[], &now);
        assert_eq!(factors(&fresh), [10, 9, 11].map(|step| (None, Some(step), false)));
        for (candidate, fingerprint) in fresh.iter().zip(&known) {
            let Verdict::Accepted { state, used: Some(used) } = &candidate.verdict else {
                panic!("not accepted")
            };
            assert_eq!((state.next_factor, used.fingerprint), (0, *fingerprint));
            let reach = candidate.factor.time_step.unwrap() + 1;
            assert_eq!(used.expires_unix_ms, Some((reach + 1) * 60_000), "one step of skew, and its own end");
        }
        let again = plan_of(&rows, TIMED, "1", &known[..1], &now);
        assert_eq!(
            factors(&again),
            [(None, Some(10), true), (None, Some(9), false), (None, Some(11), false)]
        );
        assert_eq!(factors(&plan_of(&rows, TIMED, "2", &known, &now)), factors(&fresh), "another question");
    }

    #[test]
    fn without_counter_and_time_an_answer_is_good_once_for_all() {
        let rows = rows(PLAIN);
        let known = inputs(&token(PLAIN), &ask(PLAIN, "00000001"), &at(0));
        let fresh = plan_of(&rows, PLAIN, "00000001", &[], &at(0));
        let Verdict::Accepted { used: Some(used), .. } = &fresh[0].verdict else { panic!("not accepted") };
        assert_eq!((fresh.len(), used.time_step, used.expires_unix_ms), (1, None, None));
        let collides = plan_of(&rows, PLAIN, "00000016", &known, &at(1_000_000));
        assert_eq!(factors(&collides), [(None, None, true)]);
    }

    #[test]
    fn what_was_forgotten_lies_before_the_mark() {
        let mut rows = rows(TIMED);
        rows.1.next_factor = 11;
        assert_eq!(factors(&plan_of(&rows, TIMED, "1", &[], &at(600))), [(None, Some(11), false)]);
        assert!(plan_of(&rows, TIMED, "1", &[], &at(0)).is_empty(), "a clock set back revives nothing");
    }

    #[test]
    fn an_untrusted_clock_stops_what_depends_on_it() {
        let stepped = Now { trusted: false, ..at(600) };
        let begun =
            |suite| begin(rows(suite).subject(), &token(suite), &ask(suite, "1"), &[], &stepped).err();
        assert_eq!([begun(TIMED), begun(BOTH)], [Some(Refusal::ClockUntrusted); 2]);
        assert_eq!([begun(PLAIN), begun(COUNTED)], [None, None]);
    }

    #[test]
    fn five_misses_lock() {
        let mut rows = rows(PLAIN);
        for _ in 0..5 {
            let plan = begin(rows.subject(), &token(PLAIN), &ask(PLAIN, "1"), &[], &at(0)).unwrap();
            (rows.1, rows.2) = (plan.missed_state, plan.missed_account);
        }
        let refused = begin(rows.subject(), &token(PLAIN), &ask(PLAIN, "1"), &[], &at(0)).err();
        assert_eq!(refused, Some(Refusal::Locked(Locked { retry_after_s: Some(900) })));
    }

    #[test]
    fn a_resync_is_for_counters() {
        let mut ran_away = rows(BOTH);
        ran_away.1.last_accepted = Some(5);
        let plan = resync::begin(ran_away.subject(), &at(600)).unwrap().unwrap();
        assert_eq!(plan.candidates.len(), 3 + 3_000);
        assert_eq!(factors(&plan.candidates)[2..4], [(Some(4), Some(11), true), (Some(0), Some(10), false)]);
        let successors: Vec<_> = plan.candidates[3].factor.successors().collect();
        let next = |time_step| Factor { counter: Some(1), time_step: Some(time_step) };
        assert_eq!(successors, [next(10), next(11)]);
        for suite in [PLAIN, TIMED] {
            assert!(resync::begin(rows(suite).subject(), &at(600)).unwrap().is_none());
        }
    }

    proptest! {
        /// However questions, waits, clock changes and prunings follow each other: no input twice.
        #[test]
        fn no_input_is_ever_accepted_twice(
            suite in prop::sample::select(vec![PLAIN, TIMED, COUNTED, BOTH]),
            steps in prop::collection::vec((0usize..4, 0usize..12, -200i64..400, any::<bool>()), 1..100),
        ) {
            let mut rows = rows(suite);
            let mut kept: Vec<UsedInput> = Vec::new();
            let mut accepted = HashSet::new();
            let mut unix_s = 30_000u64;
            for (question, pick, wait_s, prune) in steps {
                unix_s = unix_s.saturating_add_signed(wait_s);
                let now = at(unix_s);
                if prune {
                    // As `service/pruning.rs` does it: the mark moves beyond what goes.
                    let (gone, rest): (Vec<_>, Vec<_>) =
                        kept.into_iter().partition(|input| input.expires_unix_ms.is_some_and(|ms| ms <= now.unix_ms));
                    kept = rest;
                    let mark = gone.iter().filter_map(|input| input.time_step).max().map_or(0, |step| step + 1);
                    rows.1.next_factor = rows.1.next_factor.max(mark);
                }
                let question = ["1", "10", "00000016", "7"][question];
                let challenge = ask(suite, question);
                let known: Vec<_> = kept.iter().map(|input| input.fingerprint).collect();
                let plan = begin(rows.subject(), &token(suite), &challenge, &known, &now).unwrap();
                let Some(Candidate { factor, verdict: Verdict::Accepted { state, used } }) =
                    plan.candidates.into_iter().nth(pick)
                else {
                    continue;
                };
                // A counter is never used for any question again.
                let input = if factor.counter.is_some() { [0; 32] } else { challenge.fingerprint(None) };
                let step = if factor.counter.is_some() { None } else { factor.time_step };
                prop_assert!(accepted.insert((factor.counter, step, input)));
                rows.1 = state;
                kept.extend(used.map(|used| *used));
            }
        }
    }
}
