//! Where a stage's weights come from: the files at the plan's path, where they are the
//! coordinator's, or else pieces from other members of the cluster, kept in a [`Cache`].

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::pending;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use checkpoint::{Checkpoint, Part};
use protocol::pieces::MAX_MANIFEST_BYTES;
use protocol::{Ask, Digest, Manifest, ModelId, PieceId, StagePlan, codec};
use tokio::sync::{Mutex, mpsc};
use tokio::task::spawn_blocking;
use tracing::info;
use transport::{Connection, PieceSource};

use crate::cache::{Cache, CachedModel};
use crate::device_thread::DeviceThread;
use crate::error::StageError;
use crate::fetch::{self, Given, OpenSources};
use crate::kept::{check_files, parts};

/// What a node has of models' files, and how it gets the rest.
#[derive(Debug)]
pub(crate) struct WeightStore {
    cache: Arc<Cache>,
    // Whether files at a plan's path are of any use.
    uses_local_files: bool,
    // The newest model that was fetched. What was verified of it is not verified again.
    fetched: Mutex<Option<(ModelId, Arc<CachedModel>)>>,
}

/// A plan, and files that hold what it needs.
#[derive(Debug)]
pub(crate) struct Provided {
    /// With the files' path here.
    pub plan: StagePlan,
    // While it is read it isn't to make room for another model.
    _files: Option<Arc<CachedModel>>,
}

impl WeightStore {
    /// Nothing fetched yet.
    pub(crate) fn new(cache: Cache, uses_local_files: bool) -> Self {
        Self { cache: Arc::new(cache), uses_local_files, fetched: Mutex::default() }
    }

    /// The plan, with the path of files that hold what it needs, and whose configuration hashes to
    /// `config`, where that was said. They stay as long as what is returned does. Of what is
    /// fetched each part goes to `device` as soon as it is here, while others are on their way.
    ///
    /// # Errors
    /// When the files are no use here, and no source gives what is missing.
    pub(crate) async fn provide(
        &self,
        mut plan: StagePlan,
        config: Option<Digest>,
        sources: OpenSources,
        device: Option<&DeviceThread>,
        progress: &mut (dyn FnMut(Given) + Send),
    ) -> Result<Provided, StageError> {
        if self.uses_local_files && Path::new(&plan.model_path).exists() {
            let local = plan.clone();
            match run(move || is_here(&local, config)).await? {
                Ok(()) => return Ok(Provided { plan, _files: None }),
                Err(cause) => info!(%cause, "the model's files are fetched"),
            }
        }
        let manifest = manifest(plan.model, &sources.coordinator).await?;
        let (headers, by_part) =
            manifest.needed_by_part(&plan).map_err(|it| StageError::Weights(it.to_string()))?;
        let needed = by_part.iter().flatten().chain(&headers).copied().collect();
        let mut awaited = Awaited { headers, parts: by_part.into_iter().map(Some).collect() };
        let model = self.model(plan.model, manifest, &needed).await?;
        plan.model_path = model.path().to_string_lossy().into_owned();
        let (tell, whole) = mpsc::unbounded_channel();
        let mut came = |given, pieces: &[PieceId]| {
            progress(given);
            for part in awaited.came(pieces) {
                let _ = tell.send(part);
            }
        };
        // What it hasn't taken when all is here is loaded with the rest.
        tokio::select! {
            biased;
            fetched = fetch::fetch(plan.model, &model, needed, sources, &mut came) => fetched?,
            never = bring(&model, &plan, device, whole) => match never {},
        };
        run(move || {
            let files = Checkpoint::open(&model.path())?;
            check_config(&files, &plan, config)?;
            parts(&plan).into_iter().try_for_each(|part| is_covered(&model, &files, part))?;
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
        // Held no longer: it may be what is in the way.
        let last = fetched.take().map(|(_, model)| model);
        // Removing what is in the way may take long, and frames are not to wait for it.
        let (cache, needed) = (Arc::clone(&self.cache), needed.clone());
        let model = run(move || cache.model(&manifest, &needed, last)).await?;
        let model = model.map_err(StageError::Weights)?;
        *fetched = Some((id, Arc::clone(&model)));
        Ok(model)
    }
}

/// Other nodes get what is here.
impl PieceSource for WeightStore {
    async fn give(&self, ask: Ask) -> Result<Bytes, String> {
        let id = match ask {
            Ask::Piece(id, ..) | Ask::Held(id) => id,
            Ask::Manifest(_) => return Err("manifests come from the coordinator".into()),
        };
        let fetched = self.fetched.lock().await.clone();
        let model = fetched.filter(|(known, _)| *known == id).map(|(_, model)| model);
        let model = model.ok_or_else(|| format!("nothing of model {id} is here"))?;
        let read = spawn_blocking(move || {
            let Ask::Piece(_, piece, digest) = ask else {
                // Waits while the disk takes what came: signs of life must not.
                return Ok(codec::encode(&model.held()));
            };
            if model.manifest().digest(piece) != Some(digest) || !model.holds(piece) {
                return Err("the piece isn't here".to_owned());
            }
            model.read(piece).map_err(|cause| cause.to_string())
        });
        read.await.map_err(|cause| cause.to_string())?.map(Bytes::from)
    }
}

/// What is still to come, of a plan that is fetched.
struct Awaited {
    headers: BTreeSet<PieceId>,
    // None: it was told that this part is whole.
    parts: Vec<Option<BTreeSet<PieceId>>>,
}

impl Awaited {
    /// These are here: the parts that are whole by that, by their places in the plan.
    fn came(&mut self, pieces: &[PieceId]) -> Vec<usize> {
        for missing in self.parts.iter_mut().flatten().chain([&mut self.headers]) {
            for piece in pieces {
                missing.remove(piece);
            }
        }
        let is_readable = self.headers.is_empty();
        let parts = self.parts.iter_mut().enumerate();
        let whole = parts.filter_map(|(part, missing)| {
            missing.take_if(|missing| is_readable && missing.is_empty()).map(|_| part)
        });
        whole.collect()
    }
}

/// Gives parts to the device as they become whole. Where that fails it is left to whoever loads
/// all of them, who says why.
async fn bring(
    model: &Arc<CachedModel>,
    plan: &StagePlan,
    device: Option<&DeviceThread>,
    mut whole: mpsc::UnboundedReceiver<usize>,
) -> Infallible {
    let mut opened = None;
    while let Some(number) = whole.recv().await {
        let (Some(device), Some(part)) = (device, parts(plan).get(number).copied()) else {
            continue;
        };
        let (model, known) = (Arc::clone(model), opened.take());
        let checked = run(move || {
            let files = known.map_or_else(|| Checkpoint::open(&model.path()), Ok)?;
            is_covered(&model, &files, part)?;
            Ok::<_, StageError>(files)
        });
        if let Ok(Ok(files)) = checked.await {
            opened = Some(files);
            device.bring(plan.clone(), number).await;
        }
    }
    pending().await
}

/// Whether every tensor of a part lies in pieces that are here: whatever the manifest says of where
/// they lie, a hole is not to be taken for zeros.
fn is_covered(model: &CachedModel, files: &Checkpoint, part: Part) -> Result<(), StageError> {
    let names = files.files()?.into_iter().map(|it| it.path);
    let names: Vec<_> = names.map(|it| it.file_name().unwrap_or_default().to_owned()).collect();
    for (file, range) in files.ranges(part)? {
        if !model.covers(&names[file], range.clone()) {
            return Err(StageError::Weights(format!(
                "bytes {range:?} of {} are needed and the manifest doesn't say so: the coordinator \
                 is to hash the model's files again",
                names[file].display()
            )));
        }
    }
    Ok(())
}

fn is_here(plan: &StagePlan, config: Option<Digest>) -> Result<(), StageError> {
    let files = Checkpoint::open(Path::new(&plan.model_path))?;
    check_config(&files, plan, config)?;
    check_files(&files, plan)
}

/// The digests of a plan say nothing of how its parts are computed with.
fn check_config(
    files: &Checkpoint,
    plan: &StagePlan,
    config: Option<Digest>,
) -> Result<(), StageError> {
    if config.is_none_or(|it| it == Digest(files.config_digest())) {
        return Ok(());
    }
    let (path, part) = (plan.model_path.clone(), "its configuration".into());
    Err(StageError::OtherModel { path, part })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_whole_when_its_last_piece_and_the_headers_are_here() {
        let piece = |index| PieceId { file: 0, index };
        let set = |indices: &[u32]| indices.iter().copied().map(piece).collect::<BTreeSet<_>>();
        // Two parts share a piece, the third lies in none of its own.
        let parts = [set(&[1, 2]), set(&[2, 3]), set(&[])].map(Some).to_vec();
        let mut awaited = Awaited { headers: set(&[0]), parts };
        let none: [usize; 0] = [];
        assert_eq!(awaited.came(&[]), none);
        assert_eq!(awaited.came(&[piece(1), piece(2)]), none);
        assert_eq!(awaited.came(&[piece(0)]), [0, 2]);
        assert_eq!(awaited.came(&[piece(0)]), none, "each is told once");
        assert_eq!(awaited.came(&[piece(3)]), [1]);
    }

    #[test]
    fn files_of_the_same_weights_and_another_configuration_are_another_models() {
        let glass = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/glass-en");
        let dir = tempfile::tempdir().unwrap();
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(Path::new(glass).join(name), dir.path().join(name)).unwrap();
        }
        let files = Checkpoint::open(dir.path()).unwrap();
        let config = Digest(files.config_digest());
        let model_path = dir.path().to_string_lossy().into_owned();
        let plan = StagePlan { model_path, ..crate::kept::tests::plan(&files, 1..3) };
        is_here(&plan, Some(config)).unwrap();
        let path = dir.path().join("config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("10000.0", "20000.0")).unwrap();
        is_here(&plan, None).unwrap();
        let cause = is_here(&plan, Some(config)).unwrap_err().to_string();
        assert!(cause.contains("its configuration differs"), "{cause}");
    }
}
