//! What sequences share: the blocks of a common prefix, and that in which a common prompt ends.

use protocol::{BlockId, TokenId};

use super::*;
use crate::block_manager::Miss;

fn missed(pipeline: &Pipeline, why: Miss) -> usize {
    pipeline.told.prefix.num_missed[why as usize]
}

/// 64 requests with the same 1,000 tokens: one computes them, the others wait for it and share.
#[test]
fn a_common_prefix_is_computed_once_even_when_all_come_at_once() {
    let config = scheduler(|config| {
        config.max_batched_tokens = 256;
        config.max_num_seqs = 64;
        config.target_step_ms = 0;
    });
    let mut pipeline = Pipeline::new(config, 2, 1024);
    (0..64).for_each(|id| {
        let mut with_suffix = request(id, 1000, 4);
        let suffix = (0..10).map(|i| TokenId(5000 + id as u32 * 100 + i));
        with_suffix.prompt = with_suffix.prompt.iter().copied().chain(suffix).collect();
        pipeline.add(with_suffix);
    });
    let (mut num_computed, mut num_ended) = (0, 0);
    loop {
        while let Some(batch) = pipeline.step() {
            num_computed += batch.num_tokens();
        }
        if pipeline.steps.is_empty() {
            break;
        }
        let events = pipeline.answer();
        num_ended += pipeline.finished(&events).len();
    }
    assert_eq!(num_ended, 64);
    // 62 whole blocks of the prefix once, and for each: what is left of it, suffix and answer.
    let (prefix, each) = (62 * 16, 1010 - 62 * 16 + 3);
    assert_eq!(num_computed, prefix + 64 * each);
    assert_eq!(pipeline.told.prefix.num_found, 63 * 62 * 16);
    assert_eq!(pipeline.lane.load().num_used_blocks, 0);
}

#[test]
fn a_prefix_hit_skips_what_is_there_and_always_computes_the_last_token() {
    for num_tokens in [1, 2, 16, 17, 18, 31, 32, 33, 64] {
        let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 64);
        pipeline.add(request(1, num_tokens, 1));
        pipeline.run();
        pipeline.add(request(2, num_tokens, 2));
        let slice = pipeline.step().unwrap().slices[0].clone();
        assert_eq!((slice.start, slice.num_tokens()), (num_tokens - 1, 1), "of {num_tokens}");
        let begin = slice.begin.as_ref().unwrap();
        assert_eq!(begin.skipped.len() as u32, num_tokens - 1);
        // What the last token doesn't begin it stands behind, in a block of its own.
        assert_eq!(begin.copy_from.is_some(), (num_tokens - 1) % 16 > 0);
        let tail = slice.blocks[(num_tokens - 1) as usize / 16];
        assert_ne!(begin.copy_from, Some(tail));
        assert_eq!(slice.blocks.len(), (num_tokens as usize + 2 - 1).div_ceil(16));
        let events = pipeline.run();
        assert_eq!(pipeline.finished(&events).len(), 1);
        assert_eq!(pipeline.told.prefix.num_found as u32, num_tokens - 1);
        assert_eq!(pipeline.lane.load().num_used_blocks, 0);
    }
}

/// Whatever of a prompt another shares, in blocks and in part of one: the rest is computed.
#[test]
fn whole_blocks_of_another_prompt_are_found_and_no_part_of_one() {
    for num_common in 0..50u32 {
        let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 64);
        pipeline.add(request(1, 50, 1));
        pipeline.run();
        let mut other = request(2, 50, 1);
        let differs = |i: u32| if i < num_common { 100 + i } else { 5000 + i };
        other.prompt = (0..50).map(|i| TokenId(differs(i))).collect();
        pipeline.add(other);
        let slice = pipeline.step().unwrap().slices[0].clone();
        let expected = if num_common == 49 { 49 } else { num_common / 16 * 16 };
        assert_eq!(slice.start, expected, "{num_common} in common");
    }
}

/// One choice computes the prompt; the others begin with its blocks, the last of them copied, and
/// compute one token of it each.
#[test]
fn a_prompt_is_computed_once_for_all_choices() {
    for num_prompt in [1, 2, 15, 16, 17, 100, 1007] {
        for num_stages in [1, 2] {
            let config = scheduler(|config| config.target_step_ms = 0);
            let mut pipeline = Pipeline::new(config, num_stages, 512);
            pipeline.add(Request { num_choices: 8, ..request(1, num_prompt, 3) });
            let (mut num_computed, mut events) = (0, Vec::new());
            loop {
                while let Some(batch) = pipeline.step() {
                    num_computed += batch.num_tokens();
                }
                if pipeline.steps.is_empty() {
                    break;
                }
                events.extend(pipeline.answer());
            }
            assert_eq!(pipeline.finished(&events).len(), 8);
            let (first, others) = (num_prompt as usize + 2, 7 * (1 + 2));
            assert_eq!(num_computed, first + others, "of {num_prompt} by {num_stages} stages");
            assert_eq!(pipeline.lane.load().num_used_blocks, 0);
        }
    }
}

#[test]
fn a_prompt_whose_logprobs_are_wanted_is_computed_once_for_all_choices_too() {
    let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 64);
    let mut scored = Request { num_choices: 3, ..request(1, 40, 1) };
    scored.sampling.num_prompt_logprobs = Some(1);
    pipeline.add(scored);
    assert_eq!(pipeline.step().unwrap().num_tokens(), 40);
    pipeline.answer();
    assert_eq!(pipeline.step().unwrap().num_tokens(), 2);
    assert_eq!(missed(&pipeline, Miss::PromptLogprobs), 39);
}

/// A copy is made before the block that it is made of can be anything else, whoever gives way or
/// goes between the two.
#[test]
fn what_is_copied_is_held_until_a_slice_says_so() {
    let config = scheduler(|config| config.max_batched_tokens = 1);
    let mut pipeline = Pipeline::new(config, 1, 3);
    pipeline.add(request(1, 10, 1));
    (0..10).for_each(|_| {
        pipeline.step().unwrap();
        pipeline.answer();
    });
    assert_eq!(pipeline.lane.load().num_used_blocks, 0);
    // 2 holds what it will copy while 3, more urgent, is computed.
    pipeline.add(request(2, 10, 1));
    pipeline.add(of(Priority::Realtime, own(3, 2, 1)));
    assert_eq!(pipeline.step().unwrap().slices[0].begin.as_ref().unwrap().copy_from, None);
    assert_eq!(pipeline.lane.load().num_used_blocks, 3);
    pipeline.answer();
    pipeline.step().unwrap();
    pipeline.answer();
    let slice = pipeline.step().unwrap().slices[0].clone();
    assert_eq!(slice.begin.as_ref().unwrap().copy_from, Some(BlockId(0)));
    assert_eq!(pipeline.lane.load().num_used_blocks, 1, "and no longer");
    pipeline.lane.cancel(RequestId(2));
    pipeline.add(request(4, 10, 1));
    pipeline.lane.evict();
    assert_eq!(pipeline.lane.load().num_used_blocks, 0);
}

/// In a cache that has no block to spare for the other's, it is computed instead.
#[test]
fn nobody_waits_for_ever_for_what_a_copy_would_be_made_of() {
    let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 3);
    pipeline.add(request(1, 40, 1));
    pipeline.run();
    pipeline.add(request(2, 40, 1));
    let slice = pipeline.step().unwrap().slices[0].clone();
    assert_eq!((slice.start, slice.begin.unwrap().copy_from), (32, None));
    pipeline.run();
    assert_eq!(pipeline.lane.load().num_used_blocks, 0);
}

/// An offline request is computing what an interactive one needs, and it isn't its turn.
#[test]
fn nobody_waits_for_the_prefix_of_somebody_less_urgent() {
    let config = scheduler(|config| config.max_batched_tokens = 32);
    let mut pipeline = Pipeline::new(config, 1, 64);
    pipeline.add(of(Priority::Offline, request(1, 200, 1)));
    pipeline.step().unwrap();
    pipeline.add(of(Priority::Interactive, request(2, 200, 1)));
    pipeline.answer();
    let batch = pipeline.step().unwrap();
    let slice = batch.slices.iter().find(|slice| slice.sequence == SequenceId(1)).unwrap();
    assert_eq!((slice.start, slice.num_tokens()), (32, 32), "from where the other is");
    // Whoever comes then waits for the more urgent one.
    pipeline.add(of(Priority::Interactive, request(3, 200, 1)));
    pipeline.answer();
    assert_eq!(pipeline.step().unwrap().slices.len(), 1);
    let events = pipeline.run();
    assert_eq!(pipeline.finished(&events).len(), 3);
}

#[test]
fn tenants_share_no_blocks_and_prompt_logprobs_read_none() {
    let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 64);
    pipeline.add(request(1, 40, 1));
    pipeline.run();
    pipeline.add(Request { tenant: "other".into(), ..request(2, 40, 1) });
    assert_eq!(pipeline.step().unwrap().slices[0].start, 0);
    pipeline.answer();
    let mut scored = request(3, 40, 1);
    scored.sampling.num_prompt_logprobs = Some(1);
    pipeline.add(scored);
    assert_eq!(pipeline.step().unwrap().slices[0].start, 0);
}

#[test]
fn a_miss_is_told_with_its_reason_and_all_tokens_are_accounted_for() {
    let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 8);
    pipeline.add(request(1, 40, 1));
    pipeline.run();
    assert_eq!(missed(&pipeline, Miss::Unknown), 39);
    pipeline.add(Request { tenant: "other".into(), ..request(2, 40, 1) });
    pipeline.run();
    assert_eq!(missed(&pipeline, Miss::OtherTenant), 39);
    pipeline.add(own(3, 100, 20));
    pipeline.run();
    pipeline.add(request(4, 40, 1));
    pipeline.run();
    assert_eq!(missed(&pipeline, Miss::Evicted), 39);
    let Prefix { num_looked_for, num_found, num_missed } = pipeline.told.prefix;
    assert_eq!(num_looked_for, 3 * 39 + 99);
    assert_eq!(num_looked_for, num_found + num_missed.iter().sum::<usize>());
}

#[test]
fn without_a_prefix_cache_everybody_computes_everything_and_waits_for_nobody() {
    let config = scheduler(|config| config.prefix_cache = false);
    let mut pipeline = Pipeline::new(config, 1, 64);
    pipeline.add(Request { num_choices: 2, ..request(1, 40, 1) });
    pipeline.add(request(2, 40, 1));
    assert_eq!(pipeline.step().unwrap().num_tokens(), 3 * 40);
    assert_eq!(pipeline.run().len(), 6);
    pipeline.add(request(3, 40, 1));
    assert_eq!(pipeline.step().unwrap().num_tokens(), 40);
    assert_eq!(pipeline.told.prefix, Prefix::default());
}

/// A prefix that many asked for outlasts what others leave behind.
#[test]
fn a_prefix_that_is_often_found_stays() {
    let config = scheduler(|config| {
        (config.pin_after_hits, config.max_pinned_share) = (3, 0.5);
    });
    let mut pipeline = Pipeline::new(config, 1, 6);
    let with_prefix = |id: u64| {
        let last = TokenId(9000 + id as u32);
        let mut request = request(id, 32, 1);
        request.prompt = request.prompt.iter().copied().chain([last]).collect();
        request
    };
    let mut num_found = [0; 2];
    for (hot, num_uses) in [(0, 1), (1, 5)] {
        (0..num_uses).for_each(|id| {
            pipeline.add(with_prefix(id));
            pipeline.run();
        });
        (0..2).for_each(|i| {
            pipeline.add(own(50 + 2 * hot as u64 + i, 64, 1));
            pipeline.run();
        });
        let before = pipeline.told.prefix.num_found;
        pipeline.add(with_prefix(99));
        pipeline.run();
        num_found[hot] = pipeline.told.prefix.num_found - before;
    }
    assert_eq!(num_found, [0, 32]);
}
