//! What a lane tells of what it decides, who gives way in it to whom, and what hinders whoever
//! waits.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use protocol::{HiddenRow, PipelineId, RequestId, SequenceId, Slice};

use super::Lane;
use crate::block_manager::{BlockManager, Miss};
use crate::history::Decision;
use crate::queue::Queue;
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
    /// What was decided, about which choice of whom, in order.
    pub decisions: Vec<(RequestId, u32, Decision)>,
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

/// Why a sequence that waits can't run in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Obstacle {
    /// It can: others go first, or somebody computes the beginning of its prompt just now.
    Turn,
    /// As many run as may.
    Places {
        /// So many.
        max: usize,
    },
    /// Too few blocks are free.
    Blocks {
        /// Blocks that it needs, none shared.
        needed: usize,
        /// Those that are free.
        free: usize,
    },
    /// It will never fit.
    TooLarge,
}

impl Lane {
    /// The same, as a part of this pipeline.
    pub fn of(self, pipeline: PipelineId) -> Self {
        Self { pipeline, ..self }
    }

    /// What hinders `waiting` from running here now.
    pub(crate) fn obstacle(&self, waiting: &Sequence) -> Obstacle {
        let needed = waiting.num_blocks_to_begin(self.config.reserved_tokens as usize);
        let (free, max) = (self.blocks.num_free(), self.config.max_num_seqs as usize);
        if waiting.num_blocks_needed() > self.capacity.num_blocks {
            Obstacle::TooLarge
        } else if self.running.len() >= max {
            Obstacle::Places { max }
        } else if free < needed {
            Obstacle::Blocks { needed, free }
        } else {
            Obstacle::Turn
        }
    }

    /// Blocks for the next `num_tokens` of the `i`-th, from those who give way to it if need be.
    pub(super) fn grow(
        &mut self,
        i: usize,
        num_tokens: usize,
        batch: &[Slice],
        told: &mut Told,
    ) -> bool {
        loop {
            let sequence = &mut self.running[i];
            if sequence.blocks.is_empty() {
                return false; // It gave way to one before it.
            }
            let num_needed = BlockManager::blocks_for(sequence.num_after(num_tokens));
            let num_new = num_needed.saturating_sub(sequence.blocks.len());
            if num_new == 0 {
                return true;
            }
            if let Some(blocks) = self.blocks.allocate(num_new, &[]) {
                self.running[i].blocks.extend(blocks);
                return true;
            }
            let (ticket, priority) = (sequence.ticket, sequence.priority());
            let in_batch = |id| batch.iter().any(|slice| slice.sequence == id);
            let others = self.running.iter().filter(|it| !it.blocks.is_empty() && !in_batch(it.id));
            // The oldest of the highest priority always gets on.
            let weaker = others
                .filter(|it| (it.priority(), Reverse(it.ticket)) < (priority, Reverse(ticket)));
            let victim = weaker.min_by_key(|it| (it.priority(), Reverse(it.ticket)));
            match victim.map(|it| it.id) {
                Some(victim) => self.preempt(victim, priority, told),
                None => return false,
            }
        }
    }

    /// The hidden state of the `i`-th, where it came; whether the sequence is still there.
    pub(super) fn tell_hidden(
        &mut self,
        i: usize,
        hidden: Option<HiddenRow>,
        told: &mut Told,
    ) -> bool {
        let sequence = &self.running[i];
        if let Some(row) = hidden {
            told.events.push((sequence.request_id(), Event::Hidden(row.values)));
        } else if sequence.tells_hidden() && sequence.is_scored() {
            let mut sequence = self.running.remove(i);
            self.leave(&mut sequence);
            let cause = "the last stage told no hidden state".to_owned();
            told.fail(sequence, RequestError::StepFailed(cause));
            return false;
        }
        true
    }

    /// It waits again once [`return_preempted`](Self::return_preempted) is called; until then it
    /// keeps its place among the running.
    pub(super) fn preempt(&mut self, id: SequenceId, by: Priority, told: &mut Told) {
        let at = self.running.binary_search_by_key(&id, |it| it.id).expect("it runs");
        let sequence = &mut self.running[at];
        told.preempted.push(sequence.priority());
        told.decide(sequence, Decision::Preempted { by });
        self.blocks.free(sequence.preempt().into_iter());
        self.forget(id);
    }

    pub(super) fn return_preempted(&mut self, queue: &mut Queue, now: Instant) {
        for sequence in self.running.extract_if(.., |sequence| sequence.blocks.is_empty()) {
            queue.put(sequence, now);
        }
    }
}

impl Told {
    /// A sequence can't be answered: its request hears why.
    pub fn fail(&mut self, mut sequence: Sequence, error: RequestError) {
        self.traced.extend(sequence.end_trace(Some(error.kind())));
        self.events.push((sequence.request_id(), Event::Failed(error)));
    }

    /// Something was decided about a sequence.
    pub(super) fn decide(&mut self, sequence: &Sequence, decision: Decision) {
        self.decisions.push((sequence.request_id(), sequence.choice, decision));
    }

    /// A slice was made of a sequence: of only a part of what is known of it.
    pub(super) fn chunk(&mut self, sequence: &Sequence) {
        let (num_left, num_tokens) = (sequence.num_pending(), sequence.num_tokens());
        if num_left > 0 {
            let num_computed = num_tokens - num_left;
            self.decide(sequence, Decision::Chunked { num_computed, num_tokens });
        }
    }
}
