//! The gate of a feed-forward layer.

use bytemuck::{Pod, Zeroable};

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::kernel::{Access, Bound, Kernel, KernelSource, Pass};
use crate::template::expand_vec4s;
use crate::tensor::Tensor;

/// The parameters of `swiglu.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    row_vec4s: u32,
}

/// The compiled kernel.
pub struct Swiglu(Kernel);

/// The kernel bound to the tensors of a stage.
pub struct BoundSwiglu {
    bound: Bound,
    params: Params,
    max_tokens: usize,
}

impl Swiglu {
    /// Compiles the kernel.
    pub fn new(gpu: &Gpu) -> Result<Self, GpuError> {
        Kernel::new(gpu, &source(gpu.caps().images)).map(Self)
    }

    /// `out[t, i] = silu(gate_up[t, i]) * gate_up[t, width + i]`
    ///
    /// * `gate_up`: [num_tokens, 2 * width]
    /// * `out`: [num_tokens, width], vec4s
    pub fn bind(
        &self,
        gpu: &Gpu,
        width: usize,
        gate_up: &Tensor,
        out: &Tensor,
    ) -> Result<BoundSwiglu, GpuError> {
        assert!(width.is_multiple_of(4), "the kernel takes four values at a time");
        Ok(BoundSwiglu {
            bound: self.0.bind(gpu, &[gate_up, out])?,
            params: Params { row_vec4s: (width / 4) as u32 },
            max_tokens: (gate_up.len() / 2).min(out.len()) / width,
        })
    }
}

impl BoundSwiglu {
    /// Gates the first `num_tokens` rows.
    pub fn record(&self, pass: &mut Pass, num_tokens: usize) {
        assert!(num_tokens <= self.max_tokens, "a batch fits the tensors of its stage");
        pass.dispatch(
            &self.bound,
            &self.params,
            [self.params.row_vec4s.div_ceil(WORKGROUP), num_tokens as u32, 1],
        );
    }
}

/// What the kernel computes.
///
/// * `gate_up`: [num_tokens, 2 * width]
pub fn reference(width: usize, gate_up: &[f32]) -> Vec<f32> {
    gate_up
        .chunks_exact(2 * width)
        .flat_map(|row| {
            let (gate, up) = row.split_at(width);
            gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
        })
        .collect()
}

const WORKGROUP: u32 = 64;

pub(crate) fn source(images: bool) -> KernelSource {
    let wgsl = expand_vec4s(include_str!("swiglu.wgsl"), images, &[("WORKGROUP", WORKGROUP)]);
    KernelSource::new::<Params>("swiglu", wgsl, &[Access::Read, Access::write_vec4s(images)])
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::testing::{self, Random, assert_bits_eq, assert_close};

    #[test]
    fn params_are_the_shader_s() {
        for images in [false, true] {
            testing::assert_kernel(&source(images));
            testing::assert_params(
                &source(images),
                &[("row_vec4s", offset_of!(Params, row_vec4s))],
            );
        }
    }

    #[test]
    fn reference_by_hand() {
        // silu(1) = 0.731059
        assert_close(&reference(2, &[0.0, 1.0, 5.0, 2.0]), &[0.0, 1.462_117], 1e-6);
    }

    fn run(gpu: &Gpu, width: usize, gate_up: &[f32]) -> Vec<f32> {
        let (x, out) = (gpu.upload(gate_up).unwrap(), gpu.alloc_vec4s(gate_up.len() / 2).unwrap());
        let mut pass = Pass::new();
        Swiglu::new(gpu)
            .unwrap()
            .bind(gpu, width, &x, &out)
            .unwrap()
            .record(&mut pass, gate_up.len() / 2 / width);
        gpu.run(&pass).unwrap();
        gpu.read_f32(&out).unwrap()
    }

    #[test]
    fn agrees_with_the_reference_in_any_batch() {
        for gpu in testing::both_layouts() {
            for width in [4, 64, 260] {
                let gate_up: Vec<f32> =
                    Random::new(7).normal(5 * 2 * width).iter().map(|value| value * 3.0).collect();
                let together = run(&gpu, width, &gate_up);
                // The device's exp is good to a few units in the last place.
                assert_close(&together, &reference(width, &gate_up), 1e-5);
                let alone = run(&gpu, width, &gate_up[2 * width..4 * width]);
                assert_bits_eq(&alone, &together[width..2 * width]);
            }
        }
    }

    #[test]
    fn large_gates_stay_finite() {
        let Some(gpu) = testing::gpu() else { return };
        let out = run(&gpu, 4, &[-200.0, 200.0, -90.0, 90.0, 1.0, 1.0, 1.0, 1.0]);
        assert_close(&out, &[0.0, 200.0, 0.0, 90.0], 1e-5);
    }
}
