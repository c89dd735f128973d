//! Attention over the paged cache, for prefill and decode alike.

use bytemuck::{Pod, Zeroable};

use crate::attention_beside::{Beside, BoundBeside, Parts};
use crate::attention_variant::Variant;
pub use crate::attention_variant::lanes;
use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::inputs::{Inputs, StepShape};
use crate::kernel::{Bound, Kernel, Pass};
use crate::kv_cache::{HeadShape, KvCache, KvFormat};
use crate::tensor::Tensor;

/// How a kernel of attention reads its operands: `Params`, bindings and loads, to append to it.
pub const INPUTS: &str = include_str!("attention_in.wgsl");

/// The parameters of kernels with [`INPUTS`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    num_tokens: u32,
    tables_at: u32,
    num_heads: u32,
    num_kv_heads: u32,
    scale: f32,
    first_token: u32,
    num_partitions: u32,
}

impl Params {
    /// For heads of `shape`: no tokens yet.
    pub fn new(shape: HeadShape, scale: f32) -> Self {
        Self {
            num_tokens: 0,
            tables_at: 0,
            num_heads: shape.num_heads as u32,
            num_kv_heads: shape.num_kv_heads as u32,
            scale,
            first_token: 0,
            num_partitions: 0,
        }
    }

    /// With the tokens of a step.
    #[must_use]
    pub fn of_step(self, step: StepShape) -> Self {
        Self { num_tokens: step.num_tokens as u32, tables_at: step.tables_at(), ..self }
    }
}

/// The kernels, compiled for one shape of heads.
///
/// Positions are cut into partitions, a function of the position alone. Where a step has few tokens
/// at long contexts, workgroups compute partitions side by side and leave what they found to a
/// second kernel, which merges it in ascending order; elsewhere a workgroup takes one after another
/// and merges as it goes. Both give the same bits.
///
/// A cache whose rows are latent (one kv head, whose values are the beginning of its keys) needs
/// kernels with other widths of keys and values and another way to find a row
/// (`attention_in.wgsl`); partitions, their merging and all that is here are the same.
pub struct Attention {
    shape: HeadShape,
    format: KvFormat,
    kernels: Vec<(Variant, Kernel)>,
    /// Where a sequence may have several partitions.
    beside: Option<Beside>,
}

/// The kernels bound to a layer's cache.
pub struct BoundAttention {
    /// The last one for many tokens.
    variants: Vec<(Variant, Bound)>,
    beside: Option<BoundBeside>,
    params: Params,
    max_tokens: usize,
}

impl Attention {
    /// Compiles the kernels for layers of this shape, with a cache of this format, and sequences of
    /// at most `max_positions`.
    ///
    /// # Errors
    /// When the adapter has no room, or its driver refuses a kernel.
    pub fn new(
        gpu: &Gpu,
        shape: HeadShape,
        format: KvFormat,
        max_positions: usize,
    ) -> Result<Self, GpuError> {
        let variants = Variant::choose(gpu.caps(), shape, format);
        Self::with_variants(gpu, shape, format, max_positions, variants)
    }

    pub(crate) fn with_variants(
        gpu: &Gpu,
        shape: HeadShape,
        format: KvFormat,
        max_positions: usize,
        variants: Vec<Variant>,
    ) -> Result<Self, GpuError> {
        let images = gpu.caps().images;
        let partition = variants[0].order.partition;
        let compiled = |variant: Variant| -> Result<_, GpuError> {
            Ok((variant, Kernel::new(gpu, &variant.source(shape, format, images))?))
        };
        let beside = Beside::new(gpu, parts(shape, partition), max_positions)?;
        let kernels = variants.into_iter().map(compiled).collect::<Result<_, _>>()?;
        Ok(Self { shape, format, kernels, beside })
    }

    /// Bytes that [`new`](Self::new) takes.
    pub fn num_bytes(gpu: &Gpu, shape: HeadShape, format: KvFormat, max_positions: usize) -> u64 {
        let partition = Variant::choose(gpu.caps(), shape, format)[0].order.partition;
        Beside::num_bytes(gpu, parts(shape, partition), max_positions)
    }

    /// A number of tokens for each kernel: a driver compiles one when it first runs.
    pub fn batch_sizes() -> [usize; 2] {
        [1, MAX_LONE_TOKENS + 1]
    }

    /// Each token attends to all positions of its sequence up to its own, which [`crate::matmul`]
    /// has stored.
    ///
    /// * `q`, `out`: [num_tokens, num_heads, head_dim], vec4s
    ///
    /// # Errors
    /// When the adapter has no room.
    pub fn bind(
        &self,
        gpu: &Gpu,
        inputs: &Inputs,
        cache: &KvCache,
        scale: f32,
        (q, out): (&Tensor, &Tensor),
    ) -> Result<BoundAttention, GpuError> {
        let own = (self.shape, self.format);
        assert_eq!((cache.shape, cache.format), own, "the kernel was compiled for the cache");
        let bind = |kernel: &Kernel, out: &Tensor| {
            kernel.bind(gpu, &[&inputs.tensor, q, &cache.keys, &cache.values, out])
        };
        let variants = self.kernels.iter();
        let variants = variants.map(|(variant, kernel)| Ok((*variant, bind(kernel, out)?)));
        let beside = self.beside.as_ref().map(|beside| {
            let partition = |room: &Tensor| bind(&self.kernels[0].1, room);
            beside.bind(gpu, partition, (inputs, out, None))
        });
        Ok(BoundAttention {
            variants: variants.collect::<Result<_, GpuError>>()?,
            beside: beside.transpose()?,
            params: Params::new(self.shape, scale),
            max_tokens: q.len().min(out.len()) / self.shape.q_size(),
        })
    }
}

impl BoundAttention {
    /// How the work of a step is laid out: tokens and query heads a workgroup, its lanes, positions
    /// a partition, and whether partitions are computed side by side.
    pub fn layout(&self, step: StepShape) -> String {
        let Some((variant, _)) = self.variant(step) else { return String::new() };
        let beside = if self.beside(variant, step).is_some() { " side by side" } else { "" };
        variant.name() + beside
    }

    /// Tokens that nobody shares a reading with are lone ones, however many they are.
    fn variant(&self, step: StepShape) -> Option<&(Variant, Bound)> {
        let shares = step.has_runs && step.num_tokens > MAX_LONE_TOKENS;
        if shares { self.variants.last() } else { self.variants.first() }
    }

    /// What computes partitions side by side, where there are several and too few workgroups
    /// without that.
    fn beside(&self, variant: &Variant, step: StepShape) -> Option<(&BoundBeside, u32)> {
        let beside = self.beside.as_ref().filter(|_| variant.tokens == 1)?;
        let num_workgroups = step.num_tokens as u32 * self.params.num_heads / variant.queries;
        Some((beside, beside.num_partitions(step.num_positions as u32, num_workgroups)?))
    }

    /// Takes the tokens of a step.
    pub fn record(&self, pass: &mut Pass, step: StepShape) {
        assert!(step.num_tokens <= self.max_tokens, "a batch fits the tensors of its stage");
        let Some((variant, bound)) = self.variant(step) else { return };
        let params = self.params.of_step(step);
        let (num_tokens, num_heads) = (params.num_tokens, params.num_heads);
        let tiles_of_heads = num_heads / variant.queries;
        let Some((beside, num_partitions)) = self.beside(variant, step) else {
            let tiles = num_tokens.div_ceil(variant.tokens);
            let grid = match variant.is_cooperative() {
                // A tile has a workgroup for each sequence that its tokens may be of.
                true => [tiles_of_heads, variant.tokens, tiles],
                false => [tiles_of_heads / params.num_kv_heads, tiles, params.num_kv_heads],
            };
            return pass.dispatch(bound, &params, grid);
        };
        beside.record(pass, (num_tokens, num_partitions), tiles_of_heads, |first_token| Params {
            first_token,
            num_partitions,
            ..params
        });
    }
}

/// What its partitions leave.
pub(crate) fn parts(shape: HeadShape, partition: u32) -> Parts {
    Parts { num_heads: shape.num_heads, width: shape.head_dim, partition, chosen: None }
}

/// Most tokens of a step that is taken to be of many sequences: where it isn't, time is lost and
/// nothing else.
const MAX_LONE_TOKENS: usize = 16;

/// What one query head of a token attends to.
///
/// * `q`: `[head_dim]`
/// * `keys`, `values`: [num_positions, head_dim], up to the token's own
pub fn reference(scale: f32, q: &[f32], keys: &[f32], values: &[f32]) -> Vec<f32> {
    let dot = |key: &[f32]| q.iter().zip(key).map(|(q, k)| q * k).sum::<f32>() * scale;
    let scores: Vec<f32> = keys.chunks_exact(q.len()).map(dot).collect();
    let max = scores.iter().copied().fold(f32::MIN, f32::max);
    let weights: Vec<f32> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f32 = weights.iter().sum();
    let mut out = vec![0.0; q.len()];
    for (weight, value) in weights.iter().zip(values.chunks_exact(q.len())) {
        for (out, value) in out.iter_mut().zip(value) {
            *out += weight / sum * value;
        }
    }
    out
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
