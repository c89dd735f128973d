//! Machines and what runs on them: stages that load, compute one step after another, and are gone
//! with their process.

use std::sync::Arc;
use std::time::Duration;

use protocol::{
    AdapterReport, Batch, Body, Carried, Digest, Epoch, NodeId, NodeReport, PipelineId, SessionId,
    StageId, StagePlan, StageTiming, StepId,
};

use super::scenario::{Cost, NodeSpec};
use super::stage::{Computed, Stage, Trouble};

/// A machine with one adapter.
#[derive(Debug)]
pub struct Machine {
    pub node: NodeId,
    pub spec: NodeSpec,
    /// The newest; news for an older one finds nobody.
    pub session: SessionId,
    pub is_up: bool,
    /// Its process does nothing until then.
    pub frozen_until: Duration,
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
    pub since: Duration,
    /// How long it is computed for.
    pub takes: Duration,
    /// What the stages before took.
    pub timings: Vec<StageTiming>,
    /// Of the stage before, unless this is the first one.
    pub rows: Result<Option<Vec<u64>>, NotComputed>,
}

/// Why there is nothing to compute: a stage before has failed.
#[derive(Clone, Debug)]
pub struct NotComputed {
    pub cause: String,
    /// That is a fault of the core, if it waits for the step.
    pub is_wrong: bool,
}

impl Arrived {
    /// What the stages took, once this one is done.
    pub fn timings(&self, now: Duration) -> Vec<StageTiming> {
        let micros = |it: Duration| it.as_micros() as u32;
        let own = StageTiming {
            stage: self.stage.stage,
            wait_us: micros(now.saturating_sub(self.since + self.takes)),
            compute_us: micros(self.takes),
            ..StageTiming::default()
        };
        self.timings.iter().copied().chain([own]).collect()
    }
}

impl Machine {
    /// It has not joined yet.
    pub fn new(number: usize, spec: NodeSpec) -> Self {
        Self {
            node: NodeId(number as u64),
            spec,
            session: SessionId(0),
            is_up: false,
            frozen_until: Duration::ZERO,
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
            max_cache_bytes: None,
            fingerprint: self.class(),
            speed: Default::default(),
        };
        NodeReport {
            node: self.node,
            session: self.session,
            hostname: format!("machine-{}", self.node.0),
            pid: self.node.0 as u32 + 1,
            data_addr: ([127, 0, 0, 1], 9000 + self.node.0 as u16).into(),
            pool: String::new(),
            labels: Vec::new(),
            adapters: vec![adapter],
            held: Vec::new(),
        }
    }

    /// Its process begins, or connects anew: nothing is left of what it held.
    pub fn rise(&mut self, session: SessionId, now: Duration) {
        (self.session, self.is_up, self.busy_until) = (session, true, now);
        self.frozen_until = Duration::ZERO;
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

    /// Whether this names the way over which the first stage of a pipeline, which it holds, is told
    /// what the last one samples.
    pub fn has_first_of(&self, id: StageId) -> bool {
        self.stages.iter().any(|it| it.plan().embeds() && it.plan().behind_last() == id)
    }

    /// A step has arrived.
    pub fn arrive(&mut self, arrived: Arrived) {
        if let Some(stage) = self.stage(arrived.stage) {
            stage.waiting.push_back(arrived);
        }
    }

    /// The first stage is told what the last says of a step.
    pub fn hear(&mut self, first: StageId, step: StepId, said: &Body) {
        if let Some(stage) = self.stage(first) {
            stage.samples.hear(step, said);
        }
    }

    /// The next step whose turn it is at a stage, if it has arrived with all that it needs, and
    /// when it will be computed.
    pub fn take(
        &mut self,
        stage: StageId,
        cost: &Cost,
        now: Duration,
    ) -> Option<(Duration, Arrived)> {
        let stage = self.stage(stage)?;
        let mut arrived = stage.next_step()?;
        if arrived.rows.is_ok() {
            arrived.takes = stage.takes(&arrived.batch, cost);
        }
        self.busy_until = self.busy_until.max(now) + arrived.takes;
        Some((self.busy_until, arrived))
    }

    /// Computes a step, if it holds the stage still.
    pub fn compute(&mut self, arrived: &Arrived, class: u64) -> Option<Result<Computed, Trouble>> {
        let stage = self.stage(arrived.stage)?;
        Some(match &arrived.rows {
            Ok(before) => stage.compute(&arrived.batch, before.as_deref(), class),
            Err(why) => Err(Trouble::NotComputed(why.clone())),
        })
    }
}
