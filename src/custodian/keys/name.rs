//! Which system keys there are, what each must be, and what it is labelled.

use std::fmt;

use super::super::pkcs11::{Material, PairForm, Purpose, Shape, Use};
use super::KeyError;
pub use crate::domain::system_key::KeyKind as Kind;

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
            Self::Attest | Self::Audit | Self::Tls => Form::Pair(PairForm::P256),
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
    pub(super) fn parse(label: &str) -> Option<Result<Self, KeyError>> {
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

    /// The pair whose public half a label keeps. Only what is published is kept.
    pub(super) fn of_retired(label: &str) -> Option<Self> {
        let (kind, version) = label.strip_prefix("hsm-authd/")?.split_once("/retired/")?;
        let name = Self::parse(&format!("hsm-authd/{kind}/{version}"))?.ok()?;
        name.kind.is_published().then_some(name)
    }

    /// The label of the mark that stands in the token while this key is made. Custodians start on no key that has
    /// one, so that what is marked was never used.
    pub fn mark(self) -> String {
        format!("{MARK}{}/v{}", self.kind.name(), self.version)
    }

    /// The key that a label marks. The first version of a secret key is never marked: what a mark says may be
    /// removed.
    pub(super) fn marked(label: &str) -> Option<Self> {
        let name = Self::parse(&format!("hsm-authd/{}", label.strip_prefix(MARK)?))?.ok()?;
        (name.version > 1 || matches!(name.kind.form(), Form::Pair(_))).then_some(name)
    }
}

const MARK: &str = "hsm-authd/unfinished/";
