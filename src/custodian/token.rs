//! Making a token and its system keys, for `hsm-authd init`.
//!
//! In a process of its own, as everything that loads the module: its parent sets the environment
//! (such as `SOFTHSM2_CONF`) and reads what it did from its standard output.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::anchor;
use super::keys::{Form, KeyError, KeyName, Kind, Survey, survey, unfinished};
use super::pin::Pin;
use super::pkcs11::{Module, Object, PairForm, Pkcs11Error, Purpose, Session, Shape, Token};
use super::{Frames, StartFailure, check_mechanisms, find_token, load_module, login, read_pin, shut_in};
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
    let setup = match Frames::new(io::stdin().lock()).next::<Setup>() {
        Ok(Some(setup)) => setup,
        Ok(None) => return StartFailure::new("standard input holds no setup: run `hsm-authd init`").report(),
        Err(error) => return StartFailure::new(format!("standard input holds no setup ({error})")).report(),
    };
    match set_up(&setup, &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Makes what is not there yet, and says to `out` what it did.
pub(crate) fn set_up(setup: &Setup, out: &mut impl Write) -> Result<(), StartFailure> {
    let label = &setup.boot.token_label;
    // Read before anything is made, so that a missing file leaves nothing half done.
    let pin = read_pin(&setup.boot.pin_file)?;
    let so_pin = setup.so_pin_file.as_deref().map(|path| Ok((path, read_pin(path)?))).transpose()?;
    let module = load_module(&setup.boot.module)?;

    let (token, step) = match find_token(&module, label)? {
        Some(token) => (token, "already there"),
        // A new one could open nothing of what is there.
        None if setup.boot.in_use => {
            let StartFailure { line, .. } = StartFailure::no_token(&setup.boot);
            return Err(StartFailure::new(format!("{line}; {OR_MOVE_AWAY}")));
        }
        None => (make_token(&module, label, so_pin.as_ref().map(|(_, pin)| pin))?, "made"),
    };
    say(out, format_args!("token {label}: {step}"))?;

    if !token.user_pin_set {
        let (path, so_pin) = so_pin.ok_or_else(|| no_so_pin(label, "has no user PIN"))?;
        module
            .init_user_pin(&token, &so_pin, &pin)
            .map_err(|error| StartFailure::login(label, "SO", path, &error))?;
        say(out, format_args!("token {label}: user PIN set"))?;
    }
    check_mechanisms(&module, &token, label)?;
    let session = login(&module, &token, &pin, &setup.boot)?;
    make_keys_beside(&session, setup, out)
}

/// For who means to begin anew.
const OR_MOVE_AWAY: &str =
    "nothing was made: to begin anew without what is stored, move the database away first";

fn make_token(module: &Module, label: &str, so_pin: Option<&Pin>) -> Result<Token, StartFailure> {
    let so_pin = so_pin.ok_or_else(|| no_so_pin(label, "does not exist"))?;
    match module.init_token(label, so_pin) {
        Ok(true) => {}
        Ok(false) => {
            let line =
                format!("token {label} cannot be made: the module has no slot with an uninitialised token");
            return Err(StartFailure::new(line));
        }
        Err(error) => return Err(StartFailure::new(format!("token {label} cannot be made ({error})"))),
    }
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

/// Makes the first version of every kind of key that has none, but none that a database says was there.
fn make_keys_beside(session: &Session, setup: &Setup, out: &mut impl Write) -> Result<(), StartFailure> {
    let made = make_what_lacks(session, setup, out);
    // Those that a crash left are nobody's keys.
    for (object, label) in session.labelled_objects().unwrap_or_default() {
        if label.starts_with(WITNESS) && session.is_private(object).unwrap_or(false) {
            let _ = session.destroy(object);
        }
    }
    made
}

fn make_what_lacks(session: &Session, setup: &Setup, out: &mut impl Write) -> Result<(), StartFailure> {
    let (label, in_use) = (&setup.boot.token_label, setup.boot.in_use);
    let of_keys = |error: KeyError| StartFailure::keys(label, in_use, &error);
    discard_unfinished(session, label, out)?;
    let there = survey(session).map_err(of_keys)?;
    if Kind::ALL.into_iter().all(|kind| there.newest(kind).is_some()) {
        return make_missing(session, setup, &there, out);
    }
    // That there is no key may be a lie, and another one would be a second one of its name.
    // Its label is its own: of two marks a module could hide one.
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let name = format!("{WITNESS}{}-{}", std::process::id(), since_1970.as_nanos());
    let mark = session.create_data(&name, name.as_bytes()).map_err(|error| {
        StartFailure::new(format!("token {label}: no object can be made ({error}), so nothing was made"))
    })?;
    let made = session.set_witness(name).map_err(KeyError::from).and_then(|()| survey(session));
    let made = made.map_err(of_keys).and_then(|there| match lost(&there, setup) {
        None => make_missing(session, setup, &there, out),
        Some(name) => {
            let StartFailure { line, .. } = of_keys(KeyError::Lost(name));
            Err(StartFailure::new(format!("{line}; {OR_MOVE_AWAY}")))
        }
    });
    let _ = session.destroy(mark);
    session.dismiss_witness();
    made
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
        if versions.peek().is_none() {
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
        token_label: label.to_owned(),
        pin_file: PathBuf::new(),
        secrets_cached_max: 0,
        in_use: false,
        unwraps_max: u64::MAX,
        memory_bytes_max: u64::MAX,
    };
    make_keys_beside(session, &Setup { boot, needed: Vec::new(), so_pin_file: None }, out)
}

/// Removes what a crash left of keys that were being made: half of a pair, or a whole one. A half without a mark is
/// nobody's to remove: it may be what is left of a pair that signed.
pub(super) fn discard_unfinished(
    session: &Session,
    label: &str,
    out: &mut impl Write,
) -> Result<(), StartFailure> {
    let found = unfinished(session).map_err(|error| StartFailure::keys(label, false, &error))?;
    for name in found.into_keys() {
        let removed = discard(session, name).map_err(|error| {
            StartFailure::new(format!("what is unfinished of key {name} cannot be removed ({error})"))
        })?;
        if removed {
            say(out, format_args!("key {name}: unfinished, removed"))?;
        }
    }
    Ok(())
}

/// Removes what was made under a mark; `false`: it has been finished since, and stays.
fn discard(session: &Session, name: KeyName) -> Result<bool, KeyError> {
    // A mark of our own first, so that no custodian starts on what is being removed. It must not stay, whatever comes
    // of it: it would have the next run remove a key that is in use.
    let own = session.mark(&name.mark())?;
    let removed = discard_beside(session, name, own);
    let unmarked = destroy_if_there(session, own);
    let removed = removed?;
    unmarked?;
    Ok(removed)
}

/// Of a mark that another run removes just now, one of both is told that it is gone: that one does not decide.
fn discard_beside(session: &Session, name: KeyName, own: Object) -> Result<bool, KeyError> {
    let [marks, made] = unfinished(session)?.remove(&name).unwrap_or_default();
    let mut is_ours = false;
    for mark in marks.into_iter().filter(|mark| *mark != own) {
        if !destroy_if_there(session, mark)? {
            return Ok(false);
        }
        is_ours = true;
    }
    if is_ours {
        for object in made {
            destroy_if_there(session, object)?;
        }
    }
    Ok(is_ours)
}

/// `false`: somebody else has destroyed it.
fn destroy_if_there(session: &Session, object: Object) -> Result<bool, Pkcs11Error> {
    match session.destroy(object) {
        Err(error) if error.is_gone() => Ok(false),
        destroyed => destroyed.map(|()| true),
    }
}

/// Makes a key and reads it back; one that came out otherwise than asked for is destroyed.
pub(super) fn make_key(session: &Session, name: KeyName) -> Result<(), KeyError> {
    if !session.labelled(&name.to_string())?.is_empty() {
        return Err(
            Pkcs11Error::lie(format!("C_FindObjects: {name} is there, and was not a moment ago")).into()
        );
    }
    match name.kind.form() {
        // A mark says what may be removed, and the first version of a secret never may.
        Form::Secret(shape, purpose) if name.version == 1 => Ok(make_secret(session, name, &shape, purpose)?),
        Form::Secret(shape, purpose) => {
            marked(session, name, || Ok(make_secret(session, name, &shape, purpose)?))
        }
        Form::Pair(form) => marked(session, name, || make_pair(session, name, form)),
    }
}

/// A crash can halve what is made: a mark says until the end that it was never used.
fn marked(
    session: &Session,
    name: KeyName,
    make: impl FnOnce() -> Result<(), KeyError>,
) -> Result<(), KeyError> {
    // A module without such objects leaves more to an operator after a crash, and is otherwise none the worse.
    let mark = session.mark(&name.mark()).ok();
    match make() {
        Ok(()) => Ok(mark.map(|mark| session.destroy(mark)).transpose().map(drop)?),
        Err(error) => {
            // The mark goes with what was made, and stays where that cannot be removed: the next run tries again.
            let _ = discard(session, name);
            Err(error)
        }
    }
}

/// The key with which the token's first anchor is made, under the same mark: so there is one as soon as there is an
/// `audit` key that was used, and a token that has lost its anchor is given no new one.
const FIRST_AUDIT: KeyName = KeyName { kind: Kind::Audit, version: 1 };

fn make_secret(session: &Session, name: KeyName, shape: &Shape, purpose: Purpose) -> Result<(), Pkcs11Error> {
    let object = session.generate_labelled(shape, &name.to_string(), purpose)?;
    let checked = session
        .check(object, shape)
        .and_then(|()| session.check_purpose(object, purpose))
        .and_then(|()| session.check_made_inside(object));
    checked.inspect_err(|_| {
        // Nothing was wrapped or sealed with it; if it cannot be destroyed, the next run names it.
        let _ = session.destroy(object);
    })
}

fn make_pair(session: &Session, name: KeyName, form: PairForm) -> Result<(), KeyError> {
    let halves = session.generate_pair(&name.to_string(), form)?;
    let made = || {
        halves.into_iter().try_for_each(|(half, object)| session.check_half(object, half, form))?;
        match (name, halves) {
            (FIRST_AUDIT, [(_, private), (_, public)]) => {
                let public = session.public_half(public, form)?;
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                anchor::make_first(session, private, &public, now.as_secs()).map_err(KeyError::Anchor)
            }
            _ => Ok(()),
        }
    };
    made().inspect_err(|_| {
        for (_, object) in halves {
            let _ = session.destroy(object);
        }
    })
}

fn say(out: &mut impl Write, line: std::fmt::Arguments<'_>) -> Result<(), StartFailure> {
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|error| StartFailure::new(format!("standard output: {error}")))
}

#[cfg(test)]
mod tests {
    use super::super::test_token::with_session;
    use super::*;

    #[test]
    fn what_was_finished_meanwhile_stays_and_no_mark_is_left() {
        const NAME: &str = "custodian::token::tests::what_was_finished_meanwhile_stays_and_no_mark_is_left";
        with_session(NAME, |session| {
            make_keys(&session, "unit", &mut io::sink()).unwrap();
            let kek = KeyName { kind: Kind::Kek, version: 2 };
            make_key(&session, kek).unwrap();
            // It was unfinished when this run looked, and its maker removed the mark since.
            assert!(!discard(&session, kek).unwrap());
            assert!(unfinished(&session).unwrap().is_empty());
            assert!(survey(&session).unwrap().keys.contains_key(&kek));

            session.mark(&kek.mark()).unwrap();
            assert!(discard(&session, kek).unwrap());
            assert!(unfinished(&session).unwrap().is_empty());
            assert!(!survey(&session).unwrap().keys.contains_key(&kek));
            let gone = session.mark(&kek.mark()).unwrap();
            assert!(destroy_if_there(&session, gone).unwrap());
            assert!(!destroy_if_there(&session, gone).unwrap());
        });
    }
}
