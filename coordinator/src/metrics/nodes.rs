//! Which nodes are joined, and whether a pipeline serves on them.

use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use protocol::NodeId;

use super::Metrics;

/// Nodes that may come and go without a pipeline, and still be told of.
pub(super) const MAX_LOST: usize = 64;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct NodeLabels {
    node: String,
}

#[derive(Debug, Default)]
pub(super) struct Nodes {
    up: Family<NodeLabels, Gauge>,
    // Nodes with a series, and whether they are there.
    known: Mutex<Vec<(NodeId, bool)>>,
    pipeline_ready: Gauge,
}

impl Nodes {
    pub(super) fn register(&self, ours: &mut Registry) {
        let help = "1 while a node is joined; 0 from its loss until a pipeline serves again";
        ours.register("node_up", help, self.up.clone());
        let help = "Whether a pipeline serves";
        ours.register("pipeline_ready", help, self.pipeline_ready.clone());
    }

    fn are(&self, joined: impl Iterator<Item = NodeId>, is_ready: bool) {
        self.pipeline_ready.set(is_ready.into());
        let mut nodes = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.iter_mut().for_each(|(_, up)| *up = false);
        for node in joined {
            match nodes.iter_mut().find(|(known, _)| *known == node) {
                Some((_, up)) => *up = true,
                None => nodes.push((node, true)),
            }
        }
        let num_lost = nodes.iter().filter(|(_, up)| !up).count();
        let mut num_forgotten = if is_ready { num_lost } else { num_lost.saturating_sub(MAX_LOST) };
        nodes.retain(|&(node, up)| {
            let labels = NodeLabels { node: node.to_string() };
            if !up && num_forgotten > 0 {
                num_forgotten -= 1;
                self.up.remove(&labels);
                return false;
            }
            self.up.get_or_create(&labels).set(up.into());
            true
        });
    }
}

impl Metrics {
    /// The nodes that are joined, and whether a pipeline serves on them. A node that is lost is
    /// told of until one does; it may never come back, so its series ends then.
    pub(crate) fn nodes(&self, joined: impl Iterator<Item = NodeId>, is_ready: bool) {
        self.nodes.are(joined, is_ready);
    }
}
