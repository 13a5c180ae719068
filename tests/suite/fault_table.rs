//! Every function of PKCS#11 that the service calls, failing in every way, in every step of every story: nothing wrong is
//! accepted, nothing right is charged, nothing is lost or done twice, and the service goes on by itself.
//!
//! `HSM_AUTHD_FAULT_TABLE=some` for one cell of each function and kind instead of a third of those, `full` for all cells;
//! `HSM_AUTHD_FAULT_MINUTES` (60) bounds it, and `HSM_AUTHD_FAULT_WORKERS` (4) is how many services there are.
//! `HSM_AUTHD_FAULT_CELL` has only those cells done whose name contains it, each in a story of its own; several, with ", "
//! between them as the table prints them, in one. `HSM_AUTHD_FAULT_DONE` is a file with what an earlier run printed: what was
//! right there is not done again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::env;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fault_module::Function;
use tokio::runtime::Handle;
use toml::Table as Toml;

use crate::audit_files::Copy;
use crate::fault_cells::{Bundle, Calm, Cell, Setting, Table, a_few, all, bundled, some};
use crate::fault_steps::{Met, Run, Seen};
use crate::fault_stories::Story;
use crate::faults_served::World;
use crate::submissions::Dice;
use crate::token::TestToken;

/// After so many stories a service is stopped and looked at, and another one takes its place.
const STORIES_MAX: usize = 120;
/// After so many that made keys: each start looks at all of them.
const WEARING_MAX: usize = 8;

/// Those that only a set-up or the end of a process calls.
const OUTSIDE: [Function; 6] = [
    Function::C_Finalize,
    Function::C_CloseSession,
    Function::C_CloseAllSessions,
    Function::C_Logout,
    Function::C_InitToken,
    Function::C_InitPIN,
];

/// A service that stories are told to.
struct Stage {
    world: Arc<World>,
    stories: usize,
    wearing: usize,
    /// How much of its log was read.
    read_bytes: usize,
    /// What a cell has left may be the reason for what is found at the end.
    wrong: bool,
}

impl Stage {
    async fn start(setting: Setting) -> Self {
        let custody = if setting == Setting::Resident { "resident" } else { "wrapped" };
        let anchored = |config: &mut Toml| {
            let audit = config.entry("audit").or_insert_with(|| Toml::new().into());
            audit.as_table_mut().unwrap().insert("anchor".into(), "every_commit".into());
        };
        let arguments = ["--custodians", "2", "--custody", custody];
        let change = |config: &mut Toml| {
            if setting == Setting::Anchored {
                anchored(config)
            }
        };
        let world = Arc::new(World::start_as(&arguments, change).await);
        Self { world, stories: 0, wearing: 0, read_bytes: 0, wrong: false }
    }

    fn is_worn(&self) -> bool {
        self.stories >= STORIES_MAX || self.wearing >= WEARING_MAX
    }

    /// Tells a story; a failed assertion in it is its end, too.
    async fn tell(&mut self, story: Story, mut run: Run) -> (Vec<Met>, Result<Vec<Seen>, String>) {
        self.stories += 1;
        self.wearing += usize::from(story.wears_keys());
        let met = run.met.clone();
        let task = tokio::spawn(async move { story.tell(&mut run).await.map(|()| run.seen) });
        let mut ended = task.await.unwrap_or_else(|panic| Err(panic.to_string()));
        let said = self.world.served.log();
        // The binding takes a null list of functions for one, which only a process's end helps against.
        let is_ours = |line: &str| line.contains("panicked") && !line.contains("cryptoki");
        if said[self.read_bytes..].lines().any(is_ours) {
            ended = Err("a panic".to_owned());
        }
        if ended.is_err() {
            println!("{}", &said[self.read_bytes..]);
        }
        self.read_bytes = said.len();
        self.wrong |= ended.is_err();
        (met.lock().unwrap_or_else(PoisonError::into_inner).clone(), ended)
    }

    /// Stops it, and looks at what it leaves.
    async fn end(self) -> Result<(), String> {
        let Ok(world) = Arc::try_unwrap(self.world) else { return Err("somebody is still there".to_owned()) };
        let World { mut daemon, faults, served, crowd, .. } = world;
        drop(crowd);
        let look = move || {
            let status = served.stop();
            if !status.success() {
                return Err(format!("the service ended with {status}"));
            }
            if faults.counts().sessions_open() != 0 {
                return Err("sessions are left".to_owned());
            }
            Copy::of(&daemon.database()).verified(&[]);
            daemon.resume();
            match daemon.stop().success() {
                true => Ok(()),
                false => Err("it does not end well".to_owned()),
            }
        };
        let looked = tokio::task::spawn_blocking(look).await;
        looked.unwrap_or_else(|panic| Err(panic.to_string()))
    }
}

/// What is still to be done, and what came of the rest.
struct Campaign {
    calm: Calm,
    queues: Mutex<BTreeMap<Setting, VecDeque<Bundle>>>,
    table: Mutex<Table>,
    until: Instant,
}

impl Campaign {
    fn next(&self, setting: Setting) -> Option<Bundle> {
        self.queues.lock().unwrap().get_mut(&setting)?.pop_front()
    }

    /// Where most is left to be done.
    fn setting(&self) -> Option<Setting> {
        let queues = self.queues.lock().unwrap();
        let left = queues.iter().filter(|(_, queue)| !queue.is_empty());
        left.max_by_key(|(_, queue)| queue.len()).map(|(setting, _)| *setting)
    }

    fn left(&self) -> usize {
        self.queues.lock().unwrap().values().flatten().map(Vec::len).sum()
    }

    async fn work(self: Arc<Self>) {
        while let Some(setting) = self.setting().filter(|_| Instant::now() < self.until) {
            let mut stage = Stage::start(setting).await;
            let mut last = None;
            while let Some(bundle) = self.next(setting).filter(|_| Instant::now() < self.until) {
                let story = bundle[0].story;
                let expected = self.calm[&(setting, story)].clone();
                let strikes = bundle.iter().map(Cell::strike).collect();
                let run = Run::struck(stage.world.clone(), strikes, expected).await;
                let begun = Instant::now();
                let (met, ended) = stage.tell(story, run).await;
                last = bundle.first().copied();
                let is_wrong = ended.is_err();
                self.write_down(bundle, met, ended.map(|_| ()), begun.elapsed());
                if is_wrong || stage.is_worn() {
                    break;
                }
            }
            // What is left by one that was wrong already proves nothing more.
            if !stage.wrong
                && let (Err(reason), Some(last)) = (stage.end().await, last)
            {
                let mut table = self.table.lock().unwrap();
                table.red.push((format!("the service's end, {last} being of its last story"), reason));
            }
        }
    }

    /// A story that ended early is wrong because of the last fault that it came to, or of one before; what it did not
    /// come to is told another time.
    fn write_down(&self, mut bundle: Bundle, met: Vec<Met>, ended: Result<(), String>, took: Duration) {
        let names = bundle.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        println!("{names}: {:.2} s, {met:?}, {ended:?}", took.as_secs_f64());
        let reached = if ended.is_ok() { bundle.len() } else { met.len().clamp(1, bundle.len()) };
        let rest = bundle.split_off(reached);
        let mut table = self.table.lock().unwrap();
        for (place, cell) in bundle.iter().enumerate() {
            let before: String = bundle[..place].iter().map(|cell| format!(" (after {cell})")).collect();
            let is_last = place + 1 == reached;
            let ended = if is_last { ended.clone() } else { Ok(()) };
            table.add(cell, met.get(place).copied().unwrap_or_default(), ended.map_err(|it| it + &before));
        }
        if !rest.is_empty() {
            self.queues.lock().unwrap().entry(rest[0].setting).or_default().push_back(rest);
        }
    }
}

/// Each story without a fault: what it ends in, and which calls are made each time.
async fn calm(setting: Setting, times: usize) -> Vec<((Setting, Story), Arc<Vec<Seen>>)> {
    let mut stage = Stage::start(setting).await;
    let mut calm = Vec::new();
    for story in setting.stories() {
        let mut steps: Option<Vec<Seen>> = None;
        for _ in 0..times {
            let run = Run::calm(stage.world.clone()).await;
            let (_, ended) = stage.tell(story, run).await;
            let seen = ended.unwrap_or_else(|reason| panic!("{setting:?}: {story:?}: {reason}"));
            steps = Some(match steps {
                None => seen,
                Some(steps) => each_time(steps, seen),
            });
        }
        calm.push(((setting, story), Arc::new(steps.unwrap())));
    }
    assert_eq!(stage.end().await, Ok(()));
    calm
}

/// What both say; the calls that are made each time.
fn each_time(mut steps: Vec<Seen>, others: Vec<Seen>) -> Vec<Seen> {
    assert_eq!(steps.len(), others.len());
    for (one, other) in steps.iter_mut().zip(others) {
        assert_eq!(one.end, other.end);
        for (calls, others) in one.calls.iter_mut().zip(other.calls) {
            *calls = (*calls).min(others);
        }
    }
    steps
}

/// Which functions nothing calls, and which only a set-up or the end of a process does.
fn rest(calm: &Calm) -> (Vec<Function>, Vec<Function>) {
    let steps = || calm.values().flat_map(|steps| steps.iter());
    let tested = |function: &&Function| steps().any(|seen| seen.calls[function.index()] > 0);
    let mut bare = TestToken::bare();
    let faults = bare.with_faults();
    assert!(bare.set_up(true).status.success());
    assert!(bare.custodian().end().0.success());
    let counts = faults.counts();
    let untested = Function::ALL.iter().copied().filter(|function| !tested(&function));
    untested.partition(|function| counts.calls(*function) == 0)
}

/// Each on a thread of its own: services are started and stopped there, which takes a thread's time.
async fn beside<T: Send + 'static>(
    all: impl IntoIterator<Item = impl FnOnce() -> T + Send + 'static>,
) -> Vec<T> {
    let threads: Vec<_> = all.into_iter().map(tokio::task::spawn_blocking).collect();
    let mut ended = Vec::new();
    for thread in threads {
        ended.push(thread.await.unwrap());
    }
    ended
}

/// The cells of a line of an earlier run's that came out right.
fn right(line: &str) -> Option<&str> {
    line.strip_suffix(", Ok(())").and_then(|line| Some(line.split_once(" s, [Met")?.0.rsplit_once(": ")?.0))
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_the_hsm_does_at_any_call_nobody_is_wronged() {
    let begun = Instant::now();
    let what = env::var("HSM_AUTHD_FAULT_TABLE").unwrap_or_default();
    let is_full = what == "full";
    let times = if is_full { 2 } else { 1 };
    let told =
        beside(Setting::ALL.map(|setting| move || Handle::current().block_on(calm(setting, times)))).await;
    let calm: Calm = told.into_iter().flatten().collect();
    let (never, outside) = rest(&calm);
    println!("{} functions are called by nothing, so no fault of theirs is met: {never:?}", never.len());
    println!("{} only by a set-up or at the end of a process: {outside:?}", outside.len());
    assert!(outside.iter().all(|function| OUTSIDE.contains(function)), "{outside:?} are not tested");

    let every = all(&calm);
    let total = every.len();
    let only = env::var("HSM_AUTHD_FAULT_CELL").ok();
    let mut cells = match what.as_str() {
        _ if only.is_some() => every,
        "full" => every,
        "some" => some(&every),
        _ => a_few(&every),
    };
    if let Some(only) = &only {
        cells.retain(|cell| only.split(", ").any(|only| cell.to_string().contains(only)));
    }
    if let Ok(path) = env::var("HSM_AUTHD_FAULT_DONE") {
        let said = std::fs::read_to_string(path).unwrap();
        let done: BTreeSet<_> = said.lines().filter_map(right).flat_map(|names| names.split(", ")).collect();
        let before = cells.len();
        cells.retain(|cell| !done.contains(cell.to_string().as_str()));
        println!(
            "{} cells were right in an earlier run; what the ends of its services showed is not known",
            before - cells.len()
        );
    }
    let (mut dice, seed) = Dice::new();
    // So that what there is time for is of all kinds.
    for place in (1..cells.len()).rev() {
        cells.swap(place, dice.below(place + 1));
    }
    let mut queues: BTreeMap<Setting, VecDeque<Bundle>> = BTreeMap::new();
    let bundles = match only {
        Some(only) if !only.contains(", ") => cells.into_iter().map(|cell| vec![cell]).collect(),
        _ => bundled(cells),
    };
    for bundle in bundles {
        queues.entry(bundle[0].setting).or_default().push_back(bundle);
    }
    let minutes = Duration::from_secs(60 * number("HSM_AUTHD_FAULT_MINUTES", 60));
    let (queues, table, until) = (Mutex::new(queues), Mutex::default(), begun + minutes);
    let campaign = Arc::new(Campaign { calm, queues, table, until });
    println!(
        "{} of {total} cells, seed {seed}; {:.0} s so far",
        campaign.left(),
        begun.elapsed().as_secs_f64()
    );
    let workers = (0..number("HSM_AUTHD_FAULT_WORKERS", 4)).map(|_| {
        let campaign = campaign.clone();
        move || Handle::current().block_on(campaign.work())
    });
    beside(workers).await;

    let left = campaign.left();
    let table = campaign.table.lock().unwrap();
    let mut said = table.to_string();
    writeln!(said, "{left} cells were left when the time was over; {:.0} s", begun.elapsed().as_secs_f64())
        .unwrap();
    println!("{said}");
    if let Ok(path) = env::var("HSM_AUTHD_FAULT_REPORT") {
        std::fs::write(path, &said).unwrap();
    }
    assert!(table.red.is_empty(), "{} of {} cases are wrong", table.red.len(), table.cases);
}
