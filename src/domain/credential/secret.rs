//! Where a credential's secret is kept.

use std::fmt;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

/// How many bytes name an object.
const OBJECT_ID_BYTES: usize = 16;
/// What stands for the `kek`'s version of a secret that no `kek` wraps: versions are from 1.
const NO_KEK: u16 = 0;

/// Names a secret that is a token object, by its `CKA_ID`. Displays as operators' tools show that, in hex.
///
/// Made twice at most: whoever repeats the making does so under [`ObjectId::second`], so that one that was given up and
/// comes about late is never taken for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectId([u8; OBJECT_ID_BYTES]);

impl ObjectId {
    /// Of random bytes; the last bit says that it is the first of a pair.
    pub const fn from_random(bytes: [u8; OBJECT_ID_BYTES]) -> Self {
        Self((u128::from_be_bytes(bytes) & !1).to_be_bytes())
    }

    /// What a repetition is made under.
    pub fn second(self) -> Self {
        Self((u128::from_be_bytes(self.0) | 1).to_be_bytes())
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<&[u8]> for ObjectId {
    type Error = BadSecret;

    fn try_from(bytes: &[u8]) -> Result<Self, BadSecret> {
        bytes.try_into().map(Self).map_err(|_| BadSecret)
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

/// Where new secrets are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keeping {
    /// In the database, wrapped under the HSM's `kek`.
    #[default]
    Wrapped,
    /// In the HSM, each an object.
    Resident,
}

/// A credential's secret, worth nothing without the HSM. It does not say whose it is: the row's seal does.
///
/// Spelt as two values, the `kek`'s version and bytes; version 0 and 16 bytes are an object's id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Spelt", into = "Spelt")]
pub enum StoredSecret {
    /// An AES key-wrap blob (RFC 3394) of the zero-padded seed, under one version of the HSM's `kek`.
    Wrapped {
        /// Version of the `kek` that wraps it, from 1.
        kek_version: u16,
        /// The blob: padded length + 8 bytes.
        blob: Vec<u8>,
    },
    /// A token object in the HSM.
    Resident(ObjectId),
}

/// What is no spelling of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no version of a kek, and no object's id")]
pub struct BadSecret;

impl StoredSecret {
    /// Of its two values.
    ///
    /// # Errors
    /// [`BadSecret`]: version 0 with anything but 16 bytes.
    pub fn from_parts(kek_version: u16, blob: Vec<u8>) -> Result<Self, BadSecret> {
        match kek_version {
            NO_KEK => blob.as_slice().try_into().map(Self::Resident),
            _ => Ok(Self::Wrapped { kek_version, blob }),
        }
    }

    /// Its two values.
    pub fn parts(&self) -> (u16, &[u8]) {
        match self {
            Self::Wrapped { kek_version, blob } => (*kek_version, blob),
            Self::Resident(id) => (NO_KEK, id.as_bytes()),
        }
    }

    /// The object that it is; `None`: it is wrapped.
    pub fn object(&self) -> Option<ObjectId> {
        match self {
            Self::Wrapped { .. } => None,
            Self::Resident(id) => Some(*id),
        }
    }
}

/// How a secret is spelt, in sealed rows too: its fields never change.
#[derive(Serialize, Deserialize)]
struct Spelt {
    kek_version: u16,
    blob: Vec<u8>,
}

impl From<StoredSecret> for Spelt {
    fn from(secret: StoredSecret) -> Self {
        match secret {
            StoredSecret::Wrapped { kek_version, blob } => Self { kek_version, blob },
            StoredSecret::Resident(id) => Self { kek_version: NO_KEK, blob: id.0.to_vec() },
        }
    }
}

impl TryFrom<Spelt> for StoredSecret {
    type Error = BadSecret;

    fn try_from(spelt: Spelt) -> Result<Self, BadSecret> {
        Self::from_parts(spelt.kek_version, spelt.blob)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(kek_version: u16, blob: &[u8]) -> Option<StoredSecret> {
        postcard::from_bytes(&postcard::to_stdvec(&(kek_version, blob)).unwrap()).ok()
    }

    #[test]
    fn version_0_and_16_bytes_are_an_object_and_with_any_other_length_nothing() {
        let id = ObjectId([0xa5; 16]);
        assert_eq!(read(0, &[0xa5; 16]), Some(StoredSecret::Resident(id)));
        for length in (0..80).filter(|length| *length != 16) {
            assert_eq!(read(0, &vec![0xa5; length]), None, "{length} bytes");
            assert!(read(1, &vec![0xa5; length]).is_some(), "{length} bytes");
        }
        assert_eq!(read(1, &[0xa5; 16]).unwrap().object(), None);
    }

    #[test]
    fn an_id_and_its_second_are_a_pair_of_their_own() {
        for byte in [0x00, 0x01, 0xfe, 0xff] {
            let id = ObjectId::from_random([byte; 16]);
            assert!(id != id.second() && id.second().second() == id.second());
            assert_eq!(ObjectId::from_random(id.second().0), id);
        }
        assert_eq!(ObjectId([0x0f; 16]).to_string(), "0f".repeat(16));
    }

    proptest! {
        #[test]
        fn a_secret_is_spelt_as_its_two_values(kek_version: u16, blob in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(secret) = StoredSecret::from_parts(kek_version, blob.clone()) {
                prop_assert_eq!(secret.parts(), (kek_version, blob.as_slice()));
                let spelt = postcard::to_stdvec(&secret).unwrap();
                prop_assert_eq!(&spelt, &postcard::to_stdvec(&(kek_version, blob)).unwrap());
                prop_assert_eq!(postcard::from_bytes::<StoredSecret>(&spelt).unwrap(), secret);
            }
        }
    }
}
