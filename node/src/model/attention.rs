//! Attention of a layer: of either kind, with the cache of that kind.

use checkpoint::{Attention, ModelConfig};
use shaders::attention;
use shaders::attention_beside::Beside;
use shaders::copy_blocks::CopyBlocks;
use shaders::error::GpuError;
use shaders::gpu::Gpu;
use shaders::index::Choice;
use shaders::inputs::{BLOCK_TOKENS, StepShape};
use shaders::kernel::Pass;
use shaders::kv_cache::{KvCache, KvFormat, LatentCache};
use shaders::matmul::{Operand, Output};
use shaders::rotary::{Rotary, inverse_frequencies};
use shaders::tensor::Tensor;

use super::Shared;
use super::gqa::{self, BoundGqa, GqaWeights};
use super::index;
use super::mla::{self, BoundMla, MlaWeights};
use super::weights::Loader;
use crate::error::StageError;

/// What the layers of a stage share, compiled for the model's heads.
pub(crate) struct AttentionKernels {
    pub(super) gqa: Option<attention::Attention>,
    /// What has partitions of latent attention side by side.
    pub(super) beside: Option<Beside>,
    pub(super) copy_blocks: CopyBlocks,
    pub(super) rotary: Rotary,
    /// Of caches of what positions are chosen by.
    pub(super) index_blocks: Option<CopyBlocks>,
    /// What tokens have chosen.
    pub(super) choice: Option<Choice>,
}

impl AttentionKernels {
    /// For steps of up to `max_tokens` tokens, and sequences of up to `max_positions`.
    ///
    /// # Errors
    /// When the adapter has no room.
    pub(crate) fn new(
        gpu: &Gpu,
        model: &ModelConfig,
        kv: KvFormat,
        (max_tokens, max_positions): (usize, usize),
    ) -> Result<Self, GpuError> {
        let inv_freq = inverse_frequencies(model.rope_theta.into(), model.rotary_dim());
        let (gqa, beside, copy_blocks) = match of_all(model) {
            Attention::Gqa(gqa) => {
                let heads = gqa::shape(&gqa);
                let attention = attention::Attention::new(gpu, heads, kv, max_positions)?;
                (Some(attention), None, CopyBlocks::new(gpu, heads, kv)?)
            }
            Attention::Mla(latent) => {
                let parts = shaders::mla::parts(gpu, mla::shape(&latent));
                let beside = Beside::new(gpu, parts, max_positions)?;
                (None, beside, CopyBlocks::of_latents(gpu, latent.latent(), kv)?)
            }
        };
        let index = index::shape(model);
        let index_blocks = index.map(|it| CopyBlocks::of_latents(gpu, it.head_dim, kv));
        let choice = index.map(|it| Choice::new(gpu, it.top_k, (max_tokens, max_positions)));
        Ok(Self {
            gqa,
            beside,
            copy_blocks,
            rotary: Rotary::new(gpu, &inv_freq, max_positions)?,
            index_blocks: index_blocks.transpose()?,
            choice: choice.transpose()?,
        })
    }

    /// Bytes that [`new`](Self::new) takes.
    pub(crate) fn num_bytes(
        gpu: &Gpu,
        model: &ModelConfig,
        kv: KvFormat,
        (max_tokens, max_positions): (usize, usize),
    ) -> u64 {
        let copy_blocks = match of_all(model) {
            Attention::Gqa(gqa) => {
                let heads = gqa::shape(&gqa);
                attention::Attention::num_bytes(gpu, heads, kv, max_positions)
                    + CopyBlocks::num_bytes(gpu, heads, kv)
            }
            Attention::Mla(latent) => {
                let parts = shaders::mla::parts(gpu, mla::shape(&latent));
                Beside::num_bytes(gpu, parts, max_positions)
                    + CopyBlocks::latent_bytes(gpu, latent.latent(), kv)
            }
        };
        let index = index::shape(model).map_or(0, |it| {
            CopyBlocks::latent_bytes(gpu, it.head_dim, kv)
                + Choice::num_bytes(it.top_k, (max_tokens, max_positions))
        });
        copy_blocks + index + gpu.vec4s_bytes(max_positions * model.rotary_dim())
    }
}

impl AttentionKernels {
    /// What tokens have chosen, and words of one, where layers of the model choose positions.
    pub(crate) fn chosen(&self, model: &ModelConfig) -> Option<(&Tensor, usize)> {
        let choice = self.choice.as_ref()?;
        Some((&choice.chosen, Choice::stride(model.index()?.top_k)))
    }
}

/// The attention of a model: all layers have the same.
pub(super) fn of_all(model: &ModelConfig) -> Attention {
    model.layers.first().expect("a model has layers").attention
}

pub(crate) enum LayerCache {
    /// Of heads' keys and values.
    Heads(KvCache),
    /// Of latent rows, and of the keys that positions are chosen by.
    Latent(LatentCache, Option<LatentCache>),
}

impl LayerCache {
    /// Of `num_blocks`, all zero.
    ///
    /// # Errors
    /// When the adapter has no room.
    pub(crate) fn new(
        gpu: &Gpu,
        attention: &Attention,
        kv: KvFormat,
        num_blocks: usize,
    ) -> Result<Self, GpuError> {
        Ok(match attention {
            Attention::Gqa(gqa) => Self::Heads(KvCache::new(gpu, gqa::shape(gqa), kv, num_blocks)?),
            Attention::Mla(mla) => {
                let cache = |width| LatentCache::new(gpu, width, kv, num_blocks);
                let index = mla.own_index().map(|index| cache(index.head_dim));
                Self::Latent(cache(mla.latent())?, index.transpose()?)
            }
        })
    }

    /// Bytes that [`new`](Self::new) takes.
    pub(crate) fn num_bytes(
        gpu: &Gpu,
        attention: &Attention,
        kv: KvFormat,
        num_blocks: usize,
    ) -> u64 {
        match attention {
            Attention::Gqa(gqa) => KvCache::num_bytes(gpu, gqa::shape(gqa), kv, num_blocks),
            Attention::Mla(mla) => {
                let bytes = |width| LatentCache::num_bytes(gpu, width, kv, num_blocks);
                bytes(mla.latent()) + mla.own_index().map_or(0, |index| bytes(index.head_dim))
            }
        }
    }

    pub(crate) fn block_bytes(attention: &Attention, kv: KvFormat) -> u64 {
        attention.kv_values() * BLOCK_TOKENS as u64 * kv.num_bytes()
    }

    /// The most blocks that it can have.
    pub(crate) fn max_blocks(gpu: &Gpu, attention: &Attention, kv: KvFormat) -> usize {
        match attention {
            Attention::Gqa(gqa) => KvCache::max_blocks(gpu, gqa::shape(gqa), kv),
            Attention::Mla(mla) => {
                let widest = mla.own_index().map_or(0, |index| index.head_dim).max(mla.latent());
                LatentCache::max_blocks(gpu, widest, kv)
            }
        }
    }
}

/// The weights of a layer's attention.
#[expect(clippy::large_enum_variant, reason = "a stage has one for each layer")]
pub(super) enum AttentionWeights {
    Gqa(GqaWeights),
    Mla(MlaWeights),
}

impl AttentionWeights {
    pub(super) fn load(loader: &mut Loader<'_>, spec: &Attention) -> Result<Self, StageError> {
        Ok(match spec {
            Attention::Gqa(gqa) => Self::Gqa(GqaWeights::load(loader, gqa)?),
            Attention::Mla(mla) => Self::Mla(MlaWeights::load(loader, mla)?),
        })
    }
}

/// Attention of a layer, bound to its weights and its cache.
#[expect(clippy::large_enum_variant, reason = "a stage has one for each layer")]
pub(super) enum BoundAttention {
    Gqa(BoundGqa),
    Mla(BoundMla),
}

impl BoundAttention {
    /// Of the rows of `x`, to `output`.
    pub(super) fn bind(
        shared: &Shared<'_>,
        weights: &AttentionWeights,
        x: Operand<'_>,
        cache: &LayerCache,
        output: Output<'_>,
    ) -> Result<Self, StageError> {
        Ok(match (weights, cache) {
            (AttentionWeights::Gqa(weights), LayerCache::Heads(cache)) => {
                Self::Gqa(BoundGqa::bind(shared, weights, x, cache, output)?)
            }
            (AttentionWeights::Mla(weights), LayerCache::Latent(cache, index)) => {
                let caches = (cache, index.as_ref());
                Self::Mla(BoundMla::bind(shared, weights, x, caches, output)?)
            }
            _ => panic!("a layer has the cache of its kind"),
        })
    }

    pub(super) fn record(&self, pass: &mut Pass, step: StepShape) {
        match self {
            Self::Gqa(attention) => attention.record(pass, step),
            Self::Mla(attention) => attention.record(pass, step),
        }
    }
}
