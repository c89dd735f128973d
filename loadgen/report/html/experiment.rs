//! An experiment: the table, what it means, and every round.

use super::markup::{Cell, Weight, escape, figures, note, table};
use super::plot::{Axis, Line, Plot, Unit, colour};
use super::scale::Scale;
use crate::experiments::outcome::Outcome;
use crate::numbers::{decimal, time};
use crate::report::result::{Metric, RunResult, Series};

/// The part about an experiment.
pub(super) fn section(series: &Series) -> String {
    let Some(outcome) = Outcome::of(series) else {
        return note(Weight::Warning, "The experiment ended before both were measured.", "");
    };
    let rows: Vec<Vec<Cell>> = outcome
        .configurations
        .iter()
        .map(|found| {
            let mut row =
                vec![Cell::Text(found.label.clone()), Cell::Number(found.mean_ms.shown())];
            let percentiles = found.percentiles_ms.map(|ms| ms.map_or("-".to_string(), time));
            row.extend(percentiles.map(Cell::Number));
            let errors = found.error_share.map_or("-".into(), |share| decimal(share * 100.0));
            row.extend([Cell::Number(found.qps.shown()), Cell::Number(errors)]);
            row.push(Cell::Text(found.answers.clone()));
            row
        })
        .collect();
    let head = ["configuration", "mean ms", "p50", "p95", "p99", "QPS", "error %", "answers"];
    let real = outcome.differences.iter().any(|found| found.interval.excludes_zero());
    let weight = if real { Weight::Good } else { Weight::Plain };
    format!(
        "<section id=\"experiment\"><h2>Do they differ?</h2>\n{}{}{}{}{}</section>\n",
        table(&head, &rows),
        said(weight, &outcome.findings()),
        said(Weight::Plain, &outcome.checks()),
        said(Weight::Warning, &outcome.doubts()),
        figures(&rounds(series)),
    )
}

/// Sentences in one box; none when there is none.
fn said(weight: Weight, sentences: &[String]) -> String {
    let Some((first, rest)) = sentences.split_first() else { return String::new() };
    let rest: String = rest.iter().map(|rest| format!("<p>{}</p>", escape(rest))).collect();
    note(weight, first, &rest)
}

/// Each round's mean latency and throughput, a line for each configuration.
fn rounds(series: &Series) -> Vec<Plot> {
    let plot = |title: &str, axis: &str, unit: Unit, of: fn(&RunResult) -> Option<f64>| {
        let mut lines: Vec<Line> = Vec::new();
        for run in &series.runs {
            let index = lines.iter().position(|line| line.name == run.label);
            let index = index.unwrap_or(lines.len());
            if index == lines.len() {
                let (name, colour) = (run.label.clone(), colour(index));
                lines.push(Line { name, colour, dashed: false, points: Vec::new() });
            }
            let points = &mut lines[index].points;
            let round = points.len() as f64 + 1.0;
            points.push((round, of(run).unwrap_or(f64::NAN)));
        }
        Plot {
            title: title.to_string(),
            x: Axis::new("round", Scale::Ordinal, Unit::Ordinal),
            y: Axis::new(axis, Scale::Linear, unit),
            lines,
            limits: Vec::new(),
            events: Vec::new(),
            legend: true,
        }
    };
    vec![
        plot("Mean latency of each round", "milliseconds", Unit::Milliseconds, |run| {
            run.statistic("mean", Metric::E2el)
        }),
        plot("Throughput of each round", "requests/s", Unit::Number, |run| {
            Some(run.request_throughput)
        }),
    ]
}
