//! Of whom nodes get weights, and the ways between them.

use protocol::message::{FetchProgress, Measure, Ways};
use protocol::{LinkSpeed, NodeId, StagePlan};

use super::*;

fn named(test: &Test, (node, plan): &(NodeId, StagePlan)) -> Vec<u64> {
    test.cluster.sources(*node, plan).nodes.iter().map(|peer| peer.node.0).collect()
}

/// Goal: whoever loads is told of all that have, or are getting, some of the same, most first, and
/// of nobody else.
#[test]
fn a_node_is_told_of_those_who_have_its_layers() {
    let mut test = Test::new(|config| {
        config.coordinator.stages = 2;
        config.coordinator.pipelines = 2;
        config.coordinator.max_sources = 2;
    });
    (1..=4).for_each(|node| test.join(node, 1000));
    let plans = std::mem::take(&mut test.plans);
    let (first, second) = plans.split_at(2);
    assert_eq!((first.len(), second.len()), (2, 2));
    for (one, other) in first.iter().zip(second) {
        // It is loading, and may have some of it soon. The other stages have nothing of it.
        assert_eq!(named(&test, other), [one.0.0]);
        assert_eq!(named(&test, one), [other.0.0]);
    }
    let peer = test.cluster.sources(second[0].0, &second[0].1).nodes[0];
    assert_eq!(peer.addr, ([127, 0, 0, 1], 9000 + peer.node.0 as u16).into());
    // All of it: each has half, and two are the most that are named.
    let (node, plan) = &second[0];
    let whole = StagePlan {
        num_stages: 1,
        layers: protocol::LayerRange { first: 0, end: 4 },
        ..plan.clone()
    };
    assert_eq!(named(&test, &(NodeId(9), whole.clone())).len(), 2);
    // Whoever is gone is named no more.
    test.handle(Input::Lost { node: *node, session: SessionId(node.0), cause: "killed".into() });
    assert!(!named(&test, &(NodeId(9), whole)).contains(&node.0));
}

/// Goal: ways between nodes are measured, shown at both ends, and decide who comes after whom.
#[test]
fn ways_between_nodes_are_measured_and_decide_the_order() {
    let mut test = Test::new(|config| config.coordinator.stages = 3);
    (1..=2).for_each(|node| test.join(node, 1000));
    test.wait(Duration::from_millis(500));
    let measure = |test: &mut Test| {
        let asked = test.others.iter().position(|it| matches!(it, Action::Measure(..)))?;
        match test.others.remove(asked) {
            Action::Measure(node, Measure { nodes, .. }) => Some((node, nodes)),
            _ => None,
        }
    };
    let (node, nodes) = measure(&mut test).unwrap();
    assert_eq!((node.0, nodes.len(), nodes[0].node.0), (1, 1, 2));
    let way = |rtt_us| LinkSpeed { rtt_us, bytes_per_s: 1e9 };
    let session = |node: NodeId| SessionId(node.0);
    let told = Ways { node, session: session(node), ways: vec![(NodeId(2), LinkSpeed::NONE)] };
    test.handle(Input::Ways(Ways { session: SessionId(99), ..told.clone() }));
    assert_eq!(test.cluster.status().nodes[0].links, [], "an older session's");
    test.handle(Input::Ways(told));
    let status = test.cluster.status();
    assert_eq!(status.nodes[0].links, [(NodeId(2), LinkSpeed::NONE)]);
    assert_eq!(status.nodes[1].links, [(NodeId(1), LinkSpeed::NONE)]);
    // The third is there before anything is placed: it stands between those who can't meet.
    let (three, one) = (NodeId(3), NodeId(1));
    let wire_version = protocol::WIRE_VERSION;
    test.handle(Input::Connected { node: three, session: session(three), wire_version });
    test.handle(Input::Joined(Test::report(3, 1000, session(three))));
    let order = |test: &Test| test.plans.iter().map(|(node, _)| node.0).collect::<Vec<_>>();
    assert_eq!(order(&test)[1], 3, "{:?}", order(&test));
    let ways = vec![(one, way(100.0)), (NodeId(7), way(1.0))];
    test.handle(Input::Ways(Ways { node: three, session: session(three), ways }));
    assert_eq!(test.cluster.status().nodes[2].links, [(one, way(100.0))], "nobody is called 7");
    test.handle(Input::Lost { node: one, session: session(one), cause: "killed".into() });
    assert!(test.cluster.status().nodes.iter().all(|it| it.links.is_empty()));
}

#[test]
fn what_a_node_fetches_is_shown_while_it_does() {
    let mut test = Test::new(two_stages);
    test.join(1, 1000);
    let fetching = FetchProgress {
        node: NodeId(1),
        session: SessionId(1),
        is_warming: false,
        num_bytes: 3,
        of_bytes: 9,
        num_sources: 2,
    };
    let shown = |test: &Test| test.cluster.status().nodes[0].fetching;
    test.handle(Input::Fetching(FetchProgress { session: SessionId(2), ..fetching }));
    assert_eq!(shown(&test), None);
    test.handle(Input::Fetching(fetching));
    assert_eq!(shown(&test), Some(fetching));
    test.handle(Input::Fetching(FetchProgress { of_bytes: 0, ..fetching }));
    assert_eq!(shown(&test), None);
}
