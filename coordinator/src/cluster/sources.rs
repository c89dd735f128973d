//! Of whom a node can get weights beside the coordinator: nodes that have or are getting them.

use std::cmp::Reverse;

use protocol::message::Sources;
use protocol::{NodeId, Peer, StagePlan};

use super::Cluster;

impl Cluster {
    /// Of what a node can load a stage: the nodes that have most of what it needs,
    /// `coordinator.max_sources` at most.
    pub fn sources(&self, node: NodeId, plan: &StagePlan) -> Sources {
        let num_parts = self.model.cost.layers.len() + 2;
        let needed = parts(plan, num_parts);
        let mut found = Vec::new();
        for other in self.members.joined().iter().filter(|it| it.node != node) {
            let stages = self.pipelines.values().flat_map(|it| &it.stages);
            let theirs = stages.filter(|it| it.node == other.node);
            let mut has = self.known.held(other.node, num_parts);
            theirs.for_each(|it| mark(&mut has, &it.plan));
            let num = has.iter().zip(&needed).filter(|(has, needs)| **has && **needs).count();
            if num > 0 {
                found.push((num, Peer { node: other.node, addr: other.data_addr }));
            }
        }
        // Who ask at the same time don't all ask the same.
        found.sort_by_key(|(num, peer)| (Reverse(*num), peer.node.0.wrapping_sub(node.0)));
        found.truncate(self.config.coordinator.max_sources as usize);
        let nodes = found.into_iter().map(|(_, peer)| peer).collect();
        Sources { model: plan.model, config: self.model.config, nodes }
    }
}

/// The embedding, layers and head of a stage.
fn parts(plan: &StagePlan, num_parts: usize) -> Vec<bool> {
    let mut parts = vec![false; num_parts];
    mark(&mut parts, plan);
    parts
}

fn mark(parts: &mut [bool], plan: &StagePlan) {
    let last = parts.len() - 1;
    parts[0] |= plan.embeds();
    parts[last] |= plan.samples();
    parts[plan.layers.first as usize + 1..=plan.layers.end as usize].fill(true);
}
