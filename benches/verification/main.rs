//! `make bench`: how many codes a second the appliance verifies durably, what that costs, and what this
//! machine could do at most.
//!
//! It starts `hsm-authd dev` on a real disk, enrols TOTP credentials, and verifies their codes over mutual TLS:
//! one request at a time on each connection, every one a code that was not used before, every answer a 200.
//! Beside that it measures the ceilings: the same server saying 404, C_Sign alone, and durable commits alone.
//! It asserts no time. `docs/performance.md` says how to read the table.

mod anchors;
mod appliance;
mod ceilings;
#[path = "../../tests/suite/client.rs"]
mod client;
mod load;
mod machine;
mod report;
#[path = "../../tests/suite/store_samples.rs"]
#[allow(dead_code, clippy::unwrap_used, clippy::panic, reason = "the tests' own rows")]
mod samples;
mod wire;

use std::fmt::Display;
use std::fs;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Weak};
use std::time::Duration;

use appliance::Appliance;
use clap::Parser;
use client::Http;
use load::{Credential, Generator, Work};
use nix::sys::signal::{SigSet, Signal};
use report::{Point, Report};

/// What did not go as it has to.
type Outcome<T = ()> = Result<T, String>;

/// The connections of each measurement.
const CONNECTIONS: [usize; 4] = [1, 8, 64, 256];
/// So many codes of one credential are right at any moment, with a skew of 2 steps and one step of margin: the
/// first of them unwraps the secret, the others are measured.
const CODES: usize = 4;
/// Of a custodian's cache, which holds 10,000 secrets, as many as surely fit although their ids spread unevenly.
const CREDENTIALS_PER_CUSTODIAN: usize = 9_000;
/// The whole run ends at the latest after this.
const RUN_MAX: Duration = Duration::from_secs(170);
const QUICK_RUN_MAX: Duration = Duration::from_secs(60);

/// Durable verifications a second over mutual TLS, what they cost, and the ceilings.
#[derive(Parser)]
struct Options {
    /// A short run: every number is there, none is worth much.
    #[arg(long)]
    quick: bool,
    /// How many custodians; by default as many as `dev` starts.
    #[arg(long)]
    custodians: Option<u16>,
    /// Where the database is to be: a folder on a real disk. By default under Cargo's target folder.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where the numbers go as JSON. By default verification.json under Cargo's target folder.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Only this: h1 or h2, and how many connections (`h1,64`). For a profiler, with --seconds.
    #[arg(long)]
    only: Option<String>,
    /// Only verifications whose answers wait for an anchor in the token (`[audit] anchor = "every_commit"`), in turns with
    /// those that do not. Not with --only.
    #[arg(long, conflicts_with = "only")]
    anchors: bool,
    /// How long each measurement takes at most.
    #[arg(long)]
    seconds: Option<f64>,
    /// Set by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    /// A child of this program that computes HMACs on this token for so many milliseconds.
    #[arg(long, hide = true)]
    hmac_ms: Option<u64>,
}

/// How much is measured.
struct Plan {
    point: Duration,
    ceiling: Duration,
    points: Vec<(Http, usize)>,
    ceilings: bool,
    quick: bool,
}

impl Plan {
    fn new(options: &Options) -> Outcome<Self> {
        let default_s = if options.quick { 0.3 } else { 3.0 };
        let point =
            Duration::try_from_secs_f64(options.seconds.unwrap_or(default_s)).map_err(|e| e.to_string())?;
        let both = || [Http::One, Http::Two].into_iter();
        let points = match options.only.as_deref().map(|only| only.split_once(',')) {
            None if options.anchors => CONNECTIONS.map(|connections| (Http::One, connections)).to_vec(),
            None => both().flat_map(|http| CONNECTIONS.map(|connections| (http, connections))).collect(),
            Some(Some(("h1", count))) => vec![(Http::One, count.parse().map_err(words)?)],
            Some(Some(("h2", count))) => vec![(Http::Two, count.parse().map_err(words)?)],
            Some(_) => return Err("--only takes h1,COUNT or h2,COUNT".to_owned()),
        };
        let ceiling = point.min(Duration::from_millis(1_500));
        Ok(Self {
            point,
            ceiling,
            points,
            ceilings: options.only.is_none() && !options.anchors,
            quick: options.quick,
        })
    }

    /// So many credentials that their codes last for the measurement, if the machine is not much faster than
    /// those this was written on; then it ends early. `pace` is how many first verifications it did a second:
    /// on a slow or busy machine fewer are enough, and to enrol more would take all the time there is.
    fn credentials(&self, connections: usize, custodians: usize, pace: f64) -> usize {
        let per_second_max = match connections {
            1 => 4_000.0,
            8 => 20_000.0,
            _ => 40_000.0,
        };
        let per_second_max = f64::min(per_second_max, 3.0 * pace);
        let wanted = self.point.as_secs_f64() * per_second_max / (CODES - 1) as f64;
        let most = if self.quick { 1_500 } else { custodians * CREDENTIALS_PER_CUSTODIAN };
        (wanted as usize).clamp(connections, most.max(connections))
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let ran = match options.hmac_ms {
        Some(ms) => ceilings::hmac_child(Duration::from_millis(ms)),
        None => run(&options),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            // Nobody is left to tell if standard error is gone.
            let _ = writeln!(std::io::stderr(), "bench: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Outcome {
    // Before any thread is there: all of them inherit it. The appliance does not.
    let interrupts = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    interrupts.thread_block().map_err(words)?;
    let plan = Plan::new(options)?;
    let temporary = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let base = options.dir.clone().unwrap_or_else(|| temporary.clone());
    let folder = base.join(format!("hsm-authd-bench-{}", std::process::id()));
    let mut appliances =
        Appliances(vec![Arc::new(Appliance::start(&folder, options.custodians, "interval")?)]);
    if options.anchors {
        let folder = folder.with_added_extension("anchors");
        appliances.0.push(Arc::new(Appliance::start(&folder, options.custodians, "every_commit")?));
    }

    // Weak: whichever way this ends, the appliances end with it.
    let watched = appliances.watched();
    std::thread::spawn(move || {
        if interrupts.wait().is_ok() {
            give_up(&watched, "interrupted");
        }
    });
    let watched = appliances.watched();
    let run_max = if options.quick { QUICK_RUN_MAX } else { RUN_MAX + plan.point * 8 };
    std::thread::spawn(move || {
        std::thread::sleep(run_max);
        give_up(&watched, "it took too long");
    });

    let report = match appliances.0.as_slice() {
        [by_interval, by_commit] => anchors::measure(&plan, by_interval, by_commit)?,
        [one, ..] => measure(&plan, one)?,
        [] => return Err("no appliance".to_owned()),
    };
    drop(appliances);
    write!(std::io::stdout(), "{report}").map_err(words)?;
    let json = options.json.clone().unwrap_or_else(|| temporary.join("verification.json"));
    if let Some(parent) = json.parent() {
        fs::create_dir_all(parent).map_err(|e| format!("{}: {e}", parent.display()))?;
    }
    let text = serde_json::to_vec_pretty(&report.json()).map_err(words)?;
    fs::write(&json, text).map_err(|e| format!("{}: {e}", json.display()))?;
    writeln!(std::io::stdout(), "\nThe same as JSON: {}", json.display()).map_err(words)
}

/// All that run.
struct Appliances(Vec<Arc<Appliance>>);

impl Appliances {
    fn watched(&self) -> Vec<Weak<Appliance>> {
        self.0.iter().map(Arc::downgrade).collect()
    }
}

/// Ends the appliances, then this process.
fn give_up(appliances: &[Weak<Appliance>], reason: &str) -> ! {
    appliances.iter().filter_map(Weak::upgrade).for_each(|appliance| appliance.end());
    let _ = writeln!(std::io::stderr(), "\nbench: {reason}");
    std::process::exit(1);
}

/// The load on one appliance, and how far it came.
struct Course<'a> {
    appliance: &'a Appliance,
    generator: Generator<'a>,
    enrolled: usize,
    /// First verifications a second.
    pace: f64,
}

impl<'a> Course<'a> {
    fn new(appliance: &'a Appliance) -> Outcome<Self> {
        let generator = Generator::new(appliance)?;
        Ok(Self { appliance, generator, enrolled: 0, pace: f64::INFINITY })
    }

    /// Enrols credentials, uses each once, and measures their further codes; the third point is that.
    fn verify(&mut self, plan: &Plan, http: Http, connections: usize) -> Outcome<[Point; 3]> {
        progress(&format!("{connections} connections, {}", report::protocol(http)));
        // 64 connections: enough that the appliance is busy, whatever is measured afterwards.
        let count = plan.credentials(connections, self.appliance.custodians(), self.pace);
        let (first, hands) = (self.enrolled, 64.min(count));
        self.enrolled += count;
        let works = split(count, hands).map(|(from, to)| Work::enrol(first + from..first + to));
        let (enrolment, works) = self.generator.run(Http::One, works.collect(), None)?;
        let credentials: Vec<Credential> = works.into_iter().flat_map(Work::into_credentials).collect();

        let works = deal(credentials, hands).map(Work::verify_each_once);
        let (first, works) = self.generator.run(Http::One, works.collect(), None)?;
        self.pace = first.latencies.len() as f64 / first.elapsed.as_secs_f64();

        let credentials = works.into_iter().flat_map(Work::into_credentials).collect();
        let works = deal(credentials, connections).map(Work::verify);
        let (verified, _) = self.generator.run(http, works.collect(), Some(plan.point))?;
        Ok([
            Point::new("enrol", Http::One, enrolment),
            Point::new("first", Http::One, first),
            Point::new("verify", http, verified),
        ])
    }
}

fn measure(plan: &Plan, appliance: &Appliance) -> Outcome<Report> {
    let mut report = Report::new(machine::describe(appliance.folder())?, appliance.custodians());
    let mut course = Course::new(appliance)?;
    for (http, connections) in &plan.points {
        course.verify(plan, *http, *connections)?.into_iter().for_each(|point| report.add(point));
    }
    if plan.ceilings {
        for (http, connections) in &plan.points {
            progress(&format!("404 over {connections} connections, {}", report::protocol(*http)));
            let works = (0..*connections).map(|_| Work::Nothing).collect();
            report.add(Point::new(
                "nothing",
                *http,
                course.generator.run(*http, works, Some(plan.ceiling))?.0,
            ));
        }
        let mut counts = vec![1, appliance.custodians()];
        counts.dedup();
        for processes in counts {
            progress(&format!("C_Sign in {processes} processes"));
            report.hmacs.push(ceilings::hmacs(appliance.folder(), processes, plan.ceiling)?);
        }
        for callers in CONNECTIONS {
            progress(&format!("commits of {callers} callers"));
            report.commits.push(ceilings::commits(appliance.folder(), callers, plan.ceiling)?);
        }
    }
    report.entry_bytes = ceilings::entry_bytes(&appliance.folder().join("store/hsm-authd.db"))?;
    progress("");
    Ok(report)
}

/// On standard error, so that standard output is the table alone.
fn progress(what: &str) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        let _ = write!(stderr, "\r\x1b[K{what}");
    }
}

/// `0..count` in `parts` ranges.
fn split(count: usize, parts: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..parts).map(move |part| (part * count / parts, (part + 1) * count / parts))
}

/// The credentials, dealt out to so many hands.
fn deal(credentials: Vec<Credential>, hands: usize) -> impl Iterator<Item = Vec<Credential>> {
    let mut dealt: Vec<Vec<Credential>> = (0..hands).map(|_| Vec::new()).collect();
    for (number, credential) in credentials.into_iter().enumerate() {
        dealt[number % hands].push(credential);
    }
    dealt.into_iter()
}

fn words(error: impl Display) -> String {
    error.to_string()
}
