//! What the queue and the lanes do: who had to give way, what moved, what the prefix cache found.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::ReasonLabels;
use crate::block_manager::Miss;
use crate::lane::Prefix;
use crate::request::Priority;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ClassLabels {
    class: &'static str,
}

#[derive(Debug)]
pub(super) struct SchedulingSeries {
    queue_depth: Family<ClassLabels, Gauge>,
    // Of each priority: set whenever anything happens, so not looked up.
    depths: [Gauge; Priority::ALL.len()],
    preempted: Family<ClassLabels, Counter>,
    moved: Counter,
    pub(super) prefix_queries: Counter,
    pub(super) prefix_hits: Counter,
    prefix_misses: Family<ReasonLabels, Counter>,
}

impl Default for SchedulingSeries {
    fn default() -> Self {
        let queue_depth = Family::<ClassLabels, Gauge>::default();
        let depth = |priority: Priority| {
            queue_depth.get_or_create(&ClassLabels { class: priority.name() }).clone()
        };
        Self {
            depths: Priority::ALL.map(depth),
            queue_depth,
            preempted: Family::default(),
            moved: Counter::default(),
            prefix_queries: Counter::default(),
            prefix_hits: Counter::default(),
            prefix_misses: Family::default(),
        }
    }
}

impl SchedulingSeries {
    pub(super) fn register(&self, ours: &mut Registry) {
        let help = "Sequences that wait, by priority";
        ours.register("queue_depth", help, self.queue_depth.clone());
        let help = "Running sequences that had to give way, by their priority";
        ours.register("preempted_sequences", help, self.preempted.clone());
        let help = "Sequences of lost pipelines that went back to the queue";
        ours.register("moved_sequences", help, self.moved.clone());
        let help = "Tokens of admitted prompts, looked for in the prefix cache";
        ours.register("prefix_cache_queries", help, self.prefix_queries.clone());
        let help = "Tokens of admitted prompts that the prefix cache had";
        ours.register("prefix_cache_hits", help, self.prefix_hits.clone());
        let help = "Tokens of admitted prompts that the prefix cache didn't have, by reason";
        ours.register("prefix_cache_misses", help, self.prefix_misses.clone());
    }

    pub(super) fn queued(&self, num_waiting: [usize; Priority::ALL.len()]) {
        for (depth, num_waiting) in self.depths.iter().zip(num_waiting) {
            depth.set(num_waiting as i64);
        }
    }

    pub(super) fn preempted(&self, priority: Priority) {
        self.preempted.get_or_create(&ClassLabels { class: priority.name() }).inc();
    }

    pub(super) fn moved(&self, num_sequences: usize) {
        self.moved.inc_by(num_sequences as u64);
    }

    pub(super) fn prefix(&self, prefix: Prefix) {
        self.prefix_queries.inc_by(prefix.num_looked_for as u64);
        self.prefix_hits.inc_by(prefix.num_found as u64);
        for (reason, num_missed) in Miss::ALL.into_iter().zip(prefix.num_missed) {
            let labels = ReasonLabels { reason: reason.name() };
            self.prefix_misses.get_or_create(&labels).inc_by(num_missed as u64);
        }
    }
}
