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

/// The requests of a body on their way to the scheduler.
#[derive(Debug)]
pub struct Submission {
    /// What is asked, and where the events of each go. Closed by the client: it is cancelled.
    pub requests: Vec<(Request, mpsc::Sender<Event>)>,
    /// Whether they are admitted, all of them or none.
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

    /// Hands the requests of a body to the scheduler. Dropping a receiver cancels its request.
    ///
    /// # Errors
    /// When they aren't admitted: all of them are, or none.
    pub async fn submit(
        &self,
        requests: Vec<Request>,
    ) -> Result<Vec<mpsc::Receiver<Event>>, SubmitError> {
        // Room for every event that a request can have, so that a slow client never holds up a
        // step: its tokens, a beginning and an end for each choice, the prompt's logprobs, that it
        // isn't exact.
        let channel = |request: Request| {
            let of_a_choice = request.max_tokens as usize + 2;
            let room = request.num_choices as usize * of_a_choice + 2;
            let (events, received) = mpsc::channel(room);
            ((request, events), received)
        };
        let (requests, received) = requests.into_iter().map(channel).unzip();
        let (admitted, answer) = oneshot::channel();
        let submission = Submission { requests, admitted };
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
