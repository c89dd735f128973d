//! `autoglm-bench placement`.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use bench::engine::random_model::Storage;
use bench::placement::{Joined, Planned, Row, Setup, Shape, report, table};
use bench::users::{Arrivals, Users, Wish};
use checkpoint::Checkpoint;
use loadgen::numbers::{median, parse_time};
use protocol::config::Config;

use super::model::find_or_write;
use super::terminal::{dim, say, write_json};

/// Tokens of a lone prompt: with those of an answer the context is what plans are made for.
const PROMPT: usize = 96;

/// Tokens of a prompt where there are several: plans speak of answers.
const SHORT_PROMPT: usize = 8;

#[derive(clap::Args)]
pub(crate) struct PlacementArguments {
    /// A model directory, a GGUF file, or a shape to be filled with random weights.
    #[arg(long, value_name = "PATH|SHAPE", default_value = "glm-0.3b")]
    model: String,
    /// How random weights are stored.
    #[arg(long, value_enum, default_value = "q4_0")]
    storage: Storage,
    /// Threads of the software driver (LP_NUM_THREADS) of each node: unequal ones make unequal
    /// nodes.
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "2,1,1")]
    threads: Vec<u32>,
    /// What each node may take, as a share of what the model takes on one.
    #[arg(long, value_name = "SHARE", default_value = "0.7")]
    memory: f64,
    /// Shapes: a number of stages, cut as placement decides, or the layers of each, as in 8/8/8.
    /// The first is measured before the others are planned.
    #[arg(long, value_name = "SHAPE,..", value_delimiter = ',', default_value = "8/8/8,3")]
    shapes: Vec<Shape>,
    /// Sequences at once at most.
    #[arg(long, value_name = "C", default_value = "8")]
    concurrency: NonZeroUsize,
    /// Tokens of an answer.
    #[arg(long, value_name = "N", default_value = "64",
          value_parser = clap::value_parser!(u32).range(8..))]
    answer: u32,
    /// Answers of one user, of which the median counts.
    #[arg(long, value_name = "N", default_value = "3")]
    rounds: NonZeroUsize,
    /// How long answers of several users are counted.
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "10s")]
    window: Duration,
    /// Where to write the result as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) async fn placement(arguments: PlacementArguments) -> Result<ExitCode> {
    let (model, _scratch) = find_or_write(&arguments.model, arguments.storage)?;
    let mut setup = Setup::new(model.clone(), arguments.threads.clone())?;
    setup.config = format!(
        "[model]\nmax_model_len = 512\n[scheduler]\nmax_num_seqs = {}\nmax_batched_tokens = 128\n",
        arguments.concurrency
    );
    let total = total(&model, &setup.config)?;
    setup.max_memory = (total as f64 * arguments.memory) as u64;
    let [first, others @ ..] = arguments.shapes.as_slice() else { return Ok(ExitCode::SUCCESS) };
    let (mut rows, mut plans) = (Vec::new(), Vec::new());
    let cluster = start(&setup, first).await?;
    // By its probes alone.
    let planned = setup.plan(&cluster, first).await?;
    rows.push(measure(&arguments, &cluster, (first, planned)).await?);
    for shape in others {
        plans.push((shape, setup.plan(&cluster, shape).await?));
    }
    cluster.end().await;
    for plan in plans {
        let cluster = start(&setup, plan.0).await?;
        rows.push(measure(&arguments, &cluster, plan).await?);
        cluster.end().await;
    }
    say(&format!(
        "nodes with {:?} threads, {:.0} % of the model's memory each\n\n{}",
        arguments.threads,
        arguments.memory * 100.0,
        table(&rows)
    ));
    write_json(arguments.json.as_deref(), &report(&rows))?;
    Ok(ExitCode::SUCCESS)
}

/// Bytes that the model takes on one node, with a cache for one sequence.
fn total(model: &Path, config: &str) -> Result<u64> {
    let config = Config::parse(config)?;
    let files = Checkpoint::open(model)?;
    Ok(coordinator::model::describe(&files, model, &config)?.cost.total())
}

async fn start(setup: &Setup, shape: &Shape) -> Result<Joined> {
    eprintln!("{}", dim(&format!("starting a cluster: {shape}")));
    setup.start(shape).await
}

async fn measure(
    arguments: &PlacementArguments,
    cluster: &Joined,
    (shape, planned): (&Shape, Planned),
) -> Result<Row> {
    let users = Users::of(cluster.url()).await?;
    let wish = Wish { prompt: PROMPT, answer: arguments.answer, tier: None };
    let mut tokens = Vec::new();
    // The first fills caches and wakes what sleeps: it counts for nothing.
    for round in 0..=arguments.rounds.get() as u64 {
        let asked = users.ask(wish, round, &Arrivals::default()).await?;
        let millis = (asked.end - asked.first).as_secs_f64() * 1e3;
        tokens.extend((round > 0).then_some(millis / f64::from(arguments.answer - 1)));
    }
    let wish = Wish { prompt: SHORT_PROMPT, ..wish };
    let mut crowd = users.crowd(wish, planned.concurrency, 1);
    crowd.begun(planned.concurrency).await?;
    let (num_tokens, seconds) = crowd.count_for(arguments.window).await?;
    ensure!(num_tokens > 0.0, "nothing was answered within {:?}", arguments.window);
    // Prompts count among what arrives, and not in plans.
    let answer = f64::from(arguments.answer);
    let share = answer / (answer + SHORT_PROMPT as f64);
    let tokens_per_s = num_tokens * share / seconds;
    Ok(Row { shape: shape.clone(), planned, token_ms: median(&tokens), tokens_per_s })
}
