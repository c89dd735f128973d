//! `kills`: a batch is run again and again, and each time its coordinator is killed.

use clap::Parser;
use tests::batch_runs::{Report, Runs, run_with_kills};
use tests::cluster::Options;
use tests::golden;

/// Runs a batch again and again, with kill -9 of the coordinator at random moments in each run, and
/// of a node at a quarter of them, and compares every output with an undisturbed run's.
#[derive(Parser)]
struct Arguments {
    /// How often the batch is run.
    #[arg(long, default_value = "3")]
    runs: usize,
    /// How often the coordinator is killed in each run.
    #[arg(long, default_value = "1")]
    kills: usize,
    /// Lines of the batch.
    #[arg(long, default_value = "5000")]
    lines: usize,
    /// Decides when.
    #[arg(long, default_value = "1")]
    seed: u64,
    /// Nodes of the cluster.
    #[arg(long, default_value = "1")]
    nodes: u32,
}

#[tokio::main]
async fn main() {
    let Arguments { runs, kills, lines, seed, nodes } = Arguments::parse();
    // Many lines are under way at every kill, and a small model's steps cost less a line.
    let options = Options::new(golden::model("glass-en")).nodes(nodes, nodes);
    let options = options.config("[scheduler]\nmax_num_seqs = 128\nmax_batched_tokens = 1024\n");
    let wanted = Runs { num: runs, kills_each: kills, num_lines: lines, seed };
    let Report { num_kills, num_killed_nodes, mut at_kill, mut recoveries } =
        run_with_kills(options, wanted).await;
    at_kill.sort_unstable();
    recoveries.sort_unstable();
    println!("{runs} runs, {num_kills} kills of the coordinator, {num_killed_nodes} of a node");
    println!("every line once, every output as undisturbed");
    println!("lines durable at the kill: {at_kill:?}");
    println!("from the kill to the next durable line: {recoveries:?}");
}
