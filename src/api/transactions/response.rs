//! The JSON of a response: a code, a signature, a JWS or a WebAuthn assertion.

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::otp::Otp;
use crate::domain::signer::signature::SignatureFormat;
use crate::domain::webauthn::Assertion;
use crate::service::transactions::Presented;

use super::super::call::{OTP_FORM, not_null};
use super::super::problem::Problem;
use super::super::schema;

/// `POST /v1/transactions/{id}/responses`
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ResponseBody {
    /// As many digits as the suite says.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, min_length = 6, max_length = 10, pattern = "^[0-9]+$")]
    otp: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    format: Option<ResponseFormat>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::response_signature)]
    signature: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::authenticator_data)]
    authenticator_data: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::client_data_json)]
    client_data_json: Option<String>,
}

/// How a response is written.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in super::super) enum ResponseFormat {
    Der,
    P1363,
    Raw,
    Jws,
    Webauthn,
}

impl TryFrom<ResponseBody> for Presented {
    type Error = Problem;

    fn try_from(body: ResponseBody) -> Result<Self, Problem> {
        let ResponseBody { otp, format, signature, authenticator_data, client_data_json } = body;
        let invalid = |field, reason| Problem::Invalid { field, reason };
        let is_assertion = authenticator_data.is_some() || client_data_json.is_some();
        let Some(format) = format else {
            if signature.is_some() || is_assertion {
                return Err(invalid("format", "must be there"));
            }
            let otp = otp.ok_or(invalid("otp", "must be there"))?;
            return Otp::parse(otp).map(Self::Code).ok_or(invalid("otp", OTP_FORM));
        };
        if otp.is_some() {
            return Err(invalid("", "a code and a signature are two responses"));
        }
        if is_assertion && format != ResponseFormat::Webauthn {
            return Err(invalid("", "authenticator_data and client_data_json are of format webauthn"));
        }
        let signature = signature.ok_or(invalid("signature", "must be there"))?;
        let format = match format {
            ResponseFormat::Der => SignatureFormat::Der,
            ResponseFormat::P1363 => SignatureFormat::P1363,
            ResponseFormat::Raw => SignatureFormat::Raw,
            ResponseFormat::Jws if is_compact(&signature) => return Ok(Self::Jws(signature)),
            ResponseFormat::Jws => return Err(invalid("signature", "must be a compact JWS")),
            ResponseFormat::Webauthn => {
                let authenticator_data =
                    authenticator_data.ok_or(invalid("authenticator_data", "must be there"))?;
                let client_data_json =
                    client_data_json.ok_or(invalid("client_data_json", "must be there"))?;
                let assertion = Assertion {
                    authenticator_data: bytes("authenticator_data", &authenticator_data)?,
                    client_data_json: bytes("client_data_json", &client_data_json)?,
                };
                return Ok(Self::Assertion { assertion, signature: bytes("signature", &signature)? });
            }
        };
        Ok(Self::Signature { format, signature: bytes("signature", &signature)? })
    }
}

/// Whether it is spelt with what a compact JWS is spelt with (RFC 7515, section 7.1); what it is worth is another
/// question.
fn is_compact(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Base64url without padding (RFC 4648, section 5), of at least one byte.
fn bytes(field: &'static str, text: &str) -> Result<Vec<u8>, Problem> {
    let decoded = BASE64URL_NOPAD.decode(text.as_bytes()).ok().filter(|bytes| !bytes.is_empty());
    decoded.ok_or(Problem::Invalid { field, reason: "must be base64url without padding, and not empty" })
}
