//! The JSON of a transaction with the codes that are to be sent: they are put into that one answer, from the one place
//! that has them.

use serde::ser::{Error, SerializeMap};
use serde::{Serialize, Serializer};
use serde_json::Value;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::domain::id::CredentialId;
use crate::domain::multi_terminal::Address;
use crate::domain::otp::Otp;
use crate::service::transaction_view::{TerminalView, TransactionView};
use crate::service::transactions::ShownTransaction;

use super::super::schema::{Schemas, otp, reference};

/// A transaction, and the codes of its terminals where the client sends them.
pub(in super::super) struct ShownBody<'a> {
    pub view: &'a TransactionView,
    pub codes: Option<&'a [Otp]>,
}

impl<'a> ShownBody<'a> {
    pub fn of(shown: &'a ShownTransaction) -> Self {
        Self { view: &shown.view, codes: shown.codes.as_deref() }
    }
}

impl Serialize for ShownBody<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(codes) = self.codes else { return self.view.serialize(serializer) };
        let fields = object(serde_json::to_value(self.view).map_err(S::Error::custom)?)?;
        let mut map = serializer.serialize_map(Some(fields.len()))?;
        for (name, value) in fields {
            match name.as_str() {
                "challenge" => map.serialize_entry(&name, &Challenge { fields: value, codes })?,
                _ => map.serialize_entry(&name, &value)?,
            }
        }
        map.end()
    }
}

/// What has to be answered, with a code for each of its terminals.
struct Challenge<'a> {
    fields: Value,
    codes: &'a [Otp],
}

impl Serialize for Challenge<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields = object(self.fields.clone())?;
        let mut map = serializer.serialize_map(Some(fields.len()))?;
        for (name, value) in fields {
            match (name.as_str(), value) {
                ("terminals", Value::Array(terminals)) if terminals.len() == self.codes.len() => {
                    let terminals = terminals.into_iter().zip(self.codes);
                    let terminals: Vec<_> =
                        // Exposed to be sent, by whom the configuration allows to.
                        terminals.map(|(fields, code)| Terminal { fields, code: code.expose() }).collect();
                    map.serialize_entry(&name, &terminals)?;
                }
                ("terminals", _) => return Err(S::Error::custom("not as many codes as terminals")),
                (_, value) => map.serialize_entry(&name, &value)?,
            }
        }
        map.end()
    }
}

#[derive(Serialize)]
struct Terminal<'a> {
    #[serde(flatten)]
    fields: Value,
    code: &'a str,
}

fn object<E: Error>(value: Value) -> Result<serde_json::Map<String, Value>, E> {
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err(E::custom("a view is an object")),
    }
}

/// A terminal in an answer, with the code that only some are shown.
impl PartialSchema for TerminalView {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .description(Some("A terminal that a code is sent to."))
            .property("credential", reference::<CredentialId>())
            .required("credential")
            .property("address", reference::<Address>())
            .required("address")
            .property(
                "code",
                otp("What is to be sent there: for a client with the permission `deliver`, while the transaction is \
                     pending. The same each time.",
                ),
            )
            .into()
    }
}

impl ToSchema for TerminalView {
    fn name() -> std::borrow::Cow<'static, str> {
        "TransactionTerminal".into()
    }

    fn schemas(schemas: &mut Schemas) {
        for (name, schema) in
            [(CredentialId::name(), CredentialId::schema()), (Address::name(), Address::schema())]
        {
            schemas.push((name.into_owned(), schema));
        }
    }
}
