//! A credential as its bank sees it: everything but the secret.

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::account::AccountRef;
use crate::domain::caller::Tenant;
use crate::domain::credential::{
    Authenticator, CertifiedSigner, Credential, CredentialState, Kind, OcraUse, Signer, Status,
};
use crate::domain::id::CredentialId;
use crate::domain::multi_terminal::Address;
use crate::domain::ocra::Suite;
use crate::domain::otp::{Algorithm, Digits, MovingFactor};
use crate::domain::signer::SignatureAlgorithm;
use crate::domain::text::DisplayText;
use crate::domain::time::rfc3339;

/// The JSON of a credential, in answers and in idempotency records: there, fields are only ever added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Credential, description = "A credential: everything but its secret.")]
pub struct CredentialView {
    /// `cred_…`
    #[schema(value_type = CredentialId)]
    pub id: String,
    /// The bank's own reference.
    #[schema(value_type = AccountRef)]
    pub account: String,
    /// The tenant it belongs to.
    #[schema(value_type = Tenant)]
    pub tenant: String,
    /// Whether it may be used.
    pub state: Status,
    /// False where the database was turned back and it cannot be resumed: it is deleted, or a rolling one bound anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub resumable: Option<bool>,
    /// What it is.
    #[serde(flatten)]
    pub kind: KindView,
    /// Failures of this credential since its last success; a signer has none.
    pub failures: u32,
    /// When it was enrolled, RFC 3339 in UTC, whole seconds.
    #[schema(format = DateTime, pattern = "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")]
    pub created_at: String,
}

/// What is particular to a type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = CredentialType)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum KindView {
    /// A counter: RFC 4226.
    Hotp {
        /// The hash under the HMAC.
        algorithm: Algorithm,
        /// The length of its codes.
        digits: Digits,
        /// The next counter expected.
        #[schema(maximum = 9223372036854775808u64)]
        counter: u64,
        /// How many codes beyond it are tried.
        #[schema(maximum = 100)]
        look_ahead: u8,
    },
    /// The time: RFC 6238.
    Totp {
        /// The hash under the HMAC.
        algorithm: Algorithm,
        /// The length of its codes.
        digits: Digits,
        /// Seconds a code lives.
        #[schema(minimum = 5, maximum = 600)]
        period: u16,
        /// Steps tried on either side.
        #[schema(maximum = 2)]
        skew_steps: u8,
        /// How many steps the token's clock is ahead, as the last resync found.
        drift_steps: i16,
    },
    /// Challenge and response: RFC 6287.
    Ocra {
        /// Hash, code length and data inputs.
        #[schema(value_type = Suite)]
        suite: String,
        /// What its codes are good for.
        r#use: OcraUse,
        /// Suites with C: the next counter expected.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false, maximum = 9223372036854775808u64)]
        counter: Option<u64>,
        /// Suites with C: how many codes beyond it are tried.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false, maximum = 100)]
        look_ahead: Option<u8>,
        /// Suites with T: steps tried on either side.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false, maximum = 2)]
        skew_steps: Option<u8>,
    },
    /// A device that signs.
    Signer {
        /// How it signs.
        algorithm: SignatureAlgorithm,
        /// Its key's RFC 7638 thumbprint: SHA-256, base64url.
        #[schema(pattern = "^[A-Za-z0-9_-]{43}$")]
        thumbprint: String,
        /// With a certificate: when it expires, RFC 3339 in UTC, whole seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false, format = DateTime)]
        certificate_expires_at: Option<String>,
        /// Of a WebAuthn authenticator: where it was registered.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false)]
        webauthn: Option<RelyingPartyView>,
    },
    /// A terminal that codes are sent to.
    Terminal {
        /// Where they are sent to.
        #[schema(value_type = Address)]
        address: String,
    },
    /// A terminal with a temporary code.
    Rolling {
        /// What the identity key is derived with, lower hex.
        #[schema(pattern = "^[0-9a-f]{32}$")]
        salt: String,
        /// What the bank checked before it was activated.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false, min_length = 1, max_length = 128)]
        evidence: Option<String>,
    },
}

/// Where a WebAuthn authenticator was registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = RelyingParty)]
pub struct RelyingPartyView {
    /// Its credential id, base64url without padding.
    pub credential_id: String,
    /// The relying party's id: a domain.
    pub rp_id: String,
    /// The origins that may ask it.
    pub origins: Vec<String>,
}

impl CredentialView {
    /// What its bank sees of these rows.
    pub fn new(credential: &Credential, state: &CredentialState) -> Self {
        Self {
            id: credential.id.to_string(),
            account: credential.account.to_string(),
            tenant: credential.tenant.to_string(),
            state: state.status.shown(),
            resumable: (state.status == Status::Stranded).then_some(false),
            kind: KindView::new(&credential.kind, state),
            failures: state.attempts.failures,
            created_at: rfc3339(credential.created_unix_ms),
        }
    }
}

impl KindView {
    fn new(kind: &Kind, state: &CredentialState) -> Self {
        match kind {
            Kind::Otp(token) => {
                let (algorithm, digits) = (token.algorithm, token.digits);
                match token.moving_factor {
                    MovingFactor::Hotp { look_ahead } => {
                        Self::Hotp { algorithm, digits, counter: state.next_factor, look_ahead }
                    }
                    MovingFactor::Totp { period_s: period, skew_steps } => {
                        Self::Totp { algorithm, digits, period, skew_steps, drift_steps: state.drift_steps }
                    }
                }
            }
            Kind::Ocra(token) => {
                let has_counter = token.suite.has_counter();
                Self::Ocra {
                    suite: token.suite.as_str().to_owned(),
                    r#use: token.usage,
                    counter: has_counter.then_some(state.next_factor),
                    look_ahead: has_counter.then_some(token.look_ahead),
                    skew_steps: token.suite.time_step_s().map(|_| token.skew_steps),
                }
            }
            Kind::Signer(signer) => Self::signer(signer, None, None),
            Kind::CertifiedSigner(CertifiedSigner { signer, chain }) => {
                let expires = chain.as_ref().and_then(|chain| chain.not_after_unix_ms().ok());
                Self::signer(signer, expires.map(rfc3339), None)
            }
            Kind::Authenticator(Authenticator { signer, party }) => {
                let party = RelyingPartyView {
                    credential_id: BASE64URL_NOPAD.encode(&party.credential_id),
                    rp_id: party.rp_id.clone(),
                    origins: party.origins.clone(),
                };
                Self::signer(signer, None, Some(party))
            }
            Kind::Terminal(terminal) => Self::Terminal { address: terminal.address.to_string() },
            Kind::Rolling(rolling) => Self::Rolling {
                salt: HEXLOWER.encode(&rolling.salt),
                evidence: rolling.evidence.as_ref().map(DisplayText::to_string),
            },
        }
    }

    fn signer(
        signer: &Signer,
        certificate_expires_at: Option<String>,
        webauthn: Option<RelyingPartyView>,
    ) -> Self {
        Self::Signer {
            algorithm: signer.algorithm,
            thumbprint: signer.key.as_ref().map(|key| key.thumbprint()).unwrap_or_default(),
            certificate_expires_at,
            webauthn,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_release_remembered_is_still_read() {
        let kept = r#"{"id":"cred_1","account":"a","type":"totp","tenant":"bank-a","state":"active",
            "algorithm":"SHA1","digits":8,"period":30,"skew_steps":1,"drift_steps":-2,"failures":3,
            "created_at":"2026-11-21T22:33:27Z"}"#;
        let view: CredentialView = serde_json::from_str(kept).unwrap();
        assert_eq!(view.failures, 3);
        assert!(matches!(view.kind, KindView::Totp { period: 30, drift_steps: -2, .. }));
    }
}
