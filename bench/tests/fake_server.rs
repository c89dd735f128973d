//! A server that behaves as the prompt tells it: well, or badly in one of many ways.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use serde_json::{Value, json};

pub(crate) const FIRST: Duration = Duration::from_millis(60);
pub(crate) const BETWEEN: Duration = Duration::from_millis(15);

/// What the server saw.
#[derive(Default)]
pub(crate) struct Seen {
    running: AtomicUsize,
    pub(crate) max_running: AtomicUsize,
    pub(crate) bodies: std::sync::Mutex<Vec<Value>>,
}

/// Starts a server and returns its address.
pub(crate) async fn start() -> (String, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let models = json!({"object": "list", "data": [{"id": "fake"}, {"id": "other"}]});
    let app = Router::new()
        .route("/v1/models", get(|| async { Json(models) }))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(complete))
        .with_state(seen.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
    (url, seen)
}

async fn chat(State(seen): State<Arc<Seen>>, Json(body): Json<Value>) -> Response {
    let prompt = body["messages"][0]["content"].as_str().unwrap().to_string();
    answer(seen, body, &prompt, |text| json!({"delta": {"content": text}})).await
}

async fn complete(State(seen): State<Arc<Seen>>, Json(body): Json<Value>) -> Response {
    let prompt = body["prompt"].as_str().unwrap().to_string();
    answer(seen, body, &prompt, |text| json!({"text": text})).await
}

async fn answer(seen: Arc<Seen>, body: Value, prompt: &str, choice: fn(&str) -> Value) -> Response {
    seen.bodies.lock().unwrap().push(body);
    let event = |value: Value| format!("data: {value}\n\n");
    let text = |text: &str| event(json!({"choices": [choice(text)], "usage": null}));
    let usage = event(json!({
        "choices": [],
        "usage": {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9},
    }));
    let role = event(json!({"choices": [{"delta": {"role": "assistant", "content": ""}}]}));
    let done = "data: [DONE]\n\n".to_string();
    let (pa, ris) = (text("Pa"), text("ris é"));
    match prompt {
        "busy" => {
            let error = json!({"error": {"message": "the queue is full", "code": null}});
            (StatusCode::SERVICE_UNAVAILABLE, Json(error)).into_response()
        }
        "plain error" => (StatusCode::BAD_GATEWAY, "bad\n  gateway").into_response(),
        "html" => ([("content-type", "text/html")], "<html>").into_response(),
        "truncated" => events([pa, ris]),
        "half" => events([pa, "data: {\"choi".into()]),
        "reset" => {
            let pieces = [Ok(Bytes::from(pa)), Err("broken")];
            let pieces = stream::iter(pieces).then(|piece| async {
                tokio::time::sleep(BETWEEN).await;
                piece
            });
            ([("content-type", "text/event-stream")], Body::from_stream(pieces)).into_response()
        }
        "error event" => events([pa, event(json!({"error": {"message": "a stage was lost"}}))]),
        "garbage" => events([pa, "data: {not json}\n\n".into()]),
        // Its mind changes when it has been asked for the fifth time.
        "fickle" => {
            let num_asked = seen.bodies.lock().unwrap().len();
            events([if num_asked < 5 { pa } else { text("Ro") }, ris, usage, done])
        }
        "silent" => std::future::pending().await,
        "no usage" => events([role, pa, ris, done]),
        "no blank line" => events([pa, ris, usage, "data: [DONE]\n".into()]),
        "bytes" => {
            let whole = [": ping\n\n".into(), role, pa, ris, usage, done].concat();
            events(whole.bytes().map(|byte| vec![byte]).collect::<Vec<_>>())
        }
        _ => {
            let running = seen.running.fetch_add(1, Ordering::SeqCst) + 1;
            seen.max_running.fetch_max(running, Ordering::SeqCst);
            let waits = [FIRST, BETWEEN, Duration::ZERO];
            let pieces = [[role, pa].concat(), ris, [usage, done].concat()];
            let timed = stream::iter(waits.into_iter().zip(pieces)).then(move |(wait, piece)| {
                let seen = seen.clone();
                async move {
                    tokio::time::sleep(wait).await;
                    if piece.ends_with("[DONE]\n\n") {
                        seen.running.fetch_sub(1, Ordering::SeqCst);
                    }
                    Ok::<_, Infallible>(Bytes::from(piece))
                }
            });
            ([("content-type", "text/event-stream")], Body::from_stream(timed)).into_response()
        }
    }
}

fn events<T: Into<Bytes> + Send + 'static>(
    pieces: impl IntoIterator<Item = T, IntoIter: Send + 'static>,
) -> Response {
    let pieces = stream::iter(pieces).map(|piece| Ok::<_, Infallible>(piece.into()));
    ([("content-type", "text/event-stream")], Body::from_stream(pieces)).into_response()
}
