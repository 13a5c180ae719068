//! What is counted, and how it is told: each part of the appliance owns its counters, the operator's
//! listener shows them all. `docs/metrics.md` says what each means.
//!
//! A label's values are all known when the process starts: nothing that a client sends, no tenant and
//! nothing secret becomes one. Each series is made once, so that counting is one look into a slice and
//! one atomic addition (or, for a histogram, a short lock that nothing is awaited under).

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, TypedMetric};

mod groups;
mod labels;

pub use groups::{ConnectionMetrics, HsmMetrics, RequestMetrics, StateMetrics, StoreMetrics};
pub use labels::{
    Certificate, Commit, Custodian, Handshake, Loss, Method, Operation, OperationEnd, Route, Status,
    StoreError, Verdict,
};

/// The labels of one series.
pub trait Labels: Copy + Debug + Send + Sync + 'static {
    /// Its place among all that there are.
    fn index(self) -> usize;

    /// Writes each label's name and value.
    ///
    /// # Errors
    /// Of the writer.
    fn encode(self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result;
}

/// Labels of which there are always the same.
pub trait FixedLabels: Labels {
    /// How many there are.
    const COUNT: usize;

    /// All of them, in the order of [`Labels::index`].
    fn all() -> Vec<Self>;
}

impl<A: Labels, B: FixedLabels> Labels for (A, B) {
    fn index(self) -> usize {
        self.0.index() * B::COUNT + self.1.index()
    }

    fn encode(self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)?;
        self.1.encode(encoder)
    }
}

impl<A: FixedLabels, B: FixedLabels> FixedLabels for (A, B) {
    const COUNT: usize = A::COUNT * B::COUNT;

    fn all() -> Vec<Self> {
        pairs(&A::all())
    }
}

/// Each of `first` with each of the others.
fn pairs<A: Labels, B: FixedLabels>(first: &[A]) -> Vec<(A, B)> {
    first.iter().flat_map(|a| B::all().into_iter().map(|b| (*a, b))).collect()
}

/// One metric for each value of its labels; clones share it.
#[derive(Debug)]
pub struct Series<L, M> {
    all: Arc<[(L, M)]>,
    /// Whether those that never counted are left out: where most can never come about.
    sparse: bool,
}

impl<L, M> Clone for Series<L, M> {
    fn clone(&self) -> Self {
        Self { all: self.all.clone(), sparse: self.sparse }
    }
}

impl<L: Labels, M> Series<L, M> {
    fn new(labels: Vec<L>, metric: impl Fn() -> M) -> Self {
        Self { all: labels.into_iter().map(|labels| (labels, metric())).collect(), sparse: false }
    }

    fn sparse(self) -> Self {
        Self { sparse: true, ..self }
    }

    /// That of these labels; `None` only for a value that was not there at the start.
    fn of(&self, labels: L) -> Option<&M> {
        self.all.get(labels.index()).map(|(_, metric)| metric)
    }
}

impl<L: Labels> Series<L, Total> {
    /// Counts one.
    pub fn count(&self, labels: L) {
        if let Some(total) = self.of(labels) {
            total.0.inc();
        }
    }
}

impl<L: Labels> Series<L, TotalSeconds> {
    /// Adds a time, in nanoseconds.
    pub fn add_ns(&self, labels: L, ns: u64) {
        if let Some(total) = self.of(labels) {
            total.0.inc_by(ns);
        }
    }
}

impl<L: Labels> Series<L, Histogram> {
    /// Counts a time.
    pub fn observe(&self, labels: L, time: Duration) {
        if let Some(histogram) = self.of(labels) {
            histogram.observe(time.as_secs_f64());
        }
    }
}

impl<L: Labels> Series<L, Gauge> {
    /// The gauge itself, to be moved up and down.
    pub fn gauge(&self, labels: L) -> Gauge {
        self.of(labels).cloned().unwrap_or_default()
    }
}

/// What only grows.
#[derive(Clone, Debug, Default)]
pub struct Total(Counter);

/// A sum of times. Counted in nanoseconds, told in seconds.
#[derive(Clone, Debug, Default)]
pub struct TotalSeconds(Counter);

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

impl TypedMetric for Total {
    const TYPE: MetricType = MetricType::Counter;
}

impl TypedMetric for TotalSeconds {
    const TYPE: MetricType = MetricType::Counter;
}

/// The library writes a counter as OpenMetrics has it, under another name than its type's line. In
/// Prometheus' own text both bear the same name, so the value is written like a gauge's: as it is.
impl EncodeMetric for Total {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&self.0.get())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }

    fn is_empty(&self) -> bool {
        self.0.get() == 0
    }
}

impl EncodeMetric for TotalSeconds {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&(self.0.get() as f64 / 1e9))
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl<L: Labels, M: EncodeMetric + TypedMetric + Debug + Send + Sync + 'static> EncodeMetric for Series<L, M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (labels, metric) in self.all.iter() {
            if !(self.sparse && metric.is_empty()) {
                metric.encode(encoder.encode_family(&LabelSet(*labels))?)?;
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}

struct LabelSet<L>(L);

impl<L: Labels> EncodeLabelSet for LabelSet<L> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_label_has_its_place() {
        fn check<L: FixedLabels>() {
            let all = L::all();
            assert_eq!(all.len(), L::COUNT);
            for (place, labels) in all.into_iter().enumerate() {
                assert_eq!(labels.index(), place, "{labels:?}");
            }
        }
        check::<(Method, Status)>();
        check::<(Operation, OperationEnd)>();
        check::<Verdict>();
        check::<crate::domain::audit::Event>();
        check::<StoreError>();
        let routes = Route::list(["/one", "/two"]);
        assert_eq!(routes.iter().map(|route| route.index()).collect::<Vec<_>>(), [0, 1, 2]);
        for (place, labels) in pairs::<Route, (Method, Status)>(&routes).into_iter().enumerate() {
            assert_eq!(labels.index(), place, "{labels:?}");
        }
    }

    #[test]
    fn what_a_client_chooses_is_one_of_few() {
        let routes = Route::list(["/one", "/two"]);
        assert_eq!(Route::of(&routes, Some("/two")).index(), 1);
        assert_eq!(Route::of(&routes, Some("/three")).index(), 2);
        assert_eq!(Route::of(&routes, None).index(), 2);
        assert_eq!(Method::of("POST"), Method::Post);
        assert_eq!(Method::of("BREW"), Method::Other);
        assert_eq!(Status::of(423), Status::Locked);
        assert_eq!(Status::of(418), Status::Other);
    }
}
