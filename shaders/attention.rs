//! Attention over the paged cache, for prefill and decode alike.

use bytemuck::{Pod, Zeroable};

use crate::error::GpuError;
use crate::gpu::{Caps, Gpu};
use crate::inputs::{BLOCK_TOKENS, Inputs, StepShape};
use crate::kernel::{Access, Bound, Kernel, KernelSource, Pass};
use crate::kv_cache::{HeadShape, KvCache, KvFormat};
use crate::template::expand_vec4s;
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
        }
    }

    /// With the tokens of a step.
    #[must_use]
    pub fn of_step(self, step: StepShape) -> Self {
        Self { num_tokens: step.num_tokens as u32, tables_at: step.tables_at(), ..self }
    }
}

/// The kernels, compiled for one shape of heads.
pub struct Attention {
    shape: HeadShape,
    format: KvFormat,
    kernels: Vec<(Variant, Kernel)>,
}

/// The kernels bound to a layer's cache.
pub struct BoundAttention {
    /// The last one for many tokens.
    variants: Vec<(Variant, Bound)>,
    params: Params,
    max_tokens: usize,
}

impl Attention {
    /// Compiles the kernels for layers of this shape, with a cache of this format.
    pub fn new(gpu: &Gpu, shape: HeadShape, format: KvFormat) -> Result<Self, GpuError> {
        Self::with_variants(gpu, shape, format, Variant::choose(gpu.caps(), shape))
    }

    pub(crate) fn with_variants(
        gpu: &Gpu,
        shape: HeadShape,
        format: KvFormat,
        variants: Vec<Variant>,
    ) -> Result<Self, GpuError> {
        let compiled = |variant: Variant| -> Result<_, GpuError> {
            let source = variant.source(shape, format, gpu.caps().images);
            Ok((variant, Kernel::new(gpu, &source)?))
        };
        let kernels = variants.into_iter().map(compiled).collect::<Result<_, _>>()?;
        Ok(Self { shape, format, kernels })
    }

    /// A number of tokens for each kernel: a driver compiles one when it first runs.
    pub fn batch_sizes() -> [usize; 2] {
        [1, MAX_LONE_TOKENS + 1]
    }

    /// Each token attends to all positions of its sequence up to its own, which [`crate::matmul`]
    /// has stored.
    ///
    /// * `q`, `out`: [num_tokens, num_heads, head_dim], vec4s
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
        let tensors = [&inputs.tensor, q, &cache.keys, &cache.values, out];
        let bind = |(variant, kernel): &(Variant, Kernel)| -> Result<_, GpuError> {
            Ok((*variant, kernel.bind(gpu, &tensors)?))
        };
        Ok(BoundAttention {
            variants: self.kernels.iter().map(bind).collect::<Result<_, _>>()?,
            params: Params::new(self.shape, scale),
            max_tokens: q.len().min(out.len()) / self.shape.q_size(),
        })
    }
}

impl BoundAttention {
    /// How the work for so many tokens is laid out: tokens and query heads a workgroup, lanes, keys
    /// a lane.
    pub fn layout(&self, num_tokens: usize) -> String {
        self.variant(num_tokens).map_or_else(String::new, |(variant, _)| {
            let Variant { tokens, queries, lanes, keys, .. } = variant;
            format!("{tokens}x{queries}x{lanes}x{keys}")
        })
    }

    fn variant(&self, num_tokens: usize) -> Option<&(Variant, Bound)> {
        if num_tokens > MAX_LONE_TOKENS { self.variants.last() } else { self.variants.first() }
    }

    /// Takes the tokens of a step.
    pub fn record(&self, pass: &mut Pass, step: StepShape) {
        assert!(step.num_tokens <= self.max_tokens, "a batch fits the tensors of its stage");
        let Some((variant, bound)) = self.variant(step.num_tokens) else { return };
        let params = self.params.of_step(step);
        let tiles = params.num_tokens.div_ceil(variant.tokens);
        pass.dispatch(bound, &params, [tiles, params.num_heads / variant.queries, 1]);
    }
}

/// Lanes of a workgroup, and whether all of them are of one subgroup, whatever size it gets, and
/// exchange values through it. A software driver compiles a workgroup of several subgroups that
/// wait for each other in minutes, where one takes a second.
pub fn lanes(caps: Caps) -> (u32, bool) {
    let min_subgroup = if caps.subgroups { caps.min_subgroup_size } else { 0 };
    let lanes = match min_subgroup {
        4..8 if caps.is_cpu => 4,
        8..32 => 8,
        _ => 32,
    };
    (lanes, min_subgroup >= lanes)
}

/// One way of laying the work out over lanes. All with as many lanes and keys give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Variant {
    /// Lanes in a workgroup, all of one subgroup if that is used.
    pub(crate) lanes: u32,
    /// Positions that a lane scores at a time.
    pub(crate) keys: u32,
    /// Tokens of a workgroup: those of one sequence are computed from one reading of keys and
    /// values.
    pub(crate) tokens: u32,
    /// Query heads that a workgroup computes from one reading of keys and values.
    pub(crate) queries: u32,
    /// Whether lanes exchange values through the subgroup, or through workgroup memory.
    pub(crate) subgroup: bool,
}

impl Variant {
    /// Those for few tokens and for many.
    pub(crate) fn choose(caps: Caps, shape: HeadShape) -> Vec<Self> {
        let (lanes, subgroup) = lanes(caps);
        let keys = if caps.is_cpu { CPU_KEYS } else { GPU_PARTITION / lanes };
        let vec4s_of_query = shape.head_vec4s() as u32 * keys;
        let shared = (shape.num_heads / shape.num_kv_heads) as u32;
        let max_queries = (MAX_LONE_VEC4S / vec4s_of_query).clamp(1, shared);
        let queries = (1..=max_queries).rev().find(|queries| shared.is_multiple_of(*queries));
        let queries = queries.unwrap_or(1);
        let short = caps.is_cpu && shape.head_vec4s() <= SHORT_HEAD_VEC4S;
        let keys = if short { SHORT_HEAD_CPU_KEYS } else { keys };
        let lone = Self { lanes, keys, tokens: 1, queries, subgroup };
        if !caps.is_cpu {
            // The lone tokens among many need all the workgroups that they can have.
            return vec![lone];
        }
        let max_tokens = (MAX_VEC4S / (vec4s_of_query * queries)).clamp(1, MAX_TOKENS);
        vec![lone, Self { tokens: 1 << max_tokens.ilog2(), ..lone }]
    }

    pub(crate) fn source(&self, shape: HeadShape, format: KvFormat, images: bool) -> KernelSource {
        let Self { lanes, keys, tokens, queries, subgroup } = *self;
        let partition = lanes * keys;
        let head_vec4s = shape.head_vec4s() as u32;
        let slice = (1..=head_vec4s.min(lanes))
            .rev()
            .find(|slice| head_vec4s.is_multiple_of(*slice))
            .unwrap_or(1);
        let constants = [
            ("LANES", lanes),
            ("TOKENS", tokens),
            ("TILED", (tokens > 1).into()),
            ("FURTHER", (tokens - 1).max(1)),
            ("QUERIES", queries),
            ("SUBGROUP", subgroup.into()),
            ("KV_F16", (format == KvFormat::F16).into()),
            ("BLOCK", BLOCK_TOKENS as u32),
            ("PARTITION", partition),
            ("KEYS", keys),
            ("FEW_LANES", (lanes <= 8).into()),
            ("HEAD_VEC4S", head_vec4s),
            ("SLICE", slice),
            ("SLICES", head_vec4s / slice),
            ("SHARED_Q", tokens * queries * head_vec4s),
            ("SHARED_LANE", tokens * queries * lanes),
            ("SHARED_P", tokens * queries * partition),
        ];
        let template = [include_str!("attention.wgsl"), INPUTS].concat();
        let wgsl = expand_vec4s(&template, images, &constants);
        let (read, cached) = (Access::read_vec4s(images), format.read(images));
        let bindings = [Access::Read, read, cached, cached, Access::write_vec4s(images)];
        let kv = if format == KvFormat::F16 { " f16" } else { "" };
        let name = format!(
            "attention{kv} {head_vec4s} lanes{lanes} keys{keys} tokens{tokens} queries{queries} \
             subgroup {subgroup}"
        );
        KernelSource::new::<Params>(name, wgsl, &bindings)
    }
}

/// Most tokens of a step that is taken to be of many sequences: where it isn't, time is lost and
/// nothing else.
const MAX_LONE_TOKENS: usize = 16;

/// Positions that a lane scores at a time on a software driver, whose registers hold no more; and
/// for short heads. As measured: twice as many take 7 % from decoding with heads of 64 and add a
/// third to it with heads of 128.
const CPU_KEYS: u32 = 2;
const SHORT_HEAD_CPU_KEYS: u32 = 4;
const SHORT_HEAD_VEC4S: usize = 16;

/// Positions that all lanes score at a time elsewhere.
const GPU_PARTITION: u32 = 32;

/// Most vec4s of keys that the text of a kernel multiplies with the queries of a token, and of all
/// its tokens, for short heads half of them: it is written out, and more would take seconds to
/// compile.
const MAX_LONE_VEC4S: u32 = 256;
const MAX_VEC4S: u32 = 512;

/// Most tokens of a workgroup.
const MAX_TOKENS: u32 = 4;

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
