//! What a stage remembers of each sequence: only what batches told it, all of it checked here.
//!
//! Nothing past this file checks a batch again: every position lies in a block of the stage's
//! cache, every token in the vocabulary.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use protocol::{
    BLOCK_TOKENS, Batch, Begin, BlockId, Input, Masks, SamplingParams, SequenceId, Slice,
    StageLimits, TokenId,
};

use crate::error::StageError;

/// The sequences of one stage.
#[derive(Debug)]
pub struct Sequences {
    limits: StageLimits,
    num_blocks: u32,
    vocab_size: u32,
    known: HashMap<SequenceId, Sequence>,
    // Kept, so that a step allocates nothing.
    ids: Vec<SequenceId>,
}

/// One sequence, as far as batches told.
#[derive(Debug)]
pub struct Sequence {
    /// Where its keys and values are: the block of positions `16 i ..`.
    pub blocks: Vec<BlockId>,
    /// Its tokens by position, as far as they were computed.
    pub tokens: Vec<TokenId>,
    /// How it is sampled.
    pub begin: Begin,
}

impl Sequences {
    /// None known yet. `num_blocks` is the size of the cache.
    pub fn new(limits: StageLimits, num_blocks: u32, vocab_size: u32) -> Self {
        Self { limits, num_blocks, vocab_size, known: HashMap::new(), ids: Vec::new() }
    }

    /// Takes in what a batch tells, or nothing of it.
    ///
    /// # Errors
    /// When the batch names what doesn't exist or exceeds the stage's limits.
    pub fn apply(&mut self, batch: &Batch) -> Result<(), StageError> {
        for sequence in &batch.finished {
            self.known.remove(sequence);
        }
        self.check_sizes(batch)?;
        for slice in &batch.slices {
            self.check_slice(slice)?;
        }
        for slice in &batch.slices {
            self.apply_slice(slice)?;
        }
        Ok(())
    }

    /// Whether each mask is one of the vocabulary, for a slice of the batch that is sampled.
    ///
    /// # Errors
    /// When one isn't.
    pub(crate) fn check_masks(&self, batch: &Batch, masks: &Masks) -> Result<(), StageError> {
        let (num_words, due) = (masks.num_words(), self.vocab_size.div_ceil(32) as usize);
        if !masks.is_empty() && num_words != due {
            return Err(bad(format!("masks of {num_words} words, {due} are the vocabulary's")));
        }
        let is_sampled = |at: usize| batch.slices.get(at).is_some_and(|slice| slice.sample);
        match masks.iter().find(|(slice, _)| !is_sampled(*slice)) {
            Some((slice, _)) => Err(bad(format!("a mask for slice {slice}, which isn't sampled"))),
            None => Ok(()),
        }
    }

    /// What the stage was made for.
    pub fn limits(&self) -> &StageLimits {
        &self.limits
    }

    /// A batch of one sequence that no request has, to try the stage with: `num_tokens` tokens in
    /// the cache's first blocks, sampled with every filter on.
    pub fn probe(&self, num_tokens: usize) -> Batch {
        let num_blocks = num_tokens.div_ceil(BLOCK_TOKENS) as u32;
        let sampling = SamplingParams {
            top_k: 8,
            top_p: 0.9,
            min_p: 0.01,
            frequency_penalty: 0.1,
            num_logprobs: Some(self.limits.max_logprobs.min(1)),
            ..SamplingParams::default()
        };
        let begin = Begin {
            sampling,
            num_prompt_tokens: 0,
            skipped: Vec::new(),
            copy_from: Some(BlockId(0)),
        };
        let slice = Slice {
            sequence: SequenceId(u64::MAX),
            start: 0,
            input: Input::Tokens(vec![TokenId(0); num_tokens]),
            first_block: 0,
            blocks: (0..num_blocks).map(BlockId).collect(),
            begin: Some(Box::new(begin)),
            sample: true,
            next: None,
        };
        Batch { finished: Vec::new(), slices: vec![slice] }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.known.clear();
    }

    /// A sequence that the applied batch names.
    pub fn of(&self, slice: &Slice) -> &Sequence {
        &self.known[&slice.sequence]
    }

    /// How many are known.
    pub fn num_known(&self) -> usize {
        self.known.len()
    }

    fn check_sizes(&mut self, batch: &Batch) -> Result<(), StageError> {
        let (num_tokens, max_tokens) = (batch.num_tokens(), self.limits.max_batched_tokens);
        if num_tokens == 0 || num_tokens > max_tokens as usize {
            return Err(bad(format!(
                "{num_tokens} tokens, 1 to {max_tokens} are computed at once"
            )));
        }
        let max_seqs = self.limits.max_num_seqs as usize;
        let num_new =
            batch.slices.iter().filter(|slice| !self.known.contains_key(&slice.sequence)).count();
        // Sequences that ended are dropped with the next batch, so twice as many may be known.
        if batch.slices.len() > max_seqs || self.known.len() + num_new > 2 * max_seqs {
            return Err(bad(format!("more than scheduler.max_num_seqs = {max_seqs} sequences")));
        }
        self.ids.clear();
        self.ids.extend(batch.slices.iter().map(|slice| slice.sequence));
        self.ids.sort_unstable();
        self.ids.dedup();
        if self.ids.len() < batch.slices.len() {
            return Err(bad("a sequence has two slices".into()));
        }
        Ok(())
    }

    fn check_slice(&self, slice: &Slice) -> Result<(), StageError> {
        let bad = |what: String| bad(format!("sequence {}: {what}", slice.sequence));
        let end = slice.start as usize + slice.num_tokens();
        if slice.num_tokens() == 0 || end > self.limits.max_model_len as usize {
            let max = self.limits.max_model_len;
            return Err(bad(format!("positions {}..{end} of {max}", slice.start)));
        }
        let Input::Tokens(tokens) = &slice.input else {
            return Err(bad("its token isn't known yet".into()));
        };
        if tokens.iter().chain(&slice.next).any(|token| token.0 >= self.vocab_size) {
            return Err(bad("a token outside the vocabulary".into()));
        }
        if slice.blocks.iter().any(|block| block.0 >= self.num_blocks) {
            return Err(bad(format!("a block outside the cache of {}", self.num_blocks)));
        }
        let known = self.known.get(&slice.sequence);
        let num_held = known.map_or(0, |sequence| sequence.blocks.len());
        let num_blocks = if slice.blocks.is_empty() {
            num_held
        } else if slice.first_block as usize <= num_held {
            slice.first_block as usize + slice.blocks.len()
        } else {
            return Err(bad(format!("a gap before block {}", slice.first_block)));
        };
        if num_blocks * BLOCK_TOKENS < end || num_blocks > self.num_blocks as usize {
            return Err(bad(format!("{num_blocks} blocks for {end} tokens")));
        }
        let num_before = match (&slice.begin, known) {
            (Some(begin), _) => {
                self.check_sampling(&begin.sampling).map_err(|what| bad(what.into()))?;
                if begin.copy_from.is_some_and(|block| block.0 >= self.num_blocks) {
                    return Err(bad(format!(
                        "a copy from outside the cache of {}",
                        self.num_blocks
                    )));
                }
                if begin.skipped.iter().any(|token| token.0 >= self.vocab_size) {
                    return Err(bad("a token outside the vocabulary".into()));
                }
                begin.skipped.len()
            }
            (None, Some(sequence)) => sequence.tokens.len(),
            (None, None) => return Err(bad("it is unknown".into())),
        };
        if (slice.start as usize) > num_before {
            return Err(bad(format!("a gap before position {}", slice.start)));
        }
        Ok(())
    }

    fn check_sampling(&self, sampling: &SamplingParams) -> Result<(), &'static str> {
        let numbers = [
            sampling.temperature,
            sampling.top_p,
            sampling.min_p,
            sampling.repetition_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
        ];
        let in_range = numbers.iter().all(|x| x.is_finite())
            && sampling.temperature >= 0.0
            && sampling.repetition_penalty > 0.0
            && sampling.logit_bias.len() <= self.vocab_size as usize
            && sampling.logit_bias.iter().all(|(t, b)| t.0 < self.vocab_size && b.is_finite());
        let max_logprobs = self.limits.max_logprobs;
        let logprobs = [sampling.num_logprobs, sampling.num_prompt_logprobs];
        if !in_range || logprobs.into_iter().flatten().any(|n| n > max_logprobs) {
            return Err("sampling parameters out of range");
        }
        Ok(())
    }

    fn apply_slice(&mut self, slice: &Slice) -> Result<(), StageError> {
        let Input::Tokens(tokens) = &slice.input else {
            return Err(bad("its token isn't known yet".into()));
        };
        let sequence = match (self.known.entry(slice.sequence), &slice.begin) {
            (Entry::Occupied(entry), None) => entry.into_mut(),
            (entry, Some(begin)) => {
                let blocks = match &entry {
                    Entry::Occupied(known) => known.get().blocks.clone(),
                    Entry::Vacant(_) => Vec::new(),
                };
                let begin = Begin::clone(begin);
                let tokens = begin.skipped.clone();
                entry.insert_entry(Sequence { blocks, tokens, begin }).into_mut()
            }
            (Entry::Vacant(_), None) => {
                return Err(bad(format!("sequence {} is unknown", slice.sequence)));
            }
        };
        if !slice.blocks.is_empty() {
            sequence.blocks.truncate(slice.first_block as usize);
            sequence.blocks.extend(&slice.blocks);
            let room = sequence.blocks.len() * BLOCK_TOKENS;
            sequence.tokens.reserve(room.saturating_sub(sequence.tokens.len()));
        }
        // What was computed past the slice's start is computed again.
        sequence.tokens.truncate(slice.start as usize);
        sequence.tokens.extend(tokens);
        Ok(())
    }
}

fn bad(cause: String) -> StageError {
    StageError::BadBatch(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequences() -> Sequences {
        let limits = StageLimits {
            max_batched_tokens: 32,
            max_num_seqs: 2,
            max_model_len: 64,
            max_blocks: 4,
            max_logprobs: 5,
        };
        Sequences::new(limits, 4, 100)
    }

    fn slice(start: u32, tokens: &[u32], blocks: &[u32], begins: bool) -> Slice {
        Slice {
            sequence: SequenceId(1),
            start,
            input: Input::Tokens(tokens.iter().copied().map(TokenId).collect()),
            first_block: 0,
            blocks: blocks.iter().copied().map(BlockId).collect(),
            begin: begins.then(|| {
                Box::new(Begin {
                    sampling: SamplingParams::default(),
                    num_prompt_tokens: 1,
                    skipped: Vec::new(),
                    copy_from: None,
                })
            }),
            sample: true,
            next: None,
        }
    }

    fn copied_from(mut slice: Slice, block: u32) -> Slice {
        slice.begin.as_mut().unwrap().copy_from = Some(BlockId(block));
        slice
    }

    fn apply(sequences: &mut Sequences, slice: Slice) -> Result<(), String> {
        let batch = Batch { finished: vec![], slices: vec![slice] };
        sequences.apply(&batch).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_told_again_is_taken_again() {
        let mut sequences = sequences();
        apply(&mut sequences, slice(0, &[1, 2, 3], &[0], true)).unwrap();
        apply(&mut sequences, slice(3, &[4], &[], false)).unwrap();
        // The scheduler goes back to position 2: the stage rewinds by itself.
        let again = slice(2, &[9], &[], false);
        apply(&mut sequences, again.clone()).unwrap();
        assert_eq!(sequences.of(&again).tokens, [1, 2, 9].map(TokenId));
        assert_eq!(sequences.of(&again).blocks, [BlockId(0)]);
    }

    #[test]
    fn whatever_no_scheduler_would_send_is_refused_by_name() {
        let cases = [
            (slice(0, &[], &[0], true), "0 tokens"),
            (slice(0, &[1; 33], &[0, 1, 2], true), "33 tokens"),
            (slice(0, &[100], &[0], true), "outside the vocabulary"),
            (slice(0, &[1], &[4], true), "outside the cache"),
            (slice(0, &[1; 17], &[0], true), "1 blocks for 17 tokens"),
            (slice(0, &[1], &[0], false), "it is unknown"),
            (slice(1, &[1], &[0], true), "a gap before position 1"),
            (copied_from(slice(0, &[1], &[0], true), 4), "a copy from outside the cache"),
            (slice(60, &[1; 5], &[0, 1, 2, 3], true), "positions 60..65 of 64"),
        ];
        for (slice, expected) in cases {
            let error = apply(&mut sequences(), slice).unwrap_err();
            assert!(error.contains(expected), "{error} doesn't contain {expected}");
        }
    }

    #[test]
    fn a_mask_is_the_vocabularys_and_for_a_slice_that_is_sampled() {
        let sequences = sequences();
        let unsampled = Slice { sample: false, ..slice(0, &[1], &[0], true) };
        let batch = Batch { finished: vec![], slices: vec![slice(0, &[1], &[0], true), unsampled] };
        let check = |masks: &[(usize, &[u32])]| {
            let checked = sequences.check_masks(&batch, &Masks::with(masks));
            checked.map_err(|error| error.to_string())
        };
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&[(0, &[1, 2, 3, 4])]), Ok(()));
        assert!(check(&[(0, &[1, 2, 3])]).unwrap_err().contains("masks of 3 words, 4 are"));
        for slice in [1, 2] {
            assert!(check(&[(slice, &[1; 4])]).unwrap_err().contains("isn't sampled"));
        }
    }

    #[test]
    fn a_finished_sequence_is_forgotten() {
        let mut sequences = sequences();
        apply(&mut sequences, slice(0, &[1], &[0], true)).unwrap();
        let mut next = slice(0, &[1], &[0], true);
        next.sequence = SequenceId(2);
        let batch = Batch { finished: vec![SequenceId(1)], slices: vec![next] };
        sequences.apply(&batch).unwrap();
        assert_eq!(sequences.num_known(), 1);
    }
}
