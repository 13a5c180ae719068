//! Key check values: bytes that tell two keys apart, and say next to nothing of either. Three of them for people.

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::keys::{Found, Kind};
use super::pkcs11::{GCM_NONCE_BYTES, Object, PairForm, Pkcs11Error, Session};
use super::secrets::departing;
use crate::domain::otp::Algorithm;
use crate::domain::signer::PublicKey;
use crate::hsm::messages::KeyCheck;

/// What a `kek` wraps for it.
const KNOWN_KEY: &[u8; 32] = b"hsm-authd/kek/check-value/v1....";
const ROW_MESSAGE: &[u8] = b"hsm-authd/row/check-value/v1";
const DATA_MESSAGE: &[u8] = b"hsm-authd/data/check-value/v1";
/// Kept for this: other nonces are random.
const RESERVED_NONCE: [u8; GCM_NONCE_BYTES] = [0; GCM_NONCE_BYTES];

/// The check value of a key, in hex.
///
/// # Errors
/// The HSM failed.
pub fn check_value(session: &Session, kind: Kind, key: Found) -> Result<String, Pkcs11Error> {
    let bytes = match (kind, key) {
        (_, Found::Secret(key)) => of_secret(session, kind, key)?,
        (Kind::Import, Found::Pair { public, .. }) => return of_public(session, public, PairForm::Rsa3072),
        (_, Found::Pair { public, .. }) => return of_public(session, public, PairForm::P256),
    };
    Ok(first_bytes(&bytes))
}

/// 16 bytes of a `kek`, `row` or `data`, of which the first three are its check value.
///
/// # Errors
/// The HSM failed.
pub fn of_secret(session: &Session, kind: Kind, key: Object) -> Result<KeyCheck, Pkcs11Error> {
    let bytes = match kind {
        Kind::Kek => {
            let known = session.create(&departing(KNOWN_KEY.len()), KNOWN_KEY)?;
            let blob = session.destroy_after(known, session.wrap(key, known, KNOWN_KEY.len()))?;
            Sha256::digest(blob).to_vec()
        }
        Kind::Row => session.hmac(Algorithm::Sha256, key, ROW_MESSAGE)?.to_vec(),
        // Of no plaintext there is nothing but the tag.
        _ => session.encrypt(key, RESERVED_NONCE, DATA_MESSAGE, &[])?,
    };
    // Each is that long: the hashes are cut, and the tag is whole.
    Ok(bytes.first_chunk().copied().unwrap_or_default())
}

/// 16 bytes of what everybody can compute from a public half.
pub fn of_key(public: &PublicKey) -> KeyCheck {
    Sha256::digest(public.to_spki_der()).first_chunk().copied().unwrap_or_default()
}

/// That of a public half: what everybody can compute from it.
///
/// # Errors
/// The HSM failed.
pub fn of_public(session: &Session, public: Object, form: PairForm) -> Result<String, Pkcs11Error> {
    Ok(first_bytes(&of_key(&session.public_half(public, form)?)))
}

fn first_bytes(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes.first_chunk::<3>().map_or(&[], |first| &first[..]))
}
