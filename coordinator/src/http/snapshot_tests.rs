//! `/v1/admin/snapshot` over real connections, in front of a scheduler that computes nothing.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::tests::{Script, Server};
use crate::keys::tests::key;
use crate::keys::{Key, Keys, Scope};

async fn snapshot(server: &Server, query: &str) -> Value {
    let answer = server.call("GET", &format!("/v1/admin/snapshot{query}"), b"").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

#[tokio::test]
async fn a_snapshot_tells_what_waits_and_runs_and_why() {
    let server = Server::start(|_| Script::Say(Vec::new())).await;
    let body = json!({"model": "m", "prompt": "a b c", "max_tokens": 4, "stream": true});
    let body = body.to_string();
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(server.open("POST", "/v1/completions", body.as_bytes()).await);
    }
    let mut told = snapshot(&server, "").await;
    for _ in 0..100 {
        if told["num_requests"] == 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        told = snapshot(&server, "").await;
    }
    // One place: one runs, the others wait behind it.
    assert_eq!((&told["load"]["running"], &told["load"]["waiting"]), (&json!(1), &json!(2)));
    let [group] = &told["queue"].as_array().unwrap()[..] else { panic!("{told}") };
    assert_eq!((&group["num"], &group["priority"]), (&json!(2), &json!("standard")));
    assert!(group["why"].as_str().unwrap().contains("scheduler.max_num_seqs"), "{group}");
    let states: Vec<_> =
        told["requests"].as_array().unwrap().iter().map(|it| it["state"].clone()).collect();
    assert_eq!(states, ["running", "waiting", "waiting"], "those open for longest first");
    let first = told["requests"][0]["id"].as_str().unwrap();
    assert!(told["requests"][0]["prompt_tokens"].as_u64() > Some(0), "{told}");
    let story = server.call("GET", &format!("/v1/requests/{first}"), b"").await.json();
    assert_eq!(story["decisions"][0]["what"], "queued", "{story}");
    let newest = snapshot(&server, "?requests=1&order=newest").await;
    let [newest] = &newest["requests"].as_array().unwrap()[..] else { panic!("{newest}") };
    assert_ne!(newest["id"].as_str().unwrap(), first);
    drop(open);
}

#[tokio::test]
async fn a_question_that_makes_no_sense_is_answered_with_what_would() {
    let server = Server::start(|_| Script::Say(Vec::new())).await;
    for (query, expected) in [
        ("requests=x", "whole number"),
        ("points=-1", "whole number"),
        ("order=best", "oldest or newest"),
        ("page=2", "requests, order, points and events"),
    ] {
        for path in ["/v1/admin/snapshot", "/v1/admin/snapshot/events"] {
            let answer = server.call("GET", &format!("{path}?{query}"), b"").await;
            assert!(answer.status == 400 && answer.body.contains(expected), "{}", answer.body);
        }
    }
}

#[tokio::test]
async fn snapshots_are_for_operators() {
    let keys =
        vec![key("anna", "sk-anna"), Key { scopes: vec![Scope::Admin], ..key("ops", "sk-ops") }];
    let server =
        Server::with(|_| Script::Say(Vec::new()), |served| served.keys = Keys::of(keys)).await;
    for path in ["/v1/admin/snapshot", "/v1/admin/snapshot/events"] {
        assert_eq!(server.call("GET", path, b"").await.status, 401);
        assert_eq!(server.call_as("sk-anna", "GET", path).await.status, 403);
    }
    assert_eq!(server.call_as("sk-ops", "GET", "/v1/admin/snapshot").await.status, 200);
}

/// Goal: whoever watches gets one a second, and of what grows only what is new.
#[tokio::test]
async fn the_stream_tells_all_once_and_then_what_is_new() {
    let server = Server::start(|_| Script::Say(Vec::new())).await;
    let happened = |node: &str| {
        let happened = crate::snapshot::Happened { node: node.into(), ..Default::default() };
        let kind = crate::snapshot::EventKind::Joined;
        server.metrics.recent().happened(std::time::Instant::now(), kind, happened);
    };
    happened("a1");
    let mut stream = server.open("GET", "/v1/admin/snapshot/events", b"").await;
    let (mut text, mut buffer) = (String::new(), vec![0; 1 << 16]);
    let mut nodes = Vec::new();
    let read = async {
        while nodes.len() < 3 {
            let num = stream.read(&mut buffer).await.unwrap();
            assert!(num > 0, "it ended: {text}");
            text.push_str(std::str::from_utf8(&buffer[..num]).unwrap());
            let events = text.lines().filter_map(|line| line.strip_prefix("data: "));
            let events: Vec<Value> =
                events.filter_map(|it| serde_json::from_str(it).ok()).collect();
            nodes = events.iter().map(|it| it["events"].clone()).collect();
            if nodes.len() == 1 && text.matches("a2").count() == 0 {
                happened("a2");
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), read).await.unwrap();
    let named = |events: &Value| -> Vec<String> {
        let events = events.as_array().unwrap().iter();
        events.map(|it| it["node"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(named(&nodes[0]), ["a1"]);
    assert!(named(&nodes[1]).iter().all(|it| it == "a2") && !named(&nodes[1]).is_empty());
    assert!(named(&nodes[2]).len() <= 1, "{nodes:?}");
}
