//! `/v1/credentials/{id}/authorization`: which use case each request goes to, and the JSON that it brings.

use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::authorization::ATTEMPTS_MAX;
use crate::domain::caller::Permission;
use crate::domain::id::CredentialId;
use crate::domain::multi_terminal::Address;
use crate::domain::otp::{Digits, Otp};
use crate::metrics::Verdict;
use crate::service::Answer;
use crate::service::authorization_view::{AuthorizationView, MeansName};
use crate::service::authorizations::{AuthorizationAnswer, AuthorizationCodes, NewAuthorization};

use super::admission::Entrance;
use super::answer::json_response;
use super::call::{Call, not_null};
use super::credentials::rolling::evidence;
use super::problem::Problem;
use super::proof::{ProofFields, ProofFormat};
use super::schema;

pub(super) mod operations;

/// `POST /v1/credentials/{id}/authorization`
#[derive(Deserialize, ToSchema)]
#[schema(as = BeginAuthorization)]
#[serde(deny_unknown_fields)]
struct BeginBody {
    method: MeansName,
    /// By SMS: an active terminal of the same account.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, value_type = CredentialId)]
    terminal: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::evidence)]
    evidence: Option<String>,
}

/// `POST /v1/credentials/{id}/authorization/uplink`
#[derive(Deserialize, ToSchema)]
#[schema(as = ReportUplink)]
#[serde(deny_unknown_fields)]
struct UplinkBody {
    /// The code in the message.
    #[schema(pattern = "^[0-9]{6}$")]
    code: String,
    /// Where it came from: right if it is the terminal's address, byte for byte.
    from: Address,
}

/// `POST /v1/credentials/{id}/authorization/complete`
#[derive(Deserialize, ToSchema)]
#[schema(as = CompleteAuthorization)]
#[serde(deny_unknown_fields)]
struct CompleteBody {
    /// By SMS: the code that the terminal received.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, pattern = "^[0-9]{6}$")]
    downlink_code: Option<String>,
    format: ProofFormat,
    #[schema(schema_with = schema::proof_signature)]
    signature: String,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::authenticator_data)]
    authenticator_data: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::client_data_json)]
    client_data_json: Option<String>,
}

/// An authorization that is under way; with its codes for a client that delivers them.
#[derive(Serialize, ToSchema)]
#[schema(as = AuthorizationWithCodes)]
struct AuthorizationBody<'a> {
    #[serde(flatten)]
    view: &'a AuthorizationView,
    /// By SMS, and only for a client with `deliver`: what is sent to the terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = String, pattern = "^[0-9]{6}$")]
    downlink_code: Option<&'a Otp>,
    /// Likewise: what the device shows, for its user to send from the terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = String, pattern = "^[0-9]{6}$")]
    uplink_code: Option<&'a Otp>,
}

const CODE_FORM: &str = "must be 6 digits";

fn invalid(field: &'static str, reason: &'static str) -> Problem {
    Problem::Invalid { field, reason }
}

fn code(field: &'static str, text: String) -> Result<Otp, Problem> {
    Otp::parse(text).filter(|code| code.has(Digits::default())).ok_or(invalid(field, CODE_FORM))
}

impl TryFrom<BeginBody> for NewAuthorization {
    type Error = Problem;

    fn try_from(body: BeginBody) -> Result<Self, Problem> {
        match (body.method, body.terminal, body.evidence) {
            (MeansName::Sms, Some(terminal), None) => {
                Ok(Self::Sms { terminal: CredentialId::parse(&terminal) })
            }
            (MeansName::Sms, None, _) => Err(invalid("terminal", "must be there")),
            (MeansName::Sms, _, Some(_)) => Err(invalid("evidence", "must not be there: it is by SMS")),
            (MeansName::Password, None, Some(text)) => Ok(Self::Password { evidence: evidence(text)? }),
            (MeansName::Password, _, None) => Err(invalid("evidence", "must be there")),
            (MeansName::Password, Some(_), _) => {
                Err(invalid("terminal", "must not be there: it is by password"))
            }
        }
    }
}

impl<'a> AuthorizationBody<'a> {
    fn new(view: &'a AuthorizationView, codes: Option<&'a AuthorizationCodes>) -> Self {
        Self {
            view,
            downlink_code: codes.map(|codes| &codes.downlink),
            uplink_code: codes.map(|codes| &codes.uplink),
        }
    }
}

impl IntoResponse for AuthorizationAnswer {
    fn into_response(self) -> Response {
        let Answer::AuthorizationBegun(view) = &self.answer else { return self.answer.into_response() };
        let body = AuthorizationBody::new(view, self.codes.as_ref());
        let mut response = json_response(StatusCode::CREATED, Verdict::Created, &body);
        let at = format!("/v1/credentials/{}/authorization", view.credential);
        if let Ok(location) = HeaderValue::from_str(&at) {
            response.headers_mut().insert(LOCATION, location);
        }
        response
    }
}

pub(super) async fn begin(api: Entrance, call: Call) -> Result<AuthorizationAnswer, Problem> {
    let mut call = call.allowed(Permission::Transact)?;
    let id = call.credential_id().await;
    let (ask, body) = call.json::<BeginBody>(&api).await?;
    let beginning = body.try_into()?;
    Ok(api.turn().await?.begin_authorization(ask, id, beginning).await?)
}

pub(super) async fn get(api: Entrance, call: Call) -> Result<Response, Problem> {
    let mut call = call.allowed_by_any(Permission::READS_CODES)?;
    let id = call.credential_id().await.ok_or(Problem::NotFound)?;
    let (view, codes) = api.turn().await?.authorization(&call.caller, id).await?;
    let body = AuthorizationBody::new(&view, codes.as_ref());
    Ok(json_response(StatusCode::OK, Verdict::Found, &body))
}

pub(super) async fn uplink(api: Entrance, call: Call) -> Result<Answer, Problem> {
    let mut call = call.allowed(Permission::Deliver)?;
    let id = call.credential_id().await;
    let (ask, UplinkBody { code: text, from }) = call.json(&api).await?;
    let code = code("code", text)?;
    Ok(api.turn().await?.report_uplink(ask, id, code, from).await?)
}

pub(super) async fn complete(api: Entrance, call: Call) -> Result<Answer, Problem> {
    let mut call = call.allowed(Permission::Transact)?;
    let id = call.credential_id().await;
    let (ask, body) = call.json::<CompleteBody>(&api).await?;
    let CompleteBody { downlink_code, format, signature, authenticator_data, client_data_json } = body;
    let downlink_code = downlink_code.map(|text| code("downlink_code", text)).transpose()?;
    let proof = ProofFields {
        format: Some(format),
        signature: Some(signature),
        authenticator_data,
        client_data_json,
    };
    let proof = proof.try_into()?;
    Ok(api.turn().await?.complete_authorization(ask, id, downlink_code, proof).await?)
}

/// One for the document's examples.
fn begun(method: MeansName) -> AuthorizationView {
    let is_sms = method == MeansName::Sms;
    AuthorizationView {
        credential: super::credentials::examples::SIGNER_ID.to_owned(),
        method,
        terminal: is_sms.then(|| super::credentials::examples::TERMINAL_ID.to_owned()),
        evidence: (!is_sms).then(|| "login-2030-01-01-0042".to_owned()),
        nonce: "30".repeat(32),
        expires_at: "2030-01-01T00:05:00Z".to_owned(),
        uplink_seen: false,
        attempts_remaining: ATTEMPTS_MAX,
    }
}
