//! ractor_cluster over a control connection's one bidirectional stream.

use std::net::{IpAddr, Ipv4Addr};

use ractor::{Actor, ActorRef};
use ractor_cluster::node::NodeConnectionMode;
use ractor_cluster::{
    BoxRead, BoxWrite, ClusterBidiStream, IncomingEncryptionMode, NodeServer, NodeServerMessage,
};

use crate::endpoint::Connection;
use crate::error::TransportError;

/// What the opener writes first: a stream exists for the peer only once it has carried a byte.
const GREETING: u8 = b'c';

/// Bytes of one actor message. Only small control messages travel here.
const MAX_ACTOR_FRAME_BYTES: u64 = 1 << 20;

/// A running ractor_cluster node server; clones share it.
#[derive(Clone, Debug)]
pub struct NodeServerHandle {
    server: ActorRef<NodeServerMessage>,
}

/// Starts this process's node server. `name` must be unique in the cluster.
///
/// # Errors
/// When its actor can't start.
pub async fn start_node_server(
    name: &str,
    cookie: &str,
) -> Result<NodeServerHandle, TransportError> {
    // ractor_cluster 0.16 can't do without a TCP listener of its own. It gets a port of the
    // system's choice on loopback, and the cookie, which only members know, guards it; nobody of
    // ours ever dials it.
    let server = NodeServer::new(
        0,
        cookie.to_owned(),
        name.to_owned(),
        // The node's unique name again: two servers of the same host and port take each other for
        // themselves.
        name.to_owned(),
        Some(IncomingEncryptionMode::Raw),
        // Members are dialled by us alone: transitive connections would use plain TCP.
        Some(NodeConnectionMode::Isolated),
    )
    .with_listen_addr(IpAddr::V4(Ipv4Addr::LOCALHOST))
    .with_max_inbound_frame_size(MAX_ACTOR_FRAME_BYTES);
    let (server, _) = Actor::spawn(None, server, ())
        .await
        .map_err(|cause| TransportError::Control(cause.to_string()))?;
    Ok(NodeServerHandle { server })
}

impl NodeServerHandle {
    /// Carries actors over a connection that this process dialled.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn connect(&self, connection: &Connection) -> Result<(), TransportError> {
        let (mut send, receive) = connection.connection.open_bi().await.map_err(closed)?;
        send.write_all(&[GREETING]).await.map_err(closed)?;
        self.carry(ControlStream { send, receive, peer: connection.peer().to_string() }, false)
    }

    /// Carries actors over a connection that this process accepted.
    ///
    /// # Errors
    /// When the connection is gone, or the peer breaks the protocol.
    pub async fn accept(&self, connection: &Connection) -> Result<(), TransportError> {
        let (send, mut receive) = connection.connection.accept_bi().await.map_err(closed)?;
        let mut greeting = [0];
        receive.read_exact(&mut greeting).await.map_err(closed)?;
        if greeting != [GREETING] {
            return Err(TransportError::Control("the stream begins with another byte".into()));
        }
        self.carry(ControlStream { send, receive, peer: connection.peer().to_string() }, true)
    }

    /// Stops it, and with it every session.
    pub async fn stop(&self) {
        let timeout = std::time::Duration::from_secs(1);
        // It may be gone already.
        let _ = self.server.stop_and_wait(None, Some(timeout)).await;
    }

    fn carry(&self, stream: ControlStream, is_server: bool) -> Result<(), TransportError> {
        let stream = Box::new(stream);
        self.server
            .cast(NodeServerMessage::ConnectionOpenedExternal { stream, is_server })
            .map_err(|cause| TransportError::Control(cause.to_string()))
    }
}

struct ControlStream {
    send: quinn::SendStream,
    receive: quinn::RecvStream,
    peer: String,
}

impl ClusterBidiStream for ControlStream {
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        (Box::new(self.receive), Box::new(self.send))
    }

    fn peer_label(&self) -> Option<String> {
        Some(self.peer.clone())
    }
}

fn closed(cause: impl ToString) -> TransportError {
    TransportError::Closed(cause.to_string())
}
