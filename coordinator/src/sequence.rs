//! One choice of a request: its tokens, and how far the pipeline is with them.

use std::sync::Arc;
use std::time::Instant;

use protocol::{
    Begin, BlockId, Input, Logprobs, RequestId, SamplingParams, SequenceId, Slice, TokenId,
};

use crate::block_manager::BlockManager;
use crate::request::{FinishReason, Request};
use crate::text::TextStream;
use crate::trace::SequenceTrace;

/// One choice of a request.
#[derive(Debug)]
pub struct Sequence {
    /// Its name in batches.
    pub id: SequenceId,
    /// The request that it answers.
    pub request: RequestId,
    /// Which of the request's answers.
    pub choice: u32,
    /// Logprobs of the prompt, gathered chunk by chunk.
    pub prompt_logprobs: Vec<Logprobs>,
    /// Its blocks, all of them reserved when it was admitted.
    pub blocks: Vec<BlockId>,
    /// Steps under way that name it.
    pub num_in_flight: usize,
    /// Ended, cancelled or failed: it goes when the steps that name it have returned.
    pub ended: bool,
    /// Its part of a trace, where its request is traced.
    pub trace: Option<Box<SequenceTrace>>,
    tokens: Vec<TokenId>,
    num_prompt_tokens: usize,
    // Tokens of which a slice was made; the first `num_scheduled` of `tokens`.
    num_scheduled: usize,
    max_tokens: usize,
    sampling: SamplingParams,
    stop_tokens: Arc<[TokenId]>,
    text: TextStream,
}

/// What became of a sampled token.
#[derive(Debug, PartialEq)]
pub struct Accepted {
    /// Text that may be shown.
    pub text: String,
    /// Set when the sequence ends with this token; then all its text has been shown.
    pub finished: Option<(FinishReason, String)>,
}

impl Sequence {
    /// A choice of `request` that nothing was computed for yet and that waits since `now`.
    pub fn new(id: SequenceId, request: &Request, choice: u32, now: Instant) -> Self {
        let trace = request.trace.as_ref().map(|trace| {
            Box::new(SequenceTrace::new(**trace, (request.id, choice), request.prompt.len(), now))
        });
        Self {
            id,
            request: request.id,
            choice,
            prompt_logprobs: Vec::new(),
            blocks: Vec::new(),
            num_in_flight: 0,
            ended: false,
            trace,
            tokens: request.prompt.to_vec(),
            num_prompt_tokens: request.prompt.len(),
            num_scheduled: 0,
            max_tokens: request.max_tokens as usize,
            sampling: SamplingParams {
                choice,
                // Every choice has the same prompt: its logprobs are computed once.
                num_prompt_logprobs: request.sampling.num_prompt_logprobs.filter(|_| choice == 0),
                ..request.sampling.clone()
            },
            stop_tokens: Arc::clone(&request.stop_tokens),
            text: request.text.clone(),
        }
    }

    /// Blocks that prompt and longest answer fill. The last token is never computed, so it needs
    /// no place.
    pub fn num_blocks_needed(&self) -> usize {
        let num_tokens = self.num_prompt_tokens + self.max_tokens;
        BlockManager::blocks_for(num_tokens.saturating_sub(1).max(self.num_prompt_tokens))
    }

    /// Tokens that can be computed now: known, and in no slice yet.
    pub fn num_pending(&self) -> usize {
        if self.ended { 0 } else { self.tokens.len() - self.num_scheduled }
    }

    /// The next at most `max_tokens` pending tokens as a slice.
    pub fn take_slice(&mut self, max_tokens: usize) -> Slice {
        let start = self.num_scheduled;
        let end = self.tokens.len().min(start + max_tokens);
        debug_assert!(start < end);
        self.num_scheduled = end;
        self.num_in_flight += 1;
        let scores_prompt =
            self.sampling.num_prompt_logprobs.is_some() && end <= self.num_prompt_tokens;
        Slice {
            sequence: self.id,
            start: start as u32,
            input: Input::Tokens(self.tokens[start..end].to_vec()),
            first_block: 0,
            blocks: if start == 0 { self.blocks.clone() } else { Vec::new() },
            begin: (start == 0).then(|| {
                Box::new(Begin {
                    sampling: self.sampling.clone(),
                    num_prompt_tokens: self.num_prompt_tokens as u32,
                    skipped: Vec::new(),
                })
            }),
            sample: end == self.tokens.len() && self.max_tokens > 0,
            next: self.tokens.get(end).copied().filter(|_| scores_prompt),
        }
    }

    /// Whether the whole prompt was computed and nothing is to follow.
    pub fn is_scored(&self) -> bool {
        self.max_tokens == 0 && self.num_scheduled == self.tokens.len() && self.num_in_flight == 0
    }

    /// Records a sampled token and decides whether it ends the answer.
    pub fn accept(&mut self, token: TokenId) -> Accepted {
        self.tokens.push(token);
        let num_generated = self.tokens.len() - self.num_prompt_tokens;
        // An end token says that the answer ends; it isn't part of its text.
        if self.stop_tokens.contains(&token) {
            let rest = self.text.finish();
            return Accepted { text: String::new(), finished: Some((FinishReason::Stop, rest)) };
        }
        let piece = self.text.push(token);
        let finished = if piece.stopped {
            Some((FinishReason::Stop, String::new()))
        } else if num_generated >= self.max_tokens {
            Some((FinishReason::Length, self.text.finish()))
        } else {
            None
        };
        Accepted { text: piece.text, finished }
    }
}
