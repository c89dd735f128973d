//! Layers that are not all alike, and configurations that lie of them.

use serde_json::json;

use crate::tests::{Copied, open};
use crate::*;

#[test]
fn a_mixture_of_experts_says_what_it_is_and_lies_of_it_are_refused() {
    let moe = open("fixtures/glm4-moe/bf16");
    let [first, second] = [0, 1].map(|layer| moe.config().layers[layer].mlp);
    assert_eq!(first, Mlp::Dense(Dense { width: 128 }));
    let expected = Moe {
        num_experts: 8,
        top_k: 2,
        width: 32,
        shared_width: 32,
        num_groups: 1,
        top_groups: 1,
        normalized: true,
        scale: 1.8,
    };
    assert_eq!(second, Mlp::Moe(expected));
    let gate_up = moe.matrix(Matrix::ExpertsGateUp(1)).unwrap();
    assert_eq!((gate_up.rows(), gate_up.stack(), gate_up.cols()), (2 * 8 * 32, 8, 64));
    // A token reads two of eight experts.
    let cost = moe.cost(Part::Layer(1)).unwrap();
    let experts = 8 * 3 * 32 * 64;
    assert_eq!(cost.bytes - cost.read_bytes, 2 * experts / 8 * 6);
    // A router is never rounded.
    let rounded = open("fixtures/glm4-moe/bf16").quantized(Quantize::Int4);
    let format = |matrix| rounded.matrix(matrix).unwrap().format();
    assert_eq!(format(Matrix::Router(1)), Format::BF16);
    assert_eq!(format(Matrix::ExpertsDown(1)), Format::Int4);

    let dir = Copied::of("fixtures/glm4-moe/bf16");
    for (key, value, expected) in [
        ("num_experts_per_tok", json!(9), "of a token is 9, it must be 1 to 8, as there are expe"),
        ("num_experts_per_tok", json!(0), "num_experts_per_tok is 0, it must be a number from 1"),
        ("n_group", json!(3), "number of groups of experts is 3, it must divide the 8 experts"),
        ("n_group", json!(8), "is 8, each must have 2 of the 8 experts"),
        ("topk_group", json!(2), "groups that are chosen is 2, it must be at most 1"),
        ("n_routed_experts", json!(9), "mlp.gate.weight has shape [8, 64], the configuration asks"),
        ("moe_intermediate_size", json!(64), "experts.0.gate_proj.weight has shape [32, 64]"),
        ("moe_intermediate_size", json!(30), "of experts is 30, supported are multiples of 4"),
        ("first_k_dense_replace", json!(0), "tensor model.layers.0.mlp.gate.weight is missing"),
        ("mlp_layer_types", json!(["dense"]), "\"sparse\" for each of 4 layers"),
        ("routed_scaling_factor", json!(-1), "factor of experts is -1, it must be a positive"),
        ("scoring_func", json!("softmax"), "scoring_func is \"softmax\", supported is \"sigmoid\""),
        ("use_qk_norm", json!(false), "k_norm.weight does not belong to a Glm4MoeForCausalLM"),
    ] {
        let message = dir.with("config.json", key, value).unwrap_err();
        assert!(message.contains(expected), "{message} / {expected}");
    }
    let kinds = json!(["dense", "sparse", "sparse", "sparse"]);
    assert_eq!(dir.with("config.json", "mlp_layer_types", kinds).unwrap().config(), moe.config());
}

/// Goal: a lie or a gap among the tensors of experts is named. Method: the header of the fixture's
/// file says another name or shape.
#[test]
fn tensors_of_experts_that_are_missing_or_unlike_the_others_are_named() {
    let dir = Copied::of("fixtures/glm4-moe/bf16");
    let path = dir.path("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let (len, rest) = whole.split_at(8);
    let len = u64::from_le_bytes(len.try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&rest[..len]).unwrap();
    let says = |change: &dyn Fn(&mut serde_json::Map<String, serde_json::Value>)| {
        let mut header = header.clone();
        change(header.as_object_mut().unwrap());
        let text = header.to_string();
        let new_len = (text.len() as u64).to_le_bytes();
        std::fs::write(&path, [&new_len, text.as_bytes(), &rest[len..]].concat()).unwrap();
        dir.open().unwrap_err().to_string()
    };
    let in_layer = |name: &str| format!("model.layers.2.mlp.{name}");
    for name in ["gate.weight", "gate.e_score_correction_bias", "experts.5.up_proj.weight"] {
        let name = in_layer(name);
        let message = says(&|header| {
            let stored = header.remove(&name).unwrap();
            // Past the last layer nobody looks.
            header.insert("model.layers.9.unused".to_owned(), stored);
        });
        let expected = format!("tensor {name} is missing, a model of 4 layers needs it");
        assert!(message.ends_with(&expected), "{message}");
    }
    let name = in_layer("experts.6.down_proj.weight");
    let message = says(&|header| header[&name]["shape"] = json!([32, 64]));
    let expected = format!("tensor {name} has shape [32, 64], the configuration asks for [64, 32]");
    assert!(message.ends_with(&expected), "{message}");
}
