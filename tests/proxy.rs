//! A proxy that understands streams of events and harms them where it is told to.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt};
use serde_json::Value;

/// What is done to one event that carries a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Harm {
    /// It isn't passed on.
    Drop,
    /// It is passed on twice.
    Double,
    /// It is passed on with another text, and another token id where it has one.
    Alter,
    /// It is passed on, and the stream ends as if all had been said.
    End,
    /// It is passed on, and the connection breaks.
    Break,
}

/// A proxy in front of a server.
pub struct Proxy {
    pub url: String,
    seen: Arc<Seen>,
}

/// What went through a proxy.
#[derive(Debug)]
struct Seen {
    upstream: String,
    client: reqwest::Client,
    /// By the number of the stream: which of its tokens, and what is done to it.
    harms: HashMap<u64, (usize, Harm)>,
    num_streams: AtomicU64,
    num_whole: AtomicU64,
    num_refused: AtomicU64,
    done: Mutex<Vec<Harm>>,
}

impl Proxy {
    /// In front of `upstream`. Streams are numbered from 0 as they are opened; of stream `n`, token
    /// `m` (from 0) is harmed.
    pub async fn start(upstream: &str, harms: &[(u64, usize, Harm)]) -> Self {
        let seen = Arc::new(Seen {
            upstream: upstream.to_owned(),
            client: reqwest::Client::new(),
            harms: harms.iter().map(|&(stream, token, harm)| (stream, (token, harm))).collect(),
            num_streams: AtomicU64::new(0),
            num_whole: AtomicU64::new(0),
            num_refused: AtomicU64::new(0),
            done: Mutex::default(),
        });
        let app = Router::new().fallback(pass).with_state(seen.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
        Self { url, seen }
    }

    /// Streams that were opened.
    pub fn num_streams(&self) -> u64 {
        self.seen.num_streams.load(Ordering::SeqCst)
    }

    /// Those of them that came from the server to their `[DONE]`.
    pub fn num_whole(&self) -> u64 {
        self.seen.num_whole.load(Ordering::SeqCst)
    }

    /// Requests that the server answered with another status than 200.
    pub fn num_refused(&self) -> u64 {
        self.seen.num_refused.load(Ordering::SeqCst)
    }

    /// The harm that was done, in the order in which it was.
    pub fn done(&self) -> Vec<Harm> {
        self.seen.done.lock().unwrap().clone()
    }
}

async fn pass(State(seen): State<Arc<Seen>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let url = format!("{}{}", seen.upstream, parts.uri);
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let request = seen.client.request(parts.method, url).body(body);
    let content_type = parts.headers.get("content-type").cloned();
    let request = match content_type {
        Some(content_type) => request.header("content-type", content_type),
        None => request,
    };
    let Ok(answer) = request.send().await else {
        return axum::http::StatusCode::BAD_GATEWAY.into_response();
    };
    let status = answer.status();
    let content_type = answer.headers().get("content-type").cloned();
    if !status.is_success() {
        seen.num_refused.fetch_add(1, Ordering::SeqCst);
    }
    let streams = content_type.as_ref().is_some_and(|name| name.as_bytes().starts_with(b"text/ev"));
    let body = if streams {
        let number = seen.num_streams.fetch_add(1, Ordering::SeqCst);
        let plan = seen.harms.get(&number).copied();
        let events = Events { bytes: Box::pin(answer.bytes_stream()), buffer: Vec::new(), seen };
        Body::from_stream(events.harmed(plan))
    } else {
        Body::from_stream(answer.bytes_stream())
    };
    let mut response = Response::builder().status(status);
    if let Some(content_type) = content_type {
        response = response.header("content-type", content_type);
    }
    response.body(body).unwrap()
}

type BytesStream = std::pin::Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>;

/// The events of a stream, each with the blank line behind it.
struct Events {
    bytes: BytesStream,
    buffer: Vec<u8>,
    seen: Arc<Seen>,
}

impl Events {
    /// The next event, or what broke the stream.
    async fn next(&mut self) -> Option<Result<String, &'static str>> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Some(Ok(String::from_utf8(event).unwrap()));
            }
            match self.bytes.next().await? {
                Ok(bytes) => self.buffer.extend_from_slice(&bytes),
                Err(_) => return Some(Err("the server's connection broke")),
            }
        }
    }

    /// The stream as it is passed on: what it harms ends it where it should.
    fn harmed(
        self,
        plan: Option<(usize, Harm)>,
    ) -> impl Stream<Item = Result<Bytes, &'static str>> {
        let state = Passing { events: self, plan, num_tokens: 0, end: None };
        futures::stream::unfold(state, async |mut passing| {
            let passed = passing.next().await?;
            Some((passed, passing))
        })
    }
}

struct Passing {
    events: Events,
    plan: Option<(usize, Harm)>,
    num_tokens: usize,
    /// Nothing comes any more; an error first, if there is one.
    end: Option<Option<&'static str>>,
}

impl Passing {
    async fn next(&mut self) -> Option<Result<Bytes, &'static str>> {
        loop {
            if let Some(end) = &mut self.end {
                return end.take().map(Err);
            }
            let event = match self.events.next().await? {
                Ok(event) => event,
                Err(broken) => {
                    self.end = Some(None);
                    return Some(Err(broken));
                }
            };
            if event == "data: [DONE]\n\n" {
                self.events.seen.num_whole.fetch_add(1, Ordering::SeqCst);
            }
            let is_token = carries_token(&event);
            let harm = self.plan.filter(|(token, _)| is_token && *token == self.num_tokens);
            self.num_tokens += usize::from(is_token);
            let Some((_, harm)) = harm else { return Some(Ok(event.into())) };
            self.events.seen.done.lock().unwrap().push(harm);
            let passed = match harm {
                Harm::Drop => continue,
                Harm::Double => event.repeat(2),
                Harm::Alter => altered(&event),
                Harm::End | Harm::Break => event,
            };
            match harm {
                Harm::End => self.end = Some(None),
                Harm::Break => self.end = Some(Some("broken on purpose")),
                _ => {}
            }
            return Some(Ok(passed.into()));
        }
    }
}

fn parsed(event: &str) -> Option<Value> {
    serde_json::from_str(event.strip_prefix("data: ")?).ok()
}

fn carries_token(event: &str) -> bool {
    parsed(event).is_some_and(|event| {
        let choice = &event["choices"][0];
        let text = choice["text"].as_str().or(choice["delta"]["content"].as_str());
        text.is_some_and(|text| !text.is_empty())
    })
}

fn altered(event: &str) -> String {
    let mut event = parsed(event).unwrap();
    let choice = &mut event["choices"][0];
    for place in ["/text", "/delta/content"] {
        if let Some(text) = choice.pointer_mut(place) {
            *text = "☠".into();
        }
    }
    if let Some(id) = choice.pointer_mut("/token_ids/0") {
        *id = (id.as_u64().unwrap() + 1).into();
    }
    format!("data: {event}\n\n")
}
