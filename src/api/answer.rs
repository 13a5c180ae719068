//! What a use case's answer looks like in HTTP. A failed verification is never a 2xx.

use axum::body::Bytes;
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::account::AccountRef;
use crate::domain::credential::Status;
use crate::domain::id::CredentialId;
use crate::metrics::Verdict;
use crate::service::Answer;
use crate::service::credential_view::CredentialView;
use crate::service::enrolment::Enrolled;
use crate::service::transaction_view::TransactionView;
use crate::service::transactions::{ShownTransaction, TransactionAnswer};

use super::problem::Problem;
use super::schema;

/// What is left of a credential.
#[derive(Serialize, ToSchema)]
#[schema(as = Deleted)]
pub(super) struct DeletedBody {
    #[schema(value_type = CredentialId)]
    pub id: String,
    #[schema(schema_with = schema::deleted)]
    pub state: Status,
}

/// What was presented is right: a code is used up by it.
#[derive(Serialize, ToSchema)]
#[schema(as = Verified)]
pub(super) struct VerifiedBody {
    /// Whose it is.
    #[schema(value_type = AccountRef)]
    pub account: String,
    #[schema(value_type = CredentialId)]
    pub id: String,
    #[schema(schema_with = schema::yes)]
    pub verified: bool,
}

/// The token is found again, and both codes are used up.
#[derive(Serialize, ToSchema)]
#[schema(as = Resynced)]
pub(super) struct ResyncedBody {
    /// Whose it is.
    #[schema(value_type = AccountRef)]
    pub account: String,
    #[schema(value_type = CredentialId)]
    pub id: String,
    #[schema(schema_with = schema::yes)]
    pub resynced: bool,
}

/// A new credential, with its seed where that was asked for.
#[derive(Serialize, ToSchema)]
#[schema(as = EnrolledCredential)]
pub(super) struct EnrolledBody<'a> {
    #[serde(flatten)]
    pub view: &'a CredentialView,
    /// With `export`: the URI that authenticator apps read. It holds the seed, and is in this one answer: no
    /// later one has it, nor does a replay by `Idempotency-Key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, pattern = "^otpauth://(hotp|totp)/")]
    pub otpauth: Option<&'a str>,
}

/// An approved transaction, with what the appliance signed of it.
#[derive(Serialize, ToSchema)]
#[schema(as = ApprovedTransaction)]
pub(super) struct ApprovedBody<'a> {
    #[serde(flatten)]
    pub view: &'a TransactionView,
    /// A compact JWS.
    #[schema(schema_with = schema::attestation)]
    pub attestation: &'a str,
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        match self {
            Self::Enrolled(view) => enrolled(&view, None),
            Self::Changed(view) => json_response(StatusCode::OK, Verdict::Changed, &view),
            Self::Deleted { id } => {
                json_response(StatusCode::OK, Verdict::Deleted, &DeletedBody { id, state: Status::Deleted })
            }
            Self::Verified { id, account } => json_response(
                StatusCode::OK,
                Verdict::Verified,
                &VerifiedBody { account, id, verified: true },
            ),
            Self::Resynced { id, account } => json_response(
                StatusCode::OK,
                Verdict::Resynced,
                &ResyncedBody { account, id, resynced: true },
            ),
            Self::VerificationFailed { attempts_remaining } => {
                Problem::VerificationFailed { attempts_remaining: Some(attempts_remaining) }.into_response()
            }
            Self::TransactionCreated(view) => created(&view),
            // These two come with their transaction: see below.
            Self::Approved { .. } | Self::Cancelled { .. } => {
                Problem::unavailable("a transaction was not read for its answer", 1).into_response()
            }
            Self::Ended(state) => Problem::ended(state).into_response(),
        }
    }
}

impl IntoResponse for Enrolled {
    fn into_response(self) -> Response {
        match (self.answer, self.otpauth) {
            (Answer::Enrolled(view), Some(uri)) => enrolled(&view, Some(&uri)),
            (answer, _) => answer.into_response(),
        }
    }
}

impl IntoResponse for TransactionAnswer {
    fn into_response(self) -> Response {
        match (self.answer, self.transaction) {
            (Answer::Approved { .. }, Some(ShownTransaction { view, attestation: Some(attestation) })) => {
                let body = ApprovedBody { view: &view, attestation: &attestation };
                json_response(StatusCode::OK, Verdict::Approved, &body)
            }
            (Answer::Cancelled { .. }, Some(ShownTransaction { view, .. })) => {
                json_response(StatusCode::OK, Verdict::Cancelled, &view)
            }
            (answer, _) => answer.into_response(),
        }
    }
}

fn created(view: &TransactionView) -> Response {
    let mut response = json_response(StatusCode::CREATED, Verdict::Created, view);
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/transactions/{}", view.id)) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn enrolled(view: &CredentialView, otpauth: Option<&str>) -> Response {
    let mut response = json_response(StatusCode::CREATED, Verdict::Enrolled, &EnrolledBody { view, otpauth });
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/credentials/{}", view.id)) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// A 2xx with its JSON, and the word for the log.
pub(super) fn json_response(status: StatusCode, verdict: Verdict, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(body) => json_bytes(status, verdict, body.into()),
        Err(error) => Problem::unavailable(error, 1).into_response(),
    }
}

/// The same of JSON that is there already.
pub(super) fn json_bytes(status: StatusCode, verdict: Verdict, body: Bytes) -> Response {
    let mut response = (status, body).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.extensions_mut().insert(verdict);
    response
}
