//! The counters of each part of the appliance, with their names.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::labels::{
    Certificate, Commit, Custodian, Handshake, Loss, Method, Operation, OperationEnd, Route, Status,
    StoreError, Verdict,
};
use super::{FixedLabels, Series, Total, TotalSeconds, pairs};
use crate::domain::audit::Event;

/// Upper bounds in seconds: from what a token in memory needs to what nobody waits longer for.
const SECONDS: [f64; 15] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// Upper bounds of the size of a group of commits; the last is the largest there is.
const GROUP_SIZES: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

fn totals<L: FixedLabels>() -> Series<L, Total> {
    Series::new(L::all(), Total::default)
}

/// What the API counts.
#[derive(Clone, Debug)]
pub struct RequestMetrics {
    /// The routes there are.
    pub routes: Vec<Route>,
    /// Requests that were answered.
    pub requests: Series<(Route, (Method, Status)), Total>,
    /// How long that took.
    pub seconds: Series<Route, Histogram>,
    /// What the callers were told.
    pub verdicts: Series<Verdict, Total>,
}

impl RequestMetrics {
    /// Of an API with these routes.
    pub fn new(routes: impl IntoIterator<Item = &'static str>) -> Self {
        let routes = Route::list(routes);
        Self {
            requests: Series::new(pairs(&routes), Total::default).sparse(),
            seconds: Series::new(routes.clone(), seconds),
            verdicts: totals(),
            routes,
        }
    }

    /// Shows them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("hsm_authd_requests_total", "Requests answered", self.requests.clone());
        registry.register(
            "hsm_authd_request_seconds",
            "Time from a request's header to its answer",
            self.seconds.clone(),
        );
        registry.register("hsm_authd_verdicts_total", "What callers were told", self.verdicts.clone());
    }
}

/// What the front counts of its custodians.
#[derive(Clone, Debug)]
pub struct HsmMetrics {
    /// What they were asked.
    pub operations: Series<(Operation, OperationEnd), Total>,
    /// How long an operation took, with the wait for its turn.
    pub seconds: Series<Operation, Histogram>,
    /// How many operations wait for a custodian or are being worked on.
    pub queue_depth: Series<Custodian, Gauge>,
    /// How long custodians themselves worked.
    pub busy: Series<Custodian, TotalSeconds>,
    /// How many came up.
    pub starts: Series<Custodian, Total>,
    /// How many were lost.
    pub losses: Series<Loss, Total>,
}

impl HsmMetrics {
    /// Of so many custodians.
    pub fn new(custodians: u16) -> Self {
        let custodians: Vec<Custodian> = (0..custodians).map(Custodian).collect();
        Self {
            operations: totals(),
            seconds: Series::new(Operation::all(), seconds),
            queue_depth: Series::new(custodians.clone(), Gauge::default),
            busy: Series::new(custodians.clone(), TotalSeconds::default),
            starts: Series::new(custodians, Total::default),
            losses: totals(),
        }
    }

    /// Shows them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "hsm_authd_hsm_operations_total",
            "Operations asked of the HSM",
            self.operations.clone(),
        );
        registry.register(
            "hsm_authd_hsm_operation_seconds",
            "Time of an operation as the front sees it, waiting included",
            self.seconds.clone(),
        );
        registry.register(
            "hsm_authd_hsm_queue_depth",
            "Operations that wait for a custodian or are being worked on",
            self.queue_depth.clone(),
        );
        registry.register(
            "hsm_authd_custodian_busy_seconds_total",
            "Time custodians spent on operations, waiting not included",
            self.busy.clone(),
        );
        registry.register("hsm_authd_custodian_starts_total", "Custodians that came up", self.starts.clone());
        registry.register(
            "hsm_authd_custodian_losses_total",
            "Custodians that were given up",
            self.losses.clone(),
        );
    }
}

/// What the store counts.
#[derive(Clone, Debug)]
pub struct StoreMetrics {
    /// What became of commits.
    pub commits: Series<Commit, Total>,
    /// What the durable ones tell of.
    pub events: Series<Event, Total>,
    /// How many commits shared a transaction.
    pub group_size: Histogram,
    /// How long a group's transaction took.
    pub group_seconds: Histogram,
    /// What failed.
    pub errors: Series<StoreError, Total>,
}

impl Default for StoreMetrics {
    fn default() -> Self {
        Self {
            commits: totals(),
            events: totals(),
            group_size: Histogram::new(GROUP_SIZES),
            group_seconds: seconds(),
            errors: totals(),
        }
    }
}

impl StoreMetrics {
    /// Shows them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("hsm_authd_commits_total", "Commits by what became of them", self.commits.clone());
        registry.register(
            "hsm_authd_events_total",
            "Durable changes by their audit entry",
            self.events.clone(),
        );
        registry.register(
            "hsm_authd_commit_group_size",
            "Commits that were taken from the queue together",
            self.group_size.clone(),
        );
        registry.register(
            "hsm_authd_commit_group_seconds",
            "Time until a group of commits was durable or had failed",
            self.group_seconds.clone(),
        );
        registry.register("hsm_authd_store_errors_total", "What the store could not do", self.errors.clone());
    }
}

/// What the listener counts.
#[derive(Clone, Debug)]
pub struct ConnectionMetrics {
    /// Connections that are open, handshakes included.
    pub open: Gauge,
    /// How handshakes ended.
    pub handshakes: Series<Handshake, Total>,
}

impl Default for ConnectionMetrics {
    fn default() -> Self {
        Self { open: Gauge::default(), handshakes: totals() }
    }
}

impl ConnectionMetrics {
    /// Shows them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("hsm_authd_connections_open", "Connections that are open", self.open.clone());
        registry.register(
            "hsm_authd_handshakes_total",
            "TLS handshakes by how they ended",
            self.handshakes.clone(),
        );
    }
}

/// What is looked at only when it is asked for.
#[derive(Clone, Debug)]
pub struct StateMetrics {
    /// 1 as long as `/readyz` says 200.
    pub ready: Gauge,
    /// Custodians that are up.
    pub custodians_up: Gauge,
    /// Commits that wait.
    pub store_queue_depth: Gauge,
    /// Requests that are being worked on.
    pub requests_in_flight: Gauge,
    /// 1 as long as the wall clock is trusted.
    pub clock_trusted: Gauge,
    /// Seconds until a certificate expires; NaN if that cannot be read from it.
    pub certificates: Series<Certificate, Gauge<f64, AtomicU64>>,
    /// When the front started, seconds since 1970.
    pub started: Gauge<f64, AtomicU64>,
}

impl Default for StateMetrics {
    fn default() -> Self {
        Self {
            ready: Gauge::default(),
            custodians_up: Gauge::default(),
            store_queue_depth: Gauge::default(),
            requests_in_flight: Gauge::default(),
            clock_trusted: Gauge::default(),
            certificates: Series::new(Certificate::all(), Gauge::default),
            started: Gauge::default(),
        }
    }
}

impl StateMetrics {
    /// Sets when a certificate expires, in seconds from now.
    pub fn certificate_expires(&self, certificate: Certificate, seconds: Option<f64>) {
        if let Some(gauge) = self.certificates.of(certificate) {
            gauge.set(seconds.unwrap_or(f64::NAN));
        }
    }

    /// Shows them.
    pub fn register(&self, registry: &mut Registry) {
        let gauges = [
            ("hsm_authd_ready", "Whether requests can be decided, as /readyz says", &self.ready),
            ("hsm_authd_custodians_up", "Custodians that are up", &self.custodians_up),
            ("hsm_authd_store_queue_depth", "Commits that wait for the writer", &self.store_queue_depth),
            ("hsm_authd_requests_in_flight", "Requests that are being worked on", &self.requests_in_flight),
            ("hsm_authd_clock_trusted", "Whether the wall clock is trusted", &self.clock_trusted),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
        registry.register(
            "hsm_authd_certificate_expires_seconds",
            "Time until the first certificate of its file expires",
            self.certificates.clone(),
        );
        registry.register(
            "process_start_time_seconds",
            "Start of the front, seconds since 1970",
            self.started.clone(),
        );
        registry.register("hsm_authd_build_info", "Always 1; the release is a label", BuildInfo);
    }
}

#[derive(Debug)]
struct BuildInfo;

impl EncodeMetric for BuildInfo {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        let labels = [("version", env!("CARGO_PKG_VERSION"))];
        encoder.encode_family(&labels)?.encode_gauge(&1i64)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}
