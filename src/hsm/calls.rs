//! What the custodians are asked, one function a request.

use super::messages::{
    CheckAuthorization, CheckEntry, CheckOtp, CheckRolling, CheckSignature, FindGeneration, OpenedEpoch,
    Outcome, Request, Response, SealRows, SealedRows, portions,
};
use super::{Hsm, HsmError, Route};
use crate::domain::credential::{EncryptedPinHash, WrappedSecret};
use crate::domain::id::{CredentialId, PresentationId};
use crate::domain::idempotency::Fingerprint;
use crate::domain::otp::{Algorithm, Otp};
use crate::domain::presentation::PresentationCode;
use crate::domain::row::SealedBytes;
use crate::domain::signer::PublicKey;
use crate::domain::signer::signature::Signature;
use crate::secret::SecretBytes;

/// A new secret, sealed, and in the clear where that was asked for.
pub struct NewSecret {
    /// Under the `kek`.
    pub wrapped: WrappedSecret,
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
        self.secret(Request::Generate { algorithm, export }).await
    }

    /// Takes in a seed of 16 to 64 bytes.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn import(&self, algorithm: Algorithm, seed: SecretBytes) -> Result<NewSecret, HsmError> {
        self.secret(Request::Import { algorithm, seed }).await
    }

    async fn secret(&self, request: Request) -> Result<NewSecret, HsmError> {
        match self.call(Route::Any, request).await? {
            Response::Secret { wrapped, exported } => Ok(NewSecret { wrapped, exported }),
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

    /// The keyed fingerprint of a request.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn fingerprint(&self, request: SecretBytes) -> Result<Fingerprint, HsmError> {
        match self.call(Route::Any, Request::Fingerprint(request)).await? {
            Response::Fingerprint(fingerprint) => Ok(fingerprint),
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

    /// The code of a presentation.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn presentation_code(
        &self,
        id: PresentationId,
        nonce: [u8; 32],
    ) -> Result<PresentationCode, HsmError> {
        let code = match self.call(Route::Any, Request::PresentationCode { id, nonce }).await? {
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

fn wrong_kind() -> HsmError {
    HsmError::Unavailable("the custodian answered something else".to_owned())
}
