//! ChatGLM3 and glm-4-9b-chat as they were first published, to be run by Python code that came with
//! them: GLM by other names.

use serde_json::{Map, Value, json};

use crate::architecture::{Architecture, Layout, Role, RowOrder};
use crate::config::Refused;

/// What the class is called there, and what Hugging Face's calls the same.
const KEYS: &[(&str, &str)] = &[
    ("num_layers", "num_hidden_layers"),
    ("hidden_size", "hidden_size"),
    ("ffn_hidden_size", "intermediate_size"),
    ("num_attention_heads", "num_attention_heads"),
    ("multi_query_group_num", "num_key_value_heads"),
    ("kv_channels", "head_dim"),
    ("add_qkv_bias", "attention_bias"),
    ("layernorm_epsilon", "rms_norm_eps"),
    ("padded_vocab_size", "vocab_size"),
    ("seq_length", "max_position_embeddings"),
    ("tie_word_embeddings", "tie_word_embeddings"),
    ("eos_token_id", "eos_token_id"),
    ("bos_token_id", "bos_token_id"),
    ("pad_token_id", "pad_token_id"),
];

/// Switches of that code, and the one way in which the published models have them.
const SWITCHES: &[(&str, bool)] = &[
    ("rmsnorm", true),
    ("multi_query_attention", true),
    ("post_layer_norm", true),
    ("original_rope", true),
    ("add_bias_linear", false),
    ("apply_residual_connection_post_layernorm", false),
];

pub(crate) const fn layout(source: &'static str) -> Layout {
    Layout {
        source,
        architecture: Architecture::Glm,
        row_order: RowOrder::Adjacent,
        layer_prefix: "transformer.encoder.layers.",
        tensors: TENSORS,
        ignored: &["rotary_pos_emb.inv_freq"],
    }
}

const TENSORS: &[(Role, &[&[&str]])] = &[
    (Role::Embedding, &[&["transformer.embedding.word_embeddings.weight"]]),
    (Role::FinalNorm, &[&["transformer.encoder.final_layernorm.weight"]]),
    (Role::LmHead, &[&["transformer.output_layer.weight"]]),
    (Role::InputNorm, &[&["input_layernorm.weight"]]),
    (Role::Qkv, &[&["self_attention.query_key_value.weight"]]),
    (Role::QkvBias, &[&["self_attention.query_key_value.bias"]]),
    (Role::Output, &[&["self_attention.dense.weight"]]),
    (Role::PostAttentionNorm, &[&["post_attention_layernorm.weight"]]),
    (Role::GateUp, &[&["mlp.dense_h_to_4h.weight"]]),
    (Role::Down, &[&["mlp.dense_4h_to_h.weight"]]),
];

/// Whether a configuration is in that code's words.
pub(crate) fn is_one(layout: &Layout) -> bool {
    layout.source.starts_with("ChatGLM")
}

/// What Hugging Face's class would say.
pub(crate) fn as_glm(fields: &Value) -> Result<Value, Refused> {
    for (key, expected) in SWITCHES {
        let found = &fields[*key];
        if !(found.is_null() || found == expected) {
            return Err(Refused::new(key, format!("is {found}, supported is {expected}")));
        }
    }
    for key in ["quantization_bit", "pre_seq_len"] {
        if fields[key].as_u64().is_some_and(|number| number != 0) {
            return Err(Refused::new(key, format!("is {}, supported is 0", fields[key])));
        }
    }
    let ratio = match &fields["rope_ratio"] {
        Value::Null => 1.0,
        ratio => ratio.as_f64().filter(|ratio| *ratio > 0.0).ok_or_else(|| {
            Refused::new("rope_ratio", format!("is {ratio}, it must be a positive number"))
        })?,
    };
    let said = KEYS.iter().map(|(theirs, ours)| ((*ours).to_owned(), fields[*theirs].clone()));
    let mut glm: Map<String, Value> = said.collect();
    glm.extend([
        ("rope_theta".to_owned(), json!(10_000.0 * ratio)),
        ("partial_rotary_factor".to_owned(), json!(0.5)),
    ]);
    Ok(Value::Object(glm))
}

/// A refusal of what was said, by the name that the file has for it.
pub(crate) fn renamed(refused: Refused) -> Refused {
    let theirs = KEYS.iter().find(|(_, ours)| *ours == refused.key).map(|(theirs, _)| *theirs);
    Refused { key: theirs.map_or(refused.key, str::to_owned), ..refused }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::{Architecture, Attention, Outline};
    use serde_json::{Value, json};

    /// As `glm-4-9b-chat` has it.
    fn published() -> Value {
        json!({
            "architectures": ["ChatGLMModel"], "model_type": "chatglm", "add_bias_linear": false,
            "add_qkv_bias": true, "apply_residual_connection_post_layernorm": false,
            "ffn_hidden_size": 13696, "hidden_size": 4096, "kv_channels": 128,
            "layernorm_epsilon": 1.5625e-07, "multi_query_attention": true,
            "multi_query_group_num": 2, "num_attention_heads": 32, "num_layers": 40,
            "num_hidden_layers": 40, "original_rope": true, "padded_vocab_size": 151_552,
            "post_layer_norm": true, "rmsnorm": true, "rope_ratio": 500, "seq_length": 131_072,
            "torch_dtype": "bfloat16", "tie_word_embeddings": false,
            "eos_token_id": [151_329, 151_336, 151_338], "pad_token_id": 151_329
        })
    }

    #[test]
    fn a_configuration_of_remote_code_is_that_of_glm() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let open = |fields: &Value| {
            fs::write(&path, fields.to_string()).unwrap();
            Outline::open(&path)
        };
        let outline = open(&published()).unwrap();
        let config = outline.config();
        assert_eq!((config.architecture, config.num_layers()), (Architecture::Glm, 40));
        let Attention::Gqa(gqa) = config.layers[0].attention else { panic!() };
        assert_eq!((gqa.num_kv_heads, gqa.rotary_dim, gqa.bias), (2, 64, true));
        assert_eq!((config.rope_theta, config.vocab_size), (5e6, 151_552));
        // ChatGLM3 has no ratio.
        let mut older = published();
        older.as_object_mut().unwrap().remove("rope_ratio");
        assert_eq!(open(&older).unwrap().config().rope_theta, 1e4);
        for (key, value, said) in [
            ("multi_query_attention", json!(false), "multi_query_attention is false, supported is"),
            ("quantization_bit", json!(4), "quantization_bit is 4, supported is 0"),
            ("rope_ratio", json!(-1), "rope_ratio is -1, it must be a positive number"),
            ("multi_query_group_num", json!(0), "multi_query_group_num is 0, it must be"),
            ("padded_vocab_size", Value::Null, "padded_vocab_size is missing"),
        ] {
            let mut fields = published();
            fields[key] = value;
            let error = open(&fields).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
