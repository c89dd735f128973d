//! `autoglm-bench interference`.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use bench::cluster::Setup;
use bench::engine::random_model::Storage;
use bench::interference::{Figures, Rounds, Scenario};
use bench::users::{Users, Wish};
use loadgen::numbers::parse_time;
use serde_json::json;

use super::model::find_or_write;
use super::terminal::{dim, say, write_json};

#[derive(clap::Args)]
pub(crate) struct InterferenceArguments {
    /// A model directory, a GGUF file, or a shape to be filled with random weights.
    #[arg(long, value_name = "PATH|SHAPE", default_value = "smollm2-135m")]
    model: String,
    /// Stages of the pipeline, a node process for each.
    #[arg(long, value_name = "S", default_value = "2")]
    stages: NonZeroU32,
    /// Rounds, each of them undisturbed, offline alone and disturbed.
    #[arg(long, value_name = "N", default_value = "3")]
    rounds: NonZeroUsize,
    /// Interactive requests of a round, each of 128 tokens and answered by 16. Whoever has an hour
    /// takes 100.
    #[arg(long, value_name = "N", default_value = "20")]
    requests: NonZeroUsize,
    /// Time that passes before an interactive request, on the average.
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "1s")]
    think: Duration,
    /// Offline requests that are computed at once, each of 32 tokens and answered by 96.
    #[arg(long, value_name = "N", default_value = "32")]
    running: NonZeroUsize,
    /// Offline requests that wait beside them.
    #[arg(long, value_name = "N", default_value = "8")]
    waiting: usize,
    /// How long offline work alone is measured in a round.
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "30s")]
    alone: Duration,
    /// Lines of cluster.toml for our cluster's scheduler, as in target_step_ms=50.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where to write the result as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) async fn interference(arguments: InterferenceArguments) -> Result<ExitCode> {
    let (model, _scratch) = find_or_write(&arguments.model, Storage::Q4_1)?;
    let mut setup = Setup::new(model, arguments.stages.get());
    setup.config = format!("[scheduler]\nmax_num_seqs = {}\n", arguments.running);
    for line in &arguments.set {
        setup.config += &format!("{line}\n");
    }
    let work = Scenario {
        interactive: Wish { prompt: 128, answer: 16, tier: Some("interactive") },
        num_requests: arguments.requests.get(),
        think: arguments.think,
        offline: Wish { prompt: 32, answer: 96, tier: Some("batch") },
        num_running: arguments.running.get(),
        alone: arguments.alone,
    };
    let crowd = arguments.running.get() + arguments.waiting;
    eprintln!("{}", dim("starting a cluster"));
    let cluster = setup.start().await?;
    let users = Users::of(cluster.url()).await?;
    // Caches fill, and what sleeps wakes: it counts for nothing.
    let few = Scenario { num_requests: 2, alone: Duration::from_secs(2), ..work };
    few.undisturbed(&users, 0).await?;
    few.offline(&users, crowd, 0).await?;
    let mut measured = Rounds::default();
    for round in 1..=arguments.rounds.get() as u64 {
        measured.undisturbed.push(work.undisturbed(&users, round).await?);
        measured.offline.push(work.offline(&users, crowd, round).await?);
        // Never a prompt that was asked before.
        let number = round + (crowd as u64) * 1000;
        measured.disturbed.push(work.disturbed(&users, crowd, number).await?);
        let table = measured.figures().table();
        say(&format!("\nround {round} of {}, all so far\n{table}", arguments.rounds));
    }
    cluster.end().await;
    let figures = measured.figures();
    say(&summary(&figures, &arguments));
    write_json(
        arguments.json.as_deref(),
        &json!({ "percentiles": [50, 95], "figures": figures, "rounds": measured }),
    )?;
    Ok(ExitCode::SUCCESS)
}

fn summary(figures: &Figures, arguments: &InterferenceArguments) -> String {
    let kept = |is_kept| if is_kept { "kept" } else { "missed" };
    let [_, ratio] = figures.ttft_ratio;
    format!(
        "\n{} rounds of {} interactive requests over {} stages, {} offline requests running\n  \
         p95 of the time to a first token: {ratio:.2}x the undisturbed (at most 2: {})\n  \
         tokens of all: {:.1} % of offline work alone (at least 95: {})\n  \
         tokens of offline work: {:.1} % of alone (at least 75: {})\n",
        arguments.rounds,
        arguments.requests,
        arguments.stages,
        arguments.running,
        kept(ratio <= 2.0),
        figures.all_share * 100.0,
        kept(figures.all_share >= 0.95),
        figures.offline_share * 100.0,
        kept(figures.offline_share >= 0.75),
    )
}
