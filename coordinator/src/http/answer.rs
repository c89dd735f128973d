//! Completions over HTTP: gathered or streamed. Dropping what this file holds of a request cancels
//! it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::stream;
use serde_json::json;
use tokio::sync::mpsc;

use super::body::{self, Permit};
use super::caller::Caller;
use super::{ApiResult, ApiState, durable, error, origin};
use crate::completion::{Asked, Completion, Terms};
use crate::openai::{ApiError, Chunk, Style, count_messages};

/// So that proxies don't take a silent stream for a dead one.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Chunks that wait for a slow client; then its own stream waits, and nobody else's.
pub(super) const MAX_BUFFERED_CHUNKS: usize = 64;

/// Milliseconds after which the answer is of no more use.
const DEADLINE: &str = "x-deadline-ms";

pub(super) async fn chat(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> ApiResult {
    respond(state, caller, request, Style::Chat).await
}

pub(super) async fn completion(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> ApiResult {
    respond(state, caller, request, Style::Completion).await
}

pub(super) async fn messages(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> ApiResult {
    respond(state, caller, request, Style::Messages).await
}

pub(super) async fn responses(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> ApiResult {
    respond(state, caller, request, Style::Responses).await
}

pub(super) async fn embeddings(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> ApiResult {
    respond(state, caller, request, Style::Embeddings).await
}

pub(super) async fn infill(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> ApiResult {
    respond(state, caller, request, Style::Infill).await
}

/// How long a prompt is, in Anthropic's form.
pub(super) async fn count_tokens(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> ApiResult {
    let counted = async {
        let _permit = body::admit(&state, &caller)?;
        body::parsed(&state, &caller, request, true, count_messages).await
    };
    Ok(match counted.await {
        Ok(num_tokens) => Json(json!({"input_tokens": num_tokens})).into_response(),
        Err(error) => error::told(error, Style::Messages),
    })
}

async fn respond(
    state: Arc<ApiState>,
    caller: Caller,
    request: Request,
    style: Style,
) -> ApiResult {
    // Who comes back doesn't ask anew, be it by the same way.
    if let Some((id, last)) = durable::last_event(request.headers())? {
        return durable::go_on(&state, &caller, id, Some(last)).await;
    }
    let origin = origin::of(request.headers(), Instant::now());
    let asked = Asked::new(&state.completions, &caller.0, style, origin);
    let mut headers = HeaderMap::new();
    for (name, value) in asked.trace_headers() {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    let read = async {
        let permit = body::admit(&state, &caller)?;
        let deadline = deadline(request.headers())?;
        Ok((permit, deadline, body::read(&state, request).await?))
    };
    let submitted = match read.await {
        Ok((permit, deadline, body)) => {
            let terms = Terms { deadline, ..Terms::default() };
            asked.submit(body, terms).await.map(|completion| (completion, permit))
        }
        Err(error) => Err(asked.refuse(error)),
    };
    let mut response = match submitted {
        Ok((completion, permit)) => {
            if let Ok(id) = HeaderValue::from_str(completion.answer().id()) {
                headers.insert("x-request-id", id);
            }
            if let Some(log) = completion.log().cloned() {
                let durables = state.durables.clone();
                tokio::spawn(completion.record(durables, None, permit));
                durable::begin(&state, log)
            } else if completion.answer().streams() {
                stream(completion, permit, Duration::from_millis(state.config.send_timeout_ms))
            } else {
                match completion.whole().await {
                    Ok(answer) => {
                        let json = [(header::CONTENT_TYPE, "application/json")];
                        (json, answer.finish()).into_response()
                    }
                    Err(error) => error::told(error, style),
                }
            }
        }
        Err(error) => {
            if let (503, Some(code)) = (error.status, error.code) {
                state.metrics.shed(code);
            }
            error::told(error, style)
        }
    };
    response.headers_mut().extend(headers);
    Ok(response)
}

/// When the client's patience ends, where a header says so.
fn deadline(headers: &HeaderMap) -> Result<Option<Instant>, ApiError> {
    let Some(value) = headers.get(DEADLINE) else { return Ok(None) };
    let millis = value.to_str().ok().and_then(|text| text.parse().ok());
    let millis = millis.ok_or_else(|| {
        ApiError::invalid(DEADLINE, format!("{DEADLINE} must be a whole number of milliseconds"))
    })?;
    crate::openai::deadline(DEADLINE, millis).map(Some)
}

/// A response that begins before the answer ends. A client that reads nothing for `timeout`, with
/// all chunks waiting that may, counts as gone.
fn stream(completion: Completion, permit: Permit, timeout: Duration) -> Response {
    let (chunks, sent) = mpsc::channel(MAX_BUFFERED_CHUNKS);
    tokio::spawn(async move {
        let _permit = permit;
        produce(completion, chunks, timeout).await;
    });
    let sent = stream::unfold(sent, |mut sent| async {
        sent.recv().await.map(|chunk| (Ok::<_, Infallible>(chunk), sent))
    });
    Sse::new(sent).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

/// Sends chunks until the answer ends or the client goes away.
async fn produce(mut completion: Completion, chunks: mpsc::Sender<SseEvent>, timeout: Duration) {
    let send = async |said: Vec<Chunk>| {
        for chunk in said {
            let mut event = SseEvent::default().data(chunk.data);
            if let Some(name) = chunk.event {
                event = event.event(name);
            }
            if chunks.send_timeout(event, timeout).await.is_err() {
                return false;
            }
        }
        true
    };
    if !send(completion.opening()).await {
        return;
    }
    loop {
        let advanced = tokio::select! {
            advanced = completion.advance() => advanced,
            // Nobody listens any more: dropping the completion cancels it.
            () = chunks.closed() => return,
        };
        match advanced {
            Ok(Some(said)) => {
                if !send(said).await {
                    return;
                }
            }
            Ok(None) => break,
            Err(error) => {
                send(completion.failed(&error)).await;
                return;
            }
        }
    }
    send(completion.answer().closing()).await;
}
