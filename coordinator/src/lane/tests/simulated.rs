//! What the simulator found.

use protocol::{RequestId, StepId};

use super::own;
use crate::lane::{Capacity, Lane, admit};
use crate::request::{Event, Priority, Request};
use crate::testing::{Pipeline, request, scheduler};

/// A lane of its class serves and has no room for a step just now: it waits for that one.
#[test]
fn an_answer_goes_on_in_its_class_though_another_has_room_first() {
    let mut pipeline = Pipeline::new(scheduler(|_| {}), 1, 64);
    pipeline.add(request(1, 4, 9));
    pipeline.step().unwrap();
    pipeline.answer();
    let now = pipeline.now;
    pipeline.lane.evict().into_iter().for_each(|it| pipeline.queue.put(it, now));
    // A busy lane of the same class, and an idle one of another.
    let capacity = pipeline.lane.capacity();
    pipeline.lane = Lane::new(scheduler(|_| {}), capacity);
    let mut other = Lane::new(scheduler(|_| {}), Capacity { class: 2, ..capacity });
    let waiting = pipeline.queue.cancel(RequestId(1));
    pipeline.add(own(2, 4, 9));
    pipeline.step().unwrap();
    waiting.into_iter().for_each(|it| pipeline.queue.put(it, now));
    let (queue, told) = (&mut pipeline.queue, &mut pipeline.told);
    admit(queue, &mut [&mut pipeline.lane, &mut other], now, told);
    assert!(other.is_idle() && pipeline.queue.len() == 1);
    let events = pipeline.run();
    assert!(!events.contains(&(RequestId(1), Event::Inexact)));
    assert_eq!(pipeline.finished(&events).len(), 2);
}

/// The first of two steps fails, and the stages behind the one that it failed at refuse the second,
/// which is heard of first: whoever is alone in that one isn't at fault.
#[test]
fn a_step_that_fails_behind_another_fails_nobody() {
    let mut pipeline = Pipeline::new(scheduler(|_| {}), 2, 64);
    (1..=2).for_each(|id| pipeline.add(own(id, 4, 3)));
    pipeline.step().unwrap();
    pipeline.step().unwrap();
    let now = pipeline.now;
    for step in [1, 0] {
        let (queue, told) = (&mut pipeline.queue, &mut pipeline.told);
        pipeline.lane.fail(StepId(step), "bad luck", queue, now, told);
    }
    pipeline.steps.clear();
    // It is computed alone, with nothing before it: now it would be known to be at fault.
    assert_eq!(pipeline.step().unwrap().slices.len(), 1);
    let events = pipeline.run();
    assert_eq!(pipeline.finished(&events).len(), 2);
}

/// The second step shares a block that the first was to write, and the first failed: what the
/// second samples is heard of before that, and nobody may see it.
#[test]
fn what_a_step_samples_behind_one_that_failed_is_nobodys_token() {
    let mut pipeline = Pipeline::new(scheduler(|_| {}), 2, 64);
    pipeline.add(Request { num_choices: 2, ..request(1, 20, 2) });
    pipeline.step().unwrap();
    let second = pipeline.step().unwrap();
    assert_eq!(second.slices[0].start, 19, "it found the first one's blocks");
    let wrong = Pipeline::sampled(&second);
    assert_eq!(pipeline.update(StepId(1), wrong).num_tokens, 0);
    assert_eq!(pipeline.events(), []);
    let now = pipeline.now;
    let (queue, told) = (&mut pipeline.queue, &mut pipeline.told);
    pipeline.lane.fail(StepId(0), "bad luck", queue, now, told);
    let failed = pipeline.events();
    assert!(matches!(failed[..], [(RequestId(1), Event::Failed(_))]), "{failed:?}");
}

/// A more urgent one takes the place of one that held more than it needs: what is left is used at
/// once, also where no step can be sent now, after which others would have been let in.
#[test]
fn what_is_left_of_the_place_of_another_is_used_at_once() {
    let mut pipeline = Pipeline::new(scheduler(|_| {}), 2, 8);
    pipeline.add(Request { priority: Priority::Offline, ..own(1, 100, 4) });
    pipeline.step().unwrap();
    pipeline.add(Request { priority: Priority::Offline, ..own(2, 20, 4) });
    pipeline.add(Request { priority: Priority::Interactive, ..own(3, 60, 4) });
    let (now, told) = (pipeline.now, &mut pipeline.told);
    admit(&mut pipeline.queue, &mut [&mut pipeline.lane], now, told);
    let running = pipeline.lane.running().iter().map(|it| it.request_id().0);
    assert_eq!(running.collect::<Vec<_>>(), [3, 2]);
}
