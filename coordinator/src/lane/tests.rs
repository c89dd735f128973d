mod hidden;
mod sharing;
mod simulated;

use std::time::Duration;

use protocol::{RequestId, SequenceId, Slice, SliceOutput, StepId};

use super::order::MAX_STEPS_PASSED;
use super::*;
use crate::request::{Priority, Request};
use crate::testing::{Pipeline, request, scheduler};

fn of(priority: Priority, request: Request) -> Request {
    Request { priority, ..request }
}

/// A request whose prompt no other has.
fn own(id: u64, num_prompt_tokens: u32, max_tokens: u32) -> Request {
    let prompt = (0..num_prompt_tokens).map(|i| protocol::TokenId(10_000 * id as u32 + i));
    Request { prompt: prompt.collect(), ..request(id, num_prompt_tokens, max_tokens) }
}

#[test]
fn a_request_runs_to_its_length() {
    let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 64);
    pipeline.add(request(1, 5, 3));
    let events = pipeline.run();
    assert_eq!(pipeline.tokens(&events, 1, 0), [105, 106, 107]);
    assert_eq!(pipeline.finished(&events), [(1, 0, FinishReason::Length)]);
    assert_eq!(pipeline.lane.load(), LaneLoad { num_blocks: 64, ..LaneLoad::default() });
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

/// 8 blocks of 16 tokens and four requests that need 4 each in the end: three begin, since few
/// blocks do at first, and the youngest wait again when the older ones grow.
#[test]
fn more_run_than_could_end_and_nothing_runs_out() {
    let mut pipeline = Pipeline::new(scheduler(|config| config.reserved_tokens = 8), 1, 8);
    (0..4).for_each(|id| pipeline.add(own(id, 20, 40)));
    assert_eq!(pipeline.step().unwrap().slices.len(), 4);
    let events = pipeline.run();
    assert_eq!(pipeline.finished(&events).len(), 4);
    for id in 0..4 {
        let expected: Vec<_> = (120..160).collect();
        assert_eq!(pipeline.tokens(&events, id, 0), expected, "request {id}");
    }
    assert!(!pipeline.told.preempted.is_empty());
}

#[test]
fn a_preempted_sequence_is_told_anew_with_its_answer_so_far() {
    let mut pipeline = Pipeline::new(
        scheduler(|config| {
            config.max_num_seqs = 1;
            config.max_batched_tokens = 64;
        }),
        1,
        8,
    );
    pipeline.add(of(Priority::Offline, request(1, 20, 30)));
    for _ in 0..5 {
        pipeline.step().unwrap();
        pipeline.answer();
    }
    pipeline.add(of(Priority::Interactive, request(2, 3, 2)));
    let batch = pipeline.step().unwrap();
    assert_eq!(batch.finished, [SequenceId(0)], "the stages forget whom it replaces");
    assert_eq!(batch.slices[0].num_tokens(), 3);
    pipeline.answer();
    pipeline.step().unwrap();
    pipeline.answer();
    let again = pipeline.step().unwrap().slices[0].clone();
    let begin = again.begin.as_ref().unwrap();
    assert_eq!(again.sequence, SequenceId(2), "it has a new name");
    assert_eq!(begin.num_prompt_tokens, 20, "what was answered is no prompt");
    // Its first block may still be there: what it holds is told, not computed.
    assert_eq!(begin.skipped.len() as u32, again.start);
    assert_eq!(again.start as usize + again.num_tokens(), 25);
    assert!(again.sample);
    let events = pipeline.run();
    let expected: Vec<_> = (125..150).collect();
    assert_eq!(pipeline.tokens(&events, 1, 0), expected, "it goes on where it was");
}

#[test]
fn nobody_gives_way_to_an_equal_and_whoever_did_computes_some_tokens_in_peace() {
    let config = scheduler(|config| config.max_num_seqs = 1);
    let mut pipeline = Pipeline::new(config, 1, 8);
    pipeline.add(of(Priority::Interactive, request(1, 4, 40)));
    pipeline.step().unwrap();
    pipeline.answer();
    pipeline.add(of(Priority::Interactive, request(2, 4, 1)));
    assert_eq!(pipeline.step().unwrap().slices[0].sequence, SequenceId(0));
    pipeline.answer();
    pipeline.add(of(Priority::Realtime, request(3, 4, 1)));
    pipeline.step().unwrap();
    let events = pipeline.answer();
    assert_eq!(pipeline.finished(&events), [(3, 0, FinishReason::Length)]);
    // 1 runs again, and a second realtime request waits for 16 of its tokens.
    pipeline.step().unwrap();
    pipeline.answer();
    pipeline.add(of(Priority::Realtime, request(4, 4, 1)));
    let mut num_tokens = 1;
    loop {
        pipeline.step().unwrap();
        let events = pipeline.answer();
        if !pipeline.tokens(&events, 4, 0).is_empty() {
            break;
        }
        num_tokens += pipeline.tokens(&events, 1, 0).len();
    }
    assert_eq!(num_tokens, 16);
}

#[test]
fn a_small_request_passes_one_that_does_not_fit_a_few_times() {
    let config = scheduler(|config| {
        config.max_passed = 2;
        config.max_batched_tokens = 64;
    });
    let mut pipeline = Pipeline::new(config, 1, 8);
    // 1 holds 5 of 8 blocks for long; 2 needs 6; the others one each.
    pipeline.add(own(1, 70, 10));
    pipeline.step().unwrap();
    pipeline.add(own(2, 90, 1));
    (3..8).for_each(|id| pipeline.add(own(id, 5, 1)));
    let mut events = pipeline.answer();
    for _ in 0..3 {
        pipeline.step().unwrap();
        events.extend(pipeline.answer());
    }
    let ended: Vec<_> = pipeline.finished(&events).iter().map(|(id, ..)| *id).collect();
    assert_eq!(ended, [3, 4], "two passed, then blocks are kept");
    let events = pipeline.run();
    assert_eq!(pipeline.finished(&events).len(), 5);
}

#[test]
fn a_cancelled_sequence_goes_at_once_and_its_step_says_nothing() {
    let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 64);
    pipeline.add(request(1, 20, 10));
    pipeline.step().unwrap();
    assert_eq!(pipeline.lane.cancel(RequestId(1)).len(), 1);
    assert_eq!(pipeline.lane.load().num_used_blocks, 0);
    assert_eq!(pipeline.answer(), []);
    pipeline.add(request(2, 4, 1));
    assert_eq!(pipeline.step().unwrap().finished, [SequenceId(0)]);
}

#[test]
fn a_step_that_fails_with_one_sequence_fails_it() {
    let mut pipeline = Pipeline::new(scheduler(|_| {}), 2, 64);
    pipeline.add(request(1, 4, 5));
    pipeline.add(request(2, 4, 5));
    pipeline.step().unwrap();
    pipeline.step().unwrap();
    let now = pipeline.now;
    pipeline.lane.fail(StepId(0), "bad luck", &mut pipeline.queue, now, &mut pipeline.told);
    pipeline.steps.clear();
    let error = RequestError::StepFailed("bad luck".into());
    assert_eq!(pipeline.events(), [(RequestId(1), Event::Failed(error))]);
    let events = pipeline.run();
    assert_eq!(pipeline.finished(&events), [(2, 0, FinishReason::Length)]);
    assert_eq!(pipeline.tokens(&events, 2, 0), [104, 105, 106, 107, 108]);
}

/// Of four in a step one is at fault: the others are answered, it alone fails.
#[test]
fn whoever_makes_a_step_fail_fails_alone() {
    let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 64);
    (1..=4).for_each(|id| pipeline.add(request(id, 4, 3)));
    pipeline.add(request(5, 40, 3));
    let mut events = Vec::new();
    while let Some(batch) = pipeline.step() {
        let guilty = |slice: &Slice| slice.start + slice.num_tokens() as u32 >= 40;
        if batch.slices.iter().any(guilty) {
            let (step, _) = pipeline.steps.pop_front().unwrap();
            let now = pipeline.now;
            pipeline.lane.fail(step, "not finite", &mut pipeline.queue, now, &mut pipeline.told);
            events.extend(pipeline.events());
        } else {
            events.extend(pipeline.answer());
        }
    }
    let failed: Vec<_> =
        events.iter().filter(|(_, event)| matches!(event, Event::Failed(_))).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].0, RequestId(5));
    for id in 1..=4 {
        assert_eq!(pipeline.tokens(&events, id, 0), [104, 105, 106], "request {id}");
    }
}

#[test]
fn what_a_failed_step_was_to_tell_of_ended_sequences_is_told_again() {
    let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 64);
    pipeline.add(request(1, 4, 1));
    pipeline.step().unwrap();
    pipeline.answer();
    pipeline.add(request(2, 4, 5));
    assert_eq!(pipeline.step().unwrap().finished, [SequenceId(0)]);
    let now = pipeline.now;
    pipeline.lane.fail(StepId(1), "bad luck", &mut pipeline.queue, now, &mut pipeline.told);
    pipeline.steps.clear();
    pipeline.add(request(3, 4, 1));
    assert_eq!(pipeline.step().unwrap().finished, [0, 1].map(SequenceId));
}

/// Both steps under way fail, and each was to tell of one that had ended.
#[test]
fn what_all_steps_under_way_were_to_tell_is_told_again_when_one_of_them_fails() {
    let mut pipeline = Pipeline::new(scheduler(|_| {}), 2, 64);
    (1..=2).for_each(|id| pipeline.add(own(id, 4, 1)));
    pipeline.step().unwrap();
    pipeline.step().unwrap();
    for (id, ended) in [(3, 0), (4, 1)] {
        pipeline.answer();
        pipeline.add(own(id, 4, 5));
        assert_eq!(pipeline.step().unwrap().finished, [SequenceId(ended)]);
    }
    let now = pipeline.now;
    for step in [2, 3] {
        let (queue, told) = (&mut pipeline.queue, &mut pipeline.told);
        pipeline.lane.fail(StepId(step), "bad luck", queue, now, told);
    }
    pipeline.steps.clear();
    assert_eq!(pipeline.step().unwrap().finished, [0, 1, 2, 3].map(SequenceId));
}

/// A step fails while another is under way: that one is in the stages still.
#[test]
fn steps_that_nobody_waits_for_take_room_until_they_return() {
    let mut pipeline = Pipeline::new(scheduler(|_| {}), 2, 64);
    (1..=2).for_each(|id| pipeline.add(own(id, 4, 5)));
    pipeline.step().unwrap();
    pipeline.step().unwrap();
    let (step, batch) = pipeline.steps.pop_back().unwrap();
    (3..=4).for_each(|id| pipeline.add(own(id, 4, 5)));
    let now = pipeline.now;
    pipeline.lane.fail(StepId(0), "bad luck", &mut pipeline.queue, now, &mut pipeline.told);
    pipeline.steps.clear();
    assert_eq!(pipeline.events().len(), 1, "who was alone in it fails");
    assert!(pipeline.step().is_some());
    assert!(pipeline.step().is_none(), "two are under way");
    assert!(!pipeline.answer().is_empty(), "what is sent from now on waits for none of them");
    assert!(pipeline.step().is_some());
    assert!(pipeline.step().is_none());
    pipeline.update(step, Pipeline::sampled(&batch));
    assert_eq!(pipeline.events(), [], "it says nothing");
    assert!(pipeline.step().is_some());
    let events = pipeline.run();
    assert_eq!(pipeline.finished(&events).len(), 3);
}

#[test]
fn a_step_that_returns_twice_is_recorded_once() {
    let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 64);
    pipeline.add(request(1, 4, 2));
    let batch = pipeline.step().unwrap();
    assert_eq!(pipeline.answer().len(), 1);
    let again = Pipeline::sampled(&batch);
    assert_eq!(pipeline.update(StepId(0), again), Update::default());
    assert_eq!(pipeline.events(), []);
}

/// Whoever is evicted goes on elsewhere: the same tokens, and each once.
#[test]
fn an_answer_goes_on_in_another_lane_at_every_token() {
    for num_before in 0..6 {
        let mut pipeline = Pipeline::new(scheduler(|_| {}), 2, 64);
        pipeline.add(request(1, 20, 6));
        pipeline.add(request(2, 4, 6));
        let mut events = Vec::new();
        for _ in 0..num_before {
            while pipeline.step().is_some() {}
            events.extend(pipeline.answer());
        }
        let now = pipeline.now;
        for sequence in pipeline.lane.evict() {
            pipeline.queue.put(sequence, now);
        }
        // What the old pipeline still says names nobody.
        let late = std::mem::take(&mut pipeline.steps);
        pipeline.lane = Lane::new(scheduler(|_| {}), pipeline.lane.capacity());
        events.extend(pipeline.run());
        for (step, batch) in late {
            pipeline.update(step, Pipeline::sampled(&batch));
        }
        events.extend(pipeline.events());
        assert_eq!(pipeline.tokens(&events, 1, 0), [120, 121, 122, 123, 124, 125]);
        assert_eq!(pipeline.tokens(&events, 2, 0), [104, 105, 106, 107, 108, 109]);
        assert_eq!(pipeline.finished(&events).len(), 2);
    }
}

/// Goal: what another coordinator began goes on as if it had not ended. Method: from every token
/// on, in the class that it came from and in another.
#[test]
fn an_answer_that_another_coordinator_began_goes_on_at_every_token() {
    let whole = [120, 121, 122, 123, 124, 125];
    for num_before in 0..whole.len() {
        for (class, is_other) in [(Some(0), false), (Some(7), true), (None, true)] {
            let mut pipeline = Pipeline::new(scheduler(|_| {}), 2, 64);
            let class = class.map(|class| class + pipeline.lane.capacity().class);
            let tokens = whole[..num_before].iter().copied().map(protocol::TokenId).collect();
            let resumed = Some(crate::request::Resumed { tokens, class });
            pipeline.add(Request { resumed, ..request(1, 20, 6) });
            let events = pipeline.run();
            assert_eq!(pipeline.tokens(&events, 1, 0), whole[num_before..]);
            assert_eq!(pipeline.finished(&events), [(1, 0, FinishReason::Length)]);
            let is_inexact = events.contains(&(RequestId(1), Event::Inexact));
            assert_eq!(is_inexact, is_other && num_before > 0, "after {num_before}");
        }
    }
}

#[test]
fn another_class_is_said_and_whoever_insists_waits() {
    let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 64);
    pipeline.add(request(1, 4, 4));
    pipeline.add(Request { require_exact: true, ..request(2, 4, 4) });
    pipeline.step().unwrap();
    let mut events = pipeline.answer();
    let now = pipeline.now;
    pipeline.lane.evict().into_iter().for_each(|it| pipeline.queue.put(it, now));
    let capacity = pipeline.lane.capacity();
    pipeline.lane = Lane::new(scheduler(|_| {}), Capacity { class: 2, ..capacity });
    events.extend(pipeline.run());
    assert!(events.contains(&(RequestId(1), Event::Inexact)));
    assert_eq!(pipeline.finished(&events), [(1, 0, FinishReason::Length)]);
    assert_eq!(pipeline.queue.len(), 1);
    pipeline.lane = Lane::new(scheduler(|_| {}), capacity);
    events.extend(pipeline.run());
    assert_eq!(pipeline.tokens(&events, 2, 0), [104, 105, 106, 107]);
    assert!(!events.contains(&(RequestId(2), Event::Inexact)));
}

/// A step of a prompt is cut so that whoever waits for a next token waits no longer than is wished.
#[test]
fn chunks_are_cut_to_the_time_that_steps_were_measured_to_take() {
    let config = scheduler(|config| {
        config.target_step_ms = 100;
        config.max_batched_tokens = 512;
    });
    let mut pipeline = Pipeline::new(config, 1, 512);
    pipeline.add(request(1, 4, 100));
    let run = |pipeline: &mut Pipeline| {
        let batch = pipeline.step().unwrap();
        pipeline.now += Duration::from_millis(20 + batch.num_tokens() as u64);
        pipeline.answer();
        batch
    };
    run(&mut pipeline);
    for id in 2..12 {
        pipeline.add(request(id, 4 + id as u32, 2));
        run(&mut pipeline);
    }
    pipeline.add(request(99, 1000, 1));
    let batch = run(&mut pipeline);
    assert!((60..=80).contains(&batch.num_tokens()), "{}", batch.num_tokens());
    assert!(batch.slices.iter().any(|slice| slice.sequence == SequenceId(0)), "1 goes on");
}

#[test]
fn a_more_urgent_prompt_goes_before_less_urgent_answers_but_not_for_ever() {
    let config = scheduler(|config| {
        config.max_batched_tokens = 16;
        config.target_step_ms = 0;
    });
    let mut pipeline = Pipeline::new(config, 1, 512);
    (1..=4).for_each(|id| pipeline.add(of(Priority::Offline, request(id, 2, 100))));
    pipeline.step().unwrap();
    pipeline.answer();
    pipeline.add(of(Priority::Interactive, request(9, 400, 1)));
    let mut without = 0;
    loop {
        let batch = pipeline.step().unwrap();
        pipeline.answer();
        if batch.slices.len() > 1 {
            break;
        }
        without += 1;
    }
    assert_eq!(without, MAX_STEPS_PASSED as usize - 1);
}

#[test]
fn an_output_for_nobody_is_ignored() {
    let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 64);
    pipeline.add(request(1, 4, 2));
    pipeline.step().unwrap();
    let output = SliceOutput {
        sequence: SequenceId(77),
        position: 4,
        token: Some(protocol::TokenId(1)),
        logprobs: None,
        prompt_logprobs: Vec::new(),
    };
    let sampled = Sampled { outputs: vec![output], ..Sampled::default() };
    assert_eq!(pipeline.update(StepId(0), sampled).num_tokens, 4);
    assert_eq!(pipeline.events(), []);
}
