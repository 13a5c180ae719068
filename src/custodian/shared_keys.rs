//! The steps by which several tokens come to have the same `kek`, `row` and `data`, pairs of the same versions, and each
//! other's public halves.
//!
//! Each step is done in a process of its own that knows one token; who takes them in their order knows all of them, and
//! holds the lock of the keys. A key stands under its mark ([`KeyName::mark`]) from before its first object until every
//! token has it. What goes from one token to another is wrapped for the `import` key of the other (RSAES-OAEP).

use serde::{Deserialize, Serialize};

use super::StartFailure;
use super::anchor;
use super::check_values::{of_key, of_secret};
use super::key_making::{FIRST_AUDIT, is_unmarked, make_pair};
use super::keys::{
    Form, Found, KeyError, KeyName, Kind, ReadPeers, Survey, Unfinished, peer_label, read_peers,
    reading_twice, survey_begun, unfinished, whole,
};
use super::pkcs11::{Object, PairForm, Pkcs11Error, Session, Shape};
use super::removal::discard;
use super::since_1970;
use crate::domain::signer::PublicKey;
use crate::hsm::messages::{Boot, KeyCheck};

/// A step in one token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum SharedTask {
    /// Tells what there is, and changes nothing. -> [`SharedDone::Standing`]
    Look,
    /// Generates a `kek`, `row` or `data` as a session object, wraps it for each of these RSA keys, and destroys it.
    /// -> [`SharedDone::Borne`]
    Bear(Kind, Vec<PublicKey>),
    /// Unwraps what was borne into a token object of that version, under its mark.
    Take {
        /// Of which kind.
        kind: Kind,
        /// Of which there is nothing in the token.
        version: u16,
        /// Wrapped for the newest `import` key of the token.
        blob: Vec<u8>,
        /// What must come out.
        check: KeyCheck,
    },
    /// Makes a pair of that version, under its mark.
    Make(Kind, u16),
    /// Keeps these public halves of other tokens.
    Meet(Vec<(Kind, PublicKey)>),
    /// Lets a key that is whole, and has that check value, be used: its mark goes.
    Finish(Kind, u16, KeyCheck),
    /// Removes what stands under a mark, and the mark.
    Discard(Kind, u16),
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum SharedDone {
    /// To [`SharedTask::Look`].
    Standing(Standing),
    /// To [`SharedTask::Bear`].
    Borne {
        /// One for each key that it was wrapped for, in their order.
        blobs: Vec<Vec<u8>>,
        /// What must come out of each.
        check: KeyCheck,
    },
    /// To all others.
    Done,
}

/// What a token has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// System keys, finished or not.
    pub keys: Vec<HeldKey>,
    /// Pairs whose public half alone is left.
    pub retired: Vec<(Kind, u16)>,
    /// What it signs with, or once signed with.
    pub published: Vec<(Kind, PublicKey)>,
    /// What it knows others to sign with.
    pub peers: Vec<(Kind, PublicKey)>,
    /// The newest finished key that others wrap for.
    pub import: Option<PublicKey>,
}

/// A system key in a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldKey {
    /// What it is for.
    pub kind: Kind,
    /// From 1.
    pub version: u16,
    /// Whether nothing marks it.
    pub finished: bool,
    /// What tells it from others; `None`: it is not whole.
    pub check: Option<KeyCheck>,
}

/// Takes a step.
///
/// # Errors
/// One line for the operator. What was begun stays under its mark.
pub(super) fn step(session: &Session, boot: &Boot, task: SharedTask) -> Result<SharedDone, StartFailure> {
    let label = &boot.token_label;
    let of_keys = |error: KeyError| StartFailure::keys(label, boot.in_use, &error);
    let failed = |kind, version, what: &str, error: KeyError| {
        let name = KeyName { kind, version };
        StartFailure::new(format!("token {label}: key {name} cannot be {what} ({error})"))
    };
    match task {
        SharedTask::Look => return look(session).map(SharedDone::Standing).map_err(of_keys),
        SharedTask::Bear(kind, recipients) => {
            let borne = bear(session, kind, &recipients);
            let (blobs, check) = borne.map_err(|error| {
                StartFailure::new(format!(
                    "token {label}: no {kind} can be made for several tokens ({error})"
                ))
            })?;
            return Ok(SharedDone::Borne { blobs, check });
        }
        SharedTask::Take { kind, version, blob, check } => {
            take(session, KeyName { kind, version }, &blob, check)
                .map_err(|error| failed(kind, version, "taken", error))?;
        }
        SharedTask::Make(kind, version) => {
            make(session, KeyName { kind, version }).map_err(|error| failed(kind, version, "made", error))?;
        }
        SharedTask::Meet(peers) => meet(session, &peers).map_err(of_keys)?,
        SharedTask::Finish(kind, version, check) => {
            finish(session, KeyName { kind, version }, check)
                .map_err(|error| failed(kind, version, "finished", error))?;
        }
        SharedTask::Discard(kind, version) => {
            discard(session, KeyName { kind, version })
                .map_err(|error| failed(kind, version, "removed", error))?;
        }
    }
    Ok(SharedDone::Done)
}

fn look(session: &Session) -> Result<Standing, KeyError> {
    let Survey { keys, retired, peers, .. } = survey_begun(session)?;
    let mut standing = Standing::default();
    for (name, key) in keys {
        let check = tell(session, name, key, &mut standing.published)?;
        if let (Kind::Import, Found::Pair { public, .. }) = (name.kind, key) {
            // In the order of versions.
            standing.import = Some(session.public_half(public, PairForm::Rsa3072)?);
        }
        standing.keys.push(held(name, true, Some(check)));
    }
    let marked = unfinished(session)?;
    // What is not whole is removed. That it is not is believed of what was seen and read twice.
    if unfinished(session)? != marked {
        return Err(Pkcs11Error::lie("C_FindObjects: other unfinished keys the second time").into());
    }
    for (name, Unfinished { made: objects, .. }) in marked {
        let read = || match objects.is_empty() {
            true => Err(KeyError::Unfinished(name)),
            false => whole(session, name, &objects),
        };
        let check = match reading_twice(session, read) {
            Ok(key) => Some(tell(session, name, key, &mut standing.published)?),
            // The HSM, or what there is of the key.
            Err(error @ KeyError::Hsm(_)) => return Err(error),
            Err(_) => None,
        };
        standing.keys.push(held(name, false, check));
    }
    for (name, public) in retired {
        standing.published.push((name.kind, session.public_half(public, PairForm::P256)?));
        standing.retired.push((name.kind, name.version));
    }
    let ReadPeers { peers, .. } = read_peers(session, &peers)?;
    standing.peers = peers.into_iter().map(|peer| (peer.kind, peer.public)).collect();
    Ok(standing)
}

fn held(KeyName { kind, version }: KeyName, finished: bool, check: Option<KeyCheck>) -> HeldKey {
    HeldKey { kind, version, finished, check }
}

/// What tells a key from others; what it signs with, if it does, is published.
fn tell(
    session: &Session,
    name: KeyName,
    key: Found,
    published: &mut Vec<(Kind, PublicKey)>,
) -> Result<KeyCheck, KeyError> {
    Ok(match (key, name.kind.form()) {
        (Found::Secret(object), _) => of_secret(session, name.kind, object)?,
        (Found::Pair { public, .. }, Form::Pair(PairForm::P256)) => {
            let public = session.public_half(public, PairForm::P256)?;
            let check = of_key(&public);
            if name.kind.is_published() {
                published.push((name.kind, public));
            }
            check
        }
        (Found::Pair { public, .. }, _) => of_key(&session.public_half(public, PairForm::Rsa3072)?),
    })
}

/// The only moment at which a secret of ours may leave a token: as long as this runs, and wrapped.
fn bear(
    session: &Session,
    kind: Kind,
    recipients: &[PublicKey],
) -> Result<(Vec<Vec<u8>>, KeyCheck), KeyError> {
    let Form::Secret(shape, _) = kind.form() else { return Err(wrong("it is no secret key")) };
    let shape = Shape { token: false, extractable: true, ..shape };
    let key = session.generate(&shape)?;
    let borne = session.check(key, &shape).map_err(KeyError::from).and_then(|()| {
        let check = of_secret(session, kind, key)?;
        let blobs = recipients.iter().map(|recipient| wrap_for(session, recipient, key));
        Ok((blobs.collect::<Result<_, _>>()?, check))
    });
    // Whatever came of it. Of two failures the first is told: the key ends with the session in any case.
    let gone = session.destroy_surely(key);
    let borne = borne?;
    gone?;
    Ok(borne)
}

fn wrap_for(session: &Session, recipient: &PublicKey, key: Object) -> Result<Vec<u8>, KeyError> {
    let PublicKey::Rsa(recipient) = recipient else {
        return Err(wrong("it is to be wrapped for no RSA key"));
    };
    let wrapping = session.create_wrapping_key(recipient)?;
    let blob = session.wrap_oaep(wrapping, key);
    Ok(session.destroy_after(wrapping, blob)?)
}

fn take(session: &Session, name: KeyName, blob: &[u8], check: KeyCheck) -> Result<(), KeyError> {
    let Form::Secret(shape, purpose) = name.kind.form() else { return Err(wrong("it is no secret key")) };
    let there = survey_begun(session)?;
    let newest = there.newest(Kind::Import).ok_or(KeyError::Missing(Kind::Import))?;
    let import = KeyName { kind: Kind::Import, version: newest };
    let Some(Found::Pair { private, .. }) = there.keys.get(&import) else {
        return Err(KeyError::Missing(Kind::Import));
    };
    begin(session, name)?;
    let object = session.take_oaep(*private, blob, &shape, &name.to_string(), purpose)?;
    match of_secret(session, name.kind, object)? == check {
        true => Ok(()),
        false => {
            session.destroy(object)?;
            Err(wrong("another key came out than was wrapped"))
        }
    }
}

fn make(session: &Session, name: KeyName) -> Result<(), KeyError> {
    let Form::Pair(form) = name.kind.form() else { return Err(wrong("it is no pair")) };
    let there = survey_begun(session)?;
    let has_audit = there.keys.keys().chain(there.retired.keys()).any(|name| name.kind == Kind::Audit);
    begin(session, name)?;
    make_pair(session, name, form)?;
    if name.kind == Kind::Audit && !has_audit && name != FIRST_AUDIT {
        // A token that joins others knows of no log yet.
        let objects = unfinished(session)?.remove(&name).unwrap_or_default().made;
        if let Found::Pair { private, public } = whole(session, name, &objects)? {
            let public = session.public_half(public, form)?;
            anchor::make_first(session, private, &public, since_1970().as_secs())
                .map_err(KeyError::Anchor)?;
        }
    }
    Ok(())
}

/// Sets the mark, and sees that it and nothing else of that name is there.
fn begin(session: &Session, name: KeyName) -> Result<(), KeyError> {
    let label = name.to_string();
    if session.labelled_objects()?.iter().any(|(_, other)| *other == label) {
        return Err(wrong("it is there already"));
    }
    is_unmarked(session, name)?;
    session.mark(&name.mark())?;
    match unfinished(session)?.contains_key(&name) {
        true => Ok(()),
        // A module that does not show what there is may hide the key as well.
        false => Err(wrong("its mark was made, and is not found")),
    }
}

fn finish(session: &Session, name: KeyName, check: KeyCheck) -> Result<(), KeyError> {
    let Some(Unfinished { marks, removals, made }) = unfinished(session)?.remove(&name) else {
        return Ok(());
    };
    if !removals.is_empty() {
        return Err(wrong(
            "another run looks whether it is to be removed, or was interrupted: try again in a minute",
        ));
    }
    let key = whole(session, name, &made)?;
    if tell(session, name, key, &mut Vec::new())? != check {
        return Err(wrong("it is another key"));
    }
    for mark in marks {
        session.destroy_named(mark, &name.mark())?;
    }
    // Another object of its name, or another mark, is refused here already.
    match survey_begun(session)?.keys.contains_key(&name) {
        true => Ok(()),
        false => Err(wrong("its mark is gone, and it is not found")),
    }
}

fn meet(session: &Session, peers: &[(Kind, PublicKey)]) -> Result<(), KeyError> {
    let ReadPeers { peers: known, others } = read_peers(session, &survey_begun(session)?.peers)?;
    others.into_iter().try_for_each(|(object, label)| session.destroy_named(object, &label))?;
    for (kind, public) in peers {
        let PublicKey::P256(point) = public else { return Err(wrong("a peer's key that is not on P-256")) };
        if !known.iter().any(|peer| (peer.kind, &peer.public) == (*kind, public)) {
            let object = session.keep_public_half(point, &peer_label(*kind, public))?;
            session.check_retired(object).inspect_err(|_| drop(session.destroy(object)))?;
        }
    }
    Ok(())
}

fn wrong(what: &'static str) -> KeyError {
    KeyError::Step(what)
}

#[cfg(test)]
mod tests {
    use super::super::keys::Keys;
    use super::super::test_token::with_session;
    use super::super::token::make_keys;
    use super::*;

    #[test]
    fn a_key_is_borne_taken_and_finished_and_nothing_of_it_is_left() {
        const NAME: &str =
            "custodian::shared_keys::tests::a_key_is_borne_taken_and_finished_and_nothing_of_it_is_left";
        with_session(NAME, |session| {
            make_keys(&session, "unit", &mut std::io::sink()).unwrap();
            let session = session.accepting_shared_keys(true);
            let import = look(&session).unwrap().import.unwrap();
            // With the known key of the trials.
            let resting = session.session_objects();
            for kind in [Kind::Kek, Kind::Row, Kind::Data] {
                taken_and_finished(&session, kind, &import, resting);
            }
            let keys = Keys::load(&session).unwrap();
            for kind in [Kind::Kek, Kind::Row, Kind::Data] {
                assert_eq!(keys.newest().of(kind), 2);
                assert_eq!(keys.checks().iter().filter(|(of, ..)| *of == kind).count(), 2);
            }
            // A session that was not told of it takes no such key.
            let error = Keys::load(&session.accepting_shared_keys(false)).err().unwrap();
            assert!(matches!(error, KeyError::Wrong(..)), "{error}");
        });
    }

    fn taken_and_finished(session: &Session, kind: Kind, import: &PublicKey, resting: usize) {
        let (blobs, check) = bear(session, kind, &[import.clone(), import.clone()]).unwrap();
        assert_eq!(session.session_objects(), resting, "the key that could leave is gone");
        assert!(blobs.len() == 2 && blobs[0] != blobs[1] && blobs[0].len() == 384);
        let (_, other) = bear(session, kind, std::slice::from_ref(import)).unwrap();
        assert_ne!(check, other);

        let name = KeyName { kind, version: 2 };
        let error = take(session, name, &blobs[0], other).unwrap_err();
        assert!(error.to_string().contains("another key came out"), "{error}");
        assert!(take(session, name, &[7; 384], check).is_err());
        assert!(unfinished(session).unwrap()[&name].made.is_empty(), "neither stayed");
        assert!(discard(session, name).unwrap());

        take(session, name, &blobs[1], check).unwrap();
        let error = take(session, name, &blobs[0], check).unwrap_err();
        assert!(error.to_string().contains("it is there already"), "{error}");
        assert_eq!(session.session_objects(), resting);
        let marked = HeldKey { kind, version: 2, finished: false, check: Some(check) };
        assert!(look(session).unwrap().keys.contains(&marked));
        assert!(!survey_begun(session).unwrap().keys.contains_key(&name), "what is marked is not used");
        assert!(finish(session, name, other).is_err());
        assert!(!survey_begun(session).unwrap().keys.contains_key(&name));
        finish(session, name, check).unwrap();
        assert!(look(session).unwrap().keys.contains(&HeldKey { finished: true, ..marked }));
        let Found::Secret(object) = survey_begun(session).unwrap().keys[&name] else { panic!() };
        assert!(session.value(object).is_none());
        finish(session, name, check).unwrap();
    }

    #[test]
    fn a_key_is_born_for_rsa_keys_alone_and_none_is_left_otherwise() {
        const NAME: &str =
            "custodian::shared_keys::tests::a_key_is_born_for_rsa_keys_alone_and_none_is_left_otherwise";
        with_session(NAME, |session| {
            make_keys(&session, "unit", &mut std::io::sink()).unwrap();
            let Standing { import, published, .. } = look(&session).unwrap();
            let resting = session.session_objects();
            let recipients = [import.unwrap(), published[0].1.clone()];
            assert!(bear(&session, Kind::Row, &recipients).is_err());
            assert!(bear(&session, Kind::Attest, &recipients).is_err());
            assert_eq!(session.session_objects(), resting);
        });
    }

    #[test]
    fn peers_are_met_once_and_what_is_half_made_of_one_is_made_anew() {
        const NAME: &str =
            "custodian::shared_keys::tests::peers_are_met_once_and_what_is_half_made_of_one_is_made_anew";
        with_session(NAME, |session| {
            make_keys(&session, "unit", &mut std::io::sink()).unwrap();
            // Any key on P-256 is as good as another token's.
            let point = [&[4][..], &p256_point([7; 32])].concat();
            let peer = PublicKey::from_p256_point(&point).unwrap();
            let label = peer_label(Kind::Attest, &peer);
            session.mark(&label).unwrap();
            assert_eq!(Keys::load(&session).unwrap().attest().count(), 1, "it keeps nobody from serving");
            let count =
                || session.labelled_objects().unwrap().iter().filter(|(_, other)| *other == label).count();
            for _ in 0..2 {
                meet(&session, &[(Kind::Attest, peer.clone())]).unwrap();
                assert_eq!(count(), 1);
            }
            assert_eq!(look(&session).unwrap().peers, [(Kind::Attest, peer.clone())]);
            let mut keys = Keys::load(&session).unwrap();
            let of = |keys: &Keys| keys.attest().map(|key| key.public().clone()).collect::<Vec<_>>();
            assert_eq!(of(&keys).len(), 2);
            assert_eq!(of(&keys)[1], peer, "after its own");
            assert_eq!(keys.audit().count(), 1);
            // One that comes later is found too, but not under the label of another.
            let later = [&[4][..], &p256_point([8; 32])].concat();
            let later = PublicKey::from_p256_point(&later).unwrap();
            let PublicKey::P256(point) = &later else { panic!() };
            session.keep_public_half(point, &peer_label(Kind::Audit, &peer)).unwrap();
            assert_eq!(keys.load_more(&session).unwrap(), 0);
            meet(&session, &[(Kind::Audit, later)]).unwrap();
            assert_eq!(keys.load_more(&session).unwrap(), 1);
            assert_eq!((keys.audit().count(), keys.load_more(&session).unwrap()), (2, 0));
        });
    }

    fn p256_point(secret: [u8; 32]) -> Vec<u8> {
        let signing = p256::ecdsa::SigningKey::from_slice(&secret).unwrap();
        let point = signing.verifying_key().to_sec1_point(false);
        point.as_bytes()[1..].to_vec()
    }
}
