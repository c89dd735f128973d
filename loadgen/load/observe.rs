//! Who watches the requests of a run while they happen: what verifies answers, what measures the
//! effect of faults.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::client::Answer;
use crate::client::failure::Failure;

/// Hears of every request of a run. It is called from many tasks at once, on their way: it must
/// not wait. Give it to a run as [`super::Load::observer`].
pub trait Observe: Send + Sync {
    /// A request is about to be sent, at `at` since the run's start. Its body is final but for
    /// what is changed here. What is returned hears of its answer.
    fn sent(&self, body: &mut Value, at: Duration) -> Option<Box<dyn ObserveAnswer>>;
}

/// Hears of one answer. Times are since the run's start.
pub trait ObserveAnswer: Send {
    /// An answer has begun: the server has accepted the request.
    fn begin(&mut self) {}

    /// An event has come, an error's too; the body of an answer that comes in one piece.
    fn event(&mut self, _event: &Value) {}

    /// A piece of text has come, of the event that was told last.
    fn text(&mut self, _text: &str, _at: Duration) {}

    /// It has ended, well or not. Not told of requests that were in flight when the run was
    /// stopped.
    fn ended(self: Box<Self>, _outcome: &Result<Answer, Failure>, _at: Duration) {}
}

/// Several observers as one. Each sees what those before it changed in a body.
pub struct All(pub Vec<Arc<dyn Observe>>);

impl Observe for All {
    fn sent(&self, body: &mut Value, at: Duration) -> Option<Box<dyn ObserveAnswer>> {
        let all = self.0.iter().filter_map(|observer| observer.sent(body, at));
        let all: Vec<_> = all.collect();
        (!all.is_empty()).then(|| Box::new(AllOf(all)) as Box<dyn ObserveAnswer>)
    }
}

struct AllOf(Vec<Box<dyn ObserveAnswer>>);

impl ObserveAnswer for AllOf {
    fn begin(&mut self) {
        self.0.iter_mut().for_each(|observer| observer.begin());
    }

    fn event(&mut self, event: &Value) {
        self.0.iter_mut().for_each(|observer| observer.event(event));
    }

    fn text(&mut self, text: &str, at: Duration) {
        self.0.iter_mut().for_each(|observer| observer.text(text, at));
    }

    fn ended(self: Box<Self>, outcome: &Result<Answer, Failure>, at: Duration) {
        self.0.into_iter().for_each(|observer| observer.ended(outcome, at));
    }
}
