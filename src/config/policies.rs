//! What the appliance allows, and for how long it keeps things.

use std::path::PathBuf;

use serde::Deserialize;

/// `[credentials]`
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CredentialPolicy {
    /// Whether an enrolment may ask for the `otpauth` URI, which holds the seed.
    pub allow_export: bool,
    /// Whether an enrolment may bring its seed in the clear.
    pub allow_clear_seeds: bool,
    /// How long the tombstone of a deleted credential is kept, in days.
    pub tombstone_days: u32,
    /// How long a new terminal is asked for no code, in seconds.
    pub terminal_cooling_seconds: u32,
}

impl Default for CredentialPolicy {
    fn default() -> Self {
        Self {
            allow_export: false,
            allow_clear_seeds: true,
            tombstone_days: 90,
            terminal_cooling_seconds: 86_400,
        }
    }
}

/// `[signers]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SignerPolicy {
    /// The authorities that certificate chains of signing devices must lead to, PEM. Without it every chain is
    /// refused.
    pub trust_anchors: Option<PathBuf>,
    /// Revocation lists, PEM. If there is any, every issuer of a chain needs a current one.
    pub crls: Vec<PathBuf>,
}

/// `[transactions]`
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransactionPolicy {
    /// How many wrong responses end a `device_signature` transaction.
    pub signature_attempts: u8,
    /// How long a transaction that has ended is kept, with its attestation, in days.
    pub keep_days: u32,
    /// How many rolling passwords of nobody's a client may send in a minute; 0: as many as it likes.
    pub unknown_passwords_per_minute: u32,
}

impl Default for TransactionPolicy {
    fn default() -> Self {
        Self { signature_attempts: 1, keep_days: 90, unknown_passwords_per_minute: 60 }
    }
}

/// `[attestations]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttestationPolicy {
    /// The claim `iss`.
    pub issuer: String,
    /// How long an attestation may be relied on, in hours.
    pub lifetime_hours: u32,
    /// What stands before the attestation in a QR code.
    pub qr_url_prefix: String,
}

impl Default for AttestationPolicy {
    fn default() -> Self {
        Self { issuer: "hsm-authd".to_owned(), lifetime_hours: 24, qr_url_prefix: String::new() }
    }
}

/// `[audit]`
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditPolicy {
    /// When the token is told how far the log has come.
    pub anchor: AnchorMode,
}

/// When the anchor in the token follows the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnchorMode {
    /// Every 10 seconds, or after 10,000 entries. A database that was turned back within that time is not noticed.
    #[default]
    Interval,
    /// Before any answer that rests on a commit.
    EveryCommit,
}
