//! A pipeline: the stages that hold a whole model, as far as they have said so.

use std::time::{Duration, Instant};

use protocol::config::{Config, RunAhead};
use protocol::message::{LoadProgress, Loading};
use protocol::{
    Body, Epoch, Frame, Masks, ModelId, NodeId, NodeReport, PipelineId, StageEcho, StageId,
    StageIndex, StageLimits, StagePlan, Step,
};

use crate::cluster::Action;
use crate::known::{Candidate, Known, Measured};
use crate::lane::{Capacity, Lane, Scheduled};
use crate::model::Model;
use crate::placement::predict::Prediction;
use crate::placement::{self, Placed, PlacementError, Wish};
use crate::status::{PipelineStatus, StageState, StageStatus};

#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) id: PipelineId,
    pub(crate) epoch: Epoch,
    pub(crate) stages: Vec<Stage>,
    pub(crate) last_progress: Instant,
    /// What runs in it, from the moment on when it serves.
    pub(crate) lane: Option<Lane>,
    /// Whether a link for masks was opened to its last stage.
    pub(crate) links_masks: bool,
    /// Since when and why nothing begins in it any more.
    pub(crate) draining: Option<(Instant, String)>,
    /// What was expected of it when it was placed.
    pub(crate) predicted: Prediction,
    pub(crate) measured: Measured,
}

#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) plan: StagePlan,
    pub(crate) node: NodeId,
    pub(crate) loading: Loading,
    pub(crate) echo: Option<StageEcho>,
    /// Whether its links are open: the one that brings it steps, and the one over which it reports.
    pub(crate) is_linked: bool,
}

impl Pipeline {
    /// Finds `num_stages` stages for the model on the adapters of `nodes`, which `keep` what they
    /// hold unless the slowest stage becomes so much faster.
    ///
    /// # Errors
    /// When the model fits on them in no way.
    pub(crate) fn plan(
        config: &Config,
        model: &Model,
        (nodes, known, keep): (&[&NodeReport], &Known, f64),
        num_stages: usize,
        (id, epoch): (PipelineId, Epoch),
        now: Instant,
    ) -> Result<Self, PlacementError> {
        let candidates = known.candidates(nodes);
        let num_layers = model.cost.layers.len();
        // All steps that are under way may wait at one stage.
        let max = config.transport.max_buffered_frames;
        let needed = num_stages + usize::from(config.scheduler.run_ahead != RunAhead::Off);
        if needed > max as usize {
            return Err(PlacementError::TooFewFrames { num_stages, needed, max });
        }
        let places: Vec<_> = candidates.iter().map(|it| it.place.clone()).collect();
        let wish = Wish { num_stages, lengths: &config.coordinator.layers, keep };
        let cut = placement::place(&model.cost, &places, &known.links, wish)?;
        let place_of = |stage: usize| &candidates[cut[stage].place];
        let memory = |stage: &Placed| {
            let shared_by = cut.iter().filter(|other| other.place == stage.place).count();
            let Candidate { peer, adapter, place } = &candidates[stage.place];
            (place.memory + known.shortage((peer.node, *adapter))) / shared_by as u64
        };
        let max_num_seqs = config.scheduler.max_num_seqs as usize;
        let predicted = Prediction::new(&model.cost, &places, &known.links, &cut, max_num_seqs);
        let stages = cut.iter().enumerate().map(|(stage, placed)| {
            let (place, layers) = (place_of(stage), placed.layers);
            // Embedding, layers, head: the stage compares those that it holds.
            let (first, end) = (layers.first as usize + 1, layers.end as usize + 1);
            let mut digests = model.digests[first..end].to_vec();
            if stage == 0 {
                digests.insert(0, model.digests[0]);
            }
            if stage + 1 == num_stages {
                digests.push(model.digests[num_layers + 1]);
            }
            let plan = StagePlan {
                id: StageId { pipeline: id, epoch, stage: StageIndex(stage as u32) },
                num_stages: num_stages as u32,
                layers,
                adapter: place.adapter,
                model: model.id,
                model_path: model.path.clone(),
                digests,
                quantize: config.model.quantize,
                kv_cache_dtype: config.model.kv_cache_dtype,
                next: (num_stages > 1).then(|| place_of((stage + 1) % num_stages).peer),
                limits: limits(config, model),
                memory_bytes: memory(placed),
            };
            Stage {
                plan,
                node: place.peer.node,
                loading: Loading::default(),
                echo: None,
                is_linked: false,
            }
        });
        let stages = stages.collect();
        Ok(Self {
            id,
            epoch,
            stages,
            last_progress: now,
            lane: None,
            links_masks: false,
            draining: None,
            predicted,
            measured: Measured::default(),
        })
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.lane.is_some() && !self.is_draining()
    }

    /// Whether nothing begins in it any more.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// What it is busy with, until it is ready.
    pub(crate) fn doing(&self) -> String {
        let num_stages = self.stages.len();
        let loading = self.stages.iter().filter(|stage| stage.echo.is_none());
        let said: Vec<_> =
            loading.map(|it| format!("stage {}: {}", it.plan.id.stage, it.loading)).collect();
        let linked = self.stages.iter().filter(|stage| stage.is_linked).count();
        if said.is_empty() {
            format!("linking: {linked} of {num_stages} stages have their links")
        } else {
            format!("loading: {}", said.join("; "))
        }
    }

    /// Why it is to be given up, when nothing has moved for too long: the step that has been under
    /// way for longest, or, until the pipeline is ready, its loading or its links.
    pub(crate) fn is_stuck(&self, config: &Config, now: Instant) -> Option<String> {
        let coordinator = &config.coordinator;
        let (since, milliseconds) = match &self.lane {
            Some(lane) => (lane.oldest_step()?, coordinator.step_timeout_ms),
            None if !self.is_loaded() => (self.last_progress, coordinator.load_timeout_ms),
            // The node whose dial fails knows why, and is to say so first.
            None => (self.last_progress, config.transport.connect_timeout_ms.saturating_mul(2)),
        };
        if now.saturating_duration_since(since) <= Duration::from_millis(milliseconds) {
            return None;
        }
        let seconds = milliseconds / 1000;
        let unlinked = self.stages.iter().find(|stage| !stage.is_linked);
        Some(match unlinked {
            None => format!("a step took longer than {seconds} s (coordinator.step_timeout_ms)"),
            Some(Stage { plan, node, .. }) if self.is_loaded() => format!(
                "the link to stage {} on node {node} did not open within {seconds} s (twice \
                 transport.connect_timeout_ms)",
                plan.id.stage
            ),
            Some(_) => {
                format!("loading made no progress for {seconds} s (coordinator.load_timeout_ms)")
            }
        })
    }

    /// The nodes that it waits for, until it is ready: those of stages that aren't loaded, then
    /// that of the first that nobody has linked.
    pub(crate) fn awaited(&self) -> Vec<NodeId> {
        let unlinked = self.stages.iter().filter(|stage| !stage.is_linked);
        match self.is_loaded() {
            true => unlinked.take(1).map(|stage| stage.node).collect(),
            false => unlinked.filter(|it| it.echo.is_none()).map(|it| it.node).collect(),
        }
    }

    /// Whether every stage has said what it holds.
    pub(crate) fn is_loaded(&self) -> bool {
        self.stages.iter().all(|stage| stage.echo.is_some())
    }

    /// A stage's links are open. False when the stage isn't that node's, or was linked before.
    pub(crate) fn link(&mut self, node: NodeId, stage: StageIndex, now: Instant) -> bool {
        let found = self.stages.get_mut(stage.index());
        let Some(stage) = found.filter(|stage| stage.node == node && !stage.is_linked) else {
            return false;
        };
        stage.is_linked = true;
        self.last_progress = now;
        true
    }

    /// Whether a stage of it is on this node.
    pub(crate) fn is_on(&self, node: NodeId) -> bool {
        self.stages.iter().any(|stage| stage.node == node)
    }

    /// Takes in what a stage says of its loading: whether anything of it is new. Only then it is
    /// alive.
    pub(crate) fn has_moved(&mut self, progress: &LoadProgress, now: Instant) -> bool {
        let stage = self.stages.get_mut(progress.id.stage.index());
        let Some(stage) = stage.filter(|stage| stage.echo.is_none()) else {
            return false;
        };
        let loading = progress.loading.bounded();
        let moved = stage.loading != loading;
        if moved {
            stage.loading = loading;
            self.last_progress = now;
        }
        moved
    }

    /// What it can hold, once every stage has said what it holds, and all of them are linked.
    /// `takes_masks` says of a node whether it knows masks.
    pub(crate) fn capacity(
        &self,
        model: ModelId,
        takes_masks: impl Fn(NodeId) -> bool,
    ) -> Option<Capacity> {
        if !self.stages.iter().all(|stage| stage.is_linked) {
            return None;
        }
        let mut num_blocks = usize::MAX;
        for stage in &self.stages {
            num_blocks = num_blocks.min(stage.echo.as_ref()?.num_blocks as usize);
        }
        Some(Capacity {
            num_blocks,
            num_stages: self.stages.len(),
            class: self.class(model),
            takes_masks: self.stages.iter().all(|stage| takes_masks(stage.node)),
        })
    }

    /// A step goes to the first stage.
    pub(crate) fn send(&mut self, model: ModelId, step: Scheduled, actions: &mut Vec<Action>) {
        let Scheduled { step, batch, awaits_masks, tells_hidden, traces } = step;
        let stage = self.first();
        let batch = batch.into();
        let body = Step { batch, awaits_masks, tells_hidden, traces, ..Step::default() };
        actions.push(Action::Send(Box::new(Frame { model, stage, step, body: Body::Step(body) })));
    }

    /// Masks go straight to the last stage, be it the first, as soon as they can be made: it needs
    /// them only once all else of the step is computed.
    pub(crate) fn send_masks(&mut self, model: ModelId, actions: &mut Vec<Action>) {
        let stage = self.first().beside_last(self.stages.len() as u32);
        let (Some(lane), Some(last)) = (&mut self.lane, self.stages.last()) else { return };
        while let Some((step, wanted)) = lane.settled() {
            if !std::mem::replace(&mut self.links_masks, true) {
                actions.push(Action::Connect(last.node, stage));
            }
            let body = Body::Masks(Masks::default());
            actions.push(Action::Mask(Box::new(Frame { model, stage, step, body }), wanted));
        }
    }

    fn first(&self) -> StageId {
        StageId { pipeline: self.id, epoch: self.epoch, stage: StageIndex(0) }
    }

    /// The model and the device class of each layer, as one short hash: answers are bit-equal
    /// between pipelines that have the same.
    fn class(&self, model: ModelId) -> u64 {
        // FNV-1a over a list that is hashes already; only a name for people and caches.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut add = |bytes: &[u8]| {
            for byte in bytes {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        };
        add(&model.0);
        for stage in &self.stages {
            let class = stage.echo.as_ref().map(|echo| echo.fingerprint.0).unwrap_or_default();
            (0..stage.plan.layers.len()).for_each(|_| add(&class));
        }
        hash
    }

    /// Its class, as the API shows it.
    pub(crate) fn fingerprint(&self, model: ModelId) -> String {
        format!("fp_{:016x}", self.class(model))
    }

    /// Its stages on `nodes`.
    pub(crate) fn status(&self, nodes: &[NodeReport]) -> PipelineStatus {
        let stages = self.stages.iter().enumerate().map(|(number, stage)| {
            let node = nodes.iter().find(|node| node.node == stage.node);
            let adapter = node.and_then(|node| node.adapters.get(stage.plan.adapter as usize));
            StageStatus {
                stage: stage.plan.id.stage,
                node: stage.node,
                hostname: node.map_or_else(String::new, |node| node.hostname.clone()),
                pid: node.map_or(0, |node| node.pid),
                adapter: adapter.map_or_else(String::new, |adapter| adapter.name.clone()),
                adapter_number: stage.plan.adapter,
                driver: adapter.map_or_else(String::new, |adapter| adapter.driver.clone()),
                layers: stage.plan.layers,
                state: match (&stage.echo, stage.is_linked) {
                    (None, _) => StageState::Loading,
                    (Some(_), false) => StageState::Linking,
                    (Some(_), true) => StageState::Serving,
                },
                class: stage.echo.as_ref().map(|echo| echo.fingerprint),
                num_blocks: stage.echo.as_ref().map_or(0, |echo| echo.num_blocks),
                memory_bytes: stage.loading.loaded_bytes,
                of_bytes: stage.loading.total_bytes,
                measured_s: self.measured.stage_s(number),
            }
        });
        PipelineStatus {
            pipeline: self.id,
            is_draining: self.is_draining(),
            stages: stages.collect(),
            predicted: self.predicted.clone(),
            measured_token_s: self.measured.token_s(),
        }
    }
}

impl Stage {
    /// In what the stage differs from its plan: only one that holds exactly what was asked of it is
    /// routed to.
    pub(crate) fn mismatch(&self, echo: &StageEcho, model: &Model) -> Option<String> {
        let hidden_size = model.hidden_size;
        if echo.model != model.id {
            Some(format!("holds model {}, not {}", echo.model, model.id))
        } else if echo.layers != self.plan.layers {
            Some(format!("holds layers {}, not {}", echo.layers, self.plan.layers))
        } else if echo.hidden_size != hidden_size {
            Some(format!("passes rows of {} f32s, not {hidden_size}", echo.hidden_size))
        } else if echo.num_blocks == 0 {
            Some("has no room for a KV cache".into())
        } else if echo.num_blocks > self.plan.limits.max_blocks {
            // The scheduler takes memory for each.
            let (num, max) = (echo.num_blocks, self.plan.limits.max_blocks);
            Some(format!("has {num} blocks of KV cache, more than the {max} that were asked for"))
        } else {
            None
        }
    }
}

/// More than any memory holds; the scheduler takes a few bytes for each.
const MAX_BLOCKS: u32 = 1 << 24;

fn limits(config: &Config, model: &Model) -> StageLimits {
    let scheduler = &config.scheduler;
    let max_model_len = model.max_model_len;
    let blocks = max_model_len.div_ceil(protocol::BLOCK_TOKENS as u32);
    let fillable = blocks.saturating_mul(scheduler.max_num_seqs).min(MAX_BLOCKS);
    StageLimits {
        max_batched_tokens: scheduler.max_batched_tokens,
        max_num_seqs: scheduler.max_num_seqs,
        max_model_len,
        max_blocks: match scheduler.max_blocks {
            0 => fillable,
            max_blocks => max_blocks,
        },
        max_logprobs: config.http.max_logprobs,
    }
}

/// A stage of so many layers, as tests need one.
#[cfg(test)]
pub(crate) fn testing_stage(node: u64, number: u32, num_layers: u32) -> Stage {
    let first = number * num_layers;
    let limits = StageLimits {
        max_batched_tokens: 1,
        max_num_seqs: 1,
        max_model_len: 16,
        max_blocks: 1,
        max_logprobs: 0,
    };
    let plan = StagePlan {
        id: StageId { stage: StageIndex(number), ..StageId::default() },
        num_stages: 2,
        layers: protocol::LayerRange { first, end: first + num_layers },
        adapter: 0,
        model: ModelId::default(),
        model_path: String::new(),
        digests: Vec::new(),
        quantize: Default::default(),
        kv_cache_dtype: Default::default(),
        next: None,
        limits,
        memory_bytes: 0,
    };
    let loading = Loading::default();
    Stage { plan, node: NodeId(node), loading, echo: None, is_linked: false }
}
