//! A stage that computes by rule: it knows only what batches told it, checked as a node checks it,
//! and its cache holds what was written there, by whomever.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use node::samples::Samples;
use node::sequences::{Sequence, Sequences};
use protocol::{
    BLOCK_TOKENS, Batch, Sampled, SequenceId, Slice, SliceOutput, StageEcho, StagePlan, TokenId,
};

use super::machines::{Arrived, NotComputed};
use super::model::{self, VOCAB};
use super::random::mix;
use super::scenario::Cost;

/// One stage of one plan.
#[derive(Debug)]
pub struct Stage {
    plan: StagePlan,
    num_blocks: u32,
    /// Steps whose turn has not come.
    pub waiting: VecDeque<Arrived>,
    /// On the first stage, what is known of steps under way.
    pub samples: Samples,
    sequences: Sequences,
    // By block: what was written for each of its positions.
    cache: Vec<[u64; BLOCK_TOKENS]>,
    // What the rows of known tokens should be.
    rows: HashMap<SequenceId, Vec<u64>>,
}

/// What a stage makes of a step.
#[derive(Clone, Debug)]
pub enum Output {
    /// For the next stage: a row for each token.
    Rows(Vec<u64>),
    /// For the coordinator.
    Sampled(Sampled),
}

/// A computed step, and what was wrong with what it read, if anything was.
pub type Computed = (Output, Option<String>);

/// Why a step can't be computed.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// No stage takes such a batch.
    Refused(String),
    /// A sequence in it makes it fail.
    NotFinite,
    /// It failed before.
    NotComputed(NotComputed),
}

impl Stage {
    /// Nothing known, the cache full of what nobody wrote.
    pub fn new(plan: StagePlan, num_blocks: u32) -> Self {
        Self {
            num_blocks,
            waiting: VecDeque::new(),
            samples: Samples::new(plan.num_stages),
            sequences: Sequences::new(plan.limits, num_blocks, VOCAB),
            cache: vec![[0; BLOCK_TOKENS]; num_blocks as usize],
            rows: HashMap::new(),
            plan,
        }
    }

    /// What it was asked for.
    pub fn plan(&self) -> &StagePlan {
        &self.plan
    }

    /// What it says once it is loaded.
    pub fn echo(&self, node: protocol::NodeId, class: protocol::Digest) -> StageEcho {
        StageEcho {
            node,
            id: self.plan.id,
            model: self.plan.model,
            layers: self.plan.layers,
            hidden_size: super::world::HIDDEN_SIZE,
            num_blocks: self.num_blocks,
            memory_bytes: 1,
            fingerprint: class,
        }
    }

    /// The step whose turn it is, once all tokens that it names are known.
    pub fn next_step(&mut self) -> Option<Arrived> {
        if let Some(arrived) = self.waiting.front_mut()
            && self.plan.embeds()
            && arrived.rows.is_ok()
        {
            let known = self.samples.take(arrived.step, Arc::make_mut(&mut arrived.batch))?;
            let broken = |cause: node::error::StageError| NotComputed {
                cause: cause.to_string(),
                is_wrong: true,
            };
            arrived.rows = known.map(|()| None).map_err(broken);
        }
        self.waiting.pop_front()
    }

    /// How long a step takes: by the tokens that it computes and the positions that it reads.
    pub fn takes(&self, batch: &Batch, cost: &Cost) -> Duration {
        let num_read: usize = batch.slices.iter().map(|slice| slice.start as usize).sum();
        let all = cost.fixed
            + cost.per_token * batch.num_tokens() as u32
            + cost.per_context.mul_f64(num_read as f64 / 1e3);
        all / self.plan.num_stages
    }

    /// Computes a step: of the rows of the stage before, or of the tokens. `class` is that of the
    /// pipeline: every layer's bits are in every token.
    ///
    /// # Errors
    /// When the batch is none that a stage takes, or one of its sequences can't be computed.
    pub fn compute(
        &mut self,
        batch: &Batch,
        before: Option<&[u64]>,
        class: u64,
    ) -> Result<Computed, Trouble> {
        for sequence in &batch.finished {
            self.rows.remove(sequence);
        }
        let refused = |error: node::error::StageError| Trouble::Refused(error.to_string());
        self.sequences.apply(batch).map_err(refused)?;
        for slice in &batch.slices {
            if let Some(from) = slice.begin.as_ref().and_then(|begin| begin.copy_from) {
                let to = self.sequences.of(slice).blocks[slice.start as usize / BLOCK_TOKENS];
                self.cache[to.0 as usize] = self.cache[from.0 as usize];
            }
        }
        let (mut after, mut outputs, mut wrong) = (Vec::new(), Vec::new(), None);
        let mut fails = false;
        for slice in &batch.slices {
            let sequence = self.sequences.of(slice);
            let known = known_rows(&mut self.rows, slice, sequence);
            let num_new = slice.num_tokens();
            let start = slice.start as usize;
            let expected = &known[start..start + num_new];
            let rows = match before {
                None => expected,
                Some(before) => &before[after.len()..after.len() + num_new],
            };
            let mut read = read(&self.cache, &sequence.blocks, &known[..start]);
            if rows != expected && read.is_none() {
                read = Some((format!("{} is told other tokens", slice.sequence), 1));
            }
            for (position, row) in (start..).zip(rows) {
                let block = sequence.blocks[position / BLOCK_TOKENS].0 as usize;
                self.cache[block][position % BLOCK_TOKENS] = *row;
            }
            let fails_at = sequence.begin.sampling.top_k;
            let fails_here = fails_at % self.plan.num_stages == self.plan.id.stage.0;
            fails |= fails_at > 0 && fails_here && start + num_new > fails_at as usize;
            let first = after.len();
            match read {
                None => after.extend_from_slice(rows),
                Some((what, found)) => {
                    wrong.get_or_insert(format!("stage {}: {what}", self.plan.id.stage));
                    after.extend(rows.iter().map(|row| mix(*row, found)));
                }
            }
            if self.plan.samples() {
                outputs.push(output(slice, sequence, &after[first..], class));
            }
        }
        if fails {
            return Err(Trouble::NotFinite);
        }
        let output = if self.plan.samples() {
            Output::Sampled(Sampled { outputs, ..Sampled::default() })
        } else {
            Output::Rows(after)
        };
        Ok((output, wrong))
    }
}

/// What the rows of a sequence should be, up to the end of the slice.
fn known_rows<'a>(
    rows: &'a mut HashMap<SequenceId, Vec<u64>>,
    slice: &Slice,
    sequence: &Sequence,
) -> &'a [u64] {
    let known = rows.entry(slice.sequence).or_default();
    known.truncate(if slice.begin.is_some() { 0 } else { slice.start as usize });
    for token in &sequence.tokens[known.len()..] {
        known.push(model::row(known.last().copied().unwrap_or(model::ROOT), *token));
    }
    known
}

/// What attention finds that isn't what should be there.
fn read(
    cache: &[[u64; BLOCK_TOKENS]],
    blocks: &[protocol::BlockId],
    expected: &[u64],
) -> Option<(String, u64)> {
    for (rows, block) in expected.chunks(BLOCK_TOKENS).zip(blocks) {
        let found = &cache[block.0 as usize][..rows.len()];
        if found != rows {
            let at = found.iter().zip(rows).position(|(a, b)| a != b).unwrap_or(0);
            return Some((format!("block {block} holds something else"), found[at] | 1));
        }
    }
    None
}

/// What the last stage says of a slice with these rows.
fn output(slice: &Slice, sequence: &Sequence, rows: &[u64], class: u64) -> SliceOutput {
    let begin = &sequence.begin;
    let position = slice.start + slice.num_tokens() as u32;
    let num_prompt = begin.num_prompt_tokens as usize;
    let last = *rows.last().expect("a slice has tokens");
    let token = slice.sample.then(|| {
        let tokens = sequence.tokens.iter().enumerate();
        let history =
            tokens.fold(0, |before, (i, token)| model::history(before, *token, i < num_prompt));
        model::sample(last, history, &begin.sampling, position, class)
    });
    let logprobs = |token: TokenId| model::logprobs(last, token, class);
    let mut prompt_logprobs = Vec::new();
    if begin.sampling.num_prompt_logprobs.is_some() {
        let start = slice.start as usize;
        let following = sequence.tokens[start + 1..].iter().copied().chain(slice.next);
        let of_prompt = following.zip(rows).take(num_prompt.saturating_sub(start + 1));
        prompt_logprobs.extend(of_prompt.map(|(token, row)| model::logprobs(*row, token, class)));
    }
    SliceOutput {
        sequence: slice.sequence,
        position,
        token,
        logprobs: token.filter(|_| begin.sampling.num_logprobs.is_some()).map(logprobs),
        prompt_logprobs,
    }
}
