//! `autoglm-bench load`.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use bench::load::{Load, Progress, prompts, report};

use super::server::ServerArguments;
use super::terminal::{say, show};

#[derive(clap::Args)]
pub(crate) struct LoadArguments {
    #[command(flatten)]
    server: ServerArguments,
    /// Requests to send.
    #[arg(long, value_name = "N")]
    requests: NonZeroUsize,
    /// Requests in flight: when one ends, the next one starts.
    #[arg(long, value_name = "C")]
    concurrency: NonZeroUsize,
    /// Tokens of an answer, at most.
    #[arg(long, value_name = "N", default_value = "64")]
    max_tokens: NonZeroU32,
    /// Asks the server to go on to --max-tokens whatever the model says.
    #[arg(long)]
    ignore_eos: bool,
    /// Prompts, one a line: text, or JSON with `prompt` or `messages` [default: a built-in list].
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Where to write the result as JSON, under the names that vllm bench uses.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Decides the order of the prompts, and is sent with each request (plus its number).
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
}

pub(crate) async fn load(arguments: LoadArguments) -> Result<ExitCode> {
    let (server, mut parameters) = arguments.server.resolve(arguments.max_tokens).await?;
    parameters.ignore_eos = arguments.ignore_eos;
    let prompts = match &arguments.prompts {
        Some(path) => prompts::read(path)?,
        None => prompts::built_in(parameters.endpoint),
    };
    let load = Load {
        parameters,
        prompts,
        num_requests: arguments.requests.get(),
        concurrency: arguments.concurrency.get(),
        seed: arguments.seed,
    };
    let progress = Arc::new(Progress::default());
    let interrupted = async {
        // Without the signal's handler ctrl-c just ends us.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let measured = tokio::select! {
        measured = load.run(&server, &progress, interrupted) => measured?,
        never = show(progress.clone(), load.num_requests) => match never {},
    };
    say(&report::table(&measured));
    if let Some(path) = &arguments.json {
        let json = format!("{:#}\n", report::json(&load, &measured));
        std::fs::write(path, json).with_context(|| format!("can't write {}", path.display()))?;
    }
    let whole = measured.metrics.num_failed() == 0 && !measured.interrupted;
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
