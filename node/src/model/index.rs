//! The choice of the positions that a layer with latent attention attends to.

use checkpoint::{Index, Matrix, ModelConfig, ScratchRow, Vector};
use shaders::copy_blocks::BoundCopyBlocks;
use shaders::index::{BoundIndex, IndexShape, IndexTensors};
use shaders::inputs::StepShape;
use shaders::kernel::Pass;
use shaders::kv_cache::LatentCache;
use shaders::matmul::{BoundMatmul, Operand, Output};
use shaders::tensor::Tensor;
use shaders::weights::WeightMatrix;

use super::Shared;
use super::weights::Loader;
use crate::error::StageError;

/// What goes on to a stage that begins with a layer that takes what the one before it has chosen.
pub(crate) const CHOSEN: &str = "chosen";

/// How positions are chosen in a model whose layers choose them, as kernels take it.
pub(super) fn shape(model: &ModelConfig) -> Option<IndexShape> {
    let Index { num_heads, head_dim, top_k, .. } = model.index()?;
    Some(IndexShape { num_heads, head_dim, rope: model.rotary_dim(), top_k })
}

/// The weights of a layer's choice.
pub(super) struct IndexWeights {
    queries: WeightMatrix,
    keys: WeightMatrix,
    /// Weight, then bias.
    norm: Tensor,
    heads: WeightMatrix,
}

impl IndexWeights {
    pub(super) fn load(loader: &mut Loader<'_>, _: Index) -> Result<Self, StageError> {
        Ok(Self {
            queries: loader.matrix(Matrix::IndexQueries)?,
            keys: loader.matrix(Matrix::IndexKeys)?,
            norm: loader.values(&[Vector::IndexNorm, Vector::IndexBias])?,
            heads: loader.matrix(Matrix::IndexWeights)?,
        })
    }
}

/// A layer's choice, bound to its weights and its cache.
pub(super) struct BoundIndexer {
    copy_blocks: BoundCopyBlocks,
    queries: BoundMatmul,
    keys: BoundMatmul,
    heads: BoundMatmul,
    choice: BoundIndex,
}

impl BoundIndexer {
    /// Of the rows of `x`, and of those that queries are made of.
    pub(super) fn bind(
        shared: &Shared<'_>,
        weights: &IndexWeights,
        (x, query_latent): (Operand<'_>, Operand<'_>),
        cache: &LatentCache,
    ) -> Result<Self, StageError> {
        let Shared { gpu, kernels, model, inputs, attention, scratch } = *shared;
        let shape = shape(model).expect("a layer that chooses is one of the model's");
        let choice = attention.choice.as_ref().expect("such a model has what is chosen");
        let copy_blocks = attention.index_blocks.as_ref().expect("such a model has such caches");
        let [queries, keys, heads] =
            [ScratchRow::IndexQueries, ScratchRow::IndexKeys, ScratchRow::IndexWeights]
                .map(|row| scratch.row(row));
        let product = |operand, weights: &WeightMatrix, out| {
            kernels.matmul.bind(gpu, operand, weights, Output::Store(out))
        };
        let tensors = IndexTensors { queries, keys, norm: &weights.norm, weights: heads };
        let on = (inputs, &attention.rotary, cache);
        Ok(Self {
            copy_blocks: copy_blocks.bind_latents(gpu, inputs, cache)?,
            queries: product(query_latent, &weights.queries, queries)?,
            keys: product(x, &weights.keys, keys)?,
            heads: product(x, &weights.heads, heads)?,
            choice: BoundIndex::new(gpu, shape, on, tensors, choice)?,
        })
    }

    pub(super) fn record(&self, pass: &mut Pass, step: StepShape) {
        self.copy_blocks.record(pass, step);
        for product in [&self.queries, &self.keys, &self.heads] {
            product.record(pass, step.num_tokens);
        }
        self.choice.record(pass, step);
    }
}
