//! The labels, and every value each of them can have.

use std::fmt;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use crate::domain::audit::Event;

/// A label and its values.
macro_rules! label {
    ($(#[$about:meta])* $name:ident as $key:literal: $($variant:ident $value:literal,)+) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "the values say it, and docs/metrics.md")]
        pub enum $name { $($variant),+ }

        impl $name {
            /// Every value.
            pub fn all() -> impl Iterator<Item = Self> {
                [$(Self::$variant),+].into_iter()
            }

            /// The label's value.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $value),+ }
            }
        }

        impl EncodeLabelSet for $name {
            fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
                ($key, self.name()).encode(encoder.encode_label())
            }
        }
    };
}

label! {
    /// What a caller was told, in the request log's words.
    Verdict as "verdict":
    Ok "ok",
    Found "found",
    Enrolled "enrolled",
    Changed "changed",
    Deleted "deleted",
    Verified "verified",
    Resynced "resynced",
    Created "created",
    Approved "approved",
    Cancelled "cancelled",
    Rejected "rejected",
    VerificationFailed "verification-failed",
    Locked "locked",
    Invalid "invalid",
    Unauthenticated "unauthenticated",
    Forbidden "forbidden",
    NotFound "not-found",
    StateConflict "state-conflict",
    Expired "expired",
    IdempotencyMismatch "idempotency-mismatch",
    TooLarge "too-large",
    UnsupportedMediaType "unsupported-media-type",
    MethodNotAllowed "method-not-allowed",
    NotAcceptable "not-acceptable",
    Unavailable "unavailable",
    Entered "entered",
    Activated "activated",
    Rotated "rotated",
    RateLimited "rate-limited",
}

label! {
    /// What a custodian is asked.
    Operation as "operation":
    Health "health",
    Generate "generate",
    Import "import",
    ImportWrapped "import-wrapped",
    ImportKey "import-key",
    Residents "residents",
    DestroyResidents "destroy-residents",
    EncryptPinHash "encrypt-pin-hash",
    CheckOtp "check-otp",
    CheckSignature "check-signature",
    Seal "seal",
    Fingerprint "fingerprint",
    Sum "sum",
    Random "random",
    AttestationKeys "attestation-keys",
    VerifyAttestation "verify-attestation",
    FindGeneration "find-generation",
    TerminalCodes "terminal-codes",
    CheckEntry "check-entry",
    CheckRolling "check-rolling",
    OpenEpoch "open-epoch",
    PresentationCode "presentation-code",
    AuthorizationCodes "authorization-codes",
    CheckAuthorization "check-authorization",
    SignCheckpoint "sign-checkpoint",
    ReadAnchor "read-anchor",
    WriteAnchor "write-anchor",
    AuditKeys "audit-keys",
    LedgerKey "ledger-key",
    LoadKeys "load-keys",
    Renew "renew",
    TlsKeys "tls-keys",
    SignHandshake "sign-handshake",
}

label! {
    /// How asking the HSM ended.
    OperationEnd as "outcome":
    Answered "answered",
    Busy "busy",
    Unavailable "unavailable",
    Tampered "tampered",
    Missing "missing",
}

label! {
    /// Why a custodian was given up.
    Loss as "reason":
    NoHello "no-hello",
    Ended "ended",
    Deadline "deadline",
    HsmFailed "hsm-failed",
    Protocol "protocol",
}

label! {
    /// What was done about something that the HSM failed in.
    Remedied as "remedy":
    Repeat "repeat",
    NewSession "new-session",
    LogIn "log-in",
    NewProcess "new-process",
    GiveUp "give-up",
}

label! {
    /// Why a custodian that worked was replaced.
    Replacement as "reason":
    Unwraps "unwraps",
    Memory "memory",
    Stale "stale",
    Reload "reload",
}

label! {
    /// Why a custodian is not up.
    Away as "cause":
    Starting "starting",
    Configuration "configuration",
    Module "module",
    TokenAway "token-away",
    Login "login",
    PinRefused "pin-refused",
    Keys "keys",
    SelfTest "self-test",
    Hangs "hangs",
    Died "died",
    OtherKeys "other-keys",
    LacksKeys "lacks-keys",
    NoProcess "no-process",
    Lost "lost",
}

label! {
    /// What became of a commit.
    Commit as "outcome":
    Written "written",
    Conflict "conflict",
    Altered "altered",
    Busy "busy",
    Abandoned "abandoned",
    Unavailable "unavailable",
}

label! {
    /// What the store could not do.
    StoreError as "kind":
    DiskFull "disk-full",
    Begin "begin",
    Statement "statement",
    Commit "commit",
    Rollback "rollback",
    Read "read",
    Checkpoint "checkpoint",
}

label! {
    /// What became of a checkpoint.
    Checkpointing as "outcome":
    Anchored "anchored",
    Failed "failed",
}

label! {
    /// Why nothing was done for a request that was well.
    TurnedAway as "reason":
    NoRoom "no-room",
    TooLate "too-late",
    Gone "gone",
}

label! {
    /// How a TLS handshake ended.
    Handshake as "outcome":
    Done "done",
    Refused "refused",
    TimedOut "timed-out",
}

label! {
    /// Whose connections there are too many of.
    Whose as "whose":
    Tenant "tenant",
    Client "client",
    Nobody "nobody",
}

label! {
    /// Why a connection was ended from this side.
    Ended as "reason":
    Drained "drained",
    Idle "idle",
    Old "age",
    Changed "changed",
    Refused "refused",
}

label! {
    /// A certificate that expires, or a list.
    Certificate as "certificate":
    Server "server",
    ClientCa "client-ca",
    ClientCrls "client-crls",
}

/// A route of the API as its router has it, or `none`; never a path as a client wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Route {
    /// The pattern that the path matched.
    pub route: String,
}

/// What was asked of a route, and the status of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Exchange {
    method: &'static str,
    status: u16,
}

impl Exchange {
    /// Of a request with this method; a client may invent one, so those that no route has are `other`.
    pub fn of(method: &str, status: u16) -> Self {
        let known = ["GET", "POST", "DELETE"].into_iter().find(|known| *known == method);
        Self { method: known.unwrap_or("other"), status }
    }
}

/// A custodian's slot; who takes the place of one that was lost has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Custodian {
    /// From 0.
    pub custodian: u16,
}

/// A token's place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Token {
    /// From 0, which is the first one.
    pub token: usize,
}

impl EncodeLabelSet for Event {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        ("event", self.name()).encode(encoder.encode_label())
    }
}
