//! Actor messages that cross processes: small, rare, and never tensors.
//!
//! Flow uses casts; a question carries a reply port and is always asked with a timeout.

use std::fmt;

use ractor::{BytesConvertable, RpcReplyPort};
use ractor_cluster::RactorClusterMessage;

use crate::codec::{self, CodecError};
use crate::node::MAX_MEMORY_BYTES;
use crate::{
    Blame, Digest, Epoch, LinkSpeed, ModelId, NodeId, NodeReport, Peer, PipelineId, SessionId,
    StageEcho, StageId, StagePlan,
};
use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode};

/// The process group that the coordinator's remote face joins.
pub const COORDINATOR_GROUP: &str = "autoglm.coordinator";

/// The process group that every node's actor joins.
pub const NODE_GROUP: &str = "autoglm.nodes";

/// From the coordinator to a node.
#[derive(Debug, RactorClusterMessage)]
pub enum NodeMsg {
    /// Load this stage, then cast [`CoordinatorMsg::Ready`] or [`CoordinatorMsg::Failed`].
    Load(Wire<StagePlan>),
    /// Keep the weights of this stage ready, and prove its kernels, as long as you hold no other.
    Warm(Wire<StagePlan>),
    /// Ask these nodes for weights, too. Said before a stage is.
    Sources(Wire<Sources>),
    /// Measure the ways to these nodes, then cast [`CoordinatorMsg::Ways`].
    Measure(Wire<Measure>),
    /// Drop every stage of this pipeline up to this epoch.
    Unload(Wire<Unload>),
    /// The node holds nothing any more, and nothing will be placed on it: it may end.
    Release(Wire<()>),
    /// These nodes are members no more, whatever certificates they have: have nothing to do with
    /// them. All that there are.
    Revoked(Wire<Vec<NodeId>>),
    /// Who are you, and what have you got? Asked when the node's actor appears.
    #[rpc]
    Report(Wire<()>, RpcReplyPort<Wire<NodeReport>>),
}

impl NodeMsg {
    /// The wire version since which it is said: whoever speaks an older one is not told.
    pub fn since(&self) -> u16 {
        match self {
            Self::Load(_)
            | Self::Warm(_)
            | Self::Unload(_)
            | Self::Release(_)
            | Self::Report(..) => 4,
            Self::Sources(_) | Self::Revoked(_) | Self::Measure(_) => 5,
        }
    }
}

/// From a node to the coordinator.
#[derive(Debug, RactorClusterMessage)]
pub enum CoordinatorMsg {
    /// A stage is loaded and holds this.
    Ready(Wire<StageEcho>),
    /// A stage can't be loaded, or is lost.
    Failed(Wire<StageFailed>),
    /// How far loading has come.
    Progress(Wire<LoadProgress>),
    /// How far fetching weights has come, for a stage or to keep them ready.
    Fetching(Wire<FetchProgress>),
    /// What ways to other nodes are like.
    Ways(Wire<Ways>),
    /// The node wants to end: what it holds is to go elsewhere. It waits for
    /// [`NodeMsg::Release`].
    Drain(Wire<Drain>),
    /// The node is about to end on purpose.
    Leaving(Wire<Leaving>),
}

impl CoordinatorMsg {
    /// The wire version since which it is said: whoever speaks an older one is not told.
    pub fn since(&self) -> u16 {
        match self {
            Self::Ready(_)
            | Self::Failed(_)
            | Self::Progress(_)
            | Self::Drain(_)
            | Self::Leaving(_) => 4,
            Self::Fetching(_) | Self::Ways(_) => 5,
        }
    }
}

/// Of what files a node can load a model: its own, if they are the same, or pieces that others
/// have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Sources {
    /// Which model.
    pub model: ModelId,
    /// What its configuration hashes to, of which a plan's digests say nothing.
    pub config: Digest,
    /// Whoever is told is not among them; which pieces each has, it says itself.
    pub nodes: Vec<Peer>,
}

/// Ways to measure.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Measure {
    /// To whom.
    pub nodes: Vec<Peer>,
    /// With so many bytes each.
    pub num_bytes: u32,
    /// Milliseconds that each may take.
    pub timeout_ms: u64,
}

/// What a node has measured.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Ways {
    /// Where the ways begin.
    pub node: NodeId,
    /// News of an older session than the node's newest changes nothing.
    pub session: SessionId,
    /// To whom, and how it is.
    pub ways: Vec<(NodeId, LinkSpeed)>,
}

/// How much of the weights that a node needs has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct FetchProgress {
    /// Reports of several nodes of one model are told apart by it.
    pub node: NodeId,
    /// News of an older session than the node's newest changes nothing.
    pub session: SessionId,
    /// Whether they are to be kept ready; else a stage waits for them.
    pub is_warming: bool,
    /// Bytes that are here.
    pub num_bytes: u64,
    /// Bytes that are needed; 0: nothing is fetched any more.
    pub of_bytes: u64,
    /// Whom the rest is asked of.
    pub num_sources: u32,
}

/// Who wants to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Drain {
    /// The node that says so.
    pub node: NodeId,
    /// The session that is to end.
    pub session: SessionId,
}

/// Who is about to end.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Leaving {
    /// The node that says so.
    pub node: NodeId,
    /// The session that ends.
    pub session: SessionId,
    /// One sentence for a person.
    pub cause: String,
}

/// Which stages to drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Unload {
    /// Stages of others stay.
    pub pipeline: PipelineId,
    /// Of this generation and older.
    pub epoch: Epoch,
}

/// A stage that can't be loaded, or is lost.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StageFailed {
    /// Who says so.
    pub node: NodeId,
    /// With its generation: what is said of an old one is dropped.
    pub id: StageId,
    /// One sentence for a person.
    pub cause: String,
    /// Whose fault it is.
    pub blame: Blame,
}

/// How far a stage's loading has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode)]
pub struct LoadProgress {
    /// With its generation: what is said of an old one is dropped.
    pub id: StageId,
    /// What is done.
    pub loading: Loading,
}

impl Decode<()> for LoadProgress {
    fn decode<D: Decoder<Context = ()>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Ok(Self { id: Decode::decode(decoder)?, loading: Loading::decode(decoder)? })
    }
}

/// What is done of a stage's loading: what the node has no files of is fetched, its files are
/// compared with the coordinator's, its weights go to the adapter, its kernels are compiled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loading {
    /// Bytes of the files that were compared.
    pub checked_bytes: u64,
    /// Bytes on the adapter.
    pub loaded_bytes: u64,
    /// Bytes that the stage will have on its adapter.
    pub total_bytes: u64,
    /// Kernels that are compiled.
    pub num_compiled: u32,
    /// Kernels in all; 0 before the weights are there.
    pub num_kernels: u32,
    /// Bytes of the files that have come from other members of the cluster.
    pub fetched_bytes: u64,
    /// Bytes that have to; 0 while nothing is fetched.
    pub fetch_bytes: u64,
}

impl Loading {
    /// It, with no more bytes of each kind than any adapter has: it came over a network.
    pub fn bounded(self) -> Self {
        let bytes = |num: u64| num.min(MAX_MEMORY_BYTES);
        Self {
            checked_bytes: bytes(self.checked_bytes),
            loaded_bytes: bytes(self.loaded_bytes),
            total_bytes: bytes(self.total_bytes),
            fetched_bytes: bytes(self.fetched_bytes),
            fetch_bytes: bytes(self.fetch_bytes),
            ..self
        }
    }
}

/// What is fetched comes last, and only while something is: without it the message is what it
/// always was.
impl Encode for Loading {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        let Self { checked_bytes, loaded_bytes, total_bytes, num_compiled, num_kernels, .. } = self;
        let always = (checked_bytes, loaded_bytes, total_bytes, num_compiled, num_kernels);
        always.encode(encoder)?;
        match self.fetch_bytes {
            0 => Ok(()),
            _ => (self.fetched_bytes, self.fetch_bytes).encode(encoder),
        }
    }
}

impl Decode<()> for Loading {
    fn decode<D: Decoder<Context = ()>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let (checked_bytes, loaded_bytes, total_bytes, num_compiled, num_kernels) =
            Decode::decode(decoder)?;
        let always = Self {
            checked_bytes,
            loaded_bytes,
            total_bytes,
            num_compiled,
            num_kernels,
            ..Self::default()
        };
        let (fetched_bytes, fetch_bytes) = codec::added(decoder)?;
        Ok(Self { fetched_bytes, fetch_bytes, ..always })
    }
}

impl fmt::Display for Loading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: u64| bytes.div_ceil(1_000_000);
        let Self { fetched_bytes, fetch_bytes, checked_bytes, loaded_bytes, .. } = *self;
        let Self { total_bytes, num_compiled, num_kernels, .. } = *self;
        if fetch_bytes > 0 {
            write!(f, "{} of {} MB fetched", mb(fetched_bytes), mb(fetch_bytes))
        } else if num_kernels > 0 {
            write!(f, "{num_compiled} of {num_kernels} kernels compiled, {} MB", mb(loaded_bytes))
        } else if loaded_bytes > 0 {
            write!(f, "{} of {} MB loaded", mb(loaded_bytes), mb(total_bytes))
        } else {
            write!(f, "{} of {} MB compared", mb(checked_bytes), mb(total_bytes))
        }
    }
}

/// A value on its way through [`codec`]. What arrives malformed is an `Err` in the receiver's
/// hands, never a panic.
#[derive(Clone, Debug, PartialEq)]
pub struct Wire<T>(pub Result<T, CodecError>);

impl<T> From<T> for Wire<T> {
    fn from(value: T) -> Self {
        Self(Ok(value))
    }
}

impl<T: Encode + Decode<()>> BytesConvertable for Wire<T> {
    fn into_bytes(self) -> Vec<u8> {
        // A value that never arrived has no bytes; none is ever sent on.
        self.0.map_or_else(|_| Vec::new(), |value| codec::encode(&value))
    }

    fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(codec::decode(&bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fetched_is_said_while_something_is() {
        let id = StageId::default();
        for (fetched_bytes, fetch_bytes) in [(0, 0), (0, 9_000_000), (4_000_000, 9_000_000)] {
            let loading = Loading { fetched_bytes, fetch_bytes, ..Loading::default() };
            let progress = LoadProgress { id, loading };
            assert_eq!(codec::decode::<LoadProgress>(&codec::encode(&progress)), Ok(progress));
            let says = loading.to_string().ends_with("of 9 MB fetched");
            assert_eq!(says, fetch_bytes > 0, "{loading}");
        }
    }
}
