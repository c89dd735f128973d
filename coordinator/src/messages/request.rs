//! A body of `/v1/messages` as one of `/v1/chat/completions`.

use serde_json::{Map, Value, json};

use crate::openai::{ApiError, Places, wrong};

/// Fields that both have, under these names.
const SAME: [(&str, &str); 7] = [
    ("max_tokens", "max_tokens"),
    ("stop_sequences", "stop"),
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("top_k", "top_k"),
    ("stream", "stream"),
    ("thinking", "thinking"),
];

/// The chat's fields, and where its messages and tools come from. What this server doesn't know is
/// left out: clients send what their newest version has, and ask a server for it by header.
///
/// # Errors
/// When a message isn't what it should be.
pub(crate) fn chat(
    mut body: Map<String, Value>,
    counts_only: bool,
) -> Result<(Value, Places), ApiError> {
    let (mut chat, mut places) = (Map::new(), Places::default());
    // The suffix is how a client says that the context is long.
    let model = match body.remove("model") {
        Some(Value::String(name)) => name.trim_end_matches("[1m]").into(),
        other => other.unwrap_or_default(),
    };
    chat.insert("model".into(), model);
    if !counts_only && body.get("max_tokens").is_none_or(Value::is_null) {
        let message = "max_tokens is missing; say how long the answer may be";
        return Err(ApiError::invalid("max_tokens", message));
    }
    for (theirs, ours) in SAME {
        if counts_only && theirs != "thinking" {
            continue;
        }
        if let Some(value) = body.remove(theirs) {
            chat.insert(ours.into(), value);
        }
    }
    if let Some(tools) = body.remove("tools") {
        chat.insert("tools".into(), self::tools(tools, &mut places.tools)?);
    }
    if let Some(choice) = body.remove("tool_choice") {
        let single = choice["disable_parallel_tool_use"] == true;
        chat.insert("parallel_tool_calls".into(), (!single).into());
        let choice = match choice["type"].as_str() {
            Some("auto") => "auto".into(),
            Some("none") => "none".into(),
            Some("any") => "required".into(),
            Some("tool") => json!({"type": "function", "function": {"name": choice["name"]}}),
            _ => return Err(wrong("tool_choice.type", "auto, any, tool or none", &choice["type"])),
        };
        chat.insert("tool_choice".into(), choice);
    }
    if let Some(tier) = body.remove("service_tier") {
        let known = tier == "auto" || tier == "standard_only";
        chat.insert("service_tier".into(), if known { "auto".into() } else { tier });
    }
    let mut messages = Vec::new();
    match body.remove("system") {
        None | Some(Value::Null) => {}
        Some(system) => {
            messages.push(json!({"role": "system", "content": text(&system, "system")?}));
            places.messages.push("system".into());
        }
    }
    match body.remove("messages") {
        Some(Value::Array(given)) => {
            for (number, one) in given.iter().enumerate() {
                let place = format!("messages[{number}]");
                message(one, &place, &mut messages)?;
                places.messages.resize(messages.len(), place);
            }
        }
        other => {
            return Err(wrong("messages", "a list of messages", &other.unwrap_or_default()));
        }
    }
    chat.insert("messages".into(), messages.into());
    Ok((Value::Object(chat), places))
}

/// What a chat calls the fields that have other names here.
pub(crate) const NAMES: [(&str, &str); 3] =
    [("stop", "stop_sequences"), (".function.parameters", ".input_schema"), (".function.", ".")];

fn tools(tools: Value, places: &mut Vec<String>) -> Result<Value, ApiError> {
    let Value::Array(tools) = tools else { return Err(wrong("tools", "a list of tools", &tools)) };
    let tools = tools.iter().enumerate().filter_map(|(number, tool)| {
        // Tools of other types are computed by Anthropic, not by the client.
        let is_client = tool["type"].is_null() || tool["type"] == "custom";
        if is_client {
            places.push(format!("tools[{number}]"));
        }
        is_client.then(|| match &tool["name"] {
            Value::String(name) => {
                let mut function = json!({
                    "name": name,
                    "description": tool["description"].as_str().unwrap_or_default(),
                    "parameters": tool["input_schema"],
                });
                if tool["strict"] == true {
                    function["strict"] = true.into();
                }
                Ok(json!({"type": "function", "function": function}))
            }
            other => Err(wrong(&format!("tools[{number}].name"), "a string", other)),
        })
    });
    tools.collect()
}

/// One message becomes several where it has results of tools: each is a message in a chat.
fn message(given: &Value, place: &str, messages: &mut Vec<Value>) -> Result<(), ApiError> {
    let Some(role @ ("user" | "assistant" | "system")) = given["role"].as_str() else {
        return Err(wrong(&format!("{place}.role"), "user or assistant", &given["role"]));
    };
    let blocks = match &given["content"] {
        Value::String(text) => {
            messages.push(json!({"role": role, "content": text}));
            return Ok(());
        }
        Value::Array(blocks) => blocks,
        other => {
            return Err(wrong(&format!("{place}.content"), "a string or a list of blocks", other));
        }
    };
    let (mut said, mut thought, mut calls) = (Vec::new(), String::new(), Vec::new());
    for (number, block) in blocks.iter().enumerate() {
        let place = format!("{place}.content[{number}]");
        match block["type"].as_str() {
            Some("text") => said.push(text(&json!([block]), &place)?),
            Some("thinking") => thought += block["thinking"].as_str().unwrap_or_default(),
            // What only its maker can read.
            Some("redacted_thinking") => {}
            Some("tool_use") => {
                if !block["name"].is_string() {
                    return Err(wrong(&format!("{place}.name"), "a string", &block["name"]));
                }
                if !block["input"].is_object() {
                    return Err(wrong(&format!("{place}.input"), "an object", &block["input"]));
                }
                calls.push(json!({
                    "id": block["id"], "type": "function",
                    "function": {"name": block["name"], "arguments": block["input"]},
                }));
            }
            Some("tool_result") => {
                let content = match &block["content"] {
                    Value::Null => String::new(),
                    content => text(content, &place)?,
                };
                messages.push(json!({
                    "role": "tool", "tool_call_id": block["tool_use_id"], "content": content,
                }));
            }
            Some(kind) => {
                let message = format!("{place}: blocks of type {kind} are not supported; use text");
                return Err(ApiError::invalid(place, message).code("unsupported_parameter"));
            }
            None => return Err(wrong(&place, "a block with a type", block)),
        }
    }
    let is_answer = role == "assistant";
    if said.is_empty() && calls.is_empty() && !is_answer {
        return Ok(());
    }
    let mut message = json!({"role": role, "content": said.join("\n\n")});
    if is_answer && !thought.is_empty() {
        message["reasoning_content"] = thought.into();
    }
    if is_answer && !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    messages.push(message);
    Ok(())
}

/// A string, or blocks of text.
fn text(content: &Value, place: &str) -> Result<String, ApiError> {
    let blocks = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(blocks) => blocks,
        other => return Err(wrong(place, "a string or a list of text blocks", other)),
    };
    let texts = blocks.iter().map(|block| {
        block["text"]
            .as_str()
            .ok_or_else(|| wrong(place, "text: other blocks are not supported", block))
    });
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Value, ApiError> {
        chat(body.as_object().unwrap().clone(), false).map(|(chat, _)| chat)
    }

    #[test]
    fn what_claude_code_sends_is_a_chat() {
        let body = json!({
            "model": "m[1m]", "max_tokens": 32000, "stream": true, "metadata": {"user_id": "u"},
            "betas": ["x"], "context_management": {"edits": []}, "temperature": 1,
            "system": [
                {"type": "text", "text": "You are.", "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "Be brief."},
            ],
            "thinking": {"type": "adaptive"},
            "tools": [
                {"name": "Read", "description": "Reads.", "input_schema": {"type": "object"}},
                {"type": "web_search_20250305", "name": "web_search"},
            ],
            "tool_choice": {"type": "auto", "disable_parallel_tool_use": true},
            "stop_sequences": ["END"],
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                    {"type": "text", "text": "Wait."},
                    {"type": "tool_use", "id": "t1", "name": "Read", "input": {"a": 1}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1",
                     "content": [{"type": "text", "text": "42"}]},
                    {"type": "text", "text": "Go on."},
                ]},
            ],
        });
        let expected = json!({
            "model": "m", "max_tokens": 32000, "stream": true, "temperature": 1,
            "thinking": {"type": "adaptive"}, "stop": ["END"],
            "tools": [{"type": "function", "function": {
                "name": "Read", "description": "Reads.", "parameters": {"type": "object"},
            }}],
            "tool_choice": "auto", "parallel_tool_calls": false,
            "messages": [
                {"role": "system", "content": "You are.\n\nBe brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Wait.", "reasoning_content": "Hm.",
                 "tool_calls": [{"id": "t1", "type": "function",
                    "function": {"name": "Read", "arguments": {"a": 1}}}]},
                {"role": "tool", "tool_call_id": "t1", "content": "42"},
                {"role": "user", "content": "Go on."},
            ],
        });
        assert_eq!(read(body).unwrap(), expected);
    }

    /// The system's prompt is a message before all others, each result of a tool is one of its own,
    /// and a chat has only the client's tools.
    #[test]
    fn what_is_wrong_with_a_chats_message_or_tool_is_said_of_ours() {
        let result = |id: &str| json!({"type": "tool_result", "tool_use_id": id, "content": "1"});
        let text = json!({"type": "text", "text": "Go on."});
        let body = json!({
            "model": "m", "max_tokens": 1, "system": "Be brief.",
            "tools": [{"type": "web_search_20250305", "name": "web_search"}, {"name": "Read"}],
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "user", "content": [result("a"), result("b"), text]},
                {"role": "assistant", "content": "Yes."},
            ],
        });
        let (_, places) = chat(body.as_object().unwrap().clone(), false).unwrap();
        let of = |place: &str| {
            let error = ApiError::invalid(place, format!("{place} is wrong"));
            let error = error.renamed(&NAMES, &places);
            assert_eq!(error.message, format!("{} is wrong", error.param.as_ref().unwrap()));
            error.param.unwrap()
        };
        assert_eq!(of("messages[0].content"), "system");
        assert_eq!(of("messages[1].role"), "messages[0].role");
        for number in 2..5 {
            assert_eq!(of(&format!("messages[{number}].content")), "messages[1].content");
        }
        assert_eq!(of("messages[5]"), "messages[2]");
        assert_eq!(of("messages[6]"), "messages[6]");
        assert_eq!(of("tools[0].function.name"), "tools[1].name");
        assert_eq!(of("messages"), "messages");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |more: Value| {
            let mut body = json!({"model": "m", "max_tokens": 1, "messages": []});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body
        };
        let user = |block: Value| with(json!({"messages": [{"role": "user", "content": [block]}]}));
        for (body, param) in [
            (json!({"model": "m", "messages": []}), "max_tokens"),
            (with(json!({"messages": "Hi"})), "messages"),
            (with(json!({"messages": [{"role": "tool", "content": ""}]})), "messages[0].role"),
            (with(json!({"messages": [{"role": "user"}]})), "messages[0].content"),
            (user(json!({"type": "image"})), "messages[0].content[0]"),
            (user(json!("Hi")), "messages[0].content[0]"),
            (with(json!({"system": 1})), "system"),
            (with(json!({"tools": [{}]})), "tools[0].name"),
            (with(json!({"tool_choice": "auto"})), "tool_choice.type"),
        ] {
            let error = read(body.clone()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{body}");
        }
    }
}
