//! Products by packed dot products: against their reference and the bound of their error, and bit
//! for bit against themselves laid out in other ways and in other batches.

use super::tests::{Case, EPS, order};
use super::*;
use crate::kernel::Pass;
use crate::kv_cache::KvFormat;
use crate::testing::{self, Random, assert_bits_eq, assert_close, rms_share};

const FORMATS: [Format; 2] = [Format::Int8, Format::Int4];

/// Root of the mean square of what rounding x to eight bits changes a product by, as a share of
/// that of the product: for values that are normally distributed half a percent, since the largest
/// of 32 is some 2.1 times as large as they are on average, and 2.1 / 127 / sqrt(12) = 0.0048; more
/// where a norm's weights make some of them stand out.
const ERROR: f64 = 0.01;

/// Both classes, with the same order of the sums of a norm.
fn classes() -> [Class; 2] {
    [true, false].map(Class::packed).map(|class| {
        let order = Order { norm_lanes: 8, ..class.order };
        Class { order, ..class }
    })
}

fn alone(class: &Class) -> impl Iterator<Item = Class> {
    let alone = |variant: &Variant| Class { variants: vec![*variant], ..class.clone() };
    class.variants.iter().map(alone)
}

/// x as a product takes it.
fn rounded(gpu: &Gpu, case: &Case, class: &Class, norm: bool) -> Vec<f32> {
    let cols = case.weights.cols;
    let num_rows = case.x.len() / cols;
    let x = gpu.upload_vec4s(&case.x).unwrap();
    let weight = gpu.upload_vec4s(&case.norm).unwrap();
    let norm = norm.then_some(Norm { weight: &weight, eps: EPS });
    let operand = Operand { x: &x, norm, quantized: None };
    let out = QuantizedRows::new(gpu, num_rows, cols).unwrap();
    let mut pass = Pass::new();
    let bound = QuantizeRows::new(class.order.norm_lanes).bind(gpu, operand, cols, &out).unwrap();
    bound.record(&mut pass, num_rows);
    gpu.run(&pass).unwrap();
    quantize_rows::decode(cols, &gpu.read_u32(out.tensor()).unwrap())
}

#[test]
fn kernels_are_sound_and_become_spirv() {
    for class in classes() {
        for (format, kv) in FORMATS.into_iter().zip(KvFormat::ALL) {
            for (kind, images) in Kind::all(kv).into_iter().zip([false, true, false, true]) {
                for source in class.sources(Form { format, norm: true, kind }, images) {
                    testing::assert_kernel(&source);
                    testing::assert_spirv(&source);
                }
            }
        }
    }
}

#[test]
fn agrees_with_the_reference_within_its_bound() {
    for gpu in testing::both_layouts() {
        let [class, _] = classes();
        let matmul = Matmul::with_class(class.clone());
        for (format, kind) in [(Format::Int8, Kind::Residual), (Format::Int4, Kind::Store)] {
            for shape in [(3, 64, 36), (9, 72, 256), (17, 136, 1000)] {
                let case = Case::new(&gpu, (format, order(kind)), shape, 11);
                for norm in [false, true] {
                    let found = case.run(&gpu, &matmul, kind, norm, &case.all());
                    let rounded = Case { x: rounded(&gpu, &case, &class, norm), ..case.clone() };
                    assert_close(&found, &rounded.expected(kind, false), 2e-4);
                    let error = rms_share(&found, &case.expected(kind, norm));
                    assert!((1e-3..ERROR).contains(&error), "{format:?} {shape:?}: {error}");
                }
            }
        }
    }
}

#[test]
fn all_ways_give_the_same_bits() {
    for (gpu, format) in testing::both_layouts().zip(FORMATS) {
        // More rows than one workgroup stages, and not all of those of the next; a chunk that ends
        // with half of what is staged at a time.
        let kind = Kind::Swiglu;
        let case = Case::new(&gpu, (format, order(kind)), (70, 136, 868), 18);
        let run = |class| case.run(&gpu, &Matmul::with_class(class), kind, true, &case.all());
        let classes = classes();
        let mut outputs = classes.iter().flat_map(alone).map(run);
        let expected = outputs.next().unwrap();
        outputs.for_each(|output| assert_bits_eq(&output, &expected));
    }
}

#[test]
fn a_row_is_the_same_in_any_batch_and_of_split_weights() {
    let (Some(gpu), Some(split)) = (testing::gpu(), testing::small_gpu(1 << 16)) else { return };
    let [class, _] = classes();
    let [matmul, of_split] = [(); 2].map(|()| Matmul::with_class(class.clone()));
    let mut random = Random::new(14);
    for (format, kind) in [(Format::Int8, Kind::Store), (Format::Int4, Kind::Residual)] {
        let (form, shape) = ((format, order(kind)), (64, 200, 580));
        let case = Case::new(&gpu, form, shape, 15);
        let run = |rows: &[usize]| case.run(&gpu, &matmul, kind, true, rows);
        let alone: Vec<Vec<f32>> = case.all().iter().map(|&row| run(&[row])).collect();
        for _ in 0..8 {
            let order = &random.permutation(64)[..1 + random.below(64)];
            let expected: Vec<f32> = order.iter().flat_map(|&row| alone[row].clone()).collect();
            assert_bits_eq(&run(order), &expected);
        }
        let pieces = Case::new(&split, form, shape, 15);
        assert!(pieces.weights.shards.len() > 1);
        let out = pieces.run(&split, &of_split, kind, true, &[0, 1, 2, 3, 4]);
        assert_bits_eq(&out, &alone[..5].concat());
    }
}
