//! What stands between two texts: a completion with a `suffix`.

use protocol::TokenId;

use super::{ApiError, Context};
use crate::tokenizer::Tokenizer;

/// The special tokens by which families of models are asked: before what comes first, before what
/// comes last, and before the answer.
const FAMILIES: [[&str; 3]; 5] = [
    // GLM-4.5 and later, CodeGeeX.
    ["<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"],
    // Qwen.
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    // StarCoder, Granite.
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    // DeepSeek.
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
];

/// The prompt that asks for what stands between `before` and `after`.
///
/// # Errors
/// When the model has no tokens for it.
pub(super) fn prompt(
    before: &str,
    after: &str,
    context: Context<'_>,
) -> Result<Vec<TokenId>, ApiError> {
    let Some([first, last, middle]) = tags(context.tokenizer) else {
        let message = "suffix needs a model with tokens for filling in (such as <|code_prefix|>), \
                       and this one has none; remove it";
        return Err(ApiError::invalid("suffix", message).code("unsupported_parameter"));
    };
    let encode = |text: &str, specials: bool, field: &str| {
        let tokens = context.tokenizer.encode(text, specials);
        tokens.map_err(|cause| ApiError::invalid(field, cause.to_string()))
    };
    // What the tokenizer puts in front of every text.
    let mut tokens = encode("", true, "prompt")?;
    tokens.push(first);
    tokens.extend(encode(before, false, "prompt")?);
    tokens.push(last);
    tokens.extend(encode(after, false, "suffix")?);
    tokens.push(middle);
    Ok(tokens)
}

fn tags(tokenizer: &Tokenizer) -> Option<[TokenId; 3]> {
    FAMILIES.iter().find_map(|[first, last, middle]| {
        Some([tokenizer.added(first)?, tokenizer.added(last)?, tokenizer.added(middle)?])
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::openai::parse_completion;
    use crate::openai::testing::Served;

    /// The GLM-4 fixture's tokenizer, with the tokens of a family after its last.
    fn served(family: [&str; 3]) -> Served {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/glm4/f32");
        let text = std::fs::read(folder.join("tokenizer.json")).unwrap();
        let mut json: Value = serde_json::from_slice(&text).unwrap();
        for (id, text) in (630..).zip(family) {
            json["added_tokens"].as_array_mut().unwrap().push(json!({
                "id": id, "content": text, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            }));
        }
        let source = checkpoint::TokenizerSource::Json {
            tokenizer: json.to_string().into(),
            special: checkpoint::SpecialTokens::default(),
            chat_template: None,
        };
        let tokenizer = Arc::new(Tokenizer::from_source(&source).unwrap());
        Served { tokenizer, ..Served::chat() }
    }

    fn asked(served: &Served, body: Value) -> Result<String, ApiError> {
        let parsed = parse_completion(body.to_string().as_bytes(), served.context())?;
        Ok(served.tokenizer.decode(&parsed.requests[0].prompt, false))
    }

    #[test]
    fn what_is_between_is_asked_for_with_the_models_own_tokens() {
        let body = json!({"model": "m", "prompt": "a = ", "suffix": "\nprint(a)"});
        for family in FAMILIES {
            let text = asked(&served(family), body.clone()).unwrap();
            let [first, last, middle] = family;
            assert!(text.ends_with(&format!("{first}a = {last}\nprint(a){middle}")), "{text}");
        }
        let empty = json!({"model": "m", "prompt": "a", "suffix": ""});
        assert!(!asked(&served(FAMILIES[0]), empty).unwrap().contains(FAMILIES[0][0]));
    }

    #[test]
    fn what_has_no_between_is_refused_by_name() {
        let glm = served(FAMILIES[0]);
        for (served, more) in [
            (&Served::chat(), json!({})),
            (&glm, json!({"echo": true})),
            (&glm, json!({"prompt": ["a", "b"]})),
            (&glm, json!({"prompt": [5]})),
            (&glm, json!({"suffix": 1})),
        ] {
            let mut body = json!({"model": "m", "prompt": "a", "suffix": "b"});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let error = asked(served, body).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("suffix"), "{more}: {error}");
        }
    }
}
