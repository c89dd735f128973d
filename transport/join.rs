//! Joining: a node asks for a certificate, the coordinator gives one or says why not.
//!
//! One bidirectional stream: the wire version and [`Hello`] one way, [`Answer`] the other, each
//! with its length before it. Without tokens only loopback may join; the proof of a token belongs
//! into the hello, as an HMAC over what the connection's TLS session exports, and its check into
//! [`JoinRequest::judge`].

use std::net::SocketAddr;
use std::time::Duration;

use bincode::{Decode, Encode};
use protocol::config::Transport;
use protocol::{NodeId, WIRE_VERSION};
use tokio::sync::OwnedSemaphorePermit;

use crate::certs::{self, Authority, Identity};
use crate::endpoint::{Endpoint, Purpose};
use crate::error::{JoinError, TransportError};
use crate::frames::{read_message, write_message};
use crate::tls;

/// What a joined node got.
#[derive(Debug)]
pub struct Joined {
    /// Who it is from now on.
    pub identity: Identity,
    /// How members of this cluster talk. [`Endpoint::bind`] checks that it can work.
    pub transport: Transport,
    /// The shared secret of the control plane.
    pub cookie: String,
}

#[derive(Debug, Encode, Decode)]
struct Hello {
    node: NodeId,
    certificate_request: Vec<u8>,
}

#[derive(Debug, Encode, Decode)]
enum Answer {
    // First, and never moved: a node of any version can be told why it may not join.
    Refused(String),
    Welcome { certificate: Vec<u8>, authority: Vec<u8>, transport: Transport, cookie: String },
}

/// Joins the coordinator at `coordinator`.
///
/// Also how a node gets another certificate before its own expires.
///
/// # Errors
/// When it can't be reached, or refuses.
pub async fn join(
    coordinator: SocketAddr,
    node: NodeId,
    config: &Transport,
) -> Result<Joined, JoinError> {
    let (key, certificate_request) = certs::request()?;
    let hello = Hello { node, certificate_request };
    match ask(coordinator, WIRE_VERSION, &hello, config).await? {
        Answer::Refused(reason) => Err(JoinError::Refused(reason)),
        Answer::Welcome { certificate, authority, transport, cookie } => {
            let identity = Identity::new(certificate, key, authority);
            Ok(Joined { identity, transport, cookie })
        }
    }
}

async fn ask(
    coordinator: SocketAddr,
    wire_version: u16,
    hello: &Hello,
    config: &Transport,
) -> Result<Answer, JoinError> {
    if !is_loopback(coordinator) {
        return Err(JoinError::NotLoopback { addr: coordinator });
    }
    let local = SocketAddr::new(coordinator.ip(), 0);
    let endpoint = Endpoint::bind(local, None, config)?;
    let connection = endpoint
        .connect(coordinator, tls::stranger()?, Purpose::Control, "coordinator.autoglm")
        .await?;
    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await?;
        send.write_all(&wire_version.to_le_bytes()).await?;
        write_message(&mut send, hello).await?;
        read_message(&mut receive).await
    };
    let timeout = Duration::from_millis(config.connect_timeout_ms);
    let answer = tokio::time::timeout(timeout, exchange).await.map_err(|_| {
        let cause = "it took too long to answer".into();
        TransportError::Dial { addr: coordinator, cause }
    })??;
    endpoint.close("joined").await;
    Ok(answer)
}

/// A node at the coordinator's door.
#[derive(Debug)]
pub struct JoinRequest {
    connection: quinn::Connection,
    // Among those that may ask at once.
    _place: OwnedSemaphorePermit,
}

impl JoinRequest {
    pub(crate) fn new(connection: quinn::Connection, place: OwnedSemaphorePermit) -> Self {
        Self { connection, _place: place }
    }

    /// Who asks.
    pub fn remote_addr(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// Admits the node, or tells it why not.
    ///
    /// # Errors
    /// Why it was not admitted.
    pub async fn admit(
        self,
        authority: &Authority,
        config: &Transport,
    ) -> Result<NodeId, JoinError> {
        let timeout = Duration::from_millis(config.connect_timeout_ms);
        let admitted = tokio::time::timeout(timeout, self.answer(authority, config)).await;
        admitted.unwrap_or_else(|_| {
            let cause = "it took too long to ask".into();
            Err(TransportError::Dial { addr: self.connection.remote_address(), cause }.into())
        })
    }

    async fn answer(&self, authority: &Authority, config: &Transport) -> Result<NodeId, JoinError> {
        let (mut send, mut receive) =
            self.connection.accept_bi().await.map_err(TransportError::from)?;
        let judged = self.judge(&mut receive, authority, config).await;
        let answer = match &judged {
            Ok((_, certificate)) => Answer::Welcome {
                certificate: certificate.clone(),
                authority: authority.certificate(),
                transport: config.clone(),
                cookie: authority.cookie(),
            },
            Err(cause) => Answer::Refused(cause.to_string()),
        };
        write_message(&mut send, &answer).await?;
        // The node closes when it has read the answer; closing first could lose it.
        let _ = self.connection.closed().await;
        judged.map(|(node, _)| node)
    }

    /// Who the node is and its certificate.
    async fn judge(
        &self,
        receive: &mut quinn::RecvStream,
        authority: &Authority,
        config: &Transport,
    ) -> Result<(NodeId, Vec<u8>), JoinError> {
        // Before anything else: what follows may look different in another version.
        let mut version = [0; 2];
        receive.read_exact(&mut version).await.map_err(TransportError::from)?;
        let theirs = u16::from_le_bytes(version);
        if theirs != WIRE_VERSION {
            return Err(JoinError::OtherVersion { theirs });
        }
        let addr = self.remote_addr();
        if !is_loopback(addr) {
            return Err(JoinError::NotLoopback { addr });
        }
        let Hello { node, certificate_request } = read_message(receive).await?;
        let days = config.certificate_days;
        Ok((node, authority.issue(&certificate_request, node, days)?))
    }
}

/// A socket for both families sees IPv4's loopback as an address of IPv6.
fn is_loopback(addr: SocketAddr) -> bool {
    addr.ip().to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Incoming;
    use crate::tests::{coordinator, loopback};

    #[tokio::test]
    async fn a_node_of_another_wire_version_is_refused_by_name() {
        let config = Transport::default();
        let (coordinator, authority, _dir) = coordinator(&config);
        let (_, certificate_request) = certs::request().unwrap();
        let hello = Hello { node: NodeId(1), certificate_request };
        let asking = ask(coordinator.local_addr(), 9, &hello, &config);
        let answering = async {
            let Some(Incoming::Join(request)) = coordinator.accept().await else { panic!() };
            assert!(is_loopback(request.remote_addr()));
            request.admit(&authority, &config).await
        };
        let (answer, admitted) = tokio::join!(asking, answering);
        assert!(admitted.unwrap_err().is_final());
        let Ok(Answer::Refused(reason)) = answer else { panic!("{answer:?}") };
        assert!(reason.contains("wire version 9") && reason.contains("same release"), "{reason}");
    }

    #[tokio::test]
    async fn a_request_without_a_certificate_request_is_refused() {
        let config = Transport::default();
        let (coordinator, authority, _dir) = coordinator(&config);
        let hello = Hello { node: NodeId(1), certificate_request: vec![0x30; 1000] };
        let asking = ask(coordinator.local_addr(), WIRE_VERSION, &hello, &config);
        let answering = async {
            let Some(Incoming::Join(request)) = coordinator.accept().await else { panic!() };
            request.admit(&authority, &config).await
        };
        let (answer, admitted) = tokio::join!(asking, answering);
        assert!(admitted.is_err());
        assert!(matches!(answer, Ok(Answer::Refused(_))), "{answer:?}");
    }

    #[tokio::test]
    async fn nobody_joins_over_a_network_without_a_token() {
        let config = Transport::default();
        let error = join(([192, 0, 2, 1], 7000).into(), NodeId(1), &config).await.unwrap_err();
        assert!(error.is_final() && error.to_string().contains("token"), "{error}");
        assert!(is_loopback("[::ffff:127.0.0.1]:1".parse().unwrap()));
        assert!(!is_loopback("[::ffff:192.0.2.1]:1".parse().unwrap()));
    }

    #[tokio::test]
    async fn a_coordinator_that_does_not_answer_is_named() {
        let config = Transport { connect_timeout_ms: 300, ..Transport::default() };
        let silent = std::net::UdpSocket::bind(loopback()).unwrap();
        let addr = silent.local_addr().unwrap();
        let error = join(addr, NodeId(1), &config).await.unwrap_err();
        assert!(!error.is_final());
        assert_eq!(error.to_string(), format!("can't reach {addr}: no answer within 300 ms"));
    }

    /// Whoever connects to join and is not heard gets no connection to keep.
    #[tokio::test]
    async fn a_join_that_is_not_taken_up_is_closed() {
        let config = Transport { connect_timeout_ms: 300, ..Transport::default() };
        let (coordinator, authority, _dir) = coordinator(&config);
        let stranger = Endpoint::bind(loopback(), None, &config).unwrap();
        let addr = coordinator.local_addr();
        for is_asked in [false, true] {
            let crypto = tls::attacker(None, &[tls::JOIN]);
            let connection =
                stranger.connect(addr, crypto, Purpose::Control, "any.autoglm").await.unwrap();
            let Some(Incoming::Join(request)) = coordinator.accept().await else { panic!() };
            if is_asked {
                let error = request.admit(&authority, &config).await.unwrap_err();
                assert!(error.to_string().contains("too long to ask"), "{error}");
            } else {
                drop(request);
            }
            let ended = connection.closed().await;
            assert!(matches!(ended, quinn::ConnectionError::ApplicationClosed(_)), "{ended}");
        }
    }
}
