//! How many pipelines are wanted, and how many nodes that takes: as configured, or as the
//! autoscaler decides.

use std::cmp::Reverse;
use std::time::Instant;

use protocol::NodeReport;

use super::{Action, Cluster};
use crate::autoscaler::{Autoscaler, Observation};
use crate::pipeline::Pipeline;
use crate::request::Priority;
use crate::sequence::Sequence;
use crate::status::ScalingStatus;

/// The autoscaler, and what was made of it.
#[derive(Debug)]
pub(super) struct Scaling {
    autoscaler: Autoscaler,
    /// Nodes of the pipeline that was placed last.
    nodes_each: usize,
    staffing: Staffing,
}

/// How many nodes there are to be: whoever can bring nodes and take them away makes it so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Staffing {
    /// Pipelines that are wanted.
    pub num_pipelines: usize,
    /// Nodes that they take, and as many more as are here and may serve nothing.
    pub num_nodes: usize,
    /// Nodes that have joined, without those that have said that they go.
    pub num_joined: usize,
    /// Nodes that are of no use to any pipeline that is wanted.
    pub idle: Vec<Idle>,
}

/// A node on which nothing is placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idle {
    /// Its process.
    pub pid: u32,
    /// On which machine.
    pub hostname: String,
}

impl Cluster {
    pub(super) fn scaling(config: &protocol::config::Config) -> Option<Scaling> {
        config.autoscaler.enabled.then(|| Scaling {
            autoscaler: Autoscaler::new(config),
            nodes_each: config.coordinator.num_stages().max(1),
            staffing: Staffing::default(),
        })
    }

    /// Pipelines that are wanted; none: as many as there are nodes for.
    pub(super) fn wanted(&self) -> Option<usize> {
        match (&self.scaling, self.config.coordinator.pipelines) {
            (Some(scaling), _) => Some(scaling.autoscaler.wanted()),
            (None, 0) => None,
            (None, wanted) => Some(wanted as usize),
        }
    }

    /// Whether each pipeline gets the fewest nodes that hold the model, so that others are left
    /// for more pipelines.
    pub(super) fn places_fewest(&self) -> bool {
        self.scaling.is_some() || self.config.coordinator.pipelines == 0
    }

    /// Whether no pipeline is wanted until somebody asks for something.
    pub(super) fn is_asleep(&self) -> bool {
        self.wanted() == Some(0) && self.pipelines.is_empty()
    }

    /// Child processes for so many pipelines.
    pub(super) fn num_local(&self, num_pipelines: usize) -> usize {
        let (fewest, scaler) = (self.config.coordinator.local_nodes, &self.config.autoscaler);
        let most = if scaler.enabled { scaler.max_local_nodes as usize } else { 0 };
        let share = (most * num_pipelines).div_ceil(scaler.max_pipelines as usize);
        share.min(most).max(fewest as usize)
    }

    /// Whether child processes are run at all: nobody else is waited for then.
    pub(super) fn has_local_nodes(&self) -> bool {
        self.config.coordinator.local_nodes > 0 || self.num_local(1) > 0
    }

    /// Gives up pipelines beyond those that are wanted: first those that don't serve yet, then
    /// those with the least left to compute.
    fn drain_surplus(&mut self, now: Instant) {
        let Some(wanted) = self.wanted() else { return };
        let left =
            |pipeline: &Pipeline| pipeline.lane.as_ref().map(|lane| lane.num_outstanding_tokens());
        let mut kept: Vec<_> = self.kept().map(|it| (left(it), Reverse(it.epoch), it.id)).collect();
        kept.sort_unstable();
        for (.., id) in &kept[..kept.len().saturating_sub(wanted)] {
            self.drain_pipeline(*id, "fewer pipelines are wanted", now);
        }
    }

    /// Looks at the load, and sees to it that there are as many pipelines as are wanted.
    pub(super) fn scale(&mut self, now: Instant) {
        let seen = self.observe(now);
        let has_changed = self.seen.replace(seen) != Some(seen);
        let Some(scaling) = &mut self.scaling else {
            if has_changed {
                self.actions.push(Action::Observed(seen));
            }
            // Where a node is taken back that was drained, what was to take its place is too much.
            self.drain_surplus(now);
            return;
        };
        if self.is_stopping {
            return;
        }
        if let Some(decision) = scaling.autoscaler.decide(seen, now) {
            self.actions.push(Action::Scaled(Box::new(decision)));
            self.actions.push(Action::Publish);
            if decision.from == 0 {
                // Those who come meanwhile wait for a pipeline from now on.
                self.unserved_since = Some(now);
            }
        }
        if has_changed {
            self.actions.push(Action::Observed(seen));
        }
        self.drain_surplus(now);
        self.staff();
    }

    /// Whoever asks for something wakes a cluster that sleeps.
    pub(super) fn wake(&mut self, now: Instant) {
        if self.wanted() == Some(0) {
            self.scale(now);
            self.place_if_settled(now);
        }
    }

    fn observe(&self, now: Instant) -> Observation {
        let counts_offline = self.config.autoscaler.count_offline;
        let counts = |priority| counts_offline || priority != Priority::Offline;
        let mut seen = Observation {
            num_serving: self.open_lanes().count(),
            num_open: self.requests.len(),
            ..Observation::default()
        };
        let lanes = self.pipelines.values().filter_map(|pipeline| pipeline.lane.as_ref());
        let running = lanes.flat_map(|lane| lane.running());
        for sequence in running.filter(|it: &&Sequence| counts(it.priority())) {
            seen.num_sequences += 1;
            seen.num_tokens += sequence.num_tokens();
        }
        // Of those who wait there may be a million: the queue keeps count.
        for priority in Priority::ALL.into_iter().filter(|priority| counts(*priority)) {
            seen.num_sequences += self.queue.num_waiting(priority);
            seen.num_tokens += self.queue.num_tokens(priority);
            let since = self.queue.oldest(priority);
            let wait = since.map(|since| now.saturating_duration_since(since));
            seen.longest_wait = seen.longest_wait.max(wait.unwrap_or_default());
        }
        seen
    }

    /// The model doesn't fit on the free nodes. So many adapters as the largest of them hold it:
    /// their nodes are to come, where nobody has said how many a pipeline takes.
    pub(super) fn too_few(&mut self, num_adapters: usize) {
        let most = self.free().map(|it| it.adapters.len()).max().unwrap_or(0).max(1);
        let is_open = self.config.coordinator.num_stages() == 0 && self.pipelines.is_empty();
        if let Some(scaling) = self.scaling.as_mut().filter(|_| is_open) {
            scaling.nodes_each = scaling.nodes_each.max(num_adapters.div_ceil(most));
        }
    }

    /// Says how many nodes there are to be, when that or who could go has changed.
    fn staff(&mut self) {
        let Some(num_pipelines) = self.wanted() else { return };
        let joined = self.members.joined();
        let is_short = self.kept().count() < num_pipelines;
        // The longest known stay: what they hold on disk is of use.
        let mut idle: Vec<_> = self.free().filter(|_| !is_short).collect();
        idle.reverse();
        let idle =
            idle.into_iter().map(|node| Idle { pid: node.pid, hostname: node.hostname.clone() });
        let idle = idle.collect();
        let stays = |it: &&NodeReport| !self.duties.is_leaving(it.node);
        let serves = |it: &NodeReport| self.kept().any(|pipeline| pipeline.is_on(it.node));
        let num_joined = joined.iter().filter(stays).count();
        // An operator may take them back, so they aren't given up: others come in their place.
        let useless = joined.iter().filter(stays).filter(|it| !self.is_usable(it) && !serves(it));
        let num_useless = if num_pipelines > 0 { useless.count() } else { 0 };
        let newest = self.pipelines.values().max_by_key(|pipeline| pipeline.epoch);
        let nodes_each =
            newest.map(|newest| joined.iter().filter(|it| newest.is_on(it.node)).count());
        let has_local = self.config.autoscaler.max_local_nodes > 0;
        let num_local = self.num_local(num_pipelines);
        let Some(scaling) = &mut self.scaling else { return };
        scaling.nodes_each = nodes_each.unwrap_or(scaling.nodes_each).max(1);
        let num_nodes = match has_local {
            true => num_local,
            false => num_pipelines * scaling.nodes_each + num_useless,
        };
        let staffing = Staffing { num_pipelines, num_nodes, num_joined, idle };
        if scaling.staffing != staffing {
            scaling.staffing = staffing.clone();
            self.actions.push(Action::Staff(staffing));
        }
    }

    pub(super) fn scaling_status(&self) -> Option<ScalingStatus> {
        let Scaling { autoscaler, staffing, .. } = self.scaling.as_ref()?;
        let config = &self.config.autoscaler;
        Some(ScalingStatus {
            wanted: autoscaler.wanted(),
            min: config.min_pipelines as usize,
            max: config.max_pipelines as usize,
            num_nodes: staffing.num_nodes,
            load: autoscaler.load(),
            is_asleep: self.is_asleep(),
            decisions: autoscaler.decisions().copied().collect(),
        })
    }
}
