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
