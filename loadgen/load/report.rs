//! What a load measured, as tables for people.

use std::fmt::Write as _;

use crate::numbers::{count, time};
use crate::report::answers;
use crate::report::result::{Metric, RunResult};

/// The columns of the table of times.
const STATISTICS: [&str; 7] = ["mean", "p50", "p90", "p95", "p99", "p99.9", "max"];

/// The table of one run.
pub fn table(run: &RunResult) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<18}{value}");
    };
    line("requests", format!("{} ok, {} failed", run.completed, run.failed));
    for (kind, failures) in &run.failures {
        line("", format!("{} × {kind}: {}", failures.count, failures.example));
    }
    let cut = if run.interrupted { ", interrupted" } else { "" };
    let warmup = match run.warmup {
        seconds if seconds > 0.0 => format!(" after {} of warm-up", time(seconds * 1e3)),
        _ => String::new(),
    };
    line("time", format!("{}{warmup}{cut}", time(run.duration * 1e3)));
    let client = &run.client;
    let lag = format!("p99 {}, max {}", time(client.p99_lag_ms), time(client.max_lag_ms));
    let own = format!(
        "{:.2} cores, {} MB at most, lag {lag}",
        client.cpu_share,
        client.max_rss_bytes / 1_000_000
    );
    if run.completed > 0 {
        line("prompt tokens", count(run.total_input_tokens));
        line("answer tokens", count(run.total_output_tokens));
        let answers = answers::short(run);
        let guessed = match run.total_output_tokens {
            Some(_) => "",
            None => " (each piece of text that isn't counted is taken for a token)",
        };
        line("tokens/s", format!("{:.1}{guessed}, answers {answers}", run.output_throughput));
        let offered = match run.request_rate {
            Some(rate) => format!(", {rate:.2} offered"),
            None => String::new(),
        };
        line("requests/s", format!("{:.2}{offered}", run.request_throughput));
        if let Some(goodput) = run.request_goodput {
            let limits = run.slo.iter().map(|(name, &ms)| format!("{name} ≤ {}", time(ms)));
            let limits = limits.collect::<Vec<_>>().join(", ");
            line("goodput", format!("{goodput:.2} requests/s kept {limits}"));
        }
    }
    line("generator", own);
    if let Some(bottleneck) = &client.bottleneck {
        line("", format!("the generator was in the way: {bottleneck}"));
    }
    if run.completed == 0 {
        return text;
    }

    heading(&mut text, "");
    for metric in [Metric::Ttft, Metric::Itl, Metric::Tpot, Metric::E2el] {
        let value = |statistic: &str| run.statistic(statistic, metric);
        times(&mut text, row_name(metric), value);
    }
    for metric in [Metric::Ttft, Metric::E2el].into_iter().filter(|_| !run.groups.is_empty()) {
        heading(&mut text, row_name(metric));
        for group in &run.groups {
            let value = |statistic: &str| {
                group.statistics.get(&format!("{statistic}_{}_ms", metric.name()))?.as_f64()
            };
            times(&mut text, &group.name, value);
        }
    }
    text
}

/// The table of a sweep: a line a run.
pub fn sweep_table(varied: &str, runs: &[RunResult]) -> String {
    let columns =
        ["requests/s", "tokens/s", "failed", "ttft p50", "p99", "itl p50", "p99", "e2el p99"];
    let mut text = format!("  {varied:<18}");
    columns.iter().for_each(|name| text.push_str(&format!("{name:>11}")));
    if runs.iter().any(|run| run.request_goodput.is_some()) {
        text.push_str("    goodput");
    }
    text.push_str("  answers\n");
    for run in runs {
        let ms =
            |statistic: &str, metric| run.statistic(statistic, metric).map_or("-".into(), time);
        let mut values = vec![
            format!("{:.2}", run.request_throughput),
            format!("{:.1}", run.output_throughput),
            run.failed.to_string(),
            ms("p50", Metric::Ttft),
            ms("p99", Metric::Ttft),
            ms("p50", Metric::Itl),
            ms("p99", Metric::Itl),
            ms("p99", Metric::E2el),
        ];
        values.extend(run.request_goodput.map(|goodput| format!("{goodput:.2}")));
        let _ = write!(text, "  {:<18}", run.label);
        values.iter().for_each(|value| text.push_str(&format!("{value:>11}")));
        let _ = writeln!(text, "  {}", answers::short(run));
    }
    text
}

fn row_name(metric: Metric) -> &'static str {
    match metric {
        Metric::Ttft => "first token",
        Metric::Tpot => "per answer token",
        Metric::Itl => "between tokens",
        Metric::E2el => "whole answer",
    }
}

fn heading(text: &mut String, name: &str) {
    let _ = write!(text, "\n  {name:<18}");
    STATISTICS.iter().for_each(|name| text.push_str(&format!("{name:>10}")));
    text.push('\n');
}

fn times(text: &mut String, name: &str, value: impl Fn(&str) -> Option<f64>) {
    let _ = write!(text, "  {name:<18}");
    for statistic in STATISTICS {
        let shown = value(statistic).map_or("-".to_string(), time);
        let _ = write!(text, "{shown:>10}");
    }
    text.push('\n');
}
