//! The HTTP API: routes, and what every request passes through.
//!
//! A request is admitted (`admit`: client known, room for it), answered by its handler, and logged
//! in one line. Handlers sit beside the JSON they take; each asks for its permission first, and for its
//! tenant's turn (`admission.rs`) last.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use crate::config::Limits;
use crate::metrics::RequestMetrics;
use crate::service::Service;
use crate::service::computing::Computing;
use crate::service::enrolment::Enrolment;
use crate::service::transactions::NewTransaction;
use crate::tls::Client;

mod admission;
mod answer;
mod attestations;
mod audit;
mod authorizations;
mod call;
mod credentials;
mod import_key;
mod openapi;
mod presentations;
mod problem;
mod proof;
mod qr;
mod schema;
mod told;
mod transactions;
mod turns;

use admission::{Admission, admitted};
use problem::Problem;
use told::{Told, Waits, new_request_id};

/// How many requests are worked on at once for each custodian: as many as one is handed ahead of their turn, enough that custodians always have one that
/// waits while others are being committed or read, and that commits share their fsync; no more, since who is let through
/// waits behind all of them, whatever its tenant (`docs/overload.md` has the measurement).
const AT_ONCE_PER_CUSTODIAN: usize = 16;

/// The API's state, shared by all connections.
pub struct Api {
    service: Arc<Service>,
    /// Draws QR codes.
    drawing: Computing,
    /// Room for requests; one that finds none is told to come back.
    admission: Admission,
    body_timeout: Duration,
    metrics: RequestMetrics,
}

/// Set on every request by its connection: the client that its certificate names, if it names one.
#[derive(Clone)]
pub struct Peer(pub Option<Arc<Client>>);

/// A request's id, in its answer, its log line and the audit log.
#[derive(Clone)]
struct RequestId(String);

impl Api {
    /// The API over these use cases, which so many custodians work for.
    pub fn new(service: Arc<Service>, limits: &Limits, custodians: u16) -> Arc<Self> {
        let at_once = usize::from(custodians).saturating_mul(AT_ONCE_PER_CUSTODIAN);
        let request_timeout = Duration::from_millis(limits.request_timeout_ms);
        Arc::new(Self {
            service,
            drawing: Computing::new(),
            admission: Admission::new(limits.requests_max, at_once, request_timeout),
            body_timeout: Duration::from_millis(limits.body_timeout_ms),
            metrics: RequestMetrics::default(),
        })
    }

    /// What goes before an attestation that is drawn as a QR code.
    fn qr_url_prefix(&self) -> &str {
        self.service.qr_url_prefix()
    }

    /// Resolves when no request is inside.
    pub async fn idle(&self) {
        self.admission.idle().await;
    }

    /// How many requests are inside, and how many of these wait for their tenant's turn.
    pub fn in_flight(&self) -> (usize, usize) {
        self.admission.counts()
    }

    /// What it counts.
    pub fn metrics(&self) -> &RequestMetrics {
        &self.metrics
    }
}

/// All routes. `docs/api.md` has them as a table, and a test compares the two.
pub fn router(api: &Arc<Api>) -> Router {
    Router::new()
        .route("/v1/credentials", get(credentials::list).post(credentials::enrol))
        .route("/v1/credentials/{id}", get(credentials::get).delete(credentials::delete))
        .route("/v1/credentials/{id}/verify", post(credentials::verify))
        .route("/v1/credentials/{id}/resync", post(credentials::resync))
        .route("/v1/credentials/{id}/suspend", post(credentials::suspend))
        .route("/v1/credentials/{id}/resume", post(credentials::resume))
        .route("/v1/credentials/{id}/unlock", post(credentials::unlock))
        .route("/v1/credentials/{id}/activate", post(credentials::activate))
        .route("/v1/credentials/{id}/rotation", post(credentials::rotate))
        .route("/v1/credentials/{id}/rebind", post(credentials::rebind))
        .route("/v1/credentials/{id}/authorization", get(authorizations::get).post(authorizations::begin))
        .route("/v1/credentials/{id}/authorization/uplink", post(authorizations::uplink))
        .route("/v1/credentials/{id}/authorization/complete", post(authorizations::complete))
        .route("/v1/presentations", post(presentations::present))
        .route("/v1/presentations/{id}", get(presentations::get))
        .route("/v1/presentations/{id}/qr", get(presentations::qr))
        .route("/v1/transactions", get(transactions::list).post(transactions::create))
        .route("/v1/transactions/{id}", get(transactions::get))
        .route("/v1/transactions/{id}/responses", post(transactions::respond))
        .route("/v1/transactions/{id}/cancel", post(transactions::cancel))
        .route("/v1/transactions/{id}/attestation", get(transactions::attestation))
        .route("/v1/transactions/{id}/qr", get(transactions::qr))
        .route("/v1/attestations/verify", post(attestations::verify))
        .route("/v1/jwks", get(attestations::jwks))
        .route("/v1/import-key", get(import_key::get))
        .route("/v1/audit", get(audit::list))
        .route("/v1/audit/checkpoint", get(audit::checkpoint))
        .route("/v1/audit/proof", get(audit::proof))
        .route("/v1/audit/keys", get(audit::keys))
        .route("/v1/openapi.json", get(openapi::get))
        .method_not_allowed_fallback(async || Problem::MethodNotAllowed)
        .fallback(async || Problem::NotFound)
        .layer(from_fn_with_state(api.clone(), admit))
        .with_state(api.clone())
}

/// What a body of `POST /v1/credentials` asks to be enrolled, as that route reads it.
///
/// # Errors
/// Status, field (where it is known) and reason of the problem that answers it: constants, all of them.
pub fn enrolment(body: &[u8]) -> Result<Enrolment, (u16, Option<&'static str>, &'static str)> {
    credentials::enrolment(body).map_err(to_mend)
}

/// What a body of `POST /v1/transactions` asks to be made; likewise.
///
/// # Errors
/// As [`enrolment`].
pub fn new_transaction(body: &[u8]) -> Result<NewTransaction, (u16, Option<&'static str>, &'static str)> {
    transactions::new_transaction(body).map_err(to_mend)
}

fn to_mend(problem: Problem) -> (u16, Option<&'static str>, &'static str) {
    let (field, reason) = problem.to_mend();
    (problem.status().as_u16(), field, reason.unwrap_or_default())
}

/// What every request passes through, whichever route it takes.
async fn admit(State(api): State<Arc<Api>>, Peer(peer): Peer, mut request: Request, next: Next) -> Response {
    let request_id = new_request_id();
    let told = Arc::new(Told {
        api: api.clone(),
        begun: Instant::now(),
        request_id: request_id.clone(),
        client: peer.clone(),
        method: request.method().clone(),
        route: request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned()),
    });
    let mut response = match &peer {
        None => Problem::Unauthenticated.into_response(),
        Some(client) => {
            request.extensions_mut().insert(RequestId(request_id.clone()));
            request.extensions_mut().insert(client.clone());
            admitted(&api, client, &told, request, next).await
        }
    };
    if let Some(problem) = told.answered(&mut response, Waits::Still) {
        response = problem.render(&request_id);
    }
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        headers.insert(HeaderName::from_static("x-request-id"), value);
    }
    response
}
