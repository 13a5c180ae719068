//! Time as a value: what the shell's clock read, once per request.

use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;
use time::{Date, Month, OffsetDateTime, Time};

/// A moment as RFC 3339 in UTC, whole seconds; empty for one that has no such text (after the year 9999).
pub fn rfc3339(unix_ms: u64) -> String {
    i64::try_from(unix_ms / 1_000)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// The second since 1970 that a text in the form of [`rfc3339`] names: `YYYY-MM-DDTHH:MM:SSZ`, of a moment that there
/// is, from 1970 on. `None` for any other text.
pub fn parse_rfc3339(text: &str) -> Option<u64> {
    let number = |place: std::ops::Range<usize>| text.get(place)?.parse::<u16>().ok();
    let small = |place| u8::try_from(number(place)?).ok();
    let month = Month::try_from(small(5..7)?).ok()?;
    let date = Date::from_calendar_date(number(0..4)?.into(), month, small(8..10)?).ok()?;
    let time = Time::from_hms(small(11..13)?, small(14..16)?, small(17..19)?).ok()?;
    let unix_s = u64::try_from(OffsetDateTime::new_utc(date, time).unix_timestamp()).ok()?;
    // Signs, spaces and what stands between the numbers: there is one spelling.
    (rfc3339(unix_s.saturating_mul(1_000)) == text).then_some(unix_s)
}

/// The kernel's boot id (`/proc/sys/kernel/random/boot_id`): times since boot compare only within one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootId(pub [u8; 16]);

impl BootId {
    /// 32 hexadecimal digits, in groups or not.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = data_encoding::HEXLOWER.decode(text.trim().replace('-', "").as_bytes()).ok()?;
        bytes.try_into().ok().map(Self)
    }
}

/// One run of the appliance: random, another with each start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunId(pub [u8; 16]);

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Wall clock, milliseconds since 1970-01-01T00:00:00Z.
    pub unix_ms: u64,
    /// Milliseconds since boot, suspension included (`CLOCK_BOOTTIME`).
    pub boot_ms: u64,
    /// The boot that `boot_ms` counts from.
    pub boot_id: BootId,
    /// The run that reads them: what was measured in another one does not go on in this.
    pub run: RunId,
    /// False after the wall clock stepped, until an operator accepts it: what depends on the time
    /// is then neither yes nor no.
    pub trusted: bool,
    /// Up to when what was accepted may be forgotten.
    pub floor: Floor,
}

/// Up to when what was accepted may be forgotten, by the wall clock, in milliseconds since 1970; 0: nothing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    /// After an end that was not written down: what came last.
    pub lost_unix_ms: u64,
    /// After a database was turned back: more than that, also how far tokens' clocks were found to be from ours.
    pub recovered_unix_ms: u64,
}

/// A moment, by the wall clock and by the time since boot. What ends by itself at that moment (a lock) ends when
/// BOTH say that it has come: [`Deadline::remaining_ms`]. What may be used up to that moment (a transaction) may
/// be used only while NEITHER does: [`Deadline::left_ms`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    unix_ms: u64,
    boot_ms: u64,
    boot_id: BootId,
    duration_ms: u64,
}

impl Deadline {
    /// The moment `duration_ms` from now.
    pub fn after(now: &Now, duration_ms: u64) -> Self {
        Self {
            unix_ms: now.unix_ms.saturating_add(duration_ms),
            boot_ms: now.boot_ms.saturating_add(duration_ms),
            boot_id: now.boot_id,
            duration_ms,
        }
    }

    /// Milliseconds still to wait; zero when it has come.
    ///
    /// After a reboot the old time since boot says nothing, so the whole duration is counted anew
    /// from that boot: a machine that was turned off with its clock set forward shortens no lock.
    pub fn remaining_ms(&self, now: &Now) -> u64 {
        let by_wall = self.unix_ms.saturating_sub(now.unix_ms);
        let boot_target = if now.boot_id == self.boot_id { self.boot_ms } else { self.duration_ms };
        by_wall.max(boot_target.saturating_sub(now.boot_ms))
    }

    /// Milliseconds left until one of the clocks says that the moment has come.
    ///
    /// After a reboot the wall clock alone can tell.
    pub fn left_ms(&self, now: &Now) -> u64 {
        let by_wall = self.unix_ms.saturating_sub(now.unix_ms);
        if now.boot_id == self.boot_id {
            by_wall.min(self.boot_ms.saturating_sub(now.boot_ms))
        } else {
            by_wall
        }
    }

    /// The wall-clock part, for people to read.
    pub fn unix_ms(&self) -> u64 {
        self.unix_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(unix_ms: u64, boot_ms: u64, boot: u8) -> Now {
        Now {
            unix_ms,
            boot_ms,
            boot_id: BootId([boot; 16]),
            run: RunId([0; 16]),
            trusted: true,
            floor: Default::default(),
        }
    }

    #[test]
    fn both_clocks_must_agree() {
        let deadline = Deadline::after(&now(1_000, 50, 1), 100);
        assert_eq!(deadline.remaining_ms(&now(1_000, 50, 1)), 100);
        assert_eq!(
            deadline.remaining_ms(&now(9_000, 60, 1)),
            90,
            "a wall clock set forward shortens nothing"
        );
        assert_eq!(deadline.remaining_ms(&now(1_000, 9_000, 1)), 100, "nor does one set back");
        assert_eq!(deadline.remaining_ms(&now(1_100, 150, 1)), 0);
    }

    #[test]
    fn what_may_be_used_ends_by_either_clock() {
        let deadline = Deadline::after(&now(1_000, 50, 1), 100);
        assert_eq!(deadline.left_ms(&now(1_000, 50, 1)), 100);
        assert_eq!(deadline.left_ms(&now(1_000, 9_000, 1)), 0, "a wall clock set back gives no time");
        assert_eq!(deadline.left_ms(&now(9_000, 50, 1)), 0, "one set forward takes it");
        assert_eq!(deadline.left_ms(&now(1_040, 70, 1)), 60);
        assert_eq!(deadline.left_ms(&now(1_030, 9_000, 2)), 70, "after a reboot the wall clock tells");
    }

    #[test]
    fn moments_are_utc() {
        assert_eq!(rfc3339(1_893_456_000_999), "2030-01-01T00:00:00Z");
        assert_eq!(rfc3339(u64::MAX), "");
    }

    #[test]
    fn a_reboot_counts_the_duration_anew() {
        let deadline = Deadline::after(&now(1_000, 1_000_000, 1), 100);
        assert_eq!(deadline.remaining_ms(&now(9_000, 10, 2)), 90);
        assert_eq!(deadline.remaining_ms(&now(9_000, 100, 2)), 0);
    }
}
