//! Runs of several files: what changed.

use std::fmt::Write as _;

use super::markup::{Cell, escape, figures, name, table};
use super::plot::{Axis, Line, Plot, Unit, colour};
use super::scale::Scale;
use crate::numbers::change;
use crate::report::answers;
use crate::report::compare::{Comparison, FIGURES, Figure, minute};
use crate::report::result::{Metric, RunResult};

/// Changes smaller than this are shown without a colour.
const SMALL: f64 = 0.01;

/// The table, what isn't like with like, and how it went over time.
pub(super) fn section(comparison: &Comparison) -> String {
    let mut head = vec!["run", "date", "commit"];
    head.extend(FIGURES.iter().map(|figure| figure.title));
    head.push("answers");
    let rows: Vec<Vec<Cell>> = comparison
        .rows
        .iter()
        .enumerate()
        .map(|(index, row)| {
            let against = row.against.map_or(String::new(), |against| {
                let unlike = if row.unlike.is_empty() { "" } else { " ≠" };
                format!("<br><small class=\"faint\">against {}{unlike}</small>", against + 1)
            });
            let commit = row.run.provenance.commit.as_deref().unwrap_or("-");
            let mut cells = vec![
                Cell::Html(format!("{}. {}{against}", index + 1, name(&row.name))),
                Cell::Text(minute(&row.run.date)),
                Cell::Text(commit.chars().take(12).collect()),
            ];
            let figures = FIGURES.iter().zip(&row.changes);
            cells.extend(figures.map(|(figure, change)| changed(figure, &row.run, *change)));
            cells.push(Cell::Text(answers::short(&row.run)));
            cells
        })
        .collect();
    let mut html =
        format!("<section id=\"changes\"><h2>What changed</h2>\n{}", table(&head, &rows));
    for (index, row) in comparison.rows.iter().enumerate() {
        let Some(against) = row.against.filter(|_| !row.unlike.is_empty()) else { continue };
        let _ = writeln!(
            html,
            "<p class=\"word-warning\">≠ {} and {} are not like with like: {}.</p>",
            index + 1,
            against + 1,
            escape(&row.unlike.join("; ")),
        );
    }
    html.push_str(&figures(&over_time(comparison)));
    html.push_str("</section>\n");
    html
}

fn changed(figure: &Figure, run: &RunResult, by: Option<f64>) -> Cell {
    let value = figure.value(run);
    let Some(by) = by else { return Cell::Number(value) };
    let class = match (by > 0.0) == figure.more_is_better {
        _ if by.abs() < SMALL => "faint",
        true => "word-good",
        false => "word-bad",
    };
    let value = escape(&value);
    Cell::NumberHtml(format!("{value}<br><small class=\"{class}\">{}</small>", escape(&change(by))))
}

/// The figures in the order of the runs, a line for each label.
fn over_time(comparison: &Comparison) -> Vec<Plot> {
    let mut labels: Vec<&str> = Vec::new();
    for row in &comparison.rows {
        if !labels.contains(&row.label.as_str()) {
            labels.push(&row.label);
        }
    }
    let line = |label: &str,
                what: &str,
                index: usize,
                dashed: bool,
                of: &dyn Fn(&RunResult) -> Option<f64>| {
        let rows = comparison.rows.iter().enumerate().filter(|(_, row)| row.label == label);
        Line {
            name: [label, what]
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join(" "),
            colour: colour(index),
            dashed,
            points: rows
                .filter_map(|(index, row)| Some(((index + 1) as f64, of(&row.run)?)))
                .collect(),
        }
    };
    let plot = |title: &str, axis: &str, unit: Unit, lines: Vec<Line>| Plot {
        title: title.to_string(),
        x: Axis::new("run, by date", Scale::Ordinal, Unit::Ordinal),
        y: Axis::new(axis, Scale::Linear, unit),
        legend: lines.len() > 1,
        lines,
        limits: Vec::new(),
        events: Vec::new(),
    };
    let tokens = labels
        .iter()
        .enumerate()
        .map(|(index, label)| line(label, "", index, false, &|run| Some(run.output_throughput)));
    let mut plots = vec![plot("Throughput", "tokens/s", Unit::Number, tokens.collect())];
    for metric in [Metric::Ttft, Metric::E2el] {
        let lines = labels.iter().enumerate().flat_map(|(index, label)| {
            ["p50", "p99"].map(|quantile| {
                let of = |run: &RunResult| run.statistic(quantile, metric);
                line(label, quantile, index, quantile == "p99", &of)
            })
        });
        let title = metric.title();
        let title = title[..1].to_uppercase() + &title[1..];
        plots.push(plot(&title, "milliseconds", Unit::Milliseconds, lines.collect()));
    }
    plots
}
