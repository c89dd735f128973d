//! A coordinator that has started again: the nodes of its last pipelines still hold their layers.
//! They are waited for, and get what they had.

use std::time::{Duration, Instant};

use protocol::NodeId;

use super::Cluster;

/// Who is to come back, and how long that may take.
#[derive(Debug, Default)]
pub(super) struct Returning {
    // In the order of their pipelines and stages.
    nodes: Vec<NodeId>,
    until: Option<Instant>,
}

impl Returning {
    /// Where a node comes among those that are to come back.
    pub(super) fn place_of(&self, node: NodeId) -> usize {
        self.nodes.iter().position(|it| *it == node).unwrap_or(self.nodes.len())
    }
}

impl Cluster {
    /// These nodes had pipelines before the coordinator started again, in this order.
    pub(crate) fn expect_back(&mut self, nodes: Vec<NodeId>, now: Instant) {
        let max = Duration::from_millis(self.config.coordinator.rejoin_ms);
        let until = (!nodes.is_empty()).then_some(now + max);
        self.returning = Returning { nodes, until };
    }

    /// How many of them aren't here yet.
    pub(super) fn num_away(&self) -> usize {
        let is_here = |node: NodeId| self.members.joined().iter().any(|it| it.node == node);
        self.returning.nodes.iter().filter(|node| !is_here(**node)).count()
    }

    /// Whether they are all here, and nothing was placed on them yet: then nobody else is waited
    /// for, and no layer moves.
    pub(super) fn are_back(&self) -> bool {
        !self.returning.nodes.is_empty() && self.num_away() == 0
    }

    /// Whoever took too long isn't waited for any more.
    pub(super) fn give_up_returning(&mut self, now: Instant) {
        if self.returning.until.is_some_and(|until| now >= until) {
            self.returning = Returning::default();
        }
    }
}
