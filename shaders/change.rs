//! Changes of logits that are taken back once a token is sampled: one text, with `RESTORE` and
//! without ([`crate::mask`], [`crate::penalize`]).

use bytemuck::Pod;

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::kernel::{Bound, Kernel, KernelSource, Pass};
use crate::tensor::Tensor;

/// The kernels.
pub(crate) struct Change {
    apply: Kernel,
    restore: Kernel,
}

/// The kernels bound to tensors.
pub(crate) struct BoundChange {
    apply: Bound,
    restore: Bound,
}

impl Change {
    pub(crate) fn new(gpu: &Gpu, [apply, restore]: [KernelSource; 2]) -> Result<Self, GpuError> {
        Ok(Self { apply: Kernel::new(gpu, &apply)?, restore: Kernel::new(gpu, &restore)? })
    }

    pub(crate) fn bind(&self, gpu: &Gpu, tensors: &[&Tensor]) -> Result<BoundChange, GpuError> {
        Ok(BoundChange {
            apply: self.apply.bind(gpu, tensors)?,
            restore: self.restore.bind(gpu, tensors)?,
        })
    }
}

impl BoundChange {
    /// Changes logits.
    pub(crate) fn record_apply<P: Pod>(&self, pass: &mut Pass, params: &P, grid: [u32; 3]) {
        pass.dispatch(&self.apply, params, grid);
    }

    /// Puts back what [`record_apply`](Self::record_apply) changed.
    pub(crate) fn record_restore<P: Pod>(&self, pass: &mut Pass, params: &P, grid: [u32; 3]) {
        pass.dispatch(&self.restore, params, grid);
    }
}
