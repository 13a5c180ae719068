//! The schemas of these routes; and the forms of requests, where one type of the parser takes several.

use utoipa::openapi::schema::{Discriminator, Object, OneOfBuilder, Schema};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

use super::super::answer::{DeletedBody, EnrolledBody, ResyncedBody, VerifiedBody};
use super::super::call::NoFields;
use super::super::schema::{Schemas, add, constant, form, object};
use super::ListBody;
use super::enrolment::{EnrolBody, HotpBody, OcraBody, RollingBody, SignerBody, TerminalBody, TotpBody};
use super::evidence::{ResyncBody, VerifyBody};
use super::rolling::{ActivateBody, ActivatedBody, CodeBody, RotatedBody, RotationBody};

/// All that these routes refer to, by name.
pub(in super::super) fn schemas() -> Schemas {
    let mut schemas = Vec::new();
    add::<EnrolBody>(&mut schemas);
    add::<VerifyForms>(&mut schemas);
    add::<ResyncBody>(&mut schemas);
    add::<NoFields>(&mut schemas);
    add::<EnrolledBody<'_>>(&mut schemas);
    add::<ListBody>(&mut schemas);
    add::<DeletedBody>(&mut schemas);
    add::<VerifiedBody>(&mut schemas);
    add::<ResyncedBody>(&mut schemas);
    add::<ActivateBody>(&mut schemas);
    add::<ActivatedBody<'_>>(&mut schemas);
    add::<RotationBody>(&mut schemas);
    add::<RotatedBody<'_>>(&mut schemas);
    add::<CodeBody<'_>>(&mut schemas);
    schemas
}

/// An enrolment says by its `type` which form it has. That field is none of its struct's: serde takes it first.
impl PartialSchema for EnrolBody {
    fn schema() -> RefOr<Schema> {
        let named = |name: &str| Ref::from_schema_name(name);
        let forms = enrolments();
        let mapping = forms.iter().map(|(tag, name, _)| (*tag, named(name).ref_location));
        let one_of = OneOfBuilder::new().discriminator(Some(Discriminator::with_mapping("type", mapping)));
        forms.iter().map(|(_, name, _)| named(name)).fold(one_of, OneOfBuilder::item).into()
    }
}

impl ToSchema for EnrolBody {
    fn name() -> std::borrow::Cow<'static, str> {
        "Enrol".into()
    }

    fn schemas(schemas: &mut Schemas) {
        schemas.extend(enrolments().into_iter().map(|(_, name, schema)| (name, schema.into())));
        HotpBody::schemas(schemas);
        TotpBody::schemas(schemas);
        OcraBody::schemas(schemas);
        SignerBody::schemas(schemas);
        TerminalBody::schemas(schemas);
        RollingBody::schemas(schemas);
    }
}

/// The forms of an enrolment: `type`, name, schema.
fn enrolments() -> [(&'static str, String, Schema); 6] {
    let signer = tagged("signer", object::<SignerBody>());
    let by = |key: &str| {
        let fields = ["type", "account", "algorithm", "authorization", key];
        form(&signer, &format!("By {key}"), &fields, &["type", "account", key])
    };
    let signer_forms = OneOfBuilder::new()
        .description(signer.description.clone())
        .item(by("public_key_pem"))
        .item(by("jwk"))
        .item(by("certificate_chain_pem"))
        .item(by("webauthn"));
    [
        ("hotp", HotpBody::name().into(), tagged("hotp", object::<HotpBody>()).into()),
        ("totp", TotpBody::name().into(), tagged("totp", object::<TotpBody>()).into()),
        ("ocra", OcraBody::name().into(), tagged("ocra", object::<OcraBody>()).into()),
        ("signer", SignerBody::name().into(), signer_forms.into()),
        ("terminal", TerminalBody::name().into(), tagged("terminal", object::<TerminalBody>()).into()),
        ("rolling", RollingBody::name().into(), tagged("rolling", object::<RollingBody>()).into()),
    ]
}

fn tagged(tag: &str, mut object: Object) -> Object {
    object.properties.insert("type".to_owned(), constant(tag).into());
    object.required.push("type".to_owned());
    object
}

/// [`VerifyBody`], told apart by what is presented.
pub struct VerifyForms;

impl PartialSchema for VerifyForms {
    fn schema() -> RefOr<Schema> {
        let body = object::<VerifyBody>();
        let signature = ["payload_base64", "signature_base64", "format"];
        let forms = [
            form(&body, "A code of hotp or totp", &["otp"], &["otp"]),
            form(&body, "A code of ocra", &["otp", "challenge", "session"], &["otp", "challenge"]),
            form(&body, "A signature", &signature, &signature),
        ];
        forms.into_iter().fold(OneOfBuilder::new(), OneOfBuilder::item).into()
    }
}

impl ToSchema for VerifyForms {
    fn name() -> std::borrow::Cow<'static, str> {
        "Verify".into()
    }

    fn schemas(schemas: &mut Schemas) {
        VerifyBody::schemas(schemas);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The fields of the objects in a schema that is one, or one of several.
    fn fields(schema: &RefOr<Schema>) -> BTreeSet<String> {
        match schema {
            RefOr::T(Schema::Object(object)) => object.properties.keys().cloned().collect(),
            RefOr::T(Schema::OneOf(one_of)) => one_of.items.iter().flat_map(fields).collect(),
            _ => BTreeSet::new(),
        }
    }

    #[test]
    fn forms_have_every_field_of_their_type() {
        assert_eq!(fields(&VerifyForms::schema()), fields(&VerifyBody::schema()));
        let signer = |mut fields: BTreeSet<String>| {
            fields.insert("type".to_owned());
            fields
        };
        let forms = enrolments().into_iter().find(|(tag, ..)| *tag == "signer").unwrap().2;
        assert_eq!(fields(&RefOr::T(forms)), signer(fields(&SignerBody::schema())));
    }
}
