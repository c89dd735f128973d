//! Which rows of a step's hidden state are turned into logits, and what is wanted of each.

use std::collections::HashMap;

use protocol::{Batch, Input, Logprobs, Masks, Slice, SliceOutput, TokenId, TokenLogprob};
use shaders::penalize::Adjustment;
use shaders::sampler::{Row, RowResult, Sampling};

use crate::sequences::{Sequence, Sequences};

/// The rows of a batch, and whose they are.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// Indexes into the hidden state, ascending.
    pub indexes: Vec<u32>,
    wanted: Vec<Wanted>,
}

/// What is wanted of a row, and for which slice.
#[derive(Debug)]
struct Wanted {
    slice: usize,
    sampling: Option<Sampling>,
    adjustments: Vec<Adjustment>,
    mask: Option<Vec<u32>>,
    /// The token whose logprob is wanted, where none is sampled.
    score: Option<TokenId>,
    num_logprobs: Option<u32>,
}

impl Rows {
    /// Becomes the rows of `batch`, whose sequences are known.
    pub(crate) fn fill(&mut self, batch: &Batch, sequences: &Sequences) {
        self.indexes.clear();
        self.wanted.clear();
        let mut first_row = 0;
        for (number, slice) in batch.slices.iter().enumerate() {
            self.add_slice(number, slice, sequences.of(slice), first_row);
            first_row += slice.num_tokens();
        }
    }

    /// Takes in which tokens may be sampled.
    pub(crate) fn mask(&mut self, masks: &Masks) {
        let mut sampled = self.wanted.iter_mut().filter(|wanted| wanted.sampling.is_some());
        for (number, mask) in masks.iter() {
            // Both ascend.
            if let Some(wanted) = sampled.find(|wanted| wanted.slice == number) {
                wanted.mask = Some(mask.collect());
            }
        }
    }

    fn add_slice(&mut self, number: usize, slice: &Slice, sequence: &Sequence, first_row: usize) {
        let sampling = &sequence.begin.sampling;
        let num_tokens = slice.num_tokens();
        if let (Some(num_logprobs), Input::Tokens(tokens)) =
            (sampling.num_prompt_logprobs, &slice.input)
        {
            let num_prompt = sequence.begin.num_prompt_tokens as usize;
            let following = tokens.iter().skip(1).copied().chain(slice.next);
            for (i, token) in following.enumerate() {
                if slice.start as usize + i + 1 < num_prompt {
                    self.indexes.push((first_row + i) as u32);
                    self.wanted.push(Wanted {
                        slice: number,
                        sampling: None,
                        adjustments: Vec::new(),
                        mask: None,
                        score: Some(token),
                        num_logprobs: Some(num_logprobs),
                    });
                }
            }
        }
        if slice.sample {
            self.indexes.push((first_row + num_tokens - 1) as u32);
            self.wanted.push(Wanted {
                slice: number,
                sampling: Some(Sampling {
                    temperature: sampling.temperature,
                    top_k: sampling.top_k,
                    top_p: sampling.top_p,
                    min_p: sampling.min_p,
                    repetition_penalty: sampling.repetition_penalty,
                    frequency_penalty: sampling.frequency_penalty,
                    presence_penalty: sampling.presence_penalty,
                    seed: sampling.seed,
                    choice: sampling.choice,
                    position: slice.start + num_tokens as u32,
                }),
                adjustments: adjustments(sequence),
                mask: None,
                score: None,
                num_logprobs: sampling.num_logprobs,
            });
        }
    }

    /// What is wanted of each row, as the sampler takes it.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Row<'_>> + Clone {
        self.wanted.iter().map(|wanted| Row {
            sampling: wanted.sampling,
            adjustments: &wanted.adjustments,
            mask: wanted.mask.as_deref(),
            score: wanted.score.map(|token| token.0),
            num_logprobs: wanted.num_logprobs,
        })
    }

    /// One output for each slice of `batch`, from the results of all rows in order.
    pub(crate) fn outputs(
        &self,
        batch: &Batch,
        results: impl Iterator<Item = RowResult>,
    ) -> Vec<SliceOutput> {
        let mut outputs: Vec<_> = batch
            .slices
            .iter()
            .map(|slice| SliceOutput {
                sequence: slice.sequence,
                position: slice.start + slice.num_tokens() as u32,
                token: None,
                logprobs: None,
                prompt_logprobs: Vec::new(),
            })
            .collect();
        for (wanted, result) in self.wanted.iter().zip(results) {
            let output = &mut outputs[wanted.slice];
            let Some(token) = wanted.score.or(result.token.map(TokenId)) else { continue };
            let named = |(token, logprob)| TokenLogprob { token: TokenId(token), logprob };
            let logprobs = wanted.num_logprobs.and(result.logprob).map(|logprob| Logprobs {
                chosen: TokenLogprob { token, logprob },
                top: result.top.into_iter().map(named).collect(),
            });
            if wanted.score.is_some() {
                output.prompt_logprobs.extend(logprobs);
            } else {
                output.token = Some(token);
                output.logprobs = logprobs;
            }
        }
        outputs
    }
}

/// What penalties and bias change, one entry for each token: a function of the sequence's tokens.
fn adjustments(sequence: &Sequence) -> Vec<Adjustment> {
    let sampling = &sequence.begin.sampling;
    let penalises = sampling.repetition_penalty != 1.0
        || sampling.frequency_penalty != 0.0
        || sampling.presence_penalty != 0.0;
    let mut changed: HashMap<u32, Adjustment> = HashMap::new();
    let entry = |changed: &mut HashMap<u32, Adjustment>, token: TokenId| {
        let unchanged = Adjustment { token: token.0, ..Adjustment::default() };
        *changed.entry(token.0).or_insert(unchanged)
    };
    if penalises {
        for (position, &token) in sequence.tokens.iter().enumerate() {
            let mut adjustment = entry(&mut changed, token);
            if position < sequence.begin.num_prompt_tokens as usize {
                adjustment.in_prompt = true;
            } else {
                adjustment.num_in_answer += 1;
            }
            changed.insert(token.0, adjustment);
        }
    }
    for &(token, bias) in &sampling.logit_bias {
        let mut adjustment = entry(&mut changed, token);
        adjustment.bias += bias;
        changed.insert(token.0, adjustment);
    }
    let mut adjustments: Vec<_> = changed.into_values().collect();
    adjustments.sort_unstable_by_key(|adjustment| adjustment.token);
    adjustments
}
