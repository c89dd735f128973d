//! The device itself, for a benchmark's peer that computes on it too. The one place where the
//! public face of this crate names the driver library, and only with the feature `raw`.

use crate::adapters::Adapters;
use crate::error::GpuError;
use crate::gpu::{Gpu, GpuOptions};

/// What an open adapter is made of.
#[derive(Debug, Clone)]
pub struct Raw {
    /// What the adapter was found with.
    pub instance: wgpu::Instance,
    /// Found by the instance, and what the device was opened on.
    pub adapter: wgpu::Adapter,
    /// Opened with the features that our kernels take.
    pub device: wgpu::Device,
    /// Shared: what is submitted waits for what was before it.
    pub queue: wgpu::Queue,
    /// The interface that it is reached through.
    pub backend: wgpu::Backend,
}

impl Gpu {
    /// Opens an adapter with every feature that a peer may ask of it, and lends it. A peer may take
    /// over the device's callbacks: from then on it, not [`Gpu::check`], hears of faults.
    ///
    /// # Errors
    /// As [`Gpu::open_with`].
    pub fn open_shared(
        selector: Option<&str>,
        options: GpuOptions,
    ) -> Result<(Self, Raw), GpuError> {
        let adapters = Adapters::find(options.checked);
        let (adapter, info) = adapters.select(selector)?;
        // Buffers that can be mapped are slow on a card, and no peer counts on them.
        let features = adapter.features().difference(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS);
        let gpu = Self::open_adapter(&adapter, info, options, features)?;
        let raw = Raw {
            instance: adapters.instance,
            backend: adapter.get_info().backend,
            device: gpu.device.clone(),
            queue: gpu.queue.clone(),
            adapter,
        };
        Ok((gpu, raw))
    }
}
