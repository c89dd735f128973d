//! How much of prompts goes into a step.

use std::time::Duration;

use super::Lane;

/// A prefill gets so many tokens of a step however long the step will take.
pub(super) const MIN_CHUNK: usize = 32;

/// Chunks for each stage that what can be computed is cut into: with few, stages wait for the first
/// and for the last of them.
const CHUNKS: usize = 4;

/// What a chunk takes at least, in fixed parts of a step: each further chunk costs one more.
const WORTH: f64 = 4.0;

impl Lane {
    /// Tokens of a step with a prefill in it, so that those who wait for their next token don't
    /// wait long.
    pub(super) fn limit(&self) -> usize {
        let max_tokens = self.config.max_batched_tokens as usize;
        if self.config.target_step_ms == 0 || self.running.iter().all(|it| it.num_generated() == 0)
        {
            return max_tokens;
        }
        let target = Duration::from_millis(self.config.target_step_ms);
        let within = self.cost.tokens_within(target).unwrap_or(max_tokens);
        within.max(MIN_CHUNK).min(max_tokens)
    }

    /// Tokens of a step with a prefill in it, so that there is work for every stage: a prompt in
    /// one step is computed by one stage after the other, in several by all of them at once. Not
    /// less than pays: where a step takes as long with few tokens as with many, it isn't cut.
    pub(super) fn chunk(&self) -> usize {
        let max_tokens = self.config.max_batched_tokens as usize;
        let num_stages = self.capacity.num_stages;
        let Some(fixed) = self.pace.fixed_tokens().filter(|_| num_stages > 1) else {
            return max_tokens;
        };
        let num_pending: usize = self.running.iter().map(|it| it.num_pending()).sum();
        let num_under_way: usize = self.steps.iter().map(|it| it.num_tokens).sum();
        let share = (num_pending + num_under_way).div_ceil(num_stages * CHUNKS);
        share.max((fixed * WORTH) as usize)
    }
}
