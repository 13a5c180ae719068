//! A presentation as the payer's side sees it: everything but the code.

use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::account::AccountRef;
use crate::domain::id::{CredentialId, PresentationId, TransactionId};
use crate::domain::presentation::{Presentation, PresentationState};
use crate::domain::time::rfc3339;
use crate::domain::transaction::{State, Transaction};

use super::transaction_view::{ChallengeView, DisplayView, TransactionView};

/// A presentation as the payer's side sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Presentation, description = "A code that a payer presents: everything but the code.")]
pub struct PresentationView {
    /// `pres_…`
    #[schema(value_type = PresentationId)]
    pub id: String,
    /// The account that the device speaks for.
    #[schema(value_type = AccountRef)]
    pub account: String,
    /// The device that asked for it, and decides.
    #[schema(value_type = CredentialId)]
    pub credential: String,
    /// What it is good for.
    pub state: PresentationState,
    /// Until when it can be claimed, RFC 3339 in UTC, whole seconds.
    #[schema(format = DateTime)]
    pub expires_at: String,
    /// Once it is claimed: the transaction to decide on. This and the fields below are absent once that is pruned.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = TransactionId)]
    pub transaction: Option<String>,
    /// What became of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub transaction_state: Option<State>,
    /// What the device signs to approve it: base64url without padding.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, pattern = "^[A-Za-z0-9_-]+$")]
    pub signing_input: Option<String>,
    /// What it shows its user.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub display: Option<DisplayView>,
}

impl PresentationView {
    /// What the payer's side sees. `claiming` is the transaction that claimed it, while that is kept.
    pub fn new(row: &Presentation, state: PresentationState, claiming: Option<&Transaction>) -> Self {
        let claiming = claiming.map(|transaction| TransactionView::new(transaction, None));
        let display = claiming.as_ref().and_then(|view| match &view.challenge {
            ChallengeView::Signature { display, .. } => Some(display.clone()),
            _ => None,
        });
        Self {
            id: row.id.to_string(),
            account: row.account.to_string(),
            credential: row.credential.to_string(),
            state,
            expires_at: rfc3339(row.expires.unix_ms()),
            transaction: row.transaction.map(|id| id.to_string()),
            transaction_state: claiming.as_ref().map(|view| view.state),
            signing_input: claiming.map(|view| view.signing_input),
            display,
        }
    }
}
