//! Latent attention: the rows that queries, and keys and values, are made of; the cache, what heads
//! attend to in it, and back.

use checkpoint::{Matrix, Mla, ScratchRow, Vector};
use shaders::copy_blocks::BoundCopyBlocks;
use shaders::inputs::StepShape;
use shaders::kernel::Pass;
use shaders::kv_cache::LatentCache;
use shaders::matmul::{BoundMatmul, Norm, Operand, Output};
use shaders::matmul_stacked::{BoundStacked, Rows};
use shaders::mla::{BoundLatentAttention, LatentShape, LatentTensors};
use shaders::tensor::Tensor;
use shaders::weights::WeightMatrix;

use super::Shared;
use super::index::{BoundIndexer, IndexWeights};
use super::weights::Loader;
use crate::error::StageError;

/// As kernels take it.
pub(super) fn shape(mla: &Mla) -> LatentShape {
    let Mla { num_heads, kv_lora_rank, nope_dim, rope_dim, index, .. } = *mla;
    LatentShape {
        num_heads,
        lora: kv_lora_rank,
        nope: nope_dim,
        rope: rope_dim,
        chosen: index.map(|index| index.top_k),
    }
}

/// The weights of a layer's latent attention.
pub(super) struct MlaWeights {
    spec: Mla,
    query_down: WeightMatrix,
    query_norm: Tensor,
    query_up: WeightMatrix,
    latent_down: WeightMatrix,
    latent_norm: Tensor,
    keys: WeightMatrix,
    values: WeightMatrix,
    index: Option<IndexWeights>,
    output: WeightMatrix,
}

impl MlaWeights {
    pub(super) fn load(loader: &mut Loader<'_>, spec: &Mla) -> Result<Self, StageError> {
        Ok(Self {
            spec: *spec,
            query_down: loader.matrix(Matrix::QueryDown)?,
            query_norm: loader.vector(Vector::QueryLatentNorm)?,
            query_up: loader.matrix(Matrix::QueryUp)?,
            latent_down: loader.matrix(Matrix::LatentDown)?,
            latent_norm: loader.values(&[Vector::LatentNorm])?,
            keys: loader.matrix(Matrix::LatentKeys)?,
            values: loader.matrix(Matrix::LatentValues)?,
            index: match spec.own_index() {
                Some(index) => Some(IndexWeights::load(loader, index)?),
                None => None,
            },
            output: loader.matrix(Matrix::Output)?,
        })
    }
}

/// Latent attention of a layer, bound to its weights and its cache.
pub(super) struct BoundMla {
    /// Before anything: blocks of the cache that become copies of others.
    copy_blocks: BoundCopyBlocks,
    query_down: BoundMatmul,
    query_up: BoundMatmul,
    latent_down: BoundMatmul,
    index: Option<BoundIndexer>,
    /// What doesn't rotate in queries, to what latent rows are multiplied with.
    keys: BoundStacked,
    attention: BoundLatentAttention,
    /// What heads attend to, to values.
    values: BoundStacked,
    output: BoundMatmul,
}

impl BoundMla {
    /// Of the rows of `x`, to `output`.
    pub(super) fn bind(
        shared: &Shared<'_>,
        weights: &MlaWeights,
        x: Operand<'_>,
        (cache, index_cache): (&LatentCache, Option<&LatentCache>),
        output: Output<'_>,
    ) -> Result<Self, StageError> {
        let Shared { gpu, inputs, scratch, .. } = *shared;
        let Mla { kv_lora_rank, value_dim, .. } = weights.spec;
        let eps = Mla::NORM_EPS;
        let (query_latent, latent) =
            (scratch.row(ScratchRow::QueryLatent), scratch.row(ScratchRow::Latent));
        let (head_queries, queries) =
            (scratch.row(ScratchRow::HeadQueries), scratch.row(ScratchRow::Queries));
        let (attends, attended) =
            (scratch.row(ScratchRow::LatentAttended), scratch.row(ScratchRow::Attended));
        let product =
            |operand, weights, output| shared.kernels.matmul.bind(gpu, operand, weights, output);
        let norm = Norm { weight: &weights.query_norm, eps };
        let normed = Operand { norm: Some(norm), ..scratch.plain(query_latent) };
        let tensors = LatentTensors {
            latent,
            norm: (&weights.latent_norm, eps),
            head_queries,
            queries,
            out: attends,
            chosen: shared.attention.choice.as_ref().map(|choice| &choice.chosen),
        };
        let on = (inputs, &shared.attention.rotary, cache);
        let to_keys =
            Rows::Heads { x_stride: weights.spec.head_dim(), out_stride: weights.spec.latent() };
        let to_values = Rows::Heads { x_stride: kv_lora_rank, out_stride: value_dim };
        let (to_queries, to_attended) = (Output::Vec4s(queries), Output::Vec4s(attended));
        Ok(Self {
            copy_blocks: shared.attention.copy_blocks.bind_latents(gpu, inputs, cache)?,
            query_down: product(x, &weights.query_down, Output::Vec4s(query_latent))?,
            query_up: product(normed, &weights.query_up, Output::Vec4s(head_queries))?,
            latent_down: product(x, &weights.latent_down, Output::Store(latent))?,
            index: match weights.index.as_ref().zip(index_cache) {
                Some((weights, cache)) => {
                    Some(BoundIndexer::bind(shared, weights, (x, normed), cache)?)
                }
                None => None,
            },
            keys: BoundStacked::new(gpu, head_queries.into(), &weights.keys, to_keys, to_queries)?,
            attention: BoundLatentAttention::new(
                gpu,
                shape(&weights.spec),
                on,
                tensors,
                shared.attention.beside.as_ref(),
            )?,
            values: BoundStacked::new(
                gpu,
                attends.into(),
                &weights.values,
                to_values,
                to_attended,
            )?,
            output: product(scratch.plain(attended), &weights.output, output)?,
        })
    }

    pub(super) fn record(&self, pass: &mut Pass, step: StepShape) {
        let num_tokens = step.num_tokens;
        self.copy_blocks.record(pass, step);
        self.query_down.record(pass, num_tokens);
        self.query_up.record(pass, num_tokens);
        self.latent_down.record(pass, num_tokens);
        if let Some(index) = &self.index {
            index.record(pass, step);
        }
        self.keys.record_heads(pass, num_tokens);
        self.attention.record(pass, step);
        self.values.record_heads(pass, num_tokens);
        self.output.record(pass, num_tokens);
    }
}
