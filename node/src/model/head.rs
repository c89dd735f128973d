//! The end of the model: final norm, LM head, sampler, over the rows whose logits are wanted.

use std::sync::Arc;

use checkpoint::{Checkpoint, Matrix, ModelConfig, ScratchRow, Vector};
use protocol::{Batch, HiddenRow, Masks, SliceOutput, StageLimits, Step};
use shaders::error::GpuError;
use shaders::gather_rows::BoundGatherRows;
use shaders::gpu::{Gpu, Readback};
use shaders::inputs::{Inputs, StepShape};
use shaders::kernel::Pass;
use shaders::matmul::{BoundMatmul, Norm, Operand, Output};
use shaders::sampler::{SampleStep, Sampler};
use shaders::tensor::Tensor;
use shaders::weights::WeightMatrix;

use super::{Kernels, Scratch, upload};
use crate::error::StageError;
use crate::memory::sampler_limits;
use crate::rows::Rows;
use crate::sequences::Sequences;

/// Rows of logits that are computed at once: with a vocabulary of 152k, 20 MB.
pub const MAX_ROWS: usize = 32;

/// The head of a stage that samples.
pub(crate) struct Head {
    gather: BoundGatherRows,
    lm_head: BoundMatmul,
    /// The same of rows where they are.
    lm_head_in_place: BoundMatmul,
    sampler: Sampler,
    logits: Tensor,
    // Of the step that is under way; kept, so that a step allocates nothing.
    rows: Rows,
    sampled: SampleStep,
    norm: Arc<[f32]>,
    eps: f32,
}

/// The head's weights on the adapter, which no stage changes.
pub(crate) struct HeadWeights {
    norm: Tensor,
    // The same, for hidden states that are told.
    own_norm: Arc<[f32]>,
    table: WeightMatrix,
}

impl HeadWeights {
    /// Loads them. `embedding` is its table, where embedding and head are one and it is there
    /// already.
    ///
    /// # Errors
    /// When the files don't hold them, or the adapter has no room.
    pub(crate) fn load(
        gpu: &Gpu,
        files: &Checkpoint,
        embedding: Option<&WeightMatrix>,
        loaded: &mut dyn FnMut(u64),
    ) -> Result<Self, StageError> {
        let table = match embedding.filter(|_| files.config().tie_word_embeddings) {
            Some(embedding) => embedding.clone(),
            None => upload(gpu, files, Matrix::LmHead, loaded)?,
        };
        let norm = files.vector(Vector::FinalNorm)?;
        Ok(Self { norm: gpu.upload_vec4s(&norm)?, own_norm: norm.into(), table })
    }
}

impl Head {
    /// Binds the head to its weights.
    ///
    /// # Errors
    /// When the adapter has no room.
    pub(crate) fn bind(
        gpu: &Gpu,
        kernels: &Kernels,
        model: &ModelConfig,
        (inputs, scratch): (&Inputs, &Scratch),
        limits: &StageLimits,
        weights: &HeadWeights,
    ) -> Result<Self, StageError> {
        let hidden = scratch.row(ScratchRow::Hidden);
        let rows = gpu.alloc_vec4s(MAX_ROWS * model.hidden_size)?;
        let logits = gpu.alloc_f32(MAX_ROWS * model.vocab_size)?;
        let norm = Norm { weight: &weights.norm, eps: model.rms_norm_eps };
        let quantized = scratch.quantized.as_ref();
        let lm_head = |x| {
            let operand = Operand { x, norm: Some(norm), quantized };
            kernels.matmul.bind(gpu, operand, &weights.table, Output::Store(&logits))
        };
        Ok(Self {
            gather: BoundGatherRows::new(gpu, model.hidden_size, inputs, hidden, &rows)?,
            lm_head: lm_head(&rows)?,
            lm_head_in_place: lm_head(hidden)?,
            sampler: Sampler::new(gpu, sampler_limits(model, limits), &logits)?,
            logits,
            rows: Rows::default(),
            sampled: SampleStep::default(),
            norm: Arc::clone(&weights.own_norm),
            eps: model.rms_norm_eps,
        })
    }

    /// Finds the rows of a step whose logits are wanted, and returns their places in its hidden
    /// state.
    pub(crate) fn choose(&mut self, batch: &Batch, masks: &Masks, sequences: &Sequences) -> &[u32] {
        self.rows.fill(batch, sequences);
        self.rows.mask(masks);
        &self.rows.indexes
    }

    /// Takes in masks that came later.
    pub(crate) fn mask(&mut self, masks: &Masks) {
        self.rows.mask(masks);
    }

    /// Completes the pass of a step with the rows that were chosen, as many at a time as there is
    /// room for.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn record(
        &mut self,
        gpu: &Gpu,
        pass: &mut Pass,
        step: StepShape,
    ) -> Result<(), StageError> {
        self.sampler.write(gpu, self.rows.rows(), &mut self.sampled)?;
        for (group, outputs) in self.sampled.groups().enumerate() {
            let num_rows = outputs.len();
            // As when every sequence has one token: nothing is to be gathered.
            if self.rows.indexes.iter().copied().eq(0..num_rows as u32) {
                self.lm_head_in_place.record(pass, num_rows);
            } else {
                self.gather.record(pass, step, outputs);
                self.lm_head.record(pass, num_rows);
            }
            self.sampler.record(pass, &self.sampled, group);
        }
        Ok(())
    }

    /// What a step reads back, for [`outputs`](Self::outputs).
    pub(crate) fn readback(&self) -> Readback<'_> {
        self.sampler.readback(&self.sampled)
    }

    /// What was sampled, from the bytes that were read back.
    pub(crate) fn outputs(&self, batch: &Batch, bytes: &[u8]) -> Vec<SliceOutput> {
        self.rows.outputs(batch, self.sampled.results(bytes))
    }

    /// The hidden states that a step is to tell, of its tokens' rows after the last layer.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn hidden_rows(
        &self,
        gpu: &Gpu,
        step: &Step,
        hidden: &Tensor,
    ) -> Result<Vec<HiddenRow>, GpuError> {
        let Some(last) = step.tells_hidden.iter().max() else { return Ok(Vec::new()) };
        let ends: Vec<_> = step
            .batch
            .slices
            .iter()
            .scan(0, |end, slice| {
                *end += slice.num_tokens();
                Some(*end)
            })
            .collect();
        let width = self.norm.len();
        let submission =
            gpu.submit(&Pass::new(), Some((hidden, 0..ends[*last as usize] * width)))?;
        gpu.wait(submission, |bytes| {
            let (values, _) = bytes.as_chunks();
            let row = |slice: &u32| {
                let end = ends[*slice as usize] * width;
                let row = values[end - width..end].iter().map(|it| f32::from_le_bytes(*it));
                HiddenRow { slice: *slice, values: self.normed(&row.collect::<Vec<_>>()) }
            };
            step.tells_hidden.iter().map(row).collect()
        })
    }

    /// As the head's kernel has it, but added in one order: a row's bits are its own.
    fn normed(&self, row: &[f32]) -> Vec<f32> {
        let sum: f64 = row.iter().map(|it| f64::from(*it) * f64::from(*it)).sum();
        let scale = 1.0 / (sum / row.len() as f64 + f64::from(self.eps)).sqrt();
        let norm =
            |(value, weight): (&f32, &f32)| (f64::from(*value) * scale * f64::from(*weight)) as f32;
        row.iter().zip(&*self.norm).map(norm).collect()
    }

    /// The logits of the rows computed last, [rows, vocab_size]; for tests.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn logits(&self, gpu: &Gpu) -> Result<Vec<f32>, GpuError> {
        gpu.read_f32(&self.logits)
    }
}
