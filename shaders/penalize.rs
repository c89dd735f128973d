//! Penalties and biases: logits are changed in place for sampling, and put back afterwards.
//!
//! Only few tokens of a row are biased or were seen, so they come as a list, and no copy of the
//! logits is needed. The order is vLLM's (V1): bias, repetition, frequency, presence.

use bytemuck::{Pod, Zeroable};

use crate::change::{BoundChange, Change};
use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::kernel::{KernelSource, Pass};
use crate::sampler::{Sampling, shared_source};
use crate::tensor::Tensor;

/// The parameters of `penalize.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct Params {
    vocab_size: u32,
    first_row: u32,
    first_adjustment: u32,
    num_adjustments: u32,
}

/// What is known of one token of a row that makes its logit another.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Adjustment {
    /// Its place in the row of logits.
    pub token: u32,
    /// How often it stands in the answer so far.
    pub num_in_answer: u32,
    /// Whether it stands in the prompt.
    pub in_prompt: bool,
    /// Added to its logit; -inf forbids the token.
    pub bias: f32,
}

/// An [`Adjustment`] as the kernel reads it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct AdjustmentWords {
    row: u32,
    token: u32,
    num_in_answer: u32,
    in_prompt: u32,
    bias: f32,
}

impl AdjustmentWords {
    /// `adjustment` of row `row` of the step.
    pub(crate) fn new(row: u32, adjustment: &Adjustment) -> Self {
        Self {
            row,
            token: adjustment.token,
            num_in_answer: adjustment.num_in_answer,
            in_prompt: adjustment.in_prompt.into(),
            bias: adjustment.bias,
        }
    }
}

/// The compiled kernels.
pub(crate) struct Penalize(Change);

impl Penalize {
    /// Compiles both.
    pub(crate) fn new(gpu: &Gpu) -> Result<Self, GpuError> {
        Change::new(gpu, sources()).map(Self)
    }

    /// Changes logits, then takes the change back.
    ///
    /// * `rows`: `[num_rows]` of [`crate::sampler::RowParams`]
    /// * `adjustments`: `[max_adjustments]`, each token of a row at most once
    /// * `raw`: `[max_adjustments]`, where logits are kept meanwhile
    /// * `logits`: [group_rows, vocab_size]
    pub(crate) fn bind(&self, gpu: &Gpu, tensors: [&Tensor; 4]) -> Result<BoundPenalize, GpuError> {
        self.0.bind(gpu, &tensors).map(BoundPenalize)
    }
}

/// The kernels bound to a sampler's tensors.
pub(crate) struct BoundPenalize(BoundChange);

impl BoundPenalize {
    /// Changes the logits that a range of adjustments names.
    pub(crate) fn record_apply(&self, pass: &mut Pass, params: &Params) {
        self.0.record_apply(pass, params, params.grid());
    }

    /// Puts back what [`Self::record_apply`] changed.
    pub(crate) fn record_restore(&self, pass: &mut Pass, params: &Params) {
        self.0.record_restore(pass, params, params.grid());
    }
}

impl Params {
    /// Of the adjustments `range`, which belong to the group of rows that starts at `first_row`.
    pub(crate) fn new(vocab_size: u32, first_row: u32, range: std::ops::Range<u32>) -> Self {
        let (first_adjustment, num_adjustments) = (range.start, range.end - range.start);
        Self { vocab_size, first_row, first_adjustment, num_adjustments }
    }

    fn grid(&self) -> [u32; 3] {
        [self.num_adjustments.div_ceil(LANES), 1, 1]
    }
}

/// The logit that a token is sampled by.
pub fn reference(sampling: &Sampling, adjustment: &Adjustment, logit: f32) -> f32 {
    let mut z = logit + adjustment.bias;
    let in_answer = adjustment.num_in_answer > 0;
    if in_answer || adjustment.in_prompt {
        let penalty = sampling.repetition_penalty;
        z = if z > 0.0 { z / penalty } else { z * penalty };
    }
    z = (-sampling.frequency_penalty).mul_add(adjustment.num_in_answer as f32, z);
    if in_answer { z - sampling.presence_penalty } else { z }
}

/// Adjustments per workgroup.
pub(crate) const LANES: u32 = 256;

pub(crate) fn sources() -> [KernelSource; 2] {
    [("penalize", false), ("penalize restore", true)].map(|(name, restore)| {
        let constants = [("RESTORE", restore.into())];
        shared_source::<Params>(name, include_str!("penalize.wgsl"), LANES, &constants)
    })
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::sampler::RowParams;
    use crate::sampler::testing::{assert_struct, sampling};
    use crate::testing;

    #[test]
    fn params_are_the_shader_s() {
        for source in sources() {
            testing::assert_kernel(&source);
            testing::assert_params(
                &source,
                &[
                    ("vocab_size", offset_of!(Params, vocab_size)),
                    ("first_row", offset_of!(Params, first_row)),
                    ("first_adjustment", offset_of!(Params, first_adjustment)),
                    ("num_adjustments", offset_of!(Params, num_adjustments)),
                ],
            );
            assert_struct::<AdjustmentWords>(
                &source,
                "Adjustment",
                &[
                    ("row", offset_of!(AdjustmentWords, row)),
                    ("token", offset_of!(AdjustmentWords, token)),
                    ("num_in_answer", offset_of!(AdjustmentWords, num_in_answer)),
                    ("in_prompt", offset_of!(AdjustmentWords, in_prompt)),
                    ("bias", offset_of!(AdjustmentWords, bias)),
                ],
            );
        }
    }

    #[test]
    fn reference_by_hand() {
        let sampling = Sampling {
            repetition_penalty: 2.0,
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            ..Sampling::default()
        };
        let adjust = |num_in_answer, in_prompt, bias, logit| {
            let adjustment = Adjustment { token: 0, num_in_answer, in_prompt, bias };
            reference(&sampling, &adjustment, logit)
        };
        assert_eq!(adjust(0, false, 1.0, 3.0), 4.0);
        assert_eq!(adjust(0, true, 1.0, 3.0), 2.0);
        assert_eq!(adjust(0, true, 0.0, -3.0), -6.0);
        assert_eq!(adjust(3, false, 1.0, 3.0), 2.0 - 1.5 - 0.25);
    }

    #[test]
    fn agrees_with_the_reference_and_restores() {
        let Some(gpu) = testing::gpu() else { return };
        let mut random = testing::Random::new(1);
        let kernels = Penalize::new(&gpu).unwrap();
        for vocab_size in [1, 63, 1757] {
            let logits: Vec<f32> = random.normal(3 * vocab_size).iter().map(|z| 4.0 * z).collect();
            // The group is rows 2, 3, 4 of the step.
            let params: Vec<Sampling> = (0..5)
                .map(|row| Sampling {
                    repetition_penalty: 0.5 + 0.3 * row as f32,
                    frequency_penalty: 0.2 * row as f32 - 0.3,
                    presence_penalty: 0.4 * row as f32 - 0.5,
                    ..sampling(row)
                })
                .collect();
            let mut expected = logits.clone();
            let mut words = vec![AdjustmentWords::new(4, &Adjustment::default()); 7];
            for row in 2..5 {
                let num_adjusted = vocab_size.div_ceil(2);
                for &token in &random.permutation(vocab_size)[..num_adjusted] {
                    let adjustment = Adjustment {
                        token: token as u32,
                        num_in_answer: random.below(4) as u32,
                        in_prompt: random.below(2) == 1,
                        bias: random.normal(1)[0],
                    };
                    words.push(AdjustmentWords::new(row as u32, &adjustment));
                    let z = &mut expected[(row - 2) * vocab_size + token];
                    *z = reference(&params[row], &adjustment, *z);
                }
            }
            let rows: Vec<RowParams> = params.iter().map(RowParams::of_sampling).collect();
            let rows = gpu.upload(&rows).unwrap();
            let adjustments = gpu.upload(&words).unwrap();
            let raw = gpu.alloc_f32(words.len()).unwrap();
            let tensor = gpu.upload(&logits).unwrap();
            let bound = kernels.bind(&gpu, [&rows, &adjustments, &raw, &tensor]).unwrap();
            let params = Params::new(vocab_size as u32, 2, 7..words.len() as u32);
            let mut pass = Pass::new();
            bound.record_apply(&mut pass, &params);
            gpu.run(&pass).unwrap();
            // A driver may round a division or the parts of a fma otherwise.
            testing::assert_close(&gpu.read_f32(&tensor).unwrap(), &expected, 1e-6);
            pass.clear();
            bound.record_restore(&mut pass, &params);
            gpu.run(&pass).unwrap();
            testing::assert_bits_eq(&gpu.read_f32(&tensor).unwrap(), &logits);
        }
    }
}
