//! How fast products are, and how fast the same device could be.
//!
//! Everything is measured in rounds, the limits among it, so that whatever disturbs the machine
//! disturbs all alike; what is reported are medians over the rounds.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shaders::copy::BoundCopy;
use shaders::error::GpuError;
use shaders::fma::BoundFma;
use shaders::gpu::Gpu;
use shaders::kernel::Pass;
use shaders::matmul::{BoundMatmul, Matmul, Output};
use shaders::weights::{Format, RowOrder, WeightMatrix};

use crate::numbers::median;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// Formats of weights.
    pub formats: Vec<Format>,
    /// Weights: values of a row, rows.
    pub shapes: Vec<(usize, usize)>,
    /// Rows of activations multiplied at once.
    pub batches: Vec<usize>,
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
}

/// One product.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Format of the weights.
    pub format: Format,
    /// Values of a row of weights, rows of weights, rows of activations.
    pub shape: (usize, usize, usize),
    /// How the work is laid out: rows and columns a lane, lanes side by side, groups of them.
    pub layout: String,
    /// Seconds of one product.
    pub seconds: f64,
    /// Bytes of weights, activations and results.
    pub num_bytes: f64,
    /// A multiply-add counts as two.
    pub num_operations: f64,
}

impl Measured {
    /// Of the device's memory speed, in percent.
    pub fn memory_percent(&self, limits: &Limits) -> f64 {
        100.0 * self.num_bytes / self.seconds / limits.copy_bytes
    }

    /// Of the device's arithmetic, in percent.
    pub fn arithmetic_percent(&self, limits: &Limits) -> f64 {
        100.0 * self.num_operations / self.seconds / limits.fma_operations
    }
}

/// Bytes of each of the two tensors of a copy: more than caches hold.
const COPY_BYTES: usize = 96 << 20;
/// How long one measurement lasts at least; short work is repeated.
const MEASUREMENT: Duration = Duration::from_millis(60);
/// As many lanes as keep any device busy.
const FMA_LANES: usize = 1 << 16;

/// One thing that is repeated and timed.
struct Task {
    record: Box<dyn Fn(&mut Pass)>,
    repetitions: usize,
    seconds: Vec<f64>,
}

impl Task {
    /// Runs it once, to compile and to learn how often it must be repeated.
    fn new(gpu: &Gpu, record: impl Fn(&mut Pass) + 'static) -> Result<Self, GpuError> {
        let mut task = Self { record: Box::new(record), repetitions: 1, seconds: Vec::new() };
        task.time(gpu)?;
        let once = task.time(gpu)?;
        task.repetitions = (MEASUREMENT.as_secs_f64() / once).ceil().clamp(1.0, 200.0) as usize;
        Ok(task)
    }

    fn time(&self, gpu: &Gpu) -> Result<f64, GpuError> {
        let mut pass = Pass::new();
        (0..self.repetitions).for_each(|_| (self.record)(&mut pass));
        let start = Instant::now();
        gpu.run(&pass)?;
        Ok(start.elapsed().as_secs_f64() / self.repetitions as f64)
    }

    fn median(&self) -> f64 {
        median(&self.seconds)
    }
}

/// Measures every format with every shape and batch. `progress` hears how many of how many rounds
/// are done.
///
/// # Errors
/// When the device has no room or fails.
pub fn measure(
    gpu: &Gpu,
    options: &Options,
    mut progress: impl FnMut(usize, usize),
) -> Result<(Limits, Vec<Measured>), GpuError> {
    let copied = gpu.alloc_vec4s(COPY_BYTES / 4)?;
    let copy = BoundCopy::new(gpu, &copied, &gpu.alloc_vec4s(COPY_BYTES / 4)?)?;
    let fma = BoundFma::new(gpu, &gpu.alloc_f32(FMA_LANES)?)?;
    let fma_operations = fma.record(&mut Pass::new(), FMA_ROUNDS);
    let mut tasks = vec![
        Task::new(gpu, move |pass| copy.record(pass))?,
        Task::new(gpu, move |pass| {
            fma.record(pass, FMA_ROUNDS);
        })?,
    ];
    let matmul = Matmul::new(gpu);
    let mut measured = Vec::new();
    for &(cols, rows) in &options.shapes {
        for &format in &options.formats {
            let weights = weights(gpu, (rows, cols), format)?;
            for &batch in &options.batches {
                let x = gpu.upload_vec4s(&numbers(batch * cols))?;
                let out = gpu.alloc_f32(batch * rows)?;
                let bound: BoundMatmul =
                    matmul.bind(gpu, (&x).into(), &weights, Output::Store(&out))?;
                let layout = bound.layout(batch);
                tasks.push(Task::new(gpu, move |pass| bound.record(pass, batch))?);
                measured.push(Measured {
                    format,
                    shape: (cols, rows, batch),
                    layout,
                    seconds: f64::NAN,
                    num_bytes: (rows * format.row_bytes(cols) + batch * (rows + cols) * 4) as f64,
                    num_operations: 2.0 * (rows * cols * batch) as f64,
                });
            }
        }
    }
    gpu.save_kernels();
    let buffers = (gpu.alloc_f32(COPY_BYTES / 4)?, gpu.alloc_f32(COPY_BYTES / 4)?);
    let mut driver_copies = Vec::new();
    gpu.copy(&buffers.0, &buffers.1)?;
    for round in 0..options.num_rounds {
        progress(round, options.num_rounds);
        let start = Instant::now();
        gpu.copy(&buffers.0, &buffers.1)?;
        driver_copies.push(start.elapsed().as_secs_f64());
        for task in &mut tasks {
            let seconds = task.time(gpu)?;
            task.seconds.push(seconds);
        }
    }
    progress(options.num_rounds, options.num_rounds);
    let copy_seconds = tasks[0].median().min(median(&driver_copies));
    let limits = Limits {
        copy_bytes: 2.0 * COPY_BYTES as f64 / copy_seconds,
        fma_operations: fma_operations / tasks[1].median(),
    };
    for (measured, task) in measured.iter_mut().zip(&tasks[2..]) {
        measured.seconds = task.median();
    }
    Ok((limits, measured))
}

/// Rounds of 96 multiply-adds a lane.
const FMA_ROUNDS: u32 = 64;

/// Weights whose values don't matter, a tile of them repeated.
fn weights(gpu: &Gpu, shape: (usize, usize), format: Format) -> Result<WeightMatrix, GpuError> {
    let (_, cols) = shape;
    let tile = format.encode(cols, &numbers(64 * cols));
    WeightMatrix::upload(gpu, shape, (format, RowOrder::Plain), |_, bytes| {
        bytes.copy_from_slice(&tile[..bytes.len()]);
        Ok(())
    })
}

fn numbers(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 1e7 - 0.8).collect()
}

/// The measurements for people.
pub fn table(adapter: &str, limits: &Limits, measured: &[Measured]) -> String {
    let mut text = format!(
        "{adapter}\n  copy {:.1} GB/s · multiply-add {:.1} GFLOP/s\n\n\
         format  weights (k x n)    rows       time     GB/s   %copy  GFLOP/s    %fma  layout\n",
        limits.copy_bytes / 1e9,
        limits.fma_operations / 1e9,
    );
    for one in measured {
        let (cols, rows, batch) = one.shape;
        text += &format!(
            "{:<6}  {:<15} {batch:>7} {:>10} {:>8.2} {:>7.1} {:>8.2} {:>7.1}  {}\n",
            format!("{:?}", one.format).to_lowercase(),
            format!("{cols} x {rows}"),
            crate::numbers::time(one.seconds * 1e3),
            one.num_bytes / one.seconds / 1e9,
            one.memory_percent(limits),
            one.num_operations / one.seconds / 1e9,
            one.arithmetic_percent(limits),
            one.layout,
        );
    }
    text
}

/// The measurements for machines.
pub fn report(adapter: &str, limits: &Limits, measured: &[Measured]) -> Value {
    let kernels: Vec<_> = measured
        .iter()
        .map(|one| {
            json!({
                "kernel": "matmul",
                "format": format!("{:?}", one.format).to_lowercase(),
                "layout": one.layout,
                "k": one.shape.0, "n": one.shape.1, "rows": one.shape.2,
                "seconds": one.seconds,
                "bytes_per_second": one.num_bytes / one.seconds,
                "flops": one.num_operations / one.seconds,
                "copy_percent": one.memory_percent(limits),
                "fma_percent": one.arithmetic_percent(limits),
            })
        })
        .collect();
    json!({
        "adapter": adapter,
        "copy_bytes_per_second": limits.copy_bytes,
        "fma_flops": limits.fma_operations,
        "kernels": kernels,
    })
}
