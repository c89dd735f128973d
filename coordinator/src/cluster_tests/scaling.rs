//! Pipelines that come and go with load, in virtual time.

use super::*;

use crate::cluster::Staffing;
use crate::duty::Duty;

const SECOND: Duration = Duration::from_secs(1);

/// A node holds the whole model, and a pipeline is meant for eight sequences of a few tokens.
fn scaled(change: impl FnOnce(&mut Config)) -> Test {
    Test::new(|config| {
        config.scheduler.max_num_seqs = 8;
        config.coordinator.settle_ms = 0;
        let autoscaler = &mut config.autoscaler;
        autoscaler.enabled = true;
        autoscaler.max_pipelines = 3;
        autoscaler.smoothing_ms = 0;
        autoscaler.upscale_delay_ms = 2000;
        autoscaler.downscale_delay_ms = 5000;
        autoscaler.idle_ms = 20_000;
        change(config);
    })
}

impl Test {
    fn pass(&mut self, seconds: u32) {
        (0..2 * seconds).for_each(|_| self.wait(SECOND / 2));
    }

    fn serving(&self) -> usize {
        self.cluster.status().pipelines.iter().filter(|it| it.is_ready()).count()
    }

    /// What was said last of how many nodes there are to be.
    fn staffing(&self) -> Staffing {
        let said = self.others.iter().rev().find_map(|action| match action {
            Action::Staff(staffing) => Some(staffing.clone()),
            _ => None,
        });
        said.unwrap_or_default()
    }

    fn answer_all(&mut self) {
        while !self.sent.is_empty() {
            self.answer();
        }
    }
}

/// Goal: idle nodes serve when there is load, and what runs where fewer are wanted ends there.
/// Method: three nodes, of which one is enough; twenty requests that stay, then fewer.
#[test]
fn idle_nodes_become_pipelines_and_are_given_back_with_nothing_lost() {
    let mut test = scaled(|_| {});
    (1..=3).for_each(|node| test.join(node, 1000));
    test.pass(1);
    test.load();
    test.pass(10);
    assert_eq!((test.serving(), test.plans.len()), (1, 0), "the others are idle");
    let staffing = test.staffing();
    assert_eq!((staffing.num_nodes, staffing.idle.len()), (1, 2));

    (100..120).for_each(|id| test.submit(id).unwrap());
    test.pass(3);
    assert_eq!(test.plans.len(), 2, "20 sequences, 8 each");
    test.load();
    assert_eq!(test.serving(), 3);
    assert_eq!(test.staffing().idle, []);
    let used: std::collections::HashSet<_> =
        test.sent.iter().map(|it| it.stage.pipeline.0).collect();
    assert_eq!(used.len(), 3, "whoever waited runs in the new ones");
    test.answer_all();
    for id in 100..120 {
        assert_eq!(test.tokens(id), [104, 105], "request {id}");
    }

    // Some work in each while they are to go.
    (200..203).for_each(|id| test.submit(id).unwrap());
    test.pass(6);
    assert_eq!(test.serving(), 1, "one is enough: {:?}", test.cluster.status().scaling);
    let draining = test.cluster.status().pipelines.iter().filter(|it| it.is_draining).count();
    assert_eq!(draining, 2, "what runs there ends there");
    let before = test.sent.len();
    test.submit(300).unwrap();
    assert!(test.sent[before..].iter().all(|it| {
        let pipelines = test.cluster.status().pipelines;
        pipelines.iter().any(|of| of.pipeline == it.stage.pipeline && !of.is_draining)
    }));
    test.answer_all();
    test.pass(1);
    for id in (200..203).chain([300]) {
        assert_eq!(test.tokens(id), [104, 105], "request {id}");
    }
    assert_eq!(test.cluster.status().pipelines.len(), 1);
    assert_eq!(test.staffing().idle.len(), 2);
    let moved = test.others.iter().any(|it| matches!(it, Action::Moved { .. }));
    assert!(!moved, "nothing had to be computed again");
}

/// What doesn't end in time goes on in another pipeline.
#[test]
fn whoever_outlasts_a_drain_goes_on_elsewhere() {
    let mut test = scaled(|config| config.coordinator.pipeline_drain_timeout_ms = 3000);
    (1..=2).for_each(|node| test.join(node, 1000));
    test.pass(1);
    test.load();
    (100..116).for_each(|id| test.submit(id).unwrap());
    test.pass(3);
    test.load();
    assert_eq!(test.serving(), 2);
    (101..116).for_each(|id| test.handle(Input::Cancel(protocol::RequestId(id))));
    test.answer_all();
    // One is left in each; nobody answers their steps.
    (200..202).for_each(|id| test.submit(id).unwrap());
    let pipelines: Vec<_> = test.sent.iter().map(|it| it.stage.pipeline).collect();
    assert!(pipelines.iter().any(|it| *it != pipelines[0]), "{pipelines:?}");
    test.pass(6);
    assert_eq!(test.cluster.status().pipelines.len(), 2);
    test.pass(3);
    assert_eq!(test.cluster.status().pipelines.len(), 1);
    let drained = test.others.iter().find_map(|action| match action {
        Action::Drained { num_sequences, .. } => Some(*num_sequences),
        _ => None,
    });
    assert_eq!(drained, Some(1));
    test.answer_all();
    (200..202).for_each(|id| assert_eq!(test.tokens(id), [104, 105], "request {id}"));
}

/// Goal: nothing is held where nothing is asked, and who asks waits instead of being refused.
/// Method: a node that comes and goes with what is wanted, ten times.
#[test]
fn the_last_pipeline_goes_and_comes_back_for_the_first_request() {
    let mut test = scaled(|config| {
        config.autoscaler.min_pipelines = 0;
        config.autoscaler.max_local_nodes = 3;
    });
    test.pass(1);
    assert_eq!(test.staffing().num_nodes, 1, "a model that can't be loaded is noticed at once");
    for round in 1..=10 {
        test.join(round, 1000);
        test.load();
        assert_eq!(test.serving(), 1);
        test.answer_all();
        if round > 1 {
            assert_eq!(test.tokens(round - 1), [104, 105], "who waited has its answer");
        }
        test.told.clear();
        test.pass(21);
        assert_eq!(test.cluster.status().pipelines.len(), 0, "idle for long enough");
        let status = test.cluster.status();
        assert!(test.is_ready() && status.scaling.unwrap().is_asleep, "requests are welcome");
        let staffing = test.staffing();
        assert_eq!((staffing.num_nodes, staffing.idle.len()), (0, 1));
        test.handle(Input::Exited { pid: Some(round as u32), cause: "asked to".into() });
        test.pass(100);
        test.submit(round).unwrap();
        assert_eq!(test.staffing().num_nodes, 1, "before any tick");
        assert!(!test.is_ready());
        test.pass(30);
        assert!(test.told.is_empty(), "it waits");
    }
    test.join(99, 1000);
    test.load();
    test.answer_all();
    assert_eq!(test.tokens(10), [104, 105]);
}

/// Goal: as many nodes as the pipelines take can serve. Method: one that an operator cordons before
/// anything is on it, and later when it serves; one that goes by itself.
#[test]
fn others_are_brought_for_nodes_that_may_serve_nothing() {
    let mut test = scaled(|config| config.autoscaler.min_pipelines = 2);
    let said = |test: &mut Test| {
        test.pass(1);
        test.load();
        test.pass(1);
        let Staffing { num_nodes, num_joined, .. } = test.staffing();
        (test.serving(), num_nodes, num_joined)
    };
    let set = |test: &mut Test, duty| test.handle(Input::Duty(NodeId(2), duty));
    set(&mut test, Duty::Cordoned);
    (1..=2).for_each(|node| test.join(node, 1000));
    assert_eq!(said(&mut test), (1, 3, 2));
    set(&mut test, Duty::Active);
    assert_eq!(said(&mut test), (2, 2, 2));
    set(&mut test, Duty::Cordoned);
    assert_eq!(said(&mut test), (2, 2, 2), "it serves what it has");
    test.handle(Input::Drain { node: NodeId(1), session: SessionId(1) });
    assert_eq!(said(&mut test), (1, 2, 1), "another is to come, and none for one that goes");
}

/// Goal: whoever asks wakes a cluster that sleeps, whatever it did before. Method: no node comes
/// until it sleeps; two requests, of which the second finds it awake.
#[test]
fn a_cluster_that_fell_asleep_before_anything_served_is_woken() {
    let mut test = scaled(|config| config.autoscaler.min_pipelines = 0);
    test.pass(1);
    assert!(matches!(test.submit(1), Err(SubmitError::NoPipeline(_))), "it isn't up yet");
    test.pass(21);
    assert!(test.cluster.status().scaling.unwrap().is_asleep);
    test.submit(2).unwrap();
    assert_eq!(test.staffing().num_nodes, 1);
    test.submit(3).unwrap();
    test.join(1, 1000);
    test.pass(1);
    test.load();
    test.answer_all();
    (2..=3).for_each(|id| assert_eq!(test.tokens(id), [104, 105], "request {id}"));
}

/// Goal: a model that no single node holds is placed where nodes are brought one order at a time.
/// Method: the first shows how many of its kind it takes.
#[test]
fn as_many_nodes_are_to_come_as_hold_the_model() {
    let mut test = scaled(|_| {});
    test.join(1, 31);
    test.pass(1);
    assert_eq!(test.staffing().num_nodes, 2);
    test.join(2, 31);
    test.pass(1);
    test.load();
    test.pass(1);
    assert_eq!((test.serving(), test.staffing().num_nodes), (1, 2));
}
