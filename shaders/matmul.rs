//! Products of activations with weight matrices: where the time of a model goes, and where row
//! invariance is decided.

use std::cell::OnceCell;

use bytemuck::{Pod, Zeroable};

use crate::error::GpuError;
use crate::gpu::{Caps, Gpu};
use crate::kernel::{Access, Bound, Kernel, KernelSource, Pass};
use crate::template::expand_vec4s;
use crate::tensor::Tensor;
use crate::weights::{Format, TILE, WeightMatrix};

/// The parameters of `matmul.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    num_rows: u32,
    num_columns: u32,
    first_column: u32,
    num_computed: u32,
    row_vec4s: u32,
    num_blocks: u32,
    has_bias: u32,
    adds: u32,
}

/// What becomes of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// `out = product`
    Store,
    /// `out += product`: the residual stream.
    Add,
}

/// The compiled kernels, one set for each number format, compiled when first bound.
pub struct Matmul {
    variants: Vec<Variant>,
    kernels: [OnceCell<Vec<Kernel>>; Format::ALL.len()],
}

impl Matmul {
    /// Chooses the variants for this adapter.
    pub fn new(gpu: &Gpu) -> Self {
        Self::with_variants(Variant::choose(gpu.caps()))
    }

    pub(crate) fn with_variants(variants: Vec<Variant>) -> Self {
        Self { variants, kernels: Default::default() }
    }

    /// `out[t, n] = sum over k of x[t, k] * weights[n, k] + bias[n]`, or `out[t, n] +=` that.
    ///
    /// * `x`: [num_rows, weights.cols], vec4s
    /// * `bias`: [weights.rows]
    /// * `out`: [num_rows, weights.rows]
    pub fn bind(
        &self,
        gpu: &Gpu,
        x: &Tensor,
        weights: &WeightMatrix,
        bias: Option<&Tensor>,
        (out, output): (&Tensor, Output),
    ) -> Result<BoundMatmul, GpuError> {
        if let Some(bias) = bias {
            assert_eq!(bias.len(), weights.rows, "one bias per column of the product");
        }
        let kernels = self.compiled(gpu, weights.format)?;
        // A binding can't be empty, though without a bias it isn't read.
        let no_bias = gpu.alloc_f32(1)?;
        let mut variants = Vec::new();
        for (variant, kernel) in self.variants.iter().zip(kernels) {
            let mut shards = Vec::new();
            for shard in &weights.shards {
                let params = Params {
                    num_rows: 0,
                    num_columns: weights.rows as u32,
                    first_column: shard.rows.start as u32,
                    num_computed: shard.rows.len() as u32,
                    row_vec4s: (weights.cols / 4) as u32,
                    num_blocks: weights.num_blocks() as u32,
                    has_bias: bias.is_some().into(),
                    adds: (output == Output::Add).into(),
                };
                let bias = bias.unwrap_or(&no_bias);
                let tensors = [Some(x), Some(&shard.blocks), Some(bias), Some(out)];
                let tensors = tensors.into_iter().chain([shard.scales.as_ref()]).flatten();
                let bound = kernel.bind(gpu, &tensors.collect::<Vec<_>>())?;
                let (k, n) = (weights.cols, weights.rows);
                let name = format!("{} k{k} n{n}", kernel.name());
                shards.push((bound.named(&name), params));
            }
            variants.push((*variant, shards));
        }
        Ok(BoundMatmul {
            variants,
            max_rows: (x.len() / weights.cols).min(out.len() / weights.rows),
        })
    }

    fn compiled(&self, gpu: &Gpu, format: Format) -> Result<&[Kernel], GpuError> {
        let cell = &self.kernels[format as usize];
        if cell.get().is_none() {
            let compile =
                |variant: &Variant| Kernel::new(gpu, &variant.source(format, gpu.caps().images));
            let kernels = self.variants.iter().map(compile).collect::<Result<_, _>>()?;
            // Only this thread fills the cell, and it was empty.
            let _ = cell.set(kernels);
        }
        Ok(cell.get().map_or(&[], Vec::as_slice))
    }
}

/// A product with one matrix of a layer.
pub struct BoundMatmul {
    /// For each variant, the kernel bound to each shard.
    variants: Vec<(Variant, Vec<(Bound, Params)>)>,
    max_rows: usize,
}

impl BoundMatmul {
    /// Multiplies the first `num_rows` rows.
    pub fn record(&self, pass: &mut Pass, num_rows: usize) {
        assert!(num_rows <= self.max_rows, "a batch fits the tensors of its stage");
        let Some((variant, shards)) = self
            .variants
            .iter()
            .find(|(variant, _)| num_rows <= variant.max_rows)
            .or(self.variants.last())
        else {
            return;
        };
        for (bound, params) in shards {
            let params = Params { num_rows: num_rows as u32, ..*params };
            let strips = params.num_computed.div_ceil(TILE as u32) * variant.strips();
            pass.dispatch(bound, &params, [strips, params.num_rows.div_ceil(variant.tm), 1]);
        }
    }
}

/// One way of laying the work out over lanes. All give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Variant {
    /// The most rows it is chosen for; the last variant takes any number.
    pub(crate) max_rows: usize,
    /// Rows of x per lane.
    pub(crate) tm: u32,
    /// Columns of the product per lane.
    pub(crate) tn: u32,
    /// Lanes side by side in a workgroup, each with its own columns.
    pub(crate) lanes: u32,
    /// Groups of such lanes, each with its own chunks of k.
    pub(crate) groups: u32,
    /// Whether x is loaded by eight lanes and broadcast.
    pub(crate) subgroup: bool,
}

impl Variant {
    /// The variants for an adapter, by ascending number of rows.
    pub(crate) fn choose(caps: Caps) -> Vec<Self> {
        let any = usize::MAX;
        if caps.is_cpu {
            // A software driver loads lane by lane: what counts is the number of loads, so a
            // broadcast pays, and one subgroup per workgroup keeps its reads together.
            let subgroup = caps.subgroups && caps.min_subgroup_size >= 8;
            let one = Self { max_rows: 1, tm: 1, tn: 8, lanes: 8, groups: 1, subgroup };
            vec![
                one,
                Self { max_rows: 2, tm: 2, ..one },
                Self { max_rows: 4, tm: 4, ..one },
                Self { max_rows: any, tm: 8, ..one },
            ]
        } else {
            // With few rows there are too few columns for one lane each: chunks of k run side by
            // side.
            let one = Self { max_rows: 1, tm: 1, tn: 1, lanes: 32, groups: 8, subgroup: false };
            vec![
                one,
                Self { max_rows: 4, tm: 4, ..one },
                Self { max_rows: any, tm: 8, tn: 1, lanes: 64, groups: 1, subgroup: false },
            ]
        }
    }

    /// Strips of columns that a tile is cut into, one workgroup each.
    fn strips(&self) -> u32 {
        TILE as u32 / (self.lanes * self.tn)
    }

    pub(crate) fn source(&self, format: Format, images: bool) -> KernelSource {
        let Self { tm, tn, lanes, groups, subgroup, .. } = *self;
        assert!((TILE as u32).is_multiple_of(lanes * tn), "strips fill a tile");
        let block = format.block() as u32;
        let template = [include_str!("matmul.wgsl"), format.decoder()].concat();
        let own = [
            ("TM", tm),
            ("TN", tn),
            ("LANES", lanes),
            ("GROUPS", groups),
            ("WORKGROUP", lanes * groups),
            ("SPLIT", (groups > 1).into()),
            ("SPLIT_SUMS", groups * tm * tn * lanes),
            ("SUBGROUP", subgroup.into()),
            ("STRIPS", self.strips()),
            ("CHUNK_BLOCKS", CHUNK / block),
        ];
        let wgsl = expand_vec4s(&template, images, &[&own[..], &format.constants()].concat());
        let name = format!(
            "matmul {format:?} tm{tm} tn{tn} lanes{lanes} groups{groups} subgroup {subgroup}"
        );
        let blocks = Access::read_blocks(images);
        let bindings =
            [Access::read_vec4s(images), blocks, Access::Read, Access::ReadWrite, blocks];
        let bindings = if format.is_grouped() { &bindings[..] } else { &bindings[..4] };
        KernelSource::new::<Params>(name, wgsl, bindings)
    }
}

/// Values of k whose products are added in one chain. Part of what defines the bits of every
/// result.
const CHUNK: u32 = 256;

/// What the kernel computes, in its order of additions.
///
/// * `x`: [num_rows, cols]
/// * `weights`: [rows, cols]
/// * `bias`: `[rows]`
pub fn reference(cols: usize, x: &[f32], weights: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let mut out = Vec::new();
    for row in x.chunks_exact(cols) {
        for (column, weights) in weights.chunks_exact(cols).enumerate() {
            let mut total = 0.0;
            for (x, weights) in row.chunks(CHUNK as usize).zip(weights.chunks(CHUNK as usize)) {
                total += x
                    .iter()
                    .zip(weights)
                    .fold(0.0, |sum: f32, (x, weight)| weight.mul_add(*x, sum));
            }
            out.push(total + bias.map_or(0.0, |bias| bias[column]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::testing::{self, Random, assert_bits_eq, assert_close};

    /// Every way of laying the work out, beside those that are chosen: with and without subgroups,
    /// with split chunks.
    fn variants() -> Vec<Variant> {
        let any = usize::MAX;
        let plain = Variant { max_rows: any, tm: 1, tn: 8, lanes: 8, groups: 1, subgroup: false };
        vec![
            plain,
            Variant { subgroup: true, ..plain },
            Variant { tm: 8, subgroup: true, ..plain },
            Variant { tm: 4, tn: 2, subgroup: true, ..plain },
            Variant { tm: 8, tn: 1, lanes: 64, ..plain },
            Variant { tn: 1, lanes: 32, groups: 8, ..plain },
            Variant { tm: 4, tn: 1, lanes: 32, groups: 8, ..plain },
            Variant { tm: 2, tn: 2, lanes: 16, groups: 3, subgroup: true, ..plain },
        ]
    }

    #[test]
    fn params_are_the_shader_s() {
        for (format, images) in testing::formats_and_layouts() {
            for variant in variants() {
                let source = variant.source(format, images);
                testing::assert_kernel(&source);
                testing::assert_params(
                    &source,
                    &[
                        ("num_rows", offset_of!(Params, num_rows)),
                        ("num_columns", offset_of!(Params, num_columns)),
                        ("first_column", offset_of!(Params, first_column)),
                        ("num_computed", offset_of!(Params, num_computed)),
                        ("row_vec4s", offset_of!(Params, row_vec4s)),
                        ("num_blocks", offset_of!(Params, num_blocks)),
                        ("has_bias", offset_of!(Params, has_bias)),
                        ("adds", offset_of!(Params, adds)),
                    ],
                );
            }
        }
    }

    #[test]
    fn reference_by_hand() {
        assert_eq!(reference(2, &[1.0, 2.0, 0.0, 1.0], &[3.0, 4.0], Some(&[0.5])), [11.5, 4.5]);
    }

    struct Case {
        weights: WeightMatrix,
        decoded: Vec<f32>,
        bias: Vec<f32>,
        x: Vec<f32>,
        num_rows: usize,
    }

    impl Case {
        fn new(
            gpu: &Gpu,
            format: Format,
            (num_rows, rows, cols): (usize, usize, usize),
            seed: u64,
        ) -> Self {
            let mut random = Random::new(seed);
            let bytes = format.encode(cols, &random.normal(rows * cols));
            Self {
                weights: WeightMatrix::from_bytes(gpu, (rows, cols), format, &bytes).unwrap(),
                decoded: format.decode(cols, &bytes),
                bias: random.normal(rows),
                x: random.normal(num_rows * cols),
                num_rows,
            }
        }

        fn run(&self, gpu: &Gpu, matmul: &Matmul, x: &[f32], residual: Option<&[f32]>) -> Vec<f32> {
            let num_rows = x.len() / self.weights.cols;
            let x = gpu.upload_vec4s(x).unwrap();
            let bias = gpu.upload(&self.bias).unwrap();
            let zero = vec![0.0; num_rows * self.weights.rows];
            let out = gpu.upload(residual.unwrap_or(&zero)).unwrap();
            let output = if residual.is_some() { Output::Add } else { Output::Store };
            let bound = matmul.bind(gpu, &x, &self.weights, Some(&bias), (&out, output)).unwrap();
            let mut pass = Pass::new();
            bound.record(&mut pass, num_rows);
            gpu.run(&pass).unwrap();
            gpu.read_f32(&out).unwrap()
        }
    }

    #[test]
    fn agrees_with_the_reference() {
        for gpu in testing::both_layouts() {
            let matmul = Matmul::new(&gpu);
            for format in Format::ALL {
                for shape in [(1, 1, 4), (3, 65, 36), (9, 64, 256), (2, 100, 260), (17, 130, 1000)]
                {
                    let case = Case::new(&gpu, format, shape, 11);
                    let expected =
                        reference(case.weights.cols, &case.x, &case.decoded, Some(&case.bias));
                    // A device may round the product of a multiply-add; sums of up to 1000 products
                    // of size 1.
                    let out = case.run(&gpu, &matmul, &case.x, None);
                    assert_close(&out, &expected, 1e-4);
                    let residual = Random::new(12).normal(out.len());
                    let sums: Vec<f32> =
                        out.iter().zip(&residual).map(|(out, residual)| out + residual).collect();
                    assert_bits_eq(&case.run(&gpu, &matmul, &case.x, Some(&residual)), &sums);
                }
            }
        }
    }

    #[test]
    fn all_variants_give_the_same_bits() {
        for gpu in testing::both_layouts() {
            for format in Format::ALL {
                let case = Case::new(&gpu, format, (9, 130, 900), 13);
                let expected = case.run(&gpu, &Matmul::new(&gpu), &case.x, None);
                for variant in variants() {
                    if variant.subgroup && gpu.caps().min_subgroup_size < 8 {
                        continue;
                    }
                    assert_bits_eq(
                        &case.run(&gpu, &Matmul::with_variants(vec![variant]), &case.x, None),
                        &expected,
                    );
                }
            }
        }
    }

    #[test]
    fn a_row_is_the_same_in_any_batch() {
        let Some(gpu) = testing::gpu() else { return };
        let matmul = Matmul::new(&gpu);
        let mut random = Random::new(14);
        for format in Format::ALL {
            let case = Case::new(&gpu, format, (64, 70, 580), 15);
            let cols = case.weights.cols;
            let alone: Vec<Vec<f32>> =
                case.x.chunks(cols).map(|row| case.run(&gpu, &matmul, row, None)).collect();
            for num_rows in [2, 3, 4, 5, 8, 9, 64] {
                let order = &random.permutation(case.num_rows)[..num_rows];
                let x: Vec<f32> =
                    order.iter().flat_map(|&row| case.x[row * cols..][..cols].to_vec()).collect();
                let expected: Vec<f32> = order.iter().flat_map(|&row| alone[row].clone()).collect();
                assert_bits_eq(&case.run(&gpu, &matmul, &x, None), &expected);
            }
        }
    }

    #[test]
    fn a_neighbour_s_infinity_stays_its_own() {
        let Some(gpu) = testing::gpu() else { return };
        // 36 columns: the kernel steps over the end of a row.
        let case = Case::new(&gpu, Format::F16, (3, 70, 36), 16);
        let mut x = case.x.clone();
        let matmul = Matmul::new(&gpu);
        let before = case.run(&gpu, &matmul, &x, None);
        x[36..72].fill(f32::INFINITY);
        let after = case.run(&gpu, &matmul, &x, None);
        assert_bits_eq(&after[..70], &before[..70]);
        assert_bits_eq(&after[140..], &before[140..]);
    }

    #[test]
    fn split_weights_give_the_same_bits() {
        let (Some(whole), Some(split)) = (testing::gpu(), testing::small_gpu(1 << 17)) else {
            return;
        };
        for format in Format::ALL {
            let shape = (5, 600, 512);
            let case = Case::new(&whole, format, shape, 17);
            let pieces = Case::new(&split, format, shape, 17);
            assert!(pieces.weights.shards.len() > 1);
            let expected = case.run(&whole, &Matmul::new(&whole), &case.x, None);
            assert_bits_eq(&pieces.run(&split, &Matmul::new(&split), &pieces.x, None), &expected);
        }
    }
}
