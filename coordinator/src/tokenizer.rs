//! Text to tokens and back, with the tokenizer that the model's files carry.

mod gguf;

use std::collections::HashMap;

use checkpoint::TokenizerSource;
use protocol::TokenId;
use serde_json::Value;

/// A model's tokenizer.
pub struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    // A token that every text begins with, where the tokenizer doesn't add it by itself.
    bos: Option<u32>,
    // GPT-2's alphabet for bytes, where tokens are written in it.
    bytes: Option<HashMap<char, u8>>,
}

/// Why a tokenizer can't be used, or a text not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The library refuses what the files carry.
    #[error("the model's tokenizer is unusable: {0}")]
    Unusable(String),
    /// A way of splitting text that we don't know.
    #[error("the GGUF's pre-tokenizer {pre} is unknown; this release knows {known}")]
    UnknownPre {
        /// llama.cpp's name for it.
        pre: String,
        /// Those that are known.
        known: String,
    },
    /// A kind of tokenizer that we don't know.
    #[error("the GGUF's tokenizer model {0} is unknown; this release knows gpt2 and llama")]
    UnknownModel(String),
    /// The text can't be encoded.
    #[error("the text can't be tokenized: {0}")]
    Encode(String),
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish()
    }
}

impl Tokenizer {
    /// The tokenizer that a model's files describe.
    ///
    /// # Errors
    /// When it is malformed, or of a kind that this release doesn't know.
    pub fn from_source(source: &TokenizerSource) -> Result<Self, TokenizerError> {
        let (json, bos) = match source {
            TokenizerSource::Json { tokenizer, .. } => {
                let json = serde_json::from_slice(tokenizer)
                    .map_err(|cause| TokenizerError::Unusable(cause.to_string()))?;
                (json, None)
            }
            TokenizerSource::Gguf { add_bos, bos, .. } => {
                (gguf::to_json(source)?, bos.filter(|_| *add_bos))
            }
        };
        let is_byte_level = mentions(&json["decoder"], "ByteLevel");
        let bytes = serde_json::to_vec(&json).unwrap_or_default();
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|cause| TokenizerError::Unusable(cause.to_string()))?;
        // Whole texts in, whole texts out: limits are checked elsewhere.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|cause| TokenizerError::Unusable(cause.to_string()))?;
        Ok(Self { tokenizer, bos, bytes: is_byte_level.then(byte_alphabet) })
    }

    /// The tokens of a text, with those that the tokenizer puts around every text if wanted.
    ///
    /// # Errors
    /// When the text can't be encoded.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, TokenizerError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, add_special)
            .map_err(|cause| TokenizerError::Encode(cause.to_string()))?;
        let bos = self.bos.filter(|_| add_special);
        Ok(bos.into_iter().chain(encoding.get_ids().iter().copied()).map(TokenId).collect())
    }

    /// The text of tokens. Ids that the tokenizer has no entry for are nothing.
    pub fn decode(&self, tokens: &[TokenId], skip_special: bool) -> String {
        let ids: Vec<u32> = tokens.iter().map(|token| token.0).collect();
        self.tokenizer.decode(&ids, skip_special).unwrap_or_default()
    }

    /// What one token shows; bytes that aren't a whole character as U+FFFD.
    pub fn token_text(&self, token: TokenId) -> String {
        String::from_utf8_lossy(&self.token_bytes(token)).into_owned()
    }

    /// The bytes of one token.
    pub fn token_bytes(&self, token: TokenId) -> Vec<u8> {
        let Some(text) = self.tokenizer.id_to_token(token.0) else { return Vec::new() };
        let byte_of = |alphabet: &HashMap<char, u8>| {
            text.chars().map(|c| alphabet.get(&c).copied()).collect::<Option<Vec<u8>>>()
        };
        if let Some(bytes) = self.bytes.as_ref().and_then(byte_of) {
            return bytes;
        }
        // SentencePiece writes a lone byte so.
        let lone = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        if let Some(byte) = lone.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            return vec![byte];
        }
        // Everywhere else it stands for the space before a word.
        text.replace('\u{2581}', " ").into_bytes()
    }

    /// Tokens that the tokenizer has entries for.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }
}

fn mentions(decoder: &Value, kind: &str) -> bool {
    decoder["type"] == kind
        || decoder["decoders"].as_array().is_some_and(|all| all.iter().any(|d| mentions(d, kind)))
}

/// GPT-2's printable stand-ins for bytes (`bytes_to_unicode` of its encoder): printable characters
/// of Latin-1 stand for themselves, the others follow from U+0100 on.
fn byte_alphabet() -> HashMap<char, u8> {
    let is_printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=255u8).filter(|byte| !is_printable(byte));
    let stand_ins = others.zip(0x100u32..).filter_map(|(byte, c)| Some((char::from_u32(c)?, byte)));
    (0..=255u8).filter(is_printable).map(|byte| (char::from(byte), byte)).chain(stand_ins).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use checkpoint::Checkpoint;
    use std::path::Path;

    pub(crate) fn of(folder: &str) -> Tokenizer {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(folder);
        let files = Checkpoint::open(&path).unwrap();
        Tokenizer::from_source(&files.tokenizer().unwrap()).unwrap()
    }

    fn ids(json: &Value) -> Vec<TokenId> {
        let ids = json.as_array().unwrap();
        ids.iter().map(|id| TokenId(id.as_u64().unwrap() as u32)).collect()
    }

    #[test]
    fn hard_strings_become_the_goldens_tokens_and_come_back() {
        for (name, dtype) in [("glm", "bf16"), ("glm-edge", "bf16"), ("glm4", "f32")] {
            let tokenizer = of(&format!("fixtures/{name}/{dtype}"));
            let path =
                format!("{}/../tests/fixtures/{name}/golden.json", env!("CARGO_MANIFEST_DIR"));
            let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            for case in golden["tokenizer"].as_array().unwrap() {
                let text = case["text"].as_str().unwrap();
                assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&case["ids"]), "{text:?}");
                let special = ids(&case["ids_with_special"]);
                assert_eq!(tokenizer.encode(text, true).unwrap(), special, "{text:?}");
                let decoded = tokenizer.decode(&special, false);
                assert_eq!(decoded, case["decoded"].as_str().unwrap());
                let shown = tokenizer.decode(&special, true);
                assert_eq!(shown, case["decoded_skip_special"].as_str().unwrap());
            }
        }
    }

    #[test]
    fn a_token_has_its_own_bytes_also_when_they_are_no_character() {
        let tokenizer = of("fixtures/glm4/f32");
        let tokens = tokenizer.encode("naïve 😀", false).unwrap();
        let bytes: Vec<u8> = tokens.iter().flat_map(|t| tokenizer.token_bytes(*t)).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), "naïve 😀");
        assert_eq!(tokenizer.token_text(TokenId(639)), "", "the model is padded beyond it");
    }

    #[test]
    fn the_alphabet_has_every_byte_once() {
        let alphabet = byte_alphabet();
        assert_eq!(alphabet.len(), 256);
        assert_eq!(alphabet[&'Ġ'], b' ');
        assert_eq!(alphabet[&'Ċ'], b'\n');
    }
}
