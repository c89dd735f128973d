//! What is kept of a durable answer: what was asked, and what its client hears, one record after
//! the other. Pure.

use protocol::codec::{self, CodecError};
use protocol::{Logprobs, ModelId, RequestId, SamplingParams, TokenId};

use crate::events::{Heard, More};
use crate::openai::{Answer, ApiError, Parsed, Style};
use crate::request::{Event, FinishReason, Priority, Request, Resumed};

/// Something that the client hears, and its number among all: as long as it is kept, so that it
/// can be heard again.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record(Said);

#[derive(Clone, Debug, PartialEq)]
enum Said {
    Admitted { num_cached_tokens: u32, class: u64 },
    Inexact,
    Prompt(Vec<Logprobs>),
    // Those that came together, and the text of them all.
    Tokens { tokens: Vec<TokenId>, logprobs: Vec<Logprobs>, text: String },
    Finished { reason: FinishReason, text: String },
    Failed(Error),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq)]
struct Error {
    status: u16,
    kind: String,
    code: String,
    message: String,
}

/// Words by which errors are called: those that are kept are of this release, or of none.
const KINDS: [&str; 4] =
    ["server_error", "service_unavailable", "timeout", "invalid_request_error"];
const CODES: [&str; 6] = [
    "no_pipeline",
    "deadline_exceeded",
    "step_failed",
    "off_grammar",
    "cancelled",
    "model_changed",
];

/// How it lies on the disk: its kind, a number, tokens, logprobs and a text.
type Written = (u8, u64, Vec<TokenId>, Vec<Logprobs>, String);

impl Record {
    /// The answer can't be given.
    pub(crate) fn failed(error: &ApiError) -> Self {
        let ApiError { status, kind, code, message, .. } = error;
        let (kind, code) = ((*kind).to_owned(), code.unwrap_or_default().to_owned());
        Self(Said::Failed(Error { status: *status, kind, code, message: message.clone() }))
    }

    /// It has ended with these words.
    pub(crate) fn finished(reason: FinishReason, text: String) -> Self {
        Self(Said::Finished { reason, text })
    }

    /// What the client of a single sequence hears; none of a failure, which isn't its words.
    pub(crate) fn of(heard: &Heard) -> Option<Self> {
        Some(Self(match &heard.event {
            Event::Admitted { num_cached_tokens, class, .. } => {
                Said::Admitted { num_cached_tokens: *num_cached_tokens, class: *class }
            }
            Event::Inexact => Said::Inexact,
            Event::Prompt(logprobs) => Said::Prompt(logprobs.clone()),
            Event::Token { token, logprobs, text, .. } => {
                let logprobs = logprobs.iter().chain(&heard.more.logprobs).cloned().collect();
                let tokens = std::iter::once(token).chain(&heard.more.tokens).copied().collect();
                Said::Tokens { tokens, logprobs, text: text.clone() }
            }
            Event::Finished { reason, text, .. } => {
                Said::Finished { reason: *reason, text: text.clone() }
            }
            Event::Hidden(_) | Event::Failed(_) => return None,
        }))
    }

    pub(crate) fn heard(self) -> Result<Heard, ApiError> {
        let mut more = More::default();
        let event = match self.0 {
            Said::Admitted { num_cached_tokens, class } => {
                Event::Admitted { choice: 0, num_cached_tokens, class }
            }
            Said::Inexact => Event::Inexact,
            Said::Prompt(logprobs) => Event::Prompt(logprobs),
            Said::Tokens { tokens, logprobs, text } => {
                let (mut tokens, mut logprobs) = (tokens.into_iter(), logprobs.into_iter());
                let (token, first) = (tokens.next().unwrap_or_default(), logprobs.next());
                more = More { tokens: tokens.collect(), logprobs: logprobs.collect() };
                Event::Token { choice: 0, token, logprobs: first, text }
            }
            Said::Finished { reason, text } => Event::Finished { choice: 0, reason, text },
            Said::Failed(Error { status, kind, code, message }) => {
                let error = ApiError::internal(message).status(status);
                let kind = KINDS.into_iter().find(|known| *known == kind).unwrap_or(error.kind);
                let code = CODES.into_iter().find(|known| *known == code);
                return Err(ApiError { kind, code, ..error });
            }
        };
        Ok(Heard { number: 0, event, more })
    }

    /// Whether nothing follows it.
    pub(crate) fn ends(&self) -> bool {
        matches!(self.0, Said::Finished { .. } | Said::Failed(_))
    }

    /// Whether `before` makes it no news: a coordinator that goes on with an answer says it again.
    pub(crate) fn is_known(&self, before: &[Self]) -> bool {
        let is_alike = |it: &Self| std::mem::discriminant(&it.0) == std::mem::discriminant(&self.0);
        let is_said_once =
            matches!(self.0, Said::Admitted { .. } | Said::Inexact | Said::Prompt(_));
        is_said_once && before.iter().any(is_alike)
    }

    fn written(self) -> Written {
        let (no_tokens, no_logprobs, no_text) = Default::default();
        match self.0 {
            Said::Admitted { num_cached_tokens, class } => {
                (0, class, vec![TokenId(num_cached_tokens)], no_logprobs, no_text)
            }
            Said::Inexact => (1, 0, no_tokens, no_logprobs, no_text),
            Said::Prompt(logprobs) => (2, 0, no_tokens, logprobs, no_text),
            Said::Tokens { tokens, logprobs, text } => (3, 0, tokens, logprobs, text),
            Said::Finished { reason: FinishReason::Stop, text } => {
                (4, 0, no_tokens, no_logprobs, text)
            }
            Said::Finished { reason: FinishReason::StopString(number), text } => {
                (7, number.into(), no_tokens, no_logprobs, text)
            }
            Said::Finished { reason: FinishReason::Length, text } => {
                (5, 0, no_tokens, no_logprobs, text)
            }
            Said::Failed(Error { status, kind, code, message }) => {
                let text = [kind, code, message].join("\n");
                (6, status.into(), no_tokens, no_logprobs, text)
            }
        }
    }

    fn read((kind, number, tokens, logprobs, text): Written) -> Result<Self, CodecError> {
        Ok(Self(match kind {
            0 => {
                let num_cached_tokens = tokens.first().map_or(0, |it| it.0);
                Said::Admitted { num_cached_tokens, class: number }
            }
            1 => Said::Inexact,
            2 => Said::Prompt(logprobs),
            3 => Said::Tokens { tokens, logprobs, text },
            4 => Said::Finished { reason: FinishReason::Stop, text },
            5 => Said::Finished { reason: FinishReason::Length, text },
            7 => {
                let number = u32::try_from(number).unwrap_or_default();
                Said::Finished { reason: FinishReason::StopString(number), text }
            }
            6 => {
                let mut words = text.splitn(3, '\n').map(str::to_owned);
                let mut word = || words.next().unwrap_or_default();
                let (kind, code, message) = (word(), word(), word());
                let status = u16::try_from(number).unwrap_or(500);
                Said::Failed(Error { status, kind, code, message })
            }
            kind => return Err(CodecError::Malformed(format!("a record of kind {kind}"))),
        }))
    }
}

pub(super) fn write(records: &[Record]) -> Vec<u8> {
    codec::encode(&records.iter().cloned().map(Record::written).collect::<Vec<_>>())
}

/// The records of these bytes.
///
/// # Errors
/// When they are anything else.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<Record>, CodecError> {
    codec::decode::<Vec<Written>>(bytes)?.into_iter().map(Record::read).collect()
}

/// How far an answer has come: its tokens, and where they come from.
pub(super) fn so_far(records: &[Record]) -> Resumed {
    let (mut tokens, mut class) = (Vec::new(), None);
    for Record(said) in records {
        match said {
            Said::Admitted { class: of, .. } => class = Some(*of),
            // Of several; whichever comes next is another.
            Said::Inexact => class = None,
            Said::Tokens { tokens: more, .. } => tokens.extend(more),
            _ => {}
        }
    }
    // Before the first token it may begin anywhere.
    let class = class.filter(|_| !tokens.is_empty());
    Resumed { tokens: tokens.into(), class }
}

/// What was asked: the body as it came, and what was made of it that may be made otherwise at
/// another time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KeptRequest {
    pub style: Style,
    /// The request's body, as it came: it is read again after a restart.
    pub body: Vec<u8>,
    /// The request's name.
    pub id: RequestId,
    /// When it was asked, in seconds since 1970.
    pub created: u64,
    /// What the API said of the pipelines then.
    pub fingerprint: String,
    pub model: ModelId,
    // Templates may show the date, and files of defaults may change.
    prompt: Vec<TokenId>,
    sampling: SamplingParams,
    max_tokens: u32,
    pub tenant: String,
    weight: u32,
    priority: Priority,
    /// When its answer is of no more use, in milliseconds since 1970.
    pub deadline_ms: Option<i64>,
}

/// Endpoints, by their numbers on the disk.
const STYLES: [Style; 5] =
    [Style::Chat, Style::Completion, Style::Messages, Style::Responses, Style::Infill];

type KeptWritten = (
    (u8, Vec<u8>, RequestId, u64),
    (String, ModelId, Vec<TokenId>, SamplingParams, u32),
    (String, u32, u8, Option<i64>),
);

impl KeptRequest {
    /// Of a body of one prompt, and the answer that is begun to it.
    pub(crate) fn new(
        (style, body): (Style, &[u8]),
        answer: &Answer,
        request: &Request,
        deadline_ms: Option<i64>,
    ) -> Self {
        Self {
            style,
            body: body.to_vec(),
            id: request.id,
            created: answer.created(),
            fingerprint: answer.system_fingerprint().to_owned(),
            model: request.model,
            prompt: request.prompt.to_vec(),
            sampling: request.sampling.clone(),
            max_tokens: request.max_tokens,
            tenant: request.tenant.to_string(),
            weight: request.weight,
            priority: request.priority,
            deadline_ms,
        }
    }

    /// The seed that was drawn, or given.
    pub(crate) fn seed(&self) -> u64 {
        self.sampling.seed
    }

    /// The body, parsed again, becomes what it was.
    pub(crate) fn restore(&self, parsed: &mut Parsed) {
        for request in &mut parsed.requests {
            request.id = self.id;
            request.prompt = self.prompt.as_slice().into();
            request.sampling = self.sampling.clone();
            request.max_tokens = self.max_tokens;
            request.tenant = self.tenant.as_str().into();
            (request.weight, request.priority) = (self.weight, self.priority);
        }
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        let Self { style, body, id, created, fingerprint, model, prompt, .. } = self.clone();
        let Self { sampling, max_tokens, tenant, weight, priority, deadline_ms, .. } = self.clone();
        let style = STYLES.iter().position(|it| *it == style).expect("all of them");
        let asked = (style as u8, body, id, created);
        let made = (fingerprint, model, prompt, sampling, max_tokens);
        let written: KeptWritten =
            (asked, made, (tenant, weight, priority.index() as u8, deadline_ms));
        codec::encode(&written)
    }

    /// What was kept as these bytes.
    ///
    /// # Errors
    /// When they are anything else.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, CodecError> {
        let (asked, made, whose) = codec::decode::<KeptWritten>(bytes)?;
        let (style, body, id, created) = asked;
        let (fingerprint, model, prompt, sampling, max_tokens) = made;
        let (tenant, weight, priority, deadline_ms) = whose;
        let style = *STYLES
            .get(usize::from(style))
            .ok_or_else(|| CodecError::Malformed(format!("a style {style}")))?;
        let priority = *Priority::ALL
            .get(usize::from(priority))
            .ok_or_else(|| CodecError::Malformed(format!("a priority {priority}")))?;
        Ok(Self {
            style,
            body,
            id,
            created,
            fingerprint,
            model,
            prompt,
            sampling,
            max_tokens,
            tenant,
            weight,
            priority,
            deadline_ms,
        })
    }
}

#[cfg(test)]
mod tests {
    use protocol::TokenLogprob;

    use super::*;
    use crate::request::RequestError;

    fn logprobs(token: u32) -> Logprobs {
        let chosen = TokenLogprob { token: TokenId(token), logprob: -0.1 };
        Logprobs { chosen, top: vec![chosen] }
    }

    fn heard(event: Event) -> Heard {
        Heard { number: 0, event, more: More::default() }
    }

    fn token(token: u32) -> Heard {
        let logprobs = Some(logprobs(token));
        heard(Event::Token { choice: 0, token: TokenId(token), logprobs, text: "é".into() })
    }

    fn all() -> Vec<Heard> {
        let more = More { tokens: vec![TokenId(2), TokenId(3)], logprobs: vec![logprobs(2)] };
        vec![
            heard(Event::Admitted { choice: 0, num_cached_tokens: 3, class: u64::MAX }),
            heard(Event::Prompt(vec![logprobs(9)])),
            Heard { more, ..token(1) },
            token(4),
            heard(Event::Inexact),
            heard(Event::Finished { choice: 0, reason: FinishReason::Stop, text: "a".into() }),
            heard(Event::Finished { choice: 0, reason: FinishReason::Length, text: "".into() }),
            heard(Event::Finished {
                choice: 0,
                reason: FinishReason::StopString(3),
                text: "".into(),
            }),
        ]
    }

    #[test]
    fn what_was_heard_is_heard_again_bit_for_bit() {
        let mut records: Vec<_> = all().iter().filter_map(Record::of).collect();
        let error = ApiError::unavailable("no\none", "no_pipeline");
        records.push(Record::failed(&error));
        let again = read(&write(&records)).unwrap();
        assert_eq!(again, records);
        let mut again = again.into_iter().map(Record::heard);
        for heard in all() {
            assert_eq!(again.next(), Some(Ok(heard)));
        }
        assert_eq!(again.next(), Some(Err(ApiError { retry_after: None, ..error })));
        let ends: Vec<_> = records.iter().map(Record::ends).collect();
        assert_eq!(ends, [false, false, false, false, false, true, true, true, true]);
        for cut in 0..write(&records).len() {
            assert!(read(&write(&records)[..cut]).is_err(), "{cut} bytes");
        }
        assert!(read(&codec::encode(&vec![(8_u8, 0_u64, (), (), "")])).is_err());
    }

    #[test]
    fn why_there_is_no_answer_has_the_same_name_again() {
        for error in [
            RequestError::NoPipeline { waited_s: 9, cause: "x".into() },
            RequestError::DeadlineExceeded("x"),
            RequestError::StepFailed("x".into()),
            RequestError::OffGrammar("x".into()),
            RequestError::Cancelled,
        ] {
            let error = ApiError { retry_after: None, ..error.into() };
            let mut again = read(&write(&[Record::failed(&error)])).unwrap();
            assert_eq!(again.remove(0).heard(), Err(error));
        }
    }

    #[test]
    fn an_answer_goes_on_after_its_last_token_in_the_class_that_it_came_from() {
        let records: Vec<_> = all().iter().filter_map(Record::of).collect();
        let of = |range: std::ops::Range<usize>| {
            let Resumed { tokens, class } = so_far(&records[range]);
            (tokens.iter().map(|it| it.0).collect::<Vec<_>>(), class)
        };
        assert_eq!(of(0..0), (vec![], None));
        assert_eq!(of(0..2), (vec![], None), "it may begin anew anywhere");
        assert_eq!(of(0..3), (vec![1, 2, 3], Some(u64::MAX)));
        assert_eq!(of(0..5), (vec![1, 2, 3, 4], None), "no class goes on with it exactly");
    }

    #[test]
    fn what_is_said_once_is_not_recorded_twice() {
        let records: Vec<_> = all().iter().filter_map(Record::of).collect();
        let known: Vec<_> = records.iter().map(|it| it.is_known(&records)).collect();
        assert_eq!(known, [true, true, false, false, true, false, false, false]);
        assert!(records.iter().all(|it| !it.is_known(&records[2..4])));
    }
}
