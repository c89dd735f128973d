//! What a piece of a choice says, as OpenAI's messages have it.

use super::super::body::{CallBody, FunctionBody, Message};
use super::super::tools::Reading;
use super::Described;
use crate::parser::Said;

#[derive(Clone, Debug)]
pub(super) struct Reader {
    reading: Reading,
    num_calls: usize,
}

/// What was read: each part in the order in which it was said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spoken {
    pub(crate) reasoning: String,
    pub(crate) content: String,
    pub(crate) calls: Vec<SpokenCall>,
}

/// A call, or a part of it.
#[derive(Clone, Debug)]
pub(crate) struct SpokenCall {
    pub(crate) index: usize,
    /// Of the piece in which the call begins.
    pub(crate) name: Option<String>,
    pub(crate) arguments: String,
}

impl Reader {
    pub(super) fn new(reading: Reading) -> Self {
        Self { reading, num_calls: 0 }
    }

    /// Reads more of the text, the last of it where the choice has ended.
    pub(super) fn read(&mut self, text: &str, ended: bool) -> Spoken {
        let mut said = self.reading.parser.push(text);
        if ended {
            said.extend(self.reading.parser.finish());
        }
        let mut spoken = Spoken::default();
        for one in said {
            // Who wants one call gets the first.
            let is_another = self.num_calls > 1 && !self.reading.parallel;
            match one {
                Said::Reasoning(_) if self.reading.hides_reasoning => {}
                Said::Reasoning(text) => spoken.reasoning += &text,
                Said::Content(text) => spoken.content += &text,
                Said::Call(name) => {
                    self.num_calls += 1;
                    if self.num_calls == 1 || self.reading.parallel {
                        let index = self.num_calls - 1;
                        let arguments = String::new();
                        spoken.calls.push(SpokenCall { index, name: Some(name), arguments });
                    }
                }
                Said::Arguments(_) if is_another => {}
                Said::Arguments(text) => spoken.argue(self.num_calls.saturating_sub(1), &text),
            }
        }
        spoken
    }

    /// Whether what comes next is thought.
    pub(super) fn is_reasoning(&self) -> bool {
        self.reading.parser.is_reasoning()
    }

    /// Whether a tool was called.
    pub(super) fn has_called(&self) -> bool {
        self.num_calls > 0
    }
}

impl Spoken {
    fn argue(&mut self, index: usize, text: &str) {
        match self.calls.last_mut() {
            Some(call) => call.arguments += text,
            None => {
                let arguments = text.to_owned();
                self.calls.push(SpokenCall { index, name: None, arguments });
            }
        }
    }

    /// Whether it says nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.reasoning.is_empty() && self.content.is_empty() && self.calls.is_empty()
    }

    /// Adds what was said next.
    pub(super) fn extend(&mut self, next: Self) {
        self.reasoning += &next.reasoning;
        self.content += &next.content;
        for call in next.calls {
            match call.name {
                Some(_) => self.calls.push(call),
                None => self.argue(call.index, &call.arguments),
            }
        }
    }

    /// A part of a message, for a stream.
    pub(super) fn delta(&self, answer: &Described<'_>) -> Message<'_> {
        let shown = |text: &String| !text.is_empty();
        Message {
            content: Some(&self.content).filter(|it| shown(it)).map(|it| Some(it.as_str())),
            reasoning_content: Some(&self.reasoning).filter(|it| shown(it)).map(String::as_str),
            tool_calls: self.calls(answer, true),
            ..Message::default()
        }
    }

    pub(super) fn message(&self, answer: &Described<'_>) -> Message<'_> {
        let calls = self.calls(answer, false);
        // Clients look for null where there is nothing but calls.
        let has_content = calls.is_none() || !self.content.is_empty();
        Message {
            role: Some("assistant"),
            content: Some(has_content.then_some(self.content.as_str())),
            reasoning_content: Some(self.reasoning.as_str()).filter(|it| !it.is_empty()),
            tool_calls: calls,
            refusal: Some(()),
        }
    }

    fn calls(&self, answer: &Described<'_>, in_stream: bool) -> Option<Vec<CallBody<'_>>> {
        let calls = self.calls.iter().map(|call| {
            let begins = call.name.is_some();
            CallBody {
                index: in_stream.then_some(call.index),
                id: begins.then(|| answer.call(call.index)),
                kind: begins.then_some("function"),
                function: FunctionBody { name: call.name.as_deref(), arguments: &call.arguments },
            }
        });
        (!self.calls.is_empty()).then(|| calls.collect())
    }
}
