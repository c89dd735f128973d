//! What was measured where, and the one table that says most.

use super::Drawn;
use super::markup::{Cell, escape, name, table, terms};
use crate::numbers::{decimal, grouped, percent, time};
use crate::report::answers::{self, Verdict};
use crate::report::compare::error_share;
use crate::report::result::{Metric, Provenance, RunResult};

/// Labels that are named where runs share a provenance.
const MAX_NAMED: usize = 4;

/// Machine, adapter, driver, commit and flags, once for all runs that share all but the commit.
pub(super) fn provenance(runs: &[Drawn<'_>]) -> String {
    let mut kinds: Vec<(Provenance, Vec<&Drawn<'_>>)> = Vec::new();
    for run in runs {
        let kind = Provenance { commit: None, ..run.run.provenance.clone() };
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, drawn)) => drawn.push(run),
            None => kinds.push((kind, vec![run])),
        }
    }
    let mut html = String::new();
    for (provenance, drawn) in &kinds {
        if kinds.len() > 1 {
            let label = drawn[0].run.label.as_str();
            let same = !label.is_empty() && drawn.iter().all(|run| run.run.label == label);
            let names: Vec<&str> = match same && drawn.len() > 1 {
                true => vec![label],
                false => drawn.iter().map(|run| run.name.as_str()).collect(),
            };
            let more = names.len().saturating_sub(MAX_NAMED);
            let named: Vec<_> = names.iter().take(MAX_NAMED).map(|run| name(run)).collect();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            html.push_str(&format!("<h3>{}{more}</h3>\n", named.join(", ")));
        }
        let known = |value: &Option<String>| {
            Some(value.clone().unwrap_or_else(|| "the server doesn't tell".to_string()))
        };
        let mut commits: Vec<&str> = drawn
            .iter()
            .map(|run| run.run.provenance.commit.as_deref().unwrap_or("not known"))
            .collect();
        commits.dedup();
        html.push_str(&terms(&[
            ("machine", Some(provenance.machine.clone())),
            ("server", known(&provenance.server)),
            ("adapter", known(&provenance.adapter)),
            ("driver", known(&provenance.driver)),
            ("commit", Some(commits.join(", "))),
            ("autoglm-bench", Some(provenance.version.clone())),
        ]));
        if !provenance.flags.is_empty() {
            let flags = provenance.flags.join(" ");
            html.push_str(&format!("<p><code>{}</code></p>\n", escape(&flags)));
        }
    }
    html
}

pub(super) fn section(runs: &[Drawn<'_>]) -> String {
    let mut head = vec!["run", "requests", "errors", "requests/s"];
    let goodput = runs.iter().any(|run| run.run.request_goodput.is_some());
    if goodput {
        head.push("goodput/s");
    }
    head.extend(["tokens/s", "answers"]);
    let quantiles = [(Metric::Ttft, "TTFT"), (Metric::Itl, "ITL"), (Metric::E2el, "E2EL")];
    let titles: Vec<String> = quantiles
        .iter()
        .flat_map(|(_, title)| ["p50", "p99"].map(|quantile| format!("{title} {quantile}")))
        .collect();
    head.extend(titles.iter().map(String::as_str));
    let rows: Vec<Vec<Cell>> = runs
        .iter()
        .enumerate()
        .map(|(index, drawn)| {
            let run = drawn.run;
            let link = format!("<a href=\"#run-{index}\">{}</a>", name(&drawn.name));
            let errors = error_share(run).map_or("-".to_string(), percent);
            let mut row = vec![
                Cell::Html(link),
                Cell::Number(grouped(run.completed + run.failed)),
                Cell::Number(errors),
                Cell::Number(decimal(run.request_throughput)),
            ];
            if goodput {
                row.push(Cell::Number(run.request_goodput.map_or("-".to_string(), decimal)));
            }
            row.extend([Cell::Number(decimal(run.output_throughput)), answered(run)]);
            for (metric, _) in quantiles {
                for quantile in ["p50", "p99"] {
                    let value = run.statistic(quantile, metric);
                    row.push(Cell::Number(value.map_or("-".to_string(), time)));
                }
            }
            row
        })
        .collect();
    let mut html = format!("<section id=\"summary\"><h2>Summary</h2>\n{}", table(&head, &rows));
    if runs.iter().any(|run| run.run.client.bottleneck.is_some()) {
        html.push_str(
            "<p class=\"word-warning\">⚠ In some runs the client was the bottleneck: see below.\
             </p>\n",
        );
    }
    html.push_str(
        "<p class=\"faint\">TTFT: time to first token. ITL: inter-token latency. E2EL: end-to-end \
         latency. All count from when a request should have been sent. A throughput is worth what \
         its answers are worth: they stand beside it.</p>\n</section>\n",
    );
    html
}

/// Whether the answers were right, in a cell.
fn answered(run: &RunResult) -> Cell {
    let class = match answers::verdict(run) {
        Verdict::Verified => "word-good",
        Verdict::NotVerified | Verdict::Broken => "word-warning",
        Verdict::Wrong => "word-bad",
    };
    Cell::Html(format!("<span class=\"{class}\">{}</span>", escape(&answers::short(run))))
}
