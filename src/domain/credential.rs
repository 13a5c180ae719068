//! A credential: what never changes (its parameters and sealed secret) and what each code moves.

use serde::{Deserialize, Serialize};

use super::account::AccountRef;
use super::caller::Tenant;
use super::certificate::CertificateChain;
use super::id::CredentialId;
use super::lockout::Attempts;
use super::multi_terminal::Address;
use super::ocra::Suite;
use super::otp::{Algorithm, Digits, MovingFactor};
use super::rolling::Rolling;
use super::signer::{PublicKey, SignatureAlgorithm};
use super::webauthn::RelyingParty;

mod secret;

pub use secret::{BadSecret, Keeping, ObjectId, StoredSecret};

/// The hash of an OCRA token's PIN, encrypted under one version of the HSM's `data` key, and bound
/// to its credential. Opened in custodians only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncryptedPinHash {
    /// Version of the `data` key that encrypts it.
    pub data_version: u16,
    /// AES-256-GCM: nonce (12 bytes), ciphertext (as long as the hash), tag (16 bytes).
    pub blob: Vec<u8>,
}

/// The cold row: written at enrolment, replaced by its tombstone; of a rolling credential also by each activation and
/// rebinding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Its id.
    pub id: CredentialId,
    /// The tenant it belongs to.
    pub tenant: Tenant,
    /// The account it speaks for.
    pub account: AccountRef,
    /// 1 when made, one more with each change.
    pub version: u64,
    /// When it was enrolled, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// What it is, with its parameters and its sealed secret or key.
    pub kind: Kind,
    /// When it was deleted, milliseconds since 1970.
    pub deleted_unix_ms: Option<u64>,
}

/// What a credential is. Stored in sealed rows: variants go to the end, and their fields never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// HOTP or TOTP.
    Otp(OtpToken),
    /// OCRA.
    Ocra(OcraToken),
    /// A device that signs.
    Signer(Signer),
    /// A device that signs, with a certificate for its key.
    CertifiedSigner(CertifiedSigner),
    /// A WebAuthn authenticator: it signs assertions and nothing else.
    Authenticator(Authenticator),
    /// A terminal that codes are sent to.
    Terminal(Terminal),
    /// A terminal with a temporary code, whose user knows an identity code.
    Rolling(Rolling),
}

impl Kind {
    /// Its secrets, wherever they are kept: a rolling credential has two of them, a signer and a tombstone none.
    pub fn secrets(&self) -> impl Iterator<Item = &StoredSecret> {
        let [first, second] = match self {
            Self::Otp(token) => [token.secret.as_ref(), None],
            Self::Ocra(token) => [token.secret.as_ref(), None],
            Self::Terminal(terminal) => [terminal.secret.as_ref(), None],
            Self::Rolling(rolling) => [rolling.secret.as_ref(), rolling.identity_key.as_ref()],
            Self::Signer(_) | Self::CertifiedSigner(_) | Self::Authenticator(_) => [None, None],
        };
        first.into_iter().chain(second)
    }

    /// Key and algorithm, of whatever signs.
    pub fn signer(&self) -> Option<&Signer> {
        match self {
            Self::Otp(_) | Self::Ocra(_) | Self::Terminal(_) | Self::Rolling(_) => None,
            Self::Signer(signer)
            | Self::CertifiedSigner(CertifiedSigner { signer, .. })
            | Self::Authenticator(Authenticator { signer, .. }) => Some(signer),
        }
    }
}

/// A token of RFC 4226 or RFC 6238.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtpToken {
    /// The hash of its codes.
    pub algorithm: Algorithm,
    /// The length of its codes: 6, 7 or 8.
    pub digits: Digits,
    /// Counter or time.
    pub moving_factor: MovingFactor,
    /// Its seed; `None` in a tombstone.
    pub secret: Option<StoredSecret>,
}

/// A token of RFC 6287.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OcraToken {
    /// Hash, code length and data inputs.
    pub suite: Suite,
    /// Suites with C: how many codes beyond the expected one are tried (0..=100); else 0.
    pub look_ahead: u8,
    /// Suites with T: steps tried on either side of the present one (0..=2); else 0.
    pub skew_steps: u8,
    /// What its codes are good for.
    pub usage: OcraUse,
    /// Its seed; `None` in a tombstone.
    pub secret: Option<StoredSecret>,
    /// Suites with P: the hash of the PIN; `None` without P, and in a tombstone.
    pub pin_hash: Option<EncryptedPinHash>,
}

/// What an OCRA token's codes are good for: never for both, so that no code made for a question
/// that somebody made up approves a transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OcraUse {
    /// Questions that the appliance derives from a transaction.
    #[default]
    Transaction,
    /// Questions that the caller chooses, by `/verify`.
    Verify,
}

/// A device with a key pair; the private one never leaves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signer {
    /// How it signs.
    pub algorithm: SignatureAlgorithm,
    /// Its public key, checked at enrolment; `None` in a tombstone.
    pub key: Option<PublicKey>,
}

/// A device whose key is the one in a certificate: it verifies only while the chain is to be trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertifiedSigner {
    /// Its key, which is the first certificate's.
    pub signer: Signer,
    /// Its certificate and those between it and a trust anchor; `None` in a tombstone.
    pub chain: Option<CertificateChain>,
}

/// A WebAuthn authenticator (WebAuthn, section 4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authenticator {
    /// Its key.
    pub signer: Signer,
    /// Where it was registered.
    pub party: RelyingParty,
}

/// A terminal that the user receives codes at (seed E, step 1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Where codes are sent to.
    pub address: Address,
    /// What its codes are derived from: 32 bytes; `None` in a tombstone.
    pub secret: Option<StoredSecret>,
}

/// Whether a credential may be used. Stored in sealed rows: variants go to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Verifies.
    Active,
    /// Refuses until it is resumed.
    Suspended,
    /// A tombstone.
    Deleted,
    /// Rolling: waits for its activation.
    Pending,
    /// A device that has not been authorized for its account yet.
    Unauthorized,
    /// Suspended because the database was turned back; what it used up is out of reach, so it may be resumed.
    Recovered,
    /// Suspended because the database was turned back; nobody knows what it used up, so it is never resumed.
    Stranded,
}

/// The hot row: a new version with each verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialState {
    /// The credential.
    pub id: CredentialId,
    /// The tenant it belongs to: sealed with the rest, so that the row says whose it is.
    pub tenant: Tenant,
    /// 1 when made, one more with each change.
    pub version: u64,
    /// Whether it may be used.
    pub status: Status,
    /// The first counter (HOTP, OCRA with C), time step (TOTP, other OCRA with T), signature count (WebAuthn) or
    /// second of a presentation (other signers) that may still be accepted; it only ever grows. Rolling: the version of
    /// its binding, which begins anew with each.
    pub next_factor: u64,
    /// The counter or time step accepted last. OCRA without C has [`UsedInput`]s instead.
    pub last_accepted: Option<u64>,
    /// TOTP: how many steps the token's clock is ahead of ours, as the last resync found.
    pub drift_steps: i16,
    /// Its own failures and lock.
    pub attempts: Attempts,
    /// How many of the account's failures are its own, counted in `account_epoch`.
    pub account_share: u32,
    /// The account's epoch that `account_share` counts in.
    pub account_epoch: u32,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Active,
        Self::Suspended,
        Self::Deleted,
        Self::Pending,
        Self::Unauthorized,
        Self::Recovered,
        Self::Stranded,
    ];

    /// What its bank is shown: whatever it is suspended for is `suspended`.
    #[must_use]
    pub fn shown(self) -> Self {
        match self {
            Self::Recovered | Self::Stranded => Self::Suspended,
            status => status,
        }
    }
}

impl Credential {
    /// With another content of the same kind.
    pub fn with_kind(&self, kind: Kind) -> Self {
        Self { version: self.version.saturating_add(1), kind, ..self.clone() }
    }

    /// The tombstone: secret and key are gone, the id stays taken.
    pub fn deleted(&self, unix_ms: u64) -> Self {
        let kind = match self.kind.clone() {
            Kind::Otp(token) => Kind::Otp(OtpToken { secret: None, ..token }),
            Kind::Ocra(token) => Kind::Ocra(OcraToken { secret: None, pin_hash: None, ..token }),
            Kind::Signer(signer) => Kind::Signer(Signer { key: None, ..signer }),
            Kind::CertifiedSigner(CertifiedSigner { signer, .. }) => {
                Kind::CertifiedSigner(CertifiedSigner { signer: Signer { key: None, ..signer }, chain: None })
            }
            Kind::Authenticator(Authenticator { signer, party }) => {
                Kind::Authenticator(Authenticator { signer: Signer { key: None, ..signer }, party })
            }
            Kind::Terminal(terminal) => Kind::Terminal(Terminal { secret: None, ..terminal }),
            Kind::Rolling(rolling) => Kind::Rolling(rolling.deleted()),
        };
        Self { version: self.version.saturating_add(1), kind, deleted_unix_ms: Some(unix_ms), ..self.clone() }
    }
}

impl CredentialState {
    /// A new credential, active, expecting `next_factor`.
    pub fn new(id: CredentialId, tenant: Tenant, next_factor: u64, account_epoch: u32) -> Self {
        Self {
            id,
            tenant,
            version: 1,
            status: Status::Active,
            next_factor,
            last_accepted: None,
            drift_steps: 0,
            attempts: Attempts::default(),
            account_share: 0,
            account_epoch,
        }
    }

    /// The next version, otherwise the same.
    pub fn next(&self) -> Self {
        Self { version: self.version.saturating_add(1), ..self.clone() }
    }

    /// With the mark beyond time step `step`, so that what is forgotten of it stays used up; `None` if it is
    /// there already.
    pub fn beyond(&self, step: u64) -> Option<Self> {
        let mark = step.saturating_add(1);
        (self.next_factor < mark).then(|| Self { next_factor: mark, ..self.next() })
    }

    /// After a WebAuthn authenticator's signature count, or the second of a presentation: `next` is the first that may
    /// still come.
    pub fn counted(&self, next: u64) -> Self {
        Self { next_factor: next, last_accepted: next.checked_sub(1), ..self.next() }
    }

    /// With its binding in this version: an older one that is put back is not the one that it speaks of.
    pub fn bound(self, version: u64) -> Self {
        Self { next_factor: version, ..self }
    }

    /// With another status.
    pub fn with_status(&self, status: Status) -> Self {
        Self { status, ..self.next() }
    }

    /// After `/unlock`, which begins `account_epoch`.
    pub fn unlocked(&self, account_epoch: u32) -> Self {
        Self { attempts: Attempts::default(), account_share: 0, account_epoch, ..self.next() }
    }
}

/// A seed that came wrapped: what it came as is not taken again in its tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedSeed {
    /// The tenant it was brought by.
    pub tenant: Tenant,
    /// SHA-256 of the blob.
    pub fingerprint: [u8; 32],
    /// Always 1: it is made with its credential and removed with the tombstone, never changed.
    pub version: u64,
    /// The credential that has it.
    pub credential: CredentialId,
}

/// An input of an OCRA token without a counter that was accepted: its code is not accepted again.
///
/// It is kept as long as it could verify; without a time step that is the credential's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedInput {
    /// The credential.
    pub id: CredentialId,
    /// [`super::ocra::Challenge::fingerprint`] of question, session and time step.
    pub fingerprint: [u8; 32],
    /// The tenant it belongs to.
    pub tenant: Tenant,
    /// Always 1: it is made and pruned, never changed.
    pub version: u64,
    /// Suites with T: the time step.
    pub time_step: Option<u64>,
    /// Suites with T: when its step is out of reach, milliseconds since 1970.
    pub expires_unix_ms: Option<u64>,
}
