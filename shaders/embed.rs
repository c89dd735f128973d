//! Rows of the embedding table, which may be the very matrix that the LM head multiplies with.

use bytemuck::{Pod, Zeroable};

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::inputs::{Inputs, StepShape};
use crate::kernel::{Access, Bound, Kernel, KernelSource, Pass};
use crate::template::expand_vec4s;
use crate::tensor::Tensor;
use crate::weights::{FloatType, TILE, WeightMatrix};

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
    /// * `out`: [num_tokens, hidden_size]
    pub fn new(
        gpu: &Gpu,
        inputs: &Inputs,
        table: &WeightMatrix,
        out: &Tensor,
    ) -> Result<Self, GpuError> {
        let kernel = Kernel::new(gpu, &source(table.float, gpu.caps().images))?;
        let mut shards = Vec::new();
        for shard in &table.shards {
            let params = Params {
                first_row: shard.rows.start as u32,
                num_rows: shard.rows.len() as u32,
                num_blocks: table.num_blocks() as u32,
                row_vec4s: (table.cols / 4) as u32,
            };
            shards.push((kernel.bind(gpu, &[&inputs.tensor, &shard.blocks, out])?, params));
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

pub(crate) fn source(float: FloatType, images: bool) -> KernelSource {
    let constants =
        [("WORKGROUP", WORKGROUP), ("TILE", TILE as u32), ("PARTS", float.block() as u32 / 4)];
    let template = [include_str!("embed.wgsl"), float.decoder()].concat();
    let bindings = [Access::Read, Access::read_blocks(images), Access::ReadWrite];
    KernelSource::new::<Params>(
        format!("embed {float:?}"),
        expand_vec4s(&template, images, &constants),
        &bindings,
    )
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::testing::{self, Random, assert_bits_eq};

    #[test]
    fn params_are_the_shader_s() {
        for (float, images) in testing::floats_and_layouts() {
            let source = source(float, images);
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
        for float in FloatType::ALL {
            for (vocab_size, hidden_size) in [(1, 4), (65, 36), (300, 100)] {
                let bytes = float.encode(&random.normal(vocab_size * hidden_size));
                let table = WeightMatrix::from_bytes(gpu, (vocab_size, hidden_size), float, &bytes)
                    .unwrap();
                let token_ids: Vec<u32> = (0..9).map(|_| random.below(vocab_size) as u32).collect();
                let (inputs, step) = testing::token_inputs(gpu, &token_ids);
                let out = gpu.alloc_f32(token_ids.len() * hidden_size).unwrap();
                let mut pass = Pass::new();
                BoundEmbed::new(gpu, &inputs, &table, &out).unwrap().record(&mut pass, step);
                gpu.run(&pass).unwrap();
                // A copy: no rounding.
                let expected = reference(hidden_size, &token_ids, &float.decode(&bytes));
                assert_bits_eq(&gpu.read_f32(&out).unwrap(), &expected);
            }
        }
    }

    #[test]
    fn agrees_with_the_reference() {
        for gpu in testing::both_layouts() {
            check(&gpu);
        }
    }

    #[test]
    fn agrees_when_the_table_is_split() {
        // One or two tiles per shard, depending on the format.
        let Some(gpu) = testing::small_gpu(33 << 10) else { return };
        check(&gpu);
    }
}
