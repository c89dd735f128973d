//! All that is known of one run: whether its answers were right, whether the client kept up,
//! every statistic, failures, faults, and what happened second by second.

use std::fmt::Write as _;

use super::Drawn;
use super::markup::{Cell, Weight, escape, figures, name, note, table};
use super::plot::{Axis, Line, Plot, Unit, colour};
use super::scale::Scale;
use crate::numbers::{count, decimal, grouped, time};
use crate::report::answers::{self, Verdict};
use crate::report::result::{Metric, RunResult, Second};

/// What is shown of each metric.
const STATISTICS: [&str; 7] = ["mean", "p50", "p90", "p95", "p99", "p99.9", "max"];
/// Points of a line over time; longer runs are averaged over several seconds each.
const MAX_SECONDS: usize = 150;

/// The part about one run.
pub(super) fn section(index: usize, drawn: &Drawn<'_>) -> String {
    let run = drawn.run;
    let mut html =
        format!("<section class=\"run\" id=\"run-{index}\"><h2>{}</h2>\n", name(&drawn.name));
    let _ = writeln!(html, "<p>{}</p>", escape(&described(run)));
    if run.interrupted {
        let said = "Interrupted: what was measured until then.";
        html.push_str(&note(Weight::Warning, said, ""));
    }
    html.push_str(&verification(run));
    html.push_str(&client(run));
    html.push_str(&statistics(run));
    html.push_str(&failures(run));
    html.push_str(&faults(run));
    html.push_str(&groups(run));
    html.push_str(&timeline(run));
    html.push_str("</section>\n");
    html
}

fn described(run: &RunResult) -> String {
    let mut parts = vec![if run.arrivals.is_empty() {
        run.endpoint.clone()
    } else {
        format!("{}, {}", run.arrivals, run.endpoint)
    }];
    parts.extend(run.request_rate.map(|rate| format!("{} requests/s offered", decimal(rate))));
    parts.extend(run.max_concurrency.map(|num| format!("at most {} in flight", grouped(num))));
    let answered = format!("{} answered, {} failed", grouped(run.completed), grouped(run.failed));
    parts.push(format!("{answered} in {}", time(run.duration * 1e3)));
    if run.warmup > 0.0 {
        parts.push(format!("after {} of warm-up", time(run.warmup * 1e3)));
    }
    parts.push(format!(
        "{} tokens of prompts, {} of answers",
        count(run.total_input_tokens),
        count(run.total_output_tokens),
    ));
    parts.push(format!(
        "{} tokens/s, {} requests/s, {}",
        decimal(run.output_throughput),
        decimal(run.request_throughput),
        answers::short(run),
    ));
    parts.join(" · ")
}

fn verification(run: &RunResult) -> String {
    let weight = match answers::verdict(run) {
        Verdict::Verified => Weight::Good,
        Verdict::NotVerified | Verdict::Broken => Weight::Warning,
        Verdict::Wrong => Weight::Bad,
    };
    let examples = run.verification.iter().flat_map(|found| &found.examples);
    let list: String = examples.map(|example| format!("<li>{}</li>", escape(example))).collect();
    let list = if list.is_empty() { list } else { format!("<ul>{list}</ul>") };
    note(weight, &answers::sentence(run), &list)
}

fn client(run: &RunResult) -> String {
    let client = &run.client;
    let used = format!(
        "The client took {:.1} s of processor time ({:.0} % of a core) and {:.0} MB; it sent \
         requests late by {} at p99, {} at most.",
        client.cpu_seconds,
        client.cpu_share * 100.0,
        client.max_rss_bytes as f64 / 1e6,
        time(client.p99_lag_ms),
        time(client.max_lag_ms),
    );
    match &client.bottleneck {
        Some(why) => {
            let said = format!("The client was the bottleneck: {why}");
            note(Weight::Bad, &said, &format!("<p>{}</p>", escape(&used)))
        }
        None => note(Weight::Plain, &used, ""),
    }
}

fn statistics(run: &RunResult) -> String {
    let rows: Vec<Vec<Cell>> = Metric::ALL
        .into_iter()
        .map(|metric| {
            let values = STATISTICS.map(|statistic| {
                let value = run.statistic(statistic, metric);
                Cell::Number(value.map_or("-".to_string(), time))
            });
            let title = match run.slo.get(metric.name()) {
                Some(slo) => format!("{} (objective {})", metric.title(), time(*slo)),
                None => metric.title().to_string(),
            };
            [Cell::Text(title)].into_iter().chain(values).collect()
        })
        .collect();
    let head: Vec<&str> = ["metric"].into_iter().chain(STATISTICS).collect();
    table(&head, &rows)
}

fn failures(run: &RunResult) -> String {
    if run.failures.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<Cell>> = run
        .failures
        .iter()
        .map(|(kind, failures)| {
            vec![
                Cell::Text(kind.clone()),
                Cell::Number(grouped(failures.count)),
                Cell::Text(failures.example.clone()),
            ]
        })
        .collect();
    format!("<h3>Failures</h3>\n{}", table(&["kind", "number", "the first said"], &rows))
}

fn faults(run: &RunResult) -> String {
    if run.faults.is_empty() {
        return String::new();
    }
    let seconds = |value: Option<f64>| value.map_or("-".to_string(), |s| time(s * 1e3));
    let rows: Vec<Vec<Cell>> = run
        .faults
        .iter()
        .map(|fault| {
            let injected = match (&fault.error, fault.at) {
                (Some(error), _) => format!("failed: {error}"),
                (None, Some(at)) => format!("after {}", time(at * 1e3)),
                (None, None) => "not reached".to_string(),
            };
            vec![
                Cell::Text(fault.fault.clone()),
                Cell::Text(injected),
                Cell::Number(grouped(fault.failed)),
                Cell::Number(seconds(fault.first_failure)),
                Cell::Number(seconds(fault.last_failure)),
                Cell::Number(seconds(fault.recovered)),
                Cell::Number(seconds(fault.longest_silence)),
            ]
        })
        .collect();
    let head = [
        "fault",
        "injected",
        "requests failed",
        "first failure",
        "last failure",
        "first new token",
        "longest silence",
    ];
    format!("<h3>Faults</h3>\n{}", table(&head, &rows))
}

fn groups(run: &RunResult) -> String {
    if run.groups.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<Cell>> = run
        .groups
        .iter()
        .map(|group| {
            let statistic = |key: &str| {
                let value = group.statistics.get(key).and_then(serde_json::Value::as_f64);
                Cell::Number(value.map_or("-".to_string(), time))
            };
            vec![
                Cell::Text(group.name.clone()),
                Cell::Number(grouped(group.completed)),
                Cell::Number(grouped(group.failed)),
                Cell::Number(count(group.total_output_tokens)),
                Cell::Number(group.request_goodput.map_or("-".to_string(), decimal)),
                statistic("p50_ttft_ms"),
                statistic("p99_ttft_ms"),
                statistic("p50_itl_ms"),
                statistic("p99_itl_ms"),
                statistic("p50_e2el_ms"),
                statistic("p99_e2el_ms"),
            ]
        })
        .collect();
    let head = [
        "group",
        "answered",
        "failed",
        "tokens",
        "goodput/s",
        "TTFT p50",
        "TTFT p99",
        "ITL p50",
        "ITL p99",
        "E2EL p50",
        "E2EL p99",
    ];
    format!("<h3>Groups</h3>\n{}", table(&head, &rows))
}

type OfSecond = fn(&Second) -> Option<f64>;

fn timeline(run: &RunResult) -> String {
    let mut events: Vec<(f64, String)> = Vec::new();
    if run.warmup > 0.0 {
        events.push((run.warmup, "measured from here".to_string()));
    }
    for fault in &run.faults {
        events.extend(fault.at.map(|at| (at, fault.fault.chars().take(40).collect())));
    }
    let plot = |title: &str, axis: &str, unit: Unit, lines: &[(&str, usize, OfSecond)]| Plot {
        title: title.to_string(),
        x: Axis::new("seconds since the start", Scale::Linear, Unit::Seconds),
        y: Axis::new(axis, Scale::Linear, unit),
        lines: lines
            .iter()
            .map(|(name, index, of)| Line {
                name: (*name).to_string(),
                colour: colour(*index),
                dashed: false,
                points: averaged(&run.timeline, *of),
            })
            .collect(),
        limits: Vec::new(),
        events: events.clone(),
        legend: lines.len() > 1,
    };
    let mut requests: Vec<(&str, usize, OfSecond)> = vec![
        ("sent", 7, |second| Some(second.started as f64)),
        ("answered", 2, |second| Some(second.completed as f64)),
    ];
    if run.timeline.iter().any(|second| second.failed > 0) {
        requests.push(("failed", 5, |second| Some(second.failed as f64)));
    }
    let plots = [
        plot("Tokens", "tokens/s", Unit::Number, &[("tokens", 4, |s| Some(s.tokens as f64))]),
        plot("Requests", "requests/s", Unit::Number, &requests),
        plot("Running", "in flight", Unit::Number, &[("running", 0, |s| Some(s.running as f64))]),
        plot(
            "Time to first token, mean of each second",
            "milliseconds",
            Unit::Milliseconds,
            &[("mean TTFT", 3, |second| second.mean_ttft_ms)],
        ),
    ];
    format!("<h3>Over time</h3>\n{}", figures(&plots))
}

/// A value over time, long times averaged over as many seconds as it takes.
fn averaged(timeline: &[Second], of: OfSecond) -> Vec<(f64, f64)> {
    let each = timeline.len().div_ceil(MAX_SECONDS).max(1);
    let averages = timeline.chunks(each).filter_map(|seconds| {
        let values: Vec<f64> = seconds.iter().filter_map(of).collect();
        let average = values.iter().sum::<f64>() / values.len() as f64;
        average.is_finite().then_some((seconds[0].second as f64, average))
    });
    averages.collect()
}
