//! Tokens drawn from rows of logits: temperature, min_p, top_k, top_p, then one random number.
//!
//! The filters and their order are vLLM's (V1).

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::kernel::{Access, Bound, Kernel, KernelSource, Pass};
use crate::rng;
use crate::sampler::{Sampling, shared_source};
use crate::tensor::Tensor;

/// The parameters of `sample.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    vocab_size: u32,
    first_row: u32,
}

/// The compiled kernels: for rows that don't filter tokens, and for those that do.
pub struct Sample([Kernel; 2]);

impl Sample {
    /// Compiles both.
    pub(crate) fn new(gpu: &Gpu, lanes: u32) -> Result<Self, GpuError> {
        let [plain, filtering] = sources(lanes);
        Ok(Self([Kernel::new(gpu, &plain)?, Kernel::new(gpu, &filtering)?]))
    }

    /// Samples a token of each row, from logits that penalties and biases are in.
    ///
    /// * `rows`: `[num_rows]` of [`crate::sampler::RowParams`]
    /// * `logits`: [group_rows, vocab_size]
    /// * `results`: the records of all rows, each where its parameters say
    pub(crate) fn bind(&self, gpu: &Gpu, tensors: [&Tensor; 3]) -> Result<BoundSample, GpuError> {
        let Self([plain, filtering]) = self;
        Ok(BoundSample([plain.bind(gpu, &tensors)?, filtering.bind(gpu, &tensors)?]))
    }
}

/// The kernels bound to a sampler's tensors.
pub struct BoundSample([Bound; 2]);

impl BoundSample {
    /// Samples the rows of one kind from a group: the rows of a step whose logits start at row 0.
    pub(crate) fn record(&self, pass: &mut Pass, kind: Kind, vocab_size: u32, rows: Range<usize>) {
        let params = Params { vocab_size, first_row: rows.start as u32 };
        let Self([plain, filtering]) = self;
        let bound = if kind == Kind::Plain { plain } else { filtering };
        pass.dispatch(bound, &params, [rows.len() as u32, 1, 1]);
    }
}

/// What sampling a row takes. A kernel that can filter does more even where it needn't.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The most probable token, or one drawn from all.
    Plain = 1,
    /// With min_p, top_k or top_p.
    Filtering = 2,
}

impl Kind {
    pub(crate) fn of(sampling: &Sampling) -> Self {
        let filters = sampling.top_k > 0 || sampling.top_p < 1.0 || sampling.min_p > 0.0;
        if filters && sampling.temperature > 0.0 { Self::Filtering } else { Self::Plain }
    }
}

/// What is left of a row after min_p, top_k and top_p: tokens and their probabilities, best first.
///
/// * `logits`: `[vocab_size]`, with penalties and biases
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

/// The token that the number `uniform` in [0, 1) stands for: probabilities are added in the order
/// of a kernel with so many lanes, lane after lane.
pub fn reference(lanes: u32, survivors: &[(u32, f64)], uniform: f64) -> u32 {
    let mut in_order = survivors.to_vec();
    in_order.sort_by_key(|(token, _)| (token % lanes, *token));
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

/// Tokens that a lane can list: as many as workgroup memory, 32 KiB everywhere, has room for.
const LIST_SLOTS: u32 = 12;

pub(crate) fn sources(lanes: u32) -> [KernelSource; 2] {
    [("sample", Kind::Plain), ("sample filtering", Kind::Filtering)].map(|(name, kind)| {
        let constants = [
            ("SAMPLES", kind as u32),
            ("FILTERS", (kind == Kind::Filtering).into()),
            ("BINS", 16 * lanes),
            ("LIST", LIST_SLOTS * lanes),
            ("LIST_SLOTS", LIST_SLOTS),
        ];
        let source = shared_source(include_str!("sample.wgsl"), lanes, &constants);
        let wgsl = [&source, rng::WGSL].concat();
        KernelSource::new::<Params>(name, wgsl, &[Access::Read, Access::Read, Access::ReadWrite])
    })
}

#[cfg(test)]
#[path = "sample_tests.rs"]
mod tests;
