//! Checkpoints in the words of ChatGLM's remote code: the fixture `glm` by those names computes the
//! same bits.

use std::path::Path;

use checkpoint::Checkpoint;
use coordinator::tokenizer::Tokenizer;
use protocol::TokenId;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use tests::golden::{self, Golden};

use crate::stages::{Pipeline, device};

/// Writes a fixture as its remote code would have it.
fn renamed(source: &Path, folder: &Path) {
    let config = std::fs::read(source.join("config.json")).unwrap();
    let glm: Value = serde_json::from_slice(&config).unwrap();
    let config = json!({
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "num_layers": glm["num_hidden_layers"],
        "hidden_size": glm["hidden_size"],
        "ffn_hidden_size": glm["intermediate_size"],
        "num_attention_heads": glm["num_attention_heads"],
        "multi_query_attention": true,
        "multi_query_group_num": glm["num_key_value_heads"],
        "kv_channels": glm["head_dim"],
        "add_qkv_bias": glm["attention_bias"],
        "add_bias_linear": false,
        "layernorm_epsilon": glm["rms_norm_eps"],
        "padded_vocab_size": glm["vocab_size"],
        "seq_length": glm["max_position_embeddings"],
        "rope_ratio": glm["rope_theta"].as_f64().unwrap() / 1e4,
        "eos_token_id": glm["eos_token_id"],
        "pad_token_id": glm["pad_token_id"],
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut named: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut add = |name: String, from: &[String]| {
        let parts: Vec<_> = from.iter().map(|name| tensors.tensor(name).unwrap()).collect();
        let mut shape = parts[0].shape().to_vec();
        shape[0] = parts.iter().map(|part| part.shape()[0]).sum();
        let data = parts.iter().flat_map(|part| part.data().to_vec()).collect();
        named.push((name, parts[0].dtype(), shape, data));
    };
    for (theirs, ours) in [
        ("embedding.word_embeddings.weight", "model.embed_tokens.weight"),
        ("encoder.final_layernorm.weight", "model.norm.weight"),
        ("output_layer.weight", "lm_head.weight"),
    ] {
        add(format!("transformer.{theirs}"), &[ours.to_owned()]);
    }
    for layer in 0..glm["num_hidden_layers"].as_u64().unwrap() {
        for (theirs, ours) in [
            ("input_layernorm.weight", &["input_layernorm.weight"][..]),
            ("post_attention_layernorm.weight", &["post_attention_layernorm.weight"]),
            ("self_attention.dense.weight", &["self_attn.o_proj.weight"]),
            ("mlp.dense_h_to_4h.weight", &["mlp.gate_up_proj.weight"]),
            ("mlp.dense_4h_to_h.weight", &["mlp.down_proj.weight"]),
            (
                "self_attention.query_key_value.weight",
                &["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"],
            ),
            (
                "self_attention.query_key_value.bias",
                &["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"],
            ),
        ] {
            let ours: Vec<_> =
                ours.iter().map(|name| format!("model.layers.{layer}.{name}")).collect();
            add(format!("transformer.encoder.layers.{layer}.{theirs}"), &ours);
        }
    }
    let frequencies = vec![0; 8 * 2];
    named.push(("transformer.rotary_pos_emb.inv_freq".into(), Dtype::BF16, vec![8], frequencies));
    let views = named.iter().map(|(name, dtype, shape, data)| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

/// Writes a fixture's tokenizer as its remote code would have it: ranks, and what is written as it
/// is.
fn ranks(source: &Path, folder: &Path) {
    let read = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(source.join(name)).unwrap()).unwrap()
    };
    let (tokenizer, about) = (read("tokenizer.json"), read("tokenizer_config.json"));
    let mut tokens: Vec<_> = tokenizer["model"]["vocab"].as_object().unwrap().iter().collect();
    tokens.sort_by_key(|(_, rank)| rank.as_u64());
    // GPT-2's letters for bytes.
    let is_printable = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let others: Vec<u8> = (0..=255).filter(|byte| !is_printable(byte)).collect();
    let byte = |letter: char| match u32::from(letter) {
        of @ 0x100.. => others[of as usize - 0x100],
        of => of as u8,
    };
    let mut lines = String::new();
    for (text, rank) in tokens {
        let bytes: Vec<u8> = text.chars().map(byte).collect();
        lines += &format!("{} {rank}\n", base64(&bytes));
    }
    std::fs::write(folder.join("tokenizer.model"), lines).unwrap();
    let added = tokenizer["added_tokens"].as_array().unwrap().iter();
    let added: serde_json::Map<String, Value> =
        added.map(|token| (token["id"].to_string(), token.clone())).collect();
    let about = json!({
        "added_tokens_decoder": added,
        "eos_token": about["eos_token"],
        "chat_template": about["chat_template"],
    });
    std::fs::write(folder.join("tokenizer_config.json"), about.to_string()).unwrap();
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |group: &[u8]| {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | u32::from(*group.get(at).unwrap_or(&0)));
        let digit = |at: usize| match at <= group.len() {
            true => char::from(DIGITS[(bits >> (18 - 6 * at) & 63) as usize]),
            false => '=',
        };
        (0..4).map(digit).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

#[test]
fn the_ranks_of_remote_code_are_the_tokenizer() {
    let fixture = golden::fixture("glm");
    let folder = tempfile::tempdir().unwrap();
    renamed(&fixture.join("bf16"), folder.path());
    ranks(&fixture.join("bf16"), folder.path());
    let files = Checkpoint::open(folder.path()).unwrap();
    let tokenizer = Tokenizer::from_source(&files.tokenizer().unwrap()).unwrap();
    let golden = Golden::open(&fixture);
    for case in golden.json["chat"].as_array().unwrap() {
        let rendered = case["rendered"].as_str().unwrap();
        let found: Vec<_> = tokenizer.encode(rendered, false).unwrap();
        let found: Vec<u32> = found.into_iter().map(|token| token.0).collect();
        assert_eq!(found, golden::numbers(&case["ids"]));
        let ids: Vec<_> = found.into_iter().map(TokenId).collect();
        assert_eq!(tokenizer.decode(&ids, false), rendered);
    }
}

#[test]
fn a_checkpoint_of_remote_code_computes_the_bits_of_the_same_model_by_its_newer_names() {
    let Some(device) = device() else { return };
    let device = device.as_ref().unwrap();
    let fixture = golden::fixture("glm");
    let folder = tempfile::tempdir().unwrap();
    renamed(&fixture.join("bf16"), folder.path());
    let golden = Golden::open(&fixture);
    let logits = |path: &Path| {
        Pipeline::of(device, &Checkpoint::open(path).unwrap(), &[0, 2, 4]).logits_of(&golden)
    };
    assert!(logits(folder.path()) == logits(&fixture.join("bf16")));
}
