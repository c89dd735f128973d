//! What a stage takes of an adapter's memory, computed before anything is allocated.

use checkpoint::{Checkpoint, ModelConfig, Part};
use protocol::{BLOCK_TOKENS, StageLimits, StagePlan};
use shaders::copy_blocks::CopyBlocks;
use shaders::gpu::{Gpu, READBACK_BYTES};
use shaders::inputs::{InputLimits, Inputs};
use shaders::kv_cache::KvCache;
use shaders::sampler::{Sampler, SamplerLimits};
use shaders::weights::WeightMatrix;

use crate::error::StageError;
use crate::head::MAX_ROWS;
use crate::model::{Scratch, head_shape, kv_format, on_device};

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
        + CopyBlocks::num_bytes(gpu, head_shape(model), kv)
        + vector(max_positions * model.rotary_dim)
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
            + Sampler::num_bytes(&sampler_limits(model, &plan.limits));
    }
    Ok(total)
}

/// Bytes of a part's weights.
///
/// # Errors
/// When the files don't hold its tensors.
pub fn part_bytes(gpu: &Gpu, files: &Checkpoint, part: Part) -> Result<u64, StageError> {
    let model = files.config();
    let matrix = |matrix| -> Result<u64, StageError> {
        let view = files.matrix(matrix)?;
        let shape = (view.rows(), view.cols());
        Ok(WeightMatrix::num_bytes(gpu, shape, on_device(view.format())))
    };
    let vector = |len| gpu.vec4s_bytes(len);
    let mut total = 0;
    for part in part.matrices() {
        total += matrix(part)?;
    }
    total += match part {
        Part::Embedding => 0,
        Part::Layer(_) => {
            let num_norms = if model.sandwich_norms { 4 } else { 2 };
            // No values are no tensor; the smallest has a whole row.
            let bias = model.attention_bias.then(|| vector(head_shape(model).qkv_size()));
            num_norms * vector(model.hidden_size) + bias.unwrap_or(0)
        }
        Part::Head => vector(model.hidden_size),
    };
    Ok(total)
}

/// Blocks of KV cache: as many as are wanted and fit beside `other_bytes`.
///
/// # Errors
/// When not even one sequence fits.
pub fn num_blocks(
    gpu: &Gpu,
    model: &ModelConfig,
    plan: &StagePlan,
    other_bytes: u64,
) -> Result<u32, StageError> {
    let allowed = plan.memory_bytes;
    let heads = head_shape(model);
    let num_layers = plan.layers.len() as u64;
    // Of a cache of `blocks` blocks, in all layers.
    let kv = kv_format(plan.kv_cache_dtype);
    let cache = |blocks| num_layers * KvCache::num_bytes(gpu, heads, kv, blocks as usize);
    let one_sequence = u64::from(plan.limits.max_model_len).div_ceil(BLOCK_TOKENS as u64);
    let needed = other_bytes + cache(one_sequence);
    let Some(left) = allowed.checked_sub(needed) else {
        return Err(StageError::TooLarge { needed, allowed, missing: needed - allowed });
    };
    let left = left + cache(one_sequence);
    // A software driver's memory is the machine's: it takes what one sequence needs, and for more
    // no more than this.
    let left = if gpu.caps().is_cpu {
        left.min(MAX_SOFTWARE_KV_BYTES.max(cache(one_sequence)))
    } else {
        left
    };
    let bindable = KvCache::max_blocks(gpu, heads, kv) as u64;
    let most = bindable.min(plan.limits.max_blocks.into());
    let per_block = num_layers * heads.block_bytes(kv);
    let mut blocks = left.checked_div(per_block).unwrap_or(u64::MAX).min(most);
    // Images are whole rows.
    while blocks > one_sequence && cache(blocks) > left {
        blocks -= 1;
    }
    Ok(blocks as u32)
}

/// What the tensor of inputs has room for.
pub fn input_limits(model: &ModelConfig, limits: &StageLimits, num_blocks: u32) -> InputLimits {
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
pub fn sampler_limits(model: &ModelConfig, limits: &StageLimits) -> SamplerLimits {
    SamplerLimits {
        vocab_size: model.vocab_size,
        // With the logprobs of a prompt every token has a row.
        max_rows: limits.max_batched_tokens as usize,
        max_logprobs: limits.max_logprobs as usize,
    }
}
