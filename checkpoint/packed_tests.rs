//! Hugging Face directories whose projections are integers packed in words.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ::safetensors::tensor::{Dtype, TensorView};
use ::safetensors::{SafeTensors, serialize_to_file};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::*;

/// A tensor to be written.
type Owned = (Dtype, Vec<usize>, Vec<u8>);

const DOWN: &str = "model.layers.0.mlp.down_proj";

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Awq,
    Asymmetric,
    Symmetric,
}

/// A copy of the fixture `glm` whose projections are packed, and which can be spoilt.
struct Packed {
    dir: TempDir,
    config: Value,
    tensors: BTreeMap<String, Owned>,
}

/// Value `(row, col)` of a projection: its code, zero and scale, each unlike its neighbours'.
fn number(way: Way, row: usize, col: usize) -> (u32, u32, f32) {
    let group = col / 128;
    let zero = if way == Way::Symmetric { 8 } else { (row * 5 + group * 3) % 16 };
    let scale = ((row * 7 + group * 11) % 31 + 1) as f32 / 256.0;
    (((row * 3 + col * 7 + col / 8) % 16) as u32, zero as u32, scale)
}

fn value(way: Way, row: usize, col: usize) -> f32 {
    let (code, zero, scale) = number(way, row, col);
    (code as f32 - zero as f32) * scale
}

/// Eight numbers in a word, the first in its lowest bits.
fn words(numbers: impl Iterator<Item = u32>) -> Vec<u8> {
    let numbers: Vec<u32> = numbers.collect();
    let word = |eight: &[u32]| (0..8).map(|i| eight[i] << (4 * i)).sum::<u32>();
    numbers.chunks(8).flat_map(|eight| word(eight).to_le_bytes()).collect()
}

/// Goal: words are packed here as the libraries pack them. Method: numbers that `pack_to_int32` of
/// compressed-tensors 0.20 and AutoAWQ 0.2's linear layers pack, and what they make of them.
#[test]
fn words_are_those_of_the_libraries() {
    let numbers = [3, 8, 13, 2, 7, 12, 1, 6, 11, 0, 5, 10, 15, 4, 9, 14];
    let packed = [0x61c7_2d83_u32, 0xe94f_a50b].map(u32::to_le_bytes).concat();
    assert_eq!(words(numbers.into_iter()), packed);
    let of_awq = words((0..8).map(|i| numbers[awq_order(i)]));
    assert_eq!(of_awq, 0x6c28_17d3_u32.to_le_bytes());
}

/// `order_map` of AutoAWQ: which of eight neighbours is in the lowest bits, the next...
fn awq_order(i: usize) -> usize {
    i / 8 * 8 + [0, 2, 4, 6, 1, 3, 5, 7][i % 8]
}

impl Packed {
    fn new(way: Way) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/glm/bf16");
        let config = fs::read(source.join("config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&config).unwrap();
        config["quantization_config"] = match way {
            Way::Awq => json!({
                "quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm",
                "zero_point": true, "modules_to_not_convert": null,
            }),
            _ => json!({
                "quant_method": "compressed-tensors", "format": "pack-quantized",
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
                    "num_bits": 4, "type": "int", "strategy": "group", "group_size": 128,
                    "symmetric": way == Way::Symmetric, "actorder": null,
                }}},
                "ignore": ["lm_head"],
            }),
        };
        let mut packed =
            Self { dir: tempfile::tempdir().unwrap(), config, tensors: BTreeMap::new() };
        let bytes = fs::read(source.join("model.safetensors")).unwrap();
        for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().iter() {
            let shape = tensor.shape().to_vec();
            match name.strip_suffix("_proj.weight") {
                None => packed.set(name, (tensor.dtype(), shape, tensor.data().to_vec())),
                Some(base) => packed.pack(way, &format!("{base}_proj"), (shape[0], shape[1])),
            }
        }
        packed
    }

    fn set(&mut self, name: &str, tensor: Owned) {
        self.tensors.insert(name.to_owned(), tensor);
    }

    /// As the two libraries write them.
    fn pack(&mut self, way: Way, base: &str, (rows, cols): (usize, usize)) {
        let groups = cols.div_ceil(128);
        if way == Way::Awq {
            let of = |i: usize| (awq_order(i % rows), i / rows);
            let codes = words((0..cols * rows).map(|i| number(way, of(i).0, of(i).1).0));
            let zeros = words((0..groups * rows).map(|i| number(way, of(i).0, of(i).1 * 128).1));
            let scales = (0..groups * rows).flat_map(|i| {
                half::f16::from_f32(number(way, i % rows, i / rows * 128).2).to_le_bytes()
            });
            self.set(&format!("{base}.qweight"), (Dtype::I32, vec![cols, rows / 8], codes));
            self.set(&format!("{base}.qzeros"), (Dtype::I32, vec![groups, rows / 8], zeros));
            self.set(&format!("{base}.scales"), (Dtype::F16, vec![groups, rows], scales.collect()));
            return;
        }
        let codes = words((0..rows * cols).map(|i| number(way, i / cols, i % cols).0));
        let scales = (0..rows * groups).flat_map(|i| {
            half::bf16::from_f32(number(way, i / groups, i % groups * 128).2).to_le_bytes()
        });
        let shape = [rows as i64, cols as i64].map(i64::to_le_bytes).concat();
        self.set(&format!("{base}.weight_packed"), (Dtype::I32, vec![rows, cols / 8], codes));
        self.set(
            &format!("{base}.weight_scale"),
            (Dtype::BF16, vec![rows, groups], scales.collect()),
        );
        self.set(&format!("{base}.weight_shape"), (Dtype::I64, vec![2], shape));
        if way == Way::Asymmetric {
            // Packed along rows.
            let zero = |i: usize| {
                let (eight, group, row) = (i / 8 / groups, i / 8 % groups, i % 8);
                number(way, 8 * eight + row, group * 128).1
            };
            let zeros = words((0..rows * groups).map(zero));
            let shape = vec![rows / 8, groups];
            self.set(&format!("{base}.weight_zero_point"), (Dtype::I32, shape, zeros));
        }
    }

    fn open(&self) -> Result<Checkpoint, CheckpointError> {
        fs::write(self.dir.path().join("config.json"), self.config.to_string()).unwrap();
        let views = self.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        serialize_to_file(views, None, &self.dir.path().join("model.safetensors")).unwrap();
        Checkpoint::open(self.dir.path())
    }
}

/// A row as it is handed over.
fn decode(cols: usize, row: &[u8]) -> Vec<f32> {
    let group = |group: &[u8]| -> Vec<f32> {
        let word = u32::from_le_bytes([group[0], group[1], group[2], group[3]]);
        let value = |i: usize| {
            let code = group[4 + i / 32 * 16 + i % 16] >> (i / 16 % 2 * 4) & 15;
            f32::from_bits(word & !0xff) * (f32::from(code) - (word & 0xff) as f32)
        };
        (0..128).map(value).collect()
    };
    row.chunks(68).flat_map(group).take(cols).collect()
}

#[test]
fn packed_integers_are_what_their_libraries_packed() {
    for way in [Way::Awq, Way::Asymmetric, Way::Symmetric] {
        let checkpoint = Packed::new(way).open().unwrap();
        // Of 160 columns: the second group is short.
        for (matrix, cols) in
            [(Matrix::Down(0), 160), (Matrix::Output(1), 64), (Matrix::GateUp(1), 64)]
        {
            let view = checkpoint.matrix(matrix).unwrap();
            assert_eq!((view.cols(), view.format()), (cols, Format::Int4Zero));
            let (mut bytes, mut values) = (vec![0; view.row_bytes()], vec![0.0; cols]);
            for row in 0..view.rows() {
                view.row_f32(row, &mut values).unwrap();
                let expected: Vec<f32> = (0..cols).map(|col| value(way, row, col)).collect();
                assert_eq!(values, expected, "{matrix:?} {row}");
                view.read_rows(row..row + 1, &mut bytes).unwrap();
                assert_eq!(decode(cols, &bytes), expected, "{matrix:?} {row}");
            }
            assert_eq!(
                view.device_bytes(),
                (view.rows() * (cols / 2 + cols.div_ceil(128) * 4)) as u64
            );
        }
        assert_eq!(checkpoint.matrix(Matrix::Embedding).unwrap().format(), Format::BF16);
        // Nothing is asked for that is smaller.
        let rounded = checkpoint.quantized(Quantize::Int4);
        assert_eq!(rounded.matrix(Matrix::Down(0)).unwrap().format(), Format::Int4Zero);
    }
}

#[test]
fn what_is_packed_otherwise_is_refused_by_name() {
    type Change = fn(&mut Packed);
    let cases: [(Way, Change, &str); 10] = [
        (
            Way::Awq,
            |it| it.config["quantization_config"]["bits"] = json!(8),
            "asks for 8 bits a weight, supported are 4 for integers",
        ),
        (
            Way::Awq,
            |it| it.config["quantization_config"]["group_size"] = json!(32),
            "has a group_size of 32, supported are multiples of 128, and -1",
        ),
        (
            Way::Awq,
            |it| it.config["quantization_config"]["version"] = json!("gemv"),
            "has a version of \"gemv\", supported are \"gemm\"",
        ),
        (
            Way::Awq,
            |it| it.config["quantization_config"]["quant_method"] = json!("gptq"),
            "asks for \"gptq\", supported are \"fp8\", \"awq\", \"compressed-tensors\"",
        ),
        (
            Way::Symmetric,
            |it| it.config["quantization_config"]["format"] = json!("nvfp4-pack-quantized"),
            "has a format of \"nvfp4-pack-quantized\", supported are \"float-quantized\"",
        ),
        (
            Way::Symmetric,
            |it| it.config["quantization_config"]["format"] = json!("mxfp4-pack-quantized"),
            "has a format of \"mxfp4-pack-quantized\"",
        ),
        (
            Way::Symmetric,
            |it| {
                let weights = &mut it.config["quantization_config"]["config_groups"]["group_0"];
                weights["weights"]["actorder"] = json!("group");
            },
            "has a actorder of \"group\", supported are \"weight\"",
        ),
        (
            Way::Awq,
            |it| drop(it.tensors.remove(&format!("{DOWN}.qzeros"))),
            "model.layers.0.mlp.down_proj.qzeros",
        ),
        (
            Way::Asymmetric,
            |it| {
                let (_, shape, bytes) = it.tensors[&format!("{DOWN}.weight_scale")].clone();
                let bytes = [bytes.clone(), bytes].concat();
                it.set(&format!("{DOWN}.weight_scale"), (Dtype::F32, shape, bytes));
            },
            "down_proj.weight_scale is stored as F32, scales are readable in F16 and BF16",
        ),
        (
            Way::Awq,
            |it| {
                let (dtype, mut shape, bytes) = it.tensors[&format!("{DOWN}.scales")].clone();
                shape.reverse();
                it.set(&format!("{DOWN}.scales"), (dtype, shape, bytes));
            },
            "down_proj.scales",
        ),
    ];
    for (way, change, expected) in cases {
        let mut packed = Packed::new(way);
        change(&mut packed);
        let message = packed.open().unwrap_err().to_string();
        assert!(message.contains(expected), "{message} / {expected}");
        assert!(!message.ends_with('.') && !message.contains('\n'), "{message}");
    }
}

#[test]
fn a_scale_that_is_no_number_is_refused_by_its_place() {
    let mut packed = Packed::new(Way::Awq);
    let (dtype, shape, mut bytes) = packed.tensors[&format!("{DOWN}.scales")].clone();
    // Of row 9, of the second group.
    bytes[2 * (64 + 9)..][..2].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
    packed.set(&format!("{DOWN}.scales"), (dtype, shape, bytes));
    let checkpoint = packed.open().unwrap();
    let view = checkpoint.matrix(Matrix::Down(0)).unwrap();
    let mut row = vec![0; view.row_bytes()];
    view.read_rows(8..9, &mut row).unwrap();
    let message = view.read_rows(9..10, &mut row).unwrap_err().to_string();
    assert!(
        message.contains("mlp.down_proj.weight holds") && message.contains("at [9, 1"),
        "{message}"
    );
}
