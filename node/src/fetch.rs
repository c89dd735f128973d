//! Gets pieces of a model over the network, from the coordinator and from other nodes at once, and
//! keeps them in the cache. Who is asked for what is decided in `fetching.rs`.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use protocol::{Ask, ModelId, Peer, PieceId, PieceSet, codec};
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinSet, spawn_blocking};
use tracing::{debug, info, warn};
use transport::{Connection, TransportError};

use crate::cache::CachedModel;
use crate::error::StageError;
use crate::fetching::{Fetching, Next};
use crate::links::Links;

/// Between two questions to a node what it has by now.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// How long sources may take to end once all is here.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(50);

/// Who gives pieces.
#[derive(Clone, Debug)]
pub(crate) struct OpenSources {
    /// Has all of them.
    pub coordinator: Connection,
    /// Have some of them.
    pub nodes: Vec<Peer>,
    pub links: Arc<Links>,
    /// Pieces that may be on their way at once.
    pub max_pieces: usize,
}

/// How much of what is needed is here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Given {
    pub num_bytes: u64,
    /// Of so many.
    pub of_bytes: u64,
    /// Whom the rest is asked of.
    pub num_sources: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fetched {
    pub(crate) num_pieces: usize,
    /// Bytes of them that other nodes gave.
    pub(crate) from_nodes: u64,
    /// Sources that failed, each with the reason.
    pub(crate) left: BTreeSet<String>,
}

struct Shared {
    id: ModelId,
    model: Arc<CachedModel>,
    fetching: Mutex<Fetching>,
    changed: Notify,
    // Why sources are asked no more.
    causes: Mutex<BTreeSet<String>>,
}

/// Why a piece doesn't come.
enum Trouble {
    /// The source's fault: others may do better.
    There(String),
    /// It took too long, be it the source's fault or that of the way to it.
    Slow(String),
    /// Ours: nobody can do better.
    Here(String),
}

/// A piece that came: its bytes, and whether another node gave them. Or why none can be kept.
type Came = Result<(PieceId, u64, bool), String>;

/// Hears how much is here, and which pieces are that it hasn't heard of.
pub(crate) type HearFetched<'a> = dyn FnMut(Given, &[PieceId]) + Send + 'a;

/// Gets what is missing of `needed`.
///
/// # Errors
/// When nobody has it, or it can't be kept.
pub(crate) async fn fetch(
    id: ModelId,
    model: &Arc<CachedModel>,
    needed: BTreeSet<PieceId>,
    sources: OpenSources,
    progress: &mut HearFetched<'_>,
) -> Result<Fetched, StageError> {
    let manifest = model.manifest();
    let mut given = Given { of_bytes: manifest.num_bytes(&needed), ..Given::default() };
    progress(given, &[]);
    let (held, missing): (Vec<_>, Vec<_>) = {
        let model = Arc::clone(model);
        let looked = spawn_blocking(move || needed.into_iter().partition(|it| model.holds(*it)));
        looked.await.map_err(|cause| StageError::Weights(cause.to_string()))?
    };
    given.num_bytes = manifest.num_bytes(&held);
    progress(given, &held);
    if missing.is_empty() {
        return Ok(Fetched::default());
    }
    let started = Instant::now();
    let (num_pieces, bytes) = (missing.len(), manifest.num_bytes(&missing));
    let start = sources.links.node().0 as usize;
    let shared = Arc::new(Shared {
        id,
        model: Arc::clone(model),
        fetching: Mutex::new(Fetching::new(missing, start, sources.max_pieces)),
        changed: Notify::new(),
        causes: Mutex::default(),
    });
    let (tell, mut came) = mpsc::channel(sources.max_pieces.max(1));
    // End with this.
    let mut asking = JoinSet::new();
    let OpenSources { coordinator, nodes, links, max_pieces } = sources;
    asking.spawn(Arc::clone(&shared).all(coordinator, max_pieces, tell.clone()));
    for node in nodes {
        let (shared, links, tell) = (Arc::clone(&shared), Arc::clone(&links), tell.clone());
        asking.spawn(async move { shared.some(node, &links, max_pieces, tell).await });
    }
    drop(tell);
    let (mut num_left, mut from_nodes) = (num_pieces, 0);
    while num_left > 0
        && let Some(piece) = came.recv().await
    {
        let (piece, bytes, is_of_node) = piece.map_err(StageError::Weights)?;
        num_left -= 1;
        from_nodes += if is_of_node { bytes } else { 0 };
        given.num_bytes += bytes;
        given.num_sources = shared.fetching().num_sources() as u32;
        progress(given, &[piece]);
    }
    // Each ends by itself now, and those that were late say so; whoever still dials doesn't count.
    let end = async { while asking.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, end).await;
    asking.shutdown().await;
    let flushed = {
        let model = Arc::clone(model);
        spawn_blocking(move || model.flush()).await
    };
    flushed
        .map_err(|cause| StageError::Weights(cause.to_string()))?
        .map_err(StageError::Weights)?;
    let left = shared.causes.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if num_left > 0 {
        let causes = left.into_iter().collect::<Vec<_>>().join("; ");
        return Err(StageError::Weights(format!("{num_left} pieces are missing: {causes}")));
    }
    let mb_per_s = bytes as f64 / 1e6 / started.elapsed().as_secs_f64();
    let (mb_per_s, num_sources) = (format!("{mb_per_s:.0}"), given.num_sources);
    info!(num_pieces, bytes, from_nodes, num_sources, mb_per_s, "weights are fetched");
    Ok(Fetched { num_pieces, from_nodes, left })
}

impl Shared {
    fn fetching(&self) -> MutexGuard<'_, Fetching> {
        self.fetching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the coordinator, who has all pieces.
    async fn all(
        self: Arc<Self>,
        coordinator: Connection,
        max_pieces: usize,
        tell: mpsc::Sender<Came>,
    ) {
        let mut source = self.fetching().add(None);
        self.changed.notify_waiters();
        let mut asked = self.draw(source, &coordinator, max_pieces, &tell, false).await;
        // On a narrow way all that are asked for at once are late, and one by one they aren't.
        if max_pieces > 1
            && let Err(Trouble::Slow(cause)) = asked
        {
            warn!(cause, "pieces are asked for one by one from now on");
            {
                let mut fetching = self.fetching();
                fetching.gone(source);
                source = fetching.add(None);
            }
            self.changed.notify_waiters();
            asked = self.draw(source, &coordinator, 1, &tell, false).await;
        }
        self.left(Some(source), &coordinator.peer().to_string(), asked, &tell).await;
    }

    /// Asks another node for those that it has.
    async fn some(&self, node: Peer, links: &Links, max_pieces: usize, tell: mpsc::Sender<Came>) {
        let mut source = None;
        let asked = async {
            let there = |cause: TransportError| Trouble::There(cause.to_string());
            let connection = links.neighbour(node).await.map_err(there)?;
            let has = match self.held(&connection).await {
                Err(TransportError::NotGiven(cause)) => {
                    debug!(node = %node.node, cause, "a node has no pieces of the model");
                    return Ok(());
                }
                has => has.map_err(there)?,
            };
            let number = self.fetching().add(Some(has));
            source = Some(number);
            self.changed.notify_waiters();
            let looking = async {
                loop {
                    tokio::time::sleep(LOOK_PAUSE).await;
                    let has = self.held(&connection).await.map_err(there)?;
                    self.fetching().has_now(number, has);
                    self.changed.notify_waiters();
                }
            };
            tokio::select! {
                asked = self.draw(number, &connection, max_pieces, &tell, true) => asked,
                looked = looking => looked,
            }
        };
        let asked = asked.await;
        self.left(source, &format!("node {} at {}", node.node, node.addr), asked, &tell).await;
    }

    /// A source is asked no more.
    async fn left(
        &self,
        source: Option<usize>,
        name: &str,
        asked: Result<(), Trouble>,
        tell: &mpsc::Sender<Came>,
    ) {
        if let Some(source) = source {
            self.fetching().gone(source);
            self.changed.notify_waiters();
        }
        match asked {
            Ok(()) => {}
            Err(Trouble::There(cause) | Trouble::Slow(cause)) => {
                warn!(source = name, cause, "a source of weights is asked no more");
                let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
                causes.insert(format!("{name}: {cause}"));
            }
            Err(Trouble::Here(cause)) => drop(tell.send(Err(cause)).await),
        }
    }

    /// Asks a source for one piece after another, several at once.
    async fn draw(
        &self,
        source: usize,
        connection: &Connection,
        max_pieces: usize,
        tell: &mpsc::Sender<Came>,
        is_node: bool,
    ) -> Result<(), Trouble> {
        let one_by_one = || async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let next = self.fetching().next(source, Instant::now());
                let piece = match next {
                    Next::End => return Ok(()),
                    Next::Wait(None) => {
                        changed.await;
                        continue;
                    }
                    Next::Wait(Some(until)) => {
                        let _ = tokio::time::timeout_at(until.into(), changed).await;
                        continue;
                    }
                    Next::Ask(piece) => piece,
                };
                let got = tokio::select! {
                    got = self.get(connection, piece) => got?,
                    () = self.came(piece) => {
                        if self.fetching().is_slow(source) {
                            let cause = "others gave what it was asked for before it did";
                            return Err(Trouble::There(cause.into()));
                        }
                        continue;
                    }
                };
                let is_first = self.fetching().came(piece, source, Instant::now());
                self.changed.notify_waiters();
                if is_first {
                    // Nobody hears it when the load was given up.
                    let _ = tell.send(Ok((piece, got, is_node))).await;
                }
            }
        };
        try_join_all((0..max_pieces.max(1)).map(|_| one_by_one())).await.map(drop)
    }

    /// Resolves once a piece has come.
    async fn came(&self, piece: PieceId) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if !self.fetching().is_missing(piece) {
                return;
            }
            changed.await;
        }
    }

    /// Gets a piece and keeps it: its length.
    async fn get(&self, source: &Connection, piece: PieceId) -> Result<u64, Trouble> {
        let manifest = self.model.manifest();
        let found = manifest.range(piece).zip(manifest.digest(piece));
        let (range, digest) = found.expect("it is needed");
        let num_bytes = range.end - range.start;
        let ask = Ask::Piece(self.id, piece, digest);
        let bytes = transport::ask(source, &ask, num_bytes as usize).await;
        let bytes = bytes.map_err(|cause| match cause {
            TransportError::Slow(_) => Trouble::Slow(cause.to_string()),
            _ => Trouble::There(cause.to_string()),
        })?;
        let model = Arc::clone(&self.model);
        let kept = spawn_blocking(move || model.keep(piece, &bytes)).await;
        match kept.map_err(|cause| Trouble::Here(cause.to_string()))? {
            Ok(true) => Ok(num_bytes),
            Ok(false) => Err(Trouble::There(format!("it sent other bytes than {piece:?} has"))),
            Err(cause) => Err(Trouble::Here(cause)),
        }
    }

    /// What a node has of the model.
    async fn held(&self, node: &Connection) -> Result<PieceSet, TransportError> {
        let bytes = transport::ask(node, &Ask::Held(self.id), PieceSet::MAX_BYTES).await?;
        codec::decode(&bytes)
            .map_err(|cause| TransportError::Closed(format!("it breaks the protocol: {cause}")))
    }
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
