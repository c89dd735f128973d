//! The cluster in virtual time: nodes that come and go, plans that are kept or refused.

mod duties;
mod failures;
mod returning;
mod scaling;
mod seen;
mod sessions;
mod sources;

use std::time::{Duration, Instant};

use protocol::config::{Config, RunAhead};
use protocol::message::{LoadProgress, Loading, StageFailed};
use protocol::{
    AdapterReport, Blame, Body, Digest, Failed, Frame, ModelId, NodeId, NodeReport, PipelineId,
    SessionId, StageEcho, StageId, StageIndex, StagePlan, StepId,
};

use crate::cluster::{Action, Cluster, Input};
use crate::model::Model;
use crate::placement::ModelCost;
use crate::request::{Event, SubmitError};
use crate::testing::{Pipeline, request};

fn model() -> Model {
    Model {
        id: ModelId([7; 16]),
        path: "/models/m".into(),
        cost: ModelCost { activations: 1, ..ModelCost::of_bytes(&[10; 4], 10, 10) },
        config: Digest([8; 32]),
        digests: (0..6).map(|i| Digest([i; 32])).collect(),
        hidden_size: 64,
        max_model_len: 128,
        vocab_size: 640,
    }
}

pub(crate) struct Test {
    pub(crate) cluster: Cluster,
    pub(crate) now: Instant,
    pub(crate) plans: Vec<(NodeId, StagePlan)>,
    pub(crate) connects: Vec<StageId>,
    pub(crate) disconnected: Vec<SessionId>,
    pub(crate) sent: Vec<Frame>,
    pub(crate) told: Vec<(u64, Event)>,
    pub(crate) submitted: Vec<Result<(), SubmitError>>,
    pub(crate) others: Vec<Action>,
}

impl Test {
    pub(crate) fn new(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        config.scheduler.run_ahead = RunAhead::On;
        change(&mut config);
        let now = Instant::now();
        let cluster = Cluster::new(config, model(), 3, now);
        Self {
            cluster,
            now,
            plans: Vec::new(),
            connects: Vec::new(),
            disconnected: Vec::new(),
            sent: Vec::new(),
            told: Vec::new(),
            submitted: Vec::new(),
            others: Vec::new(),
        }
    }

    pub(crate) fn handle(&mut self, input: Input) {
        let actions = self.cluster.handle(input, self.now);
        self.take(actions);
    }

    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Load(node, plan) => self.plans.push((node, *plan)),
                Action::Connect(_, stage) => self.connects.push(stage),
                Action::Disconnect(session) => self.disconnected.push(session),
                Action::Send(frame) => self.sent.push(*frame),
                Action::Tell(request, event) => self.told.push((request.0, event)),
                Action::Submitted(_, result) => self.submitted.push(result),
                other => self.others.push(other),
            }
        }
    }

    pub(crate) fn wait(&mut self, duration: Duration) {
        self.now += duration;
        self.handle(Input::Tick);
    }

    pub(crate) fn join(&mut self, node: u64, memory_bytes: u64) {
        self.join_in(node, memory_bytes, node);
    }

    /// A node connects in this session, and says what it has.
    fn join_in(&mut self, node: u64, memory_bytes: u64, session: u64) {
        let session = SessionId(session);
        self.handle(Input::Connected {
            node: NodeId(node),
            session,
            wire_version: protocol::WIRE_VERSION,
        });
        self.handle(Input::Joined(Self::report(node, memory_bytes, session)));
    }

    pub(crate) fn report(node: u64, memory_bytes: u64, session: SessionId) -> NodeReport {
        let adapter = AdapterReport {
            name: "card".into(),
            driver: "driver".into(),
            memory_bytes,
            max_cache_bytes: None,
            fingerprint: Digest::default(),
            speed: Default::default(),
        };
        NodeReport {
            node: NodeId(node),
            session,
            hostname: "host".into(),
            pid: node as u32,
            data_addr: ([127, 0, 0, 1], 9000 + node as u16).into(),
            pool: String::new(),
            labels: Vec::new(),
            adapters: vec![adapter],
            held: Vec::new(),
        }
    }

    /// Every planned stage echoes what it was asked for.
    fn echo(&mut self) -> Vec<(NodeId, StagePlan)> {
        let plans = std::mem::take(&mut self.plans);
        for (node, plan) in &plans {
            self.handle(Input::Ready(echo(*node, plan)));
        }
        plans
    }

    /// Every one of these stages has its links.
    fn link(&mut self, plans: &[(NodeId, StagePlan)]) {
        for (node, plan) in plans {
            self.handle(Input::Linked(*node, plan.id));
        }
    }

    pub(crate) fn load(&mut self) {
        let plans = self.echo();
        self.link(&plans);
    }

    /// As [`load`](Self::load), with so many blocks and of that class.
    pub(crate) fn load_as(&mut self, (num_blocks, class): (u32, u8)) {
        let plans = std::mem::take(&mut self.plans);
        for (node, plan) in &plans {
            let fingerprint = Digest([class; 32]);
            self.handle(Input::Ready(StageEcho { num_blocks, fingerprint, ..echo(*node, plan) }));
        }
        self.link(&plans);
    }

    pub(crate) fn submit(&mut self, id: u64) -> Result<(), SubmitError> {
        self.handle(Input::Submit(vec![request(id, 4, 2)]));
        self.submitted.pop().unwrap()
    }

    /// Every step that was sent is answered: the token at position p is 100 + p.
    pub(crate) fn answer(&mut self) {
        for frame in std::mem::take(&mut self.sent) {
            let Body::Step(step) = &frame.body else { panic!("{frame:?}") };
            let body = Body::Sampled(Pipeline::sampled(&step.batch));
            self.handle(Input::Frame(Frame { body, ..frame }));
        }
    }

    pub(crate) fn tokens(&self, id: u64) -> Vec<u32> {
        let of = self.told.iter().filter(|(request, _)| *request == id);
        let token = |event: &Event| match event {
            Event::Token { token, .. } => Some(token.0),
            _ => None,
        };
        of.filter_map(|(_, event)| token(event)).collect()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.cluster.status().is_ready()
    }
}

fn echo(node: NodeId, plan: &StagePlan) -> StageEcho {
    StageEcho {
        node,
        id: plan.id,
        model: plan.model,
        layers: plan.layers,
        hidden_size: 64,
        num_blocks: 16.min(plan.limits.max_blocks),
        memory_bytes: 1,
        fingerprint: Digest::default(),
    }
}

pub(crate) fn two_stages(config: &mut Config) {
    config.coordinator.stages = 2;
}

#[test]
fn a_pipeline_serves_once_every_stage_has_echoed_its_plan() {
    let mut test = Test::new(two_stages);
    test.join(1, 1000);
    assert!(test.plans.is_empty(), "another node may come");
    test.join(2, 1000);
    let cut: Vec<_> = test.plans.iter().map(|(node, plan)| (node.0, plan.layers.len())).collect();
    assert_eq!(cut, [(1, 2), (2, 2)]);
    assert_eq!(test.plans[0].1.next.map(|peer| peer.node), Some(NodeId(2)));
    assert_eq!(test.plans[0].1.digests.len(), 3, "embedding and two layers");
    assert!(matches!(test.submit(1), Err(SubmitError::NoPipeline(_))));
    let (node, plan) = test.plans[0].clone();
    test.handle(Input::Ready(echo(node, &plan)));
    assert!(!test.is_ready());
    test.load();
    assert!(test.is_ready());
    test.submit(1).unwrap();
    assert_eq!(test.sent.len(), 2, "one of them runs ahead");
}

#[test]
fn a_pipeline_of_several_device_classes_serves_and_says_so() {
    for (classes, expected) in [
        ([1, 1], None),
        ([1, 2], Some("0000000000000001: 0101010101010101, 0000000000000002: 0202020202020202")),
    ] {
        let mut test = Test::new(two_stages);
        test.join(1, 1000);
        test.join(2, 1000);
        let plans = std::mem::take(&mut test.plans);
        for ((node, plan), class) in plans.iter().zip(classes) {
            // A stage that is loading has no class yet, which is none of its own.
            assert_eq!(test.cluster.status().pipelines[0].mixed_classes(), None);
            let fingerprint = Digest([class; 32]);
            test.handle(Input::Ready(StageEcho { fingerprint, ..echo(*node, plan) }));
        }
        test.link(&plans);
        assert!(test.is_ready());
        let pipeline = &test.cluster.status().pipelines[0];
        assert_eq!(pipeline.mixed_classes().as_deref(), expected);
        let shown: Vec<_> = pipeline.stages.iter().map(|stage| stage.class).collect();
        assert_eq!(shown, classes.map(|class| Some(Digest([class; 32]))));
    }
}

#[test]
fn stages_share_a_node_when_nobody_else_comes() {
    let mut test = Test::new(two_stages);
    test.join(1, 1000);
    test.wait(Duration::from_secs(3));
    let nodes: Vec<_> = test.plans.iter().map(|(node, _)| node.0).collect();
    assert_eq!(nodes, [1, 1]);
}

#[test]
fn an_echo_that_differs_from_the_plan_is_not_routed_to() {
    let mut test = Test::new(two_stages);
    test.join(1, 1000);
    test.join(2, 1000);
    let (node, plan) = test.plans[0].clone();
    let other = StageEcho { model: ModelId([8; 16]), ..echo(node, &plan) };
    test.handle(Input::Ready(other));
    assert!(!test.is_ready());
    assert!(test.cluster.status().waiting_for.contains("holds model"));

    // Nor what would take the coordinator's memory.
    let mut test = Test::new(two_stages);
    test.join(1, 1000);
    test.join(2, 1000);
    let (node, plan) = test.plans[0].clone();
    test.handle(Input::Ready(StageEcho { num_blocks: u32::MAX, ..echo(node, &plan) }));
    let said = test.cluster.status().waiting_for;
    assert!(said.contains("more than the 512 that were asked for"), "{said}");
}

#[test]
fn a_local_node_that_ends_before_it_joins_is_told_of() {
    let mut test = Test::new(two_stages);
    test.join(1, 1000);
    let cause = || "local node 1 ended (signal: 9)".to_owned();
    test.handle(Input::Exited { pid: Some(77), cause: cause() });
    let said = test.cluster.status().waiting_for;
    assert!(said.contains(&cause()) && said.contains("waiting for 2 nodes, 1 joined"), "{said}");
    // Of one that nobody misses nothing is said.
    test.join(2, 1000);
    test.load();
    test.handle(Input::Exited { pid: Some(78), cause: cause() });
    assert_eq!((test.is_ready(), test.cluster.status().waiting_for), (true, String::new()));
}

#[test]
fn whatever_names_an_old_epoch_is_dropped() {
    let mut test = Test::new(two_stages);
    test.join(1, 1000);
    test.join(2, 1000);
    let (node, old) = test.plans[1].clone();
    test.load();
    let (lost, session) = (NodeId(2), SessionId(2));
    test.handle(Input::Lost { node: lost, session, cause: "cut".into() });
    test.join(4, 1000);
    test.load();
    let failed = Failed { cause: "late".into(), fatal: true, blame: Blame::Own };
    // Of its pipeline's old epoch, and of the new one in a pipeline that isn't there.
    let new = test.connects.last().unwrap().next();
    assert_eq!(new.pipeline, old.id.pipeline);
    assert_ne!(new.epoch, old.id.epoch);
    for id in [old.id, StageId { pipeline: PipelineId(7), ..new }] {
        let stage = id;
        test.handle(Input::Ready(StageEcho { id, ..echo(node, &old) }));
        test.handle(Input::Failed(StageFailed {
            node,
            id,
            cause: "late".into(),
            blame: Blame::Own,
        }));
        test.handle(Input::Linked(node, id));
        test.handle(Input::LinkLost { stage, cause: "late".into() });
        test.handle(Input::Frame(Frame {
            model: old.model,
            stage,
            step: StepId(0),
            body: Body::Failed(failed.clone()),
        }));
    }
    assert!(test.is_ready());
}

#[test]
fn a_step_or_a_load_that_hangs_is_given_up() {
    let mut test = Test::new(two_stages);
    test.join(1, 1000);
    test.join(2, 1000);
    test.wait(Duration::from_secs(121));
    assert!(test.cluster.status().waiting_for.contains("load_timeout_ms"));
    test.plans.clear();
    test.wait(Duration::from_secs(3));
    test.load();
    test.submit(1).unwrap();
    test.wait(Duration::from_secs(61));
    assert!(test.cluster.status().waiting_for.contains("step_timeout_ms"));
    let is_failed = |(_, event): &(u64, Event)| matches!(event, Event::Failed(_));
    assert!(!test.told.iter().any(is_failed), "it waits for the next pipeline");
}

#[test]
fn a_load_goes_on_as_long_as_bytes_or_kernels_come() {
    let mut test = Test::new(two_stages);
    test.join(1, 1000);
    test.join(2, 1000);
    let id = test.plans[1].1.id;
    let all = Loading { total_bytes: 45_000_000, ..Loading::default() };
    let loaded = Loading { loaded_bytes: 45_000_000, num_kernels: 112, ..all };
    let files = (1..5).map(|part| Loading { checked_bytes: part * 10_000_000, ..all });
    let bytes = (1..5).map(|part| Loading { loaded_bytes: part * 10_000_000, ..all });
    let kernels = (30..38).map(|num_compiled| Loading { num_compiled, ..loaded });
    let expect = [(4, "40 of 45 MB compared"), (8, "40 of 45 MB loaded")];
    for (number, loading) in (1..).zip(files.chain(bytes).chain(kernels)) {
        // Slow, and never still for as long as it may be.
        test.wait(Duration::from_secs(100));
        test.handle(Input::Progress(LoadProgress { id, loading }));
        let said = test.cluster.status().waiting_for;
        if let Some((_, expected)) = expect.iter().find(|(at, _)| *at == number) {
            assert!(said.ends_with(&format!("stage 1: {expected}")), "{said}");
        }
    }
    let said = test.cluster.status().waiting_for;
    assert!(said.ends_with("stage 1: 37 of 112 kernels compiled, 45 MB"), "{said}");
    assert_eq!(test.plans.len(), 2, "nothing was begun again");
    // What says the same again doesn't move.
    for _ in 0..2 {
        test.wait(Duration::from_secs(61));
        let loading = Loading { num_compiled: 37, ..loaded };
        test.handle(Input::Progress(LoadProgress { id, loading }));
    }
    assert!(test.cluster.status().waiting_for.contains("load_timeout_ms"));
}

/// Goal: what nodes say of their loading can be added up, whatever it is.
#[test]
fn no_stage_says_of_more_bytes_than_any_adapter_has() {
    let mut test = Test::new(two_stages);
    test.join(1, 1000);
    test.join(2, 1000);
    let id = test.plans[0].1.id;
    let loading = Loading { loaded_bytes: u64::MAX, total_bytes: u64::MAX, ..Loading::default() };
    test.handle(Input::Progress(LoadProgress { id, loading }));
    let (node, plan) = test.plans[1].clone();
    test.handle(Input::Ready(StageEcho { memory_bytes: u64::MAX, ..echo(node, &plan) }));
    for stage in &test.cluster.status().pipelines[0].stages {
        let said = [stage.memory_bytes, stage.of_bytes];
        assert!(stage.memory_bytes > 0 && said.iter().all(|it| *it <= 1 << 50), "{said:?}");
    }
}

/// Goal: what a stage takes beyond what was planned is no reason to try the same for ever. Method:
/// a node's stage lacks memory, and the other has room for more.
#[test]
fn a_stage_that_takes_more_than_was_planned_is_given_less() {
    let mut test = Test::new(two_stages);
    test.join(1, 41);
    test.join(2, 41);
    test.wait(Duration::from_secs(1));
    let num_layers = |test: &Test, node| {
        let mut plans = test.plans.iter().rev();
        let (_, plan) = plans.find(|(it, _)| *it == node).unwrap();
        (plan.layers.len(), plan.memory_bytes)
    };
    let (node, id) = (test.plans[0].0, test.plans[0].1.id);
    let other = NodeId(3 - node.0);
    assert_eq!([node, other].map(|it| num_layers(&test, it)), [(2, 41), (2, 41)]);
    let (cause, blame) = ("too large".into(), Blame::Memory(11));
    test.handle(Input::Failed(StageFailed { node, id, cause, blame }));
    test.wait(Duration::from_secs(5));
    assert_eq!([node, other].map(|it| num_layers(&test, it)), [(1, 41), (3, 41)]);
    test.load();
    assert!(test.cluster.status().pipelines[0].is_ready());
}

#[test]
fn a_load_that_fails_again_and_again_is_tried_less_and_less_often() {
    let mut test = Test::new(two_stages);
    test.join(1, 1000);
    test.join(2, 1000);
    let mut tries_at = Vec::new();
    let began = test.now;
    while test.now - began < Duration::from_secs(200) {
        if let Some((node, plan)) = test.plans.pop() {
            tries_at.push((test.now - began).as_secs());
            test.plans.clear();
            let cause = "a damaged file".into();
            test.handle(Input::Failed(StageFailed { node, id: plan.id, cause, blame: Blame::Own }));
        }
        test.wait(Duration::from_millis(100));
    }
    let pauses: Vec<_> = tries_at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    let said = test.cluster.status().waiting_for;
    assert!(said.contains("a damaged file") && said.contains("in a row: 9"), "{said}");
    assert!(said.contains("after 60 s"), "{said}");

    // Another node may be able to.
    test.join(3, 1000);
    test.wait(Duration::from_secs(3));
    test.load();
    assert!(test.is_ready());
}

#[test]
fn what_cannot_be_placed_says_what_is_missing() {
    let mut test = Test::new(|config| config.coordinator.local_nodes = 1);
    test.join(1, 40);
    let said = test.cluster.status().waiting_for;
    assert!(said.contains("doesn't fit") && said.contains("missing"), "{said}");
}
