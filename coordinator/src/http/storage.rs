//! What the disk says, as an answer: what can't be kept is refused, and nothing else is.

use crate::batch_job::BatchJobs;
use crate::batch_job::journal::{Disk, Trouble};
use crate::openai::ApiError;

/// Whether something may be handed in that has to be kept.
pub(super) fn accepts(jobs: &BatchJobs) -> Result<(), ApiError> {
    match jobs.disk() {
        Disk::Fine => Ok(()),
        Disk::Full(cause) => Err(full(format!("nothing more can be kept now: {cause}"))),
        Disk::Broken(cause) => Err(broken(&cause)),
    }
}

/// Something couldn't be kept, or read.
pub(super) fn failed(jobs: &BatchJobs, cause: &impl Trouble) -> ApiError {
    match cause.disk() {
        Disk::Broken(why) => {
            // Nothing more is taken from here on.
            jobs.note(cause);
            broken(&why)
        }
        _ => full(format!("this can't be kept now: {cause}")),
    }
}

/// There is no room now.
pub(super) fn full(message: impl Into<String>) -> ApiError {
    ApiError { retry_after: Some(10), ..ApiError::unavailable(message, "insufficient_storage") }
        .status(507)
}

fn broken(cause: &str) -> ApiError {
    let message = format!("the server's disk can't be relied on ({cause}): nothing is kept");
    ApiError { retry_after: None, ..ApiError::unavailable(message, "storage_failed") }
}
