//! What is presented to a credential: a code, a code that answers a question, or a signature.

use data_encoding::BASE64;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::domain::otp::Otp;
use crate::domain::signer::signature::SignatureFormat;
use crate::service::verification::{PresentedSignature, Question};

use super::super::call::{OTP_FORM, not_null};
use super::super::problem::Problem;
use super::super::schema;

/// `POST /v1/credentials/{id}/verify`
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct VerifyBody {
    /// As many digits as the credential's codes have.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, min_length = 6, max_length = 10, pattern = "^[0-9]+$")]
    otp: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::challenge)]
    challenge: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::session)]
    session: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::payload)]
    payload_base64: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::signature)]
    signature_base64: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    format: Option<SignatureFormat>,
}

/// `POST /v1/credentials/{id}/resync`
#[derive(Deserialize, ToSchema)]
#[schema(as = Resync, description = "Two codes of one token.")]
#[serde(deny_unknown_fields)]
pub(super) struct ResyncBody {
    #[schema(schema_with = schema::otps)]
    otps: [String; 2],
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::challenge)]
    challenge: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::session)]
    session: Option<String>,
}

/// A body of `verify`, understood.
pub(super) enum Evidence {
    /// A code.
    Code {
        otp: Otp,
        /// Of an OCRA token: what it answers.
        question: Option<Question>,
    },
    /// A signature.
    Signature(PresentedSignature),
}

impl TryFrom<VerifyBody> for Evidence {
    type Error = Problem;

    fn try_from(body: VerifyBody) -> Result<Self, Problem> {
        let VerifyBody { otp, challenge, session, payload_base64, signature_base64, format } = body;
        let invalid = |field, reason| Problem::Invalid { field, reason };
        let is_code = otp.is_some() || challenge.is_some() || session.is_some();
        match (payload_base64, signature_base64, format) {
            (None, None, None) => {
                let otp = otp.ok_or(invalid("otp", "must be there"))?;
                let otp = Otp::parse(otp).ok_or(invalid("otp", OTP_FORM))?;
                Ok(Self::Code { otp, question: question(challenge, session)? })
            }
            _ if is_code => Err(invalid("", "a code and a signature are two requests")),
            (None, ..) => Err(invalid("payload_base64", "must be there")),
            (_, None, _) => Err(invalid("signature_base64", "must be there")),
            (.., None) => Err(invalid("format", "must be there")),
            (Some(payload), Some(signature), Some(format)) => {
                let payload = bytes("payload_base64", &payload)?;
                let signature = bytes("signature_base64", &signature)?;
                let digest = Sha256::digest(&payload).into();
                Ok(Self::Signature(PresentedSignature { digest, format, signature }))
            }
        }
    }
}

impl ResyncBody {
    /// The two codes, and what an OCRA token was asked for both.
    pub fn parse(self) -> Result<([Otp; 2], Option<Question>), Problem> {
        let [first, second] = self.otps.map(Otp::parse);
        let (Some(first), Some(second)) = (first, second) else {
            return Err(Problem::Invalid { field: "otps", reason: OTP_FORM });
        };
        Ok(([first, second], question(self.challenge, self.session)?))
    }
}

fn question(challenge: Option<String>, session: Option<String>) -> Result<Option<Question>, Problem> {
    match (challenge, session) {
        (None, None) => Ok(None),
        (Some(challenge), session) => Ok(Some(Question { challenge, session })),
        (None, Some(_)) => Err(Problem::Invalid { field: "challenge", reason: "must be there" }),
    }
}

/// Base64 (RFC 4648, section 4) with padding, of at least one byte.
fn bytes(field: &'static str, text: &str) -> Result<Vec<u8>, Problem> {
    // The decoder also takes several such texts in a row.
    let is_one = |bytes: &Vec<u8>| !bytes.is_empty() && BASE64.encode(bytes) == text;
    let decoded = BASE64.decode(text.as_bytes()).ok().filter(is_one);
    decoded.ok_or(Problem::Invalid { field, reason: "must be base64 with padding, and not empty" })
}
