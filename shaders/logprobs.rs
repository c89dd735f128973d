//! Logprobs of rows of raw logits: of one token and of the most probable ones.

use std::ops::Range;

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::kernel::{Bound, Kernel, KernelSource, Pass};
use crate::sample::{self, Params};
use crate::tensor::Tensor;

/// The compiled kernels: of partitions, and of rows.
pub struct LogprobKernels([Kernel; 2], u32);

impl LogprobKernels {
    /// Compiles them.
    pub(crate) fn new(gpu: &Gpu, lanes: u32) -> Result<Self, GpuError> {
        let [parts, ..] = sample::sources(lanes);
        let kernels = [Kernel::new(gpu, &parts)?, Kernel::new(gpu, &source(lanes))?];
        Ok(Self(kernels, sample::partition(lanes)))
    }

    /// Takes logprobs of the rows that want them; those of sampled tokens after they were sampled.
    ///
    /// * `rows`: `[num_rows]` of [`crate::sampler::RowParams`]
    /// * `logits`: [group_rows, vocab_size]
    /// * `results`: the records of all rows, each where its parameters say
    /// * `work`: `[work_words]`
    pub(crate) fn bind(&self, gpu: &Gpu, tensors: [&Tensor; 4]) -> Result<BoundLogprobs, GpuError> {
        let Self([parts, logprobs], partition) = self;
        let kernels = [parts.bind(gpu, &tensors)?, logprobs.bind(gpu, &tensors)?];
        Ok(BoundLogprobs(kernels, *partition))
    }
}

/// The kernels bound to a sampler's tensors.
pub struct BoundLogprobs([Bound; 2], u32);

impl BoundLogprobs {
    /// Takes the logprobs of a group: the rows of a step whose logits start at row 0.
    pub(crate) fn record(&self, pass: &mut Pass, vocab_size: u32, rows: Range<usize>) {
        let Self([parts, logprobs], partition) = self;
        let params = Params { vocab_size, first_row: rows.start as u32, is_raw: 1 };
        let num_rows = rows.len() as u32;
        pass.dispatch(parts, &params, [vocab_size.div_ceil(*partition), num_rows, 1]);
        pass.dispatch(logprobs, &params, [num_rows, 1, 1]);
    }
}

/// ln of the probability of each token, -inf where its logit is NaN or -inf. f64, since it is the
/// measure of the kernel's accuracy.
///
/// * `logits`: `[vocab_size]`
pub fn reference(logits: &[f32]) -> Vec<f64> {
    let value = |z: f32| match z {
        z if z.is_nan() => f64::NEG_INFINITY,
        z => f64::from(z.min(f32::MAX)),
    };
    let best = logits.iter().map(|&z| value(z)).fold(f64::NEG_INFINITY, f64::max);
    if best == f64::NEG_INFINITY {
        return vec![best; logits.len()];
    }
    let sum: f64 = logits.iter().map(|&z| (value(z) - best).exp()).sum();
    logits.iter().map(|&z| value(z) - best - sum.ln()).collect()
}

pub(crate) fn source(lanes: u32) -> KernelSource {
    sample::source("logprobs", include_str!("logprobs.wgsl"), lanes, 0)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::sampler::Row;
    use crate::sampler::testing::{self as sampler, ODD_SIZES, realistic};
    use crate::testing;

    #[test]
    fn params_are_the_shader_s() {
        testing::assert_kernel(&source(256));
        testing::assert_params(
            &source(256),
            &[
                ("vocab_size", offset_of!(Params, vocab_size)),
                ("first_row", offset_of!(Params, first_row)),
                ("is_raw", offset_of!(Params, is_raw)),
            ],
        );
    }

    #[test]
    fn reference_by_hand() {
        let logprobs = reference(&[1.0f32, 1.0, f32::NAN, f32::NEG_INFINITY, 1.0]);
        let third = -(3.0f64.ln());
        let expected = [third, third, f64::NEG_INFINITY, f64::NEG_INFINITY, third];
        assert_eq!(logprobs, expected);
    }

    #[test]
    fn agrees_with_the_reference() {
        let Some(gpu) = testing::gpu() else { return };
        let mut random = testing::Random::new(1);
        let mut worst = 0.0f64;
        for vocab_size in ODD_SIZES {
            let logits = realistic(&mut random, 3 * vocab_size);
            let rows: Vec<Row<'_>> = [0, 5, 20]
                .map(|num| Row {
                    score: Some(random.below(vocab_size) as u32),
                    num_logprobs: Some(num),
                    ..Row::default()
                })
                .to_vec();
            let results = sampler::run(&gpu, vocab_size, &logits, &rows);
            for (index, (row, result)) in rows.iter().zip(&results).enumerate() {
                let logits = &logits[index * vocab_size..][..vocab_size];
                let expected = reference(logits);
                let mut best: Vec<usize> = (0..vocab_size).collect();
                best.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
                best.truncate(row.num_logprobs.unwrap() as usize);
                let top: Vec<usize> = result.top.iter().map(|(token, _)| *token as usize).collect();
                assert_eq!(top, best, "{vocab_size}");
                let chosen = (row.score.unwrap(), result.logprob.unwrap());
                for &(token, logprob) in result.top.iter().chain([&chosen]) {
                    let error = (f64::from(logprob) - expected[token as usize]).abs();
                    worst = worst.max(error);
                    assert!(error < 1e-5, "{vocab_size}: {error}");
                    assert!(logprob <= 0.0);
                }
            }
        }
        eprintln!("worst error of a logprob: {worst:e}");
    }

    #[test]
    fn the_whole_vocabulary_may_be_asked_for() {
        let Some(gpu) = testing::gpu() else { return };
        let mut random = testing::Random::new(2);
        // Few different values: most tokens tie.
        let logits: Vec<f32> = (0..640).map(|_| random.below(40) as f32 * 0.25 - 5.0).collect();
        let row = Row { score: Some(639), num_logprobs: Some(640), ..Row::default() };
        let result = sampler::run(&gpu, 640, &logits, &[row]).remove(0);
        let mut best: Vec<u32> = (0..640).collect();
        best.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
        let top: Vec<u32> = result.top.iter().map(|(token, _)| *token).collect();
        assert_eq!(top, best);
        let sum: f64 = result.top.iter().map(|(_, logprob)| f64::from(*logprob).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        let (_, of_639) = result.top.iter().find(|(token, _)| *token == 639).unwrap();
        assert_eq!(result.logprob.unwrap().to_bits(), of_639.to_bits());
    }

    #[test]
    fn what_is_no_number() {
        let Some(gpu) = testing::gpu() else { return };
        let ask = |score, logits: &[f32]| {
            let row = Row { score: Some(score), num_logprobs: Some(4), ..Row::default() };
            let result = sampler::run(&gpu, logits.len(), logits, &[row]).remove(0);
            (result.logprob.unwrap(), result.top)
        };
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        assert_eq!(ask(0, &[nan, 7.0]), (-inf, vec![(1, 0.0), (0, -inf)]));
        assert_eq!(ask(0, &[nan, -inf]), (-inf, vec![(0, -inf), (1, -inf)]));
        let (logprob, top) = ask(2, &[-1e30, inf, 1e30]);
        assert!(logprob < -1e29 && top[..] == [(1, 0.0), (2, logprob), (0, top[2].1)]);
        assert!(top[2].1 < -1e29);
    }
}
