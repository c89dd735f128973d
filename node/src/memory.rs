//! What a stage takes of an adapter's memory, computed before anything is allocated.

use checkpoint::{Checkpoint, LayerSpec, MatrixView, ModelConfig, Part, Weight};
use protocol::{BLOCK_TOKENS, StageLimits, StagePlan};
use shaders::gpu::{Gpu, READBACK_BYTES};
use shaders::inputs::{InputLimits, Inputs};
use shaders::matmul::Matmul;
use shaders::sampler::{Sampler, SamplerLimits};
use shaders::weights::WeightMatrix;

use crate::error::StageError;
use crate::model::head::MAX_ROWS;
use crate::model::{AttentionKernels, LayerCache, Scratch, kv_format, on_device, vector_bytes};

/// Most bytes of KV cache on a software driver, if one sequence needs no more.
const MAX_SOFTWARE_KV_BYTES: u64 = 1 << 30;

/// Bytes of a stage without its KV cache.
///
/// # Errors
/// When the files don't hold its tensors.
pub fn stage_bytes(gpu: &Gpu, files: &Checkpoint, plan: &StagePlan) -> Result<u64, StageError> {
    let model = files.config();
    let vector = |len| gpu.vec4s_bytes(len);
    let max_tokens = plan.limits.max_batched_tokens as usize;
    let max_positions = plan.limits.max_model_len as usize;
    let kv = kv_format(plan.kv_cache_dtype);
    let mut total = Scratch::num_bytes(gpu, model, max_tokens)
        + AttentionKernels::num_bytes(gpu, model, kv, (max_tokens, max_positions))
        + Matmul::num_bytes(gpu, max_tokens)
        + Inputs::num_bytes(&input_limits(model, &plan.limits, 0))
        + READBACK_BYTES;
    if plan.embeds() {
        total += part_bytes(gpu, files, Part::Embedding)?;
    }
    for layer in plan.layers.first as usize..plan.layers.end as usize {
        total += part_bytes(gpu, files, Part::Layer(layer))?;
    }
    if plan.samples() {
        // One table, where both ends are here.
        total += match plan.embeds() && model.tie_word_embeddings {
            true => vector(model.hidden_size),
            false => part_bytes(gpu, files, Part::Head)?,
        };
        total += vector(MAX_ROWS * model.hidden_size)
            + (MAX_ROWS * model.vocab_size * 4) as u64
            + Sampler::num_bytes(gpu, &sampler_limits(model, &plan.limits), MAX_ROWS);
    }
    Ok(total)
}

/// Bytes of a part's weights.
///
/// # Errors
/// When the files don't hold its tensors.
pub(crate) fn part_bytes(gpu: &Gpu, files: &Checkpoint, part: Part) -> Result<u64, StageError> {
    let bytes = |weight| -> Result<u64, StageError> {
        Ok(match weight {
            Weight::Matrix(matrix) => {
                let bytes = |view: &MatrixView<'_>| {
                    let (stack, shape) = (view.stack(), (view.rows() / view.stack(), view.cols()));
                    WeightMatrix::stack_bytes(gpu, stack, shape, on_device(view.format()))
                };
                files.matrix(matrix)?.parts().iter().map(bytes).sum()
            }
            Weight::Vector(vector) => vector_bytes(gpu, vector, files.vector_len(vector)?),
        })
    };
    files.part(part)?.into_iter().map(bytes).sum()
}

/// Bytes of a stage's KV cache of so many blocks, in all its layers.
pub fn cache_bytes(gpu: &Gpu, model: &ModelConfig, plan: &StagePlan, num_blocks: u32) -> u64 {
    let kv = kv_format(plan.kv_cache_dtype);
    let bytes =
        |spec: &LayerSpec| LayerCache::num_bytes(gpu, &spec.attention, kv, num_blocks as usize);
    layers(model, plan).iter().map(bytes).sum()
}

/// The most that a KV cache takes, unless one sequence needs more: a software driver's memory is
/// the machine's.
pub(crate) fn max_cache_bytes(gpu: &Gpu) -> Option<u64> {
    gpu.caps().is_cpu.then_some(MAX_SOFTWARE_KV_BYTES)
}

fn layers<'a>(model: &'a ModelConfig, plan: &StagePlan) -> &'a [LayerSpec] {
    &model.layers[plan.layers.first as usize..plan.layers.end as usize]
}

/// Blocks of KV cache: as many as are wanted and fit beside `other_bytes`.
///
/// # Errors
/// When not even one sequence fits.
pub(crate) fn num_blocks(
    gpu: &Gpu,
    model: &ModelConfig,
    plan: &StagePlan,
    other_bytes: u64,
) -> Result<u32, StageError> {
    let allowed = plan.memory_bytes;
    let kv = kv_format(plan.kv_cache_dtype);
    let cache = |blocks| cache_bytes(gpu, model, plan, blocks);
    let one_sequence = plan.limits.max_model_len.div_ceil(BLOCK_TOKENS as u32);
    let needed = other_bytes + cache(one_sequence);
    let Some(left) = allowed.checked_sub(needed) else {
        return Err(StageError::TooLarge { needed, allowed, missing: needed - allowed });
    };
    let left = left + cache(one_sequence);
    let left = match max_cache_bytes(gpu) {
        Some(most) => left.min(most.max(cache(one_sequence))),
        None => left,
    };
    let layers = layers(model, plan);
    let bindable = layers.iter().map(|spec| LayerCache::max_blocks(gpu, &spec.attention, kv));
    let most = bindable.fold(plan.limits.max_blocks as usize, usize::min);
    let per_block: u64 =
        layers.iter().map(|spec| LayerCache::block_bytes(&spec.attention, kv)).sum();
    let mut blocks = left.checked_div(per_block).unwrap_or(u64::MAX).min(most as u64) as u32;
    // Images are whole rows.
    while blocks > one_sequence && cache(blocks) > left {
        blocks -= 1;
    }
    Ok(blocks)
}

/// What the tensor of inputs has room for.
pub(crate) fn input_limits(
    model: &ModelConfig,
    limits: &StageLimits,
    num_blocks: u32,
) -> InputLimits {
    let max_tokens = limits.max_batched_tokens as usize;
    let max_positions = limits.max_model_len as usize;
    InputLimits {
        max_tokens,
        // With the logprobs of a prompt every token is an output.
        max_outputs: max_tokens,
        max_table_entries: max_positions.div_ceil(BLOCK_TOKENS) * limits.max_num_seqs as usize,
        // A sequence begins with at most one.
        max_copies: limits.max_num_seqs as usize,
        max_positions,
        num_blocks: num_blocks as usize,
        vocab_size: model.vocab_size,
    }
}

/// What the sampler has room for.
pub(crate) fn sampler_limits(model: &ModelConfig, limits: &StageLimits) -> SamplerLimits {
    SamplerLimits {
        vocab_size: model.vocab_size,
        // With the logprobs of a prompt every token has a row.
        max_rows: limits.max_batched_tokens as usize,
        max_logprobs: limits.max_logprobs as usize,
    }
}
