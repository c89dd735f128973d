//! Nodes and pipelines, as a monitor shows them.

use std::collections::HashMap;
use std::time::Instant;

use protocol::NodeId;

use super::{Node, Pipeline, Scaling, Snapshot, Stage};
use crate::duty::Duty;
use crate::recent::Recent;
use crate::status::{NodeStatus, PipelineStatus, StageState, StageStatus, Status};

impl Snapshot {
    /// Takes in who is there and what they hold.
    pub fn take_status(&mut self, status: &Status, recent: &Recent, now: Instant) {
        self.ready = status.is_ready();
        self.waiting_for.clone_from(&status.waiting_for);
        self.fingerprint.clone_from(&status.system_fingerprint);
        self.scaling = status.scaling.as_ref().map(|scaling| Scaling {
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
        let pipelines = status.pipelines.iter().map(|it| Pipeline {
            time: recent.step_time(it.pipeline).filter(|_| it.is_ready()),
            ..self.pipeline(it, &known)
        });
        self.pipelines = pipelines.collect();
        let quarantined = status.quarantined.iter().map(|it| {
            let left = it.until.saturating_duration_since(now).as_secs();
            (it.node, format!("for {left} s more: {}", it.cause))
        });
        let mut quarantined: HashMap<_, _> = quarantined.collect();
        let here = status.nodes.iter().map(|node| {
            let held = held.get(&node.node).map_or(&[][..], Vec::as_slice);
            describe(node, held, status.duty_of(node.node), quarantined.remove(&node.node))
        });
        self.nodes = here.collect();
        let relieved = status.relieved.iter().filter(|(node, _)| !known.contains_key(node));
        for &(node, duty) in relieved {
            self.nodes.push(absent(node, duty, quarantined.remove(&node)));
        }
        let rest = quarantined.into_iter().map(|(node, it)| absent(node, Duty::Active, Some(it)));
        self.nodes.extend(rest);
    }

    fn pipeline(&self, it: &PipelineStatus, known: &HashMap<NodeId, &NodeStatus>) -> Pipeline {
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
        let stage = |stage: &StageStatus| Stage {
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
        Pipeline {
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

fn absent(node: NodeId, duty: Duty, cause: Option<String>) -> Node {
    Node {
        node: node.to_string(),
        state: "absent".into(),
        duty: duty.name().into(),
        cause: cause.unwrap_or_default(),
        ..Node::default()
    }
}

fn describe(
    node: &NodeStatus,
    held: &[(u32, &StageStatus)],
    duty: Duty,
    quarantined: Option<String>,
) -> Node {
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
    Node {
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
