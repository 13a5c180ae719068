//! How a custodian that works is replaced: another one starts beside it; once that has said hello, the front asks it
//! instead, and the old one answers what it has and ends.
//!
//! One of each token at a time, and not before the last one that was replaced has ended. A spare that does not start costs nothing.

use std::time::{Duration, Instant};

use super::Supervisor;
use super::slot::{Running, Slot};

/// The pause after a spare that did not start, and what it doubles up to.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Nobody is replaced before it has served for so long: bounds that are too low must not keep the machine busy.
const YOUNG: Duration = Duration::from_secs(1);
/// How long one that was replaced may take to answer what it has, and to end: nobody waits longer for an answer.
pub(super) const LEAVING_MAX: Duration = Duration::from_secs(10);

/// A slot's processes besides the one that is asked.
pub(super) struct Recycling {
    /// Whoever has the place and is not of a later generation is to be replaced.
    wanted: Option<u64>,
    /// Starts while the one that is to be replaced serves.
    pub spare: Option<Running>,
    /// Was replaced.
    pub leaving: Option<Running>,
    not_before: Instant,
}

impl Recycling {
    pub(super) fn new(now: Instant) -> Self {
        Self { wanted: None, spare: None, leaving: None, not_before: now }
    }
}

/// When a token's next spare may be started, in whichever slot: what keeps one from starting mostly keeps all of them.
pub(super) struct Spares {
    pause: Duration,
    not_before: Instant,
}

impl Spares {
    /// At once.
    pub(super) fn new(now: Instant) -> Self {
        Self { pause: PAUSE_MIN, not_before: now }
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

    /// When a spare may be started for it; `None`: it needs none.
    fn spare_due(&self) -> Option<Instant> {
        let is_meant =
            |running: &Running| self.recycling.wanted.is_some_and(|up_to| running.generation <= up_to);
        let is_due = self.recycling.spare.is_none()
            && self.running.as_ref().is_some_and(|running| running.up && is_meant(running));
        is_due.then_some(self.recycling.not_before)
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
        let now = Instant::now();
        for token in &mut self.tokens {
            token.asked_for(now);
        }
        for slot in &mut self.slots {
            slot.recycling.wanted = slot.recycling.wanted.max(Some(slot.generation));
        }
    }

    /// Whose turn it is next of a token's, and when: of the one that has waited longest. Nobody is passed over because others
    /// are tired again.
    pub(super) fn next_to_recycle(&self, token: usize) -> Option<(Instant, usize)> {
        let of_token = || self.slots.iter().enumerate().filter(|(_, slot)| slot.token == token);
        if of_token().any(|(_, slot)| slot.recycling.leaving.is_some()) {
            return None;
        }
        let not_before = self.tokens.get(token)?.spares.not_before;
        let next = of_token().filter_map(|(index, slot)| Some((slot.spare_due()?, index))).min()?;
        Some((next.0.max(not_before), next.1))
    }
}
