//! What other dispatches do for a product: the scales of a norm before it, and after it the sums of
//! the chunks of k that its workgroups had side by side.
//!
//! Both in the order in which a kernel alone does it, so that who does it is about time.

use std::cell::RefCell;

use bytemuck::{Pod, Zeroable};

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::inputs::BLOCK_TOKENS;
use crate::kernel::{Bound, Kernel, KernelSource, Pass};
use crate::kv_cache::KvFormat;
use crate::matmul::{INPUTS, Norm, Params};
use crate::matmul_variant::Kind;
use crate::tensor::Tensor;
use crate::weights::TILE;

/// Sums of chunks that a product may leave at once: 4 MB, where adapters cut k over workgroups.
pub(crate) const MAX_PARTS: usize = 1 << 20;

/// Those of a product of so many rows, columns and chunks.
pub(crate) fn num_parts(num_rows: usize, columns: usize, num_chunks: usize) -> usize {
    num_rows * columns.next_multiple_of(TILE) * num_chunks
}

/// Lanes of a workgroup that adds sums.
const SUM_LANES: u32 = 64;

/// The parameters of `row_scales.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct ScaleParams {
    row_vec4s: u32,
    eps: f32,
}

/// Room for what is done aside, of one product at a time: the next one overwrites it.
#[derive(Default)]
pub(crate) struct Room {
    scales: RefCell<Option<Tensor>>,
    parts: RefCell<Option<Tensor>>,
}

impl Room {
    /// For the scales of so many rows.
    fn scales(&self, gpu: &Gpu, max_rows: usize) -> Result<Tensor, GpuError> {
        let mut known = self.scales.borrow_mut();
        match &*known {
            Some(scales) if scales.len() >= max_rows => Ok(scales.clone()),
            _ => Ok(known.insert(gpu.alloc_f32(max_rows)?).clone()),
        }
    }

    /// For the sums of chunks.
    pub(crate) fn parts(&self, gpu: &Gpu) -> Result<Tensor, GpuError> {
        let mut known = self.parts.borrow_mut();
        match &*known {
            Some(parts) => Ok(parts.clone()),
            None => Ok(known.insert(gpu.alloc_f32(MAX_PARTS)?).clone()),
        }
    }
}

/// What computes the scales of a norm, bound to the rows before a product.
pub(crate) struct BoundScales {
    bound: Bound,
    params: ScaleParams,
    pub(crate) scales: Tensor,
}

impl BoundScales {
    /// Of up to `max_rows` rows of `cols` values of `x`, with squares summed over so many lanes.
    pub(crate) fn new(
        gpu: &Gpu,
        norm_lanes: u32,
        (x, norm): (&Tensor, Norm<'_>),
        (max_rows, cols): (usize, usize),
        room: &Room,
    ) -> Result<Self, GpuError> {
        let scales = room.scales(gpu, max_rows)?;
        let kernel = Kernel::new(gpu, &scales_source(norm_lanes, gpu.caps().images))?;
        let name = format!("{} k{cols}", kernel.name());
        let bound = kernel.bind(gpu, &[x, &scales])?.named(&name);
        let params = ScaleParams { row_vec4s: (cols / 4) as u32, eps: norm.eps };
        Ok(Self { bound, params, scales })
    }

    /// Takes in the first `num_rows` rows, which the caller knows to fit.
    pub(crate) fn record(&self, pass: &mut Pass, num_rows: usize) {
        pass.dispatch(&self.bound, &self.params, [num_rows as u32, 1, 1]);
    }
}

/// What adds the sums of chunks, bound to the tensors after a product.
pub(crate) struct BoundSums {
    bound: Bound,
    num_chunks: u32,
    unit: u32,
}

impl BoundSums {
    /// Of so many chunks.
    ///
    /// * `after`: what the product's own kernel would write and read for such an output
    pub(crate) fn new(
        gpu: &Gpu,
        kind: Kind,
        num_chunks: u32,
        (parts, after): (&Tensor, &[&Tensor]),
    ) -> Result<Self, GpuError> {
        let kernel = Kernel::new(gpu, &sums_source(kind, gpu.caps().images))?;
        let all: Vec<_> = [parts].into_iter().chain(after.iter().copied()).collect();
        Ok(Self { bound: kernel.bind(gpu, &all)?, num_chunks, unit: kind.unit() })
    }

    /// Takes in what a product with these parameters has left.
    pub(crate) fn record(&self, pass: &mut Pass, params: Params) {
        let units = params.num_computed.div_ceil(self.unit);
        let grid = [units.div_ceil(SUM_LANES), params.num_rows, 1];
        pass.dispatch(&self.bound, &params.of_chunks(self.num_chunks), grid);
    }
}

pub(crate) fn scales_source(norm_lanes: u32, images: bool) -> KernelSource {
    assert!(norm_lanes.is_multiple_of(8), "squares are summed by eights");
    let constants = [("NORM_LANES", norm_lanes)];
    let template = include_str!("row_scales.wgsl");
    KernelSource::declared::<ScaleParams>("row scales", template, images, &constants)
}

pub(crate) fn sums_source(kind: Kind, images: bool) -> KernelSource {
    let own = [
        ("WORKGROUP", SUM_LANES),
        ("SUMS", 1),
        ("CUT", 0),
        ("NORM", 0),
        ("APART", 0),
        ("STACKED", 0),
        ("ROUTED", 0),
        ("OUT_ROWS", 0),
        ("TILE", TILE as u32),
        ("UNIT", kind.unit()),
        ("BLOCK", BLOCK_TOKENS as u32),
    ];
    let constants: Vec<_> = own.into_iter().chain(kind.constants()).collect();
    let template =
        [include_str!("matmul_sum.wgsl"), INPUTS, include_str!("matmul_out.wgsl")].concat();
    let kv = match kind {
        Kind::Qkv(KvFormat::F16) => " f16 cache",
        _ => "",
    };
    let name = format!("matmul sum {}{kv}", kind.name());
    KernelSource::declared::<Params>(name, &template, images, &constants)
}
