//! Joining: a node asks for a certificate, the coordinator gives one or says why not.
//!
//! One bidirectional stream: the wire version and [`Hello`] one way, [`Answer`] the other, each
//! with its length before it. A node that is no member yet proves that it knows a [`Token`], by an
//! HMAC over what the connection's TLS session exports; a member shows its certificate in that
//! session. Whether that is enough is the coordinator's to decide.

use std::net::SocketAddr;
use std::time::Duration;

use bincode::{Decode, Encode};
use protocol::config::Transport;
use protocol::{NodeId, WIRE_VERSION};
use quinn::crypto::rustls::QuicClientConfig;
use tokio::sync::OwnedSemaphorePermit;

use crate::certs::{self, Authority, Identity};
use crate::connection::PeerName;
use crate::endpoint::{Endpoint, Purpose};
use crate::error::{JoinError, TransportError};
use crate::frames::{read_message, write_message};
use crate::tls;
use crate::token::{Proof, Token};

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
    // None: the certificate that TLS has seen says enough.
    proof: Option<Proof>,
}

#[derive(Debug, Encode, Decode)]
enum Answer {
    // First, and never moved: a node of any version can be told why it may not join.
    Refused(String),
    Welcome { certificate: Vec<u8>, authority: Vec<u8>, transport: Transport, cookie: String },
    // Later, perhaps.
    NotNow(String),
}

/// Joins the coordinator at `coordinator`, which must be the one that `token` is of.
///
/// # Errors
/// When it can't be reached, or refuses.
pub async fn join(
    coordinator: SocketAddr,
    node: NodeId,
    token: &Token,
    config: &Transport,
) -> Result<Joined, JoinError> {
    let asking = Asking { coordinator, wire_version: WIRE_VERSION, node, config };
    asking.ask(tls::stranger(token)?, Some(token)).await
}

/// Gets a member another certificate before its own expires.
///
/// # Errors
/// When the coordinator can't be reached, or refuses.
pub async fn renew(
    coordinator: SocketAddr,
    node: NodeId,
    identity: &Identity,
    config: &Transport,
) -> Result<Joined, JoinError> {
    let asking = Asking { coordinator, wire_version: WIRE_VERSION, node, config };
    asking.ask(tls::client(identity, tls::JOIN)?, None).await
}

/// A node's side of joining.
struct Asking<'a> {
    coordinator: SocketAddr,
    wire_version: u16,
    node: NodeId,
    config: &'a Transport,
}

impl Asking<'_> {
    async fn ask(
        &self,
        crypto: QuicClientConfig,
        token: Option<&Token>,
    ) -> Result<Joined, JoinError> {
        let addr = self.coordinator;
        if !is_loopback(addr) {
            return Err(JoinError::NotLoopback { addr });
        }
        let endpoint = Endpoint::bind(SocketAddr::new(addr.ip(), 0), None, self.config)?;
        let name = PeerName::Coordinator.to_string();
        let connection = endpoint.connect(addr, crypto, Purpose::Control, &name).await?;
        let (key, certificate_request) = certs::request()?;
        let proof = token.map(|token| {
            let statement = statement(&connection, self.node, &certificate_request)?;
            Ok::<_, TransportError>(token.prove(&statement))
        });
        let hello = Hello { node: self.node, certificate_request, proof: proof.transpose()? };
        let exchange = async {
            let (mut send, mut receive) = connection.open_bi().await?;
            send.write_all(&self.wire_version.to_le_bytes()).await?;
            write_message(&mut send, &hello).await?;
            read_message(&mut receive).await
        };
        let timeout = Duration::from_millis(self.config.connect_timeout_ms);
        let answer = tokio::time::timeout(timeout, exchange).await.map_err(|_| {
            TransportError::Dial { addr, cause: "it took too long to answer".into() }
        })??;
        endpoint.close("joined").await;
        match answer {
            Answer::Refused(reason) => Err(JoinError::Refused(reason)),
            Answer::NotNow(reason) => Err(JoinError::NotNow(reason)),
            Answer::Welcome { certificate, authority, transport, cookie } => {
                let identity = Identity::new(certificate, key, authority);
                Ok(Joined { identity, transport, cookie })
            }
        }
    }
}

/// What both ends of one TLS session, and nobody else, can put together of who asks for which key.
fn statement(
    connection: &quinn::Connection,
    node: NodeId,
    certificate_request: &[u8],
) -> Result<Vec<u8>, TransportError> {
    let mut statement = vec![0; 32];
    connection
        .export_keying_material(&mut statement, EXPORTER_LABEL, &[])
        .map_err(|cause| TransportError::Certificates(format!("no exporter: {cause:?}")))?;
    statement.extend(node.0.to_le_bytes());
    statement.extend(certificate_request);
    Ok(statement)
}

/// What binds a proof to the TLS session in which it is given.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-autoglm-join-1";

/// Who wants a certificate, and what speaks for it.
#[derive(Debug)]
pub struct Applicant {
    /// Who it says it is.
    pub node: NodeId,
    /// Whether it has shown that it is this node: by a certificate of the cluster.
    pub is_member: bool,
    statement: Vec<u8>,
    proof: Option<Proof>,
}

impl Applicant {
    /// The name of the token that it says it knows.
    pub fn token(&self) -> Option<&str> {
        self.proof.as_ref().map(Proof::token)
    }

    /// Whether it knows this token.
    pub fn knows(&self, token: &Token) -> bool {
        self.proof.as_ref().is_some_and(|proof| token.verify(proof, &self.statement))
    }
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

    /// Admits the node if `decide` agrees, or tells it why not.
    ///
    /// # Errors
    /// Why it was not admitted.
    pub async fn admit(
        self,
        authority: &Authority,
        config: &Transport,
        decide: impl FnOnce(&Applicant) -> Result<(), JoinError>,
    ) -> Result<NodeId, JoinError> {
        let timeout = Duration::from_millis(config.connect_timeout_ms);
        let answered = self.answer(authority, config, decide);
        tokio::time::timeout(timeout, answered).await.unwrap_or_else(|_| {
            let cause = "it took too long to ask".into();
            Err(TransportError::Dial { addr: self.connection.remote_address(), cause }.into())
        })
    }

    async fn answer(
        &self,
        authority: &Authority,
        config: &Transport,
        decide: impl FnOnce(&Applicant) -> Result<(), JoinError>,
    ) -> Result<NodeId, JoinError> {
        let (mut send, mut receive) =
            self.connection.accept_bi().await.map_err(TransportError::from)?;
        let judged = async {
            let (applicant, certificate_request) = self.hear(&mut receive).await?;
            decide(&applicant)?;
            let (node, days) = (applicant.node, config.certificate_days);
            Ok::<_, JoinError>((node, authority.issue(&certificate_request, node, days)?))
        };
        let judged = judged.await;
        let answer = match &judged {
            Ok((_, certificate)) => Answer::Welcome {
                certificate: certificate.clone(),
                authority: authority.certificate(),
                transport: config.clone(),
                cookie: authority.cookie(),
            },
            Err(cause @ JoinError::Connected { .. }) => Answer::NotNow(cause.to_string()),
            Err(cause) => Answer::Refused(cause.to_string()),
        };
        write_message(&mut send, &answer).await?;
        // The node closes when it has read the answer; closing first could lose it.
        let _ = self.connection.closed().await;
        judged.map(|(node, _)| node)
    }

    /// Who the node is, and its certificate request.
    async fn hear(
        &self,
        receive: &mut quinn::RecvStream,
    ) -> Result<(Applicant, Vec<u8>), JoinError> {
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
        let Hello { node, certificate_request, proof } = read_message(receive).await?;
        let is_member = match PeerName::shown(&self.connection) {
            None => false,
            Some(peer) if peer == PeerName::Node(node) => true,
            Some(peer) => return Err(JoinError::AnotherMember { peer, node }),
        };
        let statement = statement(&self.connection, node, &certificate_request)?;
        Ok((Applicant { node, is_member, statement, proof }, certificate_request))
    }
}

/// A socket for both families sees IPv4's loopback as an address of IPv6.
fn is_loopback(addr: SocketAddr) -> bool {
    #[cfg(test)]
    if turmoil::in_simulation() {
        return true;
    }
    addr.ip().to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Incoming;
    use crate::tests::{NODE, Pair, coordinator, loopback, token};

    /// Lets in whoever comes next, if it knows `token`.
    async fn admit(
        coordinator: &Endpoint,
        authority: &Authority,
        token: &Token,
    ) -> Result<NodeId, JoinError> {
        let Some(Incoming::Join(request)) = coordinator.accept().await else { panic!() };
        assert!(is_loopback(request.remote_addr()));
        let decide = |applicant: &Applicant| match applicant.knows(token) {
            true => Ok(()),
            false => Err(JoinError::NoToken),
        };
        request.admit(authority, &Transport::default(), decide).await
    }

    /// Says what it likes once it is connected.
    async fn knock(
        coordinator: &Endpoint,
        wire_version: u16,
        hello: impl FnOnce(&quinn::Connection) -> Hello,
    ) -> Answer {
        let stranger = Endpoint::bind(loopback(), None, &Transport::default()).unwrap();
        let crypto = tls::attacker(None, &[tls::JOIN]);
        let addr = coordinator.local_addr();
        let connecting = stranger.connect(addr, crypto, Purpose::Control, "coordinator.autoglm");
        let connection = connecting.await.unwrap();
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        send.write_all(&wire_version.to_le_bytes()).await.unwrap();
        write_message(&mut send, &hello(&connection)).await.unwrap();
        let answer = read_message(&mut receive).await.unwrap();
        stranger.close("joined").await;
        answer
    }

    #[tokio::test]
    async fn a_node_of_another_wire_version_is_refused_by_name() {
        let (coordinator, authority, dir) = coordinator(&Transport::default());
        let token = token(&authority, &dir);
        let (_, certificate_request) = certs::request().unwrap();
        let hello = |_: &_| Hello { node: NodeId(1), certificate_request, proof: None };
        let (answer, admitted) =
            tokio::join!(knock(&coordinator, 9, hello), admit(&coordinator, &authority, &token));
        assert!(admitted.unwrap_err().is_final());
        let Answer::Refused(reason) = answer else { panic!("{answer:?}") };
        assert!(reason.contains("wire version 9") && reason.contains("same release"), "{reason}");
    }

    #[tokio::test]
    async fn a_request_without_a_certificate_request_is_refused() {
        let (coordinator, authority, dir) = coordinator(&Transport::default());
        let token = token(&authority, &dir);
        let hello = |connection: &_| {
            let certificate_request = vec![0x30; 1000];
            let statement = statement(connection, NodeId(1), &certificate_request).unwrap();
            let proof = Some(token.prove(&statement));
            Hello { node: NodeId(1), certificate_request, proof }
        };
        let asking = knock(&coordinator, WIRE_VERSION, hello);
        let (answer, admitted) = tokio::join!(asking, admit(&coordinator, &authority, &token));
        assert!(admitted.is_err());
        assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
    }

    /// Goal: a proof lets in its maker only. Method: none at all, one by another secret, and good
    /// ones for another node, for another key and of another TLS session.
    #[tokio::test]
    async fn only_who_knows_the_token_joins() {
        let (coordinator, authority, dir) = coordinator(&Transport::default());
        let token = token(&authority, &dir);
        let other = tempfile::tempdir().unwrap();
        let other = Token::load_or_create(&other.path().join("t"), &authority).unwrap();
        let (_, certificate_request) = certs::request().unwrap();
        let (_, other_request) = certs::request().unwrap();
        let (node, key) = (NodeId(1), &certificate_request);
        type Forge<'a> = Box<dyn FnOnce(&quinn::Connection) -> Option<Proof> + 'a>;
        let of = |connection: &_, node, key: &[u8]| statement(connection, node, key).unwrap();
        let (token, other) = (&token, &other);
        let mut earlier = None;
        let forged: [(bool, Forge<'_>); 6] = [
            (false, Box::new(|_| None)),
            (false, Box::new(|it| Some(other.prove(&of(it, node, key))))),
            (false, Box::new(|it| Some(token.prove(&of(it, NodeId(2), key))))),
            (false, Box::new(|it| Some(token.prove(&of(it, node, &other_request))))),
            (true, Box::new(|it| Some(token.prove(&of(it, node, key))))),
            // What the last one said, heard and said again.
            (false, Box::new(|_| None)),
        ];
        for (number, (may, forge)) in forged.into_iter().enumerate() {
            let hello = |connection: &_| {
                let proof = if number == 5 { earlier.take() } else { forge(connection) };
                if may {
                    earlier = Some(token.prove(&of(connection, node, key)));
                }
                Hello { node, certificate_request: certificate_request.clone(), proof }
            };
            let asking = knock(&coordinator, WIRE_VERSION, hello);
            let (answer, admitted) = tokio::join!(asking, admit(&coordinator, &authority, token));
            match answer {
                Answer::Welcome { .. } => assert!(may && admitted.unwrap() == node, "{number}"),
                Answer::Refused(said) => assert!(!may && said.contains("--token-file"), "{said}"),
                Answer::NotNow(said) => panic!("{said}"),
            }
        }
    }

    /// The secret of a token isn't proven to whoever listens on the coordinator's port.
    #[tokio::test]
    async fn a_node_tells_another_coordinator_nothing() {
        let (coordinator, _authority, _dir) = coordinator(&Transport::default());
        let elsewhere = tempfile::tempdir().unwrap();
        let other = Authority::load_or_create(elsewhere.path()).unwrap();
        let token = token(&other, &elsewhere);
        let config = Transport::default();
        let error = join(coordinator.local_addr(), NODE, &token, &config).await.unwrap_err();
        assert!(!error.is_final(), "the right one may come");
        assert!(error.to_string().contains("of another coordinator"), "{error}");
        let nobody = tokio::time::timeout(Duration::from_millis(100), coordinator.accept()).await;
        assert!(nobody.is_err(), "{nobody:?}");
    }

    #[tokio::test]
    async fn a_member_renews_its_own_certificate_and_no_other() {
        let pair = Pair::new(&Transport::default()).await;
        let (identity, config) = (pair.node.identity().unwrap(), Transport::default());
        for (node, may) in [(NODE, true), (NodeId(7), false)] {
            let renewing = renew(pair.coordinator.local_addr(), node, &identity, &config);
            let answering = async {
                let Some(Incoming::Join(request)) = pair.coordinator.accept().await else {
                    panic!()
                };
                let decide = |applicant: &Applicant| match applicant.is_member {
                    true => Ok(()),
                    false => Err(JoinError::NoToken),
                };
                request.admit(&pair.authority, &config, decide).await
            };
            let (renewed, admitted) = tokio::join!(renewing, answering);
            assert_eq!((renewed.is_ok(), admitted.is_ok()), (may, may), "{renewed:?}");
            if let Err(error) = renewed {
                assert!(error.to_string().contains("may not have the certificate of"), "{error}");
            }
        }
    }

    #[tokio::test]
    async fn a_node_that_is_refused_for_now_may_ask_again() {
        let (coordinator, authority, dir) = coordinator(&Transport::default());
        let (token, config) = (token(&authority, &dir), Transport::default());
        let answering = async {
            let Some(Incoming::Join(request)) = coordinator.accept().await else { panic!() };
            request.admit(&authority, &config, |_| Err(JoinError::Connected { node: NODE })).await
        };
        let joining = join(coordinator.local_addr(), NODE, &token, &config);
        let (joined, admitted) = tokio::join!(joining, answering);
        assert!(!admitted.unwrap_err().is_final());
        let error = joined.unwrap_err();
        assert!(!error.is_final() && error.to_string().contains("connected already"), "{error}");
    }

    #[tokio::test]
    async fn nobody_joins_over_a_network() {
        let (_coordinator, authority, dir) = coordinator(&Transport::default());
        let (token, config) = (token(&authority, &dir), Transport::default());
        let addr = ([192, 0, 2, 1], 7000).into();
        let error = join(addr, NodeId(1), &token, &config).await.unwrap_err();
        assert!(error.is_final() && error.to_string().contains("another machine"), "{error}");
        assert!(is_loopback("[::ffff:127.0.0.1]:1".parse().unwrap()));
        assert!(!is_loopback("[::ffff:192.0.2.1]:1".parse().unwrap()));
    }

    #[tokio::test]
    async fn a_coordinator_that_does_not_answer_is_named() {
        let (_coordinator, authority, dir) = coordinator(&Transport::default());
        let token = token(&authority, &dir);
        let config = Transport { connect_timeout_ms: 300, ..Transport::default() };
        let silent = std::net::UdpSocket::bind(loopback()).unwrap();
        let addr = silent.local_addr().unwrap();
        let error = join(addr, NodeId(1), &token, &config).await.unwrap_err();
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
                let admitted = request.admit(&authority, &config, |_| panic!("nobody asks"));
                let error = admitted.await.unwrap_err();
                assert!(error.to_string().contains("too long to ask"), "{error}");
            } else {
                drop(request);
            }
            let ended = connection.closed().await;
            assert!(matches!(ended, quinn::ConnectionError::ApplicationClosed(_)), "{ended}");
        }
    }
}
