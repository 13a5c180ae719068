//! How many guesses anybody gets: one rule for a credential and for an account.

use serde::{Deserialize, Serialize};

use super::time::{Deadline, Now};

/// Every so many failures lock.
pub const FAILURES_PER_LOCK: u32 = 5;
/// So many failures without a success lock until somebody unlocks.
pub const FAILURES_UNTIL_UNLOCK: u32 = 100;
/// The first lock, in milliseconds; each further one is twice as long.
pub const FIRST_LOCK_MS: u64 = 15 * 60 * 1_000;
/// The longest lock that ends by itself, in milliseconds.
pub const LONGEST_LOCK_MS: u64 = 24 * 60 * 60 * 1_000;

/// A lock, and when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lock {
    /// Ends by itself.
    Until(Deadline),
    /// Ends by `/unlock` only.
    UntilUnlocked,
}

/// A lock that holds now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locked {
    /// Whole seconds until it ends by itself, at least 1; `None` where only `/unlock` ends it.
    pub retry_after_s: Option<u64>,
}

impl Locked {
    /// The one of two that lasts longer.
    pub fn longer(self, other: Self) -> Self {
        match (self.retry_after_s, other.retry_after_s) {
            (Some(a), Some(b)) => Self { retry_after_s: Some(a.max(b)) },
            _ => Self { retry_after_s: None },
        }
    }
}

/// Failures since the last success, and the lock they led to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempts {
    /// Failures since the last success (of an account: the sum of its credentials' shares).
    pub failures: u32,
    /// The latest lock; it may have ended.
    pub lock: Option<Lock>,
}

impl Attempts {
    /// The lock that holds now, if any.
    pub fn locked(&self, now: &Now) -> Option<Locked> {
        match self.lock? {
            Lock::UntilUnlocked => Some(Locked { retry_after_s: None }),
            Lock::Until(deadline) => match deadline.remaining_ms(now) {
                0 => None,
                ms => Some(Locked { retry_after_s: Some(ms.div_ceil(1_000)) }),
            },
        }
    }

    /// One failure more. Reaching a multiple of [`FAILURES_PER_LOCK`] locks.
    pub fn charge(&self, now: &Now) -> Self {
        let failures = self.failures.saturating_add(1);
        let lock = if failures >= FAILURES_UNTIL_UNLOCK {
            Some(Lock::UntilUnlocked)
        } else if failures.is_multiple_of(FAILURES_PER_LOCK) {
            let doublings = failures / FAILURES_PER_LOCK - 1;
            let duration_ms = FIRST_LOCK_MS
                .saturating_mul(1u64.checked_shl(doublings).unwrap_or(u64::MAX))
                .min(LONGEST_LOCK_MS);
            Some(Lock::Until(Deadline::after(now, duration_ms)))
        } else {
            self.lock.filter(|_| self.locked(now).is_some())
        };
        Self { failures, lock }
    }

    /// A success gives `share` failures back. Only an unlocked one can succeed, so no lock is left.
    pub fn refund(&self, share: u32) -> Self {
        Self { failures: self.failures.saturating_sub(share), lock: None }
    }

    /// Failures left before the next lock; zero while one holds.
    pub fn remaining(&self, now: &Now) -> u32 {
        if self.locked(now).is_some() {
            return 0;
        }
        FAILURES_PER_LOCK - self.failures % FAILURES_PER_LOCK
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::{BootId, RunId};

    fn at(ms: u64) -> Now {
        Now {
            unix_ms: ms,
            boot_ms: ms,
            boot_id: BootId([0; 16]),
            run: RunId([0; 16]),
            trusted: true,
            floor: Default::default(),
        }
    }

    /// Charges `count` failures one after the other, waiting out each lock.
    fn failures(count: u32) -> (Attempts, Now) {
        let (mut attempts, mut now) = (Attempts::default(), at(1_000_000));
        for _ in 0..count {
            if let Some(Locked { retry_after_s: Some(seconds) }) = attempts.locked(&now) {
                now = at(now.unix_ms + seconds * 1_000);
            }
            attempts = attempts.charge(&now);
        }
        (attempts, now)
    }

    #[test]
    fn five_failures_lock_for_a_quarter_of_an_hour_and_the_time_doubles_to_a_day() {
        let lock_s = |count| {
            let (attempts, now) = failures(count);
            attempts.locked(&now).map(|l| l.retry_after_s)
        };
        assert_eq!(lock_s(4), None);
        assert_eq!(lock_s(5), Some(Some(15 * 60)));
        assert_eq!(lock_s(9), None);
        assert_eq!(lock_s(10), Some(Some(30 * 60)));
        assert_eq!(lock_s(35), Some(Some(16 * 3_600)));
        assert_eq!(lock_s(40), Some(Some(24 * 3_600)));
        assert_eq!(lock_s(95), Some(Some(24 * 3_600)));
        assert_eq!(lock_s(100), Some(None));
    }

    #[test]
    fn remaining_counts_down_to_the_lock() {
        let counts: Vec<u32> = (0..=5)
            .map(|n| {
                let (attempts, now) = failures(n);
                attempts.remaining(&now)
            })
            .collect();
        assert_eq!(counts, [5, 4, 3, 2, 1, 0]);
    }

    #[test]
    fn a_lock_ends_only_when_its_time_is_over() {
        let (attempts, now) = failures(5);
        assert_eq!(
            attempts.locked(&at(now.unix_ms + FIRST_LOCK_MS - 1)),
            Some(Locked { retry_after_s: Some(1) })
        );
        assert_eq!(attempts.locked(&at(now.unix_ms + FIRST_LOCK_MS)), None);
    }

    #[test]
    fn a_success_gives_back_its_own_share_alone() {
        let (attempts, _) = failures(8);
        assert_eq!(attempts.refund(3).failures, 5);
        assert_eq!(attempts.refund(8), Attempts::default());
    }

    #[test]
    fn of_two_locks_the_longer_is_told() {
        let seconds = |s| Locked { retry_after_s: Some(s) };
        assert_eq!(seconds(3).longer(seconds(9)), seconds(9));
        assert_eq!(seconds(3).longer(Locked { retry_after_s: None }), Locked { retry_after_s: None });
    }
}
