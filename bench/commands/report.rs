//! `autoglm-bench report`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use loadgen::experiments::outcome::ExperimentResult;
use loadgen::report::compare::{Against, Comparison, ResultFile};
use loadgen::report::{html, result};

use super::terminal::{say, write};

#[derive(clap::Args)]
pub(crate) struct ReportArguments {
    /// Results that `load --json` or `experiment --json` wrote.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What each run is compared with: `first` or `previous`.
    #[arg(long, value_name = "RUN", default_value = "first", value_parser = against)]
    against: Against,
    /// Where to write a page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Compares what can be read; a file that can't be is named, and makes the exit code 1.
pub(crate) fn report(arguments: &ReportArguments) -> Result<ExitCode> {
    let mut sources = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for file in &arguments.files {
        match result::read(file) {
            Ok(series) => sources.push(ResultFile { name: short_name(file), series }),
            Err(cause) => {
                eprintln!("autoglm-bench: {cause:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    if sources.is_empty() {
        bail!("there is nothing to report");
    }
    say(&Comparison::new(&sources, arguments.against).text());
    for source in sources.iter().filter(|source| source.series.kind == "experiment") {
        if let Some(outcome) = ExperimentResult::of(&source.series) {
            say(&format!("\n{}\n{}", source.name, outcome.text()));
        }
    }
    if let Some(path) = &arguments.html {
        write_page(path, &sources, arguments.against)?;
    }
    Ok(code)
}

/// Writes the page about results.
pub(crate) fn write_page(path: &Path, sources: &[ResultFile], against: Against) -> Result<()> {
    write(path, &html::page(sources, against))
}

/// A file's name without its folder.
fn short_name(file: &Path) -> String {
    file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned()
}

fn against(name: &str) -> Result<Against, String> {
    match name {
        "first" => Ok(Against::First),
        "previous" => Ok(Against::Previous),
        _ => Err(format!("{name:?} is no run: use first or previous")),
    }
}
