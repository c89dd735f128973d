//! `autoglm-bench`: asks OpenAI-compatible servers and measures how they answer; times models and
//! kernels on this machine's adapter.

mod model_command;
mod quality_command;
mod terminal;

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bench::client::Server;
use bench::load::{Load, Progress};
use bench::request::{Endpoint, Parameters, Prompt};
use bench::{kernels, prompts, report};
use clap::{Parser, Subcommand};
use model_command::{ModelArguments, RandomModelArguments, time_model, write_random_model};
use quality_command::{QualityArguments, compare_formats};
use shaders::gpu::{Gpu, GpuOptions};
use shaders::weights::Format;
use terminal::{dim, say, show};

/// Measures OpenAI-compatible servers, models and kernels.
#[derive(Parser)]
#[command(name = "autoglm-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sends many prompts at once and prints how fast they were answered.
    Load(LoadArguments),
    /// Asks one question and prints the answer as it arrives.
    Ask(AskArguments),
    /// Times the kernels on this machine's adapter, beside what the adapter could do.
    Kernels(KernelsArguments),
    /// Times a whole model on this machine's adapter: prompts, answers, batches.
    Model(ModelArguments),
    /// Compares what a model says in int8 and int4 with what it says in its own format.
    Quality(QualityArguments),
    /// Writes a GGUF file of a published shape with random weights.
    RandomModel(RandomModelArguments),
}

#[derive(clap::Args)]
struct ServerArguments {
    /// The server's address, with or without /v1.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    /// The model's name [default: the first that the server lists].
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// `chat`, or `completions` for a model without a chat template.
    #[arg(long, default_value = "chat")]
    endpoint: Endpoint,
    /// Sampling temperature [default: the server's].
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Seconds that one answer may take.
    #[arg(long, value_name = "SECONDS", default_value = "600")]
    timeout: NonZeroU64,
}

#[derive(clap::Args)]
struct LoadArguments {
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

#[derive(clap::Args)]
struct AskArguments {
    #[command(flatten)]
    server: ServerArguments,
    /// Tokens of the answer, at most.
    #[arg(long, value_name = "N", default_value = "256")]
    max_tokens: NonZeroU32,
    /// What to ask; with `--endpoint completions`, the text to go on from.
    question: String,
}

#[derive(clap::Args)]
struct KernelsArguments {
    /// Which adapter: its number, or a part of its name [default: the fastest kind there is].
    #[arg(long, value_name = "NAME|INDEX")]
    adapter: Option<String>,
    /// Formats of weights.
    #[arg(long, value_delimiter = ',', value_parser = format, default_value = "f16,bf16,int8,int4")]
    formats: Vec<Format>,
    /// Shapes of weights: values of a row, rows.
    #[arg(long, value_name = "KxN", value_delimiter = ',', value_parser = shape,
          default_value = "2048x2048,4096x4096")]
    shapes: Vec<(usize, usize)>,
    /// Rows multiplied at once.
    #[arg(long, value_name = "ROWS", value_delimiter = ',', default_value = "1,4,16,64,512",
          value_parser = clap::value_parser!(u32).range(1..=65_535))]
    rows: Vec<u32>,
    /// Rounds, of which medians are taken.
    #[arg(long, value_name = "N", default_value = "5")]
    rounds: NonZeroUsize,
    /// Where to write the result as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn format(text: &str) -> Result<Format, String> {
    let name = |format: &Format| format!("{format:?}").to_lowercase();
    let known = Format::ALL.iter().map(name).collect::<Vec<_>>().join(", ");
    Format::ALL
        .into_iter()
        .find(|format| name(format) == text)
        .ok_or_else(|| format!("choose among {known}"))
}

fn shape(text: &str) -> Result<(usize, usize), String> {
    let number = |text: &str| text.parse().ok().filter(|number| (1..=1 << 20).contains(number));
    let (k, n) = text.split_once('x').ok_or("give KxN, as in 4096x4096")?;
    match (number(k), number(n)) {
        (Some(k), Some(n)) if k % 4 == 0 => Ok((k, n)),
        _ => Err("K must be a multiple of 4, both from 1 to 1048576".to_owned()),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("no async runtime")
        .and_then(|runtime| match arguments.command {
            Command::Load(arguments) => runtime.block_on(load(arguments)),
            Command::Ask(arguments) => runtime.block_on(ask(arguments)),
            Command::Kernels(arguments) => time_kernels(&arguments),
            Command::Model(arguments) => time_model(&arguments),
            Command::Quality(arguments) => compare_formats(&arguments),
            Command::RandomModel(arguments) => write_random_model(&arguments),
        });
    match ended {
        Ok(code) => code,
        Err(cause) => {
            eprintln!("autoglm-bench: {cause:#}");
            ExitCode::FAILURE
        }
    }
}

async fn load(arguments: LoadArguments) -> Result<ExitCode> {
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

async fn ask(arguments: AskArguments) -> Result<ExitCode> {
    let (server, parameters) = arguments.server.resolve(arguments.max_tokens).await?;
    let body = parameters.body(&Prompt::Text(arguments.question.clone()))?;
    if parameters.endpoint == Endpoint::Completions {
        say(&dim(&arguments.question));
    }
    let answered = server.ask(parameters.endpoint, &body, say).await;
    say("\n");
    let answer = answered?;
    let mut facts = vec![format!("{} tokens", answer.num_tokens())];
    if let Some(first) = answer.first_token() {
        facts.push(format!("first token after {}", report::time(first.as_secs_f64() * 1e3)));
    }
    if let Some(time) = answer.time_per_token().filter(|time| !time.is_zero()) {
        facts.push(format!("then {:.1} tokens/s", 1.0 / time.as_secs_f64()));
    }
    say(&format!("{}\n", dim(&facts.join(" · "))));
    Ok(ExitCode::SUCCESS)
}

fn time_kernels(arguments: &KernelsArguments) -> Result<ExitCode> {
    let gpu = Gpu::open_with(arguments.adapter.as_deref(), GpuOptions::kept())?;
    let options = kernels::Options {
        formats: arguments.formats.clone(),
        shapes: arguments.shapes.clone(),
        batches: arguments.rows.iter().map(|&rows| rows as usize).collect(),
        num_rounds: arguments.rounds.get(),
    };
    let (limits, measured) = kernels::measure(&gpu, &options, |done, all| {
        eprintln!("{}", dim(&format!("round {done} of {all}")));
    })?;
    let info = gpu.info();
    let adapter = format!("{}, {}, {}", info.name, info.driver, info.backend);
    say(&kernels::table(&adapter, &limits, &measured));
    if let Some(path) = &arguments.json {
        let json = format!("{:#}\n", kernels::report(&adapter, &limits, &measured));
        std::fs::write(path, json).with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl ServerArguments {
    /// The server and what to ask it, the model's name asked for if it isn't given.
    async fn resolve(self, max_tokens: NonZeroU32) -> Result<(Server, Parameters)> {
        let server = Server::new(&self.url, Duration::from_secs(self.timeout.get()))?;
        let model = match self.model {
            Some(model) => model,
            None => server.first_model().await?,
        };
        let parameters = Parameters {
            model,
            endpoint: self.endpoint,
            max_tokens: max_tokens.get(),
            temperature: self.temperature,
            ignore_eos: false,
        };
        Ok((server, parameters))
    }
}
