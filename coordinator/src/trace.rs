//! What the scheduler keeps of a traced request, so that its spans can be told: pure. Ids are drawn
//! by the API, spans are written by the actor; here it is decided which there are, and which steps
//! carry them to the stages.

use std::time::Instant;

use protocol::{RequestId, SpanId, TraceContext};

/// A traced request's place in its trace, and the ids of what is to come. A request's choices count
/// on from the ids of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestTrace {
    /// The span that the request's phases are parts of.
    pub operation: TraceContext,
    /// Of the first choice's [`Phase::Queue`].
    pub queue: SpanId,
    /// Of the first choice's [`Phase::Prefill`].
    pub prefill: SpanId,
    /// Of the first choice's [`Phase::Decode`].
    pub decode: SpanId,
    /// `traces.steps_every`
    pub steps_every: u32,
}

/// What a choice goes through, one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// From arrival to admission.
    Queue,
    /// From admission to the first token.
    Prefill,
    /// From the first token to the last.
    Decode,
}

/// A phase that ends now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhaseEnded {
    /// Which.
    pub phase: Phase,
    /// Its own place in the trace.
    pub context: TraceContext,
    /// The request's span.
    pub parent: SpanId,
    /// Whose.
    pub request: RequestId,
    /// Which of its choices.
    pub choice: u32,
    /// When it began.
    pub start: Instant,
    /// Steps that computed it.
    pub num_steps: u32,
    /// Tokens of the prompt, or of the answer so far.
    pub num_tokens: usize,
    /// Why it was cut short, where it was.
    pub error: Option<&'static str>,
}

/// A traced choice on its way.
#[derive(Clone, Debug)]
pub struct SequenceTrace {
    trace: RequestTrace,
    request: RequestId,
    choice: u32,
    phase: Phase,
    start: Instant,
    num_steps: u32,
    // Decode steps that were sent before the first token was recorded, and since when.
    num_ahead: u32,
    ahead_since: Option<Instant>,
    num_prompt_tokens: usize,
    num_generated: usize,
}

impl SequenceTrace {
    /// A choice that waits since `now`.
    pub(crate) fn new(
        trace: RequestTrace,
        (request, choice): (RequestId, u32),
        num_prompt_tokens: usize,
        now: Instant,
    ) -> Self {
        Self {
            trace,
            request,
            choice,
            phase: Phase::Queue,
            start: now,
            num_steps: 0,
            num_ahead: 0,
            ahead_since: None,
            num_prompt_tokens,
            num_generated: 0,
        }
    }

    pub(crate) fn admitted(&mut self, now: Instant) -> PhaseEnded {
        self.go_on_to(Phase::Prefill, now)
    }

    /// A step computes it: under which span the stages' own are to stand, if this step is kept.
    pub(crate) fn step(&mut self) -> Option<TraceContext> {
        let is_kept =
            self.phase != Phase::Decode || self.num_steps.is_multiple_of(self.trace.steps_every);
        self.num_steps += 1;
        is_kept.then(|| self.context_of(self.phase))
    }

    /// As [`step`](Self::step), of a token that may not have been recorded yet: decoding then
    /// begins while the prefill is still under way.
    pub(crate) fn decode_step(&mut self, now: Instant) -> Option<TraceContext> {
        if self.phase == Phase::Decode {
            return self.step();
        }
        self.num_ahead += 1;
        self.ahead_since.get_or_insert(now);
        Some(self.context_of(Phase::Decode))
    }

    /// A token was recorded; the first ends the prefill.
    pub(crate) fn token(&mut self, now: Instant) -> Option<PhaseEnded> {
        self.num_generated += 1;
        (self.phase == Phase::Prefill).then(|| self.go_on_to(Phase::Decode, now))
    }

    /// It has ended, for `error` where it was cut short. The first token alone is no decoding.
    pub(crate) fn ended(self, error: Option<&'static str>) -> Option<PhaseEnded> {
        let is_empty = self.phase == Phase::Decode && self.num_steps == 0;
        (!is_empty).then(|| PhaseEnded { error, ..self.phase_ended() })
    }

    fn go_on_to(&mut self, phase: Phase, now: Instant) -> PhaseEnded {
        let ended = self.phase_ended();
        let ahead = self.ahead_since.take().filter(|_| phase == Phase::Decode);
        (self.phase, self.start) = (phase, ahead.unwrap_or(now));
        self.num_steps = std::mem::take(&mut self.num_ahead);
        ended
    }

    fn phase_ended(&self) -> PhaseEnded {
        PhaseEnded {
            phase: self.phase,
            context: self.context_of(self.phase),
            parent: self.trace.operation.span,
            request: self.request,
            choice: self.choice,
            start: self.start,
            num_steps: self.num_steps,
            num_tokens: match self.phase {
                Phase::Queue | Phase::Prefill => self.num_prompt_tokens,
                Phase::Decode => self.num_generated,
            },
            error: None,
        }
    }

    fn context_of(&self, phase: Phase) -> TraceContext {
        let first = match phase {
            Phase::Queue => self.trace.queue,
            Phase::Prefill => self.trace.prefill,
            Phase::Decode => self.trace.decode,
        };
        self.trace.operation.under(first.plus(self.choice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Pipeline, request, request_trace, scheduler};
    use protocol::config::RunAhead;

    fn told(pipeline: &mut Pipeline) -> Vec<(Phase, u32, u32, usize, Option<&'static str>)> {
        let ended = std::mem::take(&mut pipeline.told.traced);
        let told = ended.iter().map(|e| (e.phase, e.choice, e.num_steps, e.num_tokens, e.error));
        told.collect()
    }

    fn traced(id: u64, num_prompt_tokens: u32, max_tokens: u32) -> crate::request::Request {
        let trace = Some(Box::new(request_trace(4)));
        crate::request::Request { trace, ..request(id, num_prompt_tokens, max_tokens) }
    }

    /// 20 tokens of prompt in chunks of 8, then 11 of answer, of which 10 are computed by a decode
    /// step: every prefill step is kept, and of these the 1st, 5th and 9th.
    #[test]
    fn every_prefill_step_and_some_decode_steps_carry_the_context() {
        let mut pipeline = Pipeline::new(scheduler(|config| config.max_batched_tokens = 8), 1, 64);
        pipeline.add(traced(1, 20, 11));
        let mut kept = Vec::new();
        while let Some(traces) = pipeline.step_traces() {
            kept.push(traces);
            pipeline.answer();
        }
        let trace = request_trace(4);
        let (prefill, decode) =
            (vec![trace.operation.under(trace.prefill)], vec![trace.operation.under(trace.decode)]);
        let none = Vec::new();
        let mut expected = vec![prefill; 3];
        for step in 0..10 {
            expected.push(if step % 4 == 0 { decode.clone() } else { none.clone() });
        }
        assert_eq!(kept, expected);
        assert_eq!(
            told(&mut pipeline),
            [
                (Phase::Queue, 0, 0, 20, None),
                (Phase::Prefill, 0, 3, 20, None),
                (Phase::Decode, 0, 10, 11, None),
            ]
        );
    }

    /// A step that computes the first token before it was recorded is one of decoding.
    #[test]
    fn decoding_may_begin_before_the_prefill_has_returned() {
        let mut pipeline =
            Pipeline::new(scheduler(|config| config.run_ahead = RunAhead::On), 1, 64);
        pipeline.add(traced(1, 20, 5));
        let trace = request_trace(4);
        let of = |span| Some(vec![trace.operation.under(span)]);
        assert_eq!(pipeline.step_traces(), of(trace.prefill));
        assert_eq!(pipeline.step_traces(), of(trace.decode));
        pipeline.run();
        let [_, prefill, decode] = told(&mut pipeline)[..] else { panic!() };
        assert_eq!(prefill, (Phase::Prefill, 0, 1, 20, None));
        assert_eq!(decode, (Phase::Decode, 0, 4, 5, None));
    }

    #[test]
    fn requests_that_are_not_traced_tell_nothing() {
        let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 64);
        pipeline.add(request(1, 5, 3));
        pipeline.add(traced(2, 5, 3));
        while let Some(traces) = pipeline.step_traces() {
            assert!(traces.len() <= 1);
            pipeline.answer();
        }
        let ended = std::mem::take(&mut pipeline.told.traced);
        assert!(ended.len() == 3 && ended.iter().all(|ended| ended.request == RequestId(2)));
    }

    #[test]
    fn choices_have_spans_of_their_own() {
        let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 64);
        pipeline.add(crate::request::Request { num_choices: 3, ..traced(1, 4, 2) });
        pipeline.run();
        let ended = std::mem::take(&mut pipeline.told.traced);
        let spans: std::collections::HashSet<_> = ended.iter().map(|e| e.context.span).collect();
        assert_eq!((ended.len(), spans.len()), (9, 9));
    }

    /// However a request ends, what is open is told once, with the reason.
    #[test]
    fn what_is_cut_short_says_why() {
        let mut pipeline = Pipeline::new(scheduler(|config| config.max_num_seqs = 1), 1, 64);
        pipeline.add(traced(1, 4, 9));
        pipeline.add(traced(2, 4, 9));
        pipeline.step().unwrap();
        pipeline.drop_request(1, "cancelled");
        pipeline.drop_request(2, "cancelled");
        let cancelled = Some("cancelled");
        assert_eq!(
            told(&mut pipeline),
            [
                (Phase::Queue, 0, 0, 4, None),
                (Phase::Prefill, 0, 1, 4, cancelled),
                (Phase::Queue, 0, 0, 4, cancelled),
            ]
        );
        pipeline.answer();
        pipeline.add(traced(3, 4, 9));
        pipeline.step().unwrap();
        pipeline.answer();
        pipeline.step().unwrap();
        // A request that a lost pipeline leaves is the same request in the next.
        let now = pipeline.now;
        pipeline.lane.evict().into_iter().for_each(|it| pipeline.queue.put(it, now));
        pipeline.answer();
        assert_eq!(told(&mut pipeline).len(), 2);
        pipeline.step().unwrap();
        pipeline.drop_request(3, "no_pipeline");
        assert_eq!(told(&mut pipeline), [(Phase::Decode, 0, 2, 1, Some("no_pipeline"))]);
    }

    #[test]
    fn a_failed_step_is_told_of_its_requests_only() {
        let mut pipeline = Pipeline::new(scheduler(|config| config.max_num_seqs = 1), 1, 64);
        pipeline.add(traced(1, 4, 9));
        pipeline.step().unwrap();
        let (step, _) = pipeline.steps.pop_front().unwrap();
        let now = pipeline.now;
        pipeline.lane.fail(step, "no memory", &mut pipeline.queue, now, &mut pipeline.told);
        assert_eq!(told(&mut pipeline)[1..], [(Phase::Prefill, 0, 1, 4, Some("step_failed"))]);
    }
}
