//! Requests outlive the pipelines that compute them, and wait for no longer than they should.

use std::time::Duration;

use protocol::config::RunAhead;
use protocol::{Body, Frame, NodeId, StagePlan};

use crate::cluster::{Action, Input};
use crate::cluster_tests::{Test, two_stages};
use crate::request::{Event, Priority, Request, RequestError, SubmitError};
use crate::testing::{Pipeline, request};

/// The node of a pipeline is lost at every token: the open stream goes on in the next pipeline.
#[test]
fn a_lost_node_loses_no_answer() {
    for num_before in 0..4 {
        let mut test = Test::new(two_stages);
        test.join(1, 1000);
        test.join(2, 1000);
        let old = test.plans[0].1.id.epoch;
        test.load();
        test.handle(Input::Submit(vec![request(5, 4, 4)]));
        (0..num_before).for_each(|_| test.answer());
        let late = test.sent.clone();
        test.handle(Input::Exited { pid: Some(2), cause: "killed".into() });
        assert!(!test.is_ready());
        assert!(test.cluster.status().waiting_for.contains("killed"));
        test.sent.clear();
        // Whoever comes now waits too.
        test.submit(6).unwrap();
        assert!(test.sent.is_empty());
        test.join(3, 1000);
        assert!(test.plans[0].1.id.epoch > old);
        test.load();
        assert!(test.is_ready());
        for frame in late {
            let Body::Step(step) = &frame.body else { panic!("{frame:?}") };
            let body = Body::Sampled(Pipeline::sampled(&step.batch));
            test.handle(Input::Frame(Frame { body, ..frame }));
        }
        (0..6).for_each(|_| test.answer());
        assert_eq!(test.tokens(5), [104, 105, 106, 107], "lost after {num_before} tokens");
        assert_eq!(test.tokens(6), [104, 105]);
        let ended = test.told.iter().filter(|(_, event)| matches!(event, Event::Finished { .. }));
        assert_eq!(ended.count(), 2);
    }
}

#[test]
fn requests_wait_for_a_pipeline_so_long_and_no_longer() {
    let mut test = Test::new(|config| {
        two_stages(config);
        config.scheduler.max_pipeline_wait_ms = 5000;
    });
    test.join(1, 1000);
    test.join(2, 1000);
    test.load();
    test.submit(5).unwrap();
    test.handle(Input::Exited { pid: Some(1), cause: "killed".into() });
    test.handle(Input::Exited { pid: Some(2), cause: "killed too".into() });
    test.wait(Duration::from_millis(3000));
    test.submit(6).unwrap();
    test.wait(Duration::from_millis(2000));
    let failed = |test: &Test, id| {
        let is_it = |(request, event): &(u64, Event)| {
            *request == id
                && matches!(event, Event::Failed(RequestError::NoPipeline { waited_s: 5, .. }))
        };
        test.told.iter().any(is_it)
    };
    assert!(failed(&test, 5) && !failed(&test, 6));
    test.wait(Duration::from_millis(3000));
    assert!(failed(&test, 6));
}

/// Two pipelines of two nodes each: one is lost, the other takes its requests over at once.
#[test]
fn another_pipeline_takes_over() {
    let mut test = Test::new(|config| {
        two_stages(config);
        config.coordinator.pipelines = 2;
    });
    (1..=4).for_each(|node| test.join(node, 1000));
    let pipelines: Vec<_> =
        test.plans.iter().map(|(node, it)| (node.0, it.id.pipeline.0)).collect();
    assert_eq!(pipelines, [(1, 0), (2, 0), (3, 1), (4, 1)]);
    test.load();
    (10..14).for_each(|id| test.submit(id).unwrap());
    let used: std::collections::HashSet<_> =
        test.sent.iter().map(|it| it.stage.pipeline.0).collect();
    assert_eq!(used.len(), 2, "both have work");
    test.handle(Input::Exited { pid: Some(2), cause: "killed".into() });
    assert!(test.is_ready());
    (0..8).for_each(|_| test.answer());
    for id in 10..14 {
        assert_eq!(test.tokens(id), [104, 105], "request {id}");
    }
    // The node that is left and a new one make the second pipeline again.
    test.join(5, 1000);
    test.load();
    assert_eq!(test.cluster.status().pipelines.iter().filter(|it| it.is_ready()).count(), 2);
}

/// Whoever counts and logs hears of each, also while another serves on; what never served is no
/// loss.
#[test]
fn each_pipeline_that_is_lost_is_told_of_by_name_and_cause() {
    let mut test = Test::new(|config| {
        two_stages(config);
        config.coordinator.pipelines = 2;
    });
    (1..=4).for_each(|node| test.join(node, 1000));
    test.load();
    (10..12).for_each(|id| test.submit(id).unwrap());
    let lost = |test: &mut Test, pid: u32| {
        test.others.clear();
        test.handle(Input::Exited { pid: Some(pid), cause: format!("node {pid} was killed") });
        let moved = test.others.drain(..).filter_map(|action| match action {
            Action::Moved { pipeline, cause, num_sequences } => {
                assert!(cause.contains(&format!("node {pid} was killed")), "{cause}");
                Some((pipeline.0, num_sequences))
            }
            _ => None,
        });
        moved.collect::<Vec<_>>()
    };
    assert_eq!(lost(&mut test, 2), [(0, 1)]);
    assert!(test.is_ready());
    assert_eq!(lost(&mut test, 3), [(1, 2)]);
    assert!(!test.is_ready());
    (5..=6).for_each(|node| test.join(node, 1000));
    assert_eq!(test.plans.len(), 4, "both are loaded again");
    assert_eq!(lost(&mut test, 5), []);
}

/// A sequence grows and the least urgent beside it gives way: there is room in the other pipeline,
/// where it goes on at once, before anything else happens.
#[test]
fn whoever_gave_way_in_one_pipeline_goes_on_in_another_at_once() {
    let mut test = Test::new(|config| {
        (config.coordinator.stages, config.coordinator.pipelines) = (1, 2);
        config.scheduler.run_ahead = RunAhead::Off;
        config.scheduler.reserved_tokens = 1;
        config.scheduler.prefix_cache = false;
    });
    (1..=2).for_each(|node| test.join(node, 1000));
    let later = test.plans.pop().unwrap();
    test.load_as((4, 0));
    // Two blocks each, until the urgent one needs a third; by then the other pipeline is there.
    for (id, priority) in [(5, Priority::Offline), (6, Priority::Interactive)] {
        test.handle(Input::Submit(vec![Request { priority, ..request(id, 31, 9) }]));
        test.answer();
    }
    test.plans.push(later);
    test.load_as((4, 0));
    let preempted = |test: &Test| test.others.iter().any(|it| matches!(it, Action::Preempted(_)));
    while !preempted(&test) {
        assert!(!test.sent.is_empty());
        test.answer();
    }
    let steps = test.sent.iter().map(|it| it.stage.pipeline.0);
    assert_eq!(steps.collect::<Vec<_>>(), [0, 1]);
    (0..9).for_each(|_| test.answer());
    let whole: Vec<_> = (131..140).collect();
    assert_eq!([5, 6].map(|id| test.tokens(id)), [whole.clone(), whole]);
}

/// A body of which only a part could wait is refused as a whole: nobody hears of half an answer.
#[test]
fn a_body_waits_whole_or_not_at_all() {
    let mut test = Test::new(|config| {
        two_stages(config);
        config.scheduler.max_num_seqs = 1;
        config.scheduler.max_queued_requests = 4;
    });
    test.join(1, 1000);
    test.join(2, 1000);
    test.load();
    let submit = |test: &mut Test, ids: &[u64], max_tokens: u32| {
        let body = ids.iter().map(|id| request(*id, 4, max_tokens)).collect();
        test.handle(Input::Submit(body));
        test.submitted.pop().unwrap()
    };
    submit(&mut test, &[1], 2).unwrap();
    submit(&mut test, &[2, 3], 2).unwrap();
    let waiting = |test: &Test| test.cluster.load().num_waiting.iter().sum::<usize>();
    assert_eq!(waiting(&test), 2);
    for (ids, max_tokens, expected) in [
        // Two of the three could wait.
        (&[4, 5, 6][..], 2, SubmitError::QueueFull { max: 4 }),
        (&[4, 5], 300, SubmitError::TooLarge { needed: 19, held: 8 }),
    ] {
        assert_eq!(submit(&mut test, ids, max_tokens), Err(expected));
        assert_eq!(waiting(&test), 2);
    }
    let body = vec![request(4, 4, 2), request(5, 4, 300)];
    test.handle(Input::Submit(body));
    assert!(test.submitted.pop().unwrap().is_err() && waiting(&test) == 2);
    submit(&mut test, &[7, 8], 2).unwrap();
    assert_eq!(submit(&mut test, &[9], 2), Err(SubmitError::QueueFull { max: 4 }));
    (0..20).for_each(|_| test.answer());
    let mut heard: Vec<_> = test.told.iter().map(|(request, _)| *request).collect();
    heard.dedup();
    assert_eq!(heard, [1, 2, 3, 7, 8]);
    test.handle(Input::ShutDown);
    assert_eq!(submit(&mut test, &[10, 11], 2), Err(SubmitError::ShuttingDown));
}

#[test]
fn what_has_expired_is_dropped_wherever_it_is() {
    let mut test = Test::new(|config| {
        two_stages(config);
        config.scheduler.max_num_seqs = 1;
    });
    test.join(1, 1000);
    test.join(2, 1000);
    test.load();
    let deadline = Some(test.now + Duration::from_millis(800));
    for id in 1..=2 {
        test.handle(Input::Submit(vec![Request { deadline, ..request(id, 4, 90) }]));
    }
    test.submit(3).unwrap();
    test.wait(Duration::from_millis(900));
    let failed: Vec<_> = test
        .told
        .iter()
        .filter(|(_, event)| matches!(event, Event::Failed(RequestError::DeadlineExceeded(_))))
        .map(|(id, _)| *id)
        .collect();
    assert_eq!(failed, [2, 1]);
    test.answer();
    test.answer();
    assert_eq!(test.tokens(3), [104, 105]);
}

/// Goal: nodes are left no more than a pipeline needs. The model needs 68 bytes on one node.
#[test]
fn where_placement_decides_each_pipeline_has_the_fewest_nodes_that_hold_it() {
    let mut test = Test::new(|config| config.coordinator.pipelines = 0);
    let settle = |test: &mut Test| test.wait(Duration::from_secs(3));
    let placed = |test: &Test| {
        let of = |it: &crate::status::PipelineStatus| it.stages.len();
        test.cluster.status().pipelines.iter().map(of).collect::<Vec<_>>()
    };
    for (node, memory) in [(1, 1000), (2, 40), (3, 40), (4, 1000), (5, 40)] {
        test.join(node, memory);
    }
    settle(&mut test);
    assert_eq!(placed(&test), [1, 1, 2], "and 5 holds none");
    assert_eq!(test.cluster.status().waiting_for.matches("fit").count(), 0);
    (0..3).for_each(|_| settle(&mut test));
    assert_eq!(test.plans.len(), 4, "nothing is tried again while nothing changes");
    // Another like it, and there is one more pipeline.
    test.join(6, 40);
    settle(&mut test);
    assert_eq!(placed(&test), [1, 1, 2, 2]);
    // One half is lost: the other waits for another half.
    test.handle(Input::Exited { pid: Some(3), cause: "killed".into() });
    settle(&mut test);
    assert_eq!(placed(&test), [1, 1, 2]);
    test.join(7, 40);
    settle(&mut test);
    assert_eq!(placed(&test), [1, 1, 2, 2]);
}

/// Goal: only what is missing moves. Method: the middle of three stages is lost, and a node comes
/// that would be the last in the order in which nodes joined.
#[test]
fn survivors_are_asked_for_what_they_hold() {
    let mut test = Test::new(|config| config.coordinator.stages = 3);
    (1..=3).for_each(|node| test.join(node, 1000));
    let layers = |test: &Test| {
        let of = |(node, plan): &(NodeId, StagePlan)| (node.0, plan.layers.to_string());
        test.plans.iter().map(of).collect::<Vec<_>>()
    };
    let before = layers(&test);
    test.load();
    test.handle(Input::Exited { pid: Some(2), cause: "killed".into() });
    test.join(4, 1000);
    let mut expected = before.clone();
    expected[1].0 = 4;
    assert_eq!(layers(&test), expected);
    // A node that comes back has nothing left: it is one like any other.
    test.load();
    test.handle(Input::Exited { pid: Some(1), cause: "killed".into() });
    test.join(1, 1000);
    assert_eq!(layers(&test), [before[0].clone(), expected[1].clone(), before[2].clone()]);
}

#[test]
fn where_nothing_fits_that_is_said_also_where_placement_decides() {
    let mut test = Test::new(|config| config.coordinator.pipelines = 0);
    test.join(1, 30);
    test.wait(Duration::from_secs(3));
    assert!(test.plans.is_empty());
    let waiting = test.cluster.status().waiting_for;
    assert!(waiting.contains("doesn't fit"), "{waiting}");
    test.join(2, 1000);
    test.wait(Duration::from_secs(3));
    assert_eq!(test.plans.len(), 1, "{:?}", test.plans);
}

/// The pipeline that comes next is of another class, or too small: whoever can't go on there hears
/// so after as long as it would wait for any.
#[test]
fn whoever_no_pipeline_can_take_waits_no_longer_than_for_any() {
    for is_smaller in [false, true] {
        let mut test = Test::new(|config| {
            config.coordinator.local_nodes = 1;
            config.scheduler.max_pipeline_wait_ms = 5000;
        });
        test.join(1, 1000);
        test.load();
        let insists = Request { require_exact: !is_smaller, ..request(5, 40, 40) };
        test.handle(Input::Submit(vec![insists, request(6, 4, 4)]));
        test.answer();
        test.handle(Input::Exited { pid: Some(1), cause: "killed".into() });
        test.sent.clear();
        test.join(2, 1000);
        test.load_as(if is_smaller { (3, 0) } else { (16, 9) });
        (0..4).for_each(|_| test.answer());
        test.wait(Duration::from_millis(4000));
        let failed = |test: &Test| {
            let is_failed = |event: &Event| {
                matches!(event, Event::Failed(RequestError::NoPipeline { waited_s: 5, .. }))
            };
            let failed = test.told.iter().filter(|(_, event)| is_failed(event));
            failed.map(|(id, _)| *id).collect::<Vec<_>>()
        };
        assert_eq!((failed(&test), test.tokens(6).len()), (vec![], 4), "the other goes on");
        test.wait(Duration::from_millis(1000));
        assert_eq!(failed(&test), [5]);
    }
}
