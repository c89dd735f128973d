//! `cargo run -p tests --bin chaos`: nodes of a real cluster are killed, frozen and brought back
//! under streams.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tests::chaos::{Fault, Options, run};
use tests::golden;

/// Runs a cluster of real processes under streams, lets things happen to its nodes at random
/// moments, and compares every answer with the undisturbed one.
#[derive(Debug, Parser)]
struct Arguments {
    /// Decides what happens when, and what is asked.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many things happen.
    #[arg(long, default_value_t = 20)]
    kills: usize,
    /// Streams at once.
    #[arg(long, default_value_t = 64)]
    streams: usize,
    /// What happens: kill, stop, partition (needs root), return, second; several, or mix.
    #[arg(long, value_delimiter = ',', default_value = "kill")]
    fault: Vec<String>,
    /// A model's folder or file, or the name of one in tests/models.
    #[arg(long, default_value = "glass-en")]
    model: PathBuf,
    /// Stages of the pipeline, each on a node.
    #[arg(long, default_value_t = 2)]
    stages: u32,
    /// Nodes beyond those: with `second` there should be two.
    #[arg(long, default_value_t = 1)]
    spares: u32,
    /// Things also happen before whoever came back is ready to step in.
    #[arg(long)]
    hasty: bool,
    /// Tokens of the longest answers.
    #[arg(long, default_value_t = 96)]
    max_tokens: u32,
    /// Seconds after which nothing more happens.
    #[arg(long, default_value_t = 3600)]
    seconds: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut faults = Vec::new();
    for name in &arguments.fault {
        match name.parse() {
            Ok(fault) => faults.push(fault),
            Err(_) if name == "mix" => faults.extend(Fault::ALL),
            Err(error) => {
                eprintln!("--fault {name}: {error}");
                return ExitCode::from(2);
            }
        }
    }
    if faults.contains(&Fault::Partition) && !tests::namespaces::are_possible() {
        faults.retain(|fault| *fault != Fault::Partition);
        if faults.is_empty() {
            return ExitCode::SUCCESS;
        }
    }
    let options = Options {
        seed: arguments.seed,
        num_faults: arguments.kills,
        num_streams: arguments.streams,
        faults,
        model: golden::model_or_path(arguments.model),
        stages: arguments.stages,
        spares: arguments.spares,
        is_hasty: arguments.hasty,
        max_tokens: arguments.max_tokens,
        duration: Duration::from_secs(arguments.seconds),
    };
    let report = run(&options).await;
    println!("{report}");
    if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
