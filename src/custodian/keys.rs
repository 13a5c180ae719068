//! The system keys of a custodian, and the keys that are derived from `row`.

mod survey;

use std::collections::BTreeMap;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::attest::AttestKey;
use super::pkcs11::{Object, Pkcs11Error, Session, Shape};
use crate::domain::idempotency::Fingerprint;
use crate::domain::otp::Algorithm;
use crate::domain::row::{RowBytes, RowSum, Seal, SealedBytes};
use survey::{Found, KEK};

pub use survey::{Form, KeyError, KeyName, Kind, survey, unfinished};

/// The versions of one thing: at least one.
struct Versions<T> {
    newest: (u16, T),
    older: BTreeMap<u16, T>,
}

impl<T> Versions<T> {
    fn new(mut all: BTreeMap<u16, T>) -> Option<Self> {
        Some(Self { newest: all.pop_last()?, older: all })
    }

    fn get(&self, version: u16) -> Option<&T> {
        if version == self.newest.0 { Some(&self.newest.1) } else { self.older.get(&version) }
    }

    fn newest_first(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.newest.1).chain(self.older.values().rev())
    }

    fn oldest(&self) -> &T {
        self.older.values().next().unwrap_or(&self.newest.1)
    }
}

/// A key of HMAC-SHA-256 in this process: no `Debug`, zeroized on drop. Padded to the hash's block,
/// which changes no HMAC and makes using it infallible.
pub(super) struct MacKey(Zeroizing<[u8; 64]>);

impl MacKey {
    /// Of at most 64 bytes.
    pub fn new(bytes: &[u8]) -> Self {
        let mut key = Zeroizing::new([0; 64]);
        for (place, byte) in key.iter_mut().zip(bytes) {
            *place = *byte;
        }
        Self(key)
    }

    fn derive(session: &Session, row: Object, purpose: &str) -> Result<Self, Pkcs11Error> {
        Ok(Self::new(&session.hmac(Algorithm::Sha256, row, purpose.as_bytes())?))
    }

    /// HMAC-SHA-256 of `message`.
    pub fn mac(&self, message: &[u8]) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new((&*self.0).into());
        mac.update(message);
        mac.finalize().into_bytes().into()
    }
}

/// What comes from one version of `row`.
struct RowKeys {
    seal: MacKey,
    sum: MacKey,
    fingerprint: MacKey,
    presentation: MacKey,
}

impl RowKeys {
    fn derive(session: &Session, row: Object) -> Result<Self, Pkcs11Error> {
        Ok(Self {
            seal: MacKey::derive(session, row, "hsm-authd/row/seal/v1")?,
            sum: MacKey::derive(session, row, "hsm-authd/row/sum/v1")?,
            fingerprint: MacKey::derive(session, row, "hsm-authd/request/fingerprint/v1")?,
            presentation: MacKey::derive(session, row, "hsm-authd/presentation/code/v1")?,
        })
    }
}

/// The system keys of a custodian.
pub struct Keys {
    kek: Versions<Object>,
    row: Versions<RowKeys>,
    data: Versions<Object>,
    attest: Versions<AttestKey>,
    pulse: Pulse,
}

/// Something the HSM must always answer alike.
struct Pulse {
    key: Object,
    answer: Zeroizing<Vec<u8>>,
}

impl Pulse {
    const MESSAGE: &[u8] = b"hsm-authd/row/health/v1";

    fn take(session: &Session, key: Object) -> Result<Zeroizing<Vec<u8>>, Pkcs11Error> {
        session.hmac(Algorithm::Sha256, key, Self::MESSAGE)
    }
}

impl Keys {
    /// Finds and checks every system key, and derives what is derived.
    ///
    /// # Errors
    /// A key is missing, there twice, or not what it must be.
    pub fn load(session: &Session) -> Result<Self, KeyError> {
        let mut found: BTreeMap<Kind, BTreeMap<u16, Object>> = BTreeMap::new();
        let mut attest = BTreeMap::new();
        for (name, key) in survey(session)? {
            match key {
                Found::Secret(object) => {
                    found.entry(name.kind).or_default().insert(name.version, object);
                }
                Found::Pair { private, public } => {
                    attest.insert(name.version, AttestKey::open(session, name, private, public)?);
                }
            }
        }
        let mut take = |kind| found.remove(&kind).ok_or(KeyError::Missing(kind));
        let (tokens_kek, tokens_row) = (take(Kind::Kek)?, take(Kind::Row)?);
        let tokens_data = take(Kind::Data)?;

        let mut kek = BTreeMap::new();
        for (version, object) in tokens_kek {
            // A session object spares the module the token's files and locks at each unwrapping.
            let copy = session.copy_to_session(object)?;
            let name = KeyName { kind: Kind::Kek, version };
            session
                .check(copy, &Shape { token: false, ..KEK })
                .map_err(|error| KeyError::Wrong(name, error))?;
            kek.insert(version, copy);
        }
        let pulse_key = tokens_row.values().next_back().copied().ok_or(KeyError::Missing(Kind::Row))?;
        let mut row = BTreeMap::new();
        for (version, object) in tokens_row {
            row.insert(version, RowKeys::derive(session, object)?);
        }
        Ok(Self {
            kek: Versions::new(kek).ok_or(KeyError::Missing(Kind::Kek))?,
            row: Versions::new(row).ok_or(KeyError::Missing(Kind::Row))?,
            data: Versions::new(tokens_data).ok_or(KeyError::Missing(Kind::Data))?,
            attest: Versions::new(attest).ok_or(KeyError::Missing(Kind::Attest))?,
            pulse: Pulse { key: pulse_key, answer: Pulse::take(session, pulse_key)? },
        })
    }

    /// The `kek` for new blobs, with its version.
    pub fn newest_kek(&self) -> (u16, Object) {
        self.kek.newest
    }

    /// The `kek` of that version.
    pub fn kek(&self, version: u16) -> Option<Object> {
        self.kek.get(version).copied()
    }

    /// The `data` for what is encrypted now, with its version.
    pub fn newest_data(&self) -> (u16, Object) {
        self.data.newest
    }

    /// The `data` of that version.
    pub fn data(&self, version: u16) -> Option<Object> {
        self.data.get(version).copied()
    }

    /// The `attest` for what is signed now.
    pub fn newest_attest(&self) -> &AttestKey {
        &self.attest.newest.1
    }

    /// Every version of `attest`, the newest first.
    pub fn attest(&self) -> impl Iterator<Item = &AttestKey> {
        self.attest.newest_first()
    }

    /// A seal for a row that is to be stored, under the newest version of `row`.
    pub fn seal(&self, row: &RowBytes) -> Seal {
        let (key_version, keys) = &self.row.newest;
        Seal { key_version: *key_version, mac: keys.seal.mac(row.as_bytes()) }
    }

    /// Whether a stored row's seal is right; constant-time in the seal.
    pub fn verify(&self, row: &SealedBytes) -> bool {
        self.row
            .get(row.seal.key_version)
            .is_some_and(|keys| keys.seal.mac(row.bytes.as_bytes()).ct_eq(&row.seal.mac).into())
    }

    /// What a row adds to the sum, by the version of its seal; `None`: there is no such version.
    pub fn summand(&self, row: &RowBytes, key_version: u16) -> Option<RowSum> {
        Some(RowSum(self.row.get(key_version)?.sum.mac(row.as_bytes())))
    }

    /// The fingerprint of a request.
    ///
    /// Under the OLDEST version of `row`, so that a rotation, which adds a version, changes none:
    /// a client's retry still finds its answer. Removing that version later does change them, and
    /// for up to 24 hours a retry is then refused as a mismatch, never executed a second time.
    pub fn fingerprint(&self, request: &[u8]) -> Fingerprint {
        Fingerprint(self.row.oldest().fingerprint.mac(request))
    }

    /// What a presentation's code is made of.
    ///
    /// Under the oldest version of `row`, for the same reason: the code is derived again to be shown again.
    pub fn presentation(&self, message: &[u8]) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.row.oldest().presentation.mac(message))
    }

    /// Has the HSM compute what it computed at the start; `false`: its answer is another now. With
    /// the token's own key: a copy would go on answering after the token is gone.
    ///
    /// # Errors
    /// The HSM failed.
    pub fn check_pulse(&self, session: &Session) -> Result<bool, Pkcs11Error> {
        let answer = Pulse::take(session, self.pulse.key)?;
        Ok(answer.ct_eq(&self.pulse.answer).into())
    }

    /// Expects another answer than the HSM gives, as if it were the HSM that had changed.
    #[cfg(test)]
    pub fn expect_another_pulse(&mut self) {
        self.pulse.answer = Zeroizing::new(vec![0; 32]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_version_is_the_newest_and_all_are_found() {
        let versions = Versions::new(BTreeMap::from([(2, 'b'), (10, 'c'), (1, 'a')])).unwrap();
        assert_eq!(versions.newest, (10, 'c'));
        assert_eq!(*versions.oldest(), 'a');
        assert_eq!([1, 2, 10].map(|version| *versions.get(version).unwrap()), ['a', 'b', 'c']);
        assert!(versions.get(3).is_none());
        assert_eq!(versions.newest_first().collect::<String>(), "cba");
        assert!(Versions::<char>::new(BTreeMap::new()).is_none());
        assert_eq!(*Versions::new(BTreeMap::from([(4, 'd')])).unwrap().oldest(), 'd');
    }

    #[test]
    fn macs_are_hmac_sha_256() {
        // RFC 4231, test case 2: the key "Jefe", shorter than a block.
        let mut key = Zeroizing::new([0; 64]);
        key[..4].copy_from_slice(b"Jefe");
        assert_eq!(
            data_encoding::HEXLOWER.encode(&MacKey(key).mac(b"what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }
}
