//! `autoglm-bench overload`.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use bench::cluster::Setup;
use bench::engine::random_model::Storage;
use bench::overload::{Demand, Memory, closed, open, report, summary, table};
use loadgen::client::Server;
use loadgen::load::client_use::raise_file_limit;
use loadgen::load::slo::Slo;
use loadgen::load::sweep::Steps;
use loadgen::numbers::{decimal, parse_time, time};

use super::model::find_or_write;
use super::terminal::{dim, say, write_json};

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

#[derive(clap::Args)]
pub(crate) struct OverloadArguments {
    /// A model directory, a GGUF file, or a shape to be filled with random weights.
    #[arg(long, value_name = "PATH|SHAPE", default_value = "glm-30m")]
    model: String,
    /// Stages of the pipeline, a node process for each.
    #[arg(long, value_name = "S", default_value = "2")]
    stages: NonZeroU32,
    /// Tokens of a prompt.
    #[arg(long, value_name = "N", default_value = "32")]
    prompt: NonZeroUsize,
    /// Tokens of an answer.
    #[arg(long, value_name = "N", default_value = "32")]
    answer: NonZeroU32,
    /// Requests in flight at which the capacity is measured: as many run at once.
    #[arg(long, value_name = "C", default_value = "32")]
    running: NonZeroU64,
    /// Requests that may wait in the server (scheduler.max_queued_requests).
    #[arg(long, value_name = "N", default_value = "32")]
    queued: NonZeroU64,
    /// Loads up to which goodput is searched for its peak, in parts of the capacity.
    #[arg(long, value_name = "STEPS", default_value = "0.5,0.75,0.9,1,1.1")]
    sweep: Steps,
    /// The load beyond, in parts of the capacity.
    #[arg(long, value_name = "X", default_value = "4")]
    factor: f64,
    /// How long each load of the sweep is measured, after a warm-up of a quarter of it.
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "16s")]
    duration: Duration,
    /// How long the load beyond is.
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "60s")]
    beyond: Duration,
    /// The time in which an answer is good [default: three times what it takes at the capacity].
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    within: Option<Duration>,
    /// Where to write the result as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) async fn overload(arguments: OverloadArguments) -> Result<ExitCode> {
    if !(1.0..=100.0).contains(&arguments.factor) {
        bail!("--factor {} is no overload: use 1 to 100", arguments.factor);
    }
    raise_file_limit();
    let (model, _scratch) = find_or_write(&arguments.model, Storage::Q4_1)?;
    let mut setup = Setup::new(model, arguments.stages.get());
    setup.config = format!(
        "[scheduler]\nmax_num_seqs = {}\nmax_queued_requests = {}\n[log]\nrequests = false\n",
        arguments.running, arguments.queued
    );
    eprintln!("{}", dim("starting a cluster"));
    let cluster = setup.start().await?;
    let pid = cluster.pid()?;
    let server = Server::new(cluster.url(), ANSWER_TIMEOUT)?;
    let mut asked = Demand {
        model: server.first_model().await?,
        prompt: arguments.prompt.get(),
        answer: arguments.answer.get(),
        slo: Slo::default(),
        max_time_ms: None,
    };
    let mut seed = 0;
    let mut next = || {
        seed += 1;
        seed
    };
    let running = arguments.running.get();
    asked.load(&server, closed(running), arguments.duration / 4, next()).await?;
    let at_capacity = asked.load(&server, closed(running), arguments.duration, next()).await?;
    let capacity = at_capacity.answered;
    if capacity <= 0.0 {
        bail!(
            "nothing was answered within {} s: give a longer --duration",
            arguments.duration.as_secs()
        );
    }
    let within = arguments.within.unwrap_or(Duration::from_secs_f64(at_capacity.e2el_ms[0] * 3e-3));
    let objective = format!("e2el={}ms", within.as_millis());
    asked.slo = objective.parse().map_err(anyhow::Error::msg)?;
    say(&format!(
        "capacity: {} requests a second, {running} in flight; good is what ends within {}\n",
        decimal(capacity),
        time(within.as_secs_f64() * 1e3),
    ));

    let mut up_to = Vec::new();
    for &times in arguments.sweep.values() {
        up_to.push(asked.load(&server, open(times, capacity), arguments.duration, next()).await?);
    }
    // Full is full; and the same where the server is told how long its client waits.
    let (mut beyond, mut memory) = (Vec::new(), Vec::new());
    for deadline in [None, Some(within.as_millis() as u64)] {
        asked.max_time_ms = deadline;
        let (name, pace) = open(arguments.factor, capacity);
        let name = if deadline.is_some() { format!("{name}, deadline") } else { name };
        let mut watched = Memory::default();
        let outcome = tokio::select! {
            outcome = asked.load(&server, (name, pace), arguments.beyond, next()) => outcome?,
            () = watched.watch(pid) => bail!("nobody looked at the memory"),
        };
        beyond.push(outcome);
        memory.push(watched);
    }
    cluster.end().await;
    let all: Vec<_> = up_to.iter().chain(&beyond).cloned().collect();
    say(&format!("\n{}\n{}", table(&all), summary(&up_to, &beyond)));
    for (outcome, memory) in beyond.iter().zip(&memory) {
        say(&format!("  {}: the coordinator has {}\n", outcome.name, memory.summary()));
    }
    write_json(arguments.json.as_deref(), &report(&up_to, &beyond, &memory))?;
    Ok(ExitCode::SUCCESS)
}
