//! How nodes are relieved: nothing new is placed on them, and what a drained one holds goes
//! elsewhere before it is let go.

use std::time::{Duration, Instant};

use protocol::{NodeId, PipelineId, SessionId};

use super::{Action, Cluster};
use crate::duty::Duty;
use crate::pipeline::Pipeline;

impl Cluster {
    /// An operator says what a node is there for, whether it is here or not.
    pub(crate) fn set_duty(&mut self, node: NodeId, duty: Duty, now: Instant) {
        if self.duties.set(node, duty, now) {
            self.actions.push(Action::Relieved(node, duty));
            self.duty_changed(now);
        }
    }

    /// A node wants to end with this session, if it is its newest.
    pub(super) fn drain_itself(&mut self, node: NodeId, session: SessionId, now: Instant) {
        if self.is_current(node, session) && self.duties.leave(node, session, now) {
            self.duty_changed(now);
        }
    }

    fn duty_changed(&mut self, now: Instant) {
        self.last_change = now;
        self.actions.push(Action::Publish);
        self.place_if_settled(now);
        self.retire(now);
    }

    /// Pipelines that are there to stay.
    pub(super) fn kept(&self) -> impl Iterator<Item = &Pipeline> {
        self.pipelines
            .values()
            .filter(|pipeline| !pipeline.is_draining() && !self.is_going(pipeline))
    }

    /// Whether a pipeline is on a node that is to hold nothing any more.
    fn is_going(&self, pipeline: &Pipeline) -> bool {
        self.duties.draining().any(|(node, _)| pipeline.is_on(node))
    }

    /// Gives up what drained nodes hold, once others do in its place or it is clear that they
    /// won't, and lets those nodes go that hold nothing any more.
    pub(super) fn retire(&mut self, now: Instant) {
        let patience = Duration::from_millis(self.config.coordinator.load_timeout_ms);
        let loading = self.kept().filter(|pipeline| !pipeline.is_ready());
        let moved = loading.map(|pipeline| pipeline.last_progress).max();
        let awaits_others = self.may_place() || moved.is_some();
        // A large model takes its time: as long as it comes, unless a load has failed already.
        let moved = moved.filter(|_| self.backoff.pause().is_zero());
        let has_waited = |since: Instant| {
            let since = moved.map_or(since, |moved| moved.max(since));
            !awaits_others || now.saturating_duration_since(since) >= patience
        };
        let over: Vec<(PipelineId, NodeId)> = self
            .duties
            .draining()
            .filter(|(_, since)| has_waited(*since))
            .flat_map(|(node, _)| {
                let on_it = self.pipelines.values().filter(move |it| it.is_on(node));
                on_it.filter(|it| !it.is_draining()).map(move |it| (it.id, node))
            })
            .collect();
        for (pipeline, node) in over {
            self.drain_pipeline(pipeline, &format!("node {node} is drained"), now);
        }
        let holds = |node: NodeId| self.pipelines.values().any(|it| it.is_on(node));
        let done: Vec<_> =
            self.duties.draining().map(|it| it.0).filter(|node| !holds(*node)).collect();
        for node in done {
            let is_here = self.members.joined().iter().any(|known| known.node == node);
            if is_here && self.duties.release(node) {
                self.actions.push(Action::Release(node));
                self.actions.push(Action::Publish);
            }
        }
    }
}
