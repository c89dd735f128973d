//! The page about one or several runs: one HTML file that needs nothing else.

mod curves;
mod markup;
mod plot;
mod run;
mod scale;
mod summary;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::compare::{Against, Comparison, ResultFile, minute};
use super::result::RunResult;
use crate::experiments::outcome::ExperimentResult;
use markup::{escape, name};

/// A run of the page, as it is called and drawn in every part of it.
struct Drawn<'a> {
    name: String,
    colour: String,
    dashed: bool,
    run: &'a RunResult,
}

/// The page. Several files are compared with each other, each run with the first or the previous.
pub fn page(sources: &[ResultFile], against: Against) -> String {
    let runs = drawn(sources);
    let title = title(sources, &runs);
    let mut body = header(&title, &runs);
    for source in sources {
        if source.series.kind == "experiment" {
            let found = ExperimentResult::of(&source.series);
            let cut = || "The experiment ended before both were measured.".to_owned();
            body.push_str(&told("Do they differ?", &found.map_or_else(cut, |it| it.text())));
        }
    }
    if sources.len() > 1 {
        body.push_str(&told("What changed", &Comparison::new(sources, against).text()));
    }
    body.push_str(&summary::section(&runs));
    for source in sources {
        if source.series.kind == "sweep" {
            body.push_str(&curves::against_load(source, sources.len() > 1));
        }
    }
    body.push_str(&curves::percentiles(&runs));
    for (index, run) in runs.iter().enumerate() {
        body.push_str(&run::section(index, run));
    }
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n{body}\
         <script>\n{}</script>\n</body>\n</html>\n",
        escape(&title),
        include_str!("page.css"),
        include_str!("page.js"),
    )
}

/// What a terminal is told, too.
fn told(title: &str, text: &str) -> String {
    format!("<section><h2>{title}</h2>\n<pre class=\"wide\">{}</pre></section>\n", escape(text))
}

fn header(title: &str, runs: &[Drawn<'_>]) -> String {
    let mut html = format!("<header>\n<h1>{}</h1>\n", name(title));
    let dates: BTreeSet<String> = runs.iter().map(|run| minute(&run.run.date)).collect();
    let span = match (dates.first(), dates.last()) {
        (Some(first), Some(last)) if first != last => format!("{first} to {last}"),
        (Some(only), _) => only.clone(),
        _ => String::new(),
    };
    let num = runs.len();
    let plural = if num == 1 { "run" } else { "runs" };
    let _ = writeln!(html, "<p class=\"faint\">{num} {plural}, {}</p>", escape(&span));
    if num > 1 {
        html.push_str("<nav aria-label=\"Runs\">");
        for (index, run) in runs.iter().enumerate() {
            let _ = write!(html, "<a href=\"#run-{index}\">{}</a>", name(&run.name));
        }
        html.push_str("</nav>\n");
    }
    html.push_str(&summary::provenance(runs));
    html.push_str("</header>\n");
    html
}

fn title(sources: &[ResultFile], runs: &[Drawn<'_>]) -> String {
    let kinds: BTreeSet<&str> = sources.iter().map(|source| source.series.kind.as_str()).collect();
    let what = match kinds.first() {
        _ if sources.len() > 1 => "Runs over time",
        Some(&"sweep") => "Load sweep",
        Some(&"experiment") => "Experiment",
        _ => "Load",
    };
    let models: BTreeSet<&str> = runs.iter().map(|run| run.run.model_id.as_str()).collect();
    let models: Vec<&str> = models.into_iter().filter(|model| !model.is_empty()).collect();
    if models.is_empty() { what.to_string() } else { format!("{what}: {}", models.join(", ")) }
}

/// Every run with its name and colour: of a sweep by its place, of an experiment by its
/// configuration.
fn drawn(sources: &[ResultFile]) -> Vec<Drawn<'_>> {
    let mut drawn = Vec::new();
    for source in sources {
        let series = &source.series;
        let mut labels: Vec<&str> = Vec::new();
        for (index, run) in series.runs.iter().enumerate() {
            let label = run.label.as_str();
            if !labels.contains(&label) {
                labels.push(label);
            }
            let same = labels.iter().position(|known| *known == label).unwrap_or(0);
            let own = match (series.kind.as_str(), series.runs.len()) {
                ("experiment", _) => {
                    format!("{label}, round {}", round(series.runs.as_slice(), index))
                }
                (_, 1) if sources.len() > 1 => String::new(),
                _ if label.is_empty() => format!("run {}", index + 1),
                _ => label.to_string(),
            };
            let name = match sources.len() {
                1 => own,
                _ if own.is_empty() => source.name.clone(),
                _ => format!("{}: {own}", source.name),
            };
            let (colour, dashed) = match series.kind.as_str() {
                "sweep" if sources.len() == 1 => (plot::ramp(index, series.runs.len()), false),
                "experiment" if sources.len() == 1 => (plot::colour(same), false),
                _ => (plot::colour(drawn.len()), drawn.len() % 16 >= 8),
            };
            drawn.push(Drawn { name, colour, dashed, run });
        }
    }
    drawn
}

/// The how manieth run with its label it is, from 1.
fn round(runs: &[RunResult], index: usize) -> usize {
    runs[..=index].iter().filter(|run| run.label == runs[index].label).count()
}
