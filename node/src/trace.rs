//! A stage's own spans: one for each traced sequence of a step.

use std::time::Instant;

use protocol::{StagePlan, StageTiming, Step, StepId, TraceContext};
use telemetry::{KeyValue, Kind, Span};

use crate::actor::Node;
use crate::error::StageError;

/// A step that some request's trace keeps, on its way through a stage.
pub(crate) struct TracedStep {
    parents: Vec<TraceContext>,
    step: StepId,
    num_sequences: usize,
    num_tokens: usize,
    since: Instant,
}

impl TracedStep {
    /// Of a frame that arrived at `since`; `None` where no trace keeps it.
    pub(crate) fn of(number: StepId, step: &Step, since: Instant) -> Option<Self> {
        (!step.traces.is_empty()).then(|| Self {
            parents: step.traces.clone(),
            step: number,
            num_sequences: step.batch.slices.len(),
            num_tokens: step.batch.num_tokens(),
            since,
        })
    }

    /// The trace of the first sequence, for the log.
    pub(crate) fn first(&self) -> Option<String> {
        self.parents.first().map(|parent| parent.trace.to_string())
    }

    /// Writes the spans of a step that ended at `end`, with where its time went, or with an error.
    pub(crate) fn record(
        self,
        node: &Node,
        plan: &StagePlan,
        end: Instant,
        ended: Result<&StageTiming, &StageError>,
    ) {
        if !node.tracer.is_on() {
            return;
        }
        let adapter = node.report.adapters.get(plan.adapter as usize);
        let mut attributes = vec![
            KeyValue::new("autoglm.stage.index", i64::from(plan.id.stage.0)),
            KeyValue::new("autoglm.stage.layers", plan.layers.to_string()),
            KeyValue::new("autoglm.epoch", plan.id.epoch.to_string()),
            KeyValue::new("autoglm.node.id", node.report.node.to_string()),
            KeyValue::new("autoglm.step.id", self.step.0 as i64),
            KeyValue::new("autoglm.batch.sequences", self.num_sequences as i64),
            KeyValue::new("autoglm.batch.tokens", self.num_tokens as i64),
        ];
        attributes.extend(adapter.map(|it| KeyValue::new("autoglm.adapter", it.name.clone())));
        let error = match ended {
            Ok(timing) => {
                let parts = [
                    ("autoglm.decode_us", timing.decode_us),
                    ("autoglm.wait_us", timing.wait_us),
                    ("autoglm.handoff_us", timing.handoff_us),
                    ("autoglm.upload_us", timing.upload_us),
                    ("autoglm.compute_us", timing.compute_us),
                    ("autoglm.readback_us", timing.readback_us),
                    ("autoglm.received_bytes", timing.received_bytes),
                ];
                let parts = parts.map(|(name, value)| KeyValue::new(name, i64::from(value)));
                attributes.extend(parts);
                None
            }
            Err(cause) => {
                let kind = if cause.is_fatal() { "stage_lost" } else { "step_failed" };
                attributes.push(KeyValue::new("error.type", kind));
                Some(cause.to_string())
            }
        };
        for parent in &self.parents {
            // Without random numbers there is no name for a span, and none is missed.
            let Ok(id) = getrandom::u64() else { return };
            node.tracer.record(Span {
                context: parent.under(protocol::SpanId(id.max(1))),
                parent: Some(parent.span),
                name: format!("stage {}", plan.id.stage).into(),
                kind: Kind::Internal,
                start: self.since,
                end,
                attributes: attributes.clone(),
                error: error.clone().map(Into::into),
                state: String::new(),
            });
        }
    }
}
