//! `/v1/chat/completions`: messages in, through the model's own template, a message out.

use protocol::TokenId;
use serde_json::{Map, Value, json};

use super::fields::wrong;
use super::sampling::{Common, check_logprobs};
use super::{ApiError, Context, Fields, Parsed};

/// The request of a body.
///
/// # Errors
/// When the body asks for what this server or this model can't do.
pub fn parse(body: &[u8], context: Context<'_>) -> Result<Parsed, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut common = Common::take(&mut fields, context)?;
    fields.only("response_format", &[json!({"type": "text"})])?;
    fields.only("modalities", &[json!(["text"])])?;
    fields.only("store", &[Value::Bool(false)])?;
    fields.only("service_tier", &[json!("auto"), json!("default")])?;
    let wants_logprobs = fields.bool("logprobs")?;
    let top_logprobs = fields.u32("top_logprobs")?;
    if top_logprobs.is_some() && !wants_logprobs {
        let message = "top_logprobs is only for logprobs: true";
        return Err(ApiError::invalid("top_logprobs", message));
    }
    if wants_logprobs {
        let wanted = check_logprobs("top_logprobs", top_logprobs.unwrap_or(0), context)?;
        common.options.logprobs = true;
        common.sampling.num_logprobs = Some(wanted);
    }
    let prompt = prompt_of_messages(&mut fields, context)?;
    fields.finish()?;
    let default = Some(context.config.default_max_tokens).filter(|&tokens| tokens > 0);
    let request = common.request(prompt, default, context)?;
    Ok(Parsed { requests: vec![request], options: common.options })
}

/// The tokens of a body's `messages`, rendered by the model's template.
///
/// # Errors
/// When the model has no template, or it refuses the messages.
pub fn prompt_of_messages(
    fields: &mut Fields,
    context: Context<'_>,
) -> Result<Vec<TokenId>, ApiError> {
    let messages = messages(fields.required("messages")?)?;
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
    let text = template
        .render(&messages, add_generation_prompt, &extra)
        .map_err(|cause| ApiError::invalid("messages", cause.to_string()))?;
    // The template has written the special tokens itself.
    context
        .tokenizer
        .encode(&text, false)
        .map_err(|cause| ApiError::invalid("messages", cause.to_string()))
}

fn messages(messages: Value) -> Result<Value, ApiError> {
    let Value::Array(messages) = messages else {
        return Err(wrong("messages", "a list of messages", &messages));
    };
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "messages is empty; give at least one"));
    }
    let messages = messages.into_iter().enumerate().map(|(number, message)| {
        let name = format!("messages[{number}]");
        let Value::Object(mut message) = message else {
            return Err(wrong(&name, "an object", &message));
        };
        if !message.get("role").is_some_and(Value::is_string) {
            let message = format!("{name}.role is missing; use system, user or assistant");
            return Err(ApiError::invalid(name, message));
        }
        if let Some(content) = message.get_mut("content") {
            let text = text_of(content.take(), &format!("{name}.content"))?;
            *content = text;
        } else {
            return Err(ApiError::invalid(&name, format!("{name}.content is missing")));
        }
        Ok(Value::Object(message))
    });
    messages.collect::<Result<Vec<_>, _>>().map(Value::Array)
}

/// Content is text, or parts that are text.
fn text_of(content: Value, name: &str) -> Result<Value, ApiError> {
    let parts = match content {
        Value::String(_) | Value::Null => return Ok(content),
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
    Ok(Value::String(text))
}
