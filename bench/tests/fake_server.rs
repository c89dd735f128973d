//! A server that behaves as the prompt tells it: well, or badly in one of many ways.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use serde_json::{Value, json};

pub(crate) const FIRST: Duration = Duration::from_millis(60);
pub(crate) const BETWEEN: Duration = Duration::from_millis(15);

#[derive(Default)]
pub(crate) struct Seen {
    running: AtomicUsize,
    pub(crate) max_running: AtomicUsize,
    pub(crate) bodies: std::sync::Mutex<Vec<Value>>,
    /// Of each request for the list of models.
    pub(crate) headers: std::sync::Mutex<Vec<HeaderMap>>,
}

/// Starts a server and returns its address.
pub(crate) async fn start() -> (String, Arc<Seen>) {
    let (app, seen) = app();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
    (url, seen)
}

fn app() -> (Router, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let models = json!({"object": "list", "data": [{"id": "fake"}, {"id": "other"}]});
    let list = async |State(seen): State<Arc<Seen>>, headers: HeaderMap| {
        seen.headers.lock().unwrap().push(headers);
        Json(models)
    };
    let app = Router::new()
        .route("/v1/models", get(list))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(complete))
        .with_state(seen.clone());
    (app, seen)
}

/// The same over TLS, with a certificate for `localhost` that is its own authority.
pub(crate) async fn start_tls() -> (String, String) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key.into())
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let listener = Tls { listener, acceptor: tokio_rustls::TlsAcceptor::from(Arc::new(config)) };
    tokio::spawn(async { axum::serve(listener, app().0).await.unwrap() });
    (url, cert.pem())
}

struct Tls {
    listener: tokio::net::TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
}

impl axum::serve::Listener for Tls {
    type Io = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.listener.accept().await.unwrap();
            // One who takes no such certificate goes away.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
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
        "capitals" => {
            let head = [("content-type", "Text/Event-Stream; charset=UTF-8")];
            (head, [pa, ris, usage, done].concat()).into_response()
        }
        "no last newline" => events([pa, ris, usage, "data: [DONE]".into()]),
        "elsewhere" => axum::response::Redirect::permanent("https://a.example/v1").into_response(),
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
