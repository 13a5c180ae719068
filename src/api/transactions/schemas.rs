//! The schemas of these routes; and the forms of a response, which one type of the parser takes.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AllOfBuilder, Object, ObjectBuilder, OneOfBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::domain::attestation::Claims;
use crate::domain::attestation::claims::{ParentLink, TermsText};
use crate::domain::signer::signature::SignatureFormat;
use crate::service::transaction_view::TransactionView;
use crate::service::transactions::MethodName;

use super::super::answer::ApprovedBody;
use super::super::attestations::{JwkSetBody, VerifyBody};
use super::super::schema::{
    Schemas, add, constant, form, object, proof_signature, reference, signed_format, text,
};
use super::creation::CreateBody;
use super::response::{DecisionName, ResponseBody};
use super::{AttestationBody, ListBody};

/// All that these routes refer to, by name.
pub(in super::super) fn schemas() -> Schemas {
    let mut schemas = Vec::new();
    add::<CreateBody>(&mut schemas);
    add::<ResponseForms>(&mut schemas);
    add::<ApprovedBody<'_>>(&mut schemas);
    add::<RejectedTransaction>(&mut schemas);
    add::<ListBody>(&mut schemas);
    add::<AttestationBody>(&mut schemas);
    add::<VerifyBody>(&mut schemas);
    add::<JwkSetBody>(&mut schemas);
    add::<Claims>(&mut schemas);
    add::<TermsText>(&mut schemas);
    add::<ParentLink>(&mut schemas);
    add::<MethodName>(&mut schemas);
    schemas
}

/// What is left of a transaction that its user declined: there is no attestation.
pub struct RejectedTransaction;

impl PartialSchema for RejectedTransaction {
    fn schema() -> RefOr<Schema> {
        let state = ObjectBuilder::new().property("state", constant("rejected")).required("state");
        AllOfBuilder::new().item(reference::<TransactionView>()).item(state).into()
    }
}

impl ToSchema for RejectedTransaction {}

/// [`ResponseBody`], told apart by what is presented.
pub struct ResponseForms;

impl PartialSchema for ResponseForms {
    fn schema() -> RefOr<Schema> {
        let body = object::<ResponseBody>();
        let of_format = |mut form: Object, format: RefOr<Schema>| {
            form.properties.insert("format".to_owned(), format);
            form
        };
        let signature = ["format", "signature"];
        let decision = ["decision", "format", "signature"];
        let assertion = ["format", "signature", "authenticator_data", "client_data_json"];
        let mut jws = form(&body, "A JWS", &signature, &signature);
        let compact = text(
            "The compact JWS. One that is made of the right characters and is none is a wrong response.",
        )
        .pattern(Some("^[A-Za-z0-9_.-]+$"));
        jws.properties.insert("signature".to_owned(), compact.into());
        let mut decided = form(&body, "A decision", &decision, &decision);
        decided.properties.insert("signature".to_owned(), proof_signature().into());
        let forms = [
            form(&body, "A code", &["otp"], &["otp"]),
            of_format(form(&body, "A signature", &signature, &signature), reference::<SignatureFormat>()),
            of_format(jws, constant("jws").into()),
            of_format(form(&body, "An assertion", &assertion, &assertion), constant("webauthn").into()),
            form(&body, "The codes of all terminals", &["codes"], &["codes"]),
            form(&body, "The next code of a terminal", &["code"], &["code"]),
            form(&body, "What the codes of all terminals come to", &["target"], &["target"]),
            form(&body, "A rolling password", &["password"], &["password"]),
            of_format(decided, signed_format().into()),
        ];
        forms.into_iter().fold(OneOfBuilder::new(), OneOfBuilder::item).into()
    }
}

impl ToSchema for ResponseForms {
    fn name() -> std::borrow::Cow<'static, str> {
        "Respond".into()
    }

    fn schemas(schemas: &mut Schemas) {
        schemas.push((DecisionName::name().into(), DecisionName::schema()));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::api::proof::ProofFormat;

    #[test]
    fn forms_have_every_field_of_their_type_and_every_format() {
        let forms = serde_json::to_value(ResponseForms::schema()).unwrap();
        let forms = forms["oneOf"].as_array().unwrap();
        let fields = forms.iter().flat_map(|form| form["properties"].as_object().unwrap().keys());
        let names: BTreeSet<_> = fields.map(String::as_str).collect();
        let body = object::<ResponseBody>();
        assert_eq!(names, body.properties.keys().map(String::as_str).collect());
        let values = |schema: &Value| schema["enum"].as_array().cloned().unwrap_or_default();
        let of_signatures = values(&serde_json::to_value(SignatureFormat::schema()).unwrap());
        // A decision is signed in one of several forms, and its own names them all.
        let own = forms.iter().filter(|form| form["title"] != "A decision");
        let own = own.flat_map(|form| values(&form["properties"]["format"]));
        let all = values(&serde_json::to_value(ProofFormat::schema()).unwrap());
        assert_eq!(of_signatures.into_iter().chain(own).collect::<Vec<_>>(), all);
    }
}
