//! RFC 9457 problem documents: one mapping from what the use cases refuse to what a caller reads.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::transaction::State;
use crate::metrics::Verdict;
use crate::service::Refused;

mod described;

/// Everything that is not a yes. The caller learns what to mend; the cause goes to the log.
#[derive(Clone, Debug)]
pub(super) enum Problem {
    /// A body that is no JSON, or did not arrive.
    Malformed(&'static str),
    /// A field that says what cannot be.
    Invalid {
        field: &'static str,
        reason: &'static str,
    },
    Unauthenticated,
    Forbidden,
    NotFound,
    StateConflict,
    IdempotencyMismatch,
    /// `None` where nothing is counted.
    VerificationFailed {
        attempts_remaining: Option<u32>,
    },
    Expired,
    NotAcceptable,
    Locked {
        retry_after_s: Option<u64>,
    },
    TooLarge,
    UnsupportedMediaType,
    MethodNotAllowed,
    RateLimited {
        retry_after_s: u64,
    },
    Unavailable {
        cause: String,
        retry_after_s: u32,
    },
}

/// The JSON. `title` and `detail` are constant for a name; nothing of the request is repeated.
#[derive(Serialize, ToSchema)]
struct Document<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'static str,
    /// The value of `x-request-id`, to be found in the request log and in the audit log.
    #[schema(pattern = "^req_[0-9a-v]{16}$")]
    request_id: &'a str,
    /// The field, parameter or header, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    field: Option<&'static str>,
    /// What to mend. Repeats nothing of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<&'static str>,
    /// How many failures are left before the next lock or the transaction's end: the smallest of the credential's,
    /// the account's and the transaction's. Not there where nothing is counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, maximum = 5)]
    attempts_remaining: Option<u32>,
    /// Seconds until it is worth to come back, as the header `Retry-After`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    retry_after: Option<u64>,
}

impl Problem {
    pub fn unavailable(cause: impl ToString, retry_after_s: u32) -> Self {
        Self::Unavailable { cause: cause.to_string(), retry_after_s }
    }

    /// What comes to a transaction in its final state.
    pub fn ended(state: State) -> Self {
        match state {
            State::Expired => Self::Expired,
            _ => Self::StateConflict,
        }
    }

    /// Name, status, title and detail.
    fn words(&self) -> (Verdict, StatusCode, &'static str, &'static str) {
        match self {
            Self::Malformed(_) => (
                Verdict::Invalid,
                StatusCode::BAD_REQUEST,
                "Invalid request",
                "The request does not have the form this route asks for.",
            ),
            Self::Invalid { .. } => (
                Verdict::Invalid,
                StatusCode::UNPROCESSABLE_ENTITY,
                "Invalid request",
                "The request does not have the form this route asks for.",
            ),
            Self::Unauthenticated => (
                Verdict::Unauthenticated,
                StatusCode::UNAUTHORIZED,
                "Unauthenticated",
                "The client certificate does not name exactly one configured client.",
            ),
            Self::Forbidden => (
                Verdict::Forbidden,
                StatusCode::FORBIDDEN,
                "Forbidden",
                "The client does not have the permission.",
            ),
            Self::NotFound => {
                (Verdict::NotFound, StatusCode::NOT_FOUND, "Not found", "There is no such resource.")
            }
            Self::StateConflict => (
                Verdict::StateConflict,
                StatusCode::CONFLICT,
                "State conflict",
                "The resource is not in a state that allows this, or the same request is being worked on.",
            ),
            Self::IdempotencyMismatch => (
                Verdict::IdempotencyMismatch,
                StatusCode::UNPROCESSABLE_ENTITY,
                "Idempotency key reused",
                "The idempotency key was used for another request.",
            ),
            Self::VerificationFailed { .. } => (
                Verdict::VerificationFailed,
                StatusCode::FORBIDDEN,
                "Verification failed",
                "What was presented does not verify.",
            ),
            Self::Expired => (
                Verdict::Expired,
                StatusCode::GONE,
                "Expired",
                "The time in which this was possible is over.",
            ),
            Self::NotAcceptable => (
                Verdict::NotAcceptable,
                StatusCode::NOT_ACCEPTABLE,
                "Not acceptable",
                "The resource has none of the media types that are asked for.",
            ),
            Self::Locked { .. } => (
                Verdict::Locked,
                StatusCode::LOCKED,
                "Locked",
                "Too many failures: no attempt is made until the lock ends or is lifted.",
            ),
            Self::TooLarge => (
                Verdict::TooLarge,
                StatusCode::PAYLOAD_TOO_LARGE,
                "Too large",
                "The body is larger than 64 KiB.",
            ),
            Self::UnsupportedMediaType => (
                Verdict::UnsupportedMediaType,
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "Unsupported media type",
                "The body must be application/json.",
            ),
            Self::MethodNotAllowed => (
                Verdict::MethodNotAllowed,
                StatusCode::METHOD_NOT_ALLOWED,
                "Method not allowed",
                "The resource does not know this method.",
            ),
            Self::RateLimited { .. } => {
                (Verdict::RateLimited, StatusCode::TOO_MANY_REQUESTS, "Rate limited", "Too many requests.")
            }
            Self::Unavailable { .. } => (
                Verdict::Unavailable,
                StatusCode::SERVICE_UNAVAILABLE,
                "Unavailable",
                "No answer is possible now. Come back later.",
            ),
        }
    }

    pub fn verdict(&self) -> Verdict {
        self.words().0
    }

    pub fn status(&self) -> StatusCode {
        self.words().1
    }

    /// For the log alone.
    pub fn cause(&self) -> Option<&str> {
        match self {
            Self::Unavailable { cause, .. } => Some(cause),
            Self::Malformed(reason) | Self::Invalid { reason, .. } => Some(reason),
            _ => None,
        }
    }

    /// Field and reason, where the caller can mend something.
    pub fn to_mend(&self) -> (Option<&'static str>, Option<&'static str>) {
        match self {
            Self::Invalid { field, reason } => {
                (Some(*field).filter(|field| !field.is_empty()), Some(*reason))
            }
            Self::Malformed(reason) => (None, Some(*reason)),
            _ => (None, None),
        }
    }

    /// The document, with the header that says when to come back.
    pub fn render(&self, request_id: &str) -> Response {
        let document = self.document(request_id);
        let body = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = (self.status(), body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = document.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }

    fn document<'a>(&self, request_id: &'a str) -> Document<'a> {
        let (verdict, status, title, detail) = self.words();
        let (field, reason) = self.to_mend();
        let attempts_remaining = match self {
            Self::VerificationFailed { attempts_remaining } => *attempts_remaining,
            _ => None,
        };
        let retry_after = match self {
            Self::Locked { retry_after_s } => *retry_after_s,
            Self::RateLimited { retry_after_s } => Some(*retry_after_s),
            Self::Unavailable { retry_after_s, .. } => Some(u64::from(*retry_after_s)),
            _ => None,
        };
        Document {
            r#type: format!("urn:hsm-authd:problem:{}", verdict.name()),
            title,
            status: status.as_u16(),
            detail,
            request_id,
            field,
            reason,
            attempts_remaining,
            retry_after,
        }
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Absent => Self::NotFound,
            Refused::Forbidden => Self::Forbidden,
            Refused::Conflict => Self::StateConflict,
            Refused::Ended(state) => Self::ended(state),
            Refused::Expired => Self::Expired,
            Refused::Invalid { field, reason } => Self::Invalid { field, reason },
            Refused::Locked(locked) => Self::Locked { retry_after_s: locked.retry_after_s },
            Refused::IdempotencyMismatch => Self::IdempotencyMismatch,
            Refused::RateLimited { retry_after_s } => Self::RateLimited { retry_after_s },
            Refused::Unavailable { cause, retry_after_s } => Self::Unavailable { cause, retry_after_s },
        }
    }
}

/// A placeholder that [`super::admit`] renders: only there is the request's id known.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}
