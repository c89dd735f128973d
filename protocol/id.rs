//! Newtypes for everything that is counted or named across processes.

use std::fmt;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident($inner:ty), $format:literal;)*) => {$(
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord,
            Encode, Decode, Serialize, Deserialize,
        )]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    )*};
}

ids! {
    /// A worker process, drawn at random at its first start and kept in its data directory.
    NodeId(u64), "{:016x}";
    /// One stay of a node with its coordinator, from two connections to the end of either: news of
    /// an older one changes nothing.
    SessionId(u64), "{:016x}";
    /// A replica of the whole model: an ordered list of stages.
    PipelineId(u32), "{}";
    /// A stage's place in its pipeline, from 0.
    StageIndex(u32), "{}";
    /// One HTTP completion, from arrival to last token.
    RequestId(u64), "{}";
    /// One choice of a request: its tokens and its place in the KV cache.
    SequenceId(u64), "{}";
    /// One pass of one batch through a pipeline, ascending within an epoch.
    StepId(u64), "{}";
    /// An index into the vocabulary.
    TokenId(u32), "{}";
    /// A block of [`BLOCK_TOKENS`](crate::BLOCK_TOKENS) tokens in the KV cache of every stage.
    BlockId(u32), "{}";
}

impl StageIndex {
    /// As an index into a list of stages.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Which weights: a hash of configuration, tokenizer and a sample of every tensor.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct ModelId(pub [u8; 16]);

/// A BLAKE3 hash.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct Digest(pub [u8; 32]);

macro_rules! hex {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // Eight bytes tell two models of one cluster apart, and fit a log line.
                self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

hex!(ModelId);
hex!(Digest);

impl ModelId {
    /// The id of a model with this digest: its first half.
    pub fn of(digest: Digest) -> Self {
        let mut id = [0; 16];
        id.copy_from_slice(&digest.0[..16]);
        Self(id)
    }
}

/// The generation of a pipeline's plan. A frame of another epoch is dropped, so that a node that
/// comes back from the dead can't write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct Epoch {
    /// Counts the coordinator's starts; on disk before the first plan.
    pub start: u64,
    /// Counts the plans of this start.
    pub counter: u64,
}

/// A stage of one generation of a pipeline's plan: whatever is told, sent or kept of a stage is
/// this one's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct StageId {
    /// A number that a later pipeline may have again.
    pub pipeline: PipelineId,
    /// Of which generation of its plan.
    pub epoch: Epoch,
    /// Its place.
    pub stage: StageIndex,
}

impl StageId {
    /// The first stage of the same plan.
    pub fn first(self) -> Self {
        Self { stage: StageIndex(0), ..self }
    }

    /// The name under which the last of `num_stages` stages is told which tokens it may sample.
    pub fn beside_last(self, num_stages: u32) -> Self {
        Self { stage: StageIndex(num_stages.saturating_add(1)), ..self }
    }

    /// The stage after this one.
    pub fn next(self) -> Self {
        Self { stage: StageIndex(self.stage.0.saturating_add(1)), ..self }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.start, self.counter)
    }
}
