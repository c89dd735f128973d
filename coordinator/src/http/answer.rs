//! Completions: submit, gather or stream. Dropping what this file holds of a request cancels it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::HeaderValue;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use futures::stream::{self, BoxStream, SelectAll};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{ApiResult, ApiState, error};
use crate::metrics::Tokens;
use crate::openai::{Answer, ApiError, Context, Parsed, Style, parse_chat, parse_completion};
use crate::request::Event;

/// So that proxies don't take a silent stream for a dead one.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Chunks that wait for a slow client; then its own stream waits, and nobody else's.
const MAX_BUFFERED_CHUNKS: usize = 64;

pub(super) async fn chat(
    State(state): State<Arc<ApiState>>,
    body: Result<Bytes, BytesRejection>,
) -> ApiResult {
    respond(state, body, Style::Chat, parse_chat).await
}

pub(super) async fn completion(
    State(state): State<Arc<ApiState>>,
    body: Result<Bytes, BytesRejection>,
) -> ApiResult {
    respond(state, body, Style::Completion, parse_completion).await
}

async fn respond(
    state: Arc<ApiState>,
    body: Result<Bytes, BytesRejection>,
    style: Style,
    parse: fn(&[u8], Context<'_>) -> Result<Parsed, ApiError>,
) -> ApiResult {
    let metrics = Arc::clone(&state.metrics);
    let model = state.model.name.clone();
    let responded = try_respond(state, body, style, parse).await;
    if let Err(error) = &responded {
        metrics.ended(&model, error.status);
        if let (503, Some(code)) = (error.status, error.code) {
            metrics.shed(code);
        }
    }
    responded
}

async fn try_respond(
    state: Arc<ApiState>,
    body: Result<Bytes, BytesRejection>,
    style: Style,
    parse: fn(&[u8], Context<'_>) -> Result<Parsed, ApiError>,
) -> ApiResult {
    let body = body.map_err(|cause| error::unreadable(&cause, state.config.max_body_bytes))?;
    let permit = Arc::clone(&state.permits).try_acquire_owned().map_err(|_| {
        let max = state.config.max_concurrent_requests;
        let message = format!("{max} requests are being answered (http.max_concurrent_requests)");
        ApiError::unavailable(message, "too_many_requests")
    })?;
    let parsed = parse(&body, state.context())?;
    let start = Instant::now();
    let number = parsed.requests.first().map_or(0, |request| request.id.0);
    let mut answer = Answer::new(
        style,
        number,
        state.model.name.clone(),
        state.engine.status().system_fingerprint.clone(),
        &parsed,
        Arc::clone(&state.tokenizer),
    );
    let stream = parsed.options.stream;
    let mut events = submit(&state, parsed).await?;
    let id = HeaderValue::from_str(answer.id());
    let mut clock = Clock::new(start);
    let mut response = if stream {
        let (chunks, sent) = mpsc::channel(MAX_BUFFERED_CHUNKS);
        tokio::spawn(produce(state, answer, events, clock, chunks, permit));
        let sent = stream::unfold(sent, |mut sent| async {
            sent.recv().await.map(|chunk| (Ok::<_, Infallible>(chunk), sent))
        });
        let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
        Sse::new(sent).keep_alive(keep_alive).into_response()
    } else {
        while let Some((request, event)) = events.next().await {
            clock.observe(&state, &event);
            if let Event::Failed(cause) = event {
                return Err(cause.into());
            }
            answer.take(request, event);
        }
        clock.ended(&state, &answer);
        Json(answer.finish()).into_response()
    };
    if let Ok(id) = id {
        response.headers_mut().insert("x-request-id", id);
    }
    Ok::<Response, ApiError>(response)
}

/// The events of all requests of a body, each with the number of its request.
type Events = SelectAll<BoxStream<'static, (usize, Event)>>;

async fn submit(state: &ApiState, parsed: Parsed) -> Result<Events, ApiError> {
    let mut all = SelectAll::new();
    for (number, request) in parsed.requests.into_iter().enumerate() {
        let events = state.engine.submit(request).await?;
        all.push(
            stream::unfold(events, move |mut events| async move {
                events.recv().await.map(|event| ((number, event), events))
            })
            .boxed(),
        );
    }
    Ok(all)
}

/// Turns events into chunks until the answer ends or the client goes away.
async fn produce(
    state: Arc<ApiState>,
    mut answer: Answer,
    mut events: Events,
    mut clock: Clock,
    chunks: mpsc::Sender<SseEvent>,
    _permit: OwnedSemaphorePermit,
) {
    let send = async |chunk: serde_json::Value| {
        chunks.send(SseEvent::default().data(chunk.to_string())).await.is_ok()
    };
    for chunk in answer.opening() {
        if !send(chunk).await {
            return;
        }
    }
    loop {
        let next = tokio::select! {
            next = events.next() => next,
            // Nobody listens any more: dropping the events cancels the request.
            () = chunks.closed() => return,
        };
        let Some((request, event)) = next else { break };
        clock.observe(&state, &event);
        if let Event::Failed(cause) = event {
            let error = ApiError::from(cause);
            state.metrics.ended(&state.model.name, error.status);
            send(error.body()).await;
            return;
        }
        if let Some(chunk) = answer.take(request, event)
            && !send(chunk).await
        {
            return;
        }
    }
    clock.ended(&state, &answer);
    if let Some(chunk) = answer.closing() {
        send(chunk).await;
    }
    // Fails when the client has gone, and then nothing is left to say.
    let _ = chunks.send(SseEvent::default().data("[DONE]")).await;
}

/// When things happened to an answer.
struct Clock {
    start: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Clock {
    fn new(start: Instant) -> Self {
        Self { start, first: None, last: None }
    }

    fn observe(&mut self, state: &ApiState, event: &Event) {
        if !matches!(event, Event::Token { .. }) {
            return;
        }
        let now = Instant::now();
        match self.last {
            None => {
                self.first = Some(now);
                state.metrics.first_token(now - self.start);
            }
            Some(last) => state.metrics.next_token(now - last),
        }
        self.last = Some(now);
    }

    fn ended(&self, state: &ApiState, answer: &Answer) {
        let tokens = Tokens {
            num_prompt: answer.num_prompt_tokens(),
            num_generated: answer.num_generated_tokens(),
        };
        let decoding = match (self.first, self.last) {
            (Some(first), Some(last)) => last - first,
            _ => Duration::ZERO,
        };
        state.metrics.answered(&state.model.name, tokens, self.start.elapsed(), decoding);
    }
}
