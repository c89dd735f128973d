//! Steps that compute what earlier ones have yet to sample, on stages whose answers hang on every
//! token that their cache holds: a wrong token, position or block changes all that follows.

use std::collections::HashMap;
use std::time::Duration;

use protocol::config::RunAhead;
use protocol::{BLOCK_TOKENS, BlockId, RequestId, Slice, SliceOutput, TokenId, config};

use super::*;
use crate::request::{Priority, Request};
use crate::testing::{Pipeline, request, scheduler};

fn next(tokens: impl IntoIterator<Item = TokenId>) -> TokenId {
    let fold = |hash: u32, token: TokenId| (hash ^ token.0).wrapping_mul(0x0100_0193);
    TokenId(tokens.into_iter().fold(0x811c_9dc5, fold) >> 8 & 31)
}

/// What a request is answered, whoever computes it.
fn answer(request: &Request) -> Vec<TokenId> {
    let mut tokens = request.prompt.to_vec();
    for _ in 0..request.max_tokens {
        let token = next(tokens.iter().copied());
        tokens.push(token);
        if request.stop_tokens.contains(&token) {
            break;
        }
    }
    tokens.split_off(request.prompt.len())
}

/// All stages of a pipeline, as far as the scheduler can tell.
#[derive(Default)]
struct Stages {
    // Block tables and tokens told.
    known: HashMap<SequenceId, (Vec<BlockId>, usize)>,
    cache: HashMap<BlockId, [TokenId; BLOCK_TOKENS]>,
    sampled: HashMap<(StepId, SequenceId), TokenId>,
}

impl Stages {
    fn compute(&mut self, step: StepId, batch: &Batch) -> Sampled {
        batch.finished.iter().for_each(|ended| drop(self.known.remove(ended)));
        for slice in &batch.slices {
            if let Some(from) = slice.begin.as_ref().and_then(|begin| begin.copy_from) {
                let copied = self.cache[&from];
                self.cache.insert(slice.blocks[slice.start as usize / BLOCK_TOKENS], copied);
            }
        }
        let outputs = batch.slices.iter().map(|slice| self.slice(step, slice)).collect();
        Sampled { outputs, ..Sampled::default() }
    }

    fn slice(&mut self, step: StepId, slice: &Slice) -> SliceOutput {
        let tokens = match &slice.input {
            Input::Tokens(tokens) => tokens.clone(),
            Input::SampledBy(by) => vec![self.sampled[&(*by, slice.sequence)]],
        };
        if let Some(begin) = &slice.begin {
            self.known.insert(slice.sequence, (Vec::new(), begin.skipped.len()));
        }
        let (blocks, num_known) = self.known.get_mut(&slice.sequence).expect("it has begun");
        assert!(slice.start as usize <= *num_known, "a gap");
        blocks.truncate(slice.first_block as usize);
        blocks.extend(&slice.blocks);
        for (position, token) in (slice.start as usize..).zip(&tokens) {
            let block = self.cache.entry(blocks[position / BLOCK_TOKENS]).or_default();
            block[position % BLOCK_TOKENS] = *token;
        }
        let end = slice.start as usize + tokens.len();
        *num_known = end;
        let held = |i: usize| self.cache[&blocks[i / BLOCK_TOKENS]][i % BLOCK_TOKENS];
        let token = slice.sample.then(|| next((0..end).map(held)));
        self.sampled.extend(token.map(|token| ((step, slice.sequence), token)));
        SliceOutput {
            sequence: slice.sequence,
            position: end as u32,
            token,
            logprobs: None,
            prompt_logprobs: Vec::new(),
        }
    }
}

/// A queue and a lane before such stages.
struct Run {
    pipeline: Pipeline,
    stages: Stages,
    requests: Vec<Request>,
    events: Vec<(RequestId, Event)>,
}

impl Run {
    fn new(num_stages: usize, num_blocks: usize, change: fn(&mut config::Scheduler)) -> Self {
        let config = scheduler(|config| {
            config.run_ahead = RunAhead::On;
            change(config);
        });
        Self {
            pipeline: Pipeline::new(config, num_stages, num_blocks),
            stages: Stages::default(),
            requests: Vec::new(),
            events: Vec::new(),
        }
    }

    fn add(&mut self, request: Request) {
        self.requests.push(Request { text: request.text.clone(), ..request.clone() });
        self.pipeline.add(request);
    }

    /// Whatever can be sent is.
    fn fill(&mut self) {
        while self.pipeline.step().is_some() {}
        self.events.extend(self.pipeline.events());
    }

    /// The oldest step returns, if any is under way.
    fn turn(&mut self) -> bool {
        self.fill();
        let Some((step, batch)) = self.pipeline.steps.pop_front() else { return false };
        let sampled = self.stages.compute(step, &batch);
        self.pipeline.update(step, sampled);
        self.events.extend(self.pipeline.events());
        true
    }

    fn finish(&mut self) {
        while self.turn() {}
    }

    /// Everybody got all of the answer, once, but those.
    fn check_but(&self, others: &[u64], of: &str) {
        for request in &self.requests {
            let id = request.id.0;
            if others.contains(&id) {
                continue;
            }
            let expected: Vec<_> = answer(request).iter().map(|token| token.0).collect();
            assert_eq!(self.pipeline.tokens(&self.events, id, 0), expected, "request {id}, {of}");
        }
        let ended = self.pipeline.finished(&self.events);
        assert_eq!(ended.len() + others.len(), self.requests.len(), "{of}");
        assert_eq!(self.pipeline.lane.load().num_used_blocks, 0, "{of}");
    }
}

/// Whose prompts begin alike in pairs, so that they find each other's blocks.
fn mixed(id: u64, max_tokens: u32) -> Request {
    let prompt: Vec<_> = (0..7 + id as u32 * 5).map(|i| TokenId((id as u32 / 2) * 7 + i)).collect();
    Request { prompt: prompt.into(), ..request(id, 1, max_tokens) }
}

fn promises(batch: &Batch) -> Vec<(u64, u64)> {
    let promised = batch.slices.iter().filter_map(|slice| match slice.input {
        Input::SampledBy(by) => Some((slice.sequence.0, by.0)),
        Input::Tokens(_) => None,
    });
    promised.collect()
}

#[test]
fn the_next_step_is_at_hand_before_the_one_before_returns() {
    for num_stages in [1, 3] {
        let mut run = Run::new(num_stages, 64, |_| {});
        run.add(mixed(1, 4));
        let steps: Vec<_> = (0..3).map(|_| run.pipeline.step()).collect();
        assert_eq!(promises(steps[0].as_ref().unwrap()), []);
        let second = steps[1].as_ref().unwrap();
        assert_eq!(promises(second), [(0, 0)]);
        assert_eq!((second.slices[0].start, second.slices[0].num_tokens()), (12, 1));
        assert!(steps[2].is_none(), "one promised token at most");
        run.finish();
        run.check_but(&[], "alone");
    }
    let mut run = Run::new(1, 64, |config| config.run_ahead = RunAhead::Off);
    run.add(mixed(1, 4));
    assert!(run.pipeline.step().is_some() && run.pipeline.step().is_none(), "it can be turned off");
}

#[test]
fn nothing_is_promised_past_the_longest_answer() {
    let mut run = Run::new(1, 64, |_| {});
    run.add(mixed(1, 3));
    let mut num_tokens = 0;
    while run.turn() {
        let under_way = run.pipeline.steps.iter();
        num_tokens = num_tokens.max(under_way.map(|(step, _)| step.0 + 1).max().unwrap_or(0));
    }
    assert_eq!(num_tokens, 3, "a step for each token of the answer");
    run.check_but(&[], "length");
}

/// Goal: whatever a step computes of what is known doesn't wait for a step that is still behind it
/// in the pipeline.
#[test]
fn a_step_names_samples_of_steps_that_have_left_when_it_arrives() {
    for num_stages in 1..=4 {
        let mut run = Run::new(num_stages, 512, |config| config.max_batched_tokens = 32);
        (0..7).for_each(|id| run.add(mixed(id, 20)));
        run.add(Request { prompt: vec![TokenId(3); 400].into(), ..request(9, 1, 5) });
        let mut num_promised = 0;
        loop {
            let oldest = run.pipeline.steps.front().map(|(step, _)| step.0);
            let Some(batch) = run.pipeline.step() else {
                if run.turn() {
                    continue;
                }
                break;
            };
            let step = run.pipeline.steps.back().unwrap().0.0;
            let promised = promises(&batch);
            num_promised += promised.len();
            let waits_for = promised.iter().map(|(_, by)| *by).max();
            let is_alone = promised.len() == batch.slices.len() && waits_for == oldest;
            assert!(
                is_alone || waits_for.is_none_or(|by| by + num_stages as u64 <= step),
                "step {step} of {num_stages} stages waits for {waits_for:?}"
            );
        }
        assert!(num_promised > 20, "{num_promised}");
        run.check_but(&[], "mixed");
    }
}

/// Each token of the answer ends it in turn; its row in the step under way is discarded.
#[test]
fn an_answer_stops_at_any_token_with_the_next_one_under_way() {
    for num_stages in 1..=3 {
        let whole = answer(&mixed(2, 40));
        for (i, stop) in whole.iter().enumerate() {
            if whole[..i].contains(stop) {
                continue;
            }
            let mut run = Run::new(num_stages, 12, |config| config.max_num_seqs = 3);
            run.add(Request { stop_tokens: [*stop].into(), ..mixed(2, 40) });
            (3..7).for_each(|id| run.add(mixed(id, 30)));
            run.finish();
            run.check_but(&[], &format!("stop at {i}, {num_stages} stages"));
        }
    }
}

/// Whatever takes a sequence out of the lane at any of its tokens, with the next one under way:
/// it goes on where it was, or not at all, and the others don't notice.
#[test]
fn whoever_leaves_at_any_token_leaves_nothing_behind() {
    for (num_stages, num_before) in (1..=3).flat_map(|it| (0..26).map(move |n| (it, n))) {
        for how in ["cancel", "evict", "fail", "preempt"] {
            let mut run = Run::new(num_stages, 40, |config| config.reserved_tokens = 1);
            (2..5).for_each(|id| run.add(mixed(id, 20)));
            run.add(Request { priority: Priority::Offline, ..mixed(6, 20) });
            (0..num_before).for_each(|_| _ = run.turn());
            run.fill();
            let now = run.pipeline.now;
            let mut lost = Vec::new();
            match how {
                "cancel" => {
                    let is_over = run.pipeline.finished(&run.events).iter().any(|it| it.0 == 3);
                    run.pipeline.drop_request(3, "cancelled");
                    lost.extend((!is_over).then_some(3));
                }
                "evict" => {
                    let evicted = run.pipeline.lane.evict();
                    evicted.into_iter().for_each(|it| run.pipeline.queue.put(it, now));
                    let capacity = run.pipeline.lane.capacity();
                    run.pipeline.lane = Lane::new(run.pipeline.lane.config.clone(), capacity);
                    run.pipeline.steps.clear();
                    run.stages = Stages::default();
                }
                "fail" => {
                    let Some((step, _)) = run.pipeline.steps.pop_front() else { continue };
                    let Pipeline { lane, queue, told, .. } = &mut run.pipeline;
                    lane.fail(step, "bad luck", queue, now, told);
                    let failed = run.pipeline.events();
                    lost.extend(failed.iter().map(|(request, _)| request.0));
                    // The steps behind it still come back, and say nothing.
                    for (step, batch) in std::mem::take(&mut run.pipeline.steps) {
                        run.pipeline.update(step, Pipeline::sampled(&batch));
                    }
                }
                _ => run.add(Request {
                    priority: Priority::Realtime,
                    prompt: vec![TokenId(9); 500].into(),
                    ..request(9, 1, 3)
                }),
            }
            run.finish();
            run.check_but(&lost, &format!("{how} after {num_before} of {num_stages} stages"));
        }
    }
}

/// Goal: run-ahead changes no answer, whatever happens in whichever order. Method: random loads on
/// few blocks, so that many are preempted, with requests that come, stop and are cancelled.
#[test]
fn answers_are_the_same_in_any_mixture() {
    for seed in 1..150_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let num_stages = 1 + random(4) as usize;
        let mut run = Run::new(num_stages, 14, |config| {
            config.max_num_seqs = 6;
            config.max_batched_tokens = 24;
            config.reserved_tokens = 4;
        });
        let mut cancelled = Vec::new();
        for id in 0..14 {
            let priority = Priority::ALL[random(4) as usize];
            let stop = TokenId(random(90) as u32);
            // Some ask for the same.
            let prompt = mixed(id - id % 3, 1).prompt;
            let request = Request { prompt, ..mixed(id, 1 + random(60) as u32) };
            run.add(Request { priority, stop_tokens: [stop].into(), ..request });
            (0..random(12)).for_each(|_| _ = run.turn());
            let other = random(40);
            let ended = run.pipeline.finished(&run.events);
            if other <= id && !cancelled.contains(&other) && ended.iter().all(|it| it.0 != other) {
                run.pipeline.drop_request(other, "cancelled");
                cancelled.push(other);
            }
        }
        run.finish();
        run.check_but(&cancelled, &format!("seed {seed}"));
    }
}

#[test]
fn what_comes_out_of_turn_is_taken_in_its_turn() {
    let mut run = Run::new(1, 64, |_| {});
    run.add(mixed(1, 5));
    run.fill();
    let late: Vec<_> = std::mem::take(&mut run.pipeline.steps).into();
    let sampled: Vec<_> =
        late.iter().map(|(step, batch)| run.stages.compute(*step, batch)).collect();
    for ((step, _), sampled) in late.iter().zip(sampled).rev() {
        run.pipeline.update(*step, sampled);
    }
    run.finish();
    run.check_but(&[], "out of turn");
}

/// Chunks are cut by the time that steps take, not by that which they wait for their turn.
#[test]
fn a_step_is_not_charged_with_the_one_before_it() {
    let mut run = Run::new(1, 512, |config| config.target_step_ms = 0);
    for id in 0..30 {
        run.add(mixed(id % 9, 40));
        run.fill();
        assert!(id == 0 || run.pipeline.steps.len() == 2);
        let num_tokens = run.pipeline.steps[0].1.num_tokens();
        run.pipeline.now += Duration::from_millis(20 + num_tokens as u64);
        run.turn();
    }
    let within = run.pipeline.lane.cost.tokens_within(Duration::from_millis(100)).unwrap();
    assert!(within.abs_diff(80) <= 1, "{within}");
}

#[test]
fn what_an_answers_last_step_filled_is_found_by_others() {
    for run_ahead in [RunAhead::Off, RunAhead::On] {
        let mut run = Run::new(1, 64, |_| {});
        run.pipeline.lane.config.run_ahead = run_ahead;
        let first = Request { prompt: vec![TokenId(4); 10].into(), ..request(1, 1, 7) };
        let whole = [&first.prompt[..], &answer(&first)].concat();
        run.add(first);
        run.finish();
        run.add(Request { prompt: whole.into(), ..request(2, 1, 3) });
        run.finish();
        assert_eq!(run.pipeline.told.prefix.num_found, 16, "{run_ahead:?}");
        run.check_but(&[], "prefix");
    }
}

/// Goal: a token takes no longer for having been sent for early. Method: a sequence alone, whose
/// steps come back every 10 ms; a second one, and nothing is said of one alone.
#[test]
fn a_step_that_waited_behind_another_took_only_its_own_time() {
    let mut run = Run::new(1, 100, |_| {});
    run.add(request(0, 3, 20));
    let turn = |run: &mut Run| {
        run.fill();
        run.pipeline.now += Duration::from_millis(10);
        let (step, batch) = run.pipeline.steps.pop_front().unwrap();
        let sampled = run.stages.compute(step, &batch);
        run.pipeline.update(step, sampled)
    };
    turn(&mut run);
    for _ in 0..5 {
        let update = turn(&mut run);
        assert_eq!(update.alone, Some(Duration::from_millis(10)));
        assert_eq!(update.duration, Duration::from_millis(20), "it was sent a step ahead");
    }
    run.add(request(1, 3, 20));
    let last = (0..4).map(|_| turn(&mut run)).last().unwrap();
    assert_eq!(last.alone, None);
}
