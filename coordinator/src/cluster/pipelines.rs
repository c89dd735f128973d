//! How pipelines come and go: placed over the nodes that are free, routed to once every stage has
//! echoed its plan, and given up with what ran in them back in the queue.

use std::time::{Duration, Instant};

use protocol::message::{Progress, StageFailed};
use protocol::{Epoch, NodeReport, PipelineId, StageEcho};

use super::{Action, Cluster};
use crate::lane::Lane;
use crate::pipeline::Pipeline;

impl Cluster {
    pub(super) fn tick(&mut self, now: Instant) {
        let coordinator = &self.config.coordinator;
        let load_timeout = Duration::from_millis(coordinator.load_timeout_ms);
        let step_timeout = Duration::from_millis(coordinator.step_timeout_ms);
        let since = |then: Instant| now.saturating_duration_since(then);
        let hangs = |pipeline: &Pipeline| match &pipeline.lane {
            None => (since(pipeline.last_progress) > load_timeout).then(|| {
                let seconds = load_timeout.as_secs();
                format!("loading made no progress for {seconds} s (coordinator.load_timeout_ms)")
            }),
            Some(lane) => {
                lane.oldest_step().is_some_and(|then| since(then) > step_timeout).then(|| {
                    let seconds = step_timeout.as_secs();
                    format!("a step took longer than {seconds} s (coordinator.step_timeout_ms)")
                })
            }
        };
        let hanging: Vec<_> =
            self.pipelines.values().filter_map(|it| Some((it.id, hangs(it)?))).collect();
        for (id, cause) in hanging {
            self.lose_pipeline(id, &cause, now);
        }
        self.place_if_settled(now);
        self.give_up_waiting(now);
    }

    /// Pipelines to keep, where there are nodes for them.
    fn num_pipelines(&self) -> usize {
        self.config.coordinator.pipelines.max(1) as usize
    }

    /// Nodes that the configuration speaks of; 0 when it names no number.
    pub(super) fn num_expected(&self) -> usize {
        match (self.config.coordinator.local_nodes, self.config.coordinator.stages) {
            (0, stages) => stages as usize * self.num_pipelines(),
            (local_nodes, _) => local_nodes as usize,
        }
    }

    /// The pipeline is of no more use: whatever ran in it waits for another, its nodes drop its
    /// stages.
    pub(super) fn lose_pipeline(&mut self, id: PipelineId, cause: &str, now: Instant) {
        let Some(mut pipeline) = self.pipelines.remove(&id) else { return };
        self.trouble = cause.to_owned();
        self.last_change = now;
        match &mut pipeline.lane {
            None => self.backoff.failed(),
            Some(lane) => {
                let evicted = lane.evict();
                self.actions.push(Action::Moved(evicted.len()));
                for sequence in evicted {
                    self.queue.put(sequence, now);
                }
                if !self.is_serving() {
                    self.unserved_since = Some(now);
                }
            }
        }
        let mut nodes: Vec<_> = pipeline.stages.iter().map(|stage| stage.node).collect();
        nodes.dedup();
        nodes.retain(|node| self.nodes.iter().any(|known| known.node == *node));
        let unload = |node| Action::Unload(node, id, pipeline.epoch);
        self.actions.extend(nodes.into_iter().map(unload));
        self.actions.push(Action::Publish);
    }

    /// Places the model once the nodes that are expected have joined. Where the configuration
    /// names no number of local nodes, fewer than expected will do when nobody else came for a
    /// while: several stages can share a node.
    pub(super) fn place_if_settled(&mut self, now: Instant) {
        if self.is_stopping {
            return;
        }
        let is_free = |node: &&NodeReport| !self.pipelines.values().any(|it| it.is_on(node.node));
        let num_free = self.nodes.iter().filter(is_free).count();
        let num_missing = self.num_pipelines().saturating_sub(self.pipelines.len()).min(num_free);
        if num_missing == 0 {
            return;
        }
        let quiet = now.saturating_duration_since(self.last_change);
        let expected = self.num_expected();
        let all_here = expected > 0 && self.nodes.len() >= expected;
        let settle = Duration::from_millis(self.config.coordinator.settle_ms);
        let settled = self.config.coordinator.local_nodes == 0 && quiet >= settle;
        if quiet >= self.backoff.pause() && (all_here || settled) {
            for i in 0..num_missing {
                self.place(num_missing - i, now);
            }
        }
    }

    /// Makes a pipeline of as many of the free nodes as are left for one of `num_missing`.
    fn place(&mut self, num_missing: usize, now: Instant) {
        let epoch = Epoch { start: self.start, counter: self.num_plans + 1 };
        let is_new = |id: &PipelineId| !self.pipelines.contains_key(id);
        let id = (0..).map(PipelineId).find(is_new).expect("ids outnumber pipelines");
        let is_free = |node: &&NodeReport| !self.pipelines.values().any(|it| it.is_on(node.node));
        let free: Vec<_> = self.nodes.iter().filter(is_free).collect();
        let nodes = &free[..free.len().div_ceil(num_missing)];
        match Pipeline::plan(&self.config, &self.model, nodes, (id, epoch), now) {
            Ok(pipeline) => {
                self.num_plans += 1;
                for stage in &pipeline.stages {
                    self.actions.push(Action::Load(stage.node, Box::new(stage.plan.clone())));
                }
                self.pipelines.insert(id, pipeline);
                self.actions.push(Action::Publish);
            }
            Err(error) => {
                let cause = error.to_string();
                if self.trouble != cause {
                    self.trouble.clone_from(&cause);
                    self.actions.push(Action::Stuck(cause));
                    self.actions.push(Action::Publish);
                }
            }
        }
    }

    pub(super) fn progress(&mut self, progress: Progress, now: Instant) {
        let of_epoch = |it: &&mut Pipeline| it.epoch == progress.epoch;
        let Some(pipeline) = self.pipelines.values_mut().find(of_epoch) else { return };
        pipeline.last_progress = now;
        if let Some(stage) = pipeline.stages.get_mut(progress.stage.index()) {
            stage.loaded_bytes = progress.loaded_bytes;
        }
        self.actions.push(Action::Publish);
    }

    pub(super) fn stage_ready(&mut self, echo: StageEcho, now: Instant) {
        let (hidden_size, model) = (self.model.hidden_size, self.model.id);
        let of_epoch = |it: &&mut Pipeline| it.epoch == echo.epoch;
        let Some(pipeline) = self.pipelines.values_mut().find(of_epoch) else { return };
        let id = pipeline.id;
        let Some(stage) = pipeline.stages.get_mut(echo.stage.index()) else { return };
        if stage.node != echo.node || stage.echo.is_some() {
            return;
        }
        // Only a stage that holds exactly what was asked of it is routed to.
        let mismatch = if echo.model != model {
            Some(format!("holds model {}, not {model}", echo.model))
        } else if echo.layers != stage.plan.layers {
            Some(format!("holds layers {}, not {}", echo.layers, stage.plan.layers))
        } else if echo.hidden_size != hidden_size {
            Some(format!("passes rows of {} f32s, not {hidden_size}", echo.hidden_size))
        } else if echo.num_blocks == 0 {
            Some("has no room for a KV cache".into())
        } else {
            None
        };
        if let Some(mismatch) = mismatch {
            let cause = format!("stage {} on node {} {mismatch}", echo.stage, echo.node);
            self.lose_pipeline(id, &cause, now);
            return;
        }
        pipeline.last_progress = now;
        stage.loaded_bytes = echo.memory_bytes;
        stage.echo = Some(echo);
        if let Some(capacity) = pipeline.capacity(model) {
            let (node, epoch) = (pipeline.stages[0].node, pipeline.epoch);
            pipeline.lane = Some(Lane::new(self.config.scheduler.clone(), capacity));
            self.trouble.clear();
            self.backoff.reset();
            (self.has_served, self.unserved_since) = (true, None);
            self.actions.push(Action::Connect { node, pipeline: id, epoch });
        }
        self.actions.push(Action::Publish);
    }

    pub(super) fn stage_failed(&mut self, failed: &StageFailed, now: Instant) {
        if let Some(id) = self.of_epoch(failed.epoch) {
            let cause = format!("stage {} on node {}: {}", failed.stage, failed.node, failed.cause);
            self.lose_pipeline(id, &cause, now);
        }
    }
}
