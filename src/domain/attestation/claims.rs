//! What an attestation says: which transaction was approved, by whom, and for how long that may be relied on.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::domain::account::AccountRef;
use crate::domain::json;
use crate::domain::text::DisplayText;
use crate::domain::transaction::{Terms, Transaction};

/// The claims (RFC 7519). Tenant, `jti`, method and terms make the signing input again, and with it the digest:
/// who has the attestation can recompute what was approved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who says so, as configured.
    pub iss: String,
    /// The transaction's id.
    pub jti: String,
    /// When it was approved, seconds since 1970.
    pub iat: u64,
    /// When it is to be relied on no longer, seconds since 1970.
    pub exp: u64,
    /// The tenant.
    pub tenant: String,
    /// The transaction's method.
    pub method: String,
    /// The account that approved.
    pub account: String,
    /// SHA-256 of the signing input, lower hex.
    pub digest: String,
    /// What was approved.
    pub transaction: TermsText,
    /// The transaction that it follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentLink>,
}

/// The terms of a transaction, as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermsText {
    /// Whose money it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payer: Option<String>,
    /// Who is to have it.
    pub payee: String,
    /// How much.
    pub amount: String,
    /// Of what: ISO 4217.
    pub currency: String,
    /// The order or demand.
    pub order: String,
    /// The trading platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// The user's remark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
    /// Until when it could be approved, RFC 3339 in UTC.
    pub expires_at: String,
    /// 32 bytes, lower hex.
    pub nonce: String,
}

/// The transaction that another one commits to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentLink {
    /// Its id.
    pub jti: String,
    /// SHA-256 of its attestation's compact JWS, lower hex.
    pub hash: String,
}

impl Claims {
    /// That `transaction` was approved at `unix_s`.
    pub fn new(transaction: &Transaction, issuer: &str, unix_s: u64, lifetime_s: u64) -> Self {
        Self {
            iss: issuer.to_owned(),
            jti: transaction.id.to_string(),
            iat: unix_s,
            exp: unix_s.saturating_add(lifetime_s),
            tenant: transaction.tenant.to_string(),
            method: transaction.method.name().to_owned(),
            account: transaction.account().map(AccountRef::to_string).unwrap_or_default(),
            digest: HEXLOWER.encode(&transaction.digest()),
            transaction: TermsText::new(transaction),
            parent: ParentLink::new(transaction),
        }
    }

    /// What this JSON claims; `None` if it has not all of it, or a member twice.
    pub fn from_json(json: &[u8]) -> Option<Self> {
        serde_json::from_value(Value::Object(json::object(json)?)).ok()
    }

    /// Their JSON, which is what gets signed.
    pub fn to_json(&self) -> Vec<u8> {
        // Serialising strings and numbers to memory cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl TermsText {
    /// Those of `transaction`.
    pub fn new(transaction: &Transaction) -> Self {
        let Terms { payer, payee, money, order, platform, remark, nonce, .. } = &transaction.terms;
        Self {
            payer: payer.as_ref().map(AccountRef::to_string),
            payee: payee.to_string(),
            amount: money.amount().to_owned(),
            currency: money.currency().to_owned(),
            order: order.to_string(),
            platform: platform.as_ref().map(DisplayText::to_string),
            remark: remark.as_ref().map(DisplayText::to_string),
            expires_at: transaction.expires_at(),
            nonce: HEXLOWER.encode(nonce),
        }
    }
}

impl ParentLink {
    /// What `transaction` follows, if it follows one.
    pub fn new(transaction: &Transaction) -> Option<Self> {
        transaction
            .terms
            .parent
            .map(|parent| Self { jti: parent.id.to_string(), hash: HEXLOWER.encode(&parent.hash) })
    }
}
