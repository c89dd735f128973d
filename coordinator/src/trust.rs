//! Which nodes new pipelines do without: for a moment those of whom a neighbour hears nothing any
//! more, for longer those that keep failing.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use protocol::NodeId;
use protocol::config::Coordinator;

/// How long a node is avoided, where there are others, after somebody had reason to.
const AVOIDED: Duration = Duration::from_secs(10);

/// What is known against nodes.
#[derive(Debug, Default)]
pub(crate) struct Trust {
    nodes: BTreeMap<NodeId, Record>,
}

#[derive(Debug, Default)]
struct Record {
    // Lately.
    failed_at: VecDeque<Instant>,
    // Since when it is avoided, and until when it may turn out to be gone.
    avoided: Option<(Instant, Instant)>,
    quarantine: Option<Quarantine>,
    num_quarantines: u32,
}

/// Why a node is left out, and how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Quarantine {
    /// It is let in again then.
    pub(crate) until: Instant,
    /// One sentence for a person.
    pub(crate) cause: String,
}

impl Trust {
    /// A node has ended, fallen silent, or lost a stage that served. How long it is left out for
    /// that, if that was once too often.
    pub(crate) fn failed(
        &mut self,
        node: NodeId,
        cause: &str,
        config: &Coordinator,
        now: Instant,
    ) -> Option<Duration> {
        let window = Duration::from_millis(config.node_failure_window_ms);
        let max = config.max_node_failures as usize;
        let record = self.nodes.entry(node).or_default();
        record.failed_at.push_back(now);
        record.failed_at.retain(|at| now.saturating_duration_since(*at) < window);
        let num = record.failed_at.len();
        if max == 0 || num <= max || record.quarantine.is_some() {
            return None;
        }
        let most = Duration::from_millis(config.max_quarantine_ms);
        let doublings = record.num_quarantines.min(20);
        let pause = most.min(Duration::from_millis(config.quarantine_ms) * (1 << doublings));
        record.num_quarantines += 1;
        record.failed_at.clear();
        let cause = format!(
            "it failed {num} times within {} s (coordinator.max_node_failures = {max}): {cause}",
            window.as_secs()
        );
        record.quarantine = Some(Quarantine { until: now + pause, cause });
        Some(pause)
    }

    /// A node is avoided for a while; until `gone_by` it may turn out to be gone.
    pub(crate) fn avoid(&mut self, node: NodeId, gone_by: Instant, now: Instant) {
        self.nodes.entry(node).or_default().avoided = Some((now, gone_by));
    }

    /// A node is here, however it was with it before.
    pub(crate) fn is_back(&mut self, node: NodeId) {
        if let Some(record) = self.nodes.get_mut(&node) {
            record.avoided = None;
        }
    }

    /// Whether a node is left out.
    pub(crate) fn is_out(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|it| it.quarantine.is_some())
    }

    /// Whether a node is only used where there is no other.
    pub(crate) fn is_avoided(&self, node: NodeId, now: Instant) -> bool {
        self.avoided(node, now).is_some()
    }

    /// Whether a node may turn out to be gone any moment.
    pub(crate) fn may_be_gone(&self, node: NodeId, now: Instant) -> bool {
        self.avoided(node, now).is_some_and(|gone_by| now < gone_by)
    }

    fn avoided(&self, node: NodeId, now: Instant) -> Option<Instant> {
        let (since, gone_by) = self.nodes.get(&node)?.avoided?;
        (now.saturating_duration_since(since) < AVOIDED).then_some(gone_by)
    }

    /// Those that are left out, and why.
    pub(crate) fn quarantined(&self) -> impl Iterator<Item = (NodeId, &Quarantine)> {
        self.nodes.iter().filter_map(|(node, record)| Some((*node, record.quarantine.as_ref()?)))
    }

    /// Those that are let in again; what is long ago is forgotten.
    pub(crate) fn tick(&mut self, config: &Coordinator, now: Instant) -> Vec<NodeId> {
        let mut let_in = Vec::new();
        for (node, record) in &mut self.nodes {
            if record.quarantine.as_ref().is_some_and(|it| it.until <= now) {
                record.quarantine = None;
                // Whoever fails again soon is left out for longer.
                record.failed_at.push_back(now);
                let_in.push(*node);
            }
        }
        let memory = Duration::from_millis(
            config.node_failure_window_ms.saturating_add(config.max_quarantine_ms),
        );
        self.nodes.retain(|_, record| {
            let last = record.failed_at.back().max(record.avoided.as_ref().map(|(at, _)| at));
            let is_recent = last.is_some_and(|at| now.saturating_duration_since(*at) < memory);
            record.quarantine.is_some() || is_recent
        });
        let_in
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(7);

    #[test]
    fn who_keeps_failing_is_left_out_for_longer_each_time() {
        let config = Coordinator::default();
        let (mut trust, mut now) = (Trust::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..60 {
            if let Some(pause) = trust.failed(NODE, "killed", &config, now) {
                assert!(trust.is_out(NODE));
                let (_, quarantine) = trust.quarantined().next().unwrap();
                assert!(quarantine.cause.contains("failed 6 times within 60 s"), "{quarantine:?}");
                pauses.push(pause.as_secs());
                assert_eq!(trust.tick(&config, now + pause - Duration::from_millis(1)), []);
                now += pause;
                assert_eq!(trust.tick(&config, now), [NODE]);
                assert!(!trust.is_out(NODE));
            }
            now += Duration::from_secs(1);
        }
        assert_eq!(pauses[..8], [10, 20, 40, 80, 160, 320, 600, 600]);
        // Who has behaved for long is as good as any.
        now += Duration::from_secs(3600);
        trust.tick(&config, now);
        assert!(trust.nodes.is_empty());
    }

    #[test]
    fn who_fails_now_and_then_stays() {
        let config = Coordinator::default();
        let (mut trust, mut now) = (Trust::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(trust.failed(NODE, "killed", &config, now), None);
            now += Duration::from_secs(13);
        }
        let any = Coordinator { max_node_failures: 0, ..config };
        assert!((0..100).all(|_| trust.failed(NODE, "killed", &any, now).is_none()));
    }

    #[test]
    fn who_may_be_gone_is_avoided_for_a_while() {
        let (mut trust, now) = (Trust::default(), Instant::now());
        let second = Duration::from_secs(1);
        trust.avoid(NODE, now + second, now);
        assert!(trust.is_avoided(NODE, now) && trust.may_be_gone(NODE, now));
        assert!(trust.is_avoided(NODE, now + second) && !trust.may_be_gone(NODE, now + second));
        assert!(!trust.is_avoided(NODE, now + AVOIDED));
        trust.is_back(NODE);
        assert!(!trust.is_avoided(NODE, now));
    }
}
