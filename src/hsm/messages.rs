//! What front and custodian say to each other: the only vocabulary they share.
//!
//! Each frame is a `u32` big-endian length (at most [`FRAME_BYTES_MAX`]) and that many bytes of
//! postcard: [`Call`] towards the custodian, [`Reply`] back. The first frame a custodian reads is
//! its [`Boot`], written by the supervisor; the first it writes is its [`Hello`].
//!
//! No request changes anything in a custodian or in its HSM, so it may be asked again of another custodian. What is
//! new in an answer (a seed, random bytes, an attestation) is then another one; only the answer that is used counts.

use std::path::PathBuf;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::domain::caller::Tenant;
use crate::domain::credential::{EncryptedPinHash, WrappedSecret};
use crate::domain::id::{CredentialId, PresentationId, TransactionId};
use crate::domain::idempotency::Fingerprint;
use crate::domain::multi_terminal::Address;
use crate::domain::ocra::Challenge;
use crate::domain::otp::{Algorithm, Digits, Otp};
use crate::domain::rolling::LOOKUP_BYTES;
use crate::domain::row::{RowBytes, RowSum, Seal, SealedBytes};
use crate::domain::signer::PublicKey;
use crate::domain::signer::signature::Signature;
use crate::domain::verification::Factor;
use crate::secret::SecretBytes;

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

/// A code against candidates, with what every outcome would write.
#[derive(Serialize, Deserialize)]
pub struct CheckOtp {
    /// Rows whose seals must be right; the first is the credential, whose secret is used.
    pub standing: Vec<SealedBytes>,
    /// The codes: one, or consecutive ones that begin at a candidate.
    pub codes: Vec<Otp>,
    /// OCRA: the question that they answer.
    pub challenge: Option<Challenge>,
    /// In the order in which they are tried; the first match decides.
    pub candidates: Vec<Candidate>,
    /// What an accepted candidate writes besides its own row.
    pub accepted: Outcome,
    /// What a repeated one writes.
    pub repeated: Outcome,
    /// What is written when none matches.
    pub missed: Outcome,
    /// What is attested if a candidate is accepted: never on a repeat or a miss.
    pub attest: Option<Attest>,
}

/// A factor to try.
#[derive(Serialize, Deserialize)]
pub struct Candidate {
    /// What the code is computed from.
    pub factor: Factor,
    /// The rows that its acceptance writes, ahead of the others; `None`: it is a repeat.
    pub rows: Option<Vec<RowBytes>>,
}

/// A signature against a credential's key, with what either outcome would write.
#[derive(Serialize, Deserialize)]
pub struct CheckSignature {
    /// Rows whose seals must be right; the first is the credential, whose key is used.
    pub standing: Vec<SealedBytes>,
    /// SHA-256 of what is said to be signed.
    pub digest: [u8; 32],
    /// If that is a JWS: its header in base64url, as it came.
    pub jws_header: Option<String>,
    /// `None`: what was presented can be no signature by such a key.
    pub signature: Option<Signature>,
    /// What is written if it is right.
    pub accepted: Outcome,
    /// What is written if it is not.
    pub refused: Outcome,
    /// What is attested if it is right.
    pub attest: Option<Attest>,
}

/// Whose codes are to differ, and in what.
#[derive(Serialize, Deserialize)]
pub struct FindGeneration {
    /// Rows whose seals must be right; the credentials among them are the terminals.
    pub standing: Vec<SealedBytes>,
    /// The transaction's digest.
    pub digest: [u8; 32],
    /// The length of the codes.
    pub digits: Digits,
}

/// Codes of a transaction's terminals as they were entered, with what either outcome would write. What they have to
/// be follows from the transaction's row.
#[derive(Serialize, Deserialize)]
pub struct CheckEntry {
    /// As for [`Request::TerminalCodes`].
    pub standing: Vec<SealedBytes>,
    /// What was entered: of a whole round all codes, or the target; else one.
    pub codes: Vec<Otp>,
    /// Whether this is a whole round; else it is the next entry of the one that the row tells of.
    pub is_whole: bool,
    /// Whether it came in time: what did not is wrong, also if the codes are right.
    pub in_time: bool,
    /// What is written if it is right, and so was everything before it in its round.
    pub right: Outcome,
    /// What is written if not.
    pub wrong: Outcome,
    /// What is attested if it is right; only with what ends a round.
    pub attest: Option<Attest>,
}

/// Something that only the right one knows, against a rolling credential, with what either outcome would write.
#[derive(Serialize, Deserialize)]
pub struct CheckRolling {
    /// Rows whose seals must be right: the credential first, its state and its binding, and of a payment the
    /// transaction.
    pub standing: Vec<SealedBytes>,
    /// What is claimed.
    pub claim: RollingClaim,
    /// What is written if it is right. Of a payment the next binding comes behind these rows: it is made here, of the
    /// one that stands, which the outcome has to replace.
    pub accepted: Outcome,
    /// What is written if it is not.
    pub missed: Outcome,
    /// What is attested if it is right: of a payment, and of nothing else.
    pub attest: Option<Attest>,
}

/// What somebody claims to know.
#[derive(Serialize, Deserialize)]
pub enum RollingClaim {
    /// The temporary code of the open epoch and the identity code: the proof in a password for the attested
    /// transaction.
    Payment {
        /// 16 bytes.
        proof: SecretBytes,
    },
    /// The temporary code of this epoch: the open one, or the one before it.
    Rotation {
        /// Which.
        epoch: u64,
        /// 32 bytes.
        proof: SecretBytes,
    },
    /// The identity key, 32 bytes: asked for while epoch 1 is open and not acknowledged.
    IdentityKey(SecretBytes),
}

/// A step of an authorization, with what either outcome would write. What is right follows from the sealed rows alone.
#[derive(Serialize, Deserialize)]
pub struct CheckAuthorization {
    /// Rows whose seals must be right. The first is the credential of the device; the authorization is among the others,
    /// and so is the credential of its terminal, if it has one.
    pub standing: Vec<SealedBytes>,
    /// What is presented.
    pub step: AuthorizationStep,
    /// What is written if all of it is right.
    pub accepted: Outcome,
    /// What is written if anything is not.
    pub missed: Outcome,
}

/// What is presented for an authorization.
#[derive(Serialize, Deserialize)]
pub enum AuthorizationStep {
    /// The message from the terminal.
    Uplink {
        /// The code in it.
        code: Otp,
        /// Where it came from.
        from: Address,
    },
    /// What completes it.
    Completion {
        /// The code that was sent to the terminal, if there is one.
        code: Option<Otp>,
        /// SHA-256 of what is said to be signed.
        digest: [u8; 32],
        /// If that is a JWS: its header in base64url, as it came.
        jws_header: Option<String>,
        /// `None`: what was presented can be no signature by the device's key.
        signature: Option<Signature>,
    },
}

/// An attestation that comes with an accepted check, and with nothing else: no request has a custodian sign what
/// was not approved. Its row is the last that the check writes.
#[derive(Clone, Serialize, Deserialize)]
pub struct Attest {
    /// What is approved: pending, the credential's, and among the standing rows.
    pub transaction: TransactionId,
    /// Whose it is: the credential's, too.
    pub tenant: Tenant,
    /// The claims: a JSON object, at most [`CLAIMS_BYTES_MAX`].
    pub claims: Vec<u8>,
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
