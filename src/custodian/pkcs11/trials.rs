//! HMACs that are believed: each is computed twice, and between the two one that is known.
//!
//! A bit that is wrong once differs from the other time. One that is wrong each time is wrong of the known one too; and
//! so is an answer that is stuck, because no trial is the same as another.

use std::cell::Cell;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::session::{Object, Session};
use super::shape::{Material, Shape, Use};
use super::{Cause, Pkcs11Error};
use crate::custodian::hashes;
use crate::domain::otp::Algorithm;

/// No secret: everybody may compute what the HSM has to.
const KNOWN_KEY: &[u8; 64] = b"hsm-authd/trial/v1: no secret, so that what comes of it is known";

/// A session object that computes HMACs and never leaves.
const SHAPE: Shape = Shape {
    material: Material::Generic,
    length_bytes: None,
    token: false,
    extractable: false,
    purpose: Some(Use::Sign),
};

/// The known key, once it was needed.
#[derive(Default)]
pub(super) struct KnownKey(Cell<Option<Object>>);

impl Session {
    /// The HMAC of `message`: [`Algorithm::output_bytes`] of it, zeroized on drop.
    ///
    /// # Errors
    /// `C_SignInit` or `C_Sign` failed, or the result has another length, or another one comes the second time; or that of
    /// the known key is wrong.
    pub fn hmac(
        &self,
        algorithm: Algorithm,
        key: Object,
        message: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Pkcs11Error> {
        let first = self.hmac_once(algorithm, key, message)?;
        // Between the two: whatever goes wrong for a while, and alike with both, goes wrong with this.
        self.try_known(algorithm)?;
        let second = self.hmac_once(algorithm, key, message)?;
        match first.ct_eq(&second).into() {
            true => Ok(first),
            false => Err(Pkcs11Error::lie("C_Sign: two HMACs of the same that differ")),
        }
    }

    /// Has the module compute what is known here.
    fn try_known(&self, algorithm: Algorithm) -> Result<(), Pkcs11Error> {
        let key = match self.known_key.0.get() {
            Some(key) => key,
            None => self.create(&SHAPE, KNOWN_KEY)?,
        };
        self.known_key.0.set(Some(key));
        let mut message = [0; 32];
        getrandom::fill(&mut message).map_err(|error| Pkcs11Error(Cause::Kernel(error)))?;
        match *self.hmac_once(algorithm, key, &message)? == *hashes::hmac(algorithm, KNOWN_KEY, &message) {
            true => Ok(()),
            false => Err(Pkcs11Error::lie("C_Sign: another HMAC than that of a known key")),
        }
    }
}
