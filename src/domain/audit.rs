//! What the audit log keeps of each change: who, which, what became of it. Never a secret.

use super::caller::{ClientName, Tenant};
use super::id::{CredentialId, TransactionId};

/// Makes the enum of its variants, each with its name in the log: an event without one cannot be.
macro_rules! events {
    ($($(#[$about:meta])* $variant:ident $name:literal,)+) => {
        /// What happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Event {
            $($(#[$about])* $variant,)+
        }

        impl Event {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name in the log.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

events! {
    /// A credential was enrolled.
    Enrolled "credential.enrolled",
    /// A credential was deleted.
    Deleted "credential.deleted",
    /// A credential was suspended.
    Suspended "credential.suspended",
    /// A credential was resumed.
    Resumed "credential.resumed",
    /// Failures and locks of a credential and its account were cleared.
    Unlocked "credential.unlocked",
    /// A code was accepted.
    Verified "otp.verified",
    /// A code was wrong and charged.
    Refused "otp.refused",
    /// The code accepted last came again; refused, not charged.
    Repeated "otp.repeated",
    /// Two consecutive codes were found.
    Resynced "otp.resynced",
    /// Two codes were not found and charged.
    ResyncRefused "otp.resync_refused",
    /// A signature was verified.
    SignatureVerified "signature.verified",
    /// A signature was wrong; nothing is charged.
    SignatureRefused "signature.refused",
    /// A transaction was made.
    TransactionCreated "transaction.created",
    /// What was presented for a transaction was right.
    TransactionApproved "transaction.approved",
    /// What was presented for a transaction was wrong; it is still open.
    TransactionRefused "transaction.refused",
    /// What was presented for a transaction was wrong once too often.
    TransactionFailed "transaction.failed",
    /// The code accepted last came for a transaction; refused, not charged.
    TransactionRepeated "transaction.repeated",
    /// A transaction was taken back.
    TransactionCancelled "transaction.cancelled",
    /// A transaction's time was over first.
    TransactionExpired "transaction.expired",
    /// A window or an interval of a transaction's rule was cut off by a restart.
    TransactionInterrupted "transaction.interrupted",
    /// A code of several was entered for a transaction; what it is worth is not told.
    TransactionEntered "transaction.entered",
    /// A request came after a transaction's end, and its answer is remembered.
    TransactionEnded "transaction.ended",
    /// Rows past their time were removed.
    Pruned "store.pruned",
    /// A device asked for a code that its user presents.
    PresentationMade "presentation.made",
    /// What asked for one was not signed by the device; nothing is charged.
    PresentationRefused "presentation.refused",
    /// The user of a presented code declined a transaction.
    TransactionRejected "transaction.rejected",
    /// The authorization of a device was begun.
    AuthorizationBegun "authorization.begun",
    /// The message from the user's terminal came, and was right.
    UplinkSeen "authorization.uplink_seen",
    /// An attempt at an authorization was wrong.
    AuthorizationRefused "authorization.refused",
    /// A device was authorized for its account.
    Authorized "authorization.completed",
    /// The wall clock stepped; what depends on the time is refused from here on.
    ClockStepped "clock.stepped",
    /// An operator accepted the wall clock.
    ClockAccepted "clock.accepted",
    /// A rolling credential was bound to its terminal.
    Activated "rolling.activated",
    /// The identity key came again, and the first temporary code was handed out again.
    ActivationRepeated "rolling.activation_repeated",
    /// Another identity key came, and was charged.
    ActivationRefused "rolling.activation_refused",
    /// A temporary code was handed out again.
    CodeRepeated "rolling.code_repeated",
    /// A terminal said that it has its temporary code.
    CodeAcknowledged "rolling.code_acknowledged",
    /// A rotation's proof was wrong and charged.
    RotationRefused "rolling.rotation_refused",
    /// A rolling credential lost its terminal, and waits for its activation.
    Rebound "rolling.rebound",
    /// A password came for a transaction that is nobody's; nothing is charged.
    PasswordUnknown "rolling.password_unknown",
}

impl Event {
    /// The event of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|event| event.name() == name)
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
    /// Which transaction.
    pub transaction: Option<TransactionId>,
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
