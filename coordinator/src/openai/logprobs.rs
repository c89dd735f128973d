//! Logprobs as the two endpoints print them, every digit that restores the f32.

use protocol::{Logprobs, TokenId, TokenLogprob};
use serde_json::{Map, Value, json};

use crate::tokenizer::Tokenizer;

/// What OpenAI prints for minus infinity, which JSON can't.
const IMPOSSIBLE: f32 = -9999.0;

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

    /// A completion choice's `logprobs`: four lists, an entry for each token. `offset` is where in
    /// the choice's text the first of them begins, and becomes where the next will.
    pub(crate) fn completion(&self, tokens: &[Shown<'_>], offset: &mut Offset) -> Value {
        let mut lists: [Vec<Value>; 4] = Default::default();
        let [names, logprobs, tops, offsets] = &mut lists;
        for token in tokens {
            offsets.push(offset.num_chars().into());
            // A special token isn't part of an answer's text.
            if token.echoed || !self.tokenizer.decode(&[token.token], true).is_empty() {
                let bytes = self.tokenizer.token_bytes(token.token);
                offset.pass(bytes.get(token.num_added_bytes..).unwrap_or_default());
            }
            names.push(self.name(token.token).into());
            logprobs.push(token.logprobs.map_or(Value::Null, |of| printable(of.chosen.logprob)));
            tops.push(token.logprobs.map_or(Value::Null, |of| {
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

/// A place in a text that tokens spell byte by byte, in characters: one that several tokens spell
/// counts with the first, and bytes that are no character count as the sign that stands for them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Offset {
    num_whole: usize,
    // The beginning of a character.
    begun: Vec<u8>,
}

impl Offset {
    fn num_chars(&self) -> usize {
        self.num_whole + usize::from(!self.begun.is_empty())
    }

    fn pass(&mut self, bytes: &[u8]) {
        self.begun.extend_from_slice(bytes);
        let text = std::mem::take(&mut self.begun);
        for chunk in text.utf8_chunks() {
            self.num_whole += chunk.valid().chars().count();
            let rest = chunk.invalid();
            let may_go_on =
                std::str::from_utf8(rest).is_err_and(|error| error.error_len().is_none());
            if may_go_on && text.ends_with(rest) {
                self.begun = rest.to_vec();
            } else {
                self.num_whole += usize::from(!rest.is_empty());
            }
        }
    }
}

/// A token of a choice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown<'a> {
    pub(crate) token: TokenId,
    /// `None`: nothing predicts it, being the prompt's first, or nobody asked.
    pub(crate) logprobs: Option<&'a Logprobs>,
    /// Whether it is of the prompt, whose special tokens are shown.
    pub(crate) echoed: bool,
    /// Bytes in front of it that the text hasn't got.
    pub(crate) num_added_bytes: usize,
}

/// The fewest digits that restore the f32. JSON's numbers are f64s here, so it is the f64 that
/// those digits mean, whose own shortest form they are.
fn printable(logprob: f32) -> Value {
    let logprob = logprob.max(IMPOSSIBLE);
    json!(logprob.to_string().parse().unwrap_or(f64::from(logprob)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_offset_counts_what_is_shown() {
        let at = |tokens: &[&[u8]]| {
            let mut offset = Offset::default();
            let mut pass = |token: &&[u8]| {
                offset.pass(token);
                offset.num_chars()
            };
            tokens.iter().map(&mut pass).collect::<Vec<_>>()
        };
        assert_eq!(at(&[b"ab", b"", "é".as_bytes()]), [2, 2, 3]);
        // A character of three tokens, then one more.
        assert_eq!(at(&[b"\xe2", b"\x82", b"\xac", b"x"]), [1, 1, 1, 2]);
        // Bytes that are none, alone and where one had begun: signs stand for them.
        assert_eq!(at(&[b"\x80", b"x", b"\xff\xff"]), [1, 2, 4]);
        assert_eq!(at(&[b"\xe2\x82", b"x"]), [1, 2]);
        for bytes in [&b"\xe2\x82x\x80\xf0\x9f"[..], b"a\xf0\x9f\x98\x80\xc3"] {
            let tokens: Vec<&[u8]> = bytes.chunks(1).collect();
            let shown = String::from_utf8_lossy(bytes).chars().count();
            assert_eq!(at(&tokens).last(), Some(&shown), "{bytes:?}");
        }
    }

    #[test]
    fn what_json_cannot_carry_is_impossible() {
        assert_eq!(printable(f32::NEG_INFINITY).to_string(), "-9999.0");
        assert_eq!(printable(f32::NAN).to_string(), "-9999.0");
        assert_eq!(printable(-0.1).to_string(), "-0.1");
        assert_eq!(printable(0.0).to_string(), "0.0");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn what_is_printed_restores_the_f32(bits in 0..=(-IMPOSSIBLE).to_bits()) {
            let logprob = -f32::from_bits(bits);
            let printed = printable(logprob).to_string();
            prop_assert_eq!(printed.parse::<f32>().unwrap().to_bits(), logprob.to_bits());
            // Also for a client that reads f64s and narrows them.
            let narrowed = printed.parse::<f64>().unwrap() as f32;
            prop_assert_eq!(narrowed.to_bits(), logprob.to_bits());
            prop_assert!(printed.len() <= 16, "{}", printed);
        }
    }
}
