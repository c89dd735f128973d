//! The masks of steps under way. A step may run ahead of what its answers say: then what may come
//! next is known when the step before it has come back, and is told while this one is computed.

use std::sync::Arc;

use protocol::{Input, SequenceId, Slice, StepId};

use super::Lane;
use crate::request::{NextTokens, WantedMasks};
use crate::sequence::Sequence;

/// What the masks of a step hang on, until they are all to be had.
#[derive(Debug)]
pub(super) struct Awaited {
    wanted: Vec<(usize, Arc<dyn NextTokens>)>,
    missing: Vec<Missing>,
}

/// A slice whose sequence is to say so many tokens first.
#[derive(Debug)]
struct Missing {
    slice: usize,
    sequence: SequenceId,
    num_tokens: usize,
}

impl Lane {
    /// What the masks of these slices hang on, where any of them may need one.
    pub(super) fn awaited(&self, slices: &[Slice]) -> Option<Awaited> {
        let mut awaited = Awaited { wanted: Vec::new(), missing: Vec::new() };
        for (at, slice) in slices.iter().enumerate().filter(|(_, slice)| slice.sample) {
            let Some(sequence) = self.named(slice.sequence).filter(|it| it.keeps_to_something())
            else {
                continue;
            };
            if let Input::SampledBy(_) = slice.input {
                let (sequence, num_tokens) = (slice.sequence, slice.start as usize + 1);
                awaited.missing.push(Missing { slice: at, sequence, num_tokens });
            } else {
                awaited.wanted.extend(sequence.next().map(|next| (at, next)));
            }
        }
        (!awaited.wanted.is_empty() || !awaited.missing.is_empty()).then_some(awaited)
    }

    /// A step of which all masks can be made now, once. Whoever has ended, or gave way, needs none:
    /// nobody hears what is sampled for it.
    pub fn settled(&mut self) -> Option<(StepId, WantedMasks)> {
        for at in 0..self.steps.len() {
            let Some(mut awaited) = self.steps[at].awaited.take() else { continue };
            awaited.missing.retain(|Missing { slice, sequence, num_tokens }| {
                let sequence = self.named(*sequence);
                let is_known = sequence.is_none_or(|it| it.num_tokens() >= *num_tokens);
                if is_known {
                    let next = sequence.and_then(Sequence::next);
                    awaited.wanted.extend(next.map(|next| (*slice, next)));
                }
                !is_known
            });
            if awaited.missing.is_empty() {
                awaited.wanted.sort_unstable_by_key(|(slice, _)| *slice);
                return Some((self.steps[at].step, WantedMasks(awaited.wanted)));
            }
            self.steps[at].awaited = Some(awaited);
        }
        None
    }

    fn named(&self, id: SequenceId) -> Option<&Sequence> {
        let at = self.running.binary_search_by_key(&id, |it| it.id).ok()?;
        Some(&self.running[at])
    }
}
