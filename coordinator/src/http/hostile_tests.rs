//! Requests that nobody should send, and what comes of them in each API: soon a status, and an
//! error in that API's own form that names the field.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::agents_tests::glm;
use super::script::Script;
use super::tests::{Response, Server, say};

/// Seconds in which whatever is asked is answered, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Api {
    Chat,
    Messages,
    Responses,
}

use Api::{Chat, Messages, Responses};

const ALL: [Api; 3] = [Chat, Messages, Responses];

impl Api {
    fn path(self) -> &'static str {
        match self {
            Chat => "/v1/chat/completions",
            Messages => "/v1/messages",
            Responses => "/v1/responses",
        }
    }

    /// A body that nothing is wrong with, and what takes the place of its fields or comes besides.
    fn body(self, more: &Value) -> Vec<u8> {
        let messages = json!([{"role": "user", "content": "Hi"}]);
        let mut body = match self {
            Chat => json!({"model": "m", "messages": messages}),
            Messages => json!({"model": "m", "messages": messages, "max_tokens": 8}),
            Responses => json!({"model": "m", "input": messages}),
        };
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body.to_string().into_bytes()
    }
}

async fn ask(server: &Server, api: Api, body: &[u8]) -> Response {
    let shown = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
    let answer = tokio::time::timeout(SOON, server.call("POST", api.path(), body)).await;
    answer.unwrap_or_else(|_| panic!("{api:?} hangs: {shown}"))
}

/// An error of this status, which is told as its API tells errors and names this field, if any.
fn assert_refused(api: Api, answer: &Response, status: u16, field: &str, case: &str) {
    let told = format!("{api:?} {case}: {}", answer.body);
    assert_eq!(answer.status, status, "{told}");
    let body = answer.json();
    let error = &body["error"];
    let message = error["message"].as_str().unwrap_or_else(|| panic!("{told}"));
    assert!(message.len() > 10 && !message.ends_with('.'), "{told}");
    if api == Messages {
        let kind = if status == 404 { "not_found_error" } else { "invalid_request_error" };
        assert_eq!((&body["type"], &error["type"]), (&json!("error"), &json!(kind)), "{told}");
        assert!(message.contains(field), "{told}");
    } else {
        assert_eq!(error["type"], "invalid_request_error", "{told}");
        assert_eq!(error["param"].as_str().unwrap_or_default(), field, "{told}");
        let word = field.rsplit(['.', ']']).next().unwrap_or_default();
        assert!(message.contains(word), "{told}");
    }
}

/// Whatever was asked before, this is answered.
async fn assert_answers(server: &Server) {
    for api in ALL {
        let answer = ask(server, api, &api.body(&json!({}))).await;
        assert_eq!(answer.status, 200, "{api:?}: {}", answer.body);
    }
}

#[tokio::test]
async fn what_is_no_json_object_is_refused_in_each_apis_form() {
    let (server, _) = glm(&[]).await;
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let bodies: [Vec<u8>; 19] = [
        b"".to_vec(),
        b"{".to_vec(),
        b"{\"model\": \"m\"".to_vec(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"7".to_vec(),
        b"\"m\"".to_vec(),
        b"{\"model\": NaN}".to_vec(),
        b"{\"temperature\": -Infinity}".to_vec(),
        b"{\"temperature\": 1e999}".to_vec(),
        format!("{{\"seed\": {}}}", "9".repeat(1000)).into_bytes(),
        b"{\"model\": \"\xff\xfe\"}".to_vec(),
        b"{\"model\": \"\\ud800\"}".to_vec(),
        b"{\"model\": \"a\nb\"}".to_vec(),
        b"\xef\xbb\xbf{}".to_vec(),
        b"{'model': 'm'}".to_vec(),
        b"{\"model\": \"m\"} {}".to_vec(),
        format!("{{\"model\": {}}}", nested(200)).into_bytes(),
        b"[{\"a\":".repeat(100_000),
    ];
    for api in ALL {
        for body in &bodies {
            let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
            assert_refused(api, &ask(&server, api, body).await, 400, "", &shown);
        }
    }
    assert_answers(&server).await;
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name}})
}

/// Schemas that no answer can keep to, and a word of why.
fn schemas() -> Vec<Value> {
    let large: Vec<_> = (0..10_000).map(|i| format!("choice {i}")).collect();
    vec![
        json!({"type": "wibble"}),
        json!({"type": "integer", "minimum": 5, "maximum": 1}),
        json!({"type": "string", "minLength": 9, "maxLength": 3}),
        json!({"enum": []}),
        json!({"allOf": [{"type": "string"}, {"type": "integer"}]}),
        json!({"$ref": "#/$defs/none"}),
        json!({"$ref": "https://schemas.example/a.json"}),
        json!({"$ref": "#"}),
        json!({"type": "string", "pattern": "(["}),
        json!({"type": "array", "minItems": -1}),
        json!({"type": "object", "properties": 7}),
        json!({"enum": large}),
    ]
}

/// What is wrong in a chat, and the field that says so.
fn chats() -> Vec<(Value, u16, &'static str)> {
    let says = |message: Value| json!({"messages": [message]});
    let content = |content: Value| says(json!({"role": "user", "content": content}));
    let call = |function: Value| {
        says(json!({"role": "assistant", "content": "",
            "tool_calls": [{"id": "c", "type": "function", "function": function}]}))
    };
    let bias: Map<_, _> = (0..1025).map(|id: u32| (id.to_string(), json!(1))).collect();
    let format = |schema: Value| {
        let named = json!({"name": "x", "schema": schema});
        json!({"response_format": {"type": "json_schema", "json_schema": named}})
    };
    let mut cases = vec![
        (json!({"messages": null}), 400, "messages"),
        (json!({"messages": "Hi"}), 400, "messages"),
        (json!({"messages": []}), 400, "messages"),
        (json!({"messages": ["Hi"]}), 400, "messages[0]"),
        (says(json!({"content": "Hi"})), 400, "messages[0].role"),
        (says(json!({"role": 7, "content": "Hi"})), 400, "messages[0].role"),
        (says(json!({"role": "robot", "content": "Hi"})), 400, "messages[0].role"),
        (says(json!({"role": "user"})), 400, "messages[0].content"),
        (content(json!(7)), 400, "messages[0].content"),
        (content(json!([7])), 400, "messages[0].content"),
        (content(json!([{"type": "text"}])), 400, "messages[0].content"),
        (
            content(json!([{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}])),
            400,
            "messages[0].content",
        ),
        (content(json!([{"type": "input_audio"}])), 400, "messages[0].content"),
        (says(json!({"role": "tool", "content": "2", "tool_call_id": "c"})), 400, "messages"),
        (call(json!({"name": "f", "arguments": "{"})), 400, "messages[0].tool_calls"),
        (call(json!({"arguments": "{}"})), 400, "messages[0].tool_calls"),
        (json!({"tools": [tool("f"), tool("f")]}), 400, "tools[1]"),
        (json!({"tools": [tool("f g")]}), 400, "tools[0].function.name"),
        (json!({"tools": [tool("f")], "tool_choice": tool("g")}), 400, "tool_choice"),
        (json!({"tools": [tool("f")], "tool_choice": "perhaps"}), 400, "tool_choice"),
        (json!({"tool_choice": "required"}), 400, "tool_choice"),
        (json!({"stop": vec!["x"; 17]}), 400, "stop"),
        (json!({"stop": ["x".repeat(1025)]}), 400, "stop"),
        (json!({"stop": [7]}), 400, "stop"),
        (json!({"logit_bias": {"99999999": 1}}), 400, "logit_bias"),
        (json!({"logit_bias": {"-1": 1}}), 400, "logit_bias"),
        (json!({"logit_bias": {"5": 1000}}), 400, "logit_bias"),
        (json!({"logit_bias": {"x": 1}}), 400, "logit_bias"),
        (json!({"logit_bias": bias}), 400, "logit_bias"),
        (json!({"n": 0}), 400, "n"),
        (json!({"n": 17}), 400, "n"),
        (json!({"n": 1_000_000_000_000_u64}), 400, "n"),
        (json!({"stream_options": {"include_usage": true}}), 400, "stream_options"),
        (json!({"top_logprobs": 5}), 400, "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 1000}), 400, "top_logprobs"),
        (json!({"seed": "x"}), 400, "seed"),
        (json!({"seed": 1.5}), 400, "seed"),
        (json!({"presence_penalty": 3}), 400, "presence_penalty"),
        (json!({"wibble": 1}), 400, "wibble"),
        (json!({"response_format": 7}), 400, "response_format.type"),
        (json!({"guided_regex": "(["}), 400, "guided_regex"),
        (json!({"guided_grammar": "start: start"}), 400, "guided_grammar"),
        (json!({"guided_choice": []}), 400, "guided_choice"),
        (json!({"max_tokens": 5, "max_completion_tokens": 6}), 400, "max_tokens"),
    ];
    let schemas = schemas().into_iter();
    cases.extend(schemas.map(|schema| (format(schema), 400, "response_format")));
    cases.push((format(json!(7)), 400, "response_format.json_schema.schema"));
    cases.extend(lengths("max_tokens"));
    cases
}

/// Lengths of answers that none can have.
fn lengths(field: &'static str) -> impl Iterator<Item = (Value, u16, &'static str)> {
    let lengths = [
        json!(-1),
        json!(0),
        json!(1.5),
        json!("8"),
        json!([8]),
        json!(true),
        json!(1e30),
        json!(1_u64 << 32),
        json!(1 << 20),
    ];
    lengths.into_iter().map(move |length| (json!({field: length}), 400, field))
}

/// What is wrong in Anthropic's form.
fn messages() -> Vec<(Value, u16, &'static str)> {
    let says = |message: Value| json!({"messages": [message]});
    let block = |block: Value| says(json!({"role": "user", "content": [block]}));
    let tool = |name: Value| json!({"name": name, "input_schema": {"type": "object"}});
    let strict = |schema: Value| {
        json!({"tools": [{"name": "f", "strict": true, "input_schema": {
            "type": "object", "properties": {"a": schema}, "required": ["a"],
        }}]})
    };
    let mut cases = vec![
        (json!({"messages": null}), 400, "messages"),
        (json!({"messages": "Hi"}), 400, "messages"),
        (json!({"messages": []}), 400, "messages"),
        (json!({"messages": ["Hi"]}), 400, "messages[0].role"),
        (says(json!({"content": "Hi"})), 400, "messages[0].role"),
        (says(json!({"role": "robot", "content": "Hi"})), 400, "messages[0].role"),
        (says(json!({"role": "user"})), 400, "messages[0].content"),
        (block(json!(7)), 400, "messages[0].content[0]"),
        (block(json!({"type": "text"})), 400, "messages[0].content[0]"),
        (block(json!({"type": "image", "source": {}})), 400, "messages[0].content[0]"),
        (block(json!({"type": "document", "source": {}})), 400, "messages[0].content[0]"),
        (
            block(json!({"type": "tool_result", "tool_use_id": "t", "content": "2"})),
            400,
            "messages",
        ),
        (
            block(json!({"type": "tool_result", "tool_use_id": "t", "content": 7})),
            400,
            "messages[0].content[0]",
        ),
        (
            says(json!({"role": "assistant", "content": [
                {"type": "tool_use", "id": "t", "input": {}},
            ]})),
            400,
            "messages[0].content[0].name",
        ),
        (
            says(json!({"role": "assistant", "content": [
                {"type": "tool_use", "id": "t", "name": "f", "input": "{"},
            ]})),
            400,
            "messages[0].content[0].input",
        ),
        (json!({"system": 7}), 400, "system"),
        (json!({"max_tokens": null}), 400, "max_tokens"),
        (json!({"tools": [tool(json!("f")), tool(json!("f"))]}), 400, "tools[1]"),
        (json!({"tools": [tool(json!(7))]}), 400, "tools[0].name"),
        (json!({"tools": [tool(json!("f g"))]}), 400, "tools[0].name"),
        (json!({"tools": [{"name": "f", "input_schema": 7}]}), 400, "tools[0].input_schema"),
        (
            json!({"tools": [tool(json!("f"))], "tool_choice": {"type": "tool", "name": "g"}}),
            400,
            "tool_choice",
        ),
        (json!({"tool_choice": {"type": "any"}}), 400, "tool_choice"),
        (json!({"tool_choice": {"type": "perhaps"}}), 400, "tool_choice"),
        (json!({"stop_sequences": vec!["x"; 17]}), 400, "stop_sequences"),
        (json!({"stop_sequences": [7]}), 400, "stop_sequences"),
        (json!({"thinking": {"type": "perhaps"}}), 400, "thinking"),
        (json!({"service_tier": "perhaps"}), 400, "service_tier"),
    ];
    // This model writes texts as they are, whatever else is said of them; and what has no end as a
    // whole may have one in a part. The last is too large as a part of the prompt already.
    let is_meant = |schema: &Value| schema["type"] != "string" && schema["$ref"] != "#";
    let schemas = schemas().into_iter().rev().skip(1).filter(is_meant);
    cases.extend(schemas.map(|schema| (strict(schema), 400, "tools")));
    cases.extend(lengths("max_tokens"));
    cases
}

fn responses() -> Vec<(Value, u16, &'static str)> {
    let input = |item: Value| json!({"input": [item]});
    let tool = |name: &str| json!({"type": "function", "name": name});
    let format = |schema: Value| {
        let named = json!({"type": "json_schema", "name": "x", "schema": schema});
        json!({"text": {"format": named}})
    };
    let mut cases = vec![
        (json!({"input": 7}), 400, "input"),
        (json!({"input": [7]}), 400, "input[0].role"),
        (input(json!({"content": "Hi"})), 400, "input[0].role"),
        (input(json!({"role": "robot", "content": "Hi"})), 400, "input[0].role"),
        (input(json!({"role": "user", "content": 7})), 400, "input[0].content"),
        (
            input(json!({"role": "user", "content": [{"type": "input_image"}]})),
            400,
            "input[0].content",
        ),
        (input(json!({"type": "computer_call"})), 400, "input[0]"),
        (
            input(json!({"type": "function_call_output", "call_id": "c", "output": "2"})),
            400,
            "input",
        ),
        (
            input(json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"})),
            400,
            "input[0].arguments",
        ),
        (
            input(json!({"type": "function_call", "call_id": "c", "arguments": "{}"})),
            400,
            "input[0].name",
        ),
        (json!({"instructions": 7}), 400, "instructions"),
        (json!({"previous_response_id": "resp_1"}), 404, "previous_response_id"),
        (json!({"conversation": "conv_1"}), 404, "conversation"),
        (json!({"background": true}), 400, "background"),
        (json!({"tools": {}}), 400, "tools"),
        (json!({"tools": [tool("f"), tool("f")]}), 400, "tools[1]"),
        (json!({"tools": [tool("f g")]}), 400, "tools[0].name"),
        (json!({"tools": [tool("f")], "tool_choice": tool("g")}), 400, "tool_choice"),
        (json!({"tool_choice": "required"}), 400, "tool_choice"),
        (json!({"reasoning": {"effort": "boundless"}}), 400, "reasoning.effort"),
        (json!({"reasoning": 7}), 400, "reasoning"),
        (json!({"text": 7}), 400, "text"),
        (json!({"text": {"format": 7}}), 400, "text.format.type"),
        (json!({"n": 2}), 400, "n"),
        (json!({"wibble": 1}), 400, "wibble"),
    ];
    cases.extend(schemas().into_iter().map(|schema| (format(schema), 400, "text.format")));
    cases.push((format(json!(7)), 400, "text.format.schema"));
    cases.extend(lengths("max_output_tokens"));
    cases
}

/// Goal: what is wrong is refused by its name in the API that was asked, whole or streamed, and
/// nothing of it is left behind.
#[tokio::test]
async fn what_is_wrong_is_refused_by_its_name_in_each_api() {
    let (server, _) = glm(&[]).await;
    let everywhere = [
        (json!({"model": 7}), 400, "model"),
        (json!({"model": "gpt"}), 404, "model"),
        (json!({"temperature": "hot"}), 400, "temperature"),
        (json!({"temperature": -1}), 400, "temperature"),
        (json!({"temperature": 1e300}), 400, "temperature"),
        (json!({"top_p": 2}), 400, "top_p"),
        (json!({"top_k": -2}), 400, "top_k"),
        (json!({"stream": "yes"}), 400, "stream"),
        (json!({"tools": 7}), 400, "tools"),
    ];
    for (api, cases) in [(Chat, chats()), (Messages, messages()), (Responses, responses())] {
        for (more, status, field) in everywhere.iter().chain(&cases) {
            let mut shown = more.to_string();
            shown.truncate(120);
            let answer = ask(&server, api, &api.body(more)).await;
            assert_refused(api, &answer, *status, field, &shown);
            // Nor is the status another one where the answer was to be streamed.
            if more.get("stream").is_none() && *field != "stream_options" {
                let mut more = more.clone();
                more["stream"] = true.into();
                let streamed = ask(&server, api, &api.body(&more)).await;
                assert_eq!(streamed.status, *status, "{api:?} {shown}: {}", streamed.body);
            }
        }
    }
    assert_answers(&server).await;
}

/// What may be asked, or may be too much: it is answered soon in any case.
#[tokio::test]
async fn what_would_take_long_is_answered_soon() {
    let (server, _) = glm(&[]).await;
    let mut deep = json!({"type": "boolean"});
    for _ in 0..100 {
        deep = json!({"type": "object", "properties": {"a": deep}, "required": ["a"]});
    }
    let endless = json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"],
        "additionalProperties": false});
    let format = |schema: Value| {
        let named = json!({"name": "x", "schema": schema});
        json!({"response_format": {"type": "json_schema", "json_schema": named}})
    };
    let wide: Map<_, _> =
        (0..2000).map(|i| (format!("p{i}"), json!({"type": "integer"}))).collect();
    let tools: Vec<_> = (0..1024).map(|i| tool(&format!("f{i}"))).collect();
    let talk: Vec<_> =
        (0..5000).map(|_| json!({"role": "user", "content": "a b c d e f"})).collect();
    for (what, more) in [
        ("a deep schema", format(deep)),
        ("a schema without an end", format(endless)),
        ("a wide schema", format(json!({"type": "object", "properties": wide}))),
        ("a long pattern", format(json!({"type": "string", "pattern": "(a{1,100}b){1,1000}"}))),
        ("a long array", format(json!({"type": "array", "minItems": 1_000_000_000_u64}))),
        ("a regex that counts", json!({"guided_regex": "(((a{1,100}){1,100}){1,100}){1,100}"})),
        ("a regex that looks twice", json!({"guided_regex": "(a*)*(b*)*(c|d|e)*f{0,5000}"})),
        (
            "a grammar that turns in circles",
            json!({"guided_grammar": "start: a\na: a a | \"x\" a"}),
        ),
        (
            "many tools, one of which must be called",
            json!({"tools": tools,
            "tool_choice": "required"}),
        ),
        ("many messages", json!({"messages": talk})),
    ] {
        let answer = ask(&server, Chat, &Chat.body(&more)).await;
        assert!([200, 400].contains(&answer.status), "{what}: {}", answer.body);
    }
    assert_answers(&server).await;
}

/// What stands in a request's head changes neither what is answered nor its form.
#[tokio::test]
async fn odd_heads_are_answered() {
    let server = Server::start(|request| Script::Say(say(request, "one"))).await;
    for api in ALL {
        let head = |head: &str| format!("{} HTTP/1.1\r\n{head}\r\nx-rest: ", api.path());
        let body = api.body(&json!({}));
        for good in [
            "content-type: text/plain",
            "content-type: application/x-www-form-urlencoded",
            "content-type: \u{ff}",
            "content-type: multipart/form-data",
            "content-encoding: identity",
            "expect: a miracle",
            "accept: image/png",
            "x-request-id: \u{ff}",
            "traceparent: 00-00000000000000000000000000000000-0000000000000000-00",
            "authorization: Basic ,",
        ] {
            let answer = server.call("POST", &head(good), &body).await;
            assert_eq!(answer.status, 200, "{api:?} {good}: {}", answer.body);
        }
        let packed = server.call("POST", &head("content-encoding: gzip"), &body).await;
        assert_refused(api, &packed, 415, "", "packed");
        assert!(packed.body.contains("content-encoding"), "{}", packed.body);
        let late = server.call("POST", &head("x-deadline-ms: soon"), &body).await;
        assert_refused(api, &late, 400, "x-deadline-ms", "late");
    }
}
