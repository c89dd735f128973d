//! One UDP socket per process: it accepts and dials, and every connection knows who its peer is.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use protocol::NodeId;
use protocol::config::Transport;
use quinn::crypto::rustls::HandshakeData;
use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tracing::{debug, warn};

use crate::certs::Identity;
use crate::error::TransportError;
use crate::join::JoinRequest;
use crate::tls;

/// quinn sends batches of ten segments, and UDP caps a batch at 64 KiB: larger packets stall.
/// On links with smaller ones discovery stops where the path does.
const MAX_PACKET_BYTES: u16 = 6500;

/// Bursts of activations fit the socket's buffers.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Links and questions under way at once on one connection.
const MAX_STREAMS: u32 = 64;

/// How long a closing endpoint waits for its last packets to leave.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Actors and heartbeats: small windows.
    Control,
    /// Frames: large windows.
    Data,
}

/// Who a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeerName {
    /// The coordinator.
    Coordinator,
    /// A node.
    Node(NodeId),
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator => write!(f, "coordinator.autoglm"),
            Self::Node(node) => write!(f, "{node}.node.autoglm"),
        }
    }
}

impl PeerName {
    /// The name in a certificate that TLS has verified.
    fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        names.value.general_names.iter().find_map(|name| match name {
            x509_parser::extensions::GeneralName::DNSName("coordinator.autoglm") => {
                Some(Self::Coordinator)
            }
            x509_parser::extensions::GeneralName::DNSName(name) => {
                let node = name.strip_suffix(".node.autoglm")?;
                u64::from_str_radix(node, 16).ok().map(|node| Self::Node(NodeId(node)))
            }
            _ => None,
        })
    }
}

/// A process's place in the cluster's network; clones share it.
#[derive(Clone)]
pub struct Endpoint {
    endpoint: quinn::Endpoint,
    identity: Option<Identity>,
    config: Arc<Transport>,
    incoming: Arc<Mutex<mpsc::Receiver<Incoming>>>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Endpoint").field(&self.local_addr()).finish()
    }
}

/// A connection that was accepted.
#[derive(Debug)]
pub enum Incoming {
    /// From a member, for actors.
    Control(Connection),
    /// From a member, for frames.
    Data(Connection),
    /// From somebody who wants to be a member.
    Join(JoinRequest),
}

impl Endpoint {
    /// Listens on `addr`. Without an identity it can only dial to join.
    ///
    /// # Errors
    /// When the address is taken, or the identity is unusable.
    pub fn bind(
        addr: SocketAddr,
        identity: Option<Identity>,
        config: &Transport,
    ) -> Result<Self, TransportError> {
        let bind = |cause| TransportError::Bind { addr, cause };
        let socket = socket(addr).map_err(bind)?;
        let server = identity
            .as_ref()
            .map(|identity| -> Result<_, TransportError> {
                let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls::server(identity)?));
                server
                    .transport_config(Arc::new(transport_config(
                        config,
                        config.control_window_bytes,
                    )))
                    .migration(false)
                    .max_incoming(config.max_connections as usize)
                    .incoming_buffer_size(64 << 10)
                    .incoming_buffer_size_total(4 << 20);
                Ok(server)
            })
            .transpose()?;
        let mut endpoint_config = EndpointConfig::default();
        endpoint_config
            .max_udp_payload_size(MAX_PACKET_BYTES)
            .map_err(|cause| TransportError::Certificates(cause.to_string()))?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint =
            quinn::Endpoint::new(endpoint_config, server, socket, runtime).map_err(bind)?;
        let (accepted, incoming) = mpsc::channel(16);
        let config = Arc::new(config.clone());
        if identity.is_some() {
            tokio::spawn(accept(endpoint.clone(), Arc::clone(&config), accepted));
        }
        Ok(Self { endpoint, identity, config, incoming: Arc::new(Mutex::new(incoming)) })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.endpoint.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)))
    }

    #[cfg(test)]
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.identity.clone()
    }

    /// The next connection; none once the endpoint is closed.
    pub async fn accept(&self) -> Option<Incoming> {
        self.incoming.lock().await.recv().await
    }

    /// Connects to a member of the cluster, who must prove to be `peer`.
    ///
    /// # Errors
    /// When nobody answers in time, or somebody else does.
    pub async fn dial(
        &self,
        addr: SocketAddr,
        purpose: Purpose,
        peer: PeerName,
    ) -> Result<Connection, TransportError> {
        let identity = self.identity.as_ref().ok_or_else(|| TransportError::Dial {
            addr,
            cause: "this process has no certificate yet".into(),
        })?;
        let (alpn, window) = match purpose {
            Purpose::Control => (tls::CONTROL, self.config.control_window_bytes),
            Purpose::Data => (tls::DATA, self.config.data_window_bytes),
        };
        let crypto = tls::client(identity, alpn)?;
        let connection = self.connect(addr, crypto, window, &peer.to_string()).await?;
        Ok(Connection { connection, peer, max_frame_bytes: self.config.max_frame_bytes as usize })
    }

    pub(crate) async fn connect(
        &self,
        addr: SocketAddr,
        crypto: quinn::crypto::rustls::QuicClientConfig,
        window: u32,
        name: &str,
    ) -> Result<quinn::Connection, TransportError> {
        let dial = |cause: String| TransportError::Dial { addr, cause };
        let mut client = quinn::ClientConfig::new(Arc::new(crypto));
        client.transport_config(Arc::new(transport_config(&self.config, window)));
        let connecting = self
            .endpoint
            .connect_with(client, addr, name)
            .map_err(|cause| dial(cause.to_string()))?;
        let timeout = Duration::from_millis(self.config.connect_timeout_ms);
        match tokio::time::timeout(timeout, connecting).await {
            Ok(connected) => connected.map_err(|cause| dial(cause.to_string())),
            Err(_) => Err(dial(format!("no answer within {} ms", timeout.as_millis()))),
        }
    }

    /// Ends every connection with a reason, and waits briefly until the peers have heard.
    pub async fn close(&self, reason: &str) {
        self.endpoint.close(VarInt::from_u32(0), reason.as_bytes());
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle()).await;
    }
}

/// Shakes hands with whoever dials, each in a task of its own: a peer that stalls holds up nobody.
async fn accept(
    endpoint: quinn::Endpoint,
    config: Arc<Transport>,
    accepted: mpsc::Sender<Incoming>,
) {
    let places = Arc::new(Semaphore::new(config.max_connections as usize));
    while let Some(incoming) = endpoint.accept().await {
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            warn!(peer = %incoming.remote_address(), "transport.max_connections are open already");
            incoming.refuse();
            continue;
        };
        let (config, accepted) = (Arc::clone(&config), accepted.clone());
        tokio::spawn(async move {
            let peer = incoming.remote_address();
            let timeout = Duration::from_millis(config.connect_timeout_ms);
            match tokio::time::timeout(timeout, incoming).await {
                Ok(Ok(connection)) => {
                    if let Some(incoming) = admit(&connection, &config) {
                        // Fails when the endpoint is gone.
                        let _ = accepted.send(incoming).await;
                        connection.closed().await;
                    }
                }
                Ok(Err(cause)) => debug!(%peer, %cause, "handshake failed"),
                Err(_) => debug!(%peer, "handshake took too long"),
            }
            drop(place);
        });
    }
}

/// Decides by the protocol that was agreed on and the certificate that was shown.
fn admit(connection: &quinn::Connection, config: &Transport) -> Option<Incoming> {
    let handshake = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    let alpn = handshake.protocol?;
    if alpn == tls::JOIN {
        return Some(Incoming::Join(JoinRequest::new(connection.clone())));
    }
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    let peer = chain.and_then(|chain| PeerName::of(chain.first()?));
    let Some(peer) = peer else {
        warn!(peer = %connection.remote_address(), "a peer without our certificate is refused");
        connection.close(VarInt::from_u32(1), b"this needs a certificate of the cluster");
        return None;
    };
    let max_frame_bytes = config.max_frame_bytes as usize;
    let connection = Connection { connection: connection.clone(), peer, max_frame_bytes };
    Some(if alpn == tls::DATA {
        connection.connection.set_receive_window(VarInt::from_u32(config.data_window_bytes));
        Incoming::Data(connection)
    } else {
        Incoming::Control(connection)
    })
}

/// A connection to a member of the cluster; clones share it.
#[derive(Clone, Debug)]
pub struct Connection {
    pub(crate) connection: quinn::Connection,
    peer: PeerName,
    pub(crate) max_frame_bytes: usize,
}

impl Connection {
    /// Who the other side is, by its certificate.
    pub fn peer(&self) -> PeerName {
        self.peer
    }

    /// Where the other side is.
    pub fn remote_addr(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// The round trip as QUIC measures it.
    pub fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    /// Whether it still stands.
    pub fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// Whether both are handles to one connection.
    pub fn is(&self, other: &Self) -> bool {
        self.connection.stable_id() == other.connection.stable_id()
    }

    /// Why it ended, once it has: closed by either side, or silent for too long.
    pub async fn closed(&self) -> String {
        match self.connection.closed().await {
            quinn::ConnectionError::ApplicationClosed(closed) => {
                String::from_utf8_lossy(&closed.reason).into_owned()
            }
            quinn::ConnectionError::TimedOut => "nothing was heard of it for too long".into(),
            cause => cause.to_string(),
        }
    }

    /// Ends it.
    pub fn close(&self, reason: &str) {
        self.connection.close(VarInt::from_u32(0), reason.as_bytes());
    }
}

fn socket(addr: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let domain = socket2::Domain::for_address(addr);
    let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
    // As much as the system allows; less is slower, not wrong.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&addr.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn transport_config(config: &Transport, window: u32) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(MAX_PACKET_BYTES);
    let idle = Duration::from_millis(config.idle_timeout_ms);
    let mut transport = TransportConfig::default();
    transport
        .keep_alive_interval(Some(Duration::from_millis(config.keep_alive_ms)))
        .max_idle_timeout(IdleTimeout::try_from(idle).ok())
        .mtu_discovery_config(Some(discovery))
        .stream_receive_window(VarInt::from_u32(config.data_window_bytes))
        .receive_window(VarInt::from_u32(window))
        .send_window(2 * u64::from(window))
        .max_concurrent_bidi_streams(VarInt::from_u32(4))
        .max_concurrent_uni_streams(VarInt::from_u32(MAX_STREAMS))
        .datagram_receive_buffer_size(None);
    transport
}
