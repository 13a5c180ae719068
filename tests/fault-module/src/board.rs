//! What is on the shared file: the faults that are set, and what each process has done. Atomics alone.
//!
//! A fault's place is used once: it is written, then armed, then lifted, and nothing of it is written again but its
//! counters. So a process that reads while a test writes sees a fault whole or not at all.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::futex;

use crate::fault::{Fault, Kind};
use crate::functions::Function;

/// How many faults can be set on a board, one after the other.
const FAULTS_MAX: usize = 16 * 1024;
/// How many processes can come and go.
const PROCESSES_MAX: usize = 16 * 1024;
/// Who waits looks again after this time, should a process have died before it could wake anybody.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const EVERY_FUNCTION: u32 = u32::MAX;

/// States of a [`Slot`].
const ARMED: u32 = 1;
const LIFTED: u32 = 2;

/// The memory that tests and modules share.
#[repr(C)]
pub struct Board {
    /// How many faults were set.
    used: AtomicU32,
    /// Those before this one are all lifted.
    floor: AtomicU32,
    /// How many wait for something to happen.
    waiting: AtomicU32,
    /// Changes when something happens and somebody waits.
    bell: AtomicU32,
    faults: [Slot; FAULTS_MAX],
    processes: [Process; PROCESSES_MAX],
}

/// A fault's place.
#[repr(C)]
pub(crate) struct Slot {
    state: AtomicU32,
    function: AtomicU32,
    /// 0: each.
    process: AtomicU32,
    _unused: AtomicU32,
    kind: [AtomicU64; 3],
    first: AtomicU64,
    times: AtomicU64,
    /// Calls that counted.
    seen: AtomicU64,
    fired: AtomicU64,
}

/// What a process has done. It is kept after its end.
#[repr(C)]
pub(crate) struct Process {
    /// 0: nobody's.
    pid: AtomicU32,
    _unused: AtomicU32,
    pub(crate) sessions_opened: AtomicU64,
    pub(crate) sessions_closed: AtomicU64,
    pub(crate) fired: AtomicU64,
    pub(crate) calls: [AtomicU64; Function::ALL.len()],
}

/// Which fault, of those that were set on a board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultNumber(usize);

/// What a process has done so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessCounts {
    /// Its pid; it may have ended.
    pub pid: u32,
    /// Sessions that it has opened, and those of them that were closed, by `C_CloseSession`, `C_CloseAllSessions` or
    /// `C_Finalize`, its own or a fault's. What is between ends with the process.
    pub sessions_opened: u64,
    /// See above.
    pub sessions_closed: u64,
    /// How often a fault was met.
    pub fired: u64,
    calls: Vec<u64>,
}

impl ProcessCounts {
    /// How often it has called a function.
    pub fn calls(&self, function: Function) -> u64 {
        self.calls.get(function.index()).copied().unwrap_or_default()
    }
}

impl Board {
    /// Sets a fault: from here on it is met. `None` if the board is full.
    pub fn set(&self, fault: &Fault) -> Option<FaultNumber> {
        let number = self.used.fetch_add(1, Ordering::Relaxed) as usize;
        let slot = self.faults.get(number)?;
        slot.function.store(fault.function.map_or(EVERY_FUNCTION, |one| one as u32), Ordering::Relaxed);
        slot.process.store(fault.process.unwrap_or_default(), Ordering::Relaxed);
        for (place, word) in slot.kind.iter().zip(fault.kind.encode()) {
            place.store(word, Ordering::Relaxed);
        }
        slot.first.store(fault.first, Ordering::Relaxed);
        slot.times.store(fault.times, Ordering::Relaxed);
        slot.state.store(ARMED, Ordering::Release);
        Some(FaultNumber(number))
    }

    /// Ends a fault. A call that has met it already is not undone.
    pub fn lift(&self, FaultNumber(number): FaultNumber) {
        if let Some(slot) = self.faults.get(number) {
            slot.lift();
        }
        self.raise_floor();
    }

    /// Ends all of them.
    pub fn lift_all(&self) {
        for (_, slot) in self.slots() {
            slot.lift();
        }
        self.raise_floor();
    }

    fn raise_floor(&self) {
        let standing = self.slots().find(|(_, slot)| slot.state.load(Ordering::Acquire) != LIFTED);
        let floor = standing.map_or(self.used.load(Ordering::Acquire), |(number, _)| number as u32);
        self.floor.fetch_max(floor, Ordering::Release);
    }

    /// How often a fault was met.
    pub fn fired(&self, FaultNumber(number): FaultNumber) -> u64 {
        self.faults.get(number).map_or(0, |slot| slot.fired.load(Ordering::Acquire))
    }

    /// What each process has done, the ones that came first first.
    pub fn processes(&self) -> Vec<ProcessCounts> {
        self.processes
            .iter()
            .map(|process| (process, process.pid.load(Ordering::Acquire)))
            .take_while(|(_, pid)| *pid != 0)
            .map(|(process, pid)| ProcessCounts {
                pid,
                sessions_closed: process.sessions_closed.load(Ordering::Acquire),
                sessions_opened: process.sessions_opened.load(Ordering::Acquire),
                fired: process.fired.load(Ordering::Acquire),
                calls: process.calls.iter().map(|count| count.load(Ordering::Acquire)).collect(),
            })
            .collect()
    }

    /// Waits until something is so: it is looked at after each call of any process. `false`: it was not in time.
    pub fn wait_until(&self, within: Duration, is_so: impl Fn(&Self) -> bool) -> bool {
        let deadline = Instant::now() + within;
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let seen = loop {
            let bell = self.bell.load(Ordering::SeqCst);
            if is_so(self) {
                break true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break false;
            }
            sleep_on(&self.bell, bell, left);
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        seen
    }

    /// Something has happened.
    pub(crate) fn ring(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.bell.fetch_add(1, Ordering::SeqCst);
            wake(&self.bell);
        }
    }

    /// Those that may be armed.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (usize, &Slot)> {
        let (from, to) = (self.floor.load(Ordering::Acquire), self.used.load(Ordering::Acquire));
        self.faults.iter().enumerate().take(to as usize).skip(from as usize)
    }

    /// Where this process counts, taken if it has no place yet; `None`: all are taken.
    pub(crate) fn place_of(&self, pid: u32) -> Option<usize> {
        self.processes.iter().position(|process| match process.pid.load(Ordering::Acquire) {
            0 => {
                let taken = process.pid.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Acquire);
                taken.is_ok() || taken == Err(pid)
            }
            taken => taken == pid,
        })
    }

    /// What the process at this place has done.
    pub(crate) fn process(&self, place: usize) -> Option<&Process> {
        self.processes.get(place)
    }
}

impl Slot {
    fn lift(&self) {
        // One that is just being written is not seen by anybody yet, and stays.
        if self.state.compare_exchange(ARMED, LIFTED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            wake(&self.state);
        }
    }

    /// What it does to this call's function in this process, if it is armed.
    pub(crate) fn kind_in(&self, function: Function, pid: u32) -> Option<Kind> {
        if self.state.load(Ordering::Acquire) != ARMED {
            return None;
        }
        let (of, process) = (self.function.load(Ordering::Relaxed), self.process.load(Ordering::Relaxed));
        let is_here = (of == EVERY_FUNCTION || of == function as u32) && (process == 0 || process == pid);
        let kind = || Kind::decode(self.kind.each_ref().map(|word| word.load(Ordering::Relaxed)));
        is_here.then(kind).flatten()
    }

    /// Counts a call; its number, if it is one that the fault is for.
    pub(crate) fn count(&self) -> Option<u64> {
        let number = self.seen.fetch_add(1, Ordering::AcqRel).saturating_add(1);
        let (first, times) = (self.first.load(Ordering::Relaxed), self.times.load(Ordering::Relaxed));
        number.checked_sub(first).is_some_and(|place| place < times).then_some(number)
    }

    /// It is met.
    pub(crate) fn fire(&self, process: &Process) {
        self.fired.fetch_add(1, Ordering::AcqRel);
        process.fired.fetch_add(1, Ordering::AcqRel);
    }

    /// Waits until it is lifted, or this time is over.
    pub(crate) fn hang(&self, max: Duration) {
        let deadline = Instant::now().checked_add(max);
        while self.state.load(Ordering::Acquire) == ARMED {
            let left = deadline.map_or(max, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return;
            }
            sleep_on(&self.state, ARMED, left);
        }
    }
}

/// Sleeps as long as the word is this, for some time at most.
fn sleep_on(word: &AtomicU32, value: u32, time: Duration) {
    let time = time.min(LOOK_EVERY);
    let timeout = futex::Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() };
    // Woken, interrupted or timed out: the caller looks.
    let _ = futex::wait(word, futex::Flags::empty(), value, Some(&timeout));
}

fn wake(word: &AtomicU32) {
    let _ = futex::wake(word, futex::Flags::empty(), i32::MAX.cast_unsigned());
}
