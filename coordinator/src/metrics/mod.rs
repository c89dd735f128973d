//! What is counted, for Prometheus. Labels take few values by construction: stages, nodes, routes
//! and the served model.

mod stages;

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use protocol::NodeId;

use stages::StageMetrics;
pub use stages::StepReport;

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
    model: String,
    class: &'static str,
    code: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ClassLabels {
    class: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct NodeLabels {
    node: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HttpLabels {
    method: &'static str,
    endpoint: String,
}

/// Every series of the coordinator.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    queue_depth: Family<ClassLabels, Gauge>,
    queue_wait: Histogram,
    running: Gauge,
    first_token: Histogram,
    per_token: Histogram,
    between_tokens: Histogram,
    duration: Histogram,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    kv_usage: Float,
    kv_blocks: Family<StateLabels, Gauge>,
    step: Histogram,
    batch_tokens: Histogram,
    stages: StageMetrics,
    node_up: Family<NodeLabels, Gauge>,
    pipelines_lost: Counter,
    shed: Family<ReasonLabels, Counter>,
    http: Family<HttpLabels, Histogram>,
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Everything at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            queue_depth: Family::default(),
            queue_wait: seconds(),
            running: Gauge::default(),
            first_token: seconds(),
            per_token: seconds(),
            between_tokens: seconds(),
            duration: seconds(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            kv_usage: Float::default(),
            kv_blocks: Family::default(),
            step: seconds(),
            batch_tokens: Histogram::new(TOKENS),
            stages: StageMetrics::new(),
            node_up: Family::default(),
            pipelines_lost: Counter::default(),
            shed: Family::default(),
            http: Family::new_with_constructor(seconds),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let mut http = std::mem::take(&mut self.registry);
        http.register_with_unit(
            "http_request_duration",
            "From a request's arrival to the end of its answer",
            Unit::Seconds,
            self.http.clone(),
        );
        let ours = http.sub_registry_with_prefix("autoglm");
        ours.register("requests", "Requests, by HTTP status", self.requests.clone());
        ours.register("queue_depth", "Sequences that wait", self.queue_depth.clone());
        ours.register("requests_running", "Sequences that run", self.running.clone());
        let histograms = [
            ("queue_wait", "From arrival to admission", &self.queue_wait),
            ("time_to_first_token", "From arrival to the first token", &self.first_token),
            ("time_per_output_token", "Decoding time by token of an answer", &self.per_token),
            ("inter_token_latency", "Between two tokens of an answer", &self.between_tokens),
            ("request_duration", "From arrival to the last token", &self.duration),
            ("step", "One pass of one batch through the pipeline", &self.step),
        ];
        for (name, help, histogram) in histograms {
            ours.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        ours.register("batch_tokens", "Tokens computed in one step", self.batch_tokens.clone());
        ours.register("prompt_tokens", "Tokens of prompts", self.prompt_tokens.clone());
        ours.register("generation_tokens", "Tokens of answers", self.generation_tokens.clone());
        ours.register("kv_usage_ratio", "Share of KV blocks that is held", self.kv_usage.clone());
        ours.register(
            "kv_blocks",
            "KV blocks of the pipeline, used and free",
            self.kv_blocks.clone(),
        );
        self.stages.register(ours);
        ours.register("node_up", "Whether a node is joined", self.node_up.clone());
        ours.register("pipeline_lost", "Pipelines that were lost", self.pipelines_lost.clone());
        ours.register("shed", "Requests that were refused for load", self.shed.clone());
        self.registry = http;
    }

    /// All of it, in OpenMetrics text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// Sequences that wait.
    pub fn queued(&self, num_waiting: usize) {
        self.queue_depth.get_or_create(&ClassLabels { class: CLASS }).set(num_waiting as i64);
    }

    /// Sequences that run.
    pub fn running(&self, num_running: usize) {
        self.running.set(num_running as i64);
    }

    /// A sequence was admitted after this wait.
    pub fn admitted(&self, wait: Duration) {
        self.queue_wait.observe(wait.as_secs_f64());
    }

    /// Blocks of the KV cache.
    pub fn kv(&self, num_used: usize, num_blocks: usize) {
        for (state, num) in [("used", num_used), ("free", num_blocks.saturating_sub(num_used))] {
            self.kv_blocks.get_or_create(&StateLabels { state }).set(num as i64);
        }
        self.kv_usage.set(if num_blocks == 0 { 0.0 } else { num_used as f64 / num_blocks as f64 });
    }

    /// A step has returned.
    pub fn step(&self, step: &StepReport<'_>) {
        self.step.observe(step.duration.as_secs_f64());
        self.batch_tokens.observe(step.num_tokens as f64);
        self.stages.step(step);
    }

    /// Whether a node is joined.
    pub fn node_up(&self, node: NodeId, up: bool) {
        let labels = NodeLabels { node: node.to_string() };
        if up {
            self.node_up.get_or_create(&labels).set(1);
        } else {
            // A node that never comes back must not stay in the list for ever.
            self.node_up.remove(&labels);
        }
    }

    /// The pipeline was lost.
    pub fn pipeline_lost(&self) {
        self.pipelines_lost.inc();
    }

    /// The first token of an answer, after this time.
    pub fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    /// Another token of a choice, after this time.
    pub fn next_token(&self, after: Duration) {
        self.between_tokens.observe(after.as_secs_f64());
    }

    /// A choice has ended, its last token this time after its first.
    pub fn decoded(&self, decoding: Duration, num_tokens: usize) {
        if num_tokens > 1 {
            self.per_token.observe(decoding.as_secs_f64() / (num_tokens - 1) as f64);
        }
    }

    /// A whole answer has ended.
    pub fn answered(&self, tokens: Tokens, duration: Duration) {
        self.duration.observe(duration.as_secs_f64());
        self.prompt_tokens.inc_by(tokens.num_prompt as u64);
        self.generation_tokens.inc_by(tokens.num_generated as u64);
    }

    /// A request has ended with this status, or 499: its client left.
    pub fn ended(&self, model: &str, code: u16) {
        let labels = RequestLabels { model: model.to_owned(), class: CLASS, code: code.into() };
        self.requests.get_or_create(&labels).inc();
    }

    /// A request was refused for load.
    pub fn shed(&self, reason: &'static str) {
        self.shed.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// A response has ended. `endpoint` is a route's template, never a path.
    pub fn http(&self, method: &'static str, endpoint: &str, duration: Duration) {
        let labels = HttpLabels { method, endpoint: endpoint.to_owned() };
        self.http.get_or_create(&labels).observe(duration.as_secs_f64());
    }
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug)]
pub struct Tokens {
    /// Of its prompts.
    pub num_prompt: usize,
    /// Of its answers.
    pub num_generated: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::StageTiming;
    use std::collections::HashSet;
    use std::time::Instant;

    fn counted() -> Metrics {
        let metrics = Metrics::new();
        let timing = StageTiming { compute_us: 1500, received_bytes: 64, ..StageTiming::default() };
        metrics.step(&StepReport {
            ended: Instant::now(),
            duration: Duration::from_millis(3),
            num_tokens: 7,
            timings: &[timing],
            trip: None,
        });
        metrics.queued(1);
        metrics.running(2);
        metrics.admitted(Duration::from_millis(1));
        metrics.kv(3, 4);
        metrics.node_up(NodeId(1), true);
        metrics.pipeline_lost();
        metrics.first_token(Duration::from_millis(12));
        metrics.next_token(Duration::from_millis(12));
        metrics.decoded(Duration::from_millis(20), 3);
        metrics.decoded(Duration::ZERO, 1);
        let tokens = Tokens { num_prompt: 3, num_generated: 2 };
        metrics.answered(tokens, Duration::from_secs(1));
        metrics.ended("a \"name\"\n", 200);
        metrics.shed("queue_full");
        metrics.http("POST", "/v1/completions", Duration::from_secs(1));
        metrics
    }

    #[test]
    fn the_text_holds_what_was_counted() {
        let metrics = counted();
        let text = metrics.text();
        for line in [
            "autoglm_requests_total{model=\"a \\\"name\\\"\\n\",class=\"standard\",code=\"200\"} 1",
            "autoglm_queue_depth{class=\"standard\"} 1",
            "autoglm_requests_running 2",
            "autoglm_queue_wait_seconds_count 1",
            "autoglm_time_to_first_token_seconds_bucket{le=\"0.015\"} 1",
            "autoglm_time_per_output_token_seconds_sum 0.01",
            "autoglm_time_per_output_token_seconds_count 1",
            "autoglm_inter_token_latency_seconds_count 1",
            "autoglm_request_duration_seconds_count 1",
            "autoglm_prompt_tokens_total 3",
            "autoglm_generation_tokens_total 2",
            "autoglm_kv_usage_ratio 0.75",
            "autoglm_kv_blocks{state=\"used\"} 3",
            "autoglm_kv_blocks{state=\"free\"} 1",
            "autoglm_step_seconds_count 1",
            "autoglm_batch_tokens_bucket{le=\"8.0\"} 1",
            "autoglm_stage_compute_seconds_count{stage=\"0\"} 1",
            "autoglm_stage_wait_seconds_count{stage=\"0\"} 1",
            "autoglm_stage_bubble_ratio{stage=\"0\"} 0.5",
            "autoglm_activation_bytes_total{stage=\"0\"} 64",
            "autoglm_node_up{node=\"0000000000000001\"} 1",
            "autoglm_pipeline_lost_total 1",
            "autoglm_shed_total{reason=\"queue_full\"} 1",
            "http_request_duration_seconds_count{method=\"POST\",endpoint=\"/v1/completions\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        metrics.node_up(NodeId(1), false);
        assert!(!metrics.text().contains("autoglm_node_up{"), "a node that left is no series");
    }

    /// What promtool's linter asks for, and OpenMetrics' grammar where a scraper would stumble.
    #[test]
    fn the_text_is_openmetrics() {
        let text = counted().text();
        let body = text.strip_suffix("# EOF\n").unwrap();
        let (mut names, mut kind, mut name) = (HashSet::new(), "", "");
        let (mut helped, mut units) = (HashSet::new(), HashSet::new());
        for line in body.lines() {
            let mut words = line.splitn(4, ' ');
            if line.starts_with('#') {
                let (_, what, of, rest) =
                    (words.next(), words.next().unwrap(), words.next().unwrap(), words.next());
                match what {
                    "TYPE" => {
                        (name, kind) = (of, rest.unwrap());
                        assert!(names.insert(of), "{of} twice");
                    }
                    "HELP" => assert!(helped.insert(of) && !rest.unwrap().is_empty()),
                    "UNIT" => assert!(units.insert(of) && of.ends_with(rest.unwrap())),
                    other => panic!("# {other}"),
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().unwrap().is_finite(), "{line}");
            let suffix = series.split('{').next().unwrap().strip_prefix(name).unwrap();
            let expected: &[&str] = match kind {
                "counter" => &["_total"],
                "gauge" => &[""],
                "histogram" => &["_bucket", "_sum", "_count"],
                other => panic!("{other}"),
            };
            assert!(expected.contains(&suffix), "{line} is a {kind}");
        }
        assert_eq!(names, helped);
        for name in &names {
            assert!(!name.ends_with("_total"), "the suffix is the samples': {name}");
            assert!(name.starts_with("autoglm_") || *name == "http_request_duration_seconds");
            let has_unit = name.ends_with("_seconds") || name.contains("duration");
            assert_eq!(units.contains(name), has_unit, "{name}");
        }
    }

    #[test]
    fn buckets_rise_and_resolve_10_to_200_ms() {
        for buckets in [&SECONDS[..], &TOKENS[..]] {
            assert!(buckets.windows(2).all(|pair| pair[0] < pair[1]));
        }
        let felt = SECONDS.iter().filter(|bound| (0.01..=0.2).contains(*bound));
        assert!(felt.count() >= 10);
    }
}
