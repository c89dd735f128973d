//! What Codex and Claude Code send and read, field by field: two turns of each, with thoughts and a
//! call, in front of an engine that says what a GLM would.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::script::Script;
use super::tests::{Response, Server, say};
use crate::chat_template::ChatTemplate;
use crate::openai::testing::Served;
use crate::request::{Event, FinishReason};

/// A server that answers with these texts in turn, and the prompts that came.
pub(super) async fn glm(answers: &[&str]) -> (Server, Arc<Mutex<Vec<String>>>) {
    let prompts = Arc::new(Mutex::new(Vec::new()));
    let answers: VecDeque<_> = answers.iter().map(|text| (*text).to_owned()).collect();
    let (seen, answers) = (Arc::clone(&prompts), Mutex::new(answers));
    let tokenizer = Served::chat().tokenizer;
    let script = move |request: &crate::request::Request| {
        seen.lock().unwrap().push(tokenizer.decode(&request.prompt, false));
        let text = answers.lock().unwrap().pop_front().unwrap_or("?".into());
        let mut said = say(request, &text);
        // It ends by itself.
        if let Some(Event::Finished { reason, .. }) = said.last_mut() {
            *reason = FinishReason::Stop;
        }
        Script::Say(said)
    };
    let server = Server::with(script, |served| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/templates");
        let text = std::fs::read_to_string(folder.join("glm47.jinja")).unwrap();
        let source = checkpoint::TokenizerSource::Json {
            tokenizer: Vec::new(),
            special: checkpoint::SpecialTokens::default(),
            chat_template: Some(text),
        };
        served.chat_template = ChatTemplate::from_source(&source, &served.config);
        served.model.max_model_len = 1 << 14;
    });
    (server.await, prompts)
}

/// The events of a stream: each has its name in its data, too.
fn events(response: &Response) -> Vec<Value> {
    assert_eq!(response.header("content-type"), Some("text/event-stream"), "{}", response.body);
    let blocks = response.body.trim_end().split("\n\n");
    let event = |block: &str| {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
        let data: Value = serde_json::from_str(field("data: ").unwrap()).unwrap();
        assert_eq!(field("event: "), data["type"].as_str(), "{block}");
        data
    };
    blocks.map(event).collect()
}

/// The names of events, those that repeat once.
fn names(events: &[Value]) -> Vec<&str> {
    let mut names: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    names.dedup();
    names
}

/// What deltas of one kind say together.
fn joined(events: &[Value], kind: &str, field: &str) -> String {
    let of_kind = events.iter().filter(|event| event["type"] == kind);
    of_kind.map(|event| event[field].as_str().unwrap()).collect()
}

/// As Codex writes to a provider that keeps nothing: its twelve fields, all of them.
fn codex(input: Value) -> Value {
    json!({
        "model": "m",
        "instructions": "You are a coding agent running in a terminal.",
        "input": input,
        "tools": [
            {"type": "function", "name": "shell", "description": "Runs a shell command.",
             "strict": false, "parameters": {"type": "object", "properties": {
                "command": {"type": "array", "items": {"type": "string"}},
                "timeout_ms": {"type": "number"},
             }, "required": ["command"], "additionalProperties": false}},
            {"type": "local_shell"},
            {"type": "custom", "name": "apply_patch", "description": "Edits files.",
             "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"}},
            {"type": "web_search", "external_web_access": false},
            {"type": "a type of next year", "name": "x"},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": false,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": false,
        "stream": true,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0190a5c2-0000-7000-8000-000000000000",
        "text": {"verbosity": "medium"},
    })
}

const CALLS: &str = "List first.</think>I look.<tool_call>shell<arg_key>command</arg_key>\
    <arg_value>[\"ls\"]</arg_value></tool_call>";

#[tokio::test]
async fn codex_is_answered_over_two_turns() {
    let (server, prompts) = glm(&[CALLS, "Done.</think>One file."]).await;
    let models = server.get("/v1/models?client_version=0.60.0").await.json();
    assert_eq!(models["models"][0]["id"], "m");

    let developer = json!({"type": "message", "role": "developer",
        "content": [{"type": "input_text", "text": "<permissions>read only</permissions>"}]});
    let user = json!({"type": "message", "role": "user",
        "content": [{"type": "input_text", "text": "What is here?"}]});
    let first = server.post("/v1/responses", &codex(json!([developer, user]))).await;
    let told = events(&first);
    assert_eq!(
        names(&told),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.reasoning_text.delta",
            "response.reasoning_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let numbers: Vec<_> = told.iter().map(|it| it["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..told.len() as u64).collect::<Vec<_>>());
    assert_eq!(joined(&told, "response.reasoning_text.delta", "delta"), "List first.");
    assert_eq!(joined(&told, "response.output_text.delta", "delta"), "I look.");
    let arguments = joined(&told, "response.function_call_arguments.delta", "delta");
    assert_eq!(serde_json::from_str::<Value>(&arguments).unwrap(), json!({"command": ["ls"]}));
    let response = &told[told.len() - 1]["response"];
    let done = told.iter().filter(|it| it["type"] == "response.output_item.done");
    let done: Vec<_> = done.map(|it| it["item"].clone()).collect();
    assert_eq!(response["output"].as_array().unwrap(), &done, "the whole is what was told");
    assert_eq!((&response["status"], &response["error"]), (&json!("completed"), &Value::Null));
    let usage = &response["usage"];
    let sum = usage["input_tokens"].as_u64().unwrap() + usage["output_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);
    assert!(usage["output_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 0);
    let call = &done[2];
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("shell")));
    assert_eq!((&call["arguments"], &call["status"]), (&json!(arguments), &json!("completed")));

    // All of it comes back, with what the command said.
    let mut input = vec![developer, user];
    input.extend(done.iter().cloned());
    input.push(json!({"type": "function_call_output", "call_id": call["call_id"],
        "output": "{\"output\":\"a.txt\\n\",\"metadata\":{\"exit_code\":0}}"}));
    let second = server.post("/v1/responses", &codex(input.into())).await;
    let told = events(&second);
    assert_eq!(joined(&told, "response.output_text.delta", "delta"), "One file.");
    let prompts = prompts.lock().unwrap();
    for shown in ["coding agent", "<permissions>", "What is here?", "Runs a shell command."] {
        assert!(prompts[0].contains(shown), "{shown}: {}", prompts[0]);
    }
    for hidden in ["apply_patch", "web_search", "next year", "local_shell"] {
        assert!(!prompts[0].contains(hidden), "{hidden}: {}", prompts[0]);
    }
    let turn = "<think>List first.</think>I look.<tool_call>shell<arg_key>command</arg_key>\
        <arg_value>[\"ls\"]</arg_value></tool_call>";
    assert!(prompts[1].contains(turn), "{}", prompts[1]);
    assert!(prompts[1].contains("<tool_response>{\"output\":\"a.txt"), "{}", prompts[1]);
}

#[tokio::test]
async fn codex_is_told_what_is_not_kept_and_probes_in_vain_of_nothing() {
    let (server, _) = glm(&["</think>Hi", "</think>Hi"]).await;
    let mut probe = codex(json!([]));
    probe["stream"] = false.into();
    let probed = server.post("/v1/responses", &probe).await;
    assert_eq!((probed.status, &probed.json()["status"]), (200, &json!("completed")));
    let mut kept = codex(json!([]));
    kept["previous_response_id"] = "resp_1".into();
    let refused = server.post("/v1/responses", &kept).await;
    let error = refused.json()["error"].clone();
    assert_eq!((refused.status, &error["code"]), (404, &json!("previous_response_not_found")));
    let mut unknown = codex(json!("Hi"));
    unknown["model"] = "gpt".into();
    let refused = server.post("/v1/responses", &unknown).await;
    assert_eq!(
        (refused.status, &refused.json()["error"]["code"]),
        (404, &json!("model_not_found"))
    );
}

/// As Claude Code writes: with its headers, its blocks and fields that only Anthropic has.
async fn claude(server: &Server, messages: Value) -> Response {
    let body = json!({
        "model": "m", "max_tokens": 8192, "stream": true, "temperature": 1, "messages": messages,
        "system": [
            {"type": "text", "text": "You are Claude Code.",
             "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "Use the tools."},
        ],
        "tools": [
            {"name": "Bash", "description": "Runs a command.", "input_schema": {
                "$schema": "http://json-schema.org/draft-07/schema#", "type": "object",
                "properties": {"command": {"type": "string"}, "timeout": {"type": "number"}},
                "required": ["command"], "additionalProperties": false,
            }},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
        ],
        "thinking": {"type": "enabled", "budget_tokens": 4096},
        "metadata": {"user_id": "user_0_account__session_0"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "medium"},
    });
    let headers = "HTTP/1.1\r\nanthropic-version: 2023-06-01\r\nx-app: cli\r\nx-api-key: none\r\n\
        anthropic-beta: claude-code-20250219,interleaved-thinking-2025-05-14\r\nx-rest: ";
    let path = format!("/v1/messages?beta=true {headers}");
    server.call("POST", &path, body.to_string().as_bytes()).await
}

#[tokio::test]
async fn claude_code_is_answered_over_two_turns() {
    let calls = "List first.</think>I look.<tool_call>Bash<arg_key>command</arg_key>\
        <arg_value>ls \"a b\"</arg_value></tool_call>";
    let (server, prompts) = glm(&[calls, "Done.</think>One file."]).await;
    let question = json!({"role": "user", "content": [
        {"type": "text", "text": "<system-reminder>Today.</system-reminder>"},
        {"type": "text", "text": "What is here?", "cache_control": {"type": "ephemeral"}},
    ]});
    let told = events(&claude(&server, json!([question])).await);
    assert_eq!(
        names(&told),
        [
            "message_start",
            "ping",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
    );
    let message = &told[0]["message"];
    assert_eq!(
        (&message["type"], &message["role"], &message["model"], &message["content"]),
        (&json!("message"), &json!("assistant"), &json!("m"), &json!([])),
    );
    assert!(message["id"].as_str().unwrap().starts_with("msg_"));
    assert!(message["usage"]["input_tokens"].as_u64().unwrap() > 50);
    let starts: Vec<_> = told.iter().filter(|it| it["type"] == "content_block_start").collect();
    let kinds: Vec<_> = starts.iter().map(|it| it["content_block"]["type"].clone()).collect();
    assert_eq!(kinds, ["thinking", "text", "tool_use"]);
    let places: Vec<_> = starts.iter().map(|it| it["index"].as_u64().unwrap()).collect();
    assert_eq!(places, [0, 1, 2]);
    let call = &starts[2]["content_block"];
    assert_eq!((&call["name"], &call["input"]), (&json!("Bash"), &json!({})));
    let deltas: Vec<_> = told.iter().filter_map(|it| it.get("delta")).cloned().collect();
    assert_eq!(joined(&deltas, "thinking_delta", "thinking"), "List first.");
    assert_eq!(joined(&deltas, "text_delta", "text"), "I look.");
    let input = joined(&deltas, "input_json_delta", "partial_json");
    let input: Value = serde_json::from_str(&input).unwrap();
    assert_eq!(input, json!({"command": "ls \"a b\""}));
    let end = &told[told.len() - 2];
    assert_eq!(end["delta"], json!({"stop_reason": "tool_use", "stop_sequence": null}));
    assert!(end["usage"]["output_tokens"].as_u64().unwrap() > 5);

    let answer = json!({"role": "assistant", "content": [
        {"type": "thinking", "thinking": "List first.", "signature": ""},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": call["id"], "name": "Bash", "input": input},
    ]});
    let result = json!({"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": call["id"], "is_error": false,
         "content": [{"type": "text", "text": "a.txt"}], "cache_control": {"type": "ephemeral"}},
    ]});
    let told = events(&claude(&server, json!([question, answer, result])).await);
    let deltas: Vec<_> = told.iter().filter_map(|it| it.get("delta")).cloned().collect();
    assert_eq!(joined(&deltas, "text_delta", "text"), "One file.");
    assert_eq!(told[told.len() - 2]["delta"]["stop_reason"], "end_turn");
    let prompts = prompts.lock().unwrap();
    for shown in ["You are Claude Code.", "<system-reminder>", "Runs a command.", "What is here?"] {
        assert!(prompts[0].contains(shown), "{shown}: {}", prompts[0]);
    }
    assert!(!prompts[0].contains("web_search"), "{}", prompts[0]);
    let turn = "<think>List first.</think>I look.<tool_call>Bash<arg_key>command</arg_key>\
        <arg_value>ls \"a b\"</arg_value></tool_call>";
    assert!(prompts[1].contains(turn), "{}", prompts[1]);
    assert!(prompts[1].contains("<tool_response>a.txt</tool_response>"), "{}", prompts[1]);
}

#[tokio::test]
async fn claude_code_is_refused_in_its_own_form() {
    let (server, _) = glm(&[]).await;
    let ask = |body: Value| {
        let server = &server;
        async move { server.post("/v1/messages?beta=true", &body).await }
    };
    let message = json!({"role": "user", "content": "Hi"});
    for (body, status, kind) in [
        (json!({"model": "m", "messages": [message]}), 400, "invalid_request_error"),
        (json!({"model": "m", "max_tokens": 1, "messages": []}), 400, "invalid_request_error"),
        (json!({"model": "x", "max_tokens": 1, "messages": [message]}), 404, "not_found_error"),
        (
            json!({"model": "m", "max_tokens": 1, "messages": [
                {"role": "user", "content": [{"type": "image", "source": {}}]},
            ]}),
            400,
            "invalid_request_error",
        ),
    ] {
        let refused = ask(body.clone()).await;
        assert_eq!(refused.status, status, "{body}: {}", refused.body);
        let error = refused.json();
        assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!(kind)));
        assert!(error["error"]["message"].as_str().is_some_and(|text| !text.is_empty()));
    }
    let refused = server.call("GET", "/v1/messages", b"").await;
    assert_eq!((refused.status, &refused.json()["type"]), (405, &json!("error")));
    let counted = ask(json!({"model": "m", "max_tokens": 1, "messages": [message]})).await;
    assert_eq!(counted.status, 200);
}

/// Goal: tokens are counted as a chat would have them, whatever it tells the template.
#[tokio::test]
async fn messages_become_the_tokens_of_a_chat_with_the_same_switches() {
    let (server, _) = glm(&[]).await;
    for (more, end) in [
        (json!({}), "<|assistant|><think>"),
        (json!({"chat_template_kwargs": {"enable_thinking": false}}), "<|assistant|></think>"),
        (json!({"enable_thinking": false}), "<|assistant|></think>"),
        (json!({"thinking": {"type": "disabled"}}), "<|assistant|></think>"),
        (json!({"add_generation_prompt": false}), "<|user|>Hi"),
    ] {
        let mut body = more.clone();
        body["messages"] = json!([{"role": "user", "content": "Hi"}]);
        let tokens = server.post("/tokenize", &body).await.json();
        let text = server.post("/detokenize", &json!({"tokens": tokens["tokens"]})).await.json();
        let text = text["prompt"].as_str().unwrap();
        assert!(text.ends_with(end), "{more}: {text}");
    }
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let wrong = json!({"messages": messages, "chat_template_kwargs": 1});
    let refused = server.post("/tokenize", &wrong).await;
    assert_eq!(refused.json()["error"]["param"], "chat_template_kwargs", "{}", refused.body);
}

/// Goal: a call that is made before thoughts end is one, and the answer's end says so.
#[tokio::test]
async fn a_call_in_thoughts_is_one_in_every_api() {
    let said = "Hm.<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>";
    let (server, _) = glm(&[said; 6]).await;
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let parameters = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    for stream in [false, true] {
        let function = json!({"name": "f", "parameters": parameters});
        let chat = json!({"model": "m", "messages": messages, "stream": stream,
            "tools": [{"type": "function", "function": function}]});
        let chat = server.post("/v1/chat/completions", &chat).await;
        let message = json!({"model": "m", "messages": messages, "stream": stream,
            "max_tokens": 50, "tools": [{"name": "f", "input_schema": parameters}]});
        let message = server.post("/v1/messages", &message).await;
        let response = json!({"model": "m", "input": "Hi", "stream": stream,
            "tools": [{"type": "function", "name": "f", "parameters": parameters}]});
        let response = server.post("/v1/responses", &response).await;
        if stream {
            assert!(chat.body.contains("\"finish_reason\":\"tool_calls\""), "{}", chat.body);
            assert!(chat.body.contains("\"name\":\"f\""), "{}", chat.body);
            let told = events(&message);
            assert_eq!(told[told.len() - 2]["delta"]["stop_reason"], "tool_use");
            let deltas: Vec<_> = told.iter().filter_map(|it| it.get("delta")).cloned().collect();
            assert_eq!(joined(&deltas, "input_json_delta", "partial_json"), "{\"a\":1}");
            let told = events(&response);
            let arguments = joined(&told, "response.function_call_arguments.delta", "delta");
            assert_eq!(arguments, "{\"a\":1}");
            continue;
        }
        let choice = &chat.json()["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
        assert_eq!(choice["message"]["reasoning_content"], "Hm.");
        assert_eq!(choice["message"]["tool_calls"][0]["function"]["arguments"], "{\"a\":1}");
        let message = message.json();
        let kinds: Vec<_> =
            message["content"].as_array().unwrap().iter().map(|it| &it["type"]).collect();
        assert_eq!(kinds, ["thinking", "tool_use"], "{message}");
        assert_eq!(message["stop_reason"], "tool_use");
        let response = response.json();
        let kinds: Vec<_> =
            response["output"].as_array().unwrap().iter().map(|it| &it["type"]).collect();
        assert_eq!(kinds, ["reasoning", "function_call"], "{response}");
    }
}
