//! A whole model on one adapter, stepped by hand: the engine without its cluster.
//!
//! [`model`] times it, perhaps a [`random_model`]; [`kernels`] times its kernels,
//! [`quality`] compares what it says in one format and another.

pub mod kernels;
pub mod model;
#[cfg(feature = "peer-burn")]
pub mod peer_burn;
pub mod quality;
pub mod random_model;

use std::path::Path;

use anyhow::{Context, Result, bail};
use checkpoint::{Checkpoint, Matrix, Part, Weight};
use node::model::{Kernels, quantize};
use node::stage::{Stage, StepOutput};
use protocol::{
    BLOCK_TOKENS, Batch, Begin, BlockId, Digest, Input, LayerRange, ModelId, SamplingParams,
    SequenceId, Slice, SliceOutput, StageId, StageLimits, StagePlan, Step, TokenId, config,
};
use shaders::gpu::{Gpu, GpuOptions};
use shaders::matmul::Products;

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Which adapter: its number, or a part of its name.
    pub adapter: Option<String>,
    /// What float weights are rounded to.
    pub quantize: config::Quantize,
    /// How keys and values are stored.
    pub kv_cache_dtype: config::KvCacheDtype,
    /// How products with weights are computed.
    pub products: Products,
    /// Of all sequences together, in one step.
    pub max_batched_tokens: usize,
    /// Sequences that run at once.
    pub max_num_seqs: usize,
    /// Tokens of one sequence.
    pub max_model_len: usize,
    /// Whether every dispatch is timed: slow.
    pub profile: bool,
}

/// A sequence that runs: its blocks are its own, but for those of the context that it shares.
#[derive(Debug)]
pub struct Sequence {
    id: SequenceId,
    /// Tokens computed.
    len: usize,
    blocks: Vec<BlockId>,
    is_new: bool,
    shared_tokens: usize,
}

impl Sequence {
    pub(crate) fn num_tokens(&self) -> usize {
        self.len
    }
}

/// What a model multiplies tokens with.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Matrices {
    /// Weights of all layers, in values: what a decoded token reads.
    pub layer_values: f64,
    /// Weights of the head, in values: read once for each sampled row.
    pub head_values: f64,
    /// Bytes of both on the adapter, read once a step at least.
    pub num_bytes: f64,
}

/// A model on an adapter.
pub struct Engine {
    gpu: Gpu,
    stage: Stage,
    files: Checkpoint,
    next_id: u64,
    free: Vec<BlockId>,
    finished: Vec<SequenceId>,
}

impl Engine {
    /// Loads all layers.
    ///
    /// # Errors
    /// When the files or the adapter don't allow it.
    pub fn load(path: &Path, options: &EngineOptions) -> Result<Self> {
        let files = Checkpoint::open(path)?.quantized(quantize(options.quantize));
        let EngineOptions { profile, products, .. } = *options;
        let gpu_options = GpuOptions { profile, products, ..GpuOptions::kept() };
        let gpu = Gpu::open_with(options.adapter.as_deref(), gpu_options)?;
        let kernels = Kernels::new(&gpu)?;
        let num_layers = files.config().num_layers();
        let parts = [Part::Embedding]
            .into_iter()
            .chain((0..num_layers).map(Part::Layer))
            .chain([Part::Head]);
        let digests = parts.map(|part| Ok(Digest(files.digest(part)?))).collect::<Result<_>>()?;
        // One context for all, and what each sequence adds to it.
        let max_blocks = options.max_model_len.div_ceil(BLOCK_TOKENS)
            + options.max_num_seqs * (OWN_TOKENS.div_ceil(BLOCK_TOKENS) + 1);
        let plan = StagePlan {
            id: StageId::default(),
            num_stages: 1,
            layers: LayerRange { first: 0, end: u32::try_from(num_layers)? },
            adapter: 0,
            model: ModelId::default(),
            model_path: String::new(),
            digests,
            quantize: options.quantize,
            kv_cache_dtype: options.kv_cache_dtype,
            next: None,
            limits: StageLimits {
                max_batched_tokens: u32::try_from(options.max_batched_tokens)?,
                max_num_seqs: u32::try_from(options.max_num_seqs)?,
                max_model_len: u32::try_from(options.max_model_len)?,
                max_blocks: u32::try_from(max_blocks)?,
                max_logprobs: 0,
            },
            memory_bytes: u64::MAX / 2,
        };
        let stage = Stage::load(&gpu, &kernels, &files, &plan, &mut |_| {})?;
        gpu.save_kernels();
        let num_blocks = stage.held().num_blocks;
        let free = (0..num_blocks).rev().map(BlockId).collect();
        Ok(Self { gpu, stage, files, next_id: 0, free, finished: Vec::new() })
    }

    /// As they were opened: weights are read anew where somebody asks.
    pub fn files(&self) -> &Checkpoint {
        &self.files
    }

    /// The adapter.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Bytes that the stage was given on the adapter: weights, KV cache and scratch.
    pub fn memory_bytes(&self) -> u64 {
        self.stage.held().memory_bytes
    }

    /// The matrices that tokens are multiplied with.
    ///
    /// # Errors
    /// When the files don't hold them.
    pub fn matrices(&self) -> Result<Matrices> {
        let num_layers = self.files.config().num_layers();
        let parts = (0..num_layers).map(Part::Layer).chain([Part::Head]);
        let weights: Result<Vec<_>, _> = parts.map(|part| self.files.part(part)).collect();
        let mut matrices = Matrices::default();
        for weight in weights?.into_iter().flatten() {
            let Weight::Matrix(matrix) = weight else { continue };
            let view = self.files.matrix(matrix)?;
            matrices.num_bytes += view.device_bytes() as f64;
            let num_values = (view.rows() * view.cols()) as f64;
            if matrix == Matrix::LmHead {
                matrices.head_values += num_values;
            } else {
                matrices.layer_values += num_values;
            }
        }
        Ok(matrices)
    }

    /// Bytes of its weights on an adapter, and in its files.
    pub fn weights_bytes(&self) -> (u64, u64) {
        weights_bytes(&self.files)
    }

    /// A sequence that begins with all of `context`, if given: it shares its blocks. `context`
    /// must be whole blocks, and outlive it.
    pub fn begin(&mut self, context: Option<&Sequence>) -> Sequence {
        self.next_id += 1;
        let (blocks, shared) = context.map_or((Vec::new(), 0), |context| {
            assert_eq!(context.len % BLOCK_TOKENS, 0, "whole blocks are shared");
            (context.blocks[..context.len / BLOCK_TOKENS].to_vec(), context.len)
        });
        let id = SequenceId(self.next_id);
        Sequence { id, len: shared, blocks, is_new: true, shared_tokens: shared }
    }

    /// Ends a sequence: its blocks are free again.
    pub fn end(&mut self, sequence: Sequence) {
        let shared = sequence.shared_tokens / BLOCK_TOKENS;
        self.free.extend(&sequence.blocks[shared..]);
        if !sequence.is_new {
            self.finished.push(sequence.id);
        }
    }

    /// Computes the same number of further tokens of each sequence in one step, and samples a
    /// token after each.
    ///
    /// # Errors
    /// When blocks run out, or the device fails.
    pub fn step(&mut self, sequences: &mut [Sequence], num_tokens: usize) -> Result<Vec<TokenId>> {
        let vocab_size = self.files.config().vocab_size;
        let mut slices = Vec::with_capacity(sequences.len());
        for sequence in sequences.iter_mut() {
            let held = if sequence.is_new { 0 } else { sequence.blocks.len() };
            while sequence.blocks.len() * BLOCK_TOKENS < sequence.len + num_tokens {
                let block = self.free.pop().context("the KV cache is too small for this")?;
                sequence.blocks.push(block);
            }
            let begin = sequence.is_new.then(|| {
                let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
                let num_prompt_tokens = (sequence.len + num_tokens) as u32;
                let skipped = (0..sequence.len).map(|at| token(at, vocab_size)).collect();
                Box::new(Begin { sampling, num_prompt_tokens, skipped, copy_from: None })
            });
            let tokens = (sequence.len..sequence.len + num_tokens)
                .map(|at| token(at + 31 * sequence.id.0 as usize, vocab_size));
            slices.push(Slice {
                sequence: sequence.id,
                start: sequence.len as u32,
                input: Input::Tokens(tokens.collect()),
                first_block: held as u32,
                blocks: sequence.blocks[held..].to_vec(),
                begin,
                sample: true,
                next: None,
            });
            sequence.len += num_tokens;
            sequence.is_new = false;
        }
        Ok(self.run(slices)?.into_iter().filter_map(|output| output.token).collect())
    }

    /// Computes `tokens` from the start on: the natural logarithm of the probability of each but
    /// the first, given those before it. [`logits`](Self::logits) are then those after the last.
    ///
    /// # Errors
    /// When they don't fit one step, or the device fails.
    pub(crate) fn score(&mut self, tokens: &[TokenId]) -> Result<Vec<f32>> {
        let mut sequence = self.begin(None);
        for _ in 0..tokens.len().div_ceil(BLOCK_TOKENS) {
            let block = self.free.pop().context("the KV cache is too small for this")?;
            sequence.blocks.push(block);
        }
        let sampling = SamplingParams {
            temperature: 0.0,
            num_prompt_logprobs: Some(0),
            ..SamplingParams::default()
        };
        let num_prompt_tokens = tokens.len() as u32;
        let slice = Slice {
            sequence: sequence.id,
            start: 0,
            input: Input::Tokens(tokens.to_vec()),
            first_block: 0,
            blocks: sequence.blocks.clone(),
            begin: Some(Box::new(Begin {
                sampling,
                num_prompt_tokens,
                skipped: Vec::new(),
                copy_from: None,
            })),
            sample: true,
            next: None,
        };
        sequence.is_new = false;
        let outputs = self.run(vec![slice])?;
        self.end(sequence);
        let logprobs = outputs.into_iter().flat_map(|output| output.prompt_logprobs);
        Ok(logprobs.map(|logprobs| logprobs.chosen.logprob).collect())
    }

    fn run(&mut self, slices: Vec<Slice>) -> Result<Vec<SliceOutput>> {
        let batch = Batch { finished: std::mem::take(&mut self.finished), slices };
        let step = Step { batch: batch.into(), ..Step::default() };
        match self.stage.step(&self.gpu, &step)? {
            StepOutput::Sampled(outputs, _) => Ok(outputs),
            StepOutput::Hidden(..) => bail!("a stage with a head samples"),
        }
    }

    /// The logits of the last step's rows, `[rows, vocab_size]`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn logits(&self) -> Result<Vec<f32>> {
        self.stage.logits(&self.gpu)?.context("a whole model has a head")
    }
}

/// Most tokens that a sequence adds to the context that it shares.
pub const OWN_TOKENS: usize = 512;

/// Any tokens; always the same ones.
pub(crate) fn token(at: usize, vocab_size: usize) -> TokenId {
    TokenId(((at as u64 + 1).wrapping_mul(2_654_435_761) % vocab_size as u64) as u32)
}

/// Processor time of the threads that this process has now, finer than a process's own; `None`
/// where the system doesn't say. Comparable only while no thread ends.
pub(crate) fn processor_nanoseconds() -> Option<u64> {
    let mut sum = 0;
    for thread in std::fs::read_dir("/proc/self/task").ok()? {
        // A thread may end meanwhile.
        let path = thread.ok()?.path().join("schedstat");
        let Ok(text) = std::fs::read_to_string(path) else { continue };
        sum += text.split_whitespace().next()?.parse::<u64>().ok()?;
    }
    (sum > 0).then_some(sum)
}

/// Bytes of a model's weights on an adapter, and in its files; those that it has twice once.
pub(crate) fn weights_bytes(files: &Checkpoint) -> (u64, u64) {
    let layers = (0..files.config().num_layers()).map(Part::Layer);
    let (mut on_device, mut in_file) = (0, 0);
    for part in layers.chain([Part::Embedding, Part::Head]) {
        if part == Part::Head && files.config().tie_word_embeddings {
            continue;
        }
        on_device += files.bytes(part).unwrap_or(0);
        let ranges = files.ranges(part).unwrap_or_default();
        in_file += ranges.into_iter().map(|(_, range)| range.end - range.start).sum::<u64>();
    }
    (on_device, in_file)
}
