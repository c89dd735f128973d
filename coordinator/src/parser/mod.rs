//! What an answer says: reasoning, content and tool calls, told apart while it is written. One
//! grammar for the whole answer, fed with pieces of its text; what it says is the same however the
//! text was cut.

mod arguments;
mod call;
#[cfg(test)]
mod fault_tests;
mod format;
mod held;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde_json::{Map, Value};

use call::{Call, Step};
use held::Held;

pub(crate) use arguments::is_text;
pub(crate) use format::{AnswerFormat, CallFormat};

/// The schemas of the arguments of the tools that may be called, by name.
pub(crate) type Tools = Arc<Map<String, Value>>;

/// Something that an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// What the model thinks before it answers.
    Reasoning(String),
    Content(String),
    /// A call of a tool begins; this is its whole name.
    Call(String),
    /// More of the arguments of the newest call: together they are a JSON object.
    Arguments(String),
}

/// Reads one answer.
#[derive(Clone, Debug)]
pub(crate) struct Parser {
    format: AnswerFormat,
    tools: Tools,
    state: State,
    held: Held,
    // White space beside a tag belongs to the tag: it isn't shown before it is known what follows.
    space: String,
    follows_tag: bool,
}

#[derive(Clone, Debug)]
enum State {
    /// Reasoning may begin here, or a call without a tag.
    Start,
    Reasoning,
    Content,
    /// In a call that interrupts reasoning or content.
    Call(Call, Outside),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outside {
    Reasoning,
    Content,
}

/// What begins reasoning.
pub(crate) const THINK: &str = "<think>";
pub(crate) const END_OF_THINK: &str = "</think>";
const END_OF_CALL: &str = "</tool_call>";

impl Parser {
    /// A parser of answers in `format` to a prompt that ends with `prompt_end`. Without `tools`
    /// nothing is a call, whatever it looks like.
    pub(crate) fn new(format: AnswerFormat, tools: Tools, prompt_end: &str) -> Self {
        let thinks = format.reasons && prompt_end.trim_end().ends_with(THINK);
        let state = if thinks { State::Reasoning } else { State::Start };
        let held = Held::default();
        Self { format, tools, state, held, space: String::new(), follows_tag: thinks }
    }

    /// Takes in more of the answer's text.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Said> {
        self.held.push(text);
        let mut said = Vec::new();
        while self.step(&mut said) {}
        said
    }

    /// The answer has ended: what waited for more.
    pub(crate) fn finish(&mut self) -> Vec<Said> {
        let mut said = Vec::new();
        let rest = self.held.take_all();
        let (outside, rest) = match std::mem::replace(&mut self.state, State::Content) {
            State::Start | State::Content => (Outside::Content, rest),
            State::Reasoning => (Outside::Reasoning, rest),
            State::Call(call, outside) => {
                let unread = call.finish(rest, &self.tools, &mut said);
                if unread.is_empty() {
                    self.space.clear();
                }
                (outside, unread)
            }
        };
        self.say(outside, &rest, &mut said);
        let space = std::mem::take(&mut self.space);
        outside.show(space, &mut said);
        said
    }

    /// Whether what comes next is thought.
    pub(crate) fn is_reasoning(&self) -> bool {
        matches!(self.state, State::Reasoning | State::Call(_, Outside::Reasoning))
    }

    /// What opens a call, where calls may come.
    fn opening(&self) -> Option<&'static str> {
        self.calls()?.opening()
    }

    fn calls(&self) -> Option<CallFormat> {
        self.format.calls.filter(|_| !self.tools.is_empty())
    }

    /// A step forward; whether another may follow.
    fn step(&mut self, said: &mut Vec<Said>) -> bool {
        match self.state {
            State::Start => self.start(said),
            // The prompt may have opened what the model opens once more.
            State::Reasoning if self.follows_tag && self.is_at(THINK) != Some(false) => {
                self.skip(THINK, State::Reasoning)
            }
            // And what the model has closed it may close once more.
            State::Reasoning if self.may_close_again() => self.skip(END_OF_CALL, State::Reasoning),
            State::Content if self.may_close_again() => self.skip(END_OF_CALL, State::Content),
            State::Reasoning => {
                let tags: Vec<_> = [END_OF_THINK].into_iter().chain(self.opening()).collect();
                let (text, tag) = self.held.until(&tags);
                self.say(Outside::Reasoning, &text, said);
                match tag {
                    None => return false,
                    Some(0) => self.pass_tag(State::Start),
                    Some(_) => self.open(Outside::Reasoning),
                }
                true
            }
            State::Content => {
                let Some(opening) = self.opening() else {
                    let text = std::mem::take(&mut self.space) + &self.held.take_all();
                    self.say(Outside::Content, &text, said);
                    Outside::Content.show(std::mem::take(&mut self.space), said);
                    return false;
                };
                let (text, tag) = self.held.until(&[opening]);
                self.say(Outside::Content, &text, said);
                if tag.is_some() {
                    self.open(Outside::Content);
                }
                tag.is_some()
            }
            State::Call(..) => self.call(said),
        }
    }

    fn start(&mut self, said: &mut Vec<Said>) -> bool {
        let text = self.held.as_str().trim_start();
        if self.format.reasons {
            if text.starts_with(THINK) {
                return self.skip(THINK, State::Reasoning);
            }
            // Thoughts may end more often than they begin.
            if self.follows_tag && text.starts_with(END_OF_THINK) {
                return self.skip(END_OF_THINK, State::Start);
            }
            let may_follow = THINK.starts_with(text);
            if may_follow || (self.follows_tag && END_OF_THINK.starts_with(text)) {
                return false;
            }
        }
        if self.calls() == Some(CallFormat::NameThenJson) {
            match call::find_name(text, &self.tools) {
                Ok(Some(name)) => {
                    let rest = text[name.len()..].trim_start().len();
                    let length = self.held.as_str().len() - rest;
                    self.held.take(length);
                    said.push(Said::Call(name));
                    self.pass_tag(State::Call(Call::arguments_only(), Outside::Content));
                    return true;
                }
                Ok(None) => {}
                Err(call::MayFollow) => return false,
            }
        }
        self.state = State::Content;
        true
    }

    /// Whether a tag comes next; none: it may.
    fn is_at(&self, tag: &str) -> Option<bool> {
        let text = self.held.as_str().trim_start();
        if text.starts_with(tag) {
            return Some(true);
        }
        if tag.starts_with(text) { None } else { Some(false) }
    }

    /// Whether a tag that closes a call may come where none is open.
    fn may_close_again(&self) -> bool {
        self.follows_tag && self.opening().is_some() && self.is_at(END_OF_CALL) != Some(false)
    }

    /// Passes a tag over, once all of it is there.
    fn skip(&mut self, tag: &str, state: State) -> bool {
        let is_there = self.is_at(tag) == Some(true);
        if is_there {
            let text = self.held.as_str();
            self.held.take(text.len() - text.trim_start().len() + tag.len());
            self.pass_tag(state);
        }
        is_there
    }

    fn open(&mut self, outside: Outside) {
        let Some(calls) = self.calls() else { return };
        // The tag may turn out to be text: what stands before it isn't forgotten yet.
        self.state = State::Call(Call::new(calls), outside);
    }

    fn pass_tag(&mut self, state: State) {
        self.space.clear();
        self.follows_tag = true;
        self.state = state;
    }

    fn call(&mut self, said: &mut Vec<Said>) -> bool {
        let State::Call(call, outside) = &mut self.state else { return false };
        let outside = *outside;
        // Thoughts quote tags: there only the name of a tool makes a call of one.
        let must_exist = outside == Outside::Reasoning;
        let after = match (outside, self.format.calls) {
            (Outside::Reasoning, _) => State::Reasoning,
            (_, Some(CallFormat::NameThenJson)) => State::Start,
            _ => State::Content,
        };
        match call.step(&mut self.held, &self.tools, must_exist, said) {
            Step::Waits => return false,
            Step::Goes => {}
            Step::Ended => self.pass_tag(after),
            Step::IsText(text) => {
                self.state = after;
                self.say(outside, &text, said);
            }
        }
        true
    }

    fn say(&mut self, outside: Outside, text: &str, said: &mut Vec<Said>) {
        let text = if self.follows_tag { text.trim_start() } else { text };
        if text.is_empty() {
            return;
        }
        self.follows_tag = false;
        let shown = text.trim_end();
        if shown.is_empty() {
            self.space.push_str(text);
            return;
        }
        outside.show(std::mem::take(&mut self.space) + shown, said);
        self.space.push_str(&text[shown.len()..]);
    }
}

impl Outside {
    fn show(self, text: String, said: &mut Vec<Said>) {
        if !text.is_empty() {
            said.push(match self {
                Self::Reasoning => Said::Reasoning(text),
                Self::Content => Said::Content(text),
            });
        }
    }
}
