//! `/v1/chat/completions`: messages in, through the model's own template, a message out.

use std::collections::HashSet;
use std::sync::Arc;

use protocol::TokenId;
use serde_json::{Map, Value};

use super::fields::wrong;
use super::sampling::{Common, check_length, check_logprobs};
use super::structured::{self, Structured};
use super::tools::{Asked, Reading};
use super::{ApiError, Context, Fields, Parsed, Style, known};
use crate::chat_template::ChatTemplate;
use crate::grammar::Begins;
use crate::parser::{END_OF_THINK, THINK};

/// The request of a body.
///
/// # Errors
/// When the body asks for what this server or this model can't do.
pub(crate) fn parse(body: &[u8], context: Context<'_>) -> Result<Parsed, ApiError> {
    parse_fields(Fields::parse(body)?, context)
}

/// The request of a body of `/v1/messages`.
///
/// # Errors
/// When the body asks for what this server or this model can't do.
pub(crate) fn parse_messages(body: &[u8], context: Context<'_>) -> Result<Parsed, ApiError> {
    let (body, places) = crate::messages::chat(object(body)?, false)?;
    let parsed = parse_fields(Fields::of(body), context);
    Ok(read(parsed.map_err(|error| error.renamed(&crate::messages::NAMES, &places))?))
}

/// The request of a body of `/v1/responses`.
///
/// # Errors
/// When the body asks for what this server or this model can't do.
pub(crate) fn parse_responses(body: &[u8], context: Context<'_>) -> Result<Parsed, ApiError> {
    let chat = crate::responses::chat(object(body)?)?;
    let parsed = parse_fields(Fields::of(chat.body), context);
    let renamed = |it: ApiError| it.renamed(&crate::responses::NAMES, &chat.places);
    let mut parsed = read(parsed.map_err(renamed)?);
    parsed.options.repeated = Arc::new(chat.repeated);
    Ok(parsed)
}

/// Tokens of the prompt of a body of `/v1/messages/count_tokens`.
///
/// # Errors
/// When there is none.
pub(crate) fn count_messages(body: &[u8], context: Context<'_>) -> Result<usize, ApiError> {
    let (body, places) = crate::messages::chat(object(body)?, true)?;
    let mut fields = Fields::of(body);
    super::check_model(&mut fields, context)?;
    let prompt = Asked::take(&mut fields)
        .and_then(|asked| prompt_of_messages(&mut fields, &asked, context))
        .map_err(|error| error.renamed(&crate::messages::NAMES, &places))?;
    Ok(prompt.tokens.len())
}

fn object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let cause = |cause| ApiError::malformed(format!("the body must be a JSON object: {cause}"));
    serde_json::from_slice(body).map_err(cause)
}

/// Where answers have parts by their kind, plain text is one of them.
fn read(mut parsed: Parsed) -> Parsed {
    parsed.options.reading.get_or_insert_with(Reading::plain);
    parsed
}

fn parse_fields(mut fields: Fields, context: Context<'_>) -> Result<Parsed, ApiError> {
    let mut common = Common::take(&mut fields, context)?;
    known::settle(&mut fields, Style::Chat)?;
    let wants_logprobs = fields.bool("logprobs")?;
    let top_logprobs = fields.u32("top_logprobs")?;
    if top_logprobs.is_some_and(|top| top > 0) && !wants_logprobs {
        let message = "top_logprobs is only for logprobs: true";
        return Err(ApiError::invalid("top_logprobs", message));
    }
    if wants_logprobs {
        let wanted = check_logprobs("top_logprobs", top_logprobs.unwrap_or(0), context)?;
        common.options.logprobs = true;
        common.sampling.num_logprobs = Some(wanted);
    }
    let asked = Asked::take(&mut fields)?;
    let said = Structured::take(&mut fields)?;
    let prompt = prompt_of_messages(&mut fields, &asked, context)?;
    common.options.reading = prompt.reading;
    fields.finish()?;
    common.prompt_field = "messages";
    let configured = Some(context.config.default_max_tokens).filter(|&tokens| tokens > 0);
    let default = configured.or(context.model.sampling.max_new_tokens);
    let mut request = common.request(prompt.tokens, default, context)?;
    if let Some(structured) = structured::of_chat(asked.calls(context), said)? {
        // Calls may begin in thoughts, too.
        let begins = if structured.is_free() { Begins::First } else { prompt.begins };
        request.constraint = Some(structured.compile(begins, context)?);
    }
    Ok(Parsed { requests: vec![request], echoes: Vec::new(), options: common.options })
}

/// A body's `messages`, rendered by the model's template.
#[derive(Debug)]
pub(crate) struct ChatPrompt {
    pub tokens: Vec<TokenId>,
    /// How the answer is read; `None`: as plain text.
    pub reading: Option<Reading>,
    /// From where the answer keeps to a grammar, if it is to.
    pub begins: Begins,
}

/// Renders a body's `messages`.
///
/// # Errors
/// When the model has no template, or it refuses the messages.
pub(crate) fn prompt_of_messages(
    fields: &mut Fields,
    asked: &Asked,
    context: Context<'_>,
) -> Result<ChatPrompt, ApiError> {
    let given = fields.required("messages")?;
    // They are as they came where a template has no use for them otherwise.
    let as_text = has_text_arguments(&given).then(|| given.clone());
    let mut parsed = messages(given, Arguments::Parsed)?;
    let add_generation_prompt = match fields.take("add_generation_prompt") {
        None => true,
        Some(Value::Bool(add)) => add,
        Some(other) => return Err(wrong("add_generation_prompt", "true or false", &other)),
    };
    let extra = match fields.take("chat_template_kwargs") {
        None => Map::new(),
        Some(Value::Object(extra)) => extra,
        Some(other) => return Err(wrong("chat_template_kwargs", "an object", &other)),
    };
    let Some(template) = context.chat_template else {
        let message = "this model has no chat template; use /v1/completions";
        return Err(ApiError::invalid("messages", message).code("no_chat_template"));
    };
    // As they were asked for: what is prepared may have a further one before them.
    let unusual = has_unusual_roles(&parsed, template).then(|| parsed.clone());
    let render = |messages: &mut Value| {
        if !template.knows_developers() {
            call_developers_system(messages);
        }
        if !template.knows_none() {
            say_nothing(messages);
        }
        let variables = asked.prepare(template, messages, &extra)?;
        template
            .render(messages, add_generation_prompt, &variables)
            .map_err(|cause| ApiError::invalid("messages", cause.to_string()))
    };
    let text = match (render(&mut parsed), as_text) {
        (Err(cause), Some(as_text)) => {
            render(&mut messages(as_text, Arguments::AsText)?).map_err(|_| cause)?
        }
        (rendered, _) => rendered?,
    };
    if let Some(messages) = unusual {
        check_roles(&messages, template, &text)?;
    }
    check_length(&text, "messages", context)?;
    // The template has written the special tokens itself.
    let tokens = context
        .tokenizer
        .encode(&text, false)
        .map_err(|cause| ApiError::invalid("messages", cause.to_string()))?;
    let reading = asked.reading(template, &text);
    Ok(ChatPrompt { tokens, reading, begins: begins(template, &text, context) })
}

/// From where the answer to a prompt that ends with `prompt_end` keeps to a grammar: what it thinks
/// is free.
fn begins(template: &ChatTemplate, prompt_end: &str, context: Context<'_>) -> Begins {
    let prompt_end = prompt_end.trim_end();
    if !template.format().reasons || prompt_end.ends_with(END_OF_THINK) {
        return Begins::First;
    }
    if prompt_end.ends_with(THINK) {
        return Begins::After(END_OF_THINK.into());
    }
    match context.tokenizer.encode(THINK, false).as_deref() {
        Ok([opening]) => Begins::FirstOrAfter(*opening, END_OF_THINK.into()),
        _ => Begins::First,
    }
}

/// What the arguments of calls, which travel as JSON in a string, are to a template.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Arguments {
    /// What the JSON says: most walk through it.
    Parsed,
    /// The string: some join it with others.
    AsText,
}

fn has_text_arguments(messages: &Value) -> bool {
    let messages = messages.as_array().into_iter().flatten();
    let mut calls = messages.flat_map(|message| message["tool_calls"].as_array()).flatten();
    calls.any(|call| call["function"]["arguments"].is_string())
}

/// Whether the template may know nothing of a message's role.
fn is_unusual(message: &Value, template: &ChatTemplate) -> bool {
    let role = message["role"].as_str().unwrap_or_default();
    let is_usual = ["system", "developer", "user", "assistant", "tool"].contains(&role);
    !is_usual && !template.names_role(role)
}

fn has_unusual_roles(messages: &Value, template: &ChatTemplate) -> bool {
    messages.as_array().into_iter().flatten().any(|message| is_unusual(message, template))
}

/// A message of which the template knows nothing is left out of what it writes.
fn check_roles(messages: &Value, template: &ChatTemplate, text: &str) -> Result<(), ApiError> {
    // Messages stand there in their order: none is looked for in the place of one before it.
    let mut rest = text;
    for (number, message) in messages.as_array().into_iter().flatten().enumerate() {
        let content = message["content"].as_str().unwrap_or_default().trim();
        match rest.split_once(content) {
            Some((_, after)) => rest = after,
            None if is_unusual(message, template) => {
                let field = format!("messages[{number}].role");
                let expected = "system, developer, user, assistant or tool";
                return Err(wrong(&field, expected, &message["role"]));
            }
            // Written otherwise than it was given.
            None => {}
        }
    }
    Ok(())
}

/// The newer name of a role, for a template that has only the older.
fn call_developers_system(messages: &mut Value) {
    for message in messages.as_array_mut().into_iter().flatten() {
        if message["role"] == "developer" {
            message["role"] = "system".into();
        }
    }
}

/// No content is empty content, for a template that doesn't ask.
fn say_nothing(messages: &mut Value) {
    let messages = messages.as_array_mut().into_iter().flatten();
    let contents = messages.filter_map(|message| message.get_mut("content"));
    contents.filter(|content| content.is_null()).for_each(|content| *content = "".into());
}

fn messages(messages: Value, arguments: Arguments) -> Result<Value, ApiError> {
    let Value::Array(messages) = messages else {
        return Err(wrong("messages", "a list of messages", &messages));
    };
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "messages is empty; give at least one"));
    }
    check_results(&messages)?;
    let messages = messages.into_iter().enumerate();
    messages
        .map(|(number, text)| message(text, &format!("messages[{number}]"), arguments))
        .collect()
}

/// A tool's result belongs to a call before it; which, where both sides have ids.
fn check_results(messages: &[Value]) -> Result<(), ApiError> {
    let mut calls: HashSet<Option<&str>> = HashSet::new();
    for message in messages {
        let made = message["tool_calls"].as_array().into_iter().flatten();
        calls.extend(made.map(|call| call["id"].as_str()));
        if message["role"] != "tool" {
            continue;
        }
        let id = message["tool_call_id"].as_str();
        let is_some_call = id.is_none() && !calls.is_empty();
        if !(is_some_call || calls.contains(&None) || calls.contains(&id)) {
            let of = id.map(|id| format!(" of call {id:?}")).unwrap_or_default();
            let text = format!(
                "messages has a result{of} that belongs to no call before it; send the \
                 assistant's message that made the call, too"
            );
            return Err(ApiError::invalid("messages", text));
        }
    }
    Ok(())
}

/// What a message may have. Whether it shows is up to the model's template.
const MESSAGE_FIELDS: [&str; 6] =
    ["role", "content", "name", "reasoning_content", "tool_calls", "tool_call_id"];

/// What clients send back of an answer that no template shows.
const MESSAGE_HINTS: [&str; 2] = ["annotations", "id"];

fn message(message: Value, name: &str, arguments: Arguments) -> Result<Value, ApiError> {
    let Value::Object(mut message) = message else {
        return Err(wrong(name, "an object", &message));
    };
    // Clients send back what they got: answers of ours have `refusal: null`.
    message.retain(|field, value| {
        field == "content" || !(value.is_null() || MESSAGE_HINTS.contains(&field.as_str()))
    });
    // Its other name.
    if let Some(reasoning) = message.remove("reasoning") {
        message.entry("reasoning_content").or_insert(reasoning);
    }
    if let Some(field) = message.keys().find(|field| !MESSAGE_FIELDS.contains(&field.as_str())) {
        let text = format!("{name}.{field} is not supported by this server; remove it");
        return Err(
            ApiError::invalid(format!("{name}.{field}"), text).code("unsupported_parameter")
        );
    }
    for field in ["role", "name", "reasoning_content", "tool_call_id"] {
        match message.get(field) {
            None | Some(Value::String(_)) => {}
            Some(other) => return Err(wrong(&format!("{name}.{field}"), "a string", other)),
        }
    }
    if !message.contains_key("role") {
        let text = format!("{name}.role is missing; use system, user or assistant");
        return Err(ApiError::invalid(format!("{name}.role"), text));
    }
    let has_calls = message.get("tool_calls").is_some_and(|calls| *calls != Value::Array(vec![]));
    let calls = message.get_mut("tool_calls").filter(|_| arguments == Arguments::Parsed);
    if let Some(calls) = calls {
        parse_arguments(calls, &format!("{name}.tool_calls"))?;
    }
    let content = message.get_mut("content").map(Value::take).unwrap_or_default();
    let content = match text_of(content, &format!("{name}.content"))? {
        Some(text) => Value::String(text),
        // An answer that only calls tools.
        None if has_calls => Value::Null,
        None => {
            let text = format!("{name}.content is missing");
            return Err(ApiError::invalid(format!("{name}.content"), text));
        }
    };
    message.insert("content".into(), content);
    Ok(Value::Object(message))
}

fn parse_arguments(calls: &mut Value, name: &str) -> Result<(), ApiError> {
    let Value::Array(calls) = calls else {
        return Err(wrong(name, "a list of tool calls", calls));
    };
    for call in calls {
        let expected = "a list of calls, each with function.name and function.arguments in JSON";
        let function = call.get_mut("function").filter(|function| function["name"].is_string());
        let Some(function) = function else { return Err(wrong(name, expected, call)) };
        if let Value::String(text) = &function["arguments"] {
            // Of a call without arguments some clients keep what was streamed of them.
            let text = if text.trim().is_empty() { "{}" } else { text };
            match serde_json::from_str(text) {
                Ok(arguments) => function["arguments"] = arguments,
                Err(_) => return Err(wrong(name, expected, function)),
            }
        }
    }
    Ok(())
}

/// Content is text, or parts that are text; `None` is no content.
fn text_of(content: Value, name: &str) -> Result<Option<String>, ApiError> {
    let parts = match content {
        Value::Null => return Ok(None),
        Value::String(text) => return Ok(Some(text)),
        Value::Array(parts) => parts,
        other => return Err(wrong(name, "a string or a list of parts", &other)),
    };
    let mut text = String::new();
    for part in parts {
        match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(part)) => text.push_str(part),
            (Some("text"), None) => return Err(wrong(name, "text parts with text", &part)),
            (Some(kind), _) => {
                let message = format!("{name}: parts of type {kind} are not supported; use text");
                return Err(ApiError::invalid(name, message).code("unsupported_parameter"));
            }
            (None, _) => return Err(wrong(name, "parts with a type", &part)),
        }
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::testing::{Served, table};
    use serde_json::json;

    fn rendered(served: &Served, messages: Value) -> String {
        let body = json!({"model": "m", "messages": messages});
        let parsed = parse(body.to_string().as_bytes(), served.context()).unwrap();
        served.tokenizer.decode(&parsed.requests[0].prompt, false)
    }

    #[test]
    fn messages_become_the_prompt_that_the_template_writes() {
        let served = Served::chat();
        let text = "[gMASK]<sop><|system|>\nBe brief.<|user|>\nHi there<|assistant|>";
        let parts = json!([{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]);
        let messages = json!([
            {"role": "system", "content": "Be brief.", "refusal": null},
            {"role": "user", "content": parts},
        ]);
        assert_eq!(rendered(&served, messages), text);
    }

    #[test]
    fn a_message_that_the_template_leaves_out_is_refused() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/templates");
        let file = |name| std::fs::read_to_string(folder.join(name)).unwrap();
        let writes = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}";
        for (template, role, is_shown) in [
            // Names that stand somewhere in the text, too.
            (file("glm45.jinja"), "observation", false),
            (file("glm45.jinja"), "content", false),
            (file("glm45.jinja"), "", false),
            (file("glm53.jinja"), "observation", true),
            // It writes roles, but only some.
            (file("chatml.jinja"), "robot", false),
            (writes.into(), "robot", true),
        ] {
            let expected = (!is_shown).then(|| "messages[1].role".to_owned());
            let served = with_template(&template);
            // One before it may say the same, and one with tools may be put before both.
            let tools = json!([{"type": "function", "function": {"name": "now"}}]);
            let tools = if template == writes { json!([]) } else { tools };
            for (before, tools) in [("Hi", json!([])), ("It rains.", json!([])), ("Hi", tools)] {
                let messages = json!([
                    {"role": "user", "content": before},
                    {"role": role, "content": "It rains."},
                ]);
                let body = json!({"model": "m", "messages": messages, "tools": tools});
                let parsed = parse(body.to_string().as_bytes(), served.context());
                let param = parsed.err().map(|error| error.param.unwrap());
                assert_eq!(param, expected, "{role} after {before} of {template}");
            }
        }
    }

    #[test]
    fn content_that_is_none_is_empty_where_the_template_does_not_ask() {
        let of_thoughts = "{% if m.reasoning_content is not none %}{% endif %}";
        for (asks, says) in [
            ("{% if m.content is none %}-{% else %}+{% endif %}", "-"),
            ("{% if m['content'] is not none %}+{% else %}-{% endif %}", "-"),
            ("{% if m.get('content') != none %}+{% else %}-{% endif %}", "-"),
            (of_thoughts, "[]"),
            ("{{ 'none' }}", "none[]"),
        ] {
            let last = if says == "-" { "" } else { "[{{ m.content }}]" };
            let text = format!("{{% for m in messages %}}{asks}{last}{{% endfor %}}");
            let calls = json!([{"function": {"name": "now", "arguments": "{}"}}]);
            let messages = json!([{"role": "assistant", "content": null, "tool_calls": calls}]);
            assert_eq!(rendered(&with_template(&text), messages), says, "{text}");
        }
    }

    #[test]
    fn the_arguments_of_a_call_are_what_their_json_says() {
        let call = |arguments: Value| {
            let function = json!({"name": "add", "arguments": arguments});
            json!([
                {"role": "user", "content": "1+2"},
                {"role": "assistant", "content": null, "tool_calls": [{"function": function}]},
                {"role": "tool", "content": "3", "tool_call_id": "x"},
            ])
        };
        let served = Served::chat();
        let as_text = rendered(&served, call(json!("{\"a\":1}")));
        assert_eq!(as_text, rendered(&served, call(json!({"a": 1}))));
        assert!(as_text.contains("{\"a\": 1}"), "{as_text}");
        assert_eq!(rendered(&served, call(json!(""))), rendered(&served, call(json!({}))));
    }

    fn with_template(text: &str) -> Served {
        let served = Served::chat();
        let source = checkpoint::TokenizerSource::Json {
            tokenizer: Vec::new(),
            special: checkpoint::SpecialTokens::default(),
            chat_template: Some(text.into()),
        };
        let chat_template = ChatTemplate::from_source(&source, &served.config);
        Served { chat_template, ..served }
    }

    #[test]
    fn a_template_that_joins_arguments_as_text_has_them_as_they_came() {
        let calls = json!([{"function": {"name": "add", "arguments": "{\"a\":1}"}}]);
        let messages = json!([{"role": "assistant", "content": null, "tool_calls": calls}]);
        let arguments = "messages[0].tool_calls[0].function.arguments";
        let joins = with_template(&format!("{{{{ '<' + {arguments} + '>' }}}}"));
        assert_eq!(rendered(&joins, messages.clone()), "<{\"a\":1}>");
        let walks = with_template(&format!("{{{{ {arguments}.items() | list }}}}"));
        assert_eq!(rendered(&walks, messages.clone()), "[('a', 1)]");
        let body = json!({"model": "m", "messages": messages});
        let refuses = with_template("{{ raise_exception('never') }}");
        let error = parse(body.to_string().as_bytes(), refuses.context()).unwrap_err();
        assert!(error.message.ends_with("never"), "{error}");
    }

    #[test]
    fn developers_are_called_system_where_the_template_does_not_know_them() {
        let messages = json!([{"role": "developer", "content": "Be brief."}]);
        let plain = with_template("{{ messages[0].role }}");
        assert_eq!(rendered(&plain, messages.clone()), "system");
        let knows = with_template("{% if messages[0].role == 'developer' %}dev{% endif %}");
        assert_eq!(rendered(&knows, messages), "dev");
    }

    #[test]
    fn what_is_not_honoured_is_refused_by_name() {
        let unsupported = Some("unsupported_parameter");
        let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
        let message = |message: Value| json!({"messages": [message]});
        let calls = |calls: Value| message(json!({"role": "assistant", "tool_calls": calls}));
        let cases = [
            (json!({"tools": [{}]}), "tools[0].type", None),
            (json!({"tools": 1}), "tools", None),
            (json!({"tools": [{"type": "function"}]}), "tools[0].function.name", None),
            (json!({"tool_choice": "required"}), "tool_choice", None),
            (json!({"tool_choice": {"function": {"name": "f"}}}), "tool_choice", None),
            (json!({"tool_choice": 1}), "tool_choice", None),
            (json!({"thinking": true}), "thinking", None),
            (json!({"reasoning_effort": "huge"}), "reasoning_effort", None),
            (json!({"functions": [{}]}), "functions", unsupported),
            (json!({"modalities": ["text", "audio"]}), "modalities", unsupported),
            (json!({"audio": {}}), "audio", unsupported),
            (json!({"store": true}), "store", unsupported),
            (json!({"echo": true}), "echo", unsupported),
            (json!({"wibble": 1}), "wibble", Some("unknown_parameter")),
            (json!({"top_logprobs": 1}), "top_logprobs", None),
            (json!({"logprobs": 3}), "logprobs", None),
            (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs", None),
            (json!({"max_tokens": 0}), "max_tokens", None),
            (json!({"max_tokens": 1, "max_completion_tokens": 2}), "max_tokens", None),
            (json!({"chat_template_kwargs": 1}), "chat_template_kwargs", None),
            (json!({"messages": []}), "messages", None),
            (json!({"messages": null}), "messages", None),
            (json!({"messages": "Hi"}), "messages", None),
            (json!({"messages": ["Hi"]}), "messages[0]", None),
            (message(json!({"content": "Hi"})), "messages[0].role", None),
            (message(json!({"role": 1, "content": "Hi"})), "messages[0].role", None),
            (message(json!({"role": "user"})), "messages[0].content", None),
            (
                message(json!({"role": "user", "content": "", "audio": {}})),
                "messages[0].audio",
                unsupported,
            ),
            (user(Value::Null), "messages[0].content", None),
            (user(json!(5)), "messages[0].content", None),
            (user(json!([{"type": "image_url"}])), "messages[0].content", unsupported),
            (user(json!([{"text": "x"}])), "messages[0].content", None),
            (user(json!(["x"])), "messages[0].content", None),
            (calls(json!("f")), "messages[0].tool_calls", None),
            (calls(json!(["f"])), "messages[0].tool_calls", None),
            (calls(json!([{"function": "f"}])), "messages[0].tool_calls", None),
            (
                calls(json!([{"function": {"name": "f", "arguments": "{"}}])),
                "messages[0].tool_calls",
                None,
            ),
            (message(json!({"role": "tool", "content": "3"})), "messages", None),
            (
                json!({"messages": [
                    {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f"}}]},
                    {"role": "tool", "content": "3", "tool_call_id": "b"},
                ]}),
                "messages",
                None,
            ),
        ];
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
        table(&Served::chat(), parse, &body, &cases);
    }

    /// As many as a body has room for are looked at once, not each for each other.
    #[test]
    fn many_results_of_many_calls_take_no_time() {
        let calls: Vec<_> = (0..100_000).map(|id| json!({"id": id.to_string()})).collect();
        let mut messages = vec![json!({"role": "assistant", "tool_calls": calls})];
        let result = json!({"role": "tool", "tool_call_id": "99999"});
        messages.extend(std::iter::repeat_n(result, 100_000));
        let began = std::time::Instant::now();
        check_results(&messages).unwrap();
        assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
    }

    #[test]
    fn the_harmless_values_of_what_is_not_honoured_are_accepted() {
        let body = json!({
            "model": "m", "messages": [{"role": "user", "content": "Hi"}],
            "response_format": {"type": "text"}, "modalities": ["text"], "store": false,
            "user": "someone", "n": 2, "best_of": 2, "tools": null, "top_k": -1,
        });
        let served = Served::chat();
        let parsed = parse(body.to_string().as_bytes(), served.context()).unwrap();
        assert_eq!(parsed.requests[0].num_choices, 2);
    }

    #[test]
    fn without_a_template_the_error_says_what_to_use() {
        let served = Served { chat_template: None, ..Served::chat() };
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
        let error = parse(body.to_string().as_bytes(), served.context()).unwrap_err();
        assert_eq!((error.status, error.code), (400, Some("no_chat_template")));
        assert!(error.message.contains("/v1/completions"), "{error}");
    }

    #[test]
    fn messages_that_fill_the_context_are_refused_with_the_numbers() {
        let served = Served::chat();
        let message = json!({"role": "user", "content": "x".repeat(400)});
        let body = json!({"model": "m", "messages": [message]});
        let error = parse(body.to_string().as_bytes(), served.context()).unwrap_err();
        let named = (error.param.as_deref(), error.code);
        assert_eq!(named, (Some("messages"), Some("context_length_exceeded")));
        assert!(error.message.contains("256"), "{error}");
    }

    #[test]
    fn without_a_limit_an_answer_may_be_as_long_as_fits() {
        let served = Served::chat();
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
        let parsed = parse(body.to_string().as_bytes(), served.context()).unwrap();
        let request = &parsed.requests[0];
        let num_tokens = request.prompt.len() as u32 + request.max_tokens;
        assert_eq!(num_tokens, served.model.max_model_len);
    }
}
