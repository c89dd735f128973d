//! Weights by what they do: one way to read them, whatever the files call them and however they
//! store them.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::dtype::{DType, FP8_GROUP, Format, GROUP, Quantize, ZERO_GROUP_BYTES};
use crate::error::CheckpointError;
use crate::fp8;
use crate::levels;
use crate::mapped::Mapped;
use crate::order::{Heads, Order};
use crate::packed::{Side, write_group};
use crate::quantize::{int4_row, int8_group};
use crate::quants::decode_row;
use crate::tensors::{Piece, Weights};

/// A matrix in its files. Reading decodes the rows that are asked for and nothing else.
#[derive(Clone, Debug)]
pub struct MatrixView<'a> {
    sources: Vec<Source<'a>>,
    rows: usize,
    cols: usize,
    stack: usize,
    format: Format,
    quantize: (Quantize, bool),
    is_paired: bool,
}

/// Parts of a matrix that are handed over in formats of their own begin with a multiple of this:
/// kernels take so many rows at a time.
const PART_ROWS: usize = 64;

/// One of its tensors, and its bytes and those of its factors, as stored.
#[derive(Clone, Copy, Debug)]
struct Source<'a> {
    files: &'a [Mapped],
    piece: &'a Piece,
    stored: &'a [u8],
    scales: &'a [u8],
    /// Of packed integers: the tensor, its scales and zeros.
    packed: (&'a [u8], &'a [u8], &'a [u8]),
}

impl<'a> MatrixView<'a> {
    /// `pieces`: at least one, all of the same width, stacked row upon row; `is_paired`: the first
    /// half of the rows is computed together with the second.
    pub(crate) fn new(
        weights: &'a Weights,
        pieces: &'a [Piece],
        stack: usize,
        quantize: (Quantize, bool),
        is_paired: bool,
    ) -> Self {
        let side = |side: Option<&'a Side>| side.map_or(&[][..], |side| weights.side_bytes(side));
        let source = |piece: &'a Piece| Source {
            files: &weights.files,
            piece,
            stored: weights.bytes(piece),
            packed: (
                weights.bytes(piece),
                side(piece.groups.as_ref().map(|groups| &groups.scales)),
                side(piece.groups.as_ref().and_then(|groups| groups.zeros.as_ref())),
            ),
            scales: piece.scales.as_ref().map_or(&[], |scales| weights.scale_bytes(scales)),
        };
        Self::of(pieces.iter().map(source).collect(), stack, quantize, is_paired)
    }

    fn of(
        sources: Vec<Source<'a>>,
        stack: usize,
        quantize: (Quantize, bool),
        is_paired: bool,
    ) -> Self {
        let rows = sources.iter().map(|source| source.piece.rows).sum();
        let cols = sources.first().map_or(0, |source| source.piece.cols);
        let format = sources.iter().map(Source::format).reduce(Format::widest);
        let format = quantize.0.format(format.unwrap_or(Format::F32), quantize.1);
        Self { sources, rows, cols, stack, format, quantize, is_paired }
    }

    /// Its rows in as few parts as have one format each, or all of them in one where they are
    /// computed together: gate and up, a stack, rows that are no multiple of what kernels take.
    pub fn parts(&self) -> Vec<Self> {
        let mut parts: Vec<Vec<Source<'a>>> = Vec::new();
        for source in &self.sources {
            match parts.last_mut().filter(|last| last[0].format() == source.format()) {
                Some(last) => last.push(*source),
                None => parts.push(vec![*source]),
            }
        }
        let whole = |part: &Vec<Source<'a>>| {
            part.iter().map(|source| source.piece.rows).sum::<usize>().is_multiple_of(PART_ROWS)
        };
        let num_parts = parts.len();
        if num_parts < 2
            || self.stack > 1
            || self.is_paired
            || !parts[..num_parts - 1].iter().all(whole)
        {
            return vec![self.clone()];
        }
        parts.into_iter().map(|part| Self::of(part, 1, self.quantize, false)).collect()
    }

    /// Values of the output.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many matrices of one shape it is, one below the other; gate and up are one of them,
    /// though all gates come first.
    pub fn stack(&self) -> usize {
        self.stack
    }

    /// Values of the input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// As what the values are handed over: as stored or as quantised, and the narrowest floats for
    /// all of them where the matrix is stored as several tensors of several types and isn't taken
    /// in [`parts`](Self::parts).
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes of one row, as handed over.
    pub fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.cols)
    }

    /// Bytes of the whole matrix on an adapter, in parts where it has such.
    pub fn device_bytes(&self) -> u64 {
        let bytes = |part: &Self| part.rows as u64 * part.format.device_row_bytes(part.cols) as u64;
        self.parts().iter().map(bytes).sum()
    }

    /// Decodes rows, packed and little-endian, into `out`, whose size must be that of the rows.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Rows`] if the range or the size is wrong,
    /// [`CheckpointError::F16Range`] if a quantised value is none that f16 holds, and
    /// [`CheckpointError::NotFinite`] if a weight is NaN or infinite; `out` is then partly written.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [u8]) -> Result<(), CheckpointError> {
        let size = rows.end.checked_sub(rows.start).and_then(|n| n.checked_mul(self.row_bytes()));
        if rows.end > self.rows || size != Some(out.len()) {
            return Err(CheckpointError::Rows {
                start: rows.start,
                end: rows.end,
                len: out.len(),
                rows: self.rows,
                row_bytes: self.row_bytes(),
            });
        }
        let mut out = out;
        let mut first = 0;
        for source in &self.sources {
            // This piece holds rows `first..first + num_rows` of the matrix.
            let num_rows = source.piece.rows;
            let start = rows.start.clamp(first, first + num_rows) - first;
            let end = rows.end.clamp(first, first + num_rows) - first;
            let (part, rest) = out.split_at_mut((end - start) * self.row_bytes());
            self.read_source(source, start..end, part)?;
            // While they are in the processor's cache. Nothing after this would notice: answers
            // would just be garbage.
            if !self.format.is_finite(part)
                && let Some(error) = source.not_finite(start..end)
            {
                return Err(error);
            }
            out = rest;
            first += num_rows;
        }
        Ok(())
    }

    /// Decodes one row as f32. For references and tests: exact, but not fast, and what it gives may
    /// be NaN or infinite.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Rows`] if there is no such row or `out` is not [`cols`](Self::cols)
    /// long.
    pub fn row_f32(&self, row: usize, out: &mut [f32]) -> Result<(), CheckpointError> {
        let mut first = 0;
        for source in &self.sources {
            if row < first + source.piece.rows && out.len() == self.cols {
                source.read(row - first, out);
                return Ok(());
            }
            first += source.piece.rows;
        }
        Err(CheckpointError::Rows {
            start: row,
            end: row.saturating_add(1),
            len: size_of_val(out),
            rows: self.rows,
            row_bytes: self.cols * size_of::<f32>(),
        })
    }

    fn read_source(
        &self,
        source: &Source<'_>,
        rows: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), CheckpointError> {
        let &Source { piece, stored, .. } = source;
        let dtype = piece.dtype;
        let row_bytes = self.row_bytes();
        if let Order::Transposed(heads) = piece.order {
            return self.read_transposed(source, heads, rows, out);
        }
        let as_stored = dtype.is_handed_over_as_stored() && dtype.format() == self.format;
        if as_stored && piece.order == Order::Plain {
            out.copy_from_slice(&stored[rows.start * row_bytes..rows.end * row_bytes]);
            return Ok(());
        }
        if as_stored {
            for (row, out) in rows.zip(out.chunks_exact_mut(row_bytes)) {
                out.copy_from_slice(source.row(row).1);
            }
            return Ok(());
        }
        let failed = out
            .par_chunks_exact_mut(row_bytes)
            .zip(rows)
            .map_init(
                || Scratch::new(self.cols),
                |scratch, (out, row)| self.convert_row(source, row, out, scratch),
            )
            .find_map_first(Result::err);
        failed.map_or(Ok(()), Err)
    }

    /// A head's rows are decoded once for all of its columns that are asked for.
    fn read_transposed(
        &self,
        source: &Source<'_>,
        heads: Heads,
        rows: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), CheckpointError> {
        let (_, width) = source.piece.stored_shape();
        let (mut scratch, mut decoded) = (Scratch::new(self.cols), Vec::new());
        let mut of_head = usize::MAX;
        for (row, out) in rows.zip(out.chunks_exact_mut(self.row_bytes())) {
            if row / width != of_head {
                of_head = row / width;
                decoded = source.head(of_head, heads);
            }
            for (value, stored) in scratch.f32.iter_mut().zip(decoded.chunks_exact(width)) {
                *value = stored[row % width];
            }
            self.write_row(&mut scratch, out).map_err(|value| {
                let tensor = source.piece.name.clone();
                CheckpointError::F16Range { tensor, row: of_head * heads.of + heads.first, value }
            })?;
        }
        Ok(())
    }

    fn convert_row(
        &self,
        source: &Source<'_>,
        row: usize,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<(), CheckpointError> {
        let (number, stored) = source.row(row);
        let range = |value| {
            let tensor = source.piece.name.clone();
            let range = CheckpointError::F16Range { tensor, row: number, value };
            source.not_finite(row..row + 1).unwrap_or(range)
        };
        match (source.piece.dtype, self.format) {
            (DType::Q4_0, Format::Int4) => return with_offset(8.0, stored, out).map_err(range),
            (DType::Q5_0, Format::Int5) => return with_offset(16.0, stored, out).map_err(range),
            (DType::IQ3_XXS, Format::Iq3) => {
                levels::row_as_nibbles(stored, out);
                return Ok(());
            }
            _ => {}
        }
        // Only what is stored so becomes it.
        if let (Format::Int4Zero, Some(groups)) = (self.format, &source.piece.groups) {
            let mut out = out.chunks_exact_mut(ZERO_GROUP_BYTES);
            groups.row(number, source.packed, |scale, zero, codes| {
                if let Some(out) = out.next() {
                    write_group(scale, zero, codes, out);
                }
            });
            return Ok(());
        }
        if self.format == Format::Fp8 {
            fp8::write_row(stored, source.factors(number), out);
            return Ok(());
        }
        source.decode(number, stored, &mut scratch.f32);
        self.write_row(scratch, out).map_err(range)
    }

    /// A row of f32 as it is handed over; the first value that can't be is an error.
    fn write_row(&self, scratch: &mut Scratch, out: &mut [u8]) -> Result<(), f32> {
        match self.format {
            Format::F32 => {
                for (out, value) in out.as_chunks_mut().0.iter_mut().zip(&scratch.f32) {
                    *out = value.to_le_bytes();
                }
            }
            // Exact: only what is stored as bf16 becomes it.
            Format::BF16 => {
                for (out, value) in out.as_chunks_mut().0.iter_mut().zip(&scratch.f32) {
                    *out = bf16::from_f32(*value).to_le_bytes();
                }
            }
            Format::F16 => scratch.write_f16(out)?,
            Format::Int8 => {
                let group_bytes = out.len() / self.cols.div_ceil(GROUP);
                let groups = scratch.f32.chunks(GROUP);
                for (values, out) in groups.zip(out.chunks_exact_mut(group_bytes)) {
                    int8_group(values, out)?;
                }
            }
            Format::Int4 => int4_row(&scratch.f32, out)?,
            _ => unreachable!("such rows are those of their file"),
        }
        Ok(())
    }
}

/// Rows of Q4_0 or Q5_0, `d (q - 8)` or `d (q - 16)`, as `d q - 8 d` or `d q - 16 d`: the same
/// numbers, as 8 d has the digits of d.
fn with_offset(centre: f32, stored: &[u8], out: &mut [u8]) -> Result<(), f32> {
    let dtype = if centre == 8.0 { DType::Q4_0 } else { DType::Q5_0 };
    let blocks = stored.chunks_exact(dtype.block_bytes());
    for (block, out) in blocks.zip(out.chunks_exact_mut(dtype.block_bytes() + 2)) {
        let offset = -centre * f16::from_le_bytes([block[0], block[1]]).to_f32();
        let rounded = f16::from_f32(offset);
        if !rounded.is_finite() {
            return Err(offset);
        }
        out[..2].copy_from_slice(&block[..2]);
        out[2..4].copy_from_slice(&rounded.to_le_bytes());
        out[4..].copy_from_slice(&block[2..]);
    }
    Ok(())
}

impl<'a> Source<'a> {
    /// As what its rows are handed over by themselves.
    fn format(&self) -> Format {
        let format = self.piece.dtype.format();
        match self.piece.order {
            // Groups of the matrix' rows are none of the tensor's.
            Order::Transposed(_) => format.float(),
            _ => format,
        }
    }

    /// The bytes of a row in the order that the matrix has, and its number in the file. Of a
    /// transposed matrix, a stored row.
    fn row(&self, row: usize) -> (usize, &'a [u8]) {
        let row = self.piece.order.stored_row(row);
        let row_bytes = self.stored.len() / self.piece.stored_shape().0;
        (row, &self.stored[row * row_bytes..(row + 1) * row_bytes])
    }

    /// Decodes a row into as many values as it has.
    fn read(&self, row: usize, out: &mut [f32]) {
        if let Order::Transposed(heads) = self.piece.order {
            let (_, width) = self.piece.stored_shape();
            let head = self.head(row / width, heads);
            for (value, stored) in out.iter_mut().zip(head.chunks_exact(width)) {
                *value = stored[row % width];
            }
            return;
        }
        let (number, stored) = self.row(row);
        self.decode(number, stored, out);
    }

    /// The rows of a head that are a matrix' columns.
    fn head(&self, head: usize, Heads { first, rows, of, .. }: Heads) -> Vec<f32> {
        let (_, width) = self.piece.stored_shape();
        let mut values = vec![0.0; rows * width];
        for (row, values) in (head * of + first..).zip(values.chunks_exact_mut(width)) {
            let (number, stored) = self.row(row);
            self.decode(number, stored, values);
        }
        values
    }

    /// A row's values. `number`: its number in the file.
    fn decode(&self, number: usize, stored: &[u8], out: &mut [f32]) {
        if let Some(groups) = &self.piece.groups {
            let mut out = out.iter_mut();
            groups.row(number, self.packed, |scale, zero, codes| {
                for (code, out) in codes.iter().zip(&mut out) {
                    *out = scale * (f32::from(*code) - f32::from(zero));
                }
            });
            return;
        }
        decode_row(self.piece.dtype, stored, out);
        for (values, factor) in out.chunks_mut(FP8_GROUP).zip(self.factors(number)) {
            values.iter_mut().for_each(|value| *value *= factor);
        }
    }

    /// What the values of each group of 128 are multiplied with; none but for 8-bit floats.
    fn factors(&self, number: usize) -> impl Iterator<Item = f32> {
        let scales = self.piece.scales.as_ref();
        scales.into_iter().flat_map(move |scales| scales.of_row(self.scales, number))
    }

    /// The first value of these rows, or factor of theirs, that can't be computed with.
    fn not_finite(&self, mut rows: Range<usize>) -> Option<CheckpointError> {
        let mut values = vec![0.0; self.piece.stored_shape().1];
        if let Order::Transposed(_) = self.piece.order {
            rows = 0..self.piece.stored_shape().0;
        }
        let error = |file: usize, tensor: &str, index: [usize; 2], value| {
            let (path, tensor) = (self.files[file].path.clone(), tensor.to_owned());
            CheckpointError::NotFinite { path, tensor, index: index.to_vec(), value }
        };
        rows.find_map(|row| {
            let (number, stored) = self.row(row);
            let piece = self.piece;
            match &piece.groups {
                Some(_) => self.decode(number, stored, &mut values),
                None => decode_row(piece.dtype, stored, &mut values),
            }
            if let Some(col) = values.iter().position(|value| !value.is_finite()) {
                return Some(error(piece.file, &piece.name, [number, col], values[col]));
            }
            let scales = piece.scales.as_ref()?;
            let cols = (0..values.len()).step_by(FP8_GROUP);
            let mut factors = cols.zip(scales.of_row(self.scales, number));
            let (col, factor) = factors.find(|(_, factor)| !fp8::is_factor(*factor))?;
            Some(error(scales.file, &scales.name, scales.index(number, col), factor))
        })
    }
}

/// One row on its way from blocks to f16.
struct Scratch {
    f32: Vec<f32>,
    f16: Vec<f16>,
}

impl Scratch {
    fn new(cols: usize) -> Self {
        Self { f32: vec![0.0; cols], f16: vec![f16::ZERO; cols] }
    }

    /// The first value that f16 can't hold is an error.
    fn write_f16(&mut self, out: &mut [u8]) -> Result<(), f32> {
        self.f16.convert_from_f32_slice(&self.f32);
        for (out, value) in out.as_chunks_mut().0.iter_mut().zip(&self.f16) {
            *out = value.to_le_bytes();
        }
        match self.f16.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(first) => Err(self.f32[first]),
        }
    }
}

/// A vector, from however many tensors, as f32.
pub(crate) fn vector(weights: &Weights, pieces: &[Piece]) -> Result<Vec<f32>, CheckpointError> {
    let mut out = Vec::new();
    for piece in pieces {
        let mut stored = vec![0.0; piece.rows];
        decode_row(piece.dtype, weights.bytes(piece), &mut stored);
        if let Some(row) = stored.iter().position(|value| !value.is_finite()) {
            return Err(CheckpointError::NotFinite {
                path: weights.files[piece.file].path.clone(),
                tensor: piece.name.clone(),
                index: vec![row],
                value: stored[row],
            });
        }
        out.extend((0..piece.rows).map(|row| stored[piece.order.stored_row(row)]));
    }
    Ok(out)
}
