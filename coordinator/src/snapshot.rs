//! What a monitor shows of the server at one moment: `GET /v1/admin/snapshot`, of which the page at
//! `/ui` and `autoglm top` are made.
//!
//! Pure. Times are told as ages, so that no two clocks are compared.

mod concerns;
mod of_status;

use serde::{Deserialize, Serialize};

/// Open requests that are shown, unless the question says otherwise.
const REQUESTS: usize = 200;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotQuery {
    /// Open requests, at most.
    pub num_requests: usize,
    /// Whether those that came last are shown; otherwise those that are open for longest.
    pub newest: bool,
    /// What was told before: points and events.
    pub seen: crate::recent::Seen,
}

impl Default for SnapshotQuery {
    fn default() -> Self {
        Self { num_requests: REQUESTS, newest: false, seen: Default::default() }
    }
}

/// What a monitor shows, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Snapshot {
    /// The server's version.
    pub version: String,
    /// The model's name in the API.
    pub model: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Seconds since the server began.
    pub up_s: u64,
    /// Whether a pipeline serves.
    pub ready: bool,
    /// Why nothing serves, while nothing does.
    pub waiting_for: String,
    /// The device classes of the serving pipeline's layers, as one short hash.
    pub fingerprint: String,
    /// What an operator may have to do something about, worst first.
    pub concerns: Vec<Concern>,
    /// How full the cluster is.
    pub load: Fill,
    /// Serving or loading.
    pub pipelines: Vec<ShownPipeline>,
    /// Those that are here, those that were just lost, and those of which an operator has said
    /// something; lost ones first.
    pub nodes: Vec<ShownNode>,
    /// What waits, by priority and tenant.
    pub queue: Vec<Group>,
    /// Groups of the queue that aren't shown.
    pub queue_more: usize,
    /// Requests that have not ended.
    pub requests: Vec<OpenRequest>,
    /// Requests that have not ended, those that aren't shown among them.
    pub num_requests: usize,
    /// Batch jobs: those that are open, and the newest others.
    pub jobs: Vec<ShownJob>,
    /// What the autoscaler wants, where there is one.
    pub scaling: Option<ShownScaling>,
    /// Milliseconds between two points.
    pub interval_ms: u64,
    /// The last hour, oldest first; the last point is under way.
    pub points: Vec<Point>,
    /// What happened, oldest first.
    pub events: Vec<Happened>,
}

/// How serious something is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Clients are hurt.
    Bad,
    /// It may come to that.
    Warn,
    /// It is good to know.
    #[default]
    Info,
}

/// Something to know or to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Concern {
    /// How serious it is.
    pub level: Level,
    /// What, in one sentence.
    pub what: String,
    /// Why, or what to do about it.
    pub hint: String,
}

/// How full the cluster is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Fill {
    /// Sequences that run.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// KV blocks that running sequences hold.
    pub used_blocks: usize,
    /// KV blocks in all.
    pub blocks: usize,
}

/// A pipeline that serves, loads or is given up.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct ShownPipeline {
    /// Its number, as in logs and metrics.
    pub pipeline: u32,
    /// `serving`, `loading`, `linking` or `draining`.
    pub state: String,
    /// How full it is.
    pub load: Fill,
    /// Its stages, in order.
    pub stages: Vec<ShownStage>,
    /// How its steps spend their time, once there were some.
    pub time: Option<StepTime>,
    /// Milliseconds of a token of one sequence, as they were expected.
    pub predicted_token_ms: f64,
    /// The same, as they are.
    pub measured_token_ms: Option<f64>,
}

/// Consecutive layers on one adapter.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct ShownStage {
    /// The id of its node.
    pub node: String,
    /// That machine's name.
    pub hostname: String,
    /// Its adapter's name.
    pub adapter: String,
    /// Which of the node's adapters that is.
    pub adapter_number: u32,
    /// Its layers: the first, and the one behind the last.
    pub layers: [u32; 2],
    /// `loading`, `linking` or `serving`.
    pub state: String,
    /// Bytes on its adapter, so far.
    pub memory_bytes: u64,
    /// Bytes that it is to have there.
    pub of_bytes: u64,
    /// Bytes that stages may take on that adapter.
    pub adapter_bytes: u64,
    /// Blocks of its KV cache.
    pub blocks: u32,
}

/// How the steps of a pipeline spend their time: means over its last seconds at work.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct StepTime {
    /// From a step's being scheduled to its being recorded.
    pub step_ms: f64,
    /// Tokens that a step computes.
    pub tokens: f64,
    /// What each stage takes of it, in the order of the pipeline.
    pub stages: Vec<StageTime>,
    /// Of the coordinator, and of the way back to it.
    pub coordinator: StageTime,
}

/// A stage's part of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct StageTime {
    /// On the adapter: writing, computing, reading.
    pub compute_ms: f64,
    /// Behind other steps, and between tasks and threads.
    pub wait_ms: f64,
    /// On the way there, and between frames and bytes.
    pub network_ms: f64,
    /// The share of time at work in which the adapter was busy with it.
    pub busy: f64,
}

/// A node, here or gone.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct ShownNode {
    /// Its id.
    pub node: String,
    /// Its machine's name.
    pub hostname: String,
    /// `serving`, `loading`, `idle`, `quarantined`, `cordoned` or `draining`; `lost` or `absent`
    /// where it isn't here.
    pub state: String,
    /// What it is there for: `active`, `cordoned` or `draining`.
    pub duty: String,
    /// Why it is left out, or when and why it was lost, where it is or was.
    pub cause: String,
    /// Where its neighbours reach it.
    pub addr: String,
    /// Where it belongs.
    pub pool: String,
    /// What its operator says of it, `key=value` each.
    pub labels: Vec<String>,
    /// Its adapters' names.
    pub adapters: Vec<String>,
    /// Bytes that stages may take on all of them.
    pub memory_bytes: u64,
    /// Bytes that they do.
    pub used_bytes: u64,
    /// Bytes that are there of what is loaded or fetched, and of how many; while there is such.
    pub loading: Option<[u64; 2]>,
    /// The round trip between it and the coordinator.
    pub rtt_us: Option<f64>,
    /// Its stages: pipeline and stage of each.
    pub holds: Vec<[u32; 2]>,
}

/// What waits of a tenant at one priority.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Group {
    /// The priority that it came with.
    pub priority: String,
    /// Whose it is.
    pub tenant: String,
    /// Sequences.
    pub num: usize,
    /// Tokens that are known of them.
    pub tokens: usize,
    /// Those that waiting, or a near deadline, has lifted to a higher priority.
    pub lifted: usize,
    /// For how long the first of them waits.
    pub oldest_ms: u64,
    /// What that one waits for.
    pub why: String,
}

/// A request that has not ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct OpenRequest {
    /// Its name, under which its decisions are found: `/v1/requests/{id}`.
    pub id: String,
    /// Whose it is.
    pub tenant: String,
    /// The priority that it came with.
    pub priority: String,
    /// `waiting` or `running`.
    pub state: String,
    /// Since it came.
    pub age_ms: u64,
    /// Where it runs.
    pub pipelines: Vec<u32>,
    /// Tokens of its prompts, of what runs.
    pub prompt_tokens: usize,
    /// Tokens of its answers, so far, of what runs.
    pub generated_tokens: usize,
    /// The last decision about it.
    pub last: String,
    /// How long ago that was.
    pub last_ms: u64,
    /// How often it gave way, moved or was tried again, as far as that is remembered.
    pub setbacks: usize,
}

/// A batch job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct ShownJob {
    /// Its name in the API.
    pub id: String,
    /// Whose it is.
    pub tenant: String,
    /// OpenAI's word for how far it is.
    pub state: String,
    /// Lines of its input, answered or not.
    pub lines: i64,
    /// Those that are answered.
    pub completed: i64,
    /// Those that can't be.
    pub failed: i64,
    /// Tokens of prompts, those of them that need not be computed, tokens of answers.
    pub tokens: [i64; 3],
    /// Seconds since it was handed in.
    pub age_s: i64,
    /// Seconds until its time is up; less than none when it is.
    pub left_s: i64,
    /// Why it has failed: the first sentence.
    pub error: String,
}

/// What the autoscaler wants.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct ShownScaling {
    /// Pipelines.
    pub wanted: usize,
    /// Pipelines at least.
    pub min: usize,
    /// Pipelines at most.
    pub max: usize,
    /// Load in pipelines.
    pub load: f64,
    /// Whether there is none until somebody asks for something.
    pub asleep: bool,
}

/// A stretch of time. Percentiles are the 50th, 90th and 99th.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Point {
    /// Ascending: whoever has seen it asks for what follows.
    pub number: u64,
    /// How long ago it ended.
    pub ago_ms: u64,
    /// How long it is.
    pub took_ms: u64,
    /// From arrival to the first token.
    pub first_token_ms: Option<[f64; 3]>,
    /// Between two tokens of an answer.
    pub between_tokens_ms: Option<[f64; 3]>,
    /// From arrival to admission.
    pub queue_wait_ms: Option<[f64; 3]>,
    /// Tokens of answers.
    pub generated_tokens: u64,
    /// Tokens that steps computed, those of prompts included.
    pub computed_tokens: u64,
    /// Steps that returned, of all pipelines.
    pub steps: u64,
    /// Requests that ended, whichever way, but for those that failed or were refused for load.
    pub ended: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests that were refused for load, or since nothing served.
    pub refused: u64,
    /// The most sequences that ran at once.
    pub running: u64,
    /// The most that waited.
    pub waiting: u64,
    /// The largest share of KV blocks that was held.
    pub kv_used: f64,
    /// Tokens of admitted prompts, looked for in the prefix cache.
    pub prefix_tokens: u64,
    /// Those that were there.
    pub prefix_hits: u64,
}

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// A node joined.
    Joined,
    /// A node left on purpose.
    Left,
    /// A node was lost.
    Lost,
    /// A node is left out since it keeps failing.
    Quarantined,
    /// An operator said what a node is there for, or its time in quarantine is over.
    Duty,
    /// A pipeline serves from now on.
    Serves,
    /// A pipeline was lost, and what ran there moved.
    Moved,
    /// A pipeline was given up on purpose.
    Drained,
    /// Another number of pipelines is wanted.
    #[default]
    Scaled,
}

/// An entry of the time line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Happened {
    /// Ascending: whoever has seen it asks for what follows.
    pub number: u64,
    /// How long ago it was.
    pub ago_ms: u64,
    /// What kind of thing.
    pub kind: EventKind,
    /// Which node, where it is about one.
    pub node: String,
    /// Which pipeline, where it is about one.
    pub pipeline: Option<u32>,
    /// One sentence for a person.
    pub text: String,
}
