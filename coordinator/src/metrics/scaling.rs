//! How much is asked for, and how many pipelines and nodes that takes.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DirectionLabels {
    direction: &'static str,
}

/// Gauges for whoever brings nodes, and counters of what was decided.
#[derive(Debug, Default)]
pub(super) struct ScalingSeries {
    tokens_in_flight: Gauge,
    pipelines: Gauge,
    pipelines_wanted: Gauge,
    nodes_wanted: Gauge,
    decisions: Family<DirectionLabels, Counter>,
}

impl ScalingSeries {
    pub(super) fn register(&self, ours: &mut Registry) {
        let nodes = "Nodes that there are to be: what the autoscaler's pipelines take, and as many \
                     more as may serve nothing";
        let gauges = [
            ("tokens_in_flight", "Tokens of what runs and waits", &self.tokens_in_flight),
            ("pipelines", "Pipelines that serve", &self.pipelines),
            ("pipelines_wanted", "Pipelines that the autoscaler wants", &self.pipelines_wanted),
            ("nodes_wanted", nodes, &self.nodes_wanted),
        ];
        for (name, help, gauge) in gauges {
            ours.register(name, help, gauge.clone());
        }
        for direction in ["up", "down"] {
            drop(self.decisions.get_or_create(&DirectionLabels { direction }));
        }
        let help = "Changes of the number of pipelines wanted, by direction";
        ours.register("scaling_decisions", help, self.decisions.clone());
    }

    pub(super) fn observed(&self, num_tokens: usize, num_pipelines: usize) {
        self.tokens_in_flight.set(num_tokens as i64);
        self.pipelines.set(num_pipelines as i64);
    }

    pub(super) fn decided(&self, from: usize, to: usize) {
        let direction = if to > from { "up" } else { "down" };
        self.decisions.get_or_create(&DirectionLabels { direction }).inc();
    }

    pub(super) fn wanted(&self, num_pipelines: usize, num_nodes: usize) {
        self.pipelines_wanted.set(num_pipelines as i64);
        self.nodes_wanted.set(num_nodes as i64);
    }
}
