//! How a custodian that works is replaced: another one starts beside it; once that has said hello, the front asks it
//! instead, and the old one answers what it has and ends.
//!
//! One at a time, and not before the last one that was replaced has ended. A spare that does not start costs nothing.

use std::time::{Duration, Instant};

use super::{CUSTODIAN_START_MAX, Running, Slot, Supervisor};
use crate::custodian::EXIT_PIN_REFUSED;

/// The pause after a spare that did not start, and what it doubles up to.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Nobody is replaced before it has served for so long: bounds that are too low must not keep the machine busy.
const YOUNG: Duration = Duration::from_secs(1);
/// How long one that was replaced may take to answer what it has, and to end: nobody waits longer for an answer.
const LEAVING_MAX: Duration = Duration::from_secs(10);

/// A slot's processes besides the one that is asked.
pub(super) struct Recycling {
    /// Whoever has the place and is not of a later generation is to be replaced.
    wanted: Option<u64>,
    /// Starts while the one that is to be replaced serves.
    pub spare: Option<Running>,
    /// Was replaced.
    leaving: Option<Running>,
    not_before: Instant,
}

impl Recycling {
    pub(super) fn new(now: Instant) -> Self {
        Self { wanted: None, spare: None, leaving: None, not_before: now }
    }
}

/// When the next spare may be started, in whichever slot: what keeps one from starting mostly keeps all of them.
pub(super) struct Spares {
    /// The token refused the PIN of one: it is not tried again until SIGHUP.
    pub pin_refused: bool,
    pause: Duration,
    not_before: Instant,
}

impl Spares {
    /// At once.
    pub(super) fn new(now: Instant) -> Self {
        Self { pin_refused: false, pause: PAUSE_MIN, not_before: now }
    }

    /// One has come up.
    pub(super) fn went_well(&mut self) {
        self.pause = PAUSE_MIN;
    }

    /// Waits before the next spare, and twice as long before the one after.
    pub(super) fn rest(&mut self, now: Instant) {
        self.not_before = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

impl Slot {
    /// All that there is of it.
    pub(super) fn processes(&mut self) -> impl Iterator<Item = &mut Running> {
        [&mut self.running, &mut self.recycling.spare, &mut self.recycling.leaving].into_iter().flatten()
    }

    pub(super) fn of(&mut self, generation: u64) -> Option<&mut Running> {
        self.processes().find(|process| process.generation == generation)
    }

    /// Has another process: beside the one that serves, if there is one.
    pub(super) fn begin(&mut self, process: Running) {
        match &self.running {
            None => self.running = Some(process),
            Some(_) => self.recycling.spare = Some(process),
        }
    }

    /// One has said hello. The front asks it from now on.
    pub(super) fn came_up(&mut self, generation: u64, now: Instant) {
        let recycling = &mut self.recycling;
        if let Some(spare) = recycling.spare.take_if(|spare| spare.generation == generation) {
            recycling.leaving = self.running.replace(spare).map(|old| Running { since: now, ..old });
            recycling.not_before = now + YOUNG;
        }
        if let Some(running) = self.running.as_mut().filter(|running| running.generation == generation) {
            running.up = true;
            recycling.wanted = recycling.wanted.filter(|wanted| *wanted >= generation);
        }
    }

    fn is_to_be_recycled(&self) -> bool {
        let is_meant =
            |running: &Running| self.recycling.wanted.is_some_and(|up_to| running.generation <= up_to);
        self.recycling.spare.is_none()
            && self.running.as_ref().is_some_and(|running| running.up && is_meant(running))
    }
}

impl Supervisor {
    /// One has said that it is tired.
    pub(super) fn recycle(&mut self, slot: u16, generation: u64) {
        if let Some(slot) = self.slots.get_mut(usize::from(slot)) {
            slot.recycling.wanted = slot.recycling.wanted.max(Some(generation));
        }
    }

    /// Whoever was started before now is to be replaced.
    pub(super) fn recycle_all(&mut self) {
        tracing::info!("custodians are replaced, one after the other");
        // The operator may have mended what was wrong.
        self.spares = Spares::new(Instant::now());
        for slot in &mut self.slots {
            slot.recycling.wanted = slot.recycling.wanted.max(Some(slot.generation));
        }
    }

    /// Whose turn it is.
    pub(super) fn next_to_recycle(&self, now: Instant) -> Option<usize> {
        if self.is_anybody_leaving() || self.spares.not_before > now {
            return None;
        }
        // The one that has waited longest: nobody is passed over because others are tired again.
        let wanted = self.slots.iter().enumerate().filter(|(_, slot)| slot.is_to_be_recycled());
        let due = wanted.filter(|(_, slot)| slot.recycling.not_before <= now);
        due.min_by_key(|(_, slot)| slot.recycling.not_before).map(|(index, _)| index)
    }

    fn is_anybody_leaving(&self) -> bool {
        self.slots.iter().any(|slot| slot.recycling.leaving.is_some())
    }

    /// When there is something to do for it.
    pub(super) fn recycling_due(&self) -> impl Iterator<Item = Instant> {
        let may_start = !self.spares.pin_refused
            && self.draining_since.is_none()
            && !self.is_anybody_leaving()
            && !self.slots.iter().any(Slot::is_starting);
        self.slots.iter().flat_map(move |slot| {
            let recycling = &slot.recycling;
            let started = recycling.spare.as_ref().map(|spare| spare.since + CUSTODIAN_START_MAX);
            let left = recycling.leaving.as_ref().map(|leaving| leaving.since + LEAVING_MAX);
            let next = recycling.not_before.max(self.spares.not_before);
            let next = (may_start && slot.is_to_be_recycled()).then_some(next);
            [started, left, next].into_iter().flatten()
        })
    }

    /// Buries those that have ended, and ends those that should have.
    pub(super) fn look_at_recycling(&mut self) {
        let now = Instant::now();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let recycling = &mut slot.recycling;
            if let Some(spare) = &mut recycling.spare {
                if spare.since + CUSTODIAN_START_MAX <= now {
                    tracing::warn!(slot = index, "custodian does not start; killing it");
                    let _ = spare.child.kill();
                }
                if let Ok(Some(status)) = spare.child.try_wait() {
                    let generation = spare.generation;
                    let code = spare.said.map(i32::from).or(status.code());
                    recycling.spare = None;
                    self.spares.rest(now);
                    if code == Some(i32::from(EXIT_PIN_REFUSED)) {
                        self.spares.pin_refused = true;
                        tracing::error!(
                            slot = index,
                            generation,
                            "the token refuses the PIN: no custodian is started before SIGHUP; the others go on"
                        );
                    } else if self.draining_since.is_none() {
                        tracing::warn!(slot = index, generation, %status, "no successor; the old custodian goes on");
                    }
                }
            }
            if let Some(leaving) = &mut recycling.leaving {
                if leaving.since + LEAVING_MAX <= now {
                    tracing::warn!(
                        slot = index,
                        generation = leaving.generation,
                        "custodian does not leave; killing it"
                    );
                    let _ = leaving.child.kill();
                }
                if let Ok(Some(_)) = leaving.child.try_wait() {
                    recycling.leaving = None;
                }
            }
        }
    }
}
