//! `/tokenize` and `/detokenize`, in vLLM's shapes.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::IntoResponse;
use axum::{Extension, Json};
use protocol::TokenId;
use serde_json::{Value, json};

use super::caller::Caller;
use super::{ApiResult, ApiState, body};
use crate::openai::{ApiError, Asked, Context, Fields, check_model, prompt_of_messages};

pub(super) async fn tokenize(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> ApiResult {
    let _permit = body::admit(&state, &caller)?;
    let tokens = body::parsed(&state, &caller, request, true, tokens_of).await?;
    let ids: Vec<u32> = tokens.iter().map(|token| token.0).collect();
    let body = json!({
        "count": ids.len(),
        "max_model_len": state.model.max_model_len,
        "tokens": ids,
    });
    Ok(Json(body).into_response())
}

pub(super) async fn detokenize(
    State(state): State<Arc<ApiState>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> ApiResult {
    let _permit = body::admit(&state, &caller)?;
    let text = body::parsed(&state, &caller, request, true, text_of).await?;
    Ok(Json(json!({"prompt": text})).into_response())
}

/// The tokens of a text, with those that go around every text unless told otherwise, or of
/// messages, whose template writes them itself.
fn tokens_of(body: &[u8], context: Context<'_>) -> Result<Vec<TokenId>, ApiError> {
    let mut fields = fields(body, context)?;
    let add_special = match fields.take("add_special_tokens") {
        None => None,
        Some(Value::Bool(add)) => Some(add),
        Some(_) => {
            let message = "add_special_tokens must be true or false";
            return Err(ApiError::invalid("add_special_tokens", message));
        }
    };
    let tokens = match fields.string("prompt")? {
        Some(prompt) => context
            .tokenizer
            .encode(&prompt, add_special.unwrap_or(true))
            .map_err(|cause| ApiError::invalid("prompt", cause.to_string()))?,
        None if add_special == Some(true) => {
            let message = "add_special_tokens must be false for messages: their template adds them";
            return Err(ApiError::invalid("add_special_tokens", message));
        }
        None if fields.has("messages") => {
            let asked = Asked::take(&mut fields)?;
            prompt_of_messages(&mut fields, &asked, context)?.tokens
        }
        None => return Err(ApiError::invalid("prompt", "give prompt or messages")),
    };
    fields.finish()?;
    Ok(tokens)
}

fn text_of(body: &[u8], context: Context<'_>) -> Result<String, ApiError> {
    let mut fields = fields(body, context)?;
    let tokens = fields.required("tokens")?;
    fields.finish()?;
    let vocab_size = context.model.vocab_size;
    let id = |token: &Value| token.as_u64().and_then(|id| u32::try_from(id).ok()).map(TokenId);
    let tokens: Option<Vec<_>> = tokens.as_array().and_then(|ids| ids.iter().map(id).collect());
    let tokens = tokens
        .filter(|tokens| tokens.iter().all(|token| token.0 < vocab_size))
        .ok_or_else(|| {
            ApiError::invalid("tokens", format!("tokens must be a list of ids below {vocab_size}"))
        })?;
    Ok(context.tokenizer.decode(&tokens, false))
}

/// The model may be left out here, as in vLLM.
fn fields(body: &[u8], context: Context<'_>) -> Result<Fields, ApiError> {
    let mut fields = Fields::parse(body)?;
    if fields.has("model") {
        check_model(&mut fields, context)?;
    }
    Ok(fields)
}
