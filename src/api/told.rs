//! What the log and the counters are told of a request: one line, whatever becomes of it and of its caller.

use std::sync::Arc;
use std::time::Instant;

use axum::http::Method;
use axum::response::Response;
use data_encoding::BASE32HEX_NOPAD;

use super::Api;
use super::problem::Problem;
use crate::metrics::{Exchange, TurnedAway, Verdict};
use crate::tls::Client;

/// A request, as far as it is told of.
pub(super) struct Told {
    pub api: Arc<Api>,
    pub begun: Instant,
    pub request_id: String,
    pub client: Option<Arc<Client>>,
    pub method: Method,
    /// As the router has it; `None`: there is none.
    pub route: Option<String>,
}

/// Whether its caller is there for the answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    Still,
    /// He has gone, and it was carried out all the same.
    NoMore,
}

impl Told {
    /// It has an answer. What is wrong with it is handed out, to be rendered.
    pub fn answered(&self, response: &mut Response, waits: Waits) -> Option<Problem> {
        let problem = response.extensions_mut().remove::<Problem>();
        let verdict = match &problem {
            Some(problem) => problem.verdict(),
            None => response.extensions().get().copied().unwrap_or(Verdict::Ok),
        };
        let status = problem.as_ref().map_or(response.status(), |problem| problem.status()).as_u16();
        let latency = self.begun.elapsed();
        let exchange = Exchange::of(self.method.as_str(), status);
        self.api.metrics.count(self.route.as_deref(), exchange, verdict, latency);
        tracing::info!(
            request_id = self.request_id,
            client = self.client_name(),
            tenant = self.tenant_name(),
            method = %self.method,
            route = self.route.as_deref().unwrap_or("none"),
            status,
            verdict = verdict.name(),
            cause = problem.as_ref().and_then(Problem::cause),
            caller_gone = (waits == Waits::NoMore).then_some(true),
            latency_us = latency.as_micros() as u64,
            "request"
        );
        problem
    }

    /// It has none: its caller has gone, and the work on it was dropped.
    pub fn dropped(&self) {
        self.api.metrics.turned_away.get_or_create(&TurnedAway::Gone).inc();
        tracing::info!(
            request_id = self.request_id,
            client = self.client_name(),
            tenant = self.tenant_name(),
            method = %self.method,
            route = self.route.as_deref().unwrap_or("none"),
            latency_us = self.begun.elapsed().as_micros() as u64,
            "request dropped: its caller has gone"
        );
    }

    fn client_name(&self) -> Option<&str> {
        self.client.as_ref().map(|client| client.name.as_str())
    }

    fn tenant_name(&self) -> Option<&str> {
        self.client.as_ref().map(|client| client.tenant_name())
    }
}

/// A name for a request.
pub(super) fn new_request_id() -> String {
    let mut random = [0; 10];
    // Without random bytes it is not unique; it identifies nothing but a log line.
    let _ = getrandom::fill(&mut random);
    format!("req_{}", BASE32HEX_NOPAD.encode(&random).to_ascii_lowercase())
}
