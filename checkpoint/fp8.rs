//! Weights in e4m3 with factors beside them, as Hugging Face directories have them: how the
//! configuration says it, where the factors are, and what becomes of a row.
//!
//! Only weights are taken from there: activations are computed in f32, which is finer than what
//! `activation_scheme` and `input_activations` ask for.

use std::path::Path;

use half::{bf16, f16};
use serde_json::Value;

use crate::config::{MAX_WIDTH, Refused};
use crate::dtype::{DType, FP8_GROUP};
use crate::error::CheckpointError;
use crate::packed::Packing;
use crate::tensors::{Stored, Tensors};

pub(crate) const KEY: &str = "quantization_config";

/// Which values of a tensor share a factor, as the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scaling {
    /// Rows and columns of a block. `None`: each row has a factor, or the whole tensor one.
    block: Option<(usize, usize)>,
    /// Of integers, which have groups in its stead.
    pub(crate) packing: Option<Packing>,
}

impl Scaling {
    /// As what weights are stored.
    pub(crate) fn stored(self) -> DType {
        if self.packing.is_some() { DType::I4 } else { DType::F8_E4M3 }
    }
}

/// Reads `quantization_config` of a config.json; `None` where there is none.
pub(crate) fn scaling(fields: &Value) -> Result<Option<Scaling>, Refused> {
    let quantization = &fields[KEY];
    if quantization.is_null() {
        return Ok(None);
    }
    let packed = |packing| Ok(Some(Scaling { block: None, packing: Some(packing) }));
    let block = match quantization["quant_method"].as_str() {
        Some("awq") => return packed(Packing::awq(quantization)?),
        Some("fp8") => {
            expect(quantization, "fmt", &["e4m3"])?;
            block_size(quantization, "weight_block_size")?
        }
        Some("compressed-tensors") => {
            let formats = ["float-quantized", "naive-quantized", "pack-quantized"];
            expect(quantization, "format", &formats)?;
            let groups = quantization["config_groups"].as_object();
            if quantization["format"] == "pack-quantized" {
                let groups = groups.into_iter().flat_map(|groups| groups.values());
                let mut ways = Vec::new();
                for group in groups {
                    ways.push(Packing::compressed(&group["weights"])?);
                }
                return match ways.split_first() {
                    None => Err(refused(
                        "has no config_groups, which say how weights are packed".to_owned(),
                    )),
                    Some((way, others)) if others.iter().all(|it| it == way) => packed(*way),
                    _ => Err(refused(format!(
                        "packs weights in {} ways, supported is one for all",
                        ways.len()
                    ))),
                };
            }
            let mut block = None;
            for group in groups.into_iter().flat_map(|groups| groups.values()) {
                let weights = &group["weights"];
                expect(weights, "type", &["float"])?;
                expect(weights, "strategy", &["channel", "tensor", "block"])?;
                if weights["num_bits"] != 8 {
                    let found = &weights["num_bits"];
                    return Err(refused(format!(
                        "asks for {found} bits a weight, supported are 8"
                    )));
                }
                block = block.or(block_size(weights, "block_structure")?);
            }
            block
        }
        _ => {
            let found = &quantization["quant_method"];
            return Err(refused(format!(
                "asks for {found}, supported are \"fp8\", \"awq\", \"compressed-tensors\" in fp8 \
                 or packed integers of 4 bits, plain floats and GGUF files"
            )));
        }
    };
    Ok(Some(Scaling { block, packing: None }))
}

pub(crate) fn refused(problem: String) -> Refused {
    Refused::new(KEY, problem)
}

/// The field is absent or one of these.
pub(crate) fn expect(fields: &Value, key: &str, supported: &[&str]) -> Result<(), Refused> {
    let found = &fields[key];
    if found.is_null() || supported.iter().any(|name| found == name) {
        return Ok(());
    }
    let supported = supported.join("\", \"");
    Err(refused(format!("has a {key} of {found}, supported are \"{supported}\"")))
}

fn block_size(fields: &Value, key: &str) -> Result<Option<(usize, usize)>, Refused> {
    let side = |value: &Value| {
        let side = value.as_u64().and_then(|side| usize::try_from(side).ok());
        side.filter(|side| (1..=MAX_WIDTH).contains(side))
    };
    let found = &fields[key];
    match found.as_array().map(Vec::as_slice) {
        None if found.is_null() => Ok(None),
        Some([rows, cols]) => match (side(rows), side(cols)) {
            (Some(rows), Some(cols)) if cols.is_multiple_of(FP8_GROUP) => Ok(Some((rows, cols))),
            _ => Err(refused(format!(
                "has a {key} of {found}, its columns must be a multiple of {FP8_GROUP}"
            ))),
        },
        _ => Err(refused(format!("has a {key} of {found}, it must be rows and columns"))),
    }
}

/// What a directory may hold beside e4m3 weights for activations or a cache that are rounded too;
/// here they aren't.
pub(crate) fn is_of_activations(tensor: &str) -> bool {
    [".input_scale", ".output_scale", ".k_scale", ".v_scale"]
        .iter()
        .any(|suffix| tensor.ends_with(suffix))
}

/// The factors of a tensor: what its values are multiplied with.
#[derive(Clone, Debug)]
pub(crate) struct Scales {
    pub(crate) name: String,
    pub(crate) file: usize,
    pub(crate) start: usize,
    pub(crate) len: usize,
    dtype: DType,
    /// Rows and columns that share a factor.
    pub(crate) block: (usize, usize),
    /// Factors of one row.
    row_len: usize,
}

impl Scales {
    /// Takes the factors of `tensor`, which is `rows` × `cols`, out of the list of tensors.
    pub(crate) fn claim(
        tensors: &mut Tensors,
        tensor: &str,
        (rows, cols): (usize, usize),
    ) -> Result<Self, CheckpointError> {
        let path = tensors.path.clone();
        let Some(Scaling { block, .. }) = tensors.scaling else {
            let problem = format!("is missing, tensor {tensor} is stored as F8_E4M3");
            return Err(CheckpointError::Config { path, key: KEY.to_owned(), problem });
        };
        // Both are factors, whatever the first is called.
        let names = ["_scale_inv", "_scale"].map(|suffix| format!("{tensor}{suffix}"));
        let found =
            names.iter().find_map(|name| Some((name.clone(), tensors.by_name.remove(name)?)));
        let Some((name, stored)) = found else {
            let [first, second] = names;
            return Err(CheckpointError::MissingScales {
                path,
                tensor: tensor.to_owned(),
                first,
                second,
            });
        };
        let blocks = block.map(|(r, c)| [rows.div_ceil(r), cols.div_ceil(c)]);
        let block = match stored.shape[..] {
            _ if blocks.is_some_and(|blocks| stored.shape == blocks) => block,
            [] | [1] | [1, 1] => Some((rows, cols)),
            [n] | [n, 1] if n == rows => Some((1, cols)),
            _ => None,
        };
        let Some(block) = block else {
            return Err(CheckpointError::WrongShape {
                path,
                tensor: name,
                found: stored.shape,
                expected: blocks.unwrap_or([rows, 1]).to_vec(),
            });
        };
        Self::new(&path, name, stored, block, cols.div_ceil(block.1))
    }

    fn new(
        path: &Path,
        name: String,
        stored: Stored,
        block: (usize, usize),
        row_len: usize,
    ) -> Result<Self, CheckpointError> {
        let Stored { file, start, len, dtype, .. } = stored;
        let found = match dtype {
            Ok(dtype @ (DType::F32 | DType::F16 | DType::BF16)) => {
                return Ok(Self { name, file, start, len, dtype, block, row_len });
            }
            Ok(other) => other.to_string(),
            Err(other) => other,
        };
        Err(CheckpointError::Malformed {
            path: path.to_owned(),
            problem: format!(
                "tensor {name} is stored as {found}, factors are readable in F32, F16 and BF16"
            ),
        })
    }

    /// Where the factor of a weight is.
    pub(crate) fn index(&self, row: usize, col: usize) -> [usize; 2] {
        [row / self.block.0, (col / self.block.1).min(self.row_len - 1)]
    }

    /// The factors of the groups of 128 of a row. `bytes`: all factors, as stored.
    pub(crate) fn of_row<'b>(
        &'b self,
        bytes: &'b [u8],
        row: usize,
    ) -> impl Iterator<Item = f32> + 'b {
        (0..).step_by(FP8_GROUP).map(move |col: usize| {
            let [row, col] = self.index(row, col);
            let at = row * self.row_len + col;
            match self.dtype {
                DType::F32 => f32::from_le_bytes(four(bytes, 4 * at)),
                DType::F16 => f16::from_le_bytes(two(bytes, 2 * at)).to_f32(),
                _ => bf16::from_le_bytes(two(bytes, 2 * at)).to_f32(),
            }
        })
    }
}

fn two(bytes: &[u8], at: usize) -> [u8; 2] {
    [bytes[at], bytes[at + 1]]
}

fn four(bytes: &[u8], at: usize) -> [u8; 4] {
    [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]
}

/// Whether a factor can be multiplied with: every code times it is finite, and so is the factor
/// times 256, with which kernels begin.
pub(crate) fn is_factor(factor: f32) -> bool {
    factor.abs() <= 2f32.powi(119)
}

/// A row as it is handed over: groups of `d: f32, q: [u8; 128]`, the last one filled with zeros.
pub(crate) fn write_row(codes: &[u8], factors: impl Iterator<Item = f32>, out: &mut [u8]) {
    let groups = codes.chunks(FP8_GROUP).zip(out.chunks_exact_mut(4 + FP8_GROUP));
    for ((codes, out), factor) in groups.zip(factors) {
        let (scale, rest) = out.split_at_mut(4);
        scale.copy_from_slice(&factor.to_le_bytes());
        rest.fill(0);
        rest[..codes.len()].copy_from_slice(codes);
    }
}
