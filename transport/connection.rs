//! A connection to a member of the cluster, and who that member is.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use protocol::config::Transport;
use protocol::{NodeId, SessionId};
use quinn::{ConnectionError, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use x509_parser::extensions::GeneralName;

use crate::error::TransportError;
use crate::knock::{self, Looks};

/// For what keys are asked, so that nothing else gets the same of them.
const SESSION_LABEL: &[u8] = b"EXPORTER-autoglm-session-1";

/// Who a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeerName {
    /// There is one for an authority, whatever machine it is on.
    Coordinator,
    /// Bound to this id: none can speak for another.
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

/// What a certificate says that TLS has verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) peer: PeerName,
    /// A node's.
    pub(crate) pool: Option<String>,
}

impl Shown {
    /// Who the other side of a connection has shown to be.
    pub(crate) fn on(connection: &quinn::Connection) -> Option<Self> {
        let shown = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        Self::by(shown.first()?)
    }

    fn by(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        // Our authority writes a name, and for a node where it belongs.
        match names.value.general_names.as_slice() {
            [GeneralName::DNSName(name)] => Some(Self { peer: PeerName::parse(name)?, pool: None }),
            [GeneralName::DNSName(name), GeneralName::URI(uri)] => {
                let peer = PeerName::parse(name)?;
                let pool = uri.strip_prefix(POOL_PREFIX)?.split('/').next()?;
                (peer.uri(pool) == *uri).then(|| Self { peer, pool: Some(pool.to_owned()) })
            }
            _ => None,
        }
    }
}

/// How the URI of a node begins: its pool follows, then its id.
const POOL_PREFIX: &str = "spiffe://autoglm/pool/";

impl PeerName {
    /// Who it is, and where it belongs.
    pub(crate) fn uri(self, pool: &str) -> String {
        match self {
            Self::Coordinator => "spiffe://autoglm/coordinator".into(),
            Self::Node(node) => format!("{POOL_PREFIX}{pool}/node/{node}"),
        }
    }

    fn parse(name: &str) -> Option<Self> {
        if name == "coordinator.autoglm" {
            return Some(Self::Coordinator);
        }
        let node = u64::from_str_radix(name.strip_suffix(".node.autoglm")?, 16).ok()?;
        let peer = Self::Node(NodeId(node));
        // One node, one spelling.
        (peer.to_string() == name).then_some(peer)
    }
}

/// A connection to a member of the cluster; clones share it. It closes when the last clone and the
/// last of its streams are gone.
#[derive(Clone, Debug)]
pub struct Connection {
    pub(crate) connection: quinn::Connection,
    shown: Shown,
    wire_version: u16,
    pub(crate) limits: Limits,
    watch: Arc<Watch>,
    // Among transport.max_connections; a dialled connection takes none.
    _place: Option<Arc<OwnedSemaphorePermit>>,
}

/// What the streams of a connection must know of the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_frame_bytes: usize,
    connect_timeout_ms: u64,
    pub(crate) piece_timeout_ms: u64,
    // Between two signs of life of a control connection, and whether it is the other side that
    // gives them.
    keep_alive: Duration,
    hears_pulse: bool,
}

impl Limits {
    pub(crate) fn new(config: &Transport, hears_pulse: bool) -> Self {
        let keep_alive = Duration::from_millis(config.keep_alive_ms);
        Self {
            max_frame_bytes: config.max_frame_bytes as usize,
            connect_timeout_ms: config.connect_timeout_ms,
            piece_timeout_ms: config.piece_timeout_ms,
            keep_alive,
            hears_pulse,
        }
    }

    /// When whether somebody is there is looked after: where there are signs of life, by them;
    /// elsewhere by what is sent, so that whoever is waited for is missed soonest.
    fn looks(self) -> Looks {
        match self.hears_pulse {
            true => Looks::Every(self.keep_alive * 5 / 4),
            false => Looks::After(self.keep_alive / 4, Notify::new()),
        }
    }

    /// What the other side says first when it opens a stream, unless it takes too long.
    pub(crate) async fn greeting<T>(
        self,
        greeting: impl Future<Output = Result<T, TransportError>>,
    ) -> Result<T, TransportError> {
        let timeout = Duration::from_millis(self.connect_timeout_ms);
        tokio::time::timeout(timeout, greeting)
            .await
            .unwrap_or(Err(TransportError::Silent(self.connect_timeout_ms)))
    }
}

/// What becomes of connections with a node that is revoked.
pub(crate) const REVOKED: &str = "this node is revoked";

/// Gives a connection up whose other side is gone without a word, or a member no more. Ends with
/// the last handle to it, so that it keeps no connection open.
#[derive(Debug)]
struct Watch {
    // Why, once it has.
    given_up: Arc<OnceLock<String>>,
    looks: Arc<Looks>,
    task: tokio::task::AbortHandle,
}

impl Watch {
    fn over(
        connection: &quinn::Connection,
        peer: PeerName,
        (limits, revoked): (Limits, watch::Receiver<Arc<HashSet<NodeId>>>),
    ) -> Self {
        let given_up = Arc::new(OnceLock::new());
        let (connection, cause) = (connection.clone(), Arc::clone(&given_up));
        let looks = Arc::new(limits.looks());
        let looked = Arc::clone(&looks);
        let task = tokio::spawn(async move {
            let (why, told) = tokio::select! {
                () = knock::until_nobody_listens(&connection, &looked) => (
                    "its process has ended: nobody listens there any more",
                    "nobody listens there any more",
                ),
                () = until_revoked(peer, revoked) => (REVOKED, REVOKED),
            };
            if connection.close_reason().is_none() {
                let _ = cause.set(why.into());
                connection.close(VarInt::from_u32(0), told.as_bytes());
            }
        });
        Self { given_up, looks, task: task.abort_handle() }
    }
}

/// Resolves when the other side is a node that is revoked.
async fn until_revoked(peer: PeerName, mut revoked: watch::Receiver<Arc<HashSet<NodeId>>>) {
    if let PeerName::Node(node) = peer
        && revoked.wait_for(|revoked| revoked.contains(&node)).await.is_ok()
    {
        return;
    }
    // It is the coordinator, or the endpoint is gone, and its connections with it.
    std::future::pending().await
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    pub(crate) fn new(
        connection: quinn::Connection,
        (shown, wire_version): (Shown, u16),
        context: (Limits, watch::Receiver<Arc<HashSet<NodeId>>>),
        place: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let _place = place.map(Arc::new);
        let limits = context.0;
        let watch = Arc::new(Watch::over(&connection, shown.peer, context));
        Self { connection, shown, wire_version, limits, watch, _place }
    }

    /// The wire version that both sides agreed on: what only newer ones know is not said.
    pub fn wire_version(&self) -> u16 {
        self.wire_version
    }

    /// Who the other side is, by its certificate.
    pub fn peer(&self) -> PeerName {
        self.shown.peer
    }

    /// The pool of the node that has dialled, by its certificate.
    pub fn pool(&self) -> Option<&str> {
        self.shown.pool.as_deref()
    }

    /// The session that begins with this data connection: a name that both sides make of its keys,
    /// and nobody else can.
    ///
    /// # Errors
    /// When the keys give none.
    pub fn session(&self) -> Result<SessionId, TransportError> {
        let mut name = [0; 8];
        self.connection
            .export_keying_material(&mut name, SESSION_LABEL, &[])
            .map_err(|_| TransportError::Closed("its keys are gone".into()))?;
        Ok(SessionId(u64::from_le_bytes(name)))
    }

    /// Where the other side is.
    pub fn remote_addr(&self) -> SocketAddr {
        canonical(self.connection.remote_address())
    }

    /// By which of this machine's addresses the other side talks to it, where the system says so.
    pub fn local_ip(&self) -> Option<IpAddr> {
        self.connection.local_ip().map(|ip| ip.to_canonical())
    }

    /// The round trip as QUIC measures it.
    pub fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    /// Something was sent that the other side acknowledges.
    pub(crate) fn sent(&self) {
        self.watch.looks.sent();
    }

    /// Whether it still stands.
    pub fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// Whether there is another handle to it.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.watch) > 1
    }

    /// Whether both are handles to one connection.
    pub fn is(&self, other: &Self) -> bool {
        self.connection.stable_id() == other.connection.stable_id()
    }

    /// Why it ended, once it has: closed by either side, or silent for too long.
    pub async fn closed(&self) -> String {
        let cause = self.connection.closed().await;
        self.watch.given_up.get().cloned().unwrap_or_else(|| reason(&cause))
    }

    /// Ends it. Where it has ended already, the reason for that stays.
    pub fn close(&self, reason: &str) {
        if self.is_open() {
            self.connection.close(VarInt::from_u32(0), reason.as_bytes());
        }
    }
}

/// A socket for both families sees addresses of IPv4 as some of IPv6: written as what they are.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Why a connection ended, in words.
pub(crate) fn reason(cause: &ConnectionError) -> String {
    match cause {
        ConnectionError::ApplicationClosed(closed) if closed.reason.is_empty() => {
            "the other side dropped it".into()
        }
        // It came over the network and will stand in a log: one line of text, whatever it holds.
        ConnectionError::ApplicationClosed(closed) => String::from_utf8_lossy(&closed.reason)
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect(),
        ConnectionError::TimedOut => "nothing was heard of it for too long".into(),
        ConnectionError::LocallyClosed => "closed by this side".into(),
        cause => cause.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_spelling() {
        for peer in [PeerName::Coordinator, PeerName::Node(NodeId(0)), PeerName::Node(NodeId(!7))] {
            assert_eq!(PeerName::parse(&peer.to_string()), Some(peer));
        }
        for wrong in [
            "",
            "coordinator",
            ".node.autoglm",
            "7.node.autoglm",
            "+000000000000007.node.autoglm",
            "00000000000000AB.node.autoglm",
            "00000000000000ab.node.autoglm.example",
            "x.00000000000000ab.node.autoglm",
        ] {
            assert_eq!(PeerName::parse(wrong), None, "{wrong}");
        }
    }
}
