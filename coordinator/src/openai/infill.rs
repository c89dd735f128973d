//! What stands between two texts: a completion with a `suffix`, and `/infill`.

use protocol::TokenId;

use super::sampling::{Common, check_length};
use super::{ApiError, Context, Fields, Parsed, Reading, Style, known};
use crate::infill::Between;
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

/// What stands before the name of a file, in the models that know of several.
const FILES: [&str; 2] = ["<|file_sep|>", "<file_sep>"];

/// The request of a body of `/infill`.
///
/// # Errors
/// When the body asks for what this server or this model can't do.
pub(crate) fn parse(body: &[u8], context: Context<'_>) -> Result<Parsed, ApiError> {
    let mut fields = Fields::parse(body)?;
    let between = Between::take(&mut fields)?;
    if !fields.has("model") {
        fields.put("model", context.model.name.clone().into());
    }
    let mut common = Common::take(&mut fields, context)?;
    known::settle(&mut fields, Style::Completion)?;
    fields.finish()?;
    common.check_sequences(1, context)?;
    // What is only to be cached.
    common.may_say_nothing = true;
    common.options.reading = Some(Reading::plain());
    let tokens = prompt(&between, ["input_prefix", "input_suffix"], context)?;
    let default = Some(context.config.default_max_tokens).filter(|&tokens| tokens > 0);
    let request = common.request(tokens, default, context)?;
    Ok(Parsed { requests: vec![request], echoes: Vec::new(), options: common.options })
}

/// The prompt that asks for what stands between two texts, which come from these fields.
///
/// # Errors
/// When the model has no tokens for it.
pub(super) fn prompt(
    between: &Between,
    [before, after]: [&str; 2],
    context: Context<'_>,
) -> Result<Vec<TokenId>, ApiError> {
    let Some([first, last, middle]) = tags(context.tokenizer) else {
        let message = format!(
            "{after} needs a model with tokens for filling in (such as <|code_prefix|>), and this \
             one has none; remove it"
        );
        return Err(ApiError::invalid(after, message).code("unsupported_parameter"));
    };
    let texts = [(&between.before, before), (&between.after, after), (&between.begun, "prompt")];
    let extra = between.extra.iter().map(|(_, text)| (text, "input_extra"));
    for (text, field) in texts.into_iter().chain(extra) {
        check_length(text, field, context)?;
    }
    let encode = |text: &str, specials: bool, field: &str| {
        let tokens = context.tokenizer.encode(text, specials);
        tokens.map_err(|cause| ApiError::invalid(field, cause.to_string()))
    };
    // What the tokenizer puts in front of every text.
    let mut tokens = encode("", true, before)?;
    let file = FILES.iter().find_map(|tag| context.tokenizer.added(tag));
    for (name, text) in &between.extra {
        tokens.extend(file);
        tokens.extend(encode(&format!("{name}\n{text}\n"), false, "input_extra")?);
    }
    tokens.push(first);
    tokens.extend(encode(&between.before, false, before)?);
    tokens.push(last);
    tokens.extend(encode(&between.after, false, after)?);
    tokens.push(middle);
    tokens.extend(encode(&between.begun, false, "prompt")?);
    Ok(tokens)
}

fn tags(tokenizer: &Tokenizer) -> Option<[TokenId; 3]> {
    FAMILIES.iter().find_map(|[first, last, middle]| {
        Some([tokenizer.added(first)?, tokenizer.added(last)?, tokenizer.added(middle)?])
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::openai::parse_completion;
    use crate::openai::testing::Served;

    /// The GLM-4 fixture's tokenizer, with the tokens of a family after its last.
    pub(crate) fn served(family: [&str; 3]) -> Served {
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

    fn filled(served: &Served, body: Value) -> Result<Parsed, ApiError> {
        parse(body.to_string().as_bytes(), served.context())
    }

    #[test]
    fn editors_ask_with_llama_cpps_fields() {
        let served = served(FAMILIES[1]);
        let body = json!({
            "input_prefix": "a = ", "input_suffix": "\nb", "prompt": "(", "n_predict": 9,
            "input_extra": [{"filename": "x.py", "text": "import y"}], "top_k": 40,
            "samplers": ["top_k", "infill"], "cache_prompt": true, "t_max_prompt_ms": 500,
            "t_max_predict_ms": 1000, "stream": true, "repeat_penalty": 1.5, "stop": ["\n\n"],
            "seed": -1, "n_indent": 0,
        });
        let parsed = filled(&served, body).unwrap();
        let request = &parsed.requests[0];
        let text = served.tokenizer.decode(&request.prompt, false);
        let [first, last, middle] = FAMILIES[1];
        let expected = format!("x.py\nimport y\n{first}a = {last}\nb{middle}(");
        assert!(text.ends_with(&expected), "{text}");
        assert_eq!((request.max_tokens, request.sampling.repetition_penalty), (9, 1.5));
        assert!(request.deadline.is_some() && parsed.options.stream);
        // What is to be cached only, and what has nothing on either side.
        let request = |body| filled(&served, body).unwrap().requests.remove(0);
        assert_eq!(request(json!({"input_prefix": "a", "n_predict": 0})).max_tokens, 0);
        assert!(request(json!({"n_predict": -1})).max_tokens > 100);
        for (body, param) in [
            (json!({"input_prefix": 1}), "input_prefix"),
            (json!({"input_extra": [{"filename": "a"}]}), "input_extra"),
            (json!({"n_probs": 3}), "n_probs"),
            (json!({"model": "other"}), "model"),
            (json!({"wibble": 1}), "wibble"),
        ] {
            let error = filled(&served, body).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error}");
        }
        let error = filled(&Served::chat(), json!({"input_prefix": "a"})).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("input_suffix"), "{error}");
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
