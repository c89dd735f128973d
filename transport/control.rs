//! ractor_cluster over a control connection's one bidirectional stream. When that ends, so does the
//! connection: none stands on which nobody speaks.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use protocol::SessionId;
use ractor::{Actor, ActorRef};
use ractor_cluster::node::NodeConnectionMode;
use ractor_cluster::{
    BoxRead, BoxWrite, ClusterBidiStream, IncomingEncryptionMode, NodeServer, NodeServerMessage,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::Connection;
use crate::error::TransportError;
use crate::tls;

/// What the opener writes first, and then which session it is.
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
    // system's choice on loopback, where every user of the machine may knock, and nobody gets past
    // its TLS: nobody of ours ever dials it. The library's own challenge is weak (32 bits, no
    // binding to the connection), which is why the cookie is 256 random bits all the same.
    let closed = Arc::new(tls::closed()?);
    let server = NodeServer::new(
        0,
        cookie.to_owned(),
        name.to_owned(),
        // The node's unique name again: two servers of the same host and port take each other for
        // themselves.
        name.to_owned(),
        Some(IncomingEncryptionMode::Tls(closed.into())),
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
    /// Carries actors over a connection that this process dialled, as part of a session.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn connect(
        &self,
        connection: &Connection,
        session: SessionId,
    ) -> Result<(), TransportError> {
        self.carry(ControlStream::open(connection, session).await?, false)
    }

    /// Carries actors over a connection that this process accepted.
    ///
    /// # Errors
    /// When the control plane is gone.
    pub fn accept(&self, stream: ControlStream) -> Result<(), TransportError> {
        self.carry(stream, true)
    }

    /// Resolves when it has ended, by [`stop`](Self::stop) or by itself.
    pub async fn ended(&self) {
        let _ = self.server.wait(None).await;
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

/// The stream of a control connection. The connection is closed when either half is dropped.
#[derive(Debug)]
pub struct ControlStream {
    send: Half<quinn::SendStream>,
    receive: Half<quinn::RecvStream>,
    peer: String,
}

impl ControlStream {
    fn new(connection: &Connection, send: quinn::SendStream, receive: quinn::RecvStream) -> Self {
        let peer = connection.peer().to_string();
        let send = Half { stream: send, connection: connection.clone() };
        let receive = Half { stream: receive, connection: connection.clone() };
        Self { send, receive, peer }
    }

    /// The stream of a connection that this process dialled.
    pub(crate) async fn open(
        connection: &Connection,
        session: SessionId,
    ) -> Result<Self, TransportError> {
        let (mut send, receive) = connection.connection.open_bi().await?;
        let mut greeting = [GREETING; 9];
        greeting[1..].copy_from_slice(&session.0.to_le_bytes());
        send.write_all(&greeting).await?;
        Ok(Self::new(connection, send, receive))
    }

    /// The stream that the peer opens on a connection which this process accepted, and which
    /// session of the peer it is of.
    ///
    /// # Errors
    /// When the connection is gone, or the peer takes too long or breaks the protocol.
    pub async fn accept(connection: &Connection) -> Result<(SessionId, Self), TransportError> {
        let mut greeting = [0; 9];
        let greeted = async {
            let (send, mut receive) = connection.connection.accept_bi().await?;
            receive.read_exact(&mut greeting).await?;
            Ok::<_, TransportError>(Self::new(connection, send, receive))
        };
        let stream = connection.limits.greeting(greeted).await?;
        let [GREETING, session @ ..] = greeting else {
            return Err(TransportError::Control("the stream begins with another byte".into()));
        };
        Ok((SessionId(u64::from_le_bytes(session)), stream))
    }
}

impl ClusterBidiStream for ControlStream {
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        (Box::new(self.receive), Box::new(self.send))
    }

    fn peer_label(&self) -> Option<String> {
        Some(self.peer.clone())
    }
}

/// One direction of a stream, whose end is its connection's.
#[derive(Debug)]
struct Half<S> {
    stream: S,
    connection: Connection,
}

impl<S> Drop for Half<S> {
    fn drop(&mut self) {
        self.connection.close("the actors' session has ended");
    }
}

impl AsyncRead for Half<quinn::RecvStream> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.stream), context, buffer)
    }
}

impl AsyncWrite for Half<quinn::SendStream> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.stream), context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.stream), context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(&mut self.stream), context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use protocol::NodeReport;
    use protocol::config::Transport;
    use protocol::message::{NODE_GROUP, NodeMsg, Wire};
    use ractor::{ActorProcessingErr, pg};

    use super::*;
    use crate::Remote;
    use crate::endpoint::Purpose;
    use crate::tests::{NODE, Pair, loopback};

    const SESSION: SessionId = SessionId(0xdef);

    struct Reporter;

    impl Actor for Reporter {
        type Msg = NodeMsg;
        type State = ();
        type Arguments = ();

        async fn pre_start(
            &self,
            myself: ActorRef<Self::Msg>,
            (): (),
        ) -> Result<(), ActorProcessingErr> {
            pg::join(NODE_GROUP.to_owned(), vec![myself.get_cell()]);
            Ok(())
        }

        async fn handle(
            &self,
            _myself: ActorRef<Self::Msg>,
            message: NodeMsg,
            _state: &mut (),
        ) -> Result<(), ActorProcessingErr> {
            if let NodeMsg::Report(_, reply) = message {
                let report = NodeReport {
                    node: NODE,
                    session: SESSION,
                    hostname: "here".into(),
                    pid: 1,
                    data_addr: loopback(),
                    pool: String::new(),
                    labels: Vec::new(),
                    adapters: Vec::new(),
                    held: Vec::new(),
                };
                let _ = reply.send(report.into());
            }
            Ok(())
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn actors_talk_over_a_control_connection() {
        let pair = Pair::new(&Transport::default()).await;
        let (dialled, accepted) = pair.connect(Purpose::Control).await;
        Actor::spawn(None, Reporter, ()).await.unwrap();
        let coordinator = start_node_server("coordinator", &pair.cookie).await.unwrap();
        let node = start_node_server("node", &pair.cookie).await.unwrap();
        let (connected, greeted) =
            tokio::join!(node.connect(&dialled, SESSION), ControlStream::accept(&accepted));
        connected.unwrap();
        let (session, stream) = greeted.unwrap();
        assert_eq!(session, SESSION);
        coordinator.accept(stream).unwrap();
        // Both servers are in this process, so the group holds the actor and its remote shadows.
        let start = Instant::now();
        let remote = loop {
            let members = pg::get_members(&NODE_GROUP.to_owned());
            if let Some(remote) = members.into_iter().find(|actor| !actor.get_id().is_local()) {
                break remote;
            }
            assert!(start.elapsed() < Duration::from_secs(5), "no remote actor");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let remote = Remote::new(remote);
        let question = |reply| NodeMsg::Report(Wire::from(()), reply);
        let Wire(report) = remote.ask(question, Duration::from_secs(60)).await.unwrap();
        assert_eq!(report.unwrap().node, NODE);

        // When nobody speaks on a connection any more, it doesn't stand: whoever sees it first
        // closes it.
        coordinator.stop().await;
        for connection in [dialled, accepted] {
            let closed = tokio::time::timeout(Duration::from_secs(30), connection.closed()).await;
            closed.expect("it is closed");
        }
        node.stop().await;
    }

    /// Every user of the machine may knock at the library's listener; nobody gets past its TLS, so
    /// nobody is asked for the cookie either.
    #[tokio::test(flavor = "multi_thread")]
    async fn nobody_gets_through_the_listener_that_cannot_be_switched_off() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let before = listening();
        let server = start_node_server("guarded", "cookie").await.unwrap();
        let ours = listening().into_iter().filter(|port| !before.contains(port));
        let mut num_closed = 0;
        for port in ours {
            let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            // The length of a message, as the library's own clients begin: it would wait for more.
            stream.write_all(&100u64.to_be_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let read = stream.read_to_end(&mut answer);
            let read = tokio::time::timeout(Duration::from_secs(30), read).await;
            read.expect("it is closed").ok();
            // An alert of TLS, if anything.
            num_closed += usize::from(answer.first().is_none_or(|first| *first == 21));
        }
        assert!(num_closed > 0);
        server.stop().await;
    }

    /// Ports on which this process listens.
    fn listening() -> Vec<u16> {
        let own: Vec<_> = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .map(|link| link.to_string_lossy().into_owned())
            .collect();
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let sockets = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        sockets
            .filter(|it| it[3] == "0A" && own.contains(&format!("socket:[{}]", it[9])))
            .map(|it| u16::from_str_radix(it[1].rsplit_once(':').unwrap().1, 16).unwrap())
            .collect()
    }

    #[tokio::test]
    async fn a_control_stream_that_never_comes_is_not_waited_for() {
        let config = Transport { connect_timeout_ms: 300, ..Transport::default() };
        let pair = Pair::new(&config).await;
        let (_dialled, accepted) = pair.connect(Purpose::Control).await;
        let error = ControlStream::accept(&accepted).await.unwrap_err();
        assert!(matches!(error, TransportError::Silent(300)), "{error}");
    }
}
