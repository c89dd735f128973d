//! Products against their references, and bit for bit against themselves in other batches.

use std::mem::offset_of;

use super::*;
use crate::gpu::Caps;
use crate::kernel::Pass;
use crate::kv_cache::KvFormat;
use crate::matmul_variant::{Operands, Order};
use crate::testing::{self, Random, assert_bits_eq, assert_close};
use crate::weights::Format;

/// Every way of laying the work out, beside those that are chosen: with and without subgroups, with
/// split chunks, with results that a lane has whole and that it gets from its neighbours.
fn variants() -> Vec<Variant> {
    let any = usize::MAX;
    let (operands, aside) = (Operands::Loaded, Aside::Nothing);
    let plain =
        Variant { max_rows: any, tm: 1, tn: 8, lanes: 8, groups: 1, ahead: false, operands, aside };
    let broadcast = Variant { operands: Operands::Broadcast, ..plain };
    let staged = Variant { operands: Operands::Staged, ..plain };
    vec![
        plain,
        broadcast,
        Variant { tm: 16, ..broadcast },
        Variant { tn: 4, ..broadcast },
        Variant { tm: 4, tn: 4, ..broadcast },
        Variant { tn: 1, lanes: 16, groups: 16, ..plain },
        Variant { tn: 1, lanes: 8, groups: 8, ahead: true, ..plain },
        Variant { tm: 2, tn: 2, lanes: 16, groups: 3, ahead: true, ..plain },
        Variant { tm: 8, tn: 1, lanes: 64, ..plain },
        Variant { tn: 1, lanes: 32, groups: 8, ..plain },
        Variant { tm: 4, tn: 1, lanes: 32, groups: 8, ..plain },
        Variant { tm: 2, tn: 2, lanes: 16, groups: 3, ..broadcast },
        Variant { tm: 4, groups: 8, ..staged },
        Variant { tm: 1, groups: 4, ..staged },
        Variant { aside: Aside::Norm, ..plain },
        Variant { tm: 4, groups: 8, aside: Aside::Norm, ..staged },
        Variant { tm: 2, tn: 2, lanes: 16, groups: 3, aside: Aside::Chunks, ..plain },
        Variant { tn: 1, lanes: 32, groups: 2, ahead: true, aside: Aside::Chunks, ..plain },
    ]
}

/// Each of them as the only one of a class that adds in the order of the device's own.
pub(super) fn classes(gpu: &Gpu, format: Format) -> impl Iterator<Item = Class> {
    let order = Class::plain(gpu.caps(), format).order;
    let subgroups = gpu.caps().subgroups && gpu.caps().min_subgroup_size >= 8;
    let can = move |variant: &Variant| {
        (order.norm_lanes <= variant.lanes * variant.groups || variant.aside != Aside::Nothing)
            && (variant.operands != Operands::Broadcast || (subgroups && order.norm_lanes == 8))
            && (order.chunked || variant.groups == 1 || variant.operands == Operands::Staged)
            && (order.chunked || !variant.is_cut())
    };
    variants().into_iter().filter(can).map(move |variant| Class { variants: vec![variant], order })
}

fn forms(format: Format) -> impl Iterator<Item = Form> {
    let kinds = Kind::all(KvFormat::F32).into_iter().chain([Kind::Qkv(KvFormat::F16)]);
    kinds.flat_map(move |kind| [false, true].map(|norm| Form { format, norm, kind }))
}

#[test]
fn params_are_the_shader_s() {
    let gpu = Class::gpu();
    for (number, (format, images)) in testing::formats_and_layouts().enumerate() {
        // What becomes of a product is the same text whatever the weights are: all of it for one
        // format, of others in turn.
        let (first, step) = if format == Format::Bf16 { (0, 1) } else { (number % 5, 5) };
        for form in forms(format).skip(first).step_by(step) {
            let order = |variant: &Variant| Order { chunked: variant.groups > 1, norm_lanes: 8 };
            let sources = variants().into_iter();
            let sources = sources.map(|variant| variant.source(form, order(&variant), images));
            let ends = [gpu.variants.first(), gpu.variants.last()].into_iter().flatten();
            let ends = ends.map(|variant| variant.source(form, gpu.order, images));
            for source in sources.chain(ends) {
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
                        ("eps", offset_of!(Params, eps)),
                        ("tables_at", offset_of!(Params, tables_at)),
                        ("num_heads", offset_of!(Params, num_heads)),
                        ("num_kv_heads", offset_of!(Params, num_kv_heads)),
                        ("head_vec4s", offset_of!(Params, head_vec4s)),
                        ("rotary_vec4s", offset_of!(Params, rotary_vec4s)),
                        ("has_bias", offset_of!(Params, has_bias)),
                    ],
                );
            }
        }
    }
}

#[test]
fn references_by_hand() {
    assert_eq!(reference(2, &[1.0, 2.0, 0.0, 1.0], &[3.0, 4.0]), [11.0, 4.0]);
    // silu(1) = 0.731059
    assert_close(&swiglu_reference(2, &[0.0, 1.0, 5.0, 2.0]), &[0.0, 1.462_117], 1e-6);
}

/// A product, and the numbers it is made of.
#[derive(Clone)]
pub(super) struct Case {
    pub(super) weights: WeightMatrix,
    pub(super) decoded: Vec<f32>,
    pub(super) norm: Vec<f32>,
    pub(super) residual: Vec<f32>,
    pub(super) x: Vec<f32>,
}

pub(super) const EPS: f32 = 1e-5;

impl Case {
    pub(super) fn new(
        gpu: &Gpu,
        (format, order): (Format, RowOrder),
        (num_rows, rows, cols): (usize, usize, usize),
        seed: u64,
    ) -> Self {
        let mut random = Random::new(seed);
        let bytes = format.encode(cols, &random.normal(rows * cols));
        Self {
            weights: WeightMatrix::from_bytes(gpu, (rows, cols), (format, order), &bytes).unwrap(),
            decoded: format.decode(cols, &bytes),
            norm: random.normal(cols),
            residual: random.normal(num_rows * rows),
            x: random.normal(num_rows * cols),
        }
    }

    /// The product of these rows of x, normed or not, stored, gated, or added to `residual`.
    pub(super) fn run(
        &self,
        gpu: &Gpu,
        matmul: &Matmul,
        kind: Kind,
        norm: bool,
        rows: &[usize],
    ) -> Vec<f32> {
        let (n, cols) = (self.weights.rows, self.weights.cols);
        let pick = |values: &[f32], width: usize| -> Vec<f32> {
            rows.iter().flat_map(|&row| values[row * width..][..width].to_vec()).collect()
        };
        let x = gpu.upload_vec4s(&pick(&self.x, cols)).unwrap();
        let weight = gpu.upload_vec4s(&self.norm).unwrap();
        let norm = norm.then_some(Norm { weight: &weight, eps: EPS });
        let residual;
        let (out, output) = match kind {
            Kind::Store => (gpu.alloc_f32(rows.len() * n).unwrap(), None),
            Kind::Residual => {
                residual = gpu.upload_vec4s(&pick(&self.residual, n)).unwrap();
                (gpu.alloc_vec4s(rows.len() * n).unwrap(), Some(&residual))
            }
            _ => (gpu.alloc_vec4s(rows.len() * n / 2).unwrap(), None),
        };
        let output = match (kind, output) {
            (Kind::Store, _) => Output::Store(&out),
            (_, Some(residual)) => Output::Residual { residual, out: &out },
            _ => Output::Swiglu(&out),
        };
        let quantized = QuantizedRows::new(gpu, rows.len(), cols).unwrap();
        let operand = Operand { x: &x, norm, quantized: Some(&quantized) };
        let mut pass = Pass::new();
        let bound = matmul.bind(gpu, operand, &self.weights, output).unwrap();
        bound.record(&mut pass, rows.len());
        gpu.run(&pass).unwrap();
        gpu.read_f32(&out).unwrap()
    }

    pub(super) fn all(&self) -> Vec<usize> {
        (0..self.x.len() / self.weights.cols).collect()
    }

    /// What [`run`](Self::run) gives for all rows.
    pub(super) fn expected(&self, kind: Kind, norm: bool) -> Vec<f32> {
        let cols = self.weights.cols;
        let normed = crate::rms_norm::reference(EPS, &self.x, &self.norm);
        let x = if norm { &normed } else { &self.x };
        let product = reference(cols, x, &self.decoded);
        match kind {
            Kind::Residual => product.iter().zip(&self.residual).map(|(a, b)| a + b).collect(),
            Kind::Swiglu => swiglu_reference(self.weights.rows / 2, &product),
            _ => product,
        }
    }
}

/// A software driver takes long to compile for buffers.
fn formats(gpu: &Gpu) -> Vec<Format> {
    match gpu.caps().is_cpu && !gpu.caps().images {
        true => vec![Format::Bf16, Format::Int4],
        false => Format::ALL.to_vec(),
    }
}

pub(super) fn order(kind: Kind) -> RowOrder {
    if kind == Kind::Swiglu { RowOrder::Paired } else { RowOrder::Plain }
}

const KINDS: [Kind; 3] = [Kind::Store, Kind::Residual, Kind::Swiglu];

#[test]
fn agrees_with_the_reference() {
    for gpu in testing::both_layouts() {
        let matmul = Matmul::new(&gpu);
        for (index, format) in formats(&gpu).into_iter().enumerate() {
            // Compiling is what takes time here: two of the three outputs for each format.
            for kind in KINDS.into_iter().cycle().skip(index).take(2) {
                let mut shapes = vec![(3, 64, 36), (9, 72, 256), (17, 136, 1000)];
                if kind == Kind::Store {
                    shapes.extend([(1, 1, 4), (2, 65, 260)]);
                }
                for shape in shapes {
                    let case = Case::new(&gpu, (format, order(kind)), shape, 11);
                    for norm in [false, true] {
                        let out = case.run(&gpu, &matmul, kind, norm, &case.all());
                        // A device may round the product of a multiply-add; sums of up to 1000
                        // products of size 1, and products of two such sums.
                        let tolerance = if kind == Kind::Swiglu { 5e-3 } else { 2e-4 };
                        assert_close(&out, &case.expected(kind, norm), tolerance);
                    }
                }
            }
        }
    }
}

#[test]
fn all_variants_give_the_same_bits() {
    for gpu in testing::both_layouts() {
        for (index, format) in formats(&gpu).into_iter().enumerate() {
            // Compiling is what takes time here: not every format with every
            // output.
            for (kind, norm) in [
                [(Kind::Store, false), (Kind::Swiglu, true)],
                [(Kind::Residual, true), (Kind::Store, true)],
            ][index % 2]
            {
                let case = Case::new(&gpu, (format, order(kind)), (17, 136, 900), 13);
                let run = |matmul: &Matmul| case.run(&gpu, matmul, kind, norm, &case.all());
                let expected = run(&Matmul::new(&gpu));
                for class in classes(&gpu, format) {
                    assert_bits_eq(&run(&Matmul::with_class(class)), &expected);
                }
            }
        }
    }
}

/// What a GPU would run, on whatever there is.
#[test]
fn all_ways_of_a_gpu_give_the_same_bits() {
    let Some(gpu) = testing::gpu() else { return };
    for (format, kind, norm) in [
        (Format::Bf16, Kind::Residual, true),
        (Format::Fp8, Kind::Residual, true),
        (Format::Int8, Kind::Store, false),
        (Format::Int4, Kind::Swiglu, true),
        (Format::Int4Zero, Kind::Residual, true),
        (Format::Q4K, Kind::Store, false),
        (Format::Q5K, Kind::Swiglu, true),
        (Format::Q6K, Kind::Residual, true),
        (Format::Iq4Nl, Kind::Swiglu, true),
        (Format::Iq4Xs, Kind::Store, false),
    ] {
        // More rows than one workgroup stages, and not all of those of the next; more chunks than
        // the most groups of lanes take at a time.
        let case = Case::new(&gpu, (format, order(kind)), (70, 136, 4484), 18);
        let run = |class| case.run(&gpu, &Matmul::with_class(class), kind, norm, &case.all());
        let class = Class::gpu();
        let alone = |variant| Class { variants: vec![variant], ..class.clone() };
        let mut outputs = class.variants.iter().map(|variant| run(alone(*variant)));
        let expected = outputs.next().unwrap();
        assert_close(&expected, &case.expected(kind, norm), 5e-3);
        outputs.for_each(|output| assert_bits_eq(&output, &expected));
    }
}

#[test]
fn every_e4m3_number_is_exact() {
    // A row of all codes but NaN's, under two factors; x picks one at a time.
    let code = |i: usize| if i & 127 == 127 { 0 } else { i as u8 };
    let group = |factor: f32, first: usize| {
        let codes = (first..first + 128).map(code);
        factor.to_le_bytes().into_iter().chain(codes).collect::<Vec<_>>()
    };
    let bytes = [group(1.0, 0), group(0.3, 128)].concat();
    let identity: Vec<f32> =
        (0..256 * 256).map(|i| if i / 256 == i % 256 { 1.0 } else { 0.0 }).collect();
    let form = (Format::Fp8, RowOrder::Plain);
    for gpu in testing::both_layouts() {
        let case = Case {
            weights: WeightMatrix::from_bytes(&gpu, (1, 256), form, &bytes).unwrap(),
            decoded: Format::Fp8.decode(256, &bytes),
            norm: vec![1.0; 256],
            residual: vec![0.0; 256],
            x: identity.clone(),
        };
        let expected: Vec<f32> = case.decoded.iter().map(|value| value + 0.0).collect();
        let out = case.run(&gpu, &Matmul::new(&gpu), Kind::Store, false, &case.all());
        assert_bits_eq(&out, &expected);
    }
}

#[test]
fn a_row_is_the_same_in_any_batch() {
    let Some(gpu) = testing::gpu() else { return };
    let matmul = Matmul::new(&gpu);
    let mut random = Random::new(14);
    for format in Format::ALL {
        for (kind, norm) in [(Kind::Store, false), (Kind::Residual, true), (Kind::Swiglu, true)] {
            let case = Case::new(&gpu, (format, order(kind)), (64, 72, 580), 15);
            let run = |rows: &[usize]| case.run(&gpu, &matmul, kind, norm, rows);
            let alone: Vec<Vec<f32>> = case.all().iter().map(|&row| run(&[row])).collect();
            for _ in 0..8 {
                let num_rows = 1 + random.below(64);
                let order = &random.permutation(64)[..num_rows];
                let expected: Vec<f32> = order.iter().flat_map(|&row| alone[row].clone()).collect();
                assert_bits_eq(&run(order), &expected);
            }
        }
    }
}

#[test]
fn a_neighbour_s_infinity_stays_its_own() {
    let Some(gpu) = testing::gpu() else { return };
    // 36 columns: the kernel steps over the end of a row.
    let plain = (Format::F16, RowOrder::Plain);
    let mut case = Case::new(&gpu, plain, (3, 72, 36), 16);
    let matmul = Matmul::new(&gpu);
    for norm in [false, true] {
        case.x = Random::new(5).normal(case.x.len());
        let before = case.run(&gpu, &matmul, Kind::Store, norm, &case.all());
        case.x[36..72].fill(f32::INFINITY);
        let after = case.run(&gpu, &matmul, Kind::Store, norm, &case.all());
        assert_bits_eq(&after[..72], &before[..72]);
        assert_bits_eq(&after[144..], &before[144..]);
    }
}

#[test]
fn large_gates_stay_finite() {
    let Some(gpu) = testing::gpu() else { return };
    // Four of gate, four of up, each a multiple of the one value of x that isn't zero.
    let gates = [-200.0, 200.0, -90.0, 90.0, 1.0, 1.0, 1.0, 1.0];
    let weights: Vec<f32> = gates.iter().flat_map(|gate| [*gate, 0.0, 0.0, 0.0]).collect();
    let mut case = Case::new(&gpu, (Format::F32, RowOrder::Paired), (1, 8, 4), 1);
    let bytes = Format::F32.encode(4, &weights);
    case.weights =
        WeightMatrix::from_bytes(&gpu, (8, 4), (Format::F32, RowOrder::Paired), &bytes).unwrap();
    case.x = vec![1.0, 0.0, 0.0, 0.0];
    let out = case.run(&gpu, &Matmul::new(&gpu), Kind::Swiglu, false, &[0]);
    assert_close(&out, &[0.0, 200.0, 0.0, 90.0], 1e-5);
}

#[test]
fn split_weights_give_the_same_bits() {
    let (Some(whole), Some(split)) = (testing::gpu(), testing::small_gpu(1 << 17)) else {
        return;
    };
    for format in Format::ALL {
        for kind in KINDS {
            let (form, shape) = ((format, order(kind)), (5, 600, 512));
            let case = Case::new(&whole, form, shape, 17);
            let pieces = Case::new(&split, form, shape, 17);
            assert!(pieces.weights.shards.len() > 1);
            let all = case.all();
            let expected = case.run(&whole, &Matmul::new(&whole), kind, true, &all);
            let out = pieces.run(&split, &Matmul::new(&split), kind, true, &all);
            assert_bits_eq(&out, &expected);
        }
    }
}

/// As queries, keys and values of one file have several formats.
#[test]
fn parts_of_several_formats_are_computed_each_in_its_own() {
    for gpu in testing::both_layouts() {
        let formats = [(128, Format::Q4K), (64, Format::Q6K), (40, Format::Q4K)];
        let part = |(rows, format)| {
            Case::new(&gpu, (format, RowOrder::Plain), (5, rows, 256), rows as u64)
        };
        let parts = formats.map(part);
        let weights = WeightMatrix::stacked(parts.iter().map(|it| it.weights.clone()).collect());
        assert_eq!((weights.rows, weights.shards[1].rows.clone()), (232, 128..192));
        let mut case = Case::new(&gpu, (Format::F32, RowOrder::Plain), (5, 232, 256), 3);
        case.weights = weights;
        let matmul = Matmul::new(&gpu);
        let out = case.run(&gpu, &matmul, Kind::Store, true, &case.all());
        let mut first = 0;
        for part in parts {
            let (rows, norm, x) = (part.weights.rows, case.norm.clone(), case.x.clone());
            let alone = Case { norm, x, ..part };
            let alone = alone.run(&gpu, &matmul, Kind::Store, true, &case.all());
            for (row, alone) in out.chunks_exact(232).zip(alone.chunks_exact(rows)) {
                assert_bits_eq(&row[first..first + rows], alone);
            }
            first += rows;
        }
    }
}

#[test]
fn every_way_is_in_a_class_without_a_choice() {
    for gpu in testing::both_layouts() {
        let class = Class::plain(gpu.caps(), Format::Int4);
        let ways = class.ways();
        assert!(ways.iter().all(|way| way.choices().all(|choice| choice.len() == 1)));
        for variant in &class.variants {
            assert!(ways.iter().any(|way| way.variants.contains(variant)), "{variant:?}");
        }
        assert_eq!(ways[0].variants, class.choices().map(|ways| ways[0]).collect::<Vec<_>>());
    }
}

/// Each workgroup of a product with a norm would load all of its rows again: of a prompt of 512 and
/// 27,392 columns 428 times.
#[test]
fn a_gpu_sums_the_squares_of_many_rows_once() {
    let class = Class::gpu();
    let form = Form { format: Format::Bf16, norm: true, kind: Kind::Swiglu };
    let mut num_once = 0;
    for variant in class.variants.iter().filter(|variant| variant.max_rows > 4) {
        let text = variant.source(form, class.order, false).wgsl;
        assert!(text.contains("row_scales[") && !text.contains("squares"), "{}", variant.name());
        num_once += 1;
    }
    assert!(num_once > 3);
    let wide = class.variants.iter().find(|variant| variant.is_cut()).unwrap();
    // Few columns: 64 workgroups without a cut, and eight chunks. Many are enough by themselves.
    assert!(wide.suits(1, 2048, 8) && !wide.suits(1, 27_392, 16) && !wide.suits(1, 2048, 1));
    assert!(!Class::plain(testing_caps(), Format::Bf16).variants.iter().any(Variant::is_cut));
}

fn testing_caps() -> Caps {
    Caps {
        subgroups: true,
        min_subgroup_size: 8,
        max_subgroup_size: 8,
        max_binding_bytes: 1 << 27,
        max_workgroup_bytes: 32 << 10,
        max_workgroup_lanes: 1024,
        images: true,
        is_cpu: true,
        products: Products::Plain,
        cooperative_side: None,
        packs: false,
    }
}
