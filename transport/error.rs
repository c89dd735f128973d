//! What can go wrong between two processes.

use std::net::SocketAddr;

use protocol::config::ConfigError;
use protocol::{FrameError, NodeId, codec::CodecError};
use quinn::{ConnectionError, ReadError, ReadExactError, WriteError};

use crate::connection::{PeerName, reason};
use crate::spoken;

/// Why two processes don't reach or don't understand each other.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The address is taken, or isn't this machine's.
    #[error("can't listen on {addr} (UDP): {cause}; choose another with --cluster ADDR:PORT")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// What the system says.
        cause: std::io::Error,
    },
    /// A setting that can't work, from the file or from the coordinator.
    #[error(transparent)]
    Setting(#[from] ConfigError),
    /// Nobody answers, or not whom we expect.
    #[error("can't reach {addr}: {cause}")]
    Dial {
        /// The address.
        addr: SocketAddr,
        /// Why.
        cause: String,
    },
    /// Who answers is of another cluster, or we are in its eyes.
    #[error("{addr} is of another cluster: {cause}")]
    Stranger {
        /// The address.
        addr: SocketAddr,
        /// What TLS says.
        cause: String,
    },
    /// A certificate's time is over, or hasn't begun, by the clock of whoever looks at it.
    #[error(
        "the clocks of this machine and of {addr} differ (set both), or one of the two slept and \
         is about to get another certificate: {cause}"
    )]
    OtherTime {
        /// The address.
        addr: SocketAddr,
        /// What TLS says.
        cause: String,
    },
    /// The connection or stream has ended.
    #[error("the connection is closed: {0}")]
    Closed(String),
    /// The other side opened a stream and then said nothing for too long.
    #[error("the other side opened a stream and said nothing for {0} ms")]
    Silent(u64),
    /// The other side doesn't give what it was asked for.
    #[error("{0}")]
    NotGiven(String),
    /// What was asked for took too long.
    #[error("no answer within {0} ms (transport.piece_timeout_ms)")]
    Slow(u64),
    /// The other side breaks the protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The other side breaks the protocol.
    #[error(transparent)]
    Message(#[from] CodecError),
    /// A greeting longer than any can be.
    #[error("a greeting of {0} bytes is too long")]
    TooLong(usize),
    /// Certificates can't be read, made or trusted.
    #[error("certificates: {0}")]
    Certificates(String),
    /// The control plane can't be started.
    #[error("control plane: {0}")]
    Control(String),
}

impl TransportError {
    /// Whether the other side did what none of ours does: it is to be cut off. A frame of which the
    /// end is missing is what somebody leaves who drops a link.
    pub fn breaks_protocol(&self) -> bool {
        match self {
            Self::Frame(FrameError::Truncated { .. }) => false,
            Self::Frame(_) | Self::Message(_) | Self::TooLong(_) | Self::Silent(_) => true,
            _ => false,
        }
    }
}

/// Why a node can't join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The coordinator says no.
    #[error("the coordinator refuses this node: {0}")]
    Refused(String),
    /// The node speaks another wire version than the coordinator.
    #[error(
        "the node speaks wire version {theirs}, this coordinator {}: install on the node the \
         release that the coordinator has",
        spoken::range(*newest)
    )]
    OtherVersion {
        /// The node's.
        theirs: u16,
        /// The coordinator's newest.
        newest: u16,
    },
    /// The coordinator says no for now.
    #[error("the coordinator doesn't admit this node yet: {0}")]
    NotNow(String),
    /// It has a certificate, but asks for another's.
    #[error("{peer} may not have the certificate of node {node}")]
    AnotherMember {
        /// Whose certificate it has shown.
        peer: PeerName,
        /// Whose it asks for.
        node: NodeId,
    },
    /// The coordinator can't be reached, or breaks the protocol.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

impl JoinError {
    /// Whether trying again can't help.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Transport(_) | Self::NotNow(_))
    }
}

impl From<ConnectionError> for TransportError {
    fn from(cause: ConnectionError) -> Self {
        Self::Closed(reason(&cause))
    }
}

// quinn's own words for these leave out why the connection was lost.
impl From<WriteError> for TransportError {
    fn from(cause: WriteError) -> Self {
        match cause {
            WriteError::ConnectionLost(cause) => cause.into(),
            WriteError::Stopped(_) => Self::Closed("the other side reads this no more".into()),
            cause => Self::Closed(cause.to_string()),
        }
    }
}

impl From<ReadError> for TransportError {
    fn from(cause: ReadError) -> Self {
        match cause {
            ReadError::ConnectionLost(cause) => cause.into(),
            cause => Self::Closed(cause.to_string()),
        }
    }
}

impl From<ReadExactError> for TransportError {
    fn from(cause: ReadExactError) -> Self {
        match cause {
            ReadExactError::ReadError(cause) => cause.into(),
            ReadExactError::FinishedEarly(_) => Self::Closed("the stream ended early".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_drops_a_link_breaks_no_protocol() {
        let dropped = FrameError::Truncated { held: 1, promised: 2 };
        assert!(!TransportError::from(dropped).breaks_protocol());
        assert!(!TransportError::Closed("it has ended".into()).breaks_protocol());
        for breach in [
            FrameError::TooLong { bytes: 2, max: 1 }.into(),
            CodecError::Trailing(1).into(),
            TransportError::TooLong(1 << 20),
        ] {
            assert!(breach.breaks_protocol(), "{breach}");
        }
    }
}
