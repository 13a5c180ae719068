//! How far an entry is, and whether it comes in time.

use super::{EntryOrder, Interval, MultiTerminal, Round};
use crate::domain::time::Now;

impl MultiTerminal {
    /// Whether the next entry is the last one of its round.
    pub fn is_last(&self, round: &Round) -> bool {
        usize::from(round.entered).saturating_add(1) >= self.terminals.len()
    }

    /// Whether all there is to enter is one number.
    pub fn is_one_entry(&self) -> bool {
        self.rule.order == EntryOrder::Target
    }

    /// Whether an entry that arrives now, after those of `round`, comes in time: before the window's end, and as long
    /// after the one before it as the rule says.
    pub fn is_in_time(&self, round: &Round, now: &Now) -> bool {
        let in_interval = match self.rule.interval {
            Some(interval) if round.entered > 0 => {
                round.run == Some(now.run) && interval.holds(now.boot_ms.checked_sub(round.arrived_boot_ms))
            }
            _ => true,
        };
        self.is_in_window(now) && in_interval
    }

    /// Whether all codes together would come in time.
    pub fn is_in_window(&self, now: &Now) -> bool {
        self.window.is_none_or(|window| window.left_ms(now) > 0)
    }

    /// What `round` becomes with an entry that arrives now. Of what was entered nothing is kept.
    pub fn entered(&self, round: &Round, is_right: bool, now: &Now) -> Round {
        let is_timed = self.window.is_some() || self.rule.interval.is_some();
        Round {
            entered: round.entered.saturating_add(1),
            wrong: round.wrong || !is_right,
            arrived_boot_ms: now.boot_ms,
            run: is_timed.then_some(now.run),
        }
    }
}

impl Interval {
    /// Whether so much time between two arrivals is right.
    fn holds(self, passed_ms: Option<u64>) -> bool {
        let (interval_ms, tolerance_ms) =
            (u64::from(self.interval_s) * 1_000, u64::from(self.tolerance_s) * 1_000);
        passed_ms.is_some_and(|passed_ms| passed_ms.abs_diff(interval_ms) <= tolerance_ms)
    }

    /// How many seconds so many entries take at least.
    pub fn least_s(self, entries: usize) -> u64 {
        let gaps = u64::try_from(entries.saturating_sub(1)).unwrap_or(u64::MAX);
        gaps.saturating_mul(u64::from(self.interval_s.saturating_sub(self.tolerance_s)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{EntryRule, FrozenTerminal};
    use super::*;
    use crate::domain::id::CredentialId;
    use crate::domain::otp::Digits;
    use crate::domain::time::{BootId, Deadline, RunId};

    const RUN: RunId = RunId([1; 16]);

    fn at(ms: u64) -> Now {
        Now {
            unix_ms: 1_000_000 + ms,
            boot_ms: ms,
            boot_id: BootId([1; 16]),
            run: RUN,
            trusted: true,
            floor: Default::default(),
        }
    }

    fn method(terminals: u8, window_s: Option<u64>, interval: Option<(u16, u16)>) -> MultiTerminal {
        let frozen = |number| FrozenTerminal {
            credential: CredentialId::from_random([number; 16]),
            address: format!("+{number}").try_into().unwrap(),
        };
        let interval = interval.map(|(interval_s, tolerance_s)| Interval { interval_s, tolerance_s });
        MultiTerminal {
            terminals: (1..=terminals).map(frozen).collect(),
            rule: EntryRule { order: EntryOrder::PresetOrder, interval },
            digits: Digits::default(),
            generation: 1,
            window: window_s.map(|s| Deadline::after(&at(0), s * 1_000)),
        }
    }

    /// Whether a round of right codes at these times is right in the end.
    fn is_right(method: &MultiTerminal, arrivals_ms: &[u64]) -> bool {
        let mut round = method.begin(RUN);
        for (number, ms) in (1..).zip(arrivals_ms) {
            assert_eq!(method.is_last(&round), number == method.terminals.len());
            round = method.entered(&round, method.is_in_time(&round, &at(*ms)), &at(*ms));
        }
        !round.wrong
    }

    #[test]
    fn without_times_any_time_is_right() {
        assert!(is_right(&method(3, None, None), &[0, 0, 9_000_000]));
    }

    #[test]
    fn a_window_ends_by_either_clock_and_before_its_last_millisecond_is_over() {
        let timed = method(2, Some(60), None);
        assert!(is_right(&timed, &[0, 59_999]));
        for late in [[0, 60_000], [60_000, 60_001], [0, u64::MAX / 2]] {
            assert!(!is_right(&timed, &late), "{late:?}");
        }
        for now in [Now { unix_ms: 1_060_000, ..at(0) }, Now { unix_ms: 1_000_000, ..at(60_000) }] {
            assert!(!timed.is_in_window(&now));
        }
    }

    #[test]
    fn arrivals_are_as_far_apart_as_the_rule_says() {
        let timed = method(3, None, Some((10, 2)));
        for right in [[0, 10_000, 20_000], [500_000, 508_000, 520_000], [7, 12_007, 20_007]] {
            assert!(is_right(&timed, &right), "{right:?}");
        }
        for wrong in
            [[0, 7_999, 17_999], [0, 12_001, 22_001], [0, 10_000, 17_999], [0, 10_000, 22_001], [0, 0, 0]]
        {
            assert!(!is_right(&timed, &wrong), "{wrong:?}");
        }
        // By the time since boot: the wall clock may be slewed meanwhile.
        let round = timed.entered(&timed.begin(RUN), true, &at(0));
        assert!(timed.is_in_time(&round, &Now { unix_ms: 0, ..at(10_000) }));
        assert!(!timed.is_in_time(&round, &Now { run: RunId([2; 16]), ..at(10_000) }));
        let later = timed.entered(&timed.begin(RUN), true, &at(20_000));
        assert!(!timed.is_in_time(&later, &at(10_000)), "nothing arrives before the one before it");
    }

    #[test]
    fn both_times_have_to_be_kept() {
        let timed = method(3, Some(21), Some((10, 1)));
        assert!(is_right(&timed, &[0, 10_000, 20_000]));
        assert!(!is_right(&timed, &[1_001, 11_001, 21_001]));
        assert!(!is_right(&timed, &[0, 5_000, 15_000]));
    }

    #[test]
    fn a_run_that_ends_cuts_off_what_is_being_measured_and_nothing_else() {
        let other = Now { run: RunId([2; 16]), ..at(0) };
        let after_one = |method: &MultiTerminal| method.entered(&method.begin(RUN), true, &at(0));
        let plain = method(2, None, None);
        assert!(!plain.begin(RUN).is_interrupted(&other) && !after_one(&plain).is_interrupted(&other));
        let interval = method(2, None, Some((10, 2)));
        assert!(!interval.begin(RUN).is_interrupted(&other), "nothing is measured yet");
        assert!(after_one(&interval).is_interrupted(&other));
        let window = method(2, Some(60), None);
        assert!(window.begin(RUN).is_interrupted(&other) && after_one(&window).is_interrupted(&other));
        assert!(!window.begin(RUN).is_interrupted(&at(9)) && !after_one(&window).is_interrupted(&at(9)));
    }

    #[test]
    fn a_rule_takes_its_time() {
        let least = |interval_s, tolerance_s, entries| Interval { interval_s, tolerance_s }.least_s(entries);
        assert_eq!(least(10, 2, 3), 16);
        assert_eq!(least(10, 10, 8), 0);
        assert_eq!(least(600, 1, 8), 599 * 7);
    }

    proptest! {
        /// What was wrong stays wrong to the end of its round, wherever it was.
        #[test]
        fn one_wrong_entry_is_enough(terminals in 2u8..=8, right in prop::collection::vec(any::<bool>(), 8)) {
            let method = method(terminals, None, None);
            let mut round = method.begin(RUN);
            for is_right in &right[..terminals.into()] {
                round = method.entered(&round, *is_right, &at(0));
            }
            prop_assert_eq!(round.wrong, right[..terminals.into()].contains(&false));
            prop_assert_eq!(round.entered, terminals);
        }

        #[test]
        fn a_gap_is_right_exactly_within_its_tolerance(
            interval_s in 1u16..=600,
            tolerance in 1u16..=600,
            gap_ms in 0u64..1_300_000,
        ) {
            let tolerance_s = tolerance.min(interval_s);
            let timed = method(2, None, Some((interval_s, tolerance_s)));
            let (low, high) = (u64::from(interval_s - tolerance_s), u64::from(interval_s + tolerance_s));
            let expected = (low * 1_000..=high * 1_000).contains(&gap_ms);
            prop_assert_eq!(is_right(&timed, &[5, 5 + gap_ms]), expected);
        }
    }
}
