//! A driver of the fault module (`tests/fault-module`): what goes wrong in the HSM, and what was asked of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fault_module::sys::CK_FUNCTION_LIST;
use fault_module::{BOARD, Fault, FaultNumber, Function, ProcessCounts, Shared, TARGET};

use crate::processes::PATIENCE;
use crate::token::TestToken;

/// A fault module on a folder of the test's own, before a module of the test's choice. Any number of processes may load
/// it; faults are met by all of them.
#[derive(Clone)]
pub struct FaultModule {
    board: Arc<Shared>,
    path: PathBuf,
    target: PathBuf,
}

impl FaultModule {
    /// The library, to be loaded as a PKCS#11 module. Cargo builds it before the tests that depend on it, and beside them.
    pub fn library() -> PathBuf {
        let library = std::env::current_exe().unwrap().with_file_name("libfault_module.so");
        assert!(library.is_file(), "{} was not built", library.display());
        library
    }

    /// Without faults, before the module `target`; what is shared is a file in this folder.
    pub fn new(folder: &Path, target: &Path) -> Self {
        let path = folder.join("faults");
        Self { board: Arc::new(Shared::create(&path).unwrap()), path, target: target.to_owned() }
    }

    /// What the processes that load it need in their environment.
    pub fn environment(&self) -> [(&'static str, &str); 2] {
        [(TARGET, self.target.to_str().unwrap()), (BOARD, self.path.to_str().unwrap())]
    }

    /// The same in a configuration's section of an HSM.
    pub fn configure(&self, hsm: &mut toml::Table) {
        let environment = hsm.entry("environment").or_insert_with(|| toml::Table::new().into());
        let pairs = self.environment().map(|(name, value)| (name.into(), toml::Value::from(value)));
        environment.as_table_mut().unwrap().extend(pairs);
        let folders = hsm.entry("folders").or_insert_with(|| toml::Value::Array(Vec::new()));
        folders.as_array_mut().unwrap().push(self.path.to_str().unwrap().into());
    }

    /// Sets a fault, which is met from the next call on.
    pub fn set(&self, fault: Fault) -> SetFault {
        assert!(fault.is_possible(), "{fault:?} does nothing there");
        let number = self.board.set(&fault).expect("a board with room for another fault");
        SetFault { board: self.board.clone(), number, fault }
    }

    /// Lifts every fault. What hangs goes on.
    pub fn clear(&self) {
        self.board.lift_all();
    }

    /// What was asked of it, and of which processes.
    pub fn counts(&self) -> Counts {
        Counts(self.board.processes(), self.path.clone())
    }

    /// Waits until the counts are so; looks after each call.
    pub async fn until(&self, what: &str, is_so: impl Fn(&Counts) -> bool + Send + 'static) -> Counts {
        let (board, path) = (self.board.clone(), self.path.clone());
        let look = move || {
            let counts = |board: &fault_module::Board| Counts(board.processes(), path.clone());
            board.wait_until(PATIENCE, |board| is_so(&counts(board))).then(|| counts(&board))
        };
        let counts = tokio::task::spawn_blocking(look).await.unwrap();
        counts.unwrap_or_else(|| panic!("{what}: not within {} s", PATIENCE.as_secs()))
    }
}

/// A fault that was set.
pub struct SetFault {
    board: Arc<Shared>,
    number: FaultNumber,
    fault: Fault,
}

impl SetFault {
    /// How often it was met so far.
    pub fn count(&self) -> u64 {
        self.board.fired(self.number)
    }

    /// Waits until it was met so often, in a test that has nothing else to do.
    pub fn await_fired(&self, times: u64) {
        let fired = |board: &fault_module::Board| board.fired(self.number) >= times;
        assert!(self.board.wait_until(PATIENCE, fired), "{:?}: met {} times", self.fault, self.count());
    }

    /// Waits until it was met.
    pub async fn fired(&self) {
        let this = Self { board: self.board.clone(), ..*self };
        tokio::task::spawn_blocking(move || this.await_fired(1)).await.unwrap();
    }

    /// Lifts it. What hangs goes on.
    pub fn lift(&self) {
        self.board.lift(self.number);
    }
}

/// What was asked of a module, by process, and which file they share.
#[derive(Debug)]
pub struct Counts(pub Vec<ProcessCounts>, PathBuf);

impl Counts {
    /// What that process has done; nothing, if it has not loaded the module.
    pub fn of(&self, pid: u32) -> Option<&ProcessCounts> {
        self.0.iter().find(|process| process.pid == pid)
    }

    /// How often this was called, in all of them.
    pub fn calls(&self, function: Function) -> u64 {
        self.0.iter().map(|process| process.calls(function)).sum()
    }

    /// How often a fault was met, in all of them.
    pub fn fired(&self) -> u64 {
        self.0.iter().map(|process| process.fired).sum()
    }

    /// Sessions that a process which is still there has open.
    pub fn sessions_open(&self) -> u64 {
        let alive = self.0.iter().filter(|process| self.is_there(process.pid));
        alive.map(|process| process.sessions_opened - process.sessions_closed).sum()
    }

    /// Whether it is still that process: numbers come round, and a machine that compiles uses them up within the hour. Of one
    /// that nobody may look into it has to be believed.
    fn is_there(&self, pid: u32) -> bool {
        match std::fs::read_to_string(format!("/proc/{pid}/maps")) {
            Ok(maps) => maps.contains(self.1.to_str().unwrap()),
            Err(_) => Path::new(&format!("/proc/{pid}")).exists(),
        }
    }
}

impl TestToken {
    /// The same token behind a fault module: what is started from here on meets its faults.
    pub fn with_faults(&mut self) -> FaultModule {
        let target = std::mem::replace(&mut self.boot.module, FaultModule::library());
        let faults = FaultModule::new(self.tokens().parent().unwrap(), &target);
        self.environment.extend(faults.environment().map(|(name, value)| (name, value.to_owned())));
        faults
    }
}

#[test]
fn the_table_has_every_function_of_the_standards_list() {
    // The compiler has compared names and signatures: what the module hands out is a list, each field of which is a row
    // of the table.
    let mut end = std::mem::offset_of!(CK_FUNCTION_LIST, C_Initialize);
    for (place, function) in Function::ALL.iter().enumerate() {
        assert_eq!((function.index(), function.offset_bytes()), (place, end), "{function:?}");
        end += size_of::<usize>();
    }
    assert_eq!(end, size_of::<CK_FUNCTION_LIST>(), "the list has more");
    assert_eq!(Function::ALL.len(), 68);
}
