//! What the cluster is, at a glance: read by health checks without waiting for anyone.

use std::net::SocketAddr;
use std::time::Instant;

use protocol::message::FetchProgress;
use protocol::{
    BLOCK_TOKENS, Digest, LayerRange, LinkSpeed, NodeId, PipelineId, Speed, StageIndex,
};

use crate::placement::predict::{CacheRoom, Prediction};

use crate::autoscaler::Rescale;
use crate::duty::Duty;

/// Nodes and pipelines.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// Why nothing serves, while nothing does: one sentence.
    pub waiting_for: String,
    /// Nodes that have joined.
    pub nodes: Vec<NodeStatus>,
    /// Nodes that are left out since they failed too often, whether they are here or not.
    pub quarantined: Vec<QuarantineStatus>,
    /// Nodes on which nothing new is placed, joined or not, since somebody said so.
    pub relieved: Vec<(NodeId, Duty)>,
    /// Pipelines, serving or loading.
    pub pipelines: Vec<PipelineStatus>,
    /// The device classes of the serving pipeline's layers, as one short hash.
    pub system_fingerprint: String,
    /// What the autoscaler wants, where there is one.
    pub scaling: Option<ScalingStatus>,
}

impl Status {
    /// Whether a pipeline serves, or one would be made for the first request.
    pub(crate) fn is_ready(&self) -> bool {
        self.pipelines.iter().any(PipelineStatus::is_ready)
            || self.scaling.as_ref().is_some_and(|scaling| scaling.is_asleep)
    }
}

impl Status {
    pub(crate) fn duty_of(&self, node: NodeId) -> Duty {
        self.relieved.iter().find(|(id, _)| *id == node).map_or(Duty::Active, |(_, duty)| *duty)
    }
}

/// What the autoscaler wants.
#[derive(Clone, Debug, PartialEq)]
pub struct ScalingStatus {
    /// Pipelines.
    pub wanted: usize,
    /// Pipelines at least.
    pub min: usize,
    /// Pipelines at most.
    pub max: usize,
    /// Nodes that the pipelines take.
    pub num_nodes: usize,
    /// Load in pipelines, averaged, when nodes or pipelines changed last.
    pub load: f64,
    /// Whether there is no pipeline until somebody asks for something.
    pub is_asleep: bool,
    /// Its last decisions, oldest first.
    pub decisions: Vec<Rescale>,
}

/// A node that has joined.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeStatus {
    /// Who.
    pub node: NodeId,
    /// On which machine.
    pub hostname: String,
    /// Where its neighbours reach it.
    pub data_addr: SocketAddr,
    /// Where it belongs.
    pub pool: String,
    /// What its operator says of it: keys and values.
    pub labels: Vec<(String, String)>,
    /// Its adapters' names.
    pub adapters: Vec<String>,
    /// Their drivers, in the same order.
    pub drivers: Vec<String>,
    /// Bytes that stages may take on each of them.
    pub memory_bytes: Vec<u64>,
    /// The most that a KV cache takes of that, unless one sequence needs more.
    pub max_cache_bytes: Vec<Option<u64>>,
    /// How fast each of them is, by its probe.
    pub speeds: Vec<Speed>,
    /// How many times longer than that each of them takes, as measured by the steps of answers, and
    /// so many seconds more.
    pub corrections: Vec<(f64, f64)>,
    /// What each further sequence of a step takes of each of them, as a share of one alone.
    pub row_shares: Vec<Option<f64>>,
    /// Seconds that its host takes of a step beside the adapters.
    pub host_s: f64,
    /// The way to it, as far as it was measured.
    pub link: Option<LinkSpeed>,
    /// The ways between it and other nodes, as far as they were measured.
    pub links: Vec<(NodeId, LinkSpeed)>,
    /// What it gets of a model's weights from others, while it does.
    pub fetching: Option<FetchProgress>,
    /// Why nothing is placed on it, where that is so and neither a quarantine nor its duty says it.
    pub left_out: Option<String>,
}

/// A node that is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantineStatus {
    /// Who.
    pub node: NodeId,
    /// It is let in again then.
    pub until: Instant,
    /// One sentence for a person.
    pub cause: String,
}

/// A pipeline and its stages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PipelineStatus {
    /// Its number: the next one of it is another pipeline.
    pub pipeline: PipelineId,
    /// Whether it is given up: what runs there ends, and nothing begins.
    pub is_draining: bool,
    /// In order.
    pub stages: Vec<StageStatus>,
    /// What was expected of it when it was placed.
    pub predicted: Prediction,
    /// Seconds that a token takes while one sequence is computed, once it was measured.
    pub measured_token_s: Option<f64>,
}

impl PipelineStatus {
    /// Whether every stage serves, and requests go there.
    pub(crate) fn is_ready(&self) -> bool {
        !self.is_draining && self.stages.iter().all(|stage| stage.state == StageState::Serving)
    }

    /// Tokens for which its KV cache has room: as all stages say or, until they do, as was
    /// expected.
    pub(crate) fn cache(&self) -> CacheRoom {
        let said = self.stages.iter().map(|stage| u64::from(stage.num_blocks)).min().unwrap_or(0);
        match said * BLOCK_TOKENS as u64 {
            0 => self.predicted.cache,
            num_tokens => CacheRoom { num_tokens, ..self.predicted.cache },
        }
    }

    /// The nodes of a pipeline that serves with stages of several device classes, each with its
    /// class: its answers are right, but not bit-equal to those of a pipeline of one class.
    pub(crate) fn mixed_classes(&self) -> Option<String> {
        let class = |stage: &StageStatus| Some((stage.node, stage.class?));
        let mut classes = self.stages.iter().map(class).collect::<Option<Vec<_>>>()?;
        classes.dedup();
        let is_mixed = classes.windows(2).any(|pair| pair[0].1 != pair[1].1);
        let said = classes.iter().map(|(node, class)| format!("{node}: {class}"));
        is_mixed.then(|| said.collect::<Vec<_>>().join(", "))
    }
}

/// A stage of a pipeline.
#[derive(Clone, Debug, PartialEq)]
pub struct StageStatus {
    /// Its place.
    pub stage: StageIndex,
    /// Who holds it.
    pub node: NodeId,
    /// On which machine.
    pub hostname: String,
    /// The process there.
    pub pid: u32,
    /// Its adapter, as the driver calls it.
    pub adapter: String,
    /// Which of the node's adapters.
    pub adapter_number: u32,
    /// That driver and its version.
    pub driver: String,
    /// The decoder layers that it holds.
    pub layers: LayerRange,
    /// How far it is.
    pub state: StageState,
    /// Its device class for layers of this model; none until it serves.
    pub class: Option<Digest>,
    /// Blocks of its KV cache; 0 until it serves.
    pub num_blocks: u32,
    /// Bytes on its adapter; while loading, what is there so far.
    pub memory_bytes: u64,
    /// Bytes that it is to have there, once it is known.
    pub of_bytes: u64,
    /// Seconds that it is busy with one sequence's next token, once it was measured. What was
    /// expected stands in [`PipelineStatus::predicted`].
    pub measured_s: Option<f64>,
}

/// How far a stage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageState {
    /// Loading its weights.
    Loading,
    /// Loaded; the links to it and from it aren't all open yet.
    Linking,
    /// Loaded and linked: routed to, as soon as all stages are.
    Serving,
}

impl StageState {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Linking => "linking",
            Self::Serving => "serving",
        }
    }
}
