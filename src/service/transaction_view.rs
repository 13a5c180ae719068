//! A transaction as its bank sees it.

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::account::AccountRef;
use crate::domain::attestation::claims::{ParentLink, TermsText};
use crate::domain::id::{CredentialId, TransactionId};
use crate::domain::ocra::{self, Suite};
use crate::domain::time::rfc3339;
use crate::domain::transaction::{AuthenticatorReport, Method, Progress, State, Transaction};

use super::transactions::MethodName;

/// The JSON of a transaction, in answers and in idempotency records: there, fields are only ever added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Transaction, description = "A transaction: what is to be approved, and what became of it.")]
pub struct TransactionView {
    /// `txn_…`
    #[schema(value_type = TransactionId)]
    pub id: String,
    /// What became of it.
    pub state: State,
    /// How it is approved.
    #[schema(value_type = MethodName)]
    pub method: String,
    /// The credential that has to respond, or that approved: of a presented code and of a rolling password only once
    /// it is approved, and none of several terminals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = CredentialId)]
    pub credential: Option<String>,
    /// The account that approves, or that approved, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = AccountRef)]
    pub account: Option<String>,
    /// What is to be approved.
    #[serde(flatten)]
    pub terms: TermsText,
    /// The transaction that it follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub parent: Option<ParentView>,
    /// When it was made, RFC 3339 in UTC, whole seconds.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When it reached its final state, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, format = DateTime)]
    pub ended_at: Option<String>,
    /// SHA-256 of the signing input's bytes, lower hex.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    pub digest: String,
    /// The bytes that every approval is made for, base64url without padding.
    #[schema(pattern = "^[A-Za-z0-9_-]+$")]
    pub signing_input: String,
    /// How many wrong responses end it, as far as it alone is concerned.
    #[schema(maximum = 3)]
    pub attempts_remaining: u8,
    /// How many codes of the present round were entered, of those to several terminals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, maximum = 7)]
    pub entered: Option<u8>,
    /// What has to be answered.
    pub challenge: ChallengeView,
    /// What a WebAuthn authenticator said of itself when it approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub authenticator: Option<AuthenticatorReport>,
}

/// The transaction that another one follows and commits to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ParentTransaction)]
pub struct ParentView {
    /// Which, and which attestation of it.
    #[serde(flatten)]
    pub link: ParentLink,
    /// What was approved, for the second user to see (seed A, S7). Absent once it is pruned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub transaction: Option<TermsText>,
}

/// What has to be answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = TransactionChallenge)]
#[serde(untagged)]
pub enum ChallengeView {
    /// An OCRA token is asked a question.
    Question {
        /// The token's suite.
        #[schema(value_type = Suite)]
        suite: String,
        /// The question, derived from the digest (RFC 6287: Q). A suite's session is the digest itself.
        question: String,
    },
    /// A device signs.
    Signature {
        /// What it signs; a WebAuthn authenticator's challenge is the digest's 32 bytes instead.
        signing_input: String,
        /// What it shows (seed D, step 101: the confirmation request).
        display: DisplayView,
    },
    /// Codes are sent to terminals (seed E, step 2).
    Terminals {
        /// Which, in the rule's order.
        terminals: Vec<TerminalView>,
        /// Of a target: what each terminal's code is multiplied with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false)]
        weights: Option<Vec<u8>>,
    },
    /// A rolling password: there is nothing to be told.
    #[schema(max_properties = 0)]
    Nothing {},
}

/// A terminal that a code is sent to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalView {
    /// Its credential.
    pub credential: String,
    /// Where its code goes.
    pub address: String,
}

/// What a device shows before it signs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Display)]
pub struct DisplayView {
    /// Whose money it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = AccountRef, nullable = false)]
    pub payer: Option<String>,
    /// Who is to have it.
    pub payee: String,
    /// The order or demand.
    pub order: String,
    /// How much.
    pub amount: String,
    /// ISO 4217.
    pub currency: String,
}

impl TransactionView {
    /// What its bank sees. `parent` is the transaction that it follows, while that is kept.
    pub fn new(transaction: &Transaction, parent: Option<&Transaction>) -> Self {
        let terms = TermsText::new(transaction);
        let signing_input = BASE64URL_NOPAD.encode(&transaction.signing_input());
        let digest = transaction.digest();
        // Who was presented with a code learns from it nothing of whose it is.
        let is_told = match transaction.method {
            Method::PresentedCode { .. } => transaction.state == State::Approved,
            _ => true,
        };
        Self {
            id: transaction.id.to_string(),
            state: transaction.state,
            method: transaction.method.name().to_owned(),
            credential: transaction.credential().filter(|_| is_told).map(|id| id.to_string()),
            account: transaction.account().filter(|_| is_told).map(AccountRef::to_string),
            entered: match transaction.progress {
                Progress::Entry(round) if transaction.state == State::Pending => Some(round.entered),
                _ => None,
            },
            challenge: ChallengeView::new(transaction, &terms, &signing_input, &digest),
            terms,
            parent: ParentLink::new(transaction)
                .map(|link| ParentView { link, transaction: parent.map(TermsText::new) }),
            created_at: rfc3339(transaction.created_unix_ms),
            ended_at: transaction.ended_unix_ms.map(rfc3339),
            digest: HEXLOWER.encode(&digest),
            signing_input,
            attempts_remaining: transaction.attempts_left,
            authenticator: transaction.authenticator,
        }
    }
}

impl ChallengeView {
    fn new(transaction: &Transaction, terms: &TermsText, signing_input: &str, digest: &[u8; 32]) -> Self {
        match (&transaction.method, transaction.method.suite()) {
            (_, Some(suite)) => {
                Self::Question { suite: suite.as_str().to_owned(), question: ocra::question(suite, digest) }
            }
            (Method::MultiTerminal(method), None) => Self::Terminals {
                terminals: method
                    .terminals
                    .iter()
                    .map(|frozen| TerminalView {
                        credential: frozen.credential.to_string(),
                        address: frozen.address.to_string(),
                    })
                    .collect(),
                weights: method.weights(),
            },
            (Method::RollingPassword, None) => Self::Nothing {},
            (
                Method::ChallengeResponse { .. }
                | Method::DeviceSignature { .. }
                | Method::PresentedCode { .. },
                None,
            ) => Self::Signature {
                signing_input: signing_input.to_owned(),
                display: DisplayView {
                    payer: terms.payer.clone(),
                    payee: terms.payee.clone(),
                    order: terms.order.clone(),
                    amount: terms.amount.clone(),
                    currency: terms.currency.clone(),
                },
            },
        }
    }
}
