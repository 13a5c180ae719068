//! What the audit log keeps of each change: who, which, what became of it. Never a secret.

use super::caller::{ClientName, Tenant};
use super::id::CredentialId;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A credential was enrolled.
    Enrolled,
    /// A credential was deleted.
    Deleted,
    /// A credential was suspended.
    Suspended,
    /// A credential was resumed.
    Resumed,
    /// Failures and locks of a credential and its account were cleared.
    Unlocked,
    /// A code was accepted.
    Verified,
    /// A code was wrong and charged.
    Refused,
    /// The code accepted last came again; refused, not charged.
    Repeated,
    /// Two consecutive codes were found.
    Resynced,
    /// Two codes were not found and charged.
    ResyncRefused,
    /// A signature was verified.
    SignatureVerified,
    /// A signature was wrong; nothing is charged.
    SignatureRefused,
    /// Rows past their time were removed.
    Pruned,
    /// The wall clock stepped; what depends on the time is refused from here on.
    ClockStepped,
    /// An operator accepted the wall clock.
    ClockAccepted,
}

impl Event {
    /// All of them, in the order in which they are declared.
    pub const ALL: [Self; 15] = [
        Self::Enrolled,
        Self::Deleted,
        Self::Suspended,
        Self::Resumed,
        Self::Unlocked,
        Self::Verified,
        Self::Refused,
        Self::Repeated,
        Self::Resynced,
        Self::ResyncRefused,
        Self::SignatureVerified,
        Self::SignatureRefused,
        Self::Pruned,
        Self::ClockStepped,
        Self::ClockAccepted,
    ];

    /// The event of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.name() == name)
    }

    /// The name in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enrolled => "credential.enrolled",
            Self::Deleted => "credential.deleted",
            Self::Suspended => "credential.suspended",
            Self::Resumed => "credential.resumed",
            Self::Unlocked => "credential.unlocked",
            Self::Verified => "otp.verified",
            Self::Refused => "otp.refused",
            Self::Repeated => "otp.repeated",
            Self::Resynced => "otp.resynced",
            Self::ResyncRefused => "otp.resync_refused",
            Self::SignatureVerified => "signature.verified",
            Self::SignatureRefused => "signature.refused",
            Self::Pruned => "store.pruned",
            Self::ClockStepped => "clock.stepped",
            Self::ClockAccepted => "clock.accepted",
        }
    }
}

/// One entry, written in the same commit as the change it tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
    /// What.
    pub event: Event,
    /// For whom; `None` where the appliance itself acted.
    pub actor: Option<Actor>,
    /// Which credential.
    pub credential: Option<CredentialId>,
}

/// Who asked, and in which request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// The tenant.
    pub tenant: Tenant,
    /// The client.
    pub client: ClientName,
    /// The request's id, as in its answer and in the request log.
    pub request_id: String,
}
