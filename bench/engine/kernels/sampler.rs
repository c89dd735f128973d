//! The sampler: a token of each row of logits.

use anyhow::Result;
use serde_json::json;
use shaders::gpu::Gpu;
use shaders::sampler::{Row, SampleStep, Sampler, SamplerLimits, Sampling};

use super::{About, KernelOptions, KernelRun};

/// The most probable token, and one drawn from the most probable ones.
pub(super) fn works(gpu: &Gpu, options: &KernelOptions) -> Result<Vec<KernelRun>> {
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let filtered = Sampling { temperature: 0.8, top_k: 50, top_p: 0.95, ..Sampling::default() };
    let mut works = Vec::new();
    for (name, sampling) in [("greedy", greedy), ("top-k, top-p", filtered)] {
        for &num_rows in &options.sequences {
            works.push(work(gpu, options.vocab_size, num_rows, (name, sampling))?);
        }
    }
    Ok(works)
}

fn work(
    gpu: &Gpu,
    vocab_size: usize,
    num_rows: usize,
    (name, sampling): (&str, Sampling),
) -> Result<KernelRun> {
    let logits = gpu.upload(&logits(num_rows * vocab_size))?;
    let limits = SamplerLimits { vocab_size, max_rows: num_rows, max_logprobs: 0 };
    let mut sampler = Sampler::new(gpu, limits, &logits)?;
    let mut step = SampleStep::default();
    let rows = (0..num_rows as u64)
        .map(|seed| Row { sampling: Some(Sampling { seed, ..sampling }), ..Row::default() });
    sampler.write(gpu, rows, &mut step)?;
    let about = About {
        kernel: "sampler",
        shape: format!("{name} of {vocab_size}"),
        rows: num_rows,
        layout: String::new(),
        // Logits, read once; filtering reads them several times.
        num_bytes: (num_rows * vocab_size * 4) as f64,
        num_operations: 0.0,
        keys: json!({ "sampling": name, "vocab_size": vocab_size }),
    };
    Ok(KernelRun { about, record: Box::new(move |pass| sampler.record(pass, &step, 0)) })
}

/// Spread as those of a model are: most near the middle, few far above.
fn logits(len: usize) -> Vec<f32> {
    let hash = |i: u32| {
        let i = (i ^ i >> 16).wrapping_mul(0x7feb_352d);
        let i = (i ^ i >> 15).wrapping_mul(0x846c_a68b);
        (i ^ i >> 16) as f32 / u32::MAX as f32
    };
    (0..len as u32).map(|i| 4.0 * (0..8).map(|j| hash(8 * i + j) - 0.5).sum::<f32>()).collect()
}
