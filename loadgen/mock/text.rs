//! What a mock server says: words that the prompt and the seed decide.

use std::hash::{DefaultHasher, Hash, Hasher};

use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::Value;

use crate::distribution::{Purpose, random};

use super::Mock;

/// What of a request decides its answer.
pub(super) struct Asked {
    pub(super) model: String,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) num_prompt_tokens: usize,
    pub(super) num_tokens: u32,
    /// Ended by the limit, not by the answer's end.
    pub(super) is_cut: bool,
    /// Decides the words.
    random: StdRng,
}

impl Asked {
    /// Reads a body of either endpoint.
    pub(super) fn read(body: &Value, mock: &Mock) -> Result<Self, String> {
        let prompt = match (body.get("messages"), body.get("prompt")) {
            (Some(Value::Array(messages)), None) if !messages.is_empty() => messages
                .iter()
                .map(|message| {
                    let content = message.get("content").ok_or("a message without content")?;
                    Ok(content.as_str().map_or_else(|| content.to_string(), str::to_owned))
                })
                .collect::<Result<Vec<_>, &str>>()?
                .join("\n"),
            (None, Some(Value::String(prompt))) => prompt.clone(),
            _ => return Err("neither a list of `messages` nor a `prompt` that is text".to_owned()),
        };
        let mut hasher = DefaultHasher::new();
        prompt.hash(&mut hasher);
        let seed = body["seed"].as_u64().unwrap_or(0);
        let mut random = random(Purpose::MockText, hasher.finish(), seed);
        let drawn = mock.tokens.sample(&mut random);
        let limit = body.get("max_completion_tokens").or(body.get("max_tokens"));
        let limit = limit.and_then(Value::as_u64).map(|limit| limit.clamp(1, u64::from(u32::MAX)));
        let limit = limit.map(|limit| limit as u32);
        let num_tokens = match limit {
            Some(limit) if body["ignore_eos"] == true => limit,
            Some(limit) => drawn.min(limit),
            None => drawn,
        };
        Ok(Self {
            model: body["model"].as_str().unwrap_or(&mock.model).to_owned(),
            stream: body["stream"] == true,
            include_usage: body["stream_options"]["include_usage"] == true,
            num_prompt_tokens: prompt.split_whitespace().count(),
            num_tokens,
            is_cut: limit.is_some_and(|limit| num_tokens == limit),
            random,
        })
    }

    /// The next token.
    pub(super) fn word(&mut self) -> &'static str {
        WORDS[self.random.random_range(0..WORDS.len())]
    }

    /// Why the answer ended.
    pub(super) fn finish_reason(&self) -> &'static str {
        if self.is_cut { "length" } else { "stop" }
    }
}

const WORDS: [&str; 32] = [
    " a", " light", " in", " the", " house", " by", " the sea", " was", " seen", " and", " they",
    " went", " on", " slowly", " through", " rain", " until", " morning", " came", " with",
    " news", " of", " another", " ship", " far", " away", " where", " nobody", " had", " ever",
    " been", ".",
];
