//! `/v1/admin/snapshot`: what a monitor shows, once or once a second. Nothing is made for nobody.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Json;
use axum::extract::State;
use axum::http::{Uri, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde_json::Value;

use super::{ApiResult, ApiState};
use crate::batch_job::records::{BatchJob, JobState};
use crate::batch_job::{Order, Page, now_s};
use crate::openai::ApiError;
use crate::snapshot::{ShownJob, Snapshot, SnapshotQuery};

/// Between two events of the stream.
const INTERVAL: Duration = Duration::from_secs(1);

/// Whoever watches asks again after so many events: by a key that still may.
const MAX_EVENTS: u32 = 300;

/// Requests that a question may ask for.
const MAX_REQUESTS: usize = 1000;

/// Batch jobs that are told: open ones, and newest ones that have ended.
const MAX_OPEN_JOBS: usize = 100;
const ENDED_JOBS: u32 = 20;

pub(super) async fn one(State(state): State<Arc<ApiState>>, uri: Uri) -> ApiResult {
    let wanted = wanted(uri.query().unwrap_or_default())?;
    let (snapshot, _) = look(&state, wanted).await.ok_or_else(|| {
        ApiError::unavailable("the scheduler doesn't answer; try again", "scheduler_busy")
    })?;
    Ok(Json(snapshot).into_response())
}

/// The same as often as once a second: the first tells all, the others of points and events only
/// what is new.
pub(super) async fn events(State(state): State<Arc<ApiState>>, uri: Uri) -> ApiResult {
    let wanted = wanted(uri.query().unwrap_or_default())?;
    let closing = state.closing.clone();
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let begin = (state, wanted, ticks, MAX_EVENTS);
    let events = stream::unfold(begin, |(state, mut wanted, mut ticks, left)| async move {
        let left = left.checked_sub(1)?;
        ticks.tick().await;
        let event = match look(&state, wanted).await {
            None => Event::default().comment("the scheduler doesn't answer"),
            Some((snapshot, seen)) => {
                wanted.seen = seen;
                Event::default().json_data(snapshot).ok()?
            }
        };
        Some((Ok::<_, Infallible>(event), (state, wanted, ticks, left)))
    });
    // An answer that never ends would hold up the server's own end.
    let events = futures::StreamExt::take_until(events, closing.cancelled_owned());
    Ok(no_store(Sse::new(events).into_response()))
}

fn no_store(mut response: Response) -> Response {
    let value = header::HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, value);
    response
}

fn wanted(query: &str) -> Result<SnapshotQuery, ApiError> {
    let mut wanted = SnapshotQuery::default();
    for field in query.split('&').filter(|field| !field.is_empty()) {
        let (name, value) = field.split_once('=').unwrap_or((field, ""));
        let number = || {
            let wrong = || ApiError::invalid(name, format!("{name} must be a whole number"));
            value.parse::<u64>().map_err(|_| wrong())
        };
        match (name, value) {
            ("requests", _) => {
                wanted.num_requests = number()?.min(MAX_REQUESTS as u64) as usize;
            }
            ("points", _) => wanted.seen.points = number()?,
            ("events", _) => wanted.seen.events = number()?,
            ("order", "oldest") => wanted.newest = false,
            ("order", "newest") => wanted.newest = true,
            ("order", _) => {
                return Err(ApiError::invalid("order", "order must be oldest or newest"));
            }
            _ => {
                let message = "a snapshot takes requests, order, points and events";
                return Err(ApiError::malformed(message));
            }
        }
    }
    Ok(wanted)
}

/// A snapshot, and what is seen by whoever sees it. None while the scheduler doesn't answer.
async fn look(state: &ApiState, wanted: SnapshotQuery) -> Option<(Snapshot, crate::recent::Seen)> {
    let mut snapshot = state.engine.look(move |cluster, now| cluster.seen(&wanted, now)).await?;
    let (status, now) = (state.engine.status(), Instant::now());
    let seen = {
        let recent = state.metrics.recent();
        snapshot.take_status(&status, &recent, now);
        (snapshot.points, snapshot.events) = recent.beyond(wanted.seen, now);
        snapshot.interval_ms = recent.interval_ms();
        recent.seen()
    };
    env!("CARGO_PKG_VERSION").clone_into(&mut snapshot.version);
    snapshot.model.clone_from(&state.model.name);
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    snapshot.at_ms = since.as_millis() as u64;
    snapshot.up_s = since.as_secs().saturating_sub(state.model.created);
    snapshot.jobs = jobs(state).await;
    snapshot.find_concerns();
    Some((snapshot, seen))
}

/// None, where they can't be read now: the rest is worth looking at all the same.
async fn jobs(state: &ApiState) -> Vec<ShownJob> {
    let records = state.jobs.records();
    let page = Page { limit: ENDED_JOBS, after: None, order: Order::Descending };
    let (open, newest) = (records.open().await, records.list(None, &page).await);
    let ended = newest.into_iter().flatten().filter(|job| !job.state.is_open());
    let open = open.into_iter().flatten().take(MAX_OPEN_JOBS);
    open.chain(ended).map(|job| describe(&job, now_s())).collect()
}

fn describe(job: &BatchJob, now: i64) -> ShownJob {
    let error = job.errors.as_ref().map(|errors| &errors["data"][0]["message"]);
    let finalized = [JobState::Completed, JobState::Failed, JobState::Expired, JobState::Cancelled];
    let ended = finalized.into_iter().find_map(|state| job.since(state));
    ShownJob {
        id: job.id.clone(),
        tenant: job.tenant.clone(),
        state: job.state.name().into(),
        lines: job.num_lines,
        completed: job.num_completed,
        failed: job.num_failed,
        tokens: job.num_tokens,
        age_s: ended.unwrap_or(now) - job.created_s,
        left_s: job.expires_s - now,
        error: error.and_then(Value::as_str).unwrap_or_default().to_owned(),
    }
}
