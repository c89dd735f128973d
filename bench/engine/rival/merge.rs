//! Merges the parts of attention whose positions were split.

use anyhow::Result;
use bytemuck::{Pod, Zeroable};
use shaders::gpu::Gpu;
use shaders::kernel::{Access, Bound, Kernel, KernelSource, Pass};
use shaders::kv_cache::HeadShape;
use shaders::template::expand_vec4s;
use shaders::tensor::Tensor;

/// The parameters of `merge.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    num_parts: u32,
    num_rows: u32,
    head_vec4s: u32,
}

const WORKGROUP: u32 = 64;

/// The kernel bound to parts, their states and what they make.
pub(super) struct BoundMerge {
    bound: Bound,
    params: Params,
}

impl BoundMerge {
    /// * `parts`: [num_parts, num_tokens, num_heads, head_dim], vec4s
    /// * `states`: [num_parts, num_tokens, num_heads, 2]
    /// * `out`: [num_tokens, num_heads, head_dim], vec4s
    pub(super) fn new(
        gpu: &Gpu,
        heads: HeadShape,
        (parts, states, out): (&Tensor, &Tensor, &Tensor),
    ) -> Result<Self> {
        let images = gpu.caps().images;
        let wgsl = expand_vec4s(include_str!("merge.wgsl"), images, &[("WORKGROUP", WORKGROUP)]);
        let accesses = [Access::read_vec4s(images), Access::Read, Access::write_vec4s(images)];
        let source = KernelSource::new::<Params>("rival merge", wgsl, &accesses);
        let bound = Kernel::new(gpu, &source)?.bind(gpu, &[parts, states, out])?;
        let num_rows = out.len() / heads.head_dim;
        let params = Params {
            num_parts: (states.len() / 2 / num_rows) as u32,
            num_rows: num_rows as u32,
            head_vec4s: heads.head_vec4s() as u32,
        };
        Ok(Self { bound, params })
    }

    pub(super) fn record(&self, pass: &mut Pass) {
        let lanes = self.params.num_rows * self.params.head_vec4s;
        pass.dispatch(&self.bound, &self.params, [lanes.div_ceil(WORKGROUP), 1, 1]);
    }
}
