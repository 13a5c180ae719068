//! Making a token and its system keys, for `hsm-authd init`.
//!
//! In a process of its own, as everything that loads the module: its parent sets the environment
//! (such as `SOFTHSM2_CONF`) and reads what it did from its standard output.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::attempts::may_log_in;
use super::key_making::make_key;
use super::keys::{KeyError, KeyName, Kind, Survey, survey, survey_begun};
use super::pin::{Pin, UnreadPin};
use super::pkcs11::{DataForm, Module, Pkcs11Error, Session, Token};
use super::probe;
use super::removal::discard_unfinished;
use super::{StartFailure, find_token, first, load_module, login, shut_in, since_1970};
use crate::hsm::messages::Boot;

/// What to set up: one frame on standard input ([`crate::hsm::messages::encode`]).
#[derive(Clone, Serialize, Deserialize)]
pub struct Setup {
    /// Module, token and user PIN, as a custodian will use them.
    pub boot: Boot,
    /// The versions of keys that a database cannot do without.
    pub needed: Vec<(Kind, u16)>,
    /// The file with the security officer's PIN: needed to make a token, or to give it a user PIN.
    pub so_pin_file: Option<PathBuf>,
    /// Whether it is open beside this message.
    pub so_pin_handed: bool,
    /// Whether the token is all that is to be made: its keys are for [`super::shared_keys`].
    pub token_only: bool,
    /// Whether it is to have a key that signs handshakes of TLS.
    pub serves_tls: bool,
}

impl Setup {
    fn needs(&self, kind: Kind) -> bool {
        !kind.is_optional() || self.serves_tls
    }
}

/// The main of the hidden subcommand `hsm-authd token-setup`. Doing it again changes nothing, and
/// completes what a crash left undone.
///
/// Writes one line a step to standard output. Returns success, or
/// [`EXIT_PIN_REFUSED`](super::EXIT_PIN_REFUSED) or
/// [`EXIT_START_FAILED`](super::EXIT_START_FAILED) with one line on standard error.
pub fn run_setup(supervisor_pid: i32) -> ExitCode {
    // One that outlived its starter would make a second token beside that of the next start.
    if let Err(failure) = shut_in(supervisor_pid, c"hsm-token-setup") {
        return failure.report();
    }
    let (setup, handed) = match first::<Setup>(io::stdin()) {
        Ok(Some(first)) => first,
        Ok(None) => return StartFailure::new("standard input holds no setup: run `hsm-authd init`").report(),
        Err(error) => return StartFailure::new(format!("standard input holds no setup ({error})")).report(),
    };
    match set_up(&setup, handed, &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Makes what is not there yet, and says to `out` what it did. `handed`: the PIN files that are open beside the message, the
/// user's before the officer's.
fn set_up(setup: &Setup, handed: Vec<OwnedFd>, out: &mut impl Write) -> Result<(), StartFailure> {
    let label = &setup.boot.token_label;
    let mut handed = handed.into_iter();
    let mut next = |is_handed: bool| if is_handed { handed.next() } else { None };
    let pin = next(setup.boot.pin_handed);
    let pin = UnreadPin::open(&setup.boot.pin_file, setup.boot.pin_handed, pin)?;
    let officers = next(setup.so_pin_handed);
    let open = |path| Ok((path, UnreadPin::open(path, setup.so_pin_handed, officers)?));
    let so_pin = setup.so_pin_file.as_deref().map(open).transpose()?;
    let module = load_module(&setup.boot)?;
    let found = find_token(&module, label)?;
    // Before anything is made, so that a file without a PIN leaves nothing half done.
    let (pin_file, pin) = (pin.which(), pin.read()?);
    let so_pin = so_pin.map(|(path, pin)| Ok((path, pin.read()?))).transpose()?;

    let (token, step) = match found {
        Some(token) => (token, "already there"),
        // A new one could open nothing of what is there.
        None if setup.boot.in_use => {
            let StartFailure { line, .. } = StartFailure::no_token(&setup.boot);
            return Err(StartFailure::new(format!("{line}; {OR_MOVE_AWAY}")));
        }
        None => (make_token(&module, label, so_pin.as_ref().map(|(_, pin)| pin))?, "made"),
    };
    say(out, format_args!("token {label}: {step}"))?;

    probe::mechanisms(&module, &token, label)?;
    may_log_in(&module, &token, &setup.boot, pin_file)?;
    if !token.user_pin_set && has_no_user_pin(&module, &token, &pin, setup)? {
        let (path, so_pin) = so_pin.ok_or_else(|| no_so_pin(label, "has no user PIN"))?;
        module
            .init_user_pin(&token, &so_pin, &pin)
            .map_err(|error| StartFailure::login(label, "SO", path, &error))?;
        say(out, format_args!("token {label}: user PIN set"))?;
    }
    let session = login(&module, &token, &pin, &setup.boot)?;
    drop(pin);
    probe::abilities(&session, label)?;
    if setup.token_only {
        return keep_what_is_needed(&session, setup);
    }
    make_keys_beside(&session, setup, out)
}

/// Whether the token itself says so when it is asked for a login. A flag alone must not have a PIN that is set replaced, nor
/// one that is wrong tried again.
fn has_no_user_pin(module: &Module, token: &Token, pin: &Pin, setup: &Setup) -> Result<bool, StartFailure> {
    match module.login(token, pin) {
        // It was set all the time.
        Ok(_) => Ok(false),
        Err(error) if error.is_user_pin_unset() => Ok(true),
        Err(error) => Err(StartFailure::login(&setup.boot.token_label, "user", &setup.boot.pin_file, &error)),
    }
}

/// For who means to begin anew.
const OR_MOVE_AWAY: &str =
    "nothing was made: to begin anew without what is stored, move the database away first";

fn make_token(module: &Module, label: &str, so_pin: Option<&Pin>) -> Result<Token, StartFailure> {
    let so_pin = so_pin.ok_or_else(|| no_so_pin(label, "does not exist"))?;
    let failed = |error| StartFailure::new(format!("token {label} cannot be made ({error})"));
    // It may be the one that is meant: why it could not serve says more than that it cannot be read.
    if let Some(token) = module.unreadable() {
        probe::mechanisms(module, &token, label)?;
    }
    let Some(token) = module.uninitialised(label).map_err(failed)? else {
        let line =
            format!("token {label} cannot be made: the module has no slot with an uninitialised token");
        return Err(StartFailure::new(line));
    };
    // Of one that cannot serve nothing is made. Not every module says of such a token what it will be able to do.
    if module.missing_mechanisms(&token).is_ok() {
        probe::mechanisms(module, &token, label)?;
    }
    module.init_token(&token, label, so_pin).map_err(failed)?;
    find_token(module, label)?
        .ok_or_else(|| StartFailure::new(format!("token {label} was made, and is not there: try again")))
}

fn no_so_pin(label: &str, state: &str) -> StartFailure {
    StartFailure::new(format!(
        "token {label} {state}: to make it so, give the security officer's PIN with --so-pin-file, or else correct hsm.token_label"
    ))
}

/// How the label of a setup's mark begins: found, it says that the module shows what there is.
const WITNESS: &str = "hsm-authd/witness/";
/// How long a setup takes at most, and how far clocks of hosts may differ.
const WITNESS_MAX: Duration = Duration::from_secs(3_600);

/// Makes the first version of every kind of key that is needed and has none, but none that a database says was there.
fn make_keys_beside(session: &Session, setup: &Setup, out: &mut impl Write) -> Result<(), StartFailure> {
    let made = make_what_lacks(session, setup, out);
    // Those that a crash left are nobody's keys. One that is younger may be another host's, which needs it.
    for (object, label) in session.labelled_objects().unwrap_or_default() {
        let set_ns =
            label.strip_prefix(WITNESS).and_then(|name| name.split_once('-')?.1.parse::<u128>().ok());
        let is_left = set_ns.is_some_and(|set_ns| since_1970().as_nanos() > set_ns + WITNESS_MAX.as_nanos());
        if is_left && session.is_private(object).unwrap_or(false) {
            let _ = session.destroy_named(object, &label);
        }
    }
    made
}

fn make_what_lacks(session: &Session, setup: &Setup, out: &mut impl Write) -> Result<(), StartFailure> {
    let (label, in_use) = (&setup.boot.token_label, setup.boot.in_use);
    let of_keys = |error: KeyError| StartFailure::keys(label, in_use, &error);
    discard_unfinished(session, label, out)?;
    let there = survey(session).map_err(of_keys)?;
    if Kind::ALL.into_iter().all(|kind| !setup.needs(kind) || there.newest(kind).is_some()) {
        return make_missing(session, setup, &there, out);
    }
    // That there is no key may be a lie, and another one would be a second one of its name.
    // Its label is its own: of two marks a module could hide one.
    let name = format!("{WITNESS}{}-{}", std::process::id(), since_1970().as_nanos());
    let (mark, form) = probe::mark(session, label, &name)?;
    let shown = session.set_witness(name.clone()).and_then(|()| session.data_objects(&name));
    let made = shown.map_err(KeyError::from).and_then(|shown| match shown.contains(&mark) {
        true => survey(session),
        false => Err(Pkcs11Error::lie(format!("C_FindObjects: not {name}, as what it is")).into()),
    });
    let made = made.map_err(of_keys).and_then(|there| {
        refuse_lost(&there, setup)?;
        if form == DataForm::Key {
            let line = "has no data objects; the anchor of the log is the id of a key";
            say(out, format_args!("token {label}: {line}"))?;
        }
        make_missing(session, setup, &there, out)
    });
    let _ = session.destroy(mark);
    session.dismiss_witness();
    made
}

/// Whether others may be made beside what is in the token.
fn refuse_lost(there: &Survey, setup: &Setup) -> Result<(), StartFailure> {
    let Some(name) = lost(there, setup) else { return Ok(()) };
    let boot = &setup.boot;
    let StartFailure { line, .. } = StartFailure::keys(&boot.token_label, boot.in_use, &KeyError::Lost(name));
    Err(StartFailure::new(format!("{line}; {OR_MOVE_AWAY}")))
}

/// The same of a token whose keys others make.
fn keep_what_is_needed(session: &Session, setup: &Setup) -> Result<(), StartFailure> {
    let boot = &setup.boot;
    // In a new token there is nothing to look for.
    if !boot.in_use && setup.needed.is_empty() {
        return Ok(());
    }
    let there =
        survey_begun(session).map_err(|error| StartFailure::keys(&boot.token_label, boot.in_use, &error))?;
    refuse_lost(&there, setup)
}

/// A key that is needed, of a kind of which there is none. Whatever is stored is sealed under some `row`.
fn lost(there: &Survey, setup: &Setup) -> Option<KeyName> {
    let names = setup.needed.iter().map(|(kind, version)| KeyName { kind: *kind, version: *version });
    let row = setup.boot.in_use.then_some(KeyName { kind: Kind::Row, version: 1 });
    names.chain(row).find(|name| there.newest(name.kind).is_none())
}

fn make_missing(
    session: &Session,
    setup: &Setup,
    there: &Survey,
    out: &mut impl Write,
) -> Result<(), StartFailure> {
    for kind in Kind::ALL {
        let mut versions = there.keys.keys().filter(|name| name.kind == kind).peekable();
        if versions.peek().is_none() && setup.needs(kind) {
            let name = KeyName { kind, version: 1 };
            make_key(session, name)
                .map_err(|error| StartFailure::new(format!("key {name} cannot be made ({error})")))?;
            say(out, format_args!("key {name}: made"))?;
        }
        for name in versions {
            say(out, format_args!("key {name}: already there"))?;
        }
    }
    // Again, for what somebody else made meanwhile: two keys of one name are refused here already.
    let again = survey(session).map(drop);
    again.map_err(|error| StartFailure::keys(&setup.boot.token_label, setup.boot.in_use, &error))
}

/// All of them, for a test.
#[cfg(test)]
pub(super) fn make_keys(session: &Session, label: &str, out: &mut impl Write) -> Result<(), StartFailure> {
    let boot = Boot {
        module: PathBuf::new(),
        module_arguments: None,
        token_label: label.to_owned(),
        pin_file: PathBuf::new(),
        pin_handed: false,
        pin_cut_off: None,
        secrets_cached_max: 0,
        in_use: false,
        unwraps_max: u64::MAX,
        memory_bytes_max: u64::MAX,
        shared_keys: false,
        reach: Default::default(),
    };
    let setup = Setup {
        boot,
        needed: Vec::new(),
        so_pin_file: None,
        so_pin_handed: false,
        token_only: false,
        serves_tls: false,
    };
    make_keys_beside(session, &setup, out)
}

pub(super) fn say(out: &mut impl Write, line: std::fmt::Arguments<'_>) -> Result<(), StartFailure> {
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|error| StartFailure::new(format!("standard output: {error}")))
}

#[cfg(test)]
mod tests {
    use super::super::test_token::with_session;
    use super::*;

    /// A setup of another host needs its own; one that is old is left of a crash.
    #[test]
    fn a_setup_leaves_the_witness_of_another() {
        const NAME: &str = "custodian::token::tests::a_setup_leaves_the_witness_of_another";
        with_session(NAME, |session| {
            let name = |age: Duration| format!("{WITNESS}7-{}", (since_1970() - age).as_nanos());
            let (young, old) = (name(Duration::from_secs(60)), name(2 * WITNESS_MAX));
            for name in [&young, &old] {
                session.mark(name).unwrap();
            }
            make_keys(&session, "unit", &mut io::sink()).unwrap();
            let labels: Vec<_> =
                session.labelled_objects().unwrap().into_iter().map(|(_, label)| label).collect();
            let witnesses: Vec<_> = labels.iter().filter(|label| label.starts_with(WITNESS)).collect();
            assert_eq!(witnesses, [&young]);
        });
    }
}
