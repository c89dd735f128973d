//! How fast an adapter computes what models are made of: a short probe by the kernels that serve,
//! kept with the choices of layouts, so that a restart doesn't probe again.

use std::time::{Duration, Instant};

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::kernel::Pass;
use crate::matmul::{BoundMatmul, Matmul, Operand, Output};
use crate::quantize_rows::QuantizedRows;
use crate::tensor::Tensor;
use crate::weights::{Format, RowOrder, WeightMatrix};

/// What the probe finds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Bytes of weights a second that products of one row read, where a weight has two bytes.
    pub weight_bytes_per_s: f64,
    /// Picoseconds of a weight of a byte in such products.
    pub int8_ps: f64,
    /// Of half a byte.
    pub int4_ps: f64,
    /// Multiply-adds a second in products of many rows.
    pub multiply_adds_per_s: f64,
    /// Microseconds of a kernel that has next to nothing to do.
    pub kernel_us: f64,
    /// Microseconds of a step beside its kernels.
    pub step_us: f64,
}

/// Formats of weights, those in which most models come: what a weight takes doesn't follow from its
/// bytes, where decoding it takes longer than reading it.
const FORMATS: [Format; 3] = [Format::Bf16, Format::Int8, Format::Int4];

/// Times that each thing is done: the least counts, which nothing disturbed. Each is short, so that
/// on a machine that does other things as well some go through in one piece.
const TRIES: usize = 15;

/// Kernels of a pass that tells what one costs.
const NUM_KERNELS: usize = 64;

/// How much is computed.
struct Extent {
    /// Columns and rows of a matrix that one row is multiplied with.
    matrix: (usize, usize),
    /// So many of them, one after another: more than any cache holds.
    num_matrices: usize,
    /// Columns, rows of the matrix that many rows are multiplied with, and how many they are.
    product: (usize, usize, usize),
}

impl Extent {
    /// Within half of `max_bytes`, or a small one.
    fn within(gpu: &Gpu, max_bytes: u64) -> Self {
        let is_cpu = gpu.caps().is_cpu;
        let (matrix, most, product) = match is_cpu {
            true => ((2048, 2048), 2, (1024, 512, 32)),
            false => ((4096, 8192), 8, (4096, 8192, 512)),
        };
        let bytes =
            FORMATS.map(|it| it.row_bytes(matrix.0) as u64).iter().sum::<u64>() * matrix.1 as u64;
        // Many rows, and what becomes of them, lie beside all others.
        let (cols, rows, num_rows) = product;
        let aside = FORMATS[0].row_bytes(cols) * rows + 4 * num_rows * (cols + rows);
        match ((max_bytes / 2).saturating_sub(aside as u64) / bytes) as usize {
            0 => Self { matrix: (1024, 512), num_matrices: 1, product: (1024, 512, 64) },
            num => Self { matrix, num_matrices: num.min(most), product },
        }
    }
}

/// What is known of `gpu`, or what a probe of some tenths of a second finds, with weights of at
/// most half of `max_bytes`.
///
/// # Errors
/// When the device fails.
pub fn measure(gpu: &Gpu, matmul: &Matmul, max_bytes: u64) -> Result<Speed, GpuError> {
    let what = format!("speed {}{}", gpu.caps().products, processors(gpu));
    let kept = gpu.tuning.keep(
        &what,
        |text| Speed::parse(text).is_some(),
        || Ok(probe(gpu, matmul, max_bytes)?.to_string()),
    )?;
    match Speed::parse(&kept) {
        Some(speed) => Ok(speed),
        None => Err(GpuError::Failed(format!("{} can't be timed: {kept}", gpu.info().name))),
    }
}

/// What a software driver's speed hangs on, too.
fn processors(gpu: &Gpu) -> String {
    if !gpu.caps().is_cpu {
        return String::new();
    }
    let num = std::thread::available_parallelism().map_or(0, usize::from);
    let threads = std::env::var("LP_NUM_THREADS").unwrap_or_default();
    format!(" on {num} processors, threads {threads:?}")
}

fn probe(gpu: &Gpu, matmul: &Matmul, max_bytes: u64) -> Result<Speed, GpuError> {
    let Extent { matrix, num_matrices, product } = Extent::within(gpu, max_bytes);
    let products = |format: Format| {
        let product = |_| Product::new(gpu, matmul, format, matrix, 1);
        (0..num_matrices).map(product).collect::<Result<Vec<_>, GpuError>>()
    };
    let [bf16, int8, int4] = FORMATS.map(products);
    let (bf16, int8, int4) = (bf16?, int8?, int4?);
    let (cols, rows, num_rows) = product;
    let many_rows = Product::new(gpu, matmul, FORMATS[0], (cols, rows), num_rows)?;
    let small = Product::new(gpu, matmul, FORMATS[0], (64, 64), 1)?;

    let pass = |products: &mut dyn Iterator<Item = &Product>, num_rows: usize| {
        let mut pass = Pass::new();
        products.for_each(|it| it.bound.record(&mut pass, num_rows));
        pass
    };
    let small_kernels = |num: usize| pass(&mut std::iter::repeat_n(&small, num), 1);
    let passes = [
        pass(&mut bf16.iter(), 1),
        pass(&mut int8.iter(), 1),
        pass(&mut int4.iter(), 1),
        pass(&mut std::iter::once(&many_rows), num_rows),
        small_kernels(1),
        small_kernels(NUM_KERNELS + 1),
    ];
    let [bf16, int8, int4, multiplied, one, many] = least(gpu, &passes)?;
    let kernel = many.saturating_sub(one).as_secs_f64() / NUM_KERNELS as f64;
    let step = (one.as_secs_f64() - kernel).max(0.0);
    // What is left of a pass is the products' own.
    let own = |time: Duration, num: usize| {
        let time = time.as_secs_f64();
        (time - step - kernel * num as f64).max(time / 10.0)
    };
    let num_weights = (matrix.0 * matrix.1 * num_matrices) as f64;
    let bytes = (FORMATS[0].row_bytes(matrix.0) * matrix.1 * num_matrices) as f64;
    let weight_ps = |time| own(time, num_matrices) / num_weights * 1e12;
    Ok(Speed {
        weight_bytes_per_s: bytes / own(bf16, num_matrices),
        int8_ps: weight_ps(int8),
        int4_ps: weight_ps(int4),
        multiply_adds_per_s: (cols * rows * num_rows) as f64 / own(multiplied, 1),
        kernel_us: kernel * 1e6,
        step_us: step * 1e6,
    })
}

/// A product whose values don't matter.
struct Product {
    bound: BoundMatmul,
    _out: Tensor,
}

impl Product {
    fn new(
        gpu: &Gpu,
        matmul: &Matmul,
        format: Format,
        (cols, rows): (usize, usize),
        num_rows: usize,
    ) -> Result<Self, GpuError> {
        let row = format.encode(cols, &vec![0.5; cols]);
        let format = (format, RowOrder::Plain);
        let weights = WeightMatrix::upload(gpu, (rows, cols), format, |_, bytes| {
            for one in bytes.chunks_mut(row.len()) {
                one.copy_from_slice(&row);
            }
            Ok::<_, GpuError>(())
        })?;
        let x = gpu.upload_vec4s(&vec![0.25; cols * num_rows])?;
        let out = gpu.alloc_f32(rows * num_rows)?;
        // Only packed dot products of integer weights use it.
        let quantized = QuantizedRows::new(gpu, num_rows, cols)?;
        let operand = Operand { x: &x, norm: None, quantized: Some(&quantized) };
        let bound = matmul.bind(gpu, operand, &weights, Output::Store(&out))?;
        Ok(Self { bound, _out: out })
    }
}

/// The least of some tries of each, after one that lets the driver compile what is recorded. They
/// are tried in turns: whatever disturbs one for a while leaves others of its tries alone.
fn least<const N: usize>(gpu: &Gpu, passes: &[Pass; N]) -> Result<[Duration; N], GpuError> {
    for pass in passes {
        gpu.run(pass)?;
    }
    let mut least = [Duration::MAX; N];
    for _ in 0..TRIES {
        for (pass, least) in passes.iter().zip(&mut least) {
            let began = Instant::now();
            gpu.run(pass)?;
            *least = began.elapsed().min(*least);
        }
    }
    Ok(least)
}

impl std::fmt::Display for Speed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { weight_bytes_per_s, int8_ps, int4_ps, multiply_adds_per_s, .. } = self;
        let Self { kernel_us, step_us, .. } = self;
        write!(f, "{weight_bytes_per_s:e} {int8_ps} {int4_ps} {multiply_adds_per_s:e} ")?;
        write!(f, "{kernel_us} {step_us}")
    }
}

impl Speed {
    fn parse(text: &str) -> Option<Self> {
        let numbers: Result<Vec<f64>, _> = text.split(' ').map(str::parse).collect();
        let [weight_bytes_per_s, int8_ps, int4_ps, multiply_adds_per_s, kernel_us, step_us] =
            numbers.ok()?.try_into().ok()?;
        let rates = [weight_bytes_per_s, int8_ps, int4_ps, multiply_adds_per_s];
        let times = [kernel_us, step_us];
        let is_possible = rates.iter().all(|it| it.is_finite() && *it > 0.0)
            && times.iter().all(|it| it.is_finite() && *it >= 0.0);
        let speed =
            Self { weight_bytes_per_s, int8_ps, int4_ps, multiply_adds_per_s, kernel_us, step_us };
        is_possible.then_some(speed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::GpuOptions;

    #[test]
    fn what_was_measured_is_read_back() {
        let speed = Speed {
            weight_bytes_per_s: 3.5e12,
            int8_ps: 0.25,
            int4_ps: 0.125,
            multiply_adds_per_s: 1.25e9,
            kernel_us: 4.5,
            step_us: 0.0,
        };
        assert_eq!(Speed::parse(&speed.to_string()), Some(speed));
        for wrong in
            ["", "1 2 3 4 5", "1 2 3 4 5 -6", "0 1 1 1 1 1", "NaN 1 1 1 1 1", "1 1 1 1 1 1 1"]
        {
            assert_eq!(Speed::parse(wrong), None, "{wrong}");
        }
    }

    /// Goal: an adapter is probed once. Method: the second look finds what a spoilt file doesn't.
    #[test]
    fn an_adapter_is_probed_once() {
        let folder = tempfile::tempdir().unwrap();
        let open = || {
            let cache_dir = Some(folder.path().to_owned());
            Gpu::open_with(None, GpuOptions { cache_dir, ..GpuOptions::default() })
        };
        let Ok(gpu) = open() else { return println!("skipped: no adapter") };
        let found = measure(&gpu, &Matmul::new(&gpu), 4 << 20).unwrap();
        assert!(found.weight_bytes_per_s > 1e6 && found.multiply_adds_per_s > 1e6, "{found:?}");
        gpu.save_kernels();
        drop(gpu);
        let gpu = open().unwrap();
        let began = Instant::now();
        // Were it probed again, it wouldn't be the same in all digits.
        assert_eq!(measure(&gpu, &Matmul::new(&gpu), 4 << 20).unwrap(), found);
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}
