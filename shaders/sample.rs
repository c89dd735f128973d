//! Tokens drawn from rows of logits: temperature, min_p, top_k, top_p, then one random number.
//!
//! The filters and their order are vLLM's (V1). Workgroups have fixed partitions of the vocabulary
//! side by side; what they leave is merged in ascending order by one for each row
//! (`sample_in.wgsl`).

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::kernel::{Bound, Kernel, KernelSource, Pass};
use crate::rng;
use crate::sampler::{Sampling, shared_source};
use crate::tensor::Tensor;

/// The parameters of `sample_in.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Params {
    pub(crate) vocab_size: u32,
    pub(crate) first_row: u32,
    pub(crate) is_raw: u32,
}

/// Tokens of a partition of the vocabulary, by the lanes of a workgroup.
pub(crate) fn partition(lanes: u32) -> u32 {
    16 * lanes
}

/// Words that kernels with so many lanes leave each other, of rows that are sampled at once.
pub(crate) fn work_words(lanes: u32, group_rows: usize, vocab_size: usize) -> usize {
    let num_partitions = vocab_size.div_ceil(partition(lanes) as usize);
    group_rows * (num_partitions * PART_WORDS + vocab_size)
}

/// Those of a partition, beside its list.
const PART_WORDS: usize = 36;

/// The compiled kernels.
pub struct Sample([Kernel; 5], u32);

impl Sample {
    /// Compiles them.
    pub(crate) fn new(gpu: &Gpu, lanes: u32) -> Result<Self, GpuError> {
        let [parts, bins, list, plain, filtering] =
            sources(lanes).map(|source| Kernel::new(gpu, &source));
        Ok(Self([parts?, bins?, list?, plain?, filtering?], partition(lanes)))
    }

    /// Samples a token of each row, from logits that penalties and biases are in.
    ///
    /// * `rows`: `[num_rows]` of [`crate::sampler::RowParams`]
    /// * `logits`: [group_rows, vocab_size]
    /// * `results`: the records of all rows, each where its parameters say
    /// * `work`: `[work_words]`
    pub(crate) fn bind(&self, gpu: &Gpu, tensors: [&Tensor; 4]) -> Result<BoundSample, GpuError> {
        let [parts, bins, list, plain, filtering] =
            self.0.each_ref().map(|kernel| kernel.bind(gpu, &tensors));
        let kernels = [parts?, bins?, list?, plain?, filtering?];
        Ok(BoundSample { kernels, partition: self.1 })
    }
}

/// The kernels bound to a sampler's tensors.
pub struct BoundSample {
    kernels: [Bound; 5],
    partition: u32,
}

impl BoundSample {
    /// Samples from a group, the rows of a step whose logits start at row 0: those that don't
    /// filter tokens, and those that do, where there are some.
    pub(crate) fn record(
        &self,
        pass: &mut Pass,
        vocab_size: u32,
        rows: Range<usize>,
        [is_plain, filters]: [bool; 2],
    ) {
        let [parts, bins, list, plain, filtering] = &self.kernels;
        let params = Params { vocab_size, first_row: rows.start as u32, is_raw: 0 };
        let num_rows = rows.len() as u32;
        let by_partition = [vocab_size.div_ceil(self.partition), num_rows, 1];
        let by_row = [num_rows, 1, 1];
        let all = [
            (parts, by_partition, is_plain || filters),
            (bins, by_partition, filters),
            (list, by_partition, filters),
            (plain, by_row, is_plain),
            (filtering, by_row, filters),
        ];
        for (bound, grid, _) in all.into_iter().filter(|(.., is_wanted)| *is_wanted) {
            pass.dispatch(bound, &params, grid);
        }
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
/// of kernels with so many lanes, partition after partition, in each lane after lane.
pub fn reference(lanes: u32, survivors: &[(u32, f64)], uniform: f64) -> u32 {
    let mut in_order = survivors.to_vec();
    in_order.sort_by_key(|(token, _)| (token / partition(lanes), token % lanes, *token));
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

/// Of partitions: their best, their bins, their lists; then of rows that don't filter tokens and of
/// those that do.
pub(crate) fn sources(lanes: u32) -> [KernelSource; 5] {
    let binned = include_str!("sample_binned.wgsl");
    let random = [include_str!("sample.wgsl"), rng::WGSL].concat();
    let filtering = Kind::Filtering as u32;
    [
        source("sample parts", include_str!("sample_parts.wgsl"), lanes, 0),
        source("sample bins", &[include_str!("sample_bins.wgsl"), binned].concat(), lanes, 0),
        source("sample list", &[include_str!("sample_list.wgsl"), binned].concat(), lanes, 0),
        source("sample", &random, lanes, Kind::Plain as u32),
        source("sample filtering", &[&random, binned].concat(), lanes, filtering),
    ]
}

/// A kernel that has what `sample_in.wgsl` has.
pub(crate) fn source(name: &str, text: &str, lanes: u32, samples: u32) -> KernelSource {
    let constants = [
        ("SAMPLES", samples),
        ("PLAIN", Kind::Plain as u32),
        ("FILTERING", Kind::Filtering as u32),
        ("FILTERS", (samples == Kind::Filtering as u32).into()),
        ("PARTITION", partition(lanes)),
        ("SIXTEENTH", lanes / 16),
        ("BINS", 16 * lanes),
        ("HALF_BINS", 8 * lanes),
    ];
    let text = [text, include_str!("sample_in.wgsl")].concat();
    shared_source::<Params>(name, &text, lanes, &constants)
}

#[cfg(test)]
#[path = "sample_tests.rs"]
mod tests;
