//! A transaction: what is to be approved, the bytes that every approval is made for, and its states.
//!
//! `pending` becomes one of `approved`, `rejected`, `failed`, `expired` or `cancelled`, and stays that. What it
//! says never changes.

mod state;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::account::AccountRef;
use super::caller::Tenant;
use super::enc::enc;
use super::id::{CredentialId, PresentationId, TransactionId};
use super::money::Money;
use super::multi_terminal::{MultiTerminal, Round};
use super::ocra::Suite;
use super::text::DisplayText;
use super::time::{Deadline, Now, rfc3339};

pub use state::{State, Step, StepError};

/// What the signing input begins with.
const DOMAIN: &[u8] = b"hsm-authd/transaction/v1";

/// How long a transaction may be open, in seconds.
pub const LIFETIME_S_MAX: u32 = 3_600;
/// How long it is open where nothing else is asked for, in seconds.
pub const LIFETIME_S_DEFAULT: u32 = 300;
/// How many wrong codes end it.
pub const CODES_MAX: u8 = 3;

/// A payee, an order or a platform.
pub type Label = DisplayText<128>;
/// What a user remarked.
pub type Remark = DisplayText<256>;

/// The row of a transaction: made once, and replaced by what its responses make of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// Its id.
    pub id: TransactionId,
    /// The tenant it belongs to.
    pub tenant: Tenant,
    /// 1 when made, one more with each change.
    pub version: u64,
    /// When it was made, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// How it is approved, and by what.
    pub method: Method,
    /// What is to be approved.
    pub terms: Terms,
    /// Until when, a whole second.
    pub expires: Deadline,
    /// What became of it.
    pub state: State,
    /// How many wrong responses end it.
    pub attempts_left: u8,
    /// When it reached its final state, milliseconds since 1970.
    pub ended_unix_ms: Option<u64>,
    /// What a WebAuthn authenticator said of itself when it approved.
    pub authenticator: Option<AuthenticatorReport>,
    /// What its method keeps besides.
    pub progress: Progress,
}

/// What a method keeps of a transaction besides its state. Stored in sealed rows: variants go to the end, their fields
/// never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    /// Nothing.
    None,
    /// How far the entry of codes has come.
    Entry(Round),
    /// Who approved, where only the response tells.
    Approver(Approver),
}

/// Who approved by a rolling password. In sealed rows: its fields never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approver {
    /// Whose password it was.
    pub credential: CredentialId,
    /// The account that the credential speaks for.
    pub account: AccountRef,
    /// The epoch that it used up.
    pub epoch: u64,
}

/// How a transaction is approved. Stored in sealed rows: variants go to the end, their fields never change.
///
/// What a credential says of itself is copied here when the transaction is made, and stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    /// A dynamic password (seed A): an OCRA token answers a question derived from the transaction.
    ChallengeResponse {
        /// The token.
        credential: CredentialId,
        /// Its suite.
        suite: Suite,
    },
    /// An external security device (seed D).
    DeviceSignature {
        /// The device.
        credential: CredentialId,
        /// What it makes.
        device: Device,
    },
    /// Codes sent to several terminals (seed E).
    MultiTerminal(MultiTerminal),
    /// A rolling password (seed B), which tells whose it is.
    RollingPassword,
    /// A string that the payer presented (seed C).
    PresentedCode {
        /// The presentation.
        presentation: PresentationId,
        /// The device that presented it.
        credential: CredentialId,
        /// The account that the device speaks for.
        account: AccountRef,
    },
}

/// What a security device makes. Stored in sealed rows, likewise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Device {
    /// A signature over the signing input.
    Signature,
    /// A WebAuthn assertion, whose challenge is the digest.
    Assertion,
    /// A dynamic-password signature: the code of an OCRA token with this suite.
    Ocra(Suite),
}

/// What a WebAuthn authenticator says besides its signature (WebAuthn, section 6.1), in JSON and in sealed rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthenticatorReport {
    /// Its signature counter; 0 where it has none.
    pub sign_count: u32,
    /// BE: its key may be backed up, so that more than one device can have it.
    pub backup_eligible: bool,
    /// BS: its key is backed up.
    pub backed_up: bool,
}

/// What is to be approved: what people read, and what makes it unlike any other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Whose money it is; `None` for methods whose response tells.
    pub payer: Option<AccountRef>,
    /// Who is to have it.
    pub payee: Label,
    /// How much.
    pub money: Money,
    /// The order or demand.
    pub order: Label,
    /// The trading platform.
    pub platform: Option<Label>,
    /// The user's remark.
    pub remark: Option<Remark>,
    /// The transaction that this one follows (the second leg of seed A).
    pub parent: Option<Parent>,
    /// 32 bytes from the HSM: no two transactions are alike.
    pub nonce: [u8; 32],
}

/// The approved transaction that another one commits to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Its id, as in the attestation's `jti`.
    pub id: TransactionId,
    /// SHA-256 of its attestation's compact JWS.
    pub hash: [u8; 32],
}

impl Method {
    /// The name of one.
    pub const MULTI_TERMINAL: &'static str = "multi_terminal";

    /// As in JSON, and in the signing input.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ChallengeResponse { .. } => "challenge_response",
            Self::DeviceSignature { .. } => "device_signature",
            Self::MultiTerminal(_) => Self::MULTI_TERMINAL,
            Self::RollingPassword => "rolling_password",
            Self::PresentedCode { .. } => "presented_code",
        }
    }

    /// The credential that has to respond, if it is one and is known.
    pub fn credential(&self) -> Option<CredentialId> {
        match self {
            Self::ChallengeResponse { credential, .. }
            | Self::DeviceSignature { credential, .. }
            | Self::PresentedCode { credential, .. } => Some(*credential),
            Self::MultiTerminal(_) | Self::RollingPassword => None,
        }
    }

    /// Whether a response of this credential can approve.
    pub fn takes(&self, id: CredentialId) -> bool {
        match self {
            Self::MultiTerminal(method) => method.terminals.iter().any(|frozen| frozen.credential == id),
            // Whose password it is, the password tells.
            Self::RollingPassword => true,
            _ => self.credential() == Some(id),
        }
    }

    /// The suite of the OCRA token that has to respond, if it is one.
    pub fn suite(&self) -> Option<&Suite> {
        match self {
            Self::ChallengeResponse { suite, .. }
            | Self::DeviceSignature { device: Device::Ocra(suite), .. } => Some(suite),
            Self::DeviceSignature { .. }
            | Self::MultiTerminal(_)
            | Self::RollingPassword
            | Self::PresentedCode { .. } => None,
        }
    }
}

impl Transaction {
    /// The account that approves it, once that is known.
    pub fn account(&self) -> Option<&AccountRef> {
        match (&self.method, &self.progress) {
            (Method::PresentedCode { account, .. }, _) => Some(account),
            (_, Progress::Approver(approver)) => Some(&approver.account),
            _ => self.terms.payer.as_ref(),
        }
    }

    /// The credential that approves it, if it is one and is known.
    pub fn credential(&self) -> Option<CredentialId> {
        match &self.progress {
            Progress::Approver(approver) => Some(approver.credential),
            _ => self.method.credential(),
        }
    }

    /// The same, approved by somebody of whom only the response told.
    pub fn approved_by(self, approver: Approver) -> Self {
        Self { progress: Progress::Approver(approver), ..self }
    }

    /// When it expires, RFC 3339 in UTC.
    pub fn expires_at(&self) -> String {
        rfc3339(self.expires.unix_ms())
    }

    /// The bytes that a device signs: tenant, id, method and terms, each with its length before it. Any other
    /// transaction has others.
    pub fn signing_input(&self) -> Vec<u8> {
        let Terms { payer, payee, money, order, platform, remark, parent, nonce } = &self.terms;
        let hex = |bytes: &[u8; 32]| data_encoding::HEXLOWER.encode(bytes);
        let parent = parent.as_ref().map(|parent| hex(&parent.hash)).unwrap_or_default();
        enc(&[
            DOMAIN,
            self.tenant.as_str().as_bytes(),
            self.id.to_string().as_bytes(),
            self.method.name().as_bytes(),
            payer.as_ref().map_or("", AccountRef::as_str).as_bytes(),
            payee.as_str().as_bytes(),
            money.amount().as_bytes(),
            money.currency().as_bytes(),
            order.as_str().as_bytes(),
            platform.as_ref().map_or("", DisplayText::as_str).as_bytes(),
            remark.as_ref().map_or("", DisplayText::as_str).as_bytes(),
            parent.as_bytes(),
            self.expires_at().as_bytes(),
            hex(nonce).as_bytes(),
        ])
    }

    /// SHA-256 of the signing input: D.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.signing_input()).into()
    }
}

/// The deadline of a transaction made now: `lifetime_s` seconds after the present second began, so that it is
/// a whole second, as its text says.
pub fn deadline(now: &Now, lifetime_s: u32) -> Deadline {
    let lifetime_ms = u64::from(lifetime_s).saturating_mul(1_000);
    Deadline::after(now, lifetime_ms.saturating_sub(now.unix_ms % 1_000))
}

#[cfg(test)]
pub(in crate::domain) mod tests {
    use super::*;
    use crate::domain::time::{BootId, RunId};

    pub fn at(unix_ms: u64) -> Now {
        Now {
            unix_ms,
            boot_ms: unix_ms,
            boot_id: BootId([1; 16]),
            run: RunId([0; 16]),
            trusted: true,
            floor: Default::default(),
        }
    }

    /// The one of `tests/vectors/transaction.json`.
    pub fn golden() -> Transaction {
        let now = at(1_893_455_700_000);
        Transaction {
            id: TransactionId::from_random(1u128.to_be_bytes()),
            tenant: Tenant::try_from("bank-a".to_owned()).unwrap(),
            version: 1,
            created_unix_ms: now.unix_ms,
            method: Method::ChallengeResponse {
                credential: CredentialId::from_random([7; 16]),
                suite: Suite::parse("OCRA-1:HOTP-SHA256-8:QH64").unwrap(),
            },
            terms: Terms {
                payer: Some(AccountRef::try_from("acct-0001".to_owned()).unwrap()),
                payee: "DE89370400440532013000".to_owned().try_into().unwrap(),
                money: Money::new("1250.00", "EUR").unwrap(),
                order: "order-77".to_owned().try_into().unwrap(),
                platform: None,
                remark: None,
                parent: None,
                nonce: [0x20; 32],
            },
            expires: deadline(&now, 300),
            state: State::Pending,
            attempts_left: CODES_MAX,
            ended_unix_ms: None,
            authenticator: None,
            progress: Progress::None,
        }
    }

    #[test]
    fn the_golden_transaction_has_its_signing_input_and_digest() {
        let vectors = include_str!("../../tests/vectors/transaction.json");
        let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
        let transaction = golden();
        assert_eq!(transaction.expires_at(), "2030-01-01T00:00:00Z");
        let signing_input = data_encoding::BASE64URL_NOPAD.encode(&transaction.signing_input());
        assert_eq!(vectors["transaction"]["signing_input"], signing_input);
        assert_eq!(vectors["transaction"]["digest"], data_encoding::HEXLOWER.encode(&transaction.digest()));
    }

    #[test]
    fn it_is_open_for_whole_seconds() {
        for (now, expires) in [(1_000, 301_000), (1_001, 301_000), (1_999, 301_000), (2_000, 302_000)] {
            assert_eq!(deadline(&at(now), 300).unix_ms(), expires, "{now}");
        }
        assert_eq!(deadline(&at(u64::MAX), u32::MAX).unix_ms(), u64::MAX);
    }

    #[test]
    fn who_approved_by_a_password_is_known_from_then_on() {
        let mut transaction = Transaction { method: Method::RollingPassword, ..golden() };
        transaction.terms.payer = None;
        assert_eq!((transaction.account(), transaction.credential()), (None, None));
        let credential = CredentialId::from_random([8; 16]);
        let account = AccountRef::try_from("acct-0008".to_owned()).unwrap();
        let digest = transaction.digest();
        let approved = transaction.approved_by(Approver { credential, account: account.clone(), epoch: 3 });
        assert_eq!((approved.account(), approved.credential()), (Some(&account), Some(credential)));
        assert_eq!(approved.digest(), digest);
    }

    #[test]
    fn what_became_of_it_is_not_what_is_signed() {
        let mut transaction = golden();
        let digest = transaction.digest();
        transaction.state = State::Failed;
        transaction.version = 7;
        transaction.attempts_left = 0;
        transaction.ended_unix_ms = Some(5);
        transaction.created_unix_ms = 9;
        assert_eq!(transaction.digest(), digest);
    }
}
