//! Tokens drawn from rows of logits: temperature, min_p, top_k, top_p, then one random number.
//!
//! The filters and their order are vLLM's (V1).

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::kernel::{Access, Bound, Kernel, KernelSource, Pass};
use crate::rng;
use crate::sampler::{LANES, Sampling, shared_source};
use crate::tensor::Tensor;

/// The parameters of `sample.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    vocab_size: u32,
    first_row: u32,
}

/// The compiled kernel.
pub struct Sample(Kernel);

impl Sample {
    /// Compiles it.
    pub fn new(gpu: &Gpu) -> Result<Self, GpuError> {
        Ok(Self(Kernel::new(gpu, &source())?))
    }

    /// Samples a token of each row, from logits that penalties and biases are in.
    ///
    /// * `rows`: [num_rows] of [`crate::sampler::RowParams`]
    /// * `logits`: [group_rows, vocab_size]
    /// * `results`: the records of all rows, each where its parameters say
    pub(crate) fn bind(&self, gpu: &Gpu, tensors: [&Tensor; 3]) -> Result<BoundSample, GpuError> {
        Ok(BoundSample(self.0.bind(gpu, &tensors)?))
    }
}

/// The kernel bound to a sampler's tensors.
pub struct BoundSample(Bound);

impl BoundSample {
    /// Samples from a group: the rows of a step whose logits start at row 0.
    pub(crate) fn record(&self, pass: &mut Pass, vocab_size: u32, rows: Range<usize>) {
        let params = Params { vocab_size, first_row: rows.start as u32 };
        pass.dispatch(&self.0, &params, [rows.len() as u32, 1, 1]);
    }
}

/// What is left of a row after min_p, top_k and top_p: tokens and their probabilities, best first.
///
/// * `logits`: [vocab_size], with penalties and biases
pub fn survivors(sampling: &Sampling, logits: &[f32]) -> Vec<(u32, f64)> {
    let order = |logit: f32| if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) };
    let mut tokens: Vec<(u32, f32)> = (0..).zip(logits.iter().map(|&z| order(z))).collect();
    // The sort is stable: of equals, the lowest id comes first.
    tokens.sort_by(|a, b| b.1.total_cmp(&a.1));
    let best = tokens[0].1;
    if best == f32::NEG_INFINITY || sampling.temperature == 0.0 {
        return vec![(tokens[0].0, 1.0)];
    }
    let temperature = f64::from(sampling.temperature.clamp(1e-6, 1e6));
    let weight = |z: f32| ((f64::from(z) - f64::from(best)) / temperature).exp();
    let mut weights: Vec<(u32, f64)> = tokens
        .iter()
        .filter(|(_, z)| *z > f32::NEG_INFINITY)
        .map(|&(token, z)| (token, weight(z)))
        .take_while(|(_, weight)| *weight >= f64::from(sampling.min_p))
        .collect();
    if sampling.top_k > 0 {
        weights.truncate(sampling.top_k as usize);
    }
    let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
    if sampling.top_p < 1.0 {
        let goal = f64::from(sampling.top_p) * total;
        let mut sum = 0.0;
        let mut reaches = |weight: f64| {
            sum += weight;
            sum >= goal
        };
        let last = weights.iter().position(|(_, weight)| reaches(*weight));
        weights.truncate(last.map_or(weights.len(), |last| last + 1));
    }
    let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
    weights.into_iter().map(|(token, weight)| (token, weight / total)).collect()
}

/// The token that the number `uniform` in [0, 1) stands for: probabilities are added in the order of
/// the kernel, lane after lane.
pub fn reference(survivors: &[(u32, f64)], uniform: f64) -> u32 {
    let mut in_order = survivors.to_vec();
    in_order.sort_by_key(|(token, _)| (token % LANES, *token));
    let mut sum = 0.0;
    let mut chosen = in_order[0].0;
    for (token, probability) in in_order {
        if sum > uniform {
            break;
        }
        if probability > 0.0 {
            chosen = token;
            sum += probability;
        }
    }
    chosen
}

pub(crate) fn source() -> KernelSource {
    let wgsl = [&shared_source(include_str!("sample.wgsl"), &[]), rng::WGSL].concat();
    KernelSource::new::<Params>("sample", wgsl, &[Access::Read, Access::Read, Access::ReadWrite])
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::testing;

    #[test]
    fn params_are_the_shader_s() {
        testing::assert_kernel(&source());
        testing::assert_params(
            &source(),
            &[
                ("vocab_size", offset_of!(Params, vocab_size)),
                ("first_row", offset_of!(Params, first_row)),
            ],
        );
    }

    #[test]
    fn references_by_hand() {
        let ln = f32::ln;
        let logits = [ln(0.1), ln(0.4), f32::NAN, ln(0.4), ln(0.1)];
        let of = |sampling| {
            let survivors = survivors(&sampling, &logits);
            survivors.iter().map(|(token, _)| *token).collect::<Vec<_>>()
        };
        let plain = Sampling::default();
        assert_eq!(of(Sampling { temperature: 0.0, ..plain }), [1]);
        assert_eq!(of(plain), [1, 3, 0, 4]);
        assert_eq!(of(Sampling { top_k: 3, ..plain }), [1, 3, 0]);
        assert_eq!(of(Sampling { top_p: 0.3, ..plain }), [1]);
        assert_eq!(of(Sampling { top_p: 0.5, ..plain }), [1, 3]);
        assert_eq!(of(Sampling { min_p: 0.5, ..plain }), [1, 3]);
        let survivors = survivors(&plain, &logits);
        let at = |uniform| reference(&survivors, uniform);
        assert_eq!([at(0.0), at(0.09), at(0.11), at(0.6), at(0.95)], [0, 0, 1, 3, 4]);
    }
}
