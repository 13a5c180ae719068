//! What a custodian does: one function from [`Request`] to [`Response`] or [`Fault`].
//!
//! An expected code exists here alone, is zeroized, and never leaves: only which candidate matched.

use std::collections::HashSet;
use std::time::Instant;

use zeroize::Zeroizing;

use super::anchor::Anchor;
use super::keys::{ImportKey, KeyError, KeyName, Keys, Missed};
use super::looks::Looks;
use super::pkcs11::{Object, Pkcs11Error, Session};
use super::residents::Residents;
use super::secrets::{PublicKeys, Secrets, departing, padded_bytes, verified};
use super::wrapping::{LastGenerated, Origin, is_same};
use super::{codes, pin_hash};
use crate::domain::credential::StoredSecret;
use crate::domain::otp::{Algorithm, Digits, Otp, SEED_BYTES};
use crate::domain::row::{RowBytes, RowSum, SealedBytes, Table, TableSums};
use crate::domain::system_key::{KeyKind, NewestKeys};
use crate::hsm::messages::{Custody, Failure, Fault, Remedy, Request, Response, SealRows, SealedRows};
use crate::secret::SecretBytes;

/// The most rows of one message: a [`Fault::Seal`] names them by one byte.
const ROWS_MAX: usize = 256;

/// Codes of the RFCs' seed "1234567890…", as long as each hash's output: RFC 4226, appendix D, and
/// RFC 6238, appendix B.
const KNOWN_CODES: [(Algorithm, u64, &str); 3] =
    [(Algorithm::Sha1, 0, "755224"), (Algorithm::Sha256, 1, "46119246"), (Algorithm::Sha512, 1, "90693936")];

impl From<Pkcs11Error> for Fault {
    /// What failed in what is our own: the HSM has, whatever it says, and is to be healed. Where something from outside was
    /// handed to it there is [`of_request`].
    fn from(error: Pkcs11Error) -> Self {
        match error.is_write_protection() {
            // It may be so for good, and what makes no objects goes on.
            true => Self::Request(error.to_string()),
            false => Self::Hsm(Failure::with(error.healing(), error.to_string())),
        }
    }
}

/// What failed where a key, a blob or a signature from outside was handed in: that may be what is wrong, and whoever sends
/// it is not to end custodians.
pub(super) fn of_request(error: Pkcs11Error) -> Fault {
    match error.remedy() {
        Remedy::Refuse => Fault::Request(error.to_string()),
        _ => error.into(),
    }
}

/// A logged-in session with its keys, ready to answer.
pub struct Operations {
    pub(super) session: Session,
    pub(super) keys: Keys,
    pub(super) secrets: Secrets,
    pub(super) public_keys: PublicKeys,
    anchor: Anchor,
    pub(super) residents: Residents,
    pub(super) last_generated: LastGenerated,
    looks: Looks,
    /// The keys that others know of, and that are not known here.
    behind: Vec<(KeyKind, u16)>,
    /// Those of them that are there for certain.
    pub unseen: Vec<(KeyKind, u16)>,
    /// What is asked now was begun here before, and failed.
    pub begun: bool,
}

impl Operations {
    /// Takes the session over; keeps at most `secrets_cached_max` unwrapped secrets, and as many public keys.
    pub fn new(session: Session, keys: Keys, residents: Residents, secrets_cached_max: usize) -> Self {
        Self {
            session,
            keys,
            residents,
            secrets: Secrets::new(secrets_cached_max),
            public_keys: PublicKeys::new(secrets_cached_max),
            anchor: Anchor::default(),
            last_generated: LastGenerated::default(),
            looks: Looks::default(),
            behind: Vec::new(),
            unseen: Vec::new(),
            begun: false,
        }
    }

    /// Asks the HSM for known answers by the way of every verification: import, unwrap, HMAC.
    ///
    /// # Errors
    /// The first step that fails, or a wrong code.
    pub fn self_test(&mut self) -> Result<(), Fault> {
        for (algorithm, factor, code) in KNOWN_CODES {
            let seed = (*b"1234567890").into_iter().cycle().take(algorithm.output_bytes()).collect();
            let stored = self.import(algorithm, &SecretBytes::new(seed), Custody::Wrapped)?;
            let key = self.open(stored, algorithm)?;
            let digits = u8::try_from(code.len()).ok().and_then(|count| Digits::try_from(count).ok());
            let right = Otp::parse(code.to_owned()).zip(digits).map(|(known, digits)| {
                let expected = codes::expected(&self.session, key, algorithm, digits, &factor.to_be_bytes());
                expected.map(|code| code.matches(&known))
            });
            if right.transpose()? != Some(true) {
                return Err(Fault::hsm(format!(
                    "C_Sign: the code of a known {} seed is wrong",
                    algorithm.name()
                )));
            }
        }
        self.keys.import().try_for_each(|key| self.self_test_import(key))
    }

    /// The same of what comes wrapped.
    fn self_test_import(&self, key: &ImportKey) -> Result<(), Fault> {
        const MESSAGE: &[u8] = b"hsm-authd/import/self-test/v1";
        let wrapped = self.check_import(key)?;
        let mut secrets = Secrets::new(1);
        let (kek_version, blob) = wrapped.parts();
        let blob = (kek_version, blob.to_vec());
        let opened = secrets.open(&self.session, &self.keys, blob, Algorithm::Sha256)?;
        let mac = self.session.hmac(Algorithm::Sha256, opened, MESSAGE);
        let mac = self.session.destroy_after(opened, mac)?;
        match *mac == ImportKey::trial_mac(MESSAGE) {
            true => Ok(()),
            false => Err(Fault::hsm(format!("key {}: another seed than the known one came out", key.name()))),
        }
    }

    /// How many secrets were unwrapped and public keys made so far.
    pub fn unwraps(&self) -> u64 {
        self.secrets.opened.saturating_add(self.public_keys.opened)
    }

    /// Looks for keys that others know of and that are not known here.
    pub fn keep_up(&mut self, newest: &NewestKeys) {
        self.behind = newest.beyond(&self.keys.newest());
        if !self.behind.is_empty() {
            self.look(&Missed::default());
            self.behind = newest.beyond(&self.keys.newest());
        }
    }

    /// Answers one request; `repeated`: another custodian may have worked on it before. One that needs a key which is not known
    /// here may be of a key that is new: the token is looked through for it, and the request tried once more.
    ///
    /// # Errors
    /// After [`Fault::Hsm`] the state of the session is unknown: it must not be asked again.
    pub fn answer(&mut self, request: &Request, repeated: bool) -> Result<Response, Fault> {
        if request.searches().is_some_and(|kind| self.is_behind(kind)) {
            return Err(Fault::Later);
        }
        self.keys.take_missed();
        let result = self.answer_with_known_keys(request, repeated);
        let missed = self.keys.take_missed();
        if missed.is_none() || matches!(result, Err(Fault::Hsm(_))) {
            return result;
        }
        let is_unseen = |name: &KeyName| self.unseen.contains(&(name.kind, name.version));
        let is_there = result.is_err() && missed.versions.iter().any(is_unseen);
        if !is_there && self.looks.was_in_vain(&missed, Instant::now()) {
            return result;
        }
        match self.look(&missed) {
            // Others have it: what it made is neither forged nor of a key that is gone.
            Some(0) | None if is_there => Err(Fault::Later),
            Some(0) => result,
            Some(_) => self.answer_with_known_keys(request, repeated),
            // Only what a key made can name its version: it is not nothing before it was looked for.
            None if result.is_err() && !missed.versions.is_empty() => {
                self.looks.want(&missed);
                Err(Fault::Later)
            }
            None => result,
        }
    }

    /// Looks through the token for what was missed. How many keys were not known; `None`: it was looked through a moment
    /// ago, or cannot be.
    fn look(&mut self, missed: &Missed) -> Option<usize> {
        let now = Instant::now();
        if !self.looks.begin(now) {
            return None;
        }
        match self.keys.load_more(&self.session) {
            Ok(count) => {
                self.looks.looked(missed, now, |name| self.keys.has(name));
                Some(count)
            }
            Err(error) => {
                tracing::warn!(%error, "custodian: new keys cannot be used");
                None
            }
        }
    }

    /// Whether others know of a key of this kind that is not known here.
    pub(super) fn is_behind(&self, kind: KeyKind) -> bool {
        self.behind.iter().any(|(behind, _)| *behind == kind)
    }

    /// The newest version of each key.
    pub fn newest_keys(&self) -> NewestKeys {
        self.keys.newest()
    }

    fn load_keys(&mut self) -> Result<Response, Fault> {
        // What is not as it must be is no reason to give up those that are.
        self.keys.load_more(&self.session).map_err(|error| match error {
            KeyError::Hsm(error) => error.into(),
            error => Fault::Request(error.to_string()),
        })?;
        self.looks.forget();
        Ok(Response::KeysLoaded(self.keys.newest()))
    }

    fn answer_with_known_keys(&mut self, request: &Request, repeated: bool) -> Result<Response, Fault> {
        self.residents.begin(repeated, self.begun);
        let result = self.obey(request);
        match result {
            // An object that somebody destroyed since it was found is not the HSM's failure.
            Err(Fault::Hsm(_)) => match self.residents.lost(&self.session, &self.keys) {
                Some(id) => Err(Fault::Missing(id)),
                None => result,
            },
            _ => result,
        }
    }

    fn obey(&mut self, request: &Request) -> Result<Response, Fault> {
        match request {
            Request::Health => self.health(),
            Request::Generate { algorithm, export, custody } => self.generate(*algorithm, *export, *custody),
            Request::Import { algorithm, seed, custody } => {
                let stored = self.import(*algorithm, seed, *custody)?;
                Ok(Response::Secret { stored, exported: None })
            }
            Request::Residents { after } => Ok(self.residents.page(*after)),
            Request::DestroyResidents { ids, nameless } => {
                let objects = self.residents.destroy((&self.session, &self.keys), ids, *nameless)?;
                Ok(Response::Destroyed { objects })
            }
            Request::ImportWrapped { algorithm, seed, custody } => {
                self.import_wrapped(seed, *algorithm, *custody)
            }
            Request::ImportKey => Ok(self.import_key()),
            Request::EncryptPinHash { id, hash, pin } => {
                Ok(Response::PinHash(pin_hash::encrypt(&self.session, &self.keys, *id, *hash, pin)?))
            }
            Request::CheckOtp(check) => self.check_otp(check),
            Request::CheckSignature(check) => self.check_signature(check),
            Request::Seal(rows) => self.seal(rows),
            // Exposed to be hashed under a key.
            Request::Fingerprint(request) => {
                Ok(Response::Fingerprints(self.keys.fingerprints(request.expose())))
            }
            Request::Sum(rows) => self.sum(rows),
            Request::Random => {
                let mut bytes = [0; 32];
                self.session.random(&mut bytes)?;
                Ok(Response::Random(bytes))
            }
            Request::AttestationKeys => {
                Ok(Response::AttestationKeys(self.keys.attest().map(|key| key.public().clone()).collect()))
            }
            Request::VerifyAttestation { kid, digest, signature } => {
                let key = self.keys.noted(self.keys.attest().find(|key| key.kid() == kid));
                let own = (&self.session, &self.keys);
                let verified =
                    key.map(|key| verified(own, key.verifying(), digest, signature)).transpose()?;
                Ok(Response::AttestationVerified(verified == Some(true)))
            }
            Request::FindGeneration(find) => self.find_generation(find),
            Request::TerminalCodes(standing) => self.terminal_codes(standing),
            Request::CheckEntry(check) => self.check_entry(check),
            Request::CheckRolling(check) => self.check_rolling(check),
            Request::OpenEpoch { standing } => self.open_epoch(standing),
            Request::PresentationCode { id, nonce, code_hash } => {
                self.presentation_code(*id, nonce, code_hash.as_ref())
            }
            Request::AuthorizationCodes(standing) => self.authorization_codes(standing),
            Request::CheckAuthorization(check) => self.check_authorization(check),
            Request::LoadKeys => self.load_keys(),
            Request::TlsKeys => Ok(Response::TlsKeys(self.tls_keys())),
            Request::SignHandshake { key, transcript } => self.sign_handshake(key, transcript),
            Request::Renew(standing) => self.renew(standing),
            Request::SignCheckpoint(checkpoint) => {
                Ok(Response::Checkpoint(self.keys.newest_audit().checkpoint(&self.session, checkpoint)?))
            }
            Request::ReadAnchor => Ok(Response::Anchor(self.anchor.read(&self.session, &self.keys)?)),
            Request::WriteAnchor { note, replace } => self.write_anchor(note, *replace),
            Request::LedgerKey { run, key_version } => {
                Ok(Response::LedgerKey(self.keys.ledger(*run, *key_version)))
            }
            Request::AuditKeys => {
                Ok(Response::AuditKeys(self.keys.audit().map(|key| key.public().clone()).collect()))
            }
        }
    }

    fn write_anchor(&mut self, note: &str, replace: bool) -> Result<Response, Fault> {
        let standing = self.anchor.standing(&self.session)?;
        // One that a newer key signed counts, and is not to be destroyed as nobody's.
        if standing.iter().any(|anchor| anchor.is_of_unknown(&self.keys)) {
            self.look(&Missed::default());
        }
        self.anchor.write(&self.session, &self.keys, standing, (note.to_owned(), replace))?;
        Ok(Response::AnchorWritten)
    }

    fn health(&self) -> Result<Response, Fault> {
        match self.keys.pulse().check(&self.session)? {
            true => Ok(Response::Healthy),
            false => Err(Fault::hsm("C_Sign: another HMAC than at the start")),
        }
    }

    pub(super) fn generate(
        &mut self,
        algorithm: Algorithm,
        export: bool,
        custody: Custody,
    ) -> Result<Response, Fault> {
        if export {
            let mut seed = vec![0; algorithm.output_bytes()];
            let filled = self.session.random(&mut seed);
            let seed = SecretBytes::new(seed);
            filled?;
            let stored = self.import(algorithm, &seed, custody)?;
            return Ok(Response::Secret { stored, exported: Some(seed) });
        }
        // Random up to the padded length (SHA-1: 24 bytes for 20): what the HSM makes cannot be
        // padded outside, and nobody ever sees how long it is.
        let length_bytes = padded_bytes(0, algorithm);
        let session = &self.session;
        let stored = match custody {
            Custody::Wrapped => {
                let key = session.generate(&departing(length_bytes))?;
                self.wrap_and_destroy(key, length_bytes, algorithm, &Origin::Generated)?
            }
            Custody::Resident(id) => {
                let id = self.residents.keep((session, &self.keys), id, algorithm, |id| {
                    session.generate_resident(id, algorithm, length_bytes)
                })?;
                self.prove_resident_of(id, algorithm, &Origin::Generated)?
            }
        };
        Ok(Response::Secret { stored, exported: None })
    }

    pub(super) fn import(
        &mut self,
        algorithm: Algorithm,
        seed: &SecretBytes,
        custody: Custody,
    ) -> Result<StoredSecret, Fault> {
        if !SEED_BYTES.contains(&seed.len()) {
            return Err(Fault::Request("a seed must have 16 to 64 bytes".into()));
        }
        let length_bytes = padded_bytes(seed.len(), algorithm);
        let mut padded = Zeroizing::new(vec![0; length_bytes]);
        // Exposed to be handed to the HSM.
        for (place, byte) in padded.iter_mut().zip(seed.expose()) {
            *place = *byte;
        }
        let session = &self.session;
        match custody {
            Custody::Wrapped => {
                let key = session.create(&departing(length_bytes), &padded).map_err(of_request)?;
                self.wrap_and_destroy(key, length_bytes, algorithm, &Origin::Given(&padded))
            }
            Custody::Resident(id) => {
                let id = self.residents.keep((session, &self.keys), id, algorithm, |id| {
                    session.create_resident(id, algorithm, &padded)
                })?;
                self.prove_resident_of(id, algorithm, &Origin::Given(&padded))
            }
        }
    }

    /// A secret that was wrapped just now, as it is to be kept.
    pub(super) fn settle(
        &mut self,
        wrapped: StoredSecret,
        algorithm: Algorithm,
        custody: Custody,
    ) -> Result<StoredSecret, Fault> {
        match custody {
            Custody::Wrapped => Ok(wrapped),
            Custody::Resident(id) => {
                let ((_, kek), (_, blob)) = (self.keys.newest_kek(), wrapped.parts());
                let wrapped = self.mac_of_blob(kek, blob, algorithm)?;
                let session = &self.session;
                let id = self.residents.keep((session, &self.keys), id, algorithm, |id| {
                    session.unwrap_resident(kek, blob, id, algorithm)
                })?;
                const LIE: &str = "C_UnwrapKey: another key than that which was wrapped";
                self.prove_resident(id, algorithm, |_, mac| is_same(&wrapped, mac, LIE))
            }
        }
    }

    /// The object that a stored secret is, or is unwrapped into.
    ///
    /// # Errors
    /// [`Fault::Missing`] if it is to be an object in the HSM, and is not; what
    /// [`Secrets::open`] says.
    pub(super) fn open(&mut self, secret: StoredSecret, algorithm: Algorithm) -> Result<Object, Fault> {
        match secret {
            StoredSecret::Wrapped { kek_version, blob } => {
                self.secrets.open(&self.session, &self.keys, (kek_version, blob), algorithm)
            }
            StoredSecret::Resident(id) => self.residents.open(&self.session, &self.keys, id, algorithm),
        }
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
        let mut sum_change = TableSums::default();
        for row in replaced(standing, replaces)? {
            let (table, summand) = self.summand(&row.bytes, row.seal.key_version)?;
            sum_change.subtract(table, summand);
        }
        let mut seals = Vec::new();
        for row in rows {
            let seal = self.keys.seal(row);
            let (table, summand) = self.summand(row, seal.key_version)?;
            sum_change.add(table, summand);
            seals.push(seal);
        }
        Ok(SealedRows { seals, sum_change })
    }

    fn sum(&self, rows: &[SealedBytes]) -> Result<Response, Fault> {
        self.verify_seals(rows)?;
        let mut sums = TableSums::default();
        for row in rows {
            let (table, summand) = self.summand(&row.bytes, row.seal.key_version)?;
            sums.add(table, summand);
        }
        Ok(Response::Sum(sums))
    }

    fn summand(&self, row: &RowBytes, key_version: u16) -> Result<(Table, RowSum), Fault> {
        let table = row.table().ok_or_else(|| Fault::Request("a row of no table".to_owned()))?;
        let summand = self
            .keys
            .summand(row, key_version)
            .ok_or_else(|| Fault::Request(format!("there is no key hsm-authd/row/v{key_version}")))?;
        Ok((table, summand))
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
        let residents = Residents::load(&session, &|| ()).unwrap();
        let mut operations = Operations::new(session, keys, residents, 2);
        let objects = |operations: &Operations| operations.session.session_objects();
        let resting = objects(&operations);
        assert_eq!(resting, 4, "the kek's copy, the public halves of what signs, and the key of the trials");
        let (_, kek) = operations.keys.newest_kek();
        // Whatever is imported or generated leaves nothing behind, even if it cannot be wrapped.
        let mut import = |seed: Vec<u8>| {
            let stored = operations.import(Algorithm::Sha1, &SecretBytes::new(seed), Custody::Wrapped);
            let (kek_version, blob) = stored.as_ref().unwrap().parts();
            (kek_version, blob.to_vec())
        };
        let blobs = [1, 2, 3].map(|byte| import(vec![byte; 20]));
        let long = import(vec![4; 64]);
        operations.generate(Algorithm::Sha1, false, Custody::Wrapped).unwrap();
        operations.generate(Algorithm::Sha1, true, Custody::Wrapped).unwrap();
        let unwrappable = operations.session.create(&departing(24), &[1; 24]).unwrap();
        let refused = operations.wrap_and_destroy(unwrappable, 32, Algorithm::Sha1, &Origin::Opened);
        assert!(matches!(refused, Err(Fault::Hsm(_))));
        assert_eq!(objects(&operations), resting);

        // What is unwrapped cannot be read or wrapped, nor used for another hash.
        let Operations { session, keys, .. } = &operations;
        assert!(session.value(kek).is_none());
        assert!(session.wrap(kek, kek, 32).is_err());
        let mut secrets = Secrets::new(2);
        let mut open = |blob| secrets.open(session, keys, blob, Algorithm::Sha1).unwrap();
        let wrapped = |number: usize| blobs[number - 1].clone();
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
        let long = open(long);
        assert!(session.hmac(Algorithm::Sha1, long, b"").is_ok());
        assert!(session.hmac(Algorithm::Sha512, long, b"").is_err());

        // An object that is not what its shape says is not left behind.
        let objects_before = objects(&operations);
        let extractable = session.create(&departing(24), &[1; 24]).unwrap();
        assert!(checked(session, extractable, &departing(24)).is_ok());
        let asked = Shape { extractable: false, ..departing(24) };
        let fault = Fault::hsm("C_UnwrapKey: CKA_EXTRACTABLE is not as asked for");
        assert_eq!(checked(session, extractable, &asked).err(), Some(fault));
        assert_eq!(objects(&operations), objects_before);

        operations.self_test().unwrap();
        assert!(matches!(operations.answer(&Request::Health, false), Ok(Response::Healthy)));
        operations.keys.expect_another_pulse();
        assert!(matches!(operations.answer(&Request::Health, false), Err(Fault::Hsm(_))));
    }
}
