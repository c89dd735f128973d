//! The tokenizer of glm-4-9b-chat as it was first published: `tokenizer.model`, a line for each
//! token, its bytes in base64 and its rank. Tokens that are written as they are stand in
//! tokenizer_config.json.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use crate::error::CheckpointError;
use crate::mapped::read_small;
use crate::tokenizer::TokenizerSource;

/// The largest published one has 2.6 MB.
const MAX_BYTES: u64 = 64 << 20;
/// Far above any vocabulary.
const MAX_TOKENS: usize = 1 << 20;
/// Longer ones are none of a language.
const MAX_TOKEN_BYTES: usize = 512;

/// Kinds of tokens, as GGUF numbers them.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Reads a tokenizer; `config` is tokenizer_config.json.
pub(crate) fn read(
    path: &Path,
    config: &Value,
    chat_template: Option<String>,
) -> Result<TokenizerSource, CheckpointError> {
    let bytes = read_small(path, MAX_BYTES)?;
    parse(&bytes, config, chat_template)
        .map_err(|problem| CheckpointError::Malformed { path: path.to_owned(), problem })
}

fn parse(
    bytes: &[u8],
    config: &Value,
    chat_template: Option<String>,
) -> Result<TokenizerSource, String> {
    let by_rank = ranks(bytes)?;
    let ranks: HashMap<&[u8], usize> =
        by_rank.iter().enumerate().map(|(rank, token)| (token.as_slice(), rank)).collect();
    let merges = by_rank.iter().enumerate().filter(|(_, token)| token.len() > 1);
    let merges = merges.filter_map(|(rank, token)| {
        let (left, right) = last_merge(token, rank, &ranks)?;
        Some(format!("{} {}", in_letters(left), in_letters(right)))
    });
    let merges = merges.collect();
    let mut tokens: Vec<String> = by_rank.iter().map(|token| in_letters(token)).collect();
    let mut token_types = vec![NORMAL; tokens.len()];
    let mut ids = HashMap::new();
    for (id, token) in config["added_tokens_decoder"].as_object().into_iter().flatten() {
        let number = id.parse().ok().filter(|id| (tokens.len()..MAX_TOKENS).contains(id));
        let (Some(number), Some(text)) = (number, token["content"].as_str()) else {
            // One of those above by another name.
            continue;
        };
        for unused in tokens.len()..=number {
            tokens.push(format!("[PAD{unused}]"));
            token_types.push(UNUSED);
        }
        text.clone_into(&mut tokens[number]);
        let is_special = token["special"].as_bool().unwrap_or(false);
        token_types[number] = if is_special { CONTROL } else { USER_DEFINED };
        ids.insert(text.to_owned(), number as u32);
    }
    let named = |key: &str| {
        let text = config[key].as_str().or_else(|| config[key]["content"].as_str())?;
        ids.get(text).copied()
    };
    Ok(TokenizerSource::Gguf {
        model: "gpt2".to_owned(),
        pre: "glm4".to_owned(),
        bos: named("bos_token"),
        eos: named("eos_token"),
        unk: named("unk_token"),
        pad: named("pad_token"),
        tokens,
        token_types,
        scores: Vec::new(),
        merges,
        add_bos: false,
        add_eos: false,
        add_space_prefix: false,
        chat_template,
    })
}

/// Bytes of each token, by rank.
fn ranks(bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| {
        "this is no list of tokens and ranks (tiktoken); SentencePiece models are not read, put a \
         tokenizer.json beside it"
            .to_owned()
    })?;
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let wrong = || format!("line {} is no token in base64 and its rank", number + 1);
        let (token, rank) = line.split_once(' ').ok_or_else(wrong)?;
        let token = base64(token).filter(|token| !token.is_empty()).ok_or_else(wrong)?;
        if token.len() > MAX_TOKEN_BYTES || rank.trim().parse() != Ok(number) {
            return Err(format!("{}, {number}, of at most {MAX_TOKEN_BYTES} bytes", wrong()));
        }
        if number == MAX_TOKENS {
            return Err(format!("there are more than {MAX_TOKENS} tokens"));
        }
        found.push(token);
    }
    Ok(found)
}

/// The two tokens of which a third one is made last, where only better ones are made before.
fn last_merge<'a>(
    token: &'a [u8],
    rank: usize,
    ranks: &HashMap<&[u8], usize>,
) -> Option<(&'a [u8], &'a [u8])> {
    // Where each part ends.
    let mut ends: Vec<usize> = (1..=token.len()).collect();
    while ends.len() > 2 {
        let start = |at: usize| at.checked_sub(1).map_or(0, |before| ends[before]);
        let pairs = (0..ends.len() - 1).filter_map(|at| {
            let made = ranks.get(&token[start(at)..ends[at + 1]])?;
            (*made < rank).then_some((*made, at))
        });
        let (_, best) = pairs.min()?;
        ends.remove(best);
    }
    Some(token.split_at(ends[0]))
}

/// Bytes in GPT-2's letters for them.
fn in_letters(bytes: &[u8]) -> String {
    let letter = |byte: u8| {
        let is_printable = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        if is_printable(&byte) {
            return char::from(byte);
        }
        let before = (0..byte).filter(|other| !is_printable(other)).count() as u32;
        char::from_u32(0x100 + before).expect("68 letters from U+0100 on are there")
    };
    bytes.iter().map(|byte| letter(*byte)).collect()
}

/// With padding, as RFC 4648 has it.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut num_bits) = (0u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        num_bits += 6;
        if num_bits >= 8 {
            num_bits -= 8;
            bytes.push((bits >> num_bits) as u8);
            bits &= (1 << num_bits) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// `a b ab c abc`, and two that are written as they are.
    const RANKS: &str = "YQ== 0\nYg== 1\nYWI= 2\nYw== 3\nYWJj 4\nIGE= 5\n";

    #[test]
    fn ranks_are_merges_and_bytes_are_letters() {
        let config = json!({"eos_token": "<|endoftext|>", "added_tokens_decoder": {
            "7": {"content": "<|endoftext|>", "special": true},
            "8": {"content": "<think>", "special": false},
        }});
        let source = parse(RANKS.as_bytes(), &config, Some("t".to_owned())).unwrap();
        let TokenizerSource::Gguf { tokens, token_types, merges, eos, .. } = source else {
            panic!()
        };
        let expected =
            ["a", "b", "ab", "c", "abc", "\u{120}a", "[PAD6]", "<|endoftext|>", "<think>"];
        assert_eq!(tokens, expected);
        assert_eq!(token_types, [1, 1, 1, 1, 1, 1, 5, 3, 4]);
        // A space is no token of its own, and so nothing is merged with it.
        assert_eq!(merges, ["a b", "ab c", "\u{120} a"]);
        assert_eq!(eos, Some(7));
    }

    #[test]
    fn lines_that_are_no_tokens_are_named() {
        let says = |bytes: &[u8]| parse(bytes, &Value::Null, None).unwrap_err();
        assert!(says(b"\n\x0e\xff\xfe").contains("SentencePiece"));
        assert!(says(b"YQ== 0\nYg=\n").starts_with("line 2 is no token in base64"));
        assert!(says(b"YQ== 0\nY!== 1\n").starts_with("line 2 is no token in base64"));
        assert!(
            says(b"YQ== 0\nYg== 7\n").starts_with("line 2 is no token in base64 and its rank, 1")
        );
    }

    #[test]
    fn base64_by_hand() {
        for (text, bytes) in
            [("YQ==", &b"a"[..]), ("YWI=", b"ab"), ("YWJj", b"abc"), ("/+8=", &[0xff, 0xef])]
        {
            assert_eq!(base64(text).unwrap(), bytes);
        }
        assert_eq!(base64("YQ="), None);
        assert_eq!(base64("===="), None);
    }
}
