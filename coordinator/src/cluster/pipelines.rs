//! How pipelines come and go: placed over the nodes that are free, routed to once every stage has
//! echoed its plan and its links are open, and given up with what ran in them back in the queue.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use protocol::message::{LoadProgress, StageFailed};
use protocol::{Blame, Epoch, NodeId, PipelineId, StageEcho, StageId};

use super::{Action, Cluster, Returning};
use crate::history::Decision;
use crate::lane::Lane;
use crate::pipeline::Pipeline;
use crate::placement::PlacementError;

/// The wire version since which steps carry masks.
const MASKS_SINCE: u16 = 5;

impl Cluster {
    pub(super) fn tick(&mut self, now: Instant) {
        self.disconnect_silent(now);
        self.let_in(now);
        self.give_up_returning(now);
        let stuck = |pipeline: &Pipeline| {
            let cause = pipeline.is_stuck(&self.config, now)?;
            Some((pipeline.id, pipeline.awaited(), cause))
        };
        let stuck: Vec<_> = self.pipelines.values().filter_map(stuck).collect();
        for (id, awaited, cause) in stuck {
            // They hang, or nobody reaches them: others may do better.
            awaited.into_iter().for_each(|node| self.trust.avoid(node, now, now));
            self.lose_pipeline(id, &cause, now);
        }
        self.end_drained(now);
        self.scale(now);
        self.place_if_settled(now);
        self.retire(now);
        self.measure_ways(now);
        self.give_up_waiting(now);
        // What steps took is shown as often as the clock is looked at, not with each of them.
        if self.known.take_news() {
            self.actions.push(Action::Publish);
        }
    }

    /// It, waiting for so many nodes before it places anything, whatever its configuration says.
    pub(crate) fn expecting(self, num_nodes: usize) -> Self {
        Self { expected: Some(num_nodes), ..self }
    }

    /// Nodes that the configuration speaks of; 0 when it names no number.
    pub(super) fn num_expected(&self) -> usize {
        if let Some(expected) = self.expected {
            return expected;
        }
        let coordinator = &self.config.coordinator;
        let wanted = self.wanted().unwrap_or(1);
        // Where pipelines come one by one, those for the next.
        let wanted =
            if self.scaling.is_some() { wanted.min(self.kept().count() + 1) } else { wanted };
        match (self.num_local(wanted), coordinator.num_stages() * wanted) {
            (0, num_stages) => num_stages,
            (num_local, 0) => num_local,
            // More of them are spares, for which nobody waits.
            (num_local, num_stages) => num_local.min(num_stages),
        }
    }

    /// The pipeline is of no more use: whatever ran in it waits for another, its nodes drop its
    /// stages.
    pub(super) fn lose_pipeline(&mut self, id: PipelineId, cause: &str, now: Instant) {
        let Some(mut pipeline) = self.pipelines.remove(&id) else { return };
        self.trouble = cause.to_owned();
        if pipeline.lane.is_none() {
            self.backoff.failed();
        } else {
            // It had loaded: whatever failed since then were loads of others.
            self.backoff.reset();
            let num_sequences = self.evict(&mut pipeline, cause, now);
            let cause = cause.to_owned();
            self.actions.push(Action::Moved { pipeline: id, cause, num_sequences });
        }
        self.unload(&pipeline, now);
    }

    /// Whatever runs in a pipeline that is gone waits for another: so many sequences.
    pub(super) fn evict(&mut self, pipeline: &mut Pipeline, cause: &str, now: Instant) -> usize {
        let Some(lane) = &mut pipeline.lane else { return 0 };
        let evicted = lane.evict();
        let num_sequences = evicted.len();
        for sequence in evicted {
            let moved = Decision::Moved { pipeline: pipeline.id, cause: cause.to_owned() };
            let (request, choice) = (sequence.request_id(), Some(sequence.choice));
            self.history.record(request, choice, moved, now);
            self.queue.put(sequence, now);
        }
        if self.open_lanes().next().is_none() {
            self.unserved_since.get_or_insert(now);
        }
        self.find_stranded(now);
        num_sequences
    }

    /// The nodes of a pipeline that is gone drop its stages.
    pub(super) fn unload(&mut self, pipeline: &Pipeline, now: Instant) {
        // Its nodes may do together with those that were too few without them.
        (self.last_change, self.misplaced) = (now, None);
        let id = pipeline.id;
        let joined = self.members.joined().iter().map(|known| known.node);
        let holding = joined.filter(|node| pipeline.is_on(*node));
        self.actions.extend(holding.map(|node| Action::Unload(node, id, pipeline.epoch)));
        self.actions.push(Action::Publish);
    }

    /// Places the model once the nodes that are expected have joined. Where the configuration
    /// names no number of local nodes, fewer than expected will do when nobody else came for a
    /// while: several stages can share a node.
    pub(super) fn place_if_settled(&mut self, now: Instant) {
        if self.is_stopping || self.num_away() > 0 {
            return;
        }
        let are_back = self.are_back();
        let num_missing = self.num_missing();
        if !self.may_place() {
            return;
        }
        let quiet = now.saturating_duration_since(self.last_change);
        let expected = self.num_expected();
        let all_here = expected > 0 && self.usable().count() >= expected;
        let settle = Duration::from_millis(self.config.coordinator.settle_ms);
        let awaits_local = self.has_local_nodes() && self.num_here() < expected;
        let settled = !awaits_local && quiet >= settle;
        if quiet >= self.backoff.pause() && (all_here || settled || are_back) {
            for num_missing in (1..=num_missing).rev() {
                if !self.place(num_missing, true, now) && self.places_fewest() {
                    break;
                }
            }
            self.returning = Returning::default();
        }
    }

    /// Pipelines that could be made of the nodes that are free.
    fn num_missing(&self) -> usize {
        let num_free = self.free().count();
        let wanted = self.wanted().unwrap_or(usize::MAX);
        wanted.saturating_sub(self.kept().count()).min(num_free)
    }

    /// Whether there are nodes to place one on that haven't turned out to be too few.
    pub(super) fn may_place(&self) -> bool {
        self.num_missing() > 0 && self.misplaced != Some(self.last_change)
    }

    /// Makes a pipeline of free nodes, and says whether there are some for one: as many as are left
    /// for one of `num_missing`, or, where placement decides, the fewest that hold the model. It
    /// `avoids` those that there is reason to, where the others do.
    fn place(&mut self, num_missing: usize, avoids: bool, now: Instant) -> bool {
        let epoch = Epoch { start: self.start, counter: self.num_plans + 1 };
        let is_new = |id: &PipelineId| !self.pipelines.contains_key(id);
        let id = (0..).map(PipelineId).find(is_new).expect("ids outnumber pipelines");
        let Some(mut free) = self.trusted(avoids, now) else { return false };
        let leaves_out = free.len() < self.free().count();
        // Nodes of one pipeline stay together.
        free.sort_by_key(|it| self.returning.place_of(it.node));
        let keep = match self.are_back() {
            true => f64::INFINITY,
            false => self.config.coordinator.recut_gain,
        };
        let coordinator = &self.config.coordinator;
        let fewest = self.places_fewest();
        let free: Vec<_> = match (fewest, free.len()) {
            (_, 0) => return false,
            (true, _) => free,
            (_, num_free) => free.into_iter().take(num_free.div_ceil(num_missing)).collect(),
        };
        let num_places = free.iter().map(|node| node.adapters.len()).sum::<usize>();
        let most = num_places.min(self.model.cost.layers.len());
        let num_stages: Vec<_> = match (fewest, coordinator.num_stages()) {
            // The fewest that hold the model: the rest makes further pipelines.
            (true, 0) => (1..=most).collect(),
            // All of them, but for those that are too small for a layer.
            (_, 0) => (1..=most).rev().collect(),
            (_, stages) => vec![stages],
        };
        let mut plans = num_stages.iter().map(|&num_stages| {
            let nodes = (free.as_slice(), &self.known, keep);
            let place = (id, epoch);
            (num_stages, Pipeline::plan(&self.config, &self.model, nodes, num_stages, place, now))
        });
        // Where all of them don't do, that is what is said. Only memory asks for another number.
        let planned = plans.try_fold(None, |said, (num_stages, plan)| match plan {
            Err(error @ PlacementError::TooSmall { .. }) if num_stages == most => {
                ControlFlow::Continue(Some(error))
            }
            Err(error @ PlacementError::TooSmall { .. }) => {
                ControlFlow::Continue(said.or(Some(error)))
            }
            planned => ControlFlow::Break(planned),
        });
        drop(plans);
        let planned = match planned {
            ControlFlow::Break(planned) => planned.map_err(Some),
            ControlFlow::Continue(error) => Err(error),
        };
        match planned {
            Ok(pipeline) => {
                self.num_plans += 1;
                for stage in &pipeline.stages {
                    self.known.unask(stage.node);
                    self.actions.push(Action::Load(stage.node, Box::new(stage.plan.clone())));
                }
                self.pipelines.insert(id, pipeline);
                self.actions.push(Action::Publish);
                true
            }
            // The others are enough by their number, and too small.
            Err(_) if leaves_out => self.place(num_missing, false, now),
            Err(error) => {
                if let Some(PlacementError::TooSmall { fewest: Some(fewest), .. }) = &error {
                    self.too_few(*fewest);
                }
                // The same nodes hold no more when they are asked again.
                self.misplaced = Some(self.last_change);
                let may_idle = fewest && !self.pipelines.is_empty();
                let cause = error.filter(|_| !may_idle).map(|error| error.to_string());
                if let Some(cause) = cause
                    && self.trouble != cause
                {
                    self.trouble.clone_from(&cause);
                    self.actions.push(Action::Stuck(cause));
                    self.actions.push(Action::Publish);
                }
                false
            }
        }
    }

    pub(super) fn progress(&mut self, progress: LoadProgress, now: Instant) {
        let pipeline = self.pipeline_of(progress.id);
        if pipeline.is_some_and(|pipeline| pipeline.has_moved(&progress, now)) {
            self.actions.push(Action::Publish);
        }
    }

    pub(super) fn stage_ready(&mut self, echo: StageEcho, now: Instant) {
        let id = echo.id;
        let pipeline = self.pipelines.get_mut(&id.pipeline).filter(|it| it.epoch == id.epoch);
        let Some(pipeline) = pipeline else { return };
        let Some(stage) = pipeline.stages.get_mut(id.stage.index()) else { return };
        if stage.node != echo.node || stage.echo.is_some() {
            return;
        }
        if let Some(mismatch) = stage.mismatch(&echo, &self.model) {
            let cause = format!("stage {} on node {} {mismatch}", id.stage, echo.node);
            self.lose_pipeline(id.pipeline, &cause, now);
            return;
        }
        pipeline.last_progress = now;
        self.known.hold(stage.node, &stage.plan, self.model.cost.layers.len());
        stage.loading.loaded_bytes = echo.memory_bytes;
        stage.loading = stage.loading.bounded();
        stage.echo = Some(echo);
        if pipeline.is_loaded() {
            self.actions.push(Action::Connect(pipeline.stages[0].node, id.first()));
        }
        self.actions.push(Action::Publish);
    }

    /// Each stage opens its links when the one before it has opened the link to it: with the last
    /// one's, a step has a way all around.
    pub(super) fn stage_linked(&mut self, node: NodeId, id: StageId, now: Instant) {
        let pipeline = self.pipelines.get_mut(&id.pipeline).filter(|it| it.epoch == id.epoch);
        let Some(pipeline) = pipeline else { return };
        if !pipeline.link(node, id.stage, now) {
            return;
        }
        let members = &self.members;
        let takes_masks = |node| members.wire_version(node) >= Some(MASKS_SINCE);
        if let Some(capacity) = pipeline.capacity(self.model.id, takes_masks) {
            pipeline.lane =
                Some(Lane::new(self.config.scheduler.clone(), capacity).of(id.pipeline));
            self.trouble.clear();
            self.backoff.reset();
            (self.has_served, self.unserved_since) = (true, None);
            self.find_stranded(now);
        }
        self.actions.push(Action::Publish);
    }

    pub(super) fn stage_failed(&mut self, failed: &StageFailed, now: Instant) {
        let cause = format!("stage {} on node {}: {}", failed.id.stage, failed.node, failed.cause);
        let pipeline = self.pipelines.get(&failed.id.pipeline);
        let pipeline = pipeline.filter(|it| it.epoch == failed.id.epoch);
        if let Blame::Memory(num_bytes) = failed.blame
            && let Some(stage) = pipeline.and_then(|it| it.stages.get(failed.id.stage.index()))
        {
            // The next placement gives it less.
            self.known.lacked((stage.node, stage.plan.adapter), num_bytes);
        }
        self.stage_gone(failed.id, &cause, failed.blame, now);
    }

    /// A link between the coordinator and a stage has ended.
    pub(super) fn link_lost(&mut self, id: StageId, cause: &str, now: Instant) {
        // Most often since the node is gone, which shows in a moment.
        let Some(node) = self.node_of(id, Blame::Own) else { return };
        self.trust.avoid(node, now + self.silence(), now);
        self.lose_pipeline(id.pipeline, cause, now);
    }

    /// A stage is of no more use, and says whose fault it is.
    pub(super) fn stage_gone(&mut self, id: StageId, cause: &str, blame: Blame, now: Instant) {
        let Some(node) = self.node_of(id, blame) else { return };
        match blame {
            Blame::Own | Blame::Memory(_) => {
                self.trust.avoid(node, now, now);
                if self.pipelines[&id.pipeline].is_ready() {
                    self.node_failed(node, cause, now);
                }
            }
            Blame::Before | Blame::Next => self.trust.avoid(node, now + self.silence(), now),
        }
        self.lose_pipeline(id.pipeline, cause, now);
    }

    /// Whether a stage is of a pipeline as it is now, and no older one.
    pub fn stands(&self, id: StageId) -> bool {
        self.pipelines.get(&id.pipeline).is_some_and(|it| it.epoch == id.epoch)
    }

    /// The node of a stage, or of its neighbour; none when the stage is of another epoch.
    fn node_of(&self, id: StageId, blame: Blame) -> Option<NodeId> {
        let pipeline = self.pipelines.get(&id.pipeline).filter(|it| it.epoch == id.epoch)?;
        let num_stages = pipeline.stages.len();
        let away = match blame {
            Blame::Own | Blame::Memory(_) => 0,
            Blame::Before => num_stages - 1,
            Blame::Next => 1,
        };
        // Masks have a link of their own to the last.
        let stage = pipeline.stages.get(id.stage.index().min(num_stages - 1))?;
        let at = (stage.plan.id.stage.index() + away) % num_stages;
        Some(pipeline.stages[at].node)
    }
}
