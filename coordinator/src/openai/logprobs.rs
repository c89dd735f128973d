//! Logprobs as the two endpoints print them, every digit that restores the f32.

use protocol::{Logprobs, TokenId, TokenLogprob};
use serde_json::{Map, Value, json};

use crate::tokenizer::Tokenizer;

/// What OpenAI prints for minus infinity, which JSON can't.
const IMPOSSIBLE: f32 = -9999.0;

/// How tokens are named.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Naming<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    /// `token_id:N` instead of the text: no two tokens share a name.
    pub(crate) as_ids: bool,
}

impl Naming<'_> {
    fn name(&self, token: TokenId) -> String {
        if self.as_ids { format!("token_id:{token}") } else { self.tokenizer.token_text(token) }
    }

    /// One entry of a chat choice's `logprobs.content`.
    pub(crate) fn chat(&self, logprobs: &Logprobs) -> Value {
        let entry = |of: &TokenLogprob| {
            json!({
                "token": self.name(of.token),
                "logprob": printable(of.logprob),
                "bytes": self.tokenizer.token_bytes(of.token),
            })
        };
        let mut content = entry(&logprobs.chosen);
        content["top_logprobs"] = logprobs.top.iter().map(entry).collect();
        content
    }

    /// A completion choice's `logprobs`: four lists, an entry for each token. `None` is a token
    /// that nothing predicts: the prompt's first.
    pub(crate) fn completion(
        &self,
        tokens: &[(TokenId, Option<&Logprobs>)],
        mut offset: usize,
    ) -> Value {
        let mut lists: [Vec<Value>; 4] = Default::default();
        let [names, logprobs, tops, offsets] = &mut lists;
        for (token, of) in tokens {
            let name = self.name(*token);
            offsets.push(offset.into());
            offset += self.tokenizer.token_text(*token).chars().count();
            names.push(name.into());
            logprobs.push(of.map_or(Value::Null, |of| printable(of.chosen.logprob)));
            tops.push(of.map_or(Value::Null, |of| {
                let mut top = Map::new();
                // The best of those that share a text.
                for entry in &of.top {
                    top.entry(self.name(entry.token)).or_insert(printable(entry.logprob));
                }
                top.entry(self.name(of.chosen.token)).or_insert(printable(of.chosen.logprob));
                Value::Object(top)
            }));
        }
        let [names, logprobs, tops, offsets] = lists;
        json!({
            "tokens": names,
            "token_logprobs": logprobs,
            "top_logprobs": tops,
            "text_offset": offsets,
        })
    }
}

/// An f32 is an f64 exactly, and that prints with digits that restore it.
fn printable(logprob: f32) -> Value {
    json!(logprob.max(IMPOSSIBLE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_restores_the_f32() {
        for logprob in [-0.1f32, -1e-7, -12.345_678, -f32::MIN_POSITIVE, 0.0] {
            let printed = printable(logprob).to_string();
            assert_eq!(printed.parse::<f32>().unwrap().to_bits(), logprob.to_bits());
        }
        assert_eq!(printable(f32::NEG_INFINITY).to_string(), "-9999.0");
    }
}
