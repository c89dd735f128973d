//! Which positions a token attends to, where not all: the best of those up to its own, by the
//! scores that a small attention of its own gives them.

use bytemuck::{Pod, Zeroable};

use crate::attention;
use crate::error::GpuError;
use crate::gpu::{Caps, Gpu};
use crate::inputs::{BLOCK_TOKENS, Inputs, StepShape};
use crate::kernel::{Bound, Kernel, KernelSource, Pass};
use crate::kv_cache::{KvFormat, LatentCache};
use crate::mla::LANES_OF_A_ROW;
use crate::rotary::Rotary;
use crate::tensor::Tensor;

/// How positions are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexShape {
    /// Heads that score.
    pub num_heads: usize,
    /// Values of one, and of a position's key.
    pub head_dim: usize,
    /// The first of them that rotate.
    pub rope: usize,
    /// Most positions that are chosen.
    pub top_k: usize,
}

/// Scores of some tokens at a time, and what all tokens of a step have chosen.
pub struct Choice {
    /// For each token how many positions, and which, ascending. [max_tokens, 1 + top_k]
    pub chosen: Tensor,
    scores: Tensor,
    max_positions: usize,
    top_k: usize,
}

/// Most words of scores: with sequences of 128k, those of 128 tokens.
const MAX_SCORES: usize = 1 << 24;

impl Choice {
    /// Room for steps of up to `max_tokens` tokens.
    ///
    /// # Errors
    /// When the adapter has none.
    pub fn new(
        gpu: &Gpu,
        top_k: usize,
        (max_tokens, max_positions): (usize, usize),
    ) -> Result<Self, GpuError> {
        let rows = Self::rows(max_tokens, max_positions);
        Ok(Self {
            chosen: gpu.alloc_u32(max_tokens * (1 + top_k))?,
            scores: gpu.alloc_f32(rows * max_positions)?,
            max_positions,
            top_k,
        })
    }

    /// Bytes that [`new`](Self::new) takes.
    pub fn num_bytes(top_k: usize, (max_tokens, max_positions): (usize, usize)) -> u64 {
        let rows = Self::rows(max_tokens, max_positions);
        (max_tokens * (1 + top_k) + rows * max_positions) as u64 * 4
    }

    /// Tokens that are scored together.
    fn rows(max_tokens: usize, max_positions: usize) -> usize {
        (MAX_SCORES / max_positions.max(1)).clamp(1, max_tokens.max(1))
    }

    /// Words of a token in what is chosen.
    pub fn stride(top_k: usize) -> usize {
        1 + top_k
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct StoreParams {
    num_tokens: u32,
    tables_at: u32,
    num_heads: u32,
    head_vec4s: u32,
    rope_vec4s: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct ScoreParams {
    num_tokens: u32,
    tables_at: u32,
    first_token: u32,
    head_vec4s: u32,
    stride: u32,
    query_scale: f32,
    head_scale: f32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct ChooseParams {
    num_tokens: u32,
    first_token: u32,
    stride: u32,
}

/// What a layer chooses by; none of them vec4s.
#[derive(Clone, Copy)]
pub struct IndexTensors<'a> {
    /// Queries, which are rotated where they are. [num_tokens, num_heads, head_dim]
    pub queries: &'a Tensor,
    /// Keys before their norm. [num_tokens, head_dim]
    pub keys: &'a Tensor,
    /// Weight, then bias of that norm. [2, head_dim]
    pub norm: &'a Tensor,
    /// Of heads. [num_tokens, num_heads]
    pub weights: &'a Tensor,
}

/// The choice of a layer, bound to its cache of keys.
pub struct BoundIndex {
    shape: IndexShape,
    store: Bound,
    score: Bound,
    choose: Bound,
    max_positions: usize,
    rows_at_once: usize,
    max_tokens: usize,
}

impl BoundIndex {
    /// The key of each token to the cache; then each chooses among all up to its own.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(
        gpu: &Gpu,
        shape: IndexShape,
        (inputs, rotary, cache): (&Inputs, &Rotary, &LatentCache),
        tensors: IndexTensors<'_>,
        choice: &Choice,
    ) -> Result<Self, GpuError> {
        let IndexTensors { queries, keys, norm, weights } = tensors;
        let IndexShape { num_heads, head_dim, rope, top_k } = shape;
        assert_eq!((cache.width, choice.top_k), (head_dim, top_k), "it is the layer's");
        assert_eq!(norm.len(), 2 * head_dim, "a weight and a bias per value");
        assert!(rope <= head_dim && rotary.rotary_dim == rope, "what rotates has its angles");
        let limits = inputs.limits();
        assert!(limits.max_positions <= rotary.max_positions, "every position has its angles");
        assert!(limits.max_positions <= choice.max_positions, "every position has a score");
        let max_tokens = (queries.len() / (num_heads * head_dim))
            .min(keys.len() / head_dim)
            .min(weights.len() / num_heads)
            .min(choice.chosen.len() / (1 + top_k))
            .min(limits.max_tokens);
        let (caps, kv) = (gpu.caps(), cache.format);
        let store = Kernel::new(gpu, &store_source(caps, kv))?;
        let score = Kernel::new(gpu, &score_source(caps, shape, kv))?;
        let choose = Kernel::new(gpu, &choose_source(caps, shape))?;
        let inputs = &inputs.tensor;
        let all = [inputs, keys, norm, queries, &rotary.cos_sin, &cache.rows];
        Ok(Self {
            shape,
            store: store.bind(gpu, &all)?,
            score: score.bind(gpu, &[inputs, queries, weights, &choice.scores, &cache.rows])?,
            choose: choose.bind(gpu, &[inputs, &choice.scores, &choice.chosen])?,
            max_positions: choice.max_positions,
            rows_at_once: choice.scores.len() / choice.max_positions,
            max_tokens,
        })
    }

    /// Takes the tokens of a step.
    pub fn record(&self, pass: &mut Pass, step: StepShape) {
        assert!(step.num_tokens <= self.max_tokens, "a batch fits the tensors of its stage");
        let (num_tokens, tables_at) = (step.num_tokens as u32, step.tables_at());
        let IndexShape { num_heads, head_dim, rope, .. } = self.shape;
        let (num_heads, head_vec4s) = (num_heads as u32, (head_dim / 4) as u32);
        let rope_vec4s = (rope / 4) as u32;
        let params = StoreParams { num_tokens, tables_at, num_heads, head_vec4s, rope_vec4s };
        pass.dispatch(&self.store, &params, [num_tokens, 1 + num_heads, 1]);
        let stride = self.max_positions as u32;
        for first in (0..step.num_tokens).step_by(self.rows_at_once) {
            let rows = self.rows_at_once.min(step.num_tokens - first) as u32;
            let first_token = first as u32;
            let params = ScoreParams {
                num_tokens,
                tables_at,
                first_token,
                head_vec4s,
                stride,
                query_scale: (head_dim as f32).sqrt().recip(),
                head_scale: (num_heads as f32).sqrt().recip(),
            };
            // Of as many positions as the step's tables could hold.
            let positions = step.num_table_entries * BLOCK_TOKENS;
            let positions = positions.min(self.max_positions) as u32;
            pass.dispatch(&self.score, &params, [positions.div_ceil(WORKGROUP), rows, 1]);
            let params = ChooseParams { num_tokens, first_token, stride };
            pass.dispatch(&self.choose, &params, [rows, 1, 1]);
        }
    }
}

/// The positions with the highest scores, ascending; of equal ones the first.
pub fn reference(top_k: usize, scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // Stable; zeros of both signs are one.
    order.sort_by(|a, b| (scores[*b] + 0.0).total_cmp(&(scores[*a] + 0.0)));
    order.truncate(top_k);
    order.sort_unstable();
    order
}

const WORKGROUP: u32 = 64;

pub(crate) fn store_source(caps: Caps, kv: KvFormat) -> KernelSource {
    let (lanes, _) = attention::lanes(caps);
    let images = caps.images;
    let is_f16 = (kv == KvFormat::F16).into();
    let constants = [("LANES", lanes), ("BLOCK", BLOCK_TOKENS as u32), ("KV_F16", is_f16)];
    let template = [include_str!("index_store.wgsl"), LANES_OF_A_ROW].concat();
    KernelSource::declared::<StoreParams>("index_store", &template, images, &constants)
}

pub(crate) fn score_source(caps: Caps, shape: IndexShape, kv: KvFormat) -> KernelSource {
    let images = caps.images;
    let constants = [
        ("WORKGROUP", WORKGROUP),
        ("HEADS", shape.num_heads as u32),
        ("BLOCK", BLOCK_TOKENS as u32),
        ("KV_F16", (kv == KvFormat::F16).into()),
    ];
    let template = include_str!("index_score.wgsl");
    KernelSource::declared::<ScoreParams>("index_score", template, images, &constants)
}

pub(crate) fn choose_source(caps: Caps, shape: IndexShape) -> KernelSource {
    // A software driver compiles several subgroups that wait for each other in minutes.
    let lanes =
        if caps.is_cpu { attention::lanes(caps).0 } else { caps.max_workgroup_lanes.min(256) };
    let constants = [("LANES", lanes), ("TOP_K", shape.top_k as u32)];
    let template = include_str!("index_choose.wgsl");
    KernelSource::declared::<ChooseParams>("index_choose", template, false, &constants)
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
