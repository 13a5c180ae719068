//! The system keys of a custodian.

mod error;
mod known;
mod name;
mod pairs;
mod peers;
mod pulse;
mod removal_mark;
mod rows;
mod survey;
mod versions;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::check_values::of_secret;
use super::pkcs11::{Object, Pkcs11Error, Session, Shape};
use crate::domain::idempotency::Fingerprint;
use crate::domain::row::{RowBytes, RowSum, Seal, SealedBytes};
use crate::domain::system_key::NewestKeys;
use crate::domain::time::RunId;
use crate::hsm::messages::KeyCheck;
use crate::secret::SecretBytes;
use known::{Data, Kek};
use name::KEK;
use peers::LabelledPeer;
use pulse::Pulse;
use rows::RowKeys;
use versions::Versions;

pub use error::KeyError;
pub use name::{Form, KeyName, Kind};
pub use pairs::{ImportKey, PublishedKey, SigningKey};
pub use peers::{Peer, ReadPeers, peer_label, read_peers};
#[cfg(test)]
pub use removal_mark::Maker;
pub use removal_mark::RemovalMark;
pub use survey::{Found, Survey, Unfinished, reading_twice, survey, survey_begun, unfinished, whole};

/// The system keys of a custodian.
pub struct Keys {
    kek: Versions<Kek>,
    row: Versions<RowKeys>,
    data: Versions<Data>,
    attest: Versions<SigningKey>,
    audit: Versions<SigningKey>,
    import: Versions<ImportKey>,
    /// There need not be one.
    tls: BTreeMap<u16, SigningKey>,
    retired: BTreeMap<KeyName, PublishedKey>,
    /// Those of other tokens.
    peers: Vec<(Kind, PublishedKey)>,
    /// Of each version of `kek`, `row` and `data`.
    checks: Vec<(Kind, u16, KeyCheck)>,
    pulse: Pulse,
    missed: RefCell<Missed>,
}

/// What was asked for for which there is no key here.
#[derive(Default)]
pub struct Missed {
    /// Versions, by name: there may be keys of them by now.
    pub versions: BTreeSet<KeyName>,
    /// What names no version: it may have been made with a key that is new, or with none.
    pub others: bool,
}

impl Missed {
    /// Whether nothing was.
    pub fn is_none(&self) -> bool {
        self.versions.is_empty() && !self.others
    }
}

/// Keys that were opened: found, checked, tried, and what is derived from them derived.
#[derive(Default)]
struct Opened {
    kek: BTreeMap<u16, Kek>,
    /// With the key itself, in the token.
    row: BTreeMap<u16, (Object, RowKeys)>,
    data: BTreeMap<u16, Data>,
    attest: BTreeMap<u16, SigningKey>,
    audit: BTreeMap<u16, SigningKey>,
    import: BTreeMap<u16, ImportKey>,
    tls: BTreeMap<u16, SigningKey>,
    retired: BTreeMap<KeyName, PublishedKey>,
    checks: Vec<(Kind, u16, KeyCheck)>,
}

impl Opened {
    fn open(&mut self, session: &Session, name: KeyName, key: Found) -> Result<(), KeyError> {
        let KeyName { kind, version } = name;
        if let Found::Secret(object) = key {
            self.checks.push((kind, version, of_secret(session, kind, object)?));
        }
        match (kind, key) {
            (Kind::Kek, Found::Secret(object)) => {
                let copy = session_copy(session, name, object)?;
                self.kek.insert(version, Kek::new(session, copy)?);
            }
            (Kind::Row, Found::Secret(object)) => {
                self.row.insert(version, (object, RowKeys::derive(session, object)?));
            }
            (_, Found::Secret(object)) => {
                self.data.insert(version, Data::new(session, object)?);
            }
            (Kind::Import, Found::Pair { private, public }) => {
                self.import.insert(version, ImportKey::open(session, name, private, public)?);
            }
            (kind, Found::Pair { private, public }) => {
                let signing = match kind {
                    Kind::Audit => &mut self.audit,
                    Kind::Tls => &mut self.tls,
                    _ => &mut self.attest,
                };
                signing.insert(version, SigningKey::open(session, name, private, public)?);
            }
        }
        Ok(())
    }
}

/// What other tokens sign with, of what is not known yet.
fn new_peers(
    session: &Session,
    known: &[(Kind, PublishedKey)],
    labelled: &[LabelledPeer],
) -> Result<Vec<(Kind, PublishedKey)>, Pkcs11Error> {
    let is_known =
        |peer: &Peer| known.iter().any(|(kind, key)| (*kind, key.public()) == (peer.kind, &peer.public));
    let ReadPeers { peers, .. } = read_peers(session, labelled)?;
    let new = peers.into_iter().filter(|peer| !is_known(peer));
    new.map(|peer| Ok((peer.kind, PublishedKey::of(session, peer.public)?))).collect()
}

/// A session object spares the module the token's files and locks at each unwrapping.
fn session_copy(session: &Session, name: KeyName, kek: Object) -> Result<Object, KeyError> {
    let copy = session.copy_to_session(kek)?;
    let checked = session.check_copy(copy, &Shape { token: false, ..KEK });
    checked.map(|()| copy).map_err(|error| {
        // What is wrong is told: that it cannot be destroyed, too, came of it.
        let _ = session.destroy(copy);
        KeyError::of_object(error, |error| KeyError::Wrong(name, error))
    })
}

impl Keys {
    /// Finds and checks every system key, and derives what is derived.
    ///
    /// # Errors
    /// A key is missing, there twice, or not what it must be.
    pub fn load(session: &Session) -> Result<Self, KeyError> {
        Self::loaded(session).map_err(|error| error.established(session))
    }

    fn loaded(session: &Session) -> Result<Self, KeyError> {
        let Survey { keys, retired, peers, .. } = survey(session)?;
        let mut opened = Opened::default();
        for (name, key) in keys {
            opened.open(session, name, key)?;
        }
        for (name, public) in retired {
            opened.retired.insert(name, PublishedKey::open(session, name, public)?);
        }
        let peers = new_peers(session, &[], &peers)?;
        let newest = opened.row.iter().next_back().map(|(version, (object, _))| (*version, *object));
        let (version, pulse_key) = newest.ok_or(KeyError::Missing(Kind::Row))?;
        let row = opened.row.into_iter().map(|(version, (_, keys))| (version, keys)).collect();
        let name = KeyName { kind: Kind::Row, version };
        let pulse = Pulse::new(session, name, pulse_key)?;
        Ok(Self {
            kek: Versions::new(opened.kek).ok_or(KeyError::Missing(Kind::Kek))?,
            row: Versions::new(row).ok_or(KeyError::Missing(Kind::Row))?,
            data: Versions::new(opened.data).ok_or(KeyError::Missing(Kind::Data))?,
            attest: Versions::new(opened.attest).ok_or(KeyError::Missing(Kind::Attest))?,
            audit: Versions::new(opened.audit).ok_or(KeyError::Missing(Kind::Audit))?,
            import: Versions::new(opened.import).ok_or(KeyError::Missing(Kind::Import))?,
            tls: opened.tls,
            retired: opened.retired,
            peers,
            checks: opened.checks,
            pulse,
            missed: RefCell::default(),
        })
    }

    /// Looks for versions that came to the token since, and uses the newest from here on; how many there were.
    ///
    /// # Errors
    /// The first new key that is not what it must be; those before it are used.
    pub fn load_more(&mut self, session: &Session) -> Result<usize, KeyError> {
        let Survey { keys, peers, .. } = survey(session)?;
        let mut opened = Opened::default();
        let new = keys.into_iter().filter(|(name, _)| !self.has(*name));
        let (mut count, mut result) = (0, Ok(()));
        for (name, key) in new {
            result = opened.open(session, name, key);
            if result.is_err() {
                break;
            }
            count += 1;
        }
        self.checks.extend(opened.checks);
        if result.is_ok() {
            result = new_peers(session, &self.peers, &peers).map_err(KeyError::from).map(|peers| {
                count += peers.len();
                self.peers.extend(peers);
            });
        }
        if count == 0 && result.is_ok() {
            result = session.check_witness().map_err(KeyError::from);
        }
        self.kek.extend(opened.kek);
        self.row.extend(opened.row.into_iter().map(|(version, (_, keys))| (version, keys)).collect());
        self.data.extend(opened.data);
        self.attest.extend(opened.attest);
        self.audit.extend(opened.audit);
        self.import.extend(opened.import);
        self.tls.extend(opened.tls);
        result.map(|()| count)
    }

    /// Whether there is that key.
    pub fn has(&self, KeyName { kind, version }: KeyName) -> bool {
        match kind {
            Kind::Kek => self.kek.get(version).is_some(),
            Kind::Row => self.row.get(version).is_some(),
            Kind::Data => self.data.get(version).is_some(),
            Kind::Attest => self.attest.get(version).is_some(),
            Kind::Audit => self.audit.get(version).is_some(),
            Kind::Import => self.import.get(version).is_some(),
            Kind::Tls => self.tls.contains_key(&version),
        }
    }

    /// The newest version of each kind of which there is one.
    pub fn newest(&self) -> NewestKeys {
        let needed = [
            (Kind::Kek, self.kek.newest.0),
            (Kind::Row, self.row.newest.0),
            (Kind::Data, self.data.newest.0),
            (Kind::Attest, self.attest.newest.0),
            (Kind::Audit, self.audit.newest.0),
            (Kind::Import, self.import.newest.0),
        ];
        let tls = self.tls.last_key_value().map(|(version, _)| (Kind::Tls, *version));
        NewestKeys::new(needed.into_iter().chain(tls))
    }

    /// Every version of each kind: what was stored under an old one needs it as much as what is new needs the newest.
    fn names(&self) -> impl Iterator<Item = KeyName> {
        let of = |kind, numbers: Vec<u16>| numbers.into_iter().map(move |version| KeyName { kind, version });
        of(Kind::Kek, self.kek.numbers().collect())
            .chain(of(Kind::Row, self.row.numbers().collect()))
            .chain(of(Kind::Data, self.data.numbers().collect()))
            .chain(of(Kind::Attest, self.attest.numbers().collect()))
            .chain(of(Kind::Audit, self.audit.numbers().collect()))
            .chain(of(Kind::Import, self.import.numbers().collect()))
            .chain(of(Kind::Tls, self.tls.keys().copied().collect()))
    }

    /// One that was there before and is not here, whether as a key, as what is left of a retired one, or as another
    /// token's; `None`: all are here.
    pub fn lacks(&self, before: &Self) -> Option<String> {
        let key = before.names().find(|name| !self.has(*name));
        let retired = || before.retired.keys().find(|name| !self.retired.contains_key(name)).copied();
        if let Some(name) = key.or_else(retired) {
            return Some(name.to_string());
        }
        let has_peer = |(kind, key): &(Kind, PublishedKey)| {
            self.peers.iter().any(|(of, peer)| (of, peer.kid()) == (kind, key.kid()))
        };
        before.peers.iter().find(|peer| !has_peer(peer)).map(|(kind, key)| peer_label(*kind, key.public()))
    }

    /// A check value of each version of `kek`, `row` and `data`.
    pub fn checks(&self) -> &[(Kind, u16, KeyCheck)] {
        &self.checks
    }

    /// What was asked for since the last time for which there is no key here.
    pub fn take_missed(&self) -> Missed {
        self.missed.take()
    }

    /// The same for a version. Versions are made in their order: one below the newest that is not here is gone.
    fn noted_version<'a, T>(&self, kind: Kind, version: u16, versions: &'a Versions<T>) -> Option<&'a T> {
        let found = versions.get(version);
        if found.is_none() && version > versions.newest.0 {
            self.missed.borrow_mut().versions.insert(KeyName { kind, version });
        }
        found
    }

    /// Remembers that something was not found for which there may be a key by now.
    pub fn noted<T>(&self, found: Option<T>) -> Option<T> {
        if found.is_none() {
            self.missed.borrow_mut().others = true;
        }
        found
    }

    /// The `kek` for new blobs, with its version.
    pub fn newest_kek(&self) -> (u16, Object) {
        let (version, kek) = &self.kek.newest;
        (*version, kek.object)
    }

    /// The `kek` of that version.
    pub fn kek(&self, version: u16) -> Option<&Kek> {
        self.noted_version(Kind::Kek, version, &self.kek)
    }

    /// The `data` for what is encrypted now, with its version.
    pub fn newest_data(&self) -> (u16, Object) {
        let (version, data) = &self.data.newest;
        (*version, data.object)
    }

    /// The `data` of that version.
    pub fn data(&self, version: u16) -> Option<&Data> {
        self.noted_version(Kind::Data, version, &self.data)
    }

    /// The `attest` for what is signed now.
    pub fn newest_attest(&self) -> &SigningKey {
        &self.attest.newest.1
    }

    /// What attestations verify with: every version of `attest`, the newest first, those that were retired, and those of
    /// other tokens.
    pub fn attest(&self) -> impl Iterator<Item = &PublishedKey> {
        self.published(&self.attest, Kind::Attest)
    }

    /// The `audit` for what is signed now.
    pub fn newest_audit(&self) -> &SigningKey {
        &self.audit.newest.1
    }

    /// What checkpoints verify with: every version of `audit`, the newest first, those that were retired, and those of
    /// other tokens.
    pub fn audit(&self) -> impl Iterator<Item = &PublishedKey> {
        self.published(&self.audit, Kind::Audit)
    }

    fn published<'a>(
        &'a self,
        versions: &'a Versions<SigningKey>,
        kind: Kind,
    ) -> impl Iterator<Item = &'a PublishedKey> {
        let retired = self.retired.iter().rev().filter(move |(name, _)| name.kind == kind);
        let peers = self.peers.iter().filter(move |(of, _)| *of == kind);
        let own = versions.newest_first().map(SigningKey::published).chain(retired.map(|(_, key)| key));
        own.chain(peers.map(|(_, key)| key))
    }

    /// The `import` that seeds are wrapped for now.
    pub fn newest_import(&self) -> &ImportKey {
        &self.import.newest.1
    }

    /// Every version of `import`, the newest first: what was wrapped for an older one still arrives.
    pub fn import(&self) -> impl Iterator<Item = &ImportKey> {
        self.import.newest_first()
    }

    /// Every version of `tls`, the newest first. Which one is used a certificate says.
    pub fn tls(&self) -> impl Iterator<Item = &SigningKey> {
        self.tls.values().rev()
    }

    /// A seal for a row that is to be stored, under the newest version of `row`.
    pub fn seal(&self, row: &RowBytes) -> Seal {
        let (key_version, keys) = &self.row.newest;
        Seal { key_version: *key_version, mac: keys.seal(row) }
    }

    /// Whether a stored row's seal is right; constant-time in the seal.
    pub fn verify(&self, row: &SealedBytes) -> bool {
        self.noted_version(Kind::Row, row.seal.key_version, &self.row)
            .is_some_and(|keys| keys.seal(&row.bytes).ct_eq(&row.seal.mac).into())
    }

    /// What a row adds to the sum, by the version of its seal; `None`: there is no such version.
    pub fn summand(&self, row: &RowBytes, key_version: u16) -> Option<RowSum> {
        Some(self.noted_version(Kind::Row, key_version, &self.row)?.summand(row))
    }

    /// The fingerprint of a request under each version of `row`, the newest first: what is remembered now is
    /// remembered under that, and what was remembered before is found by one of the others. Once its version is
    /// retired, a retry is refused for up to 24 hours as a mismatch, never executed a second time.
    pub fn fingerprints(&self, request: &[u8]) -> Vec<Fingerprint> {
        self.row.newest_first().map(|keys| keys.fingerprint(request)).collect()
    }

    /// The key of one run's ledger, from this version of `row` or the newest, with its version; `None`: there is no such
    /// version.
    pub fn ledger(&self, run: RunId, key_version: Option<u16>) -> Option<(u16, SecretBytes)> {
        let version = key_version.unwrap_or(self.row.newest.0);
        let keys = self.noted_version(Kind::Row, version, &self.row)?;
        Some((version, keys.ledger(run)))
    }

    /// What a presentation's code is made of under each version of `row`, the newest first.
    pub fn presentations(&self, message: &[u8]) -> impl Iterator<Item = Zeroizing<[u8; 32]>> {
        self.row.newest_first().map(|keys| keys.presentation(message))
    }

    /// What the HSM must always answer alike.
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Expects another answer than the HSM gives, as if it were the HSM that had changed.
    #[cfg(test)]
    pub fn expect_another_pulse(&mut self) {
        self.pulse.expect_another();
    }
}
