//! How long requests wait for a pipeline that can take them.

use std::time::{Duration, Instant};

use super::Cluster;
use crate::request::RequestError;

impl Cluster {
    /// The pipelines that serve are others than before: some may be too small for whom a larger one
    /// would have taken, or of another class than whoever insists on exact answers began in.
    pub(super) fn find_stranded(&mut self, now: Instant) {
        let capacities: Vec<_> = self.open_lanes().map(|lane| lane.capacity()).collect();
        if capacities.is_empty() {
            return;
        }
        let waiting = self.queue.waiting().map(|waits| waits.sequence);
        let stranded = waiting.filter(|it| !capacities.iter().any(|of| of.can_take(it)));
        let stranded = stranded.map(|it| {
            let id = it.request_id();
            (id, self.stranded.get(&id).copied().unwrap_or(now))
        });
        self.stranded = stranded.collect();
    }

    /// Whoever waited too long for any pipeline, or for one that can take it, hears so.
    pub(super) fn give_up_waiting(&mut self, now: Instant) {
        let max = Duration::from_millis(self.config.scheduler.max_pipeline_wait_ms);
        let is_over = |since: Instant| now.saturating_duration_since(since) >= max;
        let mut given_up = Vec::new();
        if let Some(unserved) = self.unserved_since {
            let waiting = self.queue.waiting_since();
            given_up.extend(
                waiting.filter(|(_, since)| is_over((*since).max(unserved))).map(|(id, _)| id),
            );
            given_up.dedup();
        }
        let cause = self.waiting_for();
        self.give_up(given_up, &cause, now);
        self.stranded.retain(|id, _| self.queue.has(*id));
        let stranded = self.stranded.iter().filter(|(_, since)| is_over(**since));
        let given_up = stranded.map(|(id, _)| *id).collect();
        self.give_up(given_up, "none of those that serve can take this request", now);
    }

    fn give_up(&mut self, requests: Vec<protocol::RequestId>, cause: &str, now: Instant) {
        let waited_s = Duration::from_millis(self.config.scheduler.max_pipeline_wait_ms).as_secs();
        for request in requests {
            let error = RequestError::NoPipeline { waited_s, cause: cause.into() };
            self.fail_request(request, error, now);
        }
    }
}
