//! `[scheduler]`

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Whether steps compute tokens that others before them have yet to sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunAhead {
    /// Where it pays, by what steps and their ways were measured to take.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl FromStr for RunAhead {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err("choose auto, on or off".into()),
        }
    }
}

/// Who is computed, and how much at once.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scheduler {
    /// Requests that may wait; one more is answered 503.
    pub max_queued_requests: usize,
    /// Sequences that run at once.
    pub max_num_seqs: u32,
    /// Tokens computed in one step, prefill and decode together. Larger raises throughput and the
    /// time between two tokens of a running request.
    pub max_batched_tokens: u32,
    /// Blocks of 16 tokens in the KV cache. 0: as many as fit, up to what `max_num_seqs`
    /// sequences of full length could fill.
    pub max_blocks: u32,
    /// Tokens beyond what is known of a sequence that it gets blocks for when it begins to run;
    /// more are found when it needs them, if need be in the place of others, which then wait.
    pub reserved_tokens: u32,
    /// Milliseconds that a step should not exceed while somebody waits for a next token: chunks of
    /// prompts are cut to fit, by what steps were measured to take. 0: chunks are as large as
    /// `max_batched_tokens` allows.
    pub target_step_ms: u64,
    /// Whether one more step than there are stages may be under way, which computes tokens that
    /// steps before it have yet to sample: no stage then waits for the coordinator, and whoever
    /// comes waits behind one more step. `auto`: where the way by the coordinator takes more than a
    /// thirty-second part of a step; `on`; `off`.
    pub run_ahead: RunAhead,
    /// Milliseconds of waiting that lift a request to the next priority. 0: it never is.
    pub aging_ms: u64,
    /// The same for priority `offline`.
    pub offline_aging_ms: u64,
    /// Share of the tokens computed that each priority gets if it has work, whatever the others
    /// have: 0 to 0.25.
    pub min_share: f64,
    /// Smaller requests that may pass one for which there are too few blocks; then blocks are kept
    /// for it.
    pub max_passed: u32,
    /// Whether what was computed of a prompt serves others of the same tenant that begin alike.
    /// Bits are the same either way.
    pub prefix_cache: bool,
    /// Requests that must have found a block of the prefix cache before it is pinned: handed out
    /// again after all those that aren't.
    pub pin_after_hits: u32,
    /// Share of the blocks that may be pinned: 0 to 1. One more unpins that which was found longest
    /// ago.
    pub max_pinned_share: f64,
    /// Milliseconds that requests wait for a pipeline to come after the last was lost; then they
    /// are answered 503.
    pub max_pipeline_wait_ms: u64,
    /// Requests that have ended and can still be explained; older ones are forgotten.
    pub max_explained_requests: usize,
    /// Decisions that are kept of each request; older ones are forgotten.
    pub max_explained_decisions: usize,
}

impl Default for Scheduler {
    fn default() -> Self {
        Self {
            max_queued_requests: 1024,
            max_num_seqs: 64,
            max_batched_tokens: 512,
            max_blocks: 0,
            reserved_tokens: 64,
            target_step_ms: 100,
            run_ahead: RunAhead::Auto,
            aging_ms: 15_000,
            offline_aging_ms: 3_600_000,
            min_share: 0.02,
            max_passed: 64,
            prefix_cache: true,
            pin_after_hits: 4,
            max_pinned_share: 0.25,
            max_pipeline_wait_ms: 60_000,
            max_explained_requests: 1024,
            max_explained_decisions: 64,
        }
    }
}
