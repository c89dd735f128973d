//! What it costs that answers keep to a schema: what a mask takes of the coordinator's actor and of
//! the threads that make it, and what streams with a schema lose against others of the same length.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use coordinator::grammar::{Begins, Source, Vocabulary};
use coordinator::request::{Constraint, Going};
use loadgen::client::request::Endpoint;
use loadgen::distribution::{Purpose, random};
use protocol::TokenId;
use protocol::config::Http;
use rand::RngExt;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::users::{Note, Users, Wish};

/// What agents ask for, without an end of its own.
pub fn schema() -> Value {
    json!({
        "type": "array",
        "minItems": 1000,
        "items": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 24},
                "kind": {"enum": ["red", "green", "blue"]},
                "count": {"type": "integer", "minimum": 0, "maximum": 999},
                "score": {"type": "number"},
                "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,8}$"},
                         "maxItems": 3},
                "is_open": {"type": "boolean"},
            },
            "required": ["name", "kind", "count", "is_open"],
            "additionalProperties": false,
        },
        "x-guidance": {"whitespace_flexible": false},
    })
}

/// The same for models that know no quotes.
pub fn numbers() -> Value {
    let integers = json!({"type": "array", "items": {"type": "integer"}, "maxItems": 4});
    let item = json!([{"type": "integer", "minimum": -50, "maximum": 999}, {"type": "number"},
                      {"type": "boolean"}, {"type": "null"}, integers]);
    json!({
        "type": "array", "minItems": 1000, "items": {"anyOf": item},
        "x-guidance": {"whitespace_flexible": false},
    })
}

/// A vocabulary of so many tokens: bytes, words of a text, and pairs of those, as a trained one has
/// them. The last ends answers.
pub fn words(text: &str, num: usize) -> Vec<Vec<u8>> {
    let mut words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    let mut known: HashSet<_> = words.iter().cloned().collect();
    let parts: Vec<_> = text.split_inclusive(|c: char| !c.is_alphanumeric()).collect();
    let mut add = |word: Vec<u8>| {
        let is_new = words.len() < num - 1 && word.len() < 24 && known.insert(word.clone());
        if is_new {
            words.push(word);
        }
    };
    for part in &parts {
        let word = part.trim();
        // As a tokenizer cuts them: with the space before, and their beginnings.
        for (end, _) in word.char_indices().skip(1) {
            add(word.as_bytes()[..end].to_vec());
            add([b" ", &word.as_bytes()[..end]].concat());
        }
        add(word.as_bytes().to_vec());
        add([b" ", word.as_bytes()].concat());
    }
    let distance = 1..parts.len();
    let pairs = distance.flat_map(|by| (0..parts.len() - by).map(move |i| (i, i + by)));
    for (i, j) in pairs.take(num * 4) {
        add([parts[i].trim(), parts[j].trim()].concat().into_bytes());
    }
    // Where the text is short.
    while words.len() < num - 1 {
        words.push(format!("word{}", words.len()).into_bytes());
    }
    words.push(b"\xffend".to_vec());
    words
}

/// How long each part of a mask took, in microseconds.
#[derive(Debug, Default)]
pub struct MaskTimes {
    /// Taking a grammar on by a token: the actor's part.
    pub push: Vec<f64>,
    /// Making the mask, which other threads do.
    pub mask: Vec<f64>,
    /// A copy for an answer that begins: the actor's part, once an answer.
    pub copy: Vec<f64>,
    /// Tokens that a mask allowed, on average.
    pub allowed: f64,
}

/// Times answers of tokens that are chosen at random from what may come.
///
/// # Errors
/// When a grammar can't be compiled, or ends.
pub fn time_masks(words: &[Vec<u8>], num_answers: u64, num_tokens: usize) -> Result<MaskTimes> {
    let end = TokenId(words.len() as u32 - 1);
    let vocabulary = Vocabulary::of(words, &[end]).map_err(|cause| anyhow!(cause))?;
    let source = Source::Schema(schema());
    let mut times = MaskTimes::default();
    let micros = |since: Instant| since.elapsed().as_secs_f64() * 1e6;
    for answer in 0..num_answers {
        let mut random = random(Purpose::Conversation, answer, 1);
        let compiled = vocabulary.compile(&source, Begins::First, &Http::default());
        let compiled = compiled.map_err(|cause| anyhow!(cause))?;
        let began = Instant::now();
        let mut kept = compiled.copy();
        times.copy.push(micros(began));
        for _ in 0..num_tokens {
            let began = Instant::now();
            let Some(mask) = kept.next().and_then(|next| next.mask()) else { bail!("no mask") };
            times.mask.push(micros(began));
            let num_allowed: u32 = mask.iter().map(|word| word.count_ones()).sum();
            times.allowed += f64::from(num_allowed);
            let bits = (0..words.len()).filter(|id| mask[id / 32] >> (id % 32) & 1 == 1);
            let chosen = bits.clone().nth(random.random_range(0..num_allowed as usize));
            let token = TokenId(chosen.expect("one of those that are allowed") as u32);
            let began = Instant::now();
            let going = kept.push(token).map_err(|cause| anyhow!(cause))?;
            times.push.push(micros(began));
            if going == Going::Over {
                bail!("an answer without an end has ended");
            }
        }
    }
    times.allowed /= times.mask.len() as f64;
    Ok(times)
}

/// Tokens per second of so many streams that begin together, with this schema or without any.
///
/// # Errors
/// When an answer isn't of the length that was asked for.
pub async fn rate(
    users: &Users,
    (wish, num): (Wish, u64),
    seed: u64,
    schema: Option<&Value>,
) -> Result<f64> {
    let mut streams = JoinSet::new();
    let began = Instant::now();
    for stream in 0..num {
        let mut body = users.body(wish, (seed << 20) + stream);
        // A model that knows no JSON says more than one thing only so.
        body["temperature"] = 1.into();
        if let Some(schema) = schema {
            let schema = json!({"name": "list", "schema": schema});
            body["response_format"] = json!({"type": "json_schema", "json_schema": schema});
        }
        let users = users.clone();
        streams.spawn(async move {
            let mut num_tokens = 0;
            let note = Note(|num_new: usize| num_tokens += num_new);
            users.server().ask(Endpoint::Completions, &body, note).await?;
            if num_tokens != wish.answer as usize {
                bail!("an answer has {num_tokens} tokens where {} were asked for", wish.answer);
            }
            Ok(())
        });
    }
    while let Some(ended) = streams.join_next().await {
        ended??;
    }
    let took: Duration = began.elapsed();
    Ok((num * u64::from(wish.answer)) as f64 / took.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vocabulary_has_as_many_words_as_it_should_each_once() {
        for num in [300, 5000] {
            let words = words("The cat sat on the mat; the dog did not.", num);
            assert_eq!(words.len(), num);
            assert_eq!(words.iter().collect::<HashSet<_>>().len(), num);
        }
    }

    #[test]
    fn masks_are_timed_over_whole_answers() {
        let words = words("red green blue name kind count true false", 400);
        let times = time_masks(&words, 2, 30).unwrap();
        assert_eq!((times.mask.len(), times.push.len(), times.copy.len()), (60, 60, 2));
        assert!(times.allowed >= 1.0 && times.allowed < 400.0);
    }
}
