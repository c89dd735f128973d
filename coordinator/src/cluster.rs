//! The cluster's state: nodes, the pipeline, and the scheduler that feeds it.
//!
//! Pure: everything that can happen comes in as an [`Input`], everything to do goes out as an
//! [`Action`]. Lost and repeated inputs are tolerated: whatever names another epoch is dropped.

use std::time::{Duration, Instant};

use protocol::config::Config;
use protocol::message::{Progress, StageFailed};
use protocol::{
    Body, Epoch, Frame, NodeId, NodeReport, RequestId, StageEcho, StagePlan, StageTiming, Step,
    StepId,
};

use crate::backoff::Backoff;
use crate::model::Model;
use crate::pipeline::Pipeline;
use crate::request::{Event, Request, RequestError, SubmitError};
use crate::scheduler::Scheduler;
use crate::status::{NodeStatus, Status};
use crate::trace::PhaseEnded;

/// Everything that can happen to the cluster, requests apart.
#[derive(Debug)]
pub enum Input {
    /// A node has joined and said what it has.
    Joined(NodeReport),
    /// A node is gone: silent, ended, or its process exited.
    Lost {
        /// Who.
        node: NodeId,
        /// One sentence for a person.
        cause: String,
    },
    /// A stage is loaded.
    Ready(StageEcho),
    /// A stage can't be loaded, or is lost.
    Failed(StageFailed),
    /// Loading goes on.
    Progress(Progress),
    /// A child process has ended, or couldn't be started again.
    Exited {
        /// Which, while it was one.
        pid: Option<u32>,
        /// One sentence for a person.
        cause: String,
    },
    /// The link to the first stage can't be kept.
    LinkLost {
        /// Whose link.
        epoch: Epoch,
        /// One sentence for a person.
        cause: String,
    },
    /// A frame from a stage.
    Frame(Frame),
    /// A client went away.
    Cancel(RequestId),
    /// Time passed.
    Tick,
}

/// Everything that the cluster does.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Ask this node to load this stage.
    Load(NodeId, Box<StagePlan>),
    /// Ask this node to drop its stages of this epoch and older.
    Unload(NodeId, Epoch),
    /// Open the link to the first stage.
    Connect {
        /// The first stage's node.
        node: NodeId,
        /// For this epoch.
        epoch: Epoch,
    },
    /// Send this frame to the first stage.
    Send(Box<Frame>),
    /// Tell a client.
    Tell(RequestId, Event),
    /// A step has returned.
    Measured {
        /// Which.
        step: StepId,
        /// How long it was under way.
        duration: Duration,
        /// Tokens that it computed.
        num_tokens: usize,
        /// Where the time went: one for each stage in order, or none.
        timings: Vec<StageTiming>,
    },
    /// A sequence was admitted after this wait.
    Admitted(Duration),
    /// A phase of a traced request has ended.
    Traced(Box<PhaseEnded>),
    /// Nodes or pipelines have changed.
    Publish,
    /// Nothing can serve as configured, and waiting won't help.
    Stuck(String),
}

/// The cluster.
#[derive(Debug)]
pub struct Cluster {
    config: Config,
    model: Model,
    // Counted on disk; the first half of every epoch.
    start: u64,
    num_plans: u64,
    nodes: Vec<NodeReport>,
    last_change: Instant,
    pipeline: Option<Pipeline>,
    // Of loads by the nodes that are here now.
    backoff: Backoff,
    // Why there is no pipeline, when waiting alone doesn't explain it.
    trouble: String,
    is_stopping: bool,
    scheduler: Scheduler,
    actions: Vec<Action>,
}

impl Cluster {
    /// A cluster without nodes. `start` is the coordinator's start number.
    pub fn new(config: Config, model: Model, start: u64, now: Instant) -> Self {
        let scheduler = Scheduler::new(config.scheduler.clone());
        Self {
            config,
            model,
            start,
            num_plans: 0,
            nodes: Vec::new(),
            last_change: now,
            pipeline: None,
            backoff: Backoff::default(),
            trouble: String::new(),
            is_stopping: false,
            scheduler,
            actions: Vec::new(),
        }
    }

    /// Queues a request.
    ///
    /// # Errors
    /// When it isn't admitted.
    pub fn submit(&mut self, request: &Request, now: Instant) -> Result<Vec<Action>, SubmitError> {
        if !self.pipeline.as_ref().is_some_and(Pipeline::is_ready) {
            return Err(SubmitError::NoPipeline(self.waiting_for()));
        }
        self.scheduler.add(request, now)?;
        self.schedule(now);
        Ok(self.take_actions())
    }

    /// Everything else that can happen.
    pub fn handle(&mut self, input: Input, now: Instant) -> Vec<Action> {
        match input {
            Input::Joined(report) => self.join(report, now),
            Input::Lost { node, cause } => self.lose_node(node, &cause, now),
            Input::Ready(echo) => self.stage_ready(echo, now),
            Input::Failed(failed) => self.stage_failed(&failed, now),
            Input::Progress(progress) => self.progress(progress, now),
            Input::Exited { pid, cause } => self.exited(pid, cause, now),
            Input::LinkLost { epoch, cause } => {
                if self.epoch() == Some(epoch) {
                    self.lose_pipeline(&cause, now);
                }
            }
            Input::Frame(frame) => self.frame(frame, now),
            Input::Cancel(request) => self.scheduler.cancel(request),
            Input::Tick => self.tick(now),
        }
        self.schedule(now);
        self.take_actions()
    }

    /// Fails whatever runs or waits, and places nothing any more: the coordinator stops.
    pub fn shut_down(&mut self) -> Vec<Action> {
        self.is_stopping = true;
        self.pipeline = None;
        self.tell_all(&RequestError::ShuttingDown);
        self.take_actions()
    }

    /// How full the scheduler is.
    pub fn load(&self) -> crate::scheduler::Load {
        self.scheduler.load()
    }

    /// Nodes and pipelines as they are now.
    pub fn status(&self) -> Status {
        let nodes = self.nodes.iter().map(|report| NodeStatus {
            node: report.node,
            hostname: report.hostname.clone(),
            data_addr: report.data_addr,
            adapters: report.adapters.iter().map(|adapter| adapter.name.clone()).collect(),
            drivers: report.adapters.iter().map(|adapter| adapter.driver.clone()).collect(),
        });
        Status {
            waiting_for: self.waiting_for(),
            nodes: nodes.collect(),
            pipelines: self.pipeline.iter().map(|it| it.status(&self.nodes)).collect(),
            system_fingerprint: self
                .pipeline
                .as_ref()
                .map_or_else(String::new, |pipeline| pipeline.fingerprint(self.model.id)),
        }
    }

    fn take_actions(&mut self) -> Vec<Action> {
        let traced = self.scheduler.take_traced().into_iter().map(Box::new);
        self.actions.extend(traced.map(Action::Traced));
        std::mem::take(&mut self.actions)
    }

    fn epoch(&self) -> Option<Epoch> {
        self.pipeline.as_ref().map(|pipeline| pipeline.epoch)
    }

    fn waiting_for(&self) -> String {
        let coordinator = &self.config.coordinator;
        let num_nodes = self.nodes.len();
        let joined = format!("{num_nodes} joined");
        let waiting = match (&self.pipeline, self.num_expected()) {
            _ if self.is_stopping => "the coordinator is shutting down".to_owned(),
            (Some(pipeline), _) if pipeline.is_ready() => String::new(),
            (Some(pipeline), _) => {
                let ready = pipeline.stages.iter().filter(|stage| stage.echo.is_some()).count();
                format!("loading: {ready} of {} stages are ready", pipeline.stages.len())
            }
            (None, 0) if num_nodes == 0 => format!(
                "no node has joined; start one with: autoglm-node --join {}",
                coordinator.cluster_addr
            ),
            (None, expected) if num_nodes < expected => {
                format!("waiting for {expected} nodes, {joined}")
            }
            (None, _) => format!("placing the model: {joined}"),
        };
        match (waiting.is_empty(), self.trouble.is_empty()) {
            (_, true) => waiting,
            (true, false) => String::new(),
            (false, false) => format!("{}{}; {waiting}", self.trouble, self.backoff),
        }
    }

    /// Nodes that the configuration speaks of; 0 when it names no number.
    fn num_expected(&self) -> usize {
        match (self.config.coordinator.local_nodes, self.config.coordinator.stages) {
            (0, stages) => stages as usize,
            (local_nodes, _) => local_nodes as usize,
        }
    }

    fn join(&mut self, report: NodeReport, now: Instant) {
        if self.nodes.iter().any(|known| known.node == report.node) {
            self.lose_node(report.node, "the node joined again", now);
        }
        self.nodes.push(report);
        self.last_change = now;
        self.backoff.reset();
        self.actions.push(Action::Publish);
        self.place_if_settled(now);
    }

    fn lose_node(&mut self, node: NodeId, cause: &str, now: Instant) {
        let num_before = self.nodes.len();
        self.nodes.retain(|known| known.node != node);
        if self.nodes.len() == num_before {
            return;
        }
        self.last_change = now;
        self.actions.push(Action::Publish);
        let holds = |pipeline: &Pipeline| pipeline.stages.iter().any(|stage| stage.node == node);
        if self.pipeline.as_ref().is_some_and(holds) {
            self.lose_pipeline(&format!("node {node} is lost: {cause}"), now);
        }
        self.backoff.reset();
    }

    /// A local node's process has ended, whether it had joined or not.
    fn exited(&mut self, pid: Option<u32>, cause: String, now: Instant) {
        let is_it = |known: &&NodeReport| {
            Some(known.pid) == pid && known.data_addr.ip().to_canonical().is_loopback()
        };
        if let Some(node) = self.nodes.iter().find(is_it).map(|known| known.node) {
            self.lose_node(node, &cause, now);
        }
        if self.pipeline.is_none() {
            self.trouble = cause;
            self.actions.push(Action::Publish);
        }
    }

    /// The pipeline is of no more use: whoever runs on it hears so, its nodes drop its stages.
    fn lose_pipeline(&mut self, cause: &str, now: Instant) {
        let Some(pipeline) = self.pipeline.take() else { return };
        if !pipeline.is_ready() {
            self.backoff.failed();
        }
        self.trouble = cause.to_owned();
        self.last_change = now;
        self.tell_all(&RequestError::PipelineLost(cause.to_owned()));
        self.unload(&pipeline);
        self.actions.push(Action::Publish);
    }

    fn unload(&mut self, pipeline: &Pipeline) {
        let mut nodes: Vec<_> = pipeline.stages.iter().map(|stage| stage.node).collect();
        nodes.dedup();
        nodes.retain(|node| self.nodes.iter().any(|known| known.node == *node));
        self.actions.extend(nodes.into_iter().map(|node| Action::Unload(node, pipeline.epoch)));
    }

    fn tell_all(&mut self, error: &RequestError) {
        let events = self.scheduler.detach(error);
        self.tell(events);
    }

    fn tell(&mut self, events: Vec<(RequestId, Event)>) {
        self.actions.extend(events.into_iter().map(|(id, event)| Action::Tell(id, event)));
    }

    fn tick(&mut self, now: Instant) {
        let coordinator = &self.config.coordinator;
        let load_timeout = Duration::from_millis(coordinator.load_timeout_ms);
        let step_timeout = Duration::from_millis(coordinator.step_timeout_ms);
        let since = |then: Instant| now.saturating_duration_since(then);
        match &self.pipeline {
            None => self.place_if_settled(now),
            Some(pipeline) if !pipeline.is_ready() => {
                if since(pipeline.last_progress) > load_timeout {
                    let cause = format!(
                        "loading made no progress for {} s (coordinator.load_timeout_ms)",
                        load_timeout.as_secs()
                    );
                    self.lose_pipeline(&cause, now);
                }
            }
            Some(_) => {
                if self.scheduler.oldest_step().is_some_and(|then| since(then) > step_timeout) {
                    let cause = format!(
                        "a step took longer than {} s (coordinator.step_timeout_ms)",
                        step_timeout.as_secs()
                    );
                    self.lose_pipeline(&cause, now);
                }
            }
        }
    }

    /// Places the model once the nodes that are expected have joined. Where the configuration
    /// names no number of local nodes, fewer than expected will do when nobody else came for a
    /// while: several stages can share a node.
    fn place_if_settled(&mut self, now: Instant) {
        if self.pipeline.is_some() || self.nodes.is_empty() || self.is_stopping {
            return;
        }
        let quiet = now.saturating_duration_since(self.last_change);
        let expected = self.num_expected();
        let all_here = expected > 0 && self.nodes.len() >= expected;
        let settle = Duration::from_millis(self.config.coordinator.settle_ms);
        let settled = self.config.coordinator.local_nodes == 0 && quiet >= settle;
        if quiet >= self.backoff.pause() && (all_here || settled) {
            self.place(now);
        }
    }

    fn place(&mut self, now: Instant) {
        let epoch = Epoch { start: self.start, counter: self.num_plans + 1 };
        match Pipeline::plan(&self.config, &self.model, &self.nodes, epoch, now) {
            Ok(pipeline) => {
                self.num_plans += 1;
                for stage in &pipeline.stages {
                    self.actions.push(Action::Load(stage.node, Box::new(stage.plan.clone())));
                }
                self.pipeline = Some(pipeline);
                self.actions.push(Action::Publish);
            }
            Err(error) => {
                let cause = error.to_string();
                if self.trouble != cause {
                    self.trouble.clone_from(&cause);
                    self.actions.push(Action::Stuck(cause));
                    self.actions.push(Action::Publish);
                }
            }
        }
    }

    fn progress(&mut self, progress: Progress, now: Instant) {
        let Some(pipeline) = &mut self.pipeline else { return };
        if pipeline.epoch != progress.epoch {
            return;
        }
        pipeline.last_progress = now;
        if let Some(stage) = pipeline.stages.get_mut(progress.stage.index()) {
            stage.loaded_bytes = progress.loaded_bytes;
        }
        self.actions.push(Action::Publish);
    }

    fn stage_ready(&mut self, echo: StageEcho, now: Instant) {
        let (hidden_size, model) = (self.model.hidden_size, self.model.id);
        let Some(pipeline) = &mut self.pipeline else { return };
        let Some(stage) = pipeline.stages.get_mut(echo.stage.index()) else { return };
        if pipeline.epoch != echo.epoch || stage.node != echo.node || stage.echo.is_some() {
            return;
        }
        // Only a stage that holds exactly what was asked of it is routed to.
        let mismatch = if echo.model != model {
            Some(format!("holds model {}, not {model}", echo.model))
        } else if echo.layers != stage.plan.layers {
            Some(format!("holds layers {}, not {}", echo.layers, stage.plan.layers))
        } else if echo.hidden_size != hidden_size {
            Some(format!("passes rows of {} f32s, not {hidden_size}", echo.hidden_size))
        } else if echo.num_blocks == 0 {
            Some("has no room for a KV cache".into())
        } else {
            None
        };
        if let Some(mismatch) = mismatch {
            let cause = format!("stage {} on node {} {mismatch}", echo.stage, echo.node);
            self.lose_pipeline(&cause, now);
            return;
        }
        pipeline.last_progress = now;
        stage.loaded_bytes = echo.memory_bytes;
        stage.echo = Some(echo);
        if let Some(capacity) = pipeline.capacity() {
            let (node, epoch) = (pipeline.stages[0].node, pipeline.epoch);
            self.trouble.clear();
            self.backoff.reset();
            self.scheduler.attach(capacity);
            self.actions.push(Action::Connect { node, epoch });
        }
        self.actions.push(Action::Publish);
    }

    fn stage_failed(&mut self, failed: &StageFailed, now: Instant) {
        if self.epoch() == Some(failed.epoch) {
            let cause = format!("stage {} on node {}: {}", failed.stage, failed.node, failed.cause);
            self.lose_pipeline(&cause, now);
        }
    }

    fn frame(&mut self, frame: Frame, now: Instant) {
        let Some(pipeline) = &self.pipeline else { return };
        if pipeline.epoch != frame.epoch {
            return;
        }
        match frame.body {
            Body::Sampled(mut sampled) => {
                let mut timings = std::mem::take(&mut sampled.timings);
                // They become labels: whatever else came over the network is none.
                let in_order =
                    |(number, timing): (usize, &StageTiming)| timing.stage.index() == number;
                if timings.len() != pipeline.stages.len()
                    || !timings.iter().enumerate().all(in_order)
                {
                    timings.clear();
                }
                let update = self.scheduler.update(frame.step, sampled, now);
                self.tell(update.events);
                // Nothing, when the step came twice.
                if update.num_tokens > 0 {
                    self.actions.push(Action::Measured {
                        step: frame.step,
                        duration: update.duration,
                        num_tokens: update.num_tokens,
                        timings,
                    });
                }
            }
            Body::Failed(failed) if failed.fatal => {
                let cause = format!("stage {}: {}", frame.stage, failed.cause);
                self.lose_pipeline(&cause, now);
            }
            Body::Failed(failed) => {
                let events = self.scheduler.fail(frame.step, &failed.cause);
                self.tell(events);
            }
            Body::Step(_) => {}
        }
    }

    fn schedule(&mut self, now: Instant) {
        let Some(pipeline) = self.pipeline.as_ref().filter(|pipeline| pipeline.is_ready()) else {
            return;
        };
        let actions = &mut self.actions;
        while let Some((step, batch, traces)) =
            self.scheduler.schedule(now, |wait| actions.push(Action::Admitted(wait)))
        {
            let step =
                pipeline.step(self.model.id, step, Step { batch, traces, ..Step::default() });
            actions.push(Action::Send(Box::new(step)));
        }
    }
}
