use super::*;
use crate::snapshot::{Fill, Happened, Point, ShownJob, ShownStage, StageTime, StepTime};

fn told(mut snapshot: Snapshot) -> Vec<(Level, String)> {
    snapshot.find_concerns();
    snapshot
        .concerns
        .into_iter()
        .map(|it| (it.level, format!("{}: {}", it.what, it.hint)))
        .collect()
}

fn quiet() -> Snapshot {
    let stage = |compute_ms| StageTime { compute_ms, ..StageTime::default() };
    let time =
        StepTime { step_ms: 20.0, stages: vec![stage(9.0), stage(8.0)], ..StepTime::default() };
    let pipeline = ShownPipeline {
        state: "serving".into(),
        time: Some(time),
        predicted_token_ms: 20.0,
        measured_token_ms: Some(22.0),
        ..ShownPipeline::default()
    };
    let node = ShownNode {
        node: "a1".into(),
        hostname: "left".into(),
        state: "serving".into(),
        duty: "active".into(),
        ..ShownNode::default()
    };
    Snapshot {
        ready: true,
        load: Fill { running: 4, waiting: 2, used_blocks: 90, blocks: 100 },
        queue: vec![Group { priority: "offline".into(), oldest_ms: 60_000, ..Group::default() }],
        jobs: vec![ShownJob { state: "in_progress".into(), left_s: 60, ..ShownJob::default() }],
        pipelines: vec![pipeline],
        nodes: vec![node],
        points: vec![Point { ended: 3, ..Point::default() }],
        ..Snapshot::default()
    }
}

#[test]
fn a_cluster_that_is_well_is_not_talked_about() {
    assert_eq!(told(quiet()), []);
}

/// Each trouble alone, so that each is told, and nothing else with it.
#[test]
fn every_trouble_is_told_with_its_cause() {
    type Change = fn(&mut Snapshot);
    let cases: [(Change, Level, &str); 15] = [
        (
            |it| (it.ready, it.waiting_for) = (false, "waiting for 2 nodes".into()),
            Level::Bad,
            "no pipeline serves: waiting for 2 nodes",
        ),
        (|it| it.points[0].failed = 2, Level::Bad, "2 requests failed just now: the server's log"),
        (|it| it.points[0].refused = 1, Level::Warn, "1 request was refused just now: the queue"),
        (|it| it.points[0].refused = 2, Level::Warn, "2 requests were refused just now: the queue"),
        (|it| it.load.used_blocks = 96, Level::Warn, "96 of 100 KV blocks are held: more"),
        (
            |it| {
                it.queue[0].priority = "standard".into();
                (it.queue[0].tenant, it.queue[0].num) = ("anna".into(), 7);
                it.queue[0].why = "9 sequences run".into();
            },
            Level::Warn,
            "7 of anna wait at priority standard, the first for 60 s: 9 sequences run",
        ),
        (
            |it| {
                it.pipelines[0].state = "loading".into();
                let stage = ShownStage { memory_bytes: 3, of_bytes: 4, ..ShownStage::default() };
                it.pipelines[0].stages = vec![stage];
            },
            Level::Info,
            "pipeline 0 is loading: 75 %: ",
        ),
        (
            |it| it.pipelines[0].time.as_mut().unwrap().stages[1].compute_ms = 18.0,
            Level::Info,
            "stage 1 of pipeline 0 computes 18.0 ms of a step, the others 9.0: they wait",
        ),
        (
            |it| it.pipelines[0].time.as_mut().unwrap().coordinator.network_ms = 7.0,
            Level::Info,
            "pipeline 0 spends 35 % of a step on the network: fewer stages",
        ),
        (
            |it| it.pipelines[0].measured_token_ms = Some(50.0),
            Level::Info,
            "pipeline 0 takes 2.5 times as long as was predicted: 50.0 ms a token, 20.0 predicted",
        ),
        (
            |it| it.nodes[0].cause = "for 9 s more: it failed".into(),
            Level::Warn,
            "node a1 (left) is left out: for 9 s more: it failed",
        ),
        (
            |it| it.nodes[0].duty = "cordoned".into(),
            Level::Info,
            "node a1 (left) is cordoned: autoglm node uncordon a1 takes it back",
        ),
        (
            |it| (it.nodes[0].duty, it.nodes[0].state) = ("draining".into(), "absent".into()),
            Level::Info,
            "node a1 (left) is draining and isn't here: autoglm",
        ),
        (|it| it.jobs[0].left_s = -1, Level::Warn, "batch job  is late: what"),
        (
            |it| {
                let (ago_ms, node) = (90_000, "a2".to_owned());
                let (kind, text) = (EventKind::Lost, "silent".to_owned());
                it.events = vec![Happened { ago_ms, node, kind, text, ..Happened::default() }];
            },
            Level::Info,
            "node a2 was lost 1 min ago: silent",
        ),
    ];
    for (change, level, expected) in cases {
        let mut snapshot = quiet();
        change(&mut snapshot);
        let told = told(snapshot);
        let [(found, text)] = &told[..] else { panic!("{expected}: {told:?}") };
        assert!(*found == level && text.starts_with(expected), "{expected}: {told:?}");
    }
}

#[test]
fn what_hurts_most_is_told_first_and_what_is_old_not_at_all() {
    let mut snapshot = quiet();
    snapshot.nodes[0].duty = "cordoned".into();
    snapshot.points[0].refused = 1;
    snapshot.ready = false;
    snapshot.events =
        vec![Happened { ago_ms: NEWS_MS, kind: EventKind::Lost, ..Happened::default() }];
    let levels: Vec<_> = told(snapshot).into_iter().map(|(level, _)| level).collect();
    assert_eq!(levels, [Level::Bad, Level::Warn, Level::Info]);
}
