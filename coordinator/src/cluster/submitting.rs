//! How a body's requests come to wait: all of them, or none.

use std::time::Instant;

use super::{Action, Cluster};
use crate::request::{Request, SubmitError};

impl Cluster {
    pub(super) fn submit(&mut self, requests: Vec<Request>, now: Instant) {
        let ids = requests.iter().map(|request| request.id).collect();
        let may = self.may_wait(&requests);
        if may.is_ok() {
            self.history.submit(&requests, now);
            for request in requests {
                self.requests.insert(request.id, request.num_choices);
                self.queue.submit(request, now);
            }
        }
        self.actions.push(Action::Submitted(ids, may));
    }

    /// Whether all of a body may wait: there is no answer to a part of it.
    fn may_wait(&self, requests: &[Request]) -> Result<(), SubmitError> {
        if self.is_stopping {
            return Err(SubmitError::ShuttingDown);
        }
        // They were taken in long ago.
        if requests.iter().all(|request| request.resumed.is_some()) {
            return Ok(());
        }
        // Whoever comes while a lost pipeline is replaced waits like those who were there, and so
        // does whoever wakes a cluster that fell asleep before anything served, or comes then.
        if !self.has_served && !self.is_asleep() && self.unserved_since.is_none() {
            return Err(SubmitError::NoPipeline(self.waiting_for()));
        }
        let max = self.config.scheduler.max_queued_requests;
        if self.queue.num_requests() + requests.len() > max {
            return Err(SubmitError::QueueFull { max });
        }
        let held =
            self.open_lanes().map(|lane| lane.capacity().num_blocks).max().unwrap_or(usize::MAX);
        match requests.iter().map(Request::num_blocks).max() {
            Some(needed) if needed > held => Err(SubmitError::TooLarge { needed, held }),
            _ => Ok(()),
        }
    }
}
