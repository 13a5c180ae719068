//! What the custodians are asked, one function a request.

use super::messages::{
    CheckAuthorization, CheckEntry, CheckOtp, CheckRolling, CheckSignature, Custody, FindGeneration,
    OpenedEpoch, Outcome, Request, Response, SealRows, SealedRows, portions,
};
use super::{Claim, Hsm, HsmError, Route};
use crate::domain::checkpoint::Checkpoint;
use crate::domain::credential::{EncryptedPinHash, StoredSecret};
use crate::domain::id::{CredentialId, PresentationId};
use crate::domain::idempotency::Fingerprint;
use crate::domain::otp::{Algorithm, Otp};
use crate::domain::presentation::PresentationCode;
use crate::domain::row::{RowBytes, SealedBytes, TableSums};
use crate::domain::signer::PublicKey;
use crate::domain::signer::signature::Signature;
use crate::domain::system_key::NewestKeys;
use crate::domain::time::RunId;
use crate::secret::{MacKey, SecretBytes};

/// A new secret, as it is kept, and in the clear where that was asked for.
pub struct NewSecret {
    /// For the row that names it.
    pub stored: StoredSecret,
    /// To be held until that row is durable.
    pub claim: Claim,
    /// For the one answer that shows it.
    pub exported: Option<SecretBytes>,
}

/// What came of a claim to a rolling credential.
pub struct RollingChecked {
    /// Whether it is right.
    pub valid: bool,
    /// The seals of what that writes.
    pub sealed: SealedRows,
    /// The attestation where one was asked for.
    pub attestation: Option<String>,
    /// The epoch that it hands out, if it is right and does.
    pub opened: Option<OpenedEpoch>,
}

impl Hsm {
    /// Generates a seed in the HSM; with `export` it also comes back in the clear, this once.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn generate(&self, algorithm: Algorithm, export: bool) -> Result<NewSecret, HsmError> {
        let (custody, claim) = self.place()?;
        self.secret(Request::Generate { algorithm, export, custody }, (custody, claim)).await
    }

    /// Takes in a seed of 16 to 64 bytes.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn import(&self, algorithm: Algorithm, seed: SecretBytes) -> Result<NewSecret, HsmError> {
        let (custody, claim) = self.place()?;
        self.secret(Request::Import { algorithm, seed, custody }, (custody, claim)).await
    }

    pub(super) fn route(custody: Custody) -> Route {
        match custody {
            Custody::Wrapped => Route::Any,
            Custody::Resident(_) => Route::Writer,
        }
    }

    async fn secret(
        &self,
        request: Request,
        (custody, mut claim): (Custody, Claim),
    ) -> Result<NewSecret, HsmError> {
        match self.call_on(Self::route(custody), request, &mut claim.way).await? {
            Response::Secret { stored, exported } => Ok(NewSecret { stored, claim, exported }),
            _ => Err(wrong_kind()),
        }
    }

    /// Hashes an OCRA token's PIN and encrypts the hash, for this credential alone.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn encrypt_pin_hash(
        &self,
        id: CredentialId,
        hash: Algorithm,
        pin: SecretBytes,
    ) -> Result<EncryptedPinHash, HsmError> {
        match self.call(Route::Any, Request::EncryptPinHash { id, hash, pin }).await? {
            Response::PinHash(encrypted) => Ok(encrypted),
            _ => Err(wrong_kind()),
        }
    }

    /// Whether a signature is right, the seals of what that writes, and the attestation where one was asked for.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn check_signature(
        &self,
        credential: CredentialId,
        check: CheckSignature,
    ) -> Result<(bool, SealedRows, Option<String>), HsmError> {
        match self.call(Route::Credential(credential), Request::CheckSignature(check)).await? {
            Response::SignatureChecked { valid, sealed, attestation } => Ok((valid, sealed, attestation)),
            _ => Err(wrong_kind()),
        }
    }

    /// Which candidate matched, if any, the seals of what that writes, and the attestation where one was asked
    /// for.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn check_otp(
        &self,
        credential: CredentialId,
        check: CheckOtp,
    ) -> Result<(Option<u16>, SealedRows, Option<String>), HsmError> {
        match self.call(Route::Credential(credential), Request::CheckOtp(check)).await? {
            Response::Checked { matched, sealed, attestation } => Ok((matched, sealed, attestation)),
            _ => Err(wrong_kind()),
        }
    }

    /// Checks the seals of the rows that stand and seals those that come.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn seal(&self, rows: SealRows) -> Result<SealedRows, HsmError> {
        match self.call(Route::Any, Request::Seal(rows)).await? {
            Response::Sealed(sealed) => Ok(sealed),
            _ => Err(wrong_kind()),
        }
    }

    /// The keyed fingerprints of a request: that to remember it by, and all that it may be remembered by.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn fingerprints(
        &self,
        request: SecretBytes,
    ) -> Result<(Fingerprint, Vec<Fingerprint>), HsmError> {
        match self.call(Route::Any, Request::Fingerprint(request)).await? {
            Response::Fingerprints(all) => {
                all.first().copied().map(|newest| (newest, all)).ok_or_else(wrong_kind)
            }
            _ => Err(wrong_kind()),
        }
    }

    /// Has every custodian that is up look for keys that are new in the token, and use them; the newest of each kind
    /// that any of them has. One that starts now finds them by itself, or is told.
    ///
    /// # Errors
    /// [`HsmError`]: one of them does not use them; all the others have been told.
    pub async fn load_keys(&self) -> Result<NewestKeys, HsmError> {
        let (mut newest, mut failed) = (NewestKeys::default(), None);
        // The first tells what there is, for custodians that start meanwhile.
        for route in std::iter::once(Route::Any).chain(self.slots().map(Route::Slot)) {
            match self.call(route, Request::LoadKeys).await {
                Ok(Response::KeysLoaded(loaded)) => {
                    self.inner.learn(&loaded);
                    newest = newest.or_newer(&loaded);
                }
                Ok(_) => failed = failed.or_else(|| Some(wrong_kind())),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(newest), Err)
    }

    /// The next versions of rows under the newest keys, with their seals.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn renew(&self, standing: Vec<SealedBytes>) -> Result<(Vec<RowBytes>, SealedRows), HsmError> {
        match self.call(Route::Any, Request::Renew(standing)).await? {
            Response::Renewed { rows, sealed } => Ok((rows, sealed)),
            _ => Err(wrong_kind()),
        }
    }

    /// 32 bytes of the HSM's random generator.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn random(&self) -> Result<[u8; 32], HsmError> {
        match self.call(Route::Any, Request::Random).await? {
            Response::Random(bytes) => Ok(bytes),
            _ => Err(wrong_kind()),
        }
    }

    /// The keys that attestations verify with, the newest first.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn attestation_keys(&self) -> Result<Vec<PublicKey>, HsmError> {
        match self.call(Route::Any, Request::AttestationKeys).await? {
            Response::AttestationKeys(keys) => Ok(keys),
            _ => Err(wrong_kind()),
        }
    }

    /// Whether `signature` is one over `digest`, by our `attest` key of the RFC 7638 thumbprint `kid`.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn verify_attestation(
        &self,
        kid: String,
        digest: [u8; 32],
        signature: Signature,
    ) -> Result<bool, HsmError> {
        match self.call(Route::Any, Request::VerifyAttestation { kid, digest, signature }).await? {
            Response::AttestationVerified(verified) => Ok(verified),
            _ => Err(wrong_kind()),
        }
    }

    /// The first generation in which no two of the terminals' codes are equal. `first` is any of them.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn find_generation(&self, first: CredentialId, find: FindGeneration) -> Result<u32, HsmError> {
        match self.call(Route::Credential(first), Request::FindGeneration(find)).await? {
            Response::Generation(generation) => Ok(generation),
            _ => Err(wrong_kind()),
        }
    }

    /// The code of a presentation; of one that was made, by the hash of its code.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn presentation_code(
        &self,
        id: PresentationId,
        nonce: [u8; 32],
        code_hash: Option<[u8; 32]>,
    ) -> Result<PresentationCode, HsmError> {
        let request = Request::PresentationCode { id, nonce, code_hash };
        let code = match self.call(Route::Any, request).await? {
            Response::PresentationCode(code) => code,
            _ => return Err(wrong_kind()),
        };
        // Exposed to be spelt.
        code.expose().first_chunk().map(PresentationCode::new).ok_or_else(wrong_kind)
    }

    /// Both codes of an authorization by SMS, downlink and uplink: its row and its terminal's credential are in
    /// `standing`.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn authorization_codes(
        &self,
        terminal: CredentialId,
        standing: Vec<SealedBytes>,
    ) -> Result<(Otp, Otp), HsmError> {
        match self.call(Route::Credential(terminal), Request::AuthorizationCodes(standing)).await? {
            Response::AuthorizationCodes { downlink, uplink } => Ok((downlink, uplink)),
            _ => Err(wrong_kind()),
        }
    }

    /// Whether somebody knows what only the right one knows of a rolling credential.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn check_rolling(
        &self,
        credential: CredentialId,
        check: CheckRolling,
    ) -> Result<RollingChecked, HsmError> {
        match self.call(Route::Credential(credential), Request::CheckRolling(check)).await? {
            Response::RollingChecked { valid, sealed, attestation, opened } => {
                Ok(RollingChecked { valid, sealed, attestation, opened })
            }
            _ => Err(wrong_kind()),
        }
    }

    /// The codes of a pending transaction's terminals, in its order. `first` is any of them.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn terminal_codes(
        &self,
        first: CredentialId,
        standing: Vec<SealedBytes>,
    ) -> Result<Vec<Otp>, HsmError> {
        match self.call(Route::Credential(first), Request::TerminalCodes(standing)).await? {
            Response::TerminalCodes(codes) => Ok(codes),
            _ => Err(wrong_kind()),
        }
    }

    /// Whether what was entered is right, the seals of what that writes, and the attestation where one was asked for.
    /// `first` is any of the terminals.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn check_entry(
        &self,
        first: CredentialId,
        check: CheckEntry,
    ) -> Result<(bool, SealedRows, Option<String>), HsmError> {
        match self.call(Route::Credential(first), Request::CheckEntry(check)).await? {
            Response::EntryChecked { right, sealed, attestation } => Ok((right, sealed, attestation)),
            _ => Err(wrong_kind()),
        }
    }

    /// The open epoch of a rolling credential, whose temporary code has not been acknowledged.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn open_epoch(
        &self,
        credential: CredentialId,
        standing: Vec<SealedBytes>,
    ) -> Result<OpenedEpoch, HsmError> {
        match self.call(Route::Credential(credential), Request::OpenEpoch { standing }).await? {
            Response::Epoch(opened) => Ok(opened),
            _ => Err(wrong_kind()),
        }
    }

    /// Whether a step of an authorization is right, and the seals of what that writes.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn check_authorization(
        &self,
        credential: CredentialId,
        check: CheckAuthorization,
    ) -> Result<(bool, SealedRows), HsmError> {
        match self.call(Route::Credential(credential), Request::CheckAuthorization(check)).await? {
            Response::AuthorizationChecked { accepted, sealed } => Ok((accepted, sealed)),
            _ => Err(wrong_kind()),
        }
    }

    /// The note of a checkpoint, signed by the newest `audit` key.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn sign_checkpoint(&self, checkpoint: Checkpoint) -> Result<String, HsmError> {
        match self.call(Route::Any, Request::SignCheckpoint(checkpoint)).await? {
            Response::Checkpoint(note) => Ok(note),
            _ => Err(wrong_kind()),
        }
    }

    /// The note in a token that says how far the log had come at least; its signature is right. `None`: there is none.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn read_anchor(&self, token: usize) -> Result<Option<String>, HsmError> {
        match self.call(Route::WriterOf(token), Request::ReadAnchor).await? {
            Response::Anchor(note) => Ok(note),
            _ => Err(wrong_kind()),
        }
    }

    /// Puts a signed note in the place of a token's anchor, which it must extend; with `replace` of whatever is there.
    ///
    /// # Errors
    /// [`HsmError`]; [`HsmError::Unavailable`] also if it does not extend what is there.
    pub async fn write_anchor(&self, token: usize, note: String, replace: bool) -> Result<(), HsmError> {
        match self.call(Route::WriterOf(token), Request::WriteAnchor { note, replace }).await? {
            Response::AnchorWritten => Ok(()),
            _ => Err(wrong_kind()),
        }
    }

    /// The key that seals what the database says of itself in a run, from that version of `row` or the newest, with its
    /// version; `None`: there is no such version.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn ledger_key(
        &self,
        run: RunId,
        key_version: Option<u16>,
    ) -> Result<Option<(u16, MacKey)>, HsmError> {
        match self.call(Route::Any, Request::LedgerKey { run, key_version }).await? {
            // Exposed to become a key of another type.
            Response::LedgerKey(key) => {
                Ok(key.map(|(version, bytes)| (version, MacKey::new(bytes.expose()))))
            }
            _ => Err(wrong_kind()),
        }
    }

    /// The keys that checkpoints verify with, the newest first.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn audit_keys(&self) -> Result<Vec<PublicKey>, HsmError> {
        match self.call(Route::Any, Request::AuditKeys).await? {
            Response::AuditKeys(keys) => Ok(keys),
            _ => Err(wrong_kind()),
        }
    }

    /// The sums over rows, their seals checked: at most as many as [`portions`] puts in one message.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn sum(&self, rows: Vec<SealedBytes>) -> Result<TableSums, HsmError> {
        match self.call(Route::Any, Request::Sum(rows)).await? {
            Response::Sum(sums) => Ok(sums),
            _ => Err(wrong_kind()),
        }
    }

    /// The positions of those rows whose seals are wrong.
    ///
    /// # Errors
    /// [`HsmError`], but no [`HsmError::Tampered`].
    pub async fn tampered(&self, rows: Vec<SealedBytes>) -> Result<Vec<usize>, HsmError> {
        let (mut wrong, mut before) = (Vec::new(), 0_usize);
        for portion in portions(rows) {
            let (mut rest, mut first) = (portion.clone(), before);
            before = before.saturating_add(portion.len());
            while !rest.is_empty() {
                let asked = SealRows { standing: rest.clone(), outcome: Outcome::default() };
                match self.seal(asked).await {
                    Ok(_) => break,
                    Err(HsmError::Tampered(place)) => {
                        let place = usize::from(place);
                        wrong.push(first.saturating_add(place));
                        rest = rest.split_off(place.saturating_add(1).min(rest.len()));
                        first = first.saturating_add(place).saturating_add(1);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(wrong)
    }

    /// Checks the seals of rows that are only read, in as many messages as they take.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn check(&self, standing: Vec<SealedBytes>) -> Result<(), HsmError> {
        for standing in portions(standing) {
            self.seal(SealRows { standing, outcome: Outcome::default() }).await?;
        }
        Ok(())
    }
}

pub(super) fn wrong_kind() -> HsmError {
    HsmError::Unavailable("the custodian answered something else".to_owned())
}
