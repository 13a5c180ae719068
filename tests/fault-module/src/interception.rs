//! What happens between the caller and the real module: nothing, or what a test has asked for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;

use cryptoki_sys::{
    CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID, CKR_DEVICE_REMOVED, CKR_HOST_MEMORY, CKR_OBJECT_HANDLE_INVALID,
    CKR_OK, CKR_TOKEN_NOT_PRESENT,
};
use rustix::process::{Signal, getpid, kill_process};

use crate::board::{Process, Slot};
use crate::fault::{Kind, Length, Vanishing};
use crate::functions::{Function, Place};
use crate::outputs::Written;
use crate::shared::Shared;

/// What faults do to the real module besides the call at hand.
pub(crate) trait Token {
    /// Logs the session's token out.
    fn log_out(&self, session: CK_SESSION_HANDLE);
    /// Closes the slot's sessions.
    fn close_sessions(&self, slot: CK_SLOT_ID);
}

/// The module's own state, in each process that has loaded it.
pub(crate) struct Interception {
    board: Shared,
    /// A pid, and where it counts on the board.
    place: AtomicU64,
    /// The sessions that are open, and their slots.
    sessions: Mutex<HashMap<CK_SESSION_HANDLE, CK_SLOT_ID>>,
    /// It has noticed that the token is away, and does not notice that it is back ([`Vanishing::Quietly`]).
    lost: AtomicBool,
}

/// A call: of which function, on which slot or session, and what it puts out.
pub(crate) struct Call<'a> {
    pub function: Function,
    pub on: u64,
    pub written: Written,
    /// Has the real module do it.
    pub forward: &'a dyn Fn() -> CK_RV,
}

impl Interception {
    pub(crate) fn new(board: Shared) -> Self {
        Self {
            board,
            place: AtomicU64::new(u64::MAX),
            sessions: Mutex::new(HashMap::new()),
            lost: AtomicBool::new(false),
        }
    }

    /// Counts the call, has it done, and does what faults ask for.
    pub(crate) fn intercept(&self, token: &dyn Token, mut call: Call) -> CK_RV {
        let pid = getpid().as_raw_nonzero().get().cast_unsigned();
        let Some(process) = self.process(pid) else {
            eprintln!("fault module: too many processes for one board");
            return CKR_HOST_MEMORY;
        };
        if let Some(count) = process.calls.get(call.function.index()) {
            count.fetch_add(1, Ordering::AcqRel);
        }
        self.board.ring();
        let fault = self.fault_before(process, pid, &mut call);
        let code = self.answer(token, process, &mut call, fault);
        if code == CKR_OK {
            self.spoil(process, pid, &mut call);
        }
        self.board.ring();
        code
    }

    fn process(&self, pid: u32) -> Option<&Process> {
        let known = self.place.load(Ordering::Relaxed);
        if known >> 32 == pid.into() {
            return self.board.process((known & u64::from(u32::MAX)) as usize);
        }
        let place = self.board.place_of(pid)?;
        self.place.store(u64::from(pid) << 32 | place as u64, Ordering::Relaxed);
        self.board.process(place)
    }

    /// The first fault that is for this call; latencies are over then.
    fn fault_before(&self, process: &Process, pid: u32, call: &mut Call) -> Option<(Kind, &Slot)> {
        let mut first = None;
        for (number, slot) in self.board.slots() {
            let Some(kind) = slot.kind_in(call.function, pid) else { continue };
            if kind.is_of_output() || matches!(kind, Kind::FailDone(_)) && call.written.is_query() {
                continue;
            }
            let Some(place) = slot.count() else { continue };
            if let Kind::Latency(latency) = kind {
                slot.fire(process);
                sleep(latency.draw((number as u64) << 32 ^ place));
            } else if first.is_none() {
                slot.fire(process);
                first = Some((kind, slot));
            }
        }
        if first.is_some() {
            // Before it strikes: it may end the process.
            self.board.ring();
        }
        first
    }

    fn answer(
        &self,
        token: &dyn Token,
        process: &Process,
        call: &mut Call,
        fault: Option<(Kind, &Slot)>,
    ) -> CK_RV {
        match fault {
            Some((Kind::Fail(code), _)) => return code,
            Some((Kind::FailDone(code), _)) => {
                self.forward(process, call);
                return code;
            }
            Some((Kind::Hang(max), slot)) => slot.hang(max),
            Some((Kind::Segfault, _)) => die(),
            Some((Kind::Exit(code), _)) => std::process::exit(code),
            Some((Kind::ForgetLogin, _)) => self.open().keys().for_each(|session| token.log_out(*session)),
            Some((Kind::CloseSessions, _)) => self.close_all(token, process),
            Some((Kind::Vanish(how), _)) => return self.vanished(token, process, call, how),
            // Handled elsewhere.
            Some((Kind::Latency(_) | Kind::Corrupt { .. } | Kind::Short(_) | Kind::Long(_), _)) | None => {}
        }
        match self.lost.load(Ordering::Relaxed) {
            true => self.vanished(token, process, call, Vanishing::Quietly),
            false => self.forward(process, call),
        }
    }

    fn vanished(&self, token: &dyn Token, process: &Process, call: &mut Call, how: Vanishing) -> CK_RV {
        let place = call.function.place();
        let away = match how {
            Vanishing::Quietly => None,
            Vanishing::NotPresent => Some(CKR_TOKEN_NOT_PRESENT),
            Vanishing::Removed => Some(CKR_DEVICE_REMOVED),
        };
        match away {
            None => self.lost.store(true, Ordering::Relaxed),
            Some(_) => self.close_all(token, process),
        }
        match (place, away) {
            (Place::slot | Place::session | Place::object, Some(code)) => return code,
            (Place::object, None) => return CKR_OBJECT_HANDLE_INVALID,
            _ => {}
        }
        if call.function == Function::C_GetSlotList {
            // Softokn writes all its slots, whatever room it is given: it is not asked.
            call.written.claim(0);
            return CKR_OK;
        }
        let code = self.forward(process, call);
        if code == CKR_OK && call.function == Function::C_FindObjects {
            call.written.shorten(Length::To(0));
        }
        code
    }

    fn spoil(&self, process: &Process, pid: u32, call: &mut Call) {
        for (_, slot) in self.board.slots() {
            let kind = slot.kind_in(call.function, pid).filter(Kind::is_of_output);
            let Some(kind) = kind.filter(|kind| kind.is_possible_in(call.function)) else { continue };
            if !matches!(kind, Kind::Long(_)) && !call.written.is_something() {
                continue;
            }
            if slot.count().is_none() {
                continue;
            }
            slot.fire(process);
            match kind {
                Kind::Corrupt { bit } => call.written.corrupt(bit),
                Kind::Short(length) => call.written.shorten(length),
                Kind::Long(length) => call.written.claim(length),
                _ => {}
            }
        }
    }

    /// Has it done, and remembers which sessions there are.
    fn forward(&self, process: &Process, call: &mut Call) -> CK_RV {
        let code = (call.forward)();
        if code != CKR_OK {
            return code;
        }
        match call.function {
            Function::C_OpenSession => {
                if let Some(session) = call.written.handle() {
                    self.open().insert(session, call.on);
                    process.sessions_opened.fetch_add(1, Ordering::AcqRel);
                }
            }
            Function::C_CloseSession => self.keep_open(process, |session, _| session != call.on),
            Function::C_CloseAllSessions => self.keep_open(process, |_, slot| slot != call.on),
            Function::C_Finalize => {
                self.keep_open(process, |_, _| false);
                self.lost.store(false, Ordering::Relaxed);
            }
            _ => {}
        }
        code
    }

    /// Forgets the sessions that are closed.
    fn keep_open(&self, process: &Process, is_open: impl Fn(CK_SESSION_HANDLE, CK_SLOT_ID) -> bool) {
        let mut open = self.open();
        let before = open.len();
        open.retain(|session, slot| is_open(*session, *slot));
        process.sessions_closed.fetch_add((before - open.len()) as u64, Ordering::AcqRel);
    }

    fn close_all(&self, token: &dyn Token, process: &Process) {
        self.open().values().for_each(|slot| token.close_sessions(*slot));
        self.keep_open(process, |_, _| false);
    }

    fn open(&self) -> MutexGuard<'_, HashMap<CK_SESSION_HANDLE, CK_SLOT_ID>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the process as a wild pointer would. Twice: a handler, such as that of Rust's runtime, takes the first one and
/// puts the default back.
fn die() -> ! {
    loop {
        let _ = kill_process(getpid(), Signal::SEGV);
        std::thread::yield_now();
    }
}
