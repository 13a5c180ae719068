//! The labels, and every value each of them can have.

use std::fmt;

use prometheus_client::encoding::{EncodeLabel, LabelSetEncoder};

use super::{FixedLabels, Labels};
use crate::domain::audit::Event;

/// A label and its values.
macro_rules! label {
    ($(#[$about:meta])* $name:ident as $key:literal: $($variant:ident $value:literal,)+) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the values say it, and docs/metrics.md")]
        pub enum $name { $($variant),+ }

        impl $name {
            const ALL: &[Self] = &[$(Self::$variant),+];

            /// The label's value.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $value),+ }
            }
        }

        impl Labels for $name {
            fn index(self) -> usize {
                self as usize
            }

            fn encode(self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
                ($key, self.name()).encode(encoder.encode_label())
            }
        }

        impl FixedLabels for $name {
            const COUNT: usize = Self::ALL.len();

            fn all() -> Vec<Self> {
                Self::ALL.to_vec()
            }
        }
    };
}

label! {
    /// A request's method.
    Method as "method":
    Get "GET",
    Post "POST",
    Delete "DELETE",
    Other "other",
}

label! {
    /// An answer's status.
    Status as "status":
    Ok "200",
    Created "201",
    BadRequest "400",
    Unauthorized "401",
    Forbidden "403",
    NotFound "404",
    MethodNotAllowed "405",
    Conflict "409",
    TooLarge "413",
    UnsupportedMediaType "415",
    Unprocessable "422",
    Locked "423",
    TooMany "429",
    Unavailable "503",
    Other "other",
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
    VerificationFailed "verification-failed",
    Locked "locked",
    Invalid "invalid",
    Unauthenticated "unauthenticated",
    Forbidden "forbidden",
    NotFound "not-found",
    StateConflict "state-conflict",
    IdempotencyMismatch "idempotency-mismatch",
    TooLarge "too-large",
    UnsupportedMediaType "unsupported-media-type",
    MethodNotAllowed "method-not-allowed",
    Unavailable "unavailable",
}

label! {
    /// What a custodian is asked.
    Operation as "operation":
    Health "health",
    Generate "generate",
    Import "import",
    EncryptPinHash "encrypt-pin-hash",
    CheckOtp "check-otp",
    CheckSignature "check-signature",
    Seal "seal",
    Fingerprint "fingerprint",
    Sum "sum",
}

label! {
    /// How asking the HSM ended.
    OperationEnd as "outcome":
    Answered "answered",
    Busy "busy",
    Unavailable "unavailable",
    Tampered "tampered",
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
    /// What became of a commit.
    Commit as "outcome":
    Written "written",
    Conflict "conflict",
    Busy "busy",
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
    /// How a TLS handshake ended.
    Handshake as "outcome":
    Done "done",
    Refused "refused",
    TimedOut "timed-out",
}

label! {
    /// A certificate that expires.
    Certificate as "certificate":
    Server "server",
    ClientCa "client-ca",
}

impl Method {
    /// That of this name.
    pub fn of(method: &str) -> Self {
        let known = Self::ALL.iter().find(|known| known.name() == method);
        known.copied().unwrap_or(Self::Other)
    }
}

impl Status {
    /// That of this number.
    pub fn of(status: u16) -> Self {
        match status {
            200 => Self::Ok,
            201 => Self::Created,
            400 => Self::BadRequest,
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            404 => Self::NotFound,
            405 => Self::MethodNotAllowed,
            409 => Self::Conflict,
            413 => Self::TooLarge,
            415 => Self::UnsupportedMediaType,
            422 => Self::Unprocessable,
            423 => Self::Locked,
            429 => Self::TooMany,
            503 => Self::Unavailable,
            _ => Self::Other,
        }
    }
}

/// A route of the API as it is written in its table, or none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    index: usize,
    name: &'static str,
}

impl Route {
    /// These routes, and behind them the one for requests that match none.
    pub fn list(names: impl IntoIterator<Item = &'static str>) -> Vec<Self> {
        let names = names.into_iter().chain(["none"]);
        names.enumerate().map(|(index, name)| Self { index, name }).collect()
    }

    /// The one that was matched.
    pub fn of(list: &[Self], matched: Option<&str>) -> Self {
        let known = matched.and_then(|path| list.iter().find(|route| route.name == path));
        known.or(list.last()).copied().unwrap_or(Self { index: 0, name: "none" })
    }
}

impl Labels for Route {
    fn index(self) -> usize {
        self.index
    }

    fn encode(self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        ("route", self.name).encode(encoder.encode_label())
    }
}

/// A custodian's slot; who takes the place of one that was lost has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Custodian(pub u16);

impl Labels for Custodian {
    fn index(self) -> usize {
        usize::from(self.0)
    }

    fn encode(self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        ("custodian", self.0).encode(encoder.encode_label())
    }
}

impl Labels for Event {
    fn index(self) -> usize {
        self as usize
    }

    fn encode(self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        ("event", self.name()).encode(encoder.encode_label())
    }
}

impl FixedLabels for Event {
    const COUNT: usize = Self::ALL.len();

    fn all() -> Vec<Self> {
        Self::ALL.to_vec()
    }
}
