//! Products by cooperative matrices, of operands that are rounded to f16: against their reference
//! and the bound of their error, and bit for bit against themselves laid out in other ways and in
//! other batches.

use super::tests::{Case, order};
use super::*;
use crate::kv_cache::KvFormat;
use crate::testing::{self, Random, assert_bits_eq, assert_close, rms_share};

/// What rounding both operands to f16 changes a product by, root of the mean square, as a share of
/// that of the product: each by 2^-12 at most and so by some 1.4e-4, the gate of a product by more.
const ERROR: f64 = 1e-3;

/// What is multiplied, and what becomes of it.
const FORMS: [(Format, Kind); 4] = [
    (Format::Bf16, Kind::Swiglu),
    (Format::F16, Kind::Store),
    (Format::Bf16, Kind::Store),
    (Format::F16, Kind::Residual),
];

/// Devices and what is tried on each: a software driver takes long to compile.
fn devices() -> impl Iterator<Item = (Gpu, Vec<(Format, Kind)>)> {
    let gpus = testing::cooperative_gpus();
    let every = gpus.len();
    gpus.into_iter()
        .enumerate()
        .map(move |(number, gpu)| (gpu, FORMS.into_iter().skip(number).step_by(every).collect()))
}

/// The class of weights of a format.
fn class(gpu: &Gpu, format: Format) -> Class {
    Class::choose(gpu.caps(), format.stored(gpu.caps()))
}

/// A driver gets what it can take.
#[test]
fn kernels_are_sound_and_become_spirv() {
    let sides = [(16, 32), (16, 64), (8, 8), (8, 32), (8, 4)];
    for (side, lanes) in sides {
        let class = Class::cooperative(side, lanes);
        let format = if side == 16 { Format::F16Fragments } else { Format::F16 };
        let kinds = Kind::all(KvFormat::ALL[lanes as usize / 8 % 2]);
        for (kind, norm) in kinds.into_iter().zip([true, true, false, true, true]) {
            for source in class.sources(Form { format, norm, kind }, false) {
                testing::assert_kernel(&source);
                testing::assert_spirv(&source);
            }
        }
    }
}

/// As a reference has it that rounds the same operands: what is left is the order of additions. And
/// within the bound of the error of each value, as the documents have it.
#[test]
fn agree_with_the_reference_within_their_bound() {
    let round = |x: &f32| half::f16::from_f32(*x).to_f32();
    for (gpu, forms) in devices() {
        let matmul = Matmul::new(&gpu);
        for (format, kind) in forms {
            for shape in [(3, 64, 36), (9, 72, 256), (35, 136, 1000), (2, 64, 2916)] {
                let case = Case::new(&gpu, (format, order(kind)), shape, 11);
                assert_eq!(case.weights.format, format.stored(gpu.caps()));
                let rounded = Case {
                    x: case.x.iter().map(round).collect(),
                    decoded: case.decoded.iter().map(round).collect(),
                    ..case.clone()
                };
                let out = case.run(&gpu, &matmul, kind, false, &case.all());
                let tolerance = if kind == Kind::Swiglu { 5e-3 } else { 2e-4 };
                assert_close(&out, &rounded.expected(kind, false), tolerance);
                if kind == Kind::Store {
                    assert_within_bound(&case, &out);
                }
                let out = case.run(&gpu, &matmul, kind, true, &case.all());
                let error = rms_share(&out, &case.expected(kind, true));
                assert!((1e-5..ERROR).contains(&error), "{format:?} {shape:?}: {error}");
            }
        }
    }
}

/// A product is off by no more than `(2^-11 + k 2^-23) sum |x w| + 2^-25 sum (|x| + |w|)`: x is
/// rounded to eleven digits, or below 2^-14 to a multiple of 2^-24, as bf16 weights below 2^-17
/// are, and each of k additions to 24 digits or cut off there.
fn assert_within_bound(case: &Case, out: &[f32]) {
    let cols = case.weights.cols;
    let rows = case.x.chunks_exact(cols);
    let pairs = rows.flat_map(|x| case.decoded.chunks_exact(cols).map(move |w| (x, w)));
    for (number, ((x, w), found)) in pairs.zip(out).enumerate() {
        let values = || x.iter().zip(w).map(|(x, w)| (f64::from(*x), f64::from(*w)));
        let exact: f64 = values().map(|(x, w)| x * w).sum();
        let size: f64 = values().map(|(x, w)| (x * w).abs()).sum();
        let small: f64 = values().map(|(x, w)| x.abs() + w.abs()).sum();
        let additions = cols as f64 * 2f64.powi(-23);
        let bound = (2f64.powi(-11) + additions) * size + 2f64.powi(-25) * small;
        let error = (f64::from(*found) - exact).abs();
        assert!(error <= bound, "[{number}] is {found}, not {exact}: off by {error} > {bound}");
    }
}

/// One tile for all, for one row or many.
#[test]
fn all_ways_give_the_same_bits() {
    let gpus = testing::cooperative_gpus().into_iter();
    for (number, gpu) in gpus.enumerate() {
        let (format, kind) = FORMS[number];
        // More rows than one workgroup has, and not all of those of the next; more chunks than
        // are taken at a time, and a last one that is no multiple of what is staged at a time.
        let case = Case::new(&gpu, (format, order(kind)), (70, 72, 2340), 18);
        let caps = gpu.caps();
        let own = class(&gpu, format);
        assert_eq!(own.how(), " cooperative");
        // Of a device that is one in name only, some: compiling takes seconds.
        let some = if caps.is_cpu { 1 + 3 * number } else { 1 };
        let ways = own.variants.iter().step_by(some);
        let mut expected = None;
        for variant in ways.filter(|variant| variant.fits(caps)) {
            let class = Class { variants: vec![*variant], ..own.clone() };
            let out = case.run(&gpu, &Matmul::with_class(class), kind, true, &case.all());
            assert_bits_eq(&out, expected.get_or_insert(out.clone()));
        }
    }
}

#[test]
fn a_row_is_the_same_in_any_batch() {
    let mut random = Random::new(14);
    for (gpu, forms) in devices() {
        let matmul = Matmul::new(&gpu);
        for (format, kind) in forms {
            let mut case = Case::new(&gpu, (format, order(kind)), (40, 72, 580), 15);
            // A neighbour's infinity stays its own, whatever becomes of it.
            case.x[39 * 580 + 7] = f32::INFINITY;
            let run = |rows: &[usize]| case.run(&gpu, &matmul, kind, true, rows);
            let alone: Vec<Vec<f32>> = case.all().iter().map(|&row| run(&[row])).collect();
            for _ in 0..4 {
                let order = &random.permutation(40)[..1 + random.below(40)];
                let out = run(order);
                for (found, &row) in out.chunks(alone[0].len()).zip(order) {
                    if row != 39 {
                        assert_bits_eq(found, &alone[row]);
                    }
                }
            }
        }
    }
}

/// Such a matrix is multiplied in f32.
#[test]
fn bf16_weights_that_are_no_halves_stay_as_they_are() {
    for gpu in testing::cooperative_gpus() {
        let case = |values: &dyn Fn(usize) -> f32| {
            let bytes = Format::Bf16.encode(36, &(0..72 * 36).map(values).collect::<Vec<_>>());
            let of = (Format::Bf16, RowOrder::Plain);
            Case {
                weights: WeightMatrix::from_bytes(&gpu, (72, 36), of, &bytes).unwrap(),
                decoded: Format::Bf16.decode(36, &bytes),
                ..Case::new(&gpu, of, (3, 72, 36), 1)
            }
        };
        let large = case(&|i| if i == 70 * 36 { 1e30 } else { 0.5 });
        let small = case(&|i| 1e-6 * (i % 7) as f32);
        let matmul = Matmul::new(&gpu);
        for case in [large, small] {
            assert_eq!(case.weights.format, Format::Bf16);
            let out = case.run(&gpu, &matmul, Kind::Store, false, &case.all());
            let plain = Matmul::of(&gpu, Products::Plain);
            let expected = case.run(&gpu, &plain, Kind::Store, false, &case.all());
            assert_bits_eq(&out, &expected);
            assert_close(&out, &case.expected(Kind::Store, false), 1e-5);
        }
        let fits = case(&|i| 1e-6 + (i % 7) as f32);
        assert_eq!(Some(fits.weights.format), Some(Format::Bf16.stored(gpu.caps())));
    }
}
