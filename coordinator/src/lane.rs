//! What runs in one pipeline: its blocks, its sequences, and the steps under way.
//!
//! Pure: no clock, task or channel. `schedule` takes from the queue what fits and makes a batch of
//! what can be computed now, `update` records what was sampled, `evict` gives everything back to
//! the queue. Stages compute steps in the order in which they are sent, so a block may be handed on
//! while a step that writes it is still under way, and a block that a step fills may be shared by
//! the next.

mod admission;
#[cfg(test)]
mod busy_tests;
mod check;
mod chunk;
#[cfg(test)]
mod constrained_tests;
mod masks;
mod order;
mod pace;
#[cfg(test)]
mod run_ahead_tests;
#[cfg(test)]
mod tests;
mod told;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use protocol::{
    Batch, Input, PipelineId, RequestId, Sampled, SequenceId, SliceOutput, StepId, TraceContext,
    config,
};

pub use self::admission::admit;
use self::chunk::MIN_CHUNK;
use self::masks::Awaited;
use self::pace::Pace;
pub use self::told::Told;
pub(crate) use self::told::{Obstacle, Prefix};
use crate::block_manager::{BlockHash, BlockManager};
use crate::history::Decision;
use crate::queue::Queue;
use crate::request::{Event, FinishReason, RequestError};
use crate::sequence::Sequence;
use crate::step_cost::StepCost;

/// Accounts among which a slice's own is looked for, so that each is charged once for a step.
const MAX_ACCOUNTS: usize = 32;

/// Steps that may fail with a sequence among others before it is given up.
const MAX_FAILURES: u32 = 3;

/// What a pipeline can hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Blocks of the KV cache: the fewest of any stage.
    pub num_blocks: usize,
    /// Stages, and so steps that may be under way at once.
    pub num_stages: usize,
    /// Answers are bit-equal between pipelines of the same class.
    pub class: u64,
    /// Whether every stage hands on masks.
    pub takes_masks: bool,
}

/// One pipeline's part of the work.
#[derive(Debug)]
pub struct Lane {
    config: config::Scheduler,
    capacity: Capacity,
    pipeline: PipelineId,
    blocks: BlockManager,
    // In the order of admission, and so of their ids.
    running: Vec<Sequence>,
    steps: VecDeque<InFlight>,
    // Sequences that stages may forget, told with the next batch.
    finished: Vec<SequenceId>,
    // What of blocks a running sequence is about to compute, and which.
    coming: HashMap<BlockHash, SequenceId>,
    cost: StepCost,
    pace: Pace,
    // When the last step came back.
    returned: Option<Instant>,
    next_sequence: u64,
    next_step: u64,
}

/// A step under way.
#[derive(Debug)]
struct InFlight {
    step: StepId,
    since: Instant,
    // Since when it is no more than a step for each stage: before, it waited its turn.
    began: Instant,
    num_tokens: usize,
    sequences: Vec<SequenceId>,
    finished: Vec<SequenceId>,
    // What its masks hang on, until they are made.
    awaited: Option<Awaited>,
    // What it sampled, where that came before an older step's.
    early: Option<Sampled>,
}

impl InFlight {
    /// Whether what it samples is of use still: not once everybody was evicted.
    fn is_waited_for(&self) -> bool {
        !self.sequences.is_empty()
    }
}

/// A step to send.
#[derive(Debug, PartialEq)]
pub struct Scheduled {
    /// Its number.
    pub step: StepId,
    /// What it computes.
    pub batch: Batch,
    /// Whether its masks are to come ([`Lane::settled`]).
    pub awaits_masks: bool,
    /// Those of its slices whose hidden state is to be told.
    pub tells_hidden: Vec<u32>,
    /// The places in traces that its stages are to tell of.
    pub traces: Vec<TraceContext>,
}

/// What a step brought.
#[derive(Debug, Default, PartialEq)]
pub struct Update {
    /// How long the step was under way.
    pub duration: Duration,
    /// How long its token took, where one sequence ran: since the step before it came back, which
    /// it may have waited behind, or since it was sent.
    pub alone: Option<Duration>,
    /// Tokens that it computed; 0 when it was not under way: it came twice.
    pub num_tokens: usize,
}

/// How full a lane is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneLoad {
    /// Sequences that run.
    pub num_running: usize,
    /// Blocks held by running sequences.
    pub num_used_blocks: usize,
    /// Blocks in all.
    pub num_blocks: usize,
}

impl Lane {
    /// Nothing runs.
    pub fn new(config: config::Scheduler, capacity: Capacity) -> Self {
        Self {
            blocks: BlockManager::new(capacity.num_blocks, &config),
            config,
            capacity,
            pipeline: PipelineId::default(),
            running: Vec::new(),
            steps: VecDeque::new(),
            finished: Vec::new(),
            coming: HashMap::new(),
            cost: StepCost::default(),
            pace: Pace::default(),
            returned: None,
            next_sequence: 0,
            next_step: 0,
        }
    }

    /// What it can hold.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Whether nothing runs and no step is under way.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.steps.is_empty()
    }

    /// Whether a step may be sent now.
    pub fn has_room(&self) -> bool {
        self.steps.len() < self.max_steps()
    }

    /// The next step, when there is something to compute and room for a step.
    pub fn schedule(
        &mut self,
        queue: &mut Queue,
        now: Instant,
        told: &mut Told,
    ) -> Option<Scheduled> {
        if !self.has_room() {
            return None;
        }
        let order = self.order();
        // A group: with every stage busy, each gets its share of the sequences.
        let max_slices = self.running.len().div_ceil(self.capacity.num_stages);
        let max_tokens = self.config.max_batched_tokens as usize;
        let (limit, chunk) = (self.limit(), self.chunk());
        let (mut num_tokens, mut num_members, mut has_prefill) = (0, 0, false);
        let (mut slices, mut traces) = (Vec::with_capacity(max_slices), Vec::new());
        let mut tells_hidden = Vec::new();
        let mut charges: Vec<(usize, usize)> = Vec::new();
        for (.., i) in order {
            if num_tokens == max_tokens {
                break;
            }
            let is_prefill = self.running[i].num_pending() > 1;
            // A chunk right behind another of its prompt is no further member of the group.
            let is_member = !is_prefill || self.running[i].num_in_flight == 0;
            let room = if has_prefill || is_prefill { limit } else { max_tokens };
            let mut room = room.saturating_sub(num_tokens);
            if is_prefill {
                room = room.min(chunk.saturating_sub(num_tokens).max(MIN_CHUNK));
            }
            let is_full = is_member && num_members == max_slices;
            if is_full || room == 0 || !self.grow(i, room, &slices, told) {
                continue;
            }
            num_members += usize::from(is_member);
            let sequence = &mut self.running[i];
            has_prefill |= is_prefill;
            let (slice, num_new) = sequence.take_slice(room, StepId(self.next_step));
            told.chunk(sequence);
            sequence.last_step = self.next_step;
            traces.extend(sequence.trace.as_mut().and_then(|trace| match &slice.input {
                Input::Tokens(_) => trace.step(),
                Input::SampledBy(_) => trace.decode_step(now),
            }));
            num_tokens += slice.num_tokens();
            if sequence.tells_hidden() {
                tells_hidden.push(slices.len() as u32);
            }
            slices.push(slice);
            // A few accounts, most of the time: each is charged once.
            let pays =
                |(first, _): &&mut (usize, usize)| self.running[*first].pays_with(&self.running[i]);
            match charges.iter_mut().rev().take(MAX_ACCOUNTS).find(pays) {
                Some((_, sum)) => *sum += num_new,
                None => charges.push((i, num_new)),
            }
        }
        for (of, sum) in charges {
            queue.charge(self.running[of].request(), sum);
        }
        self.return_preempted(queue, now);
        if slices.is_empty() {
            return None;
        }
        slices.iter().for_each(|slice| self.share(slice.sequence));
        let step = StepId(self.next_step);
        let awaited = self.awaited(&slices);
        let awaits_masks = awaited.is_some();
        self.next_step += 1;
        let batch = Batch { finished: std::mem::take(&mut self.finished), slices };
        self.steps.push_back(InFlight {
            step,
            since: now,
            began: now,
            num_tokens,
            sequences: batch.slices.iter().map(|slice| slice.sequence).collect(),
            finished: batch.finished.clone(),
            awaited,
            early: None,
        });
        self.check_invariants();
        Some(Scheduled { step, batch, awaits_masks, tells_hidden, traces })
    }

    /// Records what a step sampled. A step that isn't under way is ignored: it came twice. One that
    /// comes before an older one waits for that one: stages report over links of their own, so the
    /// older may have failed, of which nothing was heard yet, and this have read what isn't there.
    pub fn update(
        &mut self,
        step: StepId,
        sampled: Sampled,
        now: Instant,
        told: &mut Told,
    ) -> Update {
        let Some(at) = self.steps.iter().position(|it| it.step == step) else {
            return Update::default();
        };
        if self.steps.range(..at).any(InFlight::is_waited_for) {
            self.steps[at].early = Some(sampled);
            return Update::default();
        }
        let update = self.take_in(step, sampled, now, told);
        while let Some(next) = self.steps.iter_mut().find(|it| it.is_waited_for())
            && let Some(sampled) = next.early.take()
        {
            let step = next.step;
            self.take_in(step, sampled, now, told);
        }
        update
    }

    /// The oldest step has returned.
    fn take_in(&mut self, step: StepId, sampled: Sampled, now: Instant, told: &mut Told) -> Update {
        let in_flight = self.take_step(step).expect("it is under way");
        let began =
            self.returned.replace(now).map_or(in_flight.since, |it| it.max(in_flight.since));
        let is_alone = self.running.len() == 1;
        let mut hidden = sampled.hidden.into_iter().peekable();
        for (slice, output) in (0..).zip(sampled.outputs) {
            let hidden = hidden.next_if(|row| row.slice == slice);
            if let Ok(i) = self.running.binary_search_by_key(&output.sequence, |it| it.id) {
                if !self.tell_hidden(i, hidden, told) {
                    continue;
                }
                self.record(i, output, now, told);
            }
        }
        self.running.retain(|sequence| !sequence.blocks.is_empty());
        self.check_invariants();
        self.cost.record(in_flight.num_tokens, now.saturating_duration_since(in_flight.began));
        if let Some(ahead) = self.steps.get_mut(self.capacity.num_stages - 1) {
            ahead.began = now;
        }
        let duration = now.saturating_duration_since(in_flight.since);
        self.pace.record(in_flight.num_tokens, duration, &sampled.timings);
        let alone = is_alone.then(|| now.saturating_duration_since(began));
        Update { duration, alone, num_tokens: in_flight.num_tokens }
    }

    /// A step could not be computed. Whoever was alone in it, with no other before it, is at fault
    /// and fails; where there were several, each is computed again, alone. What the stages hold is
    /// in doubt: everybody is computed anew.
    pub fn fail(
        &mut self,
        step: StepId,
        cause: &str,
        queue: &mut Queue,
        now: Instant,
        told: &mut Told,
    ) {
        let Some(in_flight) = self.take_step(step) else {
            return;
        };
        if !in_flight.is_waited_for() {
            return;
        }
        // A step before it may have failed, of which nothing was heard yet: the stages behind don't
        // know what that one told.
        let is_first = self.steps.front().is_none_or(|other| other.step > step);
        let is_alone = is_first && in_flight.sequences.len() == 1;
        // Later stages may not have heard of them, nor of whom the other steps under way, which
        // nobody waits for from now on, were to tell.
        let mut finished = in_flight.finished;
        finished.extend(self.steps.iter_mut().flat_map(|step| std::mem::take(&mut step.finished)));
        for mut sequence in self.evict() {
            finished.push(sequence.id);
            if in_flight.sequences.contains(&sequence.id) {
                sequence.num_failures += 1;
                if is_alone || sequence.num_failures > MAX_FAILURES {
                    let error = RequestError::StepFailed(cause.to_owned());
                    told.fail(sequence, error);
                    continue;
                }
                told.decide(&sequence, Decision::Retried { cause: cause.to_owned() });
            }
            queue.put(sequence, now);
        }
        self.finished.splice(0..0, finished);
        self.finished.sort_unstable();
        self.finished.dedup();
    }

    /// Everybody leaves, to be computed again somewhere. Steps under way are nobody's, and take
    /// room until they return.
    pub(crate) fn evict(&mut self) -> Vec<Sequence> {
        self.steps.retain(|step| step.early.is_none());
        self.steps.iter_mut().for_each(|step| step.sequences.clear());
        self.coming.clear();
        self.blocks.forget();
        let mut evicted = std::mem::take(&mut self.running);
        for sequence in &mut evicted {
            self.blocks.free(sequence.preempt().into_iter());
        }
        evicted
    }

    /// Drops what runs of a request.
    pub fn cancel(&mut self, request: RequestId) -> Vec<Sequence> {
        let is_of = |sequence: &mut Sequence| sequence.request_id() == request;
        let mut cancelled: Vec<_> = self.running.extract_if(.., is_of).collect();
        for sequence in &mut cancelled {
            self.leave(sequence);
        }
        cancelled
    }

    /// Requests that run and whose deadline has passed.
    pub(crate) fn expired(&self, now: Instant) -> impl Iterator<Item = RequestId> + '_ {
        let is_late = move |it: &&Sequence| it.request().deadline.is_some_and(|at| at <= now);
        self.running.iter().filter(is_late).map(Sequence::request_id)
    }

    /// When the oldest step under way began.
    pub fn oldest_step(&self) -> Option<Instant> {
        self.steps.front().map(|in_flight| in_flight.began)
    }

    /// How full it is.
    pub fn load(&self) -> LaneLoad {
        LaneLoad {
            num_running: self.running.len(),
            num_used_blocks: self.blocks.num_blocks() - self.blocks.num_free(),
            num_blocks: self.blocks.num_blocks(),
        }
    }

    /// Tokens that are yet to be computed of what runs, at most.
    pub(crate) fn num_outstanding_tokens(&self) -> usize {
        self.running.iter().map(Sequence::num_outstanding).sum()
    }

    fn leave(&mut self, sequence: &mut Sequence) {
        self.blocks.free(sequence.take_blocks().into_iter());
        self.forget(sequence.id);
    }

    /// The stages are to forget it, and nobody waits for its blocks any more.
    fn forget(&mut self, id: SequenceId) {
        self.finished.push(id);
        if !self.coming.is_empty() {
            self.coming.retain(|_, by| *by != id);
        }
    }

    /// Whatever its slices fill is there for others from the next step on; what it copies is free
    /// again, since stages copy before they compute.
    fn share(&mut self, id: SequenceId) {
        let at = self.running.binary_search_by_key(&id, |it| it.id).expect("it runs");
        let sequence = &mut self.running[at];
        self.blocks.free(sequence.take_copied().into_iter());
        if !self.config.prefix_cache {
            return;
        }
        for (block, hash) in sequence.share() {
            self.blocks.share(block, hash);
            self.coming.remove(&hash);
        }
    }

    fn record(&mut self, i: usize, output: SliceOutput, now: Instant, told: &mut Told) {
        let sequence = &mut self.running[i];
        let (request, choice) = (sequence.request_id(), sequence.choice);
        let is_scored = sequence.is_scored();
        let token = output.token.filter(|_| output.position as usize == sequence.num_tokens());
        let is_last = token.is_some() || is_scored;
        if let Some(logprobs) = sequence.take_prompt_logprobs(output.prompt_logprobs, is_last) {
            told.events.push((request, Event::Prompt(logprobs)));
        }
        let finished = if let Some(token) = token {
            told.traced.extend(sequence.trace.as_mut().and_then(|trace| trace.token(now)));
            sequence.num_failures = 0;
            if sequence.num_generated() == 0 {
                told.decide(sequence, Decision::Begun);
            }
            let accepted = sequence.accept(token);
            // What nobody asked for isn't shown.
            if let Some(cause) = accepted.broken {
                let mut sequence = self.running.remove(i);
                self.leave(&mut sequence);
                return told.fail(sequence, RequestError::OffGrammar(cause));
            }
            let (logprobs, text) = (output.logprobs, accepted.text);
            told.events.push((request, Event::Token { choice, token, logprobs, text }));
            accepted.finished
        } else {
            is_scored.then(|| (FinishReason::Length, String::new()))
        };
        let id = sequence.id;
        if let Some((reason, text)) = finished {
            told.traced.extend(sequence.end_trace(None));
            told.events.push((request, Event::Finished { choice, reason, text }));
            // A token that was computed before it was known may have filled a block.
            self.share(id);
            self.blocks.free(self.running[i].take_blocks().into_iter());
            self.forget(id);
        } else if sequence.num_in_flight == 0 {
            sequence.rewind();
        }
    }

    fn take_step(&mut self, step: StepId) -> Option<InFlight> {
        let at = self.steps.iter().position(|in_flight| in_flight.step == step)?;
        let in_flight = self.steps.remove(at)?;
        for id in &in_flight.sequences {
            if let Ok(at) = self.running.binary_search_by_key(id, |it| it.id) {
                self.running[at].num_in_flight -= 1;
            }
        }
        Some(in_flight)
    }
}
