//! What is known of the custodians: which are up, since when the others are away and why; and the breaker.
//!
//! The breaker is open once no custodian is up and a start has failed since the last one was: whoever asks is told so at
//! once, for waiting would be in vain. The supervisor's next start is the probe, and a custodian that comes up closes it.
//! Until a start has failed, callers wait: to replace a custodian takes less time than they have.

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::start::Refusal;
use crate::metrics::{Away, HsmMetrics};

/// So many different reasons of one outage are logged.
const TOLD_MAX: usize = 16;

/// What is known. It is told of all that happens to custodians.
pub(super) struct State {
    known: Mutex<Known>,
    open: watch::Sender<bool>,
    metrics: HsmMetrics,
}

struct Known {
    slots: Vec<Slot>,
    /// The token has been used before: by this process, or by whoever left the database.
    was_used: bool,
    outage: Outage,
}

/// As long as no custodian is up.
struct Outage {
    since: Instant,
    /// The last start that failed, and how many did.
    failed: Option<Refusal>,
    starts_failed: u64,
    /// What was logged of it.
    told: HashSet<String>,
}

impl Outage {
    fn new(since: Instant) -> Self {
        Self { since, failed: None, starts_failed: 0, told: HashSet::new() }
    }
}

enum Slot {
    Up { generation: u64 },
    Away { since: Instant, why: Refusal, is_told: bool },
}

impl Slot {
    fn away(cause: Away, line: &str) -> Self {
        Self::Away { since: Instant::now(), why: Refusal::new(cause, line), is_told: false }
    }
}

impl State {
    /// Of so many custodians, none of them up.
    pub fn new(custodians: u16, metrics: HsmMetrics) -> Self {
        let slots = (0..custodians).map(|_| Slot::away(Away::Starting, "it is being started")).collect();
        let known = Known { slots, was_used: false, outage: Outage::new(Instant::now()) };
        let (open, _) = watch::channel(false);
        let state = Self { known: Mutex::new(known), open, metrics };
        state.show(&state.known());
        state
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database has been used with this token: no operator is to make another one in its place.
    pub fn was_used(&self) {
        self.known().was_used = true;
    }

    /// A custodian is up.
    pub fn up(&self, slot: u16, generation: u64, token: &str) {
        let mut known = self.known();
        let Some(place) = known.slots.get_mut(usize::from(slot)) else { return };
        *place = Slot::Up { generation };
        known.was_used = true;
        let outage = std::mem::replace(&mut known.outage, Outage::new(Instant::now()));
        tracing::info!(slot, generation, token, "custodian is up");
        if !outage.told.is_empty() {
            let (seconds, starts_failed) = (outage.since.elapsed().as_secs_f32(), outage.starts_failed);
            tracing::info!(seconds, starts_failed, "the HSM can be used again");
        }
        self.show(&known);
    }

    /// A custodian that was up is no more. Whether callers have to be told that they wait in vain.
    pub fn lost(&self, slot: u16, generation: u64, reason: &str) {
        let mut known = self.known();
        match known.slots.get_mut(usize::from(slot)) {
            // Its successor may be up already.
            Some(place @ Slot::Up { .. }) if place.is(generation) => *place = Slot::away(Away::Lost, reason),
            _ => return,
        }
        if !known.is_up() {
            known.outage = Outage::new(Instant::now());
        }
        self.show(&known);
    }

    /// A custodian did not come up.
    pub fn start_failed(&self, slot: u16, generation: u64, why: Refusal) {
        self.metrics.start_failures.get_or_create(&why.cause).inc();
        let mut known = self.known();
        let is_up = known.is_up();
        if !is_up {
            known.outage.starts_failed += 1;
            known.outage.failed = Some(why.clone());
            // A custodian whose PIN is refused says so itself, and the service ends.
            let is_new = known.outage.told.len() < TOLD_MAX && !known.outage.told.contains(&why.line);
            if is_new && why.cause != Away::PinRefused {
                known.outage.told.insert(why.line.clone());
                let (cause, todo) = (why.cause.name(), todo(why.cause, known.was_used));
                tracing::error!(cause, reason = why.line, todo, "the HSM cannot be used; it is tried again");
            }
        }
        match known.slots.get_mut(usize::from(slot)) {
            Some(Slot::Away { why: before, is_told, .. }) => {
                let is_new = !*is_told || *before != why;
                if is_up && is_new && why.cause != Away::PinRefused {
                    let (cause, reason) = (why.cause.name(), &why.line);
                    tracing::warn!(slot, generation, cause, reason, "custodian did not come up");
                }
                (*before, *is_told) = (why, is_up);
            }
            // A successor that was to take the place of one that is well.
            Some(Slot::Up { .. }) if why.cause != Away::PinRefused => {
                let (cause, reason) = (why.cause.name(), &why.line);
                tracing::warn!(slot, generation, cause, reason, "no successor of a custodian came up");
            }
            _ => {}
        }
        self.show(&known);
    }

    /// Whether the breaker is open, as it changes.
    pub fn breaker(&self) -> watch::Receiver<bool> {
        self.open.subscribe()
    }

    /// Why callers wait in vain; `None`: they do not.
    pub fn objection(&self) -> Option<String> {
        if !*self.open.borrow() {
            return None;
        }
        self.known().outage.failed.as_ref().map(|why| why.line.clone())
    }

    /// Why no custodian is up, since when, and what is to be done, in a line for the operator; `None`: one is, or nothing
    /// has gone wrong yet.
    pub fn trouble(&self) -> Option<String> {
        let known = self.known();
        let seconds = known.outage.since.elapsed().as_secs();
        match &known.outage.failed {
            _ if known.is_up() => None,
            Some(Refusal { cause, line, .. }) => {
                let (name, todo) = (cause.name(), todo(*cause, known.was_used));
                Some(format!("the HSM cannot be used for {seconds} s ({name}): {line}; {todo}"))
            }
            None => known.lost_last().map(|why| {
                format!(
                    "no custodian is up for {seconds} s: the last was lost ({why}); others are being started"
                )
            }),
        }
    }

    /// Those that are away while others are up, a line each.
    pub fn missing(&self) -> String {
        let mut lines = String::new();
        for (number, slot) in self.known().slots.iter().enumerate() {
            if let Slot::Away { since, why: Refusal { cause, line, .. }, .. } = slot {
                let (seconds, name) = (since.elapsed().as_secs(), cause.name());
                let _ = writeln!(lines, "custodian {number} is away for {seconds} s ({name}): {line}");
            }
        }
        lines
    }

    /// Since when no custodian is up; `None`: one is.
    pub fn away_for(&self) -> Option<Duration> {
        let known = self.known();
        (!known.is_up()).then(|| known.outage.since.elapsed())
    }

    /// Brings gauges and breaker up to date.
    fn show(&self, known: &Known) {
        for cause in Away::all() {
            let is_it = |slot: &&Slot| matches!(slot, Slot::Away { why, .. } if why.cause == cause);
            let count = i64::try_from(known.slots.iter().filter(is_it).count()).unwrap_or(i64::MAX);
            self.metrics.away.get_or_create(&cause).set(count);
        }
        let is_open = !known.is_up() && known.outage.failed.is_some();
        self.metrics.breaker_open.set(i64::from(is_open));
        self.open.send_if_modified(|open| std::mem::replace(open, is_open) != is_open);
    }
}

impl Slot {
    fn is(&self, wanted: u64) -> bool {
        matches!(self, Self::Up { generation } if *generation == wanted)
    }
}

impl Known {
    fn is_up(&self) -> bool {
        self.slots.iter().any(|slot| matches!(slot, Slot::Up { .. }))
    }

    /// Why the last was lost of those that were up.
    fn lost_last(&self) -> Option<&str> {
        let lost = self.slots.iter().filter_map(|slot| match slot {
            Slot::Away { since, why, .. } if why.cause == Away::Lost => Some((since, why)),
            _ => None,
        });
        lost.max_by_key(|(since, _)| **since).map(|(_, why)| why.line.as_str())
    }
}

/// What an operator can do, and what happens by itself.
fn todo(cause: Away, was_used: bool) -> &'static str {
    match cause {
        Away::TokenAway | Away::Keys if was_used => {
            "this token was here and had its keys: bring it back, and make no other (do not run `hsm-authd init`); it is \
             tried again by itself each second"
        }
        Away::TokenAway => {
            "see that the HSM is connected and has this token; it is tried again by itself each second"
        }
        Away::Keys => {
            "see that it is the right token, with all its keys; it is tried again by itself each second"
        }
        Away::Configuration => "mend that; it is tried again by itself each second",
        Away::Module => {
            "see that the HSM can be reached, and that its module is set up as its vendor says; it is tried again by itself \
             each second"
        }
        Away::Login => "see what the HSM says of this user; it is tried again by itself each second",
        Away::PinRefused => "correct the PIN file; it is not tried again, and the service ends",
        Away::SelfTest => {
            "the HSM does not work as it should, see what it says of itself; it is tried again by itself each second"
        }
        Away::Hangs => {
            "see that the HSM can be reached and is not overloaded; it is tried again by itself each second"
        }
        Away::Died => {
            "its module may have crashed, see the system's log; it is tried again by itself each second"
        }
        Away::Starting | Away::Lost => "it is being started again by itself",
    }
}

#[cfg(test)]
mod tests;
