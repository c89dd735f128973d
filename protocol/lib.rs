//! What two processes must agree on: ids, configuration, batches, frames, messages.
//!
//! Pure: nothing here opens a file or a socket, reads a clock or starts a task. Everything that
//! arrives from another process is decoded here, with its lengths checked before memory is taken.

mod address;
mod batch;
mod carried;
pub mod codec;
pub mod config;
mod finding;
pub mod frame;
mod id;
mod masks;
pub mod message;
mod node;
pub mod pieces;
mod plan;
pub mod size;
mod speed;
mod timing;
mod trace;

pub use address::Address;
pub use batch::{Batch, Begin, Input, Logprobs, SamplingParams, Slice, SliceOutput, TokenLogprob};
pub use carried::{Carried, Hidden};
pub use config::{Config, ConfigError};
pub use finding::{Finding, Findings, Severity};
pub use frame::{Blame, Body, Failed, Frame, FrameError, HiddenRow, Sampled, Side, Step};
pub use id::{
    BlockId, Digest, Epoch, ModelId, NodeId, PipelineId, RequestId, SequenceId, SessionId, StageId,
    StageIndex, StepId, TokenId,
};
pub use masks::Masks;
pub use node::{AdapterReport, HeldParts, NodeReport};
pub use pieces::{Ask, Extent, FileManifest, Manifest, PieceId, PieceSet};
pub use plan::{LayerRange, Peer, StageEcho, StageLimits, StagePlan};
pub use speed::{LinkSpeed, Narrow, Speed};
pub use timing::StageTiming;
pub use trace::{SpanId, TraceContext, TraceId};

/// Version of everything that two processes say to each other: the newest that this one speaks. Two
/// that meet agree, for each of their connections, on the newest that both speak, and say there
/// nothing else. Tests hold what each version says to bytes that are kept.
pub const WIRE_VERSION: u16 = 5;

/// The oldest that it speaks, too: that of the release before, so that processes can be renewed one
/// after the other.
pub const OLDEST_WIRE_VERSION: u16 = 4;

/// Tokens in one block of the KV cache, in every cache of every stage.
pub const BLOCK_TOKENS: usize = 16;

#[cfg(test)]
mod corpus_tests;
