//! Results become durable in groups, and what a disk does that takes none.
//!
//! One task writes for all jobs. A full disk holds everything up that wants to be durable, and
//! nothing else: the same results are tried again until there is space. A disk that fails to keep
//! what it was given is asked no more.

use std::sync::Arc;
use std::time::Duration;

use protocol::config;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::records::{Outcome, Records};
use super::runner::Stopped;
use crate::metrics::Metrics;
use crate::store::StoreError;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Disk {
    /// It takes what is written.
    #[default]
    Fine,
    /// It doesn't, now; why.
    Full(String),
    /// It can't be relied on; why.
    Broken(String),
}

impl Disk {
    /// Why nothing becomes durable.
    pub(crate) fn problem(&self) -> Option<&str> {
        match self {
            Self::Fine => None,
            Self::Full(cause) | Self::Broken(cause) => Some(cause),
        }
    }
}

/// A result, and who is told when it is durable.
type Waiting = (Outcome, mpsc::UnboundedSender<Vec<u32>>);

/// Whoever has results hands them in here; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    // Unbounded: each job bounds what it has here. None: what came before waits for nothing more.
    waiting: mpsc::UnboundedSender<Option<Waiting>>,
    disk: Arc<watch::Sender<Disk>>,
    retry: Duration,
}

impl Journal {
    /// Starts the task that writes; it ends with the last clone.
    pub(crate) fn start(records: Records, config: &config::Jobs, metrics: Arc<Metrics>) -> Self {
        let (waiting, queue) = mpsc::unbounded_channel();
        let disk = Arc::new(watch::Sender::new(Disk::Fine));
        let retry = Duration::from_millis(config.retry_ms.max(1));
        let writer = Writer { records, disk: Arc::clone(&disk), retry, metrics };
        tokio::spawn(writer.run(queue, config.clone()));
        Self { waiting, disk, retry }
    }

    /// A result that is to become durable; `told` hears of it.
    pub(crate) fn record(&self, outcome: Outcome, told: mpsc::UnboundedSender<Vec<u32>>) {
        // Where nobody writes any more nobody is told.
        let _ = self.waiting.send(Some((outcome, told)));
    }

    /// What was recorded becomes durable at once: whoever has recorded it has nothing more.
    pub(crate) fn flush(&self) {
        let _ = self.waiting.send(None);
    }

    /// Waits until these results are durable, on a thread that may: how many never will be, since
    /// nobody writes any more.
    pub(crate) fn keep(&self, outcomes: Vec<Outcome>) -> usize {
        let mut num_open = outcomes.len();
        let (told, mut heard) = mpsc::unbounded_channel();
        outcomes.into_iter().for_each(|outcome| self.record(outcome, told.clone()));
        self.flush();
        // Only those who write can tell: their end is heard, too.
        drop(told);
        while let Some(numbers) = heard.blocking_recv() {
            num_open -= numbers.len();
        }
        num_open
    }

    pub(crate) fn disk(&self) -> watch::Receiver<Disk> {
        self.disk.subscribe()
    }

    /// What came of an attempt; after a pause none, where another may do better.
    ///
    /// # Errors
    /// When none can.
    pub(crate) async fn settle<T, E: Trouble>(
        &self,
        came: Result<T, E>,
    ) -> Result<Option<T>, Stopped> {
        match came {
            Ok(done) => {
                told(&self.disk, Disk::Fine);
                Ok(Some(done))
            }
            Err(cause) => {
                self.note(&cause);
                if cause.is_final() {
                    return Err(Stopped::Disk);
                }
                tokio::time::sleep(self.retry).await;
                Ok(None)
            }
        }
    }

    /// What a write that failed says of the disk.
    pub(crate) fn note(&self, cause: &impl Trouble) {
        told(&self.disk, cause.disk());
    }
}

/// Why something isn't durable.
pub(crate) trait Trouble: std::fmt::Display {
    /// Whether another try can't do better.
    fn is_final(&self) -> bool;

    /// What it says of the disk.
    fn disk(&self) -> Disk {
        match self.is_final() {
            true => Disk::Broken(self.to_string()),
            false => Disk::Full(self.to_string()),
        }
    }
}

impl Trouble for StoreError {
    fn is_final(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::Ended)
    }
}

fn told(disk: &watch::Sender<Disk>, now: Disk) {
    disk.send_if_modified(|before| {
        // What can't be relied on stays so, whatever the next try looks like.
        if *before == now || matches!(before, Disk::Broken(_)) {
            return false;
        }
        match (&*before, &now) {
            (_, Disk::Fine) => info!("what jobs write is kept again"),
            (Disk::Fine, Disk::Full(cause)) => warn!(cause, "batch jobs wait for the disk"),
            _ => {}
        }
        *before = now;
        true
    });
}

struct Writer {
    records: Records,
    disk: Arc<watch::Sender<Disk>>,
    retry: Duration,
    metrics: Arc<Metrics>,
}

impl Writer {
    async fn run(self, mut queue: mpsc::UnboundedReceiver<Option<Waiting>>, config: config::Jobs) {
        let wait = Duration::from_millis(config.commit_wait_ms);
        while let Some(first) = queue.recv().await {
            // What should have been written at once has been.
            let Some(first) = first else { continue };
            let mut group = vec![first];
            let full = config.max_commit_rows as usize;
            let gather = async {
                while group.len() < full
                    && let Some(Some(next)) = queue.recv().await
                {
                    group.push(next);
                }
            };
            let _ = tokio::time::timeout(wait, gather).await;
            if !self.write(group).await {
                // Nobody is told any more, and nobody is heard.
                return;
            }
        }
    }

    /// Writes a group, if need be again and again. Whether anything more can be written.
    async fn write(&self, group: Vec<Waiting>) -> bool {
        let (outcomes, listeners): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        loop {
            match self.records.record(outcomes.clone()).await {
                Ok(()) => break told(&self.disk, Disk::Fine),
                Err(cause) => {
                    told(&self.disk, cause.disk());
                    if cause.is_final() {
                        return false;
                    }
                }
            }
            tokio::time::sleep(self.retry).await;
        }
        for (outcome, listener) in outcomes.into_iter().zip(listeners) {
            self.metrics.line_answered(outcome.is_failed, outcome.num_tokens);
            // A job that has been dropped finds it in the store.
            let _ = listener.send(vec![outcome.line]);
        }
        true
    }
}
