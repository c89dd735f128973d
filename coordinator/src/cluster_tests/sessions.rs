//! Sessions of nodes and links of stages: what is late changes nothing, what is half there serves
//! nobody.

use super::*;
use crate::request::{Constraint, Request};
use crate::testing::Anything;

/// A control connection that broke is told of late, when its node has long come back.
#[test]
fn late_news_of_an_older_session_changes_nothing() {
    let mut test = Test::new(two_stages);
    test.join(1, 1000);
    test.join(2, 1000);
    test.load();
    assert!(test.is_ready());
    test.join_in(2, 1000, 22);
    assert!(!test.is_ready(), "it has lost its stages");
    assert_eq!(test.disconnected, [SessionId(2)]);
    test.load();
    assert!(test.is_ready());

    let (node, session) = (NodeId(2), SessionId(2));
    test.handle(Input::Lost { node, session, cause: "it was cut".into() });
    test.handle(Input::Joined(Test::report(2, 9, session)));
    // What is told twice counts once.
    test.handle(Input::Joined(Test::report(2, 9, SessionId(22))));
    assert!(test.is_ready());
    assert_eq!(test.cluster.status().nodes.len(), 2);
    assert_eq!(test.disconnected.len(), 1);

    test.handle(Input::Lost { node, session: SessionId(22), cause: "it was cut".into() });
    assert!(!test.is_ready());
    assert_eq!(test.cluster.status().nodes.len(), 1);
    // Only who has connected can join.
    test.handle(Input::Joined(Test::report(2, 9, SessionId(22))));
    assert_eq!(test.cluster.status().nodes.len(), 1);
}

#[test]
fn whose_process_has_ended_is_disconnected_too() {
    let mut test = Test::new(two_stages);
    test.join_in(1, 1000, 11);
    test.handle(Input::Exited { pid: Some(1), cause: "killed".into() });
    assert_eq!(test.cluster.status().nodes, []);
    assert_eq!(
        test.disconnected,
        [SessionId(11)],
        "were it another's id, that one would come back"
    );
}

#[test]
fn who_connects_and_does_not_say_what_it_has_is_to_connect_again() {
    let mut test = Test::new(two_stages);
    test.join(1, 1000);
    let (node, session) = (NodeId(2), SessionId(2));
    test.handle(Input::Connected { node, session, wire_version: protocol::WIRE_VERSION });
    test.wait(Duration::from_secs(9));
    assert_eq!(test.disconnected, []);
    test.wait(Duration::from_secs(2));
    assert_eq!(test.disconnected, [session]);
    test.handle(Input::Lost { node, session, cause: "closed".into() });
    test.plans.clear();
    test.join_in(2, 1000, 22);
    test.wait(Duration::from_secs(3));
    test.load();
    assert_eq!(test.cluster.status().nodes.len(), 2);
}

#[test]
fn what_keeps_to_a_grammar_runs_only_where_every_node_speaks_of_masks() {
    for (wire_version, num_sent) in [(4, 1), (5, 2)] {
        let mut test = Test::new(two_stages);
        test.join(1, 1000);
        let (node, session) = (NodeId(2), SessionId(2));
        test.handle(Input::Connected { node, session, wire_version });
        test.handle(Input::Joined(Test::report(2, 1000, session)));
        test.load();
        let constraint = Some(Box::new(Anything) as Box<dyn Constraint>);
        let constrained = Request { constraint, ..request(1, 4, 1) };
        test.handle(Input::Submit(vec![constrained]));
        test.submit(2).unwrap();
        let mut sequences = std::collections::HashSet::new();
        for frame in &test.sent {
            let Body::Step(step) = &frame.body else { panic!("{frame:?}") };
            sequences.extend(step.batch.slices.iter().map(|slice| slice.sequence));
        }
        assert_eq!(sequences.len(), num_sent, "version {wire_version}");
    }
}

#[test]
fn a_pipeline_is_routed_to_only_while_all_its_links_are_open() {
    let mut test = Test::new(two_stages);
    test.join(1, 1000);
    test.join(2, 1000);
    let plans = test.echo();
    let first = plans[0].1.id;
    assert_eq!(test.connects, [first], "the coordinator opens the first link");
    assert!(test.submit(1).is_err());
    let linked =
        |node, stage| Input::Linked(NodeId(node), StageId { stage: StageIndex(stage), ..first });
    test.handle(linked(1, 0));
    // Neither again, nor somebody else's, nor one that isn't there.
    for (node, stage) in [(1, 0), (1, 1), (2, 7)] {
        test.handle(linked(node, stage));
    }
    assert!(!test.is_ready());
    let said = test.cluster.status().waiting_for;
    assert!(said.contains("linking: 1 of 2"), "{said}");
    test.handle(linked(2, 1));
    assert!(test.is_ready());
    test.submit(1).unwrap();
    test.answer();

    test.handle(Input::LinkLost { stage: first, cause: "cut".into() });
    assert!(!test.is_ready());
    test.sent.clear();
    test.wait(Duration::from_secs(3));
    let plans = test.echo();
    assert!(test.sent.is_empty(), "what it ran waits for open links");
    test.link(&plans);
    test.answer();
    assert_eq!(test.tokens(1), [104, 105]);
}

#[test]
fn links_that_do_not_open_are_given_up_and_tried_again_less_and_less_often() {
    let mut test = Test::new(two_stages);
    test.join(1, 1000);
    test.join(2, 1000);
    for pause in [1, 2, 4] {
        let plans = test.echo();
        test.link(&plans[..1]);
        test.wait(Duration::from_secs(9));
        assert!(test.cluster.status().waiting_for.contains("linking"));
        test.wait(Duration::from_secs(2));
        let said = test.cluster.status().waiting_for;
        assert!(said.contains("link to stage 1 on node") && said.contains("within 10 s"), "{said}");
        test.wait(Duration::from_millis(pause * 1000 - 100));
        assert_eq!(test.plans, []);
        // Settled, and a pause later.
        test.wait(Duration::from_millis(2500));
        assert_eq!(test.plans.len(), 2);
    }
    test.load();
    assert!(test.is_ready());
}
