//! `GET /v1/openapi.json`: sound by itself, complete, and true of a live appliance.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::bank::refused;
use crate::client::{Connection, Http};
use crate::daemon::Daemon;
use crate::documented::{Documented, JSON, NOTE, examples};
use crate::permissions::{ROUTES, any_of};

const PATH: &str = "/v1/openapi.json";

#[tokio::test]
async fn every_client_gets_the_same_document() {
    let daemon = Daemon::start_with(&["--custodians", "1"], &[]);
    let mut documents = Vec::new();
    for client in ["bank-a", "bank-a-gateway", "bank-b", "auditor"] {
        for http in [Http::One, Http::Two] {
            let connection = daemon.connect_over(client, http).await;
            let answer = connection.get(PATH).await.unwrap();
            assert_eq!(
                (answer.status.as_u16(), answer.header("content-type")),
                (200, Some(JSON)),
                "{client}"
            );
            let head = connection.request("HEAD", PATH, &[], "").await.unwrap();
            assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
            assert_eq!(head.header("content-length"), Some(&*answer.body.len().to_string()));
            refused(&connection.post(PATH, &json!({})).await.unwrap(), 405, "method-not-allowed");
            documents.push(answer.body);
        }
    }
    assert!(documents.iter().all(|document| *document == documents[0]));
}

#[tokio::test]
async fn its_routes_are_those_of_the_table() {
    let (_daemon, documented) = start().await;
    let found: BTreeSet<_> = documented
        .operations()
        .into_iter()
        .map(|(method, path, operation)| {
            let permission = operation["x-permission"].as_str().unwrap().to_owned();
            let requirement = |roles| json!({ "clientCertificate": roles });
            let security: Vec<_> = match permission.as_str() {
                "any client" => vec![requirement(json!([]))],
                asked => any_of(asked).map(|role| requirement(json!([role]))).collect(),
            };
            assert_eq!(operation["security"], json!(security), "{method} {path}");
            assert!(operation["description"].as_str().unwrap().contains("ermission"), "{method} {path}");
            (method, path, permission)
        })
        .collect();
    let table = ROUTES.map(|(method, path, permission)| (method.into(), path.into(), permission.into()));
    assert_eq!(found, BTreeSet::from(table));
}

#[tokio::test]
async fn its_problems_are_those_of_the_table() {
    let (_daemon, documented) = start().await;
    let responses = documented.document["components"]["responses"].as_object().unwrap();
    let content = |response: &Value| response["content"]["application/problem+json"].clone();
    let found: BTreeSet<_> = responses
        .values()
        .flat_map(|response| {
            let content = content(response);
            let all = examples(&content).into_iter();
            all.map(|(name, value)| {
                assert_eq!(value["type"], format!("urn:hsm-authd:problem:{name}"));
                (name.to_owned(), value["status"].as_u64().unwrap())
            })
            .collect::<Vec<_>>()
        })
        .collect();
    let row = |line: &str| {
        let cells: Vec<_> = line.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect();
        // Name, status, meaning, more fields: no other table has a number there.
        let [_, name, status, _, _, _] = &*cells else { return None };
        Some((name.clone(), status.parse().ok()?))
    };
    let documents: BTreeSet<(String, u64)> =
        include_str!("../../docs/api.md").lines().filter_map(row).collect();
    assert_eq!(found, documents);
}

/// A daemon and its document.
pub async fn start() -> (Daemon, Documented) {
    let daemon = Daemon::start_with(&["--custodians", "1"], &[]);
    let connection: Connection = daemon.connect("auditor").await;
    (daemon, Documented::fetch(&connection).await)
}

/// Of each kind of object of OpenAPI 3.1 the members used here, and which of them have to be there.
const KINDS: [(&str, &[&str], &[&str]); 11] = [
    ("root", &["openapi", "info", "paths"], &["servers", "components"]),
    ("info", &["title", "version"], &["description", "license"]),
    ("components", &[], &["schemas", "responses", "parameters", "headers", "securitySchemes"]),
    (
        "operation",
        &["operationId", "summary", "description", "responses", "security", "x-permission"],
        &["parameters", "requestBody"],
    ),
    ("parameter", &["name", "in", "required", "schema"], &["description", "example"]),
    ("requestBody", &["description", "content", "required"], &[]),
    ("response", &["description", "headers", "content"], &[]),
    ("header", &["schema", "example"], &[]),
    ("content", &["schema", "examples"], &[]),
    ("example", &["summary", "value"], &[]),
    ("securityScheme", &["type", "description"], &[]),
];

/// What its schemas say; all of it is known to JSON Schema 2020-12, or to OpenAPI (`discriminator`).
const KEYWORDS: [&str; 24] = [
    "$ref",
    "type",
    "title",
    "description",
    "default",
    "examples",
    "format",
    "enum",
    "minLength",
    "maxLength",
    "pattern",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "maxProperties",
    "items",
    "properties",
    "required",
    "additionalProperties",
    "oneOf",
    "allOf",
    "contentEncoding",
    "discriminator",
];

/// What a walk through the document comes by.
struct Walk<'a> {
    documented: &'a Documented,
    referred: BTreeSet<String>,
    examples: usize,
}

impl<'a> Walk<'a> {
    fn kind(&self, at: &str, kind: &str, value: &Value) {
        let (_, required, optional) = KINDS.iter().find(|(name, ..)| *name == kind).unwrap();
        let members: BTreeSet<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let missing: Vec<_> = required.iter().filter(|name| !members.contains(**name)).collect();
        let unknown: Vec<_> =
            members.iter().filter(|name| !required.contains(name) && !optional.contains(name)).collect();
        assert!(missing.is_empty() && unknown.is_empty(), "{at}: lacks {missing:?}, has {unknown:?}");
        for words in ["description", "summary", "title"] {
            assert!(value.get(words).is_none_or(|text| !text.as_str().unwrap().is_empty()), "{at}: {words}");
        }
    }

    /// What a reference in the place of an object stands for.
    fn follow(&mut self, value: &'a Value) -> &'a Value {
        if let Some(reference) = value["$ref"].as_str() {
            assert_eq!(value.as_object().unwrap().len(), 1, "{value}");
            self.referred.insert(reference.to_owned());
        }
        self.documented.resolve(value)
    }

    fn schema(&mut self, at: &str, schema: &'a Value) {
        let members = schema.as_object().unwrap_or_else(|| panic!("{at}: {schema}"));
        jsonschema::draft202012::meta::validate(schema).unwrap_or_else(|error| panic!("{at}: {error}"));
        for (name, value) in members {
            assert!(KEYWORDS.contains(&name.as_str()), "{at}: {name}");
            match (name.as_str(), value) {
                ("$ref", Value::String(reference)) => {
                    self.documented.resolve(schema);
                    self.referred.insert(reference.clone());
                }
                ("items", value) => self.schema(&format!("{at}/items"), value),
                ("properties", Value::Object(properties)) => {
                    properties.iter().for_each(|(name, value)| self.schema(&format!("{at}/{name}"), value));
                }
                ("oneOf" | "allOf", Value::Array(all)) => all.iter().for_each(|one| self.schema(at, one)),
                ("required", Value::Array(required)) => {
                    assert!(
                        required
                            .iter()
                            .all(|name| members["properties"].get(name.as_str().unwrap()).is_some())
                    );
                }
                ("examples", Value::Array(values)) => values.iter().for_each(|v| self.example(at, schema, v)),
                ("default", value) => self.example(at, schema, value),
                ("discriminator", value) => {
                    let mapping = value["mapping"].as_object().unwrap();
                    let named: BTreeSet<_> = mapping.values().map(Value::to_string).collect();
                    let forms = members["oneOf"].as_array().unwrap();
                    assert_eq!(named, forms.iter().map(|form| form["$ref"].to_string()).collect());
                }
                _ => {}
            }
        }
    }

    fn example(&mut self, at: &str, schema: &Value, value: &Value) {
        let errors = self.documented.errors(schema, value, true);
        assert!(errors.is_empty(), "{at}: the example {value} is not as described: {errors:?}");
        self.examples += 1;
    }

    fn content(&mut self, at: &str, content: &'a Value) {
        for (media_type, content) in content.as_object().unwrap() {
            if media_type.starts_with("image/") {
                assert_eq!(*content, json!({}), "{at}: a schema says nothing of a picture");
                continue;
            }
            assert!(
                [JSON, NOTE, "application/problem+json"].contains(&media_type.as_str()),
                "{at}: {media_type}"
            );
            self.kind(at, "content", content);
            self.schema(at, &content["schema"]);
            let all = content["examples"].as_object().unwrap();
            assert!(!all.is_empty(), "{at}: no example");
            for (name, example) in all {
                self.kind(at, "example", example);
                self.example(&format!("{at} {name}"), &content["schema"], &example["value"]);
            }
        }
    }

    fn parameter(&mut self, at: &str, parameter: &'a Value) -> (String, String) {
        let parameter = self.follow(parameter);
        self.kind(at, "parameter", parameter);
        self.schema(at, &parameter["schema"]);
        if let Some(example) = parameter.get("example") {
            self.example(at, &parameter["schema"], example);
        }
        let text = |name: &str| parameter[name].as_str().unwrap().to_owned();
        assert_eq!(parameter["required"], text("in") == "path", "{at}");
        (text("in"), text("name"))
    }

    fn response(&mut self, at: &str, response: &'a Value) {
        let response = self.follow(response);
        self.kind(at, "response", response);
        for (name, header) in response["headers"].as_object().unwrap() {
            let header = self.follow(header);
            self.kind(&format!("{at} {name}"), "header", header);
            self.schema(at, &header["schema"]);
            self.example(at, &header["schema"], &header["example"]);
        }
        self.content(at, &response["content"]);
    }

    /// Every form of a body takes its own fields and no others, as the parser does.
    fn is_closed(&self, at: &str, schema: &Value) {
        let schema = self.documented.resolve(schema);
        match schema["oneOf"].as_array() {
            Some(forms) => forms.iter().for_each(|form| self.is_closed(at, form)),
            None => assert_eq!(schema["additionalProperties"], false, "{at}: {schema}"),
        }
    }

    fn operation(&mut self, at: &str, path: &str, operation: &'a Value) {
        self.kind(at, "operation", operation);
        let mut parameters = BTreeSet::new();
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            assert!(parameters.insert(self.parameter(at, parameter)), "{at}: a parameter twice");
        }
        let in_path: BTreeSet<_> = parameters
            .iter()
            .filter(|(place, _)| place == "path")
            .map(|(_, name)| format!("{{{name}}}"))
            .collect();
        let template = path.split('/').filter(|part| part.starts_with('{')).map(str::to_owned).collect();
        assert_eq!(in_path, template, "{at}");
        let keyed = parameters.contains(&("header".to_owned(), "Idempotency-Key".to_owned()));
        let asks = !at.starts_with("GET");
        let changes = asks && operation["x-permission"] != "any client";
        assert_eq!(keyed, changes, "{at}: every POST and DELETE that changes something may be repeated");
        assert_eq!(operation.get("requestBody").is_some(), asks, "{at}");
        if let Some(body) = operation.get("requestBody") {
            self.kind(at, "requestBody", body);
            self.content(at, &body["content"]);
            self.is_closed(at, &body["content"][JSON]["schema"]);
        }
        let responses = operation["responses"].as_object().unwrap();
        let ways = |begins: &str| responses.keys().filter(|status| status.starts_with(begins)).count();
        assert_eq!(ways("2") - ways("202"), 1, "{at}");
        assert_eq!(ways("202"), usize::from(at.ends_with("/responses")), "{at}");
        for (status, response) in responses {
            self.response(&format!("{at} {status}"), response);
            let response = self.documented.resolve(response);
            for (_, example) in examples(&response["content"]["application/problem+json"]) {
                assert_eq!(example["status"].to_string(), *status, "{at}");
            }
        }
    }
}

#[tokio::test]
async fn it_is_sound_by_itself() {
    let (_daemon, documented) = start().await;
    let document = &documented.document;
    let mut walk = Walk { documented: &documented, referred: BTreeSet::new(), examples: 0 };
    walk.kind("root", "root", document);
    walk.kind("info", "info", &document["info"]);
    walk.kind("components", "components", &document["components"]);
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let mut ids = BTreeSet::new();
    for (method, path, operation) in documented.operations() {
        assert!(ids.insert(operation["operationId"].to_string()), "two operations of one name");
        walk.operation(&format!("{method} {path}"), &path, operation);
    }
    let components = &document["components"];
    for (name, scheme) in components["securitySchemes"].as_object().unwrap() {
        walk.kind(name, "securityScheme", scheme);
        assert_eq!((name.as_str(), &scheme["type"]), ("clientCertificate", &json!("mutualTLS")));
    }
    components["schemas"].as_object().unwrap().iter().for_each(|(name, schema)| walk.schema(name, schema));
    components["responses"]
        .as_object()
        .unwrap()
        .iter()
        .for_each(|(name, response)| walk.response(name, response));
    for kind in ["schemas", "responses", "parameters", "headers"] {
        for name in components[kind].as_object().unwrap().keys() {
            assert!(name.bytes().all(|b| b.is_ascii_alphanumeric()), "{name}");
            let unused = !walk.referred.contains(&format!("#/components/{kind}/{name}"));
            // What no operation answers is there for the paths and methods that are none.
            assert!(!unused || name == "MethodNotAllowed405", "nothing refers to {kind}/{name}");
        }
    }
    assert!(walk.examples > 100, "only {} examples: the walk does not see them", walk.examples);
}
