//! The API over real connections, in front of an engine that answers by script.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use protocol::TokenId;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

pub(super) use super::script::Script;
use super::script::play;
use super::{ApiState, serve};
use crate::batch_job::testing::opened;
use crate::completion::{Completions, Parsing};
use crate::engine::Engine;
use crate::metrics::Metrics;
use crate::openai::testing::Served;
use crate::request::{Event, FinishReason, Request, RequestError, SubmitError};
use crate::status::{PipelineStatus, Status};

pub(super) struct Server {
    pub(super) addr: std::net::SocketAddr,
    pub(super) metrics: Arc<Metrics>,
    status: watch::Sender<Arc<Status>>,
    /// Requests whose receivers were dropped.
    num_closed: Arc<AtomicUsize>,
    pub(super) data: tempfile::TempDir,
}

pub(super) struct Response {
    pub(super) status: u16,
    head: String,
    pub(super) body: String,
}

impl Response {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let of = |line: &'_ str| line.to_lowercase().starts_with(&format!("{name}:"));
        let line = self.head.lines().find(|line| of(line))?;
        line.split_once(": ").map(|(_, value)| value)
    }

    /// The data of server-sent events, without the last: `[DONE]`.
    fn chunks(&self) -> Vec<Value> {
        let mut chunks = self.data();
        assert_eq!(chunks.pop().as_deref(), Some("[DONE]"), "{}", self.body);
        chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect()
    }

    fn data(&self) -> Vec<String> {
        let events = self.body.strip_suffix("\n\n").unwrap().split("\n\n");
        events.map(|event| event.strip_prefix("data: ").unwrap().to_owned()).collect()
    }
}

impl Server {
    pub(super) async fn start(script: impl Fn(&Request) -> Script + Send + 'static) -> Self {
        Self::with(script, |_| {}).await
    }

    pub(super) async fn with(
        script: impl Fn(&Request) -> Script + Send + 'static,
        change: impl FnOnce(&mut Served),
    ) -> Self {
        let mut served = Served::chat();
        change(&mut served);
        let (status, seen) = watch::channel(Arc::new(Status::default()));
        let num_closed = Arc::new(AtomicUsize::new(0));
        let coordinator = play(script, Arc::clone(&num_closed)).await;
        let metrics = Arc::new(Metrics::new("m", &protocol::config::Metrics::default()));
        let permits = Arc::new(Semaphore::new(served.config.max_concurrent_requests));
        let completions = Arc::new(Completions {
            engine: Engine::new(coordinator, 8, seen),
            tokenizer: served.tokenizer,
            chat_template: served.chat_template,
            model: served.model,
            parsing: Parsing::new(&served.config),
            config: served.config,
            metrics: Arc::clone(&metrics),
            tracer: telemetry::Tracer::default(),
            traces: protocol::config::Traces::default(),
            log_requests: true,
            durables: served.durables,
        });
        let keys = Arc::new(served.keys);
        let (jobs, data) = opened(&completions, &keys, served.batch).await;
        let state =
            Arc::new(ApiState { completions, keys, jobs, permits, closing: Default::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, state, std::future::pending()));
        Self { addr, metrics, status, num_closed, data }
    }

    /// A connection on which a request was sent.
    pub(super) async fn open(&self, method: &str, path: &str, body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        let (close, length) = ("connection: close", body.len());
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{close}\r\ncontent-length: {length}");
        stream.write_all(format!("{head}\r\n\r\n").as_bytes()).await.unwrap();
        // A server that refuses a body need not read it.
        let _ = stream.write_all(body).await;
        stream
    }

    pub(super) async fn call(&self, method: &str, path: &str, body: &[u8]) -> Response {
        let mut stream = self.open(method, path, body).await;
        let mut bytes = Vec::new();
        // Nor need it wait until we have read why.
        let _ = stream.read_to_end(&mut bytes).await;
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let is_chunked = head.to_lowercase().contains("transfer-encoding: chunked");
        let body = if is_chunked { unchunk(body) } else { body.to_owned() };
        Response { status, head: head.to_owned(), body }
    }

    /// By the key of this secret.
    pub(super) async fn call_as(&self, secret: &str, method: &str, path: &str) -> Response {
        // A target, and the header that follows its line.
        let line = format!("{path} HTTP/1.1\r\nauthorization: Bearer {secret}\r\nx-rest: ");
        self.call(method, &line, b"").await
    }

    pub(super) async fn get(&self, path: &str) -> Response {
        self.call("GET", path, b"").await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Response {
        self.call("POST", path, body.to_string().as_bytes()).await
    }

    /// Waits until the metrics say so.
    async fn until_counted(&self, line: &str) {
        for _ in 0..200 {
            if self.metrics.text().contains(line) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no {line} in\n{}", self.metrics.text());
    }

    async fn until_closed(&self, num: usize) {
        for _ in 0..200 {
            if self.num_closed.load(Ordering::SeqCst) == num {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} of {num} receivers were dropped", self.num_closed.load(Ordering::SeqCst));
    }
}

fn unchunk(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        text.push_str(&rest[..size]);
        body = rest[size..].strip_prefix("\r\n").unwrap_or_default();
    }
    text
}

/// The events of choices that all say this text, token by token and in turn.
pub(super) fn say(request: &Request, text: &str) -> Vec<Event> {
    let tokens = Served::chat().tokenizer.encode(text, false).unwrap();
    let mut streams = vec![request.text.clone(); request.num_choices as usize];
    let mut events = Vec::new();
    let last = tokens.len() - 1;
    for (number, token) in tokens.into_iter().enumerate() {
        for (choice, stream) in (0u32..).zip(&mut streams) {
            let finish = |reason, text| Event::Finished { choice, reason, text };
            if events.iter().any(|e| matches!(e, Event::Finished { choice: c, .. } if *c == choice))
            {
                continue;
            }
            let piece = stream.push(token);
            events.push(Event::Token { choice, token, logprobs: None, text: piece.text });
            if let Some(number) = piece.stopped {
                events.push(finish(FinishReason::StopString(number), String::new()));
            } else if number == last {
                events.push(finish(FinishReason::Length, stream.finish()));
            }
        }
    }
    events
}

fn completion() -> Value {
    json!({"model": "m", "prompt": "Hi", "max_tokens": 64})
}

fn chat() -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]})
}

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn a_whole_answer_has_its_text_its_id_and_its_length() {
    let server = Server::start(|request| Script::Say(say(request, "naïve 中文"))).await;
    let response = server.post("/v1/completions", &completion()).await;
    assert_eq!(response.status, 200, "{}", response.body);
    let body = response.json();
    assert_eq!(body["choices"][0]["text"], "naïve 中文");
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    assert_eq!(response.header("x-request-id"), body["id"].as_str());
    assert!(body["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(response.header("content-length"), Some(&*response.body.len().to_string()));
    let response = server.post("/v1/chat/completions", &chat()).await.json();
    assert_eq!(response["choices"][0]["message"]["content"], "naïve 中文");
    server
        .until_counted("autoglm_requests_total{model=\"m\",class=\"standard\",code=\"200\"} 2")
        .await;
    // Both channels stayed open: the answers ended with their last events.
    server.until_closed(2).await;
}

#[tokio::test]
async fn a_streamed_chat_is_what_openais_clients_read() {
    let server = Server::start(|request| Script::Say(say(request, "naïve 中文"))).await;
    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let response = server.post("/v1/chat/completions", &with(chat(), more)).await;
    assert_eq!(response.header("content-type"), Some("text/event-stream"));
    let mut chunks = response.chunks();
    assert!(chunks.iter().all(|chunk| chunk["id"].as_str() == response.header("x-request-id")));
    let first = chunks.remove(0);
    assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let usage = chunks.pop().unwrap();
    assert_eq!(usage["choices"], json!([]));
    let num_tokens = Served::chat().tokenizer.encode("naïve 中文", false).unwrap().len();
    assert_eq!(usage["usage"]["completion_tokens"], num_tokens);
    let last = chunks.pop().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    let text = |chunk: &Value| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned);
    let text: Vec<_> = chunks.iter().filter_map(text).collect();
    assert!(text.len() > 3, "{text:?}");
    assert_eq!(text.concat(), "naïve 中文");
}

#[tokio::test]
async fn a_stop_string_never_shows_in_either_form() {
    let server = Server::start(|request| Script::Say(say(request, "one two three"))).await;
    let body = with(completion(), json!({"stop": ["o thr", "unheard"], "n": 2}));
    let whole = server.post("/v1/completions", &body).await.json();
    let streamed = server.post("/v1/completions", &with(body, json!({"stream": true}))).await;
    for choice in 0..2 {
        assert_eq!(whole["choices"][choice]["text"], "one tw");
        assert_eq!(whole["choices"][choice]["finish_reason"], "stop");
        let chunks = streamed.chunks();
        let of = chunks.iter().map(|chunk| &chunk["choices"][0]);
        let of: Vec<_> = of.filter(|found| found["index"] == choice).collect();
        let text: String = of.iter().filter_map(|found| found["text"].as_str()).collect();
        assert_eq!(text, "one tw");
        assert_eq!(of.last().unwrap()["finish_reason"], "stop");
    }
    let indices: Vec<_> =
        streamed.chunks().iter().map(|c| c["choices"][0]["index"].clone()).collect();
    assert!(indices.windows(2).any(|pair| pair == [1, 0]), "choices take turns: {indices:?}");
}

#[tokio::test]
async fn several_prompts_are_several_choices() {
    let server = Server::start(|request| {
        Script::Say(say(request, if request.prompt[0] == TokenId(5) { "five" } else { "six" }))
    })
    .await;
    let body = with(completion(), json!({"prompt": [[5], [6]]}));
    let body = server.post("/v1/completions", &body).await.json();
    assert_eq!(body["choices"][0]["text"], "five");
    assert_eq!(body["choices"][1]["text"], "six");
    assert_eq!(body["usage"]["prompt_tokens"], 2);
}

#[tokio::test]
async fn every_error_is_openais_object() {
    let server = Server::with(
        |request| Script::Say(say(request, "x")),
        |served| {
            served.config.max_body_bytes = 20_000;
        },
    )
    .await;
    let deep = "[".repeat(5000).into_bytes();
    let large = vec![b' '; 20_001];
    let long = format!("{{\"model\": \"m\", \"prompt\": \"{}\"}}", "x".repeat(18_000));
    let cases: [(&str, &str, &[u8], u16, &str); 14] = [
        ("GET", "/v1/nothing", b"", 404, "unknown_url"),
        ("POST", "/nothing", b"", 404, "unknown_url"),
        ("GET", "/v1/completions", b"", 405, "method_not_allowed"),
        ("BREW", "/v1/models", b"", 405, "method_not_allowed"),
        ("GET", "/v1/models/gpt/9", b"", 404, "model_not_found"),
        ("GET", "/v1/models/%ff", b"", 400, ""),
        ("POST", "/v1/completions", b"{\"model\": ", 400, ""),
        ("POST", "/v1/completions", b"", 400, ""),
        ("POST", "/v1/completions", b"\"\xff\"", 400, ""),
        ("POST", "/v1/completions", &deep, 400, ""),
        ("POST", "/v1/completions", &large, 413, "body_too_large"),
        // Parsed beside the runtime, with the same result.
        ("POST", "/v1/completions", long.as_bytes(), 400, "context_length_exceeded"),
        ("POST", "/tokenize", b"{\"prompt\": \"x\", \"model\": \"y\"}", 404, "model_not_found"),
        ("POST", "/detokenize", b"{\"tokens\": [640]}", 400, ""),
    ];
    for (method, path, body, status, code) in cases {
        let response = server.call(method, path, body).await;
        assert_eq!(response.status, status, "{method} {path} → {}", response.body);
        let error = &response.json()["error"];
        assert_eq!(error["code"].as_str().unwrap_or_default(), code, "{error}");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().len() > 10, "{error}");
    }
    let response = server.call("POST", "/v1/completions", b"{\n\"model\": m}").await;
    assert!(response.body.contains("line 2 column 10"), "{}", response.body);
    server.until_counted("http_request_duration_seconds_count{method=\"other\"").await;
}

#[tokio::test]
async fn a_refusal_says_when_to_try_again() {
    let server = Server::start(|_| Script::Refuse(SubmitError::QueueFull { max: 3 })).await;
    for more in [json!({}), json!({"stream": true})] {
        let response = server.post("/v1/chat/completions", &with(chat(), more)).await;
        assert_eq!(response.status, 503);
        assert_eq!(response.header("retry-after"), Some("1"));
        assert_eq!(response.json()["error"]["code"], "queue_full");
    }
    server.until_counted("autoglm_shed_total{reason=\"queue_full\"} 2").await;
    server.until_counted("code=\"503\"} 2").await;
}

#[tokio::test]
async fn a_failure_is_a_status_or_the_streams_last_event() {
    let script = |request: &Request| {
        let mut events = say(request, "one two");
        events.truncate(2);
        events
            .push(Event::Failed(RequestError::NoPipeline { waited_s: 9, cause: "node x".into() }));
        Script::Say(events)
    };
    let server = Server::start(script).await;
    let response = server.post("/v1/completions", &completion()).await;
    assert_eq!((response.status, response.header("retry-after")), (503, Some("1")));
    assert_eq!(response.json()["error"]["code"], "no_pipeline");
    let response =
        server.post("/v1/completions", &with(completion(), json!({"stream": true}))).await;
    let data = response.data();
    let last: Value = serde_json::from_str(data.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "no_pipeline");
    assert!(data.len() > 1, "what came before the failure was shown: {data:?}");
    server.until_counted("code=\"503\"} 2").await;
}

#[tokio::test]
async fn an_engine_that_vanishes_is_an_error_and_no_end() {
    let server = Server::start(|request| {
        let mut events = say(request, "one two");
        events.pop();
        Script::Vanish(events)
    })
    .await;
    let response = server.post("/v1/completions", &completion()).await;
    assert_eq!((response.status, &response.json()["error"]["code"]), (500, &json!("answer_lost")));
    let response =
        server.post("/v1/completions", &with(completion(), json!({"stream": true}))).await;
    assert!(response.data().last().unwrap().contains("answer_lost"), "{}", response.body);
}

#[tokio::test]
async fn more_requests_than_configured_are_refused_until_one_ends() {
    let server = Server::with(
        |_| Script::Say(Vec::new()),
        |served| {
            served.config.max_concurrent_requests = 1;
        },
    )
    .await;
    let body = with(completion(), json!({"stream": true})).to_string();
    let mut first = server.open("POST", "/v1/completions", body.as_bytes()).await;
    let mut head = [0; 12];
    first.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    let refused = server.post("/v1/completions", &completion()).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(refused.json()["error"]["code"], "too_many_requests");
    assert_eq!(server.get("/health/live").await.status, 200, "health needs no permit");
    drop(first);
    server.until_closed(1).await;
    let body = with(completion(), json!({"model": "y"}));
    assert_eq!(server.post("/v1/completions", &body).await.status, 404, "there is room again");
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_request() {
    let server = Server::start(|request| {
        let mut events = say(request, "one two three");
        events.truncate(3);
        Script::Say(events)
    })
    .await;
    for (number, more) in
        [json!({}), json!({"stream": true}), json!({"prompt": [[5], [6]]})].into_iter().enumerate()
    {
        let body = with(completion(), more).to_string();
        let mut stream = server.open("POST", "/v1/completions", body.as_bytes()).await;
        if number == 1 {
            stream.read_exact(&mut [0; 64]).await.unwrap();
        }
        let begun = format!("autoglm_time_to_first_token_seconds_count {}\n", number + 1);
        server.until_counted(&begun).await;
        drop(stream);
        server.until_closed(if number == 2 { 4 } else { number + 1 }).await;
    }
    server.until_counted("code=\"499\"} 3").await;
    let none = ["autoglm_prompt_tokens_total 0", "autoglm_generation_tokens_total 0"];
    assert!(none.iter().all(|none| !server.metrics.text().contains(none)), "what was computed");
}

#[tokio::test]
async fn health_shows_the_status() {
    let server = Server::start(|_| Script::Say(Vec::new())).await;
    server.status.send_replace(Arc::new(Status {
        waiting_for: "a node".into(),
        system_fingerprint: "fp".into(),
        ..Status::default()
    }));
    assert_eq!(server.get("/health/live").await.status, 200);
    let ready = server.get("/health/ready").await;
    assert_eq!((ready.status, &ready.json()["waiting_for"]), (503, &json!("a node")));
    let pipeline = PipelineStatus::default();
    server.status.send_modify(|status| {
        Arc::make_mut(status).pipelines.push(pipeline);
    });
    assert_eq!(server.get("/health/ready").await.status, 200);
    assert_eq!(server.get("/health").await.status, 200, "as with vLLM");
    let stages = server.get("/health/stages").await.json();
    assert_eq!((&stages["ready"], &stages["system_fingerprint"]), (&json!(true), &json!("fp")));
    assert_eq!(stages["pipelines"][0]["stages"], json!([]));
}

#[tokio::test]
async fn the_routes_around_completions() {
    let server = Server::start(|request| Script::Say(say(request, "x"))).await;
    let list = server.get("/v1/models").await.json();
    assert_eq!(
        (&list["data"][0]["id"], &list["data"][0]["max_model_len"]),
        (&json!("m"), &json!(256))
    );
    assert_eq!(server.get("/v1/models/m").await.json()["object"], "model");

    let tokens = server.post("/tokenize", &json!({"prompt": "Hi"})).await.json();
    assert_eq!(tokens["count"], tokens["tokens"].as_array().unwrap().len());
    let bare = json!({"prompt": "Hi", "add_special_tokens": false});
    let bare = server.post("/tokenize", &bare).await.json();
    assert!(bare["count"].as_u64() < tokens["count"].as_u64());
    let text = server.post("/detokenize", &json!({"tokens": bare["tokens"]})).await.json();
    assert_eq!(text, json!({"prompt": "Hi"}));
    let messages = with(chat(), json!({"add_generation_prompt": false}));
    let tokens = server.post("/tokenize", &messages).await.json();
    let text = server.post("/detokenize", &json!({"tokens": tokens["tokens"]})).await.json();
    assert_eq!(text["prompt"], "[gMASK]<sop><|user|>\nHi");

    server.post("/v1/completions", &completion()).await;
    let endpoint =
        "http_request_duration_seconds_count{method=\"POST\",endpoint=\"/v1/completions\"} 1";
    server.until_counted(endpoint).await;
    let metrics = server.get("/metrics").await;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(metrics.header("content-type"), Some(kind));
    assert!(metrics.body.ends_with("# EOF\n"));
    assert!(metrics.body.contains("endpoint=\"/v1/models/{*id}\""), "a template, not a path");
}

#[test]
fn a_path_has_the_label_of_its_route() {
    let routes = ["/v1/models", "/v1/models/{*id}", "/v1/requests/{id}"];
    for (path, expected) in [
        ("/v1/models", "/v1/models"),
        ("/v1/models/gpt/9", "/v1/models/{*id}"),
        ("/v1/models/", "other"),
        ("/v1/requests/7", "/v1/requests/{id}"),
        ("/v1/requests/7/8", "other"),
        ("/", "other"),
    ] {
        assert_eq!(super::route_of(&routes, path), expected, "{path}");
    }
}
