//! Weight matrices on the adapter, in the one layout that every kernel reads.
//!
//! A block is 16 bytes of one row: 4 values of f32, 8 of f16 or bf16, 16 of int8 or fp8, 32 of
//! int4. Blocks are stored as `[rows / TILE][cols / block][TILE]`, so that lanes which compute
//! neighbouring rows read neighbouring blocks. Rows are padded with zeros to a multiple of
//! [`GROUP`] values, and their number to a multiple of `TILE`. The scales of grouped formats are
//! in a plane of their own, four groups of a row side by side: `[rows / TILE][groups / 4][TILE]`;
//! those of ggml's large blocks with the upper bits of their codes (`format_k.rs`). A matrix that
//! is larger than a kernel can bind is split into shards of whole tiles.
//!
//! Halves that are multiplied by cooperative matrices are stored so that each of those is one piece
//! of memory (`halves.rs`): of 8 x 8 they are anyway, since eight neighbours' blocks are eight rows
//! of eight values; for 16 x 16 two blocks of a row stand side by side.

use std::ops::Range;

use crate::error::GpuError;
pub use crate::format::Format;
use crate::format_k::take_apart;
use crate::gpu::Gpu;
use crate::halves::Halves;
use crate::tensor::Tensor;

/// Rows of weights (columns of a product) whose blocks are interleaved.
pub(crate) const TILE: usize = 64;

/// Values of a row that a kernel takes at a time, and that share a scale in an integer format.
pub const GROUP: usize = 32;

/// Groups whose scales a kernel loads at a time.
pub(crate) const GROUPS_PER_QUAD: usize = 4;

/// How the rows of a matrix are ordered on the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// As they come.
    Plain,
    /// Of a matrix whose first half of rows is `gate` and whose second half is `up`: four of gate,
    /// the same four of up, and so on, so that whoever computes the one has the other.
    Paired,
}

/// A matrix [rows, cols] of weights, or a stack of them, one after another, each of whole tiles.
#[derive(Debug, Clone)]
pub struct WeightMatrix {
    /// How many matrices it is.
    pub stack: usize,
    /// Number of rows of each: columns of the product, or tokens of a vocabulary.
    pub rows: usize,
    /// Values per row.
    pub cols: usize,
    /// How a value is stored, of its first part.
    pub format: Format,
    /// Where a row of the matrix lies among those stored.
    pub order: RowOrder,
    /// Its rows, in as few parts as bindings allow.
    pub shards: Vec<Shard>,
}

/// Rows of a matrix that one binding holds, in one format.
#[derive(Debug, Clone)]
pub struct Shard {
    /// How a value is stored.
    pub format: Format,
    /// Which they are; of a stack those of its tiles, padding included.
    pub rows: Range<usize>,
    /// Blocks, interleaved.
    pub blocks: Tensor,
    /// Of grouped formats.
    pub scales: Option<Tensor>,
}

impl WeightMatrix {
    /// Copies a matrix to the adapter. `read_rows` is called with ascending ranges of rows and
    /// fills in their bytes, row after row in `format`, numbers little-endian; no more than a few
    /// MiB are held at a time. Halves are stored as the adapter multiplies them, and bf16 ones that
    /// don't fit that are read once more, to be stored as they are.
    pub fn upload<E: From<GpuError>>(
        gpu: &Gpu,
        shape: (usize, usize),
        format: (Format, RowOrder),
        read_rows: impl FnMut(Range<usize>, &mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        Self::upload_stack(gpu, 1, shape, format, read_rows)
    }

    /// Copies `stack` matrices of one shape. Their rows are numbered through; paired ones have all
    /// gates before all up projections.
    pub fn upload_stack<E: From<GpuError>>(
        gpu: &Gpu,
        stack: usize,
        (rows, cols): (usize, usize),
        (format, order): (Format, RowOrder),
        mut read_rows: impl FnMut(Range<usize>, &mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let stored = if stack == 1 { format.stored(gpu.caps()) } else { format };
        let shape = (stack, rows, cols);
        let mut halves = Halves::new(format, stored);
        if let Some(matrix) = Self::store(gpu, shape, order, &mut halves, &mut read_rows)? {
            return Ok(matrix);
        }
        let mut halves = Halves::new(format, format);
        let matrix = Self::store(gpu, shape, order, &mut halves, &mut read_rows)?;
        Ok(matrix.expect("what stays as it is fits"))
    }

    /// The same in the format that `halves` says; nothing if values don't fit it.
    fn store<E: From<GpuError>>(
        gpu: &Gpu,
        (stack, rows, cols): (usize, usize, usize),
        order: RowOrder,
        halves: &mut Halves,
        read_rows: &mut impl FnMut(Range<usize>, &mut [u8]) -> Result<(), E>,
    ) -> Result<Option<Self>, E> {
        let format = halves.stored;
        assert!(stack > 0, "a stack has matrices");
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
        let tiles_of_one = rows.div_ceil(TILE);
        for start in (0..stack * tiles_of_one).step_by(max_tiles) {
            let tiles = start..(stack * tiles_of_one).min(start + max_tiles);
            let num_tiles = tiles.len();
            let blocks = gpu.alloc_blocks(num_tiles * packing.tile_bytes / 4)?;
            let scales = match format.is_grouped() {
                true => Some(gpu.alloc_blocks(num_tiles * packing.tile_scale_bytes / 4)?),
                false => None,
            };
            for first_tile in tiles.clone().step_by(tiles_per_write) {
                packed.clear();
                packed_scales.clear();
                for tile in first_tile..tiles.end.min(first_tile + tiles_per_write) {
                    let (number, first) = (tile / tiles_of_one, tile % tiles_of_one * TILE);
                    let range = first..rows.min(first + TILE);
                    let source = &mut source[..range.len() * row_bytes];
                    if order == RowOrder::Plain {
                        read_rows(number * rows + range.start..number * rows + range.end, source)?;
                    } else {
                        let before = number * rows / 2;
                        let gate = before + range.start / 2..before + range.end / 2;
                        let ups = stack * rows / 2;
                        let up = ups + gate.start..ups + gate.end;
                        let (gates, ups) = source.split_at_mut(gate.len() * row_bytes);
                        read_rows(gate, gates)?;
                        read_rows(up, ups)?;
                    }
                    if !halves.take(source) {
                        return Ok(None);
                    }
                    packing.pack_tile(order, source, &mut packed, &mut packed_scales);
                }
                let at = first_tile - start;
                gpu.write(&blocks, at * packing.tile_bytes / 4, &packed);
                if let Some(scales) = &scales {
                    gpu.write(scales, at * packing.tile_scale_bytes / 4, &packed_scales);
                }
                gpu.flush()?;
            }
            let end = if stack == 1 { rows.min(tiles.end * TILE) } else { tiles.end * TILE };
            shards.push(Shard { format, rows: start * TILE..end, blocks, scales });
        }
        let matrix = Self { stack, rows, cols, format, order, shards };
        Ok(halves.are_large_enough().then_some(matrix))
    }

    /// One matrix of several, row upon row: each is computed in its own format. All but the last
    /// have whole tiles of rows.
    pub fn stacked(parts: Vec<Self>) -> Self {
        let mut parts = parts.into_iter();
        let mut whole = parts.next().expect("a matrix has parts");
        for part in parts {
            assert!(whole.rows.is_multiple_of(TILE), "a part begins with a tile");
            assert!(whole.cols == part.cols && [whole.stack, part.stack] == [1, 1], "rows alike");
            assert!([whole.order, part.order] == [RowOrder::Plain; 2], "pairs are in one part");
            let rows = |shard: &Shard| shard.rows.start + whole.rows..shard.rows.end + whole.rows;
            let shards: Vec<_> = part
                .shards
                .into_iter()
                .map(|shard| Shard { rows: rows(&shard), ..shard })
                .collect();
            whole.shards.extend(shards);
            whole.rows += part.rows;
        }
        whole
    }

    /// For each format that it has, the same matrix with its shards of this format alone.
    pub(crate) fn by_format(&self) -> Vec<Self> {
        let mut parts: Vec<Self> = Vec::new();
        for shard in &self.shards {
            match parts.iter_mut().find(|part| part.format == shard.format) {
                Some(part) => part.shards.push(shard.clone()),
                None => {
                    parts.push(Self {
                        format: shard.format,
                        shards: vec![shard.clone()],
                        ..self.clone()
                    });
                }
            }
        }
        parts
    }

    /// Bytes that [`upload`](Self::upload) takes of the adapter, if one binding can hold them.
    pub fn num_bytes(gpu: &Gpu, shape: (usize, usize), format: Format) -> u64 {
        Self::stack_bytes(gpu, 1, shape, format)
    }

    /// Bytes that [`upload_stack`](Self::upload_stack) takes, in the same way.
    pub fn stack_bytes(
        gpu: &Gpu,
        stack: usize,
        (rows, cols): (usize, usize),
        format: Format,
    ) -> u64 {
        let packing = Packing::new(cols, format);
        let num_tiles = stack * rows.div_ceil(TILE);
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
    pub fn num_blocks(&self) -> usize {
        self.cols.next_multiple_of(GROUP) / self.format.block()
    }
}

/// Bytes that are packed before they are handed to the driver, which keeps a copy of them until
/// they are on the adapter.
const WRITE_BYTES: usize = 8 << 20;

pub(crate) const BLOCK_BYTES: usize = 16;

/// Where the bytes of a tile of rows go.
struct Packing {
    format: Format,
    row_bytes: usize,
    /// Blocks of a row, padding included.
    num_blocks: usize,
    /// Size of a packed tile, without scales.
    tile_bytes: usize,
    /// Size of the scales of a tile; 0 where there are none.
    tile_scale_bytes: usize,
}

impl Packing {
    fn new(cols: usize, format: Format) -> Self {
        let num_blocks = cols.next_multiple_of(GROUP) / format.block();
        let num_quads = match format.is_grouped() {
            true if format.unit().is_some() => format.num_sides(num_blocks),
            true => cols.div_ceil(format.group()).div_ceil(GROUPS_PER_QUAD),
            false => 0,
        };
        Self {
            format,
            row_bytes: format.row_bytes(cols),
            num_blocks,
            tile_bytes: num_blocks * BLOCK_BYTES * TILE,
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
                let beside = self.format.side_by_side();
                for (block, bytes) in bytes.chunks(BLOCK_BYTES).enumerate() {
                    let place = (block / beside * TILE + row) * beside + block % beside;
                    let at = place * BLOCK_BYTES;
                    target[at..at + bytes.len()].copy_from_slice(bytes);
                }
                continue;
            }
            if let Some((values, unit_bytes)) = self.format.unit() {
                let (num_blocks, num_sides) =
                    (self.num_blocks, self.tile_scale_bytes / (BLOCK_BYTES * TILE));
                let (codes, sides) = (values / GROUP, self.format.num_sides(values / GROUP));
                for (number, bytes) in bytes.chunks(unit_bytes).enumerate() {
                    // The last block may be longer than what a row is padded to.
                    let write = |into: &mut [u8], of: usize, at: usize, bytes: [u8; 16]| {
                        if at < of {
                            let at = (at * TILE + row) * BLOCK_BYTES;
                            into[at..at + BLOCK_BYTES].copy_from_slice(&bytes);
                        }
                    };
                    take_apart(
                        self.format,
                        bytes,
                        |at, block| write(target, num_blocks, number * codes + at, block),
                        |at, side| write(scales, num_sides, number * sides + at, side),
                    );
                }
                continue;
            }
            for (group, bytes) in bytes.chunks_exact(self.format.group_bytes()).enumerate() {
                let (scale, codes) = bytes.split_at(self.format.scale_bytes());
                let quad = group / GROUPS_PER_QUAD;
                let at = (quad * TILE + row) * BLOCK_BYTES + group % GROUPS_PER_QUAD * 4;
                scales[at..at + scale.len()].copy_from_slice(scale);
                // A group may be longer than what a row is padded to.
                let blocks = group * self.format.group_blocks()..self.num_blocks;
                for (block, codes) in blocks.zip(codes.chunks_exact(BLOCK_BYTES)) {
                    let at = (block * TILE + row) * BLOCK_BYTES;
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
    fn a_long_group_ends_with_its_row() {
        // 2 rows of 580 values: groups of 128, of which the last has 68, padded to 96.
        let format = Format::Fp8;
        let source: Vec<u8> = (0..2 * format.row_bytes(580)).map(|i| i as u8 | 1).collect();
        assert_eq!(source.len(), 2 * 5 * (4 + 128));
        let (mut packed, mut scales) = (Vec::new(), Vec::new());
        Packing::new(580, format).pack_tile(RowOrder::Plain, &source, &mut packed, &mut scales);
        assert_eq!((packed.len(), scales.len()), (608 * TILE, 2 * TILE * 16));
        let last = &source[9 * 132..];
        assert_eq!(scales[(TILE + 1) * 16..][..16], [&last[..4], &[0; 12]].concat());
        let block = |block: usize| &packed[(block * TILE + 1) * 16..][..16];
        assert_eq!((block(32), block(37)), (&last[4..20], &last[84..100]));
    }
}
