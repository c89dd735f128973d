//! Who is computed next: first come, first served, several sequences in one step.
//!
//! Pure: no clock, task or channel. `schedule` makes a batch of what can be computed now, `update`
//! records what was sampled. A running sequence is in at most one step at a time that samples, so
//! the running ones divide themselves into as many groups as the pipeline has stages; chunks of a
//! long prompt follow each other without waiting.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use protocol::{Batch, RequestId, Sampled, SequenceId, StepId, TraceContext, config};

use crate::block_manager::BlockManager;
use crate::request::{Event, FinishReason, Request, RequestError, SubmitError};
use crate::sequence::Sequence;
use crate::trace::PhaseEnded;

/// What a pipeline can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Blocks of the KV cache: the fewest of any stage.
    pub num_blocks: usize,
    /// Stages, and so steps that may be under way at once.
    pub num_stages: usize,
}

/// The queue, the running sequences, and the steps under way.
#[derive(Debug)]
pub struct Scheduler {
    config: config::Scheduler,
    capacity: Capacity,
    blocks: BlockManager,
    waiting: VecDeque<(Sequence, Instant)>,
    // In the order of admission, which is that of arrival.
    running: Vec<Sequence>,
    steps: VecDeque<InFlight>,
    // Sequences that stages may forget, told with the next batch.
    finished: Vec<SequenceId>,
    num_choices_left: HashMap<RequestId, u32>,
    // Phases of traced requests that have ended, until somebody asks.
    traced: Vec<PhaseEnded>,
    next_sequence: u64,
    next_step: u64,
}

/// A step under way.
#[derive(Debug)]
struct InFlight {
    step: StepId,
    since: Instant,
    num_tokens: usize,
    sequences: Vec<SequenceId>,
    // What it tells the stages to forget.
    finished: Vec<SequenceId>,
}

/// What a step brought.
#[derive(Debug, Default, PartialEq)]
pub struct Update {
    /// For the clients, in order.
    pub events: Vec<(RequestId, Event)>,
    /// How long the step was under way.
    pub duration: Duration,
    /// Tokens that it computed.
    pub num_tokens: usize,
}

/// How full the scheduler is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Sequences that wait.
    pub num_waiting: usize,
    /// Sequences that run.
    pub num_running: usize,
    /// Blocks held by running sequences.
    pub num_used_blocks: usize,
    /// Blocks in all.
    pub num_blocks: usize,
}

impl Scheduler {
    /// A scheduler without a pipeline: it computes nothing until [`attach`](Self::attach).
    pub fn new(config: config::Scheduler) -> Self {
        Self {
            config,
            capacity: Capacity { num_blocks: 0, num_stages: 0 },
            blocks: BlockManager::default(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            steps: VecDeque::new(),
            finished: Vec::new(),
            num_choices_left: HashMap::new(),
            traced: Vec::new(),
            next_sequence: 0,
            next_step: 0,
        }
    }

    /// A pipeline serves.
    pub fn attach(&mut self, capacity: Capacity) {
        debug_assert!(self.running.is_empty());
        debug_assert!(self.steps.is_empty());
        self.capacity = capacity;
        self.blocks = BlockManager::new(capacity.num_blocks);
    }

    /// The pipeline is gone, and with it everything that ran or waited.
    pub fn detach(&mut self, error: &RequestError) -> Vec<(RequestId, Event)> {
        let mut requests: Vec<_> = self.num_choices_left.drain().map(|(id, _)| id).collect();
        requests.sort_unstable();
        let Self { waiting, running, traced, .. } = self;
        for sequence in running.iter_mut().chain(waiting.iter_mut().map(|(waits, _)| waits)) {
            traced.extend(end_trace(sequence, Some(error.kind())));
        }
        self.waiting.clear();
        self.running.clear();
        self.steps.clear();
        self.finished.clear();
        self.attach(Capacity { num_blocks: 0, num_stages: 0 });
        requests.into_iter().map(|id| (id, Event::Failed(error.clone()))).collect()
    }

    /// Queues a request.
    ///
    /// # Errors
    /// When the queue is full, or one of its sequences alone would not fit.
    pub fn add(&mut self, request: &Request, now: Instant) -> Result<(), SubmitError> {
        let max = self.config.max_queued_requests;
        // A request's choices stand one after another.
        let num_queued = self
            .waiting
            .iter()
            .zip(self.waiting.iter().skip(1))
            .filter(|(a, b)| a.0.request != b.0.request)
            .count()
            + usize::from(!self.waiting.is_empty());
        if num_queued >= max {
            return Err(SubmitError::QueueFull { max });
        }
        let sequences: Vec<_> = (0..request.num_choices)
            .map(|choice| {
                let id = SequenceId(self.next_sequence + u64::from(choice));
                (Sequence::new(id, request, choice, now), now)
            })
            .collect();
        let needed = sequences.first().map_or(0, |(first, _)| first.num_blocks_needed());
        if needed > self.capacity.num_blocks {
            return Err(SubmitError::TooLarge { needed, held: self.capacity.num_blocks });
        }
        self.next_sequence += u64::from(request.num_choices);
        self.num_choices_left.insert(request.id, request.num_choices);
        self.waiting.extend(sequences);
        Ok(())
    }

    /// The client went away: its sequences end when the steps that name them have returned.
    pub fn cancel(&mut self, request: RequestId) {
        self.give_up(request, "cancelled");
    }

    fn give_up(&mut self, request: RequestId, cause: &'static str) {
        if self.num_choices_left.remove(&request).is_none() {
            return;
        }
        let Self { waiting, running, traced, .. } = self;
        for sequence in running.iter_mut().filter(|running| running.request == request) {
            sequence.ended = true;
            traced.extend(end_trace(sequence, Some(cause)));
        }
        waiting.retain_mut(|(sequence, _)| {
            let stays = sequence.request != request;
            if !stays {
                traced.extend(end_trace(sequence, Some(cause)));
            }
            stays
        });
        self.free_ended();
    }

    /// Phases of traced requests that have ended since this was last asked, in order.
    pub fn take_traced(&mut self) -> Vec<PhaseEnded> {
        std::mem::take(&mut self.traced)
    }

    /// The next batch, when there is something to compute and the pipeline has room for a step.
    /// `waits` hears how long each sequence admitted now has waited. With the batch come the places
    /// in traces that its stages are to tell of.
    pub fn schedule(
        &mut self,
        now: Instant,
        mut waits: impl FnMut(Duration),
    ) -> Option<(StepId, Batch, Vec<TraceContext>)> {
        if self.steps.len() >= self.capacity.num_stages {
            return None;
        }
        while let Some(wait) = self.admit(now) {
            waits(wait);
        }
        let num_ready = self.running.iter().filter(|s| s.num_pending() > 0).count();
        if num_ready == 0 {
            return None;
        }
        // A group: with every stage busy, each gets its share of the sequences.
        let max_slices = self.running.len().div_ceil(self.capacity.num_stages);
        let mut budget = self.config.max_batched_tokens as usize;
        let (mut slices, mut traces) = (Vec::new(), Vec::new());
        // Running sequences first: whoever has begun to answer has one token pending, and goes
        // before those whose prompt is still being computed.
        let mut order: Vec<usize> = (0..self.running.len()).collect();
        order.sort_by_key(|&i| self.running[i].num_pending() > 1);
        for i in order {
            let sequence = &mut self.running[i];
            if budget == 0 || slices.len() == max_slices {
                break;
            }
            if sequence.num_pending() > 0 {
                let slice = sequence.take_slice(budget);
                budget -= slice.num_tokens();
                slices.push(slice);
                traces.extend(sequence.trace.as_mut().and_then(|trace| trace.step()));
            }
        }
        let step = StepId(self.next_step);
        self.next_step += 1;
        let batch = Batch { finished: std::mem::take(&mut self.finished), slices };
        self.steps.push_back(InFlight {
            step,
            since: now,
            num_tokens: batch.num_tokens(),
            sequences: batch.slices.iter().map(|slice| slice.sequence).collect(),
            finished: batch.finished.clone(),
        });
        self.check_invariants();
        Some((step, batch, traces))
    }

    /// Records what a step sampled. A step that isn't under way is ignored: it came twice.
    pub fn update(&mut self, step: StepId, sampled: Sampled, now: Instant) -> Update {
        let Some(in_flight) = self.take_step(step) else {
            return Update::default();
        };
        let mut events = Vec::new();
        for output in sampled.outputs {
            let Some(sequence) = self.running.iter_mut().find(|s| s.id == output.sequence) else {
                continue;
            };
            if sequence.ended {
                continue;
            }
            let (request, choice) = (sequence.request, sequence.choice);
            sequence.prompt_logprobs.extend(output.prompt_logprobs);
            let scored = sequence.is_scored();
            if (output.token.is_some() || scored) && !sequence.prompt_logprobs.is_empty() {
                let prompt_logprobs = std::mem::take(&mut sequence.prompt_logprobs);
                events.push((request, Event::Prompt(prompt_logprobs)));
            }
            let finished = if let Some(token) = output.token {
                self.traced.extend(sequence.trace.as_mut().and_then(|trace| trace.token(now)));
                let accepted = sequence.accept(token);
                let (logprobs, text) = (output.logprobs, accepted.text);
                events.push((request, Event::Token { choice, token, logprobs, text }));
                accepted.finished
            } else {
                scored.then(|| (FinishReason::Length, String::new()))
            };
            if let Some((reason, text)) = finished {
                sequence.ended = true;
                self.traced.extend(end_trace(sequence, None));
                events.push((request, Event::Finished { choice, reason, text }));
                let left = self.num_choices_left.get_mut(&request);
                if left.is_some_and(|left| {
                    *left -= 1;
                    *left == 0
                }) {
                    self.num_choices_left.remove(&request);
                }
            }
        }
        self.free_ended();
        self.check_invariants();
        let duration = now.saturating_duration_since(in_flight.since);
        Update { events, duration, num_tokens: in_flight.num_tokens }
    }

    /// A step could not be computed: the requests that it named fail, the others go on.
    pub fn fail(&mut self, step: StepId, cause: &str) -> Vec<(RequestId, Event)> {
        let Some(mut in_flight) = self.take_step(step) else {
            return Vec::new();
        };
        // Stages behind the one that failed haven't heard which sequences ended: it is told again.
        self.finished.append(&mut in_flight.finished);
        let mut requests: Vec<_> = self
            .running
            .iter()
            .filter(|s| !s.ended && in_flight.sequences.contains(&s.id))
            .map(|s| s.request)
            .collect();
        requests.dedup();
        let error = RequestError::StepFailed(cause.to_owned());
        for &request in &requests {
            self.give_up(request, error.kind());
        }
        self.free_ended();
        requests.into_iter().map(|id| (id, Event::Failed(error.clone()))).collect()
    }

    /// When the oldest step under way began.
    pub fn oldest_step(&self) -> Option<Instant> {
        self.steps.front().map(|in_flight| in_flight.since)
    }

    /// How full it is.
    pub fn load(&self) -> Load {
        Load {
            num_waiting: self.waiting.len(),
            num_running: self.running.len(),
            num_used_blocks: self.blocks.num_blocks() - self.blocks.num_free(),
            num_blocks: self.blocks.num_blocks(),
        }
    }

    /// Lets the first waiting sequence run, if a place and all its blocks are free.
    fn admit(&mut self, now: Instant) -> Option<Duration> {
        if self.running.len() >= self.config.max_num_seqs as usize {
            return None;
        }
        let (first, _) = self.waiting.front()?;
        let blocks = self.blocks.allocate(first.num_blocks_needed())?;
        let (mut sequence, since) = self.waiting.pop_front().expect("there is a first one");
        sequence.blocks = blocks;
        self.traced.extend(sequence.trace.as_mut().map(|trace| trace.admitted(now)));
        self.running.push(sequence);
        Some(now.saturating_duration_since(since))
    }

    fn take_step(&mut self, step: StepId) -> Option<InFlight> {
        let at = self.steps.iter().position(|in_flight| in_flight.step == step)?;
        let in_flight = self.steps.remove(at)?;
        for sequence in &mut self.running {
            if in_flight.sequences.contains(&sequence.id) {
                sequence.num_in_flight -= 1;
            }
        }
        Some(in_flight)
    }

    fn free_ended(&mut self) {
        let Self { running, blocks, finished, .. } = self;
        running.retain_mut(|sequence| {
            let stays = !sequence.ended || sequence.num_in_flight > 0;
            if !stays {
                blocks.free(std::mem::take(&mut sequence.blocks));
                finished.push(sequence.id);
            }
            stays
        });
    }

    fn check_invariants(&self) {
        let held: usize = self.running.iter().map(|sequence| sequence.blocks.len()).sum();
        debug_assert_eq!(held + self.blocks.num_free(), self.blocks.num_blocks());
        debug_assert!(self.steps.len() <= self.capacity.num_stages);
        debug_assert!(self.running.len() <= self.config.max_num_seqs as usize);
    }
}

/// The phase that a traced sequence was in, when it ends.
fn end_trace(sequence: &mut Sequence, error: Option<&'static str>) -> Option<PhaseEnded> {
    sequence.trace.take().and_then(|trace| trace.ended(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Pipeline, request, scheduler};

    #[test]
    fn a_request_runs_to_its_length() {
        let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 64);
        pipeline.add(request(1, 5, 3));
        let events = pipeline.run();
        assert_eq!(pipeline.tokens(&events, 1, 0), [105, 106, 107]);
        assert_eq!(pipeline.finished(&events), [(1, 0, FinishReason::Length)]);
        assert_eq!(pipeline.scheduler.load(), Load { num_blocks: 64, ..Load::default() });
    }

    #[test]
    fn a_long_prompt_is_computed_in_chunks_and_samples_once() {
        let mut pipeline = Pipeline::new(scheduler(|config| config.max_batched_tokens = 8), 2, 64);
        pipeline.add(request(1, 20, 1));
        let chunks: Vec<_> = (0..2)
            .map(|_| pipeline.step().unwrap().slices[0].clone())
            .map(|slice| (slice.start, slice.num_tokens(), slice.sample))
            .collect();
        // Two stages: the second chunk follows the first without waiting for it.
        assert_eq!(chunks, [(0, 8, false), (8, 8, false)]);
        assert!(pipeline.step().is_none());
        let events = pipeline.run();
        assert_eq!(pipeline.tokens(&events, 1, 0), [120]);
    }

    #[test]
    fn a_new_request_joins_at_the_next_step() {
        let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 64);
        pipeline.add(request(1, 4, 9));
        pipeline.step().unwrap();
        pipeline.add(request(2, 3, 9));
        pipeline.answer();
        let batch = pipeline.step().unwrap();
        let slices: Vec<_> =
            batch.slices.iter().map(|slice| (slice.sequence.0, slice.num_tokens())).collect();
        assert_eq!(slices, [(0, 1), (1, 3)]);
    }

    #[test]
    fn running_sequences_share_the_stages() {
        let mut pipeline = Pipeline::new(scheduler(|_| {}), 2, 64);
        (0..4).for_each(|id| pipeline.add(request(id, 2, 9)));
        assert_eq!(pipeline.step().unwrap().slices.len(), 2);
        assert_eq!(pipeline.step().unwrap().slices.len(), 2);
        assert!(pipeline.step().is_none(), "as many steps as stages");
    }

    #[test]
    fn blocks_are_reserved_so_that_nothing_runs_out() {
        // 4 blocks: 64 tokens. Each request fills 2.
        let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 4);
        (0..3).for_each(|id| pipeline.add(request(id, 20, 10)));
        assert_eq!(pipeline.step().unwrap().slices.len(), 2);
        assert_eq!(pipeline.scheduler.load().num_waiting, 1);
        let events = pipeline.run();
        assert_eq!(pipeline.finished(&events).len(), 3);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut pipeline = Pipeline::new(scheduler(|config| config.max_queued_requests = 1), 1, 4);
        let too_large = pipeline.scheduler.add(&request(1, 60, 10), pipeline.now);
        assert_eq!(too_large, Err(SubmitError::TooLarge { needed: 5, held: 4 }));
        pipeline.add(request(2, 20, 40));
        pipeline.step().unwrap();
        pipeline.add(request(3, 20, 40));
        let full = pipeline.scheduler.add(&request(4, 20, 40), pipeline.now);
        assert_eq!(full, Err(SubmitError::QueueFull { max: 1 }));
    }

    #[test]
    fn a_cancelled_sequence_goes_when_its_step_has_returned() {
        let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 64);
        pipeline.add(request(1, 20, 10));
        pipeline.step().unwrap();
        pipeline.scheduler.cancel(RequestId(1));
        assert_eq!(pipeline.scheduler.load().num_used_blocks, 2);
        assert_eq!(pipeline.answer(), []);
        assert_eq!(pipeline.scheduler.load().num_used_blocks, 0);
        pipeline.add(request(2, 4, 1));
        assert_eq!(pipeline.step().unwrap().finished, [SequenceId(0)]);
    }

    #[test]
    fn a_failed_step_fails_its_requests_and_no_others() {
        let mut pipeline = Pipeline::new(scheduler(|_| {}), 2, 64);
        pipeline.add(request(1, 4, 5));
        pipeline.add(request(2, 4, 5));
        pipeline.step().unwrap();
        pipeline.step().unwrap();
        let events = pipeline.scheduler.fail(StepId(0), "bad luck");
        let error = RequestError::StepFailed("bad luck".into());
        assert_eq!(events, [(RequestId(1), Event::Failed(error))]);
        pipeline.steps.pop_front();
        let events = pipeline.run();
        assert_eq!(pipeline.finished(&events), [(2, 0, FinishReason::Length)]);
    }

    #[test]
    fn what_a_failed_step_was_to_tell_of_ended_sequences_is_told_again() {
        let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 64);
        pipeline.add(request(1, 4, 1));
        pipeline.run();
        pipeline.add(request(2, 4, 5));
        assert_eq!(pipeline.step().unwrap().finished, [SequenceId(0)]);
        pipeline.scheduler.fail(StepId(1), "bad luck");
        pipeline.steps.clear();
        pipeline.add(request(3, 4, 5));
        assert_eq!(pipeline.step().unwrap().finished, [SequenceId(0), SequenceId(1)]);
        pipeline.answer();
        assert_eq!(pipeline.step().unwrap().finished, [], "once it has been heard by all, no more");
    }

    #[test]
    fn a_step_that_returns_twice_is_recorded_once() {
        let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 64);
        pipeline.add(request(1, 4, 2));
        let batch = pipeline.step().unwrap();
        assert_eq!(pipeline.answer().len(), 1);
        let again = Pipeline::sampled(&batch);
        let update = pipeline.scheduler.update(StepId(0), again, pipeline.now);
        assert_eq!(update, Update::default());
    }

    #[test]
    fn a_lost_pipeline_fails_everyone_once() {
        let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 4);
        (0..3).for_each(|id| pipeline.add(request(id, 20, 10)));
        pipeline.step().unwrap();
        let error = RequestError::PipelineLost("cut".into());
        let events = pipeline.scheduler.detach(&error);
        let ids: Vec<_> = events.iter().map(|(id, _)| id.0).collect();
        assert_eq!(ids, [0, 1, 2]);
        assert_eq!(pipeline.scheduler.load(), Load::default());
    }

    #[test]
    fn choices_are_sequences_of_one_prompt() {
        let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 64);
        pipeline.add(Request { num_choices: 3, ..request(1, 4, 2) });
        let batch = pipeline.step().unwrap();
        let choices: Vec<_> = batch
            .slices
            .iter()
            .map(|slice| slice.begin.as_ref().unwrap().sampling.choice)
            .collect();
        assert_eq!(choices, [0, 1, 2]);
        let events = pipeline.run();
        assert_eq!(pipeline.finished(&events).len(), 3);
    }
}
