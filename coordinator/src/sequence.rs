//! One choice of a request: its tokens, and how far a pipeline is with them.
//!
//! A sequence waits in the [`Queue`](crate::queue::Queue) or runs in a
//! [`Lane`](crate::lane::Lane), and goes from one to the other any number of times: whatever a
//! pipeline knew of it can be told again, prompt and answer alike.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::{
    BLOCK_TOKENS, Begin, BlockId, Input, Logprobs, RequestId, SamplingParams, SequenceId, Slice,
    StepId, TokenId, config,
};

use crate::block_manager::{BlockHash, BlockManager};
use crate::request::{
    AnswerText, Constraint, FinishReason, Going, NextTokens, Priority, Request, Resumed,
};
use crate::trace::{PhaseEnded, SequenceTrace};

/// Tokens that a sequence which had to give way computes in peace once it runs again, so that it
/// gets on however often somebody more urgent comes.
const UNDISTURBED_TOKENS: usize = 16;

/// One choice of a request.
#[derive(Debug)]
pub struct Sequence {
    /// Its number since it was submitted: who came first.
    pub ticket: u64,
    /// The round in which it is its turn among those of its tenant.
    pub round: u64,
    /// Its name in batches, a new one each time that it is admitted: what an older step says of it
    /// names nobody.
    pub id: SequenceId,
    /// Which of the request's answers.
    pub choice: u32,
    /// Its blocks while it runs.
    pub blocks: Vec<BlockId>,
    /// Steps under way that name it.
    pub num_in_flight: usize,
    /// How its steps stand in a trace, where its request is traced.
    pub trace: Option<Box<SequenceTrace>>,
    /// The class of pipeline that its answer so far comes from.
    pub class: Option<u64>,
    /// Steps that failed with it and with others: from then on it runs alone, so that whoever is
    /// at fault fails alone.
    pub num_failures: u32,
    /// Others that passed it since it waited last.
    pub num_passed: u32,
    /// Of its last step, to see who was passed over.
    pub last_step: u64,
    request: Arc<Request>,
    generated: Vec<TokenId>,
    // A copy of its request's, from its first token on.
    text: Option<Box<dyn AnswerText>>,
    constraint: Option<Box<dyn Constraint>>,
    // Logprobs of the prompt, gathered chunk by chunk, and whether the client has them.
    prompt_logprobs: Vec<Logprobs>,
    is_prompt_told: bool,
    // Tokens of which a slice was made since it was admitted: at most one more than are known.
    num_scheduled: usize,
    // The last step since then that samples for it.
    sampled_by: Option<StepId>,
    // Tokens that were charged to its tenant: what is computed again is free.
    num_charged: usize,
    // What its pipeline was told since it was admitted.
    has_begun: bool,
    num_told_blocks: usize,
    // Of its full blocks, as far as anybody asked; and how many of them others may share.
    hashes: Vec<BlockHash>,
    num_shared: usize,
    // Held until its first slice is made: what its block begins as a copy of.
    copy_from: Option<BlockId>,
    is_tail_shared: bool,
    num_admissions: u32,
    // It may not be made to give way before it has generated so many.
    undisturbed_until: usize,
}

/// What became of a sampled token.
#[derive(Debug, PartialEq)]
pub struct Accepted {
    /// Text that may be shown.
    pub text: String,
    /// Set when the sequence ends with this token; then all its text has been shown.
    pub finished: Option<(FinishReason, String)>,
    /// Why it can't go on, if so.
    pub broken: Option<String>,
}

impl Sequence {
    /// A choice of `request` that nothing was computed for yet and that waits since `now`.
    pub fn new(ticket: u64, request: &Arc<Request>, choice: u32, now: Instant) -> Self {
        let trace = request.trace.as_ref().map(|trace| {
            Box::new(SequenceTrace::new(**trace, (request.id, choice), request.prompt.len(), now))
        });
        let mut sequence = Self {
            ticket,
            round: 0,
            id: SequenceId::default(),
            choice,
            blocks: Vec::new(),
            num_in_flight: 0,
            trace,
            class: None,
            num_failures: 0,
            num_passed: 0,
            last_step: 0,
            request: Arc::clone(request),
            generated: Vec::new(),
            text: None,
            constraint: None,
            prompt_logprobs: Vec::new(),
            is_prompt_told: false,
            num_scheduled: 0,
            sampled_by: None,
            num_charged: 0,
            has_begun: false,
            num_told_blocks: 0,
            hashes: Vec::new(),
            num_shared: 0,
            copy_from: None,
            is_tail_shared: false,
            num_admissions: 0,
            undisturbed_until: 0,
        };
        if let Some(Resumed { tokens, class }) = request.resumed.as_ref() {
            sequence.class = *class;
            sequence.num_admissions = u32::from(!tokens.is_empty());
            sequence.is_prompt_told = !tokens.is_empty();
            tokens.iter().for_each(|token| drop(sequence.accept(*token)));
        }
        sequence
    }

    /// How an answer of these tokens ends with the last of them, if it does.
    pub fn ending(request: Request, tokens: &[TokenId]) -> Option<(FinishReason, String)> {
        let mut sequence = Self::new(0, &Arc::new(request), 0, Instant::now());
        let accepted = tokens.iter().map(|token| sequence.accept(*token));
        accepted.last().and_then(|accepted| accepted.finished)
    }

    /// What it answers.
    pub fn request(&self) -> &Arc<Request> {
        &self.request
    }

    /// The request's id.
    pub fn request_id(&self) -> RequestId {
        self.request.id
    }

    /// Its request's priority, which waiting doesn't change.
    pub fn priority(&self) -> Priority {
        self.request.priority
    }

    /// Tokens that are known: prompt and answer.
    pub fn num_tokens(&self) -> usize {
        self.request.prompt.len() + self.generated.len()
    }

    /// Those tokens, in order.
    pub fn known(&self) -> impl Iterator<Item = TokenId> + '_ {
        self.request.prompt.iter().chain(&self.generated).copied()
    }

    /// Tokens of its answer.
    pub fn num_generated(&self) -> usize {
        self.generated.len()
    }

    /// Whether a pipeline has computed it before.
    pub(crate) fn was_admitted(&self) -> bool {
        self.num_admissions > 0
    }

    /// When its deadline leaves no more time than computing it may take, by the configured pace.
    pub(crate) fn slack_ends(&self, config: &config::Scheduler) -> Option<Instant> {
        let deadline = self.request.deadline?;
        let num_left = self.request.max_tokens as usize - self.generated.len();
        let num_chunks = self.num_tokens().div_ceil(config.max_batched_tokens as usize);
        let pace = Duration::from_millis(config.target_step_ms);
        deadline.checked_sub(pace * (num_left + num_chunks) as u32)
    }

    /// The tokens of its prompt that its tenant has yet to be charged for, once.
    pub(crate) fn charge_prompt(&mut self) -> usize {
        let num_new = self.request.prompt.len().saturating_sub(self.num_charged);
        self.num_charged += num_new;
        num_new
    }

    /// Blocks that prompt and longest answer fill.
    pub fn num_blocks_needed(&self) -> usize {
        self.request.num_blocks()
    }

    /// Blocks that what is known and `window` more tokens fill.
    pub fn num_blocks_to_begin(&self, window: usize) -> usize {
        let known = BlockManager::blocks_for(self.num_tokens() + window);
        known.min(self.num_blocks_needed())
    }

    /// It runs under this name, with these blocks, of which the first `num_cached` hold what they
    /// should already; if `copy_from` is some, the next will, as a copy of that.
    pub fn admit(
        &mut self,
        id: SequenceId,
        blocks: Vec<BlockId>,
        num_cached: usize,
        copy_from: Option<BlockId>,
    ) {
        debug_assert!(self.blocks.is_empty());
        (self.id, self.blocks, self.copy_from) = (id, blocks, copy_from);
        (self.num_scheduled, self.num_shared) = (num_cached * BLOCK_TOKENS, num_cached);
        if copy_from.is_some() {
            self.num_scheduled = self.request.prompt.len() - 1;
        }
        if self.num_admissions > 0 {
            self.undisturbed_until = self.generated.len() + UNDISTURBED_TOKENS;
        }
        self.num_admissions += 1;
    }

    /// It waits again; what was computed of it is to be computed anew. Its blocks are given back.
    pub(crate) fn preempt(&mut self) -> Vec<BlockId> {
        (self.num_scheduled, self.sampled_by, self.num_in_flight) = (0, None, 0);
        (self.has_begun, self.num_told_blocks, self.num_shared) = (false, 0, 0);
        self.is_tail_shared = false;
        self.prompt_logprobs.clear();
        self.take_blocks()
    }

    /// Blocks that it holds: its own, and the one of which it is to have a copy.
    pub fn held(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.blocks.iter().copied().chain(self.copy_from)
    }

    pub(crate) fn take_blocks(&mut self) -> Vec<BlockId> {
        let mut blocks = std::mem::take(&mut self.blocks);
        blocks.extend(self.copy_from.take());
        blocks
    }

    /// What its block began as a copy of, once a slice says so: it holds that no more.
    pub(crate) fn take_copied(&mut self) -> Option<BlockId> {
        self.copy_from.take_if(|_| self.has_begun)
    }

    /// Tokens that are yet to be computed, at most.
    pub(crate) fn num_outstanding(&self) -> usize {
        let num_left = self.request.max_tokens as usize - self.generated.len();
        self.num_tokens() + num_left - self.num_scheduled
    }

    /// Whether one account is charged for both.
    pub(crate) fn pays_with(&self, other: &Self) -> bool {
        let (a, b) = (&self.request, &other.request);
        Arc::ptr_eq(a, b) || (a.priority == b.priority && a.tenant == b.tenant)
    }

    /// The phase of its trace that ends with it.
    pub(crate) fn end_trace(&mut self, error: Option<&'static str>) -> Option<PhaseEnded> {
        self.trace.take().and_then(|trace| trace.ended(error))
    }

    /// Whether somebody more urgent may take its place.
    pub fn may_give_way(&self) -> bool {
        self.generated.len() >= self.undisturbed_until
    }

    /// Tokens that can be computed now: known, and in no slice yet.
    pub fn num_pending(&self) -> usize {
        self.num_tokens().saturating_sub(self.num_scheduled)
    }

    /// The step under way that samples its next token, where that is all there is to compute and
    /// the answer may go on after it: the token can be computed before anybody knows it.
    pub(crate) fn promised_by(&self) -> Option<StepId> {
        let is_next = self.num_scheduled == self.num_tokens();
        let goes_on = self.generated.len() + 1 < self.request.max_tokens as usize;
        self.sampled_by.filter(|_| is_next && goes_on && self.num_failures == 0)
    }

    /// Whether not all tokens may come everywhere in its answer.
    pub(crate) fn keeps_to_something(&self) -> bool {
        self.request.constraint.is_some()
    }

    /// Where it is found out which tokens may come next; none: all may.
    pub fn next(&self) -> Option<Arc<dyn NextTokens>> {
        self.constraint.as_ref().or(self.request.constraint.as_ref())?.next()
    }

    /// Tokens that a slice of at most `max_tokens` would leave computed: the promised one where
    /// none is pending.
    pub fn num_after(&self, max_tokens: usize) -> usize {
        self.num_scheduled + self.num_pending().max(1).min(max_tokens)
    }

    /// The next at most `max_tokens` pending tokens, or the promised one, as a slice of this step,
    /// and how many of them were never computed before. There are blocks for them.
    pub(crate) fn take_slice(&mut self, max_tokens: usize, step: StepId) -> (Slice, usize) {
        let (start, end) = (self.num_scheduled, self.num_after(max_tokens));
        debug_assert!(start < end);
        debug_assert!(end <= self.blocks.len() * BLOCK_TOKENS);
        self.num_scheduled = end;
        self.num_in_flight += 1;
        let num_new = end.saturating_sub(self.num_charged.max(start));
        self.num_charged = self.num_charged.max(end);
        let scores_prompt = self.scores_prompt() && end <= self.request.prompt.len();
        let begin = (!self.has_begun).then(|| {
            Box::new(Begin {
                sampling: self.sampling(),
                num_prompt_tokens: self.request.prompt.len() as u32,
                skipped: self.tokens(0, start),
                copy_from: self.copy_from,
            })
        });
        let promised = self.sampled_by.filter(|_| start == self.num_tokens());
        let sample = end >= self.num_tokens() && self.request.max_tokens > 0;
        self.sampled_by = if sample { Some(step) } else { self.sampled_by };
        let first_block = self.num_told_blocks;
        (self.has_begun, self.num_told_blocks) = (true, self.blocks.len());
        let slice = Slice {
            sequence: self.id,
            start: start as u32,
            input: promised
                .map_or_else(|| Input::Tokens(self.tokens(start, end)), Input::SampledBy),
            first_block: first_block as u32,
            blocks: self.blocks[first_block..].to_vec(),
            begin,
            sample,
            next: if scores_prompt { self.token(end) } else { None },
        };
        (slice, num_new)
    }

    /// Its blocks that a slice was made of and that nobody was told of yet, with their hashes: full
    /// ones whose tokens are known, and that in which its prompt ends.
    pub fn share(&mut self) -> impl Iterator<Item = (BlockId, BlockHash)> + '_ {
        let num_full = self.num_scheduled.min(self.num_tokens()) / BLOCK_TOKENS;
        self.hash(num_full);
        let num_before = self.request.prompt.len() - 1;
        let mut tail = None;
        if !self.is_tail_shared && self.num_scheduled >= num_before {
            self.is_tail_shared = true;
            tail = self.prompt_tail().map(|hash| (self.blocks[num_before / BLOCK_TOKENS], hash));
        }
        let from = self.num_shared;
        self.num_shared = num_full.max(from);
        let num_new = num_full.saturating_sub(from);
        let full = self.blocks[from..].iter().copied().zip(self.hashes[from..].iter().copied());
        full.take(num_new).chain(tail)
    }

    /// Hashes of what it may find computed, without its last token, which is always computed: full
    /// blocks, and, before it has answered anything, the block in which its prompt ends.
    pub(crate) fn sharable(&mut self) -> (&[BlockHash], Option<BlockHash>) {
        let num_blocks = (self.num_tokens() - 1) / BLOCK_TOKENS;
        self.hash(num_blocks);
        let tail = if self.generated.is_empty() { self.prompt_tail() } else { None };
        (&self.hashes[..num_blocks], tail)
    }

    /// Whether it may use what others computed: not where every token's logprobs are wanted.
    pub(crate) fn may_share(&self) -> bool {
        !self.scores_prompt()
    }

    /// Tokens of the prompt, its last one apart, that don't fill a block.
    pub(crate) fn num_tail_tokens(&self) -> usize {
        (self.request.prompt.len() - 1) % BLOCK_TOKENS
    }

    /// Whether the slice that was made last is to tell its hidden state.
    pub fn tells_hidden(&self) -> bool {
        self.request.tells_hidden && self.num_scheduled == self.num_tokens()
    }

    /// Whether the whole prompt was computed and nothing is to follow.
    pub(crate) fn is_scored(&self) -> bool {
        self.request.max_tokens == 0
            && self.num_scheduled == self.num_tokens()
            && self.num_in_flight == 0
    }

    /// Takes in logprobs of the prompt; all of them, once the last has come.
    pub(crate) fn take_prompt_logprobs(
        &mut self,
        logprobs: Vec<Logprobs>,
        is_last: bool,
    ) -> Option<Vec<Logprobs>> {
        if self.is_prompt_told {
            return None;
        }
        self.prompt_logprobs.extend(logprobs);
        if !is_last || self.prompt_logprobs.is_empty() {
            return None;
        }
        self.is_prompt_told = true;
        Some(std::mem::take(&mut self.prompt_logprobs))
    }

    /// No step under way names it, so none computes more than is known: what a step that came out
    /// of turn said was discarded.
    pub(crate) fn rewind(&mut self) {
        self.num_scheduled = self.num_scheduled.min(self.num_tokens() - 1);
    }

    /// Records a sampled token and decides whether it ends the answer.
    pub fn accept(&mut self, token: TokenId) -> Accepted {
        self.generated.push(token);
        let text = self.text.get_or_insert_with(|| self.request.text.clone());
        // An end token says that the answer ends; it isn't part of its text.
        if self.request.stop_tokens.contains(&token) {
            let finished = Some((FinishReason::Stop, text.finish()));
            let kept = self.constraint.as_ref().or(self.request.constraint.as_ref());
            let broken = kept.and_then(|it| it.end().err());
            return Accepted { text: String::new(), finished, broken };
        }
        let piece = text.push(token);
        if self.constraint.is_none() {
            self.constraint.clone_from(&self.request.constraint);
        }
        let going = self.constraint.as_mut().map_or(Ok(Going::On), |it| it.push(token));
        let finished = if let Some(number) = piece.stopped {
            Some((FinishReason::StopString(number), String::new()))
        } else if going == Ok(Going::Over) {
            Some((FinishReason::Stop, text.finish()))
        } else if self.generated.len() >= self.request.max_tokens as usize {
            Some((FinishReason::Length, text.finish()))
        } else {
            None
        };
        let broken = going.err().filter(|_| finished.is_none());
        Accepted { text: piece.text, finished, broken }
    }

    /// Whether logprobs of its prompt are still to be computed. Every choice has the same prompt:
    /// its logprobs are computed once.
    fn scores_prompt(&self) -> bool {
        let wanted = self.request.sampling.num_prompt_logprobs.is_some();
        wanted && self.choice == 0 && !self.is_prompt_told
    }

    fn sampling(&self) -> SamplingParams {
        let sampling = &self.request.sampling;
        SamplingParams {
            choice: self.choice,
            num_prompt_logprobs: sampling.num_prompt_logprobs.filter(|_| self.scores_prompt()),
            ..sampling.clone()
        }
    }

    fn token(&self, position: usize) -> Option<TokenId> {
        let prompt = &self.request.prompt;
        prompt.get(position).or_else(|| self.generated.get(position - prompt.len())).copied()
    }

    fn tokens(&self, start: usize, end: usize) -> Vec<TokenId> {
        let prompt = &self.request.prompt;
        let split = |at: usize| (at.min(prompt.len()), at.saturating_sub(prompt.len()));
        let ((a, c), (b, d)) = (split(start), split(end));
        let mut tokens = Vec::with_capacity(end - start);
        tokens.extend_from_slice(&prompt[a..b]);
        tokens.extend_from_slice(&self.generated[c..d]);
        tokens
    }

    fn prompt_tail(&mut self) -> Option<BlockHash> {
        let end = self.request.prompt.len() - 1;
        let start = end - self.num_tail_tokens();
        let num_blocks = start / BLOCK_TOKENS;
        self.hash(num_blocks);
        let before = |sequence: &Self| match num_blocks.checked_sub(1) {
            Some(last) => sequence.hashes[last],
            None => BlockHash::root(&sequence.request.tenant),
        };
        (start < end).then(|| before(self).then(&self.request.prompt[start..end]))
    }

    fn hash(&mut self, num_blocks: usize) {
        while self.hashes.len() < num_blocks {
            let start = self.hashes.len() * BLOCK_TOKENS;
            let root = || BlockHash::root(&self.request.tenant);
            let before = self.hashes.last().copied().unwrap_or_else(root);
            self.hashes.push(before.then(&self.tokens(start, start + BLOCK_TOKENS)));
        }
    }
}
