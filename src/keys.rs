//! `hsm-authd keys`: what an operator sees of the system keys, and does with them.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use crate::Ending;
use crate::clock::{SystemClock, WatchedClock};
use crate::config::{Config, DEFAULT_PATH, HsmConfig};
use crate::control_socket;
use crate::custodian::certificate_request::{CommonName, ServerName};
use crate::custodian::key_task::{KeyDescription, KeyTask, KeyTaskDone, KeyWork};
use crate::domain::audit::Event;
use crate::domain::checkpoint::Note;
use crate::domain::system_key::{KeyKind, NewestKeys};
use crate::hsm::messages::{self, FRAME_BYTES_MAX};
use crate::init;
use crate::offline::Offline;
use crate::operator;
use crate::service::at_rest::AtRest;
use crate::store::Store;
use crate::store::usage::{key_usage, rotations};
use crate::supervisor;
use crate::tls;

mod births;
mod certificates;
mod plan;
mod rewrapping;
mod socket;
mod table;
mod tokens;

use socket::Unreachable;
use tokens::Tokens;

/// `hsm-authd keys`
#[derive(clap::Subcommand)]
pub enum Command {
    /// Show every system key: its version, its attributes as the HSM reports them, and what still needs it.
    List {
        /// The configuration file.
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
        /// As JSON, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Make the next version of a key, and have a running service use it.
    Rotate {
        /// kek, row, data, attest, audit, import or tls, of which this makes the first one too.
        #[arg(value_parser = parse_kind)]
        kind: KeyKind,
        /// The configuration file.
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Bring everything that is stored under the newest keys, while the service runs.
    Rewrap {
        /// The configuration file.
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Destroy a version that nothing needs any more, while the service is stopped.
    Retire {
        /// kek, row, data, attest, audit, import or tls.
        #[arg(value_parser = parse_kind)]
        kind: KeyKind,
        /// The version, such as 1.
        version: u16,
        /// The configuration file.
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Print a request for a certificate (PKCS#10, PEM) for the newest tls key, to be given to an authority. May be run at any
    /// time.
    Csr {
        /// The configuration file.
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
        /// A DNS name or an address that clients use; may be given several times. Without it: those of the first certificate
        /// of server.certificate, if there is one.
        #[arg(long = "name", value_name = "DNS-OR-IP", value_parser = parse_name)]
        names: Vec<ServerName>,
        /// The common name of the subject. Without it: the first name, if it is short enough.
        #[arg(long, value_name = "CN", value_parser = parse_common_name)]
        subject: Option<CommonName>,
        /// Of several tokens the one whose key it is about, by its label. Without it: a request for each.
        #[arg(long, value_name = "LABEL")]
        token: Option<String>,
    },
}

fn parse_kind(text: &str) -> Result<KeyKind, String> {
    KeyKind::parse(text).ok_or_else(|| {
        let all: Vec<_> = KeyKind::ALL.into_iter().map(KeyKind::name).collect();
        format!("must be one of {}", all.join(", "))
    })
}

fn parse_name(text: &str) -> Result<ServerName, String> {
    ServerName::parse(text).ok_or_else(|| "must be a DNS name in ASCII, or an address".to_owned())
}

fn parse_common_name(text: &str) -> Result<CommonName, &'static str> {
    CommonName::try_from(text.to_owned())
}

/// Runs it.
///
/// # Errors
/// See [`Ending`].
pub fn run(command: Command) -> Ending {
    match command {
        Command::List { config, json } => list(&operator::load(&config)?, json),
        Command::Rotate { kind, config } => rotate(&operator::load(&config)?, kind),
        Command::Rewrap { config } => rewrapping::run(&operator::load(&config)?.store.path),
        Command::Retire { kind, version, config } => retire(&operator::load(&config)?, kind, version),
        Command::Csr { config, names, subject, token } => {
            certificates::request(&operator::load(&config)?, names, subject, token.as_deref())
        }
    }
}

/// The last part of `hsm-authd init`: makes what is missing of the configured tokens and their keys, and says what it did.
///
/// # Errors
/// See [`Ending`].
pub fn init(config: &Config, so_pin_files: &[PathBuf]) -> Ending {
    let tokens = Tokens::of(&config.hsm);
    let so_pin_file = |place: usize| match so_pin_files {
        [one] => Some(one.clone()),
        all => all.get(place).cloned(),
    };
    if so_pin_files.len() > 1 && so_pin_files.len() != tokens.0.len() {
        return Err(Some("--so-pin-file: give one for all tokens, or one for each".to_owned()));
    }
    if config.hsm.replicas.is_empty() {
        return init::run(config, so_pin_file(0));
    }
    let store = &config.store.path;
    let _keys = supervisor::lock_keys(store)?;
    for (place, token) in tokens.0.iter().enumerate() {
        // Its process has said why.
        let failed = |_| Some(format!("token {} cannot be set up: no key was made", token.name));
        init::make_token(&token.hsm, so_pin_file(place), place > 0).map_err(failed)?;
    }
    // A service that was started without these tokens takes no keys that are in several.
    let stopped = || supervisor::lock(store).map_err(|reason| Some(format!("{reason}: stop it first")));
    if let Some((born, stopped)) = births::complete(&tokens, config.hsm.serves_tls, stopped)?
        && store.exists()
    {
        announce(config, &born, Some(stopped))?;
    }
    let finished: Vec<_> = tokens.look()?.iter().map(plan::finished).collect();
    say_lacking(&tokens, &finished)
}

/// What keeps a token from being used, and what is to be done about it.
fn say_lacking(tokens: &Tokens, finished: &[BTreeSet<(KeyKind, u16)>]) -> Ending {
    for (place, lacking) in plan::lacking(finished).into_iter().enumerate() {
        if lacking.is_empty() {
            continue;
        }
        let names: Vec<_> = lacking.iter().map(|(kind, version)| format!("{kind} v{version}")).collect();
        say(format!(
            "token {} lacks {}, and is not used until nothing needs it: run `hsm-authd keys rewrap`, and then `hsm-authd \
             keys retire` for each",
            tokens.name(place),
            names.join(", ")
        ))?;
    }
    Ok(())
}

fn list(config: &Config, json: bool) -> Ending {
    let tokens = Tokens::of(&config.hsm);
    let (mut keys, mut away) = (Vec::new(), Vec::new());
    for token in &tokens.0 {
        match described(&token.hsm) {
            Ok(described) => keys.push((token.name.clone(), described)),
            Err(reason) if tokens.0.len() == 1 => return Err(reason),
            // Its process has said why.
            Err(_) => away.push(token.name.clone()),
        }
    }
    let store = &config.store.path;
    // Before the first start there is no database, and nothing that needs a key.
    let (usage, made) = match store.exists() {
        true => (key_usage(store), rotations(store)),
        false => (Ok(Default::default()), Ok(Default::default())),
    };
    let (usage, made) = (usage.map_err(|e| e.to_string())?, made.map_err(|e| e.to_string())?);
    let finished = |keys: &Vec<KeyDescription>| {
        let finished = keys.iter().filter(|key| !key.retired && !key.unfinished);
        finished.map(|key| (key.kind, key.version)).collect()
    };
    let finished: Vec<_> = keys.iter().map(|(_, keys)| finished(keys)).collect();
    // One that is not there yet, or cannot be read, uses none.
    let certificates: Vec<_> = tls::hsm_certificates(&config.server).filter_map(Result::ok).collect();
    let rows = table::rows(keys, (&usage, &made), &certificates);
    say(match json {
        true => serde_json::to_string_pretty(&rows).map_err(|e| e.to_string())?,
        false => table::text(&rows),
    })?;
    if !away.is_empty() {
        return Err(Some(format!("not in the list, because it cannot be asked: token {}", away.join(", "))));
    }
    if json { Ok(()) } else { say_lacking(&tokens, &finished) }
}

/// A service that cannot be told would use a new key from some moment on that no log tells of: it is kept from starting.
fn stopped_if_mute(store: &Path) -> Result<Option<OwnedFd>, Option<String>> {
    match control_socket::is_possible(store) {
        true => Ok(None),
        false => Ok(Some(supervisor::lock(store).map_err(|reason| {
            let path = control_socket::path(store);
            format!("{reason}, and {}", socket::too_long(&path.display().to_string()))
        })?)),
    }
}

fn rotate(config: &Config, kind: KeyKind) -> Ending {
    let store = &config.store.path;
    let _keys = supervisor::lock_keys(store)?;
    let stopped = stopped_if_mute(store)?;
    let version = match config.hsm.replicas.is_empty() {
        true => {
            let KeyTaskDone::Rotated(version) = in_child(&config.hsm, KeyTask::Rotate(kind))? else {
                return Err(Some(WRONG_ANSWER.to_owned()));
            };
            say(format!("key hsm-authd/{kind}/v{version}: made"))?;
            version
        }
        false => births::rotate(&Tokens::of(&config.hsm), kind)?,
    };
    announce(config, &[(kind, version)], stopped)
}

/// Has a running service use keys that were made, or writes to the log that the next start does.
fn announce(config: &Config, made: &[(KeyKind, u16)], stopped: Option<OwnedFd>) -> Ending {
    let store = &config.store.path;
    match socket::ask::<NewestKeys>(store, "POST", "/keys/reload") {
        Ok(newest) if made.iter().all(|(kind, version)| newest.of(*kind) >= *version) => {
            say("the service uses it".to_owned())?
        }
        Ok(_) => return Err(Some("the service does not see it: is it configured for another token?".into())),
        Err(Unreachable::NotRunning(_) | Unreachable::TooLong(_)) => {
            let _lock = stopped.map_or_else(|| supervisor::lock(store), Ok)?;
            let rest = Rest::of(config)?;
            for (kind, version) in made {
                rest.record(Event::KeyRotated, format!("{kind} v{version}"))?;
            }
            say("no service is running; the next start uses it".to_owned())?;
        }
        Err(Unreachable::Failed(reason)) => {
            return Err(Some(format!(
                "the service was not told, and uses it once its custodians are replaced ({reason})"
            )));
        }
    }
    if made.iter().any(|(kind, _)| plan::SHARED.contains(kind)) {
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
    let tokens = Tokens::of(&config.hsm);
    if tokens.0.len() > 1 {
        births::settle(&tokens)?;
    }
    let there = tokens.described()?;
    let is_newest = |keys: &Vec<KeyDescription>| {
        let of_kind = keys.iter().filter(|key| key.kind == kind && !key.retired && !key.unfinished);
        of_kind.map(|key| key.version).max() == Some(version)
    };
    if there.iter().any(is_newest) {
        return Err(Some(format!(
            "{name} is the newest of its kind: run `hsm-authd keys rotate {kind}` first"
        )));
    }
    let has = |keys: &Vec<KeyDescription>| {
        keys.iter().any(|key| (key.kind, key.version) == (kind, version) && !key.retired)
    };
    if !there.iter().any(has) {
        return Err(Some(format!("there is no key {name}")));
    }
    if kind == KeyKind::Tls {
        certificates::is_of_none(config, &there, version)?;
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
    // In the first token last: whatever interrupts this, it can read what is stored.
    for (token, _) in tokens.0.iter().zip(&there).rev().filter(|(_, keys)| has(keys)) {
        match in_child(&token.hsm, KeyTask::Retire(kind, version))? {
            KeyTaskDone::Retired if tokens.0.len() == 1 => say(format!("key {name}: retired"))?,
            KeyTaskDone::Retired => say(format!("token {}: key {name}: retired", token.name))?,
            _ => return Err(Some(WRONG_ANSWER.to_owned())),
        }
    }
    Ok(())
}

/// Every system key in the first token, as the HSM reports it.
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
    let work = KeyWork { boot: init::boot_of_command(hsm), task };
    let failed = |e: std::io::Error| Some(format!("the HSM cannot be asked: {e}"));
    let child = init::begin("key-task", hsm, &work, None, Stdio::piped()).map_err(failed)?;
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
        offline.has_all()?;
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
            let hsm = &self.offline.hsm;
            for token in (0..hsm.tokens()).filter(|token| hsm.is_token_up(*token)) {
                let anchor = self.offline.runtime.block_on(hsm.read_anchor(token));
                let anchor = anchor.map_err(|e| e.to_string())?.as_deref().and_then(Note::parse);
                if !anchor.is_some_and(|note| note.unverified().head.origin.is_unclaimed()) {
                    return Err(Some(format!(
                        "{}: there is no database, and the token knows of one: restore it, or correct store.path",
                        self.path.display()
                    )));
                }
            }
            return Ok(());
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
