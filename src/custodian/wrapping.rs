//! Secrets on their way in: what is kept of one was opened again, and is the same, before anybody is told of it.

use std::collections::HashMap;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::hashes;
use super::operations::{Operations, of_request};
use super::pkcs11::{Object, Pkcs11Error};
use super::secrets::ARRIVED;
use crate::domain::credential::{ObjectId, StoredSecret};
use crate::domain::otp::Algorithm;
use crate::hsm::messages::{Failure, Fault, Remedy};

/// Two secrets are the same if they make the same HMAC of this.
pub(super) const COMPARED: &[u8] = b"hsm-authd/secret/compared/v1";

/// Where a secret comes from: what is known of it.
pub(super) enum Origin<'a> {
    /// The HSM has made it. It is another one each time, and never nothing.
    Generated,
    /// From outside: this is it.
    Given(&'a [u8]),
    /// It was opened in the HSM.
    Opened,
}

/// The HMACs of the secrets that were generated last, by the hash that they are for.
#[derive(Default)]
pub(super) struct LastGenerated(HashMap<Algorithm, Zeroizing<Vec<u8>>>);

impl LastGenerated {
    /// Whether it is another one than the last, and not zeros.
    fn differs(&mut self, algorithm: Algorithm, mac: &[u8]) -> bool {
        let last = self.0.insert(algorithm, Zeroizing::new(mac.to_vec()));
        !is_of_zeros(algorithm, mac) && last.is_none_or(|last| !bool::from(last.ct_eq(mac)))
    }
}

/// Whether the HMAC of [`COMPARED`] is that of a secret of zeros, however many they are.
pub(super) fn is_of_zeros(algorithm: Algorithm, mac: &[u8]) -> bool {
    hashes::hmac(algorithm, &[], COMPARED).ct_eq(mac).into()
}

impl Operations {
    /// Wraps an extractable session object of a padded length under the newest `kek`. It ends here, whatever comes of
    /// it: it may leave.
    ///
    /// # Errors
    /// [`Fault`]: also if what was wrapped does not open, or another key comes out.
    pub(super) fn wrap_and_destroy(
        &mut self,
        key: Object,
        length_bytes: usize,
        algorithm: Algorithm,
        origin: &Origin,
    ) -> Result<StoredSecret, Fault> {
        let wrapped = self.wrap_proven(key, length_bytes, algorithm, origin);
        self.destroy_departed(key, wrapped)
    }

    /// Destroys what may leave, after something was done with it.
    ///
    /// # Errors
    /// What was done failed, or it is still there.
    pub(super) fn destroy_departed<T>(&self, key: Object, done: Result<T, Fault>) -> Result<T, Fault> {
        // With its session it ends in any case.
        let with_session = |failure: Failure| Fault::Hsm(failure.at_least(Remedy::NewSession));
        match (done, self.session.destroy_surely(key)) {
            (done, Ok(())) => done,
            (Err(Fault::Hsm(first)), Err(_)) => Err(with_session(first)),
            (_, Err(error)) => Err(with_session(Failure::with(error.healing(), error.to_string()))),
        }
    }

    fn wrap_proven(
        &mut self,
        key: Object,
        length_bytes: usize,
        algorithm: Algorithm,
        origin: &Origin,
    ) -> Result<StoredSecret, Fault> {
        let failed = |error: Pkcs11Error| match origin {
            Origin::Given(_) => of_request(error),
            Origin::Generated | Origin::Opened => error.into(),
        };
        let mac = self.session.hmac(algorithm, key, COMPARED).map_err(failed)?;
        self.check_origin(algorithm, &mac, origin)?;
        let (kek_version, kek) = self.keys.newest_kek();
        let blob = self.session.wrap(kek, key, length_bytes).map_err(failed)?;
        // While the first is there: a module that hands it out for the second is found out.
        let opened = self.mac_of_blob(kek, &blob, algorithm)?;
        is_same(&mac, &opened, "C_WrapKey: another key than that which was wrapped")?;
        Ok(StoredSecret::Wrapped { kek_version, blob })
    }

    fn check_origin(&mut self, algorithm: Algorithm, mac: &[u8], origin: &Origin) -> Result<(), Fault> {
        match origin {
            Origin::Generated if self.last_generated.differs(algorithm, mac) => Ok(()),
            Origin::Generated => Err(Fault::hsm("C_GenerateKey: zeros, or the same key as before")),
            Origin::Given(value) => {
                let given = hashes::hmac(algorithm, value, COMPARED);
                is_same(&given, mac, "C_CreateObject: another key than that which was given")
            }
            Origin::Opened => Ok(()),
        }
    }

    /// What the key in a blob makes of [`COMPARED`].
    ///
    /// # Errors
    /// The blob does not open, or the HSM failed.
    pub(super) fn mac_of_blob(
        &self,
        kek: Object,
        blob: &[u8],
        algorithm: Algorithm,
    ) -> Result<Zeroizing<Vec<u8>>, Pkcs11Error> {
        let session = &self.session;
        let opened = session.unwrap_hmac_key(kek, blob, &ARRIVED, algorithm)?;
        let mac = session.check(opened, &ARRIVED).and_then(|()| session.hmac(algorithm, opened, COMPARED));
        session.destroy_after(opened, mac)
    }

    /// Has a secret that was made an object in the HSM prove that it is the one it was made of. One that is not goes.
    ///
    /// # Errors
    /// [`Fault`].
    pub(super) fn prove_resident(
        &mut self,
        id: ObjectId,
        algorithm: Algorithm,
        is_right: impl FnOnce(&mut Self, &[u8]) -> Result<(), Fault>,
    ) -> Result<StoredSecret, Fault> {
        let proven = self.resident_mac(id, algorithm).and_then(|mac| is_right(self, &mac));
        match proven {
            Ok(()) => Ok(StoredSecret::Resident(id)),
            Err(first) => {
                // If it stays, no row names it: it is swept at the next start.
                let _ = self.residents.destroy((&self.session, &self.keys), &[id], false);
                Err(first)
            }
        }
    }

    fn resident_mac(&mut self, id: ObjectId, algorithm: Algorithm) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let object = self.residents.open(&self.session, &self.keys, id, algorithm)?;
        Ok(self.session.hmac(algorithm, object, COMPARED)?)
    }

    /// The same of one of this origin.
    ///
    /// # Errors
    /// [`Fault`].
    pub(super) fn prove_resident_of(
        &mut self,
        id: ObjectId,
        algorithm: Algorithm,
        origin: &Origin,
    ) -> Result<StoredSecret, Fault> {
        self.prove_resident(id, algorithm, |this, mac| this.check_origin(algorithm, mac, origin))
    }
}

/// Whether two HMACs of one message are the same.
pub(super) fn is_same(one: &[u8], other: &[u8], lie: &str) -> Result<(), Fault> {
    match one.ct_eq(other).into() {
        true => Ok(()),
        false => Err(Fault::hsm(lie)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_secret_is_another_one_each_time_and_never_nothing() {
        let mut last = LastGenerated::default();
        let mac = |key: &[u8]| hashes::hmac(Algorithm::Sha1, key, COMPARED);
        for zeros in [&[][..], &[0], &[0; 24], &[0; 64]] {
            assert!(is_of_zeros(Algorithm::Sha1, &mac(zeros)));
            assert!(!last.differs(Algorithm::Sha1, &mac(zeros)));
        }
        assert!(last.differs(Algorithm::Sha1, &mac(&[1; 24])));
        assert!(!last.differs(Algorithm::Sha1, &mac(&[1; 24])));
        assert!(last.differs(Algorithm::Sha1, &mac(&[2; 24])));
        let of_another_hash = hashes::hmac(Algorithm::Sha256, &[2; 32], COMPARED);
        assert!(last.differs(Algorithm::Sha256, &of_another_hash));
        assert!(!last.differs(Algorithm::Sha1, &mac(&[2; 24])), "each hash has its last one");
    }
}
