//! One route of the document. What all routes have in common is said here: headers, problems, permission.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::openapi::example::{Example, ExampleBuilder};
use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::header::Header;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::{RequestBody, RequestBodyBuilder};
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema};
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{Content, ContentBuilder, Ref, RefOr, Required};

use crate::domain::caller::Permission;
use crate::domain::id::{CredentialId, PresentationId, TransactionId};
use crate::metrics::Verdict;

use super::super::problem::Problem;
use super::super::schema::{number, reference, text};

/// The name of the one security scheme.
pub const SECURITY: &str = "clientCertificate";

const JSON: &str = "application/json";

/// An example and its name.
pub type Named = (String, RefOr<Example>);

/// A route as the document says it.
#[derive(Clone)]
pub struct Operation {
    pub method: HttpMethod,
    /// As the router has it.
    pub path: &'static str,
    /// Its name in code that is made of the document.
    pub id: &'static str,
    pub summary: &'static str,
    pub description: &'static str,
    /// Any of these; none: any client may.
    pub permissions: Vec<Permission>,
    pub query: Vec<Parameter>,
    pub asked: Asked,
    pub answer: Answered,
    /// A 2xx on the way to that.
    pub partial: Option<Answered>,
    /// Whether what is asked could be guessed: then it can fail, and be locked.
    pub guesses: bool,
    /// How else it can end, by the names of problems.
    pub also: &'static [Verdict],
}

/// What a request brings.
#[derive(Clone)]
pub enum Asked {
    /// It changes nothing, and its body is not read.
    Nothing,
    /// It says everything by its path.
    NoFields(RefOr<Schema>),
    Body {
        schema: RefOr<Schema>,
        examples: Vec<Named>,
    },
}

/// A 2xx.
#[derive(Clone)]
pub struct Answered {
    /// With 201 comes a `Location`.
    pub status: StatusCode,
    pub description: &'static str,
    pub form: Form,
}

/// What an answer's body is.
#[derive(Clone)]
pub enum Form {
    Json {
        schema: Box<RefOr<Schema>>,
        examples: Vec<Named>,
    },
    /// A text of this media type.
    Text {
        media_type: &'static str,
        schema: Box<RefOr<Schema>>,
        examples: Vec<Named>,
    },
    /// A picture of one of these media types: the one that `Accept` asks for.
    Picture(Vec<&'static str>),
}

/// The problems of one status.
pub struct Refusal(pub Vec<Problem>);

/// An example by its name.
pub fn example(name: &str, summary: &str, value: Value) -> Named {
    (name.to_owned(), ExampleBuilder::new().summary(summary).value(Some(value)).build().into())
}

/// An answer as an example.
pub fn named(name: &str, summary: &str, body: &impl Serialize) -> Named {
    example(name, summary, serde_json::to_value(body).unwrap_or_default())
}

impl Operation {
    /// A route without a body, and without an answer yet.
    pub fn new(method: HttpMethod, path: &'static str, id: &'static str) -> Self {
        let form = Form::Json { schema: Box::default(), examples: Vec::new() };
        Self {
            method,
            path,
            id,
            summary: "",
            description: "",
            permissions: Vec::new(),
            query: Vec::new(),
            asked: Asked::Nothing,
            answer: Answered { status: StatusCode::OK, description: "", form },
            partial: None,
            guesses: false,
            also: &[],
        }
    }

    /// The same for those with this permission.
    pub fn permitted(self, permissions: &[Permission]) -> Self {
        Self { permissions: permissions.to_vec(), ..self }
    }

    /// The same, explained.
    pub fn said(self, summary: &'static str, description: &'static str) -> Self {
        Self { summary, description, ..self }
    }

    /// The same with a body.
    pub fn asks(self, schema: RefOr<Schema>, examples: Vec<Named>) -> Self {
        Self { asked: Asked::Body { schema, examples }, ..self }
    }

    /// The same with its 2xx.
    pub fn answers(
        self,
        status: StatusCode,
        schema: RefOr<Schema>,
        description: &'static str,
        examples: Vec<Named>,
    ) -> Self {
        let form = Form::Json { schema: Box::new(schema), examples };
        Self { answer: Answered { status, description, form }, ..self }
    }

    /// The same with a 202 before it.
    pub fn answers_at_first(
        self,
        schema: RefOr<Schema>,
        description: &'static str,
        examples: Vec<Named>,
    ) -> Self {
        let form = Form::Json { schema: Box::new(schema), examples };
        Self { partial: Some(Answered { status: StatusCode::ACCEPTED, description, form }), ..self }
    }

    pub fn build(&self) -> utoipa::openapi::path::Operation {
        let roles: Vec<String> = self
            .permissions
            .iter()
            .filter_map(|permission| serde_json::to_value(permission).ok()?.as_str().map(str::to_owned))
            .collect();
        let (permission, asks) = match roles.is_empty() {
            true => (
                "any client".to_owned(),
                "For any configured client, whatever its permissions and its tenant.".to_owned(),
            ),
            false => (roles.join(" or "), format!("Permission: `{}`.", roles.join("` or `"))),
        };
        // One of several requirements has to be met.
        let requirement = |role: Option<String>| SecurityRequirement::new(SECURITY, role);
        let securities: Vec<_> = match roles.is_empty() {
            true => vec![requirement(None)],
            false => roles.into_iter().map(|role| requirement(Some(role))).collect(),
        };
        let mut operation = OperationBuilder::new()
            .operation_id(Some(self.id))
            .summary(Some(self.summary))
            .description(Some(format!("{}\n\n{asks}", self.description)))
            .request_body(self.request_body())
            .securities(Some(securities))
            .extensions(Some(ExtensionsBuilder::new().add("x-permission", permission).build()))
            .response(self.answer.status.as_u16().to_string(), self.answer.response());
        if let Some(partial) = &self.partial {
            operation = operation.response(partial.status.as_u16().to_string(), partial.response());
        }
        if self.has_id() {
            let id = match self.path.split('/').nth(2) {
                Some("transactions") => "TransactionId",
                Some("presentations") => "PresentationId",
                _ => "CredentialId",
            };
            operation = operation.parameter_ref(component("parameters", id));
        }
        if self.is_remembered() {
            operation = operation.parameter_ref(component("parameters", "IdempotencyKey"));
        }
        operation = self.query.iter().cloned().fold(operation, OperationBuilder::parameter);
        let refusals = self.refusals();
        let refused = refusals.iter().map(|refusal| (refusal.status(), refusal.name()));
        refused
            .fold(operation, |operation, (status, name)| {
                operation.response(status.as_u16().to_string(), component("responses", &name))
            })
            .build()
    }

    fn has_id(&self) -> bool {
        self.path.contains("{id}")
    }

    fn takes_body(&self) -> bool {
        !matches!(self.asked, Asked::Nothing)
    }

    /// Whether an `Idempotency-Key` counts. What any client may changes nothing.
    fn is_remembered(&self) -> bool {
        self.takes_body() && !self.permissions.is_empty()
    }

    /// Whether it can end like this.
    fn may_be(&self, problem: &Problem) -> bool {
        if self.also.contains(&problem.verdict()) {
            return true;
        }
        match problem {
            Problem::Unauthenticated | Problem::Unavailable { .. } => true,
            Problem::Forbidden => !self.permissions.is_empty(),
            Problem::NotFound => self.has_id(),
            Problem::Malformed(_) | Problem::TooLarge | Problem::UnsupportedMediaType => self.takes_body(),
            Problem::IdempotencyMismatch | Problem::StateConflict => self.is_remembered(),
            Problem::Invalid { .. } => self.takes_body() || !self.query.is_empty(),
            Problem::VerificationFailed { .. } | Problem::Locked { .. } => self.guesses,
            Problem::MethodNotAllowed
            | Problem::Expired
            | Problem::NotAcceptable
            | Problem::RateLimited { .. } => false,
        }
    }

    /// How it can end, by status.
    pub fn refusals(&self) -> Vec<Refusal> {
        let mut by_status = BTreeMap::<_, Vec<_>>::new();
        for problem in Problem::examples().into_iter().filter(|problem| self.may_be(problem)) {
            by_status.entry(problem.status()).or_default().push(problem);
        }
        by_status.into_values().map(Refusal).collect()
    }

    fn request_body(&self) -> Option<RequestBody> {
        let (description, required, schema, examples) = match &self.asked {
            Asked::Nothing => return None,
            Asked::NoFields(schema) => {
                let nothing = example("nothing", "Or no body at all", json!({}));
                ("Empty, or an object without fields.", Required::False, schema, vec![nothing])
            }
            Asked::Body { schema, examples } => (
                "At most 64 KiB. Unknown and repeated fields, and null, are errors; but members of a `jwk` that are not \
                 known are ignored.",
                Required::True,
                schema,
                examples.clone(),
            ),
        };
        let body = RequestBodyBuilder::new().description(Some(description)).required(Some(required));
        Some(body.content(JSON, content(schema.clone(), examples)).build())
    }
}

impl Answered {
    fn response(&self) -> Response {
        let mut response = match &self.form {
            Form::Json { schema, examples } => {
                answer(self.description).content(JSON, content((**schema).clone(), examples.clone()))
            }
            Form::Text { media_type, schema, examples } => {
                answer(self.description).content(*media_type, content((**schema).clone(), examples.clone()))
            }
            Form::Picture(media_types) => media_types
                .iter()
                .fold(answer(self.description), |answer, media_type| {
                    answer.content(*media_type, Content::default())
                })
                .header_ref("Vary", component("headers", "Vary")),
        };
        if self.status == StatusCode::CREATED {
            response = response.header_ref("Location", component("headers", "Location"));
        }
        response.build()
    }
}

impl Refusal {
    pub fn status(&self) -> StatusCode {
        self.0.first().map(Problem::status).unwrap_or_default()
    }

    /// Its name among the document's responses.
    pub fn name(&self) -> String {
        self.0.iter().map(Problem::schema_name).collect::<Vec<_>>().join("Or")
    }

    pub fn response(&self) -> Response {
        let schema = |problem: &Problem| Ref::from_schema_name(problem.schema_name());
        let schema = match &*self.0 {
            [problem] => schema(problem).into(),
            all => all.iter().map(schema).fold(OneOfBuilder::new(), OneOfBuilder::item).into(),
        };
        let examples = self
            .0
            .iter()
            .map(|problem| example(problem.verdict().name(), problem.meaning(), problem.example()));
        let names: Vec<_> = self.0.iter().map(|problem| format!("`{}`", problem.verdict().name())).collect();
        let mut response = answer(&names.join(" or "))
            .content("application/problem+json", content(schema, examples.collect()));
        let headers = match self.status() {
            StatusCode::LOCKED | StatusCode::SERVICE_UNAVAILABLE => vec![("Retry-After", "RetryAfter")],
            StatusCode::METHOD_NOT_ALLOWED => vec![("Allow", "Allow")],
            _ => vec![],
        };
        for (name, header) in headers {
            response = response.header_ref(name, component("headers", header));
        }
        response.build()
    }
}

/// An answer with the headers that every one has.
fn answer(description: &str) -> ResponseBuilder {
    ResponseBuilder::new()
        .description(description)
        .header_ref("x-request-id", component("headers", "RequestId"))
        .header_ref("Cache-Control", component("headers", "CacheControl"))
}

fn content(schema: RefOr<Schema>, examples: Vec<Named>) -> Content {
    ContentBuilder::new().schema(Some(schema)).examples_from_iter(examples).build()
}

fn component(kind: &str, name: &str) -> Ref {
    Ref::new(format!("#/components/{kind}/{name}"))
}

/// Parameters that several routes have.
pub fn parameters() -> Vec<(String, RefOr<Parameter>)> {
    let key = text(
        "Visible ASCII. The same request again within 24 hours gets the first answer again: it is not executed, and a \
         wrong code is not charged a second time. A key belongs to the client, and is bound to tenant, method, path, \
         query and body. Remembered are 2xx and `verification-failed`, in the same commit as what they tell of, and \
         that a transaction had ended (409 or 410). A replay holds no secret: `otpauth` is left out.",
    );
    let key = key.min_length(Some(1)).max_length(Some(255)).pattern(Some("^[!-~]+$"));
    let parameter = |name: &str, place, required, schema: RefOr<Schema>, value: &str| {
        let parameter = ParameterBuilder::new().name(name).parameter_in(place).required(required);
        parameter.schema(Some(schema)).example(Some(value.into())).build()
    };
    let key = parameter(
        "Idempotency-Key",
        ParameterIn::Header,
        Required::False,
        key.into(),
        "8e03978e-40d5-43dd-bc93-6894a57f9324",
    );
    let id = |schema, value| parameter("id", ParameterIn::Path, Required::True, schema, value);
    let credential = id(reference::<CredentialId>(), "cred_26daj92h7tg6acttawtvk6360e");
    let transaction = id(reference::<TransactionId>(), "txn_26daj92h7tg6acttawtvk6360e");
    let presentation = id(reference::<PresentationId>(), "pres_26daj92h7tg6acttawtvk6360e");
    vec![
        ("CredentialId".to_owned(), credential.into()),
        ("IdempotencyKey".to_owned(), key.into()),
        ("PresentationId".to_owned(), presentation.into()),
        ("TransactionId".to_owned(), transaction.into()),
    ]
}

/// Headers that several answers have.
pub fn headers() -> Vec<(String, RefOr<Header>)> {
    let header =
        |schema: ObjectBuilder, value: Value| Header::builder().schema(Some(schema)).example(Some(value));
    let request_id = text("This request's id, in the request log and in the audit log too.")
        .pattern(Some("^req_[0-9a-v]{16}$"));
    let location = text("Where what was made is.").pattern(Some(
        "^/v1/(credentials/cred_[0-9a-z]{26}(/authorization)?|transactions/txn_[0-9a-z]{26}|presentations/pres_[0-9a-z]{26})$",
    ));
    let headers = [
        ("RequestId", header(request_id, "req_fk6lccggb9rl0ruf".into())),
        (
            "CacheControl",
            header(text("Always `no-store`.").enum_values(Some(["no-store"])), "no-store".into()),
        ),
        ("Location", header(location, "/v1/credentials/cred_26daj92h7tg6acttawtvk6360e".into())),
        ("RetryAfter", header(number("Seconds until it is worth to come back.", 0, 86_400), 1.into())),
        (
            "Vary",
            header(
                text("What the choice of a picture went by.").enum_values(Some(["accept"])),
                "accept".into(),
            ),
        ),
        ("Allow", header(text("The methods that the resource knows."), "GET,HEAD,POST".into())),
    ];
    headers.map(|(name, header)| (name.to_owned(), header.build().into())).into()
}
