//! Nodes that are relieved: nothing new comes to them, and what they have goes elsewhere.

use std::time::Duration;

use protocol::message::{LoadProgress, Loading};
use protocol::{NodeId, SessionId};

use super::Test;
use crate::cluster::{Action, Input};
use crate::duty::Duty;

/// Pipelines of one stage, so many of them.
fn cluster(pipelines: u32) -> Test {
    Test::new(|config| (config.coordinator.stages, config.coordinator.pipelines) = (1, pipelines))
}

fn set(test: &mut Test, node: u64, duty: Duty) {
    test.handle(Input::Duty(NodeId(node), duty));
}

/// Nodes to which plans went since the last look.
fn placed(test: &mut Test) -> Vec<u64> {
    test.plans.iter().map(|(node, _)| node.0).collect()
}

fn released(test: &mut Test) -> Vec<u64> {
    let actions = std::mem::take(&mut test.others).into_iter();
    let released = actions.filter_map(|action| match action {
        Action::Release(node) => Some(node.0),
        _ => None,
    });
    released.collect()
}

#[test]
fn nothing_new_is_placed_on_a_cordoned_node_until_it_is_uncordoned() {
    let mut test = cluster(2);
    set(&mut test, 2, Duty::Cordoned);
    for node in [1, 2] {
        test.join(node, 1000);
    }
    test.wait(Duration::from_secs(3));
    assert_eq!(placed(&mut test), [1]);
    test.load();
    test.wait(Duration::from_secs(60));
    assert!(test.plans.is_empty());
    assert_eq!(test.cluster.status().relieved, [(NodeId(2), Duty::Cordoned)]);
    set(&mut test, 2, Duty::Active);
    test.wait(Duration::from_secs(3));
    assert_eq!(placed(&mut test), [2]);
}

/// Goal: nobody waits for a pipeline that could have been there before. Method: a drained node with
/// another that is free, answers under way.
#[test]
fn what_takes_a_drained_nodes_place_serves_before_it_goes() {
    let mut test = cluster(1);
    test.join(1, 1000);
    test.load();
    test.wait(Duration::from_secs(3));
    test.load();
    assert!(test.is_ready());
    test.join(2, 1000);
    test.submit(1).unwrap();
    test.answer();
    set(&mut test, 1, Duty::Draining);
    test.wait(Duration::from_secs(3));
    assert_eq!(placed(&mut test), [2], "in its place");
    test.submit(2).unwrap();
    (0..8).for_each(|_| test.answer());
    assert_eq!(test.tokens(2).len(), 2, "it serves meanwhile");
    assert_eq!(released(&mut test), [0; 0]);
    test.load();
    test.wait(Duration::from_millis(100));
    assert_eq!(released(&mut test), [1]);
    assert_eq!(test.cluster.status().pipelines.len(), 1);
    test.submit(3).unwrap();
    (0..8).for_each(|_| test.answer());
    assert_eq!(test.tokens(3).len(), 2);
}

#[test]
fn a_node_that_wants_to_end_is_let_go_when_its_answers_have_ended_and_is_active_when_it_is_back() {
    let mut test = cluster(1);
    test.join(1, 1000);
    test.wait(Duration::from_secs(3));
    test.load();
    test.submit(1).unwrap();
    test.handle(Input::Drain { node: NodeId(1), session: SessionId(9) });
    assert_eq!(test.cluster.status().relieved, [], "that session is over");
    test.handle(Input::Drain { node: NodeId(1), session: SessionId(1) });
    assert_eq!(released(&mut test), [0; 0], "an answer is under way");
    // Whoever comes now waits for whatever comes next.
    test.submit(2).unwrap();
    (0..8).for_each(|_| test.answer());
    test.wait(Duration::from_millis(100));
    assert_eq!(test.tokens(1).len(), 2);
    assert_eq!(test.tokens(2).len(), 0);
    assert_eq!(released(&mut test), [1]);
    test.wait(Duration::from_secs(5));
    assert!(test.plans.is_empty(), "it goes");
    test.handle(Input::Lost { node: NodeId(1), session: SessionId(1), cause: "left".into() });
    test.join_in(1, 1000, 2);
    test.wait(Duration::from_secs(3));
    assert_eq!(placed(&mut test), [1]);
    test.load();
    (0..8).for_each(|_| test.answer());
    assert_eq!(test.tokens(2).len(), 2);
}

#[test]
fn an_operators_word_outlives_the_session() {
    let mut test = cluster(1);
    test.join(1, 1000);
    set(&mut test, 1, Duty::Draining);
    assert_eq!(released(&mut test), [1], "nothing that loads is worth waiting for");
    test.plans.clear();
    test.handle(Input::Drain { node: NodeId(1), session: SessionId(1) });
    test.handle(Input::Lost { node: NodeId(1), session: SessionId(1), cause: "left".into() });
    test.join_in(1, 1000, 2);
    test.wait(Duration::from_secs(3));
    assert!(test.plans.is_empty());
    assert_eq!(released(&mut test), [1], "told again, since it is another session");
}

/// Goal: a large model takes the time that it takes. Method: what is to take a drained node's place
/// loads for longer than it may be still.
#[test]
fn a_drained_node_serves_as_long_as_what_takes_its_place_loads() {
    let mut test = cluster(1);
    test.join(1, 1000);
    test.load();
    test.join(2, 1000);
    set(&mut test, 1, Duty::Draining);
    assert_eq!(placed(&mut test), [2]);
    let id = test.plans[0].1.id;
    for loaded_bytes in 1..5 {
        test.wait(Duration::from_secs(100));
        let loading = Loading { loaded_bytes, total_bytes: 9, ..Loading::default() };
        test.handle(Input::Progress(LoadProgress { id, loading }));
        assert!(test.is_ready());
    }
    assert_eq!(released(&mut test), [0; 0]);
    test.load();
    test.wait(Duration::from_millis(100));
    assert_eq!((test.is_ready(), released(&mut test)), (true, vec![1]));
}

#[test]
fn what_was_to_take_a_drained_nodes_place_goes_when_that_is_taken_back() {
    let mut test = cluster(1);
    test.join(1, 1000);
    test.load();
    test.join(2, 1000);
    set(&mut test, 1, Duty::Draining);
    assert_eq!(placed(&mut test), [2]);
    set(&mut test, 1, Duty::Active);
    test.wait(Duration::from_millis(100));
    let pipelines = test.cluster.status().pipelines;
    assert_eq!((pipelines.len(), pipelines[0].stages[0].node), (1, NodeId(1)));
    assert!(test.is_ready());
}

#[test]
fn a_cordoned_node_that_ends_by_itself_is_cordoned_when_it_is_back() {
    let mut test = cluster(1);
    test.join(1, 1000);
    set(&mut test, 1, Duty::Cordoned);
    test.handle(Input::Drain { node: NodeId(1), session: SessionId(1) });
    assert_eq!(test.cluster.status().relieved, [(NodeId(1), Duty::Draining)]);
    test.handle(Input::Lost { node: NodeId(1), session: SessionId(1), cause: "left".into() });
    test.join_in(1, 1000, 2);
    assert_eq!(test.cluster.status().relieved, [(NodeId(1), Duty::Cordoned)]);
}

/// Nobody comes in the place of a local node that is here.
#[test]
fn a_local_node_that_is_relieved_is_not_waited_for() {
    let mut test = Test::new(|config| config.coordinator.local_nodes = 2);
    (1..=2).for_each(|node| test.join(node, 1000));
    assert_eq!(placed(&mut test), [1, 2]);
    test.load();
    set(&mut test, 2, Duty::Draining);
    test.wait(Duration::from_secs(3));
    assert_eq!(placed(&mut test), [1]);
}
