//! Decides when requests start, and gathers what becomes of them.
//!
//! [`pace`] says when, [`workload`] says what, `run` sends, [`sums`] adds up and says which
//! requests count, [`result`] makes of it the result that is kept, [`report`] a table.
//! Who wants to hear of each request and each token is an [`observe::Observe`].

pub mod client_use;
pub mod fault;
pub mod inject;
pub mod metrics;
pub mod mix;
pub mod observe;
pub mod outcome;
pub mod pace;
pub mod prompts;
pub mod report;
pub mod result;
mod run;
#[cfg(test)]
mod simulation;
pub mod slo;
pub mod sums;
pub mod sweep;
pub mod trace;
pub mod transcript;
pub mod verify;
pub mod workload;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::client::Server;
use crate::client::request::Parameters;
use crate::report::result::ClientUse;
use observe::Observe;
use pace::Pace;
use slo::Slo;
use sums::Sums;
use workload::Workload;

/// What is sent, when, and what is expected of it.
#[derive(Clone)]
pub struct Load {
    /// What the requests have in common.
    pub parameters: Parameters,
    /// Prompts, and whose they are.
    pub workload: Workload,
    /// When requests start.
    pub pace: Pace,
    /// Where it ends: after so many requests, or after some time.
    pub extent: Extent,
    /// What answers should keep.
    pub slo: Slo,
    /// Who watches.
    pub observer: Option<Arc<dyn Observe>>,
}

/// How long a run lasts: until the first of its limits, or as long as its trace.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extent {
    /// At most so many are sent; none: as many as the time allows.
    pub requests: Option<u64>,
    /// Time in which they are sent, after the warm-up. What is in flight then is waited for.
    pub duration: Option<Duration>,
    /// Time before, whose requests count in no latency.
    pub warmup: Duration,
}

/// How far a running load is; shared with whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    started: AtomicU64,
    ended: AtomicU64,
    failed: AtomicU64,
    pieces: AtomicU64,
}

/// Sums over one run, and whether it came to its end.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What was added up, for the window and second by second.
    pub sums: Sums,
    /// From the start to the last answer's end.
    pub elapsed: Duration,
    /// Stopped before all requests had ended; those that hadn't count nowhere.
    pub interrupted: bool,
    /// What the generator took.
    pub client: ClientUse,
}

impl Load {
    /// Sends everything, or as much as it can before `stop` resolves, and returns what it
    /// measured until then.
    ///
    /// # Errors
    /// When a prompt can't be asked at the endpoint, or the run would never end; nothing has been
    /// sent then.
    pub async fn run(
        &self,
        server: &Server,
        progress: &Arc<Progress>,
        stop: impl Future<Output = ()>,
    ) -> Result<Measured> {
        run::drive(self, server, progress, stop).await
    }

    fn check(&self) -> Result<()> {
        let ends_by_itself =
            matches!(self.pace, Pace::Open { arrivals: pace::Arrivals::Trace(_), .. });
        if self.extent.requests.is_none() && self.extent.duration.is_none() && !ends_by_itself {
            bail!("a run needs a number of requests or a duration");
        }
        if self.parameters.whole && self.slo.needs_streaming() {
            bail!("an answer in one piece has an end only: give an objective for e2el, or stream");
        }
        self.workload.check(&self.parameters)
    }
}

impl Extent {
    /// So many requests, however long they take, without a warm-up.
    pub fn requests(num: u64) -> Self {
        Self { requests: Some(num), ..Self::default() }
    }

    /// When sending ends, since the run's start; none when only a number decides.
    pub fn end(&self) -> Option<Duration> {
        self.duration.map(|duration| self.warmup + duration)
    }
}

impl Progress {
    /// Requests that have ended, well or not.
    pub fn num_ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// Requests that have failed.
    pub fn num_failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Requests in flight.
    pub fn num_running(&self) -> u64 {
        self.started.load(Ordering::Relaxed).saturating_sub(self.num_ended())
    }

    /// Pieces of text that have arrived.
    pub fn num_pieces(&self) -> u64 {
        self.pieces.load(Ordering::Relaxed)
    }

    fn started(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    fn ended(&self, failed: bool) {
        self.failed.fetch_add(u64::from(failed), Ordering::Relaxed);
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    fn piece(&self) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Load")
            .field("parameters", &self.parameters)
            .field("pace", &self.pace)
            .field("extent", &self.extent)
            .field("slo", &self.slo)
            .finish_non_exhaustive()
    }
}
