//! The OpenAPI document as a test uses it: found by route, resolved, and every request and answer held against it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use jsonschema::Validator;
use serde_json::{Map, Value, json};

use crate::client::{Connection, Response};
use crate::daemon::text;

pub const JSON: &str = "application/json";
/// A checkpoint's note.
pub const NOTE: &str = "text/plain; charset=utf-8";
const PROBLEM: &str = "application/problem+json";

/// A request to be held against the document: a route, and what takes the place of `{id}`.
pub struct Asked<'a> {
    pub method: &'a str,
    pub route: &'a str,
    pub id: &'a str,
    pub query: &'a str,
    pub headers: Vec<(&'a str, &'a str)>,
    pub body: Vec<u8>,
}

impl<'a> Asked<'a> {
    pub fn new(method: &'a str, route: &'a str, id: &'a str) -> Self {
        Self { method, route, id, query: "", headers: Vec::new(), body: Vec::new() }
    }

    pub fn json(mut self, body: &Value) -> Self {
        self.headers.push(("content-type", JSON));
        Self { body: body.to_string().into(), ..self }
    }
}

/// The document, and what of it was seen.
pub struct Documented {
    pub document: Value,
    validators: Mutex<BTreeMap<String, Validator>>,
    /// Route and status, with the problem's name; and the names of all members of answers.
    pub seen: Mutex<BTreeSet<(String, u16, String)>>,
    pub members: Mutex<BTreeSet<String>>,
}

impl Documented {
    pub async fn fetch(connection: &Connection) -> Self {
        let answer = connection.get("/v1/openapi.json").await.unwrap();
        assert_eq!(answer.status, 200, "{}", text(&answer));
        Self {
            document: answer.json().unwrap(),
            validators: Mutex::default(),
            seen: Mutex::default(),
            members: Mutex::default(),
        }
    }

    /// Method (upper case), path and operation of every one.
    pub fn operations(&self) -> Vec<(String, String, &Value)> {
        let of = |(path, item): (&String, &'_ Value)| -> Vec<(String, String)> {
            item.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.clone())).collect()
        };
        let named = self.document["paths"].as_object().unwrap().iter().flat_map(of);
        named
            .map(|(method, path)| {
                let operation = self.operation(&method, &path);
                (method, path, operation)
            })
            .collect()
    }

    pub fn operation(&self, method: &str, path: &str) -> &Value {
        let operation = &self.document["paths"][path][method.to_lowercase()];
        assert!(operation.is_object(), "{method} {path} is not documented");
        operation
    }

    /// What a `$ref` stands for; anything else is itself.
    pub fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(reference) => {
                let pointer =
                    reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} leads elsewhere"));
                let found = self.document.pointer(pointer);
                self.resolve(found.unwrap_or_else(|| panic!("{reference} leads nowhere")))
            }
            None => value,
        }
    }

    /// The schema of an operation's JSON body, if it takes one.
    pub fn body_schema(&self, method: &str, path: &str) -> Option<&Value> {
        self.operation(method, path)["requestBody"]["content"].get(JSON).map(|content| &content["schema"])
    }

    /// What a schema has against a value. An answer's schema is open, for later releases; `closed` asks that
    /// every member is described.
    pub fn errors(&self, schema: &Value, value: &Value, closed: bool) -> Vec<String> {
        let mut validators = self.validators.lock().unwrap();
        let validator = validators.entry(format!("{closed} {schema}")).or_insert_with(|| {
            let mut components = self.document["components"].clone();
            let mut whole = schema.clone();
            if closed {
                close_items(&mut components);
                close_items(&mut whole);
                whole = closing(whole);
            }
            let root = json!({ "$schema": "https://json-schema.org/draft/2020-12/schema", "allOf": [whole],
                "components": components });
            let options = jsonschema::draft202012::options().should_validate_formats(true);
            options.build(&root).unwrap_or_else(|error| panic!("{error}: {schema}"))
        });
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
    }

    pub fn accepts(&self, schema: &Value, value: &Value) -> bool {
        self.errors(schema, value, false).is_empty()
    }

    /// Asks, and holds request and answer against the document.
    pub async fn ask(&self, connection: &Connection, asked: Asked<'_>) -> Response {
        let Asked { method, route, id, query, headers, body } = asked;
        let path = format!("{}{query}", route.replace("{id}", id));
        let said = format!("{method} {path} {}", String::from_utf8_lossy(&body));
        let answer = connection.request(method, &path, &headers, body.clone()).await.unwrap();
        self.check(method, route, &said, &answer);
        if answer.status.is_success() && !body.is_empty() {
            let schema =
                self.body_schema(method, route).unwrap_or_else(|| panic!("{said}: no body is documented"));
            let errors = self.errors(schema, &serde_json::from_slice(&body).unwrap(), true);
            assert!(errors.is_empty(), "{said} was accepted, and is not as documented: {errors:?}");
        }
        answer
    }

    /// Holds an answer against the document.
    pub fn check(&self, method: &str, route: &str, said: &str, answer: &Response) {
        let status = answer.status.as_u16();
        let said = format!("{said}: {status} {:.400}", text(answer));
        let documented = &self.operation(method, route)["responses"][status.to_string()];
        assert!(documented.is_object(), "not documented: {said}");
        let documented = self.resolve(documented);
        self.check_headers(documented, answer, &said);
        let own = answer.header("content-type").unwrap_or_default();
        if own.starts_with("image/") {
            assert_eq!(documented["content"][own], json!({}), "{said}");
            self.seen.lock().unwrap().insert((format!("{method} {route}"), status, String::new()));
            return;
        }
        if own == NOTE && answer.status.is_success() {
            let errors = self.errors(&documented["content"][NOTE]["schema"], &json!(text(answer)), false);
            assert!(errors.is_empty(), "{said}: {errors:?}");
            self.seen.lock().unwrap().insert((format!("{method} {route}"), status, String::new()));
            return;
        }
        let kind = if answer.status.is_success() { JSON } else { PROBLEM };
        assert_eq!(own, kind, "{said}");
        let document = answer.json().unwrap_or_else(|error| panic!("{error}: {said}"));
        let errors = self.errors(&documented["content"][kind]["schema"], &document, true);
        assert!(errors.is_empty(), "{said}: {errors:?}");

        let name = document["type"].as_str().filter(|_| kind == PROBLEM).unwrap_or_default();
        let name = name.trim_start_matches("urn:hsm-authd:problem:").to_owned();
        self.seen.lock().unwrap().insert((format!("{method} {route}"), status, name));
        let items = document["items"].as_array().into_iter().flatten().chain([&document]);
        let members = items.flat_map(|item| item.as_object().unwrap().keys().cloned());
        self.members.lock().unwrap().extend(members);
    }

    fn check_headers(&self, documented: &Value, answer: &Response, said: &str) {
        const UNSAID: [&str; 3] = ["content-type", "content-length", "date"];
        let headers = documented["headers"].as_object().unwrap();
        let known: BTreeMap<_, _> =
            headers.iter().map(|(name, header)| (name.to_lowercase(), header)).collect();
        for (name, value) in &answer.headers {
            let Some(header) = known.get(name.as_str()) else {
                assert!(UNSAID.contains(&name.as_str()), "the header {name} is not documented: {said}");
                continue;
            };
            let schema = &self.resolve(header)["schema"];
            let text = value.to_str().unwrap();
            let value =
                if schema["type"] == "integer" { json!(text.parse::<u64>().unwrap()) } else { json!(text) };
            let errors = self.errors(schema, &value, false);
            assert!(errors.is_empty(), "{name}: {errors:?}: {said}");
        }
        // A lock without an end has none.
        for name in known.keys().filter(|name| *name != "retry-after" || answer.status != 423) {
            assert!(answer.header(name).is_some(), "the header {name} is missing: {said}");
        }
    }
}

/// The same with no member that it does not describe.
fn closing(schema: Value) -> Value {
    json!({ "allOf": [schema], "unevaluatedProperties": false })
}

/// The items of lists are closed by themselves.
fn close_items(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.values_mut().for_each(close_items);
            if members.get("type").is_some_and(|kind| kind == "array")
                && let Some(items) = members.get_mut("items")
            {
                *items = closing(items.take());
            }
        }
        Value::Array(values) => values.iter_mut().for_each(close_items),
        _ => {}
    }
}

/// The examples of a media type.
pub fn examples(content: &Value) -> Vec<(&str, &Value)> {
    let examples = content["examples"].as_object().into_iter().flat_map(Map::iter);
    examples.map(|(name, example)| (name.as_str(), &example["value"])).collect()
}
