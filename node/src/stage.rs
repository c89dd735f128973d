//! A stage: consecutive layers with their part of the KV cache, and, at the ends of the model, the
//! embedding and the head.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use checkpoint::{Checkpoint, ScratchRow};
use protocol::message::Loading;
use protocol::{
    BLOCK_TOKENS, Batch, Digest, Hidden, HiddenRow, Input, LayerRange, Masks, Side, SliceOutput,
    StagePlan, Step,
};
use shaders::ahead::Ahead;
use shaders::attention::Attention;
use shaders::embed::BoundEmbed;
use shaders::gpu::Gpu;
use shaders::inputs::{Inputs, StepInputs};
use shaders::kernel::Pass;

use crate::choice::CarriedChoice;
use crate::error::StageError;
use crate::kept::{KeptWeights, PartWeights};
use crate::memory::{cache_bytes, input_limits, num_blocks, stage_bytes};
use crate::model::head::Head;
use crate::model::{AttentionKernels, Kernels, Layer, LayerCache, Scratch, Shared, kv_format};
use crate::sequences::Sequences;

/// How long masks are waited for with the adapter in hand: mostly they are there before the layers
/// are computed.
const MASKS_PATIENCE: Duration = Duration::from_millis(1);

/// What a loaded stage holds.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its layers.
    pub layers: LayerRange,
    /// Values of a token's row that goes on to the next stage.
    pub row_values: u32,
    /// Blocks of its KV cache.
    pub num_blocks: u32,
    /// Bytes on the adapter.
    pub memory_bytes: u64,
    /// The device class.
    pub fingerprint: Digest,
}

/// What a step brings.
#[derive(Debug)]
pub enum StepOutput {
    /// The hidden state for the next stage, [num_tokens, row_values], and what that needs beside
    /// it.
    Hidden(Hidden, Option<Side>),
    /// What the last stage sampled, and hidden states that it was to tell.
    Sampled(Vec<SliceOutput>, Vec<HiddenRow>),
}

/// Where the time of a step went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTimes {
    /// Taking in the batch, and writing it and the hidden state into the device's buffers.
    pub upload: Duration,
    /// Handing over commands, and waiting until the device is done with them and its copies.
    pub compute: Duration,
    /// Making values of the bytes that the device left in host memory.
    pub readback: Duration,
}

/// A loaded stage.
pub struct Stage {
    held: Held,
    // In use as long as the stage is there.
    _weights: Vec<Arc<PartWeights>>,
    sequences: Sequences,
    inputs: Inputs,
    scratch: Scratch,
    embed: Option<BoundEmbed>,
    layers: Vec<Layer>,
    head: Option<Head>,
    choice: Option<CarriedChoice>,
    // Kept between steps, so that they allocate nothing.
    pass: Pass,
    step: StepInputs,
    ahead: Ahead,
    times: StepTimes,
}

impl Stage {
    /// Loads what the plan asks for, after comparing the files with what the coordinator has.
    /// `progress` hears how far it has come.
    ///
    /// # Errors
    /// When the files or the adapter don't allow it.
    pub fn load(
        gpu: &Gpu,
        kernels: &Kernels,
        files: &Checkpoint,
        plan: &StagePlan,
        progress: &mut dyn FnMut(Loading),
    ) -> Result<Self, StageError> {
        let mut kept = KeptWeights::new();
        let mut wanted = |loading| {
            progress(loading);
            true
        };
        Self::load_missing(gpu, kernels, files, plan, (&mut kept, u64::MAX), &mut wanted)
    }

    /// Loads what the plan asks for and isn't `kept` already, and keeps it. Of what else is kept no
    /// more stays than fits into `memory_bytes` beside the stage. `progress` says whether anybody
    /// still waits for it.
    ///
    /// # Errors
    /// When the files or the adapter don't allow it, or nobody waits any more.
    pub(crate) fn load_missing(
        gpu: &Gpu,
        kernels: &Kernels,
        files: &Checkpoint,
        plan: &StagePlan,
        (kept, memory_bytes): (&mut KeptWeights, u64),
        progress: &mut dyn FnMut(Loading) -> bool,
    ) -> Result<Self, StageError> {
        let (num_blocks, stage_bytes) = Self::extent(gpu, files, plan)?;
        let (model, limits) = (files.config(), &plan.limits);
        let (first, end) = (plan.layers.first as usize, plan.layers.end as usize);
        let max_tokens = limits.max_batched_tokens as usize;
        let kv = kv_format(plan.kv_cache_dtype);
        let weights =
            kept.load(gpu, files, plan, memory_bytes.saturating_sub(stage_bytes), progress)?;
        let total = weights.num_bytes;
        let mut so_far = Loading {
            checked_bytes: total,
            loaded_bytes: total,
            total_bytes: total,
            ..Loading::default()
        };
        let inputs = Inputs::new(gpu, input_limits(model, limits, num_blocks))?;
        let scratch = Scratch::new(gpu, model, max_tokens)?;
        let attention =
            AttentionKernels::new(gpu, model, kv, (max_tokens, limits.max_model_len as usize))?;
        let (mut embed, mut layers, mut head) = (None, Vec::with_capacity(end - first), None);
        let shared = Shared {
            gpu,
            kernels,
            model,
            inputs: &inputs,
            attention: &attention,
            scratch: &scratch,
        };
        let mut specs = model.layers[first..end].iter();
        for part in &weights.parts {
            match &**part {
                PartWeights::Embedding(table) => {
                    embed = Some(BoundEmbed::new(
                        gpu,
                        &inputs,
                        table,
                        scratch.row(ScratchRow::Hidden),
                    )?);
                }
                PartWeights::Layer(weights) => {
                    let spec = specs.next().expect("the parts of a plan are its layers");
                    let cache = LayerCache::new(gpu, &spec.attention, kv, num_blocks as usize)?;
                    layers.push(Layer::bind(&shared, weights, &cache)?);
                }
                PartWeights::Head(weights) => {
                    let shared = (&inputs, &scratch);
                    head = Some(Head::bind(gpu, kernels, model, shared, limits, weights)?);
                }
            }
        }
        let mut compiled = |num_compiled: usize, num_kernels: usize| {
            so_far.num_compiled = num_compiled as u32;
            so_far.num_kernels = num_kernels as u32;
            progress(so_far);
        };
        // All that were bound so far, before one is run.
        let fingerprint = kernels.class_of_model(gpu, files, kv, &mut compiled)?;
        let held = Held {
            layers: plan.layers,
            row_values: model.row_values() as u32,
            num_blocks,
            memory_bytes: stage_bytes,
            fingerprint,
        };
        let sequences = Sequences::new(*limits, num_blocks, model.vocab_size as u32);
        let mut stage = Self {
            held,
            _weights: weights.parts,
            sequences,
            inputs,
            scratch,
            embed,
            layers,
            head,
            choice: CarriedChoice::of(model, plan, &attention),
            pass: Pass::new(),
            step: StepInputs::default(),
            ahead: Ahead::new(),
            times: StepTimes::default(),
        };
        stage.warm_up(gpu, kernels)?;
        Ok(stage)
    }

    /// Loads one part of what the plan asks for, and keeps it: the rest isn't there yet.
    ///
    /// # Errors
    /// As [`load_missing`](Self::load_missing).
    pub(crate) fn bring(
        gpu: &Gpu,
        files: &Checkpoint,
        plan: &StagePlan,
        part: usize,
        (kept, memory_bytes): (&mut KeptWeights, u64),
    ) -> Result<(), StageError> {
        let (_, stage_bytes) = Self::extent(gpu, files, plan)?;
        kept.bring(gpu, files, plan, (part, memory_bytes.saturating_sub(stage_bytes)))
    }

    /// Blocks of its KV cache, and the bytes that it takes with them.
    fn extent(gpu: &Gpu, files: &Checkpoint, plan: &StagePlan) -> Result<(u32, u64), StageError> {
        let model = files.config();
        let (first, end) = (plan.layers.first as usize, plan.layers.end as usize);
        if first > end || end > model.num_layers() {
            return Err(StageError::BadPlan(format!(
                "layers {} of {}",
                plan.layers,
                model.num_layers()
            )));
        }
        let other_bytes = stage_bytes(gpu, files, plan)?;
        let num_blocks = num_blocks(gpu, model, plan, other_bytes)?;
        Ok((num_blocks, other_bytes + cache_bytes(gpu, model, plan, num_blocks)))
    }

    /// What it holds.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// Where the time of the last step that succeeded went.
    pub fn times(&self) -> StepTimes {
        self.times
    }

    /// Computes a step.
    ///
    /// # Errors
    /// When the batch is wrong, and nothing of it is taken in; or when the device fails.
    pub fn step(&mut self, gpu: &Gpu, step: &Step) -> Result<StepOutput, StageError> {
        self.masked_step(gpu, step, None)
    }

    /// The same, where the head's masks are yet to come: all layers are under way when they are
    /// waited for. Where they take longer, others have their turns on the adapter meanwhile.
    ///
    /// # Errors
    /// As [`step`](Self::step), and when no masks come.
    pub(crate) fn masked_step(
        &mut self,
        gpu: &Gpu,
        step: &Step,
        awaited: Option<Receiver<Masks>>,
    ) -> Result<StepOutput, StageError> {
        let start = Instant::now();
        let Step { batch, hidden, masks, .. } = step;
        let num_values = match self.embed {
            Some(_) => 0,
            None => batch.num_tokens() * self.held.row_values as usize,
        };
        if hidden.len() != num_values {
            let found = hidden.len();
            return Err(StageError::BadBatch(format!("{found} values, {num_values} are due")));
        }
        if !hidden.values().all(f32::is_finite) {
            return Err(StageError::NotFinite);
        }
        if let Some(choice) = &self.choice {
            choice.check(step)?;
        }
        if self.head.is_some() {
            self.sequences.check_masks(batch, masks)?;
            let num_slices = batch.slices.len();
            if let Some(slice) = step.tells_hidden.iter().find(|it| **it as usize >= num_slices) {
                let what = format!("the hidden state of slice {slice}, of {num_slices}");
                return Err(StageError::BadBatch(what));
            }
        }
        self.sequences.apply(batch)?;
        fill(&mut self.step, batch, &self.sequences);
        if let Some(head) = &mut self.head {
            self.step.output_rows.extend_from_slice(head.choose(batch, masks, &self.sequences));
        }
        let shape = self.inputs.write(gpu, &self.step)?;
        self.pass.clear();
        match &self.embed {
            Some(embed) => embed.record(&mut self.pass, shape),
            None => gpu.write(self.scratch.row(ScratchRow::Hidden), 0, hidden.bytes()),
        }
        if let Some((choice, side)) = self.choice.as_ref().zip(step.side.as_ref()) {
            choice.take(gpu, side);
        }
        for layer in &self.layers {
            layer.record(&mut self.pass, shape);
        }
        let uploaded = Instant::now();
        let mut turn = None;
        let is_decode = batch.slices.iter().all(|slice| slice.num_tokens() == 1);
        if let (Some(head), Some(awaited)) = (&mut self.head, awaited) {
            turn = Some(gpu.turn());
            let nothing = || (self.scratch.row(ScratchRow::Hidden), 0..0);
            let layers = self.ahead.submit(gpu, &self.pass, nothing())?;
            if is_decode {
                self.ahead.encode(gpu, &self.pass, nothing())?;
            }
            let mut came = awaited.recv_timeout(MASKS_PATIENCE);
            if let Err(RecvTimeoutError::Timeout) = came {
                gpu.wait(layers, |_| ())?;
                came = awaited.try_recv().map_err(|_| RecvTimeoutError::Timeout);
            }
            if let Err(RecvTimeoutError::Timeout) = came {
                drop(turn.take());
                came = awaited.recv().map_err(RecvTimeoutError::from);
                turn = Some(gpu.turn());
            }
            let masks = came.map_err(|_| StageError::NoMasks)?;
            self.sequences.check_masks(batch, &masks)?;
            head.mask(&masks);
            self.pass.clear();
        }
        if let Some(head) = &mut self.head {
            head.record(gpu, &mut self.pass, shape)?;
        }
        let num_values = shape.num_tokens * self.held.row_values as usize;
        let readback = || match &self.head {
            Some(head) => head.readback(),
            None => (self.scratch.row(ScratchRow::Hidden), 0..num_values),
        };
        // What comes after masks is short, and encoded when it comes.
        let (is_whole, turn) = (turn.is_none(), turn.unwrap_or_else(|| gpu.turn()));
        let submission = if is_whole {
            self.ahead.submit(gpu, &self.pass, readback())?
        } else {
            gpu.submit(&self.pass, Some(readback()))?
        };
        if is_whole && is_decode {
            self.ahead.encode(gpu, &self.pass, readback())?;
        }
        let mut computed = uploaded;
        let mut output = gpu.wait(submission, |bytes| {
            drop(turn);
            computed = Instant::now();
            match &self.head {
                Some(head) => StepOutput::Sampled(head.outputs(batch, bytes), Vec::new()),
                None => StepOutput::Hidden(hidden_of(bytes), None),
            }
        })?;
        if let (StepOutput::Hidden(_, side), Some(choice)) = (&mut output, &self.choice) {
            *side = choice.after(gpu, shape.num_tokens)?;
        }
        if let (StepOutput::Sampled(_, rows), Some(head)) = (&mut output, &self.head) {
            *rows = head.hidden_rows(gpu, step, self.scratch.row(ScratchRow::Hidden))?;
        }
        self.times = StepTimes {
            upload: uploaded - start,
            compute: computed - uploaded,
            readback: computed.elapsed(),
        };
        Ok(output)
    }

    /// Runs every kernel once for each number of rows that has a variant: a driver may do more at
    /// its first dispatch, which must not be a request's. A software driver compiles it then and
    /// does no more, and it is compiled already.
    fn warm_up(&mut self, gpu: &Gpu, kernels: &Kernels) -> Result<(), StageError> {
        let max_tokens = self.sequences.limits().max_batched_tokens as usize;
        let max_tokens = max_tokens.min(self.sequences.limits().max_model_len as usize);
        let mut batch_sizes = kernels.matmul.batch_sizes();
        batch_sizes.extend(Attention::batch_sizes());
        if gpu.caps().is_cpu {
            batch_sizes = [1].into();
        }
        for num_tokens in batch_sizes {
            let num_tokens = num_tokens.min(max_tokens);
            let num_values = match self.embed {
                Some(_) => 0,
                None => num_tokens * self.held.row_values as usize,
            };
            let batch = self.sequences.probe(num_tokens).into();
            let hidden = std::iter::repeat_n(0.0, num_values).collect();
            let side = self.choice.as_ref().and_then(|choice| choice.probe(num_tokens));
            self.step(gpu, &Step { batch, hidden, side, ..Step::default() })?;
        }
        self.sequences.clear();
        Ok(())
    }

    /// The logits of the rows computed last, [rows, vocab_size]; for tests. None but on the last
    /// stage.
    ///
    /// # Errors
    /// When the device fails.
    pub fn logits(&self, gpu: &Gpu) -> Result<Option<Vec<f32>>, StageError> {
        Ok(self.head.as_ref().map(|head| head.logits(gpu)).transpose()?)
    }
}

/// The one copy of what a device leaves in host memory: from here it goes over the wire, and into
/// the next device, as it is.
fn hidden_of(bytes: &[u8]) -> Hidden {
    Hidden::new(Bytes::copy_from_slice(bytes)).expect("the device's are whole f32s")
}

/// What a step is told of its tokens, from what the stage knows of their sequences.
fn fill(step: &mut StepInputs, batch: &Batch, sequences: &Sequences) {
    step.token_ids.clear();
    step.positions.clear();
    step.table_starts.clear();
    step.output_rows.clear();
    step.tables.clear();
    step.copies.clear();
    for slice in &batch.slices {
        let start = step.tables.len() as u32;
        let blocks = &sequences.of(slice).blocks;
        step.tables.extend(blocks.iter().map(|block| block.0));
        if let Some(from) = slice.begin.as_ref().and_then(|begin| begin.copy_from) {
            step.copies.push((from.0, blocks[slice.start as usize / BLOCK_TOKENS].0));
        }
        if let Input::Tokens(tokens) = &slice.input {
            for (position, token) in (slice.start..).zip(tokens) {
                step.token_ids.push(token.0);
                step.positions.push(position);
                step.table_starts.push(start);
            }
        }
    }
}

#[cfg(test)]
#[path = "stage_tests.rs"]
mod tests;
