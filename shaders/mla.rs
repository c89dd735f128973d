//! Latent attention over the paged cache, for prefill and decode alike.
//!
//! Keys and values are never made: a query has been multiplied with what makes keys of latent rows,
//! and what a head attends to is a sum of latent rows, which becomes a value later
//! ([`crate::matmul_stacked::Rows::Heads`]).

use bytemuck::{Pod, Zeroable};

use crate::attention;
use crate::attention_beside::{Beside, BoundBeside, Parts};
use crate::attention_variant::{PARTS_OF_STATE, STORE};
use crate::error::GpuError;
use crate::gpu::{Caps, Gpu};
use crate::index::Choice;
use crate::inputs::{BLOCK_TOKENS, Inputs, StepShape};
use crate::kernel::{Bound, Kernel, KernelSource, Pass};
use crate::kv_cache::{KvFormat, LatentCache};
use crate::rotary::Rotary;
use crate::tensor::Tensor;

/// The shape of latent attention, in values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentShape {
    /// Of queries: all share the latent row.
    pub num_heads: usize,
    /// Of a latent row.
    pub lora: usize,
    /// Of a query, what doesn't rotate.
    pub nope: usize,
    /// Of a query and of the key in the cache, what rotates.
    pub rope: usize,
    /// The most positions that a token attends to, where it has chosen them.
    pub chosen: Option<usize>,
}

impl LatentShape {
    /// Values of a token in the cache, and of a query that is multiplied with it.
    pub fn width(&self) -> usize {
        self.lora + self.rope
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct StoreParams {
    num_tokens: u32,
    tables_at: u32,
    num_heads: u32,
    lora_vec4s: u32,
    nope_vec4s: u32,
    rope_vec4s: u32,
    eps: f32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct AttendParams {
    num_tokens: u32,
    tables_at: u32,
    num_heads: u32,
    scale: f32,
    first_token: u32,
    num_partitions: u32,
}

/// What a layer's latent attention works on.
#[derive(Clone, Copy)]
pub struct LatentTensors<'a> {
    /// The latent row before its norm and the key before it rotates. [num_tokens, width]
    pub latent: &'a Tensor,
    /// Of latent rows: a weight per value, not vec4s, and what is added to the mean of squares.
    pub norm: (&'a Tensor, f32),
    /// What rotates in it is still to be rotated. [num_tokens, num_heads, nope + rope], vec4s
    pub head_queries: &'a Tensor,
    /// What doesn't rotate in it is there. [num_tokens, num_heads, width], vec4s
    pub queries: &'a Tensor,
    /// What heads attend to. [num_tokens, num_heads, lora], vec4s
    pub out: &'a Tensor,
    /// The positions that tokens have chosen ([`crate::index`]), where they have.
    pub chosen: Option<&'a Tensor>,
}

/// Latent attention of a layer, bound to its cache.
pub struct BoundLatentAttention {
    shape: LatentShape,
    store: (Bound, StoreParams),
    attend: (Bound, AttendParams),
    beside: Option<BoundBeside>,
    max_tokens: usize,
}

impl BoundLatentAttention {
    /// The row of each token to the cache; then each attends to all rows of its sequence up to its
    /// own.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(
        gpu: &Gpu,
        shape: LatentShape,
        (inputs, rotary, cache): (&Inputs, &Rotary, &LatentCache),
        tensors: LatentTensors<'_>,
        beside: Option<&Beside>,
    ) -> Result<Self, GpuError> {
        let LatentTensors { latent, norm: (norm, eps), head_queries, queries, out, chosen } =
            tensors;
        let LatentShape { num_heads, lora, nope, rope, .. } = shape;
        assert_eq!(chosen.is_some(), shape.chosen.is_some(), "who chooses has chosen");
        assert_eq!(cache.width, shape.width(), "a row is what is cached");
        assert_eq!(norm.len(), lora, "a weight per value");
        assert_eq!(rotary.rotary_dim, rope, "what rotates has its angles");
        assert!(
            inputs.limits().max_positions <= rotary.max_positions,
            "every position has its angles"
        );
        let max_tokens = (latent.len() / shape.width())
            .min(head_queries.len() / (num_heads * (nope + rope)))
            .min(queries.len() / (num_heads * shape.width()))
            .min(out.len() / (num_heads * lora))
            .min(inputs.limits().max_tokens);
        let store = Kernel::new(gpu, &store_source(gpu.caps(), cache.format))?;
        let attend = Kernel::new(gpu, &attend_source(gpu.caps(), shape, cache.format))?;
        let all =
            [&inputs.tensor, latent, norm, &rotary.cos_sin, head_queries, queries, &cache.rows];
        let num_heads = num_heads as u32;
        let store_params = StoreParams {
            num_tokens: 0,
            tables_at: 0,
            num_heads,
            lora_vec4s: (lora / 4) as u32,
            nope_vec4s: (nope / 4) as u32,
            rope_vec4s: (rope / 4) as u32,
            eps,
        };
        // By the head's own width, before its query was multiplied.
        let scale = ((nope + rope) as f32).sqrt().recip();
        let attend_params = AttendParams {
            num_tokens: 0,
            tables_at: 0,
            num_heads,
            scale,
            first_token: 0,
            num_partitions: 0,
        };
        let attends = |out: &Tensor| {
            let tensors = [&inputs.tensor, queries, &cache.rows, out].into_iter();
            attend.bind(gpu, &tensors.chain(chosen).collect::<Vec<_>>())
        };
        let beside = beside.map(|it| it.bind(gpu, attends, (inputs, out, chosen)));
        Ok(Self {
            shape,
            store: (store.bind(gpu, &all)?, store_params),
            attend: (attends(out)?, attend_params),
            beside: beside.transpose()?,
            max_tokens,
        })
    }

    /// Takes the tokens of a step.
    pub fn record(&self, pass: &mut Pass, step: StepShape) {
        assert!(step.num_tokens <= self.max_tokens, "a batch fits the tensors of its stage");
        let (num_tokens, tables_at) = (step.num_tokens as u32, step.tables_at());
        let num_heads = self.shape.num_heads as u32;
        let (bound, params) = &self.store;
        let params = StoreParams { num_tokens, tables_at, ..*params };
        pass.dispatch(bound, &params, [num_tokens, 1 + num_heads, 1]);
        let (bound, params) = &self.attend;
        let params = AttendParams { num_tokens, tables_at, ..*params };
        let tiles = num_heads / queries(self.shape);
        let num_positions = step.num_positions as u32;
        let beside = self.beside.as_ref();
        let beside = beside.and_then(|it| {
            it.num_partitions(num_positions, num_tokens * tiles).map(|count| (it, count))
        });
        let Some((beside, num_partitions)) = beside else {
            return pass.dispatch(bound, &params, [tiles, 1, num_tokens]);
        };
        let of = |first_token| AttendParams { first_token, num_partitions, ..params };
        beside.record(pass, (num_tokens, num_partitions), tiles, of);
    }
}

/// What one head of a token attends to.
///
/// * `q`: `[width]`
/// * `rows`: [num_positions, width], up to the token's own
pub fn reference(scale: f32, lora: usize, q: &[f32], rows: &[f32]) -> Vec<f32> {
    let rows: Vec<&[f32]> = rows.chunks_exact(q.len()).collect();
    let dot = |row: &&[f32]| q.iter().zip(*row).map(|(q, row)| q * row).sum::<f32>() * scale;
    let scores: Vec<f32> = rows.iter().map(dot).collect();
    let max = scores.iter().copied().fold(f32::MIN, f32::max);
    let weights: Vec<f32> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f32 = weights.iter().sum();
    let at = |d: usize| rows.iter().zip(&weights).map(|(row, weight)| row[d] * weight).sum::<f32>();
    (0..lora).map(|d| at(d) / sum).collect()
}

/// What kernels share whose lanes have a row together: to append to them.
pub(crate) const LANES_OF_A_ROW: &str = include_str!("lanes.wgsl");

/// What partitions of such attention leave.
pub fn parts(gpu: &Gpu, shape: LatentShape) -> Parts {
    let LatentShape { num_heads, lora, chosen, .. } = shape;
    Parts { num_heads, width: lora, partition: partition(gpu.caps()), chosen }
}

/// Positions of a partition: on a software driver, which has few workgroups to run side by side,
/// more of them. Part of what defines the bits of results.
fn partition(caps: Caps) -> u32 {
    if caps.is_cpu { 256 } else { 128 }
}

/// Positions that all lanes score at a time. Part of what defines the bits of results.
const STEP: u32 = 32;

/// Most heads of a workgroup, which share a reading of the rows: the text of the kernel is written
/// out for each.
const MAX_QUERIES: usize = 4;

fn queries(shape: LatentShape) -> u32 {
    let divides = |queries: &usize| shape.num_heads.is_multiple_of(*queries);
    (1..=MAX_QUERIES).rev().find(divides).unwrap_or(1) as u32
}

pub(crate) fn store_source(caps: Caps, kv: KvFormat) -> KernelSource {
    let (lanes, _) = attention::lanes(caps);
    let images = caps.images;
    let constants = [
        ("LANES", lanes),
        ("BLOCK", BLOCK_TOKENS as u32),
        ("KV_F16", (kv == KvFormat::F16).into()),
    ];
    let template = [include_str!("mla_store.wgsl"), LANES_OF_A_ROW].concat();
    KernelSource::declared::<StoreParams>("mla_store", &template, images, &constants)
}

pub(crate) fn attend_source(caps: Caps, shape: LatentShape, kv: KvFormat) -> KernelSource {
    let (lanes, _) = attention::lanes(caps);
    let images = caps.images;
    let (queries, lora) = (queries(shape), (shape.lora / 4) as u32);
    let constants = [
        ("LANES", lanes),
        ("KEYS", STEP / lanes),
        ("STEP", STEP),
        ("PARTITION", partition(caps)),
        ("QUERIES", queries),
        ("BLOCK", BLOCK_TOKENS as u32),
        ("LATENT", (shape.width() / 4) as u32),
        ("LORA", lora),
        ("VALUE_VEC4S", lora),
        ("SLICES", lora.div_ceil(lanes)),
        ("SHARED_LANE", queries * lanes),
        ("SHARED_P", queries * STEP),
        ("KV_F16", (kv == KvFormat::F16).into()),
        ("CHOSEN", shape.chosen.is_some().into()),
        ("CHOSEN_STRIDE", shape.chosen.map_or(0, |most| Choice::stride(most) as u32)),
    ];
    let template = [include_str!("mla_attend.wgsl"), STORE, PARTS_OF_STATE].concat();
    let name = format!("mla_attend {lora}");
    KernelSource::declared::<AttendParams>(name, &template, images, &constants)
}

#[cfg(test)]
#[path = "mla_tests.rs"]
mod tests;
