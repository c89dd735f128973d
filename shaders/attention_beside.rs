//! Partitions of positions side by side: workgroups leave what they found of one each, and a second
//! kernel merges it in ascending order.

use std::num::NonZero;

use bytemuck::{Pod, Zeroable};

use crate::attention::lanes;
use crate::attention_variant::PARTS_OF_STATE;
use crate::error::GpuError;
use crate::gpu::{Caps, Gpu};
use crate::index::Choice;
use crate::inputs::Inputs;
use crate::kernel::{Bound, Kernel, KernelSource, Pass};
use crate::tensor::Tensor;

/// What is merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// Heads of a token.
    pub num_heads: usize,
    /// Values that a head attends to.
    pub width: usize,
    /// Positions of a partition.
    pub partition: u32,
    /// The most positions of a token, where it has chosen them.
    pub chosen: Option<usize>,
}

/// The kernel that merges, and room for what it merges: of one layer at a time.
pub struct Beside {
    parts: Parts,
    merge: Kernel,
    /// [max_parts, num_heads, width + 4], vec4s
    room: Tensor,
    pub(crate) max_parts: usize,
    pub(crate) below: u32,
}

/// What computes partitions, bound to their room, and what merges them.
pub(crate) struct BoundBeside {
    parts: Parts,
    partition: Bound,
    merge: Bound,
    pub(crate) max_parts: usize,
    pub(crate) below: u32,
}

/// The parameters of `attention_merge.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct MergeParams {
    pub(crate) num_tokens: u32,
    pub(crate) first_token: u32,
    pub(crate) num_partitions: u32,
    pub(crate) num_heads: u32,
}

impl Beside {
    /// For sequences of at most `max_positions`; nothing where none has two partitions.
    ///
    /// # Errors
    /// When the adapter has no room, or its driver refuses the kernel.
    pub fn new(gpu: &Gpu, parts: Parts, max_positions: usize) -> Result<Option<Self>, GpuError> {
        let max_parts = parts.most_at_once(gpu.caps(), max_positions);
        if max_parts == 0 {
            return Ok(None);
        }
        Ok(Some(Self {
            parts,
            merge: Kernel::new(gpu, &merge_source(gpu.caps(), parts))?,
            room: gpu.alloc_vec4s(max_parts * parts.len())?,
            max_parts,
            below: worth_it(gpu.caps()),
        }))
    }

    /// Bytes that [`new`](Self::new) takes.
    pub fn num_bytes(gpu: &Gpu, parts: Parts, max_positions: usize) -> u64 {
        match parts.most_at_once(gpu.caps(), max_positions) {
            0 => 0,
            max_parts => gpu.vec4s_bytes(max_parts * parts.len()),
        }
    }

    /// * `partition`: binds the kernel of partitions to what it writes
    /// * `out`: [num_tokens, num_heads, width], vec4s
    /// * `chosen`: the positions of tokens that have chosen them
    pub(crate) fn bind(
        &self,
        gpu: &Gpu,
        partition: impl FnOnce(&Tensor) -> Result<Bound, GpuError>,
        (inputs, out, chosen): (&Inputs, &Tensor, Option<&Tensor>),
    ) -> Result<BoundBeside, GpuError> {
        let tensors = [Some(&inputs.tensor), Some(&self.room), Some(out), chosen];
        let tensors: Vec<_> = tensors.into_iter().flatten().collect();
        Ok(BoundBeside {
            parts: self.parts,
            partition: partition(&self.room)?,
            merge: self.merge.bind(gpu, &tensors)?,
            max_parts: self.max_parts,
            below: self.below,
        })
    }
}

impl Parts {
    /// Words that a partition leaves of a token.
    fn len(&self) -> usize {
        self.num_heads * (self.width + 4)
    }

    /// Partitions of a token that attends to so many positions, of those before it.
    fn of_positions(&self, num_positions: usize) -> usize {
        let most = self.chosen.unwrap_or(usize::MAX);
        num_positions.min(most).div_ceil(self.partition as usize)
    }

    /// Partitions of tokens that are computed side by side at a time: a whole sequence's at least.
    /// None where no sequence has two.
    fn most_at_once(&self, caps: Caps, max_positions: usize) -> usize {
        let most = self.of_positions(max_positions);
        let worth = if caps.is_cpu { CPU_PARTS } else { GPU_PARTS };
        if most > 1 { most.max(worth) } else { 0 }
    }
}

impl BoundBeside {
    /// How many partitions there are, where there are several and too few workgroups without them.
    pub(crate) fn num_partitions(&self, num_positions: u32, num_workgroups: u32) -> Option<u32> {
        let num_partitions = self.parts.of_positions(num_positions as usize) as u32;
        (num_partitions > 1 && num_workgroups < self.below).then_some(num_partitions)
    }

    /// Takes the tokens of a step, as many at a time as there is room for. `params`: of the kernel
    /// of partitions, from its first token on.
    pub(crate) fn record<P: Pod>(
        &self,
        pass: &mut Pass,
        (num_tokens, num_partitions): (u32, u32),
        tiles_of_heads: u32,
        params: impl Fn(u32) -> P,
    ) {
        let num_heads = self.parts.num_heads as u32;
        let at_once = self.max_parts as u32 / num_partitions;
        assert!(at_once > 0, "a sequence's partitions have room");
        for first_token in (0..num_tokens).step_by(at_once as usize) {
            let tokens = at_once.min(num_tokens - first_token);
            let grid = [tiles_of_heads, num_partitions, tokens];
            pass.dispatch(&self.partition, &params(first_token), grid);
            let params = MergeParams { num_tokens, first_token, num_partitions, num_heads };
            pass.dispatch(&self.merge, &params, [tokens, num_heads, 1]);
        }
    }
}

/// The number of workgroups below which partitions are computed side by side. On a software driver
/// two for each thread are enough.
fn worth_it(caps: Caps) -> u32 {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    if caps.is_cpu { 2 * threads as u32 } else { GPU_WORKGROUPS }
}

/// The kernel that merges partitions.
pub(crate) fn merge_source(caps: Caps, parts: Parts) -> KernelSource {
    let (lanes, _) = lanes(caps);
    let constants = [
        ("LANES", lanes),
        ("PARTITION", parts.partition),
        ("VALUE_VEC4S", (parts.width / 4) as u32),
        ("CHOSEN", parts.chosen.is_some().into()),
        ("CHOSEN_STRIDE", parts.chosen.map_or(0, |most| Choice::stride(most) as u32)),
    ];
    let template = [include_str!("attention_merge.wgsl"), PARTS_OF_STATE].concat();
    KernelSource::declared::<MergeParams>("attention merge", &template, caps.images, &constants)
}

/// Partitions of tokens that are computed side by side at a time.
const CPU_PARTS: usize = 16;
const GPU_PARTS: usize = 1024;

/// Fewer workgroups leave a large GPU idle.
const GPU_WORKGROUPS: u32 = 1024;
