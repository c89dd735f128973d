//! Text to tokens and back, with the tokenizer that the model's files carry.

mod gguf;
mod pieces;
mod walked;

use std::collections::HashMap;
use std::sync::OnceLock;

use checkpoint::{SpecialTokens, TokenizerSource};
use protocol::TokenId;
use serde_json::Value;

use pieces::Pieces;
use walked::Walked;

use crate::grammar::Vocabulary;
use crate::guard::guarded;

/// A model's tokenizer.
pub struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    // Tokens around every text that the library's post-processor doesn't add by itself.
    bos: Option<u32>,
    eos: Option<u32>,
    pieces: Pieces,
    // Whether a text is that of its tokens, whatever stands before them.
    is_plain: bool,
    // Bytes of text that a token can stand for, at most.
    max_token_bytes: usize,
    // Made when the first grammar is asked for.
    vocabulary: OnceLock<Result<Vocabulary, String>>,
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
        let unusable = |cause: tokenizers::Error| TokenizerError::Unusable(cause.to_string());
        let from_gguf;
        let json = match source {
            // Only walked through before it is read: a large vocabulary isn't built twice.
            TokenizerSource::Json { tokenizer, .. } => tokenizer,
            TokenizerSource::Gguf { .. } => {
                from_gguf = gguf::to_json(source)?.to_string().into_bytes();
                &from_gguf
            }
        };
        // Of what is no JSON the library takes parts for granted, and may panic, as fuzzing found.
        serde_json::from_slice::<Walked>(json).map_err(|cause| unusable(cause.into()))?;
        // As it may of parts that contradict each other.
        let read = || tokenizers::Tokenizer::from_bytes(json).map_err(anyhow::Error::from_boxed);
        let mut tokenizer = guarded(read).map_err(TokenizerError::Unusable)?;
        let post_processor = serde_json::to_value(tokenizer.get_post_processor());
        check_template(&post_processor.unwrap_or_default())?;
        // Whole texts in, whole texts out: limits are checked elsewhere.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(unusable)?;
        let (bos, eos) = match source {
            TokenizerSource::Json { special, .. } => around(&mut tokenizer, special)?,
            TokenizerSource::Gguf { bos, eos, add_bos, add_eos, .. } => {
                (bos.filter(|_| *add_bos), eos.filter(|_| *add_eos))
            }
        };
        let decoder = serde_json::to_value(tokenizer.get_decoder()).unwrap_or_default();
        check_decoder(&decoder)?;
        let bytes = mentions(&decoder, "ByteLevel").then(byte_alphabet);
        let pieces = Pieces::of(&tokenizer, bytes.as_ref());
        let is_plain = decoder["type"] == "ByteLevel" || (is_spaces(&decoder) && !pieces.has_lone);
        let max_token_bytes = max_token_bytes(&tokenizer, bytes.is_some());
        let vocabulary = OnceLock::new();
        Ok(Self { tokenizer, bos, eos, pieces, is_plain, max_token_bytes, vocabulary })
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
        let eos = self.eos.filter(|_| add_special);
        let ids = bos.into_iter().chain(encoding.get_ids().iter().copied()).chain(eos);
        Ok(ids.map(TokenId).collect())
    }

    /// Bytes of text that have more tokens than `max_tokens`, whatever they are: so long a text
    /// need not be encoded to be refused.
    pub fn max_bytes(&self, max_tokens: u32) -> usize {
        self.max_token_bytes.saturating_mul(max_tokens as usize)
    }

    /// A token that stands beside the vocabulary's text, by its own: special ones, and others.
    pub fn added(&self, text: &str) -> Option<TokenId> {
        let is_added = self.tokenizer.get_added_vocabulary().get_vocab().contains_key(text);
        self.tokenizer.token_to_id(text).filter(|_| is_added).map(TokenId)
    }

    /// A special token by its text.
    pub fn special(&self, text: &str) -> Option<TokenId> {
        let is_special = self.tokenizer.get_added_vocabulary().is_special_token(text);
        self.tokenizer.token_to_id(text).filter(|_| is_special).map(TokenId)
    }

    /// The text of tokens. Ids that the tokenizer has no entry for are nothing.
    pub fn decode(&self, tokens: &[TokenId], skip_special: bool) -> String {
        if self.is_plain {
            let shown = tokens.iter().filter(|id| !(skip_special && self.is_hidden(**id)));
            let bytes: Vec<u8> = shown.flat_map(|id| self.token_bytes(*id)).copied().collect();
            return String::from_utf8(bytes)
                .unwrap_or_else(|broken| String::from_utf8_lossy(broken.as_bytes()).into_owned());
        }
        let ids: Vec<u32> = tokens.iter().map(|token| token.0).collect();
        self.tokenizer.decode(&ids, skip_special).unwrap_or_default()
    }

    /// The text of tokens that follow others; special ones show nothing.
    pub(crate) fn decode_after(&self, before: &[TokenId], tokens: &[TokenId]) -> String {
        if self.is_plain {
            return self.decode(tokens, true);
        }
        let all = self.decode(&[before, tokens].concat(), true);
        match all.strip_prefix(&self.decode(before, true)) {
            Some(new) => new.to_owned(),
            // A broken byte makes some decoders think again about those before it.
            None => self.decode(tokens, true),
        }
    }

    /// What one token shows; bytes that aren't a whole character as U+FFFD.
    pub(crate) fn token_text(&self, token: TokenId) -> String {
        String::from_utf8_lossy(self.token_bytes(token)).into_owned()
    }

    /// The bytes of one token.
    pub(crate) fn token_bytes(&self, token: TokenId) -> &[u8] {
        self.pieces.bytes(token)
    }

    /// Whether decoding passes over a token as if it weren't there: a special one, or an id that
    /// the tokenizer has no entry for.
    pub(crate) fn is_hidden(&self, token: TokenId) -> bool {
        self.pieces.is_hidden(token)
    }

    /// It as grammars look at it, for the model that has so many tokens and ends answers with
    /// these. The first call takes a while.
    pub(crate) fn vocabulary(
        &self,
        vocab_size: u32,
        ends: &[TokenId],
    ) -> &Result<Vocabulary, String> {
        self.vocabulary.get_or_init(|| Vocabulary::new(self, vocab_size, ends))
    }

    /// Tokens that the tokenizer has entries for.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }
}

/// What tokenizer_config.json says about the tokens around a text goes before what the
/// post-processor does, as in transformers. A post-processor that adds other tokens stays.
fn around(
    tokenizer: &mut tokenizers::Tokenizer,
    special: &SpecialTokens,
) -> Result<(Option<u32>, Option<u32>), TokenizerError> {
    if special.add_bos.is_none() && special.add_eos.is_none() {
        return Ok((None, None));
    }
    let id = |text: &Option<String>| tokenizer.token_to_id(text.as_deref()?);
    let (bos, eos) = (id(&special.bos), id(&special.eos));
    let nothing = tokenizer
        .encode_fast("", true)
        .map_err(|cause| TokenizerError::Unusable(cause.to_string()))?;
    let added = nothing.get_ids();
    if added.iter().any(|id| ![bos, eos].contains(&Some(*id))) {
        return Ok((None, None));
    }
    let has_bos = bos.is_some() && added.first().copied() == bos;
    let has_eos = eos.is_some() && added[usize::from(has_bos)..].last().copied() == eos;
    tokenizer.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
    Ok((
        bos.filter(|_| special.add_bos.unwrap_or(has_bos)),
        eos.filter(|_| special.add_eos.unwrap_or(has_eos)),
    ))
}

/// What is put around a text must be known: the library looks for it only with the first text, and
/// then panics, as fuzzing found.
fn check_template(post_processor: &Value) -> Result<(), TokenizerError> {
    let inner = post_processor["processors"].as_array();
    inner.into_iter().flatten().try_for_each(check_template)?;
    if post_processor["type"] != "TemplateProcessing" {
        return Ok(());
    }
    let wrong = |what: String| {
        let template = "the template of the tokenizer's post-processor puts";
        Err(TokenizerError::Unusable(format!("{template} {what} around a text")))
    };
    for piece in post_processor["single"].as_array().into_iter().flatten() {
        if let Some(id) = piece["SpecialToken"]["id"].as_str()
            && post_processor["special_tokens"].get(id).is_none()
        {
            return wrong(format!("{id:?}, which is none of its special_tokens,"));
        }
        if piece["Sequence"]["id"] == "B" {
            return wrong("a second one, which there isn't,".to_owned());
        }
    }
    Ok(())
}

/// Nothing may be stripped at the end of texts: of one that is shorter than that, or that was
/// stripped whole at its beginning, the library can't, and panics, as fuzzing found.
fn check_decoder(decoder: &Value) -> Result<(), TokenizerError> {
    decoder["decoders"].as_array().into_iter().flatten().try_for_each(check_decoder)?;
    match decoder["stop"].as_u64() {
        Some(stop) if stop > 0 && decoder["type"] == "Strip" => {
            Err(TokenizerError::Unusable(format!(
                "its decoder strips {stop} characters at the end of a text, which may have fewer: \
                 a Strip is known whose \"stop\" is 0"
            )))
        }
        _ => Ok(()),
    }
}

/// Bytes of text that a token can stand for, at most. Only where each byte of a text is one of a
/// token there is such a bound: nothing is cut off, put together, passed over or unknown. Composing
/// characters makes a text shorter, to a third at most; SentencePiece's spaces make it longer.
fn max_token_bytes(tokenizer: &tokenizers::Tokenizer, is_byte_level: bool) -> usize {
    let normalizer = serde_json::to_value(tokenizer.get_normalizer()).unwrap_or_default();
    let normalizers = match normalizer["normalizers"].as_array() {
        Some(all) => all.iter().collect(),
        None if normalizer.is_null() => Vec::new(),
        None => vec![&normalizer],
    };
    let mut factor = 1;
    for normalizer in normalizers {
        match normalizer["type"].as_str() {
            Some("NFC") => factor *= 4,
            Some("Prepend") => {}
            Some("Replace") if normalizer["pattern"]["String"] == " " => {
                if normalizer["content"].as_str().is_none_or(str::is_empty) {
                    return usize::MAX;
                }
            }
            _ => return usize::MAX,
        }
    }
    let added = tokenizer.get_added_tokens_decoder();
    let knows_all = is_byte_level || falls_back_to_bytes(tokenizer);
    if !knows_all || added.values().any(|token| token.lstrip || token.rstrip) {
        return usize::MAX;
    }
    let longest = tokenizer.get_vocab(true).keys().map(String::len).max();
    longest.unwrap_or(1).max(1) * factor
}

/// Whether what the vocabulary has no token for is told byte by byte, whichever the byte.
fn falls_back_to_bytes(tokenizer: &tokenizers::Tokenizer) -> bool {
    let tokenizers::ModelWrapper::BPE(model) = tokenizer.get_model() else { return false };
    let has = |byte: u8| tokenizer.token_to_id(&format!("<0x{byte:02X}>")).is_some();
    model.byte_fallback && (0..=u8::MAX).all(has)
}

/// Whether all that a decoder does is to put spaces where SentencePiece writes them otherwise.
fn is_spaces(decoder: &Value) -> bool {
    decoder["type"] == "Replace"
        && decoder["pattern"]["String"] == "\u{2581}"
        && decoder["content"] == " "
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
    fn what_is_no_json_is_refused_before_the_library_sees_it() {
        let tokenizer = br#"{"version": "1.0""#.to_vec();
        let special = SpecialTokens::default();
        let source = TokenizerSource::Json { tokenizer, special, chat_template: None };
        let refused = Tokenizer::from_source(&source).unwrap_err().to_string();
        assert!(refused.contains("EOF while parsing an object at line 1 column 17"), "{refused}");
    }

    #[test]
    fn what_is_put_around_a_text_is_known() {
        let processor = |single: Value| {
            let template = serde_json::json!({
                "type": "TemplateProcessing", "single": single, "special_tokens": {"<s>": {}},
            });
            serde_json::json!({"type": "Sequence", "processors": [template]})
        };
        let token = |id: &str| serde_json::json!({"SpecialToken": {"id": id, "type_id": 0}});
        let text = |id: &str| serde_json::json!({"Sequence": {"id": id, "type_id": 0}});
        assert!(check_template(&processor(serde_json::json!([token("<s>"), text("A")]))).is_ok());
        for (wrong, says) in [(token("<e>"), "<e>"), (text("B"), "a second one")] {
            let refused = check_template(&processor(serde_json::json!([text("A"), wrong])));
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains(says), "{refused}");
        }
    }

    #[test]
    fn nothing_is_stripped_at_the_end_of_a_text() {
        let decoder = |start, stop| {
            let strip = serde_json::json!({
                "type": "Strip", "content": " ", "start": start, "stop": stop,
            });
            serde_json::json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, strip]})
        };
        assert!(check_decoder(&decoder(1, 0)).is_ok());
        let refused = check_decoder(&decoder(1, 2)).unwrap_err().to_string();
        assert!(refused.contains("strips 2 characters"), "{refused}");
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
                let plain = ids(&case["ids"]);
                let decoded = tokenizer.decode(&plain, false);
                assert_eq!(decoded, case["decoded"].as_str().unwrap());
                let shown = tokenizer.decode(&plain, true);
                assert_eq!(shown, case["decoded_skip_special"].as_str().unwrap());
            }
        }
    }

    #[test]
    fn a_token_has_its_own_bytes_also_when_they_are_no_character() {
        let tokenizer = of("fixtures/glm4/f32");
        let tokens = tokenizer.encode("naïve 😀", false).unwrap();
        let bytes: Vec<u8> =
            tokens.iter().flat_map(|t| tokenizer.token_bytes(*t)).copied().collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), "naïve 😀");
        assert_eq!(tokenizer.token_text(TokenId(639)), "", "the model is padded beyond it");
    }

    /// Published tokenizers were made with Oniguruma, where `$` is the end of any line.
    #[test]
    fn patterns_mean_what_they_mean_in_oniguruma() {
        let json = |pattern: &str| {
            serde_json::json!({
                "version": "1.0", "added_tokens": [], "normalizer": null,
                "pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern},
                                  "behavior": "Isolated", "invert": false},
                "post_processor": null, "decoder": null,
                "model": {"type": "BPE", "merges": [["a", "\n"]],
                          "vocab": {"a": 0, "\n": 1, "b": 2, "a\n": 3}},
            })
        };
        let ids = |pattern: &str| {
            let tokenizer = tokenizers::Tokenizer::from_bytes(json(pattern).to_string()).unwrap();
            tokenizer.encode_fast("a\nb", false).unwrap().get_ids().to_vec()
        };
        assert_eq!(ids("x"), [3, 2]);
        assert_eq!(ids("a$"), [0, 1, 2]);
        assert_eq!(ids("[[:alpha:]]"), [0, 1, 2]);
    }

    #[test]
    fn what_the_configuration_says_about_bos_and_eos_is_done() {
        let json = |post: Value| {
            serde_json::json!({
                "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
                "post_processor": post,
                "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
                "model": {"type": "BPE", "merges": [],
                          "vocab": {"<s>": 0, "</s>": 1, "a": 2, "x｜▁": 3}},
            })
        };
        let template = |first: &str| {
            let part = serde_json::json!([
                {"SpecialToken": {"id": first, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ]);
            let id = if first == "<s>" { 0 } else { 2 };
            json(serde_json::json!({
                "type": "TemplateProcessing", "single": part, "pair": part,
                "special_tokens": {first: {"id": first, "ids": [id], "tokens": [first]}},
            }))
        };
        let encode = |json: &Value, add_bos, add_eos| {
            let special = SpecialTokens {
                bos: Some("<s>".into()),
                eos: Some("</s>".into()),
                add_bos,
                add_eos,
                ..Default::default()
            };
            let tokenizer = serde_json::to_vec(json).unwrap();
            let source = TokenizerSource::Json { tokenizer, special, chat_template: None };
            let tokenizer = Tokenizer::from_source(&source).unwrap();
            assert_eq!(tokenizer.token_text(TokenId(3)), "x｜▁", "plain text, not SentencePiece");
            assert_eq!(tokenizer.encode("a", false).unwrap(), [TokenId(2)]);
            tokenizer.encode("a", true).unwrap().iter().map(|t| t.0).collect::<Vec<_>>()
        };
        let (bare, with_bos, other) = (json(Value::Null), template("<s>"), template("a"));
        assert_eq!(encode(&bare, None, None), [2]);
        assert_eq!(encode(&bare, Some(true), Some(true)), [0, 2, 1]);
        assert_eq!(encode(&with_bos, None, Some(true)), [0, 2, 1]);
        assert_eq!(encode(&with_bos, Some(true), None), [0, 2], "not twice");
        assert_eq!(encode(&with_bos, Some(false), None), [2]);
        assert_eq!(encode(&other, Some(true), None), [2, 2], "a prefix of its own stays");
    }

    #[test]
    fn the_alphabet_has_every_byte_once() {
        let alphabet = byte_alphabet();
        assert_eq!(alphabet.len(), 256);
        assert_eq!(alphabet[&'Ġ'], b' ');
        assert_eq!(alphabet[&'Ċ'], b'\n');
    }
}
