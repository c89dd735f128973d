//! Nodes and pipelines, as a monitor shows them.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use protocol::NodeId;

use super::{ShownNode, ShownPipeline, ShownScaling, ShownStage, Snapshot};
use crate::duty::Duty;
use crate::recent::Recent;
use crate::status::{NodeStatus, PipelineStatus, StageState, StageStatus, Status};

/// A node that was lost is told for so long, if an operator doesn't wait for it.
const MISSED: Duration = Duration::from_secs(10 * 60);

impl Snapshot {
    /// Takes in who is there and what they hold.
    pub(crate) fn take_status(&mut self, status: &Status, recent: &Recent, now: Instant) {
        self.ready = status.is_ready();
        self.waiting_for.clone_from(&status.waiting_for);
        self.fingerprint.clone_from(&status.system_fingerprint);
        self.scaling = status.scaling.as_ref().map(|scaling| ShownScaling {
            wanted: scaling.wanted,
            min: scaling.min,
            max: scaling.max,
            load: scaling.load,
            asleep: scaling.is_asleep,
        });
        let known: HashMap<_, _> = status.nodes.iter().map(|node| (node.node, node)).collect();
        let mut held: HashMap<NodeId, Vec<(u32, &StageStatus)>> = HashMap::new();
        for pipeline in &status.pipelines {
            for stage in &pipeline.stages {
                held.entry(stage.node).or_default().push((pipeline.pipeline.0, stage));
            }
        }
        let pipelines = status.pipelines.iter().map(|it| ShownPipeline {
            time: recent.step_time(it.pipeline).filter(|_| it.is_ready()),
            ..self.pipeline(it, &known)
        });
        self.pipelines = pipelines.collect();
        let quarantined: HashMap<_, _> = status
            .quarantined
            .iter()
            .map(|it| {
                let left = it.until.saturating_duration_since(now).as_secs();
                (it.node, format!("for {left} s more: {}", it.cause))
            })
            .collect();
        let here = status.nodes.iter().map(|node| {
            let held = held.get(&node.node).map_or(&[][..], Vec::as_slice);
            let quarantined = quarantined.get(&node.node).cloned();
            describe(node, held, status.duty_of(node.node), quarantined)
        });
        let lost = recent.lost(now);
        let missed = lost.iter().filter(|(_, (ago, _))| *ago < MISSED).map(|(node, _)| *node);
        let relieved = status.relieved.iter().map(|(node, _)| *node);
        let away = missed.chain(relieved).chain(quarantined.keys().copied());
        let away: BTreeSet<_> = away.filter(|node| !known.contains_key(node)).collect();
        let away = away.into_iter().map(|node| {
            absent(node, status.duty_of(node), quarantined.get(&node), lost.get(&node))
        });
        self.nodes = here.chain(away).collect();
        self.nodes.sort_by_key(|node| node.state != "lost");
    }

    fn pipeline(&self, it: &PipelineStatus, known: &HashMap<NodeId, &NodeStatus>) -> ShownPipeline {
        let has = |state| it.stages.iter().any(|stage| stage.state == state);
        let state = match () {
            () if it.is_draining => "draining",
            () if it.is_ready() => "serving",
            () if has(StageState::Loading) => "loading",
            () => "linking",
        };
        let memory = |stage: &StageStatus| {
            let adapters = &known.get(&stage.node)?.memory_bytes;
            adapters.get(stage.adapter_number as usize).copied()
        };
        let stage = |stage: &StageStatus| ShownStage {
            node: stage.node.to_string(),
            hostname: stage.hostname.clone(),
            adapter: stage.adapter.clone(),
            adapter_number: stage.adapter_number,
            layers: [stage.layers.first, stage.layers.end],
            state: stage.state.name().into(),
            memory_bytes: stage.memory_bytes,
            of_bytes: stage.of_bytes,
            adapter_bytes: memory(stage).unwrap_or_default(),
            blocks: stage.num_blocks,
        };
        // How full they are is known already, of whoever schedules.
        let seen = self.pipelines.iter().find(|seen| seen.pipeline == it.pipeline.0);
        ShownPipeline {
            pipeline: it.pipeline.0,
            state: state.into(),
            load: seen.map(|seen| seen.load).unwrap_or_default(),
            stages: it.stages.iter().map(stage).collect(),
            time: None,
            predicted_token_ms: it.predicted.token_s * 1e3,
            measured_token_ms: it.measured_token_s.map(|seconds| seconds * 1e3),
        }
    }
}

fn absent(
    node: NodeId,
    duty: Duty,
    quarantined: Option<&String>,
    lost: Option<&(Duration, &str)>,
) -> ShownNode {
    let (state, cause) = match (quarantined, lost) {
        (Some(cause), _) => ("quarantined", cause.clone()),
        (None, Some((ago, cause))) => ("lost", format!("{} s ago: {cause}", ago.as_secs())),
        (None, None) => ("absent", String::new()),
    };
    ShownNode {
        node: node.to_string(),
        state: state.into(),
        duty: duty.name().into(),
        cause,
        ..ShownNode::default()
    }
}

fn describe(
    node: &NodeStatus,
    held: &[(u32, &StageStatus)],
    duty: Duty,
    quarantined: Option<String>,
) -> ShownNode {
    let serves = held.iter().all(|(_, stage)| stage.state == StageState::Serving);
    let state = match duty {
        Duty::Active if quarantined.is_some() => "quarantined",
        Duty::Active if held.is_empty() => "idle",
        Duty::Active if serves => "serving",
        Duty::Active => "loading",
        duty => duty.name(),
    };
    let loading = held.iter().filter(|(_, stage)| stage.state == StageState::Loading);
    let loading = loading.map(|(_, stage)| [stage.memory_bytes, stage.of_bytes]);
    let loading = loading.reduce(|sum, it| [sum[0] + it[0], sum[1] + it[1]]);
    let fetching = node.fetching.map(|it| [it.num_bytes, it.of_bytes]);
    ShownNode {
        node: node.node.to_string(),
        hostname: node.hostname.clone(),
        state: state.into(),
        duty: duty.name().into(),
        cause: quarantined.unwrap_or_default(),
        addr: node.data_addr.to_string(),
        pool: node.pool.clone(),
        labels: node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect(),
        adapters: node.adapters.clone(),
        memory_bytes: node.memory_bytes.iter().sum(),
        used_bytes: held.iter().map(|(_, stage)| stage.memory_bytes).sum(),
        // What comes over the network is what the rest waits for.
        loading: fetching.or(loading),
        rtt_us: node.link.map(|link| link.rtt_us),
        holds: held.iter().map(|(pipeline, stage)| [*pipeline, stage.stage.0]).collect(),
    }
}

#[cfg(test)]
mod tests {
    use protocol::config;

    use super::*;
    use crate::snapshot::{EventKind, Happened};

    /// Goal: whoever looks sees which nodes are gone, for how long, and what an operator had said
    /// of them. Method: nodes that were lost just now and long ago, that left, or that came back.
    #[test]
    fn a_node_that_was_lost_is_told_of_for_a_while_and_a_cordoned_one_until_it_is_back() {
        let (mut recent, start) = (Recent::new(&config::Metrics::default()), Instant::now());
        let minutes = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let mut happens = |at, kind, node: u64| {
            let (node, text) = (NodeId(node).to_string(), "silent".to_owned());
            recent.happened(at, kind, Happened { node, text, ..Happened::default() });
        };
        for node in 1..=5 {
            happens(start, EventKind::Lost, node);
        }
        happens(minutes(1), EventKind::Joined, 3);
        happens(minutes(1), EventKind::Left, 4);
        happens(minutes(15), EventKind::Lost, 6);
        let status = Status {
            relieved: [2, 3, 7].map(|node| (NodeId(node), Duty::Cordoned)).to_vec(),
            ..Status::default()
        };
        let mut snapshot = Snapshot { ready: true, ..Snapshot::default() };
        snapshot.take_status(&status, &recent, minutes(16));
        let told: Vec<_> = snapshot
            .nodes
            .iter()
            .map(|it| (&it.node[15..], &*it.state, &*it.duty, &*it.cause))
            .collect();
        let expected = [
            ("2", "lost", "cordoned", "960 s ago: silent"),
            ("6", "lost", "active", "60 s ago: silent"),
            ("3", "absent", "cordoned", ""),
            ("7", "absent", "cordoned", ""),
        ];
        assert_eq!(told, expected);
        snapshot.ready = true;
        snapshot.find_concerns();
        let said: Vec<_> = snapshot.concerns.iter().map(|it| it.what.as_str()).collect();
        assert!(said[0].ends_with("2 is cordoned, and was lost 960 s ago: silent"), "{said:?}");
    }
}
