//! `autoglm-bench load`.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{ArgGroup, Parser as _};
use loadgen::load::client_use::raise_file_limit;
use loadgen::load::pace::{Arrivals, Gaps, Growth, Pace, Ramp};
use loadgen::load::slo::Slo;
use loadgen::load::sweep::{self, Steps};
use loadgen::load::trace::{Trace, Unit};
use loadgen::load::{Extent, Load, Measured, Progress, report};
use loadgen::numbers::parse_time;
use loadgen::report::compare::{Against, ResultFile};
use loadgen::report::provenance;
use loadgen::report::result::{FORMAT, Metric, RunResult, Series};

use super::checks::{self, CheckArguments};
use super::interrupt::interrupted;
use super::report::write_page;
use super::server::ServerArguments;
use super::terminal::{say, show, write, write_json};
use super::workload::WorkloadArguments;

/// The options of which one says when requests start.
const PACES: [&str; 5] = ["rate", "trace", "concurrency", "sweep_rate", "sweep_concurrency"];

/// Files that a load has open beside its connections.
const OTHER_FILES: u64 = 64;

#[derive(clap::Args)]
#[command(group(ArgGroup::new("pace").required(true).args(PACES)))]
pub(crate) struct LoadArguments {
    #[command(flatten)]
    server: ServerArguments,
    #[command(flatten)]
    pace: PaceArguments,
    #[command(flatten)]
    workload: WorkloadArguments,
    #[command(flatten)]
    checks: CheckArguments,
    /// Requests to send.
    #[arg(long, value_name = "N")]
    requests: Option<NonZeroU64>,
    /// How long to send: 30s, 5m. What is in flight then is waited for.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    duration: Option<Duration>,
    /// Time to send before the measured window begins.
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "0s")]
    warmup: Duration,
    /// What answers should keep, as in ttft=200ms,itl=50ms,tpot=40ms,e2el=5s.
    #[arg(long, value_name = "LIMITS")]
    slo: Option<Slo>,
    /// The share of the requests that must keep it; a sweep stops where fewer do.
    #[arg(long, value_name = "SHARE", default_value = "0.99")]
    slo_share: f64,
    /// Where to write the result as JSON, under the names that vllm bench uses.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where to write a page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Writes PREFIX-ttft.hgrm, -tpot, -itl, -e2el: percentile logs for HdrHistogram's tools.
    #[arg(long, value_name = "PREFIX")]
    hgrm: Option<PathBuf>,
}

#[derive(clap::Args)]
#[group(skip)]
struct PaceArguments {
    /// Requests a second, whether or not others have ended (an open loop).
    #[arg(long, value_name = "R")]
    rate: Option<f64>,
    /// The times of a trace: lines {"timestamp": …, "input_length": …, "output_length": …}.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Requests in flight: when one ends, the next one starts (a closed loop).
    #[arg(long, value_name = "C")]
    concurrency: Option<NonZeroU64>,
    /// Runs at several rates, until the objective breaks: 1,2,4 or 1..64x2 or 10..50+10.
    #[arg(long, value_name = "STEPS")]
    sweep_rate: Option<Steps>,
    /// Runs at several concurrencies, until the objective breaks.
    #[arg(long, value_name = "STEPS")]
    sweep_concurrency: Option<Steps>,
    /// How an open loop's requests arrive: poisson, gamma:SHAPE (below 1: bursts) or constant.
    #[arg(long, value_name = "LAW", default_value = "poisson")]
    arrivals: Gaps,
    /// Requests of an open loop in flight, at most; others wait, and their waiting counts.
    #[arg(long, value_name = "C", conflicts_with_all = ["concurrency", "sweep_concurrency"])]
    max_concurrency: Option<NonZeroU64>,
    /// Grows from here to the rate or concurrency over warm-up and duration: linear:1 or
    /// exponential:1.
    #[arg(long, value_name = "GROWTH:FROM", value_parser = parse_ramp, requires = "duration",
        conflicts_with = "trace")]
    ramp: Option<(Growth, f64)>,
    /// The unit of a trace's timestamps: ms or s.
    #[arg(long, value_name = "UNIT", default_value = "ms", requires = "trace")]
    trace_unit: Unit,
    /// How many times as fast a trace is sent.
    #[arg(long, value_name = "X", default_value = "1", requires = "trace")]
    trace_speed: f64,
}

fn parse_ramp(text: &str) -> Result<(Growth, f64), String> {
    let wrong = || format!("{text:?} is no ramp: write linear:FROM or exponential:FROM, above 0");
    let (growth, from) = text.split_once(':').ok_or_else(wrong)?;
    let growth = match growth {
        "linear" => Growth::Linear,
        "exponential" => Growth::Exponential,
        _ => return Err(wrong()),
    };
    let from = from.parse().ok().filter(|from| (1e-6..=1e9).contains(from)).ok_or_else(wrong)?;
    Ok((growth, from))
}

pub(crate) async fn load(arguments: LoadArguments) -> Result<ExitCode> {
    let runs = measure(&arguments, None).await?;
    if let Some(varied) = arguments.pace.varied() {
        say(&format!("\n{}", report::sweep_table(varied, &runs)));
    }
    let is_whole = |run: &RunResult| run.failed == 0 && !run.interrupted && checks::is_clean(run);
    let whole = !runs.is_empty() && runs.iter().all(is_whole);
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes the runs, prints their tables and writes them. A run that has a name given by somebody
/// else is theirs to print.
pub(crate) async fn measure(
    arguments: &LoadArguments,
    named: Option<&str>,
) -> Result<Vec<RunResult>> {
    if !(0.0..=1.0).contains(&arguments.slo_share) {
        bail!("--slo-share {} is no share: use 0 to 1", arguments.slo_share);
    }
    let limit = raise_file_limit();
    let (server, mut parameters) = arguments.server.resolve(arguments.workload.max_tokens).await?;
    arguments.workload.set(&mut parameters)?;
    let trace = arguments.pace.trace()?;
    let workload = arguments.workload.workload(parameters.endpoint, trace.as_ref())?;
    let (warmup, duration) = (arguments.warmup, arguments.duration);
    let extent = Extent { requests: arguments.requests.map(Into::into), duration, warmup };
    let slo = arguments.slo.clone().unwrap_or_default();
    let mut provenance = provenance::here();
    provenance::ask(&server, &mut provenance).await;

    let mut runs = Vec::new();
    let steps = arguments.pace.steps(extent, trace.as_ref())?;
    let is_sweep = arguments.pace.varied().is_some();
    let Some((_, pace)) = steps.first() else { return Ok(runs) };
    let pace = pace.clone();
    let mut load = Load { parameters, workload, pace, extent, slo, observer: None };
    let begun = arguments.checks.begin(&server, &mut load, is_sweep, interrupted()).await?;
    let Some(checks) = begun else { bail!("stopped before the load began: nothing was measured") };
    for (label, pace) in steps {
        let label = named.map_or(label, str::to_owned);
        load.pace = pace;
        check_files(&load, limit)?;
        if is_sweep {
            say(&format!("{label}\n"));
        }
        let progress = Arc::new(Progress::default());
        let injection = checks.start(&mut load);
        let (mut result, measured) = tokio::select! {
            measured = load.result(&server, &label, &provenance, &progress, interrupted()) => {
                measured?
            }
            never = show(progress.clone(), extent) => match never {},
        };
        checks.end(injection, &mut result).await;
        if named.is_none() {
            say(&report::table(&result));
            say(&checks::table(&result));
        }
        let broken = sweep::broken(&measured.sums.all, &load.slo, arguments.slo_share);
        runs.push(result);
        arguments.write(&runs)?;
        arguments.write_logs(is_sweep.then_some(label.as_str()), &measured)?;
        if measured.interrupted {
            break;
        }
        if let Some(broken) = broken.filter(|_| named.is_none()) {
            say(&format!("\n  the objective breaks at {label}: {broken}\n"));
            if is_sweep {
                break;
            }
        }
        if is_sweep {
            say("\n");
        }
    }
    Ok(runs)
}

/// Each request in flight has a connection, and each connection is an open file.
fn check_files(load: &Load, limit: Option<u64>) -> Result<()> {
    let connections = match load.pace {
        Pace::Open { max_concurrency, .. } => max_concurrency.unwrap_or(0),
        Pace::Closed { concurrency } => concurrency.end() as u64,
    };
    match limit {
        Some(limit) if connections + OTHER_FILES > limit => bail!(
            "{connections} connections need as many open files, and this process may have {limit}: \
             raise the hard limit (ulimit -Hn)"
        ),
        _ => Ok(()),
    }
}

impl LoadArguments {
    /// What the words of a configuration say, to be asked of a server at `url`.
    ///
    /// # Errors
    /// When they aren't options of a load, or ask for more than one run.
    pub(crate) fn of(words: &[String]) -> Result<Self> {
        #[derive(clap::Parser)]
        #[command(name = "load", no_binary_name = true, disable_help_flag = true)]
        struct Words {
            #[command(flatten)]
            load: LoadArguments,
        }
        let load = match Words::try_parse_from(words) {
            Ok(words) => words.load,
            Err(error) => {
                let text = error.to_string();
                let said = text.split("\n\nUsage").next().unwrap_or_default();
                bail!("{}", said.trim_start_matches("error: ").trim());
            }
        };
        if load.pace.varied().is_some() {
            bail!("a sweep is more than one run");
        }
        Ok(load)
    }

    /// The same load, asked of a server at `url`.
    pub(crate) fn at(mut self, url: &str) -> Self {
        self.server.url = url.to_owned();
        self
    }

    /// Writes all that was measured so far.
    fn write(&self, runs: &[RunResult]) -> Result<()> {
        let series = Series {
            format: FORMAT,
            kind: if self.pace.varied().is_some() { "sweep" } else { "run" }.to_owned(),
            varied: self.pace.varied().unwrap_or_default().to_owned(),
            runs: runs.to_vec(),
        };
        match runs {
            [run] if series.kind == "run" => write_json(self.json.as_deref(), run)?,
            _ => write_json(self.json.as_deref(), &series)?,
        }
        if let Some(path) = &self.html {
            write_page(path, &[ResultFile { name: "load".to_owned(), series }], Against::First)?;
        }
        Ok(())
    }

    fn write_logs(&self, label: Option<&str>, measured: &Measured) -> Result<()> {
        let Some(prefix) = &self.hgrm else { return Ok(()) };
        for metric in Metric::ALL {
            let times = measured.sums.all.times(metric);
            if times.is_empty() {
                continue;
            }
            let mut name = prefix.as_os_str().to_owned();
            if let Some(label) = label {
                name.push(format!("-{}", label.replace(' ', "-")));
            }
            name.push(format!("-{}.hgrm", metric.name()));
            write(Path::new(&name), &times.hgrm())?;
        }
        Ok(())
    }
}

impl PaceArguments {
    fn trace(&self) -> Result<Option<Trace>> {
        let speed = self.trace_speed;
        if !(1e-6..=1e6).contains(&speed) {
            bail!("--trace-speed {speed} is no speed: use a number above 0");
        }
        self.trace.as_ref().map(|path| Trace::read(path, self.trace_unit, speed)).transpose()
    }

    /// What a sweep varies.
    fn varied(&self) -> Option<&'static str> {
        match (&self.sweep_rate, &self.sweep_concurrency) {
            (Some(_), _) => Some("rate"),
            (_, Some(_)) => Some("concurrency"),
            _ => None,
        }
    }

    /// The runs to make, each with its label.
    fn steps(&self, extent: Extent, trace: Option<&Trace>) -> Result<Vec<(String, Pace)>> {
        if let Some(trace) = trace {
            let pace = Pace::Open {
                arrivals: trace.arrivals(),
                max_concurrency: self.max_concurrency.map(Into::into),
            };
            return Ok(vec![("trace".to_owned(), pace)]);
        }
        if let Some(rate) = self.rate.or(self.concurrency.map(|number| number.get() as f64)) {
            if !(1e-6..=1e9).contains(&rate) {
                bail!("--rate {rate} is no rate: use requests a second, above 0");
            }
            let closed = self.concurrency.is_some();
            return Ok(vec![self.step(rate, closed, extent)]);
        }
        let closed = self.sweep_concurrency.is_some();
        let steps = self.sweep_rate.as_ref().or(self.sweep_concurrency.as_ref());
        let values = steps.map_or(&[] as &[f64], Steps::values);
        if closed && let Some(value) = values.iter().find(|value| value.fract() != 0.0) {
            bail!("--sweep-concurrency {value}: only whole requests can be in flight");
        }
        Ok(values.iter().map(|&value| self.step(value, closed, extent)).collect())
    }

    fn step(&self, value: f64, closed: bool, extent: Extent) -> (String, Pace) {
        let ramp = match self.ramp {
            Some((growth, from)) => {
                Ramp::new(from, value, extent.end().unwrap_or_default(), growth)
            }
            None => Ramp::constant(value),
        };
        if closed {
            return (format!("concurrency {value}"), Pace::Closed { concurrency: ramp });
        }
        let pace = Pace::Open {
            arrivals: Arrivals::Random { gaps: self.arrivals, rate: ramp },
            max_concurrency: self.max_concurrency.map(Into::into),
        };
        (format!("rate {value}"), pace)
    }
}
