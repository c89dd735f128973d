//! RMS normalisation of a sublayer's output, on its way into the residual stream (sandwich norms).
//! Norms before a product are part of the product ([`crate::matmul::Norm`]).

use bytemuck::{Pod, Zeroable};

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::kernel::{Bound, Kernel, KernelSource, Pass};
use crate::tensor::Tensor;

/// The parameters of `rms_norm.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    num_vec4s: u32,
    eps: f32,
}

/// The compiled kernel.
pub struct RmsNorm(Kernel);

/// The kernel bound to a layer's tensors.
pub struct BoundRmsNorm {
    bound: Bound,
    params: Params,
    max_tokens: usize,
}

impl RmsNorm {
    /// Compiles the kernel.
    pub fn new(gpu: &Gpu) -> Result<Self, GpuError> {
        Kernel::new(gpu, &source(gpu.caps().images)).map(Self)
    }

    /// `out[t, :] = residual[t, :] + norm(x[t, :]) * weight`
    ///
    /// * `x`: [num_tokens, hidden_size]
    /// * `weight`: `[hidden_size]`, vec4s
    /// * `residual`, `out`: [num_tokens, hidden_size], vec4s
    pub fn bind(
        &self,
        gpu: &Gpu,
        eps: f32,
        x: &Tensor,
        weight: &Tensor,
        (residual, out): (&Tensor, &Tensor),
    ) -> Result<BoundRmsNorm, GpuError> {
        let hidden_size = weight.len();
        assert!(hidden_size.is_multiple_of(4), "the kernel takes four values at a time");
        let max_tokens = x.len().min(out.len()).min(residual.len()) / hidden_size;
        Ok(BoundRmsNorm {
            bound: self.0.bind(gpu, &[x, weight, residual, out])?,
            params: Params { num_vec4s: (hidden_size / 4) as u32, eps },
            max_tokens,
        })
    }
}

impl BoundRmsNorm {
    /// Normalises the first `num_tokens` rows.
    pub fn record(&self, pass: &mut Pass, num_tokens: usize) {
        assert!(num_tokens <= self.max_tokens, "a batch fits the tensors of its stage");
        pass.dispatch(&self.bound, &self.params, [num_tokens as u32, 1, 1]);
    }
}

/// RMS normalisation, one token after another.
///
/// * `x`: [num_tokens, hidden_size]
/// * `weight`: `[hidden_size]`
pub fn reference(eps: f32, x: &[f32], weight: &[f32]) -> Vec<f32> {
    x.chunks_exact(weight.len())
        .flat_map(|row| {
            let sum: f32 = row.iter().map(|value| value * value).sum();
            let scale = 1.0 / (sum / row.len() as f32 + eps).sqrt();
            row.iter().zip(weight).map(move |(value, weight)| value * scale * weight)
        })
        .collect()
}

/// Square root of the number of lanes per token. The order of the sum follows from it, so it is one
/// number for all devices and batches.
const LEVEL: u32 = 8;

pub(crate) fn source(images: bool) -> KernelSource {
    let constants = [("WORKGROUP", LEVEL * LEVEL), ("LEVEL", LEVEL)];
    KernelSource::declared::<Params>("rms_norm", include_str!("rms_norm.wgsl"), images, &constants)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::testing::{self, assert_bits_eq, assert_close};

    #[test]
    fn params_are_the_shader_s() {
        for source in [source(false), source(true)] {
            testing::assert_kernel(&source);
            testing::assert_params(
                &source,
                &[("num_vec4s", offset_of!(Params, num_vec4s)), ("eps", offset_of!(Params, eps))],
            );
        }
    }

    #[test]
    fn reference_by_hand() {
        // rms(3, 4) = sqrt(12.5)
        let out = reference(0.0, &[3.0, 4.0], &[1.0, 2.0]);
        assert_close(&out, &[0.848_528_1, 2.262_741_7], 1e-6);
    }

    fn run(gpu: &Gpu, eps: f32, x: &[f32], weight: &[f32], residual: &[f32]) -> Vec<f32> {
        let out = gpu.alloc_vec4s(x.len()).unwrap();
        let tensors = (&gpu.upload_vec4s(residual).unwrap(), &out);
        let (x_tensor, weight_tensor) = (gpu.upload(x).unwrap(), gpu.upload_vec4s(weight).unwrap());
        let kernel = RmsNorm::new(gpu).unwrap();
        let mut pass = Pass::new();
        kernel
            .bind(gpu, eps, &x_tensor, &weight_tensor, tensors)
            .unwrap()
            .record(&mut pass, x.len() / weight.len());
        gpu.run(&pass).unwrap();
        gpu.read_f32(&out).unwrap()
    }

    #[test]
    fn agrees_with_the_reference() {
        for gpu in testing::both_layouts() {
            let mut random = testing::Random::new(1);
            for hidden_size in [4, 60, 64, 68, 576, 1756] {
                let (x, weight) = (random.normal(3 * hidden_size), random.normal(hidden_size));
                let residual = random.normal(3 * hidden_size);
                let normed = reference(1e-5, &x, &weight);
                let sum: Vec<f32> = normed.iter().zip(&residual).map(|(a, b)| a + b).collect();
                // Up to 1756 squares are added in another order.
                assert_close(&run(&gpu, 1e-5, &x, &weight, &residual), &sum, 1e-5);
            }
        }
    }

    #[test]
    fn a_row_is_the_same_in_any_batch() {
        let Some(gpu) = testing::gpu() else { return };
        let mut random = testing::Random::new(2);
        for num_tokens in [2, 7, 64] {
            let (x, weight) = (random.normal(num_tokens * 100), random.normal(100));
            let residual = random.normal(num_tokens * 100);
            let together = run(&gpu, 1e-6, &x, &weight, &residual);
            for token in 0..num_tokens {
                let row = token * 100..(token + 1) * 100;
                let alone = run(&gpu, 1e-6, &x[row.clone()], &weight, &residual[row.clone()]);
                assert_bits_eq(&alone, &together[row]);
            }
        }
    }
}
