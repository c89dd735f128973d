//! Nodes that fail: what they leave is placed at once, over nodes that there is no reason to avoid.

use super::*;
use crate::duty::Duty;

fn lose(test: &mut Test, node: u64) {
    let (node, session) = (NodeId(node), SessionId(node));
    test.handle(Input::Lost { node, session, cause: "killed".into() });
}

/// Who was asked to keep which layers ready.
fn warmed(test: &Test) -> Vec<(u64, u32, u32, u32)> {
    let of = |it: &Action| match it {
        Action::Warm(node, it) => {
            Some((node.0, it.layers.first, it.layers.end, it.digests.len() as u32))
        }
        _ => None,
    };
    test.others.iter().filter_map(of).collect()
}

/// A spare with room for the whole model keeps it, one without keeps a stage, each another; and
/// each is asked once.
#[test]
fn spares_keep_ready_what_they_have_room_for() {
    let mut test = Test::new(two_stages);
    (1..=3).for_each(|node| test.join(node, 1000));
    assert!(warmed(&test).is_empty(), "nothing serves yet");
    test.load();
    assert_eq!(warmed(&test), [(3, 0, 4, 6)]);
    test.join(4, 50);
    test.join(5, 50);
    test.wait(Duration::from_secs(1));
    assert_eq!(warmed(&test)[1..], [(4, 2, 4, 3), (5, 0, 2, 3)]);
    // Whoever keeps that stage steps in, and the other stays.
    lose(&mut test, 2);
    assert_eq!(placed(&test), [1, 4]);
    // Who comes back has lost what it kept.
    test.load();
    test.join_in(2, 1000, 22);
    assert_eq!(warmed(&test).last(), Some(&(2, 0, 4, 6)));
}

/// Goal: what an idle node holds doesn't go, however it came there. Method: nodes with room for one
/// stage take turns.
#[test]
fn whoever_is_free_again_is_asked_to_keep_what_it_holds() {
    let mut test = Test::new(two_stages);
    (1..=3).for_each(|node| test.join(node, 50));
    test.load();
    let mut expected = warmed(&test);
    assert_eq!(expected, [(3, 0, 2, 3)]);
    for (node, others) in [(1, [3, 2]), (3, [1, 2])] {
        test.handle(Input::Duty(NodeId(node), Duty::Draining));
        assert_eq!(placed(&test), others, "the spare alone holds too little");
        test.load();
        test.handle(Input::Duty(NodeId(node), Duty::Active));
        expected.push((node, 0, 2, 3));
        assert_eq!(warmed(&test), expected);
    }
}

fn placed(test: &Test) -> Vec<u64> {
    test.plans.iter().map(|(node, _)| node.0).collect()
}

/// Two stages, on nodes 1 and 2, and so many spares.
fn serving(num_spares: u64) -> Test {
    let mut test = Test::new(two_stages);
    (1..=2 + num_spares).for_each(|node| test.join(node, 1000));
    test.load();
    assert!(test.is_ready());
    test
}

#[test]
fn a_spare_takes_a_lost_stage_at_once_and_the_other_stays_where_it_is() {
    for lost in [1, 2] {
        let mut test = serving(1);
        let before = if lost == 1 { [3, 2] } else { [1, 3] };
        lose(&mut test, lost);
        assert_eq!(placed(&test), before, "no tick is waited for");
        test.load();
        assert!(test.is_ready());
        // Whoever comes back finds its place taken, and disturbs nobody.
        test.join_in(lost, 1000, 77);
        test.wait(Duration::from_secs(10));
        assert!(test.is_ready() && test.plans.is_empty());
    }
}

/// Who hears first that a node is gone is its neighbour: the node is avoided before it is lost.
#[test]
fn a_neighbour_that_is_not_heard_is_avoided() {
    for (stage, blame, expected) in [(0, Blame::Next, [1, 3]), (1, Blame::Before, [3, 2])] {
        let mut test = serving(1);
        let (first, node) = (*test.connects.last().unwrap(), NodeId(stage + 1));
        let id = StageId { stage: StageIndex(stage as u32), ..first };
        let failed = Failed { cause: "it is silent".into(), fatal: true, blame };
        let (model, step) = (ModelId([7; 16]), StepId(0));
        test.handle(Input::Frame(Frame { model, stage: id, step, body: Body::Failed(failed) }));
        assert_eq!(placed(&test), expected);
        // Its actor says the same again, of an epoch that is over.
        let cause = "it is silent".into();
        test.handle(Input::Failed(StageFailed { node, id, cause, blame: Blame::Own }));
        test.load();
        assert!(test.is_ready());
    }
}

#[test]
fn without_a_spare_it_is_awaited_whether_the_neighbour_is_gone() {
    let mut test = serving(0);
    let stage = *test.connects.last().unwrap();
    test.handle(Input::LinkLost { stage, cause: "cut".into() });
    // A sign of life after which there may be silence.
    test.wait(Duration::from_millis(1850));
    assert!(placed(&test).is_empty(), "the first may be gone");
    test.wait(Duration::from_millis(100));
    assert_eq!(placed(&test).len(), 2, "it isn't");
    // And when it is, whoever comes next takes its place.
    test.load();
    let stage = *test.connects.last().unwrap();
    test.handle(Input::LinkLost { stage, cause: "cut".into() });
    let first = test.plans.len();
    lose(&mut test, 1);
    test.join(3, 1000);
    assert_eq!((first, placed(&test)), (0, vec![3, 2]));
}

/// Goal: a second fault while the first is recovered from is no other case. Method: the spare is
/// lost while it loads, then while links open.
#[test]
fn whoever_is_lost_while_a_pipeline_is_placed_is_replaced_too() {
    let mut test = serving(2);
    lose(&mut test, 1);
    assert_eq!(placed(&test), [3, 2]);
    test.plans.clear();
    lose(&mut test, 3);
    assert_eq!(placed(&test), [4, 2]);
    test.echo();
    lose(&mut test, 4);
    test.wait(Duration::from_secs(1));
    assert!(!test.is_ready());
    test.join(5, 1000);
    test.load();
    assert!(test.is_ready());
    assert_eq!(test.cluster.status().pipelines[0].stages[1].node, NodeId(2));
}

#[test]
fn a_node_that_keeps_dying_is_left_out_and_let_in_again() {
    let mut test = Test::new(|config| {
        two_stages(config);
        config.coordinator.max_node_failures = 2;
    });
    test.join(1, 1000);
    test.join(2, 1000);
    let mut session = 100;
    for _ in 0..3 {
        test.load();
        assert!(test.is_ready());
        let latest = if session == 100 { 2 } else { session };
        let lost =
            Input::Lost { node: NodeId(2), session: SessionId(latest), cause: "it hangs".into() };
        test.handle(lost);
        session += 1;
        test.join_in(2, 1000, session);
        test.wait(Duration::from_millis(10));
    }
    assert!(placed(&test).is_empty() && !test.is_ready());
    let is_told = |it: &Action| match it {
        Action::Quarantined { node, cause, .. } => *node == NodeId(2) && cause == "it hangs",
        _ => false,
    };
    assert!(test.others.iter().any(is_told));
    let status = test.cluster.status();
    assert_eq!(status.quarantined.len(), 1);
    let said = status.waiting_for;
    assert!(said.contains("1 joined; node 0000000000000002 is left out: it failed 3"), "{said}");
    test.wait(Duration::from_secs(10));
    assert!(test.others.contains(&Action::LetIn(NodeId(2))));
    test.load();
    assert!(test.is_ready() && test.cluster.status().quarantined.is_empty());
}

/// Who says goodbye has not failed.
#[test]
fn a_node_that_leaves_on_purpose_may_come_back_any_time() {
    let mut test = Test::new(|config| {
        two_stages(config);
        config.coordinator.max_node_failures = 1;
    });
    test.join(1, 1000);
    for session in 50..60 {
        test.join_in(2, 1000, session);
        test.load();
        assert!(test.is_ready());
        let (node, session) = (NodeId(2), SessionId(session));
        test.handle(Input::Leaving { node, session, cause: "asked to".into() });
    }
}

/// Nobody waits for local nodes beyond those that a pipeline needs.
#[test]
fn local_spares_are_not_waited_for() {
    let mut test = Test::new(|config| {
        two_stages(config);
        config.coordinator.local_nodes = 3;
    });
    test.join(1, 1000);
    test.join(2, 1000);
    test.load();
    test.join(3, 1000);
    test.handle(Input::Exited { pid: Some(1), cause: "killed".into() });
    assert_eq!(placed(&test), [3, 2]);
}

/// Goal: nobody is given up for others that are enough by their number, and too small. Method: a
/// spare that holds no stage, and a node of which nothing is heard for a moment.
#[test]
fn whoever_is_avoided_is_needed_where_the_others_are_too_small() {
    let mut test = Test::new(two_stages);
    (1..=2).for_each(|node| test.join(node, 50));
    test.load();
    test.join(3, 20);
    let stage = *test.connects.last().unwrap();
    test.handle(Input::LinkLost { stage, cause: "cut".into() });
    test.wait(Duration::from_secs(1));
    assert!(placed(&test).is_empty(), "the first may be gone");
    test.wait(Duration::from_secs(1));
    assert_eq!(placed(&test), [1, 2], "it isn't");
}

#[test]
fn whoever_hangs_while_it_loads_is_avoided() {
    let mut test = Test::new(two_stages);
    (1..=3).for_each(|node| test.join(node, 1000));
    let (node, plan) = test.plans[0].clone();
    assert_eq!(placed(&test), [1, 2]);
    test.plans.clear();
    test.handle(Input::Ready(echo(node, &plan)));
    test.wait(Duration::from_secs(121));
    test.wait(Duration::from_secs(2));
    assert_eq!(placed(&test), [1, 3]);
}

/// Goal: a node that loads nothing holds up no pipeline but its own. Method: its loads fail until
/// there are long pauses, then the other pipeline is lost.
#[test]
fn whatever_is_lost_does_not_wait_for_the_loads_of_others() {
    let mut test = Test::new(|config| {
        (config.coordinator.stages, config.coordinator.pipelines) = (1, 2);
    });
    (1..=2).for_each(|node| test.join(node, 1000));
    let (node, plan) = test.plans.remove(0);
    test.handle(Input::Ready(echo(node, &plan)));
    test.handle(Input::Linked(node, plan.id));
    for _ in 0..5 {
        let (node, plan) = test.plans.pop().unwrap();
        let cause = "a damaged file".into();
        test.handle(Input::Failed(StageFailed { node, id: plan.id, cause, blame: Blame::Own }));
        test.wait(Duration::from_secs(60));
    }
    test.plans.clear();
    test.handle(Input::LinkLost { stage: plan.id, cause: "cut".into() });
    test.wait(Duration::from_secs(2));
    assert_eq!(placed(&test), [1]);
}

/// Goal: a node that can load nothing doesn't hold up the others, where they do without it.
#[test]
fn whoever_fails_to_load_again_is_left_out_where_the_others_hold_the_model() {
    let mut test = Test::new(|_| {});
    (1..=3).for_each(|node| test.join(node, 1000));
    for _ in 0..2 {
        test.wait(Duration::from_secs(3));
        assert_eq!(placed(&test).len(), 3);
        let plans = std::mem::take(&mut test.plans);
        let (node, plan) = plans.into_iter().find(|(node, _)| *node == NodeId(2)).unwrap();
        let cause = "a damaged disk".into();
        test.handle(Input::Failed(StageFailed { node, id: plan.id, cause, blame: Blame::Own }));
    }
    test.wait(Duration::from_secs(3));
    assert_eq!(placed(&test), [1, 3]);
    test.load();
    assert!(test.is_ready());
}
