//! The KV cache of one layer and the shape of attention, which its two kernels share.

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::inputs::BLOCK_TOKENS;
use crate::tensor::Tensor;

/// Heads of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads, each shared by as many query heads.
    pub num_kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
}

impl HeadShape {
    /// Values of a row of queries, keys and values, side by side.
    pub fn qkv_size(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Values of a row of queries, or of what attention gives.
    pub fn q_size(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Bytes that a block takes in the cache of one layer.
    pub fn block_bytes(&self, format: KvFormat) -> u64 {
        2 * self.block_len() as u64 * format.num_bytes()
    }

    /// Keys and values are read four at a time: `head_dim` is a multiple of 4.
    pub(crate) fn head_vec4s(&self) -> usize {
        self.head_dim / 4
    }

    /// Keys, or values, of a block.
    pub(crate) fn block_len(&self) -> usize {
        BLOCK_TOKENS * self.num_kv_heads * self.head_dim
    }
}

/// How keys and values are stored. They are read in no other form, so that a sequence's bits don't
/// depend on what was computed in the same step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// As they are computed.
    #[default]
    F32,
    /// Rounded to IEEE half precision, at most ±65504.
    F16,
}

impl KvFormat {
    /// The most exact first.
    pub const ALL: [Self; 2] = [Self::F32, Self::F16];

    /// Bytes of a value.
    pub fn num_bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    /// A tensor of so many values, all zero.
    pub(crate) fn alloc(self, gpu: &Gpu, len: usize) -> Result<Tensor, GpuError> {
        match self {
            Self::F32 => gpu.alloc_vec4s(len),
            Self::F16 => gpu.alloc_pairs(len / 2),
        }
    }

    /// Bytes that such a tensor takes.
    pub(crate) fn tensor_bytes(self, gpu: &Gpu, len: usize) -> u64 {
        match self {
            Self::F32 => gpu.vec4s_bytes(len),
            Self::F16 => gpu.pairs_bytes(len / 2),
        }
    }
}

/// Keys and values of one layer, in blocks of [`BLOCK_TOKENS`] tokens.
///
/// Keys lie with the tokens of a block side by side, since lanes score a token each; values with
/// the dimensions side by side, since lanes sum a dimension each.
pub struct KvCache {
    /// The layer's heads.
    pub shape: HeadShape,
    /// How keys and values are stored.
    pub format: KvFormat,
    /// [num_blocks, num_kv_heads, head_dim / 4, BLOCK_TOKENS, 4], vec4s
    pub keys: Tensor,
    /// [num_blocks, num_kv_heads, BLOCK_TOKENS, head_dim], vec4s
    pub values: Tensor,
}

impl KvCache {
    /// A cache of `num_blocks`, all zero.
    pub fn new(
        gpu: &Gpu,
        shape: HeadShape,
        format: KvFormat,
        num_blocks: usize,
    ) -> Result<Self, GpuError> {
        assert!(shape.head_dim.is_multiple_of(4), "kernels take four values at a time");
        assert!(shape.num_heads.is_multiple_of(shape.num_kv_heads), "kv heads are shared evenly");
        let len = num_blocks * shape.block_len();
        Ok(Self { shape, format, keys: format.alloc(gpu, len)?, values: format.alloc(gpu, len)? })
    }

    /// Bytes that a cache of `num_blocks` takes.
    pub fn num_bytes(gpu: &Gpu, shape: HeadShape, format: KvFormat, num_blocks: usize) -> u64 {
        2 * format.tensor_bytes(gpu, num_blocks * shape.block_len())
    }

    /// Keys and values as f32.
    #[cfg(test)]
    pub(crate) fn read(&self, gpu: &Gpu) -> [Vec<f32>; 2] {
        let half = |half: u32| half::f16::from_bits(half as u16).to_f32();
        [&self.keys, &self.values].map(|tensor| match self.format {
            KvFormat::F32 => gpu.read_f32(tensor).unwrap(),
            KvFormat::F16 => {
                let words = gpu.read_u32(tensor).unwrap();
                words.iter().flat_map(|word| [half(word & 0xffff), half(word >> 16)]).collect()
            }
        })
    }

    /// The most blocks that a cache of this shape can have on an adapter.
    pub fn max_blocks(gpu: &Gpu, shape: HeadShape, format: KvFormat) -> usize {
        (gpu.caps().max_binding_bytes / (shape.block_len() as u64 * format.num_bytes())) as usize
    }
}

/// Latent rows of one layer, in blocks of [`BLOCK_TOKENS`] tokens: what keys and values are made
/// of.
pub struct LatentCache {
    /// Values of a token.
    pub width: usize,
    /// How they are stored.
    pub format: KvFormat,
    /// [num_blocks, width / 4, BLOCK_TOKENS, 4], vec4s: tokens side by side, as keys are
    pub rows: Tensor,
}

impl LatentCache {
    /// A cache of `num_blocks`, all zero.
    ///
    /// # Errors
    /// When the adapter has no room.
    pub fn new(
        gpu: &Gpu,
        width: usize,
        format: KvFormat,
        num_blocks: usize,
    ) -> Result<Self, GpuError> {
        assert!(width.is_multiple_of(4), "kernels take four values at a time");
        let rows = format.alloc(gpu, num_blocks * BLOCK_TOKENS * width)?;
        Ok(Self { width, format, rows })
    }

    /// Bytes that a cache of `num_blocks` takes.
    pub fn num_bytes(gpu: &Gpu, width: usize, format: KvFormat, num_blocks: usize) -> u64 {
        format.tensor_bytes(gpu, num_blocks * BLOCK_TOKENS * width)
    }

    /// The most blocks that a cache of this width can have on an adapter.
    pub fn max_blocks(gpu: &Gpu, width: usize, format: KvFormat) -> usize {
        let block_bytes = (BLOCK_TOKENS * width) as u64 * format.num_bytes();
        (gpu.caps().max_binding_bytes / block_bytes) as usize
    }
}
