//! Positions that tokens have chosen, from one stage to the next: where a stage begins with a layer
//! that takes what the one before it has chosen.

use checkpoint::ModelConfig;
use protocol::{Batch, Side, StagePlan, Step};
use shaders::gpu::Gpu;
use shaders::kernel::Pass;
use shaders::tensor::Tensor;

use crate::error::StageError;
use crate::model::AttentionKernels;
use crate::model::index::CHOSEN;

/// What is chosen on a stage, and which ends of it pass it on.
pub(crate) struct CarriedChoice {
    chosen: Tensor,
    /// Words of a token: how many, and which.
    stride: usize,
    takes: bool,
    gives: bool,
}

impl CarriedChoice {
    /// Of a stage; nothing where its model chooses no positions.
    pub(crate) fn of(
        model: &ModelConfig,
        plan: &StagePlan,
        kernels: &AttentionKernels,
    ) -> Option<Self> {
        let (chosen, stride) = kernels.chosen(model)?;
        Some(Self {
            chosen: chosen.clone(),
            stride,
            takes: model.takes_choice(plan.layers.first as usize),
            gives: !plan.samples() && model.takes_choice(plan.layers.end as usize),
        })
    }

    /// # Errors
    /// When a step brings a choice that nobody wants, none where one is due, or one that no stage
    /// would make.
    pub(crate) fn check(&self, step: &Step) -> Result<(), StageError> {
        let bad =
            |what: &str| Err(StageError::BadBatch(format!("{what} (side tensor {CHOSEN:?})")));
        let Some(side) = &step.side else {
            return if self.takes { bad("no chosen positions, they are due") } else { Ok(()) };
        };
        if !self.takes || side.name != CHOSEN {
            return bad("a tensor beside the hidden state that no layer takes");
        }
        if side.words.len() != step.batch.num_tokens() * self.stride {
            return bad("chosen positions of more or fewer tokens than there are");
        }
        let rows = side.words.chunks_exact(self.stride).zip(positions(&step.batch));
        for (row, position) in rows {
            let count = row[0] as usize;
            let chosen = row.get(1..=count).unwrap_or_default();
            let last = chosen.last().copied();
            if last.is_none_or(|last| last > position) || !chosen.is_sorted_by(|a, b| a < b) {
                return bad("chosen positions that are none of their sequence's, ascending");
            }
        }
        Ok(())
    }

    /// Takes in what was checked, before the layers are computed.
    pub(crate) fn take(&self, gpu: &Gpu, side: &Side) {
        gpu.write(&self.chosen, 0, &side.words);
    }

    /// What goes on, after the layers were computed.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn after(&self, gpu: &Gpu, num_tokens: usize) -> Result<Option<Side>, StageError> {
        if !self.gives {
            return Ok(None);
        }
        let range = 0..num_tokens * self.stride;
        let submission = gpu.submit(&Pass::new(), Some((&self.chosen, range)))?;
        let words =
            |bytes: &[u8]| bytes.as_chunks().0.iter().copied().map(u32::from_le_bytes).collect();
        let mut words: Vec<u32> = gpu.wait(submission, words)?;
        // What lies behind a token's positions is what it was: nobody reads it.
        for row in words.chunks_exact_mut(self.stride) {
            let count = row[0] as usize;
            row.iter_mut().skip(1 + count).for_each(|word| *word = 0);
        }
        Ok(Some(Side { name: CHOSEN.to_owned(), words }))
    }

    /// Of tokens that stand for others.
    pub(crate) fn probe(&self, num_tokens: usize) -> Option<Side> {
        let mut row = vec![0; self.stride];
        row[0] = 1;
        let words = std::iter::repeat_n(row, num_tokens).flatten().collect();
        self.takes.then(|| Side { name: CHOSEN.to_owned(), words })
    }
}

/// Of the tokens of a batch.
fn positions(batch: &Batch) -> impl Iterator<Item = u32> {
    batch.slices.iter().flat_map(|slice| slice.start..slice.start + slice.num_tokens() as u32)
}
