//! Key check values: three bytes that tell two keys apart, and say next to nothing of either.

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::keys::{Found, Kind};
use super::pkcs11::{GCM_NONCE_BYTES, Object, PairForm, Pkcs11Error, Session};
use super::secrets::departing;
use crate::domain::otp::Algorithm;

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
        (Kind::Kek, Found::Secret(kek)) => {
            let known = session.create(&departing(KNOWN_KEY.len()), KNOWN_KEY)?;
            let blob = session.destroy_after(known, session.wrap(kek, known, KNOWN_KEY.len()))?;
            Sha256::digest(blob).to_vec()
        }
        (Kind::Row, Found::Secret(row)) => session.hmac(Algorithm::Sha256, row, ROW_MESSAGE)?.to_vec(),
        // Of no plaintext there is nothing but the tag.
        (_, Found::Secret(data)) => session.encrypt(data, RESERVED_NONCE, DATA_MESSAGE, &[])?,
        (Kind::Import, Found::Pair { public, .. }) => return of_public(session, public, PairForm::Rsa3072),
        (_, Found::Pair { public, .. }) => return of_public(session, public, PairForm::P256),
    };
    Ok(first_bytes(&bytes))
}

/// That of a public half: what everybody can compute from it.
///
/// # Errors
/// The HSM failed.
pub fn of_public(session: &Session, public: Object, form: PairForm) -> Result<String, Pkcs11Error> {
    Ok(first_bytes(&Sha256::digest(session.public_half(public, form)?.to_spki_der())))
}

fn first_bytes(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes.first_chunk::<3>().map_or(&[], |first| &first[..]))
}
