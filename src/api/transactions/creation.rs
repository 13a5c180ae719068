//! The JSON of a new transaction: its terms, and what its method asks for besides.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use crate::domain::account::AccountRef;
use crate::domain::id::CredentialId;
use crate::domain::money::{Money, MoneyError};
use crate::domain::multi_terminal::{EntryOrder, Interval};
use crate::domain::otp::Digits;
use crate::domain::presentation::code_hash;
use crate::domain::text::{DISPLAY_TEXT_RULE, DisplayText, TextError};
use crate::domain::transaction::{LIFETIME_S_DEFAULT, LIFETIME_S_MAX};
use crate::service::transactions::{Approval, ByCredential, ByTerminals, MethodName, NewTransaction};

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
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, value_type = CredentialId)]
    credential: Option<String>,
    /// Whose money it is: the account that the credential speaks for (it may be left out), or whose terminals are
    /// asked.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, value_type = AccountRef)]
    payer: Option<String>,
    #[serde(default, deserialize_with = "rule")]
    #[schema(nullable = false)]
    rule: Option<RuleBody>,
    /// How long the codes are: 6 to 10 digits, by default 6; for a target 8 to 10, by default 8.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, minimum = 6, maximum = 10)]
    digits: Option<u64>,
    /// The string that the payer presented.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, min_length = 1, max_length = 128)]
    presentation: Option<String>,
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

/// How codes have to be entered (seed E, step 4).
#[derive(Deserialize, ToSchema)]
#[schema(as = EntryRule)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleBody {
    r#type: EntryOrder,
    /// All terminals that are asked, in the rule's order; by default that of their enrolment.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, value_type = Vec<CredentialId>, min_items = 2, max_items = 8)]
    order: Option<Vec<String>>,
    /// Until when, in seconds from the transaction's beginning.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, minimum = 1, maximum = 3600)]
    window_seconds: Option<u64>,
    /// How far apart, in seconds; not for a target.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, minimum = 1, maximum = 600)]
    interval_seconds: Option<u64>,
    /// How much nearer or farther, in seconds: at most the interval itself; by default 2, and for an interval of 1
    /// second 1.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, minimum = 1, maximum = 600)]
    tolerance_seconds: Option<u64>,
}

/// An object: serde takes an array as well, and its elements for the fields in their order.
fn rule<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<RuleBody>, D::Error> {
    struct Fields;

    impl<'de> Visitor<'de> for Fields {
        type Value = RuleBody;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<RuleBody, A::Error> {
            RuleBody::deserialize(MapAccessDeserializer::new(fields))
        }
    }

    deserializer.deserialize_map(Fields).map(Some)
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

    fn try_from(mut body: CreateBody) -> Result<Self, Problem> {
        let approval = approval(&mut body)?;
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
            approval,
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

/// What the method asks for; what it does not ask for is a mistake.
fn approval(body: &mut CreateBody) -> Result<Approval, Problem> {
    let (credential, payer_text) = (body.credential.take(), body.payer.take());
    let (rule, digits, presentation) = (body.rule.take(), body.digits.take(), body.presentation.take());
    let (by_credential, by_terminals, by_presentation) = match body.method {
        MethodName::ChallengeResponse | MethodName::DeviceSignature => (true, false, false),
        MethodName::MultiTerminal => (false, true, false),
        MethodName::RollingPassword => (false, false, false),
        MethodName::PresentedCode => (false, false, true),
    };
    for (field, is_there, is_asked, may_be_left_out) in [
        ("credential", credential.is_some(), by_credential, false),
        ("payer", payer_text.is_some(), by_credential || by_terminals, by_credential),
        ("rule", rule.is_some(), by_terminals, false),
        ("digits", digits.is_some(), by_terminals, true),
        ("presentation", presentation.is_some(), by_presentation, false),
    ] {
        match (is_there, is_asked) {
            (true, false) => return Err(invalid(field, "must not be there: the method does not ask for it")),
            (false, true) if !may_be_left_out => return Err(invalid(field, "must be there")),
            _ => {}
        }
    }
    let payer = payer_text.map(payer).transpose()?;
    let credential = credential.as_deref().and_then(CredentialId::parse);
    match (body.method, payer, rule, presentation) {
        (MethodName::ChallengeResponse, payer, ..) => {
            Ok(Approval::ChallengeResponse(ByCredential { credential, payer }))
        }
        (MethodName::DeviceSignature, payer, ..) => {
            Ok(Approval::DeviceSignature(ByCredential { credential, payer }))
        }
        (MethodName::MultiTerminal, Some(payer), Some(rule), _) => {
            Ok(Approval::MultiTerminal(by_terminals_of(payer, rule, digits)?))
        }
        (MethodName::RollingPassword, ..) => Ok(Approval::RollingPassword),
        (MethodName::PresentedCode, .., Some(text)) => {
            Ok(Approval::PresentedCode { code_hash: code_hash(&text) })
        }
        (MethodName::MultiTerminal | MethodName::PresentedCode, ..) => {
            Err(invalid("method", "must be there"))
        }
    }
}

fn by_terminals_of(payer: AccountRef, rule: RuleBody, digits: Option<u64>) -> Result<ByTerminals, Problem> {
    let RuleBody { r#type: order, order: terminals, window_seconds, interval_seconds, tolerance_seconds } =
        rule;
    let is_target = order == EntryOrder::Target;
    let digits = digits.unwrap_or(if is_target { 8 } else { 6 });
    let digits = u8::try_from(digits).ok().and_then(|digits| Digits::try_from(digits).ok());
    let digits = digits.filter(|digits| !is_target || u8::from(*digits) >= 8);
    let digits = digits.ok_or(invalid("digits", "must be 6 to 10; for a target, 8 to 10"))?;
    let window_s = window_seconds
        .map(|seconds| within(seconds, 3_600).ok_or(invalid("window_seconds", "must be 1 to 3600 seconds")));
    let interval = match (interval_seconds, tolerance_seconds) {
        (None, None) => None,
        (None, Some(_)) => return Err(invalid("tolerance_seconds", "is of an interval")),
        (Some(_), _) if is_target => return Err(invalid("interval_seconds", "a target is one entry")),
        (Some(interval), tolerance) => {
            let interval_s =
                within(interval, 600).ok_or(invalid("interval_seconds", "must be 1 to 600 seconds"))?;
            let tolerance_s = within(tolerance.unwrap_or(interval.min(2)), interval);
            let rule = "must be at least 1 second, and not more than the interval";
            Some(Interval { interval_s, tolerance_s: tolerance_s.ok_or(invalid("tolerance_seconds", rule))? })
        }
    };
    let terminals = terminals.map(|ids| ids.iter().map(|id| CredentialId::parse(id)).collect());
    Ok(ByTerminals { payer, order, terminals, window_s: window_s.transpose()?, interval, digits })
}

/// A number from 1 to `max`, if it is one.
fn within(number: u64, max: u64) -> Option<u16> {
    if (1..=max).contains(&number) { number.try_into().ok() } else { None }
}

fn invalid(field: &'static str, reason: &'static str) -> Problem {
    Problem::Invalid { field, reason }
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
