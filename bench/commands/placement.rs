//! `autoglm-bench placement`.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bench::engine::random_model::Storage;
use bench::placement::{Joined, Kind, Planned, Row, Setup, Shape, Stage, report, table};
use bench::users::{Arrivals, Users, Wish};
use checkpoint::Checkpoint;
use loadgen::numbers::parse_time;
use protocol::config::Config;

use super::model::find_or_write;
use super::terminal::{dim, say, write_json};

/// Tokens of a lone prompt: with those of an answer the context is what plans are made for.
const PROMPT: usize = 96;

/// Tokens of a prompt where there are several: plans speak of answers.
const SHORT_PROMPT: usize = 8;

/// The number of a request that counts for nothing; those of rounds are others.
const WARM_UP: u64 = 99;

/// Until a cluster has withdrawn what its users no longer want.
const CALM: Duration = Duration::from_millis(500);

#[derive(clap::Args)]
pub(crate) struct PlacementArguments {
    /// A model directory, a GGUF file, or a shape to be filled with random weights.
    #[arg(long, value_name = "PATH|SHAPE", default_value = "glm-0.3b")]
    model: String,
    /// How random weights are stored.
    #[arg(long, value_enum, default_value = "q4_0")]
    storage: Storage,
    /// Nodes: threads of the software driver of each, and bits of its vectors where those are to
    /// be others than it chooses. Unequal ones make unequal nodes.
    #[arg(
        long,
        value_name = "N[xBITS],..",
        value_delimiter = ',',
        default_value = "1,1x128,1x128"
    )]
    nodes: Vec<Kind>,
    /// What each node may take, as a share of what the model is said to take on one: a software
    /// driver takes up to an eighth more, in whole rows of images.
    #[arg(long, value_name = "SHARE", default_value = "0.85")]
    memory: f64,
    /// Shapes: a number of stages, cut as placement decides, or the layers of each, as in 8/8/8.
    /// The first, a stage on each node, is measured before the others are planned; then all of
    /// them are, in turns.
    #[arg(long, value_name = "SHAPE,..", value_delimiter = ',', default_value = "8/8/8,3,2")]
    shapes: Vec<Shape>,
    /// Sequences at once at most.
    #[arg(long, value_name = "C", default_value = "8")]
    concurrency: NonZeroUsize,
    /// Tokens of an answer.
    #[arg(long, value_name = "N", default_value = "64",
          value_parser = clap::value_parser!(u32).range(8..))]
    answer: u32,
    /// Rounds, of which medians count.
    #[arg(long, value_name = "N", default_value = "3")]
    rounds: NonZeroUsize,
    /// How long answers of several users are counted in a round.
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "8s")]
    window: Duration,
    /// Where to write the result as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) async fn placement(arguments: PlacementArguments) -> Result<ExitCode> {
    let (model, _scratch) = find_or_write(&arguments.model, arguments.storage)?;
    let config = format!(
        "[model]\nmax_model_len = 512\n[scheduler]\nmax_num_seqs = {}\nmax_batched_tokens = 128\n",
        arguments.concurrency
    );
    let max_memory = (total(&model, &config)? as f64 * arguments.memory) as u64;
    let setup = Setup { model, kinds: arguments.nodes.clone(), max_memory, config };
    let Some(first) = arguments.shapes.first() else { return Ok(ExitCode::SUCCESS) };

    let cluster = start(&setup, first).await?;
    let known = cluster.stages().await?;
    ensure!(known.len() == setup.kinds.len(), "{first} has no stage on each node");
    let mut by_probes = Some(setup.plan(&cluster, first).await?);
    let learning = Measuring::of(cluster, &arguments).await?;
    // What the first shape's steps taught is what the others are planned by.
    for round in 0..arguments.rounds.get() as u64 {
        learning.token_ms(round).await?;
    }
    learning.tokens_per_s(arguments.concurrency.get(), 0).await?;
    let mut rows = Vec::new();
    for shape in &arguments.shapes {
        let planned = setup.plan(&learning.cluster, shape).await?;
        rows.push(Row {
            shape: shape.clone(),
            by_probes: by_probes.take(),
            planned,
            stages: Vec::new(),
            token_ms: Vec::new(),
            tokens_per_s: Vec::new(),
            cores: Vec::new(),
        });
    }

    let mut all = vec![learning];
    for row in &rows[1..] {
        let cluster = start(&setup, &row.planned.shape()).await?;
        ensure_as_planned(&row.planned, &known, &cluster.stages().await?)?;
        all.push(Measuring::of(cluster, &arguments).await?);
    }
    for round in 0..arguments.rounds.get() as u64 {
        eprintln!("{}", dim(&format!("round {}", round + 1)));
        for (one, row) in all.iter().zip(&mut rows) {
            row.token_ms.push(one.token_ms(100 + round).await?);
        }
        for (one, row) in all.iter().zip(&mut rows) {
            let (rate, cores) = one.tokens_per_s(row.planned.concurrency, 1 + round).await?;
            row.tokens_per_s.push(rate);
            row.cores.push(cores);
        }
    }
    for (one, row) in all.iter().zip(&mut rows) {
        row.stages = one.cluster.stages().await?;
    }
    for one in all {
        one.cluster.end().await;
    }
    let nodes: Vec<_> = arguments.nodes.iter().map(ToString::to_string).collect();
    let num_cores = std::thread::available_parallelism()?.get();
    say(&format!(
        "nodes with {} threads x bits of vectors, {:.0} % of the model's memory each\n\n{}",
        nodes.join(", "),
        arguments.memory * 100.0,
        table(&rows, num_cores)
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

/// A cluster of its own places by its own probes: what was planned was for nodes of these kinds in
/// this order. `known`: the nodes of the cluster that was asked for the plan.
fn ensure_as_planned(planned: &Planned, known: &[Stage], stages: &[Stage]) -> Result<()> {
    let kind = |node: &str| known.iter().find(|it| it.node == node).map(|it| it.kind.to_string());
    let wanted: Option<Vec<_>> = planned.stages.iter().map(|it| kind(&it.node)).collect();
    let wanted = wanted.context("a plan for nodes of another cluster")?.join(", ");
    let found: Vec<_> = stages.iter().map(|it| it.kind.to_string()).collect();
    let found = found.join(", ");
    ensure!(wanted == found, "planned for {wanted}, placed on {found}: the nodes are too alike");
    Ok(())
}

/// A cluster that is asked.
struct Measuring {
    cluster: Joined,
    users: Users,
    answer: u32,
    window: Duration,
}

impl Measuring {
    /// The first answer fills caches and wakes what sleeps: it counts for nothing.
    async fn of(cluster: Joined, arguments: &PlacementArguments) -> Result<Self> {
        let users = Users::of(cluster.url()).await?;
        let (answer, window) = (arguments.answer, arguments.window);
        let measuring = Self { cluster, users, answer, window };
        measuring.token_ms(WARM_UP).await?;
        Ok(measuring)
    }

    /// Milliseconds of a token of one sequence.
    async fn token_ms(&self, number: u64) -> Result<f64> {
        let wish = Wish { prompt: PROMPT, answer: self.answer, tier: None };
        let asked = self.users.ask(wish, number, &Arrivals::default()).await?;
        Ok((asked.end - asked.first).as_secs_f64() * 1e3 / f64::from(self.answer - 1))
    }

    /// Tokens a second of so many sequences at once, and the cores that the cluster has meanwhile.
    async fn tokens_per_s(&self, concurrency: usize, seed: u64) -> Result<(f64, f64)> {
        let wish = Wish { prompt: SHORT_PROMPT, answer: self.answer, tier: None };
        let mut crowd = self.users.crowd(wish, concurrency, seed);
        crowd.begun(concurrency).await?;
        let before = self.cluster.processor_seconds()?;
        let (num_tokens, seconds) = crowd.count_for(self.window).await?;
        let cores = (self.cluster.processor_seconds()? - before) / seconds;
        ensure!(num_tokens > 0.0, "nothing was answered within {:?}", self.window);
        drop(crowd);
        tokio::time::sleep(CALM).await;
        // Prompts count among what arrives, and not in plans.
        let answer = f64::from(self.answer);
        let share = answer / (answer + SHORT_PROMPT as f64);
        Ok((num_tokens * share / seconds, cores))
    }
}
