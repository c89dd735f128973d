//! What of an answer is compared with another answer to the same request: its tokens, its text, why
//! it ended, its counts. Not: ids, times, fingerprints, and how it was cut into pieces.

use std::fmt;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::client::Listen;
use crate::client::request::Endpoint;

/// Bytes that are kept of one answer. A reference that is longer is refused; of an answer that
/// differs, what doesn't fit is only counted.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// What a server gives to compare answers by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Compared {
    /// The id and the logprob of each token (vLLM's `return_token_ids`, and ours).
    TokenIds,
    /// The text and the logprob of each token (OpenAI's `logprobs`).
    Tokens,
    /// The text only.
    Text,
}

impl Compared {
    /// The most telling first.
    #[cfg(test)]
    const ALL: [Self; 3] = [Self::TokenIds, Self::Tokens, Self::Text];

    /// Makes a request's body ask for it.
    pub(crate) fn ask(self, endpoint: Endpoint, body: &mut Value) {
        if self != Self::Text {
            body["logprobs"] = match endpoint {
                Endpoint::Chat => json!(true),
                Endpoint::Completions => json!(0),
            };
        }
        if self == Self::TokenIds {
            body["return_token_ids"] = json!(true);
        }
    }
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TokenIds => "token ids and logprobs",
            Self::Tokens => "tokens and logprobs",
            Self::Text => "text",
        })
    }
}

/// A whole answer, as it was when its request was alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Reference {
    tokens: Vec<Token>,
    pieces: Vec<Piece>,
    ending: Ending,
}

/// A token as the server names it.
#[derive(Clone, Debug, PartialEq)]
struct Token {
    choice: u64,
    id: Option<u64>,
    text: Box<str>,
    /// In all the digits that came: bits, so that it equals itself whatever it is.
    logprob: Option<u64>,
}

/// A piece of text as it came.
#[derive(Clone, Debug, PartialEq)]
struct Piece {
    choice: u64,
    /// Where in a choice it stood, as in `content`.
    field: &'static str,
    text: Box<str>,
}

/// Why an answer ended, and its counts.
#[derive(Clone, Debug, Default, PartialEq)]
struct Ending {
    finish_reason: Option<String>,
    num_prompt_tokens: Option<u64>,
    num_completion_tokens: Option<u64>,
}

impl Reference {
    /// Whether it can be compared like that. One without any text can't tell.
    pub(crate) fn allows(&self, compared: Compared) -> bool {
        let named = |token: &Token| match compared {
            Compared::TokenIds => token.id.is_some() && token.logprob.is_some(),
            Compared::Tokens => token.logprob.is_some(),
            Compared::Text => true,
        };
        let has_tokens = compared == Compared::Text || !self.tokens.is_empty();
        self.pieces.is_empty() || has_tokens && self.tokens.iter().all(named)
    }

    /// Its tokens, or pieces of text where the server names no tokens.
    #[cfg(test)]
    fn num_tokens(&self) -> usize {
        if self.tokens.is_empty() { self.pieces.len() } else { self.tokens.len() }
    }
}

/// An answer as it arrives, beside its reference. What is equal takes no memory.
#[derive(Clone, Debug)]
pub(crate) struct Recording {
    reference: Arc<Reference>,
    tokens: Track<Token>,
    pieces: Track<Piece>,
    ending: Ending,
    num_bytes_left: usize,
    has_begun: bool,
}

/// A list as it arrives, beside what is expected.
#[derive(Clone, Debug)]
struct Track<T> {
    num_equal: usize,
    /// From the first that differs.
    rest: Vec<T>,
    /// Those that there was no memory for.
    num_dropped: u64,
}

/// What an answer is, compared with its reference.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Tokens from the first that differs, or is missing: those that came or those that should
    /// have, whichever are more. Pieces of text where the server names no tokens, or where these
    /// are equal.
    pub num_differing: u64,
    /// How many tokens are equal, from the first.
    pub num_equal: usize,
    /// What else differs of a whole answer: the finish reason or a count, in words.
    pub ending: Option<String>,
}

impl Comparison {
    /// Whether nothing differs.
    pub(crate) fn is_identical(&self) -> bool {
        self.num_differing == 0 && self.ending.is_none()
    }
}

impl Recording {
    /// An answer of which nothing has come.
    pub(crate) fn new(reference: Arc<Reference>) -> Self {
        Self {
            reference,
            tokens: Track::default(),
            pieces: Track::default(),
            ending: Ending::default(),
            num_bytes_left: MAX_ANSWER_BYTES,
            has_begun: false,
        }
    }

    /// A stream has been opened, or an answer begun.
    pub(crate) fn begin(&mut self) {
        self.has_begun = true;
    }

    /// Whether there is an answer at all, if not a whole one.
    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Takes in an event of the stream.
    pub(crate) fn take(&mut self, event: &Value) {
        self.has_begun = true;
        if let Some(usage) = event.get("usage").filter(|usage| usage.is_object()) {
            let count = |name: &str| usage.get(name).and_then(Value::as_u64);
            let ending = &mut self.ending;
            ending.num_prompt_tokens = count("prompt_tokens").or(ending.num_prompt_tokens);
            ending.num_completion_tokens =
                count("completion_tokens").or(ending.num_completion_tokens);
        }
        for choice in event.get("choices").and_then(Value::as_array).into_iter().flatten() {
            for token in tokens(choice) {
                let num_bytes = size_of::<Token>() + token.text.len();
                self.tokens.push(
                    token,
                    &self.reference.tokens,
                    num_bytes,
                    &mut self.num_bytes_left,
                );
            }
            for piece in pieces(choice) {
                let num_bytes = size_of::<Piece>() + piece.text.len();
                self.pieces.push(
                    piece,
                    &self.reference.pieces,
                    num_bytes,
                    &mut self.num_bytes_left,
                );
            }
            if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) {
                self.ending.finish_reason = Some(reason.chars().take(100).collect());
            }
        }
    }

    /// The answer as a reference for others; none when it is too long to be kept.
    pub(crate) fn into_reference(self) -> Option<Reference> {
        let is_whole = self.tokens.num_dropped == 0 && self.pieces.num_dropped == 0;
        is_whole.then_some(Reference {
            tokens: self.tokens.rest,
            pieces: self.pieces.rest,
            ending: self.ending,
        })
    }

    /// Compares it: all of it, or, of a stream that was cut, what came before the cut.
    pub(crate) fn compare(&self, whole: bool) -> Comparison {
        let reference = &*self.reference;
        let mut num_differing = self.tokens.num_differing(&reference.tokens, whole);
        if num_differing == 0 && !self.has_text_of(reference, whole) {
            num_differing = self.pieces.num_differing(&reference.pieces, whole);
        }
        let num_equal =
            if reference.tokens.is_empty() { self.pieces.num_equal } else { self.tokens.num_equal };
        let ending = if whole { self.ending.differs_from(&reference.ending) } else { None };
        Comparison { num_differing, num_equal, ending }
    }

    /// Whether the text is the reference's, however it was cut into pieces.
    fn has_text_of(&self, reference: &Reference, whole: bool) -> bool {
        let (num_equal, rest) = (self.pieces.num_equal, &self.pieces.rest);
        if self.pieces.num_dropped > 0 {
            return false;
        }
        if rest.is_empty() && (!whole || num_equal == reference.pieces.len()) {
            return true;
        }
        let (received, expected) = (joined(rest), joined(&reference.pieces[num_equal..]));
        if whole {
            return received == expected;
        }
        received.iter().all(|(key, text)| {
            let expected = expected.iter().find(|(other, _)| other == key);
            expected.is_some_and(|(_, expected)| expected.starts_with(text.as_str()))
        })
    }
}

impl Listen for &mut Recording {
    fn begin(&mut self) {
        Recording::begin(self);
    }

    fn event(&mut self, event: &Value) {
        self.take(event);
    }
}

impl<T> Default for Track<T> {
    fn default() -> Self {
        Self { num_equal: 0, rest: Vec::new(), num_dropped: 0 }
    }
}

impl<T: PartialEq> Track<T> {
    fn push(&mut self, item: T, expected: &[T], num_bytes: usize, num_bytes_left: &mut usize) {
        if self.rest.is_empty() && expected.get(self.num_equal) == Some(&item) {
            self.num_equal += 1;
        } else if let Some(left) = num_bytes_left.checked_sub(num_bytes) {
            *num_bytes_left = left;
            self.rest.push(item);
        } else {
            self.num_dropped += 1;
        }
    }

    fn num_differing(&self, expected: &[T], whole: bool) -> u64 {
        let num_received = self.rest.len() as u64 + self.num_dropped;
        let num_expected = (expected.len() - self.num_equal) as u64;
        // What a stream that was cut would have brought is not missing.
        if whole { num_received.max(num_expected) } else { num_received }
    }
}

impl Ending {
    /// In words; none where it doesn't.
    fn differs_from(&self, reference: &Self) -> Option<String> {
        if self.finish_reason != reference.finish_reason {
            let shown = |reason: &Option<String>| match reason {
                Some(reason) => format!("finish_reason {reason:?}"),
                None => "no finish_reason".to_string(),
            };
            let (own, other) = (shown(&self.finish_reason), shown(&reference.finish_reason));
            return Some(format!("{own} where the reference has {other}"));
        }
        let counts = [
            ("prompt_tokens", self.num_prompt_tokens, reference.num_prompt_tokens),
            ("completion_tokens", self.num_completion_tokens, reference.num_completion_tokens),
        ];
        let (name, own, other) = counts.into_iter().find(|(_, own, other)| own != other)?;
        let shown = |count: Option<u64>| count.map_or("nothing".to_string(), |n| n.to_string());
        Some(format!("{name} {} where the reference has {}", shown(own), shown(other)))
    }
}

/// The tokens that a choice of an event names.
fn tokens(choice: &Value) -> Vec<Token> {
    let number = choice.get("index").and_then(Value::as_u64).unwrap_or(0);
    let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    let ids = list(choice.get("token_ids"));
    let logprobs = choice.get("logprobs");
    let field = |name: &str| list(logprobs.and_then(|logprobs| logprobs.get(name)));
    // A chat's list of objects, or a completion's two lists.
    let content = field("content");
    let named: Vec<(Option<&Value>, Option<&Value>)> =
        content.iter().map(|entry| (entry.get("token"), entry.get("logprob"))).collect();
    let (texts, numbers) = (field("tokens"), field("token_logprobs"));
    let listed = texts.iter().enumerate().map(|(index, text)| (Some(text), numbers.get(index)));
    let named: Vec<_> = named.into_iter().chain(listed).collect();
    (0..named.len().max(ids.len()))
        .map(|index| {
            let (text, logprob) = named.get(index).copied().unwrap_or_default();
            Token {
                choice: number,
                id: ids.get(index).and_then(Value::as_u64),
                text: text.and_then(Value::as_str).unwrap_or_default().into(),
                logprob: logprob.and_then(Value::as_f64).map(f64::to_bits),
            }
        })
        .collect()
}

/// The pieces of text in a choice of an event.
fn pieces(choice: &Value) -> impl Iterator<Item = Piece> {
    let number = choice.get("index").and_then(Value::as_u64).unwrap_or(0);
    let delta = choice.get("delta").or_else(|| choice.get("message"));
    let fields = [
        ("text", choice.get("text")),
        ("content", delta.and_then(|delta| delta.get("content"))),
        ("reasoning", delta.and_then(|delta| delta.get("reasoning_content"))),
        ("reasoning", delta.and_then(|delta| delta.get("reasoning"))),
        ("refusal", delta.and_then(|delta| delta.get("refusal"))),
    ];
    fields.into_iter().filter_map(move |(field, text)| {
        let text = text?.as_str().filter(|text| !text.is_empty())?;
        Some(Piece { choice: number, field, text: text.into() })
    })
}

/// The text of each field of each choice, in the order in which they began.
fn joined(pieces: &[Piece]) -> Vec<((u64, &'static str), String)> {
    let mut texts: Vec<((u64, &'static str), String)> = Vec::new();
    for piece in pieces {
        let key = (piece.choice, piece.field);
        match texts.iter_mut().find(|(other, _)| *other == key) {
            Some((_, text)) => text.push_str(&piece.text),
            None => texts.push((key, piece.text.to_string())),
        }
    }
    texts.sort_by_key(|(key, _)| *key);
    texts
}

#[cfg(test)]
mod tests;
