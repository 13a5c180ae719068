//! The JSON of a new transaction.

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use crate::domain::account::AccountRef;
use crate::domain::id::CredentialId;
use crate::domain::money::{Money, MoneyError};
use crate::domain::text::{DISPLAY_TEXT_RULE, DisplayText, TextError};
use crate::domain::transaction::{LIFETIME_S_DEFAULT, LIFETIME_S_MAX};
use crate::service::transactions::{MethodName, NewTransaction};

use super::super::call::not_null;
use super::super::problem::Problem;
use super::super::schema;

/// `POST /v1/transactions`
#[derive(Deserialize, ToSchema)]
#[schema(as = CreateTransaction)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    method: MethodName,
    /// The credential that has to respond.
    #[schema(value_type = CredentialId)]
    credential: String,
    /// The account that the credential speaks for; it may be left out.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, value_type = AccountRef)]
    payer: Option<String>,
    #[schema(schema_with = schema::payee)]
    payee: String,
    #[serde(deserialize_with = "amount")]
    #[schema(schema_with = schema::amount)]
    amount: String,
    #[schema(schema_with = schema::currency)]
    currency: String,
    #[schema(schema_with = schema::order)]
    order: String,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::platform)]
    platform: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::remark)]
    remark: Option<String>,
    /// The attestation of the transaction that this one follows, byte for byte as it was given out.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::attestation)]
    parent: Option<String>,
    /// How long it can be approved, in seconds.
    #[serde(default = "default_lifetime_s")]
    #[schema(default = default_lifetime_s, minimum = 1, maximum = 3600)]
    expires_in: u64,
}

fn default_lifetime_s() -> u64 {
    LIFETIME_S_DEFAULT.into()
}

/// A number, which is what comes most often instead, is refused by the field's own rule.
fn amount<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map_err(|_| D::Error::custom(MoneyError::AMOUNT_RULE))
}

impl TryFrom<CreateBody> for NewTransaction {
    type Error = Problem;

    fn try_from(body: CreateBody) -> Result<Self, Problem> {
        let money = Money::new(&body.amount, &body.currency).map_err(|error| {
            let field = match error {
                MoneyError::Amount => "amount",
                MoneyError::Currency => "currency",
            };
            Problem::Invalid { field, reason: error.rule() }
        })?;
        let lifetime_s = u32::try_from(body.expires_in).ok().filter(|s| (1..=LIFETIME_S_MAX).contains(s));
        let lifetime_s = lifetime_s
            .ok_or(Problem::Invalid { field: "expires_in", reason: "must be 1 to 3600 seconds" })?;
        Ok(Self {
            method: body.method,
            credential: CredentialId::parse(&body.credential),
            payer: body.payer.map(payer).transpose()?,
            payee: text("payee", body.payee)?,
            money,
            order: text("order", body.order)?,
            platform: body.platform.map(|platform| text("platform", platform)).transpose()?,
            remark: body.remark.map(|remark| text("remark", remark)).transpose()?,
            parent: body.parent,
            lifetime_s,
        })
    }
}

fn payer(text: String) -> Result<AccountRef, Problem> {
    AccountRef::try_from(text).map_err(|reason| Problem::Invalid { field: "payer", reason })
}

fn text<const CHARS_MAX: usize>(
    field: &'static str,
    text: String,
) -> Result<DisplayText<CHARS_MAX>, Problem> {
    DisplayText::try_from(text).map_err(|error| {
        let reason = match error {
            TextError::Length => "must be 1 to 128 characters; of a remark, 1 to 256",
            TextError::Characters => DISPLAY_TEXT_RULE,
        };
        Problem::Invalid { field, reason }
    })
}
