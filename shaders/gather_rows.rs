//! The rows whose logits are wanted, so that the LM head computes no others.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::inputs::{Inputs, StepShape};
use crate::kernel::{Bound, Kernel, KernelSource, Pass};
use crate::tensor::Tensor;

/// The parameters of `gather_rows.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    output_rows_at: u32,
    row_vec4s: u32,
}

/// The kernel bound to the last hidden states of a stage.
pub struct BoundGatherRows {
    bound: Bound,
    row_vec4s: u32,
    max_outputs: usize,
}

impl BoundGatherRows {
    /// `out[i, :] = x[output_rows[i], :]`
    ///
    /// * `x`: [num_tokens, hidden_size], vec4s
    /// * `out`: [num_outputs, hidden_size], vec4s
    pub fn new(
        gpu: &Gpu,
        hidden_size: usize,
        inputs: &Inputs,
        x: &Tensor,
        out: &Tensor,
    ) -> Result<Self, GpuError> {
        assert!(hidden_size.is_multiple_of(4), "the kernel copies four values at a time");
        let kernel = Kernel::new(gpu, &source(gpu.caps().images))?;
        Ok(Self {
            bound: kernel.bind(gpu, &[&inputs.tensor, x, out])?,
            row_vec4s: (hidden_size / 4) as u32,
            max_outputs: out.len() / hidden_size,
        })
    }

    /// Gathers these of the output rows of a step: all of them, or a group at a time.
    pub fn record(&self, pass: &mut Pass, step: StepShape, outputs: Range<usize>) {
        assert!(outputs.end <= step.num_outputs, "a group lies within its step");
        assert!(outputs.len() <= self.max_outputs, "a batch fits the tensors of its stage");
        let params = Params {
            output_rows_at: step.output_rows_at() + outputs.start as u32,
            row_vec4s: self.row_vec4s,
        };
        pass.dispatch(
            &self.bound,
            &params,
            [self.row_vec4s.div_ceil(WORKGROUP), outputs.len() as u32, 1],
        );
    }
}

/// What the kernel computes.
///
/// * `x`: [num_tokens, hidden_size]
pub fn reference(hidden_size: usize, output_rows: &[u32], x: &[f32]) -> Vec<f32> {
    output_rows
        .iter()
        .flat_map(|&row| x[row as usize * hidden_size..][..hidden_size].to_vec())
        .collect()
}

const WORKGROUP: u32 = 64;

pub(crate) fn source(images: bool) -> KernelSource {
    let constants = [("WORKGROUP", WORKGROUP)];
    let template = include_str!("gather_rows.wgsl");
    KernelSource::declared::<Params>("gather_rows", template, images, &constants)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::inputs::StepInputs;
    use crate::testing::{self, Random, assert_bits_eq};

    #[test]
    fn params_are_the_shader_s() {
        for images in [false, true] {
            testing::assert_kernel(&source(images));
            testing::assert_params(
                &source(images),
                &[
                    ("output_rows_at", offset_of!(Params, output_rows_at)),
                    ("row_vec4s", offset_of!(Params, row_vec4s)),
                ],
            );
        }
    }

    #[test]
    fn agrees_with_the_reference() {
        let Some(gpu) = testing::gpu() else { return };
        for hidden_size in [4, 100, 576] {
            let x = Random::new(6).normal(7 * hidden_size);
            let output_rows = vec![6, 0, 3, 3];
            let (inputs, step) = testing::inputs(
                &gpu,
                &StepInputs {
                    token_ids: vec![0; 7],
                    positions: vec![0; 7],
                    table_starts: vec![0; 7],
                    output_rows: output_rows.clone(),
                    tables: vec![0],
                    copies: Vec::new(),
                },
            );
            let (x_tensor, out) =
                (gpu.upload_vec4s(&x).unwrap(), gpu.alloc_vec4s(3 * hidden_size).unwrap());
            let mut pass = Pass::new();
            BoundGatherRows::new(&gpu, hidden_size, &inputs, &x_tensor, &out).unwrap().record(
                &mut pass,
                step,
                1..4,
            );
            gpu.run(&pass).unwrap();
            let expected = reference(hidden_size, &output_rows[1..], &x);
            assert_bits_eq(&gpu.read_f32(&out).unwrap(), &expected);
        }
    }
}
