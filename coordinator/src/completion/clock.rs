//! When the tokens of an answer came: what whoever waits for them feels.

use std::time::Instant;

use protocol::TraceId;

use super::ending::Ending;
use crate::metrics::{Metrics, Tokens};

pub(super) struct Clock {
    start: Instant,
    choices: Vec<Option<Decoding>>,
    trace: Option<TraceId>,
    // Where nobody waits, nothing is measured.
    is_on: bool,
}

/// Of one choice: its first and its last token, and how many.
#[derive(Clone, Copy)]
struct Decoding {
    first: Instant,
    last: Instant,
    num_tokens: usize,
}

impl Clock {
    pub(super) fn new(ending: &Ending, num_choices: usize) -> Self {
        let trace = ending.traced.as_ref().map(|traced| traced.id());
        let (start, is_on) = ending.since();
        Self { start, choices: vec![None; num_choices], trace, is_on }
    }

    /// So many tokens of a choice have come at once.
    pub(super) fn tokens(&mut self, choice: usize, num: usize, now: Instant, metrics: &Metrics) {
        if !self.is_on {
            return;
        }
        for _ in 0..num {
            if self.choices.iter().all(Option::is_none) {
                metrics.first_token(now - self.start, self.trace);
            }
            match &mut self.choices[choice] {
                Some(decoding) => {
                    metrics.next_token(now - decoding.last, self.trace);
                    decoding.last = now;
                    decoding.num_tokens += 1;
                }
                none => *none = Some(Decoding { first: now, last: now, num_tokens: 1 }),
            }
        }
    }

    /// Every choice has ended, with these tokens.
    pub(super) fn ended(&self, tokens: Tokens, metrics: &Metrics) {
        if !self.is_on {
            return;
        }
        metrics.answered(tokens, self.start.elapsed(), self.trace);
        for decoding in self.choices.iter().flatten() {
            let time = decoding.last - decoding.first;
            metrics.decoded(time, decoding.num_tokens, self.trace);
        }
    }
}
