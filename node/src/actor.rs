//! The node's actors: shells. [`NodeActor`] loads and drops stages as the coordinator says and
//! supervises them; [`StageActor`] moves frames between links and the device, and never computes.

use std::collections::HashMap;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::message::{
    COORDINATOR_GROUP, CoordinatorMsg, Loading, NODE_GROUP, NodeMsg, Progress, StageFailed, Unload,
    Wire,
};
use protocol::{
    Body, Failed, Frame, NodeReport, Sampled, StageEcho, StageId, StagePlan, StageTiming, Step,
    StepId,
};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent, pg};
use telemetry::Tracer;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{info, warn};
use transport::{Remote, Sent};

use crate::device_thread::{Computed, DeviceThread};
use crate::error::StageError;
use crate::links::{Arrived, Inlet, Links, Outlet};
use crate::progress::Bar;
use crate::stage::{Held, StepOutput};
use crate::trace::TracedStep;

/// Between two reports of how far loading has come.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// How long stages may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a courier tries to say why it ends.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// Loads and drops stages, and supervises them.
pub struct NodeActor;

/// What a node has.
pub struct Node {
    /// What it says of itself.
    pub report: NodeReport,
    /// One for each adapter of the report.
    pub devices: Vec<DeviceThread>,
    /// Its connections.
    pub links: Arc<Links>,
    /// Where spans of traced steps go.
    pub tracer: Tracer,
}

/// What the node's actor changes.
pub struct NodeState {
    node: Arc<Node>,
    stages: HashMap<StageId, (ActorRef<StageMsg>, Arc<StagePlan>)>,
}

impl Actor for NodeActor {
    type Msg = NodeMsg;
    type State = NodeState;
    type Arguments = Arc<Node>;

    async fn pre_start(
        &self,
        myself: ActorRef<NodeMsg>,
        node: Arc<Node>,
    ) -> Result<NodeState, ActorProcessingErr> {
        // Never by name: the death of a remote actor would unregister a local one of that name.
        pg::join(NODE_GROUP.to_owned(), vec![myself.get_cell()]);
        Ok(NodeState { node, stages: HashMap::new() })
    }

    async fn handle(
        &self,
        myself: ActorRef<NodeMsg>,
        message: NodeMsg,
        state: &mut NodeState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            NodeMsg::Load(Wire(Ok(plan))) => {
                let plan = Arc::new(plan);
                if state.stages.contains_key(&plan.id) {
                    return Ok(());
                }
                info!(stage = %plan.id.stage, layers = %plan.layers, model = %plan.model, "loading");
                let arguments = (Arc::clone(&state.node), Arc::clone(&plan));
                let (actor, _) =
                    Actor::spawn_linked(None, StageActor, arguments, myself.get_cell()).await?;
                state.stages.insert(plan.id, (actor, plan));
            }
            NodeMsg::Unload(Wire(Ok(Unload { pipeline, epoch }))) => {
                state.stages.retain(|id, (actor, _)| {
                    let stays = id.pipeline != pipeline || id.epoch > epoch;
                    if !stays {
                        actor.stop(None);
                    }
                    stays
                });
            }
            NodeMsg::Report(_, reply) => {
                // Fails when the coordinator no longer waits.
                let _ = reply.send(state.node.report.clone().into());
            }
            // A malformed message is the sender's fault; this actor goes on.
            NodeMsg::Load(Wire(Err(cause))) => warn!(%cause, "a plan is malformed"),
            NodeMsg::Unload(Wire(Err(cause))) => warn!(%cause, "an order to unload is malformed"),
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        myself: ActorRef<NodeMsg>,
        _state: &mut NodeState,
    ) -> Result<(), ActorProcessingErr> {
        // Left to themselves they would be killed, and their weights would stay on the adapter.
        myself.stop_children_and_wait(None, Some(STOP_TIMEOUT)).await;
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<NodeMsg>,
        event: SupervisionEvent,
        state: &mut NodeState,
    ) -> Result<(), ActorProcessingErr> {
        let (ended, cause): (ActorId, _) = match event {
            SupervisionEvent::ActorFailed(actor, cause) => (actor.get_id(), cause.to_string()),
            SupervisionEvent::ActorTerminated(actor, _, cause) => {
                (actor.get_id(), cause.unwrap_or_default())
            }
            _ => return Ok(()),
        };
        let id = state.stages.iter().find(|(_, (actor, _))| actor.get_id() == ended);
        if let Some(id) = id.map(|(id, _)| *id)
            && state.stages.remove(&id).is_some()
        {
            tell_coordinator(CoordinatorMsg::Failed(failed(&state.node, id, cause).into())).await;
        }
        Ok(())
    }
}

/// Moves frames between a stage's links and its device.
pub struct StageActor;

/// Local messages of [`StageActor`], from its own tasks.
#[derive(Debug, ractor_cluster::RactorMessage)]
pub enum StageMsg {
    /// The stage is loaded, or can't be.
    Loaded(Result<Held, StageError>),
    /// A link or the device is gone.
    Broken(String),
}

/// What a stage's actor changes.
pub struct StageState {
    node: Arc<Node>,
    plan: Arc<StagePlan>,
    inlet: Option<Inlet>,
    // What loads it, then what moves its frames: ends with this.
    task: JoinSet<()>,
}

impl Actor for StageActor {
    type Msg = StageMsg;
    type State = StageState;
    type Arguments = (Arc<Node>, Arc<StagePlan>);

    async fn pre_start(
        &self,
        myself: ActorRef<StageMsg>,
        (node, plan): Self::Arguments,
    ) -> Result<StageState, ActorProcessingErr> {
        let inlet = node.links.open(plan.id);
        let loading = load(Arc::clone(&node), Arc::clone(&plan));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let loaded = loading.await;
            let _ = myself.cast(StageMsg::Loaded(loaded));
        });
        Ok(StageState { node, plan, inlet: Some(inlet), task })
    }

    async fn handle(
        &self,
        myself: ActorRef<StageMsg>,
        message: StageMsg,
        state: &mut StageState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            StageMsg::Loaded(Ok(held)) => {
                let echo = echo(&state.node, &state.plan, &held);
                info!(
                    stage = %echo.id.stage,
                    layers = %echo.layers,
                    num_blocks = echo.num_blocks,
                    memory_mib = echo.memory_bytes >> 20,
                    "stage loaded"
                );
                let Some(inlet) = state.inlet.take() else { return Ok(()) };
                let (node, plan) = (Arc::clone(&state.node), Arc::clone(&state.plan));
                state.task.spawn(async move {
                    let cause = carry(node, plan, inlet).await;
                    let _ = myself.cast(StageMsg::Broken(cause));
                });
                tell_coordinator(CoordinatorMsg::Ready(echo.into())).await;
            }
            StageMsg::Loaded(Err(cause)) => myself.stop(Some(cause.to_string())),
            StageMsg::Broken(cause) => myself.stop(Some(cause)),
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<StageMsg>,
        state: &mut StageState,
    ) -> Result<(), ActorProcessingErr> {
        state.task.abort_all();
        let id = state.plan.id;
        state.node.links.close(id);
        if let Some(device) = state.node.devices.get(state.plan.adapter as usize) {
            device.unload(id).await;
        }
        Ok(())
    }
}

async fn load(node: Arc<Node>, plan: Arc<StagePlan>) -> Result<Held, StageError> {
    let device = node
        .devices
        .get(plan.adapter as usize)
        .ok_or_else(|| StageError::BadPlan(format!("there is no adapter {}", plan.adapter)))?;
    let id = plan.id;
    let mut bar = Bar::new(&format!("stage {}, layers {}", id.stage, plan.layers));
    let mut last = None::<Instant>;
    let runtime = tokio::runtime::Handle::current();
    let progress = Box::new(move |loading: Loading| {
        bar.set(loading);
        if last.is_none_or(|last| last.elapsed() >= PROGRESS_INTERVAL) {
            last = Some(Instant::now());
            let progress = Progress { id, loading };
            runtime.spawn(tell_coordinator(CoordinatorMsg::Progress(progress.into())));
        }
    });
    device.load(StagePlan::clone(&plan), progress).await
}

fn echo(node: &Node, plan: &StagePlan, held: &Held) -> StageEcho {
    StageEcho {
        node: node.report.node,
        id: plan.id,
        model: plan.model,
        layers: held.layers,
        hidden_size: held.hidden_size,
        num_blocks: held.num_blocks,
        memory_bytes: held.memory_bytes,
        fingerprint: held.fingerprint,
    }
}

fn failed(node: &Node, id: StageId, cause: String) -> StageFailed {
    StageFailed { node: node.report.node, id, cause }
}

/// Casts to the coordinator's remote face. It may take a moment to appear after the session is up.
pub async fn tell_coordinator(message: CoordinatorMsg) {
    for _ in 0..100 {
        if let Some(gate) = pg::get_members(&COORDINATOR_GROUP.to_owned()).first() {
            if !Remote::new(gate.clone()).tell(message) {
                warn!("a message to the coordinator is lost");
            }
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    warn!("the coordinator's actor doesn't appear: a message to it is lost");
}

/// Moves a stage's frames as soon as a link to it is open. Ends with the reason why no more can be
/// taken, which the coordinator has been told.
async fn carry(node: Arc<Node>, plan: Arc<StagePlan>, inlet: Inlet) -> String {
    let Inlet { linked, frames } = inlet;
    if linked.await.is_err() {
        return "no link to it was opened".into();
    }
    let stage = plan.id;
    let mut coordinator = match node.links.to_coordinator(stage).await {
        Ok(outlet) => outlet,
        Err(cause) => return format!("the coordinator is gone: {cause}"),
    };
    let mut courier = Courier {
        ended: coordinator.ended(),
        coordinator: &mut coordinator,
        next: None,
        node,
        plan: Arc::clone(&plan),
        sent: Sent::default(),
        free: Instant::now(),
    };
    let cause = match courier.link_next().await {
        Ok(()) => courier.run(frames).await,
        Err(cause) => cause,
    };
    drop(courier);
    // Over the link, so that the reason is there before the link's end.
    let failed = Failed { cause: cause.clone(), fatal: true };
    let (model, step, body) = (plan.model, StepId::default(), Body::Failed(failed));
    let told = coordinator.send(Frame { model, stage, step, body });
    // Fails when that link is what has ended.
    let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, told).await;
    cause
}

/// Takes a stage's frames through its device, one after another, and sends what comes of them on.
struct Courier<'a> {
    node: Arc<Node>,
    plan: Arc<StagePlan>,
    // None on the last stage.
    next: Option<Outlet>,
    coordinator: &'a mut Outlet,
    // Why one of the two takes no more, once that is so.
    ended: Pin<Box<dyn Future<Output = String> + Send>>,
    // Of the last frame: what the next one tells.
    sent: Sent,
    // Since when it waits for a frame.
    free: Instant,
}

impl Courier<'_> {
    /// Opens the link to the next stage, if there is one. It opens its own in turn, so that links
    /// are open all around before the first frame comes.
    async fn link_next(&mut self) -> Result<(), String> {
        let Some(peer) = self.plan.next else { return Ok(()) };
        let outlet =
            self.node.links.to_stage(peer, self.plan.id.next()).await.map_err(|cause| {
                format!("the next stage on node {} can't be reached: {cause}", peer.node)
            })?;
        let next_ended = outlet.ended();
        let coordinator_ended = std::mem::replace(&mut self.ended, Box::pin(pending()));
        self.ended = Box::pin(async move {
            tokio::select! {
                cause = next_ended => {
                    format!("the link to the next stage on node {} ended: {cause}", peer.node)
                }
                cause = coordinator_ended => cause,
            }
        });
        self.next = Some(outlet);
        Ok(())
    }

    /// Ends with the reason why no more frames can be taken.
    async fn run(&mut self, mut frames: mpsc::Receiver<Arrived>) -> String {
        loop {
            let arrived = tokio::select! {
                arrived = frames.recv() => arrived,
                cause = &mut self.ended => return cause,
            };
            let Some(arrived) = arrived else { return "the link to it has ended".into() };
            // The link said which stage and epoch it is for; a frame that says otherwise is stale.
            if arrived.frame.stage != self.plan.id {
                continue;
            }
            if let Err(cause) = self.forward(arrived).await {
                return cause;
            }
            self.free = Instant::now();
        }
    }

    async fn forward(&mut self, arrived: Arrived) -> Result<(), String> {
        let Arrived { frame, num_bytes, decode, at } = arrived;
        let free = self.free.max(at);
        let (queued, woken) = (free - at, free.elapsed());
        let Frame { model, stage, step: number, body } = frame;
        let Body::Step(step) = body else { return Ok(()) };
        let traced = TracedStep::of(number, &step, at);
        let device = &self.node.devices[self.plan.adapter as usize];
        let computed = device.step(stage, step).await;
        let end = Instant::now();
        let (stage, body) = match computed {
            Ok(Computed { mut step, output, wait, handoff, times, done }) => {
                let timing = StageTiming {
                    stage: stage.stage,
                    decode_us: micros(decode),
                    wait_us: micros(queued + wait),
                    handoff_us: micros(woken + handoff + done.elapsed()),
                    upload_us: micros(times.upload),
                    compute_us: micros(times.compute),
                    readback_us: micros(times.readback),
                    encode_us: micros(self.sent.encode),
                    send_us: micros(self.sent.write),
                    rtt_us: micros(self.sent.rtt),
                    received_bytes: num_bytes as u32,
                };
                step.timings.push(timing);
                if let Some(traced) = traced {
                    traced.record(&self.node, &self.plan, end, Ok(&timing));
                }
                match output {
                    StepOutput::Hidden(hidden) => {
                        (stage.next(), Body::Step(Step { hidden, ..step }))
                    }
                    StepOutput::Sampled(outputs) => {
                        (stage, Body::Sampled(Sampled { outputs, timings: step.timings }))
                    }
                }
            }
            Err(cause) => {
                let trace_id = traced.as_ref().and_then(TracedStep::first);
                warn!(stage = %stage.stage, step = %number, trace_id, %cause, "step failed");
                if let Some(traced) = traced {
                    traced.record(&self.node, &self.plan, end, Err(&cause));
                }
                (stage, Body::Failed(Failed { cause: cause.to_string(), fatal: cause.is_fatal() }))
            }
        };
        let to = match &body {
            Body::Step(_) => self.next.as_mut().ok_or("the plan names no next stage")?,
            Body::Sampled(_) | Body::Failed(_) => &mut *self.coordinator,
        };
        self.sent = to.send(Frame { model, stage, step: number, body }).await?;
        Ok(())
    }
}

/// To the nearest, so that sums of many are right.
fn micros(duration: Duration) -> u32 {
    u32::try_from((duration.as_nanos() + 500) / 1000).unwrap_or(u32::MAX)
}
