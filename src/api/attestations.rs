//! Attestations for whoever holds one, and the keys that they are verified with.

use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::signer::PublicKey;
use crate::domain::signer::jwk::PublicJwk;
use crate::metrics::Verdict;

use super::admission::Entrance;
use super::answer::json_response;
use super::call::Call;
use super::problem::Problem;
use super::schema;

/// `POST /v1/attestations/verify`
#[derive(Deserialize, ToSchema)]
#[schema(as = VerifyAttestation)]
#[serde(deny_unknown_fields)]
pub(super) struct VerifyBody {
    #[schema(schema_with = schema::attestation)]
    attestation: String,
}

pub(super) async fn verify(api: Entrance, call: Call) -> Result<Response, Problem> {
    let VerifyBody { attestation } = call.any_client_json(&api).await?;
    if attestation.is_empty() {
        return Err(Problem::Invalid { field: "attestation", reason: "must be a compact JWS" });
    }
    match api.turn().await?.verify_attestation(&attestation).await? {
        Some(claims) => Ok(json_response(StatusCode::OK, Verdict::Verified, &claims)),
        None => Err(Problem::VerificationFailed { attempts_remaining: None }),
    }
}

/// A JWK Set (RFC 7517, section 5).
#[derive(Serialize, ToSchema)]
#[schema(as = JwkSet)]
pub(super) struct JwkSetBody {
    /// The newest first. Old ones stay: what they signed is still verified.
    #[schema(schema_with = schema::attestation_keys)]
    pub keys: Vec<PublicJwk>,
}

pub(super) async fn jwks(api: Entrance, call: Call) -> Result<Response, Problem> {
    call.any_client();
    let keys = api.turn().await?.attestation_keys().await?.iter().map(PublicKey::to_jwk).collect();
    Ok(json_response(StatusCode::OK, Verdict::Found, &JwkSetBody { keys }))
}
