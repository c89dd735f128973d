//! Rows of the embedding table, which may be the very matrix that the LM head multiplies with.

use bytemuck::{Pod, Zeroable};

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::inputs::{Inputs, StepShape};
use crate::kernel::{Bound, Kernel, KernelSource, Pass};
use crate::tensor::Tensor;
use crate::weights::{Format, RowOrder, WeightMatrix};

/// The parameters of `embed.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    first_row: u32,
    num_rows: u32,
    num_blocks: u32,
    row_vec4s: u32,
}

/// The lookup in one table, for each of its shards.
pub struct BoundEmbed {
    shards: Vec<(Bound, Params)>,
    max_tokens: usize,
}

impl BoundEmbed {
    /// `out[t, :] = table[token_ids[t], :]`
    ///
    /// * `table`: [vocab_size, hidden_size]
    /// * `out`: [num_tokens, hidden_size], vec4s
    pub fn new(
        gpu: &Gpu,
        inputs: &Inputs,
        table: &WeightMatrix,
        out: &Tensor,
    ) -> Result<Self, GpuError> {
        assert!(table.order == RowOrder::Plain, "tokens are found by their row");
        let kernel = Kernel::new(gpu, &source(table.format, gpu.caps().images))?;
        let mut shards = Vec::new();
        for shard in &table.shards {
            let params = Params {
                first_row: shard.rows.start as u32,
                num_rows: shard.rows.len() as u32,
                num_blocks: table.num_blocks() as u32,
                row_vec4s: (table.cols / 4) as u32,
            };
            let tensors = [Some(&inputs.tensor), Some(&shard.blocks), Some(out)];
            let tensors = tensors.into_iter().chain([shard.scales.as_ref()]).flatten();
            shards.push((kernel.bind(gpu, &tensors.collect::<Vec<_>>())?, params));
        }
        Ok(Self { shards, max_tokens: out.len() / table.cols })
    }

    /// Looks the tokens of a step up.
    pub fn record(&self, pass: &mut Pass, step: StepShape) {
        assert!(step.num_tokens <= self.max_tokens, "a batch fits the tensors of its stage");
        for (bound, params) in &self.shards {
            pass.dispatch(
                bound,
                params,
                [params.num_blocks.div_ceil(WORKGROUP), step.num_tokens as u32, 1],
            );
        }
    }
}

/// What the kernel computes.
///
/// * `table`: [vocab_size, hidden_size]
pub fn reference(hidden_size: usize, token_ids: &[u32], table: &[f32]) -> Vec<f32> {
    token_ids
        .iter()
        .flat_map(|&id| table[id as usize * hidden_size..][..hidden_size].to_vec())
        .collect()
}

const WORKGROUP: u32 = 64;

pub(crate) fn source(format: Format, images: bool) -> KernelSource {
    let constants = [
        &[("WORKGROUP", WORKGROUP), ("SCALED", 0), ("HALF_QUADS", 0), ("LONG_GROUPS", 0)][..],
        &format.constants(),
    ]
    .concat();
    let place = include_str!("decode_place.wgsl");
    let template = [include_str!("embed.wgsl"), place, format.decoder()].concat();
    let name = format!("embed {format:?}");
    KernelSource::declared::<Params>(name, &template, images, &constants)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::testing::{self, Random, assert_bits_eq, assert_close};

    #[test]
    fn params_are_the_shader_s() {
        for (format, images) in testing::formats_and_layouts() {
            let source = source(format, images);
            testing::assert_kernel(&source);
            testing::assert_params(
                &source,
                &[
                    ("first_row", offset_of!(Params, first_row)),
                    ("num_rows", offset_of!(Params, num_rows)),
                    ("num_blocks", offset_of!(Params, num_blocks)),
                    ("row_vec4s", offset_of!(Params, row_vec4s)),
                ],
            );
        }
    }

    #[test]
    fn reference_by_hand() {
        assert_eq!(reference(2, &[1, 0], &[1.0, 2.0, 3.0, 4.0]), [3.0, 4.0, 1.0, 2.0]);
    }

    fn check(gpu: &Gpu) {
        let mut random = Random::new(5);
        for format in Format::ALL {
            for (vocab_size, hidden_size) in [(1, 4), (65, 36), (300, 100)] {
                let bytes = format.encode(hidden_size, &random.normal(vocab_size * hidden_size));
                let (shape, plain) = ((vocab_size, hidden_size), (format, RowOrder::Plain));
                let table = WeightMatrix::from_bytes(gpu, shape, plain, &bytes).unwrap();
                let token_ids: Vec<u32> = (0..9).map(|_| random.below(vocab_size) as u32).collect();
                let (inputs, step) = testing::token_inputs(gpu, &token_ids);
                let out = gpu.alloc_vec4s(token_ids.len() * hidden_size).unwrap();
                let mut pass = Pass::new();
                BoundEmbed::new(gpu, &inputs, &table, &out).unwrap().record(&mut pass, step);
                gpu.run(&pass).unwrap();
                let table = format.decode(hidden_size, &bytes);
                let expected = reference(hidden_size, &token_ids, &table);
                let out = gpu.read_f32(&out).unwrap();
                if format.has_offset() && format != Format::Int8 || format == Format::Q6K {
                    // A device may round the product before it adds the offset.
                    assert_close(&out, &expected, 1e-6);
                } else {
                    assert_bits_eq(&out, &expected);
                }
            }
        }
    }

    #[test]
    fn agrees_with_the_reference() {
        for gpu in testing::both_layouts() {
            check(&gpu);
        }
    }

    /// Goal: blocks of ggml are on the device what its package says that they are. Method: rows of
    /// golden ones, scales of every size among them, looked up.
    #[test]
    fn blocks_of_ggml_hold_what_its_package_says() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/quants");
        for (format, name) in [
            (Format::Int5, "Q5_1"),
            (Format::Q4K, "Q4_K"),
            (Format::Q5K, "Q5_K"),
            (Format::Q6K, "Q6_K"),
            (Format::Iq4Nl, "IQ4_NL"),
            (Format::Iq4Xs, "IQ4_XS"),
        ] {
            let read = |ending: &str| std::fs::read(format!("{folder}/{name}.{ending}")).unwrap();
            let (bytes, values) = (read("blocks"), read("values"));
            let values = values.as_chunks().0.iter().map(|it| f32::from_le_bytes(*it));
            let expected: Vec<f32> = values.collect();
            let cols = 256;
            assert_eq!(format.decode(cols, &bytes), expected, "{name}");
            let rows = expected.len() / cols;
            for gpu in testing::both_layouts() {
                let form = (format, RowOrder::Plain);
                let table = WeightMatrix::from_bytes(&gpu, (rows, cols), form, &bytes).unwrap();
                let ids: Vec<u32> = (0..rows as u32).collect();
                let (inputs, step) = testing::token_inputs(&gpu, &ids);
                let out = gpu.alloc_vec4s(rows * cols).unwrap();
                let mut pass = Pass::new();
                BoundEmbed::new(&gpu, &inputs, &table, &out).unwrap().record(&mut pass, step);
                gpu.run(&pass).unwrap();
                let found = gpu.read_f32(&out).unwrap();
                for (found, expected) in found.chunks(cols).zip(expected.chunks(cols)) {
                    // Against the largest of a row: of codes and minimums, much may cancel out.
                    let size = expected.iter().fold(0.0, |most: f32, it| most.max(it.abs()));
                    for (found, expected) in found.iter().zip(expected) {
                        let error = (found - expected).abs();
                        assert!(error <= size * 1e-6, "{name}: {found} {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn agrees_when_the_table_is_split() {
        // One or two tiles per shard, depending on the format.
        let Some(gpu) = testing::small_gpu(33 << 10) else { return };
        check(&gpu);
    }
}
