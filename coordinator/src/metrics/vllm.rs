//! The same numbers under the names and labels that vLLM gives them, so that dashboards and
//! autoscalers made for it work as they are. Nothing is counted twice: both names stand for one
//! counter.

use std::borrow::Cow;

use prometheus_client::registry::Registry;

use super::Metrics;

/// vLLM numbers its engines; there is one pipeline.
const ENGINE: &str = "0";

pub(super) fn register(metrics: &Metrics, registry: &mut Registry) {
    let model = metrics.model.to_string();
    let labels = [("model_name", Cow::Owned(model)), ("engine", Cow::Borrowed(ENGINE))];
    let labels = labels.map(|(name, value)| (Cow::Borrowed(name), value));
    let vllm = registry.sub_registry_with_labels(labels.into_iter());
    let gauges = [
        ("num_requests_running", "Sequences that run", &metrics.running),
        ("num_requests_waiting", "Sequences that wait", &metrics.waiting),
    ];
    for (name, help, gauge) in gauges {
        vllm.register(format!("vllm:{name}"), help, gauge.clone());
    }
    let help = "Share of KV blocks that is held";
    vllm.register("vllm:kv_cache_usage_perc", help, metrics.kv_usage.clone());
    let counters = [
        ("prompt_tokens", "Tokens of prompts", &metrics.prompt_tokens),
        ("generation_tokens", "Tokens of answers", &metrics.generation_tokens),
        (
            "prefix_cache_queries",
            "Tokens of prompts, looked for in the prefix cache",
            &metrics.scheduling.prefix_queries,
        ),
        (
            "prefix_cache_hits",
            "Tokens of prompts that the prefix cache had",
            &metrics.scheduling.prefix_hits,
        ),
    ];
    for (name, help, counter) in counters {
        vllm.register(format!("vllm:{name}"), help, counter.clone());
    }
    let help = "Answers that ended, by reason";
    vllm.register("vllm:request_success", help, metrics.choices.clone());
    let latencies = [
        ("time_to_first_token_seconds", "Until the first token", &metrics.first_token),
        ("inter_token_latency_seconds", "Between two tokens", &metrics.between_tokens),
        ("request_time_per_output_token_seconds", "By token of an answer", &metrics.per_token),
        ("e2e_request_latency_seconds", "Until the last token", &metrics.duration),
    ];
    for (name, help, latency) in latencies {
        vllm.register(format!("vllm:{name}"), help, latency.0.clone());
    }
    let histograms = [
        ("request_queue_time_seconds", "Until admission", &metrics.queue_wait),
        ("request_prompt_tokens", "Tokens of a request's prompts", &metrics.request_prompt),
        ("request_generation_tokens", "Tokens of a request's answers", &metrics.request_answer),
    ];
    for (name, help, histogram) in histograms {
        vllm.register(format!("vllm:{name}"), help, histogram.clone());
    }
}
