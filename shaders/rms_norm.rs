//! RMS normalisation of each token, plain or added to a residual stream.

use bytemuck::{Pod, Zeroable};

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::kernel::{Access, Bound, Kernel, KernelSource, Pass};
use crate::template::expand_vec4s;
use crate::tensor::Tensor;

/// The parameters of `rms_norm.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    num_vec4s: u32,
    eps: f32,
}

/// The compiled kernels.
pub struct RmsNorm {
    store: Kernel,
    add: Kernel,
}

/// The kernel bound to a layer's tensors.
pub struct BoundRmsNorm {
    bound: Bound,
    params: Params,
    max_tokens: usize,
}

impl RmsNorm {
    /// Compiles both variants.
    pub fn new(gpu: &Gpu) -> Result<Self, GpuError> {
        let [store, add] = sources(gpu.caps().images);
        Ok(Self { store: Kernel::new(gpu, &store)?, add: Kernel::new(gpu, &add)? })
    }

    /// `out[t, :] = norm(x[t, :]) * weight`
    ///
    /// * `x`: [num_tokens, hidden_size]
    /// * `weight`: `[hidden_size]`, vec4s
    /// * `out`: [num_tokens, hidden_size], vec4s
    pub fn bind(
        &self,
        gpu: &Gpu,
        eps: f32,
        x: &Tensor,
        weight: &Tensor,
        out: &Tensor,
    ) -> Result<BoundRmsNorm, GpuError> {
        BoundRmsNorm::new(gpu, &self.store, eps, [x, weight, out])
    }

    /// `residual[t, :] += norm(x[t, :]) * weight`, the norm after a sublayer. The residual stream
    /// is no tensor of vec4s.
    ///
    /// * `x`, `residual`: [num_tokens, hidden_size]
    /// * `weight`: `[hidden_size]`, vec4s
    pub fn bind_residual(
        &self,
        gpu: &Gpu,
        eps: f32,
        x: &Tensor,
        weight: &Tensor,
        residual: &Tensor,
    ) -> Result<BoundRmsNorm, GpuError> {
        BoundRmsNorm::new(gpu, &self.add, eps, [x, weight, residual])
    }
}

impl BoundRmsNorm {
    fn new(gpu: &Gpu, kernel: &Kernel, eps: f32, tensors: [&Tensor; 3]) -> Result<Self, GpuError> {
        let [x, weight, out] = tensors;
        let hidden_size = weight.len();
        assert!(hidden_size.is_multiple_of(4), "the kernel reads four values at a time");
        Ok(Self {
            bound: kernel.bind(gpu, &tensors)?,
            params: Params { num_vec4s: (hidden_size / 4) as u32, eps },
            max_tokens: x.len().min(out.len()) / hidden_size,
        })
    }

    /// Normalises the first `num_tokens` rows.
    pub fn record(&self, pass: &mut Pass, num_tokens: usize) {
        assert!(num_tokens <= self.max_tokens, "a batch fits the tensors of its stage");
        pass.dispatch(&self.bound, &self.params, [num_tokens as u32, 1, 1]);
    }
}

/// What the kernel computes without a residual, one token after another.
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

pub(crate) fn sources(images: bool) -> [KernelSource; 2] {
    [("rms_norm", false), ("rms_norm residual", true)].map(|(name, residual)| {
        // The residual stream is a buffer everywhere.
        let out_image = images && !residual;
        let constants = [
            ("WORKGROUP", LEVEL * LEVEL),
            ("LEVEL", LEVEL),
            ("RESIDUAL", residual.into()),
            ("OUT_IMAGE", out_image.into()),
        ];
        let wgsl = expand_vec4s(include_str!("rms_norm.wgsl"), images, &constants);
        let bindings = [Access::Read, Access::read_vec4s(images), Access::write_vec4s(out_image)];
        KernelSource::new::<Params>(name, wgsl, &bindings)
    })
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::testing::{self, assert_bits_eq, assert_close};

    #[test]
    fn params_are_the_shader_s() {
        for source in [sources(false), sources(true)].concat() {
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

    fn run(gpu: &Gpu, eps: f32, x: &[f32], weight: &[f32], residual: Option<&[f32]>) -> Vec<f32> {
        let kernels = RmsNorm::new(gpu).unwrap();
        let (x_tensor, weight_tensor) = (gpu.upload(x).unwrap(), gpu.upload_vec4s(weight).unwrap());
        let (out, bound) = match residual {
            None => {
                let out = gpu.alloc_vec4s(x.len()).unwrap();
                let bound = kernels.bind(gpu, eps, &x_tensor, &weight_tensor, &out);
                (out, bound.unwrap())
            }
            Some(residual) => {
                let out = gpu.upload(residual).unwrap();
                let bound = kernels.bind_residual(gpu, eps, &x_tensor, &weight_tensor, &out);
                (out, bound.unwrap())
            }
        };
        let mut pass = Pass::new();
        bound.record(&mut pass, x.len() / weight.len());
        gpu.run(&pass).unwrap();
        gpu.read_f32(&out).unwrap()
    }

    #[test]
    fn agrees_with_the_reference() {
        for gpu in testing::both_layouts() {
            let mut random = testing::Random::new(1);
            for hidden_size in [4, 60, 64, 68, 576, 1756] {
                let (x, weight) = (random.normal(3 * hidden_size), random.normal(hidden_size));
                let expected = reference(1e-5, &x, &weight);
                // Up to 1756 squares are added in another order.
                assert_close(&run(&gpu, 1e-5, &x, &weight, None), &expected, 1e-5);
                let residual = random.normal(3 * hidden_size);
                let sum: Vec<f32> = expected.iter().zip(&residual).map(|(a, b)| a + b).collect();
                assert_close(&run(&gpu, 1e-5, &x, &weight, Some(&residual)), &sum, 1e-5);
            }
        }
    }

    #[test]
    fn a_row_is_the_same_in_any_batch() {
        let Some(gpu) = testing::gpu() else { return };
        let mut random = testing::Random::new(2);
        for num_tokens in [2, 7, 64] {
            let (x, weight) = (random.normal(num_tokens * 100), random.normal(100));
            let together = run(&gpu, 1e-6, &x, &weight, None);
            for token in 0..num_tokens {
                let row = token * 100..(token + 1) * 100;
                assert_bits_eq(&run(&gpu, 1e-6, &x[row.clone()], &weight, None), &together[row]);
            }
        }
    }
}
