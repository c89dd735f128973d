//! What is known of nodes beside what they say when they join: the ways between them, what they
//! hold, and how fast they turned out to be. It is what the next placement goes by.

use std::collections::HashMap;
use std::time::Duration;

use protocol::config::Quantize;
use protocol::message::FetchProgress;
use protocol::{
    Digest, HeldParts, LayerRange, ModelId, NodeId, NodeReport, Peer, Speed, StagePlan, StageTiming,
};

use crate::pipeline::Stage;
use crate::placement::predict::step_seconds;
use crate::placement::{Links, ModelCost, Place, Placed};

type Adapter = (NodeId, u32);

/// What a measurement still counts for when the next has come.
const DECAY: f64 = 0.97;

/// Steps that must have been measured before they say more than the probe.
const MIN_STEPS: f64 = 8.0;

/// What takes so many times longer than others had to wait for something else.
const OUTLIER: f64 = 3.0;

/// Nobody is so many times faster or slower than its probe said; whatever says so isn't used.
const MAX_FACTOR: f64 = 50.0;

/// What a further sequence may take, as a share of one alone: whatever says otherwise isn't used.
const ROW_SHARES: std::ops::Range<f64> = 0.0..10.0;

/// Seconds that a host of which nothing is known takes of a step: a few tasks woken, a frame made
/// and read.
const HOST_S: f64 = 0.5e-3;

/// No host takes longer; what says so isn't used.
const MAX_HOST_S: f64 = 10.0;

#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) links: Links,
    held: HashMap<Adapter, Vec<bool>>,
    // What idle adapters were asked last to keep ready: whatever else they hold goes in time.
    asked: HashMap<Adapter, LayerRange>,
    // What nodes get from others now.
    fetching: HashMap<NodeId, FetchProgress>,
    // Bytes that stages took there beyond what they were planned to.
    shortage: HashMap<Adapter, u64>,
    slowness: HashMap<Adapter, Slowness>,
    // Seconds that a node's host takes of a step.
    hosts: HashMap<NodeId, Mean>,
    // Whether steps were measured since somebody asked.
    has_news: bool,
}

/// How much longer an adapter's steps took than they were predicted to.
#[derive(Clone, Copy, Debug, Default)]
struct Slowness {
    // Those of a class are wrong alike, as a rule: by what a probe doesn't see.
    class: Digest,
    // Of sequences alone, and of several.
    alone: Fit,
    crowd: Fit,
    // What each further sequence took, as a share of one alone.
    row_share: Mean,
}

/// A mean of which the newest counts most.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    weight: f64,
    sum: f64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        let mean = self.sum / self.weight;
        let most = if self.weight >= MIN_STEPS && mean > 0.0 { OUTLIER * mean } else { value };
        let value = value.min(most);
        self.weight = self.weight * DECAY + 1.0;
        self.sum = self.sum * DECAY + value;
    }

    fn value(&self) -> Option<f64> {
        (self.weight >= MIN_STEPS).then(|| self.sum / self.weight)
    }
}

/// A step takes `extra_s` and `factor` times what its probe says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Correction {
    pub(crate) factor: f64,
    pub(crate) extra_s: f64,
}

impl Correction {
    const NONE: Self = Self { factor: 1.0, extra_s: 0.0 };

    fn mean(all: impl Iterator<Item = Self>) -> Self {
        let (mut num, mut sum) = (0.0, Self { factor: 0.0, extra_s: 0.0 });
        for one in all {
            num += 1.0;
            sum = Self { factor: sum.factor + one.factor, extra_s: sum.extra_s + one.extra_s };
        }
        match num {
            0.0 => Self::NONE,
            _ => Self { factor: sum.factor / num, extra_s: sum.extra_s / num },
        }
    }

    /// An adapter as fast as it turned out to be.
    fn of(self, probed: Speed) -> Speed {
        let slowed = probed.slowed(self.factor);
        Speed { step_us: (slowed.step_us + self.extra_s * 1e6).max(0.0), ..slowed }
    }
}

/// What a probe can't see of a step, as a rule: tasks that are woken, waits for the adapter.
const EXTRA_S: f64 = 0.25e-3;

/// By what share a probe is wrong, as a rule.
const WRONG_BY: f64 = 0.25;

/// What a measured step differs by from the mean of its kind, as a rule.
const NOISE: f64 = 0.01;

/// The line through what was predicted (x) and measured (y) that fits best, of all that are as
/// likely as the rules above say: one shape of a model says what the step takes, two say how much
/// of it hangs on the shape.
#[derive(Clone, Copy, Debug, Default)]
struct Fit {
    weight: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl Fit {
    fn add(&mut self, x: f64, y: f64) {
        // One step that had to wait for something else says little.
        let expected = self.correction().map(|it| it.factor * x + it.extra_s);
        let y = expected.map_or(y, |expected| y.min(OUTLIER * expected.max(0.0)));
        for (sum, value) in [
            (&mut self.weight, 1.0),
            (&mut self.x, x),
            (&mut self.y, y),
            (&mut self.xx, x * x),
            (&mut self.xy, x * y),
        ] {
            *sum = *sum * DECAY + value;
        }
    }

    fn correction(&self) -> Option<Correction> {
        if self.weight < MIN_STEPS {
            return None;
        }
        let noise = (NOISE * self.y / self.weight).powi(2);
        let (extra, factor) = (noise / EXTRA_S.powi(2), noise / WRONG_BY.powi(2));
        let (a, b, c) = (self.weight + extra, self.x, self.xx + factor);
        let (p, q) = (self.y, self.xy + factor);
        let determinant = a * c - b * b;
        let found = Correction {
            extra_s: (p * c - q * b) / determinant,
            factor: ((a * q - b * p) / determinant).clamp(MAX_FACTOR.recip(), MAX_FACTOR),
        };
        (found.extra_s.is_finite() && found.factor.is_finite()).then_some(found)
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
                    let class = report.adapters[adapter as usize].fingerprint;
                    place.memory = place.memory.saturating_sub(self.shortage(at));
                    place.row_share = self.row_share(at, class);
                    place.speed = self.correction(at, class).of(place.speed);
                    place.host_s = self.host_s(report.node);
                    place.held = self.held.get(&at).cloned().unwrap_or_default();
                    Some(Candidate { peer, adapter, place })
                })
                .collect::<Vec<_>>()
        };
        nodes.iter().flat_map(|report| of(report)).collect()
    }

    /// Bytes of an adapter that no stage is planned to take: others took so many more than they
    /// were planned to.
    pub(crate) fn shortage(&self, at: Adapter) -> u64 {
        self.shortage.get(&at).copied().unwrap_or(0)
    }

    /// A stage took so many bytes more than it might.
    pub(crate) fn lacked(&mut self, at: Adapter, num_bytes: u64) {
        let shortage = self.shortage.entry(at).or_default();
        *shortage = shortage.saturating_add(num_bytes);
    }

    /// How an adapter's steps differ from what its probe said; where none was measured, as those of
    /// others of its class do on average.
    pub(crate) fn correction(&self, at: Adapter, class: Digest) -> Correction {
        let of = |it: &Slowness| it.alone.correction().or(it.crowd.correction());
        let own = self.slowness.get(&at).and_then(of);
        own.unwrap_or_else(|| {
            let others = self.slowness.values().filter(|it| it.class == class);
            Correction::mean(others.filter_map(of))
        })
    }

    /// What each further sequence takes of an adapter, as a share of what one alone does; where it
    /// wasn't measured, as others of its class take on average.
    pub(crate) fn row_share(&self, at: Adapter, class: Digest) -> Option<f64> {
        let own = self.slowness.get(&at).and_then(|it| it.row_share.value());
        own.or_else(|| {
            let others = self.slowness.values().filter(|it| it.class == class);
            let others: Vec<_> = others.filter_map(|it| it.row_share.value()).collect();
            let sum: f64 = others.iter().sum();
            (!others.is_empty()).then(|| sum / others.len() as f64)
        })
    }

    /// It was measured before.
    pub(crate) fn set_row_share(&mut self, at: Adapter, share: f64) {
        if ROW_SHARES.contains(&share) {
            let slowness = self.slowness.entry(at).or_default();
            slowness.row_share = Mean { weight: MIN_STEPS, sum: share * MIN_STEPS };
        }
    }

    /// Seconds that a node's host takes of a step; where that wasn't measured, as long as others
    /// take on average.
    pub(crate) fn host_s(&self, node: NodeId) -> f64 {
        if let Some(own) = self.hosts.get(&node).and_then(Mean::value) {
            return own;
        }
        let others: Vec<_> = self.hosts.values().filter_map(Mean::value).collect();
        if others.is_empty() { HOST_S } else { others.iter().sum::<f64>() / others.len() as f64 }
    }

    /// They were measured before.
    pub(crate) fn set_host(&mut self, node: NodeId, seconds: f64) {
        if seconds.abs() < MAX_HOST_S {
            self.hosts.insert(node, Mean { weight: MIN_STEPS, sum: seconds * MIN_STEPS });
        }
    }

    /// A token of a sequence alone has gone through these stages: whatever neither they nor the
    /// ways between them account for was the hosts'. The ways, one more than there are stages,
    /// share it evenly; the last one's is the last stage's, as where it is predicted. It is less
    /// than nothing where the ways are faster than their round trips: those of connections that
    /// have nothing to do are long.
    pub(crate) fn learn_host(&mut self, stages: &[Stage], timings: &[StageTiming], took: Duration) {
        if timings.is_empty() {
            return;
        }
        let busy: f64 = timings.iter().map(step_time).sum();
        let ends = || stages.iter().map(|stage| Some(stage.node));
        let ways = [None].into_iter().chain(ends()).zip(ends().chain([None]));
        let on_the_way: f64 = ways.map(|(a, b)| self.links.between(a, b).seconds(0)).sum();
        let each = (took.as_secs_f64() - busy - on_the_way) / (stages.len() + 1) as f64;
        if each.abs() < MAX_HOST_S {
            stages.iter().for_each(|it| self.hosts.entry(it.node).or_default().add(each));
        }
    }

    /// Whether anything was measured since this was last asked.
    pub(crate) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
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

    /// A node says what it holds: what of it is of this model stays with it.
    pub(crate) fn told(
        &mut self,
        report: &NodeReport,
        (model, quantize): (ModelId, Quantize),
        num_layers: usize,
    ) {
        let is_of = |it: &&HeldParts| (it.model, it.quantize) == (model, quantize);
        for told in report.held.iter().filter(is_of) {
            let held = self.held.entry((report.node, told.adapter)).or_default();
            held.resize(num_layers + 2, false);
            held[0] |= told.embedding;
            held[num_layers + 1] |= told.head;
            for layers in &told.layers {
                let end = (layers.end as usize).min(num_layers);
                let first = (layers.first as usize).min(end);
                held[first + 1..=end].fill(true);
            }
        }
    }

    /// An idle node is to keep this ready. Whether it is to be asked: it wasn't, or for something
    /// else.
    pub(crate) fn ask(&mut self, node: NodeId, plan: &StagePlan) -> bool {
        self.asked.insert((node, plan.adapter), plan.layers) != Some(plan.layers)
    }

    /// A node has other things to do than to keep anything ready.
    pub(crate) fn unask(&mut self, node: NodeId) {
        self.asked.retain(|(of, _), _| *of != node);
    }

    /// A node gets weights from others, or has got them.
    pub(crate) fn fetches(&mut self, fetching: FetchProgress) {
        match fetching.of_bytes {
            0 => self.fetching.remove(&fetching.node),
            _ => self.fetching.insert(fetching.node, fetching),
        };
    }

    /// What a node gets from others now, if anything.
    pub(crate) fn fetching(&self, node: NodeId) -> Option<FetchProgress> {
        self.fetching.get(&node).copied()
    }

    /// Which parts of a model a node holds, on any of its adapters.
    pub(crate) fn held(&self, node: NodeId, num_parts: usize) -> Vec<bool> {
        let mut parts = vec![false; num_parts];
        for (_, held) in self.held.iter().filter(|((held_by, _), _)| *held_by == node) {
            parts.iter_mut().zip(held).for_each(|(part, held)| *part |= held);
        }
        parts
    }

    /// A node is gone, with whatever it held. How fast it was is remembered.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.held.retain(|(held_by, _), _| *held_by != node);
        self.shortage.retain(|(of, _), _| *of != node);
        self.fetching.remove(&node);
        self.unask(node);
        self.links.forget(node);
    }

    /// A step of `rows` sequences' next tokens has gone through these stages, perhaps alone:
    /// with no other sequence running.
    pub(crate) fn learn(
        &mut self,
        model: &ModelCost,
        reports: &[NodeReport],
        stages: &[Stage],
        timings: &[StageTiming],
        rows: (usize, bool),
    ) {
        self.has_news = true;
        for (number, (stage, timing)) in stages.iter().zip(timings).enumerate() {
            if let Some(report) = reports.iter().find(|it| it.node == stage.node) {
                self.measured(model, (report, &stage.plan), timing, rows);
            }
            // Its frames leave for the next stage; the last one's for the coordinator.
            let ends = (Some(stage.node), stages.get(number + 1).map(|next| next.node));
            if timing.rtt_us > 0 {
                self.links.heard(ends, timing.rtt_us.into());
            }
        }
    }

    /// A step of `rows` sequences' next tokens took a stage so long.
    fn measured(
        &mut self,
        model: &ModelCost,
        (report, plan): (&NodeReport, &StagePlan),
        timing: &StageTiming,
        (rows, is_alone): (usize, bool),
    ) {
        let Some(place) = place(report, plan.adapter) else { return };
        let stage = Placed { place: 0, layers: plan.layers };
        let expected = step_seconds(model, &place, stage, rows as f64);
        let took = step_time(timing);
        if !(MAX_FACTOR.recip()..MAX_FACTOR).contains(&(took / expected)) {
            return;
        }
        let slowness = self.slowness.entry((report.node, plan.adapter)).or_default();
        slowness.class = report.adapters[plan.adapter as usize].fingerprint;
        // One among others, whose steps other stages compute meanwhile, says nothing of one alone:
        // stages of one machine share more than a link.
        if is_alone && rows == 1 {
            slowness.alone.add(expected, took);
            return;
        }
        slowness.crowd.add(expected, took);
        if rows > 1
            && let Some(Correction { factor, extra_s }) = slowness.alone.correction()
        {
            let alone = factor * step_seconds(model, &place, stage, 1.0) + extra_s;
            let share = (took / alone - 1.0) / (rows - 1) as f64;
            if ROW_SHARES.contains(&share) {
                slowness.row_share.add(share);
            }
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
    Some(Place {
        node: report.node,
        memory: said.memory_bytes,
        max_cache_bytes: said.max_cache_bytes,
        speed: said.speed.checked(),
        row_share: None,
        host_s: HOST_S,
        held: Vec::new(),
    })
}

#[cfg(test)]
#[path = "known_tests.rs"]
mod tests;
