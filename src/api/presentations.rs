//! `/v1/presentations`: which use case each request goes to, and the JSON that it brings.

use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::domain::account::AccountRef;
use crate::domain::caller::Permission;
use crate::domain::id::{CredentialId, PresentationId};
use crate::domain::presentation::IssuedAt;
use crate::metrics::Verdict;
use crate::service::Answer;
use crate::service::presentations::{NewPresentation, PresentationAnswer};

use super::admission::Entrance;
use super::answer::json_response;
use super::call::Call;
use super::problem::Problem;
use super::proof::{ProofFields, ProofFormat};
use super::qr::{picture, preferred};
use super::schema;

pub(super) mod operations;

/// `POST /v1/presentations`
#[derive(Deserialize, ToSchema)]
#[schema(as = Present)]
#[serde(deny_unknown_fields)]
struct PresentBody {
    account: AccountRef,
    /// The device: a signer, and no WebAuthn authenticator.
    #[schema(value_type = CredentialId)]
    credential: String,
    /// When the device signed, by its own clock: whole seconds, no more than 30 away from the appliance's time, and
    /// later than this credential's last.
    #[schema(schema_with = schema::issued_at)]
    issued_at: String,
    #[schema(schema_with = schema::signed_format)]
    format: ProofFormat,
    #[schema(schema_with = schema::proof_signature)]
    signature: String,
}

/// A new presentation, with its code.
#[derive(Serialize, ToSchema)]
#[schema(as = Presented)]
struct PresentedBody<'a> {
    /// For the payer's side: to learn what claimed it.
    #[schema(value_type = PresentationId)]
    id: &'a str,
    /// For the payee: whoever has it can claim it, once.
    #[schema(schema_with = schema::presentation_code)]
    code: &'a str,
    /// Until when it can be claimed, RFC 3339 in UTC, whole seconds.
    #[schema(format = DateTime)]
    expires_at: &'a str,
}

impl TryFrom<PresentBody> for NewPresentation {
    type Error = Problem;

    fn try_from(body: PresentBody) -> Result<Self, Problem> {
        let invalid = |field, reason| Problem::Invalid { field, reason };
        let issued_at = IssuedAt::parse(&body.issued_at)
            .ok_or(invalid("issued_at", "must be a moment in the form YYYY-MM-DDTHH:MM:SSZ"))?;
        if body.format == ProofFormat::Webauthn {
            return Err(invalid("format", "must be der, p1363, raw or jws: an assertion asks for no code"));
        }
        let proof = ProofFields {
            format: Some(body.format),
            signature: Some(body.signature),
            ..ProofFields::default()
        };
        Ok(Self {
            account: body.account,
            credential: CredentialId::parse(&body.credential),
            issued_at,
            proof: proof.try_into()?,
        })
    }
}

impl IntoResponse for PresentationAnswer {
    fn into_response(self) -> Response {
        let (Answer::Presented { presentation, expires_at }, Some(code)) = (&self.answer, &self.code) else {
            return self.answer.into_response();
        };
        // Exposed to the device that asked for it.
        let body = PresentedBody { id: presentation, code: code.expose(), expires_at };
        let mut response = json_response(StatusCode::CREATED, Verdict::Created, &body);
        if let Ok(location) = HeaderValue::from_str(&format!("/v1/presentations/{presentation}")) {
            response.headers_mut().insert(LOCATION, location);
        }
        response
    }
}

pub(super) async fn present(api: Entrance, call: Call) -> Result<PresentationAnswer, Problem> {
    let call = call.allowed(Permission::Transact)?;
    let (ask, body) = call.json::<PresentBody>(&api).await?;
    let presentation = body.try_into()?;
    Ok(api.turn().await?.present(ask, presentation).await?)
}

pub(super) async fn get(api: Entrance, call: Call) -> Result<Response, Problem> {
    let mut call = call.allowed(Permission::Transact)?;
    let id = call.presentation_id().await.ok_or(Problem::NotFound)?;
    let view = api.turn().await?.presentation(&call.caller, id).await?;
    Ok(json_response(StatusCode::OK, Verdict::Found, &view))
}

pub(super) async fn qr(api: Entrance, call: Call) -> Result<Response, Problem> {
    let mut call = call.allowed(Permission::Transact)?;
    let wanted = preferred(call.headers()).ok_or(Problem::NotAcceptable)?;
    let id = call.presentation_id().await.ok_or(Problem::NotFound)?;
    let code = api.turn().await?.presentation_code(&call.caller, id).await?;
    // Exposed to be drawn.
    picture(&api, Zeroizing::new(code.expose().to_owned()), wanted).await
}
