//! `hsm-authd keys`: what an operator sees of the system keys, and does with them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::Arc;

use crate::Ending;
use crate::clock::{SystemClock, WatchedClock};
use crate::config::{Config, HsmConfig};
use crate::control_socket;
use crate::custodian::key_task::{KeyDescription, KeyTask, KeyTaskDone, KeyWork};
use crate::domain::audit::Event;
use crate::domain::checkpoint::Note;
use crate::domain::system_key::{KeyKind, NewestKeys};
use crate::hsm::messages::{self, FRAME_BYTES_MAX};
use crate::init;
use crate::offline::Offline;
use crate::service::at_rest::AtRest;
use crate::store::Store;
use crate::store::usage::{key_usage, rotations};
use crate::supervisor;

mod rewrapping;
mod socket;
mod table;

use socket::Unreachable;

/// `hsm-authd keys`
#[derive(clap::Subcommand)]
pub enum Command {
    /// Show every system key: its version, its attributes as the HSM reports them, and what still needs it.
    List {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// As JSON, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Make the next version of a key, and have a running service use it.
    Rotate {
        /// kek, row, data, attest, audit or import.
        #[arg(value_parser = parse_kind)]
        kind: KeyKind,
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Bring everything that is stored under the newest keys, while the service runs.
    Rewrap {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Destroy a version that nothing needs any more, while the service is stopped.
    Retire {
        /// kek, row, data, attest, audit or import.
        #[arg(value_parser = parse_kind)]
        kind: KeyKind,
        /// The version, such as 1.
        version: u16,
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
}

fn parse_kind(text: &str) -> Result<KeyKind, String> {
    KeyKind::parse(text).ok_or_else(|| {
        let all: Vec<_> = KeyKind::ALL.into_iter().map(KeyKind::name).collect();
        format!("must be one of {}", all.join(", "))
    })
}

/// Runs it.
///
/// # Errors
/// See [`Ending`].
pub fn run(command: Command) -> Ending {
    match command {
        Command::List { config, json } => list(&load(&config)?, json),
        Command::Rotate { kind, config } => rotate(&load(&config)?, kind),
        Command::Rewrap { config } => rewrapping::run(&load(&config)?.store.path),
        Command::Retire { kind, version, config } => retire(&load(&config)?, kind, version),
    }
}

fn load(path: &Path) -> Result<Config, String> {
    Config::load(path).map_err(|error| error.to_string())
}

fn list(config: &Config, json: bool) -> Ending {
    let keys = described(&config.hsm)?;
    let store = &config.store.path;
    // Before the first start there is no database, and nothing that needs a key.
    let (usage, made) = match store.exists() {
        true => (key_usage(store), rotations(store)),
        false => (Ok(Default::default()), Ok(Default::default())),
    };
    let (usage, made) = (usage.map_err(|e| e.to_string())?, made.map_err(|e| e.to_string())?);
    let rows = table::rows(keys, &usage, &made);
    say(match json {
        true => serde_json::to_string_pretty(&rows).map_err(|e| e.to_string())?,
        false => table::text(&rows),
    })
}

fn rotate(config: &Config, kind: KeyKind) -> Ending {
    let store = &config.store.path;
    let _keys = supervisor::lock_keys(store)?;
    // A service that cannot be told would use the key from some moment on that no log tells of.
    let stopped = match control_socket::is_possible(store) {
        true => None,
        false => Some(supervisor::lock(store).map_err(|reason| {
            let path = control_socket::path(store);
            format!("{reason}, and {}", socket::too_long(&path.display().to_string()))
        })?),
    };
    let KeyTaskDone::Rotated(version) = in_child(&config.hsm, KeyTask::Rotate(kind))? else {
        return Err(Some(WRONG_ANSWER.to_owned()));
    };
    say(format!("key hsm-authd/{kind}/v{version}: made"))?;
    match socket::ask::<NewestKeys>(store, "POST", "/keys/reload") {
        Ok(newest) if newest.of(kind) >= version => say("the service uses it".to_owned())?,
        Ok(_) => return Err(Some("the service does not see it: is it configured for another token?".into())),
        Err(Unreachable::NotRunning(_) | Unreachable::TooLong(_)) => {
            let _lock = stopped.map_or_else(|| supervisor::lock(store), Ok)?;
            Rest::of(config)?.record(Event::KeyRotated, format!("{kind} v{version}"))?;
            say("no service is running; the next start uses it".to_owned())?;
        }
        Err(Unreachable::Failed(reason)) => {
            return Err(Some(format!(
                "the service was not told, and uses it once its custodians are replaced ({reason})"
            )));
        }
    }
    if matches!(kind, KeyKind::Kek | KeyKind::Row | KeyKind::Data) {
        say("what is stored stays under the older versions until `hsm-authd keys rewrap`".to_owned())?;
    }
    Ok(())
}

fn retire(config: &Config, kind: KeyKind, version: u16) -> Ending {
    let store = &config.store.path;
    // Held to the end: no service starts, and none is running.
    let _lock = supervisor::lock(store)?;
    let _keys = supervisor::lock_keys(store)?;
    let name = format!("hsm-authd/{kind}/v{version}");
    let keys = described(&config.hsm)?;
    let of_kind = || keys.iter().filter(|key| key.kind == kind && !key.retired && !key.unfinished);
    if of_kind().map(|key| key.version).max() == Some(version) {
        return Err(Some(format!(
            "{name} is the newest of its kind: run `hsm-authd keys rotate {kind}` first"
        )));
    }
    if !keys.iter().any(|key| (key.kind, key.version) == (kind, version)) {
        return Err(Some(format!("there is no key {name}")));
    }
    let rest = Rest::of(config)?;
    rest.is_known()?;
    if store.exists() {
        // Counted once the seals were checked: what stands in the columns decides which key is destroyed.
        let rows = key_usage(store).map_err(|e| e.to_string())?.of(kind, version);
        if rows > 0 {
            return Err(Some(format!(
                "{rows} rows still need {name}: start the service, and run `hsm-authd keys rewrap`"
            )));
        }
        // Before it is gone, so that nothing is gone of which the log does not tell.
        rest.record(Event::KeyRetired, format!("{kind} v{version}"))?;
    }
    drop(rest);
    match in_child(&config.hsm, KeyTask::Retire(kind, version))? {
        KeyTaskDone::Retired => say(format!("key {name}: retired")),
        _ => Err(Some(WRONG_ANSWER.to_owned())),
    }
}

/// Every system key in the token, as the HSM reports it.
///
/// # Errors
/// See [`Ending`].
pub fn described(hsm: &HsmConfig) -> Result<Vec<KeyDescription>, Option<String>> {
    match in_child(hsm, KeyTask::List)? {
        KeyTaskDone::Listed(keys) => Ok(keys),
        _ => Err(Some(WRONG_ANSWER.to_owned())),
    }
}

const WRONG_ANSWER: &str = "the process that asked the HSM answered something else";

/// Has it done in a process of its own: the module is loaded with the configured environment, and gone afterwards.
fn in_child(hsm: &HsmConfig, task: KeyTask) -> Result<KeyTaskDone, Option<String>> {
    let work = KeyWork { boot: init::boot(hsm), task };
    let frame = messages::encode(&work).map_err(|e| Some(e.to_string()))?;
    let failed = |e: std::io::Error| Some(format!("the HSM cannot be asked: {e}"));
    let mut child = Process::new("/proc/self/exe")
        .args(["key-task", "--supervisor", &std::process::id().to_string()])
        .envs(&hsm.environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A child that ended before it read everything has said why.
        let _ = stdin.write_all(&frame);
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        return Err(supervisor::killed(hsm, output.status));
    }
    let body = output.stdout.split_first_chunk::<4>().map(|(_, body)| body);
    let body = body.filter(|body| body.len() <= FRAME_BYTES_MAX);
    body.and_then(|body| messages::decode(body).ok()).ok_or_else(|| Some(WRONG_ANSWER.to_owned()))
}

/// The database of a stopped service, if there is one, with a custodian. The caller has the lock.
struct Rest {
    at_rest: Option<AtRest>,
    offline: Offline,
    path: PathBuf,
}

impl Rest {
    fn of(config: &Config) -> Result<Self, Option<String>> {
        let (offline, path) = (Offline::start(&config.hsm)?, config.store.path.clone());
        let at_rest = match path.exists() {
            true => {
                let store = Store::open(&path).map_err(|e| e.to_string())?;
                let clock = WatchedClock::new(Box::new(SystemClock), false).map_err(str::to_owned)?;
                Some(AtRest::new(store, offline.hsm.clone(), Arc::new(clock)))
            }
            false => None,
        };
        Ok(Self { at_rest, offline, path })
    }

    /// Whether what the database says of its keys may be believed.
    fn is_known(&self) -> Ending {
        let Some(at_rest) = &self.at_rest else {
            let anchor = self.offline.runtime.block_on(self.offline.hsm.read_anchor());
            let anchor = anchor.map_err(|e| e.to_string())?.as_deref().and_then(Note::parse);
            return match anchor.is_some_and(|note| note.unverified().head.origin.is_unclaimed()) {
                true => Ok(()),
                false => Err(Some(format!(
                    "{}: there is no database, and the token knows of one: restore it, or correct store.path",
                    self.path.display()
                ))),
            };
        };
        match self.offline.runtime.block_on(at_rest.doubt())? {
            None => Ok(()),
            Some(reason) => Err(Some(format!("{reason}; nothing was changed"))),
        }
    }

    fn record(&self, event: Event, detail: String) -> Ending {
        match &self.at_rest {
            Some(at_rest) => Ok(self.offline.runtime.block_on(at_rest.note(event, detail))?),
            None => Ok(()),
        }
    }
}

/// One line, or several, on standard output.
fn say(text: String) -> Ending {
    writeln!(std::io::stdout(), "{text}").map_err(|error| Some(format!("standard output: {error}")))
}
