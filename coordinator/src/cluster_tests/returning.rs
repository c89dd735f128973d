//! A coordinator that has started again, and nodes that have not.

use protocol::{HeldParts, LayerRange};

use super::*;

/// What a node says that has kept these layers.
fn report(node: u64, held: (bool, std::ops::Range<u32>, bool), model: ModelId) -> NodeReport {
    let (embedding, layers, head) = held;
    let layers = vec![LayerRange { first: layers.start, end: layers.end }];
    let held = HeldParts { model, embedding, layers, head, ..HeldParts::default() };
    NodeReport { held: vec![held], ..Test::report(node, 1000, SessionId(node)) }
}

fn joins(test: &mut Test, report: NodeReport) {
    let (node, session) = (report.node, report.session);
    test.handle(Input::Connected { node, session, wire_version: protocol::WIRE_VERSION });
    test.handle(Input::Joined(report));
}

fn placed(test: &Test) -> Vec<(u64, std::ops::Range<u32>)> {
    let range = |plan: &StagePlan| plan.layers.first..plan.layers.end;
    test.plans.iter().map(|(node, plan)| (node.0, range(plan))).collect()
}

/// Goal: nothing is loaded again that is there, whoever is first to come back. Method: a cut that
/// nobody would choose now, by nodes that come in the other order and in between one that is new.
#[test]
fn nodes_that_come_back_get_what_they_hold_and_nobody_else_is_waited_for() {
    let mut test = Test::new(two_stages);
    test.cluster.expect_back(vec![NodeId(1), NodeId(2)], test.now);
    joins(&mut test, report(2, (false, 1..4, true), model().id));
    test.join(3, 1000);
    test.wait(Duration::from_secs(5));
    assert!(test.plans.is_empty(), "there were enough nodes, and one is missing");
    let waits = test.cluster.status().waiting_for;
    assert!(waits.contains("to come back") && waits.contains("coordinator.rejoin_ms"), "{waits}");
    joins(&mut test, report(1, (true, 0..1, false), model().id));
    assert_eq!(placed(&test), [(1, 0..1), (2, 1..4)], "at once");
    test.load();
    assert!(test.is_ready());
}

#[test]
fn who_does_not_come_back_is_not_waited_for_longer_than_configured() {
    let mut test = Test::new(two_stages);
    test.cluster.expect_back(vec![NodeId(1), NodeId(2)], test.now);
    joins(&mut test, report(2, (false, 1..4, true), model().id));
    test.join(3, 1000);
    test.wait(Duration::from_secs(11));
    assert_eq!(placed(&test), [(3, 0..1), (2, 1..4)], "what is there stays, by a little");
}

#[test]
fn pipelines_keep_their_nodes() {
    let mut test = Test::new(|config| {
        (config.coordinator.stages, config.coordinator.pipelines) = (2, 2);
    });
    test.cluster.expect_back([1, 2, 3, 4].map(NodeId).to_vec(), test.now);
    let (front, back) = ((true, 0..2, false), (false, 2..4, true));
    for (node, held) in [(4, &back), (3, &front), (2, &back), (1, &front)] {
        joins(&mut test, report(node, held.clone(), model().id));
    }
    assert_eq!(placed(&test), [(1, 0..2), (2, 2..4), (3, 0..2), (4, 2..4)]);
}

/// Layers of another model, layers that there aren't, an adapter that there isn't.
#[test]
fn what_is_not_of_this_model_counts_for_nothing() {
    let mut test = Test::new(two_stages);
    joins(&mut test, report(1, (false, 1..4, true), ModelId([8; 16])));
    let mut wrong = report(2, (true, 3..90, false), model().id);
    wrong.held[0].adapter = 7;
    wrong.held.push(HeldParts {
        layers: vec![LayerRange { first: 9, end: 2 }, LayerRange { first: u32::MAX, end: 0 }],
        model: model().id,
        ..HeldParts::default()
    });
    joins(&mut test, wrong);
    assert_eq!(placed(&test), [(1, 0..2), (2, 2..4)], "as if they came anew");
}
