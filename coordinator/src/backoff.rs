//! How long a load that failed waits for its next try.

use std::fmt;
use std::time::Duration;

/// Failures in a row. The next try may fail for the same reason, but a file may also be mended
/// meanwhile: it is made after a pause that doubles with each failure.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_secs(1);
    const MOST: Duration = Duration::from_secs(60);

    pub(crate) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// Something has changed for the better.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Whether more than one has failed in a row.
    pub(crate) fn has_repeated(&self) -> bool {
        self.failures > 1
    }

    pub(crate) fn pause(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(16);
        if self.failures == 0 {
            Duration::ZERO
        } else {
            Self::MOST.min(Self::FIRST * (1 << doublings))
        }
    }
}

impl fmt::Display for Backoff {
    /// Nothing, if nothing failed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.failures == 0 {
            return Ok(());
        }
        let (failures, pause) = (self.failures, self.pause().as_secs());
        write!(f, " (failed loads in a row: {failures}; tried again after {pause} s or more)")
    }
}
