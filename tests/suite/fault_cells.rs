//! The cells of the table of faults: every function, every kind of fault, in every step that calls the function.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fault_module::sys::{
    CKR_DEVICE_ERROR, CKR_DEVICE_REMOVED, CKR_FUNCTION_FAILED, CKR_GENERAL_ERROR, CKR_HOST_MEMORY,
    CKR_OBJECT_HANDLE_INVALID, CKR_OK, CKR_SESSION_CLOSED, CKR_SESSION_HANDLE_INVALID, CKR_SIGNATURE_INVALID,
    CKR_USER_NOT_LOGGED_IN, CKR_VENDOR_DEFINED,
};
use fault_module::{Fault, Function, Kind, Latency, Length, Vanishing};

use crate::fault_steps::{Met, Seen, Strike};
use crate::fault_stories::Story;

/// Longer than a custodian may take for a request.
const HANG: Duration = Duration::from_millis(2_500);
const SLOW: Latency = Latency::Uniform(Duration::from_millis(5), Duration::from_millis(40));

/// The kinds of faults, each with a name for the table.
pub const KINDS: [(&str, Kind); 27] = [
    ("general", Kind::Fail(CKR_GENERAL_ERROR)),
    ("device", Kind::Fail(CKR_DEVICE_ERROR)),
    ("func", Kind::Fail(CKR_FUNCTION_FAILED)),
    ("session", Kind::Fail(CKR_SESSION_HANDLE_INVALID)),
    ("login", Kind::Fail(CKR_USER_NOT_LOGGED_IN)),
    ("object", Kind::Fail(CKR_OBJECT_HANDLE_INVALID)),
    ("removed", Kind::Fail(CKR_DEVICE_REMOVED)),
    ("memory", Kind::Fail(CKR_HOST_MEMORY)),
    ("vendor", Kind::Fail(CKR_VENDOR_DEFINED | 0x1234)),
    ("badsig", Kind::Fail(CKR_SIGNATURE_INVALID)),
    ("lie-ok", Kind::Fail(CKR_OK)),
    ("done-dev", Kind::FailDone(CKR_DEVICE_ERROR)),
    ("done-ses", Kind::FailDone(CKR_SESSION_CLOSED)),
    ("hang", Kind::Hang(HANG)),
    ("slow", Kind::Latency(SLOW)),
    ("bit0", Kind::Corrupt { bit: 0 }),
    ("bit3", Kind::Corrupt { bit: 3 }),
    ("bit40", Kind::Corrupt { bit: 40 }),
    // In the last byte of an HMAC by SHA-1, which says where the code is taken from.
    ("bit152", Kind::Corrupt { bit: 152 }),
    ("short1", Kind::Short(Length::LessByOne)),
    ("short0", Kind::Short(Length::To(0))),
    ("segv", Kind::Segfault),
    ("exit", Kind::Exit(3)),
    ("logout", Kind::ForgetLogin),
    ("closed", Kind::CloseSessions),
    ("away", Kind::Vanish(Vanishing::Removed)),
    ("quiet", Kind::Vanish(Vanishing::Quietly)),
];

/// Where the service's secrets are, and when its log is anchored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    Wrapped,
    Resident,
    /// Wrapped; no answer leaves before an anchor in the token covers its commit.
    Anchored,
}

impl Setting {
    pub const ALL: [Self; 3] = [Self::Wrapped, Self::Resident, Self::Anchored];

    /// What is told in it.
    pub fn stories(self) -> Vec<Story> {
        let has = |story: &Story| match self {
            Self::Wrapped => true,
            Self::Resident => story.has_secret(),
            Self::Anchored => *story == Story::Imported,
        };
        Story::ALL.into_iter().filter(has).collect()
    }
}

/// Which calls of those in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum When {
    First,
    Middle,
    /// From the first one until the fault is lifted.
    Lasting,
}

/// A case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    pub setting: Setting,
    pub story: Story,
    pub step: usize,
    step_name: &'static str,
    /// Its place in [`Function::ALL`].
    pub function: usize,
    /// Its place in [`KINDS`].
    pub kind: usize,
    pub when: When,
    /// How often the function is called in the step.
    calls: u64,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { setting, story, step, step_name, function, kind, when, .. } = self;
        let (function, kind) = (Function::ALL[*function], KINDS[*kind].0);
        write!(f, "{setting:?}/{story:?}/{step}-{step_name}/{function:?}/{kind}/{when:?}")
    }
}

impl Cell {
    pub fn strike(&self) -> Strike {
        let fault = Fault::of(Function::ALL[self.function], KINDS[self.kind].1);
        let fault = match self.when {
            When::First => fault.once(),
            When::Middle => fault.from_call(counted(fault.kind, self.calls) / 2 + 1).once(),
            When::Lasting => fault,
        };
        Strike { step: self.step, fault, lasts: self.when == When::Lasting }
    }
}

/// How many of so many calls count, at least: of those that ask for a length first, every other one puts something out.
fn counted(kind: Kind, calls: u64) -> u64 {
    match kind {
        Kind::FailDone(_) | Kind::Corrupt { .. } | Kind::Short(_) => calls / 2,
        _ => calls,
    }
}

/// What each story ends in, step by step, without a fault.
pub type Calm = BTreeMap<(Setting, Story), Arc<Vec<Seen>>>;

/// Every cell there is: none that could be is left out.
pub fn all(calm: &Calm) -> Vec<Cell> {
    let mut cells = Vec::new();
    for ((setting, story), steps) in calm {
        for (step, seen) in steps.iter().enumerate() {
            for (function, calls) in seen.calls.iter().copied().enumerate().filter(|(_, calls)| *calls > 0) {
                for (kind, (_, what)) in KINDS.iter().enumerate() {
                    if !what.is_possible_in(Function::ALL[function]) {
                        continue;
                    }
                    for when in [When::First, When::Middle, When::Lasting] {
                        let counted = counted(*what, calls);
                        if when != When::Middle || counted > 1 {
                            let (setting, story, step_name) = (*setting, *story, seen.end.name);
                            cells.push(Cell { setting, story, step, step_name, function, kind, when, calls });
                        }
                    }
                }
            }
        }
    }
    cells
}

/// Of each function and kind one, in turn in one step and another; the same each time.
pub fn some(all: &[Cell]) -> Vec<Cell> {
    let mut by_pair: BTreeMap<(usize, usize), Vec<&Cell>> = BTreeMap::new();
    for cell in all {
        by_pair.entry((cell.function, cell.kind)).or_default().push(cell);
    }
    let mut some = Vec::new();
    for ((function, kind), mut cells) in by_pair {
        // Where requests do it too, those are faster than starts and commands.
        let is_fast = |cell: &&Cell| !cell.story.wears_keys() && cell.story != Story::Start;
        if cells.iter().any(is_fast) {
            cells.retain(is_fast);
        }
        let hangs = matches!(KINDS[kind].1, Kind::Hang(_));
        let when = if hangs {
            When::First
        } else {
            [When::First, When::Lasting, When::Middle][(function + kind) % 3]
        };
        if cells.iter().any(|cell| cell.when == when) {
            cells.retain(|cell| cell.when == when);
        }
        some.push(*cells[(function * 31 + kind * 7) % cells.len()]);
    }
    some
}

/// Of those every third, so that no function and no kind is without one.
pub fn a_few(all: &[Cell]) -> Vec<Cell> {
    some(all).into_iter().filter(|cell| (cell.function + cell.kind) % 3 == 0).collect()
}

/// Cells for one telling of their story: each in another step.
pub type Bundle = Vec<Cell>;

/// All of them, in as few tellings as it takes, in an order of the caller's.
pub fn bundled(cells: Vec<Cell>) -> Vec<Bundle> {
    let mut counts: BTreeMap<(Setting, Story, usize), usize> = BTreeMap::new();
    let mut bundles: BTreeMap<(usize, Setting, Story), Bundle> = BTreeMap::new();
    for cell in cells {
        let count = counts.entry((cell.setting, cell.story, cell.step)).or_default();
        bundles.entry((*count, cell.setting, cell.story)).or_default().push(cell);
        *count += 1;
    }
    let mut bundles: Vec<_> = bundles.into_values().collect();
    bundles.iter_mut().for_each(|bundle| bundle.sort_by_key(|cell| cell.step));
    bundles
}

/// What came of each cell, by function and kind.
#[derive(Default)]
pub struct Table {
    cells: BTreeMap<(usize, usize), (u32, u32)>,
    pub cases: u32,
    /// Those whose fault no call met.
    unmet: u32,
    answered: u32,
    unavailable: u32,
    /// The slowest.
    recovery: Duration,
    whole: Duration,
    pub red: Vec<(String, String)>,
}

impl Table {
    pub fn add(&mut self, cell: &Cell, met: Met, ended: Result<(), String>) {
        self.cases += 1;
        let count = self.cells.entry((cell.function, cell.kind)).or_default();
        count.0 += 1;
        match met {
            Met { times: 0, .. } => self.unmet += 1,
            Met { answered: true, .. } => self.answered += 1,
            _ => self.unavailable += 1,
        }
        self.recovery = self.recovery.max(met.recovery);
        self.whole = self.whole.max(met.whole);
        if let Err(reason) = ended {
            count.1 += 1;
            self.red.push((cell.to_string(), reason));
        }
    }

    /// How many functions there are rows of.
    pub fn functions(&self) -> Vec<Function> {
        let mut functions: Vec<_> = self.cells.keys().map(|(function, _)| Function::ALL[*function]).collect();
        functions.dedup();
        functions
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:22}", "cases, or cases!wrong")?;
        for (name, _) in KINDS {
            write!(f, "{name:>9}")?;
        }
        writeln!(f)?;
        for function in self.functions() {
            write!(f, "{:22}", format!("{function:?}"))?;
            for (kind, (_, does)) in KINDS.iter().enumerate() {
                let text = match self.cells.get(&(function.index(), kind)) {
                    None if does.is_possible_in(function) => "?".to_owned(),
                    None => "-".to_owned(),
                    Some((cases, 0)) => cases.to_string(),
                    Some((cases, red)) => format!("{cases}!{red}"),
                };
                write!(f, "{text:>9}")?;
            }
            writeln!(f)?;
        }
        let Self { cases, unmet, answered, unavailable, recovery, whole, red, .. } = self;
        writeln!(
            f,
            "{cases} cases: {answered} answered under the fault, {unavailable} x 503 first, {unmet} not met; {} wrong; \
             slowest answer after a fault {:.2} s, all custodians back after {:.2} s",
            red.len(),
            recovery.as_secs_f64(),
            whole.as_secs_f64()
        )?;
        for (cell, reason) in red {
            writeln!(f, "WRONG {cell}: {reason}")?;
        }
        Ok(())
    }
}
