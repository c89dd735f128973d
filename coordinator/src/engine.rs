//! The API's handle to everything behind it: submit a request, hear its events, see the status.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::RequestId;
use ractor::ActorRef;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::actor::{Look, Msg};
use crate::cluster::{Cluster, Input};
use crate::events::{self, Events, Teller};
use crate::request::{Request, SubmitError};
use crate::status::Status;

/// What the coordinator's actor gets to answer a question.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// A handle; clones share what they hold.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    coordinator: ActorRef<Msg>,
    // An actor's mailbox takes everything: what may wait in it is decided before.
    places: Arc<Semaphore>,
    max_queued_requests: usize,
    status: watch::Receiver<Arc<Status>>,
}

/// The requests of a body on their way to the scheduler.
#[derive(Debug)]
pub(crate) struct Submission {
    /// What is asked, and who is told what becomes of each.
    pub requests: Vec<(Request, Teller)>,
    /// Their places in the mailbox; those that were taken in long ago need none.
    pub places: Option<OwnedSemaphorePermit>,
}

impl Engine {
    /// A handle that hands requests to `coordinator`, so many before it takes them in, and reads
    /// `status`.
    pub(crate) fn new(
        coordinator: ActorRef<Msg>,
        max_queued_requests: usize,
        status: watch::Receiver<Arc<Status>>,
    ) -> Self {
        let places = Arc::new(Semaphore::new(max_queued_requests));
        Self { coordinator, places, max_queued_requests, status }
    }

    /// Hands the requests of a body to the scheduler. Dropping the events cancels them.
    ///
    /// # Errors
    /// When they aren't admitted: all of them are, or none.
    pub(crate) async fn submit(&self, requests: Vec<Request>) -> Result<Events, SubmitError> {
        let max = self.max_queued_requests;
        let num_requests = u32::try_from(requests.len()).unwrap_or(u32::MAX);
        if num_requests as usize > max {
            return Err(SubmitError::TooMany { num_requests: requests.len(), max });
        }
        let places = Arc::clone(&self.places).try_acquire_many_owned(num_requests);
        let places = places.map_err(|_| SubmitError::QueueFull { max })?;
        let ids = requests.iter().map(|request| request.id).collect();
        let (tellers, mut events) = events::channel(ids, self.coordinator.clone());
        let requests = requests.into_iter().zip(tellers).collect();
        // Where the actor is gone, so are the tellers.
        let _ = self.coordinator.cast(Msg::Submit(Submission { requests, places: Some(places) }));
        events.accepted().await?;
        Ok(events)
    }

    /// Hands the requests of a body to the scheduler that another coordinator had taken in: they
    /// wait whatever else does.
    pub(crate) fn resume(&self, requests: Vec<Request>) -> Events {
        let ids = requests.iter().map(|request| request.id).collect();
        let (tellers, events) = events::channel(ids, self.coordinator.clone());
        let requests = requests.into_iter().zip(tellers).collect();
        let _ = self.coordinator.cast(Msg::Submit(Submission { requests, places: None }));
        events
    }

    /// What `look` says of the cluster; none when the actor that owns it is gone, or too busy.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Cluster, Instant) -> T + Send + 'static,
    ) -> Option<T> {
        let (tell, told) = oneshot::channel();
        let look = Look(Box::new(move |cluster, now| drop(tell.send(look(cluster, now)))));
        self.coordinator.cast(Msg::Look(look)).ok()?;
        tokio::time::timeout(LOOK_TIMEOUT, told).await.ok()?.ok()
    }

    /// Cancels all requests of a body, by the name of the first.
    pub(crate) fn withdraw(&self, body: RequestId) {
        // Where the actor is gone, so are they.
        let _ = self.coordinator.cast(Msg::Happened(Input::Withdraw(body)));
    }

    /// Something that an operator says.
    pub(crate) fn happened(&self, input: Input) {
        // Where the actor is gone, the process is about to be.
        let _ = self.coordinator.cast(Msg::Happened(input));
    }

    /// The newest status; never waits.
    pub(crate) fn status(&self) -> Arc<Status> {
        // The last word of an actor that has ended is no longer true.
        if self.status.has_changed().is_err() {
            let waiting_for = "nothing: the coordinator has stopped".to_owned();
            return Arc::new(Status { waiting_for, ..Status::default() });
        }
        self.status.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{inbox, request};
    use futures::FutureExt;

    /// Goal: a mailbox takes everything, so what is in it is bounded before. Method: an actor that
    /// takes nothing in, then one body.
    #[tokio::test]
    async fn no_more_than_may_wait_are_in_the_mailbox() {
        let (coordinator, mut inbox) = inbox().await;
        let (_status, seen) = watch::channel(Arc::default());
        let engine = Engine::new(coordinator, 3, seen);
        let body = |ids: std::ops::Range<u64>| ids.map(|id| request(id, 4, 2)).collect::<Vec<_>>();
        let mut waiting = std::pin::pin!(engine.submit(body(0..2)));
        assert!(waiting.as_mut().now_or_never().is_none());
        let error = engine.submit(body(2..4)).now_or_never().unwrap().unwrap_err();
        assert_eq!(error, SubmitError::QueueFull { max: 3 }, "a body of which a part would fit");
        let left = engine.submit(body(4..5)).now_or_never();
        assert!(left.is_none(), "its place is taken, although its client has left");
        assert!(engine.submit(body(5..6)).now_or_never().unwrap().is_err());
        let error = engine.submit(body(0..4)).now_or_never().unwrap().unwrap_err();
        assert_eq!(error, SubmitError::TooMany { num_requests: 4, max: 3 });

        let Some(Msg::Submit(Submission { requests, places })) = inbox.recv().await else {
            panic!("a body was submitted")
        };
        drop(places);
        requests[0].1.accept(Ok(()));
        waiting.await.unwrap();
        assert!(engine.submit(body(6..8)).now_or_never().is_none(), "there is room again");
    }
}
