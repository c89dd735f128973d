//! The nodes of a run: processes of their own, started again under the same identity.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Cluster, Process, binary, signal};
use crate::namespaces::Network;

/// Nodes by number.
pub struct Nodes {
    nodes: Vec<Node>,
    // A machine each, where they have some.
    network: Option<Network>,
    // What other machines join by.
    token: Option<String>,
}

fn token(cluster: &Cluster) -> String {
    let mut autoglm = Command::new(binary("autoglm"));
    autoglm.args(["token", "create", "--ttl", "12h", "--uses", "10000", "--data-dir"]);
    let said = autoglm.arg(cluster.data.path()).output().unwrap();
    let words = String::from_utf8_lossy(&said.stdout).into_owned();
    let token = words.split_whitespace().find(|word| word.starts_with("AGJ1."));
    token.unwrap_or_else(|| panic!("no token: {said:?}")).to_owned()
}

fn proof(token: &Option<String>) -> Vec<&str> {
    token.iter().flat_map(|token| ["--token", token.as_str()]).collect()
}

struct Node {
    data: tempfile::TempDir,
    process: Process,
    is_dead: bool,
    is_stopped: bool,
    is_cut_off: bool,
}

impl Nodes {
    /// So many join.
    pub fn start(cluster: &Cluster, num: usize, network: Option<Network>) -> Self {
        let token = network.is_some().then(|| token(cluster));
        let mut nodes = Self { nodes: Vec::new(), network, token };
        for number in 0..num {
            let data = tempfile::tempdir().unwrap();
            let process =
                cluster.join_from(nodes.program(number), data.path(), &proof(&nodes.token));
            nodes.nodes.push(Node {
                data,
                process,
                is_dead: false,
                is_stopped: false,
                is_cut_off: false,
            });
        }
        nodes
    }

    fn program(&self, number: usize) -> Command {
        let program = binary("autoglm-node");
        match &self.network {
            Some(network) => network.machines[number].command(program),
            None => Command::new(program),
        }
    }

    /// Nothing comes to a node's machine any more, or from it.
    pub fn cut_off(&mut self, number: usize) {
        self.network.as_ref().expect("nodes have machines").machines[number].cut_off();
        self.nodes[number].is_cut_off = true;
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
        let (program, token) = (self.program(number), self.token.clone());
        let proof = proof(&token);
        let node = &mut self.nodes[number];
        if std::mem::take(&mut node.is_dead) {
            let _ = node.process.child.wait();
            node.process = cluster.join_from(program, node.data.path(), &proof);
        }
    }

    /// Ends partitions and pauses, and starts what was killed.
    pub fn restore(&mut self, cluster: &Cluster) {
        for number in 0..self.nodes.len() {
            if std::mem::take(&mut self.nodes[number].is_cut_off) {
                self.network.as_ref().expect("it was cut off").machines[number].reconnect();
            }
            self.go_on(number);
            self.start_again(cluster, number);
        }
    }
}
