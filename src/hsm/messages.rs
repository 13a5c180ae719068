//! What front and custodian say to each other: the only vocabulary they share.
//!
//! Each frame is a `u32` big-endian length (at most [`FRAME_BYTES_MAX`]) and that many bytes of
//! postcard: [`Call`] towards the custodian, [`Reply`] back. The first frame a custodian reads is
//! its [`Boot`], written by the supervisor; the first it writes is its [`Hello`].
//!
//! Any request may be asked again of another custodian: a custodian may have been lost before it did what it was asked,
//! or after. Most change nothing in the HSM, nor in a
//! custodian but which keys it knows: what is new in an answer (a seed, random bytes, an attestation, a checkpoint)
//! is then another one, and only the answer that is used counts. Two kinds do change it:
//!
//! * [`Request::WriteAnchor`] asks for an end, not for a step: if the token has that anchor already, it is done.
//! * What keeps a secret in the HSM ([`Custody::Resident`]) makes an object there, which nobody knows of until it is
//!   answered. A call that may have been worked on before says so ([`Call::repeated`]): the custodian then destroys what
//!   the first attempt left, and makes the object under the id's second ([`ObjectId::second`]). What is left of an attempt
//!   that came about later still is named by no row, and swept at the next start. To destroy what is gone already
//!   ([`Request::DestroyResidents`]) is no fault.

mod checks;

use std::path::PathBuf;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::domain::checkpoint::Checkpoint;
use crate::domain::credential::{EncryptedPinHash, ObjectId, StoredSecret};
use crate::domain::id::{CredentialId, PresentationId};
use crate::domain::idempotency::Fingerprint;
use crate::domain::otp::{Algorithm, Otp};
use crate::domain::rolling::LOOKUP_BYTES;
use crate::domain::row::{RowBytes, Seal, SealedBytes, TableSums};
use crate::domain::signer::PublicKey;
use crate::domain::signer::signature::Signature;
use crate::domain::system_key::NewestKeys;
use crate::domain::wrapped_seed::WrappedSeed;
use crate::secret::SecretBytes;

pub use checks::{
    Attest, AuthorizationStep, Candidate, CheckAuthorization, CheckEntry, CheckOtp, CheckRolling,
    CheckSignature, FindGeneration, RollingClaim,
};

/// The largest frame, in bytes, without its length.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// How many bytes of rows, and how many rows, a message that only checks them is to hold: others wait for it.
const PORTION_BYTES_MAX: usize = 48 * 1024;
const PORTION_ROWS_MAX: usize = 75;

/// How many ids a page of [`Response::Residents`] has.
pub const RESIDENTS_PAGE: usize = 2_000;

/// How many objects one message destroys at most: modules take milliseconds for each.
pub const DESTROYED_MAX: usize = 16;

/// The longest claims of an attestation, in bytes.
pub const CLAIMS_BYTES_MAX: usize = 4 * 1024;

/// Identifies release and wire format: processes of two releases never talk to each other.
pub const BUILD_ID: &str = concat!(env!("CARGO_PKG_VERSION"), "+wire.7");

/// What a custodian needs to know, and a front need not.
#[derive(Clone, Serialize, Deserialize)]
pub struct Boot {
    /// The PKCS#11 module to load.
    pub module: PathBuf,
    /// The token's label (never its slot: slots move).
    pub token_label: String,
    /// The file that holds the user PIN; custodians alone read it.
    pub pin_file: PathBuf,
    /// How many unwrapped secrets it may keep as session objects, and as many public keys.
    pub secrets_cached_max: usize,
}

/// A custodian that is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its [`BUILD_ID`].
    pub build_id: String,
    /// For the log: the token's label, manufacturer and model.
    pub token: String,
    /// The newest keys that it has: others may be newer since it looked.
    pub newest: NewestKeys,
}

/// A request with the number its reply will carry.
#[derive(Serialize, Deserialize)]
pub struct Call {
    /// Whether a custodian may have worked on it before. The first, so that [`repeated`] finds it.
    pub repeated: bool,
    /// Unique on its connection.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// The reply to the [`Call`] of the same number.
#[derive(Serialize, Deserialize)]
pub struct Reply {
    /// The call's number.
    pub id: u64,
    /// How long the custodian worked on it, in nanoseconds.
    pub busy_ns: u64,
    /// What came of it.
    pub result: Result<Response, Fault>,
}

/// What a custodian can be asked.
#[derive(Serialize, Deserialize)]
pub enum Request {
    /// Whether session and keys are usable: computes one HMAC. -> [`Response::Healthy`]
    Health,
    /// A new seed, generated in the HSM. -> [`Response::Secret`]
    Generate {
        /// The hash it is for: it is as long as the hash's output, rounded up to what key wrap takes
        /// (a multiple of 8 bytes) where it never leaves the HSM.
        algorithm: Algorithm,
        /// Whether the seed itself comes back, this once (`"export": "otpauth"`).
        export: bool,
        /// Where it is kept.
        custody: Custody,
    },
    /// A seed that came in the clear. -> [`Response::Secret`]
    Import {
        /// The hash it is for.
        algorithm: Algorithm,
        /// 16 to 64 bytes.
        seed: SecretBytes,
        /// Where it is kept.
        custody: Custody,
    },
    /// A page of the secrets that are objects, in the order of their ids. -> [`Response::Residents`]
    Residents {
        /// Those that come after this one; `None`: from the first.
        after: Option<ObjectId>,
    },
    /// Destroys secrets that are objects, as far as they are there. -> [`Response::Destroyed`]
    DestroyResidents {
        /// At most [`DESTROYED_MAX`].
        ids: Vec<ObjectId>,
        /// And as many of those that have no id: a crash left them, and no row can name them.
        nameless: bool,
    },
    /// A seed that came wrapped for the `import` key. -> [`Response::Imported`]
    ImportWrapped {
        /// The hash it is for.
        algorithm: Algorithm,
        /// What came.
        seed: WrappedSeed,
        /// How it is to be kept.
        custody: Custody,
    },
    /// The key that seeds are wrapped for. -> [`Response::ImportKey`]
    ImportKey,
    /// An OCRA token's PIN: it is hashed, and the hash encrypted. -> [`Response::PinHash`]
    EncryptPinHash {
        /// The credential it is for, which the ciphertext is bound to.
        id: CredentialId,
        /// The suite's hash of the PIN.
        hash: Algorithm,
        /// The PIN's text.
        pin: SecretBytes,
    },
    /// A code, or two consecutive ones, against candidates. -> [`Response::Checked`]
    CheckOtp(CheckOtp),
    /// A signature. -> [`Response::SignatureChecked`]
    CheckSignature(CheckSignature),
    /// Checks the seals of the rows that stand, seals those that come. -> [`Response::Sealed`]
    Seal(SealRows),
    /// The keyed fingerprints of a request, for its idempotency record. -> [`Response::Fingerprints`]
    Fingerprint(SecretBytes),
    /// The sums over rows, their seals checked. -> [`Response::Sum`]
    Sum(Vec<SealedBytes>),
    /// Bytes of the HSM's random generator, for nonces. -> [`Response::Random`]
    Random,
    /// The public halves of the `attest` keys. -> [`Response::AttestationKeys`]
    AttestationKeys,
    /// A signature that is said to be one of our `attest` keys'. -> [`Response::AttestationVerified`]
    VerifyAttestation {
        /// The key's RFC 7638 thumbprint.
        kid: String,
        /// SHA-256 of the JWS's signing input.
        digest: [u8; 32],
        /// r and s.
        signature: Signature,
    },
    /// The first generation of terminals' codes in which no two are equal. -> [`Response::Generation`]
    FindGeneration(FindGeneration),
    /// The codes of a pending transaction's terminals, to be sent. The rows' seals must be right: the first is the
    /// transaction, and its terminals' credentials are there in its order. -> [`Response::TerminalCodes`]
    TerminalCodes(Vec<SealedBytes>),
    /// What was entered of those codes. -> [`Response::EntryChecked`]
    CheckEntry(CheckEntry),
    /// What only the right one knows, of a rolling credential. -> [`Response::RollingChecked`]
    CheckRolling(CheckRolling),
    /// The open epoch of a rolling credential, while its temporary code may leave. -> [`Response::Epoch`]
    OpenEpoch {
        /// Rows whose seals must be right: the credential first, its state, and its binding. Without a binding the
        /// state has to be pending, and the epoch is the first.
        standing: Vec<SealedBytes>,
    },
    /// The code of a presentation. -> [`Response::PresentationCode`]
    PresentationCode {
        /// Its id.
        id: PresentationId,
        /// Its nonce.
        nonce: [u8; 32],
        /// The hash of the code, once it was made: the same code comes again, whatever key is the newest.
        code_hash: Option<[u8; 32]>,
    },
    /// Both codes of an authorization by SMS, of its row and its terminal's credential, which must be among these. ->
    /// [`Response::AuthorizationCodes`]
    AuthorizationCodes(Vec<SealedBytes>),
    /// A step of an authorization. -> [`Response::AuthorizationChecked`]
    CheckAuthorization(CheckAuthorization),
    /// The head of the log, to be signed by the newest `audit` key. -> [`Response::Checkpoint`]
    SignCheckpoint(Checkpoint),
    /// The anchor of the log. -> [`Response::Anchor`]
    ReadAnchor,
    /// A checkpoint's note, signed by one of our `audit` keys, as the anchor of the log. It must extend the one that is
    /// there: the same log or that of a token's first anchor, as many entries or more, with as many the same root. ->
    /// [`Response::AnchorWritten`]
    WriteAnchor {
        /// The note.
        note: String,
        /// Whatever is there: only after an operator accepted a database that was turned back.
        replace: bool,
    },
    /// The public halves of the `audit` keys. -> [`Response::AuditKeys`]
    AuditKeys,
    /// Looks for system keys that are new in the token; the newest are used from then on. -> [`Response::KeysLoaded`]
    LoadKeys,
    /// The next version of each of these rows, otherwise the same, under the newest keys: its secrets wrapped and its PIN
    /// hash encrypted anew, and a new seal. A binding needs its credential's state among them, which says its version. ->
    /// [`Response::Renewed`]
    Renew(Vec<SealedBytes>),
}

impl Request {
    /// The rows that a [`Fault::Seal`] names by their places.
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
            | Self::LoadKeys
            | Self::ReadAnchor
            | Self::WriteAnchor { .. }
            | Self::AuditKeys => &[],
        }
    }
}

/// Where a new secret is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Custody {
    /// Outside, wrapped under the newest `kek`.
    Wrapped,
    /// In the HSM, as a token object of this id; of its [`ObjectId::second`] if the call is repeated.
    Resident(ObjectId),
}

/// Rows to check, to take away and to seal.
#[derive(Serialize, Deserialize)]
pub struct SealRows {
    /// Rows whose seals must be right.
    pub standing: Vec<SealedBytes>,
    /// What becomes of them.
    pub outcome: Outcome,
}

/// What one outcome does to the stored rows.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Which of the standing rows it replaces or removes, by position: they leave the sum.
    pub replaces: Vec<u8>,
    /// The rows it writes: they are sealed and enter the sum.
    pub rows: Vec<RowBytes>,
}

/// What a custodian answers.
#[derive(Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::Health`].
    Healthy,
    /// To [`Request::Generate`] and [`Request::Import`].
    Secret {
        /// The seed, kept as it was to be.
        stored: StoredSecret,
        /// The seed itself, where it was asked for.
        exported: Option<SecretBytes>,
    },
    /// To [`Request::ImportWrapped`]: the seed as it is kept; `None`: nobody wrapped a seed like this for a key of
    /// ours. Never why.
    Imported(Option<StoredSecret>),
    /// To [`Request::ImportKey`]: the newest one's public half.
    ImportKey(PublicKey),
    /// To [`Request::Residents`].
    Residents {
        /// At most [`RESIDENTS_PAGE`]; fewer: there are no more.
        ids: Vec<ObjectId>,
        /// How many more have no id, whatever page this is.
        nameless: u32,
    },
    /// To [`Request::DestroyResidents`]: none of them is there any more.
    Destroyed {
        /// How many there were.
        objects: u32,
    },
    /// To [`Request::CheckOtp`].
    Checked {
        /// Which candidate matched; `None`: none did.
        matched: Option<u16>,
        /// Seals and sum of what that outcome writes; an attestation's seal is the last.
        sealed: SealedRows,
        /// The compact JWS, if one was asked for and the code accepted.
        attestation: Option<String>,
    },
    /// To [`Request::EncryptPinHash`].
    PinHash(EncryptedPinHash),
    /// To [`Request::CheckSignature`].
    SignatureChecked {
        /// Whether it is right.
        valid: bool,
        /// Seals and sum of what that outcome writes; an attestation's seal is the last.
        sealed: SealedRows,
        /// The compact JWS, if one was asked for and the signature is right.
        attestation: Option<String>,
    },
    /// To [`Request::Seal`].
    Sealed(SealedRows),
    /// To [`Request::Fingerprint`]: one for each version of `row`, the newest first.
    Fingerprints(Vec<Fingerprint>),
    /// To [`Request::Sum`].
    Sum(TableSums),
    /// To [`Request::Random`].
    Random([u8; 32]),
    /// To [`Request::AttestationKeys`]: the newest first.
    AttestationKeys(Vec<PublicKey>),
    /// To [`Request::VerifyAttestation`]: whether that key made it. An unknown one made nothing.
    AttestationVerified(bool),
    /// To [`Request::FindGeneration`].
    Generation(u32),
    /// To [`Request::TerminalCodes`]: in the transaction's order.
    TerminalCodes(Vec<Otp>),
    /// To [`Request::CheckEntry`].
    EntryChecked {
        /// Whether it is right, and so was everything before it in its round.
        right: bool,
        /// Seals and sum of what that outcome writes; an attestation's seal is the last.
        sealed: SealedRows,
        /// The compact JWS, if one was asked for and the round is right.
        attestation: Option<String>,
    },
    /// To [`Request::CheckRolling`].
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
    /// To [`Request::OpenEpoch`].
    Epoch(OpenedEpoch),
    /// To [`Request::PresentationCode`]: 16 bytes.
    PresentationCode(SecretBytes),
    /// To [`Request::AuthorizationCodes`].
    AuthorizationCodes {
        /// For the terminal.
        downlink: Otp,
        /// For the device to show.
        uplink: Otp,
    },
    /// To [`Request::CheckAuthorization`].
    AuthorizationChecked {
        /// Whether all of it is right; never what is not.
        accepted: bool,
        /// Seals and sum of what that outcome writes.
        sealed: SealedRows,
    },
    /// To [`Request::SignCheckpoint`]: the note.
    Checkpoint(String),
    /// To [`Request::ReadAnchor`]: the note of most entries that one of our `audit` keys signed. Of which log it is, is
    /// for the front to judge. `None`: there is none.
    Anchor(Option<String>),
    /// To [`Request::WriteAnchor`].
    AnchorWritten,
    /// To [`Request::AuditKeys`]: the newest first.
    AuditKeys(Vec<PublicKey>),
    /// To [`Request::LoadKeys`]: the newest versions that it has now.
    KeysLoaded(NewestKeys),
    /// To [`Request::Renew`], in the order of the rows.
    Renewed {
        /// Their next versions.
        rows: Vec<RowBytes>,
        /// Seals and sum.
        sealed: SealedRows,
    },
}

/// An open epoch, to be handed to its terminal.
#[derive(Serialize, Deserialize)]
pub struct OpenedEpoch {
    /// Which.
    pub epoch: u64,
    /// What its passwords begin with.
    pub lookup: [u8; LOOKUP_BYTES],
    /// T(`epoch`), 16 bytes.
    pub temporary_code: SecretBytes,
}

/// The seals of an outcome's rows, in their order, and how the sums over all rows change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedRows {
    /// One a row.
    pub seals: Vec<Seal>,
    /// To be added to the stored sums in the same commit.
    pub sum_change: TableSums,
}

/// Why a custodian did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Fault {
    /// A standing row's seal is wrong, or no key of its version exists: the row was tampered with.
    #[error("the seal of standing row {0} is wrong")]
    Seal(u8),
    /// A secret that is to be an object in the HSM, and is not, or not a whole one: the HSM has not failed.
    #[error("the HSM has no usable object {0}, labelled hsm-authd/secret")]
    Missing(ObjectId),
    /// The message makes no sense, or names a key that the HSM does not take: the HSM has not failed.
    #[error("the custodian does not understand: {0}")]
    Request(String),
    /// The HSM refused or failed; the text names function and return code, never a secret. The
    /// custodian that says so ends, and a fresh one takes its place.
    #[error("the HSM failed: {0}")]
    Hsm(String),
}

/// A frame that cannot be written or understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// More than [`FRAME_BYTES_MAX`].
    #[error("a message of {0} bytes is longer than a frame may be")]
    TooLong(usize),
    /// Not the encoding of such a message.
    #[error("a frame that holds no such message")]
    Malformed,
}

/// A message as a whole frame, length first. Zeroized on drop: it may hold a seed or a code.
///
/// # Errors
/// [`FrameError::TooLong`].
pub fn encode<T: Serialize>(message: &T) -> Result<Zeroizing<Vec<u8>>, FrameError> {
    // Sized first, so that no growing buffer leaves copies of a secret behind.
    let length = postcard::experimental::serialized_size(message).map_err(|_| FrameError::Malformed)?;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(length));
    }
    let mut frame = Zeroizing::new(vec![0; 4 + length]);
    let (header, body) = frame.split_at_mut(4);
    header.copy_from_slice(&(length as u32).to_be_bytes());
    postcard::to_slice(message, body).map_err(|_| FrameError::Malformed)?;
    Ok(frame)
}

/// The frame of the same [`Call`], now said to be repeated.
pub fn repeated(call: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut frame = Zeroizing::new(call.to_vec());
    if let Some(repeated) = frame.get_mut(4) {
        *repeated = 1;
    }
    frame
}

/// The length in bytes of the frame whose header this is.
///
/// # Errors
/// [`FrameError::TooLong`].
pub fn frame_length(header: [u8; 4]) -> Result<usize, FrameError> {
    match u32::from_be_bytes(header) as usize {
        length if length > FRAME_BYTES_MAX => Err(FrameError::TooLong(length)),
        length => Ok(length),
    }
}

/// The message of a frame's body.
///
/// # Errors
/// [`FrameError::Malformed`], also if bytes are left over.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(FrameError::Malformed),
    }
}

/// Rows to be checked, in portions for one message each, in their order; of no row there is one empty portion.
pub fn portions(rows: Vec<SealedBytes>) -> Vec<Vec<SealedBytes>> {
    let (mut portions, mut portion, mut portion_bytes) = (Vec::new(), Vec::new(), 0_usize);
    for row in rows {
        let bytes = row.message_bytes();
        let with_it = portion_bytes.saturating_add(bytes);
        if !portion.is_empty() && (with_it > PORTION_BYTES_MAX || portion.len() == PORTION_ROWS_MAX) {
            portions.push(std::mem::take(&mut portion));
            portion_bytes = 0;
        }
        portion_bytes = portion_bytes.saturating_add(bytes);
        portion.push(row);
    }
    portions.push(portion);
    portions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::row::Seal;
    use proptest::prelude::*;

    #[test]
    fn a_frame_is_its_length_and_its_message() {
        let frame = encode(&Call { repeated: false, id: 7, request: Request::Health }).unwrap();
        let (header, body) = frame.split_first_chunk::<4>().unwrap();
        assert_eq!(frame_length(*header), Ok(body.len()));
        let call: Call = decode(body).unwrap();
        assert!(call.id == 7 && matches!(call.request, Request::Health));
        assert_eq!(decode::<Call>(&[body, &[0]].concat()).err(), Some(FrameError::Malformed));
        let again = repeated(&frame);
        let again: Call = decode(&again[4..]).unwrap();
        assert!(again.repeated && again.id == 7 && matches!(again.request, Request::Health));
    }

    #[test]
    fn no_frame_is_longer_than_64_kib() {
        let seed = SecretBytes::new(vec![0; FRAME_BYTES_MAX]);
        let call = Call { repeated: true, id: 1, request: Request::Fingerprint(seed) };
        assert!(matches!(encode(&call), Err(FrameError::TooLong(_))));
        assert!(frame_length([0, 1, 0, 0]).is_ok());
        assert!(frame_length([0, 1, 0, 1]).is_err());
    }

    /// A row of so many bytes.
    fn row(bytes: usize) -> SealedBytes {
        let bytes = postcard::from_bytes(&postcard::to_stdvec(&vec![7u8; bytes]).unwrap()).unwrap();
        SealedBytes { bytes, seal: Seal { key_version: u16::MAX, mac: [0xff; 32] } }
    }

    #[test]
    fn of_no_row_there_is_one_portion() {
        assert_eq!(portions(Vec::new()).iter().map(Vec::len).collect::<Vec<_>>(), [0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn each_portion_fits_a_frame(
            lengths in prop::collection::vec(prop_oneof![0..300usize, 0..9_000usize], 0..200),
        ) {
            let portions = portions(lengths.iter().copied().map(row).collect());
            let told: Vec<_> = portions.iter().flatten().map(|row| row.bytes.as_bytes().len()).collect();
            prop_assert_eq!(&told, &lengths);
            for standing in portions {
                prop_assert!(standing.len() <= PORTION_ROWS_MAX);
                prop_assert!(!standing.is_empty() || lengths.is_empty());
                let request = Request::Seal(SealRows { standing, outcome: Outcome::default() });
                let frame = encode(&Call { repeated: false, id: u64::MAX, request });
                prop_assert!(frame.is_ok());
            }
        }

    }

    proptest! {
        #[test]
        fn decoding_never_panics(body: Vec<u8>) {
            let _ = decode::<Call>(&body).err();
            let _ = decode::<Reply>(&body).err();
            let _ = decode::<Boot>(&body).err();
        }
    }
}
