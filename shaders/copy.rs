//! A copy, to measure how fast memory is.

use bytemuck::{Pod, Zeroable};

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::kernel::{Bound, Kernel, KernelSource, Pass};
use crate::tensor::Tensor;

/// The parameters of `copy.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    num_vec4s: u32,
}

/// The kernel bound to two tensors.
pub struct BoundCopy {
    bound: Bound,
    params: Params,
}

impl BoundCopy {
    /// `out[i] = x[i]`
    ///
    /// * `x`, `out`: vec4s, of the same length
    pub fn new(gpu: &Gpu, x: &Tensor, out: &Tensor) -> Result<Self, GpuError> {
        assert_eq!(x.len(), out.len(), "a copy is as long as what is copied");
        let kernel = Kernel::new(gpu, &source(gpu.caps().images))?;
        let params = Params { num_vec4s: (x.len() / 4) as u32 };
        Ok(Self { bound: kernel.bind(gpu, &[x, out])?, params })
    }

    /// Copies everything.
    pub fn record(&self, pass: &mut Pass) {
        let num_workgroups = self.params.num_vec4s.div_ceil(WORKGROUP * STRIDES);
        pass.dispatch(&self.bound, &self.params, [num_workgroups, 1, 1]);
    }
}

const WORKGROUP: u32 = 64;
const STRIDES: u32 = 8;

pub(crate) fn source(images: bool) -> KernelSource {
    let constants = [("WORKGROUP", WORKGROUP), ("STRIDES", STRIDES)];
    KernelSource::declared::<Params>("copy", include_str!("copy.wgsl"), images, &constants)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::testing::{self, Random, assert_bits_eq};

    #[test]
    fn params_are_the_shader_s() {
        for images in [false, true] {
            testing::assert_kernel(&source(images));
            let fields = [("num_vec4s", offset_of!(Params, num_vec4s))];
            testing::assert_params(&source(images), &fields);
        }
    }

    #[test]
    fn copies_everything() {
        for gpu in testing::both_layouts() {
            let values = Random::new(1).normal(4 * 1300);
            let x = gpu.upload_vec4s(&values).unwrap();
            let out = gpu.alloc_vec4s(values.len()).unwrap();
            let mut pass = Pass::new();
            BoundCopy::new(&gpu, &x, &out).unwrap().record(&mut pass);
            gpu.run(&pass).unwrap();
            assert_bits_eq(&gpu.read_f32(&out).unwrap(), &values);
        }
    }
}
