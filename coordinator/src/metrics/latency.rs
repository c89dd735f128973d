//! Times of answers, which know from which trace they are.

use std::time::SystemTime;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use protocol::TraceId;

use super::SECONDS;

/// Says which trace a sample comes from: OpenMetrics has one such for each bucket.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct TraceLabels {
    trace_id: String,
}

/// Seconds, of traced requests with their traces.
#[derive(Clone, Debug)]
pub(super) struct Latency(pub(super) HistogramWithExemplars<TraceLabels>);

impl Latency {
    pub(super) fn new() -> Self {
        Self(HistogramWithExemplars::new(SECONDS.into_iter()))
    }

    pub(super) fn observe(&self, seconds: f64, trace: Option<TraceId>) {
        let exemplar = trace.map(|trace| TraceLabels { trace_id: trace.to_string() });
        let now = exemplar.is_some().then(SystemTime::now);
        self.0.observe(seconds, exemplar, now);
    }
}
