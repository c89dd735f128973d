//! What is told of a request: each decision, in order, and its place while it waits.

use std::time::Duration;

use protocol::{Epoch, PipelineId, RequestId, StageId, StageIndex};

use crate::cluster::{Explained, Input, State};
use crate::cluster_tests::Test;
use crate::request::{Event, Priority, Request, RequestError};
use crate::testing::request;

/// One pipeline of one stage, with so many places and 16 blocks.
fn cluster(max_num_seqs: u32) -> Test {
    let mut test = Test::new(|config| {
        config.coordinator.stages = 1;
        let scheduler = &mut config.scheduler;
        (scheduler.max_num_seqs, scheduler.max_batched_tokens) = (max_num_seqs, 64);
        (scheduler.reserved_tokens, scheduler.max_blocks) = (0, 16);
    });
    test.join(1, 1000);
    test.load();
    assert!(test.is_ready());
    test
}

fn submit(test: &mut Test, id: u64, priority: Priority, num_prompt: u32) {
    let request = Request { priority, ..request(id, num_prompt, 40) };
    // Else it would find what others computed.
    let prompt = request.prompt.iter().map(|it| protocol::TokenId(it.0 + id as u32)).collect();
    test.handle(Input::Submit(vec![Request { prompt, ..request }]));
    test.submitted.pop().unwrap().unwrap();
}

fn explain(test: &Test, id: u64) -> Explained {
    test.cluster.explain(RequestId(id), test.now).unwrap()
}

fn decisions(test: &Test, id: u64) -> Vec<(u64, &'static str, String)> {
    let told = explain(test, id).decisions.into_iter();
    let one = |it: crate::history::Entry| {
        (it.at.as_millis() as u64, it.decision.name(), it.decision.why())
    };
    told.map(one).collect()
}

fn names(test: &Test, id: u64) -> Vec<&'static str> {
    decisions(test, id).into_iter().map(|it| it.1).collect()
}

#[test]
fn chunks_a_preemption_a_lost_pipeline_and_an_end_are_told_in_order() {
    let mut test = cluster(1);
    submit(&mut test, 1, Priority::Standard, 100);
    test.answer();
    test.answer();
    test.wait(Duration::from_millis(30));
    submit(&mut test, 2, Priority::Realtime, 4);
    test.answer();
    let expected = [
        (0, "queued", "it waits for its turn"),
        (0, "admitted", "to pipeline 0, 0 tokens cached, 0 passed it"),
        (0, "chunked", "64 of 100 tokens are in a step"),
        (0, "begun", "its first token is there"),
        (30, "preempted", "it gave way to priority realtime"),
    ];
    let expected = expected.map(|(at, what, why)| (at, what, why.to_owned()));
    assert_eq!(decisions(&test, 1), expected);
    assert_eq!(explain(&test, 1).state, State::Waiting);
    assert_eq!(explain(&test, 2).state, State::Running);

    let stage = StageId {
        pipeline: PipelineId(0),
        epoch: Epoch { start: 3, counter: 1 },
        stage: StageIndex(0),
    };
    test.handle(Input::LinkLost { stage, cause: "killed".into() });
    let last = decisions(&test, 2).pop().unwrap();
    assert_eq!((last.1, last.2.as_str()), ("moved", "pipeline 0 is lost: killed"));
    let why = explain(&test, 2).waiting[0].why.clone();
    assert!(why.starts_with("no pipeline serves: killed"), "{why}");

    test.wait(Duration::from_secs(10));
    test.load();
    (0..120).for_each(|_| test.answer());
    assert_eq!(names(&test, 1).last(), Some(&"finished"));
    assert_eq!(names(&test, 2)[2..], ["moved", "admitted", "begun", "finished"]);
    assert_eq!(explain(&test, 1).state, State::Finished);
}

#[test]
fn whoever_waits_hears_its_place_and_what_hinders_it() {
    let mut test = cluster(1);
    submit(&mut test, 1, Priority::Standard, 4);
    for (id, priority) in [
        (2, Priority::Offline),
        (3, Priority::Standard),
        (4, Priority::Standard),
        (5, Priority::Offline),
    ] {
        submit(&mut test, id, priority, 4);
    }
    test.wait(Duration::from_millis(100));
    let num_before = |id| explain(&test, id).waiting[0].num_before;
    assert_eq!([3, 4, 2, 5].map(num_before), [0, 1, 2, 3]);
    let waiting = explain(&test, 5).waiting.remove(0);
    assert_eq!(waiting.why, "1 sequences run, as many as may (scheduler.max_num_seqs)");
    assert_eq!((waiting.waited.as_millis(), waiting.level), (100, Priority::Offline));
    assert!(explain(&test, 1).waiting.is_empty());

    let open = |before: Option<u64>| {
        let open = test.cluster.open_requests(before.map(RequestId), 3, test.now, |_| true);
        open.into_iter().map(|it| it.id.0).collect::<Vec<_>>()
    };
    assert_eq!(open(None), [5, 4, 3]);
    assert_eq!(open(Some(3)), [2, 1]);
    let others = test.cluster.open_requests(None, 3, test.now, |tenant| tenant == "another");
    assert!(others.is_empty());
}

#[test]
fn whoever_needs_more_blocks_than_are_free_hears_how_many_and_who_passed_it() {
    let mut test = cluster(8);
    submit(&mut test, 1, Priority::Standard, 100);
    submit(&mut test, 2, Priority::Standard, 200);
    submit(&mut test, 3, Priority::Standard, 4);
    test.answer();
    let waiting = explain(&test, 2).waiting.remove(0);
    assert_eq!(waiting.why, "it needs 13 KV blocks to begin, 8 are free");
    assert_eq!(waiting.num_passed, 1);
    (0..200).for_each(|_| test.answer());
    let admitted = decisions(&test, 2).remove(1);
    assert_eq!(admitted.2, "to pipeline 0, 0 tokens cached, 1 passed it");
}

#[test]
fn whoever_is_lifted_hears_to_which_priority_and_why() {
    let mut test = cluster(1);
    submit(&mut test, 1, Priority::Standard, 4);
    submit(&mut test, 2, Priority::Standard, 4);
    let deadline = Some(test.now + Duration::from_secs(25));
    let urgent = Request { deadline, ..request(3, 4, 40) };
    test.handle(Input::Submit(vec![urgent]));
    // scheduler.aging_ms is 15 s; 40 tokens and a chunk take 4.1 s by scheduler.target_step_ms.
    for seconds in [15, 6, 9] {
        test.wait(Duration::from_secs(seconds));
    }
    let lifted = |id| {
        let told = decisions(&test, id).into_iter().filter(|it| it.1 == "lifted");
        told.map(|it| (it.0 / 1000, it.2)).collect::<Vec<_>>()
    };
    let to = |level: &str, why: &str| format!("to priority {level}: {why}");
    let by_age = (15, to("interactive", "it waited long"));
    assert_eq!(lifted(2), [by_age.clone(), (30, to("realtime", "it waited long"))]);
    assert_eq!(lifted(3), [by_age, (21, to("realtime", "its deadline comes near"))]);
}

/// Waiting, prefilling and decoding: each ends at once, tells its client, and holds nothing.
#[test]
fn a_withdrawn_request_ends_in_every_state() {
    for num_answers in [0, 1, 5] {
        let mut test = cluster(1);
        submit(&mut test, 1, Priority::Standard, 100);
        submit(&mut test, 2, Priority::Standard, 4);
        (0..num_answers).for_each(|_| test.answer());
        for id in [1, 2] {
            test.handle(Input::Withdraw(RequestId(id)));
            let told = test.told.last().unwrap();
            assert_eq!(*told, (id, Event::Failed(RequestError::Cancelled)));
            assert_eq!(explain(&test, id).state, State::Cancelled);
            assert_eq!(names(&test, id).last(), Some(&"cancelled"));
        }
        test.answer();
        let load = test.cluster.load();
        assert_eq!((load.lanes.num_running, load.lanes.num_used_blocks), (0, 0));
        assert_eq!(load.num_waiting, [0; 4]);
        // Whatever has ended stays as it is.
        let before = (test.told.len(), explain(&test, 1).decisions);
        test.handle(Input::Withdraw(RequestId(1)));
        test.handle(Input::Withdraw(RequestId(99)));
        assert_eq!((test.told.len(), explain(&test, 1).decisions), before);
    }
}

#[test]
fn a_client_that_leaves_and_a_deadline_that_passes_are_told_apart() {
    let mut test = cluster(1);
    submit(&mut test, 1, Priority::Standard, 4);
    let deadline = Some(test.now + Duration::from_millis(50));
    let late = Request { deadline, ..request(2, 4, 40) };
    test.handle(Input::Submit(vec![late]));
    test.wait(Duration::from_millis(60));
    test.handle(Input::Cancel(RequestId(1)));
    assert_eq!(decisions(&test, 1).pop().unwrap().2, "its client went away");
    assert_eq!(names(&test, 2), ["queued", "expired"]);
    assert_eq!([1, 2].map(|id| explain(&test, id).state), [State::Cancelled, State::Failed]);
}
