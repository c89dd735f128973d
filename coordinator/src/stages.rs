//! The coordinator's end of the data plane: steps go to the first stage, frames come from all.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use protocol::{Body, Epoch, Frame, NodeId, PipelineId, StageIndex};
use tokio::sync::{Notify, mpsc};
use tracing::{debug, warn};
use transport::{Connection, LinkHello, Received, TransportError};

use crate::trips::Trips;

/// Data connections of nodes, and each pipeline's link to its first stage.
#[derive(Debug)]
pub struct Stages {
    connections: DashMap<NodeId, Connection>,
    arrived: Notify,
    links: DashMap<PipelineId, Link>,
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
pub struct SendError {
    /// The step's epoch.
    pub epoch: Epoch,
    reason: &'static str,
}

impl Stages {
    /// No connections yet.
    pub fn new(config: &protocol::config::Transport) -> Self {
        Self {
            connections: DashMap::new(),
            arrived: Notify::new(),
            links: DashMap::new(),
            trips: Arc::default(),
            max_buffered_frames: config.max_buffered_frames as usize,
            connect_timeout: Duration::from_millis(config.connect_timeout_ms),
        }
    }

    /// A node's data connection: frames that arrive on it go to `received` until it closes.
    pub async fn serve(
        &self,
        node: NodeId,
        connection: Connection,
        received: impl Fn(Frame) + Clone + Send + 'static,
    ) {
        self.connections.insert(node, connection.clone());
        self.arrived.notify_waiters();
        loop {
            let (hello, mut frames) = match transport::accept_frames(&connection).await {
                Ok(accepted) => accepted,
                Err(cause) => {
                    debug!(%node, %cause, "data connection closed");
                    break;
                }
            };
            debug!(%node, stage = %hello.stage, epoch = %hello.epoch, "stage reports");
            let (received, trips) = (received.clone(), Arc::clone(&self.trips));
            tokio::spawn(async move {
                loop {
                    match frames.recv().await {
                        Ok(Some(Received { frame, num_bytes, at, decode })) => {
                            if let Body::Sampled(_) = frame.body {
                                trips.back((frame.epoch, frame.step), at, decode, num_bytes);
                            }
                            received(frame);
                        }
                        Ok(None) => break,
                        Err(cause @ TransportError::Closed(_)) => {
                            debug!(%cause, "a link has ended");
                            break;
                        }
                        Err(cause) => {
                            warn!(%node, %cause, "a stage's frames can't be read");
                            break;
                        }
                    }
                }
            });
        }
        self.connections.remove_if(&node, |_, known| known.is(&connection));
    }

    /// Opens the link to the first stage in the background; `lost` hears why it ended.
    pub fn connect(
        self: &Arc<Self>,
        node: NodeId,
        (pipeline, epoch): (PipelineId, Epoch),
        lost: impl FnOnce(String) + Send + 'static,
    ) {
        let (frames, mut queued) = mpsc::channel::<Frame>(self.max_buffered_frames);
        self.links.insert(pipeline, Link { epoch, frames });
        let stages = Arc::clone(self);
        tokio::spawn(async move {
            let Some(connection) = stages.connection(node).await else {
                lost(format!("node {node} has no data connection"));
                return;
            };
            let hello = LinkHello { pipeline, epoch, stage: StageIndex(0) };
            let sent = async {
                let mut sender = transport::open_frames(&connection, &hello).await?;
                while let Some(frame) = queued.recv().await {
                    stages.trips.leaves(epoch, frame.step);
                    let sent = sender.send(&frame).await?;
                    stages.trips.left(epoch, frame.step, Instant::now(), sent);
                }
                Ok::<_, TransportError>(())
            };
            if let Err(cause) = sent.await {
                lost(format!("the link to node {node} broke: {cause}"));
            }
        });
    }

    /// The ways of steps.
    pub fn trips(&self) -> &Trips {
        &self.trips
    }

    /// Hands a step to the link.
    ///
    /// # Errors
    /// When there is no link of the frame's epoch, or its buffer is full.
    pub fn send(&self, frame: Frame) -> Result<(), SendError> {
        let epoch = frame.epoch;
        let link = self.links.get(&frame.pipeline);
        let link = link
            .filter(|link| link.epoch == epoch)
            .ok_or(SendError { epoch, reason: "there is no link to it" })?;
        link.frames.try_send(frame).map_err(|error| SendError {
            epoch,
            reason: match error {
                mpsc::error::TrySendError::Full(_) => "transport.max_buffered_frames wait already",
                mpsc::error::TrySendError::Closed(_) => "the link to it is closed",
            },
        })
    }

    async fn connection(&self, node: NodeId) -> Option<Connection> {
        let found = async {
            loop {
                let arrived = self.arrived.notified();
                if let Some(connection) = self.connections.get(&node) {
                    return connection.clone();
                }
                arrived.await;
            }
        };
        tokio::time::timeout(self.connect_timeout, found).await.ok()
    }
}
