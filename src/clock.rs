//! The clocks of this machine, and whether the wall clock can be believed.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;

use crate::boot;
use crate::domain::time::{BootId, Floor, Now, RunId};

/// How far the wall clock may be from where it should be before nobody believes it, in milliseconds.
pub const STEP_MS_MAX: u64 = 5_000;
/// How fast a clock may be slewed into place without being called a step, in milliseconds a second:
/// twice what the kernel's own discipline does (500 ppm).
const SLEW_MS_PER_S: u64 = 1;

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Wall clock, milliseconds since 1970.
    pub unix_ms: u64,
    /// Milliseconds since boot, suspension included.
    pub boot_ms: u64,
}

/// Where time comes from.
pub trait Clock: Send + Sync {
    /// Both clocks now; `None` if they cannot be read.
    fn read(&self) -> Option<Reading>;
}

/// The machine's own clocks.
pub struct SystemClock;

/// Between the two clocks at most so much may pass, or they are read again, in milliseconds: a machine
/// that was frozen just there would seem to have stepped.
const APART_MS_MAX: u64 = 100;
const READINGS_MAX: usize = 10;

impl Clock for SystemClock {
    fn read(&self) -> Option<Reading> {
        (0..READINGS_MAX).find_map(|_| {
            let before_ms = boot_ms()?;
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
            let boot_ms = boot_ms()?;
            let unix_ms = u64::try_from(wall.as_millis()).ok()?;
            (boot_ms.saturating_sub(before_ms) <= APART_MS_MAX).then_some(Reading { unix_ms, boot_ms })
        })
    }
}

fn boot_ms() -> Option<u64> {
    let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?;
    u64::try_from(std::time::Duration::from(boot).as_millis()).ok()
}

/// Development and tests only: a file with `UNIX_MS BOOT_MS`.
pub struct FileClock(pub PathBuf);

impl Clock for FileClock {
    fn read(&self) -> Option<Reading> {
        let text = std::fs::read_to_string(&self.0).ok()?;
        let mut numbers = text.split_ascii_whitespace().map(str::parse);
        Some(Reading { unix_ms: numbers.next()?.ok()?, boot_ms: numbers.next()?.ok()? })
    }
}

/// A clock that is watched: once the wall clock stepped, every [`Now`] says so until an operator
/// accepts it (by a start with `--accept-clock`).
pub struct WatchedClock {
    clock: Box<dyn Clock>,
    boot_id: BootId,
    run: RunId,
    /// Where the times since boot that are told begin, in milliseconds: 0, or the start of this process.
    boot_base_ms: u64,
    state: Mutex<State>,
    /// Up to when what was accepted may be forgotten.
    floor: Mutex<Floor>,
    /// Woken when the wall clock is first seen to have stepped.
    stepped: Notify,
}

struct State {
    last: Reading,
    /// Wall clock minus time since boot, as believed, in milliseconds.
    offset_ms: i128,
    /// Up to when, since boot, slewing has been allowed for.
    slewed_to_boot_ms: u64,
    stepped: bool,
}

impl WatchedClock {
    /// Believes the first reading, unless `stepped`.
    ///
    /// # Errors
    /// If the clock cannot be read at all.
    pub fn new(clock: Box<dyn Clock>, stepped: bool) -> Result<Self, &'static str> {
        let last = clock.read().ok_or("the clock cannot be read")?;
        let state = State { last, offset_ms: offset(last), slewed_to_boot_ms: last.boot_ms, stepped };
        let (boot_id, boot_base_ms) = match boot::id() {
            Some(id) => (id, 0),
            // Then this start counts as a boot, which lengthens locks and never shortens one.
            None => {
                tracing::warn!(
                    "the boot id cannot be read: locks that are open begin anew, as after a reboot (/proc, or {})",
                    boot::VARIABLE
                );
                (BootId(random_id()?), last.boot_ms)
            }
        };
        let run = RunId(random_id()?);
        Ok(Self {
            clock,
            boot_id,
            run,
            boot_base_ms,
            state: Mutex::new(state),
            floor: Mutex::default(),
            stepped: Notify::new(),
        })
    }

    /// Both clocks now. A clock that cannot be read is one that cannot be trusted.
    pub fn now(&self) -> Now {
        let reading = self.clock.read();
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(reading) = reading
            && state.observe(reading)
        {
            self.stepped.notify_one();
        }
        Now {
            unix_ms: state.last.unix_ms,
            boot_ms: state.last.boot_ms.saturating_sub(self.boot_base_ms),
            boot_id: self.boot_id,
            run: self.run,
            trusted: reading.is_some() && !state.stepped,
            floor: *self.floor.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Whether the wall clock stepped.
    pub fn has_stepped(&self) -> bool {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).stepped
    }

    /// From here on every [`Now`] says that what was accepted up to then may be forgotten.
    pub fn set_floor(&self, floor: Floor) {
        *self.floor.lock().unwrap_or_else(PoisonError::into_inner) = floor;
    }

    /// Resolves when the wall clock is seen to step.
    pub async fn steps(&self) {
        self.stepped.notified().await;
    }

    /// From here on nothing that depends on the time is answered.
    pub fn distrust(&self) {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).stepped = true;
    }
}

impl State {
    /// Whether this reading is the first to show a step.
    fn observe(&mut self, reading: Reading) -> bool {
        self.last = reading;
        let away_ms = offset(reading) - self.offset_ms;
        let steps = away_ms.unsigned_abs() > u128::from(STEP_MS_MAX);
        let is_first = steps && !self.stepped;
        self.stepped |= steps;
        // Whole seconds only, or what may be slewed would round down to nothing for ever.
        let seconds = reading.boot_ms.saturating_sub(self.slewed_to_boot_ms) / 1_000;
        let slew_ms = i128::from(seconds.saturating_mul(SLEW_MS_PER_S));
        self.offset_ms += away_ms.clamp(-slew_ms, slew_ms);
        self.slewed_to_boot_ms = self.slewed_to_boot_ms.saturating_add(seconds.saturating_mul(1_000));
        is_first
    }
}

fn offset(reading: Reading) -> i128 {
    i128::from(reading.unix_ms) - i128::from(reading.boot_ms)
}

fn random_id() -> Result<[u8; 16], &'static str> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|_| "no random bytes for an id")?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    struct Set(Arc<Mutex<Option<Reading>>>);

    impl Clock for Set {
        fn read(&self) -> Option<Reading> {
            *self.0.lock().unwrap()
        }
    }

    struct Fixture(WatchedClock, Arc<Mutex<Option<Reading>>>);

    impl Fixture {
        fn new() -> Self {
            let reading = Arc::new(Mutex::new(Some(Reading { unix_ms: 1_000_000, boot_ms: 5_000 })));
            Self(WatchedClock::new(Box::new(Set(reading.clone())), false).unwrap(), reading)
        }

        fn trusted_at(&self, unix_ms: u64, boot_ms: u64) -> bool {
            *self.1.lock().unwrap() = Some(Reading { unix_ms, boot_ms });
            self.0.now().trusted
        }
    }

    #[test]
    fn a_clock_that_runs_is_trusted() {
        let clock = Fixture::new();
        assert!(clock.trusted_at(1_060_000, 65_000));
        assert!(clock.trusted_at(1_065_000, 65_000), "5 s are no step");
    }

    #[test]
    fn a_step_either_way_is_remembered() {
        for wall in [1_065_001, 1_054_999] {
            let clock = Fixture::new();
            assert!(!clock.trusted_at(wall, 65_000));
            assert!(!clock.trusted_at(1_060_000, 65_000), "going back does not undo it");
        }
    }

    #[test]
    fn many_small_steps_are_one_large_one() {
        let clock = Fixture::new();
        assert!(clock.trusted_at(1_003_000, 5_500));
        assert!(!clock.trusted_at(1_006_000, 5_600));
    }

    #[test]
    fn a_slew_is_followed() {
        let clock = Fixture::new();
        for hour in 1..=24 {
            // 500 ppm: 1.8 s an hour, 43 s in a day
            assert!(clock.trusted_at(1_000_000 + hour * 3_601_800, 5_000 + hour * 3_600_000), "hour {hour}");
        }
    }

    #[test]
    fn an_unreadable_clock_is_not_trusted_while_it_is() {
        let clock = Fixture::new();
        *clock.1.lock().unwrap() = None;
        assert!(!clock.0.now().trusted);
        assert!(clock.trusted_at(1_001_000, 6_000));
    }

    #[test]
    fn the_machine_has_both_clocks() {
        let (first, second) = (SystemClock.read().unwrap(), SystemClock.read().unwrap());
        assert!(second.boot_ms >= first.boot_ms && first.unix_ms > 1_700_000_000_000);
    }
}
