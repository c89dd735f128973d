//! The tokenizer of a GGUF file in the `tokenizers` library's own form, tokenizer.json.

use std::collections::HashMap;

use checkpoint::TokenizerSource;
use serde_json::{Map, Value, json};

use super::TokenizerError;

/// Token types of GGUF.
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// As tiktoken's cl100k splits, which GLM-4 and Llama 3 share.
const CL100K: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// The same with single digits.
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// What llama.cpp does with a file that doesn't say how its model was trained.
const DEFAULT: &[&str] = &[
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

/// How text is cut before the merges.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cut {
    /// As GPT-2.
    Gpt2,
    /// Each digit alone, then as GPT-2.
    Digits,
    /// As cl100k.
    Cl100k,
    /// The same; a token of the vocabulary stays whole, whatever the merges would make of it.
    Llama3,
    /// With single digits.
    Qwen2,
    /// The same, after normalisation to NFC.
    Qwen2Nfc,
    /// As where nothing is said.
    Default,
}

/// llama.cpp's names (`tokenizer_pre` in llama-vocab.cpp) for those that we have.
const KNOWN: &[(&str, Cut)] = &[
    ("", Cut::Default),
    ("default", Cut::Default),
    ("gpt-2", Cut::Gpt2),
    ("phi-2", Cut::Gpt2),
    ("mpt", Cut::Gpt2),
    ("olmo", Cut::Gpt2),
    ("jais", Cut::Gpt2),
    ("trillion", Cut::Gpt2),
    ("granite-docling", Cut::Gpt2),
    ("jina-es", Cut::Gpt2),
    ("jina-de", Cut::Gpt2),
    ("jina-v2-es", Cut::Gpt2),
    ("jina-v2-de", Cut::Gpt2),
    ("gigachat", Cut::Gpt2),
    ("a.x-4.0", Cut::Gpt2),
    ("mellum", Cut::Gpt2),
    ("modern-bert", Cut::Gpt2),
    ("smollm", Cut::Digits),
    ("starcoder", Cut::Digits),
    ("refact", Cut::Digits),
    ("command-r", Cut::Digits),
    ("codeshell", Cut::Digits),
    ("exaone", Cut::Digits),
    ("exaone4", Cut::Gpt2),
    ("minerva-7b", Cut::Digits),
    ("mellum2", Cut::Digits),
    ("llama-bpe", Cut::Llama3),
    ("llama3", Cut::Llama3),
    ("llama-v3", Cut::Llama3),
    ("falcon3", Cut::Llama3),
    ("falcon-h1", Cut::Llama3),
    ("pixtral", Cut::Llama3),
    ("midm-2.0", Cut::Llama3),
    ("lfm2", Cut::Llama3),
    ("jina-v5-nano", Cut::Llama3),
    ("glm4", Cut::Cl100k),
    ("chatglm-bpe", Cut::Cl100k),
    ("dbrx", Cut::Cl100k),
    ("smaug-bpe", Cut::Cl100k),
    ("qwen2", Cut::Qwen2Nfc),
    ("deepseek-r1-qwen", Cut::Qwen2Nfc),
    ("megrez", Cut::Qwen2Nfc),
    ("kormo", Cut::Qwen2),
    ("f2llmv2", Cut::Qwen2),
    ("solar-open", Cut::Qwen2),
    ("stablelm2", Cut::Qwen2),
    ("hunyuan", Cut::Qwen2),
    ("grok-2", Cut::Qwen2),
];

fn cut(pre: &str) -> Result<Cut, TokenizerError> {
    let found = KNOWN.iter().find(|(name, _)| *name == pre).map(|(_, cut)| *cut);
    found.ok_or_else(|| {
        let known: Vec<_> = KNOWN.iter().map(|(name, _)| *name).skip(1).collect();
        TokenizerError::UnknownPre { pre: pre.to_owned(), known: known.join(", ") }
    })
}

/// The tokenizer.json of what a GGUF file says.
///
/// # Errors
/// When it is of a kind that we don't know.
pub(super) fn to_json(source: &TokenizerSource) -> Result<Value, TokenizerError> {
    let TokenizerSource::Gguf { model, pre, tokens, token_types, merges, scores, .. } = source
    else {
        return Err(TokenizerError::Unusable("it isn't from a GGUF".into()));
    };
    let added = added_tokens(tokens, token_types);
    let vocab: Map<String, Value> =
        tokens.iter().zip(0u32..).map(|(token, id)| (token.clone(), id.into())).collect();
    match model.as_str() {
        "gpt2" => {
            let cut = cut(pre)?;
            let (normalizer, pre_tokenizer) = pre_tokenizer(cut);
            Ok(json!({
                "version": "1.0",
                "added_tokens": added,
                "normalizer": normalizer,
                "pre_tokenizer": pre_tokenizer,
                "post_processor": null,
                "decoder": byte_level(true),
                "model": {"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": false,
                          "ignore_merges": cut == Cut::Llama3},
            }))
        }
        "llama" => {
            let TokenizerSource::Gguf { add_space_prefix, .. } = source else {
                return Ok(json!({}));
            };
            Ok(json!({
                "version": "1.0",
                "added_tokens": added,
                "normalizer": {"type": "Sequence", "normalizers": sentencepiece(*add_space_prefix)},
                "pre_tokenizer": null,
                "post_processor": null,
                "decoder": {"type": "Sequence", "decoders": [
                    {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                    {"type": "Strip", "content": " ",
                     "start": u32::from(*add_space_prefix), "stop": 0},
                ]},
                "model": {"type": "BPE", "vocab": vocab, "merges": merges_of(tokens, scores),
                          "byte_fallback": true, "fuse_unk": true},
            }))
        }
        other => Err(TokenizerError::UnknownModel(other.to_owned())),
    }
}

fn added_tokens(tokens: &[String], types: &[i32]) -> Vec<Value> {
    let added = tokens.iter().zip(types).zip(0u32..);
    added
        .filter(|((_, kind), _)| matches!(**kind, CONTROL | USER_DEFINED))
        .map(|((token, kind), id)| {
            json!({
                "id": id, "content": token, "special": *kind == CONTROL,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect()
}

/// What is done to a text, and how it is cut.
fn pre_tokenizer(cut: Cut) -> (Value, Value) {
    let split = |regexes: &[&str]| {
        let mut all: Vec<_> = regexes
            .iter()
            .map(|regex| {
                json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated",
                       "invert": false})
            })
            .collect();
        all.push(byte_level(false));
        json!({"type": "Sequence", "pretokenizers": all})
    };
    let nfc = json!({"type": "NFC"});
    match cut {
        Cut::Gpt2 => (Value::Null, byte_level(true)),
        Cut::Default => (Value::Null, split(DEFAULT)),
        Cut::Digits => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            let all = json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]});
            (Value::Null, all)
        }
        Cut::Qwen2 => (Value::Null, split(&[QWEN2])),
        Cut::Qwen2Nfc => (nfc, split(&[QWEN2])),
        Cut::Cl100k | Cut::Llama3 => (Value::Null, split(&[CL100K])),
    }
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
           "use_regex": use_regex})
}

fn sentencepiece(add_space_prefix: bool) -> Vec<Value> {
    let prepend = json!({"type": "Prepend", "prepend": "\u{2581}"});
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    add_space_prefix.then_some(prepend).into_iter().chain([replace]).collect()
}

/// SentencePiece's BPE joins the two neighbours whose union scores best. As merges: every way of
/// making a token of two others, the best-scored token first.
fn merges_of(tokens: &[String], scores: &[f32]) -> Vec<Value> {
    let ids: HashMap<&str, usize> =
        tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let mut halves: Vec<_> = token
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| Some((ids.get(&token[..at])?, ids.get(&token[at..])?)))
            .collect();
        halves.sort_unstable();
        let score = scores.get(id).copied().unwrap_or(0.0);
        merges.extend(halves.into_iter().map(|(left, right)| (score, *left, *right)));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    merges.into_iter().map(|(_, left, right)| json!([tokens[left], tokens[right]])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use crate::tokenizer::Tokenizer;
    use protocol::TokenId;

    fn source(model: &str, pre: &str) -> TokenizerSource {
        let mut source = testing::sentencepiece(&[
            ("<unk>", 2, 0.0),
            ("<s>", 3, 0.0),
            ("▁", 1, -9.0),
            ("h", 1, -8.0),
            ("i", 1, -7.0),
            ("▁h", 1, -2.0),
            ("hi", 1, -3.0),
            ("▁hi", 1, -1.0),
            ("<0xE2>", 6, 0.0),
            ("<0x82>", 6, 0.0),
            ("<0xAC>", 6, 0.0),
        ]);
        if let TokenizerSource::Gguf { model: m, pre: p, .. } = &mut source {
            (*m, *p) = (model.into(), pre.into());
        }
        source
    }

    #[test]
    fn sentencepiece_merges_by_score_and_falls_back_to_bytes() {
        let tokenizer = Tokenizer::from_source(&source("llama", "default")).unwrap();
        let ids = tokenizer.encode("hi€", true).unwrap();
        assert_eq!(ids, [1, 7, 8, 9, 10].map(TokenId));
        assert_eq!(tokenizer.decode(&ids, true), "hi€");
        assert_eq!(tokenizer.token_bytes(TokenId(8)), [0xe2]);
    }

    #[test]
    fn a_text_has_a_token_for_every_so_many_bytes_where_every_byte_has_one() {
        let plain = [("<unk>", 2, 0.0), ("<s>", 3, 0.0), ("▁", 1, 0.0), ("▁abcdef", 1, 0.0)];
        let bytes: Vec<_> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
        let bytes = bytes.iter().map(|text| (text.as_str(), 6, 0.0));
        let all: Vec<_> = plain.into_iter().chain(bytes).collect();
        let of = |tokens: &[_]| Tokenizer::from_source(&testing::sentencepiece(tokens)).unwrap();
        let tokenizer = of(&all);
        assert_eq!(tokenizer.max_bytes(3), 27);
        for text in [" abcdef abcdef", "€€€€", "a  b"] {
            let num_tokens = tokenizer.encode(text, false).unwrap().len();
            assert!(text.len() <= tokenizer.max_bytes(num_tokens as u32), "{text}");
        }
        // Any run of what is unknown is one token.
        assert_eq!(of(&all[..all.len() - 1]).max_bytes(3), usize::MAX);
    }

    #[test]
    fn a_file_that_names_no_pre_tokenizer_is_split_at_punctuation_and_three_digits() {
        let tokens = ["a", "1", "2", "3", "4", "!", "12", "123", "a!"];
        let mut source = source("gpt2", "");
        if let TokenizerSource::Gguf { tokens: t, token_types: y, merges: m, scores: s, .. } =
            &mut source
        {
            *t = tokens.map(String::from).to_vec();
            *y = vec![1; tokens.len()];
            *m = ["1 2", "12 3", "a !"].map(String::from).to_vec();
            s.clear();
        }
        let tokenizer = Tokenizer::from_source(&source).unwrap();
        assert_eq!(tokenizer.encode("a!1234", false).unwrap(), [0, 5, 7, 4].map(TokenId));
    }

    #[test]
    fn every_known_way_to_cut_cuts() {
        for (name, cut) in KNOWN {
            let tokenizer = Tokenizer::from_source(&source("gpt2", name)).unwrap();
            // Without merges only a whole token is one.
            let expected = if *cut == Cut::Llama3 { vec![6] } else { vec![3, 4] };
            let ids = tokenizer.encode("hi", false).unwrap();
            assert_eq!(ids.iter().map(|id| id.0).collect::<Vec<_>>(), expected, "{name}");
            assert_eq!(super::cut(name).unwrap(), *cut);
        }
        // Who keeps whole tokens puts one in front, too.
        let whole = KNOWN.iter().filter(|(_, cut)| *cut == Cut::Llama3).map(|(name, _)| *name);
        let (mut whole, mut bos) = (whole.collect::<Vec<_>>(), checkpoint::BOS_BY_DEFAULT.to_vec());
        whole.sort_unstable();
        bos.sort_unstable();
        assert_eq!(whole, bos);
        let names: std::collections::HashSet<_> = KNOWN.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), KNOWN.len());
    }

    #[test]
    fn what_is_unknown_is_refused_by_name() {
        let error = Tokenizer::from_source(&source("gpt2", "tekken")).unwrap_err().to_string();
        assert!(error.contains("tekken") && error.contains("smollm"), "{error}");
        assert!(Tokenizer::from_source(&source("bert", "")).is_err());
    }
}
