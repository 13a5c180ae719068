//! What an operator has done with the system keys: look at them, add a version, remove one.
//!
//! In a process of its own, like [`super::token`]. It asks the database nothing: whether a version is still in use is for
//! its parent to know.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::attempts::may_log_in;
use super::certificate_request::{CertificateWish, request_certificate};
use super::check_values::{check_value, of_public};
use super::key_making::make_key;
use super::keys::{Form, Found, KeyError, KeyName, Kind, Survey, survey, unfinished};
use super::pin::UnreadPin;
use super::pkcs11::{Object, PairForm, Pkcs11Error, Session};
use super::removal::discard_unfinished;
use super::shared_keys::{self, SharedDone, SharedTask};
use super::{StartFailure, find_token, first, load_module, login, probe, shut_in, write_frame};
use crate::domain::signer::PublicKey;
use crate::hsm::messages::Boot;

/// What to do, and where: one frame on standard input ([`crate::hsm::messages::encode`]).
#[derive(Clone, Serialize, Deserialize)]
pub struct KeyWork {
    /// Module, token and user PIN, as a custodian will use them.
    pub boot: Boot,
    /// What to do.
    pub task: KeyTask,
}

/// What can be done. The answer is one frame on standard output.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum KeyTask {
    /// Describes every system key. -> [`KeyTaskDone::Listed`]
    List,
    /// Makes the next version. -> [`KeyTaskDone::Rotated`]
    Rotate(Kind),
    /// Destroys an old version; of `attest` and `audit` the public half stays to verify. -> [`KeyTaskDone::Retired`]
    Retire(Kind, u16),
    /// A step of what is done in several tokens at once. -> [`KeyTaskDone::Shared`]
    Shared(SharedTask),
    /// Asks an authority for a certificate for the newest `tls` key. -> [`KeyTaskDone::CertificateRequested`]
    RequestCertificate(CertificateWish),
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum KeyTaskDone {
    /// To [`KeyTask::List`].
    Listed(Vec<KeyDescription>),
    /// To [`KeyTask::Rotate`]: the new version.
    Rotated(u16),
    /// To [`KeyTask::Retire`].
    Retired,
    /// To [`KeyTask::Shared`].
    Shared(SharedDone),
    /// To [`KeyTask::RequestCertificate`]: PKCS#10, PEM.
    CertificateRequested(String),
}

/// A system key as the HSM reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyDescription {
    /// Its label.
    pub label: String,
    /// What it is for.
    pub kind: Kind,
    /// From 1.
    pub version: u16,
    /// Whether only the public half is left.
    pub retired: bool,
    /// Whether its making or its retirement was interrupted: nobody uses it, and what is left of it is to go.
    pub unfinished: bool,
    /// Such as `AES-256`.
    pub algorithm: String,
    /// Three bytes in hex that differ for another key.
    pub check_value: String,
    /// Of a whole pair that signs: what verifies.
    pub public: Option<PublicKey>,
    /// Its objects, each with its attributes by name.
    pub objects: Vec<Vec<(String, String)>>,
}

/// The main of the hidden subcommand `hsm-authd key-task`.
///
/// Returns success, or [`EXIT_PIN_REFUSED`](super::EXIT_PIN_REFUSED) or
/// [`EXIT_START_FAILED`](super::EXIT_START_FAILED) with one line on standard error.
pub fn run_key_task(supervisor_pid: i32) -> ExitCode {
    if let Err(failure) = shut_in(supervisor_pid, c"hsm-key-task") {
        return failure.report();
    }
    let (work, handed) = match first::<KeyWork>(io::stdin()) {
        Ok(Some(first)) => first,
        Ok(None) => return StartFailure::new("standard input holds no task: run `hsm-authd keys`").report(),
        Err(error) => return StartFailure::new(format!("standard input holds no task ({error})")).report(),
    };
    let told = do_task(&work, handed.into_iter().next()).and_then(|done| {
        let mut output = io::stdout().lock();
        let written = write_frame(&mut output, &done).and_then(|_| output.flush());
        written.map_err(|error| StartFailure::new(format!("standard output: {error}")))
    });
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn do_task(work: &KeyWork, handed: Option<OwnedFd>) -> Result<KeyTaskDone, StartFailure> {
    let label = &work.boot.token_label;
    let pin = UnreadPin::open(&work.boot.pin_file, work.boot.pin_handed, handed)?;
    let module = load_module(&work.boot)?;
    let token = find_token(&module, label)?.ok_or_else(|| StartFailure::no_token(&work.boot))?;
    probe::mechanisms(&module, &token, label)?;
    may_log_in(&module, &token, &work.boot, pin.which())?;
    let session = login(&module, &token, &pin.read()?, &work.boot)?;
    match work.task.clone() {
        KeyTask::List => list(&session)
            .map(KeyTaskDone::Listed)
            .map_err(|error| StartFailure::keys(label, work.boot.in_use, &error)),
        KeyTask::Rotate(kind) => rotate(&session, &work.boot, kind).map(KeyTaskDone::Rotated),
        KeyTask::Retire(kind, version) => {
            retire(&session, &work.boot, KeyName { kind, version })?;
            Ok(KeyTaskDone::Retired)
        }
        KeyTask::RequestCertificate(wish) => {
            request_certificate(&session, label, &wish).map(KeyTaskDone::CertificateRequested)
        }
        KeyTask::Shared(task) => shared_keys::step(&session, &work.boot, task).map(KeyTaskDone::Shared),
    }
}

fn list(session: &Session) -> Result<Vec<KeyDescription>, KeyError> {
    let Survey { keys, retired, halves, .. } = survey(session)?;
    // A token without any is none of ours, or does not show them.
    if keys.is_empty() {
        return Err(KeyError::Missing(Kind::Row));
    }
    let mut described = Vec::new();
    for (name, key) in keys {
        let objects = match key {
            Found::Secret(object) => vec![object],
            Found::Pair { private, public } => vec![private, public],
        };
        let check_value = check_value(session, name.kind, key)?;
        let public = match (key, name.kind.form()) {
            (Found::Pair { public, .. }, Form::Pair(PairForm::P256)) => Some(public),
            _ => None,
        };
        let public = public.map(|public| session.public_half(public, PairForm::P256)).transpose()?;
        let described_key = description(session, name, &objects, check_value, None)?;
        described.push(KeyDescription { public, ..described_key });
    }
    for (name, public) in retired {
        let check_value = of_public(session, public, PairForm::P256)?;
        described.push(description(session, name, &[public], check_value, Some(name.retired()))?);
    }
    let marked = unfinished(session)?.into_iter().map(|(name, of_it)| (name, of_it.made));
    for (name, objects) in marked.chain(halves).filter(|(_, objects)| !objects.is_empty()) {
        let rest = description(session, name, &objects, "-".to_owned(), None)?;
        described.push(KeyDescription { unfinished: true, ..rest });
    }
    described.sort_by_key(|key| (key.kind, key.version));
    Ok(described)
}

fn description(
    session: &Session,
    name: KeyName,
    objects: &[Object],
    check_value: String,
    retired: Option<String>,
) -> Result<KeyDescription, KeyError> {
    let algorithm = match (name.kind, name.kind.form()) {
        (Kind::Row, _) => "HMAC-SHA-256",
        (_, Form::Secret(..)) => "AES-256",
        (_, Form::Pair(PairForm::P256)) => "P-256",
        (_, Form::Pair(PairForm::Rsa3072)) => "RSA-3072",
    };
    let objects = objects.iter().map(|object| session.described(*object));
    Ok(KeyDescription {
        kind: name.kind,
        version: name.version,
        retired: retired.is_some(),
        unfinished: false,
        label: retired.unwrap_or_else(|| name.to_string()),
        algorithm: algorithm.to_owned(),
        check_value,
        public: None,
        objects: objects.collect::<Result<_, _>>()?,
    })
}

fn rotate(session: &Session, boot: &Boot, kind: Kind) -> Result<u16, StartFailure> {
    let of_keys = |error: KeyError| StartFailure::keys(&boot.token_label, boot.in_use, &error);
    // What an interrupted rotation left was never used.
    discard_unfinished(session, &boot.token_label, &mut io::sink())?;
    let there = survey(session).map_err(of_keys)?;
    let newest = match there.newest(kind) {
        Some(newest) => newest,
        // Its first one.
        None if kind.is_optional() => 0,
        None => return Err(of_keys(KeyError::Missing(kind))),
    };
    let kept = there.retired.keys().filter(|name| name.kind == kind).map(|name| name.version).max();
    let next = newest.max(kept.unwrap_or(0)).checked_add(1);
    let version =
        next.ok_or_else(|| StartFailure::new(format!("there is no version of {kind} after the last")))?;
    let name = KeyName { kind, version };
    make_key(session, name)
        .map_err(|error| StartFailure::new(format!("key {name} cannot be made ({error})")))?;
    Ok(version)
}

fn retire(session: &Session, boot: &Boot, name: KeyName) -> Result<(), StartFailure> {
    let of_keys = |error: KeyError| StartFailure::keys(&boot.token_label, boot.in_use, &error);
    // What an interrupted retirement left under its mark goes here, and is thereby retired.
    let was_marked =
        unfinished(session).map_err(of_keys)?.get(&name).is_some_and(|key| !key.marks.is_empty());
    discard_unfinished(session, &boot.token_label, &mut io::sink())?;
    let there = survey(session).map_err(of_keys)?;
    if there.newest(name.kind) == Some(name.version) {
        return Err(StartFailure::new(format!(
            "{name} is the newest of its kind: run `hsm-authd keys rotate {}` first",
            name.kind
        )));
    }
    let failed = |error: Pkcs11Error| StartFailure::new(format!("{name} cannot be retired ({error})"));
    match (there.keys.get(&name), there.halves.get(&name)) {
        (Some(Found::Secret(key)), _) => session.destroy_named(*key, &name.to_string()).map_err(failed),
        (Some(Found::Pair { private, public }), _) => {
            retire_pair(session, name, *private, *public).map_err(failed)
        }
        // The public half is kept already: what is left is what was interrupted.
        (None, Some(halves)) => {
            let gone = |object: &Object| session.destroy_named(*object, &name.to_string());
            halves.iter().try_for_each(gone).map_err(failed)
        }
        (None, None) if was_marked => Ok(()),
        (None, None) => Err(StartFailure::new(format!("there is no key {name}"))),
    }
}

/// A crash leaves either half without the other: what was kept of it, or its mark, says that both are to go.
fn retire_pair(session: &Session, name: KeyName, private: Object, public: Object) -> Result<(), Pkcs11Error> {
    let Form::Pair(form) = name.kind.form() else { return Ok(()) };
    let mark = match session.public_half(public, form)? {
        PublicKey::P256(key) if name.kind.is_published() => {
            // Before the pair goes: not every module makes a public key that nobody without a PIN could have made.
            let kept = session.keep_public_half(&key, &name.retired())?;
            session.check_retired(kept).inspect_err(|_| drop(session.destroy(kept)))?;
            None
        }
        _ => Some(session.mark(&name.mark())?),
    };
    session.destroy_named(private, &name.to_string())?;
    session.destroy_named(public, &name.to_string())?;
    mark.map_or(Ok(()), |mark| session.destroy_named(mark, &name.mark()))
}
