//! A plan as it is shown.

use std::fmt::Write as _;

use serde::Serialize;

use crate::model::Model;
use crate::placement::Size;
use crate::placement::predict::CacheRoom;
use crate::status::{NodeStatus, Status};

/// What a placement is and brings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanReport {
    /// The model's name.
    pub model: String,
    /// Its layers.
    pub num_layers: usize,
    /// Bytes that it takes on one node, with the shortest KV cache.
    pub memory_bytes: u64,
    /// Tokens of a sequence.
    pub max_model_len: u32,
    /// Tokens of a sequence that the model was made for.
    pub made_for_tokens: u32,
    /// As what keys and values are stored.
    pub kv_cache_dtype: &'static str,
    /// Its pipelines.
    pub pipelines: Vec<PlannedPipeline>,
    /// Nodes that hold nothing.
    pub idle: Vec<IdleNode>,
    /// What nobody has measured.
    pub assumptions: Vec<String>,
}

/// A node on which nothing is placed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IdleNode {
    /// Its name.
    pub node: String,
    /// Why, in a sentence.
    pub why: String,
}

/// A pipeline of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedPipeline {
    /// In order.
    pub stages: Vec<PlannedStage>,
    /// Milliseconds of a token, while one sequence is computed.
    pub token_ms: f64,
    /// The same, as it was measured.
    pub measured_token_ms: Option<f64>,
    /// Tokens a second of one sequence.
    pub tokens_per_s_alone: f64,
    /// Sequences at once with which it is fastest.
    pub concurrency: usize,
    /// Tokens a second of all of them.
    pub tokens_per_s: f64,
    /// Tokens for which the KV cache has room.
    pub cache_tokens: u64,
    /// Tokens for which there should be room.
    pub of_cache_tokens: u64,
    /// The same for people.
    #[serde(skip)]
    pub cache: CacheRoom,
}

/// A stage of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedStage {
    /// Where it is.
    pub node: String,
    /// Its layers: the first, and one past the last.
    pub layers: [u32; 2],
    /// Bytes that it takes, with the shortest KV cache.
    pub memory_bytes: u64,
    /// Bytes that stages may take there.
    pub of_bytes: u64,
    /// Milliseconds of a step of one sequence.
    pub compute_ms: f64,
    /// The same, as it was measured.
    pub measured_ms: Option<f64>,
    /// Milliseconds of the way to it.
    pub hop_ms: f64,
}

impl PlanReport {
    /// Of a cluster's pipelines as they are: planned, loading or serving.
    pub fn new(name: &str, model: &Model, status: &Status) -> Self {
        let millis = |seconds: f64| seconds * 1e3;
        let pipelines = status.pipelines.iter().map(|pipeline| {
            let predicted = &pipeline.predicted;
            let stages = pipeline.stages.iter().zip(&predicted.stages).map(|(stage, predicted)| {
                let node = status.nodes.iter().find(|node| node.node == stage.node);
                PlannedStage {
                    node: stage.hostname.clone(),
                    layers: [stage.layers.first, stage.layers.end],
                    memory_bytes: predicted.memory_bytes,
                    of_bytes: node
                        .and_then(|node| node.memory_bytes.get(stage.adapter_number as usize))
                        .copied()
                        .unwrap_or(0),
                    compute_ms: millis(predicted.compute_s),
                    measured_ms: stage.measured_s.map(millis),
                    hop_ms: millis(predicted.hop_s),
                }
            });
            PlannedPipeline {
                stages: stages.collect(),
                token_ms: millis(predicted.token_s),
                measured_token_ms: pipeline.measured_token_s.map(millis),
                tokens_per_s_alone: predicted.tokens_per_s_alone(),
                concurrency: predicted.concurrency,
                tokens_per_s: predicted.tokens_per_s,
                cache_tokens: predicted.cache.num_tokens,
                of_cache_tokens: predicted.cache.of_tokens,
                cache: predicted.cache,
            }
        });
        let stages = status.pipelines.iter().flat_map(|it| &it.stages);
        let idle_node = |node: &NodeStatus| IdleNode {
            node: node.hostname.clone(),
            why: node.left_out.clone().unwrap_or_else(|| "a spare: the others suffice".into()),
        };
        let idle =
            status.nodes.iter().filter(|node| !stages.clone().any(|it| it.node == node.node));
        Self {
            model: name.to_owned(),
            num_layers: model.cost.layers.len(),
            memory_bytes: model.cost.total(),
            max_model_len: model.max_model_len,
            made_for_tokens: model.max_model_len,
            kv_cache_dtype: "f32",
            idle: idle.map(idle_node).collect(),
            pipelines: pipelines.collect(),
            assumptions: Vec::new(),
        }
    }
}

/// The report for people: a line for each stage, then what it brings.
pub(crate) fn plan_table(report: &PlanReport) -> String {
    let PlanReport { model, num_layers, memory_bytes, pipelines, idle, .. } = report;
    let PlanReport { max_model_len, made_for_tokens, kv_cache_dtype, .. } = report;
    let mut text = format!(
        "{model}: {num_layers} layers, {} on one node; context {max_model_len}",
        Size(*memory_bytes)
    );
    if max_model_len < made_for_tokens {
        let _ = write!(text, " of {made_for_tokens}, the longest that fits (model.max_model_len)");
    }
    let _ = writeln!(text, ", keys and values in {kv_cache_dtype}");
    for (number, pipeline) in pipelines.iter().enumerate() {
        let _ = writeln!(text, "pipeline {number}");
        let is_measured = pipeline.measured_token_ms.is_some();
        let _ = write!(
            text,
            "  {:<5}  {:<24}  {:>9}  {:>24}  {:>10}  {:>8}",
            "stage", "node", "layers", "memory", "compute", "hop"
        );
        text += if is_measured { "    measured\n" } else { "\n" };
        for (number, stage) in pipeline.stages.iter().enumerate() {
            let layers = format!("{}..{}", stage.layers[0], stage.layers[1]);
            let memory = format!("{} of {}", Size(stage.memory_bytes), Size(stage.of_bytes));
            let _ = write!(
                text,
                "  {number:<5}  {:<24}  {layers:>9}  {memory:>24}  {:>7.2} ms  {:>5.2} ms",
                stage.node, stage.compute_ms, stage.hop_ms
            );
            if let Some(measured) = stage.measured_ms {
                let _ = write!(text, "  {measured:>7.2} ms");
            }
            text.push('\n');
        }
        let _ = write!(
            text,
            "  one sequence: {:.2} ms a token, {:.1} tokens/s",
            pipeline.token_ms, pipeline.tokens_per_s_alone
        );
        if let Some(measured) = pipeline.measured_token_ms {
            let _ = write!(text, " (measured: {measured:.2} ms)");
        }
        let _ = write!(text, "; {} at once", pipeline.concurrency);
        // That so many may run says nothing of how long they can be.
        let each = pipeline.cache_tokens / pipeline.concurrency.max(1) as u64;
        if each < pipeline.cache.sequence_tokens {
            let _ = write!(text, ", of {each} tokens each");
        }
        let _ = writeln!(text, ": {:.1} tokens/s", pipeline.tokens_per_s);
        let _ = writeln!(text, "  {}", pipeline.cache);
    }
    for IdleNode { node, why } in idle {
        let _ = writeln!(text, "idle: {node}: {why}");
    }
    for assumption in &report.assumptions {
        let _ = writeln!(text, "assumed: {assumption}");
    }
    text
}
