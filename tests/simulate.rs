//! `cargo run -p tests --bin simulate`: the scheduler in virtual time.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use coordinator::request::Priority;
use protocol::config::RunAhead;
use tests::simulation::scenario::{NodeSpec, Scenario};
use tests::simulation::{self, Tally, cases, load, measure};

/// Runs the real scheduling core in virtual time, and prints who waited how long.
#[derive(Debug, Parser)]
struct Arguments {
    /// Scenarios to run, each as its seed decides: load, cluster, and what breaks.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Whether steps run ahead, whatever the seed decides: auto, on or off.
    #[arg(long)]
    run_ahead: Option<RunAhead>,
    /// Prints everything that the core hears and says.
    #[arg(long)]
    log: bool,
    /// Requests to run instead, a JSON object in each line: {"timestamp": 27, "input_length": 64,
    /// "output_length": 20}, the first in milliseconds; also priority, tenant, weight,
    /// deadline_ms, choices, and hash_ids.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Who decides about them: ours, first-come, or cap:N, which keeps offline requests outside
    /// but for N. Several are compared.
    #[arg(long, value_delimiter = ',', default_value = "ours")]
    policy: Vec<Policy>,
    /// Stages of the trace's pipelines.
    #[arg(long, default_value_t = 2)]
    stages: u32,
    /// Replicas among which one queue is shared out.
    #[arg(long, default_value_t = 1)]
    pipelines: u32,
    /// Blocks of 16 tokens in each pipeline's cache.
    #[arg(long, default_value_t = 4096)]
    blocks: u32,
    /// Tokens of the longest sequence.
    #[arg(long, default_value_t = 32_768)]
    max_model_len: u32,
    /// A file like cluster.toml, of which `[scheduler]` counts.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Microseconds of a step at a stage that holds the whole model.
    #[arg(long, default_value_t = 8000)]
    step_us: u64,
    /// Microseconds more for each token.
    #[arg(long, default_value_t = 200)]
    token_us: u64,
    /// Microseconds more for each thousand positions that attention reads.
    #[arg(long, default_value_t = 50)]
    context_us: u64,
    /// Microseconds from one machine to the next.
    #[arg(long, default_value_t = 200)]
    hop_us: u64,
    /// Measures what the core itself costs instead: deciding on a step, by how many wait, and the
    /// memory of those.
    #[arg(long)]
    schedule: bool,
    /// Kills the machine of every stage at every token instead, with one to four stages.
    #[arg(long)]
    crashes: bool,
}

/// Who decides who is next.
#[derive(Clone, Copy, Debug)]
enum Policy {
    Ours,
    FirstCome,
    Cap(usize),
}

impl std::str::FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("cap:").map(str::parse)) {
            ("ours", _) => Ok(Self::Ours),
            ("first-come", _) => Ok(Self::FirstCome),
            (_, Some(Ok(max))) if max > 0 => Ok(Self::Cap(max)),
            _ => Err("choose ours, first-come or cap:N".into()),
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.trace {
        _ if arguments.schedule => schedule(),
        _ if arguments.crashes => crashes(&arguments),
        Some(path) => trace(&arguments, path),
        None => seeds(&arguments),
    }
}

/// Runs so many seeds and says what went wrong.
fn seeds(arguments: &Arguments) -> Result<()> {
    let (first, num) = (arguments.seed, arguments.seeds);
    if !arguments.log {
        std::panic::set_hook(Box::new(|_| {}));
    }
    let (start, mut tally, mut violations) = (Instant::now(), Tally::default(), 0);
    for seed in first..first + num {
        let mut scenario = Scenario { log: arguments.log, ..Scenario::of_seed(seed) };
        let run_ahead = &mut scenario.config.scheduler.run_ahead;
        *run_ahead = arguments.run_ahead.unwrap_or(*run_ahead);
        let outcome = simulation::run(&scenario);
        if let Some(violation) = &outcome.violation {
            violations += 1;
            eprintln!("{}", simulation::replay(seed, violation));
        }
        tally.add(&outcome.tally);
    }
    println!("{}", tally.table());
    let took = start.elapsed().as_secs_f64();
    println!(
        "{num} runs of {} events in {took:.1} s ({:.0} a minute), {violations} violations",
        tally.num_events,
        num as f64 * 60.0 / took
    );
    if violations > 0 {
        bail!("{violations} of {num} runs went wrong");
    }
    Ok(())
}

/// Runs a trace under each policy.
fn trace(arguments: &Arguments, path: &Path) -> Result<()> {
    for policy in &arguments.policy {
        let scenario = scenario(arguments, path, *policy)?;
        let outcome = simulation::run(&scenario);
        println!("policy {policy:?}\n{}\n", outcome.tally.table());
        if let Some(violation) = outcome.violation {
            bail!("{violation}");
        }
    }
    Ok(())
}

fn scenario(arguments: &Arguments, path: &Path, policy: Policy) -> Result<Scenario> {
    let mut scenario = Scenario::calm(arguments.seed, arguments.stages, arguments.pipelines, 0);
    if let Some(path) = &arguments.config {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("can't read {}", path.display()))?;
        scenario.config.scheduler = protocol::Config::parse(&text)?.scheduler;
    }
    scenario.max_model_len = arguments.max_model_len;
    let node = NodeSpec { num_blocks: arguments.blocks, class: 1, joins_at: Duration::ZERO };
    scenario.nodes.fill(node);
    let cost = &mut scenario.cost;
    cost.fixed = Duration::from_micros(arguments.step_us);
    cost.per_token = Duration::from_micros(arguments.token_us);
    cost.per_context = Duration::from_micros(arguments.context_us);
    cost.hop = Duration::from_micros(arguments.hop_us);
    let file = File::open(path).with_context(|| format!("can't read {}", path.display()))?;
    scenario.bodies = load::trace(BufReader::new(file), arguments.max_model_len)
        .with_context(|| path.display().to_string())?;
    // The cluster is there before anybody comes.
    let loaded = Duration::from_secs(2);
    scenario.bodies.iter_mut().for_each(|body| body.at += loaded);
    match policy {
        Policy::Ours => {}
        Policy::Cap(max) => scenario.max_offline = Some(max),
        Policy::FirstCome => {
            let scheduler = &mut scenario.config.scheduler;
            (scheduler.aging_ms, scheduler.min_share) = (0, 0.0);
            for ask in scenario.bodies.iter_mut().flat_map(|body| &mut body.asks) {
                (ask.sent_as, ask.tenant) = (Some(Priority::Standard), "".into());
            }
        }
    }
    Ok(scenario)
}

/// Every token index, every stage, one to four stages.
fn crashes(arguments: &Arguments) -> Result<()> {
    let (start, mut num) = (Instant::now(), 0);
    for mut scenario in cases::crashes() {
        let run_ahead = &mut scenario.config.scheduler.run_ahead;
        *run_ahead = arguments.run_ahead.unwrap_or(*run_ahead);
        let outcome = simulation::run(&scenario);
        if let Some(violation) = outcome.violation {
            bail!("{:?}: {violation}", scenario.faults);
        }
        num += 1;
    }
    println!("{num} crashes in {:.1} s, no violations", start.elapsed().as_secs_f64());
    Ok(())
}

/// What the core itself costs.
fn schedule() -> Result<()> {
    // First, while nothing else has taken memory that could be taken again.
    let (bytes, put, pop) = measure::waiting(1_000_000)?;
    println!(
        "{}\n1000000 waiting requests take {:.1} MiB beside their prompts",
        measure::build(),
        bytes as f64 / 1048576.0,
    );
    println!("  {:.2} us to put one in, {:.2} us to take one out", micros(put), micros(pop));
    for num in [1_000, 10_000, 100_000] {
        let (_, put, pop) = measure::waiting(num)?;
        println!("  of {num}: {:.2} us, {:.2} us", micros(put), micros(pop));
    }
    println!("one step's schedule");
    for num_waiting in [0, 1_000, 10_000, 100_000, 1_000_000] {
        println!("  {}", measure::schedules(num_waiting, 2000)?.line(num_waiting));
    }
    Ok(())
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
