//! What lanes tell of requests.

use std::time::Duration;

use protocol::RequestId;

use crate::block_manager::Miss;
use crate::request::{Event, Priority, RequestError};
use crate::sequence::Sequence;
use crate::trace::PhaseEnded;

/// What happened to requests, for whoever tells their clients and counts.
#[derive(Debug, Default, PartialEq)]
pub struct Told {
    /// For the clients, in order.
    pub events: Vec<(RequestId, Event)>,
    /// Phases of traced requests that have ended, in order.
    pub traced: Vec<PhaseEnded>,
    /// How long sequences that were admitted for the first time had waited.
    pub waits: Vec<Duration>,
    /// Sequences that had to give way, by their priority.
    pub preempted: Vec<Priority>,
    /// What the prefix cache had.
    pub prefix: Prefix,
}

/// Tokens of sequences that were admitted for the first time, as far as the prefix cache may have
/// them: the last of a prompt is always computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefix {
    /// All of them.
    pub num_looked_for: usize,
    /// Those that were there.
    pub num_found: usize,
    /// Those that weren't, by the place of the reason in [`Miss::ALL`].
    pub num_missed: [usize; Miss::ALL.len()],
}

impl Told {
    /// A sequence can't be answered: its request hears why.
    pub fn fail(&mut self, mut sequence: Sequence, error: RequestError) {
        self.traced.extend(sequence.end_trace(Some(error.kind())));
        self.events.push((sequence.request_id(), Event::Failed(error)));
    }
}
