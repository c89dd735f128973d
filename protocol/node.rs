//! What a node says of itself.

use bincode::{Decode, Encode};
use std::net::SocketAddr;

use crate::{Digest, NodeId, SessionId, Speed};

/// What a node reports when it joins.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct NodeReport {
    /// Who reports.
    pub node: NodeId,
    /// In which session.
    pub session: SessionId,
    /// The machine's name, for people.
    pub hostname: String,
    /// The process on that machine.
    pub pid: u32,
    /// Where the node's neighbours reach it. An unspecified address stands for the one at which the
    /// coordinator sees it.
    pub data_addr: SocketAddr,
    /// Where it belongs, as its certificate says; whatever the node says is replaced.
    pub pool: String,
    /// What its operator says of it: keys and values.
    pub labels: Vec<(String, String)>,
    /// The adapters that it may use; at least one.
    pub adapters: Vec<AdapterReport>,
}

/// A GPU, or what stands in for one.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct AdapterReport {
    /// As the driver calls it.
    pub name: String,
    /// Driver and its version.
    pub driver: String,
    /// Bytes that stages may take together.
    pub memory_bytes: u64,
    /// The device class (design I1): adapter, driver, kernels, and the bits of a self-test. Of
    /// small layers, before any model is known; a stage's echo has that of its model's.
    pub fingerprint: Digest,
    /// How fast its kernels are.
    pub speed: Speed,
}
