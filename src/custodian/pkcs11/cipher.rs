//! Encryption of small secrets (AES-256-GCM, NIST SP 800-38D), inside the module.

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::aead::{GcmMessageParams, GcmParams, GeneratorFunction};
use cryptoki::mechanism::{Mechanism, MessageParam};
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
        let sealed = match self.raw.encrypt(&mechanism, self.handle(key)?, plaintext) {
            // NSS says that it needs room for the plaintext alone, and then that this was too little.
            Err(too_small @ Error::Pkcs11(RvError::BufferTooSmall, _)) => {
                match self.encrypt_message(key, nonce, associated_data, plaintext) {
                    // A module of version 2.40: that was no answer, then.
                    Err(Pkcs11Error(Cause::Returned(Error::NullFunctionPointer))) => {
                        return Err(too_small.into());
                    }
                    other => other?,
                }
            }
            other => other?,
        };
        if sealed.len() != plaintext.len() + GCM_TAG_BYTES {
            return Err(Pkcs11Error(Cause::Length("C_Encrypt")));
        }
        let decrypted = self.decrypt(key, nonce, associated_data, &sealed)?;
        match decrypted.ct_eq(plaintext).into() {
            true => Ok(sealed),
            false => Err(Pkcs11Error::lie("C_Encrypt: what does not decrypt to the same")),
        }
    }

    /// The same by the functions of PKCS #11 3.0, which put the tag elsewhere.
    fn encrypt_message(
        &self,
        key: Object,
        nonce: [u8; GCM_NONCE_BYTES],
        associated_data: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, Pkcs11Error> {
        let (mut nonces, mut tags) = ([nonce; 2], [[0; GCM_TAG_BYTES]; 2]);
        let ([of_all, of_one], [none, tag]) = (&mut nonces, &mut tags);
        let given = GeneratorFunction::NoGenerate;
        let mechanism = Mechanism::AesGcmMessage(GcmMessageParams::new(of_all, 0.into(), given, none)?);
        self.raw.message_encrypt_init(&mechanism, self.handle(key)?)?;
        let message = MessageParam::AesGcmMessage(GcmMessageParams::new(of_one, 0.into(), given, tag)?);
        let encrypted = self.raw.encrypt_message(&message, associated_data, plaintext);
        self.raw.message_encrypt_final()?;
        Ok([encrypted?.as_slice(), tag].concat())
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
