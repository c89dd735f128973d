//! Hugging Face directories with weights in e4m3.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use ::safetensors::tensor::{Dtype, TensorView};
use ::safetensors::{SafeTensors, serialize_to_file};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::architecture::{HUGGING_FACE, Layout, RowOrder};
use crate::quantize::{int4_row, int8_group};
use crate::quants::decode_row;
use crate::*;

/// A tensor to be written.
type Owned = (Dtype, Vec<usize>, Vec<u8>);

/// A copy of the fixture `glm` whose projections are e4m3, and which can be spoilt.
struct Fp8 {
    dir: TempDir,
    config: Value,
    tensors: HashMap<String, Owned>,
}

const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";

impl Fp8 {
    /// `scales` makes the shape and the type of a tensor's factors, from its rows and columns.
    fn new(
        quantization: Value,
        suffix: &str,
        scales: impl Fn(usize, usize) -> (Vec<usize>, Dtype),
    ) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/glm/bf16");
        let config = fs::read(source.join("config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&config).unwrap();
        config["quantization_config"] = quantization;
        let bytes = fs::read(source.join("model.safetensors")).unwrap();
        let mut tensors = HashMap::new();
        for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().iter() {
            let shape = tensor.shape().to_vec();
            if !name.contains("proj.weight") {
                let tensor = (tensor.dtype(), shape, tensor.data().to_vec());
                tensors.insert(name.to_owned(), tensor);
                continue;
            }
            let (rows, cols) = (shape[0], shape[1]);
            // Every code but NaN, from another one in each row.
            let code = |i: usize| (i % cols * 5 + i / cols * 3) as u8;
            let codes = (0..rows * cols).map(|i| if code(i) & 127 == 127 { 1 } else { code(i) });
            tensors.insert(name.to_owned(), (Dtype::F8_E4M3, shape, codes.collect()));
            let (shape, dtype) = scales(rows, cols);
            let factors = (0..shape.iter().product()).map(factor);
            let bytes = match dtype {
                Dtype::BF16 => {
                    factors.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect()
                }
                _ => factors.flat_map(f32::to_le_bytes).collect(),
            };
            tensors.insert(format!("{name}{suffix}"), (dtype, shape, bytes));
        }
        Self { dir: tempfile::tempdir().unwrap(), config, tensors }
    }

    /// In blocks of 128 × 128, as `quant_method` fp8 has them.
    fn blocks() -> Self {
        let quantization = json!({
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
            "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"],
        });
        Self::new(quantization, "_scale_inv", |rows, cols| {
            (vec![rows.div_ceil(128), cols.div_ceil(128)], Dtype::F32)
        })
    }

    /// One factor for each row, as GLM-4.5-FP8 has them.
    fn channels() -> Self {
        let weights = json!({"num_bits": 8, "type": "float", "strategy": "channel"});
        let quantization = json!({
            "quant_method": "compressed-tensors", "format": "float-quantized",
            "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}},
            "ignore": ["lm_head"],
        });
        Self::new(quantization, "_scale", |rows, _| (vec![rows, 1], Dtype::BF16))
    }

    fn set(&mut self, name: &str, tensor: Owned) {
        self.tensors.insert(name.to_owned(), tensor);
    }

    fn write(&self) {
        fs::write(self.dir.path().join("config.json"), self.config.to_string()).unwrap();
        let views = self.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let file = self.dir.path().join("model.safetensors");
        serialize_to_file(views, None, &file).unwrap();
    }

    fn open(&self) -> Result<Checkpoint, CheckpointError> {
        self.write();
        Checkpoint::open(self.dir.path())
    }

    fn says(&self) -> String {
        self.open().unwrap_err().to_string()
    }

    /// Value `(row, col)` of a projection, by the number of its factor.
    fn value(&self, name: &str, row: usize, col: usize, scale: usize) -> f32 {
        let (_, shape, codes) = &self.tensors[name];
        let mut value = [0.0];
        decode_row(DType::F8_E4M3, &codes[row * shape[1] + col..][..1], &mut value);
        value[0] * factor(scale)
    }
}

/// Every one of another size; all have few digits.
fn factor(number: usize) -> f32 {
    (1 + number % 5) as f32 / 64.0 + (number / 5) as f32 / 1024.0
}

/// A matrix as it is handed over, and as rows of f32.
fn rows(view: &MatrixView<'_>) -> (Vec<u8>, Vec<f32>) {
    let mut bytes = vec![0; view.rows() * view.row_bytes()];
    view.read_rows(0..view.rows(), &mut bytes).unwrap();
    let mut values = vec![0.0; view.rows() * view.cols()];
    for (row, out) in values.chunks_exact_mut(view.cols()).enumerate() {
        view.row_f32(row, out).unwrap();
    }
    (bytes, values)
}

/// What a matrix in fp8 hands over, as f32.
fn decode(view: &MatrixView<'_>, bytes: &[u8]) -> Vec<f32> {
    let decode_row = |row: &[u8]| -> Vec<f32> {
        let group = |group: &[u8]| {
            let factor = f32::from_le_bytes(group[..4].try_into().unwrap());
            let mut values = vec![0.0; 128];
            decode_row(DType::F8_E4M3, &group[4..], &mut values);
            values.into_iter().map(move |value| value * factor).collect::<Vec<_>>()
        };
        let values: Vec<f32> = row.chunks_exact(132).flat_map(group).collect();
        assert!(values[view.cols()..].iter().all(|value| *value == 0.0));
        values[..view.cols()].to_vec()
    };
    bytes.chunks_exact(view.row_bytes()).flat_map(decode_row).collect()
}

#[test]
fn blocks_have_their_factors() {
    let model = Fp8::blocks();
    let checkpoint = model.open().unwrap();
    // [64, 160] in 1 × 2 blocks; [320, 64] in 3 × 1.
    let down = checkpoint.matrix(Matrix::Down(0)).unwrap();
    assert_eq!((down.format(), down.row_bytes()), (Format::Fp8, 2 * 132));
    assert_eq!(down.device_bytes(), 64 * (160 + 2 * 4));
    let (bytes, values) = rows(&down);
    assert_eq!(decode(&down, &bytes), values);
    for (row, col) in [(0, 0), (63, 127), (63, 128), (5, 159)] {
        assert_eq!(values[row * 160 + col], model.value(DOWN, row, col, col / 128));
    }
    let gate_up = checkpoint.matrix(Matrix::GateUp(2)).unwrap();
    let (bytes, values) = rows(&gate_up);
    assert_eq!(decode(&gate_up, &bytes), values);
    let name = "model.layers.2.mlp.gate_up_proj.weight";
    for row in [0, 127, 128, 319] {
        assert_eq!(values[row * 64 + 7], model.value(name, row, 7, row / 128));
    }
    // What isn't converted stays as it is, vectors are read.
    for matrix in [Matrix::Embedding, Matrix::LmHead] {
        assert_eq!(checkpoint.matrix(matrix).unwrap().format(), Format::BF16);
    }
    assert_eq!(checkpoint.vector(Vector::QkvBias(0)).unwrap().len(), 128);
    // Another factor is another model.
    let digest = |model: &Fp8| model.open().unwrap().digest(Part::Layer(0)).unwrap();
    let mut other = Fp8::blocks();
    assert_eq!(digest(&model), digest(&other));
    other.tensors.get_mut(&format!("{DOWN}_scale_inv")).unwrap().2[7] ^= 1;
    assert_ne!(digest(&model), digest(&other));
}

#[test]
fn rows_and_tensors_have_theirs() {
    let model = Fp8::channels();
    let (_, values) = rows(&model.open().unwrap().matrix(Matrix::Down(0)).unwrap());
    for (row, col) in [(0, 0), (63, 127), (63, 128), (5, 159)] {
        assert_eq!(values[row * 160 + col], model.value(DOWN, row, col, row));
    }
    for shape in [vec![], vec![1]] {
        let quantization = json!({"quant_method": "fp8", "activation_scheme": "static"});
        let mut model = Fp8::new(quantization, "_scale", |_, _| (shape.clone(), Dtype::F32));
        // Of activations, which aren't rounded.
        let input = (Dtype::F32, vec![1], 0.5f32.to_le_bytes().to_vec());
        model.set("model.layers.0.mlp.down_proj.input_scale", input);
        let (bytes, values) = rows(&model.open().unwrap().matrix(Matrix::Down(0)).unwrap());
        assert_eq!(values[9 * 160 + 130], model.value(DOWN, 9, 130, 0));
        assert_eq!(bytes.len(), 64 * 2 * 132);
    }
}

#[test]
fn reordered_rows_keep_their_factors() {
    static HALF_SPLIT: Layout = Layout {
        source: "GlmForCausalLM",
        architecture: Architecture::Glm,
        row_order: RowOrder::HalfSplit,
        layer_prefix: "model.layers.",
        tensors: HUGGING_FACE[0].tensors,
        ignored: &[],
    };
    let model = Fp8::channels();
    model.write();
    let config = huggingface::config(model.dir.path()).unwrap();
    let tensors = huggingface::tensors(model.dir.path(), config.scaling).unwrap();
    let weights = Weights::find(tensors, &HALF_SPLIT, &config.model).unwrap();
    let pieces = weights.pieces(Role::Qkv, 0);
    let view = MatrixView::new(&weights, pieces, 1, (Quantize::None, true), false);
    assert_eq!(view.format(), Format::Fp8);
    let (bytes, values) = rows(&view);
    assert_eq!(decode(&view, &bytes), values);
    // Heads of 16, of which 8 rotate: rows 0, 4, 1, 5, 2, 6, 3, 7, 8, ...
    for (row, stored) in [(0, 0), (1, 4), (2, 1), (7, 7), (8, 8), (17, 20), (63, 63)] {
        assert_eq!(values[row * 64 + 3], model.value(Q, stored, 3, stored));
    }
}

#[test]
fn matrices_of_several_types_and_roundings() {
    // q alone was not converted.
    let mut model = Fp8::blocks();
    model.tensors.remove(&format!("{Q}_scale_inv"));
    let bf16 = (0..64 * 64).flat_map(|i| half::bf16::from_f32(i as f32).to_le_bytes());
    model.set(Q, (Dtype::BF16, vec![64, 64], bf16.collect()));
    let checkpoint = model.open().unwrap();
    let view = checkpoint.matrix(Matrix::Qkv(0)).unwrap();
    assert_eq!(view.format(), Format::F32);
    let (bytes, values) = rows(&view);
    assert_eq!(bytes, values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>());
    assert_eq!(values[2 * 64], 128.0);
    assert_eq!(values[64 * 64], model.value(&Q.replace('q', "k"), 0, 0, 0));
    // Rounded like floats.
    let exact = rows(&checkpoint.matrix(Matrix::Down(1)).unwrap()).1;
    for (quantize, format) in [(Quantize::Int8, Format::Int8), (Quantize::Int4, Format::Int4)] {
        let rounded = model.open().unwrap().quantized(quantize);
        let view = rounded.matrix(Matrix::Down(1)).unwrap();
        assert_eq!(view.format(), format);
        let group = if format == Format::Int8 { int8_group } else { int4_row };
        let expected = exact.chunks(32).flat_map(|values| {
            let mut out = vec![0; format.row_bytes(32)];
            group(values, &mut out).unwrap();
            out
        });
        assert_eq!(rows(&view).0, expected.collect::<Vec<_>>());
    }
}

#[test]
fn what_is_no_number_is_refused_when_it_is_read() {
    let says = |name: &str, at: usize, bytes: &[u8], quantize: Quantize| {
        let mut model = Fp8::blocks();
        model.tensors.get_mut(name).unwrap().2[at..at + bytes.len()].copy_from_slice(bytes);
        let checkpoint = model.open().unwrap().quantized(quantize);
        let view = checkpoint.matrix(Matrix::Down(0)).unwrap();
        let refused = view.read_rows(9..10, &mut vec![0; view.row_bytes()]).unwrap_err();
        let file = format!("{}: ", model.dir.path().join("model.safetensors").display());
        refused.to_string().strip_prefix(&file).unwrap().to_owned()
    };
    for quantize in [Quantize::None, Quantize::Int8, Quantize::Int4] {
        for nan in [0x7f, 0xff] {
            assert_eq!(
                says(DOWN, 9 * 160 + 159, &[nan], quantize),
                format!(
                    "tensor {DOWN} holds NaN at [9, 159], which can't be computed with: the file \
                     is damaged"
                )
            );
        }
        for factor in [f32::NAN, f32::INFINITY, 1e37] {
            let scale = format!("{DOWN}_scale_inv");
            let message = says(&scale, 4, &factor.to_le_bytes(), quantize);
            let expected = format!("tensor {scale} holds {factor:e} at [0, 1], which");
            assert!(message.starts_with(&expected), "{message}");
        }
    }
}

#[test]
fn directories_that_lie_about_their_factors_are_refused() {
    let scale = format!("{DOWN}_scale_inv");
    let mut model = Fp8::blocks();
    let good = model.tensors.remove(&scale).unwrap();
    let message = model.says();
    assert!(message.contains(&format!("neither {scale} nor {DOWN}_scale is there")), "{message}");
    for (tensor, expected) in [
        (
            (Dtype::F32, vec![2, 1], vec![0; 8]),
            "has shape [2, 1], the configuration asks for [1, 2",
        ),
        ((Dtype::F32, vec![1, 3], vec![0; 12]), "has shape [1, 3], the configuration asks for [1,"),
        ((Dtype::F8_E8M0, vec![1, 2], vec![0; 2]), "is stored as F8_E8M0, factors are readable in"),
        ((Dtype::F8_E4M3, vec![1, 2], vec![0; 2]), "is stored as F8_E4M3, factors are readable in"),
    ] {
        model.set(&scale, tensor);
        let message = model.says();
        assert!(message.contains(&format!("tensor {scale} {expected}")), "{message}");
    }
    // Factors of both names, and factors of floats.
    model.set(&scale, good.clone());
    model.set(&format!("{DOWN}_scale"), good.clone());
    assert!(model.says().contains("down_proj.weight_scale does not belong to a GlmForCausalLM"));
    model.tensors.remove(&format!("{DOWN}_scale"));
    model.set("lm_head.weight_scale_inv", good);
    assert!(model.says().contains("lm_head.weight_scale_inv does not belong to a Glm"));
    model.tensors.remove("lm_head.weight_scale_inv");
    model.set("model.norm.weight", (Dtype::F8_E4M3, vec![64], vec![0; 64]));
    assert!(model.says().contains("tensor model.norm.weight is a vector in F8_E4M3"));
    let mut model = Fp8::blocks();
    model.config["quantization_config"] = Value::Null;
    let message = model.says();
    assert!(message.contains("quantization_config is missing, tensor "), "{message}");
}

#[test]
fn configurations_of_other_roundings_are_refused() {
    let group = |weights: Value| {
        let groups = json!({"group_0": {"weights": weights}});
        json!({"quant_method": "compressed-tensors", "config_groups": groups})
    };
    for (quantization, expected) in [
        (json!({"quant_method": "gptq"}), "asks for \"gptq\", supported are \"fp8\""),
        (json!({}), "asks for null, supported are"),
        (json!([]), "asks for null, supported are"),
        (json!({"quant_method": "fp8", "fmt": "e5m2"}), "has a fmt of \"e5m2\", supported are"),
        (
            json!({"quant_method": "fp8", "weight_block_size": [128, 64]}),
            "must be a multiple of 128",
        ),
        (
            json!({"quant_method": "fp8", "weight_block_size": [0, 128]}),
            "must be a multiple of 128",
        ),
        (json!({"quant_method": "fp8", "weight_block_size": 128}), "it must be rows and columns"),
        (
            json!({"quant_method": "compressed-tensors", "format": "int-quantized"}),
            "has a format of \"int-quantized\", supported are \"float-quantized\", \"naive",
        ),
        (
            json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}),
            "has no config_groups, which say how weights are packed",
        ),
        (
            group(json!({"num_bits": 4, "type": "float"})),
            "asks for 4 bits a weight, supported are 8",
        ),
        (group(json!({"num_bits": 8, "type": "int"})), "has a type of \"int\", supported are \"fl"),
        (group(json!({"num_bits": 8, "strategy": "group"})), "has a strategy of \"group\", supp"),
    ] {
        let mut model = Fp8::blocks();
        model.config["quantization_config"] = quantization;
        let message = model.says();
        assert!(
            message.contains("quantization_config ") && message.contains(expected),
            "{message}"
        );
    }
}
