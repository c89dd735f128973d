//! `/v1/models`, and `/version`.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::{ApiResult, ApiState};
use crate::openai::ApiError;

pub(super) async fn list(State(state): State<Arc<ApiState>>) -> Json<Value> {
    // Codex looks for them by another name.
    let model = describe(&state);
    Json(json!({"object": "list", "data": [model], "models": [model]}))
}

pub(super) async fn retrieve(
    State(state): State<Arc<ApiState>>,
    id: Result<Path<String>, PathRejection>,
) -> ApiResult {
    let Path(id) =
        id.map_err(|_| ApiError::malformed("the model's name in the path is no text"))?;
    if id == state.model.name {
        return Ok(Json(describe(&state)).into_response());
    }
    Err(ApiError::no_model(&id, &state.model.name))
}

pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
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
