//! Durable answers over HTTP. Each event has an id, `REQUEST.NUMBER`; whoever comes back with the
//! last that it heard, as `Last-Event-ID`, gets what follows: from `/v1/requests/{id}/events`, or
//! where it asked. Nothing is cancelled when a client leaves.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use protocol::RequestId;
use tokio::sync::mpsc;

use super::answer::{KEEP_ALIVE, MAX_BUFFERED_CHUNKS};
use super::caller::Caller;
use super::requests;
use super::{ApiResult, ApiState};
use crate::durable::{Log, Next, Record};
use crate::openai::{Answer, ApiError, Chunk};

/// The header with which a client comes back.
const LAST_EVENT_ID: &str = "last-event-id";

/// When clients are to come back.
const RETRY: Duration = Duration::from_secs(1);

/// An event of a durable answer: of which request, and its number.
type EventId = (RequestId, usize);

/// The last event that the client has heard, where it says so.
///
/// # Errors
/// When that is none of ours.
pub(super) fn last_event(headers: &HeaderMap) -> Result<Option<EventId>, ApiError> {
    let Some(value) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    let parse = |text: &str| {
        let (id, number) = text.split_once('.')?;
        let is_written_so = |it: &usize| it.to_string() == number;
        Some((requests::parse(id)?, number.parse().ok().filter(is_written_so)?))
    };
    let event = value.to_str().ok().and_then(parse);
    let wrong = || {
        let message = "Last-Event-ID must be the id of an event of a durable answer, as in \
                       0123456789abcdef.17; leave it out to begin at the beginning";
        ApiError::invalid("Last-Event-ID", message)
    };
    event.map(Some).ok_or_else(wrong)
}

pub(super) async fn events(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> ApiResult {
    let name = requests::text(id)?;
    let id = requests::parse(&name).ok_or_else(|| unknown(&name))?;
    let last = match last_event(&headers)? {
        Some((of, _)) if of != id => {
            let message = format!("Last-Event-ID names an event of another request than {name}");
            return Err(ApiError::invalid("Last-Event-ID", message));
        }
        last => last.map(|(_, number)| number),
    };
    go_on(&state, &caller, id, last).await
}

/// What follows the `last` event, or all of it.
///
/// # Errors
/// When there is no such answer, or event.
pub(super) async fn go_on(
    state: &Arc<ApiState>,
    caller: &Caller,
    id: RequestId,
    last: Option<usize>,
) -> ApiResult {
    let found = state.durables.find(id, &state.completions).await?;
    // Another's looks as if there were none.
    let log = found.filter(|log| caller.may_see(&log.tenant()));
    let log = log.ok_or_else(|| unknown(&format!("{:016x}", id.0)))?;
    let heard = last.unwrap_or(0);
    let mut replay = Replay::new(state, log);
    let mut events = replay.opening();
    let (records, has_ended) = replay.log.records();
    events.extend(replay.take(records));
    if heard > replay.num_events {
        let message = format!(
            "Last-Event-ID names an event that never was: the last is {}",
            replay.name(replay.num_events)
        );
        return Err(ApiError::invalid("Last-Event-ID", message));
    }
    if has_ended && heard == replay.num_events {
        // By which browsers know that they need not come again.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    events.retain(|(number, _)| *number > heard);
    Ok(stream(state, replay, events))
}

fn unknown(id: &str) -> ApiError {
    let shown: String = id.chars().take(64).collect();
    let message = format!(
        "there is no durable answer {shown}: it was never asked for with durable: true, or was \
         read, or is too old (durable.keep_ms)"
    );
    ApiError::invalid("id", message).status(404).code("request_not_found")
}

/// All of an answer from its beginning on.
pub(super) fn begin(state: &Arc<ApiState>, log: Arc<Log>) -> Response {
    let mut replay = Replay::new(state, log);
    let events = replay.opening();
    stream(state, replay, events)
}

fn stream(state: &Arc<ApiState>, replay: Replay, events: Vec<(usize, Chunk)>) -> Response {
    let (lines, sent) = mpsc::channel(MAX_BUFFERED_CHUNKS);
    tokio::spawn(produce(Arc::clone(state), replay, events, Lines::new(state, lines)));
    let sent = stream::unfold(sent, |mut sent| async {
        sent.recv().await.map(|lines| (Ok::<_, Infallible>(lines), sent))
    });
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(sent)).into_response()
}

/// An answer that is made anew of its records: the same events with the same numbers each time.
struct Replay {
    log: Arc<Log>,
    answer: Answer,
    num_records: usize,
    num_events: usize,
}

impl Replay {
    fn new(state: &ApiState, log: Arc<Log>) -> Self {
        let answer = log.answer(&state.model.name, &state.tokenizer);
        Self { log, answer, num_records: 0, num_events: 0 }
    }

    fn name(&self, number: usize) -> String {
        format!("{:016x}.{number}", self.log.id().0)
    }

    fn opening(&mut self) -> Vec<(usize, Chunk)> {
        let opening = self.answer.opening();
        self.numbered(opening)
    }

    /// What the next records make, with what comes after the last of all.
    fn take(&mut self, records: Vec<Record>) -> Vec<(usize, Chunk)> {
        let mut chunks = Vec::new();
        for record in records {
            self.num_records += 1;
            let ends = record.ends();
            match record.heard() {
                Ok(heard) => chunks.extend(self.answer.take(heard)),
                Err(error) => {
                    chunks.extend(self.answer.failed(&error));
                    continue;
                }
            }
            if ends {
                chunks.extend(self.answer.closing());
            }
        }
        self.numbered(chunks)
    }

    fn numbered(&mut self, chunks: Vec<Chunk>) -> Vec<(usize, Chunk)> {
        let first = self.num_events + 1;
        self.num_events += chunks.len();
        (first..).zip(chunks).collect()
    }
}

/// Lines on their way to a client. They are written here: what keeps a stream of events with ids
/// alive may be no empty event, which OpenAI's clients take for one with the last id.
struct Lines {
    sender: mpsc::Sender<String>,
    // A client that reads nothing for so long, with all of those waiting, counts as gone.
    timeout: Duration,
    num_sent: usize,
}

impl Lines {
    fn new(state: &ApiState, sender: mpsc::Sender<String>) -> Self {
        let timeout = Duration::from_millis(state.config.send_timeout_ms);
        Self { sender, timeout, num_sent: 0 }
    }

    /// An event; whether its client is still there. One without an id leaves the client where it
    /// is: it comes back for what it still lacks.
    async fn event(&mut self, id: Option<String>, chunk: &Chunk) -> bool {
        let line = |name: &str, value: Option<&str>| {
            value.map_or_else(String::new, |value| format!("{name}: {value}\n"))
        };
        let (id, name) = (line("id", id.as_deref()), line("event", chunk.event));
        let retry = match self.num_sent {
            0 => format!("retry: {}\n", RETRY.as_millis()),
            _ => String::new(),
        };
        self.num_sent += 1;
        self.send(format!("{id}{retry}{name}data: {}\n\n", chunk.data)).await
    }

    async fn keep_alive(&self) -> bool {
        self.send(":\n".into()).await
    }

    async fn send(&self, lines: String) -> bool {
        self.sender.send_timeout(lines, self.timeout).await.is_ok()
    }
}

/// Sends events until the answer ends or the client goes away.
async fn produce(
    state: Arc<ApiState>,
    mut replay: Replay,
    mut events: Vec<(usize, Chunk)>,
    mut lines: Lines,
) {
    loop {
        for (number, chunk) in events.drain(..) {
            if !lines.event(Some(replay.name(number)), &chunk).await {
                return;
            }
        }
        let next = tokio::select! {
            next = replay.log.after(replay.num_records) => next,
            () = tokio::time::sleep(KEEP_ALIVE) => {
                if !lines.keep_alive().await {
                    return;
                }
                continue;
            }
            () = lines.sender.closed() => return,
        };
        match next {
            Next::Records(records) => events = replay.take(records),
            Next::End => return state.durables.was_read(replay.log.id()).await,
            Next::BrokenOff(cause) => {
                for chunk in replay.answer.failed(&cause) {
                    lines.event(None, &chunk).await;
                }
                return;
            }
        }
    }
}
