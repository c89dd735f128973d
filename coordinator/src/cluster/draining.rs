//! How a pipeline is given up at nobody's cost: nothing begins there any more, and what runs ends
//! there, or, where that takes too long, goes on in another.

use std::time::{Duration, Instant};

use protocol::PipelineId;

use super::{Action, Cluster};
use crate::lane::Lane;
use crate::pipeline::Pipeline;
use crate::request::RequestError;

impl Cluster {
    /// What runs in the pipelines to which requests go.
    pub(super) fn open_lanes(&self) -> impl Iterator<Item = &Lane> {
        let open = self.pipelines.values().filter(|pipeline| !pipeline.is_draining());
        open.filter_map(|pipeline| pipeline.lane.as_ref())
    }

    /// The pipeline is to go. One that doesn't serve yet goes at once.
    pub(super) fn drain_pipeline(&mut self, id: PipelineId, cause: &str, now: Instant) {
        let Some(pipeline) = self.pipelines.get_mut(&id).filter(|it| !it.is_draining()) else {
            return;
        };
        pipeline.draining = Some((now, cause.to_owned()));
        if self.open_lanes().next().is_none() && self.has_served {
            self.unserved_since.get_or_insert(now);
        }
        self.find_stranded(now);
        self.actions.push(Action::Publish);
        self.end_drained(now);
    }

    /// Gives up the pipelines in which nothing runs any more, or has for too long.
    pub(super) fn end_drained(&mut self, now: Instant) {
        let limit = Duration::from_millis(self.config.coordinator.pipeline_drain_timeout_ms);
        let is_over = |pipeline: &&Pipeline| {
            let Some((since, _)) = &pipeline.draining else { return false };
            let is_idle = pipeline.lane.as_ref().is_none_or(Lane::is_idle);
            is_idle || now.saturating_duration_since(*since) >= limit
        };
        let over: Vec<_> = self.pipelines.values().filter(is_over).map(|it| it.id).collect();
        for id in over {
            let mut pipeline = self.pipelines.remove(&id).expect("it is there");
            let (_, cause) = pipeline.draining.take().expect("it is draining");
            let num_sequences = self.evict(&mut pipeline, &cause, now);
            self.actions.push(Action::Drained { pipeline: id, cause, num_sequences });
            self.unload(&pipeline, now);
        }
    }

    /// Whatever is open fails, and nothing is placed any more.
    pub(super) fn shut_down(&mut self, now: Instant) {
        self.is_stopping = true;
        let mut open: Vec<_> = self.requests.keys().copied().collect();
        open.sort_unstable();
        for request in open {
            self.fail_request(request, RequestError::ShuttingDown, now);
        }
        self.pipelines.clear();
    }
}
