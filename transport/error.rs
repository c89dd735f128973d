//! What can go wrong between two processes.

use std::net::SocketAddr;

use protocol::{FrameError, WIRE_VERSION, codec::CodecError};

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
    /// Nobody answers, or not whom we expect.
    #[error("can't reach {addr}: {cause}")]
    Dial {
        /// The address.
        addr: SocketAddr,
        /// Why.
        cause: String,
    },
    /// The connection or stream has ended.
    #[error("the connection is closed: {0}")]
    Closed(String),
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

/// Why a node can't join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The coordinator says no.
    #[error("the coordinator refuses this node: {0}")]
    Refused(String),
    /// The node speaks another wire version than the coordinator.
    #[error(
        "the node speaks wire version {theirs}, this coordinator {WIRE_VERSION}: install the same \
         release on both"
    )]
    OtherVersion {
        /// The node's.
        theirs: u16,
    },
    /// Not loopback.
    #[error(
        "{addr} is on another machine: joining over a network needs a token, which this release \
         can't check; run the coordinator and its nodes on one machine"
    )]
    NotLoopback {
        /// The other side's address.
        addr: SocketAddr,
    },
    /// The coordinator can't be reached, or breaks the protocol.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

impl JoinError {
    /// Whether trying again can't help.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Transport(_))
    }
}
