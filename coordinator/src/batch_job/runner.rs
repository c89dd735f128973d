//! One job from its first line to its files: what the pure [`Job`] decides is done here. Dropped at
//! any moment, it goes on from what is durable.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde_json::json;
use tokio::sync::{Notify, mpsc};
use tracing::info;

use super::job::{End, Job, Line, Setback};
use super::journal::Disk;
use super::line::{self, style_of};
use super::places::Place;
use super::reading::{self, Found, Window, WindowSource};
use super::records::{BatchJob, JobState, Outcome};
use super::row_plan::RowPlan;
use super::{Inner, now_s};
use crate::completion::{Asked, Origin, Terms};
use crate::keys::Access;
use crate::openai::{Answer, ApiError, Style};
use crate::request::Priority;
use crate::store::StoreError;

/// Why a job doesn't go on now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stopped {
    /// What is known can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its input can't be read.
    #[error("its input can't be read: {0}")]
    Input(#[from] io::Error),
    /// Nothing becomes durable any more.
    #[error("the disk can't be relied on")]
    Disk,
}

/// Tells a job that runs that nobody wants it any more.
#[derive(Debug, Default)]
pub(super) struct Cancel {
    is_cancelled: AtomicBool,
    told: Notify,
}

impl Cancel {
    /// Nobody wants it any more.
    pub(super) fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Release);
        self.told.notify_one();
    }

    /// Whether somebody still does.
    pub(super) fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Acquire)
    }
}

pub(super) struct Runner {
    pub(super) inner: Arc<Inner>,
    pub(super) record: Arc<BatchJob>,
    pub(super) cancel: Arc<Cancel>,
}

impl Runner {
    pub(super) async fn run(mut self) -> Result<(), Stopped> {
        // What was known of it when its turn came may be old: it may have ended since, and whoever
        // cancelled it before it was known to run told nobody.
        let record = self.inner.records.get(&self.record.id).await?;
        let Some(record) = record.filter(|record| record.state.is_open()) else { return Ok(()) };
        self.record = Arc::new(record);
        let mut end = match self.record.state {
            JobState::Validating if !self.validate().await? => return Ok(()),
            JobState::Validating | JobState::InProgress => match self.compute().await {
                // Nothing more of it can be computed.
                Err(Stopped::Input(cause)) if self.gives_up(&cause) => Some(End::Expired),
                end => Some(end?),
            },
            JobState::Cancelling => Some(End::Cancelled),
            _ => None,
        };
        // Whoever cancelled it at the last moment was told so, and it is.
        if self.cancel.is_cancelled() {
            end = Some(End::Cancelled);
        }
        if let Some(End::Completed | End::Expired) = end {
            self.advance(&[JobState::InProgress], JobState::Finalizing, None).await?;
        }
        self.finish().await
    }

    /// Whether an input that can't be read isn't tried again: it is gone, or its job's time is up.
    pub(super) fn gives_up(&self, cause: &io::Error) -> bool {
        cause.kind() == io::ErrorKind::NotFound || self.record.expires_s <= now_s()
    }

    /// Looks at every line; the job fails if its input is none. Whether it goes on.
    async fn validate(&self) -> Result<bool, Stopped> {
        let (inner, record, cancel) =
            (Arc::clone(&self.inner), Arc::clone(&self.record), Arc::clone(&self.cancel));
        let max_open = inner.config.max_commit_rows as usize * 4;
        let looked = tokio::task::spawn_blocking(move || {
            let (mut open, mut num_lost) = (Vec::new(), 0);
            let note = |outcome| {
                open.push(outcome);
                if open.len() == max_open {
                    num_lost += inner.journal.keep(std::mem::take(&mut open));
                }
            };
            let found = reading::look(&inner, &record, &cancel, note)?;
            num_lost += inner.journal.keep(open);
            Ok::<_, io::Error>((found, num_lost))
        });
        let looked = looked.await.unwrap_or_else(|cause| Err(io::Error::other(cause)));
        let (found, num_lost) = match looked {
            Err(cause) if self.gives_up(&cause) => (Found::unreadable(&cause), 0),
            looked => looked?,
        };
        if num_lost > 0 {
            return Err(Stopped::Disk);
        }
        let (num_lines, num_wrong) = match found {
            Found::Lines { num, num_wrong } => (num, num_wrong),
            Found::Cancelled => return Ok(true),
            Found::Nothing(problem) => {
                let errors = json!({"object": "list", "data": [problem]});
                info!(batch = self.record.id, %errors, "a batch job has failed");
                let Inner { records, journal, .. } = &*self.inner;
                let number = self.record.number;
                while journal.settle(records.fail(number, errors.clone()).await).await?.is_none() {}
                return Ok(false);
            }
        };
        self.advance(&[JobState::Validating], JobState::InProgress, Some(num_lines)).await?;
        info!(batch = self.record.id, num_lines, num_wrong, "a batch job begins");
        Ok(true)
    }

    async fn advance(
        &self,
        from: &'static [JobState],
        to: JobState,
        num_lines: Option<u32>,
    ) -> Result<(), Stopped> {
        let Inner { records, journal, .. } = &*self.inner;
        loop {
            let advanced = records.advance(self.record.number, from, to, num_lines).await;
            if journal.settle(advanced).await?.is_some() {
                return Ok(());
            }
        }
    }

    /// Computes what isn't durable, until every line is or the job ends otherwise.
    async fn compute(&self) -> Result<End, Stopped> {
        let Inner { records, config, places, completions, journal, .. } = &*self.inner;
        let done = records.done(self.record.number).await?;
        let counted = records.get(&self.record.id).await?.map_or(0, |record| record.num_lines);
        let left = Duration::from_secs((self.record.expires_s - now_s()).max(0).unsigned_abs());
        let deadline = Instant::now() + left;
        let num_lines = u32::try_from(counted).unwrap_or(u32::MAX);
        let mut job = Job::new(config, num_lines, done.clone(), deadline);
        let mut source = Some(WindowSource::open(&self.inner, &self.record, done)?);
        let mut reading = None;
        let plan = self.record.rows.as_ref().and_then(|rows| RowPlan::parse(rows).ok());
        let style = style_of(&self.record.endpoint).unwrap_or(Style::Completion);
        let access = self.inner.access(&self.record);
        let (told, mut heard) = mpsc::unbounded_channel();
        let (mut disk, mut computing) = (journal.disk(), FuturesUnordered::new());
        loop {
            let now = Instant::now();
            if self.cancel.is_cancelled() {
                job.cancel();
            }
            job.tick(now);
            if job.is_given_up() {
                // Dropped, they are taken from the scheduler.
                computing.clear();
                job.abandoned();
            }
            if let Some(end) = job.ended() {
                return Ok(end);
            }
            if let Some(source) = source.take_if(|_| job.reads()) {
                reading = Some(tokio::task::spawn_blocking(move || source.window()));
            }
            let wants_place = job.wants_place(now);
            let is_ready = completions.engine.status().is_ready();
            let mut timer = job.next_timer(now);
            if wants_place && !is_ready {
                timer = timer.min(now + Duration::from_millis(config.retry_ms));
            }
            tokio::select! {
                window = async { reading.as_mut().expect("it is looked at").await },
                    if reading.is_some() =>
                {
                    reading = None;
                    let (from, window) = window.map_err(io::Error::other)??;
                    let Window { lines, wrong, is_last } = window;
                    source = Some(from);
                    job.read(lines, is_last);
                    for outcome in wrong {
                        job.found_wrong();
                        journal.record(outcome, told.clone());
                    }
                    if job.is_known() {
                        journal.flush();
                    }
                }
                place = places.take(&self.record.tenant), if wants_place && is_ready => {
                    if let Some(line) = job.next(now) {
                        let terms = self.terms(&line, deadline);
                        computing.push(self.answer(line, (&access, style), terms, place));
                    }
                }
                Some((line, answer)) = computing.next(), if !computing.is_empty() => {
                    if let Some(outcome) = self.take(&mut job, plan.as_ref(), line, answer) {
                        job.answered();
                        journal.record(outcome, told.clone());
                        if job.is_known() {
                            journal.flush();
                        }
                    }
                }
                Some(numbers) = heard.recv() => job.committed(&numbers),
                () = self.cancel.told.notified() => {}
                _ = disk.wait_for(|disk| matches!(disk, Disk::Broken(_))) => {
                    return Err(Stopped::Disk);
                }
                () = tokio::time::sleep_until(timer.into()) => {}
            }
        }
    }

    /// A line without a seed has one that hangs on the bytes of the input and on its number, so
    /// that it is answered alike whenever and wherever it is computed.
    fn terms(&self, line: &Line, deadline: Instant) -> Terms {
        let mut hasher = blake3::Hasher::new_derive_key("autoglm batch jobs, a line's seed");
        hasher.update(self.record.input_hash.as_bytes()).update(&line.number.to_le_bytes());
        let mut seed = [0; 8];
        hasher.finalize_xof().fill(&mut seed);
        let seed = Some(u64::from_le_bytes(seed));
        Terms { deadline: Some(deadline), priority: Some(Priority::Offline), seed }
    }

    async fn answer(
        &self,
        line: Line,
        (access, style): (&Arc<Access>, Style),
        terms: Terms,
        _place: Place,
    ) -> (Line, Result<Answer, ApiError>) {
        let origin = Origin {
            start: Instant::now(),
            is_awaited: false,
            client_request: None,
            parent: None,
            trace_state: String::new(),
        };
        let asked = Asked::new(&self.inner.completions, access, style, origin);
        let body = Bytes::from(line.asks.body.clone());
        let answer = async { asked.submit(body, terms).await?.whole().await }.await;
        (line, answer)
    }

    /// What is to be durable of a line; none where it is tried again.
    fn take(
        &self,
        job: &mut Job,
        plan: Option<&RowPlan>,
        line: Line,
        answer: Result<Answer, ApiError>,
    ) -> Option<Outcome> {
        let (number, custom_id) = (line.number, line.asks.custom_id.clone());
        let place = line::LineId { batch: self.record.number, line: number };
        let (is_failed, text, num_tokens) = match answer {
            Ok(answer) => {
                let num = [
                    answer.num_prompt_tokens(),
                    answer.num_cached_tokens(),
                    answer.num_generated_tokens(),
                ];
                let body = answer.finish();
                let (is_failed, text) = match plan.map(|plan| plan.answered(&body)) {
                    None => (false, place.answered(&custom_id, body)),
                    Some(Ok(cells)) => (false, cells),
                    Some(Err(why)) => (true, place.ended(Some(&custom_id), "invalid_answer", &why)),
                };
                (is_failed, text, num.map(|num| num as i64))
            }
            Err(error) => {
                let trouble = trouble(&error);
                let again = |trouble| job.tries_again(line, trouble, Instant::now());
                if trouble.is_some_and(again) {
                    return None;
                }
                (true, place.failed(&custom_id, &error), [0; 3])
            }
        };
        Some(Outcome { batch: place.batch, line: number, is_failed, text, num_tokens })
    }
}

/// Whether a line may be tried again after this. Whatever is its own fault stays so.
fn trouble(error: &ApiError) -> Option<Setback> {
    match (error.status, error.code) {
        (429, _) => {
            let wait = error.retry_after.map(|seconds| Duration::from_secs(seconds.into()));
            Some(Setback::Later(wait))
        }
        // The job's own deadline: it looks at the clock itself.
        (503, _) | (_, Some("deadline_exceeded")) => Some(Setback::Later(None)),
        (500, Some("answer_lost") | None) => Some(Setback::Lost),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Bench, line};
    use super::*;
    use crate::keys::OverQuota;
    use crate::request::{RequestError, SubmitError};

    /// Goal: a job that is cancelled computes no more, whether or not whoever cancelled it came to
    /// tell it. Method: it is told nothing, and its line is never answered.
    #[tokio::test]
    async fn a_job_hears_of_its_cancel_from_the_store_too() {
        let dir = tempfile::tempdir().unwrap();
        let bench = Bench::open(dir.path(), |_, _| None, |_| {}).await;
        let id = bench.hand_in(line("a", "x").as_bytes(), 3600).await;
        let number = bench.get(&id).await.number;
        let cancel = async {
            while bench.num_computed.load(Ordering::SeqCst) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let (from, to) = (&[JobState::InProgress], JobState::Cancelling);
            bench.jobs.records().advance(number, from, to, None).await
        };
        let (job, cancelled) = tokio::join!(bench.finish(&id), cancel);
        assert!(cancelled.unwrap());
        assert_eq!(job.state, JobState::Cancelled);
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let later = |seconds| Some(Setback::Later(Some(Duration::from_secs(seconds))));
        let lost = RequestError::NoPipeline { waited_s: 9, cause: "x".into() };
        let cases: [(ApiError, Option<Setback>); 10] = [
            (SubmitError::QueueFull { max: 1 }.into(), Some(Setback::Later(None))),
            (SubmitError::NoPipeline("x".into()).into(), Some(Setback::Later(None))),
            (lost.into(), Some(Setback::Later(None))),
            (RequestError::ShuttingDown.into(), Some(Setback::Later(None))),
            (OverQuota::Requests { limit: 1, wait_s: 60 }.into(), later(60)),
            (ApiError::internal("x").code("answer_lost"), Some(Setback::Lost)),
            (RequestError::StepFailed("x".into()).into(), None),
            (RequestError::Cancelled.into(), None),
            (SubmitError::TooLarge { needed: 2, held: 1 }.into(), None),
            (ApiError::no_model("x", "m"), None),
        ];
        for (error, expected) in cases {
            assert_eq!(trouble(&error), expected, "{error:?}");
        }
    }
}
