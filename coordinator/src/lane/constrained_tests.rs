//! Answers that keep to something: what may come next hangs on every token before, so a token that
//! is missed, doubled or sampled too early shows.

use std::sync::{Arc, Mutex};

use protocol::config::RunAhead;
use protocol::{RequestId, TokenId};

use super::*;
use crate::request::{Constraint, Going, NextTokens, Priority, Request, WantedMasks};
use crate::testing::{Pipeline, request, scheduler};

const VOCAB: u32 = 128;

/// After any two tokens of its own choice, each token is a function of all before it; the last of
/// them ends the answer.
#[derive(Debug)]
struct Spelled {
    said: Arc<Said>,
    length: usize,
}

/// What was said, for whoever makes a mask of it, be it at the last moment.
#[derive(Debug, Default)]
struct Said(Mutex<Vec<TokenId>>);

impl NextTokens for Said {
    fn mask(&self) -> Option<Vec<u32>> {
        let may_come = next(&self.0.lock().unwrap()).0 as usize;
        let mut mask = vec![0; VOCAB as usize / 32];
        mask[may_come / 32] = 1 << (may_come % 32);
        Some(mask)
    }
}

const FREE: usize = 2;

fn next(said: &[TokenId]) -> TokenId {
    let fold = |hash: u32, token: &TokenId| (hash ^ token.0).wrapping_mul(0x0100_0193);
    TokenId(said.iter().fold(0x811c_9dc5, fold) >> 8 & 63)
}

impl Spelled {
    fn boxed(length: usize) -> Box<dyn Constraint> {
        Box::new(Self { said: Arc::default(), length })
    }
}

impl Constraint for Spelled {
    fn next(&self) -> Option<Arc<dyn NextTokens>> {
        let num_said = self.said.0.lock().unwrap().len();
        (num_said >= FREE).then(|| Arc::clone(&self.said) as Arc<dyn NextTokens>)
    }

    fn push(&mut self, token: TokenId) -> Result<Going, String> {
        let mut said = self.said.0.lock().unwrap();
        if said.len() >= FREE && token != next(&said) {
            return Err(format!("{token} after {said:?}"));
        }
        said.push(token);
        Ok(if said.len() == self.length { Going::Over } else { Going::On })
    }

    fn end(&self) -> Result<(), String> {
        Ok(())
    }

    fn copy(&self) -> Box<dyn Constraint> {
        let said = Said(Mutex::new(self.said.0.lock().unwrap().clone()));
        Box::new(Self { said: said.into(), length: self.length })
    }
}

/// Samples what is allowed; where all is, the token at position p is 64 + p.
fn sampled(batch: &Batch, WantedMasks(wanted): &WantedMasks) -> Sampled {
    let mut outputs: Vec<SliceOutput> = Pipeline::sampled(batch).outputs;
    for output in &mut outputs {
        output.token = output.token.map(|_| TokenId(64 + output.position % 64));
    }
    for (slice, next) in wanted {
        let mask = next.mask().unwrap();
        let mut words = mask.iter().enumerate().filter(|(_, word)| **word != 0);
        let (at, word) = words.next().expect("something is allowed");
        outputs[*slice].token = Some(TokenId(at as u32 * 32 + word.trailing_zeros()));
    }
    Sampled { outputs, ..Sampled::default() }
}

/// The answer to a request, whoever computes it.
fn answer(prompt: usize, length: usize) -> Vec<u32> {
    let mut said: Vec<_> = (0..FREE).map(|i| TokenId(64 + (prompt + i) as u32 % 64)).collect();
    while said.len() < length {
        said.push(next(&said));
    }
    said.iter().map(|token| token.0).collect()
}

fn constrained(id: u64, prompt: u32, num_choices: u32, length: usize) -> Request {
    let constraint = Some(Spelled::boxed(length));
    Request { constraint, num_choices, ..request(id, prompt, 40) }
}

/// Steps that are under way, with masks that are yet to be made, once it is known of what.
type Steps = VecDeque<(StepId, Batch, Option<WantedMasks>)>;

fn fill(pipeline: &mut Pipeline, steps: &mut Steps) {
    while let Some(awaits) = pipeline.step_awaits() {
        let (step, batch) = pipeline.steps.pop_back().unwrap();
        steps.push_back((step, batch, (!awaits).then(WantedMasks::default)));
    }
    while let Some((step, wanted)) = pipeline.lane.settled() {
        let (.., place) = steps.iter_mut().find(|(it, ..)| *it == step).unwrap();
        assert!(place.replace(wanted).is_none(), "once");
    }
}

fn turn(pipeline: &mut Pipeline, steps: &mut Steps) -> bool {
    fill(pipeline, steps);
    let Some((step, batch, wanted)) = steps.pop_front() else { return false };
    let wanted = wanted.expect("nothing that the oldest step waits for is yet to come");
    pipeline.update(step, sampled(&batch, &wanted));
    true
}

fn new(num_stages: usize, num_blocks: usize) -> Pipeline {
    let config = scheduler(|config| {
        (config.run_ahead, config.reserved_tokens) = (RunAhead::On, 1);
    });
    Pipeline::new(config, num_stages, num_blocks)
}

#[test]
fn each_choice_keeps_to_it_by_itself_and_ends_where_it_does() {
    for num_stages in [1, 3] {
        let (mut pipeline, mut steps) = (new(num_stages, 64), Steps::new());
        pipeline.add(constrained(1, 5, 3, 20));
        pipeline.add(request(2, 7, 9));
        let (mut num_masks, mut num_ahead) = (0, 0);
        loop {
            fill(&mut pipeline, &mut steps);
            let Some((_, batch, Some(WantedMasks(wanted)))) = steps.front() else { break };
            for (slice, _) in wanted {
                num_masks += 1;
                num_ahead += usize::from(matches!(batch.slices[*slice].input, Input::SampledBy(_)));
                assert!(batch.slices[*slice].sample);
            }
            turn(&mut pipeline, &mut steps);
        }
        let events = pipeline.events();
        for choice in 0..3 {
            assert_eq!(pipeline.tokens(&events, 1, choice), answer(5, 20));
        }
        assert_eq!(pipeline.tokens(&events, 2, 0).len(), 9);
        let ends = pipeline.finished(&events);
        assert!(ends.contains(&(1, 2, FinishReason::Stop)), "{ends:?}");
        assert_eq!(num_masks, 3 * (20 - FREE));
        assert!(num_ahead > 0, "steps run ahead of what is known");
    }
}

/// Goal: what may come next is right wherever a sequence goes on. Method: whatever takes it out of
/// the lane does so after each of its steps.
#[test]
fn a_sequence_that_goes_on_elsewhere_keeps_to_it_still() {
    let mut num_kept = 0;
    for (num_stages, num_before) in (1..=3).flat_map(|it| (0..24).map(move |n| (it, n))) {
        for how in ["evict", "fail", "preempt"] {
            let of = format!("{how} after {num_before} of {num_stages} stages");
            let (mut pipeline, mut steps) = (new(num_stages, 40), Steps::new());
            pipeline.add(Request { priority: Priority::Offline, ..constrained(1, 9, 2, 24) });
            pipeline.add(request(2, 4, 30));
            (0..num_before).for_each(|_| _ = turn(&mut pipeline, &mut steps));
            fill(&mut pipeline, &mut steps);
            let now = pipeline.now;
            match how {
                "evict" => {
                    let evicted = pipeline.lane.evict();
                    evicted.into_iter().for_each(|it| pipeline.queue.put(it, now));
                    let capacity = pipeline.lane.capacity();
                    pipeline.lane = Lane::new(pipeline.lane.config.clone(), capacity);
                    steps.clear();
                }
                "fail" => {
                    let Some((step, ..)) = steps.pop_front() else { continue };
                    let Pipeline { lane, queue, told, .. } = &mut pipeline;
                    lane.fail(step, "bad luck", queue, now, told);
                    for (step, batch, _) in std::mem::take(&mut steps) {
                        pipeline.update(step, Pipeline::sampled(&batch));
                    }
                }
                _ => pipeline.add(Request {
                    priority: Priority::Realtime,
                    prompt: vec![TokenId(9); 560].into(),
                    ..request(9, 1, 3)
                }),
            }
            while turn(&mut pipeline, &mut steps) {}
            let events = pipeline.events();
            // Whoever was alone in a step that fails is at fault.
            if events.iter().any(|(_, event)| matches!(event, Event::Failed(_))) {
                assert_eq!(how, "fail");
                continue;
            }
            num_kept += 1;
            for choice in 0..2 {
                assert_eq!(pipeline.tokens(&events, 1, choice), answer(9, 24), "{of}");
            }
            assert_eq!(pipeline.lane.load().num_used_blocks, 0, "{of}");
        }
    }
    assert!(num_kept > 160, "{num_kept} of 216");
}

#[test]
fn an_answer_that_leaves_its_grammar_fails_and_nobody_else_does() {
    let (mut pipeline, mut steps) = (new(1, 64), Steps::new());
    pipeline.add(constrained(1, 5, 1, 20));
    pipeline.add(request(2, 7, 9));
    (0..5).for_each(|_| _ = turn(&mut pipeline, &mut steps));
    fill(&mut pipeline, &mut steps);
    while steps[0].2.as_ref().unwrap().0.is_empty() {
        turn(&mut pipeline, &mut steps);
        fill(&mut pipeline, &mut steps);
    }
    // A stage that doesn't look at masks.
    let (step, batch, _) = steps.pop_front().unwrap();
    pipeline.update(step, Pipeline::sampled(&batch));
    while turn(&mut pipeline, &mut steps) {}
    let events = pipeline.events();
    let failed = events.iter().find_map(|(id, event)| match event {
        Event::Failed(error) => Some((*id, error.kind())),
        _ => None,
    });
    assert_eq!(failed, Some((RequestId(1), "off_grammar")));
    let shown = pipeline.tokens(&events, 1, 0);
    assert!(answer(5, 20).starts_with(&shown), "what it left it for isn't shown: {shown:?}");
    assert_eq!(pipeline.tokens(&events, 2, 0).len(), 9);
    assert_eq!(pipeline.lane.load().num_used_blocks, 0);
}

#[test]
fn a_pipeline_of_older_nodes_is_no_place_for_it() {
    let (mut pipeline, mut steps) = (new(1, 64), Steps::new());
    let capacity = Capacity { takes_masks: false, ..pipeline.lane.capacity() };
    pipeline.lane = Lane::new(pipeline.lane.config.clone(), capacity);
    pipeline.add(constrained(1, 5, 1, 20));
    pipeline.add(request(2, 7, 9));
    while turn(&mut pipeline, &mut steps) {}
    let events = pipeline.events();
    assert_eq!(pipeline.tokens(&events, 1, 0), [0; 0]);
    assert_eq!(pipeline.tokens(&events, 2, 0).len(), 9);
    assert_eq!(pipeline.queue.num_requests(), 1, "it waits for another");
}
