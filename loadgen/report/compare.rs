//! Runs of several files beside each other, and what changed from one to the next.

use std::collections::BTreeSet;

use super::answers;
use super::result::{Metric, RunResult, Series};
use crate::numbers::{change, decimal, percent, time};

/// A file of results, as `--json` writes it.
#[derive(Clone, Debug)]
pub struct ResultFile {
    /// As it is called beside the others.
    pub name: String,
    /// One run, or those of a sweep or an experiment.
    pub series: Series,
}

/// What a run is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// The first run.
    First,
    /// The run before it.
    Previous,
}

/// Runs in the order of their dates.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The runs.
    pub rows: Vec<ComparedRun>,
}

/// A run, and what changed.
#[derive(Clone, Debug)]
pub struct ComparedRun {
    /// The file's name and, where it holds several runs, the run's label.
    pub name: String,
    /// What runs of other files must share to be compared with it; empty when all are.
    pub label: String,
    /// What the file holds of it.
    pub run: RunResult,
    /// The row that it is compared with, from 0.
    pub against: Option<usize>,
    /// By how much each of `FIGURES` changed, as a share of what it was.
    pub changes: Vec<Option<f64>>,
    /// Why it isn't like compared with like.
    pub unlike: Vec<String>,
}

struct Figure {
    title: &'static str,
    of: fn(&RunResult) -> Option<f64>,
    /// As people read it.
    shown: fn(f64) -> String,
}

const FIGURES: [Figure; 9] = [
    Figure { title: "requests/s", of: |run| Some(run.request_throughput), shown: decimal },
    Figure { title: "tokens/s", of: |run| Some(run.output_throughput), shown: decimal },
    Figure { title: "TTFT p50", of: |run| run.statistic("p50", Metric::Ttft), shown: time },
    Figure { title: "TTFT p99", of: |run| run.statistic("p99", Metric::Ttft), shown: time },
    Figure { title: "ITL p50", of: |run| run.statistic("p50", Metric::Itl), shown: time },
    Figure { title: "ITL p99", of: |run| run.statistic("p99", Metric::Itl), shown: time },
    Figure { title: "E2EL p50", of: |run| run.statistic("p50", Metric::E2el), shown: time },
    Figure { title: "E2EL p99", of: |run| run.statistic("p99", Metric::E2el), shown: time },
    Figure { title: "errors", of: error_share, shown: percent },
];

/// Flags that say where a result goes, not how it was made.
const OUTPUT_FLAGS: [&str; 4] = ["--json", "--html", "--hgrm", "--label"];

/// Failed requests as a share of all; none when there was none.
pub(crate) fn error_share(run: &RunResult) -> Option<f64> {
    let num = run.completed + run.failed;
    (num > 0).then(|| run.failed as f64 / num as f64)
}

impl Comparison {
    /// Compares each run with the first or the previous one. Where a file holds several runs,
    /// only those with the same label are compared.
    pub fn new(sources: &[ResultFile], against: Against) -> Self {
        let all_single = sources.iter().all(|source| source.series.runs.len() == 1);
        let mut rows: Vec<ComparedRun> = Vec::new();
        for source in sources {
            for run in &source.series.runs {
                let (name, label) = match all_single {
                    true => (source.name.clone(), String::new()),
                    false => (format!("{}: {}", source.name, run.label), run.label.clone()),
                };
                rows.push(ComparedRun {
                    name,
                    label,
                    run: run.clone(),
                    against: None,
                    changes: vec![None; FIGURES.len()],
                    unlike: Vec::new(),
                });
            }
        }
        rows.sort_by(|one, other| one.run.date.cmp(&other.run.date));
        for index in 0..rows.len() {
            let (before, rest) = rows.split_at_mut(index);
            let row = &mut rest[0];
            let mut alike = before.iter().enumerate().filter(|(_, other)| other.label == row.label);
            let found = match against {
                Against::First => alike.next(),
                Against::Previous => alike.next_back(),
            };
            let Some((other_index, other)) = found else { continue };
            row.against = Some(other_index);
            row.unlike = differences(&other.run, &row.run);
            let changes = FIGURES.iter().map(|figure| {
                let (was, is) = ((figure.of)(&other.run)?, (figure.of)(&row.run)?);
                let change = is / was - 1.0;
                change.is_finite().then_some(change)
            });
            row.changes = changes.collect();
        }
        Self { rows }
    }

    /// The table, what isn't like with like, and where each run was made.
    pub fn text(&self) -> String {
        let mut head = vec!["", "date", "commit", "run"];
        head.extend(FIGURES.iter().map(|figure| figure.title));
        head.push("answers");
        let mut lines = vec![head.into_iter().map(str::to_string).collect()];
        for (index, row) in self.rows.iter().enumerate() {
            let commit = row.run.provenance.commit.as_deref().unwrap_or("-");
            let mut line = vec![
                (index + 1).to_string(),
                minute(&row.run.date),
                commit.chars().take(12).collect(),
                row.name.clone(),
            ];
            line.extend(FIGURES.iter().map(|figure| figure.value(&row.run)));
            line.push(answers::short(&row.run));
            lines.push(line);
            if let Some(against) = row.against {
                let unlike = if row.unlike.is_empty() { "" } else { " ≠" };
                let said = format!("against {}{unlike}", against + 1);
                let mut line = vec![String::new(), said, String::new(), String::new()];
                line.extend(row.changes.iter().map(|found| found.map_or(String::new(), change)));
                line.push(String::new());
                lines.push(line);
            }
        }
        let mut text = aligned(&lines, 4);
        let unlike = self.rows.iter().enumerate().filter(|(_, row)| !row.unlike.is_empty());
        for (index, row) in unlike {
            let against = row.against.map_or(0, |against| against + 1);
            let said = row.unlike.join("; ");
            text.push_str(&format!(
                "\n≠ {} and {against} are not like with like: {said}",
                index + 1
            ));
        }
        let places: BTreeSet<String> = self.rows.iter().map(|row| place(&row.run)).collect();
        for place in places {
            text.push_str(&format!("\non {place}"));
        }
        text.push('\n');
        text
    }
}

impl Figure {
    /// Its value of a run, as people read it.
    fn value(&self, run: &RunResult) -> String {
        (self.of)(run).map_or_else(|| "-".to_string(), self.shown)
    }
}

/// What makes two runs measurements of different things. Their commits may differ: that is
/// what is compared.
pub(crate) fn differences(one: &RunResult, other: &RunResult) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |what: &str, one: String, other: String| {
        if one != other {
            let shown = |value: String| if value.is_empty() { "none".to_string() } else { value };
            found.push(format!("{what} {} → {}", shown(one), shown(other)));
        }
    };
    let optional = |value: &Option<String>| value.clone().unwrap_or_default();
    let number = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
    let (from, to) = (&one.provenance, &other.provenance);
    compare("machine", from.machine.clone(), to.machine.clone());
    compare("adapter", optional(&from.adapter), optional(&to.adapter));
    compare("driver", optional(&from.driver), optional(&to.driver));
    compare("model", one.model_id.clone(), other.model_id.clone());
    compare("endpoint", one.endpoint.clone(), other.endpoint.clone());
    compare("arrivals", one.arrivals.clone(), other.arrivals.clone());
    compare("rate", number(one.request_rate), number(other.request_rate));
    let concurrency = |run: &RunResult| number(run.max_concurrency.map(|num| num as f64));
    compare("concurrency", concurrency(one), concurrency(other));
    let (from, to) = (flags(one), flags(other));
    let only = |flags: &[String], others: &[String]| {
        let only: Vec<_> = flags.iter().filter(|flag| !others.contains(flag)).cloned().collect();
        only.join(" ")
    };
    compare("flags", only(&from, &to), only(&to, &from));
    found
}

/// `lines` in columns, those from `first_right` on to the right but for the last one.
pub fn aligned(lines: &[Vec<String>], first_right: usize) -> String {
    let num_columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..num_columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut written = String::new();
        for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
            let right = column >= first_right && column + 1 < num_columns;
            let cell = if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
            written.push_str(&cell);
            written.push_str("  ");
        }
        text.push_str(written.trim_end());
        text.push('\n');
    }
    text
}

/// A date to the minute.
pub(crate) fn minute(date: &str) -> String {
    date.chars().take(16).map(|c| if c == 'T' { ' ' } else { c }).collect()
}

fn place(run: &RunResult) -> String {
    let provenance = &run.provenance;
    let mut parts = vec![provenance.machine.clone()];
    parts.extend(provenance.adapter.iter().map(|adapter| format!("adapter {adapter}")));
    parts.extend(provenance.driver.iter().map(|driver| format!("driver {driver}")));
    parts.retain(|part| !part.is_empty());
    if parts.is_empty() { "an unknown machine".to_string() } else { parts.join(", ") }
}

/// A run's flags with their values, but for those that say where results go. A server's port is
/// left out: it is another one after each start.
fn flags(run: &RunResult) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut given = run.provenance.flags.iter().peekable();
    while let Some(flag) = given.next() {
        let mut whole = flag.clone();
        if flag.starts_with("--")
            && !flag.contains('=')
            && let Some(value) = given.next_if(|next| !next.starts_with("--"))
        {
            whole = format!("{flag} {value}");
        }
        let name = whole.split([' ', '=']).next().unwrap_or_default();
        if OUTPUT_FLAGS.contains(&name) {
            continue;
        }
        if name == "--url" {
            let host = whole.rsplit_once(':').filter(|(_, port)| {
                port.trim_end_matches("/v1").trim_end_matches('/').parse::<u16>().is_ok()
            });
            whole = host.map_or(whole.clone(), |(host, _)| host.to_string());
        }
        found.push(whole);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::result::Provenance;
    use super::*;
    use serde_json::json;

    fn source(name: &str, date: &str, tokens: f64, flags: &[&str]) -> ResultFile {
        let mut run = RunResult {
            date: date.into(),
            label: "rate 4".into(),
            output_throughput: tokens,
            completed: 9,
            failed: 1,
            provenance: Provenance {
                machine: "two cores".into(),
                flags: flags.iter().map(|flag| (*flag).to_string()).collect(),
                ..Provenance::default()
            },
            ..RunResult::default()
        };
        run.statistics.insert("p50_ttft_ms".into(), json!(tokens));
        ResultFile { name: name.into(), series: Series { runs: vec![run], ..Series::default() } }
    }

    #[test]
    fn runs_are_compared_in_the_order_of_their_dates() {
        let sources = [
            source("c", "2026-11-25T15:00:00Z", 121.0, &[]),
            source("a", "2026-11-24T15:00:00Z", 100.0, &[]),
            source("b", "2026-11-25T14:00:00Z", 110.0, &[]),
        ];
        for (against, row, share) in [(Against::First, 0, 0.21), (Against::Previous, 1, 0.1)] {
            let found = Comparison::new(&sources, against);
            let names: Vec<&str> = found.rows.iter().map(|row| row.name.as_str()).collect();
            assert_eq!(names, ["a", "b", "c"]);
            assert_eq!(found.rows[2].against, Some(row));
            assert!((found.rows[2].changes[1].unwrap() - share).abs() < 1e-9);
            assert_eq!(found.rows[2].changes[3], None, "p99 was not measured");
            let text = found.text();
            assert!(text.contains("not verified") && text.contains("10.0 %"), "{text}");
            assert!(!text.contains('≠'), "{text}");
        }
    }

    #[test]
    fn what_is_not_like_with_like_is_marked_and_named() {
        let one = ["load", "--rate", "4", "--json", "a.json", "--url", "http://127.0.0.1:8000"];
        let other =
            ["load", "--rate", "8", "--json", "b.json", "--url", "http://127.0.0.1:8001/v1"];
        let mut sources = [source("a", "1", 1.0, &one), source("b", "2", 1.0, &other)];
        sources[1].series.runs[0].provenance.adapter = Some("llvmpipe".into());
        let found = Comparison::new(&sources, Against::First);
        assert_eq!(found.rows[1].unlike, ["adapter none → llvmpipe", "flags --rate 4 → --rate 8"]);
        let text = found.text();
        assert!(text.contains("against 1 ≠"), "{text}");
        assert!(text.contains("≠ 2 and 1 are not like with like: adapter none"), "{text}");
    }

    #[test]
    fn of_a_sweep_only_equal_points_are_compared() {
        let mut sources = [source("a", "1", 1.0, &[]), source("b", "2", 1.0, &[])];
        let more = RunResult { label: "rate 8".into(), date: "3".into(), ..RunResult::default() };
        sources[1].series.runs.push(more);
        let found = Comparison::new(&sources, Against::Previous);
        let against: Vec<_> = found.rows.iter().map(|row| row.against).collect();
        assert_eq!(against, [None, Some(0), None]);
        assert_eq!(found.rows[1].name, "b: rate 4");
    }
}
