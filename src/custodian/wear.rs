//! When a custodian has done enough: modules lose a little memory with each object, for as long as the process lives.

use nix::sys::resource::{UsageWho, getrusage};

use crate::hsm::messages::{Boot, Tired};

/// How often the memory is looked at, in requests.
const LOOK_EVERY: u32 = 64;

/// What a process may do before it says that it is tired.
pub struct Wear {
    unwraps_max: u64,
    memory_bytes_max: u64,
    /// Requests since the memory was looked at.
    requests: u32,
    tired: Option<Tired>,
}

impl Wear {
    /// Of a process that has just started.
    pub fn of(boot: &Boot) -> Self {
        let mut random = [0; 4];
        // Without it they are tired at the same time, and are replaced one after the other.
        let _ = getrandom::fill(&mut random);
        Self::new(boot, u32::from_ne_bytes(random), memory_bytes())
    }

    fn new(boot: &Boot, random: u32, memory_bytes: u64) -> Self {
        let mut memory_bytes_max = boot.memory_bytes_max;
        if memory_bytes > memory_bytes_max {
            // Its successor would have as much.
            tracing::warn!(
                memory_bytes,
                memory_bytes_max,
                "custodian: it takes more memory to start than hsm.recycle_above_mebibytes allows, which is ignored"
            );
            memory_bytes_max = u64::MAX;
        }
        Self { unwraps_max: spread(boot.unwraps_max, random), memory_bytes_max, requests: 0, tired: None }
    }

    /// Whether it is, after one more request and so many unwrapped so far.
    pub fn tired(&mut self, unwraps: u64) -> Option<Tired> {
        self.tired_with(unwraps, memory_bytes)
    }

    fn tired_with(&mut self, unwraps: u64, memory_bytes: impl FnOnce() -> u64) -> Option<Tired> {
        if self.tired.is_some() {
            return self.tired;
        }
        self.requests = self.requests.saturating_add(1) % LOOK_EVERY;
        if unwraps >= self.unwraps_max {
            self.tired = Some(Tired::Unwraps);
        } else if self.requests == 0 && memory_bytes() > self.memory_bytes_max {
            self.tired = Some(Tired::Memory);
        }
        self.tired
    }
}

/// Less by up to a quarter: custodians that started together and have as much to do are not to be tired together.
fn spread(unwraps_max: u64, random: u32) -> u64 {
    let less = u128::from(unwraps_max / 4) * u128::from(random) / u128::from(u32::MAX);
    unwraps_max.saturating_sub(u64::try_from(less).unwrap_or(0))
}

/// The most that the process ever had, in bytes. What was freed is mostly not given back, and no file is opened for it.
fn memory_bytes() -> u64 {
    let kibibytes = getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.max_rss());
    u64::try_from(kibibytes).unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(unwraps_max: u64, memory_bytes_max: u64) -> Boot {
        Boot {
            module: "/module".into(),
            module_arguments: None,
            token_label: "token".to_owned(),
            pin_file: "/pin".into(),
            pin_handed: false,
            pin_cut_off: None,
            secrets_cached_max: 1,
            in_use: false,
            unwraps_max,
            shared_keys: false,
            reach: Default::default(),
            memory_bytes_max,
        }
    }

    #[test]
    fn who_has_unwrapped_enough_is_tired_and_stays_so() {
        let mut wear = Wear::new(&boot(1_000, 10), 0, 0);
        assert_eq!(wear.tired_with(999, || 0), None);
        assert_eq!(wear.tired_with(1_000, || 0), Some(Tired::Unwraps));
        assert_eq!(wear.tired_with(0, || 0), Some(Tired::Unwraps));
    }

    #[test]
    fn who_has_too_much_memory_is_tired_and_that_is_not_looked_at_each_time() {
        let mut wear = Wear::new(&boot(1_000, 10), 0, 10);
        let mut looks = 0;
        for _ in 0..3 * LOOK_EVERY {
            let look = || {
                looks += 1;
                10
            };
            assert_eq!(wear.tired_with(0, look), None);
        }
        assert_eq!(looks, 3);
        let tired = (0..LOOK_EVERY).map(|_| wear.tired_with(0, || 11)).collect::<Vec<_>>();
        assert_eq!(tired.last(), Some(&Some(Tired::Memory)));
    }

    #[test]
    fn who_is_above_the_bound_when_it_starts_is_not_replaced_for_that() {
        let mut wear = Wear::new(&boot(1_000, 10), 0, 11);
        assert!((0..2 * LOOK_EVERY).all(|_| wear.tired_with(0, || 1 << 40).is_none()));
        assert_eq!(wear.tired_with(1_000, || 0), Some(Tired::Unwraps));
    }

    #[test]
    fn they_are_tired_at_different_times_and_none_later_than_it_may_be() {
        assert_eq!([0, u32::MAX / 2, u32::MAX].map(|random| spread(1_000, random)), [1_000, 876, 750]);
        assert_eq!([0, u32::MAX].map(|random| spread(u64::MAX, random)), [u64::MAX, u64::MAX - u64::MAX / 4]);
    }

    #[test]
    fn a_process_knows_its_memory() {
        let before = memory_bytes();
        assert!(before > 1 << 20, "{before}");
        let much = std::hint::black_box(vec![1_u8; 64 << 20]);
        assert!(memory_bytes() >= (64 << 20), "{}", much.len());
    }
}
