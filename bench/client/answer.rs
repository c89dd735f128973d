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
    /// When the stream ended.
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
    /// How many there are.
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
        let texts = choices.into_iter().flatten().filter_map(|choice| {
            let delta = choice.get("delta").or_else(|| choice.get("message"));
            let text = choice
                .get("text")
                .or_else(|| delta?.get("content").filter(|text| !text.is_null()))
                .or_else(|| delta?.get("reasoning_content"))?
                .as_str()?;
            (!text.is_empty()).then(|| text.to_string())
        });
        Ok(texts.collect())
    }
}
