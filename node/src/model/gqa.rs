//! Grouped-query attention: queries, keys and values, the cache, what heads attend to, and back.

use checkpoint::{Gqa, Matrix, ScratchRow, Vector};
use shaders::attention;
use shaders::copy_blocks::BoundCopyBlocks;
use shaders::inputs::StepShape;
use shaders::kernel::Pass;
use shaders::kv_cache::{HeadShape, KvCache};
use shaders::matmul::{BoundMatmul, Operand, Output, Qkv};
use shaders::qk_norm::BoundQkNorm;
use shaders::tensor::Tensor;
use shaders::weights::WeightMatrix;

use super::weights::Loader;
use super::{AttentionKernels, Shared};
use crate::error::StageError;

/// As kernels take it.
pub(super) fn shape(gqa: &Gqa) -> HeadShape {
    let Gqa { num_heads, num_kv_heads, head_dim, .. } = *gqa;
    HeadShape { num_heads, num_kv_heads, head_dim }
}

/// The weights of a layer's attention.
pub(super) struct GqaWeights {
    qkv: WeightMatrix,
    bias: Option<Tensor>,
    /// Of heads of queries, then of keys.
    norms: Option<Tensor>,
    output: WeightMatrix,
    head_dim: usize,
}

impl GqaWeights {
    pub(super) fn load(loader: &mut Loader<'_>, gqa: &Gqa) -> Result<Self, StageError> {
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
pub(super) struct BoundGqa {
    /// Before anything: blocks of the cache that become copies of others.
    copy_blocks: BoundCopyBlocks,
    /// Queries, keys and values, their rotation, the cache.
    qkv: BoundMatmul,
    /// Where heads are normalised: that, and what else becomes of the product.
    qk_norm: Option<BoundQkNorm>,
    attention: attention::BoundAttention,
    output: BoundMatmul,
}

impl BoundGqa {
    /// Of the rows of `x`, to `output`.
    pub(super) fn bind(
        shared: &Shared<'_>,
        weights: &GqaWeights,
        x: Operand<'_>,
        cache: &KvCache,
        output: Output<'_>,
    ) -> Result<Self, StageError> {
        let Shared { gpu, inputs, scratch, .. } = *shared;
        let AttentionKernels { gqa, copy_blocks, rotary, .. } = shared.attention;
        let attention = gqa.as_ref().expect("a model with such layers has their kernels");
        let (queries, attended) =
            (scratch.row(ScratchRow::Queries), scratch.row(ScratchRow::Attended));
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
                    Some(_) => Output::Store(scratch.row(ScratchRow::Unnormed)),
                    None => Output::Qkv(qkv),
                },
            )?,
            qk_norm: match &weights.norms {
                Some(norms) => {
                    let norms = (norms, shared.model.rms_norm_eps);
                    Some(BoundQkNorm::new(gpu, scratch.row(ScratchRow::Unnormed), norms, qkv)?)
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
