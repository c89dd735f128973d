//! `autoglm-bench experiment`.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use loadgen::experiments::configuration::{Configuration, Target};
use loadgen::experiments::outcome::ExperimentResult;
use loadgen::experiments::server::Started;
use loadgen::numbers::{decimal, time};
use loadgen::report::compare::{Against, ResultFile};
use loadgen::report::result::{FORMAT, Metric, RunResult, Series};

use super::checks;
use super::load::{self, LoadArguments};
use super::report::write_page;
use super::terminal::{say, write_json};

#[derive(clap::Args)]
pub(crate) struct ExperimentArguments {
    /// The first configuration, a TOML file: see bench/experiments.
    first: PathBuf,
    /// The second, which is compared with the first.
    second: PathBuf,
    /// Rounds; in each, both are measured, in turn the one and the other first.
    #[arg(long, value_name = "N", default_value = "5")]
    rounds: NonZeroU32,
    /// Where to write all runs as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where to write a page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(crate) async fn experiment(arguments: ExperimentArguments) -> Result<ExitCode> {
    let configurations =
        [Configuration::read(&arguments.first)?, Configuration::read(&arguments.second)?];
    let [first, second] = &configurations;
    if first.name == second.name {
        bail!("both configurations are called {:?}: give one another `name`", first.name);
    }
    let loads = [
        LoadArguments::of(&first.load).with_context(|| in_file(&arguments.first))?,
        LoadArguments::of(&second.load).with_context(|| in_file(&arguments.second))?,
    ];
    let mut servers = Vec::new();
    let measured = measure(&arguments, &configurations, loads, &mut servers).await;
    for server in servers {
        server.end().await;
    }
    let series = measured?;
    let Some(outcome) = ExperimentResult::of(&series) else {
        bail!("interrupted before both were measured")
    };
    say(&format!("\n{}", outcome.text()));
    let is_whole = |run: &RunResult| run.failed == 0 && !run.interrupted && checks::is_clean(run);
    let whole = series.runs.iter().all(is_whole);
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Starts what is to be started, and measures all rounds. What has been measured is written
/// after every run.
async fn measure(
    arguments: &ExperimentArguments,
    configurations: &[Configuration; 2],
    loads: [LoadArguments; 2],
    servers: &mut Vec<Started>,
) -> Result<Series> {
    let mut urls: Vec<String> = Vec::new();
    for (index, configuration) in configurations.iter().enumerate() {
        let url = match &configuration.server {
            Target::Url(url) => url.clone(),
            // One server for two loads: it is the loads that are compared.
            target if index > 0 && *target == configurations[0].server => urls[0].clone(),
            Target::Command(command) => {
                say(&format!("starting {}\n", command.words.join(" ")));
                let server = Started::start(command).await?;
                let url = server.url().to_string();
                servers.push(server);
                url
            }
        };
        urls.push(url);
    }
    let [first, second] = loads;
    let loads = [first.at(&urls[0]), second.at(&urls[1])];
    let mut series = Series {
        format: FORMAT,
        kind: "experiment".to_string(),
        varied: "configuration".to_string(),
        runs: Vec::new(),
    };
    for round in 0..arguments.rounds.get() {
        // Who comes second finds another machine than who comes first: each does as often.
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for index in order {
            let name = &configurations[index].name;
            let mut runs = load::measure(&loads[index], Some(name)).await?;
            let Some(mut run) = runs.pop() else { return Ok(series) };
            run.provenance.flags = flags(&configurations[index]);
            let mean = run.statistic("mean", Metric::E2el).map_or("-".to_string(), time);
            let qps = decimal(run.request_throughput);
            say(&format!(
                "round {}  {name}: mean {mean}, {qps} requests/s, {} failed\n",
                round + 1,
                run.failed,
            ));
            let interrupted = run.interrupted;
            series.runs.push(run);
            write(arguments, &series)?;
            if interrupted {
                return Ok(series);
            }
        }
    }
    Ok(series)
}

fn write(arguments: &ExperimentArguments, series: &Series) -> Result<()> {
    write_json(arguments.json.as_deref(), series)?;
    if let Some(path) = &arguments.html {
        let source = ResultFile { name: "experiment".to_string(), series: series.clone() };
        write_page(path, &[source], Against::First)?;
    }
    Ok(())
}

/// How a run of a configuration was made: its server, and its load.
fn flags(configuration: &Configuration) -> Vec<String> {
    let server = match &configuration.server {
        Target::Url(url) => vec!["--url".to_string(), url.clone()],
        Target::Command(command) => vec![format!("--server={}", command.words.join(" "))],
    };
    let load = ["load".to_string()].into_iter().chain(server).chain(configuration.load.clone());
    loadgen::report::provenance::without_secrets(load)
}

fn in_file(path: &std::path::Path) -> String {
    format!("[load] of {}", path.display())
}
