//! How often somebody may do something: a rate with a burst of a minute's worth (the generic cell rate algorithm).

use std::num::NonZeroU32;

/// A minute in microseconds, in which this is reckoned: a thousand a minute come 60 ms apart, a million 60 µs.
const MINUTE_US: u64 = 60_000_000;

/// So many a minute: at once, or spread over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// From one to the next, at an even pace, in microseconds.
    pace_us: u64,
}

/// What was done so far: until when an even pace would have taken for it, in microseconds since boot. All of it is past
/// once that moment is: then it is as good as nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent(u64);

impl Spent {
    /// Whether nothing of it counts any more.
    pub fn is_past(self, boot_ms: u64) -> bool {
        self.0 <= boot_us(boot_ms)
    }
}

impl Rate {
    /// So many a minute.
    pub fn per_minute(count: NonZeroU32) -> Self {
        // Beyond a million a second it is as good as none.
        Self { pace_us: (MINUTE_US / u64::from(count.get())).max(1) }
    }

    /// One more, now.
    ///
    /// # Errors
    /// It is one too many: the milliseconds, at least 1, until it is none.
    pub fn take(self, spent: Spent, boot_ms: u64) -> Result<Spent, u64> {
        let now_us = boot_us(boot_ms);
        let next_us = spent.0.max(now_us).saturating_add(self.pace_us);
        match next_us.saturating_sub(now_us.saturating_add(MINUTE_US)) {
            0 => Ok(Spent(next_us)),
            too_early_us => Err(too_early_us.div_ceil(1_000)),
        }
    }
}

fn boot_us(boot_ms: u64) -> u64 {
    boot_ms.saturating_mul(1_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(count: u32) -> Rate {
        Rate::per_minute(NonZeroU32::new(count).unwrap())
    }

    #[test]
    fn a_minutes_worth_may_come_at_once_and_then_one_at_a_time() {
        for count in [1, 2, 60, 1_000, 60_000] {
            let mut spent = Spent::default();
            for _ in 0..count {
                spent = rate(count).take(spent, 5_000).unwrap();
            }
            let pace_ms = 60_000u64.div_ceil(count.into());
            assert_eq!(rate(count).take(spent, 5_000), Err(pace_ms), "{count}");
            assert_eq!(rate(count).take(spent, 5_000 + pace_ms - 1), Err(1));
            spent = rate(count).take(spent, 5_000 + pace_ms).unwrap();
            assert!(rate(count).take(spent, 5_000 + pace_ms).is_err());
            assert!(!spent.is_past(5_000 + 59_999) && spent.is_past(5_000 + 60_000 + pace_ms));
        }
    }

    proptest! {
        /// However they come: in no minute twice as many as are allowed, and who is told to wait that long need not
        /// wait again.
        #[test]
        fn no_minute_has_two_minutes_worth(count in 1u32..100, waits_ms in prop::collection::vec(0u64..3_000, 1..400)) {
            let (mut now_ms, mut spent, mut taken_ms) = (1_000, Spent::default(), Vec::new());
            for wait_ms in waits_ms {
                now_ms += wait_ms;
                match rate(count).take(spent, now_ms) {
                    Ok(next) => {
                        spent = next;
                        taken_ms.push(now_ms);
                    }
                    Err(ms) => {
                        prop_assert!((1..=60_000).contains(&ms));
                        prop_assert!(rate(count).take(spent, now_ms + ms).is_ok());
                        prop_assert!(rate(count).take(spent, now_ms + ms - 1).is_err());
                    }
                }
            }
            for from_ms in &taken_ms {
                let within = taken_ms.iter().filter(|ms| (*from_ms..from_ms + 60_000).contains(ms)).count();
                prop_assert!(within <= 2 * count as usize, "{within} of {count}");
            }
        }

        #[test]
        fn no_time_brings_it_down(count in 1u32.., spent: u64, boot_ms: u64) {
            let _ = rate(count).take(Spent(spent), boot_ms);
        }
    }
}
