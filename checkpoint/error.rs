//! What can be wrong with a model's files, each in one sentence.

use std::path::PathBuf;

use crate::dtype::DType;

/// Why a checkpoint can't be opened or read. The message names the file or tensor, what is wrong
/// with it and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Nothing is at this path.
    #[error("{path} does not exist, expected a model directory or a .gguf file")]
    NotFound {
        /// What was asked for.
        path: PathBuf,
    },
    /// The path is there and holds no model.
    #[error("{path} is not a model: {reason}")]
    NotAModel {
        /// What was asked for.
        path: PathBuf,
        /// What it is instead, and what was looked for.
        reason: String,
    },
    /// The operating system refused.
    #[error("{path} can't be read")]
    Io {
        /// The file.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
    /// A file is damaged, truncated or says things about itself that can't be true.
    #[error("{path}: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A field of the configuration is absent, absurd, or asks for what is not computed here.
    #[error("{path}: {key} {problem}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The field.
        key: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The model is of an architecture that is not computed here.
    #[error("{path}: architecture {name} is not supported, supported are {supported}")]
    UnsupportedArchitecture {
        /// The file.
        path: PathBuf,
        /// As the file names it.
        name: String,
        /// All that are supported from this kind of file.
        supported: String,
    },
    /// The architecture needs a tensor that no file holds.
    #[error("{path}: tensor {tensor} is missing, a model of {num_layers} layers needs it")]
    MissingTensor {
        /// The file or directory.
        path: PathBuf,
        /// The name that was looked for.
        tensor: String,
        /// As the configuration says.
        num_layers: usize,
    },
    /// A tensor that the architecture doesn't have: ignoring it would compute another function.
    #[error("{path}: tensor {tensor} does not belong to a {architecture} with this configuration")]
    UnexpectedTensor {
        /// The file or directory.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// What the model claims to be.
        architecture: String,
    },
    /// A tensor's shape contradicts the configuration.
    #[error("{path}: tensor {tensor} has shape {found:?}, the configuration asks for {expected:?}")]
    WrongShape {
        /// The file or directory.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// As stored, outermost dimension first.
        found: Vec<usize>,
        /// As the configuration asks.
        expected: Vec<usize>,
    },
    /// A tensor is stored in a form that can't be read.
    #[error("{path}: tensor {tensor} is stored as {found}, readable are {}", DType::NAMES)]
    WrongType {
        /// The file or directory.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// As the file names it.
        found: String,
    },
    /// 8-bit floats mean nothing without the factors beside them.
    #[error("{path}: tensor {tensor} is stored as F8_E4M3, neither {first} nor {second} is there")]
    MissingScales {
        /// The file or directory.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// A name of its factors that was looked for.
        first: String,
        /// The other one.
        second: String,
    },
    /// A weight is NaN or infinite, or a factor of 8-bit floats is, or is above 2^119.
    #[error(
        "{path}: tensor {tensor} holds {value:e} at {index:?}, which can't be computed with: the \
         file is damaged"
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Its name, or that of its factors.
        tensor: String,
        /// Where it is, as stored, outermost dimension first; under a scale that isn't finite, the
        /// first value of the block.
        index: Vec<usize>,
        /// Infinite, or no number.
        value: f32,
    },
    /// A quantised weight doesn't fit into the format it is handed over in.
    #[error("tensor {tensor} has a value of {value} in row {row}, f16 holds at most ±65504")]
    F16Range {
        /// Its name.
        tensor: String,
        /// Its row, as stored.
        row: usize,
        /// The value, dequantised.
        value: f32,
    },
    /// There is no tokenizer beside the weights.
    #[error("{path} is missing, it should hold the tokenizer")]
    MissingTokenizer {
        /// The file, or the GGUF file and its key.
        path: String,
    },
    /// A layer was asked for that the model doesn't have.
    #[error("layer {layer} was asked for, the model has layers 0 to {}", num_layers - 1)]
    NoSuchLayer {
        /// Asked for.
        layer: usize,
        /// At least 1.
        num_layers: usize,
    },
    /// A vector was asked for that models of this configuration don't have.
    #[error("{vector} was asked for, this {architecture} has none")]
    NoSuchVector {
        /// Asked for.
        vector: String,
        /// What the model is.
        architecture: String,
    },
    /// Rows were asked for that the matrix doesn't have, or into a buffer of another size.
    #[error(
        "rows {start}..{end} into {len} bytes were asked for, the matrix has {rows} rows of \
         {row_bytes} bytes"
    )]
    Rows {
        /// First row asked for.
        start: usize,
        /// One past the last row asked for.
        end: usize,
        /// Size of the buffer, in bytes.
        len: usize,
        /// Rows of the matrix.
        rows: usize,
        /// Bytes of one row, as handed over.
        row_bytes: usize,
    },
}
