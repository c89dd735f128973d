use serde_json::{Value, json};

use super::script::Script;
use super::tests::{Server, say};

fn with(body: &Value, more: Value) -> Value {
    let mut body = body.clone();
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn messages_and_responses_are_what_their_clients_read() {
    let api = Server::start(|request| Script::Say(say(request, "Hi"))).await;
    let message = json!({"model": "m", "max_tokens": 5, "messages": [
        {"role": "user", "content": "Hello"},
    ]});
    let path = "/v1/messages?beta=true";
    let whole = api.post(path, &message).await.json();
    assert_eq!(whole["content"], json!([{"type": "text", "text": "Hi"}]));
    assert_eq!((&whole["type"], &whole["role"]), (&json!("message"), &json!("assistant")));
    let counted = api.post("/v1/messages/count_tokens", &message).await.json();
    let usage = &whole["usage"];
    assert_eq!(counted["input_tokens"], usage["input_tokens"]);
    let streamed = api.post(path, &with(&message, json!({"stream": true}))).await;
    assert!(streamed.body.contains("event: message_start"), "{}", streamed.body);
    assert!(streamed.body.contains("event: message_stop") && !streamed.body.contains("[DONE]"));
    let refused = api.post(path, &with(&message, json!({"max_tokens": 0}))).await;
    assert_eq!(refused.status, 400);
    let error = refused.json();
    assert_eq!(
        (&error["type"], &error["error"]["type"]),
        (&json!("error"), &json!("invalid_request_error"))
    );

    let body = json!({"model": "m", "input": "Hello", "max_output_tokens": 5});
    let whole = api.post("/v1/responses", &body).await.json();
    assert_eq!(whole["output"][0]["content"][0]["text"], "Hi");
    assert_eq!((&whole["object"], &whole["status"]), (&json!("response"), &json!("incomplete")));
    let streamed = api.post("/v1/responses", &with(&body, json!({"stream": true}))).await;
    assert!(streamed.body.contains("event: response.incomplete"), "{}", streamed.body);
    let kept = with(&body, json!({"previous_response_id": "resp_1"}));
    let refused = api.post("/v1/responses", &kept).await;
    assert_eq!(
        (refused.status, refused.json()["error"]["code"].as_str()),
        (404, Some("previous_response_not_found"))
    );
}

/// Who asks Anthropic's way is told which of its stop sequences has come.
#[tokio::test]
async fn a_stop_sequence_is_named() {
    let api = Server::start(|request| Script::Say(say(request, "one two three"))).await;
    let asked = |more: Value| {
        let body = json!({"model": "m", "max_tokens": 50, "messages": [
            {"role": "user", "content": "Hello"},
        ]});
        with(&body, more)
    };
    let stops = json!({"stop_sequences": ["unheard", "o th"]});
    let whole = api.post("/v1/messages", &asked(stops.clone())).await.json();
    assert_eq!(whole["content"][0]["text"], "one tw");
    let named = |it: &Value| (it["stop_reason"].clone(), it["stop_sequence"].clone());
    assert_eq!(named(&whole), (json!("stop_sequence"), json!("o th")));
    let streamed = with(&asked(stops), json!({"stream": true}));
    let streamed = api.post("/v1/messages", &streamed).await.body;
    let ends = streamed.lines().find(|line| line.contains("message_delta\",")).unwrap();
    let ends: Value = serde_json::from_str(ends.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(named(&ends["delta"]), (json!("stop_sequence"), json!("o th")));
    let other = api.post("/v1/messages", &asked(json!({}))).await.json();
    assert_eq!(named(&other), (json!("max_tokens"), Value::Null));
}

#[tokio::test]
async fn editors_are_answered_as_llama_cpp_answers_them() {
    let api = Server::with(
        |request| Script::Say(say(request, "one two three")),
        |served| *served = crate::openai::testing::Served::infill(),
    )
    .await;
    let body = json!({"input_prefix": "a", "input_suffix": "b", "n_predict": 64});
    let whole = api.post("/infill", &body).await.json();
    assert_eq!(
        (&whole["content"], &whole["stop"], &whole["stop_type"]),
        (&json!("one two three"), &json!(true), &json!("limit")),
    );
    let stopped = api.post("/infill", &with(&body, json!({"stop": ["three"]}))).await.json();
    assert_eq!(
        (&stopped["content"], &stopped["stop_type"], &stopped["stopping_word"]),
        (&json!("one two "), &json!("word"), &json!("three")),
    );
    let streamed = api.post("/infill", &with(&body, json!({"stream": true}))).await;
    assert_eq!(streamed.header("content-type"), Some("text/event-stream"));
    let said: Vec<Value> = streamed
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let text: String = said.iter().map(|it| it["content"].as_str().unwrap()).collect();
    let stops: Vec<_> = said.iter().map(|it| it["stop"] == true).collect();
    assert_eq!(text, "one two three");
    assert!(
        stops.len() > 2 && stops.iter().filter(|it| **it).count() == 1 && stops[stops.len() - 1]
    );
}
