//! Which system keys there are, what each must be, and which the token holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub use crate::domain::system_key::KeyKind as Kind;

use super::super::pkcs11::{Half, Material, Object, PairForm, Pkcs11Error, Purpose, Session, Shape, Use};
use super::peers::{self, LabelledPeer};
use super::removal_mark::RemovalMark;
use crate::hsm::messages::Fault;

/// What a key of some kind must be, in the token.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    /// A secret key, and what it is for.
    Secret(Shape, Purpose),
    /// A key pair: a private key and a public key, of one label.
    Pair(PairForm),
}

/// The shape of `kek`.
pub(super) const KEK: Shape = system_key(Material::Aes, Use::Wrap);

const fn system_key(material: Material, purpose: Use) -> Shape {
    Shape { material, length_bytes: Some(32), token: true, extractable: false, purpose: Some(purpose) }
}

impl Kind {
    /// What such a key must be, in the token.
    pub fn form(self) -> Form {
        match self {
            Self::Kek => Form::Secret(KEK, Purpose::AesKeyWrap),
            Self::Row => Form::Secret(system_key(Material::Generic, Use::Sign), Purpose::HmacSha256),
            Self::Data => Form::Secret(system_key(Material::Aes, Use::Cipher), Purpose::AesGcm),
            Self::Attest | Self::Audit => Form::Pair(PairForm::P256),
            Self::Import => Form::Pair(PairForm::Rsa3072),
        }
    }
}

/// One version of a system key. Displays as its label in the token: `hsm-authd/kek/v1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyName {
    /// What it is for.
    pub kind: Kind,
    /// From 1; the highest is used for what is new.
    pub version: u16,
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hsm-authd/{}/v{}", self.kind.name(), self.version)
    }
}

impl KeyName {
    /// The key a label names; `None`: it is no label of a system key.
    ///
    /// # Errors
    /// A label of a system key that names no version.
    fn parse(label: &str) -> Option<Result<Self, KeyError>> {
        let (name, version) = label.strip_prefix("hsm-authd/")?.split_once('/')?;
        let kind = Kind::parse(name)?;
        let version = version.strip_prefix('v').and_then(|digits| digits.parse().ok());
        // Spelt back, so that v01 and v+1 are no other names of v1.
        let key = version.map(|version| Self { kind, version });
        Some(match key {
            Some(key) if key.version > 0 && key.to_string() == label => Ok(key),
            _ => Err(KeyError::Version(label.to_owned())),
        })
    }

    /// The label of its public half once the private one is gone: it still says what verifies.
    pub fn retired(self) -> String {
        format!("hsm-authd/{}/retired/v{}", self.kind.name(), self.version)
    }

    /// The pair whose public half a label keeps. Only what signs is kept.
    fn of_retired(label: &str) -> Option<Self> {
        let (kind, version) = label.strip_prefix("hsm-authd/")?.split_once("/retired/")?;
        let name = Self::parse(&format!("hsm-authd/{kind}/{version}"))?.ok()?;
        matches!(name.kind.form(), Form::Pair(PairForm::P256)).then_some(name)
    }

    /// The label of the mark that stands in the token while this key is made. Custodians start on no key that has
    /// one, so that what is marked was never used.
    pub fn mark(self) -> String {
        format!("{MARK}{}/v{}", self.kind.name(), self.version)
    }

    /// The key that a label marks. The first version of a secret key is never marked: what a mark says may be
    /// removed.
    fn marked(label: &str) -> Option<Self> {
        let name = Self::parse(&format!("hsm-authd/{}", label.strip_prefix(MARK)?))?.ok()?;
        (name.version > 1 || matches!(name.kind.form(), Form::Pair(_))).then_some(name)
    }
}

const MARK: &str = "hsm-authd/unfinished/";

/// Why the system keys cannot be used. Its text follows the token's name, and is followed by an advice
/// ([`KeyError::advice`]).
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The HSM failed.
    #[error("the HSM failed: {0}")]
    Hsm(#[from] Pkcs11Error),
    /// A label that names no version.
    #[error("the object labelled {0} names no version of a key")]
    Version(String),
    /// Two objects with one label.
    #[error("two objects are labelled {0}")]
    Twice(KeyName),
    /// A key that is not what it must be.
    #[error("key {0} is not usable: {1}; it was not made by `hsm-authd init`, or not wholly")]
    Wrong(KeyName, Pkcs11Error),
    /// An object of a pair's label that is no key of a pair.
    #[error("an object labelled {0} is neither a private nor a public key")]
    NoHalf(KeyName),
    /// More than one private or public key of one pair.
    #[error("several {0}s are labelled {1}")]
    HalfTwice(Half, KeyName),
    /// A half alone: what is missing, and what is there. Nothing in the token says whether the pair was ever used.
    #[error("the {0} of {1} is missing")]
    HalfMissing(Half, KeyName, Half),
    /// A half that is not what it must be.
    #[error("the {0} of {1} is not usable: {2}; it was not made by `hsm-authd init`, or not wholly")]
    WrongHalf(Half, KeyName, Pkcs11Error),
    /// A pair that is being made, or whose making was interrupted.
    #[error("key {0} is not finished: run `hsm-authd init`")]
    Unfinished(KeyName),
    /// Halves of two pairs.
    #[error(
        "the public key of {0} does not fit its private key, tried twice: the HSM computes wrongly, or somebody has \
         replaced one of them and is to put the right one back"
    )]
    OtherPair(KeyName),
    /// A private half that does not unwrap what the public one wrapped.
    #[error(
        "the private key of {0} does not unwrap what its public key wraps, tried twice ({1}): the HSM computes wrongly, or \
         somebody has replaced one of them and is to put the right one back"
    )]
    Unwraps(KeyName, Pkcs11Error),
    /// The token's first anchor.
    #[error("the anchor of the log cannot be made: {0}")]
    Anchor(Fault),
    /// A step of what several tokens do that is not to be taken.
    #[error("{0}")]
    Step(&'static str),
    /// A kind of which there is no version.
    #[error("there is no key hsm-authd/{}/v1", .0.name())]
    Missing(Kind),
    /// A version that something is stored under.
    #[error("there is no key {0}")]
    Lost(KeyName),
}

impl KeyError {
    /// What is to be done about what is missing: another thing if there is a database that needs it.
    pub fn advice(&self, in_use: bool) -> String {
        match (self, in_use) {
            (Self::Missing(Kind::Kek | Kind::Row | Kind::Data), true) | (Self::Lost(_), _) => {
                ", and there is a database that needs it: this is another token, or the HSM does not show what it has, or \
                 the key is lost and comes back from the HSM's own backup (docs/hsm-faults.md)"
                    .to_owned()
            }
            (Self::Missing(_), true) => {
                ", and there is a database: the key comes back from the HSM's own backup, unless the database is of a \
                 release that had no such key yet (docs/hsm-faults.md)"
                    .to_owned()
            }
            (Self::Missing(_), false) => {
                ": run `hsm-authd init`, if this is the right token and it shows what it has".to_owned()
            }
            (Self::HalfMissing(..), true) => {
                ": put it back from the HSM's own backup, and remove nothing (docs/hsm-faults.md)".to_owned()
            }
            (Self::HalfMissing(_, _, there), false) => format!(
                ": put it back, or remove the {there} of that label and run `hsm-authd init`, which makes a new pair; what \
                 the old one signed then verifies no more, and what was wrapped for it opens no more"
            ),
            (Self::Version(_), false) => ": remove it or give it another label".to_owned(),
            (Self::Version(_) | Self::NoHalf(_), true) => {
                ": give it another label with the HSM's own tools, and remove nothing: somebody may have labelled a key so \
                 that the database needs"
                    .to_owned()
            }
            (Self::Twice(_), false) => ": remove the one that wrapped or sealed nothing".to_owned(),
            (Self::Twice(_), true) => ", and there is a database: what is stored was wrapped or sealed by one of them, and is \
                 lost for good without that one. Back the HSM up before anything is removed (docs/hsm-faults.md)"
                .to_owned(),
            (Self::NoHalf(_) | Self::WrongHalf(..), false) => ": remove it".to_owned(),
            (Self::HalfTwice(..), false) => ": remove all but that of the pair that was used".to_owned(),
            (Self::WrongHalf(_, name, _) | Self::HalfTwice(_, name), true) => {
                let lost = match name.kind {
                    Kind::Import => "what was wrapped for it opens no more",
                    _ => "what it signed verifies no more",
                };
                format!(
                    ", and there is a database: if the pair that was used goes, {lost}. Put back what is missing from the \
                     HSM's own backup, and back the HSM up before anything is removed (docs/hsm-faults.md)"
                )
            }
            _ => String::new(),
        }
    }

    /// Of a key that was read: it is wrong only if it was read, and is not what it must be.
    pub(super) fn of_object(error: Pkcs11Error, wrong: impl FnOnce(Pkcs11Error) -> Self) -> Self {
        match error.is_of_object() {
            true => wrong(error),
            false => Self::Hsm(error),
        }
    }

    /// Itself, if it is known to be so: of a session that nobody is logged in to the half of all objects is not there.
    pub fn established(self, session: &Session) -> Self {
        if let Self::Hsm(_) = self {
            return self;
        }
        // By another search than the first: what that one passes over is shown by this one, or neither is to be believed.
        if let Self::HalfMissing(missing, name, there) = self {
            let count = |half| session.labelled_half(&name.to_string(), half).map(|found| found.len());
            match [there, missing].map(count).into_iter().collect::<Result<Vec<_>, _>>() {
                Ok(counts) if counts == [1, 0] => {}
                Ok(_) => {
                    return Pkcs11Error::lie(format!("C_FindObjects: {name} is there, and is not")).into();
                }
                Err(error) => return error.into(),
            }
        }
        match session.is_logged_in() {
            Ok(true) => self,
            Ok(false) => Self::Hsm(Pkcs11Error::lie("C_GetSessionInfo: nobody is logged in any more")),
            Err(error) => Self::Hsm(error),
        }
    }
}

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
    /// Itself, if of whatever is unfinished there is another version of its kind.
    fn begun_beside(self) -> Result<Self, KeyError> {
        let is_alone = |name: &&KeyName| !self.keys.keys().any(|key| key.kind == name.kind);
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
            let signs = matches!(kind.form(), Form::Pair(PairForm::P256));
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
