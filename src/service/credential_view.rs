//! A credential as its bank sees it: everything but the secret.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::domain::credential::{Credential, CredentialState, Status};
use crate::domain::otp::{Algorithm, Digits, MovingFactor};

/// The JSON of a credential, in answers and in idempotency records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialView {
    /// `cred_…`
    pub id: String,
    /// The bank's own reference.
    pub account: String,
    /// `hotp` or `totp`.
    pub r#type: CredentialType,
    /// The tenant it belongs to.
    pub tenant: String,
    /// `active` or `suspended`.
    pub state: Status,
    /// The hash under the HMAC.
    pub algorithm: Algorithm,
    /// The length of its codes.
    pub digits: Digits,
    /// hotp: the next counter expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counter: Option<u64>,
    /// hotp: how many codes beyond it are tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub look_ahead: Option<u8>,
    /// totp: seconds a code lives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period: Option<u16>,
    /// totp: steps tried on either side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skew_steps: Option<u8>,
    /// totp: how many steps the token's clock is ahead, as the last resync found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift_steps: Option<i16>,
    /// Failures of this credential since its last success.
    pub failures: u32,
    /// When it was enrolled, RFC 3339.
    pub created_at: String,
}

/// What moves from code to code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialType {
    /// A counter: RFC 4226.
    Hotp,
    /// The time: RFC 6238.
    Totp,
}

impl CredentialView {
    /// What its bank sees of these rows.
    pub fn new(credential: &Credential, state: &CredentialState) -> Self {
        let (kind, counter, look_ahead, period, skew_steps, drift_steps) = match credential.moving_factor {
            MovingFactor::Hotp { look_ahead } => {
                (CredentialType::Hotp, Some(state.next_factor), Some(look_ahead), None, None, None)
            }
            MovingFactor::Totp { period_s, skew_steps } => {
                (CredentialType::Totp, None, None, Some(period_s), Some(skew_steps), Some(state.drift_steps))
            }
        };
        Self {
            id: credential.id.to_string(),
            account: credential.account.to_string(),
            r#type: kind,
            tenant: credential.tenant.to_string(),
            state: state.status,
            algorithm: credential.algorithm,
            digits: credential.digits,
            counter,
            look_ahead,
            period,
            skew_steps,
            drift_steps,
            failures: state.attempts.failures,
            created_at: rfc3339(credential.created_unix_ms),
        }
    }
}

/// A moment as RFC 3339 in UTC, whole seconds.
pub fn rfc3339(unix_ms: u64) -> String {
    i64::try_from(unix_ms / 1_000)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_utc() {
        assert_eq!(rfc3339(1_893_456_000_999), "2030-01-01T00:00:00Z");
        assert_eq!(rfc3339(u64::MAX), "");
    }
}
