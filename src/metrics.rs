//! What is counted: each part of the appliance owns its counters, the operator's listener shows them all.
//! `docs/metrics.md` says what each means.
//!
//! Nothing that a client sends, no tenant and nothing secret becomes a label's value. The library adds
//! `_total` to a counter's name and `_info` to that of an info.

use std::hash::Hash;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::domain::audit::Event;

mod labels;

pub use labels::{
    Away, Certificate, Checkpointing, Commit, Custodian, Ended, Exchange, Handshake, Loss, Operation,
    OperationEnd, Remedied, Replacement, Route, StoreError, Token, TurnedAway, Verdict, Whose,
};

/// Times by a label, in seconds.
pub type Times<L> = Family<L, Histogram, fn() -> Histogram>;

/// Upper bounds in seconds: from what a token in memory needs to what nobody waits longer for.
const SECONDS: [f64; 15] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// Upper bounds of the size of a group of commits; the last is the largest there is.
const GROUP_SIZES: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

/// Makes these series at once: a rate needs a value before the first event.
fn from_the_start<L, M, C>(family: Family<L, M, C>, labels: impl IntoIterator<Item = L>) -> Family<L, M, C>
where
    L: Clone + Hash + Eq,
    C: MetricConstructor<M>,
{
    for labels in labels {
        drop(family.get_or_create(&labels));
    }
    family
}

fn counters<L: Clone + Hash + Eq>(labels: impl IntoIterator<Item = L>) -> Family<L, Counter> {
    from_the_start(Family::default(), labels)
}

/// What the API counts.
#[derive(Clone, Debug)]
pub struct RequestMetrics {
    /// Requests that were answered.
    pub requests: Family<(Route, Exchange), Counter>,
    /// How long that took.
    pub seconds: Times<Route>,
    /// What the callers were told.
    pub verdicts: Family<Verdict, Counter>,
    /// Requests that there was no room or no time for, or nobody any more.
    pub turned_away: Family<TurnedAway, Counter>,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(seconds),
            verdicts: counters(Verdict::all()),
            turned_away: counters(TurnedAway::all()),
        }
    }
}

impl RequestMetrics {
    /// Counts one that was answered; `route` as its router has it, if it matched one.
    pub fn count(&self, route: Option<&str>, exchange: Exchange, verdict: Verdict, time: Duration) {
        let route = Route { route: route.unwrap_or("none").to_owned() };
        self.seconds.get_or_create(&route).observe(time.as_secs_f64());
        self.requests.get_or_create(&(route, exchange)).inc();
        self.verdicts.get_or_create(&verdict).inc();
    }

    /// Shows them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("hsm_authd_requests", "Requests answered", self.requests.clone());
        registry.register(
            "hsm_authd_request_seconds",
            "Time from a request's header to its answer",
            self.seconds.clone(),
        );
        registry.register("hsm_authd_verdicts", "What callers were told", self.verdicts.clone());
        registry.register(
            "hsm_authd_requests_turned_away",
            "Requests that there was no room or no time for, or nobody any more",
            self.turned_away.clone(),
        );
    }
}

/// What the front counts of its custodians.
#[derive(Clone, Debug)]
pub struct HsmMetrics {
    /// What they were asked.
    pub operations: Family<(Operation, OperationEnd), Counter>,
    /// How long an operation took, with the wait for its turn.
    pub seconds: Times<Operation>,
    /// How many operations wait for a custodian or are being worked on.
    pub queue_depth: Family<Custodian, Gauge>,
    /// How long custodians themselves worked, in seconds.
    pub busy: Family<Custodian, Counter<f64, AtomicU64>>,
    /// How many came up.
    pub starts: Family<Custodian, Counter>,
    /// How many were lost.
    pub losses: Family<Loss, Counter>,
    /// What the HSM failed in while it was asked, by what was done about it.
    pub failures: Family<Remedied, Counter>,
    /// How many worked and were replaced.
    pub replacements: Family<Replacement, Counter>,
    /// How many are not up, by why.
    pub away: Family<Away, Gauge>,
    /// Starts that failed, by why.
    pub start_failures: Family<Away, Counter>,
    /// How many are up of each token.
    pub token_custodians_up: Family<Token, Gauge>,
    /// 1 as long as a token refuses its PIN, and no custodian of it is started.
    pub token_pin_refused: Family<Token, Gauge>,
    /// 1 as long as callers are told at once that no custodian is up.
    pub breaker_open: Gauge,
    /// Secrets that are objects in the HSM.
    pub residents: Gauge,
}

impl HsmMetrics {
    /// Of so many custodians of each token.
    pub fn new(counts: &[u16]) -> Self {
        let tokens = || (0..counts.len()).map(|token| Token { token });
        let custodians = counts.iter().fold(0_u16, |sum, count| sum.saturating_add(*count));
        let custodians = || (0..custodians).map(|custodian| Custodian { custodian });
        let ends = |operation| OperationEnd::all().map(move |end| (operation, end));
        Self {
            operations: counters(Operation::all().flat_map(ends)),
            seconds: from_the_start(Family::new_with_constructor(seconds), Operation::all()),
            queue_depth: from_the_start(Family::default(), custodians()),
            busy: from_the_start(Family::default(), custodians()),
            starts: counters(custodians()),
            losses: counters(Loss::all()),
            failures: counters(Remedied::all()),
            replacements: counters(Replacement::all()),
            away: from_the_start(Family::default(), Away::all()),
            start_failures: counters(
                Away::all().filter(|cause| !matches!(cause, Away::Starting | Away::Lost)),
            ),
            token_custodians_up: from_the_start(Family::default(), tokens()),
            token_pin_refused: from_the_start(Family::default(), tokens()),
            breaker_open: Gauge::default(),
            residents: Gauge::default(),
        }
    }

    /// Shows them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("hsm_authd_hsm_operations", "Operations asked of the HSM", self.operations.clone());
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
            "hsm_authd_custodian_busy_seconds",
            "Time custodians spent on operations, waiting not included",
            self.busy.clone(),
        );
        registry.register("hsm_authd_custodian_starts", "Custodians that came up", self.starts.clone());
        registry.register("hsm_authd_custodian_losses", "Custodians that were given up", self.losses.clone());
        registry.register(
            "hsm_authd_hsm_failures",
            "Failures of the HSM while it was asked, by what was done about them",
            self.failures.clone(),
        );
        registry.register(
            "hsm_authd_custodian_replacements",
            "Custodians that worked and were replaced",
            self.replacements.clone(),
        );
        registry.register(
            "hsm_authd_custodians_away",
            "Custodians that are not up, by why",
            self.away.clone(),
        );
        registry.register(
            "hsm_authd_custodian_start_failures",
            "Custodians that did not come up, by why",
            self.start_failures.clone(),
        );
        registry.register(
            "hsm_authd_token_custodians_up",
            "Custodians that are up, by token",
            self.token_custodians_up.clone(),
        );
        registry.register(
            "hsm_authd_token_pin_refused",
            "Whether a token refuses its PIN, and no custodian of it is started",
            self.token_pin_refused.clone(),
        );
        registry.register(
            "hsm_authd_hsm_breaker_open",
            "Whether callers are told at once that no custodian is up",
            self.breaker_open.clone(),
        );
        registry.register(
            "hsm_authd_resident_secrets",
            "Secrets that are objects in the HSM",
            self.residents.clone(),
        );
    }
}

/// What the store counts.
#[derive(Clone, Debug)]
pub struct StoreMetrics {
    /// What became of commits.
    pub commits: Family<Commit, Counter>,
    /// What the durable ones tell of.
    pub events: Family<Event, Counter>,
    /// How many commits shared a transaction.
    pub group_size: Histogram,
    /// How long a group's transaction took.
    pub group_seconds: Histogram,
    /// How much of that went into the log: hashing entries and inserting them, without their share of the fsync.
    pub group_log_seconds: Histogram,
    /// What failed.
    pub errors: Family<StoreError, Counter>,
}

impl Default for StoreMetrics {
    fn default() -> Self {
        Self {
            commits: counters(Commit::all()),
            events: counters(Event::ALL.iter().copied()),
            group_size: Histogram::new(GROUP_SIZES),
            group_seconds: seconds(),
            group_log_seconds: seconds(),
            errors: counters(StoreError::all()),
        }
    }
}

impl StoreMetrics {
    /// Shows them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("hsm_authd_commits", "Commits by what became of them", self.commits.clone());
        registry.register("hsm_authd_events", "Durable changes by their audit entry", self.events.clone());
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
        registry.register(
            "hsm_authd_commit_group_log_seconds",
            "Time within a group that went into its entries of the log",
            self.group_log_seconds.clone(),
        );
        registry.register("hsm_authd_store_errors", "What the store could not do", self.errors.clone());
    }
}

/// What is counted of the log's checkpoints, and of rows that somebody changed.
#[derive(Clone, Debug)]
pub struct LogMetrics {
    /// What became of checkpoints.
    pub checkpoints: Family<Checkpointing, Counter>,
    /// How many entries the anchor covers: in every token that is there.
    pub anchored: Gauge,
    /// How many entries a token's anchor does not cover; looked at when it is asked for.
    pub anchor_lag: Family<Token, Gauge>,
    /// 1 as long as nothing is committed because the anchor is too far behind the log.
    pub closed: Gauge,
    /// How many entries there are; looked at when it is asked for.
    pub entries: Gauge,
    /// Rows that were found to be others than what was sealed, each once.
    pub tampered_rows: Counter,
}

impl Default for LogMetrics {
    fn default() -> Self {
        Self {
            checkpoints: counters(Checkpointing::all()),
            anchored: Gauge::default(),
            anchor_lag: Family::default(),
            closed: Gauge::default(),
            entries: Gauge::default(),
            tampered_rows: Counter::default(),
        }
    }
}

impl LogMetrics {
    /// Shows them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("hsm_authd_checkpoints", "Checkpoints of the log", self.checkpoints.clone());
        registry.register("hsm_authd_log_anchored", "Entries that the anchor covers", self.anchored.clone());
        registry.register(
            "hsm_authd_log_anchor_lag",
            "Entries that a token's anchor does not cover",
            self.anchor_lag.clone(),
        );
        registry.register(
            "hsm_authd_log_closed",
            "Whether nothing is committed because the anchor is too far behind the log",
            self.closed.clone(),
        );
        registry.register("hsm_authd_log_entries", "Entries of the log", self.entries.clone());
        registry.register(
            "hsm_authd_tampered_rows",
            "Rows that are not what was sealed",
            self.tampered_rows.clone(),
        );
    }
}

/// What the listener counts.
#[derive(Clone, Debug)]
pub struct ConnectionMetrics {
    /// Connections that are open, handshakes included.
    pub open: Gauge,
    /// Those that were closed after their handshake because there were as many of theirs as may be.
    pub refused: Family<Whose, Counter>,
    /// Those that were ended from this side later, by the reason.
    pub ended: Family<Ended, Counter>,
    /// How handshakes ended.
    pub handshakes: Family<Handshake, Counter>,
    /// Handshakes that have begun and not ended.
    pub handshaking: Gauge,
    /// Connections that have no handshake in progress yet: their first message is awaited, or they stand in line for one.
    pub unannounced: Gauge,
    /// How often somebody had to wait for room, before a handshake or in one.
    pub handshakes_full: Counter,
}

impl Default for ConnectionMetrics {
    fn default() -> Self {
        Self {
            open: Gauge::default(),
            refused: counters(Whose::all()),
            ended: counters(Ended::all()),
            handshakes: counters(Handshake::all()),
            handshaking: Gauge::default(),
            unannounced: Gauge::default(),
            handshakes_full: Counter::default(),
        }
    }
}

impl ConnectionMetrics {
    /// Shows them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("hsm_authd_connections_open", "Connections that are open", self.open.clone());
        registry.register(
            "hsm_authd_connections_refused",
            "Connections closed because there were as many of theirs as may be",
            self.refused.clone(),
        );
        registry.register(
            "hsm_authd_connections_ended",
            "Connections that were ended from this side",
            self.ended.clone(),
        );
        registry.register(
            "hsm_authd_handshakes",
            "TLS handshakes by how they ended",
            self.handshakes.clone(),
        );
        registry.register(
            "hsm_authd_handshakes_in_progress",
            "TLS handshakes that have begun and not ended",
            self.handshaking.clone(),
        );
        registry.register(
            "hsm_authd_connections_unannounced",
            "Open connections that wait for their TLS handshake to begin",
            self.unannounced.clone(),
        );
        registry.register(
            "hsm_authd_handshakes_full",
            "Times that a connection had to wait until there was room",
            self.handshakes_full.clone(),
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
    /// For how long no custodian has been up, in seconds; 0: one is.
    pub hsm_away_seconds: Gauge<f64, AtomicU64>,
    /// Commits that wait.
    pub store_queue_depth: Gauge,
    /// Requests that are being worked on.
    pub requests_in_flight: Gauge,
    /// How many of them wait for their tenant's turn.
    pub requests_waiting: Gauge,
    /// 1 as long as the wall clock is trusted.
    pub clock_trusted: Gauge,
    /// 1 as long as rows are brought under the newest keys.
    pub rewrap_running: Gauge,
    /// 1 if the last rewrap was given up.
    pub rewrap_failed: Gauge,
    /// How many rows there were when the rewrap began to go through them.
    pub rewrap_rows: Gauge,
    /// How many of them it has looked at.
    pub rewrap_rows_done: Gauge,
    /// Seconds until a certificate expires, or a revocation list; NaN if there is none, or that cannot be read from it.
    pub certificates: Family<Certificate, Gauge<f64, AtomicU64>>,
    /// When the front started, seconds since 1970.
    pub started: Gauge<f64, AtomicU64>,
}

impl Default for StateMetrics {
    fn default() -> Self {
        Self {
            ready: Gauge::default(),
            custodians_up: Gauge::default(),
            hsm_away_seconds: Gauge::default(),
            store_queue_depth: Gauge::default(),
            requests_in_flight: Gauge::default(),
            requests_waiting: Gauge::default(),
            clock_trusted: Gauge::default(),
            rewrap_running: Gauge::default(),
            rewrap_failed: Gauge::default(),
            rewrap_rows: Gauge::default(),
            rewrap_rows_done: Gauge::default(),
            certificates: from_the_start(Family::default(), Certificate::all()),
            started: Gauge::default(),
        }
    }
}

impl StateMetrics {
    /// Sets when a certificate expires, in seconds from now.
    pub fn certificate_expires(&self, certificate: Certificate, seconds: Option<f64>) {
        self.certificates.get_or_create(&certificate).set(seconds.unwrap_or(f64::NAN));
    }

    /// Shows them.
    pub fn register(&self, registry: &mut Registry) {
        let gauges = [
            ("hsm_authd_ready", "Whether requests can be decided, as /readyz says", &self.ready),
            ("hsm_authd_custodians_up", "Custodians that are up", &self.custodians_up),
            ("hsm_authd_store_queue_depth", "Commits that wait for the writer", &self.store_queue_depth),
            ("hsm_authd_requests_in_flight", "Requests that were let in", &self.requests_in_flight),
            (
                "hsm_authd_requests_waiting",
                "Requests that wait for their tenant's turn",
                &self.requests_waiting,
            ),
            ("hsm_authd_clock_trusted", "Whether the wall clock is trusted", &self.clock_trusted),
            (
                "hsm_authd_rewrap_running",
                "Whether rows are being brought under the newest keys",
                &self.rewrap_running,
            ),
            ("hsm_authd_rewrap_failed", "Whether the last rewrap was given up", &self.rewrap_failed),
            ("hsm_authd_rewrap_rows", "Rows that the rewrap goes through", &self.rewrap_rows),
            ("hsm_authd_rewrap_rows_done", "Rows that the rewrap has looked at", &self.rewrap_rows_done),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
        registry.register(
            "hsm_authd_hsm_away_seconds",
            "Time since the last custodian was up; 0 while one is",
            self.hsm_away_seconds.clone(),
        );
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
        let release = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("hsm_authd_build", "The release", release);
    }
}

/// Up as long as it is held.
pub struct Held(Gauge);

impl Held {
    /// Moves the gauge up by one.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}
