//! The JSON of a response: a code, several, a password, or what a device signed.

use serde::Deserialize;
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::domain::multi_terminal::TERMINALS;
use crate::domain::otp::Otp;
use crate::domain::rolling::RollingPassword;
use crate::service::transactions::{Decision, Presented};

use super::super::call::{OTP_FORM, not_null};
use super::super::problem::Problem;
use super::super::proof::{ProofFields, ProofFormat};
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
    format: Option<ProofFormat>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::response_signature)]
    signature: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::authenticator_data)]
    authenticator_data: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::client_data_json)]
    client_data_json: Option<String>,
    /// The codes of all terminals, in the order of the rule; not where the rule says how far apart they come.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::response_codes)]
    codes: Option<Vec<String>>,
    /// The next code. With the last one comes the verdict.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, min_length = 6, max_length = 10, pattern = "^[0-9]+$")]
    code: Option<String>,
    /// The sum of the codes, each multiplied with its weight, modulo 10^digits.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, min_length = 8, max_length = 10, pattern = "^[0-9]+$")]
    target: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::password)]
    password: Option<Zeroizing<String>>,
    /// What the user of a presented code decides; the signature says the same.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    decision: Option<DecisionName>,
}

/// What a user decides, as in JSON.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[schema(as = Decision)]
#[serde(rename_all = "snake_case")]
pub(super) enum DecisionName {
    Approve,
    Decline,
}

impl From<DecisionName> for Decision {
    fn from(name: DecisionName) -> Self {
        match name {
            DecisionName::Approve => Self::Approve,
            DecisionName::Decline => Self::Decline,
        }
    }
}

impl TryFrom<ResponseBody> for Presented {
    type Error = Problem;

    fn try_from(body: ResponseBody) -> Result<Self, Problem> {
        let ResponseBody {
            otp,
            format,
            signature,
            authenticator_data,
            client_data_json,
            codes,
            code,
            target,
            password,
            decision,
        } = body;
        let fields = ProofFields { format, signature, authenticator_data, client_data_json };
        let invalid = |field, reason| Problem::Invalid { field, reason };
        if let Some(decision) = decision {
            let is_alone =
                otp.is_none() && codes.is_none() && code.is_none() && target.is_none() && password.is_none();
            return match is_alone {
                true => Ok(Self::Decision(decision.into(), fields.try_into()?)),
                false => Err(invalid("", TWO_FORMS)),
            };
        }
        match (otp, codes, code, target, password, fields.is_empty()) {
            (Some(otp), None, None, None, None, true) => Ok(Self::Code(digits("otp", otp)?)),
            (None, Some(codes), None, None, None, true) => {
                if !(1..=*TERMINALS.end()).contains(&codes.len()) {
                    return Err(invalid("codes", "must be 1 to 8 codes"));
                }
                let codes = codes.into_iter().map(|code| digits("codes", code));
                Ok(Self::Codes(codes.collect::<Result<_, _>>()?))
            }
            (None, None, Some(code), None, None, true) => Ok(Self::Entry(digits("code", code)?)),
            (None, None, None, Some(target), None, true) => Ok(Self::Target(digits("target", target)?)),
            (None, None, None, None, Some(password), true) => RollingPassword::parse(&password)
                .map(Self::Password)
                .ok_or(invalid("password", "must be 38 characters of base64url without padding: 28 bytes")),
            (None, None, None, None, None, false) => Ok(Self::Proof(fields.try_into()?)),
            (None, None, None, None, None, true) => Err(invalid("otp", "must be there")),
            _ => Err(invalid("", TWO_FORMS)),
        }
    }
}

const TWO_FORMS: &str = "a response has one form: what is presented is there in two";

fn digits(field: &'static str, text: String) -> Result<Otp, Problem> {
    Otp::parse(text).ok_or(Problem::Invalid { field, reason: OTP_FORM })
}
