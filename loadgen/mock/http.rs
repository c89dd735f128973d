//! The mock server's HTTP.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use axum::{Json, Router};
use futures::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::text::Asked;
use super::{Running, Schedule};

/// Bytes of a request's body.
const MAX_BODY_BYTES: usize = 64 << 20;

/// How an endpoint writes a piece of text.
#[derive(Clone, Copy)]
enum Style {
    Chat,
    Completion,
}

/// How far a streamed answer is.
struct Stream {
    asked: Asked,
    schedule: Schedule,
    style: Style,
    num_sent: u32,
    /// Held for as long as the answer lasts.
    _slot: Slot,
}

/// A place among the requests that are answered at once.
struct Slot(Arc<Running>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.slots.add_permits(1);
    }
}

pub(super) async fn serve(listener: TcpListener, running: Arc<Running>) -> std::io::Result<()> {
    let app = Router::new()
        .route("/health", get(|| async { "ok" }))
        .route("/v1/models", get(models))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(complete))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(map_response(named))
        .with_state(running);
    // A token must not wait for the acknowledgement of the one before.
    let listener = listener.tap_io(|connection| {
        let _ = connection.set_nodelay(true);
    });
    axum::serve(listener, app).await
}

async fn models(State(running): State<Arc<Running>>) -> Response {
    let model = json!({"id": running.mock.model, "object": "model", "owned_by": "nobody"});
    Json(json!({"object": "list", "data": [model]})).into_response()
}

async fn chat(State(running): State<Arc<Running>>, Json(body): Json<Value>) -> Response {
    answer(running, &body, Style::Chat).await
}

async fn complete(State(running): State<Arc<Running>>, Json(body): Json<Value>) -> Response {
    answer(running, &body, Style::Completion).await
}

async fn answer(running: Arc<Running>, body: &Value, style: Style) -> Response {
    let mut asked = match Asked::read(body, &running.mock) {
        Ok(asked) => asked,
        Err(message) => {
            let error = json!({"error": {"message": message, "type": "invalid_request_error"}});
            return (StatusCode::BAD_REQUEST, Json(error)).into_response();
        }
    };
    match running.slots.acquire().await {
        Ok(slot) => slot.forget(),
        Err(_) => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
    let slot = Slot(running.clone());
    let mut schedule = Schedule::new(running);
    if asked.stream {
        let stream = Stream { asked, schedule, style, num_sent: 0, _slot: slot };
        let pieces = stream::unfold(stream, |mut stream| async move {
            let piece = stream.next().await?;
            Some((Ok::<_, Infallible>(Bytes::from(piece)), stream))
        });
        let content_type = [(header::CONTENT_TYPE, "text/event-stream")];
        return (content_type, Body::from_stream(pieces)).into_response();
    }
    let mut text = String::new();
    for _ in 0..asked.num_tokens {
        schedule.next().await;
        text.push_str(asked.word());
    }
    let mut choice = json!({"index": 0, "finish_reason": asked.finish_reason()});
    match style {
        Style::Chat => choice["message"] = json!({"role": "assistant", "content": text}),
        Style::Completion => choice["text"] = json!(text),
    }
    let body = json!({"model": asked.model, "choices": [choice], "usage": usage(&asked)});
    Json(body).into_response()
}

impl Stream {
    /// The next events, when they are due; none after the end.
    async fn next(&mut self) -> Option<String> {
        if self.num_sent > self.asked.num_tokens {
            return None;
        }
        self.num_sent += 1;
        if self.num_sent <= self.asked.num_tokens {
            self.schedule.next().await;
            let word = self.asked.word();
            return Some(self.event(word, None));
        }
        let mut end = self.event("", Some(self.asked.finish_reason()));
        if self.asked.include_usage {
            let usage = usage(&self.asked);
            let event = json!({"model": self.asked.model, "choices": [], "usage": usage});
            end.push_str(&format!("data: {event}\n\n"));
        }
        end.push_str("data: [DONE]\n\n");
        Some(end)
    }

    fn event(&self, text: &str, finish_reason: Option<&str>) -> String {
        let mut choice = json!({"index": 0, "finish_reason": finish_reason});
        match self.style {
            Style::Chat => choice["delta"] = json!({"content": text}),
            Style::Completion => choice["text"] = json!(text),
        }
        format!("data: {}\n\n", json!({"model": self.asked.model, "choices": [choice]}))
    }
}

fn usage(asked: &Asked) -> Value {
    let (prompt, answer) = (asked.num_prompt_tokens as u64, u64::from(asked.num_tokens));
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
    })
}

async fn named(mut response: Response) -> Response {
    let name = HeaderValue::from_static(concat!("autoglm-bench-mock/", env!("CARGO_PKG_VERSION")));
    response.headers_mut().insert(header::SERVER, name);
    response
}
