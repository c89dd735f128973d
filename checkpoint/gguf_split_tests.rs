//! GGUF files in parts, and those with experts and latent attention.

use std::fs;
use std::path::Path;

use crate::gguf_tests::all_rows;
use crate::gguf_writer::{FFN, HIDDEN, Writer, tiny};
use crate::*;

/// Writes a file in two parts.
fn split(file: &Writer, dir: &Path) {
    for number in 0..2u16 {
        let mut part = if number == 0 { file.clone() } else { Writer::default() };
        part.tensors = file.tensors.clone();
        let mut index = 0;
        part.tensors.retain(|_| {
            index += 1;
            index % 2 == number as usize
        });
        part.set("split.no", 2, number.to_le_bytes().to_vec());
        part.set("split.count", 2, 2u16.to_le_bytes().to_vec());
        part.set("split.tensors.count", 5, (file.tensors.len() as i32).to_le_bytes().to_vec());
        let name = format!("tiny-{:05}-of-00002.gguf", number + 1);
        fs::write(dir.join(name), part.bytes()).unwrap();
    }
}

#[test]
fn parts_of_a_file_are_the_file_and_a_missing_or_foreign_one_is_named() {
    let file = tiny("llama");
    let dir = tempfile::tempdir().unwrap();
    split(&file, dir.path());
    let whole = file.open().unwrap();
    let second = dir.path().join("tiny-00002-of-00002.gguf");
    for path in [dir.path(), &second, &dir.path().join("tiny-00001-of-00002.gguf")] {
        let parts = Checkpoint::open(path).unwrap();
        assert_eq!(parts.name(), "tiny");
        assert_eq!(parts.model_digest().unwrap(), whole.model_digest().unwrap());
        assert_eq!(parts.files().unwrap().len(), 2);
    }
    let says = || Checkpoint::open(dir.path()).unwrap_err().to_string();
    let first = fs::read(dir.path().join("tiny-00001-of-00002.gguf")).unwrap();
    fs::write(&second, first).unwrap();
    assert!(says().contains("split.no says 0 and split.count 2, part 2 of 2 has 1 and 2"));
    fs::remove_file(&second).unwrap();
    assert!(says().ends_with("tiny-00002-of-00002.gguf: part 2 of 2 is missing"), "{}", says());
}

/// Keys and tensors of experts in the second of two layers.
fn experts(file: &mut Writer, architecture: &str) {
    for (key, value) in [
        ("expert_count", 4),
        ("expert_used_count", 2),
        ("expert_feed_forward_length", 16),
        ("expert_shared_count", 1),
        ("leading_dense_block_count", 1),
        ("expert_gating_func", 2),
    ] {
        file.u32(&format!("{architecture}.{key}"), value);
    }
    file.f32(&format!("{architecture}.expert_weights_scale"), 2.5);
    file.bool(&format!("{architecture}.expert_weights_norm"), true);
    file.tensors
        .retain(|tensor| !tensor.name.starts_with("blk.1.ffn_") || tensor.name.contains("norm"));
    for (name, shape) in [
        ("ffn_gate_inp.weight", &[4, HIDDEN][..]),
        ("exp_probs_b.bias", &[4]),
        ("ffn_gate_exps.weight", &[4, 16, HIDDEN]),
        ("ffn_up_exps.weight", &[4, 16, HIDDEN]),
        ("ffn_down_exps.weight", &[4, HIDDEN, 16]),
        ("ffn_gate_shexp.weight", &[16, HIDDEN]),
        ("ffn_up_shexp.weight", &[16, HIDDEN]),
        ("ffn_down_shexp.weight", &[HIDDEN, 16]),
    ] {
        file.tensor(&format!("blk.1.{name}"), shape);
    }
}

#[test]
fn experts_of_a_file_lie_in_tensors_of_three_dimensions() {
    let mut file = tiny("glm4moe");
    experts(&mut file, "glm4moe");
    let model = file.open().unwrap();
    assert_eq!(model.config().architecture, Architecture::Glm4Moe);
    let [first, second] = [0, 1].map(|layer| model.config().layers[layer].mlp);
    assert_eq!(first, Mlp::Dense(Dense { width: FFN as usize }));
    let Mlp::Moe(moe) = second else { panic!() };
    assert_eq!((moe.num_experts, moe.top_k, moe.shared_width, moe.scale), (4, 2, 16, 2.5));
    let rows = all_rows(&model.matrix(Matrix::ExpertsGateUp(1)).unwrap());
    let stored = |name: &str| -> Vec<f32> {
        let tensor = file.clone().find(name).clone();
        tensor.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    let expected = ["blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight"].map(stored).concat();
    assert_eq!(rows, expected);

    let says = |change: &dyn Fn(&mut Writer)| {
        let mut changed = file.clone();
        change(&mut changed);
        changed.open().unwrap_err().to_string()
    };
    let message = says(&|file| file.u32("glm4moe.expert_used_count", 5));
    assert!(message.contains("of a token is 5, it must be 1 to 4"), "{message}");
    let message = says(&|file| file.u32("glm4moe.expert_gating_func", 1));
    assert!(message.contains("supported is 2, the sigmoid"), "{message}");
    let message = says(&|file| file.u32("glm4moe.nextn_predict_layers", 2));
    assert!(message.contains("nextn_predict_layers is 2, there are 2 blocks"), "{message}");
    let message = says(&|file| file.find("blk.1.ffn_up_exps.weight").shape = vec![4, HIDDEN, 16]);
    assert!(message.contains("has shape [4, 64, 16], the configuration asks for [4, 16, 64]"));
}
