//! A pipeline: the stages that hold a whole model, as far as they have said so.

use std::time::Instant;

use protocol::{
    Batch, Body, Epoch, Frame, ModelId, NodeId, PipelineId, StageEcho, StageIndex, StagePlan, Step,
    StepId,
};

use crate::scheduler::Capacity;
use crate::status::{PipelineStatus, StageState, StageStatus};

#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) id: PipelineId,
    pub(crate) epoch: Epoch,
    pub(crate) stages: Vec<Stage>,
    pub(crate) last_progress: Instant,
}

#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) plan: StagePlan,
    pub(crate) node: NodeId,
    pub(crate) loaded_bytes: u64,
    pub(crate) echo: Option<StageEcho>,
}

impl Pipeline {
    pub(crate) fn is_ready(&self) -> bool {
        self.stages.iter().all(|stage| stage.echo.is_some())
    }

    /// What it can hold, once every stage has said what it holds.
    pub(crate) fn capacity(&self) -> Option<Capacity> {
        let mut num_blocks = usize::MAX;
        for stage in &self.stages {
            num_blocks = num_blocks.min(stage.echo.as_ref()?.num_blocks as usize);
        }
        Some(Capacity { num_blocks, num_stages: self.stages.len() })
    }

    pub(crate) fn step(&self, model: ModelId, step: StepId, batch: Batch) -> Frame {
        Frame {
            model,
            pipeline: self.id,
            stage: StageIndex(0),
            epoch: self.epoch,
            step,
            body: Body::Step(Step { batch, ..Step::default() }),
        }
    }

    /// The model and the device class of each layer, as one short hash: answers are bit-equal
    /// between pipelines that have the same.
    pub(crate) fn fingerprint(&self, model: ModelId) -> String {
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
        format!("fp_{hash:016x}")
    }

    pub(crate) fn status(&self) -> PipelineStatus {
        let stages = self.stages.iter().map(|stage| StageStatus {
            stage: stage.plan.stage,
            node: stage.node,
            layers: stage.plan.layers,
            state: match stage.echo {
                Some(_) => StageState::Serving,
                None => StageState::Loading,
            },
            num_blocks: stage.echo.as_ref().map_or(0, |echo| echo.num_blocks),
            memory_bytes: stage.loaded_bytes,
        });
        PipelineStatus { pipeline: self.id, stages: stages.collect() }
    }
}
