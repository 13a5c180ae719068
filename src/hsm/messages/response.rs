//! What a custodian answers.

use serde::{Deserialize, Serialize};

use super::{OpenedEpoch, SealedRows};
use crate::domain::credential::{EncryptedPinHash, ObjectId, StoredSecret};
use crate::domain::idempotency::Fingerprint;
use crate::domain::otp::Otp;
use crate::domain::row::{RowBytes, TableSums};
use crate::domain::signer::PublicKey;
use crate::domain::signer::signature::Signature;
use crate::domain::system_key::NewestKeys;
use crate::secret::SecretBytes;

/// What a custodian answers.
#[derive(Serialize, Deserialize)]
pub enum Response {
    /// To `Request::Health`.
    Healthy,
    /// To `Request::Generate` and `Request::Import`.
    Secret {
        /// The seed, kept as it was to be.
        stored: StoredSecret,
        /// The seed itself, where it was asked for.
        exported: Option<SecretBytes>,
    },
    /// To `Request::ImportWrapped`: the seed as it is kept; `None`: nobody wrapped a seed like this for a key of
    /// ours. Never why.
    Imported(Option<StoredSecret>),
    /// To `Request::ImportKey`: the newest one's public half.
    ImportKey(PublicKey),
    /// To `Request::Residents`.
    Residents {
        /// At most [`RESIDENTS_PAGE`](super::RESIDENTS_PAGE); fewer: there are no more.
        ids: Vec<ObjectId>,
        /// How many more have no id, whatever page this is.
        nameless: u32,
    },
    /// To `Request::DestroyResidents`: none of them is there any more.
    Destroyed {
        /// How many there were.
        objects: u32,
    },
    /// To `Request::CheckOtp`.
    Checked {
        /// Which candidate matched; `None`: none did.
        matched: Option<u16>,
        /// Seals and sum of what that outcome writes; an attestation's seal is the last.
        sealed: SealedRows,
        /// The compact JWS, if one was asked for and the code accepted.
        attestation: Option<String>,
    },
    /// To `Request::EncryptPinHash`.
    PinHash(EncryptedPinHash),
    /// To `Request::CheckSignature`.
    SignatureChecked {
        /// Whether it is right.
        valid: bool,
        /// Seals and sum of what that outcome writes; an attestation's seal is the last.
        sealed: SealedRows,
        /// The compact JWS, if one was asked for and the signature is right.
        attestation: Option<String>,
    },
    /// To `Request::Seal`.
    Sealed(SealedRows),
    /// To `Request::Fingerprint`: one for each version of `row`, the newest first.
    Fingerprints(Vec<Fingerprint>),
    /// To `Request::Sum`.
    Sum(TableSums),
    /// To `Request::Random`.
    Random([u8; 32]),
    /// To `Request::AttestationKeys`: the newest first.
    AttestationKeys(Vec<PublicKey>),
    /// To `Request::VerifyAttestation`: whether that key made it. An unknown one made nothing.
    AttestationVerified(bool),
    /// To `Request::FindGeneration`.
    Generation(u32),
    /// To `Request::TerminalCodes`: in the transaction's order.
    TerminalCodes(Vec<Otp>),
    /// To `Request::CheckEntry`.
    EntryChecked {
        /// Whether it is right, and so was everything before it in its round.
        right: bool,
        /// Seals and sum of what that outcome writes; an attestation's seal is the last.
        sealed: SealedRows,
        /// The compact JWS, if one was asked for and the round is right.
        attestation: Option<String>,
    },
    /// To `Request::CheckRolling`.
    RollingChecked {
        /// Whether it is right.
        valid: bool,
        /// Seals and sum of what that outcome writes; of a payment the next binding's, and the attestation's, are the
        /// last.
        sealed: SealedRows,
        /// The compact JWS, if a payment is right.
        attestation: Option<String>,
        /// What is handed out if it is right: of a payment the next epoch, of a rotation with the epoch before it the
        /// open one, of an identity key the first.
        opened: Option<OpenedEpoch>,
    },
    /// To `Request::OpenEpoch`.
    Epoch(OpenedEpoch),
    /// To `Request::PresentationCode`: 16 bytes.
    PresentationCode(SecretBytes),
    /// To `Request::AuthorizationCodes`.
    AuthorizationCodes {
        /// For the terminal.
        downlink: Otp,
        /// For the device to show.
        uplink: Otp,
    },
    /// To `Request::CheckAuthorization`.
    AuthorizationChecked {
        /// Whether all of it is right; never what is not.
        accepted: bool,
        /// Seals and sum of what that outcome writes.
        sealed: SealedRows,
    },
    /// To `Request::SignCheckpoint`: the note.
    Checkpoint(String),
    /// To `Request::ReadAnchor`: the note of most entries that one of our `audit` keys signed. Of which log it is, is
    /// for the front to judge. `None`: there is none.
    Anchor(Option<String>),
    /// To `Request::WriteAnchor`.
    AnchorWritten,
    /// To `Request::LedgerKey`: the version of `row` that it comes from, and the key, which comes from nothing else than
    /// that and the run. `None`: there is no such version.
    LedgerKey(Option<(u16, SecretBytes)>),
    /// To `Request::AuditKeys`: the newest first.
    AuditKeys(Vec<PublicKey>),
    /// To `Request::LoadKeys`: the newest versions that it has now.
    KeysLoaded(NewestKeys),
    /// To `Request::Renew`, in the order of the rows.
    Renewed {
        /// Their next versions.
        rows: Vec<RowBytes>,
        /// Seals and sum.
        sealed: SealedRows,
    },
    /// To `Request::TlsKeys`: the newest first.
    TlsKeys(Vec<PublicKey>),
    /// To `Request::SignHandshake`: ECDSA with P-256 and SHA-256, verified in the custodian with the key that was named. `None`:
    /// the token has no such key.
    HandshakeSigned(Option<Signature>),
}
