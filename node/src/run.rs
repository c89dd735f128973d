//! A node's life: open the adapters, join, serve until the coordinator or the operator ends it.

use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::FutureExt;
use protocol::{Address, NodeId};
use shaders::products::Wanted;
use telemetry::Tracer;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use transport::Token;

use crate::cache::Cache;
use crate::device_thread::DeviceThread;
use crate::devices;
use crate::identity::NodeHome;
use crate::joining::{self, Papers};
use crate::session::{self, Session};
use crate::weights::WeightStore;

/// How a node is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the coordinator listens: name or address, and port; the first that answers.
    pub coordinators: Vec<Address>,
    /// What to prove when joining; none: what stands in `token_file`.
    pub token: Option<Token>,
    /// Where the token is; none: where a coordinator of this user on this machine puts it.
    pub token_file: Option<PathBuf>,
    /// Where the node's id is kept; none: a place of the user's own.
    pub data_dir: Option<PathBuf>,
    /// Where fetched weights are kept; none: in the data directory.
    pub cache_dir: Option<PathBuf>,
    /// Bytes that they may take.
    pub cache_size: u64,
    /// Whether weights are fetched even where the model's files are at hand.
    pub no_local_files: bool,
    /// The pool to be in; empty: that of the token.
    pub pool: String,
    /// What the operator says of the node: keys and values.
    pub labels: Vec<(String, String)>,
    /// Where other nodes reach this one; none: where the coordinator sees it.
    pub advertise: Option<IpAddr>,
    /// The adapter to use: a part of its name, or its number.
    pub adapter: Option<String>,
    /// Bytes that stages may take on each adapter.
    pub max_memory: Option<u64>,
    /// How to multiply.
    pub products: Wanted,
    /// The newest wire version to speak.
    pub wire_version: u16,
    /// Whether the coordinator started this process, and `shutdown` resolves when it is gone.
    pub exit_with_coordinator: bool,
    /// How long what it holds may take to go elsewhere once it is asked to end.
    pub drain_timeout: Duration,
    /// Cancelled when nothing is to be waited for any more.
    pub hurry: CancellationToken,
    /// Where spans of traced steps go.
    pub tracer: Tracer,
}

/// A session that stood this long ended for another reason than the one before it.
const STEADY: Duration = Duration::from_secs(60);

/// How long a lost adapter's thread may take to end before it is left to itself.
const LOST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a child waits for its place: more than one whose coordinator is gone takes to end.
const LOCK_TIMEOUT: Duration = Duration::from_secs(15);

/// Serves until `shutdown` resolves.
///
/// # Errors
/// When there is no adapter, or the coordinator refuses this node for good.
pub async fn run(options: Options, shutdown: impl Future<Output = ()>) -> Result<()> {
    let shutdown = shutdown.shared();
    let identity = tokio::select! {
        identity = identify(&options) => identity?,
        () = shutdown.clone() => return Ok(()),
    };
    let cache_dir = options.cache_dir.clone().unwrap_or_else(|| identity.data_dir.join("cache"));
    let cache = Cache::open(&cache_dir, options.cache_size)
        .with_context(|| format!("can't keep weights in {}", cache_dir.display()))?;
    let weights = Arc::new(WeightStore::new(cache, !options.no_local_files));
    let mut pause = Pause::default();
    let mut devices = open_devices(&options, &shutdown).await?;
    loop {
        let ended = serve(
            &options,
            (identity.node, &identity.papers),
            (&weights, &devices),
            &mut pause,
            &shutdown,
        )
        .await;
        let is_lost = matches!(ended, Ok(ServeEnd::Device(_)));
        for device in &devices {
            // A process must not exit before its adapters' threads have ended.
            let stopped = device.stop();
            if is_lost {
                let _ = tokio::time::timeout(LOST_TIMEOUT, stopped).await;
            } else {
                stopped.await;
            }
        }
        let ServeEnd::Device(cause) = ended? else { return Ok(()) };
        warn!(cause, "an adapter is lost; all are opened again");
        devices = loop {
            tokio::select! {
                () = pause.wait() => {}
                () = shutdown.clone() => return Ok(()),
            }
            match open_devices(&options, &shutdown).await {
                Ok(devices) => break devices,
                Err(cause) => {
                    let cause = format!("{cause:#}");
                    warn!(cause, "the adapters can't be opened again; this is tried on");
                }
            }
        };
    }
}

/// Opens the adapters. Waits for them also when the node is to end meanwhile: a driver that is at
/// work can't be interrupted.
async fn open_devices(
    options: &Options,
    shutdown: &(impl Future<Output = ()> + Clone),
) -> Result<Vec<DeviceThread>> {
    let (adapter, max_memory) = (options.adapter.clone(), options.max_memory);
    let products = options.products;
    let opening = tokio::task::spawn_blocking(move || {
        devices::open(adapter.as_deref(), max_memory, products)
    });
    tokio::pin!(opening);
    let opened = tokio::select! {
        opened = &mut opening => opened,
        () = shutdown.clone() => opening.await,
    };
    let devices = opened.context("opening the adapter panicked")??;
    for device in &devices {
        let report = &device.report;
        info!(
            adapter = report.name,
            driver = report.driver,
            memory_mib = report.memory_bytes >> 20,
            // Of two bytes each.
            weights_gb_s = format!("{:.1}", 2e-9 / report.speed.one_row_s(2.0, 1.0)),
            class = %report.fingerprint,
            "adapter ready"
        );
    }
    Ok(devices)
}

async fn identify(options: &Options) -> Result<NodeHome> {
    match &options.data_dir {
        // Its place may still be held by one that was killed and isn't gone yet.
        Some(data_dir) if options.exit_with_coordinator => {
            NodeHome::open_within(data_dir, LOCK_TIMEOUT).await
        }
        Some(data_dir) => NodeHome::open(data_dir),
        None => NodeHome::open_any(&default_data_dir()?),
    }
}

/// Why a node no longer serves with the adapters that it has.
#[derive(Debug)]
pub(crate) enum ServeEnd {
    /// It was asked to end.
    Over,
    /// One of them is lost.
    Device(String),
}

/// Joins, serves and joins again, until `shutdown` resolves or an adapter is lost. Whatever else
/// ends a session, or hinders one from beginning, is tried again.
pub(crate) async fn serve(
    options: &Options,
    (node, papers): (NodeId, &Papers),
    held: (&Arc<WeightStore>, &[DeviceThread]),
    pause: &mut Pause,
    shutdown: &(impl Future<Output = ()> + Clone),
) -> Result<ServeEnd> {
    loop {
        let opened = tokio::select! {
            () = shutdown.clone() => return Ok(ServeEnd::Over),
            opened = async {
                let (coordinator, joined) = joining::join(options, node, papers).await?;
                let session = Session::open(options, coordinator, joined, node, papers, held);
                let session = session.await;
                Ok::<_, anyhow::Error>(session)
            } => opened?,
        };
        let began = Instant::now();
        match opened {
            Ok(mut session) => {
                held.1.iter().for_each(|device| device.coordinated(true));
                let ended = tokio::select! {
                    () = shutdown.clone() => None,
                    ended = session.ended() => Some(ended),
                };
                held.1.iter().for_each(|device| device.coordinated(false));
                match ended {
                    None => {
                        let max = options.drain_timeout;
                        let drained = tokio::time::timeout(max, session.drain());
                        tokio::select! {
                            drained = drained => if drained.is_err() {
                                warn!(timeout_s = max.as_secs(), "it still held something");
                            },
                            () = options.hurry.cancelled() => {}
                        }
                        session.leave("it was asked to end").await;
                        return Ok(ServeEnd::Over);
                    }
                    Some(session::SessionEnd::Device(cause)) => {
                        session.leave(&cause).await;
                        return Ok(ServeEnd::Device(cause));
                    }
                    Some(session::SessionEnd::Connection(cause)) => {
                        session.end().await;
                        warn!(
                            cause,
                            "the coordinator is gone; its layers are kept for when it is back"
                        );
                    }
                }
            }
            Err(cause) => {
                let cause = format!("{cause:#}");
                warn!(cause, "joined, and could not connect; this is tried again");
            }
        }
        if began.elapsed() >= STEADY {
            *pause = Pause::default();
        } else {
            tokio::select! {
                () = pause.wait() => {}
                () = shutdown.clone() => return Ok(ServeEnd::Over),
            }
        }
    }
}

/// Between two tries, twice as long each time.
pub(crate) struct Pause(Duration);

impl Pause {
    const LONGEST: Duration = Duration::from_secs(30);

    async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (2 * self.0).min(Self::LONGEST);
    }
}

impl Default for Pause {
    fn default() -> Self {
        Self(Duration::from_millis(500))
    }
}

pub(crate) fn default_data_dir() -> Result<PathBuf> {
    let home = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")))
        .context("neither HOME nor XDG_DATA_HOME is set: give --data-dir")?;
    Ok(home.join("autoglm"))
}
