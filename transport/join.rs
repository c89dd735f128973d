//! Joining: a node asks for a certificate, the coordinator gives one or says why not.
//!
//! One bidirectional stream: [`Hello`] one way, [`Answer`] the other, each with its length before
//! it. Without tokens only loopback may join; the proof of a token belongs between the two, over
//! the exporter of the connection's TLS session.

use std::net::SocketAddr;
use std::time::Duration;

use bincode::{Decode, Encode};
use protocol::config::Transport;
use protocol::{NodeId, WIRE_VERSION};

use crate::certs::{self, Authority, Identity};
use crate::endpoint::Endpoint;
use crate::error::{JoinError, TransportError};
use crate::frames::{read_message, write_message};
use crate::tls;

/// What a joined node got.
#[derive(Debug)]
pub struct Joined {
    /// Who it is from now on.
    pub identity: Identity,
    /// How members of this cluster talk.
    pub transport: Transport,
    /// The shared secret of the control plane.
    pub cookie: String,
}

#[derive(Debug, Encode, Decode)]
struct Hello {
    // First, and never moved: a node of any version can be told that it is another.
    wire_version: u16,
    node: NodeId,
    certificate_request: Vec<u8>,
}

#[derive(Debug, Encode, Decode)]
enum Answer {
    Refused(String),
    Welcome { certificate: Vec<u8>, authority: Vec<u8>, transport: Transport, cookie: String },
}

/// Joins the coordinator at `coordinator`.
///
/// # Errors
/// When it can't be reached, or refuses.
pub async fn join(
    coordinator: SocketAddr,
    node: NodeId,
    config: &Transport,
) -> Result<Joined, JoinError> {
    let (key, certificate_request) = certs::request()?;
    let hello = Hello { wire_version: WIRE_VERSION, node, certificate_request };
    match ask(coordinator, &hello, config).await? {
        Answer::Refused(reason) => Err(JoinError::Refused(reason)),
        Answer::Welcome { certificate, authority, transport, cookie } => {
            let identity = Identity::new(certificate, key, authority);
            Ok(Joined { identity, transport, cookie })
        }
    }
}

async fn ask(
    coordinator: SocketAddr,
    hello: &Hello,
    config: &Transport,
) -> Result<Answer, JoinError> {
    if !coordinator.ip().is_loopback() {
        return Err(JoinError::NotLoopback { addr: coordinator });
    }
    let local = SocketAddr::new(coordinator.ip(), 0);
    let endpoint = Endpoint::bind(local, None, config)?;
    let connection = endpoint
        .connect(coordinator, tls::stranger()?, config.control_window_bytes, "coordinator.autoglm")
        .await?;
    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await.map_err(closed)?;
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
}

impl JoinRequest {
    pub(crate) fn new(connection: quinn::Connection) -> Self {
        Self { connection }
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
        let (mut send, mut receive) = self.connection.accept_bi().await.map_err(closed)?;
        let hello: Hello = read_message(&mut receive).await?;
        let judged = self.judge(&hello, authority, config);
        let answer = match &judged {
            Ok(certificate) => Answer::Welcome {
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
        judged.map(|_| hello.node)
    }

    fn judge(
        &self,
        hello: &Hello,
        authority: &Authority,
        config: &Transport,
    ) -> Result<Vec<u8>, JoinError> {
        if hello.wire_version != WIRE_VERSION {
            return Err(JoinError::OtherVersion { theirs: hello.wire_version });
        }
        let addr = self.connection.remote_address();
        if !addr.ip().is_loopback() {
            return Err(JoinError::NotLoopback { addr });
        }
        Ok(authority.issue(&hello.certificate_request, hello.node, config.certificate_days)?)
    }
}

fn closed(cause: quinn::ConnectionError) -> TransportError {
    TransportError::Closed(cause.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Incoming;

    #[tokio::test]
    async fn a_node_of_another_wire_version_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path()).unwrap();
        let config = Transport::default();
        let identity = authority.coordinator_identity(1).unwrap();
        let coordinator =
            Endpoint::bind(([127, 0, 0, 1], 0).into(), Some(identity), &config).unwrap();
        let addr = coordinator.local_addr();
        let (_, certificate_request) = certs::request().unwrap();
        let hello = Hello { wire_version: 9, node: NodeId(1), certificate_request };
        let asking = ask(addr, &hello, &config);
        let answering = async {
            let Some(Incoming::Join(request)) = coordinator.accept().await else { panic!() };
            request.admit(&authority, &config).await
        };
        let (answer, admitted) = tokio::join!(asking, answering);
        assert!(admitted.is_err());
        let Ok(Answer::Refused(reason)) = answer else { panic!("{answer:?}") };
        assert!(reason.contains("wire version 9") && reason.contains("same release"), "{reason}");
    }

    #[tokio::test]
    async fn nobody_joins_over_a_network_without_a_token() {
        let config = Transport::default();
        let error = join(([192, 0, 2, 1], 7000).into(), NodeId(1), &config).await.unwrap_err();
        assert!(error.is_final() && error.to_string().contains("token"), "{error}");
    }
}
