//! What the tests of all kernels share.

use std::cell::RefCell;
use std::num::NonZero;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::adapters::Adapters;
use crate::gpu::{Caps, Gpu, GpuOptions};
use crate::inputs::{InputLimits, Inputs, StepInputs, StepShape};
use crate::kernel::{Access, KernelSource};
use crate::matmul_emulated::emulated;
use crate::products::Products;
use crate::weights::Format;

/// The adapter of this test process, or `None` on a machine without one.
pub(crate) fn gpu() -> Option<MutexGuard<'static, Gpu>> {
    both_layouts().next()
}

/// The adapter that kernels are tested on, as `AUTOGLM_TEST_ADAPTER` names it: part of its name, or
/// its number.
pub(crate) fn adapter() -> Option<String> {
    std::env::var("AUTOGLM_TEST_ADAPTER").ok().filter(|adapter| !adapter.is_empty())
}

/// The adapter as it is opened by default, then with vec4 tensors in the other kind of storage.
/// Empty on a machine without an adapter.
pub(crate) fn both_layouts() -> impl Iterator<Item = MutexGuard<'static, Gpu>> {
    static GPUS: OnceLock<Vec<Vec<Mutex<Gpu>>>> = OnceLock::new();
    let gpus = GPUS.get_or_init(|| {
        let open = |images| {
            let options = GpuOptions { images, ..GpuOptions::default() };
            Gpu::open_with(adapter().as_deref(), options)
                .inspect_err(|error| eprintln!("skipped: no adapter ({error})"))
        };
        let Ok(default) = open(None) else { return Vec::new() };
        // As many as run tests at once: a software driver compiles on one thread of each.
        let count = std::thread::available_parallelism().map_or(1, NonZero::get).min(4);
        let layouts = [default.caps().images, !default.caps().images];
        let of = |images| (0..count).flat_map(|_| open(Some(images))).map(Mutex::new).collect();
        layouts.map(of).into()
    });
    gpus.iter().filter(|gpus| !gpus.is_empty()).map(|gpus| free(gpus))
}

/// One that no other test has, or, when all are taken, whichever's turn it is.
fn free(gpus: &'static [Mutex<Gpu>]) -> MutexGuard<'static, Gpu> {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let turn = TURN.fetch_add(1, Ordering::Relaxed) % gpus.len();
    let ours = || gpus[turn].lock().unwrap_or_else(PoisonError::into_inner);
    gpus.iter().find_map(|gpu| gpu.try_lock().ok()).unwrap_or_else(ours)
}

/// The adapter, opened for one test alone.
pub(crate) fn new_gpu() -> Option<Gpu> {
    Gpu::open_with(adapter().as_deref(), GpuOptions::default())
        .inspect_err(|error| eprintln!("skipped: no adapter ({error})"))
        .ok()
}

/// An adapter that can bind no more than `max_binding_bytes`, so that small weights are split as
/// large ones are.
pub(crate) fn small_gpu(max_binding_bytes: u64) -> Option<Gpu> {
    let options =
        GpuOptions { max_binding_bytes: Some(max_binding_bytes), ..GpuOptions::default() };
    Gpu::open_with(adapter().as_deref(), options)
        .inspect_err(|error| eprintln!("skipped: no adapter ({error})"))
        .ok()
}

/// Devices that multiply by cooperative matrices: the adapter, where it has some; else as if it had
/// them of each size.
pub(crate) fn cooperative_gpus() -> Vec<Gpu> {
    let name = adapter();
    // Matrices are read from buffers.
    let options = GpuOptions { images: Some(false), ..GpuOptions::default() };
    let products = Products::Cooperative;
    let own = GpuOptions { products, ..options.clone() };
    if let Ok(gpu) = Gpu::open_with(name.as_deref(), own) {
        return vec![gpu];
    }
    let open = |side| {
        let (adapter, info) = Adapters::find(false).select(name.as_deref()).ok()?;
        let halves = wgpu::Features::SHADER_F16;
        let gpu = Gpu::open_adapter(&adapter, info, options.clone(), halves).ok()?;
        let caps = |caps| Caps { products, cooperative_side: Some(side), ..caps };
        gpu.device.features().contains(halves).then(|| gpu.with_caps(caps))
    };
    let gpus: Vec<_> = [16, 8].into_iter().filter_map(open).collect();
    if gpus.is_empty() {
        println!("skipped: no adapter that knows halves");
    }
    gpus
}

/// What the device runs of a kernel whose cooperative matrices it may not have.
pub(crate) fn runnable(gpu: &Gpu, source: &KernelSource) -> KernelSource {
    let features = gpu.device.features();
    match features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        true => source.clone(),
        false => emulated(source.clone()),
    }
}

/// A small generator of test data: xorshift64*.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next_u32(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.next_u32() as usize % bound
    }

    /// Values with mean 0 and variance 1.
    pub(crate) fn normal(&mut self, len: usize) -> Vec<f32> {
        (0..len)
            .map(|_| {
                let sum: f32 = (0..12).map(|_| self.next_u32() as f32 / u32::MAX as f32).sum();
                sum - 6.0
            })
            .collect()
    }

    /// The numbers below `len` in some order.
    pub(crate) fn permutation(&mut self, len: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        for last in (1..len).rev() {
            order.swap(last, self.below(last + 1));
        }
        order
    }
}

/// Asserts that each value is within `tolerance` of the expected one, relative to its size where
/// that is above 1.
#[track_caller]
pub(crate) fn assert_close(actual: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(actual.len(), expected.len());
    for (index, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((a - e).abs() <= tolerance * e.abs().max(1.0), "[{index}] is {a}, not {e}");
    }
}

/// Asserts that every bit is the same.
#[track_caller]
pub(crate) fn assert_bits_eq(actual: &[f32], expected: &[f32]) {
    assert_eq!(actual.len(), expected.len());
    for (index, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!(
            a.to_bits() == e.to_bits(),
            "[{index}] is {a} ({:#x}), not {e} ({:#x})",
            a.to_bits(),
            e.to_bits()
        );
    }
}

/// Asserts that naga accepts `source` and that its bindings are those that the launcher declares.
/// Needs no adapter.
#[track_caller]
pub(crate) fn assert_kernel(source: &KernelSource) {
    let parsed = parse(source);
    let module = &parsed.0;
    let mut bindings: Vec<(u32, Access)> = Vec::new();
    for (_, variable) in module.global_variables.iter() {
        let Some(binding) = &variable.binding else { continue };
        assert_eq!(binding.group, 0, "{}: all bindings are in group 0", source.name);
        let access = match (variable.space, &module.types[variable.ty].inner) {
            (naga::AddressSpace::Storage { access }, _)
                if access.contains(naga::StorageAccess::STORE) =>
            {
                Access::ReadWrite
            }
            (naga::AddressSpace::Storage { .. }, _) => Access::Read,
            (_, naga::TypeInner::Image { class, .. }) => match class {
                naga::ImageClass::Storage { access, format }
                    if access.contains(naga::StorageAccess::STORE) =>
                {
                    match format {
                        naga::StorageFormat::Rg32Uint => Access::WritePairsImage,
                        naga::StorageFormat::Rgba32Uint => Access::WriteWordsImage,
                        _ => Access::WriteImage,
                    }
                }
                naga::ImageClass::Storage { format: naga::StorageFormat::Rg32Uint, .. } => {
                    Access::ReadPairsImage
                }
                naga::ImageClass::Storage { format: naga::StorageFormat::Rgba32Uint, .. } => {
                    Access::ReadWordsImage
                }
                naga::ImageClass::Storage { .. } => Access::ReadImage,
                other => panic!("{}: {other:?}", source.name),
            },
            other => panic!("{}: {other:?}", source.name),
        };
        bindings.push((binding.binding, access));
    }
    bindings.sort_by_key(|(index, _)| *index);
    let expected: Vec<_> = (0..).zip(source.bindings.iter().copied()).collect();
    assert_eq!(bindings, expected, "{}", source.name);
    assert_eq!(module.entry_points.len(), 1, "{}: one entry point", source.name);
    assert_eq!(module.entry_points[0].name, "main");
}

/// Bytes of workgroup memory that a kernel takes: of all its variables, each where it may begin.
pub(crate) fn workgroup_bytes(source: &KernelSource) -> u32 {
    let module = naga::front::wgsl::parse_str(&source.wgsl)
        .unwrap_or_else(|error| panic!("{}: {}", source.name, error.emit_to_string(&source.wgsl)));
    let mut layouts = naga::proc::Layouter::default();
    layouts.update(module.to_ctx()).unwrap();
    let shared = module.global_variables.iter().map(|(_, variable)| variable);
    let shared = shared.filter(|variable| variable.space == naga::AddressSpace::WorkGroup);
    shared.fold(0, |bytes, variable| {
        let layout = layouts[variable.ty];
        layout.alignment.round_up(bytes) + layout.size
    })
}

/// Asserts that the members of the kernel's `Params` are `fields` (name, offset), and its size that
/// of the launcher's.
#[track_caller]
pub(crate) fn assert_params(source: &KernelSource, fields: &[(&str, usize)]) {
    let parsed = parse(source);
    let module = &parsed.0;
    let params = module
        .types
        .iter()
        .find_map(|(_, ty)| match (&ty.name, &ty.inner) {
            (Some(name), naga::TypeInner::Struct { members, span }) if name == "Params" => {
                Some((members, *span))
            }
            _ => None,
        })
        .unwrap_or_else(|| panic!("{} has no Params", source.name));
    let members: Vec<_> = params
        .0
        .iter()
        .map(|member| (member.name.as_deref().unwrap_or(""), member.offset as usize))
        .collect();
    assert_eq!(members, fields, "{}", source.name);
    assert_eq!(params.1, source.params_bytes, "{}", source.name);
}

type Parsed = Rc<(naga::Module, naga::valid::ModuleInfo)>;

/// A kernel, read and checked, which for some takes a tenth of a second: the last of a thread isn't
/// read again.
fn parse(source: &KernelSource) -> Parsed {
    thread_local!(static LAST: RefCell<Option<(String, Parsed)>> = const { RefCell::new(None) });
    LAST.with_borrow_mut(|last| match last {
        Some((wgsl, parsed)) if *wgsl == source.wgsl => Rc::clone(parsed),
        _ => {
            let parsed = Rc::new(parse_anew(source));
            *last = Some((source.wgsl.clone(), Rc::clone(&parsed)));
            parsed
        }
    })
}

fn parse_anew(source: &KernelSource) -> (naga::Module, naga::valid::ModuleInfo) {
    let module = naga::front::wgsl::parse_str(&source.wgsl)
        .unwrap_or_else(|error| panic!("{}: {}", source.name, error.emit_to_string(&source.wgsl)));
    let capabilities = naga::valid::Capabilities::IMMEDIATES
        | naga::valid::Capabilities::SUBGROUP
        | naga::valid::Capabilities::SHADER_FLOAT16
        | naga::valid::Capabilities::COOPERATIVE_MATRIX
        | naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let info = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities)
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all())
        .validate(&module)
        .unwrap_or_else(|error| panic!("{}: {}", source.name, error.emit_to_string(&source.wgsl)));
    (module, info)
}

/// Asserts that a driver that takes SPIR-V is handed some, which naga makes without complaint.
#[track_caller]
pub(crate) fn assert_spirv(source: &KernelSource) {
    let parsed = parse(source);
    let options = naga::back::spv::Options::default();
    let words = naga::back::spv::write_vec(&parsed.0, &parsed.1, &options, None);
    assert!(words.is_ok_and(|words| !words.is_empty()), "{}", source.name);
}

/// Root of the mean square of the differences, as a share of that of what was expected.
pub(crate) fn rms_share(found: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (error / expected.iter().copied().map(square).sum::<f64>()).sqrt()
}

/// Every number format with vec4 tensors in buffers and in images.
pub(crate) fn formats_and_layouts() -> impl Iterator<Item = (Format, bool)> {
    Format::ALL.into_iter().flat_map(|format| [(format, false), (format, true)])
}

/// The inputs of a step, on the adapter.
pub(crate) fn inputs(gpu: &Gpu, step: &StepInputs) -> (Inputs, StepShape) {
    let limits = InputLimits {
        max_tokens: 1024,
        max_outputs: 1024,
        max_table_entries: 4096,
        max_copies: 64,
        max_positions: 4096,
        num_blocks: 4096,
        vocab_size: 1 << 20,
    };
    let mut inputs = Inputs::new(gpu, limits).unwrap();
    let shape = inputs.write(gpu, step).unwrap();
    (inputs, shape)
}

/// Inputs of which only the tokens matter.
pub(crate) fn token_inputs(gpu: &Gpu, token_ids: &[u32]) -> (Inputs, StepShape) {
    let step = StepInputs {
        token_ids: token_ids.to_vec(),
        positions: vec![0; token_ids.len()],
        table_starts: vec![0; token_ids.len()],
        output_rows: Vec::new(),
        tables: vec![0],
        copies: Vec::new(),
    };
    inputs(gpu, &step)
}
