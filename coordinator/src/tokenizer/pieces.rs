//! What each token of a vocabulary stands for: looked up once, since answers ask for every token.

use std::collections::HashMap;

use protocol::TokenId;

/// By id, in one piece of memory.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    // Where the bytes of each end.
    ends: Vec<u32>,
    // Special, or no entry at all.
    is_hidden: Vec<bool>,
    /// Whether a token is written as the byte that it stands for, as in `<0x0A>`.
    pub(super) has_lone: bool,
}

impl Pieces {
    /// Those of a tokenizer; `alphabet` says which byte a character stands for, where tokens are
    /// written in one.
    pub(super) fn of(
        tokenizer: &tokenizers::Tokenizer,
        alphabet: Option<&HashMap<char, u8>>,
    ) -> Self {
        let mut pieces = Self::default();
        let vocabulary = tokenizer.get_vocab(true);
        let num_ids = vocabulary.values().max().map_or(0, |last| *last as usize + 1);
        let mut texts = vec![None; num_ids];
        vocabulary.into_iter().for_each(|(text, id)| texts[id as usize] = Some(text));
        // An added token goes before one of the model with its id.
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            if let Some(text) = texts.get_mut(id as usize) {
                *text = Some(token.content);
            }
        }
        let added = tokenizer.get_added_vocabulary();
        for text in texts {
            let is_hidden = text.as_ref().is_none_or(|text| added.is_special_token(text));
            pieces.is_hidden.push(is_hidden);
            pieces.push(text.as_deref().unwrap_or_default(), alphabet);
            pieces.ends.push(u32::try_from(pieces.bytes.len()).unwrap_or(u32::MAX));
        }
        pieces
    }

    pub(super) fn bytes(&self, token: TokenId) -> &[u8] {
        let at = token.0 as usize;
        let Some(end) = self.ends.get(at) else { return &[] };
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.bytes.get(start as usize..*end as usize).unwrap_or_default()
    }

    pub(super) fn is_hidden(&self, token: TokenId) -> bool {
        self.is_hidden.get(token.0 as usize).copied().unwrap_or(true)
    }

    fn push(&mut self, text: &str, alphabet: Option<&HashMap<char, u8>>) {
        if let Some(alphabet) = alphabet {
            let bytes = text.chars().map(|c| alphabet.get(&c).copied());
            // An added token may be outside of the alphabet: it is plain text.
            match bytes.collect::<Option<Vec<u8>>>() {
                Some(bytes) => self.bytes.extend(bytes),
                None => self.bytes.extend(text.as_bytes()),
            }
            return;
        }
        // SentencePiece writes a lone byte so.
        let lone = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        if let Some(byte) = lone.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            self.has_lone = true;
            self.bytes.push(byte);
            return;
        }
        // Everywhere else it stands for the space before a word.
        self.bytes.extend(text.replace('\u{2581}', " ").into_bytes());
    }
}
