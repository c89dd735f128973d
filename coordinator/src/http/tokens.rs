//! `/tokenize` and `/detokenize`, in vLLM's shapes.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::IntoResponse;
use protocol::TokenId;
use serde_json::{Value, json};

use super::{ApiResult, ApiState, error};
use crate::openai::{ApiError, Fields, prompt_of_messages};

pub(super) async fn tokenize(
    State(state): State<Arc<ApiState>>,
    body: Result<Bytes, BytesRejection>,
) -> ApiResult {
    let mut fields = fields(&state, body)?;
    let add_special = match fields.take("add_special_tokens") {
        None => true,
        Some(Value::Bool(add)) => add,
        Some(_) => {
            let message = "add_special_tokens must be true or false";
            return Err(ApiError::invalid("add_special_tokens", message));
        }
    };
    let tokens = match fields.string("prompt")? {
        Some(prompt) => state
            .tokenizer
            .encode(&prompt, add_special)
            .map_err(|cause| ApiError::invalid("prompt", cause.to_string()))?,
        None => prompt_of_messages(&mut fields, state.context())?,
    };
    fields.finish()?;
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
    body: Result<Bytes, BytesRejection>,
) -> ApiResult {
    let mut fields = fields(&state, body)?;
    let tokens = fields.required("tokens")?;
    fields.finish()?;
    let id = |token: &Value| token.as_u64().and_then(|id| u32::try_from(id).ok()).map(TokenId);
    let tokens: Option<Vec<_>> = tokens.as_array().and_then(|ids| ids.iter().map(id).collect());
    let tokens = tokens
        .filter(|tokens| tokens.iter().all(|token| token.0 < state.model.vocab_size))
        .ok_or_else(|| {
            let vocab_size = state.model.vocab_size;
            ApiError::invalid("tokens", format!("tokens must be a list of ids below {vocab_size}"))
        })?;
    Ok(Json(json!({"prompt": state.tokenizer.decode(&tokens, false)})).into_response())
}

fn fields(state: &ApiState, body: Result<Bytes, BytesRejection>) -> Result<Fields, ApiError> {
    let body = body.map_err(|cause| error::unreadable(&cause, state.config.max_body_bytes))?;
    let mut fields = Fields::parse(&body)?;
    // Optional here, as in vLLM.
    match fields.string("model")? {
        Some(name) if name != state.model.name => {
            let message = format!("there is no model {name}; this server has {}", state.model.name);
            Err(ApiError::invalid("model", message).status(404).code("model_not_found"))
        }
        _ => Ok(fields),
    }
}
