//! Health: read from the newest status, never waiting for the data path.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use protocol::{LinkSpeed, NodeId};
use serde_json::{Value, json};

use super::ApiState;
use crate::status::Status;

/// Whether a path asks for health, for which no key is needed and a connection is kept.
pub(super) fn is_health(path: &str) -> bool {
    path == "/health" || path.starts_with("/health/")
}

pub(super) async fn live() -> Response {
    Json(json!({"status": "live"})).into_response()
}

pub(super) async fn ready(State(state): State<Arc<ApiState>>) -> Response {
    let status = state.engine.status();
    if status.is_ready() {
        return Json(json!({"status": "ready"})).into_response();
    }
    let body = json!({"status": "waiting", "waiting_for": status.waiting_for});
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

pub(super) async fn stages(State(state): State<Arc<ApiState>>) -> Json<Value> {
    Json(describe(&state.engine.status()))
}

/// By key; of one that is said twice, what is said last.
fn labels(labels: &[(String, String)]) -> Value {
    labels.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect()
}

/// All of it, as health and operators are told.
pub(super) fn describe(status: &Status) -> Value {
    let nodes = status.nodes.iter().map(|node| {
        let links = node.links.iter().map(|(to, way)| {
            let is_reached = *way != LinkSpeed::NONE;
            json!({
                "to": to.to_string(),
                "reached": is_reached,
                "rtt_us": is_reached.then_some(way.rtt_us),
                "bytes_per_s": is_reached.then_some(way.bytes_per_s),
            })
        });
        let fetching = node.fetching.map(|it| {
            json!({
                "bytes": it.num_bytes,
                "of_bytes": it.of_bytes,
                "sources": it.num_sources,
                "warming": it.is_warming,
            })
        });
        json!({
            "node": node.node.to_string(),
            "hostname": node.hostname,
            "data_addr": node.data_addr.to_string(),
            "pool": node.pool,
            "labels": labels(&node.labels),
            "duty": status.duty_of(node.node).name(),
            "adapters": node.adapters,
            "drivers": node.drivers,
            "memory_bytes": node.memory_bytes,
            "max_cache_bytes": node.max_cache_bytes,
            "speeds": node.speeds,
            "slowness": node.corrections.iter().map(|it| it.0).collect::<Vec<_>>(),
            "extra_us": node.corrections.iter().map(|it| it.1 * 1e6).collect::<Vec<_>>(),
            "row_shares": node.row_shares,
            "host_us": node.host_s * 1e6,
            "link": node.link,
            "links": links.collect::<Vec<_>>(),
            "fetching": fetching,
            "left_out": node.left_out,
        })
    });
    let quarantined = status.quarantined.iter().map(|it| {
        let left = it.until.saturating_duration_since(Instant::now());
        json!({"node": it.node.to_string(), "left_s": left.as_secs(), "cause": it.cause})
    });
    let pipelines = status.pipelines.iter().map(|pipeline| {
        let predicted = |number: usize| pipeline.predicted.stages.get(number);
        let stages = pipeline.stages.iter().enumerate().map(|(number, stage)| {
            json!({
                "stage": stage.stage.0,
                "node": stage.node.to_string(),
                "hostname": stage.hostname,
                "pid": stage.pid,
                "adapter": stage.adapter,
                "driver": stage.driver,
                "layers": [stage.layers.first, stage.layers.end],
                "state": stage.state.name(),
                "class": stage.class.map(|class| class.to_string()),
                "num_blocks": stage.num_blocks,
                "memory_bytes": stage.memory_bytes,
                "predicted_ms": predicted(number).map(|it| it.compute_s * 1e3),
                "measured_ms": stage.measured_s.map(|seconds| seconds * 1e3),
            })
        });
        json!({
            "pipeline": pipeline.pipeline.0,
            "ready": pipeline.is_ready(),
            "draining": pipeline.is_draining,
            "stages": stages.collect::<Vec<_>>(),
            "predicted_token_ms": pipeline.predicted.token_s * 1e3,
            "measured_token_ms": pipeline.measured_token_s.map(|seconds| seconds * 1e3),
            "predicted_tokens_per_s": pipeline.predicted.tokens_per_s,
            "predicted_concurrency": pipeline.predicted.concurrency,
            "cache_tokens": pipeline.cache().num_tokens,
            "of_cache_tokens": pipeline.cache().of_tokens,
            "cache": pipeline.cache().to_string(),
        })
    });
    let scaling = status.scaling.as_ref().map(|scaling| {
        let decisions = scaling.decisions.iter().map(|it| {
            json!({
                "seconds_ago": it.at.elapsed().as_secs(),
                "from": it.from,
                "to": it.to,
                "cause": it.cause.to_string(),
                "load": it.load,
                "num_serving": it.seen.num_serving,
                "num_tokens": it.seen.num_tokens,
                "num_sequences": it.seen.num_sequences,
                "longest_wait_ms": it.seen.longest_wait.as_millis() as u64,
            })
        });
        json!({
            "pipelines_wanted": scaling.wanted,
            "min_pipelines": scaling.min,
            "max_pipelines": scaling.max,
            "nodes_wanted": scaling.num_nodes,
            "load": scaling.load,
            "asleep": scaling.is_asleep,
            "decisions": decisions.collect::<Vec<_>>(),
        })
    });
    let is_here = |id: NodeId| status.nodes.iter().any(|node| node.node == id);
    let absent = status.relieved.iter().filter(|(id, _)| !is_here(*id));
    let absent = absent.map(|(id, duty)| json!({"node": id.to_string(), "duty": duty.name()}));
    json!({
        "ready": status.is_ready(),
        "waiting_for": status.waiting_for,
        "system_fingerprint": status.system_fingerprint,
        "autoscaler": scaling,
        "nodes": nodes.collect::<Vec<_>>(),
        "quarantined": quarantined.collect::<Vec<_>>(),
        "absent": absent.collect::<Vec<_>>(),
        "pipelines": pipelines.collect::<Vec<_>>(),
    })
}
