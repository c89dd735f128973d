//! The section `[durable]`: answers that outlive the coordinator.

use serde::{Deserialize, Serialize};

/// Answers that are kept on disk while they are computed (`durable: true`), so that whoever reads
/// one can come back for the rest, also after the coordinator has ended and started again.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Durable {
    /// Durable answers that are kept at once, whether they have ended or not; one more is answered
    /// 503. 0: none are.
    pub max_requests: u32,
    /// Milliseconds that one is kept after its end.
    pub keep_ms: u64,
    /// Milliseconds that it is kept after somebody has read it to its end, if that is sooner.
    pub keep_read_ms: u64,
    /// Milliseconds that one waits for a pipeline after the coordinator has started again.
    pub max_resume_wait_ms: u64,
}

impl Default for Durable {
    fn default() -> Self {
        Self {
            max_requests: 1024,
            keep_ms: 3_600_000,
            keep_read_ms: 60_000,
            max_resume_wait_ms: 600_000,
        }
    }
}
