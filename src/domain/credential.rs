//! A credential: what never changes (its parameters and sealed secret) and what each code moves.

use serde::{Deserialize, Serialize};

use super::account::AccountRef;
use super::caller::Tenant;
use super::id::CredentialId;
use super::lockout::Attempts;
use super::otp::{Algorithm, Digits, MovingFactor};

/// An AES key-wrap blob (RFC 3394) of the zero-padded seed, under one version of the HSM's `kek`.
/// Worth nothing without the HSM. It does not say whose it is: the row's seal does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedSecret {
    /// Version of the `kek` that wraps it.
    pub kek_version: u16,
    /// The blob: padded length + 8 bytes.
    pub blob: Vec<u8>,
}

/// The cold row: written at enrolment, replaced once by its tombstone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Its id.
    pub id: CredentialId,
    /// The tenant it belongs to.
    pub tenant: Tenant,
    /// The account it speaks for.
    pub account: AccountRef,
    /// 1 when made, 2 as a tombstone.
    pub version: u64,
    /// When it was enrolled, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// The hash of its codes.
    pub algorithm: Algorithm,
    /// The length of its codes.
    pub digits: Digits,
    /// Counter or time.
    pub moving_factor: MovingFactor,
    /// Its seed; `None` in a tombstone.
    pub secret: Option<WrappedSecret>,
    /// When it was deleted, milliseconds since 1970.
    pub deleted_unix_ms: Option<u64>,
}

/// Whether a credential may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Verifies.
    Active,
    /// Refuses until it is resumed.
    Suspended,
    /// A tombstone.
    Deleted,
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
    /// The first counter or time step that may still be accepted; it only ever grows.
    pub next_factor: u64,
    /// The counter or time step accepted last.
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

impl Credential {
    /// The tombstone: the secret is gone, the id stays taken.
    pub fn deleted(&self, unix_ms: u64) -> Self {
        Self {
            version: self.version.saturating_add(1),
            secret: None,
            deleted_unix_ms: Some(unix_ms),
            ..self.clone()
        }
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

    /// With another status.
    pub fn with_status(&self, status: Status) -> Self {
        Self { status, ..self.next() }
    }

    /// After `/unlock`, which begins `account_epoch`.
    pub fn unlocked(&self, account_epoch: u32) -> Self {
        Self { attempts: Attempts::default(), account_share: 0, account_epoch, ..self.next() }
    }
}
