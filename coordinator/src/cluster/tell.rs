//! What becomes of requests: their clients hear it, and their stories say it.

use std::time::Instant;

use protocol::RequestId;

use super::{Action, Cluster};
use crate::history::Decision;
use crate::lane::{Prefix, Told};
use crate::request::{Event, RequestError};
use crate::trace::PhaseEnded;

impl Cluster {
    /// Clients hear what happened; a request that fails goes as a whole.
    pub(super) fn tell(&mut self, told: Told, now: Instant) {
        for (request, choice, decision) in told.decisions {
            self.history.record(request, Some(choice), decision, now);
        }
        self.actions.extend(told.waits.into_iter().map(Action::Admitted));
        self.actions.extend(told.preempted.into_iter().map(Action::Preempted));
        if told.prefix != Prefix::default() {
            self.actions.push(Action::Found(told.prefix));
        }
        self.trace(told.traced);
        for (request, event) in told.events {
            // One of its choices may have failed before another went on.
            if !self.requests.contains_key(&request) {
                continue;
            }
            match event {
                Event::Failed(error) => self.fail_request(request, error, now),
                Event::Finished { choice, reason, .. } => {
                    let finished = Decision::Finished(reason);
                    self.history.record(request, Some(choice), finished, now);
                    self.actions.push(Action::Tell(request, event));
                    let left = self.requests.get_mut(&request).expect("it is open");
                    *left -= 1;
                    if *left == 0 {
                        self.requests.remove(&request);
                    }
                }
                _ => self.actions.push(Action::Tell(request, event)),
            }
        }
    }

    fn trace(&mut self, ended: Vec<PhaseEnded>) {
        self.actions.extend(ended.into_iter().map(Box::new).map(Action::Traced));
    }

    pub(super) fn fail_request(&mut self, request: RequestId, error: RequestError, now: Instant) {
        if self.requests.contains_key(&request) {
            self.drop_request(request, error.kind());
            self.history.record(request, None, Decision::Failed(error.clone()), now);
            self.actions.push(Action::Tell(request, Event::Failed(error)));
        }
    }

    /// The client went away.
    pub(super) fn leave(&mut self, request: RequestId, now: Instant) {
        self.drop_request(request, "cancelled");
        self.history.record(request, None, Decision::Left, now);
    }

    /// Every request of a body is cancelled, as far as it is open.
    pub(super) fn withdraw(&mut self, body: RequestId, now: Instant) {
        let requests = self.history.story(body).map(|story| story.requests.clone());
        for request in requests.unwrap_or_default() {
            self.fail_request(request, RequestError::Cancelled, now);
        }
    }

    /// Nothing of it waits or runs any more.
    fn drop_request(&mut self, request: RequestId, cause: &'static str) {
        if self.requests.remove(&request).is_none() {
            return;
        }
        let mut dropped = self.queue.cancel(request);
        let lanes = self.pipelines.values_mut().filter_map(|pipeline| pipeline.lane.as_mut());
        dropped.extend(lanes.flat_map(|lane| lane.cancel(request)));
        let ended = dropped.iter_mut().filter_map(|it| it.end_trace(Some(cause))).collect();
        self.trace(ended);
    }
}
