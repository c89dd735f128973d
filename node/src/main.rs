//! `autoglm-node`: gives this machine's GPUs to a cluster.

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::builder::RangedI64ValueParser;
use node::doctor;
use node::joining::{advertised, label};
use node::run::{Options, run};
use protocol::config::{Log, LogFormat, Traces};
use protocol::size::parse_size;
use protocol::{Address, OLDEST_WIRE_VERSION, WIRE_VERSION};
use shaders::products::Wanted;
use telemetry::{Service, Tracer};
use tokio_util::sync::CancellationToken;
use transport::Token;

/// Joins a cluster and computes the layers that it is given.
#[derive(Parser)]
#[command(
    name = "autoglm-node",
    version,
    after_help = "autoglm-node doctor says what would keep this machine from being a node."
)]
struct Arguments {
    /// The coordinator's address, as in coordinator:7000, or several: the first that answers.
    #[arg(long, value_name = "HOST:PORT,..", value_delimiter = ',', required = true)]
    join: Vec<Address>,
    /// What proves that this node may join: AGJ1. and so on [default: what the token file says].
    #[arg(long, value_name = "TOKEN", env = "AUTOGLM_JOIN_TOKEN", hide_env_values = true)]
    token: Option<Token>,
    /// A file that holds it [default: where a coordinator of yours on this machine keeps it, or
    /// /etc/autoglm/join.token].
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The pool that the node is to be in; a token for another is refused [default: the token's].
    #[arg(long, value_name = "POOL", default_value = "", hide_default_value = true)]
    pool: String,
    /// What you say of the node, as in rack=7; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Where other nodes reach this one [default: where the coordinator sees it].
    #[arg(long, value_name = "ADDR", value_parser = advertised)]
    advertise: Option<IpAddr>,
    /// Where the node's identity is kept [default: under your home directory].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where weights are kept that came from other members of the cluster [default: cache in the
    /// data directory].
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Bytes that they may take, as in 100GiB: models unused for longest give way [default: what
    /// the disk has].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    cache_size: Option<u64>,
    /// Fetch weights even where the model's files are at hand.
    #[arg(long, env = "AUTOGLM_NO_LOCAL_FILES")]
    no_local_files: bool,
    /// The adapter to use: part of its name, or its number [default: every GPU].
    #[arg(long, value_name = "NAME|INDEX")]
    adapter: Option<String>,
    /// Memory that layers and KV cache may take on each adapter, as in 6GiB [default: what the
    /// driver says; on a software driver half of what is available].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_memory: Option<u64>,
    /// Seconds that what the node holds may take to go elsewhere when it is asked to end (SIGTERM,
    /// ctrl-c); a second signal ends it at once.
    #[arg(long, value_name = "SECONDS", default_value = "120")]
    drain_timeout: u64,
    /// How products are computed, each a device class of its own. plain: in f32. packed-dot: of
    /// integer weights by packed int8 dot products (dp4a), with activations rounded to eight bits,
    /// of others in f32. cooperative-matrix: of f16 and bf16 weights by cooperative matrices
    /// (tensor cores), with operands rounded to f16 and sums in f32, and so attention, whatever
    /// the weights are; of integer ones by packed dot products where the adapter has an instruction
    /// for them; of others in f32. Refused where the adapter can't. auto: packed-dot where the
    /// adapter has that instruction and computes it right, else plain.
    #[arg(
        long,
        value_name = "auto|plain|cooperative-matrix|packed-dot",
        default_value = "auto",
        env = "AUTOGLM_PRODUCTS"
    )]
    products: Wanted,
    /// How a line of the log looks.
    #[arg(long, value_name = "text|json", default_value = "text")]
    log_format: LogFormat,
    /// A collector that takes OTLP over HTTP, as in http://127.0.0.1:4318: spans of the steps of
    /// traced requests go there [default: none].
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Speak no newer wire version, as the release before would.
    #[arg(long, hide = true, default_value_t = WIRE_VERSION, value_parser = wire_version())]
    wire_version: u16,
    /// End when standard input does: the coordinator that started this process holds its other end.
    #[arg(long, hide = true)]
    exit_with_coordinator: bool,
}

/// One that this release speaks.
fn wire_version() -> RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(i64::from(OLDEST_WIRE_VERSION)..=i64::from(WIRE_VERSION))
}

fn main() -> ExitCode {
    // It needs no coordinator, so it has flags of its own.
    if std::env::args_os().nth(1).is_some_and(|word| word == "doctor") {
        return doctor();
    }
    let arguments = Arguments::parse();
    telemetry::init_logs(&Log { format: arguments.log_format, ..Log::default() });
    let tracer = match tracer(arguments.otlp_endpoint) {
        Ok(tracer) => tracer,
        Err(cause) => {
            eprintln!("autoglm-node: --otlp-endpoint: {cause:#}");
            return ExitCode::from(2);
        }
    };
    let options = Options {
        coordinators: arguments.join,
        pool: arguments.pool,
        labels: arguments.labels,
        advertise: arguments.advertise,
        token: arguments.token,
        token_file: arguments.token_file,
        data_dir: arguments.data_dir,
        cache_dir: arguments.cache_dir,
        cache_size: arguments.cache_size.unwrap_or(u64::MAX),
        no_local_files: arguments.no_local_files,
        adapter: arguments.adapter,
        max_memory: arguments.max_memory,
        products: arguments.products,
        wire_version: arguments.wire_version,
        exit_with_coordinator: arguments.exit_with_coordinator,
        drain_timeout: Duration::from_secs(arguments.drain_timeout),
        hurry: CancellationToken::new(),
        tracer: tracer.clone(),
    };
    let is_child = options.exit_with_coordinator;
    let ended = serve(options);
    tracer.shut_down();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("autoglm-node: {cause:#}");
            if is_child {
                // Last words, for the coordinator to say what it waits for. It may be gone.
                let _ = writeln!(std::io::stdout(), "{cause:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn doctor() -> ExitCode {
    let arguments = doctor::Arguments::parse_from(std::env::args_os().skip(1));
    match arguments.run(&mut std::io::stdout()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(cause) => {
            eprintln!("autoglm-node doctor: {cause:#}");
            ExitCode::FAILURE
        }
    }
}

fn tracer(endpoint: Option<String>) -> anyhow::Result<Tracer> {
    let traces = Traces { endpoint: endpoint.unwrap_or_default(), ..Traces::default() };
    traces.check()?;
    Tracer::open(&traces, &Service { name: "autoglm-node", version: env!("CARGO_PKG_VERSION") })
}

fn serve(options: Options) -> anyhow::Result<()> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // Steps are computed by threads of the adapters: what is left is moving frames, one after
    // another, and waking a second worker for it takes longer than the work.
    transport::ticks::begin();
    let runtime = runtime.worker_threads(1).enable_all().build()?;
    let shutdown = shutdown_signal(options.exit_with_coordinator, options.hurry.clone());
    let ended = runtime.block_on(run(options, shutdown));
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// Resolves at ctrl-c or SIGTERM, which asks the node to drain and end; in a child also when its
/// coordinator is gone. Then, and at a second signal, nothing is to be waited for.
async fn shutdown_signal(is_child: bool, hurry: CancellationToken) {
    let parent_gone =
        async { if is_child { node::parent::gone().await } else { std::future::pending().await } };
    tokio::select! {
        () = asked_to_end() => {
            tokio::spawn(async move {
                asked_to_end().await;
                hurry.cancel();
            });
        }
        () = parent_gone => hurry.cancel(),
    }
}

async fn asked_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
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
