//! What front and custodian say to each other: the only vocabulary they share.
//!
//! Each frame is a `u32` big-endian length (at most [`FRAME_BYTES_MAX`]) and that many bytes of
//! postcard: [`Call`] towards the custodian, [`Reply`] back. The first frame a custodian reads is
//! its [`Boot`], written by the supervisor; the first it writes is its [`Hello`].
//!
//! No request changes anything in a custodian or in its HSM, so it may be asked again of another custodian. What is
//! new in an answer (a seed, random bytes, an attestation) is then another one; only the answer that is used counts.

mod checks;

use std::path::PathBuf;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::domain::credential::{EncryptedPinHash, WrappedSecret};
use crate::domain::id::{CredentialId, PresentationId};
use crate::domain::idempotency::Fingerprint;
use crate::domain::otp::{Algorithm, Otp};
use crate::domain::rolling::LOOKUP_BYTES;
use crate::domain::row::{RowBytes, RowSum, Seal, SealedBytes};
use crate::domain::signer::PublicKey;
use crate::domain::signer::signature::Signature;
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

/// The longest claims of an attestation, in bytes.
pub const CLAIMS_BYTES_MAX: usize = 4 * 1024;

/// Identifies release and wire format: processes of two releases never talk to each other.
pub const BUILD_ID: &str = concat!(env!("CARGO_PKG_VERSION"), "+wire.4");

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
}

/// A request with the number its reply will carry.
#[derive(Serialize, Deserialize)]
pub struct Call {
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
    },
    /// A seed that came in the clear. -> [`Response::Secret`]
    Import {
        /// The hash it is for.
        algorithm: Algorithm,
        /// 16 to 64 bytes.
        seed: SecretBytes,
    },
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
    /// The keyed fingerprint of a request, for its idempotency record. -> [`Response::Fingerprint`]
    Fingerprint(SecretBytes),
    /// The sum over rows, their seals checked. -> [`Response::Sum`]
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
    /// The code of a presentation: the same whenever it is asked for. -> [`Response::PresentationCode`]
    PresentationCode {
        /// Its id.
        id: PresentationId,
        /// Its nonce.
        nonce: [u8; 32],
    },
    /// Both codes of an authorization by SMS, of its row and its terminal's credential, which must be among these. ->
    /// [`Response::AuthorizationCodes`]
    AuthorizationCodes(Vec<SealedBytes>),
    /// A step of an authorization. -> [`Response::AuthorizationChecked`]
    CheckAuthorization(CheckAuthorization),
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
        /// The seed under the `kek`.
        wrapped: WrappedSecret,
        /// The seed itself, where it was asked for.
        exported: Option<SecretBytes>,
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
    /// To [`Request::Fingerprint`].
    Fingerprint(Fingerprint),
    /// To [`Request::Sum`].
    Sum(RowSum),
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

/// The seals of an outcome's rows, in their order, and how the sum over all rows changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedRows {
    /// One a row.
    pub seals: Vec<Seal>,
    /// To be added to the stored sum in the same commit.
    pub sum_change: RowSum,
}

/// Why a custodian did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Fault {
    /// A standing row's seal is wrong, or no key of its version exists: the row was tampered with.
    #[error("the seal of standing row {0} is wrong")]
    Seal(u8),
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
        let frame = encode(&Call { id: 7, request: Request::Health }).unwrap();
        let (header, body) = frame.split_first_chunk::<4>().unwrap();
        assert_eq!(frame_length(*header), Ok(body.len()));
        let call: Call = decode(body).unwrap();
        assert!(call.id == 7 && matches!(call.request, Request::Health));
        assert_eq!(decode::<Call>(&[body, &[0]].concat()).err(), Some(FrameError::Malformed));
    }

    #[test]
    fn no_frame_is_longer_than_64_kib() {
        let seed = SecretBytes::new(vec![0; FRAME_BYTES_MAX]);
        let call = Call { id: 1, request: Request::Fingerprint(seed) };
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
                let frame = encode(&Call { id: u64::MAX, request });
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
