//! What front and custodian say to each other: the only vocabulary they share.
//!
//! Each frame is a `u32` big-endian length (at most [`FRAME_BYTES_MAX`]) and that many bytes of
//! postcard: [`Call`] towards the custodian, [`Reply`] back. The first frame a custodian reads is
//! its [`Boot`], written by the supervisor; the first that it writes are its [`Greeting`]s.
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
mod event;
mod failure;
mod frame;
mod greeting;
mod portions;
mod request;
mod response;

use std::ffi::CString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::domain::credential::ObjectId;
use crate::domain::rolling::LOOKUP_BYTES;
use crate::domain::row::{RowBytes, Seal, SealedBytes, TableSums};
use crate::domain::system_key::NewestKeys;
use crate::sandbox::Reach;
use crate::secret::SecretBytes;

pub use checks::{
    Attest, AuthorizationStep, Candidate, CheckAuthorization, CheckEntry, CheckOtp, CheckRolling,
    CheckSignature, FindGeneration, RollingClaim,
};
pub use event::{CustodianEvent, StartFailed};
pub use failure::{Failure, Remedy};
pub use frame::{FRAME_BYTES_MAX, FrameError, decode, encode, frame_length, repeated};
pub use greeting::{Down, DownCause, Greeting, Hello, PinFile, Step};
pub use portions::portions;
pub use request::Request;
pub use response::Response;

/// How many ids a page of [`Response::Residents`] has.
pub const RESIDENTS_PAGE: usize = 2_000;

/// How many objects one message destroys at most: modules take milliseconds for each.
pub const DESTROYED_MAX: usize = 16;

/// The longest claims of an attestation, in bytes.
pub const CLAIMS_BYTES_MAX: usize = 4 * 1024;

/// Identifies release and wire format: processes of two releases never talk to each other.
pub const BUILD_ID: &str = concat!(env!("CARGO_PKG_VERSION"), "+wire.14");

/// What a custodian needs to know, and a front need not.
#[derive(Clone, Serialize, Deserialize)]
pub struct Boot {
    /// The PKCS#11 module to load.
    pub module: PathBuf,
    /// What it is told at `C_Initialize`.
    pub module_arguments: Option<CString>,
    /// The token's label (never its slot: slots move).
    pub token_label: String,
    /// The file that holds the user PIN; custodians alone read it.
    pub pin_file: PathBuf,
    /// Whether it is open beside this message: who may read it did so, and this process may not.
    pub pin_handed: bool,
    /// The PIN with which a start was cut off while it logged in: nobody knows whether the token refused it. It is not tried
    /// again if the token says that it has refused one.
    pub pin_cut_off: Option<PinFile>,
    /// How many unwrapped secrets it may keep as session objects, and as many public keys.
    pub secrets_cached_max: usize,
    /// Whether there is a database of what this token's keys sealed. It decides what an operator is told of a key that is
    /// missing, and nothing else.
    pub in_use: bool,
    /// After about so many secrets unwrapped and public keys made it says that it is tired ([`Tired::Unwraps`]).
    pub unwraps_max: u64,
    /// With more memory than this, in bytes, it says that it is tired ([`Tired::Memory`]).
    pub memory_bytes_max: u64,
    /// Whether `kek`, `row` and `data` may be keys that are in other tokens too.
    pub shared_keys: bool,
    /// What its module may reach.
    pub reach: Reach,
}

/// Why a custodian asks to be replaced. It goes on until it is: nothing is wrong with what it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tired {
    /// It has unwrapped as much as [`Boot::unwraps_max`] says: modules lose memory with each.
    Unwraps,
    /// It has more memory than [`Boot::memory_bytes_max`].
    Memory,
    /// Its module does not show it a key that others have seen.
    Stale,
}

/// What tells two keys apart, and says next to nothing of either: 16 bytes.
pub type KeyCheck = [u8; 16];

/// A request with the number its reply will carry.
#[derive(Serialize, Deserialize)]
pub struct Call {
    /// Whether a custodian may have worked on it before. The first, so that [`repeated`] finds it.
    pub repeated: bool,
    /// Unique on its connection.
    pub id: u64,
    /// The newest keys that the front knows of, which what is asked about may have been made with: who has not seen them
    /// yet looks for them first, or says so ([`Fault::Later`]), and never that it is nothing.
    pub newest: NewestKeys,
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
    /// The newest keys that it has, if there are newer ones than it told of last.
    pub newest: Option<NewestKeys>,
    /// Whether it is to be replaced, and why; from then on it says so each time.
    pub tired: Option<Tired>,
    /// What the HSM failed in on the way and this custodian healed: by which remedy, each time.
    pub healed: Vec<Remedy>,
    /// What came of it.
    pub result: Result<Response, Fault>,
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
    /// It takes a key that is not known here, and the token was looked through a moment ago: whoever asks again is told
    /// what it is.
    #[error("a key that the custodian does not know: it looks for it in a moment")]
    Later,
    /// A secret that is to be an object in the HSM, and is not, or not a whole one: the HSM has not failed.
    #[error("the HSM has no usable object {0}, labelled hsm-authd/secret")]
    Missing(ObjectId),
    /// The message makes no sense, or names a key that the HSM does not take: the HSM has not failed.
    #[error("the custodian does not understand: {0}")]
    Request(String),
    /// The HSM refused or failed; the text names function and return code, never a secret. The
    /// custodian that says so ends, and a fresh one takes its place.
    #[error("the HSM failed: {0}")]
    Hsm(Failure),
}

impl Fault {
    /// A failure that a fresh process may not have ([`Failure::new`]).
    pub fn hsm(what: impl Into<String>) -> Self {
        Self::Hsm(Failure::new(what))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::domain::system_key::{KeyKind, NewestKeys};

    /// As long as they can be.
    pub(crate) fn newest() -> NewestKeys {
        NewestKeys::new(KeyKind::ALL.map(|kind| (kind, u16::MAX)))
    }
}
