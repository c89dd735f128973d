//! Joining: a node asks for a certificate, the coordinator gives one or says why not.
//!
//! One bidirectional stream: the wire version that TLS agreed on and [`Hello`] one way, [`Answer`]
//! the other, each with its length before it. A node that is no member yet proves that it knows a
//! [`Token`], by an HMAC over what the connection's TLS session exports; a member shows its
//! certificate in that session. Whether that is enough is the coordinator's to decide.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use protocol::config::Transport;
use protocol::{NodeId, OLDEST_WIRE_VERSION};
use quinn::crypto::rustls::QuicClientConfig;
use tokio::sync::OwnedSemaphorePermit;

use crate::certs::{self, Authority, Identity, NodeKey};
use crate::connection::{PeerName, Shown, canonical};
use crate::endpoint::{Endpoint, Purpose, distrust};
use crate::error::{JoinError, TransportError};
use crate::frames::{read_message, write_message};
use crate::spoken::{self, JOIN};
use crate::token::{Proof, Token, TokenKey};
use crate::trial::{self, Passed};
use crate::welcome::{Answer, Hello, SettingsThen, Welcome};
use crate::{knock, settings, tls};

/// What a joined node got.
#[derive(Debug)]
pub struct Joined {
    /// Who it is from now on.
    pub identity: Identity,
    /// How members of this cluster talk. [`Endpoint::bind`] checks that it can work.
    pub transport: Transport,
    /// The shared secret of the control plane.
    pub cookie: String,
    /// Whether the coordinator can be reached from other machines, so that nodes must be, too.
    pub is_open: bool,
}

/// Who wants to join, and where.
#[derive(Clone, Copy, Debug)]
pub struct Joining<'a> {
    /// Where the coordinator listens.
    pub coordinator: SocketAddr,
    /// Who asks.
    pub node: NodeId,
    /// Certified, so that the key never leaves the node.
    pub key: &'a NodeKey,
    /// Where it means to belong; empty: wherever the token puts it.
    pub pool: &'a str,
    /// How long each step may take.
    pub config: &'a Transport,
    /// The newest wire version that the node speaks.
    pub newest: u16,
}

impl Joining<'_> {
    /// Joins by a token: the coordinator must be the one that `token` is of.
    ///
    /// # Errors
    /// When it can't be reached, or refuses.
    pub async fn by_token(&self, token: &Token) -> Result<Joined, JoinError> {
        self.ask(tls::stranger(token, self.newest)?, Some(token)).await
    }

    /// Joins as the member that the node is, by a certificate whose time isn't over.
    ///
    /// # Errors
    /// When the coordinator can't be reached, or refuses.
    pub async fn as_member(&self, identity: &Identity) -> Result<Joined, JoinError> {
        self.ask(tls::client(identity, &JOIN, self.newest)?, None).await
    }

    /// Proves a token, and learns whether the node would be let in by it.
    ///
    /// # Errors
    /// When it can't be reached, or would refuse.
    pub(crate) async fn on_trial(&self, token: &Token) -> Result<Passed, JoinError> {
        let asked = Asked { token: Some(token), is_trial: true };
        let (connection, answer) = self.exchange(tls::stranger(token, self.newest)?, asked).await?;
        match answer {
            Answer::Passed(unix_ms) => {
                let Line { endpoint, connection, send, receive } = connection;
                Ok(Passed { endpoint, connection, send, receive, unix_ms })
            }
            answer => Err(answer.into()),
        }
    }

    async fn ask(
        &self,
        crypto: QuicClientConfig,
        token: Option<&Token>,
    ) -> Result<Joined, JoinError> {
        let asked = Asked { token, is_trial: false };
        let (line, answer) = self.exchange(crypto, asked).await?;
        line.endpoint.close("joined").await;
        match answer {
            Answer::Welcome(welcome) => {
                let settings = Transport::hear(&welcome.transport).map_err(TransportError::from)?;
                Ok(self.joined(welcome.map(|_| settings)))
            }
            Answer::WelcomeThen(welcome) => Ok(self.joined(welcome.map(Transport::from))),
            answer => Err(answer.into()),
        }
    }

    fn joined(&self, welcome: Welcome<Transport>) -> Joined {
        let Welcome { certificate, authority, transport, cookie, is_open } = welcome;
        let identity = Identity::new(certificate, self.key.der(), authority);
        Joined { identity, transport, cookie, is_open }
    }

    async fn exchange(
        &self,
        crypto: QuicClientConfig,
        asked: Asked<'_>,
    ) -> Result<(Line, Answer), JoinError> {
        let Self { coordinator: addr, node, key, config, .. } = *self;
        let endpoint = Endpoint::speaking(self.newest, unspecified(addr), None, config)?;
        let name = PeerName::Coordinator.to_string();
        // What is measured on trial needs the windows of data.
        let purpose = if asked.is_trial { Purpose::Data } else { Purpose::Control };
        let timeout = Duration::from_millis(config.connect_timeout_ms);
        let connection = tokio::select! {
            connection = endpoint.connect(addr, crypto, purpose, &name) => connection?,
            () = knock::refused(addr, timeout) => {
                let cause = "connection refused: nobody listens there".into();
                return Err(TransportError::Dial { addr, cause }.into());
            }
        };
        // To a coordinator that agrees to nothing the oldest version is said, so that it says no.
        let wire_version = spoken::version(&JOIN, &spoken::agreed(&connection));
        let wire_version = wire_version.unwrap_or(OLDEST_WIRE_VERSION);
        let (pool, is_trial) = (self.pool.to_owned(), asked.is_trial);
        let certificate_request = key.request()?;
        let mut hello = Hello { node, pool, certificate_request, proof: None, is_trial };
        if let Some(token) = asked.token {
            hello.proof = Some(token.prove(&statement(&connection, &hello)?));
        }
        let exchange = async {
            let (mut send, mut receive) = connection.open_bi().await?;
            send.write_all(&wire_version.to_le_bytes()).await?;
            write_message(&mut send, &hello).await?;
            let answer = read_message(&mut receive).await?;
            Ok::<_, TransportError>((send, receive, answer))
        };
        let exchanged = tokio::time::timeout(timeout, exchange).await.map_err(|_| {
            TransportError::Dial { addr, cause: "it took too long to answer".into() }
        })?;
        // Whether it takes this node's certificate shows only now: see `Endpoint::dial`.
        let (send, receive, answer) = exchanged.map_err(|cause| {
            let ended = connection.close_reason();
            ended.and_then(|ended| distrust(addr, &ended)).unwrap_or(cause)
        })?;
        Ok((Line { endpoint, connection, send, receive }, answer))
    }
}

/// How a node asks.
struct Asked<'a> {
    token: Option<&'a Token>,
    is_trial: bool,
}

/// The connection over which it did.
struct Line {
    endpoint: Endpoint,
    connection: quinn::Connection,
    send: quinn::SendStream,
    receive: quinn::RecvStream,
}

/// Gets a member another certificate before its own expires.
///
/// # Errors
/// When the coordinator can't be reached, or refuses.
pub async fn renew(
    coordinator: SocketAddr,
    node: NodeId,
    identity: &Identity,
    (config, newest): (&Transport, u16),
) -> Result<Joined, JoinError> {
    let key = &NodeKey::of(identity);
    Joining { coordinator, node, key, pool: "", config, newest }.as_member(identity).await
}

/// Whence that address can be dialled, whichever it is.
fn unspecified(addr: SocketAddr) -> SocketAddr {
    let any = match addr {
        SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(if addr.ip().is_loopback() { addr.ip() } else { any }, 0)
}

/// What both ends of one TLS session, and nobody else, can put together of who asks for what.
fn statement(connection: &quinn::Connection, hello: &Hello) -> Result<Vec<u8>, TransportError> {
    let mut statement = vec![0; 32];
    connection
        .export_keying_material(&mut statement, EXPORTER_LABEL, &[])
        .map_err(|cause| TransportError::Certificates(format!("no exporter: {cause:?}")))?;
    statement.extend(hello.node.0.to_le_bytes());
    statement.extend((hello.pool.len() as u64).to_le_bytes());
    statement.extend(hello.pool.as_bytes());
    statement.extend(&hello.certificate_request);
    Ok(statement)
}

/// What binds a proof to the TLS session in which it is given.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-autoglm-join-1";

/// Who wants a certificate, and what speaks for it.
#[derive(Debug)]
pub struct Applicant {
    /// Who it says it is.
    pub node: NodeId,
    /// Where it asks from.
    pub addr: SocketAddr,
    /// Whether that is this machine.
    pub is_here: bool,
    /// Where it means to belong, if it says so.
    pub pool: Option<String>,
    /// The pool of the member that it has shown to be: this node, by a certificate of the cluster.
    pub member: Option<String>,
    /// The hash of the key that it has.
    pub key: Vec<u8>,
    /// Whether it only wants to know what would be answered: nothing may come of it.
    pub is_trial: bool,
    statement: Vec<u8>,
    proof: Option<Proof>,
}

impl Applicant {
    /// The name of the token that it says it knows.
    pub fn token(&self) -> Option<&str> {
        self.proof.as_ref().map(Proof::token)
    }

    /// Whether it knows the token of which this key is.
    pub fn knows(&self, key: &TokenKey) -> bool {
        self.proof.as_ref().is_some_and(|proof| key.verify(proof, &self.statement))
    }
}

/// What becomes of who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is a member, in this pool.
    Admitted {
        /// The token's, or what the applicant asked for.
        pool: String,
    },
    /// It is not: why.
    Refused(String),
    /// It may ask again: why.
    NotNow(String),
}

/// A node at the coordinator's door.
#[derive(Debug)]
pub struct JoinRequest {
    connection: quinn::Connection,
    // The wire version that was agreed on, and the newest that is spoken here.
    spoken: (u16, u16),
    // Among those that may ask at once.
    _place: OwnedSemaphorePermit,
}

/// A node that has said what it wants, and waits for an answer.
#[derive(Debug)]
pub struct Asking {
    /// Who, and what was proven.
    pub applicant: Applicant,
    request: JoinRequest,
    send: quinn::SendStream,
    receive: quinn::RecvStream,
    certificate_request: Vec<u8>,
}

impl JoinRequest {
    pub(crate) fn new(
        connection: quinn::Connection,
        spoken: (u16, u16),
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self { connection, spoken, _place: place }
    }

    /// Who asks.
    pub fn remote_addr(&self) -> SocketAddr {
        canonical(self.connection.remote_address())
    }

    /// Hears what it wants, and what speaks for it.
    ///
    /// # Errors
    /// When it says nothing that can be answered; it has been told so, where it can be.
    pub async fn hear(self, config: &Transport) -> Result<Asking, JoinError> {
        let (addr, connection) = (self.remote_addr(), self.connection.clone());
        let opened = async { Ok(connection.accept_bi().await.map_err(TransportError::from)?) };
        let (mut send, mut receive) = within(config, addr, opened).await?;
        match within(config, addr, listen(&connection, &mut receive, self.spoken)).await {
            Ok((applicant, certificate_request)) => {
                Ok(Asking { applicant, request: self, send, receive, certificate_request })
            }
            Err(cause) => {
                let told = async {
                    write_message(&mut send, &Answer::Refused(cause.to_string())).await?;
                    // It closes when it has read that; closing first could lose it.
                    connection.closed().await;
                    Ok(())
                };
                // Whether it listens or not: what was wrong with it is known.
                let _ = within(config, addr, told).await;
                Err(cause)
            }
        }
    }
}

impl Asking {
    /// Tells the node what becomes of it, and gives a member its certificate.
    ///
    /// # Errors
    /// When there is none for what it asks, or it doesn't hear this.
    pub async fn answer(
        self,
        authority: &Authority,
        config: &Transport,
        is_open: bool,
        verdict: &Verdict,
    ) -> Result<(), JoinError> {
        let Self { applicant, request, mut send, mut receive, certificate_request } = self;
        let issue = |pool| {
            let (node, days) = (applicant.node, config.certificate_days);
            authority.issue(&certificate_request, node, pool, days)
        };
        let (answer, answered) = match verdict {
            Verdict::Refused(reason) => (Answer::Refused(reason.clone()), Ok(())),
            Verdict::NotNow(reason) => (Answer::NotNow(reason.clone()), Ok(())),
            Verdict::Admitted { .. } if applicant.is_trial => {
                settings::welcome(&request.connection, Purpose::Data, config);
                (Answer::Passed(trial::unix_ms()), Ok(()))
            }
            Verdict::Admitted { pool } => match issue(pool) {
                Ok(certificate) => {
                    let (authority, cookie) = (authority.certificate(), authority.cookie());
                    let transport = config;
                    let welcome = Welcome { certificate, authority, transport, cookie, is_open };
                    let answer = match request.spoken.0 {
                        ..5 => Answer::WelcomeThen(welcome.map(SettingsThen::from)),
                        _ => Answer::Welcome(welcome.map(Transport::told)),
                    };
                    (answer, Ok(()))
                }
                Err(cause) => (Answer::Refused(cause.to_string()), Err(cause)),
            },
        };
        let told = async {
            write_message(&mut send, &answer).await?;
            if matches!(answer, Answer::Passed(_)) {
                trial::serve(&mut send, &mut receive).await?;
            }
            // The node closes when it has read the answer; closing first could lose it.
            let _ = request.connection.closed().await;
            Ok(answered?)
        };
        within(config, applicant.addr, told).await
    }
}

/// Whoever dawdles gets no connection to keep.
async fn within<T>(
    config: &Transport,
    addr: SocketAddr,
    deed: impl Future<Output = Result<T, JoinError>>,
) -> Result<T, JoinError> {
    let timeout = Duration::from_millis(config.connect_timeout_ms);
    tokio::time::timeout(timeout, deed).await.unwrap_or_else(|_| {
        Err(TransportError::Dial { addr, cause: "it took too long to ask".into() }.into())
    })
}

/// Who the node is, and its certificate request.
async fn listen(
    connection: &quinn::Connection,
    receive: &mut quinn::RecvStream,
    (agreed, newest): (u16, u16),
) -> Result<(Applicant, Vec<u8>), JoinError> {
    // Before anything else: what follows may look different in another version.
    let mut version = [0; 2];
    receive.read_exact(&mut version).await.map_err(TransportError::from)?;
    let hello: Hello = match u16::from_le_bytes(version) {
        theirs if theirs == agreed => read_message(receive).await?,
        theirs => return Err(JoinError::OtherVersion { theirs, newest }),
    };
    let member = match Shown::on(connection) {
        None => None,
        Some(Shown { peer, pool: Some(pool) }) if peer == PeerName::Node(hello.node) => Some(pool),
        Some(Shown { peer, .. }) => {
            return Err(JoinError::AnotherMember { peer, node: hello.node });
        }
    };
    let key = certs::requested_key(&hello.certificate_request)?;
    let statement = statement(connection, &hello)?;
    let Hello { node, pool, certificate_request, proof, is_trial } = hello;
    let pool = Some(pool).filter(|pool| !pool.is_empty());
    let addr = canonical(connection.remote_address());
    // No other machine's packets get here with an address of ours.
    let own = connection.local_ip().map(|ip| ip.to_canonical());
    let is_here = addr.ip().is_loopback() || own == Some(addr.ip());
    let applicant =
        Applicant { node, addr, is_here, pool, member, key, is_trial, statement, proof };
    Ok((applicant, certificate_request))
}

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;
