//! `/v1/admin`: what operators see and say.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use protocol::NodeId;
use serde_json::json;

use super::{ApiResult, ApiState, health};
use crate::cluster::Input;
use crate::duty::Duty;
use crate::openai::ApiError;
use crate::request::Priority;
use crate::status::Status;

/// Everything that health tells, and how full the cluster is.
pub(super) async fn status(State(state): State<Arc<ApiState>>) -> ApiResult {
    let load = state.engine.look(|cluster, _| cluster.load()).await;
    let load = load.ok_or_else(|| {
        ApiError::unavailable("the scheduler doesn't answer; try again", "scheduler_busy")
    })?;
    let mut said = health::describe(&state.engine.status());
    let waiting =
        Priority::ALL.iter().map(|it| (it.name().to_owned(), load.num_waiting[it.index()].into()));
    said["load"] = json!({
        "waiting": serde_json::Value::Object(waiting.collect()),
        "running": load.lanes.num_running,
        "used_blocks": load.lanes.num_used_blocks,
        "blocks": load.lanes.num_blocks,
    });
    Ok(Json(said).into_response())
}

pub(super) async fn cordon(
    State(state): State<Arc<ApiState>>,
    node: Result<Path<String>, PathRejection>,
) -> ApiResult {
    set(&state, node, Duty::Cordoned)
}

pub(super) async fn uncordon(
    State(state): State<Arc<ApiState>>,
    node: Result<Path<String>, PathRejection>,
) -> ApiResult {
    set(&state, node, Duty::Active)
}

pub(super) async fn drain(
    State(state): State<Arc<ApiState>>,
    node: Result<Path<String>, PathRejection>,
) -> ApiResult {
    set(&state, node, Duty::Draining)
}

fn set(
    state: &ApiState,
    named: Result<Path<String>, PathRejection>,
    duty: Duty,
) -> Result<Response, ApiError> {
    let Ok(Path(name)) = named else {
        return Err(ApiError::malformed("the node's name in the path is no text"));
    };
    let node = find(&state.engine.status(), &name)
        .map_err(|message| ApiError::invalid("node", message).status(404).code("node_not_found"))?;
    state.engine.happened(Input::Duty(node, duty));
    let said = json!({"object": "node", "node": node.to_string(), "duty": duty.name()});
    Ok(Json(said).into_response())
}

/// The node of an id, of the beginning of one, or on a machine of that name.
fn find(status: &Status, name: &str) -> Result<NodeId, String> {
    let is_hex = name.bytes().all(|byte| byte.is_ascii_hexdigit());
    if name.len() == 16 && is_hex {
        // It may not be here, and what is said of it holds all the same.
        let id = u64::from_str_radix(name, 16).map_err(|cause| cause.to_string())?;
        return Ok(NodeId(id));
    }
    let mut found: Vec<_> = status
        .nodes
        .iter()
        .filter(|node| {
            node.hostname == name || (!name.is_empty() && node.node.to_string().starts_with(name))
        })
        .map(|node| node.node)
        .collect();
    let relieved = status.relieved.iter().map(|(node, _)| *node);
    found.extend(relieved.filter(|id| !name.is_empty() && id.to_string().starts_with(name)));
    found.sort_unstable();
    found.dedup();
    let shown: String = name.chars().take(64).collect();
    match found[..] {
        [node] => Ok(node),
        [] => Err(format!(
            "there is no node {shown}: give a hostname, or an id or its beginning, as autoglm \
             nodes lists them"
        )),
        _ => Err(format!("{} nodes are called {shown}: give an id", found.len())),
    }
}
