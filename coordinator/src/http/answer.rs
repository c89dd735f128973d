//! Completions: submit, gather or stream. Dropping what this file holds of a request cancels it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;
use protocol::TraceId;
use tokio::sync::mpsc;

use super::body::{self, Permit};
use super::caller::{Caller, over};
use super::ending::Ending;
use super::{ApiResult, ApiState};
use crate::events::{Events, Heard};
use crate::keys::Reserved;
use crate::metrics::{Metrics, Tokens};
use crate::openai::{Answer, ApiError, Context, Parsed, Style, parse_chat, parse_completion};
use crate::request::Event;

/// So that proxies don't take a silent stream for a dead one.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Chunks that wait for a slow client; then its own stream waits, and nobody else's.
const MAX_BUFFERED_CHUNKS: usize = 64;

/// Milliseconds after which the answer is of no more use.
const DEADLINE: &str = "x-deadline-ms";

pub(super) async fn chat(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> ApiResult {
    respond(state, caller, request, (Style::Chat, parse_chat)).await
}

pub(super) async fn completion(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> ApiResult {
    respond(state, caller, request, (Style::Completion, parse_completion)).await
}

type Parse = fn(&[u8], Context<'_>) -> Result<Parsed, ApiError>;

async fn respond(
    state: Arc<ApiState>,
    caller: Caller,
    request: Request,
    (style, parse): (Style, Parse),
) -> ApiResult {
    let start = Instant::now();
    let mut ending = Ending::new(&state, style, request.headers(), (&caller, start));
    let admitted = async {
        let permit = body::admit(&state, &caller)?;
        let deadline = deadline(request.headers())?;
        let mut content = ending.traced.as_mut().and_then(|traced| traced.content.take());
        let parse = move |body: &[u8], context: Context<'_>| {
            let parsed = parse(body, context)?;
            if let Some(content) = &mut content {
                content.asked(body);
            }
            Ok((parsed, content))
        };
        let (mut parsed, content) =
            body::parsed(&state, &caller, request, style == Style::Chat, parse).await?;
        if let Some(traced) = &mut ending.traced {
            traced.content = content;
        }
        for request in &mut parsed.requests {
            request.deadline = deadline.or(request.deadline);
        }
        let stream = parsed.options.stream;
        let answer = describe(&state, style, &parsed);
        ending.parsed(&answer, &mut parsed);
        let reserved = caller.0.reserve(&parsed.requests);
        let reserved = reserved.map_err(|quota| over(&state, quota))?;
        let events = state.engine.submit(parsed.requests).await?;
        Ok::<_, ApiError>((stream, answer, events, (permit, reserved)))
    };
    let (stream, answer, events, (permit, reserved)) = match admitted.await {
        Ok(admitted) => admitted,
        Err(error) => {
            ending.failed(&error);
            if let (503, Some(code)) = (error.status, error.code) {
                state.metrics.shed(code);
            }
            let mut response = error.into_response();
            if let Some(traced) = &ending.traced {
                traced.announce(response.headers_mut());
            }
            return Ok(response);
        }
    };
    let mut headers = HeaderMap::new();
    if let Ok(id) = HeaderValue::from_str(answer.id()) {
        headers.insert("x-request-id", id);
    }
    if let Some(traced) = &ending.traced {
        traced.announce(&mut headers);
    }
    if stream {
        ending.streams();
    }
    let trace = ending.traced.as_ref().map(|traced| traced.id());
    let clock = Clock::new(start, answer.num_choices(), trace);
    ending.admitted(&answer);
    let mut answering =
        Answering { state, answer, events, clock, ending, reserved, _permit: permit };
    let mut response = if stream {
        answering.stream()
    } else {
        loop {
            match answering.advance().await {
                Ok(Some(_)) => {}
                Ok(None) => {
                    let json = [(header::CONTENT_TYPE, "application/json")];
                    break (json, answering.answer.finish()).into_response();
                }
                Err(error) => break error.into_response(),
            }
        }
    };
    response.headers_mut().extend(headers);
    Ok(response)
}

fn describe(state: &ApiState, style: Style, parsed: &Parsed) -> Answer {
    let number = parsed.requests.first().map_or(0, |request| request.id.0);
    let fingerprint = state.engine.status().system_fingerprint.clone();
    let model = state.model.name.clone();
    Answer::new(style, number, model, fingerprint, parsed, Arc::clone(&state.tokenizer))
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

/// An admitted request on its way to its client.
struct Answering {
    state: Arc<ApiState>,
    answer: Answer,
    events: Events,
    clock: Clock,
    ending: Ending,
    reserved: Reserved,
    _permit: Permit,
}

impl Answering {
    /// Takes in the next event: the chunk that it makes of a stream, if it makes one. `None` once
    /// every choice has ended. May be dropped at any await.
    async fn advance(&mut self) -> Result<Option<Option<String>>, ApiError> {
        if self.answer.is_complete() {
            self.end();
            return Ok(None);
        }
        let failed = match self.events.next().await {
            Some(Heard { event: Event::Failed(cause), .. }) => ApiError::from(cause),
            Some(heard) => {
                match heard.event {
                    Event::Admitted { .. } => self.reserved.prompt(heard.number),
                    Event::Token { .. } => self.reserved.tokens(heard.num_tokens()),
                    _ => {}
                }
                if let Event::Token { choice, .. } | Event::Finished { choice, .. } = heard.event {
                    let choice = self.answer.index(heard.number, choice);
                    let now = Instant::now();
                    for _ in 0..heard.num_tokens() {
                        self.clock.token(choice, now, &self.state.metrics);
                    }
                    self.ending.heard(choice, &heard, now);
                }
                return Ok(Some(self.answer.take(heard)));
            }
            // Whoever computes has gone without a word.
            None => ApiError::internal("the answer ended unexpectedly; send the request again")
                .code("answer_lost"),
        };
        self.ending.failed(&failed);
        Err(failed)
    }

    fn end(&mut self) {
        self.ending.answered();
        let tokens = Tokens {
            num_prompt: self.answer.num_prompt_tokens(),
            num_generated: self.answer.num_generated_tokens(),
        };
        let duration = self.clock.start.elapsed();
        self.state.metrics.answered(tokens, duration, self.clock.trace);
        self.clock.ended(&self.state.metrics);
    }

    fn stream(self) -> Response {
        let (chunks, sent) = mpsc::channel(MAX_BUFFERED_CHUNKS);
        tokio::spawn(self.produce(chunks));
        let sent = stream::unfold(sent, |mut sent| async {
            sent.recv().await.map(|chunk| (Ok::<_, Infallible>(chunk), sent))
        });
        Sse::new(sent).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
    }

    /// Sends chunks until the answer ends or the client goes away.
    async fn produce(mut self, chunks: mpsc::Sender<SseEvent>) {
        // A client that reads nothing for so long, with all of those waiting, counts as gone.
        let timeout = Duration::from_millis(self.state.config.send_timeout_ms);
        let send = async |chunk: String| {
            let event = SseEvent::default().data(chunk);
            chunks.send_timeout(event, timeout).await.is_ok()
        };
        for chunk in self.answer.opening() {
            if !send(chunk).await {
                return;
            }
        }
        loop {
            let advanced = tokio::select! {
                advanced = self.advance() => advanced,
                // Nobody listens any more: dropping the events cancels the request.
                () = chunks.closed() => return,
            };
            match advanced {
                Ok(Some(Some(chunk))) => {
                    if !send(chunk).await {
                        return;
                    }
                }
                Ok(Some(None)) => {}
                Ok(None) => break,
                Err(error) => {
                    send(error.body().to_string()).await;
                    return;
                }
            }
        }
        if let Some(chunk) = self.answer.closing() {
            send(chunk).await;
        }
        send("[DONE]".into()).await;
    }
}

/// When the tokens of an answer came.
struct Clock {
    start: Instant,
    choices: Vec<Option<Decoding>>,
    trace: Option<TraceId>,
}

/// Of one choice: its first and its last token, and how many.
#[derive(Clone, Copy)]
struct Decoding {
    first: Instant,
    last: Instant,
    num_tokens: usize,
}

impl Clock {
    fn new(start: Instant, num_choices: usize, trace: Option<TraceId>) -> Self {
        Self { start, choices: vec![None; num_choices], trace }
    }

    fn token(&mut self, choice: usize, now: Instant, metrics: &Metrics) {
        if self.choices.iter().all(Option::is_none) {
            metrics.first_token(now - self.start, self.trace);
        }
        match &mut self.choices[choice] {
            Some(decoding) => {
                metrics.next_token(now - decoding.last, self.trace);
                decoding.last = now;
                decoding.num_tokens += 1;
            }
            none => *none = Some(Decoding { first: now, last: now, num_tokens: 1 }),
        }
    }

    fn ended(&self, metrics: &Metrics) {
        for decoding in self.choices.iter().flatten() {
            let time = decoding.last - decoding.first;
            metrics.decoded(time, decoding.num_tokens, self.trace);
        }
    }
}
