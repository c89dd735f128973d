//! What clients send must not become series.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::tests::{Script, Server, say};

/// Series before the first request, of the routes and methods that are ours, and of one that isn't.
const MAX_SERIES: usize = 1200;

/// A request that tries to leave something behind: a name of its own wherever a client can write
/// one.
fn hostile(number: usize) -> String {
    let name = format!("evil-{number}");
    let method = match number % 7 {
        0 => "GET".to_owned(),
        1 => "PATCH".to_owned(),
        2 => format!("M{number}"),
        _ => "POST".to_owned(),
    };
    let path = match number % 5 {
        0 => format!("/{name}"),
        1 => format!("/v1/models/{name}"),
        2 => format!("/v1/completions?tenant={name}"),
        3 => "/v1/chat/completions".to_owned(),
        _ => format!("/health/{name}"),
    };
    let model = if number.is_multiple_of(2) { &name } else { "m" };
    let body = json!({
        "model": model, "prompt": "Hi", "user": name, "service_tier": name,
        "messages": [{"role": name, "content": "Hi"}],
    });
    let body = body.to_string();
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: {name}\r\nx-tenant: {name}\r\nuser-agent: {name}\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
}

/// Sends requests one behind another on one connection, and reads all answers.
async fn send(server: &Server, numbers: std::ops::Range<usize>) {
    let num_requests = numbers.len();
    let mut requests: String = numbers.map(hostile).collect();
    requests.push_str("GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let (mut reading, mut writing) = TcpStream::connect(server.addr).await.unwrap().into_split();
    let write = async { writing.write_all(requests.as_bytes()).await };
    let mut answers = Vec::new();
    let (written, read) = tokio::join!(write, reading.read_to_end(&mut answers));
    written.unwrap();
    read.unwrap();
    let answers = String::from_utf8(answers).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 ").count(), num_requests + 1, "{answers}");
}

fn num_series(server: &Server) -> usize {
    server.metrics.text().lines().filter(|line| !line.starts_with('#')).count()
}

#[tokio::test]
async fn ten_thousand_hostile_requests_add_no_series() {
    let server = Server::start(|request| Script::Say(say(request, "x"))).await;
    send(&server, 0..500).await;
    let after_some = num_series(&server);
    for first in (500..10_000).step_by(500) {
        send(&server, first..first + 500).await;
    }
    let text = server.metrics.text();
    assert_eq!(num_series(&server), after_some, "{text}");
    assert!(after_some <= MAX_SERIES, "{after_some} series:\n{text}");
    assert!(!text.contains("evil"), "{text}");
    let other = "http_request_duration_seconds_count{method=\"other\",endpoint=\"other\"} ";
    assert!(text.contains(other), "{text}");
}

/// Goal: whoever reads the older form only gets it, and nobody else.
#[tokio::test]
async fn a_scraper_gets_the_form_that_it_reads() {
    let server = Server::start(|request| Script::Say(say(request, "x"))).await;
    for (accept, kind, ends) in [
        ("text/plain", "text/plain; version=0.0.4; charset=utf-8", false),
        ("*/*", "application/openmetrics-text; version=1.0.0; charset=utf-8", true),
    ] {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        let request = format!(
            "GET /metrics HTTP/1.1\r\nhost: x\r\naccept: {accept}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains(kind), "{answer}");
        assert_eq!(answer.ends_with("# EOF\n"), ends, "{answer}");
        let counter = if ends { "autoglm_prompt_tokens" } else { "autoglm_prompt_tokens_total" };
        assert!(answer.contains(&format!("# TYPE {counter} counter\n")), "{answer}");
    }
}
