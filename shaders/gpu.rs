//! An open adapter: allocates tensors, runs passes. One thread owns it.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::adapters::{self, AdapterInfo, Adapters};
use crate::error::{GpuError, failure, guarded};
pub use crate::gpu_options::GpuOptions;
use crate::kernel::{Codes, Compiler, Layouts, Pass};
use crate::matmul::Products;
use crate::pipeline_cache::PipelineCache;
use crate::processor_time::processor_time;
use crate::profile::Timed;
use crate::tensor::Tensor;
use crate::tuning::Tuning;
use crate::turns::{Turn, Turns};

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
    /// Over all three dimensions together.
    pub max_workgroup_lanes: u32,
    /// Whether tensors that kernels take four values at a time are images.
    pub images: bool,
    /// Whether kernels run on the processor, through a software driver.
    pub is_cpu: bool,
    /// How products with weights are computed.
    pub products: Products,
    /// The side of the cooperative matrices by which those with halves are, if they are.
    pub cooperative_side: Option<u32>,
    /// Whether those with integer weights are computed by packed dot products.
    pub packs: bool,
}

impl Caps {
    /// The same for products that are computed so.
    pub(crate) fn with_products(self, products: Products) -> Self {
        let packs = match products {
            Products::Plain => false,
            Products::PackedDot => true,
            Products::Cooperative => self.packs,
        };
        Self { products, packs, ..self }
    }

    /// The side of the cooperative matrices in whose order halves are stored. They are read from
    /// buffers.
    pub(crate) fn fragment_side(&self) -> Option<u32> {
        self.cooperative_side.filter(|_| !self.images)
    }
}

/// What was asked of an adapter since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all tensors and readback buffers that were made, freed ones included.
    pub allocated_bytes: u64,
    /// Passes that were encoded.
    pub num_encoded: u32,
    /// The processor time that took, of the thread that owns the adapter.
    pub encoding: Duration,
}

/// An open adapter. One thread owns it: it may move between threads, but isn't shared.
pub struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    /// What opens more of the same adapter.
    pub(crate) adapter: wgpu::Adapter,
    /// What was compiled before and since, where the driver hands it out.
    pipelines: Option<PipelineCache>,
    pub(crate) compiler: Compiler,
    pub(crate) codes: Codes,
    /// How work is laid out over lanes, where there is a choice.
    pub(crate) tuning: Tuning,
    /// When it is this process's turn, where others may share the adapter.
    turns: Option<Turns>,
    /// How kernels were bound so far.
    pub(crate) layouts: Layouts,
    info: AdapterInfo,
    caps: Caps,
    max_wait: Duration,
    fault: Arc<Mutex<Option<GpuError>>>,
    /// Buffers that results were read through, kept for the next steps.
    readback_buffers: RefCell<Vec<wgpu::Buffer>>,
    usage: Cell<Usage>,
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
        Self::open_adapter(&adapter, info, options, wgpu::Features::empty())
    }

    /// Opens `adapter` with what kernels use of it, and `more` features.
    pub(crate) fn open_adapter(
        adapter: &wgpu::Adapter,
        info: AdapterInfo,
        options: GpuOptions,
        more: wgpu::Features,
    ) -> Result<Self, GpuError> {
        if let Some(missing) = adapters::lacking(adapter) {
            let missing = missing.to_owned();
            return Err(GpuError::Unsupported { adapter: info.name, missing });
        }
        let mut wanted = wgpu::Features::IMMEDIATES
            | wgpu::Features::SUBGROUP
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::PIPELINE_CACHE;
        wanted |= adapters::features_for(adapter, options.products).map_err(|missing| {
            GpuError::Unsupported { adapter: info.name.clone(), missing: missing.to_owned() }
        })?;
        let cooperative_side = match options.products {
            Products::Cooperative => adapters::cooperative_side(adapter),
            Products::Plain | Products::PackedDot => None,
        };
        let packs = match options.products {
            Products::Plain => false,
            Products::PackedDot => true,
            Products::Cooperative => adapters::has_packed_dot(adapter),
        };
        let features = adapter.features() & (wanted | more);
        let limits = adapter.limits();
        let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: None,
            required_features: features,
            required_limits: limits.clone(),
            // Tensors are few and large; the allocator's own pools would only hold memory back.
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            experimental_features: adapters::experimental_features(
                features.intersects(wgpu::Features::all_experimental_mask()),
            ),
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
            products: options.products,
            cooperative_side,
            packs,
        };
        let folder = options.cache_dir.as_deref();
        let pipelines = folder.and_then(|folder| PipelineCache::open(&device, &own, folder));
        let tuning = folder.map(|folder| Tuning::open(folder, &info)).unwrap_or_default();
        let takes_turns = options.takes_turns.unwrap_or(!info.is_cpu());
        let turns = folder.filter(|_| takes_turns);
        let turns = turns.and_then(|folder| Turns::open(folder, &info));
        let compiler = Compiler {
            device: device.clone(),
            checked: options.checked,
            cache: pipelines.as_ref().map(|pipelines| pipelines.cache.clone()),
        };
        Ok(Self {
            device,
            queue,
            adapter: adapter.clone(),
            pipelines,
            compiler,
            codes: Codes::default(),
            tuning,
            turns,
            layouts: Layouts::default(),
            info,
            caps,
            max_wait: options.max_wait,
            fault,
            readback_buffers: RefCell::new(Vec::new()),
            usage: Cell::default(),
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

    /// Runs `pass`, then copies the `readback` range (in elements of four bytes) to where
    /// [`Gpu::wait`] reads it. Returns as soon as the driver has the work.
    pub fn submit(
        &self,
        pass: &Pass,
        readback: Option<Readback<'_>>,
    ) -> Result<Submission, GpuError> {
        self.submit_encoded(self.encode(pass, readback)?)
    }

    pub(crate) fn encode(
        &self,
        pass: &Pass,
        readback: Option<Readback<'_>>,
    ) -> Result<Encoded, GpuError> {
        self.check()?;
        let encoder = || self.device.create_command_encoder(&Default::default());
        if let Some(profile) = &self.profile {
            *profile.borrow_mut() = self.profile(pass)?;
        }
        let began = processor_time();
        let mut commands = encoder();
        pass.encode(&self.compiler, &mut commands)?;
        if self.is_profiled() {
            // Only for how long it takes: the pass has run.
            drop(commands.finish());
            commands = encoder();
        }
        let mut encoder = commands;
        let mut staging = None;
        if let Some((tensor, range)) = readback.filter(|(_, range)| !range.is_empty()) {
            let num_bytes = range.len() as u64 * 4;
            let buffer = self.readback_buffer(num_bytes)?;
            tensor.copy_out(&mut encoder, &range, &buffer, 0);
            staging = Some((buffer, num_bytes));
        }
        let commands = encoder.finish();
        let mut usage = self.usage.get();
        usage.num_encoded += 1;
        usage.encoding += processor_time().saturating_sub(began);
        self.usage.set(usage);
        Ok(Encoded { commands, staging })
    }

    pub(crate) fn submit_encoded(&self, encoded: Encoded) -> Result<Submission, GpuError> {
        let Encoded { commands, staging } = encoded;
        let index = self.queue.submit([commands]);
        if let Some((buffer, _)) = &staging {
            // The result of the mapping is known when `wait` asks for the bytes.
            buffer.map_async(wgpu::MapMode::Read, .., |_| ());
        }
        self.check()?;
        Ok(Submission { index, staging })
    }

    /// Waits until `submission` is done; what `read` makes of the bytes of its readback range.
    pub fn wait<T>(
        &self,
        submission: Submission,
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, GpuError> {
        self.wait_for(submission.index)?;
        let Some((staging, num_bytes)) = submission.staging else { return Ok(read(&[])) };
        let result = {
            let view = staging
                .slice(..num_bytes)
                .get_mapped_range()
                .map_err(|error| GpuError::Failed(error.to_string()))?;
            read(&view)
        };
        staging.unmap();
        self.keep_readback_buffer(staging);
        Ok(result)
    }

    /// Waits until no other process has a step under way on the adapter, where any may: for the
    /// time from the submission of one's own until it is done.
    pub fn turn(&self) -> Turn<'_> {
        self.turns.as_ref().map_or_else(Turn::none, Turns::take)
    }

    /// Keeps the kernels that were compiled and chosen so far for the next run, where
    /// [`GpuOptions::cache_dir`] says. Failing costs the next start some time, no more.
    pub fn save_kernels(&self) {
        let kept = self.pipelines.as_ref().map_or(Ok(()), PipelineCache::save);
        if let Err(error) = kept.and_then(|()| self.tuning.save()) {
            tracing::warn!(%error, "compiled kernels were not kept");
        }
    }

    /// What was asked of it so far.
    pub fn usage(&self) -> Usage {
        self.usage.get()
    }

    /// As if nothing had been asked of it since.
    pub(crate) fn set_usage(&self, usage: Usage) {
        self.usage.set(usage);
    }

    /// With the kernels of a GPU, whatever it is.
    #[cfg(test)]
    pub(crate) fn with_gpu_kernels(self) -> Self {
        self.with_caps(|caps| Caps { is_cpu: false, ..caps })
    }

    /// As if it could do something else.
    #[cfg(test)]
    pub(crate) fn with_caps(self, change: impl FnOnce(Caps) -> Caps) -> Self {
        Self { caps: change(self.caps), ..self }
    }

    /// Whether dispatches are timed one by one.
    pub(crate) fn is_profiled(&self) -> bool {
        self.profile.is_some()
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
        self.wait(self.submit(pass, None)?, |_| ())
    }

    /// How long what `record` records takes, the least of some tries, after one that lets the
    /// driver compile it.
    pub(crate) fn time(&self, record: impl Fn(&mut Pass)) -> Result<Duration, GpuError> {
        const TRIES: usize = 5;
        const REPETITIONS: u32 = 4;
        let mut pass = Pass::new();
        (0..REPETITIONS).for_each(|_| record(&mut pass));
        self.run(&pass)?;
        let mut least = Duration::MAX;
        for _ in 0..TRIES {
            let began = Instant::now();
            self.run(&pass)?;
            least = least.min(began.elapsed());
        }
        Ok(least / REPETITIONS)
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
        let created = guarded(&self.device, num_bytes, create)?;
        let mut usage = self.usage.get();
        usage.allocated_bytes += num_bytes;
        self.usage.set(usage);
        Ok(created)
    }

    pub(crate) fn keep_readback_buffer(&self, buffer: wgpu::Buffer) {
        self.readback_buffers.borrow_mut().push(buffer);
    }

    fn readback_buffer(&self, num_bytes: u64) -> Result<wgpu::Buffer, GpuError> {
        let size = num_bytes.next_power_of_two().max(READBACK_BYTES);
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

/// What a readback takes at least. The next step, encoded ahead, has its own.
pub const READBACK_BYTES: u64 = 4096;

/// What is read back: elements of a tensor.
pub type Readback<'a> = (&'a Tensor, Range<usize>);

/// A pass as the driver takes it, and the buffer (and how many bytes of it) that its readback
/// range goes to.
#[derive(Debug)]
pub(crate) struct Encoded {
    commands: wgpu::CommandBuffer,
    pub(crate) staging: Option<(wgpu::Buffer, u64)>,
}

/// Work that was submitted and not yet waited for.
#[must_use = "what was submitted is waited for with `Gpu::wait`"]
pub struct Submission {
    index: wgpu::SubmissionIndex,
    staging: Option<(wgpu::Buffer, u64)>,
}

fn record_fault(fault: &Mutex<Option<GpuError>>, error: GpuError) {
    tracing::error!(%error, "GPU fault");
    fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
}

#[cfg(test)]
mod tests {
    use crate::gpu::{Gpu, GpuOptions};
    use crate::kernel::Pass;
    use crate::matmul::Products;
    use crate::rms_norm::RmsNorm;

    #[test]
    fn a_lost_device_is_an_error_whatever_is_asked_of_it() {
        let Ok(gpu) = Gpu::open_with(None, GpuOptions::default()) else { return };
        let tensor = gpu.upload(&[1.0f32; 64]).unwrap();
        gpu.device.destroy();
        // Some of these only leave the fault for the next call to find; none of them panics.
        let _ = gpu.alloc_f32(1 << 20);
        gpu.write(&tensor, 0, &[2.0f32]);
        let _ = RmsNorm::new(&gpu);
        assert!(gpu.run(&Pass::new()).is_err());
        assert!(gpu.read_f32(&tensor).is_err());
        assert!(gpu.alloc_vec4s(64).is_err());
        assert!(gpu.check().is_err());
    }

    #[test]
    fn an_adapter_without_what_is_asked_of_it_says_so() {
        if Gpu::open_with(None, GpuOptions::default()).is_err() {
            return;
        }
        let options = GpuOptions { products: Products::Cooperative, ..GpuOptions::default() };
        match Gpu::open_with(None, options) {
            Ok(gpu) => assert!(gpu.caps().cooperative_side.is_some()),
            Err(error) => assert!(error.to_string().contains("cooperative matrices"), "{error}"),
        }
    }
}
