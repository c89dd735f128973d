//! Percentile curves of all runs, and, of a sweep, latency and throughput against the load.

use std::fmt::Write as _;

use super::Drawn;
use super::markup::{escape, figures, legend};
use super::plot::{Axis, Line, Plot, Unit, colour};
use super::scale::Scale;
use crate::numbers::{median, time};
use crate::report::answers::{self, Verdict};
use crate::report::compare::ResultFile;
use crate::report::result::{Metric, RunResult};

/// Times of which the greatest is so many times the median of the values drawn are drawn by
/// logarithm.
const WIDE: f64 = 15.0;

/// One plot for each metric, a line for each run.
pub(super) fn percentiles(runs: &[Drawn<'_>]) -> String {
    let plots: Vec<Plot> = Metric::ALL
        .into_iter()
        .map(|metric| {
            let lines: Vec<Line> = runs
                .iter()
                .map(|drawn| Line {
                    name: drawn.name.clone(),
                    colour: drawn.colour.clone(),
                    dashed: drawn.dashed,
                    points: drawn.run.curves.get(metric.name()).cloned().unwrap_or_default(),
                })
                .collect();
            let slo = same(runs.iter().map(|drawn| drawn.run.slo.get(metric.name()).copied()));
            Plot {
                title: capital(metric.title()),
                x: Axis::new("percentile", Scale::Percentile, Unit::Percentile),
                y: Axis::new("milliseconds", scale(&lines), Unit::Milliseconds),
                lines,
                limits: slo.map(objective).into_iter().collect(),
                events: Vec::new(),
                legend: false,
            }
        })
        .collect();
    let legend = if runs.len() > 1 { legend(&plots[0]) } else { String::new() };
    format!(
        "<section id=\"percentiles\"><h2>Percentiles</h2>\n\
         <p class=\"faint\">How much of all stays below a time. To the right each nine is as wide \
         as the one before.</p>\n{legend}{}</section>\n",
        figures(&plots),
    )
}

/// Latency and throughput of a sweep's runs against what was varied.
pub(super) fn against_load(source: &ResultFile, several: bool) -> String {
    let series = &source.series;
    let (title, at): (&str, fn(&RunResult) -> Option<f64>) = match series.varied.as_str() {
        "rate" => ("requests/s offered", |run| run.request_rate),
        _ => ("requests in flight", |run| run.max_concurrency.map(|num| num as f64)),
    };
    let runs: Vec<(f64, &RunResult)> =
        series.runs.iter().filter_map(|run| Some((at(run)?, run))).collect();
    let line = |name: &str, index: usize, dashed: bool, of: &dyn Fn(&RunResult) -> Option<f64>| {
        let points: Vec<(f64, f64)> =
            runs.iter().filter_map(|(at, run)| Some((*at, of(run)?))).collect();
        Line { name: name.to_string(), colour: colour(index), dashed, points }
    };
    let plot = |name: &str, y: Axis, mut lines: Vec<Line>, limits: Vec<(f64, String)>| {
        lines.retain(|line| !line.points.is_empty());
        Plot {
            title: format!("{name} against load"),
            x: Axis::new(title, Scale::Linear, Unit::Number),
            y,
            legend: lines.len() > 1,
            lines,
            limits,
            events: Vec::new(),
        }
    };
    let mut plots: Vec<Plot> = Metric::ALL
        .into_iter()
        .map(|metric| {
            let lines = vec![
                line("p50", 0, false, &|run| run.statistic("p50", metric)),
                line("p99", 1, false, &|run| run.statistic("p99", metric)),
            ];
            let slo = same(runs.iter().map(|(_, run)| run.slo.get(metric.name()).copied()));
            let y = Axis::new("milliseconds", scale(&lines), Unit::Milliseconds);
            plot(&capital(metric.title()), y, lines, slo.map(objective).into_iter().collect())
        })
        .collect();
    let mut lines = vec![
        line("answered", 2, false, &|run| Some(run.request_throughput)),
        line("within the objective (goodput)", 3, false, &|run| run.request_goodput),
        line("failed", 5, false, &|run| {
            (run.failed > 0).then(|| run.failed as f64 / run.duration.max(1e-9))
        }),
    ];
    if series.varied == "rate" {
        lines.push(line("offered", 7, true, &|run| run.request_rate));
    }
    let y = Axis::new("requests/s", Scale::Linear, Unit::Number);
    plots.push(plot("Requests", y, lines, Vec::new()));
    let y = Axis::new("tokens/s", Scale::Linear, Unit::Number);
    let tokens = line("tokens of answers", 4, false, &|run| Some(run.output_throughput));
    plots.push(plot("Throughput", y, vec![tokens], Vec::new()));

    let name = if several { format!(": {}", escape(&source.name)) } else { String::new() };
    let mut html = format!("<section class=\"load\"><h2>Latency against load{name}</h2>\n");
    let verdicts: Vec<Verdict> = series.runs.iter().map(answers::verdict).collect();
    let worst = if verdicts.contains(&Verdict::Wrong) {
        "Some answers of these runs are wrong: see each run."
    } else if verdicts.contains(&Verdict::NotVerified) {
        "Answers not verified, so the throughput may count wrong ones."
    } else if verdicts.contains(&Verdict::Broken) {
        "Some streams broke; all that came is the reference's."
    } else {
        "All answers that were compared with the reference are right."
    };
    let _ = writeln!(html, "<p class=\"faint\">{worst}</p>");
    html.push_str(&figures(&plots));
    html.push_str("</section>\n");
    html
}

/// A limit as a plot shows it.
fn objective(milliseconds: f64) -> (f64, String) {
    (milliseconds, format!("objective {}", time(milliseconds)))
}

/// The value that all have; none where they differ or some has none.
fn same(mut values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let first = values.next()??;
    values.all(|value| value == Some(first)).then_some(first)
}

/// By logarithm when a few times are far above most.
fn scale(lines: &[Line]) -> Scale {
    let times: Vec<f64> = lines.iter().flat_map(|line| &line.points).map(|point| point.1).collect();
    let most = times.iter().copied().fold(0.0, f64::max);
    if most > WIDE * median(&times) { Scale::Log } else { Scale::Linear }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_uppercase().to_string());
    first.unwrap_or_default() + chars.as_str()
}
