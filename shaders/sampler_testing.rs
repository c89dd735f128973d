//! What the tests of the sampler's kernels share.

use crate::gpu::Gpu;
use crate::kernel::{KernelSource, Pass};
use crate::sampler::{LANES, Row, RowResult, SampleStep, Sampler, SamplerLimits, Sampling};
use crate::testing::Random;

/// Sizes of vocabularies around what the kernels' loops are made of.
pub(crate) const ODD_SIZES: [usize; 6] = [1, 2, 63, 640, 1757, 49152];

/// Samples from rows that are all computed at once.
pub(crate) fn run(
    gpu: &Gpu,
    vocab_size: usize,
    logits: &[f32],
    rows: &[Row<'_>],
) -> Vec<RowResult> {
    run_with_lanes(gpu, LANES, vocab_size, logits, rows)
}

/// The same by kernels with fewer lanes: a software driver makes 16 tokens wait for all of 256.
pub(crate) fn run_with_lanes(
    gpu: &Gpu,
    lanes: u32,
    vocab_size: usize,
    logits: &[f32],
    rows: &[Row<'_>],
) -> Vec<RowResult> {
    let logits = gpu.upload(logits).unwrap();
    let limits = SamplerLimits { vocab_size, max_rows: rows.len(), max_logprobs: 640 };
    let mut sampler = Sampler::with_lanes(gpu, lanes, limits, &logits).unwrap();
    let mut step = SampleStep::default();
    sampler.write(gpu, rows.iter().copied(), &mut step).unwrap();
    let mut pass = Pass::new();
    for group in 0..step.groups().len() {
        sampler.record(&mut pass, &step, group);
    }
    let submission = gpu.submit(&pass, Some(sampler.readback(&step))).unwrap();
    gpu.wait(submission, |bytes| step.results(bytes).collect()).unwrap()
}

/// The `index`th of many parameters that differ in everything that chooses the random number.
pub(crate) fn sampling(index: usize) -> Sampling {
    let index = index as u32;
    Sampling {
        seed: u64::from(index / 100) << 20,
        choice: index % 3,
        position: index,
        ..Sampling::default()
    }
}

/// Logits as models make them: a few far above a bell.
pub(crate) fn realistic(random: &mut Random, len: usize) -> Vec<f32> {
    let mut logits: Vec<f32> = random.normal(len).iter().map(|z| 2.5 * z - 3.0).collect();
    for _ in 0..len.div_ceil(200) {
        let token = random.below(len);
        logits[token] += 3.0 + random.below(10) as f32;
    }
    logits
}

/// Asserts that the members of the kernel's struct `name` are `fields`, and its size that of `T`.
#[track_caller]
pub(crate) fn assert_struct<T>(source: &KernelSource, name: &str, fields: &[(&str, usize)]) {
    let module = naga::front::wgsl::parse_str(&source.wgsl).unwrap();
    let (_, ty) = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some(name)).unwrap();
    let naga::TypeInner::Struct { members, span } = &ty.inner else { panic!("{name}: no struct") };
    let members: Vec<_> = members
        .iter()
        .map(|member| (member.name.as_deref().unwrap_or(""), member.offset as usize))
        .collect();
    assert_eq!(members, fields, "{name}");
    assert_eq!(*span as usize, size_of::<T>(), "{name}");
}
