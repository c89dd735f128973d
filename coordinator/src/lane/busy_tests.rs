//! How busy stages are whose steps take what their tokens cost, in virtual time.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use protocol::StageTiming;

use super::*;
use crate::request::Event;
use crate::testing::{Pipeline, request, scheduler};

/// What a step costs at a stage that holds the whole model, in microseconds; a stage has its share.
#[derive(Clone, Copy)]
struct Cost {
    fixed: u64,
    per_token: u64,
    hop: u64,
}

/// A software driver: tokens cost nearly all of it. A GPU: they cost nearly nothing.
const SOFTWARE: Cost = Cost { fixed: 8_000, per_token: 18_000, hop: 300 };
const GPU: Cost = Cost { fixed: 10_000, per_token: 20, hop: 100 };

/// Users who ask again as soon as they are answered.
#[derive(Clone, Copy)]
struct Users {
    num: u64,
    prompt: u32,
    answer: u32,
}

/// A pipeline and its stages.
struct Line {
    pipeline: Pipeline,
    cost: Cost,
    // When each stage is free again.
    free: Vec<Instant>,
    // When steps under way are back, and what they take at each stage.
    back: VecDeque<(Instant, Duration)>,
    busy: Duration,
}

impl Line {
    fn new(num_stages: usize, cost: Cost, max_batched_tokens: u32) -> Self {
        let config = scheduler(|config| {
            config.max_batched_tokens = max_batched_tokens;
            (config.target_step_ms, config.prefix_cache) = (0, false);
        });
        let pipeline = Pipeline::new(config, num_stages, 4096);
        let free = vec![pipeline.now; num_stages];
        Self { pipeline, cost, free, back: VecDeque::new(), busy: Duration::ZERO }
    }

    /// Whatever can be sent is on its way.
    fn fill(&mut self) {
        while let Some(batch) = self.pipeline.step() {
            let tokens = batch.num_tokens() as u64;
            let takes = (self.cost.fixed + self.cost.per_token * tokens) / self.free.len() as u64;
            let takes = Duration::from_micros(takes);
            let hop = Duration::from_micros(self.cost.hop);
            let mut at = self.pipeline.now + hop;
            for free in &mut self.free {
                *free = at.max(*free) + takes;
                self.busy += takes;
                at = *free + hop;
            }
            self.back.push_back((at, takes));
        }
    }

    /// The oldest step is back.
    fn turn(&mut self) -> Vec<(RequestId, Event)> {
        let (now, takes) = self.back.pop_front().expect("a step is under way");
        let (step, batch) = self.pipeline.steps.pop_front().expect("a step is under way");
        self.pipeline.now = now;
        let compute_us = takes.as_micros() as u32;
        let timings = vec![StageTiming { compute_us, ..StageTiming::default() }; self.free.len()];
        self.pipeline.update(step, Sampled { timings, ..Pipeline::sampled(&batch) });
        self.pipeline.events()
    }

    /// Until nothing runs any more.
    fn finish(&mut self) {
        self.fill();
        while !self.back.is_empty() {
            self.turn();
            self.fill();
        }
    }

    /// Tokens a second, prompts included, and the share of the time in which stages were busy.
    fn serve(&mut self, users: Users, num_answers: u64) -> (f64, f64) {
        let begin = self.pipeline.now;
        // Their first answers are parts of later ones, so that they don't go on in step.
        for id in 0..users.num {
            let part = 1 + (id * 7) as u32 % users.answer;
            self.pipeline.add(request(id, users.prompt, part));
        }
        // When a user asks again: a moment after the answer.
        let mut asks: BTreeMap<Instant, u64> = BTreeMap::new();
        let (mut next, mut num_tokens) = (users.num, 0);
        while next < num_answers {
            self.fill();
            if let Some(at) = asks.first_key_value().map(|(at, _)| *at)
                && self.back.front().is_none_or(|(back, _)| at < *back)
            {
                self.pipeline.now = at;
                for _ in 0..asks.remove(&at).expect("it is there") {
                    self.pipeline.add(request(next, users.prompt, users.answer));
                    next += 1;
                }
                continue;
            }
            let events = self.turn();
            let at = self.pipeline.now + Duration::from_millis(3);
            for (_, event) in events {
                match event {
                    Event::Token { .. } => num_tokens += 1,
                    Event::Finished { .. } => {
                        num_tokens += u64::from(users.prompt);
                        *asks.entry(at).or_default() += 1;
                    }
                    _ => {}
                }
            }
        }
        let took = (self.pipeline.now - begin).as_secs_f64();
        (num_tokens as f64 / took, self.busy.as_secs_f64() / took / self.free.len() as f64)
    }
}

/// Tokens a second of two stages over those of one, `max_batched_tokens` a step.
fn ratio(cost: Cost, max_batched_tokens: u32, users: Users) -> f64 {
    let rate = |num_stages| {
        let mut line = Line::new(num_stages, cost, max_batched_tokens);
        line.serve(users, 12 * users.num).0
    };
    rate(2) / rate(1)
}

/// Goal: two stages do nearly twice as much as one. Answers end and begin all the time; users ask
/// again a moment after they are answered.
#[test]
fn answers_that_end_and_begin_leave_no_stage_without_work() {
    for (num, max_batched_tokens, least) in [(64, 32, 1.95), (32, 32, 1.75), (32, 512, 1.75)] {
        for answer in [24, 64] {
            let users = Users { num, prompt: 8, answer };
            let ratio = ratio(SOFTWARE, max_batched_tokens, users);
            assert!(ratio > least, "{num} at once, answers of {answer}: {ratio}");
        }
    }
}

/// Goal: while prompts are computed no stage waits for the first of them: their chunks follow each
/// other, also where other sequences fill the groups, and are small enough for it.
#[test]
fn prompts_leave_no_stage_without_work() {
    for (num, prompt, answer) in [(2, 1000, 50), (4, 500, 50), (16, 300, 100), (32, 128, 64)] {
        let users = Users { num, prompt, answer };
        for (max_batched_tokens, least) in [(32, 1.9), (512, 1.55)] {
            let ratio = ratio(SOFTWARE, max_batched_tokens, users);
            assert!(ratio > least, "{num} prompts of {prompt}, {max_batched_tokens}: {ratio}");
        }
        // Where a step takes as long whatever it computes, there is nothing to win.
        let ratio = ratio(GPU, 512, users);
        assert!(ratio > 0.95, "{num} prompts of {prompt} on a GPU: {ratio}");
    }
}

/// The time of a lone prompt, and in how many steps it is computed, once steps were measured.
fn prompt(num_stages: usize, cost: Cost) -> (f64, u64) {
    let mut line = Line::new(num_stages, cost, 512);
    line.serve(Users { num: 3, prompt: 40, answer: 20 }, 30);
    line.finish();
    let (begin, first) = (line.pipeline.now, line.pipeline.lane.next_step);
    line.pipeline.add(request(u64::MAX, 500, 1));
    line.finish();
    ((line.pipeline.now - begin).as_secs_f64(), line.pipeline.lane.next_step - first)
}

#[test]
fn a_prompt_is_cut_into_chunks_where_that_makes_it_sooner() {
    let [(one, whole), (two, chunks)] = [1, 2].map(|num_stages| prompt(num_stages, SOFTWARE));
    assert!(two < one * 0.62 && whole == 1 && chunks > 4, "{one} {whole}, {two} {chunks}");
    assert_eq!(prompt(2, GPU).1, 1, "each further step would cost as much again");
}
