//! Batch jobs: files of requests whose answers are files. A job survives any end of the process:
//! what it has answered is durable before it counts, and nothing is answered twice.
//!
//! A file of lines, or of rows that become such lines (`row_plan`), comes in (`files`, `blobs`), a
//! job names it (`records`), its lines are looked at and computed as work of the lowest priority
//! (`reading`, `window`, `job`, `runner`), what becomes of each is written down (`journal`), and
//! files are made of that (`finishing`).

pub(crate) mod blobs;
pub mod command;
pub(crate) mod files;
mod finishing;
mod input;
mod job;
pub(crate) mod journal;
pub(crate) mod line;
mod places;
mod reading;
pub(crate) mod records;
pub mod row_plan;
#[cfg(test)]
mod row_tests;
mod runner;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod window;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use protocol::config::{self, Config};
use sqlx::{QueryBuilder, Sqlite};
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tracing::{error, warn};
use transport::ticks;

use self::blobs::Blobs;
use self::files::Files;
use self::journal::{Disk, Journal};
use self::places::Places;
use self::records::{BatchJob, JobState, Records};
use self::runner::{Cancel, Runner};
use crate::completion::Completions;
use crate::keys::{Access, Keys};
use crate::metrics::OpenJobs;
use crate::store::{Store, StoreError};

/// How often jobs that wait and their places are looked after.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often files whose time is up are.
const EXPIRE_EVERY: Duration = Duration::from_secs(60);

/// All jobs and files of a data directory; clones share them.
#[derive(Clone)]
pub(crate) struct BatchJobs {
    inner: Arc<Inner>,
}

impl fmt::Debug for BatchJobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchJobs").finish_non_exhaustive()
    }
}

struct Inner {
    completions: Arc<Completions>,
    keys: Arc<Keys>,
    config: config::Jobs,
    scheduler: config::Scheduler,
    files: Files,
    records: Records,
    journal: Journal,
    places: Places,
    running: Mutex<HashMap<i64, (String, Arc<Cancel>)>>,
    changed: Notify,
}

impl BatchJobs {
    /// Those of a data directory. Nothing runs before [`run`](Self::run).
    ///
    /// # Errors
    /// When they can't be read.
    pub(crate) async fn open(
        data_dir: &Path,
        store: Store,
        completions: Arc<Completions>,
        keys: Arc<Keys>,
        config: &Config,
    ) -> anyhow::Result<Self> {
        let blobs = Blobs::open(data_dir).context("files that were handed in can't be kept")?;
        let files = Files::open(store.clone(), blobs).await?;
        let records = Records::new(store);
        let metrics = Arc::clone(&completions.metrics);
        let journal = Journal::start(records.clone(), &config.batch, metrics);
        let inner = Inner {
            completions,
            keys,
            config: config.batch.clone(),
            scheduler: config.scheduler.clone(),
            files,
            records,
            journal,
            places: Places::default(),
            running: Mutex::default(),
            changed: Notify::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(crate) fn files(&self) -> &Files {
        &self.inner.files
    }

    pub(crate) fn records(&self) -> &Records {
        &self.inner.records
    }

    pub(crate) fn config(&self) -> &config::Jobs {
        &self.inner.config
    }

    pub(crate) fn disk(&self) -> Disk {
        self.inner.journal.disk().borrow().clone()
    }

    /// Something couldn't be kept.
    pub(crate) fn note(&self, cause: &impl journal::Trouble) {
        self.inner.journal.note(cause);
    }

    /// There may be a job that doesn't run yet.
    pub(crate) fn changed(&self) {
        self.inner.changed.notify_one();
    }

    /// A new job is kept, and then looked at, whether or not whoever made it waits for that. Until
    /// then the `names` of blobs are held, so that nobody takes its input away.
    pub(crate) fn insert(
        &self,
        job: BatchJob,
        names: OwnedMutexGuard<()>,
    ) -> JoinHandle<Result<(), StoreError>> {
        let this = self.clone();
        tokio::spawn(async move {
            let inserted = this.records().insert(job).await;
            drop(names);
            inserted.inspect(|()| this.changed())
        })
    }

    /// A job is cancelled, unless it is at its end. Whether it is.
    ///
    /// # Errors
    /// When that can't be kept.
    pub(crate) async fn cancel(&self, number: i64) -> Result<bool, StoreError> {
        let from = &[JobState::Validating, JobState::InProgress];
        let records = &self.inner.records;
        let is_cancelled = records.advance(number, from, JobState::Cancelling, None).await?;
        if is_cancelled {
            if let Some((_, cancel)) = self.inner.running().get(&number) {
                cancel.cancel();
            }
            self.changed();
        }
        Ok(is_cancelled)
    }

    /// Runs jobs, for ever.
    pub(crate) async fn run(self) {
        let mut jobs = JoinSet::new();
        let mut looked = None;
        loop {
            self.inner.fit_places();
            let mut pause = LOOK_EVERY;
            if looked.is_none_or(|last: Instant| last.elapsed() >= EXPIRE_EVERY) {
                looked = Some(Instant::now());
                if let Err(cause) = self.inner.files.expire().await {
                    warn!(%cause, "files whose time is up can't be deleted now");
                }
            }
            match self.inner.records.open().await {
                Ok(open) => {
                    self.count(&open);
                    // Nothing becomes due of itself where there is nothing.
                    if open.is_empty() && jobs.is_empty() {
                        pause = EXPIRE_EVERY;
                    }
                    self.begin(open, &mut jobs);
                }
                Err(cause) => warn!(%cause, "batch jobs can't be read now"),
            }
            tokio::select! {
                () = self.inner.changed.notified() => {}
                Some(ended) = jobs.join_next() => {
                    if let Err(cause) = &ended {
                        error!(%cause, "a batch job has stopped unexpectedly: it goes on soon");
                    }
                    // Whatever is wrong with one that stopped, it isn't tried in a tight loop.
                    if !ended.unwrap_or(false) {
                        continue_after(&self.inner).await;
                    }
                }
                () = ticks::pass(pause) => {}
            }
        }
    }

    fn count(&self, open: &[BatchJob]) {
        let now = now_s();
        let waiting = |job: &BatchJob| job.num_lines - job.num_completed - job.num_failed;
        self.inner.completions.metrics.open_jobs(OpenJobs {
            num: open.len(),
            num_waiting: open.iter().map(waiting).sum(),
            oldest_s: open.iter().map(|job| now - job.created_s).max().unwrap_or(0),
            slack_s: open.iter().map(|job| job.expires_s - now).min().unwrap_or(0),
        });
    }

    /// Begins those whose turn it is: what is cancelled or late at once, of the others so many,
    /// those of the tenant first of which the fewest run. Each says whether it came to its end.
    fn begin(&self, open: Vec<BatchJob>, jobs: &mut JoinSet<bool>) {
        let mut running = self.inner.running();
        // Whoever cancelled it may have gone before it was told.
        for job in open.iter().filter(|job| job.state == JobState::Cancelling) {
            if let Some((_, cancel)) = running.get(&job.number) {
                cancel.cancel();
            }
        }
        let mut waiting: Vec<_> =
            open.into_iter().filter(|job| !running.contains_key(&job.number)).collect();
        while !waiting.is_empty() && self.disk().problem().is_none() {
            let num_of = |tenant: &str| running.values().filter(|(it, _)| it == tenant).count();
            let is_over = |job: &BatchJob| {
                matches!(job.state, JobState::Cancelling | JobState::Finalizing)
                    || job.expires_s <= now_s()
            };
            let order = |job: &BatchJob| (!is_over(job), num_of(&job.tenant), job.number);
            let Some(at) = (0..waiting.len()).min_by_key(|at| order(&waiting[*at])) else { break };
            let max = self.inner.config.max_running_jobs as usize;
            if running.len() >= max && !is_over(&waiting[at]) {
                break;
            }
            let record = waiting.swap_remove(at);
            let cancel = Arc::new(Cancel::default());
            let (number, tenant) = (record.number, record.tenant.clone());
            running.insert(number, (tenant, Arc::clone(&cancel)));
            let inner = Arc::clone(&self.inner);
            jobs.spawn(async move {
                let _running = Running { inner: Arc::clone(&inner), number };
                let id = record.id.clone();
                let runner = Runner { inner, record: Arc::new(record), cancel };
                let ended = runner.run().await;
                if let Err(cause) = &ended {
                    warn!(batch = id, %cause, "a batch job can't go on now");
                }
                ended.is_ok()
            });
        }
    }
}

/// A pause where the last job to end may begin again.
async fn continue_after(inner: &Inner) {
    tokio::time::sleep(Duration::from_millis(inner.config.retry_ms.min(1000))).await;
}

/// A job that runs, however it ends.
struct Running {
    inner: Arc<Inner>,
    number: i64,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.inner.running().remove(&self.number);
    }
}

impl Inner {
    fn running(&self) -> MutexGuard<'_, HashMap<i64, (String, Arc<Cancel>)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As many lines may be with the scheduler as keep its pipelines at work, and never so many
    /// that others find no place in its queue.
    fn fit_places(&self) {
        let status = self.completions.engine.status();
        let num_pipelines = status.pipelines.iter().filter(|it| it.is_ready()).count().max(1);
        let keeps_busy = 2 * num_pipelines * self.scheduler.max_num_seqs as usize;
        let leaves_room = (self.scheduler.max_queued_requests / 2).max(1);
        let most = self.config.max_lines_in_flight as usize;
        self.places.fit(keeps_busy.min(leaves_room).min(most));
    }

    /// What the key by which a job was made allows, also when it has been revoked since.
    fn access(&self, job: &BatchJob) -> Arc<Access> {
        let of_key = job.key_name.as_deref().and_then(|name| self.keys.of_name(name));
        of_key.unwrap_or_else(|| Arc::new(Access::of_tenant(&job.tenant)))
    }
}

/// In which order a list is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The newest first.
    Descending,
    /// The oldest first.
    Ascending,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub limit: u32,
    /// Those behind this one.
    pub after: Option<String>,
    pub order: Order,
}

impl Page {
    /// Ends a query of this table, whose condition has begun.
    fn push(&self, query: &mut QueryBuilder<Sqlite>, table: &str) {
        let (than, order) = match self.order {
            Order::Descending => ("<", "DESC"),
            Order::Ascending => (">", "ASC"),
        };
        if let Some(after) = &self.after {
            query.push(format!(" AND number {than} (SELECT number FROM {table} WHERE id = "));
            query.push_bind(after.clone()).push(")");
        }
        query.push(format!(" ORDER BY number {order} LIMIT ")).push_bind(self.limit);
    }
}

/// Seconds since 1970.
pub(crate) fn now_s() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// A name that nobody else has.
///
/// # Errors
/// When the system has no random numbers.
pub(crate) fn new_id(prefix: &str) -> io::Result<String> {
    let [high, low] = [getrandom::u64(), getrandom::u64()];
    let (high, low) = (high.map_err(io::Error::other)?, low.map_err(io::Error::other)?);
    Ok(format!("{prefix}{high:016x}{low:016x}"))
}
