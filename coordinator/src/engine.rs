//! The API's handle to everything behind it: submit a request, hear its events, see the status.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use crate::request::{Event, Request, SubmitError};
use crate::status::Status;

/// A handle; clones share what they hold.
#[derive(Clone, Debug)]
pub struct Engine {
    submissions: mpsc::Sender<Submission>,
    status: watch::Receiver<Arc<Status>>,
}

/// A request on its way to the scheduler.
#[derive(Debug)]
pub struct Submission {
    /// What is asked.
    pub request: Request,
    /// Where its events go. Closed by the client: the request is cancelled.
    pub events: mpsc::Sender<Event>,
    /// Whether it is admitted.
    pub admitted: oneshot::Sender<Result<(), SubmitError>>,
}

impl Engine {
    /// A handle that hands requests to `submissions` and reads `status`.
    pub fn new(
        submissions: mpsc::Sender<Submission>,
        status: watch::Receiver<Arc<Status>>,
    ) -> Self {
        Self { submissions, status }
    }

    /// Hands a request to the scheduler. Dropping the receiver cancels the request.
    ///
    /// # Errors
    /// When the request isn't admitted.
    pub async fn submit(&self, request: Request) -> Result<mpsc::Receiver<Event>, SubmitError> {
        // Room for every event that the request can have, so that a slow client never holds up a
        // step: its tokens, a beginning and an end for each choice, the prompt's logprobs, that it
        // isn't exact.
        let of_a_choice = request.max_tokens as usize + 2;
        let (events, received) = mpsc::channel(request.num_choices as usize * of_a_choice + 2);
        let (admitted, answer) = oneshot::channel();
        let submission = Submission { request, events, admitted };
        self.submissions.send(submission).await.map_err(|_| SubmitError::ShuttingDown)?;
        answer.await.map_err(|_| SubmitError::ShuttingDown)??;
        Ok(received)
    }

    /// The newest status; never waits.
    pub fn status(&self) -> Arc<Status> {
        // The last word of an actor that has ended is no longer true.
        if self.status.has_changed().is_err() {
            let waiting_for = "nothing: the coordinator has stopped".to_owned();
            return Arc::new(Status { waiting_for, ..Status::default() });
        }
        self.status.borrow().clone()
    }
}
