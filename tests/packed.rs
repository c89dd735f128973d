//! Models in four-bit integers packed in words, made from others: as AutoAWQ writes them, and as
//! compressed-tensors does.

use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::fp8::{Tensor, bytes, write};

/// Values of a row that share a scale.
const GROUP: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// AWQ's, with a zero for each group.
    Awq,
    /// compressed-tensors', with a zero for each group.
    Asymmetric,
    /// compressed-tensors', around 8.
    Symmetric,
}

/// Writes a model of bf16 twice: with its projections rounded and packed, and with the values that
/// these stand for in f32. The folders of the two.
pub fn models(source: &Path, folder: &Path, way: Way) -> (PathBuf, PathBuf) {
    let file = std::fs::read(source.join("model.safetensors")).unwrap();
    let (mut packed, mut floats) = (Vec::new(), Vec::new());
    for (name, tensor) in SafeTensors::deserialize(&file).unwrap().iter() {
        let (shape, dtype) = (tensor.shape().to_vec(), tensor.dtype());
        let Some(base) = name.strip_suffix(".weight").filter(|it| it.ends_with("_proj")) else {
            let as_it_is = (name.to_owned(), dtype, shape, tensor.data().to_vec());
            packed.push(as_it_is.clone());
            floats.push(as_it_is);
            continue;
        };
        let values = tensor.data().as_chunks().0.iter();
        let values = values.map(|value| half::bf16::from_le_bytes(*value).to_f32()).collect();
        let rounded = Rounded::new(way, shape[1], values);
        packed.extend(rounded.tensors(way, base));
        floats.push((name.to_owned(), Dtype::F32, shape, bytes(&rounded.values)));
    }
    let quantization = match way {
        Way::Awq => json!({
            "quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm",
            "zero_point": true, "modules_to_not_convert": null,
        }),
        _ => json!({
            "quant_method": "compressed-tensors", "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
                "num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP,
                "symmetric": way == Way::Symmetric, "actorder": null,
            }}},
            "ignore": ["lm_head"],
        }),
    };
    let paths = [format!("{way:?}"), format!("{way:?} floats")].map(|name| folder.join(name));
    write(source, &paths[0], &packed, quantization);
    write(source, &paths[1], &floats, Value::Null);
    paths.into()
}

/// A matrix: codes, and scales and zeros of groups, row by row; and what these make.
struct Rounded {
    rows: usize,
    cols: usize,
    codes: Vec<u32>,
    scales: Vec<f32>,
    zeros: Vec<u32>,
    values: Vec<f32>,
}

impl Rounded {
    fn new(way: Way, cols: usize, mut values: Vec<f32>) -> Self {
        let (mut codes, mut scales, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
        for group in values.chunks_mut(cols).flat_map(|row| row.chunks_mut(GROUP)) {
            let low = group.iter().copied().fold(0.0, f32::min);
            let high = group.iter().copied().fold(0.0, f32::max);
            let step = match way {
                Way::Symmetric => high.max(-low) / 7.0,
                _ => (high - low) / 15.0,
            };
            // Both types hold these.
            let step = half::bf16::from_f32(half::f16::from_f32(step).to_f32()).to_f32();
            let zero = if way == Way::Symmetric { 8.0 } else { (-low / step).round().min(15.0) };
            for value in group {
                let code = (*value / step + zero).round().clamp(0.0, 15.0);
                *value = step * (code - zero);
                codes.push(code as u32);
            }
            scales.push(step);
            zeros.push(zero as u32);
        }
        Self { rows: values.len() / cols, cols, codes, scales, zeros, values }
    }

    fn tensors(&self, way: Way, base: &str) -> Vec<Tensor> {
        let &Self { rows, cols, .. } = self;
        let groups = cols.div_ceil(GROUP);
        let tensor =
            |name: &str, dtype, shape, bytes| (format!("{base}.{name}"), dtype, shape, bytes);
        if way == Way::Awq {
            // Columns of a stored row are rows of the matrix; of eight neighbours the first is in
            // the lowest bits, then the third, the fifth, the seventh, the second ...
            let order = [0, 2, 4, 6, 1, 3, 5, 7];
            let at = |i: usize| (i % rows / 8 * 8 + order[i % 8], i / rows);
            let code = |i| self.codes[at(i).0 * cols + at(i).1];
            let zero = |i| self.zeros[at(i).0 * groups + at(i).1];
            let scale = |i| self.scales[i % rows * groups + i / rows];
            let scales = (0..groups * rows).map(scale);
            let scales = scales.flat_map(|it| half::f16::from_f32(it).to_le_bytes()).collect();
            return vec![
                tensor("qweight", Dtype::I32, vec![cols, rows / 8], words(cols * rows, code)),
                tensor("qzeros", Dtype::I32, vec![groups, rows / 8], words(groups * rows, zero)),
                tensor("scales", Dtype::F16, vec![groups, rows], scales),
            ];
        }
        let scales = self.scales.iter();
        let scales = scales.flat_map(|it| half::bf16::from_f32(*it).to_le_bytes()).collect();
        let shape = [rows as i64, cols as i64].map(i64::to_le_bytes).concat();
        let codes = words(rows * cols, |i| self.codes[i]);
        let mut tensors = vec![
            tensor("weight_packed", Dtype::I32, vec![rows, cols / 8], codes),
            tensor("weight_scale", Dtype::BF16, vec![rows, groups], scales),
            tensor("weight_shape", Dtype::I64, vec![2], shape),
        ];
        if way == Way::Asymmetric {
            // Eight rows in a word.
            let zero =
                |i: usize| self.zeros[(i / 8 / groups * 8 + i % 8) * groups + i / 8 % groups];
            let zeros = words(rows * groups, zero);
            tensors.push(tensor("weight_zero_point", Dtype::I32, vec![rows / 8, groups], zeros));
        }
        tensors
    }
}

/// Eight numbers in a word, the first in its lowest bits.
fn words(count: usize, number: impl Fn(usize) -> u32) -> Vec<u8> {
    let word = |at: usize| (0..8).map(|i| number(8 * at + i) << (4 * i)).sum::<u32>();
    (0..count / 8).flat_map(|at| word(at).to_le_bytes()).collect()
}
