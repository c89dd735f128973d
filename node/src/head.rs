//! The end of the model: final norm, LM head, sampler, over the rows whose logits are wanted.

use checkpoint::{Checkpoint, Matrix, Vector};
use protocol::{Batch, SliceOutput};
use shaders::error::GpuError;
use shaders::gather_rows::BoundGatherRows;
use shaders::gpu::Gpu;
use shaders::inputs::{Inputs, StepInputs};
use shaders::kernel::Pass;
use shaders::matmul::{BoundMatmul, Output};
use shaders::rms_norm::BoundRmsNorm;
use shaders::sampler::Sampler;
use shaders::tensor::Tensor;
use shaders::weights::WeightMatrix;

use crate::error::StageError;
use crate::model::{Kernels, Scratch, upload};
use crate::rows::Rows;

/// Rows of logits that are computed at once: with a vocabulary of 152k, 20 MB.
pub const MAX_ROWS: usize = 32;

/// The head of a stage that samples.
pub struct Head {
    gather: BoundGatherRows,
    norm: BoundRmsNorm,
    lm_head: BoundMatmul,
    sampler: Sampler,
    logits: Tensor,
}

impl Head {
    /// Loads the head. `embedding` is the stage's own table, where embedding and head are one and
    /// the stage holds it already.
    ///
    /// # Errors
    /// When the files don't hold it, or the adapter has no room.
    pub fn load(
        gpu: &Gpu,
        kernels: &Kernels,
        files: &Checkpoint,
        (inputs, scratch): (&Inputs, &Scratch),
        max_logprobs: u32,
        embedding: Option<&WeightMatrix>,
        loaded: &mut dyn FnMut(u64),
    ) -> Result<Self, StageError> {
        let model = files.config();
        let own;
        let weights = match embedding.filter(|_| model.tie_word_embeddings) {
            Some(embedding) => embedding,
            None => {
                own = upload(gpu, files, Matrix::LmHead, loaded)?;
                &own
            }
        };
        let rows = gpu.alloc_f32(MAX_ROWS * model.hidden_size)?;
        let normed = gpu.alloc_vec4s(MAX_ROWS * model.hidden_size)?;
        let logits = gpu.alloc_f32(MAX_ROWS * model.vocab_size)?;
        let weight = gpu.upload(&files.vector(Vector::FinalNorm)?)?;
        let max_logprobs = max_logprobs.min(model.vocab_size as u32) as usize;
        Ok(Self {
            gather: BoundGatherRows::new(gpu, model.hidden_size, inputs, &scratch.hidden, &rows)?,
            norm: kernels.rms_norm.bind(gpu, model.rms_norm_eps, &rows, &weight, &normed)?,
            lm_head: kernels.matmul.bind(gpu, &normed, weights, None, (&logits, Output::Store))?,
            sampler: Sampler::new(gpu, &logits, model.vocab_size, MAX_ROWS, max_logprobs)?,
            logits,
        })
    }

    /// Completes the pass of a step: the rows that are wanted, as many at a time as there is room
    /// for, the first ones in the same submission as the layers.
    ///
    /// # Errors
    /// When the device fails.
    pub fn finish(
        &mut self,
        gpu: &Gpu,
        pass: &mut Pass,
        (inputs, step): (&mut Inputs, &mut StepInputs),
        (batch, rows): (&Batch, &Rows),
    ) -> Result<Vec<SliceOutput>, StageError> {
        let mut results = Vec::with_capacity(rows.rows.len());
        let groups = rows.rows.chunks(MAX_ROWS).zip(rows.indexes.chunks(MAX_ROWS));
        for (number, (rows, indexes)) in groups.enumerate() {
            if number > 0 {
                pass.clear();
            }
            step.output_rows.clear();
            step.output_rows.extend_from_slice(indexes);
            let shape = inputs.write(gpu, step)?;
            self.gather.record(pass, shape);
            self.norm.record(pass, indexes.len());
            self.lm_head.record(pass, indexes.len());
            results.extend(self.sampler.run(gpu, pass, rows)?);
        }
        Ok(rows.outputs(batch, results))
    }

    /// The logits of the rows computed last, [rows, vocab_size]; for tests.
    ///
    /// # Errors
    /// When the device fails.
    pub fn logits(&self, gpu: &Gpu) -> Result<Vec<f32>, GpuError> {
        gpu.read_f32(&self.logits)
    }
}
