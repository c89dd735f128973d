//! One UDP socket per process: it accepts and dials, and every connection knows who its peer is.

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use protocol::config::Transport;
use protocol::{NodeId, WIRE_VERSION};
use quinn::VarInt;
use quinn::crypto::rustls::QuicClientConfig;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tracing::{debug, warn};

use crate::certs::Identity;
use crate::connection::{Connection, Limits, PeerName, REVOKED, Shown, canonical, reason};
use crate::error::TransportError;
use crate::join::JoinRequest;
use crate::refusals::Refusals;
use crate::spoken::{self, CONTROL, DATA, JOIN};
use crate::{settings, socket, tls};

/// How long a closing endpoint waits for its last packets to leave.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Accepted connections that may wait for [`Endpoint::accept`].
const MAX_ACCEPTED: usize = 16;

/// Bytes of a connection attempt that may wait for its handshake to begin, and of all of them.
const ATTEMPT_BYTES: u64 = 64 << 10;
const ATTEMPTS_BYTES: u64 = 4 << 20;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Actors and heartbeats: small windows.
    Control,
    /// Frames: large windows.
    Data,
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

/// A process's place in the cluster's network; clones share it.
#[derive(Clone)]
pub struct Endpoint {
    endpoint: quinn::Endpoint,
    // Replaced when the certificate is renewed.
    identity: Arc<RwLock<Option<Identity>>>,
    config: Arc<Transport>,
    // The newest wire version that it speaks.
    newest: u16,
    incoming: Arc<Mutex<mpsc::Receiver<Incoming>>>,
    revoked: Revoked,
}

/// Who is a member no more, whatever certificate it has: whoever watches a connection hears of it.
pub(crate) type Revoked = watch::Sender<Arc<HashSet<NodeId>>>;

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Endpoint").field(&self.local_addr()).finish()
    }
}

impl Endpoint {
    /// Listens on `addr`. Without an identity it accepts nobody, and can only dial to join.
    ///
    /// # Errors
    /// When the address is taken, a setting can't work, or the identity is unusable.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(
        addr: SocketAddr,
        identity: Option<Identity>,
        config: &Transport,
    ) -> Result<Self, TransportError> {
        Self::speaking(WIRE_VERSION, addr, identity, config)
    }

    /// As [`bind`](Self::bind), speaking no wire version that is newer than this one.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn speaking(
        newest: u16,
        addr: SocketAddr,
        identity: Option<Identity>,
        config: &Transport,
    ) -> Result<Self, TransportError> {
        // Settings reach a node from the network: one that can't work is refused, before a zero
        // becomes a busy loop or a connection that never dies.
        config.check()?;
        let server = identity.as_ref().map(|it| server_config(it, newest, config)).transpose()?;
        let bind = |cause| TransportError::Bind { addr, cause };
        let socket = settings::socket(addr).map_err(bind)?;
        let runtime = Arc::new(socket::Tokio);
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            settings::endpoint(),
            server,
            socket,
            runtime,
        )
        .map_err(bind)?;
        let config = Arc::new(config.clone());
        let (accepted, incoming) = mpsc::channel(MAX_ACCEPTED);
        let revoked = Revoked::default();
        let door = Door::new((Arc::clone(&config), newest), accepted, revoked.clone());
        tokio::spawn(accept(endpoint.clone(), door));
        let identity = Arc::new(RwLock::new(identity));
        let incoming = Arc::new(Mutex::new(incoming));
        Ok(Self { endpoint, identity, config, newest, incoming, revoked })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.endpoint.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)))
    }

    /// Who this process is, once it has a certificate.
    pub fn identity(&self) -> Option<Identity> {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Shows another certificate from now on. Connections that stand are not touched.
    ///
    /// # Errors
    /// When the identity is unusable; the old one stays.
    pub(crate) fn replace_identity(&self, identity: Identity) -> Result<(), TransportError> {
        let server = server_config(&identity, self.newest, &self.config)?;
        self.endpoint.set_server_config(Some(server));
        *self.identity.write().unwrap_or_else(PoisonError::into_inner) = Some(identity);
        Ok(())
    }

    /// Has nothing to do with these nodes from now on, whatever certificates they have: none of
    /// them is taken in or dialled, and connections with them end.
    pub fn set_revoked(&self, nodes: HashSet<NodeId>) {
        self.revoked.send_replace(Arc::new(nodes));
    }

    /// The next connection; none once the endpoint is closed.
    pub async fn accept(&self) -> Option<Incoming> {
        self.incoming.lock().await.recv().await
    }

    /// Connects to a member of the cluster, who must prove to be `peer`. Whether that member takes
    /// us in shows when the first stream is opened: the dialling side of TLS 1.3 is done before the
    /// other has seen its certificate.
    ///
    /// # Errors
    /// When nobody answers in time, or somebody else does.
    pub async fn dial(
        &self,
        addr: SocketAddr,
        purpose: Purpose,
        peer: PeerName,
    ) -> Result<Connection, TransportError> {
        let identity = self.identity().ok_or_else(|| TransportError::Dial {
            addr,
            cause: "this process has no certificate yet".into(),
        })?;
        if let PeerName::Node(node) = peer
            && self.revoked.borrow().contains(&node)
        {
            return Err(TransportError::Dial { addr, cause: REVOKED.into() });
        }
        let protocol = match purpose {
            Purpose::Control => CONTROL,
            Purpose::Data => DATA,
        };
        let crypto = tls::client(&identity, &protocol, self.newest)?;
        let connection = self.connect(addr, crypto, purpose, &peer.to_string()).await?;
        let wire_version = spoken::version(&protocol, &spoken::agreed(&connection));
        let wire_version = wire_version.ok_or_else(|| TransportError::Dial {
            addr,
            cause: "it agrees to nothing that was offered".into(),
        })?;
        let shown = Shown { peer, pool: None };
        let context = (Limits::new(&self.config, false), self.revoked.subscribe());
        Ok(Connection::new(connection, (shown, wire_version), context, None))
    }

    pub(crate) async fn connect(
        &self,
        addr: SocketAddr,
        crypto: QuicClientConfig,
        purpose: Purpose,
        name: &str,
    ) -> Result<quinn::Connection, TransportError> {
        let dial = |cause: String| TransportError::Dial { addr, cause };
        let timeout = Duration::from_millis(self.config.connect_timeout_ms);
        let no_answer = || dial(format!("no answer within {} ms", timeout.as_millis()));
        let mut client = quinn::ClientConfig::new(Arc::new(crypto));
        client.transport_config(Arc::new(settings::dialling(&self.config, purpose)));
        let connecting = self
            .endpoint
            .connect_with(client, addr, name)
            .map_err(|cause| dial(cause.to_string()))?;
        match tokio::time::timeout(timeout, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Err(_) | Ok(Err(quinn::ConnectionError::TimedOut)) => Err(no_answer()),
            Ok(Err(cause)) if code(&cause) == Some(NO_COMMON_PROTOCOL) => Err(dial(format!(
                "it speaks no wire version that this process does ({}): install the same release \
                 on both",
                spoken::range(self.newest)
            ))),
            Ok(Err(cause)) => Err(distrust(addr, &cause).unwrap_or_else(|| dial(reason(&cause)))),
        }
    }

    /// Ends every connection with a reason, and waits briefly until the peers have heard.
    pub async fn close(&self, reason: &str) {
        self.endpoint.close(VarInt::from_u32(0), reason.as_bytes());
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle()).await;
    }
}

/// QUIC's number for TLS' alert that nothing of what is offered is spoken.
const NO_COMMON_PROTOCOL: u64 = 0x178;

/// QUIC's numbers for TLS' alerts about certificates, and for the one about a certificate's time.
const DISTRUST: RangeInclusive<u64> = 0x12a..=0x133;
const OTHER_TIME: u64 = 0x12d;

/// That a certificate was not taken, by whichever side, if that is why a connection ended.
pub(crate) fn distrust(addr: SocketAddr, cause: &quinn::ConnectionError) -> Option<TransportError> {
    let code = code(cause).filter(|code| DISTRUST.contains(code))?;
    let cause = reason(cause);
    Some(match code {
        OTHER_TIME => TransportError::OtherTime { addr, cause },
        _ => TransportError::Stranger { addr, cause },
    })
}

/// By what QUIC's own end of a connection is called.
fn code(cause: &quinn::ConnectionError) -> Option<u64> {
    match cause {
        quinn::ConnectionError::TransportError(error) => Some(error.code.into()),
        quinn::ConnectionError::ConnectionClosed(closed) => Some(closed.error_code.into()),
        _ => None,
    }
}

fn server_config(
    identity: &Identity,
    newest: u16,
    config: &Transport,
) -> Result<quinn::ServerConfig, TransportError> {
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls::server(identity, newest)?));
    server
        .transport_config(Arc::new(settings::accepting(config)))
        // Machines of a cluster keep their addresses.
        .migration(false)
        .max_incoming(config.max_connections as usize)
        .incoming_buffer_size(ATTEMPT_BYTES)
        .incoming_buffer_size_total(ATTEMPTS_BYTES);
    Ok(server)
}

/// Shakes hands with whoever dials, each in a task of its own: a peer that stalls holds up nobody.
/// Ends with the endpoint, or when no handle to it is left.
async fn accept(endpoint: quinn::Endpoint, door: Door) {
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = door.accepted.closed() => None,
        };
        let Some(incoming) = incoming else { return };
        let num_free = door.handshakes.available_permits();
        let num_shaking = door.config.max_connections as usize - num_free;
        let Ok(place) = Arc::clone(&door.handshakes).try_acquire_owned() else {
            door.say(
                incoming.remote_address(),
                "transport.max_connections handshakes are under way",
            );
            incoming.refuse();
            continue;
        };
        // Under load whoever dials must first show that it receives what is sent to its address, so
        // that forged ones take no places.
        let is_crowded = num_shaking >= door.config.max_unvalidated_handshakes as usize;
        if is_crowded && !incoming.remote_address_validated() {
            let _ = incoming.retry();
            continue;
        }
        tokio::spawn(door.clone().shake_hands(incoming, place));
    }
}

/// Who gets in, and how many at once.
#[derive(Clone)]
struct Door {
    config: Arc<Transport>,
    newest: u16,
    accepted: mpsc::Sender<Incoming>,
    // Counted apart, up to transport.max_connections of each, so that whoever never becomes a
    // member takes no member's place.
    handshakes: Arc<Semaphore>,
    joins: Arc<Semaphore>,
    members: Arc<Semaphore>,
    revoked: Revoked,
    said: Arc<Refusals>,
}

impl Door {
    fn new(
        (config, newest): (Arc<Transport>, u16),
        accepted: mpsc::Sender<Incoming>,
        revoked: Revoked,
    ) -> Self {
        let places = || Arc::new(Semaphore::new(config.max_connections as usize));
        let (handshakes, joins, members) = (places(), places(), places());
        let said = Arc::default();
        Self { accepted, handshakes, joins, members, config, newest, revoked, said }
    }

    /// Names whoever is turned away, once.
    fn say(&self, peer: SocketAddr, cause: &str) {
        let peer = canonical(peer);
        if self.said.is_news(peer.ip(), cause, Instant::now()) {
            warn!(%peer, cause, "connection refused");
        } else {
            debug!(%peer, cause, "connection refused again");
        }
    }

    async fn shake_hands(self, incoming: quinn::Incoming, place: OwnedSemaphorePermit) {
        let peer = incoming.remote_address();
        let timeout = Duration::from_millis(self.config.connect_timeout_ms);
        let shaken = tokio::time::timeout(timeout, incoming).await;
        drop(place);
        match shaken {
            Ok(Ok(connection)) => match self.admit(&connection) {
                // Fails when the endpoint is gone.
                Ok(incoming) => drop(self.accepted.send(incoming).await),
                Err(cause) => {
                    self.say(peer, cause);
                    connection.close(VarInt::from_u32(1), cause.as_bytes());
                }
            },
            Ok(Err(cause)) => self.say(peer, &format!("the handshake failed: {}", reason(&cause))),
            Err(_) => self.say(peer, "the handshake took too long"),
        }
    }

    /// Decides by the protocol that was agreed on and the certificate that was shown.
    fn admit(&self, connection: &quinn::Connection) -> Result<Incoming, &'static str> {
        let take = |places: &Arc<Semaphore>| {
            Arc::clone(places)
                .try_acquire_owned()
                .map_err(|_| "transport.max_connections are open already")
        };
        let name = spoken::agreed(connection);
        if let Some(version) = spoken::version(&JOIN, &name) {
            let place = take(&self.joins)?;
            let spoken = (version, self.newest);
            return Ok(Incoming::Join(JoinRequest::new(connection.clone(), spoken, place)));
        }
        let of = |(purpose, protocol)| Some((purpose, spoken::version(&protocol, &name)?));
        let found = [(Purpose::Control, CONTROL), (Purpose::Data, DATA)].into_iter().find_map(of);
        let (purpose, wire_version) = found.ok_or("this protocol is unknown")?;
        let shown = Shown::on(connection).ok_or("this needs a certificate of the cluster")?;
        if let PeerName::Node(node) = shown.peer
            && self.revoked.borrow().contains(&node)
        {
            return Err(REVOKED);
        }
        let place = take(&self.members)?;
        settings::welcome(connection, purpose, &self.config);
        let hears_pulse = purpose == Purpose::Control;
        let context = (Limits::new(&self.config, hears_pulse), self.revoked.subscribe());
        let shown = (shown, wire_version);
        let connection = Connection::new(connection.clone(), shown, context, Some(place));
        Ok(match purpose {
            Purpose::Control => Incoming::Control(connection),
            Purpose::Data => Incoming::Data(connection),
        })
    }
}
