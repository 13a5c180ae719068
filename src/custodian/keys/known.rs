//! What a `kek` and a `data` key must always open: so that what does not open is told from an HSM that opens nothing.

use super::super::hashes;
use super::super::pkcs11::{GCM_NONCE_BYTES, Object, Pkcs11Error, Session};
use super::super::secrets::{ARRIVED, departing};
use crate::domain::otp::Algorithm;

/// No secret: it is compared with what comes out.
const KNOWN_SECRET: &[u8; 32] = b"hsm-authd/kek/trial/v1 is public";
const KNOWN_TEXT: &[u8] = b"hsm-authd/data/trial/v1";

/// A `kek`, and a blob of a key that is no secret.
pub struct Kek {
    /// Its copy in the session.
    pub object: Object,
    known: Vec<u8>,
}

impl Kek {
    /// Wraps the known key.
    ///
    /// # Errors
    /// The HSM failed, or does not open what it wrapped.
    pub fn new(session: &Session, object: Object) -> Result<Self, Pkcs11Error> {
        let key = session.create(&departing(KNOWN_SECRET.len()), KNOWN_SECRET)?;
        let known = session.destroy_after(key, session.wrap(object, key, KNOWN_SECRET.len()))?;
        let kek = Self { object, known };
        kek.try_known(session)?;
        Ok(kek)
    }

    /// Whether it opens what it has wrapped.
    ///
    /// # Errors
    /// It does not, or the HSM failed otherwise.
    pub fn try_known(&self, session: &Session) -> Result<(), Pkcs11Error> {
        let key = session.unwrap_hmac_key(self.object, &self.known, &ARRIVED, Algorithm::Sha256)?;
        let mac = session.hmac(Algorithm::Sha256, key, KNOWN_TEXT);
        let mac = session.destroy_after(key, mac)?;
        match *mac == *hashes::hmac(Algorithm::Sha256, KNOWN_SECRET, KNOWN_TEXT) {
            true => Ok(()),
            false => Err(Pkcs11Error::lie("C_UnwrapKey: another key than the known one that was wrapped")),
        }
    }
}

/// A `data` key, and a ciphertext of something that is no secret.
pub struct Data {
    /// It is in the token.
    pub object: Object,
    nonce: [u8; GCM_NONCE_BYTES],
    known: Vec<u8>,
}

impl Data {
    /// Encrypts the known text.
    ///
    /// # Errors
    /// The HSM failed, or does not decrypt what it encrypted.
    pub fn new(session: &Session, object: Object) -> Result<Self, Pkcs11Error> {
        let mut nonce = [0; GCM_NONCE_BYTES];
        session.random(&mut nonce)?;
        let known = session.encrypt(object, nonce, KNOWN_TEXT, KNOWN_TEXT)?;
        Ok(Self { object, nonce, known })
    }

    /// Whether it decrypts what it has encrypted.
    ///
    /// # Errors
    /// It does not, or the HSM failed otherwise.
    pub fn try_known(&self, session: &Session) -> Result<(), Pkcs11Error> {
        match *session.decrypt(self.object, self.nonce, KNOWN_TEXT, &self.known)? == *KNOWN_TEXT {
            true => Ok(()),
            false => Err(Pkcs11Error::lie("C_Decrypt: another text than the known one that was encrypted")),
        }
    }
}
