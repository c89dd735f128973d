//! The coordinator's end of the data plane: steps go to the first stage, frames come from all.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use protocol::{Body, Epoch, Frame, NodeId, PipelineId, SessionId, StageId, StageIndex};
use tokio::sync::{Notify, mpsc};
use tracing::{debug, warn};
use transport::{Connection, FrameReceiver, Received, TransportError};

use crate::cluster::Input;
use crate::trips::Trips;

/// Data connections of nodes, and each pipeline's links to its stages: one to the first for steps,
/// and one to the last for masks.
#[derive(Debug)]
pub(crate) struct Stages {
    // The newest of each node.
    connections: DashMap<NodeId, (SessionId, Connection)>,
    arrived: Notify,
    // Where stages were placed last: whoever links one is to be that node.
    placed: DashMap<(PipelineId, StageIndex), (Epoch, NodeId)>,
    // By the stage's name on the link: the last has one for masks.
    links: DashMap<(PipelineId, StageIndex), Link>,
    trips: Arc<Trips>,
    max_buffered_frames: usize,
    connect_timeout: Duration,
}

#[derive(Debug)]
struct Link {
    epoch: Epoch,
    frames: mpsc::Sender<Frame>,
}

/// Why a step can't be handed to the first stage.
#[derive(Debug, thiserror::Error)]
#[error("the first stage takes no more steps ({reason})")]
pub(crate) struct SendError {
    pub stage: StageId,
    reason: &'static str,
}

impl Stages {
    pub(crate) fn new(config: &protocol::config::Transport) -> Self {
        Self {
            connections: DashMap::new(),
            arrived: Notify::new(),
            placed: DashMap::new(),
            links: DashMap::new(),
            trips: Arc::default(),
            max_buffered_frames: config.max_buffered_frames as usize,
            connect_timeout: Duration::from_millis(config.connect_timeout_ms),
        }
    }

    /// A stage is this node's from now on: it may link it, and nobody else.
    pub(crate) fn place(&self, node: NodeId, stage: StageId) {
        self.placed.insert((stage.pipeline, stage.stage), (stage.epoch, node));
    }

    /// Whether a stage is this node's; none when it is of another epoch, or nobody's.
    fn is_of(&self, node: NodeId, stage: StageId) -> Option<bool> {
        let placed = self.placed.get(&(stage.pipeline, stage.stage))?;
        let (epoch, of) = *placed;
        (epoch == stage.epoch).then_some(of == node)
    }

    /// A node's data connection, over which it gets pieces of `weights`: `tell` hears which stages
    /// it links, what they send, and which links have ended, until the connection closes.
    pub(crate) async fn serve(
        &self,
        node: NodeId,
        connection: Connection,
        weights: Arc<impl transport::PieceSource>,
        tell: impl Fn(Input) + Clone + Send + Sync + 'static,
    ) {
        let session = match connection.session() {
            Ok(session) => session,
            Err(cause) => {
                warn!(%node, %cause, "a data connection without a session");
                connection.close(&cause.to_string());
                return;
            }
        };
        self.connections.insert(node, (session, connection.clone()));
        self.arrived.notify_waiters();
        tokio::spawn(transport::serve_pieces(connection.clone(), weights));
        let cause = loop {
            match transport::accept_frames(&connection).await {
                // Asked once: stages are placed meanwhile.
                Ok((stage, frames)) => match self.is_of(node, stage) {
                    Some(false) => {
                        let StageId { pipeline, epoch, stage } = stage;
                        let cause = format!(
                            "it linked stage {stage} of pipeline {pipeline}, epoch {epoch}, which \
                             is another node's"
                        );
                        warn!(%node, cause, "a node is cut off");
                        break cause;
                    }
                    // Late: whatever it says is of no more interest.
                    None => {
                        let StageId { epoch, stage, .. } = stage;
                        debug!(%node, %stage, %epoch, "a link of no stage");
                    }
                    Some(true) => {
                        let (tell, trips) = (tell.clone(), Arc::clone(&self.trips));
                        let connection = connection.clone();
                        tokio::spawn(async move {
                            tell(Input::Linked(node, stage));
                            let cause = match pump(stage, frames, &trips, &tell).await {
                                Ok(cause) => cause,
                                Err(cause) => {
                                    warn!(%node, cause, "a node is cut off");
                                    connection.close(&cause);
                                    cause
                                }
                            };
                            let StageId { epoch, stage: number, .. } = stage;
                            debug!(%node, stage = %number, %epoch, cause, "a link has ended");
                            let cause = format!(
                                "the link from stage {number} on node {node} ended: {cause}"
                            );
                            tell(Input::LinkLost { stage, cause });
                        });
                    }
                },
                Err(cause) => {
                    if cause.breaks_protocol() {
                        warn!(%node, %cause, "a node is cut off");
                    }
                    break cause.to_string();
                }
            }
        };
        debug!(%node, cause, "data connection closed");
        // No link is accepted on it any more, so it must not look as if it stood.
        connection.close(&cause);
        self.connections.remove_if(&node, |_, (_, known)| known.is(&connection));
    }

    /// Opens a link to a stage in the background; `lost` hears why it ended.
    pub(crate) fn connect(
        self: &Arc<Self>,
        node: NodeId,
        stage: StageId,
        lost: impl FnOnce(String) + Send + 'static,
    ) {
        let (frames, queued) = mpsc::channel::<Frame>(self.max_buffered_frames);
        let link = Link { epoch: stage.epoch, frames };
        self.links.insert((stage.pipeline, stage.stage), link);
        let Some(connection) = self.connections.get(&node).map(|known| known.1.clone()) else {
            lost(format!("node {node} has no data connection"));
            return;
        };
        let stages = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(cause) = stages.carry(&connection, stage, queued).await {
                lost(format!("the link to node {node} broke: {cause}"));
            }
        });
    }

    /// Sends what is queued until nothing can be any more.
    async fn carry(
        &self,
        connection: &Connection,
        stage: StageId,
        mut queued: mpsc::Receiver<Frame>,
    ) -> Result<(), TransportError> {
        let mut sender = transport::open_frames(connection, stage).await?;
        let ended = sender.ended();
        tokio::pin!(ended);
        loop {
            let frame = tokio::select! {
                frame = queued.recv() => frame,
                cause = &mut ended => return Err(cause),
            };
            let Some(frame) = frame else { return Ok(()) };
            let is_step = matches!(frame.body, Body::Step(_));
            if is_step {
                self.trips.leaves(stage.epoch, frame.step);
            }
            let sent = sender.send(&frame).await?;
            if is_step {
                self.trips.left(stage.epoch, frame.step, Instant::now(), sent);
            }
        }
    }

    /// The ways of steps.
    pub(crate) fn trips(&self) -> &Trips {
        &self.trips
    }

    /// Hands a step to the link.
    ///
    /// # Errors
    /// When there is no link of the frame's epoch, or its buffer is full.
    pub(crate) fn send(&self, frame: Frame) -> Result<(), SendError> {
        let stage = frame.stage;
        let link = self.links.get(&(stage.pipeline, stage.stage));
        let link = link
            .filter(|link| link.epoch == stage.epoch)
            .ok_or(SendError { stage, reason: "there is no link to it" })?;
        link.frames.try_send(frame).map_err(|error| SendError {
            stage,
            reason: match error {
                mpsc::error::TrySendError::Full(_) => "transport.max_buffered_frames wait already",
                mpsc::error::TrySendError::Closed(_) => "the link to it is closed",
            },
        })
    }

    /// The data connection of a node's session. It may be here a moment later than the control
    /// connection; none when it doesn't come.
    pub(crate) async fn connection(&self, node: NodeId, session: SessionId) -> Option<Connection> {
        let found = async {
            loop {
                let arrived = self.arrived.notified();
                if let Some(known) = self.connections.get(&node).filter(|known| known.0 == session)
                {
                    return known.1.clone();
                }
                arrived.await;
            }
        };
        tokio::time::timeout(self.connect_timeout, found).await.ok()
    }
}

/// Hands on what a stage sends; why nothing more comes.
///
/// # Errors
/// How its node breaks the protocol: a stage speaks for itself alone.
async fn pump(
    stage: StageId,
    mut frames: FrameReceiver,
    trips: &Trips,
    tell: &impl Fn(Input),
) -> Result<String, String> {
    let StageId { stage: number, epoch, .. } = stage;
    loop {
        match frames.recv().await {
            Ok(Some(Received { frame, .. })) if frame.stage != stage => {
                let StageId { pipeline, epoch: of, stage } = frame.stage;
                return Err(format!(
                    "stage {number} of epoch {epoch} brought a frame of stage {stage} of pipeline \
                     {pipeline}, epoch {of}"
                ));
            }
            Ok(Some(Received { frame, num_bytes, at, decode })) => {
                if let Body::Sampled(_) = frame.body {
                    trips.back((frame.stage.epoch, frame.step), at, decode, num_bytes);
                }
                tell(Input::Frame(frame));
            }
            Ok(None) => return Ok("the stage has let it go".into()),
            Err(cause) if cause.breaks_protocol() => {
                return Err(format!("what stage {number} sent can't be read: {cause}"));
            }
            Err(cause) => return Ok(cause.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use protocol::config::Transport;
    use protocol::{Sampled, StageIndex, Step, StepId};
    use transport::{Authority, Endpoint, Incoming, PeerName, Purpose};

    use super::*;

    /// Goal: no stage speaks for another, nor for an epoch that is over.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_link_that_brings_another_stages_frames_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Authority::load_or_create(dir.path()).unwrap().coordinator_identity(1);
        let (config, local) = (Transport::default(), ([127, 0, 0, 1], 0).into());
        let endpoint = Endpoint::bind(local, Some(identity.unwrap()), &config).unwrap();
        let dial = endpoint.dial(endpoint.local_addr(), Purpose::Data, PeerName::Coordinator);
        let (dialled, accepted) = tokio::join!(dial, endpoint.accept());
        let (dialled, Some(Incoming::Data(accepted))) = (dialled.unwrap(), accepted) else {
            panic!();
        };
        let epoch = |counter| Epoch { start: 1, counter };
        let pipeline = PipelineId(3);
        let own = StageId { pipeline, epoch: epoch(2), stage: StageIndex(1) };
        let others = [
            StageId { pipeline: PipelineId(4), ..own },
            StageId { epoch: epoch(1), ..own },
            StageId { stage: StageIndex(0), ..own },
        ];
        for other in others {
            let mut link = transport::open_frames(&dialled, own).await.unwrap();
            let (stage, frames) = transport::accept_frames(&accepted).await.unwrap();
            assert_eq!(stage, own);
            for (step, stage) in (0..).zip([own, other, own]) {
                let body = Body::Sampled(Sampled::default());
                let frame = Frame { model: Default::default(), stage, step: StepId(step), body };
                // The last may find the link closed.
                let sent = link.send(&frame).await;
                assert!(sent.is_ok() || step == 2, "{sent:?}");
            }
            let told = Mutex::new(Vec::new());
            let tell = |input| match input {
                Input::Frame(frame) => told.lock().unwrap().push(frame),
                input => panic!("{input:?}"),
            };
            let trips = Trips::default();
            let pumped = pump(own, frames, &trips, &tell);
            let wait = Duration::from_secs(60);
            let cause = tokio::time::timeout(wait, pumped).await.unwrap().unwrap_err();
            let StageId { pipeline, epoch, stage } = other;
            let named = format!("a frame of stage {stage} of pipeline {pipeline}, epoch {epoch}");
            assert!(cause.contains(&named), "{cause}");
            let told: Vec<_> =
                told.lock().unwrap().iter().map(|it| (it.stage, it.step.0)).collect();
            assert_eq!(told, [(own, 0)]);
            tokio::time::timeout(wait, link.ended()).await.expect("its sender hears that it ended");
        }
    }

    struct NoWeights;

    impl transport::PieceSource for NoWeights {
        async fn give(&self, _: protocol::Ask) -> Result<bytes::Bytes, String> {
            Err("none".into())
        }
    }

    /// Goal: nobody speaks for a stage of another node. Method: two nodes link a stage that is one
    /// of them's; what is said of another epoch is late, and no reason to cut anybody off.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_that_links_anothers_stage_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Authority::load_or_create(dir.path()).unwrap().coordinator_identity(1);
        // A loaded machine is silent for a while, which is not what is tested.
        let config = Transport { idle_timeout_ms: 60_000, ..Transport::default() };
        let local = ([127, 0, 0, 1], 0).into();
        let endpoint = Endpoint::bind(local, Some(identity.unwrap()), &config).unwrap();
        let stages = Arc::new(Stages::new(&config));
        let epoch = |counter| Epoch { start: 1, counter };
        let stage = StageId { pipeline: PipelineId(3), epoch: epoch(2), stage: StageIndex(1) };
        stages.place(NodeId(1), stage);
        let wait = Duration::from_secs(60);
        for node in [2, 1].map(NodeId) {
            let dial = endpoint.dial(endpoint.local_addr(), Purpose::Data, PeerName::Coordinator);
            let (dialled, accepted) = tokio::join!(dial, endpoint.accept());
            let (dialled, Some(Incoming::Data(accepted))) = (dialled.unwrap(), accepted) else {
                panic!();
            };
            let (stages, (told, mut hears)) = (Arc::clone(&stages), mpsc::unbounded_channel());
            let tell = move |input| told.send(input).unwrap();
            tokio::spawn(async move {
                stages.serve(node, accepted, Arc::new(NoWeights), tell).await;
            });
            let old = StageId { epoch: epoch(1), ..stage };
            let _late = transport::open_frames(&dialled, old).await.unwrap();
            let _link = transport::open_frames(&dialled, stage).await.unwrap();
            if node == NodeId(1) {
                let heard = tokio::time::timeout(wait, hears.recv()).await.unwrap();
                assert!(matches!(heard, Some(Input::Linked(of, it)) if (of, it) == (node, stage)));
            } else {
                let cause = tokio::time::timeout(wait, dialled.closed()).await.unwrap();
                assert!(cause.contains("which is another node's"), "it said: {cause}");
                assert!(hears.recv().await.is_none(), "the core hears nothing of it");
            }
        }
    }

    /// Goal: who sends what can't be read is cut off and named. Method: a frame longer than any of
    /// ours.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_whose_frames_cannot_be_read_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path()).unwrap();
        let theirs = Transport { idle_timeout_ms: 60_000, ..Transport::default() };
        let config = Transport { max_frame_bytes: 1 << 10, ..theirs.clone() };
        let local = ([127, 0, 0, 1], 0).into();
        let own = authority.coordinator_identity(1).unwrap();
        let own = Endpoint::bind(local, Some(own), &config).unwrap();
        let node = authority.node_identity(NodeId(1), "a").unwrap();
        let node = Endpoint::bind(local, Some(node), &theirs).unwrap();
        let dial = node.dial(own.local_addr(), Purpose::Data, PeerName::Coordinator);
        let (dialled, accepted) = tokio::join!(dial, own.accept());
        let (dialled, Some(Incoming::Data(accepted))) = (dialled.unwrap(), accepted) else {
            panic!();
        };
        let epoch = Epoch { start: 1, counter: 2 };
        let stage = StageId { pipeline: PipelineId(3), epoch, stage: StageIndex(1) };
        let (stages, (told, mut hears)) = (Stages::new(&config), mpsc::unbounded_channel());
        stages.place(NodeId(1), stage);
        let tell = move |input| told.send(input).unwrap();
        tokio::spawn(async move {
            stages.serve(NodeId(1), accepted, Arc::new(NoWeights), tell).await;
        });
        let mut link = transport::open_frames(&dialled, stage).await.unwrap();
        let hidden = (0..1000).map(|_| 0.0f32).collect();
        let body = Body::Step(Step { hidden, ..Step::default() });
        let frame = Frame { model: Default::default(), stage, step: StepId(0), body };
        // The end of it may find the link closed.
        let _ = link.send(&frame).await;
        let wait = Duration::from_secs(60);
        let cause = tokio::time::timeout(wait, dialled.closed()).await.unwrap();
        assert!(cause.contains("what stage 1 sent can't be read: frame of"), "it said: {cause}");
        assert!(matches!(hears.recv().await, Some(Input::Linked(..))));
        let Some(Input::LinkLost { cause, .. }) = hears.recv().await else { panic!() };
        assert!(cause.contains("on node 0000000000000001 ended: what stage 1 sent"), "{cause}");
    }

    /// A link that carries nothing takes so many frames; one more is its end.
    #[test]
    fn no_more_frames_wait_for_a_link_than_configured() {
        let stages = Stages::new(&Transport { max_buffered_frames: 3, ..Transport::default() });
        let (frames, _queued) = mpsc::channel(stages.max_buffered_frames);
        let epoch = Epoch { start: 1, counter: 1 };
        let stage = StageId { pipeline: PipelineId(0), epoch, stage: StageIndex(0) };
        stages.links.insert((stage.pipeline, stage.stage), Link { epoch, frames });
        let send = |stage: StageId| {
            let (model, step) = Default::default();
            stages.send(Frame { model, stage, step, body: Body::Step(Step::default()) })
        };
        (0..3).for_each(|_| send(stage).unwrap());
        let error = send(stage).unwrap_err().to_string();
        assert!(error.contains("transport.max_buffered_frames wait already"), "{error}");
        let old = StageId { epoch: Epoch { start: 1, counter: 0 }, ..stage };
        assert!(send(old).unwrap_err().to_string().contains("no link"));
    }
}
