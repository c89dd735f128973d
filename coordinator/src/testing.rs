//! What tests share: small requests, a pipeline that answers by rule, and the mailbox of an actor.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use checkpoint::TokenizerSource;
use protocol::{
    Batch, ModelId, RequestId, Sampled, SamplingParams, SliceOutput, SpanId, StepId, TokenId,
    TraceContext, TraceId, config,
};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;

use crate::actor::Msg;
use crate::lane::{self, Capacity, Lane, Scheduled, Told, Update};
use crate::queue::Queue;
use crate::request::{
    AnswerText, Constraint, Event, FinishReason, Going, NextTokens, Priority, Request, TokenText,
};
use crate::trace::RequestTrace;

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
        text: Box::new(NoText),
        trace: None,
        priority: Priority::Standard,
        tenant: "".into(),
        weight: 1,
        deadline: None,
        require_exact: false,
        constraint: None,
        tells_hidden: false,
        turn: 0,
        resumed: None,
    }
}

/// What every answer keeps to.
#[derive(Debug)]
pub(crate) struct Anything;

impl Constraint for Anything {
    fn next(&self) -> Option<Arc<dyn NextTokens>> {
        None
    }

    fn push(&mut self, _token: TokenId) -> Result<Going, String> {
        Ok(Going::On)
    }

    fn end(&self) -> Result<(), String> {
        Ok(())
    }

    fn copy(&self) -> Box<dyn Constraint> {
        Box::new(Self)
    }
}

/// Tokens that stand for no text.
#[derive(Debug)]
pub(crate) struct NoText;

impl AnswerText for NoText {
    fn push(&mut self, _token: TokenId) -> TokenText {
        TokenText::default()
    }

    fn finish(&mut self) -> String {
        String::new()
    }

    fn copy(&self) -> Box<dyn AnswerText> {
        Box::new(Self)
    }
}

/// A small SentencePiece tokenizer as GGUF files hold it: each token with its type (1 plain, 2
/// unknown, 3 control, 6 a byte) and score. The first is the unknown one, the second begins a text.
pub(crate) fn sentencepiece(tokens: &[(&str, i32, f32)]) -> TokenizerSource {
    TokenizerSource::Gguf {
        model: "llama".into(),
        pre: "default".into(),
        tokens: tokens.iter().map(|(text, ..)| (*text).to_owned()).collect(),
        token_types: tokens.iter().map(|(_, kind, _)| *kind).collect(),
        scores: tokens.iter().map(|(.., score)| *score).collect(),
        merges: Vec::new(),
        bos: Some(1),
        eos: None,
        unk: Some(0),
        pad: None,
        add_bos: true,
        add_eos: false,
        add_space_prefix: true,
        chat_template: None,
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

/// Stands where the coordinator's actor would: what is sent to it comes out.
pub(crate) async fn inbox() -> (ActorRef<Msg>, mpsc::UnboundedReceiver<Msg>) {
    struct Inbox;

    impl Actor for Inbox {
        type Msg = Msg;
        type State = mpsc::UnboundedSender<Msg>;
        type Arguments = mpsc::UnboundedSender<Msg>;

        async fn pre_start(
            &self,
            _myself: ActorRef<Msg>,
            messages: mpsc::UnboundedSender<Msg>,
        ) -> Result<Self::State, ActorProcessingErr> {
            Ok(messages)
        }

        async fn handle(
            &self,
            _myself: ActorRef<Msg>,
            message: Msg,
            messages: &mut Self::State,
        ) -> Result<(), ActorProcessingErr> {
            messages.send(message).map_err(|_| "nobody reads the inbox".into())
        }
    }

    let (messages, received) = mpsc::unbounded_channel();
    let (actor, _) = Actor::spawn(None, Inbox, messages).await.unwrap();
    (actor, received)
}

/// A changed configuration. No step runs ahead, so that what a test sees is one thing after the
/// other; those that do have tests of their own.
pub(crate) fn scheduler(change: impl FnOnce(&mut config::Scheduler)) -> config::Scheduler {
    let mut config =
        config::Scheduler { run_ahead: config::RunAhead::Off, ..config::Scheduler::default() };
    change(&mut config);
    config
}

/// A queue and one lane that answers every step, in order: the token at position p is 100 + p.
pub(crate) struct Pipeline {
    pub(crate) queue: Queue,
    pub(crate) lane: Lane,
    pub(crate) steps: VecDeque<(StepId, Batch)>,
    pub(crate) told: Told,
    pub(crate) now: Instant,
}

impl Pipeline {
    pub(crate) fn new(config: config::Scheduler, num_stages: usize, num_blocks: usize) -> Self {
        let capacity = Capacity { num_blocks, num_stages, class: 1, takes_masks: true };
        Self {
            queue: Queue::new(config.clone()),
            lane: Lane::new(config, capacity),
            steps: VecDeque::new(),
            told: Told::default(),
            now: Instant::now(),
        }
    }

    pub(crate) fn add(&mut self, request: Request) {
        self.queue.submit(request, self.now);
    }

    fn schedule(&mut self) -> Option<Scheduled> {
        if self.lane.has_room() {
            let lanes = &mut [&mut self.lane];
            lane::admit(&mut self.queue, lanes, self.now, &mut self.told);
        }
        let scheduled = self.lane.schedule(&mut self.queue, self.now, &mut self.told)?;
        self.steps.push_back((scheduled.step, scheduled.batch.clone()));
        Some(scheduled)
    }

    pub(crate) fn step(&mut self) -> Option<Batch> {
        self.schedule().map(|scheduled| scheduled.batch)
    }

    /// As [`step`](Self::step): what the step carries of traces.
    pub(crate) fn step_traces(&mut self) -> Option<Vec<TraceContext>> {
        self.schedule().map(|scheduled| scheduled.traces)
    }

    /// As [`step`](Self::step): whether the step's masks are to come.
    pub(crate) fn step_awaits(&mut self) -> Option<bool> {
        self.schedule().map(|scheduled| scheduled.awaits_masks)
    }

    /// Everything that was told since this was last asked, admissions apart.
    pub(crate) fn events(&mut self) -> Vec<(RequestId, Event)> {
        let mut events = std::mem::take(&mut self.told.events);
        events.retain(|(_, event)| !matches!(event, Event::Admitted { .. }));
        events
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
        Sampled { outputs: outputs.collect(), ..Sampled::default() }
    }

    pub(crate) fn answer(&mut self) -> Vec<(RequestId, Event)> {
        let (step, batch) = self.steps.pop_front().unwrap();
        self.update(step, Self::sampled(&batch));
        self.events()
    }

    /// Nothing of it waits or runs any more.
    pub(crate) fn drop_request(&mut self, id: u64, cause: &'static str) {
        let mut dropped = self.queue.cancel(RequestId(id));
        dropped.extend(self.lane.cancel(RequestId(id)));
        self.told.traced.extend(dropped.iter_mut().filter_map(|it| it.end_trace(Some(cause))));
    }

    pub(crate) fn update(&mut self, step: StepId, sampled: Sampled) -> Update {
        self.lane.update(step, sampled, self.now, &mut self.told)
    }

    pub(crate) fn run(&mut self) -> Vec<(RequestId, Event)> {
        let mut events = self.events();
        loop {
            while self.step().is_some() {}
            events.extend(self.events());
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
