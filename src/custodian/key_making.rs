//! Making a system key, whole or not at all.

use super::anchor;
use super::keys::{Form, KeyError, KeyName, Kind, unfinished};
use super::pkcs11::{PairForm, Pkcs11Error, Purpose, Session, Shape};
use super::removal::{destroy_if_there, discard};
use super::since_1970;

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
