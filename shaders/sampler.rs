//! Logits to tokens and logprobs, on the device: what a step reads back is ids and logprobs only.
//!
//! A token is a pure function of its row's raw logits, parameters, adjustments, seed, choice and
//! position: there is no state, and no row sees another.
//!
//! The logits of a step may come in groups, each in the same tensor after the group before was
//! sampled. One [`Sampler::write`] tells the device about all rows of a step; then the caller
//! records, for each group, what computes its logits and [`Sampler::record`]; one submit reads
//! [`Sampler::readback`].
//!
//! For each group: penalties, biases and masks change logits in place; a token is sampled; the
//! logits are put back; logprobs are taken, of raw logits. What no row of a group wants isn't
//! dispatched.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::error::GpuError;
use crate::gpu::{Caps, Gpu, Readback};
use crate::kernel::{KernelSource, Pass};
use crate::logprobs::{BoundLogprobs, LogprobKernels};
use crate::mask::StepMasks;
use crate::penalize::{self, Adjustment, AdjustmentWords, BoundPenalize, Penalize};
use crate::sample::{BoundSample, Kind, Sample, work_words};
use crate::tensor::Tensor;

/// One row of logits and what is wanted of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Row<'a> {
    /// How to sample a token; `None`: none is sampled.
    pub sampling: Option<Sampling>,
    /// Where the row's logits are changed before it is sampled; ascending by token.
    pub adjustments: &'a [Adjustment],
    /// Which tokens may be sampled, a bit for each ([`num_words`](crate::mask::num_words));
    /// `None`: all.
    pub mask: Option<&'a [u32]>,
    /// The token whose logprob is wanted instead of the sampled one's.
    pub score: Option<u32>,
    /// How many of the most probable tokens to return with the logprob of the sampled or scored
    /// one; `None`: no logprobs, unless a token is scored.
    pub num_logprobs: Option<u32>,
}

impl Row<'_> {
    fn kind(&self) -> Option<Kind> {
        self.sampling.as_ref().map(Kind::of)
    }
}

/// How a token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 takes the most probable token. Others count as at least 1e-6 and at most 1e6.
    pub temperature: f32,
    /// Only the k most probable tokens stay; 0 keeps all.
    pub top_k: u32,
    /// Only the most probable tokens that together reach this share stay; 1 keeps all.
    pub top_p: f32,
    /// Only tokens at least this many times as probable as the best stay; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that were seen; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once for each time that a token stands in the answer.
    pub frequency_penalty: f32,
    /// Subtracted once when a token stands in the answer.
    pub presence_penalty: f32,
    /// The request's seed.
    pub seed: u64,
    /// Which of the request's choices this is.
    pub choice: u32,
    /// The position that the sampled token takes.
    pub position: u32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: 0,
            choice: 0,
            position: 0,
        }
    }
}

/// What became of a row.
#[derive(Debug, Clone, PartialEq)]
pub struct RowResult {
    /// The sampled token.
    pub token: Option<u32>,
    /// The logprob of the scored token, else of the sampled one; -inf where its logit is NaN or
    /// -inf.
    pub logprob: Option<f32>,
    /// The most probable tokens, best first, ties by id.
    pub top: Vec<(u32, f32)>,
}

/// What a sampler has room for.
#[derive(Debug, Clone, Copy)]
pub struct SamplerLimits {
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Rows in a step, of all groups.
    pub max_rows: usize,
    /// The most probable tokens that a row may ask for.
    pub max_logprobs: usize,
}

/// Why rows can't be sampled.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SamplerError {
    /// They ask for something impossible.
    #[error("a step can't be sampled: {0}")]
    BadRows(&'static str),
    /// The device failed.
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

/// The kernels and tensors that sample from one tensor of logits.
pub struct Sampler {
    limits: SamplerLimits,
    group_rows: usize,
    penalize: Penalize,
    logits: Tensor,
    rows: Tensor,
    results: Tensor,
    max_adjustments: usize,
    adjustments: Tensor,
    masks: StepMasks,
    // What was copied to the device last; kept, so that a step allocates nothing.
    row_params: Vec<RowParams>,
    adjustment_words: Vec<AdjustmentWords>,
    bound_penalize: BoundPenalize,
    bound_sample: BoundSample,
    bound_logprobs: BoundLogprobs,
}

impl Sampler {
    /// Compiles the kernels and takes memory for `limits`: 64 bytes a row, 8 bytes a logprob; and
    /// as much again as the logits take.
    ///
    /// * `logits`: [group_rows, vocab_size], of as many rows as are computed at a time
    pub fn new(gpu: &Gpu, limits: SamplerLimits, logits: &Tensor) -> Result<Self, GpuError> {
        Self::with_lanes(gpu, lanes(gpu.caps()), limits, logits)
    }

    pub(crate) fn with_lanes(
        gpu: &Gpu,
        lanes: u32,
        limits: SamplerLimits,
        logits: &Tensor,
    ) -> Result<Self, GpuError> {
        assert!(limits.vocab_size > 0, "a vocabulary has tokens");
        // Numbers of tokens are counted in f32.
        assert!(limits.vocab_size < 1 << 24, "a vocabulary has less than 2^24 tokens");
        let group_rows = logits.len() / limits.vocab_size;
        assert!(group_rows > 0, "the logits of a row fit their tensor");
        let max_group = 65_535 * penalize::LANES as usize;
        assert!(logits.len() <= max_group, "all logits of a group can be adjusted at once");
        let penalize = Penalize::new(gpu)?;
        let rows = gpu.alloc_u32(limits.max_rows * size_of::<RowParams>() / 4)?;
        let max_top = limits.max_logprobs.min(limits.vocab_size);
        let results = gpu.alloc_u32(limits.max_rows * result_words(max_top))?;
        let (adjustments, raw) = alloc_adjustments(gpu, MIN_ADJUSTMENTS)?;
        let work = gpu.alloc_u32(work_words(lanes, group_rows, limits.vocab_size))?;
        let tensors = [&rows, logits, &results, &work];
        Ok(Self {
            limits,
            group_rows,
            max_adjustments: MIN_ADJUSTMENTS,
            bound_penalize: penalize.bind(gpu, [&rows, &adjustments, &raw, logits])?,
            bound_sample: Sample::new(gpu, lanes)?.bind(gpu, tensors)?,
            bound_logprobs: LogprobKernels::new(gpu, lanes)?.bind(gpu, tensors)?,
            penalize,
            masks: StepMasks::new(gpu, limits.vocab_size, logits)?,
            logits: logits.clone(),
            adjustments,
            row_params: Vec::new(),
            adjustment_words: Vec::new(),
            rows,
            results,
        })
    }

    /// Bytes that [`new`](Self::new) takes, before a step has more adjustments or masks than any
    /// before, for logits of so many rows at a time.
    pub fn num_bytes(gpu: &Gpu, limits: &SamplerLimits, group_rows: usize) -> u64 {
        let max_top = limits.max_logprobs.min(limits.vocab_size);
        let row = size_of::<RowParams>() + result_words(max_top) * 4;
        let adjustments = MIN_ADJUSTMENTS * (size_of::<AdjustmentWords>() + 4);
        let work = 4 * work_words(lanes(gpu.caps()), group_rows, limits.vocab_size);
        (limits.max_rows * row + adjustments + work) as u64
    }

    /// Rows that fit the tensor of logits: all groups of a step but its last have as many.
    pub fn group_rows(&self) -> usize {
        self.group_rows
    }

    /// Checks the rows of a step and copies them to the device, for the pass that is submitted
    /// next; `step` becomes that step. The room for adjustments, 24 bytes each, grows to the next
    /// power of two when a step has more than any before; [`GpuError::TooLarge`] if that is more
    /// than a kernel can bind.
    pub fn write<'a>(
        &mut self,
        gpu: &Gpu,
        rows: impl Iterator<Item = Row<'a>> + Clone,
        step: &mut SampleStep,
    ) -> Result<(), SamplerError> {
        self.limits.check(rows.clone()).map_err(SamplerError::BadRows)?;
        step.clear();
        self.row_params.clear();
        self.adjustment_words.clear();
        self.masks.clear();
        for (index, row) in rows.enumerate() {
            let wants = Wants::of(&row, self.limits.vocab_size);
            self.row_params.push(RowParams::new(&row, wants, step.num_words as u32));
            if row.sampling.is_some() {
                let words = row.adjustments.iter();
                self.adjustment_words
                    .extend(words.map(|words| AdjustmentWords::new(index as u32, words)));
            }
            if let Some(mask) = row.mask {
                self.masks.push(index as u32, mask);
            }
            let num_changes = (self.adjustment_words.len() as u32, self.masks.len() as u32);
            step.add(&row, wants, self.group_rows, num_changes);
        }
        self.masks.write(gpu)?;
        self.reserve(gpu, self.adjustment_words.len())?;
        gpu.write(&self.rows, 0, &self.row_params);
        gpu.write(&self.adjustments, 0, &self.adjustment_words);
        Ok(())
    }

    /// Takes what is wanted of group `group` of `step`, the one that was written last, from the
    /// logits as they are then. Leaves them as they were.
    pub fn record(&self, pass: &mut Pass, step: &SampleStep, group: usize) {
        let Group { rows, adjustments, masks, samples, takes_logprobs } = &step.groups[group];
        let vocab_size = self.limits.vocab_size as u32;
        let params = penalize::Params::new(vocab_size, rows.start as u32, adjustments.clone());
        // Without adjustments and masks these record nothing.
        self.bound_penalize.record_apply(pass, &params);
        self.masks.record_apply(pass, rows.start, masks.clone());
        self.bound_sample.record(pass, vocab_size, rows.clone(), *samples);
        self.masks.record_restore(pass, rows.start, masks.clone());
        self.bound_penalize.record_restore(pass, &params);
        if *takes_logprobs {
            self.bound_logprobs.record(pass, vocab_size, rows.clone());
        }
    }

    /// What to read back once all groups of `step` are recorded, for [`SampleStep::results`].
    pub fn readback(&self, step: &SampleStep) -> Readback<'_> {
        (&self.results, 0..step.num_words)
    }

    /// Makes room for `num_adjustments`. Passes that were recorded keep the tensors they are bound
    /// to.
    fn reserve(&mut self, gpu: &Gpu, num_adjustments: usize) -> Result<(), GpuError> {
        if num_adjustments <= self.max_adjustments {
            return Ok(());
        }
        let max_adjustments = num_adjustments.next_power_of_two();
        let (adjustments, raw) = alloc_adjustments(gpu, max_adjustments)?;
        let tensors = [&self.rows, &adjustments, &raw, &self.logits];
        self.bound_penalize = self.penalize.bind(gpu, tensors)?;
        self.adjustments = adjustments;
        self.max_adjustments = max_adjustments;
        Ok(())
    }
}

fn alloc_adjustments(gpu: &Gpu, len: usize) -> Result<(Tensor, Tensor), GpuError> {
    Ok((gpu.alloc_u32(len * size_of::<AdjustmentWords>() / 4)?, gpu.alloc_f32(len)?))
}

/// The rows of one step, written to the device. Used again, it allocates nothing.
#[derive(Debug, Default)]
pub struct SampleStep {
    groups: Vec<Group>,
    rows: Vec<Wants>,
    num_words: usize,
}

#[derive(Debug)]
struct Group {
    rows: Range<usize>,
    adjustments: Range<u32>,
    masks: Range<u32>,
    /// Whether it has rows to sample without and with filters.
    samples: [bool; 2],
    takes_logprobs: bool,
}

impl SampleStep {
    fn clear(&mut self) {
        self.groups.clear();
        self.rows.clear();
        self.num_words = 0;
    }

    fn add(
        &mut self,
        row: &Row<'_>,
        wants: Wants,
        group_rows: usize,
        (num_adjustments, num_masks): (u32, u32),
    ) {
        let index = self.rows.len();
        if index.is_multiple_of(group_rows) {
            let ends = |group: &Group| (group.adjustments.end, group.masks.end);
            let (first, first_mask) = self.groups.last().map_or((0, 0), ends);
            self.groups.push(Group {
                rows: index..index,
                adjustments: first..first,
                masks: first_mask..first_mask,
                samples: [false; 2],
                takes_logprobs: false,
            });
        }
        if let Some(group) = self.groups.last_mut() {
            group.rows.end = index + 1;
            group.adjustments.end = num_adjustments;
            group.masks.end = num_masks;
            if let Some(kind) = row.kind() {
                group.samples[usize::from(kind == Kind::Filtering)] = true;
            }
            group.takes_logprobs |= wants.logprobs;
        }
        self.rows.push(wants);
        self.num_words += result_words(wants.num_top);
    }

    /// The rows of each group.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = Range<usize>> {
        self.groups.iter().map(|group| group.rows.clone())
    }

    /// Size of what is read back, in bytes.
    pub fn num_bytes(&self) -> usize {
        self.num_words * 4
    }

    /// What became of each row, from the bytes of [`Sampler::readback`].
    pub fn results(&self, bytes: &[u8]) -> impl Iterator<Item = RowResult> {
        assert_eq!(bytes.len(), self.num_bytes(), "results are those of the step");
        let (words, _) = bytes.as_chunks();
        let mut rest: &[[u8; 4]] = words;
        self.rows.iter().map(move |wants| {
            let (words, after) = rest.split_at(result_words(wants.num_top));
            rest = after;
            let word = |index: usize| u32::from_le_bytes(words[index]);
            let pair = |i| (word(2 + 2 * i), f32::from_bits(word(3 + 2 * i)));
            RowResult {
                token: wants.samples.then(|| word(0)),
                logprob: wants.logprobs.then(|| f32::from_bits(word(1))),
                top: (0..wants.num_top).map(pair).collect(),
            }
        })
    }
}

/// What a row's result is made of.
#[derive(Debug, Clone, Copy)]
struct Wants {
    samples: bool,
    logprobs: bool,
    num_top: usize,
}

impl Wants {
    fn of(row: &Row<'_>, vocab_size: usize) -> Self {
        Self {
            samples: row.sampling.is_some(),
            logprobs: row.num_logprobs.is_some() || row.score.is_some(),
            num_top: row.num_logprobs.map_or(0, |num| vocab_size.min(num as usize)),
        }
    }
}

/// Size of a row's result: token, logprob, then pairs of them.
fn result_words(num_top: usize) -> usize {
    2 + 2 * num_top
}

/// A row as the kernels read it: `RowParams` of `sampler.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct RowParams {
    scale: f32,
    top_k: u32,
    top_p: f32,
    min_exponent: f32,
    repetition_penalty: f32,
    frequency_penalty: f32,
    presence_penalty: f32,
    seed_lo: u32,
    seed_hi: u32,
    choice: u32,
    position: u32,
    samples: u32,
    wants_logprobs: u32,
    scored: u32,
    num_top: u32,
    result_at: u32,
}

impl RowParams {
    fn new(row: &Row<'_>, wants: Wants, result_at: u32) -> Self {
        Self {
            samples: row.kind().map_or(0, |kind| kind as u32),
            wants_logprobs: wants.logprobs.into(),
            scored: row.score.unwrap_or(u32::MAX),
            num_top: wants.num_top as u32,
            result_at,
            ..Self::of_sampling(&row.sampling.unwrap_or_default())
        }
    }

    /// How a token is chosen, with nothing said of what is wanted.
    pub(crate) fn of_sampling(sampling: &Sampling) -> Self {
        let temperature = sampling.temperature;
        Self {
            // The kernel multiplies half differences by it, and none of them overflows so.
            scale: if temperature == 0.0 { 0.0 } else { 2.0 / temperature.clamp(1e-6, 1e6) },
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_exponent: sampling.min_p.ln().max(f32::MIN),
            repetition_penalty: sampling.repetition_penalty,
            frequency_penalty: sampling.frequency_penalty,
            presence_penalty: sampling.presence_penalty,
            seed_lo: sampling.seed as u32,
            seed_hi: (sampling.seed >> 32) as u32,
            choice: sampling.choice,
            position: sampling.position,
            ..Self::zeroed()
        }
    }
}

/// Lanes of a workgroup, a multiple of 16. The order of all sums follows from it, so it is one
/// number for all devices that have room for so many.
pub(crate) const LANES: u32 = 256;

/// As many as a device has room for: each takes up to 112 bytes of workgroup memory.
pub(crate) fn lanes(caps: Caps) -> u32 {
    let fits = caps.max_workgroup_bytes >= 32 << 10 && caps.max_workgroup_lanes >= LANES;
    if fits { LANES } else { LANES / 2 }
}

/// Adjustments that a new sampler has room for.
const MIN_ADJUSTMENTS: usize = 1024;

/// A kernel of the sampler with what they share.
pub(crate) fn shared_source<P: Pod>(
    name: &str,
    source: &str,
    lanes: u32,
    constants: &[(&str, u32)],
) -> KernelSource {
    let constants = [constants, &[("LANES", lanes)]].concat();
    let template = [source, include_str!("sampler.wgsl")].concat();
    KernelSource::declared::<P>(name, &template, false, &constants)
}

#[cfg(test)]
#[path = "sampler_testing.rs"]
pub(crate) mod testing;

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
