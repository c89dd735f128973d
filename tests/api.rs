//! The API beyond completions: tokens, health, metrics, what a stream is made of.

use serde_json::json;
use tests::cluster::{Cluster, Options};
use tests::golden;

#[tokio::test(flavor = "multi_thread")]
async fn the_api_around_completions() {
    let cluster = Cluster::start(Options::new(golden::model("glass-en")).nodes(2, 2)).await;
    let model = cluster.model().await;
    assert_eq!(model, "glass-en");

    let (status, tokens) =
        cluster.post("/tokenize", &json!({"model": model, "prompt": "Alice was"})).await;
    assert_eq!(status, 200, "{tokens}");
    assert_eq!(tokens["max_model_len"], 128);
    let (_, text) =
        cluster.post("/detokenize", &json!({"model": model, "tokens": tokens["tokens"]})).await;
    assert!(text["prompt"].as_str().unwrap().ends_with("Alice was"), "{text}");

    let (_, stages) = cluster.get("/health/stages").await;
    let stages = stages["pipelines"][0]["stages"].as_array().unwrap().clone();
    assert_eq!(stages.len(), 2);
    assert!(stages.iter().all(|stage| stage["state"] == "serving"), "{stages:?}");
    assert_ne!(stages[0]["node"], stages[1]["node"]);
    // Two processes on one adapter.
    assert_eq!(stages[0]["class"].as_str().map(str::len), Some(16), "{stages:?}");
    assert_eq!(stages[0]["class"], stages[1]["class"]);

    let request = json!({"model": model, "prompt": "Alice was", "max_tokens": 8, "stream": true});
    let text = cluster.stream("/v1/completions", &request).await.text().await.unwrap();
    assert!(text.trim_end().ends_with("data: [DONE]"), "{text}");

    let (_, metrics) = cluster.get("/metrics").await;
    let metrics = metrics.as_str().unwrap();
    for name in [
        "autoglm_requests_total",
        "autoglm_queue_depth",
        "autoglm_time_to_first_token_seconds_bucket",
        "autoglm_generation_tokens_total",
        "autoglm_kv_usage_ratio",
        "autoglm_stage_compute_seconds_count{stage=\"1\"}",
        "autoglm_activation_bytes_total{",
        "autoglm_node_up{",
        "http_request_duration_seconds_bucket{",
    ] {
        assert!(metrics.contains(name), "{name} is not in\n{metrics}");
    }
    cluster.stop();
}
