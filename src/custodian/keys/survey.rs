//! Which system keys there are, what each must be, and which the token holds.

use std::collections::BTreeMap;
use std::fmt;

use super::super::pkcs11::{Half, Material, Object, Pkcs11Error, Session, Shape, Use};

/// The system keys, which [`token`](super::super::token) makes and every custodian needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// AES-256: wraps the secrets of credentials.
    Kek,
    /// 32 bytes: the keys of seals, sums and fingerprints come from it.
    Row,
    /// AES-256: for small secrets, such as PIN hashes.
    Data,
    /// A P-256 key pair: signs attestations.
    Attest,
}

/// What a key of some kind must be, in the token.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    /// A secret key.
    Secret(Shape),
    /// A key pair: a private key and a public key, of one label.
    Pair,
}

/// The shape of `kek`.
pub(super) const KEK: Shape = system_key(Material::Aes, Use::Wrap);

const fn system_key(material: Material, purpose: Use) -> Shape {
    Shape { material, length_bytes: Some(32), token: true, extractable: false, purpose: Some(purpose) }
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Kek, Self::Row, Self::Data, Self::Attest];

    fn name(self) -> &'static str {
        match self {
            Self::Kek => "kek",
            Self::Row => "row",
            Self::Data => "data",
            Self::Attest => "attest",
        }
    }

    /// What such a key must be, in the token.
    pub fn form(self) -> Form {
        match self {
            Self::Kek => Form::Secret(KEK),
            Self::Row => Form::Secret(system_key(Material::Generic, Use::Sign)),
            Self::Data => Form::Secret(system_key(Material::Aes, Use::Cipher)),
            Self::Attest => Form::Pair,
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
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name)?;
        let version = version.strip_prefix('v').and_then(|digits| digits.parse().ok());
        // Spelt back, so that v01 and v+1 are no other names of v1.
        let key = version.map(|version| Self { kind, version });
        Some(match key {
            Some(key) if key.version > 0 && key.to_string() == label => Ok(key),
            _ => Err(KeyError::Version(label.to_owned())),
        })
    }

    /// The label of the mark that stands in the token while this pair is made. Custodians start on no key that has
    /// one, so that what is marked has never signed.
    pub fn mark(self) -> String {
        format!("{MARK}{}/v{}", self.kind.name(), self.version)
    }

    /// The pair that a label marks. No other key is ever marked: what a mark says may be removed.
    fn marked(label: &str) -> Option<Self> {
        let name = Self::parse(&format!("hsm-authd/{}", label.strip_prefix(MARK)?))?.ok()?;
        matches!(name.kind.form(), Form::Pair).then_some(name)
    }
}

const MARK: &str = "hsm-authd/unfinished/";

/// Why the system keys cannot be used. Its text follows the token's name.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The HSM failed.
    #[error("the HSM failed: {0}")]
    Hsm(#[from] Pkcs11Error),
    /// A label that names no version.
    #[error("the object labelled {0} names no version of a key: remove it or give it another label")]
    Version(String),
    /// Two objects with one label.
    #[error("two objects are labelled {0}: remove the one that wrapped or sealed nothing")]
    Twice(KeyName),
    /// A key that is not what it must be.
    #[error("key {0} is not usable: {1}; it was not made by `hsm-authd init`, or not wholly")]
    Wrong(KeyName, Pkcs11Error),
    /// An object of a pair's label that is no key of a pair.
    #[error("an object labelled {0} is neither a private nor a public key: remove it")]
    NoHalf(KeyName),
    /// More than one private or public key of one pair.
    #[error("several {0}s are labelled {1}: remove all but that of the pair that signed")]
    HalfTwice(Half, KeyName),
    /// A half alone: what is missing, and what is there. Nothing in the token says whether the pair ever signed.
    #[error(
        "the {0} of {1} is missing: put it back, or remove the {2} of that label and run `hsm-authd init`, \
         which makes a new pair; attestations of the old one then verify no more"
    )]
    HalfMissing(Half, KeyName, Half),
    /// A half that is not what it must be.
    #[error(
        "the {0} of {1} is not usable: {2}; it was not made by `hsm-authd init`, or not wholly: remove it"
    )]
    WrongHalf(Half, KeyName, Pkcs11Error),
    /// A pair that is being made, or whose making was interrupted.
    #[error("key {0} is not finished: run `hsm-authd init`")]
    Unfinished(KeyName),
    /// Halves of two pairs.
    #[error("the public key of {0} does not verify what its private key signs: put the right one back")]
    OtherPair(KeyName),
    /// A kind of which there is no version.
    #[error("there is no key hsm-authd/{}/v1: run `hsm-authd init`", .0.name())]
    Missing(Kind),
}

/// A system key in the token.
#[derive(Clone, Copy, Debug)]
pub enum Found {
    /// One object.
    Secret(Object),
    /// Two objects. Whether they are of one pair is not known yet.
    Pair {
        /// It signs.
        private: Object,
        /// It verifies.
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

/// Pairs whose making was interrupted: the marks, and the objects that were made.
///
/// # Errors
/// The HSM failed.
pub fn unfinished(session: &Session) -> Result<BTreeMap<KeyName, [Vec<Object>; 2]>, KeyError> {
    let mut unfinished: BTreeMap<KeyName, [Vec<Object>; 2]> = BTreeMap::new();
    let labelled = session.labelled_objects()?;
    for (object, label) in &labelled {
        if let Some(name) = marked(session, *object, label)? {
            unfinished.entry(name).or_default()[0].push(*object);
        }
    }
    for (name, [_, made]) in &mut unfinished {
        let label = name.to_string();
        made.extend(labelled.iter().filter(|(_, other)| *other == label).map(|(object, _)| *object));
    }
    Ok(unfinished)
}

/// All system keys in the token, attributes checked.
///
/// # Errors
/// The first key that is not what it must be.
pub fn survey(session: &Session) -> Result<BTreeMap<KeyName, Found>, KeyError> {
    let mut objects: BTreeMap<KeyName, Vec<Object>> = BTreeMap::new();
    for (object, label) in session.labelled_objects()? {
        if let Some(name) = marked(session, object, &label)? {
            return Err(KeyError::Unfinished(name));
        }
        let Some(name) = KeyName::parse(&label) else { continue };
        objects.entry(name?).or_default().push(object);
    }
    let found = |(name, objects): (KeyName, Vec<Object>)| {
        let key = match name.kind.form() {
            Form::Secret(shape) => secret(session, name, &shape, &objects),
            Form::Pair => pair(session, name, &objects),
        };
        key.map(|key| (name, key))
    };
    objects.into_iter().map(found).collect()
}

fn secret(session: &Session, name: KeyName, shape: &Shape, objects: &[Object]) -> Result<Found, KeyError> {
    let [object] = *objects else { return Err(KeyError::Twice(name)) };
    session.check(object, shape).map_err(|error| KeyError::Wrong(name, error))?;
    Ok(Found::Secret(object))
}

fn pair(session: &Session, name: KeyName, objects: &[Object]) -> Result<Found, KeyError> {
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
        session.check_half(*object, half).map_err(|error| KeyError::WrongHalf(half, name, error))?;
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
        for other in ["", "hsm-authd/audit/v1", "hsm-authd/kek", "kek/v1", "hsm-authd/Kek/v1"] {
            assert!(KeyName::parse(other).is_none(), "{other}");
            assert!(KeyName::marked(other).is_none(), "{other}");
        }
        for kind in Kind::ALL {
            let name = KeyName { kind, version: 7 };
            assert!(KeyName::parse(&name.mark()).is_none(), "a mark is no key");
            assert_eq!(KeyName::marked(&name.mark()), (kind == Kind::Attest).then_some(name));
        }
        assert!(KeyName::marked("hsm-authd/unfinished/attest/v01").is_none());
        for bad in ["v0", "v01", "v+1", "1", "v65536", "v", "v1 ", "v1/v1"] {
            assert!(KeyName::parse(&format!("hsm-authd/kek/{bad}")).unwrap().is_err(), "{bad}");
        }
    }
}
