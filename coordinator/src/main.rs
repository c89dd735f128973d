//! `autoglm`: serves a model on the nodes that join.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::builder::RangedI64ValueParser;
use clap::{Parser, Subcommand};
use coordinator::operator::{self, Show};
use coordinator::serve::{self, Misconfigured};
use coordinator::{batch_job, data_dir, doctor, explain, hand_over, keys, plan, tokens, top};
use protocol::config::{
    Config, CountRange, GenerationConfig, KvCacheDtype, LogFormat, MetricsCompat, Quantize,
};
use protocol::{Address, OLDEST_WIRE_VERSION, WIRE_VERSION};
use telemetry::{Service, Tracer};

/// Serves GLM language models on the GPUs you own.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Coordinates a cluster and answers the OpenAI API.
    Serve(ServeArguments),
    /// Makes, lists and revokes API keys.
    Key(keys::command::Arguments),
    /// Makes, lists and revokes join tokens.
    Token(tokens::command::Arguments),
    /// Says what keeps this machine, its nodes and links from serving, and what to do about it.
    Doctor(doctor::Arguments),
    /// How it is with a running cluster, and what it waits for.
    Status(operator::ShowArguments),
    /// All of that in a terminal, once a second.
    Top(top::Arguments),
    /// Its nodes.
    Nodes(operator::ShowArguments),
    /// Its pipelines and their stages.
    Pipelines(operator::ShowArguments),
    /// Cordons, uncordons and drains a node.
    Node(operator::NodeArguments),
    /// Says why a request waits or waited.
    Explain(explain::Arguments),
    /// Many requests at once, from data to data.
    #[command(subcommand)]
    Batch(BatchCommand),
    /// Shows which node would get which layers, and how fast that would be.
    Plan(plan::Arguments),
}

#[derive(Subcommand)]
enum BatchCommand {
    /// Reads rows of a file or table, asks a running server about each, and writes the answers.
    #[command(disable_help_flag = true)]
    Run {
        /// What the program that does it is told: --help shows it.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    #[command(flatten)]
    Jobs(batch_job::command::Command),
}

#[derive(clap::Args)]
struct ServeArguments {
    /// A Hugging Face directory or a GGUF file.
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// The model's name in the API [default: the name that the files carry].
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// Round weights while they are loaded [default: none].
    #[arg(long, value_name = "none|int8|int4")]
    quantize: Option<Quantize>,
    /// Store keys and values in this type [default: auto, which is f32].
    #[arg(long, value_name = "auto|f32|f16")]
    kv_cache_dtype: Option<KvCacheDtype>,
    /// Sampling parameters of requests that name none: the model's own, or the API's [default:
    /// auto].
    #[arg(long, value_name = "auto|none")]
    generation_config: Option<GenerationConfig>,
    /// Node processes to run on this machine; of a range, as many as the pipelines need [default:
    /// none, wait for nodes to join].
    #[arg(long, value_name = "N|MIN..MAX")]
    local_nodes: Option<CountRange>,
    /// Stages of the pipeline [default: 0, one on each adapter].
    #[arg(long, value_name = "N")]
    stages: Option<u32>,
    /// Pipelines of the model, where there are nodes for them; of a range, as many as the load
    /// needs; 0: placement decides [default: 1].
    #[arg(long, value_name = "N|MIN..MAX")]
    pipelines: Option<CountRange>,
    /// Where the API listens [default: 127.0.0.1:8000].
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<Address>,
    /// The file of API keys, as `autoglm key` writes it [default: keys.toml in the data directory,
    /// where there is one].
    #[arg(long, value_name = "FILE")]
    api_keys: Option<PathBuf>,
    /// Let the API listen beyond loopback without keys, open to whoever reaches it.
    #[arg(long)]
    allow_anonymous: bool,
    /// Where nodes join, UDP [default: 127.0.0.1:7000].
    #[arg(long, value_name = "HOST:PORT")]
    cluster: Option<Address>,
    /// Where certificates, the join token and the start counter are kept [default: under your home
    /// directory].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// How a line of the log looks [default: text].
    #[arg(long, value_name = "text|json")]
    log_format: Option<LogFormat>,
    /// A collector that takes OTLP over HTTP, as in http://127.0.0.1:4318: requests are traced, in
    /// local nodes too [default: none].
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Names of another server under which metrics are told as well [default: none].
    #[arg(long, value_name = "none|vllm")]
    metrics_compat: Option<MetricsCompat>,
    /// A file of the form of cluster.toml; flags win over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Speak no newer wire version, as the release before would.
    #[arg(long, hide = true, default_value_t = WIRE_VERSION, value_parser = wire_version())]
    wire_version: u16,
}

/// One that this release speaks.
fn wire_version() -> RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(i64::from(OLDEST_WIRE_VERSION)..=i64::from(WIRE_VERSION))
}

impl ServeArguments {
    fn config(self) -> Result<Config> {
        let mut config = data_dir::config(self.config.as_deref())?;
        fn set<T>(value: &mut T, flag: Option<T>) {
            if let Some(flag) = flag {
                *value = flag;
            }
        }
        set(&mut config.model.path, self.model);
        set(&mut config.model.name, self.model_name);
        set(&mut config.model.quantize, self.quantize);
        set(&mut config.model.kv_cache_dtype, self.kv_cache_dtype);
        set(&mut config.model.generation_config, self.generation_config);
        set(&mut config.coordinator.stages, self.stages);
        if let Some(local_nodes) = self.local_nodes {
            config.set_local_nodes(local_nodes);
        }
        if let Some(pipelines) = self.pipelines {
            config.set_pipelines(pipelines);
        }
        set(&mut config.coordinator.cluster_addr, self.cluster);
        set(&mut config.coordinator.data_dir, self.data_dir);
        set(&mut config.http.addr, self.http);
        set(&mut config.http.api_keys, self.api_keys);
        set(&mut config.http.allow_anonymous, self.allow_anonymous.then_some(true));
        set(&mut config.log.format, self.log_format);
        set(&mut config.traces.endpoint, self.otlp_endpoint);
        set(&mut config.metrics.compat, self.metrics_compat);
        // A flag may say what no file could.
        config.check()?;
        Ok(config)
    }
}

fn main() -> ExitCode {
    let ended = match Arguments::parse().command {
        Command::Serve(arguments) => {
            let wire_version = arguments.wire_version;
            let config = arguments.config().map_err(|cause| Misconfigured(cause).into());
            config.and_then(|config| run(config, wire_version))
        }
        Command::Doctor(arguments) => match arguments.run(&mut std::io::stdout().lock()) {
            // It has said why.
            Ok(false) => return ExitCode::FAILURE,
            ended => ended.map(drop),
        },
        Command::Status(it) => it.run(Show::Status, &mut std::io::stdout().lock()),
        Command::Nodes(it) => it.run(Show::Nodes, &mut std::io::stdout().lock()),
        Command::Pipelines(it) => it.run(Show::Pipelines, &mut std::io::stdout().lock()),
        Command::Top(arguments) => arguments.run(&mut std::io::stdout().lock()),
        Command::Node(arguments) => arguments.run(&mut std::io::stdout().lock()),
        Command::Explain(arguments) => arguments.run(&mut std::io::stdout().lock()),
        Command::Batch(BatchCommand::Run { arguments }) => hand_over::run(&arguments),
        Command::Batch(BatchCommand::Jobs(it)) => it.run(&mut std::io::stdout().lock()),
        Command::Plan(arguments) => arguments.run(&mut std::io::stdout().lock()),
        Command::Token(arguments) => arguments.run(&mut std::io::stdout().lock()),
        Command::Key(arguments) => arguments.run(&mut std::io::stdout().lock()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("autoglm: {cause:#}");
            ExitCode::from(if cause.is::<Misconfigured>() { 2 } else { 1 })
        }
    }
}

fn run(config: Config, wire_version: u16) -> Result<()> {
    telemetry::init_logs(&config.log);
    let service = Service { name: "autoglm", version: env!("CARGO_PKG_VERSION") };
    let tracer = Tracer::open(&config.traces, &service).map_err(Misconfigured)?;
    transport::ticks::begin();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let serving = serve::serve(config, wire_version, tracer.clone(), shutdown_signal());
    let ended = runtime.block_on(serving);
    // A task that waits for a client must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    tracer.shut_down();
    ended
}

/// Resolves at ctrl-c or SIGTERM.
async fn shutdown_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    // A file that may not grow is a write that fails, not the end of the process.
    let _ = signal(SignalKind::from_raw(nix::sys::signal::Signal::SIGXFSZ as i32));
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}
