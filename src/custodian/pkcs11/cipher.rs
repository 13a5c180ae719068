//! Encryption of small secrets (AES-256-GCM, NIST SP 800-38D), inside the module.

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::session::{Object, Session};
use super::{Cause, Pkcs11Error};

/// Length of a GCM nonce, in bytes: the one that every module takes.
pub const GCM_NONCE_BYTES: usize = 12;
/// Length of a GCM tag, in bytes.
const GCM_TAG_BYTES: usize = 16;

impl Session {
    /// Ciphertext and tag of `plaintext`, bound to `associated_data`; they were decrypted again. A nonce must never come
    /// twice under one key.
    ///
    /// # Errors
    /// `C_Encrypt` failed, or the result is not what decrypts to the same.
    pub fn encrypt(
        &self,
        key: Object,
        nonce: [u8; GCM_NONCE_BYTES],
        associated_data: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, Pkcs11Error> {
        let mut parameter = nonce;
        let mechanism = gcm(&mut parameter, associated_data)?;
        let sealed = self.raw.encrypt(&mechanism, self.handle(key)?, plaintext)?;
        if sealed.len() != plaintext.len() + GCM_TAG_BYTES {
            return Err(Pkcs11Error(Cause::Length("C_Encrypt")));
        }
        match self.decrypt(key, nonce, associated_data, &sealed) {
            Ok(decrypted) if decrypted.ct_eq(plaintext).into() => Ok(sealed),
            Ok(_) => Err(Pkcs11Error::lie("C_Encrypt: what does not decrypt to the same")),
            // Of what was encrypted just now no code says that it is somebody else's fault.
            Err(error) => Err(Pkcs11Error::lie(format!("C_Encrypt: what does not decrypt ({error})"))),
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
        Ok(Zeroizing::new(self.raw.decrypt(&mechanism, self.handle(key)?, sealed)?))
    }
}

fn gcm<'a>(
    nonce: &'a mut [u8; GCM_NONCE_BYTES],
    associated_data: &'a [u8],
) -> Result<Mechanism<'a>, Pkcs11Error> {
    let tag_bits = GCM_TAG_BYTES * 8;
    Ok(Mechanism::AesGcm(GcmParams::new(nonce, associated_data, tag_bits.try_into()?)?))
}
