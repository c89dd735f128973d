//! Blocks of the KV cache copied over others: sequences that share a block go separate ways in it.

use bytemuck::{Pod, Zeroable};

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::inputs::{BLOCK_TOKENS, Inputs, StepShape};
use crate::kernel::{Bound, Kernel, KernelSource, Pass};
use crate::kv_cache::{HeadShape, KvCache, KvFormat, LatentCache};
use crate::tensor::Tensor;

/// Blocks that are copied at once.
const MAX_AT_ONCE: usize = 16;

/// The parameters of `copy_blocks.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    blocks_at: u32,
    block_len: u32,
}

/// The kernels, and where blocks are between them: what a dispatch reads it can't write.
pub struct CopyBlocks {
    gathers: Kernel,
    scatters: Kernel,
    between: Tensor,
    block_len: u32,
}

/// The kernels bound to the cache of one layer.
pub struct BoundCopyBlocks {
    // Of each of its tensors, keys first: out of their blocks and into others.
    bound: Vec<[Bound; 2]>,
    block_len: u32,
}

impl CopyBlocks {
    /// For caches of this shape and format.
    pub fn new(gpu: &Gpu, shape: HeadShape, format: KvFormat) -> Result<Self, GpuError> {
        Self::of_len(gpu, shape.block_len(), format)
    }

    /// For caches of latent rows of this width.
    ///
    /// # Errors
    /// When the adapter has no room.
    pub fn of_latents(gpu: &Gpu, width: usize, format: KvFormat) -> Result<Self, GpuError> {
        Self::of_len(gpu, BLOCK_TOKENS * width, format)
    }

    /// For tensors whose blocks have so many values.
    fn of_len(gpu: &Gpu, block_len: usize, format: KvFormat) -> Result<Self, GpuError> {
        let images = gpu.caps().images;
        let kernel = |gathers| Kernel::new(gpu, &source(format, gathers, images));
        Ok(Self {
            gathers: kernel(true)?,
            scatters: kernel(false)?,
            between: format.alloc(gpu, MAX_AT_ONCE * block_len)?,
            block_len: (block_len / 4) as u32,
        })
    }

    /// Bytes that [`new`](Self::new) takes.
    pub fn num_bytes(gpu: &Gpu, shape: HeadShape, format: KvFormat) -> u64 {
        format.tensor_bytes(gpu, MAX_AT_ONCE * shape.block_len())
    }

    /// Bytes that [`of_latents`](Self::of_latents) takes.
    pub fn latent_bytes(gpu: &Gpu, width: usize, format: KvFormat) -> u64 {
        format.tensor_bytes(gpu, MAX_AT_ONCE * BLOCK_TOKENS * width)
    }

    /// `cache[targets[i], :] = cache[sources[i], :]`, for the copies that a step is told.
    pub fn bind(
        &self,
        gpu: &Gpu,
        inputs: &Inputs,
        cache: &KvCache,
    ) -> Result<BoundCopyBlocks, GpuError> {
        assert_eq!(self.block_len as usize, cache.shape.block_len() / 4, "caches have one shape");
        self.bind_tensors(gpu, inputs, &[&cache.keys, &cache.values])
    }

    /// The same of latent rows.
    ///
    /// # Errors
    /// When the device fails.
    pub fn bind_latents(
        &self,
        gpu: &Gpu,
        inputs: &Inputs,
        cache: &LatentCache,
    ) -> Result<BoundCopyBlocks, GpuError> {
        assert_eq!(
            self.block_len as usize,
            BLOCK_TOKENS * cache.width / 4,
            "caches have one shape"
        );
        self.bind_tensors(gpu, inputs, &[&cache.rows])
    }

    fn bind_tensors(
        &self,
        gpu: &Gpu,
        inputs: &Inputs,
        tensors: &[&Tensor],
    ) -> Result<BoundCopyBlocks, GpuError> {
        let (inputs, between) = (&inputs.tensor, &self.between);
        let bind = |tensor: &&Tensor| -> Result<_, GpuError> {
            Ok([
                self.gathers.bind(gpu, &[inputs, tensor, between])?,
                self.scatters.bind(gpu, &[inputs, between, tensor])?,
            ])
        };
        let bound = tensors.iter().map(bind).collect::<Result<_, _>>()?;
        Ok(BoundCopyBlocks { bound, block_len: self.block_len })
    }
}

impl BoundCopyBlocks {
    /// Copies a step's blocks, as many at a time as there is room for; nothing where there are
    /// none.
    pub fn record(&self, pass: &mut Pass, step: StepShape) {
        for first in (0..step.num_copies).step_by(MAX_AT_ONCE) {
            let num_copies = MAX_AT_ONCE.min(step.num_copies - first) as u32;
            let grid = [self.block_len.div_ceil(WORKGROUP), 1, num_copies];
            let places = [step.copy_sources_at(), step.copy_targets_at()];
            for (bound, at) in self.bound.iter().flatten().zip(places.into_iter().cycle()) {
                let blocks_at = at + first as u32;
                pass.dispatch(bound, &Params { blocks_at, block_len: self.block_len }, grid);
            }
        }
    }
}

const WORKGROUP: u32 = 64;

pub(crate) fn source(format: KvFormat, gathers: bool, images: bool) -> KernelSource {
    let constants = [
        ("WORKGROUP", WORKGROUP),
        ("KV_F16", (format == KvFormat::F16).into()),
        ("GATHERS", gathers.into()),
    ];
    let template = include_str!("copy_blocks.wgsl");
    KernelSource::declared::<Params>("copy_blocks", template, images, &constants)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::inputs::StepInputs;
    use crate::testing::{self, Random, assert_bits_eq};

    #[test]
    fn params_are_the_shader_s() {
        for (images, format) in [(false, KvFormat::F32), (true, KvFormat::F16)] {
            for gathers in [false, true] {
                let source = source(format, gathers, images);
                testing::assert_kernel(&source);
                let fields = [
                    ("blocks_at", offset_of!(Params, blocks_at)),
                    ("block_len", offset_of!(Params, block_len)),
                ];
                testing::assert_params(&source, &fields);
            }
        }
    }

    /// More copies than fit at once, in a step that has other things to say, too.
    #[test]
    fn blocks_are_copied_whole_and_no_others_change() {
        let shape = HeadShape { num_heads: 2, num_kv_heads: 1, head_dim: 12 };
        let copies: Vec<_> = (0..MAX_AT_ONCE as u32 + 3).map(|i| (i % 5, 10 + i)).collect();
        let num_blocks = 40;
        for gpu in testing::both_layouts() {
            for format in KvFormat::ALL {
                let cache = KvCache::new(&gpu, shape, format, num_blocks).unwrap();
                let words: Vec<u32> = match format {
                    KvFormat::F32 => Random::new(3).normal(cache.keys.len()),
                    KvFormat::F16 => vec![1.5; cache.keys.len()],
                }
                .iter()
                .enumerate()
                .map(|(i, value)| match format {
                    KvFormat::F32 => value.to_bits(),
                    // Halves of 1 to 2, each different from its neighbours.
                    KvFormat::F16 => 0x3c00_3c00 + (i as u32 % 997),
                })
                .collect();
                gpu.write(&cache.keys, 0, &words);
                gpu.write(&cache.values, 0, &words.iter().rev().copied().collect::<Vec<_>>());
                let before = cache.read(&gpu);
                let step = StepInputs {
                    token_ids: vec![0; 3],
                    positions: vec![0; 3],
                    table_starts: vec![0; 3],
                    output_rows: vec![1],
                    tables: vec![0, 5],
                    copies: copies.clone(),
                };
                let (inputs, step) = testing::inputs(&gpu, &step);
                let mut pass = Pass::new();
                let kernels = CopyBlocks::new(&gpu, shape, format).unwrap();
                kernels.bind(&gpu, &inputs, &cache).unwrap().record(&mut pass, step);
                gpu.run(&pass).unwrap();
                for (mut expected, found) in before.into_iter().zip(cache.read(&gpu)) {
                    let len = shape.block_len();
                    for &(from, to) in &copies {
                        let from = from as usize * len;
                        expected.copy_within(from..from + len, to as usize * len);
                    }
                    assert_bits_eq(&found, &expected);
                }
            }
        }
    }
}
