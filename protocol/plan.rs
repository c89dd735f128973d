//! What a stage is told to hold, and what it answers.

use std::net::SocketAddr;

use bincode::{Decode, Encode};

use crate::config::{KvCacheDtype, Quantize};
use crate::{Digest, ModelId, NodeId, StageId, StageIndex};

/// Consecutive layers: `first..end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct LayerRange {
    /// Counted from 0 over the whole model.
    pub first: u32,
    /// One past the last.
    pub end: u32,
}

impl LayerRange {
    /// Layers from the first to before the end.
    pub fn len(self) -> usize {
        self.end.saturating_sub(self.first) as usize
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Display for LayerRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}..{}", self.first, self.end)
    }
}

/// One stage of a pipeline, as the coordinator asks a node to load it.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct StagePlan {
    /// Of which pipeline and generation; the echo repeats it.
    pub id: StageId,
    /// How many stages its pipeline has: the first embeds, the last holds the head and samples.
    pub num_stages: u32,
    /// The decoder layers that the stage holds.
    pub layers: LayerRange,
    /// Which of the node's adapters.
    pub adapter: u32,
    /// A hash of its files: a node whose files at `model_path` are others fetches these.
    pub model: ModelId,
    /// Where the model's files are, as the coordinator sees them.
    pub model_path: String,
    /// What the stage's weights must hash to, part by part: embedding, layers, head.
    pub digests: Vec<Digest>,
    /// What its matrices are rounded to.
    pub quantize: Quantize,
    /// How its keys and values are stored.
    pub kv_cache_dtype: KvCacheDtype,
    /// Where its frames go: the next stage's node, or, from the last of several, the first's, which
    /// is told what was sampled. None where there is only one.
    pub next: Option<Peer>,
    /// The sizes to prepare for.
    pub limits: StageLimits,
    /// Bytes of the adapter that the stage may take.
    pub memory_bytes: u64,
}

impl StagePlan {
    /// Whether this stage looks up the embedding.
    pub fn embeds(&self) -> bool {
        self.id.stage.0 == 0
    }

    /// The name under which the first of several stages is told what the last one samples: that of
    /// the stage after it.
    pub fn behind_last(&self) -> StageId {
        StageId { stage: StageIndex(self.num_stages), ..self.id }
    }

    /// What else brings it frames, under which name: the first of several stages hears what is
    /// sampled, the last what may be.
    pub fn also_hears(&self) -> Option<StageId> {
        match self {
            _ if self.samples() => Some(self.id.beside_last(self.num_stages)),
            _ if self.embeds() => Some(self.behind_last()),
            _ => None,
        }
    }

    /// Whether this stage holds the head and samples.
    pub fn samples(&self) -> bool {
        self.id.stage.0.checked_add(1) == Some(self.num_stages)
    }
}

/// A node and where its data connections are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Peer {
    /// Whose certificate has to be shown there.
    pub node: NodeId,
    /// A UDP port, as others reach it.
    pub addr: SocketAddr,
}

/// The sizes that a stage prepares for; larger batches are refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct StageLimits {
    /// Tokens in one step.
    pub max_batched_tokens: u32,
    /// Sequences that the stage knows at once.
    pub max_num_seqs: u32,
    /// Tokens of one sequence, prompt and answer.
    pub max_model_len: u32,
    /// Blocks of KV cache that are wanted; the echo says how many there are.
    pub max_blocks: u32,
    /// Most probable tokens that may be returned with one.
    pub max_logprobs: u32,
}

/// What a stage holds, said before anything is routed to it.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct StageEcho {
    /// Who answers.
    pub node: NodeId,
    /// Of which pipeline and generation, as the plan said.
    pub id: StageId,
    /// The model's hash.
    pub model: ModelId,
    /// The layers that are loaded.
    pub layers: LayerRange,
    /// Width of the hidden state at both boundaries, in f32s.
    pub hidden_size: u32,
    /// Blocks of KV cache.
    pub num_blocks: u32,
    /// Bytes on the adapter: weights, KV cache, activations.
    pub memory_bytes: u64,
    /// The device class for layers of its model.
    pub fingerprint: Digest,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plans come over a network.
    #[test]
    fn a_stage_of_any_number_can_be_asked_what_it_does() {
        let numbers = [(0, 0), (0, 1), (0, u32::MAX), (u32::MAX, 0), (u32::MAX - 1, u32::MAX)];
        for (stage, num_stages) in numbers {
            let id = StageId { stage: StageIndex(stage), ..StageId::default() };
            let plan = StagePlan { id, num_stages, ..StagePlan::default() };
            assert_eq!(plan.samples(), u64::from(stage) + 1 == u64::from(num_stages));
            assert_eq!(plan.also_hears().is_some(), plan.samples() || plan.embeds());
        }
    }
}
