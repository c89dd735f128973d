//! A body of `/v1/responses` as one of `/v1/chat/completions`.

use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use crate::openai::{ApiError, Places, wrong};

/// Fields that both have, under these names.
const SAME: [(&str, &str); 13] = [
    ("model", "model"),
    ("max_output_tokens", "max_tokens"),
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("top_k", "top_k"),
    ("seed", "seed"),
    ("stream", "stream"),
    ("parallel_tool_calls", "parallel_tool_calls"),
    ("service_tier", "service_tier"),
    ("user", "user"),
    ("metadata", "metadata"),
    ("chat_template_kwargs", "chat_template_kwargs"),
    ("max_time_ms", "max_time_ms"),
];

/// Fields that change no answer here: what is kept, shown or cached elsewhere.
const HINTS: [&str; 9] = [
    "client_metadata",
    "include",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "store",
    "stream_options",
    "truncation",
    "top_logprobs",
];

/// What a response repeats of its request, with what stands where it says nothing.
fn repeated() -> [(&'static str, Value); 9] {
    [
        ("instructions", Value::Null),
        ("max_output_tokens", Value::Null),
        ("metadata", json!({})),
        ("parallel_tool_calls", true.into()),
        ("temperature", Value::Null),
        ("tool_choice", "auto".into()),
        ("tools", json!([])),
        ("top_p", Value::Null),
        ("reasoning", json!({"effort": null, "summary": null})),
    ]
}

/// A body as a chat's.
pub(crate) struct Chat {
    /// The chat's fields.
    pub(crate) body: Value,
    pub(crate) repeated: Map<String, Value>,
    /// Where each message comes from, or begins, and each tool.
    pub(crate) places: Places,
}

/// The chat of a body.
///
/// # Errors
/// When something isn't what it should be, or needs an answer that this server hasn't kept.
pub(crate) fn chat(mut body: Map<String, Value>) -> Result<Chat, ApiError> {
    let given = |(name, default): (&'static str, Value)| {
        (name.to_owned(), body.get(name).cloned().unwrap_or(default))
    };
    let repeated = repeated().map(given).into_iter().collect();
    let mut chat = Map::new();
    for (theirs, ours) in SAME {
        if let Some(value) = body.remove(theirs) {
            chat.insert(ours.into(), value);
        }
    }
    for name in HINTS {
        body.remove(name);
    }
    for name in ["previous_response_id", "conversation"] {
        if let Some(id) = body.remove(name).filter(|id| !id.is_null()) {
            let message = format!(
                "{name} is {id}, and this server keeps no responses; send the whole input instead"
            );
            let error = ApiError::invalid(name, message).code("previous_response_not_found");
            return Err(error.status(404));
        }
    }
    if body.remove("background") == Some(true.into()) {
        let message = "background is not supported by this server; use /v1/batches or remove it";
        return Err(ApiError::invalid("background", message).code("unsupported_parameter"));
    }
    if let Some(reasoning) = object(&mut body, "reasoning")?
        && let Some(effort) = reasoning.get("effort").filter(|effort| !effort.is_null())
    {
        chat.insert("reasoning_effort".into(), effort.clone());
    }
    if let Some(text) = object(&mut body, "text")? {
        let format = &text["format"];
        if !format.is_null() && format["type"] != "text" {
            let schema = json!({"type": format["type"], "json_schema": format});
            chat.insert("response_format".into(), schema);
        }
    }
    let mut places = Places::default();
    if let Some(tools) = body.remove("tools") {
        chat.insert("tools".into(), self::tools(tools, &mut places.tools)?);
    }
    match body.remove("tool_choice") {
        None | Some(Value::Null) => {}
        Some(choice) if choice["type"] == "function" => {
            let choice = json!({"type": "function", "function": {"name": choice["name"]}});
            chat.insert("tool_choice".into(), choice);
        }
        Some(choice) => {
            chat.insert("tool_choice".into(), choice);
        }
    }
    let mut messages = Vec::new();
    match body.remove("instructions") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => {
            messages.push(json!({"role": "system", "content": text}));
            places.messages.push("instructions".to_owned());
        }
        Some(other) => return Err(wrong("instructions", "a string", &other)),
    }
    match body.remove("input") {
        Some(Value::String(text)) => {
            messages.push(json!({"role": "user", "content": text}));
            places.messages.push("input".to_owned());
        }
        Some(Value::Array(items)) => {
            for (number, item) in items.iter().enumerate() {
                let place = format!("input[{number}]");
                self::item(item, &place, &mut messages)?;
                places.messages.resize(messages.len(), place);
            }
        }
        None | Some(Value::Null) => {}
        Some(other) => return Err(wrong("input", "a string or a list of items", &other)),
    }
    // Some ask with no input whether there is a server.
    if messages.is_empty() {
        messages.push(json!({"role": "user", "content": ""}));
    }
    chat.insert("messages".into(), messages.into());
    if let Some(name) = body.keys().next() {
        let message = format!("unknown field {name}; remove it");
        return Err(ApiError::invalid(name.clone(), message).code("unknown_parameter"));
    }
    Ok(Chat { body: Value::Object(chat), repeated, places })
}

/// What a chat calls the fields that have other names here.
pub(crate) const NAMES: [(&str, &str); 6] = [
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("messages", "input"),
    ("max_tokens", "max_output_tokens"),
    ("reasoning_effort", "reasoning.effort"),
    (".function.", "."),
];

/// A field that is an object, if it is there.
fn object(body: &mut Map<String, Value>, name: &str) -> Result<Option<Value>, ApiError> {
    match body.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(object @ Value::Object(_)) => Ok(Some(object)),
        Some(other) => Err(wrong(name, "an object", &other)),
    }
}

fn tools(tools: Value, places: &mut Vec<String>) -> Result<Value, ApiError> {
    let Value::Array(tools) = tools else { return Err(wrong("tools", "a list of tools", &tools)) };
    // Tools of other types run at OpenAI's: models that know nothing of them do without.
    let functions = tools.iter().enumerate().filter(|(_, tool)| tool["type"] == "function");
    let functions = functions.map(|(number, tool)| {
        places.push(format!("tools[{number}]"));
        let mut function = json!({
            "name": tool["name"],
            "description": tool["description"].as_str().unwrap_or_default(),
            "parameters": tool["parameters"],
        });
        if tool["strict"] == true {
            function["strict"] = true.into();
        }
        json!({"type": "function", "function": function})
    });
    Ok(functions.collect())
}

/// An item of the input. Calls and reasoning belong to the answer before them.
fn item(item: &Value, place: &str, messages: &mut Vec<Value>) -> Result<(), ApiError> {
    match item["type"].as_str() {
        Some("function_call") => {
            if !item["name"].is_string() {
                return Err(wrong(&format!("{place}.name"), "a string", &item["name"]));
            }
            let arguments = item["arguments"].as_str();
            let parsed = arguments.and_then(|text| serde_json::from_str::<IgnoredAny>(text).ok());
            if parsed.is_none() {
                let field = format!("{place}.arguments");
                return Err(wrong(&field, "JSON in a string", &item["arguments"]));
            }
            let call = json!({
                "id": item["call_id"], "type": "function",
                "function": {"name": item["name"], "arguments": item["arguments"]},
            });
            let answer = answer(messages);
            match &mut answer["tool_calls"] {
                Value::Array(calls) => calls.push(call),
                none => *none = json!([call]),
            }
        }
        Some("function_call_output") => {
            let content = match &item["output"] {
                Value::String(text) => text.clone(),
                output => text(output, &format!("{place}.output"))?,
            };
            messages.push(json!({
                "role": "tool", "tool_call_id": item["call_id"], "content": content,
            }));
        }
        Some("reasoning") => {
            let parts = ["content", "summary"]
                .into_iter()
                .find_map(|of| item[of].as_array().filter(|parts| !parts.is_empty()));
            let texts = parts.into_iter().flatten().filter_map(|part| part["text"].as_str());
            let thought: Vec<_> = texts.collect();
            messages.push(json!({
                "role": "assistant", "content": "", "reasoning_content": thought.join("\n"),
            }));
        }
        None | Some("message") => {
            let Some(role) = item["role"].as_str() else {
                return Err(wrong(&format!("{place}.role"), "a string", &item["role"]));
            };
            let content = match &item["content"] {
                Value::String(text) => text.clone(),
                content => text(content, &format!("{place}.content"))?,
            };
            if role == "assistant" {
                match &mut answer(messages)["content"] {
                    Value::String(before) => before.push_str(&content),
                    nothing => *nothing = content.into(),
                }
            } else {
                messages.push(json!({"role": role, "content": content}));
            }
        }
        Some(kind) => {
            let message = format!("{place}: items of type {kind} are not supported; remove it");
            return Err(ApiError::invalid(place, message).code("unsupported_parameter"));
        }
    }
    Ok(())
}

/// The answer that is being told.
fn answer(messages: &mut Vec<Value>) -> &mut Value {
    if messages.last().is_none_or(|last| last["role"] != "assistant") {
        messages.push(json!({"role": "assistant", "content": ""}));
    }
    messages.last_mut().expect("there is one")
}

fn text(content: &Value, place: &str) -> Result<String, ApiError> {
    let Value::Array(parts) = content else {
        return Err(wrong(place, "a string or a list of parts", content));
    };
    let texts = parts.iter().map(|part| match (part["type"].as_str(), part["text"].as_str()) {
        (Some("input_text" | "output_text" | "text"), Some(text)) => Ok(text),
        _ => Err(wrong(place, "text: other parts are not supported", part)),
    });
    Ok(texts.collect::<Result<Vec<_>, _>>()?.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Value, ApiError> {
        chat(body.as_object().unwrap().clone()).map(|chat| chat.body)
    }

    #[test]
    fn what_codex_sends_is_a_chat() {
        let body = json!({
            "model": "m", "instructions": "You are.", "store": false, "stream": true,
            "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k",
            "client_metadata": {}, "parallel_tool_calls": false, "tool_choice": "auto",
            "reasoning": {"effort": "medium", "summary": "auto"},
            "tools": [
                {"type": "function", "name": "shell", "description": "Runs.", "strict": false,
                 "parameters": {"type": "object"}},
                {"type": "web_search"}, {"type": "namespace"}, {"type": "image_generation"},
            ],
            "input": [
                {"type": "message", "role": "developer",
                 "content": [{"type": "input_text", "text": "Be brief."}]},
                {"type": "message", "role": "user",
                 "content": [{"type": "input_text", "text": "ls"}]},
                {"type": "reasoning", "summary": [], "encrypted_content": null,
                 "content": [{"type": "reasoning_text", "text": "Hm."}]},
                {"type": "function_call", "call_id": "c1", "name": "shell", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "a.txt"},
                {"role": "assistant", "content": [{"type": "output_text", "text": "One file."}]},
            ],
        });
        let call = json!({"id": "c1", "type": "function",
            "function": {"name": "shell", "arguments": "{}"}});
        let expected = json!({
            "model": "m", "stream": true, "parallel_tool_calls": false, "tool_choice": "auto",
            "reasoning_effort": "medium",
            "tools": [{"type": "function", "function": {
                "name": "shell", "description": "Runs.", "parameters": {"type": "object"},
            }}],
            "messages": [
                {"role": "system", "content": "You are."},
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": "ls"},
                {"role": "assistant", "content": "", "reasoning_content": "Hm.",
                 "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": "a.txt"},
                {"role": "assistant", "content": "One file."},
            ],
        });
        assert_eq!(read(body).unwrap(), expected);
        let probe = read(json!({"model": "m", "input": [], "max_output_tokens": 1})).unwrap();
        assert_eq!(probe["messages"], json!([{"role": "user", "content": ""}]));
    }

    #[test]
    fn what_is_wrong_with_a_chats_field_is_said_of_ours() {
        for (chats, ours) in [
            ("response_format.json_schema.schema", "text.format.schema"),
            ("temperature", "temperature"),
            ("max_tokens", "max_output_tokens"),
            ("max_tokens_of_others", "max_tokens_of_others"),
            ("tools[0].function.name", "tools[0].name"),
        ] {
            let error = ApiError::invalid(chats, format!("{chats} is wrong"));
            let error = error.renamed(&NAMES, &Places::default());
            assert_eq!(error.message, format!("{ours} is wrong"));
            assert_eq!(error.param.as_deref(), Some(ours));
        }
        // Instructions are a message before all items, and items of one answer are one message.
        let item = |role: &str| json!({"role": role, "content": "Hi"});
        let thought = json!({"type": "reasoning", "summary": []});
        let input = json!([item("user"), thought, item("assistant"), item("user")]);
        let tools = json!([{"type": "web_search"}, {"type": "function", "name": "shell"}]);
        let body =
            json!({"model": "m", "instructions": "Be brief.", "input": input, "tools": tools});
        let places = chat(body.as_object().unwrap().clone()).unwrap().places;
        let of = |place: &str| {
            let error = ApiError::invalid(place, format!("{place} is wrong"));
            let error = error.renamed(&NAMES, &places);
            assert_eq!(error.message, format!("{} is wrong", error.param.as_ref().unwrap()));
            error.param.unwrap()
        };
        assert_eq!(of("messages[1].role"), "input[0].role");
        assert_eq!(of("messages[3]"), "input[3]");
        assert_eq!(of("messages[0].content"), "instructions");
        assert_eq!(of("messages"), "input");
        assert_eq!(of("tools[0].function.name"), "tools[1].name");
    }

    #[test]
    fn what_is_wrong_or_not_kept_is_named() {
        let with = |more: Value| {
            let mut body = json!({"model": "m", "input": "Hi"});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            read(body)
        };
        for (more, param, status) in [
            (json!({"previous_response_id": "resp_1"}), "previous_response_id", 404),
            (json!({"background": true}), "background", 400),
            (json!({"input": 1}), "input", 400),
            (json!({"input": [{"type": "computer_call"}]}), "input[0]", 400),
            (json!({"input": [{"content": "Hi"}]}), "input[0].role", 400),
            (
                json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
                "input[0].content",
                400,
            ),
            (json!({"tools": 1}), "tools", 400),
            (json!({"wibble": 1}), "wibble", 400),
        ] {
            let error = with(more.clone()).unwrap_err();
            assert_eq!((error.param.as_deref(), error.status), (Some(param), status), "{more}");
        }
        with(json!({"previous_response_id": null, "background": false})).unwrap();
    }
}
