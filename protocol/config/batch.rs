//! The section `[batch]`: stored files, and the jobs that answer their lines.

use serde::{Deserialize, Serialize};

/// Files of requests, and the jobs that answer them line by line.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Jobs {
    /// Bytes of a file that is handed in; a larger one is answered 413.
    pub max_file_bytes: u64,
    /// Bytes of all files together; whoever hands in one that is too many is answered 507.
    pub max_stored_bytes: u64,
    /// Lines of a job's input; a job of more fails before it begins.
    pub max_lines: u32,
    /// Bytes of a line; a longer one goes to the file of errors.
    pub max_line_bytes: u32,
    /// Jobs of one tenant that haven't ended; one more is answered 429.
    pub max_open_jobs: u32,
    /// Jobs that run at once; tenants take turns.
    pub max_running_jobs: u32,
    /// Hours that a job may be given at most (`completion_window`).
    pub max_window_hours: u32,
    /// Lines of all jobs that are with the scheduler at once. It is never given more than half of
    /// `scheduler.max_queued_requests`, nor more than twice as many as its pipelines can run.
    pub max_lines_in_flight: u32,
    /// Lines of a job that are read ahead, and computed in the order in which they share the most
    /// of their prompts. 1: the file's own order.
    pub window_lines: u32,
    /// Bytes of those lines.
    pub window_bytes: u32,
    /// Results that become durable together; one more waits for the next time.
    pub max_commit_rows: u32,
    /// Milliseconds that a result waits for others with which it becomes durable.
    pub commit_wait_ms: u64,
    /// Times that a line is tried again whose answer was lost. Waiting for a pipeline or a place
    /// doesn't count.
    pub max_line_retries: u32,
    /// Milliseconds before something that failed is tried again; twice as long each further time.
    pub retry_ms: u64,
    /// The longest of these pauses, in milliseconds.
    pub max_retry_ms: u64,
}

impl Default for Jobs {
    fn default() -> Self {
        Self {
            max_file_bytes: 209_715_200,
            max_stored_bytes: 274_877_906_944,
            max_lines: 50_000,
            max_line_bytes: 8_388_608,
            max_open_jobs: 1000,
            max_running_jobs: 8,
            max_window_hours: 720,
            max_lines_in_flight: 1024,
            window_lines: 8192,
            window_bytes: 16_777_216,
            max_commit_rows: 256,
            commit_wait_ms: 20,
            max_line_retries: 3,
            retry_ms: 250,
            max_retry_ms: 15_000,
        }
    }
}
