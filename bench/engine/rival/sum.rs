//! Adds the parts of a product whose k was split.

use anyhow::Result;
use bytemuck::{Pod, Zeroable};
use shaders::gpu::Gpu;
use shaders::kernel::{Access, Bound, Kernel, KernelSource, Pass};
use shaders::template::expand;
use shaders::tensor::Tensor;

/// The parameters of `sum.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    num_parts: u32,
    len: u32,
}

const WORKGROUP: u32 = 64;

/// The kernel bound to parts and their sum.
pub(super) struct BoundSum {
    bound: Bound,
    params: Params,
}

impl BoundSum {
    /// `out[i] = sum over s of parts[s, i]`
    ///
    /// * `parts`: [num_parts, out.len()]
    pub(super) fn new(gpu: &Gpu, parts: &Tensor, out: &Tensor) -> Result<Self> {
        let wgsl = expand(include_str!("sum.wgsl"), &[("WORKGROUP", WORKGROUP)]);
        let source =
            KernelSource::new::<Params>("rival sum", wgsl, &[Access::Read, Access::ReadWrite]);
        let bound = Kernel::new(gpu, &source)?.bind(gpu, &[parts, out])?;
        let num_parts = (parts.len() / out.len()) as u32;
        Ok(Self { bound, params: Params { num_parts, len: out.len() as u32 } })
    }

    /// Adds the first `len` sums, of parts that have so many.
    pub(super) fn record(&self, pass: &mut Pass, len: usize) {
        let params = Params { len: len as u32, ..self.params };
        pass.dispatch(&self.bound, &params, [params.len.div_ceil(WORKGROUP), 1, 1]);
    }
}
