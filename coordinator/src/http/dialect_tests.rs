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
