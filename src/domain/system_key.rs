//! The appliance's own keys, by their names: the HSM has them, and nothing else has.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What a system key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    /// AES-256: wraps the secrets of credentials.
    Kek,
    /// 32 bytes: the keys of seals, sums and fingerprints come from it.
    Row,
    /// AES-256: for small secrets, such as PIN hashes.
    Data,
    /// A P-256 key pair: signs attestations.
    Attest,
    /// A P-256 key pair: signs checkpoints of the log.
    Audit,
    /// An RSA-3072 key pair: others wrap secrets for it, and it unwraps them.
    Import,
    /// A P-256 key pair: signs handshakes of TLS. There need not be one: the server's key may be in a file.
    Tls,
}

impl KeyKind {
    /// Every kind.
    pub const ALL: [Self; 7] =
        [Self::Kek, Self::Row, Self::Data, Self::Attest, Self::Audit, Self::Import, Self::Tls];

    /// As in labels, commands and the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kek => "kek",
            Self::Row => "row",
            Self::Data => "data",
            Self::Attest => "attest",
            Self::Audit => "audit",
            Self::Import => "import",
            Self::Tls => "tls",
        }
    }

    /// Whether a token may be used without one.
    pub fn is_optional(self) -> bool {
        self == Self::Tls
    }

    /// Whether what it signs is verified later, by others too: its public half outlives it, and other tokens keep it.
    pub fn is_published(self) -> bool {
        matches!(self, Self::Attest | Self::Audit)
    }

    /// The kind of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The newest version of each kind that somebody has; versions begin with 1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewestKeys(BTreeMap<KeyKind, u16>);

impl NewestKeys {
    /// Of these.
    pub fn new(newest: impl IntoIterator<Item = (KeyKind, u16)>) -> Self {
        Self(newest.into_iter().collect())
    }

    /// That of a kind; 0: none is known.
    pub fn of(&self, kind: KeyKind) -> u16 {
        self.0.get(&kind).copied().unwrap_or(0)
    }

    /// Of each kind the newer of both.
    #[must_use]
    pub fn or_newer(mut self, other: &Self) -> Self {
        for (kind, version) in &other.0 {
            let known = self.0.entry(*kind).or_default();
            *known = (*known).max(*version);
        }
        self
    }

    /// What is newer here than in `known`: each version between, in order.
    pub fn beyond(&self, known: &Self) -> Vec<(KeyKind, u16)> {
        let newer = |(kind, version): (&KeyKind, &u16)| {
            let kind = *kind;
            (known.of(kind).saturating_add(1)..=*version).map(move |version| (kind, version))
        };
        self.0.iter().flat_map(newer).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_one_name() {
        for kind in KeyKind::ALL {
            assert_eq!(KeyKind::parse(kind.name()), Some(kind));
        }
        assert_eq!(KeyKind::parse("Kek"), None);
    }

    #[test]
    fn what_is_newer_is_told_version_by_version() {
        use KeyKind::{Attest, Kek, Row};
        let known = NewestKeys::new([(Kek, 1), (Row, 3)]);
        let now = NewestKeys::new([(Kek, 3), (Row, 3), (Attest, 1)]);
        assert_eq!(now.beyond(&known), [(Kek, 2), (Kek, 3), (Attest, 1)]);
        assert_eq!(known.beyond(&now), []);
        let older = NewestKeys::new([(Kek, 1), (Row, 4)]);
        assert_eq!(now.or_newer(&older), NewestKeys::new([(Kek, 3), (Row, 4), (Attest, 1)]));
    }
}
