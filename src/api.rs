//! The HTTP API: routes, and what every request passes through.
//!
//! A request is admitted (`admit`: client known, room for it), answered by its handler, and logged
//! in one line. Handlers sit beside the JSON they take; each asks for its permission first.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use data_encoding::BASE32HEX_NOPAD;
use tokio::sync::Semaphore;

use crate::config::Limits;
use crate::metrics::{Exchange, RequestMetrics, Verdict};
use crate::service::Service;
use crate::service::computing::Computing;
use crate::service::enrolment::Enrolment;
use crate::service::transactions::NewTransaction;
use crate::tls::Client;

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
mod transactions;

use problem::Problem;

/// The API's state, shared by all connections.
pub struct Api {
    service: Arc<Service>,
    /// Draws QR codes.
    drawing: Computing,
    /// Room for requests; one that finds none is told to come back.
    room: Arc<Semaphore>,
    requests_max: usize,
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
    /// The API over these use cases.
    pub fn new(service: Arc<Service>, limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            service,
            drawing: Computing::new(),
            room: Arc::new(Semaphore::new(limits.requests_max)),
            requests_max: limits.requests_max,
            body_timeout: Duration::from_millis(limits.body_timeout_ms),
            metrics: RequestMetrics::default(),
        })
    }

    /// Resolves when no request is being worked on.
    pub async fn idle(&self) {
        let all = u32::try_from(self.requests_max).unwrap_or(u32::MAX);
        let _ = self.room.acquire_many(all).await;
    }

    /// How many requests are being worked on.
    pub fn in_flight(&self) -> usize {
        self.requests_max.saturating_sub(self.room.available_permits())
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
    let begun = Instant::now();
    let request_id = new_request_id();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());

    let mut response = match (&peer, api.room.clone().try_acquire_owned()) {
        (None, _) => Problem::Unauthenticated.into_response(),
        (Some(_), Err(_)) => Problem::unavailable("too many requests at once", 1).into_response(),
        (Some(client), Ok(room)) => {
            request.extensions_mut().insert(RequestId(request_id.clone()));
            request.extensions_mut().insert(client.clone());
            // On a task of its own: work that changes state outlives a client that hangs up, and a
            // panic ends one request.
            let work = tokio::spawn(async move {
                let response = next.run(request).await;
                drop(room);
                response
            });
            work.await.unwrap_or_else(|panic| Problem::unavailable(panic, 1).into_response())
        }
    };

    let problem = response.extensions_mut().remove::<Problem>();
    let verdict = match &problem {
        Some(problem) => problem.verdict(),
        None => response.extensions().get().copied().unwrap_or(Verdict::Ok),
    };
    let status = problem.as_ref().map_or(response.status(), |problem| problem.status()).as_u16();
    let latency = begun.elapsed();
    api.metrics.count(route.as_deref(), Exchange::of(method.as_str(), status), verdict, latency);
    let cause = problem.as_ref().and_then(Problem::cause);
    tracing::info!(
        request_id,
        client = peer.as_ref().map(|client| client.name.as_str()),
        tenant = peer.as_ref().map(|client| client.tenant_name()),
        %method,
        route = route.as_deref().unwrap_or("none"),
        status,
        verdict = verdict.name(),
        cause,
        latency_us = latency.as_micros() as u64,
        "request"
    );
    if let Some(problem) = problem {
        response = problem.render(&request_id);
    }
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        headers.insert(HeaderName::from_static("x-request-id"), value);
    }
    response
}

fn new_request_id() -> String {
    let mut random = [0; 10];
    // Without random bytes it is not unique; it identifies nothing but a log line.
    let _ = getrandom::fill(&mut random);
    format!("req_{}", BASE32HEX_NOPAD.encode(&random).to_ascii_lowercase())
}
