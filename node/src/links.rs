//! The node's end of the data plane: frames come in for its stages, and leave for their neighbours
//! and for the coordinator.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use protocol::{Frame, NodeId, Peer};
use tokio::sync::{Mutex, mpsc};
use tracing::{debug, warn};
use transport::{
    Connection, Endpoint, FrameSender, LinkHello, PeerName, Purpose, Received, Sent, TransportError,
};

use crate::device_thread::StageKey;

/// A frame that has arrived for a stage.
#[derive(Debug)]
pub struct Arrived {
    /// The frame.
    pub frame: Frame,
    /// Its size on the wire; 0 when it never left this process.
    pub num_bytes: usize,
    /// Making a frame of its bytes.
    pub decode: Duration,
    /// When that was done.
    pub at: Instant,
}

/// Connections of this node, and the inboxes of its stages.
#[derive(Debug)]
pub struct Links {
    node: NodeId,
    endpoint: Endpoint,
    coordinator: Connection,
    inboxes: DashMap<StageKey, mpsc::Sender<Arrived>>,
    // One connection per neighbour, dialled by whoever needs it first.
    peers: Mutex<Vec<(NodeId, Connection)>>,
    max_buffered_frames: usize,
}

impl Links {
    /// No stages yet.
    pub fn new(
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
            peers: Mutex::new(Vec::new()),
            max_buffered_frames: config.max_buffered_frames as usize,
        }
    }

    /// The inbox of a stage, until [`close`](Self::close).
    pub fn open(&self, key: StageKey) -> mpsc::Receiver<Arrived> {
        let (inbox, frames) = mpsc::channel(self.max_buffered_frames);
        self.inboxes.insert(key, inbox);
        frames
    }

    /// The stage is gone: frames for it are dropped.
    pub fn close(&self, key: StageKey) {
        self.inboxes.remove(&key);
    }

    /// Hands the frames of a data connection to the stages that they are for, until it closes.
    pub async fn serve(self: Arc<Self>, connection: Connection) {
        loop {
            let (hello, frames) = match transport::accept_frames(&connection).await {
                Ok(accepted) => accepted,
                Err(cause) => {
                    debug!(%cause, "data connection closed");
                    return;
                }
            };
            let key = StageKey { pipeline: hello.pipeline, epoch: hello.epoch, stage: hello.stage };
            match self.inboxes.get(&key).map(|inbox| inbox.clone()) {
                Some(inbox) => {
                    tokio::spawn(pump(key, frames, inbox));
                }
                // Fencing: whoever still speaks of an old epoch is not heard.
                None => debug!(stage = %key.stage, epoch = %key.epoch, "link to no stage"),
            }
        }
    }

    /// The way to the coordinator.
    ///
    /// # Errors
    /// When its connection is gone.
    pub async fn to_coordinator(&self, from: StageKey) -> Result<Outlet, TransportError> {
        let hello = hello(from);
        Ok(Outlet::Remote(transport::open_frames(&self.coordinator, &hello).await?))
    }

    /// The way to a stage on another node, or on this one.
    ///
    /// # Errors
    /// When the node can't be reached.
    pub async fn to_stage(&self, peer: Peer, to: StageKey) -> Result<Outlet, TransportError> {
        if peer.node == self.node
            && let Some(inbox) = self.inboxes.get(&to)
        {
            return Ok(Outlet::Local(inbox.clone()));
        }
        let mut peers = self.peers.lock().await;
        peers.retain(|(_, connection)| connection.is_open());
        let connection = match peers.iter().find(|(node, _)| *node == peer.node) {
            Some((_, connection)) => connection.clone(),
            None => {
                let name = PeerName::Node(peer.node);
                let connection = self.endpoint.dial(peer.addr, Purpose::Data, name).await?;
                peers.push((peer.node, connection.clone()));
                connection
            }
        };
        Ok(Outlet::Remote(transport::open_frames(&connection, &hello(to)).await?))
    }
}

/// Where a stage's frames go.
#[derive(Debug)]
pub enum Outlet {
    /// Into the inbox of a stage of this process.
    Local(mpsc::Sender<Arrived>),
    /// Over QUIC.
    Remote(FrameSender),
}

impl Outlet {
    /// Sends a frame; waits while the receiver is behind. Within a process this takes no time of
    /// its own: what the receiver's inbox holds up is the receiver's wait.
    ///
    /// # Errors
    /// When the receiver is gone.
    pub async fn send(&mut self, frame: Frame) -> Result<Sent, String> {
        match self {
            Self::Local(inbox) => {
                let (num_bytes, decode) = (0, Duration::ZERO);
                inbox
                    .send(Arrived { frame, num_bytes, decode, at: Instant::now() })
                    .await
                    .map(|()| Sent::default())
                    .map_err(|_| "the next stage is gone".to_owned())
            }
            Self::Remote(sender) => sender.send(&frame).await.map_err(|cause| cause.to_string()),
        }
    }
}

async fn pump(key: StageKey, mut frames: transport::FrameReceiver, inbox: mpsc::Sender<Arrived>) {
    loop {
        match frames.recv().await {
            Ok(Some(Received { frame, num_bytes, at, decode })) => {
                let arrived = Arrived { frame, num_bytes, decode, at: at + decode };
                if inbox.send(arrived).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(cause @ TransportError::Closed(_)) => {
                debug!(%cause, "a link has ended");
                return;
            }
            Err(cause) => {
                warn!(stage = %key.stage, %cause, "frames can't be read");
                return;
            }
        }
    }
}

fn hello(key: StageKey) -> LinkHello {
    LinkHello { pipeline: key.pipeline, epoch: key.epoch, stage: key.stage }
}
