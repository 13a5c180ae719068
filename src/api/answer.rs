//! What a use case's answer looks like in HTTP. A failed verification is never a 2xx.

use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use crate::metrics::Verdict;
use crate::service::Answer;
use crate::service::credential_view::CredentialView;
use crate::service::enrolment::Enrolled;

use super::problem::Problem;

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        match self {
            Self::Enrolled(view) => enrolled(&view, None),
            Self::Changed(view) => json_response(StatusCode::OK, Verdict::Changed, &view),
            Self::Deleted { id } => {
                json_response(StatusCode::OK, Verdict::Deleted, &json!({ "id": id, "state": "deleted" }))
            }
            Self::Verified { id, account } => json_response(
                StatusCode::OK,
                Verdict::Verified,
                &json!({ "verified": true, "id": id, "account": account }),
            ),
            Self::Resynced { id, account } => json_response(
                StatusCode::OK,
                Verdict::Resynced,
                &json!({ "resynced": true, "id": id, "account": account }),
            ),
            Self::VerificationFailed { attempts_remaining } => {
                Problem::VerificationFailed { attempts_remaining }.into_response()
            }
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

fn enrolled(view: &CredentialView, otpauth: Option<&str>) -> Response {
    #[derive(Serialize)]
    struct Body<'a> {
        #[serde(flatten)]
        view: &'a CredentialView,
        #[serde(skip_serializing_if = "Option::is_none")]
        otpauth: Option<&'a str>,
    }
    let mut response = json_response(StatusCode::CREATED, Verdict::Enrolled, &Body { view, otpauth });
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/credentials/{}", view.id)) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// A 2xx with its JSON, and the word for the log.
pub(super) fn json_response(status: StatusCode, verdict: Verdict, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(body) => {
            let mut response = (status, body).into_response();
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response.extensions_mut().insert(verdict);
            response
        }
        Err(error) => Problem::unavailable(error, 1).into_response(),
    }
}
