//! The cluster's state: nodes, pipelines, and the queue that feeds them.
//!
//! A pipeline that is lost gives what ran in it back to the queue; it goes on in whichever comes
//! next. Pure: what happens comes in as an [`Input`], what is to do goes out as an [`Action`].
//! Lost and repeated inputs are tolerated: whatever names another epoch is dropped.

mod draining;
mod duties;
mod explain;
mod left_out;
mod nodes;
mod pipelines;
mod returning;
mod scaling;
mod seen;
mod show;
mod sources;
mod spares;
mod submitting;
mod tell;
mod waiting;
mod ways;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use protocol::config::Config;
use protocol::message::{FetchProgress, LoadProgress, Measure, StageFailed, Ways};
use protocol::{
    Body, Epoch, Frame, LinkSpeed, NodeId, NodeReport, PipelineId, RequestId, SessionId, StageEcho,
    StageId, StagePlan, StageTiming, StepId,
};

pub(crate) use self::explain::Explained;
#[cfg(test)]
pub(crate) use self::explain::State;
pub(crate) use self::left_out::unsuited;
use self::returning::Returning;
use self::scaling::Scaling;
pub(crate) use self::scaling::{Idle, Staffing};
use crate::autoscaler::{self, Observation};
use crate::backoff::Backoff;
use crate::duty::{Duties, Duty};
use crate::history::{Decision, History};
use crate::known::Known;
use crate::lane::{self, Prefix, Told};
use crate::members::Members;
use crate::model::Model;
use crate::pipeline::Pipeline;
use crate::placement::End;
use crate::queue::{Advanced, Lifted, Queue};
use crate::request::{Event, Priority, Request, RequestError, SubmitError, WantedMasks};
use crate::trace::PhaseEnded;
use crate::trust::Trust;

/// Everything that can happen to the cluster.
#[derive(Debug)]
pub enum Input {
    /// A body's requests: all of them wait from now on, or none.
    Submit(Vec<Request>),
    /// A node has joined and said what it has.
    Joined(NodeReport),
    /// A node has opened the connections of a new session.
    Connected {
        /// Who.
        node: NodeId,
        /// Which: news of an older one changes nothing from now on.
        session: SessionId,
        /// The newest that both ends speak.
        wire_version: u16,
    },
    /// A node ends its session on purpose.
    Leaving {
        /// Who.
        node: NodeId,
        /// Which of its sessions.
        session: SessionId,
        /// One sentence for a person.
        cause: String,
    },
    /// A node's session is over: it is silent, or ended.
    Lost {
        /// Who.
        node: NodeId,
        /// Which of its sessions.
        session: SessionId,
        /// One sentence for a person.
        cause: String,
    },
    /// A stage is loaded.
    Ready(StageEcho),
    /// A stage can't be loaded, or is lost.
    Failed(StageFailed),
    /// Loading goes on.
    Progress(LoadProgress),
    /// A child process has ended, or couldn't be started again.
    Exited {
        /// Which, while it was one.
        pid: Option<u32>,
        /// One sentence for a person.
        cause: String,
    },
    /// This node's stage has its link: what is sent to it arrives, and so does what it reports.
    Linked(NodeId, StageId),
    /// A link to or from a stage has ended or can't be opened.
    LinkLost {
        /// Whose link.
        stage: StageId,
        /// One sentence for a person.
        cause: String,
    },
    /// A frame from a stage.
    Frame(Frame),
    /// An operator says what a node is there for.
    Duty(NodeId, Duty),
    /// A node wants to end with this session, once it holds nothing any more.
    Drain {
        /// Who.
        node: NodeId,
        /// Which of its sessions.
        session: SessionId,
    },
    /// A client went away.
    Cancel(RequestId),
    /// Somebody who may do so doesn't want a body's answer any more: its first request's name.
    Withdraw(RequestId),
    /// A way between processes was measured.
    Measured {
        /// Between whom.
        ends: (End, End),
        /// What it is like.
        speed: LinkSpeed,
    },
    /// What the round trip of a connection is now, in microseconds.
    Heard((End, End), f64),
    /// A node has measured the ways to others.
    Ways(Ways),
    /// A node gets weights from others.
    Fetching(FetchProgress),
    /// A node's host was found to take so many seconds of a step.
    Host(NodeId, f64),
    /// What each further sequence of a step takes of an adapter, as a share of one alone.
    RowShare(NodeId, u32, f64),
    /// Time passed.
    Tick,
    /// Whatever runs or waits fails, and nothing is placed any more: the coordinator stops.
    ShutDown,
}

/// Everything that the cluster does.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// These requests wait, or why they don't.
    Submitted(Vec<RequestId>, Result<(), SubmitError>),
    /// Ask this node to load this stage.
    Load(NodeId, Box<StagePlan>),
    /// Ask this idle node to keep these weights ready.
    Warm(NodeId, Box<StagePlan>),
    /// Ask this node to measure ways to others.
    Measure(NodeId, Measure),
    /// Ask this node to drop its stages of this pipeline, of this epoch and older.
    Unload(NodeId, PipelineId, Epoch),
    /// Keep what a node is there for.
    Relieved(NodeId, Duty),
    /// Tell this node that it holds nothing any more, and may go.
    Release(NodeId),
    /// Open the link to a first stage, on this node.
    Connect(NodeId, StageId),
    /// Close a session's connections: its node is to begin a new one.
    Disconnect(SessionId),
    /// Send this frame to the first stage.
    Send(Box<Frame>),
    /// Make these masks and send them in this frame, while nobody waits.
    Mask(Box<Frame>, WantedMasks),
    /// Tell a client.
    Tell(RequestId, Event),
    /// A step has returned.
    Measured {
        /// Through which pipeline.
        pipeline: PipelineId,
        /// Of which plan of it.
        epoch: Epoch,
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
    /// A running sequence had to give way.
    Preempted(Priority),
    /// A pipeline that served is lost: what ran in it waits for another.
    Moved {
        /// Which.
        pipeline: PipelineId,
        /// One sentence for a person.
        cause: String,
        /// So many sequences.
        num_sequences: usize,
    },
    /// A pipeline was given up, as was intended.
    Drained {
        /// Which.
        pipeline: PipelineId,
        /// One sentence for a person.
        cause: String,
        /// So many sequences didn't end in time: they wait for another.
        num_sequences: usize,
    },
    /// What sequences that were admitted found in the prefix cache.
    Found(Prefix),
    /// A phase of a traced request has ended.
    Traced(Box<PhaseEnded>),
    /// A node failed too often: it is left out for so long.
    Quarantined {
        /// Who.
        node: NodeId,
        /// How long.
        pause: Duration,
        /// One sentence for a person: the last failure.
        cause: String,
    },
    /// A node that was left out is let in again.
    LetIn(NodeId),
    /// A node that had joined is here no more.
    Gone {
        /// Who.
        node: NodeId,
        /// One sentence for a person.
        cause: String,
        /// Whether it went on purpose.
        on_purpose: bool,
    },
    /// The load, when it isn't what it was.
    Observed(Observation),
    /// Another number of pipelines is wanted.
    Scaled(Box<autoscaler::Rescale>),
    /// Another number of nodes is wanted, or there, or other ones could go.
    Staff(Staffing),
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
    members: Members,
    duties: Duties,
    // Nodes that are waited for, where that isn't the configuration's word.
    expected: Option<usize>,
    known: Known,
    trust: Trust,
    ways: ways::Ways,
    last_change: Instant,
    returning: Returning,
    // The last change after which free nodes could hold no pipeline.
    misplaced: Option<Instant>,
    // As it was at the last look.
    seen: Option<Observation>,
    // Where the autoscaler decides how many pipelines there are.
    scaling: Option<Scaling>,
    queue: Queue,
    pipelines: BTreeMap<PipelineId, Pipeline>,
    // Choices of each open request that have not ended.
    requests: HashMap<RequestId, u32>,
    history: History,
    // Since when no pipeline serves, once one did.
    unserved_since: Option<Instant>,
    has_served: bool,
    // Those that wait and that no pipeline that serves can take, and since when.
    stranded: BTreeMap<RequestId, Instant>,
    // Of loads by the nodes that are here now.
    backoff: Backoff,
    // Why there is no pipeline, when waiting alone doesn't explain it.
    trouble: String,
    is_stopping: bool,
    actions: Vec<Action>,
}

impl Cluster {
    /// A cluster without nodes. `start` is the coordinator's start number.
    pub fn new(config: Config, model: Model, start: u64, now: Instant) -> Self {
        let queue = Queue::new(config.scheduler.clone());
        let history = History::new(&config.scheduler);
        let scaling = Self::scaling(&config);
        Self {
            config,
            model,
            start,
            num_plans: 0,
            members: Members::default(),
            duties: Duties::default(),
            expected: None,
            known: Known::default(),
            trust: Trust::default(),
            ways: ways::Ways::default(),
            last_change: now,
            returning: Returning::default(),
            misplaced: None,
            seen: None,
            scaling,
            queue,
            pipelines: BTreeMap::new(),
            requests: HashMap::new(),
            history,
            unserved_since: None,
            has_served: false,
            stranded: BTreeMap::new(),
            backoff: Backoff::default(),
            trouble: String::new(),
            is_stopping: false,
            actions: Vec::new(),
        }
    }

    /// Everything that can happen comes through here; everything to do comes out.
    pub fn handle(&mut self, input: Input, now: Instant) -> Vec<Action> {
        match input {
            Input::Submit(requests) => {
                self.submit(requests, now);
                self.wake(now);
            }
            Input::Joined(report) => self.join(report, now),
            Input::Connected { node, session, wire_version } => {
                self.connected((node, session), wire_version, now);
            }
            Input::Leaving { node, session, cause } => self.leaves(node, session, &cause, now),
            Input::Lost { node, session, cause } => self.lost(node, session, &cause, now),
            Input::Ready(echo) => self.stage_ready(echo, now),
            Input::Failed(failed) => self.stage_failed(&failed, now),
            Input::Progress(progress) => self.progress(progress, now),
            Input::Exited { pid, cause } => self.exited(pid, cause, now),
            Input::Linked(node, stage) => self.stage_linked(node, stage, now),
            Input::LinkLost { stage, cause } => self.link_lost(stage, &cause, now),
            Input::Frame(frame) => self.frame(frame, now),
            Input::Duty(node, duty) => self.set_duty(node, duty, now),
            Input::Drain { node, session } => self.drain_itself(node, session, now),
            Input::Cancel(request) => self.leave(request, now),
            Input::Withdraw(body) => self.withdraw(body, now),
            Input::Measured { ends, speed } => self.known.links.set(ends, speed),
            Input::Heard(ends, rtt_us) => self.known.links.heard(ends, rtt_us),
            Input::Ways(ways) => self.ways_measured(&ways),
            Input::Fetching(fetching) => self.fetching(fetching),
            Input::Host(node, seconds) => self.known.set_host(node, seconds),
            Input::RowShare(node, at, share) => self.known.set_row_share((node, at), share),
            Input::Tick => self.tick(now),
            Input::ShutDown => self.shut_down(now),
        }
        // Whoever waits for a pipeline waits for no clock.
        if self.last_change == now {
            self.place_if_settled(now);
        }
        if self.actions.contains(&Action::Publish) {
            self.warm_spares();
        }
        self.schedule(now);
        std::mem::take(&mut self.actions)
    }

    fn is_serving(&self) -> bool {
        self.pipelines.values().any(Pipeline::is_ready)
    }

    /// None when the stage is of another epoch than the pipeline.
    fn pipeline_of(&mut self, stage: StageId) -> Option<&mut Pipeline> {
        let pipeline = self.pipelines.get_mut(&stage.pipeline);
        pipeline.filter(|pipeline| pipeline.epoch == stage.epoch)
    }

    fn frame(&mut self, frame: Frame, now: Instant) {
        let StageId { pipeline: id, epoch, stage } = frame.stage;
        let pipeline = self.pipelines.get_mut(&id).filter(|pipeline| pipeline.epoch == epoch);
        let Some(pipeline) = pipeline else { return };
        let Some(lane) = &mut pipeline.lane else { return };
        let mut told = Told::default();
        match frame.body {
            Body::Sampled(mut sampled) => {
                let timings = &mut sampled.timings;
                // They become labels: whatever else came over the network is none.
                let in_order =
                    |(number, timing): (usize, &StageTiming)| timing.stage.index() == number;
                if timings.len() != pipeline.stages.len()
                    || !timings.iter().enumerate().all(in_order)
                {
                    timings.clear();
                }
                let timings = timings.clone();
                // Each sequence's next token, and no prompt.
                let num_outputs = sampled.outputs.len();
                let update = lane.update(frame.step, sampled, now, &mut told);
                // Nothing, when the step came twice.
                if update.num_tokens > 0 {
                    if update.num_tokens == num_outputs {
                        if let Some(took) = update.alone {
                            pipeline.measured.add(&timings, took, num_outputs);
                            self.known.learn_host(&pipeline.stages, &timings, took);
                        }
                        let (reports, stages) = (self.members.joined(), &pipeline.stages);
                        let rows = (num_outputs, update.alone.is_some());
                        self.known.learn(&self.model.cost, reports, stages, &timings, rows);
                    }
                    let (step, lane::Update { duration, num_tokens, .. }) = (frame.step, update);
                    self.actions.push(Action::Measured {
                        pipeline: id,
                        epoch,
                        step,
                        duration,
                        num_tokens,
                        timings,
                    });
                }
            }
            Body::Failed(failed) if failed.fatal => {
                let cause = format!("stage {stage}: {}", failed.cause);
                self.stage_gone(frame.stage, &cause, failed.blame, now);
            }
            Body::Failed(failed) => {
                lane.fail(frame.step, &failed.cause, &mut self.queue, now, &mut told);
            }
            Body::Step(_) | Body::Masks(_) => {}
        }
        self.tell(told, now);
    }

    fn schedule(&mut self, now: Instant) {
        let mut told = Told::default();
        let Advanced { expired, lifted } = self.queue.advance(now);
        for Lifted { request, choice, level, is_urgent } in lifted {
            self.history.record(request, Some(choice), Decision::Lifted { level, is_urgent }, now);
        }
        for sequence in expired {
            told.fail(sequence, RequestError::DeadlineExceeded("the request waited for its turn"));
        }
        for lane in self.pipelines.values().filter_map(|pipeline| pipeline.lane.as_ref()) {
            let expired = lane.expired(now).map(|request| {
                let error = RequestError::DeadlineExceeded("the answer was not complete");
                (request, Event::Failed(error))
            });
            told.events.extend(expired);
        }
        self.tell(told, now);
        loop {
            let mut told = Told::default();
            let open = self.pipelines.values_mut().filter(|pipeline| !pipeline.is_draining());
            let mut lanes: Vec<_> = open.filter_map(|it| it.lane.as_mut()).collect();
            lane::admit(&mut self.queue, &mut lanes, now, &mut told);
            let mut num_sent = 0;
            for pipeline in self.pipelines.values_mut() {
                let Some(lane) = &mut pipeline.lane else { continue };
                let Some(scheduled) = lane.schedule(&mut self.queue, now, &mut told) else {
                    continue;
                };
                num_sent += 1;
                pipeline.send(self.model.id, scheduled, &mut self.actions);
            }
            // Whoever gave way to somebody in one lane may fit into another.
            let has_moved = num_sent > 0 || !told.preempted.is_empty();
            self.tell(told, now);
            if !has_moved {
                break;
            }
        }
        for pipeline in self.pipelines.values_mut() {
            pipeline.send_masks(self.model.id, &mut self.actions);
        }
    }
}
