//! Products by cooperative matrices, of operands that are rounded to f16: against their reference
//! and the bound of their error, and bit for bit against themselves laid out in other ways and in
//! other batches.

use super::tests::{Case, order};
use super::*;
use crate::gpu::GpuOptions;
use crate::kv_cache::KvFormat;
use crate::testing::{self, Random, assert_bits_eq, assert_close, rms_share};

/// What rounding both operands to f16 changes a product by, root of the mean square, as a share of
/// that of the product: each by 2^-12 at most and so by some 1.4e-4, the gate of a product by more.
const ERROR: f64 = 1e-3;

/// What is multiplied, and what becomes of it.
const FORMS: [(Format, Kind); 6] = [
    (Format::Bf16, Kind::Swiglu),
    (Format::Int4, Kind::Swiglu),
    (Format::F32, Kind::Store),
    (Format::F16, Kind::Residual),
    (Format::Fp8, Kind::Store),
    (Format::Int8, Kind::Residual),
];

/// A device that has them. Few have, and of software drivers only the newest.
fn gpu(images: Option<bool>) -> Option<Gpu> {
    let adapter = testing::adapter();
    let options = GpuOptions { products: Products::Cooperative, images, ..GpuOptions::default() };
    Gpu::open_with(adapter.as_deref(), options)
        .inspect_err(|error| println!("skipped: cooperative matrices ({error})"))
        .ok()
}

fn class(gpu: &Gpu) -> Class {
    Class::choose(gpu.caps(), Format::F16)
}

/// What can be said where no device has them: that a driver gets what it can take.
#[test]
fn kernels_are_sound_and_become_spirv() {
    let sides = [(16, 32), (16, 64), (8, 8), (8, 32), (8, 4)];
    for class in sides.map(|(side, lanes)| Class::cooperative(side, lanes)) {
        for (number, format) in Format::ALL.into_iter().enumerate() {
            let kv = KvFormat::ALL[number % 2];
            for (kind, norm) in Kind::all(kv).into_iter().zip([false, true, true, false]) {
                for source in class.sources(Form { format, norm, kind }, number % 3 == 0) {
                    testing::assert_kernel(&source);
                    testing::assert_spirv(&source);
                }
            }
        }
    }
}

/// As a reference has it that rounds the same operands: what is left is the order of additions.
#[test]
fn agree_with_the_reference() {
    let round = |x: &f32| half::f16::from_f32(*x).to_f32();
    for images in [false, true] {
        let Some(gpu) = gpu(Some(images)) else { return };
        let matmul = Matmul::with_class(class(&gpu));
        for (format, kind) in FORMS {
            for shape in [(3, 64, 36), (9, 72, 256), (70, 136, 1000), (2, 64, 2916)] {
                let case = Case::new(&gpu, (format, order(kind)), shape, 11);
                let rounded = Case {
                    x: case.x.iter().map(round).collect(),
                    decoded: case.decoded.iter().map(round).collect(),
                    ..case.clone()
                };
                let out = case.run(&gpu, &matmul, kind, false, &case.all());
                let tolerance = if kind == Kind::Swiglu { 5e-3 } else { 2e-4 };
                assert_close(&out, &rounded.expected(kind, false), tolerance);
                let out = case.run(&gpu, &matmul, kind, true, &case.all());
                let error = rms_share(&out, &case.expected(kind, true));
                assert!((1e-5..ERROR).contains(&error), "{format:?} {shape:?}: {error}");
            }
        }
    }
}

#[test]
fn all_ways_give_the_same_bits() {
    let Some(gpu) = gpu(None) else { return };
    for (format, kind, norm) in [
        (Format::F16, Kind::Residual, true),
        (Format::Bf16, Kind::Store, true),
        (Format::Fp8, Kind::Residual, true),
        (Format::Int8, Kind::Store, false),
        (Format::Int4, Kind::Swiglu, true),
    ] {
        // More rows than one workgroup has, and not all of those of the next; more chunks than are
        // taken at a time, and a last one that is no multiple of what is staged at a time.
        let case = Case::new(&gpu, (format, order(kind)), (70, 136, 2916), 18);
        let class = class(&gpu);
        let alone = |variant: &Variant| Class { variants: vec![*variant], ..class.clone() };
        let run = |class| case.run(&gpu, &Matmul::with_class(class), kind, norm, &case.all());
        let mut outputs = class.variants.iter().map(alone).map(run);
        let expected = outputs.next().unwrap();
        outputs.for_each(|output| assert_bits_eq(&output, &expected));
    }
}

#[test]
fn a_row_is_the_same_in_any_batch() {
    let Some(gpu) = gpu(None) else { return };
    let matmul = Matmul::with_class(class(&gpu));
    let mut random = Random::new(14);
    for (format, kind) in FORMS {
        let mut case = Case::new(&gpu, (format, order(kind)), (64, 72, 580), 15);
        // A neighbour's infinity stays its own, whatever becomes of it.
        case.x[63 * 580 + 7] = f32::INFINITY;
        let run = |rows: &[usize]| case.run(&gpu, &matmul, kind, true, rows);
        let alone: Vec<Vec<f32>> = case.all().iter().map(|&row| run(&[row])).collect();
        for _ in 0..8 {
            let order = &random.permutation(64)[..1 + random.below(64)];
            let out = run(order);
            for (found, &row) in out.chunks(alone[0].len()).zip(order) {
                if row != 63 {
                    assert_bits_eq(found, &alone[row]);
                }
            }
        }
    }
}
