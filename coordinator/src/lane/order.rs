//! Whose turn it is in the next step, and how far steps run ahead of what is known.
//!
//! A step for each stage keeps all of them at work, as long as the next is at hand when one
//! returns. So one more may be under way: it computes what is known, and tokens that are only
//! promised, by a step that will have left the last stage when this one reaches the first.

use std::cmp::Reverse;

use protocol::StepId;
use protocol::config::RunAhead;

use super::Lane;
use crate::request::Priority;
use crate::sequence::Sequence;

/// Steps after which a sequence that others went before is computed all the same.
pub(super) const MAX_STEPS_PASSED: u64 = 8;

/// Least first: whoever was passed over for long, then by priority; whoever has begun to answer
/// before those whose prompt is still being computed, and what is known before what is promised,
/// the oldest promise first. Then by age.
pub(super) type Turn = (bool, Reverse<Priority>, bool, Option<StepId>, usize);

impl Lane {
    /// Steps that may be under way at once.
    pub(super) fn max_steps(&self) -> usize {
        self.capacity.num_stages + usize::from(self.runs_ahead())
    }

    fn runs_ahead(&self) -> bool {
        match self.config.run_ahead {
            RunAhead::Auto => self.pace.is_worth_hiding(self.capacity.num_stages),
            RunAhead::On => true,
            RunAhead::Off => false,
        }
    }

    /// Who can be computed in the next step, and in which order.
    pub(super) fn order(&self) -> Vec<Turn> {
        let ready = self.running.iter().enumerate().filter(|(_, it)| it.num_pending() > 0);
        if let Some((i, suspect)) = ready.clone().find(|(_, it)| it.num_failures > 0) {
            // With nothing before it: a step that fails behind another may fail for that one's
            // sake.
            if !self.steps.is_empty() {
                return Vec::new();
            }
            return vec![(false, Reverse(suspect.priority()), false, None, i)];
        }
        let mut order: Vec<_> = ready.map(|(i, it)| self.turn(i, it, None)).collect();
        if self.runs_ahead() {
            // Whatever else the step computes must not wait for a later one.
            let num_stages = self.capacity.num_stages as u64;
            let latest = self.next_step.checked_sub(num_stages).map(StepId);
            order.extend(self.promised_until(latest));
            if order.is_empty() {
                order.extend(self.promised_until(self.steps.front().map(|it| it.step)));
            }
        }
        order.sort_unstable();
        order
    }

    /// Those whose next token is sampled by a step under way that is no younger than `latest`.
    fn promised_until(&self, latest: Option<StepId>) -> impl Iterator<Item = Turn> + '_ {
        self.running.iter().enumerate().filter_map(move |(i, it)| {
            let by = it.promised_by().filter(|by| Some(*by) <= latest)?;
            Some(self.turn(i, it, Some(by)))
        })
    }

    fn turn(&self, i: usize, sequence: &Sequence, promised_by: Option<StepId>) -> Turn {
        let is_recent = self.next_step - sequence.last_step < MAX_STEPS_PASSED;
        let is_prefill = sequence.num_pending() > 1;
        (is_recent, Reverse(sequence.priority()), is_prefill, promised_by, i)
    }
}
