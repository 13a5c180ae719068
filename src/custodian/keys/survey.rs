//! Which system keys the token holds.

use std::collections::{BTreeMap, BTreeSet};

use super::super::pkcs11::{Half, Object, PairForm, Pkcs11Error, Purpose, Session, Shape};
use super::peers::{self, LabelledPeer};
use super::removal_mark::RemovalMark;
use super::{Form, KeyError, KeyName, Kind};

/// A system key in the token.
#[derive(Clone, Copy, Debug)]
pub enum Found {
    /// One object.
    Secret(Object),
    /// Two objects. Whether they are of one pair is not known yet.
    Pair {
        /// It signs or unwraps.
        private: Object,
        /// It verifies or wraps.
        public: Object,
    },
}

/// The pair that an object marks. One that is not private marks none: it needs no PIN, and what a mark says is
/// removed.
fn marked(session: &Session, object: Object, label: &str) -> Result<Option<KeyName>, KeyError> {
    Ok(match KeyName::marked(label) {
        Some(name) if session.is_private(object)? => Some(name),
        _ => None,
    })
}

/// What there is of a key that is marked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unfinished {
    /// Marks of who makes it, since before it was there, or removes it for good.
    pub marks: Vec<Object>,
    /// Marks of who looks whether it is to be removed.
    pub removals: Vec<(Object, RemovalMark)>,
    /// What has its label.
    pub made: Vec<Object>,
}

/// Keys that are marked: being made, or interrupted in their making or their removal.
///
/// # Errors
/// The HSM failed.
pub fn unfinished(session: &Session) -> Result<BTreeMap<KeyName, Unfinished>, KeyError> {
    let mut unfinished: BTreeMap<KeyName, Unfinished> = BTreeMap::new();
    let labelled = session.labelled_objects()?;
    for (object, label) in &labelled {
        if let Some(name) = marked(session, *object, label)? {
            let of_it = unfinished.entry(name).or_default();
            match RemovalMark::read(session, *object) {
                Ok(None) => of_it.marks.push(*object),
                Ok(Some(removal)) => of_it.removals.push((*object, removal)),
                // Its run is at an end.
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    for (name, of_it) in &mut unfinished {
        let label = name.to_string();
        of_it.made.extend(labelled.iter().filter(|(_, other)| *other == label).map(|(object, _)| *object));
    }
    Ok(unfinished)
}

/// The system keys in a token.
pub struct Survey {
    /// Those that are finished, attributes checked.
    pub keys: BTreeMap<KeyName, Found>,
    /// The public halves of pairs whose private ones were retired, attributes checked.
    pub retired: BTreeMap<KeyName, Object>,
    /// What is left of pairs whose retirement was interrupted.
    pub halves: BTreeMap<KeyName, Vec<Object>>,
    /// What is labelled as a key of another token.
    pub peers: Vec<LabelledPeer>,
    /// Keys that are marked, whatever there is of them.
    unfinished: BTreeSet<KeyName>,
}

impl Survey {
    /// Itself, if of whatever is unfinished there is another version of its kind, or need be none.
    fn begun_beside(self) -> Result<Self, KeyError> {
        let is_alone =
            |name: &&KeyName| !name.kind.is_optional() && !self.keys.keys().any(|key| key.kind == name.kind);
        match self.unfinished.iter().find(is_alone) {
            Some(name) => Err(KeyError::Unfinished(*name)),
            None => Ok(self),
        }
    }

    /// The newest version of a kind.
    pub fn newest(&self, kind: Kind) -> Option<u16> {
        self.keys.keys().filter(|name| name.kind == kind).map(|name| name.version).max()
    }
}

/// What the labels in the token say.
#[derive(Default)]
struct Labels {
    objects: BTreeMap<KeyName, Vec<Object>>,
    unfinished: BTreeSet<KeyName>,
    retired: BTreeMap<KeyName, Vec<Object>>,
    peers: Vec<LabelledPeer>,
}

/// How often the labels are read at most until it was the same twice.
const READINGS_MAX: usize = 3;

impl Labels {
    fn read(session: &Session) -> Result<Self, KeyError> {
        let mut labels = Self::default();
        for (object, label) in session.labelled_objects()? {
            if let Some(kind) = peers::kind_of(&label) {
                // As of a retired one: one that is not private needs no PIN.
                if session.is_private(object)? {
                    labels.peers.push(LabelledPeer { kind, label, object });
                }
            } else if let Some(name) = marked(session, object, &label)? {
                labels.unfinished.insert(name);
            } else if let Some(name) = KeyName::of_retired(&label) {
                // One that is not private needs no PIN, and would say what our signatures are.
                if session.is_private(object)? {
                    labels.retired.entry(name).or_default().push(object);
                }
            } else if let Some(name) = KeyName::parse(&label) {
                match name {
                    // Who is told to remove it must find it.
                    Err(KeyError::Version(label)) if session.labelled(&label)?.is_empty() => {
                        let lie =
                            format!("C_GetAttributeValue: an object labelled {label}, which no search finds");
                        return Err(Pkcs11Error::lie(lie).into());
                    }
                    name => labels.objects.entry(name?).or_default().push(object),
                }
            }
        }
        Ok(labels)
    }

    /// As two readings in a row have it: one may have passed something over.
    fn agreed(session: &Session) -> Result<Self, KeyError> {
        let mut before = Self::read(session)?;
        for _ in 1..READINGS_MAX {
            let labels = Self::read(session)?;
            let is_same = labels.counts().eq(before.counts()) && labels.peers.len() == before.peers.len();
            if is_same && labels.unfinished == before.unfinished {
                return Ok(labels);
            }
            before = labels;
        }
        Err(Pkcs11Error::lie("C_FindObjects: other keys each time").into())
    }

    fn counts(&self) -> impl Iterator<Item = (KeyName, usize)> {
        self.objects.iter().chain(&self.retired).map(|(name, objects)| (*name, objects.len()))
    }
}

/// All system keys in the token. What is being made, or was begun and interrupted, is passed over where there is
/// another version of its kind.
///
/// # Errors
/// The first key that is not what it must be.
pub fn survey(session: &Session) -> Result<Survey, KeyError> {
    reading_twice(session, || surveyed(session)?.begun_beside())
}

/// The same, whether or not there is another version of a kind.
///
/// # Errors
/// The first key that is not what it must be.
pub fn survey_begun(session: &Session) -> Result<Survey, KeyError> {
    reading_twice(session, || surveyed(session))
}

/// What is read, or what is wrong with it, of which an operator may be told to remove something: that is said of what was
/// read twice.
///
/// # Errors
/// What is wrong; or the HSM failed.
pub fn reading_twice<T>(session: &Session, read: impl Fn() -> Result<T, KeyError>) -> Result<T, KeyError> {
    match read() {
        Err(error @ KeyError::Hsm(_)) => Err(error),
        Err(_) => match read() {
            Ok(_) => {
                Err(Pkcs11Error::lie("C_GetAttributeValue: a key that was wrong a moment ago is right")
                    .into())
            }
            Err(error) => Err(error.established(session)),
        },
        read => read,
    }
}

/// From here on the newest `row` that is finished is what the session must find: as long as it is open nobody retires that.
fn surveyed(session: &Session) -> Result<Survey, KeyError> {
    let there = read(session)?;
    if let Some(version) = there.newest(Kind::Row) {
        session.set_witness(KeyName { kind: Kind::Row, version }.to_string())?;
    }
    Ok(there)
}

fn read(session: &Session) -> Result<Survey, KeyError> {
    let Labels { mut objects, unfinished, retired, peers } = Labels::agreed(session)?;
    objects.retain(|name, _| !unfinished.contains(name));
    let halves = objects.extract_if(.., |name, _| retired.contains_key(name)).collect();
    let found =
        |(name, objects): (KeyName, Vec<Object>)| whole(session, name, &objects).map(|key| (name, key));
    let kept = |(name, objects): (KeyName, Vec<Object>)| {
        let [object] = *objects else { return Err(KeyError::HalfTwice(Half::Public, name)) };
        let checked = session.check_retired(object);
        checked.map(|()| (name, object)).map_err(|error| wrong_half(Half::Public, name, error))
    };
    Ok(Survey {
        keys: objects.into_iter().map(found).collect::<Result<_, _>>()?,
        retired: retired.into_iter().map(kept).collect::<Result<_, _>>()?,
        halves,
        peers,
        unfinished,
    })
}

/// The key that these objects of its label are, attributes checked.
///
/// # Errors
/// It is not what it must be, or not all of it.
pub fn whole(session: &Session, name: KeyName, objects: &[Object]) -> Result<Found, KeyError> {
    match name.kind.form() {
        Form::Secret(shape, purpose) => secret(session, name, &shape, purpose, objects),
        Form::Pair(form) => pair(session, name, form, objects),
    }
}

fn secret(
    session: &Session,
    name: KeyName,
    shape: &Shape,
    purpose: Purpose,
    objects: &[Object],
) -> Result<Found, KeyError> {
    let [object] = *objects else { return Err(KeyError::Twice(name)) };
    let checked = session.check_own(object, shape).and_then(|()| session.check_purpose(object, purpose));
    let wrong = |error| KeyError::of_object(error, |error| KeyError::Wrong(name, error));
    checked.map(|()| Found::Secret(object)).map_err(wrong)
}

pub(super) fn wrong_half(half: Half, name: KeyName, error: Pkcs11Error) -> KeyError {
    KeyError::of_object(error, |error| KeyError::WrongHalf(half, name, error))
}

fn pair(session: &Session, name: KeyName, form: PairForm, objects: &[Object]) -> Result<Found, KeyError> {
    let (mut private, mut public) = (None, None);
    for object in objects {
        let half = session.half(*object)?.ok_or(KeyError::NoHalf(name))?;
        let place = match half {
            Half::Private => &mut private,
            Half::Public => &mut public,
        };
        if place.replace(*object).is_some() {
            return Err(KeyError::HalfTwice(half, name));
        }
        session.check_half(*object, half, form).map_err(|error| wrong_half(half, name, error))?;
    }
    match (private, public) {
        (Some(private), Some(public)) => Ok(Found::Pair { private, public }),
        (None, _) => Err(KeyError::HalfMissing(Half::Private, name, Half::Public)),
        (_, None) => Err(KeyError::HalfMissing(Half::Public, name, Half::Private)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_names_one_version_of_one_kind() {
        for kind in Kind::ALL {
            for version in [1, 9, u16::MAX] {
                let name = KeyName { kind, version };
                assert_eq!(KeyName::parse(&name.to_string()).unwrap().unwrap(), name);
            }
        }
        for other in ["", "hsm-authd/other/v1", "hsm-authd/kek", "kek/v1", "hsm-authd/Kek/v1"] {
            assert!(KeyName::parse(other).is_none(), "{other}");
            assert!(KeyName::marked(other).is_none(), "{other}");
        }
        for kind in Kind::ALL {
            let name = KeyName { kind, version: 7 };
            assert!(KeyName::parse(&name.mark()).is_none(), "a mark is no key");
            assert_eq!(KeyName::marked(&name.mark()), Some(name));
            let first = KeyName { kind, version: 1 };
            let is_pair = matches!(kind.form(), Form::Pair(_));
            assert_eq!(KeyName::marked(&first.mark()), is_pair.then_some(first));
            let signs = [Kind::Attest, Kind::Audit].contains(&kind);
            assert!(!matches!(KeyName::parse(&name.retired()), Some(Ok(_))), "what is retired is no key");
            assert_eq!(KeyName::of_retired(&name.retired()), signs.then_some(name));
        }
        assert!(KeyName::of_retired("hsm-authd/attest/retired/v01").is_none());
        assert!(KeyName::marked("hsm-authd/unfinished/attest/v01").is_none());
        for bad in ["v0", "v01", "v+1", "1", "v65536", "v", "v1 ", "v1/v1"] {
            assert!(KeyName::parse(&format!("hsm-authd/kek/{bad}")).unwrap().is_err(), "{bad}");
        }
    }
}
