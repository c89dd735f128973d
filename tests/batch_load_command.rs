//! `batch-load`: what batches cost those who wait for answers, and what waiting would have saved.

use std::path::PathBuf;

use clap::Parser;
use tests::batch_load::{interference, throughput};
use tests::cluster::Options;
use tests::golden;

/// Measures batches on a cluster of real processes: first tokens of somebody who waits beside ten
/// jobs of two tenants, and the tokens a second of a job against the same requests at
/// /v1/completions, in turn.
#[derive(Parser)]
struct Arguments {
    /// A model's folder or file, or the name of one in tests/models.
    #[arg(long, default_value = "glass-en")]
    model: PathBuf,
    /// Nodes of the cluster, a stage on each.
    #[arg(long, default_value = "2")]
    nodes: u32,
    /// Jobs, half of them of each tenant; 0: not measured.
    #[arg(long, default_value = "10")]
    jobs: usize,
    /// Requests of somebody who waits, alone and beside the jobs.
    #[arg(long, default_value = "40")]
    requests: usize,
    /// Times that a job and the same requests at /v1/completions are measured.
    #[arg(long, default_value = "5")]
    rounds: usize,
    /// Lines of that job.
    #[arg(long, default_value = "1000")]
    lines: usize,
    /// Requests at once at /v1/completions.
    #[arg(long, value_delimiter = ',', default_value = "64,128")]
    concurrency: Vec<usize>,
}

#[tokio::main]
async fn main() {
    let Arguments { model, nodes, jobs, requests, rounds, lines, concurrency } = Arguments::parse();
    let options = Options::new(golden::model_or_path(model)).nodes(nodes, nodes);
    if jobs > 1 {
        println!("{}", interference(options.clone(), jobs, requests).await);
    }
    if rounds > 0 {
        println!("{}", throughput(options, lines, &concurrency, rounds).await);
    }
}
