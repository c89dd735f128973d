//! Connections as clients misuse them, and web pages.

use std::time::{Duration, Instant};

use axum::body::Body;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::chat_template::ChatTemplate;
use crate::keys::Keys;
use crate::keys::tests::key;
use crate::openai::testing::Served;

use super::tests::{Script, Server, say};

const HEALTH: &[u8] = b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

async fn ask(server: &Server, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(request).await.unwrap();
    rest(&mut stream).await
}

pub(super) async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut bytes));
    let _ = read.await.expect("the server ends it");
    String::from_utf8(bytes).unwrap()
}

pub(super) fn post(body: &str, headers: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST /v1/completions HTTP/1.1\r\nhost: h:1\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n{headers}\r\n{body}"
    )
    .into_bytes()
}

pub(super) fn completion() -> String {
    json!({"model": "m", "prompt": [5, 6], "max_tokens": 4}).to_string()
}

#[tokio::test]
async fn a_client_that_closes_its_half_gets_its_answer() {
    let server = Server::start(|request| Script::Say(say(request, "one two"))).await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(&post(&completion(), "connection: close\r\n")).await.unwrap();
    stream.shutdown().await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("one two"), "{answer}");
}

/// It looks as one that has gone, until it is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_client_that_closes_its_half_and_waits_gets_its_answer() {
    let server = Server::start(|request| {
        std::thread::sleep(Duration::from_millis(500));
        Script::Say(say(request, "one two"))
    })
    .await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(&post(&completion(), "connection: close\r\n")).await.unwrap();
    stream.shutdown().await.unwrap();
    let answer = rest(&mut stream).await;
    let answer = answer.strip_prefix("HTTP/1.1 102 Processing\r\n\r\n").unwrap_or(&answer);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("one two"), "{answer}");
}

#[tokio::test]
async fn whoever_sends_too_much_reads_why() {
    let server = Server::with(
        |_| Script::Say(Vec::new()),
        |served| {
            served.config.max_body_bytes = 1000;
            served.config.max_dropped_bytes = 8 << 20;
        },
    )
    .await;
    // More than the buffers of both ends hold: one that stops reading would reset the connection.
    let body = "x".repeat(6 << 20);
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(&post(&body, "connection: close\r\n")).await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("http.max_body_bytes"), "{answer}");
}

#[tokio::test]
async fn idle_connections_give_way_and_health_always_has_one() {
    let server = Server::with(
        |request| Script::Say(say(request, "one")),
        |served| {
            served.config.max_connections = 8;
            served.config.reserved_connections = 2;
        },
    )
    .await;
    // Far more than there may be, none of which asks anything.
    let mut idle = Vec::new();
    for _ in 0..50 {
        idle.push(TcpStream::connect(server.addr).await.unwrap());
    }
    assert!(ask(&server, HEALTH).await.starts_with("HTTP/1.1 200"));
    let request = post(&completion(), "connection: close\r\n");
    assert!(ask(&server, &request).await.starts_with("HTTP/1.1 200"));

    // Six hold what there is for others than health: streams that don't end.
    let more = json!({"model": "m", "prompt": [5], "max_tokens": 4, "stream": true}).to_string();
    let server = Server::with(
        |request| {
            let mut events = say(request, "one");
            events.truncate(1);
            Script::Say(events)
        },
        |served| {
            served.config.max_connections = 8;
            served.config.reserved_connections = 2;
        },
    )
    .await;
    let mut busy = Vec::new();
    for _ in 0..6 {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(&post(&more, "")).await.unwrap();
        let mut some = [0; 16];
        stream.read_exact(&mut some).await.unwrap();
        assert!(some.starts_with(b"HTTP/1.1 200"));
        busy.push(stream);
    }
    let answer = ask(&server, &request).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("max_connections"), "{answer}");
    assert!(ask(&server, HEALTH).await.starts_with("HTTP/1.1 200"));
    drop(busy);
}

/// Connections that have asked and are kept give way like those that never did.
#[tokio::test]
async fn kept_connections_lock_nobody_out() {
    let server = Server::with(
        |request| Script::Say(say(request, "one")),
        |served| {
            served.config.max_connections = 8;
            served.config.reserved_connections = 2;
        },
    )
    .await;
    let mut kept = Vec::new();
    for _ in 0..30 {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(&post(&completion(), "")).await.unwrap();
        let mut some = [0; 16];
        stream.read_exact(&mut some).await.unwrap();
        assert!(some.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&some));
        kept.push(stream);
    }
}

/// What is refused before it is read is read on, too.
#[tokio::test]
async fn a_large_body_at_the_wrong_place_is_answered() {
    let server = Server::start(|_| Script::Say(Vec::new())).await;
    let body = "x".repeat(6 << 20);
    let request = String::from_utf8(post(&body, "connection: close\r\n")).unwrap();
    for (path, status) in [("/v1/nowhere", 404), ("/health/live", 405)] {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        let request = request.replace("/v1/completions", path);
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
}

#[tokio::test]
async fn a_connection_that_asks_nothing_is_closed() {
    let server =
        Server::with(|_| Script::Say(Vec::new()), |served| served.config.idle_timeout_ms = 100)
            .await;
    let mut silent = TcpStream::connect(server.addr).await.unwrap();
    assert_eq!(rest(&mut silent).await, "");
    let mut slow = TcpStream::connect(server.addr).await.unwrap();
    slow.write_all(b"GET /health/live HT").await.unwrap();
    rest(&mut slow).await;
}

/// What a page may have a browser send unasked, with and without leave.
#[tokio::test]
async fn web_pages_ask_only_where_their_origin_is_configured() {
    let start = async |origins: &[&str]| {
        let origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
        Server::with(
            |request| Script::Say(say(request, "one")),
            |served| served.config.cors_origins = origins,
        )
        .await
    };
    let page = post(&completion(), "origin: https://a.example\r\nconnection: close\r\n");
    let preflight = b"OPTIONS /v1/completions HTTP/1.1\r\nhost: x\r\norigin: https://a.example\r\n\
        access-control-request-method: POST\r\naccess-control-request-headers: x-y\r\n\
        connection: close\r\n\r\n";
    let allowed = "access-control-allow-origin: https://a.example";

    let closed = start(&[]).await;
    let answer = ask(&closed, &page).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("http.cors_origins"), "{answer}");
    let answer = ask(&closed, preflight).await;
    assert!(answer.starts_with("HTTP/1.1 204") && !answer.contains("allow-origin"), "{answer}");
    // A page of the server's own, and a client that is no page.
    for own in ["origin: http://h:1\r\nconnection: close\r\n", "connection: close\r\n"] {
        assert!(ask(&closed, &post(&completion(), own)).await.starts_with("HTTP/1.1 200"));
    }

    for origins in [&["https://a.example"][..], &["*"]] {
        let open = start(origins).await;
        let answer = ask(&open, &page).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(allowed), "{answer}");
        let answer = ask(&open, preflight).await;
        assert!(answer.contains(allowed), "{answer}");
        assert!(answer.contains("access-control-allow-headers: x-y"), "{answer}");
    }
}

/// A page whose name points here is of the same origin to its browser, and sends no `Origin`.
#[tokio::test]
async fn without_keys_a_name_that_a_stranger_can_have_is_no_way_in() {
    let start = async |keys: Keys| {
        let change = |served: &mut Served| {
            (served.config.hosts, served.keys) = (vec!["llm.example.org".into()], keys);
        };
        Server::with(|request| Script::Say(say(request, "one")), change).await
    };
    let get = |head: &str| format!("GET {head}\r\nconnection: close\r\n\r\n").into_bytes();
    let open = start(Keys::none()).await;
    for wrong in [
        "/v1/models HTTP/1.1\r\nhost: evil.example:8000",
        "/ui HTTP/1.1\r\nhost: evil.example\r\norigin: http://evil.example",
        "/health/stages HTTP/1.1\r\nhost: 127.0.0.1.evil.example",
        "/v1/messages HTTP/1.1\r\nhost: evil.example",
        "http://evil.example/v1/models HTTP/1.1\r\nhost: localhost",
    ] {
        let answer = ask(&open, &get(wrong)).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{wrong}: {answer}");
        assert!(answer.contains("http.hosts") && answer.contains("API keys"), "{answer}");
        let is_anthropics = answer.contains("\"type\":\"error\"");
        assert_eq!(is_anthropics, wrong.starts_with("/v1/messages"), "{answer}");
    }
    for right in [
        "/v1/models HTTP/1.1\r\nhost: 127.0.0.1:8000",
        "/v1/models HTTP/1.1\r\nhost: localhost:8000\r\norigin: http://localhost:8000",
        "/v1/models HTTP/1.1\r\nhost: LLM.example.org",
        "http://localhost/v1/models HTTP/1.1\r\nhost: localhost",
        "/v1/models HTTP/1.0",
    ] {
        let answer = ask(&open, &get(right)).await;
        assert!(answer.contains(" 200 OK\r\n"), "{right}: {answer}");
    }
    // Whoever needs a key is known by it.
    let locked = start(Keys::of(vec![key("me", "sk-1")])).await;
    let asked = "/v1/models HTTP/1.1\r\nhost: evil.example\r\nauthorization: Bearer sk-";
    assert!(ask(&locked, &get(&format!("{asked}1"))).await.starts_with("HTTP/1.1 200"));
    assert!(ask(&locked, &get(&format!("{asked}2"))).await.starts_with("HTTP/1.1 401"));
}

/// Over HTTP/2 a name stands in the request's target, and counts as over HTTP/1.
#[tokio::test]
async fn a_name_that_a_stranger_can_have_is_no_way_in_over_http_2() {
    let server = Server::with(
        |request| Script::Say(say(request, "one")),
        |served| served.config.hosts = vec!["llm.example.org".into()],
    )
    .await;
    let ask = async |uri: &str, host: Option<&str>| {
        let stream = TokioIo::new(TcpStream::connect(server.addr).await.unwrap());
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        let mut request = hyper::Request::get(uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let answer = sender.send_request(request.body(Body::empty()).unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(Body::new(answer.into_body()), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    };
    for (uri, host) in [
        ("http://evil.example/v1/models", None),
        ("http://evil.example:8000/ui", None),
        ("http://127.0.0.1.evil.example/health/stages", None),
        ("http://evil.example/v1/messages", None),
        ("http://localhost/v1/models", Some("evil.example")),
    ] {
        let (status, body) = ask(uri, host).await;
        assert_eq!(status, 403, "{uri}: {body}");
        assert!(body.contains("http.hosts"), "{uri}: {body}");
        assert_eq!(body.contains("\"type\":\"error\""), uri.ends_with("/v1/messages"), "{body}");
    }
    for uri in [
        format!("http://{}/v1/models", server.addr),
        "http://localhost:8000/v1/models".into(),
        "http://llm.example.org/v1/models".into(),
    ] {
        let (status, body) = ask(&uri, None).await;
        assert_eq!(status, 200, "{uri}: {body}");
    }
}

#[tokio::test]
async fn a_deadline_may_stand_in_a_header() {
    let server = Server::start(|request| {
        let text = if request.deadline.is_some() { "soon" } else { "some day" };
        Script::Say(say(request, text))
    })
    .await;
    let with = |header: &str| post(&completion(), &format!("{header}connection: close\r\n"));
    assert!(ask(&server, &with("x-deadline-ms: 900\r\n")).await.contains("soon"));
    assert!(ask(&server, &with("")).await.contains("some day"));
    for wrong in ["0", "-5", "soon", "86400001"] {
        let answer = ask(&server, &with(&format!("x-deadline-ms: {wrong}\r\n"))).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("x-deadline-ms"), "{answer}");
    }
}

/// On one thread, as all of health, nodes and answers could be: what is rendered isn't on it.
#[tokio::test]
async fn a_chat_that_is_long_in_rendering_holds_up_no_health_check() {
    let loops = "{% for i in range(4000) %}{% for j in range(1000) %}{% endfor %}{% endfor %}";
    let source = checkpoint::TokenizerSource::Json {
        tokenizer: Vec::new(),
        special: checkpoint::SpecialTokens::default(),
        chat_template: Some(loops.into()),
    };
    let server = Server::with(
        |request| Script::Say(say(request, "one")),
        |served| {
            served.config.max_template_fuel = 1 << 30;
            served.chat_template = ChatTemplate::from_source(&source, &served.config);
        },
    )
    .await;
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]}).to_string();
    let chat = post(&body, "connection: close\r\n");
    let chat = String::from_utf8(chat).unwrap().replace("/v1/completions", "/v1/chat/completions");
    let start = Instant::now();
    let mut asking = std::pin::pin!(ask(&server, chat.as_bytes()));
    let mut longest = Duration::ZERO;
    let answer = loop {
        let health = async {
            let start = Instant::now();
            assert!(ask(&server, HEALTH).await.starts_with("HTTP/1.1 200"));
            tokio::time::sleep(Duration::from_millis(5)).await;
            start.elapsed()
        };
        tokio::select! {
            answer = &mut asking => break answer,
            took = health => longest = longest.max(took),
        }
    };
    assert!(answer.starts_with("HTTP/1.1 400"), "an empty prompt: {answer}");
    let chat = start.elapsed();
    assert!(!longest.is_zero() && longest < chat / 2, "{longest:?} of {chat:?}");
}

/// What clients do before they ask, or ask in vain.
#[tokio::test]
async fn heads_continues_and_wrong_base_urls_are_answered() {
    let server = Server::start(|request| Script::Say(say(request, "one"))).await;
    for path in ["/v1/models", "/health/live"] {
        let whole = server.get(path).await;
        let head = server.call("HEAD", path, b"").await;
        assert_eq!((head.status, head.body.as_str()), (whole.status, ""), "{path}");
        assert_eq!(head.header("content-length"), whole.header("content-length"));
    }
    let head = server.call("HEAD", "/v1/nothing", b"").await;
    assert_eq!((head.status, head.body.as_str()), (404, ""));

    // Who waits to be told to go on is.
    let mut waits = TcpStream::connect(server.addr).await.unwrap();
    let (body, head) = (completion(), "host: x\r\nexpect: 100-continue\r\nconnection: close");
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\n{head}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    waits.write_all(head.as_bytes()).await.unwrap();
    let mut told = [0; 25];
    waits.read_exact(&mut told).await.unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    waits.write_all(body.as_bytes()).await.unwrap();
    assert!(rest(&mut waits).await.starts_with("HTTP/1.1 200"));

    // As vLLM's clients ask.
    let version = server.call("GET", "/version", b"").await.json();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    let nameless = server.call("POST", "/v1/completions", br#"{"prompt": "x"}"#).await;
    assert_eq!(nameless.status, 200, "{}", nameless.body);

    for (path, says) in [
        ("/chat/completions", "/v1/chat/completions: this client adds no /v1"),
        ("/models", "its base URL end with /v1"),
        ("/v1/v1/messages", "/v1/messages: this client adds /v1 itself"),
        ("/v1/infill", "/infill: this client adds /v1 itself"),
        ("/api/generate", "there are /v1/chat/completions, /v1/completions"),
    ] {
        let answer = server.call("POST", path, b"{}").await;
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, &error["code"]), (404, &json!("unknown_url")), "{path}");
        assert!(error["message"].as_str().unwrap().contains(says), "{path}: {error}");
    }
}
