//! A node's life: open the adapters, join, serve until the coordinator or the operator ends it.

use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use protocol::message::CoordinatorMsg;
use protocol::{NodeId, NodeReport};
use ractor::Actor;
use shaders::matmul::Products;
use telemetry::Tracer;
use tracing::{info, warn};
use transport::{Endpoint, Incoming, PeerName, Purpose, Token};

use crate::actor::{Node, NodeActor, tell_coordinator};
use crate::device_thread::DeviceThread;
use crate::devices;
use crate::identity::Identity;
use crate::links::Links;

/// How a node is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the coordinator listens: name or address, and port.
    pub coordinator: String,
    /// What to prove when joining; none: what stands in `token_file`.
    pub token: Option<Token>,
    /// Where the token is; none: where a coordinator of this user on this machine puts it.
    pub token_file: Option<PathBuf>,
    /// Where the node's id is kept; none: a place of the user's own.
    pub data_dir: Option<PathBuf>,
    /// The adapter to use: a part of its name, or its number.
    pub adapter: Option<String>,
    /// Bytes that stages may take on each adapter.
    pub max_memory: Option<u64>,
    /// How to multiply.
    pub products: Products,
    /// Whether the coordinator started this process, and `shutdown` resolves when it is gone.
    pub exit_with_coordinator: bool,
    /// Where spans of traced steps go.
    pub tracer: Tracer,
}

impl Options {
    /// What to prove to the coordinator that listens on this port.
    fn token(&self, port: u16) -> Result<Token> {
        if let Some(token) = &self.token {
            return Ok(token.clone());
        }
        let path = match &self.token_file {
            Some(path) => path.clone(),
            None => default_data_dir()?.join(format!("coordinator-{port}/join.token")),
        };
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "can't read the join token {}: is the coordinator running, with another --data-dir \
                 or as another user? Then name its join.token with --token-file",
                path.display()
            )
        })?;
        text.parse().map_err(|cause| anyhow::anyhow!("{}: {cause}", path.display()))
    }
}

/// Between two tries to join.
const RETRY: Duration = Duration::from_secs(1);

/// How long a child waits for its place: more than one whose coordinator is gone takes to end.
const LOCK_TIMEOUT: Duration = Duration::from_secs(15);

/// Between two words about what is being waited for.
const RETRIES_PER_WARNING: u32 = 10;

/// Serves until `shutdown` resolves.
///
/// # Errors
/// When there is no adapter, or the coordinator refuses this node for good.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> Result<()> {
    tokio::pin!(shutdown);
    let identity = tokio::select! {
        identity = identify(&options) => identity?,
        () = &mut shutdown => return Ok(()),
    };
    let node = identity.node;
    let (adapter, max_memory) = (options.adapter.clone(), options.max_memory);
    let products = options.products;
    let opening = tokio::task::spawn_blocking(move || {
        devices::open(adapter.as_deref(), max_memory, products)
    });
    tokio::pin!(opening);
    let (opened, is_over) = tokio::select! {
        opened = &mut opening => (opened, false),
        () = &mut shutdown => (opening.await, true),
    };
    let devices = opened.context("opening the adapter panicked")??;
    let ended = if is_over { Ok(()) } else { serve(&options, node, &devices, shutdown).await };
    for device in &devices {
        device.stop().await;
    }
    ended
}

async fn identify(options: &Options) -> Result<Identity> {
    match &options.data_dir {
        // Its place may still be held by one that was killed and isn't gone yet.
        Some(data_dir) if options.exit_with_coordinator => {
            Identity::open_within(data_dir, LOCK_TIMEOUT).await
        }
        Some(data_dir) => Identity::open(data_dir),
        None => Identity::open_any(&default_data_dir()?),
    }
}

/// Joins, serves and joins again, until `shutdown` resolves.
async fn serve(
    options: &Options,
    node: NodeId,
    devices: &[DeviceThread],
    mut shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Result<()> {
    for device in devices {
        let report = &device.report;
        info!(
            adapter = report.name,
            driver = report.driver,
            memory_mib = report.memory_bytes >> 20,
            class = %report.fingerprint,
            "adapter ready"
        );
    }
    loop {
        let ended = tokio::select! {
            () = &mut shutdown => return Ok(()),
            session = Session::open(options, node, devices) => {
                let session = session?;
                tokio::select! {
                    () = &mut shutdown => {
                        session.leave().await;
                        return Ok(());
                    }
                    cause = session.closed() => {
                        session.end().await;
                        cause
                    }
                }
            }
        };
        warn!(cause = ended, "the coordinator is gone; its stages are dropped");
    }
}

/// The time between joining a coordinator and losing it.
struct Session {
    node: NodeId,
    endpoint: Endpoint,
    control: transport::Connection,
    node_server: transport::NodeServerHandle,
    renewal: tokio::task::JoinHandle<()>,
    actor: ractor::ActorRef<protocol::message::NodeMsg>,
}

impl Session {
    async fn open(options: &Options, node: NodeId, devices: &[DeviceThread]) -> Result<Self> {
        let mut num_tries = 0;
        let (coordinator, joined) = loop {
            let config = protocol::config::Transport::default();
            // Read at every try: the coordinator may write it later.
            let found = match resolve(&options.coordinator).await {
                Ok(addr) => options.token(addr.port()).map(|token| (addr, token)),
                Err(cause) => Err(cause),
            };
            let tried = match found {
                Ok((addr, token)) => transport::join(addr, node, &token, &config)
                    .await
                    .map(|joined| (addr, joined))
                    .map_err(|cause| (cause.is_final(), anyhow::Error::from(cause))),
                Err(cause) => Err((false, cause)),
            };
            match tried {
                Ok(joined) => break joined,
                Err((true, cause)) => return Err(cause),
                Err((false, cause)) => {
                    if num_tries % RETRIES_PER_WARNING == 0 {
                        let coordinator = &options.coordinator;
                        warn!(coordinator, %cause, "waiting for the coordinator");
                    }
                    num_tries += 1;
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        let local = match coordinator {
            SocketAddr::V4(_) if coordinator.ip().is_loopback() => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) if coordinator.ip().is_loopback() => Ipv6Addr::LOCALHOST.into(),
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let config = joined.transport;
        let endpoint = Endpoint::bind(SocketAddr::new(local, 0), Some(joined.identity), &config)?;
        let data = endpoint.dial(coordinator, Purpose::Data, PeerName::Coordinator).await?;
        let links = Arc::new(Links::new(node, endpoint.clone(), data.clone(), &config));
        tokio::spawn(Arc::clone(&links).serve(data));
        tokio::spawn(accept(endpoint.clone(), Arc::clone(&links)));

        let report = NodeReport {
            node,
            hostname: sysinfo::System::host_name().unwrap_or_else(|_| "unknown".into()),
            pid: std::process::id(),
            data_addr: endpoint.local_addr(),
            adapters: devices.iter().map(|device| device.report.clone()).collect(),
        };
        let held = Arc::new(Node {
            report,
            devices: devices.to_vec(),
            links,
            tracer: options.tracer.clone(),
        });
        let (actor, _) = Actor::spawn(None, NodeActor, held).await?;
        let control = endpoint.dial(coordinator, Purpose::Control, PeerName::Coordinator).await?;
        let name = format!("node-{node}-{}", std::process::id());
        let node_server = transport::start_node_server(&name, &joined.cookie).await?;
        node_server.connect(&control).await?;
        let renewal = tokio::spawn(endpoint.clone().keep_renewed(move |identity| {
            let config = config.clone();
            async move {
                let renewed = transport::renew(coordinator, node, &identity, &config);
                renewed.await.map(|it| it.identity)
            }
        }));
        info!(%node, %coordinator, "joined");
        Ok(Self { node, endpoint, control, node_server, renewal, actor })
    }

    /// Why the coordinator is gone, once it is.
    async fn closed(&self) -> String {
        self.control.closed().await
    }

    /// Says goodbye, so that nobody has to wait for silence.
    async fn leave(self) {
        info!("leaving");
        tell_coordinator(CoordinatorMsg::Leaving(self.node.into())).await;
        // The cast is on its way once the session's writer has run; closing waits for it.
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.end().await;
    }

    async fn end(self) {
        self.renewal.abort();
        self.actor.stop_and_wait(None, Some(Duration::from_secs(2))).await.ok();
        self.node_server.stop().await;
        self.endpoint.close("the node stopped").await;
    }
}

/// Neighbours dial to bring activations.
async fn accept(endpoint: Endpoint, links: Arc<Links>) {
    while let Some(incoming) = endpoint.accept().await {
        if let Incoming::Data(connection) = incoming {
            tokio::spawn(Arc::clone(&links).serve(connection));
        }
    }
}

async fn resolve(coordinator: &str) -> Result<SocketAddr> {
    let mut found = tokio::net::lookup_host(coordinator)
        .await
        .with_context(|| format!("can't resolve {coordinator}"))?;
    found.next().with_context(|| format!("{coordinator} has no address"))
}

fn default_data_dir() -> Result<PathBuf> {
    let home = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")))
        .context("neither HOME nor XDG_DATA_HOME is set: give --data-dir")?;
    Ok(home.join("autoglm"))
}
