//! What can go wrong between us and the adapter.

/// Why the GPU could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// The machine has no adapter that a driver knows of.
    #[error(
        "no GPU adapter found; on a machine without a GPU install a software Vulkan driver \
         (Debian, Ubuntu: apt-get install mesa-vulkan-drivers libvulkan1)"
    )]
    NoAdapter,
    /// The adapter that was asked for isn't there.
    #[error("no adapter matches {selector:?}; there are {available}")]
    NoSuchAdapter {
        /// What was asked for.
        selector: String,
        /// What there is, as one line.
        available: String,
    },
    /// The adapter lacks something that every kernel needs.
    #[error("adapter {adapter} can't be used: it lacks {missing}")]
    Unsupported {
        /// Name of the adapter.
        adapter: String,
        /// What it lacks.
        missing: String,
    },
    /// The driver refused to open the adapter.
    #[error("adapter {adapter} could not be opened: {reason}")]
    Open {
        /// Name of the adapter.
        adapter: String,
        /// The driver's words.
        reason: String,
    },
    /// A kernel was refused by the compiler.
    #[error("kernel {kernel} does not compile: {reason}")]
    Compile {
        /// Name of the kernel.
        kernel: String,
        /// The compiler's words.
        reason: String,
    },
    /// The adapter has no memory left.
    #[error("out of GPU memory while allocating {num_bytes} bytes")]
    OutOfMemory {
        /// Size of the allocation that failed.
        num_bytes: u64,
    },
    /// A tensor is larger than a kernel can bind on this adapter.
    #[error(
        "a tensor of {num_bytes} bytes is larger than this adapter can bind ({max_bytes} bytes)"
    )]
    TooLarge {
        /// Size that was asked for.
        num_bytes: u64,
        /// The largest that is possible.
        max_bytes: u64,
    },
    /// The adapter is gone: unplugged, reset, or its driver crashed. Nothing on it can be used
    /// again.
    #[error("the GPU was lost: {0}")]
    Lost(String),
    /// The driver reported an error, now or in work that was submitted before.
    #[error("the GPU failed: {0}")]
    Failed(String),
    /// A submission was not done within the time allowed.
    #[error("the GPU did not finish within {seconds} s")]
    TimedOut {
        /// The time allowed.
        seconds: u64,
    },
}

/// Calls `create`, which makes objects of `device`, and turns what the driver reports to this
/// thread meanwhile into an error.
pub(crate) fn guarded<T>(
    device: &wgpu::Device,
    num_bytes: u64,
    create: impl FnOnce() -> T,
) -> Result<T, GpuError> {
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let created = create();
    let out_of_memory = pollster::block_on(memory.pop());
    let invalid = pollster::block_on(validation.pop());
    let failed = pollster::block_on(internal.pop());
    if out_of_memory.is_some() {
        return Err(GpuError::OutOfMemory { num_bytes });
    }
    match invalid.or(failed) {
        Some(error) => Err(failure(error)),
        None => Ok(created),
    }
}

pub(crate) fn failure(error: wgpu::Error) -> GpuError {
    match error {
        wgpu::Error::OutOfMemory { .. } => GpuError::Failed("out of memory".to_owned()),
        other => GpuError::Failed(other.to_string()),
    }
}
