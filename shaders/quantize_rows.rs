//! Rows of activations in bytes, for products with integer weights by packed dot products.
//!
//! A group of [`GROUP`] values has one scale, `max |x| / 127`, and a code for each value:
//! `x / scale`, rounded to the nearest integer, the even one of two. So a value is off by no more
//! than `max |x| / 254` of its group. A row's codes depend on that row alone.

use std::cell::RefCell;
use std::collections::HashMap;

use bytemuck::{Pod, Zeroable};

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::kernel::{Bound, Kernel, KernelSource, Pass};
use crate::matmul::Operand;
use crate::tensor::Tensor;
use crate::weights::GROUP;

/// The parameters of `quantize_rows.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    first_row: u32,
    row_vec4s: u32,
    num_groups: u32,
    eps: f32,
}

/// Words of a group: codes, their scale, the scale times their sum; two to spare, so that it is
/// whole vec4s.
const GROUP_WORDS: usize = GROUP / 4 + 4;

/// Room for the rows of one product at a time, overwritten by the next.
#[derive(Debug, Clone)]
pub struct QuantizedRows(Tensor);

impl QuantizedRows {
    /// Room for `max_rows` rows of up to `max_cols` values.
    ///
    /// # Errors
    /// When the adapter has none.
    pub fn new(gpu: &Gpu, max_rows: usize, max_cols: usize) -> Result<Self, GpuError> {
        gpu.alloc_blocks(max_rows * row_words(max_cols)).map(Self)
    }

    /// Bytes that [`new`](Self::new) takes.
    pub fn num_bytes(gpu: &Gpu, max_rows: usize, max_cols: usize) -> u64 {
        gpu.vec4s_bytes(max_rows * row_words(max_cols))
    }

    /// Rows of `cols` values that fit.
    pub(crate) fn max_rows(&self, cols: usize) -> usize {
        self.0.len() / row_words(cols)
    }

    pub(crate) fn tensor(&self) -> &Tensor {
        &self.0
    }
}

/// Words of a row of `cols` values.
pub(crate) fn row_words(cols: usize) -> usize {
    cols.div_ceil(GROUP) * GROUP_WORDS
}

/// The kernels, with a norm and without, compiled when first bound.
pub(crate) struct QuantizeRows {
    /// Of a workgroup; a multiple of eight. Part of what defines the bits of a norm.
    lanes: u32,
    kernels: RefCell<HashMap<bool, Kernel>>,
}

/// A kernel bound to the rows before a product.
pub(crate) struct BoundQuantizeRows {
    bound: Bound,
    params: Params,
    lanes: u32,
}

impl QuantizeRows {
    pub(crate) fn new(lanes: u32) -> Self {
        Self { lanes, kernels: RefCell::default() }
    }

    /// Rows of `cols` values of `operand`, normalised where it says so, to `out`.
    pub(crate) fn bind(
        &self,
        gpu: &Gpu,
        Operand { x, norm, .. }: Operand<'_>,
        cols: usize,
        out: &QuantizedRows,
    ) -> Result<BoundQuantizeRows, GpuError> {
        let mut kernels = self.kernels.borrow_mut();
        let kernel = match kernels.get(&norm.is_some()) {
            Some(kernel) => kernel,
            None => {
                let kernel =
                    Kernel::new(gpu, &source(self.lanes, norm.is_some(), gpu.caps().images))?;
                kernels.entry(norm.is_some()).or_insert(kernel)
            }
        };
        let tensors = [Some(x), Some(out.tensor()), norm.map(|norm| norm.weight)];
        let tensors: Vec<_> = tensors.into_iter().flatten().collect();
        let params = Params {
            first_row: 0,
            row_vec4s: (cols / 4) as u32,
            num_groups: cols.div_ceil(GROUP) as u32,
            eps: norm.map_or(0.0, |norm| norm.eps),
        };
        let name = format!("{} k{cols}", kernel.name());
        let bound = kernel.bind(gpu, &tensors)?.named(&name);
        Ok(BoundQuantizeRows { bound, params, lanes: self.lanes })
    }
}

impl BoundQuantizeRows {
    /// Takes in the first `num_rows` rows, which the caller knows to fit. A batch has more of them
    /// than a grid may, where each token has a row for each of its experts.
    pub(crate) fn record(&self, pass: &mut Pass, num_rows: usize) {
        let strips = self.params.num_groups.div_ceil(self.lanes);
        let of = |first_row| Params { first_row, ..self.params };
        pass.dispatch_rows(&self.bound, [strips, num_rows as u32], of);
    }
}

pub(crate) fn source(lanes: u32, norm: bool, images: bool) -> KernelSource {
    assert!(lanes.is_multiple_of(8), "squares are summed by eights");
    let constants = [("LANES", lanes), ("NORM", norm.into())];
    let name = if norm { "quantize rows norm" } else { "quantize rows" };
    let template = include_str!("quantize_rows.wgsl");
    KernelSource::declared::<Params>(name, template, images, &constants)
}

/// The values that rows of `cols` values stand for, from the words that a kernel wrote.
pub fn decode(cols: usize, words: &[u32]) -> Vec<f32> {
    let row = |words: &[u32]| -> Vec<f32> {
        let groups = words.chunks_exact(GROUP_WORDS);
        let values = groups.flat_map(|group| {
            let codes = group[..GROUP / 4].iter().flat_map(|word| word.to_le_bytes());
            let scale = f32::from_bits(group[GROUP / 4]);
            codes.map(move |code| scale * f32::from(code as i8))
        });
        values.take(cols).collect()
    };
    words.chunks_exact(row_words(cols)).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::matmul::Norm;
    use crate::testing::{self, Random};

    #[test]
    fn params_are_the_shader_s() {
        for (lanes, norm, images) in [(8, false, true), (64, true, false), (8, true, true)] {
            let source = source(lanes, norm, images);
            testing::assert_kernel(&source);
            let fields = [
                ("first_row", offset_of!(Params, first_row)),
                ("row_vec4s", offset_of!(Params, row_vec4s)),
                ("num_groups", offset_of!(Params, num_groups)),
                ("eps", offset_of!(Params, eps)),
            ];
            testing::assert_params(&source, &fields);
        }
    }

    /// The words of rows of `cols` values.
    fn quantize(gpu: &Gpu, lanes: u32, cols: usize, x: &[f32], norm: Option<&[f32]>) -> Vec<u32> {
        let num_rows = x.len() / cols;
        let x = gpu.upload_vec4s(x).unwrap();
        let weight = norm.map(|weight| gpu.upload_vec4s(weight).unwrap());
        let norm = weight.as_ref().map(|weight| Norm { weight, eps: 1e-5 });
        let out = QuantizedRows::new(gpu, num_rows, cols).unwrap();
        let operand = Operand { x: &x, norm, quantized: None };
        let bound = QuantizeRows::new(lanes).bind(gpu, operand, cols, &out).unwrap();
        let mut pass = Pass::new();
        bound.record(&mut pass, num_rows);
        gpu.run(&pass).unwrap();
        gpu.read_u32(out.tensor()).unwrap()
    }

    #[test]
    fn no_value_is_off_by_more_than_half_a_step() {
        for gpu in testing::both_layouts() {
            let mut random = Random::new(31);
            for (lanes, cols) in [(8, 36), (8, 580), (64, 1024)] {
                let (x, norm) = (random.normal(5 * cols), random.normal(cols));
                let normed = crate::rms_norm::reference(1e-5, &x, &norm);
                for (norm, expected) in [(None, &x), (Some(&norm[..]), &normed)] {
                    let words = quantize(&gpu, lanes, cols, &x, norm);
                    let decoded = decode(cols, &words);
                    let rows = expected.chunks(cols).zip(decoded.chunks(cols));
                    let groups =
                        rows.flat_map(|(x, found)| x.chunks(GROUP).zip(found.chunks(GROUP)));
                    for (x, found) in groups {
                        let most = x.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
                        for (x, found) in x.iter().zip(found) {
                            assert!((x - found).abs() <= most / 253.9, "{x} became {found}");
                        }
                    }
                    for group in words.chunks_exact(GROUP_WORDS) {
                        let codes = group[..GROUP / 4].iter().flat_map(|word| word.to_le_bytes());
                        let sum: i32 = codes.map(|code| i32::from(code as i8)).sum();
                        let [scale, scaled] = [8, 9].map(|at| f32::from_bits(group[at]));
                        assert_eq!(scaled, scale * sum as f32);
                    }
                }
            }
        }
    }

    /// As those of a batch of 8,192 tokens are that have eight experts each, and a few more.
    #[test]
    fn there_may_be_more_rows_than_a_grid_has() {
        let Some(gpu) = testing::gpu() else { return };
        let (num_rows, cols) = (65_540, 4);
        let x: Vec<f32> = (0..num_rows * cols).map(|at| (at % 1000) as f32 - 127.0).collect();
        let found = decode(cols, &quantize(&gpu, 8, cols, &x, None));
        for (x, found) in x.chunks(cols).zip(found.chunks(cols)) {
            let most = x.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
            assert!(x.iter().zip(found).all(|(x, it)| (x - it).abs() <= most / 253.9), "{found:?}");
        }
    }

    #[test]
    fn rare_values_are_taken_as_they_are() {
        let Some(gpu) = testing::gpu() else { return };
        let mut x = vec![0.0; 32 * 6];
        // A group each: nothing, next to nothing, very large, ties, not finite, no number.
        x[32] = 1e-38;
        x[64..66].copy_from_slice(&[3e38, -3e38]);
        x[96..101].copy_from_slice(&[127.0, 0.5, 1.5, -2.5, -127.0]);
        x[128] = f32::INFINITY;
        x[160..162].copy_from_slice(&[f32::NAN, 1.0]);
        let found = decode(x.len(), &quantize(&gpu, 8, x.len(), &x, None));
        assert!(found[..64].iter().all(|value| *value == 0.0));
        assert!(found[64] > 2.99e38 && found[65] == -found[64]);
        assert_eq!(found[96..101], [127.0, 0.0, 2.0, -2.0, -127.0]);
        assert!(found[128..].iter().all(|value| !value.is_finite()));
    }
}
