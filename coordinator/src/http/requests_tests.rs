//! `/v1/requests` over real connections, in front of a scheduler that computes nothing.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::tests::{Script, Server};
use crate::keys::tests::key;
use crate::keys::{Key, Keys, Scope};

/// Nothing is ever answered. `anna` and `bert` may infer, `ops` may everything.
async fn server() -> Server {
    let keys = vec![
        key("anna", "sk-anna"),
        key("bert", "sk-bert"),
        Key { scopes: vec![Scope::Admin], ..key("ops", "sk-ops") },
    ];
    Server::with(|_| Script::Say(Vec::new()), |served| served.keys = Keys::of(keys)).await
}

async fn send(server: &Server, line: &str, secret: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let length = body.len();
    let request = format!(
        "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\
         authorization: Bearer {secret}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut bytes));
    read.await.expect("an end").unwrap();
    String::from_utf8(bytes).unwrap()
}

async fn ask(server: &Server, line: &str, secret: &str) -> (u16, Value) {
    let text = rest(send(server, line, secret, "").await).await;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
}

/// A stream that has begun, and its id.
async fn open(server: &Server, secret: &str, prompt: Value) -> (TcpStream, String) {
    let body = json!({"model": "m", "prompt": prompt, "max_tokens": 9, "stream": true});
    let line = "POST /v1/completions";
    let mut stream = send(server, line, secret, &body.to_string()).await;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        assert_eq!(stream.read(&mut byte).await.unwrap(), 1);
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let id = head.split_once("x-request-id: ").expect(&head).1;
    (stream, id.split_once("\r\n").unwrap().0.to_owned())
}

#[tokio::test]
async fn an_open_request_says_why_it_waits_to_its_tenant_and_to_admins() {
    let server = server().await;
    let (_running, first) = open(&server, "sk-anna", json!([5, 6])).await;
    let (_waiting, second) = open(&server, "sk-anna", json!([[7, 8], [9]])).await;
    let (_others, third) = open(&server, "sk-bert", json!([5])).await;

    let (status, story) = ask(&server, &format!("GET /v1/requests/{first}"), "sk-anna").await;
    assert_eq!((status, &story["state"]), (200, &json!("running")), "{story}");
    let what: Vec<_> =
        story["decisions"].as_array().unwrap().iter().map(|it| &it["what"]).collect();
    assert_eq!(what, ["queued", "admitted"]);
    assert_eq!((&story["id"], &story["object"]), (&json!(first), &json!("request")));
    let line = format!("GET /v1/requests/{second}");
    let (_, story) = ask(&server, &line, "sk-anna").await;
    assert_eq!((&story["state"], &story["priority"]), (&json!("waiting"), &json!("standard")));
    let why = "1 sequences run, as many as may (scheduler.max_num_seqs)";
    assert_eq!(story["waiting"][1]["choice"], 1, "{story}");
    assert_eq!(story["waiting"][0]["why"], why);
    // Another tenant's looks as one that isn't there.
    let (status, hidden) = ask(&server, &line, "sk-bert").await;
    assert_eq!((status, &hidden["error"]["code"]), (404, &json!("request_not_found")));
    assert_eq!(ask(&server, &line, "sk-ops").await.0, 200);
    let unprefixed = second.strip_prefix("cmpl-").unwrap();
    assert_eq!(ask(&server, &format!("GET /v1/requests/{unprefixed}"), "sk-anna").await.0, 200);
    for id in ["cmpl-0000000000000001", "cmpl-1", "x", "%ff", "cmpl-+000000000000001"] {
        let (status, _) = ask(&server, &format!("GET /v1/requests/{id}"), "sk-ops").await;
        assert!(status == 404 || (id == "%ff" && status == 400), "{id}: {status}");
    }

    let ids = |list: &Value| -> Vec<_> {
        let data = list["data"].as_array().unwrap().iter();
        data.map(|it| format!("cmpl-{}", it["id"].as_str().unwrap())).collect()
    };
    let (_, list) = ask(&server, "GET /v1/requests", "sk-anna").await;
    assert_eq!(ids(&list), [second.clone(), first.clone()], "newest first");
    let (_, list) = ask(&server, "GET /v1/requests?limit=2", "sk-ops").await;
    assert_eq!((ids(&list), &list["has_more"]), (vec![third, second.clone()], &json!(true)));
    let line = format!("GET /v1/requests?limit=2&after={second}");
    let (_, list) = ask(&server, &line, "sk-ops").await;
    assert_eq!((ids(&list), &list["has_more"]), (vec![first], &json!(false)));
    for wrong in ["limit=0", "limit=101", "limit=-1", "limits=1"] {
        let (status, error) = ask(&server, &format!("GET /v1/requests?{wrong}"), "sk-ops").await;
        assert_eq!(status, 400, "{wrong}: {error}");
    }
    assert_eq!(ask(&server, "GET /v1/requests?after=cmpl-1", "sk-ops").await.0, 404);
}

#[tokio::test]
async fn a_cancelled_stream_ends_with_an_error_that_says_so_and_others_go_on() {
    let server = server().await;
    let (stream, id) = open(&server, "sk-anna", json!([[5], [6]])).await;
    let (_other, other) = open(&server, "sk-anna", json!([7])).await;
    let line = format!("DELETE /v1/requests/{id}");
    assert_eq!(ask(&server, &line, "sk-bert").await.0, 404, "it isn't theirs");
    let (status, story) = ask(&server, &line, "sk-anna").await;
    assert_eq!((status, &story["state"]), (200, &json!("cancelled")), "{story}");
    let said = rest(stream).await;
    assert!(said.contains("\"code\":\"cancelled\""), "{said}");
    assert!(!said.contains("[DONE]"), "{said}");
    // Once more changes nothing.
    let (status, again) = ask(&server, &line, "sk-ops").await;
    assert_eq!((status, &again["decisions"]), (200, &story["decisions"]));
    let unknown = "DELETE /v1/requests/cmpl-0000000000000001";
    assert_eq!(ask(&server, unknown, "sk-ops").await.0, 404);
    let (_, story) = ask(&server, &format!("GET /v1/requests/{other}"), "sk-anna").await;
    // Its place is free, though the step under way has not come back.
    let waiting = &story["waiting"][0];
    assert_eq!((&waiting["num_before"], &story["state"]), (&json!(0), &json!("waiting")));
    let why = "the next step, unless others go first or compute its beginning";
    assert_eq!(waiting["why"], why);
}
