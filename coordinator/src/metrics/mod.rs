//! What is counted, for Prometheus.
//!
//! Labels take few values by construction: the served model, stages, joined nodes, routes and
//! methods of the API, and words of this program. Nothing that a client says becomes one.

mod batches;
#[cfg(test)]
mod cost;
mod latency;
mod nodes;
mod scaling;
mod scheduling;
mod stages;
#[cfg(test)]
mod tests;
mod text;
mod vllm;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use protocol::TraceId;
use protocol::config::{self, MetricsCompat};

use crate::lane::Prefix;
use crate::recent::Recent;
use crate::request::Priority;
use batches::Batches;
pub(crate) use batches::OpenJobs;
use latency::Latency;
use nodes::Nodes;
use scaling::ScalingSeries;
use scheduling::SchedulingSeries;
use stages::StageMetrics;
pub(crate) use stages::{StepReport, StepWays};
pub(crate) use text::{OPEN_METRICS, PLAIN, wants_plain};

type Float = Gauge<f64, AtomicU64>;

/// Every priority until there are several.
const CLASS: &str = "standard";

/// Resolves 10 to 200 ms, where answers are felt.
const SECONDS: [f64; 20] = [
    0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5,
    1.0, 3.0, 10.0, 60.0, 300.0,
];

const TOKENS: [f64; 14] =
    [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    model: Arc<str>,
    class: &'static str,
    code: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

/// vLLM's name of the label.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FinishLabels {
    finished_reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HttpLabels {
    method: &'static str,
    endpoint: &'static str,
}

/// Every series of the coordinator.
#[derive(Debug)]
pub(crate) struct Metrics {
    is_on: bool,
    registry: Registry,
    model: Arc<str>,
    requests: Family<RequestLabels, Counter>,
    errors: Family<KindLabels, Counter>,
    choices: Family<FinishLabels, Counter>,
    scheduling: SchedulingSeries,
    scaling: ScalingSeries,
    batches: Batches,
    waiting: Gauge,
    queue_wait: Histogram,
    running: Gauge,
    first_token: Latency,
    per_token: Latency,
    between_tokens: Latency,
    duration: Latency,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    request_prompt: Histogram,
    request_answer: Histogram,
    kv_usage: Float,
    kv_blocks: Family<StateLabels, Gauge>,
    // Of them, used and free: set whenever anything happens, so not looked up.
    kv_states: [Gauge; 2],
    step: Histogram,
    batch_tokens: Histogram,
    stages: StageMetrics,
    nodes: Nodes,
    pipelines_lost: Counter,
    shed: Family<ReasonLabels, Counter>,
    refused: Family<ReasonLabels, Counter>,
    joins_refused: Family<ReasonLabels, Counter>,
    http: Family<HttpLabels, Histogram>,
    // For whoever looks at the server itself, and not at what is scraped of it.
    recent: Mutex<Recent>,
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

impl Metrics {
    /// Everything at zero, for the model of this name.
    pub(crate) fn new(model: &str, config: &config::Metrics) -> Self {
        let kv_blocks = Family::<StateLabels, Gauge>::default();
        let kv_states =
            ["used", "free"].map(|state| kv_blocks.get_or_create(&StateLabels { state }).clone());
        let mut metrics = Self {
            is_on: config.enabled,
            registry: Registry::default(),
            model: model.into(),
            requests: Family::default(),
            errors: Family::default(),
            choices: Family::default(),
            scheduling: SchedulingSeries::default(),
            scaling: ScalingSeries::default(),
            batches: Batches::default(),
            waiting: Gauge::default(),
            queue_wait: seconds(),
            running: Gauge::default(),
            first_token: Latency::new(),
            per_token: Latency::new(),
            between_tokens: Latency::new(),
            duration: Latency::new(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            request_prompt: Histogram::new(TOKENS),
            request_answer: Histogram::new(TOKENS),
            kv_usage: Float::default(),
            kv_blocks,
            kv_states,
            step: seconds(),
            batch_tokens: Histogram::new(TOKENS),
            stages: StageMetrics::new(),
            nodes: Nodes::default(),
            pipelines_lost: Counter::default(),
            shed: Family::default(),
            refused: Family::default(),
            joins_refused: Family::default(),
            http: Family::new_with_constructor(seconds),
            recent: Mutex::new(Recent::new(config)),
        };
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        if config.compat == MetricsCompat::Vllm {
            vllm::register(&metrics, &mut registry);
        }
        metrics.registry = registry;
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "http_request_duration",
            "From a request's arrival to the end of its answer",
            Unit::Seconds,
            self.http.clone(),
        );
        let ours = registry.sub_registry_with_prefix("autoglm");
        ours.register("requests", "Requests, by HTTP status", self.requests.clone());
        ours.register("errors", "Requests that failed, by cause", self.errors.clone());
        ours.register("choices", "Answers that ended, by reason", self.choices.clone());
        self.scheduling.register(ours);
        self.scaling.register(ours);
        self.batches.register(ours);
        ours.register("requests_running", "Sequences that run", self.running.clone());
        let histograms = [
            ("queue_wait", "From arrival to admission", &self.queue_wait),
            ("step", "One pass of one batch through the pipeline", &self.step),
        ];
        for (name, help, histogram) in histograms {
            ours.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        let latencies = [
            ("time_to_first_token", "From arrival to the first token", &self.first_token),
            ("time_per_output_token", "Decoding time by token of an answer", &self.per_token),
            ("inter_token_latency", "Between two tokens of an answer", &self.between_tokens),
            ("request_duration", "From arrival to the last token", &self.duration),
        ];
        for (name, help, latency) in latencies {
            ours.register_with_unit(name, help, Unit::Seconds, latency.0.clone());
        }
        ours.register("batch_tokens", "Tokens computed in one step", self.batch_tokens.clone());
        ours.register("prompt_tokens", "Tokens of prompts admitted", self.prompt_tokens.clone());
        let help = "Tokens of answers, also of those that were left or failed";
        ours.register("generation_tokens", help, self.generation_tokens.clone());
        let lengths = [
            ("request_prompt_tokens", "Tokens of a request's prompts", &self.request_prompt),
            ("request_generation_tokens", "Tokens of a request's answers", &self.request_answer),
        ];
        for (name, help, histogram) in lengths {
            ours.register(name, help, histogram.clone());
        }
        ours.register("kv_usage_ratio", "Share of KV blocks that is held", self.kv_usage.clone());
        ours.register(
            "kv_blocks",
            "KV blocks of the pipeline, used and free",
            self.kv_blocks.clone(),
        );
        self.stages.register(ours);
        self.nodes.register(ours);
        ours.register("pipeline_lost", "Pipelines that were lost", self.pipelines_lost.clone());
        ours.register("shed", "Requests that were refused for load", self.shed.clone());
        ours.register("refused", "Requests that no API key allows, by cause", self.refused.clone());
        let help = "Nodes that asked to join and may not, by cause";
        ours.register("joins_refused", help, self.joins_refused.clone());
    }

    /// The last hour.
    pub(crate) fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time passed.
    pub(crate) fn tick(&self, now: Instant) {
        if self.is_on {
            self.recent().tick(now);
        }
    }

    /// All of it, in OpenMetrics text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// All of it, in Prometheus' older text format.
    pub(crate) fn plain_text(&self) -> String {
        text::plain(&self.text())
    }

    /// Sequences that wait, by priority, lowest first.
    pub(crate) fn queued(&self, num_waiting: [usize; Priority::ALL.len()]) {
        if !self.is_on {
            return;
        }
        let num_all = num_waiting.iter().sum::<usize>();
        self.waiting.set(num_all as i64);
        self.recent().queued(num_all);
        self.scheduling.queued(num_waiting);
    }

    /// Sequences that run.
    pub(crate) fn running(&self, num_running: usize) {
        if !self.is_on {
            return;
        }
        self.running.set(num_running as i64);
        self.recent().running(num_running);
    }

    /// A sequence was admitted after this wait.
    pub(crate) fn admitted(&self, wait: Duration) {
        if !self.is_on {
            return;
        }
        self.queue_wait.observe(wait.as_secs_f64());
        self.recent().admitted(wait);
    }

    pub(crate) fn kv(&self, num_used: usize, num_blocks: usize) {
        if !self.is_on {
            return;
        }
        let [used, free] = &self.kv_states;
        used.set(num_used as i64);
        free.set(num_blocks.saturating_sub(num_used) as i64);
        let share = if num_blocks == 0 { 0.0 } else { num_used as f64 / num_blocks as f64 };
        self.kv_usage.set(share);
        self.recent().kv(share);
    }

    pub(crate) fn step(&self, step: &StepReport<'_>) {
        if !self.is_on {
            return;
        }
        self.step.observe(step.duration.as_secs_f64());
        self.batch_tokens.observe(step.num_tokens as f64);
        let ways = StepWays::of(step);
        self.stages.step(step, ways.as_ref());
        self.recent().step(step, ways.as_ref());
    }

    /// A running sequence had to give way.
    pub(crate) fn preempted(&self, priority: Priority) {
        self.scheduling.preempted(priority);
    }

    /// So many sequences of a lost pipeline went back to the queue.
    pub(crate) fn moved(&self, num_sequences: usize) {
        self.scheduling.moved(num_sequences);
    }

    /// What the prefix cache had.
    pub(crate) fn prefix(&self, prefix: Prefix) {
        self.scheduling.prefix(prefix);
        if self.is_on {
            self.recent().prefix(prefix);
        }
    }

    pub(crate) fn pipeline_lost(&self) {
        self.pipelines_lost.inc();
        self.stages.forget();
    }

    /// A pipeline was given up, and so many of its sequences went back to the queue.
    pub(crate) fn drained(&self, num_sequences: usize) {
        self.scheduling.moved(num_sequences);
        self.stages.forget();
    }

    /// What runs or waits, in tokens, and the pipelines that serve.
    pub(crate) fn observed(&self, num_tokens: usize, num_pipelines: usize) {
        if !self.is_on {
            return;
        }
        self.scaling.observed(num_tokens, num_pipelines);
    }

    /// Another number of pipelines is wanted.
    pub(crate) fn scaled(&self, from: usize, to: usize) {
        self.scaling.decided(from, to);
    }

    /// The pipelines that the autoscaler wants, and the nodes that they take.
    pub(crate) fn wanted(&self, num_pipelines: usize, num_nodes: usize) {
        self.scaling.wanted(num_pipelines, num_nodes);
    }

    /// The first token of an answer, after this time.
    pub(crate) fn first_token(&self, after: Duration, trace: Option<TraceId>) {
        if !self.is_on {
            return;
        }
        self.first_token.observe(after.as_secs_f64(), trace);
        self.recent().first_token(after);
    }

    /// Another token of a choice, after this time.
    pub(crate) fn next_token(&self, after: Duration, trace: Option<TraceId>) {
        if !self.is_on {
            return;
        }
        self.between_tokens.observe(after.as_secs_f64(), trace);
        self.recent().next_token(after);
    }

    /// A choice has ended, its last token this time after its first.
    pub(crate) fn decoded(&self, decoding: Duration, num_tokens: usize, trace: Option<TraceId>) {
        if !self.is_on {
            return;
        }
        if num_tokens > 1 {
            let per_token = decoding.as_secs_f64() / (num_tokens - 1) as f64;
            self.per_token.observe(per_token, trace);
        }
    }

    /// A whole answer has ended.
    pub(crate) fn answered(&self, tokens: Tokens, duration: Duration, trace: Option<TraceId>) {
        if !self.is_on {
            return;
        }
        self.duration.observe(duration.as_secs_f64(), trace);
        self.request_prompt.observe(tokens.num_prompt as f64);
        self.request_answer.observe(tokens.num_generated as f64);
    }

    /// A request that was admitted has ended, whichever way: this is what was computed for it.
    pub(crate) fn computed(&self, tokens: Tokens) {
        if !self.is_on {
            return;
        }
        self.prompt_tokens.inc_by(tokens.num_prompt as u64);
        self.generation_tokens.inc_by(tokens.num_generated as u64);
    }

    /// A request has ended with this status, or 499: its client left.
    pub(crate) fn ended(&self, code: u16) {
        if !self.is_on {
            return;
        }
        let labels =
            RequestLabels { model: Arc::clone(&self.model), class: CLASS, code: code.into() };
        self.requests.get_or_create(&labels).inc();
        self.recent().ended(code);
    }

    pub(crate) fn failed(&self, kind: &'static str) {
        if !self.is_on {
            return;
        }
        self.errors.get_or_create(&KindLabels { kind }).inc();
    }

    /// Choices have ended: `stop`, `length`, `abort` (the client left) or `error`.
    pub(crate) fn finished(&self, finished_reason: &'static str, num_choices: usize) {
        if !self.is_on {
            return;
        }
        let labels = FinishLabels { finished_reason };
        self.choices.get_or_create(&labels).inc_by(num_choices as u64);
    }

    /// A request was refused for load.
    pub(crate) fn shed(&self, reason: &'static str) {
        self.shed.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// No API key allows a request: not at all, or not now.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// A node that asked to join may not.
    pub(crate) fn join_refused(&self, reason: &'static str) {
        self.joins_refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// A response has ended. `endpoint` is a route's template, never a path.
    pub(crate) fn http(&self, method: &'static str, endpoint: &'static str, duration: Duration) {
        if !self.is_on {
            return;
        }
        let labels = HttpLabels { method, endpoint };
        self.http.get_or_create(&labels).observe(duration.as_secs_f64());
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Tokens {
    pub num_prompt: usize,
    pub num_generated: usize,
}
