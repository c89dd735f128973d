//! A completion, whoever asks for it: submit, events, answer, record. No HTTP here: a request of
//! the API and a line of a batch job go the same way.

mod clock;
mod content;
mod ending;
mod parsing;
mod recording;
mod traced;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use protocol::TraceContext;
use protocol::config::{Http, Traces};
use telemetry::Tracer;

use self::clock::Clock;
use self::ending::Ending;
use self::parsing::MAX_QUICK_BYTES;
pub(crate) use self::parsing::Parsing;
use crate::chat_template::ChatTemplate;
use crate::durable::{Durables, KeptRequest, Log, now_ms};
use crate::engine::Engine;
use crate::events::{Events, Heard};
use crate::keys::{Access, Reserved};
use crate::metrics::{Metrics, Tokens};
use crate::openai::{
    Answer, ApiError, Chunk, Context, Parsed, ServedModel, Style, may_be_asked, parse_chat,
    parse_completion, parse_embeddings, parse_infill, parse_messages, parse_responses,
};
use crate::request::{Event, Priority};
use crate::tokenizer::Tokenizer;

/// What every completion needs.
#[derive(Debug)]
pub(crate) struct Completions {
    /// Where requests go.
    pub engine: Engine,
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Messages to text, where the model has a template.
    pub chat_template: Option<ChatTemplate>,
    pub model: ServedModel,
    pub config: Http,
    /// Threads and bytes for turning bodies into tokens.
    pub parsing: Parsing,
    pub metrics: Arc<Metrics>,
    /// Where spans go.
    pub tracer: Tracer,
    /// Which requests are traced, and how.
    pub traces: Traces,
    /// Whether each completion that somebody waits for has a line in the log.
    pub log_requests: bool,
    /// Answers that outlive the coordinator.
    pub durables: Durables,
}

#[derive(Debug)]
pub(crate) struct Origin {
    pub start: Instant,
    /// Whether somebody waits for it: then its times are measured, its end is logged, and it may be
    /// traced. A line of a batch job waits for hours, and nobody with it.
    pub is_awaited: bool,
    pub client_request: Option<String>,
    /// Its caller's place in a trace.
    pub parent: Option<TraceContext>,
    /// The caller's `tracestate`.
    pub trace_state: String,
}

/// What whoever asks knows better than the body.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    /// When the answer is of no more use: in the place of the body's.
    pub deadline: Option<Instant>,
    /// Who goes first: in the place of the body's.
    pub priority: Option<Priority>,
    /// The seed of a body without one; otherwise it is drawn.
    pub seed: Option<u64>,
}

impl Completions {
    /// Parses a body, where that holds nobody up; `renders` says whether a template may be rendered
    /// for it.
    ///
    /// # Errors
    /// Those of `parse`.
    pub(crate) async fn parse<T: Send + 'static>(
        self: &Arc<Self>,
        access: &Arc<Access>,
        (body, renders): (Bytes, bool),
        parse: impl FnOnce(&[u8], Context<'_>) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (this, access) = (Arc::clone(self), Arc::clone(access));
        let size = (body.len(), renders);
        self.parsing.run(size, move || parse(&body, this.context(&access))).await
    }

    fn context<'a>(&'a self, access: &'a Access) -> Context<'a> {
        Context {
            model: &self.model,
            tokenizer: &self.tokenizer,
            chat_template: self.chat_template.as_ref(),
            config: &self.config,
            access,
            seed: None,
        }
    }
}

/// A completion that is asked for: counted, logged and traced once, whatever becomes of it.
/// Dropped without another word, its client has left.
pub(crate) struct Asked {
    completions: Arc<Completions>,
    access: Arc<Access>,
    style: Style,
    ending: Ending,
}

impl Asked {
    /// Nothing is known of it but where it comes from.
    pub(crate) fn new(
        completions: &Arc<Completions>,
        access: &Arc<Access>,
        style: Style,
        origin: Origin,
    ) -> Self {
        let (completions, access) = (Arc::clone(completions), Arc::clone(access));
        let ending = Ending::new(&completions, style, &access, origin);
        Self { completions, access, style, ending }
    }

    /// Where its client finds it: headers of W3C's trace context.
    pub(crate) fn trace_headers(&self) -> Vec<(&'static str, String)> {
        self.ending.traced.as_ref().map(|traced| traced.headers()).unwrap_or_default()
    }

    /// It isn't answered, for this reason.
    pub(crate) fn refuse(mut self, error: ApiError) -> ApiError {
        self.ending.failed(&error);
        error
    }

    /// Parses the body and hands its requests to the scheduler.
    ///
    /// # Errors
    /// When the body isn't legal, its key doesn't allow it now, or there is no place for it.
    pub(crate) async fn submit(
        mut self,
        body: Bytes,
        terms: Terms,
    ) -> Result<Completion, ApiError> {
        match self.admit(body, terms).await {
            Ok((answer, events, reserved, log)) => {
                let Self { completions, mut ending, .. } = self;
                if answer.streams() {
                    ending.streams();
                }
                ending.admitted(&answer);
                let clock = Clock::new(&ending, answer.num_choices());
                Ok(Completion { completions, answer, events, clock, ending, reserved, log })
            }
            Err(error) => Err(self.refuse(error)),
        }
    }

    async fn admit(
        &mut self,
        body: Bytes,
        terms: Terms,
    ) -> Result<(Answer, Events, Reserved, Option<Arc<Log>>), ApiError> {
        let (completions, style) = (&self.completions, self.style);
        let mut content = self.ending.traced.as_mut().and_then(|traced| traced.content.take());
        let parse = move |body: &[u8], context: Context<'_>| {
            let context = Context { seed: terms.seed, ..context };
            let parsed = style.parse(body, context)?;
            if let Some(content) = &mut content {
                content.asked(body);
            }
            Ok((parsed, content))
        };
        let renders = style.renders() || (body.len() <= MAX_QUICK_BYTES && may_be_asked(&body));
        let given = (body.clone(), renders);
        let (mut parsed, content) = completions.parse(&self.access, given, parse).await?;
        if let Some(traced) = &mut self.ending.traced {
            traced.content = content;
        }
        for request in &mut parsed.requests {
            request.deadline = terms.deadline.or(request.deadline);
            request.priority = terms.priority.unwrap_or(request.priority);
        }
        let answer = describe(completions, style, &parsed);
        self.ending.parsed(&answer, &mut parsed);
        let reserved = self.access.reserve(&parsed.requests).map_err(|quota| {
            completions.metrics.refused(quota.reason());
            ApiError::from(quota)
        })?;
        let log = match parsed.requests.as_slice() {
            [request] if parsed.options.durable => {
                let left = request.deadline.map(|it| it.saturating_duration_since(Instant::now()));
                let deadline_ms = left.map(|left| now_ms() + left.as_millis() as i64);
                let kept = KeptRequest::new((style, &body), &answer, request, deadline_ms);
                Some(completions.durables.begin(kept, parsed.clone()).await?)
            }
            _ => None,
        };
        match completions.engine.submit(parsed.requests).await {
            Ok(events) => Ok((answer, events, reserved, log)),
            Err(cause) => {
                if let Some(log) = log {
                    completions.durables.forget(log.id()).await;
                }
                Err(cause.into())
            }
        }
    }
}

impl Style {
    /// What a body of this endpoint asks for.
    fn parse(self, body: &[u8], context: Context<'_>) -> Result<Parsed, ApiError> {
        match self {
            Self::Chat => parse_chat(body, context),
            Self::Completion => parse_completion(body, context),
            Self::Messages => parse_messages(body, context),
            Self::Responses => parse_responses(body, context),
            Self::Infill => parse_infill(body, context),
            Self::Embeddings => parse_embeddings(body, context),
        }
    }
}

fn describe(completions: &Completions, style: Style, parsed: &Parsed) -> Answer {
    let number = parsed.requests.first().map_or(0, |request| request.id.0);
    let fingerprint = completions.engine.status().system_fingerprint.clone();
    let model = completions.model.name.clone();
    Answer::new(style, number, model, fingerprint, parsed, Arc::clone(&completions.tokenizer))
}

/// A completion that is computed. Dropped before its end, what is left of it is cancelled.
pub(crate) struct Completion {
    completions: Arc<Completions>,
    answer: Answer,
    events: Events,
    clock: Clock,
    ending: Ending,
    reserved: Reserved,
    // Where it is kept, if it is durable.
    log: Option<Arc<Log>>,
}

impl Completion {
    /// What its stream says before the first token.
    pub(crate) fn opening(&mut self) -> Vec<Chunk> {
        self.answer.opening()
    }

    /// What its stream says in place of the rest.
    pub(crate) fn failed(&mut self, error: &ApiError) -> Vec<Chunk> {
        self.answer.failed(error)
    }

    /// As far as it is known.
    pub(crate) fn answer(&self) -> &Answer {
        &self.answer
    }

    /// Takes in the next event: the chunks that it makes of a stream. `None` once every choice has
    /// ended. May be dropped at any await.
    ///
    /// # Errors
    /// When there is no answer.
    pub(crate) async fn advance(&mut self) -> Result<Option<Vec<Chunk>>, ApiError> {
        if self.answer.is_complete() {
            self.end();
            return Ok(None);
        }
        self.hear().await.map(|heard| Some(self.answer.take(heard)))
    }

    /// The next event. May be dropped while it waits.
    async fn hear(&mut self) -> Result<Heard, ApiError> {
        let failed = match self.events.next().await {
            Some(Heard { event: Event::Failed(cause), .. }) => ApiError::from(cause),
            Some(heard) => {
                match heard.event {
                    Event::Admitted { .. } => self.reserved.prompt(heard.number),
                    Event::Token { .. } => self.reserved.tokens(heard.num_tokens()),
                    _ => {}
                }
                if let Event::Token { choice, .. } | Event::Finished { choice, .. } = heard.event {
                    let choice = self.answer.index(heard.number, choice);
                    let now = Instant::now();
                    self.clock.tokens(choice, heard.num_tokens(), now, &self.completions.metrics);
                    self.ending.heard(choice, &heard, now);
                }
                return Ok(heard);
            }
            // Whoever computes has gone without a word.
            None => ApiError::internal("the answer ended unexpectedly; send the request again")
                .code("answer_lost"),
        };
        self.ending.failed(&failed);
        Err(failed)
    }

    /// The whole answer.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) async fn whole(mut self) -> Result<Answer, ApiError> {
        while self.advance().await?.is_some() {}
        Ok(self.answer)
    }

    fn end(&mut self) {
        self.ending.answered();
        let tokens = Tokens {
            num_prompt: self.answer.num_prompt_tokens(),
            num_generated: self.answer.num_generated_tokens(),
        };
        self.clock.ended(tokens, &self.completions.metrics);
    }
}

#[cfg(test)]
mod tests;
