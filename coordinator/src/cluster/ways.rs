//! Which ways between nodes are measured, and when: each once both nodes are there, and again now
//! and then. One node measures at a time, and none to or from where something is computed.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use protocol::message::{FetchProgress, Measure, Ways as Measured};
use protocol::{NodeId, Peer};

use super::{Action, Cluster};

/// Ways that a node measures one after the other.
const MAX_AT_ONCE: usize = 8;

/// Between two looks where there was nothing to measure.
const LOOK_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Ways {
    // Who measures, and until when that is waited for.
    measuring: Option<(NodeId, Instant)>,
    // When each was asked for last, by the names of its ends in their order.
    asked: HashMap<(NodeId, NodeId), Instant>,
    quiet_until: Option<Instant>,
}

impl Ways {
    /// Somebody has come or gone, perhaps this one.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.asked.retain(|(a, b), _| *a != node && *b != node);
        self.measuring = self.measuring.filter(|(measuring, _)| *measuring != node);
        self.quiet_until = None;
    }

    /// Who of `idle` is to measure the ways to whom, if it is time.
    fn next(
        &mut self,
        idle: &[NodeId],
        (again, patience): (Option<Duration>, Duration),
        now: Instant,
    ) -> Option<(NodeId, Vec<NodeId>)> {
        let is_later = |until: Instant| now < until;
        if self.measuring.is_some_and(|(_, until)| is_later(until))
            || self.quiet_until.is_some_and(is_later)
        {
            return None;
        }
        let key = |a: NodeId, b: NodeId| (a.min(b), a.max(b));
        for (number, &from) in idle.iter().enumerate() {
            let is_due = |to: &NodeId| match (self.asked.get(&key(from, *to)), again) {
                (Some(asked), Some(again)) => now.saturating_duration_since(*asked) >= again,
                (asked, _) => asked.is_none(),
            };
            let due = idle[number + 1..].iter().copied().filter(is_due);
            let due: Vec<_> = due.take(MAX_AT_ONCE).collect();
            if !due.is_empty() {
                self.asked.extend(due.iter().map(|to| (key(from, *to), now)));
                self.measuring = Some((from, now + patience * due.len() as u32));
                return Some((from, due));
            }
        }
        self.quiet_until = Some(now + LOOK_PAUSE);
        None
    }
}

impl Cluster {
    pub(super) fn measure_ways(&mut self, now: Instant) {
        let coordinator = &self.config.coordinator;
        if coordinator.probe_bytes == 0 || self.is_stopping {
            return;
        }
        let is_busy = |node: NodeId| {
            self.pipelines.values().any(|it| {
                // What loads is on the way already.
                let works = it.lane.as_ref().is_none_or(|lane| lane.load().num_running > 0);
                works && it.is_on(node)
            })
        };
        let joined = self.members.joined().iter();
        let idle: Vec<_> = joined.map(|it| it.node).filter(|node| !is_busy(*node)).collect();
        let again = Duration::from_millis(coordinator.probe_interval_ms);
        let again = (!again.is_zero()).then_some(again);
        let timeouts = coordinator.probe_timeout_ms + self.config.transport.connect_timeout_ms;
        let patience = Duration::from_millis(timeouts);
        let Some((from, to)) = self.ways.next(&idle, (again, patience), now) else { return };
        let peer = |node: NodeId| {
            let known = self.members.joined().iter().find(|it| it.node == node)?;
            Some(Peer { node, addr: known.data_addr })
        };
        let nodes = to.into_iter().filter_map(peer).collect();
        let (num_bytes, timeout_ms) = (coordinator.probe_bytes, coordinator.probe_timeout_ms);
        self.actions.push(Action::Measure(from, Measure { nodes, num_bytes, timeout_ms }));
    }

    pub(super) fn ways_measured(&mut self, measured: &Measured) {
        let Measured { node, session, ways } = measured;
        if !self.is_current(*node, *session) {
            return;
        }
        self.ways.measuring = self.ways.measuring.filter(|(measuring, _)| measuring != node);
        for (other, speed) in ways {
            // Whoever is gone meanwhile is measured when it comes back.
            if self.members.joined().iter().any(|it| it.node == *other) {
                self.known.links.set((Some(*node), Some(*other)), *speed);
            }
        }
        self.actions.push(Action::Publish);
    }

    pub(super) fn fetching(&mut self, fetching: FetchProgress) {
        if self.is_current(fetching.node, fetching.session) {
            self.known.fetches(fetching);
            self.actions.push(Action::Publish);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGAIN: Duration = Duration::from_secs(100);
    const PATIENCE: Duration = Duration::from_secs(2);

    /// Goal: each way is measured once by either of its ends, one node at a time, and again later.
    #[test]
    fn every_way_is_measured_once_and_again_now_and_then() {
        let (mut ways, start) = (Ways::default(), Instant::now());
        let nodes: Vec<_> = (1..=4).map(NodeId).collect();
        let next = |ways: &mut Ways, nodes: &[NodeId], seconds: u64| {
            let now = start + Duration::from_secs(seconds);
            let found = ways.next(nodes, (Some(AGAIN), PATIENCE), now)?;
            Some((found.0.0, found.1.iter().map(|it| it.0).collect::<Vec<_>>()))
        };
        assert_eq!(next(&mut ways, &nodes[..2], 0), Some((1, vec![2])));
        assert_eq!(next(&mut ways, &nodes, 1), None, "one at a time");
        // It never answers: it is waited for so long.
        assert_eq!(next(&mut ways, &nodes, 2), Some((1, vec![3, 4])));
        ways.measuring = None;
        assert_eq!(next(&mut ways, &nodes, 3), Some((2, vec![3, 4])));
        ways.measuring = None;
        // One that computes is left in peace.
        assert_eq!(next(&mut ways, &nodes[..3], 4), None);
        ways.forget(NodeId(9));
        assert_eq!(next(&mut ways, &nodes, 4), Some((3, vec![4])));
        ways.measuring = None;
        assert_eq!(next(&mut ways, &nodes, 50), None);
        assert_eq!(next(&mut ways, &nodes, 101), Some((1, vec![2])));
        ways.measuring = None;
        // Whoever comes back is measured anew.
        ways.forget(NodeId(4));
        assert_eq!(next(&mut ways, &nodes, 101), Some((1, vec![4])));
        ways.measuring = None;
        let never = (None, PATIENCE);
        ways.asked.clear();
        assert!(ways.next(&nodes[..2], never, start + AGAIN).is_some());
        ways.measuring = None;
        assert!(ways.next(&nodes[..2], never, start + 9 * AGAIN).is_none());
    }
}
