//! Of whom nodes get weights.

use protocol::{NodeId, StagePlan};

use super::*;

fn named(test: &Test, (node, plan): &(NodeId, StagePlan)) -> Vec<u64> {
    test.cluster.sources(*node, plan).iter().map(|peer| peer.node.0).collect()
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
    let peer = test.cluster.sources(second[0].0, &second[0].1)[0];
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
