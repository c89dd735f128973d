//! What a load measured, as a table for people and as JSON for programs.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::metrics::{Metrics, Times};
use super::{Load, Measured};
use crate::numbers::{grouped, time};

/// The table.
pub fn table(measured: &Measured) -> String {
    let metrics = &measured.metrics;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<18}{value}");
    };
    let (completed, failed) = (metrics.num_completed, metrics.num_failed());
    line("requests", format!("{completed} ok, {failed} failed"));
    for (kind, failures) in &metrics.failures {
        line("", format!("{} × {kind}: {}", failures.num, failures.example));
    }
    let duration = measured.duration;
    let cut = if measured.interrupted { ", interrupted" } else { "" };
    line("time", format!("{}{cut}", time(duration.as_secs_f64() * 1e3)));
    if completed == 0 {
        return text;
    }
    let per_second = |num: u64| rate(num, duration);
    line("prompt tokens", grouped(metrics.num_prompt_tokens));
    line("answer tokens", grouped(metrics.num_completion_tokens));
    line("tokens/s", format!("{:.1}", per_second(metrics.num_completion_tokens)));
    line("requests/s", format!("{:.2}", per_second(completed)));

    let columns = ["mean", "p50", "p95", "p99"];
    let _ = write!(text, "\n  {:<18}", "");
    columns.iter().for_each(|name| text.push_str(&format!("{name:>10}")));
    text.push('\n');
    for (name, times) in [
        ("first token", &metrics.time_to_first_token),
        ("between tokens", &metrics.inter_token_latency),
        ("per answer token", &metrics.time_per_token),
        ("whole answer", &metrics.end_to_end),
    ] {
        let values = [
            times.mean_ms(),
            times.percentile_ms(50.0),
            times.percentile_ms(95.0),
            times.percentile_ms(99.0),
        ];
        let shown = values.map(|ms| if times.is_empty() { "-".to_string() } else { time(ms) });
        let _ = write!(text, "  {name:<18}");
        shown.iter().for_each(|value| text.push_str(&format!("{value:>10}")));
        text.push('\n');
    }
    text
}

/// The result under the names that `vllm bench serve --save-result` uses. A metric of which
/// nothing was measured is null.
pub fn json(load: &Load, measured: &Measured) -> Value {
    let Measured { metrics, duration, interrupted } = measured;
    let per_second = |num: u64| rate(num, *duration);
    let tokens = metrics.num_prompt_tokens + metrics.num_completion_tokens;
    let mut result = json!({
        "model_id": load.parameters.model,
        "endpoint": load.parameters.endpoint.path(),
        "num_prompts": load.num_requests,
        "request_rate": "inf",
        "max_concurrency": load.concurrency,
        "max_tokens": load.parameters.max_tokens,
        "seed": load.seed,
        "interrupted": interrupted,
        "duration": duration.as_secs_f64(),
        "completed": metrics.num_completed,
        "failed": metrics.num_failed(),
        "failures": failures(metrics),
        "total_input_tokens": metrics.num_prompt_tokens,
        "total_output_tokens": metrics.num_completion_tokens,
        "total_output_chunks": metrics.num_pieces,
        "request_throughput": per_second(metrics.num_completed),
        "output_throughput": per_second(metrics.num_completion_tokens),
        "total_token_throughput": per_second(tokens),
    });
    for (name, times) in [
        ("ttft", &metrics.time_to_first_token),
        ("tpot", &metrics.time_per_token),
        ("itl", &metrics.inter_token_latency),
        ("e2el", &metrics.end_to_end),
    ] {
        for (statistic, value) in statistics(times) {
            result[format!("{statistic}_{name}_ms")] = value;
        }
    }
    result
}

fn statistics(times: &Times) -> Vec<(String, Value)> {
    let of = |ms: f64| if times.is_empty() { Value::Null } else { json!(ms) };
    let mut values = vec![
        ("mean".to_string(), of(times.mean_ms())),
        ("median".to_string(), of(times.percentile_ms(50.0))),
        ("std".to_string(), of(times.std_ms())),
    ];
    for percentile in [50.0, 90.0, 95.0, 99.0, 99.9, 100.0] {
        values.push((format!("p{percentile}"), of(times.percentile_ms(percentile))));
    }
    values
}

fn failures(metrics: &Metrics) -> Value {
    let counts = metrics.failures.iter().map(|(kind, failures)| {
        let count = json!({"count": failures.num, "example": failures.example});
        (kind.to_string(), count)
    });
    Value::Object(counts.collect::<Map<_, _>>())
}

fn rate(num: u64, duration: Duration) -> f64 {
    num as f64 / duration.as_secs_f64().max(1e-9)
}
