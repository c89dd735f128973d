//! Durable answers over real connections, in front of an engine that answers by script.

use serde_json::{Value, json};

use super::tests::{Response, Script, Server, say};
use crate::durable::Durables;
use crate::store::Store;

async fn server(dir: &tempfile::TempDir) -> Server {
    let store = Store::open(dir.path()).await.unwrap();
    let durables = Durables::open(store, Default::default()).await.unwrap();
    let script = |request: &_| Script::Say(say(request, "naïve 中文"));
    Server::with(script, |served| served.durables = durables).await
}

async fn ask(server: &Server, method: &str, path: &str, more: Value, last: &str) -> Response {
    let mut body = json!({"model": "m", "prompt": "Hi", "stream": true, "durable": true});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let header = if last.is_empty() { String::new() } else { format!("last-event-id: {last}\r\n") };
    // A target, and the headers that follow its line.
    let line = format!("{path} HTTP/1.1\r\n{header}x-rest: ");
    server.call(method, &line, body.to_string().as_bytes()).await
}

/// Ids and data of events.
fn events(response: &Response) -> Vec<(String, String)> {
    let of = |event: &str, name: &str| {
        let line = event.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().to_owned()
    };
    let events = response.body.split_terminator("\n\n");
    events.map(|event| (of(event, "id: "), of(event, "data: "))).collect()
}

/// Goal: whoever comes back hears exactly what follows. Method: after each of the events, by both
/// ways, and after all.
#[tokio::test]
async fn a_client_comes_back_for_what_follows_the_last_event_that_it_heard() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir).await;
    let usage = json!({"stream_options": {"include_usage": true}});
    let whole = ask(&server, "POST", "/v1/completions", usage, "").await;
    assert!(whole.body.starts_with("id: ") && whole.body.contains("\nretry: 1000\n"));
    let whole = events(&whole);
    assert_eq!(whole.last().unwrap().1, "[DONE]");
    let id = whole[0].0.split_once('.').unwrap().0.to_owned();
    let path = format!("/v1/requests/cmpl-{id}/events");
    let anew = ask(&server, "GET", &path, json!({}), "").await;
    assert_eq!(events(&anew), whole, "from the beginning");
    for (at, (last, _)) in whole.iter().enumerate() {
        for (method, path) in [("GET", &*path), ("POST", "/v1/completions")] {
            let rest = ask(&server, method, path, json!({}), last).await;
            if at + 1 == whole.len() {
                assert_eq!(rest.status, 204, "there is no more to come for");
            } else {
                assert_eq!(events(&rest), whole[at + 1..], "after {last}");
            }
        }
    }
}

#[tokio::test]
async fn what_cannot_be_durable_or_gone_on_with_is_refused_with_what_could() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir).await;
    for more in [json!({"stream": false}), json!({"n": 2}), json!({"prompt": ["a", "b"]})] {
        let refused = ask(&server, "POST", "/v1/completions", more, "").await;
        assert_eq!(refused.status, 400, "{}", refused.body);
        assert!(refused.body.contains("\"param\":\"durable\""), "{}", refused.body);
    }
    let whole = events(&ask(&server, "POST", "/v1/completions", json!({}), "").await);
    let id = whole[0].0.split_once('.').unwrap().0.to_owned();
    let (path, num) = (format!("/v1/requests/{id}/events"), whole.len());
    for (path, last, status, expected) in [
        (&*path, format!("{id}.{}", num + 1), 400, "never was"),
        (&path, "0123456789abcdef.1".into(), 400, "of another request"),
        (&path, "17".into(), 400, "as in 0123456789abcdef.17"),
        (&path, format!("{id}.01"), 400, "as in 0123456789abcdef.17"),
        (&path, format!("{id}.-1"), 400, "as in 0123456789abcdef.17"),
        ("/v1/requests/0123456789abcdef/events", String::new(), 404, "durable.keep_ms"),
        ("/v1/requests/x/events", String::new(), 404, "durable: true"),
    ] {
        let refused = ask(&server, "GET", path, json!({}), &last).await;
        assert_eq!(refused.status, status, "{path} {last}: {}", refused.body);
        assert!(refused.body.contains(expected), "{path} {last}: {}", refused.body);
    }
    let none = ask(&server, "POST", "/v1/completions", json!({}), "0123456789abcdef.1").await;
    assert_eq!(none.status, 404);
    let off = Server::start(|_| Script::Say(Vec::new())).await;
    let refused = ask(&off, "POST", "/v1/completions", json!({}), "").await;
    assert!(refused.body.contains("durable.max_requests = 0"), "{}", refused.body);
}
