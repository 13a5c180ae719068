//! Making a token and its system keys, for `hsm-authd init`.
//!
//! In a process of its own, as everything that loads the module: its parent sets the environment
//! (such as `SOFTHSM2_CONF`) and reads what it did from its standard output.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::anchor;
use super::attempts::{may_log_in, pin_file};
use super::keys::{Form, KeyError, KeyName, Kind, Survey, Unfinished, survey, survey_begun, unfinished};
use super::pin::Pin;
use super::pkcs11::{DataForm, Module, Object, PairForm, Pkcs11Error, Purpose, Session, Shape, Token};
use super::probe;
use super::{Frames, StartFailure, find_token, load_module, login, read_pin, shut_in};
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
    /// Whether the token is all that is to be made: its keys are for [`super::shared_keys`].
    pub token_only: bool,
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
    let module = load_module(&setup.boot)?;

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

    probe::mechanisms(&module, &token, label)?;
    may_log_in(&module, &token, &setup.boot, pin_file(&setup.boot))?;
    if !token.user_pin_set && has_no_user_pin(&module, &token, &pin, setup)? {
        let (path, so_pin) = so_pin.ok_or_else(|| no_so_pin(label, "has no user PIN"))?;
        module
            .init_user_pin(&token, &so_pin, &pin)
            .map_err(|error| StartFailure::login(label, "SO", path, &error))?;
        say(out, format_args!("token {label}: user PIN set"))?;
    }
    let session = login(&module, &token, &pin, &setup.boot)?;
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
/// The same of a removal.
const REMOVAL_MAX_S: u64 = 60;

/// Makes the first version of every kind of key that has none, but none that a database says was there.
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

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
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
        module_arguments: None,
        token_label: label.to_owned(),
        pin_file: PathBuf::new(),
        pin_cut_off: None,
        secrets_cached_max: 0,
        in_use: false,
        unwraps_max: u64::MAX,
        memory_bytes_max: u64::MAX,
        shared_keys: false,
    };
    let setup = Setup { boot, needed: Vec::new(), so_pin_file: None, token_only: false };
    make_keys_beside(session, &setup, out)
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

/// Removes what was made under a mark; `false`: nobody marks it any more as being made, and it stays.
pub(super) fn discard(session: &Session, name: KeyName) -> Result<bool, KeyError> {
    // A mark of our own first, so that no custodian starts on what is being removed. It is of another sort: two hosts
    // that look at once must not take each other's for the sign of what was never used.
    let own = session.mark_removal(&name.mark(), since_1970().as_secs())?;
    let removed = discard_beside(session, name, own);
    let unmarked = destroy_if_there(session, own, &name.mark());
    let removed = removed?;
    unmarked?;
    Ok(removed)
}

/// What is still marked as being made has been so since before it was there, and `own` stands since before that was seen:
/// nobody has used it, and nobody can. Its mark goes last: what interrupts this leaves it for the next run.
fn discard_beside(session: &Session, name: KeyName, own: Object) -> Result<bool, KeyError> {
    let Unfinished { marks, removals, made } = unfinished(session)?.remove(&name).unwrap_or_default();
    let is_unused = !marks.is_empty();
    if is_unused {
        for object in made {
            destroy_if_there(session, object, &name.to_string())?;
        }
    }
    // Another removal may be at work, unless it is old: without its mark what it removes would be used.
    let is_left = |set_s: u64| since_1970().as_secs() > set_s.saturating_add(REMOVAL_MAX_S);
    let left = removals.into_iter().filter(|(mark, set_s)| *mark != own && is_left(*set_s));
    for mark in left.map(|(mark, _)| mark).chain(marks) {
        destroy_if_there(session, mark, &name.mark())?;
    }
    Ok(is_unused)
}

/// `false`: somebody else has destroyed it.
fn destroy_if_there(session: &Session, object: Object, label: &str) -> Result<bool, Pkcs11Error> {
    match session.destroy_named(object, label) {
        Err(error) if error.is_gone() => Ok(false),
        destroyed => destroyed.map(|()| true),
    }
}

/// Whether nothing marks a key that is to be made.
///
/// # Errors
/// Something does; or the HSM failed.
pub(super) fn is_unmarked(session: &Session, name: KeyName) -> Result<(), KeyError> {
    match unfinished(session)?.contains_key(&name) {
        true => {
            Err(KeyError::Step("another run is at work on it, or was interrupted: try again in a minute"))
        }
        false => Ok(()),
    }
}

/// Makes a key and reads it back; one that came out otherwise than asked for is destroyed.
pub(super) fn make_key(session: &Session, name: KeyName) -> Result<(), KeyError> {
    if !session.labelled(&name.to_string())?.is_empty() {
        return Err(
            Pkcs11Error::lie(format!("C_FindObjects: {name} is there, and was not a moment ago")).into()
        );
    }
    is_unmarked(session, name)?;
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
        Ok(()) => {
            let Some(mark) = mark else { return Ok(()) };
            let is_ours = destroy_if_there(session, mark, &name.mark())?;
            // Another host may have taken it for what an interruption left.
            match is_ours && !session.labelled(&name.to_string())?.is_empty() {
                true => Ok(()),
                false => Err(KeyError::Step("another run has removed it meanwhile: try again")),
            }
        }
        Err(error) => {
            // The mark goes with what was made, and stays where that cannot be removed: the next run tries again.
            let _ = discard(session, name);
            Err(error)
        }
    }
}

/// The key with which the token's first anchor is made, under the same mark: so there is one as soon as there is an
/// `audit` key that was used, and a token that has lost its anchor is given no new one.
pub(super) const FIRST_AUDIT: KeyName = KeyName { kind: Kind::Audit, version: 1 };

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

pub(super) fn make_pair(session: &Session, name: KeyName, form: PairForm) -> Result<(), KeyError> {
    let halves = session.generate_pair(&name.to_string(), form)?;
    let made = || {
        halves.into_iter().try_for_each(|(half, object)| session.check_half(object, half, form))?;
        match (name, halves) {
            (FIRST_AUDIT, [(_, private), (_, public)]) => {
                let public = session.public_half(public, form)?;
                anchor::make_first(session, private, &public, since_1970().as_secs())
                    .map_err(KeyError::Anchor)
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
            assert!(destroy_if_there(&session, gone, &kek.mark()).unwrap());
            assert!(!destroy_if_there(&session, gone, &kek.mark()).unwrap());
            // By its own label, and by none that it has not.
            let mark = session.mark(&kek.mark()).unwrap();
            assert!(destroy_if_there(&session, mark, &kek.to_string()).is_err());
            assert!(discard(&session, kek).unwrap());
        });
    }

    #[test]
    fn two_removals_at_once_leave_what_was_finished() {
        const NAME: &str = "custodian::token::tests::two_removals_at_once_leave_what_was_finished";
        with_session(NAME, |session| {
            make_keys(&session, "unit", &mut io::sink()).unwrap();
            let kek = KeyName { kind: Kind::Kek, version: 2 };
            make_key(&session, kek).unwrap();
            // Another host looks at it, too.
            let now_s = since_1970().as_secs();
            let other = session.mark_removal(&kek.mark(), now_s).unwrap();
            assert!(!discard(&session, kek).unwrap());
            assert_eq!(unfinished(&session).unwrap()[&kek].removals, [(other, now_s)], "it is at work");
            let next = make_key(&session, KeyName { version: 3, ..kek });
            next.unwrap();
            session.destroy(other).unwrap();
            assert!(survey(&session).unwrap().keys.contains_key(&kek), "it is whole, and used");
            // Nor is one made where a removal may be at work; what is left of an old one goes.
            let four = KeyName { version: 4, ..kek };
            session.mark_removal(&four.mark(), now_s).unwrap();
            let error = make_key(&session, four).unwrap_err();
            assert!(error.to_string().contains("try again in a minute"), "{error}");
            let five = KeyName { version: 5, ..kek };
            session.mark_removal(&five.mark(), now_s - 2 * REMOVAL_MAX_S).unwrap();
            assert!(!discard(&session, five).unwrap());
            make_key(&session, five).unwrap();
            assert!(survey(&session).unwrap().keys.contains_key(&five));
        });
    }

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
