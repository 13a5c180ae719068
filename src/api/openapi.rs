//! `GET /v1/openapi.json`: the OpenAPI 3.1 document, made of the types that requests are parsed into and answers
//! are made of.

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;
use utoipa::openapi::path::HttpMethod;
use utoipa::openapi::schema::{AdditionalProperties, Object, ObjectBuilder};
use utoipa::openapi::security::SecurityScheme;
use utoipa::openapi::{Components, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Paths, Server};

use crate::metrics::Verdict;

use super::answer::json_bytes;
use super::audit;
use super::authorizations;
use super::call::Call;
use super::credentials;
use super::import_key;
use super::presentations;
use super::problem::Problem;
use super::schema::text;
use super::transactions;

pub(super) mod operation;

use operation::{Operation, Refusal, example};

/// Made once.
static DOCUMENT: LazyLock<Result<Bytes, String>> =
    LazyLock::new(|| serde_json::to_vec(&document()).map(Bytes::from).map_err(|error| error.to_string()));

pub(super) async fn get(call: Call) -> Result<Response, Problem> {
    call.any_client();
    let document = DOCUMENT.as_ref().map_err(|error| Problem::unavailable(error, 60))?;
    Ok(json_bytes(StatusCode::OK, Verdict::Found, document.clone()))
}

/// The route of the document itself.
fn own_operation() -> Operation {
    let schema = ObjectBuilder::new()
        .property("openapi", text("The version of the format.").pattern(Some(r"^3\.1\.[0-9]+$")))
        .property("info", Object::new())
        .property("paths", Object::new())
        .additional_properties(Some(AdditionalProperties::FreeForm(true)))
        .required("openapi")
        .required("info")
        .required("paths");
    let frame =
        json!({ "openapi": "3.1.0", "info": { "title": "hsm-authd", "version": "0.1.0" }, "paths": {} });
    Operation::new(HttpMethod::Get, "/v1/openapi.json", "getOpenApi")
        .said("This document", "What this release takes and answers, made of the code. It is no tenant's.")
        .answers(
            StatusCode::OK,
            schema.into(),
            "An OpenAPI 3.1 document.",
            vec![example("document", "Its frame", frame)],
        )
}

fn document() -> OpenApi {
    let operations = [
        credentials::operations::operations(),
        authorizations::operations::operations(),
        presentations::operations::operations(),
        transactions::operations::operations(),
        import_key::operations(),
        audit::operations::operations(),
        vec![own_operation()],
    ]
    .concat();
    let mut paths = Paths::new();
    for operation in &operations {
        paths.add_path_operation(operation.path, vec![operation.method.clone()], operation.build());
    }
    let license = LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build();
    let info = InfoBuilder::new()
        .title("hsm-authd")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(include_str!("openapi/introduction.md")))
        .license(Some(license));
    OpenApiBuilder::new()
        .info(info)
        .servers(Some([Server::new("/")]))
        .paths(paths)
        .components(Some(components(&operations)))
        .build()
}

fn components(operations: &[Operation]) -> Components {
    let mut components = Components::new();
    components.schemas.extend(credentials::schemas::schemas());
    components.schemas.extend(authorizations::operations::schemas());
    components.schemas.extend(presentations::operations::schemas());
    components.schemas.extend(transactions::schemas::schemas());
    components.schemas.extend(import_key::schemas());
    components.schemas.extend(audit::operations::schemas());
    for problem in Problem::examples() {
        components.schemas.insert(problem.schema_name(), problem.schema().into());
    }
    // No operation answers what asks for none.
    let of_none = Refusal(vec![Problem::MethodNotAllowed]);
    for refusal in operations.iter().flat_map(Operation::refusals).chain([of_none]) {
        components.responses.insert(refusal.name(), refusal.response().into());
    }
    components.parameters.extend(operation::parameters());
    components.headers.extend(operation::headers());
    let certificate = SecurityScheme::MutualTls {
        description: Some(
            "TLS 1.3 with a client certificate, whose subject alternative name has to name exactly one configured \
             client: one of its URIs, byte for byte; or, if it has no URI, one of its DNS names, without case. The \
             names beside it are the permissions that an operation asks for."
                .to_owned(),
        ),
        deprecated: None,
        extensions: None,
    };
    components.security_schemes.insert(operation::SECURITY.to_owned(), certificate.into());
    components
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::super::call::{CHOICES, FIELDS};
    use super::*;

    fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(at) => resolved(document, document.pointer(at.trim_start_matches('#')).unwrap()),
            None => schema,
        }
    }

    /// The fields of a body in each of its forms, and those of the objects in it: name and schema. A JWK's members
    /// are nobody's: they are not told by name.
    fn fields<'a>(document: &'a Value, schema: &'a Value) -> Vec<(&'a str, &'a Value)> {
        let schema = resolved(document, schema);
        let forms = schema["oneOf"].as_array().into_iter().flatten();
        let own = schema["properties"].as_object().into_iter().flatten();
        let own = own.flat_map(|(name, schema)| {
            let schema = resolved(document, schema);
            let within = if name == "jwk" { Vec::new() } else { fields(document, schema) };
            [vec![(name.as_str(), schema)], within].concat()
        });
        forms.flat_map(|form| fields(document, form)).chain(own).collect()
    }

    #[test]
    fn callers_are_told_every_field_by_its_name() {
        let document = serde_json::to_value(document()).unwrap();
        let operations =
            document["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap());
        let fields: Vec<_> = operations
            .flat_map(|(_, operation)| {
                fields(&document, &operation["requestBody"]["content"]["application/json"]["schema"])
            })
            .collect();
        let names: BTreeSet<_> = fields.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, BTreeSet::from(FIELDS));
        // A form may have a `type` or a `format` of its own alone; the parser knows them all.
        let choices: BTreeSet<_> = fields
            .iter()
            .filter_map(|(name, schema)| match (*name, schema["enum"].as_array()?.as_slice()) {
                ("type", [_]) => Some(("hotp", "type")),
                ("type", values) => Some((values.first()?.as_str()?, "rule")),
                ("format", [_]) => None,
                (name, values) => Some((values.first()?.as_str()?, name)),
            })
            .collect();
        assert_eq!(choices, BTreeSet::from(CHOICES));
    }
}
