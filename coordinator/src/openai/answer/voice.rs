//! The forms in which an answer is told that aren't OpenAI's completions.

use protocol::TokenId;
use serde_json::{Map, Value};

use super::spoken::Spoken;
use super::{Answer, Style};
use crate::openai::ApiError;
use crate::request::FinishReason;
use crate::{infill, messages, responses};

/// A server-sent event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Its name, where the API has names.
    pub event: Option<&'static str>,
    pub data: String,
}

impl From<String> for Chunk {
    fn from(data: String) -> Self {
        Self { event: None, data }
    }
}

/// What a choice is told of its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Described<'a> {
    pub(crate) id: &'a str,
    /// As unique as the id, for the choice.
    pub(crate) number: &'a str,
    pub(crate) model: &'a str,
    pub(crate) created: u64,
    /// The stop string that has ended the choice.
    pub(crate) stop: Option<&'a str>,
    pub(crate) counts: Counts,
    /// What a response repeats of its request.
    pub(crate) repeated: &'a Map<String, Value>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) num_prompt: usize,
    pub(crate) num_cached: usize,
    pub(crate) num_generated: usize,
    pub(crate) num_reasoning: usize,
}

impl Described<'_> {
    /// What call number `index` of the choice is called.
    pub(crate) fn call(&self, index: usize) -> String {
        format!("call_{}{index:02x}", self.number)
    }
}

/// Tells an answer of one choice in events by name.
#[derive(Clone, Debug)]
pub(super) enum Voice {
    Messages(messages::Stream),
    Responses(responses::Stream),
    Infill(infill::Stream),
}

impl Voice {
    /// That of a style, where it isn't a completion's.
    pub(super) fn of(style: Style) -> Option<Self> {
        match style {
            Style::Chat | Style::Completion | Style::Embeddings => None,
            Style::Messages => Some(Self::Messages(messages::Stream::default())),
            Style::Responses => Some(Self::Responses(responses::Stream::default())),
            Style::Infill => Some(Self::Infill(infill::Stream)),
        }
    }

    pub(super) fn begin(&mut self, answer: &Described<'_>) -> Vec<Chunk> {
        match self {
            Self::Messages(stream) => stream.begin(answer),
            Self::Responses(stream) => stream.begin(answer),
            Self::Infill(_) => Vec::new(),
        }
    }

    /// What is said next, and why it ends, if it does.
    pub(super) fn say(
        &mut self,
        spoken: &Spoken,
        reason: Option<&str>,
        answer: &Described<'_>,
    ) -> Vec<Chunk> {
        let (mut said, ends) = match self {
            Self::Messages(stream) => {
                (stream.say(spoken, answer), reason.map(|reason| stream.end(reason, answer)))
            }
            Self::Responses(stream) => {
                (stream.say(spoken, answer), reason.map(|reason| stream.end(reason, answer)))
            }
            Self::Infill(stream) => {
                (stream.say(spoken, answer), reason.map(|reason| stream.end(reason, answer)))
            }
        };
        said.extend(ends.into_iter().flatten());
        said
    }

    pub(super) fn fail(&mut self, error: &ApiError, answer: &Described<'_>) -> Vec<Chunk> {
        match self {
            Self::Messages(_) => {
                let data = messages::error(error).to_string();
                vec![Chunk { event: Some("error"), data }]
            }
            Self::Responses(stream) => stream.fail(error, answer),
            Self::Infill(_) => vec![error.body().to_string().into()],
        }
    }

    pub(super) fn whole(&self, spoken: &Spoken, reason: &str, answer: &Described<'_>) -> Value {
        match self {
            Self::Messages(_) => messages::message(spoken, reason, answer),
            Self::Responses(_) => responses::response(spoken, reason, answer),
            Self::Infill(_) => infill::whole(spoken, reason, answer),
        }
    }
}

impl Answer {
    /// What the parts of a choice are named after: as unique as the answer's id.
    pub(super) fn part_number(&self, index: usize) -> String {
        format!("{:016x}{index:02x}", self.number)
    }

    pub(super) fn describe<T>(&self, index: usize, tell: impl FnOnce(&Described<'_>) -> T) -> T {
        tell(&self.described(index, &self.part_number(index)))
    }

    /// The stop string that an answer ends with, where its `last` token is one, too.
    pub(super) fn stop_of(&self, reason: FinishReason, last: TokenId) -> Option<u32> {
        let is_last = |stop: &String| self.tokenizer.special(stop) == Some(last);
        match reason {
            FinishReason::StopString(number) => Some(number),
            FinishReason::Stop => {
                let found = self.options.stops.iter().position(is_last)?;
                u32::try_from(found).ok()
            }
            FinishReason::Length => None,
        }
    }

    pub(super) fn described<'a>(&'a self, index: usize, number: &'a str) -> Described<'a> {
        let stopped = self.choices.get(index).and_then(|choice| choice.stopped);
        Described {
            id: &self.id,
            number,
            model: &self.model,
            created: self.created,
            stop: stopped.and_then(|it| self.options.stops.get(it as usize)).map(String::as_str),
            counts: Counts {
                num_prompt: self.num_prompt_tokens(),
                num_cached: self.num_cached_tokens,
                num_generated: self.num_generated_tokens(),
                num_reasoning: self.num_reasoning_tokens,
            },
            repeated: &self.options.repeated,
        }
    }
}
