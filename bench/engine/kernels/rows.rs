//! Kernels that do little with each row: the embedding, and the norm that stands by itself.

use anyhow::{Context, Result};
use serde_json::json;
use shaders::embed::BoundEmbed;
use shaders::gpu::Gpu;
use shaders::inputs::{InputLimits, Inputs, StepInputs};
use shaders::rms_norm::RmsNorm;

use super::matmul::{format_name, weights};
use super::{About, KernelOptions, KernelRun, numbers};

/// Rows of the table from which embeddings are taken.
const TABLE_ROWS: usize = 8192;

/// Rows of every width of weights and format, looked up.
pub(super) fn embed_works(gpu: &Gpu, options: &KernelOptions) -> Result<Vec<KernelRun>> {
    let mut works = Vec::new();
    for width in widths(options) {
        for &format in &options.formats {
            let table = weights(gpu, (width, TABLE_ROWS), format)?;
            for &batch in &options.batches {
                let limits = InputLimits {
                    max_tokens: batch,
                    max_outputs: 0,
                    max_table_entries: 1,
                    max_copies: 0,
                    max_positions: 1,
                    num_blocks: 1,
                    vocab_size: TABLE_ROWS,
                };
                let mut inputs = Inputs::new(gpu, limits)?;
                let ids = (0..batch).map(|at| (at * 4099 % TABLE_ROWS) as u32);
                let step = StepInputs {
                    token_ids: ids.collect(),
                    positions: vec![0; batch],
                    table_starts: vec![0; batch],
                    output_rows: Vec::new(),
                    tables: vec![0],
                    copies: Vec::new(),
                };
                let shape = inputs.write(gpu, &step).context("a step that was made to fit")?;
                let out = gpu.alloc_vec4s(batch * width)?;
                let bound = BoundEmbed::new(gpu, &inputs, &table, &out)?;
                let name = format_name(format);
                let about = About {
                    kernel: "embed",
                    shape: format!("{name} {width}"),
                    rows: batch,
                    layout: String::new(),
                    num_bytes: (batch * (format.row_bytes(width) + width * 4)) as f64,
                    num_operations: 0.0,
                    keys: json!({ "format": name, "width": width }),
                };
                works.push(KernelRun {
                    about,
                    record: Box::new(move |pass| bound.record(pass, shape)),
                });
            }
        }
    }
    Ok(works)
}

/// Rows of every width of weights, normalised and added to the residual stream.
pub(super) fn norm_works(gpu: &Gpu, options: &KernelOptions) -> Result<Vec<KernelRun>> {
    let norm = RmsNorm::new(gpu)?;
    let mut works = Vec::new();
    for width in widths(options) {
        let weight = gpu.upload_vec4s(&numbers(width))?;
        for &batch in &options.batches {
            let x = gpu.upload(&numbers(batch * width))?;
            let residual = gpu.upload_vec4s(&numbers(batch * width))?;
            let out = gpu.alloc_vec4s(batch * width)?;
            let bound = norm.bind(gpu, 1e-5, &x, &weight, (&residual, &out))?;
            let about = About {
                kernel: "norm",
                shape: width.to_string(),
                rows: batch,
                layout: String::new(),
                num_bytes: (3 * batch * width * 4) as f64,
                // A square, its sum, two products, a sum.
                num_operations: (5 * batch * width) as f64,
                keys: json!({ "width": width }),
            };
            works
                .push(KernelRun { about, record: Box::new(move |pass| bound.record(pass, batch)) });
        }
    }
    Ok(works)
}

/// The widths of hidden rows that the shapes of weights stand for.
fn widths(options: &KernelOptions) -> Vec<usize> {
    let mut widths: Vec<_> = options.shapes.iter().map(|(cols, _)| *cols).collect();
    widths.sort_unstable();
    widths.dedup();
    widths
}
