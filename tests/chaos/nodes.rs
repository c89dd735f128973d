//! The nodes of a run: processes of their own, started again under the same identity.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Cluster, Process, signal};

/// Nodes by number.
pub struct Nodes {
    nodes: Vec<Node>,
}

struct Node {
    data: tempfile::TempDir,
    process: Process,
    is_dead: bool,
    is_stopped: bool,
}

impl Nodes {
    /// So many join.
    pub fn start(cluster: &Cluster, num: usize) -> Self {
        let start = |_| {
            let data = tempfile::tempdir().unwrap();
            let process = cluster.join(data.path(), &[]);
            Node { data, process, is_dead: false, is_stopped: false }
        };
        Self { nodes: (0..num).map(start).collect() }
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Waits until all have joined, and a pipeline serves.
    pub async fn all_here(&self, cluster: &Cluster, longest: Duration) {
        let start = Instant::now();
        loop {
            let (_, stages) = cluster.get("/health/stages").await;
            let num_joined = stages["nodes"].as_array().map_or(0, Vec::len);
            if stages["ready"] == true && num_joined == self.nodes.len() {
                return;
            }
            if start.elapsed() > longest {
                let logs: Vec<_> = self.nodes.iter().map(|node| node.process.log()).collect();
                let log = cluster.process.log();
                panic!("not all are here: {stages}\n{log}\n{}", logs.join("\n---\n"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until those that are in no pipeline keep layers ready.
    pub async fn spares_ready(&self, cluster: &Cluster, longest: Duration) {
        let start = Instant::now();
        let is_ready = |node: &Node| node.process.log().contains("layers are kept ready");
        while start.elapsed() < longest {
            let serving = self.of_stages(cluster).await;
            let mut spares = (0..self.len()).filter(|it| !serving.contains(it));
            if spares.all(|it| is_ready(&self.nodes[it])) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The nodes of the stages that there are, in order.
    pub async fn of_stages(&self, cluster: &Cluster) -> Vec<usize> {
        let (_, status) = cluster.get("/health/stages").await;
        let pipelines = status["pipelines"].as_array().cloned().unwrap_or_default();
        let stages = pipelines.iter().flat_map(|it| it["stages"].as_array().unwrap());
        stages.filter_map(|stage| self.by_pid(&stage["pid"])).collect()
    }

    fn by_pid(&self, pid: &Value) -> Option<usize> {
        self.nodes.iter().position(|node| pid == node.process.child.id())
    }

    pub fn kill(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        if !node.is_dead {
            signal(node.process.child.id(), "KILL");
            (node.is_dead, node.is_stopped) = (true, false);
        }
    }

    pub fn stop(&mut self, number: usize) {
        signal(self.nodes[number].process.child.id(), "STOP");
        self.nodes[number].is_stopped = true;
    }

    pub fn go_on(&mut self, number: usize) {
        if self.nodes[number].is_stopped {
            signal(self.nodes[number].process.child.id(), "CONT");
            self.nodes[number].is_stopped = false;
        }
    }

    /// A dead one is started again.
    pub fn start_again(&mut self, cluster: &Cluster, number: usize) {
        let node = &mut self.nodes[number];
        if std::mem::take(&mut node.is_dead) {
            let _ = node.process.child.wait();
            node.process = cluster.join(node.data.path(), &[]);
        }
    }

    /// All are as they were.
    pub fn restore(&mut self, cluster: &Cluster) {
        for number in 0..self.nodes.len() {
            self.go_on(number);
            self.start_again(cluster, number);
        }
    }
}
