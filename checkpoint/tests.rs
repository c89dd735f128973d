//! The fixtures, and Hugging Face directories that lie.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::*;

pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests").join(name)
}

pub(crate) fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&fixture(name)).unwrap()
}

/// All weights of a model as f32, one part after the other.
fn all_values(checkpoint: &Checkpoint) -> Vec<f32> {
    let mut values = Vec::new();
    let layers = (0..checkpoint.config().num_layers()).map(Part::Layer);
    for part in [Part::Embedding, Part::Head].into_iter().chain(layers) {
        for weight in checkpoint.part(part).unwrap() {
            let matrix = match weight {
                Weight::Matrix(matrix) => matrix,
                Weight::Vector(vector) => {
                    values.extend(checkpoint.vector(vector).unwrap());
                    continue;
                }
            };
            let view = checkpoint.matrix(matrix).unwrap();
            let mut row = vec![0.0; view.cols()];
            for number in 0..view.rows() {
                view.row_f32(number, &mut row).unwrap();
                values.extend(&row);
            }
        }
    }
    values
}

fn gqa(config: &ModelConfig) -> Gqa {
    let Attention::Gqa(gqa) = config.layers[0].attention else { panic!() };
    gqa
}

#[test]
fn fixtures_say_what_they_are() {
    let gqa = Gqa {
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 16,
        rotary_dim: 8,
        bias: true,
        qk_norm: false,
    };
    let mlp = Mlp::Dense(Dense { width: 160 });
    let layers = |gqa, sandwich_norms| {
        vec![LayerSpec { attention: Attention::Gqa(gqa), mlp, sandwich_norms }; 4]
    };
    let glm = ModelConfig {
        architecture: Architecture::Glm,
        layers: layers(gqa, false),
        hidden_size: 64,
        vocab_size: 640,
        max_position_embeddings: 2048,
        rope_theta: 10000.0,
        rms_norm_eps: 1.5625e-7,
        tie_word_embeddings: false,
        eos_token_ids: vec![594, 601, 603],
        bos_token_id: None,
        pad_token_id: Some(594),
    };
    assert_eq!(*open("fixtures/glm/bf16").config(), glm);
    let edge = ModelConfig {
        layers: layers(Gqa { rotary_dim: 16, bias: false, ..gqa }, false),
        rms_norm_eps: 1e-5,
        tie_word_embeddings: true,
        ..glm.clone()
    };
    assert_eq!(*open("fixtures/glm-edge/bf16").config(), edge);
    let glm4 = ModelConfig {
        architecture: Architecture::Glm4,
        layers: layers(Gqa { head_dim: 32, rotary_dim: 16, ..gqa }, true),
        rms_norm_eps: 1e-5,
        ..glm
    };
    assert_eq!(*open("fixtures/glm4/bf16").config(), glm4);
    assert_eq!(*open("fixtures/glm4/f32").config(), glm4);
    let glass = open("models/glass-en");
    assert_eq!(glass.name(), "glass-en");
    assert_eq!(
        (glass.config().bos_token_id, &glass.config().eos_token_ids[..]),
        (Some(2), &[3][..])
    );
    assert_eq!(glass.matrix(Matrix::Down(0)).unwrap().format(), Format::F16);
}

#[test]
fn parameters_are_counted_right() {
    for (name, parameters) in [
        ("fixtures/glm/bf16", 255_040),
        ("fixtures/glm-edge/bf16", 213_568 + 640 * 64),
        ("fixtures/glm4/f32", 305_216),
        ("models/glass-en", 918_656 + 1024 * 128),
        ("fixtures/glm4-moe-groups/bf16", 324_184),
        ("models/glass-en-moe", 2_470_040 + 1024 * 128),
    ] {
        // A tied head is counted twice here.
        assert_eq!(all_values(&open(name)).len(), parameters, "{name}");
    }
}

#[test]
fn shards_of_f32_hold_the_numbers_of_bf16() {
    let (one, sharded) = (open("fixtures/glm4/bf16"), open("fixtures/glm4/f32"));
    assert_eq!(all_values(&one), all_values(&sharded));
    let views = [&one, &sharded].map(|model| model.matrix(Matrix::Qkv(3)).unwrap());
    assert_eq!(views.clone().map(|view| view.format()), [Format::BF16, Format::F32]);
    let mut bytes = vec![0; views[0].row_bytes() * 10];
    views[0].read_rows(120..130, &mut bytes).unwrap();
    let mut row = vec![0.0; 64];
    for (number, bytes) in bytes.chunks_exact(128).enumerate() {
        views[1].row_f32(120 + number, &mut row).unwrap();
        for (value, bytes) in row.iter().zip(bytes.as_chunks().0) {
            assert_eq!(half::bf16::from_le_bytes(*bytes).to_f32(), *value);
        }
    }
}

#[test]
fn parts_add_up() {
    let glm = open("fixtures/glm/bf16");
    let layers: u64 = (0..4).map(|layer| glm.bytes(Part::Layer(layer)).unwrap()).sum();
    let ends = glm.bytes(Part::Embedding).unwrap() + glm.bytes(Part::Head).unwrap();
    let vectors = 4 * (64 + 64 + 128) + 64;
    // Vectors come out as f32 and everything else as bf16.
    assert_eq!(layers + ends, 2 * 255_040 + 2 * vectors);
    let edge = open("fixtures/glm-edge/bf16");
    assert_eq!(edge.bytes(Part::Head).unwrap(), edge.bytes(Part::Embedding).unwrap() + 4 * 64);
    assert_eq!(
        glm.bytes(Part::Layer(4)).unwrap_err().to_string(),
        "layer 4 was asked for, the model has layers 0 to 3"
    );
    assert!(glm.digest(Part::Layer(usize::MAX)).is_err());
    assert!(glm.matrix(Matrix::Down(4)).is_err());
    assert!(glm.vector(Vector::InputNorm(4)).is_err());
}

#[test]
fn the_tokenizer_of_a_directory() {
    let source = open("fixtures/glm/bf16").tokenizer().unwrap();
    assert!(source.chat_template().unwrap().starts_with("[gMASK]<sop>"));
    let TokenizerSource::Json { tokenizer, special, .. } = source else {
        panic!("a directory has a tokenizer.json");
    };
    assert!(serde_json::from_slice::<Value>(&tokenizer).unwrap()["model"].is_object());
    assert_eq!(special.eos.as_deref(), Some("<|endoftext|>"));
    assert_eq!((special.bos, special.add_bos), (None, None));

    let dir = Copied::new();
    let set = |config: Value| fs::write(dir.path("tokenizer_config.json"), config.to_string());
    let read = || tokenizer::read(dir.0.path());
    set(json!({
        "bos_token": {"content": "<s>", "lstrip": false},
        "add_bos_token": true,
        "chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}],
    }))
    .unwrap();
    let source = read().unwrap();
    assert_eq!(source.chat_template(), Some("d"));
    let TokenizerSource::Json { special, .. } = source else { panic!() };
    assert_eq!((special.bos.as_deref(), special.add_bos), (Some("<s>"), Some(true)));
    set(json!({"chat_template": [{"name": "rag", "template": "r"}]})).unwrap();
    assert!(read().unwrap_err().to_string().contains("a list without a template named"));
    fs::write(dir.path("chat_template.jinja"), "file").unwrap();
    assert_eq!(read().unwrap().chat_template(), Some("file"));
    fs::remove_file(dir.path("tokenizer_config.json")).unwrap();
    assert_eq!(read().unwrap().chat_template(), Some("file"));
    fs::remove_file(dir.path("tokenizer.json")).unwrap();
    let message = read().unwrap_err().to_string();
    assert!(message.ends_with("tokenizer.json is missing, it should hold the tokenizer"));
    // The weights can still be served to whoever has another tokenizer.
    assert!(dir.open().unwrap().model_digest().is_ok());
}

#[test]
fn digests_tell_models_apart() {
    let model = |name: &str| open(name).model_digest().unwrap();
    assert_eq!(model("fixtures/glm/bf16"), model("fixtures/glm/bf16"));
    assert_ne!(model("fixtures/glm4/bf16"), model("fixtures/glm4/f32"));
    let part = |part| open("fixtures/glm/bf16").digest(part).unwrap();
    assert_ne!(part(Part::Layer(0)), part(Part::Layer(1)));
    assert_ne!(part(Part::Embedding), part(Part::Head));
}

/// A fixture, the sharded one unless another is named, in a directory of its own, to be damaged.
pub(crate) struct Copied(TempDir);

impl Copied {
    fn new() -> Self {
        Self::of("fixtures/glm4/f32")
    }

    pub(crate) fn of(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for entry in fixture(name).read_dir().unwrap() {
            let from = entry.unwrap().path();
            fs::copy(&from, dir.path().join(from.file_name().unwrap())).unwrap();
        }
        Self(dir)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn open(&self) -> Result<Checkpoint, CheckpointError> {
        Checkpoint::open(self.0.path())
    }

    /// Changes a field of a JSON file and says what `open` says.
    pub(crate) fn with(&self, file: &str, key: &str, value: Value) -> Result<Checkpoint, String> {
        self.with_all(file, &[(key, value)])
    }

    fn with_all(&self, file: &str, changes: &[(&str, Value)]) -> Result<Checkpoint, String> {
        self.edited(file, |fields| {
            for (key, value) in changes {
                fields[*key] = value.clone();
            }
        })
    }

    fn without(&self, file: &str, key: &str) -> Checkpoint {
        let edit = |fields: &mut Value| drop(fields.as_object_mut().unwrap().remove(key).unwrap());
        self.edited(file, edit).unwrap()
    }

    /// Opens the directory with one of its files edited, and mends the file.
    fn edited(&self, file: &str, edit: impl FnOnce(&mut Value)) -> Result<Checkpoint, String> {
        let path = self.path(file);
        let before = fs::read(&path).unwrap();
        let mut fields: Value = serde_json::from_slice(&before).unwrap();
        edit(&mut fields);
        fs::write(&path, fields.to_string()).unwrap();
        let opened = self.open();
        fs::write(&path, before).unwrap();
        opened.map_err(|error| {
            let message = error.to_string();
            assert!(!message.ends_with('.') && !message.contains('\n'), "{message}");
            message
        })
    }
}

const SHARD: &str = "model-00001-of-00002.safetensors";
const INDEX: &str = "model.safetensors.index.json";

#[test]
fn configurations_that_lie_are_refused() {
    let dir = Copied::new();
    let cases = [
        ("architectures", json!(["GptForCausalLM"]), "architecture GptForCausalLM is not supp"),
        ("architectures", json!([]), "supported are GlmForCausalLM, Glm4ForCausalLM"),
        ("architectures", json!(7), "(config.json names none) is not supported"),
        ("architectures", json!(["GlmForCausalLM"]), "does not belong to a GlmForCausalLM"),
        ("num_hidden_layers", json!(0), "num_hidden_layers is 0, it must be a number from 1"),
        ("num_hidden_layers", json!(-1), "num_hidden_layers is -1, it must be a number"),
        ("num_hidden_layers", json!(1e300), "num_hidden_layers is 1e+300, it must be a number"),
        ("num_hidden_layers", json!("4"), "num_hidden_layers is \"4\", it must be a number"),
        ("num_hidden_layers", json!(5), "tensor model.layers.4.input_layernorm.weight is missing"),
        ("hidden_size", Value::Null, "hidden_size is missing"),
        ("hidden_size", json!(u64::MAX), "hidden_size is 18446744073709551615, it must be"),
        ("hidden_size", json!(128), "tensor model.embed_tokens.weight has shape [640, 64], the"),
        ("intermediate_size", json!(80), "gate_up_proj.weight has shape [320, 64], the config"),
        ("num_key_value_heads", json!(3), "is 4, it must be a multiple of the 3 key-value heads"),
        ("head_dim", Value::Null, "q_proj.weight has shape [128, 64], the configuration asks"),
        ("head_dim", json!(1u64 << 40), "head_dim is 1099511627776, it must be a number from 1 to"),
        ("partial_rotary_factor", json!(0.1), "is 3, it must be even and 2 to 32"),
        ("partial_rotary_factor", json!(0.1875), "rotary dimensions is 6, supported are multiples"),
        ("intermediate_size", json!(154), "intermediate size is 154, supported are multiples of 4"),
        ("partial_rotary_factor", json!(0), "is 0, it must be above 0 and at most 1"),
        ("partial_rotary_factor", json!(1.5), "is 1.5, it must be above 0 and at most 1"),
        ("rope_theta", json!("big"), "rope_theta is \"big\", it must be a number"),
        ("rope_theta", json!(1e200), "rope theta is inf, it must be a positive number"),
        ("rms_norm_eps", json!(-1), "rms norm epsilon is -1, it must be at least 0"),
        ("hidden_act", json!("gelu"), "hidden_act is \"gelu\", supported is \"silu\""),
        ("attention_bias", json!("yes"), "attention_bias is \"yes\", it must be true or false"),
        ("attention_bias", json!(false), "k_proj.bias does not belong to a Glm4ForCausalLM"),
        ("rope_scaling", json!({"type": "linear", "factor": 2}), "asks for \"linear\" scaling"),
        ("rope_parameters", json!({"rope_type": "yarn"}), "asks for \"yarn\" scaling"),
        ("rope_parameters", json!({"full": {"rope_theta": 1}}), "must be one object of numbers"),
        ("rope_parameters", json!(3), "rope_parameters must be one object"),
        ("quantization_config", json!({"quant_method": "hqq"}), "asks for \"hqq\", supported"),
        ("pad_token_id", json!(640), "pad token is 640, the vocabulary has 640 tokens"),
        ("bos_token_id", json!("x"), "bos_token_id is \"x\", it must name tokens by number"),
    ];
    for (key, value, expected) in cases {
        let message = dir.with("config.json", key, value).unwrap_err();
        assert!(message.contains(expected), "{message} / {expected}");
    }
    let generation = |value| dir.with("generation_config.json", "eos_token_id", value);
    assert!(generation(json!(640)).unwrap_err().contains("eos token is 640, the vocabulary has"));
    assert!(generation(json!([-2])).unwrap_err().contains("must name tokens by number"));
}

/// A path within a Hugging Face directory means the directory; one of its cache has its name.
#[test]
fn a_file_of_a_directory_stands_for_it_and_a_cache_says_the_models_name() {
    let dir = Copied::new();
    for name in ["config.json", "tokenizer.json", "model.safetensors.index.json"] {
        let path = dir.path(name);
        if path.exists() {
            assert_eq!(Checkpoint::open(&path).unwrap().name(), dir.open().unwrap().name());
        }
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let lone = elsewhere.path().join("model.safetensors");
    fs::write(&lone, b"x").unwrap();
    let error = Checkpoint::open(&lone).unwrap_err().to_string();
    assert!(error.contains("no config.json") && !error.contains("GGUF"), "{error}");

    let snapshots = elsewhere.path().join("models--zai-org--GLM-4-9B-0414/snapshots");
    fs::create_dir_all(&snapshots).unwrap();
    assert_eq!(name_of(&snapshots.join("645b8482")), "zai-org/GLM-4-9B-0414");
    assert_eq!(name_of(Path::new("/models/glm")), "glm");
}

#[test]
fn both_styles_and_the_defaults() {
    let dir = Copied::new();
    let config = |key, value| dir.with("config.json", key, value).unwrap().config().clone();
    let new = json!({"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 1.0});
    let new = config("rope_parameters", new);
    assert_eq!((new.rope_theta, new.rotary_dim()), (5e5, 32));
    let without = |key| dir.without("config.json", key).config().clone();
    assert_eq!(without("partial_rotary_factor").rotary_dim(), 16);
    assert_eq!(gqa(&without("num_key_value_heads")).num_kv_heads, 2);
    let error = dir.with("config.json", "partial_rotary_factor", Value::Null).unwrap_err();
    assert!(error.contains("partial_rotary_factor is null"), "{error}");
    assert_eq!(config("rope_theta", json!(1_000_000)).rope_theta, 1e6);
    assert_eq!(config("rope_scaling", json!({"type": "default"})).rope_theta, 1e4);
    // It wins over what stands beside it, as in transformers 5.24.
    let scaling = json!({"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 1.0});
    let both = config("rope_scaling", scaling);
    assert_eq!((both.rope_theta, both.rotary_dim()), (5e5, 32));
    // But an empty one says nothing.
    let parameters = json!({"rope_theta": 5e5, "partial_rotary_factor": 1.0});
    let empty = dir
        .with_all("config.json", &[("rope_scaling", json!({})), ("rope_parameters", parameters)]);
    assert_eq!(empty.unwrap().config().rope_theta, 5e5);
    assert_eq!(config("rms_norm_eps", Value::Null).rms_norm_eps, 1.562_5e-7);
    assert_eq!(config("pad_token_id", json!(-1)).pad_token_id, None);
    assert_eq!(config("hidden_act", json!("swish")).rope_theta, 1e4);
    // A stored head of a tied model is not used.
    let tied = dir.with("config.json", "tie_word_embeddings", json!(true)).unwrap();
    let rows = [Matrix::LmHead, Matrix::Embedding].map(|matrix| {
        let mut row = vec![0.0; 64];
        tied.matrix(matrix).unwrap().row_f32(9, &mut row).unwrap();
        row
    });
    assert_eq!(rows[0], rows[1]);

    let generation = |value| {
        let opened = dir.with("generation_config.json", "eos_token_id", value).unwrap();
        opened.config().eos_token_ids.clone()
    };
    assert_eq!(generation(json!(7)), [7]);
    assert_eq!(generation(json!([7, 8, 7])), [7, 8]);
    assert_eq!(generation(Value::Null), [594, 601, 603]);
    fs::remove_file(dir.path("generation_config.json")).unwrap();
    assert_eq!(config("eos_token_id", json!(5)).eos_token_ids, [5]);
    // The classes' own are beyond this vocabulary.
    assert!(config("eos_token_id", Value::Null).eos_token_ids.is_empty());
}

#[test]
fn a_configuration_that_names_no_end_has_glms() {
    let fields = json!({
        "architectures": ["Glm4ForCausalLM"], "hidden_size": 64, "num_attention_heads": 4,
        "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 151_552,
        "max_position_embeddings": 64,
    });
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), fields.to_string()).unwrap();
    let config = huggingface::config(dir.path()).unwrap().model;
    assert_eq!(config.eos_token_ids, [151_329, 151_336, 151_338]);
    let Gqa { head_dim, num_kv_heads, bias, .. } = gqa(&config);
    assert_eq!((head_dim, num_kv_heads, bias), (128, 2, true));
}

#[test]
fn indexes_that_lie_are_refused() {
    let dir = Copied::new();
    let index: Value = serde_json::from_slice(&fs::read(dir.path(INDEX)).unwrap()).unwrap();
    let with = |tensor: &str, file: &str| {
        let mut map = index["weight_map"].clone();
        map[tensor] = file.into();
        dir.with(INDEX, "weight_map", map).unwrap_err()
    };
    for file in [
        "../model.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "sub\\x.safetensors",
        "..",
        ".safetensors",
        "",
        "config.json",
        "a\0.safetensors",
    ] {
        let message = with("lm_head.weight", file);
        assert!(message.contains("expected names of .safetensors files"), "{message}");
    }
    assert!(with("lm_head.weight", "gone.safetensors").contains("gone.safetensors can't be read"));
    let other = "model-00002-of-00002.safetensors";
    let message = with("lm_head.weight", other);
    assert!(message.contains("tensor lm_head.weight should be in model-00002"), "{message}");
    assert!(with("extra", SHARD).contains("tensor extra should be in"));
    let message = dir.with(INDEX, "weight_map", json!([])).unwrap_err();
    assert!(message.contains("this is no index of tensors"), "{message}");

    let mut map = index["weight_map"].clone();
    map.as_object_mut().unwrap().remove("model.layers.3.self_attn.k_proj.bias");
    let message = dir.with(INDEX, "weight_map", map).unwrap_err();
    assert!(message.contains("tensor model.layers.3.self_attn.k_proj.bias is missing"));
}

#[test]
fn directories_that_are_no_models() {
    let says = |path: &Path| Checkpoint::open(path).unwrap_err().to_string();
    assert!(says(Path::new("/no/such/model")).starts_with("/no/such/model does not exist"));
    let empty = tempfile::tempdir().unwrap();
    assert!(says(empty.path()).contains("it holds no config.json and 0 .gguf files"));
    for name in ["a.gguf", "b.GGUF"] {
        fs::write(empty.path().join(name), b"").unwrap();
    }
    assert!(says(empty.path()).contains("it holds no config.json and 2 .gguf files"));
    fs::remove_file(empty.path().join("b.GGUF")).unwrap();
    assert!(says(empty.path()).contains("a.gguf: 4 bytes are claimed at 0"));

    let dir = Copied::new();
    fs::remove_file(dir.path(INDEX)).unwrap();
    assert!(says(dir.0.path()).contains("neither model.safetensors nor model.safetensors.index"));
    for text in ["", "[]", "{", "7", "\u{0}"] {
        fs::write(dir.path("config.json"), text).unwrap();
        assert!(says(dir.0.path()).contains("config.json: this is no JSON"), "{text}");
    }
}

/// Goal: who mounts one folder of Hugging Face's cache hears what is missing. Method: each file in
/// turn is a link that leads nowhere, opened by its directory and by its own name.
#[cfg(unix)]
#[test]
fn links_that_lead_nowhere_are_named_with_where_they_lead() {
    let dir = Copied::new();
    for name in ["config.json", INDEX, SHARD] {
        let (path, away) = (dir.path(name), dir.path("away"));
        fs::rename(&path, &away).unwrap();
        std::os::unix::fs::symlink("../../blobs/abc", &path).unwrap();
        for opened in [dir.0.path(), &path] {
            let said = Checkpoint::open(opened).unwrap_err().to_string();
            let expected = format!("{name} is not a model: it is a link to ../../blobs/abc, which");
            assert!(said.contains(&expected), "{said}");
        }
        fs::remove_file(&path).unwrap();
        fs::rename(&away, &path).unwrap();
    }
    dir.open().unwrap();
}

#[test]
fn shards_that_are_truncated_or_of_another_type() {
    let dir = Copied::new();
    let bytes = fs::read(dir.path(SHARD)).unwrap();
    fs::write(dir.path(SHARD), &bytes[..bytes.len() - 4]).unwrap();
    assert!(dir.open().unwrap_err().to_string().contains("it is truncated or damaged"));
    // I32 is as wide as F32, so only the type is wrong.
    let at = bytes.windows(5).position(|five| five == b"\"F32\"").unwrap() + 1;
    let mut other = bytes;
    other[at..at + 3].copy_from_slice(b"I32");
    fs::write(dir.path(SHARD), &other).unwrap();
    let message = dir.open().unwrap_err().to_string();
    assert!(message.contains("is stored as I32, readable are F32, F16, BF16"), "{message}");
}
