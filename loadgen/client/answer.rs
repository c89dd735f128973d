//! An answer as it arrives: when each piece of its text came, and what the server counted.

use std::time::Duration;

use serde_json::Value;

use super::error_message;
use super::failure::{Failure, FailureKind};

/// A whole answer and its times, each since the request was sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// When each piece of text arrived. Pieces that came in one packet share its time.
    pub pieces: Pieces,
    /// The end of the stream, `[DONE]`, or of the body.
    pub end: Duration,
    /// Tokens of the prompt, if the server told.
    pub num_prompt_tokens: Option<u64>,
    /// Tokens of the answer, if the server told.
    pub num_completion_tokens: Option<u64>,
}

/// Ascending times in microseconds, up to an hour: thousands of streams at once have one each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pieces(Vec<u32>);

impl Pieces {
    /// Events with text: not tokens, of which one may hold several.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their times.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Duration> + ExactSizeIterator {
        self.0.iter().map(|&time| Duration::from_micros(time.into()))
    }

    pub(super) fn push(&mut self, time: Duration) {
        self.0.push(u32::try_from(time.as_micros()).unwrap_or(u32::MAX));
    }
}

impl FromIterator<Duration> for Pieces {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        let mut pieces = Self::default();
        times.into_iter().for_each(|time| pieces.push(time));
        pieces
    }
}

impl Answer {
    /// Tokens of the answer: as the server counts them, else the pieces that it sent.
    pub fn num_tokens(&self) -> u64 {
        self.num_completion_tokens.unwrap_or(self.pieces.len() as u64)
    }

    /// Time to the first token; none when the answer has no text.
    pub fn first_token(&self) -> Option<Duration> {
        self.pieces.iter().next()
    }

    /// The times from one piece of text to the next.
    pub fn gaps(&self) -> impl Iterator<Item = Duration> {
        let later = self.pieces.iter().skip(1);
        self.pieces.iter().zip(later).map(|(one, next)| next.saturating_sub(one))
    }

    /// Time of each token after the first, on the average of this answer.
    pub fn time_per_token(&self) -> Option<Duration> {
        let (first, last) = (self.pieces.iter().next()?, self.pieces.iter().next_back()?);
        let after_first = self.num_tokens().checked_sub(1).filter(|&num| num > 0)?;
        Some(last.saturating_sub(first).div_f64(after_first as f64))
    }

    /// Reads an event: counts are kept, the pieces of text are returned.
    pub(super) fn take(&mut self, event: &Value) -> Result<Vec<String>, Failure> {
        if let Some(message) = error_message(event) {
            return Err(Failure::new(FailureKind::ErrorEvent, message));
        }
        if let Some(usage) = event.get("usage").filter(|usage| usage.is_object()) {
            let count = |name: &str| usage.get(name).and_then(Value::as_u64);
            self.num_prompt_tokens = count("prompt_tokens").or(self.num_prompt_tokens);
            self.num_completion_tokens = count("completion_tokens").or(self.num_completion_tokens);
        }
        let choices = event.get("choices").and_then(Value::as_array);
        let texts = choices.into_iter().flatten().map(text_of).filter(|text| !text.is_empty());
        Ok(texts.collect())
    }
}

/// All that a choice of an event says: what the model thinks, answers, refuses, or wants called.
/// Each is tokens that were waited for.
fn text_of(choice: &Value) -> String {
    let delta = choice.get("delta").or_else(|| choice.get("message"));
    let of = |name| delta.and_then(|delta| delta.get(name)).and_then(Value::as_str);
    let filled = |text: &&str| !text.is_empty();
    // Some servers send their thoughts under both names.
    let thought = of("reasoning_content").filter(filled).or_else(|| of("reasoning"));
    let said = [choice.get("text").and_then(Value::as_str), of("content"), of("refusal")];
    let calls = delta.and_then(|delta| delta.get("tool_calls")).and_then(Value::as_array);
    let called =
        calls.into_iter().flatten().filter_map(|call| call.get("function")).flat_map(|f| {
            ["name", "arguments"]
                .map(|name| f.get(name).and_then(Value::as_str))
                .into_iter()
                .flatten()
        });
    thought.into_iter().chain(said.into_iter().flatten()).chain(called).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whatever_a_model_says_is_text_that_arrives() {
        let mut answer = Answer::default();
        for (delta, text) in [
            (json!({"content": "a"}), "a"),
            (json!({"content": null, "reasoning_content": "a"}), "a"),
            (json!({"content": "", "reasoning": "a"}), "a"),
            (json!({"content": "b", "reasoning": "a", "reasoning_content": "a"}), "ab"),
            (json!({"content": "b", "reasoning": "a", "reasoning_content": null}), "ab"),
            (json!({"refusal": "no"}), "no"),
            (json!({"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}), "f{"),
        ] {
            let event = json!({"choices": [{"delta": delta}]});
            assert_eq!(answer.take(&event).unwrap(), [text], "{event}");
        }
        for nothing in [json!({"role": "assistant", "content": ""}), json!({})] {
            let event = json!({"choices": [{"delta": nothing, "text": null}]});
            assert!(answer.take(&event).unwrap().is_empty(), "{event}");
        }
        assert_eq!(answer.take(&json!({"choices": [{"text": "a"}]})).unwrap(), ["a"]);
    }
}
