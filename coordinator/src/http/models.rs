//! `/v1/models`

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::{ApiResult, ApiState};
use crate::openai::ApiError;

pub(super) async fn list(State(state): State<Arc<ApiState>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [describe(&state)]}))
}

pub(super) async fn retrieve(
    State(state): State<Arc<ApiState>>,
    Path(id): Path<String>,
) -> ApiResult {
    if id == state.model.name {
        return Ok(Json(describe(&state)).into_response());
    }
    let message = format!("there is no model {id}; this server has {}", state.model.name);
    Err(ApiError::invalid("model", message).status(404).code("model_not_found"))
}

fn describe(state: &ApiState) -> Value {
    json!({
        "id": state.model.name,
        "object": "model",
        "created": state.model.created,
        "owned_by": "autoglm",
        "max_model_len": state.model.max_model_len,
    })
}
