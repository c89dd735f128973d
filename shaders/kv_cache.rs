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
    pub fn block_bytes(&self) -> u64 {
        (2 * self.block_len() * 4) as u64
    }

    pub(crate) fn head_vec4s(&self) -> usize {
        self.head_dim / 4
    }

    fn block_len(&self) -> usize {
        BLOCK_TOKENS * self.num_kv_heads * self.head_dim
    }
}

/// Keys and values of one layer, in blocks of [`BLOCK_TOKENS`] tokens, f32.
///
/// Keys lie with the tokens of a block side by side, since lanes score a token each; values with
/// the dimensions side by side, since lanes sum a dimension each.
pub struct KvCache {
    pub(crate) shape: HeadShape,
    pub(crate) keys: Tensor, // [num_blocks, num_kv_heads, head_dim / 4, BLOCK_TOKENS, 4]
    pub(crate) values: Tensor, // [num_blocks, num_kv_heads, BLOCK_TOKENS, head_dim]
}

impl KvCache {
    /// A cache of `num_blocks`, all zero.
    pub fn new(gpu: &Gpu, shape: HeadShape, num_blocks: usize) -> Result<Self, GpuError> {
        assert!(shape.head_dim.is_multiple_of(4), "kernels take four values at a time");
        assert!(shape.num_heads.is_multiple_of(shape.num_kv_heads), "kv heads are shared evenly");
        let len = num_blocks * shape.block_len();
        Ok(Self { shape, keys: gpu.alloc_vec4s(len)?, values: gpu.alloc_vec4s(len)? })
    }

    /// Bytes that a cache of `num_blocks` takes.
    pub fn num_bytes(gpu: &Gpu, shape: HeadShape, num_blocks: usize) -> u64 {
        2 * gpu.vec4s_bytes(num_blocks * shape.block_len())
    }

    /// The most blocks that a cache of this shape can have on an adapter.
    pub fn max_blocks(gpu: &Gpu, shape: HeadShape) -> usize {
        (gpu.caps().max_binding_bytes / (shape.block_len() as u64 * 4)) as usize
    }
}
