//! What a step is told: tokens, positions, block tables. One tensor, written once per step, that
//! all kernels read.
//!
//! This is the gate to the kernels, which check nothing: whatever passes [`Inputs::write`] is safe
//! to run.

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::tensor::Tensor;

/// Tokens in a block of the KV cache.
pub const BLOCK_TOKENS: usize = 16;

/// The tokens of one step, of all its sequences, one after another.
#[derive(Debug, Clone, Default)]
pub struct StepInputs {
    /// `[num_tokens]`; any values on a stage without an embedding.
    pub token_ids: Vec<u32>,
    /// Place of each token in its sequence, counted from 0. `[num_tokens]`
    pub positions: Vec<u32>,
    /// Where in `tables` the block table of each token's sequence starts. `[num_tokens]`
    pub table_starts: Vec<u32>,
    /// The tokens whose logits are wanted. `[num_outputs]`
    pub output_rows: Vec<u32>,
    /// The block tables of all sequences: block `i` of a table holds positions `16 i .. 16 i + 16`.
    pub tables: Vec<u32>,
    /// Blocks to copy before anything is computed: from which to which.
    pub copies: Vec<(u32, u32)>,
}

/// Why a step can't be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the inputs of a step don't fit: {0}")]
pub struct BadInputs(&'static str);

/// Limits that the inputs of a step must keep, and the tensor they are written to.
pub struct Inputs {
    /// `token_ids`, `positions`, `table_starts`, `output_rows`, `tables`, the sources and the
    /// targets of `copies`, one after another.
    pub tensor: Tensor,
    limits: InputLimits,
    words: Vec<u32>,
}

/// What the tensors of a stage have room for.
#[derive(Debug, Clone, Copy)]
pub struct InputLimits {
    /// Tokens in a step.
    pub max_tokens: usize,
    /// Tokens whose logits are wanted in a step.
    pub max_outputs: usize,
    /// Entries of all block tables of a step.
    pub max_table_entries: usize,
    /// Blocks that a step copies.
    pub max_copies: usize,
    /// Positions that a sequence can reach.
    pub max_positions: usize,
    /// Blocks in the KV cache.
    pub num_blocks: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
}

impl InputLimits {
    fn max_words(&self) -> usize {
        3 * self.max_tokens + self.max_outputs + self.max_table_entries + 2 * self.max_copies
    }
}

impl Inputs {
    /// A tensor with room for the largest step that `limits` allow.
    pub fn new(gpu: &Gpu, limits: InputLimits) -> Result<Self, GpuError> {
        let max_words = limits.max_words();
        Ok(Self { tensor: gpu.alloc_u32(max_words)?, limits, words: Vec::with_capacity(max_words) })
    }

    /// Bytes that [`new`](Self::new) takes.
    pub fn num_bytes(limits: &InputLimits) -> u64 {
        limits.max_words() as u64 * 4
    }

    /// What the inputs of a step are checked against.
    pub fn limits(&self) -> &InputLimits {
        &self.limits
    }

    /// Checks `step` and copies it to the adapter, for the pass that is submitted next.
    pub fn write(&mut self, gpu: &Gpu, step: &StepInputs) -> Result<StepShape, BadInputs> {
        step.check(&self.limits)?;
        self.words.clear();
        for section in
            [&step.token_ids, &step.positions, &step.table_starts, &step.output_rows, &step.tables]
        {
            self.words.extend_from_slice(section);
        }
        self.words.extend(step.copies.iter().map(|(from, _)| from));
        self.words.extend(step.copies.iter().map(|(_, to)| to));
        gpu.write(&self.tensor, 0, &self.words);
        Ok(StepShape {
            num_tokens: step.token_ids.len(),
            num_outputs: step.output_rows.len(),
            num_table_entries: step.tables.len(),
            num_copies: step.copies.len(),
            num_positions: step.positions.iter().max().map_or(0, |last| *last as usize + 1),
            has_runs: step.table_starts.windows(2).any(|pair| pair[0] == pair[1]),
        })
    }
}

impl StepInputs {
    fn check(&self, limits: &InputLimits) -> Result<(), BadInputs> {
        let num_tokens = self.token_ids.len();
        let ensure = |holds: bool, what| if holds { Ok(()) } else { Err(BadInputs(what)) };
        ensure(num_tokens <= limits.max_tokens, "too many tokens")?;
        ensure(self.positions.len() == num_tokens, "a token without a position")?;
        ensure(self.table_starts.len() == num_tokens, "a token without a block table")?;
        ensure(self.output_rows.len() <= limits.max_outputs, "too many outputs")?;
        ensure(self.tables.len() <= limits.max_table_entries, "too long block tables")?;
        ensure(
            self.token_ids.iter().all(|&id| (id as usize) < limits.vocab_size),
            "an unknown token",
        )?;
        ensure(
            self.output_rows.iter().all(|&row| (row as usize) < num_tokens),
            "an output of no token",
        )?;
        ensure(
            self.tables.iter().all(|&block| (block as usize) < limits.num_blocks),
            "an unknown block",
        )?;
        ensure(self.copies.len() <= limits.max_copies, "too many copies")?;
        ensure(
            self.copies.iter().all(|&(from, to)| (from.max(to) as usize) < limits.num_blocks),
            "a copy of an unknown block",
        )?;
        for (&position, &start) in self.positions.iter().zip(&self.table_starts) {
            let position = position as usize;
            ensure(position < limits.max_positions, "a position out of reach")?;
            ensure(
                start as usize + position / BLOCK_TOKENS < self.tables.len(),
                "a position without a block",
            )?;
        }
        Ok(())
    }
}

/// The number of rows in the tensors of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepShape {
    /// Rows of hidden states.
    pub num_tokens: usize,
    /// Rows of logits.
    pub num_outputs: usize,
    /// Entries of all block tables.
    pub num_table_entries: usize,
    /// Blocks that are copied.
    pub num_copies: usize,
    /// Positions of the sequence whose token has the last one.
    pub num_positions: usize,
    /// Whether a token follows another of its sequence.
    pub has_runs: bool,
}

impl StepShape {
    /// Where the section of output rows starts.
    pub(crate) fn output_rows_at(&self) -> u32 {
        3 * self.num_tokens as u32
    }

    /// Where the block tables start.
    pub(crate) fn tables_at(&self) -> u32 {
        (3 * self.num_tokens + self.num_outputs) as u32
    }

    /// Where the sources of copies start.
    pub(crate) fn copy_sources_at(&self) -> u32 {
        self.tables_at() + self.num_table_entries as u32
    }

    /// Where the targets of copies start.
    pub(crate) fn copy_targets_at(&self) -> u32 {
        self.copy_sources_at() + self.num_copies as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: InputLimits = InputLimits {
        max_tokens: 4,
        max_outputs: 2,
        max_table_entries: 3,
        max_copies: 1,
        max_positions: 100,
        num_blocks: 8,
        vocab_size: 10,
    };

    fn step() -> StepInputs {
        StepInputs {
            token_ids: vec![1, 9],
            positions: vec![15, 16],
            table_starts: vec![0, 1],
            output_rows: vec![1],
            tables: vec![7, 0, 3],
            copies: vec![(0, 7)],
        }
    }

    #[test]
    fn good_inputs_pass() {
        assert_eq!(step().check(&LIMITS), Ok(()));
    }

    #[test]
    fn what_would_read_out_of_bounds_is_refused() {
        let cases: [fn(&mut StepInputs); 11] = [
            |step| step.token_ids[0] = 10,
            |step| step.positions[1] = 32,
            |step| step.positions[0] = 100,
            |step| step.positions.truncate(1),
            |step| step.table_starts[0] = u32::MAX,
            |step| step.output_rows[0] = 2,
            |step| step.tables[1] = 8,
            |step| step.tables.push(0),
            |step| step.copies[0].0 = 8,
            |step| step.copies[0].1 = 8,
            |step| step.copies.push((0, 1)),
        ];
        for (index, spoil) in cases.iter().enumerate() {
            let mut step = step();
            spoil(&mut step);
            assert!(step.check(&LIMITS).is_err(), "case {index}");
        }
    }
}
