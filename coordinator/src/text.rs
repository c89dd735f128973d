//! An answer's text, token by token: no character is split, and a stop string never shows.

use std::sync::Arc;

use protocol::TokenId;

use crate::request::{AnswerText, TokenText};
use crate::tokenizer::Tokenizer;

/// Turns tokens into text that may be shown. Pure.
#[derive(Clone, Debug)]
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    stop: Arc<[String]>,
    // Tokens are decoded in the company of those before them, since a decoder may treat the first
    // one differently: `..read` were shown, `read..` end inside a character.
    window: Vec<TokenId>,
    read: usize,
    // Bytes of the text of `read..` that were taken already.
    taken: usize,
    // Text that may be the beginning of a stop string.
    held: String,
    // The stop string that has appeared.
    stopped: Option<u32>,
    is_finished: bool,
}

const INCOMPLETE: char = '\u{fffd}';

/// A model that never finishes a character is shown as it is after so many tokens.
const MAX_UNFINISHED: usize = 16;

impl TextStream {
    /// No token yet; the answer ends at the first of these strings.
    pub fn new(tokenizer: Arc<Tokenizer>, stop: Arc<[String]>) -> Self {
        Self {
            tokenizer,
            stop,
            window: Vec::new(),
            read: 0,
            taken: 0,
            held: String::new(),
            stopped: None,
            is_finished: false,
        }
    }

    /// The text goes on after this prompt: what its first token begins with, a space perhaps, is
    /// no beginning.
    pub fn after(mut self, prompt: &[TokenId]) -> Self {
        let last = prompt.iter().rfind(|token| !self.tokenizer.is_hidden(**token));
        self.window.extend(last);
        self.read = self.window.len();
        self
    }

    /// The next token.
    pub fn push(&mut self, token: TokenId) -> TokenText {
        if self.is_finished {
            return TokenText { text: String::new(), stopped: self.stopped };
        }
        // It changes nothing about the text, and would only make the window longer.
        if self.tokenizer.is_hidden(token) {
            return TokenText::default();
        }
        self.window.push(token);
        let text = self.decode_new();
        let new = self.window.len() - self.read;
        let is_whole = !self.ends_inside_character() || new >= MAX_UNFINISHED;
        // How many signs stand for an unfinished character depends on the decoder.
        let whole = if is_whole { &text } else { text.trim_end_matches(INCOMPLETE) };
        let shown = whole.get(self.taken..).unwrap_or_default().to_owned();
        self.taken = self.taken.max(whole.len());
        if is_whole {
            self.window.drain(..self.read);
            self.read = self.window.len();
            self.taken = 0;
        }
        self.show(&shown)
    }

    /// What was held back, once the answer ends for another reason.
    pub fn finish(&mut self) -> String {
        if self.is_finished {
            return String::new();
        }
        let text = self.decode_new();
        let rest = text.get(self.taken..).unwrap_or_default();
        let shown = self.show(rest).text;
        self.is_finished = true;
        shown + &std::mem::take(&mut self.held)
    }

    /// Whether the tokens that were not read yet lack bytes of their last character.
    fn ends_inside_character(&self) -> bool {
        let unread = self.window[self.read..].iter();
        let bytes = unread.flat_map(|token| self.tokenizer.token_bytes(*token));
        let bytes: Vec<u8> = bytes.copied().collect();
        let is_beginning =
            |tail: &[u8]| std::str::from_utf8(tail).is_err_and(|error| error.error_len().is_none());
        bytes.utf8_chunks().last().is_some_and(|chunk| is_beginning(chunk.invalid()))
    }

    /// The text of the tokens that were not read yet.
    fn decode_new(&self) -> String {
        let (before, new) = self.window.split_at(self.read);
        if new.is_empty() {
            return String::new();
        }
        self.tokenizer.decode_after(before, new)
    }

    fn show(&mut self, new: &str) -> TokenText {
        self.held.push_str(new);
        let stops = (0..).zip(&*self.stop).filter(|(_, stop)| !stop.is_empty());
        let found = stops.filter_map(|(number, stop)| Some((self.held.find(stop)?, number))).min();
        if let Some((at, number)) = found {
            (self.stopped, self.is_finished) = (Some(number), true);
            let mut text = std::mem::take(&mut self.held);
            text.truncate(at);
            return TokenText { text, stopped: self.stopped };
        }
        let begins_stop = |at: &usize| {
            let tail = &self.held[*at..];
            self.stop.iter().any(|stop| stop.starts_with(tail))
        };
        let longest = self.stop.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let keep = self
            .held
            .char_indices()
            .map(|(at, _)| at)
            .filter(|at| *at >= from)
            .find(begins_stop)
            .unwrap_or(self.held.len());
        let held = self.held.split_off(keep);
        TokenText { text: std::mem::replace(&mut self.held, held), stopped: None }
    }
}

impl AnswerText for TextStream {
    fn push(&mut self, token: TokenId) -> TokenText {
        Self::push(self, token)
    }

    fn finish(&mut self) -> String {
        Self::finish(self)
    }

    fn copy(&self) -> Box<dyn AnswerText> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use checkpoint::Checkpoint;
    use proptest::prelude::*;
    use std::path::Path;
    use std::sync::LazyLock;

    fn tokenizer(folder: &str) -> Arc<Tokenizer> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(folder);
        let source = Checkpoint::open(&path).unwrap().tokenizer().unwrap();
        Arc::new(Tokenizer::from_source(&source).unwrap())
    }

    static GLM: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| tokenizer("fixtures/glm4/f32"));
    static GLASS: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| tokenizer("models/glass-en"));

    fn stream(tokens: &[TokenId], stop: &[&str]) -> (Vec<String>, Option<u32>) {
        let stop: Vec<_> = stop.iter().map(|text| (*text).to_owned()).collect();
        let mut text = TextStream::new(Arc::clone(&GLM), stop.into());
        let mut pieces = Vec::new();
        for token in tokens {
            let piece = text.push(*token);
            pieces.push(piece.text);
            if piece.stopped.is_some() {
                return (pieces, piece.stopped);
            }
        }
        pieces.push(text.finish());
        (pieces, None)
    }

    #[test]
    fn a_character_is_never_split() {
        let tokens = GLM.encode("naïve 😀 中文", false).unwrap();
        let splits = |token: &TokenId| std::str::from_utf8(GLM.token_bytes(*token)).is_err();
        assert!(tokens.iter().any(splits), "characters of several tokens");
        let (pieces, _) = stream(&tokens, &[]);
        assert!(pieces.iter().all(|piece| !piece.contains(INCOMPLETE)), "{pieces:?}");
        assert_eq!(pieces.concat(), "naïve 😀 中文");
    }

    #[test]
    fn a_stop_string_may_span_tokens_and_never_shows() {
        let tokens = GLM.encode("one two three", false).unwrap();
        let (pieces, stopped) = stream(&tokens, &["o th", "wo t"]);
        assert_eq!(stopped, Some(1), "the earliest wins");
        assert_eq!(pieces.concat(), "one t");
        let (pieces, stopped) = stream(&tokens, &["threes"]);
        assert_eq!(stopped, None);
        assert_eq!(pieces.concat(), "one two three", "what was held back is shown at the end");
    }

    fn sentencepiece() -> Arc<Tokenizer> {
        let plain = [("<unk>", 2, 0.0), ("<s>", 3, 0.0), ("▁", 1, 0.0), ("a", 1, 0.0)];
        let bytes = ["<0xC3>", "<0xA9>", "<0xE2>", "<0x82>", "<0xAC>"].map(|it| (it, 6, 0.0));
        let source = testing::sentencepiece(&[&plain[..], &bytes].concat());
        Arc::new(Tokenizer::from_source(&source).unwrap())
    }

    #[test]
    fn what_goes_on_after_a_prompt_keeps_its_space() {
        let tokenizer = sentencepiece();
        let shown = |prompt: &[u32], stop: &[&str]| {
            let stop: Vec<_> = stop.iter().map(|it| (*it).to_owned()).collect();
            let prompt: Vec<_> = prompt.iter().copied().map(TokenId).collect();
            let mut text = TextStream::new(Arc::clone(&tokenizer), stop.into()).after(&prompt);
            let pieces: Vec<_> = [2, 3, 2, 3].map(|id| text.push(TokenId(id)).text).to_vec();
            pieces.concat() + &text.finish()
        };
        assert_eq!(shown(&[1, 3], &[]), " a a");
        assert_eq!(shown(&[1], &[]), "a a", "a text that begins here begins with no space");
        assert_eq!(shown(&[3], &[" a"]), "", "a stop string sees it, too");
    }

    #[test]
    fn characters_of_lone_bytes_come_whole_and_broken_ones_lose_nothing_else() {
        let tokenizer = sentencepiece();
        let shown = |ids: &[u32]| {
            let mut text = TextStream::new(Arc::clone(&tokenizer), Arc::new([]));
            let mut pieces: Vec<_> = ids.iter().map(|id| text.push(TokenId(*id)).text).collect();
            pieces.push(text.finish());
            pieces
        };
        assert_eq!(shown(&[1, 2, 3, 6, 7, 8, 3]), ["", "", "a", "", "", "€", "a", ""]);
        let broken = shown(&[3, 4, 5, 7, 3, 3]).concat();
        assert!(broken.starts_with("aé\u{fffd}") && broken.ends_with("aa"), "{broken}");
    }

    #[test]
    fn a_long_run_of_broken_bytes_stays_cheap() {
        let byte = (0..256).map(TokenId).find(|t| GLM.token_bytes(*t) == [0x80]).unwrap();
        let special = GLM.encode("<|user|>", false).unwrap()[0];
        let mut text = TextStream::new(Arc::clone(&GLM), Arc::new([]));
        let mut shown = String::new();
        for token in [byte, special].repeat(1000) {
            shown += &text.push(token).text;
            assert!(text.window.len() < 64, "a token costs the same however many were before");
        }
        assert_eq!(shown + &text.finish(), "\u{fffd}".repeat(1000));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn the_pieces_are_the_whole(ids in proptest::collection::vec(0u32..640, 0..60)) {
            let tokens: Vec<_> = ids.into_iter().map(TokenId).collect();
            for tokenizer in [&GLM, &GLASS] {
                let mut text = TextStream::new(Arc::clone(tokenizer), Arc::new([]));
                let mut shown: String = tokens.iter().map(|token| text.push(*token).text).collect();
                shown += &text.finish();
                prop_assert_eq!(shown, tokenizer.decode(&tokens, true));
            }
        }
    }
}
