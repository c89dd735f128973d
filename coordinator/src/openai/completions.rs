//! `/v1/completions`: text or token ids in, text out.

use protocol::TokenId;
use serde_json::Value;

use super::fields::wrong;
use super::sampling::{Common, check_logprobs};
use super::{ApiError, Context, Fields, Parsed};

/// OpenAI's default for this endpoint.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Most prompts of one body.
const MAX_PROMPTS: usize = 256;

/// The requests of a body, one for each prompt.
///
/// # Errors
/// When the body asks for what this server or this model can't do.
pub fn parse(body: &[u8], context: Context<'_>) -> Result<Parsed, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut common = Common::take(&mut fields, context)?;
    common.options.echo = fields.bool("echo")?;
    if let Some(wanted) = fields.u32("logprobs")? {
        let wanted = Some(check_logprobs("logprobs", wanted, context)?);
        common.options.logprobs = true;
        common.sampling.num_logprobs = wanted;
        common.sampling.num_prompt_logprobs = wanted.filter(|_| common.options.echo);
    }
    let prompts = prompts(fields.required("prompt")?, context)?;
    fields.finish()?;
    let default = match context.config.default_max_tokens {
        0 => DEFAULT_MAX_TOKENS,
        configured => configured,
    };
    let requests = prompts
        .into_iter()
        .map(|prompt| common.request(prompt, Some(default), context))
        .collect::<Result<_, _>>()?;
    Ok(Parsed { requests, options: common.options })
}

fn prompts(prompt: Value, context: Context<'_>) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let items = match prompt {
        Value::String(text) => return Ok(vec![encode(&text, context)?]),
        Value::Array(items) if items.first().is_some_and(Value::is_number) => {
            return Ok(vec![token_ids(&items)?]);
        }
        Value::Array(items) if !items.is_empty() => items,
        other => return Err(expected(&other)),
    };
    if items.len() > MAX_PROMPTS {
        let message = format!("at most {MAX_PROMPTS} prompts in one request");
        return Err(ApiError::invalid("prompt", message));
    }
    items
        .iter()
        .map(|item| match item {
            Value::String(text) => encode(text, context),
            Value::Array(ids) => token_ids(ids),
            other => Err(expected(other)),
        })
        .collect()
}

fn encode(text: &str, context: Context<'_>) -> Result<Vec<TokenId>, ApiError> {
    context
        .tokenizer
        .encode(text, true)
        .map_err(|cause| ApiError::invalid("prompt", cause.to_string()))
}

fn token_ids(items: &[Value]) -> Result<Vec<TokenId>, ApiError> {
    let id = |item: &Value| item.as_u64().and_then(|id| u32::try_from(id).ok()).map(TokenId);
    items.iter().map(|item| id(item).ok_or_else(|| expected(item))).collect()
}

fn expected(found: &Value) -> ApiError {
    wrong("prompt", "a string, a list of strings, token ids, or lists of token ids", found)
}
