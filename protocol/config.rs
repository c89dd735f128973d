//! `cluster.toml`: every limit and choice, with its default.
//!
//! Read once, never changed. The file at the root of the repository spells out every key; a test
//! holds the two together.

mod autoscaler;
mod batch;
mod bounds;
mod durable;
mod http;
mod scheduler;
mod transport;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::Address;

pub use autoscaler::{Autoscaler, CountRange};
pub use batch::Jobs;
pub use durable::Durable;
pub use http::Http;
pub use scheduler::{RunAhead, Scheduler};
pub use transport::Transport;

/// Everything that can be configured.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What is served.
    pub model: Model,
    /// What the coordinator does with nodes.
    pub coordinator: Coordinator,
    /// The API.
    pub http: Http,
    /// Who is computed, and how much at once.
    pub scheduler: Scheduler,
    /// Files of requests, and the jobs that answer them line by line.
    pub batch: Jobs,
    /// Answers that outlive the coordinator.
    pub durable: Durable,
    /// How many pipelines there are, as load changes.
    pub autoscaler: Autoscaler,
    /// Connections between processes. The coordinator hands it to every node that joins.
    pub transport: Transport,
    /// What is logged.
    pub log: Log,
    /// Spans for an OpenTelemetry collector.
    pub traces: Traces,
    /// What is counted.
    pub metrics: Metrics,
}

/// What is served.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// A Hugging Face directory or a GGUF file. Empty: given by --model.
    pub path: PathBuf,
    /// The model's name in the API. Empty: the name that the files carry.
    pub name: String,
    /// Tokens of one sequence, prompt and answer. 0: as many as the model was made for.
    pub max_model_len: u32,
    /// What weights are rounded to while they are loaded, unless the files have them smaller:
    /// `none`, `int8`, or `int4` (embedding and head then have 8 bits).
    pub quantize: Quantize,
    /// How keys and values are stored: `f32` as they are computed, `f16` rounded, in half the
    /// memory; `auto` is `f32`.
    pub kv_cache_dtype: KvCacheDtype,
    /// Where a request that doesn't say has its sampling parameters from: `auto`, the model's
    /// generation_config.json, or `none`, the API's own defaults.
    pub generation_config: GenerationConfig,
    /// Pools of which nodes serve it, by their names. Empty: all.
    pub pools: Vec<String>,
    /// Labels that a node must have to serve it, as in `rack=7`: all of them.
    pub labels: Vec<String>,
}

/// Where a request that doesn't say has its sampling parameters from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GenerationConfig {
    /// The model's files.
    #[default]
    Auto,
    /// OpenAI's defaults.
    None,
}

impl FromStr for GenerationConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            _ => Err("choose auto or none".into()),
        }
    }
}

/// What weights are rounded to while they are loaded.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, Encode, Decode,
)]
#[serde(rename_all = "lowercase")]
pub enum Quantize {
    /// They stay as the files have them.
    #[default]
    None,
    /// 8 bits.
    Int8,
    /// 4 bits.
    Int4,
}

impl Quantize {
    /// All there are.
    pub(crate) const ALL: [Self; 3] = [Self::None, Self::Int8, Self::Int4];
}

impl fmt::Display for Quantize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        })
    }
}

impl FromStr for Quantize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|quantize| quantize.to_string() == text);
        found.ok_or_else(|| "choose among none, int8, int4".to_owned())
    }
}

/// How keys and values are stored.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, Encode, Decode,
)]
#[serde(rename_all = "lowercase")]
pub enum KvCacheDtype {
    /// As is best: [`F32`](Self::F32).
    #[default]
    Auto,
    /// As they are computed.
    F32,
    /// IEEE half precision.
    F16,
}

impl KvCacheDtype {
    /// All there are.
    pub(crate) const ALL: [Self; 3] = [Self::Auto, Self::F32, Self::F16];

    /// Bytes of a value.
    pub fn num_bytes(self) -> u64 {
        match self {
            Self::Auto | Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

impl fmt::Display for KvCacheDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
        })
    }
}

impl FromStr for KvCacheDtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|dtype| dtype.to_string() == text);
        found.ok_or_else(|| "choose among auto, f32, f16".to_owned())
    }
}

/// What the coordinator does with nodes.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Coordinator {
    /// Where nodes join (UDP): HOST:PORT, the host an address or a name. `0.0.0.0` and `[::]` are
    /// every address; nodes of other machines need a token (autoglm token create).
    pub cluster_addr: Address,
    /// Where the cluster's certificates, the join token and the start counter are kept. Empty: a
    /// folder of the user's, named by the cluster port.
    pub data_dir: PathBuf,
    /// Node processes to run as children. One that ends is started again.
    pub local_nodes: u32,
    /// Stages of a pipeline. 0: one on each adapter of the nodes that are there.
    pub stages: u32,
    /// Layers of each stage in order, as in `[10, 12]`. Empty: placement decides.
    pub layers: Vec<u32>,
    /// Pipelines of the model, where there are nodes for them: each serves on its own, and takes
    /// over what another leaves. 0: placement decides, each has the fewest nodes that hold it.
    pub pipelines: u32,
    /// How much faster the slowest stage must become, as a share, before nodes of which a pipeline
    /// is made again give up layers that they hold.
    pub recut_gain: f64,
    /// Proofs of join tokens that may fail within a minute, of one address or of one /64 of IPv6:
    /// whoever fails after them is to try again later. A good token is good all the time.
    pub max_failed_proofs: u32,
    /// Bytes that are sent to a node that joins, to measure the way to it, and between nodes. 0:
    /// none are, and all ways are taken for alike.
    pub probe_bytes: u32,
    /// Milliseconds that this may take; whatever takes longer isn't known.
    pub probe_timeout_ms: u64,
    /// Milliseconds after which a way between two nodes is measured again, while neither of them
    /// computes. 0: never.
    pub probe_interval_ms: u64,
    /// Other nodes that a node is told to ask for weights, beside the coordinator. 0: none.
    pub max_sources: u32,
    /// Milliseconds to wait for more nodes after one joined, before a pipeline is placed.
    pub settle_ms: u64,
    /// Milliseconds that a coordinator which has started again waits for the nodes of its last
    /// pipelines, which still hold their layers, before others get them. 0: it doesn't.
    pub rejoin_ms: u64,
    /// Milliseconds that a stage may take to load without any progress.
    pub load_timeout_ms: u64,
    /// Milliseconds that one step may take before its pipeline counts as lost.
    pub step_timeout_ms: u64,
    /// Times that a node may fail within `node_failure_window_ms`: its process ends, it falls
    /// silent, or a stage of it that served ends. One more, and it is left out of pipelines. 0: any
    /// number.
    pub max_node_failures: u32,
    /// Milliseconds after which a failure of a node no longer counts.
    pub node_failure_window_ms: u64,
    /// Milliseconds that a node which fails too often is left out; twice as long each further time.
    pub quarantine_ms: u64,
    /// The longest that it is left out, in milliseconds.
    pub max_quarantine_ms: u64,
    /// Milliseconds that running requests get to end when the coordinator is asked to stop.
    pub drain_timeout_ms: u64,
    /// Milliseconds that what runs in a pipeline gets to end there when the pipeline is to go; then
    /// it goes on in another.
    pub pipeline_drain_timeout_ms: u64,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Which events: `error`, `warn`, `info`, `debug`, `trace`, or a filter such as
    /// `info,transport=debug`. RUST_LOG wins.
    pub level: String,
    /// `text` or `json`.
    pub format: LogFormat,
    /// Whether each request has a line when it ends.
    pub requests: bool,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("choose text or json".into()),
        }
    }
}

/// Spans for an OpenTelemetry collector.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Traces {
    /// Where a collector takes OTLP over HTTP, as in `http://127.0.0.1:4318`: spans go to
    /// `/v1/traces` there. Empty: nothing is traced.
    pub endpoint: String,
    /// Share of requests that are traced, 0 to 1, where the client's `traceparent` doesn't say.
    pub sample_ratio: f64,
    /// Stages have spans for every prefill step of a traced answer, for its first decode step, and
    /// for each so-many-th after it.
    pub steps_every: u32,
    /// Whether spans hold prompts and answers.
    pub content: bool,
    /// Bytes of a prompt or an answer that a span may hold; the rest is cut off.
    pub max_content_bytes: usize,
    /// Spans that may wait to be sent; one more is dropped.
    pub max_queued_spans: usize,
    /// Spans of one message to the collector.
    pub max_batch_spans: usize,
    /// Milliseconds between two messages, unless a batch is full before.
    pub export_interval_ms: u64,
    /// Milliseconds that the collector gets to take a message.
    pub export_timeout_ms: u64,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines: one object a line.
    Json,
}

/// What is counted.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Whether anything is counted. Without it /metrics is empty or at zero.
    pub enabled: bool,
    /// Names of another server under which metrics are told as well: `none` or `vllm`.
    pub compat: MetricsCompat,
    /// Milliseconds that a point of the curves at /ui stands for.
    pub history_interval_ms: u64,
    /// Points that are kept in memory; at the default interval, an hour's.
    pub history_points: u32,
    /// Events that are kept for the time line at /ui: nodes that joined or were lost, pipelines
    /// that moved.
    pub max_events: u32,
}

/// Whose names metrics have besides our own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricsCompat {
    /// Nobody's.
    #[default]
    None,
    /// vLLM's, for dashboards and autoscalers made for it.
    Vllm,
}

impl FromStr for MetricsCompat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "vllm" => Ok(Self::Vllm),
            _ => Err("must be none or vllm".into()),
        }
    }
}

impl Coordinator {
    /// Stages of a pipeline; 0: one on each adapter of the nodes that are there.
    pub fn num_stages(&self) -> usize {
        if self.layers.is_empty() { self.stages as usize } else { self.layers.len() }
    }
}

impl Default for Coordinator {
    fn default() -> Self {
        Self {
            cluster_addr: SocketAddr::from(([127, 0, 0, 1], 7000)).into(),
            data_dir: PathBuf::new(),
            local_nodes: 0,
            stages: 0,
            layers: Vec::new(),
            pipelines: 1,
            recut_gain: 0.2,
            max_failed_proofs: 10,
            probe_bytes: 2 << 20,
            probe_timeout_ms: 2000,
            probe_interval_ms: 600_000,
            max_sources: 8,
            settle_ms: 2000,
            rejoin_ms: 10_000,
            load_timeout_ms: 120_000,
            step_timeout_ms: 60_000,
            max_node_failures: 5,
            node_failure_window_ms: 60_000,
            quarantine_ms: 10_000,
            max_quarantine_ms: 600_000,
            drain_timeout_ms: 10_000,
            pipeline_drain_timeout_ms: 30_000,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info,ractor_cluster=error".into(), format: LogFormat::Text, requests: true }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            enabled: true,
            compat: MetricsCompat::None,
            history_interval_ms: 10_000,
            history_points: 360,
            max_events: 500,
        }
    }
}

impl Default for Traces {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            sample_ratio: 1.0,
            steps_every: 16,
            content: false,
            max_content_bytes: 16 << 10,
            max_queued_spans: 2048,
            max_batch_spans: 512,
            export_interval_ms: 5000,
            export_timeout_ms: 10_000,
        }
    }
}

/// Why a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("{0}")]
    Parse(String),
    /// A value that can't work.
    #[error("{key} = {value}: {expected}")]
    Value {
        /// Section and key.
        key: &'static str,
        /// What the file says.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A number that can't work.
    #[error("{key} = {value}: must be from {least} to {most}")]
    Bounds {
        /// Section and key.
        key: &'static str,
        /// What the file says.
        value: i64,
        /// The least that works.
        least: u64,
        /// The most that works.
        most: u64,
    },
}

impl Config {
    /// The configuration that `text` spells out, with defaults for what it leaves out.
    ///
    /// # Errors
    /// When the text isn't TOML, names an unknown key, or holds a value that can't work.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self =
            toml::from_str(text).map_err(|cause| ConfigError::Parse(cause.to_string()))?;
        config.check()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests;
