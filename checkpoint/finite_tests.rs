//! Weights that are NaN or infinite: refused when they are read, in every format, and by name.

use std::fs;
use std::path::{Path, PathBuf};

use ::safetensors::SafeTensors;
use tempfile::TempDir;

use crate::dtype::DType;
use crate::gguf_writer::{HIDDEN, Writer, tiny};
use crate::*;

const QUANTIZE: [Quantize; 3] = [Quantize::None, Quantize::Int8, Quantize::Int4];
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";

/// A copy of a fixture in which these bytes of a tensor, from byte `at` on, are others.
fn spoilt(folder: &str, tensor: &str, at: usize, value: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let mut spoilt = None;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(folder);
    for entry in source.read_dir().unwrap() {
        let from = entry.unwrap().path();
        let mut bytes = fs::read(&from).unwrap();
        let to = dir.path().join(from.file_name().unwrap());
        if let Ok(tensors) = SafeTensors::deserialize(&bytes)
            && let Ok(tensor) = tensors.tensor(tensor)
        {
            let start = tensor.data().as_ptr() as usize - bytes.as_ptr() as usize + at;
            bytes[start..start + value.len()].copy_from_slice(value);
            spoilt = Some(to.clone());
        }
        fs::write(to, bytes).unwrap();
    }
    (dir, spoilt.unwrap())
}

fn read(checkpoint: &Checkpoint, matrix: Matrix) -> Result<(), String> {
    let view = checkpoint.matrix(matrix).unwrap();
    let mut bytes = vec![0; view.rows() * view.row_bytes()];
    view.read_rows(0..view.rows(), &mut bytes).map_err(|error| error.to_string())
}

#[test]
fn floats_are_refused_with_their_place() {
    let f32s = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX];
    let f16s = [0x7c01_u16, 0x7c00, 0xfc00, 0x7bff].map(|bits| bits.to_le_bytes().to_vec());
    let bf16s = f32s.map(|value| half::bf16::from_f32(value).to_le_bytes().to_vec());
    // The largest number that the type holds; f32::MAX becomes infinity.
    let bf16s = [&bf16s[..3], &[0x7f7f_u16.to_le_bytes().to_vec()]].concat().try_into().unwrap();
    for (folder, [nan, infinity, negative, largest]) in [
        ("fixtures/glm4/f32", f32s.map(|value| value.to_le_bytes().to_vec())),
        ("fixtures/glm4/bf16", bf16s),
        ("models/glass-en", f16s),
    ] {
        for (value, said) in [(&nan, "NaN"), (&infinity, "inf"), (&negative, "-inf")] {
            let cols = if folder.ends_with("glass-en") { 384 } else { 160 };
            let at = (17 * cols + 3) * value.len();
            let (dir, file) = spoilt(folder, DOWN, at, value);
            for quantize in QUANTIZE {
                let checkpoint = Checkpoint::open(dir.path()).unwrap().quantized(quantize);
                assert_eq!(checkpoint.matrix(Matrix::Down(0)).unwrap().cols(), cols);
                let expected = format!(
                    "{}: tensor {DOWN} holds {said} at [17, 3], which can't be computed with: the \
                     file is damaged",
                    file.display()
                );
                assert_eq!(read(&checkpoint, Matrix::Down(0)), Err(expected));
                assert_eq!(read(&checkpoint, Matrix::Output(0)), Ok(()));
            }
        }
        let (dir, _) = spoilt(folder, DOWN, 0, &largest);
        assert_eq!(read(&Checkpoint::open(dir.path()).unwrap(), Matrix::Down(0)), Ok(()));
    }
}

#[test]
fn no_place_in_a_row_is_passed_over() {
    for (format, nan) in [
        (Format::F32, f32::NAN.to_le_bytes().to_vec()),
        (Format::F16, half::f16::NAN.to_le_bytes().to_vec()),
        (Format::BF16, half::bf16::NAN.to_le_bytes().to_vec()),
    ] {
        for at in 0..77 {
            let mut row = vec![0; format.row_bytes(77)];
            assert!(format.is_finite(&row));
            row[at * nan.len()..][..nan.len()].copy_from_slice(&nan);
            assert!(!format.is_finite(&row), "{format} {at}");
        }
    }
    for at in (0..3 * 132).filter(|at| at % 132 >= 4) {
        let mut row = vec![0; 3 * 132];
        row[at] = 0xff;
        assert!(!Format::Fp8.is_finite(&row), "{at}");
    }
}

#[test]
fn norms_and_biases_are_refused_too() {
    for (tensor, vector) in [
        ("model.norm.weight", Vector::FinalNorm),
        ("model.layers.1.input_layernorm.weight", Vector::InputNorm(1)),
        ("model.layers.1.post_mlp_layernorm.weight", Vector::PostMlpNorm(1)),
        ("model.layers.1.self_attn.v_proj.bias", Vector::QkvBias(1)),
    ] {
        let (dir, file) = spoilt("fixtures/glm4/bf16", tensor, 2 * 19, &[0x80, 0x7f]);
        let refused = Checkpoint::open(dir.path()).unwrap().vector(vector).unwrap_err();
        let expected = format!("{}: tensor {tensor} holds inf at [19], which", file.display());
        assert!(refused.to_string().starts_with(&expected), "{refused}");
    }
}

/// A file with rows of 256 values, which all of ggml's blocks divide.
fn wide() -> Writer {
    let mut file = tiny("llama");
    file.u32("llama.feed_forward_length", 256);
    for tensor in &mut file.tensors {
        match tensor.name.rsplit_once("ffn_").map_or("", |(_, name)| name) {
            "gate.weight" | "up.weight" => tensor.shape[0] = 256,
            "down.weight" => tensor.shape[1] = 256,
            _ => continue,
        }
        tensor.data = vec![0; 4 * 256 * HIDDEN as usize];
    }
    file
}

#[test]
fn scales_of_blocks_are_refused() {
    // The type's number, and where in a block scales and minimums are.
    for (kind, dtype, scales) in [
        (2, DType::Q4_0, &[0][..]),
        (3, DType::Q4_1, &[0, 2]),
        (6, DType::Q5_0, &[0]),
        (8, DType::Q8_0, &[0]),
        (7, DType::Q5_1, &[0, 2]),
        (12, DType::Q4_K, &[0, 2]),
        (13, DType::Q5_K, &[0, 2]),
        (14, DType::Q6_K, &[208]),
        (18, DType::IQ3_XXS, &[0]),
        (20, DType::IQ4_NL, &[0]),
        (23, DType::IQ4_XS, &[0]),
    ] {
        let blocks = 256 / dtype.block_values();
        let block = blocks - 1;
        for (&scale, value) in scales.iter().flat_map(|scale| {
            [half::f16::NAN, half::f16::INFINITY, half::f16::NEG_INFINITY]
                .map(|value| (scale, value.to_le_bytes()))
        }) {
            let mut file = wide();
            let down = file.find("blk.0.ffn_down.weight");
            // Under a scale of 1, each code another one than zero.
            let mut one = vec![0x55; dtype.block_bytes()];
            scales.iter().for_each(|at| one[*at..at + 2].copy_from_slice(&[0, 0x3c]));
            (down.kind, down.data) = (kind, one.repeat(blocks * HIDDEN as usize));
            assert_eq!(read(&file.open().unwrap(), Matrix::Down(0)), Ok(()), "{dtype}");
            let down = file.find("blk.0.ffn_down.weight");
            let at = (9 * blocks + block) * dtype.block_bytes() + scale;
            down.data[at..at + 2].copy_from_slice(&value);
            for quantize in QUANTIZE {
                let message = read(&file.open().unwrap().quantized(quantize), Matrix::Down(0));
                let message = message.unwrap_err();
                assert!(message.contains("tiny.gguf: tensor blk.0.ffn_down.weight"), "{message}");
                let place = format!(" at [9, {}],", block * dtype.block_values());
                assert!(message.contains(&place), "{dtype} {scale} {quantize:?}: {message}");
            }
        }
    }
}

#[test]
fn parts_of_a_matrix_keep_their_names_and_rows() {
    // Reordered as it is read; and, where q alone is in blocks, all of them become f32.
    for is_mixed in [false, true] {
        for (name, row) in [("q", 9), ("v", 31)] {
            let mut file = tiny("qwen2");
            if is_mixed {
                let q = file.find("blk.1.attn_q.weight");
                (q.kind, q.data) = (8, vec![0; 2 * 34 * q.shape[0] as usize]);
            }
            let tensor = file.find(&format!("blk.1.attn_{name}.weight"));
            let (at, value) = match tensor.kind {
                8 => ((2 * row + 1) * 34, &[0, 0x7e][..]),
                _ => (4 * (64 * row + 32), &[0, 0, 0xc0, 0x7f][..]),
            };
            tensor.data[at..at + value.len()].copy_from_slice(value);
            let message = read(&file.open().unwrap(), Matrix::Qkv(1)).unwrap_err();
            let expected = format!("tensor blk.1.attn_{name}.weight holds NaN at [{row}, 32],");
            assert!(message.contains(&expected), "{message}");
        }
    }
}
