//! Starts custodians, and sees to what becomes of them.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::pin;
use super::slot::{Gone, Role, Running};
use super::token::FINALS;
use super::{PAUSE_MIN, Supervisor, start_custodian};
use crate::Ending;
use crate::control::{self, ToFront};
use crate::custodian::EXIT_PIN_REFUSED;
use crate::hsm::messages::{Boot, CustodianEvent, StartFailed};
use crate::init;

/// A custodian that lived this long died of something new: its successor waits for the shortest pause.
const SETTLED: Duration = Duration::from_secs(30);
/// The pause after a custodian whose keys are not those in use: an operator has to do something about it first.
const UNFIT_PAUSE: Duration = Duration::from_secs(5);

impl Supervisor {
    /// Which of a token's slots gets a process next, and when; `None`: none does before something happens.
    pub(super) fn next_start(&self, token: usize, now: Instant) -> Option<(Instant, usize)> {
        let of = self.tokens.get(token)?;
        let slots = || self.slots.iter().enumerate().filter(|(_, slot)| slot.token == token);
        let undead = self.undead.iter().filter(|(of, _)| *of == token).count();
        // Whoever tries again and again what hangs in the kernel has it full of processes.
        let is_stuck = undead >= usize::from(of.hsm.custodians);
        if self.draining_since.is_some()
            || self.in_use.is_none()
            || is_stuck
            || slots().any(|(_, slot)| slot.is_starting())
        {
            return None;
        }
        // Those that are missing first.
        let missing = slots().filter(|(_, slot)| slot.running.is_none());
        let missing = missing.map(|(index, slot)| (slot.not_before, index)).min();
        let (when, index) = match (missing, self.next_to_recycle(token)) {
            (Some(missing), Some(spare)) if missing.0 > now.max(spare.0) => spare,
            (missing, spare) => missing.or(spare)?,
        };
        Some((of.not_before().map_or(when, |not_before| not_before.max(when)), index))
    }

    pub(super) fn start_custodians(&mut self) -> Ending {
        let now = Instant::now();
        for token in 0..self.tokens.len() {
            if let Some((_, index)) = self.next_start(token, now).filter(|(when, _)| *when <= now) {
                self.start_custodian(index, now)?;
            }
        }
        Ok(())
    }

    fn start_custodian(&mut self, index: usize, now: Instant) -> Ending {
        let Some(in_use) = self.in_use else { return Ok(()) };
        let ever_up = self.tokens.iter().any(|token| token.ever_up);
        let Some(slot) = self.slots.get_mut(index) else { return Ok(()) };
        let Some(token) = self.tokens.get_mut(slot.token) else { return Ok(()) };
        let Some(attempt) = token.may_start(now) else { return Ok(()) };
        slot.generation += 1;
        let (number, generation) = (index as u16, slot.generation);
        let boot = Boot { pin_cut_off: token.pin.cut_off(), ..init::boot(&token.hsm, in_use) };
        let started = start_custodian(&token.hsm, &boot, &FINALS).and_then(|(child, ours)| {
            let running = Running::new(child, generation, now);
            slot.begin(Running { pin_file: attempt.pin_file, ..running });
            let message = ToFront::Custodian { slot: number, generation };
            match control::send(&self.channel, &message, &[ours.as_fd()]) {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()), // the front is ending
                sent => sent.map_err(|e| format!("the front does not take it: {e}")),
            }
        });
        let Err(reason) = started else { return Ok(()) };
        if !ever_up {
            return Err(Some(reason));
        }
        // The others go on; this one is tried again.
        tracing::error!(slot = index, generation, reason, "a custodian cannot be started");
        let is_spare = slot.running.is_some();
        match slot.of(generation) {
            Some(started) => started.kill(now),
            None if is_spare => token.spares.rest(now),
            None => slot.rest(now),
        }
        // Callers are not to wait for it. A front that does not listen is seen to elsewhere.
        let _ = control::send(&self.channel, &ToFront::NotStarted { slot: number, generation, reason }, &[]);
        Ok(())
    }

    /// The front has something to say of a custodian.
    pub(super) fn told(&mut self, event: CustodianEvent) {
        let now = Instant::now();
        match event {
            CustodianEvent::Up { slot, generation } => {
                let Some(slot) = self.slots.get_mut(usize::from(slot)) else { return };
                // One that was up already says nothing of a PIN any more.
                if slot.of(generation).is_none_or(|running| running.up) {
                    return;
                }
                slot.came_up(generation, now);
                if let Some(token) = self.tokens.get_mut(slot.token) {
                    token.came_up();
                }
            }
            CustodianEvent::Down { slot, generation, failure } => {
                match (self.running(slot, generation), failure) {
                    // One that is up has nothing to say of a start.
                    (Some(running), _) if running.up => {}
                    (Some(running), _) => running.failed = Some(failure),
                    // It has ended, and was buried already.
                    (None, StartFailed::PinInDoubt(file)) => {
                        let token = self.slots.get(usize::from(slot)).map(|slot| slot.token);
                        if let Some(token) = token.and_then(|token| self.tokens.get_mut(token)) {
                            token.doubted(file);
                        }
                    }
                    (None, _) => {}
                }
            }
            CustodianEvent::Lost { slot, generation } => {
                if let Some(running) = self.running(slot, generation) {
                    running.lost(now);
                }
            }
            CustodianEvent::Tired { slot, generation } => self.recycle(slot, generation),
        }
    }

    fn running(&mut self, slot: u16, generation: u64) -> Option<&mut Running> {
        self.slots.get_mut(usize::from(slot))?.of(generation)
    }

    pub(super) fn look_at_custodians(&mut self) -> Ending {
        let now = Instant::now();
        self.undead.retain_mut(|(_, process)| process.has_ended().is_none());
        let before = self.refused();
        for index in 0..self.slots.len() {
            for role in Role::ALL {
                let gone = self.slots.get_mut(index).and_then(|slot| slot.take_gone(role, now));
                if let Some(gone) = gone {
                    self.bury(index, role, gone, now)?;
                }
            }
        }
        let refused = self.refused();
        let is_any_left = self.slots.iter().any(|slot| slot.running.is_some());
        if self.draining_since.is_some() || is_any_left || refused < self.tokens.len() {
            return Ok(());
        }
        // Somebody has written another one meanwhile: that is to be tried.
        if self.tokens.iter().any(|token| token.pin.allows(pin::look(&token.hsm.pin_file))) {
            return Ok(());
        }
        // Who was refused just now has said it.
        let has_said = refused > before;
        self.needs_operator = true;
        Err((!has_said).then(|| "no custodian is left, and the token refuses the PIN".to_owned()))
    }

    /// How many tokens refuse their PIN.
    fn refused(&self) -> usize {
        self.tokens.iter().filter(|token| token.pin.is_refused()).count()
    }

    /// Sees to it that what has gone is replaced, if it has to be.
    fn bury(&mut self, index: usize, role: Role, gone: (Running, Gone), now: Instant) -> Ending {
        let (process, gone) = gone;
        let Some(slot) = self.slots.get_mut(index) else { return Ok(()) };
        let Some(token) = self.tokens.get_mut(slot.token) else { return Ok(()) };
        let (generation, was_up) = (process.generation, process.up);
        let status = match &gone {
            Gone::Ended(status) => status.to_string(),
            Gone::Undead => "it was killed and does not end: it hangs in the kernel".to_owned(),
        };
        // The process itself says it, not the front: whoever has the front could end the service for good.
        let code = match gone {
            Gone::Ended(status) => status.code(),
            Gone::Undead => None,
        };
        // Which PIN it read the front knows better, if somebody has written another one since; it is there now.
        let now_there = pin::look(&token.hsm.pin_file);
        let said = match process.failed {
            Some(StartFailed::Said { exit: EXIT_PIN_REFUSED, pin_file }) => {
                Some(pin_file.filter(|file| Some(*file) == now_there).or(process.pin_file))
            }
            _ => None,
        };
        let is_refused = code == Some(i32::from(EXIT_PIN_REFUSED));
        match process.failed {
            _ if is_refused => token.refused(said.flatten().or(process.pin_file)),
            Some(StartFailed::PinInDoubt(file)) => token.doubted(file),
            // It was to end with that, and did not: nobody knows.
            _ => said.flatten().into_iter().for_each(|file| token.doubted(file)),
        }
        let is_draining = self.draining_since.is_some();
        match role {
            Role::Running => {
                if was_up && process.since.elapsed() >= SETTLED {
                    slot.pause = PAUSE_MIN;
                }
                slot.running = slot.recycling.spare.take();
                // Of one that did not come up the front tells, and not each second.
                let has_left = matches!(gone, Gone::Ended(status) if status.success());
                let is_expected = !was_up || has_left && slot.running.is_some();
                if !is_draining && !is_expected {
                    tracing::warn!(slot = index, generation, status, "custodian ended; replacing it");
                }
                if slot.running.is_none() {
                    slot.rest(now);
                    if process.failed == Some(StartFailed::Unfit) {
                        slot.not_before = now + UNFIT_PAUSE;
                    }
                }
            }
            Role::Spare => {
                token.spares.rest(now);
                if !is_refused && !is_draining {
                    tracing::warn!(
                        slot = index,
                        generation,
                        status,
                        "no successor; the old custodian goes on"
                    );
                }
            }
            Role::Leaving => {}
        }
        if let Gone::Undead = gone {
            tracing::error!(
                slot = index,
                generation,
                "a custodian cannot be killed; another one gets its place"
            );
            self.undead.push((slot.token, process));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use nix::sys::signal::SigSet;
    use nix::sys::signalfd::SignalFd;

    use super::*;
    use crate::config::Config;
    use crate::supervisor::slot::Slot;
    use crate::supervisor::token::Token;
    use crate::systemd::Notify;

    const DOWN: CustodianEvent = CustodianEvent::Down {
        slot: 0,
        generation: 1,
        failure: StartFailed::Said { exit: EXIT_PIN_REFUSED, pin_file: None },
    };
    const LOST: CustodianEvent = CustodianEvent::Lost { slot: 0, generation: 1 };

    /// With one token, and this in the place of its custodian.
    fn supervisor(folder: &Path, script: &str, up: bool) -> Supervisor {
        let now = Instant::now();
        let spawn = |script: &str| Command::new("sh").args(["-c", script]).spawn().unwrap();
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("pin"), "0000").unwrap();
        let sample = include_str!("../../softhsm-setup/hsm-authd.toml");
        let mut hsm = Config::parse(sample, folder, None).unwrap().hsm;
        hsm.pin_file = folder.join("pin");
        hsm.database = folder.join("hsm-authd.db");
        let token = Token::new(("bank".to_owned(), hsm), now);
        let mut slot = Slot::new(0, now);
        let pin_file = pin::look(&token.hsm.pin_file);
        let running = Running::new(spawn(script), 1, now);
        slot.running = Some(Running { up, pin_file, ..running });
        slot.generation = 1;
        Supervisor {
            config_path: PathBuf::new(),
            tokens: vec![token],
            signals: SignalFd::new(&SigSet::empty()).unwrap(),
            front: spawn("exec sleep 600"),
            channel: control::channel().unwrap().0,
            slots: vec![slot],
            undead: Vec::new(),
            notify: Notify::from_env(),
            in_use: Some(true),
            draining_since: None,
            needs_operator: false,
            unheard_since: None,
        }
    }

    /// Until its custodian is gone.
    fn look(supervisor: &mut Supervisor) -> Ending {
        let begun = Instant::now();
        while supervisor.slots[0].running.is_some() {
            assert!(begun.elapsed() < Duration::from_secs(30));
            supervisor.look_at_custodians()?;
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    #[test]
    fn a_front_that_lies_ends_no_service_and_a_custodian_that_ends_so_does() {
        let folder = std::env::temp_dir().join(format!("hsm-authd-lies-{}", std::process::id()));
        for (script, up) in [("exec sleep 600", true), ("exec sleep 600", false)] {
            let mut supervisor = supervisor(&folder, script, up);
            supervisor.told(DOWN);
            supervisor.told(LOST);
            assert_eq!(look(&mut supervisor), Ok(()), "up: {up}");
            assert!(!supervisor.needs_operator && !supervisor.tokens[0].pin.is_refused(), "up: {up}");
            // Of one that was up nobody doubts the PIN.
            assert_eq!(supervisor.tokens[0].pin.cut_off().is_some(), !up);
            supervisor.end_children();
        }
        // It says so first, and the front has it killed.
        let mut supervisor = supervisor(&folder, "sleep 0.3; exit 10", false);
        supervisor.told(DOWN);
        supervisor.told(LOST);
        assert_eq!(look(&mut supervisor), Err(None));
        assert!(supervisor.needs_operator && supervisor.tokens[0].pin.is_refused());
        // Nor does it come up after its end.
        let up = CustodianEvent::Up { slot: 0, generation: 1 };
        supervisor.told(up);
        assert!(supervisor.tokens[0].pin.is_refused());
        supervisor.end_children();
        // One that is up comes up no second time, once another's PIN was refused.
        let mut supervisor = self::supervisor(&folder, "exec sleep 600", true);
        supervisor.tokens[0].pin.refused(None);
        supervisor.told(up);
        assert!(supervisor.tokens[0].pin.is_refused());
        supervisor.end_children();
        std::fs::remove_dir_all(folder).unwrap();
    }
}
