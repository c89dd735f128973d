//! The actors: shells that turn messages into inputs of the pure [`Cluster`] and carry out its
//! actions. [`CoordinatorActor`] is the one writer of cluster state; [`GateActor`] is its remote
//! face.

mod gate;
mod masking;
mod noting;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::message::{NODE_GROUP, NodeMsg, Unload, Wire};
use protocol::{NodeId, NodeReport, Peer, RequestId, SessionId, StageId, StagePlan};
use ractor::{
    Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent, pg, pg::GroupChangeMessage,
};
use telemetry::Tracer;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};
use transport::{Remote, ticks};

pub(crate) use self::gate::GateActor;
use crate::cluster::{Action, Cluster, Input, Staffing};
use crate::duty::{self, Duty};
use crate::engine::Submission;
use crate::events::Teller;
use crate::metrics::Metrics;
use crate::request::{Event, SubmitError};
use crate::sessions::Sessions;
use crate::spans;
use crate::stages::Stages;
use crate::status::Status;
use crate::store::Store;

/// How often the cluster looks at the clock.
const TICK: Duration = Duration::from_millis(500);

/// What a node gets to answer a question.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Between two questions to a node that doesn't answer.
const REPORT_PAUSE: Duration = Duration::from_secs(1);

/// Revoked nodes that others are told of: they fit into one message.
const MAX_TOLD_REVOKED: usize = 50_000;

/// Local messages of [`CoordinatorActor`].
#[derive(Debug, ractor_cluster::RactorMessage)]
pub(crate) enum Msg {
    /// From the API: a request.
    Submit(Submission),
    /// From the shells: something happened.
    Happened(Input),
    /// From this actor's own task: a node's actor has said who it is.
    Reported(Remote<NodeMsg>, NodeReport),
    /// From the door: these nodes are members no more.
    Revoked(Vec<NodeId>),
    /// From the API: somebody wants to know something.
    Look(Look),
}

/// A look at the state as it is between two messages.
pub(crate) struct Look(pub Looking);

/// Is shown the state, and told the time.
pub(crate) type Looking = Box<dyn FnOnce(&Cluster, Instant) + Send>;

impl fmt::Debug for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Look")
    }
}

/// The one writer of cluster state.
pub(crate) struct CoordinatorActor;

/// What the coordinator's actor starts with.
pub(crate) struct Arguments {
    pub cluster: Cluster,
    pub stages: Arc<Stages>,
    /// The nodes' connections.
    pub sessions: Arc<Sessions>,
    /// Where the state is shown.
    pub status: watch::Sender<Arc<Status>>,
    /// Where is said how many nodes there are to be.
    pub staffing: watch::Sender<Staffing>,
    pub metrics: Arc<Metrics>,
    /// Where spans go.
    pub tracer: Tracer,
    /// Where what operators said is kept.
    pub store: Option<Store>,
}

/// What the coordinator's actor changes.
pub(crate) struct State {
    arguments: Arguments,
    clients: HashMap<RequestId, Client>,
    nodes: HashMap<NodeId, (SessionId, Remote<NodeMsg>)>,
    revoked: Vec<NodeId>,
}

/// A client that waits for events.
struct Client {
    teller: Teller,
    is_exact: bool,
    num_choices_left: u32,
}

impl Actor for CoordinatorActor {
    type Msg = Msg;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Msg>,
        arguments: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        pg::monitor(NODE_GROUP.to_owned(), myself.get_cell());
        tokio::spawn(tick(myself.clone()));
        let (clients, nodes, revoked) = Default::default();
        Ok(State { arguments, clients, nodes, revoked })
    }

    async fn handle(
        &self,
        myself: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Submit(submission) => state.submit(submission, &myself),
            Msg::Happened(input) => {
                if let Input::Lost { node, session, .. } | Input::Leaving { node, session, .. } =
                    &input
                    && state.nodes.get(node).is_some_and(|(known, _)| known == session)
                {
                    state.nodes.remove(node);
                }
                if let Input::Failed(failed) = &input {
                    state.note_failed(failed);
                }
                state.handle(input, &myself);
            }
            Msg::Reported(actor, report) => state.join(actor, report, &myself),
            Msg::Revoked(nodes) => state.revoked(nodes),
            Msg::Look(Look(look)) => look(&state.arguments.cluster, Instant::now()),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Msg>,
        event: SupervisionEvent,
        _state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ProcessGroupChanged(GroupChangeMessage::Join(_, _, actors)) => {
                for actor in actors {
                    tokio::spawn(ask_for_report(actor, myself.clone()));
                }
            }
            // Without the gate no node would be heard any more: this actor ends too, and with it
            // the process.
            SupervisionEvent::ActorFailed(_, cause) => return Err(cause),
            SupervisionEvent::ActorTerminated(..) => return Err("the gate has ended".into()),
            _ => {}
        }
        Ok(())
    }
}

/// Lets the time pass, as long as the coordinator is there.
async fn tick(coordinator: ActorRef<Msg>) {
    loop {
        ticks::pass(TICK).await;
        if coordinator.cast(Msg::Happened(Input::Tick)).is_err() {
            return;
        }
    }
}

/// Asks a node's actor who it is, again and again while it is there: a question or its answer may
/// be lost without a word, and a node that is never used would never be noticed either.
async fn ask_for_report(actor: ActorCell, coordinator: ActorRef<Msg>) {
    let actor = Remote::new(actor);
    let is_there = || {
        let members = pg::get_members(&NODE_GROUP.to_owned());
        members.iter().any(|member| member.get_id() == actor.id())
    };
    while is_there() {
        let question = |reply| NodeMsg::Report(Wire::from(()), reply);
        match actor.ask(question, REPORT_TIMEOUT).await {
            Some(Wire(Ok(report))) => {
                // Fails only while the coordinator stops.
                let _ = coordinator.cast(Msg::Reported(actor, report));
                return;
            }
            Some(Wire(Err(cause))) => {
                // Its session is ended soon, as of one that doesn't say who it is.
                warn!(actor = %actor.id(), %cause, "a node's report is malformed");
                return;
            }
            None => warn!(actor = %actor.id(), "a node doesn't say who it is; it is asked again"),
        }
        tokio::time::sleep(REPORT_PAUSE).await;
    }
}

impl State {
    fn submit(&mut self, submission: Submission, myself: &ActorRef<Msg>) {
        let Submission { requests, places } = submission;
        drop(places);
        // Whoever left before is not heard of again.
        if requests.iter().all(|(_, teller)| teller.has_left()) {
            return;
        }
        let mut body = Vec::with_capacity(requests.len());
        for (request, teller) in requests {
            let num_choices_left = request.num_choices;
            let client = Client { teller, is_exact: true, num_choices_left };
            self.clients.insert(request.id, client);
            body.push(request);
        }
        self.handle(Input::Submit(body), myself);
    }

    fn join(&mut self, actor: Remote<NodeMsg>, mut report: NodeReport, myself: &ActorRef<Msg>) {
        let (node, session) = (report.node, report.session);
        if !self.arguments.cluster.is_current(node, session) {
            debug!(%node, %session, "a node speaks of a session that is over");
            return;
        }
        let bound = report.bound();
        if let Err(cause) = bound.and_then(|()| self.arguments.sessions.correct(&mut report)) {
            warn!(%node, hostname = report.hostname, cause, "a node can't be used");
            self.arguments.sessions.end(&HashSet::from([node]), &cause);
            return;
        }
        info!(
            %node,
            hostname = report.hostname,
            pid = report.pid,
            data_addr = %report.data_addr,
            pool = report.pool,
            wire_version = self.arguments.sessions.wire_version(session),
            adapter = report.adapters.first().map(|adapter| adapter.name.as_str()),
            "node joined"
        );
        self.noted_join(&report);
        self.nodes.insert(node, (session, actor));
        if !self.revoked.is_empty() {
            self.cast(node, NodeMsg::Revoked(self.revoked.clone().into()));
        }
        self.handle(Input::Joined(report), myself);
    }

    /// Whoever serves is to have nothing to do with them.
    fn revoked(&mut self, mut nodes: Vec<NodeId>) {
        nodes.sort_unstable();
        nodes.truncate(MAX_TOLD_REVOKED);
        self.revoked = nodes;
        for node in self.nodes.keys() {
            self.cast(*node, NodeMsg::Revoked(self.revoked.clone().into()));
        }
    }

    fn handle(&mut self, input: Input, myself: &ActorRef<Msg>) {
        if matches!(input, Input::Tick) {
            self.arguments.metrics.tick(Instant::now());
        }
        if let Input::Cancel(request) = &input {
            self.clients.remove(request);
        }
        let actions = self.arguments.cluster.handle(input, Instant::now());
        self.perform(actions, myself);
    }

    fn perform(&mut self, actions: Vec<Action>, myself: &ActorRef<Msg>) {
        let changed = !actions.is_empty();
        for action in actions {
            self.note(&action);
            match action {
                Action::Submitted(requests, result) => self.submitted(&requests, &result),
                Action::Load(node, plan) => {
                    let StageId { pipeline, stage, .. } = plan.id;
                    let layers = plan.layers;
                    info!(%node, %pipeline, %stage, %layers, "stage placed");
                    self.arguments.stages.place(node, plan.id);
                    let mut plan = *plan;
                    if let (Some(next), Some((session, _))) =
                        (&mut plan.next, self.nodes.get(&node))
                    {
                        next.addr = self.arguments.sessions.address_for(*session, next.addr);
                    }
                    self.name_sources(node, &plan);
                    self.cast(node, NodeMsg::Load(plan.into()));
                }
                Action::Warm(node, plan) => {
                    let layers = plan.layers;
                    info!(%node, %layers, "a spare keeps layers ready");
                    self.name_sources(node, &plan);
                    self.cast(node, NodeMsg::Warm((*plan).into()));
                }
                Action::Measure(node, mut measure) => {
                    measure.nodes = self.seen_by(node, measure.nodes);
                    self.cast(node, NodeMsg::Measure(measure.into()));
                }
                Action::Unload(node, pipeline, epoch) => {
                    let unload = Unload { pipeline, epoch };
                    self.cast(node, NodeMsg::Unload(unload.into()));
                }
                Action::Relieved(node, duty) => self.relieved(node, duty),
                Action::Release(node) => self.cast(node, NodeMsg::Release(().into())),
                Action::Connect(node, stage) => self.connect(node, stage, myself),
                Action::Disconnect(session) => self.arguments.sessions.disconnect(session),
                Action::Send(frame) => {
                    if let Err(cause) = self.arguments.stages.send(*frame) {
                        let coordinator = myself.clone();
                        let _ = coordinator.cast(Msg::Happened(Input::LinkLost {
                            stage: cause.stage,
                            cause: cause.to_string(),
                        }));
                    }
                }
                Action::Mask(frame, wanted) => {
                    let (stages, coordinator) =
                        (Arc::clone(&self.arguments.stages), myself.clone());
                    tokio::spawn(async move {
                        if let Err(cause) = masking::send(&stages, *frame, wanted).await {
                            let (stage, cause) = (cause.stage, cause.to_string());
                            let _ =
                                coordinator.cast(Msg::Happened(Input::LinkLost { stage, cause }));
                        }
                    });
                }
                Action::Tell(request, event) => self.tell(request, event),
                Action::Traced(ended) => {
                    self.arguments.tracer.record(spans::of_phase(*ended, Instant::now()));
                }
                Action::Staff(staffing) => {
                    let Staffing { num_pipelines, num_nodes, .. } = staffing;
                    self.arguments.metrics.wanted(num_pipelines, num_nodes);
                    self.arguments.staffing.send_replace(staffing);
                }
                Action::Publish => self.publish(),
                Action::Stuck(cause) => error!(%cause, "the model can't be placed"),
                // Noted, and nothing to be done about.
                Action::Measured { .. }
                | Action::Admitted(_)
                | Action::Preempted(_)
                | Action::Moved { .. }
                | Action::Drained { .. }
                | Action::Found(_)
                | Action::Quarantined { .. }
                | Action::LetIn(_)
                | Action::Gone { .. }
                | Action::Observed(_)
                | Action::Scaled(_) => {}
            }
        }
        if changed {
            let load = self.arguments.cluster.load();
            let metrics = &self.arguments.metrics;
            metrics.queued(load.num_waiting);
            metrics.running(load.lanes.num_running);
            metrics.kv(load.lanes.num_used_blocks, load.lanes.num_blocks);
        }
    }

    /// Tells a node what it understands. One that is gone is noticed by its connection; nothing
    /// waits for this message.
    fn cast(&self, node: NodeId, message: NodeMsg) {
        let Some((session, actor)) = self.nodes.get(&node) else { return };
        let spoken = self.arguments.sessions.wire_version(*session);
        if spoken.is_some_and(|spoken| message.since() <= spoken) && !actor.tell(message) {
            warn!(%node, "a message to a node is lost");
        }
    }

    /// Says of whom a node can get weights beside this process.
    fn name_sources(&self, node: NodeId, plan: &StagePlan) {
        let mut sources = self.arguments.cluster.sources(node, plan);
        sources.nodes = self.seen_by(node, sources.nodes);
        self.cast(node, NodeMsg::Sources(sources.into()));
    }

    /// Other nodes, with the addresses at which this one reaches them.
    fn seen_by(&self, node: NodeId, mut nodes: Vec<Peer>) -> Vec<Peer> {
        if let Some((session, _)) = self.nodes.get(&node) {
            for peer in &mut nodes {
                peer.addr = self.arguments.sessions.address_for(*session, peer.addr);
            }
        }
        nodes
    }

    fn connect(&self, node: NodeId, stage: StageId, myself: &ActorRef<Msg>) {
        let coordinator = myself.clone();
        self.arguments.stages.connect(node, stage, move |cause| {
            let _ = coordinator.cast(Msg::Happened(Input::LinkLost { stage, cause }));
        });
    }

    fn relieved(&self, node: NodeId, duty: Duty) {
        info!(%node, duty = duty.name(), "an operator says what a node is there for");
        let Some(store) = self.arguments.store.clone() else { return };
        tokio::spawn(async move {
            if let Err(cause) = duty::kept::keep(&store, node, duty).await {
                warn!(%node, %cause, "what an operator said is forgotten at the next start");
            }
        });
    }

    /// Whoever submitted them hears whether they wait.
    fn submitted(&mut self, requests: &[RequestId], result: &Result<(), SubmitError>) {
        if let Some(client) = requests.first().and_then(|first| self.clients.get(first)) {
            client.teller.accept(result.clone());
        }
        if result.is_err() {
            requests.iter().for_each(|request| drop(self.clients.remove(request)));
        }
    }

    fn tell(&mut self, request: RequestId, event: Event) {
        let Some(client) = self.clients.get_mut(&request) else { return };
        match &event {
            Event::Failed(_) => client.num_choices_left = 0,
            Event::Finished { .. } => client.num_choices_left -= 1,
            // Said once.
            Event::Inexact if !std::mem::take(&mut client.is_exact) => return,
            _ => {}
        }
        client.teller.tell(event);
        if client.num_choices_left == 0 {
            self.clients.remove(&request);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_tests::Test;
    use crate::testing::inbox;

    fn state() -> State {
        let arguments = Arguments {
            cluster: Test::new(|_| {}).cluster,
            stages: Arc::new(Stages::new(&protocol::config::Transport::default())),
            sessions: Arc::default(),
            status: watch::channel(Arc::default()).0,
            staffing: watch::Sender::default(),
            metrics: Arc::new(Metrics::new("m", &protocol::config::Metrics::default())),
            store: None,
            tracer: Tracer::default(),
        };
        let (clients, nodes, revoked) = Default::default();
        State { arguments, clients, nodes, revoked }
    }

    /// Readiness stays green while another pipeline serves: what is lost counts all the same.
    #[tokio::test]
    async fn each_lost_pipeline_counts() {
        let (myself, _inbox) = inbox().await;
        let mut state = state();
        let metrics = Arc::clone(&state.arguments.metrics);
        for number in 0..2 {
            let (pipeline, cause) = (protocol::PipelineId(number), "killed".to_owned());
            let moved = Action::Moved { pipeline, cause, num_sequences: 3 };
            state.perform(vec![moved, Action::Publish], &myself);
            let counted = format!("autoglm_pipeline_lost_total {}\n", number + 1);
            assert!(metrics.text().contains(&counted), "{}", metrics.text());
        }
    }

    /// Goal: no node's word takes the coordinator's memory or time, or overflows what it adds up.
    #[tokio::test]
    async fn no_node_joins_that_has_more_than_any() {
        let (myself, _inbox) = inbox().await;
        let mut state = state();
        let (node, session) = (NodeId(1), SessionId(1));
        state.handle(Input::Connected { node, session, wire_version: 5 }, &myself);
        let report = Test::report(1, u64::MAX, session);
        let mut join = |adapters| {
            let report = NodeReport { adapters, ..report.clone() };
            state.join(Remote::new(myself.get_cell()), report, &myself);
            state.arguments.cluster.status().nodes
        };
        assert_eq!(join(vec![report.adapters[0].clone(); 15_000]).len(), 0);
        let joined = join(vec![report.adapters[0].clone(); 2]);
        assert!(joined[0].memory_bytes.iter().try_fold(0u64, |a, b| a.checked_add(*b)).is_some());
    }
}
