//! Weights on an adapter, by part of a model. They outlive the stage that they were loaded for: one
//! of a new epoch takes what is there, and only what is missing is loaded.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use checkpoint::{Checkpoint, Matrix, Part};
use protocol::config::Quantize;
use protocol::message::Loading;
use protocol::{Digest, HeldParts, LayerRange, ModelId, StagePlan};
use shaders::gpu::Gpu;
use shaders::weights::WeightMatrix;
use tracing::info;

use crate::error::StageError;
use crate::memory::part_bytes;
use crate::model::head::HeadWeights;
use crate::model::{LayerWeights, upload};

/// Which weights: of these bytes, rounded like this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    model: ModelId,
    part: Part,
    digest: Digest,
    quantize: Quantize,
}

/// A part of a model on the adapter. Clones of its tensors share their memory.
pub(crate) enum PartWeights {
    /// The embedding's table.
    Embedding(WeightMatrix),
    /// A layer's matrices and norms.
    Layer(Box<LayerWeights>),
    /// The final norm and the head's table.
    Head(HeadWeights),
}

pub(crate) struct Loaded {
    /// In their order.
    pub parts: Vec<Arc<PartWeights>>,
    pub num_bytes: u64,
}

/// What an adapter keeps. A part is in use as long as a stage holds it, too.
pub(crate) struct KeptWeights {
    parts: HashMap<Key, Kept>,
    // They stay however long no stage holds them.
    wanted: Vec<Key>,
}

struct Kept {
    weights: Arc<PartWeights>,
    num_bytes: u64,
    // The last time that it was seen in use.
    used: Instant,
}

impl Kept {
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.weights) == 1
    }

    fn take(&mut self) -> Arc<PartWeights> {
        self.used = Instant::now();
        Arc::clone(&self.weights)
    }
}

impl KeptWeights {
    pub(crate) fn new() -> Self {
        Self { parts: HashMap::new(), wanted: Vec::new() }
    }

    /// The parts of a plan: what is missing is loaded, after comparing the files with what the
    /// coordinator has, once there is room for it: of what else is kept no more stays than
    /// `others_bytes`. `progress` says whether anybody still waits; where nobody does, what was
    /// loaded by then stays.
    ///
    /// # Errors
    /// When the files don't hold them, the adapter has no room, or nobody waits any more.
    pub(crate) fn load(
        &mut self,
        gpu: &Gpu,
        files: &Checkpoint,
        plan: &StagePlan,
        others_bytes: u64,
        progress: &mut dyn FnMut(Loading) -> bool,
    ) -> Result<Loaded, StageError> {
        let keys = keys(plan)?;
        let shares_table = plan.embeds() && plan.samples() && files.config().tie_word_embeddings;
        let mut bytes = Vec::with_capacity(keys.len());
        for key in &keys {
            let is_shared = key.part == Part::Head && shares_table;
            bytes.push(if is_shared { 0 } else { files.bytes(key.part)? });
        }
        let total = bytes.iter().sum();
        let mut so_far = Loading { total_bytes: total, ..Loading::default() };
        progress(so_far);
        for (key, bytes) in keys.iter().zip(&bytes) {
            if !self.parts.contains_key(key) {
                check_part(files, plan, key)?;
            }
            so_far.checked_bytes += bytes;
            progress(so_far);
        }
        self.shrink(&keys, others_bytes);
        let num_read = keys.iter().filter(|key| !self.parts.contains_key(key)).count();
        let mut parts = Vec::with_capacity(keys.len());
        for (key, bytes) in keys.iter().zip(bytes) {
            let before = so_far.loaded_bytes;
            parts.push(match self.parts.get_mut(key) {
                Some(kept) => kept.take(),
                None => self.read(gpu, files, *key, &mut |bytes| {
                    so_far.loaded_bytes = total.min(so_far.loaded_bytes + bytes);
                    progress(so_far);
                })?,
            });
            so_far.loaded_bytes = before + bytes;
            if !progress(so_far) {
                return Err(StageError::Unwanted);
            }
        }
        info!(num_parts = parts.len(), num_read, "weights are on the adapter");
        Ok(Loaded { parts, num_bytes: total })
    }

    /// Loads one part of a plan, of which others are still to come, as [`load`](Self::load) would.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn bring(
        &mut self,
        gpu: &Gpu,
        files: &Checkpoint,
        plan: &StagePlan,
        (number, others_bytes): (usize, u64),
    ) -> Result<(), StageError> {
        let keys = keys(plan)?;
        let Some(key) = keys.get(number).filter(|key| !self.parts.contains_key(key)) else {
            return Ok(());
        };
        // A head that may share the embedding's table waits for it.
        if key.part == Part::Head && plan.embeds() {
            return Ok(());
        }
        check_part(files, plan, key)?;
        self.shrink(&keys, others_bytes);
        self.read(gpu, files, *key, &mut |_| ()).map(drop)
    }

    /// What is here, in a few words for the coordinator.
    pub(crate) fn held(&self) -> Vec<HeldParts> {
        let mut all: Vec<HeldParts> = Vec::new();
        let mut keys: Vec<_> = self.parts.keys().collect();
        keys.sort_by_key(|key| match key.part {
            Part::Embedding => 0,
            Part::Layer(layer) => 1 + layer,
            Part::Head => usize::MAX,
        });
        for Key { model, part, quantize, .. } in keys.into_iter().copied() {
            let is_of = |it: &HeldParts| (it.model, it.quantize) == (model, quantize);
            let at = all.iter().position(is_of).unwrap_or_else(|| {
                let none = HeldParts { model, quantize, ..HeldParts::default() };
                all.push(none);
                all.len() - 1
            });
            let held = &mut all[at];
            match part {
                Part::Embedding => held.embedding = true,
                Part::Head => held.head = true,
                Part::Layer(layer) => match held.layers.last_mut() {
                    Some(last) if last.end == layer as u32 => last.end += 1,
                    _ => {
                        let first = layer as u32;
                        held.layers.push(LayerRange { first, end: first + 1 });
                    }
                },
            }
        }
        all
    }

    fn read(
        &mut self,
        gpu: &Gpu,
        files: &Checkpoint,
        key: Key,
        loaded: &mut dyn FnMut(u64),
    ) -> Result<Arc<PartWeights>, StageError> {
        let weights = match key.part {
            Part::Embedding => {
                let table = upload(gpu, files, Matrix::Embedding, loaded)?;
                PartWeights::Embedding(table)
            }
            Part::Layer(layer) => {
                PartWeights::Layer(LayerWeights::load(gpu, files, layer, loaded)?.into())
            }
            Part::Head => {
                let of_model = self.parts.iter().filter(|(other, _)| {
                    (other.model, other.quantize) == (key.model, key.quantize)
                });
                let embedding = of_model.into_iter().find_map(|(_, kept)| match &*kept.weights {
                    PartWeights::Embedding(table) => Some(table),
                    _ => None,
                });
                PartWeights::Head(HeadWeights::load(gpu, files, embedding, loaded)?)
            }
        };
        let (weights, num_bytes) = (Arc::new(weights), part_bytes(gpu, files, key.part)?);
        let kept = Kept { weights: Arc::clone(&weights), num_bytes, used: Instant::now() };
        self.parts.insert(key, kept);
        Ok(weights)
    }

    /// Bytes of what no stage holds, without those `wanted` by the next.
    fn idle_bytes(&self, wanted: &[Key]) -> u64 {
        let idle = self.parts.iter().filter(|(key, kept)| kept.is_idle() && !wanted.contains(key));
        idle.map(|(_, kept)| kept.num_bytes).sum()
    }

    /// Drops what no stage holds and `wanted` doesn't name, that unused for longest first, until
    /// the rest of it takes no more than `allowed` bytes.
    fn shrink(&mut self, wanted: &[Key], allowed: u64) {
        while self.idle_bytes(wanted) > allowed {
            let idle =
                self.parts.iter().filter(|(key, kept)| kept.is_idle() && !wanted.contains(key));
            let oldest = idle.min_by_key(|(_, kept)| kept.used).map(|(key, _)| *key);
            let oldest = oldest.expect("something idle has bytes");
            self.parts.remove(&oldest);
        }
    }

    /// What this plan names stays from now on as long as there is room for it.
    pub(crate) fn want(&mut self, plan: &StagePlan) {
        self.wanted = keys(plan).unwrap_or_default();
    }

    /// Drops what no stage has held for `max_idle`, unless it is wanted.
    pub(crate) fn tidy(&mut self, now: Instant, max_idle: Duration) {
        self.parts.retain(|key, kept| {
            if !kept.is_idle() || self.wanted.contains(key) {
                kept.used = now;
            }
            now.saturating_duration_since(kept.used) < max_idle
        });
    }
}

impl Default for KeptWeights {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether files hold the parts of a plan as the coordinator's do.
///
/// # Errors
/// When they don't, or the plan can't be.
pub(crate) fn check_files(files: &Checkpoint, plan: &StagePlan) -> Result<(), StageError> {
    keys(plan)?.iter().try_for_each(|key| check_part(files, plan, key))
}

fn check_part(files: &Checkpoint, plan: &StagePlan, key: &Key) -> Result<(), StageError> {
    if Digest(files.digest(key.part)?) == key.digest {
        return Ok(());
    }
    let (path, part) = (plan.model_path.clone(), format!("{:?}", key.part));
    Err(StageError::OtherModel { path, part })
}

/// The parts of the model that a stage holds, in the order of its plan's digests.
pub(crate) fn parts(plan: &StagePlan) -> Vec<Part> {
    let mut parts = Vec::new();
    if plan.embeds() {
        parts.push(Part::Embedding);
    }
    parts.extend((plan.layers.first..plan.layers.end).map(|layer| Part::Layer(layer as usize)));
    if plan.samples() {
        parts.push(Part::Head);
    }
    parts
}

fn keys(plan: &StagePlan) -> Result<Vec<Key>, StageError> {
    // Before there is a list of them: a plan may say of any layers that it has them.
    let ends = usize::from(plan.embeds()) + usize::from(plan.samples());
    let (num_digests, num_parts) = (plan.digests.len(), plan.layers.len() + ends);
    if num_digests != num_parts {
        return Err(StageError::BadPlan(format!("{num_digests} digests for {num_parts} parts")));
    }
    let StagePlan { model, quantize, .. } = *plan;
    let key = |(part, digest): (Part, &Digest)| Key { model, part, digest: *digest, quantize };
    Ok(parts(plan).into_iter().zip(&plan.digests).map(key).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use protocol::config::KvCacheDtype;
    use protocol::{LayerRange, StageId, StageIndex, StageLimits};

    use super::*;

    /// Layers of a small model, without its ends.
    pub(crate) fn plan(files: &Checkpoint, layers: std::ops::Range<u32>) -> StagePlan {
        let digest = |layer: u32| Digest(files.digest(Part::Layer(layer as usize)).unwrap());
        StagePlan {
            id: StageId { stage: StageIndex(1), ..StageId::default() },
            num_stages: 3,
            layers: LayerRange { first: layers.start, end: layers.end },
            adapter: 0,
            model: ModelId::default(),
            model_path: String::new(),
            digests: layers.map(digest).collect(),
            quantize: Quantize::None,
            kv_cache_dtype: KvCacheDtype::Auto,
            next: None,
            limits: StageLimits {
                max_batched_tokens: 8,
                max_num_seqs: 1,
                max_model_len: 16,
                max_blocks: 1,
                max_logprobs: 0,
            },
            memory_bytes: 0,
        }
    }

    /// The default adapter. None, said aloud, where there is none.
    fn adapter() -> Option<Gpu> {
        Gpu::open(None).inspect_err(|cause| println!("skipped: no adapter ({cause})")).ok()
    }

    fn glass() -> Checkpoint {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/glass-en");
        Checkpoint::open(std::path::Path::new(path)).unwrap()
    }

    #[test]
    fn only_what_is_missing_is_loaded_and_what_nobody_holds_gives_way() {
        let Some(gpu) = adapter() else { return };
        let files = glass();
        let mut kept = KeptWeights::new();
        let load = |kept: &mut KeptWeights, layers, others_bytes| {
            kept.load(&gpu, &files, &plan(&files, layers), others_bytes, &mut |_| true).unwrap()
        };
        let first = load(&mut kept, 0..2, u64::MAX);
        // It moves by a layer: what both hold is the same memory.
        let second = load(&mut kept, 1..3, u64::MAX);
        assert!(Arc::ptr_eq(&first.parts[1], &second.parts[0]));
        assert_eq!((first.num_bytes, kept.parts.len()), (second.num_bytes, 3));
        // What a stage holds stays whatever is needed; the rest goes when it is.
        drop(second);
        let layer = part_bytes(&gpu, &files, Part::Layer(0)).unwrap();
        assert_eq!(kept.idle_bytes(&[]), layer);
        kept.shrink(&[], layer);
        assert_eq!(kept.parts.len(), 3, "there is room for it");
        let other = load(&mut kept, 3..4, layer - 1);
        assert_eq!(kept.parts.len(), 3, "layers 0, 1 and 3");
        let layers = [(0, 2), (3, 4)].map(|(first, end)| LayerRange { first, end }).to_vec();
        assert_eq!(kept.held(), [HeldParts { layers, ..HeldParts::default() }]);
        // Or when nobody wanted it for long.
        drop((first, other));
        kept.want(&plan(&files, 3..4));
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        kept.tidy(now, second);
        assert_eq!(kept.parts.len(), 3);
        kept.tidy(now + second, second);
        assert_eq!(kept.parts.len(), 1, "layer 3 is wanted");
        kept.shrink(&[], 0);
        assert!(kept.parts.is_empty());
    }

    /// Goal: what came early is taken by whoever loads the rest, and nothing is there twice.
    #[test]
    fn parts_that_are_brought_before_the_rest_are_not_loaded_again() {
        let Some(gpu) = adapter() else { return };
        let files = glass();
        let mut kept = KeptWeights::new();
        let plan = plan(&files, 0..2);
        let held =
            |kept: &KeptWeights| kept.parts.values().map(|it| Arc::as_ptr(&it.weights)).next();
        for _ in 0..2 {
            kept.bring(&gpu, &files, &plan, (1, u64::MAX)).unwrap();
        }
        let brought = held(&kept);
        assert_eq!(kept.held()[0].layers, [LayerRange { first: 1, end: 2 }]);
        let loaded = kept.load(&gpu, &files, &plan, u64::MAX, &mut |_| true).unwrap();
        assert_eq!(brought, Some(Arc::as_ptr(&loaded.parts[1])));
        assert_eq!(kept.parts.len(), 2);
        // What the plan doesn't ask for gives way, as it does for whoever loads all of it.
        drop(loaded);
        kept.bring(&gpu, &files, &self::plan(&files, 2..3), (0, 0)).unwrap();
        assert_eq!(kept.held()[0].layers, [LayerRange { first: 2, end: 3 }]);
    }

    #[test]
    fn a_plan_has_a_digest_for_each_part() {
        let files = glass();
        let mut plan = plan(&files, 0..2);
        plan.digests.pop();
        assert!(keys(&plan).unwrap_err().to_string().contains("1 digests for 2 parts"));
        // Which takes no memory for layers that there can't be.
        plan.layers.end = u32::MAX;
        assert!(keys(&plan).unwrap_err().to_string().contains("1 digests for 4294967295 parts"));
    }
}
