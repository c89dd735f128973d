//! `autoglm serve`: everything of the coordinator, started in order and ended in order.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use checkpoint::SamplingDefaults;
use protocol::TokenId;
use protocol::config::{Config, GenerationConfig};
use ractor::{Actor, ActorRef};
use telemetry::Tracer;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use transport::{Authority, Endpoint, Token};

use crate::actor::{Arguments, CoordinatorActor, GateActor, Msg};
use crate::admission::Admission;
use crate::batch_job::BatchJobs;
use crate::chat_template::ChatTemplate;
use crate::cluster::{Cluster, Input, Staffing};
use crate::completion::{Completions, Parsing};
use crate::data_dir::{self, DataDir};
use crate::door::{Door, happened, keep_out};
use crate::durable::Durables;
use crate::engine::Engine;
use crate::http::{self, ApiState};
use crate::keys::Keys;
use crate::local_nodes::{Ended, LocalNodes};
use crate::metrics::Metrics;
use crate::openai::ServedModel;
use crate::sessions::{Probe, Sessions};
use crate::stages::Stages;
use crate::status::Status;
use crate::store::Store;
use crate::tokenizer::Tokenizer;
use crate::tokens::command::CLUSTER_ADDR;
use crate::weights::WeightSource;
use crate::{duty, model, placed, scaling, start_number};

/// What those get who are to hear of the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A configuration that can't work: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
pub struct Misconfigured(pub anyhow::Error);

/// Serves until `shutdown` resolves, then ends cleanly. No newer wire version is spoken than this.
///
/// # Errors
/// A [`Misconfigured`] when it can't start as configured; anything else when it can't go on.
pub async fn serve(
    config: Config,
    wire_version: u16,
    tracer: Tracer,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let keys = Arc::new(api_keys(&config).map_err(Misconfigured)?);
    let listener = listen(&config, &keys).await.map_err(Misconfigured)?;
    let started = start(&config, wire_version, tracer, keys).await;
    let mut started = started.map_err(Misconfigured)?;
    let served = &started.api.model;
    info!(
        model = served.name,
        max_model_len = served.max_model_len,
        http = %listener.local_addr()?,
        cluster = %started.endpoint.local_addr(),
        "serving"
    );

    let api = started.api.clone();
    let (stop_http, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut server = tokio::spawn(http::serve(listener, api, async {
        let _ = stopped.await;
    }));
    let ended = tokio::select! {
        () = shutdown => Ok(()),
        ended = &mut server => Err(match ended.context("the HTTP server panicked")? {
            Ok(()) => anyhow::anyhow!("the HTTP server has ended"),
            Err(cause) => anyhow::Error::from(cause).context("the HTTP server has ended"),
        }),
        cause = started.ended() => Err(cause),
    };

    // No new connections; running answers get their time, the rest an error that says why.
    let _ = stop_http.send(());
    match &ended {
        Ok(()) => {
            info!("shutting down");
            let drain = Duration::from_millis(config.coordinator.drain_timeout_ms);
            if tokio::time::timeout(drain, &mut server).await.is_err() {
                warn!(timeout_ms = drain.as_millis(), "some answers did not end in time");
            }
        }
        // There is nobody to wait for.
        Err(cause) => error!(cause = format!("{cause:#}"), "the coordinator can't go on"),
    }
    started.stop().await;
    // Those who were told that their answer ends here are to hear it.
    if !server.is_finished() {
        let _ = tokio::time::timeout(LAST_WORDS, server).await;
    }
    info!("stopped");
    ended
}

/// The keys of the file that is configured, which has to be there, or of the data directory's.
fn api_keys(config: &Config) -> Result<Keys> {
    let path = data_dir::keys_path(config)?;
    let keys = Keys::open(&path)?;
    anyhow::ensure!(
        keys.are_needed() || config.http.api_keys.as_os_str().is_empty(),
        "there are no API keys in {0}: make one with autoglm key create --name NAME --api-keys {0}",
        path.display()
    );
    Ok(keys)
}

/// Listens on the first address of the host that is free.
async fn listen(config: &Config, keys: &Keys) -> Result<tokio::net::TcpListener> {
    let addr = &config.http.addr;
    let found = transport::resolve(addr).await.context("--http")?;
    anyhow::ensure!(
        keys.are_needed()
            || config.http.allow_anonymous
            || found.iter().all(|addr| addr.ip().is_loopback()),
        "without API keys whoever reaches {addr} could use the model: make keys (autoglm key \
         create) and give --api-keys FILE, or say --allow-anonymous (http.allow_anonymous = true)"
    );
    tokio::net::TcpListener::bind(&found[..])
        .await
        .with_context(|| format!("can't listen on {addr} for HTTP; choose another with --http"))
}

/// What runs while the coordinator serves.
pub(crate) struct Started {
    api: Arc<ApiState>,
    pub(crate) endpoint: Endpoint,
    coordinator: ActorRef<Msg>,
    node_server: transport::NodeServerHandle,
    local_nodes: LocalNodes,
    accepting: tokio::task::JoinHandle<()>,
    renewal: tokio::task::JoinHandle<()>,
    watching_keys: tokio::task::JoinHandle<()>,
    batches: tokio::task::JoinHandle<()>,
    pub(crate) store: Store,
    scaling: Option<tokio::task::JoinHandle<()>>,
    _data_dir: DataDir,
}

async fn start(
    config: &Config,
    wire_version: u16,
    tracer: Tracer,
    keys: Arc<Keys>,
) -> Result<Started> {
    let path = &config.model.path;
    anyhow::ensure!(!path.as_os_str().is_empty(), "no model: give --model PATH");
    let path = std::path::absolute(path)?;
    let files =
        checkpoint::Checkpoint::open(&path)?.quantized(model::quantize(config.model.quantize));
    let tokenizer_source = files.tokenizer()?;
    let tokenizer = Arc::new(Tokenizer::from_source(&tokenizer_source)?);
    let chat_template = ChatTemplate::from_source(&tokenizer_source, &config.http);
    if let Some(problem) = chat_template.as_ref().and_then(ChatTemplate::problem) {
        warn!(%problem, "chats are refused; completions are served");
    }
    let described = model::describe(&files, &path, config)?;
    model::check_frames(&described, config).map_err(anyhow::Error::msg)?;
    let sampling = match config.model.generation_config {
        GenerationConfig::None => SamplingDefaults::default(),
        GenerationConfig::Auto => files.sampling_defaults()?,
    };
    if sampling != SamplingDefaults::default() {
        info!(
            temperature = sampling.temperature,
            top_k = sampling.top_k,
            top_p = sampling.top_p,
            min_p = sampling.min_p,
            repetition_penalty = sampling.repetition_penalty,
            max_new_tokens = sampling.max_new_tokens,
            "requests that don't say are sampled as the model's files recommend \
             (model.generation_config)"
        );
    }

    let data_dir = DataDir::open(config)?;
    let start = start_number::next(&data_dir.path)?;
    let piece_bytes = config.transport.piece_bytes;
    let weights = Arc::new(WeightSource::start(described.id, &files, piece_bytes, &data_dir.path)?);
    let configured = &config.coordinator.cluster_addr;
    let found = transport::resolve(configured).await.context("--cluster")?;
    // One of a host's addresses has to do: children and neighbours are told of it.
    let cluster_addr = found[0];
    let authority = Arc::new(Authority::load_or_create(&data_dir.path)?);
    let token_path = data_dir.token_path();
    let local = Token::load_or_create(&token_path, &authority)?.key();
    let store = Store::open(&data_dir.path).await?;
    let max_failed_proofs = config.coordinator.max_failed_proofs;
    let admission = Admission::new(store.clone(), local, max_failed_proofs);
    let endpoint = Endpoint::speaking(
        wire_version,
        cluster_addr,
        Some(authority.coordinator_identity(config.transport.certificate_days)?),
        &config.transport,
    )?;
    store.set_fact(CLUSTER_ADDR, endpoint.local_addr().to_string()).await?;

    let name = match config.model.name.as_str() {
        "" => files.name().to_owned(),
        name => name.to_owned(),
    };
    let metrics = Arc::new(Metrics::new(&name, &config.metrics));
    let stages = Arc::new(Stages::new(&config.transport));
    let sessions = Arc::new(Sessions::default());
    let (status, status_seen) = watch::channel(Arc::new(Status::default()));
    let (staffing, wanted) = watch::channel(Staffing::default());
    let mut cluster = Cluster::new(config.clone(), described.clone(), start, Instant::now());
    for (node, duty) in duty::kept::kept(&store).await? {
        // Nobody is here whom that could move.
        cluster.handle(Input::Duty(node, duty), Instant::now());
    }
    cluster.expect_back(placed::kept(&store).await?, Instant::now());
    status.send_replace(Arc::new(cluster.status()));
    let arguments = Arguments {
        cluster,
        stages: Arc::clone(&stages),
        sessions: Arc::clone(&sessions),
        status,
        staffing,
        metrics: Arc::clone(&metrics),
        tracer: tracer.clone(),
        store: Some(store.clone()),
    };
    let (coordinator, _) = Actor::spawn(None, CoordinatorActor, arguments).await?;
    Actor::spawn_linked(None, GateActor, coordinator.clone(), coordinator.get_cell()).await?;

    let cookie = authority.cookie();
    let node_server = transport::start_node_server("coordinator", &cookie).await?;
    let renewal = tokio::spawn(endpoint.clone().keep_renewed({
        let (authority, days) = (Arc::clone(&authority), config.transport.certificate_days);
        move |_| std::future::ready(authority.coordinator_identity(days))
    }));
    let revoking =
        keep_out(store.clone(), endpoint.clone(), Arc::clone(&sessions), coordinator.clone());
    let door = Door {
        endpoint: endpoint.clone(),
        authority,
        admission,
        node_server: node_server.clone(),
        coordinator: coordinator.clone(),
        stages,
        weights,
        sessions,
        metrics: Arc::clone(&metrics),
        refusals: Arc::default(),
        transport: config.transport.clone(),
        probe: Probe {
            num_bytes: config.coordinator.probe_bytes as usize,
            timeout: Duration::from_millis(config.coordinator.probe_timeout_ms),
        },
    };
    let accepting = tokio::spawn(async move {
        tokio::select! { () = door.keep() => {}, () = revoking => {} }
    });

    let ended = {
        let coordinator = coordinator.clone();
        move |Ended { pid, cause }| happened(&coordinator, Input::Exited { pid, cause })
    };
    let local_nodes =
        LocalNodes::start(config, on_this_machine(&endpoint), &data_dir, wanted.clone(), ended)?;
    let command = &config.autoscaler.command;
    let scaling = (!command.is_empty())
        .then(|| tokio::spawn(scaling::run(config.autoscaler.clone(), wanted)));

    // Ends with the actor.
    tokio::spawn(placed::keep(store.clone(), status_seen.clone()));
    let watching_keys = tokio::spawn(Arc::clone(&keys).watch());
    let files = files.config();
    let durables = Durables::open(store.clone(), config.durable.clone()).await?;
    let completions = Arc::new(Completions {
        durables: durables.clone(),
        engine: Engine::new(coordinator.clone(), config.scheduler.max_queued_requests, status_seen),
        tokenizer,
        chat_template,
        model: ServedModel {
            name,
            id: described.id,
            max_model_len: described.max_model_len,
            vocab_size: files.vocab_size as u32,
            hidden_size: files.hidden_size as u32,
            sampling,
            eos: files.eos_token_ids.iter().copied().map(TokenId).collect(),
            created: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
        },
        config: config.http.clone(),
        parsing: Parsing::new(&config.http),
        metrics,
        tracer,
        traces: config.traces.clone(),
        log_requests: config.log.requests,
    });
    durables.resume(&completions).await?;
    // As long as the process.
    tokio::spawn(durables.tidy());
    let permits = Arc::new(Semaphore::new(config.http.max_concurrent_requests));
    let jobs = {
        let (store, completions, keys) =
            (store.clone(), Arc::clone(&completions), Arc::clone(&keys));
        BatchJobs::open(&data_dir.path, store, completions, keys, config).await?
    };
    let batches = tokio::spawn(jobs.clone().run());
    let closing = CancellationToken::new();
    let api = Arc::new(ApiState { completions, keys, jobs, permits, closing });
    Ok(Started {
        api,
        endpoint,
        coordinator,
        node_server,
        local_nodes,
        accepting,
        renewal,
        watching_keys,
        batches,
        store,
        scaling,
        _data_dir: data_dir,
    })
}

/// Where children dial.
fn on_this_machine(endpoint: &Endpoint) -> SocketAddr {
    let addr = endpoint.local_addr();
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

impl Started {
    /// Resolves when something has ended that the rest can't do without. Nobody here would start it
    /// again, and without it a process stays that looks healthy and serves nobody: whoever
    /// supervises the process can start it again.
    async fn ended(&mut self) -> anyhow::Error {
        let what = tokio::select! {
            _ = self.coordinator.wait(None) => "the coordinator's actor",
            () = self.node_server.ended() => "the nodes' server",
            _ = &mut self.accepting => "the task that accepts nodes",
            _ = &mut self.renewal => "the task that renews the certificate",
            _ = &mut self.watching_keys => "the task that reads API keys again",
            _ = &mut self.batches => "the task that runs batch jobs",
            () = self.store.ended() => "the task that writes state",
            () = ended(&mut self.scaling) => "the task that runs autoscaler.command",
            () = self.local_nodes.abandoned() => "the task that keeps a local node",
        };
        anyhow::anyhow!("{what} has ended unexpectedly")
    }

    pub(crate) async fn stop(self) {
        // They go on when the coordinator starts again.
        self.batches.abort();
        happened(&self.coordinator, Input::ShutDown);
        // The actor is still there for the nodes to say goodbye to.
        self.local_nodes.stop().await;
        // Whatever it was told is heard before it ends: that it is to fail what is open, too.
        let _ = self.coordinator.drain_and_wait(Some(LAST_WORDS)).await;
        self.accepting.abort();
        self.renewal.abort();
        self.watching_keys.abort();
        self.scaling.inspect(|scaling| scaling.abort());
        self.endpoint.close("the coordinator stopped").await;
    }
}

/// Never, where there is no such task.
async fn ended(task: &mut Option<tokio::task::JoinHandle<()>>) {
    match task {
        Some(task) => drop(task.await),
        None => std::future::pending().await,
    }
}

/// A coordinator on a port of its own, and its data directory.
#[cfg(test)]
pub(crate) async fn started(more: impl FnOnce(&mut Config)) -> (Started, tempfile::TempDir) {
    let data = tempfile::tempdir().expect("a folder");
    let mut config = Config::default();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/glass-en");
    config.model.path = model.into();
    config.coordinator.cluster_addr = SocketAddr::from(([127, 0, 0, 1], 0)).into();
    config.coordinator.data_dir = data.path().to_owned();
    more(&mut config);
    let keys = Arc::new(api_keys(&config).expect("keys"));
    let started = start(&config, protocol::WIRE_VERSION, Tracer::default(), keys).await;
    (started.expect("it starts"), data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actor::Look;

    #[tokio::test]
    async fn without_keys_the_api_is_open_to_this_machine_only() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.coordinator.data_dir = dir.path().to_owned();
        config.http.addr = "0.0.0.0:0".parse().unwrap();
        let listens = async |config: &Config| {
            let keys = api_keys(config).map_err(|cause| format!("{cause:#}"))?;
            listen(config, &keys).await.map(drop).map_err(|cause| format!("{cause:#}"))
        };
        let said = listens(&config).await.unwrap_err();
        for way in ["--api-keys FILE", "--allow-anonymous", "http.allow_anonymous = true"] {
            assert!(said.contains(way), "{said}");
        }
        config.http.allow_anonymous = true;
        listens(&config).await.unwrap();
        config.http.allow_anonymous = false;
        // A file that is named has to be there.
        config.http.api_keys = dir.path().join("mine.toml");
        let said = listens(&config).await.unwrap_err();
        assert!(said.contains("autoglm key create --name NAME --api-keys"), "{said}");
        std::fs::write(&config.http.api_keys, "").unwrap();
        listens(&config).await.unwrap();
        config.http.api_keys = Default::default();
        listens(&config).await.unwrap_err();
        // That of the data directory does too, and none is needed on loopback.
        std::fs::write(dir.path().join("keys.toml"), "").unwrap();
        listens(&config).await.unwrap();
        std::fs::write(dir.path().join("keys.toml"), "[[key]]").unwrap();
        let said = listens(&config).await.unwrap_err();
        assert!(said.contains("keys.toml") && said.contains("name"), "{said}");
        std::fs::remove_file(dir.path().join("keys.toml")).unwrap();
        config.http.addr = "127.0.0.1:0".parse().unwrap();
        listens(&config).await.unwrap();
    }

    /// Whoever waits for an answer hears that it ends here only if the actor hears it before.
    #[tokio::test]
    async fn what_the_actor_was_told_before_it_is_stopped_it_hears() {
        let (started, _data) = started(|_| {}).await;
        let (hears, heard) = tokio::sync::oneshot::channel();
        let actor = started.coordinator.clone();
        let look = Look(Box::new(move |_, _| {
            let _ = hears.send(());
        }));
        actor.cast(Msg::Look(look)).unwrap();
        started.stop().await;
        heard.await.expect("the actor is gone before it has heard everything");
        assert!(actor.cast(Msg::Happened(Input::Tick)).is_err(), "it has ended");
    }

    /// Goal: no process is left that looks healthy and serves nobody. Method: each thing that it
    /// can't do without is ended, the actor also by the end of its remote face.
    #[tokio::test(flavor = "multi_thread")]
    async fn whatever_the_rest_needs_ends_the_coordinator_with_it() {
        type End = fn(&Started);
        let gate = |started: &Started| started.coordinator.get_children()[0].kill();
        let ends: [(End, &str); 5] = [
            (|started| started.coordinator.kill(), "coordinator's actor"),
            (gate, "coordinator's actor"),
            (|started| started.accepting.abort(), "accepts nodes"),
            (|started| started.renewal.abort(), "renews the certificate"),
            (|started| started.watching_keys.abort(), "reads API keys again"),
        ];
        for (end, expected) in ends {
            let (mut started, _data) = started(|_| {}).await;
            let early = tokio::time::timeout(Duration::from_millis(50), started.ended()).await;
            assert!(early.is_err(), "{early:?}");
            end(&started);
            let ended = tokio::time::timeout(Duration::from_secs(30), started.ended()).await;
            let cause = ended.unwrap_or_else(|_| panic!("{expected}")).to_string();
            assert!(cause.contains(expected), "{cause}");
            if expected.contains("actor") {
                let told = async {
                    while !started.api.engine.status().waiting_for.contains("has stopped") {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(30), told).await.expect("a true status");
            }
            started.stop().await;
        }
    }
}
