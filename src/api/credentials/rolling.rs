//! `/v1/credentials/{id}/activate`, `.../rotation`, `.../rebind`: what a rolling credential's terminal brings, and what
//! it is told.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::domain::account::AccountRef;
use crate::domain::caller::Permission;
use crate::domain::id::CredentialId;
use crate::domain::rolling::{Evidence, IDENTITY_KEY_BYTES, ROTATION_PROOF_BYTES};
use crate::domain::text::{DISPLAY_TEXT_RULE, TextError};
use crate::metrics::Verdict;
use crate::secret::SecretBytes;
use crate::service::Answer;
use crate::service::credential_view::CredentialView;
use crate::service::rolling::{Activation, RollingAnswer, RotationProof, TemporaryCode};

use super::super::admission::Entrance;
use super::super::answer::json_response;
use super::super::call::Call;
use super::super::problem::Problem;
use super::super::schema;

pub(in super::super) async fn activate(api: Entrance, call: Call) -> Result<RollingAnswer, Problem> {
    let mut call = call.allowed(Permission::Enroll)?;
    let id = call.credential_id().await;
    let (ask, body) = call.json::<ActivateBody>(&api).await?;
    let activation = body.try_into()?;
    Ok(api.turn().await?.activate(ask, id, activation).await?)
}

pub(in super::super) async fn rotate(api: Entrance, call: Call) -> Result<RollingAnswer, Problem> {
    let mut call = call.allowed(Permission::Transact)?;
    let id = call.credential_id().await;
    let (ask, body) = call.json::<RotationBody>(&api).await?;
    let proof = body.try_into()?;
    Ok(api.turn().await?.rotate(ask, id, proof).await?)
}

pub(in super::super) async fn rebind(api: Entrance, call: Call) -> Result<Answer, Problem> {
    let mut call = call.allowed(Permission::Enroll)?;
    let id = call.credential_id().await;
    let ask = call.no_json(&api).await?;
    Ok(api.turn().await?.rebind(ask, id).await?)
}

/// `POST /v1/credentials/{id}/activate`
#[derive(Deserialize, ToSchema)]
#[schema(as = Activate)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct ActivateBody {
    #[schema(schema_with = schema::identity_key_hex)]
    identity_key_hex: Zeroizing<String>,
    #[schema(schema_with = schema::evidence)]
    evidence: String,
}

impl TryFrom<ActivateBody> for Activation {
    type Error = Problem;

    fn try_from(body: ActivateBody) -> Result<Self, Problem> {
        let identity_key = bytes("identity_key_hex", &body.identity_key_hex, IDENTITY_KEY_BYTES)?;
        Ok(Self { identity_key, evidence: evidence(body.evidence)? })
    }
}

/// What the bank has checked, wherever it says so.
pub(in super::super) fn evidence(text: String) -> Result<Evidence, Problem> {
    text.try_into().map_err(|error| Problem::Invalid {
        field: "evidence",
        reason: match error {
            TextError::Length => "must be 1 to 128 characters",
            TextError::Characters => DISPLAY_TEXT_RULE,
        },
    })
}

/// `POST /v1/credentials/{id}/rotation`
#[derive(Deserialize, ToSchema)]
#[schema(as = Rotate)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct RotationBody {
    /// The consumed epoch, to be told the next temporary code again; or the open one, whose code the terminal has.
    #[schema(minimum = 1)]
    epoch: u64,
    #[schema(schema_with = schema::proof_hex)]
    proof_hex: Zeroizing<String>,
}

impl TryFrom<RotationBody> for RotationProof {
    type Error = Problem;

    fn try_from(body: RotationBody) -> Result<Self, Problem> {
        if body.epoch == 0 {
            return Err(Problem::Invalid { field: "epoch", reason: "must be 1 or more" });
        }
        let proof = bytes("proof_hex", &body.proof_hex, ROTATION_PROOF_BYTES)?;
        Ok(Self { epoch: body.epoch, proof })
    }
}

/// 32 bytes in hexadecimal.
fn bytes(field: &'static str, hex: &Zeroizing<String>, length: usize) -> Result<SecretBytes, Problem> {
    let decoded = HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).map(SecretBytes::new).ok();
    let reason = "must be 32 bytes in hexadecimal";
    decoded.filter(|bytes| bytes.len() == length).ok_or(Problem::Invalid { field, reason })
}

/// A credential that is bound, and its first temporary code.
#[derive(Serialize, ToSchema)]
#[schema(as = ActivatedCredential)]
pub(in super::super) struct ActivatedBody<'a> {
    #[serde(flatten)]
    pub view: &'a CredentialView,
    #[serde(flatten)]
    pub code: CodeBody<'a>,
}

/// What became of a rotation.
#[derive(Serialize, ToSchema)]
#[schema(as = Rotated)]
pub(in super::super) struct RotatedBody<'a> {
    /// Whose it is.
    #[schema(value_type = AccountRef)]
    pub account: String,
    /// The open epoch's code was acknowledged. Not there where a code is handed out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::yes)]
    pub acknowledged: Option<bool>,
    #[schema(value_type = CredentialId)]
    pub id: String,
    #[serde(flatten)]
    pub code: CodeBody<'a>,
}

/// An epoch, and its temporary code.
#[derive(Serialize, ToSchema)]
#[schema(as = TemporaryCode)]
pub(in super::super) struct CodeBody<'a> {
    /// The open epoch.
    #[schema(minimum = 1)]
    pub epoch: u64,
    /// T(epoch), 16 bytes in lower-case hexadecimal, for the terminal alone. Not there once the terminal has
    /// acknowledged or used it: a replay leaves it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, pattern = "^[0-9a-f]{32}$")]
    pub temporary_code: Option<&'a str>,
}

/// A temporary code as it is written into the one answer that holds it: declassified, its terminal is to have it.
pub(in super::super) fn hex(code: &TemporaryCode) -> Zeroizing<String> {
    Zeroizing::new(HEXLOWER.encode(code.code.expose()))
}

impl IntoResponse for RollingAnswer {
    fn into_response(self) -> Response {
        let code = self.code.as_ref().map(hex);
        let code = |epoch| CodeBody { epoch, temporary_code: code.as_ref().map(|code| code.as_str()) };
        match self.answer {
            Answer::Activated { view, handed_out } => {
                let body = ActivatedBody { view: &view, code: code(handed_out.epoch) };
                json_response(StatusCode::OK, Verdict::Activated, &body)
            }
            Answer::Rotated { account, handed_out } => {
                let code = code(handed_out.epoch);
                let body = RotatedBody { account, acknowledged: None, id: handed_out.credential, code };
                json_response(StatusCode::OK, Verdict::Rotated, &body)
            }
            Answer::Acknowledged { id, account, epoch } => {
                let code = CodeBody { epoch, temporary_code: None };
                let body = RotatedBody { account, acknowledged: Some(true), id, code };
                json_response(StatusCode::OK, Verdict::Rotated, &body)
            }
            answer => answer.into_response(),
        }
    }
}
