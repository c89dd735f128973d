//! Weights on their way from files to the adapter.

use checkpoint::{Checkpoint, Matrix, Part, Vector, Weight};
use shaders::gpu::Gpu;
use shaders::tensor::Tensor;
use shaders::weights::{Format, RowOrder, WeightMatrix};

use crate::error::StageError;

pub(super) struct Loader<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) files: &'a Checkpoint,
    pub(super) layer: usize,
    /// Hears of every matrix's bytes.
    pub(super) loaded: &'a mut dyn FnMut(u64),
}

impl Loader<'_> {
    pub(super) fn matrix(
        &mut self,
        matrix: fn(usize) -> Matrix,
    ) -> Result<WeightMatrix, StageError> {
        upload(self.gpu, self.files, matrix(self.layer), self.loaded)
    }

    pub(super) fn vector(&self, vector: fn(usize) -> Vector) -> Result<Tensor, StageError> {
        Ok(self.gpu.upload_vec4s(&self.files.vector(vector(self.layer))?)?)
    }

    /// Vectors one after another, for kernels that take value by value.
    pub(super) fn values(&self, vectors: &[fn(usize) -> Vector]) -> Result<Tensor, StageError> {
        let mut values = Vec::new();
        for vector in vectors {
            let vector = vector(self.layer);
            assert!(is_taken_by_value(vector), "{vector:?} is counted as it is loaded");
            values.extend(self.files.vector(vector)?);
        }
        Ok(self.gpu.upload(&values)?)
    }

    pub(super) fn vector_if(
        &self,
        is_there: bool,
        vector: fn(usize) -> Vector,
    ) -> Result<Option<Tensor>, StageError> {
        is_there.then(|| self.vector(vector)).transpose()
    }
}

/// Copies a matrix to the adapter, in the type in which the files hand it over.
///
/// # Errors
/// When the files don't hold it, or the adapter has no room.
pub(crate) fn upload(
    gpu: &Gpu,
    files: &Checkpoint,
    matrix: Matrix,
    loaded: &mut dyn FnMut(u64),
) -> Result<WeightMatrix, StageError> {
    let mut parts = Vec::new();
    for view in files.matrix(matrix)?.parts() {
        let (stack, shape) = (view.stack(), (view.rows() / view.stack(), view.cols()));
        let format = (on_device(view.format()), order(matrix));
        parts.push(WeightMatrix::upload_stack(gpu, stack, shape, format, |rows, bytes| {
            view.read_rows(rows, bytes)?;
            loaded(bytes.len() as u64);
            Ok::<_, StageError>(())
        })?);
    }
    Ok(WeightMatrix::stacked(parts))
}

/// Whether kernels take a vector value by value, and not four at a time.
fn is_taken_by_value(vector: Vector) -> bool {
    match vector {
        Vector::QueryNorm(_)
        | Vector::KeyNorm(_)
        | Vector::LatentNorm(_)
        | Vector::IndexNorm(_)
        | Vector::IndexBias(_)
        | Vector::RouterBias(_) => true,
        Vector::FinalNorm
        | Vector::InputNorm(_)
        | Vector::PostAttentionNorm(_)
        | Vector::PostSelfAttnNorm(_)
        | Vector::PostMlpNorm(_)
        | Vector::QkvBias(_)
        | Vector::QueryLatentNorm(_) => false,
    }
}

/// Bytes of a vector of so many values on the adapter.
pub(crate) fn vector_bytes(gpu: &Gpu, vector: Vector, len: usize) -> u64 {
    if is_taken_by_value(vector) {
        return (len.next_multiple_of(4) * 4) as u64;
    }
    gpu.vec4s_bytes(len)
}

/// Gate and up are computed together.
fn order(matrix: Matrix) -> RowOrder {
    match matrix {
        Matrix::GateUp(_) | Matrix::ExpertsGateUp(_) | Matrix::SharedGateUp(_) => RowOrder::Paired,
        Matrix::Embedding
        | Matrix::LmHead
        | Matrix::Qkv(_)
        | Matrix::Output(_)
        | Matrix::Down(_)
        | Matrix::QueryDown(_)
        | Matrix::QueryUp(_)
        | Matrix::LatentDown(_)
        | Matrix::LatentKeys(_)
        | Matrix::LatentValues(_)
        | Matrix::IndexQueries(_)
        | Matrix::IndexKeys(_)
        | Matrix::IndexWeights(_)
        | Matrix::Router(_)
        | Matrix::ExpertsDown(_)
        | Matrix::SharedDown(_) => RowOrder::Plain,
    }
}

/// The format on the device of weights that the files hand over in `format`.
pub(crate) fn on_device(format: checkpoint::Format) -> Format {
    match format {
        checkpoint::Format::F32 => Format::F32,
        checkpoint::Format::F16 => Format::F16,
        checkpoint::Format::BF16 => Format::Bf16,
        checkpoint::Format::Int8 => Format::Int8,
        checkpoint::Format::Int4 => Format::Int4,
        checkpoint::Format::Fp8 => Format::Fp8,
        checkpoint::Format::Int4Zero => Format::Int4Zero,
        checkpoint::Format::Int5 => Format::Int5,
        checkpoint::Format::Q4K => Format::Q4K,
        checkpoint::Format::Q5K => Format::Q5K,
        checkpoint::Format::Q6K => Format::Q6K,
        checkpoint::Format::Iq4Nl => Format::Iq4Nl,
        checkpoint::Format::Iq4Xs => Format::Iq4Xs,
        checkpoint::Format::Iq3 => Format::Iq3,
    }
}

/// The format of a model's weights, as far as they have one: that of its first product.
///
/// # Errors
/// When the files don't hold it.
pub fn format(files: &Checkpoint) -> Result<Format, StageError> {
    let first = files.part(Part::Layer(0))?.into_iter().find_map(|weight| match weight {
        Weight::Matrix(matrix) => Some(matrix),
        Weight::Vector(_) => None,
    });
    let first = files.matrix(first.expect("a layer has products"))?;
    Ok(on_device(first.parts()[0].format()))
}
