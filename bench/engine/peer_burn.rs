//! The products of burn-wgpu beside ours, on one device and one queue of the driver library.
//!
//! Burn computes what ours does, or it isn't timed. It tunes itself on the first product of a
//! shape, which isn't timed either. Its weights lie as in its own linear layers, `[k, n]`, and its
//! activations and results are of the weights' format, where ours are f32.

use std::time::Instant;

use anyhow::Result;
use burn_backend::ops::FloatTensorOps;
use burn_backend::{Backend, BackendTypes, DType, TensorData};
use burn_wgpu::{CubeBackend, CubeTensor, RuntimeOptions, WgpuSetup, try_init_device};
use shaders::gpu::{Gpu, GpuOptions};
use shaders::kernel::Pass;
use shaders::matmul::{Matmul, Products};
use shaders::raw::Raw;
use shaders::weights::{Format, RowOrder, WeightMatrix};

use crate::engine::kernels::matmul::{format_name, work};
use crate::engine::kernels::rounds::Task;
use crate::engine::kernels::{
    About, KernelOptions, KernelTimes, Limits, measure_ready, numbers, report,
};
use loadgen::numbers::median;

type Device = <CubeBackend as BackendTypes>::Device;

/// What was compared.
#[derive(Debug)]
pub(crate) struct Compared {
    /// What the adapter is called.
    pub adapter: String,
    /// What the device can do.
    pub limits: Limits,
    /// Each product of ours, followed by burn's.
    pub measured: Vec<KernelTimes>,
    /// What isn't compared, and why.
    pub missing: Vec<String>,
}

/// Compares products of the formats, shapes and rows of `options`.
///
/// # Errors
/// When the adapter can't be shared, has no room, or fails.
pub(crate) fn compare(
    selector: Option<&str>,
    options: &KernelOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<Compared> {
    let (gpu, raw) = Gpu::open_shared(selector, GpuOptions::kept())?;
    let Raw { instance, adapter, device, queue, backend } = raw;
    let setup = WgpuSetup { instance, adapter, device, queue, backend };
    let device = Device::Wgpu(try_init_device(setup, RuntimeOptions::default())?);
    let matmul = Matmul::new(&gpu);
    let (mut ready, mut missing) = (Vec::new(), Vec::new());
    for &format in &options.formats {
        let name = format_name(format);
        let Some(dtype) =
            dtype(format).filter(|&dtype| CubeBackend::supports_dtype(&device, dtype))
        else {
            missing.push(format!("{name}: burn doesn't compute in it on this adapter"));
            continue;
        };
        for &(cols, rows) in &options.shapes {
            let max_bytes = gpu.caps().max_binding_bytes;
            if (cols * rows * dtype.size()) as u64 > max_bytes {
                missing.push(format!(
                    "{name} {cols} x {rows}: burn would bind it whole, and this adapter binds at \
                     most {} MB",
                    max_bytes / 1_000_000,
                ));
                continue;
            }
            let values = numbers(cols * rows);
            let ours = WeightMatrix::from_bytes(
                &gpu,
                (rows, cols),
                (format, RowOrder::Plain),
                &format.encode(cols, &values),
            )?;
            let burns = tensor(&device, dtype, transposed(&values, cols), [cols, rows])?;
            for &batch in &options.batches {
                let what = format!("{name} {cols} x {rows}, rows {batch}");
                progress(&format!("{what}: burn tunes itself"));
                let (ours, out) = work(&gpu, &matmul, &ours, batch)?;
                let mut pass = Pass::new();
                (ours.record)(&mut pass);
                gpu.run(&pass)?;
                let x = tensor(&device, dtype, numbers(batch * cols), [batch, cols])?;
                let product = read(CubeBackend::float_matmul(x.clone(), burns.clone()))?;
                if let Err(why) = check(&gpu.read_f32(&out)?, &product, tolerance(dtype)) {
                    missing.push(format!("{what}: {why}"));
                    continue;
                }
                let num_values = cols * rows + batch * (cols + rows);
                let about = About {
                    kernel: "burn",
                    layout: String::new(),
                    num_bytes: (num_values * dtype.size()) as f64,
                    ..ours.about.clone()
                };
                ready.push(ours.ready(&gpu)?);
                ready.push((about, task(&device, x, burns.clone())?));
            }
        }
    }
    let (limits, mut measured) = measure_ready(&gpu, ready, options.num_rounds, |done, all| {
        progress(&format!("round {done} of {all}"));
    })?;
    for pair in measured.chunks_exact_mut(2) {
        let rounds = pair[0].rounds.iter().zip(&pair[1].rounds);
        let ratios = rounds.map(|(ours, burns)| ours / burns).collect::<Vec<_>>();
        pair[1].ratio = Some(median(&ratios));
    }
    Ok(Compared { adapter: report::adapter(&gpu), limits, measured, missing })
}

/// Burn's version: the one that the workspace's manifest pins.
pub(crate) const VERSION: &str = "0.22.1";

fn dtype(format: Format) -> Option<DType> {
    match format {
        Format::F32 => Some(DType::F32),
        Format::F16 => Some(DType::F16),
        Format::Bf16 => Some(DType::BF16),
        _ => None,
    }
}

/// How far a result of burn's may be from ours, of the largest: in 16 bits activations and results
/// are rounded, too.
fn tolerance(dtype: DType) -> f32 {
    if dtype == DType::F32 { 1e-4 } else { 1e-2 }
}

/// [rows, cols] to [cols, rows].
fn transposed(values: &[f32], cols: usize) -> Vec<f32> {
    let rows = values.len() / cols;
    (0..values.len()).map(|at| values[at % rows * cols + at / rows]).collect()
}

fn tensor(
    device: &Device,
    dtype: DType,
    values: Vec<f32>,
    shape: [usize; 2],
) -> Result<CubeTensor> {
    let data = TensorData::new(values, shape).try_cast(dtype)?;
    Ok(CubeBackend::float_from_data(data, device))
}

fn read(tensor: CubeTensor) -> Result<Vec<f32>> {
    let data = pollster::block_on(CubeBackend::float_into_data(tensor))?;
    Ok(data.try_into_vec_as::<f32>()?)
}

/// Whether burn's product is ours; if not, in words.
fn check(ours: &[f32], burns: &[f32], tolerance: f32) -> Result<(), String> {
    let largest = ours.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
    let distances = ours.iter().zip(burns).map(|(ours, burns)| (ours - burns).abs());
    let distance = distances.fold(0.0, f32::max);
    let is_whole = ours.len() == burns.len() && burns.iter().all(|value| value.is_finite());
    if is_whole && distance <= tolerance * largest {
        return Ok(());
    }
    Err(format!("burn is off by {distance}, of at most {largest}"))
}

fn task<'a>(device: &Device, x: CubeTensor, weights: CubeTensor) -> Result<Task<'a>> {
    let device = device.clone();
    Task::new(move |repetitions| {
        let began = Instant::now();
        for _ in 0..repetitions {
            CubeBackend::float_matmul(x.clone(), weights.clone());
        }
        CubeBackend::sync(&device)?;
        Ok(began.elapsed())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use shaders::kv_cache::KvFormat;

    use crate::engine::kernels::Kernel;

    #[test]
    fn burn_multiplies_as_ours_do_on_one_device() {
        let options = KernelOptions {
            kernels: vec![Kernel::Matmul],
            formats: vec![Format::F32, Format::F16, Format::Bf16, Format::Int4],
            products: vec![Products::Plain],
            shapes: vec![(64, 48)],
            batches: vec![1, 3],
            heads: Vec::new(),
            kv: KvFormat::F32,
            contexts: Vec::new(),
            sequences: Vec::new(),
            vocab_size: 0,
            num_rounds: 2,
        };
        let compared = compare(None, &options, &mut |_| ()).unwrap();
        for format in options.formats {
            let name = format_name(format);
            let of = |one: &&KernelTimes| one.about.keys["format"] == name;
            let found: Vec<_> = compared.measured.iter().filter(of).collect();
            if compared.missing.iter().any(|why| why.starts_with(&format!("{name}: "))) {
                assert!(format != Format::F32 && found.is_empty(), "{compared:?}");
                continue;
            }
            let kernels: Vec<_> =
                found.iter().map(|one| (one.about.kernel, one.about.rows)).collect();
            assert_eq!(kernels, [("matmul", 1), ("burn", 1), ("matmul", 3), ("burn", 3)]);
            for pair in found.chunks(2) {
                assert!(pair[0].ratio.is_none() && pair[1].ratio.unwrap() > 0.0);
                assert_eq!(pair[1].rounds.len(), 2);
            }
        }
        assert!(compared.missing.iter().any(|why| why.starts_with("int4: ")));
    }

    #[test]
    fn another_product_is_not_timed() {
        let ours = [1.0, -2.0, 0.5];
        assert_eq!(check(&ours, &[1.0, -2.0001, 0.5], 1e-4), Ok(()));
        for burns in [&[1.0, -2.0, 0.501][..], &[1.0, f32::NAN, 0.5], &[1.0, -2.0]] {
            assert!(check(&ours, burns, 1e-4).is_err(), "{burns:?}");
        }
    }
}
