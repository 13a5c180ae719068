//! The JSON of what a device signed: the same wherever a device signs.

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

use crate::domain::signer::signature::SignatureFormat;
use crate::domain::webauthn::Assertion;
use crate::service::verification::DeviceProof;

use super::problem::Problem;

/// How a device's proof is written.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ProofFormat {
    Der,
    P1363,
    Raw,
    Jws,
    Webauthn,
}

/// The fields of a proof, as they came.
#[derive(Default)]
pub(super) struct ProofFields {
    pub format: Option<ProofFormat>,
    pub signature: Option<String>,
    pub authenticator_data: Option<String>,
    pub client_data_json: Option<String>,
}

impl ProofFields {
    /// Whether none of them came.
    pub fn is_empty(&self) -> bool {
        let Self { format, signature, authenticator_data, client_data_json } = self;
        format.is_none() && signature.is_none() && authenticator_data.is_none() && client_data_json.is_none()
    }
}

impl TryFrom<ProofFields> for DeviceProof {
    type Error = Problem;

    fn try_from(fields: ProofFields) -> Result<Self, Problem> {
        let ProofFields { format, signature, authenticator_data, client_data_json } = fields;
        let invalid = |field, reason| Problem::Invalid { field, reason };
        let is_assertion = authenticator_data.is_some() || client_data_json.is_some();
        let format = format.ok_or(invalid("format", "must be there"))?;
        if is_assertion && format != ProofFormat::Webauthn {
            return Err(invalid("", "authenticator_data and client_data_json are of format webauthn"));
        }
        let signature = signature.ok_or(invalid("signature", "must be there"))?;
        let format = match format {
            ProofFormat::Der => SignatureFormat::Der,
            ProofFormat::P1363 => SignatureFormat::P1363,
            ProofFormat::Raw => SignatureFormat::Raw,
            ProofFormat::Jws if is_compact(&signature) => return Ok(Self::Jws(signature)),
            ProofFormat::Jws => return Err(invalid("signature", "must be a compact JWS")),
            ProofFormat::Webauthn => {
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
