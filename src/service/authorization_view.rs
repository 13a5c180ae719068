//! The authorization of a device as its bank sees it: everything but its codes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::authorization::{Authorization, Means};
use crate::domain::id::CredentialId;

/// How a user shows who he is, as in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MeansName {
    /// By SMS both ways.
    Sms,
    /// By a password that the bank has checked.
    Password,
}

/// The JSON of an authorization, in answers and in idempotency records: there, fields are only ever added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Authorization, description = "The authorization of a device that is under way: everything but its codes.")]
pub struct AuthorizationView {
    /// The device.
    #[schema(value_type = CredentialId)]
    pub credential: String,
    /// How its user shows who he is.
    pub method: MeansName,
    /// By SMS: the terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = CredentialId)]
    pub terminal: Option<String>,
    /// By password: the bank's reference of what it has checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, min_length = 1, max_length = 128)]
    pub evidence: Option<String>,
    /// What makes it unlike any other; the device signs it: 32 bytes, lower hex.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    pub nonce: String,
    /// Until when it can be completed, RFC 3339 in UTC, whole seconds.
    #[schema(format = DateTime)]
    pub expires_at: String,
    /// Whether the message from the terminal has come.
    pub uplink_seen: bool,
    /// How many wrong attempts end it.
    #[schema(maximum = 3)]
    pub attempts_remaining: u8,
}

impl AuthorizationView {
    /// What its bank sees of this row.
    pub fn new(row: &Authorization) -> Self {
        let (method, evidence) = match &row.means {
            Means::Sms { .. } => (MeansName::Sms, None),
            Means::Password { evidence } => (MeansName::Password, Some(evidence.to_string())),
        };
        Self {
            credential: row.credential.to_string(),
            method,
            terminal: row.terminal().map(|id| id.to_string()),
            evidence,
            nonce: row.nonce_hex(),
            expires_at: row.expires_at(),
            uplink_seen: row.uplink_seen,
            attempts_remaining: row.attempts_left,
        }
    }
}
