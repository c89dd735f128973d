//! Weight matrices on the adapter, in the one layout that every kernel reads.
//!
//! A block is 16 bytes of one row: 4 values of f32, 8 of f16 or bf16, 16 of int8, 32 of int4.
//! Blocks are stored as `[rows / TILE][cols / block][TILE]`, so that lanes which compute
//! neighbouring rows read neighbouring blocks. Rows are padded with zeros to a multiple of
//! [`GROUP`] values, and their number to a multiple of [`TILE`]. The scales of grouped formats are
//! in a plane of their own, four groups of a row side by side: `[rows / TILE][groups / 4][TILE]`. A
//! matrix that is larger than a kernel can bind is split into shards of whole tiles.

use std::ops::Range;

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::tensor::Tensor;

/// Rows of weights (columns of a product) whose blocks are interleaved.
pub const TILE: usize = 64;

/// Values of a row that a kernel takes at a time, and that share a scale in a grouped format.
pub const GROUP: usize = 32;

/// Groups whose scales a kernel loads at a time.
pub(crate) const GROUPS_PER_QUAD: usize = 4;

/// How weights are stored. Products are computed in f32 whatever they are.
///
/// Rows of grouped formats are, before they are packed, the blocks of ggml (`block_q8_0`,
/// `block_q4_1` in `ggml-common.h`), so that such files keep their bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// `d q`, `q` a signed byte: per group `d: f16, q: [i8; 32]`.
    Int8,
    /// `d q + m`, `q` from 0 to 15: per group `d: f16, m: f16, q: [u8; 16]`, the low nibbles the
    /// first 16 values.
    Int4,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Int8, Self::Int4];

    /// Whether groups of values share a scale.
    pub fn is_grouped(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4)
    }

    /// Size of a row before it is packed, in bytes.
    pub fn row_bytes(self, cols: usize) -> usize {
        match self {
            Self::F32 => cols * 4,
            Self::F16 | Self::Bf16 => cols * 2,
            Self::Int8 | Self::Int4 => cols.div_ceil(GROUP) * self.group_bytes(),
        }
    }

    /// Bytes of a group before it is packed.
    fn group_bytes(self) -> usize {
        self.scale_bytes() + GROUP * BLOCK_BYTES / self.block()
    }

    /// Bytes of a group's scale, and offset where there is one.
    fn scale_bytes(self) -> usize {
        match self {
            Self::Int8 => 2,
            Self::Int4 => 4,
            Self::F32 | Self::F16 | Self::Bf16 => 0,
        }
    }

    /// Values in a block of 16 bytes.
    pub(crate) fn block(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 8,
            Self::Int8 => 16,
            Self::Int4 => 32,
        }
    }

    /// The functions that decode a block, to append to a kernel; of grouped formats without scale.
    pub(crate) fn decoder(self) -> &'static str {
        match self {
            Self::F32 => include_str!("decode_f32.wgsl"),
            Self::F16 => include_str!("decode_f16.wgsl"),
            Self::Bf16 => include_str!("decode_bf16.wgsl"),
            Self::Int8 => include_str!("decode_int8.wgsl"),
            Self::Int4 => include_str!("decode_int4.wgsl"),
        }
    }

    /// The constants of kernels that read blocks, beside their own.
    pub(crate) fn constants(self) -> [(&'static str, u32); 5] {
        let block = self.block() as u32;
        let group_blocks = GROUP as u32 / block;
        [
            ("TILE", TILE as u32),
            ("PARTS", block / 4),
            ("STEP_BLOCKS", group_blocks),
            ("QUAD_BLOCKS", group_blocks * GROUPS_PER_QUAD as u32),
            ("GROUPED", self.is_grouped().into()),
        ]
    }

    /// The f32 value of each weight in `bytes`: whole rows of `cols` values.
    pub fn decode(self, cols: usize, bytes: &[u8]) -> Vec<f32> {
        let f16_at =
            |bytes: &[u8], at: usize| half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
        let rows = bytes.chunks_exact(self.row_bytes(cols));
        let decode_row = |row: &[u8]| -> Vec<f32> {
            match self {
                Self::F32 => row.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
                Self::F16 => {
                    let values = row.as_chunks().0.iter();
                    values.map(|b| half::f16::from_le_bytes(*b).to_f32()).collect()
                }
                Self::Bf16 => {
                    let values = row.as_chunks().0.iter();
                    values.map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
                }
                Self::Int8 => row
                    .chunks_exact(self.group_bytes())
                    .flat_map(|group| {
                        let d = f16_at(group, 0);
                        group[2..].iter().map(move |q| d * f32::from(*q as i8))
                    })
                    .take(cols)
                    .collect(),
                Self::Int4 => row
                    .chunks_exact(self.group_bytes())
                    .flat_map(|group| {
                        let (d, m) = (f16_at(group, 0), f16_at(group, 2));
                        let low = group[4..].iter().map(|q| q & 15);
                        let high = group[4..].iter().map(|q| q >> 4);
                        low.chain(high).map(move |q| d * f32::from(q) + m)
                    })
                    .take(cols)
                    .collect(),
            }
        };
        rows.flat_map(decode_row).collect()
    }

    /// Rows of `cols` values each, every value rounded to this format; for self-tests and tests:
    /// nothing is done for a small error.
    pub fn encode(self, cols: usize, values: &[f32]) -> Vec<u8> {
        let encode_group = |group: &[f32]| -> Vec<u8> {
            let max = group.iter().copied().fold(f32::MIN, f32::max).max(0.0);
            let min = group.iter().copied().fold(f32::MAX, f32::min).min(0.0);
            let value = |i: usize| group.get(i).copied().unwrap_or(0.0);
            if self == Self::Int8 {
                let d = half::f16::from_f32(max.max(-min) / 127.0);
                let inverse = if d == half::f16::ZERO { 0.0 } else { d.to_f32().recip() };
                let codes = (0..GROUP).map(|i| (value(i) * inverse).round() as i8 as u8);
                d.to_le_bytes().into_iter().chain(codes).collect()
            } else {
                let (d, m) = (half::f16::from_f32((max - min) / 15.0), half::f16::from_f32(min));
                let inverse = if d == half::f16::ZERO { 0.0 } else { d.to_f32().recip() };
                let code = |i| ((value(i) - m.to_f32()) * inverse).round().clamp(0.0, 15.0) as u8;
                let codes = (0..GROUP / 2).map(|i| code(i) | code(i + 16) << 4);
                d.to_le_bytes().into_iter().chain(m.to_le_bytes()).chain(codes).collect()
            }
        };
        match self {
            Self::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::F16 => {
                values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect()
            }
            Self::Bf16 => {
                values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect()
            }
            Self::Int8 | Self::Int4 => values
                .chunks(cols)
                .flat_map(|row| row.chunks(GROUP).flat_map(encode_group))
                .collect(),
        }
    }
}

/// How the rows of a matrix are ordered on the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// As they come.
    Plain,
    /// Of a matrix whose first half of rows is `gate` and whose second half is `up`: four of gate,
    /// the same four of up, and so on, so that whoever computes the one has the other.
    Paired,
}

/// A matrix [rows, cols] of weights.
#[derive(Debug, Clone)]
pub struct WeightMatrix {
    /// Number of rows: columns of the product, or tokens of a vocabulary.
    pub rows: usize,
    /// Values per row.
    pub cols: usize,
    /// How a value is stored.
    pub format: Format,
    /// How rows are ordered.
    pub order: RowOrder,
    pub(crate) shards: Vec<Shard>,
}

/// Rows of a matrix that one binding holds.
#[derive(Debug, Clone)]
pub(crate) struct Shard {
    pub(crate) rows: Range<usize>,
    pub(crate) blocks: Tensor,
    /// Of grouped formats.
    pub(crate) scales: Option<Tensor>,
}

impl WeightMatrix {
    /// Copies a matrix to the adapter. `read_rows` is called with ascending ranges of rows and
    /// fills in their bytes, row after row in `format`, numbers little-endian; no more than a few
    /// MiB are held at a time.
    pub fn upload<E: From<GpuError>>(
        gpu: &Gpu,
        (rows, cols): (usize, usize),
        (format, order): (Format, RowOrder),
        mut read_rows: impl FnMut(Range<usize>, &mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        assert!(rows > 0 && cols > 0, "a matrix has values");
        assert!(cols.is_multiple_of(4), "kernels read four values at a time");
        assert!(order == RowOrder::Plain || rows.is_multiple_of(8), "pairs are of four rows each");
        let packing = Packing::new(cols, format);
        let max_bytes = gpu.caps().max_binding_bytes;
        let max_tiles = (max_bytes / packing.tile_bytes as u64) as usize;
        if max_tiles == 0 {
            let num_bytes = packing.tile_bytes as u64;
            return Err(GpuError::TooLarge { num_bytes, max_bytes }.into());
        }
        let row_bytes = format.row_bytes(cols);
        let tiles_per_write = (WRITE_BYTES / packing.tile_bytes).max(1);
        let mut source = vec![0; TILE * row_bytes];
        let (mut packed, mut packed_scales) = (Vec::new(), Vec::new());
        let mut shards = Vec::new();
        for start in (0..rows).step_by(max_tiles * TILE) {
            let shard_rows = start..rows.min(start + max_tiles * TILE);
            let num_tiles = shard_rows.len().div_ceil(TILE);
            let blocks = gpu.alloc_blocks(num_tiles * packing.tile_bytes / 4)?;
            let scales = match format.is_grouped() {
                true => Some(gpu.alloc_blocks(num_tiles * packing.tile_scale_bytes / 4)?),
                false => None,
            };
            for first_tile in (0..num_tiles).step_by(tiles_per_write) {
                packed.clear();
                packed_scales.clear();
                for tile in first_tile..num_tiles.min(first_tile + tiles_per_write) {
                    let first = start + tile * TILE;
                    let range = first..shard_rows.end.min(first + TILE);
                    let source = &mut source[..range.len() * row_bytes];
                    if order == RowOrder::Plain {
                        read_rows(range, source)?;
                    } else {
                        let gate = range.start / 2..range.end / 2;
                        let up = rows / 2 + gate.start..rows / 2 + gate.end;
                        let (gates, ups) = source.split_at_mut(gate.len() * row_bytes);
                        read_rows(gate, gates)?;
                        read_rows(up, ups)?;
                    }
                    packing.pack_tile(order, source, &mut packed, &mut packed_scales);
                }
                gpu.write(&blocks, first_tile * packing.tile_bytes / 4, &packed);
                if let Some(scales) = &scales {
                    gpu.write(scales, first_tile * packing.tile_scale_bytes / 4, &packed_scales);
                }
                gpu.flush()?;
            }
            shards.push(Shard { rows: shard_rows, blocks, scales });
        }
        Ok(Self { rows, cols, format, order, shards })
    }

    /// Bytes that [`upload`](Self::upload) takes of the adapter, if one binding can hold them.
    pub fn num_bytes(gpu: &Gpu, (rows, cols): (usize, usize), format: Format) -> u64 {
        let packing = Packing::new(cols, format);
        let num_tiles = rows.div_ceil(TILE);
        let blocks = gpu.vec4s_bytes(num_tiles * packing.tile_bytes / 4);
        let scales = match packing.tile_scale_bytes {
            0 => 0,
            bytes => gpu.vec4s_bytes(num_tiles * bytes / 4),
        };
        blocks + scales
    }

    /// Copies a matrix that is in memory.
    pub fn from_bytes(
        gpu: &Gpu,
        shape: (usize, usize),
        (format, order): (Format, RowOrder),
        bytes: &[u8],
    ) -> Result<Self, GpuError> {
        let row_bytes = format.row_bytes(shape.1);
        assert_eq!(bytes.len(), shape.0 * row_bytes, "a matrix has rows times cols values");
        Self::upload(gpu, shape, (format, order), |rows, target| {
            target.copy_from_slice(&bytes[rows.start * row_bytes..rows.end * row_bytes]);
            Ok(())
        })
    }

    /// Blocks of a row, padding included.
    pub(crate) fn num_blocks(&self) -> usize {
        self.cols.next_multiple_of(GROUP) / self.format.block()
    }
}

/// Bytes that are packed before they are handed to the driver, which keeps a copy of them until
/// they are on the adapter.
const WRITE_BYTES: usize = 8 << 20;

const BLOCK_BYTES: usize = 16;

/// Where the bytes of a tile of rows go.
struct Packing {
    format: Format,
    row_bytes: usize,
    /// Size of a packed tile, without scales.
    tile_bytes: usize,
    /// Size of the scales of a tile; 0 where there are none.
    tile_scale_bytes: usize,
}

impl Packing {
    fn new(cols: usize, format: Format) -> Self {
        let num_groups = cols.div_ceil(GROUP);
        let group_blocks = GROUP / format.block();
        let num_quads = if format.is_grouped() { num_groups.div_ceil(GROUPS_PER_QUAD) } else { 0 };
        Self {
            format,
            row_bytes: format.row_bytes(cols),
            tile_bytes: num_groups * group_blocks * BLOCK_BYTES * TILE,
            tile_scale_bytes: num_quads * BLOCK_BYTES * TILE,
        }
    }

    /// Interleaves the blocks of up to [`TILE`] rows; missing rows and values are zero.
    fn pack_tile(
        &self,
        order: RowOrder,
        source: &[u8],
        packed: &mut Vec<u8>,
        packed_scales: &mut Vec<u8>,
    ) {
        let start = packed.len();
        packed.resize(start + self.tile_bytes, 0);
        let target = &mut packed[start..];
        let start = packed_scales.len();
        packed_scales.resize(start + self.tile_scale_bytes, 0);
        let scales = &mut packed_scales[start..];
        let half = source.len() / self.row_bytes / 2;
        for (row, bytes) in source.chunks_exact(self.row_bytes).enumerate() {
            let row = match order {
                RowOrder::Plain => row,
                RowOrder::Paired if row < half => row / 4 * 8 + row % 4,
                RowOrder::Paired => (row - half) / 4 * 8 + 4 + (row - half) % 4,
            };
            if !self.format.is_grouped() {
                for (block, bytes) in bytes.chunks(BLOCK_BYTES).enumerate() {
                    let at = (block * TILE + row) * BLOCK_BYTES;
                    target[at..at + bytes.len()].copy_from_slice(bytes);
                }
                continue;
            }
            let group_blocks = GROUP / self.format.block();
            for (group, bytes) in bytes.chunks_exact(self.format.group_bytes()).enumerate() {
                let (scale, codes) = bytes.split_at(self.format.scale_bytes());
                let quad = group / GROUPS_PER_QUAD;
                let at = (quad * TILE + row) * BLOCK_BYTES + group % GROUPS_PER_QUAD * 4;
                scales[at..at + scale.len()].copy_from_slice(scale);
                for (part, codes) in codes.chunks_exact(BLOCK_BYTES).enumerate() {
                    let at = ((group * group_blocks + part) * TILE + row) * BLOCK_BYTES;
                    target[at..at + BLOCK_BYTES].copy_from_slice(codes);
                    if self.format == Format::Int8 {
                        // Kernels take bytes without a sign, 128 too large.
                        target[at..at + BLOCK_BYTES].iter_mut().for_each(|code| *code ^= 0x80);
                    }
                }
            }
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
        let source = Format::F16.encode(12, &values);
        let mut packed = Vec::new();
        Packing::new(12, Format::F16).pack_tile(
            RowOrder::Plain,
            &source,
            &mut packed,
            &mut Vec::new(),
        );
        assert_eq!(packed.len(), 4 * TILE * 16);
        let decoded = Format::F16.decode(packed.len() / 2, &packed);
        let at = |block: usize, row: usize| &decoded[(block * TILE + row) * 8..][..8];
        assert_eq!(at(0, 0), &values[..8]);
        assert_eq!(at(0, 1), &values[12..20]);
        assert_eq!(at(1, 1), [20.0, 21.0, 22.0, 23.0, 0.0, 0.0, 0.0, 0.0]);
        assert!(decoded[2 * TILE * 8..].iter().all(|value| *value == 0.0));
    }

    #[test]
    fn scales_have_a_plane_of_their_own() {
        // 3 rows of 160 values: 5 groups, so two quads of scales.
        for (format, group_blocks) in [(Format::Int8, 2), (Format::Int4, 1)] {
            let source: Vec<u8> = (0..3 * format.row_bytes(160)).map(|i| i as u8 | 1).collect();
            let (mut packed, mut scales) = (Vec::new(), Vec::new());
            let packing = Packing::new(160, format);
            packing.pack_tile(RowOrder::Plain, &source, &mut packed, &mut scales);
            assert_eq!(packed.len(), 5 * group_blocks * TILE * 16);
            assert_eq!(scales.len(), 2 * TILE * 16);
            let group_bytes = format.group_bytes();
            // Row 2, group 4: the first of its second quad.
            let group = &source[2 * format.row_bytes(160) + 4 * group_bytes..][..group_bytes];
            let (scale, codes) = group.split_at(format.scale_bytes());
            assert_eq!(&scales[(TILE + 2) * 16..][..scale.len()], scale);
            let sign = if format == Format::Int8 { 0x80 } else { 0 };
            let codes: Vec<u8> = codes[..16].iter().map(|code| code ^ sign).collect();
            assert_eq!(packed[(4 * group_blocks * TILE + 2) * 16..][..16], codes);
        }
    }

    #[test]
    fn numbers_survive() {
        for format in Format::ALL {
            let values: Vec<f32> = (0..40).map(|i| (i % 16) as f32 * 0.5 - 3.5).collect();
            let decoded = format.decode(40, &format.encode(40, &values));
            for (decoded, value) in decoded.iter().zip(&values) {
                assert!((decoded - value).abs() < 0.13, "{format:?}: {decoded} is not {value}");
            }
        }
    }
}
