//! `/v1/requests`: why a request waits, what is open, and how it is cancelled.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, State};
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use protocol::RequestId;
use serde_json::{Value, json};

use super::caller::Caller;
use super::{ApiResult, ApiState};
use crate::cluster::{Cluster, Explained};
use crate::openai::ApiError;

/// Requests of a page, unless its question says otherwise.
const PAGE: usize = 20;

/// The most that it may say.
const MAX_PAGE: usize = 100;

pub(super) async fn list(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> ApiResult {
    let (limit, after) = page(uri.query().unwrap_or_default())?;
    let after = match after {
        None => None,
        Some(after) => Some(explained(&state, &caller, after).await?.id),
    };
    let look = move |cluster: &Cluster, now: Instant| {
        cluster.open_requests(after, limit + 1, now, |tenant| caller.may_see(tenant))
    };
    let mut open = state.engine.look(look).await.ok_or_else(busy)?;
    let has_more = open.len() > limit;
    open.truncate(limit);
    let data: Vec<_> = open.iter().map(|it| describe(&name(it.id), it)).collect();
    Ok(Json(json!({"object": "list", "data": data, "has_more": has_more})).into_response())
}

/// How many, and after which: neither needs what a query could escape.
fn page(query: &str) -> Result<(usize, Option<&str>), ApiError> {
    let (mut limit, mut after) = (PAGE, None);
    for field in query.split('&').filter(|field| !field.is_empty()) {
        let (name, value) = field.split_once('=').unwrap_or((field, ""));
        match name {
            "after" => after = Some(value),
            "limit" => {
                let number = value.parse().ok().filter(|it| (1..=MAX_PAGE).contains(it));
                limit = number.ok_or_else(|| {
                    let message = format!("limit must be a whole number from 1 to {MAX_PAGE}");
                    ApiError::invalid("limit", message)
                })?;
            }
            _ => {
                let message = "a list of requests takes limit and after";
                return Err(ApiError::malformed(message));
            }
        }
    }
    Ok((limit, after))
}

pub(super) async fn retrieve(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> ApiResult {
    answer(&state, &caller, &text(id)?).await
}

/// Whatever is open of it is cancelled; one that has ended stays as it is, and is shown.
pub(super) async fn cancel(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> ApiResult {
    let id = text(id)?;
    let found = explained(&state, &caller, &id).await?;
    if found.state.is_open() {
        state.engine.withdraw(found.id);
    }
    // The actor takes in one message after another: this question finds it cancelled.
    answer(&state, &caller, &id).await
}

async fn answer(state: &ApiState, caller: &Caller, id: &str) -> Result<Response, ApiError> {
    let found = explained(state, caller, id).await?;
    Ok(Json(describe(id, &found)).into_response())
}

async fn explained(state: &ApiState, caller: &Caller, id: &str) -> Result<Explained, ApiError> {
    let Some(body) = parse(id) else { return Err(unknown(id)) };
    let found = state.engine.look(move |cluster, now| cluster.explain(body, now)).await;
    // Another's looks as if there were none.
    let found = found.ok_or_else(busy)?.filter(|found| caller.may_see(&found.tenant));
    found.ok_or_else(|| unknown(id))
}

pub(super) fn text(id: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    let id = id.map_err(|_| ApiError::malformed("the request's id in the path is no text"))?;
    Ok(id.0)
}

/// An id as an answer has it, or without its prefix.
pub(super) fn parse(id: &str) -> Option<RequestId> {
    let digits = id.rsplit_once(['-', '_']).map_or(id, |(_, digits)| digits);
    let is_id = digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| u64::from_str_radix(digits, 16).ok().map(RequestId)).flatten()
}

/// An id without the prefix that tells the route that it came by.
fn name(id: RequestId) -> String {
    format!("{:016x}", id.0)
}

fn unknown(id: &str) -> ApiError {
    let shown: String = id.chars().take(64).collect();
    let message = format!(
        "there is no request {shown}, or it ended too long ago \
         (scheduler.max_explained_requests); ids look like cmpl-0123456789abcdef"
    );
    ApiError::invalid("id", message).status(404).code("request_not_found")
}

fn busy() -> ApiError {
    ApiError::unavailable("the scheduler doesn't answer; try again", "scheduler_busy")
}

fn describe(id: &str, found: &Explained) -> Value {
    let decisions = found.decisions.iter().map(|entry| {
        json!({
            "at_ms": entry.at.as_millis() as u64,
            "choice": entry.choice,
            "what": entry.decision.name(),
            "why": entry.decision.why(),
        })
    });
    let waiting = found.waiting.iter().map(|it| {
        json!({
            "choice": it.choice,
            "waited_ms": it.waited.as_millis() as u64,
            "priority": it.level.name(),
            "num_before": it.num_before,
            "num_passed": it.num_passed,
            "why": it.why,
        })
    });
    json!({
        "id": id,
        "object": "request",
        "state": found.state.name(),
        "priority": found.priority.name(),
        "age_ms": found.age.as_millis() as u64,
        "decisions": decisions.collect::<Vec<_>>(),
        "num_forgotten": found.num_forgotten,
        "waiting": waiting.collect::<Vec<_>>(),
    })
}
