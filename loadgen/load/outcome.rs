//! What became of one request.

use std::sync::Arc;
use std::time::Duration;

use crate::client::Answer;
use crate::client::failure::Failure;

/// What became of one request. Its times are since the run's start.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// `service_tier` of the request, where one was named.
    pub tier: Option<Arc<str>>,
    /// Of a mix of tenants, whose it was.
    pub tenant: Option<Arc<str>>,
    /// When it should have been sent.
    pub intended: Duration,
    /// When nothing but the generator stood in its way any more.
    pub due: Duration,
    /// Later than it was due where the generator or a limit kept it back.
    pub sent: Duration,
    /// Of the answer's stream, or when it failed.
    pub ended: Duration,
    /// The answer, whose own times are since it was sent.
    pub answer: Result<Answer, Failure>,
}

/// The times of one answer, from when its request should have been sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// To its first piece of text; none when it has no text, or came in one piece.
    pub ttft: Option<Duration>,
    /// Of each token after the first, on the average; none without one.
    pub tpot: Option<Duration>,
    /// The longest time between two pieces of its text.
    pub longest_gap: Option<Duration>,
    /// To its end.
    pub e2el: Duration,
}

impl Outcome {
    /// The times of a whole answer.
    pub(crate) fn timing(&self, answer: &Answer) -> Timing {
        let waited = self.sent.saturating_sub(self.intended);
        Timing {
            ttft: answer.first_token().map(|first| waited + first),
            tpot: answer.time_per_token(),
            longest_gap: answer.gaps().max(),
            e2el: waited + answer.end,
        }
    }
}
