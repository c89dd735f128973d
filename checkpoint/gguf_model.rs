//! What a GGUF file's keys say about its model.

use std::path::Path;

use crate::architecture::{Architecture, GGUF, Layout, Role};
use crate::config::{MAX_HEAD_DIM, MAX_HEADS, MAX_POSITIONS, MAX_WIDTH, ModelConfig, Refused};
use crate::error::CheckpointError;
use crate::gguf::{Header, Value};
use crate::gguf_layers::{layers, mla};
use crate::mapped::Mapped;
use crate::spec::{Attention, Dense, Gqa, LayerSpec, Mlp};
use crate::tokenizer::TokenizerSource;

/// Texts that end an answer wherever they are tokens, whatever the keys and the tokens' types say:
/// many files name one of two. llama.cpp has such a list too (`special_eog_ids`).
const ENDS: &[&str] = &[
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "</s>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
    // Where one file ends and another begins.
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
];
/// The same for GLM, whose answers end where another speaker begins.
const GLM_ENDS: &[&str] = &["<|user|>", "<|observation|>"];

/// The configuration and the table of tensors.
pub(crate) fn config(
    mapped: &Mapped,
    header: &Header,
) -> Result<(ModelConfig, &'static Layout), CheckpointError> {
    let layout = layout(&mapped.path, header)?;
    let keys = Keys { header, prefix: layout.source };
    let config = parse(&keys, layout, mapped).and_then(ModelConfig::check);
    match config {
        Ok(config) => Ok((config, layout)),
        Err(Refused { key, problem }) => {
            Err(CheckpointError::Config { path: mapped.path.clone(), key, problem })
        }
    }
}

/// The tokenizer under `tokenizer.ggml.*`.
pub(crate) fn tokenizer(
    mapped: &Mapped,
    header: &Header,
) -> Result<TokenizerSource, CheckpointError> {
    let keys = Keys { header, prefix: "" };
    tokenizer_source(&keys, mapped.bytes()).map_err(|Refused { key, problem }| {
        if problem == MISSING {
            CheckpointError::MissingTokenizer { path: format!("{}: {key}", mapped.path.display()) }
        } else {
            CheckpointError::Config { path: mapped.path.clone(), key, problem }
        }
    })
}

fn layout(path: &Path, header: &Header) -> Result<&'static Layout, CheckpointError> {
    let name = match header.keys.get("general.architecture") {
        Some(Value::String(name)) => name,
        _ => "(general.architecture is missing)",
    };
    GGUF.iter().find(|layout| layout.source == name).ok_or_else(|| {
        let supported: Vec<_> = GGUF.iter().map(|layout| layout.source).collect();
        CheckpointError::UnsupportedArchitecture {
            path: path.to_owned(),
            name: name.to_owned(),
            supported: supported.join(", "),
        }
    })
}

fn parse(keys: &Keys<'_>, layout: &Layout, mapped: &Mapped) -> Result<ModelConfig, Refused> {
    refuse_what_is_not_computed(keys)?;
    let has_experts = layout.architecture.has_experts();
    if !has_experts && keys.integer("expert_count")?.is_some_and(|n| n != 0) {
        return Err(Refused::new(
            &keys.full("expert_count"),
            "asks for a mixture of experts, supported are those of glm4moe, deepseek2 and glm-dsa",
        ));
    }
    let hidden_size = keys.required("embedding_length", MAX_WIDTH)?;
    let num_heads = keys.required("attention.head_count", MAX_HEADS)?;
    let head_dim = match keys.optional("attention.key_length", MAX_HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(num_heads)
            && hidden_size / num_heads <= MAX_HEAD_DIM =>
        {
            hidden_size / num_heads
        }
        None => {
            return Err(Refused::new(
                "attention.key_length",
                format!("is missing and {num_heads} heads do not divide {hidden_size}"),
            ));
        }
    };
    let is_latent =
        matches!(layout.architecture, Architecture::Glm4MoeLite | Architecture::GlmMoeDsa);
    if let Some(value_length) = keys.optional("attention.value_length", MAX_HEAD_DIM)?
        && value_length != head_dim
        && !is_latent
    {
        return Err(Refused::new(
            "attention.value_length",
            format!("is {value_length}, it must be the key length, {head_dim}"),
        ));
    }
    let Some(rms_norm_eps) = keys.float("attention.layer_norm_rms_epsilon")? else {
        return Err(Refused::new(&keys.full("attention.layer_norm_rms_epsilon"), MISSING));
    };
    let has = |role, layer| {
        let ways = layout.names(role, layer);
        ways.iter().flatten().any(|name| keys.header.tensors.contains_key(name))
    };
    // The embedding itself knows best: `vocab_size` is optional, and padding is not always in it.
    let embedding = layout.names(Role::Embedding, None).concat().concat();
    let vocab_size = keys.header.tensors.get(&embedding).map_or(0, |stored| stored.shape[0]);
    if !(1..=crate::config::MAX_VOCABULARY).contains(&vocab_size) {
        return Err(Refused::new(
            &format!("tensor {embedding}"),
            format!("has {vocab_size} rows, expected one for each token of the vocabulary"),
        ));
    }
    let spec = LayerSpec {
        attention: if is_latent {
            mla(keys, layout.architecture)?
        } else {
            Attention::Gqa(Gqa {
                num_heads,
                num_kv_heads: keys
                    .optional("attention.head_count_kv", MAX_HEADS)?
                    .unwrap_or(num_heads),
                head_dim,
                rotary_dim: keys
                    .optional("rope.dimension_count", MAX_HEAD_DIM)?
                    .unwrap_or(head_dim),
                bias: has(Role::QkvBias, Some(0)),
                qk_norm: has(Role::QueryNorm, Some(0)),
            })
        },
        mlp: Mlp::Dense(Dense { width: keys.required("feed_forward_length", MAX_WIDTH)? }),
        sandwich_norms: layout.architecture == Architecture::Glm4,
    };
    Ok(ModelConfig {
        architecture: layout.architecture,
        layers: layers(keys, layout, (spec, vocab_size), mapped.bytes())?,
        hidden_size,
        vocab_size,
        max_position_embeddings: keys.required("context_length", MAX_POSITIONS)?,
        rope_theta: keys.float("rope.freq_base")?.unwrap_or(10_000.0),
        rms_norm_eps,
        tie_word_embeddings: !has(Role::LmHead, None),
        eos_token_ids: ends(keys, layout, mapped.bytes())?,
        bos_token_id: keys.token("bos_token_id")?,
        pad_token_id: keys.token("padding_token_id")?,
    })
}

fn refuse_what_is_not_computed(keys: &Keys<'_>) -> Result<(), Refused> {
    if keys.header.tensors.keys().any(|name| name.contains("rope_freqs")) {
        return Err(Refused::new(
            "tensor rope_freqs.weight",
            "asks for scaled rope frequencies (llama3), supported is plain rope",
        ));
    }
    if let Some(Value::String(kind)) = keys.value("rope.scaling.type")
        && kind != "none"
    {
        return Err(Refused::new(
            &keys.full("rope.scaling.type"),
            format!("is {kind:?}, supported is \"none\""),
        ));
    }
    // The older way to say linear scaling.
    if keys.float("rope.scale_linear")?.is_some_and(|scale| scale != 1.0) {
        return Err(Refused::new(&keys.full("rope.scale_linear"), "must be 1 or missing"));
    }
    if keys.value("rope.dimension_sections").is_some() {
        return Err(Refused::new(
            &keys.full("rope.dimension_sections"),
            "asks for rope in several dimensions (a vision model), supported is text alone",
        ));
    }
    if keys.value("attention.causal") == Some(&Value::Bool(false)) {
        return Err(Refused::new(&keys.full("attention.causal"), "must be true or missing"));
    }
    if let Some(window) = keys.integer("attention.sliding_window")?
        && window != 0
        && keys.integer("context_length")?.is_some_and(|context| window < context)
    {
        return Err(Refused::new(
            &keys.full("attention.sliding_window"),
            format!("is {window}, supported is attention to the whole context"),
        ));
    }
    for scale in ["attention.scale", "logit_scale", "embedding_scale", "residual_scale"] {
        if keys.float(scale)?.is_some_and(|scale| scale != 0.0) {
            return Err(Refused::new(&keys.full(scale), "must be missing"));
        }
    }
    Ok(())
}

/// Tokens that end an answer, in the order in which they are found.
fn ends(keys: &Keys<'_>, layout: &Layout, bytes: &[u8]) -> Result<Vec<u32>, Refused> {
    let mut ids = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        ids.extend(keys.token(key)?);
    }
    // Whatever type a file gives them.
    if let Some(Value::Array(tokens)) = keys.ggml("tokens") {
        let texts = tokens.strings(bytes).unwrap_or_default();
        let is_glm = !matches!(layout.source, "llama" | "qwen2");
        let is_end = |text: &&str| ENDS.contains(text) || is_glm && GLM_ENDS.contains(text);
        ids.extend((0u32..).zip(&texts).filter(|(_, text)| is_end(text)).map(|(id, _)| id));
    }
    let mut seen = std::collections::HashSet::new();
    ids.retain(|id| seen.insert(*id));
    Ok(ids)
}

/// Vocabularies whose BPE puts a bos token first unless a key says otherwise: Llama 3's.
pub const BOS_BY_DEFAULT: &[&str] = &[
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
];

fn tokenizer_source(keys: &Keys<'_>, bytes: &[u8]) -> Result<TokenizerSource, Refused> {
    let full = |key: &str| format!("{TOKENIZER}{key}");
    let missing = |key: &str| Refused::new(&full(key), MISSING);
    let wrong = |key: &str| Refused::new(&full(key), "is damaged or of the wrong type");
    let text = |key: &str| match keys.ggml(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(wrong(key)),
    };
    let flag = |key: &str| match keys.ggml(key) {
        None => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(wrong(key)),
    };
    let array = |key: &str| match keys.ggml(key) {
        None => Ok(None),
        Some(Value::Array(array)) => Ok(Some(array)),
        Some(_) => Err(wrong(key)),
    };
    let strings = |key: &str| -> Result<Option<Vec<String>>, Refused> {
        let Some(array) = array(key)? else { return Ok(None) };
        let strings = array.strings(bytes).ok_or_else(|| wrong(key))?;
        Ok(Some(strings.into_iter().map(str::to_owned).collect()))
    };
    let model = text("model")?.ok_or_else(|| missing("model"))?;
    if !matches!(model.as_str(), "gpt2" | "llama") {
        return Err(Refused::new(
            &full("model"),
            format!("is {model:?}, supported are \"gpt2\" and \"llama\""),
        ));
    }
    let tokens = strings("tokens")?.ok_or_else(|| missing("tokens"))?;
    let as_many = |key: &str, len: usize| {
        if len == tokens.len() {
            return Ok(());
        }
        let problem = format!("has {len} elements, there are {} tokens", tokens.len());
        Err(Refused::new(&full(key), problem))
    };
    let mut token_types = Vec::new();
    if let Some(array) = array("token_type")? {
        as_many("token_type", array.len())?;
        for kind in array.integers(bytes).ok_or_else(|| wrong("token_type"))? {
            token_types.push(i32::try_from(kind).map_err(|_| wrong("token_type"))?);
        }
    }
    let mut scores = Vec::new();
    if let Some(array) = array("scores")? {
        as_many("scores", array.len())?;
        scores = array.floats(bytes).ok_or_else(|| wrong("scores"))?;
    }
    let pre = text("pre")?.unwrap_or_else(|| "default".to_owned());
    let token = |key: &str| match keys.token(key)? {
        Some(id) if id as usize >= tokens.len() => {
            let problem = format!("is {id}, there are {} tokens", tokens.len());
            Err(Refused::new(&full(key), problem))
        }
        id => Ok(id),
    };
    let chat_template = match keys.header.keys.get("tokenizer.chat_template") {
        Some(Value::String(template)) => Some(template.clone()),
        _ => None,
    };
    Ok(TokenizerSource::Gguf {
        add_bos: flag("add_bos_token")?
            .unwrap_or(model == "llama" || BOS_BY_DEFAULT.contains(&pre.as_str())),
        add_eos: flag("add_eos_token")?.unwrap_or(false),
        add_space_prefix: flag("add_space_prefix")?.unwrap_or(model == "llama"),
        bos: token("bos_token_id")?,
        eos: token("eos_token_id")?,
        unk: token("unknown_token_id")?,
        pad: token("padding_token_id")?,
        merges: strings("merges")?.unwrap_or_default(),
        model,
        pre,
        tokens,
        token_types,
        scores,
        chat_template,
    })
}

const TOKENIZER: &str = "tokenizer.ggml.";
const MISSING: &str = "is missing";

/// Keys of one architecture, with their types checked.
pub(crate) struct Keys<'a> {
    header: &'a Header,
    prefix: &'static str,
}

impl<'a> Keys<'a> {
    pub(crate) fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        self.header.keys.get(&self.full(key))
    }

    fn ggml(&self, key: &str) -> Option<&'a Value> {
        self.header.keys.get(&format!("{TOKENIZER}{key}"))
    }

    pub(crate) fn required(&self, key: &str, max: usize) -> Result<usize, Refused> {
        self.optional(key, max)?.ok_or_else(|| Refused::new(&self.full(key), MISSING))
    }

    pub(crate) fn optional(&self, key: &str, max: usize) -> Result<Option<usize>, Refused> {
        let Some(number) = self.integer(key)? else { return Ok(None) };
        match usize::try_from(number) {
            Ok(count) if (1..=max).contains(&count) => Ok(Some(count)),
            _ => Err(Refused::new(
                &self.full(key),
                format!("is {number}, it must be a number from 1 to {max}"),
            )),
        }
    }

    /// Arrays too are refused: layers that differ from each other are not computed.
    pub(crate) fn integer(&self, key: &str) -> Result<Option<u64>, Refused> {
        let wrong = || Refused::new(&self.full(key), "must be one number that is not negative");
        match self.value(key) {
            None => Ok(None),
            Some(Value::Unsigned(number)) => Ok(Some(*number)),
            Some(Value::Signed(number)) => u64::try_from(*number).map(Some).map_err(|_| wrong()),
            Some(_) => Err(wrong()),
        }
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, Refused> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(Refused::new(&self.full(key), "must be true or false")),
        }
    }

    /// Of each layer.
    pub(crate) fn flags(&self, key: &str, bytes: &[u8]) -> Result<Option<Vec<bool>>, Refused> {
        let wrong = || Refused::new(&self.full(key), "must be a list of true and false");
        match self.value(key) {
            None => Ok(None),
            Some(Value::Array(array)) => array.flags(bytes).map(Some).ok_or_else(wrong),
            Some(_) => Err(wrong()),
        }
    }

    pub(crate) fn float(&self, key: &str) -> Result<Option<f32>, Refused> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Float(number)) => Ok(Some(*number as f32)),
            Some(_) => Err(Refused::new(&self.full(key), "must be a float")),
        }
    }

    fn token(&self, key: &str) -> Result<Option<u32>, Refused> {
        let id = match self.ggml(key) {
            None => return Ok(None),
            Some(Value::Unsigned(id)) => u32::try_from(*id).ok(),
            Some(Value::Signed(id)) => u32::try_from(*id).ok(),
            Some(_) => None,
        };
        // Files write -1, and its unsigned form, where there is none.
        match id {
            Some(u32::MAX) | None => Ok(None),
            id => Ok(id),
        }
    }
}
