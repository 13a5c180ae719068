//! One custodian's place, and the processes that have it.

use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use super::recycling::Recycling;
use super::{CUSTODIAN_START_MAX, PAUSE_MAX, PAUSE_MIN};
use crate::custodian::EXIT_PIN_REFUSED;
use crate::hsm::messages::{PinFile, StartFailed};

/// A process that was killed and does not end hangs in the kernel, mostly in a driver of its HSM. It is waited for so long
/// before another one gets its place.
const BURIED_WITHIN: Duration = Duration::from_secs(2);

/// How long one may take to end that has said why.
const ENDED_WITHIN: Duration = Duration::from_secs(1);

/// One custodian's place.
pub(super) struct Slot {
    /// Whose custodian.
    pub token: usize,
    pub running: Option<Running>,
    /// Of the one that was started last.
    pub generation: u64,
    pub pause: Duration,
    pub not_before: Instant,
    pub recycling: Recycling,
}

/// A process of a custodian.
pub(super) struct Running {
    pub child: Child,
    pub generation: u64,
    pub since: Instant,
    pub up: bool,
    /// The PIN that it was started with.
    pub pin_file: Option<PinFile>,
    /// Why it does not come up: it may be killed before it ends.
    pub failed: Option<StartFailed>,
    pub killed: Option<Instant>,
    /// It has said why it ends, and is to do so by then.
    pub ends_by: Option<Instant>,
}

/// Which of a slot's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Running,
    Spare,
    Leaving,
}

impl Role {
    pub(super) const ALL: [Self; 3] = [Self::Running, Self::Spare, Self::Leaving];
}

/// How a process came out of its slot.
pub(super) enum Gone {
    /// It has ended.
    Ended(ExitStatus),
    /// It was killed, and does not end.
    Undead,
}

impl Running {
    pub(super) fn new(child: Child, generation: u64, now: Instant) -> Self {
        let (up, pin_file, failed, killed, ends_by) = (false, None, None, None, None);
        Self { child, generation, since: now, up, pin_file, failed, killed, ends_by }
    }

    /// Ends it, whatever it does. Mostly it is dead already, and this does nothing.
    pub(super) fn kill(&mut self, now: Instant) {
        self.killed = self.killed.or(Some(now));
        let _ = self.child.kill();
    }

    /// The front has given it up. What the service may end with has to be heard from the process itself: it gets a moment
    /// to end.
    pub(super) fn lost(&mut self, now: Instant) {
        match self.failed {
            Some(StartFailed::Said { exit: EXIT_PIN_REFUSED, .. }) => {
                self.ends_by = self.ends_by.or(Some(now + ENDED_WITHIN));
            }
            _ => self.kill(now),
        }
    }

    pub(super) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// When something has to be done about it, if it does nothing itself.
    fn due(&self, role: Role) -> Option<Instant> {
        match (self.killed, role) {
            (Some(killed), _) => Some(killed + BURIED_WITHIN),
            (None, _) if self.ends_by.is_some() => self.ends_by,
            (None, Role::Leaving) => Some(self.since + super::recycling::LEAVING_MAX),
            (None, _) => (!self.up).then(|| self.since + CUSTODIAN_START_MAX),
        }
    }
}

impl Slot {
    pub(super) fn new(token: usize, now: Instant) -> Self {
        let (pause, recycling) = (PAUSE_MIN, Recycling::new(now));
        Self { token, running: None, generation: 0, pause, not_before: now, recycling }
    }

    pub(super) fn is_starting(&self) -> bool {
        self.running.as_ref().is_some_and(|running| !running.up) || self.recycling.spare.is_some()
    }

    /// Waits before the next start, and twice as long before the one after.
    pub(super) fn rest(&mut self, now: Instant) {
        self.not_before = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn place(&mut self, role: Role) -> &mut Option<Running> {
        match role {
            Role::Running => &mut self.running,
            Role::Spare => &mut self.recycling.spare,
            Role::Leaving => &mut self.recycling.leaving,
        }
    }

    /// All that there is of it.
    pub(super) fn processes(&mut self) -> impl Iterator<Item = &mut Running> {
        [&mut self.running, &mut self.recycling.spare, &mut self.recycling.leaving].into_iter().flatten()
    }

    pub(super) fn of(&mut self, generation: u64) -> Option<&mut Running> {
        self.processes().find(|process| process.generation == generation)
    }

    /// When something has to be done about its processes.
    pub(super) fn due(&self) -> impl Iterator<Item = Instant> {
        let all = [
            (Role::Running, &self.running),
            (Role::Spare, &self.recycling.spare),
            (Role::Leaving, &self.recycling.leaving),
        ];
        all.into_iter().filter_map(|(role, process)| process.as_ref()?.due(role))
    }

    /// Takes out what has ended, or never will; kills what should have.
    pub(super) fn take_gone(&mut self, role: Role, now: Instant) -> Option<(Running, Gone)> {
        let place = self.place(role);
        let process = place.as_mut()?;
        if let Some(status) = process.has_ended() {
            return Some((place.take()?, Gone::Ended(status)));
        }
        if process.due(role).is_none_or(|due| due > now) {
            return None;
        }
        if process.killed.is_some() {
            return Some((place.take()?, Gone::Undead));
        }
        tracing::warn!(generation = process.generation, ?role, "custodian is too slow; killing it");
        process.kill(now);
        None
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn slot_of(process: Running) -> Slot {
        let mut slot = Slot::new(0, process.since);
        slot.running = Some(process);
        slot
    }

    /// What a process in an uninterruptible call looks like: it was killed, and is there.
    #[test]
    fn one_that_cannot_be_killed_loses_its_place_and_is_not_looked_at_each_moment() {
        let begun = Instant::now();
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let mut slot = slot_of(Running::new(child, 1, begun));
        assert_eq!(slot.due().collect::<Vec<_>>(), [begun + CUSTODIAN_START_MAX]);
        assert!(slot.take_gone(Role::Running, begun).is_none());
        let killed = begun + CUSTODIAN_START_MAX;
        // As if the signal did not arrive.
        slot.running.as_mut().unwrap().killed = Some(killed);
        assert_eq!(slot.due().collect::<Vec<_>>(), [killed + BURIED_WITHIN], "not now, and again now");
        assert!(slot.take_gone(Role::Running, killed).is_none() && slot.is_starting());
        let (mut process, gone) = slot.take_gone(Role::Running, killed + BURIED_WITHIN).unwrap();
        assert!(matches!(gone, Gone::Undead) && !slot.is_starting() && slot.due().next().is_none());
        process.kill(killed);
        let _ = process.child.wait();
    }

    #[test]
    fn one_that_ends_is_taken_out_with_what_it_ended_with() {
        let now = Instant::now();
        let mut child = Command::new("sh").args(["-c", "exit 10"]).spawn().unwrap();
        child.wait().unwrap();
        let mut slot = slot_of(Running::new(child, 1, now));
        let Some((_, Gone::Ended(status))) = slot.take_gone(Role::Running, now) else { panic!() };
        assert_eq!(status.code(), Some(10));
        assert!(slot.running.is_none());
    }
}
