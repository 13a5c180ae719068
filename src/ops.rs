//! The operator's listener: whether the process lives, whether it can decide, and what it counts. Plain
//! HTTP on loopback; it shows nothing of tenants.

use std::borrow::Cow;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::api::Api;
use crate::clock::WatchedClock;
use crate::hsm::Hsm;
use crate::metrics::{Certificate, StateMetrics};
use crate::server::{ACCEPT_PAUSE, Server};
use crate::service::Service;
use crate::service::rewrapping::RewrapState;
use crate::store::Store;

/// Connections at once.
const CONNECTIONS_MAX: usize = 16;
/// The time for a request's header, and for everything a connection does.
const HEADER_MAX: Duration = Duration::from_secs(5);
const CONNECTION_MAX: Duration = Duration::from_secs(30);
/// The media type of what `/metrics` answers.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the operator can see.
pub struct Ops {
    hsm: Hsm,
    store: Store,
    clock: Arc<WatchedClock>,
    api: Arc<Api>,
    server: Arc<Server>,
    service: Arc<Service>,
    /// Whether the database was found to be what the service left.
    is_checked: watch::Receiver<bool>,
    /// Whether the service ends.
    draining: watch::Receiver<bool>,
    state: StateMetrics,
    registry: Registry,
}

impl Ops {
    /// Over the parts of a front that starts now.
    pub fn new(
        hsm: Hsm,
        store: Store,
        clock: Arc<WatchedClock>,
        api: Arc<Api>,
        server: Arc<Server>,
        service: Arc<Service>,
        (is_checked, draining): (watch::Receiver<bool>, watch::Receiver<bool>),
    ) -> Arc<Self> {
        let state = StateMetrics::default();
        state.started.set(clock.now().unix_ms as f64 / 1e3);
        let mut registry = Registry::default();
        api.metrics().register(&mut registry);
        hsm.metrics().register(&mut registry);
        store.metrics().register(&mut registry);
        server.metrics.register(&mut registry);
        service.log_metrics().register(&mut registry);
        state.register(&mut registry);
        Arc::new(Self { hsm, store, clock, api, server, service, is_checked, draining, state, registry })
    }

    /// Serves `GET /livez`, `/readyz` and `/metrics`, for ever.
    ///
    /// # Errors
    /// If the listener cannot be used.
    pub async fn serve(self: Arc<Self>, listener: StdListener) -> std::io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let (readiness, metrics) = (self.clone(), self);
        let router = Router::new()
            .route("/livez", get(async || "ok\n"))
            .route(
                "/readyz",
                get(async move || match readiness.is_ready() {
                    // Who looks closer learns of those that others stand in for.
                    Ok(()) => (StatusCode::OK, format!("ready\n{}", readiness.hsm.missing())),
                    Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
                }),
            )
            .route("/metrics", get(async move || metrics.text()));
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let room = room.clone().acquire_owned().await.map_err(std::io::Error::other)?;
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let service = TowerToHyperService::new(router.clone());
            tokio::spawn(async move {
                let mut http = hyper::server::conn::http1::Builder::new();
                http.timer(TokioTimer::new()).header_read_timeout(HEADER_MAX).keep_alive(false);
                // A prober that hangs up is nobody's loss; one that does not read loses its place.
                let _ = timeout(CONNECTION_MAX, http.serve_connection(TokioIo::new(stream), service)).await;
                drop(room);
            });
        }
    }

    /// What there is to say of the service, in one line.
    pub fn status(&self) -> Cow<'static, str> {
        match self.is_ready() {
            Ok(()) => match self.hsm.missing().lines().next() {
                Some(missing) => format!("serving; {missing}").into(),
                None => "serving".into(),
            },
            Err(reason) => reason,
        }
    }

    /// Whether requests can be decided, or why not.
    fn is_ready(&self) -> Result<(), Cow<'static, str>> {
        if *self.draining.borrow() {
            return Err("the service ends: what is there is answered, and no more is taken".into());
        }
        // Then this: it is what a check waits for.
        if let Some(trouble) = self.hsm.trouble() {
            return Err(trouble.into());
        }
        if !*self.is_checked.borrow() {
            return Err(self.service.waits_for().map_or("checking the database".into(), Cow::from));
        }
        if !self.hsm.is_up() {
            return Err("no custodian is up yet; they are being started".into());
        }
        if let Some(reason) = self.server.identities.borrow().keys_away(&self.hsm) {
            return Err(reason.into());
        }
        if self.store.has_failed() {
            return Err("the store does not know what it wrote".into());
        }
        if let Some(reason) = self.service.commits_nothing() {
            return Err(reason.into());
        }
        if self.clock.now().trusted { Ok(()) } else { Err("the wall clock stepped".into()) }
    }

    fn text(&self) -> Response {
        self.look();
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => ([(CONTENT_TYPE, OPENMETRICS)], text).into_response(),
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }

    /// Brings up to date what nobody counts.
    fn look(&self) {
        let now = self.clock.now();
        let flag = |flag: bool| i64::from(flag);
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.state.ready.set(flag(self.is_ready().is_ok()));
        self.state.clock_trusted.set(flag(now.trusted));
        self.state.custodians_up.set(count(self.hsm.up()));
        self.state.hsm_away_seconds.set(self.hsm.away_for().map_or(0.0, |time| time.as_secs_f64()));
        self.service.look_at_log();
        self.state.store_queue_depth.set(count(self.store.waiting()));
        let (in_flight, waiting) = self.api.in_flight();
        self.state.requests_in_flight.set(count(in_flight));
        self.state.requests_waiting.set(count(waiting));
        let rewrap = self.service.rewrap_progress();
        let rows = |rows: u64| i64::try_from(rows).unwrap_or(i64::MAX);
        self.state.rewrap_running.set(flag(rewrap.state == RewrapState::Running));
        self.state.rewrap_failed.set(flag(matches!(rewrap.state, RewrapState::Failed(_))));
        self.state.rewrap_rows.set(rows(rewrap.total));
        self.state.rewrap_rows_done.set(rows(rewrap.done));
        let identities = self.server.identities.borrow().clone();
        let left_s = |ends_unix_s: u64| ends_unix_s as f64 - now.unix_ms as f64 / 1e3;
        for (certificate, ends_unix_s) in [
            (Certificate::Server, identities.listener.certificate_ends_unix_s),
            (Certificate::ClientCa, identities.listener.client_ca_ends_unix_s),
            (Certificate::ClientCrls, identities.listener.client_crls_end_unix_s),
        ] {
            self.state.certificate_expires(certificate, ends_unix_s.map(left_s));
        }
    }
}
