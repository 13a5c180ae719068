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

use super::credentials::rolling::{CodeBody, hex};
use super::problem::Problem;
use super::schema;
use super::transactions::ShownBody;

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
    /// By a rolling password: what the terminal makes the next one of. Not there once the terminal has acknowledged or
    /// used it: a replay leaves it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub next: Option<CodeBody<'a>>,
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
            Self::TransactionCreated(view) => created(&ShownBody { view: &view, codes: None }),
            Self::Entered(view) => entered(&ShownBody { view: &view, codes: None }),
            Self::UplinkSeen(view) => json_response(StatusCode::OK, Verdict::Changed, &view),
            Self::Presented { .. } | Self::AuthorizationBegun(_) => {
                Problem::unavailable("nothing was derived for an answer", 1).into_response()
            }
            // These come with their transaction: see below.
            Self::Approved { .. }
            | Self::ApprovedByPassword { .. }
            | Self::Cancelled { .. }
            | Self::Rejected { .. } => {
                Problem::unavailable("a transaction was not read for its answer", 1).into_response()
            }
            // So do these with what a temporary code is added to.
            Self::Activated { .. } | Self::Rotated { .. } | Self::Acknowledged { .. } => {
                Problem::unavailable("a rotation is answered elsewhere", 1).into_response()
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
            (
                Answer::Approved { .. } | Answer::ApprovedByPassword { .. },
                Some(ShownTransaction { view, attestation: Some(attestation), .. }),
            ) => {
                let next = self.next.as_ref().map(|code| (code.epoch, hex(code)));
                let next = next
                    .as_ref()
                    .map(|(epoch, code)| CodeBody { epoch: *epoch, temporary_code: Some(code.as_str()) });
                let body = ApprovedBody { view: &view, attestation: &attestation, next };
                json_response(StatusCode::OK, Verdict::Approved, &body)
            }
            (Answer::Cancelled { .. }, Some(ShownTransaction { view, .. })) => {
                json_response(StatusCode::OK, Verdict::Cancelled, &view)
            }
            (Answer::TransactionCreated(_), Some(shown)) => created(&ShownBody::of(&shown)),
            (Answer::Entered(_), Some(shown)) => entered(&ShownBody::of(&shown)),
            (Answer::Rejected { .. }, Some(ShownTransaction { view, .. })) => {
                json_response(StatusCode::OK, Verdict::Rejected, &view)
            }
            (answer, _) => answer.into_response(),
        }
    }
}

fn created(body: &ShownBody<'_>) -> Response {
    let mut response = json_response(StatusCode::CREATED, Verdict::Created, body);
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/transactions/{}", body.view.id)) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn entered(body: &ShownBody<'_>) -> Response {
    json_response(StatusCode::ACCEPTED, Verdict::Entered, body)
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
