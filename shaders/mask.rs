//! Masks: where an answer keeps to a grammar, tokens that can't come next are impossible. Their
//! logits are -inf for sampling, and put back afterwards.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::change::{BoundChange, Change};
use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::kernel::{KernelSource, Pass};
use crate::tensor::Tensor;

/// The parameters of `mask.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    vocab_size: u32,
    first_row: u32,
    first_mask: u32,
    num_words: u32,
}

/// Words of a mask: a bit for each token, the lowest first, 1 where it may come.
pub fn num_words(vocab_size: usize) -> usize {
    vocab_size.div_ceil(32)
}

/// The masks of a step, and the kernels that apply them. Takes no memory before the first mask.
pub struct StepMasks {
    kernels: Change,
    vocab_size: usize,
    group_rows: usize,
    logits: Tensor,
    // Those of the step; kept, so that a step allocates nothing.
    rows: Vec<u32>,
    words: Vec<u32>,
    bound: Option<BoundMasks>,
}

/// The kernels bound to tensors for so many masks.
struct BoundMasks {
    max_masks: usize,
    rows: Tensor,
    words: Tensor,
    change: BoundChange,
}

impl StepMasks {
    /// Compiles the kernels.
    ///
    /// * `logits`: [group_rows, vocab_size]
    pub(crate) fn new(gpu: &Gpu, vocab_size: usize, logits: &Tensor) -> Result<Self, GpuError> {
        Ok(Self {
            kernels: Change::new(gpu, sources())?,
            vocab_size,
            group_rows: logits.len() / vocab_size,
            logits: logits.clone(),
            rows: Vec::new(),
            words: Vec::new(),
            bound: None,
        })
    }

    /// Another step begins, which has none yet.
    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        self.words.clear();
    }

    /// Adds the mask of row `row` of the step, of [`num_words`] words.
    pub(crate) fn push(&mut self, row: u32, mask: &[u32]) {
        self.rows.push(row);
        self.words.extend_from_slice(mask);
    }

    /// How many the step has so far.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Copies those of the step to the device. The room for them grows to the next power of two
    /// when a step has more than any before. Passes that were recorded keep the tensors they are
    /// bound to.
    pub(crate) fn write(&mut self, gpu: &Gpu) -> Result<(), GpuError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let num_masks = self.rows.len();
        let bound = match &mut self.bound {
            Some(bound) if bound.max_masks >= num_masks => bound,
            bound => {
                let max_masks = num_masks.next_power_of_two();
                let rows = gpu.alloc_u32(max_masks)?;
                let words = gpu.alloc_u32(max_masks * num_words(self.vocab_size))?;
                let raw = gpu.alloc_u32(max_masks.min(self.group_rows) * self.vocab_size)?;
                let change = self.kernels.bind(gpu, &[&rows, &words, &raw, &self.logits])?;
                bound.insert(BoundMasks { max_masks, rows, words, change })
            }
        };
        gpu.write(&bound.rows, 0, &self.rows);
        gpu.write(&bound.words, 0, &self.words);
        Ok(())
    }

    /// Makes impossible what the masks `range` forbid, which belong to the group of rows that
    /// starts at `first_row`.
    pub(crate) fn record_apply(&self, pass: &mut Pass, first_row: usize, range: Range<u32>) {
        if let Some((bound, params, grid)) = self.step(first_row, range) {
            bound.record_apply(pass, &params, grid);
        }
    }

    /// Puts back what [`record_apply`](Self::record_apply) changed.
    pub(crate) fn record_restore(&self, pass: &mut Pass, first_row: usize, range: Range<u32>) {
        if let Some((bound, params, grid)) = self.step(first_row, range) {
            bound.record_restore(pass, &params, grid);
        }
    }

    fn step(
        &self,
        first_row: usize,
        range: Range<u32>,
    ) -> Option<(&BoundChange, Params, [u32; 3])> {
        let bound = self.bound.as_ref().filter(|_| !range.is_empty())?;
        let params = Params {
            vocab_size: self.vocab_size as u32,
            first_row: first_row as u32,
            first_mask: range.start,
            num_words: num_words(self.vocab_size) as u32,
        };
        let grid = [params.vocab_size.div_ceil(LANES), range.len() as u32, 1];
        Some((&bound.change, params, grid))
    }
}

/// What the kernel leaves of a token's logit.
pub fn reference(mask: &[u32], token: usize, logit: f32) -> f32 {
    let may_come = mask[token / 32] >> (token % 32) & 1 == 1;
    if may_come { logit } else { f32::NEG_INFINITY }
}

/// Tokens per workgroup.
const LANES: u32 = 256;

pub(crate) fn sources() -> [KernelSource; 2] {
    [("mask", 0), ("mask restore", 1)].map(|(name, restore)| {
        let constants = [("RESTORE", restore), ("LANES", LANES)];
        KernelSource::declared::<Params>(name, include_str!("mask.wgsl"), false, &constants)
    })
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::sampler::testing::{realistic, run, sampling};
    use crate::sampler::{Row, SampleStep, Sampler, SamplerLimits, Sampling};
    use crate::testing::{self, Random};

    #[test]
    fn params_are_the_shader_s() {
        for source in sources() {
            testing::assert_kernel(&source);
            testing::assert_params(
                &source,
                &[
                    ("vocab_size", offset_of!(Params, vocab_size)),
                    ("first_row", offset_of!(Params, first_row)),
                    ("first_mask", offset_of!(Params, first_mask)),
                    ("num_words", offset_of!(Params, num_words)),
                ],
            );
        }
    }

    fn random_mask(random: &mut Random, vocab_size: usize) -> Vec<u32> {
        (0..num_words(vocab_size)).map(|_| random.below(1 << 32) as u32).collect()
    }

    #[test]
    fn agrees_with_the_reference_and_restores() {
        let Some(gpu) = testing::gpu() else { return };
        let mut random = Random::new(1);
        for vocab_size in [1, 31, 32, 33, 1757] {
            let logits: Vec<f32> = random.normal(3 * vocab_size);
            let tensor = gpu.upload(&logits).unwrap();
            let mut masks = StepMasks::new(&gpu, vocab_size, &tensor).unwrap();
            let mut expected = logits.clone();
            // The group is rows 2, 3, 4 of the step, of which 2 and 4 are masked.
            for row in [0, 2, 4] {
                let mask = random_mask(&mut random, vocab_size);
                masks.push(row, &mask);
                if row >= 2 {
                    let first = (row as usize - 2) * vocab_size;
                    for token in 0..vocab_size {
                        let z = &mut expected[first + token];
                        *z = reference(&mask, token, *z);
                    }
                }
            }
            masks.write(&gpu).unwrap();
            let mut pass = Pass::new();
            masks.record_apply(&mut pass, 2, 1..3);
            gpu.run(&pass).unwrap();
            testing::assert_bits_eq(&gpu.read_f32(&tensor).unwrap(), &expected);
            pass.clear();
            masks.record_restore(&mut pass, 2, 1..3);
            gpu.run(&pass).unwrap();
            testing::assert_bits_eq(&gpu.read_f32(&tensor).unwrap(), &logits);
        }
    }

    /// Goal: a masked row samples what its mask allows, with the logprobs of raw logits, and rows
    /// without a mask don't notice. Method: the same rows with and without masks for every other.
    #[test]
    fn a_masked_row_keeps_to_its_mask_and_changes_no_other() {
        let Some(gpu) = testing::gpu() else { return };
        let (vocab_size, num_rows) = (1757, 20);
        let mut random = Random::new(2);
        let logits = realistic(&mut random, num_rows * vocab_size);
        let masks: Vec<Vec<u32>> = (0..num_rows)
            .map(|_| {
                let mut mask = vec![0; num_words(vocab_size)];
                for _ in 0..3 {
                    let token = random.below(vocab_size);
                    mask[token / 32] |= 1 << (token % 32);
                }
                mask
            })
            .collect();
        let sampled = |row: usize| Sampling {
            temperature: [0.0, 1.0][row / 2 % 2],
            top_p: [1.0, 0.9][row / 4 % 2],
            ..sampling(row)
        };
        let plain: Vec<_> = (0..num_rows)
            .map(|row| Row {
                sampling: Some(sampled(row)),
                num_logprobs: (row % 3 > 0).then_some(2),
                ..Row::default()
            })
            .collect();
        let mut masked = plain.clone();
        for row in (0..num_rows).step_by(2) {
            masked[row].mask = Some(&masks[row]);
        }
        let without = run(&gpu, vocab_size, &logits, &plain);
        let with = run(&gpu, vocab_size, &logits, &masked);
        for row in 0..num_rows {
            if row % 2 == 1 {
                assert_eq!(with[row], without[row], "row {row}");
                continue;
            }
            let token = with[row].token.unwrap();
            let allowed = reference(&masks[row], token as usize, 0.0) == 0.0;
            assert!(allowed, "row {row}: {token}");
            assert_eq!(with[row].top, without[row].top, "row {row}: of raw logits");
            let scored = Row { score: Some(token), num_logprobs: Some(2), ..Row::default() };
            let logits = &logits[row * vocab_size..][..vocab_size];
            let expected = run(&gpu, vocab_size, logits, &[scored])[0].logprob;
            assert_eq!(with[row].logprob, plain[row].num_logprobs.and(expected), "row {row}");
        }
        // Seven at a time, in groups whose logits follow each other, and with room that grows.
        let tensor = gpu.alloc_f32(7 * vocab_size).unwrap();
        let limits = SamplerLimits { vocab_size, max_rows: num_rows, max_logprobs: 2 };
        let mut sampler = Sampler::new(&gpu, limits, &tensor).unwrap();
        for rows in [&masked[..3], &masked[..]] {
            let mut step = SampleStep::default();
            sampler.write(&gpu, rows.iter().copied(), &mut step).unwrap();
            let mut bytes = Vec::new();
            for (group, range) in step.groups().enumerate() {
                gpu.write(&tensor, 0, &logits[range.start * vocab_size..range.end * vocab_size]);
                let mut pass = Pass::new();
                sampler.record(&mut pass, &step, group);
                let submission = gpu.submit(&pass, Some(sampler.readback(&step))).unwrap();
                bytes = gpu.wait(submission, <[u8]>::to_vec).unwrap();
            }
            let grouped: Vec<_> = step.results(&bytes).collect();
            assert_eq!(grouped, with[..rows.len()]);
        }
    }
}
