//! Why nothing is placed on a node that is here, beside what it did and what operators say.

use protocol::config::Model;
use protocol::{NodeId, NodeReport};

use super::Cluster;
use crate::duty::Duty;
use crate::placement::Size;

/// What the model asks for that a node isn't, in one sentence.
pub(crate) fn unsuited(model: &Model, node: &NodeReport) -> Option<String> {
    if !model.pools.is_empty() && !model.pools.contains(&node.pool) {
        let (pool, pools) = (&node.pool, model.pools.join(", "));
        return Some(format!("it is of pool {pool:?}, and model.pools asks for {pools}"));
    }
    let has = |label: &&String| {
        // Of one that is said twice the last counts.
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        node.labels.iter().rfind(|(known, _)| known == key).is_some_and(|(_, it)| it == value)
    };
    let missing = model.labels.iter().find(|label| !has(label))?;
    Some(format!("it lacks the label {missing}, which model.labels asks for"))
}

impl Cluster {
    /// Why nothing is placed on this node, where that is so and isn't said elsewhere.
    pub(super) fn left_out(&self, node: NodeId) -> Option<String> {
        let report = self.members.joined().iter().find(|it| it.node == node)?;
        if self.pipelines.values().any(|it| it.is_on(node)) {
            return None;
        }
        if let Some(unsuited) = unsuited(&self.config.model, report) {
            return Some(unsuited);
        }
        if self.duties.of(node) != Duty::Active || self.trust.is_out(node) {
            return None;
        }
        let cost = &self.model.cost;
        let most = report.adapters.iter().map(|it| it.memory_bytes).max().unwrap_or(0);
        let least = (0..cost.layers.len()).map(|layer| cost.memory(layer..layer + 1)).min();
        let least = least.unwrap_or(0);
        if most < least {
            let (most, least) = (Size(most), Size(least));
            return Some(format!(
                "it offers {most}, and a stage of one layer with its KV cache takes {least}"
            ));
        }
        None
    }

    /// Those who are here and of no use to this model, for people.
    pub(super) fn unsuited_nodes(&self) -> impl Iterator<Item = (NodeId, String)> {
        let joined = self.members.joined().iter();
        joined.filter_map(|it| Some((it.node, unsuited(&self.config.model, it)?)))
    }
}
