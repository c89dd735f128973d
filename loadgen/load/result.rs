//! Makes of what was measured the result that is kept.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::metrics::Metrics;
use super::pace::{Arrivals, Pace};
use super::{Load, Measured, Progress};
use crate::client::Server;
use crate::report::result::{FORMAT, Group, Metric, Provenance, RunResult};

impl Load {
    /// Runs and returns the result, with what it was made of. `label` is its name in tables and
    /// legends. Verification and faults are for the one who observed the run to fill in.
    ///
    /// # Errors
    /// As for [`Load::run`].
    pub async fn result(
        &self,
        server: &Server,
        label: &str,
        provenance: &Provenance,
        progress: &Arc<Progress>,
        stop: impl Future<Output = ()>,
    ) -> Result<(RunResult, Measured)> {
        let date = jiff::Timestamp::now();
        let measured = self.run(server, progress, stop).await?;
        let mut result = result(self, &measured);
        result.date = format!("{date:.0}");
        result.label = label.to_owned();
        result.provenance = provenance.clone();
        Ok((result, measured))
    }
}

/// The result of a run, without date, label and provenance.
pub fn result(load: &Load, measured: &Measured) -> RunResult {
    let (sums, all) = (&measured.sums, &measured.sums.all);
    let (warmup, length) = sums.window(measured.elapsed);
    let rate = |num: f64| num / length.as_secs_f64().max(1e-9);
    let arrived = sums.arrived;
    let mut statistics = all.statistics();
    statistics.insert("max_output_tokens".to_owned(), load.parameters.max_tokens.into());
    RunResult {
        format: FORMAT,
        model_id: load.parameters.model.clone(),
        endpoint: load.parameters.endpoint.path().to_owned(),
        num_prompts: load.extent.requests,
        request_rate: offered(load),
        max_concurrency: match load.pace {
            Pace::Open { max_concurrency, .. } => max_concurrency,
            Pace::Closed { concurrency } => Some(concurrency.end() as u64),
        },
        arrivals: load.pace.to_string(),
        seed: load.workload.seed,
        interrupted: measured.interrupted,
        duration: length.as_secs_f64(),
        warmup: warmup.as_secs_f64(),
        completed: all.num_completed,
        failed: all.num_failed(),
        failures: all
            .failures
            .iter()
            .map(|(kind, failures)| (kind.to_string(), failures.clone()))
            .collect(),
        total_input_tokens: all.num_prompt_tokens.known(),
        total_output_tokens: all.num_completion_tokens.known(),
        request_throughput: rate(arrived.answers as f64),
        request_goodput: (!load.slo.is_empty()).then(|| rate(arrived.good as f64)),
        output_throughput: rate(arrived.tokens),
        total_token_throughput: arrived
            .prompt_tokens
            .known()
            .map(|prompts| rate(arrived.tokens + prompts as f64)),
        slo: load.slo.limits_ms(),
        curves: Metric::ALL
            .into_iter()
            .filter(|&metric| !all.times(metric).is_empty())
            .map(|metric| (metric.name().to_owned(), all.times(metric).curve()))
            .collect(),
        timeline: sums.timeline(),
        groups: sums.groups.iter().map(|(name, part)| group(load, name, part, length)).collect(),
        client: measured.client.clone(),
        statistics,
        ..RunResult::default()
    }
}

/// Requests a second that were offered, at the end of a ramp or on the average of a trace.
fn offered(load: &Load) -> Option<f64> {
    match &load.pace {
        Pace::Open { arrivals: Arrivals::Random { rate, .. }, .. } => Some(rate.end()),
        Pace::Open { arrivals: Arrivals::Trace(times), .. } => {
            let last = times.last()?.as_secs_f64();
            (last > 0.0).then(|| (times.len() - 1) as f64 / last)
        }
        Pace::Closed { .. } => None,
    }
}

/// A part's goodput counts its requests of the window, not its arrivals in it.
fn group(load: &Load, name: &str, part: &Metrics, length: Duration) -> Group {
    let goodput = part.num_good as f64 / length.as_secs_f64().max(1e-9);
    Group {
        name: name.to_owned(),
        completed: part.num_completed,
        failed: part.num_failed(),
        total_output_tokens: part.num_completion_tokens.known(),
        request_goodput: (!load.slo.is_empty()).then_some(goodput),
        statistics: part.statistics(),
    }
}
