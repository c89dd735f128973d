//! QUIC between processes: one endpoint each, mutual TLS, joining, framed streams, and the byte
//! stream on which ractor_cluster rides.
//!
//! The only crate that names quinn. It moves frames and knows nothing of what they mean.

#[cfg(test)]
mod adversaries;
mod certs;
mod connection;
mod control;
pub mod doctor;
mod endpoint;
mod error;
mod frames;
mod join;
mod knock;
mod pieces;
mod probe;
mod refusals;
mod remote;
mod renewal;
mod resolve;
mod settings;
#[cfg(test)]
mod simulation;
mod socket;
mod spoken;
#[cfg(test)]
mod tests;
pub mod ticks;
mod tls;
mod token;
mod trial;
mod welcome;

pub use certs::{Authority, Identity, NodeKey};
pub use connection::{Connection, PeerName};
pub use control::{ControlStream, NodeServerHandle, start_node_server};
pub use endpoint::{Endpoint, Incoming, Purpose};
pub use error::{JoinError, TransportError};
pub use frames::{FrameReceiver, FrameSender, Received, Sent, accept_frames, open_frames};
pub use join::{Applicant, Asking, JoinRequest, Joined, Joining, Verdict, renew};
pub use pieces::{PieceSource, ask, serve_pieces};
pub use refusals::Refusals;
pub use remote::Remote;
pub use resolve::resolve;
pub use token::{LOCAL_TOKEN, Token, TokenKey};
pub use trial::Trial;
