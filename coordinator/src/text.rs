//! An answer's text, token by token: no character is split, and a stop string never shows.

use std::sync::Arc;

use protocol::TokenId;

use crate::tokenizer::Tokenizer;

/// Turns tokens into text that may be shown. Pure.
#[derive(Clone, Debug)]
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    stop: Arc<[String]>,
    // Tokens are decoded in the company of those before them, since a decoder may treat the first
    // one differently: `..read` were shown, `read..` may still be part of a character.
    window: Vec<TokenId>,
    read: usize,
    // Bytes of the text of `read..` that were taken already.
    taken: usize,
    // Text that may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

/// What a token brings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Text that may be shown.
    pub text: String,
    /// Whether a stop string has appeared: the answer ends before it.
    pub stopped: bool,
}

const INCOMPLETE: char = '\u{fffd}';

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
            stopped: false,
        }
    }

    /// The next token.
    pub fn push(&mut self, token: TokenId) -> Piece {
        if self.stopped {
            return Piece { text: String::new(), stopped: true };
        }
        self.window.push(token);
        let text = self.decode_new();
        // At most one character is under way, and it is the last.
        let whole = text.strip_suffix(INCOMPLETE).unwrap_or(&text);
        let new = whole.get(self.taken..).unwrap_or_default().to_owned();
        self.taken = self.taken.max(whole.len());
        if whole.len() == text.len() && !text.is_empty() {
            self.window.drain(..self.read);
            self.read = self.window.len();
            self.taken = 0;
        }
        self.show(&new)
    }

    /// What was held back, once the answer ends for another reason.
    pub fn finish(&mut self) -> String {
        if self.stopped {
            return String::new();
        }
        self.stopped = true;
        let text = self.decode_new();
        let rest = text.get(self.taken..).unwrap_or_default();
        std::mem::take(&mut self.held) + rest
    }

    /// The text of the tokens that were not read yet.
    fn decode_new(&self) -> String {
        let before = self.tokenizer.decode(&self.window[..self.read], true);
        let all = self.tokenizer.decode(&self.window, true);
        all.get(before.len()..).unwrap_or_default().to_owned()
    }

    fn show(&mut self, new: &str) -> Piece {
        self.held.push_str(new);
        let found = self.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            self.stopped = true;
            let mut text = std::mem::take(&mut self.held);
            text.truncate(at);
            return Piece { text, stopped: true };
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
        Piece { text: std::mem::replace(&mut self.held, held), stopped: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    fn stream(tokens: &[TokenId], stop: &[&str]) -> (Vec<String>, bool) {
        let stop: Vec<_> = stop.iter().map(|text| (*text).to_owned()).collect();
        let mut text = TextStream::new(Arc::clone(&GLM), stop.into());
        let mut pieces = Vec::new();
        for token in tokens {
            let piece = text.push(*token);
            pieces.push(piece.text);
            if piece.stopped {
                return (pieces, true);
            }
        }
        pieces.push(text.finish());
        (pieces, false)
    }

    #[test]
    fn a_character_is_never_split() {
        let tokens = GLM.encode("naïve 😀 中文", false).unwrap();
        assert!(tokens.len() > 12, "characters of several tokens");
        let (pieces, _) = stream(&tokens, &[]);
        assert!(pieces.iter().all(|piece| !piece.contains(INCOMPLETE)), "{pieces:?}");
        assert_eq!(pieces.concat(), "naïve 😀 中文");
    }

    #[test]
    fn a_stop_string_may_span_tokens_and_never_shows() {
        let tokens = GLM.encode("one two three", false).unwrap();
        let (pieces, stopped) = stream(&tokens, &["o th", "wo t"]);
        assert!(stopped);
        assert_eq!(pieces.concat(), "one t", "the earliest wins");
        let (pieces, stopped) = stream(&tokens, &["threes"]);
        assert!(!stopped);
        assert_eq!(pieces.concat(), "one two three", "what was held back is shown at the end");
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
