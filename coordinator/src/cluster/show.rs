//! What the cluster looks like from outside: how full it is, who is there, what it waits for.

use std::fmt::Write as _;

use protocol::StageId;

use super::Cluster;
use crate::data_dir;
use crate::lane::{self, Lane};
use crate::queue::Queue;
use crate::request::Priority;
use crate::status::{NodeStatus, Status};

/// How full the cluster is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterLoad {
    /// Sequences that wait, by priority, lowest first.
    pub num_waiting: [usize; Priority::ALL.len()],
    /// What runs, over all pipelines.
    pub lanes: lane::LaneLoad,
}

impl Cluster {
    /// Who waits.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// What runs in the pipelines that serve, each by its first stage.
    pub fn lanes(&self) -> impl Iterator<Item = (StageId, &Lane)> {
        self.pipelines
            .values()
            .filter_map(|it| Some((it.stages.first()?.plan.id, it.lane.as_ref()?)))
    }

    /// Requests that have not ended.
    pub fn num_open(&self) -> usize {
        self.requests.len()
    }

    /// How full the cluster is.
    pub fn load(&self) -> ClusterLoad {
        let mut lanes = lane::LaneLoad::default();
        for lane in self.pipelines.values().filter_map(|pipeline| pipeline.lane.as_ref()) {
            let load = lane.load();
            lanes.num_running += load.num_running;
            lanes.num_used_blocks += load.num_used_blocks;
            lanes.num_blocks += load.num_blocks;
        }
        ClusterLoad { num_waiting: Priority::ALL.map(|it| self.queue.num_waiting(it)), lanes }
    }

    /// Nodes and pipelines as they are now.
    pub fn status(&self) -> Status {
        let nodes = self.members.joined().iter().map(|report| NodeStatus {
            node: report.node,
            hostname: report.hostname.clone(),
            data_addr: report.data_addr,
            pool: report.pool.clone(),
            labels: report.labels.clone(),
            adapters: report.adapters.iter().map(|adapter| adapter.name.clone()).collect(),
            drivers: report.adapters.iter().map(|adapter| adapter.driver.clone()).collect(),
            memory_bytes: report.adapters.iter().map(|adapter| adapter.memory_bytes).collect(),
            max_cache_bytes: report.adapters.iter().map(|it| it.max_cache_bytes).collect(),
            speeds: report.adapters.iter().map(|adapter| adapter.speed.checked()).collect(),
            corrections: (0..)
                .zip(&report.adapters)
                .map(|(number, it)| self.known.correction((report.node, number), it.fingerprint))
                .map(|it| (it.factor, it.extra_s))
                .collect(),
            row_shares: (0..)
                .zip(&report.adapters)
                .map(|(number, it)| self.known.row_share((report.node, number), it.fingerprint))
                .collect(),
            host_s: self.known.host_s(report.node),
            link: self.known.links.measured((None, Some(report.node))),
            links: self.known.links.of(report.node),
            fetching: self.known.fetching(report.node),
            left_out: self.left_out(report.node),
        });
        let serving = self.pipelines.values().find(|pipeline| pipeline.is_ready());
        Status {
            waiting_for: self.waiting_for(),
            nodes: nodes.collect(),
            quarantined: self.quarantined(),
            relieved: self.duties.relieved().collect(),
            pipelines: self.pipelines.values().map(|it| it.status(self.members.joined())).collect(),
            system_fingerprint: serving
                .map_or_else(String::new, |pipeline| pipeline.fingerprint(self.model.id)),
            scaling: self.scaling_status(),
        }
    }

    pub(super) fn waiting_for(&self) -> String {
        let coordinator = &self.config.coordinator;
        let num_nodes = self.usable().count();
        let mut joined = format!("{num_nodes} joined");
        for (node, quarantine) in self.trust.quarantined() {
            let _ = write!(joined, "; node {node} is left out: {}", quarantine.cause);
        }
        for (node, cause) in self.unsuited_nodes() {
            let _ = write!(joined, "; node {node} is left out: {cause}");
        }
        let loading = self.pipelines.values().next();
        let waiting = match (loading, self.num_expected()) {
            _ if self.is_stopping => "the coordinator is shutting down".to_owned(),
            _ if self.is_serving() || self.is_asleep() => String::new(),
            (Some(pipeline), _) => pipeline.doing(),
            _ if self.num_away() > 0 => format!(
                "waiting for nodes of the last pipelines to come back, {joined} \
                 (coordinator.rejoin_ms)"
            ),
            (None, 0) if self.members.joined().is_empty() => format!(
                "no node has joined; start one with: {}",
                data_dir::join_command(coordinator)
            ),
            (None, expected) if num_nodes < expected => {
                let local =
                    if coordinator.local_nodes > 0 { ": others open their adapters" } else { "" };
                format!("waiting for {expected} nodes, {joined}{local}")
            }
            (None, _) if num_nodes == 0 => format!("waiting for nodes that may serve, {joined}"),
            (None, _) => format!("placing the model: {joined}"),
        };
        match (waiting.is_empty(), self.trouble.is_empty()) {
            (_, true) => waiting,
            (true, false) => String::new(),
            (false, false) => format!("{}{}; {waiting}", self.trouble, self.backoff),
        }
    }
}
