//! The forms in which an answer is told that aren't OpenAI's completions.

use serde_json::{Map, Value};

use super::Style;
use super::spoken::Spoken;
use crate::openai::ApiError;
use crate::{messages, responses};

/// A server-sent event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its name, where the API has names.
    pub event: Option<&'static str>,
    /// What it says.
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
    pub(crate) counts: Counts,
    /// What a response repeats of its request.
    pub(crate) repeated: &'a Map<String, Value>,
}

/// Tokens so far.
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
}

impl Voice {
    /// That of a style, where it isn't a completion's.
    pub(super) fn of(style: Style) -> Option<Self> {
        match style {
            Style::Chat | Style::Completion => None,
            Style::Messages => Some(Self::Messages(messages::Stream::default())),
            Style::Responses => Some(Self::Responses(responses::Stream::default())),
        }
    }

    pub(super) fn begin(&mut self, answer: &Described<'_>) -> Vec<Chunk> {
        match self {
            Self::Messages(stream) => stream.begin(answer),
            Self::Responses(stream) => stream.begin(answer),
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
        }
    }

    /// The whole answer.
    pub(super) fn whole(&self, spoken: &Spoken, reason: &str, answer: &Described<'_>) -> Value {
        match self {
            Self::Messages(_) => messages::message(spoken, reason, answer),
            Self::Responses(_) => responses::response(spoken, reason, answer),
        }
    }
}
