//! Whether the clock can be believed: it decides which codes are good.

use super::Report;
use super::programs::output;
use crate::clock::{Clock, STEP_MS_MAX, SystemClock};
use crate::config::Config;
use crate::store::usage;

/// What the kernel says of its clock, and what the database remembers.
pub fn check(config: &Config, report: &mut Report) {
    // The kernel knows whether anything disciplines it; to ask it takes a system call that no safe library has.
    match output("timedatectl", &["show", "--property=NTPSynchronized", "--value"]).as_deref() {
        Some("yes") => report.ok(format_args!("clock: it is synchronised")),
        // A clock may be right all the same, and no service waits for it.
        Some("no") => report.note(format_args!(
            "clock: it is not synchronised, and it decides which codes are good: run chrony or systemd-timesyncd"
        )),
        _ => report.note(format_args!(
            "clock: whether it is synchronised is not known here, without systemd's timedatectl"
        )),
    }
    let Some(now) = SystemClock.read() else {
        report.wrong(format_args!("the clock cannot be read"));
        return;
    };
    let Some(newest_unix_ms) = usage::newest_unix_ms(&config.store.path) else { return };
    match newest_unix_ms.checked_sub(now.unix_ms.saturating_add(STEP_MS_MAX)) {
        Some(behind_ms) => report.wrong(format_args!(
            "the clock is {} s behind the newest entry of the database, so nothing that depends on the time is answered: set \
             it right, or start once with --accept-clock if it is",
            behind_ms.saturating_add(STEP_MS_MAX) / 1_000
        )),
        None => report.ok(format_args!("clock: not behind the newest entry of the database")),
    }
}
