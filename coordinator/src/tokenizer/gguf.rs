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

const KNOWN: &str =
    "default, gpt-2, smollm, starcoder, qwen2, llama-bpe, llama3, glm4, chatglm-bpe";

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
            let (normalizer, pre_tokenizer) = pre_tokenizer(pre)?;
            Ok(json!({
                "version": "1.0",
                "added_tokens": added,
                "normalizer": normalizer,
                "pre_tokenizer": pre_tokenizer,
                "post_processor": null,
                "decoder": byte_level(true),
                "model": {"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": false,
                          "ignore_merges": matches!(pre.as_str(), "llama-bpe" | "llama3")},
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

/// How text is cut before the merges, by llama.cpp's names.
fn pre_tokenizer(pre: &str) -> Result<(Value, Value), TokenizerError> {
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
    match pre {
        "gpt-2" => Ok((Value::Null, byte_level(true))),
        "default" | "" => Ok((Value::Null, split(DEFAULT))),
        "smollm" | "starcoder" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            let all = json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]});
            Ok((Value::Null, all))
        }
        "qwen2" => Ok((nfc, split(&[QWEN2]))),
        "llama-bpe" | "llama3" | "glm4" | "chatglm-bpe" => Ok((Value::Null, split(&[CL100K]))),
        other => {
            let (pre, known) = (other.to_owned(), KNOWN.to_owned());
            Err(TokenizerError::UnknownPre { pre, known })
        }
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
    use crate::tokenizer::Tokenizer;
    use protocol::TokenId;

    fn source(model: &str, pre: &str) -> TokenizerSource {
        let tokens =
            ["<unk>", "<s>", "▁", "h", "i", "▁h", "hi", "▁hi", "<0xE2>", "<0x82>", "<0xAC>"];
        TokenizerSource::Gguf {
            model: model.into(),
            pre: pre.into(),
            tokens: tokens.map(String::from).to_vec(),
            token_types: vec![2, 3, 1, 1, 1, 1, 1, 1, 6, 6, 6],
            scores: vec![0.0, 0.0, -9.0, -8.0, -7.0, -2.0, -3.0, -1.0, 0.0, 0.0, 0.0],
            merges: Vec::new(),
            bos: Some(1),
            eos: None,
            unk: Some(0),
            pad: None,
            add_bos: true,
            add_eos: false,
            add_space_prefix: true,
            chat_template: None,
        }
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
    fn what_is_unknown_is_refused_by_name() {
        let error = Tokenizer::from_source(&source("gpt2", "tekken")).unwrap_err().to_string();
        assert!(error.contains("tekken") && error.contains("smollm"), "{error}");
        assert!(Tokenizer::from_source(&source("bert", "")).is_err());
    }
}
