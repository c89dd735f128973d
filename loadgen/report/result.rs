//! The file that a run leaves (`--json FILE`): flat keys as `vllm bench serve --save-result`
//! writes them, then what only we measure, under names of its own.
//!
//! A file holds one [`RunResult`], or, of a sweep or an experiment, a [`Series`] of them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version of the format. A reader refuses others by name.
pub const FORMAT: u32 = 1;

/// The four times of an answer, by vllm bench's short names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Metric {
    /// Time to first token.
    Ttft,
    /// Time per output token: of each answer, the mean after the first token.
    Tpot,
    /// Inter-token latency: from one piece of text to the next.
    Itl,
    /// End-to-end latency.
    E2el,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ttft, Self::Tpot, Self::Itl, Self::E2el];

    /// Its name in keys, as in `p99_ttft_ms`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ttft => "ttft",
            Self::Tpot => "tpot",
            Self::Itl => "itl",
            Self::E2el => "e2el",
        }
    }

    /// Its name for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Ttft => "time to first token",
            Self::Tpot => "time per output token",
            Self::Itl => "inter-token latency",
            Self::E2el => "end-to-end latency",
        }
    }
}

/// A run as `--json` has it, under the names that vllm bench uses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// [`FORMAT`] of the version that wrote it.
    pub format: u32,
    /// When it began, RFC 3339.
    pub date: String,
    /// A name for tables and legends: what was varied, as in `rate 4` or `A.toml`.
    pub label: String,
    /// Where, on what, of which source, with which flags.
    pub provenance: Provenance,
    /// The model's name in the API.
    pub model_id: String,
    /// The path that was asked.
    pub endpoint: String,
    /// Requests that were to be sent; none when the duration decided.
    pub num_prompts: Option<u64>,
    /// Requests a second that were offered; none in a closed loop.
    pub request_rate: Option<f64>,
    /// Requests in flight at most; none in an open loop without a limit.
    pub max_concurrency: Option<u64>,
    /// The arrivals in words, as in `poisson`, `gamma 0.5`, `closed loop`.
    pub arrivals: String,
    /// What decided prompts and arrivals.
    pub seed: Option<u64>,
    /// Stopped before it was done; everything until then is in here.
    pub interrupted: bool,
    /// Seconds of the measured window.
    pub duration: f64,
    /// Seconds before the window, whose requests count nowhere.
    pub warmup: f64,
    /// Requests of the window that were answered whole.
    pub completed: u64,
    /// The others.
    pub failed: u64,
    /// Of the failed ones, by kind.
    pub failures: BTreeMap<String, FailureCount>,
    /// Tokens of the prompts; none when the server doesn't count them.
    pub total_input_tokens: Option<u64>,
    /// Tokens of the answers; none when the server doesn't count them.
    pub total_output_tokens: Option<u64>,
    /// Completed requests a second.
    pub request_throughput: f64,
    /// Completed requests a second that kept the objective; none without one.
    pub request_goodput: Option<f64>,
    /// Tokens of answers a second; of an answer whose tokens the server doesn't count, its pieces.
    pub output_throughput: f64,
    /// Tokens of prompts and answers a second; none when the server doesn't count the former.
    pub total_token_throughput: Option<f64>,
    /// The objective: milliseconds by metric's name.
    pub slo: BTreeMap<String, f64>,
    /// Percentile curves by metric's name: pairs (percentile in %, milliseconds), ascending.
    pub curves: BTreeMap<String, Vec<(f64, f64)>>,
    /// What happened second by second, warm-up included.
    pub timeline: Vec<Second>,
    /// The same figures by service tier and by tenant, where requests had one.
    pub groups: Vec<Group>,
    /// Whether the answers were right; none when they weren't checked.
    pub verification: Option<Verification>,
    /// What was done to the server meanwhile, and what broke.
    pub faults: Vec<FaultOutcome>,
    /// What the generator itself took, and whether it was the bottleneck.
    pub client: ClientUse,
    /// `{mean,median,std,p50,p90,p95,p99,p99.9,max}_{ttft,tpot,itl,e2el}_ms`, null where nothing
    /// was measured; and whatever else a later version adds.
    #[serde(flatten)]
    pub statistics: BTreeMap<String, Value>,
}

/// Several runs of one file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// [`FORMAT`] of the version that wrote it.
    pub format: u32,
    /// `sweep` or `experiment`.
    pub kind: String,
    /// What was varied: `rate`, `concurrency`, `configuration`.
    pub varied: String,
    /// In the order in which they were made.
    pub runs: Vec<RunResult>,
}

/// Failures of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FailureCount {
    /// Requests that failed so.
    pub count: u64,
    /// What the first of them said.
    pub example: String,
}

/// Where a number comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The generator's machine: processor, cores, memory, system.
    pub machine: String,
    /// The adapters that computed, as far as the server tells.
    pub adapter: Option<String>,
    /// Their drivers, as far as the server tells.
    pub driver: Option<String>,
    /// The commit of the sources that this binary was built from, with `-dirty` where they differ.
    pub commit: Option<String>,
    /// Of the program that measured, not of the server.
    pub version: String,
    /// What the server says of itself (its `server` header, version).
    pub server: Option<String>,
    /// The command line.
    pub flags: Vec<String>,
}

/// What happened within one second of a run, its warm-up included.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Second {
    /// Since the run's start.
    pub second: u64,
    /// Requests that were sent.
    pub started: u64,
    /// Requests that were answered whole.
    pub completed: u64,
    /// Requests that failed in it.
    pub failed: u64,
    /// Tokens of answers that arrived.
    pub tokens: u64,
    /// Requests in flight at its end.
    pub running: u64,
    /// Mean milliseconds to the first token, of the first tokens that arrived in it.
    pub mean_ttft_ms: Option<f64>,
}

/// The figures of a part of the requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// As in `tier interactive` or `tenant a`.
    pub name: String,
    /// Answered whole.
    pub completed: u64,
    /// The others.
    pub failed: u64,
    /// Tokens of answers; none when the server doesn't count them.
    pub total_output_tokens: Option<u64>,
    /// Completed requests a second that kept the objective; none without one.
    pub request_goodput: Option<f64>,
    /// As in [`RunResult::statistics`].
    #[serde(flatten)]
    pub statistics: BTreeMap<String, Value>,
}

/// Whether answers were what the reference says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verification {
    /// Answers that were compared, whole or broken.
    pub checked: u64,
    /// Of them, those that were equal, token by token.
    pub identical: u64,
    /// Streams that ended before their answer did.
    pub broken_streams: u64,
    /// Tokens from the first of an answer that came otherwise than in the reference, or didn't
    /// come, in streams that weren't broken.
    pub differing_tokens: u64,
    /// Whole answers whose finish reason or counts were others.
    #[serde(default)]
    pub differing_ends: u64,
    /// Answers that were taken beforehand to compare with.
    #[serde(default)]
    pub references: u64,
    /// What was compared: `token ids and logprobs`, `tokens and logprobs` or `text`.
    #[serde(default)]
    pub compared: String,
    /// The first few that weren't identical: one sentence each.
    pub examples: Vec<String>,
}

/// A fault, and what broke.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FaultOutcome {
    /// As it was written: `kill:pid=71@10s`.
    pub fault: String,
    /// Seconds from the run's start until it was injected; none when the run ended before.
    pub at: Option<f64>,
    /// Why it could not be injected, or how its command failed.
    pub error: Option<String>,
    /// Requests that failed after it and before the next fault.
    pub failed: u64,
    /// Seconds from the fault to the first failure.
    pub first_failure: Option<f64>,
    /// Seconds from the fault to the last failure: for how long it was felt.
    pub last_failure: Option<f64>,
    /// Seconds from the fault to the first token of a request that was sent after it.
    pub recovered: Option<f64>,
    /// The longest time after it without any token, in seconds. Times in which nothing was asked,
    /// after an answer that came whole, are no silence; one that begins after the next fault is the
    /// next fault's.
    pub longest_silence: Option<f64>,
}

/// What the generator took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClientUse {
    /// Processor seconds of this process during the run.
    pub cpu_seconds: f64,
    /// The same as a share of one core.
    pub cpu_share: f64,
    /// Peak resident memory in bytes.
    pub max_rss_bytes: u64,
    /// By how much requests were sent later than intended: milliseconds, 99th percentile.
    pub p99_lag_ms: f64,
    /// The same, the worst.
    pub max_lag_ms: f64,
    /// Why the figures are the client's rather than the server's; none when they aren't.
    pub bottleneck: Option<String>,
}

impl RunResult {
    /// A statistic such as `p99` of a metric in milliseconds; none where nothing was measured.
    pub fn statistic(&self, statistic: &str, metric: Metric) -> Option<f64> {
        self.statistics.get(&format!("{statistic}_{}_ms", metric.name()))?.as_f64()
    }
}

/// The runs of a file, one or a series.
///
/// # Errors
/// When the file can't be read, isn't a result, or is one of another version.
pub fn read(path: &Path) -> Result<Series> {
    let name = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("can't read {name}"))?;
    let value: Value =
        serde_json::from_str(&text).with_context(|| format!("{name} is no JSON result"))?;
    match value.get("format").and_then(Value::as_u64) {
        Some(format) if format == u64::from(FORMAT) => {}
        Some(format) => bail!(
            "{name} is a result of format {format}, this program reads format {FORMAT}; \
             measure again, or use the version that wrote it"
        ),
        None => bail!("{name} is no result of autoglm-bench: it says no `format`"),
    }
    let series = if value.get("runs").is_some() {
        serde_json::from_value(value)
    } else {
        serde_json::from_value(value).map(|run: RunResult| Series {
            format: FORMAT,
            kind: "run".to_owned(),
            varied: String::new(),
            runs: vec![run],
        })
    };
    let series: Series = series.with_context(|| format!("{name} is no result of this version"))?;
    if let Some(run) = series.runs.iter().find(|run| run.format != FORMAT) {
        bail!("{name} holds a run of format {}, this program reads format {FORMAT}", run.format);
    }
    Ok(series)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read_text(text: &str) -> Result<Series> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path())
    }

    #[test]
    fn a_run_comes_back_whole() {
        let mut run = RunResult { format: FORMAT, label: "rate 4".into(), ..RunResult::default() };
        run.statistics.insert("p99_ttft_ms".into(), json!(12.5));
        let series = read_text(&serde_json::to_string(&run).unwrap()).unwrap();
        assert_eq!(series.runs, [run]);
        assert_eq!(series.runs[0].statistic("p99", Metric::Ttft), Some(12.5));
        assert_eq!(series.runs[0].statistic("p99", Metric::Itl), None);
        assert_eq!(read_text(&serde_json::to_string(&series).unwrap()).unwrap(), series);
    }

    #[test]
    fn what_is_no_result_is_refused_by_name() {
        for (text, said) in [
            ("<html>", "is no JSON result"),
            ("{}", "says no `format`"),
            ("{\"format\": 2}", "format 2, this program reads format 1"),
            ("{\"format\": 1}", "is no result of this version"),
            ("{\"format\": 1, \"runs\": 3}", "is no result of this version"),
        ] {
            let error = format!("{:#}", read_text(text).unwrap_err());
            assert!(error.contains(said), "{error}");
        }
    }
}
