//! Checks of what somebody presented, with what each outcome would write.

use serde::{Deserialize, Serialize};

use super::Outcome;
use crate::domain::caller::Tenant;
use crate::domain::id::TransactionId;
use crate::domain::multi_terminal::Address;
use crate::domain::ocra::Challenge;
use crate::domain::otp::{Digits, Otp};
use crate::domain::row::{RowBytes, SealedBytes};
use crate::domain::signer::signature::Signature;
use crate::domain::verification::Factor;
use crate::secret::SecretBytes;

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
