//! The adapters (GPUs) of this machine.

use std::fmt;

use crate::error::GpuError;
use crate::matmul::Products;

/// The adapters of this machine, in the order of their index.
pub struct Adapters {
    #[cfg(feature = "raw")]
    pub(crate) instance: wgpu::Instance,
    adapters: Vec<wgpu::Adapter>,
}

impl Adapters {
    /// What the drivers of this machine offer. Empty if there is none.
    pub fn list() -> Vec<AdapterInfo> {
        Self::find(false).infos()
    }

    /// All that the drivers of this machine tell, in the same order.
    pub fn details() -> Vec<AdapterDetails> {
        let found = Self::find(false);
        let pairs = found.infos().into_iter().zip(&found.adapters);
        pairs.map(|(info, adapter)| AdapterDetails::new(info, adapter)).collect()
    }

    pub(crate) fn find(checked: bool) -> Self {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
        // Flags that are on by default cap buffers at 4 GiB and validate every call of an indirect
        // dispatch.
        descriptor.flags = if checked {
            wgpu::InstanceFlags::DEBUG | wgpu::InstanceFlags::VALIDATION
        } else {
            wgpu::InstanceFlags::empty()
        };
        let instance = wgpu::Instance::new(descriptor);
        let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
        Self {
            #[cfg(feature = "raw")]
            instance,
            adapters,
        }
    }

    fn infos(&self) -> Vec<AdapterInfo> {
        self.adapters
            .iter()
            .enumerate()
            .map(|(index, adapter)| AdapterInfo::new(index, adapter))
            .collect()
    }

    /// The adapter whose index is `selector` or whose name contains it, without regard to case; the
    /// fastest kind there is if `selector` is `None`.
    pub(crate) fn select(
        &self,
        selector: Option<&str>,
    ) -> Result<(wgpu::Adapter, AdapterInfo), GpuError> {
        let infos = self.infos();
        let chosen = match selector {
            None => infos.into_iter().min_by_key(|info| info.kind).ok_or(GpuError::NoAdapter)?,
            Some(selector) => {
                let available =
                    infos.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                if infos.is_empty() {
                    return Err(GpuError::NoAdapter);
                }
                infos.into_iter().find(|it| it.is_selected(selector)).ok_or_else(|| {
                    GpuError::NoSuchAdapter { selector: selector.to_owned(), available }
                })?
            }
        };
        Ok((self.adapters[chosen.index].clone(), chosen))
    }
}

/// What an adapter says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterInfo {
    /// Place in the list, which selects it.
    pub index: usize,
    /// Name, as the driver gives it.
    pub name: String,
    /// Driver and its version.
    pub driver: String,
    /// The interface it is reached through: `vulkan`, `metal`, `dx12`.
    pub backend: String,
    /// What kind of device it is.
    pub kind: AdapterKind,
    /// Memory of its own in bytes, where the driver tells.
    pub memory_bytes: Option<u64>,
    /// The largest tensor that a kernel can read, in bytes.
    pub max_binding_bytes: u64,
}

impl AdapterInfo {
    fn new(index: usize, adapter: &wgpu::Adapter) -> Self {
        let info = adapter.get_info();
        let kind = AdapterKind::of(info.device_type);
        Self {
            index,
            name: info.name,
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            backend: info.backend.to_string(),
            kind,
            // A software driver's memory is the machine's, and what it advertises is a constant.
            memory_bytes: if kind == AdapterKind::Cpu { None } else { memory_bytes(adapter) },
            max_binding_bytes: adapter.limits().max_storage_buffer_binding_size,
        }
    }

    /// Whether `selector` is its index, or a part of its name without regard to case.
    pub fn is_selected(&self, selector: &str) -> bool {
        match selector.parse::<usize>() {
            Ok(index) => self.index == index,
            Err(_) => self.name.to_lowercase().contains(&selector.to_lowercase()),
        }
    }

    /// Whether kernels run on the processor, through a software driver.
    pub fn is_cpu(&self) -> bool {
        self.kind == AdapterKind::Cpu
    }
}

impl fmt::Display for AdapterInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({}, {})", self.index, self.name, self.kind, self.backend)
    }
}

/// All that an adapter's driver tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterDetails {
    /// What every adapter of the list is known by.
    pub info: AdapterInfo,
    /// What every kernel needs and it hasn't got.
    pub lacks: Option<String>,
    /// Lanes of its smallest and its largest subgroups.
    pub subgroup_sizes: [u32; 2],
    /// Its cooperative matrices, as in `16x16x16 F16 F32`: rows, columns, values of k, types of
    /// operands and sums.
    pub cooperative_matrices: Vec<String>,
    /// How products can be computed on it.
    pub products: Vec<Products>,
    /// Features, by the driver library's names.
    pub features: Vec<String>,
    /// Limits, by the driver library's names.
    pub limits: Vec<String>,
}

impl AdapterDetails {
    fn new(info: AdapterInfo, adapter: &wgpu::Adapter) -> Self {
        let own = adapter.get_info();
        let size = |size: &wgpu::CooperativeMatrixProperties| {
            let wgpu::CooperativeMatrixProperties { m_size, n_size, k_size, .. } = size;
            format!("{m_size}x{n_size}x{k_size} {:?} {:?}", size.ab_type, size.cr_type)
        };
        let can = |products: &Products| features_for(adapter, *products).is_ok();
        // The library has no other way to name them all.
        let limits = format!("{:#?}", adapter.limits());
        let limits = limits.lines().filter(|line| line.contains(": "));
        Self {
            info,
            lacks: lacking(adapter).map(str::to_owned),
            subgroup_sizes: [own.subgroup_min_size, own.subgroup_max_size],
            cooperative_matrices: adapter
                .cooperative_matrix_properties()
                .iter()
                .map(size)
                .collect(),
            products: Products::ALL.into_iter().filter(can).collect(),
            features: adapter.features().iter_names().map(|(name, _)| name.to_owned()).collect(),
            limits: limits.map(|line| line.trim().trim_end_matches(',').to_owned()).collect(),
        }
    }
}

/// Kinds of adapter, the fastest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AdapterKind {
    /// A card with memory of its own.
    Discrete,
    /// A GPU that shares the memory of the processor.
    Integrated,
    /// A share of a GPU, in a virtual machine.
    Virtual,
    /// The driver doesn't say.
    Other,
    /// A software driver.
    Cpu,
}

impl AdapterKind {
    fn of(device_type: wgpu::DeviceType) -> Self {
        match device_type {
            wgpu::DeviceType::DiscreteGpu => Self::Discrete,
            wgpu::DeviceType::IntegratedGpu => Self::Integrated,
            wgpu::DeviceType::VirtualGpu => Self::Virtual,
            wgpu::DeviceType::Other => Self::Other,
            wgpu::DeviceType::Cpu => Self::Cpu,
        }
    }
}

impl fmt::Display for AdapterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Other => "other",
            Self::Cpu => "cpu",
        })
    }
}

/// What every kernel needs and the adapter hasn't got.
pub(crate) fn lacking(adapter: &wgpu::Adapter) -> Option<&'static str> {
    let can = adapter.features().contains(wgpu::Features::IMMEDIATES);
    (!can).then_some("immediates (push constants)")
}

/// The features that products which are computed so take of an adapter; if it hasn't got them, what
/// is missing.
pub(crate) fn features_for(
    adapter: &wgpu::Adapter,
    products: Products,
) -> Result<wgpu::Features, &'static str> {
    let (can, features, missing) = match products {
        Products::Plain | Products::PackedDot => return Ok(wgpu::Features::empty()),
        Products::Cooperative => (
            cooperative_side(adapter).is_some(),
            COOPERATIVE,
            "cooperative matrices (16 x 16 x 16 or 8 x 8 x 8 of f16 with sums in f32, by Vulkan)",
        ),
    };
    if can { Ok(features) } else { Err(missing) }
}

/// What cooperative matrices take of a driver.
const COOPERATIVE: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16);

/// The side of the largest cooperative matrices that the kernels can use on an adapter. Of the
/// driver library's backends only Vulkan's loads them from arrays of vectors.
pub(crate) fn cooperative_side(adapter: &wgpu::Adapter) -> Option<u32> {
    let is_vulkan = adapter.get_info().backend == wgpu::Backend::Vulkan;
    if !is_vulkan || !adapter.features().contains(COOPERATIVE) {
        return None;
    }
    let sizes = adapter.cooperative_matrix_properties();
    let has = |side: &u32| {
        sizes.iter().any(|size| {
            [size.m_size, size.n_size, size.k_size] == [*side; 3]
                && size.ab_type == wgpu::CooperativeScalarType::F16
                && size.cr_type == wgpu::CooperativeScalarType::F32
        })
    };
    [16, 8].into_iter().find(has)
}

/// What the driver library wants to hear before it lends features that it still works on.
pub(crate) fn experimental_features(wanted: bool) -> wgpu::ExperimentalFeatures {
    if !wanted {
        return wgpu::ExperimentalFeatures::disabled();
    }
    // SAFETY: of the experimental features the kernels of this repository use only cooperative
    // matrices, and the self-test compares each of their results. What a peer uses (the feature
    // `raw`) is compared with ours.
    #[allow(unsafe_code, reason = "there is no safe way to use cooperative matrices")]
    unsafe {
        wgpu::ExperimentalFeatures::enabled()
    }
}

/// Whether the adapter has an instruction for dot products of four bytes, which only Vulkan tells
/// us, from 1.3 on.
pub(crate) fn has_packed_dot(adapter: &wgpu::Adapter) -> bool {
    #[cfg(not(target_vendor = "apple"))]
    {
        use ash::vk;
        // SAFETY: the handles are only read from, while `adapter` is borrowed and so alive; the
        // structures that the driver fills in are of the versions that it is asked for.
        #[allow(unsafe_code, reason = "the safe interface doesn't tell what is accelerated")]
        let accelerated = unsafe {
            let Some(vulkan) = adapter.as_hal::<wgpu::hal::api::Vulkan>() else { return false };
            let instance = vulkan.shared_instance().raw_instance();
            let device = vulkan.raw_physical_device();
            if instance.get_physical_device_properties(device).api_version < vk::API_VERSION_1_3 {
                return false;
            }
            let mut products = vk::PhysicalDeviceShaderIntegerDotProductProperties::default();
            let mut all = vk::PhysicalDeviceProperties2::default().push_next(&mut products);
            instance.get_physical_device_properties2(device, &mut all);
            products.integer_dot_product4x8_bit_packed_signed_accelerated
        };
        accelerated == vk::TRUE
    }
    #[cfg(target_vendor = "apple")]
    {
        let _ = adapter;
        false
    }
}

/// Memory of the adapter's own, which only Vulkan tells us.
fn memory_bytes(adapter: &wgpu::Adapter) -> Option<u64> {
    #[cfg(not(target_vendor = "apple"))]
    {
        const DEVICE_LOCAL: u32 = 1;
        // SAFETY: the handles are only read from, while `adapter` is borrowed and so alive.
        #[allow(
            unsafe_code,
            reason = "the safe interface doesn't tell how much memory an adapter has"
        )]
        let properties = unsafe {
            let vulkan = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
            let instance = vulkan.shared_instance().raw_instance();
            instance.get_physical_device_memory_properties(vulkan.raw_physical_device())
        };
        let heaps = &properties.memory_heaps[..properties.memory_heap_count as usize];
        Some(
            heaps
                .iter()
                .filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0)
                .map(|heap| heap.size)
                .sum(),
        )
    }
    #[cfg(target_vendor = "apple")]
    {
        let _ = adapter;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_adapter_is_refused_with_what_there_is() {
        let adapters = Adapters::find(false);
        match adapters.select(Some("no such thing")) {
            Err(GpuError::NoAdapter) => assert!(adapters.infos().is_empty()),
            Err(GpuError::NoSuchAdapter { available, .. }) => {
                assert!(available.contains(&adapters.infos()[0].name));
            }
            other => panic!("{:?}", other.map(|(_, info)| info)),
        }
    }
}
