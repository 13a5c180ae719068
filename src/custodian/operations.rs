//! What a custodian does: one function from [`Request`] to [`Response`] or [`Fault`].
//!
//! An expected code exists here alone, is zeroized, and never leaves: only which candidate matched.

use std::collections::HashSet;

use zeroize::Zeroizing;

use super::keys::Keys;
use super::pkcs11::{Object, Pkcs11Error, Session};
use super::secrets::{PublicKeys, Secrets, departing, padded_bytes};
use super::{codes, pin_hash};
use crate::domain::credential::WrappedSecret;
use crate::domain::otp::{Algorithm, Digits, Otp, SEED_BYTES};
use crate::domain::row::{RowBytes, RowSum, SealedBytes};
use crate::hsm::messages::{Fault, Request, Response, SealRows, SealedRows};
use crate::secret::SecretBytes;

/// The most rows of one message: a [`Fault::Seal`] names them by one byte.
const ROWS_MAX: usize = 256;

/// Codes of the RFCs' seed "1234567890…", as long as each hash's output: RFC 4226, appendix D, and
/// RFC 6238, appendix B.
const KNOWN_CODES: [(Algorithm, u64, &str); 3] =
    [(Algorithm::Sha1, 0, "755224"), (Algorithm::Sha256, 1, "46119246"), (Algorithm::Sha512, 1, "90693936")];

impl From<Pkcs11Error> for Fault {
    fn from(error: Pkcs11Error) -> Self {
        Self::Hsm(error.to_string())
    }
}

/// A logged-in session with its keys, ready to answer.
pub struct Operations {
    pub(super) session: Session,
    pub(super) keys: Keys,
    pub(super) secrets: Secrets,
    pub(super) public_keys: PublicKeys,
}

impl Operations {
    /// Takes the session over; keeps at most `secrets_cached_max` unwrapped secrets, and as many public keys.
    pub fn new(session: Session, keys: Keys, secrets_cached_max: usize) -> Self {
        Self {
            session,
            keys,
            secrets: Secrets::new(secrets_cached_max),
            public_keys: PublicKeys::new(secrets_cached_max),
        }
    }

    /// Asks the HSM for known answers by the way of every verification: import, unwrap, HMAC.
    ///
    /// # Errors
    /// The first step that fails, or a wrong code.
    pub fn self_test(&mut self) -> Result<(), Fault> {
        for (algorithm, factor, code) in KNOWN_CODES {
            let seed = (*b"1234567890").into_iter().cycle().take(algorithm.output_bytes()).collect();
            let wrapped = self.import(algorithm, &SecretBytes::new(seed))?;
            let key = self.secrets.open(&self.session, &self.keys, wrapped, algorithm)?;
            let digits = u8::try_from(code.len()).ok().and_then(|count| Digits::try_from(count).ok());
            let right = Otp::parse(code.to_owned()).zip(digits).map(|(known, digits)| {
                let expected = codes::expected(&self.session, key, algorithm, digits, &factor.to_be_bytes());
                expected.map(|code| code.matches(&known))
            });
            if right.transpose()? != Some(true) {
                return Err(Fault::Hsm(format!(
                    "C_Sign: the code of a known {} seed is wrong",
                    algorithm.name()
                )));
            }
        }
        Ok(())
    }

    /// Answers one request.
    ///
    /// # Errors
    /// After [`Fault::Hsm`] the state of the session is unknown: it must not be asked again.
    pub fn answer(&mut self, request: Request) -> Result<Response, Fault> {
        match request {
            Request::Health => self.health(),
            Request::Generate { algorithm, export } => self.generate(algorithm, export),
            Request::Import { algorithm, seed } => {
                let wrapped = self.import(algorithm, &seed)?;
                Ok(Response::Secret { wrapped, exported: None })
            }
            Request::EncryptPinHash { id, hash, pin } => {
                Ok(Response::PinHash(pin_hash::encrypt(&self.session, &self.keys, id, hash, &pin)?))
            }
            Request::CheckOtp(check) => self.check_otp(&check),
            Request::CheckSignature(check) => self.check_signature(&check),
            Request::Seal(rows) => self.seal(&rows),
            // Exposed to be hashed under a key.
            Request::Fingerprint(request) => {
                Ok(Response::Fingerprint(self.keys.fingerprint(request.expose())))
            }
            Request::Sum(rows) => self.sum(&rows),
            Request::Random => {
                let mut bytes = [0; 32];
                self.session.random(&mut bytes)?;
                Ok(Response::Random(bytes))
            }
            Request::AttestationKeys => {
                Ok(Response::AttestationKeys(self.keys.attest().map(|key| key.public().clone()).collect()))
            }
            Request::VerifyAttestation { kid, digest, signature } => {
                let key = self.keys.attest().find(|key| key.kid() == kid);
                let verified = key.map(|key| key.verify(&self.session, &digest, &signature)).transpose()?;
                Ok(Response::AttestationVerified(verified == Some(true)))
            }
            Request::FindGeneration(find) => self.find_generation(&find),
            Request::TerminalCodes(standing) => self.terminal_codes(&standing),
            Request::CheckEntry(check) => self.check_entry(&check),
            Request::CheckRolling(check) => self.check_rolling(&check),
            Request::OpenEpoch { standing } => self.open_epoch(&standing),
            Request::PresentationCode { id, nonce } => self.presentation_code(id, &nonce),
            Request::AuthorizationCodes(standing) => self.authorization_codes(&standing),
            Request::CheckAuthorization(check) => self.check_authorization(&check),
        }
    }

    fn health(&self) -> Result<Response, Fault> {
        match self.keys.check_pulse(&self.session)? {
            true => Ok(Response::Healthy),
            false => Err(Fault::Hsm("C_Sign: another HMAC than at the start".into())),
        }
    }

    fn generate(&self, algorithm: Algorithm, export: bool) -> Result<Response, Fault> {
        if export {
            let mut seed = vec![0; algorithm.output_bytes()];
            let filled = self.session.random(&mut seed);
            let seed = SecretBytes::new(seed);
            filled?;
            let wrapped = self.import(algorithm, &seed)?;
            return Ok(Response::Secret { wrapped, exported: Some(seed) });
        }
        // Random up to the padded length (SHA-1: 24 bytes for 20): what the HSM makes cannot be
        // padded outside, and nobody ever sees how long it is.
        let length_bytes = padded_bytes(0, algorithm);
        let key = self.session.generate(&departing(length_bytes), None)?;
        Ok(Response::Secret { wrapped: self.wrap_and_destroy(key, length_bytes)?, exported: None })
    }

    fn import(&self, algorithm: Algorithm, seed: &SecretBytes) -> Result<WrappedSecret, Fault> {
        if !SEED_BYTES.contains(&seed.len()) {
            return Err(Fault::Request("a seed must have 16 to 64 bytes".into()));
        }
        let length_bytes = padded_bytes(seed.len(), algorithm);
        let mut padded = Zeroizing::new(vec![0; length_bytes]);
        // Exposed to be handed to the HSM.
        for (place, byte) in padded.iter_mut().zip(seed.expose()) {
            *place = *byte;
        }
        let key = self.session.create(&departing(length_bytes), &padded)?;
        self.wrap_and_destroy(key, length_bytes)
    }

    /// The key is destroyed also if it cannot be wrapped: it is extractable.
    fn wrap_and_destroy(&self, key: Object, length_bytes: usize) -> Result<WrappedSecret, Fault> {
        let (kek_version, kek) = self.keys.newest_kek();
        let blob = self.session.wrap(kek, key, length_bytes);
        self.session.destroy(key)?;
        Ok(WrappedSecret { kek_version, blob: blob? })
    }

    fn seal(&self, rows: &SealRows) -> Result<Response, Fault> {
        self.verify_seals(&rows.standing)?;
        let outcome = &rows.outcome;
        Ok(Response::Sealed(self.seal_outcome(&rows.standing, &outcome.replaces, outcome.rows.iter())?))
    }

    /// Seals an outcome's rows; `standing` must have been verified.
    pub(super) fn seal_outcome<'a>(
        &self,
        standing: &[SealedBytes],
        replaces: &[u8],
        rows: impl Iterator<Item = &'a RowBytes>,
    ) -> Result<SealedRows, Fault> {
        let mut sum_change = RowSum::default();
        for row in replaced(standing, replaces)? {
            sum_change = sum_change.minus(self.summand(&row.bytes, row.seal.key_version)?);
        }
        let mut seals = Vec::new();
        for row in rows {
            let seal = self.keys.seal(row);
            sum_change = sum_change.plus(self.summand(row, seal.key_version)?);
            seals.push(seal);
        }
        Ok(SealedRows { seals, sum_change })
    }

    fn sum(&self, rows: &[SealedBytes]) -> Result<Response, Fault> {
        self.verify_seals(rows)?;
        let mut sum = RowSum::default();
        for row in rows {
            sum = sum.plus(self.summand(&row.bytes, row.seal.key_version)?);
        }
        Ok(Response::Sum(sum))
    }

    fn summand(&self, row: &RowBytes, key_version: u16) -> Result<RowSum, Fault> {
        self.keys
            .summand(row, key_version)
            .ok_or_else(|| Fault::Request(format!("there is no key hsm-authd/row/v{key_version}")))
    }

    /// All of them, before anything is made of any.
    pub(super) fn verify_seals(&self, rows: &[SealedBytes]) -> Result<(), Fault> {
        if rows.len() > ROWS_MAX {
            return Err(Fault::Request(format!("more than {ROWS_MAX} rows")));
        }
        match (0u8..=u8::MAX).zip(rows).find(|(_, row)| !self.keys.verify(row)) {
            Some((position, _)) => Err(Fault::Seal(position)),
            None => Ok(()),
        }
    }
}

/// The standing rows at these positions, each at most once.
pub(super) fn replaced<'a>(
    standing: &'a [SealedBytes],
    positions: &[u8],
) -> Result<Vec<&'a SealedBytes>, Fault> {
    let mut seen = HashSet::new();
    let row = |position: &u8| match standing.get(usize::from(*position)) {
        Some(row) if seen.insert(*position) => Ok(row),
        Some(_) => Err(Fault::Request(format!("standing row {position} is replaced twice"))),
        None => Err(Fault::Request(format!("there is no standing row {position}"))),
    };
    positions.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::super::pkcs11::Shape;
    use super::super::secrets::checked;
    use super::super::test_token::with_session;
    use super::super::token::make_keys;
    use super::*;

    #[test]
    fn no_session_object_outlives_its_use_or_gives_its_seed_away() {
        const NAME: &str =
            "custodian::operations::tests::no_session_object_outlives_its_use_or_gives_its_seed_away";
        with_session(NAME, nothing_is_left_behind);
    }

    fn nothing_is_left_behind(session: Session) {
        make_keys(&session, "unit", &mut std::io::sink()).unwrap();
        let keys = Keys::load(&session).unwrap();
        let mut operations = Operations::new(session, keys, 2);
        let objects = |operations: &Operations| operations.session.session_objects();
        let resting = objects(&operations);
        assert_eq!(resting, 2, "the kek's copy, and the attest key's public half");
        let (_, kek) = operations.keys.newest_kek();
        let Operations { session, keys, .. } = &operations;
        assert!(session.value(kek).is_none());
        assert!(session.wrap(kek, kek, 32).is_err());

        // Whatever is imported or generated leaves nothing behind, even if it cannot be wrapped.
        let seed = |byte| SecretBytes::new(vec![byte; 20]);
        operations.import(Algorithm::Sha1, &seed(1)).unwrap();
        operations.generate(Algorithm::Sha1, false).unwrap();
        operations.generate(Algorithm::Sha1, true).unwrap();
        let unwrappable = session.create(&departing(24), &[1; 24]).unwrap();
        assert!(operations.wrap_and_destroy(unwrappable, 32).is_err());
        assert_eq!(objects(&operations), resting);

        // What is unwrapped cannot be read or wrapped, nor used for another hash.
        let wrapped = |byte| operations.import(Algorithm::Sha1, &seed(byte)).unwrap();
        let mut secrets = Secrets::new(2);
        let mut open = |wrapped| secrets.open(session, keys, wrapped, Algorithm::Sha1).unwrap();
        let first = open(wrapped(1));
        assert!(session.value(first).is_none());
        assert!(
            session.wrap(kek, first, 24).is_err_and(|e| e.to_string().starts_with("C_WrapKey: CKR_KEY_"))
        );
        assert!(session.hmac(Algorithm::Sha1, first, b"").is_ok());

        // It stays while there is room, and is destroyed when there is none.
        open(wrapped(1));
        open(wrapped(2));
        assert_eq!(objects(&operations), resting + 2);
        open(wrapped(3));
        assert_eq!(objects(&operations), resting + 2);
        assert!(session.hmac(Algorithm::Sha1, first, b"").is_err());

        // Of a length that any hash would take.
        let long = operations.import(Algorithm::Sha1, &SecretBytes::new(vec![4; 64])).unwrap();
        let long = open(long);
        assert!(session.hmac(Algorithm::Sha1, long, b"").is_ok());
        assert!(session.hmac(Algorithm::Sha512, long, b"").is_err());

        // An object that is not what its shape says is not left behind.
        let objects_before = objects(&operations);
        let extractable = session.create(&departing(24), &[1; 24]).unwrap();
        assert!(checked(session, extractable, &departing(24)).is_ok());
        let asked = Shape { extractable: false, ..departing(24) };
        let fault = Fault::Hsm("C_UnwrapKey: CKA_EXTRACTABLE is not as asked for".into());
        assert_eq!(checked(session, extractable, &asked).err(), Some(fault));
        assert_eq!(objects(&operations), objects_before);

        operations.self_test().unwrap();
        assert!(matches!(operations.answer(Request::Health), Ok(Response::Healthy)));
        operations.keys.expect_another_pulse();
        assert!(matches!(operations.answer(Request::Health), Err(Fault::Hsm(_))));
    }
}
