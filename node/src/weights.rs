//! Where a stage's weights come from: the files at the plan's path, where they are the
//! coordinator's, or else pieces from other members of the cluster, kept in a [`Cache`].

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use checkpoint::{Checkpoint, Part};
use protocol::pieces::MAX_MANIFEST_BYTES;
use protocol::{Ask, Manifest, ModelId, PieceId, StagePlan, codec};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tracing::info;
use transport::{Connection, PieceSource};

use crate::cache::{Cache, CachedModel};
use crate::error::StageError;
use crate::fetch::{self, Given, Sources};
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

/// A plan, and files that hold what it needs.
#[derive(Debug)]
pub struct Provided {
    /// With the files' path here.
    pub plan: StagePlan,
    // While it is read it isn't to make room for another model.
    _files: Option<Arc<CachedModel>>,
}

impl Weights {
    /// Nothing fetched yet.
    pub fn new(cache: Cache, uses_local_files: bool) -> Self {
        Self { cache: Arc::new(cache), uses_local_files, fetched: Mutex::default() }
    }

    /// The plan, with the path of files that hold what it needs. They stay as long as what is
    /// returned does.
    ///
    /// # Errors
    /// When the files are no use here, and no source gives what is missing.
    pub async fn provide(
        &self,
        mut plan: StagePlan,
        sources: Sources,
        progress: &mut (dyn FnMut(Given) + Send),
    ) -> Result<Provided, StageError> {
        if self.uses_local_files && Path::new(&plan.model_path).exists() {
            let local = plan.clone();
            match run(move || is_here(&local)).await? {
                Ok(()) => return Ok(Provided { plan, _files: None }),
                Err(cause) => info!(%cause, "the model's files are fetched"),
            }
        }
        let manifest = manifest(plan.model, &sources.coordinator).await?;
        let needed = manifest.needed(&plan).map_err(|it| StageError::Weights(it.to_string()))?;
        let model = self.model(plan.model, manifest, &needed).await?;
        fetch::fetch(plan.model, &model, needed, sources, progress).await?;
        plan.model_path = model.path().to_string_lossy().into_owned();
        run(move || {
            is_covered(&model, &plan)?;
            Ok(Provided { plan, _files: Some(model) })
        })
        .await?
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
        let model = model.map_err(StageError::Weights)?;
        *fetched = Some((id, Arc::clone(&model)));
        Ok(model)
    }
}

/// Other nodes get what is here.
impl PieceSource for Weights {
    async fn give(&self, ask: Ask) -> Result<Bytes, String> {
        let id = match ask {
            Ask::Piece(id, ..) | Ask::Held(id) => id,
            Ask::Manifest(_) => return Err("manifests come from the coordinator".into()),
        };
        let fetched = self.fetched.lock().await.clone();
        let model = fetched.filter(|(known, _)| *known == id).map(|(_, model)| model);
        let model = model.ok_or_else(|| format!("nothing of model {id} is here"))?;
        let Ask::Piece(_, piece, digest) = ask else {
            return Ok(codec::encode(&model.held()).into());
        };
        let read = spawn_blocking(move || {
            if model.manifest().digest(piece) != Some(digest) || !model.holds(piece) {
                return Err("the piece isn't here".to_owned());
            }
            model.read(piece).map_err(|cause| cause.to_string())
        });
        read.await.map_err(|cause| cause.to_string())?.map(Bytes::from)
    }
}

/// Whether every tensor that the stage reads lies in pieces that are here: whatever the manifest
/// says of where they lie, a hole is not to be taken for zeros.
fn is_covered(model: &CachedModel, plan: &StagePlan) -> Result<(), StageError> {
    let files = Checkpoint::open(&model.path())?;
    let names = files.files()?.into_iter().map(|it| it.path);
    let names: Vec<_> = names.map(|it| it.file_name().unwrap_or_default().to_owned()).collect();
    let layers = (plan.layers.first as usize..plan.layers.end as usize).map(Part::Layer);
    let ends = [(plan.embeds(), Part::Embedding), (plan.samples(), Part::Head)];
    let ends = ends.into_iter().filter_map(|(is_there, part)| is_there.then_some(part));
    for part in layers.chain(ends) {
        for (file, range) in files.ranges(part)? {
            if !model.covers(&names[file], range.clone()) {
                return Err(StageError::Weights(format!(
                    "bytes {range:?} of {} are needed and the manifest doesn't say so: the \
                     coordinator is to hash the model's files again",
                    names[file].display()
                )));
            }
        }
    }
    Ok(())
}

fn is_here(plan: &StagePlan) -> Result<(), StageError> {
    check_files(&Checkpoint::open(Path::new(&plan.model_path))?, plan)
}

async fn run<T: Send + 'static>(
    what: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StageError> {
    spawn_blocking(what).await.map_err(|cause| StageError::Weights(cause.to_string()))
}

/// What the model's files hold, as the coordinator says.
async fn manifest(model: ModelId, coordinator: &Connection) -> Result<Manifest, StageError> {
    let asked = transport::ask(coordinator, &Ask::Manifest(model), MAX_MANIFEST_BYTES).await;
    let read = || {
        let bytes = asked.map_err(|cause| format!("no manifest of the model comes: {cause}"))?;
        let manifest: Manifest = codec::decode(&bytes).map_err(|cause| cause.to_string())?;
        manifest.check().map_err(|cause| cause.to_string())?;
        Ok(manifest)
    };
    read().map_err(StageError::Weights)
}
