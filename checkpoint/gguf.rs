//! The container of GGUF files: keys, tensors, data
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>), versions 2 and 3.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::dtype::DType;
use crate::error::CheckpointError;
use crate::mapped::Mapped;
use crate::tensors::Stored;

const MAGIC: &[u8; 4] = b"GGUF";

/// The largest vocabularies need about 20 MB.
const MAX_HEADER_BYTES: usize = 64 << 20;
const MAX_TENSORS: u64 = 100_000;
const MAX_KEYS: u64 = 65_536;
const MAX_DIMENSIONS: u32 = 4;
const MAX_NAME_BYTES: usize = 1024;
const MAX_DEPTH: usize = 8;

/// Everything before the data of a file.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) keys: BTreeMap<String, Value>,
    pub(crate) tensors: HashMap<String, Stored>,
}

/// A value as the file holds it. Arrays stay there until someone wants them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

/// An array whose bounds have been checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Array {
    kind: u32,
    count: usize,
    /// Of the first element, from the start of the file.
    start: usize,
}

/// Whether a file begins as these do, whatever its name.
pub(crate) fn is_one(path: &Path) -> bool {
    let mut start = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && start == *MAGIC
}

/// Maps nothing and decodes little: walks the header of a file that is mapped.
pub(crate) fn read(mapped: &Mapped) -> Result<Header, CheckpointError> {
    parse(mapped.bytes())
        .map_err(|problem| CheckpointError::Malformed { path: mapped.path.clone(), problem })
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Header, String> {
    let mut reader = Reader { bytes: &bytes[..bytes.len().min(MAX_HEADER_BYTES)], at: 0 };
    if reader.take(4)? != MAGIC {
        return Err("the file does not start with GGUF".to_owned());
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("the file is GGUF version {version}, readable are 2 and 3"));
    }
    let num_tensors = reader.count(MAX_TENSORS, "tensors")?;
    let num_keys = reader.count(MAX_KEYS, "keys")?;
    let mut keys = BTreeMap::new();
    for _ in 0..num_keys {
        let key = reader.name()?;
        let kind = reader.u32()?;
        let value = reader.value(kind).map_err(|problem| format!("key {key}: {problem}"))?;
        if keys.insert(key.clone(), value).is_some() {
            return Err(format!("key {key} appears twice"));
        }
    }
    let mut infos = Vec::new();
    for _ in 0..num_tensors {
        infos.push(Info::read(&mut reader)?);
    }
    let tensors = place(infos, data_start(&keys, reader.at)?, bytes.len())?;
    Ok(Header { keys, tensors })
}

/// Data starts at the next multiple of the alignment.
fn data_start(keys: &BTreeMap<String, Value>, header_end: usize) -> Result<DataStart, String> {
    let alignment = match keys.get("general.alignment") {
        None => 32,
        Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 16 => *n as usize,
        Some(_) => {
            return Err("general.alignment must be a power of two up to 65536".to_owned());
        }
    };
    Ok(DataStart { at: header_end.next_multiple_of(alignment), alignment: alignment as u64 })
}

struct DataStart {
    at: usize,
    alignment: u64,
}

/// A tensor as the header describes it.
struct Info {
    name: String,
    /// Outermost dimension first: the file has them the other way round.
    shape: Vec<usize>,
    dtype: Result<DType, String>,
    offset: u64,
    /// 0 for types whose size is not known.
    len: usize,
}

impl Info {
    fn read(reader: &mut Reader<'_>) -> Result<Self, String> {
        let name = reader.name()?;
        let num_dimensions = reader.u32()?;
        if num_dimensions > MAX_DIMENSIONS {
            return Err(format!(
                "tensor {name} has {num_dimensions} dimensions, it must have at most \
                 {MAX_DIMENSIONS}"
            ));
        }
        let mut shape = Vec::new();
        for _ in 0..num_dimensions {
            let dimension = reader.u64()?;
            shape.push(usize::try_from(dimension).unwrap_or(usize::MAX));
        }
        let dtype = dtype(reader.u32()?);
        let offset = reader.u64()?;
        let len = match &dtype {
            _ if is_empty(&shape) => 0,
            Err(_) => 0,
            Ok(dtype) => {
                let block = dtype.block_values();
                if !shape[0].is_multiple_of(block) {
                    return Err(format!(
                        "tensor {name} has rows of {} values, {dtype} needs a multiple of {block}",
                        shape[0]
                    ));
                }
                let blocks = shape[1..].iter().try_fold(shape[0] / block, |n, &d| n.checked_mul(d));
                let len = blocks.and_then(|blocks| blocks.checked_mul(dtype.block_bytes()));
                len.ok_or_else(|| {
                    format!("tensor {name} claims a shape of {shape:?}, which no memory holds")
                })?
            }
        };
        shape.reverse();
        Ok(Self { name, shape, dtype, offset, len })
    }
}

/// Checks that all tensors lie within the file and that none lies on another.
fn place(
    mut infos: Vec<Info>,
    data: DataStart,
    file_len: usize,
) -> Result<HashMap<String, Stored>, String> {
    // Those without data may stand where others begin.
    infos.sort_by_key(|info| (info.offset, info.len));
    let mut tensors = HashMap::with_capacity(infos.len());
    let mut free_from = data.at;
    let mut last: Option<String> = None;
    for info in infos {
        let Info { name, shape, dtype, offset, len } = info;
        if !offset.is_multiple_of(data.alignment) {
            return Err(format!(
                "tensor {name} starts at {offset}, it must be a multiple of {}",
                data.alignment
            ));
        }
        let start = usize::try_from(offset).ok().and_then(|offset| data.at.checked_add(offset));
        let end = start.and_then(|start| start.checked_add(len)).filter(|&end| end <= file_len);
        let (Some(start), Some(end)) = (start, end) else {
            return Err(format!(
                "tensor {name} has {len} bytes from {offset}, the file ends {} bytes after the \
                 start of the data: it is truncated or damaged",
                file_len.saturating_sub(data.at)
            ));
        };
        if start < free_from {
            let other = last.unwrap_or_default();
            return Err(format!("tensor {name} overlaps with tensor {other}"));
        }
        // As if it weren't there: nothing of a model is empty.
        if is_empty(&shape) {
            continue;
        }
        free_from = end;
        last = Some(name.clone());
        let stored = Stored { file: 0, dtype, shape, start, len };
        if tensors.insert(name.clone(), stored).is_some() {
            return Err(format!("tensor {name} appears twice"));
        }
    }
    Ok(tensors)
}

fn is_empty(shape: &[usize]) -> bool {
    shape.is_empty() || shape.contains(&0)
}

/// The names in `enum ggml_type`, by their numbers; none where a number was given up.
#[rustfmt::skip]
const GGML_TYPES: [&str; 42] = [
    "F32", "F16", "Q4_0", "Q4_1", "", "", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K",
    "Q5_K", "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S",
    "IQ4_XS", "I8", "I16", "I32", "I64", "F64", "IQ1_M", "BF16", "", "", "", "TQ1_0", "TQ2_0", "",
    "", "", "MXFP4", "NVFP4", "Q1_0",
];

/// The type of this number, or its name.
fn dtype(number: u32) -> Result<DType, String> {
    let name = GGML_TYPES.get(number as usize).filter(|name| !name.is_empty());
    let Some(name) = name else { return Err(format!("ggml type {number}")) };
    DType::ALL.iter().copied().find(|it| it.to_string() == *name).ok_or_else(|| (*name).to_owned())
}

impl Array {
    /// The strings of an array; `None` if it holds something else or no UTF-8.
    pub(crate) fn strings<'a>(&self, bytes: &'a [u8]) -> Option<Vec<&'a str>> {
        if self.kind != STRING {
            return None;
        }
        let mut reader = Reader { bytes, at: self.start };
        // `parse` has walked them all: there are as many as the count says.
        (0..self.count).map(|_| reader.string().ok()).collect()
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The elements of an array of integers; `None` if it holds something else.
    pub(crate) fn integers(&self, bytes: &[u8]) -> Option<Vec<i64>> {
        self.values(bytes)
            .map(|value| match value? {
                Value::Unsigned(n) => i64::try_from(n).ok(),
                Value::Signed(n) => Some(n),
                _ => None,
            })
            .collect()
    }

    /// The elements of an array of truths, or of numbers that stand for them; `None` if it holds
    /// something else.
    pub(crate) fn flags(&self, bytes: &[u8]) -> Option<Vec<bool>> {
        self.values(bytes)
            .map(|value| match value? {
                Value::Bool(flag) => Some(flag),
                Value::Unsigned(number) => Some(number != 0),
                Value::Signed(number) => Some(number != 0),
                _ => None,
            })
            .collect()
    }

    /// The elements of an array of floats; `None` if it holds something else.
    pub(crate) fn floats(&self, bytes: &[u8]) -> Option<Vec<f32>> {
        self.values(bytes)
            .map(|value| if let Value::Float(x) = value? { Some(x as f32) } else { None })
            .collect()
    }

    fn values<'a>(&self, bytes: &'a [u8]) -> impl Iterator<Item = Option<Value>> + use<'a> {
        let mut reader = Reader { bytes, at: self.start };
        let kind = self.kind;
        (0..self.count).map(move |_| reader.value(kind).ok())
    }
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Reads forward and never past the end.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let taken = self.at.checked_add(len).and_then(|end| self.bytes.get(self.at..end));
        let Some(taken) = taken else {
            return Err(format!(
                "{len} bytes are claimed at {}, the header ends at {}",
                self.at,
                self.bytes.len()
            ));
        };
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn count(&mut self, max: u64, of: &str) -> Result<u64, String> {
        let count = self.u64()?;
        if count > max {
            return Err(format!("the header claims {count} {of}, at most {max} fit"));
        }
        Ok(count)
    }

    fn string(&mut self) -> Result<&'a str, String> {
        let len = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
        let at = self.at;
        std::str::from_utf8(self.take(len)?).map_err(|_| format!("the text at {at} is no UTF-8"))
    }

    /// A key or a tensor's name: short enough for messages.
    fn name(&mut self) -> Result<String, String> {
        let name = self.string()?;
        if name.len() > MAX_NAME_BYTES {
            return Err(format!("a name has {} bytes, at most {MAX_NAME_BYTES} fit", name.len()));
        }
        Ok(name.to_owned())
    }

    fn value(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()? != [0]),
            STRING => Value::String(self.string()?.to_owned()),
            ARRAY => Value::Array(self.skip_array(0)?),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("value type {other} is unknown")),
        })
    }

    /// Walks an array, so that a wrong count shows here, and takes no memory for it.
    fn skip_array(&mut self, depth: usize) -> Result<Array, String> {
        let kind = self.u32()?;
        let count = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
        let start = self.at;
        let element_bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            STRING => {
                for _ in 0..count {
                    let len = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
                    self.take(len)?;
                }
                return Ok(Array { kind, count, start });
            }
            // Nothing of a model stands in such; they are passed over.
            ARRAY if depth < MAX_DEPTH => {
                for _ in 0..count {
                    self.skip_array(depth + 1)?;
                }
                return Ok(Array { kind, count, start });
            }
            ARRAY => return Err(format!("arrays lie more than {MAX_DEPTH} deep in each other")),
            other => return Err(format!("arrays of value type {other} are not readable")),
        };
        self.take(count.saturating_mul(element_bytes))?;
        Ok(Array { kind, count, start })
    }
}
