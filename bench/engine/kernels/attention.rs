//! Attention: one token of each of some sequences, and many tokens of one.

use anyhow::{Context, Result};
use serde_json::json;
use shaders::attention::Attention;
use shaders::error::GpuError;
use shaders::gpu::Gpu;
use shaders::inputs::{BLOCK_TOKENS, InputLimits, Inputs, StepInputs, StepShape};
use shaders::kv_cache::{HeadShape, KvCache, KvFormat};
use shaders::tensor::Tensor;

use super::{About, KernelOptions, KernelRun, numbers};

/// Tokens of the prompt whose attention is measured.
pub(crate) const PROMPT_TOKENS: usize = 512;

/// Tokens that attend in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The last token of each of some sequences of equal length.
    Decode {
        /// Sequences that decode at once, a token each.
        sequences: usize,
        /// Tokens of each, the last one included.
        context: usize,
    },
    /// All tokens of one sequence.
    Prefill {
        /// Tokens of a prompt, none of which is in the cache.
        num_tokens: usize,
    },
}

impl Phase {
    /// Sequences, and tokens of each.
    fn extent(self) -> (usize, usize) {
        match self {
            Self::Decode { sequences, context } => (sequences, context),
            Self::Prefill { num_tokens } => (1, num_tokens),
        }
    }

    /// Blocks that the cache of the step has.
    pub(crate) fn num_blocks(self) -> usize {
        let (sequences, context) = self.extent();
        sequences * context.div_ceil(BLOCK_TOKENS)
    }

    pub(crate) fn num_rows(self) -> usize {
        match self {
            Self::Decode { sequences, .. } => sequences,
            Self::Prefill { num_tokens } => num_tokens,
        }
    }

    /// Positions that rows attend to, summed over the rows.
    fn num_attended(self) -> usize {
        match self {
            Self::Decode { sequences, context } => sequences * context,
            Self::Prefill { num_tokens } => num_tokens * (num_tokens + 1) / 2,
        }
    }

    fn inputs(self) -> StepInputs {
        let (sequences, context) = self.extent();
        let table_len = context.div_ceil(BLOCK_TOKENS);
        let (positions, table_starts) = match self {
            Self::Decode { .. } => (
                vec![context as u32 - 1; sequences],
                (0..sequences).map(|sequence| (sequence * table_len) as u32).collect(),
            ),
            Self::Prefill { num_tokens } => ((0..num_tokens as u32).collect(), vec![0; num_tokens]),
        };
        StepInputs {
            token_ids: vec![0; positions.len()],
            positions,
            table_starts,
            output_rows: Vec::new(),
            // Blocks of a sequence lie apart, as they do after a while.
            tables: (0..table_len * sequences)
                .map(|at| (at % table_len * sequences + at / table_len) as u32)
                .collect(),
            copies: Vec::new(),
        }
    }
}

/// What a step of attention reads and writes.
pub(crate) struct Operands {
    /// Positions and block tables.
    pub inputs: Inputs,
    /// As the step was written: a row for each token.
    pub shape: StepShape,
    /// Full of numbers: what is read costs the same whatever it is.
    pub cache: KvCache,
    /// [num_rows, num_heads, head_dim], vec4s
    pub q: Tensor,
    /// [num_rows, num_heads, head_dim], vec4s
    pub out: Tensor,
}

impl Operands {
    /// Those of `phase`, with values that are always the same.
    ///
    /// # Errors
    /// When the device has no room.
    pub(crate) fn new(gpu: &Gpu, heads: HeadShape, format: KvFormat, phase: Phase) -> Result<Self> {
        let (_, context) = phase.extent();
        let num_blocks = phase.num_blocks();
        let limits = InputLimits {
            max_tokens: phase.num_rows(),
            max_outputs: 0,
            max_table_entries: num_blocks,
            max_copies: 0,
            max_positions: context,
            num_blocks,
            vocab_size: 1,
        };
        let mut inputs = Inputs::new(gpu, limits)?;
        let shape = inputs.write(gpu, &phase.inputs()).context("a step that was made to fit")?;
        let cache = KvCache::new(gpu, heads, format, num_blocks)?;
        // Written in parts, since the driver keeps a copy of what it was handed.
        let part = words(format, cache.keys.len().min(1 << 22));
        for tensor in [&cache.keys, &cache.values] {
            for start in (0..tensor.len()).step_by(part.len()) {
                gpu.write(tensor, start, &part[..part.len().min(tensor.len() - start)]);
                gpu.flush()?;
            }
        }
        let len = phase.num_rows() * heads.q_size();
        let (q, out) = (gpu.upload_vec4s(&numbers(len))?, gpu.alloc_vec4s(len)?);
        Ok(Self { inputs, shape, cache, q, out })
    }
}

fn words(format: KvFormat, len: usize) -> Vec<u32> {
    match format {
        KvFormat::F32 => numbers(len).into_iter().map(f32::to_bits).collect(),
        KvFormat::F16 => {
            let halves = numbers(2 * len).into_iter().map(half::f16::from_f32);
            bytemuck::cast_slice(&halves.collect::<Vec<_>>()).to_vec()
        }
    }
}

/// What a cache other than the usual one is called, after a comma.
pub(crate) fn cache_name(format: KvFormat) -> &'static str {
    match format {
        KvFormat::F32 => "",
        KvFormat::F16 => ", f16 cache",
    }
}

/// What scores are multiplied with.
pub(crate) fn scale(heads: HeadShape) -> f32 {
    (heads.head_dim as f32).sqrt().recip()
}

/// Every shape of heads: every number of sequences at every context, and a prompt.
pub(super) fn works(gpu: &Gpu, options: &KernelOptions) -> Result<Vec<KernelRun>> {
    let mut works = Vec::new();
    for &heads in &options.heads {
        let most = options.contexts.iter().copied().chain([PROMPT_TOKENS]).max().unwrap_or(1);
        let attention = Attention::new(gpu, heads, options.kv, most)?;
        let decode = options.contexts.iter().flat_map(|&context| {
            options.sequences.iter().map(move |&sequences| Phase::Decode { sequences, context })
        });
        for phase in decode.chain([Phase::Prefill { num_tokens: PROMPT_TOKENS }]) {
            works.push(work(
                gpu,
                &attention,
                &Operands::new(gpu, heads, options.kv, phase)?,
                phase,
            )?);
        }
    }
    Ok(works)
}

/// Our attention of `phase`.
///
/// # Errors
/// When the device has no room or fails.
pub(crate) fn work(
    gpu: &Gpu,
    attention: &Attention,
    operands: &Operands,
    phase: Phase,
) -> Result<KernelRun, GpuError> {
    let Operands { inputs, shape, cache, q, out } = operands;
    let heads = cache.shape;
    let bound = attention.bind(gpu, inputs, cache, scale(heads), (q, out))?;
    let name = format!("{}x{}x{}", heads.num_heads, heads.num_kv_heads, heads.head_dim);
    let (sequences, context) = phase.extent();
    let (what, suffix) = match phase {
        Phase::Decode { .. } => ("decode", format!(" @ {context}")),
        Phase::Prefill { .. } => ("prefill", String::new()),
    };
    // Keys and values that some row attends to, each once.
    let kv_values = sequences * context * 2 * heads.num_kv_heads * heads.head_dim;
    let about = About {
        kernel: "attention",
        shape: format!("{what} {name}{suffix}{}", cache_name(cache.format)),
        rows: phase.num_rows(),
        layout: bound.layout(*shape),
        num_bytes: kv_values as f64 * cache.format.num_bytes() as f64,
        // A product with the key, another with the value.
        num_operations: 4.0 * (phase.num_attended() * heads.q_size()) as f64,
        keys: json!({
            "phase": what, "context": context, "sequences": sequences,
            "num_heads": heads.num_heads, "num_kv_heads": heads.num_kv_heads,
            "head_dim": heads.head_dim,
            "bytes_of_value": cache.format.num_bytes(),
        }),
    };
    let shape = *shape;
    Ok(KernelRun { about, record: Box::new(move |pass| bound.record(pass, shape)) })
}
