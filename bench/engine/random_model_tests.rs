//! Random weights: they open, and spread as they should.

use checkpoint::{Checkpoint, Format, Matrix};

use super::storage::DEVIATION;
use super::*;

fn small(layers: u32) -> Shape {
    let shape = Shape::dense("small", (512, 1024), heads((4, 2, 64), 64));
    Shape { layers, vocabulary: 256, ..shape }
}

#[test]
fn every_storage_is_a_model_that_opens() {
    let shape = small(2);
    let folder = tempfile::tempdir().unwrap();
    for (storage, format) in [
        (Storage::F32, Format::F32),
        (Storage::F16, Format::F16),
        (Storage::Bf16, Format::BF16),
        (Storage::Q8_0, Format::Int8),
        (Storage::Q4_0, Format::Int4),
        (Storage::Q4_1, Format::Int4),
        (Storage::Q5_0, Format::Int5),
        (Storage::Q4KM, Format::F16),
        (Storage::Q6K, Format::Q6K),
    ] {
        for bias in [false, true] {
            let path = folder.path().join("model.gguf");
            let layer =
                LayerSpec { attention: Attention::Gqa(Gqa { bias, ..shape.gqa() }), ..shape.layer };
            let shape = Shape { layer, tied: !bias, ..shape };
            shape.write(storage, &path, |_, _| {}).unwrap();
            let model = Checkpoint::open(&path).unwrap();
            let config = model.config();
            assert_eq!((config.num_layers(), config.vocab_size), (2, 256));
            assert_eq!(config.layers, [layer; 2]);
            assert_eq!(config.tie_word_embeddings, !bias);
            assert_eq!(model.matrix(Matrix::Qkv(1)).unwrap().format(), format);
            assert!(model.tokenizer().is_ok());
        }
    }
}

/// Goal: K-quants cost no more memory than 1.1 times their file. Method: what a stage's weights
/// take beside what the file has of them.
#[test]
fn a_mixture_of_k_quants_takes_little_more_than_its_file() {
    let shape = Shape { layers: 8, ..Shape::named("glm-0.3b").unwrap() };
    let shape = Shape { vocabulary: 4096, ..shape };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    shape.write(Storage::Q4KM, &path, |_, _| {}).unwrap();
    let (on_device, in_file) = crate::engine::weights_bytes(&Checkpoint::open(&path).unwrap());
    let ratio = on_device as f64 / in_file as f64;
    assert!((1.0..1.05).contains(&ratio), "{on_device} of {in_file}");
}

/// Goal: a mixture of experts has what a file of llama.cpp would have. Method: rows of experts are
/// no whole blocks of 256, as those of the model after which it is made.
#[test]
fn a_shape_with_experts_is_a_model_that_opens() {
    let shape = Shape { layers: 2, vocabulary: 256, ..Shape::named("glm-moe-0.5b").unwrap() };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    shape.write(Storage::Q4KM, &path, |_, _| {}).unwrap();
    let model = Checkpoint::open(&path).unwrap();
    assert_eq!(model.config().layers, [shape.layer(0), shape.layer(1)]);
    for (matrix, format) in [
        (Matrix::ExpertsGateUp(1), Format::Q4K),
        (Matrix::ExpertsDown(1), Format::Int8),
        (Matrix::SharedDown(1), Format::Int8),
        (Matrix::Router(1), Format::F32),
    ] {
        assert_eq!(model.matrix(matrix).unwrap().format(), format, "{matrix:?}");
    }
}

#[test]
fn blocks_of_256_spread_as_others_do() {
    let mut random = Random(1);
    let shape = small(1);
    let folder = tempfile::tempdir().unwrap();
    for storage in [Storage::Q4KM, Storage::Q6K, Storage::Q5_0] {
        let path = folder.path().join("model.gguf");
        shape.write(storage, &path, |_, _| {}).unwrap();
        let model = Checkpoint::open(&path).unwrap();
        let gate = model.matrix(Matrix::GateUp(0)).unwrap();
        let mut values = vec![0.0; gate.cols()];
        let mut all = Vec::new();
        for _ in 0..64 {
            gate.row_f32(random.next() as usize % gate.rows(), &mut values).unwrap();
            all.extend_from_slice(&values);
        }
        let mean = all.iter().sum::<f32>() / all.len() as f32;
        let square = all.iter().map(|it| it * it).sum::<f32>() / all.len() as f32;
        assert!(mean.abs() < 1e-3, "{storage:?} {mean}");
        assert!((square.sqrt() / DEVIATION - 1.0).abs() < 0.05, "{storage:?} {square}");
    }
}

#[test]
fn weights_spread_evenly_about_zero() {
    let mut random = Random(1);
    let weights: Vec<f32> = (0..100_000).map(|_| random.weight()).collect();
    let mean = weights.iter().sum::<f32>() / weights.len() as f32;
    let square = weights.iter().map(|weight| weight * weight).sum::<f32>();
    let deviation = (square / weights.len() as f32).sqrt();
    assert!(mean.abs() < 3e-4, "{mean}");
    assert!((deviation / DEVIATION - 1.0).abs() < 0.01, "{deviation}");
}
