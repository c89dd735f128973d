//! The node's actors: shells. `NodeActor` loads and drops stages as the coordinator says and
//! supervises them; `StageActor` moves frames between links and the device, and never computes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use protocol::message::{
    COORDINATOR_GROUP, CoordinatorMsg, LoadProgress, Loading, NODE_GROUP, NodeMsg, StageFailed,
    Unload, Ways, Wire,
};
use protocol::{Blame, HeldParts, Narrow, NodeReport, StageEcho, StageId, StagePlan};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent, pg};
use telemetry::Tracer;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};
use transport::Remote;

use crate::courier;
use crate::device_thread::{DeviceThread, ReportProgress};
use crate::error::StageError;
use crate::fetch::Given;
use crate::links::{Arrived, Bringer, Inlet, Links};
use crate::progress::{Bar, FetchReport, PROGRESS_INTERVAL};
use crate::stage::Held;
use crate::weights::WeightStore;

/// How long a stage that ends tries to say why.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(100);

/// The wire version since which a node tells what it holds, and what its caches may take.
const HELD_SINCE: u16 = 5;

/// After a failure to keep weights ready; it doubles with each.
const WARM_PAUSE: Duration = Duration::from_secs(1);
const MAX_WARM_PAUSE: Duration = Duration::from_secs(600);

/// How long stages may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Loads and drops stages, and supervises them.
pub(crate) struct NodeActor;

pub(crate) struct Node {
    /// What it says of itself.
    pub report: NodeReport,
    /// One for each adapter of the report.
    pub devices: Vec<DeviceThread>,
    pub links: Arc<Links>,
    pub weights: Arc<WeightStore>,
    /// Where spans of traced steps go.
    pub tracer: Tracer,
    /// Hears that the node holds nothing any more, and may go: until it is to load again.
    pub released: Arc<Notify>,
    /// The way to the coordinator's actor.
    pub gate: Gate,
}

impl Node {
    /// What it says of itself, with what its adapters hold by now.
    fn report(&self) -> NodeReport {
        let mut report = self.report.clone();
        if self.gate.wire_version >= HELD_SINCE {
            for (adapter, device) in (0..).zip(&self.devices) {
                let held = device.held().into_iter();
                report.held.extend(held.map(|held| HeldParts { adapter, ..held }));
            }
        } else {
            for adapter in &mut report.adapters {
                adapter.max_cache_bytes = None;
                adapter.speed.narrow = Narrow::default();
            }
        }
        report
    }
}

/// What the node's actor changes.
pub(crate) struct NodeState {
    node: Arc<Node>,
    stages: HashMap<StageId, (ActorRef<StageMsg>, Arc<StagePlan>)>,
    // What is to be kept ready on an adapter, by its number, until a stage comes there.
    warming: HashMap<u32, JoinSet<()>>,
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
        Ok(NodeState { node, stages: HashMap::new(), warming: HashMap::new() })
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
                // That it might go was said when nothing was to come any more.
                let _ = state.node.released.notified().now_or_never();
                state.warming.remove(&plan.adapter);
                let (stage, layers) = (plan.id.stage, plan.layers);
                info!(%stage, %layers, model = %plan.model, "loading");
                let arguments = (Arc::clone(&state.node), Arc::clone(&plan));
                let (actor, _) =
                    Actor::spawn_linked(None, StageActor, arguments, myself.get_cell()).await?;
                state.stages.insert(plan.id, (actor, plan));
            }
            NodeMsg::Warm(Wire(Ok(plan))) => {
                let (adapter, mut task) = (plan.adapter, JoinSet::new());
                task.spawn(keep_ready(Arc::clone(&state.node), plan));
                // Ends with what was asked before.
                state.warming.insert(adapter, task);
            }
            NodeMsg::Sources(Wire(Ok(sources))) => state.node.links.set_sources(sources),
            NodeMsg::Measure(Wire(Ok(measure))) => {
                let node = Arc::clone(&state.node);
                tokio::spawn(async move {
                    let ways = node.links.measure(measure).await;
                    let (id, session) = (node.report.node, node.report.session);
                    let ways = Ways { node: id, session, ways };
                    node.gate.tell(CoordinatorMsg::Ways(ways.into())).await;
                });
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
            NodeMsg::Release(_) => state.node.released.notify_one(),
            NodeMsg::Revoked(Wire(Ok(nodes))) => state.node.links.keep_out(nodes),
            NodeMsg::Report(_, reply) => {
                // Fails when the coordinator no longer waits.
                let _ = reply.send(state.node.report().into());
            }
            // A malformed message is the sender's fault; this actor goes on.
            NodeMsg::Load(Wire(Err(cause))) | NodeMsg::Warm(Wire(Err(cause))) => {
                warn!(%cause, "a plan is malformed")
            }
            NodeMsg::Measure(Wire(Err(cause))) => warn!(%cause, "what to measure is malformed"),
            NodeMsg::Sources(Wire(Err(cause))) => warn!(%cause, "sources are malformed"),
            NodeMsg::Unload(Wire(Err(cause))) => warn!(%cause, "an order to unload is malformed"),
            NodeMsg::Revoked(Wire(Err(cause))) => {
                warn!(%cause, "the list of revoked nodes is malformed")
            }
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
            let failed = failed(&state.node, id, cause, Blame::Own);
            // Where the coordinator is gone, this actor has other things to do than to wait for it.
            tokio::spawn(state.node.gate.tell(CoordinatorMsg::Failed(failed.into())));
        }
        Ok(())
    }
}

/// A loaded stage, whose frames a courier moves.
pub(crate) struct StageActor;

/// Local messages of [`StageActor`], from its own tasks.
#[derive(Debug, ractor_cluster::RactorMessage)]
pub(crate) enum StageMsg {
    /// The stage is loaded.
    Loaded(Held),
    /// It can't be loaded, or a link or the device is gone, and whose fault it is.
    Broken(String, Blame),
}

/// What a stage's actor changes.
pub(crate) struct StageActorState {
    node: Arc<Node>,
    plan: Arc<StagePlan>,
    // What brings it steps, and what else it hears.
    inlets: Option<(Inlet, Option<mpsc::Receiver<Arrived>>)>,
    // What loads it, then what moves its frames: ends with this.
    task: JoinSet<()>,
}

impl Actor for StageActor {
    type Msg = StageMsg;
    type State = StageActorState;
    type Arguments = (Arc<Node>, Arc<StagePlan>);

    async fn pre_start(
        &self,
        myself: ActorRef<StageMsg>,
        (node, plan): Self::Arguments,
    ) -> Result<StageActorState, ActorProcessingErr> {
        let by = |is_it| if is_it { Bringer::Coordinator } else { Bringer::Stage };
        let inlet = node.links.open(plan.id, by(plan.embeds()));
        let also = plan.also_hears();
        let also = also.map(|name| node.links.open(name, by(plan.samples())).frames);
        let loading = load(Arc::clone(&node), Arc::clone(&plan));
        let wire_version = node.gate.wire_version;
        let mut task = JoinSet::new();
        task.spawn(async move {
            let _ = myself.cast(match loading.await {
                Ok(held) => StageMsg::Loaded(held),
                Err(cause) => StageMsg::Broken(cause.to_string(), blame(&cause, wire_version)),
            });
        });
        Ok(StageActorState { node, plan, inlets: Some((inlet, also)), task })
    }

    async fn handle(
        &self,
        myself: ActorRef<StageMsg>,
        message: StageMsg,
        state: &mut StageActorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            StageMsg::Loaded(held) => {
                let echo = echo(&state.node, &state.plan, &held);
                info!(
                    stage = %echo.id.stage,
                    layers = %echo.layers,
                    num_blocks = echo.num_blocks,
                    memory_mib = echo.memory_bytes >> 20,
                    "stage loaded"
                );
                let Some(inlets) = state.inlets.take() else { return Ok(()) };
                let (node, plan) = (Arc::clone(&state.node), Arc::clone(&state.plan));
                state.task.spawn(async move {
                    let (cause, blame) = courier::carry(node, plan, inlets).await;
                    let _ = myself.cast(StageMsg::Broken(cause, blame));
                });
                state.node.gate.tell(CoordinatorMsg::Ready(echo.into())).await;
            }
            StageMsg::Broken(cause, blame) => {
                // Its supervisor wouldn't know whose fault it was.
                let failed = failed(&state.node, state.plan.id, cause.clone(), blame);
                let told = state.node.gate.tell(CoordinatorMsg::Failed(failed.into()));
                // Fails where the coordinator is what is gone.
                let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, told).await;
                myself.stop(Some(cause));
            }
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<StageMsg>,
        state: &mut StageActorState,
    ) -> Result<(), ActorProcessingErr> {
        state.task.abort_all();
        let id = state.plan.id;
        state.node.links.close(id);
        state.plan.also_hears().into_iter().for_each(|name| state.node.links.close(name));
        if let Some(device) = state.node.devices.get(state.plan.adapter as usize) {
            device.unload(id).await;
        }
        Ok(())
    }
}

/// Keeps the weights of a stage to come on its adapter. The coordinator counts on it, and doesn't
/// hear when it fails: it is tried until it is done.
async fn keep_ready(node: Arc<Node>, plan: StagePlan) {
    let Some(device) = node.devices.get(plan.adapter as usize) else { return };
    let (layers, mut pause) = (plan.layers, WARM_PAUSE);
    loop {
        let warmed = async {
            let mut report = FetchReport::new(&node, true);
            let mut given = |given| report.set(given);
            let provided = node.links.provide(&node.weights, plan.clone(), None, &mut given);
            let provided = provided.await?;
            drop(report);
            device.warm(provided.plan.clone()).await
        };
        match warmed.await {
            Ok(()) => return info!(%layers, "layers are kept ready"),
            // One that was dropped goes when its last step is done.
            Err(cause @ StageError::Busy) => debug!(%layers, %cause, "layers aren't ready yet"),
            Err(cause) => warn!(%layers, %cause, ?pause, "layers aren't ready: tried again"),
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(MAX_WARM_PAUSE);
    }
}

async fn load(node: Arc<Node>, plan: Arc<StagePlan>) -> Result<Held, StageError> {
    let device = node
        .devices
        .get(plan.adapter as usize)
        .ok_or_else(|| StageError::BadPlan(format!("there is no adapter {}", plan.adapter)))?;
    let (id, gate) = (plan.id, node.gate);
    let mut bar = Bar::new(&format!("stage {}, layers {}", id.stage, plan.layers));
    let mut last = None::<Instant>;
    let runtime = tokio::runtime::Handle::current();
    let mut progress: ReportProgress = Box::new(move |loading: Loading| {
        bar.set(loading);
        if last.is_none_or(|last| last.elapsed() >= PROGRESS_INTERVAL) {
            last = Some(Instant::now());
            let progress = LoadProgress { id, loading };
            runtime.spawn(gate.tell(CoordinatorMsg::Progress(progress.into())));
        }
    });
    let mut report = FetchReport::new(&node, false);
    let mut given = |given: Given| {
        report.set(given);
        let Given { num_bytes: fetched_bytes, of_bytes: fetch_bytes, .. } = given;
        progress(Loading { fetched_bytes, fetch_bytes, ..Loading::default() });
    };
    let (weights, plan) = (&node.weights, StagePlan::clone(&plan));
    let provided = node.links.provide(weights, plan, Some(device), &mut given).await?;
    drop(report);
    device.load(provided.plan.clone(), progress).await
}

fn echo(node: &Node, plan: &StagePlan, held: &Held) -> StageEcho {
    StageEcho {
        node: node.report.node,
        id: plan.id,
        model: plan.model,
        layers: held.layers,
        hidden_size: held.row_values,
        num_blocks: held.num_blocks,
        memory_bytes: held.memory_bytes,
        fingerprint: held.fingerprint,
    }
}

/// Whose fault it is that a stage doesn't load, as far as it can be said in this wire version.
fn blame(cause: &StageError, wire_version: u16) -> Blame {
    let blame = match *cause {
        StageError::TooLarge { missing, .. } => Blame::Memory(missing),
        _ => Blame::Own,
    };
    if blame.since() <= wire_version { blame } else { Blame::Own }
}

fn failed(node: &Node, id: StageId, cause: String, blame: Blame) -> StageFailed {
    StageFailed { node: node.report.node, id, cause, blame }
}

/// The way to the coordinator's remote face.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate {
    /// What is spoken in this session.
    pub wire_version: u16,
}

impl Gate {
    /// Casts to it, unless it wouldn't understand. It may take a moment to appear after the session
    /// is up.
    pub(crate) async fn tell(self, message: CoordinatorMsg) {
        if message.since() > self.wire_version {
            return;
        }
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
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use protocol::config::Transport;
    use protocol::{ModelId, NodeId, SessionId};
    use transport::{Authority, Endpoint, PeerName, Purpose};

    use super::*;
    use crate::cache::Cache;

    async fn soon<T>(what: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(60), what).await.expect("it takes too long")
    }

    /// The actor of a node with this adapter, whose coordinator says nothing.
    async fn acting(dir: &Path, device: DeviceThread) -> (ActorRef<NodeMsg>, Arc<Node>) {
        let identity = Authority::load_or_create(dir).unwrap().coordinator_identity(1);
        let (config, local) = (Transport::default(), ([127, 0, 0, 1], 0).into());
        let endpoint = Endpoint::bind(local, Some(identity.unwrap()), &config).unwrap();
        let dial = endpoint.dial(endpoint.local_addr(), Purpose::Data, PeerName::Coordinator);
        let (coordinator, _) = tokio::join!(dial, endpoint.accept());
        let report = NodeReport {
            node: NodeId(1),
            session: SessionId(1),
            hostname: "here".into(),
            pid: 1,
            data_addr: endpoint.local_addr(),
            pool: String::new(),
            labels: Vec::new(),
            adapters: vec![device.report.clone()],
            held: Vec::new(),
        };
        let cache = Cache::open(&dir.join("cache"), 0).unwrap();
        let node = Arc::new(Node {
            links: Arc::new(Links::new(report.node, endpoint, coordinator.unwrap(), &config)),
            report,
            devices: vec![device],
            weights: Arc::new(WeightStore::new(cache, true)),
            tracer: Tracer::default(),
            released: Arc::default(),
            gate: Gate { wire_version: protocol::WIRE_VERSION },
        });
        let (actor, _) = Actor::spawn(None, NodeActor, Arc::clone(&node)).await.unwrap();
        (actor, node)
    }

    /// Goal: a node that was drained and serves again doesn't go in the middle of an answer.
    /// Method: what its actor hears when it may go, then has a stage, then may go.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_placed_on_a_node_takes_back_that_it_may_go() {
        let dir = tempfile::tempdir().unwrap();
        let (actor, node) = acting(dir.path(), DeviceThread::fake().0).await;
        let may_go = async |messages: Vec<NodeMsg>| {
            messages.into_iter().for_each(|message| actor.cast(message).unwrap());
            // It answers when it has heard those.
            let report = |reply| NodeMsg::Report(().into(), reply);
            Remote::new(actor.get_cell()).ask(report, Duration::from_secs(60)).await.unwrap();
            node.released.notified().now_or_never().is_some()
        };
        let (release, plan) = (|| NodeMsg::Release(().into()), StagePlan::default());
        assert!(may_go(vec![release()]).await);
        assert!(!may_go(vec![release(), NodeMsg::Load(plan.into())]).await);
        assert!(may_go(vec![release()]).await);
        actor.stop_and_wait(None, None).await.unwrap();
    }

    /// Goal: what the coordinator takes for ready is, in the end. Method: an adapter on which the
    /// stage before is still there, and one that fails.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_cannot_be_kept_ready_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let (device, mut thread) = DeviceThread::fake();
        let (actor, _node) = acting(dir.path(), device).await;
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/glass-en");
        let files = checkpoint::Checkpoint::open(Path::new(path)).unwrap();
        let plan = crate::kept::tests::plan(&files, 1..2);
        let plan = StagePlan { model_path: path.into(), model: ModelId([7; 16]), ..plan };
        actor.cast(NodeMsg::Warm(plan.into())).unwrap();
        soon(thread.warms(Err(StageError::Busy))).await;
        soon(thread.warms(Ok(()))).await;
        actor.stop_and_wait(None, None).await.unwrap();
    }
}
