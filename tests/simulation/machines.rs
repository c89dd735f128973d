//! Machines and what runs on them: stages that load, compute one step after another, and are gone
//! with their process.

use std::sync::Arc;
use std::time::Duration;

use protocol::{
    AdapterReport, Batch, Carried, Digest, Epoch, NodeId, NodeReport, PipelineId, SessionId,
    StageId, StagePlan, StepId,
};

use super::scenario::{Cost, NodeSpec};
use super::stage::{Output, Stage, Trouble};

/// A machine with one adapter.
#[derive(Debug)]
pub struct Machine {
    pub node: NodeId,
    pub spec: NodeSpec,
    /// The newest; news for an older one finds nobody.
    pub session: SessionId,
    pub is_up: bool,
    stages: Vec<Stage>,
    // Until when its adapter computes what has arrived.
    busy_until: Duration,
}

/// A step that has arrived at a stage.
#[derive(Clone, Debug)]
pub struct Arrived {
    pub stage: StageId,
    pub step: StepId,
    pub batch: Arc<Carried<Batch>>,
    /// Of the stage before.
    pub rows: Option<Vec<u64>>,
}

impl Machine {
    /// It has not joined yet.
    pub fn new(number: usize, spec: NodeSpec) -> Self {
        Self {
            node: NodeId(number as u64),
            spec,
            session: SessionId(0),
            is_up: false,
            stages: Vec::new(),
            busy_until: Duration::ZERO,
        }
    }

    /// Of equal classes come equal bits.
    pub fn class(&self) -> Digest {
        Digest([self.spec.class; 32])
    }

    /// What it says of itself.
    pub fn report(&self) -> NodeReport {
        let adapter = AdapterReport {
            name: "virtual".into(),
            driver: "rule".into(),
            memory_bytes: 1 << 30,
            fingerprint: self.class(),
            speed: Default::default(),
        };
        NodeReport {
            node: self.node,
            session: self.session,
            hostname: format!("machine-{}", self.node.0),
            pid: self.node.0 as u32 + 1,
            data_addr: ([127, 0, 0, 1], 9000 + self.node.0 as u16).into(),
            adapters: vec![adapter],
        }
    }

    /// Its process begins, or connects anew: nothing is left of what it held.
    pub fn rise(&mut self, session: SessionId, now: Duration) {
        (self.session, self.is_up, self.busy_until) = (session, true, now);
        self.stages.clear();
    }

    /// Its process is gone. The stages that it held.
    pub fn fall(&mut self) -> Vec<StageId> {
        self.is_up = false;
        self.stages.drain(..).map(|stage| stage.plan().id).collect()
    }

    /// Holds a stage from now on.
    pub fn load(&mut self, plan: StagePlan) -> &Stage {
        let num_blocks = self.spec.num_blocks.min(plan.limits.max_blocks);
        self.stages.push(Stage::new(plan, num_blocks));
        self.stages.last().expect("it was just pushed")
    }

    /// Drops its stages of a pipeline, of this epoch and older.
    pub fn unload(&mut self, pipeline: PipelineId, epoch: Epoch) {
        let is_newer = |it: StageId| it.pipeline != pipeline || it.epoch > epoch;
        self.stages.retain(|it| is_newer(it.plan().id));
    }

    /// A stage that it holds.
    pub fn stage(&mut self, id: StageId) -> Option<&mut Stage> {
        self.stages.iter_mut().find(|it| it.plan().id == id)
    }

    /// A step has arrived: how long it takes, and when it will be computed.
    pub fn take(
        &mut self,
        arrived: &Arrived,
        cost: &Cost,
        now: Duration,
    ) -> Option<(Duration, Duration)> {
        let num_stages = self.stage(arrived.stage)?.plan().num_stages;
        let (num_tokens, num_read) = Stage::work(&arrived.batch);
        let all = cost.fixed
            + cost.per_token * num_tokens as u32
            + cost.per_context.mul_f64(num_read as f64 / 1e3);
        let takes = all / num_stages;
        self.busy_until = self.busy_until.max(now) + takes;
        Some((takes, self.busy_until))
    }

    /// Computes a step, if it holds the stage still.
    pub fn compute(
        &mut self,
        arrived: &Arrived,
        class: u64,
    ) -> Option<Result<(Output, Option<String>), Trouble>> {
        let stage = self.stage(arrived.stage)?;
        Some(stage.compute(&arrived.batch, arrived.rows.as_deref(), class))
    }
}
