//! The class of a device for layers with latent attention: a small one, computed for all tokens at
//! once and for some alone.

use std::ops::Range;

use crate::attention_beside::{self, Beside};
use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::index::{self, IndexShape};
use crate::inputs::{BLOCK_TOKENS, InputLimits, Inputs, StepInputs};
use crate::kernel::Pass;
use crate::kv_cache::{KvFormat, LatentCache};
use crate::mla::{self, BoundLatentAttention, LatentShape, LatentTensors};
use crate::rotary::{Rotary, inverse_frequencies};
use crate::self_test::{Numbers, class_of, name_of};
use crate::tensor::Tensor;

/// More positions than a partition of attention has.
const NUM_TOKENS: usize = 267;

/// The test of latent attention, whose kernels may be compiled with others before it runs.
pub struct LatentTest {
    name: [u8; 32],
    shape: LatentShape,
    inputs: Inputs,
    attention: BoundLatentAttention,
    latent: Tensor,
    head_queries: Tensor,
    queries: Tensor,
    out: Tensor,
    chosen: Option<Tensor>,
    all_chosen: Option<Vec<u32>>,
}

impl LatentTest {
    /// Of this shape, whose positions are chosen like this if at all, with a cache of type `kv`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(
        gpu: &Gpu,
        shape: LatentShape,
        index: Option<IndexShape>,
        kv: KvFormat,
    ) -> Result<Self, GpuError> {
        let caps = gpu.caps();
        let mut sources = vec![mla::store_source(caps, kv), mla::attend_source(caps, shape, kv)];
        if let Some(shape) = index {
            sources.push(index::store_source(caps, kv));
            sources.push(index::score_source(caps, shape, kv));
            sources.push(index::choose_source(caps, shape));
        }
        let limits = InputLimits {
            max_tokens: NUM_TOKENS,
            max_outputs: 0,
            max_table_entries: NUM_TOKENS.div_ceil(BLOCK_TOKENS),
            max_copies: 0,
            max_positions: NUM_TOKENS,
            num_blocks: NUM_TOKENS.div_ceil(BLOCK_TOKENS),
            vocab_size: 1,
        };
        let inputs = Inputs::new(gpu, limits)?;
        let rotary = Rotary::new(gpu, &inverse_frequencies(10_000.0, shape.rope), NUM_TOKENS)?;
        let cache = LatentCache::new(gpu, shape.width(), kv, limits.num_blocks)?;
        let heads = NUM_TOKENS * shape.num_heads;
        let latent = gpu.alloc_f32(NUM_TOKENS * shape.width())?;
        let head_queries = gpu.alloc_vec4s(heads * (shape.nope + shape.rope))?;
        let queries = gpu.alloc_vec4s(heads * shape.width())?;
        let out = gpu.alloc_vec4s(heads * shape.lora)?;
        // Every second position, of the token's own and of those before it.
        let chosen = match shape.chosen {
            Some(most) => {
                let row = |position: usize| {
                    let mut row: Vec<u32> = (0..=position as u32).step_by(2).take(most).collect();
                    row.insert(0, row.len() as u32);
                    row.resize(1 + most, 0);
                    row
                };
                Some((0..NUM_TOKENS).flat_map(row).collect::<Vec<u32>>())
            }
            None => None,
        };
        let all_chosen = chosen;
        let chosen = all_chosen.as_ref().map(|all| gpu.upload(all)).transpose()?;
        let norm = gpu.upload(&Numbers(3).take(shape.lora))?;
        let tensors = LatentTensors {
            latent: &latent,
            norm: (&norm, 1e-6),
            head_queries: &head_queries,
            queries: &queries,
            out: &out,
            chosen: chosen.as_ref(),
        };
        let on = (&inputs, &rotary, &cache);
        let parts = mla::parts(gpu, shape);
        sources.push(attention_beside::merge_source(caps, parts));
        let beside = Beside::new(gpu, parts, NUM_TOKENS)?;
        let attention = BoundLatentAttention::new(gpu, shape, on, tensors, beside.as_ref())?;
        let name = name_of(gpu, &sources);
        Ok(Self {
            name,
            shape,
            inputs,
            attention,
            latent,
            head_queries,
            queries,
            out,
            chosen,
            all_chosen,
        })
    }

    /// The class of this device for such layers.
    ///
    /// # Errors
    /// If a row depends on its batch here, which no device should do.
    pub fn run(mut self, gpu: &Gpu) -> Result<[u8; 32], GpuError> {
        let together = self.compute(gpu, 0..NUM_TOKENS)?;
        let row_bytes = together.len() / NUM_TOKENS;
        for tokens in [NUM_TOKENS - 1..NUM_TOKENS, 30..35, 0..2] {
            let rows = self.compute(gpu, tokens.clone())?;
            if rows != together[tokens.start * row_bytes..tokens.end * row_bytes] {
                return Err(GpuError::Failed(format!(
                    "{} attends to latent rows differently in another batch",
                    gpu.info().name
                )));
            }
        }
        Ok(class_of(&self.name, &together))
    }

    /// Those before have been run.
    fn compute(&mut self, gpu: &Gpu, tokens: Range<usize>) -> Result<Vec<u8>, GpuError> {
        let num_tokens = tokens.len();
        for (seed, tensor) in (4..).zip([&self.latent, &self.head_queries, &self.queries]) {
            let width = tensor.len() / NUM_TOKENS;
            let all = Numbers(seed).take(tensor.len());
            gpu.write(tensor, 0, &all[tokens.start * width..tokens.end * width]);
        }
        if let (Some(chosen), Some(all)) = (&self.chosen, &self.all_chosen) {
            let width = all.len() / NUM_TOKENS;
            gpu.write(chosen, 0, &all[tokens.start * width..tokens.end * width]);
        }
        let step = StepInputs {
            token_ids: vec![0; num_tokens],
            positions: tokens.map(|position| position as u32).collect(),
            table_starts: vec![0; num_tokens],
            output_rows: Vec::new(),
            tables: (0..NUM_TOKENS.div_ceil(BLOCK_TOKENS) as u32).collect(),
            copies: Vec::new(),
        };
        let step =
            self.inputs.write(gpu, &step).map_err(|error| GpuError::Failed(error.to_string()))?;
        let mut pass = Pass::new();
        self.attention.record(&mut pass, step);
        let out = (&self.out, 0..num_tokens * self.shape.num_heads * self.shape.lora);
        gpu.wait(gpu.submit(&pass, Some(out))?, <[u8]>::to_vec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_class_of_latent_attention_is_stable_and_knows_its_shape() {
        let Some(gpu) = testing::gpu() else { return };
        let shape = LatentShape { num_heads: 4, lora: 64, nope: 24, rope: 16, chosen: None };
        let class = |shape, kv| LatentTest::new(&gpu, shape, None, kv).unwrap().run(&gpu).unwrap();
        assert_eq!(class(shape, KvFormat::F32), class(shape, KvFormat::F32));
        assert_ne!(class(shape, KvFormat::F32), class(shape, KvFormat::F16));
        let chosen = LatentShape { chosen: Some(40), ..shape };
        assert_ne!(class(shape, KvFormat::F32), class(chosen, KvFormat::F32));
        let other = LatentShape { lora: 32, ..shape };
        assert_ne!(class(shape, KvFormat::F32), class(other, KvFormat::F32));
    }
}
