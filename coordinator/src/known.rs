//! What is known of nodes beside what they say when they join: the ways between them, what they
//! hold, and how fast they turned out to be. It is what the next placement goes by.

use std::collections::HashMap;
use std::time::Duration;

use protocol::{NodeId, NodeReport, Peer, StagePlan, StageTiming};

use crate::placement::predict::step_seconds;
use crate::placement::{Links, ModelCost, Place, Placed};

/// An adapter of a node.
type Adapter = (NodeId, u32);

/// What a measurement still counts for when the next has come.
const DECAY: f64 = 0.97;

/// Steps that must have been measured before they say more than the probe.
const MIN_STEPS: f64 = 8.0;

/// Nobody is so many times faster or slower than its probe said; whatever says so isn't used.
const MAX_FACTOR: f64 = 50.0;

/// What is known of nodes.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The ways between them.
    pub(crate) links: Links,
    held: HashMap<Adapter, Vec<bool>>,
    slowness: HashMap<Adapter, Slowness>,
}

/// How many times longer an adapter's steps took than they were predicted to.
#[derive(Clone, Copy, Debug, Default)]
struct Slowness {
    // Of sequences alone, and of several.
    alone: Mean,
    crowd: Mean,
}

/// A mean of which the newest counts most.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    weight: f64,
    sum: f64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.weight = self.weight * DECAY + 1.0;
        self.sum = self.sum * DECAY + value;
    }

    fn value(&self) -> Option<f64> {
        (self.weight >= MIN_STEPS).then(|| self.sum / self.weight)
    }
}

/// What steps of a pipeline took.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    // Seconds: of a token of a sequence alone, and of each stage's part.
    token: Mean,
    stages: Vec<Mean>,
}

impl Measured {
    /// A step of `rows` sequences' next tokens took so long.
    pub(crate) fn add(&mut self, timings: &[StageTiming], took: Duration, rows: usize) {
        if rows != 1 {
            return;
        }
        self.token.add(took.as_secs_f64());
        self.stages.resize(timings.len(), Mean::default());
        for (mean, timing) in self.stages.iter_mut().zip(timings) {
            mean.add(step_time(timing));
        }
    }

    /// Seconds of a token of a sequence alone.
    pub(crate) fn token_s(&self) -> Option<f64> {
        self.token.value()
    }

    /// Seconds that a stage is busy with it.
    pub(crate) fn stage_s(&self, stage: usize) -> Option<f64> {
        self.stages.get(stage)?.value()
    }
}

/// An adapter that a stage may go to, and where it is.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) peer: Peer,
    pub(crate) adapter: u32,
    pub(crate) place: Place,
}

impl Known {
    /// The adapters of these nodes, as fast as they turned out to be.
    pub(crate) fn candidates(&self, nodes: &[&NodeReport]) -> Vec<Candidate> {
        let of = |report: &NodeReport| {
            let peer = Peer { node: report.node, addr: report.data_addr };
            (0..report.adapters.len() as u32)
                .filter_map(|adapter| {
                    let mut place = place(report, adapter)?;
                    let at = (report.node, adapter);
                    place.speed = place.speed.slowed(self.slowness(at));
                    place.held = self.held.get(&at).cloned().unwrap_or_default();
                    Some(Candidate { peer, adapter, place })
                })
                .collect::<Vec<_>>()
        };
        nodes.iter().flat_map(|report| of(report)).collect()
    }

    /// How many times longer an adapter takes than its probe said.
    pub(crate) fn slowness(&self, at: Adapter) -> f64 {
        let said = self.slowness.get(&at).and_then(|it| it.alone.value().or(it.crowd.value()));
        said.unwrap_or(1.0)
    }

    /// A stage was loaded: what it holds stays with its node when the stage is dropped.
    pub(crate) fn hold(&mut self, node: NodeId, plan: &StagePlan, num_layers: usize) {
        let held = self.held.entry((node, plan.adapter)).or_default();
        held.resize(num_layers + 2, false);
        held[0] |= plan.embeds();
        held[num_layers + 1] |= plan.samples();
        let (first, end) = (plan.layers.first as usize, plan.layers.end as usize);
        held[first + 1..=end].fill(true);
    }

    /// Whether a node holds all of that.
    pub(crate) fn holds(&self, node: NodeId, plan: &StagePlan, num_layers: usize) -> bool {
        let Some(held) = self.held.get(&(node, plan.adapter)) else { return false };
        let (first, end) = (plan.layers.first as usize, plan.layers.end as usize);
        (held[0] || !plan.embeds())
            && (held[num_layers + 1] || !plan.samples())
            && held[first + 1..=end].iter().all(|it| *it)
    }

    /// A node is gone, with whatever it held. How fast it was is remembered.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.held.retain(|(held_by, _), _| *held_by != node);
        self.links.forget(node);
    }

    /// A step of `rows` sequences' next tokens took a stage so long.
    pub(crate) fn measured(
        &mut self,
        model: &ModelCost,
        (report, plan): (&NodeReport, &StagePlan),
        timing: &StageTiming,
        rows: usize,
    ) {
        let Some(place) = place(report, plan.adapter) else { return };
        let stage = Placed { place: 0, layers: plan.layers };
        let expected = step_seconds(model, &place, stage, rows as f64);
        let factor = step_time(timing) / expected;
        if !(MAX_FACTOR.recip()..MAX_FACTOR).contains(&factor) {
            return;
        }
        let slowness = self.slowness.entry((report.node, plan.adapter)).or_default();
        match rows {
            1 => slowness.alone.add(factor),
            _ => slowness.crowd.add(factor),
        }
    }
}

/// Seconds that a stage was busy with a step.
pub(crate) fn step_time(timing: &StageTiming) -> f64 {
    let parts = [timing.upload_us, timing.compute_us, timing.readback_us];
    parts.map(f64::from).iter().sum::<f64>() / 1e6
}

/// An adapter as its node describes it.
fn place(report: &NodeReport, adapter: u32) -> Option<Place> {
    let said = report.adapters.get(adapter as usize)?;
    let (node, memory, speed) = (report.node, said.memory_bytes, said.speed.checked());
    Some(Place { node, memory, speed, held: Vec::new() })
}
