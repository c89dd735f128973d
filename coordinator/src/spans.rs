//! Spans of a request's phases, as the scheduler tells of them.

use std::time::Instant;

use telemetry::{KeyValue, Kind, Span};

use crate::trace::{Phase, PhaseEnded};

/// The span of a phase that ended at `end`.
pub(crate) fn of_phase(ended: PhaseEnded, end: Instant) -> Span {
    let (name, tokens) = match ended.phase {
        Phase::Queue => ("queue", "autoglm.prompt.tokens"),
        Phase::Prefill => ("prefill", "autoglm.prompt.tokens"),
        Phase::Decode => ("decode", "autoglm.answer.tokens"),
    };
    let mut attributes = vec![
        KeyValue::new("autoglm.request.id", ended.request.to_string()),
        KeyValue::new("autoglm.choice.index", i64::from(ended.choice)),
        KeyValue::new(tokens, ended.num_tokens as i64),
    ];
    if ended.phase != Phase::Queue {
        attributes.push(KeyValue::new("autoglm.steps", i64::from(ended.num_steps)));
    }
    if let Some(error) = ended.error {
        attributes.push(KeyValue::new("error.type", error));
    }
    Span {
        context: ended.context,
        parent: Some(ended.parent),
        name: name.into(),
        kind: Kind::Internal,
        start: ended.start,
        end,
        attributes,
        error: ended.error.map(Into::into),
        state: String::new(),
    }
}
