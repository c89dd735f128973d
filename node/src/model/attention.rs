//! Grouped-query attention: queries, keys and values, the cache, what heads attend to, and back.

use checkpoint::{Attention, Gqa, Matrix, ModelConfig, Row, Vector};
use shaders::attention;
use shaders::copy_blocks::{BoundCopyBlocks, CopyBlocks};
use shaders::error::GpuError;
use shaders::gpu::Gpu;
use shaders::inputs::StepShape;
use shaders::kernel::Pass;
use shaders::kv_cache::{HeadShape, KvCache, KvFormat};
use shaders::matmul::{BoundMatmul, Operand, Output, Qkv};
use shaders::qk_norm::BoundQkNorm;
use shaders::rotary::{Rotary, inverse_frequencies};
use shaders::tensor::Tensor;
use shaders::weights::WeightMatrix;

use super::Shared;
use super::weights::Loader;
use crate::error::StageError;

/// What the layers of a stage share, compiled for the model's heads.
pub struct AttentionKernels {
    attention: attention::Attention,
    copy_blocks: CopyBlocks,
    rotary: Rotary,
}

impl AttentionKernels {
    /// For sequences of up to `max_positions` tokens.
    ///
    /// # Errors
    /// When the adapter has no room.
    pub fn new(
        gpu: &Gpu,
        model: &ModelConfig,
        kv: KvFormat,
        max_positions: usize,
    ) -> Result<Self, GpuError> {
        let heads = head_shape(model);
        let inv_freq = inverse_frequencies(model.rope_theta.into(), model.rotary_dim());
        Ok(Self {
            attention: attention::Attention::new(gpu, heads, kv, max_positions)?,
            copy_blocks: CopyBlocks::new(gpu, heads, kv)?,
            rotary: Rotary::new(gpu, &inv_freq, max_positions)?,
        })
    }

    /// Bytes that [`new`](Self::new) takes.
    pub fn num_bytes(gpu: &Gpu, model: &ModelConfig, kv: KvFormat, max_positions: usize) -> u64 {
        attention::Attention::num_bytes(gpu, head_shape(model), max_positions)
            + CopyBlocks::num_bytes(gpu, head_shape(model), kv)
            + gpu.vec4s_bytes(max_positions * model.rotary_dim())
    }
}

/// The cache of a layer.
pub struct LayerCache(KvCache);

impl LayerCache {
    /// Of `num_blocks`, all zero.
    ///
    /// # Errors
    /// When the adapter has no room.
    pub fn new(
        gpu: &Gpu,
        attention: &Attention,
        kv: KvFormat,
        num_blocks: usize,
    ) -> Result<Self, GpuError> {
        let Attention::Gqa(gqa) = attention;
        KvCache::new(gpu, shape(gqa), kv, num_blocks).map(Self)
    }

    /// Bytes that [`new`](Self::new) takes.
    pub fn num_bytes(gpu: &Gpu, attention: &Attention, kv: KvFormat, num_blocks: usize) -> u64 {
        let Attention::Gqa(gqa) = attention;
        KvCache::num_bytes(gpu, shape(gqa), kv, num_blocks)
    }

    /// Bytes of a block.
    pub fn block_bytes(attention: &Attention, kv: KvFormat) -> u64 {
        let Attention::Gqa(gqa) = attention;
        shape(gqa).block_bytes(kv)
    }

    /// The most blocks that it can have.
    pub fn max_blocks(gpu: &Gpu, attention: &Attention, kv: KvFormat) -> usize {
        let Attention::Gqa(gqa) = attention;
        KvCache::max_blocks(gpu, shape(gqa), kv)
    }
}

/// The weights of a layer's attention.
pub(super) struct AttentionWeights {
    qkv: WeightMatrix,
    bias: Option<Tensor>,
    /// Of heads of queries, then of keys.
    norms: Option<Tensor>,
    output: WeightMatrix,
    head_dim: usize,
}

impl AttentionWeights {
    pub(super) fn load(loader: &mut Loader<'_>, spec: &Attention) -> Result<Self, StageError> {
        let Attention::Gqa(gqa) = spec;
        Ok(Self {
            qkv: loader.matrix(Matrix::Qkv)?,
            bias: loader.vector_if(gqa.bias, Vector::QkvBias)?,
            norms: match gqa.qk_norm {
                true => Some(loader.values(&[Vector::QueryNorm, Vector::KeyNorm])?),
                false => None,
            },
            output: loader.matrix(Matrix::Output)?,
            head_dim: gqa.head_dim,
        })
    }
}

/// Attention of a layer, bound to its weights and its cache.
pub(super) struct BoundAttention {
    /// Before anything: blocks of the cache that become copies of others.
    copy_blocks: BoundCopyBlocks,
    /// Queries, keys and values, their rotation, the cache.
    qkv: BoundMatmul,
    /// Where heads are normalised: that, and what else becomes of the product.
    qk_norm: Option<BoundQkNorm>,
    attention: attention::BoundAttention,
    output: BoundMatmul,
}

impl BoundAttention {
    /// Of the rows of `x`, to `output`.
    pub(super) fn bind(
        shared: &Shared<'_>,
        weights: &AttentionWeights,
        x: Operand<'_>,
        LayerCache(cache): &LayerCache,
        output: Output<'_>,
    ) -> Result<Self, StageError> {
        let Shared { gpu, inputs, scratch, .. } = *shared;
        let AttentionKernels { attention, copy_blocks, rotary } = shared.attention;
        let (queries, attended) = (scratch.row(Row::Queries), scratch.row(Row::Attended));
        let product =
            |operand, weights, output| shared.kernels.matmul.bind(gpu, operand, weights, output);
        let qkv = Qkv { bias: weights.bias.as_ref(), inputs, rotary, cache, queries };
        // By the head's own width, also where heads together are wider than a hidden row.
        let scale = (weights.head_dim as f32).sqrt().recip();
        Ok(Self {
            copy_blocks: copy_blocks.bind(gpu, inputs, cache)?,
            qkv: product(
                x,
                &weights.qkv,
                match &weights.norms {
                    Some(_) => Output::Store(scratch.row(Row::Unnormed)),
                    None => Output::Qkv(qkv),
                },
            )?,
            qk_norm: match &weights.norms {
                Some(norms) => {
                    let norms = (norms, shared.model.rms_norm_eps);
                    Some(BoundQkNorm::new(gpu, scratch.row(Row::Unnormed), norms, qkv)?)
                }
                None => None,
            },
            attention: attention.bind(gpu, inputs, cache, scale, (queries, attended))?,
            output: product(scratch.plain(attended), &weights.output, output)?,
        })
    }

    pub(super) fn record(&self, pass: &mut Pass, step: StepShape) {
        self.copy_blocks.record(pass, step);
        self.qkv.record_step(pass, step);
        if let Some(norm) = &self.qk_norm {
            norm.record(pass, step);
        }
        self.attention.record(pass, step);
        self.output.record(pass, step.num_tokens);
    }
}

/// The heads of a model, as kernels take them: all layers have the same.
pub fn head_shape(model: &ModelConfig) -> HeadShape {
    let first = model.layers.first().expect("a model has layers");
    let Attention::Gqa(gqa) = &first.attention;
    shape(gqa)
}

fn shape(gqa: &Gqa) -> HeadShape {
    let Gqa { num_heads, num_kv_heads, head_dim, .. } = *gqa;
    HeadShape { num_heads, num_kv_heads, head_dim }
}
