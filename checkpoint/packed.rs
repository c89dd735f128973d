//! Four-bit integers packed in words, as Hugging Face directories have them, with scales and zeros
//! of groups in tensors beside them: AWQ's (its `gemm` order) and `pack-quantized` of
//! compressed-tensors.
//!
//! A value is `d (q - z)`, and stays that: nothing is rounded on the way to the adapter.

use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
use serde_json::Value;

use crate::config::Refused;
use crate::dtype::{DType, ZERO_GROUP};
use crate::error::CheckpointError;
use crate::fp8::{KEY, expect, refused};
use crate::tensors::{Stored, Tensors};

/// How they are packed, as the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packing {
    /// In AWQ's way: columns of a stored row are rows of the matrix.
    awq: bool,
    /// Values of a row that share a scale; `None`: all of them.
    group: Option<usize>,
    /// Whether zeros are stored; else each is 8.
    has_zeros: bool,
}

/// Codes of a word.
const CODES: usize = 8;

/// Where AWQ has the code of each of eight neighbours.
const AWQ_PLACES: [usize; CODES] = [0, 4, 1, 5, 2, 6, 3, 7];

impl Packing {
    /// Of `quant_method` `awq`.
    pub(crate) fn awq(quantization: &Value) -> Result<Self, Refused> {
        expect(quantization, "version", &["gemm", "GEMM"])?;
        if quantization["zero_point"] == false {
            return Err(refused(
                "has a zero_point of false, supported are those with zeros".into(),
            ));
        }
        let bits = ["bits", "w_bit"].map(|key| &quantization[key]);
        let size = ["group_size", "q_group_size"].map(|key| &quantization[key]);
        four(bits.into_iter().find(|bits| !bits.is_null()).unwrap_or(&Value::Null))?;
        let size = size.into_iter().find(|size| !size.is_null()).unwrap_or(&Value::Null);
        Ok(Self { awq: true, group: group(size)?, has_zeros: true })
    }

    /// Of the weights of a group of compressed-tensors.
    pub(crate) fn compressed(weights: &Value) -> Result<Self, Refused> {
        expect(weights, "type", &["int"])?;
        expect(weights, "strategy", &["group", "channel"])?;
        // As "group" it comes with the order of columns, which kernels would have to follow.
        expect(weights, "actorder", &["weight", "static"])?;
        four(&weights["num_bits"])?;
        let group = match weights["strategy"] == "channel" {
            true => None,
            false => group(&weights["group_size"])?,
        };
        Ok(Self { awq: false, group, has_zeros: weights["symmetric"] == false })
    }

    /// Gives packed tensors the name and shape of what they hold, and forgets what says their shape
    /// again.
    pub(crate) fn unwrap(self, tensors: &mut Tensors) {
        let ending = if self.awq { ".qweight" } else { ".weight_packed" };
        let names: Vec<_> =
            tensors.by_name.keys().filter(|name| name.ends_with(ending)).cloned().collect();
        for name in names {
            let Some(mut stored) = tensors.by_name.remove(&name) else { continue };
            let base = name.trim_end_matches(ending);
            tensors.by_name.remove(&format!("{base}.weight_shape"));
            if let (Err(kind), [rows, cols]) = (&stored.dtype, &stored.shape[..])
                && kind == "I32"
            {
                let (rows, cols) = (*rows, cols.saturating_mul(CODES));
                stored.shape = if self.awq { vec![cols, rows] } else { vec![rows, cols] };
                stored.dtype = Ok(DType::I4);
            }
            tensors.by_name.insert(format!("{base}.weight"), stored);
        }
    }
}

fn four(bits: &Value) -> Result<(), Refused> {
    if bits == 4 {
        return Ok(());
    }
    Err(refused(format!("asks for {bits} bits a weight, supported are 4 for integers")))
}

fn group(size: &Value) -> Result<Option<usize>, Refused> {
    match size.as_i64() {
        Some(-1) => Ok(None),
        Some(size) if size > 0 && size % ZERO_GROUP as i64 == 0 => Ok(Some(size as usize)),
        _ => Err(refused(format!(
            "has a group_size of {size}, supported are multiples of {ZERO_GROUP}, and -1"
        ))),
    }
}

/// What belongs to a packed tensor.
#[derive(Clone, Debug)]
pub(crate) struct Groups {
    packing: Packing,
    pub(crate) scales: Side,
    pub(crate) zeros: Option<Side>,
    /// Groups of a row.
    count: usize,
    rows: usize,
}

/// A tensor beside another one.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    pub(crate) file: usize,
    pub(crate) range: Range<usize>,
    dtype: DType,
}

impl Groups {
    /// Takes scales and zeros of `tensor`, which is `rows` × `cols`, out of the list of tensors.
    pub(crate) fn claim(
        tensors: &mut Tensors,
        tensor: &str,
        (rows, cols): (usize, usize),
    ) -> Result<Self, CheckpointError> {
        let path = tensors.path.clone();
        let Some(packing) = tensors.scaling.and_then(|scaling| scaling.packing) else {
            let problem = format!("is missing, tensor {tensor} is packed");
            return Err(CheckpointError::Config { path, key: KEY.to_owned(), problem });
        };
        let count = packing.group.map_or(1, |group| cols.div_ceil(group));
        let base = tensor.trim_end_matches(".weight");
        let (names, scales, zeros) = match packing.awq {
            true => (["scales", "qzeros"], vec![count, rows], vec![count, rows / CODES]),
            false => {
                let names = ["weight_scale", "weight_zero_point"];
                (names, vec![rows, count], vec![rows.div_ceil(CODES), count])
            }
        };
        let [scales_name, zeros_name] = names.map(|name| format!("{base}.{name}"));
        let mut side = |name: &str, shape: Vec<usize>, is_words| {
            let stored = tensors.by_name.remove(name);
            let stored = stored.ok_or_else(|| CheckpointError::MissingScales {
                path: path.clone(),
                tensor: tensor.to_owned(),
                first: name.to_owned(),
                second: zeros_name.clone(),
            })?;
            Side::new(&path, name, stored, shape, is_words)
        };
        let scales = side(&scales_name, scales, false)?;
        let zeros = packing.has_zeros.then(|| side(&zeros_name, zeros, true)).transpose()?;
        Ok(Self { packing, scales, zeros, count, rows })
    }

    /// The tensors beside it.
    pub(crate) fn sides(&self) -> impl Iterator<Item = &Side> {
        [Some(&self.scales), self.zeros.as_ref()].into_iter().flatten()
    }

    /// The codes of a row, and for each group of 128 its scale and zero. `stored`: the packed
    /// tensor; `scales` and `zeros`: those beside it.
    pub(crate) fn row(
        &self,
        row: usize,
        (stored, scales, zeros): (&[u8], &[u8], &[u8]),
        mut group_is: impl FnMut(f32, u8, &[u8]),
    ) {
        let Self { packing, count, rows, .. } = *self;
        let cols = stored.len() * 2 / rows;
        let at = |row: usize, col: usize, width: usize| row * width + col;
        let (word, place) = match packing.awq {
            true => (row / CODES, AWQ_PLACES[row % CODES]),
            false => (0, 0),
        };
        let code = |col: usize| match packing.awq {
            true => nibble(stored, at(col, word, rows / CODES), place),
            false => nibble(stored, at(row, col / CODES, cols / CODES), col % CODES),
        };
        let mut codes = [0; ZERO_GROUP];
        for first in (0..cols).step_by(ZERO_GROUP) {
            let group = packing.group.map_or(0, |group| first / group);
            let scale = match packing.awq {
                true => self.scales.float(scales, at(group, row, rows)),
                false => self.scales.float(scales, at(row, group, count)),
            };
            let zero = match (&self.zeros, packing.awq) {
                (None, _) => 8,
                (Some(_), true) => nibble(zeros, at(group, word, rows / CODES), place),
                (Some(_), false) => nibble(zeros, at(row / CODES, group, count), row % CODES),
            };
            let codes = &mut codes[..ZERO_GROUP.min(cols - first)];
            for (i, out) in codes.iter_mut().enumerate() {
                *out = code(first + i);
            }
            group_is(scale, zero, codes);
        }
    }
}

/// A code of a word.
fn nibble(words: &[u8], word: usize, place: usize) -> u8 {
    words[4 * word + place / 2] >> (place % 2 * 4) & 15
}

impl Side {
    fn new(
        path: &Path,
        name: &str,
        stored: Stored,
        expected: Vec<usize>,
        is_words: bool,
    ) -> Result<Self, CheckpointError> {
        let Stored { file, start, len, dtype, shape } = stored;
        if shape != expected {
            let (path, tensor) = (path.to_owned(), name.to_owned());
            return Err(CheckpointError::WrongShape { path, tensor, found: shape, expected });
        }
        let (found, readable) = match (dtype, is_words) {
            (Ok(dtype @ (DType::F16 | DType::BF16)), false) => {
                return Ok(Self { file, range: start..start + len, dtype });
            }
            (Err(words), true) if words == "I32" => {
                return Ok(Self { file, range: start..start + len, dtype: DType::I4 });
            }
            (Ok(dtype), true) => (dtype.to_string(), "zeros are readable in I32"),
            (Err(dtype), true) => (dtype, "zeros are readable in I32"),
            (Ok(dtype), false) => (dtype.to_string(), "scales are readable in F16 and BF16"),
            (Err(dtype), false) => (dtype, "scales are readable in F16 and BF16"),
        };
        let problem = format!("tensor {name} is stored as {found}, {readable}");
        Err(CheckpointError::Malformed { path: path.to_owned(), problem })
    }

    fn float(&self, bytes: &[u8], at: usize) -> f32 {
        let two = [bytes[2 * at], bytes[2 * at + 1]];
        match self.dtype {
            DType::F16 => f16::from_le_bytes(two).to_f32(),
            _ => bf16::from_le_bytes(two).to_f32(),
        }
    }
}

/// A group as it is handed over: `d: f32`, the zero in its last byte, and codes two by two: the low
/// ones of each 32 values first.
pub(crate) fn write_group(scale: f32, zero: u8, codes: &[u8], out: &mut [u8]) {
    // Halves have no digits there.
    let word = scale.to_bits() & !0xff | u32::from(zero);
    out[..4].copy_from_slice(&word.to_le_bytes());
    out[4..].fill(0);
    for (codes, out) in codes.chunks(32).zip(out[4..].chunks_exact_mut(16)) {
        for (i, code) in codes.iter().enumerate() {
            out[i % 16] |= code << (i / 16 * 4);
        }
    }
}
