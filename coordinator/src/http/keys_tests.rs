//! API keys over real connections.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::tests::{Script, Server, say};
use crate::keys::tests::key;
use crate::keys::{Key, Keys, Limits, Scope};
use crate::request::{Event, Priority, Request};

/// A server of these keys, whose answers say whose they are.
async fn server(keys: Vec<Key>) -> Server {
    let whose = |request: &Request| format!("{} {}", request.tenant, request.weight);
    let script = move |request: &Request| {
        let mut said = say(request, &whose(request));
        said.insert(0, Event::Admitted { choice: 0, num_cached_tokens: 0, class: 0 });
        Script::Say(said)
    };
    Server::with(script, |served| served.keys = Keys::of(keys)).await
}

struct Answer {
    status: u16,
    head: String,
    body: Value,
}

impl Answer {
    fn of(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = serde_json::from_str(body).unwrap_or_else(|_| body.into());
        Self { status, head: head.to_lowercase(), body }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    fn number(&self, name: &str) -> u32 {
        self.header(name).unwrap_or_else(|| panic!("no {name}: {}", self.head)).parse().unwrap()
    }

    fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }
}

/// A request that has been sent, all but the answer to it.
async fn send(server: &Server, line: &str, header: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let length = body.len();
    let request = format!(
        "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\
         {header}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn ask(server: &Server, line: &str, header: &str, body: &str) -> Answer {
    let mut stream = send(server, line, header, body).await;
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut bytes));
    read.await.expect("an answer").unwrap();
    Answer::of(&String::from_utf8(bytes).unwrap())
}

async fn complete(server: &Server, secret: &str, more: Value) -> Answer {
    let mut body = json!({"model": "m", "prompt": [5, 6], "max_tokens": 40});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let header = format!("authorization: Bearer {secret}");
    ask(server, "POST /v1/completions", &header, &body.to_string()).await
}

#[tokio::test]
async fn what_needs_a_key_needs_one_that_is_for_it() {
    let now = jiff::Timestamp::now();
    let scoped =
        |name: &str, scope| Key { scopes: vec![scope], ..key(name, &format!("sk-{name}")) };
    let server = server(vec![
        scoped("infers", Scope::Inference),
        scoped("measures", Scope::Metrics),
        scoped("rules", Scope::Admin),
        Key { expires: Some(now), ..key("old", "sk-old") },
        Key { revoked: Some(now), ..key("back", "sk-back") },
    ])
    .await;
    let (models, metrics, absent) = ("GET /v1/models", "GET /metrics", "GET /v1/nothing");
    for (line, header, status, code) in [
        (models, "x: y", 401, "invalid_api_key"),
        (metrics, "x: y", 401, "invalid_api_key"),
        (absent, "x: y", 401, "invalid_api_key"),
        ("POST /tokenize", "x: y", 401, "invalid_api_key"),
        ("GET /health/live", "x: y", 200, ""),
        ("GET /health/stages", "authorization: Bearer wrong", 200, ""),
        (models, "authorization: Bearer sk-infers", 200, ""),
        (models, "x-api-key: sk-infers", 200, ""),
        (absent, "x-api-key: sk-infers", 404, "unknown_url"),
        (models, "authorization: Bearer sk-wrong", 401, "invalid_api_key"),
        (models, "authorization: Bearer sk-old", 401, "invalid_api_key"),
        (models, "authorization: Bearer sk-back", 401, "invalid_api_key"),
        (models, "authorization: Basic sk-infers", 401, "invalid_api_key"),
        (metrics, "authorization: Bearer sk-infers", 403, "insufficient_scope"),
        (metrics, "authorization: Bearer sk-measures", 200, ""),
        (models, "authorization: Bearer sk-measures", 403, "insufficient_scope"),
        (metrics, "authorization: Bearer sk-rules", 200, ""),
        (models, "authorization: Bearer sk-rules", 200, ""),
    ] {
        let answer = ask(&server, line, header, "").await;
        assert_eq!((answer.status, answer.code()), (status, code), "{line}, {header}");
        assert_eq!(answer.header("www-authenticate").is_some(), status == 401, "{line}, {header}");
    }
    let said = ask(&server, models, "x-api-key: sk-old", "").await.body.to_string();
    assert!(said.contains("expired at") && !said.contains("sk-old"), "{said}");
    for (reason, num) in
        [("no_key", 5), ("unknown_key", 1), ("expired_key", 2), ("revoked_key", 1), ("scope", 2)]
    {
        let line = format!("autoglm_refused_total{{reason=\"{reason}\"}} {num}");
        assert!(server.metrics.text().contains(&line), "{line}");
    }
}

/// Whoever has no key has nothing of theirs held in memory.
#[tokio::test]
async fn nobody_is_let_in_for_what_their_body_says() {
    let server = server(vec![key("anna", "sk-anna")]).await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    // The rest never comes, and isn't waited for.
    let mut start = [0; 12];
    let read = tokio::time::timeout(Duration::from_secs(30), stream.read_exact(&mut start));
    read.await.expect("an answer at once").unwrap();
    assert_eq!(&start, b"HTTP/1.1 401");
}

#[tokio::test]
async fn requests_are_their_keys_tenants_and_have_its_weight() {
    let lab = |name: &str, weight| Key {
        tenant: "lab".into(),
        weight,
        ..key(name, &format!("sk-{name}"))
    };
    let server = server(vec![lab("anna", 3), lab("bert", 1), key("carl", "sk-carl")]).await;
    for (secret, expected) in [("sk-anna", "lab 3"), ("sk-bert", "lab 1"), ("sk-carl", "carl 1")] {
        let answer = complete(&server, secret, json!({"user": "somebody else"})).await;
        assert_eq!(answer.body["choices"][0]["text"], expected);
        assert_eq!(answer.header("x-ratelimit-limit-requests"), None);
    }
}

#[tokio::test]
async fn over_its_requests_a_key_is_told_how_long_to_wait() {
    let limits = Limits { requests_per_minute: Some(2), ..Limits::default() };
    let server =
        server(vec![Key { limits, ..key("anna", "sk-anna") }, key("bert", "sk-bert")]).await;
    let first = complete(&server, "sk-anna", json!({})).await;
    assert_eq!((first.status, first.number("x-ratelimit-limit-requests")), (200, 2));
    assert_eq!(first.number("x-ratelimit-remaining-requests"), 1);
    assert!(first.header("x-ratelimit-reset-requests").unwrap().ends_with('s'));
    // A body that is refused counts too.
    assert_eq!(complete(&server, "sk-anna", json!({"n": 0})).await.status, 400);
    let third = complete(&server, "sk-anna", json!({"stream": true})).await;
    assert_eq!((third.status, third.code()), (429, "rate_limit_exceeded"));
    assert_eq!(third.body["error"]["type"], "requests");
    assert!((25..=30).contains(&third.number("retry-after")), "{}", third.head);
    assert_eq!(third.number("x-ratelimit-remaining-requests"), 0);
    // To look at the models takes nothing, and nobody else pays.
    let models = ask(&server, "GET /v1/models", "x-api-key: sk-anna", "").await;
    assert_eq!((models.status, models.number("x-ratelimit-remaining-requests")), (200, 0));
    assert_eq!(complete(&server, "sk-bert", json!({})).await.status, 200);
    assert!(server.metrics.text().contains("autoglm_refused_total{reason=\"requests\"} 1"));
}

#[tokio::test]
async fn tokens_are_reserved_and_those_not_used_come_back() {
    // A minute's worth is so much that none of it is back while this runs, to a few.
    let limits = Limits { tokens_per_minute: Some(100), ..Limits::default() };
    let server = server(vec![Key { limits, ..key("anna", "sk-anna") }]).await;
    let whole = complete(&server, "sk-anna", json!({})).await;
    assert_eq!((whole.status, whole.number("x-ratelimit-limit-tokens")), (200, 100));
    let used = whole.body["usage"]["total_tokens"].as_u64().unwrap() as u32;
    assert!((3..20).contains(&used), "{}", whole.body);
    // It asked for 42 and used fewer.
    let left = whole.number("x-ratelimit-remaining-tokens");
    assert!((100 - used..100).contains(&left) || left == 100, "{used} used, {left} left");
    assert!(left > 58, "{left}");

    let large = complete(&server, "sk-anna", json!({"max_tokens": 99})).await;
    assert_eq!((large.status, large.code()), (400, "key_limit_exceeded"));
    assert!(large.body.to_string().contains("101 tokens"), "{}", large.body);
    let many = complete(&server, "sk-anna", json!({"prompt": [[5], [6], [7]]})).await;
    assert_eq!((many.status, many.code()), (400, "key_limit_exceeded"));

    // A stream tells what is left while it runs: what it may use is taken.
    let stream = complete(&server, "sk-anna", json!({"stream": true, "max_tokens": 90})).await;
    assert_eq!(stream.status, 200);
    assert!(stream.number("x-ratelimit-remaining-tokens") < 20, "{}", stream.head);
    // Its end gave back what it didn't use.
    let models = ask(&server, "GET /v1/models", "x-api-key: sk-anna", "").await;
    assert!(models.number("x-ratelimit-remaining-tokens") > 50, "{}", models.head);
}

#[tokio::test]
async fn as_many_are_open_at_once_as_the_key_may_have() {
    let limits = Limits { max_streams: Some(1), ..Limits::default() };
    let keys = Keys::of(vec![Key { limits, ..key("anna", "sk-anna") }]);
    let begin = |request: &Request| {
        let mut said = say(request, "one two three");
        said.truncate(2);
        Script::Say(said)
    };
    let server = Server::with(begin, |served| served.keys = keys).await;
    let body = json!({"model": "m", "prompt": [5], "max_tokens": 40, "stream": true}).to_string();
    let bearer = "authorization: Bearer sk-anna";
    let mut first = send(&server, "POST /v1/completions", bearer, &body).await;
    let mut start = [0; 12];
    first.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    let second = complete(&server, "sk-anna", json!({})).await;
    assert_eq!((second.status, second.number("retry-after")), (429, 1));
    drop(first);
    // It ends when its client is seen to have gone.
    let again = async {
        loop {
            let mut third = send(&server, "POST /v1/completions", bearer, &body).await;
            third.read_exact(&mut start).await.unwrap();
            if &start == b"HTTP/1.1 200" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), again).await.expect("another may begin");
}

#[tokio::test]
async fn a_key_asks_for_no_more_than_it_may() {
    let limits =
        Limits { max_answer_tokens: Some(50), max_context_tokens: Some(60), ..Limits::default() };
    let most = Priority::Standard;
    let server = server(vec![Key { limits, max_priority: most, ..key("anna", "sk-anna") }]).await;
    for (more, status, code) in [
        (json!({"max_tokens": 50}), 200, ""),
        (json!({"max_tokens": 51}), 400, "key_limit_exceeded"),
        (json!({"prompt": vec![5; 21]}), 400, "context_length_exceeded"),
        (json!({"service_tier": "batch"}), 200, ""),
        (json!({"service_tier": "realtime"}), 403, "priority_not_allowed"),
        (json!({"priority": -1}), 403, "priority_not_allowed"),
    ] {
        let answer = complete(&server, "sk-anna", more.clone()).await;
        assert_eq!((answer.status, answer.code()), (status, code), "{more}: {}", answer.body);
    }
}
