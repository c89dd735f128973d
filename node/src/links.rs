//! The node's end of the data plane: frames come in for its stages, and leave for their neighbours
//! and for the coordinator.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use protocol::message::{Measure, Sources};
use protocol::{Frame, LinkSpeed, NodeId, Peer, StageId, StagePlan};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};
use transport::{
    Connection, Endpoint, FrameSender, PeerName, Purpose, Received, Sent, TransportError,
};

use crate::device_thread::DeviceThread;
use crate::error::StageError;
use crate::fetch::{Given, OpenSources};
use crate::weights::{Provided, WeightStore};

/// A frame that has arrived for a stage.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub frame: Frame,
    /// Its size on the wire; 0 when it never left this process.
    pub num_bytes: usize,
    /// Making a frame of its bytes.
    pub decode: Duration,
    /// When that was done.
    pub at: Instant,
}

/// A stage's end of the one link that brings it frames. Its frames end when the link does.
#[derive(Debug)]
pub(crate) struct Inlet {
    /// Resolves when the link is open; fails when there will be none.
    pub linked: oneshot::Receiver<()>,
    pub frames: mpsc::Receiver<Arrived>,
}

/// Who brings frames to a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bringer {
    /// Steps to the first stage, masks to the last.
    Coordinator,
    /// Another stage, on whichever node.
    Stage,
}

impl Bringer {
    fn is(self, peer: PeerName) -> bool {
        (self == Self::Coordinator) == (peer == PeerName::Coordinator)
    }
}

/// Where a link that isn't there yet will bring its frames.
#[derive(Debug)]
struct Inbox {
    by: Bringer,
    linked: oneshot::Sender<()>,
    frames: mpsc::Sender<Arrived>,
}

impl Inbox {
    /// The link is open: the only sender is in its hands.
    fn link(self) -> mpsc::Sender<Arrived> {
        // Fails when the stage has just ended, which the sender will notice.
        let _ = self.linked.send(());
        self.frames
    }
}

/// Connections of this node, and the inboxes of its stages.
#[derive(Debug)]
pub(crate) struct Links {
    node: NodeId,
    endpoint: Endpoint,
    coordinator: Connection,
    // Of stages without a link: who links one takes its inbox.
    inboxes: DashMap<StageId, Inbox>,
    // One connection per neighbour, dialled by whoever needs it first. A neighbour that has begun
    // a new session has another address. Those that nobody uses are closed: each costs signs of
    // life.
    peers: Mutex<Vec<(Peer, Connection)>>,
    // Of what files a model can be loaded, as the coordinator said last.
    sources: Mutex<Sources>,
    max_buffered_frames: usize,
    max_pieces: usize,
}

impl Links {
    pub(crate) fn new(
        node: NodeId,
        endpoint: Endpoint,
        coordinator: Connection,
        config: &protocol::config::Transport,
    ) -> Self {
        Self {
            node,
            endpoint,
            coordinator,
            inboxes: DashMap::new(),
            peers: Mutex::default(),
            sources: Mutex::default(),
            max_buffered_frames: config.max_buffered_frames as usize,
            max_pieces: config.max_pieces as usize,
        }
    }

    /// Has nothing to do with these nodes from now on.
    pub(crate) fn keep_out(&self, nodes: Vec<NodeId>) {
        info!(num_nodes = nodes.len(), "the coordinator names the nodes that are revoked");
        self.endpoint.set_revoked(nodes.into_iter().collect());
    }

    /// The inlet of a stage, until [`close`](Self::close).
    pub(crate) fn open(&self, stage: StageId, by: Bringer) -> Inlet {
        let (sender, frames) = mpsc::channel(self.max_buffered_frames);
        let (linked, is_linked) = oneshot::channel();
        self.inboxes.insert(stage, Inbox { by, linked, frames: sender });
        Inlet { linked: is_linked, frames }
    }

    /// The stage is gone: a link to it finds nobody.
    pub(crate) fn close(&self, stage: StageId) {
        self.inboxes.remove(&stage);
    }

    /// Hands the frames of a data connection to the stages that they are for, until it closes.
    pub(crate) async fn serve(self: Arc<Self>, connection: Connection) {
        loop {
            let (stage, frames) = match transport::accept_frames(&connection).await {
                Ok(accepted) => accepted,
                Err(cause) => {
                    match cause.breaks_protocol() {
                        true => warn!(peer = %connection.peer(), %cause, "a peer is cut off"),
                        false => debug!(%cause, "data connection closed"),
                    }
                    // No link is accepted on it any more, so it must not look as if it stood.
                    connection.close(&cause.to_string());
                    return;
                }
            };
            match self.inboxes.remove_if(&stage, |_, inbox| inbox.by.is(connection.peer())) {
                Some((_, inbox)) => {
                    tokio::spawn(pump(stage, frames, inbox.link(), connection.clone()));
                }
                // Fencing: whoever still speaks of an old epoch is not heard, nor is a second
                // link, nor the coordinator in a node's place.
                None => debug!(stage = %stage.stage, epoch = %stage.epoch, "link to no stage"),
            }
        }
    }

    /// Of what files a model can be loaded from now on.
    pub(crate) fn set_sources(&self, sources: Sources) {
        *self.sources.lock().unwrap_or_else(PoisonError::into_inner) = sources;
    }

    /// The plan, with files that hold what it needs. What comes from others goes to the device
    /// part by part, where one is named.
    ///
    /// # Errors
    /// When nobody gives what isn't here.
    pub(crate) async fn provide(
        self: &Arc<Self>,
        weights: &WeightStore,
        plan: StagePlan,
        device: Option<&DeviceThread>,
        progress: &mut (dyn FnMut(Given) + Send),
    ) -> Result<Provided, StageError> {
        let told = self.sources.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let told = Some(told).filter(|it| it.model == plan.model);
        let config = told.as_ref().map(|it| it.config);
        let sources = OpenSources {
            coordinator: self.coordinator.clone(),
            nodes: told.map(|it| it.nodes).unwrap_or_default(),
            links: Arc::clone(self),
            max_pieces: self.max_pieces,
        };
        let provided = weights.provide(plan, config, sources, device, progress).await;
        self.tidy();
        provided
    }

    /// The way to the coordinator.
    ///
    /// # Errors
    /// When its connection is gone.
    pub(crate) async fn to_coordinator(&self, from: StageId) -> Result<Outlet, TransportError> {
        Ok(Outlet::Remote(Box::new(transport::open_frames(&self.coordinator, from).await?)))
    }

    /// The way to a stage on another node, or on this one.
    ///
    /// # Errors
    /// When the node can't be reached, or the stage isn't on this one.
    pub(crate) async fn to_stage(&self, peer: Peer, to: StageId) -> Result<Outlet, TransportError> {
        if peer.node == self.node {
            let inbox = self.inboxes.remove(&to).map(|(_, inbox)| inbox);
            let inbox =
                inbox.ok_or_else(|| TransportError::Closed("the stage has ended".into()))?;
            return Ok(Outlet::Local(inbox.link()));
        }
        let connection = self.neighbour(peer).await?;
        Ok(Outlet::Remote(Box::new(transport::open_frames(&connection, to).await?)))
    }

    /// The connection to another node, dialled where there is none.
    ///
    /// # Errors
    /// When the node can't be reached.
    pub(crate) async fn neighbour(&self, peer: Peer) -> Result<Connection, TransportError> {
        let peers = || self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = {
            let peers = peers();
            let known = peers.iter().find(|(known, it)| *known == peer && it.is_open());
            known.map(|(_, known)| known.clone())
        };
        if let Some(known) = known {
            return Ok(known);
        }
        // Nobody else waits meanwhile: it may be that nobody answers.
        let name = PeerName::Node(peer.node);
        let connection = self.endpoint.dial(peer.addr, Purpose::Data, name).await?;
        self.tidy();
        peers().push((peer, connection.clone()));
        Ok(connection)
    }

    /// Closes connections to neighbours that nobody uses.
    fn tidy(&self) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.retain(|(_, known)| known.is_open() && known.is_shared());
    }

    /// What the ways to these nodes are like, one after the other.
    pub(crate) async fn measure(&self, measure: Measure) -> Vec<(NodeId, LinkSpeed)> {
        let timeout = Duration::from_millis(measure.timeout_ms);
        let mut ways = Vec::with_capacity(measure.nodes.len());
        for peer in measure.nodes {
            let probed = async {
                let connection = self.neighbour(peer).await?;
                connection.probe(measure.num_bytes as usize, timeout).await
            };
            let speed = probed.await.unwrap_or_else(|cause| {
                warn!(node = %peer.node, addr = %peer.addr, %cause, "a node can't be reached");
                LinkSpeed::NONE
            });
            ways.push((peer.node, speed));
        }
        self.tidy();
        ways
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node
    }
}

/// Where a stage's frames go.
#[derive(Debug)]
pub(crate) enum Outlet {
    /// Into the inbox of a stage of this process.
    Local(mpsc::Sender<Arrived>),
    /// Over QUIC.
    Remote(Box<FrameSender>),
}

impl Outlet {
    /// Why nothing can be sent any more, once nothing can. Outlives the outlet.
    pub(crate) fn ended(&self) -> Pin<Box<dyn Future<Output = String> + Send>> {
        match self {
            Self::Local(inbox) => {
                let inbox = inbox.clone();
                Box::pin(async move {
                    inbox.closed().await;
                    STAGE_GONE.into()
                })
            }
            Self::Remote(sender) => {
                let ended = sender.ended();
                Box::pin(async move { ended.await.to_string() })
            }
        }
    }

    /// Sends a frame; waits while the receiver is behind. Within a process this takes no time of
    /// its own: what the receiver's inbox holds up is the receiver's wait.
    ///
    /// # Errors
    /// When the receiver is gone.
    pub(crate) async fn send(&mut self, frame: Frame) -> Result<Sent, String> {
        match self {
            Self::Local(inbox) => {
                let (num_bytes, decode) = (0, Duration::ZERO);
                inbox
                    .send(Arrived { frame, num_bytes, decode, at: Instant::now() })
                    .await
                    .map(|()| Sent::default())
                    .map_err(|_| STAGE_GONE.to_owned())
            }
            Self::Remote(sender) => sender.send(&frame).await.map_err(|cause| cause.to_string()),
        }
    }
}

const STAGE_GONE: &str = "the stage is gone";

/// Hands on what a link brings. Whoever breaks the protocol loses the connection with it.
async fn pump(
    stage: StageId,
    mut frames: transport::FrameReceiver,
    inbox: mpsc::Sender<Arrived>,
    connection: Connection,
) {
    loop {
        match frames.recv().await {
            Ok(Some(Received { frame, num_bytes, at, decode })) => {
                let arrived = Arrived { frame, num_bytes, decode, at: at + decode };
                if inbox.send(arrived).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(cause) if cause.breaks_protocol() => {
                let (peer, stage) = (connection.peer(), stage.stage);
                warn!(%peer, %stage, %cause, "a peer is cut off");
                connection.close(&format!("what was sent to stage {stage} can't be read: {cause}"));
                return;
            }
            Err(cause) => {
                debug!(%cause, "a link has ended");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::config::Transport;
    use protocol::{Body, Epoch, PipelineId, StageIndex, Step};
    use transport::{Authority, Incoming};

    use super::*;

    async fn soon<T>(what: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(60), what).await.expect("it takes too long")
    }

    /// Goal: a neighbour that is revoked is out at once, not when its certificate's time is over.
    /// Method: two nodes and what the coordinator tells one of them.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_revoked_neighbour_is_dropped_and_neither_let_in_nor_dialled() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path()).unwrap();
        let (config, local) = (Transport::default(), ([127, 0, 0, 1], 0).into());
        let bind = |node: u64| {
            let identity = authority.node_identity(NodeId(node), "a").unwrap();
            Endpoint::bind(local, Some(identity), &config).unwrap()
        };
        let (own, other) = (bind(1), bind(2));
        let connect = async |from: &Endpoint, to: &Endpoint, name| {
            let dial = from.dial(to.local_addr(), Purpose::Data, PeerName::Node(NodeId(name)));
            let (dialled, accepted) = tokio::join!(dial, to.accept());
            let Some(Incoming::Data(accepted)) = accepted else { panic!() };
            (dialled.unwrap(), accepted)
        };
        let (theirs, from_them) = connect(&other, &own, 1).await;
        let (to_them, _accepted) = connect(&own, &other, 2).await;
        let links = Links::new(NodeId(1), own.clone(), theirs.clone(), &config);
        links.keep_out(vec![NodeId(7), NodeId(2)]);
        for connection in [&from_them, &to_them, &theirs] {
            assert_eq!(soon(connection.closed()).await, "this node is revoked");
        }
        let peer = Peer { node: NodeId(2), addr: other.local_addr() };
        let error = links.to_stage(peer, StageId::default()).await.unwrap_err().to_string();
        assert!(error.contains("this node is revoked"), "{error}");
        let name = PeerName::Node(NodeId(1));
        let again = other.dial(own.local_addr(), Purpose::Data, name).await.unwrap();
        assert_eq!(soon(again.closed()).await, "this node is revoked");
        // Whoever is taken back is.
        links.keep_out(Vec::new());
        connect(&other, &own, 1).await;
    }

    /// Goal: no neighbour gives steps as if it were the coordinator, nor the other way round.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_stage_is_linked_by_whoever_brings_its_frames() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path()).unwrap();
        let (config, local) = (Transport::default(), ([127, 0, 0, 1], 0).into());
        let bind = |identity| Endpoint::bind(local, Some(identity), &config).unwrap();
        let own = bind(authority.node_identity(NodeId(1), "a").unwrap());
        let coordinator = bind(authority.coordinator_identity(1).unwrap());
        let neighbour = bind(authority.node_identity(NodeId(2), "a").unwrap());
        let mut dialled = Vec::new();
        let mut links = None;
        for from in [&coordinator, &neighbour] {
            let name = PeerName::Node(NodeId(1));
            let dial = from.dial(own.local_addr(), Purpose::Data, name);
            let (connection, accepted) = tokio::join!(dial, own.accept());
            let Some(Incoming::Data(accepted)) = accepted else { panic!() };
            let new = || Arc::new(Links::new(NodeId(1), own.clone(), accepted.clone(), &config));
            tokio::spawn(Arc::clone(links.get_or_insert_with(new)).serve(accepted));
            dialled.push(connection.unwrap());
        }
        let links = links.unwrap();
        let stages = [(0, Bringer::Coordinator, 0), (1, Bringer::Stage, 1)];
        for (stage, by, from) in stages {
            let id = StageId { stage: StageIndex(stage), ..StageId::default() };
            let mut inlet = links.open(id, by);
            let wrong = transport::open_frames(&dialled[1 - from], id).await.unwrap();
            soon(wrong.ended()).await;
            assert!(inlet.linked.try_recv().is_err(), "stage {stage} has its inbox still");
            let _right = transport::open_frames(&dialled[from], id).await.unwrap();
            soon(inlet.linked).await.unwrap();
        }
    }

    /// Goal: whoever sends what can't be read is heard no more. Method: a frame longer than any of
    /// ours.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_neighbour_whose_frames_cannot_be_read_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path()).unwrap();
        let theirs = Transport::default();
        let config = Transport { max_frame_bytes: 1 << 10, ..theirs.clone() };
        let bind = |node: u64, config| {
            let identity = authority.node_identity(NodeId(node), "a").unwrap();
            Endpoint::bind(([127, 0, 0, 1], 0).into(), Some(identity), config).unwrap()
        };
        let (own, neighbour) = (bind(1, &config), bind(2, &theirs));
        let dial = neighbour.dial(own.local_addr(), Purpose::Data, PeerName::Node(NodeId(1)));
        let (dialled, accepted) = tokio::join!(dial, own.accept());
        let (dialled, Some(Incoming::Data(accepted))) = (dialled.unwrap(), accepted) else {
            panic!();
        };
        let links = Arc::new(Links::new(NodeId(1), own, accepted.clone(), &config));
        let stage = StageId { stage: StageIndex(1), ..StageId::default() };
        let mut inlet = links.open(stage, Bringer::Stage);
        tokio::spawn(links.serve(accepted));
        let mut link = transport::open_frames(&dialled, stage).await.unwrap();
        let hidden = (0..1000).map(|_| 0.0f32).collect();
        let body = Body::Step(Step { hidden, ..Step::default() });
        let (model, step) = Default::default();
        // The end of it may find the link closed.
        let _ = link.send(&Frame { model, stage, step, body }).await;
        let cause = soon(dialled.closed()).await;
        assert!(cause.contains("what was sent to stage 1 can't be read: frame of"), "{cause}");
        assert!(soon(inlet.frames.recv()).await.is_none());
    }

    /// Goal: whoever is at either end of a link hears of its end, also while nothing is sent.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_stage_has_one_link_and_both_its_ends_hear_when_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Authority::load_or_create(dir.path()).unwrap().coordinator_identity(1);
        let (config, local) = (Transport::default(), ([127, 0, 0, 1], 0).into());
        let endpoint = Endpoint::bind(local, Some(identity.unwrap()), &config).unwrap();
        let addr = endpoint.local_addr();
        let dial = endpoint.dial(addr, Purpose::Data, PeerName::Coordinator);
        let (dialled, accepted) = tokio::join!(dial, endpoint.accept());
        let (dialled, Some(Incoming::Data(accepted))) = (dialled.unwrap(), accepted) else {
            panic!();
        };
        let node = NodeId(1);
        let links = Arc::new(Links::new(node, endpoint, dialled.clone(), &config));
        tokio::spawn(Arc::clone(&links).serve(accepted));
        let epoch = Epoch { start: 1, counter: 1 };
        let id = |stage| StageId { pipeline: PipelineId(3), epoch, stage: StageIndex(stage) };

        // From another process.
        let mut inlet = links.open(id(0), Bringer::Coordinator);
        let link = transport::open_frames(&dialled, id(0)).await.unwrap();
        soon(inlet.linked).await.unwrap();
        let second = transport::open_frames(&dialled, id(0)).await.unwrap();
        soon(second.ended()).await;
        drop(link);
        assert!(soon(inlet.frames.recv()).await.is_none());
        let inlet = links.open(id(1), Bringer::Coordinator);
        let link = transport::open_frames(&dialled, id(1)).await.unwrap();
        soon(inlet.linked).await.unwrap();
        let ended = link.ended();
        dialled.close("cut");
        assert_eq!(soon(ended).await.to_string(), "the connection is closed: closed by this side");

        // Within this one.
        let mut inlet = links.open(id(2), Bringer::Coordinator);
        let peer = Peer { node, addr };
        let link = links.to_stage(peer, id(2)).await.unwrap();
        soon(inlet.linked).await.unwrap();
        assert!(links.to_stage(peer, id(2)).await.is_err());
        drop(link);
        assert!(soon(inlet.frames.recv()).await.is_none());
        let inlet = links.open(id(3), Bringer::Coordinator);
        let link = links.to_stage(peer, id(3)).await.unwrap();
        drop(inlet);
        assert_eq!(soon(link.ended()).await, STAGE_GONE);
    }
}
