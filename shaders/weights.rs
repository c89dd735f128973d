//! Weight matrices on the adapter, in the one layout that every kernel reads.
//!
//! A block is 16 bytes of one row: 4 values of f32, 8 of f16 or bf16. Blocks are stored as `[rows /
//! TILE][cols / block][TILE]`, so that lanes which compute neighbouring rows read neighbouring
//! blocks. Rows are padded with zeros to a multiple of [`STEP`] values, and their number to a
//! multiple of [`TILE`]. A matrix that is larger than a kernel can bind is split into shards of
//! whole tiles.

use std::ops::Range;

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::tensor::Tensor;

/// Rows of weights (columns of a product) whose blocks are interleaved.
pub const TILE: usize = 64;

/// Values of a row that a kernel takes at a time.
pub const STEP: usize = 32;

/// How numbers are stored. Products are computed in f32 whatever they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl FloatType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// Size of a value in bytes.
    pub fn num_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Values in a block of 16 bytes.
    pub(crate) fn block(self) -> usize {
        16 / self.num_bytes()
    }

    /// The functions that decode a block, to append to a kernel.
    pub(crate) fn decoder(self) -> &'static str {
        match self {
            Self::F32 => include_str!("decode_f32.wgsl"),
            Self::F16 => include_str!("decode_f16.wgsl"),
            Self::Bf16 => include_str!("decode_bf16.wgsl"),
        }
    }

    /// The f32 value of each little-endian number in `bytes`.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => {
                bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
            }
            Self::F16 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|value| half::f16::from_le_bytes(*value).to_f32())
                .collect(),
            Self::Bf16 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|value| half::bf16::from_le_bytes(*value).to_f32())
                .collect(),
        }
    }

    /// Each value rounded to this type, little-endian.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::F16 => {
                values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect()
            }
            Self::Bf16 => {
                values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect()
            }
        }
    }
}

/// A matrix [rows, cols] of weights.
#[derive(Debug, Clone)]
pub struct WeightMatrix {
    /// Number of rows: columns of the product, or tokens of a vocabulary.
    pub rows: usize,
    /// Values per row.
    pub cols: usize,
    /// How a value is stored.
    pub float: FloatType,
    pub(crate) shards: Vec<Shard>,
}

/// Rows of a matrix that one binding holds.
#[derive(Debug, Clone)]
pub(crate) struct Shard {
    pub(crate) rows: Range<usize>,
    pub(crate) blocks: Tensor,
}

impl WeightMatrix {
    /// Copies a matrix to the adapter. `read_rows` is called with ascending ranges of rows and
    /// fills in their bytes, row after row, each value little-endian; no more than a few MiB are
    /// held at a time.
    pub fn upload<E: From<GpuError>>(
        gpu: &Gpu,
        (rows, cols): (usize, usize),
        float: FloatType,
        mut read_rows: impl FnMut(Range<usize>, &mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        assert!(rows > 0 && cols > 0, "a matrix has values");
        assert!(cols.is_multiple_of(4), "kernels read four values at a time");
        let tile_bytes = Self::tile_bytes(cols, float);
        let max_bytes = gpu.caps().max_binding_bytes;
        let max_tiles = (max_bytes / tile_bytes as u64) as usize;
        if max_tiles == 0 {
            return Err(GpuError::TooLarge { num_bytes: tile_bytes as u64, max_bytes }.into());
        }
        let row_bytes = cols * float.num_bytes();
        let tiles_per_write = (WRITE_BYTES / tile_bytes).max(1);
        let mut source = vec![0; TILE * row_bytes];
        let mut packed = Vec::with_capacity(tiles_per_write * tile_bytes);
        let mut shards = Vec::new();
        for start in (0..rows).step_by(max_tiles * TILE) {
            let shard_rows = start..rows.min(start + max_tiles * TILE);
            let num_tiles = shard_rows.len().div_ceil(TILE);
            let blocks = gpu.alloc_blocks(num_tiles * tile_bytes / 4)?;
            for first_tile in (0..num_tiles).step_by(tiles_per_write) {
                packed.clear();
                for tile in first_tile..num_tiles.min(first_tile + tiles_per_write) {
                    let first = start + tile * TILE;
                    let range = first..shard_rows.end.min(first + TILE);
                    let source = &mut source[..range.len() * row_bytes];
                    read_rows(range, source)?;
                    pack_tile(source, row_bytes, tile_bytes, &mut packed);
                }
                gpu.write(&blocks, first_tile * tile_bytes / 4, &packed);
                gpu.flush()?;
            }
            shards.push(Shard { rows: shard_rows, blocks });
        }
        Ok(Self { rows, cols, float, shards })
    }

    /// Copies a matrix that is in memory.
    pub fn from_bytes(
        gpu: &Gpu,
        shape: (usize, usize),
        float: FloatType,
        bytes: &[u8],
    ) -> Result<Self, GpuError> {
        let row_bytes = shape.1 * float.num_bytes();
        assert_eq!(bytes.len(), shape.0 * row_bytes, "a matrix has rows times cols values");
        Self::upload(gpu, shape, float, |rows, target| {
            target.copy_from_slice(&bytes[rows.start * row_bytes..rows.end * row_bytes]);
            Ok(())
        })
    }

    /// Memory that a matrix takes on the adapter, padding included, in bytes.
    pub fn packed_bytes((rows, cols): (usize, usize), float: FloatType) -> u64 {
        (rows.div_ceil(TILE) * Self::tile_bytes(cols, float)) as u64
    }

    /// Blocks of a row, padding included.
    pub(crate) fn num_blocks(&self) -> usize {
        self.cols.next_multiple_of(STEP) / self.float.block()
    }

    fn tile_bytes(cols: usize, float: FloatType) -> usize {
        cols.next_multiple_of(STEP) * float.num_bytes() * TILE
    }
}

/// Bytes that are packed before they are handed to the driver, which keeps a copy of them until
/// they are on the adapter.
const WRITE_BYTES: usize = 8 << 20;

const BLOCK_BYTES: usize = 16;

/// Interleaves the blocks of up to [`TILE`] rows; missing rows and values are zero.
fn pack_tile(source: &[u8], row_bytes: usize, tile_bytes: usize, packed: &mut Vec<u8>) {
    let start = packed.len();
    packed.resize(start + tile_bytes, 0);
    let target = &mut packed[start..];
    for (row, bytes) in source.chunks_exact(row_bytes).enumerate() {
        for (block, bytes) in bytes.chunks(BLOCK_BYTES).enumerate() {
            let at = (block * TILE + row) * BLOCK_BYTES;
            target[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_rows_are_interleaved() {
        // 2 rows of 12 f16: blocks of 8 values, the second half empty; padded to 32 values, so 4
        // blocks.
        let values: Vec<f32> = (0..24).map(|value| value as f32).collect();
        let source = FloatType::F16.encode(&values);
        let mut packed = Vec::new();
        pack_tile(&source, 24, WeightMatrix::tile_bytes(12, FloatType::F16), &mut packed);
        assert_eq!(packed.len(), 4 * TILE * 16);
        let decoded = FloatType::F16.decode(&packed);
        let at = |block: usize, row: usize| &decoded[(block * TILE + row) * 8..][..8];
        assert_eq!(at(0, 0), &values[..8]);
        assert_eq!(at(0, 1), &values[12..20]);
        assert_eq!(at(1, 1), [20.0, 21.0, 22.0, 23.0, 0.0, 0.0, 0.0, 0.0]);
        assert!(decoded[2 * TILE * 8..].iter().all(|value| *value == 0.0));
    }

    #[test]
    fn numbers_survive() {
        for float in FloatType::ALL {
            assert_eq!(float.decode(&float.encode(&[0.5, -3.0, 0.0])), [0.5, -3.0, 0.0]);
        }
    }
}
