//! Kernels, what they are bound to, and the pass that one step records.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use bytemuck::Pod;

use crate::error::{GpuError, guarded};
use crate::gpu::Gpu;
use crate::template::expand_images;
use crate::tensor::{Storage, Tensor, Texel};

/// How a kernel uses a tensor. The same tensor can't be read by one binding and written by another
/// of one dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    /// `var<storage, read>`
    Read,
    /// `var<storage, read_write>`
    ReadWrite,
    /// `texture_storage_2d<rgba32float, read>`
    ReadImage,
    /// `texture_storage_2d<rgba32uint, read>`
    ReadWordsImage,
    /// `texture_storage_2d<rgba32float, write>`
    WriteImage,
    /// `texture_storage_2d<rgba32uint, write>`
    WriteWordsImage,
    /// `texture_storage_2d<rg32uint, read>`
    ReadPairsImage,
    /// `texture_storage_2d<rg32uint, write>`
    WritePairsImage,
}

impl Access {
    fn binding_type(self) -> wgpu::BindingType {
        let buffer = |read_only| wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only },
            has_dynamic_offset: false,
            min_binding_size: None,
        };
        // Storage images where a sampled one would do: a software driver's sampler considers levels
        // of detail, lane by lane.
        let image = |access, texel: Texel| wgpu::BindingType::StorageTexture {
            access,
            format: texel.format(),
            view_dimension: wgpu::TextureViewDimension::D2,
        };
        match self {
            Self::Read => buffer(true),
            Self::ReadWrite => buffer(false),
            Self::ReadImage => image(wgpu::StorageTextureAccess::ReadOnly, Texel::F32),
            Self::ReadWordsImage => image(wgpu::StorageTextureAccess::ReadOnly, Texel::U32),
            Self::WriteImage => image(wgpu::StorageTextureAccess::WriteOnly, Texel::F32),
            Self::WriteWordsImage => image(wgpu::StorageTextureAccess::WriteOnly, Texel::U32),
            Self::ReadPairsImage => image(wgpu::StorageTextureAccess::ReadOnly, Texel::Pair),
            Self::WritePairsImage => image(wgpu::StorageTextureAccess::WriteOnly, Texel::Pair),
        }
    }
}

/// The text of a kernel and what its launcher relies on.
#[derive(Debug, Clone)]
pub(crate) struct KernelSource {
    /// The name in errors.
    pub name: String,
    /// WGSL with one entry point `main`, expanded.
    pub wgsl: String,
    /// Its bindings, in order, all of group 0.
    pub bindings: Vec<Access>,
    /// Size of its `var<immediate> params: Params`.
    pub params_bytes: u32,
}

impl KernelSource {
    /// A kernel whose text declares what it is bound to ([`crate::template`]).
    pub(crate) fn declared<P: Pod>(
        name: impl Into<String>,
        template: &str,
        images: bool,
        constants: &[(&str, u32)],
    ) -> Self {
        let (wgsl, bindings) = expand_images(template, images, constants);
        Self::new::<P>(name, wgsl, &bindings)
    }

    /// A kernel whose parameters are a `P`.
    pub(crate) fn new<P: Pod>(
        name: impl Into<String>,
        wgsl: impl Into<String>,
        bindings: &[Access],
    ) -> Self {
        Self {
            name: name.into(),
            wgsl: wgsl.into(),
            bindings: bindings.to_vec(),
            params_bytes: u32::try_from(size_of::<P>()).expect("parameters are a few words"),
        }
    }
}

/// A kernel of an adapter, compiled by [`Gpu::compile`] or when it is first run.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    name: Arc<str>,
    code: Arc<Code>,
}

/// What kernels of the same text share.
#[derive(Debug)]
pub(crate) struct Code {
    pub(crate) source: KernelSource,
    layout: Layout,
    pipeline: OnceLock<Result<wgpu::ComputePipeline, GpuError>>,
}

/// A text and how it is bound.
type Key = (String, (Vec<Access>, u32));

/// The kernels of an adapter: each text is compiled once.
#[derive(Debug, Default)]
pub(crate) struct Codes {
    known: RefCell<HashMap<Key, Arc<Code>>>,
    /// Those that nobody asked to be compiled yet.
    pub(crate) waiting: RefCell<Vec<Arc<Code>>>,
}

impl Kernel {
    /// Takes `source`, which is trusted: nothing is checked on the device, so its text and its
    /// launcher must be part of a program that keeps every index within what is bound.
    pub(crate) fn new(gpu: &Gpu, source: &KernelSource) -> Result<Self, GpuError> {
        assert!(
            source.params_bytes as usize <= MAX_PARAMS_BYTES,
            "every driver has room for 128 bytes of parameters"
        );
        assert!(source.params_bytes.is_multiple_of(4), "parameters are whole words");
        #[cfg(test)]
        let source = &crate::testing::runnable(gpu, source);
        let name = source.name.as_str().into();
        let key = (source.wgsl.clone(), (source.bindings.clone(), source.params_bytes));
        if let Some(code) = gpu.codes.known.borrow().get(&key) {
            return Ok(Self { name, code: Arc::clone(code) });
        }
        let layout = gpu.guarded(0, || Layout::of(gpu, source))?;
        let source = source.clone();
        let code = Arc::new(Code { source, layout, pipeline: OnceLock::new() });
        gpu.codes.known.borrow_mut().insert(key, Arc::clone(&code));
        gpu.codes.waiting.borrow_mut().push(Arc::clone(&code));
        Ok(Self { name, code })
    }

    /// Its name in errors and profiles.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Ties the kernel to `tensors`, in the order of its bindings. Done once, when a model is
    /// loaded.
    pub(crate) fn bind(&self, gpu: &Gpu, tensors: &[&Tensor]) -> Result<Bound, GpuError> {
        let num_bindings = self.code.source.bindings.len();
        assert_eq!(tensors.len(), num_bindings, "every binding gets a tensor");
        let entries: Vec<_> = (0..)
            .zip(tensors)
            .map(|(binding, tensor)| wgpu::BindGroupEntry {
                binding,
                resource: match &tensor.storage {
                    Storage::Buffer(buffer) => buffer.as_entire_binding(),
                    Storage::Image { view, .. } => wgpu::BindingResource::TextureView(view),
                },
            })
            .collect();
        let bind_group = gpu.guarded(0, || {
            gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &self.code.layout.bindings,
                entries: &entries,
            })
        })?;
        Ok(Bound { name: Arc::clone(&self.name), code: Arc::clone(&self.code), bind_group })
    }
}

impl Code {
    /// The pipeline of an adapter that is this kernel's: made once, by whichever thread asks first.
    pub(crate) fn pipeline(&self, with: &Compiler) -> Result<&wgpu::ComputePipeline, GpuError> {
        let made = self.pipeline.get_or_init(|| {
            with.compile(&self.source, &self.layout).map_err(|error| match error {
                GpuError::Failed(reason) => {
                    GpuError::Compile { kernel: self.source.name.clone(), reason }
                }
                other => other,
            })
        });
        made.as_ref().map_err(Clone::clone)
    }
}

/// What compiling takes of an open adapter; threads share it.
#[derive(Debug, Clone)]
pub(crate) struct Compiler {
    pub(crate) device: wgpu::Device,
    pub(crate) checked: bool,
    pub(crate) cache: Option<wgpu::PipelineCache>,
}

impl Compiler {
    fn compile(
        &self,
        source: &KernelSource,
        layout: &Layout,
    ) -> Result<wgpu::ComputePipeline, GpuError> {
        let label = Some(source.name.as_str());
        let checks = if self.checked {
            wgpu::ShaderRuntimeChecks::checked()
        } else {
            wgpu::ShaderRuntimeChecks::unchecked()
        };
        let descriptor = wgpu::ShaderModuleDescriptor {
            label,
            source: wgpu::ShaderSource::Wgsl(source.wgsl.as_str().into()),
        };
        guarded(&self.device, 0, || {
            // SAFETY: kernels are part of the program, as `Kernel::new` asks, and their launchers
            // assert that every index they compute lies within the tensors that are bound.
            #[allow(unsafe_code, reason = "checks cost more than the arithmetic they guard")]
            let module = unsafe { self.device.create_shader_module_trusted(descriptor, checks) };
            self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label,
                layout: Some(&layout.pipeline),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    zero_initialize_workgroup_memory: false,
                    ..Default::default()
                },
                cache: self.cache.as_ref(),
            })
        })
    }
}

/// How a kernel is bound. Kernels that are bound alike share one: from one layout to another, the
/// driver library clears the parameters by a command of its own, with every dispatch.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    bindings: wgpu::BindGroupLayout,
    pipeline: wgpu::PipelineLayout,
}

/// Those of an adapter's kernels, by their bindings and the size of their parameters.
pub(crate) type Layouts = RefCell<HashMap<(Vec<Access>, u32), Layout>>;

impl Layout {
    fn of(gpu: &Gpu, source: &KernelSource) -> Self {
        let key = (source.bindings.clone(), source.params_bytes);
        let create = || {
            let entries: Vec<_> = (0..)
                .zip(&source.bindings)
                .map(|(binding, access)| wgpu::BindGroupLayoutEntry {
                    binding,
                    visibility: wgpu::ShaderStages::COMPUTE,
                    ty: access.binding_type(),
                    count: None,
                })
                .collect();
            let descriptor = wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries };
            let bindings = gpu.device.create_bind_group_layout(&descriptor);
            let pipeline = gpu.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: None,
                bind_group_layouts: &[Some(&bindings)],
                immediate_size: source.params_bytes,
            });
            Self { bindings, pipeline }
        };
        gpu.layouts.borrow_mut().entry(key).or_insert_with(create).clone()
    }
}

/// A kernel and the tensors it works on, ready to be dispatched any number of times.
#[derive(Debug, Clone)]
pub struct Bound {
    name: Arc<str>,
    code: Arc<Code>,
    bind_group: wgpu::BindGroup,
}

impl PartialEq for Bound {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.code, &other.code)
            && self.bind_group == other.bind_group
            && self.name == other.name
    }
}

impl Bound {
    /// The same, under a name of its own in profiles.
    #[must_use]
    pub(crate) fn named(self, name: &str) -> Self {
        Self { name: name.into(), ..self }
    }
}

/// The dispatches of one step, in order. Each sees what those before it wrote. Plain data until it
/// is submitted; kept and cleared, it allocates nothing from step to step.
#[derive(Debug, Default, PartialEq)]
pub struct Pass {
    dispatches: Vec<Dispatch>,
}

impl Pass {
    /// An empty pass.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets what was recorded.
    pub fn clear(&mut self) {
        self.dispatches.clear();
    }

    /// Becomes a copy of `other` in the memory that it has.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        self.dispatches.clone_from(&other.dispatches);
    }

    /// Number of dispatches recorded.
    pub fn num_dispatches(&self) -> usize {
        self.dispatches.len()
    }

    /// Runs `bound` with `params` on a grid of `workgroups` in x, y and z; on none if one of them
    /// is zero.
    pub fn dispatch<P: Pod>(&mut self, bound: &Bound, params: &P, workgroups: [u32; 3]) {
        let bytes = bytemuck::bytes_of(params);
        let params_bytes = bound.code.source.params_bytes as usize;
        assert_eq!(bytes.len(), params_bytes, "a kernel gets its own parameters");
        assert!(
            workgroups.iter().all(|&count| count <= MAX_WORKGROUPS),
            "every driver allows 65535 workgroups"
        );
        if workgroups.contains(&0) {
            return;
        }
        let mut params = [0; MAX_PARAMS_BYTES];
        params[..bytes.len()].copy_from_slice(bytes);
        self.dispatches.push(Dispatch { bound: bound.clone(), params, workgroups });
    }

    /// The same on a grid of `workgroups` in x and y, of which there may be more in y than a grid
    /// has: `params` are those of the dispatch that begins with a row.
    pub fn dispatch_rows<P: Pod>(
        &mut self,
        bound: &Bound,
        [columns, rows]: [u32; 2],
        params: impl Fn(u32) -> P,
    ) {
        for first in (0..rows).step_by(MAX_WORKGROUPS as usize) {
            let rows = MAX_WORKGROUPS.min(rows - first);
            self.dispatch(bound, &params(first), [columns, rows, 1]);
        }
    }

    /// Has a driver that compiles a kernel when it is first dispatched do that, and nothing else.
    pub(crate) fn touch(&mut self, bound: &Bound) {
        let params = [0; MAX_PARAMS_BYTES];
        self.dispatches.push(Dispatch { bound: bound.clone(), params, workgroups: [0; 3] });
    }

    pub(crate) fn encode(
        &self,
        compiler: &Compiler,
        encoder: &mut wgpu::CommandEncoder,
    ) -> Result<(), GpuError> {
        if self.dispatches.is_empty() {
            return Ok(());
        }
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        self.dispatches.iter().try_for_each(|dispatch| dispatch.encode(compiler, &mut pass))
    }

    pub(crate) fn dispatches(&self) -> &[Dispatch] {
        &self.dispatches
    }
}

/// Vulkan guarantees as much.
const MAX_PARAMS_BYTES: usize = 128;

/// Vulkan guarantees as much in each dimension.
const MAX_WORKGROUPS: u32 = 65_535;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Dispatch {
    bound: Bound,
    params: [u8; MAX_PARAMS_BYTES],
    workgroups: [u32; 3],
}

impl Dispatch {
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.bound.name
    }

    pub(crate) fn encode(
        &self,
        compiler: &Compiler,
        pass: &mut wgpu::ComputePass<'_>,
    ) -> Result<(), GpuError> {
        let Self { bound, params, workgroups: [x, y, z] } = self;
        let params_bytes = bound.code.source.params_bytes as usize;
        pass.set_pipeline(bound.code.pipeline(compiler)?);
        pass.set_bind_group(0, &bound.bind_group, &[]);
        if params_bytes > 0 {
            pass.set_immediates(0, &params[..params_bytes]);
        }
        pass.dispatch_workgroups(*x, *y, *z);
        Ok(())
    }
}
