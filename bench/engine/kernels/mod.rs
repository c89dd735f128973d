//! How fast kernels are, and how fast the same device could be.
//!
//! Everything is measured in [`rounds`], the limits among it; what is reported are medians over
//! the rounds. `KernelRun` is one kernel on one shape; each kernel's file says of what it is
//! made.

pub mod attention;
pub mod matmul;
pub mod report;
pub mod rounds;
pub mod rows;
pub mod sampler;

use std::time::Instant;

use anyhow::Result;
use serde_json::Value;
use shaders::copy::BoundCopy;
use shaders::fma::BoundFma;
use shaders::gpu::Gpu;
use shaders::kernel::Pass;
use shaders::kv_cache::{HeadShape, KvFormat};
use shaders::matmul::Products;
use shaders::weights::Format;

use rounds::{Task, interleave};

use loadgen::numbers::median;

/// A kernel that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kernel {
    /// Products with weights.
    Matmul,
    /// Attention over the paged cache.
    Attention,
    /// A token of each row of logits.
    Sampler,
    /// Rows of the embedding table.
    Embed,
    /// The norm that stands by itself, with the residual stream.
    Norm,
}

/// What is measured.
#[derive(Debug, Clone)]
pub struct KernelOptions {
    /// Those that are measured; the other fields are of no use to some of them.
    pub kernels: Vec<Kernel>,
    /// Each is measured with every shape.
    pub formats: Vec<Format>,
    /// How they are multiplied; packed dot products are those of integer ones only.
    pub products: Vec<Products>,
    /// Weights: values of a row, rows.
    pub shapes: Vec<(usize, usize)>,
    /// Rows of activations multiplied at once.
    pub batches: Vec<usize>,
    /// Each is measured at every context.
    pub heads: Vec<HeadShape>,
    /// How keys and values are stored.
    pub kv: KvFormat,
    /// Positions that a decoded token attends to.
    pub contexts: Vec<usize>,
    /// Sequences that are decoded, or sampled, at once.
    pub sequences: Vec<usize>,
    /// Tokens in the vocabulary of the sampler.
    pub vocab_size: usize,
    /// Rounds; medians are over them.
    pub num_rounds: usize,
}

/// What the device can do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Bytes a second, read and written, of a copy that no cache holds: the faster of a kernel's
    /// and the driver's own.
    pub copy_bytes: f64,
    /// Floating-point operations a second of multiply-adds in registers.
    pub fma_operations: f64,
    /// Seconds that a dispatch costs which has next to nothing to do and waits for the one before,
    /// its encoding and its share of one submission in 64 included.
    pub dispatch: f64,
}

/// One kernel on one shape, ready to be recorded any number of times.
pub(crate) struct KernelRun {
    /// What its row of the table says.
    pub about: About,
    pub record: Box<dyn Fn(&mut Pass)>,
}

impl KernelRun {
    /// To be timed.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn ready(self, gpu: &Gpu) -> Result<(About, Task<'_>)> {
        Ok((self.about, Task::of_pass(gpu, self.record)?))
    }
}

/// What is known of a kernel on a shape before it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct About {
    /// The kernel's name in the table.
    pub kernel: &'static str,
    /// As the table has it; [`keys`](Self::keys) say the same to machines.
    pub shape: String,
    /// Rows computed at once.
    pub rows: usize,
    /// How the work is laid out, where there is a choice.
    pub layout: String,
    /// Bytes that must be read or written once.
    pub num_bytes: f64,
    /// Floating-point operations; a multiply-add counts as two.
    pub num_operations: f64,
    /// Its shape, for machines: an object.
    pub keys: Value,
}

/// One kernel on one shape, measured.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelTimes {
    /// What was measured.
    pub about: About,
    /// Seconds of one run, round by round.
    pub rounds: Vec<f64>,
    /// Our time over this one's, if it is a peer's: the median round's.
    pub ratio: Option<f64>,
}

impl KernelTimes {
    /// Seconds of one run, the median round's.
    pub(crate) fn seconds(&self) -> f64 {
        median(&self.rounds)
    }

    /// Bytes a second.
    pub(crate) fn bytes_rate(&self) -> f64 {
        self.about.num_bytes / self.seconds()
    }

    /// Floating-point operations a second.
    pub(crate) fn operations_rate(&self) -> f64 {
        self.about.num_operations / self.seconds()
    }

    /// Of the device's memory speed, in percent.
    pub(crate) fn memory_percent(&self, limits: &Limits) -> f64 {
        100.0 * self.bytes_rate() / limits.copy_bytes
    }

    /// Of the device's arithmetic, in percent.
    pub(crate) fn arithmetic_percent(&self, limits: &Limits) -> f64 {
        100.0 * self.operations_rate() / limits.fma_operations
    }
}

/// Measures the kernels. `progress` hears how many of how many rounds are done.
///
/// # Errors
/// When the device has no room or fails.
pub fn measure(
    gpu: &Gpu,
    options: &KernelOptions,
    progress: impl FnMut(usize, usize),
) -> Result<(Limits, Vec<KernelTimes>)> {
    let mut works = Vec::new();
    for kernel in &options.kernels {
        works.extend(match kernel {
            Kernel::Matmul => matmul::works(gpu, options)?,
            Kernel::Attention => attention::works(gpu, options)?,
            Kernel::Sampler => sampler::works(gpu, options)?,
            Kernel::Embed => rows::embed_works(gpu, options)?,
            Kernel::Norm => rows::norm_works(gpu, options)?,
        });
    }
    let ready = works.into_iter().map(|work| work.ready(gpu)).collect::<Result<_>>()?;
    measure_ready(gpu, ready, options.num_rounds, progress)
}

/// Measures what is ready, and the limits in the same rounds.
///
/// # Errors
/// When the device has no room or fails.
pub(crate) fn measure_ready<'a>(
    gpu: &'a Gpu,
    ready: Vec<(About, Task<'a>)>,
    num_rounds: usize,
    progress: impl FnMut(usize, usize),
) -> Result<(Limits, Vec<KernelTimes>)> {
    let mut tasks = Vec::new();
    let fma_operations = limits(gpu, &mut tasks)?;
    let (abouts, works): (Vec<_>, Vec<_>) = ready.into_iter().unzip();
    tasks.extend(works);
    gpu.save_kernels();
    interleave(&mut tasks, num_rounds, progress)?;
    let (limits, tasks) = tasks.split_at(NUM_LIMITS);
    let copy_seconds = limits[0].median().min(limits[1].median());
    let limits = Limits {
        copy_bytes: 2.0 * COPY_BYTES as f64 / copy_seconds,
        fma_operations: fma_operations / limits[2].median(),
        dispatch: limits[3].median() / CHAINED as f64,
    };
    let measured = abouts.into_iter().zip(tasks).map(|(about, task)| KernelTimes {
        about,
        rounds: task.seconds(),
        ratio: None,
    });
    Ok((limits, measured.collect()))
}

/// Bytes of each of the two tensors of a copy: more than caches hold.
const COPY_BYTES: usize = 96 << 20;
/// As many lanes as keep any device busy.
const FMA_LANES: usize = 1 << 16;
/// Rounds of 96 multiply-adds a lane.
const FMA_ROUNDS: u32 = 64;
/// Dispatches of a chain.
const CHAINED: usize = 64;
/// A kernel's copy, the driver's, multiply-adds, a chain of dispatches.
const NUM_LIMITS: usize = 4;

/// Adds what measures the device's limits; the operations of the multiply-adds.
fn limits<'a>(gpu: &'a Gpu, tasks: &mut Vec<Task<'a>>) -> Result<f64> {
    let copied = gpu.alloc_vec4s(COPY_BYTES / 4)?;
    let copy = BoundCopy::new(gpu, &copied, &gpu.alloc_vec4s(COPY_BYTES / 4)?)?;
    tasks.push(Task::of_pass(gpu, move |pass| copy.record(pass))?);
    let buffers = (gpu.alloc_f32(COPY_BYTES / 4)?, gpu.alloc_f32(COPY_BYTES / 4)?);
    tasks.push(Task::new(move |repetitions| {
        let began = Instant::now();
        (0..repetitions).try_for_each(|_| gpu.copy(&buffers.0, &buffers.1))?;
        Ok(began.elapsed())
    })?);
    let fma = BoundFma::new(gpu, &gpu.alloc_f32(FMA_LANES)?)?;
    let num_operations = fma.record(&mut Pass::new(), FMA_ROUNDS);
    tasks.push(Task::of_pass(gpu, move |pass| {
        fma.record(pass, FMA_ROUNDS);
    })?);
    let [one, other] = [gpu.alloc_vec4s(4)?, gpu.alloc_vec4s(4)?];
    let chain = [BoundCopy::new(gpu, &one, &other)?, BoundCopy::new(gpu, &other, &one)?];
    tasks.push(Task::of_pass(gpu, move |pass| {
        chain.iter().cycle().take(CHAINED).for_each(|copy| copy.record(pass));
    })?);
    Ok(num_operations)
}

/// Values from -0.8 to 0.8 that are always the same.
pub fn numbers(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 1e7 - 0.8).collect()
}
