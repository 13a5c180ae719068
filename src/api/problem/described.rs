//! Problems for the OpenAPI document: of each kind an example, made as the real ones are, and its schema.

use serde_json::Value;
use utoipa::openapi::schema::{ObjectBuilder, Schema};

use crate::domain::otp::HOTP_DIGITS_RULE;

use super::super::schema::{constant, object};
use super::{Document, Problem};

/// The members that are always the same for one kind.
const CONSTANT: [&str; 4] = ["type", "title", "status", "detail"];

impl Problem {
    /// One of each kind.
    pub(in super::super) fn examples() -> Vec<Self> {
        vec![
            Self::Malformed("the body is no JSON"),
            Self::Invalid { field: "digits", reason: HOTP_DIGITS_RULE },
            Self::Unauthenticated,
            Self::Forbidden,
            Self::NotFound,
            Self::StateConflict,
            Self::IdempotencyMismatch,
            Self::VerificationFailed { attempts_remaining: Some(4) },
            Self::Expired,
            Self::NotAcceptable,
            Self::Locked { retry_after_s: Some(900) },
            Self::TooLarge,
            Self::UnsupportedMediaType,
            Self::MethodNotAllowed,
            Self::RateLimited { retry_after_s: 7 },
            Self::unavailable("", 1),
        ]
    }

    /// Its name among the document's schemas: that of the problem in one word, with the status.
    pub(in super::super) fn schema_name(&self) -> String {
        let words = self.verdict().name().split('-');
        let capitals = words.map(|word| {
            let (first, rest) = word.split_at(1);
            first.to_ascii_uppercase() + rest
        });
        format!("{}{}", capitals.collect::<String>(), self.status().as_u16())
    }

    /// The JSON of this one.
    pub(in super::super) fn example(&self) -> Value {
        serde_json::to_value(self.document("req_fk6lccggb9rl0ruf")).unwrap_or_default()
    }

    /// What every one of its kind is: the members of this one, of which those of its name are always the same.
    pub(in super::super) fn schema(&self) -> Schema {
        let known = object::<Document<'_>>().properties;
        let Value::Object(members) = self.example() else { return Schema::default() };
        let described = ObjectBuilder::new().description(Some(self.meaning()));
        let schema = members.into_iter().fold(described, |schema, (name, value)| {
            let schema = if self.may_lack(&name) { schema } else { schema.required(&name) };
            let property = match known.get(&name) {
                Some(property) if !CONSTANT.contains(&&*name) => property.clone(),
                _ => constant(value).into(),
            };
            schema.property(name, property)
        });
        schema.into()
    }

    fn may_lack(&self, member: &str) -> bool {
        match self {
            Self::Invalid { .. } => member == "field",
            Self::Locked { .. } => member == "retry_after",
            Self::VerificationFailed { .. } => member == "attempts_remaining",
            _ => false,
        }
    }

    /// What it means, and what it costs.
    pub(in super::super) fn meaning(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "The body is not JSON, or did not arrive.",
            Self::Invalid { .. } => "A field, parameter or header says what cannot be. Nothing is charged.",
            Self::Unauthenticated => "The certificate does not name exactly one configured client.",
            Self::Forbidden => {
                "The client does not have the permission. That is found out before anything else is looked at."
            }
            Self::NotFound => {
                "There is no such route, or no such resource for this client. Another tenant's id, an absent and a \
                 malformed one are answered alike."
            }
            Self::StateConflict => {
                "The state does not allow it, or the same `Idempotency-Key` is being worked on. Nothing is charged."
            }
            Self::IdempotencyMismatch => "The `Idempotency-Key` was used for another request.",
            Self::VerificationFailed { .. } => {
                "Wrong, or used up; never which. A wrong code is charged to its credential and account; the code \
                 accepted last, submitted again, is not. Signatures are never charged."
            }
            Self::Expired => "The transaction's time was over before it was approved. Nothing is charged.",
            Self::NotAcceptable => "`Accept` asks for none of the media types that there are.",
            Self::Locked { .. } => {
                "Too many failures. Nothing is tried or charged, and a right code is not used up. Without \
                 `retry_after` only `/unlock` ends it."
            }
            Self::TooLarge => "The body is larger than 64 KiB.",
            Self::UnsupportedMediaType => "The body is not `application/json`.",
            Self::MethodNotAllowed => {
                "The resource does not know this method; the header `Allow` says which it knows."
            }
            Self::RateLimited { .. } => {
                "The client has sent more passwords of nobody's in a minute than are configured. Nothing is tried or \
                 charged, and nothing is remembered."
            }
            Self::Unavailable { .. } => {
                "HSM, store, clock or a queue does not allow an answer now. Nobody was let in. Whether the request \
                 was carried out is not known: repeat it with the same `Idempotency-Key`."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn there_is_an_example_of_each_kind() {
        // A new kind does not compile until it has a place here, and then needs an example.
        let place = |problem: &Problem| match problem {
            Problem::Malformed(_) => 0,
            Problem::Invalid { .. } => 1,
            Problem::Unauthenticated => 2,
            Problem::Forbidden => 3,
            Problem::NotFound => 4,
            Problem::StateConflict => 5,
            Problem::IdempotencyMismatch => 6,
            Problem::VerificationFailed { .. } => 7,
            Problem::Locked { .. } => 8,
            Problem::TooLarge => 9,
            Problem::UnsupportedMediaType => 10,
            Problem::MethodNotAllowed => 11,
            Problem::Unavailable { .. } => 12,
            Problem::Expired => 13,
            Problem::NotAcceptable => 14,
            Problem::RateLimited { .. } => 15,
        };
        let examples = Problem::examples();
        let places: BTreeSet<_> = examples.iter().map(place).collect();
        assert_eq!(places, (0..16).collect());
        let names: BTreeSet<_> = examples.iter().map(Problem::schema_name).collect();
        assert_eq!(names.len(), examples.len());
    }
}
