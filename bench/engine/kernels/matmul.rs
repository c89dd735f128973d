//! Products of rows of activations with weights.

use anyhow::Result;
use serde_json::json;
use shaders::error::GpuError;
use shaders::gpu::Gpu;
use shaders::matmul::{Matmul, Operand, Output, Products};
use shaders::quantize_rows::QuantizedRows;
use shaders::tensor::Tensor;
use shaders::weights::{Format, RowOrder, WeightMatrix};

use super::{About, KernelOptions, KernelRun, numbers};

/// Every format with every shape and number of rows.
pub(super) fn works(gpu: &Gpu, options: &KernelOptions) -> Result<Vec<KernelRun>> {
    let ways: Vec<_> = options.products.iter().map(|&how| (how, Matmul::of(gpu, how))).collect();
    let mut works = Vec::new();
    for &shape in &options.shapes {
        for &format in &options.formats {
            let weights = weights(gpu, shape, format)?;
            for &batch in &options.batches {
                for (how, matmul) in &ways {
                    if *how != Products::PackedDot || matmul.quantizes(format) {
                        let mut work = work(gpu, matmul, &weights, batch)?.0;
                        work.about.keys["products"] = how.to_string().into();
                        works.push(work);
                    }
                }
            }
        }
    }
    Ok(works)
}

/// Our product of [`numbers`], `[batch, cols]`, with `weights`, and where it is left,
/// `[batch, rows]`.
///
/// # Errors
/// When the device has no room or fails.
pub(crate) fn work(
    gpu: &Gpu,
    matmul: &Matmul,
    weights: &WeightMatrix,
    batch: usize,
) -> Result<(KernelRun, Tensor), GpuError> {
    let (cols, rows, format) = (weights.cols, weights.rows, weights.format);
    let x = gpu.upload_vec4s(&numbers(batch * cols))?;
    let out = gpu.alloc_f32(batch * rows)?;
    let quantized = match matmul.quantizes(format) {
        true => Some(QuantizedRows::new(gpu, batch, cols)?),
        false => None,
    };
    let operand = Operand { x: &x, norm: None, quantized: quantized.as_ref() };
    let bound = matmul.bind(gpu, operand, weights, Output::Store(&out))?;
    let name = format_name(format);
    let about = About {
        kernel: "matmul",
        shape: format!("{name} {cols} x {rows}"),
        rows: batch,
        layout: bound.layout(batch),
        num_bytes: num_bytes(weights, batch),
        num_operations: 2.0 * (rows * cols * batch) as f64,
        keys: json!({ "format": name, "k": cols, "n": rows }),
    };
    Ok((KernelRun { about, record: Box::new(move |pass| bound.record(pass, batch)) }, out))
}

/// Bytes of weights, activations and results.
fn num_bytes(weights: &WeightMatrix, batch: usize) -> f64 {
    let row_bytes = weights.format.row_bytes(weights.cols);
    (weights.rows * row_bytes + batch * (weights.rows + weights.cols) * 4) as f64
}

/// The name of a format in options and results.
pub(crate) fn format_name(format: Format) -> String {
    format!("{format:?}").to_lowercase()
}

/// Weights [cols, rows] whose values don't matter, a tile of them repeated.
///
/// # Errors
/// When the device has no room.
pub(crate) fn weights(
    gpu: &Gpu,
    (cols, rows): (usize, usize),
    format: Format,
) -> Result<WeightMatrix, GpuError> {
    let tile = format.encode(cols, &numbers(64 * cols));
    WeightMatrix::upload(gpu, (rows, cols), (format, RowOrder::Plain), |_, bytes| {
        bytes.copy_from_slice(&tile[..bytes.len()]);
        Ok(())
    })
}
