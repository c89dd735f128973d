//! What a checkpoint says about its tokenizer. Whoever has a tokenizer library builds it.

use std::path::Path;

use serde_json::Value;

use crate::error::CheckpointError;
use crate::huggingface::read_json;
use crate::mapped::read_small;
use crate::tiktoken;

/// The largest published tokenizer.json has about 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// A tokenizer, as far as the files describe it.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenizerSource {
    /// From a Hugging Face directory.
    Json {
        /// The content of tokenizer.json, for the `tokenizers` library; not looked into.
        tokenizer: Vec<u8>,
        /// From tokenizer_config.json.
        special: SpecialTokens,
        /// A Jinja template that turns messages into text.
        chat_template: Option<String>,
    },
    /// From the keys `tokenizer.ggml.*` of a GGUF file.
    Gguf {
        /// `gpt2`: byte-level BPE by `merges`; `llama`: SentencePiece BPE by `scores`.
        model: String,
        /// Which regular expression splits text before the merges, by llama.cpp's name.
        pre: String,
        /// Text of each token, by id. For `gpt2` in GPT-2's alphabet for bytes.
        tokens: Vec<String>,
        /// One for each token, or none: 1 normal, 2 unknown, 3 control, 4 user defined,
        /// 5 unused, 6 byte.
        token_types: Vec<i32>,
        /// One for each token, or none.
        scores: Vec<f32>,
        /// Pairs, divided by a space, the most important first.
        merges: Vec<String>,
        /// Id of the token that starts a text.
        bos: Option<u32>,
        /// Id of the token that ends a text; see also
        /// [`eos_token_ids`](crate::ModelConfig::eos_token_ids).
        eos: Option<u32>,
        /// Id of the token for what no token covers.
        unk: Option<u32>,
        /// Id of the token that stands for no token.
        pad: Option<u32>,
        /// Does bos come before every text?
        add_bos: bool,
        /// Does eos come after every text?
        add_eos: bool,
        /// Does a space come before every text?
        add_space_prefix: bool,
        /// A Jinja template that turns messages into text.
        chat_template: Option<String>,
    },
}

/// What tokenizer_config.json says beside the template; all of it is optional.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Text of the token that starts a text.
    pub bos: Option<String>,
    /// Text of the token that ends a text.
    pub eos: Option<String>,
    /// Text of the token for what no token covers.
    pub unk: Option<String>,
    /// Text of the token that stands for no token.
    pub pad: Option<String>,
    /// Does bos come before every text? `None`: as tokenizer.json's post-processor does.
    pub add_bos: Option<bool>,
    /// Does eos come after every text? `None`: as tokenizer.json's post-processor does.
    pub add_eos: Option<bool>,
}

impl TokenizerSource {
    /// The template, wherever it came from.
    pub fn chat_template(&self) -> Option<&str> {
        match self {
            Self::Json { chat_template, .. } | Self::Gguf { chat_template, .. } => {
                chat_template.as_deref()
            }
        }
    }
}

/// Reads the tokenizer of a Hugging Face directory.
pub(crate) fn read(dir: &Path) -> Result<TokenizerSource, CheckpointError> {
    let [path, older] = ["tokenizer.json", "tokenizer.model"].map(|name| dir.join(name));
    if !path.exists() && !older.exists() {
        return Err(CheckpointError::MissingTokenizer { path: path.display().to_string() });
    }
    let config_path = dir.join("tokenizer_config.json");
    let config =
        if config_path.exists() { read_json(&config_path, MAX_CONFIG_BYTES)? } else { Value::Null };
    // The newer way to store a template, which transformers prefers.
    let template_path = dir.join("chat_template.jinja");
    let chat_template = if template_path.exists() {
        let bytes = read_small(&template_path, MAX_CONFIG_BYTES)?;
        Some(String::from_utf8(bytes).map_err(|_| CheckpointError::Malformed {
            path: template_path,
            problem: "this is no UTF-8 text".to_owned(),
        })?)
    } else {
        template(&config["chat_template"]).map_err(|problem| CheckpointError::Config {
            path: config_path,
            key: "chat_template".to_owned(),
            problem,
        })?
    };
    if !path.exists() {
        return tiktoken::read(&older, &config, chat_template);
    }
    let tokenizer = read_small(&path, MAX_TOKENIZER_BYTES)?;
    let special = SpecialTokens {
        bos: text(&config["bos_token"]),
        eos: text(&config["eos_token"]),
        unk: text(&config["unk_token"]),
        pad: text(&config["pad_token"]),
        add_bos: config["add_bos_token"].as_bool(),
        add_eos: config["add_eos_token"].as_bool(),
    };
    Ok(TokenizerSource::Json { tokenizer, special, chat_template })
}

/// A text, or a list of `{name, template}` of which one is the default.
fn template(value: &Value) -> Result<Option<String>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(template) => Ok(Some(template.clone())),
        Value::Array(list) => {
            let default = list.iter().find(|entry| entry["name"] == "default");
            match default.and_then(|entry| entry["template"].as_str()) {
                Some(template) => Ok(Some(template.to_owned())),
                None => Err("is a list without a template named \"default\"".to_owned()),
            }
        }
        _ => Err("must be a text or a list of templates".to_owned()),
    }
}

/// A token's text, or an object that has it as `content`.
fn text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}
