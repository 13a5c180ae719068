//! What the audit log keeps of each change: who, which, what became of it. Never a secret.

use std::fmt;

use super::caller::{ClientName, Tenant};
use super::enc::enc;
use super::id::{CredentialId, TransactionId};
use super::log::TreeHash;
use super::row::{RowKey, Table};

pub mod succession;
mod verdict;

pub use verdict::Verdict;

/// What every leaf begins with.
const LEAF: &str = "hsm-authd/audit/v1";

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
    /// The service started on what it had ended on.
    Started "service.started",
    /// The service started after an end that it had not written down: what was committed last may be lost.
    StartedUnclean "service.started_unclean",
    /// The service ended.
    Stopped "service.stopped",
    /// An operator accepted a database that was turned back.
    Recovered "store.recovered",
    /// A credential was suspended because the database was turned back.
    CredentialRecovered "store.credential_recovered",
    /// A row was not what had been sealed.
    RowTampered "store.row_tampered",
    /// A newer version of a system key is used from here on.
    KeyRotated "keys.rotated",
    /// Rows were brought under the newest keys.
    Rewrapped "keys.rewrapped",
    /// An old version of a system key was destroyed.
    KeyRetired "keys.retired",
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
    /// More of it, for who reads the log: at most 256 characters. Never a secret, a code or an account.
    pub detail: Option<String>,
}

impl AuditEntry {
    /// Of what the appliance itself did.
    pub fn of_appliance(unix_ms: u64, event: Event) -> Self {
        Self { unix_ms, event, actor: None, credential: None, transaction: None, detail: None }
    }
}

/// A row that a commit wrote or removed, as the log names it. Displays as `table:key:version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowMark {
    /// Its table.
    pub table: Table,
    /// [`RowKey::digest`].
    pub key: [u8; 16],
    /// Its version from then on; 0: it was removed.
    pub version: u64,
}

impl RowMark {
    /// Of a row that was written.
    pub fn written(key: &RowKey, version: u64) -> Self {
        Self { table: key.table(), key: key.digest(), version }
    }

    /// Of a row that was removed.
    pub fn removed(key: &RowKey) -> Self {
        Self::written(key, 0)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let (table, key, version) = (parts.next()?, parts.next()?, parts.next()?);
        let mark = Self {
            table: Table::parse(table)?,
            key: u128::from_str_radix(key, 16).ok()?.to_be_bytes(),
            version: version.parse().ok()?,
        };
        (mark.to_string() == text).then_some(mark)
    }
}

impl fmt::Display for RowMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:032x}:{}", self.table.name(), u128::from_be_bytes(self.key), self.version)
    }
}

/// All rows of a commit. Displays as their marks with commas between them; without any row, as nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowMarks(pub Vec<RowMark>);

impl RowMarks {
    /// `None` for any text that it does not display as.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" => Some(Self::default()),
            _ => text.split(',').map(RowMark::parse).collect::<Option<_>>().map(Self),
        }
    }
}

impl fmt::Display for RowMarks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, mark) in self.0.iter().enumerate() {
            if place > 0 {
                f.write_str(",")?;
            }
            write!(f, "{mark}")?;
        }
        Ok(())
    }
}

/// An entry in its place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Its number, from 1: it is leaf `seq` - 1.
    pub seq: u64,
    /// What happened.
    pub entry: AuditEntry,
    /// Which rows it changed.
    pub rows: RowMarks,
}

impl Logged {
    /// The hash of its leaf: of the encoding of all it says, as text, so that whoever reads it can compute it.
    pub fn leaf(&self) -> TreeHash {
        let AuditEntry { unix_ms, event, actor, credential, transaction, detail } = &self.entry;
        let actor = actor.as_ref();
        let parts = [
            LEAF.to_owned(),
            self.seq.to_string(),
            unix_ms.to_string(),
            event.name().to_owned(),
            actor.map_or_else(String::new, |actor| actor.tenant.as_str().to_owned()),
            actor.map_or_else(String::new, |actor| actor.client.as_str().to_owned()),
            actor.map_or_else(String::new, |actor| actor.request_id.clone()),
            credential.map_or_else(String::new, |id| id.to_string()),
            transaction.map_or_else(String::new, |id| id.to_string()),
            detail.clone().unwrap_or_default(),
            self.rows.to_string(),
        ];
        TreeHash::of_leaf(&enc(&parts.each_ref().map(|part| part.as_bytes())))
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    fn logged() -> Logged {
        let text = |text: &str| text.to_owned();
        let credential = CredentialId::from_random([7; 16]);
        Logged {
            seq: 12,
            entry: AuditEntry {
                unix_ms: 1_800_000_000_000,
                event: Event::Verified,
                actor: Some(Actor {
                    tenant: text("bank-a").try_into().unwrap(),
                    client: text("backend").try_into().unwrap(),
                    request_id: text("req_1"),
                }),
                credential: Some(credential),
                transaction: Some(TransactionId::from_random([8; 16])),
                detail: Some(text("more")),
            },
            rows: RowMarks(vec![
                RowMark::written(&RowKey::State(credential), 9),
                RowMark::removed(&RowKey::Binding(credential)),
            ]),
        }
    }

    #[test]
    fn a_leaf_is_the_hash_of_what_it_says() {
        let logged = logged();
        let rows = logged.rows.to_string();
        let key = HEXLOWER.encode(&RowKey::State(CredentialId::from_random([7; 16])).digest());
        assert_eq!(rows, format!("credential_state:{key}:9,binding:{key}:0"));
        let [credential, transaction] =
            [logged.entry.credential.unwrap().to_string(), logged.entry.transaction.unwrap().to_string()];
        let mut hash = Sha256::new().chain_update([0]);
        for part in [
            "hsm-authd/audit/v1",
            "12",
            "1800000000000",
            "otp.verified",
            "bank-a",
            "backend",
            "req_1",
            &credential,
            &transaction,
            "more",
            &rows,
        ] {
            hash.update((part.len() as u32).to_be_bytes());
            hash.update(part);
        }
        assert_eq!(logged.leaf(), TreeHash(hash.finalize().into()));
    }

    #[test]
    fn a_leaf_binds_every_part() {
        let leaf = logged().leaf();
        let changes: [fn(&mut Logged); 9] = [
            |logged| logged.seq += 1,
            |logged| logged.entry.unix_ms += 1,
            |logged| logged.entry.event = Event::Refused,
            |logged| logged.entry.actor = None,
            |logged| logged.entry.credential = None,
            |logged| logged.entry.transaction = None,
            |logged| logged.entry.detail = None,
            |logged| logged.rows.0.clear(),
            |logged| logged.rows.0[0].version += 1,
        ];
        for change in changes {
            let mut other = logged();
            change(&mut other);
            assert_ne!(other.leaf(), leaf);
        }
    }

    proptest! {
        #[test]
        fn marks_have_one_spelling(table in 0..Table::ALL.len(), key: [u8; 16], version: u64, text in ".{0,60}") {
            let marks = RowMarks(vec![RowMark { table: Table::ALL[table], key, version }; 2]);
            prop_assert_eq!(RowMarks::parse(&marks.to_string()), Some(marks));
            if let Some(marks) = RowMarks::parse(&text) {
                prop_assert_eq!(marks.to_string(), text);
            }
        }
    }

    #[test]
    fn what_is_no_mark_is_refused() {
        assert_eq!(RowMarks::parse(""), Some(RowMarks::default()));
        for text in [
            ",",
            "account:00112233445566778899aabbccddeeff:1,",
            "account:112233445566778899aabbccddeeff:1",
            "account:00112233445566778899aabbccddeeff:01",
            "account:+011223344556677:1",
            "other:00112233445566778899aabbccddeeff:1",
            "account:00112233445566778899aabbccddeeff:1:1",
            "account:00112233445566778899aabbccddeeff",
            "account:00112233445566778899aabbccddeefA:1",
        ] {
            assert_eq!(RowMarks::parse(text), None, "{text}");
        }
    }
}
