//! Models in e4m3 with a factor for each block of 128 × 128 weights, made from others.

use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use shaders::weights::Format;

const BLOCK: usize = 128;
const LARGEST: f32 = 448.0;

/// Writes a model of bf16 twice: with its projections rounded to e4m3, and with the values that
/// these stand for in f32. The folders of the two.
pub fn models(source: &Path, folder: &Path) -> (PathBuf, PathBuf) {
    let file = std::fs::read(source.join("model.safetensors")).unwrap();
    let (mut fp8, mut floats) = (Vec::new(), Vec::new());
    for (name, tensor) in SafeTensors::deserialize(&file).unwrap().iter() {
        let shape = tensor.shape().to_vec();
        assert_eq!(tensor.dtype(), Dtype::BF16);
        let values = tensor.data().as_chunks().0.iter();
        let mut values: Vec<f32> =
            values.map(|value| half::bf16::from_le_bytes(*value).to_f32()).collect();
        if name.ends_with("_proj.weight") {
            let (codes, factors) = round(shape[1], &mut values);
            let blocks = vec![shape[0].div_ceil(BLOCK), shape[1].div_ceil(BLOCK)];
            fp8.push((name.to_owned(), Dtype::F8_E4M3, shape.clone(), codes));
            fp8.push((format!("{name}_scale_inv"), Dtype::F32, blocks, bytes(&factors)));
        } else {
            fp8.push((name.to_owned(), Dtype::BF16, shape.clone(), tensor.data().to_vec()));
        }
        floats.push((name.to_owned(), Dtype::F32, shape, bytes(&values)));
    }
    let quantization = json!({
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK], "modules_to_not_convert": ["lm_head"],
    });
    let paths = ["fp8", "floats"].map(|name| folder.join(name));
    write(source, &paths[0], &fp8, quantization);
    write(source, &paths[1], &floats, Value::Null);
    paths.into()
}

/// A copy of a model with other tensors, to a folder that isn't there.
pub(crate) fn write(source: &Path, folder: &Path, tensors: &[Tensor], quantization: Value) {
    std::fs::create_dir(folder).unwrap();
    for entry in source.read_dir().unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, folder.join(from.file_name().unwrap())).unwrap();
    }
    let config = std::fs::read(source.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["quantization_config"] = quantization;
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

/// Name, type, shape, bytes.
pub(crate) type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

pub(crate) fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Rounds a matrix: its codes, its factors, and in place of the values what these make.
fn round(cols: usize, values: &mut [f32]) -> (Vec<u8>, Vec<f32>) {
    // The positive numbers in ascending order; the last code is NaN.
    let codes: Vec<u8> = (0..127).chain([0]).collect();
    let numbers = Format::Fp8.decode(BLOCK, &[&1f32.to_le_bytes()[..], &codes].concat());
    let nearest = |magnitude: f32| {
        let distance = |code: &usize| (numbers[*code] - magnitude).abs();
        (0..127).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap()
    };
    let row_blocks = cols.div_ceil(BLOCK);
    let block = |at: usize| at / cols / BLOCK * row_blocks + at % cols / BLOCK;
    let mut factors = vec![0.0f32; block(values.len() - 1) + 1];
    for (at, value) in values.iter().enumerate() {
        let factor = &mut factors[block(at)];
        *factor = factor.max(value.abs() / LARGEST);
    }
    let mut rounded = Vec::with_capacity(values.len());
    for (at, value) in values.iter_mut().enumerate() {
        let factor = factors[block(at)];
        let code = nearest((*value / factor).abs());
        let sign = u8::from(value.is_sign_negative()) << 7;
        rounded.push(code as u8 | sign);
        *value = (numbers[code] * factor).copysign(*value);
    }
    (rounded, factors)
}
