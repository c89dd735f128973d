//! Spans of a traced request: the call itself, and in it the operation of the model, named and
//! described as OpenTelemetry's conventions for HTTP and for generative AI say.

use std::time::Instant;

use protocol::{SpanId, TraceContext, TraceId};
use telemetry::{Array, KeyValue, Kind, Span, StringValue, Value};

use super::content::Content;
use super::ending::Facts;
use super::{Completions, Origin};
use crate::openai::Parsed;
use crate::trace::RequestTrace;

/// A traced request: ids from its arrival on, spans when it ends.
pub(super) struct Traced {
    server: TraceContext,
    caller: Option<SpanId>,
    operation: SpanId,
    state: String,
    steps_every: u32,
    request: Vec<KeyValue>,
    /// Prompt and answer, where spans may hold them.
    pub(super) content: Option<Content>,
}

impl Traced {
    /// Decides whether a request is traced: its caller says so, or it is one of the share.
    pub(super) fn begin(state: &Completions, origin: &Origin) -> Option<Box<Self>> {
        if !state.tracer.is_on() || !origin.is_awaited {
            return None;
        }
        let caller = origin.parent;
        let trace = match caller {
            Some(caller) => caller.sampled.then_some(caller.trace),
            None => random().map(TraceId).filter(|id| id.is_of_share(state.traces.sample_ratio)),
        }?;
        let (server, operation) = (random_span()?, random_span()?);
        Some(Box::new(Self {
            server: TraceContext { trace, span: server, sampled: true },
            caller: caller.map(|caller| caller.span),
            operation,
            // Without its parent it means nothing.
            state: caller.map(|_| origin.trace_state.clone()).unwrap_or_default(),
            steps_every: state.traces.steps_every,
            request: Vec::new(),
            content: state.traces.content.then(|| Content::new(state.traces.max_content_bytes)),
        }))
    }

    pub(super) fn id(&self) -> TraceId {
        self.server.trace
    }

    /// Gives each request of a body its place in the trace, and notes what is asked.
    pub(super) fn parsed(&mut self, parsed: &mut Parsed) {
        let operation = self.server.under(self.operation);
        for request in &mut parsed.requests {
            let ids = (random_span(), random_span(), random_span());
            let (Some(queue), Some(prefill), Some(decode)) = ids else { continue };
            let steps_every = self.steps_every;
            let trace = RequestTrace { operation, queue, prefill, decode, steps_every };
            request.trace = Some(Box::new(trace));
        }
        let Some(first) = parsed.requests.first() else { return };
        let sampling = &first.sampling;
        self.request = vec![
            KeyValue::new("gen_ai.request.max_tokens", i64::from(first.max_tokens)),
            KeyValue::new("gen_ai.request.temperature", f64::from(sampling.temperature)),
            KeyValue::new("gen_ai.request.top_p", f64::from(sampling.top_p)),
            KeyValue::new("gen_ai.request.seed", sampling.seed as i64),
            KeyValue::new(
                "gen_ai.request.frequency_penalty",
                f64::from(sampling.frequency_penalty),
            ),
            KeyValue::new("gen_ai.request.presence_penalty", f64::from(sampling.presence_penalty)),
            KeyValue::new("gen_ai.request.stream", parsed.options.stream),
            KeyValue::new("gen_ai.output.type", "text"),
        ];
        if sampling.top_k > 0 {
            self.request.push(KeyValue::new("gen_ai.request.top_k", f64::from(sampling.top_k)));
        }
        let num_choices = parsed.requests.len() as i64 * i64::from(first.num_choices);
        if num_choices > 1 {
            self.request.push(KeyValue::new("gen_ai.request.choice.count", num_choices));
        }
    }

    /// Where the client finds its request: headers of W3C's trace context.
    pub(super) fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![("traceparent", self.server.to_string())];
        if !self.state.is_empty() {
            headers.push(("tracestate", self.state.clone()));
        }
        headers
    }

    /// Writes the spans of a request that has ended.
    pub(super) fn record(self, state: &Completions, facts: &Facts) {
        let end = Instant::now();
        let error = facts.error.map(|error| KeyValue::new("error.type", error));
        let failure = facts.error.filter(|_| facts.is_failure());
        state.tracer.record(Span {
            context: self.server,
            parent: self.caller,
            name: format!("POST {}", facts.route).into(),
            kind: Kind::Server,
            start: facts.start,
            end,
            attributes: [
                KeyValue::new("http.request.method", "POST"),
                KeyValue::new("http.route", facts.route),
                KeyValue::new("url.path", facts.route),
                KeyValue::new("url.scheme", "http"),
                KeyValue::new("http.response.status_code", i64::from(facts.status_sent())),
            ]
            .into_iter()
            .chain(facts.client_request.as_ref().map(|id| {
                // Headers may repeat, so their attributes are lists.
                let ids = vec![StringValue::from(id.clone())];
                KeyValue::new("http.request.header.x-request-id", Value::Array(Array::String(ids)))
            }))
            .chain(error.clone())
            .collect(),
            error: failure.map(Into::into),
            state: self.state.clone(),
        });
        // A body that could not be read asks for no operation.
        let Some(id) = &facts.id else { return };
        let model = &state.model.name;
        let mut attributes = vec![
            KeyValue::new("gen_ai.operation.name", facts.operation),
            KeyValue::new("gen_ai.provider.name", "autoglm"),
            KeyValue::new("gen_ai.request.model", model.clone()),
            KeyValue::new("gen_ai.response.id", id.clone()),
            KeyValue::new("gen_ai.response.model", model.clone()),
            KeyValue::new("gen_ai.usage.input_tokens", facts.num_prompt as i64),
            KeyValue::new("gen_ai.usage.output_tokens", facts.num_generated as i64),
        ];
        attributes.extend(self.request);
        if !facts.finish_reasons.is_empty() {
            let reasons = facts.finish_reasons.iter().map(|reason| StringValue::from(*reason));
            let reasons = Value::Array(Array::String(reasons.collect()));
            attributes.push(KeyValue::new("gen_ai.response.finish_reasons", reasons));
        }
        if let Some(content) = self.content {
            attributes.extend(content.attributes(&facts.finish_reasons));
        }
        attributes.extend(error);
        state.tracer.record(Span {
            context: self.server.under(self.operation),
            parent: Some(self.server.span),
            name: format!("{} {model}", facts.operation).into(),
            kind: Kind::Internal,
            start: facts.start,
            end,
            attributes,
            error: facts.error.map(Into::into),
            state: self.state,
        });
    }
}

fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).ok()?;
    bytes.iter().any(|byte| *byte != 0).then_some(bytes)
}

fn random_span() -> Option<SpanId> {
    random().map(|bytes| SpanId(u64::from_be_bytes(bytes)))
}
