//! What the tests of the pure core share: small requests, and a pipeline that answers by rule.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use protocol::{
    Batch, ModelId, RequestId, Sampled, SamplingParams, SliceOutput, SpanId, StepId, TokenId,
    TraceContext, TraceId, config,
};

use crate::request::{Event, FinishReason, Request};
use crate::scheduler::{Capacity, Scheduler};
use crate::text::TextStream;
use crate::tokenizer::Tokenizer;
use crate::trace::RequestTrace;

/// The tokenizer of the small model that the repository carries.
pub(crate) fn tokenizer() -> Arc<Tokenizer> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/glass-en");
    let files = checkpoint::Checkpoint::open(std::path::Path::new(folder)).unwrap();
    Arc::new(Tokenizer::from_source(&files.tokenizer().unwrap()).unwrap())
}

/// A greedy request: tokens 100, 101, … that no end token stops.
pub(crate) fn request(id: u64, num_prompt_tokens: u32, max_tokens: u32) -> Request {
    Request {
        id: RequestId(id),
        model: ModelId::default(),
        prompt: (0..num_prompt_tokens).map(|i| TokenId(100 + i)).collect(),
        num_choices: 1,
        sampling: SamplingParams::default(),
        max_tokens,
        stop_tokens: Arc::new([]),
        text: TextStream::new(tokenizer(), Arc::new([])),
        trace: None,
    }
}

/// A place in a trace, with every so-many-th decode step kept.
pub(crate) fn request_trace(steps_every: u32) -> RequestTrace {
    let context = TraceContext { trace: TraceId([7; 16]), span: SpanId(1), sampled: true };
    RequestTrace {
        operation: context,
        queue: SpanId(100),
        prefill: SpanId(200),
        decode: SpanId(300),
        steps_every,
    }
}

/// A scheduler with a changed configuration.
pub(crate) fn scheduler(change: impl FnOnce(&mut config::Scheduler)) -> Scheduler {
    let mut config = config::Scheduler::default();
    change(&mut config);
    Scheduler::new(config)
}

/// Answers every step, in order: the token at position p is 100 + p.
pub(crate) struct Pipeline {
    pub(crate) scheduler: Scheduler,
    pub(crate) steps: VecDeque<(StepId, Batch)>,
    pub(crate) now: Instant,
}

impl Pipeline {
    pub(crate) fn new(mut scheduler: Scheduler, num_stages: usize, num_blocks: usize) -> Self {
        scheduler.attach(Capacity { num_blocks, num_stages });
        Self { scheduler, steps: VecDeque::new(), now: Instant::now() }
    }

    pub(crate) fn add(&mut self, request: Request) {
        self.scheduler.add(&request, self.now).unwrap();
    }

    pub(crate) fn step(&mut self) -> Option<Batch> {
        let (step, batch, _) = self.scheduler.schedule(self.now, |_| {})?;
        self.steps.push_back((step, batch.clone()));
        Some(batch)
    }

    /// As [`step`](Self::step): what the step carries of traces.
    pub(crate) fn step_traces(&mut self) -> Option<Vec<TraceContext>> {
        let (step, batch, traces) = self.scheduler.schedule(self.now, |_| {})?;
        self.steps.push_back((step, batch));
        Some(traces)
    }

    pub(crate) fn sampled(batch: &Batch) -> Sampled {
        let outputs = batch.slices.iter().map(|slice| {
            let position = slice.start + slice.num_tokens() as u32;
            SliceOutput {
                sequence: slice.sequence,
                position,
                token: slice.sample.then_some(TokenId(100 + position)),
                logprobs: None,
                prompt_logprobs: Vec::new(),
            }
        });
        Sampled { outputs: outputs.collect(), timings: Vec::new() }
    }

    pub(crate) fn answer(&mut self) -> Vec<(RequestId, Event)> {
        let (step, batch) = self.steps.pop_front().unwrap();
        self.scheduler.update(step, Self::sampled(&batch), self.now).events
    }

    pub(crate) fn run(&mut self) -> Vec<(RequestId, Event)> {
        let mut events = Vec::new();
        loop {
            while self.step().is_some() {}
            if self.steps.is_empty() {
                return events;
            }
            events.extend(self.answer());
        }
    }

    pub(crate) fn tokens(&self, events: &[(RequestId, Event)], id: u64, of: u32) -> Vec<u32> {
        let token = |(request, event): &(RequestId, Event)| match event {
            Event::Token { choice, token, .. } if request.0 == id && *choice == of => Some(token.0),
            _ => None,
        };
        events.iter().filter_map(token).collect()
    }

    pub(crate) fn finished(&self, events: &[(RequestId, Event)]) -> Vec<(u64, u32, FinishReason)> {
        let end = |(request, event): &(RequestId, Event)| match event {
            Event::Finished { choice, reason, .. } => Some((request.0, *choice, *reason)),
            _ => None,
        };
        events.iter().filter_map(end).collect()
    }
}
