//! What a custodian can be asked.

use serde::{Deserialize, Serialize};

use super::{
    CheckAuthorization, CheckEntry, CheckOtp, CheckRolling, CheckSignature, Custody, FindGeneration, SealRows,
};
use crate::domain::checkpoint::Checkpoint;
use crate::domain::credential::ObjectId;
use crate::domain::handshake::TranscriptHash;
use crate::domain::id::{CredentialId, PresentationId};
use crate::domain::otp::Algorithm;
use crate::domain::row::{Row, SealedBytes, Table};
use crate::domain::signer::PublicKey;
use crate::domain::signer::signature::Signature;
use crate::domain::system_key::KeyKind;
use crate::domain::time::RunId;
use crate::domain::wrapped_seed::WrappedSeed;
use crate::secret::SecretBytes;

/// What a custodian can be asked.
#[derive(Serialize, Deserialize)]
pub enum Request {
    /// Whether session and keys are usable: computes one HMAC. -> `Response::Healthy`
    Health,
    /// A new seed, generated in the HSM. -> `Response::Secret`
    Generate {
        /// The hash it is for: it is as long as the hash's output, rounded up to what key wrap takes
        /// (a multiple of 8 bytes) where it never leaves the HSM.
        algorithm: Algorithm,
        /// Whether the seed itself comes back, this once (`"export": "otpauth"`).
        export: bool,
        /// Where it is kept.
        custody: Custody,
    },
    /// A seed that came in the clear. -> `Response::Secret`
    Import {
        /// The hash it is for.
        algorithm: Algorithm,
        /// 16 to 64 bytes.
        seed: SecretBytes,
        /// Where it is kept.
        custody: Custody,
    },
    /// A page of the secrets that are objects, in the order of their ids. -> `Response::Residents`
    Residents {
        /// Those that come after this one; `None`: from the first.
        after: Option<ObjectId>,
    },
    /// Destroys secrets that are objects, as far as they are there. -> `Response::Destroyed`
    DestroyResidents {
        /// At most [`DESTROYED_MAX`](super::DESTROYED_MAX).
        ids: Vec<ObjectId>,
        /// And as many of those that have no id: a crash left them, and no row can name them.
        nameless: bool,
    },
    /// A seed that came wrapped for the `import` key. -> `Response::Imported`
    ImportWrapped {
        /// The hash it is for.
        algorithm: Algorithm,
        /// What came.
        seed: WrappedSeed,
        /// How it is to be kept.
        custody: Custody,
    },
    /// The key that seeds are wrapped for. -> `Response::ImportKey`
    ImportKey,
    /// An OCRA token's PIN: it is hashed, and the hash encrypted. -> `Response::PinHash`
    EncryptPinHash {
        /// The credential it is for, which the ciphertext is bound to.
        id: CredentialId,
        /// The suite's hash of the PIN.
        hash: Algorithm,
        /// The PIN's text.
        pin: SecretBytes,
    },
    /// A code, or two consecutive ones, against candidates. -> `Response::Checked`
    CheckOtp(CheckOtp),
    /// A signature. -> `Response::SignatureChecked`
    CheckSignature(CheckSignature),
    /// Checks the seals of the rows that stand, seals those that come. -> `Response::Sealed`
    Seal(SealRows),
    /// The keyed fingerprints of a request, for its idempotency record. -> `Response::Fingerprints`
    Fingerprint(SecretBytes),
    /// The sums over rows, their seals checked. -> `Response::Sum`
    Sum(Vec<SealedBytes>),
    /// Bytes of the HSM's random generator, for nonces. -> `Response::Random`
    Random,
    /// The public halves of the `attest` keys. -> `Response::AttestationKeys`
    AttestationKeys,
    /// A signature that is said to be one of our `attest` keys'. -> `Response::AttestationVerified`
    VerifyAttestation {
        /// The key's RFC 7638 thumbprint.
        kid: String,
        /// SHA-256 of the JWS's signing input.
        digest: [u8; 32],
        /// r and s.
        signature: Signature,
    },
    /// The first generation of terminals' codes in which no two are equal. -> `Response::Generation`
    FindGeneration(FindGeneration),
    /// The codes of a pending transaction's terminals, to be sent. The rows' seals must be right: the first is the
    /// transaction, and its terminals' credentials are there in its order. -> `Response::TerminalCodes`
    TerminalCodes(Vec<SealedBytes>),
    /// What was entered of those codes. -> `Response::EntryChecked`
    CheckEntry(CheckEntry),
    /// What only the right one knows, of a rolling credential. -> `Response::RollingChecked`
    CheckRolling(CheckRolling),
    /// The open epoch of a rolling credential, while its temporary code may leave. -> `Response::Epoch`
    OpenEpoch {
        /// Rows whose seals must be right: the credential first, its state, and its binding. Without a binding the
        /// state has to be pending, and the epoch is the first.
        standing: Vec<SealedBytes>,
    },
    /// The code of a presentation. -> `Response::PresentationCode`
    PresentationCode {
        /// Its id.
        id: PresentationId,
        /// Its nonce.
        nonce: [u8; 32],
        /// The hash of the code, once it was made: the same code comes again, whatever key is the newest.
        code_hash: Option<[u8; 32]>,
    },
    /// Both codes of an authorization by SMS, of its row and its terminal's credential, which must be among these. ->
    /// `Response::AuthorizationCodes`
    AuthorizationCodes(Vec<SealedBytes>),
    /// A step of an authorization. -> `Response::AuthorizationChecked`
    CheckAuthorization(CheckAuthorization),
    /// The head of the log, to be signed by the newest `audit` key. -> `Response::Checkpoint`
    SignCheckpoint(Checkpoint),
    /// The anchor of the log. -> `Response::Anchor`
    ReadAnchor,
    /// A checkpoint's note, signed by one of our `audit` keys, as the anchor of the log. It must extend the one that is
    /// there: the same log or that of a token's first anchor, as many entries or more, with as many the same root. ->
    /// `Response::AnchorWritten`
    WriteAnchor {
        /// The note.
        note: String,
        /// Whatever is there: only after an operator accepted a database that was turned back.
        replace: bool,
    },
    /// The public halves of the `audit` keys. -> `Response::AuditKeys`
    AuditKeys,
    /// The key that seals what the database says of itself in one run. -> `Response::LedgerKey`
    LedgerKey {
        /// Whose.
        run: RunId,
        /// The version of `row` that it comes from; `None`: the newest.
        key_version: Option<u16>,
    },
    /// Looks for system keys that are new in the token; the newest are used from then on. -> `Response::KeysLoaded`
    LoadKeys,
    /// The next version of each of these rows, otherwise the same, under the newest keys: its secrets wrapped and its PIN
    /// hash encrypted anew, and a new seal. A binding needs its credential's state among them, which says its version. ->
    /// `Response::Renewed`
    Renew(Vec<SealedBytes>),
    /// The public halves of the `tls` keys. -> `Response::TlsKeys`
    TlsKeys,
    /// The server's CertificateVerify of a handshake of TLS 1.3, and nothing else: its content is spelt by the custodian. ->
    /// `Response::HandshakeSigned`
    SignHandshake {
        /// Which `tls` key: the one that the certificate names.
        key: PublicKey,
        /// What of the handshake is signed.
        transcript: TranscriptHash,
    },
}

impl Request {
    /// Whether its answer tells what is not there, and by keys of which kind: only who knows the newest of that may say so.
    pub fn searches(&self) -> Option<KeyKind> {
        match self {
            Self::Fingerprint(_) | Self::PresentationCode { code_hash: Some(_), .. } => Some(KeyKind::Row),
            Self::VerifyAttestation { .. } | Self::AttestationKeys => Some(KeyKind::Attest),
            Self::ImportWrapped { .. } => Some(KeyKind::Import),
            // Not of what a key signs that is named itself: an older one goes on where a newer one is awaited.
            Self::TlsKeys => Some(KeyKind::Tls),
            Self::AuditKeys | Self::ReadAnchor | Self::WriteAnchor { .. } => Some(KeyKind::Audit),
            // Of what takes rows, they say by which keys they were made.
            _ => None,
        }
    }

    /// Whether it takes a secret that is an object: only the first token has those.
    pub fn names_objects(&self) -> bool {
        match self {
            Self::Residents { .. } | Self::DestroyResidents { .. } => true,
            Self::Generate { custody, .. }
            | Self::Import { custody, .. }
            | Self::ImportWrapped { custody, .. } => matches!(custody, Custody::Resident(_)),
            // They look at rows, and open no secret.
            Self::Seal(_) | Self::Sum(_) | Self::Renew(_) => false,
            _ => self.standing().iter().any(|row| match row.bytes.table() {
                Some(Table::Credential) => match row.bytes.decode() {
                    Some(Row::Credential(credential)) => {
                        credential.kind.secrets().any(|secret| secret.object().is_some())
                    }
                    _ => false,
                },
                _ => false,
            }),
        }
    }

    /// The rows that a [`Fault::Seal`](super::Fault::Seal) names by their places.
    pub fn standing(&self) -> &[SealedBytes] {
        match self {
            Self::CheckOtp(check) => &check.standing,
            Self::CheckSignature(check) => &check.standing,
            Self::Seal(rows) => &rows.standing,
            Self::Sum(rows)
            | Self::Renew(rows)
            | Self::TerminalCodes(rows)
            | Self::AuthorizationCodes(rows) => rows,
            Self::FindGeneration(find) => &find.standing,
            Self::CheckEntry(check) => &check.standing,
            Self::CheckRolling(check) => &check.standing,
            Self::OpenEpoch { standing } => standing,
            Self::CheckAuthorization(check) => &check.standing,
            Self::Health
            | Self::Generate { .. }
            | Self::Import { .. }
            | Self::ImportWrapped { .. }
            | Self::ImportKey
            | Self::Residents { .. }
            | Self::DestroyResidents { .. }
            | Self::EncryptPinHash { .. }
            | Self::Fingerprint(_)
            | Self::Random
            | Self::AttestationKeys
            | Self::VerifyAttestation { .. }
            | Self::PresentationCode { .. }
            | Self::SignCheckpoint(_)
            | Self::LedgerKey { .. }
            | Self::LoadKeys
            | Self::ReadAnchor
            | Self::WriteAnchor { .. }
            | Self::AuditKeys
            | Self::TlsKeys
            | Self::SignHandshake { .. } => &[],
        }
    }
}
