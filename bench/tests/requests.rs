//! One request: every way in which it can end.

use std::time::Duration;

use loadgen::client::failure::{Failure, FailureKind};
use loadgen::client::request::{Endpoint, Parameters, Prompt};
use loadgen::client::{Answer, HeaderValue, Manner, Server, Trust};

use crate::fake_server;

fn parameters(endpoint: Endpoint) -> Parameters {
    let model = "fake".to_string();
    let temperature = Some(0.0);
    Parameters { model, endpoint, max_tokens: 8, temperature, ..Parameters::default() }
}

/// Asks a fake server; the text is what arrived, also of a failed answer.
async fn ask(endpoint: Endpoint, prompt: &str) -> (Result<Answer, Failure>, String) {
    let (url, _) = fake_server::start().await;
    let server = Server::new(&url, Duration::from_secs(2)).unwrap();
    let body = parameters(endpoint).body(&Prompt::Text(prompt.to_string())).unwrap();
    let mut text = String::new();
    let answered = server.ask(endpoint, &body, |piece: &str| text.push_str(piece)).await;
    (answered, text)
}

#[tokio::test]
async fn a_whole_answer_is_timed_and_counted() {
    for endpoint in [Endpoint::Chat, Endpoint::Completions] {
        let (answer, text) = ask(endpoint, "hello").await;
        let answer = answer.unwrap();
        assert_eq!(text, "Paris é");
        assert_eq!((answer.num_prompt_tokens, answer.num_tokens()), (Some(5), 4));
        assert_eq!(answer.pieces.len(), 2, "the role is no text");
        let first = answer.first_token().unwrap();
        assert!(first >= fake_server::FIRST, "{first:?}");
        let second = answer.pieces.iter().nth(1).unwrap();
        assert!(second - first >= fake_server::BETWEEN / 2, "{answer:?}");
        assert!(answer.end >= second - Duration::from_micros(1));
    }
}

#[tokio::test]
async fn a_stream_may_come_in_any_pieces() {
    for (endpoint, prompt, num_tokens) in [
        (Endpoint::Chat, "bytes", 4),
        (Endpoint::Completions, "bytes", 4),
        (Endpoint::Chat, "no usage", 2),
        (Endpoint::Chat, "no blank line", 4),
        (Endpoint::Chat, "no last newline", 4),
        (Endpoint::Chat, "capitals", 4),
    ] {
        let (answer, text) = ask(endpoint, prompt).await;
        assert_eq!(text, "Paris é", "{prompt}");
        assert_eq!(answer.unwrap().num_tokens(), num_tokens, "{prompt}");
    }
}

#[tokio::test]
async fn each_failure_has_its_kind_and_says_what_happened() {
    use FailureKind::*;
    for (prompt, kind, message, text) in [
        ("busy", Status(503), "503 Service Unavailable: the queue is full", ""),
        ("plain error", Status(502), "502 Bad Gateway: bad gateway", ""),
        ("html", Malformed, "answered text/html where text/event-stream was asked for", ""),
        (
            "elsewhere",
            Status(308),
            "308 Permanent Redirect: it sends us to https://a.example/v1: give that address",
            "",
        ),
        ("truncated", Truncated, "stream ended without [DONE]", "Paris é"),
        ("half", Truncated, "stream ended without [DONE]", "Pa"),
        ("error event", ErrorEvent, "a stage was lost", "Pa"),
        ("garbage", Malformed, "an event of the stream isn't JSON: {not json}", "Pa"),
        ("silent", Timeout, "not answered within 2 s", ""),
    ] {
        let (answer, arrived) = ask(Endpoint::Chat, prompt).await;
        assert_eq!(answer, Err(Failure { kind, message: message.to_string() }));
        assert_eq!(arrived, text, "{prompt}");
    }
    let (answer, arrived) = ask(Endpoint::Chat, "reset").await;
    let failure = answer.unwrap_err();
    assert_eq!((failure.kind, arrived.as_str()), (Truncated, "Pa"));
    assert!(failure.message.starts_with("the connection broke: "), "{failure}");
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_one_clear_sentence() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/", free.local_addr().unwrap());
    drop(free);
    let server = Server::new(&url, Duration::from_secs(2)).unwrap();
    let failure = server.first_model().await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unreachable);
    let expected = format!("nothing answers at {}: connection refused", server.url());
    assert_eq!(failure.message, expected);
}

#[test]
fn an_address_that_cant_be_asked_is_refused() {
    for (url, expected) in [
        ("127.0.0.1:8000", "as in http://host:8000"),
        ("localhost:8000", "as in http://host:8000"),
        ("ftp://example.com", "as in http://host:8000"),
        ("http://a b", "as in http://host:8000"),
        ("http://host/v1?key=1", "has a query"),
        ("https://me:secret@example.com", "holds no name or password"),
    ] {
        let error = Server::new(url, Duration::from_secs(1)).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains("secret"), "{url}: {error}");
    }
}

#[tokio::test]
async fn a_server_of_https_is_asked_when_its_authority_is_trusted() {
    let (url, authority) = fake_server::start_tls().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("authority.pem");
    std::fs::write(&file, authority).unwrap();
    let asked = |url: &str, trust| {
        let manner = Manner { trust, ..Manner::default() };
        Server::asked(url, Duration::from_secs(20), manner)
    };
    for trust in [Trust::File(file.clone()), Trust::Anyone] {
        let server = asked(&url, trust).unwrap();
        assert_eq!(server.first_model().await.unwrap(), "fake");
        let body = parameters(Endpoint::Chat).body(&Prompt::Text("hello".to_string())).unwrap();
        let answer = server.ask(Endpoint::Chat, &body, |_: &str| ()).await.unwrap();
        assert_eq!((answer.num_tokens(), answer.pieces.len()), (4, 2));
    }
    // Its certificate isn't for that name, whoever vouches for it.
    let other = url.replace("localhost", "127.0.0.1");
    let refused = asked(&other, Trust::File(file.clone())).unwrap().first_model().await;
    let failure = refused.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unreachable);
    assert!(failure.message.contains("is not who it says"), "{failure}");
    let (plain, _) = fake_server::start().await;
    let server = asked(&plain.replace("http:", "https:"), Trust::Anyone).unwrap();
    let failure = server.first_model().await.unwrap_err();
    assert!(failure.message.contains("doesn't speak TLS"), "{failure}");
    // Where this system trusts authorities, ours isn't one of them; it may trust none at all.
    if let Ok(server) = asked(&url, Trust::System) {
        assert!(server.first_model().await.unwrap_err().message.contains("--cacert"));
    }
    std::fs::write(&file, "no certificate").unwrap();
    let error = asked(&url, Trust::File(file)).unwrap_err();
    assert!(format!("{error:#}").contains("holds no certificate in PEM form"), "{error:#}");
}

#[tokio::test]
async fn headers_of_a_server_go_with_every_request_and_are_never_shown() {
    let (url, seen) = fake_server::start().await;
    let mut manner = Manner::default();
    let mut key = HeaderValue::from_static("Bearer sk-1");
    key.set_sensitive(true);
    manner.headers.insert("authorization", key);
    let server = Server::asked(&url, Duration::from_secs(20), manner).unwrap();
    assert!(!format!("{server:?}").contains("sk-1"));
    server.first_model().await.unwrap();
    assert_eq!(server.status("/v1/models").await, Some(200));
    let headers = seen.headers.lock().unwrap();
    assert_eq!(headers.len(), 2);
    assert!(headers.iter().all(|headers| headers["authorization"] == "Bearer sk-1"));
}
