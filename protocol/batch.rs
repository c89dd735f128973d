//! What one step computes, and what comes back.
//!
//! A batch rides with the activations from stage to stage. A stage keeps for each sequence only
//! what batches told it, and any of it can be told again.

use bincode::{Decode, Encode};

use crate::{BlockId, SequenceId, StepId, TokenId};

/// What one step computes.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct Batch {
    /// Sequences that ended or were preempted since the last step: their state is dropped first.
    pub finished: Vec<SequenceId>,
    /// At most one slice of a sequence.
    pub slices: Vec<Slice>,
}

impl Batch {
    /// Rows of the step's hidden state: the tokens of all slices, one after another.
    pub fn num_tokens(&self) -> usize {
        self.slices.iter().map(Slice::num_tokens).sum()
    }
}

/// One sequence's tokens in a batch.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Slice {
    /// Whose tokens these are.
    pub sequence: SequenceId,
    /// The position of the first of them. Authoritative: a stage that holds more rewinds to here.
    pub start: u32,
    /// The tokens.
    pub input: Input,
    /// Where in the sequence's block table `blocks` begins.
    pub first_block: u32,
    /// Blocks that join the table; the first slice of an epoch carries all.
    pub blocks: Vec<BlockId>,
    /// Sent with the first slice of an epoch: what the last stage must know of the sequence.
    pub begin: Option<Box<Begin>>,
    /// Whether the token after the last one of this slice is to be sampled. Unset for all but the
    /// last chunk of a prefill.
    pub sample: bool,
    /// The token that follows the slice, where it is known and its logprob is wanted.
    pub next: Option<TokenId>,
}

impl Slice {
    /// Rows of the step's hidden state that belong to this slice.
    pub fn num_tokens(&self) -> usize {
        match &self.input {
            Input::Tokens(tokens) => tokens.len(),
            Input::SampledBy(_) => 1,
        }
    }
}

/// The input of a slice.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Input {
    /// Tokens that are known: of a prompt, or sampled before.
    Tokens(Vec<TokenId>),
    /// The one token that this earlier step samples for the sequence: lets the scheduler run a
    /// step ahead.
    SampledBy(StepId),
}

/// What the last stage must know of a sequence before it samples.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Begin {
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// How many of the sequence's first tokens are its prompt; what follows was generated.
    pub num_prompt_tokens: u32,
    /// The tokens before the first slice's start, which no stage computes in this epoch.
    pub skipped: Vec<TokenId>,
    /// Before anything of its batch is computed, this block is copied over the one of the slice's
    /// first position: what it holds before that position is the sequence's, too.
    pub copy_from: Option<BlockId>,
}

/// How tokens are chosen: with the logits, the sequence's tokens and the position, all that a
/// token depends on (there is no sampler state).
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct SamplingParams {
    /// 0 takes the most probable token.
    pub temperature: f32,
    /// Only the k most probable tokens stay; 0 keeps all.
    pub top_k: u32,
    /// Only the most probable tokens that together reach this share stay; 1 keeps all.
    pub top_p: f32,
    /// Only tokens at least this many times as probable as the best stay; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens of prompt and answer; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once for each time that a token stands in the answer.
    pub frequency_penalty: f32,
    /// Subtracted once when a token stands in the answer.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// The request's seed; drawn once when the client sent none.
    pub seed: u64,
    /// Which of the request's choices this is.
    pub choice: u32,
    /// How many of the most probable tokens to return with each sampled one; `None`: no logprobs.
    pub num_logprobs: Option<u32>,
    /// The same for the tokens of the prompt.
    pub num_prompt_logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            choice: 0,
            num_logprobs: None,
            num_prompt_logprobs: None,
        }
    }
}

/// What the last stage says of one slice.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct SliceOutput {
    /// Names the slice: a batch has at most one of a sequence.
    pub sequence: SequenceId,
    /// The position that the sampled token takes: one past the slice.
    pub position: u32,
    /// The sampled token, where one was asked for.
    pub token: Option<TokenId>,
    /// Its logprobs, where they were asked for.
    pub logprobs: Option<Logprobs>,
    /// The logprobs of the slice's tokens after its first, then of [`Slice::next`].
    pub prompt_logprobs: Vec<Logprobs>,
}

/// Log-probabilities at one position, of the raw logits: before penalties, bias and temperature.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Logprobs {
    /// Of the token that stands there.
    pub chosen: TokenLogprob,
    /// The most probable tokens, best first, ties by token id.
    pub top: Vec<TokenLogprob>,
}

/// A token and the natural logarithm of its probability.
#[derive(Clone, Copy, Debug, PartialEq, Encode, Decode)]
pub struct TokenLogprob {
    /// The one that was sampled, or could have been.
    pub token: TokenId,
    /// ln p, at most 0.
    pub logprob: f32,
}
