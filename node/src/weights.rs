//! Where a stage's weights come from: the files at the plan's path, where they are the
//! coordinator's, or else pieces from other members of the cluster, kept in a [`Cache`].

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};

use bytes::Bytes;
use checkpoint::Checkpoint;
use protocol::message::Loading;
use protocol::pieces::MAX_MANIFEST_BYTES;
use protocol::{Ask, Manifest, ModelId, PieceId, StagePlan, codec};
use tokio::sync::{Mutex, mpsc};
use tokio::task::{JoinSet, spawn_blocking};
use tracing::{info, warn};
use transport::{Connection, PieceSource};

use crate::cache::{Cache, CachedModel};
use crate::error::StageError;
use crate::kept::check_files;

/// What a node has of models' files, and how it gets the rest.
#[derive(Debug)]
pub struct Weights {
    cache: Arc<Cache>,
    // Whether files at a plan's path are of any use.
    uses_local_files: bool,
    // The newest model that was fetched. What was verified of it is not verified again.
    fetched: Mutex<Option<(ModelId, Arc<CachedModel>)>>,
}

impl Weights {
    /// Nothing fetched yet.
    pub fn new(cache: Cache, uses_local_files: bool) -> Self {
        Self { cache: Arc::new(cache), uses_local_files, fetched: Mutex::default() }
    }

    /// The plan, with the path of files that hold what it needs. `max_pieces` may be under way at
    /// once.
    ///
    /// # Errors
    /// When the files are no use here, and no source gives what is missing.
    pub async fn provide(
        &self,
        mut plan: StagePlan,
        sources: &[Connection],
        max_pieces: usize,
        progress: &mut (dyn FnMut(Loading) + Send),
    ) -> Result<StagePlan, StageError> {
        if self.uses_local_files && Path::new(&plan.model_path).exists() {
            let local = plan.clone();
            match run(move || is_here(&local)).await? {
                Ok(()) => return Ok(plan),
                Err(cause) => info!(%cause, "the model's files are fetched"),
            }
        }
        let manifest = manifest(plan.model, sources).await?;
        let needed = manifest.needed(&plan).map_err(|it| StageError::Weights(it.to_string()))?;
        let model = self.model(plan.model, manifest, &needed).await?;
        fetch(plan.model, &model, needed, sources, max_pieces, progress).await?;
        plan.model_path = model.path().to_string_lossy().into_owned();
        Ok(plan)
    }

    async fn model(
        &self,
        id: ModelId,
        manifest: Manifest,
        needed: &BTreeSet<PieceId>,
    ) -> Result<Arc<CachedModel>, StageError> {
        let mut fetched = self.fetched.lock().await;
        if let Some((known, model)) = &*fetched
            && *known == id
            && *model.manifest() == manifest
        {
            return Ok(Arc::clone(model));
        }
        // Removing what is in the way may take long, and frames are not to wait for it.
        let (cache, needed) = (Arc::clone(&self.cache), needed.clone());
        let model = run(move || cache.model(&manifest, &needed)).await?;
        let model = Arc::new(model.map_err(|cause| StageError::Weights(cause.to_string()))?);
        *fetched = Some((id, Arc::clone(&model)));
        Ok(model)
    }
}

/// Other nodes get what is here.
impl PieceSource for Weights {
    async fn give(&self, ask: Ask) -> Result<Bytes, String> {
        let Ask::Piece(id, piece, digest) = ask else {
            return Err("manifests come from the coordinator".into());
        };
        let fetched = self.fetched.lock().await.clone();
        let model = fetched.filter(|(known, _)| *known == id).map(|(_, model)| model);
        let model = model.ok_or_else(|| format!("nothing of model {id} is here"))?;
        let read = spawn_blocking(move || {
            if model.manifest().digest(piece) != Some(digest) || !model.holds(piece) {
                return Err("the piece isn't here".to_owned());
            }
            model.read(piece).map_err(|cause| cause.to_string())
        });
        read.await.map_err(|cause| cause.to_string())?.map(Bytes::from)
    }
}

fn is_here(plan: &StagePlan) -> Result<(), StageError> {
    check_files(&Checkpoint::open(Path::new(&plan.model_path))?, plan)
}

async fn run<T: Send + 'static>(
    what: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StageError> {
    spawn_blocking(what).await.map_err(|cause| StageError::Weights(cause.to_string()))
}

/// The manifest, from the first source that has it: the coordinator comes first.
async fn manifest(model: ModelId, sources: &[Connection]) -> Result<Manifest, StageError> {
    let mut cause = "nobody has its manifest".to_owned();
    for source in sources {
        match transport::ask(source, &Ask::Manifest(model), MAX_MANIFEST_BYTES).await {
            Ok(bytes) => {
                let manifest: Result<Manifest, _> = codec::decode(&bytes);
                let checked = manifest.map_err(|cause| cause.to_string()).and_then(|manifest| {
                    manifest.check().map(|()| manifest).map_err(|cause| cause.to_string())
                });
                return checked.map_err(StageError::Weights);
            }
            Err(failed) => cause = format!("{} gives no manifest: {failed}", source.peer()),
        }
    }
    Err(StageError::Weights(cause))
}

/// Gets what is missing from all sources at once. A source that fails, or sends other bytes than
/// the manifest says, is asked no more.
async fn fetch(
    id: ModelId,
    model: &Arc<CachedModel>,
    needed: BTreeSet<PieceId>,
    sources: &[Connection],
    max_pieces: usize,
    progress: &mut (dyn FnMut(Loading) + Send),
) -> Result<(), StageError> {
    let manifest = model.manifest();
    let fetch_bytes = manifest.num_bytes(&needed);
    let mut loading = Loading { fetch_bytes, ..Loading::default() };
    progress(loading);
    let (held, missing): (Vec<_>, Vec<_>) = run({
        let model = Arc::clone(model);
        move || needed.into_iter().partition(|piece| model.holds(*piece))
    })
    .await?;
    loading.fetched_bytes = manifest.num_bytes(&held);
    progress(loading);
    if missing.is_empty() {
        return Ok(());
    }
    let started = std::time::Instant::now();
    let missing_bytes = manifest.num_bytes(&missing);
    let (num_missing, queue) = (missing.len(), Arc::new(SyncMutex::new(missing)));
    let (tell, mut came) = mpsc::channel(max_pieces.max(1));
    let mut workers = JoinSet::new();
    // One more than its share for the first, whom everybody has.
    for number in 0..max_pieces.max(sources.len()) {
        let source = sources[number % sources.len()].clone();
        let (model, queue, tell) = (Arc::clone(model), Arc::clone(&queue), tell.clone());
        workers.spawn(async move { work(id, &model, &source, &queue, &tell).await });
    }
    drop(tell);
    let mut num_left = num_missing;
    while let Some(bytes) = came.recv().await {
        num_left -= 1;
        loading.fetched_bytes += bytes;
        progress(loading);
    }
    let mut causes = BTreeSet::new();
    while let Some(ended) = workers.join_next().await {
        causes.extend(ended.map_err(|cause| cause.to_string()).and_then(|it| it).err());
    }
    run({
        let model = Arc::clone(model);
        move || model.flush()
    })
    .await?
    .map_err(|cause| StageError::Weights(format!("the cache can't be written: {cause}")))?;
    for cause in &causes {
        warn!(cause, "a source of weights is asked no more");
    }
    if num_left > 0 {
        let causes = causes.into_iter().collect::<Vec<_>>().join("; ");
        return Err(StageError::Weights(format!("{num_left} pieces are missing: {causes}")));
    }
    let mb_per_s = missing_bytes as f64 / 1e6 / started.elapsed().as_secs_f64();
    let mb_per_s = format!("{mb_per_s:.0}");
    info!(num_pieces = num_missing, bytes = missing_bytes, mb_per_s, "weights are fetched");
    Ok(())
}

/// Asks one source for piece after piece until nothing is missing. Others get what it fails at.
async fn work(
    id: ModelId,
    model: &Arc<CachedModel>,
    source: &Connection,
    queue: &SyncMutex<Vec<PieceId>>,
    tell: &mpsc::Sender<u64>,
) -> Result<(), String> {
    let queue = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let Some(piece) = queue().pop() else { return Ok(()) };
        let got = get(id, model, source, piece).await;
        match got {
            Ok(bytes) => {
                // Nobody hears it when the load was given up.
                let _ = tell.send(bytes).await;
            }
            Err(cause) => {
                queue().push(piece);
                return Err(format!("{}: {cause}", source.peer()));
            }
        }
    }
}

async fn get(
    id: ModelId,
    model: &Arc<CachedModel>,
    source: &Connection,
    piece: PieceId,
) -> Result<u64, String> {
    let manifest = model.manifest();
    let (range, digest) = manifest.range(piece).zip(manifest.digest(piece)).expect("it is needed");
    let num_bytes = range.end - range.start;
    let bytes = transport::ask(source, &Ask::Piece(id, piece, digest), num_bytes as usize)
        .await
        .map_err(|cause| cause.to_string())?;
    let model = Arc::clone(model);
    let kept = spawn_blocking(move || model.keep(piece, &bytes)).await;
    match kept.map_err(|cause| cause.to_string())? {
        Ok(true) => Ok(num_bytes),
        Ok(false) => Err(format!("it sent other bytes than piece {piece:?} has")),
        Err(cause) => Err(format!("the cache can't be written: {cause}")),
    }
}
