//! An open adapter: allocates tensors, runs passes. One thread owns it.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::adapters::{AdapterInfo, Adapters};
use crate::error::GpuError;
use crate::kernel::Pass;
use crate::profile::Timed;
use crate::tensor::Tensor;

/// How an adapter is opened.
#[derive(Debug, Clone)]
pub struct GpuOptions {
    /// Compile kernels with bounds checks and turn the driver's validation on: slow, for finding
    /// faults.
    pub checked: bool,
    /// An upper limit for the size of a tensor, below what the adapter allows. Tests use it to
    /// split weights.
    pub max_binding_bytes: Option<u64>,
    /// Whether to keep tensors that kernels take four values at a time in images; the adapter
    /// decides by default.
    pub images: Option<bool>,
    /// How long [`Gpu::wait`] waits before it gives the adapter up.
    pub max_wait: Duration,
    /// Whether every dispatch is timed, for [`Gpu::take_profile`]: slow.
    pub profile: bool,
}

impl Default for GpuOptions {
    /// `checked` follows the environment variable `AUTOGLM_CHECKED_SHADERS`.
    fn default() -> Self {
        Self {
            checked: std::env::var("AUTOGLM_CHECKED_SHADERS").is_ok_and(|value| value == "1"),
            max_binding_bytes: None,
            images: None,
            max_wait: Duration::from_secs(120),
            profile: false,
        }
    }
}

/// What an open adapter can do, as far as kernels must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Whether kernels may use subgroup operations.
    pub subgroups: bool,
    /// The smallest subgroup a kernel may get, in lanes.
    pub min_subgroup_size: u32,
    /// The largest subgroup a kernel may get, in lanes.
    pub max_subgroup_size: u32,
    /// The largest tensor that a kernel can read, in bytes.
    pub max_binding_bytes: u64,
    /// Workgroup memory in bytes.
    pub max_workgroup_bytes: u32,
    /// Lanes in a workgroup.
    pub max_workgroup_lanes: u32,
    /// Whether tensors that kernels take four values at a time are images.
    pub images: bool,
    /// Whether kernels run on the processor, through a software driver.
    pub is_cpu: bool,
}

/// An open adapter. One thread owns it: it may move between threads, but isn't shared.
pub struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) checked: bool,
    info: AdapterInfo,
    caps: Caps,
    max_wait: Duration,
    fault: Arc<Mutex<Option<GpuError>>>,
    /// Buffers that results were read through, kept for the next steps.
    readback_buffers: RefCell<Vec<wgpu::Buffer>>,
    /// Where dispatches are timed: those of the last pass.
    profile: Option<RefCell<Vec<Timed>>>,
}

impl Gpu {
    /// Opens the adapter whose index is `selector` or whose name contains it; without one, the
    /// fastest kind there is.
    pub fn open(selector: Option<&str>) -> Result<Self, GpuError> {
        Self::open_with(selector, GpuOptions::default())
    }

    /// Opens an adapter as `options` say.
    pub fn open_with(selector: Option<&str>, options: GpuOptions) -> Result<Self, GpuError> {
        let (adapter, info) = Adapters::find(options.checked).select(selector)?;
        if !adapter.features().contains(wgpu::Features::IMMEDIATES) {
            return Err(GpuError::Unsupported {
                adapter: info.name,
                missing: "immediates (push constants)".to_owned(),
            });
        }
        let wanted =
            wgpu::Features::IMMEDIATES | wgpu::Features::SUBGROUP | wgpu::Features::TIMESTAMP_QUERY;
        let features = adapter.features() & wanted;
        let limits = adapter.limits();
        let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: None,
            required_features: features,
            required_limits: limits.clone(),
            // Tensors are few and large; the allocator's own pools would only hold memory back.
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        }))
        .map_err(|error| GpuError::Open {
            adapter: info.name.clone(),
            reason: error.to_string(),
        })?;

        // Both callbacks come on any thread and at any time: they leave the first fault for the
        // next call to find.
        let fault = Arc::new(Mutex::new(None));
        let uncaptured = Arc::clone(&fault);
        device
            .on_uncaptured_error(Arc::new(move |error| record_fault(&uncaptured, failure(error))));
        let lost = Arc::clone(&fault);
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                record_fault(&lost, GpuError::Lost(message));
            }
        });

        let own = adapter.get_info();
        let caps = Caps {
            subgroups: features.contains(wgpu::Features::SUBGROUP),
            min_subgroup_size: own.subgroup_min_size,
            max_subgroup_size: own.subgroup_max_size,
            max_binding_bytes: options
                .max_binding_bytes
                .map_or(limits.max_storage_buffer_binding_size, |max| {
                    max.min(limits.max_storage_buffer_binding_size)
                }),
            max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
            max_workgroup_lanes: limits.max_compute_invocations_per_workgroup,
            images: options.images.unwrap_or(info.is_cpu()),
            is_cpu: info.is_cpu(),
        };
        Ok(Self {
            device,
            queue,
            checked: options.checked,
            info,
            caps,
            max_wait: options.max_wait,
            fault,
            readback_buffers: RefCell::new(Vec::new()),
            profile: options.profile.then(RefCell::default),
        })
    }

    /// The adapter that was opened.
    pub fn info(&self) -> &AdapterInfo {
        &self.info
    }

    /// What it can do.
    pub fn caps(&self) -> Caps {
        self.caps
    }

    /// The first fault that was reported since the adapter was opened, if any: it can't be trusted
    /// from then on.
    pub fn check(&self) -> Result<(), GpuError> {
        match &*self.fault.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(fault) => Err(fault.clone()),
            None => Ok(()),
        }
    }

    /// Runs `pass`, then copies the `readback` ranges (in elements of four bytes) to where
    /// [`Gpu::wait`] returns them. Returns as soon as the driver has the work.
    pub fn submit(
        &self,
        pass: &Pass,
        readback: &[(&Tensor, Range<usize>)],
    ) -> Result<Submission, GpuError> {
        self.check()?;
        let num_bytes: usize = readback.iter().map(|(_, range)| range.len() * 4).sum();
        let staging =
            (num_bytes > 0).then(|| self.readback_buffer(num_bytes as u64)).transpose()?;
        let mut encoder =
            self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        match &self.profile {
            None => pass.encode(&mut encoder),
            Some(profile) => *profile.borrow_mut() = self.profile(pass)?,
        }
        if let Some(staging) = &staging {
            let mut offset = 0;
            for (tensor, range) in readback {
                tensor.copy_out(&mut encoder, range, staging, offset);
                offset += range.len() as u64 * 4;
            }
        }
        let index = self.queue.submit([encoder.finish()]);
        if let Some(staging) = &staging {
            // The result of the mapping is known when `wait` asks for the bytes.
            staging.map_async(wgpu::MapMode::Read, .., |_| ());
        }
        self.check()?;
        Ok(Submission { index, staging, num_bytes })
    }

    /// Waits until `submission` is done and returns the bytes of its readback ranges, one after
    /// another.
    pub fn wait(&self, submission: Submission) -> Result<Vec<u8>, GpuError> {
        self.wait_for(submission.index)?;
        let Some(staging) = submission.staging else { return Ok(Vec::new()) };
        let bytes = {
            let view = staging
                .slice(..submission.num_bytes as u64)
                .get_mapped_range()
                .map_err(|error| GpuError::Failed(error.to_string()))?;
            view.to_vec()
        };
        staging.unmap();
        self.readback_buffers.borrow_mut().push(staging);
        Ok(bytes)
    }

    pub(crate) fn wait_for(&self, index: wgpu::SubmissionIndex) -> Result<(), GpuError> {
        let polled = self.device.poll(wgpu::PollType::Wait {
            submission_index: Some(index),
            timeout: Some(self.max_wait),
        });
        self.check()?;
        polled.map(drop).map_err(|error| match error {
            wgpu::PollError::Timeout => GpuError::TimedOut { seconds: self.max_wait.as_secs() },
            other => GpuError::Failed(other.to_string()),
        })
    }

    /// The dispatches of the last pass, if the adapter was opened to be profiled.
    pub fn take_profile(&self) -> Vec<Timed> {
        self.profile.as_ref().map(RefCell::take).unwrap_or_default()
    }

    /// Runs `pass` to its end.
    pub fn run(&self, pass: &Pass) -> Result<(), GpuError> {
        let submission = self.submit(pass, &[])?;
        self.wait(submission)?;
        Ok(())
    }

    /// Runs what was written so far and waits for it, so that staging memory is free again.
    pub fn flush(&self) -> Result<(), GpuError> {
        self.run(&Pass::new())
    }

    /// Calls `create`, which makes GPU objects, and turns what the driver reports meanwhile into an
    /// error.
    pub(crate) fn guarded<T>(
        &self,
        num_bytes: u64,
        create: impl FnOnce() -> T,
    ) -> Result<T, GpuError> {
        self.check()?;
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
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

    fn readback_buffer(&self, num_bytes: u64) -> Result<wgpu::Buffer, GpuError> {
        let size = num_bytes.next_power_of_two().max(4096);
        let mut free = self.readback_buffers.borrow_mut();
        if let Some(index) = free.iter().position(|buffer| buffer.size() == size) {
            return Ok(free.swap_remove(index));
        }
        self.guarded(size, || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        })
    }
}

/// Work that was submitted and not yet waited for.
#[must_use = "what was submitted is waited for with `Gpu::wait`"]
pub struct Submission {
    index: wgpu::SubmissionIndex,
    staging: Option<wgpu::Buffer>,
    num_bytes: usize,
}

fn record_fault(fault: &Mutex<Option<GpuError>>, error: GpuError) {
    tracing::error!(%error, "GPU fault");
    fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
}

fn failure(error: wgpu::Error) -> GpuError {
    match error {
        wgpu::Error::OutOfMemory { .. } => GpuError::Failed("out of memory".to_owned()),
        other => GpuError::Failed(other.to_string()),
    }
}
