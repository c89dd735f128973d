//! The end of a completion, whichever way it comes: counted, logged and traced once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::info;

use super::traced::Traced;
use super::{Completions, Origin};
use crate::events::Heard;
use crate::keys::Access;
use crate::metrics::Tokens;
use crate::openai::{Answer, ApiError, Parsed, Style};
use crate::request::Event;

/// nginx's code for a client that left before its answer; nobody is told it.
const CLIENT_LEFT: u16 = 499;

/// What is known of a completion.
pub(super) struct Facts {
    pub(super) start: Instant,
    pub(super) route: &'static str,
    /// `gen_ai.operation.name`
    pub(super) operation: &'static str,
    /// The id that clients see, once the body was found legal.
    pub(super) id: Option<String>,
    pub(super) client_request: Option<String>,
    /// The name of the API key, where there is one.
    key: Option<String>,
    pub(super) code: u16,
    /// `error.type`, unless it was answered.
    pub(super) error: Option<&'static str>,
    /// Whether the response has begun, with status 200.
    pub(super) is_stream: bool,
    pub(super) num_prompt: usize,
    pub(super) num_generated: usize,
    /// By choice, as they end.
    pub(super) finish_reasons: Vec<&'static str>,
    /// Whether somebody waits for it.
    is_awaited: bool,
    /// Whether it was computed at all.
    was_admitted: bool,
    /// Choices that are computed.
    num_open: usize,
    first_token: Option<Duration>,
}

impl Facts {
    /// Whether it is the server's fault that there is no answer.
    pub(super) fn is_failure(&self) -> bool {
        self.code >= 500
    }

    /// The status of the response's head.
    pub(super) fn status_sent(&self) -> u16 {
        if self.is_stream { 200 } else { self.code }
    }
}

/// Dropped when the completion ends; without another word, its client has left.
pub(super) struct Ending {
    state: Arc<Completions>,
    facts: Facts,
    pub(super) traced: Option<Box<Traced>>,
}

impl Ending {
    pub(super) fn new(
        state: &Arc<Completions>,
        style: Style,
        access: &Access,
        origin: Origin,
    ) -> Self {
        let (route, operation) = match style {
            Style::Chat => ("/v1/chat/completions", "chat"),
            Style::Completion => ("/v1/completions", "text_completion"),
            Style::Messages => ("/v1/messages", "chat"),
            Style::Responses => ("/v1/responses", "chat"),
            Style::Infill => ("/infill", "text_completion"),
            Style::Embeddings => ("/v1/embeddings", "embeddings"),
        };
        let traced = Traced::begin(state, &origin);
        let facts = Facts {
            start: origin.start,
            route,
            operation,
            id: None,
            client_request: origin.client_request,
            key: access.name.clone(),
            code: CLIENT_LEFT,
            error: Some("cancelled"),
            is_stream: false,
            num_prompt: 0,
            num_generated: 0,
            finish_reasons: Vec::new(),
            is_awaited: origin.is_awaited,
            was_admitted: false,
            num_open: 0,
            first_token: None,
        };
        Self { state: Arc::clone(state), facts, traced }
    }

    /// When it began, and whether somebody has waited since.
    pub(super) fn since(&self) -> (Instant, bool) {
        (self.facts.start, self.facts.is_awaited)
    }

    /// The body is legal.
    pub(super) fn parsed(&mut self, answer: &Answer, parsed: &mut Parsed) {
        self.facts.id = Some(answer.id().to_owned());
        self.facts.num_prompt = answer.num_prompt_tokens();
        if let Some(traced) = &mut self.traced {
            traced.parsed(parsed);
        }
    }

    /// All its choices will be computed.
    pub(super) fn admitted(&mut self, answer: &Answer) {
        self.facts.was_admitted = true;
        self.facts.num_open = answer.num_choices();
    }

    /// The response begins before the answer ends.
    pub(super) fn streams(&mut self) {
        self.facts.is_stream = true;
    }

    /// Choice number `choice` of all has gone on.
    pub(super) fn heard(&mut self, choice: usize, heard: &Heard, now: Instant) {
        let facts = &mut self.facts;
        match &heard.event {
            Event::Token { .. } => {
                facts.num_generated += heard.num_tokens();
                facts.first_token.get_or_insert(now - facts.start);
            }
            Event::Finished { reason, .. } => {
                if facts.finish_reasons.len() <= choice {
                    facts.finish_reasons.resize(choice + 1, "");
                }
                facts.finish_reasons[choice] = reason.name();
                facts.num_open = facts.num_open.saturating_sub(1);
                self.state.metrics.finished(reason.name(), 1);
            }
            Event::Admitted { .. }
            | Event::Inexact
            | Event::Hidden(_)
            | Event::Prompt(_)
            | Event::Failed(_) => {}
        }
        if let Some(content) = self.traced.as_mut().and_then(|traced| traced.content.as_mut()) {
            content.heard(choice, &heard.event);
        }
    }

    pub(super) fn answered(&mut self) {
        (self.facts.code, self.facts.error) = (200, None);
    }

    pub(super) fn failed(&mut self, error: &ApiError) {
        let kind = error.code.unwrap_or(error.kind);
        (self.facts.code, self.facts.error) = (error.status, Some(kind));
        if self.facts.is_awaited {
            self.state.metrics.failed(kind);
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let Self { state, facts, traced } = self;
        if facts.is_awaited {
            state.metrics.ended(facts.code);
        }
        if facts.was_admitted {
            let (num_prompt, num_generated) = (facts.num_prompt, facts.num_generated);
            state.metrics.computed(Tokens { num_prompt, num_generated });
        }
        if facts.num_open > 0 {
            let reason = if facts.code == CLIENT_LEFT { "abort" } else { "error" };
            state.metrics.finished(reason, facts.num_open);
        }
        if state.log_requests && facts.is_awaited {
            let millis = |duration: Duration| duration.as_micros() as f64 / 1e3;
            info!(
                request = facts.id,
                client_request = facts.client_request,
                key = facts.key,
                trace_id = traced.as_ref().map(|traced| tracing::field::display(traced.id())),
                route = facts.route,
                model = state.model.name,
                status = facts.code,
                error = facts.error,
                num_prompt_tokens = facts.num_prompt,
                num_tokens = facts.num_generated,
                first_token_ms = facts.first_token.map(millis),
                duration_ms = millis(facts.start.elapsed()),
                "request ended"
            );
        }
        if let Some(traced) = traced.take() {
            traced.record(state, facts);
        }
    }
}
