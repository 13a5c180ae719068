//! PIN hashes of OCRA tokens: encrypted by the HSM, opened for one check at a time.
//!
//! A PIN has few digits, so its hash is as good as the PIN: it is never stored, and never in the front.

use zeroize::Zeroizing;

use super::hashes;
use super::keys::{Keys, Kind};
use super::pkcs11::{GCM_NONCE_BYTES, Session};
use super::secrets::{no_key, opened};
use super::wrapping::is_same;
use crate::domain::credential::EncryptedPinHash;
use crate::domain::id::CredentialId;
use crate::domain::otp::Algorithm;
use crate::hsm::messages::Fault;
use crate::secret::SecretBytes;

/// What a ciphertext is bound to: its purpose and its credential.
fn associated_data(id: CredentialId) -> Vec<u8> {
    [b"hsm-authd/data/pin-hash/v1".as_slice(), &id.to_bytes()].concat()
}

/// The hash of a PIN under the newest `data` key.
///
/// # Errors
/// [`Fault::Hsm`].
pub fn encrypt(
    session: &Session,
    keys: &Keys,
    id: CredentialId,
    hash: Algorithm,
    pin: &SecretBytes,
) -> Result<EncryptedPinHash, Fault> {
    // Exposed to be hashed.
    let pin_hash = hashes::digest(hash, pin.expose());
    encrypt_hash(session, keys, id, &pin_hash)
}

/// The same of a hash that was decrypted.
///
/// # Errors
/// [`Fault::Hsm`].
pub fn encrypt_hash(
    session: &Session,
    keys: &Keys,
    id: CredentialId,
    pin_hash: &[u8],
) -> Result<EncryptedPinHash, Fault> {
    let (data_version, key) = keys.newest_data();
    let mut nonce = [0; GCM_NONCE_BYTES];
    session.random(&mut nonce)?;
    let sealed = session.encrypt(key, nonce, &associated_data(id), pin_hash)?;
    Ok(EncryptedPinHash { data_version, blob: [nonce.as_slice(), &sealed].concat() })
}

/// The hash in a credential's row.
///
/// # Errors
/// [`Fault::Request`] if the blob cannot be one, or is not what its `data` key encrypted for this credential;
/// [`Fault::Hsm`].
pub fn decrypt(
    session: &Session,
    keys: &Keys,
    id: CredentialId,
    encrypted: &EncryptedPinHash,
) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let (nonce, sealed) = encrypted
        .blob
        .split_first_chunk::<GCM_NONCE_BYTES>()
        .ok_or_else(|| Fault::Request("an encrypted PIN hash of an impossible length".into()))?;
    let version = encrypted.data_version;
    let key = keys.data(version).ok_or_else(|| no_key(Kind::Data, version))?;
    let open = || session.decrypt(key.object, *nonce, &associated_data(id), sealed);
    let first = opened("an encrypted PIN hash", open, || key.try_known(session))?;
    // A wrong hash would make right codes wrong. As with HMACs: something known stands between the two.
    key.try_known(session)?;
    let second = open()?;
    is_same(&first, &second, "C_Decrypt: two texts of the same that differ")?;
    Ok(first)
}
