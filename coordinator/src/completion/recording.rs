//! A durable completion: what is heard goes to the disk, and from there to whoever reads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;

use super::{Asked, Completion, Completions, Origin};
use crate::completion::clock::Clock;
use crate::durable::{Durables, KeptRequest, Log, Record};
use crate::events::Heard;
use crate::keys::Access;
use crate::openai::{ApiError, Context, Parsed, Style};
use crate::request::{RequestError, Resumed};

/// What is written at once, at most.
const MAX_TOGETHER: usize = 256;

impl Completions {
    /// What is made of a body that was found legal once.
    ///
    /// # Errors
    /// When it isn't any more: the configuration is another.
    pub(crate) async fn parse_again(
        self: &Arc<Self>,
        kept: &KeptRequest,
    ) -> Result<Parsed, ApiError> {
        let (style, seed) = (kept.style, Some(kept.seed()));
        let parse =
            move |body: &[u8], context: Context<'_>| style.parse(body, Context { seed, ..context });
        let body = (kept.body.clone().into(), style.renders());
        self.parse(&Arc::new(Access::anybody()), body, parse).await
    }

    /// Goes on with an answer that another coordinator began, and that has one sequence.
    pub(crate) fn resume(self: &Arc<Self>, log: Arc<Log>, resumed: Resumed) -> Completion {
        let access = Arc::new(Access::anybody());
        let (client_request, parent, trace_state) = (None, None, String::new());
        let start = Instant::now();
        let origin = Origin { start, is_awaited: false, client_request, parent, trace_state };
        let answer = log.answer(&self.model.name, &self.tokenizer);
        let mut asked = Asked::new(self, &access, Style::Completion, origin);
        let mut parsed = log.parsed().clone();
        parsed.requests.iter_mut().for_each(|it| it.resumed = Some(resumed.clone()));
        asked.ending.parsed(&answer, &mut parsed);
        asked.ending.admitted(&answer);
        let clock = Clock::new(&asked.ending, answer.num_choices());
        // Whoever asked was charged when it did.
        let reserved = access.reserve(&[]).expect("nobody's nothing is no limit's business");
        let events = self.engine.resume(parsed.requests);
        let (completions, ending, log) = (Arc::clone(self), asked.ending, Some(log));
        Completion { completions, answer, events, clock, ending, reserved, log }
    }
}

impl Completion {
    /// Where it is kept, if it is durable.
    pub(crate) fn log(&self) -> Option<&Arc<Log>> {
        self.log.as_ref()
    }

    /// Writes what is heard until the answer ends; its client may come and go. It is given up when
    /// nothing is heard within `patience`, where there is one, and holds `permit` meanwhile.
    pub(crate) async fn record<P>(
        mut self,
        durables: Durables,
        patience: Option<Duration>,
        permit: P,
    ) {
        let Some(log) = self.log.clone() else { return };
        let mut patience = patience;
        loop {
            let heard = match patience.take() {
                None => self.hear().await,
                Some(max) => match tokio::time::timeout(max, self.hear()).await {
                    Ok(heard) => heard,
                    Err(_) => Err(self.tired(max)),
                },
            };
            let (mut records, mut failed) = (Vec::new(), None);
            let mut next = Some(heard);
            while let Some(heard) = next.take() {
                match heard {
                    Ok(heard) => records.extend(self.record_of(heard)),
                    Err(error) => failed = Some(error),
                }
                let is_over = failed.is_some() || records.last().is_some_and(Record::ends);
                if !is_over && records.len() < MAX_TOGETHER {
                    next = self.hear().now_or_never();
                }
            }
            let broken_off = failed.filter(|error| {
                let is_final = !is_passing(error);
                if is_final {
                    records.push(Record::failed(error));
                }
                !is_final
            });
            let has_ended = records.last().is_some_and(Record::ends);
            let written = durables.add(&log, records).await;
            if let Some(cause) = broken_off.or(written.err()) {
                log.break_off(cause);
                break;
            }
            if has_ended {
                break;
            }
        }
        if self.answer.is_complete() {
            self.end();
        }
        drop(permit);
    }

    fn record_of(&mut self, heard: Heard) -> Option<Record> {
        let record = Record::of(&heard);
        // It counts what was said, and knows when all was.
        self.answer.take(heard);
        record
    }

    /// No pipeline has come since the coordinator started again.
    fn tired(&mut self, waited: Duration) -> ApiError {
        let cause = self.completions.engine.status().waiting_for.clone();
        let error = RequestError::NoPipeline { waited_s: waited.as_secs(), cause };
        let error = ApiError::from(error);
        self.ending.failed(&error);
        error
    }
}

/// Whether the answer is only interrupted: this coordinator ends, and the next one goes on.
fn is_passing(error: &ApiError) -> bool {
    matches!(error.code, Some("shutting_down" | "answer_lost"))
}
