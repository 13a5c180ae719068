//! Hashing, and encryption of small secrets (AES-256-GCM, NIST SP 800-38D), inside the module.

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use zeroize::Zeroizing;

use super::session::{Object, Session};
use super::{Cause, Pkcs11Error};
use crate::domain::otp::Algorithm;

/// Length of a GCM nonce, in bytes: the one that every module takes.
pub const GCM_NONCE_BYTES: usize = 12;
/// Length of a GCM tag, in bytes.
const GCM_TAG_BYTES: usize = 16;

impl Session {
    /// The hash of `message`, zeroized on drop.
    ///
    /// # Errors
    /// `C_Digest` failed, or the result has another length.
    pub fn digest(&self, algorithm: Algorithm, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, Pkcs11Error> {
        let mechanism = match algorithm {
            Algorithm::Sha1 => Mechanism::Sha1,
            Algorithm::Sha256 => Mechanism::Sha256,
            Algorithm::Sha512 => Mechanism::Sha512,
        };
        let hash = Zeroizing::new(self.0.digest(&mechanism, message)?);
        match hash.len() == algorithm.output_bytes() {
            true => Ok(hash),
            false => Err(Pkcs11Error(Cause::Length("C_Digest"))),
        }
    }

    /// Ciphertext and tag of `plaintext`, bound to `associated_data`. A nonce must never come twice under
    /// one key.
    ///
    /// # Errors
    /// `C_Encrypt` failed, or the result has another length.
    pub fn encrypt(
        &self,
        key: Object,
        nonce: [u8; GCM_NONCE_BYTES],
        associated_data: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, Pkcs11Error> {
        let mut nonce = nonce;
        let mechanism = gcm(&mut nonce, associated_data)?;
        let sealed = self.0.encrypt(&mechanism, key.0, plaintext)?;
        match sealed.len() == plaintext.len() + GCM_TAG_BYTES {
            true => Ok(sealed),
            false => Err(Pkcs11Error(Cause::Length("C_Encrypt"))),
        }
    }

    /// What [`Session::encrypt`] encrypted, zeroized on drop.
    ///
    /// # Errors
    /// `C_Decrypt` failed: also if key, nonce, associated data or ciphertext are not those of the
    /// encryption.
    pub fn decrypt(
        &self,
        key: Object,
        nonce: [u8; GCM_NONCE_BYTES],
        associated_data: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Pkcs11Error> {
        let mut nonce = nonce;
        let mechanism = gcm(&mut nonce, associated_data)?;
        Ok(Zeroizing::new(self.0.decrypt(&mechanism, key.0, sealed)?))
    }
}

fn gcm<'a>(
    nonce: &'a mut [u8; GCM_NONCE_BYTES],
    associated_data: &'a [u8],
) -> Result<Mechanism<'a>, Pkcs11Error> {
    let tag_bits = GCM_TAG_BYTES * 8;
    Ok(Mechanism::AesGcm(GcmParams::new(nonce, associated_data, tag_bits.try_into()?)?))
}
