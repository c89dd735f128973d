//! Hugging Face directories: config.json, safetensors files and their index.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::architecture::{Architecture, HUGGING_FACE, Layout};
use crate::chatglm;
use crate::config::{
    MAX_EXPERTS, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH,
    ModelConfig, Refused,
};
use crate::error::CheckpointError;
use crate::fp8::{Scaling, scaling};
use crate::mapped::{Mapped, is_named, read_small};
use crate::safetensors;
use crate::spec::{Attention, Dense, Gqa, Index, LayerSpec, Mla, Mlp, Moe};
use crate::tensors::Tensors;

/// The largest published index has about 10 MB, configurations a few kB.
const MAX_INDEX_BYTES: u64 = 64 << 20;
pub(crate) const MAX_CONFIG_BYTES: u64 = 16 << 20;
const MAX_FILES: usize = 1024;

/// What transformers' classes of GLM and GLM-4 take where a configuration is silent (`GlmConfig`,
/// `Glm4Config`).
const HEAD_DIM: usize = 128;
const NUM_KV_HEADS: usize = 2;
const RMS_NORM_EPS: f64 = 1.562_5e-7;
const MOE_RMS_NORM_EPS: f64 = 1e-5;
/// `<|endoftext|>`, `<|user|>`, `<|observation|>` of GLM-4's vocabulary.
const EOS: [u32; 3] = [151_329, 151_336, 151_338];

/// A kernel is written out for each of them.
const MAX_INDEX_HEADS: usize = 128;

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const GENERATION_CONFIG: &str = "generation_config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// What a configuration says.
pub(crate) struct Configuration {
    pub(crate) model: ModelConfig,
    pub(crate) layout: &'static Layout,
    pub(crate) scaling: Option<Scaling>,
    /// As what weights are stored that have no factors beside them, in transformers' word.
    pub(crate) dtype: Option<String>,
}

/// Whether the weights that belong to a configuration lie beside it.
pub(crate) fn has_weights(dir: &Path) -> bool {
    [SINGLE, INDEX].iter().any(|name| dir.join(name).exists())
}

/// Reads config.json and, where there is one, generation_config.json.
pub(crate) fn config(dir: &Path) -> Result<Configuration, CheckpointError> {
    config_of(&dir.join(CONFIG), &dir.join(GENERATION_CONFIG))
}

/// Reads a configuration whatever it is called.
pub(crate) fn config_of(
    path: &Path,
    generation_path: &Path,
) -> Result<Configuration, CheckpointError> {
    let fields = read_json(path, MAX_CONFIG_BYTES)?;
    let layout = layout(path, &fields)?;
    let refused = |path: &Path| {
        let path = path.to_owned();
        |Refused { key, problem }| CheckpointError::Config { path, key, problem }
    };
    let generation = if generation_path.exists() {
        read_json(generation_path, MAX_CONFIG_BYTES)?
    } else {
        Value::Null
    };
    let parsed = if chatglm::is_one(layout) {
        let glm = chatglm::as_glm(&fields).map_err(refused(path))?;
        parse(&glm, layout).map_err(chatglm::renamed)
    } else {
        parse(&fields, layout)
    };
    let mut model = parsed.map_err(refused(path))?;
    // What was tuned for generation wins over what the model was trained with.
    if let Some(ids) = tokens(&generation, "eos_token_id").map_err(refused(generation_path))? {
        model.eos_token_ids = ids;
    }
    let scaling = scaling(&fields).map_err(refused(path))?;
    let model = model.check().map_err(refused(path))?;
    let dtype = ["dtype", "torch_dtype"].iter().find_map(|key| fields[key].as_str());
    Ok(Configuration { model, layout, scaling, dtype: dtype.map(str::to_owned) })
}

/// The files that are read besides those of weights.
pub(crate) fn small_files(dir: &Path) -> Vec<PathBuf> {
    // A single file of weights needs no index.
    let index = (!dir.join(SINGLE).exists()).then_some(INDEX);
    let names = [CONFIG, GENERATION_CONFIG].into_iter().chain(index);
    names.map(|name| dir.join(name)).filter(|path| path.exists()).collect()
}

fn layout(path: &Path, fields: &Value) -> Result<&'static Layout, CheckpointError> {
    let name = fields["architectures"][0].as_str().unwrap_or("(config.json names none)");
    HUGGING_FACE.iter().find(|layout| layout.source == name).ok_or_else(|| {
        let supported: Vec<_> = HUGGING_FACE.iter().map(|layout| layout.source).collect();
        CheckpointError::UnsupportedArchitecture {
            path: path.to_owned(),
            name: name.to_owned(),
            supported: supported.join(", "),
        }
    })
}

/// Both styles: rope fields at the top level, or under `rope_parameters` (transformers 5).
fn parse(fields: &Value, layout: &Layout) -> Result<ModelConfig, Refused> {
    refuse_what_is_not_computed(fields)?;
    let head_dim = optional(fields, "head_dim", MAX_HEAD_DIM)?.unwrap_or(HEAD_DIM);
    let theta = rope_number(fields, "rope_theta")?.unwrap_or(10_000.0);
    // GLM's own default; a model that rotates whole heads says so.
    let factor = match rope_number(fields, "partial_rotary_factor")? {
        Some(factor) => factor,
        None if fields.get("partial_rotary_factor").is_some_and(Value::is_null) => {
            let problem = "is null, which some releases of transformers take for 0.5 and some for \
                           1; write the number";
            return Err(Refused::new("partial_rotary_factor", problem));
        }
        None => 0.5,
    };
    if !(factor > 0.0 && factor <= 1.0) {
        return Err(Refused::new(
            "partial_rotary_factor",
            format!("is {factor}, it must be above 0 and at most 1"),
        ));
    }
    let vocab_size = required(fields, "vocab_size", MAX_VOCABULARY)?;
    let is_moe = layout.architecture.has_experts();
    let eps = if is_moe { MOE_RMS_NORM_EPS } else { RMS_NORM_EPS };
    let eps = number(&fields["rms_norm_eps"], "rms_norm_eps")?.unwrap_or(eps);
    let attention = match layout.architecture {
        Architecture::Glm4MoeLite => Attention::Mla(mla(fields)?),
        Architecture::GlmMoeDsa => {
            Attention::Mla(Mla { index: Some(index(fields)?), ..mla(fields)? })
        }
        Architecture::Glm | Architecture::Glm4 | Architecture::Glm4Moe => Attention::Gqa(Gqa {
            num_heads: required(fields, "num_attention_heads", MAX_HEADS)?,
            num_kv_heads: optional(fields, "num_key_value_heads", MAX_HEADS)?
                .unwrap_or(NUM_KV_HEADS),
            head_dim,
            rotary_dim: (head_dim as f64 * factor) as usize,
            bias: flag(fields, "attention_bias")?.unwrap_or(!is_moe),
            qk_norm: is_moe && flag(fields, "use_qk_norm")?.unwrap_or(false),
        }),
    };
    let dense = Mlp::Dense(Dense { width: required(fields, "intermediate_size", MAX_WIDTH)? });
    let sandwich_norms = layout.architecture == Architecture::Glm4;
    let num_layers = required(fields, "num_hidden_layers", MAX_LAYERS)?;
    let mut layers = vec![LayerSpec { attention, mlp: dense, sandwich_norms }; num_layers];
    if layout.architecture == Architecture::GlmMoeDsa {
        for (layer, shared) in layers.iter_mut().zip(shared_layers(fields, num_layers)?) {
            if let Attention::Mla(Mla { index: Some(index), .. }) = &mut layer.attention {
                index.shared = shared;
            }
        }
    }
    if is_moe {
        let moe = moe(fields)?;
        for (layer, is_sparse) in layers.iter_mut().zip(sparse_layers(fields, num_layers)?) {
            if is_sparse {
                layer.mlp = Mlp::Moe(moe);
            }
        }
    }
    Ok(ModelConfig {
        architecture: layout.architecture,
        layers,
        hidden_size: required(fields, "hidden_size", MAX_WIDTH)?,
        vocab_size,
        max_position_embeddings: required(fields, "max_position_embeddings", MAX_POSITIONS)?,
        rope_theta: theta as f32,
        rms_norm_eps: eps as f32,
        tie_word_embeddings: flag(fields, "tie_word_embeddings")?.unwrap_or(false),
        eos_token_ids: match tokens(fields, "eos_token_id")? {
            Some(ids) => ids,
            None => EOS.into_iter().filter(|id| (*id as usize) < vocab_size).collect(),
        },
        bos_token_id: first_token(fields, "bos_token_id")?,
        pad_token_id: first_token(fields, "pad_token_id")?,
    })
}

/// As transformers' classes of models with latent attention read it.
fn mla(fields: &Value) -> Result<Mla, Refused> {
    // It would be of other products than those of the other classes.
    if flag(fields, "attention_bias")? == Some(true) {
        return Err(Refused::new("attention_bias", "is true, supported is false"));
    }
    if flag(fields, "rope_interleave")? == Some(false) {
        return Err(Refused::new("rope_interleave", "is false, supported is true"));
    }
    Ok(Mla {
        num_heads: required(fields, "num_attention_heads", MAX_HEADS)?,
        q_lora_rank: required(fields, "q_lora_rank", MAX_WIDTH)?,
        kv_lora_rank: required(fields, "kv_lora_rank", MAX_WIDTH)?,
        nope_dim: required(fields, "qk_nope_head_dim", MAX_HEAD_DIM)?,
        rope_dim: required(fields, "qk_rope_head_dim", MAX_HEAD_DIM)?,
        value_dim: required(fields, "v_head_dim", MAX_HEAD_DIM)?,
        index: None,
    })
}

/// As transformers' class of models that choose positions reads it.
fn index(fields: &Value) -> Result<Index, Refused> {
    Ok(Index {
        num_heads: required(fields, "index_n_heads", MAX_INDEX_HEADS)?,
        head_dim: required(fields, "index_head_dim", MAX_HEAD_DIM)?,
        top_k: required(fields, "index_topk", MAX_POSITIONS)?,
        shared: false,
    })
}

/// Which layers take the choice of the one before: those that are named so, or all but every
/// `index_topk_freq`-th after the first `index_skip_topk_offset`.
fn shared_layers(fields: &Value, num_layers: usize) -> Result<Vec<bool>, Refused> {
    let key = "indexer_types";
    let problem = |layer: usize| {
        let all = format!("must be \"full\" or \"shared\" for each of {num_layers} layers");
        Refused::new(key, format!("{all}, which layer {layer} isn't, and \"full\" for the first"))
    };
    let shared: Vec<bool> = match &fields[key] {
        Value::Null => {
            let frequency = optional(fields, "index_topk_freq", MAX_LAYERS)?.unwrap_or(1);
            let offset = fields["index_skip_topk_offset"].as_u64().unwrap_or(0);
            if !fields["index_topk_pattern"].is_null() {
                let problem = "is set, supported are indexer_types and index_topk_freq";
                return Err(Refused::new("index_topk_pattern", problem));
            }
            let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(num_layers);
            let before = |layer: usize| layer.saturating_add(1).saturating_sub(offset);
            (0..num_layers).map(|layer| !before(layer).is_multiple_of(frequency)).collect()
        }
        kinds => {
            let kinds = kinds.as_array().filter(|kinds| kinds.len() == num_layers);
            let kinds = kinds.ok_or_else(|| problem(0))?;
            let kind = |(layer, kind): (usize, &Value)| match kind.as_str() {
                Some("full") => Ok(false),
                Some("shared") => Ok(true),
                _ => Err(problem(layer)),
            };
            kinds.iter().enumerate().map(kind).collect::<Result<_, _>>()?
        }
    };
    if shared.first() == Some(&true) { Err(problem(0)) } else { Ok(shared) }
}

/// As transformers' classes of models with experts read it.
fn moe(fields: &Value) -> Result<Moe, Refused> {
    for (key, supported) in [("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")] {
        if !(fields[key].is_null() || fields[key] == supported) {
            let problem = format!("is {}, supported is \"{supported}\"", fields[key]);
            return Err(Refused::new(key, problem));
        }
    }
    let width = required(fields, "moe_intermediate_size", MAX_WIDTH)?;
    let num_shared = match &fields["n_shared_experts"] {
        Value::Number(none) if none.as_u64() == Some(0) => 0,
        _ => optional(fields, "n_shared_experts", MAX_EXPERTS)?.unwrap_or(1),
    };
    let scale = number(&fields["routed_scaling_factor"], "routed_scaling_factor")?.unwrap_or(1.0);
    Ok(Moe {
        num_experts: required(fields, "n_routed_experts", MAX_EXPERTS)?,
        top_k: required(fields, "num_experts_per_tok", MAX_EXPERTS)?,
        width,
        shared_width: num_shared * width,
        num_groups: optional(fields, "n_group", MAX_EXPERTS)?.unwrap_or(1),
        top_groups: optional(fields, "topk_group", MAX_EXPERTS)?.unwrap_or(1),
        normalized: flag(fields, "norm_topk_prob")?.unwrap_or(true),
        scale: scale as f32,
    })
}

/// Which layers have experts: those named "sparse", or all but the first ones.
fn sparse_layers(fields: &Value, num_layers: usize) -> Result<Vec<bool>, Refused> {
    let key = "mlp_layer_types";
    if fields[key].is_null() {
        let key = "first_k_dense_replace";
        let num_dense = match fields[key].as_u64() {
            Some(0) => 0,
            _ => optional(fields, key, MAX_LAYERS)?.unwrap_or(1),
        };
        return Ok((0..num_layers).map(|layer| layer >= num_dense).collect());
    }
    let kinds = fields[key].as_array().filter(|kinds| kinds.len() == num_layers);
    let is_sparse = |kind: &Value| match kind.as_str() {
        Some("sparse") => Some(true),
        Some("dense") => Some(false),
        _ => None,
    };
    let sparse = kinds.and_then(|kinds| kinds.iter().map(is_sparse).collect());
    sparse.ok_or_else(|| {
        let problem = format!("must be \"dense\" or \"sparse\" for each of {num_layers} layers");
        Refused::new(key, problem)
    })
}

fn refuse_what_is_not_computed(fields: &Value) -> Result<(), Refused> {
    match &fields["hidden_act"] {
        Value::Null => {}
        // The same function by its other name.
        Value::String(name) if name == "silu" || name == "swish" => {}
        other => {
            return Err(Refused::new("hidden_act", format!("is {other}, supported is \"silu\"")));
        }
    }
    for key in ["rope_scaling", "rope_parameters"] {
        let scaling = &fields[key];
        for kind in [&scaling["rope_type"], &scaling["type"]] {
            if !(kind.is_null() || kind == "default") {
                return Err(Refused::new(
                    key,
                    format!("asks for {kind} scaling, supported is \"default\""),
                ));
            }
        }
        match scaling {
            Value::Null => {}
            // Nested objects are one rope for each kind of layer.
            Value::Object(fields) if !fields.values().any(Value::is_object) => {}
            _ => return Err(Refused::new(key, "must be one object of numbers and names")),
        }
    }
    Ok(())
}

fn required(fields: &Value, key: &str, max: usize) -> Result<usize, Refused> {
    optional(fields, key, max)?.ok_or_else(|| Refused::new(key, "is missing"))
}

fn optional(fields: &Value, key: &str, max: usize) -> Result<Option<usize>, Refused> {
    let value = &fields[key];
    if value.is_null() {
        return Ok(None);
    }
    let count = value.as_u64().and_then(|n| usize::try_from(n).ok());
    match count {
        Some(count) if (1..=max).contains(&count) => Ok(Some(count)),
        _ => Err(Refused::new(key, format!("is {value}, it must be a number from 1 to {max}"))),
    }
}

fn number(value: &Value, key: &str) -> Result<Option<f64>, Refused> {
    match value {
        Value::Null => Ok(None),
        Value::Number(number) => Ok(number.as_f64()),
        other => Err(Refused::new(key, format!("is {other}, it must be a number"))),
    }
}

/// What stands under `rope_scaling` where anything does, or else under `rope_parameters`, and what
/// that leaves out at the top level: as transformers 5.24 reads them.
fn rope_number(fields: &Value, key: &str) -> Result<Option<f64>, Refused> {
    let says_something = |it: &&Value| it.as_object().is_some_and(|it| !it.is_empty());
    let scaling = Some(&fields["rope_scaling"]).filter(says_something);
    let nested = number(&scaling.unwrap_or(&fields["rope_parameters"])[key], key)?;
    Ok(nested.or(number(&fields[key], key)?))
}

fn flag(fields: &Value, key: &str) -> Result<Option<bool>, Refused> {
    match &fields[key] {
        Value::Null => Ok(None),
        Value::Bool(flag) => Ok(Some(*flag)),
        other => Err(Refused::new(key, format!("is {other}, it must be true or false"))),
    }
}

/// One token or a list of them, each once; `None` if the field is absent.
fn tokens(fields: &Value, key: &str) -> Result<Option<Vec<u32>>, Refused> {
    let value = &fields[key];
    let list = match value {
        Value::Null => return Ok(None),
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let mut ids = Vec::new();
    for id in list {
        let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
            return Err(Refused::new(key, format!("is {value}, it must name tokens by number")));
        };
        if ids.len() == 1024 {
            return Err(Refused::new(key, "names more than 1024 tokens"));
        }
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(Some(ids))
}

/// As [`tokens`]; older configurations write -1 where there is none.
fn first_token(fields: &Value, key: &str) -> Result<Option<u32>, Refused> {
    if fields[key].as_i64() == Some(-1) {
        return Ok(None);
    }
    Ok(tokens(fields, key)?.and_then(|ids| ids.first().copied()))
}

/// Maps the weight files and reads their headers. `scaling` is what the configuration says.
pub(crate) fn tensors(dir: &Path, scaling: Option<Scaling>) -> Result<Tensors, CheckpointError> {
    let single = dir.join(SINGLE);
    if is_named(&single) {
        let mapped = Mapped::open(&single)?;
        let by_name = safetensors::read(&mapped, 0)?;
        return Ok(Tensors { path: single, files: vec![mapped], by_name, scaling });
    }
    let index_path = dir.join(INDEX);
    if !is_named(&index_path) {
        return Err(CheckpointError::NotAModel {
            path: dir.to_owned(),
            reason: format!("it holds {CONFIG} and neither {SINGLE} nor {INDEX}"),
        });
    }
    let index = read_index(&index_path)?;
    let names: BTreeSet<&str> = index.values().map(String::as_str).collect();
    let mut files = Vec::new();
    let mut headers = HashMap::new();
    for (number, name) in names.into_iter().enumerate() {
        let mapped = Mapped::open(&dir.join(name))?;
        headers.insert(name, safetensors::read(&mapped, number)?);
        files.push(mapped);
    }
    // The index decides which file counts, should two hold a tensor of one name.
    let mut by_name = HashMap::new();
    for (tensor, file) in &index {
        let stored = headers.get_mut(file.as_str()).and_then(|header| header.remove(tensor));
        let Some(stored) = stored else {
            return Err(CheckpointError::Malformed {
                path: index_path,
                problem: format!("tensor {tensor} should be in {file}, which does not hold it"),
            });
        };
        by_name.insert(tensor.clone(), stored);
    }
    Ok(Tensors { path: dir.to_owned(), files, by_name, scaling })
}

/// File by tensor.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let malformed = |problem| CheckpointError::Malformed { path: path.to_owned(), problem };
    let bytes = read_small(path, MAX_INDEX_BYTES)?;
    let Index { weight_map } = serde_json::from_slice(&bytes)
        .map_err(|error| malformed(format!("this is no index of tensors: {error}")))?;
    let files: BTreeSet<_> = weight_map.values().collect();
    if files.len() > MAX_FILES {
        return Err(malformed(format!("{} files are named, at most {MAX_FILES} fit", files.len())));
    }
    for file in files {
        // An index must not make us read files elsewhere.
        let plain = file.chars().all(|c| c.is_alphanumeric() || "-_. +=@".contains(c));
        if !plain || file.starts_with('.') || !file.ends_with(".safetensors") {
            return Err(malformed(format!(
                "file {file:?} is named, expected names of .safetensors files in this directory"
            )));
        }
    }
    Ok(weight_map)
}

/// Reads a file that holds a JSON object.
pub(crate) fn read_json(path: &Path, max_bytes: u64) -> Result<Value, CheckpointError> {
    let bytes = read_small(path, max_bytes)?;
    let malformed = |problem| CheckpointError::Malformed { path: path.to_owned(), problem };
    let value: Value = serde_json::from_slice(&bytes)
        .map_err(|error| malformed(format!("this is no JSON: {error}")))?;
    if !value.is_object() {
        return Err(malformed("this is no JSON object".to_owned()));
    }
    Ok(value)
}
